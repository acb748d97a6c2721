"""What TFLite's operators are called in ONNX vocabulary, how their options read there, and what the graph as a whole declares."""

from __future__ import annotations

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
_CLIPS = {"RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0), "RELU_0_TO_1": (0.0, 1.0)}
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
    options = {snake(key): value for key, value in vars(operator.options).items()} if operator.options else {}
    found: dict[str, Any] = {}
    for attribute, parts in _LISTS.items():
        values = [int(options.pop(part)) for part in parts if part in options]
        if values:
            found[attribute] = values
    for key, value in options.items():
        name, reading = _RENAMED.get(key, (key, _plain))
        if value is not None:
            found[name] = reading(value)
    if found.get("activation", "") is None:
        del found["activation"]
    if operator.code in _CLIPS:
        found["min"], found["max"] = _CLIPS[operator.code]
    if operator.code == "SOFTMAX":
        found["axis"] = -1
    found.update(_from_operands(model, operator))
    return found


def _from_operands(model: Model, operator: Operator) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if operator.code == "PAD" or operator.code == "PADV2" or operator.code == "MIRROR_PAD":
        pads = _small_constant(model, operator, 1)
        if pads is not None:
            found["pads"] = [int(value) for value in pads.T.ravel()]  # all begins, then all ends, as ONNX has them
    if operator.code in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        found.update(_convolution(model, operator))
    if operator.code in _OPERANDS:
        position, name = _OPERANDS[operator.code]
        value = _small_constant(model, operator, position)
        if value is not None:
            flat = [int(item) for item in value.ravel()]
            found[name] = flat[0] if name in _SCALARS and len(flat) == 1 else flat
    return found


def _convolution(model: Model, operator: Operator) -> dict[str, Any]:
    data, kernel = (model.tensors[index].shape for index in operator.inputs[:2])
    if len(data) != 4 or len(kernel) != 4:
        return {}
    if operator.code == "DEPTHWISE_CONV_2D":
        return {"kernel_shape": list(kernel[1:3]), "group": data[3]}
    return {"kernel_shape": list(kernel[1:3]), "group": max(1, data[3] // kernel[3]) if kernel[3] else 1}


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
        if operator.code in _LOOKUPS:
            which, table = (operator.inputs[position] for position in _LOOKUPS[operator.code])
            size = model.tensors[table].shape[int(getattr(operator.options, "axis", 0))] if table in constants else 0
            for origin in origins.get(which, ()) if size else ():
                limits[origin] = min(limits.get(origin, size - 1), size - 1)
        elif operator.code in _MOVING:
            reached = set().union(*(origins.get(index, set()) for index in operator.inputs))
            for index in operator.outputs if reached else ():
                origins[index] = reached
    return limits
