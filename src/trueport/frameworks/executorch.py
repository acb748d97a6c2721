"""ExecuTorch: recognise, describe, run and look inside .pte files, with the runtime's Python bindings on the CPU.

Names are those of `_executorch_file.py`. What a backend such as XNNPACK has taken over is one node, and what is inside
it cannot be seen: the file holds the backend's own bytes there. A node goes by the name of its first output.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import _executorch_file, _executorch_ops, _executorch_run
from trueport.frameworks._base import (
    Arrays,
    EditDict,
    Emit,
    GraphDict,
    NodeDict,
    RunResult,
    SignatureDict,
    Unsupported,
)
from trueport.frameworks._executorch_file import Call, Model

NAME = "executorch"
FORMATS = {"executorch": "executorch"}
SUFFIXES = {"executorch": ".pte"}
VARIANTS = ("default",)
PRECISIONS = ("float32",)
EDITS = ("set-parameter", "set-attribute")
EDIT_FILES = ("_executorch_file", "_torch_values", "_torch_ops", "_executorch_ops", "_executorch_edit")


def sniff(head: bytes, path: Path) -> str | None:
    """Recognise the flatbuffer by its identifier."""
    return "executorch" if head[4:8] == _executorch_file.IDENTIFIER else None


def signature(path: str, *, trust: bool) -> SignatureDict:
    """Describe inputs and outputs. Raises BadModel; Unsupported when the runtime lacks a kernel or a backend."""
    model = _executorch_file.read(path)
    _executorch_run.whole(model)
    weights = [number for number in _constants(model) if model.values[number].scalar_type.name in ("FLOAT", "HALF")]
    kinds = Counter(model.dtype(number) for number in weights)
    return {
        "inputs": [model.spec(number, model.names[number]) for number in model.inputs],
        "outputs": [model.spec(number, f"output_{place}") for place, number in enumerate(model.outputs)],
        "meta": {
            "producer": f"ExecuTorch, schema {model.file.program.version}",
            "precision": kinds.most_common(1)[0][0] if kinds else "float32",
            "operators": dict(Counter(call.native for call in model.calls).most_common()),
            "parameters": sum(int(np.prod(model.values[number].sizes, dtype=np.int64)) for number in weights),
            "methods": [plan.name for plan in model.file.program.execution_plan],
            "backends": sorted({delegate.id for delegate in model.plan.delegates}),
            "writes_state": model.stateful,
        },
    }


def _constants(model: Model) -> list[int]:
    """Stored tensors that a call reads or an output is, each once."""
    read = {number for call in model.calls for number in call.reads} | set(model.outputs)
    return [number for number in range(len(model.values)) if number in read and model.is_constant(number)]


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, RunResult]:
    """Run every case, R calls each. Raises ValueError for a missing or unfit input, Unsupported for another precision."""
    if precision not in PRECISIONS:
        raise Unsupported(f"ExecuTorch computes a file in its own precision; it cannot run it in {precision}")
    _known(variant)
    model = _executorch_file.read(path)
    return {name: _executorch_run.run_case(model, arrays) for name, arrays in cases.items()}


def _known(variant: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant '{variant}'; known are {', '.join(VARIANTS)}")


def names(path: str, *, trust: bool) -> list[str]:
    """Every tensor that a call writes, in execution order, and outputs that are another value once more."""
    model = _executorch_file.read(path)
    return [model.names[number] for number in _computed(model)] + list(model.copies())


def _computed(model: Model) -> list[int]:
    """Tensors that calls write; results without elements, which kernels use as scratch, are none."""
    written = dict.fromkeys(number for call in model.calls for number in call.writes)
    return [number for number in written if all(size > 0 for size in model.values[number].sizes)]


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int, trust: bool) -> dict[str, Any]:
    """Emit each wanted value [R, *shape]. Returns {"skipped": name -> why}."""
    _executorch_run.checked(_executorch_file.read(path), inputs)
    return replay(path, inputs, {}, wanted, emit, variant="", budget=budget, trust=trust)


def replay(
    path: str,
    inputs: Arrays,
    given: Arrays,
    wanted: Sequence[str],
    emit: Emit,
    *,
    variant: str,
    budget: int,
    trust: bool,
) -> dict[str, Any]:
    """Run R calls with values put in (see `_base.py`). Returns {"skipped": name -> why}.

    Raises ValueError for an unknown name, a missing input, or values of another shape than the file has planned memory
    for; Unsupported for a method with branches.
    """
    if variant:
        _known(variant)
    model = _executorch_file.read(path)
    fed = {model.number_of[name]: np.asarray(array) for name, array in inputs.items() if name in model.number_of}
    put_in = {_number(model, name): np.asarray(array) for name, array in given.items()}
    fed.update(put_in)
    counts = {len(array) for array in fed.values()}
    if len(counts) > 1:
        raise ValueError(f"the values given to {path} hold different numbers of runs: {sorted(counts)}")
    runs = counts.pop() if counts else 1
    computed: dict[int, list[str]] = {}
    for name in dict.fromkeys(wanted):
        number = _number(model, name)
        if number in model.producer:
            computed.setdefault(number, []).append(name)
        elif model.is_constant(number):
            emit(name, np.repeat(model.constant(number)[None], runs, axis=0))
        elif number in fed:
            emit(name, fed[number])
        else:
            raise ValueError(f"{path} needs a value for its input '{name}'")
    if not computed:
        return {"skipped": {}}

    def hand_over(name: str, array: np.ndarray) -> None:
        for one in computed[model.number_of[name]]:
            emit(one, array)

    return {"skipped": _executorch_run.replay_rows(model, fed, list(put_in), list(computed), budget, hand_over)}


def _number(model: Model, name: str) -> int:
    found = model.number_of.get(name, model.copies().get(name))
    if found is None:
        raise ValueError(f"{model.path} has no value '{name}'")
    return found


def graph(path: str, *, trust: bool) -> GraphDict:
    """The calls of the method; settings in ONNX's words (see `_executorch_ops.py`)."""
    model = _executorch_file.read(path)
    nodes = [node(model, call) for call in model.calls]
    for name, number in model.copies().items():
        copied: NodeDict = {
            "name": name,
            "op": "Identity",
            "native_op": "output",
            "inputs": [model.names[number]],
            "outputs": [name],
            "attributes": {},
        }
        nodes.append(copied)
    return {
        "nodes": nodes,
        "inputs": [model.names[number] for number in model.inputs],
        "outputs": [f"output_{place}" for place in range(len(model.outputs))],
        "constants": {
            model.names[number]: {"dtype": model.dtype(number), "shape": [int(s) for s in model.values[number].sizes]}
            for number in _constants(model)
        },
    }


def node(model: Model, call: Call) -> NodeDict:
    """One call as a node."""
    settings = {name: model.plain(number) for name, number in call.settings.items()}
    operator = _executorch_ops.onnx_name(call.native, settings)
    shapes = [[int(size) for size in model.values[number].sizes] for number in call.reads]
    return {
        "name": model.names[call.writes[0]] if call.writes else f"call_{call.place}",
        "op": operator,
        "native_op": call.native,
        "inputs": [model.names[number] for number in call.reads],
        "outputs": [model.names[number] for number in call.writes],
        "attributes": _executorch_ops.attributes(operator, settings, shapes),
    }


def parameters(path: str, emit: Emit, *, trust: bool) -> dict[str, Any]:
    """Emit every stored tensor under its name in `graph`."""
    model = _executorch_file.read(path)
    for number in _constants(model):
        emit(model.names[number], model.constant(number))
    return {}


def edit(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
    """Write a copy of the file with the edits applied. Raises Unsupported when one cannot be written or does not load."""
    from trueport.frameworks import _executorch_edit

    notes = _executorch_edit.apply(path, edits, arrays, out)
    try:
        _executorch_run.whole(_executorch_file.read(out))
    except Unsupported:
        Path(out).unlink(missing_ok=True)
        raise
    return {"notes": notes}
