"""Faults in how a node is set up: pads, strides, axes, modes, epsilons, bounds. Runs in a worker."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from trueport.testing.planting._onnx_edit import Editor, Fault, SkipPlace, told

Change = Callable[[Editor, Any], dict[str, Any]]
WINDOWS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
MODES = {
    "coordinate_transformation_mode": ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"),
    "nearest_mode": ("round_prefer_floor", "floor", "ceil", "round_prefer_ceil"),
    "mode": ("nearest", "linear"),
}
"""Attribute of Resize -> its values, the default first."""
TWIN_POOLS = {
    "MaxPool": "AveragePool",
    "AveragePool": "MaxPool",
    "GlobalAveragePool": "GlobalMaxPool",
    "GlobalMaxPool": "GlobalAveragePool",
}


def at(*operators: str) -> Callable[[Editor], list[Any]]:
    """Every node of these operators that reads something computed."""
    return lambda edit: [node for node in edit.nodes(*operators) if edit.computed(node)]


def altered(edit: Editor, node: Any, name: str, old: Any, new: Any) -> dict[str, Any]:
    """Set an attribute; the old value again is no fault."""
    if old == new:
        raise SkipPlace(f"{name} is {old} already")
    edit.set_attribute(node, name, new)
    return told([edit.name(node)], f"{name} of {edit.name(node)}", old, new)


def scaled(name: str, default: float, factor: float) -> Change:
    """Multiply a number."""

    def change(edit: Editor, node: Any) -> dict[str, Any]:
        old = float(edit.attribute(node, name, default))
        return altered(edit, node, name, old, old * factor)

    return change


def epsilon(edit: Editor, node: Any) -> dict[str, Any]:
    """The other framework's default: 1e-3 where it is smaller, else 1e-5."""
    old = float(edit.attribute(node, "epsilon", 1e-5))
    return altered(edit, node, "epsilon", old, 1e-3 if old < 5e-4 else 1e-5)


def toggled(name: str) -> Change:
    """Turn a flag round."""

    def change(edit: Editor, node: Any) -> dict[str, Any]:
        old = int(edit.attribute(node, name, 0))
        return altered(edit, node, name, old, 1 - old)

    return change


def pads(edit: Editor, node: Any) -> list[int]:
    """The explicit pads of a window. Raises SkipPlace when they are left to `auto_pad`."""
    if edit.attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        raise SkipPlace("pads are automatic")
    found = edit.attribute(node, "pads")
    if found is None:
        found = [0] * (2 * len(kernel(edit, node)))
    return [int(size) for size in found]


def kernel(edit: Editor, node: Any) -> list[int]:
    """The window's size along each axis. Raises SkipPlace when the file does not tell it."""
    found = edit.attribute(node, "kernel_shape")
    if found is None:
        shape = edit.shape(node.input[1]) if len(node.input) > 1 else None
        found = None if shape is None else shape[2:]
    if not found or any(size is None for size in found):
        raise SkipPlace("the kernel's size is not known")
    return [int(size) for size in found]


def pads_shifted(edit: Editor, node: Any) -> dict[str, Any]:
    """Move padding from one side to the other, the output keeps its size; an uneven pair is exchanged."""
    old = pads(edit, node)
    axes = len(old) // 2
    new = list(old)
    for axis in range(axes):
        before, after = old[axis], old[axis + axes]
        if before != after:
            new[axis], new[axis + axes] = after, before
        elif after:
            new[axis], new[axis + axes] = before + 1, after - 1
    return altered(edit, node, "pads", old, new)


def same_lower(edit: Editor, node: Any) -> dict[str, Any]:
    """Pad the smaller half at the end: SAME_LOWER for SAME_UPPER, or the other way."""
    old = edit.attribute(node, "auto_pad", "NOTSET")
    if not old.startswith("SAME"):
        raise SkipPlace("pads are explicit")
    return altered(edit, node, "auto_pad", old, "SAME_LOWER" if old == "SAME_UPPER" else "SAME_UPPER")


def dilated(edit: Editor, node: Any) -> dict[str, Any]:
    """Dilation 2 for 1, padded so that the output keeps its size."""
    size = kernel(edit, node)
    old = [int(step) for step in edit.attribute(node, "dilations", [1] * len(size))]
    if max(size) < 2 or set(old) != {1}:
        raise SkipPlace("nothing to dilate")
    if edit.attribute(node, "auto_pad", "NOTSET") == "NOTSET":
        more = [length - 1 for length in size]
        half = [length // 2 for length in more] + [length - length // 2 for length in more]
        edit.set_attribute(node, "pads", [a + b for a, b in zip(pads(edit, node), half)])
    return altered(edit, node, "dilations", old, [2] * len(size))


def strided(edit: Editor, node: Any) -> dict[str, Any]:
    """Stride 1 for 2, or 2 for 1."""
    old = [int(step) for step in edit.attribute(node, "strides", [1] * len(kernel(edit, node)))]
    return altered(edit, node, "strides", old, [1 if step > 1 else 2 for step in old])


def grouped(edit: Editor, node: Any) -> dict[str, Any]:
    """Two groups for one: each half of the outputs sees half of the inputs."""
    weights = edit.weights(node, 1)
    old = int(edit.attribute(node, "group", 1))
    if weights is None or old != 1 or weights.shape[0] % 2 or weights.shape[1] % 2:
        raise SkipPlace("the channels cannot be halved")
    edit.set_operand(node, 1, weights[:, : weights.shape[1] // 2])
    return altered(edit, node, "group", old, 2)


def other_mode(name: str) -> Change:
    """Another value of a mode of Resize."""

    def change(edit: Editor, node: Any) -> dict[str, Any]:
        kind = edit.attribute(node, "mode", "nearest")
        if name == "nearest_mode" and kind != "nearest":
            raise SkipPlace("it does not interpolate by the nearest neighbour")
        old = edit.attribute(node, name, MODES[name][0])
        others = [mode for mode in MODES[name] if mode != old]
        return altered(edit, node, name, old, others[int(edit.rng.integers(len(others)))])

    return change


def softmax_axis(edit: Editor, node: Any) -> dict[str, Any]:
    """Another axis, not the batch."""
    rank = edit.rank(node.input[0])
    if rank < 3:
        raise SkipPlace("there is no other axis")
    old = int(edit.attribute(node, "axis", -1)) % rank
    others = [axis for axis in range(1, rank) if axis != old]
    return altered(edit, node, "axis", old, others[int(edit.rng.integers(len(others)))])


def concat_axis(edit: Editor, node: Any) -> dict[str, Any]:
    """Another axis of equal sizes."""
    shapes = [edit.shape(name) for name in node.input]
    if len(shapes) < 2 or any(shape is None or shape != shapes[0] for shape in shapes):
        raise SkipPlace("the parts differ in shape")
    rank = len(shapes[0] or [])
    old = int(edit.attribute(node, "axis", 0)) % max(rank, 1)
    others = [axis for axis in range(1, rank) if axis != old]
    if not others:
        raise SkipPlace("there is no other axis")
    return altered(edit, node, "axis", old, others[int(edit.rng.integers(len(others)))])


def clip_bound(edit: Editor, node: Any, *, drop: bool) -> dict[str, Any]:
    """Halve the upper bound of a Clip, or take it away."""
    if len(node.input) > 2 and node.input[2]:
        old = edit.operand(node, 2)
        if old is None:
            raise SkipPlace("the bound is computed")
        if drop:
            del node.input[2]
        else:
            edit.set_operand(node, 2, old / 2)
        old = old.item()
    else:
        old = edit.attribute(node, "max")
        if old is None:
            raise SkipPlace("there is no upper bound")
        edit.set_attribute(node, "max", None if drop else old / 2)
    return told([edit.name(node)], f"upper bound of {edit.name(node)}", old, None if drop else old / 2)


def small_constant(edit: Editor, place: Any) -> dict[str, Any]:
    """An epsilon that is written out as an addition: 1e-3 where it is smaller, else 1e-5."""
    node, slot = place
    old = edit.operand(node, slot)
    new = 1e-3 if old.item() < 5e-4 else 1e-5
    edit.set_operand(node, slot, np.full_like(old, new))
    return told([edit.name(node)], f"constant of {edit.name(node)}", old.item(), new)


def small_constants(edit: Editor) -> list[Any]:
    """Additions of a scalar between 0 and 1e-2."""
    found = [(node, slot) for node in edit.nodes("Add") for slot in (0, 1)]
    small = [place for place in found if (array := edit.weights(*place)) is not None and array.size == 1]
    return [place for place in small if 0 < edit.operand(*place).item() <= 1e-2]


def reduce_axes(edit: Editor, node: Any) -> dict[str, Any]:
    """Reduce over another axis; broadcasting hides that where the reduced axis is kept."""
    rank = edit.rank(node.input[0])
    written = edit.attribute(node, "axes")
    old = written if written is not None else edit.operand(node, 1)
    if rank < 3 or old is None or len(old) != 1:
        raise SkipPlace("it does not reduce one of several axes")
    axis = int(old[0]) % rank
    others = [other for other in range(1, rank) if other != axis]
    new = others[int(edit.rng.integers(len(others)))]
    if written is not None:
        edit.set_attribute(node, "axes", [new])
    else:
        edit.set_operand(node, 1, np.array([new]))
    return told([edit.name(node)], f"axis of {edit.name(node)}", axis, new)


def norm_axis(edit: Editor, node: Any) -> dict[str, Any]:
    """Normalise over one more axis: the scale is broadcast over it."""
    rank = edit.rank(node.input[0])
    shape = edit.shape(node.input[0]) or []
    old = int(edit.attribute(node, "axis", -1)) % max(rank, 1)
    size = shape[old - 1] if rank > 2 and old > 1 else None
    if size is None:
        raise SkipPlace("there is no other axis")
    for slot in (1, 2):
        given = edit.operand(node, slot)
        if given is not None:
            edit.set_operand(node, slot, np.broadcast_to(given, (size, *given.shape)))
    return altered(edit, node, "axis", old, old - 1)


def transposed_otherwise(edit: Editor, node: Any) -> dict[str, Any]:
    """Exchange two axes of equal size in the result."""
    rank = edit.rank(node.input[0])
    shape = edit.shape(node.input[0]) or []
    old = [int(axis) for axis in edit.attribute(node, "perm", list(range(rank))[::-1])]
    equal = [
        (a, b)
        for a in range(1, rank)
        for b in range(a + 1, rank)
        if shape[old[a]] == shape[old[b]] and shape[old[a]] not in (None, 1)
    ]
    pairs = equal or [(a, b) for a in range(1, rank) for b in range(a + 1, rank)]
    if not pairs:
        raise SkipPlace("there are no two axes to exchange")
    a, b = pairs[int(edit.rng.integers(len(pairs)))]
    new = list(old)
    new[a], new[b] = old[b], old[a]
    return altered(edit, node, "perm", old, new)


def other_pool(edit: Editor, node: Any) -> dict[str, Any]:
    """The maximum for the mean, or the other way."""
    old, new = node.op_type, TWIN_POOLS[node.op_type]
    known = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
    kept = {name: value for name in known if (value := edit.attribute(node, name)) is not None}
    if edit.opset() < 19:
        kept.pop("dilations", None)
    edit.change_operator(node, new, **kept)
    return told([edit.name(node)], f"kind of {edit.name(node)}", old, new)


def mean_to_max(edit: Editor, node: Any) -> dict[str, Any]:
    """ReduceMax for ReduceMean."""
    axes = edit.operand(node, 1) if len(node.input) > 1 else edit.attribute(node, "axes")
    kept: dict[str, Any] = {"keepdims": int(edit.attribute(node, "keepdims", 1))}
    if axes is None:
        raise SkipPlace("the axes are computed")
    if edit.opset() < 18:
        kept["axes"] = [int(axis) for axis in axes]
    edit.change_operator(node, "ReduceMax", **kept)
    return told([edit.name(node)], f"kind of {edit.name(node)}", "ReduceMean", "ReduceMax")


def indexed(edit: Editor, *, sizes: bool) -> list[Any]:
    """Gathers from something computed, at constant indices: of sizes (from a Shape, or integers of it), or of data."""
    found = [node for node in edit.nodes("Gather") if node.input[0] not in edit.constants]
    return [node for node in found if edit.counts(node.input[0]) is sizes]


def shape_index(edit: Editor, node: Any) -> dict[str, Any]:
    """Take the size of the neighbouring axis: it shows where the size is used, so the readers are the truth as well."""
    facts = gather_index(edit, node)
    return {**facts, "nodes": [edit.name(node), *(edit.name(reader) for reader in edit.readers(node.output[0]))]}


def gather_index(edit: Editor, node: Any) -> dict[str, Any]:
    """Take the neighbour of what a constant index takes."""
    old = edit.operand(node, 1)
    shape = edit.shape(node.input[0]) or []
    axis = int(edit.attribute(node, "axis", 0))
    size = shape[axis] if shape else None
    if old is None or old.dtype.kind != "i" or size in (None, 1) or edit.operand(node, 0) is not None:
        raise SkipPlace("no constant index into something computed")
    new = (old % size + 1) % size
    edit.set_operand(node, 1, new)
    return told([edit.name(node)], f"indices of {edit.name(node)}", old.tolist(), new.tolist())


def slice_shifted(edit: Editor, node: Any) -> dict[str, Any]:
    """Begin and end one element earlier or later."""
    starts, ends = edit.operand(node, 1), edit.operand(node, 2)
    if edit.opset() < 10 or starts is None or ends is None:
        raise SkipPlace("the bounds are computed")
    step = -1 if np.all(starts != 0) else 1
    low, high = starts + step, np.where(np.abs(ends) > 2**30, ends, ends + step)
    if np.any((starts < 0) != (low < 0)) or np.any((ends < 0) != (high < 0)):
        raise SkipPlace("a bound would cross zero")
    edit.set_operand(node, 1, low)
    edit.set_operand(node, 2, high)
    return told([edit.name(node)], f"begin of {edit.name(node)}", starts.tolist(), low.tolist())


def direction(edit: Editor, node: Any) -> dict[str, Any]:
    """Run a one-way recurrence the other way."""
    old = edit.attribute(node, "direction", "forward")
    if old == "bidirectional":
        raise SkipPlace("it runs in both directions")
    return altered(edit, node, "direction", old, "reverse" if old == "forward" else "forward")


def gelu(edit: Editor, node: Any) -> dict[str, Any]:
    """The approximation by tanh for the exact function, or the other way."""
    old = edit.attribute(node, "approximate", "none")
    return altered(edit, node, "approximate", old, "tanh" if old == "none" else "none")


LH, TSS = ("LH", "hyperparameters"), ("TSS", "hyperparameters")
FAULTS = {
    "pads_shifted": Fault(*LH, at("Conv", "ConvTranspose", "AveragePool"), pads_shifted),
    "max_pool_pads": Fault(*LH, at("MaxPool"), pads_shifted),
    "same_lower": Fault(*LH, at(*WINDOWS), same_lower),
    "dilation": Fault(*LH, at("Conv"), dilated),
    "stride": Fault(*LH, at("Conv", "MaxPool", "AveragePool"), strided),
    "group": Fault(*LH, at("Conv"), grouped, ("parameters",)),
    "bn_epsilon": Fault(*LH, at("BatchNormalization"), epsilon),
    "norm_epsilon": Fault(*LH, at("LayerNormalization", "InstanceNormalization", "GroupNormalization"), epsilon),
    "epsilon_constant": Fault(*LH, small_constants, small_constant, ("parameters",)),
    "resize_coordinates": Fault(*LH, at("Resize"), other_mode("coordinate_transformation_mode")),
    "resize_nearest": Fault(*LH, at("Resize"), other_mode("nearest_mode")),
    "resize_mode": Fault(*LH, at("Resize"), other_mode("mode")),
    "softmax_axis": Fault(*TSS, at("Softmax", "LogSoftmax"), softmax_axis),
    "concat_axis": Fault(*TSS, at("Concat"), concat_axis),
    "reduce_axis": Fault(*TSS, at("ReduceMean", "ReduceSum", "ReduceMax"), reduce_axes, ("parameters",)),
    "norm_axis": Fault(*TSS, at("LayerNormalization"), norm_axis, ("parameters",)),
    "transpose_perm": Fault(*TSS, at("Transpose"), transposed_otherwise, ("structure",)),
    "leaky_alpha": Fault(*LH, at("LeakyRelu"), scaled("alpha", 0.01, 3.0)),
    "elu_alpha": Fault(*LH, at("Elu"), scaled("alpha", 1.0, 0.5)),
    "hard_sigmoid_alpha": Fault(*LH, at("HardSigmoid"), scaled("alpha", 0.2, 1.2)),
    "clip_dropped": Fault(*LH, at("Clip"), lambda edit, node: clip_bound(edit, node, drop=True), ("structure",)),
    "clip_bound": Fault(*LH, at("Clip"), lambda edit, node: clip_bound(edit, node, drop=False), ("parameters",)),
    "count_include_pad": Fault(*LH, at("AveragePool"), toggled("count_include_pad")),
    "ceil_mode": Fault(*LH, at("MaxPool", "AveragePool"), toggled("ceil_mode")),
    "pool_kind": Fault("CG", "structure", at(*TWIN_POOLS), other_pool, ("hyperparameters",)),
    "mean_to_max": Fault("CG", "structure", at("ReduceMean"), mean_to_max, ("hyperparameters",)),
    "gather_index": Fault(*LH, lambda edit: indexed(edit, sizes=False), gather_index, ("parameters",)),
    "shape_index": Fault("ID", "hyperparameters", lambda edit: indexed(edit, sizes=True), shape_index, ("parameters",)),
    "slice_begin": Fault(*LH, at("Slice"), slice_shifted, ("parameters",)),
    "recurrent_direction": Fault(*LH, at("LSTM", "GRU", "RNN"), direction),
    "linear_before_reset": Fault(*LH, at("GRU"), toggled("linear_before_reset")),
    "gelu_approximate": Fault(*LH, at("Gelu"), gelu),
}
