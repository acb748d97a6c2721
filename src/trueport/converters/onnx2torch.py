"""onnx2torch: an ONNX model as a PyTorch module, exported to a `.pt2` of the torch in its own toolchain.

The module comes back in training mode, which would make BatchNorm use the batch's statistics: it is put in eval mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trueport.frameworks._base import ConvertContext, ConvertReply, Step, Unsupported

STEPS: tuple[Step, ...] = (
    Step(
        name="onnx2torch",
        source_format="onnx",
        target_format="pytorch",
        toolchain="onnx2torch",
        tool="onnx2torch",
        rank=40,
        max_opset=17,
        note="opset 17 at most; its Slice cannot be exported; of the open axes only a batch axis shared by all inputs stays open",
    ),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Convert and export. Raises Unsupported for an operator or opset that onnx2torch lacks."""
    import onnx2torch
    import torch

    from trueport.frameworks._torch_factory import export
    from trueport.frameworks._torch_program import Program

    try:
        module = onnx2torch.convert(source).eval()
    except NotImplementedError as error:
        raise Unsupported(f"onnx2torch: {_line(error)}") from error
    specs = context["signature"]["inputs"]
    inputs = tuple(torch.from_numpy(np.array(context["example"][spec["name"]])) for spec in specs)
    is_open = all(spec["shape"] and not isinstance(spec["shape"][0], int) for spec in specs)
    exported, notes, problem = export(module, inputs, {}, open_batch=is_open)
    if exported is None:
        raise Unsupported(f"the module that onnx2torch made cannot be exported: {problem}")
    torch.export.save(exported, out)
    view = Program(exported)
    made_in, made_out = [spec["name"] for spec in view.specs], [name for _, name in view.outputs]
    pairs = [*zip((spec["name"] for spec in specs), made_in)]
    pairs += zip((spec["name"] for spec in context["signature"]["outputs"]), made_out)
    return {"notes": notes, "names": {a: b for a, b in pairs if a != b}}


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
