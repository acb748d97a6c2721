"""Framework and converter files of other distributions, found by their entry points beside the project's own.

    [project.entry-points."trueport.frameworks"]
    npznet = "npznet.framework"

    [project.entry-points."trueport.converters"]
    npznet = "npznet.converter"

The module is a framework or converter file as `trueport.frameworks._base` describes it. Its light part is imported here,
in the parent; its functions run in a worker, which sees the module's top-level package and nothing else of what is
installed beside it. A toolchain that the project does not have stands in the module's TOOLCHAINS: name -> row as in
`toolchains.toml`, with `lock` (a list of `name==version`) where one is kept. `trueport.testing.check_framework` tells
whether a file keeps the contract; `docs/adding-a-framework.md` shows the way.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from trueport.converters import CONVERTERS
from trueport.frameworks import FRAMEWORKS

FRAMEWORKS_GROUP = "trueport.frameworks"
CONVERTERS_GROUP = "trueport.converters"

NEEDED: Mapping[str, tuple[str, ...]] = {
    FRAMEWORKS_GROUP: ("NAME", "FORMATS", "SUFFIXES", "VARIANTS", "PRECISIONS", "sniff", "signature", "run"),
    CONVERTERS_GROUP: ("STEPS", "convert"),
}
"""Without these a module is no framework or converter file at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugins:
    """What other distributions add. broken: name of an entry point -> why it was left out."""

    frameworks: Mapping[str, ModuleType]
    converters: Mapping[str, ModuleType]
    toolchains: Mapping[str, Mapping[str, Any]]
    broken: Mapping[str, str]


@cache
def plugins() -> Plugins:
    """Find and import what is installed; a module that cannot be used is left out, and `broken` says why."""
    broken: dict[str, str] = {}
    found = {
        group: _loaded(group, own, broken)
        for group, own in ((FRAMEWORKS_GROUP, FRAMEWORKS), (CONVERTERS_GROUP, CONVERTERS))
    }
    toolchains: dict[str, Mapping[str, Any]] = {}
    for modules in found.values():
        for module in modules.values():
            toolchains |= dict(getattr(module, "TOOLCHAINS", {}))
    return Plugins(
        frameworks=found[FRAMEWORKS_GROUP],
        converters=found[CONVERTERS_GROUP],
        toolchains=toolchains,
        broken=broken,
    )


def frameworks() -> Mapping[str, ModuleType]:
    """Every framework file by name, the project's own first: where two claim one file, the earlier is asked first."""
    return {**FRAMEWORKS, **plugins().frameworks}


def converters() -> Mapping[str, ModuleType]:
    """Every converter file by name."""
    return {**CONVERTERS, **plugins().converters}


def outside(module: str) -> Path | None:
    """The top-level package or file that a worker has to see for a module of another distribution; None for our own."""
    top = module.split(".")[0]
    if top == "trueport":
        return None
    origin = importlib.import_module(top).__file__
    if origin is None:
        return None
    path = Path(origin)
    return path.parent if path.name == "__init__.py" else path


def _loaded(group: str, own: Mapping[str, ModuleType], broken: dict[str, str]) -> dict[str, ModuleType]:
    taken = {step.name for module in own.values() for step in getattr(module, "STEPS", ())}
    formats = {name for module in own.values() for name in getattr(module, "FORMATS", {})}
    found: dict[str, ModuleType] = {}
    for point in sorted(importlib.metadata.entry_points(group=group), key=lambda item: item.name):
        label = f"{point.name} ({group}, {point.value})"
        try:
            module = point.load()
        except Exception as error:  # noqa: BLE001 -- code of others: whatever it raises must not stop a run without it
            broken[label] = f"cannot be imported: {type(error).__name__}: {error}"
            continue
        missing = [name for name in NEEDED[group] if not hasattr(module, name)]
        twice = {step.name for step in getattr(module, "STEPS", ())} & taken if group == CONVERTERS_GROUP else set()
        twice |= set(getattr(module, "FORMATS", {})) & formats if group == FRAMEWORKS_GROUP else set()
        if missing:
            broken[label] = f"is no such file: it has no {', '.join(missing)}"
        elif twice or point.name in own or point.name in found:
            broken[label] = f"gives what there is already: {', '.join(sorted(twice)) or point.name}"
        else:
            found[point.name] = module
            taken |= {step.name for step in getattr(module, "STEPS", ())} if group == CONVERTERS_GROUP else set()
            formats |= set(getattr(module, "FORMATS", {})) if group == FRAMEWORKS_GROUP else set()
    return found
