"""The paragraph that says what was wrong, what was changed and what came of it."""

from __future__ import annotations

import math

from trueport.compare.types import Verification
from trueport.repairs.types import PAIR, Edit, Repair, Status

MOST = 6
"""Changes that the paragraph tells; all of them stand in the list."""


def compose(made: Repair) -> str:
    """One sentence on the outcome with its figures, one per edit, and what could not be done."""
    before, after = _ratio(made.before), "" if made.after is None else _ratio(made.after)
    head = _head(made, before, after)
    return f"{head} {made.settled}" if made.settled else head


def _head(made: Repair, before: str, after: str) -> str:
    """The same without a word about the source. before, after: the ratios."""
    name = made.target.path.name
    if made.status is Status.NOT_NEEDED:
        means = (
            f"computes what {made.source.path.name} means"
            if made.settled
            else f"is faithful to {made.source.path.name}"
        )
        return f"{name} {means} as it is; nothing was changed."
    if made.status is Status.UNREPAIRED and PAIR in made.refused:
        return f"{name} is not taken for a conversion of {made.source.path.name}, and was left alone: {made.refused[PAIR]}."
    if made.status is Status.UNREPAIRED:
        tried = f"{_changes(len(made.attempts), 'was', 'were')} tried" if made.attempts else "no rule had one to offer"
        stopped = " before the search was interrupted" if made.interrupted else ""
        none = ", and none brought it nearer" if made.attempts else ""
        return f"{name} could not be mended to compute what {made.source.path.name} computes: {tried}{stopped}{none}."
    fall = f"the deviation falls from {before} to {after}" if before else f"it was {made.before.verdict} before"
    if made.command:
        return f"No change to {name} makes it faithful, but converted another way the model is: {fall}. {made.command}"
    how = _changes(len(made.edits))
    if made.status is Status.REPAIRED and made.settled:
        head = (
            f"{name} computes what {made.source.path.name} means after {how}, on inputs that the search never saw too."
        )
    elif made.status is Status.REPAIRED:
        head = f"{name} is faithful after {how}: on inputs that the search never saw {fall}."
    else:
        head = f"{name} is nearer to its source after {how} and still not faithful: {fall}."
    stopped = " The search was interrupted." if made.interrupted else ""
    more = len(made.edits) - MOST
    rest = [f"And {_changes(more)} more of the list."] if more > 0 else []
    return " ".join([head, *(_told(edit) for edit in made.edits[:MOST]), *rest]) + stopped


def _told(edit: Edit) -> str:
    return f"{short(edit.where)}: {edit.before} → {edit.after} ({edit.reason})."


def short(place: str) -> str:
    """Name a place: of several names that a converter joined into one, the first."""
    first, *others = place.split(";")
    return f"{first};… ({len(others) + 1} names)" if others else place


def reasons(made: Repair) -> dict[str, str]:
    """Rule -> why it mends nothing: that it has nothing to offer, or what came of the changes that it offered."""
    kept = {edit.rule for edit in made.edits}
    found = {rule: reason for rule, reason in made.refused.items() if rule not in kept}
    for rule in dict.fromkeys(attempt.rule for attempt in made.attempts):
        ends = [attempt.why for attempt in made.attempts if attempt.rule == rule]
        if rule not in kept:
            found[rule] = f"{_changes(len(ends))} tried: {'; '.join(dict.fromkeys(ends))}"
    return found


def _changes(count: int, one: str = "", many: str = "") -> str:
    return f"{count} change{'' if count == 1 else 's'} {one if count == 1 else many}".rstrip()


def _ratio(verification: Verification) -> str:
    """The largest ratio to the noise floor, in words; nothing where no output was compared."""
    ratios = [output.ratio for output in verification.comparison.outputs]
    if not ratios:
        return ""
    worst = math.inf if any(math.isnan(ratio) for ratio in ratios) else max(ratios)
    return f"{worst:.3g} times the noise floor" if math.isfinite(worst) else "no bound"
