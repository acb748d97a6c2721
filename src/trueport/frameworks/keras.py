"""Decides how Keras models (`.keras`, `.h5`) are recognised, loaded, run and looked into.

Keras 2 files mean what Keras 2 computes (an LSTM's hard sigmoid is another function in Keras 3), so they run through
tf_keras in a toolchain of their own; `toolchain_for` chooses by what the file says. Values inside are layer outputs.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import _keras_files as files
from trueport.frameworks._base import (
    EDIT_KINDS,
    Arrays,
    EditDict,
    Emit,
    GraphDict,
    RunResult,
    SignatureDict,
    SpecDict,
    Unsupported,
)

NAME = "keras"
FORMATS = {"keras": "tensorflow"}
LEGACY_TOOLCHAIN = "tf-keras"
SUFFIXES = {"keras": ".keras"}
VARIANTS = ("default", "eager", "xla")
GRANULARITIES = ("native", "decomposed")
"""Layers, and the operators of the frozen graph that TensorFlow makes of them."""
PRECISIONS = ("float32", "float64", "float16", "int8-dynamic", "int8")
EDITS = EDIT_KINDS
EDIT_FILES = (
    "_keras_files",
    "_keras_model",
    "_keras_attributes",
    "_keras_edit",
    "_keras_wiring",
    "_keras_words",
    "_keras_operators",
    "_keras_patch",
    "_keras_structure",
    "_keras_apply",
)


def sniff(head: bytes, path: Path) -> str | None:
    """Tell a Keras model by its bytes: a zip with a configuration, or an HDF5 file with one (not weights alone)."""
    if head.startswith(files.ZIP):
        return "keras" if files.is_keras_zip(path) else None
    if head.startswith(files.HDF5):
        return "keras" if files.is_keras_hdf5(path) else None
    return None


def toolchain_for(path: str) -> str:
    """Name the toolchain that gives this file its meaning. Runs in the parent. Raises BadModel for an unreadable file."""
    return LEGACY_TOOLCHAIN if files.is_legacy(Path(path)) else FORMATS["keras"]


def signature(path: str, *, trust: bool) -> SignatureDict:
    """Describe the model. Raises BadModel, Untrusted, Unsupported."""
    from trueport.frameworks import _keras_model as models

    loaded = models.load(path, trust=trust)
    inputs = [_spec(name, tensor) for name, tensor in loaded.inputs.items()]
    for spec, tensor in zip(inputs, loaded.inputs.values()):
        largest = _index_limit(loaded, tensor)
        if largest is not None:
            spec["minimum"], spec["maximum"] = 0, largest
    layers = [layer for _, layer in models.layers_of(loaded.model, legacy=loaded.legacy)]
    dtypes = Counter(str(np.dtype(getattr(w.dtype, "name", w.dtype))) for w in loaded.model.weights if _is_numpy(w))
    return SignatureDict(
        inputs=inputs,
        outputs=[_spec(name, tensor) for name, tensor in loaded.outputs.items()],
        meta={
            "producer": f"keras {files.keras_version(Path(path)) or '(version not said)'}",
            "legacy": loaded.legacy,
            "operators": dict(Counter(type(layer).__name__ for layer in layers)),
            "parameters": models.parameter_count(loaded),
            "precision": dtypes.most_common(1)[0][0] if dtypes else "float32",
        },
    )


def _is_numpy(weight: Any) -> bool:
    return str(getattr(weight.dtype, "name", weight.dtype)) in np.sctypeDict


def _spec(name: str, tensor: Any) -> SpecDict:
    from trueport.frameworks import _keras_model as models

    dtype = models.dtype_name(tensor)
    return SpecDict(name=name, dtype="str" if dtype == "string" else dtype, shape=models.shape_of(tensor))


def _index_limit(loaded: Any, tensor: Any) -> int | None:
    """Largest legal index when an Embedding (or one-hot encoding) reads this input."""
    from trueport.frameworks import _keras_model as models

    limits = []
    for _, layer in models.layers_of(loaded.model, legacy=loaded.legacy):
        size = getattr(layer, "input_dim", None) or getattr(layer, "num_tokens", None)
        if size is None or type(layer).__name__ not in ("Embedding", "CategoryEncoding"):
            continue
        for node in getattr(layer, "_inbound_nodes", ()):
            read = getattr(node, "keras_inputs", None) or getattr(node, "input_tensors", None) or ()
            if any(item is tensor for item in read):
                limits.append(int(size) - 1)
    return min(limits) if limits else None


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, RunResult]:
    """Run every case, R calls each, in inference mode. Other precisions than float32 evaluate the frozen graph.

    The range of an int8 activation is taken from the case itself, so a probe does not widen the grid of the data.
    """
    from trueport.frameworks import _keras_model as models
    from trueport.frameworks import _tf_graph as graphs
    from trueport.frameworks import _tf_precision as precisions

    if precision not in PRECISIONS or variant not in VARIANTS:
        raise Unsupported(f"keras runs no precision '{precision}' with variant '{variant}'")
    loaded = models.load(path, trust=trust)
    if precision != "float32":
        return precisions.run_as(_watched(path, trust).frozen, precision, cases)
    return graphs.run_cases(_caller(loaded, variant), cases)


def _caller(loaded: Any, variant: str) -> Any:
    import tensorflow as tf

    from trueport.frameworks import _keras_model as models

    specs = models.specs(loaded, models.safe_names(list(loaded.inputs)))
    if variant not in loaded.functions:  # XLA takes seconds for each shape, so a second run must find the first one's
        loaded.functions[variant] = (
            functools.partial(_flat_call, loaded)
            if variant == "eager"
            else models.function(loaded, compiled=variant == "xla")
        )
    apply = loaded.functions[variant]

    def call(inputs: Arrays) -> Mapping[str, Any]:
        missing = [name for name in loaded.inputs if name not in inputs]
        if missing:
            raise ValueError(f"no value for input {', '.join(missing)}; the model takes {', '.join(loaded.inputs)}")
        flat = [tf.constant(inputs[name], dtype=spec.dtype) for name, spec in zip(loaded.inputs, specs)]
        try:
            return dict(zip(loaded.outputs, apply(*flat)))
        except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError) as error:
            if variant != "xla":
                raise
            raise Unsupported(f"XLA does not compile this model: {str(error).splitlines()[0][:200]}") from error

    return call


def _flat_call(loaded: Any, *flat: Any) -> list[Any]:
    from trueport.frameworks import _keras_model as models

    return models.call(loaded, flat)


def _watched(path: str, trust: bool) -> Any:
    from trueport.frameworks import _keras_model as models

    return _watch(models.load(path, trust=trust).model, path, trust)


@functools.lru_cache(maxsize=2)
def _watch(model: Any, path: str, trust: bool) -> Any:
    """Watched model, kept as long as the same loaded model is in use (`model` is the cache key)."""
    from trueport.frameworks import _keras_model as models
    from trueport.frameworks import _keras_trace as traces

    return traces.watch(models.load(path, trust=trust))


def names(path: str, *, trust: bool, granularity: str = "native") -> list[str]:
    """Names of the values of all layer calls (or of all operators), in execution order, and of the outputs."""
    return list(_values(_watched(path, trust), granularity))


def _values(watched: Any, granularity: str) -> dict[str, str]:
    from trueport.frameworks import _keras_trace as traces
    from trueport.frameworks import _tf_graph as graphs

    if granularity not in GRANULARITIES:
        raise Unsupported(f"keras shows no granularity '{granularity}'; there is {', '.join(GRANULARITIES)}")
    return traces.tensors(watched) if granularity == "native" else graphs.values(watched.frozen)


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
    """Emit the wanted values, in windows of at most `budget` bytes. Raises Unsupported for an unknown name."""
    return replay(path, inputs, {}, wanted, emit, variant="", budget=budget, trust=trust, granularity=granularity)


_MODES = {"": "plain", "eager": "plain", "default": "optimised", "xla": "xla"}
"""Variant -> how a graph with values put in is run."""


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
    """Compute the wanted values with the given ones put in. Raises Unsupported for unknown names and variants."""
    from trueport.frameworks import _tf_replay as replays

    if variant not in _MODES:
        raise Unsupported(f"keras has no variant '{variant}'")
    watched = _watched(path, trust)
    known = _values(watched, granularity)
    return replays.replay(watched.frozen, known, inputs, given, wanted, emit, mode=_MODES[variant], budget=budget)


def graph(path: str, *, trust: bool, granularity: str = "native") -> GraphDict:
    """The graph of layer calls, whose weights are constants named `layer/weight`; or the frozen graph of operators."""
    from trueport.frameworks import _keras_model as models
    from trueport.frameworks import _keras_trace as traces
    from trueport.frameworks import _tf_view as views

    watched = _watched(path, trust)
    _values(watched, granularity)
    layers = traces.graph(models.load(path, trust=trust), watched)
    if granularity == "native":
        return layers
    operators = views.graph(watched.frozen)
    traces.add_origins(operators, layers, watched)
    return operators


def parameters(path: str, emit: Emit, *, trust: bool, granularity: str = "native") -> dict[str, Any]:
    """Emit every weight under its name in `graph`. Returns {"count": number of arrays}."""
    from trueport.frameworks import _keras_model as models
    from trueport.frameworks import _tf_view as views

    if granularity != "native":
        watched = _watched(path, trust)
        _values(watched, granularity)
        return {"count": views.emit_constants(watched.frozen, emit)}
    weights = models.weight_names(models.load(path, trust=trust))
    for name, weight in weights.items():
        emit(name, np.asarray(weight))
    return {"count": len(weights)}


def edit(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
    """Write a copy with the edits applied, in the same kind of file. Raises Unsupported with the reason."""
    from trueport.frameworks import _keras_apply as patches

    return {"notes": patches.apply(path, edits, arrays, out, trust=trust)}
