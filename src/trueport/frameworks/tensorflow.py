"""Decides how SavedModels are recognised, loaded, run and looked into.

The signature `serving_default` is the model (or the only one there is). TensorFlow 2's loader is asked first; where it
refuses, TensorFlow 1's takes the graph. Values inside are the tensors of the frozen graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueport.frameworks import _tf_saved as saves
from trueport.frameworks._base import (
    Arrays,
    Dim,
    EditDict,
    Emit,
    GraphDict,
    RunResult,
    SignatureDict,
    SpecDict,
    Unsupported,
)

NAME = "tensorflow"
FORMATS = {"savedmodel": "tensorflow"}
SUFFIXES = {"savedmodel": ""}
VARIANTS = ("default", "unoptimised", "xla")
PRECISIONS = ("float32", "float64", "float16", "int8-dynamic", "int8")
load = saves.load
"""Load and freeze, once per file version. Raises BadModel, Untrusted, Unsupported."""
EDITS = (
    "set-parameter",
    "add-parameter",
    "set-attribute",
    "set-operator",
    "remove-node",
    "insert",
    "reorder-inputs",
    "set-input",
    "set-dimensions",
    "set-outputs",
    "recompute",
)
EDIT_FILES = ("_tf_graph", "_tf_attributes", "_tf_saved", "_tf_operators", "_tf_edit", "_tf_apply")


def sniff(head: bytes, path: Path) -> str | None:
    """Tell a SavedModel: a folder that holds saved_model.pb or saved_model.pbtxt."""
    if path.is_dir() and any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt")):
        return "savedmodel"
    return None


def signature(path: str, *, trust: bool) -> SignatureDict:
    """Describe the model. Raises BadModel, Untrusted, Unsupported."""
    from trueport.frameworks import _tf_view as views

    saved = load(path, trust=trust)
    limits = views.index_limits(saved.frozen)
    inputs = []
    for name, spec in saved.inputs.items():
        one = _wire_spec(name, spec)
        if name in limits and "int" in one["dtype"]:
            one["minimum"], one["maximum"] = 0, limits[name]
        inputs.append(one)
    return SignatureDict(
        inputs=inputs,
        outputs=[_wire_spec(name, spec) for name, spec in saved.outputs.items()],
        meta={
            "producer": saved.producer,
            "signature": saved.key,
            "operators": views.operators(saved.frozen),
            "parameters": views.parameter_count(saved.frozen),
            "precision": "float32",
        },
    )


def _wire_spec(name: str, spec: Any) -> SpecDict:
    shape: list[Dim] | None = (
        None if spec.shape.rank is None else [None if d is None else int(d) for d in spec.shape.as_list()]
    )
    dtype = spec.dtype.name
    return SpecDict(name=name, dtype="str" if dtype == "string" else dtype, shape=shape)


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, RunResult]:
    """Run every case, R calls each. Other precisions than float32 evaluate the frozen graph."""
    import tensorflow as tf

    from trueport.frameworks import _tf_graph as graphs
    from trueport.frameworks import _tf_precision as precisions

    if precision not in PRECISIONS or variant not in VARIANTS:
        raise Unsupported(f"tensorflow runs no precision '{precision}' with variant '{variant}'")
    saved = load(path, trust=trust)
    if precision != "float32":
        return precisions.run_as(saved.frozen, precision, cases)
    if variant == "unoptimised" or saved.call is None:
        if variant == "xla":
            raise Unsupported("a model loaded by TensorFlow 1's loader is not compiled by XLA")
        return graphs.run_frozen(saved.frozen, cases, optimise=variant == "default")
    apply = tf.function(saved.call, jit_compile=True, autograph=False) if variant == "xla" else saved.call

    def call(inputs: Arrays) -> Mapping[str, Any]:
        missing = [name for name in saved.inputs if name not in inputs]
        if missing:
            raise ValueError(f"no value for input {', '.join(missing)}; the model takes {', '.join(saved.inputs)}")
        given = {name: tf.constant(inputs[name], dtype=spec.dtype) for name, spec in saved.inputs.items()}
        try:
            results = apply(given)
        except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError) as error:
            if variant != "xla":
                raise
            raise Unsupported(f"XLA does not compile this model: {str(error).splitlines()[0][:200]}") from error
        return {name: results[name] for name in saved.outputs}

    return graphs.run_cases(call, cases)


def names(path: str, *, trust: bool) -> list[str]:
    """Names of all tensors of the frozen graph, in execution order, then of the outputs."""
    from trueport.frameworks import _tf_graph as graphs

    return list(graphs.values(load(path, trust=trust).frozen))


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int, trust: bool) -> dict[str, Any]:
    """Emit the wanted values in windows of at most `budget` bytes. Raises Unsupported for an unknown name."""
    return replay(path, inputs, {}, wanted, emit, variant="", budget=budget, trust=trust)


_MODES = {"": "plain", "unoptimised": "plain", "default": "optimised", "xla": "xla"}
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
) -> dict[str, Any]:
    """Compute the wanted values with the given ones put in. Raises Unsupported for unknown names and variants."""
    from trueport.frameworks import _tf_graph as graphs
    from trueport.frameworks import _tf_replay as replays

    if variant not in _MODES:
        raise Unsupported(f"tensorflow has no variant '{variant}'")
    frozen, mode = load(path, trust=trust).frozen, _MODES[variant]
    return replays.replay(frozen, graphs.values(frozen), inputs, given, wanted, emit, mode=mode, budget=budget)


def graph(path: str, *, trust: bool) -> GraphDict:
    """The frozen graph, control flow as single nodes."""
    from trueport.frameworks import _tf_view as views

    return views.graph(load(path, trust=trust).frozen)


def parameters(path: str, emit: Emit, *, trust: bool) -> dict[str, Any]:
    """Emit every constant of the frozen graph under its node's name."""
    from trueport.frameworks import _tf_view as views

    return {"count": views.emit_constants(load(path, trust=trust).frozen, emit)}


def edit(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
    """Write a copy with the edits applied, its weights as constants. Raises Unsupported with the reason."""
    from trueport.frameworks import _tf_apply as patches

    return {"notes": patches.apply(path, edits, arrays, out, trust=trust)}
