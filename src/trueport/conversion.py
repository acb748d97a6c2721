"""Convert a model along routes, hop by hop, and verify every hop.

Each hop's result is loaded before the hop counts as done (an exit code of 0 proves nothing), then compared with the
original source and with the hop before, so that a wrong hop is named. When a route fails or is not faithful, the next
one is tried; hops that routes share are converted once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trueport import publish, reconcile
from trueport.artifact import Artifact, Signature
from trueport.compare.types import Verdict, Verification
from trueport.envbuild import installed_versions
from trueport.errors import BadModelError, UntrustedError, UsageError
from trueport.feeds import Feeds, continued
from trueport.lineage import compose
from trueport.outcome import Failure, Kind, Ok, Outcome, Stage
from trueport.routes import Hop, Route, lower_opset
from trueport.session import Session, converter_of, first_run, framework_of
from trueport.toolchains import package_name, toolchains
from trueport.verification import Reference, cannot_load, incomparable, reference, verify
from trueport.worker.pool import Reply

CALIBRATION_RUNS = 100
"""Samples handed to a quantising converter: TensorFlow's own guide advises 100 to 500. Of generated inputs as many are made:
calibrated on 8, a small int8 model cut off values of other generated inputs (up to 24 floors), on 32 still (24), on 100
none (2.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HopResult:
    """One conversion step as it went. `verified` is against the original source, `against_previous` against its own input."""

    hop: Hop
    outcome: Outcome[Artifact]
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    verified: Verification | None = None
    against_previous: Verification | None = None

    @property
    def faithful(self) -> bool | None:
        """Whether this hop kept what it was given; None when that was not compared."""
        judged = self.against_previous or self.verified
        return None if judged is None else judged.verdict == Verdict.FAITHFUL


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One route as it went; the hops end at the first failure."""

    route: Route
    hops: tuple[HopResult, ...]

    @property
    def output(self) -> Artifact | None:
        """The converted model, when the last hop gave one."""
        last = self.hops[-1].outcome
        finished = isinstance(last, Ok) and last.value.format == self.route.target_format
        return last.value if finished and isinstance(last, Ok) and self._complete else None

    @property
    def _complete(self) -> bool:
        return self.hops[-1].hop.step == self.route.hops[-1].step

    @property
    def failure(self) -> Failure | None:
        """What stopped the route."""
        last = self.hops[-1].outcome
        return last if isinstance(last, Failure) else None

    @property
    def verification(self) -> Verification | None:
        """The finished model against the original source."""
        return self.hops[-1].verified if self.output is not None else None

    @property
    def blamed(self) -> HopResult | None:
        """The first hop that did not keep what it was given."""
        return next((hop for hop in self.hops if hop.faithful is False), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """`trueport/convert/1`: every attempt, and the one whose model was kept (None: no route succeeded).

    diagnosis: the `Diagnosis` of the kept model, where it is not faithful and one was asked for. repair: the `Repair` of
    it, and delivered: the verification of what lies at `output` since, where that is no longer what `chosen` gave. They
    are made in layers above this one, which is why their types cannot stand here.
    """

    source: Artifact
    target_format: str
    attempts: tuple[Attempt, ...]
    chosen: Attempt | None
    output: Path | None
    diagnosis: Any = None
    repair: Any = None
    delivered: Verification | None = None

    @property
    def verification(self) -> Verification | None:
        """The model at `output` against the original source; None without one, or when verification was switched off."""
        if self.delivered is not None:
            return self.delivered
        return self.chosen.verification if self.chosen is not None else None


def convert(
    session: Session,
    source: Artifact,
    routes: Sequence[Route],
    given: Feeds,
    *,
    out: Path,
    check: bool = True,
    task: str = "auto",
    max_routes: int = 6,
) -> Conversion:
    """Try `routes` in order until one gives a faithful model, and leave the best model at `out`.

    Best: faithful; else the finished one that deviates least. Nothing is left at `out` when no route finishes.
    Raises UsageError when there is no route at all, when the source itself cannot be loaded, or when nothing can be
    written to `out`.
    """
    if not routes:
        raise UsageError("there is no route between these formats; `trueport routes` lists every step")
    target_format = routes[0].target_format
    suffix = framework_of(target_format).SUFFIXES[target_format]
    publish.check_model(out, source.path, target_format, folder=not suffix)
    loaded = reference(session, source)
    if isinstance(loaded, Failure):
        raise cannot_load(source, loaded)
    work = Workbench(
        session=session, original=loaded.value, given=given, check=check, task=task, name=_stem(out, suffix)
    )
    attempts: list[Attempt] = []
    for number, route in enumerate(routes[:max_routes], 1):
        session.progress(f"route {number} of {min(len(routes), max_routes)}: {route.name}")
        attempts.append(work.attempt(route))
        if _good_enough(attempts[-1], check):
            break
    chosen = _best(attempts)
    if chosen is None or chosen.output is None:
        return Conversion(
            source=source, target_format=target_format, attempts=tuple(attempts), chosen=None, output=None
        )
    publish.model(chosen.output.path, out)
    kept = next(index for index, attempt in enumerate(attempts) if attempt is chosen)
    attempts[kept] = _moved(chosen, out.absolute())
    return Conversion(
        source=source,
        target_format=target_format,
        attempts=tuple(attempts),
        chosen=attempts[kept],
        output=out.absolute(),
    )


def _stem(out: Path, suffix: str) -> str:
    """Return what files in the making are called, less their suffix: external weights keep that name beside `out`."""
    return (out.name.removesuffix(suffix) if suffix else out.name) or "model"


def _moved(attempt: Attempt, out: Path) -> Attempt:
    """Return the attempt with its model where it was published."""
    last = attempt.hops[-1]
    if isinstance(last.outcome, Failure):
        return attempt
    artifact = replace(last.outcome.value, path=out)
    verified = last.verified
    if verified is not None:
        again = tuple(line.replace(str(verified.target.path), str(out)) for line in verified.rerun)
        verified = replace(verified, target=replace(verified.target, path=out), rerun=again)
    hop = replace(last, outcome=Ok(artifact, last.outcome.seconds), verified=verified)
    return replace(attempt, hops=(*attempt.hops[:-1], hop))


def _good_enough(attempt: Attempt, check: bool) -> bool:
    if attempt.output is None:
        return False
    return not check or (attempt.verification is not None and attempt.verification.verdict == Verdict.FAITHFUL)


def _best(attempts: Sequence[Attempt]) -> Attempt | None:
    """Return the finished attempt with the best verdict; among equals the one that lacks fewer outputs, then the nearest."""
    order = {Verdict.FAITHFUL: 0, Verdict.DEVIATES: 1, Verdict.FLAKY: 2, Verdict.INCOMPARABLE: 3}

    def badness(attempt: Attempt) -> tuple[int, int, float]:
        verification = attempt.verification
        if verification is None:
            return 4, 0, 0.0
        comparison = verification.comparison
        outputs = comparison.outputs
        spoilt = [output for output in outputs if output.target_nonfinite > output.source_nonfinite]
        ratios = [math.inf if math.isnan(output.ratio) else output.ratio for output in outputs]
        lost = len(comparison.unpaired_source) + len(spoilt)
        return order[verification.verdict], lost, max(ratios, default=math.inf)

    finished = [attempt for attempt in attempts if attempt.output is not None]
    return min(finished, key=badness, default=None)


@dataclass(slots=True)
class Workbench:
    """The state of one conversion: what was already converted, by the steps and options that led there."""

    session: Session
    original: Reference
    given: Feeds
    check: bool
    task: str
    name: str = "model"
    done: dict[tuple[Any, ...], HopResult] = field(default_factory=dict)
    references: dict[Path, Reference] = field(default_factory=dict)

    def attempt(self, route: Route) -> Attempt:
        """Convert along a route until its end or the first failure; hops done before are not done again."""
        current = self.original.artifact
        results: list[HopResult] = []
        key: tuple[Any, ...] = ()
        for hop in route.hops:
            for actual in self._with_opset(hop, current):
                key = (*key, (actual.step.name, tuple(sorted(actual.options.items()))))
                if key not in self.done:
                    self.done[key] = self._hop(actual, current)
                results.append(self.done[key])
                outcome = results[-1].outcome
                if isinstance(outcome, Failure):
                    return Attempt(route=route, hops=tuple(results))
                current = outcome.value
        return Attempt(route=route, hops=tuple(results))

    def _with_opset(self, hop: Hop, current: Artifact) -> list[Hop]:
        if hop.step.max_opset is None:
            return [hop]
        signature = self.session.signature(current)
        opset = None if isinstance(signature, Failure) else signature.value.meta.get("opset")
        before = lower_opset(hop, opset)
        return [hop] if before is None else [before, hop]

    def _hop(self, hop: Hop, current: Artifact) -> HopResult:
        self.session.progress(f"{hop.step.name}: {current.format} → {hop.step.target_format}")
        converted = self._convert(hop, current)
        if isinstance(converted, Failure):
            versions = {} if converted.stage == Stage.ENVIRONMENT else self._installed(hop)
            return HopResult(hop=hop, outcome=converted, versions=versions)
        artifact, reply = converted.value
        result = HopResult(
            hop=hop,
            outcome=Ok(artifact, converted.seconds),
            versions=reply.versions,
            notes=tuple((reply.value or {}).get("notes", ())),
        )
        return self._judge(result, artifact, current) if self.check else result

    def _installed(self, hop: Hop) -> Mapping[str, str]:
        """Return the versions of the packages that a step's toolchain is for: a job that failed told none."""
        toolchain = toolchains().get(hop.step.toolchain)
        environment = self.session.environment(hop.step.toolchain, variant=self.session.step_variant(hop.step))
        if toolchain is None or isinstance(environment, Failure):
            return {}
        asked = {package_name(line) for line in toolchain.requirements}
        found = installed_versions(environment.value.python.parent.parent)
        return {name: version for name, version in found.items() if name in asked}

    def _convert(self, hop: Hop, current: Artifact) -> Outcome[tuple[Artifact, Reply]]:
        session, step = self.session, hop.step
        environment = session.environment(step.toolchain, variant=session.step_variant(step))
        if isinstance(environment, Failure):
            return environment
        signature = session.signature(current)
        if isinstance(signature, Failure):
            return signature
        suffix = framework_of(step.target_format).SUFFIXES[step.target_format]
        out = session.pool.fresh_folder(step.name) / f"{self.name}{suffix}"
        arguments = {
            "step": step.name,
            "source": str(current.path),
            "out": str(out),
            "options": dict(hop.options),
            "context": self._context(hop, signature.value, current),
        }
        try:
            done = session.call(environment.value, converter_of(step), "convert", arguments, stage=Stage.CONVERT)
        except BadModelError as error:  # our framework reads this file, so it is the tool that cannot
            return Failure(stage=Stage.CONVERT, kind=Kind.RAISED, message=f"{step.name} cannot read the model: {error}")
        if isinstance(done, Failure):
            return done
        artifact = self._load(step.target_format, step.name, out, current, done.value)
        return artifact if isinstance(artifact, Failure) else Ok((artifact.value, done.value), done.seconds)

    def _context(self, hop: Hop, signature: Signature, current: Artifact) -> dict[str, Any]:
        names, layout = current.made_by.get("names", {}), current.made_by.get("layout", {})
        mapping = reconcile.reconcile_inputs(self.original.signature, signature, names, layout)
        cases = [case for case in self.given.cases if case.kind == "data"]
        if hop.options.get("precision") == "int8":
            cases[0] = continued(cases[0], self.given, self.original.signature, runs=CALIBRATION_RUNS)
        if not mapping.problems and current is not self.original.artifact:
            cases = list(reconcile.apply(mapping, replace(self.given, cases=tuple(cases))))
        return {
            "signature": signature.to_wire(),
            "example": first_run(cases),
            "calibration": {name: array[:CALIBRATION_RUNS] for name, array in cases[0].inputs.items()},
            "trust": self.session.settings.trust,
        }

    def _load(self, target_format: str, step: str, out: Path, current: Artifact, reply: Reply) -> Outcome[Artifact]:
        """Accept a converter's file only when it is there, is of the right format, and loads."""

        def invalid(message: str) -> Failure:
            return Failure(
                stage=Stage.CONVERT, kind=Kind.INVALID_OUTPUT, message=f"{step} reported success, but {message}"
            )

        if not out.exists():
            return invalid("wrote nothing")
        made_by = {
            "step": step,
            "versions": dict(reply.versions),
            "source": current.sha256,
            **compose(current.made_by, reply.value or {}),
        }
        try:
            artifact = Artifact.open(out, made_by=made_by)
            if artifact.format != target_format:
                return invalid(f"its file is {artifact.format}, not {target_format}")
            loaded = self.session.signature(artifact)
        except UntrustedError:
            raise
        except UsageError as error:
            return invalid(str(error).replace(str(out), "its file").replace(out.name, "its file"))
        if isinstance(loaded, Failure) and loaded.kind not in (Kind.UNSUPPORTED, Kind.UNAVAILABLE):
            return replace(
                loaded,
                stage=Stage.CONVERT,
                kind=Kind.INVALID_OUTPUT,
                message=f"{step} reported success, but its file does not load: {loaded.message}",
            )
        return Ok(artifact)

    def _judge(self, result: HopResult, artifact: Artifact, current: Artifact) -> HopResult:
        step = result.hop.step
        declared = result.hop.options.get("precision", "float32")
        if declared == "float32":  # a later hop does not give back what an earlier one rounded
            declared = str(current.made_by.get("precision", "float32"))
        if declared != "float32":
            artifact = replace(artifact, made_by={**artifact.made_by, "precision": declared})
            result = replace(result, outcome=Ok(artifact, _seconds(result.outcome)))
        self.session.progress(f"{step.name}: verifying against the source")
        try:
            verified = verify(self.original, artifact, self.given, precision=declared, task=self.task)
        except BadModelError as error:  # the file was made here, so what its runtime says of it is a finding
            reason = f"the converted model does not run: {error}"
            verified = incomparable(self.original, artifact, self.given, declared, reason)
        result = replace(result, verified=verified)
        if current is self.original.artifact:
            return result
        before = self._reference(current)
        if before is None:
            return result
        self.session.progress(f"{step.name}: verifying against the hop before")
        direct = replace(artifact, made_by={**artifact.made_by, **artifact.made_by.get("direct", {})})
        return replace(result, against_previous=self._against(before, direct, current, declared))

    def _against(self, before: Reference, artifact: Artifact, current: Artifact, declared: str) -> Verification | None:
        mapping = reconcile.reconcile_inputs(
            self.original.signature,
            before.signature,
            current.made_by.get("names", {}),
            current.made_by.get("layout", {}),
        )
        if mapping.problems:
            return None
        cases = tuple(reconcile.apply(mapping, self.given))
        moved = replace(self.given, cases=cases, sha256=f"{self.given.sha256}:{current.sha256}")
        same = declared if not _declared(current) else "float32"
        try:
            return verify(before, artifact, moved, precision=same, task=self.task)
        except BadModelError:
            return None

    def _reference(self, artifact: Artifact) -> Reference | None:
        if artifact.path not in self.references:  # not by digest: that leaves out weights which lie beside the file
            loaded = reference(self.session, artifact)
            if isinstance(loaded, Failure):
                return None
            self.references[artifact.path] = loaded.value
        return self.references[artifact.path]


def _declared(artifact: Artifact) -> bool:
    return "precision" in artifact.made_by


def _seconds(outcome: Outcome[Any]) -> float:
    return outcome.seconds if isinstance(outcome, Ok) else 0.0
