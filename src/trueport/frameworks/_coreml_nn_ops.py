"""What the layers of Core ML's neural networks are called in ONNX vocabulary, and how one is shown as a node.

Every stored weight is an operand, in the order of the layer's fields; every other field is an attribute under its own name.
"""

from __future__ import annotations

from typing import Any

from trueport.frameworks._base import NodeDict
from trueport.frameworks._coreml_nn_read import PREFIX
from trueport.frameworks._coreml_program import Operation

_CAPITALISED = (
    *(
        "softmax",
        "tile",
        "transpose",
        "gather",
        "erf",
        "gelu",
        "clip",
        "ceil",
        "floor",
        "sign",
        "round",
        "concat",
        "split",
    ),
    *(
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "slice",
        "flatten",
    ),
    *("add", "max", "min", "equal", "loop", "reshape", "squeeze"),
)
_ONNX: dict[str, str] = {
    **{name: name.capitalize() for name in _CAPITALISED},
    "multiply": "Mul",
    "average": "Mean",
    "scale": "Mul",
    "bias": "Add",
    "imageScaler": "Mul",
    "meanImage": "Sub",
    "enter": "Reshape",
    "leave": "Reshape",
    "copy": "Identity",
    "branch": "If",
    "convolution3d": "Conv",
    "innerProduct": "Gemm",
    "batchedMatmul": "MatMul",
    "embedding": "Gather",
    "embeddingND": "Gather",
    "batchnorm": "BatchNormalization",
    "mvn": "MeanVarianceNormalization",
    "l2normalize": "LpNormalization",
    "lrn": "LRN",
    "layerNormalization": "LayerNormalization",
    "softmaxND": "Softmax",
    "crop": "Slice",
    "padding": "Pad",
    "constantPad": "Pad",
    "upsample": "Resize",
    "resizeBilinear": "Resize",
    "cropResize": "RoiAlign",
    "permute": "Transpose",
    "sequenceRepeat": "Tile",
    "simpleRecurrent": "RNN",
    "gru": "GRU",
    "uniDirectionalLSTM": "LSTM",
    "biDirectionalLSTM": "LSTM",
    "clampedReLU": "Clip",
    "notEqual": "NotEqual",
    "lessThan": "Less",
    "lessEqual": "LessOrEqual",
    "greaterThan": "Greater",
    "greaterEqual": "GreaterOrEqual",
    "logicalAnd": "And",
    "logicalOr": "Or",
    "logicalXor": "Xor",
    "logicalNot": "Not",
    "addBroadcastable": "Add",
    "subtractBroadcastable": "Sub",
    "multiplyBroadcastable": "Mul",
    "divideBroadcastable": "Div",
    "powBroadcastable": "Pow",
    "modBroadcastable": "Mod",
    "maxBroadcastable": "Max",
    "minBroadcastable": "Min",
    "floorDivBroadcastable": "FloorDiv",
    "whereBroadcastable": "Where",
    "concatND": "Concat",
    "splitND": "Split",
    "stack": "Concat",
    "sliceStatic": "Slice",
    "sliceDynamic": "Slice",
    "sliceBySize": "Slice",
    "reverseSeq": "ReverseSequence",
    "reshapeStatic": "Reshape",
    "reshapeLike": "Reshape",
    "reshapeDynamic": "Reshape",
    "rankPreservingReshape": "Reshape",
    "flattenTo2D": "Flatten",
    "expandDims": "Unsqueeze",
    "broadcastToLike": "Expand",
    "broadcastToStatic": "Expand",
    "broadcastToDynamic": "Expand",
    "fillLike": "ConstantOfShape",
    "fillStatic": "ConstantOfShape",
    "fillDynamic": "ConstantOfShape",
    "rangeStatic": "Range",
    "rangeDynamic": "Range",
    "getShape": "Shape",
    "gatherND": "GatherND",
    "gatherAlongAxis": "GatherElements",
    "scatterND": "ScatterND",
    "scatterAlongAxis": "ScatterElements",
    "topK": "TopK",
    "argMax": "ArgMax",
    "argMin": "ArgMin",
    "argSort": "ArgSort",
    "whereNonZero": "NonZero",
    "oneHot": "OneHot",
    "cumSum": "CumSum",
    "NonMaximumSuppression": "NonMaxSuppression",
    "matrixBandPart": "Trilu",
    "lowerTriangular": "Trilu",
    "upperTriangular": "Trilu",
    "reduceL1": "ReduceL1",
    "reduceL2": "ReduceL2",
    "reduceMax": "ReduceMax",
    "reduceMin": "ReduceMin",
    "reduceSum": "ReduceSum",
    "reduceProd": "ReduceProd",
    "reduceMean": "ReduceMean",
    "reduceLogSum": "ReduceLogSum",
    "reduceSumSquare": "ReduceSumSquare",
    "reduceLogSumExp": "ReduceLogSumExp",
}
"""Layer -> ONNX operator, where there is one with this meaning and no field of the layer decides which."""

_CHOSEN: dict[str, tuple[str, dict[str, str]]] = {
    "activation": (
        "NonlinearityType",
        {
            "ReLU": "Relu",
            "leakyReLU": "LeakyRelu",
            "thresholdedReLU": "ThresholdedRelu",
            "PReLU": "PRelu",
            "tanh": "Tanh",
            "scaledTanh": "ScaledTanh",
            "sigmoid": "Sigmoid",
            "sigmoidHard": "HardSigmoid",
            "ELU": "Elu",
            "softsign": "Softsign",
            "softplus": "Softplus",
            "parametricSoftplus": "ParametricSoftplus",
            "linear": "Affine",
        },
    ),
    "unary": (
        "type",
        {
            "SQRT": "Sqrt",
            "RSQRT": "Rsqrt",
            "INVERSE": "Reciprocal",
            "POWER": "Pow",
            "EXP": "Exp",
            "LOG": "Log",
            "ABS": "Abs",
            "THRESHOLD": "Max",
        },
    ),
    "reduce": (
        "mode",
        {
            "SUM": "ReduceSum",
            "AVG": "ReduceMean",
            "PROD": "ReduceProd",
            "LOGSUM": "ReduceLogSum",
            "SUMSQUARE": "ReduceSumSquare",
            "L1": "ReduceL1",
            "L2": "ReduceL2",
            "MAX": "ReduceMax",
            "MIN": "ReduceMin",
            "ARGMAX": "ArgMax",
        },
    ),
    "reorganizeData": (
        "mode",
        {"SPACE_TO_DEPTH": "SpaceToDepth", "DEPTH_TO_SPACE": "DepthToSpace", "PIXEL_SHUFFLE": "DepthToSpace"},
    ),
    "pooling3d": ("type", {"MAX": "MaxPool", "AVERAGE": "AveragePool"}),
    "globalPooling3d": ("type", {"MAX": "GlobalMaxPool", "AVERAGE": "GlobalAveragePool"}),
}
"""Layer -> the field that decides, and which ONNX operator its values stand for."""
_POOLS = {"MAX": "MaxPool", "AVERAGE": "AveragePool", "L2": "LpPool"}


def operator(operation: Operation) -> str:
    """The ONNX operator that a layer is, or the layer's own name where there is none."""
    layer = operation.kind[len(PREFIX) :]
    attributes = operation.attributes
    if layer == "convolution" or (layer == "convolution3d" and attributes["isDeconvolution"]):
        return "ConvTranspose" if attributes["isDeconvolution"] else "Conv"
    if layer == "pooling":
        return ("Global" if attributes["globalPooling"] else "") + _POOLS[attributes["type"]]
    if layer == "clampedReLU" and attributes["alpha"] != 0:
        return layer
    if layer == "batchnorm" and attributes["computeMeanVar"] and attributes["instanceNormalization"]:
        return "InstanceNormalization"
    field, names = _CHOSEN.get(layer, ("", {}))
    return names.get(str(attributes.get(field)), _ONNX.get(layer, layer))


def node(operation: Operation) -> NodeDict:
    """One layer of the network. What a branch or a loop takes from outside are operands, each once."""
    operands = [name for bound in operation.inputs.values() for name in bound]
    for block in operation.blocks:
        operands += [name for name in block.captures() if name not in operands]
    attributes: dict[str, Any] = {
        key: value for key, value in operation.attributes.items() if value != "" and key != "results"
    }
    if operation.kind == PREFIX + "innerProduct":
        attributes["transB"] = 1
    return {
        "name": operation.name,
        "op": operator(operation),
        "native_op": operation.kind,
        "inputs": operands,
        "outputs": list(operation.outputs),
        "attributes": attributes,
    }
