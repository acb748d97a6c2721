"""Write edits into a file of the target's format, in a worker; the result is a new artifact, the old file stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueport.artifact import Artifact
from trueport.errors import UsageError
from trueport.frameworks._base import EditDict
from trueport.outcome import Failure, Kind, Ok, Outcome, Stage
from trueport.repairs.types import Edit
from trueport.session import Session, framework_of

_KEYS = ("array", "constants", "parameters", "nodes", "steps")
"""Entries of an `EditDict` in which names of arrays stand."""


def supported(format: str) -> tuple[str, ...]:
    """The kinds of edit that can be written into files of a format; none where it is not editable."""
    return tuple(getattr(framework_of(format), "EDITS", ()))


def packed(edits: Sequence[Edit]) -> tuple[list[EditDict], dict[str, np.ndarray]]:
    """The changes of several edits, with names of arrays that are unique among them, and the arrays."""
    changes: list[EditDict] = []
    arrays: dict[str, np.ndarray] = {}
    for number, edit in enumerate(edits):
        names = {name: f"e{number}.{name}" for name in edit.arrays}
        arrays |= {names[name]: np.asarray(array) for name, array in edit.arrays.items()}
        change: Any = {key: _renamed(value, names) if key in _KEYS else value for key, value in edit.change.items()}
        changes.append(change)
    return changes, arrays


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """A part of a change in which every text that names an array has the new name; operator names and attributes stay."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, dict):
        return {
            key: item if key in ("operator", "op", "attributes") else _renamed(item, names)
            for key, item in value.items()
        }
    return value


def apply(session: Session, target: Artifact, steps: Sequence[Sequence[Edit]]) -> Outcome[Artifact]:
    """Apply groups of edits one after the other, each to the file that the one before gave.

    The result lies in a folder of the session; `discard` frees it. A Failure tells why an edit cannot be written there.
    """
    suffix = target.path.suffix if target.path.is_file() else framework_of(target.format).SUFFIXES[target.format]
    current = target
    for group in steps:
        changes, arrays = packed(group)
        folder = session.pool.fresh_folder("edited")
        out = folder / f"model{suffix}"
        arguments = {"edits": changes, "arrays": arrays, "out": str(out)}
        done = session.ask(current, "edit", arguments, stage=Stage.CONVERT)
        if current is not target:
            discard(session, current)
        if isinstance(done, Failure):
            session.pool.release(folder)
            return done
        try:
            made = Artifact.open(out, format=target.format, made_by=dict(target.made_by))
        except UsageError as error:
            session.pool.release(folder)
            return Failure(stage=Stage.CONVERT, kind=Kind.INVALID_OUTPUT, message=str(error))
        notes = tuple((done.value.value or {}).get("notes", ()))
        if notes:
            known = tuple(made.made_by.get("notes", ()))
            made.made_by["notes"] = (*known, *(note for note in notes if note not in known))  # type: ignore[index]
        current = made
    return Ok(current)


def discard(session: Session, artifact: Artifact) -> None:
    """Free the disk of an edited file that is no longer needed."""
    session.pool.release(artifact.path.parent)
