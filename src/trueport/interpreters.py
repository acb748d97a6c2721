"""Which Python interpreter an environment is built on, and whether a caller's own one will do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import uv

from trueport.outcome import Failure, Kind, Ok, Outcome, Stage
from trueport.toolchains import Toolchain

START_TIMEOUT = 60.0
"""Seconds that an interpreter may need to start (cold disk)."""
IMPORT_TIMEOUT = 300.0
"""Seconds that a framework may need for its import; TensorFlow takes 10 s cold on two cores."""
OLDEST_PYTHON = (3, 9)
OLDEST_NUMPY = (1, 22)
"""What the worker's side of trueport is written for."""

_PROBE = """
import json, sys
found = {"python": list(sys.version_info[:3])}
try:
    import numpy
    found["numpy"] = numpy.__version__
except Exception as error:
    found["numpy_error"] = "%s: %s" % (type(error).__name__, error)
print(json.dumps(found))
"""


def setting(version: str) -> str:
    """Return the environment variable that names the interpreter to use for this `major.minor`."""
    return f"TRUEPORT_PYTHON_{version.replace('.', '_')}"


def find_interpreter(version: str) -> Path | None:
    """Find a CPython of `major.minor`: the one that a setting names, this one, uv's, pyenv's, or one on PATH.

    Where the setting is present nothing else is tried: a setting that is wrong must not be passed over in silence.
    """
    named = os.environ.get(setting(version))
    candidates = iter([Path(named).expanduser()]) if named else _candidates(version)
    return next((path for path in candidates if version_of(path) == version), None)


def no_interpreter(toolchain: Toolchain) -> str:
    """Say in one sentence what is missing and how to get it."""
    version, variable = toolchain.python, setting(toolchain.python)
    if named := os.environ.get(variable):
        return f"toolchain '{toolchain.name}' needs Python {version}, and {variable}={named} is not a working one; correct it"
    return (
        f"toolchain '{toolchain.name}' needs Python {version}, and none was found; "
        f"install it (for example with `uv python install {version}`) or name it in {variable}"
    )


def version_of(python: Path) -> str | None:
    """Return `major.minor` of an interpreter, or None when it does not run or is no CPython."""
    code = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"
    try:
        done = _run([str(python), "-I", "-c", code], START_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = done.stdout.split()
    return words[1] if done.returncode == 0 and words[:1] == ["cpython"] else None


def _candidates(version: str) -> Iterator[Path]:
    if version == "{}.{}".format(*sys.version_info[:2]):
        yield Path(sys.executable)
    # uv gives up at the first shim on PATH that does not run, so its "no" is not the last word.
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        find = ["python", "find", "--system", "--no-python-downloads", "--no-config", version]
        done = _run([uv.find_uv_bin(), *find], START_TIMEOUT)
        if done.returncode == 0:
            yield Path(done.stdout.strip())
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    patched = [
        (int(match.group(1)), path)
        for path in root.glob(f"{version}.*")
        if (match := re.search(r"\.(\d+)$", path.name))
    ]
    yield from (path / "bin" / "python" for _, path in sorted(patched, reverse=True))
    for folder in os.get_exec_path():
        if found := shutil.which(f"python{version}", path=folder):
            yield Path(found)


def check_own(toolchain: Toolchain, python: Path) -> Outcome[Path]:
    """Check the caller's own interpreter: it runs, and has NumPy and the toolchain's framework. A virtual environment's folder will do.

    The result is not resolved: a symbolic link is what makes an interpreter that of a virtual environment.
    """
    given, python = python, python.expanduser().absolute()
    if python.is_dir():
        python = python_in(python)
    if not python.exists():
        return _not_usable(given, "does not exist; give the path of a Python interpreter")
    try:
        done = _run([str(python), "-I", "-c", _PROBE], IMPORT_TIMEOUT)
        found = json.loads(done.stdout.strip().splitlines()[-1]) if done.returncode == 0 else None
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        return _not_usable(given, "does not run; give the path of a Python interpreter", str(error))
    if found is None:
        return _not_usable(given, "does not run; give the path of a Python interpreter", done.stderr)
    if tuple(found["python"][:2]) < OLDEST_PYTHON:
        return _not_usable(
            given, f"is Python {_dotted(found['python'])}, and {_dotted(OLDEST_PYTHON)} or later is needed"
        )
    if "numpy" not in found:
        return _not_usable(given, "has no working NumPy; install numpy there", found["numpy_error"])
    if _leading(found["numpy"]) < OLDEST_NUMPY:
        return _not_usable(
            given, f"has NumPy {found['numpy']}, and {_dotted(OLDEST_NUMPY)} or later is needed; update it there"
        )
    try:
        done = _run([str(python), "-I", "-c", f"import {toolchain.first_module}"], IMPORT_TIMEOUT)
    except subprocess.TimeoutExpired:
        return _not_usable(
            given, f"did not import {toolchain.first_module} within {IMPORT_TIMEOUT:g} s; check it by hand"
        )
    if done.returncode:
        need = f"cannot import {toolchain.first_module}, which toolchain '{toolchain.name}' needs; install or mend it there"
        return _not_usable(given, need, done.stderr)
    return Ok(python)


def python_in(folder: Path) -> Path:
    """Return where the interpreter of a virtual environment lies."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def _dotted(parts: tuple[int, ...] | list[int]) -> str:
    return ".".join(map(str, parts))


def _leading(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _not_usable(python: Path, why: str, log: str = "") -> Failure:
    return Failure(
        stage=Stage.ENVIRONMENT, kind=Kind.UNAVAILABLE, message=f"the interpreter '{python}' {why}", log=log[-4000:]
    )
