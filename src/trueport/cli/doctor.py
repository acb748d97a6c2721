"""`trueport doctor`: what works on this machine, and what to do about what does not."""

from __future__ import annotations

import typer
from rich.table import Table
from rich.text import Text

from trueport.cli import _output as output
from trueport.doctor import checks

MARKS = {True: ("ok", "green"), False: ("wrong", "bold red"), None: ("–", "dim")}


def doctor() -> None:
    """Look at everything that trueport stands on; exit code 1 when something is wrong."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("what", "", "found", "cure"):
        table.add_column(column, overflow="fold")
    found = checks()
    for check in found:
        mark, style = MARKS[check.ok]
        table.add_row(check.name, Text(mark, style=style), Text(check.detail), Text(check.cure))
    output.stdout().print(table)
    raise typer.Exit(1 if any(check.ok is False for check in found) else 0)
