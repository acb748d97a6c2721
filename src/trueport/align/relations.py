"""Which relation makes one value another: a permutation of the axes, read flat on either side.

Relations are tried on a few sampled elements first; only the best are tried on the whole value.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from trueport.align.info import PROBES, Info, numbers, rms
from trueport.align.types import Relation

MAX_RANK = 5
"""Squeezed axes up to which permutations are searched: 120 of them."""


@functools.lru_cache(maxsize=4096)
def possible(source: tuple[int, ...], target: tuple[int, ...]) -> tuple[Relation, ...]:
    """Every relation that the squeezed shapes allow, the plain one first.

    Equal ranks: the permutations that give the target's sizes, and the plain reading. Otherwise (reshapes, merged or split axes): all
    permutations of either side, read flat.
    """
    if max(len(source), len(target)) > MAX_RANK:
        same = source == target or np.prod(source, dtype=np.int64) == np.prod(target, dtype=np.int64)
        return (Relation(tuple(range(len(source)))),) if same else ()
    if len(source) == len(target):
        found = [
            Relation(axes)
            for axes in itertools.permutations(range(len(source)))
            if tuple(source[axis] for axis in axes) == target
        ]
        if found:
            flat = Relation(tuple(range(len(source))))  # a reshape where a transpose was meant
            return tuple(found) if flat in found else (*found, flat)
    sides = [Relation(axes) for axes in itertools.permutations(range(len(source)))]
    sides += [Relation(axes, "target") for axes in itertools.permutations(range(len(target)))][1:]
    return tuple(sides)


@functools.lru_cache(maxsize=2048)
def places(relation: Relation, source: tuple[int, ...], target: tuple[int, ...], count: int) -> np.ndarray:
    """Flat source index of each of `count` sampled flat target indices."""
    sampled = samples(count)
    if relation.side == "source":
        turned = tuple(source[axis] for axis in relation.permutation)
        parts = np.unravel_index(sampled, turned) if turned else ()
        back: list[np.ndarray] = [np.zeros(0, np.int64)] * len(source)
        for axis, part in zip(relation.permutation, parts, strict=True):
            back[axis] = part
        return np.ravel_multi_index(tuple(back), source) if source else np.zeros(len(sampled), np.int64)
    parts = np.unravel_index(sampled, target) if target else ()
    turned = tuple(target[axis] for axis in relation.permutation)
    chosen = tuple(parts[axis] for axis in relation.permutation)
    return np.ravel_multi_index(chosen, turned) if target else np.zeros(len(sampled), np.int64)


@functools.lru_cache(maxsize=1024)
def samples(count: int) -> np.ndarray:
    """Flat indices of the elements that stand for a value of `count` elements; the same for every value of that size."""
    if count <= PROBES:
        return np.arange(count)
    return np.sort(np.random.default_rng(count).choice(count, PROBES, replace=False))


def sampled_errors(
    source: np.ndarray, source_info: Info, target: np.ndarray, target_info: Info, relations: Sequence[Relation]
) -> np.ndarray:
    """The error of each relation on the sampled elements, divided by the source's unit."""
    runs = target.shape[0]
    wanted = numbers(target.reshape(runs, -1)[:, samples(target_info.size)])
    flat = source.reshape(runs, -1)
    errors = [
        rms(wanted - numbers(flat[:, places(relation, source_info.tight, target_info.tight, target_info.size)]))
        for relation in relations
    ]
    return np.array(errors) / source_info.unit


def error(source: np.ndarray, target: np.ndarray, relation: Relation, unit: float) -> float:
    """rms(target - relation(source)) / unit over whole values; infinite where sizes or finiteness differ."""
    if source[0].size != target[0].size or source.shape[0] != target.shape[0]:
        return float("inf")
    turned = numbers(relation.to_target(np.asarray(source), target.shape[1:]))
    with np.errstate(invalid="ignore", over="ignore"):
        found = rms(numbers(target) - turned) / unit
    if np.isnan(found):
        return _nonfinite_error(turned, numbers(target), unit)
    return found


def _nonfinite_error(turned: np.ndarray, target: np.ndarray, unit: float) -> float:
    """Infinite where non-finite elements stand at different places; else the error of the finite ones."""
    same = (np.isfinite(turned) == np.isfinite(target)).all() and np.array_equal(
        turned[~np.isfinite(turned)], target[~np.isfinite(target)], equal_nan=True
    )
    if not same:
        return float("inf")
    finite = np.isfinite(turned)
    unit = unit if np.isfinite(unit) else max(rms(turned[finite]), 1e-30)
    return rms(target[finite] - turned[finite]) / unit


def best(
    source: np.ndarray,
    source_info: Info,
    target: np.ndarray,
    target_info: Info,
    votes: dict[Relation, int],
    *,
    enough: float,
) -> tuple[Relation, float] | None:
    """The relation with the smallest error on the whole value; among equals the one that more of the model follows.

    None when the shapes allow no relation.
    """
    relations = possible(source_info.tight, target_info.tight)
    if not relations:
        return None
    sampled = sampled_errors(source, source_info, target, target_info, relations)
    order = sorted(
        range(len(relations)), key=lambda i: (_step(float(sampled[i]), enough), -votes.get(relations[i], 0), i)
    )
    found: tuple[Relation, float] | None = None
    for place in order[:3]:
        if found is not None and sampled[place] > max(enough, 4 * found[1]):
            break
        whole = error(source, target, relations[place], source_info.unit)
        if found is None or whole < found[1] * 0.5:
            found = (relations[place], whole)
        if whole <= enough:
            break
    return found


def _step(value: float, enough: float) -> float:
    """Errors that are small enough count as equal, so that votes decide between them."""
    return 0.0 if value <= enough else value
