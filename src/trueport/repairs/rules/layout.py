"""TSS: elements in another order than the source's are put right where they were moved wrongly.

Rewrite: one edit of the chain of operators that only move elements around the place of the fault: a Transpose without
effect in the source is taken out (`remove-node`), gets the order that it needs (`set-attribute`), stands in the place of
a Reshape (`set-operator`), or is put in (`insert`). Each is computed beforehand on element numbers: what is proposed
makes of the value before the chain, as the file has it, exactly the mended value behind it.
Does not apply where no single change of the chain gives that, or what lies before it is wrong itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trueport.align.info import numbers, rms
from trueport.diagnosis.operators import kind
from trueport.diagnosis.structure import move
from trueport.diagnosis.types import Cause
from trueport.frameworks._base import EditDict
from trueport.graph import Node
from trueport.repairs.rules._twins import right_in_file
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "TSS layout"
CAUSES = frozenset({Cause.STRUCTURE, Cause.HYPERPARAMETERS})

MOVERS = frozenset({"Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Kinds that `move` can do on element numbers and that change at most their order."""

LONGEST = 6
"""Operators of a chain on either side of the place of the fault."""

MAX_RANK = 5
"""Axes up to which orders are searched: 120 of them."""

SAMPLES = 2048
"""Elements that are compared before all are."""

REMOVED, TURNED, REPLACED, INSERTED = 0.0, 0.01, 0.02, 0.1
"""Doubt by what is done."""

ASIDE = 0.15
"""Added where the node is none of the region."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is done at one place of a chain: node number `place` taken out, turned or replaced; or `perm` put in before it."""

    what: str
    place: int
    perm: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chain:
    """Movement operators one behind the other, from `start` to `end`."""

    start: str
    end: str
    nodes: tuple[Node, ...]

    @property
    def values(self) -> tuple[str, ...]:
        """The values along it, `start` first."""
        return (self.start, *(node.outputs[0] for node in self.nodes))


def propose(scene: Scene) -> list[Proposal] | str:
    """Every single change of the chain that puts the elements where they belong, that of the blamed node first."""
    finding = scene.finding
    if finding.kind in ("missing", "extra", "input", "nonfinite"):
        return "the fault is no wrong order of elements"
    chain = chain_around(scene, finding.target)
    given, wanted = scene.pair.target.values.get(chain.start), scene.pair.theirs.values.get(chain.end)
    if given is None or wanted is None:
        return "the values around the movement operators were not traced"
    if given[0].size != wanted[0].size:
        return "the operators around the fault change the number of elements"
    check = Check(scene, chain, np.asarray(given), np.asarray(wanted))
    if not check.true():
        return _restated(scene, chain) or "an operator around the fault moves elements in a way that it does not show"
    found = [
        Proposal(edits=(edit,), doubt=doubt)
        for change in _changes(scene, chain, wanted.shape[1:])
        if check.heals(change)
        for edit, doubt in _edits(scene, chain, change, len(given.shape) - 1)
    ]
    if not found:
        return "no single change of a transpose or reshape around the fault puts the elements in the source's order"
    return sorted(found, key=lambda proposal: proposal.doubt)


def _restated(scene: Scene, chain: Chain) -> list[Proposal]:
    """Flatten layers of Keras as they are by default: one may flatten channels first, which its graph does not show."""
    found = []
    for node in chain.nodes:
        if node.native_op == "Flatten" and scene.format == "keras":
            change: EditDict = {
                "kind": "set-operator",
                "node": node.name,
                "operator": "Flatten",
                "attributes": {"axis": 1},
            }
            reason = "the elements are flattened in the order in which they lie"
            edit = scene.edit(NAME, node.name, "Flatten in another order", "Flatten", reason, change)
            found.append(Proposal(edits=(edit,), doubt=REPLACED))
    return found


def chain_around(scene: Scene, value: str) -> Chain:
    """The longest chain of movement operators through a value; where several read it, the one whose result is wrong."""
    graph = scene.pair.target.graph
    above: list[Node] = []
    start = value
    while len(above) < LONGEST:
        node = graph.producer(start)
        if node is None or not _moves(scene, node):
            break
        above.insert(0, node)
        start = scene.theirs.data(node)[0]
    below: list[Node] = []
    end = value
    while len(below) < LONGEST:
        readers = [graph.nodes[place] for place in graph.consumers.get(end, ())]
        readers = [node for node in readers if kind(node) not in ("Shape", "Size")]
        readers = (
            readers if len(readers) == 1 else [node for node in readers if not right_in_file(scene, node.outputs[0])]
        )
        if len(readers) != 1 or end in graph.outputs or not _moves(scene, readers[0]):
            break
        if readers[0].outputs[0] not in scene.pair.theirs.values:
            break
        below.append(readers[0])
        end = readers[0].outputs[0]
    return Chain(start, end, (*above, *below))


def _moves(scene: Scene, node: Node) -> bool:
    """Whether a node only moves what it reads first; its shape may be worked out from the inputs."""
    single = len([name for name in node.outputs if name]) == 1
    return kind(node) in MOVERS and single and node.inputs[0] in scene.theirs.dynamic


# -- what may be done -----------------------------------------------------------------------------------------------------


def _changes(scene: Scene, chain: Chain, after: Sequence[int]) -> Iterator[Change]:
    """Everything that may be done at one place of a chain."""
    for place, node in enumerate(chain.nodes):
        before = scene.theirs.shape(scene.theirs.data(node)[0])
        if kind(node) in ("Transpose", "Reshape"):
            yield Change("remove", place)
        if before is None or len(before) > MAX_RANK:
            continue
        if kind(node) == "Transpose":
            yield from (Change("turn", place, perm) for perm in orders(len(before)))
        elif kind(node) == "Reshape":
            yield from (Change("replace", place, perm) for perm in orders(len(before)))
    for place, value in enumerate(chain.values):
        shape = scene.pair.target.values[value].shape[1:] if value in scene.pair.target.values else None
        if shape is not None and 1 < len(shape) <= MAX_RANK:
            yield from (Change("insert", place, perm) for perm in orders(len(shape)))


def orders(rank: int) -> Iterator[tuple[int, ...]]:
    """The orders of so many axes, those that leave the first one in its place before the others."""
    every = sorted(itertools.permutations(range(rank)), key=lambda perm: (perm[:1] != (0,), perm))
    return (perm for perm in every if perm != tuple(range(rank)))


class Check:
    """Whether a change makes of the value before a chain the mended one behind it, computed on element numbers."""

    def __init__(self, scene: Scene, chain: Chain, given: np.ndarray, wanted: np.ndarray) -> None:
        self.scene, self.chain, self.shape = scene, chain, wanted.shape[1:]
        self.numbers = np.arange(given[0].size).reshape(given.shape[1:])
        self.given = numbers(given).reshape(len(given), -1)
        self.wanted = numbers(wanted).reshape(len(wanted), -1)
        size = self.wanted.shape[1]
        self.sample = np.unique(np.linspace(0, size - 1, min(size, SAMPLES)).astype(np.int64))
        self.unit = max(rms(self.wanted - self.wanted.mean(axis=1, keepdims=True)), 1e-30)
        self.seen: set[tuple[str, int, bytes]] = set()

    def true(self) -> bool:
        """Whether the chain as it is gives what the file has behind it."""
        order, behind = self.run(None), self.scene.pair.target.values.get(self.chain.end)
        if order is None or behind is None or behind[0].size != order.size:
            return False
        with np.errstate(invalid="ignore"):  # an infinity less an infinity: not finite, which the next line asks
            gap = rms(self.given[:, order.ravel()] - numbers(np.asarray(behind)).reshape(len(behind), -1))
        return bool(not np.isfinite(gap) or gap / self.unit <= self.scene.pair.tolerance)

    def heals(self, change: Change) -> bool:
        """Whether the chain, changed like this, gives the mended value."""
        order = self.run(change)
        # A value that was put in has the shape that the file gives it, which a wrong transpose may have changed.
        if order is None or (order.shape != self.shape and change.what != "turn"):
            return False
        key = (change.what, change.place, order.tobytes())
        if key in self.seen:  # another order of axes of size 1
            return False
        self.seen.add(key)
        flat = order.ravel()
        return self._equal(flat, self.sample) and self._equal(flat, None)

    def run(self, change: Change | None) -> np.ndarray | None:
        """Element numbers behind the chain; None where an operator cannot do what it is given."""
        current = self.numbers
        for place, node in enumerate(self.chain.nodes):
            if change is not None and change.place == place:
                if change.what in ("insert", "turn", "replace"):
                    if len(change.perm) != current.ndim:
                        return None
                    current = np.transpose(current, change.perm)
                if change.what != "insert":
                    continue
            try:
                moved = move(self.scene.theirs, node, current)
            except ValueError:
                return None
            if moved is None:
                return None
            current = moved
        if change is not None and change.what == "insert" and change.place == len(self.chain.nodes):
            return np.transpose(current, change.perm) if len(change.perm) == current.ndim else None
        return current

    def _equal(self, order: np.ndarray, sample: np.ndarray | None) -> bool:
        mine = self.given[:, order if sample is None else order[sample]]
        wanted = self.wanted if sample is None else self.wanted[:, sample]
        with np.errstate(invalid="ignore"):
            return bool(rms(mine - wanted) / self.unit <= self.scene.pair.tolerance)


# -- edits ----------------------------------------------------------------------------------------------------------------


def _edits(scene: Scene, chain: Chain, change: Change, rank: int) -> Iterator[tuple[Edit, float]]:
    """The edit for a change, and its doubt."""
    order = {node.name: place for place, node in enumerate(scene.blamed)}
    near = chain.nodes[min(change.place, len(chain.nodes) - 1)] if chain.nodes else None
    aside = 0.02 * order.get(near.name, 0) if near is not None and near.name in order else ASIDE
    perm = list(change.perm)
    if change.what == "insert":
        yield _inserted(scene, chain, change), INSERTED + aside
        return
    node = chain.nodes[change.place]
    before = f"{kind(node)} {_told(node)}".strip()
    edit: EditDict
    if change.what == "remove":
        edit = {"kind": "remove-node", "node": node.name}
        yield scene.edit(NAME, node.name, before, None, "the source moves nothing here", edit), REMOVED + aside
        return
    reason = "in this order the elements lie as the source's"
    after = f"Transpose by {perm}"
    if change.what == "turn":
        attribute = next((name for name in ("perm", "dims") if isinstance(node.attributes.get(name), list)), None)
        if attribute is not None and len(node.attributes[attribute]) == len(perm):
            edit = {"kind": "set-attribute", "node": node.name, "attribute": attribute, "value": perm}
            yield scene.edit(NAME, node.name, before, after, reason, edit), TURNED + aside
            return
    edit = {"kind": "set-operator", "node": node.name, "operator": "Transpose", "attributes": {"perm": perm}}
    yield scene.edit(NAME, node.name, before, after, reason, edit), REPLACED + aside


def _inserted(scene: Scene, chain: Chain, change: Change) -> Edit:
    """A Transpose between a value of the chain and its reader; behind the chain, for all who read it."""
    graph = scene.pair.target.graph
    value = chain.values[change.place]
    steps = [{"operator": "Transpose", "attributes": {"perm": list(change.perm)}}]
    edit: EditDict = {"kind": "insert", "value": value, "steps": steps}
    if change.place < len(chain.nodes) and len(graph.consumers.get(value, ())) > 1:
        edit["readers"] = [chain.nodes[change.place].name]
    producer = graph.producer(value)
    where = producer.name if producer is not None else value
    reason = "the source transposes here"
    return scene.edit(NAME, where, "nothing", f"Transpose by {list(change.perm)}", reason, edit)


def _told(node: Node) -> str:
    perm = node.attributes.get("perm", node.attributes.get("dims"))
    return f"by {list(perm)}" if isinstance(perm, (list, tuple)) else ""
