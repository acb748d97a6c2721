"""Faults in how an operator is set up, and in the graph itself: strides, axes, modes, operators missing or exchanged.

Runs in a worker. A fault that adds an operator is that operator. One that removes an operator sits between its
neighbours: all of them are the truth.
"""

from __future__ import annotations

from typing import Any, Callable

from trueport.testing.planting._torch_edit import Editor, Fault, SkipPlace, floating, native, told

Change = Callable[[Editor, Any], dict[str, Any]]
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
POOLS = ("max_pool2d", "avg_pool2d", "max_pool1d", "avg_pool1d")
ACTIVATIONS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "relu": ("leaky_relu.default", (0.1,)),
    "relu_": ("leaky_relu.default", (0.1,)),
    "leaky_relu": ("relu.default", ()),
    "prelu": ("relu.default", ()),
    "hardtanh": ("relu.default", ()),
    "relu6": ("relu.default", ()),
    "hardswish": ("silu.default", ()),
    "silu": ("hardswish.default", ()),
    "elu": ("relu.default", ()),
    "gelu": ("relu.default", ()),
    "sigmoid": ("hardsigmoid.default", ()),
    "hardsigmoid": ("sigmoid.default", ()),
    "tanh": ("hardtanh.default", ()),
    "softplus": ("relu.default", ()),
}
"""Activation -> what a wrong translation makes of it."""
PRODUCERS = ("conv1d", "conv2d", "conv_transpose2d", "linear", "add", "batch_norm", "layer_norm", "group_norm")


def at(*functions: str) -> Callable[[Editor], list[Any]]:
    """Every operator of these functions."""
    return lambda edit: edit.native(*functions)


def altered(edit: Editor, node: Any, name: str, new: Any) -> dict[str, Any]:
    """Set an argument; the old value again is no fault."""
    old = edit.argument(node, name)
    if old == new:
        raise SkipPlace(f"{name} is {old} already")
    edit.set_argument(node, name, new)
    return told([node], f"{name} of {node.name}", _plain(old), _plain(new))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


def scaled(name: str, factor: float) -> Change:
    """Multiply a number."""
    return lambda edit, node: altered(edit, node, name, float(edit.argument(node, name)) * factor)


def toggled(name: str) -> Change:
    """Turn a flag round."""
    return lambda edit, node: altered(edit, node, name, not edit.argument(node, name))


def epsilon(edit: Editor, node: Any) -> dict[str, Any]:
    """The other framework's default: 1e-3 where it is smaller, else 1e-5."""
    old = float(edit.argument(node, "eps"))
    return altered(edit, node, "eps", 1e-3 if old < 5e-4 else 1e-5)


def spread(edit: Editor, node: Any, name: str) -> list[int]:
    """A window argument per axis. Raises SkipPlace where it is a word ("same")."""
    value = edit.argument(node, name)
    if isinstance(value, str):
        raise SkipPlace(f"{name} is '{value}'")
    axes = len(edit.shape(node)) - 2
    listed = list(value) if isinstance(value, (tuple, list)) else [value]
    listed = listed or list(edit.argument(node, "kernel_size"))
    return listed * axes if len(listed) == 1 else listed


def strided(edit: Editor, node: Any) -> dict[str, Any]:
    """Stride 1 for 2, or 2 for 1."""
    old = spread(edit, node, "stride")
    return altered(edit, node, "stride", [1 if step > 1 else 2 for step in old])


def padded(edit: Editor, node: Any) -> dict[str, Any]:
    """One element less of padding, or one more where there is none."""
    return altered(edit, node, "padding", [size - 1 if size else 1 for size in spread(edit, node, "padding")])


def pads_shifted(edit: Editor, node: Any) -> dict[str, Any]:
    """Pad one element more before and one less behind, which keeps the size."""
    import torch

    old = spread(edit, node, "padding")
    if not any(old):
        raise SkipPlace("it pads nothing")
    before = node.args[0]
    begins, ends = [size + 1 if size else 0 for size in old], [size - 1 if size else 0 for size in old]
    sides = [side for pair in zip(reversed(begins), reversed(ends)) for side in pair]  # the last axis first
    pad = edit.insert_between(before, node, torch.ops.aten.pad.default, (sides,))
    edit.set_argument(node, "padding", [0] * len(old))
    return told([node, pad], f"padding of {node.name}", old * 2, begins + ends)


def dilated(edit: Editor, node: Any) -> dict[str, Any]:
    """Dilation 2 for 1, padded so that the output keeps its size."""
    old, kernel = spread(edit, node, "dilation"), edit.shape(node.args[1])[2:]
    if set(old) != {1} or max(kernel) < 2 or any(length % 2 == 0 for length in kernel):
        raise SkipPlace("nothing to dilate")
    padding = [pad + length // 2 for pad, length in zip(spread(edit, node, "padding"), kernel)]
    edit.set_argument(node, "padding", padding)
    return altered(edit, node, "dilation", [2] * len(old))


def axis_moved(edit: Editor, node: Any) -> dict[str, Any]:
    """Another axis, not the batch."""
    rank, old = len(edit.shape(node)), edit.argument(node, "dim")
    others = [axis for axis in range(1, rank) if axis != old % rank and edit.shape(node)[axis] > 1]
    if not others:
        raise SkipPlace("there is no other axis")
    return altered(edit, node, "dim", others[int(edit.rng.integers(len(others)))])


def concat_axis(edit: Editor, node: Any) -> dict[str, Any]:
    """Join along another axis: the parts are put where they do not belong, in the same shape."""
    import torch

    shape, axis = edit.shape(node), edit.argument(node, "dim")
    axis %= len(shape)
    sizes = [edit.shape(part) for part in node.args[0]]
    other = next((one for one in range(1, len(shape)) if one != axis and len({s[one] for s in sizes}) == 1), None)
    if other is None or len({tuple(size) for size in sizes}) != 1 or min(shape[1:]) < 0:
        raise SkipPlace("the parts differ in size")
    edit.set_argument(node, "dim", other)
    made = edit.insert(node, [(torch.ops.aten.reshape.default, ([-1, *shape[1:]],))])
    return told([node, *made], f"dim of {node.name}", axis, other)


def reduce_axes(edit: Editor, node: Any) -> dict[str, Any]:
    """Reduce over other axes of equal number; the shape of the model's outputs must allow it."""
    rank = len(edit.shape(node.args[0]))
    dims = edit.argument(node, "dim")
    listed = list(dims) if isinstance(dims, (tuple, list)) else [dims]
    if not listed or any(axis is None for axis in listed):
        raise SkipPlace("it reduces all axes")
    old = [axis % rank for axis in listed]
    free = [axis for axis in range(1, rank) if axis not in old]
    if not free:
        raise SkipPlace("there is no other axis")
    new = [free[0], *old[1:]]
    return altered(edit, node, "dim", new if isinstance(dims, (tuple, list)) else new[0])


def permuted(edit: Editor, node: Any) -> dict[str, Any]:
    """Exchange two axes of equal size in the result; of unequal sizes, with a reshape behind that hides it."""
    import torch

    shape = edit.shape(node)
    if native(node) != "permute" or min(shape[1:]) < 0:
        raise SkipPlace("it is no permutation of known sizes")
    dims = list(edit.argument(node, "dims"))
    pairs = [(a, b) for a in range(1, len(dims)) for b in range(a + 1, len(dims)) if shape[a] > 1 and shape[b] > 1]
    if not pairs:
        raise SkipPlace("no two axes to exchange")
    a, b = pairs[int(edit.rng.integers(len(pairs)))]
    new = list(dims)
    new[a], new[b] = new[b], new[a]
    made = [] if shape[a] == shape[b] else edit.insert(node, [(torch.ops.aten.reshape.default, ([-1, *shape[1:]],))])
    edit.set_argument(node, "dims", new)
    return told([node, *made], f"dims of {node.name}", dims, new)


def clip_bound(edit: Editor, node: Any) -> dict[str, Any]:
    """Halve the upper bound."""
    name = "max_val" if native(node) == "hardtanh" else "max"
    old = edit.argument(node, name)
    if not isinstance(old, (int, float)):
        raise SkipPlace("it has no upper bound")
    return altered(edit, node, name, old / 2)


def clip_dropped(edit: Editor, node: Any) -> dict[str, Any]:
    """Take the upper bound away."""
    if native(node) == "clamp":
        return altered(edit, node, "max", None)
    return altered(edit, node, "max_val", 1e30)


def other_pool(edit: Editor, node: Any) -> dict[str, Any]:
    """The maximum for the mean, or the other way."""
    import torch

    name = native(node)
    aten = torch.ops.aten
    window = [edit.argument(node, part) for part in ("kernel_size", "stride", "padding")]
    if name.startswith("max"):
        if set(spread(edit, node, "dilation")) != {1}:
            raise SkipPlace("the window is dilated")
        function = {"max_pool2d": aten.avg_pool2d.default, "max_pool1d": aten.avg_pool1d.default}[name]
        more: tuple[Any, ...] = (bool(edit.argument(node, "ceil_mode")), True)
    else:
        function = {"avg_pool2d": aten.max_pool2d.default, "avg_pool1d": aten.max_pool1d.default}[name]
        more = ([1] * (2 if "2d" in name else 1), bool(edit.argument(node, "ceil_mode")))
    edit.replace(node, function, (node.args[0], *window, *more))
    return told([node], f"kind of {node.name}", name, native(node))


def mean_to_max(edit: Editor, node: Any) -> dict[str, Any]:
    """The largest for the mean."""
    import torch

    if str(node.target) != "aten.mean.dim":
        raise SkipPlace("it reduces all axes")
    dims, keep = edit.argument(node, "dim"), edit.argument(node, "keepdim")
    edit.replace(node, torch.ops.aten.amax.default, (node.args[0], dims, keep))
    return told([node], f"kind of {node.name}", "mean", "amax")


def gelu(edit: Editor, node: Any) -> dict[str, Any]:
    """The approximation by tanh for the exact function, or the other way."""
    return altered(edit, node, "approximate", "tanh" if edit.argument(node, "approximate") == "none" else "none")


def resize_mode(edit: Editor, node: Any) -> dict[str, Any]:
    """Nearest for bilinear, or the other way."""
    import torch

    size, factors = edit.argument(node, "output_size"), edit.argument(node, "scale_factors")
    aten, name = torch.ops.aten, native(node)
    if name == "upsample_bilinear2d":
        edit.replace(node, aten.upsample_nearest2d.vec, (node.args[0], size, factors))
    else:
        edit.replace(node, aten.upsample_bilinear2d.vec, (node.args[0], size, False, factors))
    return told([node], f"kind of {node.name}", name, native(node))


def select_next(edit: Editor, node: Any) -> dict[str, Any]:
    """Take the neighbour of what a constant index takes."""
    index = edit.argument(node, "index")
    size = edit.shape(node.args[0])[edit.argument(node, "dim")]
    if not isinstance(index, int) or size < 2:
        raise SkipPlace("there is no neighbour")
    return altered(edit, node, "index", (index + 1) % size if index >= 0 else -((-index) % size) - 1)


# -- the graph ------------------------------------------------------------------------------------------------------


def missing(edit: Editor, node: Any) -> dict[str, Any]:
    """Take an operator out; what it read goes on in its place."""
    before = node.args[0]
    if not hasattr(before, "meta") or edit.shape(before) != edit.shape(node):
        raise SkipPlace("what it reads has another shape")
    readers, name, kind = list(node.users), node.name, native(node)
    around = [*readers, *([before] if before.op == "call_function" else [])]
    edit.remove(node, before)
    return told(around, f"{kind} {name} left out", kind, None)


def operand_missing(edit: Editor, node: Any) -> dict[str, Any]:
    """Leave a branch out: of a + b only one stays."""
    if len(edit.computed(node)) < 2:
        raise SkipPlace("it joins no two branches")
    return missing(edit, node)


def extra(edit: Editor, node: Any) -> dict[str, Any]:
    """Put an activation behind an operator that has none."""
    import torch

    if not floating(node) or any(native(user) in ACTIVATIONS for user in node.users if user.op == "call_function"):
        raise SkipPlace("an activation follows")
    made = edit.insert(node, [(torch.ops.aten.relu.default, ())])
    return told(made, f"relu put behind {node.name}", None, "relu")


def activation_changed(edit: Editor, node: Any) -> dict[str, Any]:
    """Another activation of the same input."""
    import torch

    old = native(node)
    name, more = ACTIVATIONS[old]
    packet, _, overload = name.partition(".")
    edit.replace(node, getattr(getattr(torch.ops.aten, packet), overload), (node.args[0], *more))
    return told([node], f"kind of {node.name}", old, packet)


def operands_swapped(edit: Editor, node: Any) -> dict[str, Any]:
    """a - b for b - a."""
    import torch

    left, right = node.args[0], node.args[1]
    if hasattr(right, "op") and left is not right:
        edit.replace(node, node.target, (right, left, *node.args[2:]))
    elif native(node) == "sub":
        edit.replace(node, torch.ops.aten.rsub.Scalar, (left, right))
    else:
        edit.replace(node, torch.ops.aten.mul.Tensor, (left, right))
    return told([node], f"operands of {node.name}", "first, second", "second, first")


def concat_order(edit: Editor, node: Any) -> dict[str, Any]:
    """Join the parts the other way round."""
    old = list(node.args[0])
    if len(set(old)) < 2:
        raise SkipPlace("the order makes no difference")
    edit.replace(node, node.target, (old[::-1], *node.args[1:]))
    return told([node], f"order of {node.name}", [one.name for one in old], [one.name for one in old[::-1]])


def reshaped(edit: Editor, node: Any) -> dict[str, Any]:
    """Reshape for a transposition: the shape is right, the order of the elements is not."""
    import torch

    shape = edit.shape(node)
    if sum(size < 0 for size in shape) > 1 or edit.shape(node.args[0]) == shape:
        raise SkipPlace("the shape is not known, or says nothing")
    old = native(node)
    edit.replace(node, torch.ops.aten.reshape.default, (node.args[0], shape))
    return told([node], f"kind of {node.name}", old, "reshape")


def flatten_order(edit: Editor, node: Any) -> dict[str, Any]:
    """Flatten channels last for channels first: a permutation before the flattening."""
    import torch

    before = node.args[0]
    shape = edit.shape(before)
    if len(shape) < 3 or sum(size > 1 for size in shape[1:]) < 2:
        raise SkipPlace("one axis has all elements")
    order = [0, *range(2, len(shape)), 1]
    moved = edit.insert_between(before, node, torch.ops.aten.permute.default, (order,))
    return told([moved, node], f"order in which {node.name} flattens", "as stored", order)


def cast_island(edit: Editor, node: Any) -> dict[str, Any]:
    """Let a result pass through float16."""
    import torch

    if not floating(node):
        raise SkipPlace("it does not compute float32")
    readers = [user for user in node.users if user.op == "call_function"]
    cast = torch.ops.aten.to.dtype
    made = edit.insert(node, [(cast, (torch.float16,)), (cast, (torch.float32,))])
    return told([*made, node, *readers], f"{node.name} goes through float16", "float32", "float16")


# -- what is done to the inputs -------------------------------------------------------------------------------------


def pictures(edit: Editor) -> list[Any]:
    """Inputs of four axes with a few channels first."""
    return [one for one in edit.program.inputs if len(edit.shape(one)) == 4 and 0 < edit.shape(one)[1] <= 4]


def at_front(edit: Editor, one: Any, steps: list[Any], what: str, source: Any, target: Any) -> dict[str, Any]:
    """Change an input before anything reads it: the new operators and the first readers are the truth."""
    readers = [user for user in one.users if user.op == "call_function"]
    if len(readers) != len(one.users):
        raise SkipPlace("the input is an output too")
    made = edit.insert(one, steps)
    return told([*made, *readers], f"{what} of {one.name}", source, target)


def input_scale(edit: Editor, one: Any) -> dict[str, Any]:
    """Divide by 255 once more."""
    import torch

    return at_front(edit, one, [(torch.ops.aten.mul.Tensor, (1 / 255,))], "scale", 1, 1 / 255)


def input_bgr(edit: Editor, one: Any) -> dict[str, Any]:
    """Blue first."""
    import torch

    return at_front(edit, one, [(torch.ops.aten.flip.default, ([1],))], "channel order", "as given", "reversed")


def input_flipped(edit: Editor, one: Any) -> dict[str, Any]:
    """Right for left."""
    import torch

    return at_front(edit, one, [(torch.ops.aten.flip.default, ([3],))], "columns", "as given", "reversed")


def input_layout(edit: Editor, one: Any) -> dict[str, Any]:
    """Read channels last as channels first."""
    import torch

    shape, aten = edit.shape(one), torch.ops.aten
    if min(shape[1:]) < 0:
        raise SkipPlace("the size is not fixed")
    steps = [(aten.permute.default, ([0, 2, 3, 1],)), (aten.reshape.default, ([-1, *shape[1:]],))]
    return at_front(edit, one, steps, "layout", "channels first", "channels last")


def input_shifted(edit: Editor, one: Any) -> dict[str, Any]:
    """Move the steps of a sequence on by one."""
    import torch

    return at_front(edit, one, [(torch.ops.aten.roll.default, ([1], [1]))], "steps", "as given", "rolled by one")


def floats(edit: Editor) -> list[Any]:
    """Inputs of float32."""
    return [one for one in edit.program.inputs if floating(one)]


def sequences(edit: Editor) -> list[Any]:
    """Inputs of two or three axes."""
    return [one for one in edit.program.inputs if len(edit.shape(one)) in (2, 3)]


LH, TSS, CG, PP = ("LH", "hyperparameters"), ("TSS", "hyperparameters"), ("CG", "structure"), ("PP", "inputs")
MOVES = ("TSS", "structure")
FAULTS = {
    "stride": Fault(*LH, at(*CONVOLUTIONS, *POOLS), strided),
    "pads": Fault(*LH, at(*CONVOLUTIONS, *POOLS), padded),
    "pads_shifted": Fault(*LH, at(*CONVOLUTIONS), pads_shifted, ("structure",)),
    "dilation": Fault(*LH, at(*CONVOLUTIONS), dilated),
    "bn_epsilon": Fault(*LH, at("batch_norm"), epsilon),
    "norm_epsilon": Fault(*LH, at("layer_norm", "group_norm", "instance_norm"), epsilon),
    "resize_coordinates": Fault(*LH, at("upsample_bilinear2d"), toggled("align_corners")),
    "resize_mode": Fault(*LH, at("upsample_bilinear2d", "upsample_nearest2d"), resize_mode, ("structure",)),
    "leaky_alpha": Fault(*LH, at("leaky_relu", "leaky_relu_"), scaled("negative_slope", 3.0)),
    "elu_alpha": Fault(*LH, at("elu", "elu_"), scaled("alpha", 0.5)),
    "clip_bound": Fault(*LH, at("clamp", "hardtanh", "hardtanh_"), clip_bound, ("parameters",)),
    "clip_dropped": Fault(*LH, at("clamp", "hardtanh", "hardtanh_"), clip_dropped, ("structure",)),
    "count_include_pad": Fault(*LH, at("avg_pool2d", "avg_pool1d"), toggled("count_include_pad")),
    "ceil_mode": Fault(*LH, at(*POOLS), toggled("ceil_mode")),
    "gather_index": Fault(*LH, at("select"), select_next, ("parameters",)),
    "gelu_approximate": Fault(*LH, at("gelu"), gelu),
    "softmax_axis": Fault(*TSS, at("softmax", "log_softmax"), axis_moved),
    "concat_axis": Fault(*TSS, at("cat"), concat_axis, ("structure",)),
    "reduce_axis": Fault(*TSS, at("mean", "sum", "amax"), reduce_axes, ("structure",)),
    "transpose_perm": Fault(*TSS, at("permute"), permuted, ("structure",)),
    "pool_kind": Fault(*CG, at(*POOLS), other_pool, ("hyperparameters",)),
    "mean_to_max": Fault(*CG, at("mean"), mean_to_max, ("hyperparameters",)),
    "activation_missing": Fault(*CG, at(*ACTIVATIONS), missing),
    "activation_extra": Fault(*CG, at(*PRODUCERS), extra),
    "activation_changed": Fault(*CG, at(*ACTIVATIONS), activation_changed, ("hyperparameters",)),
    "operator_missing": Fault(*CG, at("batch_norm", "layer_norm", "group_norm", "max_pool2d"), missing),
    "branch_missing": Fault(*CG, at("add", "mul", "sub"), operand_missing),
    "operands_swapped": Fault(*CG, at("sub", "div"), operands_swapped),
    "concat_order": Fault(*CG, at("cat"), concat_order),
    "reshape_for_transpose": Fault(*MOVES, at("permute", "transpose"), reshaped),
    "flatten_order": Fault(*MOVES, at("flatten", "reshape", "view"), flatten_order),
    "cast_island": Fault("QZ", "precision", at(*PRODUCERS, *ACTIVATIONS), cast_island),
    "input_scale": Fault(*PP, floats, input_scale),
    "input_bgr": Fault(*PP, pictures, input_bgr),
    "input_flipped": Fault(*PP, pictures, input_flipped),
    "input_layout": Fault(*PP, pictures, input_layout),
    "input_shifted": Fault(*PP, sequences, input_shifted),
}
