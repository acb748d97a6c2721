"""Decides how a frozen TensorFlow graph is shown: nodes in ONNX vocabulary, typed attributes, constants, index ranges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from trueport.frameworks._base import Emit, GraphDict, NodeDict
from trueport.frameworks._tf_attributes import LARGEST, OPS, attributes
from trueport.frameworks._tf_graph import Frozen, built, constant_reads, full, labels, ordered

_KEEPS_INDICES = ("Identity", "Cast", "Reshape", "ExpandDims", "Squeeze", "Transpose", "StopGradient")
"""Operators through which an index still reaches its Gather unchanged."""


def graph(frozen: Frozen) -> GraphDict:
    """The read-only view. A constant's name is its node's; a control input is not shown."""
    whole = built(frozen.graph_def)
    label, reads = labels(frozen), constant_reads(frozen)
    given = set(frozen.inputs.values())
    stored = {node.name: node for node in frozen.graph_def.node if node.op == "Const"}
    nodes, constants = [], {}
    library = {function.signature.name: function for function in frozen.graph_def.library.function}
    for node in ordered(frozen.graph_def):
        if node.op == "Const":
            proto = node.attr["value"].tensor
            constants[node.name] = {"dtype": _dtype(proto.dtype), "shape": [d.size for d in proto.tensor_shape.dim]}
        elif full(node.name) not in given and node.op != "NoOp" and node.name not in reads:
            operation = whole.get_operation_by_name(node.name)
            shown, order = _called(node, library) or (node, list(range(len(operation.inputs))))
            operands = [operation.inputs[place] for place in order]
            nodes.append(
                NodeDict(
                    name=node.name,
                    op=OPS.get(shown.op, shown.op),
                    native_op=shown.op,
                    inputs=[label(tensor.name) for tensor in operands],
                    outputs=[label(tensor.name) for tensor in operation.outputs],
                    attributes=_attributes(shown, operands, stored),
                )
            )
    for name, tensor in frozen.outputs.items():
        if name != label(tensor):
            nodes.append(
                NodeDict(
                    name=f"output {name}",
                    op="Identity",
                    native_op="Output",
                    inputs=[label(tensor)],
                    outputs=[name],
                    attributes={},
                )
            )
    return GraphDict(nodes=nodes, inputs=list(frozen.inputs), outputs=list(frozen.outputs), constants=constants)


def _called(node: Any, library: Mapping[str, Any]) -> tuple[Any, list[int]] | None:
    """The single operator that a call's function consists of, and which operand of the call each of its operands is."""
    function = library.get(node.attr["f"].func.name) if node.op.endswith("PartitionedCall") else None
    if function is None:
        return None
    passed = {argument.name: place for place, argument in enumerate(function.signature.input_arg)}
    inner = []
    for item in function.node_def:
        if item.op == "Identity" and item.input[0].split(":")[0] in passed:
            passed[item.name] = passed[item.input[0].split(":")[0]]
        elif item.op not in ("Identity", "NoOp"):
            inner.append(item)
    operands = [item.split(":")[0] for item in inner[0].input if not item.startswith("^")] if len(inner) == 1 else []
    if not operands or any(name not in passed for name in operands):
        return None
    return inner[0], [passed[name] for name in operands]


def _attributes(node: Any, operands: list[Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    from tensorflow.python.framework import tensor_util

    def constant(item: str) -> np.ndarray | None:
        held = stored.get(item.split(":")[0])
        if (
            held is None
            or np.prod([d.size for d in held.attr["value"].tensor.tensor_shape.dim], dtype=np.int64) > LARGEST
        ):
            return None
        return np.asarray(tensor_util.MakeNdarray(held.attr["value"].tensor))

    shapes = [tensor.shape.as_list() if tensor.shape.rank is not None else [] for tensor in operands[:2]]
    axis = -1
    if "data_format" in node.attr and node.attr["data_format"].s.startswith(b"NC"):
        axis = 1
    channels = shapes[0][axis] if shapes and len(shapes[0]) > 1 else None
    kernel = [int(size) for size in shapes[1]] if len(shapes) > 1 and None not in shapes[1] else []
    found = attributes(node, [tensor.name for tensor in operands], constant, channels, kernel)
    if "dilations" in found and operands[0].op.type == "SpaceToBatchND":
        spread = constant(operands[0].op.inputs[1].name)
        if spread is not None:  # TensorFlow dilates by spreading the data; the padding is done there too
            found["dilations"] = [int(size) for size in spread]
            del found["auto_pad"]
    return found


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
