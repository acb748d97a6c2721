"""A result as a readable summary on a terminal, at most 80 columns wide where the terminal is no wider."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trueport.repairs.explanation import short
from trueport.report import wording
from trueport.results import Document

STYLES = {
    "faithful": "bold green",
    "deviates": "bold red",
    "failed": "bold red",
    "incomparable": "bold yellow",
    "flaky": "bold yellow",
    "unverified": "bold yellow",
    "converted": "yellow",
    "repaired": "bold green",
    "not-needed": "bold green",
    "improved": "bold yellow",
    "unrepaired": "bold red",
}

MOST = 12
"""Changes that are listed; the JSON document has them all."""


def show(document: Document, console: Console) -> None:
    """Print the summary of a stored result."""
    verify, diagnosis = wording.verification(document), wording.diagnosis(document)
    if wording.is_diagnosis(document):
        _verdict(document, console)
        _diagnosis(document, console)
        return
    mended = wording.repair(document)
    if mended is not None and mended is document:
        _verdict(document, console)
        _repair(document, console)
        _next(document, console)
        return
    if "route" in document:
        _routes(document, console)
    if mended is not None and mended["output"]:
        _as_made(diagnosis, mended, console)
        diagnosis = mended = None
    if verify is not None:
        _outputs(verify, console)
        _decisions(verify, console)
        _notes(verify["notes"], console)
    if diagnosis is not None:
        _diagnosis(diagnosis, console)
        console.print()
    if mended is not None:
        _verdict(mended, console)
        _repair(mended, console)
        console.print()
    _verdict(document, console)
    if document.get("output"):
        console.print(Text(f"written to {document['output']}"), soft_wrap=True)


def show_line(document: Document, console: Console) -> None:
    """Print the verdict and its reason, of a diagnosis the first suspect, in one line."""
    if wording.is_repair(document) and document["output"]:
        _verdict(document, console, f"{wording.changes(len(document['edits']))}, written to {document['output']}")
        return
    diagnosis = wording.diagnosis(document) if wording.is_diagnosis(document) else None
    if diagnosis is None or not diagnosis["suspects"]:
        _verdict(document, console)
        return
    first = diagnosis["suspects"][0]
    _verdict(document, console, f"{wording.place(first)} ({first['cause']}): {first['detail']['what']}")


def _verdict(document: Document, console: Console, said: str = "") -> None:
    """Print the verdict, and what is `said` of it: its reason, when that is nothing."""
    verify = wording.verification(document)
    state, _ = wording.headline(document)
    line = Text(f"{wording.MARKS[state]} {state.upper()}", style=STYLES[state])
    if verify is not None and verify["declared_precision"] != "float32":
        line.append(f" at {verify['declared_precision']}")
    line.append(f"  {said or wording.reason(document)}", style="not bold")
    console.print(line)


def _notes(notes: list[str], console: Console) -> None:
    for note in notes:
        console.print(Text(f"· {note}", style="dim"))


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", show_edge=False)
    for name, justify in columns:
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    return table


# -- diagnosis -------------------------------------------------------------------------------------------------------


def _diagnosis(diagnosis: Document, console: Console) -> None:
    """Print the suspects, the two values of the first, the paragraph, the known bug, the step, and the notes."""
    console.print()
    if diagnosis["verdict"] == "faithful":
        console.print(Text("There is nothing to diagnose."))
        return
    suspects = diagnosis["suspects"]
    if suspects:
        _suspects(suspects, console)
        _side_by_side(suspects[0], console)
    console.print(Text(diagnosis["explanation"]))
    issue, stage = diagnosis["known_issue"], diagnosis["stage"]
    facts = [("known issue", f"{issue['id']}, {wording.advice(issue)}")] if issue else []
    facts += [("", issue["url"])] if issue else []
    facts += [("made by", wording.step(stage))] if stage else []
    facts += [("compared", wording.alignment(diagnosis["alignment"]))] if diagnosis["alignment"] else []
    if facts:
        grid = _grid()
        for name, text in facts:
            grid.add_row(Text(name, style="dim"), Text(text))
        console.print()
        console.print(grid)
    _notes(diagnosis["notes"], console)


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _suspects(suspects: list[Document], console: Console) -> None:
    """One line per suspect; the columns of figures keep their width, so that only the names of nodes are broken."""
    table = Table(box=None, pad_edge=False, header_style="dim", show_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("place", overflow="fold")
    table.add_column("cause", no_wrap=True)
    table.add_column("local", justify="right", no_wrap=True)
    table.add_column("causal", justify="right", no_wrap=True)
    for suspect in suspects:
        more = len(suspect["target_nodes"]) - 1
        name = Text(wording.place(suspect))
        name.append(f" +{more}" if more > 0 else "", style="dim")
        figures = wording.measure(suspect["local"]), wording.share(suspect["causal"])
        table.add_row(str(suspect["rank"]), name, Text(suspect["cause"]), *figures)
    console.print(table)
    console.print()


def _side_by_side(suspect: Document, console: Console) -> None:
    """Print what is wrong at the first suspect, and under it the source's and the target's value in two columns."""
    detail = suspect["detail"]
    if detail["what"]:
        console.print(Text(detail["what"], style="bold"))
    table = Table(box=None, pad_edge=False, header_style="dim", show_edge=False, expand=True)
    for side in ("source", "target"):
        table.add_column(side, overflow="fold", ratio=1)
    nodes = [wording.some(suspect[f"{side}_nodes"], 3) for side in ("source", "target")]
    if any(nodes):
        table.add_row(*(Text(name or "–", style="dim") for name in nodes))
    table.add_row(*(Text(wording.plain(detail[f"{side}_value"])) for side in ("source", "target")))
    console.print(table)
    console.print()


# -- repair ----------------------------------------------------------------------------------------------------------


def _as_made(diagnosis: Document | None, mended: Document, console: Console) -> None:
    """Print what was wrong with the model as the converters made it, and what was changed in it."""
    if diagnosis is not None:
        console.print(Text("As the converters made it:", style="bold"))
        _diagnosis(diagnosis, console)
        console.print()
    _verdict(mended, console)
    _repair(mended, console)
    console.print()


def _repair(mended: Document, console: Console) -> None:
    """Print the outputs before and after, the changes, and the paragraph."""
    console.print()
    rows = wording.before_after(mended)
    if rows:
        table = _table(("output", ""), ("before", ""), ("ratio", "right"), ("after", ""), ("ratio", "right"))
        for name, before, after in rows:
            table.add_row(Text(name), *_judged(before), *_judged(after))
        console.print(table)
        console.print()
    if mended["edits"]:
        _edits(mended["edits"], console)
    console.print(Text(mended["explanation"]))
    if wording.unmended(mended):
        grid = _grid()
        for rule, why in mended["refused"].items():
            grid.add_row(Text(rule, style="dim"), Text(why))
        console.print()
        console.print(grid)
    _notes(mended["notes"], console)


def _judged(output: Document | None) -> tuple[Text, str]:
    if output is None:
        return Text("–", style="dim"), ""
    return Text(output["verdict"], style=STYLES[output["verdict"]]), wording.number(output["ratio"])


def _edits(edits: list[Document], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim", show_edge=False, expand=True)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("change", no_wrap=True)
    for name, share in (("place", 3), ("was", 4), ("is now", 4)):
        table.add_column(name, overflow="fold", ratio=share)
    for number, edit in enumerate(edits[:MOST], 1):
        cells = short(edit["where"]), wording.plain(edit["before"]), wording.plain(edit["after"])
        table.add_row(str(number), edit["kind"], *map(Text, cells))
    console.print(table)
    if len(edits) > MOST:
        console.print(Text(f"and {len(edits) - MOST} more; the JSON document has them all", style="dim"))
    console.print()


def _next(mended: Document, console: Console) -> None:
    """Print where the mended model lies, and the commands to go on with, each in one line to be copied."""
    lines = [f"written to {mended['output']}"] if mended["output"] else []
    lines += [f"verify it: {line}" for line in (mended["after"] or {"rerun": []})["rerun"]]
    lines += [f"patch: {wording.patching(mended)}"] if mended["patch"] else []
    lines += [f"{'made by' if mended['output'] else 'another way'}: {mended['command']}"] if mended["command"] else []
    if lines:
        console.print()
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _routes(document: Document, console: Console) -> None:
    """Print one line per hop, numbered by route, and under it, with the whole width, why it is not faithful."""
    rows = [
        (str(number) if place == 0 else "", hop)
        for number, attempt in enumerate(document["tried"], 1)
        for place, hop in enumerate(attempt["hops"])
    ]
    steps = max(len(hop["step"]) for _, hop in rows)
    ways = max(len(_way(hop)) for _, hop in rows)
    marks = max(len(mark) for mark, _ in rows)
    for mark, hop in rows:
        word = wording.outcome(hop)
        line = Text(f"{mark:>{marks}}  {hop['step']:<{steps}}  {_way(hop):<{ways}}  ")
        line.append(word, style=STYLES.get(word, "bold red"))
        if hop["outcome"] == "ok":
            line.append(f"  {wording.seconds(hop['seconds'])}", style="dim")
        console.print(line, soft_wrap=True)
        why = _why(hop)
        if why:
            console.print(Padding(Text(why, style="dim"), (0, 0, 0, marks + 4)))
        issue = hop.get("known_issue")
        if issue:
            known = f"known issue {issue['id']}: {issue['summary']}; {wording.advice(issue)}\n{issue['url']}"
            console.print(Padding(Text(known), (0, 0, 0, marks + 4)))
    console.print()


def _way(hop: Document) -> str:
    return f"{hop['source_format']} → {hop['target_format']}"


def _why(hop: Document) -> str:
    if hop["failure"]:
        return str(hop["failure"]["message"])
    judged = hop["verdicts"]["original"]
    return str(judged["reason"]) if judged and judged["verdict"] != "faithful" else ""


def _outputs(verify: Document, console: Console) -> None:
    if verify["outputs"]:
        table = _table(
            ("output", ""),
            ("verdict", ""),
            ("max abs", "right"),
            ("rmse", "right"),
            ("floor", "right"),
            ("ratio", "right"),
        )
        for output in verify["outputs"]:
            name = (
                output["source"] if output["source"] == output["target"] else f"{output['source']} → {output['target']}"
            )
            numbers = [wording.number(output[key]) for key in ("max_abs", "rmse", "floor", "ratio")]
            table.add_row(Text(name), Text(output["verdict"], style=STYLES[output["verdict"]]), *numbers)
        console.print(table)
    for side in ("source", "target"):
        if verify["unpaired"][side]:
            console.print(Text(f"not compared ({side}): {', '.join(verify['unpaired'][side])}", style="red"))


def _decisions(verify: Document, console: Console) -> None:
    decisions = verify["decisions"]
    if decisions is None:
        return
    flips, noise = decisions["top1_flips"], decisions["flips_within_noise"]
    text = f"decisions: {flips} of {decisions['count']} labels changed ({noise} within the noise)"
    if decisions["accuracy_source"] is not None:
        before, after = (wording.percent(decisions[f"accuracy_{side}"]) for side in ("source", "target"))
        text += f"; accuracy {before} → {after}"
    console.print(Text(text))
