"""What `convert` does about a result that is not faithful: say where and why, mend it, and put the better file in its place."""

from __future__ import annotations

from dataclasses import replace

from trueport import publish
from trueport.compare.types import Verdict, Verification
from trueport.conversion import Conversion
from trueport.diagnosis import run as diagnosing
from trueport.diagnosis.run import Request
from trueport.diagnosis.types import Diagnosis
from trueport.errors import BadModelError, UsageError
from trueport.feeds import Feeds
from trueport.repairs import editing, explanation, run
from trueport.repairs.gate import badness, fell
from trueport.repairs.run import Budget
from trueport.repairs.types import Repair, Status
from trueport.verification import Reference, verify

SECONDS = 120.0
"""Time for a repair within a conversion; `trueport repair` takes more."""


def unfaithful(result: Conversion) -> bool:
    """Whether there is a converted model, verified, and not faithful."""
    judged = result.verification
    made = result.chosen is not None and result.chosen.output is not None
    return made and judged is not None and judged.verdict is not Verdict.FAITHFUL


def diagnosed(reference: Reference, result: Conversion, given: Feeds, *, task: str, budget: int) -> Conversion:
    """Add the diagnosis of the kept model. The attempts tell which step made the fault. budget: bytes, as of `Request`."""
    kept, judged = result.chosen, result.verification
    if kept is None or kept.output is None or judged is None:
        return result
    others = tuple(attempt for attempt in result.attempts if attempt is not kept)
    request = Request(budget=budget, attempt=kept, others=others)
    precision = judged.declared_precision
    try:
        found = diagnosing.diagnose(
            reference, kept.output, given, precision=precision, task=task, verification=judged, request=request
        )
    except BadModelError as error:  # the file was made here, so what its framework says of it is a finding
        found = Diagnosis(verification=judged, explanation=judged.reason, notes=(f"it cannot be diagnosed: {error}",))
    return replace(result, diagnosis=found)


def repaired(reference: Reference, result: Conversion, given: Feeds, *, unseen: Feeds | None, task: str) -> Conversion:
    """Mend the kept model and put what is better in its place; what cannot be mended stays as the converters made it.

    A flaky model is left alone: no edit makes it answer twice alike.
    """
    kept, judged, out = result.chosen, result.verification, result.output
    if kept is None or kept.output is None or out is None or judged is None or judged.verdict is Verdict.FLAKY:
        return result
    if not editing.supported(kept.output.format):
        return result
    try:
        made = run.repair(
            reference,
            kept.output,
            given,
            out=None,
            unseen=unseen,
            precision=judged.declared_precision,
            task=task,
            budget=Budget(seconds=SECONDS),
            attempt=kept,
            others=tuple(attempt for attempt in result.attempts if attempt is not kept),
        )
        if made.artifact is None:
            return replace(result, repair=made)
        reference.session.progress("verifying the repaired model")
        found = verify(reference, made.artifact, given, precision=judged.declared_precision, task=task)
    except UsageError as error:  # the conversion stands: what came of it is delivered as it is
        reference.session.progress(f"it cannot be repaired: {error}")
        return result
    made = agreed(made, judged, found)
    if made.artifact is None:
        return replace(result, repair=made)
    publish.model(made.artifact.path, out)
    again = tuple(line.replace(str(made.artifact.path), str(out)) for line in found.rerun)
    artifact = replace(made.artifact, path=out)
    after = None if made.after is None else replace(made.after, target=artifact, rerun=())
    return replace(
        result,
        repair=replace(made, artifact=artifact, output=out, after=after, before=replace(made.before, rerun=())),
        delivered=replace(found, target=artifact, rerun=again),
        diagnosis=result.diagnosis and _unrepeatable(result.diagnosis),
    )


def agreed(made: Repair, before: Verification, after: Verification) -> Repair:
    """The repair as the verification on all inputs of the conversion bears it out: it has the last word."""
    if after.verdict is Verdict.FAITHFUL:
        return made
    note = f"on all inputs of the conversion the changed model is {after.verdict}: {after.reason}"
    notes = (*made.notes, note)
    if fell(badness(before), badness(after)):
        weaker = replace(made, status=Status.IMPROVED, notes=notes)
    else:
        weaker = replace(made, status=Status.UNREPAIRED, steps=(), after=None, artifact=None, notes=notes)
    return replace(weaker, explanation=explanation.compose(weaker))


def _unrepeatable(found: Diagnosis) -> Diagnosis:
    """A diagnosis of a model that no longer lies where it lay: no command verifies it again."""
    return replace(found, verification=replace(found.verification, rerun=()))
