"""WB: a parameter that is none of the source's is set to the source's, in the layout and on the grid of the target.

Rewrite: `set-parameter` of every parameter of the region that the source region does not explain, to what the source
has in its place: as it is, or derived (a BatchNorm folded in, a scaled weight).
Does not apply where every parameter is explained, or the source has nothing of that size.
"""

from __future__ import annotations

import numpy as np

from trueport.diagnosis import differences, layouts, pool
from trueport.diagnosis.parameters import Region, counts
from trueport.diagnosis.pool import Known
from trueport.diagnosis.region import Parameter
from trueport.diagnosis.types import Cause
from trueport.repairs.rules._stored import place_of
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "WB parameters"
CAUSES = frozenset({Cause.PARAMETERS, Cause.PRECISION})

MOST = 4
"""Arrays of the source that are tried in the place of one parameter."""


def propose(scene: Scene) -> list[Proposal] | str:
    """All open parameters at once first; then each alone, and other arrays of the source in its place."""
    region = scene.region
    if region is None:
        return "no operator of the target stands in the region"
    region.faults()
    open_ones = [
        item
        for node in scene.blamed
        if scene.theirs.runs(node)
        for item in scene.theirs.parameters(node)
        if counts(item) and region.explain(item) is None
    ]
    if not open_ones:
        return "every parameter of the region is one of the source's, as it is or derived"
    options = {id(item): _edits(scene, region, item) for item in open_ones}
    firsts = [options[id(item)][0] for item in open_ones if options[id(item)]]
    if not firsts:
        return "the source region has no array of the size of the parameter that is wrong"
    proposals = [Proposal(edits=tuple(firsts))]
    if len(firsts) > 1:
        proposals += [Proposal(edits=(edit,), doubt=0.1) for edit in firsts]
    for item in open_ones:
        proposals += [
            Proposal(edits=(edit,), doubt=0.2 + 0.1 * place) for place, edit in enumerate(options[id(item)][1:], 1)
        ]
    return proposals


def _edits(scene: Scene, region: Region, item: Parameter) -> list[Edit]:
    """The edits that put an array of the source in the place of a parameter, the likeliest first."""
    place = place_of(scene.theirs, item)
    if place is None:
        return []
    found = []
    for known in region.candidates(item)[:MOST]:
        array = in_layout(known, item)
        if array is None:
            continue
        what = f"{known.label} of the source stands here"
        found.append(
            scene.edit(
                NAME,
                item.node.name,
                f"{item.stored}: {differences.shown(item.array)}",
                f"{known.label}: {differences.shown(array)}",
                what,
                {"kind": "set-parameter", "node": place.node, "parameter": place.parameter, "array": "new"},
                new=place.stored(array),
            )
        )
    return found


def in_layout(known: Known, item: Parameter) -> np.ndarray | None:
    """An array of the source in the layout in which the target's operator reads its own; None where that is not known."""
    mine = pool.raw_of(item)
    array = np.asarray(known.array, np.float64)
    if array.size != item.array.size:
        return None
    if mine.axes is not None and known.axes is not None:
        flat = (
            array.reshape(mine.array.shape) if layouts.tight(array).shape == layouts.tight(mine.array).shape else None
        )
        return None if flat is None else layouts.native_of(flat, mine.axes, item.array.shape)
    if layouts.tight(array).ndim <= 1 or layouts.tight(array).shape == layouts.tight(item.array).shape:
        return array.reshape(item.array.shape)
    return None
