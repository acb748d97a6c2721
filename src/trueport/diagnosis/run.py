"""`trueport diagnose`: verify, trace, localise, explain. The order of work is that of METHOD: inputs, place, cause, tool.

Without a deviation there are no suspects. What cannot be traced ends as a diagnosis that says so, never as a guess.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from trueport import tracing
from trueport.artifact import Artifact
from trueport.compare.types import Verdict, Verification
from trueport.diagnosis import evidence
from trueport.diagnosis.localize import Located, Localizer
from trueport.diagnosis.pair import Pair, trace_pair
from trueport.diagnosis.types import Cause, Diagnosis, Evidence, Finding, Suspect
from trueport.feeds import Feeds
from trueport.outcome import Failure
from trueport.verification import Reference, verify

SECONDS = 600.0
"""Time for the search of one pair before the best so far is reported."""


def diagnose(
    reference: Reference,
    target: Artifact,
    given: Feeds,
    *,
    precision: str | None = None,
    task: str = "auto",
    budget: int = tracing.BUDGET,
    seconds: float = SECONDS,
    rerun: Sequence[str] = (),
) -> Diagnosis:
    """Say where and why a target is wrong. Everything that goes wrong with a model ends as a diagnosis with its reason."""
    started = time.monotonic()
    verification = verify(reference, target, given, precision=precision, task=task, rerun=rerun)
    verified = time.monotonic() - started
    if verification.verdict is not Verdict.DEVIATES:
        return without_suspects(verification, {"verify": verified})
    reference.session.progress("tracing both models")
    traced = trace_pair(reference, target, given, verification, budget=budget)
    if isinstance(traced, Failure):
        note = f"the insides could not be compared ({traced.kind}): {traced.message}"
        return replace(without_suspects(verification, {"verify": verified}), notes=(note,))
    pair = traced.value
    try:
        return _diagnosed(pair, verification, started, verified, seconds)
    finally:
        pair.close()


def without_suspects(verification: Verification, timings: dict[str, float]) -> Diagnosis:
    """The diagnosis of a pair in which nothing is to be blamed, or nothing can be."""
    return Diagnosis(verification=verification, explanation=verification.reason, timings=timings)


def _diagnosed(pair: Pair, verification: Verification, started: float, verified: float, seconds: float) -> Diagnosis:
    traced = time.monotonic() - started - verified
    localizer = Localizer(pair, deadline=started + seconds)
    located = localizer.run()
    searched = time.monotonic() - started - verified - traced
    suspects = suspects_of(pair, located)
    values = [name for name, info in pair.theirs.infos.items() if info.kind == "act"]
    paired = [name for name in values if name in located.alignment.matches]
    return Diagnosis(
        verification=verification,
        suspects=suspects,
        explanation=verification.reason,
        notes=(*pair.notes, *located.notes),
        alignment={
            "values": len(values),
            "paired": len(paired),
            "agreeing": sum(located.alignment.ok(name) for name in values),
            "unpaired": len(values) - len(paired),
        },
        timings={"verify": verified, "trace": traced, "search": searched},
    )


def suspects_of(pair: Pair, located: Located) -> tuple[Suspect, ...]:
    """One suspect per finding, ranked by causal share, proven ones first; findings of the same node are one."""
    made: list[Suspect] = []
    for finding in located.findings:
        found = evidence.examine(finding, pair.source, pair.target, located.alignment)
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
    order = [item.node for item in found] + [name for name in finding.region]
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
