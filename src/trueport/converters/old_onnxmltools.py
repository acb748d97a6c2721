"""onnxmltools 1.11, whose Keras converter is tf2onnx 1.9 inside: runs only when a route names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueport.frameworks._base import ConvertContext, ConvertReply, Step

STEPS: tuple[Step, ...] = (
    Step("old-onnxmltools-keras2", "keras", "onnx", "old-onnxmltools", "onnxmltools", 900, legacy_keras=True),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Write the ONNX model at `out`. Raises Unsupported, InvalidOutput, or what onnxmltools raises."""
    import onnxmltools

    from trueport.converters import old_tf2onnx
    from trueport.converters import tf2onnx as present

    with present.errors_of("tf2onnx") as said:
        model = onnxmltools.convert_keras(old_tf2onnx.load_keras2(source, trust=context["trust"]))
    present.check(model, said)
    return old_tf2onnx.finish(model, out, context)
