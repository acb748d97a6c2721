"""Toolchain environments: which requirements make which toolchain, and where the built environment lies.

An environment is a virtual environment in the user's cache folder, named after a digest of everything that went into
it. It is built under a file lock in a folder of another name, health-checked, and only then renamed into place; a
folder of the final name is therefore always complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import filelock
import platformdirs
import uv

from trueport.errors import UsageError
from trueport.outcome import Failure, Kind, Ok, Outcome, Stage

FORMAT = 1
"""Changes when the way environments are built changes."""

Progress = Callable[[str], None]
"""Receives one line at a time while an environment is built."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """One row of toolchains.toml with its lock."""

    name: str
    python: str
    requirements: tuple[str, ...]
    health: str
    purpose: str
    lock: tuple[str, ...]
    torch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A deviation from a toolchain's lock: other versions, the index as of a day, or the caller's own interpreter."""

    packages: tuple[str, ...] = ()
    as_of: str | None = None
    python: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A finished environment."""

    toolchain: str
    python: Path
    variant: Variant = Variant()


@cache
def toolchains() -> Mapping[str, Toolchain]:
    """Read the table that ships with the package."""
    root = resources.files("trueport")
    table = tomllib.loads((root / "toolchains.toml").read_text(encoding="utf-8"))
    found = {}
    for name, row in table.items():
        lock = (root / "locks" / f"{name}.txt").read_text(encoding="utf-8").split()
        found[name] = Toolchain(
            name=name,
            python=row["python"],
            requirements=tuple(row["requirements"]),
            health=row["health"],
            purpose=row["purpose"],
            lock=tuple(lock),
            torch=row.get("torch", False),
        )
    return found


def cache_folder() -> Path:
    """Where environments live: $TRUEPORT_CACHE, else the user's cache folder."""
    given = os.environ.get("TRUEPORT_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("trueport", appauthor=False))


class EnvStore:
    """Builds and finds environments. Safe to use from several processes at once."""

    def __init__(self, folder: Path | None = None, *, offline: bool = False, progress: Progress | None = None) -> None:
        self.folder = (folder or cache_folder()) / "envs"
        self.offline = offline
        self.progress = progress or (lambda line: None)

    def get(self, name: str, variant: Variant = Variant()) -> Outcome[Environment]:
        """Return the environment, building it first if need be. Raises UsageError for an unknown toolchain."""
        toolchain = toolchains().get(name)
        if toolchain is None:
            raise UsageError(f"there is no toolchain '{name}'; known are {', '.join(toolchains())}")
        if variant.python is not None:
            return Ok(Environment(toolchain=name, python=variant.python, variant=variant))
        final = self.folder / f"{name}-{self._digest(toolchain, variant)}"
        python = _python_of(final)
        if python.exists():
            return Ok(Environment(toolchain=name, python=python, variant=variant))
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{final}.lock"):
            if not python.exists():
                failure = self._build(toolchain, variant, final)
                if failure is not None:
                    return failure
        return Ok(Environment(toolchain=name, python=python, variant=variant))

    def _digest(self, toolchain: Toolchain, variant: Variant) -> str:
        parts = [
            FORMAT,
            toolchain.python,
            toolchain.requirements,
            toolchain.lock,
            variant.packages,
            variant.as_of,
            sys.platform,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def _build(self, toolchain: Toolchain, variant: Variant, final: Path) -> Failure | None:
        partial = final.with_name(final.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        self.progress(f"building the environment '{toolchain.name}'")
        interpreter = find_interpreter(toolchain.python)
        if interpreter is None:
            return _unavailable(
                f"toolchain '{toolchain.name}' needs Python {toolchain.python}, and none was found; install it and put it on PATH"
            )
        made = self._uv("venv", "--relocatable", "--python", str(interpreter), str(partial))
        if made.returncode:
            return _unavailable(f"the environment '{toolchain.name}' could not be created", made.stderr)
        requirements = [*toolchain.requirements, *variant.packages]
        arguments = ["pip", "install", "--python", str(_python_of(partial)), *requirements]
        if variant.as_of is not None:
            arguments += ["--exclude-newer", variant.as_of]
        elif toolchain.lock:
            pinned = {_name_of(item) for item in variant.packages}
            constraints = partial / "constraints.txt"
            constraints.write_text(
                "\n".join(line for line in toolchain.lock if _name_of(line) not in pinned) + "\n", encoding="utf-8"
            )
            arguments += ["--constraints", str(constraints)]
        done = self._uv(*arguments)
        if done.returncode:
            return _unavailable(f"the packages of '{toolchain.name}' could not be installed", done.stderr)
        health = subprocess.run(
            [str(_python_of(partial)), "-I", "-c", toolchain.health], capture_output=True, text=True, check=False
        )
        if health.returncode:
            return _unavailable(f"the environment '{toolchain.name}' was installed but does not work", health.stderr)
        partial.rename(final)
        return None

    def _uv(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environ = dict(os.environ)
        if "PIP_FIND_LINKS" in environ:
            environ.setdefault("UV_FIND_LINKS", environ["PIP_FIND_LINKS"])
        offline = ["--offline"] if self.offline else []
        return subprocess.run(
            [uv.find_uv_bin(), *arguments, *offline], capture_output=True, text=True, check=False, env=environ
        )


def find_interpreter(version: str) -> Path | None:
    """Find a CPython of `major.minor`: this one, one on PATH, or one that pyenv keeps."""
    if version == "{}.{}".format(*sys.version_info[:2]):
        return Path(sys.executable)
    found = subprocess.run(
        [uv.find_uv_bin(), "python", "find", "--no-python-downloads", version],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode == 0:
        return Path(found.stdout.strip())
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for folder in sorted(root.glob(f"{version}.*"), reverse=True):
        if (folder / "bin" / "python").exists():
            return folder / "bin" / "python"
    return None


def _python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _name_of(requirement: str) -> str:
    for index, character in enumerate(requirement):
        if not (character.isalnum() or character in "-_."):
            requirement = requirement[:index]
            break
    return requirement.lower().replace("_", "-").replace(".", "-")


def _unavailable(message: str, log: str = "") -> Failure:
    return Failure(stage=Stage.ENVIRONMENT, kind=Kind.UNAVAILABLE, message=message, log=log[-4000:])
