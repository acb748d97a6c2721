"""Plants faults into Core ML programs: `kinds` tells what a model can take, `plant` writes a changed copy. Runs in a worker.

A planted file loads and runs, and gives other outputs than the model did on random inputs; else the next place is tried.
"""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import coreml
from trueport.testing.planting import _coreml_parameters, _coreml_settings
from trueport.testing.planting._coreml_view import Fault, SkipPlace, View

FAULTS: dict[str, Fault] = {**_coreml_parameters.FAULTS, **_coreml_settings.FAULTS}
TRIES = 12
"""Places that are tried before a kind is given up: most kinds fit everywhere or nowhere."""


def kinds(path: str) -> dict[str, int]:
    """Kind -> number of places at which it may be planted; a place may still turn out not to take it."""
    view = View(path, 0)
    counts = {kind: len(fault.places(view)) for kind, fault in FAULTS.items()}
    return {kind: count for kind, count in counts.items() if count}


def plant(path: str, out: str, kind: str, seed: int) -> dict[str, Any]:
    """Write a copy of the model with one fault at a random place, and return the truth about it.

    Returns {"kind", "row", "cause", "cause_also", "nodes", "what", "source_value", "target_value"} or {"skipped": why}.
    Raises ValueError for an unknown kind.
    """
    if kind not in FAULTS:
        raise ValueError(f"unknown fault kind '{kind}'; known are {', '.join(sorted(FAULTS))}")
    fault = FAULTS[kind]
    view = View(path, zlib.crc32(f"{kind} {seed}".encode()))
    found = list(fault.places(view))
    if not found:
        return {"skipped": f"the model has no place for '{kind}'"}
    why, expected = "", _answers(path)
    for index in view.rng.permutation(len(found))[:TRIES]:
        try:
            change = fault.change(view, found[int(index)])
            coreml.edit(path, change.edits, change.arrays, out, trust=False)
        except SkipPlace as error:
            why = why or str(error)
            continue
        problem = _problem(out, expected)
        if problem is None:
            return {"kind": kind, "row": fault.row, "cause": fault.cause, "cause_also": list(fault.also), **change.told}
        why = problem
        shutil.rmtree(out) if Path(out).is_dir() else Path(out).unlink()
    return {"skipped": why}


def _problem(out: str, expected: list[np.ndarray]) -> str | None:
    """Why a planted file is of no use, or None."""
    try:
        found = _answers(out)
    except Exception as error:  # noqa: BLE001 -- whatever the evaluator says of a model that we broke
        return f"the planted model does not run: {str(error).splitlines()[0][:200]}"
    pairs = list(zip(expected, found))
    if any(left.shape != right.shape for left, right in pairs):
        return "the outputs change their shape"
    if all(np.array_equal(left, right, equal_nan=left.dtype.kind == "f") for left, right in pairs):
        return "the outputs stay as they are"
    return None


def _answers(path: str) -> list[np.ndarray]:
    """What the model gives on two samples of random inputs, the same for every file of one signature."""
    signature = coreml.signature(path, trust=False)
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in signature["inputs"]:
        shape = [2, *(size if isinstance(size, int) else 1 for size in spec["shape"] or [])]
        if spec["dtype"].startswith("float"):
            feeds[spec["name"]] = rng.normal(0.2, 1.0, shape).astype(spec["dtype"])
        else:
            feeds[spec["name"]] = rng.integers(spec.get("minimum", 0), spec.get("maximum", 1) + 1, shape).astype(
                spec["dtype"]
            )
    found = coreml.run(path, {"a": feeds}, precision="float32", variant="default", trust=False)["a"]
    return [np.asarray(value) for value in found.values()]
