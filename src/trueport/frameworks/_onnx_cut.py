"""Cuts ONNX models: a model that computes some values from some others, and holds only what that takes.

Each value put in becomes a graph input under its own name, so every reader sees it, subgraphs included; the output of
its producer is renamed, so what the producer computes can still be asked for. What nothing wanted depends on is never
copied, and large stored tensors are handed to the runtime in memory: to cut a model costs its structure.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trueport.frameworks import _onnx_file, _onnx_run

VARIANT = "no-optimization"
"""In which values are shown: every value still exists, and to show one changes no bit of another."""
COMPUTED = "trueport.computed/"
"""Before the name of a value that is put in: what its own producer makes."""
NUMBER = "trueport.number/"
"""Before the name of a value: one number about it (its size, its least element) in its place."""
_NODE = "trueport.node/"
_LARGE = 256
"""Stored tensors of more elements than this are handed to the runtime in memory."""


class Index(NamedTuple):
    """What the cuts of one file share. `reads[i]`: names that node i reads, those of its subgraphs included."""

    model: Any
    reads: list[tuple[str, ...]]
    stored: dict[str, Any]
    inputs: set[str]


def index(path: str) -> Index:
    """Return the index of a file; it is shared and must not be changed."""
    return _index(path, _onnx_file.modified(path))


@functools.lru_cache(maxsize=2)
def _index(path: str, changed: int) -> Index:
    model = _onnx_file.parsed(path)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored.update({sparse.values.name: sparse for sparse in graph.sparse_initializer})
    return Index(
        model=model,
        reads=[tuple(name for name in (*node.input, *_onnx_file.captured(node)) if name) for node in graph.node],
        stored=stored,
        inputs={item.name for item in graph.input if item.name not in stored},
    )


def exposed(path: str) -> dict[str, str]:
    """Name -> dtype of every value that can be shown, in execution order. Left out: sequences, maps, optionals, bfloat16."""
    return dict(_exposed(path, _onnx_file.modified(path)))


@functools.lru_cache(maxsize=4)
def _exposed(path: str, changed: int) -> tuple[tuple[str, str], ...]:
    graph = index(path).model.graph
    names = [name for node in graph.node for name in node.output if name]
    names += [item.name for item in graph.output]
    made = load(path, VARIANT, {}, list(dict.fromkeys(names)))
    kinds = [(item.name, item.type) for item in made.get_outputs()]
    return tuple((name, _onnx_run.DTYPES[kind]) for name, kind in kinds if kind in _onnx_run.DTYPES)


def dtypes(path: str) -> dict[str, str]:
    """Name -> dtype of everything that can be put in: stored tensors, inputs, and every value that can be shown."""
    return _dtypes(path, _onnx_file.modified(path))


@functools.lru_cache(maxsize=2)
def _dtypes(path: str, changed: int) -> dict[str, str]:
    graph = index(path).model.graph
    tensors = [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]
    kinds = {tensor.name: _onnx_file.dtype_name(tensor.data_type) for tensor in tensors}
    kinds.update({item.name: _onnx_file.dtype_name(item.type.tensor_type.elem_type) for item in graph.input})
    return {**kinds, **exposed(path)}


def load(
    path: str,
    variant: str,
    given: Mapping[str, Sequence[int] | None],
    wanted: Sequence[str],
    *,
    number: str = "Size",
    severity: int = 4,
) -> Any:
    """Load a cut (see `cut`) in ONNX Runtime; the large stored tensors are handed over in memory, not written out again."""
    stored = _stored(path, _onnx_file.modified(path))
    model = cut(path, given, wanted, number=number, without=stored)
    named = {tensor.name for tensor in model.graph.initializer}
    used = {name: value for name, value in stored.items() if name in named}
    return _onnx_run.session(path, variant, model=model, stored=used, severity=severity)


@functools.lru_cache(maxsize=1)
def _stored(path: str, changed: int) -> dict[str, Any]:
    """Initialiser -> OrtValue of each that is large and lies in the file itself. Small ones may be shapes, which a graph shows."""
    from onnx import TensorProto, numpy_helper
    from onnxruntime import OrtValue

    plain = set(_onnx_run.DTYPES.values()) - {"str"}
    return {
        tensor.name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(numpy_helper.to_array(tensor)))
        for tensor in _onnx_file.parsed(path).graph.initializer
        if np.prod(tensor.dims, dtype=np.int64) > _LARGE
        and tensor.data_location != TensorProto.EXTERNAL
        and _onnx_file.dtype_name(tensor.data_type) in plain
    }


def cut(
    path: str,
    given: Mapping[str, Sequence[int] | None],
    wanted: Sequence[str],
    *,
    number: str = "Size",
    without: Collection[str] = (),
) -> Any:
    """Make the model that computes `wanted` and reads `given` as inputs.

    given: name -> shape of one run, or None to leave even the rank open. The outputs come in the order of `wanted`.
    A name behind `NUMBER` asks for one number about that value: the operator `number` (Size, ReduceMin, ReduceMax) of it.
    without: stored tensors that are named and left empty; whoever loads the model hands them over.
    """
    from onnx import helper

    whole = index(path)
    model = type(whole.model)()
    for field in ("ir_version", "producer_name", "domain"):
        setattr(model, field, getattr(whole.model, field))
    model.opset_import.extend(whole.model.opset_import)
    model.functions.extend(whole.model.functions)
    graph = model.graph
    graph.name = whole.model.graph.name or "cut"
    sources = [name[len(NUMBER) :] if name.startswith(NUMBER) else name for name in wanted]
    places, needed = _needed(whole, set(given), sources)
    for place in places:
        node = graph.node.add()
        node.CopyFrom(whole.model.graph.node[place])
        node.name = node.name or f"{_NODE}{place}"
        node.output[:] = [_computed(name, given) for name in node.output]
    for name, source in zip(wanted, sources):
        if name != source:
            more = {} if number == "Size" else {"keepdims": 0}
            graph.node.append(helper.make_node(number, [_computed(source, given)], [name], **more))
    _add_constants(graph, whole, needed, given, sources, without)
    _add_inputs(graph, path, whole, needed, given)
    outputs = [name if name.startswith(NUMBER) else _computed(name, given) for name in wanted]
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)
    return model


def _computed(name: str, given: Mapping[str, Any]) -> str:
    return COMPUTED + name if name in given else name


def _needed(whole: Index, given: set[str], wanted: Sequence[str]) -> tuple[list[int], set[str]]:
    """Return the nodes (positions, in order) that compute `wanted` from `given`, and every name that they read."""
    to_make = set(wanted)
    read = {name for name in wanted if name not in given}
    kept = []
    for place in range(len(whole.reads) - 1, -1, -1):
        if to_make.intersection(whole.model.graph.node[place].output):
            kept.append(place)
            read.update(whole.reads[place])
            to_make.update(name for name in whole.reads[place] if name not in given)
    return kept[::-1], read


def _add_constants(
    graph: Any,
    whole: Index,
    needed: set[str],
    given: Mapping[str, Any],
    wanted: Sequence[str],
    without: Collection[str],
) -> None:
    """Copy the stored tensors that are read; one that is put in and wanted as well stays under its other name."""
    from onnx import TensorProto

    for name, tensor in whole.stored.items():
        replaced = name in given
        if name not in (wanted if replaced else needed):
            continue
        sparse = hasattr(tensor, "indices")
        copy = (graph.sparse_initializer if sparse else graph.initializer).add()
        if name in without and not replaced:
            copy.name, copy.data_type, copy.data_location = name, tensor.data_type, TensorProto.EXTERNAL
            copy.dims.extend(tensor.dims)
            copy.external_data.add(key="location", value="trueport.memory")
            continue
        copy.CopyFrom(tensor)
        if replaced:
            (copy.values if sparse else copy).name = COMPUTED + name


def _add_inputs(graph: Any, path: str, whole: Index, needed: set[str], given: Mapping[str, Any]) -> None:
    from onnx import TensorProto, helper

    # Old files list their stored tensors among the inputs, and their IR version demands it.
    graph.input.extend(item for item in whole.model.graph.input if item.name in needed and item.name not in given)
    for name in given:
        if name in needed:
            dtype = dtypes(path)[name]
            kind = TensorProto.STRING if dtype == "str" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            graph.input.append(helper.make_tensor_value_info(name, kind, given[name]))


def dependants(whole: Index, given: set[str], names: Sequence[str], node: str) -> set[str]:
    """Return those of `names` whose computation runs the node of that name (as a cut names it)."""
    nodes = whole.model.graph.node
    places = [place for place, item in enumerate(nodes) if node and node in (item.name, f"{_NODE}{place}")]
    if not places:
        return set()
    made = {name for place in places for name in nodes[place].output}
    spoilt = made - given
    for place in range(places[0] + 1, len(nodes)):
        if spoilt.intersection(whole.reads[place]):
            made.update(nodes[place].output)
            spoilt.update(name for name in nodes[place].output if name not in given)
    return {name for name in names if (name[len(NUMBER) :] if name.startswith(NUMBER) else name) in made}
