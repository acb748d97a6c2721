"""Deviation along each axis, slice by slice: what the totals of an output with unequal scales hide.

A detector gives boxes in hundreds of pixels and scores below one in the same tensor. The noise of the boxes would
cover any fault of the scores, so every slice along every axis (a channel, a class, a border row) is also held against
its own noise. The bound is wider than that of the totals, because a slice is a smaller sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trueport.compare.floor import Floor
from trueport.compare.values import RELEASE_EVERY, Value, blocks, first_runs, release

SLICE_BOUND = 40.0
"""Four times the bound of the totals: a floor from four runs and a few ways is a small sample of one slice's noise."""

FEWEST = 16
"""Elements of a slice, over the runs of the floor, below which its own noise is not known well enough."""

MOST_SLICES = 4096
"""Axes longer than this are positions rather than channels, and are left to the largest single element."""

SHARE_OF_TOTAL = 1e-3
"""Part of the total floor that a slice's floor has at least, for slices whose few roundings happened to agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The slice that is furthest beyond its own noise. axis: of one run (0 is the batch); ratio: deviation over floor."""

    axis: int
    index: int
    ratio: float


def worst_slice(source: Value, target: Value, ways: Mapping[str, Value], least: float, total: Floor) -> Slice | None:
    """Find the slice with the largest ratio; None where no axis has slices whose noise is known.

    ways: the evaluations that `total` was measured from, of the same shapes (perhaps of fewer runs). least: the
    smallest relative floor (rounding). Only stacked arrays of real floats have slices that mean the same in every run.
    """
    if not isinstance(source, np.ndarray) or not isinstance(target, np.ndarray) or source.dtype.kind != "f":
        return None
    used = [way for how, way in ways.items() if how in total.ways and isinstance(way, np.ndarray) and len(way)]
    if len(used) < 2:
        return None
    runs = min(len(way) for way in used)
    axes = [
        axis
        for axis in range(2, source.ndim)
        if 2 <= source.shape[axis] <= MOST_SLICES and runs * (source[0].size // source.shape[axis]) >= FEWEST
    ]
    if not axes:
        return None
    deviation, magnitude = _profiles(source, target, axes), _profiles(source, None, axes)
    noise = [_profiles(np.asarray(first_runs(source, len(way))), way, axes) for way in used]
    return max(_ratios(axes, deviation, magnitude, noise, least, total), key=lambda found: found.ratio, default=None)


def _ratios(
    axes: Sequence[int],
    deviation: Mapping[int, np.ndarray],
    magnitude: Mapping[int, np.ndarray],
    noise: Sequence[Mapping[int, np.ndarray]],
    least: float,
    total: Floor,
) -> Iterator[Slice]:
    """The worst slice of each axis."""
    for axis in axes:
        floor = np.max([way[axis] for way in noise], axis=0)
        floor = np.maximum(floor, np.maximum(least * magnitude[axis], SHARE_OF_TOTAL * total.rms))
        ratio = deviation[axis] / floor
        index = int(np.argmax(ratio))
        yield Slice(axis=axis - 1, index=index, ratio=float(ratio[index]))


def _profiles(source: np.ndarray, target: np.ndarray | None, axes: Sequence[int]) -> dict[int, np.ndarray]:
    """axis -> root mean square of source - target (of source alone without one) in each slice along it.

    Elements that are not finite on both sides count as 0: they are judged on their own.
    """
    sums = {axis: np.zeros(source.shape[axis]) for axis in axes}
    for number, block in enumerate(blocks(source.shape), start=1):
        with np.errstate(all="ignore"):
            error = np.asarray(source[block], dtype=np.float64)
            if target is not None:
                error = error - np.asarray(target[block], dtype=np.float64)
            square = np.where(np.isfinite(error), error, 0.0) ** 2
        if number % RELEASE_EVERY == 0:
            release(source, *([] if target is None else [target]))
        for axis, total in sums.items():
            lead = len(block)
            index = block[axis] if axis < lead else slice(None)
            if isinstance(index, int):
                total[index] += square.sum()
                continue
            kept = axis - sum(isinstance(item, int) for item in block)
            total[index] += square.sum(axis=tuple(other for other in range(square.ndim) if other != kept))
    release(source, *([] if target is None else [target]))
    return {axis: np.sqrt(total / (source.size // source.shape[axis])) for axis, total in sums.items()}
