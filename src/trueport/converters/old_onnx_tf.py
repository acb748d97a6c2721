"""onnx-tf 1.10 on TensorFlow 2.8 with TensorFlow Addons and Probability: runs only when a route names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueport.frameworks._base import ConvertContext, ConvertReply, Step, Unsupported

STEPS: tuple[Step, ...] = (
    Step(
        name="old-onnx-tf",
        source_format="onnx",
        target_format="savedmodel",
        toolchain="old-onnx-tf",
        tool="onnx-tf",
        rank=900,
        max_opset=15,
        note="keeps channels first, by transposing around every convolution",
    ),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Write the SavedModel folder at `out`. Raises Unsupported, or what onnx-tf raises."""
    import onnx
    from onnx_tf.backend import prepare

    try:
        prepare(onnx.load(source)).export_graph(out)
    except (NotImplementedError, RuntimeError) as error:
        raise Unsupported(f"onnx-tf: {(str(error).splitlines() or [type(error).__name__])[0][:300]}") from error
    from trueport.frameworks import tensorflow as savedmodels

    saved = savedmodels.load(out, trust=True)
    signature = context["signature"]
    given = {spec["name"] for spec in (*signature["inputs"], *signature["outputs"])}
    renamed = given - {*saved.inputs, *saved.outputs}
    if renamed:
        raise Unsupported(f"onnx-tf renamed {', '.join(sorted(renamed))}; which is which is not known")
    return ConvertReply(notes=[], names={})
