"""Plants faults into OpenVINO models: `kinds` tells what a model can take, `plant` writes a changed copy. Runs in a worker.

A planted model loads and runs, and gives other outputs than the model did on random inputs; else the next place is tried.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from trueport.testing.planting import _openvino_attributes, _openvino_parameters, _openvino_structure
from trueport.testing.planting._openvino_place import Fault, SkipPlace, View

FAULTS: dict[str, Fault] = {
    **_openvino_parameters.FAULTS,
    **_openvino_attributes.FAULTS,
    **_openvino_structure.FAULTS,
}
TRIES = 12
"""Places that are tried before a kind is given up: most kinds fit everywhere or nowhere."""
OPEN = (2, 8, 32)
"""Sizes of axes that the model leaves open; the first with which it runs is taken."""


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
    seed = zlib.crc32(f"{kind} {seed}".encode())  # so that two kinds do not meet at the same place
    count = len(fault.places(View(path, seed)))
    order = np.random.default_rng(seed).permutation(count)
    if not count:
        return {"skipped": f"the model has no place for '{kind}'"}
    size = _size(path)
    if size is None:
        return {"skipped": f"the model runs with none of the sizes {', '.join(map(str, OPEN))} of its open axes"}
    expected, why = _answers(path, size), ""
    for index in order[:TRIES]:
        view = View(path, seed)
        try:
            facts = fault.change(view, fault.places(view)[int(index)])
            made = view.write(out)
        except SkipPlace as error:
            why = why or str(error)
            continue
        problem = _problem(out, expected, size)
        if problem is None:
            nodes = [name for told in facts["nodes"] for name in (made if told == "+" else [told])]
            whole = {"kind": kind, "row": fault.row, "cause": fault.cause, "cause_also": list(fault.also)}
            return {**whole, **facts, "nodes": nodes}
        why = problem
    for file in (Path(out), Path(out).with_suffix(".bin")):
        file.unlink(missing_ok=True)
    return {"skipped": why}


def _size(path: str) -> int | None:
    """The size of open axes with which the model runs."""
    for size in OPEN:
        try:
            _answers(path, size)
        except (RuntimeError, ValueError):
            continue
        return size
    return None


def _problem(out: str, expected: list[Any], size: int) -> str | None:
    """Why a planted model is of no use, or None."""
    try:
        found = _answers(out, size)
    except Exception as error:  # noqa: BLE001 -- whatever the runtime says of a model that we broke
        return f"the planted model does not run: {str(error).splitlines()[0][:200]}"
    pairs = list(zip(expected, found))
    if any(left.shape != right.shape for left, right in pairs):
        return "the outputs change their shape"
    if all(np.array_equal(left, right, equal_nan=left.dtype.kind == "f") for left, right in pairs):
        return "the outputs stay as they are"
    return None


def _answers(path: str, size: int) -> list[np.ndarray]:
    """What the model gives on three samples of random inputs, the same for every model of one signature."""
    from trueport.frameworks import openvino

    signature = openvino.signature(path, trust=False)
    rng = np.random.default_rng(0)
    answers: list[np.ndarray] = []
    for sample in range(3):
        drawn = {spec["name"]: _drawn(rng, sample, spec, size)[None] for spec in signature["inputs"]}
        found = openvino.run(path, {"sample": drawn}, precision="float32", variant="default", trust=False)["sample"]
        answers += [np.asarray(found[spec["name"]]) for spec in signature["outputs"]]
    return answers


def _drawn(rng: np.random.Generator, sample: int, spec: Any, open_size: int) -> np.ndarray:
    """One input: normal, then uniform between 0 and 1, then over a byte: pictures come in all of them."""
    shape = [size if isinstance(size, int) else open_size for size in spec["shape"] or []]
    if not spec["dtype"].startswith("float"):
        whole = rng.integers(spec.get("minimum", 0), spec.get("maximum", 1) + 1, shape)
        return np.asarray(whole, spec["dtype"])
    high = 1.0 if sample == 1 else 255.0
    return np.asarray(rng.uniform(0, high, shape) if sample else rng.normal(0.2, 1.0, shape), spec["dtype"])
