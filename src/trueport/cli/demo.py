"""`trueport demo`: the whole story on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from trueport import results
from trueport.cli import _output as output
from trueport.demo import story
from trueport.report import REPORTERS, terminal, wording


def demo(
    out: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where models and reports go.")] = Path(
        "demo-output"
    ),
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Print every stage.")] = False,
) -> None:
    """Train two small CNNs on handwritten digits, convert them to ONNX and TFLite, verify, and catch a real converter bug."""
    with output.progress(quiet=False, verbose=verbose) as progress:
        chapters = story.run(out, progress)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, justify in (
        ("conversion", "left"),
        ("verdict", "left"),
        ("ratio", "right"),
        ("accuracy", "left"),
        ("flips", "right"),
    ):
        table.add_column(column, justify="right" if justify == "right" else "left", overflow="fold")
    wrong = []
    for number, chapter in enumerate(chapters, 1):
        document = results.convert_document(chapter.conversion, rerun="trueport demo")
        output.write_report(document, out / f"report-{number}", tuple(REPORTERS))
        state = wording.headline(document)[0]
        if state != chapter.expected:
            wrong.append(f"{chapter.title}: {state}, expected {chapter.expected}")
        table.add_row(chapter.title, Text(state, style=terminal.STYLES[state]), *_numbers(document))
    console = output.stdout()
    console.print(table)
    console.print(
        Text(
            "\nonnxscript 0.5.6 fuses two BatchNorms on one input into one shared bias (microsoft/onnxscript#2553): its model loads, "
            "runs, and answers wrongly. 0.5.7 is right."
        )
    )
    console.print(f"models and reports: {out}/ (open {out}/report-{len(chapters) - 1}/report.html)", soft_wrap=True)
    for line in wrong:
        output.stderr().print(f"not as expected: {line}", style="red")
    raise typer.Exit(1 if wrong else 0)


def _numbers(document: results.Document) -> tuple[str, str, str]:
    verify = document["verify"]
    if verify is None:
        return "–", "–", "–"
    ratio = max((entry["ratio"] for entry in verify["outputs"]), default=float("nan"))
    decisions = verify["decisions"]
    if decisions is None:
        return wording.number(ratio), "–", "–"
    before, after = (wording.percent(decisions[f"accuracy_{side}"]) for side in ("source", "target"))
    return wording.number(ratio), f"{before} → {after}", str(decisions["top1_flips"])
