"""Which values of the target, as its file computes them, are which of the source: what a repair may build upon."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from trueport.align import relations
from trueport.align.info import describe
from trueport.align.match import GROWTH
from trueport.align.types import Match, Relation
from trueport.graph import FINE
from trueport.repairs.rules._translate import translate
from trueport.repairs.rules._writer import RESULT, Order, Placed, Writer, identity, order_of
from trueport.repairs.scene import Scene

NEAREST = 60
"""Values of the source, nearest first, among which the twin of a value is looked for that was put in."""


class Twins:
    """Pairs of values for one scene. `behind`: what is computed from the place of the fault; `below`: what of that is
    computed from wrong values, and may not be read before it; `readers`: see `wrong_readers`, of a missing operator."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.ours, self.theirs = scene.pair.ours, scene.pair.theirs
        self.graph = scene.pair.target.graph
        self.fault = scene.finding.target
        self.behind = set(self.graph.downward([self.fault])) - {self.fault}
        self.readers = wrong_readers(scene, self.fault) if scene.finding.kind == "missing" else None
        self.below = self.behind
        if self.readers is not None:
            wrong = [name for reader in self.readers if reader for name in self.graph.by_name[reader].outputs]
            self.below = set(self.graph.downward(wrong))
        self._found: dict[tuple[str, str], Placed | None] = {}

    @property
    def last(self) -> bool:
        """Whether the target's format puts channels last."""
        return self.scene.theirs.channels_last

    def writer(self, *, below: bool = False) -> Writer:
        """A writer that reads values of the target. `below`: those behind the fault too."""
        names = (name for node in self.graph.nodes for name in node.outputs)
        taken = [int(number) for name in names for number in re.findall(rf"{RESULT}_(\d+)", name)]
        return Writer(
            source=self.scene.ours,
            format=self.scene.format,
            last=self.last,
            find=lambda name: self.find(name, below=below),
            translate=translate,
            first=max(taken, default=-1) + 1,
        )

    def head(self, source: str) -> str:
        """Representative of the class of source values that are equal to one."""
        return self.scene.alignment.alike.get(source, source)

    def same(self, source: str) -> list[str]:
        """The source values that are equal to one, those of the native granularity first, itself before all."""
        head = self.head(source)
        names = [head, *(name for name, other in self.scene.alignment.alike.items() if other == head)]
        return list(dict.fromkeys([source, *sorted(names, key=lambda name: name.startswith(FINE))]))

    @cached_property
    def of_file(self) -> dict[str, Match]:
        """Target value -> its twin, as the file computes it: that of a value which was put in is looked for anew."""
        found = {}
        for name, match in self.scene.alignment.matches.items():
            if name == self.fault:
                own = self._searched(name)
                if own is not None:
                    found[name] = own
            elif match.ok and (name not in self.behind or name in self.below):
                found[name] = match
        if self.readers is not None:
            as_found = self.scene.as_found
            found |= {name: as_found.matches[name] for name in self.behind - self.below if as_found.ok(name)}
        return found

    @cached_property
    def by_class(self) -> dict[str, list[str]]:
        """Class of source values -> the target values that are it, in execution order."""
        found: dict[str, list[str]] = {}
        place = self.theirs.place
        for name in sorted(self.of_file, key=lambda value: place.get(value, -1)):
            found.setdefault(self.head(self.of_file[name].source), []).append(name)
        return found

    def known(self, *, below: bool = False) -> set[str]:
        """The source values that the target has already, and those equal to them in the same sizes."""
        found: dict[str, dict[tuple[int, ...], str]] = {}
        for head, names in self.by_class.items():
            usable = [self.of_file[name].source for name in names if below or name not in self.below]
            found[head] = {self.ours.infos[source].shape: source for source in usable}
        alike = {**dict.fromkeys(self.scene.pair.ours.infos), **self.scene.alignment.alike}
        held = {}
        for name in alike:
            info = self.ours.infos.get(name)
            twin = None if info is None else found.get(self.head(name), {}).get(info.shape)
            if twin is not None:
                held[name] = twin
        return {name for name, twin in held.items() if self._as(name, twin) or self.find(name, below=below) is not None}

    def _as(self, name: str, twin: str) -> bool:
        """Whether two source values of a class have their elements in the same places: a flip of a value is in its class."""
        ours, other = self.ours.values.get(name), self.ours.values.get(twin)
        if name == twin or ours is None or other is None:
            return True
        in_place = Relation(identity(sum(size != 1 for size in ours.shape[1:])))
        gap = relations.error(ours, np.asarray(other), in_place, self.ours.infos[name].unit)
        return bool(gap <= GROWTH * self.scene.pair.tolerance)

    def find(self, source: str, *, below: bool = False) -> Placed | None:
        """A value of the source as the target has it; those first whose layout is known."""
        best: Placed | None = None
        # Behind the place of a fault stands what is put in there: its own value, before any other that is equal to it.
        for name in sorted(self.by_class.get(self.head(source), ()), key=lambda name: name != self.fault):
            if name in self.below and not below:
                continue
            placed = self.placed(source, name)
            if placed is not None and (best is None or (best.order is None and placed.order is not None)):
                best = placed
        return best

    def placed(self, source: str, target: str) -> Placed | None:
        """A source value as a target value has it; None where they do not agree."""
        if (source, target) not in self._found:
            self._found[source, target] = self._placed(source, target)
        return self._found[source, target]

    def _placed(self, source: str, target: str) -> Placed | None:
        ours, value = self.ours.values.get(source), self._value(target)
        match = self.of_file.get(target)
        if ours is None or value is None or match is None:
            return None
        relation: Relation | None = match.relation
        if match.source != source:
            relation = self._relation(source, value)
        if relation is None:
            return None
        shape = tuple(ours.shape[1:])
        order, at = order_of(relation, shape, value.shape[1:]), tuple(value.shape[1:])
        return Placed(target, shape, order, at if order is None and relation.identity else None)

    def _value(self, target: str) -> np.ndarray | None:
        as_found = target == self.fault or (target in self.behind and target not in self.below)
        return (self.scene.pair.target.values if as_found else self.theirs.values).get(target)

    def _relation(self, source: str, value: np.ndarray) -> Relation | None:
        """How a source value lies in a value of the target; None where it does not."""
        info = self.ours.infos.get(source)
        if info is None or self.ours.values[source].size != value.size:
            return None
        theirs = describe(value)
        found = relations.best(
            self.ours.values[source], info, value, theirs, self._votes, enough=self.scene.pair.tolerance
        )
        return found[0] if found is not None and found[1] <= GROWTH * self.scene.pair.tolerance else None

    @cached_property
    def _votes(self) -> dict[Relation, int]:
        votes: dict[Relation, int] = {}
        for match in self.scene.alignment.matches.values():
            if match.ok:
                votes[match.relation] = votes.get(match.relation, 0) + 1
        return votes

    def _searched(self, target: str) -> Match | None:
        """The twin of what the file computes at the place of the fault, among what the healed value is computed from."""
        value, source = self.scene.pair.target.values.get(target), self.scene.finding.source
        if value is None or source is None:
            return None
        graph = self.ours.graph
        starts = self.same(source)
        near: Iterable[str] = list(graph.upward(starts))[: NEAREST + len(starts)]
        for name in [*near, *(match.source for match in self._above(target))]:
            relation = self._relation(name, value)
            if relation is not None:
                return Match(target=target, source=name, relation=relation, error=0.0, how="value", ok=True)
        return None

    def _above(self, target: str) -> list[Match]:
        matches = (self.scene.alignment.matches.get(name) for name in self.graph.parents(target))
        return [match for match in matches if match is not None and match.ok]

    def usual(self, source: tuple[int, ...], target: tuple[int, ...]) -> Order | None:
        """The order in which the model as a whole has a value of these shapes; None where the shapes do not allow it."""
        tight = [size for size in source if size != 1]
        wanted = [self.scene.alignment.consensus.get(len(tight)), tuple(range(len(tight)))]
        for permutation in wanted:
            if permutation is not None:
                order = order_of(Relation(tuple(permutation)), source, target)
                if order is not None:
                    return order
        return identity(len(source)) if source == target else None


def wrong_readers(scene: Scene, value: str) -> list[str] | None:
    """The readers of a value whose results are wrong in the file; None when all are, so that all get a new one."""
    graph = scene.pair.target.graph
    readers = [graph.nodes[place] for place in graph.consumers.get(value, ())]
    if len(readers) < 2:
        return None
    right = [node.name for node in readers if any(map(scene.as_found.ok, node.outputs))]
    if not right or len(right) == len(readers):
        return None
    wrong = [node.name for node in readers if node.name not in right]
    return [*wrong, *([""] if value in graph.outputs else [])]


def right_in_file(scene: Scene, value: str) -> bool:
    """Whether a value of the target agrees with its twin in the file as it is."""
    match, given = scene.match(value), scene.pair.target.values.get(value)
    if match is None or given is None:
        return False
    unit = scene.pair.ours.infos[match.source].unit
    gap = relations.error(scene.pair.ours.values[match.source], np.asarray(given), match.relation, unit)
    return bool(gap <= GROWTH * max(scene.pair.tolerance, match.error))
