"""Decides how a frozen TensorFlow graph is shown: nodes in ONNX vocabulary, typed attributes, constants, index ranges."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from trueport.frameworks._base import Emit, GraphDict, NodeDict
from trueport.frameworks._tf_graph import Frozen, full, ordered, short

OPS = {
    "AddV2": "Add",
    "AddN": "Sum",
    "All": "ReduceMin",
    "Any": "ReduceMax",
    "ArgMax": "ArgMax",
    "ArgMin": "ArgMin",
    "AvgPool": "AveragePool",
    "BatchMatMulV2": "MatMul",
    "BatchMatMulV3": "MatMul",
    "BiasAdd": "Add",
    "BroadcastTo": "Expand",
    "ConcatV2": "Concat",
    "Conv2D": "Conv",
    "Conv2DBackpropInput": "ConvTranspose",
    "Conv3D": "Conv",
    "Cumsum": "CumSum",
    "DepthwiseConv2dNative": "Conv",
    "ExpandDims": "Unsqueeze",
    "Fill": "ConstantOfShape",
    "FloorDiv": "Div",
    "FloorMod": "Mod",
    "FusedBatchNormV3": "BatchNormalization",
    "GatherNd": "GatherND",
    "GatherV2": "Gather",
    "GreaterEqual": "GreaterOrEqual",
    "If": "If",
    "LessEqual": "LessOrEqual",
    "LogicalAnd": "And",
    "LogicalNot": "Not",
    "LogicalOr": "Or",
    "MatMul": "MatMul",
    "Max": "ReduceMax",
    "Maximum": "Max",
    "MaxPool": "MaxPool",
    "Mean": "ReduceMean",
    "Min": "ReduceMin",
    "Minimum": "Min",
    "MirrorPad": "Pad",
    "OneHot": "OneHot",
    "Pack": "Concat",
    "PadV2": "Pad",
    "Prod": "ReduceProd",
    "RealDiv": "Div",
    "Relu6": "Clip",
    "ResizeBilinear": "Resize",
    "ResizeNearestNeighbor": "Resize",
    "Rsqrt": "Rsqrt",
    "ScatterNd": "ScatterND",
    "Select": "Where",
    "SelectV2": "Where",
    "StatelessIf": "If",
    "StatelessWhile": "Loop",
    "StridedSlice": "Slice",
    "Sum": "ReduceSum",
    "TopKV2": "TopK",
    "Unpack": "Split",
    "While": "Loop",
}
"""TensorFlow operator -> ONNX operator; one that is not here keeps its own name (Relu, Softmax, Reshape, …)."""
_KEEPS_INDICES = ("Identity", "Cast", "Reshape", "ExpandDims", "Squeeze", "Transpose", "StopGradient")
"""Operators through which an index still reaches its Gather unchanged."""


def graph(frozen: Frozen) -> GraphDict:
    """The read-only view. A constant's name is its node's; a control input is not shown."""
    given = {tensor: name for name, tensor in frozen.inputs.items()}
    outputs = outputs_of(frozen)
    nodes, constants = [], {}
    for node in ordered(frozen.graph_def):
        if node.op == "Const":
            proto = node.attr["value"].tensor
            constants[node.name] = {"dtype": _dtype(proto.dtype), "shape": [d.size for d in proto.tensor_shape.dim]}
        elif full(node.name) not in given and node.op != "NoOp":
            reads = [given.get(full(item), short(item)) for item in node.input if not item.startswith("^")]
            nodes.append(
                NodeDict(
                    name=node.name,
                    op=OPS.get(node.op, node.op),
                    native_op=node.op,
                    inputs=reads,
                    outputs=outputs[node.name],
                    attributes=_attributes(node),
                )
            )
    for name, tensor in frozen.outputs.items():
        if name != short(tensor):
            nodes.append(
                NodeDict(
                    name=f"output {name}",
                    op="Identity",
                    native_op="Output",
                    inputs=[given.get(tensor, short(tensor))],
                    outputs=[name],
                    attributes={},
                )
            )
    return GraphDict(nodes=nodes, inputs=list(frozen.inputs), outputs=list(frozen.outputs), constants=constants)


def outputs_of(frozen: Frozen) -> dict[str, list[str]]:
    """Node name -> short names of its outputs."""
    import tensorflow as tf

    built = tf.Graph()
    with built.as_default():
        tf.graph_util.import_graph_def(frozen.graph_def, name="")
    return {op.name: [short(tensor.name) for tensor in op.outputs] for op in built.get_operations()}


def operators(frozen: Frozen) -> dict[str, int]:
    """TensorFlow operator -> how often it occurs, constants and placeholders left out, loop bodies included."""
    bodies = [function.node_def for function in frozen.graph_def.library.function]
    every = [node.op for body in [frozen.graph_def.node, *bodies] for node in body]
    return dict(Counter(op for op in every if op not in ("Const", "Placeholder", "NoOp", "Identity")))


def emit_constants(frozen: Frozen, emit: Emit) -> int:
    """Emit every constant array under its node's name; returns how many."""
    from tensorflow.python.framework import tensor_util

    count = 0
    for node in frozen.graph_def.node:
        if node.op == "Const":
            emit(node.name, np.asarray(tensor_util.MakeNdarray(node.attr["value"].tensor)))
            count += 1
    return count


def parameter_count(frozen: Frozen) -> int:
    """Number of elements in float constants of rank 1 or more."""
    total = 0
    for node in frozen.graph_def.node:
        if node.op != "Const":  # asking a protobuf map for an absent key would add it to the node
            continue
        tensor = node.attr["value"].tensor
        if tensor.tensor_shape.dim and "float" in _dtype(tensor.dtype):
            total += int(np.prod([d.size for d in tensor.tensor_shape.dim]))
    return total


def index_limits(frozen: Frozen) -> dict[str, int]:
    """Input name -> largest legal index, for inputs that a Gather on a constant table reads as its indices."""
    nodes = {node.name: node for node in frozen.graph_def.node}
    given = {tensor.split(":")[0]: name for name, tensor in frozen.inputs.items()}
    limits: dict[str, int] = {}
    for node in frozen.graph_def.node:
        if node.op not in ("GatherV2", "Gather", "ResourceGather"):
            continue
        table, source = _back(node.input[0], nodes), _back(node.input[1], nodes)
        if table is None or table.op != "Const" or source is None or source.name not in given:
            continue
        axis = _scalar(_back(node.input[2], nodes)) if len(node.input) > 2 else 0
        shape = [d.size for d in table.attr["value"].tensor.tensor_shape.dim]
        if axis is None or not -len(shape) <= axis < len(shape):
            continue
        name = given[source.name]
        limits[name] = min(limits.get(name, shape[axis] - 1), shape[axis] - 1)
    return limits


def _back(item: str, nodes: dict[str, Any]) -> Any:
    node = nodes.get(item.lstrip("^").split(":")[0])
    while node is not None and node.input:
        if node.op in _KEEPS_INDICES:
            node = nodes.get(node.input[0].split(":")[0])
        elif node.op == "SelectV2":  # where(i < 0, i + size, i), as Keras 3 lets indices count from the end
            node = nodes.get(node.input[2].split(":")[0])
        else:
            break
    return node


def _scalar(node: Any) -> Any:
    from tensorflow.python.framework import tensor_util

    if node is None or node.op != "Const":
        return None
    return int(tensor_util.MakeNdarray(node.attr["value"].tensor))


def _dtype(number: int) -> str:
    import tensorflow as tf

    return str(tf.as_dtype(number).name)


def _attributes(node: Any) -> dict[str, Any]:
    """Attributes as plain values; internal ones (with an underscore) and nested functions' bodies left out."""
    found: dict[str, Any] = {}
    for key, attribute in node.attr.items():
        kind = attribute.WhichOneof("value")
        if key.startswith("_") or kind in (None, "tensor", "shape", "placeholder"):
            continue
        if kind == "type":
            found[key] = _dtype(attribute.type)
        elif kind == "s":
            found[key] = attribute.s.decode("utf-8", "replace")
        elif kind == "func":
            found[key] = attribute.func.name
        elif kind == "list":
            values = attribute.list
            found[key] = [*values.i, *values.f, *values.b, *(s.decode("utf-8", "replace") for s in values.s)]
        else:
            found[key] = getattr(attribute, kind)
    return found
