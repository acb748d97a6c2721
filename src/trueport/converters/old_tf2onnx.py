"""tf2onnx 1.9 on TensorFlow 2.8, as the studies of converters had it: runs only when a route names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueport.frameworks._base import ConvertContext, ConvertReply, Step, Unsupported

OPSET = 13
"""What tf2onnx 1.9 writes without being asked; it knows 15 at most."""
_OPTIONS = (("opset", f"ONNX opset of the result (default {OPSET}, at most 15)"),)

STEPS: tuple[Step, ...] = (
    Step("old-tf2onnx-keras2", "keras", "onnx", "old-tf2onnx", "tf2onnx", 900, options=_OPTIONS, legacy_keras=True),
    Step("old-tf2onnx-savedmodel", "savedmodel", "onnx", "old-tf2onnx", "tf2onnx", 900, options=_OPTIONS),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Write the ONNX model at `out`. Raises Unsupported, InvalidOutput, or what tf2onnx raises."""
    import tf2onnx

    from trueport.converters import tf2onnx as present

    opset = present.opset_of({"opset": options.get("opset", OPSET)})
    if step == "old-tf2onnx-savedmodel":
        return present.convert("tf2onnx-savedmodel", source, out, {"opset": opset}, context)
    with present.errors_of("tf2onnx") as said:
        model, _ = tf2onnx.convert.from_keras(load_keras2(source, trust=context["trust"]), opset=opset)
    present.check(model, said)
    return finish(model, out, context)


def load_keras2(source: str, *, trust: bool) -> Any:
    """Load a Keras 2 file with the Keras of TensorFlow 2.8. Raises Unsupported for what that cannot read."""
    import tensorflow as tf

    from trueport.frameworks import _keras_files as files
    from trueport.frameworks._base import Untrusted

    carried = sorted(set(files.code_in(files.config(Path(source)))))
    if carried and not trust:
        raise Untrusted(f"{source}: loading it would run code that the file carries ({', '.join(carried[:3])})")
    try:
        return tf.keras.models.load_model(source, compile=False)
    except (OSError, TypeError, ValueError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise Unsupported(f"Keras {tf.keras.__version__} does not read this file: {line}") from error


def finish(model: Any, out: str, context: ConvertContext) -> ConvertReply:
    """Give a converted Keras model its inputs' and outputs' names back, which stand in its order, and write it."""
    from trueport.converters import tf2onnx as present

    pairs = []
    for specs, items in (
        (context["signature"]["inputs"], model.graph.input),
        (context["signature"]["outputs"], model.graph.output),
    ):
        if len(specs) != len(items):
            raise Unsupported(f"the tool wrote {len(items)} inputs or outputs for {len(specs)}")
        pairs.append({spec["name"]: item.name for spec, item in zip(specs, items)})
    names = present.restore_names(model, *pairs)
    present.name_batch(model)
    Path(out).write_bytes(model.SerializeToString())
    return ConvertReply(notes=[], names=names)
