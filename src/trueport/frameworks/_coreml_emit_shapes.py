"""ONNX operators with a window, and those that move elements, written as operations of an ML program.

Sizes, axes and pads may stand among the attributes or be constant operands. ONNX lists all pads before the data and then
all behind it; Core ML lists them axis by axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._coreml_emit import MAKERS, Attributes, Emitter, Maker, Operand, data
from trueport.frameworks._coreml_program import Type

FAR = 2**31 - 1
"""Beyond every axis: where a slice ends that takes the rest."""


def paired(pads: Sequence[int]) -> list[int]:
    """ONNX's begins and ends -> begin and end of each axis."""
    half = len(pads) // 2
    return [int(pads[place + half * side]) for place in range(half) for side in (0, 1)]


def split(pads: Sequence[int]) -> list[int]:
    """Begin and end of each axis -> ONNX's begins and ends."""
    return [int(size) for size in [*pads[::2], *pads[1::2]]]


# -- windows --------------------------------------------------------------------------------------------------------


def window(e: Emitter, attributes: Attributes, rank: int) -> dict[str, Any]:
    """Strides and padding as arguments. Raises Unsupported for pads that are to be worked out."""
    strides = attributes.get("strides") or [1] * rank
    auto = str(attributes.get("auto_pad", "NOTSET")).upper()
    words = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower", "VALID": "valid", "NOTSET": "custom"}
    if auto not in words:
        raise Unsupported(f"Core ML has no padding '{auto}'")
    pads = attributes.get("pads") or [0] * (2 * rank)
    return {
        "strides": e.whole([int(step) for step in strides]),
        "pad_type": e.text(words[auto]),
        "pad": e.whole(paired(pads) if auto == "NOTSET" else [0] * (2 * rank)),
    }


def _conv(kind: str) -> Maker:
    def make(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
        x = data(e, operands)
        weight = operands[1]
        rank = len(e.shape(weight)) - 2
        given = window(e, attributes, rank)
        given["dilations"] = e.whole([int(step) for step in attributes.get("dilations") or [1] * rank])
        given["groups"] = e.whole(int(attributes.get("group", 1)))
        if kind == "conv_transpose" and any(attributes.get("output_padding") or ()):
            raise Unsupported("a transposed convolution with extra rows at the end cannot be written here")
        bias = e.value(operands[2], x) if len(operands) > 2 and operands[2] is not None else None
        return e.make(kind, like=Type(e.dtype(x), None), x=x, weight=e.value(weight, x), bias=bias, **given)

    return make


def _pool(kind: str) -> Maker:
    def make(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
        x, kernel = data(e, operands), [int(size) for size in attributes["kernel_shape"]]
        if any(int(step) != 1 for step in attributes.get("dilations") or ()):
            raise Unsupported("pools of Core ML have no dilation")
        given = window(e, attributes, len(kernel))
        given["kernel_sizes"] = e.whole(kernel)
        given["ceil_mode"] = e.flag(bool(attributes.get("ceil_mode", 0)))
        if kind == "avg_pool":
            given["exclude_padding_from_average"] = e.flag(not attributes.get("count_include_pad", 0))
        return e.make(kind, like=Type(e.dtype(x), None), x=x, **given)

    return make


# -- moving elements ------------------------------------------------------------------------------------------------


def _transpose(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    known = e.editor.type(x)
    perm = [int(axis) for axis in attributes.get("perm") or range(e.rank(x))[::-1]]
    shape = None if known.shape is None else tuple(known.shape[axis] for axis in perm)
    return e.make("transpose", like=Type(known.dtype, shape), x=x, perm=e.whole(perm))


def _reshape(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    wanted = e.listed(operands, 1, attributes, "shape")
    if wanted is None:
        raise Unsupported("Reshape needs 'shape'")
    x = data(e, operands)
    sizes = [int(size) for size in wanted]
    if 0 in sizes and not attributes.get("allowzero"):
        given = e.shape(x)
        open_ones = [place for place, size in enumerate(sizes) if size == 0 and given[place] is None]
        if len(open_ones) > 1 or (open_ones and -1 in sizes):
            raise Unsupported("a shape with several open sizes cannot be written here")
        sizes = [
            -1 if place in open_ones else given[place] or 0 if size == 0 else size for place, size in enumerate(sizes)
        ]
    return reshaped(e, x, sizes)


def reshaped(e: Emitter, x: str, sizes: Sequence[int]) -> str:
    """The elements of a value in another shape, -1 for the size that follows."""
    like = Type(e.dtype(x), tuple(None if size < 0 else size for size in sizes))
    return e.make("reshape", like=like, x=x, shape=e.whole(list(sizes)))


def _flatten(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    shape, axis = e.shape(x), int(attributes.get("axis", 1))
    before, behind = shape[:axis], shape[axis:]
    if None not in behind:
        return reshaped(e, x, [-1, int(np.prod([size or 1 for size in behind], dtype=np.int64))])
    if None in before:
        raise Unsupported("a Flatten with open sizes on both sides cannot be written here")
    return reshaped(e, x, [int(np.prod([size or 1 for size in before], dtype=np.int64)), -1])


def _squeeze(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    axes = e.listed(operands, 1, attributes, "axes")
    shape = e.shape(x)
    chosen = [axis % len(shape) for axis in axes] if axes else [axis for axis, size in enumerate(shape) if size == 1]
    left = tuple(size for axis, size in enumerate(shape) if axis not in chosen)
    return e.make("squeeze", like=Type(e.dtype(x), left), x=x, axes=e.whole(chosen))


def _unsqueeze(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    axes = e.listed(operands, 1, attributes, "axes")
    if not axes:
        raise Unsupported("Unsqueeze needs 'axes'")
    x = data(e, operands)
    shape: list[Any] = list(e.shape(x))
    for axis in sorted(axis % (len(shape) + len(axes)) for axis in axes):
        shape.insert(axis, 1)
    return e.make("expand_dims", like=Type(e.dtype(x), tuple(shape)), x=x, axes=e.whole([int(axis) for axis in axes]))


def _concat(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    beside = next((one for one in operands if isinstance(one, str)), None)
    names = [e.value(one, beside) for one in operands]
    like = Type(e.dtype(beside), None)
    return e.make("concat", like=like, values=names, axis=e.whole(int(attributes["axis"])), interleave=e.flag(False))


def _slice(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    names = ((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps"))
    starts, ends, axes, steps = (e.listed(operands, slot, attributes, name) for slot, name in names)
    if starts is None or ends is None:
        raise Unsupported("Slice needs 'starts' and 'ends'")
    rank = e.rank(x)
    begin, end, stride = [0] * rank, [0] * rank, [1] * rank
    begin_mask, end_mask = [True] * rank, [True] * rank
    places = zip(axes or range(len(starts)), starts, ends, steps or [1] * len(starts))
    for axis, first, last, step in places:
        begin[axis], stride[axis] = max(min(int(first), FAR), -FAR), int(step)
        end[axis] = max(min(int(last), FAR), -FAR)
        begin_mask[axis] = (first == 0 and step > 0) or (first in (-1, FAR) and step < 0)
        end_mask[axis] = last >= FAR if step > 0 else last <= -FAR
    return e.make(
        "slice_by_index",
        like=Type(e.dtype(x), None),
        x=x,
        begin=e.whole(begin),
        end=e.whole(end),
        stride=e.whole(stride),
        begin_mask=e.flags(begin_mask),
        end_mask=e.flags(end_mask),
        squeeze_mask=e.flags([False] * rank),
    )


def _gather(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x, indices = e.value(operands[0]), operands[1]
    if isinstance(indices, np.ndarray):
        indices = e.editor.constant(indices, f"{e.hint}_indices", "int32")
    given = {"validate_indices": e.flag(False)} if e.editor.spec.specificationVersion >= 8 else {}
    axis = e.whole(int(attributes.get("axis", 0)))
    return e.make("gather", like=Type(e.dtype(x), None), x=x, indices=indices, axis=axis, **given)


def _pad(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    pads = e.listed(operands, 1, attributes, "pads")
    if pads is None:
        raise Unsupported("Pad needs 'pads'")
    x = data(e, operands)
    axes = e.listed(operands, 3, attributes, "axes")
    rank = e.rank(x)
    if axes:
        whole = [0] * (2 * rank)
        for place, axis in enumerate(axes):
            whole[axis % rank], whole[rank + axis % rank] = pads[place], pads[place + len(axes)]
        pads = whole
    words = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode = str(attributes.get("mode", "constant"))
    if mode not in words:
        raise Unsupported(f"Core ML does not pad in the mode '{mode}'")
    fill = e.listed(operands, 2, attributes, "value") or [0.0]
    given = {"pad": e.whole(paired(pads)), "mode": e.text(words[mode]), "constant_val": e.number(float(fill[0]), x)}
    return e.make("pad", like=Type(e.dtype(x), None), x=x, **given)


def _tile(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    counts = e.listed(operands, 1, attributes, "repeats")
    if counts is None:
        raise Unsupported("Tile needs 'repeats'")
    x = data(e, operands)
    return e.make("tile", like=Type(e.dtype(x), None), x=x, reps=e.whole([int(count) for count in counts]))


def _expand(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    wanted = e.listed(operands, 1, attributes, "shape")
    if wanted is None:
        raise Unsupported("Expand needs 'shape'")
    x = data(e, operands)
    shape = e.shape(x)
    if len(shape) != len(wanted):
        raise Unsupported("an Expand to more axes cannot be written here")
    return e.make(
        "tile",
        like=Type(e.dtype(x), None),
        x=x,
        reps=e.whole([int(size) if old == 1 else 1 for old, size in zip(shape, wanted)]),
    )


def _reverse(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    axes = attributes.get("axes", attributes.get("dims"))
    if axes is None:
        raise Unsupported("Flip needs 'axes'")
    return e.make("reverse", x=data(e, operands), axes=e.whole([int(axis) for axis in axes]))


def _blocks(kind: str) -> Maker:
    def make(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
        x, size = data(e, operands), e.whole(int(attributes["blocksize"]))
        like = Type(e.dtype(x), None)
        if attributes.get("mode", "DCR") == "CRD":
            other = "pixel_shuffle" if kind == "depth_to_space" else "pixel_unshuffle"
            word = "upscale_factor" if kind == "depth_to_space" else "downscale_factor"
            return e.make(other, like=like, x=x, **{word: size})
        return e.make(kind, like=like, x=x, block_size=size)

    return make


MAKERS.update({
    "AveragePool": _pool("avg_pool"),
    "Concat": _concat,
    "Conv": _conv("conv"),
    "ConvTranspose": _conv("conv_transpose"),
    "DepthToSpace": _blocks("depth_to_space"),
    "Expand": _expand,
    "Flatten": _flatten,
    "Flip": _reverse,
    "Gather": _gather,
    "MaxPool": _pool("max_pool"),
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _blocks("space_to_depth"),
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
})  # fmt: skip
