"""Generate docs/cli.md from the commands' own help; `--check` fails when the file has drifted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import typer.main

from trueport.cli import app

OUT = Path(__file__).resolve().parents[1] / "docs" / "cli.md"


def render() -> str:
    """Return the Markdown reference of every command."""
    root = typer.main.get_command(app)
    lines = ["# Command line", "", "Generated from the commands' own help by `scripts/docs.py`.", ""]
    for names, command in _commands(root, ("trueport",)):
        lines += [f"## `{' '.join(names)}`", "", (command.help or "").strip(), ""]
        lines += [f"    {' '.join(names)} {_usage(command)}", ""]
        options = [
            param for param in command.params if param.param_type_name == "option" and "--help" not in param.opts
        ]
        if options:
            lines += ["| option | default | |", "|---|---|---|"]
            lines += [_row(param) for param in options]
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _commands(command: Any, names: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        return [(names, command)]
    found = []
    for name, child in children.items():
        found += _commands(child, (*names, name))
    return found


def _usage(command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    words = [
        param.metavar or (param.name.upper() if param.required else f"[{param.name.upper()}]") for param in arguments
    ]
    return " ".join([*words, "[OPTIONS]"])


def _row(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
    metavar = f" {param.metavar}" if param.metavar else ""
    default = "" if param.default in (None, False, (), []) or callable(param.default) else f"`{param.default}`"
    text = (getattr(param, "help", "") or "").replace("|", "\\|")
    return f"| {names}{metavar} | {default} | {text} |"


def main() -> int:
    """Write the reference, or compare it with what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        if not OUT.exists() or OUT.read_text(encoding="utf-8") != render():
            print(f"{OUT.name} has drifted: run `make docs`")
            return 1
        return 0
    OUT.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
