"""Faults in the graph of a TFLite model: operators missing, extra or exchanged, and inputs that arrive changed. Runs in a worker."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from trueport.testing.planting._tflite_edit import Editor, Fault, Node, SkipPlace, at, carrying, told

STANDALONE = ("RELU", "RELU6", "LOGISTIC", "TANH", "HARD_SWISH", "LEAKY_RELU", "PRELU", "ELU", "GELU", "SOFTMAX")
CHANGED = {
    "RELU": ("RELU6", ""),
    "RELU6": ("RELU", ""),
    "LEAKY_RELU": ("RELU", ""),
    "PRELU": ("RELU", ""),
    "ELU": ("RELU", ""),
    "GELU": ("RELU", ""),
    "HARD_SWISH": ("RELU", ""),
    "TANH": ("LOGISTIC", ""),
    "LOGISTIC": ("TANH", ""),
    "SOFTMAX": ("LOG_SOFTMAX", "LogSoftmaxOptions"),
}
"""Activation -> what stands in its place, and its options."""
BINARY = ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM")
PRODUCERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "ADD", "MUL", "BATCH_MATMUL", "MEAN")
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def floating(*codes: str) -> Callable[[Editor], list[Node]]:
    """Operators of these kinds that compute float32."""
    return lambda edit: [node for node in at(*codes)(edit) if edit.dtype(edit.result(node)) == "float32"]


def missing(edit: Editor, node: Node) -> dict[str, Any]:
    """Take an operator out; what it read goes on in its place. The truth: those between which it stood."""
    shape = edit.shape(edit.result(node))
    slots = [slot for slot in edit.computed(node) if edit.shape(edit.tensor(node, slot)) == shape]
    if not slots:
        raise SkipPlace("nothing that it reads has the shape of its result")
    writer = edit.writer(node.graph, int(node.item.inputs[slots[0]]))
    readers = edit.readers(node.graph, int(node.item.outputs[0]))
    edit.remove(node, slots[0])
    return told(edit, [*readers, *([writer] if writer else [])], node.code + " missing beside {}", node.code, None)


def branch_missing(edit: Editor, node: Node) -> dict[str, Any]:
    """Of a + b only one stays."""
    slots = edit.computed(node)
    if len(slots) < 2 or node.item.inputs[0] == node.item.inputs[1]:
        raise SkipPlace("one operand is constant")
    kept = slots[int(edit.rng.integers(2))]
    ends = [edit.writer(node.graph, int(node.item.inputs[slot])) for slot in slots]
    readers = edit.readers(node.graph, int(node.item.outputs[0]))
    edit.remove(node, kept)
    return told(
        edit, [*readers, *(end for end in ends if end)], f"{node.code} missing before or after", node.code, None
    )


def behind(edit: Editor, node: Node, *steps: tuple[str, str, dict[str, Any]]) -> list[Node]:
    """Put operators (code, options table, changes of the tensor that they compute) behind another one, whose readers see the last."""
    graph, out = node.graph, int(node.item.outputs[0])
    readers = edit.readers(graph, out)
    if not readers:
        raise SkipPlace("nobody reads the result")
    made, before = [], out
    for code, options, changes in steps:
        after = edit.like(graph, out, f"{code.lower()}_{len(graph.tensors)}", **changes)
        made.append(edit.operator(code, [before], [after], options))
        before = after
    first = min(readers, key=lambda reader: next(i for i, item in enumerate(graph.operators) if item is reader.item))
    for reader in readers:
        for slot, index in enumerate(reader.item.inputs):
            if index == out:
                edit.rewire(reader, slot, before)
    return edit.put_before(first, made)


def inserted(code: str) -> Callable[[Editor, Node], dict[str, Any]]:
    """Put one operator behind another."""

    def change(edit: Editor, node: Node) -> dict[str, Any]:
        readers = edit.readers(node.graph, int(node.item.outputs[0]))
        if any(reader.code in (*STANDALONE, code) for reader in readers):
            raise SkipPlace("an activation follows already")
        made = behind(edit, node, (code, "", {}))
        return told(edit, made, code + " put in: {}", None, code)

    return change


def cast_island(edit: Editor, node: Node) -> dict[str, Any]:
    """Let a result pass through float16."""
    readers = edit.readers(node.graph, int(node.item.outputs[0]))
    made = behind(edit, node, ("CAST", "CastOptions", {"type": 1}), ("CAST", "CastOptions", {}))
    for place, (source, target) in zip(made, ((0, 1), (1, 0))):
        place.item.builtinOptions.inDataType, place.item.builtinOptions.outDataType = source, target
    return told(edit, [*made, node, *readers], "float16 island at {}", "float32", "float16")


def repeated(edit: Editor, node: Node) -> dict[str, Any]:
    """Apply an operator twice."""
    slot = edit.computed(node)[0]
    data = edit.tensor(node, slot)
    if data is None or edit.shape(data) != edit.shape(edit.result(node)) or data.type != edit.result(node).type:
        raise SkipPlace("the result has another shape or type")
    once = edit.like(node.graph, int(node.item.outputs[0]), f"once_{len(node.graph.tensors)}")
    inputs = [int(index) for index in node.item.inputs]
    item = edit.operator(node.code, inputs, [once])
    item.opcodeIndex = node.item.opcodeIndex
    item.builtinOptions, item.builtinOptionsType = node.item.builtinOptions, node.item.builtinOptionsType
    made = edit.put_before(node, [item])
    edit.rewire(node, slot, once)
    return told(edit, [node, *made], "repetition", 1, 2)


def activation_changed(edit: Editor, node: Node) -> dict[str, Any]:
    """Another activation of the same input."""
    new, options = CHANGED[node.code]
    if edit.quantised(edit.result(node)) and new in ("LOGISTIC", "TANH", "LOG_SOFTMAX"):
        raise SkipPlace("its grid would not hold the values")
    node.item.inputs = [int(node.item.inputs[0])]
    edit.turn_into(node.item, new, options)
    return told(edit, [node], "kind", node.code, new)


def reshaped(edit: Editor, node: Node) -> dict[str, Any]:
    """Reshape for Transpose: the shape is right, the order of the elements is not."""
    shape = edit.shape(edit.result(node))
    longer = [size for size in shape if size > 1]
    if len(longer) < 2:
        raise SkipPlace("the transposition moves nothing")
    table = edit.constant(node.graph, np.array(shape, np.int32), "shape")
    node.item.inputs = [int(node.item.inputs[0]), table]
    edit.turn_into(node.item, "RESHAPE", "ReshapeOptions", newShape=shape)
    return told(edit, [node], "kind", "TRANSPOSE", "RESHAPE")


def flatten_order(edit: Editor, node: Node) -> dict[str, Any]:
    """Flatten channels first for channels last: a transposition before a flattening."""
    data = edit.tensor(node, 0)
    shape, out = edit.shape(data) if data is not None else [], edit.shape(edit.result(node))
    if len(shape) != 4 or len(out) != 2 or shape[3] < 2 or shape[1] * shape[2] < 2:
        raise SkipPlace("no picture is flattened here")
    made = before(edit, node, 0, "TRANSPOSE", "TransposeOptions", np.array([0, 3, 1, 2], np.int32))
    return told(edit, [node, made], "order of flattening", "NHWC", "NCHW")


def before(edit: Editor, node: Node, slot: int, code: str, options: str, table: np.ndarray) -> Node:
    """Put an operator with one more operand between an operator and what it reads; the shape follows TRANSPOSE, else stays."""
    index = int(node.item.inputs[slot])
    shape = edit.shape(node.graph.tensors[index])
    new = [shape[axis] for axis in table] if code == "TRANSPOSE" else shape
    after = edit.reshaped(node.graph, index, f"{code.lower()}_{len(node.graph.tensors)}", new)
    operand = edit.constant(node.graph, table, "table")
    (made,) = edit.put_before(node, [edit.operator(code, [index, operand], [after], options)])
    edit.rewire(node, slot, after)
    return made


# -- inputs


def pictures(edit: Editor) -> list[int]:
    """Inputs of four axes, the last of which has 1 to 4 channels."""
    found = [(int(index), edit.shape(edit.main.tensors[int(index)])) for index in edit.main.inputs]
    return [index for index, shape in found if len(shape) == 4 and shape[3] in (1, 3, 4) and min(shape[1:3]) > 4]


def float_inputs(edit: Editor) -> list[int]:
    """Inputs of float32."""
    return [int(index) for index in edit.main.inputs if edit.dtype(edit.main.tensors[int(index)]) == "float32"]


def sequences(edit: Editor) -> list[int]:
    """Inputs whose second axis has several steps, tokens or features."""
    return [int(i) for i in edit.main.inputs if [*edit.shape(edit.main.tensors[int(i)]), 0, 0][1] > 2]


def arriving(edit: Editor, index: int, steps: list[tuple[str, str, np.ndarray]], what: str, new: Any) -> dict[str, Any]:
    """Change an input before anything reads it: the new operators and its first readers are the truth."""
    graph = edit.main
    readers = edit.readers(graph, index)
    if not readers:
        raise SkipPlace("nobody reads the input")
    if any(int(other) == index for other in graph.outputs):
        raise SkipPlace("the input is an output")
    made, current = [], index
    for code, options, table in steps:
        shape = _after(code, edit.shape(graph.tensors[current]), table)
        after = edit.reshaped(graph, current, f"{code.lower()}_{len(graph.tensors)}", shape)
        made.append(edit.operator(code, [current, edit.constant(graph, table, "table")], [after], options))
        current = after
    for reader in readers:
        for slot, other in enumerate(reader.item.inputs):
            if int(other) == index:
                edit.rewire(reader, slot, current)
    first = edit.nodes()[0]
    nodes = edit.put_before(first, made)
    for node in nodes:
        if node.code == "GATHER":
            node.item.builtinOptions.axis = 1 if what == "steps" else len(edit.shape(graph.tensors[index])) - 1
    return told(edit, [*nodes, *readers], what + " of the input, at {}", "as given", new)


def _after(code: str, shape: list[int], table: np.ndarray) -> list[int]:
    if code == "TRANSPOSE":
        return [shape[axis] for axis in table]
    return [shape[0], *(int(size) for size in table[1:])] if code == "RESHAPE" else shape


def input_scale(edit: Editor, index: int) -> dict[str, Any]:
    """Divide by 255 once more."""
    return arriving(edit, index, [("MUL", "MulOptions", np.array([1 / 255], np.float32))], "scale", "divided by 255")


def input_mean(edit: Editor, index: int) -> dict[str, Any]:
    """Subtract a mean and divide by a deviation for each channel, as ImageNet has them."""
    channels = edit.shape(edit.main.tensors[index])[3]
    if index not in float_inputs(edit):
        raise SkipPlace("the input is no float32")
    mean, deviation = (np.resize(np.array(values, np.float32), channels) for values in (MEAN, DEVIATION))
    steps = [("SUB", "SubOptions", mean), ("DIV", "DivOptions", deviation)]
    return arriving(edit, index, steps, "mean and deviation", {"mean": mean.tolist(), "std": deviation.tolist()})


def input_bgr(edit: Editor, index: int) -> dict[str, Any]:
    """Blue first."""
    if edit.shape(edit.main.tensors[index])[3] != 3:
        raise SkipPlace("the picture has no three channels")
    table = np.array([2, 1, 0], np.int32)
    return arriving(edit, index, [("GATHER", "GatherOptions", table)], "channels", "BGR")


def input_flipped(edit: Editor, index: int) -> dict[str, Any]:
    """Right for left."""
    return arriving(edit, index, [("REVERSE_V2", "ReverseV2Options", np.array([2], np.int32))], "columns", "reversed")


def input_turned(edit: Editor, index: int) -> dict[str, Any]:
    """Height for width."""
    shape = edit.shape(edit.main.tensors[index])
    if shape[1] != shape[2]:
        raise SkipPlace("the picture is not square")
    table = np.array([0, 2, 1, 3], np.int32)
    return arriving(edit, index, [("TRANSPOSE", "TransposeOptions", table)], "rows and columns", "exchanged")


def input_layout(edit: Editor, index: int) -> dict[str, Any]:
    """Read the bytes as if channels came first."""
    _, height, width, channels = edit.shape(edit.main.tensors[index])
    if channels < 2:
        raise SkipPlace("the picture has one channel")
    table = np.array([-1, channels, height, width], np.int32)
    steps = [("RESHAPE", "ReshapeOptions", table), ("TRANSPOSE", "TransposeOptions", np.array([0, 2, 3, 1], np.int32))]
    return arriving(edit, index, steps, "layout", "read as NCHW")


def input_shifted(edit: Editor, index: int) -> dict[str, Any]:
    """Move the steps of a sequence on by one."""
    shape = edit.shape(edit.main.tensors[index])
    if len(shape) > 3:
        raise SkipPlace("the input is a picture")
    table = np.roll(np.arange(shape[1], dtype=np.int32), 1)
    return arriving(edit, index, [("GATHER", "GatherOptions", table)], "steps", "rolled by one")


CG, TSS, PP = ("CG", "structure"), ("TSS", "structure"), ("PP", "inputs")
SHAPE_KEEPING = ("MEAN", "PAD", "MUL", "DIV", "NEG", "RSQRT", "SQUARED_DIFFERENCE", "REVERSE_V2", "ADD")
FAULTS = {
    "activation_missing": Fault(*CG, at(*STANDALONE), missing),
    "activation_extra": Fault(*CG, floating(*PRODUCERS), inserted("RELU")),
    "activation_changed": Fault(*CG, at(*CHANGED), activation_changed, ("hyperparameters",)),
    "operator_missing": Fault(*CG, carrying(*SHAPE_KEEPING), missing, ("parameters",)),
    "operator_extra": Fault(*CG, floating(*PRODUCERS), inserted("ABS")),
    "operator_repeated": Fault(*CG, at(*STANDALONE, "NEG", "RSQRT", "REVERSE_V2", "MAX_POOL_2D"), repeated),
    "branch_missing": Fault(*CG, carrying(*BINARY), branch_missing),
    "reshape_for_transpose": Fault(*TSS, carrying("TRANSPOSE"), reshaped, ("hyperparameters",)),
    "flatten_order": Fault(*TSS, at("RESHAPE"), flatten_order, ("hyperparameters",)),
    "cast_island": Fault("QZ", "precision", floating(*PRODUCERS, *STANDALONE), cast_island),
    "input_scale": Fault(*PP, float_inputs, input_scale),
    "input_mean": Fault(*PP, pictures, input_mean),
    "input_bgr": Fault(*PP, pictures, input_bgr),
    "input_flipped": Fault(*PP, pictures, input_flipped),
    "input_turned": Fault(*PP, pictures, input_turned),
    "input_layout": Fault(*PP, pictures, input_layout),
    "input_shifted": Fault(*PP, sequences, input_shifted),
}
