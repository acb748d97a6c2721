"""The framework file of `.npznet`: dense networks in one NumPy archive, run by NumPy alone.

The archive (an uncompressed `.npz`) holds `layers`, a text of JSON: [{"name", "op", "inputs", "parameters"}], and one
array per parameter. Operators: MatMul, Add, Relu, Tanh, Softmax. The input is `x` [N, width], the output the last layer's.
Standard library and NumPy only at the top; nothing of the file is executed, so there is nothing to trust.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks._base import Arrays, BadModel, Emit, Unsupported

NAME = "npznet"
FORMATS = {"npznet": "npznet"}
SUFFIXES = {"npznet": ".npznet"}
VARIANTS = ("default", "by-columns")
PRECISIONS = ("float32", "float64")
EDITS = ("set-parameter",)
EDIT_FILES = ()
TOOLCHAINS = {
    "npznet": {
        "python": "3.11",
        "requirements": ["numpy"],
        "health": "import numpy",
        "purpose": "run .npznet models",
        "lock": ["numpy==2.2.6"],
    }
}

LAYERS = "layers"
MARK = b"layers.npy"


def sniff(head: bytes, path: Path) -> str | None:
    """An archive whose first member is `layers`: `save` writes it first."""
    return "npznet" if head[:4] == b"PK\x03\x04" and head[30 : 30 + len(MARK)] == MARK else None


def save(path: str, layers: Sequence[Mapping[str, Any]], parameters: Arrays) -> None:
    """Write a model."""
    with Path(path).open("wb") as file:
        np.savez(file, **{LAYERS: np.array(json.dumps(list(layers))), **parameters})


def signature(path: str, *, trust: bool) -> dict[str, Any]:
    """Describe the model."""
    layers, arrays = _read(path)
    first = next(layer for layer in layers if layer["op"] == "MatMul")
    last = next(layer for layer in reversed(layers) if layer["op"] == "MatMul")
    sizes = arrays[first["parameters"][0]].shape[0], arrays[last["parameters"][0]].shape[1]
    return {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", sizes[0]]}],
        "outputs": [{"name": layers[-1]["name"], "dtype": "float32", "shape": ["N", sizes[1]]}],
        "meta": {
            "producer": "npznet",
            "precision": "float32",
            "operators": dict(Counter(layer["op"] for layer in layers)),
            "parameters": int(sum(array.size for array in arrays.values())),
        },
    }


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, Any]:
    """Run every case; inputs and outputs [R, N, width]."""
    layers, arrays = _read(path)
    results = {}
    for case, inputs in cases.items():
        rows = [_values(layers, arrays, {"x": x}, precision, variant)[layers[-1]["name"]] for x in inputs["x"]]
        results[case] = {layers[-1]["name"]: np.stack(rows)}
    return results


def names(path: str, *, trust: bool) -> list[str]:
    """Every layer's result."""
    return [layer["name"] for layer in _read(path)[0]]


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int, trust: bool) -> dict[str, Any]:
    """Give wanted values one after the other; each is computed anew, so one is held at a time."""
    layers, arrays = _read(path)
    for name in wanted:
        emit(name, np.stack([_values(layers, arrays, {"x": x}, "float32", "default")[name] for x in inputs["x"]]))
    return {"skipped": {}}


def replay(path: str, inputs: Arrays, given: Arrays, wanted: Sequence[str], emit: Emit, *, variant: str, budget: int,
           trust: bool) -> dict[str, Any]:  # fmt: skip
    """Run with values put in; a wanted value that is given is what its own layer computes."""
    layers, arrays = _read(path)
    runs = len(next(iter({**inputs, **given}.values())))
    for name in wanted:
        rows = []
        for run_number in range(runs):
            put_in = {key: array[run_number] for key, array in {**inputs, **given}.items()}
            rows.append(_values(layers, arrays, put_in, "float32", variant or "default")[f"computed {name}"])
        emit(name, np.stack(rows))
    return {"skipped": {}}


def graph(path: str, *, trust: bool) -> dict[str, Any]:
    """The layers as nodes; the operators' names are ONNX's already."""
    layers, arrays = _read(path)
    nodes = [
        {
            "name": layer["name"],
            "op": layer["op"],
            "native_op": layer["op"],
            "inputs": [*layer["inputs"], *layer.get("parameters", [])],
            "outputs": [layer["name"]],
            "attributes": {"axis": -1} if layer["op"] == "Softmax" else {},
        }
        for layer in layers
    ]
    constants = {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in arrays.items()}
    return {"nodes": nodes, "inputs": ["x"], "outputs": [layers[-1]["name"]], "constants": constants}


def parameters(path: str, emit: Emit, *, trust: bool) -> dict[str, Any]:
    """Every array of the archive."""
    for name, array in _read(path)[1].items():
        emit(name, array)
    return {}


def edit(path: str, edits: Sequence[Mapping[str, Any]], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
    """Write a copy with other parameters."""
    layers, stored = _read(path)
    for change in edits:
        if change["kind"] != "set-parameter" or change["parameter"] not in stored:
            raise Unsupported(f"a .npznet takes no {change['kind']} at {change.get('parameter')}")
        if sum(change["parameter"] in layer.get("parameters", []) for layer in layers) > 1:
            raise Unsupported(f"several layers share '{change['parameter']}'")
        stored[change["parameter"]] = np.asarray(arrays[change["array"]], np.float32)
    save(out, layers, stored)
    return {"notes": []}


def _read(path: str) -> tuple[list[dict[str, Any]], Arrays]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        layers = json.loads(str(arrays.pop(LAYERS)))
        lost = [name for layer in layers for name in layer.get("parameters", []) if name not in arrays]
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError) as error:
        raise BadModel(f"{Path(path).name} is no whole .npznet archive: {error}") from error
    if lost or not layers:
        raise BadModel(f"{Path(path).name} lacks {lost[0] if lost else 'its layers'}")
    return layers, arrays


def _values(layers: Sequence[Mapping[str, Any]], arrays: Arrays, given: Arrays, precision: str, variant: str) -> Arrays:
    """Every value of one run, `computed NAME` beside it: they differ where the value is given."""
    dtype = np.dtype(precision)
    values = {name: np.asarray(array, dtype) for name, array in given.items()}
    for layer in layers:
        if layer["op"] not in OPERATORS:
            raise Unsupported(f".npznet has no operator {layer['op']}")
        if not all(name in values for name in layer["inputs"]):
            continue
        operands = [values[name] for name in layer["inputs"]]
        operands += [np.asarray(arrays[name], dtype) for name in layer.get("parameters", [])]
        made = OPERATORS[layer["op"]](*operands) if layer["op"] != "MatMul" else _product(*operands, variant=variant)
        values[f"computed {layer['name']}"] = made
        values.setdefault(layer["name"], made)
    return values


def _product(x: np.ndarray, kernel: np.ndarray, *, variant: str) -> np.ndarray:
    """The variant sums from the other end: as right, rounded otherwise."""
    return x @ kernel if variant == "default" else x[..., ::-1].copy() @ kernel[::-1].copy()


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


OPERATORS: dict[str, Any] = {
    "MatMul": np.matmul,
    "Add": np.add,
    "Relu": lambda x: np.maximum(x, 0),
    "Tanh": np.tanh,
    "Softmax": _softmax,
}
