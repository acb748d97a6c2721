"""A result as Markdown, for a pull request or an issue."""

from __future__ import annotations

from trueport.report import wording
from trueport.results import Document


def render(document: Document) -> str:
    """Return the Markdown text."""
    state, sentence = wording.headline(document)
    lines = [f"## {wording.MARKS[state]} {state.upper()}: {sentence}", ""]
    verify = document if document["format"].startswith("trueport/verify/") else document["verify"]
    if verify is not None:
        lines += [verify["reason"], ""]
    if "tried" in document:
        lines += _routes(document)
    if verify is not None:
        lines += _outputs(verify) + _decisions(verify)
        lines += [f"- {note}" for note in verify["notes"]]
        lines += ["", "Run again:", "", "```sh", *verify["rerun"], "```"]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _routes(document: Document) -> list[str]:
    lines = ["| route | step | toolchain | outcome | seconds | |", "|---|---|---|---|---|---|"]
    for attempt in document["tried"]:
        for hop in attempt["hops"]:
            why = hop["failure"]["message"] if hop["failure"] else ""
            cells = (
                attempt["route"],
                hop["step"],
                hop["toolchain"],
                wording.outcome(hop),
                f"{hop['seconds']:.1f}",
                why,
            )
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return [*lines, ""]


def _outputs(verify: Document) -> list[str]:
    if not verify["outputs"]:
        return []
    lines = ["| source | target | verdict | max abs | rmse | floor | ratio |", "|---|---|---|---|---|---|---|"]
    for output in verify["outputs"]:
        numbers = (wording.number(output[key]) for key in ("max_abs", "rmse", "floor", "ratio"))
        lines.append(
            "| "
            + " | ".join(_cell(c) for c in (output["source"], output["target"], output["verdict"], *numbers))
            + " |"
        )
    return [*lines, ""]


def _decisions(verify: Document) -> list[str]:
    decisions = verify["decisions"]
    if decisions is None:
        return []
    accuracy = ""
    if decisions["accuracy_source"] is not None:
        before, after = (wording.percent(decisions[f"accuracy_{side}"]) for side in ("source", "target"))
        accuracy = f", accuracy {before} → {after}"
    flips, noise = decisions["top1_flips"], decisions["flips_within_noise"]
    return [f"Decisions: {flips} of {decisions['count']} labels changed ({noise} within the noise){accuracy}.", ""]
