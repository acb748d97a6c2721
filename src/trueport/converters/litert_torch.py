"""litert-torch: a PyTorch program as a TFLite model, quantised by ai_edge_quantizer when a precision asks for it.

Every size is fixed to the example's: open axes fail inside its lowering. The SignatureDef of the result has the
source's names, because the program is wrapped in a module that takes and returns them by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks._base import ConvertContext, ConvertReply, InvalidOutput, Step, Unsupported

STEPS: tuple[Step, ...] = (
    Step(
        name="litert-torch",
        source_format="pytorch",
        target_format="tflite",
        toolchain="litert-torch",
        tool="litert-torch",
        rank=10,
        precisions=("float32", "float16", "int8-dynamic", "int8"),
        dynamic_shapes=False,
        note="64-bit integer inputs and outputs may become 32-bit",
    ),
)

_SIGNATURE = "serving_default"


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Convert, then quantise. Raises Unsupported for a precision that needs calibration data which is not there."""
    import litert_torch
    import torch

    from trueport.converters.torch_onnx import open_program

    module, args, kwargs = open_program(source, context)
    names = [spec["name"] for spec in context["signature"]["inputs"]]
    outputs = [spec["name"] for spec in context["signature"]["outputs"]]
    wrapped = _named(module, args, kwargs, names, outputs)
    example = {name: torch.from_numpy(np.array(context["example"][name])) for name in names}
    model = litert_torch.convert(wrapped, sample_kwargs=example)
    precision = str(options.get("precision", "float32"))
    if precision == "float32":
        model.export(out)
    else:
        whole = str(Path(out).with_suffix(".float32.tflite"))
        model.export(whole)
        _quantise(whole, out, precision, context)
        Path(whole).unlink()
    if not Path(out).exists():
        raise InvalidOutput("litert-torch reported success and wrote no file")
    return {"notes": []}


def _named(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str], outputs: list[str]) -> Any:
    """A module called with the inputs by name, that returns its outputs by name."""
    import torch
    import torch.utils._pytree as pytree

    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    if len(places) != len(names):
        raise Unsupported("the program takes numbers besides tensors, which litert-torch cannot take")

    class Named(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, **inputs: Any) -> dict[str, Any]:
            flat = list(leaves)
            for index, name in zip(places, names):
                flat[index] = inputs[name]
            positional, named = pytree.tree_unflatten(flat, spec)
            results = [item for item in pytree.tree_leaves(self.inner(*positional, **named)) if item is not None]
            return dict(zip(outputs, results))

    wrapped = Named()
    wrapped.training = False
    wrapped.eval = lambda: wrapped
    return wrapped


def _quantise(source: str, out: str, precision: str, context: ConvertContext) -> None:
    from ai_edge_quantizer import quantizer, recipe

    recipes = {"float16": _float16, "int8-dynamic": recipe.dynamic_wi8_afp32, "int8": recipe.static_wi8_ai8}
    if precision not in recipes:
        raise Unsupported(f"precision {precision}: litert-torch gives {', '.join(['float32', *recipes])}")
    tool = quantizer.Quantizer(source)
    tool.load_quantization_recipe(recipes[precision]())
    if precision != "int8":
        tool.quantize().export_model(out, overwrite=True)
        return
    calibration = context["calibration"] or {name: value[None] for name, value in context["example"].items()}
    runs = len(next(iter(calibration.values())))
    rows = [{name: _narrow(np.array(array[run])) for name, array in calibration.items()} for run in range(runs)]
    tool.quantize(tool.calibrate({_SIGNATURE: rows})).export_model(out, overwrite=True)


def _narrow(array: np.ndarray) -> np.ndarray:
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _float16() -> list[dict[str, Any]]:
    """Weights stored as float16, arithmetic in float32."""
    return [
        {
            "regex": ".*",
            "operation": "*",
            "algorithm_key": "float_casting",
            "op_config": {
                "weight_tensor_config": {
                    "num_bits": 16,
                    "symmetric": True,
                    "granularity": "TENSORWISE",
                    "dtype": "FLOAT",
                },
                "compute_precision": "FLOAT",
                "explicit_dequantize": True,
                "skip_checks": False,
            },
        }
    ]
