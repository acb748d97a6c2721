"""Is the twin faithful? Runs source and target on the same inputs, measures the noise floor, and compares.

The source's side (its runs and its floor) is computed once per set of inputs and kept in a `Reference`, because a
conversion verifies many targets against one source.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trueport import __version__, feeds, reconcile
from trueport.artifact import Artifact, Signature
from trueport.compare.decisions import TASKS
from trueport.compare.pairing import Layout, pair_outputs
from trueport.compare.types import Comparison, FloorRun, RunSet, Verdict, Verification
from trueport.compare.verdict import compare
from trueport.errors import UsageError
from trueport.feeds import Case, Feeds
from trueport.outcome import Failure, Kind, Ok, Outcome
from trueport.reconcile import Grid
from trueport.session import RunResults, Session, framework_of

FLOOR_RUNS = 4
"""Runs per case on which the noise floor is measured: 2, 3 and 6 runs gave the same floor on the prototype's models."""

CURES = {
    Kind.TIMED_OUT: "; allow more with --timeout",
    Kind.OUT_OF_MEMORY: "; allow more with --memory",
}
"""What helps a user whose own model does not load."""

CLOSER_RUNS = 64
"""Runs per case on which it is measured again before a target is said to deviate. A network can be far more sensitive on
one input than on the first four: a clean EfficientNetB0 was off by 200 floors of the first four on the eighth."""

SIMULATED = ("float16", "int8-dynamic", "int8")
"""Reduced precisions that a target may declare, judged against the source with the same rounding simulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The source on one set of inputs: what it gives, once more, and in other, equally right ways."""

    runs: RunResults
    repeat: RunSet
    floors: tuple[FloorRun, ...]
    notes: tuple[str, ...]
    seconds: Mapping[str, float]


@dataclass(slots=True)
class Reference:
    """The source's side of a verification, measured once per set of inputs and declared precision."""

    session: Session
    artifact: Artifact
    signature: Signature
    _measured: dict[tuple[str, str], Measured] = field(default_factory=dict)
    _closer: dict[tuple[str, str], tuple[FloorRun, ...]] = field(default_factory=dict)

    def measure(self, given: Feeds, precision: str) -> Outcome[Measured]:
        """Run the source and its floor variants on `given`. A Failure only when no data case runs at all."""
        key = (given.sha256, precision)
        if key not in self._measured:
            outcome = self._measure(given, precision)
            if isinstance(outcome, Failure):
                return outcome
            self._measured[key] = outcome.value
        return Ok(self._measured[key])

    def _measure(self, given: Feeds, precision: str) -> Outcome[Measured]:
        started = time.perf_counter()
        outcome = self.session.run(self.artifact, given.cases)
        if isinstance(outcome, Failure):
            return outcome
        runs = outcome.value
        data_failures = [runs.failures.get(case.name) for case in given.cases if case.kind == "data"]
        if data_failures and all(failure is not None for failure in data_failures):
            return next(failure for failure in data_failures if failure is not None)
        run_seconds = time.perf_counter() - started
        few = [head(case) for case in given.cases if case.name not in runs.failures]
        repeat = self._runs(few, "float32", None)
        floors, notes = self._floors(few, given, precision)
        seconds = {"source_run": run_seconds, "floor": time.perf_counter() - started - run_seconds}
        return Ok(Measured(runs=runs, repeat=repeat, floors=tuple(floors), notes=tuple(notes), seconds=seconds))

    def floors_closer(self, given: Feeds, precision: str, measured: Measured) -> tuple[FloorRun, ...]:
        """The floors of `measured`, with long cases evaluated on their first CLOSER_RUNS runs instead of FLOOR_RUNS."""
        key = (given.sha256, precision)
        if key not in self._closer:
            long = [
                replace(case, inputs={name: array[:CLOSER_RUNS] for name, array in case.inputs.items()})
                for case in given.cases
                if case.runs > FLOOR_RUNS and case.name not in measured.runs.failures
            ]
            more = {floor.how: floor.runs for floor in self._floors(long, given, precision)[0]} if long else {}
            self._closer[key] = tuple(
                replace(floor, runs={**floor.runs, **more.get(floor.how, {})}) for floor in measured.floors
            )
        return self._closer[key]

    def _runs(self, cases: Sequence[Case], precision: str, variant: str | None) -> RunSet:
        outcome = self.session.run(self.artifact, cases, precision=precision, variant=variant)
        return {case.name: outcome for case in cases} if isinstance(outcome, Failure) else outcome.value.runs

    def _floors(self, few: Sequence[Case], given: Feeds, precision: str) -> tuple[list[FloorRun], list[str]]:
        framework = framework_of(self.artifact.format)
        # A batch case holds samples of the data cases' kind, and `compare` pools the data cases' floors into its own.
        # Other kernels (XLA compiles for each shape) would double their cost there and tell nothing new.
        unlike = [case for case in few if case.kind != "batch"]
        floors = [
            FloorRun(how=f"kernels: {variant}", runs=self._runs(unlike, "float32", variant))
            for variant in framework.VARIANTS[1:]
        ]
        jittered = feeds.jitter(replace(given, cases=tuple(few)), self.session.settings.seed)
        if jittered is not None:
            floors.append(FloorRun(how="inputs moved by one ulp", runs=self._runs(jittered.cases, "float32", None)))
        if "float64" in framework.PRECISIONS:
            floors.append(FloorRun(how="float64", runs=self._runs(few, "float64", None)))
        notes = []
        if precision.startswith("int8") and given.origin.startswith("generated"):
            notes.append(
                "the inputs were generated: an int8 model is calibrated on real data, whose range they may leave; "
                "give real ones with --inputs"
            )
        if precision in SIMULATED:
            if precision in framework.PRECISIONS:
                runs = self._runs(few, precision, None)
                floors.append(FloorRun(how=f"simulated {precision}", runs=runs))
            else:
                notes.append(f"{framework.NAME} cannot simulate {precision}, so its expected error is not known")
        return floors, notes


def head(case: Case) -> Case:
    """Return the first runs of a case, on which the floor is measured."""
    return replace(case, inputs={name: array[:FLOOR_RUNS] for name, array in case.inputs.items()})


def reference(session: Session, source: Artifact) -> Outcome[Reference]:
    """Load the source. Raises UsageError when the file is damaged."""
    signature = session.signature(source)
    if isinstance(signature, Failure):
        return signature
    return Ok(Reference(session=session, artifact=source, signature=signature.value))


def check_request(task: str, precision: str | None) -> None:
    """Make sure, before the work begins, that the words of a request are known. Raises UsageError."""
    if task not in TASKS:
        raise UsageError(f"unknown task '{task}'; it is one of {', '.join(TASKS)}")
    known = ("float32", *SIMULATED)
    if precision is not None and precision not in known:
        raise UsageError(f"unknown precision '{precision}'; it is one of {', '.join(known)}")


def cannot_load(model: Artifact, failure: Failure) -> UsageError:
    """Say that a model which the user gave does not load, and what may help."""
    if failure.kind == Kind.UNAVAILABLE:
        return UsageError(failure.message)
    cure = CURES.get(failure.kind, "")
    return UsageError(f"{model.path.name} cannot be loaded ({failure.kind}): {failure.message}{cure}")


def verify(
    source: Reference,
    target: Artifact,
    given: Feeds,
    *,
    precision: str | None = None,
    task: str = "auto",
    rerun: Sequence[str] = (),
) -> Verification:
    """Compare a target with the source on `given` (in the source's layout).

    precision: what the target is declared to be; None takes what the target's own file says.
    Everything that goes wrong with a model ends as a verdict with its reason; a wrong request raises UsageError.
    """
    session, started = source.session, time.perf_counter()
    if isinstance(loaded := session.signature(target), Failure):
        return incomparable(source, target, given, precision, f"the target cannot be loaded: {loaded.message}", rerun)
    signature = loaded.value
    declared = precision or declared_precision(source.signature, signature)
    if "step" in target.made_by:  # converted here, and so calibrated as is known
        given = within_calibration(given, declared)
    names, layout = target.made_by.get("names", {}), target.made_by.get("layout", {})
    mapping = reconcile.reconcile_inputs(source.signature, signature, names, layout)
    if mapping.problems:
        reason = f"the inputs cannot be matched: {'; '.join(mapping.problems)}"
        return incomparable(source, target, given, declared, reason, rerun)
    common = feeds.restrict(given, source.signature, signature, mapping=mapping)
    if not common.cases:
        reason = f"source and target take no common input shape: {'; '.join(common.notes[-1:])}"
        return incomparable(source, target, common, declared, reason, rerun)
    if isinstance(measured := source.measure(common, declared), Failure):
        reason = f"the source does not run on these inputs ({measured.kind}): {measured.message}"
        return incomparable(source, target, common, declared, reason, rerun)
    target_started = time.perf_counter()
    cases = reconcile.apply(mapping, common)
    ran, repeated = _run_twice(session, target, cases)
    target_seconds = time.perf_counter() - target_started
    on_source, on_target, told = output_grids(source.signature, signature, names, layout)
    judged = partial(
        _compared,
        on_target,
        source_signature=source.signature,
        target_signature=signature,
        cases_kinds={case.name: case.kind for case in common.cases},
        source_runs=in_reals(measured.value.runs.runs, on_source),
        floors=[replace(floor, runs=in_reals(floor.runs, on_source)) for floor in measured.value.floors],
        declared_precision=declared,
        renames=names,
        layout=layout,
        task=task,
        labels=common.labels,
    )
    runs: dict[str, Any] = {
        "target_runs": ran.value.runs,
        "repeat_source": in_reals(measured.value.repeat, on_source),
        "repeat_target": None if isinstance(repeated, Failure) else repeated.value.runs,
    }
    result = judged(**runs)
    if result.verdict == Verdict.DEVIATES and any(case.runs > FLOOR_RUNS for case in common.cases):
        floors = source.floors_closer(common, declared, measured.value)
        judged = partial(judged, floors=[replace(floor, runs=in_reals(floor.runs, on_source)) for floor in floors])
        result = judged(**runs)
    if result.verdict == Verdict.DEVIATES:
        result = _with_runtime_note(result, session, target, cases, judged)
    result = _with_state(result, source.signature, signature)
    for done in (ran, repeated):  # what is left is numbers about them; the source's runs serve the next target
        if isinstance(done, Ok):
            session.release(done.value)
    timings = {**measured.value.seconds, "target_run": target_seconds, "total": time.perf_counter() - started}
    return Verification(
        comparison=result,
        source=source.artifact,
        target=target,
        inputs=describe(common),
        declared_precision=declared,
        versions=versions(measured.value.runs, ran.value),
        timings=timings,
        rerun=tuple(rerun) or rerun_command(session, source.artifact, target, common, declared),
        notes=(*source.artifact.made_by.get("notes", ()), *common.notes, *mapping.notes, *told, *measured.value.notes),
    )


def _run_twice(session: Session, target: Artifact, cases: Sequence[Case]) -> tuple[Ok[RunResults], Outcome[RunResults]]:
    """Run a target on all cases, and again on the first runs of those that went well: twice the same, or it is flaky."""
    ran = session.run(target, cases)
    if isinstance(ran, Failure):
        ran = Ok(RunResults(runs={case.name: ran for case in cases}, versions={}))
    return ran, session.run(target, [head(case) for case in cases if case.name not in ran.value.failures])


def output_grids(
    source: Signature, target: Signature, renames: Mapping[str, str], layout: Layout
) -> tuple[dict[str, Grid], dict[str, Grid], tuple[str, ...]]:
    """Tell which outputs hold bare integers whose partner's file tells the grid: of the source, of the target, notes.

    The partners are those that `compare` pairs, found from the signatures alone.
    """
    ours = {spec.name: spec for spec in source.outputs}
    theirs = {spec.name: spec for spec in target.outputs}
    on_source: dict[str, Grid] = {}
    on_target: dict[str, Grid] = {}
    notes = []
    for pair in pair_outputs(source, target, {}, {}, renames, layout).pairs:
        left, right = ours[pair.source], theirs[pair.target]
        grid = reconcile.grid_of(left, right)
        if grid is None:
            continue
        bare, side, whose = (on_target, "target", "source") if left.quantization else (on_source, "source", "target")
        name = pair.target if left.quantization else pair.source
        bare[name] = grid
        notes.append(f"{side} output {name}: its integers are compared as real values (the {whose}'s grid: {grid})")
    return on_source, on_target, tuple(notes)


def in_reals(runs: RunSet, grids: Mapping[str, Grid]) -> RunSet:
    """Return runs in which the named outputs hold what their integers stand for, float32. All else stays as it is.

    An output that came in another dtype than its grid's stays too: it is not what its signature says.
    """

    def real(name: str, value: Any) -> Any:
        grid = grids.get(name)
        if grid is None:
            return value
        if isinstance(value, list):
            return [real(name, part) for part in value]
        return grid.reals(value) if value.dtype == grid.dtype else value

    if not grids:
        return runs
    return {
        case: outputs if isinstance(outputs, Failure) else {name: real(name, value) for name, value in outputs.items()}
        for case, outputs in runs.items()
    }


def _compared(
    grids: Mapping[str, Grid], *, target_runs: RunSet, repeat_target: RunSet | None, **more: Any
) -> Comparison:
    """Compare, with the target's integers as real values."""
    repeat = None if repeat_target is None else in_reals(repeat_target, grids)
    return compare(target_runs=in_reals(target_runs, grids), repeat_target=repeat, **more)


def _with_runtime_note(
    result: Comparison, session: Session, target: Artifact, cases: Sequence[Case], judged: Callable[..., Comparison]
) -> Comparison:
    """When the target deviates, see whether its runtime does: another kernel set of it may be faithful."""
    for variant in framework_of(target.format).VARIANTS[1:]:
        ran = session.run(target, cases, variant=variant)
        if isinstance(ran, Failure) or ran.value.failures:
            continue
        other = judged(target_runs=ran.value.runs, repeat_source=None, repeat_target=None)
        session.release(ran.value)
        if other.verdict == Verdict.FAITHFUL:
            note = f"with the kernels '{variant}' the target is faithful: its default runtime is at fault, not the file"
            return replace(result, notes=(*result.notes, note))
    return result


def _with_state(result: Comparison, source: Signature, target: Signature) -> Comparison:
    """Every run begins from the stored state, so what a model keeps for its next call has not been compared."""
    keeps = [bool(signature.meta.get("writes_state")) for signature in (source, target)]
    if not any(keeps):
        return result
    whose = "both models keep" if all(keeps) else f"the {'source' if keeps[0] else 'target'} keeps"
    text = f"{whose} a state between calls, of which only the first call from the stored state was compared"
    if result.verdict == Verdict.FAITHFUL and not all(keeps):
        text = f"{text}: the other has none, so later calls must differ"
        return replace(result, verdict=Verdict.INCOMPARABLE, reason=text)
    return replace(result, notes=(*result.notes, text))


def within_calibration(given: Feeds, declared: str) -> Feeds:
    """Leave out the generated data cases in ranges that an int8 target was not calibrated on.

    Converters are calibrated on the first data case; outside its range an int8 model saturates, as it must.
    """
    data = [case for case in given.cases if case.kind == "data"]
    if declared != "int8" or not given.origin.startswith("generated") or len(data) < 2:
        return given
    cases = [case for case in given.cases if case.kind != "data" or case is data[0]]
    left = ", ".join(case.name for case in data[1:])
    notes = (*given.notes, f"left out for an int8 target: {left}, beyond the range of case {data[0].name}")
    count = given.count * data[0].runs // sum(case.runs for case in data)
    return Feeds.of(cases, origin=given.origin, count=count, seed=given.seed, labels=None, notes=notes)


def declared_precision(source: Signature, target: Signature) -> str:
    """Return the precision that the target's own file declares by its types, where it differs from the source's."""
    says = str(target.meta.get("precision", "float32"))
    return "float32" if says == source.meta.get("precision", "float32") or says not in SIMULATED else says


def versions(source: RunResults, target: RunResults) -> dict[str, str]:
    """Return what ran on either side, prefixed by side."""
    found = {"trueport": __version__, "numpy": np.__version__}
    found |= {f"source.{name}": version for name, version in source.versions.items()}
    return found | {f"target.{name}": version for name, version in target.versions.items()}


def describe(given: Feeds) -> dict[str, Any]:
    """Return the JSON form of where the inputs came from."""
    return {
        "origin": given.origin,
        "count": given.count,
        "seed": given.seed,
        "sha256": given.sha256,
        "cases": [{"name": case.name, "kind": case.kind, "runs": case.runs} for case in given.cases],
    }


def rerun_command(
    session: Session, source: Artifact, target: Artifact, given: Feeds, precision: str
) -> tuple[str, ...]:
    """Return the command line that repeats a verification; none when model or inputs live in this session only."""
    folder = session.pool.folder
    made = source.path.is_relative_to(folder)
    if made and "factory" not in source.made_by:
        return ()
    command = ["trueport", "verify", source.made_by["factory"] if made else str(source.path), str(target.path)]
    if "checkpoint" in source.made_by:
        command += ["--checkpoint", source.made_by["checkpoint"]]
    if "python" in source.made_by:
        command += ["--python", source.made_by["python"]]
    if session.settings.trust:
        command += ["--trust"]
    if precision != "float32":
        command += ["--precision", precision]
    command += ["--seed", str(given.seed)]
    if not given.origin.startswith("generated"):
        if not Path(given.origin).exists():
            return ()
        command += ["--inputs", str(Path(given.origin).absolute())]
    return (shlex.join(command),)


def incomparable(
    source: Reference,
    target: Artifact,
    given: Feeds,
    precision: str | None,
    reason: str,
    rerun: Sequence[str] = (),
) -> Verification:
    """Return the verification of a target that gives nothing to compare, for this reason."""
    comparison = Comparison(
        verdict=Verdict.INCOMPARABLE,
        reason=reason,
        outputs=(),
        unpaired_source=tuple(spec.name for spec in source.signature.outputs),
        unpaired_target=(),
        decisions=None,
    )
    return Verification(
        comparison=comparison,
        source=source.artifact,
        target=target,
        inputs=describe(given),
        declared_precision=precision or "float32",
        versions={"trueport": __version__},
        timings={},
        rerun=tuple(rerun) or rerun_command(source.session, source.artifact, target, given, precision or "float32"),
    )
