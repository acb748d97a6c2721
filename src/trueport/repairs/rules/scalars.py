"""WB: a single number that is not the source's (a factor, an epsilon, an index) is set to the source's.

Rewrite: `set-parameter` of a constant of one value, or `set-attribute` where the number is an attribute, to what the
source has for it, as it is or derived (inverted, squared, the root of a size). An index is the one at which the
operator's data holds what the source's value is; an index into a shape is another axis of it.
Does not apply where all numbers of the region stand in the source, and no operator takes elements at constant places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from trueport.diagnosis import scalars
from trueport.diagnosis.operators import kind
from trueport.diagnosis.region import Parameter
from trueport.diagnosis.scalars import Odd
from trueport.diagnosis.structure import Stretch
from trueport.diagnosis.types import Cause
from trueport.frameworks._base import EditDict
from trueport.graph import Node
from trueport.repairs.rules._stored import place_of
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "WB scalars"
CAUSES = frozenset({Cause.PARAMETERS, Cause.HYPERPARAMETERS})

MOST = 6
"""Numbers, or places, that are tried for one."""

BLAMED, DEPTH, FEW = 3, 6, 64
"""Operators of the region for which sizes are looked up, how far back, and how many numbers such a value has."""

NEAR = 1e-2
"""Difference, as a share of the size, up to which elements are those that the source has there."""

_ROOTS = ("Sqrt", "Rsqrt", "Pow")

EXACT = 1e-4
"""Relative difference up to which a measured number is one that is known: values carry the rounding of all before them."""

_Array = np.ndarray


def propose(scene: Scene) -> list[Proposal] | str:
    """Epsilons and other numbers, each alone and all at once; then indices of what was taken from data or from a shape."""
    stretch = scene.stretch
    if stretch is None:
        return "no operator of the target stands in the region"
    groups = [list(_numbers(scene, stretch, odd)) for odd in _odd(stretch)]
    groups += [list(_measured(scene, stretch, node)) for node in scene.blamed if kind(node) in _SOLVED]
    groups += [list(_indices(scene, node)) for node in _gathers(scene)]
    groups = [group for group in groups if group]
    firsts = tuple({id(group[0]): group[0] for group in groups}.values())
    proposals = [
        Proposal(edits=(edit,), doubt=min(0.02 * place + 0.07 * number, 0.45))
        for place, group in enumerate(groups)
        for number, edit in enumerate(group)
    ]
    if len(firsts) > 1:
        proposals.append(Proposal(edits=firsts, doubt=0.3))
    return proposals or "every number of the region stands in the source too, and nothing is taken at constant places"


# -- numbers --------------------------------------------------------------------------------------------------------------


def _odd(stretch: Stretch) -> list[Odd]:
    """Epsilons first: they are the surer ones. Each node's number once."""
    sides = stretch.source, stretch.target, stretch.ours, _with_guards(stretch)
    found: dict[tuple[str, float], Odd] = {}
    for odd in (*scalars.epsilons(*sides), *sorted(scalars.odd(*sides), key=lambda one: -one.weight)):
        found.setdefault((odd.node.name, odd.number), odd)
    return list(found.values())


def _with_guards(stretch: Stretch) -> tuple[Node, ...]:
    """The region, and before each of its roots what is added to what the root is taken of: too little to show there."""
    target = stretch.target
    names = {name for node in stretch.theirs if kind(node) in _ROOTS for name in target.data(node)}
    made = [node for node in target.graph.nodes if kind(node) == "Add" and names.intersection(node.outputs)]
    return (*stretch.theirs, *(node for node in made if node not in stretch.theirs))


def _numbers(scene: Scene, stretch: Stretch, odd: Odd) -> Iterator[Edit]:
    for value in scalars.likely(stretch.source, stretch.ours, odd)[:MOST]:
        change = _change(scene, odd, value)
        if change is not None:
            reason = f"{kind(odd.node)} computes with {value:.6g} in the source"
            yield scene.edit(NAME, odd.node.name, odd.number, value, reason, change[0], **change[1])


def _change(scene: Scene, odd: Odd, value: float) -> tuple[EditDict, dict[str, np.ndarray]] | None:
    """What is written for another number: into its constant, or into the attribute that holds it."""
    if odd.parameter is None:
        names = [name for name, own in odd.node.attributes.items() if _is(own, odd.number)]
        if len(names) != 1:
            return None
        return {"kind": "set-attribute", "node": odd.node.name, "attribute": names[0], "value": value}, {}
    item = next(one for one in scene.theirs.parameters(odd.node) if one.stored == odd.parameter)
    place = place_of(scene.theirs, item)
    if place is None:
        return None
    new = place.stored(np.full(item.array.shape, value, item.array.dtype))
    return {"kind": "set-parameter", "node": place.node, "parameter": place.parameter, "array": "new"}, {"new": new}


def _is(own: object, number: float) -> bool:
    return isinstance(own, (int, float)) and not isinstance(own, bool) and float(own) == number


_SOLVED: dict[str, tuple[Callable[[_Array, _Array], float], Callable[[_Array, _Array], float]]] = {
    "Add": (lambda x, y: float(np.mean(y - x)), lambda x, y: float(np.mean(y - x))),
    "Sub": (lambda x, y: float(np.mean(x - y)), lambda x, y: float(np.mean(y + x))),
    "Mul": (lambda x, y: _ratio(x, y), lambda x, y: _ratio(x, y)),
    "Div": (lambda x, y: 1 / _ratio(x, y), lambda x, y: float(np.mean(x * y))),
}
"""Operator -> its constant, from its data x and its result y: as the second operand, and as the first."""

_APPLIED: dict[str, Callable[[_Array, _Array], _Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
}


def _ratio(x: _Array, y: _Array) -> float:
    return float(np.sum(x * y)) / (float(np.sum(x * x)) or np.nan)


def _measured(scene: Scene, stretch: Stretch, node: Node) -> Iterator[Edit]:
    """The number that makes of an operator's data what the source has behind it; one that the source gives, if it is near."""
    items = [one for one in scene.theirs.parameters(node) if one.real and one.array.size == 1]
    data, name = scene.theirs.data(node), node.outputs[0]
    if len(items) != 1 or len(data) != 1 or (name != scene.finding.target and scene.match(name) is None):
        return
    values = scene.pair.theirs.values
    x, y = (np.asarray(values[one], np.float64) for one in (data[0], name))
    own, first = float(items[0].array.ravel()[0]), items[0].slot == 0
    with np.errstate(all="ignore"):
        found = _SOLVED[kind(node)][int(first)](x, y) if x.shape == y.shape else np.nan
        made = _APPLIED[kind(node)](*((found, x) if first else (x, found)))
    if not np.isfinite(found) or not np.max(np.abs(made - y)) <= EXACT * np.max(np.abs(y)) or _near(found, own):
        return
    odd = Odd(node, Cause.PARAMETERS, "", None, own, 0.0, (), items[0].stored, own)
    beside = replace(odd, number=found * 1.01)  # what equals the number itself is left out there
    known = [*scalars.likely(stretch.source, stretch.ours, beside), 0.0]
    value = min((one for one in known if _near(one, found)), key=lambda one: abs(one - found), default=found)
    change = _change(scene, odd, value)
    if change is not None:
        reason = f"with {value:.6g} the result is the source's"
        yield scene.edit(NAME, node.name, own, value, reason, change[0], **change[1])


def _near(one: float, other: float) -> bool:
    return abs(one - other) <= EXACT * max(abs(one), abs(other), EXACT)


# -- indices --------------------------------------------------------------------------------------------------------------


def _gathers(scene: Scene) -> list[Node]:
    """The operators of the region that take elements, and those that take a size for an operator of the region."""
    graph = scene.theirs.graph
    found = [node for node in scene.blamed if kind(node) == "Gather"]
    front = [name for node in scene.blamed[:BLAMED] for name in node.inputs]
    for _ in range(DEPTH):
        made = [node for name in front if (node := graph.producer(name)) is not None and _counts(scene, name)]
        found += [node for node in made if kind(node) == "Gather" and node not in found]
        front = [name for node in made for name in node.inputs if name in scene.theirs.dynamic]
    return found


def _counts(scene: Scene, name: str) -> bool:
    """Whether a value is one of sizes: a few integers."""
    array = scene.pair.theirs.values.get(name)
    return array is not None and array.dtype.kind in "iu" and array[0].size <= FEW


def _indices(scene: Scene, node: Node) -> Iterator[Edit]:
    """Other constant indices of a Gather: where its data holds what the source has; else, of a shape or a few elements,
    each of the others."""
    items = [item for item in scene.theirs.parameters(node) if item.array.dtype.kind in "iu" and item.slot > 0]
    data = scene.theirs.data(node)
    if not items or not data or data[0] != node.inputs[0]:
        return
    item = items[0]
    read = np.asarray(scene.pair.theirs.values[data[0]])
    axis = int(node.attributes.get("axis", 0) or 0) % (read.ndim - 1) + 1 if read.ndim > 1 else 0
    if not axis:
        return
    size = read.shape[axis]
    found = _where(scene, node, item, read, axis)
    places = [found] if found is not None else _others(item, read, axis, size)
    for new in places[:MOST]:
        if np.array_equal(new % size, item.array % size):
            continue
        place = place_of(scene.theirs, item)
        if place is not None:
            change: EditDict = {
                "kind": "set-parameter", "node": place.node, "parameter": place.parameter, "array": "new"
            }  # fmt: skip
            array = place.stored(np.asarray(new, item.array.dtype))
            reason = "these elements are what the source has here"
            yield scene.edit(NAME, node.name, item.array.tolist(), new.tolist(), reason, change, new=array)


def _where(scene: Scene, node: Node, item: Parameter, read: np.ndarray, axis: int) -> np.ndarray | None:
    """The indices at which the data holds the source's value; None where that value is not known, or not in there."""
    name = node.outputs[0]
    if read.dtype.kind != "f" or (name != scene.finding.target and scene.match(name) is None):
        return None
    wanted = np.asarray(scene.pair.theirs.values[name], np.float64)
    parts = np.moveaxis(np.asarray(read, np.float64), axis, 0)
    flat = item.array.reshape(-1)
    rank = item.array.ndim
    pieces = np.moveaxis(
        wanted.reshape([*wanted.shape[:axis], flat.size, *wanted.shape[axis + rank :]]), axis, 0
    )  # fmt: skip
    if pieces.shape[1:] != parts.shape[1:]:
        return None
    found = []
    for piece in pieces:
        size = float(np.sqrt(np.mean(np.square(piece)))) or 1.0
        far = [float(np.sqrt(np.mean(np.square(part - piece)))) / size for part in parts]
        if min(far) > NEAR:
            return None
        found.append(int(np.argmin(far)))
    return np.asarray(found).reshape(item.array.shape)


def _others(item: Parameter, read: np.ndarray, axis: int, size: int) -> list[np.ndarray]:
    """All other single indices, the neighbours first; of a shape only those that give another size."""
    if item.array.size != 1 or size > 64:
        return []
    own = int(item.array.ravel()[0]) % size
    order = sorted((place for place in range(size) if place != own), key=lambda place: (abs(place - own), place))
    if read.dtype.kind in "iu":
        row = np.moveaxis(read, axis, 0)
        order = [place for place in order if not np.array_equal(row[place], row[own])]
    return [np.full(item.array.shape, place) for place in order]
