"""A result as a readable summary on a terminal, at most 80 columns wide where the terminal is no wider."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

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
}


def show(document: Document, console: Console) -> None:
    """Print the summary of a stored result."""
    if "tried" in document:
        _routes(document, console)
    verify = document if document["format"].startswith("trueport/verify/") else document["verify"]
    if verify is not None:
        _outputs(verify, console)
        _decisions(verify, console)
        for note in verify["notes"]:
            console.print(Text(f"· {note}", style="dim"))
    show_line(document, console)
    if document.get("output"):
        console.print(Text(f"written to {document['output']}"), soft_wrap=True)


def show_line(document: Document, console: Console) -> None:
    """Print the verdict and its reason."""
    verify = document if document["format"].startswith("trueport/verify/") else document["verify"]
    state, sentence = wording.headline(document)
    line = Text(f"{wording.MARKS[state]} {state.upper()}", style=STYLES[state])
    if verify is not None and verify["declared_precision"] != "float32":
        line.append(f" at {verify['declared_precision']}")
    line.append(f"  {verify['reason'] if verify is not None else sentence}", style="not bold")
    console.print(line)


def _table(*columns: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", show_edge=False)
    for name, justify in columns:
        table.add_column(name, justify="right" if justify == "right" else "left", overflow="fold")
    return table


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
