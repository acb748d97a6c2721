"""What a patch script does when it is run: check the model, apply the edits, write the result by rename.

This file is not imported by the package: its text goes into every patch script, as the last module. Standard library
and NumPy only, Python 3.9 and later.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib
import inspect
import io
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Facts(NamedTuple):
    """What a patch knows. steps: groups of {"edits": [...], "arrays": key -> name in `stored`}, each applied to the file
    that the one before gave. stored: name -> base64 of an .npy; beside: SHA-256 of the .npz beside the script, or ""."""

    format: str
    suffix: str
    library: str
    needs: str
    source: str
    result: str
    steps: Sequence[dict[str, Any]]
    stored: dict[str, str]
    beside: str


class Refused(Exception):
    """The patch cannot be applied; one sentence with the cure."""


def digest(path: Path) -> str:
    """SHA-256 of a file with its weights (NAME.bin beside NAME.xml), or of a folder's sorted relative names and contents."""
    total = hashlib.sha256()
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    if path.suffix == ".xml" and path.is_file() and path.with_suffix(".bin").is_file():
        files.append(path.with_suffix(".bin"))
    for file in files:
        if path.is_dir():
            total.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 20), b""):
                total.update(block)
    return total.hexdigest()


def main(facts: Facts, script: str, apply: Callable[[], Any], arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code. `apply`: gives the function that writes edits into a file of this format.

    0: written, as expected. 1: written, and not the bytes that were expected. 2: nothing was written.
    """
    parser = argparse.ArgumentParser(
        prog=Path(script).name, description=f"Mend a {facts.format} model; see the script."
    )
    parser.add_argument("model", metavar="MODEL", help="the model to be mended; it is only read")
    parser.add_argument("out", metavar="OUT", help="where the mended model goes")
    parser.add_argument("--force", action="store_true", help="go on with another model than the patch was made for")
    given = parser.parse_args(list(arguments))
    try:
        same = _check(facts, Path(given.model), Path(given.out), force=given.force)
        _need(facts)
        arrays = _arrays(facts, Path(script))
        found = _written(facts, Path(given.model), Path(given.out), arrays, apply(), trust=same)
    except Refused as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    if found == facts.result:
        print(f"{given.out} is the expected result (SHA-256 {found})")
        return 0
    print(f"{given.out} was written, SHA-256 {found}; expected was {facts.result}.", file=sys.stderr)
    if not same:
        print("The model that was mended is another one, so compare both before use.", file=sys.stderr)
    else:
        print(f"The patch was made with {facts.needs}; another version packs the file otherwise.", file=sys.stderr)
    return 1


def _check(facts: Facts, model: Path, out: Path, *, force: bool) -> bool:
    """Whether this is the model that the patch was made for. Raises Refused."""
    if not model.exists():
        raise Refused(f"{model}: no such file or folder")
    if out.exists() and out.resolve() == model.resolve():
        raise Refused(f"{out} is the model itself, which is only read; give another name for the result")
    if model.is_dir() and model.resolve() in out.resolve().parents:
        raise Refused(f"{out} lies in the model, which is only read; give another place for the result")
    if out.is_dir() or (not facts.suffix and out.exists()):
        raise Refused(f"{out} exists; give a new name for the result")
    if not out.absolute().parent.is_dir():
        raise Refused(f"{out.absolute().parent} is no folder; make it, or give another place for the result")
    found = digest(model)
    if found != facts.source and not force:
        raise Refused(
            f"{model} is not the model that this patch was made for (SHA-256 {found}, not {facts.source}); "
            "make the patch anew for it, or go on with --force"
        )
    return found == facts.source


def _need(facts: Facts) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        importlib.import_module(facts.library)
    except ImportError as error:
        raise Refused(f"this patch needs {facts.needs} ({error}); install it with pip") from None


def _arrays(facts: Facts, script: Path) -> dict[str, np.ndarray]:
    found = {
        name: np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) for name, text in facts.stored.items()
    }
    if facts.beside:
        path = script.with_suffix(".npz")
        if not path.is_file():
            raise Refused(f"{path} is missing; it holds the arrays of this patch and must lie beside it")
        if digest(path) != facts.beside:
            raise Refused(f"{path} was changed or belongs to another patch; make the patch anew")
        with np.load(path, allow_pickle=False) as stored:
            found.update({name: stored[name] for name in stored.files})
    return found


def _written(
    facts: Facts, model: Path, out: Path, arrays: dict[str, np.ndarray], apply: Callable[..., Any], *, trust: bool
) -> str:
    """Apply all steps in a hidden folder beside the result, move it there, and return its digest."""
    out = out.absolute()
    more = {"trust": trust} if "trust" in inspect.signature(apply).parameters else {}
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=out.parent) as folder:
        current = str(model)
        for number, step in enumerate(facts.steps):
            place = Path(folder) / str(number)
            place.mkdir()
            made = str(place / f"model{facts.suffix}")
            given = {key: arrays[name] for key, name in step["arrays"].items()}
            try:
                reply = apply(current, step["edits"], given, made, **more)
            except Exception as error:
                said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise Refused(f"the patch does not apply to {model}: {said}") from error
            for note in reply["notes"] if isinstance(reply, dict) else reply or ():
                print(f"note: {note}")
            current = made
        found = digest(Path(current))
        _moved(Path(current), out)
    return found


def _moved(made: Path, out: Path) -> None:
    """Files beside the model are weights that it refers to by name: they go first, and replace no other file."""
    sides = [side for side in made.parent.iterdir() if side != made]
    places = {}
    for side in sides:
        named = made.suffix == ".xml" and side == made.with_suffix(".bin")  # such weights go by the model's own name
        there = out.with_suffix(".bin") if named else out.parent / side.name
        places[side] = there
        if there.exists() and digest(there) != digest(side):
            raise Refused(f"{there} is in the way: the result has weights in a file of that name; give another folder")
    for side, there in places.items():
        side.replace(there)
    made.replace(out)
