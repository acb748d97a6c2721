"""TVM (Relax): recognise, describe, run and look inside models that TVM's frontends made.

TVM has no file format for a module before compilation, so this one is ours: see `_tvm_file.py`. The module is compiled
with LLVM for the CPU when it is loaded. Value names are those of the module's variables; a node goes by the name of
its first output. Values inside are those of a module whose every operator is compiled with its result kept.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import _tvm_file, _tvm_run, _tvm_view
from trueport.frameworks._base import (
    Arrays,
    EditDict,
    Emit,
    GraphDict,
    RunResult,
    SignatureDict,
    Unsupported,
)

NAME = "tvm"
FORMATS = {"tvm": "tvm"}
SUFFIXES = {"tvm": ".tvm"}
VARIANTS = _tvm_run.VARIANTS
PRECISIONS = ("float32",)
EDITS = ("set-parameter", "set-attribute")
EDIT_FILES = ("_tvm_file", "_tvm_view", "_tvm_ops", "_tvm_edit")


def sniff(head: bytes, path: Path) -> str | None:
    """Recognise the zip whose first member is our header."""
    return "tvm" if _tvm_file.is_model(head) else None


def signature(path: str, *, trust: bool) -> SignatureDict:
    """Describe inputs and outputs. Raises BadModel, Untrusted, Unsupported."""
    model = _tvm_file.read(path, trust=trust)
    view = _view(path, trust=trust)
    counts = Counter(_tvm_view.operator_name(step.call) for step in view.steps)
    weights = [array for array in view.constants.values() if array.dtype.kind == "f"]
    kinds = Counter(str(array.dtype) for array in weights)
    return {
        "inputs": model.inputs,
        "outputs": model.outputs,
        "meta": {
            "producer": f"TVM {model.facts['tvm']}",
            "precision": kinds.most_common(1)[0][0] if kinds else "float32",
            "operators": dict(counts.most_common()),
            "parameters": sum(int(array.size) for array in weights),
            "functions": sorted(name.name_hint for name in model.module.functions),
            "calls_by_name": list(model.foreign),
        },
    }


def _view(path: str, *, trust: bool) -> _tvm_view.View:
    _tvm_file.read(path, trust=trust)
    return _cached_view(path, _tvm_file.stat(path), trust)


@functools.lru_cache(maxsize=2)
def _cached_view(path: str, modified: int, trust: bool) -> _tvm_view.View:
    return _tvm_view.View(_tvm_file.read(path, trust=trust))


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, RunResult]:
    """Run every case, R calls each.

    Raises ValueError when an input is missing, unknown or of a shape that the model does not take; Unsupported for
    another precision and for an operator that TVM cannot compile.
    """
    if precision not in PRECISIONS:
        raise Unsupported(f"TVM computes a module in its own precision; it cannot run it in {precision}")
    _known(variant)
    model = _tvm_file.read(path, trust=trust)
    names = [spec["name"] for spec in model.outputs]
    call = _tvm_run.compiled(path, _tvm_file.stat(path), variant, trust)
    return {case: _tvm_run.run_rows(call, _tvm_run.checked(model, given), names) for case, given in cases.items()}


def _known(variant: str) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant '{variant}'; known are {', '.join(VARIANTS)}")


def names(path: str, *, trust: bool) -> list[str]:
    """Every computed tensor in execution order, outputs included."""
    return _view(path, trust=trust).traceable()


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int, trust: bool) -> dict[str, Any]:
    """Emit each wanted value [R, *shape]. Returns {"skipped": name -> why}."""
    _tvm_run.checked(_tvm_file.read(path, trust=trust), inputs)
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

    Raises ValueError for an unknown name or a missing input, Unsupported where the function cannot be cut.
    """
    if variant:
        _known(variant)
    view = _view(path, trust=trust)
    known = {spec["name"] for spec in view.model.inputs}
    fed = {view.number_of[name]: np.asarray(array) for name, array in inputs.items() if name in known}
    copied = dict(view.copies())
    put_in = {view.number(name): np.asarray(array) for name, array in given.items() if name not in copied}
    counts = {len(array) for array in [*fed.values(), *put_in.values()]}
    if len(counts) > 1:
        raise ValueError(f"the values given to {path} hold different numbers of runs: {sorted(counts)}")
    asked = {name: view.number(name) for name in dict.fromkeys(wanted)}
    runs = counts.pop() if counts else 1
    _emit_known(view, {n: name for name, n in asked.items() if name not in copied}, fed, runs, emit)
    aliases = {name: number for name, number in asked.items() if name in copied}
    if aliases:
        _emit_copies(view, aliases, {**fed, **put_in}, runs, emit, variant=variant, budget=budget)
    computed = [number for name, number in asked.items() if name not in copied and number in view.producer]
    if not computed:
        return {"skipped": {}}
    skipped = _tvm_run.replay_rows(view, {**fed, **put_in}, computed, variant, budget, emit)
    return {"skipped": _tvm_run.with_names(skipped, view)}


def _emit_known(
    view: _tvm_view.View, asked: Mapping[int, str], fed: Mapping[int, np.ndarray], runs: int, emit: Emit
) -> None:
    """Emit wanted values that nothing computes: inputs and constants."""
    for number, name in asked.items():
        if number in view.constants:
            emit(name, np.repeat(view.constants[number][None], runs, axis=0))
        elif number in view.inputs:
            if number not in fed:
                raise ValueError(f"{view.model.path} needs a value for its input '{name}'")
            emit(name, fed[number])


def _emit_copies(
    view: _tvm_view.View,
    aliases: Mapping[str, int],
    fed: Mapping[int, np.ndarray],
    runs: int,
    emit: Emit,
    *,
    variant: str,
    budget: int,
) -> None:
    """Emit outputs that are another value once more, from what that value is given as or computed as."""
    for name, number in aliases.items():
        if number in fed:
            emit(name, fed[number])
        elif number in view.constants:
            emit(name, np.repeat(view.constants[number][None], runs, axis=0))
        else:
            _tvm_run.replay_rows(view, fed, [number], variant, budget, _renaming(emit, name))


def _renaming(emit: Emit, name: str) -> Emit:
    return lambda _, array: emit(name, array)


def graph(path: str, *, trust: bool) -> GraphDict:
    """The operators of `main`; attributes in ONNX's words (see `_tvm_ops.py`)."""
    return _view(path, trust=trust).graph()


def parameters(path: str, emit: Emit, *, trust: bool) -> dict[str, Any]:
    """Emit every constant array under its name in `graph`."""
    for name, array in _view(path, trust=trust).arrays().items():
        emit(name, array)
    return {}


def edit(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
    """Write a copy of the model with the edits applied. Raises Unsupported when one cannot be written or does not compile."""
    from trueport.frameworks import _tvm_edit

    _tvm_file.read(path, trust=trust)
    notes = _tvm_edit.apply(path, edits, arrays, out)
    try:
        _tvm_run.compiled(out, _tvm_file.stat(out), VARIANTS[0], trust)
    except Unsupported:
        Path(out).unlink(missing_ok=True)
        raise
    return {"notes": notes}
