"""Relax operators in ONNX vocabulary: what each is called there, and its attributes under the names that ONNX uses.

Only names change and padding's order; values are the module's. What has no counterpart keeps TVM's own name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trueport.frameworks._base import Dim

_BY_OPERATOR: Mapping[str, str] = {
    "Abs": "abs",
    "Acos": "acos",
    "Acosh": "acosh",
    "Add": "add",
    "And": "logical_and",
    "ArgMax": "argmax",
    "ArgMin": "argmin",
    "Asin": "asin",
    "Asinh": "asinh",
    "Atan": "atan",
    "Atan2": "atan2",
    "Atanh": "atanh",
    "Attention": "nn.attention nn.attention_bias",
    "AveragePool": "nn.avg_pool1d nn.avg_pool2d nn.avg_pool3d nn.adaptive_avg_pool1d nn.adaptive_avg_pool2d nn.adaptive_avg_pool3d",
    "BatchNormalization": "nn.batch_norm",
    "BitwiseAnd": "bitwise_and",
    "BitwiseNot": "bitwise_not",
    "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor",
    "Cast": "astype",
    "Ceil": "ceil",
    "Clip": "clip",
    "Concat": "concat",
    "ConcatFromSequence": "stack",
    "ConstantOfShape": "full full_like ones ones_like zeros zeros_like",
    "Conv": "nn.conv1d nn.conv2d nn.conv3d",
    "ConvTranspose": "nn.conv1d_transpose nn.conv2d_transpose nn.conv3d_transpose",
    "Cos": "cos",
    "Cosh": "cosh",
    "CumSum": "cumsum",
    "DepthToSpace": "nn.pixel_shuffle",
    "DequantizeLinear": "dequantize",
    "Div": "divide",
    "Dropout": "nn.dropout",
    "Einsum": "einsum",
    "Equal": "equal",
    "Erf": "erf",
    "Exp": "exp",
    "Expand": "broadcast_to",
    "EyeLike": "eye eye_like",
    "Flatten": "nn.batch_flatten flatten",
    "Flip": "flip",
    "Floor": "floor",
    "FloorDiv": "floor_divide",
    "Gather": "take",
    "GatherElements": "gather_elements",
    "GatherND": "gather_nd index_tensor",
    "Gelu": "nn.gelu nn.gelu_tanh",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "GridSample": "image.grid_sample",
    "GroupNormalization": "nn.group_norm",
    "If": "If",
    "InstanceNormalization": "nn.instance_norm",
    "IsInf": "isinf",
    "IsNaN": "isnan",
    "LayerNormalization": "nn.layer_norm",
    "LeakyRelu": "nn.leakyrelu",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Log": "log",
    "LogSoftmax": "nn.log_softmax",
    "MatMul": "matmul",
    "Max": "maximum",
    "MaxPool": "nn.max_pool1d nn.max_pool2d nn.max_pool3d",
    "Min": "minimum",
    "Mod": "floor_mod mod",
    "Mul": "multiply",
    "Neg": "negative",
    "NonZero": "nonzero",
    "Not": "logical_not",
    "NotEqual": "not_equal",
    "OneHot": "one_hot",
    "Or": "logical_or",
    "PRelu": "nn.prelu",
    "Pad": "nn.pad",
    "Pow": "power",
    "QuantizeLinear": "quantize",
    "RMSNormalization": "nn.rms_norm",
    "Range": "arange",
    "ReduceMax": "max",
    "ReduceMean": "mean",
    "ReduceMin": "min",
    "ReduceProd": "prod",
    "ReduceSum": "sum",
    "Relu": "nn.relu",
    "Reshape": "reshape",
    "Resize": "image.resize2d image.resize3d",
    "ReverseSequence": "reverse_sequence",
    "RoiAlign": "vision.roi_align",
    "Round": "round",
    "Rsqrt": "rsqrt",
    "ScatterElements": "scatter_elements",
    "ScatterND": "scatter_nd index_put",
    "Selu": "nn.selu",
    "Shape": "shape_of shape_to_tensor",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Slice": "strided_slice dynamic_strided_slice",
    "Softmax": "nn.softmax",
    "Softplus": "nn.softplus",
    "Sort": "sort",
    "Split": "split",
    "Sqrt": "sqrt",
    "Square": "square",
    "Squeeze": "squeeze",
    "Sub": "subtract",
    "Swish": "nn.silu",
    "Tan": "tan",
    "Tanh": "tanh",
    "Tile": "tile",
    "TopK": "topk",
    "Transpose": "permute_dims",
    "Trilu": "tril triu",
    "Trunc": "trunc",
    "Unique": "unique",
    "Unsqueeze": "expand_dims",
    "Var": "variance",
    "Where": "where",
    "Xor": "logical_xor",
}
_ONNX = {native: name for name, natives in _BY_OPERATOR.items() for native in natives.split()}

COMMON: Mapping[str, str] = {
    "padding": "pads",
    "dilation": "dilations",
    "groups": "group",
    "pool_size": "kernel_shape",
    "method": "mode",
    "rounding_method": "nearest_mode",
    "cubic_alpha": "cubic_coeff_a",
    "cubic_exclude": "exclude_outside",
    "pad_mode": "mode",
    "pad_value": "value",
    "subscripts": "equation",
    "upscale_factor": "blocksize",
}
"""TVM's attribute -> ONNX's name, for every operator."""
SPECIAL: Mapping[str, Mapping[str, str]] = {
    "permute_dims": {"axes": "perm"},
    "sum": {"axis": "axes"},
    "mean": {"axis": "axes"},
    "max": {"axis": "axes"},
    "min": {"axis": "axes"},
    "prod": {"axis": "axes"},
    "variance": {"axis": "axes"},
    "squeeze": {"axis": "axes"},
    "expand_dims": {"axis": "axes"},
    "astype": {"dtype": "to"},
}
OPERANDS: Mapping[str, Mapping[int, str]] = {
    "clip": {1: "min", 2: "max"},
    "strided_slice": {1: "axes", 2: "starts", 3: "ends", 4: "steps"},
    "reshape": {1: "shape"},
    "broadcast_to": {1: "shape"},
    "image.resize2d": {1: "sizes"},
    "image.resize3d": {1: "sizes"},
    "full": {0: "shape"},
    "zeros": {0: "shape"},
    "ones": {0: "shape"},
    "tril": {1: "k"},
    "triu": {1: "k"},
    "arange": {0: "start", 1: "limit", 2: "delta"},
}
"""Operands that are no tensors, by place, under the name that ONNX has for them."""

_SILENT = ("out_dtype", "out_layout", "kernel_layout", "data_layout", "layout", "assume_inbound", "extrapolation_value")
_MODES = {"nearest_neighbor": "nearest", "constant": "constant", "reflect": "reflect", "replicate": "edge"}
_ROUNDING = {"round": "round_prefer_floor", "": "round_prefer_floor", "round_prefer_ceil": "round_prefer_ceil"}
_FIXED: Mapping[str, Mapping[str, Any]] = {
    "nn.gelu": {"approximate": "none"},
    "nn.gelu_tanh": {"approximate": "tanh"},
    "tril": {"upper": 0},
    "triu": {"upper": 1},
}


def onnx_name(native: str) -> str:
    """The ONNX operator of a Relax operator, or its own name where ONNX has none."""
    if native.startswith("call_tir:"):
        kernel = native.partition(":")[2].rstrip("0123456789")
        return _ONNX.get(kernel, _ONNX.get(f"nn.{kernel}", native))
    return _ONNX.get(native, native)


def shown_name(native: str, field: str) -> str:
    """Under which name an attribute of TVM's is shown."""
    return SPECIAL.get(native, {}).get(field, COMMON.get(field, field))


def native_word(native: str, shown: str, value: Any) -> Any:
    """TVM's word for a value as it is shown."""
    words = _MODES if shown == "mode" else _ROUNDING if shown == "nearest_mode" else {}
    return next((word for word, said in words.items() if said == value and word), value)


def fields_of(attrs: Any) -> list[str]:
    """Names of the fields of an attribute object; none for an operator without attributes."""
    known = getattr(type(attrs), "__tvm_ffi_type_info__", None)
    return [item.name for item in known.fields] if known is not None and attrs is not None else []


def attributes(call: Any, native: str, shapes: Sequence[list[Dim] | None]) -> dict[str, Any]:
    """The attributes of a call, with what ONNX has as attributes and TVM as operands, as plain values."""
    if native == "If":
        return {}
    found: dict[str, Any] = dict(_FIXED.get(native, {}))
    for field in fields_of(call.attrs):
        value = plain(getattr(call.attrs, field))
        if field not in _SILENT and value is not None:
            found[shown_name(native, field)] = value
    for place, name in OPERANDS.get(native, {}).items():
        if place < len(call.args):
            value = plain(call.args[place])
            if value is not None:
                found[name] = value
    return _settled(native, found, shapes)


def _settled(native: str, found: dict[str, Any], shapes: Sequence[list[Dim] | None]) -> dict[str, Any]:
    """What needs more than a name: the window of a convolution, the order of padding, words for modes."""
    if native.startswith("nn.conv") and len(shapes) > 1 and shapes[1] is not None:
        found["kernel_shape"] = shapes[1][2:]
    if native.startswith("nn.adaptive_avg_pool"):
        found.pop("pads", None)
    if native == "nn.pad" and isinstance(found.get("pad_width"), list):
        width = found.pop("pad_width")
        found["pads"] = [*width[0::2], *width[1::2]]
    if native in ("nn.pad", "image.resize2d", "image.resize3d"):
        found["mode"] = _MODES.get(str(found.get("mode")), found.get("mode"))
    if native.startswith("image.resize"):
        found["nearest_mode"] = _ROUNDING.get(str(found.get("nearest_mode")), found.get("nearest_mode"))
    if "largest" in found:
        found["largest"] = int(found["largest"])
    return found


def plain(value: Any) -> Any:
    """A value of TVM's as JSON holds it; None where it is symbolic or no value."""
    kind = type(value).__name__
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if kind in ("IntImm", "FloatImm"):
        return value.value
    if kind in ("StringImm", "DataTypeImm"):
        return str(value.value)
    if kind in ("Array", "tuple", "list"):
        return [plain(item) for item in value]
    if kind == "ShapeExpr":
        return [plain(item) for item in value.values]
    if kind == "Tuple":
        items = [plain(item) for item in value.fields]
        return items if all(item is not None for item in items) else None
    return str(value) if kind == "dtype" else None
