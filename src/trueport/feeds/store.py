"""Keeps feeds in a folder for replay: `index.json` with a format number, and one memory-mapped `.npy` per array."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from trueport.errors import UsageError
from trueport.feeds.types import Case, Feeds, digest

FORMAT = "trueport/feeds/1"
INDEX = "index.json"


def save(feeds: Feeds, folder: Path) -> Path:
    """Write `feeds` to `folder`, which appears whole or not at all; saved feeds that lie there already are replaced."""
    if folder.exists() and not (folder / INDEX).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and holds something else than saved inputs; name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _write(feeds, partial)
        _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _swap(new: Path, folder: Path) -> None:
    """Rename `new` into place, moving what lies there out of the way first."""
    if not folder.exists():
        new.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    folder.rename(old / "replaced")
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write(feeds: Feeds, folder: Path) -> None:
    count = 0

    def put(array: np.ndarray) -> str:
        nonlocal count
        name = f"{count:05d}.npy"
        count += 1
        np.save(folder / name, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
        return name

    index = {
        "format": FORMAT,
        "origin": feeds.origin,
        "seed": feeds.seed,
        "count": feeds.count,
        "sha256": feeds.sha256,
        "notes": list(feeds.notes),
        "labels": None if feeds.labels is None else put(feeds.labels),
        "cases": [
            {"name": case.name, "kind": case.kind, "inputs": {name: put(array) for name, array in case.inputs.items()}}
            for case in feeds.cases
        ],
    }
    text = json.dumps(index, indent=2, ensure_ascii=False)
    with (folder / INDEX).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def open_saved(folder: Path, *, check: bool = True) -> Feeds:
    """Open saved feeds, arrays memory-mapped. check: compare the digest of what lies there with the one noted.

    Raises UsageError when the folder is none of ours, of a newer format, damaged or changed.
    """
    index = _index(folder)
    try:
        labels = None if index["labels"] is None else np.array(_array(folder, index["labels"]))
        cases = tuple(
            Case(
                name=case["name"],
                kind=case["kind"],
                inputs={name: _array(folder, file) for name, file in case["inputs"].items()},
            )
            for case in index["cases"]
        )
        feeds = Feeds(
            cases=cases,
            origin=index["origin"],
            seed=index["seed"],
            count=index["count"],
            sha256=index["sha256"],
            labels=labels,
            notes=tuple(index["notes"]),
        )
    except (KeyError, TypeError, AttributeError, OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"{folder} is damaged ({type(error).__name__}: {str(error)[:100]}); save the inputs again"
        ) from error
    if check and digest(cases) != feeds.sha256:
        raise UsageError(f"{folder} was changed since it was saved (its digest differs); save the inputs again")
    return feeds


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise UsageError(f"{folder} holds no saved inputs (no {INDEX})")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({str(error)[:100]}); save the inputs again") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        found = index.get("format") if isinstance(index, dict) else None
        raise UsageError(f"{path} has format {found!r}, this version reads {FORMAT!r}")
    return index


def _array(folder: Path, name: str) -> np.ndarray:
    if Path(name).name != name:
        raise ValueError(f"{name} is no plain file name")
    path = folder / name
    try:
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError:  # a zero-size array cannot be mapped
        return np.asanyarray(np.load(path, allow_pickle=False))
