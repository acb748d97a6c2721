"""Decides how Keras's own `Model.export` is driven, and which of its names stand for which of the model's.

`export` names outputs by position (`output_0`, …) unless the model gives a dictionary; the reply says so for each.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueport.frameworks._base import ConvertContext, ConvertReply, InvalidOutput, Step, Unsupported

STEPS: tuple[Step, ...] = (
    Step("keras-savedmodel", "keras", "savedmodel", "tensorflow", "keras", rank=10),
    Step("keras2-savedmodel", "keras", "savedmodel", "tf-keras", "tf_keras", rank=10, legacy_keras=True),
    Step(
        "keras-onnx",
        "keras",
        "onnx",
        "tensorflow",
        "keras",
        rank=30,
        options=(("opset", "ONNX opset of the result (default: what tf2onnx takes)"),),
        note="Uses tf2onnx inside.",
    ),
    Step(
        "keras-litert",
        "keras",
        "tflite",
        "tensorflow",
        "keras",
        rank=20,
        note="The result may hold TensorFlow operators that the plain TFLite runtime lacks.",
    ),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Export the model to `out`. Raises InvalidOutput, Unsupported, or what Keras raises."""
    from trueport.frameworks import _keras_model as models

    loaded = models.load(source, trust=context["trust"])
    _call_once(loaded, context)
    exporters = {
        "keras-savedmodel": _savedmodel,
        "keras2-savedmodel": _savedmodel,
        "keras-onnx": _onnx,
        "keras-litert": _litert,
    }
    return exporters[step](loaded, out, options)


def _call_once(loaded: Any, context: ConvertContext) -> None:
    """Call the model: the ONNX exporter refuses a model that was loaded and never called."""
    import numpy as np
    import tensorflow as tf

    from trueport.frameworks import _keras_model as models

    flat = []
    for name, spec in zip(loaded.inputs, models.specs(loaded, list(loaded.inputs))):
        example = context["example"].get(name)
        if example is None:
            example = np.zeros([1 if size is None else size for size in spec.shape], spec.dtype.as_numpy_dtype)
        flat.append(tf.constant(np.asarray(example), dtype=spec.dtype))
    models.call(loaded, flat)


def _savedmodel(loaded: Any, out: str, options: Mapping[str, Any]) -> ConvertReply:
    if loaded.legacy:
        loaded.model.export(out)
    else:
        loaded.model.export(out, format="tf_saved_model", verbose=False)
    from trueport.frameworks import tensorflow as savedmodels

    saved = savedmodels.load(out, trust=True)
    return ConvertReply(notes=[], names=_names(loaded, list(saved.inputs), list(saved.outputs)))


def _onnx(loaded: Any, out: str, options: Mapping[str, Any]) -> ConvertReply:
    import onnx

    from trueport.converters.tf2onnx import check, errors_of, opset_of

    opset = opset_of(options) if "opset" in options else None
    with errors_of("tf2onnx") as said, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"  # Keras goes by the suffix
        loaded.model.export(str(path), format="onnx", verbose=False, opset_version=opset)
        model = onnx.load(str(path))
        check(model, said)
        Path(out).write_bytes(path.read_bytes())
    names = _names(loaded, [item.name for item in model.graph.input], [item.name for item in model.graph.output])
    return ConvertReply(notes=[f"tf2onnx logged: {line}" for line in said[:5]], names=names)


def _litert(loaded: Any, out: str, options: Mapping[str, Any]) -> ConvertReply:
    import tensorflow as tf

    from trueport.converters.tflite_converter import flex_notes

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"  # Keras goes by the suffix
        loaded.model.export(str(path), format="litert", verbose=False)
        data = path.read_bytes()
    try:
        interpreter = tf.lite.Interpreter(model_content=data)
    except (ValueError, RuntimeError) as error:
        raise InvalidOutput(f"the exported TFLite file does not load: {str(error).splitlines()[0][:300]}") from error
    Path(out).write_bytes(data)
    notes = flex_notes(interpreter)
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        return ConvertReply(
            notes=[*notes, "the exported file has no single signature: pair inputs and outputs by content"]
        )
    (signature,) = signatures.values()
    return ConvertReply(notes=notes, names=_names(loaded, list(signature["inputs"]), list(signature["outputs"])))


def _names(loaded: Any, inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """Source name -> exported name, for those that differ. Raises Unsupported when a rename cannot be known."""
    return {**_pair(list(loaded.inputs), inputs), **_pair(list(loaded.outputs), outputs)}


def _pair(names: Sequence[str], exported: Sequence[str]) -> dict[str, str]:
    """Pair by equal name, by a name that only lost characters TensorFlow forbids, or by the exporter's names for the Nth."""
    from trueport.frameworks._keras_model import safe_names

    found: dict[str, str] = {}
    for index, (name, safe) in enumerate(zip(names, safe_names(list(names)))):
        positional = "Identity:0" if index == 0 else f"Identity_{index}:0"
        for candidate in (name, safe, f"output_{index}", positional, f"{name}:0", f"serving_default_{safe}"):
            if candidate in exported and candidate not in found.values():
                found[name] = candidate
                break
    rest = [name for name in names if name not in found]
    left = [name for name in exported if name not in found.values()]
    if len(rest) == 1 and len(left) == 1:
        found[rest[0]] = left[0]
    elif rest:
        raise Unsupported(
            f"the export renamed {', '.join(rest)} to some of {', '.join(left)}; which is which is not known"
        )
    return {name: other for name, other in found.items() if name != other}
