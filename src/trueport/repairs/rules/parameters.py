"""WB: a parameter that is none of the source's is set to the source's, in the layout and on the grid of the target.

Rewrite: `set-parameter` of every parameter of the region that the source region does not explain, to what the source
has in its place: as it is, or derived (a BatchNorm folded in, a block, several arrays joined). Slots of a normalisation
are filled by name. A bias that is missing altogether is added (`add-parameter`). Where several operators read one
constant that no layer of the source has, all of them are set; where it is another layer's, this one alone.
Does not apply where every parameter is explained, or the source has nothing of that size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from trueport.diagnosis import differences, folding, layouts, pool
from trueport.diagnosis.operators import kind
from trueport.diagnosis.parameters import Region, counts
from trueport.diagnosis.recurrent import KINDS, cells
from trueport.diagnosis.region import Parameter
from trueport.diagnosis.types import Cause
from trueport.frameworks._base import EditDict
from trueport.graph import Node
from trueport.repairs.rules._arranged import Option, options
from trueport.repairs.rules._stored import Place, place_of
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "WB parameters"
CAUSES = frozenset({Cause.PARAMETERS, Cause.PRECISION})

FEW, MOST_ASTRAY = 3, 4
"""Elements up to which vectors are alike by accident; how many are tried in the place of one that stands twice."""


def propose(scene: Scene) -> list[Proposal] | str:
    """Normalisations by slot; the parameters that are wrong, all at once, then each alone, then other arrays of the
    source in its place; a missing bias; what only a declared precision explains, at last."""
    region = scene.region
    if region is None:
        return "no operator of the target stands in the region"
    blamed = {(fault.node.name, fault.parameter) for fault in region.faults()}
    slots = [edits for node in scene.blamed if (edits := _slots(scene, region, node))]
    done = {edit.change.get("node") for edits in slots for edit in edits}
    open_ones = [item for item in _open(scene, region) if item.node.name not in done]
    accused = [item for item in open_ones if (item.node.name, item.stored) in blamed]
    excused = [item for item in open_ones if (item.node.name, item.stored) not in blamed]
    proposals = [Proposal(edits=edits, doubt=0.02 * place) for place, edits in enumerate(slots)]
    proposals += _of(scene, region, accused, 0.0) + _of(scene, region, excused, _excused(scene.precision))
    added = region.missing_bias() if not open_ones else None
    if added is not None:
        host, known = added
        edit = scene.edit(
            NAME,
            host.name,
            "no bias",
            f"{known.label}: {differences.shown(known.array)}",
            f"the source's {kind(host)} has the bias {known.label}",
            {"kind": "add-parameter", "node": host.name, "role": "bias", "array": "new"},
            new=_single(known.array.ravel()),
        )
        proposals.append(Proposal(edits=(edit,)))
    proposals += [
        Proposal(edits=(edit,), doubt=min(0.2 + 0.02 * place, 0.45))
        for place, edit in enumerate(itertools.islice(_astray(scene, region), MOST_ASTRAY))
    ]
    if proposals:
        return proposals
    if open_ones:
        return "the source region has no array of the size of the parameter that is wrong"
    return "every parameter of the region is one of the source's, as it is or derived"


def _excused(precision: str) -> float:
    """Doubt about a parameter that is not the source's, against which nothing speaks: a declared grid explains most."""
    return 0.1 if precision == "float32" else 0.6


def _open(scene: Scene, region: Region) -> list[Parameter]:
    """The parameters that nothing of the source region explains; those of recurrent operators have a rule of their own."""
    found = []
    for node in scene.blamed:
        own = scene.theirs.parameters(node) if scene.theirs.runs(node) else ()
        if kind(node) in KINDS and cells(own):
            continue
        if pool.norm_of(scene.theirs, node) is not None and not any(
            pool.norm_of(scene.ours, other) is not None for other in region.ours
        ):  # by slots, from a scale and a shift, or not at all
            continue
        found += [item for item in own if counts(item) and region.explain(item) is None]
    return found


def _of(scene: Scene, region: Region, items: Sequence[Parameter], doubt: float) -> list[Proposal]:
    """All of them at once, then each alone, then other arrays in its place."""
    ways = {id(item): _ways(scene, region, item) for item in items}
    firsts = [ways[id(item)][0] for item in items if ways[id(item)]]
    proposals = []
    if len(firsts) > 1:
        proposals.append(Proposal(edits=_once(edit for group in firsts for edit in group), doubt=doubt))
    for place, item in enumerate(items):
        for number, edits in enumerate(ways[id(item)]):
            more = (0.05 if len(firsts) > 1 else 0.0) + 0.01 * place + 0.08 * number
            proposals.append(Proposal(edits=edits, doubt=doubt + min(more, 0.35)))
    return proposals


def _astray(scene: Scene, region: Region) -> Iterator[Edit]:
    """Vectors that are the source's, and stand in the target a second time while another of their size stands nowhere."""
    held = [
        np.asarray(item.array, np.float64).ravel()
        for node in scene.theirs.graph.nodes
        for item in scene.theirs.parameters(node)
        if item.real and item.array.size > FEW and layouts.tight(item.array).ndim == 1
    ]
    free = [
        known
        for known in region.pool.raw
        if layouts.tight(known.array).ndim == 1 and np.any(known.array)
        if not any(pool.close(one, known.array.ravel()) for one in held if one.size == known.array.size)
    ]
    for node in scene.blamed if free else ():
        for item in scene.theirs.parameters(node) if scene.theirs.runs(node) and kind(node) != "Loop" else ():
            own = np.asarray(item.array, np.float64).ravel()
            place = place_of(scene.theirs, item) if item.real and own.size > FEW else None
            if place is None or sum(np.array_equal(own, one) for one in held if one.size == own.size) < 2:
                continue
            for known in free:
                if known.array.size == own.size:
                    option = Option(known.array.reshape(item.array.shape), known.label)
                    yield setting(scene, item, place, option, f"{known.label} of the source stands nowhere, this twice")


def _once(edits: Iterator[Edit]) -> tuple[Edit, ...]:
    """Each node's constant once, whoever asked for it first."""
    found: dict[tuple[str, str], Edit] = {}
    for edit in edits:
        found.setdefault((edit.change["node"], edit.change["parameter"]), edit)
    return tuple(found.values())


def _ways(scene: Scene, region: Region, item: Parameter) -> list[tuple[Edit, ...]]:
    """The edits that put an array of the source in the place of a parameter, the likeliest array first."""
    place = place_of(scene.theirs, item)
    if place is None:
        return []
    readers = _readers(scene, region, item)
    return [
        tuple(
            setting(scene, reader, replace(here, grid=grid), option, f"{option.label} of the source stands here")
            for reader, here in [(item, place), *readers]
        )
        for option in options(region, item)
        for grid in _grids(scene, place)
    ]


def _grids(scene: Scene, place: Place) -> tuple[str, ...]:
    """How a constant is written: on the grid that it has; where that itself may be wrong, on one of its own as well; on a
    grid that nobody declared, never."""
    if not place.narrow:
        return ("keep",)
    return ("new",) if scene.precision == "float32" else ("keep", "new")


def _readers(scene: Scene, region: Region, item: Parameter) -> list[tuple[Parameter, Place]]:
    """The other operators that read the same constant in the same way, where it is no other layer's and so wrong for all."""
    graph = scene.theirs.graph
    others = [
        graph.nodes[place]
        for place in graph.consumers.get(item.name, ())
        if graph.nodes[place].name != item.node.name and item.name in graph.constants
    ]
    if not others or region.foreign(pool.raw_of(item)) is not None:
        return []
    found = []
    for node in others:
        twin = next(one for one in scene.theirs.parameters(node) if one.name == item.name)
        place = place_of(scene.theirs, twin)
        if place is not None and kind(node) == kind(item.node) and twin.slot == item.slot:
            found.append((twin, place))
    return found


def setting(scene: Scene, item: Parameter, place: Place, option: Option, reason: str, rule: str = NAME) -> Edit:
    """The edit that sets a parameter to an array, which has the shape in which the operator reads it."""
    change: EditDict = {"kind": "set-parameter", "node": place.node, "parameter": place.parameter, "array": "new"}
    if place.grid != "keep":
        change["grid"] = place.grid
    return scene.edit(
        rule,
        item.node.name,
        f"{item.stored}: {differences.shown(item.array)}",
        f"{option.label}: {differences.shown(option.array)}",
        reason,
        change,
        new=_single(place.stored(option.array)),
    )


def _single(array: np.ndarray) -> np.ndarray:
    """As it is written: float32, where the search reckons in float64."""
    return np.ascontiguousarray(array, np.float32)


# -- normalisations ---------------------------------------------------------------------------------------------------------


def _slots(scene: Scene, region: Region, node: Node) -> tuple[Edit, ...]:
    """The edits that give each slot of a normalisation what the source's has there; nothing where that is so already,
    or the region has several that it may be."""
    mine = pool.slots_of(scene.theirs, node) if kind(node).endswith("Normalization") else {}
    fitting = []
    for other in region.ours:
        its = pool.slots_of(scene.ours, other) if kind(other) == kind(node) else {}
        if its and set(its) == set(mine) and all(its[slot].size == mine[slot].size for slot in mine):
            right = sum(pool.close(mine[slot], its[slot]) for slot in mine)
            crossed = pool.exchanged(mine, its) is not None
            fitting.append((right + 2 * crossed, other, its))
    if fitting:
        _, other, its = max(fitting, key=lambda one: one[0])
        return _filled(scene, node, mine, its, f"the source's {kind(other)} {other.shown}")
    return _of_unrolled(scene, region, node, mine) if set(mine) == {"gamma", "beta", "mean", "var"} else ()


def _of_unrolled(scene: Scene, region: Region, node: Node, mine: Mapping[str, np.ndarray]) -> tuple[Edit, ...]:
    """The same where the source has a scale and a shift: from what it works them out of, else scale and shift such that
    both come out with the mean and the variance that are there."""
    size = mine["var"].size
    fitting = [one for one in folding.unrolled(region.source, region.ours) if one.scale.size == size]
    fitting = fitting or list(folding.folded_in(region.target, node, region.source, region.ours))
    norm = pool.norm_of(scene.theirs, node)
    if not fitting or norm is None:
        return ()
    own = norm.scale()
    best = min(fitting, key=lambda one: differences.distance(own, one.scale))
    its = best.slots
    if not its:
        spread = np.sqrt(mine["var"] + norm.epsilon)
        its = {"gamma": best.scale * spread, "beta": best.shift + mine["mean"] * best.scale}
    return _filled(scene, node, mine, its, f"the source's scale and shift at {best.nodes[0].shown}")


def _filled(
    scene: Scene, node: Node, mine: Mapping[str, np.ndarray], its: Mapping[str, np.ndarray], owner: str
) -> tuple[Edit, ...]:
    items = pool.slot_parameters(scene.theirs, node)
    edits = []
    for slot, array in its.items():
        item = items.get(slot)
        if item is None or pool.close(mine[slot], array):
            continue
        place = place_of(scene.theirs, item)
        if place is not None:
            option = Option(np.reshape(array, item.array.shape), f"{slot} of {owner}")
            edits.append(setting(scene, item, place, option, f"{slot} of {owner} stands here"))
    return tuple(edits)
