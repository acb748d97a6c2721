"""What works on this machine, and what to do about what does not.

Pure data, for the command line to print. No host is contacted: whether an index can be reached is seen when an
environment is built, with the user's own settings.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import uv

from trueport.envs import EnvStore
from trueport.interpreters import find_interpreter, setting
from trueport.plugins import plugins

OLDEST_PYTHON = (3, 11)
SPACE_NEEDED = 10e9
"""Bytes that all toolchains with one CUDA build of PyTorch, and uv's downloads, take."""
MEMORY_NEEDED = 4e9
"""Bytes that converting a ResNet-101 took at its peak, with room for the system."""
UV_OLDEST = (0, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding. `ok` is None where nothing is wrong, but something is not there (yet); `cure` is empty where ok is True."""

    name: str
    ok: bool | None
    detail: str
    cure: str = ""


def checks(store: EnvStore | None = None) -> list[Check]:
    """Look at everything that trueport stands on. `store` is the cache to look at (default: the user's)."""
    store = EnvStore() if store is None else store
    single: tuple[Callable[[], Check], ...] = (
        _python,
        _uv,
        lambda: _cache(store.folder),
        lambda: _space(store.folder),
        _memory,
        _limits,
    )
    return [*(look() for look in single), *_interpreters(store), *_toolchains(store), *_plugins()]


def _plugins() -> Iterator[Check]:
    """Framework and converter files of other distributions, those that were left out too."""
    found = plugins()
    for kind, modules in (("framework", found.frameworks), ("converter", found.converters)):
        for name, module in modules.items():
            yield Check(name=f"{kind} {name}", ok=True, detail=f"{module.__name__}, of another distribution")
    for label, why in found.broken.items():
        yield Check(
            name=f"plug-in {label}", ok=False, detail=why, cure="update or uninstall the distribution it is from"
        )


def _python() -> Check:
    detail = f"{sys.version.split()[0]} at {sys.executable}"
    good = sys.version_info >= OLDEST_PYTHON
    return Check(name="python", ok=good, detail=detail, cure="" if good else "install Python 3.11 or later")


def _uv() -> Check:
    cure = "put uv back with `pip install --force-reinstall uv`"
    try:
        path = uv.find_uv_bin()
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=60)
        words = done.stdout.split()
        version = tuple(int(part) for part in words[1].split(".")[:2])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return Check(name="uv", ok=False, detail=f"it does not run: {error}", cure=cure)
    if version < UV_OLDEST:
        return Check(
            name="uv", ok=False, detail=f"{words[1]} is too old", cure="update it with `pip install --upgrade uv`"
        )
    return Check(name="uv", ok=True, detail=f"{words[1]} at {path}")


def _cache(folder: Path) -> Check:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        cure = "make it writable, or choose another folder with TRUEPORT_CACHE"
        return Check(
            name="cache folder", ok=False, detail=f"{folder} cannot be written: {error.strerror or error}", cure=cure
        )
    return Check(name="cache folder", ok=True, detail=str(folder))


def _space(folder: Path) -> Check:
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), Path(folder.anchor))
    free = shutil.disk_usage(nearest).free
    detail = f"{_gigabytes(free)} free on the disk of {nearest}"
    if free >= SPACE_NEEDED:
        return Check(name="disk space", ok=True, detail=detail)
    cure = f"all toolchains together may need {_gigabytes(SPACE_NEEDED)}; free some, or choose another disk with TRUEPORT_CACHE"
    return Check(name="disk space", ok=None, detail=detail, cure=cure)


def _memory() -> Check:
    memory = psutil.virtual_memory()
    detail = f"{_gigabytes(memory.available)} of {_gigabytes(memory.total)} available"
    if memory.available >= MEMORY_NEEDED:
        return Check(name="memory", ok=True, detail=detail)
    cure = f"a large model may need {_gigabytes(MEMORY_NEEDED)}; close other programs or use --memory to fail early"
    return Check(name="memory", ok=None, detail=detail, cure=cure)


def _limits() -> Check:
    """Try the kernel's limit on memory in a child of its own, which allocates more than it may."""
    if sys.platform == "win32":
        cure = "run under Linux for a hard memory limit; trueport still watches the memory in use"
        return Check(name="memory limit", ok=None, detail="the system has no RLIMIT_AS", cure=cure)
    code = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))\n"
        "try:\n    bytearray(2**31)\n"
        "except MemoryError:\n    print('held')\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    if done.stdout.strip() == "held":
        return Check(name="memory limit", ok=True, detail="RLIMIT_AS holds")
    cure = "nothing to do: trueport watches the memory in use instead, which notices later"
    return Check(name="memory limit", ok=None, detail="RLIMIT_AS does not hold here", cure=cure)


def _interpreters(store: EnvStore) -> Iterator[Check]:
    for version in sorted({toolchain.python for toolchain in store.table.values()}):
        needed_by = ", ".join(name for name, toolchain in store.table.items() if toolchain.python == version)
        path = find_interpreter(version)
        if path is not None:
            yield Check(name=f"python {version}", ok=True, detail=str(path))
        else:
            named = os.environ.get(setting(version))
            detail = f"{setting(version)}={named} is not a Python {version}" if named else "none was found"
            cure = f"`uv python install {version}`, or name an interpreter in {setting(version)}"
            yield Check(name=f"python {version}", ok=False, detail=f"{detail}; needed by {needed_by}", cure=cure)


def _toolchains(store: EnvStore) -> Iterator[Check]:
    built = {info.toolchain: info for info in store.list() if info.current and info.variant.plain}
    for name, toolchain in store.table.items():
        if (info := built.get(name)) is not None:
            detail = f"built {info.built[:10]}, {_gigabytes(info.size)}: {toolchain.purpose}"
            yield Check(name=f"toolchain {name}", ok=True, detail=detail)
        else:
            cure = f"it is built on first use, or now with `trueport envs create {name}`"
            yield Check(name=f"toolchain {name}", ok=None, detail=f"not built yet: {toolchain.purpose}", cure=cure)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
