"""`trueport repair`: verify, search for edits, thin them out, verify what is left on inputs that the search never saw.

The target is never written to. What comes out is a new file, whole or not at all, and only when it is better.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trueport import publish
from trueport.artifact import Artifact
from trueport.compare.types import Verdict, Verification
from trueport.conversion import Attempt
from trueport.diagnosis import tool
from trueport.feeds import Feeds
from trueport.repairs import explanation
from trueport.repairs.gate import Gate, fell, split
from trueport.repairs.search import Search
from trueport.repairs.settled import Settled, agreeing, settle
from trueport.repairs.tools import NAME as CT
from trueport.repairs.tools import Switch, switch
from trueport.repairs.types import Edit, Repair, Status
from trueport.session import framework_of
from trueport.verification import Reference

SECONDS = 600.0
ATTEMPTS = 200
"""Time and proposals after which the best so far is taken."""
TENTH = 0.1
LEAST = 10.0
"""Seconds for other tools when the search has used up its time: one way is always tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much a repair may cost: seconds of search, and files that are written and tried."""

    seconds: float = SECONDS
    attempts: int = ATTEMPTS


def repair(
    reference: Reference,
    target: Artifact,
    given: Feeds,
    *,
    out: Path | None,
    unseen: Feeds | None = None,
    precision: str | None = None,
    task: str = "auto",
    budget: Budget = Budget(),
    tools: bool = True,
    attempt: Attempt | None = None,
    others: Sequence[Attempt] = (),
) -> Repair:
    """Mend a target in its own format.

    given: inputs in the source's layout; a half of them, or generated ones of another seed, is kept from the search
    (`unseen` names others). out: where the mended model goes; None keeps it in the session's folder. tools: where no
    edits make it faithful, look for another tool, option or version that does, and take its result; attempt, others: the
    conversion that made the target and what was tried beside it.
    ^C ends the search, and the best so far is taken. Raises UsageError when nothing can be written to `out`.
    """
    started = time.monotonic()
    if out is not None:
        _check_place(out, reference.artifact, target)
    ours, held_out = split(given, reference.signature)
    gate = Gate(
        reference=reference, target=target, given=ours, unseen=unseen or held_out, precision=precision, task=task
    )
    gate.session.progress("running source and target")
    before = gate.on_unseen(target)
    ways = agreeing(before) or agreeing(gate.on_search(target))
    settled = settle(reference, (gate.given, gate.unseen), ways) if ways else "its own runtime computes it rightly"
    if isinstance(settled, Settled):
        more: dict[str, Any] = {"precision": precision, "task": task, "budget": budget}
        return _by_meaning(settled, before, target, given, out=out, unseen=unseen, **more)
    if before.verdict is Verdict.FAITHFUL and gate.on_search(target).verdict is Verdict.FAITHFUL:
        return _ended(Status.NOT_NEEDED, gate, before, started)
    search = Search(gate=gate, attempts_left=budget.attempts, deadline=time.monotonic() + budget.seconds)
    if ways:
        search.notes.append(settled)
    interrupted = False
    try:
        search.run()
    except KeyboardInterrupt:  # the best so far stays
        interrupted = True
    steps, artifact, command = list(search.steps), search.current, ""
    faithful = bool(steps) and gate.faithful(artifact)
    if search.over and not faithful:
        search.notes.append("the search stopped when its time or its attempts were used up; give it more of them")
    if tools and not faithful and not interrupted and not search.stranger:
        way = _another_way(gate, search, attempt, others)
        interrupted = way is None
        if way is not None and not isinstance(way, str):
            steps, artifact, command, faithful = [(way.edit,)], way.artifact, way.command, True
    if not steps or not (faithful or _better(gate, search, artifact)):
        return _ended(Status.UNREPAIRED, gate, before, started, search=search, interrupted=interrupted)
    if not command and not interrupted:
        gate.session.progress("leaving out what is not needed")
        try:
            steps, artifact = gate.needed(steps, artifact)
        except KeyboardInterrupt:  # all of them, then
            interrupted = True
    status = Status.REPAIRED if faithful else Status.IMPROVED
    after = gate.on_unseen(artifact)
    if out is not None:
        publish.model(artifact.path, out)
        artifact = replace(artifact, path=out.absolute())
    return _ended(
        status,
        gate,
        before,
        started,
        search=search,
        interrupted=interrupted,
        steps=tuple(steps),
        after=after,
        artifact=artifact,
        out=out,
        command=command,
    )


def _check_place(out: Path, source: Artifact, target: Artifact) -> None:
    """Raise UsageError when a mended model cannot be written to `out`, or would stand in the way of one of the two."""
    suffix = framework_of(target.format).SUFFIXES[target.format]
    publish.check_model(out, source.path, target.format, folder=not suffix)
    publish.check_apart(out, target.path)


def _by_meaning(
    settled: Settled, before: Verification, target: Artifact, given: Feeds, *, out: Path | None, **more: Any
) -> Repair:
    """Mend a target whose source is computed wrongly by its own runtime, by what the source means.

    The settled source is put beside `out`, so that the result can be verified by it; by the source itself it cannot.
    """
    source, judge = before.source, settled.artifact
    beside = None if out is None else out.with_name(f"{out.stem}.source{judge.path.suffix}")
    if beside is not None:
        publish.check_model(beside, source.path, source.format, folder=False)
        publish.check_apart(beside, target.path)
    made = repair(settled.reference, target, given, out=out, tools=False, **more)
    words = settled.told(source, "a copy of it")
    if made.output is not None and beside is not None:
        publish.model(judge.path, beside)
        judge, words = replace(judge, path=beside.absolute()), settled.told(source, beside.name)
    after = None if made.after is None else replace(made.after, source=judge)
    result = replace(made, source=source, before=before, after=after, settled=words)
    return replace(result, explanation=explanation.compose(result))


def _another_way(gate: Gate, search: Search, attempt: Attempt | None, others: Sequence[Attempt]) -> Switch | str | None:
    """Another tool, option or version that is faithful; a text, kept among the reasons, why there is none; None after ^C."""
    left = min(tool.SECONDS, max(LEAST, search.deadline - time.monotonic()))
    try:
        way = switch(gate, attempt=attempt, others=others, seconds=left, kindred=search.compared)
    except KeyboardInterrupt:
        search.refused[CT] = "interrupted"
        return None
    if isinstance(way, str):
        search.refused[CT] = way
    return way


def _better(gate: Gate, search: Search, artifact: Artifact) -> bool:
    """Whether a file that is not faithful is worth having: an edit mended its place, or the deviation is a tenth of what it was."""
    was, now = gate.badness(gate.target), gate.badness(artifact)
    return fell(was, now) and (search.mended > 0 or now[:2] < was[:2] or now[2] < TENTH * was[2])


def _ended(
    status: Status,
    gate: Gate,
    before: Verification,
    started: float,
    *,
    search: Search | None = None,
    interrupted: bool = False,
    steps: Sequence[tuple[Edit, ...]] = (),
    after: Verification | None = None,
    artifact: Artifact | None = None,
    out: Path | None = None,
    command: str = "",
) -> Repair:
    """Put the result together."""
    made = Repair(
        status=status,
        source=gate.reference.artifact,
        target=gate.target,
        before=before,
        after=after if after is None or artifact is None else replace(after, target=artifact),
        output=None if out is None or artifact is None else out.absolute(),
        artifact=artifact,
        steps=tuple(steps),
        command=command,
        attempts=() if search is None else tuple(search.attempts),
        refused={} if search is None else dict(search.refused),
        notes=() if search is None else tuple(search.notes),
        suspects=() if search is None else tuple(search.suspects),
        timings={"total": time.monotonic() - started},
        interrupted=interrupted,
    )
    return replace(made, explanation=explanation.compose(made))
