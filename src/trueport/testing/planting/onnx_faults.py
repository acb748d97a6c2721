"""Plants faults into ONNX files: `kinds` tells what a model can take, `plant` writes a changed copy. Runs in a worker.

A planted file loads and runs, and gives other outputs than the model did on random inputs; else the next place is tried.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.testing.planting import _onnx_attributes, _onnx_parameters, _onnx_structure
from trueport.testing.planting._onnx_edit import Editor, Fault, SkipPlace

FAULTS: dict[str, Fault] = {**_onnx_parameters.FAULTS, **_onnx_attributes.FAULTS, **_onnx_structure.FAULTS}
TRIES = 12
"""Places that are tried before a kind is given up: most kinds fit everywhere or nowhere."""
DRAWS = 4
"""Least number of tries: at one and the same place other noise, or another mode, may do."""


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
    fault = FAULTS[kind]
    order = np.random.default_rng(seed).permutation(len(fault.places(Editor(path, seed))))
    if not len(order):
        return {"skipped": f"the model has no place for '{kind}'"}
    why = ""
    expected = _answers(path)
    for attempt in range(min(TRIES, max(len(order), DRAWS))):
        edit = Editor(path, seed + 1000 * attempt)
        try:
            facts = fault.change(edit, fault.places(edit)[int(order[attempt % len(order)])])
        except SkipPlace as error:
            why = why or str(error)
            continue
        edit.save(out)
        problem = _problem(out, expected)
        if problem is None:
            return {"kind": kind, "row": fault.row, "cause": fault.cause, "cause_also": list(fault.also), **facts}
        why = problem
    return {"skipped": why}


def _problem(out: str, expected: list[np.ndarray]) -> str | None:
    """Why a planted file is of no use, or None."""
    try:
        found = _answers(out)
    except Exception as error:  # noqa: BLE001 -- whatever the runtime says of a model that we broke
        return f"the planted model does not run: {str(error).splitlines()[0][:200]}"
    pairs = list(zip(expected, found))
    if any(left.shape != right.shape for left, right in pairs):
        return "the outputs change their shape"
    if all(np.array_equal(left, right, equal_nan=left.dtype.kind == "f") for left, right in pairs):
        return "the outputs stay as they are"
    return None


def _answers(path: str) -> list[np.ndarray]:
    """What the model gives on two samples of random inputs, the same for every file of one signature."""
    import onnxruntime

    from trueport.frameworks import onnx

    signature = onnx.signature(path, trust=False)
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in signature["inputs"]:
        shape = [size if isinstance(size, int) else 1 for size in spec["shape"] or []]
        if spec["dtype"].startswith("float"):
            feeds[spec["name"]] = rng.normal(0.2, 1.0, shape).astype(spec["dtype"])
        else:
            least, most = spec.get("minimum", 0), spec.get("maximum", 1)
            feeds[spec["name"]] = rng.integers(least, most + 1, shape).astype(spec["dtype"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, feeds)]
