"""The few words and numbers that every form of report shares."""

from __future__ import annotations

import math
from typing import Any

HEADLINES = {
    "faithful": "The target computes what the source computes.",
    "deviates": "The target computes something else.",
    "incomparable": "The two could not be compared, so nothing is proven.",
    "flaky": "A model gives different answers to the same question, so nothing is proven.",
    "failed": "No route succeeded.",
    "unverified": "Converted, not verified.",
}

MARKS = {"faithful": "✓", "deviates": "✗", "incomparable": "?", "flaky": "~", "failed": "✗", "unverified": "?"}


def number(value: Any) -> str:
    """Format a metric with three significant digits; the strings that stand for non-finite values stay."""
    if isinstance(value, str) or value is None:
        return value if isinstance(value, str) else "–"
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


def headline(document: dict[str, Any]) -> tuple[str, str]:
    """Return (state, sentence) of a stored result."""
    if document["format"].startswith("trueport/convert/"):
        if document["status"] == "failed":
            return "failed", HEADLINES["failed"]
        if document["verify"] is None:
            return "unverified", HEADLINES["unverified"]
        document = document["verify"]
    state = document["verdict"]
    return state, HEADLINES[state]


def outcome(hop: dict[str, Any]) -> str:
    """Tell in a word or two how one hop ended."""
    if hop["outcome"] != "ok":
        return str(hop["outcome"])
    judged = hop.get("verdicts", {}).get("original")
    return "converted" if judged is None else str(judged["verdict"])
