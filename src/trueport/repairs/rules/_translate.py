"""Operators of the source in ONNX vocabulary, as a literal table; axes are numbered as the target's values lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trueport.diagnosis import pool
from trueport.diagnosis.attributes import listed, typed
from trueport.diagnosis.operators import activation, kind, number
from trueport.graph import Node
from trueport.repairs.rules import _exact, _moves, _resize
from trueport.repairs.rules._exact import Written
from trueport.repairs.rules._writer import Order, Placed, Untranslatable, Writer, identity

SEVERAL = frozenset({"MaxPool", "BatchNormalization"})
"""Kinds of which only the first result counts."""


def translate(writer: Writer, node: Node) -> None:
    """Write one operator of the source. Raises Untranslatable."""
    rule = TABLE.get(kind(node))
    if rule is None:
        raise Untranslatable(f"the source's {kind(node)} has no translation")
    if sum(1 for name in node.outputs if name) != 1 and kind(node) not in SEVERAL:
        raise Untranslatable(f"the source's {kind(node)} has several results")
    output = node.outputs[0]
    shape = writer.source.shape(output)
    if shape is None:
        raise Untranslatable(f"the shape of the source's '{output}' is not known")
    name, order, at = rule(writer, node)
    fused = activation(node)
    if fused is not None and fused != kind(node):
        name = _fused(writer, fused, name)
    writer.places[output] = Placed(name, shape, order, at)


# -- the table ------------------------------------------------------------------------------------------------------------


def _data(writer: Writer, node: Node) -> Placed:
    data = [name for name in node.inputs if name in writer.source.dynamic]
    if not data:
        raise Untranslatable(f"the source's {kind(node)} reads nothing that is computed")
    return writer.value(data[0])


def _plain(operator: str, *names: str) -> Callable[[Writer, Node], Written]:
    """An operator of one operand, element by element, with these attributes."""

    def rule(writer: Writer, node: Node) -> Written:
        data, given = _data(writer, node), typed(writer.source, node)
        attributes = {name: given[name] for name in names if name in given}
        attributes = {
            name: value
            for name, value in attributes.items()
            if not (isinstance(value, float) and (math.isinf(value) or abs(value) > 3e38))
        }
        return Written(writer.write(operator, [data.name], **attributes), data.order, data.at)

    return rule


def _identity(writer: Writer, node: Node) -> Written:
    data = _data(writer, node)
    return Written(data.name, data.order, data.at)


def _fused(writer: Writer, fused: str, name: str) -> str:
    """An activation that is fused into an operator, with its usual settings."""
    attributes: dict[str, Mapping[str, Any]] = {
        "Clip": {"min": 0.0, "max": 6.0},
        "Elu": {"alpha": 1.0},
        "Gelu": {},
        "Relu": {},
        "Selu": {},
        "Sigmoid": {},
        "Softplus": {},
        "Softsign": {},
        "Swish": {},
        "Tanh": {},
    }
    if fused not in attributes:
        raise Untranslatable(f"the source's fused {fused} has no translation")
    return writer.write(fused, [name], **attributes[fused])


def _rsqrt(writer: Writer, node: Node) -> Written:
    data = _data(writer, node)
    return Written(writer.write("Reciprocal", [writer.write("Sqrt", [data.name])]), data.order, data.at)


def _square(writer: Writer, node: Node) -> Written:
    data = _data(writer, node)
    return Written(writer.write("Mul", [data.name, data.name]), data.order, data.at)


def _squared_difference(writer: Writer, node: Node) -> Written:
    name, order, at = _binary("Sub")(writer, node)
    return Written(writer.write("Mul", [name, name]), order, at)


def _log_sigmoid(writer: Writer, node: Node) -> Written:
    data = _data(writer, node)
    negated = writer.write("Softplus", [writer.write("Neg", [data.name])])
    return Written(writer.write("Neg", [negated]), data.order, data.at)


def _binary(operator: str) -> Callable[[Writer, Node], Written]:
    """An operator of two or more operands that are broadcast; a scalar among the attributes is one. Of one: that operand."""

    def rule(writer: Writer, node: Node) -> Written:
        operands: list[str | np.ndarray] = []
        for name in node.inputs:
            if name in writer.source.dynamic:
                operands.append(name)
            elif name:
                operands.append(_float(writer, name))
        if len(operands) == 1:
            for name in ("other", "exponent", "self", "scale", "offset"):
                scalar = number(node.attributes, name)
                if scalar is not None:
                    operands.insert(0 if name == "self" else 1, np.array(scalar, np.float32))
                    break
        if node.attributes.get("reversed"):
            operands.reverse()
        if len(operands) == 1 and operator in ("Max", "Min") and node.native_op == operator:
            return _identity(writer, node)
        if len(operands) < 2 or (len(operands) > 2 and operator not in ("Add", "Mul", "Max", "Min")):
            raise Untranslatable(f"the source's {kind(node)} has {len(operands)} operands")
        factor = number(node.attributes, "alpha")
        if factor not in (None, 1.0):
            raise Untranslatable(f"the source's {kind(node)} scales its second operand")
        return _broadcast(writer, operator, operands)

    return rule


def _broadcast(writer: Writer, operator: str, operands: Sequence[str | np.ndarray]) -> Written:
    names, order, at = _laid(writer, operands)
    result = names[0]
    for other in names[1:]:
        result = writer.write(operator, [result, other])
    return Written(result, order, at)


def _where(writer: Writer, node: Node) -> Written:
    operands = [name if name in writer.source.dynamic else _float(writer, name) for name in node.inputs if name]
    if len(operands) != 3 or not isinstance(operands[0], str):
        raise Untranslatable("the operands of the source's Where are not known")
    names, order, at = _laid(writer, operands)
    return Written(writer.write("Where", names), order, at)


def _laid(
    writer: Writer, operands: Sequence[str | np.ndarray]
) -> tuple[list[str], Order | None, tuple[int, ...] | None]:
    """Operands that are broadcast, all laid out alike: their names, and how they lie."""
    placed = {name: writer.value(name) for name in operands if isinstance(name, str)}
    rank = max(len(item.shape) for item in placed.values())
    first = next(item for item in placed.values() if len(item.shape) == rank)
    if any(array.ndim > rank for array in operands if not isinstance(array, str)):
        raise Untranslatable("a constant has more axes than the value that it meets")
    alike = {(len(item.shape), item.order, item.at) for item in placed.values()}
    kept = len(alike) == 1 and (first.order is not None or first.at is not None)
    order = first.order if kept else identity(rank)
    if not kept and first.order is not None and all(len(item.shape) == rank for item in placed.values()):
        order = first.order
    names: list[str] = []
    for item in operands:
        if not isinstance(item, str):
            names.append(writer.constant(item, first, order))
        elif kept:
            names.append(placed[item].name)
        else:
            wanted = (
                order if order is not None and len(placed[item].shape) == rank else identity(len(placed[item].shape))
            )
            names.append(writer.arranged(placed[item], wanted))
    return names, order, first.at if kept else None


def _float(writer: Writer, name: str) -> np.ndarray:
    """A constant of the source."""
    array = writer.source.array(name)
    if array is None:
        raise Untranslatable(f"the constant '{name}' of the source was not traced")
    return np.asarray(array, np.float32)


def _along(operator: str, *names: str) -> Callable[[Writer, Node], Written]:
    """An operator along one axis."""

    def rule(writer: Writer, node: Node) -> Written:
        data, given = _data(writer, node), typed(writer.source, node)
        attributes = {name: given[name] for name in names if name in given}
        name, order, at = data.name, data.order, data.at
        axis = _axis(data, given.get("axis", -1))
        if axis is None:
            order, at = identity(len(data.shape)), None
            name, axis = writer.arranged(data, order), int(given.get("axis", -1)) % len(order)
        beta = given.get("beta", 1.0)
        if operator == "Softmax" and beta != 1.0:
            name = writer.write("Mul", [name, writer.array(beta)])
        return Written(writer.write(operator, [name], axis=axis, **attributes), order, at)

    return rule


def _axis(data: Placed, axis: Any) -> int | None:
    """An axis of the source where the target has it; None where it is merged with others. Raises Untranslatable."""
    if not isinstance(axis, int):
        raise Untranslatable(f"the axis of the operator that reads '{data.name}' is not known")
    place = axis % len(data.shape)
    if data.order is not None:
        return data.order.index(place)
    behind = len(data.shape) - place
    trailing = data.at is not None and data.at[-behind:] == data.shape[-behind:]
    return len(data.at) - behind if data.at is not None and trailing else None


def _reduce(operator: str) -> Callable[[Writer, Node], Written]:
    def rule(writer: Writer, node: Node) -> Written:
        data = _data(writer, node)
        axes = listed(typed(writer.source, node).get("axes"))
        after = writer.source.shape(node.outputs[0])
        if after is None:
            raise Untranslatable(f"the shape of the source's '{node.outputs[0]}' is not known")
        order = data.order if data.order is not None else identity(len(data.shape))
        name = writer.arranged(data, order)
        reduced = sorted({axis % len(data.shape) for axis in axes} if axes else range(len(data.shape)))
        keep = len(after) == len(data.shape)
        own = sorted(order.index(axis) for axis in reduced)
        left = [axis for axis in order if axis not in reduced]
        result = writer.write(operator, [name], axes=own, keepdims=int(keep))
        return Written(result, order if keep else tuple(sorted(left).index(axis) for axis in left))

    return rule


def _channels(writer: Writer, node: Node, rank: int) -> int:
    """The axis of the source's channels."""
    given = str(node.attributes.get("data_format", "")).lower()
    last = writer.source.channels_last if not given else not given.startswith(("nc", "channels_first"))
    return rank - 1 if last else 1


def _native(writer: Writer, node: Node, rank: int) -> Order:
    """The order in which the target's format has pictures, in axes of the source."""
    channel = _channels(writer, node, rank)
    spatial = [axis for axis in range(1, rank) if axis != channel]
    return (0, *spatial, channel) if writer.last else (0, channel, *spatial)


def _batch_normalization(writer: Writer, node: Node) -> Written:
    data, norm = _data(writer, node), pool.norm_of(writer.source, node)
    if norm is None or data.order is None:
        raise Untranslatable("the parameters of the source's BatchNormalization are not known")
    rank = len(data.shape)
    sizes = [axis for axis in range(1, rank) if data.shape[axis] == norm.slots["var"].size]
    axis = _channels(writer, node, rank)
    if axis not in sizes:
        if len(sizes) != 1:
            raise Untranslatable("the channels of the source's BatchNormalization are not known")
        axis = sizes[0]
    place = data.order.index(axis)
    if place == (rank - 1 if writer.last else 1):
        slots = [writer.array(norm.slots[slot]) for slot in ("gamma", "beta", "mean", "var")]
        return Written(writer.write("BatchNormalization", [data.name, *slots], epsilon=norm.epsilon), data.order)
    form = [-1 if axis == place else 1 for axis in range(rank)]
    scale = norm.scale()
    shift = norm.slots["beta"] - norm.slots["mean"] * scale
    scaled = writer.write("Mul", [data.name, writer.array(scale.reshape(form))])
    return Written(writer.write("Add", [scaled, writer.array(shift.reshape(form))]), data.order)


def _layer_normalization(writer: Writer, node: Node) -> Written:
    data, given = _data(writer, node), typed(writer.source, node)
    floats = [item.array for item in writer.source.parameters(node) if item.real and item.array.ndim >= 1]
    rank = len(data.shape)
    axis = given.get("axis", -1)
    axes = listed(node.attributes.get("axes")) or listed(axis)
    width = floats[0].ndim if floats else len(axes or ())
    if not axes or len(floats) > 2 or any(array.shape != floats[0].shape for array in floats):
        raise Untranslatable("the parameters of the source's LayerNormalization are not known")
    if width != 1 or axes[0] % rank != rank - 1:
        raise Untranslatable("the source's LayerNormalization runs over other axes than the last")
    size = data.shape[-1]
    gamma = np.ones(size) if not floats else floats[0]
    beta = [writer.array(floats[1])] if len(floats) > 1 else []
    name = writer.arranged(data, identity(rank))
    result = writer.write(
        "LayerNormalization", [name, writer.array(gamma), *beta], axis=-1, epsilon=float(given.get("epsilon", 1e-5))
    )
    return Written(result, identity(rank))


def _pool(operator: str) -> Callable[[Writer, Node], Written]:
    def rule(writer: Writer, node: Node) -> Written:
        data, given = _data(writer, node), typed(writer.source, node)
        rank = len(data.shape)
        if "kernel_shape" not in given or "pads" not in given:
            raise Untranslatable(f"the window of the source's {operator} is not known")
        wanted = _native(writer, node, rank)
        attributes = {name: given[name] for name in ("kernel_shape", "strides", "pads")}
        if given.get("ceil_mode"):
            attributes["ceil_mode"] = 1
        if any(size != 1 for size in given.get("dilations", ())):
            attributes["dilations"] = given["dilations"]
        own = isinstance(given.get("divisor_override"), (int, float))
        if operator == "AveragePool" and (own or given.get("count_include_pad")):
            attributes["count_include_pad"] = 1
        result = writer.write(operator, [writer.arranged(data, wanted)], **attributes)
        return Written(_exact.own_divisor(writer, node, result) if operator == "AveragePool" else result, wanted)

    return rule


def _mul(writer: Writer, node: Node) -> Written:
    """A product; Keras' Rescaling is a product and a sum, each with one number or one a channel."""
    if node.op != "Rescaling":
        return _binary("Mul")(writer, node)
    data = _data(writer, node)
    scale, offset = (node.attributes.get(name) for name in ("scale", "offset"))
    if data.order is None or scale is None or offset is None:
        raise Untranslatable("the numbers of the source's Rescaling are not known")
    scaled = writer.write("Mul", [data.name, writer.constant(np.array(scale, np.float32), data, data.order)])
    shift = writer.constant(np.array(offset, np.float32), data, data.order)
    return Written(writer.write("Add", [scaled, shift]), data.order)


def _conv(writer: Writer, node: Node) -> Written:
    """A convolution with the source's kernel, in the layout that the target's format has for it."""
    data, given = _data(writer, node), typed(writer.source, node)
    found = [pool.raw_of(item) for item in writer.source.parameters(node) if item.real and item.array.ndim > 2]
    biases = [item.array for item in writer.source.parameters(node) if item.real and item.array.ndim == 1]
    if len(found) != 1 or found[0].axes is None or len(biases) > 1 or "pads" not in given:
        raise Untranslatable("the kernel or the padding of the source's Conv is not known")
    rank, kernel = len(data.shape), found[0].array
    wanted = _native(writer, node, rank)
    group = data.shape[_channels(writer, node, rank)] // kernel.shape[1]
    attributes = {name: given[name] for name in ("kernel_shape", "strides", "pads", "dilations") if name in given}
    arrange = KERNELS.get(writer.format)
    stored = kernel if arrange is None else arrange(kernel, group)
    inputs = [writer.arranged(data, wanted), writer.array(stored), *map(writer.array, biases)]
    return Written(writer.write("Conv", inputs, **attributes, group=group), wanted)


def _channels_last_kernel(array: np.ndarray, group: int) -> np.ndarray:
    """[out, in, *spatial] as Keras stores it: [*spatial, in, out], or [*spatial, in, multiplier] channel by channel."""
    if group > 1 and array.shape[1] == 1:
        split = array.reshape(group, -1, *array.shape[2:])
        return np.moveaxis(split, (0, 1), (-2, -1))
    return np.moveaxis(array, (1, 0), (-2, -1))


def _tflite_kernel(array: np.ndarray, group: int) -> np.ndarray:
    """[out, in, *spatial] as TFLite stores it: [out, *spatial, in], or [1, *spatial, out] channel by channel."""
    return np.moveaxis(array, 0 if group > 1 and array.shape[1] == 1 else 1, -1)


KERNELS: Mapping[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "tflite": _tflite_kernel,
    "keras": _channels_last_kernel,
    "h5": _channels_last_kernel,
    "savedmodel": _channels_last_kernel,
}
"""Format -> how it stores a kernel, given as [out, in, *spatial]; the others store it like this."""


def _matmul(writer: Writer, node: Node) -> Written:
    """A product with weights, and a bias behind it; or of two computed values."""
    computed = [name for name in node.inputs if name in writer.source.dynamic]
    if len(computed) == 2 and kind(node) == "MatMul" and not any(map(node.attributes.get, ("adj_x", "adj_y"))):
        left, right = (writer.value(name) for name in computed)
        names = [writer.arranged(item, identity(len(item.shape))) for item in (left, right)]
        return Written(writer.write("MatMul", names), identity(max(len(left.shape), len(right.shape))))
    data = _data(writer, node)
    weights = [item for item in writer.source.parameters(node) if item.real and item.array.ndim == 2]
    biases = [item for item in writer.source.parameters(node) if item.real and item.array.ndim == 1]
    if len(computed) != 1 or len(weights) != 1 or len(biases) > 1:
        raise Untranslatable(f"the operands of the source's {kind(node)} are not known")
    if node.attributes.get("transA") or node.inputs.index(weights[0].name) < node.inputs.index(computed[0]):
        raise Untranslatable(f"the source's {kind(node)} multiplies from the left")
    known = pool.raw_of(weights[0])
    alpha, beta = (1.0 if (found := number(node.attributes, name)) is None else found for name in ("alpha", "beta"))
    if known.axes is None:
        raise Untranslatable(f"the layout of the weights of the source's {kind(node)} is not known")
    name = writer.arranged(data, identity(len(data.shape)))
    result = writer.write("MatMul", [name, writer.array(np.ascontiguousarray(alpha * known.array.T))])
    if biases:
        result = writer.write("Add", [result, writer.array(beta * biases[0].array)])
    return Written(result, identity(len(data.shape)))


TABLE: Mapping[str, Callable[[Writer, Node], Written]] = {
    **{name: _plain(name) for name in (
        "Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Sigmoid",
        "Sign", "Sin", "Softsign", "Sqrt", "Swish", "Tanh")},
    **{name: _plain(name, "alpha") for name in ("Celu", "Elu", "LeakyRelu", "ThresholdedRelu")},
    **_exact.RULES,
    **_moves.RULES,
    **{name: _binary(name) for name in ("Add", "Greater", "Less", "Max", "Min", "Pow", "Sub")},
    **{name: _reduce(name) for name in ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")},
    "AveragePool": _pool("AveragePool"),
    "BatchNormalization": _batch_normalization,
    "Clip": _plain("Clip", "min", "max"),
    "Conv": _conv,
    "DequantizeLinear": _identity,
    "Div": _exact.division(_binary("Div")),
    "Gelu": _plain("Gelu", "approximate"),
    "Gemm": _matmul,
    "HardSigmoid": _plain("HardSigmoid", "alpha", "beta"),
    "Identity": _identity,
    "LayerNormalization": _layer_normalization,
    "LogSigmoid": _log_sigmoid,
    "LogSoftmax": _along("LogSoftmax"),
    "LpNormalization": _along("LpNormalization", "p"),
    "MatMul": _matmul,
    "MaxPool": _pool("MaxPool"),
    "Mul": _mul,
    "PRelu": _binary("PRelu"),
    "QuantizeLinear": _identity,
    "Resize": _resize.resize,
    "Rsqrt": _rsqrt,
    "Selu": _plain("Selu", "alpha", "gamma"),
    "Softmax": _along("Softmax"),
    "Square": _square,
    "SquaredDifference": _squared_difference,
    "Sum": _binary("Add"),
    "Where": _where,
}  # fmt: skip
"""Kind of an operator of the source -> how it is written."""
