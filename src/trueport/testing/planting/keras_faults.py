"""Plants faults into Keras files: `kinds` tells what a model can take, `plant` writes a changed copy. Runs in a worker.

A planted file loads and runs, and gives other outputs than the model did on random inputs; else the next place is tried.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.frameworks import _keras_model as models
from trueport.testing.planting import _keras_parameters, _keras_settings
from trueport.testing.planting._keras_edit import Editor, Fault, SkipPlace

FAULTS: dict[str, Fault] = {**_keras_parameters.FAULTS, **_keras_settings.FAULTS}
TRIES = 8
"""Places that are tried before a kind is given up: building a model takes a second."""


def kinds(path: str) -> dict[str, int]:
    """Kind -> number of places at which it may be planted; a place may still turn out not to take it."""
    edit = Editor(path, 0)
    counts = {kind: len(fault.places(edit)) for kind, fault in FAULTS.items()}
    return {kind: count for kind, count in counts.items() if count}


def plant(path: str, out: str, kind: str, seed: int) -> dict[str, Any]:
    """Write a copy of the model with one fault at a random place, and return the truth about it.

    Returns {"kind", "row", "cause", "cause_also", "nodes", "what", "source_value", "target_value"} or {"skipped": why}.
    Raises ValueError for an unknown kind.
    """
    if kind not in FAULTS:
        raise ValueError(f"unknown fault kind '{kind}'; known are {', '.join(sorted(FAULTS))}")
    fault, model = FAULTS[kind], Editor(path, seed)
    order = np.random.default_rng(seed).permutation(len(fault.places(model)))
    if not len(order):
        return {"skipped": f"the model has no place for '{kind}'"}
    why = ""
    expected = _answers(path, model)
    for index in order[:TRIES]:
        edit = model.copy(seed)
        try:
            facts = fault.change(edit, fault.places(edit)[int(index)])
            edit.save(out)
        except SkipPlace as error:
            why = why or str(error)
            continue
        problem = _problem(out, edit, expected)
        if problem is None:
            return {"kind": kind, "row": fault.row, "cause": fault.cause, "cause_also": list(fault.also), **facts}
        why = problem
    return {"skipped": why}


def _problem(out: str, edit: Editor, expected: list[np.ndarray]) -> str | None:
    """Why a planted file is of no use, or None."""
    try:
        found = _answers(out, edit)
    except Exception as error:  # noqa: BLE001 -- whatever Keras says of a model that we broke
        return f"the planted model does not run: {str(error).splitlines()[0][:200]}"
    pairs = list(zip(expected, found))
    if any(left.shape != right.shape for left, right in pairs):
        return "the outputs change their shape"
    if all(np.array_equal(left, right, equal_nan=left.dtype.kind == "f") for left, right in pairs):
        return "the outputs stay as they are"
    return None


def _answers(path: str, edit: Editor) -> list[np.ndarray]:
    """What the file gives on two samples of random inputs, the same for every file of one signature."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    feeds = []
    for spec in edit.signature["inputs"]:
        sizes = [
            size if isinstance(size, int) else 2 if place == 0 else 7 for place, size in enumerate(spec["shape"] or [])
        ]
        if spec["dtype"].startswith("float"):
            feeds.append(rng.normal(0.2, 1.0, sizes).astype(spec["dtype"]))
        else:
            feeds.append(rng.integers(spec.get("minimum", 0), spec.get("maximum", 1) + 1, sizes).astype(spec["dtype"]))
    loaded = models.read(path, trust=False)
    return [np.asarray(value) for value in models.call(loaded, [tf.constant(feed) for feed in feeds])]
