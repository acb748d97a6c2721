"""Operators of the source in ONNX vocabulary, as a literal table; axes are numbered as the target's values lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from trueport.diagnosis import pool
from trueport.diagnosis.attributes import listed, typed
from trueport.diagnosis.operators import activation, kind, number
from trueport.graph import Node
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


class Written(NamedTuple):
    """Name of a result, and how it lies; see `Placed`."""

    name: str
    order: Order | None
    at: tuple[int, ...] | None = None


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
    """An operator of two or more operands that are broadcast; a scalar among the attributes is one."""

    def rule(writer: Writer, node: Node) -> Written:
        operands: list[str | np.ndarray] = []
        for name in node.inputs:
            if name in writer.source.dynamic:
                operands.append(name)
            elif name:
                array = writer.source.array(name)
                if array is None:
                    raise Untranslatable(f"the constant '{name}' of the source was not traced")
                operands.append(np.asarray(array, np.float32))
        if len(operands) == 1:
            for name in ("other", "exponent", "self", "scale", "offset"):
                scalar = number(node.attributes, name)
                if scalar is not None:
                    operands.insert(0 if name == "self" else 1, np.array(scalar, np.float32))
                    break
        if node.attributes.get("reversed"):
            operands.reverse()
        if len(operands) < 2 or (len(operands) > 2 and operator not in ("Add", "Mul", "Max", "Min")):
            raise Untranslatable(f"the source's {kind(node)} has {len(operands)} operands")
        factor = number(node.attributes, "alpha")
        if factor not in (None, 1.0):
            raise Untranslatable(f"the source's {kind(node)} scales its second operand")
        return _broadcast(writer, operator, operands)

    return rule


def _broadcast(writer: Writer, operator: str, operands: Sequence[str | np.ndarray]) -> Written:
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
    result = names[0]
    for other in names[1:]:
        result = writer.write(operator, [result, other])
    return Written(result, order, first.at if kept else None)


def _along(operator: str, *names: str) -> Callable[[Writer, Node], Written]:
    """An operator along one axis."""

    def rule(writer: Writer, node: Node) -> Written:
        data, given = _data(writer, node), typed(writer.source, node)
        axis = _axis(data, given.get("axis", -1))
        attributes = {name: given[name] for name in names if name in given}
        name = data.name
        beta = given.get("beta", 1.0)
        if operator == "Softmax" and beta != 1.0:
            name = writer.write("Mul", [name, writer.array(beta)])
        return Written(writer.write(operator, [name], axis=axis, **attributes), data.order, data.at)

    return rule


def _axis(data: Placed, axis: Any) -> int:
    """An axis of the source where the target has it. Raises Untranslatable."""
    if isinstance(axis, int):
        place = axis % len(data.shape)
        if data.order is not None:
            return data.order.index(place)
        behind = len(data.shape) - place
        if data.at is not None and data.at[-behind:] == data.shape[-behind:]:
            return len(data.at) - behind
    raise Untranslatable(f"the layout of '{data.name}' is not known")


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
        if operator == "AveragePool":
            if given.get("divisor_override", "size of the window") != "size of the window":
                raise Untranslatable("the source's AveragePool divides by a number of its own")
            if given.get("count_include_pad"):
                attributes["count_include_pad"] = 1
        return Written(writer.write(operator, [writer.arranged(data, wanted)], **attributes), wanted)

    return rule


def _pad(writer: Writer, node: Node) -> Written:
    data, given = _data(writer, node), typed(writer.source, node)
    pads, rank = listed(given.get("pads")), len(data.shape)
    if data.order is None or pads is None or len(pads) != 2 * rank:
        raise Untranslatable("the widths of the source's Pad are not known")
    own = [pads[axis] for axis in data.order] + [pads[rank + axis] for axis in data.order]
    attributes: dict[str, Any] = {"pads": own, "mode": str(given.get("mode", "constant"))}
    if attributes["mode"] == "constant" and given.get("value"):
        attributes["value"] = float(given["value"])
    return Written(writer.write("Pad", [data.name], **attributes), data.order)


def _concat(writer: Writer, node: Node) -> Written:
    parts = [writer.value(name) for name in node.inputs if name in writer.source.dynamic]
    if len(parts) != len([name for name in node.inputs if name]) or not parts:
        raise Untranslatable("the source joins constants")
    order = parts[0].order if parts[0].order is not None else identity(len(parts[0].shape))
    axis = typed(writer.source, node).get("axis")
    if not isinstance(axis, int):
        raise Untranslatable("the axis of the source's Concat is not known")
    return Written(
        writer.write("Concat", [writer.arranged(part, order) for part in parts], axis=order.index(axis % len(order))),
        order,
    )


def _slice(writer: Writer, node: Node) -> Written:
    data, window = _data(writer, node), typed(writer.source, node).get("window")
    after = writer.source.shape(node.outputs[0])
    if data.order is None or window is None or after is None or len(after) != len(data.shape):
        raise Untranslatable("the window of the source's Slice is not known")
    axes = sorted(window)
    spans = [[int(window[axis][place]) for axis in axes] for place in range(3)]
    own = [data.order.index(int(axis)) for axis in axes]
    inputs = [writer.array(item, np.int64) for item in (spans[0], spans[1], own, spans[2])]
    return Written(writer.write("Slice", [data.name, *inputs]), data.order)


def _transpose(writer: Writer, node: Node) -> Written:
    """Nothing is written: the axes of the result are others."""
    data = _data(writer, node)
    perm = listed(node.attributes.get("perm", node.attributes.get("dims")))
    rank = len(data.shape)
    if perm is None and writer.source.format == "onnx":
        perm = list(range(rank))[::-1]
    if perm is not None and len(perm) == rank - 1:  # Keras' Permute counts without the batch, from 1
        perm = [0, *perm]
    if data.order is None or perm is None or sorted(perm) != list(range(rank)):
        raise Untranslatable("the order of the source's Transpose is not known")
    return Written(data.name, tuple(perm.index(axis) for axis in data.order))


def _reshape(writer: Writer, node: Node) -> Written:
    data, after = _data(writer, node), writer.source.shape(node.outputs[0])
    if after is None or math.prod(after) != math.prod(data.shape):
        raise Untranslatable("the shape of the source's Reshape is not known")
    if after == data.shape:
        return Written(data.name, data.order, data.at)
    if data.order is None and data.at is not None:
        return Written(data.name, None, data.at)
    name = writer.arranged(data, identity(len(data.shape)))
    wanted = [-1 if axis == 0 and data.shape and after[0] == data.shape[0] else size for axis, size in enumerate(after)]
    return Written(writer.write("Reshape", [name, writer.array(wanted, np.int64)]), identity(len(after)))


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
    if known.axes is None or any(number(node.attributes, name) not in (None, 1.0) for name in ("alpha", "beta")):
        raise Untranslatable(f"the layout of the weights of the source's {kind(node)} is not known")
    name = writer.arranged(data, identity(len(data.shape)))
    result = writer.write("MatMul", [name, writer.array(np.ascontiguousarray(known.array.T))])
    if biases:
        result = writer.write("Add", [result, writer.array(biases[0].array)])
    return Written(result, identity(len(data.shape)))


TABLE: Mapping[str, Callable[[Writer, Node], Written]] = {
    **{name: _plain(name) for name in (
        "Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Sigmoid",
        "Sign", "Sin", "Softsign", "Sqrt", "Swish", "Tanh")},
    **{name: _plain(name, "alpha") for name in ("Celu", "Elu", "LeakyRelu", "ThresholdedRelu")},
    **{name: _binary(name) for name in ("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub")},
    **{name: _reduce(name) for name in ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")},
    "AveragePool": _pool("AveragePool"),
    "BatchNormalization": _batch_normalization,
    "Cast": _identity,
    "Clip": _plain("Clip", "min", "max"),
    "Concat": _concat,
    "DequantizeLinear": _identity,
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
    "PRelu": _binary("PRelu"),
    "Pad": _pad,
    "QuantizeLinear": _identity,
    "Reshape": _reshape,
    "Rsqrt": _rsqrt,
    "Selu": _plain("Selu", "alpha", "gamma"),
    "Slice": _slice,
    "Softmax": _along("Softmax"),
    "Softplus": _plain("Softplus"),
    "Square": _square,
    "SquaredDifference": _squared_difference,
    "Squeeze": _reshape,
    "Sum": _binary("Add"),
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}  # fmt: skip
"""Kind of an operator of the source -> how it is written."""
