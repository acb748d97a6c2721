"""What may stand in the place of a parameter of the target: arrays of the source, in the layout in which the target's operator reads its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trueport.diagnosis import differences, layouts, pool, recurrent
from trueport.diagnosis.operators import kind
from trueport.diagnosis.parameters import Region
from trueport.diagnosis.pool import Known
from trueport.diagnosis.region import Parameter

NEAR, NEAR_SHORT, SHORT = 0.9, 0.6, 64
"""Distance below which an array is the source's one changed: unrelated arrays are 1.4 times their size apart, and among
many arrays of less than 64 elements some are nearer by accident."""

MOST = 5
"""Arrays of the source that are tried in the place of one parameter."""


@dataclass(frozen=True, slots=True)
class Option:
    """An array for a parameter, in the shape in which its operator reads it. `label`: what of the source it is."""

    array: np.ndarray
    label: str


def options(region: Region, item: Parameter) -> list[Option]:
    """What may stand in the place of a parameter, the likeliest first, each once."""
    found: list[Option] = []
    own = np.asarray(item.array, np.float64)
    for known in _candidates(region, item):
        for array in arranged(region, known, item):
            same = any(np.array_equal(array, other.array) for other in found)
            if not same and np.all(np.isfinite(array)) and not _written_alike(array, own, item.array.dtype):
                found.append(Option(array, known.label))
        if len(found) >= MOST:
            break
    return found[:MOST]


def _written_alike(array: np.ndarray, own: np.ndarray, dtype: np.dtype) -> bool:
    """Whether nothing would change."""
    return bool(np.array_equal(array.astype(dtype), own.astype(dtype)))


# -- which array ----------------------------------------------------------------------------------------------------------


def _candidates(region: Region, item: Parameter) -> list[Known]:
    """Arrays of the source region: those that the parameter is like, then those that its operator's partner has in its
    place; what is made of parts of arrays; what a neighbour of the source region would add to it."""
    mine = pool.raw_of(item)
    if kind(item.node) == "Loop":
        return _of_loop(region, item)
    ranked = [
        *region.candidates(item), *_before_norm(region, item, mine), *_parts(region, item, mine), *_wide(region, mine)
    ]  # fmt: skip
    beside = _weights_beside(region, item)
    partners = region.partners.get(item.node.name, frozenset())
    if beside is not None and beside.parameter is not None:
        partners |= {beside.parameter.node.name}
    folded = beside is not None and beside.how == "folded weights"
    biases = frozenset(
        one.stored
        for node in region.ours
        if node.name in partners
        for one in region.source.parameters(node)
        if one.real and layouts.tight(one.array).ndim == 1
    )

    near = NEAR_SHORT if mine.array.size < SHORT else NEAR

    def order(known: Known) -> tuple[float, int]:
        far = differences.distance(mine.array, known.array) if known.array.size == mine.array.size else 1.0
        if far < near and np.any(mine.array):
            return far, 0
        shuffled = layouts.same_elements(layouts.print_of(mine.array), layouts.print_of(known.array))
        if shuffled and np.any(mine.array != mine.array.flat[0]):
            return 0.0, 0
        return NEAR, _fitness(known, item, partners, biases if folded else None)

    return sorted(ranked, key=order)


def _of_loop(region: Region, item: Parameter) -> list[Known]:
    """The parts of the source's arrays that a constant inside a loop's body may be, those last that others in there are."""
    own = layouts.tight(np.asarray(item.array, np.float64))
    if own.ndim not in (1, 2):
        return []
    arrays = {place: layouts.tight(known.array) for place, known in enumerate(region.pool.raw)}
    others = [
        layouts.tight(np.asarray(one.array, np.float64))
        for one in region.target.parameters(item.node)
        if one.real and one.name != item.name and one.array.size == item.array.size
    ]
    found: list[tuple[bool, bool, float, Known]] = []
    for place, part in recurrent.alike_parts(own, arrays):
        known = region.pool.raw[place]
        shuffled = layouts.same_elements(layouts.print_of(own), layouts.print_of(part))
        taken = any(pool.close(other, part) for other in others)
        made = Known(part.reshape(item.array.shape), known.names, "gates", parameter=known.parameter)
        found.append((taken, not shuffled, differences.distance(own, part), made))
    return [known for *_, known in sorted(found, key=lambda one: one[:3])]


def _fitness(known: Known, item: Parameter, partners: frozenset[str], folded: frozenset[str] | None) -> int:
    """How well an array fits by its role alone: 0 best. partners: the source nodes that have the operator's weights;
    folded: their biases, where a BatchNorm was folded into them."""
    vector = layouts.tight(item.array).ndim <= 1
    if vector and folded is not None:
        if "shift" not in known.how:
            return 3
        with_bias = known.how.endswith("with bias")
        return 0 if (known.names[0] in folded if with_bias else not folded) else 2 if with_bias else 1
    owner = known.parameter
    if owner is None or known.how:
        return 2
    if owner.node.name in partners and owner.slot == item.slot:
        return 0
    alike = kind(owner.node) == kind(item.node) and owner.slot == item.slot
    return 1 if alike or (owner.node.name in partners and vector == (layouts.tight(owner.array).ndim <= 1)) else 2


def _weights_beside(region: Region, item: Parameter) -> Known | None:
    """What the weights of the same operator are of the source's, or come nearest to."""
    for one in region.target.parameters(item.node):
        if one.real and layouts.tight(one.array).ndim > 1 and one.name != item.name:
            known = region.explain(one) or next(iter(region.candidates(one)), None)
            if known is not None:
                return known
    return None


def _before_norm(region: Region, item: Parameter, mine: Known) -> Iterator[Known]:
    """The source's weights with the scale of the target's own BatchNorm taken out, where the source has it folded in."""
    norm = pool.norm_behind(region.target, item.node)
    if norm is None or mine.axes is None or len(mine.array) != norm.slots["var"].size:
        return
    scale = norm.scale()
    if not np.all(scale):
        return
    for known in region.pool.raw:
        if known.axes is not None and len(known.array) == scale.size and known.array.size == mine.array.size:
            array = known.array / scale.reshape(-1, *[1] * (known.array.ndim - 1))
            yield Known(array, known.names, "weights before the scale", axes=known.axes, parameter=known.parameter)


def _wide(region: Region, mine: Known) -> Iterator[Known]:
    """Vectors that the scale and the shift right behind the source region give."""
    if layouts.tight(mine.array).ndim == 1:
        known = {id(one) for one in region.pool.everything}
        yield from (
            one for one in region.wide.vectors if one.array.size == mine.array.size and id(one) not in known and one.how
        )


def _parts(region: Region, item: Parameter, mine: Known) -> Iterator[Known]:
    """A block of a larger array of the source, or several end to end."""
    whole = _flat(mine.array)
    others = [
        _flat(pool.raw_of(one).array)
        for node in region.theirs
        for one in region.target.parameters(node)
        if one.real and one.name != item.name and one.array.size == item.array.size
    ]
    blocks: list[Known] = []
    for known in region.pool.raw:
        array = _flat(known.array)
        if array.ndim != whole.ndim or array.size <= whole.size:
            continue
        axes = [axis for axis in range(whole.ndim) if whole.shape[axis] != array.shape[axis]]
        if len(axes) != 1 or array.shape[axes[0]] % whole.shape[axes[0]]:
            continue
        split = np.split(array, array.shape[axes[0]] // whole.shape[axes[0]], axes[0])
        blocks += [
            Known(block, known.names, f"block {place}", axes=known.axes)
            for place, block in enumerate(split)
            if not any(pool.close(block, other) for other in others)
        ]
    yield from sorted(blocks, key=lambda one: differences.distance(whole, one.array))
    for axis in range(min(whole.ndim, 2)):
        joined = _joined(region, mine, axis)
        if joined is not None:
            yield joined


def _flat(array: np.ndarray) -> np.ndarray:
    """A vector without the axes of size 1 by which it broadcasts; everything else as it is."""
    tight = layouts.tight(array)
    return tight if tight.ndim == 1 else array


def _joined(region: Region, mine: Known, axis: int) -> Known | None:
    """Arrays of the source end to end, at each place the one that is most like what stands there."""
    whole, filled = mine.array, 0
    free = [one for one in region.pool.raw if one.array.ndim == whole.ndim and one.array.size < whole.size]
    taken: list[Known] = []
    while filled < whole.shape[axis]:
        fitting = []
        for known in free:
            width = known.array.shape[axis]
            part = np.take(whole, range(filled, min(filled + width, whole.shape[axis])), axis)
            if part.shape == known.array.shape and not any(known is other for other in taken):
                fitting.append((differences.distance(part, known.array), known))
        if not fitting:
            return None
        far, best = min(fitting, key=lambda pair: pair[0])
        if far > NEAR and len(fitting) > 1 and not np.any(np.abs(whole)):
            return None
        taken.append(best)
        filled += best.array.shape[axis]
    names = tuple(name for known in taken for name in known.names)
    return Known(np.concatenate([known.array for known in taken], axis), names, "joined", axes=mine.axes)


# -- in which layout ------------------------------------------------------------------------------------------------------


def arranged(region: Region, known: Known, item: Parameter) -> list[np.ndarray]:
    """An array of the source as the target's operator reads its own, the likeliest way first; nothing where no way fits."""
    mine = pool.raw_of(item)
    array = np.asarray(known.array, np.float64)
    if array.size != item.array.size:
        return []
    shape = item.array.shape
    if mine.axes is not None and known.axes is not None:
        alike = layouts.tight(array).shape == layouts.tight(mine.array).shape
        matrix = len(array) == len(mine.array) and (array.ndim == 2 or mine.array.ndim == 2)
        turned = layouts.native_of(array.reshape(mine.array.shape), mine.axes, shape) if alike or matrix else None
        return [] if turned is None else [turned]
    if layouts.tight(array).ndim <= 1:
        return [array.reshape(shape)]
    if mine.axes is not None and known.parameter is None:  # made of arrays whose layout is known
        return [layouts.native_of(array.reshape(mine.array.shape), mine.axes, shape)]
    return _by_votes(region, known, item)


def _by_votes(region: Region, known: Known, item: Parameter) -> list[np.ndarray]:
    """The ways in which other weights of the same operators lie in the target, then the way that comes nearest."""
    if known.parameter is None or known.how:
        array = np.asarray(known.array, np.float64)
        return (
            [array.reshape(item.array.shape)] if layouts.tight(array).shape == layouts.tight(item.array).shape else []
        )
    source = np.asarray(known.parameter.array, np.float64)
    votes = region.votes(layouts.key_of(item), layouts.key_of(known.parameter))
    own = np.asarray(item.array, np.float64)
    ways: list[tuple[int, float, np.ndarray]] = []
    for way, _, _ in layouts.readings(own, source):
        array = moved(source, way, item.array.shape)
        far = differences.distance(own, array)
        ways.append((-votes.get(way, 0), min(far, NEAR), array))
    return [array for _, _, array in sorted(ways, key=lambda one: one[:2])][:MOST]


def moved(source: np.ndarray, way: layouts.Moved, shape: tuple[int, ...]) -> np.ndarray:
    """Lay a source array over an array of this shape; the inverse of how `layouts.readings` compares them."""
    if way.side == "source":
        return np.transpose(layouts.tight(source), way.permutation).reshape(shape)
    tight = [size for size in shape if size != 1]
    turned = source.reshape([tight[axis] for axis in way.permutation])
    return np.transpose(turned, np.argsort(way.permutation)).reshape(shape)
