"""Reads `known_issues.toml`, the bugs of conversion tools as data, and refuses whatever in it could never match."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any

from trueport.diagnosis.types import Cause
from trueport.outcome import Kind
from trueport.routes import steps

FILE = "known_issues.toml"

_RANGE = re.compile(r"(>=|<=|==|!=|>|<)\s*([0-9][0-9A-Za-z.+]*)")
_KINDS = frozenset(
    ["input", "drift", "struct", "reshape", "extra", "missing", "layout", "shuffle", "nonfinite", "constant", "local"]
)  # those of `Finding.kind`


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """What a suspect looks like that shows the bug; the keys are explained at the head of the data file."""

    causes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    region: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    source_has: tuple[str, ...] = ()
    source_values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    source_chain: tuple[str, ...] = ()
    whole_source: tuple[str, ...] = ()
    target_lacks: tuple[str, ...] = ()
    target_values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    source_excludes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    source_operands: int = 0
    shared_operand: int | None = None
    source_shared: bool | None = None
    opset_below: int | None = None
    equal_axes: bool = False
    precision: str | None = None
    converted_here: bool = False
    hidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FailurePattern:
    """What a failure looks like that shows the bug: its kind, and a regular expression for its message or log."""

    text: re.Pattern[str]
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One bug of the data file."""

    id: str
    url: str
    summary: str
    cure: str
    package: str
    steps: tuple[str, ...]
    formats: tuple[str, ...] = ()
    source_formats: tuple[str, ...] = ()
    affects: str = ""
    fixed_in: str | None = None
    seen: str | None = None
    reported: bool = True
    pattern: Pattern | None = None
    failure: FailurePattern | None = None


@cache
def entries() -> tuple[Entry, ...]:
    """Every known bug, in the order of the data file."""
    text = resources.files("trueport").joinpath(FILE).read_text(encoding="utf-8")
    return parse(text)


def parse(text: str) -> tuple[Entry, ...]:
    """Read the data. Raises ValueError for an unknown key, step, cause or kind, and for what contradicts itself."""
    table = tomllib.loads(text)
    if set(table) != {"issue"}:
        raise ValueError(f"only [[issue]] belongs into the file, not {sorted(set(table) - {'issue'})}")
    found = tuple(_entry(row) for row in table["issue"])
    ids = [entry.id for entry in found]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ValueError(f"given twice: {', '.join(twice)}")
    return found


def _entry(row: Mapping[str, Any]) -> Entry:
    name = row.get("id", "an issue without id")
    given = dict(row)
    for key, kind in (("pattern", Pattern), ("failure", FailurePattern)):
        if key in given:
            given[key] = kind(**_fitted(f"{name}.{key}", given[key], kind))
    entry = Entry(**_fitted(name, given, Entry))
    _check(entry)
    return entry


def _fitted(name: str, row: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return the row with tuples for lists and a compiled `text`. Raises ValueError for keys that `kind` lacks."""
    known = {item.name for item in fields(kind)}
    if set(row) - known:
        raise ValueError(f"{name}: unknown keys {sorted(set(row) - known)}")
    required = {"id", "url", "summary", "cure", "package", "steps"} if kind is Entry else set()
    required |= {"text"} if kind is FailurePattern else set()
    if required - set(row):
        raise ValueError(f"{name}: {sorted(required - set(row))} is missing")
    ready = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    if kind is FailurePattern:
        ready["text"] = re.compile(ready["text"], re.DOTALL)
    return ready


def _check(entry: Entry) -> None:
    wrong = [step for step in entry.steps if step not in steps()]
    if entry.pattern is not None:
        wrong += [cause for cause in entry.pattern.causes if cause not in list(Cause)]
        wrong += [kind for kind in entry.pattern.kinds if kind not in _KINDS]
        if not any((entry.pattern.target, entry.pattern.source, entry.pattern.precision)):
            raise ValueError(f"{entry.id}: a pattern needs operators or a precision, or it matches everything")
    if entry.failure is not None:
        wrong += [kind for kind in entry.failure.kinds if kind not in list(Kind)]
    if wrong:
        raise ValueError(f"{entry.id}: not known: {', '.join(map(str, wrong))}")
    if entry.pattern is None and entry.failure is None:
        raise ValueError(f"{entry.id}: neither a pattern nor a failure")
    if not entry.steps and not entry.formats:
        raise ValueError(f"{entry.id}: neither steps nor formats")
    if not entry.url.startswith("https://"):
        raise ValueError(f"{entry.id}: the url is no https address")
    if entry.affects and "".join(_RANGE.sub("", entry.affects).split(",")).strip():
        raise ValueError(f"{entry.id}: '{entry.affects}' is no range of versions")
    if entry.fixed_in is not None and within(entry.fixed_in, entry.affects):
        raise ValueError(f"{entry.id}: it is fixed in {entry.fixed_in}, which '{entry.affects}' still contains")


def within(version: str, affects: str) -> bool:
    """Whether a version lies in a range such as ">=0.5.0,<0.5.7"; an empty range holds every version."""
    tests: dict[str, Callable[[Any, Any], bool]] = {
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        ">": lambda a, b: a > b,
        "<": lambda a, b: a < b,
    }
    return all(tests[sign](_ordered(version), _ordered(bound)) for sign, bound in _RANGE.findall(affects))


def _ordered(version: str) -> tuple[tuple[int, ...], bool]:
    """Return what versions are compared by: the numbers of the release, without zeros at the end, and whether it is final."""
    public = version.partition("+")[0]
    match = re.match(r"\d+(\.\d+)*", public)
    if match is None:
        return (), False
    numbers = [int(part) for part in match.group().split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    rest = public[match.end() :]
    return tuple(numbers), not re.match(r"\.?(a|b|rc|dev)", rest)
