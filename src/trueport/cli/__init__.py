"""The command line: one thin file per command, and the one place where exceptions become exit codes.

0 faithful, or done · 1 done, and not faithful · 2 usage or unreadable input · 3 a bug of ours · 4 no route succeeded · 130 interrupted
"""

from __future__ import annotations

import errno
import platform
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from trueport import __version__
from trueport.cli import convert, demo, diagnose, doctor, envs, inspect, repair, report, routes, verify
from trueport.cli._output import stderr
from trueport.errors import InternalError, TrueportError


class Commands(TyperGroup):
    """Ends with 130 on ^C; the command-line library alone would end with 1, which means "not faithful" here."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            stderr().print("interrupted; nothing was left half-written", markup=False)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="trueport",
    cls=Commands,
    help="Convert deep-learning models between frameworks, and prove that the port is true.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("demo")(demo.demo)
app.command("convert")(convert.convert)
app.command("verify")(verify.verify)
app.command("diagnose")(diagnose.diagnose)
app.command("repair")(repair.repair)
app.command("inspect")(inspect.inspect)
app.command("routes")(routes.routes)
app.add_typer(envs.app, name="envs")
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trueport {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Convert deep-learning models between frameworks, and prove that the port is true."""


def main() -> None:
    """Run the command line and exit with the documented code."""
    try:
        app()
    except TrueportError as error:
        if isinstance(error, InternalError):
            _bug(error)
        stderr().print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            _bug(error)
        where = f" at {error.filename}" if error.filename else ""
        stderr().print(f"error: the disk is full{where}; make room or set TMPDIR", markup=False, soft_wrap=True)
        sys.exit(2)
    except Exception as error:  # noqa: BLE001 -- the top of the command line: a bug of ours, told as one
        _bug(error)


def _bug(error: BaseException) -> None:
    console = stderr()
    console.print("This is a bug in trueport. Please report it with the following text:\n", markup=False)
    console.print(f"trueport {__version__}, Python {platform.python_version()}, {platform.platform()}", markup=False)
    console.print(f"command: {' '.join(sys.argv[1:])}", markup=False, soft_wrap=True)
    console.print("".join(traceback.format_exception(error)), markup=False, highlight=False, soft_wrap=True)
    sys.exit(3)
