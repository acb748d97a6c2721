"""tflite2onnx 0.4.1, which turns what is around a convolution to channels first: runs only when a route names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueport.frameworks._base import ConvertContext, ConvertReply, Step, Unsupported

STEPS: tuple[Step, ...] = (
    Step(
        name="old-tflite2onnx",
        source_format="tflite",
        target_format="onnx",
        toolchain="old-tflite2onnx",
        tool="tflite2onnx",
        rank=900,
        dynamic_shapes=False,
        note="about 30 operators; dies on a fully connected layer without a bias",
    ),
)
_FIRST = [0, 3, 1, 2]


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Write the ONNX model at `out`. Raises Unsupported, or what tflite2onnx raises."""
    import onnx
    import tflite2onnx

    try:
        tflite2onnx.convert(source, out)
    except (NotImplementedError, TypeError, KeyError) as error:
        raise Unsupported(
            f"tflite2onnx: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        ) from error
    graph = onnx.load(out).graph
    reply = ConvertReply(notes=[], names={}, layout={})
    for specs, items in (
        (context["signature"]["inputs"], graph.input),
        (context["signature"]["outputs"], graph.output),
    ):
        if len(specs) != len(items):
            raise Unsupported(f"tflite2onnx wrote {len(items)} inputs or outputs for {len(specs)}")
        for spec, item in zip(specs, items):
            if spec["name"] != item.name:
                reply["names"][spec["name"]] = item.name
            shape = [dim.dim_value for dim in item.type.tensor_type.shape.dim]
            if _turned(spec["shape"] or [], shape):
                reply["layout"][item.name] = {"source": spec["name"], "permutation": _FIRST}
    return reply


def _turned(source: Sequence[Any], made: Sequence[int]) -> bool:
    """Whether a shape is the source's with channels first (an open size of the source fits any)."""
    if len(source) != 4 or len(made) != 4:
        return False
    moved = [source[axis] for axis in _FIRST]
    fits = all(not isinstance(a, int) or a == b for a, b in zip(moved, made))
    stays = all(not isinstance(a, int) or a == b for a, b in zip(source, made))
    return fits and not stays
