"""Saves a live model object in the caller's own process, where its framework is loaded already.

Runs in the user's interpreter: the standard library, NumPy and our errors at module level, and no framework is ever
imported that the object itself has not brought. An object is recognised by the names of its classes, not by importing theirs.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueport.errors import TrueportError, UsageError

Note = Callable[[str], None]
"""Receives sentences that the report should show."""


class Saved(NamedTuple):
    """A live object on disk. versions: package -> version in the caller's process."""

    path: Path
    format: str
    versions: dict[str, str]


class _Kind(NamedTuple):
    """One sort of live object: root package and class name (of the class or a base), format, file name, how to save it."""

    package: str
    name: str
    format: str
    file: str
    save: Callable[[Any, Any, Path, Note], None]


def save_live(obj: Any, example_inputs: Any, folder: Path, *, note: Note | None = None) -> Saved:
    """Save `obj` below `folder` and say where, as what format, and with which versions.

    example_inputs: needed for torch.nn.Module: a tensor or array, a tuple of them (positional), or a dict (by name).
    note: told what the caller should know. The object itself is left as it was.
    Raises UsageError for an object of another kind, or one that its own framework cannot save.
    """
    kind = _recognise(obj)
    say: Note = note if note is not None else lambda sentence: None
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        chosen = _as_savedmodel(kind, obj, say)
        chosen.save(obj, example_inputs, partial / chosen.file, say)
        out = _fresh(folder, chosen.file)
        for item in sorted(partial.iterdir(), key=lambda item: item.name == chosen.file):  # the model last
            item.rename(out if item.name == chosen.file else folder / item.name)
    except (TrueportError, KeyboardInterrupt):
        raise
    except Exception as error:  # any framework may raise anything here
        first = next(iter(str(error).strip().splitlines()), "")
        raise UsageError(
            f"{type(obj).__name__} could not be saved as {kind.format} in this process "
            f"({type(error).__name__}: {first[:300]}); save it yourself and give the path"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Saved(out, chosen.format, _versions(kind.package))


def _fresh(folder: Path, name: str) -> Path:
    out = folder / name
    if out.exists():
        raise UsageError(f"{out} exists already; name an empty folder")
    return out


def _recognise(obj: Any) -> _Kind:
    """The first class of the object, from the most special, that the table lists and whose package is loaded."""
    for cls in type(obj).__mro__:
        package = str(cls.__module__).partition(".")[0]
        for kind in KINDS:
            if (kind.package, kind.name) == (package, cls.__name__) and package in sys.modules:
                return kind
    taken = "a path, torch.nn.Module, torch.export.ExportedProgram, torch.jit.ScriptModule, keras.Model, tf.function, tf.Module, onnx.ModelProto"
    raise UsageError(f"{type(obj).__module__}.{type(obj).__qualname__} is not a model that can be taken; give {taken}")


def _versions(package: str) -> dict[str, str]:
    found = {"python": sys.version.split()[0], "numpy": np.__version__}
    for name in (package, "tensorflow") if package == "keras" else (package,):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = str(version)
    return found


# PyTorch


def _save_module(obj: Any, example_inputs: Any, out: Path, note: Note) -> None:
    """Export in eval mode, with a dynamic batch where the model allows one; every submodule's mode is restored."""
    torch = sys.modules["torch"]
    args, kwargs = _torch_example(torch, example_inputs)
    modes = [(module, module.training) for module in obj.modules()]
    if any(training for _, training in modes):
        note("the module was in train mode; it is compared in eval mode (no dropout, stored BatchNorm statistics)")
    try:
        obj.eval()
        with torch.no_grad():
            program = _export(torch, obj, args, kwargs, note)
    finally:
        for module, training in modes:
            module.training = training
    torch.export.save(program, str(out))


def _torch_example(torch: Any, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if example is None:
        raise UsageError(
            "a torch.nn.Module needs example inputs: a tensor, a tuple of tensors, or a dict by argument name"
        )

    def tensor(value: Any) -> Any:
        if isinstance(value, (np.ndarray, np.generic)):
            return torch.from_numpy(np.array(value))
        if isinstance(value, (tuple, list)):
            return type(value)(tensor(item) for item in value)
        return value

    if isinstance(example, Mapping):
        return (), {str(name): tensor(value) for name, value in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(tensor(value) for value in example), {}
    return (tensor(example),), {}


def _export(torch: Any, obj: Any, args: tuple[Any, ...], kwargs: dict[str, Any], note: Note) -> Any:
    """An exported program: with a dynamic first axis if the module allows it, else with the example's shapes."""
    export = import_module("torch.export")
    values = [*args, *kwargs.values()]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    batches = {int(value.shape[0]) for value in tensors if value.dim() > 0}
    if len(tensors) == len(values) and len(batches) == 1:
        (size,) = batches

        def two(value: Any) -> Any:  # an example batch of 1 would be taken as a constant
            return torch.cat([value, value]) if size == 1 and value.dim() > 0 else value

        batch = export.Dim("batch", min=1)

        def axes(value: Any) -> dict[int, Any]:
            return {0: batch} if value.dim() > 0 else {}

        more = {name: two(value) for name, value in kwargs.items()}
        shapes = (
            {name: axes(value) for name, value in kwargs.items()} if kwargs else tuple(axes(value) for value in args)
        )
        try:
            return export.export(obj, tuple(two(value) for value in args), more, dynamic_shapes=shapes)
        except Exception as error:  # noqa: BLE001 - torch raises many kinds; the fixed batch below is the answer to all
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            note(f"exported with a fixed batch of {size}, a dynamic one was refused ({first[:200]})")
    else:
        note("exported with fixed shapes: the example inputs do not share a batch axis")
    return export.export(obj, args, kwargs)


def _save_program(obj: Any, example_inputs: Any, out: Path, note: Note) -> None:
    sys.modules["torch"].export.save(obj, str(out))


def _save_script(obj: Any, example_inputs: Any, out: Path, note: Note) -> None:
    if getattr(obj, "training", False):
        note("the module was in train mode; it is compared in eval mode")
    modes = [(module, module.training) for module in obj.modules()]
    try:
        obj.eval()
        obj.save(str(out))
    finally:
        for module, training in modes:
            module.training = training


# Keras, TensorFlow


def _as_savedmodel(kind: _Kind, obj: Any, note: Note) -> _Kind:
    """A Keras model with classes of the user's own cannot be read back elsewhere, so it goes as a SavedModel."""
    if kind.save is not _save_keras:
        return kind
    layers: Sequence[Any] = [obj, *getattr(obj, "_flatten_layers", lambda: [])()]
    own = next(
        (
            layer
            for layer in layers
            if type(layer).__module__.partition(".")[0] not in ("keras", "tf_keras", "tensorflow")
        ),
        None,
    )
    if own is None:
        return kind
    note(f"{type(own).__name__} is a class of your own, so the model was exported as a SavedModel")
    return _Kind(kind.package, kind.name, "savedmodel", "model", _export_keras)


def _save_keras(obj: Any, example_inputs: Any, out: Path, note: Note) -> None:
    if not getattr(obj, "built", True):
        _call_once(obj, example_inputs)
    obj.save(str(out))


def _export_keras(obj: Any, example_inputs: Any, out: Path, note: Note) -> None:
    if not getattr(obj, "built", True):
        _call_once(obj, example_inputs)
    obj.export(str(out))


def _call_once(obj: Any, example: Any) -> None:
    if example is None:
        raise UsageError("this Keras model has not been built; give example inputs, or call it once")
    positional = isinstance(example, tuple)
    obj(*example, training=False) if positional else obj(example, training=False)


def _save_tensorflow(obj: Any, example_inputs: Any, out: Path, note: Note) -> None:
    tf = sys.modules["tensorflow"]
    if hasattr(obj, "get_concrete_function") or hasattr(obj, "structured_input_signature"):
        module = tf.Module()
        concrete = _concrete(tf, obj, example_inputs)
        module.f = concrete
        # What the function closes over must hang on the saved object, or saving refuses it.
        module.variables_of_f = list(getattr(concrete.graph, "variables", ()))
        tf.saved_model.save(module, str(out), signatures={"serving_default": concrete})
        return
    call = obj.__call__ if callable(obj) else None
    signatures = getattr(obj, "signatures", None)
    if not signatures and hasattr(call, "get_concrete_function"):
        tf.saved_model.save(obj, str(out), signatures={"serving_default": _concrete(tf, call, example_inputs)})
        return
    tf.saved_model.save(obj, str(out), signatures=dict(signatures) if signatures else None)
    if not signatures:
        note("the module has neither signatures nor a tf.function as __call__; it may not be runnable")


def _concrete(tf: Any, function: Any, example: Any) -> Any:
    if not hasattr(function, "get_concrete_function"):
        return function
    if example is None:
        if getattr(function, "input_signature", None) is None:
            raise UsageError("a tf.function without an input_signature needs example inputs")
        return function.get_concrete_function()

    def spec(value: Any) -> Any:
        value = tf.convert_to_tensor(value)
        return tf.TensorSpec([None, *value.shape[1:]] if value.shape.rank else [], value.dtype)

    if isinstance(example, Mapping):
        return function.get_concrete_function(**{name: spec(value) for name, value in example.items()})
    values = example if isinstance(example, (tuple, list)) else (example,)
    return function.get_concrete_function(*(spec(value) for value in values))


# ONNX


ONNX_LIMIT = 1 << 30
"""Bytes above which weights go to a file beside the model (protobuf itself ends at 2 GiB)."""


def _save_onnx(obj: Any, example_inputs: Any, out: Path, note: Note) -> None:
    onnx = sys.modules["onnx"]
    outside = [item.name for item in obj.graph.initializer if item.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise UsageError(
            f"the ModelProto refers to external data that is not in memory ({outside[0]}); load it with onnx.load(path), "
            "which reads the data, or give the path itself"
        )
    weights = sum(len(item.raw_data) for item in obj.graph.initializer)
    if weights < ONNX_LIMIT:
        onnx.save_model(obj, str(out))
        return
    copy = onnx.ModelProto()
    copy.CopyFrom(obj)  # saving with external data rewrites the tensors in place
    onnx.save_model(
        copy, str(out), save_as_external_data=True, all_tensors_to_one_file=True, location=f"{out.name}.data"
    )


KINDS: tuple[_Kind, ...] = (
    _Kind("torch", "ExportedProgram", "pytorch", "model.pt2", _save_program),
    _Kind("torch", "ScriptModule", "torchscript", "model.pt", _save_script),
    _Kind("torch", "Module", "pytorch", "model.pt2", _save_module),
    _Kind("keras", "Model", "keras", "model.keras", _save_keras),
    _Kind("tf_keras", "Model", "keras", "model.h5", _save_keras),
    _Kind("tensorflow", "ConcreteFunction", "savedmodel", "model", _save_tensorflow),
    _Kind("tensorflow", "Function", "savedmodel", "model", _save_tensorflow),
    _Kind("tensorflow", "Module", "savedmodel", "model", _save_tensorflow),
    _Kind("tensorflow", "AutoTrackable", "savedmodel", "model", _save_tensorflow),
    _Kind("onnx", "ModelProto", "onnx", "model.onnx", _save_onnx),
)
"""Matched from an object's most special class upwards, so a ScriptModule is not taken for a plain Module."""
