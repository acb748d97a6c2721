"""`trueport routes`: every known conversion step, and the routes between two formats."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trueport import api
from trueport import routes as planning
from trueport.artifact import Artifact, offered
from trueport.cli import _output as output
from trueport.errors import UsageError
from trueport.session import formats


def routes(
    source: Annotated[str | None, typer.Argument(metavar="[SOURCE]", help="A model, or the name of a format.")] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="FORMAT", help="The format to get to; every format when absent.")
    ] = None,
    precision: Annotated[str, typer.Option(help="float32, float16, int8-dynamic or int8.")] = "float32",
) -> None:
    """List every conversion step, or the routes from SOURCE to a format, best first."""
    console = output.stdout()
    if to is not None and to not in formats():
        raise UsageError(f"the format '{to}' is not known; known are {offered()}")
    if source is None:
        _steps(console, None if to is None else {to})
        return
    path = Path(source)
    legacy = False
    if source in formats() and not path.exists():
        start = source
    else:
        model = Artifact.open(path)
        start, legacy = model.format, api.is_legacy(model)
    targets = [to] if to is not None else [name for name in formats() if name not in (start, "fake")]
    for target in targets:
        found = planning.plan(start, target, legacy_keras=legacy, precision=precision)
        console.print(Text(f"{start} → {target}: {'no route' if not found else ''}"))
        for number, route in enumerate(found, 1):
            console.print(Text(f"  {number}. {route.name}"))


def _steps(console: Console, targets: set[str] | None) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("step", "from", "to", "toolchain", "precisions", "limits"):
        table.add_column(column, overflow="fold")
    for step in planning.steps().values():
        if step.source_format == "fake" or (targets is not None and step.target_format not in targets):
            continue
        limits = [] if step.max_opset is None else [f"opset ≤ {step.max_opset}"]
        limits += [] if step.dynamic_shapes else ["fixed shapes"]
        limits += ["Keras 2 files"] if step.legacy_keras else []
        limits += [step.note] if step.note else []
        table.add_row(
            step.name,
            step.source_format,
            step.target_format,
            step.toolchain,
            ", ".join(step.precisions),
            Text("; ".join(limits)),
        )
    console.print(table)
