"""Decides how a SavedModel becomes one frozen computation with named inputs and outputs. Runs in a worker.

The signature `serving_default` is the model (or the only one there is). TensorFlow 2's loader is asked first; where it
refuses, TensorFlow 1's takes the graph.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trueport.frameworks._base import BadModel, Unsupported, Untrusted

FILE_OPS = ("ReadFile", "WriteFile", "SaveV2", "PyFunc", "PyFuncStateless", "EagerPyFunc", "LoadLibrary")
"""Operators in the computation itself that reach beyond it: files, or Python code."""


class Saved(NamedTuple):
    """A SavedModel in memory. `call`: the signature as loaded by TensorFlow 2, None where TensorFlow 1 loaded it."""

    frozen: Any
    call: Any
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    key: str
    producer: str


def load(path: str, *, trust: bool) -> Saved:
    """Load and freeze, once per file version. Raises BadModel, Untrusted, Unsupported."""
    stamps = [item.stat().st_mtime_ns for item in Path(path).rglob("*") if item.is_file()]
    saved = _load(path, hash(tuple(sorted(stamps))))
    if not trust:
        bodies = [saved.frozen.graph_def.node, *(f.node_def for f in saved.frozen.graph_def.library.function)]
        risky = sorted({node.op for body in bodies for node in body} & set(FILE_OPS))
        if risky:
            raise Untrusted(f"{path}: running it would touch files or run Python ({', '.join(risky)}); pass --trust")
    return saved


@functools.lru_cache(maxsize=2)
def _load(path: str, stamp: int) -> Saved:
    import tensorflow as tf

    _check(Path(path))
    try:
        loaded = tf.saved_model.load(path)
    except Exception as error:  # noqa: BLE001 -- whatever TensorFlow 2 dislikes, TensorFlow 1 may take
        return _load_v1(path, error)
    signatures = {key: loaded.signatures[key] for key in loaded.signatures}
    if not signatures:
        for name in ("serve", "__call__"):
            endpoint = getattr(loaded, name, None)
            functions = getattr(endpoint, "concrete_functions", None)
            if functions:
                signatures = {name: functions[0]}
                break
    key = _choose(list(signatures), path)
    return _from_function(loaded, signatures[key], key, _producer(Path(path)))


def _check(path: Path) -> None:
    file = path / "saved_model.pb"
    if not file.is_file():
        return
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except Exception as error:  # noqa: BLE001 -- protobuf's DecodeError has no public home in all versions
        raise BadModel(f"{path}: its saved_model.pb cannot be parsed ({error}); it may be cut off") from None


def _choose(keys: Sequence[str], path: str) -> str:
    if "serving_default" in keys:
        return "serving_default"
    real = [key for key in keys if not key.startswith("__saved_model_init")]
    if len(real) == 1:
        return real[0]
    if not real:
        raise Unsupported(f"{path}: the SavedModel has no signature to call; save it with one named serving_default")
    raise Unsupported(f"{path}: the SavedModel has signatures {', '.join(sorted(real))} and none named serving_default")


def _from_function(loaded: Any, function: Any, key: str, producer: str) -> Saved:
    from trueport.frameworks import _tf_graph as graphs

    positional, named = function.structured_input_signature
    specs = dict(zip(_argument_names(function, len(positional)), positional)) if positional else dict(named)
    results = function.structured_outputs
    if not isinstance(results, dict):
        flat = results if isinstance(results, (list, tuple)) else [results]
        results = {f"output_{index}": item for index, item in enumerate(flat)}
    by_name = {tensor.name.split(":")[0]: tensor for tensor in function.inputs}
    captured = len(function.inputs) - len(function.captured_inputs)
    arguments = list(function.inputs[:captured])
    if not positional:  # the graph's placeholders carry the argument names
        order = {item.name.split(":")[0]: name for name, item in _placeholders(specs, by_name).items()}
        names = [order.get(tensor.name.split(":")[0], tensor.name.split(":")[0]) for tensor in arguments]
    else:
        names = list(specs)
    order_out = sorted(results)  # tf.nest flattens a dictionary by sorted keys, and so does the function
    frozen = graphs.freeze(function, names, order_out)
    outputs = {name: results[name] for name in sorted(results, key=_natural)}

    def call(inputs: Mapping[str, Any], _keep: Any = loaded) -> Mapping[str, Any]:
        given = function(*[inputs[name] for name in specs]) if positional else function(**inputs)
        if isinstance(given, dict):
            return given
        flat = given if isinstance(given, (list, tuple)) else [given]
        return {f"output_{index}": item for index, item in enumerate(flat)}

    inputs = {name: specs[name] for name in names}
    return Saved(
        frozen._replace(outputs={name: frozen.outputs[name] for name in outputs}), call, inputs, outputs, key, producer
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts output_2 before output_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _argument_names(function: Any, count: int) -> list[str]:
    names = [tensor.name.split(":")[0] for tensor in function.inputs[:count]]
    return names if len(set(names)) == count else [f"input_{index}" for index in range(count)]


def _placeholders(specs: Mapping[str, Any], by_name: Mapping[str, Any]) -> dict[str, Any]:
    """Argument name -> its placeholder: TensorFlow names it `<signature>_<argument>`, or as the spec says."""
    found: dict[str, Any] = {}
    for name, spec in specs.items():
        wanted = [getattr(spec, "name", None), name]
        for candidate, tensor in by_name.items():
            if candidate in wanted or any(w and candidate.endswith(f"_{w}") for w in wanted):
                found.setdefault(name, tensor)
    return found


def _load_v1(path: str, first: BaseException) -> Saved:
    """Load through TensorFlow 1's loader. `first` is what TensorFlow 2 said; it is named when this fails as well."""
    import tensorflow as tf

    from trueport.frameworks._tf_graph import Frozen

    reason = (str(first).strip().splitlines() or [type(first).__name__])[0][:200]
    try:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            tags = _tags(path)
            meta = tf.compat.v1.saved_model.load(session, tags, path)
            key = _choose(list(meta.signature_def), path)
            chosen = meta.signature_def[key]
            graph = session.graph
            inputs = {name: info.name for name, info in chosen.inputs.items()}
            outputs = {name: info.name for name, info in chosen.outputs.items()}
            keep = [tensor.split(":")[0] for tensor in outputs.values()]
            graph_def = tf.compat.v1.graph_util.convert_variables_to_constants(
                session, graph.as_graph_def(add_shapes=False), sorted(set(keep))
            )
            specs = {name: _spec_of(graph.get_tensor_by_name(tensor)) for name, tensor in inputs.items()}
            results = {name: _spec_of(graph.get_tensor_by_name(tensor)) for name, tensor in outputs.items()}
    except Unsupported:
        raise
    except Exception as error:  # two loaders refused; both reasons are told
        second = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadModel(
            f"{path}: TensorFlow cannot load this SavedModel ({reason}; TensorFlow 1's loader: {second})"
        ) from error
    present = {node.name for node in graph_def.node}
    inputs = {name: tensor for name, tensor in inputs.items() if tensor.split(":")[0] in present}
    specs = {name: specs[name] for name in inputs}
    return Saved(
        Frozen(graph_def, inputs, outputs), None, specs, results, key, f"{_producer(Path(path))}, TensorFlow 1 loader"
    )


def _spec_of(tensor: Any) -> Any:
    import tensorflow as tf

    return tf.TensorSpec(tensor.shape, tensor.dtype, name=tensor.op.name)


def _tags(path: str) -> list[str]:
    from tensorflow.python.saved_model import loader_impl

    sets = [sorted(graph.meta_info_def.tags) for graph in loader_impl.parse_saved_model(path).meta_graphs]
    return next((tags for tags in sets if "serve" in tags), sets[0] if sets else ["serve"])


def _producer(path: Path) -> str:
    from tensorflow.python.saved_model import loader_impl

    graphs = loader_impl.parse_saved_model(str(path)).meta_graphs
    version = graphs[0].meta_info_def.tensorflow_version if graphs else ""
    return f"tensorflow {version or '(version not said)'}"
