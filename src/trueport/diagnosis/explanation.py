"""The paragraph that says what is wrong with a converted model, ready to be pasted into an issue."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trueport.compare.types import Verdict, Verification
from trueport.diagnosis.types import KnownIssue, Stage, Suspect

_TOOLS = 6
"""Versions that are listed at most."""


def compose(
    verification: Verification,
    suspects: Sequence[Suspect],
    *,
    stage: Stage | None = None,
    known_issue: KnownIssue | None = None,
    said: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
) -> str:
    """One paragraph: the verdict with its figures, the place, what is wrong with both values, the proof, the tool, the cure.

    Several suspects: the first in detail, the others in a clause each. `said`: sentences of who looked for the tool.
    """
    sentences = [_verdict(verification)]
    if suspects and verification.verdict is not Verdict.INCOMPARABLE:
        sentences.append(_first(suspects[0]))
        sentences.append(_proof(suspects[0]))
        if len(suspects) > 1:
            sentences.append(_others(suspects[1:]))
    elif verification.verdict is Verdict.DEVIATES:
        sentences.append("No place inside the target could be made out at which the difference begins.")
    sentences += [
        _stage(stage),
        *(_sentence(text) for text in said if stage is None or stage.reason not in text),
        _known(known_issue),
        _versions(verification.versions if versions is None else versions),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _verdict(verification: Verification) -> str:
    names = f"The {verification.target.format} model {verification.target.path.name}"
    original = f"{verification.source.path.name} ({verification.source.format})"
    if verification.verdict is Verdict.FAITHFUL:
        return f"{names} computes what {original} computes."
    if verification.verdict is Verdict.FLAKY:
        return f"{names} cannot be judged against {original}: {_sentence(verification.reason)}"
    if verification.verdict is Verdict.INCOMPARABLE:
        return f"{names} cannot be compared with {original}: {_sentence(verification.reason)}"
    worst = max(verification.comparison.outputs, key=lambda output: _finite(output.ratio), default=None)
    if worst is None:
        return f"{names} does not compute what {original} computes: {_sentence(verification.reason)}"
    if worst.target_nonfinite != worst.source_nonfinite:
        return f"{names} does not compute what {original} computes: {_sentence(worst.reason or verification.reason)}"
    ratio = (
        f"{_number(worst.ratio)} times the noise of the source" if math.isfinite(worst.ratio) else "beyond all noise"
    )
    said = f"{names} does not compute what {original} computes: output '{worst.target}' is off by up to {_number(worst.max_abs)}, {ratio}"
    decisions = verification.comparison.decisions
    if decisions is not None and decisions.count and decisions.top1_flips:
        said += f", and {decisions.top1_flips} of {decisions.count} decisions change"
    return said + "."


def _first(suspect: Suspect) -> str:
    place = f"{suspect.operator} '{suspect.target_nodes[0]}'" if suspect.target_nodes else "the inputs"
    if suspect.operator == "":
        place = f"'{suspect.target_nodes[0]}'" if suspect.target_nodes else "the inputs"
    twin = f", where the source has {_quoted(suspect.source_nodes)}" if suspect.source_nodes else ""
    values = ""
    if suspect.source_value not in (None, "") or suspect.target_value not in (None, ""):
        values = f" Source: {_value(suspect.source_value)}; target: {_value(suspect.target_value)}."
    return f"The difference begins at {place}{twin} ({suspect.cause}): {_sentence(suspect.what)}{values}"


def _proof(suspect: Suspect) -> str:
    causal = suspect.causal
    confirmed = suspect.finding is None or suspect.finding.confirmed
    parts = []
    if math.isfinite(causal):
        parts.append(f"putting the source's value in removes {_percent(causal)} of the output error")
    if math.isfinite(suspect.local):
        parts.append(f"run on the source's values, this operator alone is off by {_number(suspect.local)} of its size")
    if not parts:
        return "" if confirmed else "This is unconfirmed."
    said = ", and ".join(parts)
    return f"{said[0].upper()}{said[1:]}{'' if confirmed else ' (unconfirmed)'}."


def _others(suspects: Sequence[Suspect]) -> str:
    clauses = []
    for suspect in suspects:
        node = suspect.target_nodes[0] if suspect.target_nodes else "the inputs"
        share = ""
        if math.isfinite(suspect.causal):
            share = (
                f", {_percent(suspect.causal)} of the error" if suspect.causal >= 0 else ", partly hidden by the others"
            )
        unsure = ", unconfirmed" if suspect.finding is not None and not suspect.finding.confirmed else ""
        clauses.append(f"'{node}' ({suspect.cause}: {suspect.what.rstrip('.')}{share}{unsure})")
    return f"Besides, {'; '.join(clauses)}."


def _stage(stage: Stage | None) -> str:
    if stage is None:
        return ""
    reason = f": {_sentence(stage.reason)}" if stage.reason else "."
    return f"The fault was made by step {stage.step} (hop {stage.hop + 1}){reason}"


def _known(issue: KnownIssue | None) -> str:
    if issue is None:
        return ""
    fixed = f", fixed in {issue.fixed_in}" if issue.fixed_in else ""
    return (
        f"This is the known issue {issue.id} ({issue.url}): {issue.summary.rstrip('.')}{fixed}. "
        f"{_sentence(issue.cure[:1].upper() + issue.cure[1:])}"
    )


def _versions(versions: Mapping[str, str]) -> str:
    if not versions:
        return ""
    # The tools of either side; the interpreter and NumPy seldom matter to whom the issue is for.
    tools = [name for name in versions if name.split(".")[-1] not in ("python", "numpy", "trueport")]
    sides = [[name for name in tools if name.startswith(side)] for side in ("source.", "target.")]
    both = [name for name in tools if not name.startswith(("source.", "target."))]
    chosen = ["trueport", *both[:_TOOLS], *sides[0][: _TOOLS // 2], *sides[1][: _TOOLS // 2]]
    listed = ", ".join(f"{name} {versions[name]}" for name in chosen if name in versions)
    return f"Versions: {listed}."


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "!", "?")) or not text else f"{text}."


def _quoted(names: Sequence[str]) -> str:
    listed = [f"'{name}'" for name in names[:3]]
    return ", ".join(listed) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return "nothing" if value is None or value == "" else str(value)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 and abs(value) < 1e6 else f"{value:.3g}"


def _percent(share: float) -> str:
    """A share; "100 %" is said only when it is exactly that."""
    if share >= 1:
        return "100 %"
    shown = f"{100 * share:.1f}"
    return "more than 99.9 %" if shown == "100.0" else f"{shown} %"


def _finite(value: float) -> float:
    return value if not math.isnan(value) else -1.0
