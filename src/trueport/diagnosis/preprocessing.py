"""Does the target only expect other inputs than it is given? Searches the change of its inputs under which it matches.

A change is reported only when it takes the deviation away on the runs of the search and on runs that the search did not
see. What heals nothing is no finding: two models that differ in anything else give None.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trueport.artifact import Artifact, TensorSpec
from trueport.compare.types import Verdict, Verification
from trueport.diagnosis.conventions import CONVENTIONS, Named, between, name_of, pairs
from trueport.diagnosis.inputs import Change, Explanation, placements
from trueport.diagnosis.trials import LabelOffset, Trial, Trials, prepare
from trueport.diagnosis.types import Cause, Evidence, Suspect
from trueport.dtypes import value_dtype
from trueport.feeds import Feeds
from trueport.feeds.dims import channel_axis
from trueport.verification import Reference

HEALED = 0.02
"""Share of the deviation before, and of the signal, that may be left (the same share as in the causal test of METHOD)."""
KEPT = 3
"""Best trials of a stage that the next stage builds on."""
ALIKE = 1.5
"""Ratio of deviations up to which two changes heal equally well; the simpler one is then given, the other as a rival."""
EXACT = 1e-3
"""Deviation above which a healing change from the table may still be a neighbour of the true one, so it is refined."""
INPUTS = 3
"""Inputs of a target that are tried, those that look like pictures first."""
PLACEMENTS = 24
"""Flips and orders of axes that are tried, the simplest first."""
COMMON = CONVENTIONS[:5]
WIDER = 4.0
"""Times that a convention's range may be wider than that of the values at hand (dark pictures) to be a likely one."""
SHIFTS = (-1, 1, -2, 2, -3, 3)
"""Shifts of token numbers: vocabularies that reserve numbers for padding, start and unknown words."""
TRACE = 5e-4
"""Shift, in units of the value that is scaled, that is left of two conventions which mean the same."""
ROUNDING = 1e-6
"""Deviation that says nothing: rounding of float32."""
GROUP = 48
"""Changes between two looks at the clock."""
ROUNDS = 8
"""Steps of the least-squares fit of an unnamed scale and shift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessingFinding:
    """The target's inputs, or its classes, are not the source's; `change` (and `labels`) make up for all of it.

    before, after: deviation of the outputs in units of the source's signal, on the runs of the search; checked_*: on
    others. agreement_*, accuracy_*: share of equal labels with the source, and of right labels where labels are known.
    fitted: scale and shift were fitted, no known convention has them.
    """

    input: str
    source_input: str
    change: Change
    labels: LabelOffset | None
    source_words: str
    target_words: str
    before: float
    after: float
    checked_before: float
    checked_after: float
    distance: float
    """Between the input as it is and as the target expects it, in standard deviations of the latter."""
    agreement_before: float | None = None
    agreement_after: float | None = None
    accuracy_source: float | None = None
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    rivals: tuple[str, ...] = ()
    fitted: bool = False
    tried: int = 0

    @property
    def share(self) -> float:
        """Share of the deviation that the change takes away, on runs that the search did not see."""
        return max(0.0, 1.0 - self.checked_after / self.checked_before)

    @property
    def confidence(self) -> float:
        """Between 0 and 1. A fitted scale and shift may as well be a fault of the first layer's weights."""
        return 0.5 if self.fitted else 0.9 if self.rivals else 0.95

    def __str__(self) -> str:
        said = []
        if not self.change.identity:
            said.append(f"source: {self.source_words}; target expects {self.target_words}")
        if self.labels is not None:
            said.append(str(self.labels))
        text = "; ".join(said)
        if not self.change.identity:
            text += f". Changing input '{self.input}' by {', then '.join(self.change.phrases())}"
        else:
            text += ". Reading the classes so"
        text += f" takes {100 * self.share:.3g} % of the deviation away ({self._was()} to {self.checked_after:.2g} of the signal, on inputs that the search did not use)"
        if self.agreement_before is not None and self.agreement_after is not None:
            text += f"; equal labels go from {self.agreement_before:.1%} to {self.agreement_after:.1%}"
        if self.accuracy_after is not None and self.accuracy_before is not None and self.accuracy_source is not None:
            text += f", accuracy from {self.accuracy_before:.1%} to {self.accuracy_after:.1%} (source: {self.accuracy_source:.1%})"
        if self.fitted:
            text += ". Scale and shift were fitted and belong to no known convention: a first layer whose weights or bias are wrong looks the same"
        if self.rivals:
            text += f". As good: {' or '.join(self.rivals)}"
        return text

    def _was(self) -> str:
        return (
            f"{self.checked_before:.2g}" if math.isfinite(self.checked_before) else "outputs that could not be compared"
        )

    def evidence(self) -> Evidence:
        """As evidence against the target's input."""
        return Evidence(
            node=self.input,
            source_nodes=(self.source_input,),
            cause=Cause.INPUTS,
            what=str(self),
            source_value=self.source_words,
            target_value=self._target_value(),
            weight=5.0 * self.confidence,
        )

    def suspect(self, rank: int = 1) -> Suspect:
        """As a suspect of a diagnosis."""
        place = self.input if self.labels is None or not self.change.identity else self.labels.output
        error = self.distance if place == self.input else min(self.checked_before, 1.0)
        return Suspect(
            rank=rank,
            target_nodes=(place,),
            source_nodes=(self.source_input,) if place == self.input else (),
            accumulated=error,
            local=error,
            causal=self.share,
            cause=Cause.INPUTS,
            what=str(self),
            source_value=self.source_words,
            target_value=self._target_value(),
            confidence=self.confidence,
        )

    def _target_value(self) -> str:
        words = [] if self.change.identity else [self.target_words]
        return "; ".join([*words, *([str(self.labels)] if self.labels is not None else [])])


def search(
    source: Reference,
    target: Artifact,
    given: Feeds,
    verification: Verification,
    *,
    seconds: float = 120.0,
    fitted: bool = False,
) -> PreprocessingFinding | None:
    """Find the change of the target's inputs (or classes) under which it gives what the source gives.

    given: what `verification` was made on. seconds: after which no further stage is begun. fitted: also take a scale and
    shift that no convention has; from outside, a first layer with wrong weights looks just like that.
    None when the verdict is FAITHFUL, when nothing heals, or when there are too few runs to check what heals.
    """
    if verification.verdict == Verdict.FAITHFUL:
        return None
    trials = prepare(source, target, given, verification)
    if trials is None:
        return None
    names = _inputs(trials)
    if not names:
        return None
    until = time.perf_counter() + seconds
    for name in names:
        hunt = _Search(trials=trials, name=name, until=until, fit=fitted)
        found = hunt.go()
        if found:
            return _checked(trials, hunt, found)
    return None


def _inputs(trials: Trials) -> list[str]:
    """Target inputs whose values can be changed, pictures first."""
    specs = [spec for spec in trials.signature.inputs if spec.name in trials.sources]
    usable = [
        spec
        for spec in specs
        if (dtype := value_dtype(spec)) is not None and dtype.kind in "fiu" and _array(trials, spec.name).ndim >= 2
    ]
    return [spec.name for spec in sorted(usable, key=lambda spec: _rank(spec))][:INPUTS]


def _rank(spec: TensorSpec) -> int:
    shape = spec.shape or ()
    return 0 if channel_axis(shape) is not None else 1 if len(shape) >= 3 else 2


def _array(trials: Trials, name: str) -> np.ndarray:
    """The values of an input in the first case of the search."""
    return np.asarray(trials.cases[next(iter(trials.search))].inputs[name])


@dataclass(slots=True)
class _Search:
    """The search over one input. before: deviation with unchanged inputs, infinite when shapes do not even allow one."""

    trials: Trials
    name: str
    until: float
    fit: bool = False
    before: float = math.inf

    def healed(self, trial: Trial) -> bool:
        """Whether a trial leaves nothing but noise."""
        return heals(self.before, trial.deviation, self.trials.noise)

    def go(self) -> list[Trial]:
        """All trials that heal, the best first; nothing when none does."""
        array = _array(self.trials, self.name)
        none, axis = Change.none(array.ndim - 1), channel_axis(array.shape[1:])
        unchanged = self.trials.try_all([(self.name, none)])[0]
        self.before = unchanged.plain
        if self.healed(unchanged):
            return [unchanged]
        if array.dtype.kind in "iu" and axis is None:
            return self._best(self._try([replace(none, shift=(float(shift),)) for shift in SHIFTS]))
        best = [replace(unchanged, change=replace(none, axis=axis))]
        unmoved = list(best)
        for stage in (_numbers, _places, _both, _rare, _places):
            if time.perf_counter() > self.until:
                return []
            done = self._try(stage(array, axis, [trial.change for trial in best]))
            healed = self._best(done)
            if healed:
                return self._refined(healed, axis)
            best = _kept([*best, *done])
            unmoved += [trial for trial in done if not trial.change.moves]
        return self._fitted([*_kept(unmoved), *best], axis) if self.fit else []

    def _try(self, changes: Sequence[Change]) -> list[Trial]:
        """Try each different change; what comes exactly out ends the stage early, as does the end of the time."""
        unique = {_identity(change): change for change in reversed(changes)}
        tried = [(self.name, change) for change in reversed(unique.values())]
        done: list[Trial] = []
        for start in range(0, len(tried), GROUP):
            done += self.trials.try_all(tried[start : start + GROUP])
            if time.perf_counter() > self.until or min(trial.deviation for trial in done) <= EXACT / 10:
                break
        return done

    def _best(self, done: Sequence[Trial]) -> list[Trial]:
        """The trials that heal and are as good as the best of them, the simplest first."""
        healed = [trial for trial in done if self.healed(trial)]
        if not healed:
            return []
        least = min(trial.deviation for trial in healed) * ALIKE + ROUNDING
        good = [trial for trial in healed if trial.deviation <= least]
        return sorted(good, key=lambda trial: trial.change.steps)

    # -- what no table holds --------------------------------------------------------------------------------------

    def _refined(self, healed: list[Trial], axis: int | None) -> list[Trial]:
        """A change from the table that leaves too much gives way to a fitted one that leaves far less, or to none."""
        best = healed[0]
        if best.deviation <= max(self.trials.noise, EXACT):
            return healed
        better = self._fit(best, axis)
        if better is None or better.deviation >= 0.1 * best.deviation:
            return healed
        known = _named(self.trials, _array(self.trials, self.name), better.change) is not None
        return [better] if known or self.fit else []

    def _fitted(self, best: Sequence[Trial], axis: int | None) -> list[Trial]:
        """Fit scale and shift from the most promising trials on."""
        for trial in best:
            if not math.isfinite(trial.deviation) or time.perf_counter() > self.until:
                continue
            better = self._fit(trial, axis)
            if better is not None and self.healed(better):
                return [better]
        return []

    def _fit(self, start: Trial, axis: int | None) -> Trial | None:
        """Levenberg-Marquardt steps on scale and shift per channel, by differences; None where it cannot be done."""
        array = _array(self.trials, self.name)
        if array.dtype.kind != "f":
            return None
        count = array.shape[axis + 1] if axis is not None and array.shape[axis + 1] <= 4 else 1
        at = np.concatenate([np.resize(start.change.scale, count), np.resize(start.change.shift, count)])
        spread = float(array.std()) or 1.0
        unit = np.concatenate([np.full(count, 1.0), np.full(count, spread)]) * np.abs(at[:count]).mean()

        def made(place: np.ndarray) -> Change:
            scale, shift = tuple(place[:count].tolist()), tuple(place[count:].tolist())
            return replace(start.change, axis=axis, scale=scale, shift=shift)

        weight = 1e-3
        current = self.trials.errors(self.name, [made(at)], start.labels)[0]
        if current is None or len(current) < 2 * len(at):
            return None
        for _ in range(ROUNDS):
            steps = np.diag(unit * 1e-3)
            moved = self.trials.errors(self.name, [made(at + step) for step in steps], start.labels)
            if any(column is None or not np.isfinite(column).all() for column in moved):
                return None
            slope = np.stack([(column - current) / 1e-3 for column in moved if column is not None], axis=1)
            squared, pull = slope.T @ slope, slope.T @ current
            weights = weight * np.array([0.01, 1.0, 100.0, 1e4])
            places = [
                at - unit * np.linalg.lstsq(squared + w * np.diag(np.diag(squared) + 1e-12), pull, rcond=None)[0]
                for w in weights
            ]
            tried = self.trials.errors(self.name, [made(place) for place in places], start.labels)
            scores = [
                math.inf if error is None or not np.isfinite(error).all() else float(error @ error) for error in tried
            ]
            least = int(np.argmin(scores))
            chosen = tried[least]
            if chosen is None or not scores[least] < float(current @ current) * 0.999:
                break
            at, current, weight = places[least], chosen, float(weights[least])
        return self._rounded(made(at), array)

    def _rounded(self, fitted: Change, array: np.ndarray) -> Trial:
        """A fitted change, or the one between two known conventions that it means."""
        named = _named(self.trials, array, fitted)
        traces = [shift if abs(shift) > TRACE * max(map(abs, fitted.scale)) else 0.0 for shift in fitted.shift]
        changes = [fitted, replace(fitted, shift=tuple(traces))]
        if named is not None:
            scale, shift = between(named.source, named.target, _channels(fitted, array), named.source_order or "RGB")
            shift = np.where(np.abs(shift) <= TRACE * np.abs(scale), 0.0, shift)
            changes.append(replace(fitted, scale=tuple(scale.tolist()), shift=tuple(shift.tolist())))
        tried = self.trials.try_all([(self.name, change) for change in changes])
        return tried[-1] if tried[-1].deviation <= max(ALIKE * tried[0].deviation, EXACT / 10) else tried[0]


def heals(before: float, after: float, noise: float) -> bool:
    """Whether a deviation, in units of the signal, is gone: within the noise, or a small share of both the deviation
    before and the signal (a target whose outputs are far too large comes a thousand times nearer by becoming any model)."""
    return after <= max(noise, HEALED * min(before, 1.0)) and after <= 0.25 * before


def _identity(change: Change) -> tuple[object, ...]:
    """Equal for changes that do the same."""
    order = change.channels if change.reorders else None
    return change.permutation, change.shape, change.flips, order, _digits(change.scale), _digits(change.shift)


def _digits(numbers: Sequence[float]) -> tuple[str, ...]:
    listed = tuple(f"{number:.6g}" for number in numbers)
    return listed[:1] if len(set(listed)) == 1 else listed


def _kept(done: Sequence[Trial]) -> list[Trial]:
    """What the next stage builds on: what came nearest, and what gave the right values in the wrong places."""
    near = sorted(done, key=lambda trial: (trial.deviation, trial.change.steps))[:KEPT]
    alike = sorted(done, key=lambda trial: (trial.unlike, trial.change.steps))[:KEPT]
    return list({_identity(trial.change): trial for trial in (*near, *alike)}.values())


# Candidates


def _numbers(array: np.ndarray, axis: int | None, best: Sequence[Change]) -> list[Change]:
    """Scales and shifts between known conventions, the first being one whose range the values have; channels reversed."""
    return _with_orders([best[0], *_between_conventions(array, axis, likely=True)], array, axis)


def _places(array: np.ndarray, axis: int | None, best: Sequence[Change]) -> list[Change]:
    """The best so far, with every flip and every order of axes that keeps the shape."""
    if array.ndim < 4:
        return []
    shape = array.shape[1:]
    usable = [place for place in placements(shape, shape) if axis is None or place.axis == axis]
    bases = [*best, replace(Change.none(len(shape)), axis=axis)]
    return [
        replace(base, permutation=place.permutation, flips=place.flips)
        for place in usable[:PLACEMENTS]
        for base in bases
    ]


def _both(array: np.ndarray, axis: int | None, best: Sequence[Change]) -> list[Change]:
    """Every known scale and shift in the places that came nearest."""
    moved = [change for change in best if change.flips or change.permutation != tuple(range(len(change.permutation)))]
    numbers = _between_conventions(array, axis, likely=True)
    merged = [replace(place, scale=item.scale, shift=item.shift, axis=axis) for place in moved for item in numbers]
    return _with_orders(merged, array, axis)


def _rare(array: np.ndarray, axis: int | None, best: Sequence[Change]) -> list[Change]:
    """Scales and shifts that begin with another range than the values have: both models may be fed the wrong one."""
    return _with_orders(_between_conventions(array, axis, likely=False), array, axis)


def _between_conventions(array: np.ndarray, axis: int | None, *, likely: bool) -> list[Change]:
    channels = array.shape[axis + 1] if axis is not None else 1
    low, high = float(array.min()), float(array.max())
    found: list[Change] = []
    for first, second in pairs(channels):
        inside = first.low <= low + 1e-6 and high <= first.high + 1e-6
        fits = inside and first.high - first.low <= WIDER * (high - low)
        if fits != likely or not (fits or {first, second} & set(COMMON)):
            continue
        for order in ("RGB", "BGR") if channels == 3 else ("RGB",):
            scale, shift = between(first, second, range(channels), order)
            shift = np.where(np.abs(shift) <= TRACE * np.abs(scale), 0.0, shift)
            none = Change.none(array.ndim - 1)
            found.append(replace(none, axis=axis, scale=tuple(scale.tolist()), shift=tuple(shift.tolist())))
    return found


def _with_orders(changes: Sequence[Change], array: np.ndarray, axis: int | None) -> list[Change]:
    """Each change as it is, and with the channels of a colour picture the other way round."""
    if axis is None or array.shape[axis + 1] != 3:
        return list(changes)
    turned = [replace(change, axis=axis, channels=None if change.reorders else (2, 1, 0)) for change in changes]
    return [*changes, *turned]


# The check on unseen runs


def _checked(trials: Trials, hunt: _Search, healed: list[Trial]) -> PreprocessingFinding | None:
    """The finding, when the best trial heals on the unseen runs as well."""
    best, none = healed[0], Change.none(len(healed[0].change.permutation))
    healing, unchanged = trials.try_all([(best.input, best.change), (best.input, none)], part=trials.check)
    shown = unchanged.plain > 0.0 or math.isnan(unchanged.plain)  # else the unseen runs have nothing to heal
    if not (shown and heals(unchanged.plain, healing.deviation, trials.noise)) or healing.labels != best.labels:
        return None
    array = _array(trials, best.input)
    named = _named(trials, array, best.change)
    words = _words(array, best.change, named)
    decided = trials.decisions(best, trials.check)
    undecided = trials.decisions(replace(best, change=none, labels=None), trials.check)
    expected = best.change.apply(array, dtype=np.dtype(np.float64))
    apart = expected - array if expected.shape == array.shape else expected
    return PreprocessingFinding(
        input=best.input,
        source_input=trials.sources[best.input],
        change=best.change,
        labels=best.labels,
        source_words=words[0],
        target_words=words[1],
        before=hunt.before,
        after=best.deviation,
        checked_before=unchanged.plain,
        checked_after=healing.deviation,
        distance=float(np.sqrt(np.mean(apart**2)) / (expected.std() or 1.0)),
        agreement_before=None if undecided is None else undecided[0],
        agreement_after=None if decided is None else decided[0],
        accuracy_source=None if decided is None else decided[1],
        accuracy_before=None if undecided is None else undecided[2],
        accuracy_after=None if decided is None else decided[2],
        rivals=tuple(_words(array, trial.change, _named(trials, array, trial.change))[1] for trial in healed[1:4]),
        fitted=best.change.scales and named is None and array.dtype.kind == "f",
        tried=trials.ran,
    )


def _named(trials: Trials, array: np.ndarray, change: Change) -> Named | None:
    """The name of the change's numbers, told by the range of the values."""
    channels = _channels(change, array)
    scale, shift = (np.resize(np.array(numbers), len(channels)) for numbers in (change.scale, change.shift))
    low, high = (math.nan, math.nan) if trials.generated else (float(array.min()), float(array.max()))
    spread = float(change.apply(array, dtype=np.dtype(np.float64)).std()) or 1.0
    return name_of(scale, shift, channels, low=low, high=high, spread=spread)


def _channels(change: Change, array: np.ndarray) -> tuple[int, ...]:
    """Which of the source's channels each channel holds."""
    if change.axis is None:
        return (0,)
    return tuple(range(array.shape[change.axis + 1])) if change.channels is None else change.channels


def _words(array: np.ndarray, change: Change, named: Named | None) -> tuple[str, str]:
    """What the source gets and what the target expects."""
    told = Explanation(change=change, residual=0.0, named=named if change.scales or change.reorders else None)
    return told.source_words, told.target_words
