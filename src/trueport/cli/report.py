"""`trueport report`: render a stored result again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueport import publish, results
from trueport.cli import _output as output
from trueport.errors import UsageError
from trueport.report import REPORTERS


def report(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="A result that --json or --report wrote.")],
    out: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the report goes.")],
    form: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(REPORTERS)}; repeatable; all when absent.")
    ] = None,
) -> None:
    """Render a stored result as HTML, Markdown and JSON."""
    chosen = tuple(form or REPORTERS)
    for name in chosen:
        if name not in REPORTERS:
            raise UsageError(f"there is no report form '{name}'; there are {', '.join(REPORTERS)}")
    publish.check_folder(out)
    output.write_report(results.read(result), out, chosen)
    for name in chosen:
        output.stdout().print(str(out / REPORTERS[name][0]), soft_wrap=True)
