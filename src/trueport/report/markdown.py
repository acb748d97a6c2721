"""A result as Markdown, for a pull request or an issue."""

from __future__ import annotations

from trueport.report import wording
from trueport.results import Document


def render(document: Document) -> str:
    """Return the Markdown text."""
    state, sentence = wording.headline(document)
    lines = [f"## {wording.MARKS[state]} {state.upper()}: {sentence}", ""]
    verify, diagnosis = wording.verification(document), wording.diagnosis(document)
    mended = wording.repair(document)
    if verify is not None and mended is not document:
        lines += [wording.reason(document), ""]
    if "route" in document:
        lines += _routes(document)
    if diagnosis is not None:
        lines += _diagnosis(diagnosis)
    if mended is not None:
        lines += _repair(mended, within=mended is not document)
    if verify is not None:
        lines += _outputs(verify) + _decisions(verify)
        lines += [f"- {note}" for note in verify["notes"]]
        again = document["rerun"] if wording.is_diagnosis(document) or mended is document else verify["rerun"]
        lines += ["", "Run again:", "", "```sh", *again, "```"]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _routes(document: Document) -> list[str]:
    lines = ["| route | step | toolchain | outcome | seconds | |", "|---|---|---|---|---|---|"]
    for attempt in document["tried"]:
        for hop in attempt["hops"]:
            why = hop["failure"]["message"] if hop["failure"] else ""
            if hop.get("known_issue"):
                why += f" ({_issue(hop['known_issue'])})"
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


def _diagnosis(diagnosis: Document) -> list[str]:
    lines = ["### Diagnosis", ""]
    if diagnosis["verdict"] == "faithful":
        return [*lines, "There is nothing to diagnose.", ""]
    if diagnosis["suspects"]:
        lines += ["| # | place | cause | accumulated | local | causal | what | source | target |", "|" + "---|" * 9]
    for suspect in diagnosis["suspects"]:
        detail = suspect["detail"]
        cells = (
            suspect["rank"],
            wording.place(suspect),
            suspect["cause"],
            wording.measure(suspect["accumulated"]),
            wording.measure(suspect["local"]),
            wording.share(suspect["causal"]),
            detail["what"],
            wording.plain(detail["source_value"]),
            wording.plain(detail["target_value"]),
        )
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    lines += ["", " ".join(diagnosis["explanation"].split()), ""]
    if diagnosis["known_issue"]:
        lines.append(f"- {_issue(diagnosis['known_issue'])}")
    if diagnosis["stage"]:
        lines.append(f"- made by {wording.step(diagnosis['stage'])}")
    if diagnosis["alignment"]:
        lines.append(f"- {wording.alignment(diagnosis['alignment'])}")
    return [*lines, *(f"- {note}" for note in diagnosis["notes"]), ""]


def _repair(mended: Document, *, within: bool) -> list[str]:
    """`within`: inside a conversion, whose diagnosis says what was wrong."""
    lines = ["### Repair", ""]
    if within:
        state, sentence = wording.headline(mended)
        lines += [f"{wording.MARKS[state]} {state.upper()}: {sentence}", ""]
    elif mended["suspects"]:
        lines += ["#### What was wrong", "", "| # | place | cause | what | source | target |", "|" + "---|" * 6]
        for suspect in mended["suspects"]:
            detail = suspect["detail"]
            values = wording.plain(detail["source_value"]), wording.plain(detail["target_value"])
            lines.append(_row(suspect["rank"], wording.place(suspect), suspect["cause"], detail["what"], *values))
        lines.append("")
    if mended["edits"]:
        lines += ["#### What was changed", "", "| # | rule | change | place | was | is now | why |", "|" + "---|" * 7]
        for number, edit in enumerate(mended["edits"], 1):
            values = wording.plain(edit["before"]), wording.plain(edit["after"])
            lines.append(_row(number, edit["rule"], edit["kind"], edit["where"], *values, edit["reason"]))
        lines.append("")
    if wording.before_after(mended):
        lines += ["#### Before and after", "", "| output | before | ratio | after | ratio |", "|" + "---|" * 5]
        for name, *sides in wording.before_after(mended):
            cells = [("–", "–") if one is None else (one["verdict"], wording.number(one["ratio"])) for one in sides]
            lines.append(_row(name, *cells[0], *cells[1]))
        lines.append("")
    lines += [" ".join(mended["explanation"].split()), ""]
    if wording.unmended(mended):
        lines += [*(f"- {rule}: {why}" for rule, why in mended["refused"].items()), ""]
    if mended["patch"]:
        lines += [
            "The same changes, with the format's own library alone:",
            "",
            "```sh",
            wording.patching(mended),
            "```",
            "",
        ]
    if mended["command"]:
        lines += ["Another way:", "", "```sh", mended["command"], "```", ""]
    return [*lines, *(f"- {note}" for note in mended["notes"]), ""]


def _row(*cells: object) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _issue(issue: Document) -> str:
    return f"known issue [{issue['id']}]({issue['url']}): {issue.get('summary', '')}; {wording.advice(issue)}"


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
