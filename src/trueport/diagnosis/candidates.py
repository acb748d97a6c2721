"""Hypotheses of what a wrong value should have been: (target value, source value, relation), to be tried by injection.

Each kind stands for a family of faults: `drift` (the twin is still recognisable), `struct` (an unexplained source value at
the same place in the graph), `reshape` (the same, of another size: strides, pads), `extra` (the value before a superfluous
operator), `missing` (a source operator was left out behind a value that agrees), `layout` (equal elements in another order),
`shuffle` (equal elements in no known order). Values are tried in execution order: the first that heals brackets the fault.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trueport.align import relations
from trueport.align.info import Kind
from trueport.align.match import NEAR
from trueport.align.types import Alignment, Relation
from trueport.diagnosis.pair import Pair
from trueport.graph import FINE, Graph

STRUCT = 5
"""Source values of different content that are tried at one value."""
PER_VALUE = 12
"""Hypotheses tried at one value."""
CHANNEL_MOVES = {(1, 0), (1, 2, 0), (2, 0, 1), (1, 2, 3, 0), (3, 0, 1, 2), (0, 2, 3, 1), (0, 3, 1, 2)}
"""Channels first to channels last and back, the axes of size 1 (the batch) left out; of pictures also in batches."""
USUAL = 3
"""Pairs with the same relation from which it counts as the model's habit."""
MOVEMENT = {
    "Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Gather", "Expand",
    "Concat", "Tile", "Pad",
}  # fmt: skip
"""Operators that only move elements about."""
LONGEST = 6
"""Operators that only move elements, one behind the other."""
HIDDEN = 2
"""Source operators that may be missing in the target one behind the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Put `relation(source)` in at `target`. `odd`: the relation is neither plain nor the model's usual one.

    anchor: for what is put in at a value that agrees, the value whose readers are wrong.
    """

    kind: str
    target: str
    source: str
    relation: Relation
    odd: bool = False
    anchor: str = ""


def _computes(graph: Graph, value: str, alike: Collection[str]) -> bool:
    """Whether a value's producer makes something new of its operands."""
    node = graph.producer(value)
    return node is not None and node.op not in MOVEMENT and not any(parent in alike for parent in graph.parents(value))


class Candidates:
    """All hypotheses for one state of a pair: which target values are wrong, and what could heal them."""

    def __init__(self, pair: Pair, alignment: Alignment, bad_outputs: list[str]) -> None:
        self.pair, self.alignment = pair, alignment
        self.ours, self.theirs = pair.ours, pair.theirs
        self.wrong = self._wrong(bad_outputs)
        graph = self.theirs.graph
        self.frontier = [name for name in self.wrong if not any(parent in self.wrong for parent in graph.parents(name))]

    def _wrong(self, bad_outputs: list[str]) -> dict[str, None]:
        """Values reached backwards from the outputs that are wrong, stopping at values that agree; in execution order.

        What does not vary with the inputs (shapes, constants) cannot be told right from wrong and is passed by.
        """
        still = (Kind.CONST, Kind.STATIC)

        def stop(name: str) -> bool:
            if name in bad_outputs:  # the verification said so, however slowly the error grew
                return False
            info = self.theirs.infos.get(name)
            fixed = info is not None and info.kind in still
            agrees = self.alignment.ok(name) and name not in self._repeated
            return agrees or (fixed and not self._was_alive(name))

        found = self.theirs.graph.upward(bad_outputs, stop)
        return dict.fromkeys(sorted(found, key=lambda name: self.theirs.place.get(name, -1)))

    @cached_property
    def _repeated(self) -> set[str]:
        """Values that agree with a twin which the target has computed already, more often than the source computes it.

        A branch that was cut off makes a later operator compute what an earlier one did: each value agrees, at a place
        where the source has another. What only passes its operand on (an activation of positive numbers) is no repetition.
        """
        groups: dict[str, list[str]] = {}
        for name, match in self.alignment.matches.items():
            if match.ok and match.how == "value":
                groups.setdefault(self.alignment.alike.get(match.source, match.source), []).append(name)
        found: set[str] = set()
        for head, names in groups.items():
            same = {name for name in self.theirs.infos if self._head(name) == head}
            made = [name for name in names if _computes(self.theirs.graph, name, same)]
            if len(made) < 2:
                continue
            ours = {name for name, other in self.alignment.alike.items() if other == head}
            kept = [name for name in ours if _computes(self.ours.graph, name, ours)]
            fine = sum(name.startswith(FINE) for name in kept)
            found.update(made[max(fine, len(kept) - fine, 1) :])
        return found

    def _head(self, target: str) -> str | None:
        match = self.alignment.matches.get(target)
        return None if match is None or not match.ok else self.alignment.alike.get(match.source, match.source)

    def _was_alive(self, name: str) -> bool:
        """Whether a value that does not vary has a named or pinned twin that does: then it died here."""
        match = self.alignment.matches.get(name)
        return match is not None and self.ours.infos[match.source].kind is Kind.ACT

    # -- what is known about the source's values

    @cached_property
    def unexplained(self) -> Mapping[int, list[str]]:
        """Elements per run -> source values that vary, whose class has no agreeing twin."""
        found: dict[int, list[str]] = {}
        for name, info in self.ours.infos.items():
            if info.kind in (Kind.ACT, Kind.NONFINITE, Kind.LOWINFO) and name not in self.alignment.explained:
                found.setdefault(info.size, []).append(name)
        return found

    @cached_property
    def _behind(self) -> dict[str, frozenset[str]]:
        return {}

    def behind(self, source: str) -> frozenset[str]:
        """Classes of the nearest explained ancestors of a source value."""
        if source not in self._behind:
            near = self.ours.graph.nearest(source, lambda name: name in self.alignment.explained)
            self._behind[source] = frozenset(self.alignment.alike.get(name, name) for name in near)
        return self._behind[source]

    def twins_before(self, target: str) -> frozenset[str]:
        """Classes of the twins of a target value's nearest agreeing ancestors."""
        near = self.theirs.graph.nearest(target, self.alignment.ok)
        sources = [self.alignment.matches[name].source for name in near]
        return frozenset(self.alignment.alike.get(name, name) for name in sources)

    # -- hypotheses

    def all(self) -> Iterator[Candidate]:
        """Every hypothesis, the values in execution order; odd relations after all others."""
        late: list[Candidate] = []
        seen: set[tuple[str, str, Relation]] = set()
        for target in self.wrong:
            if self.theirs.infos.get(target) is None:
                continue
            before = self._at_parents(target) if target in self.frontier else []
            for candidate in [*before, *self._at(target)]:
                key = (candidate.target, candidate.source, candidate.relation)
                if key in seen:
                    continue
                seen.add(key)
                if candidate.odd:
                    late.append(candidate)
                else:
                    yield candidate
        yield from late

    def _at(self, target: str) -> list[Candidate]:
        info = self.theirs.infos[target]
        if info.kind is Kind.OTHER:
            return []
        found: list[Candidate] = []
        match = self.alignment.matches.get(target)
        if match is not None and match.how == "shuffle":
            found.append(Candidate(kind="shuffle", target=target, source=match.source, relation=match.relation))
        elif match is not None and (match.error < NEAR or match.how in ("name", "output", "structure")):
            ours = self.ours.infos[match.source].tight
            if len(ours) == len(info.tight) and sorted(ours) != sorted(info.tight):
                found.append(self._reshaped(target, match.source))
            else:
                kind = "drift" if match.error < NEAR else "struct"
                found.append(Candidate(kind=kind, target=target, source=match.source, relation=match.relation))
        found += self._struct(target)
        found += self._extra(target)
        found += self._reshape(target)
        return found[:PER_VALUE]

    def _struct(self, target: str) -> list[Candidate]:
        """Unexplained source values of the same size, those at the same place in the graph first."""
        info = self.theirs.infos[target]
        twins = self.twins_before(target)
        scored = []
        for name in self.unexplained.get(info.size, ()):
            behind = self.behind(name)
            overlap = len(behind & twins) / max(1, len(behind | twins))
            if overlap > 0:
                scored.append((-overlap, self._steps(name), self.ours.place[name], name))
        found = []
        for name in self._distinct(name for _, _, _, name in sorted(scored))[:STRUCT]:
            ours = self.ours.infos[name].tight
            if len(ours) == len(info.tight) and sorted(ours) != sorted(info.tight):
                found.append(self._reshaped(target, name))  # the same number of elements by accident
            else:
                likely = self._likely(target, name)
                found += [Candidate(kind="struct", target=target, source=name, relation=item) for item in likely]
        return found

    def _reshaped(self, target: str, source: str) -> Candidate:
        """The source's value in its own sizes, in the model's usual order."""
        rank = len(self.ours.infos[source].tight)
        axes = self.alignment.consensus.get(rank, tuple(range(rank)))
        return Candidate(kind="reshape", target=target, source=source, relation=Relation(axes))

    def _likely(self, target: str, source: str) -> list[Relation]:
        """Two relations to try: the one that an agreeing ancestor of that size has, the usual one, the one that fits best."""
        ours, theirs = self.ours.infos[source], self.theirs.infos[target]
        carried = [
            relation
            for name in self.theirs.graph.nearest(target, self.alignment.ok)
            if self.theirs.infos[name].tight == theirs.tight
            for relation in self.carried(name, source, target)[:1]
        ]
        return list(dict.fromkeys([*carried[:1], *self.usual(ours.tight, theirs.tight, source, target)]))[:2]

    def carried(self, target: str, source: str, other: str) -> list[Relation]:
        """The relations between `source` and `other`, those first that move elements as `target` has moved its twin's.

        Operators that work element by element keep the order of what they read.
        """
        match = self.alignment.matches[target]
        twin, ours, theirs = self.ours.infos[match.source], self.ours.infos[source], self.theirs.infos[other]
        usual = self.usual(ours.tight, theirs.tight)
        if twin.size != ours.size or ours.size != theirs.size:
            return usual
        wanted = relations.places(match.relation, twin.tight, self.theirs.infos[target].tight, ours.size)
        same = [
            relation
            for relation in usual
            if np.array_equal(relations.places(relation, ours.tight, theirs.tight, ours.size), wanted)
        ]
        return [*same, *(relation for relation in usual if relation not in same)]

    def _distinct(self, names: Iterable[str]) -> list[str]:
        """One value of each class of equal ones, in order: both granularities of the source compute most values."""
        heads: dict[str, str] = {}
        for name in names:
            heads.setdefault(self.alignment.alike.get(name, name), name)
        return list(heads.values())

    def _steps(self, source: str) -> int:
        """Unexplained operators between a source value and its nearest explained ancestors."""
        return len(self.ours.graph.upward([source], lambda name: name in self.alignment.explained))

    def usual(
        self, source: tuple[int, ...], target: tuple[int, ...], name: str | None = None, other: str | None = None
    ) -> list[Relation]:
        """The relations that shapes allow, the model's usual one first; then the one that the values resemble most."""
        possible = list(relations.possible(source, target))
        usual = self.alignment.consensus.get(len(source))
        possible.sort(key=lambda relation: (relation.side != "source", relation.permutation != usual))
        if name is None or other is None or len(possible) < 3 or other not in self.theirs.values:
            return possible
        ours, theirs = self.ours, self.theirs
        gaps = relations.sampled_errors(
            ours.values[name], ours.infos[name], theirs.values[other], theirs.infos[other], possible
        )
        nearest = possible[int(np.argmin(gaps))] if np.isfinite(gaps).any() else possible[0]
        return [possible[0], nearest, *(item for item in possible[1:] if item is not nearest)]

    def _extra(self, target: str) -> list[Candidate]:
        """The twin of an agreeing ancestor of the same size: what stood here before a superfluous operator."""
        info = self.theirs.infos[target]
        found = []
        for name in self.theirs.graph.nearest(target, self.alignment.ok):
            match = self.alignment.matches[name]
            theirs = self.theirs.infos[name]
            if theirs.size != info.size:
                continue
            if theirs.tight == info.tight:
                found.append(Candidate(kind="extra", target=target, source=match.source, relation=match.relation))
            else:
                ours = self.ours.infos[match.source]
                found += [
                    Candidate(kind="extra", target=target, source=match.source, relation=relation, odd=True)
                    for relation in self.usual(ours.tight, info.tight, match.source, target)[:1]
                ]
        return found

    def _reshape(self, target: str) -> list[Candidate]:
        """As `struct`, of another size but equal rank: a stride or a pad changed the shape."""
        info = self.theirs.infos[target]
        twins = self.twins_before(target)
        found = []
        for size, names in self.unexplained.items():
            if size == info.size:
                continue
            for name in names:
                ours = self.ours.infos[name]
                like = len(ours.shape) == len(info.shape) and set(ours.tight) & set(info.tight)
                if like and self.behind(name) & twins:
                    found.append((self._steps(name), self.ours.place[name], name))
        return [self._reshaped(target, name) for name in self._distinct(name for _, _, name in sorted(found))[:3]]

    def _at_parents(self, target: str) -> list[Candidate]:
        """What could be wrong *before* a frontier value, at the values that agree: a missing operator, another layout."""
        found = []
        for parent in self.theirs.graph.parents(target):
            match = self.alignment.matches.get(parent)
            if match is None or not match.ok:
                continue
            found += self._layout(parent)
            found += self._missing(parent, match.source, target)
        return found

    def _missing(self, parent: str, twin: str, child: str) -> list[Candidate]:
        """Unexplained source values at most HIDDEN operators behind the parent's twin.

        An operator that the target does have behind the parent is not missing: putting its result in before it would
        only compensate what is wrong with it (a normalisation of a normalised value changes nothing).
        """
        info = self.theirs.infos[parent]
        node = self.theirs.graph.producer(child)
        present = "" if node is None else node.op
        found = []
        heads = [name for name, head in self.alignment.alike.items() if head == self.alignment.alike.get(twin, twin)]
        front = list(dict.fromkeys([twin, *heads]))
        for _ in range(HIDDEN):
            front = [
                child
                for name in front
                for child in self.ours.graph.children(name)
                if child in self.ours.infos and child not in self.alignment.explained
            ]
            for name in self._distinct(front):
                ours = self.ours.infos[name]
                if present in self._operators(name):
                    continue
                if ours.size == info.size and ours.kind is not Kind.OTHER:
                    found += [
                        Candidate(kind="missing", target=parent, source=name, relation=relation, anchor=parent)
                        for relation in self.carried(parent, name, parent)[:1]
                    ]
        return found[:PER_VALUE]

    def _operators(self, source: str) -> set[str]:
        """The operator that computes a source value, and the native one that it is a part of."""
        node = self.ours.graph.producer(source)
        if node is None:
            return set()
        whole = self.ours.graph.by_name.get(node.origin or "")
        return {node.op, whole.op if whole is not None else node.op}

    def _layout(self, parent: str) -> list[Candidate]:
        """Source values with the same elements in the natural order, where a value agrees in another order only.

        The first such value counts: above the parent those values are passed that agree in an unnatural order too.
        """
        found: list[Candidate] = []
        places = dict.fromkeys([*self.unnatural(parent), *self.chain(parent)])
        # What the model does all over is suspected last, and of the rest the first value counts: those behind follow it.
        order = sorted(places, key=lambda name: (self.natural_match(name), self.theirs.place[name]))
        for name in order:
            match, info = self.alignment.matches[name], self.theirs.infos[name]
            for other in self.same(match.source):
                ours = self.ours.infos[other]
                resized = self._other_sizes(ours.tight, info.tight)
                for relation in dict.fromkeys([*resized, *self.usual(ours.tight, info.tight)[:3]]):
                    if (other, relation) == (match.source, match.relation):
                        continue
                    gap = relations.error(self.ours.values[other], self.theirs.values[name], relation, ours.unit)
                    if gap > self.pair.tolerance:  # else it puts in what stands there already
                        odd = relation not in resized and not self.natural(relation, ours.tight, info.tight)
                        found.append(
                            Candidate(
                                kind="layout", target=name, source=other, relation=relation, odd=odd, anchor=parent
                            )
                        )
        found.sort(key=lambda candidate: candidate.odd)
        return found[: 2 * PER_VALUE]

    def _other_sizes(self, source: tuple[int, ...], target: tuple[int, ...]) -> list[Relation]:
        """The natural orders that have other sizes than the target's value, whose axes were swapped."""
        if len(source) != len(target) or sorted(source) != sorted(target):
            return []
        plain = tuple(range(len(source)))
        moves = [plain, *(axes for axes in sorted(CHANNEL_MOVES) if len(axes) == len(source))]
        return [Relation(axes) for axes in moves if tuple(source[axis] for axis in axes) != target]

    def same(self, source: str) -> list[str]:
        """The source values with the same elements, itself first."""
        head = self.alignment.alike.get(source, source)
        return [source, *(name for name, other in self.alignment.alike.items() if other == head and name != source)]

    def natural(self, relation: Relation, source: tuple[int, ...], target: tuple[int, ...]) -> bool:
        """Whether a converter moves axes like this: not at all, the channels, or as it does all over the model."""
        if relation.identity:
            return len(source) != len(target) or source == target
        return relation.permutation in CHANNEL_MOVES or self._seen[relation] >= USUAL

    def natural_match(self, value: str) -> bool:
        """Whether a value agrees with its twin in a natural order."""
        match = self.alignment.matches[value]
        return self.natural(match.relation, self.ours.infos[match.source].tight, self.theirs.infos[value].tight)

    @cached_property
    def _seen(self) -> Counter[Relation]:
        return Counter(match.relation for match in self.alignment.matches.values() if match.ok and match.how == "value")

    def unnatural(self, value: str) -> list[str]:
        """The values from `value` upward that agree only in an order in which no converter moves axes; nearest first."""
        found: list[str] = []
        front = [value]
        while front:
            name = front.pop(0)
            match = self.alignment.matches.get(name)
            if name in found or match is None or not match.ok or match.how == "input":
                continue
            if match.relation.identity or match.relation.permutation in CHANNEL_MOVES:
                continue
            found.append(name)
            front += self.theirs.graph.parents(name)
        return found

    def chain(self, value: str) -> list[str]:
        """`value` and the values above it with the same elements, joined by operators that only move them."""
        found = [value]
        while len(found) < LONGEST:
            node = self.theirs.graph.producer(found[-1])
            if node is None or node.op not in MOVEMENT:
                break
            above = [
                name
                for name in self.theirs.graph.parents(found[-1])
                if name in self.alignment.matches
                and self.theirs.infos[name].size == self.theirs.infos[value].size
                and name not in found
            ]
            if not above:
                break
            found.append(above[0])
        return found
