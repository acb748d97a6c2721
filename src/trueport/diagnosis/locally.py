"""Where the faults of a target of reduced precision sit: every operator is judged alone, on the source's own values.

Rounding adds up over a quantised model until no tolerance tells it from a fault. So the target is cut at every paired
value at once: each operator reads the source's values, and what it makes of them is off by its own rounding only. The
first value that is off by more is blamed, and the injection search proves it, with the noise of the declared precision as
what may stay. Values that were too disturbed to be paired are paired by what they become when computed alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from trueport.align import relations
from trueport.align.info import Kind, rms
from trueport.align.match import NEAR, View, align
from trueport.align.types import Alignment, Match, Relation
from trueport.diagnosis import localize
from trueport.diagnosis.candidates import MOVEMENT, Candidate, Candidates
from trueport.diagnosis.localize import Localizer
from trueport.diagnosis.located import Located, Trial, share
from trueport.diagnosis.pair import Output, Pair
from trueport.diagnosis.types import Cause, Evidence, Finding
from trueport.outcome import Failure

FITS = 0.1
"""Share of the least noise up to which two source values fit equally well; beyond it the nearer one is the twin."""
CLEARLY = 0.7
"""A value computed alone gets another twin when that leaves so small a share of the error."""
SWEEPS = 6
"""Times that the target is cut and paired anew; values behind a mispaired one are right one time later."""


class Noise(NamedTuple):
    """Local error of one operator: `least` is never a fault, `most` always is one, in between 4 times the median."""

    least: float
    most: float


NOISE: Mapping[str, Noise] = {
    "int8": Noise(0.1, 0.3),
    "int8-dynamic": Noise(0.04, 0.2),
    "float16": Noise(5e-3, 3e-2),
}
"""By declared precision. Clean int8 networks: median .027, at most .049 and .096; float16: median 4e-4, at most 2e-3."""

FIXED = ("Sigmoid", "Softmax", "LogSoftmax", "Tanh", "LpNormalization")
"""Operators whose integer grid is prescribed, however little of it the values fill: one step of it is no fault."""
MEDIANS = 4.0
"""Local errors above so many medians are outliers; those below are the network's own noise, however finely one looks."""
FINER = (1.0, 0.5, 0.25, 0.12, 0.06)
"""Shares of the least noise that are tried one after the other, while nothing is found."""
HEALED = 1.5
"""Times the output's own noise floor that may stay when a fault is healed: the few runs that are traced deviate most."""
GONE = 0.5
"""Share of the error that must go away at least, where an output is hardly worse than its floor."""
SLIGHT = 0.05
"""Share of the error below which an injection must show that it is needed."""
WORSE = 1.1
"""Growth of an output's error without which an injection was not needed."""
OUTSIDE = 0.005
"""Share of the elements beyond a grid's ends from which that is a finding; calibration may leave out rare extremes."""
EXPLAINS = 0.5
"""Share of a value's error that may stay once the source's value is cut off at the same ends."""
NATURAL = (-1.0, 0.0, 1.0, 6.0)
"""Where activations end: a value that ends there was not cut off by its grid."""
AT_END = 0.8
"""Share of those elements that must stand at the end of the grid: they were cut off, and are not small for another reason."""
SATURATED = 3.2
"""Weight of a grid whose ends cut the values off: above that of a parameter, which is seen less directly."""
NOTHING = "no operator by itself is off by more than the rounding of {}: the deviation adds up over the network"
PROVES = 0.3
"""Share of the error that an injection at an outlier must take away to be kept although more stays."""


def locate(pair: Pair, *, deadline: float = float("inf")) -> Located:
    """Find all faults of a pair, by the method that fits the declared precision of the target."""
    if pair.precision not in NOISE:
        return localize.locate(pair, deadline=deadline)
    cut_off = _beyond_calibration(pair)
    if cut_off is not None:
        return cut_off
    first = pair.theirs
    best: Located | None = None
    for part in FINER:
        pair.theirs = first
        search = Locally(pair, deadline=deadline, share=part)
        if search.suspicious():
            found = search.run()
        elif part == FINER[-1] and best is None:  # behind operators that are all right, what heals only compensates
            found = Located(alignment=search.alignment, before=search.before, notes=[NOTHING.format(pair.precision)])
        else:
            continue
        if best is None or found.better(best):
            best, kept = found, pair.theirs
        if best.healed or time.monotonic() > deadline:
            break
    assert best is not None
    pair.theirs = kept
    return best


def _beyond_calibration(pair: Pair) -> Located | None:
    """The quantisation of an input that cuts it off, where the source on the inputs cut off alike gives what the target gives."""
    graph = pair.target.graph
    matches = {match.target: match for match in pair.pins if match.how == "input"}
    for node in graph.nodes:
        pin = matches.get(node.inputs[0]) if node.inputs and node.outputs else None
        if pin is None or node.op != "QuantizeLinear" or node.outputs[0] not in pair.target.values:
            continue
        name, values = node.outputs[0], pair.target.values[node.outputs[0]]
        given = pair.source.inputs.get(pin.source)
        finding = Finding(
            kind="local",
            target=name,
            source=pin.source,
            relation=pin.relation,
            region=(node.name,),
            source_region=(),
            accumulated=_error(pair, values, Alone(pin.source, pin.relation, 0.0)),
            local=_error(pair, values, Alone(pin.source, pin.relation, 0.0)),
            causal=float("nan"),
            confirmed=True,
        )
        if given is None or saturation(pair, finding) is None:
            continue
        inputs = {**pair.source.inputs, pin.source: np.clip(given, values.min(), values.max())}
        wrong = [output for output in pair.outputs if output.bad]
        reply = pair.source.replay({}, [output.source for output in wrong], inputs=inputs)
        if isinstance(reply, Failure):
            continue
        before = {output.target: pair.output_error(output) for output in wrong}
        emitted = reply.value.emitted
        known = [output for output in wrong if output.source in emitted]
        gone = min(
            (_between(pair, output, emitted[output.source], before[output.target]) for output in known), default=0.0
        )
        pair.source.session.pool.release(reply.value.folder)
        if gone >= PROVES:
            return Located(findings=[replace(finding, causal=gone)], healed=True, alignment=pair.align(), before=before)
    return None


def _between(pair: Pair, output: Output, source: np.ndarray, before: float) -> float:
    """Share of an output's error that goes away when the source gives this instead."""
    unit = pair.ours.infos[output.source].unit
    return share(before, relations.error(source, pair.theirs.values[output.target], output.relation, unit))


@dataclass(frozen=True, slots=True)
class Alone:
    """One target value computed from the source's values: its twin, and the error of that."""

    source: str
    relation: Relation
    error: float


def sweep(pair: Pair, injected: Mapping[str, np.ndarray], same: float) -> dict[str, Alone]:
    """Cut the target at every paired value at once until the pairs stay; the local error of each paired value.

    same: error up to which two source values fit equally well.
    """
    accumulated = align(pair.ours, pair.theirs, pair.pins, tolerance=same)
    found = {
        name: Alone(match.source, match.relation, match.error)
        for name, match in accumulated.matches.items()
        if _pairs(pair, match)
    }
    for _ in range(SWEEPS):
        given = {name: array for name, one in found.items() if (array := _put_in(pair, name, one)) is not None}
        wanted = [name for name in pair.theirs.infos if name not in pair.target.inputs and name not in injected]
        reply = pair.target.replay({**given, **injected}, wanted)
        if isinstance(reply, Failure):
            break
        values = {**pair.theirs.values, **reply.value.emitted}
        again = _paired_alone(pair, found, values, same)
        pair.target.session.pool.release(reply.value.folder)
        settled = {name: (one.source, one.relation) for name, one in found.items()} == {
            name: (one.source, one.relation) for name, one in again.items()
        }
        found = again
        if settled:
            break
    return found


def _pairs(pair: Pair, match: Match) -> bool:
    """Whether a match by accumulated values is worth cutting at."""
    kind = pair.theirs.infos[match.target].kind
    if match.how == "output":  # its twin is known, whatever it holds
        return True
    return match.how not in ("input", "shuffle") and kind is Kind.ACT and match.error < NEAR


def _put_in(pair: Pair, target: str, one: Alone) -> np.ndarray | None:
    return _put_in_as(pair, one.source, one.relation, pair.theirs.values[target])


def _put_in_as(pair: Pair, source: str, relation: Relation, current: np.ndarray) -> np.ndarray | None:
    """A source value in the shape and type of a target value; None where the sizes differ."""
    try:
        array = relation.to_target(np.asarray(pair.ours.values[source]), current.shape[1:])
    except ValueError:
        return None
    return np.ascontiguousarray(array).astype(current.dtype, copy=False)


def _paired_alone(
    pair: Pair, before: Mapping[str, Alone], values: Mapping[str, np.ndarray], same: float
) -> dict[str, Alone]:
    """The twins of the values that were computed alone: what they were before, or what fits clearly better now."""
    view = View.of(pair.theirs.graph, values)
    matches = align(pair.ours, view, pair.pins, tolerance=same).matches
    found: dict[str, Alone] = {}
    for name in pair.theirs.infos:
        match, old = matches.get(name), before.get(name)
        kept = None if old is None else replace(old, error=_error(pair, values[name], old))
        fits = match is not None and match.how == "value" and match.error < NEAR
        if match is not None and fits and (kept is None or match.error < CLEARLY * kept.error):
            kept = Alone(match.source, match.relation, match.error)
        if kept is not None:
            found[name] = kept
    return found


def _error(pair: Pair, array: np.ndarray, one: Alone) -> float:
    return relations.error(pair.ours.values[one.source], array, one.relation, pair.ours.infos[one.source].unit)


class Locally(Localizer):
    """The injection search over values that are judged alone. `share`: of the least noise."""

    def __init__(self, pair: Pair, *, deadline: float = float("inf"), share: float = 1.0) -> None:
        self.kept: dict[str, tuple[str, ...]] = {}
        self.outliers: list[str] = []
        self.noise, self.share = NOISE[pair.precision], share
        self.threshold = self.noise.least * share
        self.alone: dict[str, Alone] = {}
        super().__init__(pair, deadline=deadline)

    def run(self) -> Located:
        """Find all faults, and leave out those that take next to nothing away and without which the outputs are as right.

        (What lies above another injection is never needed, so that alone proves nothing.)
        """
        located = super().run()
        for finding in list(located.findings):
            slight = finding.target in self.kept and finding.causal < SLIGHT
            if slight and len(located.findings) > 1 and not self._needed(finding):
                located.findings.remove(finding)
                for name in self.kept[finding.target]:
                    self.injected.pop(name, None)
        return located

    def _needed(self, finding: Finding) -> bool:
        """Whether the outputs get worse when only this finding's values are not put in."""
        rest = {name: array for name, array in self.injected.items() if name not in self.kept[finding.target]}
        wrong = [output for output in self.pair.outputs if output.bad and output.target not in rest]
        reply = self.pair.target.replay(rest, [output.target for output in wrong])
        if isinstance(reply, Failure):
            return True
        errors = {output.target: self.pair.output_error(output, reply.value.emitted[output.target]) for output in wrong}
        self.pair.target.session.pool.release(reply.value.folder)
        return any(
            errors[output.target] > max(self._limit(output), WORSE * self.now[output.target]) for output in wrong
        )

    def _round(self) -> Finding | None:
        """The next fault; none where every operator that is left is right, whatever of the deviation stays."""
        return super()._round() if self.suspicious() else None

    def _unproven(self) -> Finding | None:
        return super()._unproven() if self.suspicious() else None

    def _accept(self, trial: Trial, search: Candidates) -> Finding:
        finding = super()._accept(trial, search)
        self.kept[finding.target] = (*self.kept.get(finding.target, ()), *trial.given)
        return finding

    def _fresh(self, search: Candidates) -> Iterator[tuple[Candidate, np.ndarray]]:
        """The hypotheses; what the wrong value itself should be comes before what might be missing in front of it.

        The steps of an integer grid hide the difference between a hypothesis that heals and one that compensates a part;
        float16 is fine enough to tell them apart.
        """
        if self.pair.precision == "float16":
            yield from super()._fresh(search)
            return
        before: list[tuple[Candidate, np.ndarray]] = []
        last = ""
        for candidate, array in super()._fresh(search):
            if candidate.kind == "layout" and len(self.pair.ours.infos[candidate.source].tight) < 2:
                continue  # a vector has no other order of axes
            if candidate.kind == "missing" and self.alignment.ok(candidate.target):
                before.append((candidate, array))
                continue
            if not self.alignment.ok(candidate.target):
                if last and candidate.target != last:
                    yield from before
                    before = []
                last = candidate.target
            yield candidate, array
        yield from before

    def _try(self, candidate: Candidate, array: np.ndarray, search: Candidates, bad: Sequence[Output]) -> list[Trial]:
        """Put the value in; where the tensor's own grid cannot hold it, the values behind it too."""
        trials = super()._try(candidate, array, search, bad)
        if not trials or any(trial.healed for trial in trials) or not self._spoils(candidate, array):
            return trials
        given = {candidate.target: array}
        for name in self.pair.theirs.graph.children(candidate.target):
            one = self.alone.get(name)
            if one is not None and (behind := _put_in(self.pair, name, one)) is not None:
                given[name] = behind
        more = self._trial(candidate, given, search, bad) if len(given) > 1 else None
        if more is None or not max(more.errors.values()) < min(max(one.errors.values()) for one in trials):
            return trials
        return [more]

    def _spoils(self, candidate: Candidate, array: np.ndarray) -> bool:
        """Whether the grid on which the target's value lies is too coarse or too short for what is put in."""
        current = np.asarray(self.pair.theirs.values[candidate.target])
        step = _step(current)
        if self.pair.precision != "int8" or step == 0 or current.shape != array.shape:
            return False
        rounded = np.clip(np.round(array / step) * step, current.min(), current.max())
        unit = self.pair.ours.infos[candidate.source].unit
        return rms(rounded - np.asarray(array, np.float64)) / unit > self.threshold

    def _aligned(self, anew: Iterable[str] | None = None) -> Alignment:
        """The pairs of the sweep. What is an outlier, or computed from one, does not agree."""
        pair = self.pair
        self.alone = sweep(pair, self.injected, FITS * self.noise.least)
        computed = [one.error for name, one in self.alone.items() if self._computes(name)]
        median = float(np.median(computed)) if computed else 0.0
        self.threshold = max(self.share * self.noise.least, min(MEDIANS * median, self.noise.most))
        self.outliers = [name for name in self.alone if name not in self.injected and not self._sound(name)]
        behind = pair.theirs.graph.downward(self.outliers)
        plain = align(pair.ours, pair.theirs, pair.pins, tolerance=FITS * self.noise.least)
        matches = {name: self._judged(match, behind) for name, match in plain.matches.items()}
        for name, one in self.alone.items():
            error = _error(pair, pair.theirs.values[name], one)
            how = "value" if error < NEAR else "structure"
            if name in plain.matches and plain.matches[name].how == "output":
                how = "output"
            ok = name not in behind and self._sound(name)
            matches[name] = Match(
                target=name,
                source=one.source,
                relation=one.relation,
                error=error,
                how=how,
                ok=ok or name in self.injected,
            )
        heads = {pair.ours.alike.get(match.source) for match in matches.values() if match.ok}
        explained = {name for name, head in pair.ours.alike.items() if head in heads}
        explained |= {match.source for match in matches.values() if match.ok}
        return replace(plain, matches=matches, explained=frozenset(explained))

    def _judged(self, match: Match, behind: Mapping[str, None]) -> Match:
        """A match that the sweep did not make: inputs agree, nothing else does by its accumulated value."""
        return match if match.how == "input" else replace(match, ok=match.ok and match.target not in behind)

    def suspicious(self) -> bool:
        """Whether some operator is off by more than rounding, or something above a wrong output has no twin."""
        wrong = {output.target for output in self.pair.outputs if output.bad}
        graph, infos = self.pair.theirs.graph, self.pair.theirs.infos
        found = graph.upward(wrong, lambda name: name not in wrong and self.alignment.ok(name))
        lost = [name for name in found if name not in wrong and name in infos and infos[name].kind is Kind.ACT]
        return bool(self.outliers or lost)

    def _sound(self, name: str) -> bool:
        """Whether a value computed alone is off by no more than rounding."""
        one, node = self.alone[name], self.pair.theirs.graph.producer(name)
        if one.error <= self.threshold or node is None or node.op not in FIXED or self.pair.precision != "int8":
            return one.error <= self.threshold
        return one.error <= _step(self.pair.theirs.values[name]) / self.pair.ours.infos[one.source].unit

    def _computes(self, name: str) -> bool:
        node = self.pair.theirs.graph.producer(name)
        return node is not None and node.op not in MOVEMENT

    @property
    def _same(self) -> float:
        return self.threshold

    def _limit(self, output: Output) -> float:
        """Error from which an output is right again: its own noise and well below what it was, or next to nothing of that."""
        before = self.before[output.target]
        floor = HEALED * output.floor if np.isfinite(output.floor) else float("inf")
        limit = max(min(floor, GONE * before), localize.RESIDUE * before)
        return limit if np.isfinite(limit) else 0.0

    def _useful(self, trial: Trial) -> bool:
        """Whether an injection proves a fault although the outputs stay wrong: that of an outlier, which takes much away."""
        if self.alignment.ok(trial.candidate.target):  # beside a value that agrees, what heals in part compensates
            return False
        if super()._useful(trial):
            return True
        before = max((self.now[output] for output in trial.errors), default=0.0)
        left = max(trial.errors.values(), default=float("inf"))
        return share(before, left) >= PROVES


def saturation(pair: Pair, finding: Finding) -> Evidence | None:
    """The integer grid of the finding's value, where it cuts off what the source computes and that explains the error."""
    current, node = pair.target.values.get(finding.target), pair.target.graph.producer(finding.target)
    if pair.precision != "int8" or finding.source is None or finding.relation is None:
        return None
    if current is None or node is None or finding.source not in pair.ours.infos:
        return None
    array = _put_in_as(pair, finding.source, finding.relation, current)
    if array is None or not np.isfinite(array).all():
        return None
    low, high = float(current.min()), float(current.max())
    step = _step(current)
    if step == 0:
        return None
    below, above = (not any(abs(end - natural) < step for natural in NATURAL) for end in (low, high))
    beyond = ((array < low - step) & below) | ((array > high + step) & above)
    outside = float(beyond.mean())
    off = np.abs(np.asarray(current, np.float64) - np.clip(array, low, high))
    whole = rms(np.asarray(current, np.float64) - array)
    if outside < OUTSIDE or rms(off) > EXPLAINS * whole or np.mean(off[beyond] <= step) < AT_END:
        return None
    first = bool(set(node.inputs) & set(pair.target.graph.inputs))
    what = "of the input" if first else f"of what {node.native_op or node.op} gives"
    maker = pair.source.graph.producer(finding.source)
    return Evidence(
        node=node.name,
        source_nodes=() if maker is None else (maker.name,),
        cause=Cause.PRECISION,
        what=f"{outside:.1%} of the elements {what} lie outside the calibrated range [{low:.4g}, {high:.4g}]",
        source_value=f"{float(array.min()):.4g} to {float(array.max()):.4g}",
        target_value=f"{low:.4g} to {high:.4g} in steps of {step:.3g}",
        weight=SATURATED,
    )


def _step(values: np.ndarray) -> float:
    """The smallest distance between two different numbers of a value; 0 when all are equal."""
    steps = np.diff(np.unique(np.asarray(values, np.float64)))
    return float(steps.min()) if len(steps) else 0.0
