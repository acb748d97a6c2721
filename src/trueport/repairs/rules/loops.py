"""WB: constants in the body of a loop that are the source's, and stand in the wrong place or the wrong way round.

Rewrite: `set-parameter` of a constant inside a loop that computes a recurrent layer step by step: one that is zero or
stands there twice, to a part of the source's that stands nowhere; a square matrix, to its transpose; a single number that nobody
writes down, to the one that was meant.
Does not apply where the region has no loop, or where its constants leave no such doubt.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trueport.diagnosis import layouts, pool, recurrent, scalars
from trueport.diagnosis.operators import kind
from trueport.diagnosis.parameters import Region
from trueport.diagnosis.region import Parameter
from trueport.diagnosis.types import Cause
from trueport.graph import Node
from trueport.repairs.rules._arranged import Option
from trueport.repairs.rules._stored import place_of
from trueport.repairs.rules.parameters import setting
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "WB loops"
CAUSES = frozenset({Cause.PARAMETERS})

MOST = 4
"""Arrays, or numbers, that are tried in one place."""

UNIT = 1.0
"""The number of gates themselves: what a gate does not let through is the rest of 1."""


def propose(scene: Scene) -> list[Proposal] | str:
    """What stands twice, then what may be the wrong way round, then single numbers."""
    region = scene.region
    nodes = [node for node in scene.blamed if kind(node) == "Loop" and scene.theirs.runs(node)]
    if region is None or not nodes:
        return "no loop of the target stands in the region"
    proposals = []
    for doubt, way in ((0.15, _astray), (0.25, _turned), (0.3, _numbers)):
        edits = [edit for node in nodes for edit in way(scene, region, node)]
        proposals += [
            Proposal(edits=(edit,), doubt=min(doubt + 0.01 * place, 0.45)) for place, edit in enumerate(edits)
        ]
    return proposals or "the constants of the loop are the source's, each once and in one order only"


def _inner(scene: Scene, node: Node, least: int = 2) -> list[tuple[Parameter, np.ndarray]]:
    """The constants of floats inside a loop, and their arrays without axes of size 1."""
    items = [item for item in scene.theirs.parameters(node) if item.real and item.array.size >= least]
    return [(item, layouts.tight(np.asarray(item.array, np.float64))) for item in items]


def _set(scene: Scene, item: Parameter, array: np.ndarray, label: str, reason: str) -> Iterator[Edit]:
    place = place_of(scene.theirs, item)
    if place is not None:
        yield setting(scene, item, place, Option(array.reshape(item.array.shape), label), reason, NAME)


def _astray(scene: Scene, region: Region, node: Node) -> Iterator[Edit]:
    """Constants that two operators of the body have alike, or that are zero, while a part of the source of their size is
    nowhere."""
    inner = _inner(scene, node)
    arrays = {", ".join(known.names): layouts.tight(known.array) for known in region.pool.raw}
    for place, (item, own) in enumerate(inner):
        twins = [other for number, (_, other) in enumerate(inner) if number != place and other.shape == own.shape]
        lost = own.ndim == 1 and not np.any(own)
        if own.ndim not in (1, 2) or not (lost or any(np.array_equal(own, other) for other in twins)):
            continue
        free = [
            (name, part)
            for name, part in recurrent.alike_parts(own, arrays)
            if np.any(part) and not any(pool.close(other, part) for _, other in inner if other.shape == own.shape)
        ]
        for name, part in free[:MOST]:
            yield from _set(scene, item, part, name, f"{name} of the source stands nowhere in the loop")


def _turned(scene: Scene, region: Region, node: Node) -> Iterator[Edit]:
    """Square matrices: whether they are read as they lie or transposed is not told by their numbers."""
    for item, own in _inner(scene, node):
        if own.ndim == 2 and own.shape[0] == own.shape[1] and not np.array_equal(own, own.T):
            known = region.explain(item)
            if known is not None:
                label = f"{known.label}, transposed"
                yield from _set(scene, item, own.T, label, "the matrix is read the other way round in the source")


def _numbers(scene: Scene, region: Region, node: Node) -> Iterator[Edit]:
    """Single numbers that are neither the source's nor what decompositions bring along."""
    stretch = scene.stretch
    for item, own in _inner(scene, node, 1):
        if own.size != 1 or stretch is None or not np.isfinite(own.flat[0]):
            continue
        seen = scalars.inner(stretch.source, stretch.ours, node, float(own.flat[0]), item.stored)
        if seen is not None:
            meant = [UNIT, *scalars.likely(stretch.source, stretch.ours, seen)]
            for value in dict.fromkeys(meant[:MOST]):
                reason = f"no step of the source computes with {seen.number:.6g}"
                yield from _set(scene, item, np.asarray(value), f"{value:.6g}", reason)
