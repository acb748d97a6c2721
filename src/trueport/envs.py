"""Which environments exist in the user's cache folder, and which may be removed.

An environment is a virtual environment named after a digest of everything that went into it. It is built under a file
lock in a folder of another name (`KEY.PID.partial`), health-checked, marked, and only then renamed into place; a folder
of the final name is therefore always complete, whatever was killed when. Removal is a rename first, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import psutil

from trueport.envbuild import (
    MARKER,
    MARKER_FORMAT,
    Build,
    disk_failure,
    folder_size,
    health,
    installed_versions,
    torch_backend,
    unavailable,
)
from trueport.errors import UsageError
from trueport.interpreters import check_own, find_interpreter, python_in
from trueport.outcome import Failure, Ok, Outcome
from trueport.toolchains import PLAIN, Toolchain, Variant, cache_folder, package_name, toolchains
from trueport.uvtool import Progress

__all__ = [
    "EnvCheck",
    "EnvInfo",
    "EnvStore",
    "Environment",
    "Progress",
    "Toolchain",
    "Variant",
    "cache_folder",
    "find_interpreter",
    "toolchains",
]

FORMAT = 2
"""Changes when the way environments are built changes: it is part of every digest."""
LAST_USED = "last-used"
"""An empty file in an environment; its modification time is when the environment was last asked for."""
_PARTIAL, _REMOVED, _LOCK = ".partial", ".removed", ".lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A finished environment."""

    toolchain: str
    python: Path
    variant: Variant = PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvInfo:
    """What is known of a folder in the cache. `size` is in bytes, as it was built; times are seconds since the epoch.

    `complete` is false for a leftover of a build that was killed. `current` is false where this trueport would build
    something else (another lock, say). `locked` is false where a variant had to leave the lock.
    """

    toolchain: str
    variant: Variant
    path: Path
    size: int
    versions: Mapping[str, str]
    built: str
    seconds: float
    last_used: float
    complete: bool
    current: bool
    locked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvCheck:
    """What a second look at an environment found: its health, and where its versions are not those of the lock."""

    toolchain: str
    path: Path
    failure: Failure | None
    differences: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether it works and is what the lock says."""
        return self.failure is None and not self.differences


class EnvStore:
    """Builds and finds environments. Safe to use from several processes and threads at once.

    `folder` is the cache folder (default: `cache_folder()`); `table` replaces the toolchains that ship with the package.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        offline: bool = False,
        progress: Progress | None = None,
        table: Mapping[str, Toolchain] | None = None,
    ) -> None:
        self.folder = (folder or cache_folder()).absolute() / "envs"
        self.offline = offline
        self.progress: Progress = _silent if progress is None else progress
        self.table = toolchains() if table is None else table
        self._own: dict[tuple[str, Path], Outcome[Path]] = {}

    def get(self, name: str, variant: Variant = PLAIN) -> Outcome[Environment]:
        """Return the environment, building it first if need be. Raises UsageError for an unknown toolchain."""
        toolchain = self._toolchain(name)
        if variant.python is not None:
            return self._callers(toolchain, variant, variant.python)
        final = self._final(toolchain, variant)
        if not _complete(final):
            try:
                failure = self._build(toolchain, variant, final)
            except OSError as error:
                failure = disk_failure(error, self.folder)
            if failure is not None:
                return failure
        with suppress(OSError):  # a cache that cannot be written can still be used
            (final / LAST_USED).touch()
        return Ok(Environment(toolchain=name, python=python_in(final), variant=variant))

    def create(self, name: str, variant: Variant = PLAIN, *, rebuild: bool = False) -> Outcome[EnvInfo]:
        """Build the environment unless it is there, and describe it. With `rebuild` an existing one is replaced."""
        final = self._final(self._toolchain(name), variant)
        if variant.python is not None:
            raise UsageError("an interpreter of your own is used as it is; there is nothing to create")
        if rebuild and final.exists():
            with self._locked(final.name):
                self._remove(final)
        made = self.get(name, variant)
        return made if isinstance(made, Failure) else Ok(self._info(final))

    def list(self) -> list[EnvInfo]:
        """Describe everything in the cache, finished or not, by toolchain and age."""
        if not self.folder.is_dir():
            return []
        found = [self._info(path) for path in self.folder.iterdir() if path.is_dir()]
        return sorted(found, key=lambda info: (info.toolchain, not info.variant.plain, info.built, info.path))

    def has(self, name: str, variant: Variant = PLAIN) -> bool:
        """Whether the environment is there. Builds nothing."""
        return _complete(self._final(self._toolchain(name), variant))

    def variants(self, name: str) -> tuple[Variant, ...]:
        """The variants of a toolchain that are there, newest first."""
        if not self.folder.is_dir():
            return ()
        markers = [_marker(path) for path in self.folder.glob(f"{name}-*") if _complete(path)]
        markers = [marker for marker in markers if marker.get("toolchain") == name]
        markers.sort(key=lambda marker: str(marker.get("built", "")), reverse=True)
        found = [marker.get("variant", {}) for marker in markers]
        made = [Variant(packages=tuple(item.get("packages", ())), as_of=item.get("as_of")) for item in found]
        return tuple(dict.fromkeys(variant for variant in made if not variant.plain))

    def check(self, name: str, variant: Variant = PLAIN) -> Outcome[EnvCheck]:
        """Run the health statement again and compare what is installed with the lock. Builds nothing."""
        toolchain = self._toolchain(name)
        final = self._final(toolchain, variant)
        if not _complete(final):
            return unavailable(
                f"the environment '{name}' has not been built; build it with `trueport envs create {name}`"
            )
        marker = _marker(final)
        differences = _differences(toolchain, variant, installed_versions(final)) if marker["locked"] else ()
        failure = health(toolchain, python_in(final))
        return Ok(EnvCheck(toolchain=name, path=final, failure=failure, differences=differences))

    def prune(self, *, older_than_days: float | None = None, everything: bool = False) -> int:
        """Remove what is not needed, and return the bytes that this freed.

        Leftovers of killed builds and environments of superseded locks always go. Of the finished ones, those go that were
        not used for `older_than_days`; with no number given, all variants; with `everything`, all. What a running process
        uses stays. Files that uv's download cache shares do not count as freed.
        """
        freed = 0
        limit = None if older_than_days is None else time.time() - older_than_days * 86400
        for info in self.list():
            idle = not info.variant.plain if limit is None else info.last_used < limit
            if not (everything or idle or not info.current or not info.complete):
                continue
            with suppress(filelock.Timeout), self._locked(_key(info.path), timeout=0):
                if info.path.suffix not in (_PARTIAL, _REMOVED) and _users(info.path):
                    self.progress(f"'{info.path.name}' is in use and stays")
                    continue
                freed += self._remove(info.path)
        return freed

    def _toolchain(self, name: str) -> Toolchain:
        toolchain = self.table.get(name)
        if toolchain is None:
            raise UsageError(f"there is no toolchain '{name}'; known are {', '.join(self.table)}")
        return toolchain

    def _final(self, toolchain: Toolchain, variant: Variant) -> Path:
        return self.folder / f"{toolchain.name}-{digest(toolchain, variant, torch_backend(toolchain))}"

    def _callers(self, toolchain: Toolchain, variant: Variant, python: Path) -> Outcome[Environment]:
        """Check the caller's interpreter once per store: importing a framework takes seconds."""
        key = (toolchain.name, python)
        checked = self._own[key] if key in self._own else self._own.setdefault(key, check_own(toolchain, python))
        if isinstance(checked, Failure):
            return checked
        return Ok(Environment(toolchain=toolchain.name, python=checked.value, variant=variant))

    def _build(self, toolchain: Toolchain, variant: Variant, final: Path) -> Failure | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked(final.name):
            if _complete(final):  # another process was quicker
                return None
            self._sweep(final.name)
            if final.exists():  # its interpreter is gone, or somebody's hand was in it
                self._remove(final)
            partial = self.folder / f"{final.name}.{os.getpid()}{_PARTIAL}"
            job = Build(
                toolchain=toolchain, variant=variant, folder=partial, offline=self.offline, progress=self.progress
            )
            try:
                outcome = job.build()
                if isinstance(outcome, Failure):
                    return outcome
                partial.rename(final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return None

    @contextmanager
    def _locked(self, key: str, *, timeout: float = -1) -> Iterator[None]:
        """Hold the lock of one environment. The lock file stays: removing it would let two processes hold 'the' lock."""
        lock = filelock.FileLock(self.folder / (key + _LOCK))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if timeout == 0:
                raise
            self.progress(f"waiting for another process that builds '{key}'")
            lock.acquire(timeout=timeout, poll_interval=0.2)
        try:
            yield
        finally:
            lock.release()

    def _sweep(self, held: str) -> None:
        """Remove leftovers: those of the key whose lock is held, and those of any other key that nobody is building.

        The locks decide, not the process numbers: a cache may be shared with containers that have numbers of their own.
        """
        for path in self.folder.glob("*.*"):
            if path.suffix not in (_PARTIAL, _REMOVED):
                continue
            if _key(path) == held:
                _clear(path)
            else:
                with suppress(filelock.Timeout), self._locked(_key(path), timeout=0):
                    _clear(path)

    def _remove(self, path: Path) -> int:
        """Remove one folder whose lock is held: out of sight first, so that no half of it can be taken for the whole."""
        hidden = path if path.suffix == _REMOVED else path.with_name(f"{_key(path)}.{os.getpid()}{_REMOVED}")
        shutil.rmtree(hidden, ignore_errors=True) if hidden != path else None
        freed = folder_size(path, shared=False)
        path.replace(hidden)
        shutil.rmtree(hidden, ignore_errors=True)
        return freed

    def _info(self, path: Path) -> EnvInfo:
        marker = _marker(path)
        name = marker.get("toolchain") or _key(path).rpartition("-")[0]
        chosen = marker.get("variant", {})
        variant = Variant(packages=tuple(chosen.get("packages", ())), as_of=chosen.get("as_of"))
        toolchain = self.table.get(name)
        complete = _complete(path)
        return EnvInfo(
            toolchain=name,
            variant=variant,
            path=path,
            size=marker.get("size") or folder_size(path),
            versions=marker.get("versions", {}),
            built=marker.get("built", ""),
            seconds=marker.get("seconds", 0.0),
            last_used=_last_used(path),
            complete=complete,
            current=complete
            and toolchain is not None
            and path.name == f"{name}-{digest(toolchain, variant, marker['torch_backend'])}",
            locked=marker.get("locked", False),
        )


def _silent(line: str) -> None:
    """Pass nothing on."""


def digest(toolchain: Toolchain, variant: Variant, backend: str | None) -> str:
    """Return 16 hexadecimal digits over everything that decides what is in an environment."""
    parts = [
        FORMAT,
        toolchain.python,
        toolchain.requirements,
        toolchain.health,
        toolchain.lock,
        toolchain.registry_torch,
        variant.packages,
        variant.as_of,
        backend,
        sys.platform,
        platform.machine(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _key(path: Path) -> str:
    """Return `NAME-DIGEST` of a finished folder, of a partial one, or of one being removed."""
    if path.suffix not in (_PARTIAL, _REMOVED):
        return path.name
    return path.name.removesuffix(path.suffix).rpartition(".")[0]


def _complete(path: Path) -> bool:
    return path.suffix not in (_PARTIAL, _REMOVED) and bool(_marker(path)) and python_in(path).exists()


def _marker(path: Path) -> dict[str, Any]:
    """Return an environment's marker, or nothing where it is missing, damaged, or of another format."""
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) and marker.get("format") == MARKER_FORMAT else {}


def _last_used(path: Path) -> float:
    for name in (LAST_USED, MARKER, "."):
        with suppress(OSError):
            return (path / name).stat().st_mtime
    return 0.0


def _differences(toolchain: Toolchain, variant: Variant, installed: Mapping[str, str]) -> tuple[str, ...]:
    wanted = dict(line.split("==") for line in (*toolchain.lock, *variant.packages))
    found = []
    for name, version in wanted.items():
        there = installed.get(package_name(name))
        if there is None:
            found.append(f"{name} {version} is missing")
        elif there.partition("+")[0] != version.partition("+")[0]:
            found.append(f"{name} is {there}, not {version}")
    return tuple(found)


def _users(folder: Path) -> list[psutil.Process]:
    """Return the processes that were started with this folder's interpreter, or with a path inside it."""
    inside = str(folder) + os.sep
    running = psutil.process_iter(["cmdline"])
    return [one for one in running if any(word.startswith(inside) for word in one.info["cmdline"] or ())]


def _clear(folder: Path) -> None:
    """Remove the leftover of a killed build, and end the orphans of that build first: they would go on filling it."""
    orphans = _users(folder)
    for process in orphans:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(orphans, timeout=5)
    shutil.rmtree(folder, ignore_errors=True)
