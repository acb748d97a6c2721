"""Where the script of a repair goes, and what to say where there can be none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trueport import publish
from trueport.errors import UsageError
from trueport.repairs import editing, patch
from trueport.repairs.types import Repair


def check(place: Path) -> None:
    """Make sure, before the work begins, that a script and its arrays can be written. Raises UsageError."""
    if place.suffix != ".py":
        raise UsageError(f"{place}: a patch is a Python script; give it a name that ends with .py")
    publish.check_file(place)
    beside = place.with_suffix(".npz")
    if beside.exists() and not place.exists():
        raise UsageError(f"{beside} is in the way: large arrays of the patch go there; give --patch another name")


def written(made: Repair, place: Path) -> Repair:
    """Write the script that applies a repair's edits to the same file; where there is none, a note says why.

    Returns the repair with `patch` set. Raises UsageError when it cannot be written.
    """
    if made.artifact is None or made.after is None:
        return made
    if made.command:
        return _without(made, "the model was converted another way, which the command above repeats")
    prefix = "target."
    versions = {name.removeprefix(prefix): v for name, v in made.after.versions.items() if name.startswith(prefix)}
    try:
        found = patch.script(
            made.target.format,
            [editing.packed(group) for group in made.steps],
            explanation=made.explanation,
            source_sha256=made.target.sha256,
            result_sha256=made.artifact.sha256,
            versions=versions,
        )
    except ValueError as error:
        return _without(made, str(error))
    if found.arrays is not None:
        publish.data(place.with_suffix(".npz"), found.arrays)
    publish.text(place, found.script)
    return replace(made, patch=place.absolute())


def _without(made: Repair, why: str) -> Repair:
    return replace(made, notes=(*made.notes, f"there is no patch: {why}"))
