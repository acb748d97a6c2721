"""Decides how a Keras file becomes one callable with named flat inputs and outputs, for Keras 3 and for Keras 2 alike.

`load` picks the Keras by what the file says (Keras 2 files need tf_keras) and refuses, before anything is loaded,
files whose loading would run code. Names: a dictionary's keys where the model takes or gives a dictionary, else the
input tensors' and output layers' names, made unique.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueport.frameworks import _keras_files as files
from trueport.frameworks._base import BadModel, Dim, Unsupported, Untrusted


class Loaded(NamedTuple):
    """A model in memory. `inputs` holds its symbolic tensors by name, in the order in which `call` takes arrays.

    functions: what was traced or compiled of it for running, by variant; kept as long as the model is.
    """

    model: Any
    keras: Any
    legacy: bool
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    functions: dict[str, Any]


def keras_module(*, legacy: bool) -> Any:
    """Import the Keras that gives the file its meaning: tf_keras for Keras 2, else keras on TensorFlow."""
    if legacy:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        import tf_keras

        return tf_keras
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    if keras.backend.backend() != "tensorflow":
        raise Unsupported(f"Keras runs on {keras.backend.backend()} in this process; it must run on TensorFlow")
    return keras


def load(path: str, *, trust: bool) -> Loaded:
    """Load a model, once per file version. Raises BadModel, Untrusted, Unsupported."""
    return _load(path, Path(path).stat().st_mtime_ns if Path(path).exists() else 0, trust)


@functools.lru_cache(maxsize=2)
def _load(path: str, mtime: int, trust: bool) -> Loaded:
    return read(path, trust=trust)


def read(path: str, *, trust: bool) -> Loaded:
    """Load a model anew, for who changes it. Raises as `load` does."""
    place = Path(path)
    configuration = files.config(place)
    carried = sorted(set(files.code_in(configuration)))
    if carried and not trust:
        raise Untrusted(
            f"{path}: loading it would run code that the file carries ({', '.join(carried[:3])}); "
            "pass --trust if you know where it comes from"
        )
    legacy = files.is_legacy(place)
    keras = keras_module(legacy=legacy)
    try:
        model = _open(keras, place, trust=trust)
    except (BadModel, ValueError, TypeError) as error:
        if carried and "marshal" in "".join(traceback.format_exception(type(error), error, error.__traceback__)):
            raise Unsupported(
                f"the code in {', '.join(carried[:3])} was compiled by another Python version, which this one cannot read; "
                "save the model again without Lambda layers, or from its source code"
            ) from error
        raise
    return describe(model, keras, legacy=legacy)


def _open(keras: Any, path: Path, *, trust: bool) -> Any:
    archive = path.read_bytes()[:4] == files.ZIP
    suffixes = (".keras",) if archive else (".h5", ".hdf5")
    with tempfile.TemporaryDirectory() as folder:
        if path.suffix not in suffixes:  # Keras goes by the suffix alone
            link = Path(folder) / f"model{suffixes[0]}"
            link.symlink_to(path.absolute())
            path = link
        try:
            return keras.models.load_model(str(path), compile=False, safe_mode=not trust)
        except (OSError, EOFError, KeyError) as error:
            raise BadModel(
                f"{path}: Keras cannot read it ({_line(error)}); the file may be cut off or damaged"
            ) from error
        except (TypeError, ValueError) as error:
            text = str(error)
            custom = re.search(r"(?:Could not locate (?:class|function)|Unknown \w+:?) '?(\w+)'?", text)
            if custom:
                raise Unsupported(
                    f"the model needs the custom object '{custom.group(1)}', whose code the file does not hold"
                ) from error
            raise


def describe(model: Any, keras: Any, *, legacy: bool) -> Loaded:
    """Name the flat inputs and outputs of a model in memory. Raises Unsupported when it has no fixed signature."""
    try:
        inputs, outputs = list(model.inputs or ()), list(model.outputs or ())
    except (AttributeError, ValueError):
        inputs, outputs = [], []
    if not inputs or not outputs:
        raise Unsupported(
            "the model has no fixed inputs: it was never built, or is a subclassed model without a signature"
        )
    in_struct, out_struct = _structures(model, legacy=legacy)
    in_names = _keys(in_struct, len(inputs)) or _tensor_names(model, inputs, legacy=legacy)
    out_names = _keys(out_struct, len(outputs)) or list((getattr(model, "_functional", None) or model).output_names)
    by_name = dict(zip(_unique(in_names), inputs)), dict(zip(_unique(out_names), outputs))
    return Loaded(model, keras, legacy, *by_name, functions={})


def _structures(model: Any, *, legacy: bool) -> tuple[Any, Any]:
    if legacy:
        return getattr(model, "_nested_inputs", None), getattr(model, "_nested_outputs", None)
    inner = getattr(model, "_functional", None) or model
    return getattr(inner, "_inputs_struct", None), getattr(inner, "_outputs_struct", None)


def _keys(structure: Any, count: int) -> list[str]:
    """Keys of a flat dictionary in the order in which Keras flattens it (sorted); [] for any other structure."""
    if isinstance(structure, dict) and len(structure) == count and all(isinstance(key, str) for key in structure):
        return sorted(structure)
    return []


def _tensor_names(model: Any, tensors: Sequence[Any], *, legacy: bool) -> list[str]:
    return list(model.input_names) if legacy else [tensor.name for tensor in tensors]


def _unique(names: Sequence[str]) -> list[str]:
    """Tell equal names apart: `lstm`, `lstm:1`, `lstm:2`."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        result.append(f"{name}:{count}" if count else name)
    return result


def call(loaded: Loaded, flat: Sequence[Any]) -> list[Any]:
    """Apply the model in inference mode to tensors in the order of `inputs`; returns tensors in the order of `outputs`."""
    import tensorflow as tf

    structure, _ = _structures(loaded.model, legacy=loaded.legacy)
    if loaded.legacy:
        packed = tf.nest.pack_sequence_as(structure, list(flat)) if structure is not None else flat[0]
        return list(tf.nest.flatten(loaded.model(packed, training=False)))
    if structure is None:
        packed = flat[0] if len(flat) == 1 else list(flat)
    else:
        packed = loaded.keras.tree.pack_sequence_as(structure, list(flat))
    return list(loaded.keras.tree.flatten(loaded.model(packed, training=False)))


def specs(loaded: Loaded, names: Sequence[str], shapes: Mapping[str, Sequence[Any]] | None = None) -> list[Any]:
    """TensorSpecs of the inputs under these (TensorFlow-safe) names; unknown sizes stay unknown unless `shapes` says."""
    import tensorflow as tf

    sizes = {name: [None if d is None else int(d) for d in tensor.shape] for name, tensor in loaded.inputs.items()}
    sizes.update({name: list(shape) for name, shape in (shapes or {}).items()})
    return [
        tf.TensorSpec(sizes[name], dtype_name(tensor), name=safe)
        for safe, (name, tensor) in zip(names, loaded.inputs.items())
    ]


def function(loaded: Loaded, *, compiled: bool = False, shapes: Mapping[str, Sequence[Any]] | None = None) -> Any:
    """A tf.function over the flat inputs, with one trace for all sizes unless `compiled` by XLA."""
    import tensorflow as tf

    def infer(*flat: Any) -> list[Any]:
        return [tf.identity(value) for value in call(loaded, flat)]

    names = safe_names(list(loaded.inputs))
    signature = None if compiled else specs(loaded, names, shapes)
    return tf.function(infer, input_signature=signature, autograph=False, jit_compile=compiled or None)


def safe_names(names: Sequence[str]) -> list[str]:
    """Names that TensorFlow takes for arguments, in the same order: other characters become `_`, clashes get a number."""
    safe = ["".join(c if c.isalnum() and c.isascii() else "_" for c in name) for name in names]
    safe = [name if name[:1].isalpha() else f"x{name}" for name in safe]
    return [name.replace(":", "_") for name in _unique_safe(safe)]


def _unique_safe(names: Sequence[str]) -> list[str]:
    used: set[str] = set()
    result = []
    for name in names:
        fresh, count = name, 0
        while fresh in used:
            count += 1
            fresh = f"{name}_{count}"
        used.add(fresh)
        result.append(fresh)
    return result


def dtype_name(tensor: Any) -> str:
    """NumPy's name of a symbolic tensor's dtype ("string" as TensorFlow says it)."""
    return str(getattr(tensor.dtype, "name", tensor.dtype))


def shape_of(tensor: Any) -> list[Dim]:
    """Shape with the symbol "batch" for an unknown first size, None for other unknown sizes."""
    sizes = [None if d is None else int(d) for d in tensor.shape]
    return ["batch" if i == 0 and d is None else d for i, d in enumerate(sizes)]


def layers_of(model: Any, *, legacy: bool) -> Iterator[tuple[str, Any]]:
    """Yield (path, layer) of everything inside the model that is called, outer before inner, each once."""
    seen: set[int] = {id(model), id(getattr(model, "_functional", None))}

    def inside(owner: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        inner = getattr(owner, "_functional", None) or owner
        children = list(getattr(inner, "operations", None) or []) if not legacy else []
        if not children:
            children = list(inner._flatten_layers(include_self=False, recursive=False))
        for child in children:
            if id(child) in seen or type(child).__name__ == "InputLayer" or not hasattr(child, "call"):
                continue
            seen.add(id(child))
            path = f"{prefix}{child.name}"
            yield path, child
            if hasattr(child, "_flatten_layers"):
                yield from inside(child, f"{path}/")

    yield from inside(model, "")


def weight_names(loaded: Loaded) -> dict[str, Any]:
    """`layer/weight` -> variable; the path that Keras gives it, clashes numbered."""
    found: dict[str, Any] = {}
    for weight in loaded.model.weights:
        name = str(getattr(weight, "path", None) or weight.name).split(":")[0]
        unique, count = name, 0
        while unique in found:
            count += 1
            unique = f"{name}_{count}"
        found[unique] = weight
    return found


def parameter_count(loaded: Loaded) -> int:
    """Number of weights."""
    return int(sum(int(np.prod([int(d) for d in weight.shape])) for weight in loaded.model.weights))


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:240] if lines else type(error).__name__
