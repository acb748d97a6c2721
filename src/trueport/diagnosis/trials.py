"""A target tried with changed inputs, and how far what it then gives is from what the source gives.

The runs at hand are parted once: on some a change is searched for, on the others, which the search never sees, it is
checked. Deviations are in units of the source's input-dependent part, the worst output counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trueport import feeds, reconcile
from trueport.artifact import Artifact, Signature
from trueport.compare.metrics import spread
from trueport.compare.results import RATIO_BOUND_RMS
from trueport.compare.types import Verification
from trueport.compare.values import has_batch_axis, normalise
from trueport.diagnosis.inputs import Change
from trueport.feeds import Case, Feeds
from trueport.feeds.dims import batch_axes
from trueport.outcome import Failure
from trueport.session import Session
from trueport.verification import Reference, in_reals, output_grids, within_calibration

SEARCH_RUNS = 4
"""Runs on which changes are tried: as few as tell what depends on the input (METHOD, inputs), since there are hundreds."""
CHECK_RUNS = 8
"""Runs per case on which a change that heals is checked."""
MANY_SAMPLES = 4
"""Samples per run beyond which a case with a smaller batch serves the search."""
DROWNED = 0.3
"""Floor, as a share of the signal, beyond which an output of a case says nothing about its inputs."""
CAP = 0.1
"""Share of the signal that a noise floor may excuse."""
REDUCED_BOUND = 1.5
REDUCED_CAP = 0.3
"""The same where int8 or float16 is declared: a clean int8 twin is off by up to 0.29 (METHOD); changes that do not heal
left 0.59 and more of ResNet-8."""
JOB_BYTES = 64 << 20
"""Bytes of changed inputs that go to the worker in one job."""
JOB_CASES = 48
SCORED = 4
"""Outputs of a model for which it is tried whether their classes are shifted."""
CLASSES = 3
"""Least classes of an output whose classes may be shifted: of two, a shift leaves one."""


@dataclass(frozen=True, slots=True)
class LabelOffset:
    """Class i of the source is class i + offset of the target, in output `output` of the target. The numbers of classes
    are None where both sides have as many, or the output holds class numbers themselves."""

    output: str
    offset: int
    source_classes: int | None
    target_classes: int | None

    def __str__(self) -> str:
        counts = (
            f" ({self.source_classes} classes in the source, {self.target_classes} in the target)"
            if self.source_classes != self.target_classes
            else ""
        )
        if self.offset == 0:
            return f"output {self.output}: the classes beyond the common ones have no counterpart{counts}"
        shift = f"+ {self.offset}" if self.offset > 0 else f"- {-self.offset}"
        extra = ": a background class comes first" if self.offset == 1 and counts else ""
        return f"output {self.output}: class i of the source is class i {shift} of the target{counts}{extra}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One change of one target input, tried. deviation: of the worst output, with the classes read as `labels` says;
    plain: with the classes read as they stand (infinite where the shapes do not allow it, or the target failed)."""

    input: str
    change: Change
    deviation: float
    plain: float
    unlike: float
    """How far the sorted values of the outputs lie apart: small where only the places of elements are wrong."""
    labels: LabelOffset | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Output:
    """A pair of outputs with what their deviation is held against. dev: case -> input-dependent part of the source."""

    source: str
    target: str
    permutation: tuple[int, ...] | None
    dev: Mapping[str, float]


Part = Mapping[str, np.ndarray]
"""Case name -> numbers of its runs."""


@dataclass(slots=True, kw_only=True)
class Trials:
    """The runs of both models on one set of inputs, parted for search and check."""

    session: Session
    target: Artifact
    signature: Signature
    cases: Mapping[str, Case]
    """The cases as the target takes them, unchanged."""
    truth: Mapping[str, Mapping[str, Any]]
    outputs: tuple[_Output, ...]
    search: Part
    check: Part
    noise: float
    """Deviation up to which the outputs are as good as equal."""
    sources: Mapping[str, str]
    """Target input -> source input."""
    grids: Mapping[str, reconcile.Grid]
    generated: bool
    """The inputs were made up, so their range tells nothing about what either model expects."""
    labels: Mapping[str, np.ndarray]
    """Case name -> class numbers, [R, samples per run]."""
    ran: int = 0
    """Runs of the target so far."""

    def try_all(self, tried: Sequence[tuple[str, Change]], *, part: Part | None = None) -> list[Trial]:
        """Run the target with each (input, change) on the runs of `part` (absent: those for the search)."""
        chosen = self.search if part is None else part
        found: list[Trial] = []
        for group in self._grouped(tried, chosen):
            runs = self._run(group, chosen)
            for number, (name, change) in enumerate(group):
                values = self._values(number, runs, chosen)
                deviation, plain, labels = _deviation(values)
                unlike = max([_unlike(value) for value in values], default=math.inf)
                found.append(
                    Trial(input=name, change=change, deviation=deviation, plain=plain, unlike=unlike, labels=labels)
                )
            runs.release(self.session)
        return found

    def errors(self, name: str, changes: Sequence[Change], labels: LabelOffset | None) -> list[np.ndarray | None]:
        """For each change the errors of all outputs on the search runs, in their units, as one vector; None for a failure."""
        runs = self._run([(name, change) for change in changes], self.search)
        vectors = []
        for number in range(len(changes)):
            parts: list[np.ndarray] = []
            for value in self._values(number, runs, self.search):
                pair = _paired(value.source, value.target, _offset_of(labels, value.name))
                if pair is None or pair[0].dtype.kind != "f":
                    parts = []
                    break
                parts.append(((pair[1] - pair[0]) / value.dev).ravel())
            vectors.append(np.concatenate(parts) if parts else None)
        runs.release(self.session)
        return vectors

    def decisions(self, trial: Trial, part: Part) -> tuple[float, float | None, float | None] | None:
        """(share of equal labels, accuracy of the source, of the target) with a trial's change; None for other tasks."""
        runs = self._run([(trial.input, trial.change)], part)
        equal, right = [], []
        for value in self._values(0, runs, part):
            source, target = value.source, value.target
            if target is None or source.ndim != 3 or source.dtype.kind != "f" or source.shape[-1] < 2:
                continue
            ours, theirs = source.argmax(-1), target.argmax(-1) - _offset_of(trial.labels, value.name)
            equal.append((ours == theirs).ravel())
            wanted = self.labels[value.case][part[value.case]] if value.case in self.labels else None
            if wanted is not None and wanted.shape == ours.shape:
                right.append(np.stack([(ours == wanted).ravel(), (theirs == wanted).ravel()]))
        runs.release(self.session)
        if not equal:
            return None
        accuracy = np.concatenate(right, axis=1).mean(1).tolist() if right else [None, None]
        return float(np.concatenate(equal).mean()), accuracy[0], accuracy[1]

    # -- running ------------------------------------------------------------------------------------------------

    def _grouped(self, tried: Sequence[tuple[str, Change]], part: Part) -> list[list[tuple[str, Change]]]:
        """Jobs of bounded size."""
        size = sum(
            array[0].nbytes * len(places)
            for case, places in part.items()
            for array in self.cases[case].inputs.values()
            if len(array)
        )
        count = max(1, min(JOB_CASES, JOB_BYTES // max(1, size)))
        return [list(tried[start : start + count]) for start in range(0, len(tried), count)]

    def _run(self, group: Sequence[tuple[str, Change]], part: Part) -> _Runs:
        cases = []
        for number, (name, change) in enumerate(group):
            for case, places in part.items():
                inputs = {key: array[places] for key, array in self.cases[case].inputs.items()}
                inputs[name] = change.apply(inputs[name])
                cases.append(Case(name=f"{number}:{case}", kind="data", inputs=inputs))
                self.ran += len(places)
        outcome = self.session.run(self.target, cases)
        if isinstance(outcome, Failure):
            return _Runs(values={}, folders=())
        return _Runs(values=in_reals(outcome.value.runs, self.grids), folders=outcome.value.folders)

    def _values(self, number: int, runs: _Runs, part: Part) -> list[_Value]:
        """What both sides give in all outputs and cases."""
        found = []
        for case, places in part.items():
            given = runs.values.get(f"{number}:{case}")
            for output in self.outputs:
                if case not in output.dev:
                    continue
                source = np.asarray(self.truth[case][output.source])[places]
                target = None
                if given is not None and not isinstance(given, Failure) and output.target in given:
                    value = normalise(given[output.target])
                    target = value if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" else None
                found.append(
                    _Value(
                        case=case,
                        name=output.target,
                        dev=output.dev[case],
                        source=_work(source, output.permutation),
                        target=None if target is None else _work(target, None),
                    )
                )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Value:
    """One output in one case, [runs, *shape] on either side; target None where it failed."""

    case: str
    name: str
    dev: float
    source: np.ndarray
    target: np.ndarray | None


@dataclass(frozen=True, slots=True)
class _Runs:
    values: Mapping[str, Any]
    folders: tuple[Any, ...]

    def release(self, session: Session) -> None:
        """Free the disk."""
        for folder in self.folders:
            session.pool.release(folder)


def _deviation(values: Sequence[_Value]) -> tuple[float, float, LabelOffset | None]:
    """Deviation of the worst output under the best reading of the classes, and as they stand; and that reading."""
    if not values or any(value.target is None for value in values):
        return math.inf, math.inf, None
    errors: dict[str, dict[int, list[float]]] = {}
    sizes: dict[str, tuple[int | None, int | None]] = {}
    for value in values:
        for offset in _offsets(value.source, value.target):
            error = _error(value, offset)
            errors.setdefault(value.name, {}).setdefault(offset, []).append(error)
        sizes[value.name] = _sizes(value)
    stands = {name: _rms(by[0]) for name, by in errors.items()}
    plain = math.inf if any(first != last for first, last in sizes.values()) else max(stands.values())
    best, labels = max(stands.values()), None
    for name in list(stands)[:SCORED]:
        others = [value for other, value in stands.items() if other != name]
        for offset, found in errors[name].items():
            shifted = max([_rms(found), *others])
            if shifted < 0.5 * best or (offset == 0 and sizes[name][0] != sizes[name][1] and labels is None):
                labels = LabelOffset(name, offset, *sizes[name])
                best = shifted
    return best, plain, labels


def _sizes(value: _Value) -> tuple[int | None, int | None]:
    """Numbers of classes on both sides, where they differ."""
    if value.target is None or value.source.shape == value.target.shape or value.source.dtype.kind != "f":
        return None, None
    return value.source.shape[-1], value.target.shape[-1]


def _unlike(value: _Value) -> float:
    """Distance of the sorted values, both taken from the source's mean: a constant output is far, a shuffled one near."""
    if value.target is None or value.source.shape != value.target.shape or value.source.dtype.kind != "f":
        return math.inf
    mean = value.source.mean(tuple(range(min(2, value.source.ndim - 1))), keepdims=True)
    left, right = np.sort((value.source - mean).ravel()), np.sort((value.target - mean).ravel())
    with np.errstate(all="ignore"):
        apart = float(np.sqrt(np.mean((left - right) ** 2)) / value.dev)
    return apart if math.isfinite(apart) else math.inf


def _work(value: np.ndarray, permutation: tuple[int, ...] | None) -> np.ndarray:
    """In float64 where it is a float, in the target's layout."""
    if permutation is not None and value.ndim == len(permutation) + 1:
        value = value.transpose(0, *(axis + 1 for axis in permutation))
    with np.errstate(invalid="ignore"):  # a signalling NaN, as memory that nobody wrote may hold
        return value.astype(np.float64) if value.dtype.kind == "f" else value.astype(np.int64)


def _rms(values: Sequence[float]) -> float:
    return (
        math.sqrt(sum(value * value for value in values) / len(values)) if all(map(math.isfinite, values)) else math.inf
    )


def _offset_of(labels: LabelOffset | None, output: str) -> int:
    return labels.offset if labels is not None and labels.output == output else 0


def _offsets(source: np.ndarray, target: np.ndarray | None) -> tuple[int, ...]:
    """Shifts of the classes that are tried: of rows of scores, or of class numbers."""
    if target is None:
        return (0,)
    scores = source.ndim == 3 and source.dtype.kind == "f" and min(source.shape[-1], target.shape[-1]) >= CLASSES
    numbers = source.dtype.kind == "i" and target.dtype.kind == "i" and source.size > 1 and int(source.max()) > 1
    return (0, 1, -1) if scores or numbers else (0,)


def _paired(source: np.ndarray, target: np.ndarray | None, offset: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Both sides cut to the elements that answer to each other; None where the shapes do not allow it."""
    if target is None:
        return None
    if source.dtype.kind == "i":
        return (source, target - offset) if source.shape == target.shape else None
    if source.shape == target.shape and offset == 0:
        return source, target
    if source.ndim != 3 or source.shape[:-1] != target.shape[:-1] or abs(source.shape[-1] - target.shape[-1]) > 1:
        return None
    first = max(0, -offset)
    last = min(source.shape[-1], target.shape[-1] - offset)
    return source[..., first:last], target[..., first + offset : last + offset]


def _error(value: _Value, offset: int) -> float:
    """Deviation of one output in one case: rms over the signal, or the share of unequal integers."""
    pair = _paired(value.source, value.target, offset)
    if pair is None or not pair[0].size:
        return math.inf
    left, right = pair
    if left.dtype.kind == "i" or right.dtype.kind == "i":
        return float(np.mean(left != right))
    known = np.isfinite(left)
    if not np.array_equal(known, np.isfinite(right)):
        return math.inf
    apart = np.where(known, right - left, 0.0)
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.mean(apart * apart)) / value.dev)


# Setting up


def prepare(source: Reference, target: Artifact, given: Feeds, verification: Verification) -> Trials | None:
    """Part the runs of a verification for trials; None where nothing can be tried: nothing compared, too few runs, no signal."""
    session = source.session
    loaded = session.signature(target)
    if isinstance(loaded, Failure):
        return None
    signature, declared = loaded.value, verification.declared_precision
    given = within_calibration(given, declared) if "step" in target.made_by else given
    names, layout = target.made_by.get("names", {}), target.made_by.get("layout", {})
    mapping = reconcile.reconcile_inputs(source.signature, signature, names, layout)
    if mapping.problems:
        return None
    common = feeds.restrict(given, source.signature, signature, mapping=mapping)
    measured = source.measure(common, declared) if common.of_kind("data") else None
    if measured is None or isinstance(measured, Failure):
        return None
    on_source, on_target, _ = output_grids(source.signature, signature, names, layout)
    runs = in_reals(measured.value.runs.runs, on_source)
    usable = {
        case.name: case
        for case in common.cases
        if case.kind != "probe" and not isinstance(runs.get(case.name), (Failure, type(None)))
    }
    outputs = _outputs(source.signature, verification, usable, runs)
    search, check = _parted(usable, outputs, source.signature)
    if not search or not check:
        return None
    theirs = {case.name: case for case in reconcile.apply(mapping, replace(common, cases=tuple(usable.values())))}
    return Trials(
        session=session,
        target=target,
        signature=signature,
        cases=theirs,
        truth={name: runs[name] for name in usable},  # type: ignore[misc]
        outputs=outputs,
        search=search,
        check=check,
        noise=_noise(verification, [*search, *check]),
        sources={rule.target: rule.source for rule in mapping.rules},
        grids=on_target,
        generated=given.origin.startswith("generated"),
        labels=_labels(common, source.signature),
    )


def _outputs(
    signature: Signature, verification: Verification, cases: Mapping[str, Case], runs: Mapping[str, Any]
) -> tuple[_Output, ...]:
    """The compared pairs that say something about the inputs."""
    found = []
    for report in verification.comparison.outputs:
        batch = has_batch_axis(signature, report.source)
        dev = {}
        for name in cases:
            value = normalise(runs[name].get(report.source, []))
            if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or not value.size:
                continue
            told = spread(value, batch=batch)
            hidden = report.cases.get(name, {}).get("floor", 0.0) > DROWNED
            if told.constant or hidden:
                continue
            dev[name] = told.dev
        if dev:
            found.append(_Output(source=report.source, target=report.target, permutation=report.permutation, dev=dev))
    return tuple(found)


def _parted(
    cases: Mapping[str, Case], outputs: Sequence[_Output], signature: Signature
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs for the search and for the check; no sample is in both."""
    telling = [name for name in cases if any(name in output.dev for output in outputs)]
    data = [name for name in telling if cases[name].kind == "data"]
    if not data:
        return {}, {}
    axes = batch_axes(signature)
    small = [
        name
        for name in telling
        if cases[name].kind == "batch" and _samples(cases[name], axes) < _samples(cases[data[0]], axes)
    ]
    if _samples(cases[data[0]], axes) > MANY_SAMPLES and small:
        # A batch case repeats the first samples of the data.
        seen = math.ceil(cases[small[0]].runs * _samples(cases[small[0]], axes) / _samples(cases[data[0]], axes))
        search = {small[0]: _evenly(np.arange(cases[small[0]].runs), SEARCH_RUNS)}
        check = {name: np.arange(seen if name == data[0] else 0, cases[name].runs) for name in data}
    else:
        count = max(2, SEARCH_RUNS // len(data))
        search = {
            name: _evenly(np.arange(cases[name].runs), min(count, max(1, cases[name].runs // 2))) for name in data
        }
        check = {name: np.setdiff1d(np.arange(cases[name].runs), search[name]) for name in data}
    return search, {name: _evenly(places, CHECK_RUNS) for name, places in check.items() if len(places)}


def _samples(case: Case, axes: Mapping[str, int | None]) -> int:
    """Samples of one run."""
    for name, axis in axes.items():
        if axis is not None and name in case.inputs:
            return int(case.inputs[name].shape[axis + 1])
    return 1


def _evenly(places: np.ndarray, count: int) -> np.ndarray:
    return places if count >= len(places) else places[np.arange(count) * len(places) // count]


def _noise(verification: Verification, cases: Sequence[str]) -> float:
    """How far outputs may be off for reasons of rounding: the largest floor of any output, with the bound that a verdict
    allows it; where a coarser precision is declared and simulated, hardly more than the simulated error."""
    reduced = verification.declared_precision != "float32"
    floors = [
        report.cases[case]["floor"]
        for report in verification.comparison.outputs
        for case in cases
        if case in report.cases and math.isfinite(report.cases[case]["floor"])
    ]
    bound, cap = (REDUCED_BOUND, REDUCED_CAP) if reduced else (RATIO_BOUND_RMS, CAP)
    return min(bound * max(floors, default=0.0), cap)


def _labels(common: Feeds, signature: Signature) -> dict[str, np.ndarray]:
    """The labels of each data case, [R, samples per run]."""
    if common.labels is None:
        return {}
    axes, start, found = batch_axes(signature), 0, {}
    for case in common.of_kind("data"):
        size = _samples(case, axes)
        part = common.labels[start : start + case.runs * size]
        if len(part) == case.runs * size:
            found[case.name] = part.reshape(case.runs, size)
        start += case.runs * size
    return found
