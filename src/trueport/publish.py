"""How a result reaches the place that the user named: whole or not at all, by rename, and checked before the work begins.

A process that is killed while it copies leaves a hidden `.NAME.PID-….partial` beside the place. The next result for the
same place removes such leftovers of processes that no longer run.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path

import psutil

from trueport.artifact import WEIGHTS, sniff, weights_of
from trueport.errors import UsageError


def check_model(out: Path, source: Path, format: str, *, folder: bool) -> None:
    """Make sure that a model of `format` (a `folder` or a file) can be put at `out`.

    Raises UsageError when `out` is the source itself, is a folder that is no such model, or cannot be written.
    """
    if out.exists() and out.resolve() == source.resolve():
        raise UsageError(f"{out} is the source itself; give another place with -o")
    if out.is_dir() and not folder:
        raise UsageError(f"{out} is a folder; give the name of the file that shall be written")
    if folder and out.is_file():
        raise UsageError(f"{out} is a file, and a {format} is a folder; give another place with -o")
    if format == "openvino" and out.suffix not in WEIGHTS:
        raise UsageError(f"{out} is no name for an OpenVINO model, which is read from NAME.xml with NAME.bin beside it")
    if out.is_dir() and any(out.iterdir()) and not _is_model(out, format):
        raise UsageError(f"{out} is a folder with other things in it, which would be replaced; give a new name with -o")
    _check_parent(out)


def check_apart(out: Path, given: Path) -> None:
    """Make sure that a result replaces nothing of the model that it is made from, which may be a folder. Raises UsageError."""
    if out.exists() and out.resolve() == given.resolve():
        raise UsageError(f"{out} is the model to be mended, which is never written to; give another place with -o")
    if given.is_dir() and out.resolve().is_relative_to(given.resolve()):
        raise UsageError(f"{out} lies in the model to be mended, which is never written to; give another place with -o")


def _is_model(folder: Path, format: str) -> bool:
    try:
        return sniff(folder) == format
    except UsageError:
        return False


def check_file(path: Path) -> None:
    """Make sure that a file can be written at `path`. Raises UsageError."""
    if path.is_dir():
        raise UsageError(f"{path} cannot be written: it is a folder; give the name of a file")
    _check_parent(path)


def check_distinct(places: Iterable[str | Path | None], others: Iterable[str | Path | None]) -> None:
    """Make sure that no place to be written to is another one, or one of the other files of a command. Raises UsageError."""
    taken = {Path(other).resolve() for other in others if other is not None}
    for place in places:
        if place is None:
            continue
        if Path(place).resolve() in taken:
            raise UsageError(f"{place} cannot be written: the same command uses that place already; give another one")
        taken.add(Path(place).resolve())


def check_folder(path: Path) -> None:
    """Make sure that files can be written into the folder `path`, which need not exist yet. Raises UsageError."""
    _check_parent(path / "file")


def _check_parent(path: Path) -> None:
    """Try to make a file, without a name where the system can, in the nearest folder that exists."""
    parent = path.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        why = f"{parent} is no folder" if not parent.is_dir() else f"no file can be made in {parent} ({error.strerror})"
        raise UsageError(f"{path} cannot be written: {why}; give another place") from None


def model(made: Path, out: Path) -> None:
    """Put a finished model at `out`, so that `out` is never half-written. Raises UsageError when it cannot be.

    Files beside `made` are its external weights: the model refers to them by name, so they go beside `out` under
    their own names, and before it; one that lies there already stays untouched. A model that stood at `out` is withdrawn
    first, for its weights may be among those. Other files of such a name are another model's, and never replaced.
    """
    partial = partial_name(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out)
        if made.is_dir():
            shutil.copytree(made, partial)
            _exchange(partial, out)
            return
        shutil.copyfile(made, partial)
        sides = [side for side in made.parent.iterdir() if side != made and side.is_file()]
        wanted = {side: weights_of(out) if side == weights_of(made) else out.parent / side.name for side in sides}
        places = {side: there for side, there in wanted.items() if there is not None and not _same(side, there)}
        for there in places.values():
            _check_side(out, there)
        if places:
            out.unlink(missing_ok=True)
        for side, there in places.items():
            _replace_copy(side, there)
        partial.replace(out)
    except OSError as error:
        raise UsageError(
            f"the result cannot be written to {out}: {error.strerror or error}; make room or give another place"
        ) from error
    finally:
        _remove(partial)


def _same(side: Path, there: Path) -> bool:
    """Whether a file lies there already, byte for byte."""
    return there.is_file() and there.stat().st_size == side.stat().st_size and filecmp.cmp(side, there, shallow=False)


def _check_side(out: Path, there: Path) -> None:
    """Make sure that external weights replace only those of an earlier model at `out`. Raises UsageError."""
    own = there == weights_of(out) and out.is_file()
    if there.exists() and not own and not there.name.startswith(out.name):
        raise UsageError(
            f"{there} is in the way: the model for {out} has weights in a file of that name, and this one may be another "
            f"model's; give a place in another folder with -o"
        )


def _exchange(partial: Path, out: Path) -> None:
    """Put a folder where another may stand; a folder cannot be replaced in one step everywhere."""
    if not out.is_dir():
        partial.rename(out)
        return
    old = partial_name(out)
    out.rename(old)
    partial.rename(out)
    _remove(old)


def _replace_copy(source: Path, target: Path) -> None:
    sweep(target)
    partial = partial_name(target)
    try:
        shutil.copyfile(source, partial)
        partial.replace(target)
    finally:
        _remove(partial)


def text(path: Path, content: str) -> None:
    """Write a file of text so that it appears whole or not at all. Raises UsageError when it cannot be written."""
    data(path, content.encode())


def data(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all. Raises UsageError when it cannot be written."""
    partial = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}; give another place") from error
    finally:
        _remove(partial)


def partial_name(path: Path) -> Path:
    """Return a hidden name beside `path` that says whose it is."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")


def sweep(path: Path) -> None:
    """Remove what killed processes left of earlier results for `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)-[0-9a-f]{{8}}\.partial")
    for item in path.parent.iterdir():
        match = pattern.fullmatch(item.name)
        if match is not None and not psutil.pid_exists(int(match[1])):
            _remove(item)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
