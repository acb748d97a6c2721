"""Faults in the graph itself: operators missing, added, exchanged or reordered, layouts, and what is done to the inputs.

A fault that adds a node is that node. One that removes a node sits between its neighbours: all of them are the truth.
"""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from trueport.testing.planting._onnx_edit import Editor, Fault, SkipPlace, told

Change = Callable[[Editor, Any], dict[str, Any]]
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "Relu": ("LeakyRelu", {"alpha": 0.1}),
    "LeakyRelu": ("Relu", {}),
    "PRelu": ("Relu", {}),
    "Clip": ("Relu", {}),
    "Sigmoid": ("HardSigmoid", {}),
    "Tanh": ("Softsign", {}),
    "Elu": ("Relu", {}),
    "Selu": ("Elu", {}),
    "Gelu": ("Relu", {}),
    "HardSigmoid": ("Sigmoid", {}),
    "HardSwish": ("Relu", {}),
    "Softplus": ("Relu", {}),
    "Erf": ("Tanh", {}),
    "Softmax": ("LogSoftmax", {"axis": -1}),
}
"""Activation -> what a wrong translation makes of it."""
PRODUCERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization", "LayerNormalization")
BINARY = ("Add", "Mul", "Sub", "Div")
REPEATABLE = ("BatchNormalization", "LayerNormalization", "Softmax", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "HardSwish")
"""Operators of one computed input that change a value when they come twice."""


def at(*operators: str) -> Callable[[Editor], list[Any]]:
    """Every node of these operators that reads something computed."""
    return lambda edit: [node for node in edit.nodes(*operators) if edit.computed(node)]


def floating(edit: Editor, value: str) -> bool:
    """Whether a value is known to hold float32."""
    items = [*edit.graph.value_info, *edit.graph.input, *edit.graph.output]
    kinds = {item.name: item.type.tensor_type.elem_type for item in items}
    return bool(kinds.get(value, 1) == 1)


def after_linear(edit: Editor) -> list[Any]:
    """Linear operators whose result no activation follows at once."""
    found = at(*PRODUCERS)(edit)
    return [
        node
        for node in found
        if floating(edit, node.output[0])
        and not any(reader.op_type in ACTIVATIONS for reader in edit.readers(node.output[0]))
    ]


def missing(edit: Editor, node: Any) -> dict[str, Any]:
    """Take an operator out; what it read goes on in its place."""
    shape, before = edit.shape(node.output[0]), None
    for name in edit.computed(node):
        before = name if before is None and edit.shape(name) == shape else before
    if before is None:
        raise SkipPlace("nothing that it reads has the shape of its result")
    name, readers = edit.name(node), edit.readers(node.output[0])
    made = edit.producer(before)
    edit.remove(node, before)
    around = [edit.name(reader) for reader in readers] + ([] if made is None else [edit.name(made)])
    return told(around, f"{node.op_type} {name} left out", node.op_type, None)


def inserted(*steps: tuple[str, dict[str, Any]]) -> Change:
    """Put operators behind a node."""

    def change(edit: Editor, node: Any) -> dict[str, Any]:
        value = node.output[0]
        made = edit.insert(value, [(operator, [], attributes) for operator, attributes in steps])
        added = ", ".join(operator for operator, _ in steps)
        return told([edit.name(item) for item in made], f"{added} put behind {value}", None, added)

    return change


def cast_island(edit: Editor, node: Any) -> dict[str, Any]:
    """Let a result pass through float16: the casts, and the nodes between which they stand."""
    value = node.output[0]
    if not floating(edit, value):
        raise SkipPlace("it does not compute float32")
    readers = [edit.name(item) for item in edit.readers(value)]
    made = edit.insert(value, [("Cast", [], {"to": 10}), ("Cast", [], {"to": 1})])
    before = edit.producer(made[0].input[0])
    around = [edit.name(item) for item in made] + ([] if before is None else [edit.name(before)]) + readers
    return told(around, f"{value} goes through float16", "float32", "float16")


def activation_changed(edit: Editor, node: Any) -> dict[str, Any]:
    """Another activation of the same inputs."""
    old = node.op_type
    new, attributes = ACTIVATIONS[old]
    del node.input[1:]
    edit.change_operator(node, new, **attributes)
    return told([edit.name(node)], f"kind of {edit.name(node)}", old, new)


def repeated(edit: Editor, node: Any) -> dict[str, Any]:
    """Apply an operator twice."""
    operator, more = node.op_type, list(node.input)[1:]
    from onnx import helper

    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    made = edit.insert(node.output[0], [(operator, more, attributes)])
    return told([edit.name(made[0])], f"{operator} applied twice", 1, 2)


def operands_swapped(edit: Editor, node: Any) -> dict[str, Any]:
    """a - b for b - a."""
    if len(set(node.input)) < 2:
        raise SkipPlace("both operands are the same")
    node.input[0], node.input[1] = node.input[1], node.input[0]
    return told([edit.name(node)], f"operands of {edit.name(node)}", "first, second", "second, first")


def concat_order(edit: Editor, node: Any) -> dict[str, Any]:
    """Join the parts the other way round."""
    old = list(node.input)
    if old == old[::-1] or len(edit.computed(node)) < 2 or not floating(edit, old[0]):
        raise SkipPlace("the order makes no difference")
    del node.input[:]
    node.input.extend(old[::-1])
    return told([edit.name(node)], f"order of {edit.name(node)}", old, old[::-1])


def operand_missing(edit: Editor, node: Any) -> dict[str, Any]:
    """Leave a branch out: of a + b only one stays."""
    if len(edit.computed(node)) < 2:
        raise SkipPlace("it joins no two branches")
    return missing(edit, node)


def reshaped(edit: Editor, node: Any) -> dict[str, Any]:
    """Reshape for Transpose: the shape is right, the order of the elements is not."""
    shape, given = edit.shape(node.output[0]), edit.shape(node.input[0])
    if shape is None or given is None or sum(size is None for size in shape) > 1:
        raise SkipPlace("the shape is not known")
    perm = edit.attribute(node, "perm", list(range(len(given)))[::-1])
    moving = [axis for axis in perm if given[axis] != 1]
    if moving == sorted(moving):
        raise SkipPlace("the transposition moves nothing")
    edit.change_operator(node, "Reshape")
    node.input.append(edit.constant(np.array([-1 if size is None else size for size in shape], np.int64), "shape"))
    return told([edit.name(node)], f"kind of {edit.name(node)}", "Transpose", "Reshape")


def flatten_order(edit: Editor, node: Any) -> dict[str, Any]:
    """Flatten channels last for channels first, or the other way: a transposition before a flattening."""
    value = node.input[0]
    shape, result = edit.shape(value), edit.shape(node.output[0])
    if shape is None or result is None or len(shape) < 3 or len(result) != 2:
        raise SkipPlace("it flattens nothing")
    if sum(size not in (None, 1) for size in shape[1:]) < 2:
        raise SkipPlace("one axis has all elements")
    perm = [0, *range(2, len(shape)), 1]
    made = edit.chain(value, [("Transpose", [], {"perm": perm})])
    edit.rewire(node, value, made[-1].output[0])
    name = edit.name(node)
    edit.add(*made)
    return told([edit.name(made[0]), name], f"order in which {name} flattens", "as stored", perm)


# -- what is done to the inputs -------------------------------------------------------------------------------------


def pictures(edit: Editor) -> list[Any]:
    """Graph inputs of four axes, two of them long, one with a few channels."""
    return [item for item in edit.inputs() if edit.rank(item.name) == 4 and channel_axis(edit, item.name) is not None]


def sequences(edit: Editor) -> list[Any]:
    """Graph inputs whose second axis has a known size above 1: steps, tokens, features."""
    shapes = [(item, edit.shape(item.name) or []) for item in edit.inputs()]
    return [item for item, shape in shapes if len(shape) in (2, 3) and (shape[1] or 0) > 1]


def floats(edit: Editor) -> list[Any]:
    """Graph inputs of float32."""
    return [item for item in edit.inputs() if item.type.tensor_type.elem_type == 1]


def channel_axis(edit: Editor, value: str) -> Any:
    """The axis with 1 to 4 channels of a picture, or None."""
    shape = edit.shape(value) or []
    return next((axis for axis in (1, 3) if len(shape) == 4 and 0 < (shape[axis] or 0) <= 4), None)


def spatial(edit: Editor, value: str) -> list[int]:
    """The axes of height and width."""
    return [2, 3] if channel_axis(edit, value) == 1 else [1, 2]


def at_front(edit: Editor, item: Any, steps: Any, what: str, source: Any, target: Any) -> dict[str, Any]:
    """Change an input before anything reads it: the new nodes and the first readers are the truth."""
    readers = [edit.name(node) for node in edit.readers(item.name)]
    if not readers or item.name in edit.outputs():
        raise SkipPlace("nothing reads the input")
    made = edit.insert(item.name, steps)
    return told([*(edit.name(node) for node in made), *readers], f"{what} of {item.name}", source, target)


def input_scale(edit: Editor, item: Any) -> dict[str, Any]:
    """Divide by 255 once more."""
    factor = edit.constant(np.array(1 / 255, np.float32), "factor")
    return at_front(edit, item, [("Mul", [factor], {})], "scale", 1, 1 / 255)


def input_mean(edit: Editor, item: Any) -> dict[str, Any]:
    """Subtract a mean and divide by a deviation for each channel, as ImageNet has them."""
    axis, shape = channel_axis(edit, item.name), edit.shape(item.name) or []
    size = shape[axis] or 1
    form = [size if place == axis else 1 for place in range(4)]
    mean = np.resize(np.array([0.485, 0.456, 0.406], np.float32), size).reshape(form)
    deviation = np.resize(np.array([0.229, 0.224, 0.225], np.float32), size).reshape(form)
    steps: list[Any] = [
        ("Sub", [edit.constant(mean, "mean")], {}),
        ("Div", [edit.constant(deviation, "deviation")], {}),
    ]
    return at_front(edit, item, steps, "mean and deviation", "none", "ImageNet")


def taken(edit: Editor, item: Any, axis: int, order: np.ndarray, what: str) -> dict[str, Any]:
    """Reorder an input along one axis."""
    indices = edit.constant(order.astype(np.int64), "order")
    steps = [("Gather", [indices], {"axis": axis})]
    return at_front(edit, item, steps, what, "as given", order.tolist() if order.size < 9 else "reordered")


def input_bgr(edit: Editor, item: Any) -> dict[str, Any]:
    """Blue first."""
    axis = channel_axis(edit, item.name)
    size = (edit.shape(item.name) or [])[axis] or 1
    if size < 2:
        raise SkipPlace("there is one channel")
    return taken(edit, item, axis, np.arange(size)[::-1], "channel order")


def input_flipped(edit: Editor, item: Any) -> dict[str, Any]:
    """Right for left."""
    axis = spatial(edit, item.name)[1]
    size = (edit.shape(item.name) or [])[axis]
    if not size:
        raise SkipPlace("the width is not fixed")
    return taken(edit, item, axis, np.arange(size)[::-1], "columns")


def input_turned(edit: Editor, item: Any) -> dict[str, Any]:
    """Height for width."""
    high, wide = spatial(edit, item.name)
    perm = list(range(4))
    perm[high], perm[wide] = wide, high
    return at_front(edit, item, [("Transpose", [], {"perm": perm})], "height and width", [0, 1, 2, 3], perm)


def input_shifted(edit: Editor, item: Any) -> dict[str, Any]:
    """Move the steps of a sequence on by one."""
    size = (edit.shape(item.name) or [])[1] or 1
    return taken(edit, item, 1, np.roll(np.arange(size), 1), "steps")


def input_layout(edit: Editor, item: Any) -> dict[str, Any]:
    """Read the bytes in the other layout: channels last as channels first, or the other way."""
    shape = edit.shape(item.name) or []
    if any(size is None for size in shape[1:]):
        raise SkipPlace("the size is not fixed")
    last = channel_axis(edit, item.name) == 1
    perm = [0, 2, 3, 1] if last else [0, 3, 1, 2]
    back = edit.constant(np.array([-1, *shape[1:]], np.int64), "shape")
    steps: list[Any] = [("Transpose", [], {"perm": perm}), ("Reshape", [back], {})]
    return at_front(edit, item, steps, "layout", "as given", "the other one")


CG, TSS, PP = ("CG", "structure"), ("TSS", "structure"), ("PP", "inputs")
FAULTS = {
    "activation_missing": Fault(*CG, at(*ACTIVATIONS), missing),
    "activation_extra": Fault(*CG, after_linear, inserted(("Relu", {}))),
    "activation_changed": Fault(*CG, at(*ACTIVATIONS), activation_changed, ("hyperparameters",)),
    "operator_missing": Fault(*CG, at("BatchNormalization", "LayerNormalization", "MaxPool", "Pad"), missing),
    "branch_missing": Fault(*CG, at(*BINARY), operand_missing),
    "operator_repeated": Fault(*CG, at(*REPEATABLE), repeated),
    "operands_swapped": Fault(*CG, at("Sub", "Div", "Pow"), operands_swapped),
    "concat_order": Fault(*CG, at("Concat"), concat_order),
    "reshape_for_transpose": Fault(*TSS, at("Transpose"), reshaped),
    "flatten_order": Fault(*TSS, at("Flatten", "Reshape"), flatten_order),
    "cast_island": Fault("QZ", "precision", at(*PRODUCERS, *ACTIVATIONS), cast_island),
    "input_scale": Fault(*PP, floats, input_scale),
    "input_mean": Fault(*PP, pictures, input_mean),
    "input_bgr": Fault(*PP, pictures, input_bgr),
    "input_flipped": Fault(*PP, pictures, input_flipped),
    "input_turned": Fault(*PP, pictures, input_turned),
    "input_shifted": Fault(*PP, sequences, input_shifted),
    "input_layout": Fault(*PP, pictures, input_layout),
}
