"""Which conversion step made the fault, and which other tool, option or version is right.

A conversion that was just done tells it by its own verifications, hop by hop. For two bare files the routes from one
format to the other are walked again with the toolchains that are installed: a step whose fresh result deviates from
the source and agrees with the given target reproduces the fault; a faithful result is the way out. Nothing new is
built unless the caller allows it, and the search ends when its time is up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trueport import publish, reconcile
from trueport.artifact import Artifact, Signature
from trueport.compare.types import Verdict, Verification
from trueport.conversion import Attempt, HopResult, Workbench
from trueport.diagnosis.known import Maker
from trueport.diagnosis.types import Stage
from trueport.errors import UsageError
from trueport.feeds import Feeds
from trueport.frameworks._base import Step
from trueport.outcome import Failure, Ok
from trueport.routes import OPSET_STEP, Hop, Route, plan, steps
from trueport.session import Session, runtime_toolchain
from trueport.toolchains import Variant, package_name
from trueport.verification import Reference, reference, verify

SECONDS = 90.0
"""Time for walking routes again. The first trial is always made."""
WAY_OUT_SECONDS = 30.0
"""Time for looking for a faithful way once the step at fault is known."""
MAX_TRIALS = 10

WAYS_OUT: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "torch-dynamo": ({"opset": "23"}, {"optimize": "false"}),
    "torch-torchscript": (),
    "onnx2tf-tflite": ({"keep_shape": "{inputs}"},),
    "onnx2tf-savedmodel": ({"keep_shape": "{inputs}"},),
    "tf2onnx-keras": ({"unroll": "true"},),
}
"""Step -> options that are known to lead around faults of it; `{inputs}` stands for the names of the model's inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One route walked again. `same`: what it gave computes what the given target computes; None where that is not known.

    variant: the installed deviation from a toolchain's lock that it ran in. closeness: how much its file is like the
    given one: 3 the same bytes, 2 the same operators, 1 neither, 0 not compared.
    """

    route: Route
    attempt: Attempt
    same: bool | None
    closeness: int = 0
    variant: str = ""
    packages: tuple[str, ...] = ()
    """What that deviation holds otherwise than the lock: "name==version"."""

    @property
    def verdict(self) -> Verdict | None:
        """Its result against the source; None when it gave none."""
        verification = self.attempt.verification
        return None if verification is None else verification.verdict

    @property
    def reproduces(self) -> bool:
        """Whether the given target's fault came out again."""
        return self.verdict is Verdict.DEVIATES and self.same is True

    @property
    def words(self) -> str:
        """The route with the versions of its tools and the options that differ from the usual ones."""
        parts = [_hop_words(hop) for hop in self.attempt.hops]
        return ", then ".join(parts) + (f" ({self.variant})" if self.variant else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """What was found out. `sentences` go into the explanation; `maker` says who made the fault, for the known bugs."""

    stage: Stage | None = None
    sentences: tuple[str, ...] = ()
    maker: Maker | None = None
    trials: tuple[Trial, ...] = ()


def of_attempt(attempt: Attempt, others: Sequence[Attempt] = ()) -> Inquiry:
    """Read it off a conversion that was verified hop by hop; `others` are routes that were tried beside it."""
    ways = tuple(Trial(route=other.route, attempt=other, same=None) for other in others if other is not attempt)
    blamed = attempt.blamed
    if blamed is None:
        return Inquiry(sentences=_ways_out(ways, attempt.route), trials=ways)
    place = attempt.hops.index(blamed)
    reason = "its result deviates from what it was given"
    if place > 0:
        reason += f", while {attempt.hops[place - 1].hop.step.name} before it was faithful"
    stage = Stage(hop=place, step=blamed.hop.step.name, reason=reason)
    first = f"{_hop_words(blamed)} made the fault: {reason}"
    return Inquiry(
        stage=stage,
        sentences=(first, *_ways_out(ways, attempt.route)),
        maker=Maker(steps=(blamed.hop.step.name,), packages=blamed.versions),
        trials=ways,
    )


def locate(
    given_reference: Reference,
    target: Artifact,
    given: Feeds,
    verification: Verification,
    *,
    attempt: Attempt | None = None,
    others: Sequence[Attempt] = (),
    routes: Sequence[Route] | None = None,
    prefer: Sequence[str] = (),
    build: bool = False,
    seconds: float = SECONDS,
    keep: Path | None = None,
) -> Inquiry:
    """Find the step that made a deviating target, and a way that does not.

    Args:
        attempt, others: the conversion that made the target, and the routes that were tried beside it.
        routes: what to walk again instead of everything that leads from the source's format to the target's.
        prefer: steps to try first: those of a known bug that the suspects look like.
        build: allow environments to be built for it.
        seconds: no further trial begins after this time.
        keep: folder for faithful results of other versions, which go with the session that made them otherwise.
    """
    if attempt is not None and attempt.blamed is not None:
        return of_attempt(attempt, others)
    shown = _showing(given_reference, target, given, verification)
    search = _Search(
        reference=given_reference,
        target=target,
        given=shown[0],
        verification=verification,
        baseline=shown[1],
        build=build,
        until=time.monotonic() + seconds,
        keep=keep,
    )
    trials = search.run(routes, prefer)
    return judged(trials, target, given_reference.artifact, searched=search.left_out)


def _showing(
    given_reference: Reference, target: Artifact, given: Feeds, verification: Verification
) -> tuple[Feeds, Verification]:
    """Return as few of the inputs as show the deviation, and the verification on them."""
    some = few(given, verification)
    if some is not given:
        again = verify(given_reference, target, some, precision=verification.declared_precision)
        if again.verdict is Verdict.DEVIATES:
            return some, again
    return given, verification


def few(given: Feeds, verification: Verification) -> Feeds:
    """Return the cases that show the deviation, and the first data case: walking routes again needs no more."""
    bad = {
        str(output.worst_index[0])
        for output in verification.comparison.outputs
        if output.worst_index and output.verdict is not Verdict.FAITHFUL
    }
    data = [case for case in given.cases if case.kind == "data"][:1]
    kept = [case for case in given.cases if case.name in bad or case in data]
    if not bad or len(kept) == len(given.cases):
        return given
    count = given.count * data[0].runs // max(1, sum(case.runs for case in given.of_kind("data"))) if data else 0
    return Feeds.of(kept, origin=given.origin, count=count, seed=given.seed, labels=None, notes=given.notes)


# -- judging ---------------------------------------------------------------------------------------------------------


def judged(trials: Sequence[Trial], target: Artifact, source: Artifact, *, searched: Sequence[str] = ()) -> Inquiry:
    """Draw the conclusion. A step that is known to have made the target from this very source needs no reproduction."""
    made = made_directly(target, source)
    again = sorted((trial for trial in trials if trial.reproduces), key=lambda trial: -trial.closeness)
    sentences: list[str] = []
    stage, maker = None, None
    if made is not None:
        stage = Stage(hop=0, step=made, reason="it made the target from this very source")
        maker = Maker(steps=(made,), packages=target.made_by.get("versions", {}))
        version = maker.version(steps()[made].tool)
        tool = f" ({steps()[made].tool} {version})" if version else ""
        sentences.append(f"{made}{tool} made the target from this very source")
    elif again:
        stage, maker, sentence = _reproduced(again[0])
        sentences.append(sentence)
    else:
        sentences += _not_reproduced(trials, searched)
    used = Route(hops=(Hop(step=steps()[made]),)) if made is not None else again[0].route if again else None
    return Inquiry(stage=stage, sentences=(*sentences, *_ways_out(trials, used)), maker=maker, trials=tuple(trials))


def made_directly(target: Artifact, source: Artifact) -> str | None:
    """Return the step that made the target from this very source, where that is known."""
    made = target.made_by.get("step")
    return str(made) if made in steps() and target.made_by.get("source") == source.sha256 else None


def _reproduced(trial: Trial) -> tuple[Stage | None, Maker | None, str]:
    blamed = trial.attempt.blamed
    if blamed is None:  # every hop alone is within its noise, only their sum is not
        return None, None, f"{trial.words} gives the same deviation again, no single step of it beyond its noise"
    place = trial.attempt.hops.index(blamed)
    reason = f"{_hop_words(blamed)} reproduces the deviation"
    if place > 0:
        reason += f"; what it was given is faithful ({trial.attempt.hops[place - 1].hop.step.name})"
    stage = Stage(hop=place, step=blamed.hop.step.name, reason=reason)
    likeness = " byte for byte" if trial.closeness == 3 else ""
    how = f" ({trial.variant})" if trial.variant else ""
    return (
        stage,
        Maker(steps=(blamed.hop.step.name,), packages=blamed.versions),
        f"converting again, {reason}{how}{likeness}",
    )


def _not_reproduced(trials: Sequence[Trial], left_out: Sequence[str]) -> list[str]:
    finished = [trial for trial in trials if trial.verdict is not None]
    if not finished:
        if left_out:
            return [f"which tool made the target was not tried: {left_out[0]}"]
        return ["no route that is known here leads from the source to the target, so the tool was not looked for"]
    faithful = [trial for trial in finished if trial.verdict is Verdict.FAITHFUL]
    if len(faithful) == len(finished):
        return [
            "No tool that is installed here makes this fault: the target was changed after its conversion, comes from"
            " other weights, or was made by another version"
        ]
    return ["No tool that is installed here gives this very deviation again"]


def _ways_out(trials: Sequence[Trial], used: Route | None) -> tuple[str, ...]:
    """One sentence with the nearest faithful way: another option, version or route; none when there is none."""
    faithful = [trial for trial in trials if trial.verdict is Verdict.FAITHFUL]
    if not faithful:
        return ()

    def distance(trial: Trial) -> tuple[bool, int]:
        return used is None or trial.route.name != used.name, len(trial.route.hops)

    best = min(faithful, key=distance)
    options = [f"{hop.step.name}.{key}={value}" for hop in best.route.hops for key, value in hop.options.items()]
    how = f"--route {best.route.name}" + "".join(f" --option {text}" for text in options)
    return (f"{best.words} is faithful (trueport convert {how})",)


def _hop_words(hop: HopResult) -> str:
    step = hop.hop.step
    version = _version(step, hop.versions)
    options = ", ".join(f"{key} {value}" for key, value in hop.hop.options.items() if key != "precision")
    return f"{step.name}{f' ({step.tool} {version})' if version else ''}{f' with {options}' if options else ''}"


def _version(step: Step, versions: Mapping[str, str]) -> str | None:
    return Maker(packages=versions).version(step.tool)


# -- walking routes again --------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Search:
    """The state of one search: what was tried, and what could not be."""

    reference: Reference
    target: Artifact
    given: Feeds
    verification: Verification
    baseline: Verification
    build: bool
    until: float
    keep: Path | None = None
    trials: list[Trial] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    since_found: float = math.inf

    @property
    def session(self) -> Session:
        return self.reference.session

    def run(self, routes: Sequence[Route] | None, prefer: Sequence[str]) -> list[Trial]:
        """Try routes until one reproduces the fault and another is faithful, or the time is up."""
        work = self._workbench(self.session)
        ordered = self._ordered(routes, prefer)
        hinted = [route for route in ordered if {hop.step.name for hop in route.hops} & set(prefer)]
        for route in hinted:
            if not self._enough():
                self._try(work, route)
        if routes is None and not self._found():
            self._older([route.hops[0].step for route in hinted if len(route.hops) == 1])
        for route in ordered:
            if route not in hinted and not self._enough():
                self._try(work, route)
        for route in self._ways():
            if not self._solved() and not self._late():
                self._try(work, route)
        if routes is None:
            self._older(self._single())
        return self.trials

    def _workbench(self, session: Session) -> Workbench:
        return Workbench(session=session, original=self.reference, given=self.given, check=True, task="auto")

    def _late(self) -> bool:
        if self._found():
            self.until = min(self.until, self.since_found + WAY_OUT_SECONDS)
        return bool(self.trials) and (time.monotonic() > self.until or len(self.trials) >= MAX_TRIALS)

    def _found(self) -> bool:
        return any(trial.reproduces for trial in self.trials) or self._made is not None

    @property
    def _made(self) -> str | None:
        return made_directly(self.target, self.reference.artifact)

    def _solved(self) -> bool:
        return self._found() and any(trial.verdict is Verdict.FAITHFUL for trial in self.trials)

    def _enough(self) -> bool:
        """A likeness of bytes or operators settles who made it; a mere likeness of values may be a twin's fault."""
        sure = any(trial.reproduces and trial.closeness >= 2 for trial in self.trials) or self._made is not None
        return self._late() or (sure and any(trial.verdict is Verdict.FAITHFUL for trial in self.trials))

    def _ordered(self, routes: Sequence[Route] | None, prefer: Sequence[str]) -> list[Route]:
        """Routes whose environments are there: a known bug's first, then those that the target's file points to."""
        if routes is not None:
            return list(routes)
        source = self.reference.artifact
        signature = self._signature(self.target)
        maker = Maker.of(self.target, signature)
        found = plan(
            source.format,
            self.target.format,
            legacy_keras=runtime_toolchain(source) == "tf-keras",
            precision=self.verification.declared_precision,
        )
        opset = None if signature is None else signature.meta.get("opset")
        open_ = [route for route in found if route.name != self._made]  # what made it need not be made again
        ready = [self._like_target(route, opset) for route in open_ if self._ready(route)]

        def order(route: Route) -> tuple[bool, bool, bool]:
            names, last = [hop.step.name for hop in route.hops], route.hops[-1].step
            made_so = last.name == self.target.made_by.get("step")
            return not made_so, not set(names) & set(prefer), not _points_to(last, maker)

        return sorted((route for route in ready if route is not None), key=order)

    def _ready(self, route: Route) -> bool:
        """Whether the environments of a route exist, or may be built."""
        missing = [hop.step for hop in route.hops if not self.build and not installed(self.session, hop.step)]
        if missing:
            names = ", ".join(dict.fromkeys(step.toolchain for step in missing))
            self.left_out.append(f"{route.name} needs an environment that is not built ({names})")
        return not missing

    def _like_target(self, route: Route, opset: Any) -> Route | None:
        """Ask the last step for the target's own opset, so that the results are alike."""
        last = route.hops[-1]
        if last.step.name == OPSET_STEP:
            return _with(route, {"opset": str(opset)}) if isinstance(opset, int) else None
        names = [name for name, _ in last.step.options]
        if "opset" in names and isinstance(opset, int) and "opset" not in last.options:
            return _with(route, {"opset": str(opset)})
        return route

    def _try(self, work: Workbench, route: Route, variant: str = "") -> None:
        self.session.progress(f"which tool made the fault: trying {route.name}{f' ({variant})' if variant else ''}")
        try:
            attempt = work.attempt(route)
        except UsageError as error:
            self.left_out.append(f"{route.name}: {error}")
            return
        same, closeness = self._likeness(attempt)
        if closeness == 3 or self._made is not None:
            self.since_found = min(self.since_found, time.monotonic())
        self.trials.append(Trial(route=route, attempt=attempt, same=same, closeness=closeness, variant=variant))

    def _ways(self) -> Iterator[Route]:
        """Options that lead around faults of the step that is at fault."""
        inputs = ",".join(spec.name for spec in self.reference.signature.inputs)
        at_fault = [trial.route for trial in self.trials if trial.verdict is not Verdict.FAITHFUL]
        if self._made is not None:
            at_fault.insert(0, Route(hops=(Hop(step=steps()[self._made]),)))
        for route in at_fault:
            for options in WAYS_OUT.get(route.hops[-1].step.name, ()):
                yield _with(route, {key: value.format(inputs=inputs) for key, value in options.items()})

    def _single(self) -> list[Step]:
        """The steps that can have made the target alone."""
        found = [trial.route.hops[0].step for trial in self.trials if len(trial.route.hops) == 1]
        return [steps()[self._made], *found] if self._made is not None else found

    def _older(self, candidates: Sequence[Step]) -> None:
        """Try the versions of a tool that are installed beside the one of the lock."""
        for step in dict.fromkeys(candidates):
            for variant in variants(self.session, step):
                known = any(trial.variant == str(variant) and trial.route.hops[0].step == step for trial in self.trials)
                if not known and not self._solved() and not self._late():
                    self._with_variant(step, variant)

    def _with_variant(self, step: Step, variant: Variant) -> None:
        tried = [trial.route for trial in self.trials if [hop.step for hop in trial.route.hops] == [step]]
        route = tried[0] if tried else Route(hops=(Hop(step=step),))
        settings = replace(self.session.settings, packages=variant.packages, as_of=variant.as_of, python=None)
        with Session(settings, self.session.progress) as other:
            self._try(self._workbench(other), route, str(variant))
            if self.trials and self.trials[-1].variant == str(variant):
                self.trials[-1] = self._kept(replace(self.trials[-1], packages=variant.packages))

    def _kept(self, trial: Trial) -> Trial:
        """A trial whose faithful result lies where it outlives the session that made it."""
        output = trial.attempt.output
        if self.keep is None or output is None or trial.verdict is not Verdict.FAITHFUL:
            return trial
        place = self.keep / f"way{len(self.trials)}" / output.path.name
        publish.model(output.path, place)
        last = trial.attempt.hops[-1]
        moved = replace(last, outcome=Ok(replace(output, path=place)))
        return replace(trial, attempt=replace(trial.attempt, hops=(*trial.attempt.hops[:-1], moved)))

    # -- is it the same deviation? -------------------------------------------------------------------------------

    def _likeness(self, attempt: Attempt) -> tuple[bool | None, int]:
        """Whether a fresh result computes what the target computes, and how alike the files are."""
        output, fresh = attempt.output, attempt.verification
        if output is None or fresh is None:
            return None, 0
        if output.sha256 == self.target.sha256:
            return True, 3
        ours, theirs = self._signature(output), self._signature(self.target)
        if ours is None or theirs is None:
            return None, 0
        closeness = 2 if ours.meta.get("operators") == theirs.meta.get("operators") else 1
        if fresh.verdict is not Verdict.DEVIATES:
            return False, closeness
        return self._computes_the_same(output, ours), closeness

    def _computes_the_same(self, output: Artifact, signature: Signature) -> bool | None:
        made = output.made_by
        loaded = reference(self.session, replace(output, made_by={}))
        mapping = reconcile.reconcile_inputs(
            self.reference.signature, signature, made.get("names", {}), made.get("layout", {})
        )
        if isinstance(loaded, Failure) or mapping.problems:
            return None
        cases = tuple(reconcile.apply(mapping, self.given))
        moved = Feeds.of(cases, origin=self.given.origin, count=self.given.count, seed=self.given.seed)
        between = verify(loaded.value, replace(self.target, made_by={}), moved)
        if between.verdict is Verdict.FAITHFUL:
            return True
        if between.verdict is Verdict.DEVIATES:
            return False
        return self._fails_alike(output)

    def _fails_alike(self, output: Artifact) -> bool | None:
        """Two files that nothing can be computed with are alike when the source's comparison ends in the same words."""
        again = verify(self.reference, output, self.given, precision=self.verification.declared_precision)
        return True if again.reason == self.baseline.reason else None

    def _signature(self, artifact: Artifact) -> Signature | None:
        loaded = self.session.signature(artifact)
        return None if isinstance(loaded, Failure) else loaded.value


def _points_to(step: Step, maker: Maker) -> bool:
    """Whether a file's own words name the tool of a step."""
    return step.tool in maker.named or (step.tool == "tensorflow-cpu" and "tensorflow" in maker.named)


def _with(route: Route, options: Mapping[str, str]) -> Route:
    """Return the route with options added to its last step."""
    last = route.hops[-1]
    return Route(hops=(*route.hops[:-1], Hop(step=last.step, options={**last.options, **options})))


def installed(session: Session, step: Step) -> bool:
    """Whether the environment in which a step would run exists."""
    return step.toolchain == "fake" or session.envs.has(step.toolchain, session.step_variant(step))


def variants(session: Session, step: Step) -> list[Variant]:
    """The installed deviations from a step's toolchain that hold another version of its own tool, newest first."""
    wanted = package_name(step.tool)
    return [
        variant
        for variant in (() if step.toolchain == "fake" else session.envs.variants(step.toolchain))
        if any(package.split("==")[0] == wanted for package in variant.packages)
    ]
