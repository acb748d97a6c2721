"""In what way one array is not another: dropped, scaled, turned, shifted, a few elements, noise; and how to say so."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from trueport.diagnosis import layouts, pool

_AXES = ("output channels", "input channels")
_SPATIAL = {1: ("taps",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def shown(array: np.ndarray) -> str:
    """An array in a few words: its values when there are few, else shape and size."""
    if array.size <= 4:
        return f"{_numbers(array)}"
    shape = "x".join(map(str, array.shape))
    return f"{shape}, rms {rms(array):.4g}"


def _numbers(array: np.ndarray) -> str:
    flat = [float(f"{value:.6g}") for value in np.asarray(array, np.float64).ravel()]
    return str(flat[0]) if array.ndim == 0 or len(flat) == 1 else str(flat)


def rms(array: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64))))) if array.size else 0.0


def distance(target: np.ndarray, source: np.ndarray) -> float:
    """rms(target - source) / rms(source), both flat and of equal size."""
    return rms(target.ravel() - source.ravel()) / max(rms(source), 1e-30)


@dataclass(frozen=True, slots=True)
class Difference:
    """`what`: a sentence about the target's array; `detail`: added to its description; `far`: relative distance."""

    what: str
    detail: str = ""
    far: float = 1.0


def between(target: np.ndarray, source: np.ndarray, *, weight: bool = False) -> Difference:
    """How `target` is not `source`. Equal shapes say more; `weight`: axes are [out, in, *spatial]."""
    far = distance(target, source) if target.size == source.size else 1.0
    if target.size != source.size:
        return Difference(f"has {target.size} elements where the source has {source.size}", far=far)
    if not np.any(target) and np.any(source):
        return Difference("is all zeros: the values were dropped", "all zeros", far)
    if target.shape != source.shape:
        target, source = layouts.tight(target), layouts.tight(source)
        if target.shape != source.shape:
            target, source = target.ravel(), source.ravel()
            weight = False
    factor = _scalar(target, source)
    if factor is not None:
        return Difference(f"is {factor:.6g} times the source's", f"{factor:.6g} times as large", far)
    if layouts.same_elements(layouts.print_of(target), layouts.print_of(source)) and np.allclose(
        np.sort(target.ravel()), np.sort(source.ravel()), rtol=1e-4, atol=1e-7 * max(rms(source), 1e-30)
    ):
        turned = _turned(target, source, weight)
        return Difference(turned, turned, far)
    by_channel = _by_channel(target, source)
    if by_channel is not None:
        return Difference(by_channel, by_channel, far)
    return _elements(target, source, far)


def _scalar(target: np.ndarray, source: np.ndarray) -> float | None:
    power = float(np.sum(source * source))
    if power == 0 or target.size < 2:
        return None
    factor = float(np.sum(target * source)) / power
    return factor if pool.close(target, factor * source) and abs(factor) > 1e-6 and abs(factor - 1) > 1e-4 else None


def _by_channel(target: np.ndarray, source: np.ndarray) -> str | None:
    for axis in range(min(target.ndim, 2)) if target.ndim > 1 else ():
        factor = pool.factors_between(target, source, axis)
        if factor is not None and np.isfinite(factor).any():
            low, high = float(np.nanmin(factor)), float(np.nanmax(factor))
            return f"is scaled per channel by factors from {low:.5g} to {high:.5g} that no BatchNorm of the source explains"
    return None


def _turned(target: np.ndarray, source: np.ndarray, weight: bool) -> str:
    """The name of the rearrangement that makes `source` into `target`."""
    rank = target.ndim
    names = _names(rank, weight)
    for order in itertools.permutations(range(rank)) if rank <= 5 else ():
        turned = np.transpose(source, order)
        if order == tuple(range(rank)) or turned.shape != target.shape:
            continue
        if _equal(target, turned):
            changed = [names[axis] for axis in range(rank) if order[axis] != axis]
            if len(changed) == 2:
                return f"is transposed: {changed[0]} and {changed[1]} are exchanged"
            return f"is transposed by {list(order)}"
    for count in range(1, min(rank, 4) + 1):
        for axes in itertools.combinations(range(rank), count):
            if _equal(target, np.flip(source, axes)):
                return f"is reversed along {' and '.join(names[axis] for axis in axes)}"
    for axis in range(rank):
        for places in (1, -1):
            if _equal(target, np.roll(source, places, axis)):
                return f"is moved on by {places} along {names[axis]}: off by one"
        order_of = _block_order(target, source, axis)
        if order_of is not None:
            return f"has the blocks along {names[axis]} in the order {order_of}"
    return "has the same elements in another order"


def _names(rank: int, weight: bool) -> list[str]:
    if weight and rank >= 2:
        spatial = _SPATIAL.get(rank - 2, tuple(f"axis {axis}" for axis in range(2, rank)))
        return [*_AXES, *spatial]
    return ["rows", "columns"] if rank == 2 else [f"axis {axis}" for axis in range(rank)]


def _equal(target: np.ndarray, source: np.ndarray) -> bool:
    return pool.close(target, np.ascontiguousarray(source))


def _block_order(target: np.ndarray, source: np.ndarray, axis: int) -> list[int] | None:
    """The order of 2, 3 or 4 equal blocks along an axis, where that is all that differs."""
    for count in (2, 3, 4):
        if target.shape[axis] % count:
            continue
        blocks = np.split(source, count, axis)
        parts = np.split(target, count, axis)
        order = [next((k for k, block in enumerate(blocks) if _equal(part, block)), -1) for part in parts]
        if -1 not in order and sorted(order) == list(range(count)):
            return order
    return None


def _elements(target: np.ndarray, source: np.ndarray, far: float) -> Difference:
    gap = np.abs(target - source)
    bound = pool.CLOSE * float(np.max(np.abs(source), initial=0.0))
    count = int(np.sum(gap > bound))
    place = [int(index) for index in np.unravel_index(int(np.argmax(gap)), gap.shape)]
    worst = float(np.max(gap))
    detail = f"{count} of {target.size} elements differ, largest by {worst:.4g} at {place}"
    same = correlation(target, source)
    if count <= max(1, target.size // 100):
        what = f"differs in {count} of {target.size} elements"
    elif same > 0.6:
        what = f"differs from the source's by {far:.3g} of its size"
    else:
        what = f"has nothing in common with the source's (correlation {same:.2f})"
    return Difference(what, detail, far)


def correlation(target: np.ndarray, source: np.ndarray) -> float:
    """Correlation of two arrays of equal size, read flat."""
    t, s = target.ravel() - np.mean(target), source.ravel() - np.mean(source)
    power = float(np.sqrt(np.sum(t * t) * np.sum(s * s)))
    return float(np.sum(t * s)) / power if power > 0 else 0.0
