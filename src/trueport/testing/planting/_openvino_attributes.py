"""Faults in what an operator of an OpenVINO model is told: windows, axes, modes, orders. Runs in a worker."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from trueport.testing.planting._openvino_place import Fault, Node, SkipPlace, View, told

Change = Callable[[View, Node], dict[str, Any]]
CONVOLUTIONS = ("Convolution", "GroupConvolution")
WINDOWS = (*CONVOLUTIONS, "MaxPool", "AvgPool")
MODES = {
    "coordinate_transformation_mode": ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"),
    "nearest_mode": ("round_prefer_floor", "floor", "ceil", "round_prefer_ceil"),
    "mode": ("nearest", "linear"),
}


def at(*operators: str) -> Callable[[View], list[Node]]:
    """Every node of these operators that reads something computed."""
    return lambda view: view.at(*operators)


def scaled(name: str, factor: float) -> Change:
    """Multiply a number."""

    def change(view: View, node: Node) -> dict[str, Any]:
        old = float(node["attributes"][name])
        return view.set_attribute(node, name, old, old * factor)

    return change


def epsilon(view: View, node: Node) -> dict[str, Any]:
    """The other framework's default: 1e-3 where it is smaller, else 1e-5."""
    old = float(node["attributes"]["epsilon"])
    return view.set_attribute(node, "epsilon", old, 1e-3 if old < 5e-4 else 1e-5)


def toggled(name: str) -> Change:
    """Turn a flag round."""

    def change(view: View, node: Node) -> dict[str, Any]:
        old = int(node["attributes"].get(name, 0))
        return view.set_attribute(node, name, old, 1 - old)

    return change


def pads(node: Node) -> list[int]:
    """The explicit pads of a window. Raises SkipPlace when they are worked out."""
    found = node["attributes"].get("pads")
    if found is None:
        raise SkipPlace("pads are automatic")
    return [int(size) for size in found]


def pads_shifted(view: View, node: Node) -> dict[str, Any]:
    """Move padding from one side to the other, the output keeps its size; an uneven pair is exchanged."""
    old = pads(node)
    new, axes = list(old), len(old) // 2
    for axis in range(axes):
        before, after = old[axis], old[axis + axes]
        if before != after:
            new[axis], new[axis + axes] = after, before
        elif after:
            new[axis], new[axis + axes] = before + 1, after - 1
    return view.set_attribute(node, "pads", old, new)


def same_lower(view: View, node: Node) -> dict[str, Any]:
    """Pad the smaller half at the end: SAME_LOWER for SAME_UPPER, or the other way."""
    old = str(node["attributes"].get("auto_pad", ""))
    if not old.startswith("SAME"):
        raise SkipPlace("pads are explicit")
    return view.set_attribute(node, "auto_pad", old, "SAME_LOWER" if old == "SAME_UPPER" else "SAME_UPPER")


def dilated(view: View, node: Node) -> dict[str, Any]:
    """Dilation 2 for 1, padded so that the output keeps its size."""
    size, old = node["attributes"].get("kernel_shape"), list(node["attributes"]["dilations"])
    if not size or max(size) < 2 or set(old) != {1}:
        raise SkipPlace("nothing to dilate")
    if "pads" in node["attributes"]:
        more = [length - 1 for length in size]
        half = [length // 2 for length in more] + [length - length // 2 for length in more]
        wider = [a + b for a, b in zip(pads(node), half)]
        view.edit("set-attribute", node=node["name"], attribute="pads", value=wider)
    return view.set_attribute(node, "dilations", old, [2] * len(size))


def strided(view: View, node: Node) -> dict[str, Any]:
    """Stride 1 for 2, or 2 for 1."""
    old = [int(step) for step in node["attributes"]["strides"]]
    return view.set_attribute(node, "strides", old, [1 if step > 1 else 2 for step in old])


def other_mode(name: str) -> Change:
    """Another value of a mode of Interpolate."""

    def change(view: View, node: Node) -> dict[str, Any]:
        if name == "nearest_mode" and node["attributes"]["mode"] != "nearest":
            raise SkipPlace("it does not interpolate by the nearest neighbour")
        old = node["attributes"][name]
        others = [mode for mode in MODES[name] if mode != old]
        return view.set_attribute(node, name, old, others[int(view.rng.integers(len(others)))])

    return change


def rank_of(view: View, node: Node) -> int:
    """Number of axes of what a node reads. Raises SkipPlace."""
    shape = view.shape(view.data(node)[0])
    if shape is None:
        raise SkipPlace("the shape is not known")
    return len(shape)


def softmax_axis(view: View, node: Node) -> dict[str, Any]:
    """Another axis, not the batch."""
    rank = rank_of(view, node)
    if rank < 3:
        raise SkipPlace("there is no other axis")
    old = int(node["attributes"]["axis"]) % rank
    others = [axis for axis in range(1, rank) if axis != old]
    return view.set_attribute(node, "axis", old, others[int(view.rng.integers(len(others)))])


def concat_axis(view: View, node: Node) -> dict[str, Any]:
    """Another axis of equal sizes."""
    shapes = [view.shape(name) for name in node["inputs"]]
    if len(shapes) < 2 or any(shape is None or shape != shapes[0] for shape in shapes):
        raise SkipPlace("the parts differ in shape")
    rank = len(shapes[0] or [])
    old = int(node["attributes"]["axis"]) % max(rank, 1)
    others = [axis for axis in range(1, rank) if axis != old]
    if not others:
        raise SkipPlace("there is no other axis")
    return view.set_attribute(node, "axis", old, others[int(view.rng.integers(len(others)))])


def reduce_axes(view: View, node: Node) -> dict[str, Any]:
    """Reduce over another axis; broadcasting hides that where the reduced axis is kept."""
    rank, old = rank_of(view, node), node["attributes"].get("axes")
    if rank < 3 or not isinstance(old, list) or len(old) != 1:
        raise SkipPlace("it does not reduce one of several axes")
    axis = int(old[0]) % rank
    others = [other for other in range(1, rank) if other != axis]
    return view.set_attribute(node, "axes", [axis], [others[int(view.rng.integers(len(others)))]])


def transposed_otherwise(view: View, node: Node) -> dict[str, Any]:
    """Exchange two axes of equal size in the result."""
    shape, old = view.shape(view.data(node)[0]), node["attributes"].get("perm")
    if shape is None or not isinstance(old, list):
        raise SkipPlace("the order is computed")
    rank = len(shape)
    equal = [
        (a, b)
        for a in range(1, rank)
        for b in range(a + 1, rank)
        if shape[old[a]] == shape[old[b]] and shape[old[a]] not in (None, 1)
    ]
    pairs = equal or [(a, b) for a in range(1, rank) for b in range(a + 1, rank)]
    if not pairs:
        raise SkipPlace("there are no two axes to exchange")
    a, b = pairs[int(view.rng.integers(len(pairs)))]
    new = list(old)
    new[a], new[b] = old[b], old[a]
    return view.set_attribute(node, "perm", old, new)


def clip_bound(view: View, node: Node) -> dict[str, Any]:
    """Halve the upper bound."""
    old = float(node["attributes"]["max"])
    if old > 1e30:
        raise SkipPlace("there is no upper bound")
    return view.set_attribute(node, "max", old, old / 2)


def clip_dropped(view: View, node: Node) -> dict[str, Any]:
    """Take the upper bound away."""
    old = float(node["attributes"]["max"])
    if old > 1e30:
        raise SkipPlace("there is no upper bound")
    return view.set_attribute(node, "max", old, None)


def pool_kind(view: View, node: Node) -> dict[str, Any]:
    """The maximum for the mean, or the other way."""
    given = node["attributes"]
    old, new = node["op"], {"MaxPool": "AveragePool", "AveragePool": "MaxPool"}[node["op"]]
    kept = {name: given[name] for name in ("kernel_shape", "strides", "pads", "auto_pad", "ceil_mode") if name in given}
    view.edit("set-operator", node=node["name"], operator=new, attributes=kept, constants=[])
    return told([node["name"]], f"kind of {node['name']}", old, new)


def mean_to_max(view: View, node: Node) -> dict[str, Any]:
    """ReduceMax for ReduceMean."""
    axes = node["attributes"].get("axes")
    if axes is None:
        raise SkipPlace("the axes are computed")
    kept = {"axes": axes, "keepdims": node["attributes"].get("keepdims", 0)}
    view.edit("set-operator", node=node["name"], operator="ReduceMax", attributes=kept, constants=[])
    return told([node["name"]], f"kind of {node['name']}", "ReduceMean", "ReduceMax")


def gather_index(view: View, node: Node) -> dict[str, Any]:
    """Take the neighbour of what a constant index takes."""
    old, shape = view.constant(node, 1), view.shape(node["inputs"][0])
    axis = node["attributes"].get("axis")
    size = shape[axis] if shape and isinstance(axis, int) else None
    if old is None or size in (None, 1) or not view.floating(node["inputs"][0]):
        raise SkipPlace("no constant index into data")
    new = (old % size + 1) % size
    view.set_constant(node, 1, new)
    return told([node["name"]], f"indices of {node['name']}", old.tolist(), new.tolist())


def slice_begin(view: View, node: Node) -> dict[str, Any]:
    """Begin and end one element later, or earlier."""
    starts, ends = view.constant(node, 1), view.constant(node, 2)
    if starts is None or ends is None or node["native_op"] != "Slice":
        raise SkipPlace("the bounds are computed")
    step = -1 if np.all(starts != 0) else 1
    low, high = starts + step, np.where(np.abs(ends) > 2**30, ends, ends + step)
    if np.any((starts < 0) != (low < 0)) or np.any((ends < 0) != (high < 0)):
        raise SkipPlace("a bound would cross zero")
    view.set_constant(node, 1, low)
    if not np.array_equal(high, ends):
        view.set_constant(node, 2, high)
    return told([node["name"]], f"begin of {node['name']}", starts.tolist(), low.tolist())


def direction(view: View, node: Node) -> dict[str, Any]:
    """Run a one-way recurrence the other way."""
    old = node["attributes"]["direction"]
    if old == "bidirectional":
        raise SkipPlace("it runs in both directions")
    return view.set_attribute(node, "direction", old, "reverse" if old == "forward" else "forward")


def gelu(view: View, node: Node) -> dict[str, Any]:
    """The approximation by tanh for the exact function, or the other way."""
    old = node["attributes"]["approximate"]
    return view.set_attribute(node, "approximate", old, "tanh" if old == "none" else "none")


LH, TSS = ("LH", "hyperparameters"), ("TSS", "hyperparameters")
FAULTS = {
    "pads_shifted": Fault(*LH, at(*CONVOLUTIONS, "AvgPool"), pads_shifted),
    "max_pool_pads": Fault(*LH, at("MaxPool"), pads_shifted),
    "same_lower": Fault(*LH, at(*WINDOWS), same_lower),
    "dilation": Fault(*LH, at(*CONVOLUTIONS), dilated),
    "stride": Fault(*LH, at(*WINDOWS), strided),
    "norm_epsilon": Fault(*LH, at("MVN", "GroupNormalization", "BatchNormInference"), epsilon),
    "resize_coordinates": Fault(*LH, at("Interpolate"), other_mode("coordinate_transformation_mode")),
    "resize_nearest": Fault(*LH, at("Interpolate"), other_mode("nearest_mode")),
    "resize_mode": Fault(*LH, at("Interpolate"), other_mode("mode")),
    "softmax_axis": Fault(*TSS, at("Softmax", "LogSoftmax"), softmax_axis),
    "concat_axis": Fault(*TSS, at("Concat"), concat_axis),
    "reduce_axis": Fault(*TSS, at("ReduceMean", "ReduceSum", "ReduceMax"), reduce_axes, ("parameters",)),
    "transpose_perm": Fault(*TSS, at("Transpose"), transposed_otherwise, ("structure",)),
    "leaky_alpha": Fault(*LH, at("LeakyRelu"), scaled("alpha", 3.0), ("parameters",)),
    "elu_alpha": Fault(*LH, at("Elu"), scaled("alpha", 0.5)),
    "hard_sigmoid_alpha": Fault(*LH, at("HardSigmoid"), scaled("alpha", 1.2), ("parameters",)),
    "clip_bound": Fault(*LH, at("Clamp"), clip_bound, ("parameters",)),
    "clip_dropped": Fault(*LH, at("Clamp"), clip_dropped, ("structure",)),
    "count_include_pad": Fault(*LH, at("AvgPool"), toggled("count_include_pad")),
    "ceil_mode": Fault(*LH, at("MaxPool", "AvgPool"), toggled("ceil_mode")),
    "pool_kind": Fault("CG", "structure", at("MaxPool", "AvgPool"), pool_kind, ("hyperparameters",)),
    "mean_to_max": Fault("CG", "structure", at("ReduceMean"), mean_to_max, ("hyperparameters",)),
    "gather_index": Fault(*LH, at("Gather"), gather_index, ("parameters",)),
    "slice_begin": Fault(*LH, at("Slice"), slice_begin, ("parameters",)),
    "recurrent_direction": Fault(*LH, at("LSTMSequence", "GRUSequence", "RNNSequence"), direction),
    "linear_before_reset": Fault(*LH, at("GRUSequence"), toggled("linear_before_reset"), ("parameters",)),
    "gelu_approximate": Fault(*LH, at("Gelu"), gelu),
}
