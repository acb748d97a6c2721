"""Plants faults into exported programs: `kinds` tells what a model can take, `plant` writes a changed copy. In a worker.

A planted file loads and runs, and gives other outputs than the model did on random inputs; else the next place is tried.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trueport.testing.planting import _torch_parameters, _torch_settings
from trueport.testing.planting._torch_edit import Editor, Fault, SkipPlace

FAULTS: dict[str, Fault] = {**_torch_parameters.FAULTS, **_torch_settings.FAULTS}
TRIES = 8
"""Places that are tried before a kind is given up: writing and reading a program takes half a second."""
DRAWS = 2
"""Least number of tries: at one and the same place other noise, or another axis, may do."""


def kinds(path: str) -> dict[str, int]:
    """Kind -> number of places at which it may be planted; a place may still turn out not to take it."""
    edit = _opened(path, 0)
    counts = {kind: len(fault.places(edit)) for kind, fault in FAULTS.items()}
    return {kind: count for kind, count in counts.items() if count}


def plant(path: str, out: str, kind: str, seed: int) -> dict[str, Any]:
    """Write a copy of the model with one fault at a random place, and return the truth about it.

    Returns {"kind", "row", "cause", "cause_also", "nodes", "what", "source_value", "target_value"} or {"skipped": why}.
    Raises ValueError for an unknown kind, Unsupported for TorchScript.
    """
    if kind not in FAULTS:
        raise ValueError(f"unknown fault kind '{kind}'; known are {', '.join(sorted(FAULTS))}")
    fault, edit = FAULTS[kind], _opened(path, seed)
    order = np.random.default_rng(seed).permutation(len(fault.places(edit)))
    if not len(order):
        return {"skipped": f"the model has no place for '{kind}'"}
    why = ""
    expected, inputs = _answers(path), _inputs(path)
    for attempt in range(min(TRIES, max(len(order), DRAWS))):
        edit = edit if attempt == 0 else _opened(path, seed + 1000 * attempt)
        try:
            facts = fault.change(edit, fault.places(edit)[int(order[attempt % len(order)])])
            edit.save(out)
        except SkipPlace as error:
            why = why or str(error)
            continue
        problem = _problem(out, expected, facts["nodes"])
        if problem is None and _inputs(out) != inputs:
            problem = "the file does not keep the shapes of the inputs"
        if problem is None:
            return {"kind": kind, "row": fault.row, "cause": fault.cause, "cause_also": list(fault.also), **facts}
        why = problem
    return {"skipped": why}


def _opened(path: str, seed: int) -> Editor:
    from trueport.frameworks import torch
    from trueport.frameworks._base import Unsupported

    with Path(path).open("rb") as file:
        if torch.sniff(file.read(64 * 1024), Path(path)) == "torchscript":
            raise Unsupported("faults cannot be planted into TorchScript; give the exported program (.pt2)")
    return Editor(path, seed)


def _problem(out: str, expected: dict[str, np.ndarray], nodes: list[str]) -> str | None:
    """Why a planted file is of no use, or None."""
    from trueport.frameworks import torch

    try:
        found = _answers(out)
        known = {node["name"] for node in torch.graph(out, trust=False)["nodes"]}
    except Exception as error:  # noqa: BLE001 -- whatever the framework says of a model that we broke
        return f"the planted model does not run: {(str(error).splitlines() or [''])[0][:200]}"
    if not set(nodes) <= known:
        return f"the file does not keep the name of {sorted(set(nodes) - known)[0]}"
    if list(found) != list(expected) or any(found[name].shape != expected[name].shape for name in found):
        return "the outputs change their shape"
    if all(np.array_equal(found[name], expected[name], equal_nan=found[name].dtype.kind == "f") for name in found):
        return "the outputs stay as they are"
    return None


def _inputs(path: str) -> list[Any]:
    from trueport.frameworks import torch

    return [spec["shape"] for spec in torch.signature(path, trust=False)["inputs"]]


def _answers(path: str) -> dict[str, np.ndarray]:
    """What the model gives on random inputs, the same for every file of one signature."""
    from trueport.frameworks import torch

    signature = torch.signature(path, trust=False)
    rng = np.random.default_rng(0)
    least = {symbol: max(1, low or 1) for symbol, (low, _) in signature["meta"]["constraints"].items()}
    feeds = {}
    for spec in signature["inputs"]:
        shape = [2, *(size if isinstance(size, int) else least.get(str(size), 1) for size in spec["shape"] or [])]
        if spec["dtype"].startswith("float"):
            feeds[spec["name"]] = rng.normal(0.2, 1.0, shape).astype(spec["dtype"])
        else:
            low, high = spec.get("minimum", 0), spec.get("maximum", 1)
            feeds[spec["name"]] = rng.integers(low, high + 1, shape).astype(spec["dtype"])
    found = torch.run(path, {"a": feeds}, precision="float32", variant="default", trust=False)["a"]
    return {name: np.asarray(value) for name, value in found.items()}
