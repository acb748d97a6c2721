"""What can be said without looking inside: models that take or give other things cannot be compared at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trueport import reconcile
from trueport.artifact import Artifact
from trueport.compare.types import Verdict, Verification
from trueport.diagnosis import explanation
from trueport.diagnosis.types import Cause, Diagnosis, Stage, Suspect
from trueport.outcome import Failure
from trueport.verification import Reference

NAN = float("nan")


def without_trace(
    reference: Reference, target: Artifact, verification: Verification, timings: Mapping[str, float]
) -> Diagnosis:
    """The diagnosis of a pair in which nothing is to be blamed, or in which the interfaces alone tell what is wrong."""
    suspects: tuple[Suspect, ...] = ()
    if verification.verdict is Verdict.INCOMPARABLE:
        suspects = interface_suspects(reference, target, verification)
    return Diagnosis(
        verification=verification,
        suspects=suspects,
        explanation=explanation.compose(verification, suspects),
        timings=dict(timings),
    )


def interface_suspects(reference: Reference, target: Artifact, verification: Verification) -> tuple[Suspect, ...]:
    """One suspect per input that cannot be fed and per output that has no counterpart."""
    loaded = reference.session.signature(target)
    if isinstance(loaded, Failure):
        return ()
    names, layout = target.made_by.get("names", {}), target.made_by.get("layout", {})
    mapping = reconcile.reconcile_inputs(reference.signature, loaded.value, names, layout)
    ours = ", ".join(f"{spec.name} {reconcile.show(spec.shape)}" for spec in reference.signature.inputs)
    theirs = ", ".join(f"{spec.name} {reconcile.show(spec.shape)}" for spec in loaded.value.inputs)
    found = [_suspect(Cause.INPUTS, problem, ours, theirs, ()) for problem in mapping.problems]
    comparison = verification.comparison
    for name in comparison.unpaired_target if not mapping.problems else ():
        what = f"output '{name}' of the target has no counterpart in the source"
        found.append(_suspect(Cause.STRUCTURE, what, None, name, (name,)))
    for name in comparison.unpaired_source if comparison.outputs and not mapping.problems else ():
        what = f"output '{name}' of the source has no counterpart in the target"
        found.append(_suspect(Cause.STRUCTURE, what, name, None, ()))
    return tuple(_ranked(found))


def blamed_tool(stage: Stage) -> Suspect:
    """The suspect of a fault whose place could not be told, but whose maker could."""
    return _suspect(Cause.TOOL, f"step {stage.step} made it: {stage.reason}", None, stage.step, (), confidence=0.5)


def _suspect(
    cause: Cause,
    what: str,
    source: str | None,
    target: str | None,
    nodes: tuple[str, ...],
    *,
    confidence: float = 0.9,
) -> Suspect:
    return Suspect(
        rank=1,
        target_nodes=nodes,
        source_nodes=(),
        accumulated=NAN,
        local=NAN,
        causal=NAN,
        cause=cause,
        what=what,
        source_value=source,
        target_value=target,
        confidence=confidence,
    )


def _ranked(found: list[Suspect]) -> list[Suspect]:
    return [replace(suspect, rank=place) for place, suspect in enumerate(found, 1)]
