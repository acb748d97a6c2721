"""How the graph of a Core ML model is shown: operators in ONNX vocabulary, operands in a fixed order, settings as attributes.

A constant is an operand where it takes part in the arithmetic (a tensor of floats, or any constant at a data argument);
every other one is an attribute of the operator under the name of its argument.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.frameworks._base import GraphDict, NodeDict
from trueport.frameworks._coreml_program import FLOATS, Operation, Program

_CAPITALISED = (
    "abs acos add asin atan atanh cast ceil clip concat cos cosh einsum elu equal erf exp expand floor gather gelu greater gru "
    "identity less log lstm mod mul pad pow relu reshape resize rnn round shape sigmoid sign sin sinh softmax softplus "
    "softsign split sqrt squeeze sub tan tanh tile transpose"
)
ONNX_NAMES = {
    **{name: name.capitalize() for name in _CAPITALISED.split()},
    "argsort": "ArgSort",
    "avg_pool": "AveragePool",
    "band_part": "Trilu",
    "batch_norm": "BatchNormalization",
    "clamped_relu": "Clip",
    "cond": "If",
    "conv": "Conv",
    "conv_transpose": "ConvTranspose",
    "crop_resize": "RoiAlign",
    "cumsum": "CumSum",
    "depth_to_space": "DepthToSpace",
    "dequantize": "DequantizeLinear",
    "expand_dims": "Unsqueeze",
    "fill": "ConstantOfShape",
    "fill_like": "ConstantOfShape",
    "flatten2d": "Flatten",
    "floor_div": "FloorDiv",
    "gather_along_axis": "GatherElements",
    "gather_nd": "GatherND",
    "greater_equal": "GreaterOrEqual",
    "gru": "GRU",
    "instance_norm": "InstanceNormalization",
    "inverse": "Reciprocal",
    "l2_norm": "LpNormalization",
    "l2_pool": "LpPool",
    "layer_norm": "LayerNormalization",
    "leaky_relu": "LeakyRelu",
    "less_equal": "LessOrEqual",
    "linear": "Gemm",
    "local_response_norm": "LRN",
    "logical_and": "And",
    "logical_not": "Not",
    "logical_or": "Or",
    "logical_xor": "Xor",
    "lstm": "LSTM",
    "matmul": "MatMul",
    "max_pool": "MaxPool",
    "maximum": "Max",
    "minimum": "Min",
    "non_maximum_suppression": "NonMaxSuppression",
    "non_zero": "NonZero",
    "not_equal": "NotEqual",
    "one_hot": "OneHot",
    "pixel_shuffle": "DepthToSpace",
    "pixel_unshuffle": "SpaceToDepth",
    "prelu": "PRelu",
    "quantize": "QuantizeLinear",
    "range_1d": "Range",
    "real_div": "Div",
    "reduce_argmax": "ArgMax",
    "reduce_argmin": "ArgMin",
    "reduce_l1_norm": "ReduceL1",
    "reduce_l2_norm": "ReduceL2",
    "reduce_log_sum": "ReduceLogSum",
    "reduce_log_sum_exp": "ReduceLogSumExp",
    "reduce_max": "ReduceMax",
    "reduce_mean": "ReduceMean",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
    "reduce_sum": "ReduceSum",
    "reduce_sum_square": "ReduceSumSquare",
    "relu6": "Clip",
    "resample": "GridSample",
    "resize_bilinear": "Resize",
    "resize_nearest_neighbor": "Resize",
    "reverse_sequence": "ReverseSequence",
    "rnn": "RNN",
    "rsqrt": "Rsqrt",
    "scaled_dot_product_attention": "Attention",
    "scatter_along_axis": "ScatterElements",
    "scatter_nd": "ScatterND",
    "select": "Where",
    "sigmoid_hard": "HardSigmoid",
    "silu": "Swish",
    "slice_by_index": "Slice",
    "slice_by_size": "Slice",
    "space_to_depth": "SpaceToDepth",
    "thresholded_relu": "ThresholdedRelu",
    "topk": "TopK",
    "upsample_bilinear": "Resize",
    "upsample_nearest_neighbor": "Resize",
    "while_loop": "Loop",
}
"""MIL operator -> ONNX operator, where there is one with this meaning."""

DATA = (
    *(
        "x",
        "input",
        "data",
        "query",
        "key",
        "value",
        "values",
        "cond",
        "pred",
        "a",
        "b",
        "y",
        "probabilities",
        "loop_vars",
    ),
    *("ls", "boxes", "roi", "scores", "box_indices", "indices", "update", "updates", "coordinates", "transform_matrix"),
    *("initial_h", "initial_c", "weight", "weight_ih", "weight_hh", "bias", "input_bias", "peephole", "weight_ih_back"),
    *("weight_hh_back", "bias_back", "peephole_back", "gamma", "beta", "mean", "variance", "attn_mask", "lengths"),
    *("ref_tensor", "ref_tensors", "state"),
)
"""Arguments that hold data, in the order in which they are shown."""
NETWORK = "nn."
"""How the kinds of a neural network's layers begin."""
_RANK = {argument: place for place, argument in enumerate(DATA)}
_SMALL = 64
"""Longest constant that is an attribute rather than an operand."""


def arguments(operation: Operation) -> list[str]:
    """Names of an operation's arguments in the order in which they are shown."""
    return sorted(operation.inputs, key=lambda argument: (_RANK.get(argument, len(DATA)), argument))


def is_attribute(program: Program, argument: str, name: str) -> bool:
    """Whether an argument that is bound to this value is shown as an attribute."""
    stored = program.constants.get(name)
    if stored is None or (argument in _RANK and not _setting(argument, stored.shape)):
        return False
    tensor_of_floats = stored.dtype in FLOATS and bool(stored.shape) and int(np.prod(stored.shape)) != 1
    return not tensor_of_floats and int(np.prod(stored.shape, dtype=np.int64)) <= _SMALL


def _setting(argument: str, shape: tuple[int, ...]) -> bool:
    """An activation's `beta` and a fill's `value` are single numbers; a norm's are vectors."""
    return argument in ("beta", "value") and shape == ()


def node(program: Program, operation: Operation) -> NodeDict:
    """One operation of the main block."""
    if operation.kind.startswith(NETWORK):
        from trueport.frameworks import _coreml_nn_ops  # a patch script for ML programs does not carry it

        return _coreml_nn_ops.node(operation)
    operands: list[str] = []
    attributes: dict[str, Any] = {}
    for argument in arguments(operation):
        bound = operation.inputs[argument]
        if len(bound) == 1 and is_attribute(program, argument, bound[0]):
            attributes[argument] = plain(program.constants[bound[0]].load())
        else:
            operands += bound
    for block in operation.blocks:
        operands += [name for name in block.captures() if name not in operands]
    attributes.update({key: plain(value) for key, value in operation.attributes.items()})
    if operation.kind == "linear":
        attributes["transB"] = 1
    return {
        "name": operation.name,
        "op": ONNX_NAMES.get(operation.kind, operation.kind),
        "native_op": operation.kind,
        "inputs": operands,
        "outputs": list(operation.outputs),
        "attributes": attributes,
    }


def plain(value: Any) -> Any:
    """Turn a constant into JSON."""
    if isinstance(value, np.ndarray):
        return value.item() if value.ndim == 0 else value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def graph(program: Program) -> GraphDict:
    """The operations of the main block, and every stored tensor that one of them reads as an operand."""
    nodes = [node(program, operation) for operation in program.block.operations]
    read = {name for item in nodes for name in item["inputs"]} | set(program.outputs)
    return {
        "nodes": nodes,
        "inputs": list(program.inputs),
        "outputs": list(program.outputs),
        "constants": {
            name: {"dtype": stored.dtype, "shape": list(stored.shape)}
            for name, stored in program.constants.items()
            if name in read
        },
    }
