"""ONNX: recognise, describe, run and look inside models with ONNX Runtime on the CPU.

Which runs count as equally right: ONNX Runtime with and without its optimiser and with one thread, and onnx's own
reference evaluator where it agrees roughly with them. They can disagree for another reason than arithmetic: an
optimiser or a kernel that is wrong. Whoever builds a noise floor on the variants must treat a gross difference
between them as a finding about the runtime.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import (
    _onnx_cut,
    _onnx_edit_kinds,
    _onnx_file,
    _onnx_passes,
    _onnx_precision,
    _onnx_replay,
    _onnx_run,
    _onnx_trace,
)
from trueport.frameworks._base import (
    Arrays,
    BadModel,
    EditDict,
    Emit,
    GraphDict,
    NodeDict,
    RunResult,
    SignatureDict,
    SpecDict,
    Unsupported,
)

NAME = "onnx"
FORMATS = {"onnx": "onnx"}
SUFFIXES = {"onnx": ".onnx"}
VARIANTS = _onnx_replay.VARIANTS
PRECISIONS = ("float32", "float64", "float16", "int8-dynamic", "int8")
EDITS = tuple(_onnx_edit_kinds.KINDS)
EDIT_FILES = (
    "_onnx_file",
    "_onnx_edit_recorded",
    "_onnx_edit",
    "_onnx_edit_grid",
    "_onnx_edit_write",
    "_onnx_edit_job",
    "_onnx_edit_parameters",
    "_onnx_edit_nodes",
    "_onnx_edit_interface",
    "_onnx_edit_precision",
    "_onnx_edit_kinds",
)

_CARRIES_INDICES = {
    "Cast": (0,),
    "Identity": (0,),
    "Unsqueeze": (0,),
    "Squeeze": (0,),
    "Reshape": (0,),
    "Flatten": (0,),
    "Transpose": (0,),
    "Expand": (0,),
    "Slice": (0,),
    "Tile": (0,),
    "Split": (0,),
    "Clip": (0,),
    "Concat": None,
    "Where": (1, 2),
}
"""Operators whose result holds the same integers as these inputs (None: all of them)."""
_NATIVE = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul", "BiasGelu": "Gelu", "FastGelu": "Gelu"}
"""com.microsoft operators that an optimised model holds -> the ONNX operator they compute."""
_SMALL = 16
"""Attribute tensors of up to this many elements are shown with their values."""


def sniff(head: bytes, path: Path) -> str | None:
    """Return "onnx" when the bytes are those of an ONNX ModelProto; the suffix plays no part."""
    return "onnx" if _onnx_file.looks_like_model(head) else None


def signature(path: str, *, trust: bool) -> SignatureDict:
    """Load the model in ONNX Runtime and describe it.

    Raises BadModel (damaged, external data missing or outside its folder), Unsupported (an operator without a kernel,
    a newer opset or IR version, inputs or outputs that are no tensors).
    """
    model = _onnx_file.read(path)
    made = _session(path, _onnx_file.modified(path), "default")
    limits = _index_limits(model.graph)
    inputs = [_spec("input", item) for item in made.get_inputs()]
    for spec in inputs:
        if spec["name"] in limits:
            spec["minimum"], spec["maximum"] = 0, limits[spec["name"]] - 1
    return {
        "inputs": inputs,
        "outputs": [_spec("output", item) for item in made.get_outputs()],
        "meta": _meta(model, path),
    }


@functools.lru_cache(maxsize=4)
def _session(path: str, changed: int, variant: str) -> Any:
    return _onnx_run.session(path, variant)


def _spec(what: str, item: Any) -> SpecDict:
    shape = [size if isinstance(size, str) or (size is not None and size >= 0) else None for size in item.shape or []]
    return {"name": item.name, "dtype": _onnx_run.tensor_dtype(what, item.name, item.type), "shape": shape}


def _meta(model: Any, path: str) -> dict[str, Any]:
    operators = Counter(_native_name(node) for node in _onnx_file.nodes(model))
    opsets = _onnx_file.opsets(model)
    return {
        "opset": opsets.get(""),
        "opsets": {domain or "ai.onnx": version for domain, version in opsets.items()},
        "ir_version": model.ir_version,
        "producer": model.producer_name,
        "producer_version": model.producer_version,
        "precision": _onnx_precision.declared(model),
        "operators": dict(operators.most_common()),
        "parameters": _count_parameters(model),
        "external_data": _onnx_file.external_files(model, path),
    }


def _count_parameters(model: Any) -> int:
    """Elements of all stored tensors except shapes, indices, flags and texts (int64, bool, str)."""
    skipped = ("int64", "bool", "str")
    return sum(
        int(np.prod(tensor.dims, dtype=np.int64))
        for tensor in _onnx_file.tensors(model)
        if _onnx_file.dtype_name(tensor.data_type) not in skipped
    )


def _index_limits(graph: Any) -> dict[str, int]:
    """Graph input -> size of the smallest constant table that it indexes through Gather, subgraphs included."""
    tables = {name: list(tensor.dims) for name, tensor in _onnx_file.constants(graph).items()}
    origins = {item.name: {item.name} for item in graph.input if item.name not in tables}
    limits: dict[str, int] = {}
    _follow_indices(graph, tables, origins, limits)
    return limits


def _follow_indices(
    graph: Any, tables: dict[str, list[int]], origins: dict[str, set[str]], limits: dict[str, int]
) -> None:
    """Walk a graph in order: `tables` and `origins` (value -> graph inputs whose integers it holds) grow on the way."""
    for node in graph.node:
        if node.op_type in ("Identity", "Cast", "DequantizeLinear") and node.input[0] in tables:
            tables[node.output[0]] = tables[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in tables:
            axis = _onnx_file.attributes(node).get("axis", 0)
            for name in origins.get(node.input[1], ()):
                limits[name] = min(tables[node.input[0]][axis], limits.get(name, 2**62))
        elif node.op_type in _CARRIES_INDICES:
            slots = _CARRIES_INDICES[node.op_type]
            sources = [name for place, name in enumerate(node.input) if slots is None or place in slots]
            held = set().union(*(origins.get(name, set()) for name in sources))
            origins.update({name: held for name in node.output if held})
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                own = {name: list(tensor.dims) for name, tensor in _onnx_file.constants(inner).items()}
                _follow_indices(inner, {**tables, **own}, dict(origins), limits)


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, RunResult]:
    """Run every case. Inputs are cast to the model's dtypes; float64 results stay float64.

    Raises Unsupported when this precision or variant cannot evaluate the model (see `_onnx_run.check_reference`), and
    ValueError when a case lacks an input.
    """
    if precision not in PRECISIONS or variant not in VARIANTS:
        raise Unsupported(f"ONNX models are not evaluated as '{precision}' in variant '{variant}'")
    return {name: _run_case(path, arrays, precision, variant) for name, arrays in cases.items()}


def _run_case(path: str, arrays: Arrays, precision: str, variant: str) -> RunResult:
    changed = _onnx_file.modified(path)
    if precision == "int8":
        return _run_int8(path, arrays, variant)
    loaded = _runner(path, changed, variant, precision)
    if not loaded.second_opinion:
        return _onnx_run.run_case(loaded.runner, arrays)
    _guard_effort(path, arrays)
    expected = _onnx_run.run_case(_runner(path, changed, "no-optimization", "float32").runner, arrays)
    got = _onnx_run.run_case(loaded.runner, arrays)
    _onnx_run.check_reference(expected, got)
    return got


class _Loaded:
    """A runner, and whether its result must be checked against ONNX Runtime's."""

    def __init__(self, runner: _onnx_run.Runner, *, second_opinion: bool = False) -> None:
        self.runner = runner
        self.second_opinion = second_opinion


@functools.lru_cache(maxsize=4)
def _runner(path: str, changed: int, variant: str, precision: str) -> _Loaded:
    """Load once per file, variant and precision."""
    if precision == "float64":
        return _double_runner(path, variant)
    if precision == "float32" and variant != "reference":
        return _Loaded(_onnx_run.wrap(_session(path, changed, variant)))
    model = None if precision == "float32" else _onnx_precision.rounded_weights(path, precision)
    if variant != "reference":
        return _Loaded(_onnx_run.runner(path, variant, model=model))
    inputs = _onnx_run.wrap(_session(path, _onnx_file.modified(path), "no-optimization")).inputs
    return _Loaded(_onnx_run.reference_runner(model or _onnx_file.with_data(path), inputs), second_opinion=True)


def _double_runner(path: str, variant: str) -> _Loaded:
    """ONNX Runtime where it has every kernel in float64, else the reference evaluator."""
    model = _onnx_precision.as_double(path)
    single = _onnx_run.wrap(_session(path, _onnx_file.modified(path), "no-optimization")).inputs
    inputs = {name: "float64" if dtype.startswith("float") else dtype for name, dtype in single.items()}

    def reference() -> _onnx_run.Runner:
        return _onnx_run.reference_runner(model, inputs)

    def compiled() -> _onnx_run.Runner:
        # Without the optimiser, so that no fusion brings a float32 kernel back.
        return _onnx_run.runner(path, "no-optimization", model=model)

    chosen = reference() if variant == "reference" else _onnx_run.first_that_runs(compiled, reference)
    return _Loaded(chosen, second_opinion=True)


def _run_int8(path: str, arrays: Arrays, variant: str) -> RunResult:
    """Round weights, then activations to the ranges they have on these very inputs; the grid is the case's own."""
    if variant == "reference":
        raise Unsupported("the simulation of int8 runs in ONNX Runtime only")
    loaded = _runner(path, _onnx_file.modified(path), "no-optimization", "float32").runner
    prepared = _onnx_run.prepare(loaded.inputs, arrays)
    ranges = _onnx_precision.activation_ranges(path, prepared)
    model, renamed = _onnx_precision.rounded_activations(_onnx_precision.rounded_weights(path, "int8"), ranges)
    # The optimiser stays off whatever the variant: it would cancel the addition that rounds.
    made = _onnx_run.runner(path, "no-optimization", model=model)
    return _onnx_run.run_case(made, {renamed.get(name, name): array for name, array in prepared.items()})


def _guard_effort(path: str, arrays: Arrays) -> None:
    """Refuse the slow evaluator for models that would keep it busy for minutes."""
    effort = _multiplications(path, arrays)
    if effort > _onnx_run.MAX_MULTIPLICATIONS:
        raise Unsupported(
            f"about {effort:.1e} multiplications are too many for the reference evaluator "
            f"(at most {_onnx_run.MAX_MULTIPLICATIONS:.0e}); give fewer samples"
        )


def _multiplications(path: str, arrays: Arrays) -> float:
    """Estimate the multiply-adds of all runs: elements of a result times the weights that make one of them."""
    graph = _onnx_file.read(path).graph
    stored = _onnx_file.constants(graph)
    shown = _onnx_cut.exposed(path)
    # Activation times activation (attention) is not counted: its inner size is not in the file.
    heavy: dict[str, float] = {}
    for node in graph.node:
        weights = [list(stored[name].dims) for name in node.input if name in stored and len(stored[name].dims) > 1]
        if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm") and weights and node.output[0] in shown:
            turned = node.op_type == "Gemm" and _onnx_file.attributes(node).get("transB", 0)
            channel = {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, 0 if turned else -1)
            heavy[node.output[0]] = float(np.prod(weights[0])) / max(1, weights[0][channel])
    counts = _onnx_trace.sizes(path, arrays, list(heavy)) if heavy else {}
    return sum(counts[name] * each for name, each in heavy.items())


def names(path: str, *, trust: bool) -> list[str]:
    """Every node output that is a tensor, in the file's order (ONNX demands a topological one), outputs included."""
    return list(_onnx_cut.exposed(path))


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int, trust: bool) -> dict[str, Any]:
    """Run without optimisation and emit each wanted value [R, *shape].

    Returns {"runs", "windows", "skipped"}; skipped are the values whose shape differs between runs.
    """
    return _onnx_trace.trace(path, inputs, wanted, emit, budget=budget)


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
    """Emit each wanted value [R, *shape] as the model computes it with the values `given` put in; also stored tensors.

    Returns {"skipped": name -> why}: what an operator refused to compute from the shapes given, or came out in
    shapes that differ between runs. `variant` "" runs without optimisation, as `trace` does.
    """
    return _onnx_replay.replay(path, inputs, given, wanted, emit, variant=variant, budget=budget)


def passes(path: str, given: Mapping[str, Sequence[int]], wanted: str, *, trust: bool) -> dict[str, list[str]]:
    """List variants for `replay` that tell which optimiser pass is wrong: {"levels": [..], "passes": ["without:NAME"]}.

    given: name -> shape of one run of the values that are put in; wanted: the value that the default variant gets wrong.
    """
    return _onnx_passes.candidates(path, given, wanted)


def graph(path: str, *, trust: bool) -> GraphDict:
    """The main graph. An omitted optional input is "" where it stands before a given one, so that positions keep their meaning."""
    model = _onnx_file.read(path)
    stored = _onnx_file.constants(model.graph)
    constants = {
        name: {"dtype": _onnx_file.dtype_name(tensor.data_type), "shape": list(tensor.dims)}
        for name, tensor in stored.items()
    }
    for sparse in model.graph.sparse_initializer:
        constants[sparse.values.name] = {
            "dtype": _onnx_file.dtype_name(sparse.values.data_type),
            "shape": list(sparse.dims),
        }
    return {
        "nodes": [_node(node) for node in model.graph.node],
        "inputs": [item.name for item in model.graph.input if item.name not in constants],
        "outputs": [item.name for item in model.graph.output],
        "constants": constants,
    }


def _native_name(node: Any) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _node(node: Any) -> NodeDict:
    inputs = list(node.input)
    while inputs and not inputs[-1]:
        inputs.pop()
    outputs = [name for name in node.output if name]
    return {
        "name": node.name or (outputs[0] if outputs else ""),
        "op": _NATIVE.get(node.op_type, node.op_type),
        "native_op": _native_name(node),
        "inputs": inputs + [name for name in _onnx_file.captured(node) if name not in inputs],
        "outputs": outputs,
        "attributes": {name: _plain(value) for name, value in _onnx_file.attributes(node).items()},
    }


def _plain(value: Any) -> Any:
    """Turn an attribute into JSON: small tensors become lists, large ones their dtype and shape, graphs their size."""
    from onnx import GraphProto, SparseTensorProto, TensorProto, TypeProto, numpy_helper

    if isinstance(value, TensorProto):
        shown: dict[str, Any] | None = {
            "dtype": _onnx_file.dtype_name(value.data_type),
            "shape": list(value.dims),
        }
        if np.prod(value.dims, dtype=np.int64) <= _SMALL and not value.external_data:
            array = numpy_helper.to_array(value)
            if array.dtype.kind in "biuf":
                return array.tolist()
        return shown
    if isinstance(value, SparseTensorProto):
        return {"dtype": _onnx_file.dtype_name(value.values.data_type), "shape": list(value.dims)}
    if isinstance(value, GraphProto):
        return {"graph": value.name, "nodes": len(value.node)}
    if isinstance(value, TypeProto):
        return {"type": str(value).strip()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def parameters(path: str, emit: Emit, *, trust: bool) -> dict[str, Any]:
    """Emit every constant of the main graph under its name in `graph`; sparse ones densely. Returns {"count"}."""
    from onnx import numpy_helper

    model = _onnx_file.read(path)
    folder = str(Path(path).parent)
    stored = _onnx_file.constants(model.graph)
    for name, tensor in stored.items():
        emit(name, np.asarray(numpy_helper.to_array(tensor, folder)))
    for sparse in model.graph.sparse_initializer:
        values = numpy_helper.to_array(sparse.values, folder)
        dense = np.zeros(list(sparse.dims), dtype=values.dtype)
        places = numpy_helper.to_array(sparse.indices, folder)
        if places.ndim == 1:
            dense.reshape(-1)[places] = values
        else:
            dense[tuple(places.T)] = values
        emit(sparse.values.name, dense)
    return {"count": len(stored) + len(model.graph.sparse_initializer)}


def edit(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
    """Write a copy of the model at `out` with the edits applied; its side files are copied beside it.

    Returns {"notes"}. Raises Unsupported when an edit cannot be written, or when ONNX Runtime does not load the result,
    which is then removed.
    """
    notes = _onnx_edit_kinds.apply(path, edits, arrays, out)
    try:
        _onnx_run.session(out, "default")
    except (BadModel, Unsupported) as error:
        Path(out).unlink(missing_ok=True)
        said = str(error.__cause__ or error).replace(out, "it").strip().splitlines()
        raise Unsupported(f"the model does not load with these edits: {said[0] if said else error}") from None
    return {"notes": notes}
