"""PyTorch's operators in ONNX vocabulary, where one operator says the same in both."""

from __future__ import annotations

from typing import Any

from trueport.frameworks._torch_values import native_name

_BY_OPERATOR = {
    "Abs": "abs",
    "Acos": "acos",
    "Add": "add",
    "And": "logical_and",
    "ArgMax": "argmax",
    "ArgMin": "argmin",
    "Asin": "asin",
    "Atan": "atan",
    "Atan2": "atan2",
    "Attention": "scaled_dot_product_attention",
    "AveragePool": "_adaptive_avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d",
    "BatchNormalization": "_native_batch_norm_legit_no_training batch_norm native_batch_norm",
    "BitwiseNot": "bitwise_not",
    "Cast": "_to_copy to type_as",
    "Ceil": "ceil",
    "Celu": "celu",
    "ChannelShuffle": "channel_shuffle",
    "Clip": "clamp clamp_max clamp_min clip hardtanh relu6",
    "Concat": "cat concat concatenate",
    "ConcatFromSequence": "stack",
    "ConstantOfShape": "full full_like new_zeros ones ones_like zeros zeros_like",
    "Conv": "_convolution conv1d conv2d conv3d convolution",
    "ConvTranspose": "conv_transpose1d conv_transpose2d conv_transpose3d",
    "Cos": "cos",
    "Cosh": "cosh",
    "CumSum": "cumsum",
    "DepthToSpace": "pixel_shuffle",
    "Div": "div",
    "Dropout": "dropout feature_dropout native_dropout",
    "Einsum": "einsum",
    "Elu": "elu",
    "Equal": "eq",
    "Erf": "erf",
    "Exp": "exp",
    "Expand": "expand expand_as",
    "Expm1": "expm1",
    "Flip": "flip",
    "Floor": "floor",
    "GRU": "gru",
    "Gather": "embedding index_select select",
    "GatherElements": "gather take_along_dim",
    "GatherND": "index",
    "Gelu": "gelu",
    "Gemm": "addmm baddbmm linear",
    "Greater": "gt",
    "GreaterOrEqual": "ge",
    "GridSample": "grid_sampler grid_sampler_2d",
    "GroupNormalization": "group_norm native_group_norm",
    "HardSigmoid": "hardsigmoid",
    "HardSwish": "hardswish",
    "Identity": "alias clone contiguous detach lift_fresh_copy",
    "Im2Col": "im2col",
    "InstanceNormalization": "_native_batch_norm_legit instance_norm",
    "IsInf": "isinf",
    "IsNaN": "isnan",
    "LSTM": "lstm",
    "LayerNormalization": "layer_norm native_layer_norm",
    "LeakyRelu": "leaky_relu",
    "Less": "lt",
    "LessOrEqual": "le",
    "Log": "log",
    "Log1p": "log1p",
    "LogSigmoid": "log_sigmoid logsigmoid",
    "LogSoftmax": "_log_softmax log_softmax",
    "MatMul": "bmm dot matmul mm mv",
    "Max": "maximum",
    "MaxPool": "adaptive_max_pool2d max_pool1d max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices",
    "Min": "minimum",
    "Mish": "mish",
    "Mod": "fmod remainder",
    "Mul": "mul",
    "Neg": "neg",
    "NonZero": "nonzero",
    "Not": "logical_not",
    "NotEqual": "ne",
    "OneHot": "one_hot",
    "Or": "logical_or",
    "PRelu": "_prelu_kernel prelu",
    "Pad": "constant_pad_nd pad reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d",
    "Pow": "pow",
    "RMSNormalization": "rms_norm",
    "RNN": "rnn_relu rnn_tanh",
    "Range": "arange",
    "Reciprocal": "reciprocal",
    "ReduceL2": "norm",
    "ReduceLogSumExp": "logsumexp",
    "ReduceMax": "amax max",
    "ReduceMean": "mean",
    "ReduceMin": "amin min",
    "ReduceProd": "prod",
    "ReduceSum": "sum",
    "Relu": "relu",
    "Reshape": "_unsafe_view flatten reshape unflatten view view_as",
    "Resize": "_upsample_bilinear2d_aa _upsample_nearest_exact2d upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_nearest_exact2d upsample_trilinear3d",
    "Roll": "roll",
    "Round": "round",
    "Rsqrt": "rsqrt",
    "ScatterElements": "scatter scatter_add",
    "ScatterND": "index_put",
    "Selu": "selu",
    "Shape": "sym_size",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Slice": "narrow slice",
    "Softmax": "_softmax softmax",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Sort": "sort",
    "SpaceToDepth": "pixel_unshuffle",
    "Split": "chunk split split_with_sizes unbind unsafe_chunk unsafe_split",
    "Sqrt": "sqrt",
    "Square": "square",
    "Squeeze": "squeeze",
    "Sub": "rsub sub",
    "Swish": "silu",
    "Tan": "tan",
    "Tanh": "tanh",
    "ThresholdedRelu": "threshold",
    "Tile": "repeat tile",
    "TopK": "topk",
    "Transpose": "movedim numpy_T permute swapaxes t transpose",
    "Trilu": "tril triu",
    "Trunc": "trunc",
    "Unsqueeze": "unsqueeze",
    "Var": "var",
    "VarMean": "var_mean",
    "Where": "masked_fill where",
    "Xor": "logical_xor",
}
"""ONNX operator -> the functions below `aten` that say the same."""

ONNX_NAMES = {f"aten.{name}": operator for operator, names in _BY_OPERATOR.items() for name in names.split()}
"""Native name without overload -> ONNX operator."""

TRANSPARENT = frozenset(
    f"aten.{name}"
    for name in [
        "to",
        "_to_copy",
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
        "contiguous",
        "clone",
        "expand",
        "permute",
        "transpose",
        "t",
        "detach",
        "alias",
        "lift_fresh_copy",
        "repeat",
        "narrow",
        "int",
        "long",
    ]
)
"""Operators that hand on the values of their first input, moved or cast."""


def onnx_name(node: Any) -> str:
    """The operator of a graph node in ONNX vocabulary; PyTorch's own name where ONNX has none."""
    native = native_name(node)
    if native in ("aten.convolution", "aten._convolution") and node.args[6]:
        return "ConvTranspose"
    if "adaptive" in native and _all_ones(node.args[1]):
        return "GlobalMaxPool" if "max" in native else "GlobalAveragePool"
    return script_name(native)


def _all_ones(sizes: Any) -> bool:
    return all(size == 1 for size in (sizes if isinstance(sizes, (tuple, list)) else [sizes]))


def script_name(native: str) -> str:
    """As `onnx_name`, from the native name alone; an operator in place is the same as out of place."""
    return ONNX_NAMES.get(native) or ONNX_NAMES.get(native.rstrip("_")) or native.rpartition(".")[2]


COPYING = frozenset(
    {"aten.to", "aten._to_copy", "aten.clone", "aten.contiguous", "aten.repeat", "aten.lift_fresh_copy"}
)
"""Those of them whose result is (or may be) memory of its own."""
