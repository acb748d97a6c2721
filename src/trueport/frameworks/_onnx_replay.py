"""Runs an ONNX model cut open: values put in from outside, and only what the wanted values need of the rest.

Each value put in becomes a graph input under its own name, so every reader sees it, subgraphs included; the output of
its producer is renamed, so what the producer computes can still be asked for. What nothing wanted depends on is never
copied: a cut near the end of a large model costs only the end.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueport.frameworks import _onnx_file, _onnx_run, _onnx_trace
from trueport.frameworks._base import Arrays, Emit

COMPUTED = "trueport.computed/"
"""Before the name of a value that is put in: what its own producer makes."""
_SIZE = "trueport.number/"
_NODE = "trueport.node/"
_LARGE = 256
"""Stored tensors of more elements than this are handed to the runtime in memory."""
_BLAMED = re.compile(r"Name:'([^']*)' Status Message|Node ?(?:\(| with name ')([^)']*)[)']")
"""How ONNX Runtime names the node that fails, when it runs and when it loads."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class _Index(NamedTuple):
    """What the cuts of one file share. `reads[i]`: names that node i reads, those of its subgraphs included."""

    model: Any
    reads: list[tuple[str, ...]]
    stored: dict[str, Any]
    dtypes: dict[str, str]
    inputs: set[str]


def replay(
    path: str, inputs: Arrays, given: Arrays, wanted: Sequence[str], emit: Emit, *, variant: str, budget: int
) -> dict[str, Any]:
    """Emit each wanted value [R, *shape] as computed from `given`; see `Framework.replay`. Returns {"skipped": name -> why}.

    A value that cannot be computed (an operator refuses the shapes that it is given) is skipped, the others are not.
    Raises ValueError for a name that is no value of the model and for an input that is needed and missing.
    """
    index = _index(path, _onnx_file.modified(path))
    _check_names(index, [*given, *wanted])
    job = _Job(path, index, inputs, given, variant or _onnx_trace.VARIANT)
    for name in wanted:
        if name in index.inputs:  # nothing computes it
            emit(name, np.asarray(inputs[name] if name in inputs else given[name]))
    skipped: dict[str, str] = {}
    names = [name for name in dict.fromkeys(wanted) if name not in index.inputs]
    for group in _onnx_trace.windows(job.costs(names, skipped), budget):
        for name, array in job.values(group, skipped):
            emit(name, array)
    return {"skipped": skipped}


class _Job:
    """One call of `replay`: R runs of some cuts of one model."""

    def __init__(self, path: str, index: _Index, inputs: Arrays, given: Arrays, variant: str) -> None:
        self.path, self.index, self.variant = path, index, variant
        self.feeds = {**inputs, **given}
        self.given = given
        self.runs = _onnx_run.count_runs(self.feeds)

    def costs(self, names: Sequence[str], skipped: dict[str, str]) -> dict[str, int]:
        """Bytes that each value takes, over all runs. One value alone is not measured: it is computed whatever it costs."""
        costs = dict.fromkeys(names, 0)
        if len(names) < 2:
            return costs
        kinds = self.index.dtypes
        # A value that is put in tells its size; the others are measured on the first run, without being held.
        costs.update({name: self.given[name].nbytes for name in names if name in self.given})
        unknown = [name for name in names if name not in self.given]
        counts = dict(self.values([_SIZE + name for name in unknown], skipped, runs=1)) if unknown else {}
        for name in unknown:
            if _SIZE + name in skipped:
                skipped[name] = skipped.pop(_SIZE + name)
                del costs[name]
                continue
            elements = int(np.sum(counts[_SIZE + name]))
            costs[name] = elements * _onnx_trace.item_size(kinds[name]) * (self.runs + 1)
        return costs

    def values(
        self, names: Sequence[str], skipped: dict[str, str], *, runs: int | None = None
    ) -> list[tuple[str, np.ndarray]]:
        """Compute these values together; when an operator fails, those that depend on it are skipped and the rest tried again."""
        waiting = [list(names)]
        found: list[tuple[str, np.ndarray]] = []
        while waiting:
            group = waiting.pop()
            if not group:
                continue
            try:
                loaded = self._runner(tuple(group))
                count = runs or self.runs
                kept, uneven = _onnx_trace.collect(loaded, (self._feeds(loaded, run) for run in range(count)), count)
            except (ValueError, MemoryError):
                raise
            except Exception as error:  # noqa: BLE001 -- whatever an operator says of values it does not expect
                waiting += self._without_failed(group, str(error), skipped)
                continue
            found += [(name, kept[place]) for place, name in enumerate(group) if place in kept]
            skipped.update({group[place]: "its shape differs between runs" for place in uneven})
        return found

    def _runner(self, names: tuple[str, ...]) -> _onnx_run.Runner:
        shapes = tuple((name, self.given[name].shape[1:]) for name in sorted(self.given))
        if self.variant == _onnx_trace.VARIANT:  # sizes are nothing to kernels without an optimiser: one cut serves all
            shapes = tuple((name, ()) for name, _ in shapes)
        return _loaded(self.path, _onnx_file.modified(self.path), self.variant, shapes, names)

    def _feeds(self, loaded: _onnx_run.Runner, run: int) -> Arrays:
        missing = [name for name in loaded.inputs if name not in self.feeds]
        if missing:
            raise ValueError(f"the input {missing[0]!r} is needed to compute what is wanted; give it")
        return {name: cast(np.asarray(self.feeds[name][run]), dtype) for name, dtype in loaded.inputs.items()}

    def _without_failed(self, group: list[str], text: str, skipped: dict[str, str]) -> list[list[str]]:
        """Skip what depends on the node that the message names; where it names none, halve the group."""
        if "bad_alloc" in text:
            raise MemoryError(text)
        reason = " ".join(text.split())[:300]
        match = _BLAMED.search(text)
        blamed = next((name for name in match.groups() if name), "") if match else ""
        lost = _dependants(self.index, set(self.given), group, blamed)
        if len(group) == 1 or len(lost) == len(group):
            skipped.update(dict.fromkeys(group, reason))
            return []
        if lost:
            skipped.update(dict.fromkeys(lost, reason))
            return [[name for name in group if name not in lost]]
        return [group[: len(group) // 2], group[len(group) // 2 :]]


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """Bring one run's array to the dtype of the value that it stands for; to integers it is rounded and limited."""
    if dtype == "str":
        return array.astype(object)
    kind = np.dtype(dtype)
    if kind.kind in "iu" and array.dtype.kind == "f":
        limits = np.iinfo(kind)
        whole = np.nan_to_num(np.rint(array.astype(np.float64)), nan=0.0)
        # The largest int64 is no float: from there on the cast would wrap round.
        beyond = whole >= float(limits.max)
        inside = np.clip(np.where(beyond, 0.0, whole), float(limits.min), None).astype(kind)
        return np.where(beyond, kind.type(limits.max), inside)
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(kind, copy=False)


def _check_names(index: _Index, names: Sequence[str]) -> None:
    unknown = [name for name in names if not (name in index.dtypes or name in index.inputs or name in index.stored)]
    if unknown:
        raise ValueError(
            f"the model has no value named {unknown[0]!r} that can be put in or shown ({len(unknown)} such)"
        )


@functools.lru_cache(maxsize=2)
def _index(path: str, changed: int) -> _Index:
    model = _onnx_file.parsed(path)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored.update({sparse.values.name: sparse for sparse in graph.sparse_initializer})
    return _Index(
        model=model,
        reads=[tuple(name for name in (*node.input, *_onnx_file.captured(node)) if name) for node in graph.node],
        stored=stored,
        dtypes={
            **{tensor.name: _onnx_file.dtype_name(tensor.data_type) for tensor in graph.initializer},
            **{
                sparse.values.name: _onnx_file.dtype_name(sparse.values.data_type)
                for sparse in graph.sparse_initializer
            },
            **{item.name: _onnx_file.dtype_name(item.type.tensor_type.elem_type) for item in graph.input},
            **_onnx_trace.exposed(path),
        },
        inputs={item.name for item in graph.input if item.name not in stored},
    )


@functools.lru_cache(maxsize=2)
def _loaded(path: str, changed: int, variant: str, given: Shapes, wanted: tuple[str, ...]) -> _onnx_run.Runner:
    """Load a cut; a search asks for the same one again and again, with other values."""
    declared = {name: shape if variant != _onnx_trace.VARIANT else None for name, shape in given}
    if variant != "reference":
        return _onnx_run.wrap(load(path, variant, declared, wanted))
    from onnx.external_data_helper import load_external_data_for_model

    model = cut(path, declared, wanted)
    load_external_data_for_model(model, str(Path(path).parent))
    plain = _onnx_run.runner(path, "no-optimization", model=model)
    return _onnx_run.reference_runner(model, plain.inputs)


def load(
    path: str, variant: str, given: Mapping[str, Sequence[int] | None], wanted: Sequence[str], *, severity: int = 4
) -> Any:
    """Load a cut (see `cut`) in ONNX Runtime; the large stored tensors are handed over in memory, not written out again."""
    stored = _stored(path, _onnx_file.modified(path))
    model = cut(path, given, wanted, without=stored)
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
    path: str, given: Mapping[str, Sequence[int] | None], wanted: Sequence[str], *, without: Collection[str] = ()
) -> Any:
    """Make the model that computes `wanted` (a name of `trueport.number/` asks for a size) and reads `given` as inputs.

    given: name -> shape of one run, or None to leave even the rank open. The outputs come in the order of `wanted`.
    without: stored tensors that are named and left empty; whoever loads the model hands them over.
    """
    from onnx import helper

    index = _index(path, _onnx_file.modified(path))
    model = type(index.model)()
    for field in ("ir_version", "producer_name", "domain"):
        setattr(model, field, getattr(index.model, field))
    model.opset_import.extend(index.model.opset_import)
    model.functions.extend(index.model.functions)
    graph = model.graph
    graph.name = index.model.graph.name or "cut"
    sources = [name[len(_SIZE) :] if name.startswith(_SIZE) else name for name in wanted]
    places, needed = _needed(index, set(given), sources)
    for place in places:
        node = graph.node.add()
        node.CopyFrom(index.model.graph.node[place])
        node.name = node.name or f"{_NODE}{place}"
        node.output[:] = [_computed(name, given) for name in node.output]
    for name, source in zip(wanted, sources):
        if name != source:
            graph.node.append(helper.make_node("Size", [_computed(source, given)], [name]))
    _add_constants(graph, index, needed, given, sources, without)
    _add_inputs(graph, index, needed, given)
    outputs = [name if name.startswith(_SIZE) else _computed(name, given) for name in wanted]
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in outputs)
    return model


def _computed(name: str, given: Mapping[str, Any]) -> str:
    return COMPUTED + name if name in given else name


def _needed(index: _Index, given: set[str], wanted: Sequence[str]) -> tuple[list[int], set[str]]:
    """Return the nodes (positions, in order) that compute `wanted` from `given`, and every name that they read."""
    to_make = set(wanted)
    read = {name for name in wanted if name not in given}
    kept = []
    for place in range(len(index.reads) - 1, -1, -1):
        if to_make.intersection(index.model.graph.node[place].output):
            kept.append(place)
            read.update(index.reads[place])
            to_make.update(name for name in index.reads[place] if name not in given)
    return kept[::-1], read


def _add_constants(
    graph: Any,
    index: _Index,
    needed: set[str],
    given: Mapping[str, Any],
    wanted: Sequence[str],
    without: Collection[str],
) -> None:
    """Copy the stored tensors that are read; one that is put in and wanted as well stays under its other name."""
    from onnx import TensorProto

    for name, tensor in index.stored.items():
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


def _add_inputs(graph: Any, index: _Index, needed: set[str], given: Mapping[str, Any]) -> None:
    from onnx import TensorProto, helper

    # Old files list their stored tensors among the inputs, and their IR version demands it.
    graph.input.extend(item for item in index.model.graph.input if item.name in needed and item.name not in given)
    for name in given:
        if name in needed:
            dtype = index.dtypes[name]
            kind = TensorProto.STRING if dtype == "str" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            graph.input.append(helper.make_tensor_value_info(name, kind, given[name]))


def _dependants(index: _Index, given: set[str], names: Sequence[str], node: str) -> set[str]:
    """Return those of `names` whose computation runs the node of that name (as a cut names it)."""
    nodes = index.model.graph.node
    places = [place for place, item in enumerate(nodes) if node and node in (item.name, f"{_NODE}{place}")]
    if not places:
        return set()
    made = {name for place in places for name in nodes[place].output}
    spoilt = made - given
    for place in range(places[0] + 1, len(nodes)):
        if spoilt.intersection(index.reads[place]):
            made.update(nodes[place].output)
            spoilt.update(name for name in nodes[place].output if name not in given)
    return {name for name in names if (name[len(_SIZE) :] if name.startswith(_SIZE) else name) in made}
