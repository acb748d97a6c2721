"""ExecuTorch's kernels in ONNX vocabulary: what each is called there, and its settings under the names that ONNX uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trueport.frameworks._torch_ops import ONNX_NAMES

_OTHERS: Mapping[str, str] = {
    "executorch_prim.et_view": "Reshape",
    "dim_order_ops._to_dim_order_copy": "Cast",
    "dim_order_ops._clone_dim_order": "Identity",
    "dim_order_ops._empty_dim_order": "ConstantOfShape",
    "aten.sym_size": "Shape",
    "quantized_decomposed.quantize_per_tensor": "QuantizeLinear",
    "quantized_decomposed.dequantize_per_tensor": "DequantizeLinear",
    "quantized_decomposed.quantize_per_channel": "QuantizeLinear",
    "quantized_decomposed.dequantize_per_channel": "DequantizeLinear",
}

RENAMED: Mapping[str, str] = {
    "stride": "strides",
    "dilation": "dilations",
    "groups": "group",
    "kernel_size": "kernel_shape",
    "eps": "epsilon",
    "negative_slope": "alpha",
    "keepdim": "keepdims",
    "min_val": "min",
    "max_val": "max",
    "upscale_factor": "blocksize",
    "downscale_factor": "blocksize",
    "diagonal": "k",
    "dtype": "to",
}
"""PyTorch's name -> ONNX's, for every operator."""
SPECIAL: Mapping[str, Mapping[str, str]] = {
    "Transpose": {"dims": "perm"},
    "ReduceMean": {"dim": "axes"},
    "ReduceSum": {"dim": "axes"},
    "ReduceMax": {"dim": "axes"},
    "ReduceMin": {"dim": "axes"},
    "ReduceProd": {"dim": "axes"},
    "Squeeze": {"dim": "axes", "dims": "axes"},
    "Unsqueeze": {"dim": "axes"},
    "Slice": {"dim": "axes", "start": "starts", "end": "ends", "step": "steps"},
    "Reshape": {"size": "shape"},
    "Expand": {"size": "shape"},
    "Resize": {"output_size": "sizes", "scale_factors": "scales"},
    "Split": {"split_sizes": "split"},
}
_AXIS = frozenset(
    {"Softmax", "LogSoftmax", "Concat", "ConcatFromSequence", "ArgMax", "ArgMin", "TopK", "CumSum", "Split"}
    | {"Gather", "GatherElements", "ScatterElements", "Sort"}
)
_SILENT = frozenset(
    {"momentum", "transposed", "half_to_float", "sparse", "scale_grad_by_freq", "non_blocking", "dim_order", "implicit"}
)
"""Settings that change no value, or that the operator's name already tells."""
_DTYPES = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "float16",
    6: "float32",
    7: "float64",
    11: "bool",
}


def base_name(native: str) -> str:
    """ "aten::permute_copy.out" -> "aten.permute": without overload, and without what makes it write to a new place."""
    name = native.replace("::", ".")
    name = name.rpartition(".")[0] if name.count(".") > 1 else name
    return name[: -len("_copy")] if name.endswith("_copy") and name not in _OTHERS else name


def onnx_name(native: str, settings: Mapping[str, Any]) -> str:
    """The ONNX operator that says the same; PyTorch's own name where ONNX has none."""
    base = base_name(native)
    if base == "aten.convolution" and settings.get("transposed"):
        return "ConvTranspose"
    return _OTHERS.get(base) or ONNX_NAMES.get(base) or base.rpartition(".")[2]


def shown_name(operator: str, setting: str) -> str:
    """Under which name a setting of PyTorch's is shown."""
    if setting == "dim" and operator in _AXIS:
        return "axis"
    return SPECIAL.get(operator, {}).get(setting, RENAMED.get(setting, setting))


def attributes(operator: str, settings: Mapping[str, Any], shapes: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The settings of a call under ONNX's names. `shapes`: of its operands, in order."""
    values = {name: value for name, value in settings.items() if value is not None and name not in _SILENT}
    found = {shown_name(operator, name): value for name, value in values.items()}
    if "to" in found:
        found["to"] = _DTYPES.get(found["to"], found["to"])
    for name in ("keepdims", "ceil_mode", "count_include_pad", "largest", "sorted", "align_corners"):
        if isinstance(found.get(name), bool):
            found[name] = int(found[name])
    settle = _SETTLE.get(operator)
    if settle is not None:
        settle(found, shapes)
    return found


def _convolution(found: dict[str, Any], shapes: Sequence[Sequence[int]]) -> None:
    if len(shapes) > 1:
        found["kernel_shape"] = list(shapes[1][2:])
    if isinstance(found.get("padding"), list):
        found["pads"] = found.pop("padding") * 2
    if not any(found.get("output_padding") or [0]):
        found.pop("output_padding", None)


def _pool(found: dict[str, Any], shapes: Sequence[Sequence[int]]) -> None:
    if not found.get("strides") and found.get("kernel_shape"):
        found["strides"] = found["kernel_shape"]
    if isinstance(found.get("padding"), list):
        found["pads"] = found.pop("padding") * 2


def _slice(found: dict[str, Any], shapes: Sequence[Sequence[int]]) -> None:
    """One axis at a time; ONNX lists them."""
    for name in ("axes", "starts", "ends", "steps"):
        if isinstance(found.get(name), int):
            found[name] = [found[name]]


def _pad(found: dict[str, Any], shapes: Sequence[Sequence[int]]) -> None:
    """PyTorch lists begin and end of the last axis first."""
    pairs = found.pop("pad", None)
    if isinstance(pairs, list) and shapes:
        rank = len(shapes[0])
        begins = [*[0] * (rank - len(pairs) // 2), *pairs[0::2][::-1]]
        ends = [*[0] * (rank - len(pairs) // 2), *pairs[1::2][::-1]]
        found["pads"] = begins + ends
        found["mode"] = "constant"


_SETTLE: Mapping[str, Callable[[dict[str, Any], Sequence[Sequence[int]]], None]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Pad": _pad,
    "Slice": _slice,
}
