"""Pairs the values of two models by what they hold. How it works, in five steps:

1. Every value gets a kind and a sketch (`info.py`). Only values that vary with the input and hold enough distinct numbers
   are paired by value; the rest is passed on graph walks.
2. Target values are visited in execution order. Candidates are source values of equal size, nearest sketches first.
3. For each candidate the relation with the smallest error is sought (`relations.py`); relations that many pairs follow
   go first. Equal elements without any relation are a `shuffle`: the twin is known, the order is wrong.
4. Several source values may fit equally well (reshapes, identities, a ReLU of positive numbers). The one nearest behind
   the twins of the value's ancestors is taken and the others are kept as rivals: pairs are of value classes.
5. A pair is `ok` when its error is within the tolerance, or is small and has grown over depth no more than rounding does.

What cannot be told by its values keeps its twin by name where the names are unique on both sides and the sizes agree.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from trueport.align import relations
from trueport.align.info import Info, Kind, infos, rms
from trueport.align.types import Alignment, Match, Relation
from trueport.graph import FINE, Graph

NEAREST = 6
"""Candidates per value."""
NEAR = 0.5
"""Error up to which a pair counts as the same value, disturbed; beyond it the two have nothing in common."""
GROWTH, GROWTH_LIMIT = 6.0, 0.05
"""A deep clean network amplifies rounding: an error below the limit is fine when the nearest ancestors' is this near."""
SAME = 1e-6
"""Relative sketch distance below which two source values are of one class."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One model as alignment sees it."""

    graph: Graph
    values: Mapping[str, np.ndarray]
    infos: Mapping[str, Info]

    @staticmethod
    def of(graph: Graph, values: Mapping[str, np.ndarray]) -> View:
        """Describe every value."""
        return View(graph=graph, values=values, infos=infos(graph, values))

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Value -> its place in execution order, inputs first."""
        return {name: index for index, name in enumerate(self.infos)}

    @cached_property
    def by_size(self) -> Mapping[int, tuple[list[str], np.ndarray, np.ndarray]]:
        """Elements per run -> (names, sketches [k, R * POINTS], units [k]) of the values that can be matched."""
        groups: dict[int, list[str]] = {}
        for name, info in self.infos.items():
            if info.kind is Kind.ACT:
                groups.setdefault(info.size, []).append(name)
        return {
            size: (
                names,
                np.stack([self.infos[name].sketch.ravel().astype(np.float64) for name in names]),
                np.array([self.infos[name].unit for name in names]),
            )
            for size, names in groups.items()
        }

    @cached_property
    def alike(self) -> Mapping[str, str]:
        """Value -> the first value with the same elements (in whatever order)."""
        found: dict[str, str] = {}
        for names, sketches, units in self.by_size.values():
            heads: list[int] = []
            for index, name in enumerate(names):
                gaps = np.sqrt(np.mean((sketches[heads] - sketches[index]) ** 2, axis=1)) if heads else np.zeros(0)
                same = [head for head, gap in zip(heads, gaps, strict=True) if gap <= SAME * units[head]]
                if not same:
                    heads.append(index)
                found[name] = names[same[0] if same else index]
        return found


def align(
    source: View,
    target: View,
    pinned: Sequence[Match],
    *,
    tolerance: float,
    growth: float = GROWTH,
    known: Alignment | None = None,
    anew: Iterable[str] | None = None,
) -> Alignment:
    """Pair the values of `target` with those of `source`.

    pinned: the inputs and outputs, whose twins are known; an output keeps its pinned twin whatever it holds.
    known, anew: an earlier alignment of the same models of which only the values in `anew` have changed.
    """
    return _Aligner(source, target, tolerance, growth).align(pinned, known, anew)


class _Aligner:
    """The state of one pass: what has been paired so far, and which relations were seen."""

    def __init__(self, source: View, target: View, tolerance: float, growth: float) -> None:
        self.source, self.target = source, target
        self.tolerance, self.growth = tolerance, growth
        self.matches: dict[str, Match] = {}
        self.votes: Counter[Relation] = Counter()

    def align(self, pinned: Sequence[Match], known: Alignment | None, anew: Iterable[str] | None) -> Alignment:
        fixed = {match.target: match for match in pinned}
        changed = None if anew is None else set(anew)
        named = self._names()
        for name, info in self.target.infos.items():
            if known is not None and changed is not None and name not in changed:
                if name in known.matches:
                    self._keep(known.matches[name])
                continue
            if name in fixed:
                self._keep(self._judged(fixed[name]))
            elif info.kind is Kind.ACT:
                found = self._by_value(name, info) or self._by_name(name, named.get(name))
                if found is not None:
                    self._keep(self._judged(found))
            elif (found := self._by_name(name, named.get(name))) is not None:
                self._keep(self._judged(found))
        return self._result()

    def _keep(self, match: Match) -> None:
        self.matches[match.target] = match
        if match.ok and match.how == "value":
            self.votes[match.relation] += 1

    def _result(self) -> Alignment:
        classes = {self.source.alike.get(match.source) for match in self.matches.values() if match.ok}
        explained = {name for name, head in self.source.alike.items() if head in classes}
        explained |= {match.source for match in self.matches.values() if match.ok}
        consensus: dict[int, tuple[int, ...]] = {}
        for relation, _ in reversed(self.votes.most_common()):
            if relation.side == "source":
                consensus[len(relation.permutation)] = relation.permutation
        return Alignment(
            matches=self.matches, consensus=consensus, explained=frozenset(explained), alike=self.source.alike
        )

    def _judged(self, match: Match) -> Match:
        """The match with its error and whether that is right; an error that the match brings is kept."""
        found = match
        if np.isnan(match.error):
            found = replace(match, error=self._error(match))
        return replace(found, ok=self._ok(found))

    def _error(self, match: Match) -> float:
        if match.target not in self.target.values or match.source not in self.source.values:
            return float("inf")
        ours, theirs = self.source.infos[match.source], self.target.infos[match.target]
        if ours.size != theirs.size:
            return float("inf")
        return relations.error(
            self.source.values[match.source], self.target.values[match.target], match.relation, ours.unit
        )

    def _ok(self, match: Match) -> bool:
        if match.how == "shuffle" or not np.isfinite(match.error):
            return False
        if match.error <= self.tolerance:
            return True
        if match.error > GROWTH_LIMIT:
            return False
        nearest = self.target.graph.nearest(match.target, self._matched_well)
        before = max((self.matches[name].error for name in nearest), default=0.0)
        return match.error <= self.growth * before

    def _matched_well(self, name: str) -> bool:
        match = self.matches.get(name)
        return match is not None and match.ok and match.how != "input"

    # -- by value

    def _by_value(self, name: str, info: Info) -> Match | None:
        group = self.source.by_size.get(info.size)
        if group is None:
            return None
        names, sketches, units = group
        gaps = np.sqrt(np.mean((sketches - info.sketch.ravel().astype(np.float64)) ** 2, axis=1)) / units
        near = [int(index) for index in np.argsort(gaps, kind="stable") if gaps[index] < NEAR]
        if not near:
            return None
        # Values of one class stand side by side: every member of the nearest classes is a candidate.
        limit = gaps[near[min(NEAREST, len(near)) - 1]] + SAME
        near = [index for index in near if gaps[index] <= limit][: 4 * NEAREST]
        found: list[tuple[float, str, Relation]] = []
        for index in near:
            other = names[index]
            if found and gaps[index] > 2 * max(min(error for error, _, _ in found), self.tolerance):
                break
            made = relations.best(
                self.source.values[other],
                self.source.infos[other],
                self.target.values[name],
                info,
                self.votes,
                enough=self.tolerance,
            )
            if made is not None and made[1] < NEAR:
                found.append((made[1], other, made[0]))
        if not found:
            return self._shuffled(name, info, [(float(gaps[index]), names[index]) for index in near])
        least = min(error for error, _, _ in found)
        equal = [item for item in found if item[0] <= max(self.tolerance, 1.5 * least)]
        error, chosen, relation = self._nearest_behind(name, equal)
        rivals = tuple(other for _, other, _ in equal if other != chosen)
        return Match(target=name, source=chosen, relation=relation, error=error, how="value", ok=False, rivals=rivals)

    def _shuffled(self, name: str, info: Info, near: list[tuple[float, str]]) -> Match | None:
        """Equal order statistics without a relation: the same elements in a wrong order."""
        for gap, other in near:
            ours = self.source.infos[other]
            if gap > max(10 * self.tolerance, 1e-4):
                break
            left = np.sort(np.asarray(self.source.values[other]).reshape(len(ours.sketch), -1), axis=1)
            right = np.sort(np.asarray(self.target.values[name]).reshape(len(info.sketch), -1), axis=1)
            error = rms(right.astype(np.float64) - left) / ours.unit
            if error <= max(10 * self.tolerance, 1e-4):
                axes = tuple(range(len(ours.tight)))
                return Match(target=name, source=other, relation=Relation(axes), error=error, how="shuffle", ok=False)
        return None

    def _nearest_behind(self, name: str, equal: list[tuple[float, str, Relation]]) -> tuple[float, str, Relation]:
        """Among source values that fit equally well, the one nearest behind the twins of the target value's ancestors."""
        if len(equal) == 1:
            return equal[0]
        ancestors = self.target.graph.nearest(name, lambda value: value in self.matches)
        twins = [self.matches[value].source for value in ancestors]
        # Execution orders of the two granularities are not comparable: distance is counted inside the twin's own.
        latest = {
            fine: max((self.source.place[t] for t in twins if _fine(t) is fine), default=-1) for fine in (True, False)
        }
        operator = _operator(self.target.graph, name)

        def rank(item: tuple[float, str, Relation]) -> tuple[bool, bool, bool, int, int]:
            _, other, relation = item
            behind = self.source.place[other] - latest[_fine(other)]
            used = other in {match.source for match in self.matches.values()}
            return (
                behind < 0,
                _operator(self.source.graph, other) != operator,
                used,
                -self.votes.get(relation, 0),
                abs(behind),
            )

        return min(equal, key=rank)

    # -- by name

    def _names(self) -> dict[str, str]:
        """Twins by name: unique on both sides, of equal size."""
        ours = _unique(self.source)
        found = {}
        for name, value in _unique(self.target).items():
            other = ours.get(name)
            if other is None:
                continue
            left, right = self.source.infos[other], self.target.infos[value]
            if left.kind is not Kind.OTHER and left.size == right.size:
                found[value] = other
        return found

    def _by_name(self, name: str, other: str | None) -> Match | None:
        if other is None:
            return None
        possible = relations.possible(self.source.infos[other].tight, self.target.infos[name].tight)
        if not possible:
            return None
        voted = max(possible, key=lambda relation: self.votes.get(relation, 0))
        return Match(target=name, source=other, relation=voted, error=float("nan"), how="name", ok=False)


def _fine(name: str) -> bool:
    return name.startswith(FINE)


def _operator(graph: Graph, value: str) -> str:
    node = graph.producer(value)
    return "" if node is None else node.op.lower()


def plain(name: str) -> str:
    """A name without what converters add around it: scopes of the exporter, output numbers, punctuation, case."""
    text = re.sub(r"(:\d+|_output_\d+|/[A-Z]\w*)$", "", name.removeprefix(FINE))
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def _unique(view: View) -> dict[str, str]:
    names = [name for name in view.infos if name in view.graph.producers and not _fine(name)]
    counted = Counter(plain(name) for name in names)
    return {plain(name): name for name in names if counted[plain(name)] == 1 and plain(name)}
