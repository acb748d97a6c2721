"""What operators are, across vocabularies: one canonical kind each, the simpler kinds that it may be taken apart into,
and its fused activation. Only finding the cause needs to know this; alignment and localisation do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trueport.graph import Node

_KINDS: Mapping[str, str] = {
    "Activation": "Identity",
    "AddN": "Sum",
    "AddV2": "Add",
    "BIAS_ADD": "Add",
    "BiasAdd": "Add",
    "Bidirectional": "Concat",
    "BatchMatMul": "MatMul",
    "BatchMatMulV2": "MatMul",
    "Dropout": "Identity",
    "Flatten": "Reshape",
    "GlobalAveragePool": "ReduceMean",
    "GlobalMaxPool": "ReduceMax",
    "HARD_SWISH": "HardSwish",
    "Multiply": "Mul",
    "PACK": "Concat",
    "PRELU": "PRelu",
    "Permute": "Transpose",
    "REVERSE_V2": "Flip",
    "RSQRT": "Rsqrt",
    "RealDiv": "Div",
    "Reverse": "Flip",
    "ReverseV2": "Flip",
    "Relu6": "Clip",
    "ReluN1To1": "Clip",
    "SQUARE": "Square",
    "SQUARED_DIFFERENCE": "SquaredDifference",
    "SiLU": "Swish",
    "Silu": "Swish",
    "StopGradient": "Identity",
    "Subtract": "Sub",
    "UNPACK": "Split",
    "UpSampling2D": "Resize",
    "Upsample": "Resize",
    "ZeroPadding2D": "Pad",
    "_adaptive_avg_pool2d": "AveragePool",
    "adaptive_avg_pool2d": "AveragePool",
}
"""Names that frameworks give beyond ONNX vocabulary, and ONNX operators that are another one's special case."""

_ACTIVATIONS: Mapping[str, str] = {
    "elu": "Elu",
    "exponential": "Exp",
    "gelu": "Gelu",
    "hard_sigmoid": "HardSigmoid",
    "hard_silu": "HardSwish",
    "hard_swish": "HardSwish",
    "hardsigmoid": "HardSigmoid",
    "hardswish": "HardSwish",
    "leaky_relu": "LeakyRelu",
    "leakyrelu": "LeakyRelu",
    "log_softmax": "LogSoftmax",
    "relu": "Relu",
    "relu6": "Clip",
    "relun1to1": "Clip",
    "selu": "Selu",
    "sigmoid": "Sigmoid",
    "silu": "Swish",
    "softmax": "Softmax",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "swish": "Swish",
    "tanh": "Tanh",
}
"""Value of an attribute `activation` -> kind; everything else ("linear") is none."""

_LINEAR = ("Add", "Sub", "Mul", "Div", "Neg")
_NORM = (*_LINEAR, "Sqrt", "Rsqrt", "Reciprocal", "Pow", "Square", "SquaredDifference", "ReduceMean", "Var", "VarMean")
_GATES = ("Sigmoid", "Tanh", "MatMul", "Gemm", "Split", "Slice", "Concat", "Loop", "HardSigmoid", "Transpose", *_LINEAR)

PARTS: Mapping[str, tuple[str, ...]] = {
    "Attention": ("MatMul", "Softmax", "Where", "Einsum", "Gemm", "ReduceMax", "Exp", "ReduceSum", "Sqrt", *_LINEAR),
    "AveragePool": ("ReduceMean", "ReduceSum", "Pad", "Conv", *_LINEAR),
    "BatchNormalization": ("Add", "Sub", "Mul", "Div", "Sqrt", "Rsqrt", "Reciprocal", "Conv"),
    "Celu": ("Elu", "Exp", "Max", "Min", "Where", "Greater", *_LINEAR),
    "Clip": ("Relu", "Max", "Min", *_LINEAR),
    "Conv": ("Add", "Pad", "MatMul", "Gemm", "Mul", "Sub", "Split", "Concat"),
    "ConvTranspose": ("Add", "Pad", "Conv", "Slice", "Mul", "Sub"),
    "CumSum": ("ReduceSum", "MatMul", "Flip"),
    "Einsum": ("MatMul", "Gemm", "Add", "Mul", "ReduceSum", "Conv"),
    "Elu": ("Exp", "Expm1", "Where", "Greater", "Relu", "Max", "Min", *_LINEAR),
    "EinsumDense": ("MatMul", "Gemm", "Einsum", "Add"),
    "GRU": (*_GATES,),
    "Gelu": ("Erf", "Erfc", "Tanh", "Pow", "Square", "Sigmoid", *_LINEAR),
    "Gemm": ("MatMul", "Add", "Mul", "Conv", "Sub"),
    "GroupNormalization": (*_NORM, "InstanceNormalization", "BatchNormalization"),
    "HardSigmoid": ("Clip", "Relu", "Max", "Min", *_LINEAR),
    "HardSwish": ("HardSigmoid", "Clip", "Relu", "Max", "Min", *_LINEAR),
    "InstanceNormalization": (*_NORM, "BatchNormalization"),
    "LSTM": (*_GATES,),
    "LRN": (*_NORM, "AveragePool", "Pad", "Conv"),
    "LayerNormalization": (*_NORM, "InstanceNormalization", "BatchNormalization", "GroupNormalization"),
    "LeakyRelu": ("Relu", "Max", "Min", "Where", "Greater", "PRelu", *_LINEAR),
    "LogSigmoid": ("Sigmoid", "Log", "Softplus", "Exp", "Abs", "Min", "Log1p", *_LINEAR),
    "LogSoftmax": ("Softmax", "Log", "ReduceMax", "ReduceSum", "ReduceLogSumExp", "Exp", *_LINEAR),
    "LpNormalization": ("ReduceL2", "ReduceSum", "Square", "Sqrt", "Rsqrt", "Max", "Abs", "Clip", "Pow", *_LINEAR),
    "MatMul": ("Gemm", "Conv", "Einsum", "Add", "Mul", "ReduceSum"),
    "Max": ("Relu", "Where", "Greater", "Clip"),
    "MaxPool": ("Pad", "ReduceMax", "Max"),
    "Min": ("Where", "Less", "Clip"),
    "Mish": ("Softplus", "Tanh", "Exp", "Log", "Log1p", *_LINEAR),
    "MultiHeadAttention": ("MatMul", "Softmax", "Einsum", "Gemm", "Where", *_LINEAR),
    "PRelu": ("Relu", "LeakyRelu", "Max", "Min", "Where", "Greater", "Abs", *_LINEAR),
    "Pow": ("Mul", "Square", "Sqrt", "Rsqrt", "Reciprocal"),
    "RMSNormalization": _NORM,
    "RNN": (*_GATES, "Relu"),
    "Rescaling": _LINEAR,
    "ReduceL2": ("ReduceSum", "Square", "Sqrt", "Mul", "Pow"),
    "ReduceLogSumExp": ("Exp", "Log", "ReduceSum", "ReduceMax", *_LINEAR),
    "ReduceMean": ("ReduceSum", "Div", "Mul", "AveragePool"),
    "ReduceMax": ("MaxPool",),
    "Reciprocal": ("Div", "Pow"),
    "Relu": ("Clip", "Max"),
    "Resize": ("Tile", "Gather", "Conv", "ConvTranspose", "Expand", "Concat", *_LINEAR),
    "Rsqrt": ("Sqrt", "Reciprocal", "Div", "Pow"),
    "Selu": ("Elu", "Exp", "Where", "Greater", "Max", "Min", *_LINEAR),
    "SeparableConv2D": ("Conv", "Add"),
    "Sigmoid": ("Exp", "Neg", "Add", "Reciprocal", "Div", "Tanh", "Mul"),
    "Softmax": ("Exp", "ReduceMax", "ReduceSum", *_LINEAR),
    "Softplus": ("Exp", "Log", "Log1p", "Max", "Abs", "Relu", "Where", "Greater", "Neg", "Add", "Mul", "Div"),
    "Square": ("Mul", "Pow"),
    "SquaredDifference": ("Sub", "Mul", "Pow", "Square"),
    "Sub": ("Add", "Neg"),
    "Sum": ("Add",),
    "Swish": ("Sigmoid", "Mul"),
    "TopK": ("Sort", "ArgMax", "Gather"),
    "Var": _NORM,
    "VarMean": _NORM,
}
"""Kind -> simpler kinds that a converter may put in its place (closed under itself by `parts`)."""

MOVEMENT = frozenset({
    "Cast", "ConstantOfShape", "ConcatFromSequence", "DepthToSpace", "Expand", "Flip", "Gather", "GatherND",
    "Identity", "Pad", "Reshape", "Roll", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze", "Range", "Dequantize", "DequantizeLinear", "Quantize", "QuantizeLinear", "item",
    "sym_size", "getitem", "Constant", "Equal", "Where", "Concat", "TensorListFromTensor", "TensorListGetItem",
    "TensorListReserve", "TensorListSetItem", "TensorListStack"
})  # fmt: skip
"""Kinds that hand on elements or work out shapes: a converter adds and drops them freely."""

ARITHMETIC = frozenset(
    (*_LINEAR, "Sum", "Sqrt", "Rsqrt", "Reciprocal", "Pow", "Square", "SquaredDifference", "ReduceSum")
)
"""Kinds that fold into weights or into each other; their absence alone says little."""

ORDERED = frozenset({
    "Sub", "Div", "Pow", "MatMul", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Mod", "Where", "PRelu",
    "Atan2", "BitShift",
})  # fmt: skip
"""Kinds whose operands may not change places."""

ACTIVATIONS = frozenset({*_ACTIVATIONS.values(), "Celu", "Mish", "PRelu", "ThresholdedRelu", "Abs", "LogSigmoid"})
"""Kinds that act on every element alone and are not linear."""

_INPLACE = ("aten.", "prim.", "prims.")


def kind(node: Node) -> str:
    """The canonical kind of an operator. A Clip without an upper bound that begins at zero is a Relu."""
    name = _KINDS.get(node.op, node.op)
    if node.op == "Activation" or (node.native_op == "Activation" and "activation" in node.attributes):
        return activation(node) or "Identity"
    if node.op == "Rescaling":
        return "Mul"
    if name == "Clip" and number(node.attributes, "min") == 0 and node.attributes.get("max") in (None, float("inf")):
        return "Relu"
    if name == "Relu" and number(node.attributes, "max_value") is not None:
        return "Clip"
    if name == "Relu" and (number(node.attributes, "negative_slope") or 0) != 0:
        return "LeakyRelu"
    return name


def number(attributes: Mapping[str, Any], name: str) -> float | None:
    """An attribute as a number, or None."""
    value = attributes.get(name)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def activation(node: Node) -> str | None:
    """The kind of the activation that is fused into an operator; None without one, and for recurrent operators."""
    given = node.attributes.get("activation")
    if not isinstance(given, str) or node.op in ("LSTM", "GRU", "RNN"):
        return None
    return _ACTIVATIONS.get(given.lower().removeprefix("keras.activations."))


def kinds(node: Node) -> tuple[str, ...]:
    """The kind of an operator and that of its fused activation."""
    own, fused = kind(node), activation(node)
    return (own,) if fused is None or fused == own else (own, fused)


def parts(names: Iterable[str]) -> frozenset[str]:
    """These kinds and everything that they may be taken apart into."""
    found: set[str] = set()
    front = list(names)
    while front:
        name = front.pop()
        if name not in found:
            found.add(name)
            front.extend(PARTS.get(name, ()))
    return frozenset(found)


def native(node: Node) -> str:
    """The format's own name of an operator without overload: "aten.conv2d", "CONV_2D", "Conv2D"."""
    name = node.native_op or node.op
    return ".".join(name.split(".")[:2]) if name.startswith(_INPLACE) else name


def moves(node: Node) -> bool:
    """Whether an operator only hands on elements or works out shapes."""
    return kind(node) in MOVEMENT
