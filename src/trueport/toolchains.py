"""Which toolchains exist, what each is made of, and which deviations from it may be asked for.

`toolchains.toml` is the table, `locks/NAME.txt` the exact versions. Nothing is built or looked for here.
"""

from __future__ import annotations

import datetime
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import platformdirs

from trueport.errors import UsageError
from trueport.plugins import plugins

_PINNED = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[0-9][A-Za-z0-9.!+_-]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """One row of toolchains.toml with its lock.

    `lock` holds `name==version` lines. `torch` asks for PyTorch's CPU build; `registry_torch` says that PyTorch must come
    from the registry itself, because a package beside it is compiled against that build.
    """

    name: str
    python: str
    requirements: tuple[str, ...]
    health: str
    purpose: str
    lock: tuple[str, ...]
    torch: bool = False
    registry_torch: bool = False

    def contains(self, package: str) -> bool:
        """Whether this package (any spelling of its name) belongs to the toolchain, directly or as a dependency."""
        wanted = package_name(package)
        return any(package_name(line) == wanted for line in (*self.requirements, *self.lock))

    @property
    def first_module(self) -> str:
        """The module that the health statement imports first: the framework itself."""
        return self.health.removeprefix("import ").split(";")[0].split(",")[0].strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A deviation from a toolchain's lock: other versions, the index as of a day, or the caller's own interpreter.

    `packages` are `NAME==VERSION`; they are kept sorted under their canonical names, so that their order and spelling
    make no second environment. `as_of` is `YYYY-MM-DD`; the lock is then left aside. Raises UsageError for anything else.
    """

    packages: tuple[str, ...] = ()
    as_of: str | None = None
    python: Path | None = None

    def __post_init__(self) -> None:
        if self.python is not None and (self.packages or self.as_of):
            raise UsageError(
                "packages can be chosen only in an environment that trueport builds; leave out --with and --as-of, or --python"
            )
        pins: dict[str, str] = {}
        for package in self.packages:
            name, version = _pin(package)
            if pins.setdefault(name, version) != version:
                raise UsageError(f"two versions of '{name}' were asked for, {pins[name]} and {version}; name one")
        object.__setattr__(self, "packages", tuple(f"{name}=={version}" for name, version in sorted(pins.items())))
        if self.as_of is not None:
            _check_date(self.as_of)

    @property
    def plain(self) -> bool:
        """Whether this is no deviation at all."""
        return self == PLAIN

    def __str__(self) -> str:
        words = list(self.packages)
        if self.as_of is not None:
            words.append(f"as of {self.as_of}")
        if self.python is not None:
            words.append(str(self.python))
        return ", ".join(words)


PLAIN = Variant()
"""No deviation: the toolchain as it is locked."""


@cache
def toolchains() -> Mapping[str, Toolchain]:
    """Read the table that ships with the package, and the rows of other distributions' files."""
    root = resources.files("trueport")
    table = tomllib.loads((root / "toolchains.toml").read_text(encoding="utf-8"))
    found = {}
    for name, given in {**plugins().toolchains, **table}.items():
        row = dict(given)
        file = root / "locks" / f"{name}.txt"  # a toolchain that is being added has none until scripts/lock.py ran
        lock = file.read_text(encoding="utf-8").split() if file.is_file() else row.pop("lock", [])
        requirements = tuple(row.pop("requirements"))
        found[name] = Toolchain(name=name, requirements=requirements, lock=tuple(lock), **row)
    return found


def cache_folder() -> Path:
    """Where environments live: $TRUEPORT_CACHE, else the user's cache folder."""
    given = os.environ.get("TRUEPORT_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("trueport", appauthor=False))


def package_name(requirement: str) -> str:
    """Return the canonical name (PEP 503) of the package that a requirement names."""
    match = re.match(r"[A-Za-z0-9._-]*", requirement)
    return re.sub(r"[-_.]+", "-", match.group() if match else "").lower()


def _pin(package: str) -> tuple[str, str]:
    match = _PINNED.fullmatch(package.strip())
    if match is None:
        raise UsageError(
            f"'{package}' does not name one version of a package; write it as NAME==VERSION, such as onnx==1.20.1"
        )
    return package_name(match["name"]), match["version"]


def _check_date(text: str) -> None:
    try:
        valid = datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"'{text}' is not a date; write it as YYYY-MM-DD, such as 2025-11-25")
