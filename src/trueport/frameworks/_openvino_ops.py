"""What OpenVINO's operators are called in ONNX vocabulary, and how their attributes and constant operands read there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._openvino_file import DTYPES, array_of

_OTHER = {
    "AdaptiveAvgPool": "adaptive_avg_pool2d",
    "AvgPool": "AveragePool",
    "BatchNormInference": "BatchNormalization",
    "Broadcast": "Expand",
    "Ceiling": "Ceil",
    "Clamp": "Clip",
    "Convert": "Cast",
    "ConvertLike": "CastLike",
    "Convolution": "Conv",
    "ConvolutionBackpropData": "ConvTranspose",
    "DeformableConvolution": "DeformConv",
    "Divide": "Div",
    "FloorMod": "Mod",
    "GRUCell": "GRU",
    "GRUSequence": "GRU",
    "GreaterEqual": "GreaterOrEqual",
    "GroupConvolution": "Conv",
    "GroupConvolutionBackpropData": "ConvTranspose",
    "HSigmoid": "HardSigmoid",
    "HSwish": "HardSwish",
    "Interpolate": "Resize",
    "LSTMCell": "LSTM",
    "LSTMSequence": "LSTM",
    "LessEqual": "LessOrEqual",
    "LogicalAnd": "And",
    "LogicalNot": "Not",
    "LogicalOr": "Or",
    "LogicalXor": "Xor",
    "MVN": "LayerNormalization",
    "Maximum": "Max",
    "Minimum": "Min",
    "Multiply": "Mul",
    "Negative": "Neg",
    "NormalizeL2": "LpNormalization",
    "PRelu": "PRelu",
    "Power": "Pow",
    "RNNCell": "RNN",
    "RNNSequence": "RNN",
    "ReduceLogicalAnd": "ReduceMin",
    "ReduceLogicalOr": "ReduceMax",
    "ScaledDotProductAttention": "Attention",
    "ScatterElementsUpdate": "ScatterElements",
    "ScatterNDUpdate": "ScatterND",
    "Select": "Where",
    "ShapeOf": "Shape",
    "SoftMax": "Softmax",
    "SoftPlus": "Softplus",
    "SoftSign": "Softsign",
    "StridedSlice": "Slice",
    "Subtract": "Sub",
    "TensorIterator": "Loop",
    "VariadicSplit": "Split",
}
"""Operator -> ONNX's name; the others are called alike."""

WORDS = {
    "keep_dims": "keepdims",
    "kernel": "kernel_shape",
    "eps": "epsilon",
    "block_size": "blocksize",
    "cube_coeff": "cubic_coeff_a",
    "causal": "is_causal",
    "destination_type": "to",
    "batch_axis": "batch_axis",
}
"""OpenVINO's attribute -> ONNX's."""
_VALUES: dict[str, dict[Any, Any]] = {
    "mode": {
        "linear_onnx": "linear",
        "depth_first": "CRD",
        "blocks_first": "DCR",
    },
    "approximate": {"ERF": "none", "TANH": "tanh", "erf": "none", "none": "none", "tanh": "tanh"},
}
"""Attribute -> OpenVINO's word for a value -> ONNX's."""

OPERANDS: dict[str, tuple[tuple[int, str], ...]] = {
    "Broadcast": ((1, "shape"),),
    "CumSum": ((1, "axis"),),
    "Gather": ((2, "axis"),),
    "HardSigmoid": ((1, "alpha"), (2, "beta")),
    "MVN": ((1, "axes"),),
    "NormalizeL2": ((1, "axes"),),
    "OneHot": ((1, "depth"),),
    "Pad": ((1, "pads_begin"), (2, "pads_end"), (3, "value")),
    "ReduceL1": ((1, "axes"),),
    "ReduceL2": ((1, "axes"),),
    "ReduceLogicalAnd": ((1, "axes"),),
    "ReduceLogicalOr": ((1, "axes"),),
    "ReduceMax": ((1, "axes"),),
    "ReduceMean": ((1, "axes"),),
    "ReduceMin": ((1, "axes"),),
    "ReduceProd": ((1, "axes"),),
    "ReduceSum": ((1, "axes"),),
    "Reshape": ((1, "shape"),),
    "ScatterElementsUpdate": ((3, "axis"),),
    "ScatterUpdate": ((3, "axis"),),
    "Selu": ((1, "alpha"), (2, "gamma")),
    "Slice": ((1, "starts"), (2, "ends"), (3, "steps"), (4, "axes")),
    "Split": ((1, "axis"),),
    "Squeeze": ((1, "axes"),),
    "StridedSlice": ((1, "starts"), (2, "ends"), (3, "steps")),
    "Swish": ((1, "beta"),),
    "Tile": ((1, "repeats"),),
    "TopK": ((1, "k"),),
    "Transpose": ((1, "perm"),),
    "Unsqueeze": ((1, "axes"),),
    "VariadicSplit": ((1, "axis"), (2, "split")),
}
"""Operator -> (operand, the attribute that it is): constants that say how to compute, not with what."""
SCALARS = frozenset({"axis", "depth", "k", "alpha", "beta", "gamma", "value"})
"""Operands that are one number."""
MASKS = ("begin_mask", "end_mask", "new_axis_mask", "shrink_axis_mask", "ellipsis_mask")
"""Attributes of StridedSlice that hold one number an axis; shown as the bits of one number."""
_SMALL = 256
"""Elements up to which a constant operand is shown as an attribute."""


def op_of(node: Any) -> str:
    """The name of an operator in ONNX vocabulary, where it has one."""
    kind = str(node.get_type_name())
    if kind == "PRelu" and _stored(node, 1) is not None and _size(node, 1) == 1:
        return "LeakyRelu"
    if kind == "MVN":
        return "LayerNormalization" if _over_last(node) else "InstanceNormalization"
    return _OTHER.get(kind, kind)


def _over_last(node: Any) -> bool:
    """Whether a normalisation runs over the last axis alone, or over all from some axis on of at most three."""
    axes, rank = _stored(node, 1), node.get_input_partial_shape(0).rank
    if axes is None or rank.is_dynamic:
        return False
    count = int(rank.get_length())
    reduced = sorted({int(axis) % count for axis in axes.ravel()})
    return reduced == [count - 1] or (reduced == list(range(count - len(reduced), count)) and reduced[:1] == [1])


def attributes_of(node: Any) -> dict[str, Any]:
    """Attributes as plain JSON in ONNX vocabulary where one exists, constant operands that settle how to compute included."""
    kind = str(node.get_type_name())
    found = {WORDS.get(name, name): plain(value) for name, value in raw(node).items()}
    for slot, name in OPERANDS.get(kind, ()):
        value = _stored(node, slot)
        if value is not None and value.size <= _SMALL:
            flat = value.ravel().tolist()
            found[name] = flat[0] if name in SCALARS and len(flat) == 1 else flat
    _join_pads(found)
    for rewrite in (_REWRITES.get(kind), _EVERY):
        if rewrite is not None:
            rewrite(node, found)
    return found


def raw(node: Any) -> dict[str, Any]:
    """The attributes as OpenVINO has them; none for operators that keep a graph inside."""
    try:
        return dict(node.get_attributes())
    except (RuntimeError, TypeError):
        return {}


def plain(value: Any) -> Any:
    """An attribute as JSON."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    return str(value)


def _stored(node: Any, slot: int) -> np.ndarray | None:
    """The constant that an operator reads at a slot; None where it is computed, or absent."""
    if slot >= node.get_input_size():
        return None
    behind = node.input_value(slot).get_node()
    while behind.get_type_name() == "Convert":
        behind = behind.input_value(0).get_node()
    if behind.get_type_name() != "Constant":
        return None
    try:
        return array_of(behind)
    except Unsupported:
        return None


def _size(node: Any, slot: int) -> int:
    found = _stored(node, slot)
    return -1 if found is None else int(found.size)


def _join_pads(found: dict[str, Any]) -> None:
    if isinstance(found.get("pads_begin"), list) and isinstance(found.get("pads_end"), list):
        found["pads"] = [int(value) for value in (*found.pop("pads_begin"), *found.pop("pads_end"))]


# -- operators whose attributes say it in another way -------------------------------------------------------------------------


def _every(node: Any, found: dict[str, Any]) -> None:
    if found.get("auto_pad") in ("explicit", "notset"):
        del found["auto_pad"]
    elif isinstance(found.get("auto_pad"), str):
        found["auto_pad"] = found["auto_pad"].upper()
        found.pop("pads", None)  # OpenVINO works them out, and keeps what it found
    for name, words in _VALUES.items():
        if found.get(name) in words:
            found[name] = words[found[name]]
    for name in ("keepdims", "antialias", "exclusive", "reverse", "is_causal", "linear_before_reset", "stable"):
        if isinstance(found.get(name), bool):
            found[name] = int(found[name])
    if "to" in found:
        found["to"] = DTYPES.get(str(found["to"]), found["to"])


_EVERY = _every


def _convolution(node: Any, found: dict[str, Any]) -> None:
    """Kernel sizes and groups, which the shape of the weights says."""
    grouped = node.get_type_name().startswith("Group")
    shape = node.get_input_partial_shape(1)
    if shape.is_static:
        sizes = [int(size) for size in shape.to_shape()]
        found["kernel_shape"] = sizes[3 if grouped else 2 :]
        found["group"] = sizes[0] if grouped else 1


def _pool(node: Any, found: dict[str, Any]) -> None:
    rounding = str(found.pop("rounding_type", "floor"))
    found["ceil_mode"] = int(rounding.startswith("ceil"))
    if rounding == "ceil_torch":
        found["rounding"] = rounding
    if "exclude-pad" in found or "exclude_pad" in found:
        excluded = found.pop("exclude-pad", found.pop("exclude_pad", False))
        found["count_include_pad"] = int(not excluded)
    found.pop("index_element_type", None)
    if node.get_type_name() == "MaxPool":
        found.pop("axis", None)


def _resize(node: Any, found: dict[str, Any]) -> None:
    """Sizes or scales, whichever counts, and the axes that they are for."""
    if not any(found.get("pads", ())):
        found.pop("pads", None)
    if found.get("mode") == "linear_onnx":
        found["antialias"] = 0  # which this mode takes no notice of
    by = found.pop("shape_calculation_mode", "sizes")
    first = _stored(node, 1)
    if first is not None:
        found["sizes" if by == "sizes" else "scales"] = first.ravel().tolist()
    axes = _stored(node, 2)
    if axes is not None:
        found["axes"] = [int(axis) for axis in axes.ravel()]


def _top(node: Any, found: dict[str, Any]) -> None:
    found["largest"] = int(found.pop("mode", "max") == "max")
    found["sorted"] = str(found.pop("sort", "value"))
    found.pop("index_element_type", None)


def _mod(node: Any, found: dict[str, Any]) -> None:
    found["fmod"] = int(node.get_type_name() == "Mod")


def _strided(node: Any, found: dict[str, Any]) -> None:
    for name in MASKS:
        found[name] = sum(1 << place for place, bit in enumerate(found.get(name) or ()) if bit)


def _padding(node: Any, found: dict[str, Any]) -> None:
    found["mode"] = {"edge": "edge", "reflect": "reflect", "symmetric": "symmetric"}.get(
        str(found.pop("pad_mode", "constant")), "constant"
    )


def _leaky(node: Any, found: dict[str, Any]) -> None:
    slope = _stored(node, 1)
    if slope is not None and slope.size == 1:
        found["alpha"] = float(slope.ravel()[0])


def _gelu(node: Any, found: dict[str, Any]) -> None:
    found["approximate"] = {"TANH": "tanh"}.get(str(found.pop("approximation_mode", "ERF")).upper(), "none")


def _hard_sigmoid(node: Any, found: dict[str, Any]) -> None:
    found["alpha"], found["beta"] = 1 / 6, 0.5


def _unit(node: Any, found: dict[str, Any]) -> None:
    found["p"] = 2
    axes = found.get("axes")
    if isinstance(axes, list) and len(axes) == 1:
        found["axis"] = axes[0]


def _normalised(node: Any, found: dict[str, Any]) -> None:
    axes, rank = found.get("axes"), node.get_input_partial_shape(0).rank
    if isinstance(axes, list) and axes and not rank.is_dynamic and _over_last(node):
        found["axis"] = min(int(axis) % rank.get_length() for axis in axes)


def _looping(node: Any, found: dict[str, Any]) -> None:
    names = list(inner(node))
    if names:
        found["inner_constants"] = names


_REWRITES: dict[str, Callable[[Any, dict[str, Any]], None]] = {
    "AvgPool": _pool,
    "Convolution": _convolution,
    "ConvolutionBackpropData": _convolution,
    "FloorMod": _mod,
    "Gelu": _gelu,
    "GroupConvolution": _convolution,
    "GroupConvolutionBackpropData": _convolution,
    "HSigmoid": _hard_sigmoid,
    "If": _looping,
    "Interpolate": _resize,
    "Loop": _looping,
    "MVN": _normalised,
    "MaxPool": _pool,
    "Mod": _mod,
    "NormalizeL2": _unit,
    "PRelu": _leaky,
    "Pad": _padding,
    "StridedSlice": _strided,
    "TensorIterator": _looping,
    "TopK": _top,
}


def inner(node: Any) -> dict[str, np.ndarray]:
    """The float constants in the bodies of a loop or a branch: name -> array."""
    return {name: array_of(item) for name, item in inner_nodes(node)}


def inner_nodes(node: Any) -> list[tuple[str, Any]]:
    """(name, Constant) of the float constants in the bodies of a loop or a branch."""
    return [
        (f"{node.get_friendly_name()}/body{number}/{item.get_friendly_name()}", item)
        for number, body in enumerate(_bodies(node))
        for item in body.get_ordered_ops()
        if item.get_type_name() == "Constant"
        and item.get_element_type().get_type_name() in ("f16", "f32", "f64", "bf16")
    ]


def _bodies(node: Any) -> Sequence[Any]:
    for name in ("get_function", "get_body"):
        try:
            if node.get_type_name() == "If":
                return [node.get_function(0), node.get_function(1)]
            return [getattr(node, name)()]
        except (AttributeError, RuntimeError, TypeError):
            continue
    return []
