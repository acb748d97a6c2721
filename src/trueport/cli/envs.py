"""`trueport envs`: list, build, check and remove the locked toolchain environments."""

from __future__ import annotations

import datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from trueport.cli import _options as options
from trueport.cli import _output as output
from trueport.envs import EnvStore, Variant, toolchains
from trueport.errors import UsageError
from trueport.outcome import Failure

app = typer.Typer(
    help="List, build, check and remove the locked toolchain environments.", no_args_is_help=True, rich_markup_mode=None
)

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Toolchains; all when absent.")]


@app.command("list")
def list_() -> None:
    """List every toolchain, and what of it is built."""
    built: dict[str, list[str]] = {}
    for info in EnvStore().list():
        what = "built" if info.complete and info.current else ("superseded" if info.complete else "leftover")
        extra = ", ".join([*info.variant.packages, *([f"as of {info.variant.as_of}"] if info.variant.as_of else [])])
        used = datetime.datetime.fromtimestamp(info.last_used, tz=datetime.UTC).strftime("%Y-%m-%d")
        text = f"{what} {extra}".strip() + f" ({info.size / 2**20:,.0f} MiB, used {used})"
        built.setdefault(info.toolchain, []).append(text)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("toolchain", "python", "purpose", "state"):
        table.add_column(column, overflow="fold")
    for name, toolchain in toolchains().items():
        state = "\n".join(built.pop(name, [])) or "not built"
        table.add_row(name, toolchain.python, Text(toolchain.purpose), Text(state))
    for name, states in built.items():
        table.add_row(name, "", Text("of another version of trueport"), Text("\n".join(states)))
    console = output.stdout()
    console.print(table)
    console.print(Text(f"in {EnvStore().folder}"), soft_wrap=True)


@app.command("create")
def create(
    names: Names = None,
    with_: options.With = None,
    as_of: options.AsOf = None,
    rebuild: Annotated[bool, typer.Option(help="Build again what is there.")] = False,
    offline: options.Offline = False,
    verbose: options.Verbose = False,
) -> None:
    """Build environments ahead of their first use."""
    variant = Variant(packages=tuple(with_ or ()), as_of=as_of)
    failed = []
    for name in _chosen(names):
        with output.progress(quiet=False, verbose=verbose) as progress:
            made = EnvStore(offline=offline, progress=progress).create(name, variant, rebuild=rebuild)
        if isinstance(made, Failure):
            failed.append(name)
            output.stderr().print(Text(f"{name}: {made.message}"), soft_wrap=True)
            if verbose and made.log:
                output.stderr().print(Text(made.log, style="dim"), soft_wrap=True)
        else:
            output.stdout().print(Text(f"{name}: {made.value.path}"), soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


@app.command("check")
def check(names: Names = None) -> None:
    """Run the health check of built environments again and compare their versions with the lock."""
    bad = False
    built = {info.toolchain for info in EnvStore().list() if info.complete and info.variant.plain}
    for name in _chosen(names) if names else [name for name in toolchains() if name in built]:
        outcome = EnvStore().check(name)
        failure = outcome if isinstance(outcome, Failure) else outcome.value.failure
        differences = () if isinstance(outcome, Failure) else outcome.value.differences
        problems = [*([failure.message] if failure is not None else []), *differences]
        bad = bad or bool(problems)
        output.stdout().print(Text(f"{name}: {'; '.join(problems) or 'works, versions as locked'}"), soft_wrap=True)
    if not built and not names:
        output.stdout().print("no environment is built yet")
    raise typer.Exit(1 if bad else 0)


@app.command("prune")
def prune(
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Remove what was not used for so long.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove every environment.")] = False,
) -> None:
    """Remove variants, superseded environments and leftovers; with --older-than DAYS or --all more than that."""
    with output.progress(quiet=False, verbose=True) as progress:
        freed = EnvStore(progress=progress).prune(older_than_days=older_than, everything=everything)
    output.stdout().print(f"freed {freed / 2**20:,.0f} MiB")


def _chosen(names: list[str] | None) -> list[str]:
    for name in names or ():
        if name not in toolchains():
            raise UsageError(f"there is no toolchain '{name}'; known are {', '.join(toolchains())}")
    return list(names or toolchains())
