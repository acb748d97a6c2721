"""WB: the gates of a recurrent operator are those of the source, in the order and the packing that the target's format reads.

Rewrite: `set-parameter` of each packed array of an LSTM, GRU or RNN in which a gate's matrix or bias is not the source's;
the blocks that are right stay as they are. Loops that compute a cell step by step get whole packed matrices.
Does not apply where the packing is not known, or every gate is the source's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from trueport.diagnosis import layouts, recurrent
from trueport.diagnosis.operators import kind
from trueport.diagnosis.parameters import Region
from trueport.diagnosis.recurrent import Cell
from trueport.diagnosis.region import Parameter
from trueport.diagnosis.types import Cause
from trueport.repairs.rules._arranged import Option
from trueport.repairs.rules._stored import place_of
from trueport.repairs.rules.parameters import setting
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "WB recurrent"
CAUSES = frozenset({Cause.PARAMETERS, Cause.PRECISION})

MOST = 4
"""Ways to pair a target's cells with the source's that are tried."""

NEAREST = 4
"""Source cells that are considered for one of the target's."""


def propose(scene: Scene) -> list[Proposal] | str:
    """For each recurrent operator of the region: all of its wrong gates at once, the likeliest source cells first."""
    region = scene.region
    if region is None:
        return "no operator of the target stands in the region"
    nodes = [node for node in scene.blamed if kind(node) in recurrent.KINDS and scene.theirs.runs(node)]
    if not nodes:
        return "no recurrent operator of the target stands in the region"
    proposals: list[Proposal] = []
    for place, node in enumerate(nodes):
        items = scene.theirs.parameters(node)
        for number, arrays in enumerate(itertools.islice(rebuilt(items, _sources(region), _loose(region)), MOST)):
            edits = tuple(edit for item, array in arrays for edit in _set(scene, item, array))
            if edits:
                proposals.append(Proposal(edits=edits, doubt=min(0.1 * place + 0.05 * number, 0.45)))
    return proposals or "every gate of the region's recurrent operators is the source's, or their packing is not known"


def _set(scene: Scene, item: Parameter, array: np.ndarray) -> Iterator[Edit]:
    place = place_of(scene.theirs, item)
    if place is not None:
        option = Option(array, "the source's gates")
        yield setting(scene, item, place, option, f"gates of {kind(item.node)} in the order that it reads", NAME)


def _sources(region: Region) -> list[Cell]:
    return [cell for node in region.ours for cell in recurrent.cells(region.source.parameters(node))]


def _loose(region: Region) -> dict[str, np.ndarray]:
    """The arrays of a source that computes its cells step by step."""
    return {", ".join(known.names): layouts.tight(known.array) for known in region.pool.raw}


# -- packed arrays --------------------------------------------------------------------------------------------------------

Rebuilt = list[tuple[Parameter, np.ndarray]]
"""Parameters that change, with what they become."""


def rebuilt(items: Sequence[Parameter], sources: Sequence[Cell], loose: Mapping[str, np.ndarray]) -> Iterator[Rebuilt]:
    """What the packed parameters of a recurrent node should be, the likeliest way first; nothing where that is so already.

    sources: the cells of the source. loose: its arrays by name, where it has no recurrent operator.
    """
    targets = recurrent.cells(items)
    indices = recurrent.cells([_numbered(item, offset) for item, offset in _offsets(items)])
    if not targets or len(targets) != len(indices):
        return
    seen: list[np.ndarray] = []
    ways = _pairings(targets, sources) if sources else _found(targets, loose)
    for chosen in ways:
        flat = np.concatenate([np.asarray(item.array, np.float64).ravel() for item in items if _counts(item)])
        for cell, index, source in zip(targets, indices, chosen, strict=True):
            if source is not None:
                _fill(flat, cell, index, source)
        if any(np.array_equal(flat, other) for other in seen):
            continue
        seen.append(flat)
        changed = [
            (item, flat[offset : offset + item.array.size].reshape(item.array.shape))
            for item, offset in _offsets(items)
            if not np.array_equal(flat[offset : offset + item.array.size], np.asarray(item.array, np.float64).ravel())
        ]
        if changed:
            yield changed


def _counts(item: Parameter) -> bool:
    return item.real


def _offsets(items: Sequence[Parameter]) -> list[tuple[Parameter, int]]:
    """Each parameter of floats, and where it begins when all of them are laid end to end."""
    floats = [item for item in items if _counts(item)]
    ends = np.cumsum([item.array.size for item in floats]).tolist()
    return list(zip(floats, [0, *ends], strict=False))


def _numbered(item: Parameter, offset: int) -> Parameter:
    """The same parameter holding the number of each element: taken apart, it tells where a block lies."""
    return replace(item, array=np.arange(offset, offset + item.array.size, dtype=np.float64).reshape(item.array.shape))


def _fill(flat: np.ndarray, cell: Cell, index: Cell, source: Cell) -> None:
    """Put the source's block wherever the target's is another."""
    for part, gate in recurrent.differing(cell, source):
        if part in ("W", "R"):
            flat[_places(index, part, gate)] = source.blocks[part, gate]
            continue
        theirs = [part for part in ("Wb", "Rb") if (part, gate) in index.blocks]
        ours = [part for part in ("Wb", "Rb") if (part, gate) in source.blocks]
        if not theirs:
            continue
        if len(theirs) == len(ours):
            for name in theirs:
                flat[_places(index, name, gate)] = source.blocks[name, gate]
        else:
            flat[_places(index, theirs[0], gate)] = source.bias(gate)
            for name in theirs[1:]:
                flat[_places(index, name, gate)] = 0.0


def _places(index: Cell, part: str, gate: str) -> np.ndarray:
    return np.asarray(np.rint(index.blocks[part, gate]), np.int64)


def _pairings(targets: Sequence[Cell], sources: Sequence[Cell]) -> Iterator[list[Cell | None]]:
    """Which source cell each target cell is, each source cell once: as many as possible, the most alike first, and among
    equals those in the order in which they stand. None for a target cell that is left as it is: the source region may
    have one direction only."""
    choices = [[*_ranked(cell, recurrent.alike(cell, sources))[:NEAREST], None] for cell in targets]
    found: list[tuple[int, float, list[Cell | None]]] = []
    for chosen in itertools.product(*choices):
        used = [id(cell) for cell in chosen if cell is not None]
        if used and len(used) == len(set(used)):
            unlike = sum(_unlike(own, cell) for own, cell in zip(targets, chosen, strict=True) if cell is not None)
            found.append((-len(used), unlike, list(chosen)))
    yield from (cells for *_, cells in sorted(found, key=lambda one: one[:2]))


def _ranked(target: Cell, sources: Sequence[Cell]) -> list[Cell]:
    """The source's cells, the most alike first."""
    return sorted(sources, key=lambda cell: _unlike(target, cell))


def _unlike(target: Cell, source: Cell) -> float:
    """How many blocks are not the source's, those that are no block of the source at all counted more."""
    wrong = [place for place in recurrent.differing(target, source) if place in target.blocks]
    total = 0.0
    for place in wrong:
        block, own = target.blocks[place], source.blocks.get(place)
        size = float(np.sqrt(np.sum(np.square(block)))) or 1.0
        total += 1.0 if own is None else min(1.5, float(np.sqrt(np.sum(np.square(block - own)))) / size)
    return total


# -- a source that computes its cells step by step ------------------------------------------------------------------------


def _found(targets: Sequence[Cell], loose: Mapping[str, np.ndarray]) -> Iterator[list[Cell | None]]:
    """The cells told by what they are like; then by the sizes of packed matrices, for one target cell after the other."""
    yield [_gathered(cell, loose) for cell in targets]
    for place, cell in enumerate(targets):
        for made in _whole(cell, loose):
            yield [made if number == place else None for number in range(len(targets))]


def _whole(cell: Cell, loose: Mapping[str, np.ndarray]) -> Iterator[Cell]:
    """The cells that packed matrices of the right sizes make, in every order in which formats pack the gates."""
    hidden, width = cell.blocks["W", cell.order[0]].shape
    rows = hidden * len(cell.order)
    matrices = [array for array in loose.values() if array.ndim == 2]
    kernels, recurrents = (_sized(matrices, rows, columns) for columns in (width, hidden))
    if width == hidden:
        kernels, recurrents = kernels[0::2], kernels[1::2]
    vectors = _vectors(loose, rows)
    for order in recurrent.packings(cell.order):
        for kernel, inner in itertools.product(kernels, recurrents):
            blocks: dict[tuple[str, str], np.ndarray] = {}
            for part, array in (("W", kernel), ("R", inner), *zip(("Wb", "Rb"), vectors, strict=False)):
                blocks |= {(part, gate): one for gate, one in zip(order, np.split(array, len(order)), strict=True)}
            yield Cell(cell.label, blocks, cell.order, ())


def _sized(matrices: Sequence[np.ndarray], rows: int, columns: int) -> list[np.ndarray]:
    """The matrices of a size, turned so that the gates lie along the first axis."""
    upright = [array if array.shape == (rows, columns) else array.T for array in matrices]
    return [array for array in upright if array.shape == (rows, columns)]


def _vectors(loose: Mapping[str, np.ndarray], size: int) -> list[np.ndarray]:
    """The packed biases: vectors of that size, also two in one array."""
    found: list[np.ndarray] = []
    for array in loose.values():
        if array.shape == (size,):
            found.append(array)
        elif array.shape == (2, size):
            found += [array[0], array[1]]
    return found


def _gathered(cell: Cell, loose: Mapping[str, np.ndarray]) -> Cell | None:
    """The cell that a source's matrices and vectors hold, which are most like it; None where a gate is not found there."""
    blocks: dict[tuple[str, str], np.ndarray] = {}
    packing = recurrent.packing(cell.order)
    matrices = {name: array for name, array in loose.items() if array.ndim == 2}
    for part in ("W", "R"):
        found = {gate: _nearest(cell.blocks[part, gate], matrices) for gate in cell.order}
        if any(near is None for near in found.values()):
            return None
        places = [near for near in found.values() if near is not None]
        packed = len({name for name, _, _ in places}) == 1 and len({place for _, place, _ in places}) == len(places)
        by_place = {place: block for _, place, block in places}
        in_order = packed and packing is not None and sorted(by_place) == list(range(len(cell.order)))
        for gate, near in found.items():
            if near is not None:
                blocks[part, gate] = by_place[packing.index(gate)] if in_order and packing is not None else near[2]
    return Cell(cell.label, {**blocks, **_biases(cell, loose, packing)}, cell.order, ())


def _nearest(block: np.ndarray, arrays: Mapping[str, np.ndarray]) -> tuple[str, int, np.ndarray] | None:
    near = min(recurrent.cut_out(block, arrays), key=lambda item: _far(block, item[2]), default=None)
    return near if near is not None and _far(block, near[2]) < recurrent.UNLIKE else None


def _far(block: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(block - other) / max(float(np.linalg.norm(other)), 1e-30))


def _biases(cell: Cell, loose: Mapping[str, np.ndarray], packing: str | None) -> dict[tuple[str, str], np.ndarray]:
    """The biases of all gates: the packed vector, or the sum of two, that is most like the cell's own."""
    count = len(cell.order)
    size = len(cell.blocks["W", cell.order[0]])
    own = {gate: cell.bias(gate) for gate in cell.order}
    kept = {
        (part, gate): cell.blocks[part, gate]
        for part in ("Wb", "Rb")
        for gate in cell.order
        if (part, gate) in cell.blocks
    }
    if packing is None or not kept:
        return kept
    rows = _vectors(loose, count * size)
    mine = np.concatenate([own[gate] for gate in packing])
    if not np.any(mine):
        parts = [(part, np.split(row, count)) for part, row in zip(("Wb", "Rb"), rows, strict=False)]
        return {(part, gate): block for part, split in parts for gate, block in zip(packing, split, strict=True)}
    sums = [*rows, *(one + two for one, two in itertools.combinations(rows, 2))]
    best = min(sums, key=lambda flat: _far(mine, flat), default=None)
    if best is None:
        return kept
    split = dict(zip(packing, np.split(best, count), strict=True))
    return {("Wb", gate): split[gate] for gate in cell.order}
