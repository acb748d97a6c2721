"""Decides what TensorFlow's operators are called in ONNX vocabulary, and how their attributes and constant operands read there.

TensorFlow gives an axis, a permutation or a size as an operand where ONNX (at some opset) has an attribute; where that
operand is a small constant, its value is shown as the attribute.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

import numpy as np

OPS = {
    "AddN": "Sum",
    "AddV2": "Add",
    "All": "ReduceMin",
    "Any": "ReduceMax",
    "AvgPool": "AveragePool",
    "AvgPool3D": "AveragePool",
    "BatchMatMulV2": "MatMul",
    "BatchMatMulV3": "MatMul",
    "BiasAdd": "Add",
    "BroadcastTo": "Expand",
    "ClipByValue": "Clip",
    "ConcatV2": "Concat",
    "Conv2D": "Conv",
    "Conv2DBackpropInput": "ConvTranspose",
    "Conv3D": "Conv",
    "Conv3DBackpropInputV2": "ConvTranspose",
    "Cumsum": "CumSum",
    "DepthwiseConv2dNative": "Conv",
    "ExpandDims": "Unsqueeze",
    "Fill": "ConstantOfShape",
    "FloorDiv": "Div",
    "FloorMod": "Mod",
    "FusedBatchNorm": "BatchNormalization",
    "FusedBatchNormV2": "BatchNormalization",
    "FusedBatchNormV3": "BatchNormalization",
    "GatherNd": "GatherND",
    "GatherV2": "Gather",
    "GreaterEqual": "GreaterOrEqual",
    "IsInf": "IsInf",
    "IsNan": "IsNaN",
    "LessEqual": "LessOrEqual",
    "LogicalAnd": "And",
    "LogicalNot": "Not",
    "LogicalOr": "Or",
    "LogicalXor": "Xor",
    "MatrixBandPart": "Trilu",
    "Max": "ReduceMax",
    "MaxPool3D": "MaxPool",
    "MaxPoolV2": "MaxPool",
    "Maximum": "Max",
    "Mean": "ReduceMean",
    "Min": "ReduceMin",
    "Minimum": "Min",
    "MirrorPad": "Pad",
    "NotEqual": "NotEqual",
    "Pack": "Concat",
    "PadV2": "Pad",
    "PreventGradient": "Identity",
    "Prod": "ReduceProd",
    "RealDiv": "Div",
    "Relu6": "Clip",
    "ResizeBicubic": "Resize",
    "ResizeBilinear": "Resize",
    "ResizeNearestNeighbor": "Resize",
    "ScatterNd": "ScatterND",
    "Select": "Where",
    "SelectV2": "Where",
    "SplitV": "Split",
    "StatelessIf": "If",
    "StatelessWhile": "Loop",
    "StopGradient": "Identity",
    "StridedSlice": "Slice",
    "Sum": "ReduceSum",
    "TopKV2": "TopK",
    "Unpack": "Split",
    "Where": "NonZero",
    "While": "Loop",
}
"""TensorFlow operator -> ONNX operator; one that is not here keeps its own name (Relu, Softmax, Reshape, …)."""

LARGEST = 64
"""Elements of the largest constant operand that is shown as an attribute."""
_NOISE = (
    "N", "U", "data_format", "exponential_avg_factor", "explicit_paddings", "is_training", "keep_dims", "ksize",
    "output_shapes", "parallel_iterations", "use_cudnn_on_gpu", "validate_indices", "align_corners",
    "half_pixel_centers", "config", "config_proto", "executor_type", "f", "body", "cond", "then_branch", "else_branch", "grad_a", "grad_b", "adj_x", "adj_y", "transpose_a", "transpose_b", "squeeze_dims",
    "block_size", "depth_radius", "grad_x", "grad_y",
)  # fmt: skip
"""Attributes that say nothing about what is computed, or that are shown under their ONNX name instead."""
OPERANDS: dict[str, tuple[tuple[int, str], ...]] = {
    **dict.fromkeys(["All", "Any", "ExpandDims", "Max", "Mean", "Min", "Prod", "Sum", "ReverseV2"], ((1, "axes"),)),
    **dict.fromkeys(["ArgMax", "ArgMin", "Cumsum"], ((1, "axis"),)),
    **dict.fromkeys(["ResizeBicubic", "ResizeBilinear", "ResizeNearestNeighbor"], ((1, "sizes"),)),
    **dict.fromkeys(["BroadcastTo", "Reshape"], ((1, "shape"),)),
    "ClipByValue": ((1, "min"), (2, "max")),
    "ConcatV2": ((-1, "axis"),),
    "GatherV2": ((2, "axis"),),
    "OneHot": ((1, "depth"),),
    "PadV2": ((2, "value"),),
    "Slice": ((1, "starts"), (2, "sizes")),
    "Split": ((0, "axis"),),
    "SplitV": ((1, "split"), (2, "axis")),
    "StridedSlice": ((1, "starts"), (2, "ends"), (3, "steps")),
    "Tile": ((1, "repeats"),),
    "TopKV2": ((1, "k"),),
    "Transpose": ((1, "perm"),),
}
"""Operator -> (operand, attribute) for operands that ONNX has as an attribute."""
SCALARS = frozenset(["axis", "k", "depth", "min", "max", "value"])
_FIXED: dict[str, dict[str, Any]] = {
    "LogSoftmax": {"axis": -1},
    "Pack": {"new_axis": 1},
    "Pad": {"mode": "constant"},
    "PadV2": {"mode": "constant"},
    "Relu6": {"min": 0.0, "max": 6.0},
    "ResizeBicubic": {"mode": "cubic"},
    "ResizeBilinear": {"mode": "linear"},
    "ResizeNearestNeighbor": {"mode": "nearest"},
    "Softmax": {"axis": -1},
}
"""Operator -> attributes that ONNX names and TensorFlow implies."""
_CONVOLUTIONS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative", "Conv2DBackpropInput", "Conv3DBackpropInputV2")
_POOLS = ("AvgPool", "AvgPool3D", "MaxPool", "MaxPool3D")

Constant = Callable[[str], Optional[np.ndarray]]
"""Node input -> the small constant that it is, or None."""


def attributes(
    node: Any, operands: list[str], constant: Constant, channels: int | None, kernel: list[int]
) -> dict[str, Any]:
    """Attributes of a NodeDef that reads `operands`, as plain values.

    `channels`: of operand 0 where known; `kernel`: shape of operand 1, empty where not known.
    """
    given = _plain(node)
    found = {key: value for key, value in given.items() if key not in _NOISE and not _is_type(key, node)}
    found.update(_FIXED.get(node.op, {}))
    if node.op in _CONVOLUTIONS or node.op in _POOLS:
        found.pop("padding", None)
        found.update(_window(given))
    if node.op in _CONVOLUTIONS:
        found.update(_kernel(node.op, channels, kernel))
    if "keep_dims" in given:
        found["keepdims"] = int(given["keep_dims"])
    if node.op == "Cast":
        found = {"to": given["DstT"]}
    if node.op in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        found["transA"] = int(given.get("transpose_a", given.get("adj_x", False)))
        found["transB"] = int(given.get("transpose_b", given.get("adj_y", False)))
    if node.op == "Squeeze":
        found["axes"] = given.get("squeeze_dims", [])
    if "block_size" in given:
        found["blocksize"] = given["block_size"]
    if node.op.startswith("Resize"):
        found.update(_coordinates(node.op, given))
    if node.op == "LRN":
        found["size"] = 2 * given.get("depth_radius", 5) + 1
        found["alpha"] = given.get("alpha", 1.0) * found["size"]  # ONNX divides by the size
    found.update(_from_operands(node.op, operands, constant))
    return found


def _from_operands(op: str, operands: list[str], constant: Constant) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for position, name in OPERANDS.get(op, ()):
        value = constant(operands[position]) if -len(operands) <= position < len(operands) else None
        if value is not None and value.dtype.kind in "biuf":
            flat = np.ravel(value).tolist()
            found[name] = flat[0] if name in SCALARS and len(flat) == 1 else flat
    if op in ("Pad", "PadV2", "MirrorPad") and len(operands) > 1:
        pads = constant(operands[1])
        if pads is not None:
            found["pads"] = [int(item) for item in pads.T.ravel()]  # all begins, then all ends, as ONNX has them
    return found


def _spatial(values: list[int], given: dict[str, Any]) -> list[int]:
    """The entries for the spatial axes of a list that has one for every axis."""
    first = 2 if str(given.get("data_format", "")).startswith("NC") else 1
    return values[first : first + len(values) - 2]


def _window(given: dict[str, Any]) -> dict[str, Any]:
    """Strides, dilations, window and padding of a convolution or a pool."""
    found: dict[str, Any] = {"strides": _spatial(given["strides"], given)}
    if "dilations" in given:
        found["dilations"] = _spatial(given["dilations"], given)
    if "ksize" in given:
        found["kernel_shape"] = _spatial(given["ksize"], given)
    padding = given.get("padding")
    if padding == "EXPLICIT":
        explicit = given["explicit_paddings"]
        found["pads"] = _spatial(explicit[::2], given) + _spatial(explicit[1::2], given)
        found["auto_pad"] = "NOTSET"
    else:
        found["auto_pad"] = {"SAME": "SAME_UPPER"}.get(str(padding), str(padding))
    return found


def _kernel(op: str, channels: int | None, kernel: list[int]) -> dict[str, Any]:
    """Kernel size and groups, from the shapes of a kernel [*spatial, in, out] and of the data."""
    if len(kernel) < 3:
        return {}
    found: dict[str, Any] = {"kernel_shape": kernel[:-2]}
    if op.startswith("Depthwise"):
        found["group"] = kernel[-2]
    elif "Backprop" in op:
        found["group"] = 1
    elif channels and kernel[-2] > 0:
        found["group"] = max(1, channels // kernel[-2])
    return found


def _coordinates(op: str, given: dict[str, Any]) -> dict[str, Any]:
    """How a Resize finds its source pixels, in ONNX words."""
    nearest = op == "ResizeNearestNeighbor"
    if given.get("align_corners"):
        return {
            "coordinate_transformation_mode": "align_corners",
            **({"nearest_mode": "round_prefer_ceil"} if nearest else {}),
        }
    mode = "asymmetric"
    if given.get("half_pixel_centers"):
        mode = "tf_half_pixel_for_nn" if nearest else "half_pixel"
    return {"coordinate_transformation_mode": mode, **({"nearest_mode": "floor"} if nearest else {})}


def _is_type(key: str, node: Any) -> bool:
    """Whether an attribute says only which dtype an operand has; an operator's choice of output dtype is another thing."""
    kind = node.attr[key].WhichOneof("value")
    return kind == "type" and (key.startswith("T") or key in ("SrcT", "DstT", "U", "Index", "index_type"))


def _plain(node: Any) -> dict[str, Any]:
    """Attributes as plain values; internal ones (with an underscore) and nested functions' bodies left out."""
    import tensorflow as tf

    found: dict[str, Any] = {}
    for key, attribute in node.attr.items():
        kind = attribute.WhichOneof("value")
        if key.startswith("_") or kind in (None, "tensor", "shape", "placeholder"):
            continue
        if kind == "type":
            found[key] = str(tf.as_dtype(attribute.type).name)
        elif kind == "s":
            found[key] = attribute.s.decode("utf-8", "replace")
        elif kind == "func":
            found[key] = attribute.func.name
        elif kind == "list":
            values = attribute.list
            if values.type or values.shape:
                continue
            found[key] = [*values.i, *values.f, *values.b, *(s.decode("utf-8", "replace") for s in values.s)]
        else:
            found[key] = getattr(attribute, kind)
    return found
