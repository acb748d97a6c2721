"""ONNX operators that compute, written as PyTorch's: a call of an `aten` function, with others in front where one is not enough.

Operands are graph nodes, arrays that are not in the file yet (they become buffers), or None for one that is absent. Sizes,
axes and pads may stand among the attributes, as `graph` shows them, or be constant operands, as ONNX has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._torch_editor import Editor

Attributes = dict[str, Any]


class Call(NamedTuple):
    """One call of a function, not yet in the graph."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def aten(name: str) -> Any:
    """The function "relu.default" of PyTorch's operators."""
    import torch

    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def made(name: str, *args: Any, **kwargs: Any) -> Call:
    """A call of an `aten` function."""
    return Call(aten(name), args, kwargs)


class Place:
    """Where new operators go: in front of a node of the graph, with names that begin with `name`."""

    def __init__(self, editor: Editor, point: Any, name: str) -> None:
        self.editor, self.point, self.name = editor, point, name

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Put an operator there and return its node."""
        return self.put(made(name, *args, **kwargs))

    def put(self, call: Call, name: str | None = None) -> Any:
        """Put a prepared call there, under a name where one is given, and return its node."""
        return self.editor.call_before(self.point, *call, name=name)

    def node(self, operand: Any, beside: Any = None) -> Any:
        """The operand as a node: an array becomes a buffer, floats in the dtype of `beside`."""
        if not isinstance(operand, np.ndarray):
            return operand
        return self.editor.add_array(operand, f"{self.name}_constant", beside=beside)

    def numbers(self, operand: Any, what: str) -> np.ndarray:
        """The numbers of an operand that must be a constant. Raises Unsupported where it is computed."""
        if isinstance(operand, np.ndarray):
            return operand
        found = self.editor.array_of(operand) if operand is not None else None
        if found is None:
            raise Unsupported(f"{what} must be a constant, and is computed by the model")
        return found

    def listed(self, operands: Sequence[Any], slot: int, attributes: Attributes, name: str) -> list[Any] | None:
        """Numbers from an attribute, or from the operand at `slot`; None where neither is there."""
        value = attributes.get(name)
        if value is not None:
            return list(value) if isinstance(value, (tuple, list)) else [value]
        if slot < len(operands) and operands[slot] is not None:
            return [item.item() for item in self.numbers(operands[slot], f"'{name}'").reshape(-1)]
        return None

    def shape(self, operand: Any) -> list[int]:
        """The shape of an operand, -1 for open sizes."""
        return list(operand.shape) if isinstance(operand, np.ndarray) else self.editor.shape(operand)


Maker = Callable[[Place, Sequence[Any], Attributes], Call]


# -- element by element -------------------------------------------------------------------------------------------


def _plain(name: str) -> Maker:
    return lambda place, operands, attributes: made(name, place.node(operands[0]))


def _binary(name: str) -> Maker:
    def make(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
        tensors = [one for one in operands if not isinstance(one, np.ndarray)]
        beside = tensors[0] if tensors else None
        nodes = [place.node(one, beside) for one in operands]
        if attributes.get("reversed"):
            nodes.reverse()
        for extra in nodes[1:-1]:
            nodes = [place.call(name, nodes[0], extra), nodes[-1]]
        return made(name, *nodes[:2])

    return make


def _numbered(name: str, *arguments: tuple[str, float]) -> Maker:
    def make(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
        return made(name, operands[0], *(float(attributes.get(key, default)) for key, default in arguments))

    return make


def _gelu(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    return made("gelu.default", operands[0], approximate=attributes.get("approximate", "none"))


def _clip(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    bounds = [place.listed(operands, slot, attributes, name) for slot, name in ((1, "min"), (2, "max"))]
    low, high = (bound[0] if bound else None for bound in bounds)
    if low is None and high is None:
        return made("alias.default", operands[0])
    return made("clamp.default", operands[0], low, high)


def _hard_sigmoid(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    alpha, beta = float(attributes.get("alpha", 0.2)), float(attributes.get("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-7 and beta == 0.5:
        return made("hardsigmoid.default", operands[0])
    line = place.call("add.Tensor", place.call("mul.Tensor", operands[0], alpha), beta)
    return made("clamp.default", line, 0.0, 1.0)


def _prelu(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    slope = operands[1]
    if isinstance(slope, np.ndarray):
        slope = slope.reshape(-1)
    return made("prelu.default", operands[0], place.node(slope, operands[0]))


def _cast(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    return made("to.dtype", place.node(operands[0]), dtype_of(attributes["to"]))


_ONNX_TYPES = {1: "float32", 2: "uint8", 3: "int8", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
               11: "float64", 16: "bfloat16"}  # fmt: skip
"""Numbers of ONNX's element types."""


def dtype_of(name: Any) -> Any:
    """The torch dtype of a name ("float32") or of ONNX's number for it."""
    import torch

    found = getattr(torch, str(_ONNX_TYPES.get(name, name)).replace("torch.", "").lower(), None)
    if not isinstance(found, torch.dtype):
        raise Unsupported(f"there is no dtype '{name}' in PyTorch")
    return found


def _mod(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    return _binary("fmod.Tensor" if attributes.get("fmod") else "remainder.Tensor")(place, operands, attributes)


def _where(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    beside = next((one for one in operands[1:] if not isinstance(one, np.ndarray)), None)
    return made("where.self", place.node(operands[0]), *(place.node(one, beside) for one in operands[1:3]))


# -- windows --------------------------------------------------------------------------------------------------------


def windowed(place: Place, data: Any, attributes: Attributes, kernel: Sequence[int], fill: float) -> tuple[Any, ...]:
    """(data, strides, padding, dilations): uneven pads become a Pad operator with `fill` in front of the window."""
    axes = len(kernel)
    strides = list(attributes.get("strides") or [1] * axes)
    dilations = list(attributes.get("dilations") or [1] * axes)
    begins, ends = window_pads(place.shape(data)[2:], attributes, kernel, strides, dilations)
    if begins == ends:
        return data, strides, begins, dilations
    return padded(place, data, begins, ends, fill), strides, [0] * axes, dilations


def window_pads(
    sizes: Sequence[int],
    attributes: Attributes,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Padding before and behind every axis, worked out from the sizes for "SAME_UPPER" and "SAME_LOWER"."""
    axes, kind = len(kernel), attributes.get("auto_pad", "NOTSET")
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        if min(sizes) < 0 and max(strides) > 1:
            raise Unsupported(f"{kind} with a stride needs fixed sizes, and the model's are open")
        needed = []
        for size, taps, step, gap in zip(sizes, kernel, strides, dilations):
            reach = (taps - 1) * gap
            needed.append(reach if step == 1 else max(0, (-(-size // step) - 1) * step + reach + 1 - size))
        small, large = [total // 2 for total in needed], [total - total // 2 for total in needed]
        return (small, large) if kind == "SAME_UPPER" else (large, small)
    pads = list(attributes.get("pads") or [0] * (2 * axes))
    if kind == "VALID":
        pads = [0] * (2 * axes)
    if len(pads) != 2 * axes:
        raise Unsupported(f"pads has {len(pads)} numbers; {axes} axes need {2 * axes}, all begins before all ends")
    return pads[:axes], pads[axes:]


def padded(place: Place, data: Any, begins: Sequence[int], ends: Sequence[int], fill: float) -> Any:
    """A Pad operator over the last axes."""
    return place.call("constant_pad_nd.default", data, sides(begins, ends), fill)


def sides(begins: Sequence[int], ends: Sequence[int]) -> list[int]:
    """PyTorch's order of pads: from the last axis, before and behind."""
    return [int(side) for pair in zip(reversed(list(begins)), reversed(list(ends))) for side in pair]


def _conv(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    data = operands[0]
    weight = place.node(operands[1], data)
    bias = place.node(operands[2], data) if len(operands) > 2 else None
    kernel = place.shape(weight)[2:]
    data, strides, padding, dilations = windowed(place, data, attributes, kernel, 0.0)
    group = int(attributes.get("group", 1))
    return made(f"conv{len(kernel)}d.default", data, weight, bias, strides, padding, dilations, group)


_CONV_TRANSPOSE = {1: "conv_transpose1d.default", 2: "conv_transpose2d.input", 3: "conv_transpose3d.input"}


def _conv_transpose(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    data = operands[0]
    weight = place.node(operands[1], data)
    bias = place.node(operands[2], data) if len(operands) > 2 else None
    axes = len(place.shape(weight)) - 2
    pads = list(attributes.get("pads") or [0] * (2 * axes))
    if pads[:axes] != pads[axes:] or attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise Unsupported("a transposed convolution has the same padding on both sides in PyTorch")
    strides, gaps = (list(attributes.get(key) or [1] * axes) for key in ("strides", "dilations"))
    more = list(attributes.get("output_padding") or [0] * axes)
    group = int(attributes.get("group", 1))
    return made(_CONV_TRANSPOSE[axes], data, weight, bias, strides, pads[:axes], more, group, gaps)


def _pool(kind: str) -> Maker:
    def make(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
        data, axes = operands[0], len(place.shape(operands[0])) - 2
        if "kernel_shape" not in attributes:
            sizes = attributes["output_size"]
            return made(f"adaptive_{kind}_pool{axes}d.default", data, list(sizes))
        kernel, fill = list(attributes["kernel_shape"]), float("-inf") if kind == "max" else 0.0
        ceil, counted = bool(attributes.get("ceil_mode", 0)), bool(attributes.get("count_include_pad", 0))
        source = data
        data, strides, padding, gaps = windowed(place, data, attributes, kernel, fill)
        if any(pad > taps // 2 for pad, taps in zip(padding, kernel)):
            data, padding = padded(place, data, padding, padding, fill), [0] * axes
        if kind == "max":
            return made(f"max_pool{axes}d.default", data, kernel, strides, padding, gaps, ceil)
        if set(gaps) != {1}:
            raise Unsupported("an average over a dilated window cannot be written in PyTorch")
        name = f"avg_pool{axes}d.default"
        if data is source or counted:
            return made(name, data, kernel, strides, padding, ceil, counted)
        begins, ends = window_pads(place.shape(source)[2:], attributes, kernel, strides, gaps)
        there = padded(place, place.call("ones_like.default", source), begins, ends, 0.0)
        share = place.call(name, there, kernel, strides, padding, ceil, True)
        return made("div.Tensor", place.call(name, data, kernel, strides, padding, ceil, True), share)

    return make


def _global_average(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    axes = len(place.shape(operands[0])) - 2
    return made(f"adaptive_avg_pool{axes}d.default", operands[0], [1] * axes)


def _global_maximum(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    return made("amax.default", operands[0], list(range(2, len(place.shape(operands[0])))), True)


_UPSAMPLE = {"linear": {1: "upsample_linear1d", 2: "upsample_bilinear2d", 3: "upsample_trilinear3d"},
             "cubic": {2: "upsample_bicubic2d"},
             "nearest": {1: "upsample_nearest1d", 2: "upsample_nearest2d", 3: "upsample_nearest3d"},
             "exact": {1: "_upsample_nearest_exact1d", 2: "_upsample_nearest_exact2d", 3: "_upsample_nearest_exact3d"}}  # fmt: skip


def _resize(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    data, axes = operands[0], len(place.shape(operands[0])) - 2
    mode = attributes.get("mode", "nearest")
    where = attributes.get("coordinate_transformation_mode", "half_pixel")
    rounding = attributes.get("nearest_mode", "round_prefer_floor")
    sizes, scales = place.listed(operands, 3, attributes, "sizes"), place.listed(operands, 2, attributes, "scales")
    if sizes is not None and min(sizes) >= 0:
        size, factors = [int(one) for one in sizes[-axes:]], None
    elif scales is not None:
        size, factors = None, [float(one) for one in scales[-axes:]]
    else:
        raise Unsupported("Resize needs 'sizes' or 'scales'")
    if mode == "nearest":
        known = {("asymmetric", "floor"): "nearest", ("half_pixel", "round_prefer_floor"): "exact",
                 ("half_pixel", "round_prefer_ceil"): "exact"}  # fmt: skip
        if (where, rounding) not in known:
            raise Unsupported(f"Resize nearest with {where} and {rounding} cannot be written in PyTorch")
        return made(f"{_UPSAMPLE[known[where, rounding]][axes]}.vec", data, size, factors)
    if where not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise Unsupported(f"Resize {mode} with {where} cannot be written in PyTorch")
    return made(f"{_UPSAMPLE[mode][axes]}.vec", data, size, where == "align_corners", factors)


# -- matrices and normalisations ------------------------------------------------------------------------------------


def _gemm(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    left = operands[0]
    right = place.node(operands[1], left)
    third = place.node(operands[2], left) if len(operands) > 2 else None
    alpha, beta = float(attributes.get("alpha", 1)), float(attributes.get("beta", 1))
    if attributes.get("transA"):
        left = place.call("t.default", left)
    if alpha == 1 and beta == 1 and (third is None or len(place.shape(third)) == 1):
        right = right if attributes.get("transB") else place.call("t.default", right)
        return made("linear.default", left, right, third)
    right = place.call("t.default", right) if attributes.get("transB") else right
    if third is None:
        return made("mul.Tensor", place.call("mm.default", left, right), alpha)
    return made("addmm.default", third, left, right, beta=beta, alpha=alpha)


def _batch_norm(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    nodes = [place.node(one, operands[0]) for one in operands[:5]]
    return made("batch_norm.default", *nodes, False, 0.1, float(attributes.get("epsilon", 1e-5)), True)


def _layer_norm(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    data, shape = operands[0], place.shape(operands[0])
    nodes = [place.node(one, data) for one in operands[1:3]] + [None] * (3 - len(operands))
    sizes = shape[int(attributes.get("axis", -1)) :]
    if min(sizes) < 0:
        raise Unsupported("a normalisation over an axis of open size cannot be written in PyTorch")
    return made("layer_norm.default", data, sizes, *nodes[:2], float(attributes.get("epsilon", 1e-5)))


def _group_norm(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    nodes = [place.node(one, operands[0]) for one in operands[1:3]] + [None] * (3 - len(operands))
    epsilon = float(attributes.get("epsilon", 1e-5))
    return made("group_norm.default", operands[0], int(attributes["num_groups"]), *nodes[:2], epsilon)


def _instance_norm(place: Place, operands: Sequence[Any], attributes: Attributes) -> Call:
    nodes = [place.node(one, operands[0]) for one in operands[1:3]] + [None] * (3 - len(operands))
    epsilon = float(attributes.get("epsilon", 1e-5))
    return made("instance_norm.default", operands[0], *nodes[:2], None, None, True, 0.1, epsilon, True)


_SAME_NAME = (
    "Abs Acos Asin Atan Ceil Cos Cosh Erf Exp Expm1 Floor Log Log1p Mish Neg Reciprocal Relu Round Rsqrt Selu Sigmoid "
    "Sign Sin Sinh Softplus Sqrt Square Tan Tanh Trunc IsNaN IsInf"
)
MAKERS: dict[str, Maker] = {
    **{name: _plain(f"{name.lower()}.default") for name in _SAME_NAME.split()},
    "HardSwish": _plain("hardswish.default"),
    "Swish": _plain("silu.default"),
    "Not": _plain("logical_not.default"),
    "Identity": _plain("alias.default"),
    "Dropout": _plain("alias.default"),
    "LogSigmoid": _plain("log_sigmoid.default"),
    "LeakyRelu": _numbered("leaky_relu.default", ("alpha", 0.01)),
    "Elu": _numbered("elu.default", ("alpha", 1.0)),
    "Celu": _numbered("celu.default", ("alpha", 1.0)),
    "Gelu": _gelu,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "PRelu": _prelu,
    "ThresholdedRelu": lambda place, operands, attributes: made(
        "threshold.default", operands[0], float(attributes.get("alpha", 1.0)), 0.0
    ),
    "Cast": _cast,
    "Mod": _mod,
    "Where": _where,
    "Add": _binary("add.Tensor"),
    "Sub": _binary("sub.Tensor"),
    "Mul": _binary("mul.Tensor"),
    "Div": _binary("div.Tensor"),
    "Pow": _binary("pow.Tensor_Tensor"),
    "Max": _binary("maximum.default"),
    "Min": _binary("minimum.default"),
    "Atan2": _binary("atan2.default"),
    "And": _binary("logical_and.default"),
    "Or": _binary("logical_or.default"),
    "Xor": _binary("logical_xor.default"),
    "Equal": _binary("eq.Tensor"),
    "NotEqual": _binary("ne.Tensor"),
    "Less": _binary("lt.Tensor"),
    "LessOrEqual": _binary("le.Tensor"),
    "Greater": _binary("gt.Tensor"),
    "GreaterOrEqual": _binary("ge.Tensor"),
    "MatMul": _binary("matmul.default"),
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool("max"),
    "AveragePool": _pool("avg"),
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_maximum,
    "Resize": _resize,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
}
"""ONNX operator -> how it is written; those that only move elements are in `_torch_emit_shapes`."""
