"""PyTorch: exported programs (`.pt2`), TorchScript (`.pt`), and models made by a factory of the user's.

This file is the contract; `_torch_archive` tells files apart, `_torch_program` and `_torch_script` know one format
each, `_torch_factory` turns `package.module:factory` and a checkpoint into a file of one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import _torch_archive, _torch_edit
from trueport.frameworks._base import Arrays, BadModel, EditDict, Emit, GraphDict, RunResult, SignatureDict, Unsupported
from trueport.frameworks._torch_archive import checkpoint_kind
from trueport.frameworks._torch_factory import materialise
from trueport.frameworks._torch_values import PRECISIONS, VARIANTS, check_feeds, collect, settings, stand_in, to_numpy

__all__ = [
    "EDITS",
    "EDIT_FILES",
    "FORMATS",
    "GRANULARITIES",
    "NAME",
    "PRECISIONS",
    "SUFFIXES",
    "VARIANTS",
    "checkpoint_kind",
    "edit",
    "graph",
    "materialise",
    "names",
    "parameters",
    "replay",
    "run",
    "signature",
    "sniff",
    "trace",
]

NAME = "torch"
FORMATS = {"pytorch": "torch", "torchscript": "torch"}
GRANULARITIES = ("native", "decomposed")
"""Views of an exported program: its own operators, and those taken apart (see `_torch_decompose`)."""
SUFFIXES = {"pytorch": ".pt2", "torchscript": ".pt"}
EDITS = tuple(_torch_edit.KINDS)
EDIT_FILES = (
    "_torch_values",
    "_torch_ops",
    "_torch_attributes",
    "_torch_archive",
    "_torch_view",
    "_torch_widen",
    "_torch_program",
    "_torch_editor",
    "_torch_emit_values",
    "_torch_emit_shapes",
    "_torch_emit",
    "_torch_set",
    "_torch_edit_graph",
    "_torch_edit",
)
"""The writers of edits, and what they read a program with: names are those of `graph`, so it is the same reader."""


def sniff(head: bytes, path: Path) -> str | None:
    """Tell this framework's formats; a checkpoint is none (see `checkpoint_kind`)."""
    return _torch_archive.sniff(head, path)


def _format(path: str) -> str:
    with Path(path).open("rb") as file:
        head = file.read(64 * 1024)
    found = _torch_archive.sniff(head, Path(path))
    if found is not None:
        return found
    if checkpoint_kind(head, Path(path)) is not None:
        raise BadModel(
            f"{path} holds only weights: name the architecture as package.module:factory and give this file with --checkpoint"
        )
    raise BadModel(f"{path} is neither an exported program (.pt2) nor TorchScript (.pt)")


@lru_cache(maxsize=2)
def _cached(path: str, stamp: tuple[int, int], precision: str, trust: bool) -> Any:
    from trueport.frameworks._torch_program import Program, load
    from trueport.frameworks._torch_script import Script

    if _format(path) == "torchscript":
        return Script(path, precision)
    return Program(load(path, trust=trust), precision)


def _model(path: str, trust: bool, precision: str = "float32") -> Any:
    """The loaded model (a Program or a Script), kept for the next call."""
    if precision not in PRECISIONS:
        raise Unsupported(f"precision {precision}: this framework evaluates in {', '.join(PRECISIONS)}")
    info = Path(path).stat()
    return _cached(path, (info.st_mtime_ns, info.st_size), precision, trust)


@lru_cache(maxsize=2)
def _cached_finer(path: str, stamp: tuple[int, int], trust: bool) -> Any:
    from trueport.frameworks._torch_decompose import decompose

    return decompose(_cached(path, stamp, "float32", trust))


def _seen(path: str, trust: bool, granularity: str) -> Any:
    """The loaded model at one of GRANULARITIES. Raises Unsupported where it has no such view."""
    if granularity not in GRANULARITIES:
        raise Unsupported(f"granularity {granularity}: a model is seen as {' or '.join(GRANULARITIES)}")
    model = _model(path, trust)
    if granularity == "native":
        return model
    if _is_script(model):
        raise Unsupported("a TorchScript model has no finer view; give the exported program (.pt2)")
    info = Path(path).stat()
    return _cached_finer(path, (info.st_mtime_ns, info.st_size), trust)


def _is_script(model: Any) -> bool:
    return type(model).__name__ == "Script"


def signature(path: str, *, trust: bool) -> SignatureDict:
    """Load the model and describe it. Raises BadModel, Untrusted, Unsupported."""
    model = _model(path, trust)
    if _is_script(model):
        return model.signature()  # type: ignore[no-any-return]
    version = _torch_archive.written_by(_torch_archive.read_program(path))
    return model.signature(version)  # type: ignore[no-any-return]


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, RunResult]:
    """Run every case; see the contract. Raises ValueError for feeds that do not fit, Unsupported for the precision."""
    model = _model(path, trust, precision)
    results = {}
    with settings(variant, double=precision == "float64"):
        for case, inputs in cases.items():
            results[case] = _run_case(model, inputs, precision)
    return results


def _run_case(model: Any, inputs: Arrays, precision: str) -> RunResult:
    if _is_script(model):
        rows = [model.evaluate(row) for row in _rows(inputs, check_feeds(model.inputs, inputs, {}))]
        found = list(rows[0]) if rows else []
        if any(list(row) != found for row in rows):
            raise Unsupported("the TorchScript model returns different outputs from run to run")
        result = collect(found, [list(row.values()) for row in rows])
        if precision == "float64":
            _demand_float64(result)
        return result
    rows = list(_rows(inputs, check_feeds(model.specs, inputs, model.ranges())))
    outputs = model.evaluate_int8(rows) if precision == "int8" else [model.evaluate(row) for row in rows]
    return collect([name for _, name in model.outputs], outputs)


def _demand_float64(result: RunResult) -> None:
    for name, value in result.items():
        for array in [value] if isinstance(value, np.ndarray) else value:
            if array.dtype.kind == "f" and array.dtype != np.float64:
                raise Unsupported(f"float64: the output '{name}' is {array.dtype.name}; the model casts inside")


def _rows(inputs: Arrays, runs: int) -> Iterator[dict[str, np.ndarray]]:
    return ({name: np.asarray(array[index]) for name, array in inputs.items()} for index in range(runs))


def names(path: str, *, trust: bool, granularity: str = "native") -> list[str]:
    """Names of all values that `trace` can give. For TorchScript these are the outputs alone."""
    model = _seen(path, trust, granularity)
    if _is_script(model):
        return [spec["name"] for spec in model.signature()["outputs"]]
    return model.names()  # type: ignore[no-any-return]


def trace(
    path: str,
    inputs: Arrays,
    wanted: Sequence[str],
    emit: Emit,
    *,
    budget: int,
    trust: bool,
    granularity: str = "native",
) -> dict[str, Any]:
    """Run and emit each wanted value [R, *shape]; returns {"windows", "skipped": name -> why}.

    A first run measures sizes; then as many values at a time as fit into `budget` bytes, all R runs per window.
    """
    model = _seen(path, trust, granularity)
    with settings(VARIANTS[0]):
        if _is_script(model):
            rows = list(_rows(inputs, check_feeds(model.inputs, inputs, {})))

            def record(row: Mapping[str, np.ndarray], keep: set[str] | None) -> dict[str, np.ndarray]:
                values = {name: to_numpy(value) for name, value in model.evaluate(row).items()}
                return {n: v for n, v in values.items() if v is not None and (keep is None or n in keep)}
        else:
            rows = list(_rows(inputs, check_feeds(model.specs, inputs, model.ranges())))

            def record(row: Mapping[str, np.ndarray], keep: set[str] | None) -> dict[str, np.ndarray]:
                return _record(model, row, keep)

        return _windows(rows, list(wanted), emit, budget, record)


def _record(model: Any, row: Mapping[str, np.ndarray], keep: set[str] | None) -> dict[str, np.ndarray]:
    """Values of one run by name: those in `keep`; for None, zero-stride stand-ins that only tell shape and dtype."""
    import torch

    found: dict[str, np.ndarray] = {}

    def take(name: str, value: Any) -> None:
        if not isinstance(value, torch.Tensor) or (keep is not None and name not in keep):
            return
        array = to_numpy(value) if keep is not None else stand_in(value)
        if array is not None:
            found[name] = array

    def hook(node: Any, value: Any) -> Any:
        if node.op == "call_function" and node not in model.aliases:
            if isinstance(value, (tuple, list)):
                for index, item in enumerate(value):
                    take(model.name_of(node, index), item)
            else:
                take(model.name_of(node), value)
        return value

    outputs = model.evaluate(row, hook)
    for (_, name), value in zip(model.outputs, outputs):
        if name not in found:
            take(name, value)
    return found


def _windows(rows: Sequence[Any], wanted: list[str], emit: Emit, budget: int, record: Any) -> dict[str, Any]:
    if not rows or not wanted:
        return {"windows": 0, "skipped": {}}
    sizes = {name: value.size * value.dtype.itemsize * len(rows) for name, value in record(rows[0], None).items()}
    skipped = {name: "it is not a tensor that this model computes" for name in wanted if name not in sizes}
    windows: list[list[str]] = []
    room = 0
    for name in wanted:
        if name in skipped:
            continue
        if not windows or sizes[name] > room:
            windows.append([])
            room = budget
        windows[-1].append(name)
        room -= sizes[name]
    for window in windows:
        values = [record(row, set(window)) for row in rows]
        for name in window:
            arrays = [value.pop(name) for value in values]
            if len({array.shape for array in arrays}) == 1:
                emit(name, np.stack(arrays))
            else:
                skipped[name] = "its shape differs from run to run"
    return {"windows": len(windows), "skipped": skipped}


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
    granularity: str = "native",
) -> dict[str, Any]:
    """Run with the values in `given` put in; see the contract. A value whose operator fails on them is skipped.

    Raises Unsupported for TorchScript, ValueError for a name that is no value and for an input that is missing.
    """
    from trueport.frameworks._torch_replay import Cut, rows_of

    model = _seen(path, trust, granularity)
    if _is_script(model):
        raise Unsupported("the values inside a TorchScript model cannot be reached; give the exported program (.pt2)")
    cut = Cut(model, list(given), wanted)
    read = [spec["name"] for spec in cut.inputs]
    runs = rows_of(inputs, given, read)
    fed = {name: inputs[name] for name in read}
    check_feeds(cut.inputs, fed, {})
    rows = [({n: a[i] for n, a in fed.items()}, {n: a[i] for n, a in given.items()}) for i in range(runs)]

    def record(row: tuple[Arrays, Arrays], keep: set[str] | None) -> dict[str, np.ndarray]:
        return cut.run(*row, keep)

    with settings(variant or VARIANTS[0]):
        reply = _windows(rows, list(wanted), emit, budget, record)
    why = next(iter(cut.failed.values()), "")
    return {"skipped": {name: why if why and name in cut.wanted else text for name, text in reply["skipped"].items()}}


def graph(path: str, *, trust: bool, granularity: str = "native") -> GraphDict:
    """The read-only view of the graph."""
    return _seen(path, trust, granularity).graph()  # type: ignore[no-any-return]


def parameters(path: str, emit: Emit, *, trust: bool, granularity: str = "native") -> dict[str, Any]:
    """Emit every constant array under its name in `graph`; returns {"count"}."""
    model = _seen(path, trust, granularity)
    if _is_script(model):
        tensors = dict(model.module.named_parameters())
        tensors.update(model.module.named_buffers())
        known = {name: tensors[name] for name in model.graph()["constants"]}
    else:
        known = {model.targets[name]: value for name, value in model.constants.items()}
    count = 0
    for name, value in known.items():
        array = to_numpy(value)
        if array is not None:
            emit(name, array)
            count += 1
    return {"count": count}


def edit(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
    """Write a copy of an exported program at `out` with the edits applied; see the contract.

    The copy is loaded and run once. Raises Unsupported where an edit cannot be written, and for TorchScript.
    """
    if _format(path) == "torchscript":
        raise Unsupported(
            "a TorchScript file cannot be edited, because it holds code and no graph with weights by name; "
            "export the original model with torch.export.save (.pt2)"
        )
    reply = _torch_edit.apply(path, edits, arrays, out, trust=trust)
    try:
        _run_once(out, trust)
    except Exception as error:
        Path(out).unlink(missing_ok=True)
        raise Unsupported(f"the edited program does not run: {_first_line(error)}") from error
    return reply


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _run_once(path: str, trust: bool) -> None:
    """Run on random inputs of the smallest sizes that the program takes."""
    described = signature(path, trust=trust)
    least = {symbol: max(1, low or 1) for symbol, (low, _) in described["meta"]["constraints"].items()}
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in described["inputs"]:
        shape = [1, *(size if isinstance(size, int) else least.get(str(size), 1) for size in spec["shape"] or [])]
        dtype = {"bfloat16": "float32"}.get(spec["dtype"], spec["dtype"])
        if dtype.startswith("float"):
            feeds[spec["name"]] = rng.normal(0.2, 1.0, shape).astype(dtype)
        else:
            low, high = spec.get("minimum", 0), spec.get("maximum", 1)
            feeds[spec["name"]] = rng.integers(low, high + 1, shape).astype(dtype)
    run(path, {"once": feeds}, precision="float32", variant=VARIANTS[0], trust=trust)
