"""`trueport envs`: the locked toolchain environments."""

from __future__ import annotations

import typer

app = typer.Typer(help="List, build, check and remove the locked toolchain environments.", no_args_is_help=True)
