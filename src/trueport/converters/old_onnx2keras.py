"""onnx2keras 0.0.24 on TensorFlow 2.8, whose result is a Keras 2 file: runs only when a route names it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueport.frameworks._base import ConvertContext, ConvertReply, Step, Unsupported

STEPS: tuple[Step, ...] = (
    Step(
        name="old-onnx2keras",
        source_format="onnx",
        target_format="keras",
        toolchain="old-onnx2keras",
        tool="onnx2keras",
        rank=900,
        options=(("change_ordering", "yes: channels last, by the tool's own rewriting; no (default): channels first"),),
        max_opset=11,
        note="a Keras 2 file with channels first, which TensorFlow runs on a CPU for some layers only",
    ),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Write the Keras 2 file at `out`. Raises Unsupported, or what onnx2keras raises."""
    import onnx
    from onnx2keras import onnx_to_keras

    inputs = [spec["name"] for spec in context["signature"]["inputs"]]
    outputs = [spec["name"] for spec in context["signature"]["outputs"]]
    ordering = str(options.get("change_ordering", "no")).lower() in ("yes", "true", "1")
    try:
        model = onnx_to_keras(onnx.load(source), inputs, verbose=False, change_ordering=ordering)
    except (AttributeError, NotImplementedError, KeyError) as error:
        raise Unsupported(
            f"onnx2keras: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        ) from error
    code = [layer.name for layer in model.layers if type(layer).__name__ == "Lambda"]
    if code:
        raise Unsupported(
            f"onnx2keras wrote Lambda layers ({', '.join(code[:3])}), whose code only its own Python 3.9 can load again"
        )
    made_in, made_out = list(model.input_names), list(model.output_names)
    if len(made_in) != len(inputs) or len(made_out) != len(outputs):
        raise Unsupported(f"onnx2keras made {len(made_in)} inputs and {len(made_out)} outputs, in no known order")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.h5"
        model.save(str(path), include_optimizer=False)
        shutil.move(str(path), out)
    pairs = [*zip(inputs, made_in), *zip(outputs, made_out)]
    reply = ConvertReply(notes=[], names={name: made for name, made in pairs if name != made})
    if ordering:
        tensors = {**dict(zip(made_in, model.inputs)), **dict(zip(made_out, model.outputs))}
        ranks = {name: len(tensors[made].shape) for name, made in pairs}
        known = {name: made for name, made in pairs if ranks[name] > 2}
        reply["layout"] = {
            made: {"source": name, "permutation": [0, *range(2, ranks[name]), 1]} for name, made in known.items()
        }
    return reply
