"""Matrix products, arithmetic, shapes and reductions: ONNX operators as Keras layers and operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trueport.converters._onnx_keras_values import Graph, Node, Value, identity, positive, reshaped, without
from trueport.frameworks._base import Unsupported

# -- matrix products and tables


def _matmul(graph: Graph, node: Node) -> None:
    kernel = graph.constant(node, 1)
    if kernel is None or kernel.ndim != 2 or node.inputs[0] not in graph.values:
        left, right = graph.plain_operand(node, 0), graph.plain_operand(node, 1)
        graph.give(node, graph.keras.ops.matmul(left, right))
        return
    bias, behind = _bias_behind(graph, node, kernel.shape[1])
    tensor = graph.plain_operand(node)
    weights = [kernel] if bias is None else [kernel, bias]
    made = graph.layer(node, "Dense", tensor, weights, units=kernel.shape[1], use_bias=bias is not None)
    graph.give(node, made)
    if behind is not None:
        graph.values[behind] = graph.values[node.outputs[0]]


def _bias_behind(graph: Graph, node: Node, units: int) -> tuple[Any, str | None]:
    """The constant that an addition right behind adds to every row, and the name of that sum."""
    name = node.outputs[0]
    reader = graph.readers.get(name)
    if graph.uses.get(name) != 1 or reader is None or reader.op_type != "Add":
        return None, None
    array = next((graph.constants.get(item) for item in reader.input if item != name), None)
    if array is None or array.dtype.kind != "f" or array.size != units or array.shape[-1:] != (units,):
        return None, None
    if array.ndim > len(graph.values[node.inputs[0]].order):
        return None, None
    return array.reshape(units), reader.output[0]


def _gemm(graph: Graph, node: Node) -> None:
    alpha, beta = float(node.get("alpha", 1.0)), float(node.get("beta", 1.0))
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
    kernel, bias = graph.constant(node, 1), graph.constant(node, 2)
    row = not has_bias or (bias is not None and (bias.ndim < 2 or bias.shape[0] == 1))
    if kernel is not None and row and not node.get("transA", 0) and node.inputs[0] in graph.values:
        kernel = alpha * (kernel.T if node.get("transB", 0) else kernel)
        extra = [] if bias is None else [np.broadcast_to(beta * np.ravel(bias), kernel.shape[1:])]
        tensor = graph.plain_operand(node)
        made = graph.layer(node, "Dense", tensor, [kernel, *extra], units=kernel.shape[1], use_bias=has_bias)
        graph.give(node, made)
        return
    ops = graph.keras.ops
    left, right = graph.plain_operand(node, 0), graph.plain_operand(node, 1)
    left = ops.transpose(left, (1, 0)) if node.get("transA", 0) else left
    right = ops.transpose(right, (1, 0)) if node.get("transB", 0) else right
    made = ops.matmul(left, right)
    made = made if alpha == 1.0 else ops.multiply(made, alpha)
    if has_bias:
        more = graph.plain_operand(node, 2)
        made = ops.add(made, more if beta == 1.0 else ops.multiply(more, beta))
    graph.give(node, made)


def _einsum(graph: Graph, node: Node) -> None:
    given = [graph.plain_operand(node, slot) for slot in range(len(node.inputs))]
    graph.give(node, graph.keras.ops.einsum(node.attributes["equation"], *given))


def _gather(graph: Graph, node: Node) -> None:
    table = graph.constant(node, 0)
    index = graph.constant(node, 1)
    if table is not None and index is None:
        tensor = graph.plain_operand(node, 1)
        if node.axis(table.ndim, 0) == 0 and table.ndim == 2 and table.dtype.kind == "f":
            made = graph.layer(node, "Embedding", tensor, [table], input_dim=table.shape[0], output_dim=table.shape[1])
        else:
            graph.note_fixed(node.inputs[0], table)
            made = graph.keras.ops.take(table, tensor, axis=node.axis(table.ndim, 0))
        graph.give(node, made)
        return
    value = graph.value(node)
    axis = node.axis(len(value.order), 0)
    if index is None or index.ndim > 1:
        data, places = graph.plain_operand(node), graph.plain_operand(node, 1)
        graph.give(node, graph.keras.ops.take(data, places, axis=axis))
        return
    size = value.shape[axis]
    if np.any(index < 0) and size is None:
        raise Unsupported("it counts from the end of an open axis")
    index = np.where(index < 0, index + (size or 0), index)
    places = int(index) if index.ndim == 0 else index.astype(np.int32)
    made = graph.keras.ops.take(value.tensor, places, axis=value.order[axis])
    graph.give(node, made, without(value.order, [axis]) if index.ndim == 0 else value.order)


# -- one value in, one out


def _activation(function: str, **settings: Any) -> Callable[[Graph, Node], None]:
    def handler(graph: Graph, node: Node) -> None:
        value = graph.value(node)
        made = graph.layer(node, "Activation", value.tensor, activation=function, **settings)
        graph.give(node, made, value.order)

    return handler


def _unary(function: str) -> Callable[[Graph, Node], None]:
    def handler(graph: Graph, node: Node) -> None:
        value = graph.value(node)
        graph.give(node, getattr(graph.keras.ops, function)(value.tensor), value.order)

    return handler


def _leaky(graph: Graph, node: Node) -> None:
    value = graph.value(node)
    slope = float(node.get("alpha", 0.01))
    graph.give(node, graph.layer(node, "LeakyReLU", value.tensor, negative_slope=slope), value.order)


def _elu(graph: Graph, node: Node) -> None:
    value = graph.value(node)
    graph.give(node, graph.layer(node, "ELU", value.tensor, alpha=float(node.get("alpha", 1.0))), value.order)


def _selu(graph: Graph, node: Node) -> None:
    if abs(node.get("alpha", 1.6732632) - 1.6732632) > 1e-5 or abs(node.get("gamma", 1.0507010) - 1.0507010) > 1e-5:
        raise Unsupported("a SELU with constants of its own")
    _activation("selu")(graph, node)


def _gelu(graph: Graph, node: Node) -> None:
    value = graph.value(node)
    approximate = node.get("approximate", "none") == "tanh"
    graph.give(node, graph.keras.ops.gelu(value.tensor, approximate=approximate), value.order)


def _hard_sigmoid(graph: Graph, node: Node) -> None:
    value, ops = graph.value(node), graph.keras.ops
    line = ops.add(ops.multiply(value.tensor, float(node.get("alpha", 0.2))), float(node.get("beta", 0.5)))
    graph.give(node, ops.clip(line, 0.0, 1.0), value.order)


def _clip(graph: Graph, node: Node) -> None:
    value = graph.value(node)
    bounds: list[Any] = [node.get("min", None), node.get("max", None)]
    for place in (0, 1):
        if len(node.inputs) > place + 1 and node.inputs[place + 1]:
            bounds[place] = graph.required(node, place + 1, "bound").item()
    low, high = bounds
    if low == 0 and high is not None and high > 0 and "float" in str(value.tensor.dtype):
        graph.give(node, graph.layer(node, "ReLU", value.tensor, max_value=float(high)), value.order)
        return
    made = value.tensor
    made = made if low is None else graph.keras.ops.maximum(made, low)
    made = made if high is None else graph.keras.ops.minimum(made, high)
    graph.give(node, made, value.order)


def _identity(graph: Graph, node: Node) -> None:
    graph.values[node.outputs[0]] = graph.value(node)


def _cast(graph: Graph, node: Node) -> None:
    from onnx import helper

    value = graph.value(node)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(node.attributes["to"])).name
    graph.give(node, graph.keras.ops.cast(value.tensor, dtype), value.order)


def _softmax(graph: Graph, node: Node) -> None:
    value = graph.value(node)
    rank = len(value.order)
    axis = node.axis(rank, -1 if graph.opset >= 13 else 1)
    axes = [axis] if graph.opset >= 13 else list(range(axis, rank))  # before 13 all axes behind belong to it
    stored = [value.order[item] for item in axes]
    if node.op == "Softmax":
        made = graph.layer(node, "Softmax", value.tensor, axis=stored[0] if len(stored) == 1 else stored)
    elif len(stored) == 1:
        made = graph.keras.ops.log_softmax(value.tensor, axis=stored[0])
    else:
        raise Unsupported("a logarithm of softmax over several axes")
    graph.give(node, made, value.order)


# -- several values in, one out


def _scalar(operand: Any) -> Any:
    return operand.item() if isinstance(operand, np.ndarray) and operand.ndim == 0 else operand


def _pair(graph: Graph, first: Value, second: Value) -> tuple[Any, Any, Any]:
    """Both tensors in one order, and that order; a constant of lower rank gets leading axes."""
    rank = max(len(first.order), len(second.order))
    values = []
    for value in (first, second):
        array = value.tensor
        if isinstance(array, np.ndarray) and 0 < array.ndim < rank:
            value = Value(array.reshape((1,) * (rank - array.ndim) + array.shape), identity(rank))
        values.append(value)
    if any(not value.order for value in values):  # a single number fits any order
        return _scalar(values[0].tensor), _scalar(values[1].tensor), max((v.order for v in values), key=len)
    if len(values[0].order) != len(values[1].order):
        return *(graph.stored(value, identity(len(value.order))) for value in values), identity(rank)
    order = next(value.order for value in values if not isinstance(value.tensor, np.ndarray))
    return graph.stored(values[0], order), graph.stored(values[1], order), order


def _binary(function: str, *, whole: bool = True) -> Callable[[Graph, Node], None]:
    def handler(graph: Graph, node: Node) -> None:
        left, right, order = _pair(graph, graph.value(node, 0), graph.value(node, 1))
        kinds = [str(getattr(item, "dtype", "")) for item in (left, right)]
        if not whole and any("int" in kind for kind in kinds):
            raise Unsupported("whole numbers, which ONNX divides towards zero")
        graph.give(node, getattr(graph.keras.ops, function)(left, right), order)

    return handler


def _variadic(function: str) -> Callable[[Graph, Node], None]:
    def handler(graph: Graph, node: Node) -> None:
        total = graph.value(node, 0)
        for slot in range(1, len(node.inputs)):
            left, right, order = _pair(graph, total, graph.value(node, slot))
            total = Value(getattr(graph.keras.ops, function)(left, right), order)
        if node.op == "Mean":
            total = Value(graph.keras.ops.divide(total.tensor, float(len(node.inputs))), total.order)
        graph.values[node.outputs[0]] = total

    return handler


def _where(graph: Graph, node: Node) -> None:
    given = [_scalar(graph.plain_operand(node, slot)) for slot in range(3)]
    graph.give(node, graph.keras.ops.where(*given))


def _concat(graph: Graph, node: Node) -> None:
    values = [graph.value(node, slot) for slot in range(len(node.inputs))]
    order = next((value.order for value in values if not isinstance(value.tensor, np.ndarray)), values[0].order)
    axis = node.axis(len(order), 0)
    tensors = [graph.stored(value, order) for value in values]
    if any(isinstance(tensor, np.ndarray) for tensor in tensors):
        made = graph.keras.ops.concatenate(tensors, axis=order[axis])
    else:
        made = tensors[0] if len(tensors) == 1 else graph.layer(node, "Concatenate", tensors, axis=order[axis])
    graph.give(node, made, order)


# -- shapes


def _transpose(graph: Graph, node: Node) -> None:
    value = graph.value(node)
    axes = node.get("perm", list(reversed(range(len(value.order)))))
    graph.values[node.outputs[0]] = Value(value.tensor, tuple(value.order[axis] for axis in axes))


def _reshape(graph: Graph, node: Node) -> None:
    tensor = graph.plain_operand(node)
    shape = list(tensor.shape)
    if "shape" in node.attributes:
        target: list[Any] = list(node.attributes["shape"])
    elif node.inputs[1] in graph.constants:
        target = list(np.ravel(graph.constants[node.inputs[1]]))
    else:
        raise Unsupported("its shape is computed from the input's values")
    target = [None if size is None else int(size) for size in target]
    if not node.get("allowzero", 0):
        target = [shape[place] if size == 0 else size for place, size in enumerate(target)]
    graph.give(node, reshaped(graph, tensor, target))


def _flatten(graph: Graph, node: Node) -> None:
    tensor = graph.plain_operand(node)
    rank = len(tensor.shape)
    axis = node.axis(rank, 1)
    if axis == 1 and None not in tensor.shape[1:]:
        graph.give(node, graph.layer(node, "Flatten", tensor) if rank != 2 else tensor)
        return
    before, behind = tensor.shape[:axis], tensor.shape[axis:]
    if None in behind and None in before:
        raise Unsupported("it flattens several open sizes")
    sizes = [None if None in part else int(np.prod(part)) for part in (before, behind)]
    graph.give(node, reshaped(graph, tensor, sizes))


def _squeeze(graph: Graph, node: Node) -> None:
    value = graph.value(node)
    axes = graph.numbers(node, 1, "axes")
    if axes is None:
        axes = [axis for axis, size in enumerate(value.shape) if size == 1]
    axes = positive(axes, len(value.order))
    made = graph.keras.ops.squeeze(value.tensor, axis=tuple(sorted(value.order[axis] for axis in axes)))
    graph.give(node, made, without(value.order, axes))


def _unsqueeze(graph: Graph, node: Node) -> None:
    made = graph.plain_operand(node)
    axes = graph.numbers(node, 1, "axes") or []
    for axis in sorted(positive(axes, len(made.shape) + len(axes))):
        made = graph.keras.ops.expand_dims(made, axis)
    graph.give(node, made)


def _slice(graph: Graph, node: Node) -> None:
    value = graph.value(node)
    starts, ends = graph.numbers(node, 1, "starts"), graph.numbers(node, 2, "ends")
    if starts is None or ends is None:
        raise Unsupported("it has no bounds")
    axes = positive(graph.numbers(node, 3, "axes") or list(range(len(starts))), len(value.order))
    steps = graph.numbers(node, 4, "steps") or [1] * len(starts)
    cuts: list[slice] = [slice(None)] * len(value.order)
    limit = 2**31 - 1
    for start, end, axis, step in zip(starts, ends, axes, steps):
        first = None if abs(start) >= limit else start
        cuts[value.order[axis]] = slice(first, None if abs(end) >= limit else end, step)
    graph.give(node, value.tensor[tuple(cuts)], value.order)


def _split(graph: Graph, node: Node) -> None:
    value = graph.value(node)
    axis = node.axis(len(value.order), 0)
    sizes = graph.numbers(node, 1, "split")
    if sizes is None:
        total = value.shape[axis]
        if total is None:
            raise Unsupported("it splits an open axis")
        part = -(-total // len(node.outputs))
        sizes = [min(part, total - part * place) for place in range(len(node.outputs))]
    cuts = np.cumsum(sizes)[:-1].tolist()
    parts = graph.keras.ops.split(value.tensor, cuts, axis=value.order[axis]) if cuts else [value.tensor]
    for slot, part in enumerate(parts):
        graph.give(node, part, value.order, slot)


def _pad(graph: Graph, node: Node) -> None:
    value, mode = graph.value(node), node.get("mode", "constant")
    pads = graph.numbers(node, 1, "pads")
    fill = node.get("value", 0.0)
    if len(node.inputs) > 2 and node.inputs[2]:
        fill = graph.required(node, 2, "value").item()
    rank = len(value.order)
    axes = positive(graph.numbers(node, 3, "axes") or list(range(rank)), rank)
    if pads is None or mode not in ("constant", "reflect") or any(size < 0 for size in pads):
        raise Unsupported(f"padding of mode {mode}, or by sizes that are negative or not constant")
    widths = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        widths[value.order[axis]] = (pads[place], pads[place + len(axes)])
    extra = {"constant_values": fill} if mode == "constant" else {}
    graph.give(node, graph.keras.ops.pad(value.tensor, tuple(widths), mode=mode, **extra), value.order)


def _expand(graph: Graph, node: Node) -> None:
    tensor = graph.plain_operand(node)
    target = graph.constants.get(node.inputs[1])
    if target is None:
        raise Unsupported("its shape is computed from the input's values")
    wanted = [None if size is None else int(size) for size in np.ravel(target)]
    shape: list[int | None] = [*[1] * (len(wanted) - len(tensor.shape)), *tensor.shape]
    wanted = [*[1] * (len(shape) - len(wanted)), *wanted]
    sizes = [have if want in (1, have) else want for have, want in zip(shape, wanted)]
    if sizes == list(tensor.shape):
        made = tensor
    elif None in sizes:
        raise Unsupported("it repeats a value to an open size")
    else:
        made = graph.keras.ops.broadcast_to(tensor, tuple(sizes))
    graph.give(node, made)


def _tile(graph: Graph, node: Node) -> None:
    repeats = graph.required(node, 1, "number of repeats")
    tensor = graph.plain_operand(node)
    graph.give(node, graph.keras.ops.tile(tensor, tuple(int(count) for count in repeats)))


# -- reductions


def _reduction(function: str) -> Callable[[Graph, Node], None]:
    def handler(graph: Graph, node: Node) -> None:
        value, ops = graph.value(node), graph.keras.ops
        rank = len(value.order)
        given = graph.numbers(node, 1, "axes")
        if not given and node.get("noop_with_empty_axes", 0):
            graph.values[node.outputs[0]] = value
            return
        axes = positive(given, rank) if given else list(range(rank))
        keep = bool(node.get("keepdims", 1))
        stored = tuple(sorted(value.order[axis] for axis in axes))
        tensor = value.tensor
        if node.op in ("ReduceL2", "ReduceSumSquare"):
            tensor = ops.square(tensor)
        elif node.op == "ReduceL1":
            tensor = ops.abs(tensor)
        made = getattr(ops, function)(tensor, axis=stored, keepdims=keep)
        made = ops.sqrt(made) if node.op == "ReduceL2" else made
        graph.give(node, made, value.order if keep else without(value.order, axes))

    return handler


def _arg(graph: Graph, node: Node) -> None:
    if node.get("select_last_index", 0):
        raise Unsupported("of several largest it takes the last")
    value, ops = graph.value(node), graph.keras.ops
    axis = node.axis(len(value.order), 0)
    keep = bool(node.get("keepdims", 1))
    function = ops.argmax if node.op == "ArgMax" else ops.argmin
    made = ops.cast(function(value.tensor, axis=value.order[axis], keepdims=keep), "int64")
    graph.give(node, made, value.order if keep else without(value.order, [axis]))


def _cumulative(graph: Graph, node: Node) -> None:
    if node.get("exclusive", 0) or node.get("reverse", 0):
        raise Unsupported("an exclusive or reversed running sum")
    value = graph.value(node)
    axis = int(graph.required(node, 1, "axis"))
    made = graph.keras.ops.cumsum(value.tensor, axis=value.order[axis])
    graph.give(node, made, value.order)


_UNARY = {
    "Abs": "abs", "Neg": "negative", "Sqrt": "sqrt", "Exp": "exp", "Log": "log", "Erf": "erf", "Sin": "sin",
    "Cos": "cos", "Tan": "tan", "Asin": "arcsin", "Acos": "arccos", "Atan": "arctan", "Sinh": "sinh", "Cosh": "cosh",
    "Asinh": "arcsinh", "Acosh": "arccosh", "Atanh": "arctanh", "Floor": "floor", "Ceil": "ceil", "Sign": "sign",
    "Round": "round", "Reciprocal": "reciprocal", "Not": "logical_not", "IsNaN": "isnan",
    "HardSwish": "hard_swish", "Mish": "mish",
}  # fmt: skip
_ACTIVATIONS = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softplus": "softplus", "Softsign": "softsign"}
_BINARY = {
    "Add": "add", "Sub": "subtract", "Mul": "multiply", "Pow": "power", "Equal": "equal", "Greater": "greater",
    "GreaterOrEqual": "greater_equal", "Less": "less", "LessOrEqual": "less_equal", "And": "logical_and",
    "Or": "logical_or", "Xor": "logical_xor",
}  # fmt: skip
_REDUCTIONS = {
    "ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "max", "ReduceMin": "min", "ReduceProd": "prod",
    "ReduceL1": "sum", "ReduceL2": "sum", "ReduceSumSquare": "sum", "ReduceLogSumExp": "logsumexp",
}  # fmt: skip

HANDLERS: Mapping[str, Callable[[Graph, Node], None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Gather": _gather,
    "LeakyRelu": _leaky,
    "Elu": _elu,
    "Selu": _selu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
    "Identity": _identity,
    "Dropout": _identity,
    "Cast": _cast,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Div": _binary("divide", whole=False),
    "Sum": _variadic("add"),
    "Mean": _variadic("add"),
    "Max": _variadic("maximum"),
    "Min": _variadic("minimum"),
    "Where": _where,
    "Concat": _concat,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
    "ArgMax": _arg,
    "ArgMin": _arg,
    "CumSum": _cumulative,
    **{op: _unary(function) for op, function in _UNARY.items()},
    **{op: _activation(function) for op, function in _ACTIVATIONS.items()},
    **{op: _binary(function) for op, function in _BINARY.items()},
    **{op: _reduction(function) for op, function in _REDUCTIONS.items()},
}
