"""The part of docs/support.md about the systems of the studies: every one has a row, working or with the reason why not."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueport.routes import steps
from trueport.toolchains import package_name, toolchains

OLD = Path(__file__).resolve().parents[1] / "src" / "trueport" / "old_toolchains.toml"


def systems(
    table: Mapping[str, tuple[str, ...]],
    looked: Mapping[str, Mapping[str, str]],
    found: Mapping[tuple[str, str], Mapping[str, Any]],
) -> list[str]:
    """The lines of the table."""
    old = tomllib.loads(OLD.read_text(encoding="utf-8")) if OLD.exists() else {}
    lines = ["## Systems of the studies", "", "| system | here as | version | state |", "|---|---|---|---|"]
    for system, entries in table.items():
        told = [_row(entry, looked, found, old) for entry in entries]
        cells = ["; ".join(dict.fromkeys(filter(None, column))) for column in zip(*told, strict=True)]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return lines


def _row(
    entry: str,
    looked: Mapping[str, Mapping[str, str]],
    found: Mapping[tuple[str, str], Mapping[str, Any]],
    old: Mapping[str, Any],
) -> tuple[str, str, str]:
    what, _, name = entry.partition(" ")
    if what in ("format", "runs"):
        said = looked.get(name, {})
        good = bool(said) and said.get("sniff") == "yes" and said.get("run", "").startswith("yes")
        return f"format `{name}`", _runtime(name), "loads and runs" if good else said.get("sniff", "not looked at")
    if what == "old":
        rows = [row for row in old.get("trial", []) if package_name(row["tool"]) == package_name(name)]
        if not rows:
            return "old toolchain", "", "not tried"
        told = [f"{row['model']}: {row['outcome']} ({_cut(row['reason'])})" for row in rows]
        named = ", ".join(dict.fromkeys(f"`{row['step']}`" for row in rows if row["step"])) or "no step"
        return named, f"{rows[0]['versions'][0]}, Python {rows[0]['python']}", "; ".join(told)
    chosen = [step for step in steps().values() if name == (step.name if what == "step" else package_name(step.tool))]
    if not chosen:
        return f"{what} `{name}`", "", "no step"
    names = {step.name for step in chosen}
    right = sorted({f"{a} → {b}" for (a, b), one in found.items()
                    if one["outcome"] == "faithful" and names & set(one["route"].split(","))})  # fmt: skip
    state = f"on the faithful route of {', '.join(right)}" if right else "its steps: conversion-matrix.md"
    return ", ".join(f"`{item}`" for item in sorted(names)), version(chosen[0].toolchain, chosen[0].tool), state


def _cut(reason: str) -> str:
    return " ".join(reason.split()).replace("|", "\\|").replace("](", "] (")[:200]


def _runtime(format: str) -> str:
    from trueport.session import framework_of

    toolchain = framework_of(format).FORMATS[format]
    return version(toolchain, toolchains()[toolchain].requirements[0])


def version(toolchain: str, package: str) -> str:
    """A package with its version in the lock of a toolchain."""
    locked = dict(line.split("==") for line in toolchains()[toolchain].lock)
    versions = {package_name(name): version for name, version in locked.items()}
    name = package.partition("==")[0]
    return f"{name} {versions.get(package_name(name)) or versions.get(package_name(name) + '-cpu', '')}".strip()
