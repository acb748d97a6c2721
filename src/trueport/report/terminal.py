"""A result as a readable summary on a terminal, at most 80 columns wide where the terminal is no wider."""

from __future__ import annotations

from rich.console import Console
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
    table = _table(("step", ""), ("from → to", ""), ("outcome", ""), ("time", "right"), ("what happened", ""))
    for attempt in document["tried"]:
        for hop in attempt["hops"]:
            word = wording.outcome(hop)
            judged = hop["verdicts"]["original"]
            why = hop["failure"]["message"] if hop["failure"] else (judged["reason"] if judged else "")
            table.add_row(
                Text(hop["step"]),
                Text(f"{hop['source_format']} → {hop['target_format']}"),
                Text(word, style=STYLES.get(word, "bold red")),
                wording.seconds(hop["seconds"]),
                Text(why),
            )
        table.add_section()
    console.print(table)
    console.print()


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
