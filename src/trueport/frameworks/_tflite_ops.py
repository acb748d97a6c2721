"""What TFLite's operators are called in ONNX vocabulary, how their options read there, and what the graph as a whole declares."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Callable

import numpy as np

from trueport.frameworks._tflite_model import OPAQUE, Model, Operator, snake

_SAME = (
    "ABS CEIL COS EXP FLOOR LOG NEG ROUND SIN SQRT TANH SIGN ELU GELU RELU ADD SUB MUL DIV POW SOFTMAX RESHAPE TRANSPOSE "
    "PAD SLICE SPLIT SQUEEZE TILE CAST SHAPE RANGE"
)
"""Operators whose ONNX name is theirs, capitalised."""
_OTHER = {
    "ARG_MAX": "ArgMax",
    "ARG_MIN": "ArgMin",
    "ATAN2": "Atan2",
    "AVERAGE_POOL_2D": "AveragePool",
    "BATCH_MATMUL": "MatMul",
    "BITCAST": "BitCast",
    "BITWISE_XOR": "BitwiseXor",
    "BROADCAST_TO": "Expand",
    "CONCATENATION": "Concat",
    "CONV_2D": "Conv",
    "CONV_3D": "Conv",
    "CONV_3D_TRANSPOSE": "ConvTranspose",
    "CUMSUM": "CumSum",
    "DEPTHWISE_CONV_2D": "Conv",
    "DEPTH_TO_SPACE": "DepthToSpace",
    "DEQUANTIZE": "DequantizeLinear",
    "EMBEDDING_LOOKUP": "Gather",
    "EQUAL": "Equal",
    "EXPAND_DIMS": "Unsqueeze",
    "FILL": "ConstantOfShape",
    "FULLY_CONNECTED": "Gemm",
    "GATHER": "Gather",
    "GATHER_ND": "GatherND",
    "GREATER": "Greater",
    "GREATER_EQUAL": "GreaterOrEqual",
    "HARD_SWISH": "HardSwish",
    "IF": "If",
    "L2_NORMALIZATION": "LpNormalization",
    "LEAKY_RELU": "LeakyRelu",
    "LESS": "Less",
    "LESS_EQUAL": "LessOrEqual",
    "LOCAL_RESPONSE_NORMALIZATION": "LRN",
    "LOGICAL_AND": "And",
    "LOGICAL_NOT": "Not",
    "LOGICAL_OR": "Or",
    "LOGISTIC": "Sigmoid",
    "LOG_SOFTMAX": "LogSoftmax",
    "LSTM": "LSTM",
    "MAXIMUM": "Max",
    "MAX_POOL_2D": "MaxPool",
    "MEAN": "ReduceMean",
    "MINIMUM": "Min",
    "MIRROR_PAD": "Pad",
    "NON_MAX_SUPPRESSION_V4": "NonMaxSuppression",
    "NON_MAX_SUPPRESSION_V5": "NonMaxSuppression",
    "NOT_EQUAL": "NotEqual",
    "ONE_HOT": "OneHot",
    "PADV2": "Pad",
    "PRELU": "PRelu",
    "QUANTIZE": "QuantizeLinear",
    "REDUCE_ALL": "ReduceMin",
    "REDUCE_ANY": "ReduceMax",
    "REDUCE_MAX": "ReduceMax",
    "REDUCE_MIN": "ReduceMin",
    "REDUCE_PROD": "ReduceProd",
    "RELU6": "Clip",
    "RELU_0_TO_1": "Clip",
    "RELU_N1_TO_1": "Clip",
    "RESIZE_BILINEAR": "Resize",
    "RESIZE_NEAREST_NEIGHBOR": "Resize",
    "REVERSE_SEQUENCE": "ReverseSequence",
    "RNN": "RNN",
    "SCATTER_ND": "ScatterND",
    "SELECT": "Where",
    "SELECT_V2": "Where",
    "SPACE_TO_DEPTH": "SpaceToDepth",
    "SPLIT_V": "Split",
    "STRIDED_SLICE": "Slice",
    "SUM": "ReduceSum",
    "TOPK_V2": "TopK",
    "TRANSPOSE_CONV": "ConvTranspose",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "LSTM",
    "UNIDIRECTIONAL_SEQUENCE_RNN": "RNN",
    "WHILE": "Loop",
    "WHERE": "NonZero",
}
ONNX_NAMES = {**{name: name.capitalize() for name in _SAME.split()}, **_OTHER}

_ACTIVATIONS = (None, "Relu", "ReluN1To1", "Relu6", "Tanh", "SignBit")
_PADDINGS = ("SAME_UPPER", "VALID")
_VALID = 1
_RENAMED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "fused_activation_function": ("activation", lambda value: _pick(_ACTIVATIONS, value)),
    "padding": ("auto_pad", lambda value: _pick(_PADDINGS, value)),
    "keep_dims": ("keepdims", int),
    "keep_num_dims": ("keep_num_dims", bool),
    "squeeze_dims": ("axes", lambda value: [int(item) for item in value]),
    "block_size": ("blocksize", int),
    "alpha": ("alpha", float),
}
"""TFLite option -> (ONNX attribute, how its value reads there)."""
_LISTS = {
    "strides": ("stride_d", "stride_h", "stride_w"),
    "dilations": ("dilation_d_factor", "dilation_h_factor", "dilation_w_factor"),
    "kernel_shape": ("filter_depth", "filter_height", "filter_width"),
}
"""ONNX attribute -> the single TFLite options it collects, outermost first."""
_OPERANDS = {
    "TRANSPOSE": (1, "perm"),
    "MEAN": (1, "axes"),
    "SUM": (1, "axes"),
    "REDUCE_MAX": (1, "axes"),
    "REDUCE_MIN": (1, "axes"),
    "REDUCE_PROD": (1, "axes"),
    "REDUCE_ANY": (1, "axes"),
    "REDUCE_ALL": (1, "axes"),
    "EXPAND_DIMS": (1, "axes"),
    "RESHAPE": (1, "shape"),
    "BROADCAST_TO": (1, "shape"),
    "TILE": (1, "repeats"),
    "ARG_MAX": (1, "axis"),
    "ARG_MIN": (1, "axis"),
    "CUMSUM": (1, "axis"),
    "SPLIT": (0, "axis"),
    "SPLIT_V": (2, "axis"),
    "TOPK_V2": (1, "k"),
    "RESIZE_BILINEAR": (1, "sizes"),
    "RESIZE_NEAREST_NEIGHBOR": (1, "sizes"),
}
"""Operators that take as an operand what ONNX (at some opset) calls an attribute: (operand, attribute)."""
_SCALARS = frozenset({"axis", "k"})


_MOVING = frozenset(
    [
        "RESHAPE",
        "CAST",
        "EXPAND_DIMS",
        "SQUEEZE",
        "SLICE",
        "STRIDED_SLICE",
        "TRANSPOSE",
        "CONCATENATION",
        "PACK",
        "UNPACK",
        "SPLIT",
        "SPLIT_V",
        "TILE",
        "BROADCAST_TO",
        "GATHER",
        "GATHER_ND",
        "EMBEDDING_LOOKUP",
        "QUANTIZE",
        "DEQUANTIZE",
        "PAD",
        "PADV2",
        "REVERSE_V2",
    ]
)
"""Operators that move or convert values and compute nothing with them."""
_LOOKUPS = {"GATHER": (1, 0), "EMBEDDING_LOOKUP": (0, 1)}
"""Operator -> (operand that holds the indices, operand that holds the table)."""


def attributes(model: Model, operator: Operator) -> dict[str, Any]:
    """Return the options of an operator as plain JSON, in ONNX vocabulary where one exists, else in the schema's spelling."""
    options = defaultdict(
        int, {snake(key): value for key, value in vars(operator.options or SimpleNamespace()).items()}
    )
    left = dict(options)
    found: dict[str, Any] = {}
    for attribute, parts in _LISTS.items():
        values = [int(left.pop(part)) for part in parts if part in left]
        if values:
            found[attribute] = values
    for key, value in left.items():
        name, reading = _RENAMED.get(key, (key, _plain))
        if value is not None:
            found[name] = reading(value)
    if found.get("activation", "") is None:
        del found["activation"]
    found.update(_FIXED.get(operator.code, {}))
    if operator.code in _COMPUTED:
        found.update(_COMPUTED[operator.code](model, operator, options))
    if operator.code in _OPERANDS:
        position, name = _OPERANDS[operator.code]
        value = _small_constant(model, operator, position)
        if value is not None:
            flat = [int(item) for item in value.ravel()]
            found[name] = flat[0] if name in _SCALARS and len(flat) == 1 else flat
    found.update(_grid(model, operator))
    return found


def _grid(model: Model, operator: Operator) -> dict[str, Any]:
    """Scale and zero point of what an operator computes, under the names of ONNX's quantised operators."""
    grid = model.tensors[operator.outputs[0]].quantization if operator.outputs else None
    return {} if grid is None else {"y_scale": _few(grid.scale), "y_zero_point": _few(grid.zero_point)}


def _few(values: np.ndarray) -> Any:
    return values.tolist() if values.size > 1 else values.ravel()[0].item()


def _pad(model: Model, operator: Operator, options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"mode": "constant"}
    if operator.code == "MIRROR_PAD":
        found["mode"] = _pick(("reflect", "symmetric"), options["mode"])
    pads = _small_constant(model, operator, 1)
    if pads is not None:
        found["pads"] = [int(value) for value in pads.T.ravel()]  # all begins, then all ends, as ONNX has them
    value = _small_constant(model, operator, 2)
    if value is not None and value.size == 1:
        found["value"] = value.ravel()[0].item()
    return found


def _convolution(model: Model, operator: Operator, options: Mapping[str, Any]) -> dict[str, Any]:
    data, kernel = (model.tensors[index].shape for index in operator.inputs[:2])
    if len(data) != len(kernel) or len(data) not in (4, 5):
        return {}
    sizes = list(kernel[:3] if operator.code == "CONV_3D" else kernel[1:3])
    channels = kernel[3] if len(data) == 4 or operator.code == "CONV_3D" else 0
    group = data[-1] if operator.code == "DEPTHWISE_CONV_2D" else max(1, data[-1] // channels) if channels else 1
    return {"kernel_shape": sizes, "group": group, **_pads(model, operator.inputs[0], sizes, options)}


def _pool(model: Model, operator: Operator, options: Mapping[str, Any]) -> dict[str, Any]:
    sizes = [int(options["filter_height"]), int(options["filter_width"])]
    own = {"count_include_pad": 0} if operator.code == "AVERAGE_POOL_2D" else {}
    return {**own, **_pads(model, operator.inputs[0], sizes, options)}


def _pads(model: Model, data: int, kernel: list[int], options: Mapping[str, Any]) -> dict[str, Any]:
    """Explicit pads, where the file fixes the sizes from which "same" padding follows: begins, then ends."""
    dims = model.tensors[data].dims
    if options["padding"] == _VALID:
        return {"pads": [0] * 2 * len(kernel)}
    if dims is None or len(dims) != len(kernel) + 2:
        return {}
    totals = []
    for size, window, axis in zip(dims[1:-1], kernel, "dhw"[-len(kernel) :]):
        step = int(options[f"stride_{axis}"])
        reach = (window - 1) * int(options.get(f"dilation_{axis}_factor", 1)) + 1
        if size is None:
            return {}
        totals.append(max(0, (-(-size // step) - 1) * step + reach - size))
    return {"pads": [total // 2 for total in totals] + [total - total // 2 for total in totals]}


def _transposed(model: Model, operator: Operator, options: Mapping[str, Any]) -> dict[str, Any]:
    """TRANSPOSE_CONV: its "same" padding is what is cut off the full result to get the shape asked for."""
    kernel, data = (model.tensors[index] for index in operator.inputs[1:3])
    found: dict[str, Any] = {"kernel_shape": list(kernel.shape[1:3]), "group": 1}
    sizes = _small_constant(model, operator, 0)
    dims = data.dims
    if sizes is None or sizes.size != 4 or dims is None or len(dims) != 4 or None in dims[1:3]:
        return found
    found["output_shape"] = [int(size) for size in sizes[1:3]]
    steps = (int(options["stride_h"]), int(options["stride_w"]))
    full = [(size - 1) * step + window for size, step, window in zip(data.shape[1:3], steps, kernel.shape[1:3])]
    totals = [max(0, size - int(kept)) for size, kept in zip(full, sizes[1:3])]
    found["pads"] = [total // 2 for total in totals] + [total - total // 2 for total in totals]
    return found


def _slice(model: Model, operator: Operator, options: Mapping[str, Any]) -> dict[str, Any]:
    starts, sizes = _small_constant(model, operator, 1), _small_constant(model, operator, 2)
    if starts is None or sizes is None:
        return {}
    ends = [_FAR if size < 0 else int(start + size) for start, size in zip(starts.ravel(), sizes.ravel())]
    return {"starts": starts.ravel().tolist(), "ends": ends}


def _strided_slice(model: Model, operator: Operator, options: Mapping[str, Any]) -> dict[str, Any]:
    """Starts, ends and steps with the masks worked in; an axis that is dropped ends one after its start."""
    parts = [_small_constant(model, operator, position) for position in (1, 2, 3)]
    if any(part is None for part in parts):
        return {}
    found: dict[str, list[int]] = {"starts": [], "ends": [], "steps": []}
    for axis, (start, end, step) in enumerate(zip(*(part.ravel().tolist() for part in parts if part is not None))):
        dropped = int(options["shrink_axis_mask"]) >> axis & 1
        if int(options["begin_mask"]) >> axis & 1:
            start = 0 if step > 0 else _FAR
        if dropped:
            end = start + 1 if start != -1 else _FAR
        elif int(options["end_mask"]) >> axis & 1:
            end = _FAR if step > 0 else -_FAR - 1
        for key, value in zip(found, (start, end, 1 if dropped else step)):
            found[key].append(value)
    return dict(found)


def _resize(model: Model, operator: Operator, options: Mapping[str, Any]) -> dict[str, Any]:
    nearest = operator.code == "RESIZE_NEAREST_NEIGHBOR"
    aligned, half = bool(options["align_corners"]), bool(options["half_pixel_centers"])
    coordinates = "align_corners" if aligned else "half_pixel" if half else "asymmetric"
    if not nearest:
        return {"mode": "linear", "coordinate_transformation_mode": coordinates}
    return {
        "mode": "nearest",
        "coordinate_transformation_mode": "tf_half_pixel_for_nn" if half and not aligned else coordinates,
        "nearest_mode": "round_prefer_ceil" if aligned else "floor",
    }


def _lrn(model: Model, operator: Operator, options: Mapping[str, Any]) -> dict[str, Any]:
    size = 2 * int(options["radius"]) + 1  # ONNX divides alpha by the window's size and TFLite does not
    return {"size": size, "alpha": float(options["alpha"]) * size}


_FAR = 2**31 - 1
"""An end beyond every axis."""
_COMPUTED: dict[str, Callable[[Model, Operator, Mapping[str, Any]], dict[str, Any]]] = {
    "PAD": _pad,
    "PADV2": _pad,
    "MIRROR_PAD": _pad,
    "CONV_2D": _convolution,
    "CONV_3D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "L2_POOL_2D": _pool,
    "TRANSPOSE_CONV": _transposed,
    "SLICE": _slice,
    "STRIDED_SLICE": _strided_slice,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "LOCAL_RESPONSE_NORMALIZATION": _lrn,
    "CAST": lambda model, operator, options: {"to": model.tensors[operator.outputs[0]].dtype},
    "GELU": lambda model, operator, options: {"approximate": "tanh" if options["approximate"] else "none"},
    "SPLIT": lambda model, operator, options: {"num_outputs": len(operator.outputs)},
}
"""Operator -> what it is called with in ONNX, from its options (in the schema's spelling) and operands."""
_FIXED: dict[str, dict[str, Any]] = {
    "RELU6": {"min": 0.0, "max": 6.0},
    "RELU_N1_TO_1": {"min": -1.0, "max": 1.0},
    "RELU_0_TO_1": {"min": 0.0, "max": 1.0},
    "ELU": {"alpha": 1.0},
    "SOFTMAX": {"axis": -1},
    "LOG_SOFTMAX": {"axis": -1},
    "L2_NORMALIZATION": {"axis": -1, "p": 2},
    "FULLY_CONNECTED": {"transB": 1},
    "EMBEDDING_LOOKUP": {"axis": 0},
    "ARG_MAX": {"keepdims": 0},
    "ARG_MIN": {"keepdims": 0},
}
"""Operator -> what TFLite leaves unsaid because it has no choice."""


def _small_constant(model: Model, operator: Operator, position: int) -> np.ndarray | None:
    if position >= len(operator.inputs) or operator.inputs[position] < 0:
        return None
    tensor = model.tensors[operator.inputs[position]]
    if not tensor.constant or tensor.dtype in OPAQUE or int(np.prod(tensor.shape, dtype=np.int64)) > 64:
        return None
    return model.constant(tensor.number, raw=True)


def _pick(names: tuple[Any, ...], value: Any) -> Any:
    return names[value] if 0 <= value < len(names) else int(value)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, int, float, str)):
        return value
    return {snake(key): _plain(item) for key, item in vars(value).items() if item is not None}


def precision_of(model: Model) -> str:
    """Tell the declared precision: of the activations where they are quantised, else of the weights."""
    tensors = model.tensors
    for operator in model.operators:
        computed = [tensors[index] for index in (*operator.inputs[:1], *operator.outputs[:1]) if index >= 0]
        if operator.code not in _MOVING and computed and all(t.quantization and not t.constant for t in computed):
            return "int8"
    if any(tensors[index].quantization for index in (*model.inputs, *model.outputs)):
        return "int8"
    kinds = {
        tensor.dtype
        for tensor in tensors
        if tensor.constant and len(tensor.shape) > 1 and (tensor.quantization or tensor.dtype == "float16")
    }
    if kinds & {"int8", "uint8", "int4", "int16"}:
        return "int8-dynamic"
    return "float16" if "float16" in kinds else "float32"


def index_limits(model: Model) -> dict[int, int]:
    """Largest legal value of each integer input that, perhaps moved about, indexes a constant table."""
    origins: dict[int, set[int]] = {
        index: {index} for index in model.inputs if model.tensors[index].dtype in ("int32", "int64", "int16")
    }
    limits: dict[int, int] = {}
    constants = {tensor.number for tensor in model.tensors if tensor.constant}
    for operator in model.operators:
        if operator.code == "DEQUANTIZE" and constants.issuperset(operator.inputs):
            constants.update(operator.outputs)
        lookup = [operator.inputs[position] for position in _LOOKUPS.get(operator.code, ())]
        if lookup and lookup[1] in constants:
            which, table = lookup
            size = model.tensors[table].shape[int(getattr(operator.options, "axis", 0))]
            for origin in origins.get(which, ()):
                limits[origin] = min(limits.get(origin, size - 1), size - 1)
        elif operator.code in _MOVING:
            reached = set().union(*(origins.get(index, set()) for index in operator.inputs))
            for index in operator.outputs if reached else ():
                origins[index] = reached
    return limits
