"""How one environment is built: interpreter, virtual environment, packages, health check, marker.

Everything happens in a folder that nobody else uses; `envs.py` renames it into place when `build` says Ok. The virtual
environment is relocatable, so the rename leaves its scripts working.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import importlib.metadata
import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trueport import uvtool
from trueport.interpreters import find_interpreter, no_interpreter, python_in
from trueport.outcome import Failure, Kind, Ok, Outcome, Stage
from trueport.toolchains import Toolchain, Variant, package_name

MARKER = "trueport-env.json"
MARKER_FORMAT = "trueport/env/1"
HEALTH_TIMEOUT = 600.0
"""Seconds for the health check. The first import compiles every module: 40 s were seen for TensorFlow on a cold disk."""
LOG_TAIL = 4000
"""Characters of uv's or the health check's output that a Failure keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """The job of building `toolchain`, deviating by `variant`, in the new folder `folder`."""

    toolchain: Toolchain
    variant: Variant
    folder: Path
    offline: bool
    progress: uvtool.Progress

    def build(self) -> Outcome[None]:
        """Do it. The folder may be left half filled when the outcome is a Failure."""
        started = time.monotonic()
        interpreter = find_interpreter(self.toolchain.python)
        if interpreter is None:
            return unavailable(no_interpreter(self.toolchain))
        self._say(f"creating it with Python {self.toolchain.python}")
        made = self._uv(["venv", "--relocatable", "--no-project", "--python", str(interpreter), str(self.folder)])
        if made.code:
            return self._failed(made)
        installed = self._install()
        if isinstance(installed, Failure):
            return installed
        self._say("checking that it works")
        failure = health(self.toolchain, python_in(self.folder))
        if failure is not None:
            return failure
        self._mark(interpreter, locked=installed.value, seconds=time.monotonic() - started)
        return Ok(None)

    def _install(self) -> Outcome[bool]:
        """Install the packages; the value says whether the lock was kept."""
        lock = [] if self.variant.as_of else self._constraints()
        self._say(f"installing {len(lock)} locked packages" if lock else "choosing versions and installing them")
        done = self._pip_install(lock)
        if done.code and lock and self.variant.packages and self._lock_is_to_blame(done):
            self._say(f"{self.variant} does not go with the locked versions; resolving again without the lock")
            lock = []
            done = self._pip_install(lock)
        return self._failed(done) if done.code else Ok(bool(lock))

    def _constraints(self) -> list[str]:
        pinned = {package_name(item) for item in self.variant.packages}
        return [line for line in self.toolchain.lock if package_name(line) not in pinned]

    def _lock_is_to_blame(self, done: uvtool.Done) -> bool:
        complaint = uvtool.explain(done.log)
        resolution = (uvtool.NO_SOLUTION, uvtool.NO_BUILD, uvtool.NO_SUCH_VERSION, uvtool.OFFLINE)
        return complaint.kind in resolution and complaint.subject not in self.variant.packages

    def _pip_install(self, lock: list[str]) -> uvtool.Done:
        arguments = ["pip", "install", "--python", str(python_in(self.folder))]
        if self.variant.as_of is not None:  # the whole day, and the same one in every time zone
            arguments += ["--exclude-newer", f"{self.variant.as_of}T23:59:59Z"]
        if lock:
            constraints = self.folder / "constraints.txt"
            constraints.write_text("".join(f"{line}\n" for line in lock), encoding="utf-8")
            arguments += ["--constraints", str(constraints)]
        arguments += [*self.toolchain.requirements, *self.variant.packages]
        return self._uv([*arguments, *self._torch_backend(arguments)])

    def _torch_backend(self, arguments: list[str]) -> list[str]:
        """Ask for PyTorch's CPU build where it can be had: the registry's build brings gigabytes of CUDA.

        A dry run without retries finds out, because a closed network would otherwise cost seconds, and a failed download gigabytes.
        """
        environ = self._environ()
        if not self.toolchain.torch or "UV_TORCH_BACKEND" in environ:
            return []
        wanted = next((line for line in self._pins(arguments) if package_name(line) == "torch"), None)
        version = wanted.partition("==")[2] if wanted else None
        if uvtool.offers(environ, "torch", version, self.toolchain.python):
            return []
        backend = ["--torch-backend", "cpu"]
        probe = self._uv([*arguments, *backend, "--dry-run"], quiet=True, UV_HTTP_RETRIES="0")
        if probe.code == 0:
            return backend
        self._say("PyTorch's CPU build cannot be had here; taking the package index's own build")
        return []

    def _pins(self, arguments: list[str]) -> list[str]:
        return [*self.variant.packages, *(self._constraints() if "--constraints" in arguments else [])]

    def _environ(self) -> dict[str, str]:
        return uvtool.environment(find_links=not self.toolchain.registry_torch)

    def _uv(self, arguments: list[str], *, quiet: bool = False, **variables: str) -> uvtool.Done:
        offline = ["--offline"] if self.offline else []
        return uvtool.run(
            [*arguments, *offline],
            environ=self._environ() | variables,
            folder=self.folder.parent,
            progress=(lambda line: None) if quiet else self._say,
        )

    def _say(self, line: str) -> None:
        self.progress(f"environment '{self.toolchain.name}': {line}")

    def _failed(self, done: uvtool.Done) -> Failure:
        named = f"'{self.toolchain.name}'" if self.variant.plain else f"'{self.toolchain.name}' with {self.variant}"
        return unavailable(f"the environment {named} could not be built: {uvtool.explain(done.log).sentence}", done.log)

    def _mark(self, interpreter: Path, *, locked: bool, seconds: float) -> None:
        marker = {
            "format": MARKER_FORMAT,
            "toolchain": self.toolchain.name,
            "variant": {"packages": list(self.variant.packages), "as_of": self.variant.as_of},
            "torch_backend": torch_backend(self.toolchain),
            "locked": locked,
            "interpreter": str(interpreter),
            "versions": installed_versions(self.folder),
            "built": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "size": folder_size(self.folder),
        }
        (self.folder / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")


def torch_backend(toolchain: Toolchain) -> str | None:
    """Return the build of PyTorch that the user's settings ask for; it is part of an environment's identity."""
    return os.environ.get("UV_TORCH_BACKEND") if toolchain.torch else None


def health(toolchain: Toolchain, python: Path) -> Failure | None:
    """Run the toolchain's health statement; None is good news."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "CONDA"))}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
    try:
        done = subprocess.run(
            [str(python), "-I", "-c", toolchain.health],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=HEALTH_TIMEOUT,
            env=quiet | kept,
        )
    except subprocess.TimeoutExpired:
        return unavailable(
            f"the environment '{toolchain.name}' did not answer its health check within {HEALTH_TIMEOUT:g} s"
        )
    except OSError as error:
        return unavailable(f"the interpreter of the environment '{toolchain.name}' cannot be started: {error.strerror}")
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    why = lines[-1].strip()[:300] if lines else f"it ended with exit code {done.returncode}"
    cure = f"choose other versions, or build it again with `trueport envs create {toolchain.name} --rebuild`"
    return unavailable(
        f"the environment '{toolchain.name}' was installed but does not work ({why}); {cure}", done.stderr
    )


def installed_versions(folder: Path) -> Mapping[str, str]:
    """Return the version of every package in a virtual environment, by canonical name, read from its metadata."""
    places = [
        str(path) for pattern in ("lib/python*/site-packages", "Lib/site-packages") for path in folder.glob(pattern)
    ]
    found = {package_name(one.name): one.version for one in importlib.metadata.distributions(path=places)}
    return dict(sorted(found.items()))


def folder_size(folder: Path, *, shared: bool = True) -> int:
    """Return the bytes of all files, each counted once; without `shared`, only of files that no other folder links to."""
    total, seen = 0, set()
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                status = (Path(parent) / name).lstat()
                if (shared or status.st_nlink == 1) and status.st_ino not in seen:
                    seen.add(status.st_ino)
                    total += status.st_size
    return total


def disk_failure(error: OSError, folder: Path) -> Failure:
    """Say what stands in the way of writing in `folder`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return unavailable(
            f"the disk that holds '{folder}' is full; free some space, or choose another folder with TRUEPORT_CACHE",
            str(error),
        )
    cure = "make it writable, or choose another folder with TRUEPORT_CACHE"
    return unavailable(f"the cache folder '{folder}' cannot be written ({error.strerror or error}); {cure}", str(error))


def unavailable(message: str, log: str = "") -> Failure:
    """Return the Failure for an environment that cannot be had."""
    return Failure(stage=Stage.ENVIRONMENT, kind=Kind.UNAVAILABLE, message=message, log=log[-LOG_TAIL:])
