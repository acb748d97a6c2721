"""The few words and numbers that every form of report shares."""

from __future__ import annotations

import json
import math
import shlex
from typing import Any

Document = dict[str, Any]

HEADLINES = {
    "faithful": "The target computes what the source computes.",
    "deviates": "The target computes something else.",
    "incomparable": "The two could not be compared, so nothing is proven.",
    "flaky": "A model gives different answers to the same question, so nothing is proven.",
    "failed": "No route succeeded.",
    "unverified": "Converted, not verified.",
    "repaired": "The changed target computes what the source computes, on inputs that the search never saw too.",
    "improved": "The changed target is nearer to the source, and still not faithful.",
    "unrepaired": "Nothing was found that brings the target nearer to the source; nothing was written.",
    "not-needed": "The target computes what the source computes as it is; nothing was changed.",
}

BY_MEANING = {
    "repaired": "The changed target computes what the source means, which its own runtime does not.",
    "not-needed": "The target computes what the source means, which its own runtime does not; nothing was changed.",
}
"""Headlines of repairs by a source that its own runtime computes wrongly."""

MARKS = {
    "faithful": "✓",
    "deviates": "✗",
    "incomparable": "?",
    "flaky": "~",
    "failed": "✗",
    "unverified": "?",
    "repaired": "✓",
    "improved": "~",
    "unrepaired": "✗",
    "not-needed": "✓",
}


INFINITE = {"Infinity": "∞", "-Infinity": "−∞"}


def number(value: Any) -> str:
    """Format a metric with three significant digits; the strings that stand for non-finite values look like those."""
    if isinstance(value, str) or value is None:
        return INFINITE.get(value, value) if isinstance(value, str) else "–"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == 0:
        return "0"
    return f"{value:.3g}"


def percent(value: float | None) -> str:
    """Format a share. "100 %" is printed only when it is exactly that."""
    if value is None:
        return "–"
    text = f"{100 * value:.2f}"
    if text == "100.00" and value != 1:
        text = "99.99"
    return f"{text} %"


def seconds(value: float) -> str:
    """Format a duration."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def measure(value: Any) -> str:
    """Format a figure of a suspect; one that could not be taken is NaN, and shown as missing."""
    return "–" if _missing(value) else number(value)


def share(value: Any) -> str:
    """Format a share that may be missing, or more than can be written ("Infinity")."""
    if _missing(value):
        return "–"
    return number(value) if isinstance(value, str) or not math.isfinite(value) else percent(value)


def _missing(value: Any) -> bool:
    return value is None or value == "NaN" or (isinstance(value, float) and math.isnan(value))


def plain(value: Any) -> str:
    """Write one of the two values of a suspect: text as it is, numbers with six digits, so that close ones stay apart."""
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else number(value)
    if isinstance(value, list):
        return "[" + ", ".join(plain(item) for item in value) + "]"
    return number(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def place(suspect: Document) -> str:
    """Name the blamed node, with its operator where it is known."""
    if not suspect["target_nodes"]:
        return "the inputs" if suspect["cause"] == "inputs" else "–"
    return f"{suspect.get('operator', '')} {suspect['target_nodes'][0]}".strip()


def advice(issue: Document) -> str:
    """Say of a known bug in which version it is gone, and what to do about it."""
    parts = [f"fixed in {issue['fixed_in']}" if issue["fixed_in"] else "", issue.get("cure", "")]
    return "; ".join(part for part in parts if part) or "no release that fixes it is known"


def some(names: list[str], count: int = 6) -> str:
    """List the first names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def step(stage: Document) -> str:
    """Name the conversion step that made a fault, and why it is known."""
    reason = f": {stage['reason']}" if stage.get("reason") else ""
    return f"{stage['step']} (step {stage['hop'] + 1} of the route){reason}"


def alignment(counts: Document) -> str:
    """Say how much of the target could be compared."""
    if not counts:
        return ""
    return (
        f"values inside the target: {counts['values']}; with a counterpart in the source: {counts['paired']}; "
        f"agreeing with it: {counts['agreeing']}"
    )


def verification(document: Document) -> Document | None:
    """Return the `trueport/verify/1` part of a stored result of any kind; of a repair that of the model it left."""
    if is_repair(document):
        left: Document = document["after"] or document["before"]
        return left
    found: Document | None = document if document["format"].startswith("trueport/verify/") else document["verify"]
    return found


def diagnosis(document: Document) -> Document | None:
    """Return the `trueport/diagnose/1` part of a stored result of any kind."""
    found: Document | None = document if is_diagnosis(document) else document.get("diagnose")
    return found


def is_diagnosis(document: Document) -> bool:
    """Tell whether a stored result is a `trueport/diagnose/1` document."""
    return bool(document["format"].startswith("trueport/diagnose/"))


def repair(document: Document) -> Document | None:
    """Return the `trueport/repair/1` part of a stored result of any kind."""
    found: Document | None = document if is_repair(document) else document.get("repair")
    return found


def is_repair(document: Document) -> bool:
    """Tell whether a stored result is a `trueport/repair/1` document."""
    return bool(document["format"].startswith("trueport/repair/"))


def unmended(mended: Document) -> bool:
    """Whether a repair left something wrong, so that the reasons of its rules are worth reading."""
    return mended["status"] in ("unrepaired", "improved") and bool(mended["refused"])


def patching(mended: Document) -> str:
    """The command that runs a repair's patch."""
    return shlex.join(["python", mended["patch"], mended["target"]["path"], "OUT"])


def changes(count: int) -> str:
    """Say how many changes."""
    return f"{count} change{'' if count == 1 else 's'}"


def before_after(mended: Document) -> list[tuple[str, Document | None, Document | None]]:
    """Pair the outputs of a repair's two verifications: (name, before, after), None where one was not compared."""
    sides = [
        {} if side is None else {output["source"]: output for output in side["outputs"]}
        for side in (mended["before"], mended["after"])
    ]
    return [(name, sides[0].get(name), sides[1].get(name)) for name in dict.fromkeys([*sides[0], *sides[1]])]


def reason(document: Document) -> str:
    """Say in a sentence why a result is what it is called."""
    verify, mended = verification(document), repair(document)
    if verify is None or is_repair(document):
        return headline(document)[1]
    said = str(verify["reason"])
    if mended is not None and mended["output"]:
        how = (
            "converted another way"
            if mended["command"]
            else f"after {changes(len(mended['edits']))} to the converted file"
        )
        return f"{how}: {said}"
    return said


def by_meaning(document: Document) -> bool:
    """Whether a repair was judged by a copy of the source that its runtime computes rightly."""
    after = document["after"]
    if after is None:
        return bool(document["before"]["verdict"] == "flaky")
    return bool(after["source"]["path"] != document["source"]["path"])


def headline(document: Document) -> tuple[str, str]:
    """Return (state, sentence) of a stored result."""
    if is_repair(document) and document["command"] and document["output"]:
        return document["status"], "Converted another way, the model computes what the source computes."
    if is_repair(document) and by_meaning(document) and document["status"] in BY_MEANING:
        return document["status"], BY_MEANING[document["status"]]
    if document.get("status") == "failed" or is_repair(document):
        return document["status"], HEADLINES[document["status"]]
    verify = verification(document)
    if verify is None:
        return "unverified", HEADLINES["unverified"]
    state = verify["verdict"]
    return state, HEADLINES[state]


def outcome(hop: Document) -> str:
    """Tell in a word or two how one hop ended."""
    if hop["outcome"] != "ok":
        return str(hop["outcome"])
    judged = hop.get("verdicts", {}).get("original")
    return "converted" if judged is None else str(judged["verdict"])
