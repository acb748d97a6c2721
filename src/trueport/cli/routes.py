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
from trueport.frameworks._base import Step
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
    """The steps, pair of formats by pair of formats; a name is never broken, so that it can be copied."""
    pairs: dict[tuple[str, str], list[Step]] = {}
    for step in planning.steps().values():
        if step.source_format != "fake" and (targets is None or step.target_format in targets):
            pairs.setdefault((step.source_format, step.target_format), []).append(step)
    width = max((len(step.name) for found in pairs.values() for step in found), default=0)
    for (source, target), found in pairs.items():
        console.print(Text(f"{source} → {target}", style="bold"))
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(width=2)
        table.add_column(no_wrap=True, min_width=width)
        table.add_column(overflow="fold")
        for step in found:
            table.add_row("", step.name, Text(_limits(step), style="dim"))
        console.print(table)


def _limits(step: Step) -> str:
    said = [f"in {step.toolchain}"]
    said += [] if step.precisions == ("float32",) else [", ".join(step.precisions)]
    said += [] if step.max_opset is None else [f"opset ≤ {step.max_opset}"]
    said += [] if step.dynamic_shapes else ["fixed shapes"]
    said += ["Keras 2 files"] if step.legacy_keras else []
    return "; ".join([*said, *([step.note] if step.note else [])])
