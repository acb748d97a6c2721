"""MIL operators that move values without computing with them: shapes, slices, joins, padding, blocks of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from trueport.frameworks._coreml_program import Call, torch_type
from trueport.frameworks._mil_values import choice, flag, number, plain, truths, whole, wholes

Kernel = Callable[[Call], Any]


def identity(call: Call) -> Any:
    """The value itself, whatever it is."""
    return call["x"]


def reshape(call: Call) -> Any:
    """Other sizes for the same values; −1 takes what is left.

    0 keeps the size of the axis at the same place counted from the end, and is 1 where x has no such axis.
    """
    x, sizes = call["x"], wholes(call, "shape")
    before = [1] * (len(sizes) - x.dim()) + list(x.shape)
    kept = before[len(before) - len(sizes) :]
    return x.reshape([size or held for size, held in zip(sizes, kept)])


def reshape_like(call: Call) -> Any:
    """Other sizes, taken from parts of the shapes of other tensors."""
    begins, ends = ([int(plain(item)) for item in call.all(name)] for name in ("begins", "ends"))
    masks = [bool(plain(item)) for item in call.all("end_masks")]
    sizes: list[int] = []
    for reference, begin, end, mask in zip(call.all("ref_tensors"), begins, ends, masks):
        sizes += list(reference.shape)[begin : None if mask else end]
    return call["x"].reshape(sizes)


def expand_dims(call: Call) -> Any:
    """Axes of size 1 at the places `axes` of the result."""
    x, places = call["x"], wholes(call, "axes")
    rank = x.dim() + len(places)
    for axis in sorted(place % rank for place in places):
        x = x.unsqueeze(axis)
    return x


def squeeze(call: Call) -> Any:
    """Without the axes `axes`, or without all axes of size 1."""
    x = call["x"]
    if call.get("axes") is None:
        return x.squeeze()
    for axis in sorted((axis % x.dim() for axis in wholes(call, "axes")), reverse=True):
        x = x.squeeze(axis)
    return x


def transpose(call: Call) -> Any:
    """Axes in the order `perm`."""
    return call["x"].permute(wholes(call, "perm")).contiguous()


def flatten2d(call: Call) -> Any:
    """A matrix: the axes before `axis`, and those from it on."""
    x, axis = call["x"], whole(call, "axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


def shape(call: Call) -> Any:
    """The sizes of a tensor."""
    import torch

    return torch.tensor(list(call["x"].shape), dtype=torch.int32)


# -- joining and cutting


def concat(call: Call) -> Any:
    """Tensors joined along `axis`; interleaved, their slices alternate. Single numbers make a vector."""
    import torch

    axis = whole(call, "axis", 0)
    values = [value.reshape(1) if value.dim() == 0 else value for value in call.all("values")]
    if not flag(call, "interleave"):
        return torch.cat(values, axis)
    axis %= values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def stack(call: Call) -> Any:
    """Tensors joined along a new axis."""
    import torch

    return torch.stack(call.all("values"), whole(call, "axis", 0))


def split(call: Call) -> Any:
    """Parts along `axis`, of the sizes given or `num_splits` equal ones."""
    x, axis = call["x"], whole(call, "axis", 0)
    sizes = wholes(call, "split_sizes") if call.get("split_sizes") is not None else []
    if not sizes:
        count = whole(call, "num_splits", 1)
        sizes = [x.shape[axis] // count] * count
    return tuple(part.contiguous() for part in x.split(sizes, axis))


def _places(call: Call, sizes: list[int]) -> tuple[list[slice], list[int]]:
    """The slice of each axis, and the axes that are indexed and vanish."""
    rank = len(sizes)
    begin, end = wholes(call, "begin"), wholes(call, "end")
    steps = wholes(call, "stride", [1] * rank) if call.get("stride") is not None else [1] * rank
    from_start, to_end = truths(call, "begin_mask", rank), truths(call, "end_mask", rank)
    indexed = truths(call, "squeeze_mask", rank)
    places = []
    for axis in range(rank):
        first = None if from_start[axis] else begin[axis]
        if indexed[axis]:
            start = (first or 0) % sizes[axis] if sizes[axis] else 0
            places.append(slice(start, start + 1, 1))
        else:
            places.append(slice(first, None if to_end[axis] else end[axis], steps[axis]))
    return places, [axis for axis in range(rank) if indexed[axis]]


def _sliced(x: Any, places: list[slice]) -> Any:
    """What NumPy's basic slicing gives; PyTorch has no negative steps."""
    import torch

    for axis, place in enumerate(places):
        first, last, step = place.indices(x.shape[axis])
        if step > 0:
            x = x[(slice(None),) * axis + (slice(first, max(first, last), step),)]
        else:
            x = x.index_select(axis, torch.arange(first, min(first, last), step))
    return x


def slice_by_index(call: Call) -> Any:
    """x[begin:end:stride] of every axis; a mask takes an axis from its start, to its end, or at one index."""
    places, indexed = _places(call, list(call["x"].shape))
    x = _sliced(call["x"], places)
    for axis in reversed(indexed):
        x = x.squeeze(axis)
    return x.contiguous()


def slice_by_size(call: Call) -> Any:
    """`size` elements of every axis from `begin` on; −1 takes all that are left."""
    x = call["x"]
    for axis, (begin, size) in enumerate(zip(wholes(call, "begin"), wholes(call, "size"))):
        begin = begin + x.shape[axis] if begin < 0 else begin
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x.contiguous()


def slice_update(call: Call) -> Any:
    """x with the slice replaced by `update`."""
    import torch

    x = call["x"]
    places, _ = _places(call, list(x.shape))
    numbered = _sliced(torch.arange(x.numel()).reshape(x.shape), places)
    flat = x.reshape(-1).clone()
    flat[numbered.reshape(-1)] = call["update"].reshape(-1).to(x.dtype)
    return flat.reshape(x.shape)


def sliding_windows(call: Call) -> Any:
    """Windows of `size` elements along `axis`, which becomes their number; their content is the axis behind it."""
    x, axis = call["x"], whole(call, "axis", 0)
    axis %= x.dim()
    return x.unfold(axis, whole(call, "size", 1), whole(call, "stride", 1)).movedim(-1, axis + 1).contiguous()


def reverse(call: Call) -> Any:
    """Backwards along `axes`, or along all."""
    x = call["x"]
    return x.flip(wholes(call, "axes") if call.get("axes") is not None else list(range(x.dim())))


def reverse_sequence(call: Call) -> Any:
    """Of each index of `batch_axis` the first `lengths` elements of `seq_axis` backwards."""
    import torch

    x = call["x"]
    time, batch = whole(call, "seq_axis", 0) % x.dim(), whole(call, "batch_axis", 0) % x.dim()
    lengths = call["lengths"].reshape(-1, 1).to(torch.int64)
    steps = torch.arange(x.shape[time]).reshape(1, -1)
    order = torch.where(steps < lengths, lengths - 1 - steps, steps)
    moved = x.movedim((batch, time), (0, 1))
    rows = torch.arange(x.shape[batch]).reshape(-1, 1)
    return moved[rows, order].movedim((0, 1), (batch, time)).contiguous()


def tile(call: Call) -> Any:
    """Every axis repeated `reps` times."""
    return call["x"].repeat(wholes(call, "reps"))


PAD_MODES = ("constant", "reflect", "replicate")


def pad(call: Call) -> Any:
    """Values put before and after each of the last axes: a constant, the mirrored inside, or the edge."""
    import torch

    x, amounts = call["x"], wholes(call, "pad")
    mode = choice(call, "mode", "constant", PAD_MODES)
    pairs = [(amounts[2 * place], amounts[2 * place + 1]) for place in range(len(amounts) // 2)]
    first = x.dim() - len(pairs)
    if mode == "constant":
        flat = [size for pair in reversed(pairs) for size in pair]
        value = number(call, "constant_val", 0.0)
        return torch.nn.functional.pad(x, flat, value=value if x.is_floating_point() else int(value))
    for axis, pair in enumerate(pairs, first):
        if any(pair):
            order = np.pad(np.arange(x.shape[axis]), pair, mode="reflect" if mode == "reflect" else "edge")
            x = x.index_select(axis, torch.from_numpy(order))
    return x


def band_part(call: Call) -> Any:
    """Zero beyond `lower` diagonals below and `upper` above the main one; a negative number keeps them all."""
    import torch

    x = call["x"]
    lower, upper = whole(call, "lower", -1), whole(call, "upper", -1)
    rows, columns = torch.arange(x.shape[-2]).reshape(-1, 1), torch.arange(x.shape[-1])
    kept = torch.ones(x.shape[-2], x.shape[-1], dtype=torch.bool)
    if lower >= 0:
        kept &= rows - columns <= lower
    if upper >= 0:
        kept &= columns - rows <= upper
    return torch.where(kept, x, torch.zeros((), dtype=x.dtype))


# -- making values


def _filled(call: Call, sizes: list[int]) -> Any:
    import torch

    declared = call.operation.types[0].dtype
    return torch.full(
        sizes, plain(call["value"]) if "value" in call else 0.0, dtype=torch_type(declared, call.float_type)
    )


def fill(call: Call) -> Any:
    """One value in a tensor of the shape given."""
    return _filled(call, wholes(call, "shape"))


def fill_like(call: Call) -> Any:
    """One value in a tensor of another's shape."""
    return _filled(call, list(call["ref_tensor"].shape))


def range_1d(call: Call) -> Any:
    """start, start + step, ... up to before `end`."""
    import torch

    start, end, step = (plain(call[name]) for name in ("start", "end", "step"))
    first, last, by = (value[0] if isinstance(value, list) else value for value in (start, end, step))
    whole_numbers = all(isinstance(value, int) for value in (first, last, by))
    return torch.arange(first, last, by, dtype=torch.int64 if whole_numbers else call.float_type)


def one_hot(call: Call) -> Any:
    """`on_value` at the index given along a new axis, `off_value` elsewhere; an index out of range is nowhere."""
    import torch

    indices = call["indices"]
    rank = indices.dim() + 1
    axis = whole(call, "axis", -1) % rank
    numbers = torch.arange(whole(call, "one_hot_vector_size", 0))
    hit = indices.unsqueeze(axis) == numbers.reshape([-1 if place == axis else 1 for place in range(rank)])
    on, off = (plain(call[name]) if name in call else value for name, value in (("on_value", 1), ("off_value", 0)))
    kind = torch_type(call.operation.types[0].dtype, call.float_type)
    return torch.where(hit, torch.tensor(on, dtype=kind), torch.tensor(off, dtype=kind))


def non_zero(call: Call) -> Any:
    """One row of indices for every value that is not zero."""
    import torch

    return torch.nonzero(call["x"])


# -- blocks of pixels


def depth_to_space(call: Call) -> Any:
    """Channels into blocks of pixels: channel number = place in the block · C + channel."""
    x, block = call["x"], whole(call, "block_size", 1)
    n, c, h, w = x.shape
    parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(call: Call) -> Any:
    """Blocks of pixels into channels: channel number = place in the block · C + channel."""
    x, block = call["x"], whole(call, "block_size", 1)
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


def pixel_shuffle(call: Call) -> Any:
    """Channels into blocks of pixels: channel number = channel · block² + place in the block."""
    import torch

    return torch.pixel_shuffle(call["x"], whole(call, "upscale_factor", 1))


def pixel_unshuffle(call: Call) -> Any:
    """The inverse of pixel_shuffle."""
    import torch

    return torch.pixel_unshuffle(call["x"], whole(call, "downscale_factor", 1))


def space_to_batch(call: Call) -> Any:
    """Blocks of pixels into samples: sample number = place in the block · N + sample."""
    import torch

    tall, wide = wholes(call, "block_shape")
    (top, bottom), (left, right) = plain(call["paddings"])
    x = torch.nn.functional.pad(call["x"], [left, right, top, bottom])
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // tall, tall, w // wide, wide).permute(3, 5, 0, 1, 2, 4)
    return parts.reshape(n * tall * wide, c, h // tall, w // wide)


def batch_to_space(call: Call) -> Any:
    """Samples into blocks of pixels, then the rim cut off: the inverse of space_to_batch."""
    tall, wide = wholes(call, "block_shape")
    (top, bottom), (left, right) = plain(call["crops"])
    n, c, h, w = call["x"].shape
    parts = call["x"].reshape(tall, wide, n // (tall * wide), c, h, w).permute(2, 3, 4, 0, 5, 1)
    image = parts.reshape(n // (tall * wide), c, h * tall, w * wide)
    return image[:, :, top : h * tall - bottom, left : w * wide - right].contiguous()


def crop(call: Call) -> Any:
    """The last two axes without a rim."""
    x = call["x"]
    (top, bottom), (left, right) = wholes(call, "crop_height"), wholes(call, "crop_width")
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right].contiguous()


KERNELS: Mapping[str, Kernel] = {
    function.__name__: function
    for function in (
        identity,
        reshape,
        reshape_like,
        expand_dims,
        squeeze,
        transpose,
        flatten2d,
        shape,
        concat,
        stack,
        split,
        slice_by_index,
        slice_by_size,
        slice_update,
        sliding_windows,
        reverse,
        reverse_sequence,
        tile,
        pad,
        band_part,
        fill,
        fill_like,
        range_1d,
        one_hot,
        non_zero,
        depth_to_space,
        space_to_depth,
        pixel_shuffle,
        pixel_unshuffle,
        space_to_batch,
        batch_to_space,
        crop,
    )
}
