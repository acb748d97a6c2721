"""Decides how a frozen TensorFlow graph is evaluated in another arithmetic: float64, and simulated float16 and int8.

Every function takes a `Frozen` and returns a changed copy. float64: every float32 attribute and constant becomes
double, so the weights keep their exact values and only the arithmetic changes. float16, int8-dynamic, int8: constants
are rounded to the grid that converters use; for int8 each activation that a quantised kernel would write is rounded too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueport.frameworks._base import Arrays, RunResult, Unsupported
from trueport.frameworks._tf_graph import Frozen, full, run_frozen, running, short

_CHANNEL_AXES = {
    "Conv2D": (3,),
    "Conv3D": (4,),
    "DepthwiseConv2dNative": (2, 3),
    "Conv2DBackpropInput": (2,),
    "Conv3DBackpropInputV2": (3,),
}
"""Operator -> axes of its kernel that run over output channels; every other operator: the last axis."""
_ALWAYS_FLOAT = {"ResizeBilinear": 0, "ResizeBicubic": 0, "ResizeArea": 0}
"""Operators whose output is float32 whatever their input is -> that output."""


def run_as(frozen: Frozen, precision: str, cases: Mapping[str, Arrays]) -> dict[str, RunResult]:
    """Evaluate every case in `precision`. Raises Unsupported when the graph has no form in it."""
    import tensorflow as tf

    if precision != "float64":
        return {
            name: result
            for case, inputs in cases.items()
            for name, result in run_frozen(simulate(frozen, precision, inputs), {case: inputs}).items()
        }
    try:
        results = run_frozen(to_float64(frozen), cases)
    except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.NotFoundError) as error:
        raise Unsupported(f"float64: an operator has no double kernel: {str(error).splitlines()[0][:200]}") from error
    for result in results.values():
        for name, values in result.items():
            first = values[0] if isinstance(values, list) else values
            if first.dtype == np.float32:
                raise Unsupported(f"float64: output '{name}' is still float32")
    return results


def simulate(frozen: Frozen, precision: str, calibration: Arrays) -> Frozen:
    """Round weights (and for "int8" activations, with ranges from `calibration`, [R, *shape] per input)."""
    graph_def = _copy(frozen.graph_def)
    uses = _weight_uses(graph_def)
    for node in graph_def.node:
        if node.op != "Const" or node.attr["value"].tensor.dtype != 1:  # DT_FLOAT
            continue
        array = _array(node)
        if precision == "float16":
            _set(node, round_float16(array))
        elif array.ndim >= 2 and array.size > 1:
            _set(node, round_int8(array, uses.get(node.name, (array.ndim - 1,))))
    rounded = Frozen(graph_def, frozen.inputs, frozen.outputs)
    return _quantise_activations(rounded, calibration) if precision == "int8" else rounded


def round_float16(array: np.ndarray) -> np.ndarray:
    """Round to float16 and back; values beyond its range stay, because converters leave such constants alone."""
    with np.errstate(over="ignore"):
        rounded = array.astype(np.float16).astype(array.dtype)
    return np.where(np.isfinite(rounded), rounded, array)


def round_int8(array: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """Round to a symmetric 8-bit grid (-127 to 127), one scale for each index along `axes`."""
    rest = tuple(axis for axis in range(array.ndim) if axis not in axes)
    peak = np.max(np.abs(array), axis=rest, keepdims=True)
    scale = np.where(peak > 0, peak, 1) / 127.0
    return np.asarray(np.round(array / scale) * scale, dtype=array.dtype)


def _weight_uses(graph_def: Any) -> dict[str, tuple[int, ...]]:
    """Constant's name -> its output-channel axes, looking through operators that keep the values in place."""
    root = {node.name: node.name for node in graph_def.node if node.op == "Const"}
    uses: dict[str, tuple[int, ...]] = {}
    for _ in range(3):  # constants sit behind at most a few such operators
        for node in graph_def.node:
            if node.op in ("Identity", "StopGradient", "Cast") and node.input and node.input[0] in root:
                root[node.name] = root[node.input[0]]
    for node in graph_def.node:
        for item in node.input:
            if item not in root:
                continue
            if node.op in _CHANNEL_AXES:
                uses[root[item]] = _CHANNEL_AXES[node.op]
            elif node.op == "MatMul" and node.attr["transpose_b"].b:
                uses[root[item]] = (0,)
    return uses


def _quantise_activations(frozen: Frozen, calibration: Arrays) -> Frozen:
    """Put a fake quantiser (8 bits, range from the data) behind each activation that an int8 kernel would write."""
    places = _activations(frozen)
    ranges: dict[str, tuple[float, float]] = {}
    count = next(iter(calibration.values())).shape[0] if calibration else 1
    with running(frozen) as runner:
        for run in range(count):
            now = {name: np.asarray(array[run]) for name, array in calibration.items()}
            for place, value in zip(places, runner.fetch(now, places)):
                finite = value[np.isfinite(value)]
                low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
                old = ranges.get(place, (0.0, 0.0))
                ranges[place] = (min(old[0], low), max(old[1], high))
    graph_def = _copy(frozen.graph_def)
    renamed: dict[str, str] = {}
    for place, (low, high) in ranges.items():
        if high - low <= 0:
            continue
        name = f"{short(place).replace(':', '_')}/trueport_int8"
        node = graph_def.node.add(name=name, op="FakeQuantWithMinMaxArgs", input=[short(place)])
        node.attr["min"].f, node.attr["max"].f = low, high
        node.attr["num_bits"].i = 8
        renamed[place] = name
    for node in graph_def.node:
        if node.name in renamed.values():
            continue
        for index, item in enumerate(node.input):
            node.input[index] = renamed.get(full(item), item)
    outputs = {name: full(renamed.get(tensor, tensor)) for name, tensor in frozen.outputs.items()}
    return Frozen(graph_def, frozen.inputs, outputs)


def _activations(frozen: Frozen) -> list[str]:
    """Float tensors that a quantised model stores as int8: those not fused into the operator that reads them."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(frozen.graph_def, name="")
    constant: set[str] = set()
    found = []
    for operation in graph.get_operations():
        if operation.type == "Const" or (operation.inputs and all(t.name in constant for t in operation.inputs)):
            constant.update(t.name for t in operation.outputs)
            continue
        for tensor in operation.outputs:
            if tensor.dtype != tf.float32 or operation.type in ("Identity", "Reshape", "Squeeze", "ExpandDims"):
                continue
            readers = [reader.type for reader in tensor.consumers()]
            fused = len(readers) == 1 and readers[0] in ("BiasAdd", "FusedBatchNormV3", "Relu", "Relu6")
            if not fused:
                found.append(tensor.name)
    return found


def to_float64(frozen: Frozen) -> Frozen:
    """Turn every float32 of the graph and of its functions into float64.

    Raises Unsupported for what has no double form. The result must still be tried: an operator without a double
    kernel shows only when TensorFlow builds or runs it.
    """
    graph_def = _copy(frozen.graph_def)
    _double_body(graph_def.node)
    _decompose_batch_norm(graph_def.node)
    renamed = _cast_after(graph_def.node)
    for function in graph_def.library.function:
        for argument in [*function.signature.input_arg, *function.signature.output_arg]:
            if argument.type == 1:
                argument.type = 2
        for attribute in function.attr.values():
            _double_attribute(attribute)
        _double_body(function.node_def)
        for node in function.node_def:
            if node.op in _ALWAYS_FLOAT or node.op.startswith("FusedBatchNorm"):
                raise Unsupported(f"float64: operator {node.op} inside a loop or branch has no float64 form")
    outputs = {name: full(renamed.get(short(tensor), short(tensor))) for name, tensor in frozen.outputs.items()}
    return Frozen(graph_def, frozen.inputs, outputs)


def _double_body(nodes: Any) -> None:
    for node in nodes:
        if node.op.startswith(("FakeQuant", "Quantize", "Dequantize")):
            raise Unsupported(f"float64: operator {node.op} exists in float32 only")
        for key, attribute in node.attr.items():
            if node.op.startswith("FusedBatchNorm") and key == "U":
                attribute.type = 2
                continue
            _double_attribute(attribute)


def _double_attribute(attribute: Any) -> None:
    kind = attribute.WhichOneof("value")
    if kind == "type" and attribute.type == 1:
        attribute.type = 2
    elif kind == "list":
        for index, item in enumerate(attribute.list.type):
            if item == 1:
                attribute.list.type[index] = 2
    elif kind == "tensor" and attribute.tensor.dtype == 1:
        from tensorflow.python.framework import tensor_util

        array = tensor_util.MakeNdarray(attribute.tensor)
        attribute.tensor.CopyFrom(tensor_util.make_tensor_proto(array.astype(np.float64)))
    elif kind == "func":
        for inner in attribute.func.attr.values():
            _double_attribute(inner)


def _decompose_batch_norm(nodes: Any) -> None:
    """FusedBatchNorm has no double kernel: y = (x - mean) * (scale * rsqrt(variance + epsilon)) + offset, channels last."""
    for node in list(nodes):
        if not node.op.startswith("FusedBatchNorm"):
            continue
        if node.attr["data_format"].s not in (b"", b"NHWC", b"NDHWC") or node.attr["is_training"].b:
            raise Unsupported("float64: a BatchNorm in training mode or with channels first")
        x, scale, offset, mean, variance = node.input[:5]
        name, epsilon = node.name, node.attr["epsilon"].f
        part = f"{name}/trueport"
        _constant(nodes, f"{part}_eps", np.float64(epsilon))
        _binary(nodes, f"{part}_var", "AddV2", variance, f"{part}_eps")
        _binary(nodes, f"{part}_rsqrt", "Rsqrt", f"{part}_var")
        _binary(nodes, f"{part}_scale", "Mul", f"{part}_rsqrt", scale)
        _binary(nodes, f"{part}_centred", "Sub", x, mean)
        _binary(nodes, f"{part}_scaled", "Mul", f"{part}_centred", f"{part}_scale")
        node.Clear()
        node.name, node.op = name, "AddV2"
        node.input.extend([f"{part}_scaled", offset])
        node.attr["T"].type = 2


def _cast_after(nodes: Any) -> dict[str, str]:
    """Put a Cast to double behind operators that always give float32; returns old name -> name of the Cast."""
    renamed = {}
    for node in list(nodes):
        if node.op in _ALWAYS_FLOAT:
            renamed[node.name] = f"{node.name}/trueport_cast"
    for node in nodes:
        for index, item in enumerate(node.input):
            node.input[index] = renamed.get(item, item)
    for old, new in renamed.items():
        cast = nodes.add(name=new, op="Cast", input=[old])
        cast.attr["SrcT"].type, cast.attr["DstT"].type = 1, 2
    return renamed


def _binary(nodes: Any, name: str, op: str, *inputs: str) -> None:
    node = nodes.add(name=name, op=op, input=list(inputs))
    node.attr["T"].type = 2


def _constant(nodes: Any, name: str, value: Any) -> None:
    from tensorflow.python.framework import tensor_util

    node = nodes.add(name=name, op="Const")
    node.attr["dtype"].type = 2
    node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(np.asarray(value, np.float64)))


def _copy(graph_def: Any) -> Any:
    copied = type(graph_def)()
    copied.CopyFrom(graph_def)
    return copied


def _array(node: Any) -> np.ndarray:
    from tensorflow.python.framework import tensor_util

    return np.asarray(tensor_util.MakeNdarray(node.attr["value"].tensor))


def _set(node: Any, array: np.ndarray) -> None:
    from tensorflow.python.framework import tensor_util

    node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(array))
