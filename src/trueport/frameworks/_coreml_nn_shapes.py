"""Kernels of the layers that give values another shape or order, whatever their rank: reshapes, slices, joins, fills, windows, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable

from trueport.frameworks._coreml_nn_kernel import Layer, LayerKernel, need_rank, whole

if TYPE_CHECKING:
    import torch


def _filled(layer: Layer, shape: Sequence[int]) -> torch.Tensor:
    import torch

    return torch.full(list(shape), layer["value"], dtype=layer.call.float_type)


# -- reshapes


def reshape_static(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """To `targetShape`, in which one size may be -1."""
    target = [int(size) for size in layer["targetShape"]]
    if 0 in target:
        raise layer.refuse(f"asks for the shape {target}; what a size of 0 means there is not documented")
    return x.reshape(target)


def rank_preserving_reshape(_layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """To `targetShape`, in which 0 keeps the size of the input."""
    return x.reshape([size or old for size, old in zip(_layer["targetShape"], x.shape)])


def expand_dims(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Put in axes of size 1, counted in the result."""
    rank = x.dim() + len(layer["axes"])
    for axis in sorted(axis % rank for axis in layer["axes"]):
        x = x.unsqueeze(axis)
    return x


def squeeze(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Take out axes of size 1; one at least stays."""
    axes = [i for i, size in enumerate(x.shape) if size == 1] if layer["squeezeAll"] else layer["axes"]
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        if x.shape[axis] != 1:
            raise ValueError(f"the layer '{layer.name}' takes out an axis of size {x.shape[axis]}")
        x = x.squeeze(axis)
    return x


def flatten_to_2d(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """[everything before the axis, everything from it on]."""
    axis = layer["axis"] + x.dim() if layer["axis"] < 0 else layer["axis"]
    rows = 1
    for size in x.shape[:axis]:
        rows *= size
    return x.reshape(rows, -1)


# -- slices


def _sliced(
    layer: Layer, x: torch.Tensor, begin: Sequence[int], end: Sequence[int], rest: dict[str, Any]
) -> torch.Tensor:
    """Slice as Python does, axis by axis; a masked bound is the end that the direction of the step begins or stops at."""
    import torch

    squeezed = []
    for axis in range(x.dim()):
        if rest["squeezeMasks"][axis]:
            x = x.narrow(axis, int(begin[axis]) % x.shape[axis], 1)
            squeezed.append(axis)
            continue
        start = None if rest["beginMasks"][axis] else int(begin[axis])
        stop = None if rest["endMasks"][axis] else int(end[axis])
        places = list(range(x.shape[axis])[slice(start, stop, int(rest["strides"][axis]))])
        x = x.index_select(axis, torch.tensor(places, dtype=torch.long))
    for axis in reversed(squeezed):
        x = x.squeeze(axis)
    return x


_SLICING = ("endIds", "strides", "beginMasks", "endMasks", "squeezeMasks")


def _slicing(layer: Layer, x: torch.Tensor, given: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The fields of a slice, those that come as inputs in place of the stored ones. An absent mask is off."""
    found: dict[str, Any] = {name: layer[name] for name in _SLICING}
    found.update({name: whole(value) for name, value in zip(_SLICING, given)})
    for name in _SLICING[2:]:
        found[name] = found[name] or [False] * x.dim()
    found["strides"] = found["strides"] or [1] * x.dim()
    found["endIds"] = found["endIds"] or [0] * x.dim()
    return found


def slice_static(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Slice by stored bounds."""
    rest = _slicing(layer, x, ())
    return _sliced(layer, x, layer["beginIds"], rest["endIds"], rest)


def slice_dynamic(layer: Layer, x: torch.Tensor, begin: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    """Slice by bounds that are inputs."""
    rest = _slicing(layer, x, given)
    return _sliced(layer, x, whole(begin), rest["endIds"], rest)


def slice_by_size(layer: Layer, x: torch.Tensor, begin: torch.Tensor) -> torch.Tensor:
    """Take `size` places of one axis from a place that is an input."""
    start = whole(begin)[0]
    return x.narrow(layer["axis"], start, layer["size"])


def sliding_windows(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """All windows along an axis, which becomes [windows, places in a window]."""
    axis = layer["axis"] % x.dim()
    return x.unfold(axis, layer["windowSize"], layer["step"]).movedim(-1, axis + 1)


# -- joins and repetition


def split_nd(layer: Layer, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cut an axis into parts of equal or given size."""
    axis = layer["axis"]
    sizes = [int(size) for size in layer["splitSizes"]]
    if not sizes:
        count = layer["numSplits"] or len(layer.call.operation.outputs)
        sizes = [x.shape[axis] // count] * count
    return tuple(x.split(sizes, axis))


def concat_nd(layer: Layer, *values: torch.Tensor) -> torch.Tensor:
    """Join along an axis, one after the other or in turns."""
    import torch

    axis = layer["axis"]
    if not layer["interleave"]:
        return torch.cat(values, axis)
    axis %= values[0].dim()
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


def stack(layer: Layer, *values: torch.Tensor) -> torch.Tensor:
    """Join along a new axis."""
    import torch

    return torch.stack(values, layer["axis"])


def tile(layer: Layer, x: torch.Tensor, repetitions: torch.Tensor | None = None) -> torch.Tensor:
    """Repeat each axis, as often as stored or as a second input says."""
    counts = layer["reps"] if repetitions is None else whole(repetitions)
    return x.repeat([1] * (x.dim() - len(counts)) + [int(count) for count in counts])


def reverse(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Turn the marked axes round."""
    return x.flip([axis for axis, marked in enumerate(layer["reverseDim"]) if marked])


def reverse_sequence(layer: Layer, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Turn the first places of an axis round, for each element of the batch as many as its length says."""
    import torch

    batch, sequence = layer["batchAxis"] % x.dim(), layer["sequenceAxis"] % x.dim()
    rows = []
    for row, length in zip(x.unbind(batch), whole(lengths)):
        axis = sequence - (1 if sequence > batch else 0)
        places = torch.arange(row.shape[axis])
        places[:length] = places[:length].flip(0)
        rows.append(row.index_select(axis, places))
    return torch.stack(rows, batch)


def constant_pad(layer: Layer, x: torch.Tensor, amounts: torch.Tensor | None = None) -> torch.Tensor:
    """Pad any axis with a number, by amounts or up to a size."""
    import torch.nn.functional as F

    flat = [int(value) for value in layer["padAmounts"]] if amounts is None else whole(amounts)
    pairs = list(zip(flat[::2], flat[1::2]))
    if layer["padToGivenOutputSizeMode"]:
        pairs = [(max(0, a - n) if a else 0, max(0, b - n) if b else 0) for (a, b), n in zip(pairs, x.shape)]
    return F.pad(x, [amount for pair in reversed(pairs) for amount in pair], value=layer["value"])


# -- fills


def _range(layer: Layer, end: float, start: float, step: float) -> torch.Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.arange(start, end, step, dtype=np.float64)).to(layer.call.float_type)


def range_static(layer: Layer) -> torch.Tensor:
    """Evenly spaced numbers between stored bounds."""
    return _range(layer, layer["endValue"], layer["startValue"], layer["stepSizeValue"])


def range_dynamic(layer: Layer, end: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
    """Evenly spaced numbers; end, start and step may be inputs."""
    numbers = [layer["startValue"], layer["stepSizeValue"]]
    numbers[: len(given)] = [float(value.reshape(-1)[0]) for value in given]
    return _range(layer, float(end.reshape(-1)[0]), *numbers)


def get_shape(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """The sizes of a value."""
    import torch

    return torch.tensor(list(x.shape), dtype=layer.call.float_type)


def _triangle(keep: Callable[[Layer, torch.Tensor, torch.Tensor], torch.Tensor]) -> LayerKernel:
    """Keep the places (row, column) of the last two dimensions for which `keep` holds; the others become 0."""

    def run(layer: Layer, x: torch.Tensor) -> torch.Tensor:
        import torch

        need_rank(layer, x, 2)
        rows, columns = torch.arange(x.shape[-2])[:, None], torch.arange(x.shape[-1])[None, :]
        return x.masked_fill(~keep(layer, rows, columns), 0.0)

    return run


def _in_band(layer: Layer, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    lower, upper = layer["numLower"], layer["numUpper"]
    everywhere = rows - columns == rows - columns
    below = rows - columns <= lower if lower >= 0 else everywhere
    above = columns - rows <= upper if upper >= 0 else everywhere
    return below & above


# -- reductions


def _reduced(function: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor]) -> LayerKernel:
    """A reduction over `axes` (kept as size 1), or over all."""

    def run(layer: Layer, x: torch.Tensor) -> torch.Tensor:
        chosen = range(x.dim()) if layer["reduceAll"] else layer["axes"]
        axes = tuple(sorted({axis % x.dim() for axis in chosen}))
        found = function(x, axes)
        if not layer["keepDims"]:
            found = found.reshape([size for axis, size in enumerate(found.shape) if axis not in axes])
        return found

    return run


def _product(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    for axis in axes:
        x = x.prod(axis, keepdim=True)
    return x


KERNELS: dict[str, LayerKernel] = {
    "copy": lambda _layer, x: x,
    "reshapeStatic": reshape_static,
    "reshapeLike": lambda _layer, x, like: x.reshape(like.shape),
    "reshapeDynamic": lambda _layer, x, shape: x.reshape(whole(shape)),
    "rankPreservingReshape": rank_preserving_reshape,
    "expandDims": expand_dims,
    "squeeze": squeeze,
    "flattenTo2D": flatten_to_2d,
    "transpose": lambda layer, x: x.permute([int(axis) for axis in layer["axes"]]),
    "sliceStatic": slice_static,
    "sliceDynamic": slice_dynamic,
    "sliceBySize": slice_by_size,
    "slidingWindows": sliding_windows,
    "splitND": split_nd,
    "concatND": concat_nd,
    "stack": stack,
    "tile": tile,
    "reverse": reverse,
    "reverseSeq": reverse_sequence,
    "constantPad": constant_pad,
    "broadcastToLike": lambda _layer, x, like: x.expand(like.shape),
    "broadcastToStatic": lambda layer, x: x.expand([int(size) for size in layer["targetShape"]]),
    "broadcastToDynamic": lambda _layer, x, shape: x.expand(whole(shape)),
    "fillLike": lambda layer, x: _filled(layer, x.shape),
    "fillStatic": lambda layer: _filled(layer, [int(size) for size in layer["targetShape"]]),
    "fillDynamic": lambda layer, shape: _filled(layer, whole(shape)),
    "rangeStatic": range_static,
    "rangeDynamic": range_dynamic,
    "getShape": get_shape,
    "matrixBandPart": _triangle(_in_band),
    "lowerTriangular": _triangle(lambda layer, rows, columns: columns - rows <= layer["k"]),
    "upperTriangular": _triangle(lambda layer, rows, columns: columns - rows >= layer["k"]),
    "softmaxND": lambda layer, x: x.softmax(layer["axis"]),
    "reduceSum": _reduced(lambda x, axes: x.sum(axes, keepdim=True)),
    "reduceMean": _reduced(lambda x, axes: x.mean(axes, keepdim=True)),
    "reduceMax": _reduced(lambda x, axes: x.amax(axes, keepdim=True)),
    "reduceMin": _reduced(lambda x, axes: x.amin(axes, keepdim=True)),
    "reduceProd": _reduced(_product),
    "reduceL1": _reduced(lambda x, axes: x.abs().sum(axes, keepdim=True)),
    "reduceL2": _reduced(lambda x, axes: x.square().sum(axes, keepdim=True).sqrt()),
    "reduceSumSquare": _reduced(lambda x, axes: x.square().sum(axes, keepdim=True)),
    "reduceLogSum": _reduced(lambda x, axes: x.sum(axes, keepdim=True).log()),
    "reduceLogSumExp": _reduced(lambda x, axes: x.logsumexp(axes, keepdim=True)),
}
