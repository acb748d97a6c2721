"""Faults in what an operator of a TFLite model is told: windows, axes, modes, orders, fused activations. Runs in a worker."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from trueport.testing.planting._tflite_edit import Editor, Fault, Node, SkipPlace, at, carrying, told

Change = Callable[[Editor, Node], dict[str, Any]]

ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH")
FUSING = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "FULLY_CONNECTED",
    "ADD",
    "SUB",
    "MUL",
    "DIV",
    "AVERAGE_POOL_2D",
    "MAX_POOL_2D",
)
LINEAR = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
WINDOWS = ("CONV_2D", "DEPTHWISE_CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D")
AXES = {"MEAN": 1, "SUM": 1, "REDUCE_MAX": 1, "REDUCE_MIN": 1, "REDUCE_PROD": 1}
"""Operator -> slot of the axes that it reduces."""


def option(edit: Editor, node: Node, key: str, new: Any, what: str, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Set an option; the old value again is no fault."""
    old = getattr(node.item.builtinOptions, key)
    if old == new:
        raise SkipPlace(f"{key} is {old} already")
    setattr(node.item.builtinOptions, key, new)
    return told(edit, [node], what, *(names[value] if names else value for value in (old, new)))


def scaled(key: str, factor: float) -> Change:
    """Multiply a number."""

    def change(edit: Editor, node: Node) -> dict[str, Any]:
        old = float(getattr(node.item.builtinOptions, key))
        return option(edit, node, key, old * factor if old else factor, key)

    return change


def toggled(key: str) -> Change:
    """Turn a flag round."""
    return lambda edit, node: option(edit, node, key, not getattr(node.item.builtinOptions, key), key)


def fused(*allowed: str) -> Callable[[Editor], list[Node]]:
    """Operators whose fused activation is one of these."""
    numbers = {ACTIVATIONS.index(name) for name in allowed}

    def find(edit: Editor) -> list[Node]:
        found = [node for node in at(*FUSING, loops=True)(edit) if node.item.builtinOptions is not None]
        return [node for node in found if node.item.builtinOptions.fusedActivationFunction in numbers]

    return find


def activation(*ways: tuple[str, str]) -> Change:
    """Another fused activation: (old, new)."""
    table = {ACTIVATIONS.index(old): ACTIVATIONS.index(new) for old, new in ways}

    def change(edit: Editor, node: Node) -> dict[str, Any]:
        new = table[node.item.builtinOptions.fusedActivationFunction]
        return option(edit, node, "fusedActivationFunction", new, "fused activation", ACTIVATIONS)

    return change


def unfused_linear(edit: Editor) -> list[Node]:
    """Linear operators without an activation, which no activation follows."""
    after = {"RELU", "RELU6", "PRELU", "LEAKY_RELU", "ELU", "HARD_SWISH", "LOGISTIC", "TANH", "SOFTMAX", "GELU"}
    found = [node for node in fused("NONE")(edit) if node.code in LINEAR]
    return [
        node
        for node in found
        if after.isdisjoint(reader.code for reader in edit.readers(node.graph, int(node.item.outputs[0])))
    ]


def padding(edit: Editor, node: Node) -> dict[str, Any]:
    """VALID for SAME, or the other way; the sizes after it change."""
    return option(edit, node, "padding", 1 - int(node.item.builtinOptions.padding), "padding", ("SAME", "VALID"))


def same_lower(edit: Editor, node: Node) -> dict[str, Any]:
    """The uneven half of "same" padding in front: an explicit PAD and VALID. Even padding is moved by one."""
    options = node.item.builtinOptions
    data, kernel = edit.tensor(node, 0), edit.tensor(node, 1)
    if int(options.padding) != 0 or data is None or kernel is None:
        raise SkipPlace("the padding is VALID")
    pads = [[0, 0]]
    steps = ((options.strideH, options.dilationHFactor), (options.strideW, options.dilationWFactor))
    for size, window, (step, dilation) in zip(edit.shape(data)[1:3], edit.shape(kernel)[1:3], steps):
        total = max(0, (-(-size // step) - 1) * step + (window - 1) * dilation + 1 - size)
        before = total - total // 2 if total % 2 else min(total, total // 2 + 1)
        pads.append([before, total - before])
    if not np.any(pads):
        raise SkipPlace("nothing is padded")
    pads.append([0, 0])
    options.padding = 1
    shape = [size + sum(pair) for size, pair in zip(edit.shape(data), pads)]
    index = int(node.item.inputs[0])
    padded = edit.reshaped(node.graph, index, "padded_otherwise", shape)
    table = edit.constant(node.graph, np.array(pads, np.int32), "pads")
    (made,) = edit.put_before(node, [edit.operator("PAD", [index, table], [padded], "PadOptions")])
    edit.rewire(node, 0, padded)
    return told(edit, [node, made], "padding", "SAME", {"pads": pads})


def pads_shifted(edit: Editor, node: Node) -> dict[str, Any]:
    """Move padding from one side to the other, the output keeps its size."""
    old = edit.array(node, 1)
    if old is None:
        raise SkipPlace("the pads are computed")
    new = old.copy()
    for pair in new[1:3]:
        step = 1 if pair[0] < pair[1] else -1
        if pair.any():
            pair += np.array([step, -step], pair.dtype) * max(1, abs(int(pair[0]) - int(pair[1])))
    if new.min() < 0 or np.array_equal(old, new):
        raise SkipPlace("nothing to move")
    return stored(edit, node, 1, new, "pads")


def stored(edit: Editor, node: Node, slot: int, new: np.ndarray, what: str) -> dict[str, Any]:
    """Another constant for an operand that is an attribute in other formats."""
    old = edit.array(node, slot)
    if old is None or np.array_equal(old, new):
        raise SkipPlace(f"{what} stays as it is")
    edit.set_operand(node, slot, new)
    return told(edit, [node], what, old.tolist(), np.asarray(new).tolist())


def dilated(edit: Editor, node: Node) -> dict[str, Any]:
    """Dilation 2 for 1, or 1 for 2; with SAME padding the output keeps its size."""
    options = node.item.builtinOptions
    kernel = edit.tensor(node, 1)
    if kernel is None or max(edit.shape(kernel)[1:3]) < 2 or options.strideH > 1 or options.strideW > 1:
        raise SkipPlace("the kernel has one tap, or a stride")
    old = [int(options.dilationHFactor), int(options.dilationWFactor)]
    new = [1, 1] if max(old) > 1 else [2, 2]
    options.dilationHFactor, options.dilationWFactor = new
    return told(edit, [node], "dilations", old, new)


def strided(edit: Editor, node: Node) -> dict[str, Any]:
    """Stride 1 for 2, or 2 for 1."""
    options = node.item.builtinOptions
    old = [int(options.strideH), int(options.strideW)]
    new = [1, 1] if max(old) > 1 else [2, 2]
    options.strideH, options.strideW = new
    return told(edit, [node], "strides", old, new)


def other_pool(edit: Editor, node: Node) -> dict[str, Any]:
    """The maximum for the mean, or the other way."""
    new = "AVERAGE_POOL_2D" if node.code == "MAX_POOL_2D" else "MAX_POOL_2D"
    options = node.item.builtinOptions
    kept = {key: getattr(options, key) for key in vars(options)}
    edit.turn_into(node.item, new, "Pool2DOptions", **kept)
    return told(edit, [node], "kind", node.code, new)


def other_reduction(edit: Editor, node: Node) -> dict[str, Any]:
    """The maximum for the mean or sum."""
    keep = node.item.builtinOptions.keepDims
    edit.turn_into(node.item, "REDUCE_MAX", "ReducerOptions", keepDims=keep)
    return told(edit, [node], "kind", node.code, "REDUCE_MAX")


def other_axis(edit: Editor, node: Node) -> dict[str, Any]:
    """Reduce another axis, not the batch; where the axis is dropped its size has to be the same."""
    axes, data = edit.array(node, AXES[node.code]), edit.tensor(node, 0)
    if axes is None or data is None or axes.size == 0:
        raise SkipPlace("the axes are computed")
    sizes = edit.shape(data)
    old = [int(axis) % len(sizes) for axis in axes.ravel()]
    keep = node.item.builtinOptions.keepDims
    for axis in range(1, len(sizes)):
        if axis not in old and sizes[axis] > 1 and (keep or sizes[axis] == sizes[old[-1]]):
            return stored(edit, node, AXES[node.code], np.array([*old[:-1], axis]).reshape(axes.shape), "axes")
    raise SkipPlace("no other axis")


def other_concat_axis(edit: Editor, node: Node) -> dict[str, Any]:
    """Another axis of equal sizes."""
    shapes = [edit.shape(node.graph.tensors[int(index)]) for index in node.item.inputs]
    options = node.item.builtinOptions
    old = int(options.axis) % len(shapes[0])
    whole = edit.shape(edit.result(node))
    for axis in range(1, len(whole)):
        fits = all(shape[:axis] + shape[axis + 1 :] == shapes[0][:axis] + shapes[0][axis + 1 :] for shape in shapes)
        if axis != old and fits:
            return option(edit, node, "axis", axis, "axis")
    raise SkipPlace("no other axis of equal sizes")


def concat_order(edit: Editor, node: Node) -> dict[str, Any]:
    """Join the parts the other way round."""
    old = [int(index) for index in node.item.inputs]
    if len(set(old)) < 2:
        raise SkipPlace("there is one part")
    node.item.inputs = old[::-1]
    return told(edit, [node], "order of the parts", list(range(len(old))), list(range(len(old)))[::-1])


def operands_swapped(edit: Editor, node: Node) -> dict[str, Any]:
    """a - b for b - a."""
    left, right = (int(index) for index in node.item.inputs[:2])
    node.item.inputs = [right, left]
    return told(edit, [node], "operands", "a, b", "b, a")


def other_perm(edit: Editor, node: Node) -> dict[str, Any]:
    """Exchange two axes of equal size in the result."""
    perm, shape = edit.array(node, 1), edit.shape(edit.result(node))
    if perm is None:
        raise SkipPlace("the permutation is computed")
    pairs = [(i, j) for i in range(len(shape)) for j in range(i) if shape[i] == shape[j] > 1]
    if not pairs:
        raise SkipPlace("no two axes of equal size")
    i, j = pairs[int(edit.rng.integers(len(pairs)))]
    new = perm.copy()
    new[[i, j]] = new[[j, i]]
    return stored(edit, node, 1, new, "perm")


def gather_index(edit: Editor, node: Node) -> dict[str, Any]:
    """Take the neighbour of what a constant index takes."""
    indices, table = edit.array(node, 1), edit.tensor(node, 0)
    if indices is None or table is None:
        raise SkipPlace("the indices are computed")
    size = edit.shape(table)[int(node.item.builtinOptions.axis)]
    return stored(edit, node, 1, (indices + 1) % size, "indices")


def slice_begin(edit: Editor, node: Node) -> dict[str, Any]:
    """Begin, and end, one element earlier or later on one axis."""
    begin, end, data = edit.array(node, 1), edit.array(node, 2), edit.tensor(node, 0)
    if begin is None or end is None or data is None or len(edit.shape(data)) != begin.size:
        raise SkipPlace("the bounds are computed")
    options = node.item.builtinOptions
    masks = (options.beginMask, options.endMask) if node.code == "STRIDED_SLICE" else (0, 0)
    for axis in reversed(range(begin.size)):
        size, first = edit.shape(data)[axis], int(begin[axis])
        strided, dropped = (
            node.code == "STRIDED_SLICE",
            node.code == "STRIDED_SLICE" and options.shrinkAxisMask >> axis & 1,
        )
        taken = 1 if dropped else int(end[axis]) - first if strided else int(end[axis])
        whole = not dropped and (any(mask >> axis & 1 for mask in masks) or first < 0)
        if whole or not 0 < taken < size:
            continue
        step = 1 if first == 0 else -1
        low, high = begin.copy(), end.copy()
        low[axis] += step
        if strided and not options.endMask >> axis & 1:
            high[axis] += step
            edit.set_operand(node, 2, high)
        return stored(edit, node, 1, low, "begin")
    raise SkipPlace("every axis is taken as a whole, or from a begin that is not told")


def resize_mode(edit: Editor, node: Node) -> dict[str, Any]:
    """The nearest pixel for the linear mean, or the other way."""
    linear = node.code == "RESIZE_BILINEAR"
    code, table = ("NEAREST_NEIGHBOR", "NearestNeighbor") if linear else ("BILINEAR", "Bilinear")
    old = node.item.builtinOptions
    kept = {"alignCorners": old.alignCorners, "halfPixelCenters": old.halfPixelCenters}
    edit.turn_into(node.item, f"RESIZE_{code}", f"Resize{table}Options", **kept)
    return told(edit, [node], "mode", node.code, f"RESIZE_{code}")


def resize_coordinates(edit: Editor, node: Node) -> dict[str, Any]:
    """Other places of the pixels."""
    options = node.item.builtinOptions
    old = (bool(options.alignCorners), bool(options.halfPixelCenters))
    names = {(False, False): "asymmetric", (True, False): "align_corners", (False, True): "half_pixel"}
    others = [flags for flags in names if flags != old]
    new = others[int(edit.rng.integers(len(others)))]
    options.alignCorners, options.halfPixelCenters = new
    return told(edit, [node], "coordinates", names.get(old, str(old)), names[new])


LH, TSS = ("LH", "hyperparameters"), ("TSS", "hyperparameters")
RESIZES = ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
FAULTS = {
    "fused_activation_missing": Fault(*LH, fused("RELU", "RELU6", "RELU_N1_TO_1", "TANH"), activation(
        *((name, "NONE") for name in ACTIVATIONS[1:])), ("structure",)),
    "fused_activation_extra": Fault(*LH, unfused_linear, activation(("NONE", "RELU")), ("structure",)),
    "fused_activation_changed": Fault(*LH, fused("RELU", "RELU6"), activation(("RELU", "RELU6"), ("RELU6", "RELU")), ("structure",)),
    "fused_activation_clipped": Fault(*LH, fused("RELU", "RELU6"), activation(
        ("RELU", "RELU_N1_TO_1"), ("RELU6", "RELU_N1_TO_1")), ("structure",)),
    "padding": Fault(*LH, at(*WINDOWS), padding),
    "same_lower": Fault(*LH, at(*CONVOLUTIONS), same_lower, ("structure",)),
    "pads_shifted": Fault(*LH, at("PAD", "PADV2", "MIRROR_PAD"), pads_shifted, ("parameters",)),
    "dilation": Fault(*LH, at(*CONVOLUTIONS), dilated),
    "stride": Fault(*LH, at(*WINDOWS), strided),
    "leaky_alpha": Fault(*LH, at("LEAKY_RELU"), scaled("alpha", 3.0)),
    "softmax_beta": Fault(*LH, at("SOFTMAX"), scaled("beta", 2.0)),
    "gelu_approximate": Fault(*LH, at("GELU"), toggled("approximate")),
    "resize_coordinates": Fault(*LH, at(*RESIZES), resize_coordinates),
    "resize_mode": Fault(*LH, at(*RESIZES), resize_mode, ("structure",)),
    "gather_index": Fault(*LH, carrying("GATHER"), gather_index, ("parameters",)),
    "slice_begin": Fault(*LH, carrying("SLICE", "STRIDED_SLICE"), slice_begin, ("parameters",)),
    "matmul_transposed": Fault(*TSS, at("BATCH_MATMUL"), toggled("adjY"), ("structure",)),
    "concat_axis": Fault(*TSS, carrying("CONCATENATION"), other_concat_axis),
    "reduce_axis": Fault(*TSS, carrying(*AXES), other_axis, ("parameters",)),
    "transpose_perm": Fault(*TSS, carrying("TRANSPOSE"), other_perm, ("structure", "parameters")),
    "pool_kind": Fault("CG", "structure", at("MAX_POOL_2D", "AVERAGE_POOL_2D"), other_pool, ("hyperparameters",)),
    "mean_to_max": Fault("CG", "structure", carrying("MEAN", "SUM"), other_reduction, ("hyperparameters",)),
    "concat_order": Fault("CG", "structure", carrying("CONCATENATION"), concat_order),
    "operands_swapped": Fault("CG", "structure", carrying("SUB", "DIV", "POW"), operands_swapped),
}  # fmt: skip
