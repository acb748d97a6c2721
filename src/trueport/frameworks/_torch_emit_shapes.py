"""ONNX operators that move, select, join or sum up elements, written as PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._torch_emit_values import Attributes, Call, Maker, Place, made, sides


def _axes(place: Place, operands: Sequence[Any], attributes: Attributes, slot: int = 1) -> list[int] | None:
    found = place.listed(operands, slot, attributes, "axes")
    return None if found is None else [int(axis) for axis in found]


# -- sums over axes -------------------------------------------------------------------------------------------------


def _reduce(name: str, *before: Any) -> Maker:
    def make(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
        axes = _axes(place, operands, attributes)
        if axes is None:
            axes = list(range(len(place.shape(operands[0]))))
        return made(name, operands[0], *before, axes, bool(attributes.get("keepdims", 1)))

    return make


def _reduce_product(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    axes = _axes(place, operands, attributes) or list(range(len(place.shape(operands[0]))))
    if len(axes) != 1:
        raise Unsupported("a product over several axes cannot be written as one operator in PyTorch")
    return made("prod.dim_int", operands[0], axes[0], bool(attributes.get("keepdims", 1)))


def _square_sum(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    squares = place.call("square.default", operands[0])
    return _reduce("sum.dim_IntList")(place, [squares, *operands[1:]], attributes)


def _arg(name: str) -> Maker:
    def make(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
        return made(name, operands[0], int(attributes.get("axis", 0)), bool(attributes.get("keepdims", 1)))

    return make


def _along(name: str) -> Maker:
    return lambda place, operands, attributes: made(name, operands[0], int(attributes.get("axis", -1)))


def _cumulated(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    axis = place.listed(operands, 1, attributes, "axis")
    if attributes.get("exclusive") or attributes.get("reverse"):
        raise Unsupported("a cumulated sum that is exclusive or reversed cannot be written in PyTorch")
    return made("cumsum.default", operands[0], int((axis or [0])[0]))


# -- shapes ---------------------------------------------------------------------------------------------------------


def _transpose(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    order = attributes.get("perm") or list(reversed(range(len(place.shape(operands[0])))))
    return made("permute.default", place.node(operands[0]), [int(axis) for axis in order])


def _reshape(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    wanted = place.listed(operands, 1, attributes, "shape")
    if wanted is None:
        raise Unsupported("Reshape needs 'shape'")
    sizes: list[Any] = [int(size) for size in wanted]
    if sizes.count(-1) > 1:
        raise Unsupported(f"the shape {sizes} leaves more than one size open")
    if not attributes.get("allowzero"):
        sizes = [_size(place, operands[0], axis) if size == 0 else size for axis, size in enumerate(sizes)]
    return made("reshape.default", place.node(operands[0]), sizes)


def _size(place: Place, data: Any, axis: int) -> Any:
    found = place.shape(data)[axis]
    return found if found >= 0 else place.call("sym_size.int", data, axis)


def _flatten(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    axis, rank = int(attributes.get("axis", 1)), len(place.shape(operands[0]))
    axis += rank if axis < 0 else 0
    if axis == 1:
        return made("flatten.using_ints", operands[0], 1)
    if axis == 0:
        return made("reshape.default", operands[0], [1, -1])
    if axis == rank:
        return made("reshape.default", operands[0], [-1, 1])
    return made("flatten.using_ints", place.call("flatten.using_ints", operands[0], axis), 0, axis - 1)


def _squeeze(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    axes = _axes(place, operands, attributes)
    return made("squeeze.default", operands[0]) if axes is None else made("squeeze.dims", operands[0], axes)


def _unsqueeze(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    axes, data = _axes(place, operands, attributes) or [], place.node(operands[0])
    if not axes:
        raise Unsupported("Unsqueeze needs 'axes'")
    rank = len(place.shape(data)) + len(axes)
    ordered = sorted(axis % rank for axis in axes)
    for axis in ordered[:-1]:
        data = place.call("unsqueeze.default", data, axis)
    return made("unsqueeze.default", data, ordered[-1])


def _expand(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    wanted = [int(size) for size in place.listed(operands, 1, attributes, "shape") or []]
    data = place.node(operands[0])
    given = place.shape(data)
    long = len(wanted) - len(given)
    if long < 0:
        wanted, long = [1] * -long + wanted, 0
    sizes = [-1 if place_ >= long and size in (1, given[place_ - long]) else size for place_, size in enumerate(wanted)]
    return made("expand.default", data, sizes)


def _tile(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    counts = place.listed(operands, 1, attributes, "repeats") or []
    return made("repeat.default", place.node(operands[0]), [int(count) for count in counts])


def _concat(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    beside = next((one for one in operands if not isinstance(one, np.ndarray)), None)
    return made("cat.default", [place.node(one, beside) for one in operands], int(attributes["axis"]))


def _pad(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    pads = place.listed(operands, 1, attributes, "pads")
    if pads is None:
        raise Unsupported("Pad needs 'pads'")
    fill = place.listed(operands, 2, attributes, "value") or [0.0]
    rank, mode = len(place.shape(operands[0])), attributes.get("mode", "constant")
    axes = _axes(place, operands, attributes, 3) or list(range(rank))
    if len(pads) != 2 * len(axes):
        raise Unsupported(f"pads has {len(pads)} numbers; {len(axes)} axes need {2 * len(axes)}")
    begins, ends = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        begins[axis], ends[axis] = int(pads[index]), int(pads[index + len(axes)])
    known = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    pairs = sides(begins, ends)
    least = 2 if mode == "constant" else 2 * max(rank - 2, 1)  # the other modes want all axes behind the channels
    while len(pairs) > least and pairs[-2:] == [0, 0]:
        del pairs[-2:]
    return made("pad.default", operands[0], pairs, known[mode], float(fill[0]) if mode == "constant" else None)


# -- selecting ------------------------------------------------------------------------------------------------------


def _slice(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    starts, ends = (place.listed(operands, slot, attributes, name) for slot, name in ((1, "starts"), (2, "ends")))
    if starts is None:
        raise Unsupported("Slice needs 'starts'")
    axes = _axes(place, operands, attributes, 3) or list(range(len(starts)))
    steps = place.listed(operands, 4, attributes, "steps") or [1] * len(starts)
    limit = 2**63 - 1
    data = operands[0]
    calls: list[tuple[str, tuple[Any, ...]]] = []
    for axis, start, end, step in zip(axes, starts, ends or [limit] * len(starts), steps):
        if step == -1 and start in (-1, limit) and end < -(2**31):
            calls.append(("flip.default", ([axis],)))
        elif step < 1:
            raise Unsupported("a Slice with a negative step over a part of the axis cannot be written in PyTorch")
        else:
            calls.append(("slice.Tensor", (axis, int(start), min(int(end), limit), int(step))))
    for name, arguments in calls[:-1]:
        data = place.call(name, data, *arguments)
    return made(calls[-1][0], data, *calls[-1][1])


def _gather(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    data, axis = operands[0], int(attributes.get("axis", 0))
    indices = attributes["indices"] if "indices" in attributes else operands[1]
    if isinstance(indices, (int, list, tuple)):
        indices = np.asarray(indices, np.int64)
    if isinstance(indices, np.ndarray):
        size = place.shape(data)[axis]
        if indices.size and indices.min() < 0:
            if size < 0:
                raise Unsupported("negative indices need an axis of fixed size")
            indices = np.where(indices < 0, indices + size, indices)
        if indices.ndim == 0:
            return made("select.int", place.node(data), axis, int(indices))
        indices = indices.astype(np.int64)
    rank = len(place.shape(indices))
    data, index = place.node(data), place.node(indices)
    if rank == 1:
        return made("index_select.default", data, axis, index)
    if axis == 0 and len(place.shape(data)) == 2:
        return made("embedding.default", data, index)
    raise Unsupported(f"a Gather of indices with {rank} axes along axis {axis} cannot be written in PyTorch")


def _flip(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    axes = attributes.get("dims", attributes.get("axes"))
    if axes is None:
        raise Unsupported("Flip needs 'axes'")
    return made("flip.default", place.node(operands[0]), [int(axis) for axis in axes])


def _roll(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    return made("roll.default", operands[0], list(attributes["shifts"]), list(attributes.get("dims") or []))


def _blocks(place: Place, operands: Sequence[Any], attributes: Attributes) -> tuple[int, list[Any]]:
    data = operands[0]
    if len(place.shape(data)) != 4:
        raise Unsupported("blocks and depth are exchanged on four axes only")
    return int(attributes["blocksize"]), [_size(place, data, axis) for axis in range(4)]


def _depth_to_space(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    if attributes.get("mode", "DCR") == "CRD":
        return made("pixel_shuffle.default", operands[0], int(attributes["blocksize"]))
    block, (batch, channels, height, width) = _blocks(place, operands, attributes)
    parts = [batch, block, block, channels // block**2, height, width]
    moved = place.call("permute.default", place.call("reshape.default", operands[0], parts), [0, 3, 4, 1, 5, 2])
    return made("reshape.default", moved, [batch, channels // block**2, height * block, width * block])


def _space_to_depth(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    if attributes.get("mode", "DCR") == "CRD":
        return made("pixel_unshuffle.default", operands[0], int(attributes["blocksize"]))
    block, (batch, channels, height, width) = _blocks(place, operands, attributes)
    parts = [batch, channels, height // block, block, width // block, block]
    moved = place.call("permute.default", place.call("reshape.default", operands[0], parts), [0, 3, 5, 1, 2, 4])
    return made("reshape.default", moved, [batch, channels * block**2, height // block, width // block])


def _einsum(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    beside = next((one for one in operands if not isinstance(one, np.ndarray)), None)
    return made("einsum.default", attributes["equation"], [place.node(one, beside) for one in operands])


MAKERS: dict[str, Maker] = {
    "ReduceMean": _reduce("mean.dim"),
    "ReduceSum": _reduce("sum.dim_IntList"),
    "ReduceMax": _reduce("amax.default"),
    "ReduceMin": _reduce("amin.default"),
    "ReduceL2": _reduce("norm.ScalarOpt_dim", 2),
    "ReduceL1": _reduce("norm.ScalarOpt_dim", 1),
    "ReduceLogSumExp": _reduce("logsumexp.default"),
    "ReduceProd": _reduce_product,
    "ReduceSumSquare": _square_sum,
    "ArgMax": _arg("argmax.default"),
    "ArgMin": _arg("argmin.default"),
    "Softmax": _along("softmax.int"),
    "LogSoftmax": _along("log_softmax.int"),
    "CumSum": _cumulated,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Pad": _pad,
    "Slice": _slice,
    "Gather": _gather,
    "Flip": _flip,
    "Roll": _roll,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Einsum": _einsum,
}
"""ONNX operator -> how it is written."""
