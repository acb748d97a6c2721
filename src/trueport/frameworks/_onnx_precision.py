"""Rewrites an ONNX model so that it computes as it would in another arithmetic: the measure of what that arithmetic costs.

float64: every float becomes a double. float16: weights rounded to half precision. int8-dynamic: weight matrices and
kernels rounded per output channel to symmetric int8. int8: activations rounded as well, per tensor, to an affine grid
of 256 steps over the range they have on the same inputs. All but the first compute in float32, and the rounding of
activations uses only Mul, Add and Sub, so that it exists at every opset from 7 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trueport.frameworks import _onnx_cut, _onnx_file, _onnx_trace
from trueport.frameworks._base import Arrays, Unsupported

_WEIGHT_SLOTS = {
    "Conv": ((1, 0),),
    "ConvTranspose": ((1, 1),),
    "MatMul": ((0, -2), (1, -1)),
    "Gemm": ((0, 0), (1, 1)),
    "LSTM": ((1, 1), (2, 1)),
    "GRU": ((1, 1), (2, 1)),
    "RNN": ((1, 1), (2, 1)),
}
"""Operator -> (input that may hold weights, axis of the output channel)."""

_QUANTISED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "MatMulInteger",
    "ConvInteger",
)
_ROUNDER = 1.5 * 2**23
"""Adding and taking away this number rounds a float32 below 2**22 to the nearest integer."""
_LARGEST_HALF = 65504.0


def as_double(path: str) -> Any:
    """Return the model with float64 in place of every float16 and float32. Raises Unsupported for a quantised model."""
    from onnx import TensorProto

    model = _inlined(_onnx_file.with_data(path))
    quantised = sorted({node.op_type for node in _onnx_file.nodes(model)} & set(_QUANTISED))
    if quantised:
        raise Unsupported(f"a quantised model has no float64 counterpart ({', '.join(quantised)})")
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    for tensor in _onnx_file.tensors(model):
        if tensor.data_type in floats:
            _store(tensor, _array(tensor).astype(np.float64))
    for graph in _onnx_file.graphs(model):
        del graph.value_info[:]
        for item in (*graph.input, *graph.output):
            if item.type.tensor_type.elem_type in floats:
                item.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in _onnx_file.nodes(model):
        _double_attributes(node, floats)
    return model


def _double_attributes(node: Any, floats: tuple[int, ...]) -> None:
    """Change what an attribute says about types: Cast's target, Constant's value, ConstantOfShape's default, LayerNorm's stash."""
    from onnx import TensorProto, helper, numpy_helper

    for attribute in node.attribute:
        if attribute.name in ("to", "dtype", "stash_type") and attribute.i in floats:
            attribute.i = TensorProto.DOUBLE
        elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            value = np.array(helper.get_attribute_value(attribute), dtype=np.float64)
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
    given = {attribute.name for attribute in node.attribute}
    if node.op_type == "ConstantOfShape" and "value" not in given:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
    if node.op_type in ("LayerNormalization", "RMSNormalization", "GroupNormalization") and "stash_type" not in given:
        node.attribute.append(helper.make_attribute("stash_type", TensorProto.DOUBLE))


def rounded_weights(path: str, precision: str) -> Any:
    """Return the model with its weights on the grid of `precision` (float16, int8-dynamic or int8), stored as before."""
    model = _inlined(_onnx_file.with_data(path))
    if precision == "float16":
        _round_to_half(model)
    else:
        _round_graph(model.graph, {})
    return model


def _inlined(model: Any) -> Any:
    if not model.functions:
        return model
    from onnx import inliner

    return inliner.inline_local_functions(model)


def _round_to_half(model: Any) -> None:
    """Round float tensors of more than one element; single numbers (an epsilon) stay, as converters leave them."""
    from onnx import TensorProto

    for tensor in _onnx_file.tensors(model):
        if tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims, dtype=np.int64)) > 1:
            array = _array(tensor)
            finite = np.isfinite(array)
            halved = np.clip(array, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16).astype(np.float32)
            _store(tensor, np.where(finite, halved, array))


def _round_graph(graph: Any, outer: Mapping[str, Any]) -> None:
    """Round the weights that this graph's operators read, its own or those of the graphs around it, each once."""
    from onnx import TensorProto

    known = {**outer, **{name: (tensor, []) for name, tensor in _stored(graph).items()}}
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for slot, axis in _WEIGHT_SLOTS.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
            if slot >= len(node.input):
                continue
            name, where = _behind(node.input[slot], _channel_axis(node, slot, axis), producers)
            tensor, done = known.get(name, (None, []))
            if tensor is None or done or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
                continue
            _store(tensor, round_per_channel(_array(tensor), where))
            done.append(True)
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                _round_graph(inner, known)


def _stored(graph: Any) -> dict[str, Any]:
    """Name -> TensorProto inside the graph itself, so that a change to it changes the model."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _channel_axis(node: Any, slot: int, axis: int) -> int:
    if node.op_type == "Gemm":
        values = _onnx_file.attributes(node)
        return axis ^ int(bool(values.get("transA" if slot == 0 else "transB", 0)))
    return axis


def _behind(name: str, axis: int, producers: Mapping[str, Any]) -> tuple[str, int]:
    """Follow Identity and Transpose back to what they read, keeping track of the axis."""
    while name in producers and producers[name].op_type in ("Identity", "Transpose"):
        node = producers[name]
        if node.op_type == "Transpose":
            order = _onnx_file.attributes(node).get("perm")
            axis = -1 - axis if order is None else order[axis]
        name = node.input[0]
    return name, axis


def round_per_channel(array: np.ndarray, axis: int) -> np.ndarray:
    """Round a float32 array to 255 steps, symmetric about zero, with one scale per index of `axis`."""
    others = tuple(index for index in range(array.ndim) if index != axis % array.ndim)
    scale = np.max(np.abs(array), axis=others, keepdims=True, initial=0.0) / 127.0
    scale = np.where(scale > 0, scale, 1.0)
    return (np.round(array / scale) * scale).astype(np.float32)


def activation_ranges(path: str, inputs: Arrays) -> dict[str, tuple[float, float]]:
    """Minimum and maximum over all runs of every float32 value that depends on the inputs, graph inputs included."""
    from onnx import TensorProto

    graph = _onnx_file.read(path).graph
    stored = set(_onnx_file.constants(graph))
    live = {item.name for item in graph.input} - stored
    wanted = [
        item.name for item in graph.input if item.name in live and item.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    shown = _onnx_cut.exposed(path)
    for node in graph.node:
        if live.intersection((*node.input, *_onnx_file.captured(node))):
            live.update(name for name in node.output if name)
            wanted += [name for name in node.output if shown.get(name) == "float32"]
    filled = {name for name, count in _onnx_trace.sizes(path, inputs, wanted).items() if count}
    wanted = [name for name in wanted if name in filled]
    low = _onnx_trace.measured(path, inputs, wanted, "ReduceMin")
    high = _onnx_trace.measured(path, inputs, wanted, "ReduceMax")
    spans = {name: (float(low[name].min()), float(high[name].max())) for name in wanted}
    return {name: span for name, span in spans.items() if np.isfinite(span).all()}


def rounded_activations(model: Any, ranges: Mapping[str, tuple[float, float]]) -> tuple[Any, dict[str, str]]:
    """Round every value named in `ranges` where it is produced. Returns the model and the renamed graph inputs (old -> new)."""
    if _onnx_file.opsets(model).get("", 0) < 7:
        raise Unsupported("int8 activations cannot be simulated below opset 7, where operators do not broadcast")
    graph = model.graph
    del graph.value_info[:]
    renamed = {}
    for item in graph.input:
        if item.name in ranges:
            renamed[item.name] = _raw(item.name)
            item.name = _raw(item.name)
    nodes = []
    for name in renamed:
        nodes += _rounding(graph, name, ranges[name])
    for node in graph.node:
        nodes.append(node)
        for place, name in enumerate(node.output):
            if name in ranges:
                node.output[place] = _raw(name)
                nodes += _rounding(graph, name, ranges[name])
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return model, renamed


def _raw(name: str) -> str:
    return f"trueport.raw/{name}"


def _rounding(graph: Any, name: str, span: tuple[float, float]) -> list[Any]:
    """Make name = round(raw / scale) * scale, with zero on the grid; the range comes from the same data, so nothing is clipped."""
    from onnx import helper, numpy_helper

    low, high = min(span[0], 0.0), max(span[1], 0.0)
    scale = (high - low) / 255.0
    if not 1e-30 < scale < 1e30:
        return [helper.make_node("Identity", [_raw(name)], [name])]
    numbers = {"inverse": 1.0 / scale, "rounder": _ROUNDER, "scale": scale}
    inner = {key: f"trueport.{key}/{name}" for key in (*numbers, "divided", "shifted", "rounded")}
    for key, value in numbers.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.float32), inner[key]))
    return [
        helper.make_node("Mul", [_raw(name), inner["inverse"]], [inner["divided"]]),
        helper.make_node("Add", [inner["divided"], inner["rounder"]], [inner["shifted"]]),
        helper.make_node("Sub", [inner["shifted"], inner["rounder"]], [inner["rounded"]]),
        helper.make_node("Mul", [inner["rounded"], inner["scale"]], [name]),
    ]


def declared(model: Any) -> str:
    """Name the precision that a model itself shows: float32, float16, bfloat16, float64, int8 or int8-dynamic."""
    kinds = {node.op_type for node in _onnx_file.nodes(model)}
    stored: set[str] = set()
    for graph in _onnx_file.graphs(model):
        stored.update(_onnx_file.constants(graph))
    quantises_activations = any(
        node.op_type == "QuantizeLinear" and node.input[0] not in stored for node in _onnx_file.nodes(model)
    )
    if quantises_activations or any(kind.startswith("QLinear") for kind in kinds):
        return "int8"
    integer = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM")
    if kinds & {*integer, "DequantizeLinear"}:
        return "int8-dynamic"
    return _most_weights(model) or "float32"


def _most_weights(model: Any) -> str | None:
    """The float type that holds most of the weights."""
    counts: dict[str, int] = {}
    for tensor in _onnx_file.tensors(model):
        name = _onnx_file.dtype_name(tensor.data_type)
        if "float" in name:
            counts[name] = counts.get(name, 0) + int(np.prod(tensor.dims, dtype=np.int64))
    return max(counts, key=lambda name: counts[name]) if counts else None


def _array(tensor: Any) -> np.ndarray:
    from onnx import numpy_helper

    return np.asarray(numpy_helper.to_array(tensor))


def _store(tensor: Any, array: np.ndarray) -> None:
    from onnx import numpy_helper

    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
