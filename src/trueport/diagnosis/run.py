"""`trueport diagnose`: verify, trace, localise, explain. The order of work is that of METHOD: runtime, place, cause, inputs, tool.

Without a deviation there are no suspects. What cannot be traced ends as a diagnosis that says so, never as a guess.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trueport import tracing
from trueport.artifact import Artifact
from trueport.compare.types import Verdict, Verification
from trueport.conversion import Attempt
from trueport.diagnosis import evidence, explanation, interface, known, preprocessing, runtime, told, tool
from trueport.diagnosis.locally import locate, saturation
from trueport.diagnosis.located import Located
from trueport.diagnosis.pair import Pair, trace_pair
from trueport.diagnosis.types import Cause, Diagnosis, Evidence, Finding, Stage, Suspect
from trueport.feeds import Feeds
from trueport.outcome import Failure, Ok
from trueport.verification import Reference, verify

SECONDS = 600.0
"""Time for the search of one pair before the best so far is reported."""
PREPARATION = 30.0
"""Seconds for the search of another preprocessing: a small model needs 1 to 3."""
RIGHT = 0.1
"""Share of a wrong output's error that the tracing kernels may show when the default ones alone are to blame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """How a diagnosis is to be done.

    budget: bytes of values that a worker holds at a time. seconds: for the search of the place. tools: look for the step
    that made the fault and for a way that does not, which converts anew. attempt, others: the conversion that made the
    target and what was tried beside it, which tells the step without converting anew.
    """

    budget: int = tracing.BUDGET
    seconds: float = SECONDS
    tools: bool = True
    attempt: Attempt | None = None
    others: tuple[Attempt, ...] = ()


def diagnose(
    reference: Reference,
    target: Artifact,
    given: Feeds,
    *,
    precision: str | None = None,
    task: str = "auto",
    verification: Verification | None = None,
    request: Request = Request(),
    rerun: Sequence[str] = (),
) -> Diagnosis:
    """Say where and why a target is wrong. Everything that goes wrong with a model ends as a diagnosis with its reason.

    verification: of this very pair on `given`, where it is known already.
    """
    clock = _Clock()
    if verification is None:
        reference.session.progress("running source and target")
        verification = verify(reference, target, given, precision=precision, task=task, rerun=rerun)
    clock.lap("verify")
    deviating = any(output.verdict is Verdict.DEVIATES for output in verification.comparison.outputs)
    if verification.verdict is not Verdict.DEVIATES and not (
        verification.verdict is Verdict.INCOMPARABLE and deviating
    ):
        return interface.without_trace(reference, target, verification, clock.laps)
    reference.session.progress("tracing both models")
    traced = trace_pair(reference, target, given, verification, budget=request.budget)
    if isinstance(traced, Failure):
        note = f"the insides could not be compared ({traced.kind}): {traced.message}"
        suspects = told.refused(reference.session, target, verification)
        notes: tuple[str, ...] = (note,)
        return _explained(reference, target, given, verification, suspects, notes, {}, None, clock, request)
    pair = traced.value
    try:
        clock.lap("trace")
        found = investigate(reference, target, given, verification, pair, seconds=request.seconds, lap=clock.lap)
        counts = found.counts(pair)
        return _explained(
            reference, target, given, verification, found.suspects, found.notes, counts, pair, clock, request
        )
    finally:
        pair.close()


@dataclass
class _Clock:
    """Seconds by stage."""

    last: float = field(default_factory=time.monotonic)
    laps: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self.last
        self.last = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Investigation:
    """What was found inside a traced pair. located: None where the runtime's kernels alone are to blame (`kernels`).

    prepared: the change of the target's inputs under which it gives what the source gives, where there is one.
    """

    suspects: tuple[Suspect, ...]
    notes: tuple[str, ...]
    located: Located | None = None
    prepared: preprocessing.PreprocessingFinding | None = None
    kernels: tuple[tuple[Finding, Evidence], ...] = ()

    def counts(self, pair: Pair) -> dict[str, int]:
        """How many of the target's values were paired."""
        if self.located is None:
            return {}
        alignment = self.located.alignment
        values = [name for name, info in pair.theirs.infos.items() if info.kind == "act"]
        paired = sum(name in alignment.matches for name in values)
        agreeing = sum(alignment.ok(name) for name in values)
        return {"values": len(values), "paired": paired, "agreeing": agreeing, "unpaired": len(values) - paired}


def investigate(
    reference: Reference,
    target: Artifact,
    given: Feeds,
    verification: Verification,
    pair: Pair,
    *,
    seconds: float = SECONDS,
    lap: Callable[[str], None] = lambda name: None,
) -> Investigation:
    """Find the suspects in a traced pair: the runtime's kernels, then places in the graph, then the preparation of inputs.

    seconds: for the search of the place. lap: told the name of each part that is done.
    """
    notes = list(pair.notes)
    kernels = _runtime(pair, notes)
    lap("runtime")
    if kernels:
        suspects = tuple(
            replace(_suspect(pair, finding, (proof,)), rank=place) for place, (finding, proof) in enumerate(kernels, 1)
        )
        return Investigation(suspects=suspects, notes=tuple(notes), kernels=kernels)
    reference.session.progress("looking for the place")
    located = locate(pair, deadline=time.monotonic() + seconds)
    notes += located.notes
    lap("search")
    suspects = suspects_of(pair, located) or told.misshapen(pair, verification)
    found = None
    if _at_the_inputs(pair, suspects, located):
        reference.session.progress("looking at the preprocessing")
        found = preprocessing.search(reference, target, given, verification, seconds=PREPARATION)
        if found is not None:
            suspects = _prepared(found, suspects)
        lap("inputs")
    return Investigation(suspects=suspects, notes=tuple(notes), located=located, prepared=found)


def _runtime(pair: Pair, notes: list[str]) -> tuple[tuple[Finding, Evidence], ...]:
    """The faults of the runtime: the outputs are wrong as the model ships and right in the kernels that show values."""
    plain = runtime.plain_outputs(pair.target)
    if not isinstance(plain, Ok):
        return ()
    outputs = {pair.target.output_value(name): array for name, array in plain.value.items()}
    effect = runtime.observer_effect(pair.target, outputs)
    if effect.note:
        notes.append(effect.note)
    if effect.exposed:
        runtime.retrace(pair.target)
        pair.refresh()
    bad = [output for output in pair.outputs if output.bad and output.target in outputs]
    shipped = [pair.output_error(output, outputs[output.target]) for output in bad]
    shown = [pair.output_error(output) for output in bad]
    right = [
        after <= RIGHT * (before if np.isfinite(before) else 1.0) for before, after in zip(shipped, shown, strict=True)
    ]
    return runtime.find(pair.target, outputs) if bad and all(right) else ()


def _at_the_inputs(pair: Pair, suspects: Sequence[Suspect], located: Located) -> bool:
    """Whether the error may come from outside: nothing is proven, or the first wrong node reads a graph input."""
    if not suspects or not located.healed:
        return True
    if any(suspect.cause is Cause.INPUTS for suspect in suspects):
        return False
    inputs = set(pair.target.graph.inputs)
    findings = [suspect.finding for suspect in suspects if suspect.finding is not None]
    nodes = pair.target.graph.by_name
    first = any(inputs & set(nodes[name].inputs) for finding in findings for name in finding.region if name in nodes)
    # An operator that turns the input, or one too many, stands in the file: no caller need prepare anything otherwise.
    inside = bool(findings) and findings[0].kind in ("layout", "extra", "shuffle")
    return first and not inside and suspects[0].cause in (Cause.STRUCTURE, Cause.PARAMETERS)


def _prepared(found: preprocessing.PreprocessingFinding, suspects: Sequence[Suspect]) -> tuple[Suspect, ...]:
    """The suspects with the preprocessing first: the place stays what the search in the graph proved."""
    first = found.suspect(1)
    rest = list(suspects)
    if rest:
        inside = rest.pop(0)
        first = replace(first, target_nodes=inside.target_nodes or first.target_nodes, source_nodes=inside.source_nodes)
        first = replace(first, finding=inside.finding, operator=inside.operator)
    return tuple(replace(suspect, rank=place) for place, suspect in enumerate([first, *rest], 1))


def _explained(
    reference: Reference,
    target: Artifact,
    given: Feeds,
    verification: Verification,
    suspects: tuple[Suspect, ...],
    notes: tuple[str, ...],
    counts: dict[str, int],
    pair: Pair | None,
    clock: _Clock,
    request: Request,
) -> Diagnosis:
    """Add who made the fault and whether it is known, and say it all in one paragraph."""
    session = reference.session
    loaded = session.signature(target)
    signature = None if isinstance(loaded, Failure) else loaded.value
    maker = known.Maker.of(target, signature, verification.versions)
    issue = None
    sides: tuple[known.Side, known.Side] | None = None
    if pair is not None:
        sides = (
            known.Side(format=reference.artifact.format, graph=pair.source.graph, signature=reference.signature),
            known.Side(
                format=target.format,
                graph=pair.target.graph,
                signature=signature,
                precision=verification.declared_precision,
                ordinary=known.ordinary(verification),
            ),
        )
        issue = known.match(suspects, *sides, maker)
    else:  # the target does not run, and its runtime's words may tell why
        step = maker.steps[0] if maker.steps else ""
        issue = known.match_text(verification.reason, step=step, versions=maker.packages, format=target.format)
    stage: Stage | None = None
    said: tuple[str, ...] = ()
    runtime_only = pair is not None and bool(suspects) and all(suspect.cause is Cause.RUNTIME for suspect in suspects)
    if request.tools and not runtime_only:
        session.progress("looking for the step that made it")
        hints = known.steps_of(issue)
        inquiry = tool.locate(
            reference, target, given, verification, attempt=request.attempt, others=request.others, prefer=hints
        )
        stage, said = inquiry.stage, inquiry.sentences
        if inquiry.maker is not None and sides is not None:
            issue = known.match(suspects, *sides, inquiry.maker) or issue
        clock.lap("tools")
    if not suspects and stage is not None:
        suspects = (interface.blamed_tool(stage),)
    said = (*told.other_weights(suspects), *said)
    text = explanation.compose(verification, suspects, stage=stage, known_issue=issue, said=said)
    return Diagnosis(
        verification=verification,
        suspects=suspects,
        stage=stage,
        known_issue=issue,
        explanation=text,
        notes=notes,
        alignment=counts,
        timings=clock.laps,
    )


def suspects_of(pair: Pair, located: Located) -> tuple[Suspect, ...]:
    """One suspect per finding, ranked by causal share, proven ones first; findings of the same node are one."""
    made: list[Suspect] = []
    for finding in located.findings:
        found = evidence.examine(finding, pair.source, pair.target, located.alignment, precision=pair.precision)
        cut_off = saturation(pair, finding)
        found = found if cut_off is None else (cut_off, *found)
        made.append(_suspect(pair, finding, found))
    made.sort(key=lambda suspect: (not _confirmed(suspect), -_share(suspect)))
    kept: list[Suspect] = []
    for suspect in made:
        if not any(suspect.target_nodes[:1] == other.target_nodes[:1] for other in kept):
            kept.append(suspect)
    return tuple(replace(suspect, rank=place) for place, suspect in enumerate(kept, 1))


def _confirmed(suspect: Suspect) -> bool:
    return suspect.finding is not None and suspect.finding.confirmed


def _share(suspect: Suspect) -> float:
    return suspect.causal if suspect.causal == suspect.causal else -1.0


def _suspect(pair: Pair, finding: Finding, found: tuple[Evidence, ...]) -> Suspect:
    theirs, ours = pair.target.graph.by_name, pair.source.graph.by_name
    order = [item.node for item in found] + list(finding.region)
    nodes = [theirs[name].shown for name in dict.fromkeys(order) if name in theirs]
    first = found[0] if found else None
    mine = [*(first.source_nodes if first else ()), *finding.source_region]
    blamed = theirs.get(order[0]) if order else None
    return Suspect(
        rank=0,
        target_nodes=tuple(dict.fromkeys(nodes)),
        source_nodes=tuple(dict.fromkeys(ours[name].shown if name in ours else name for name in mine)),
        accumulated=finding.accumulated,
        local=finding.local,
        causal=finding.causal,
        cause=first.cause if first else Cause.STRUCTURE,
        what=first.what if first else "",
        source_value=first.source_value if first else None,
        target_value=first.target_value if first else None,
        confidence=_confidence(finding, found),
        operator=blamed.op if blamed else "",
        finding=finding,
    )


def _confidence(finding: Finding, found: tuple[Evidence, ...]) -> float:
    """0 to 1: proof by injection counts most; a clear lead of the first node over the second, and a real cause, the rest."""
    proof = 0.6 if finding.confirmed else 0.2
    if not found:
        return proof
    lead = found[0].weight - (found[1].weight if len(found) > 1 else 0.0)
    return min(0.99, proof + 0.2 * min(1.0, max(0.0, lead)) + (0.19 if found[0].weight >= 1.0 else 0.05))
