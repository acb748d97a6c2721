"""Plants faults into TFLite files: `kinds` tells what a model can take, `plant` writes a changed copy. Runs in a worker.

A planted file loads and runs, and gives other outputs than the model did on random inputs; else the next place is tried.
Its recorded shapes are those that it computes, as a converter would have written them.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from trueport.testing.planting import _tflite_attributes, _tflite_parameters, _tflite_structure
from trueport.testing.planting._tflite_edit import Editor, Fault, SkipPlace

FAULTS: dict[str, Fault] = {**_tflite_parameters.FAULTS, **_tflite_attributes.FAULTS, **_tflite_structure.FAULTS}
TRIES = 12
"""Places that are tried before a kind is given up: most kinds fit everywhere or nowhere."""


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
    seed = zlib.crc32(f"{kind} {seed}".encode())  # so that two kinds do not meet at the same place
    order = np.random.default_rng(seed).permutation(len(fault.places(Editor(path, seed))))
    if not len(order):
        return {"skipped": f"the model has no place for '{kind}'"}
    why = ""
    expected = _answers(path)
    for index in order[:TRIES]:
        edit = Editor(path, seed)
        try:
            facts = fault.change(edit, fault.places(edit)[int(index)])
        except SkipPlace as error:
            why = why or str(error)
            continue
        edit.save(out)
        problem = _problem(edit, out, expected)
        if problem is None:
            return {"kind": kind, "row": fault.row, "cause": fault.cause, "cause_also": list(fault.also), **facts}
        why = problem
    return {"skipped": why}


def _problem(edit: Editor, out: str, expected: list[np.ndarray]) -> str | None:
    """Why a planted file is of no use, or None."""
    try:
        found = _answers(out, edit)
        edit.save(out)
    except Exception as error:  # noqa: BLE001 -- whatever the runtime says of a model that we broke
        return f"the planted model does not run: {str(error).splitlines()[0][:200]}"
    pairs = list(zip(expected, found))
    if any(left.shape != right.shape for left, right in pairs):
        return "the outputs change their shape"
    if all(np.array_equal(left, right, equal_nan=left.dtype.kind == "f") for left, right in pairs):
        return "the outputs stay as they are"
    return None


def _answers(path: str, edit: Editor | None = None) -> list[np.ndarray]:
    """What the model gives on three samples of random inputs, the same for every file of one signature.

    The shapes that its tensors have while it runs are recorded in `edit`.
    """
    from trueport.frameworks import tflite
    from trueport.frameworks._tflite_model import Model
    from trueport.frameworks._tflite_session import Session, carries_state, stored

    signature = tflite.signature(path, trust=False)
    model = Model(path)
    rng = np.random.default_rng(0)
    session = Session.of(model, "builtin", keep_all=True)
    answers = []
    for sample in range(3):
        if sample and carries_state(model):
            session = Session.of(model, "builtin", keep_all=True)
        named = {index: (spec, model.tensors[index]) for spec, index in zip(signature["inputs"], model.inputs)}
        drawn = {index: _drawn(rng, sample, spec, tensor) for index, (spec, tensor) in named.items()}
        session.call({i: stored(tensor, spec["name"], drawn[i]) for i, (spec, tensor) in named.items()})
        answers += [session.value(index) for index in model.outputs]
    if edit is not None:
        _record_shapes(edit, session)
    return answers


def _drawn(rng: np.random.Generator, sample: int, spec: Any, tensor: Any) -> np.ndarray:
    """One input: normal, then uniform between 0 and 1, then over the tensor's grid or a byte: pictures come in all of them."""
    if not spec["dtype"].startswith("float"):
        whole = rng.integers(spec.get("minimum", 0), spec.get("maximum", 1) + 1, tensor.shape)
        return np.asarray(whole, spec["dtype"])
    low, high = 0.0, 1.0 if sample == 1 else 255.0
    if tensor.quantization is not None and sample == 2:
        limits = np.iinfo(tensor.dtype)
        scale, zero = (float(part[0]) for part in tensor.quantization[:2])
        low, high = ((limit - zero) * scale for limit in (limits.min, limits.max))
    drawn = rng.uniform(low, high, tensor.shape) if sample else rng.normal(0.2, 1.0, tensor.shape)
    return np.asarray(drawn, spec["dtype"])


def _record_shapes(edit: Editor, session: Any) -> None:
    """Give every computed tensor of the main graph the shape that it has; a free size stays free."""
    for item in edit.main.operators:
        for index in item.outputs:
            tensor = edit.main.tensors[int(index)]
            shape = [int(size) for size in session.interpreter._get_tensor_details(int(index), 0)["shape"]]
            if shape == edit.shape(tensor) or len(shape) != len(edit.shape(tensor)):
                continue
            free = tensor.shapeSignature
            if free is not None and len(free) == len(shape):
                tensor.shapeSignature = [-1 if int(old) < 0 else new for old, new in zip(free, shape)]
            tensor.shape = shape
