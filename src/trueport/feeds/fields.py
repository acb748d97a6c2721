"""Random arrays that look like data: smooth fields with edges and a little noise, bounded normal vectors, skewed ids.

Only addition, multiplication, comparison and rounding are used (no sin, exp, or sums whose order NumPy may choose),
so that a seed gives the same bits on every platform.
"""

from __future__ import annotations

import numpy as np

CELLS = 4
"""Cells of the coarse random grid along each axis; a field has structure at the size of a quarter of the picture."""
NOISE = 0.05
"""Share of white noise in a field: enough to break ties, too little to look like noise."""


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """About N(0, 1), float64, within ±6: the sum of twelve uniform numbers, which is exact on every platform."""
    total = np.zeros(shape)
    for _ in range(12):
        total += rng.random(shape)
    return total - 6.0


def field(rng: np.random.Generator, shape: tuple[int, ...], smooth: tuple[int, ...]) -> np.ndarray:
    """A field in 0..1 of any shape, smooth along the axes `smooth` and independent along the others.

    Two scales of interpolated random grids, one straight edge along each smooth axis, and a little noise.
    """
    values = _interpolated(rng, shape, smooth, CELLS)
    values = values * 0.6 + _interpolated(rng, shape, smooth, 3 * CELLS) * 0.2
    for axis in smooth:
        cut = int(rng.integers(0, max(shape[axis], 1)))
        step = (np.arange(shape[axis]) >= cut).astype(np.float64)
        values = values + step.reshape([-1 if i == axis else 1 for i in range(len(shape))]) * (rng.random() * 0.4 - 0.2)
    values = values + rng.random(shape) * NOISE
    return stretch(values)


def stretch(values: np.ndarray) -> np.ndarray:
    """Scale to the full range 0..1 (a constant array becomes 0.5)."""
    if values.size == 0:
        return values
    low, high = values.min(), values.max()
    return np.full_like(values, 0.5) if high == low else (values - low) / (high - low)


def _interpolated(rng: np.random.Generator, shape: tuple[int, ...], smooth: tuple[int, ...], cells: int) -> np.ndarray:
    """Uniform numbers on a coarse grid, interpolated linearly along the smooth axes."""
    coarse = tuple(min(cells, size - 1) + 1 if axis in smooth and size else size for axis, size in enumerate(shape))
    values = rng.random(coarse)
    for axis in smooth:
        size, knots = shape[axis], coarse[axis]
        if size < 2:
            continue
        place = np.arange(size) * ((knots - 1) / (size - 1))
        left = np.minimum(place.astype(np.int64), knots - 2)
        weight = (place - left).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        values = values.take(left, axis) * (1 - weight) + values.take(left + 1, axis) * weight
    return values


def skewed(rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """Integers in low..high, int64: half uniform, half crowded near `low`, as the ids of words are."""
    span = high - low + 1
    uniform = rng.integers(low, high, size=shape, endpoint=True, dtype=np.int64)
    near = np.minimum((rng.random(shape) * rng.random(shape) * rng.random(shape) * span).astype(np.int64), span - 1)
    return np.where(rng.random(shape) < 0.5, uniform, low + near)


def prefix(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A padding mask: along the last axis a valid prefix of at least one and usually more than half, then invalid; bool."""
    if not shape or shape[-1] == 0:
        return np.ones(shape, dtype=bool)
    length = shape[-1]
    ends = rng.integers(max(1, length // 2), length, size=(*shape[:-1], 1), endpoint=True)
    return np.arange(length) < ends


def smooth_axes(shape: tuple[int, ...], batch: int | None, channel: int | None) -> tuple[int, ...]:
    """Axes along which neighbours resemble each other: all but batch and channel, where there is room for it.

    Of three axes without a colour axis ([C, H, W] or [H, W, C] features) the shortest counts as the channels.
    """
    axes = [axis for axis in range(len(shape)) if axis != batch]
    if channel is None and len(axes) == 3:
        channel = min(axes, key=lambda axis: shape[axis])
    return tuple(axis for axis in axes if axis != channel and shape[axis] >= 8)
