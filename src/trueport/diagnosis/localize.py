"""Where the faults sit, proven by injection: the source's value is put into the target, and the error must go away.

The wrong values reached backwards from the wrong outputs end at a frontier. Hypotheses of what should stand there
(`candidates.py`) are tried in execution order; the first that heals brackets a fault between the values that still agree
and itself. A model may hold several faults: then one injection heals only what lies directly behind it. An injection is
kept when it heals the outputs or makes the values behind it agree again; then everything after is computed anew and the
search goes on until the outputs are right.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from trueport.align import relations
from trueport.align.info import Info, Kind, describe
from trueport.align.match import View
from trueport.align.types import Alignment, Relation
from trueport.diagnosis.candidates import MOVEMENT, Candidate, Candidates
from trueport.diagnosis.located import Located, Trial, share
from trueport.diagnosis.pair import Output, Pair
from trueport.diagnosis.types import Finding
from trueport.outcome import Failure

TRIES = 80
"""Injections per fault."""
ROUNDS = 24
"""Faults that are looked for in one model."""
RESIDUE = 0.02
"""Share of the output error that may stay when a fault is healed: what other, smaller faults and rounding leave."""
NOISE = 10.0
"""Floors of an output within which it counts as right: the bound that a verification judges by."""
BEHIND = 4
"""Operators behind an injection within which values must agree again."""
PARAMETRIC = {
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "LSTM",
    "GRU",
    "RNN",
    "BatchNormalization",
}
"""Operators whose result agrees by accident hardly ever: one such value behind an injection proves it."""


STRICTER = ((10.0, 2.0), (50.0, 1.5))
"""What the tolerance becomes (output error divided by this) and the growth that is excused, when the first look was vague."""


def locate(pair: Pair, *, deadline: float = float("inf")) -> Located:
    """Find all faults of a pair; look more strictly where the usual tolerance hides where an error began.

    A value that is a little wrong counts as equal when its error is within the tolerance or grew as rounding does. Where
    that leaves nothing but a wide region, smaller errors are told apart, down to the noise of the outputs themselves.
    """
    first = pair.theirs
    best = Localizer(pair, deadline=deadline).run()
    for divisor, growth in STRICTER:
        if best.sharp or time.monotonic() > deadline:
            break
        errors = [error for output in pair.outputs if output.bad and np.isfinite(error := best.before[output.target])]
        floor = max((output.floor for output in pair.outputs if np.isfinite(output.floor)), default=0.0)
        tolerance = max(max(errors, default=0.0) / divisor, 2 * floor)
        if not errors or tolerance >= pair.tolerance:
            continue
        kept = pair.theirs, pair.tolerance, pair.growth
        pair.theirs, pair.tolerance, pair.growth = first, tolerance, growth
        other = Localizer(pair, deadline=deadline).run()
        if other.better(best):
            best = other
        else:
            pair.theirs, pair.tolerance, pair.growth = kept
    return best


class Localizer:
    """The search over one pair. `deadline`: time.monotonic() after which the best so far is returned."""

    def __init__(self, pair: Pair, *, deadline: float = float("inf")) -> None:
        self.pair, self.deadline = pair, deadline
        self.injected: dict[str, np.ndarray] = {}
        self.tries = 0
        self.alignment = self._aligned()
        self.first = self.alignment
        self.before = {output.target: pair.output_error(output) for output in pair.outputs}
        self.now = dict(self.before)

    def run(self) -> Located:
        """Find all faults."""
        located = Located(alignment=self.first, before=self.before)
        for _ in range(ROUNDS):
            if not self._bad() or time.monotonic() > self.deadline:
                break
            found = self._round()
            if found is None:
                break
            located.findings.append(found)
        wrong = [output.target for output in self.pair.outputs if output.bad]
        worst = min((share(self.before[name], self.now[name]) for name in wrong), default=1.0)
        located.healed = not self._bad() or (bool(located.findings) and worst >= 1 - RESIDUE)
        located.injected, located.tries, located.after = self.injected, self.tries, self.alignment
        if not located.healed:
            rest = self._unproven()
            if rest is not None:
                located.findings.append(rest)
        return located

    # -- what a reduced precision judges in another way (`locally.py`)

    def _aligned(self, anew: Iterable[str] | None = None) -> Alignment:
        """Pair the values as they are now; with `anew`, only those have changed since the last time."""
        return self.pair.align() if anew is None else self.pair.align(self.alignment, list(anew))

    @property
    def _same(self) -> float:
        """Error up to which a value behind an injection agrees with one of the source's."""
        return self.pair.tolerance

    def _useful(self, trial: Trial) -> bool:
        """Whether an injection that does not heal everything proves a fault."""
        return trial.outputs > 0 or trial.gained > 0

    def _bad(self) -> list[Output]:
        """The outputs that the verification calls wrong and that still are."""
        return [output for output in self.pair.outputs if output.bad and self.now[output.target] > self._limit(output)]

    def _limit(self, output: Output) -> float:
        """Error from which an output is right again."""
        floor = output.floor if np.isfinite(output.floor) else 0.0
        return max(self.pair.tolerance, NOISE * floor)

    def _healed(self, output: Output, error: float) -> bool:
        """Whether an injection has mended all that it can: smaller faults elsewhere may stay."""
        now = self.now[output.target]
        return error <= max(self._limit(output), RESIDUE * now if np.isfinite(now) else 0.0)

    # -- one fault

    def _round(self) -> Finding | None:
        """Find and keep the next injection that proves a fault: the first value at which something heals.

        Among the hypotheses at one value, one that heals the outputs is better than one that only makes the values
        behind it agree again, which a compensating mistake can do too.
        """
        bad = self._bad()
        search = Candidates(self.pair, self.alignment, [output.target for output in bad])
        best: Trial | None = None
        for tried, (candidate, array) in enumerate(self._fresh(search)):
            if best is not None and candidate.target != best.candidate.target:
                break
            if tried >= TRIES or time.monotonic() > self.deadline:
                break
            trials = self._try(candidate, array, search, bad)
            healing = [trial for trial in trials if trial.healed]
            if healing:
                best = healing[0]
                break
            useful = [trial for trial in trials if self._useful(trial)]
            best = max([*useful, *([best] if best else [])], key=lambda trial: trial.rank, default=None)
        return None if best is None else self._accept(best, search)

    def _fresh(self, search: Candidates) -> Iterator[tuple[Candidate, np.ndarray]]:
        """The hypotheses that would change anything, with what they put in."""
        for candidate in search.all():
            array = self._array(candidate)
            if array is not None and not self._nothing_new(candidate, array):
                yield candidate, array

    def _array(self, candidate: Candidate) -> np.ndarray | None:
        """What is to be put in: the source's value in the target's shape and dtype."""
        value = self.pair.ours.values[candidate.source]
        current = self.pair.theirs.values.get(candidate.target)
        if current is None:
            return None
        shape = current.shape[1:]
        tight = self.pair.ours.infos[candidate.source].tight
        if candidate.kind in ("reshape", "layout") and candidate.relation.side == "source":
            sizes = [tight[axis] for axis in candidate.relation.permutation]
            ones = [axis for axis, size in enumerate(shape) if size == 1]
            if len(shape) - len(ones) == len(tight):
                left = iter(sizes)
                shape = tuple(1 if axis in ones else next(left) for axis in range(len(shape)))
            elif candidate.kind == "reshape":
                return None
        try:
            return np.ascontiguousarray(candidate.relation.to_target(np.asarray(value), shape)).astype(
                current.dtype, copy=False
            )
        except ValueError:
            return None

    def _nothing_new(self, candidate: Candidate, array: np.ndarray) -> bool:
        current = self.pair.theirs.values[candidate.target]
        if current.shape != array.shape:
            return False
        if current.dtype.kind in "fiub" and np.isfinite(current).all() and np.isfinite(array).all():
            unit = self.pair.ours.infos[candidate.source].unit
            gap = relations.error(array, np.asarray(current), Relation(tuple(range(_rank(array)))), unit)
            return bool(gap <= min(self.pair.tolerance, 1e-6))
        return bool(np.array_equal(current, array, equal_nan=current.dtype.kind == "f"))

    def _try(self, candidate: Candidate, array: np.ndarray, search: Candidates, bad: Sequence[Output]) -> list[Trial]:
        """Put the value in and see what heals; none when it cannot be run.

        At a value that agrees, all its readers get the other value; where that does not heal, only those that are wrong.
        """
        plain = self._trial(candidate, {candidate.target: array}, search, bad)
        if plain is None or plain.healed or candidate.kind != "missing":
            return [] if plain is None else [plain]
        given = self._for_wrong_readers(candidate, array, search)
        other = None if given is None else self._trial(candidate, given, search, bad)
        return [trial for trial in (plain, other) if trial is not None]

    def _trial(
        self, candidate: Candidate, given: Mapping[str, np.ndarray], search: Candidates, bad: Sequence[Output]
    ) -> Trial | None:
        self.tries += 1
        near = [name for name in self._near(candidate.target, search) if name not in given]
        wanted = [*(output.target for output in self.pair.outputs if output.bad and output.target not in given), *near]
        reply = self.pair.target.replay({**self.injected, **given}, list(dict.fromkeys(wanted)))
        if isinstance(reply, Failure):
            return None
        values = {**reply.value.emitted, **given}
        errors = {
            output.target: self.pair.output_error(output, values[output.target])
            if output.target in values
            else float("inf")
            for output in self.pair.outputs
            if output.bad
        }
        gained = self._gained(candidate, [(name, values[name]) for name in near if name in values])
        self.pair.target.session.pool.release(reply.value.folder)
        healed = [self._healed(output, errors[output.target]) for output in bad]
        return Trial(candidate, given, errors, all(healed), sum(healed), gained)

    def _for_wrong_readers(
        self, candidate: Candidate, array: np.ndarray, search: Candidates
    ) -> dict[str, np.ndarray] | None:
        """What the readers that are wrong make of the value; None when there are no others."""
        graph = self.pair.theirs.graph
        readers = [graph.nodes[place] for place in graph.consumers.get(candidate.target, ())]
        wrong = [name for node in readers for name in node.outputs if name in search.frontier]
        wrong = [name for name in wrong if name in self.pair.theirs.infos]
        if not wrong or all(any(name in wrong for name in node.outputs) for node in readers):
            return None
        reply = self.pair.target.replay({**self.injected, candidate.target: array}, wanted=wrong)
        if isinstance(reply, Failure):
            return None
        made = {name: np.array(value) for name, value in reply.value.emitted.items()}
        self.pair.target.session.pool.release(reply.value.folder)
        return made or None

    def _near(self, target: str, search: Candidates) -> list[str]:
        """Wrong values at most BEHIND operators behind an injection."""
        front, found = [target], []
        for _ in range(BEHIND):
            front = [
                child
                for name in front
                for child in self.pair.theirs.graph.children(name)
                if child in search.wrong and child not in found and child in self.pair.theirs.infos
            ]
            found += front
        return [name for name in dict.fromkeys(found) if name not in self.injected][:12]

    def _gained(self, candidate: Candidate, values: Sequence[tuple[str, np.ndarray]]) -> int:
        """How many values behind the injection agree with unexplained source values again; 0 when too few to prove it.

        Values that only move the injected elements about agree whatever was put in, and do not count.
        """
        graph = self.pair.theirs.graph
        moved = {candidate.target}
        gained = 0
        proven = False
        for name, array in values:
            node = graph.producer(name)
            if node is not None and node.op in MOVEMENT and all(p in moved for p in graph.parents(name)):
                moved.add(name)
            elif self._recognised(array):
                gained += 1
                proven = proven or (node is not None and node.op in PARAMETRIC)
        return gained if gained >= 2 or proven else 0

    def _recognised(self, array: np.ndarray) -> bool:
        """Whether some source value that had no twin has this value's sketch."""
        info = describe(array)
        group = self.pair.ours.by_size.get(info.size) if info.kind is Kind.ACT else None
        if group is None:
            return False
        names, sketches, units = group
        gaps = np.sqrt(np.mean((sketches - info.sketch.ravel()) ** 2, axis=1)) / units
        return any(
            gaps[index] <= self._same and name not in self.alignment.explained for index, name in enumerate(names)
        )

    # -- keeping it

    def _accept(self, trial: Trial, search: Candidates) -> Finding:
        candidate = trial.candidate
        before = max((self.now[name] for name in trial.errors), default=0.0)
        after = max(trial.errors.values(), default=0.0)
        removed = share(before, after)
        first = max((self.before[name] for name in trial.errors), default=0.0)
        match = self.alignment.matches.get(candidate.target)
        same = match is not None and match.source == candidate.source and np.isfinite(match.error)
        finding = Finding(
            kind=candidate.kind,
            target=candidate.target,
            source=candidate.source,
            relation=candidate.relation,
            region=self._region(candidate, search),
            source_region=self._source_region(candidate),
            accumulated=match.error if same and match is not None else self._deviation(candidate),
            local=self._local(candidate),
            causal=removed if not np.isfinite(before) or first <= 0 else removed * min(1.0, before / first),
            confirmed=trial.healed or removed > 0.5,
            prior=self._prior(candidate, search),
        )
        self._inject(trial.given)
        return replace(finding, confirmed=finding.confirmed or self._ok_behind(trial.given))

    def _prior(self, candidate: Candidate, search: Candidates) -> dict[str, float]:
        """For a wrong order of elements: the nodes whose result agrees in an unnatural order only are to blame."""
        graph = self.pair.theirs.graph
        if candidate.kind != "layout":
            return {}
        values = {candidate.target, *search.unnatural(candidate.anchor), *search.chain(candidate.anchor)}
        order = sorted(values, key=lambda value: self.pair.theirs.place[value])
        made = [(value, node) for value in order if (node := graph.producer(value)) is not None]
        movers = [(value, node) for value, node in made if node.op in MOVEMENT]
        found = {node.name: -1.0 for _, node in made if movers and node.op not in MOVEMENT}
        odd = [
            node.name
            for value, node in movers or made
            if not self._natural_twin(value, self.alignment.matches[value].source, search)
        ]
        for place, name in enumerate(odd):  # the first; those behind it only pass it on
            found[name] = 1.0 if place else 2.0
        for value, node in movers or made:
            if value == candidate.target:
                found[node.name] = found.get(node.name, 0.0) + 0.5
        return found

    def _natural_twin(self, value: str, source: str, search: Candidates) -> bool:
        """Whether some source value of the class is this value in natural order."""
        theirs = self.pair.theirs
        for other in search.same(source):
            ours = self.pair.ours.infos[other]
            for relation in relations.possible(ours.tight, theirs.infos[value].tight):
                if search.natural(relation, ours.tight, theirs.infos[value].tight) and relation.side == "source":
                    error = relations.error(self.pair.ours.values[other], theirs.values[value], relation, ours.unit)
                    if error <= self.pair.tolerance:
                        return True
        return False

    def _ok_behind(self, given: Iterable[str]) -> bool:
        return any(self.alignment.ok(name) for target in given for name in self.pair.theirs.graph.children(target))

    def _deviation(self, candidate: Candidate) -> float:
        current = self.pair.theirs.values[candidate.target]
        unit = self.pair.ours.infos[candidate.source].unit
        return relations.error(self.pair.ours.values[candidate.source], current, candidate.relation, unit)

    def _region(self, candidate: Candidate, search: Candidates) -> tuple[str, ...]:
        graph = self.pair.theirs.graph
        ok = {name for name in self.pair.theirs.infos if self.alignment.ok(name)}
        if candidate.target in ok:  # a fault before or behind a value that agrees, or in what moved it there
            above = search.unnatural(candidate.anchor) if candidate.kind == "layout" else []
            values = [candidate.target, *above, *search.chain(candidate.anchor or candidate.target)]
            values.sort(key=lambda value: self.pair.theirs.place[value])
            nodes = [node for value in dict.fromkeys(values) if (node := graph.producer(value)) is not None]
            nodes += [
                graph.nodes[place]
                for place in graph.consumers.get(candidate.anchor or candidate.target, ())
                if any(name in search.wrong for name in graph.nodes[place].outputs)
            ]
            return tuple(dict.fromkeys(node.name for node in nodes))
        return tuple(node.name for node in graph.between(candidate.target, ok))

    def _source_region(self, candidate: Candidate) -> tuple[str, ...]:
        graph = self.pair.ours.graph
        explained = self.alignment.explained - ({candidate.source} if candidate.kind != "extra" else set())
        if candidate.kind == "layout":
            # Both those that order the elements and those that read them: their weights may be in another order instead.
            nodes = [graph.producer(candidate.source)]
            same = self.alignment.alike.get(candidate.source)
            heads = [name for name, other in self.alignment.alike.items() if other == same] or [candidate.source]
            nodes += [graph.nodes[place] for name in heads for place in graph.consumers.get(name, ())]
            return tuple(dict.fromkeys(node.name for node in nodes if node is not None))
        return tuple(node.name for node in graph.between(candidate.source, explained))

    def _local(self, candidate: Candidate) -> float:
        """Deviation of the value when the operators before it get the source's values."""
        given: dict[str, np.ndarray] = {}
        near = self.pair.theirs.graph.nearest(candidate.target, lambda name: name in self.alignment.matches)
        for name in near:
            match = self.alignment.matches[name]
            if not match.ok and match.how in ("name", "output", "shuffle"):
                return float("nan")
            array = self._array(Candidate(kind="local", target=name, source=match.source, relation=match.relation))
            if array is not None:
                given[name] = array
        reply = self.pair.target.replay({**self.injected, **given}, [candidate.target])
        if isinstance(reply, Failure) or candidate.target not in reply.value.emitted:
            return float("nan")
        unit = self.pair.ours.infos[candidate.source].unit
        found = relations.error(
            self.pair.ours.values[candidate.source],
            reply.value.emitted[candidate.target],
            candidate.relation,
            unit,
        )
        self.pair.target.session.pool.release(reply.value.folder)
        return found

    def _inject(self, given: Mapping[str, np.ndarray]) -> None:
        """Keep values put in: compute everything behind them anew, and align that again."""
        pair = self.pair
        self.injected.update(given)
        below = pair.theirs.graph.downward(given)
        behind = [name for name in below if name not in given and name in pair.theirs.infos]
        wanted = [name for name in behind if name not in self.injected]
        values = dict(pair.theirs.values)
        described: dict[str, Info] = dict(pair.theirs.infos)
        for name, array in given.items():
            values[name], described[name] = array, describe(array)
        if wanted:
            reply = pair.target.replay(self.injected, wanted)
            if not isinstance(reply, Failure):
                pair.target.replies.append(reply.value)
                for name, value in reply.value.emitted.items():
                    values[name] = value
                    described[name] = describe(value)
        pair.theirs = View(graph=pair.theirs.graph, values=values, infos=described)
        self.alignment = self._aligned([*given, *behind])
        self.now = {output.target: pair.output_error(output) for output in pair.outputs}

    def _unproven(self) -> Finding | None:
        """Where the error begins, when no hypothesis heals it: the first wrong value and the operators before it."""
        search = Candidates(self.pair, self.alignment, [output.target for output in self._bad()])
        for target in search.frontier:
            ok = {name for name in self.pair.theirs.infos if self.alignment.ok(name)}
            region = tuple(node.name for node in self.pair.theirs.graph.between(target, ok))
            if not region:
                continue
            match = self.alignment.matches.get(target)
            guess = next((name for names in search.unexplained.values() for name in names), None)
            source = match.source if match is not None else guess
            relation = None if match is None else match.relation
            nodes = () if source is None else self.pair.ours.graph.between(source, self.alignment.explained - {source})
            return Finding(
                kind="unproven",
                target=target,
                source=source,
                relation=relation,
                region=region,
                source_region=tuple(node.name for node in nodes),
                accumulated=float("nan") if match is None else match.error,
                local=float("nan"),
                causal=float("nan"),
                confirmed=False,
            )
        return None


def _rank(array: np.ndarray) -> int:
    return sum(size != 1 for size in array.shape[1:])
