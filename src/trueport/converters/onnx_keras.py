"""Decides how an ONNX model becomes a Keras 3 file that can be trained: one layer for each operator that has weights.

No tool that is kept does this: onnx2tf writes a `.keras` file without a single trainable variable. Here every weight of
a convolution, matrix product, normalisation, embedding or recurrent operator is the weight of a built-in Keras layer;
everything else becomes a built-in layer or an operation of `keras.ops`, so that the file opens without our code.

ONNX has channels second, Keras trains on channels last. Values carry the order in which their axes are stored; an order
is changed only where an operator needs another, and the model's own inputs and outputs keep theirs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.converters import _onnx_keras_ops, _onnx_keras_recurrent, _onnx_keras_spatial
from trueport.converters._onnx_keras_values import Graph, Node, Value, identity
from trueport.frameworks._base import BadModel, ConvertContext, ConvertReply, Step, Unsupported

STEPS: tuple[Step, ...] = (
    Step(
        name="onnx-keras",
        source_format="onnx",
        target_format="keras",
        toolchain="tensorflow",
        tool="keras",
        rank=20,
        note="weights become trainable layers; a constant that no layer takes stays fixed, and the notes count those",
    ),
)

HANDLERS: Mapping[str, Any] = {
    **_onnx_keras_ops.HANDLERS,
    **_onnx_keras_spatial.HANDLERS,
    **_onnx_keras_recurrent.HANDLERS,
}
"""ONNX operator -> function(graph, node) that sets the node's results."""

_SPREADS_ITSELF = frozenset({"LSTM", "GRU", "RNN", "Add", "Sub", "Mul", "Div", "Where"})
"""Readers that take one element along an open size for all of them."""
_KEEP_SPREAD = frozenset({"Slice", "Squeeze", "Unsqueeze", "Transpose", "Cast", "Identity", "Split", "Concat"})
"""What may be done to a constant whose elements are all the same, while one stands for those along an open size."""


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Write the Keras file. Raises Unsupported for an operator, or a setting of one, that no layer can express."""
    import onnx

    from trueport.frameworks._keras_model import describe, keras_module

    keras = keras_module(legacy=False)
    model = onnx.load(source)
    nodes = [node for node in model.graph.node if node.domain not in ("", "ai.onnx")]
    if nodes:
        raise Unsupported(f"operator {nodes[0].domain}.{nodes[0].op_type} is not ONNX's own; Keras has no layer for it")
    graph = _open(keras, model)
    for proto in model.graph.node:
        _translate(graph, Node(proto))
    built, outputs = _close(keras, graph, model)
    path = Path(out).with_name(f".{Path(out).name}.keras")  # Keras goes by the suffix
    built.save(str(path))
    path.replace(out)
    loaded = describe(built, keras, legacy=False)
    pairs = [*zip(graph.inputs, loaded.inputs), *zip(outputs, loaded.outputs)]
    return ConvertReply(notes=_notes(built, graph), names={name: made for name, made in pairs if name != made})


def _open(keras: Any, model: Any) -> Graph:
    from onnx import helper, numpy_helper

    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    uses = Counter(name for node in model.graph.node for name in node.input)
    uses.update(item.name for item in model.graph.output)
    readers = {name: node for node in model.graph.node for name in node.input}
    graph = Graph(keras=keras, opset=opset, constants=constants, uses=uses, readers=readers)
    for item in model.graph.input:
        if item.name in constants:
            continue
        kind = item.type.tensor_type
        if not item.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise Unsupported(f"input '{item.name}' is no tensor of known rank, which a Keras input must be")
        shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
        if not shape:
            raise Unsupported(f"input '{item.name}' is a single number; a Keras input has a batch axis")
        tensor = keras.Input(batch_shape=tuple(shape), dtype=dtype, name=graph.fresh(item.name))
        graph.values[item.name] = Value(tensor, identity(len(shape)))
        graph.inputs.append(item.name)
    return graph


def _translate(graph: Graph, node: Node) -> None:
    """Fold the node into a constant where all it reads is constant, else let its handler build it."""
    if node.op == "Constant":
        graph.constants[node.outputs[0]] = _constant(node)
        return
    if node.outputs[0] in graph.values or node.outputs[0] in graph.constants:
        return  # an earlier handler took it in (the bias behind a matrix product)
    spread = any(name in graph.spread for name in node.inputs)
    if node.op == "Shape" or all(name in graph.constants for name in node.inputs if name):
        mixed = node.op == "Concat" and not all(name in graph.spread for name in node.inputs)
        if spread and (mixed or node.op not in _KEEP_SPREAD):
            raise Unsupported(f"{node.op} '{node.name}' computes with a constant that is spread over an open size")
        graph.constants.update(zip(node.outputs, (_sizes(array) for array in _fold(graph, node))))
        graph.spread.update(node.outputs if spread else ())
        return
    if spread and node.op not in _SPREADS_ITSELF:
        raise Unsupported(f"{node.op} '{node.name}' reads a constant that is spread over an open size")
    handler = HANDLERS.get(node.op)
    if handler is None:
        raise Unsupported(f"there is no Keras layer for the operator {node.op} (node '{node.name}')")
    try:
        handler(graph, node)
    except Unsupported as error:
        raise Unsupported(f"{node.op} '{node.name}': {error}") from error


def _constant(node: Node) -> np.ndarray:
    from onnx import numpy_helper

    for attribute in node.proto.attribute:
        if attribute.name == "value":
            return np.asarray(numpy_helper.to_array(attribute.t))
        if attribute.name in ("value_float", "value_floats"):
            return np.asarray(node.attributes[attribute.name], dtype=np.float32)
        if attribute.name in ("value_int", "value_ints"):
            return np.asarray(node.attributes[attribute.name], dtype=np.int64)
    raise Unsupported(f"constant '{node.outputs[0]}' holds neither numbers nor an array")


def _sizes(array: np.ndarray) -> np.ndarray:
    """Sizes as whole numbers when none of them is open any more."""
    return array.astype(np.int64) if array.dtype == object and None not in array.ravel().tolist() else array


def _fold(graph: Graph, node: Node) -> Sequence[np.ndarray]:
    """Values of a node that needs no input: sizes are numbers, or None where one is open."""
    if node.op == "Shape":
        value = graph.values.get(node.inputs[0])
        shape = graph.constants[node.inputs[0]].shape if value is None else value.shape
        start, end = node.attributes.get("start", 0), node.attributes.get("end", len(shape))
        sizes = list(shape)[start:end]
        return [np.array(sizes, dtype=object if None in sizes else np.int64)]
    given = [graph.constants[name] if name else None for name in node.inputs]
    if any(array is not None and array.dtype == object for array in given):
        return _fold_sizes(graph, node, given)
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    body = helper.make_graph(
        [node.proto],
        "one",
        [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(node.inputs) if name],
        [helper.make_empty_tensor_value_info(name) for name in node.outputs if name],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", graph.opset)])
    feeds = {name: array for name, array in zip(node.inputs, given) if array is not None}
    try:
        return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, feeds)]
    except Exception as error:  # whatever the reference lacks, the model cannot be folded there
        raise Unsupported(
            f"the constant that {node.op} makes cannot be computed ({str(error).splitlines()[0][:150]})"
        ) from error


def _fold_sizes(graph: Graph, node: Node, given: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
    """The same for sizes of which one is open, held as None."""
    first = given[0]
    assert first is not None
    if node.op in ("ConstantOfShape", "Expand"):
        return [_one_for_all(graph, node, given)]
    if node.op == "Gather":
        return [np.asarray(np.take(first, np.asarray(given[1])), dtype=object)]
    if node.op == "Slice":
        (start,), (end,) = (np.ravel(array).tolist() for array in given[1:3] if array is not None)
        step = 1 if len(given) < 5 or given[4] is None else int(np.ravel(given[4])[0])
        return [first[start:end:step]]
    if node.op == "Concat":
        return [np.concatenate([np.asarray(array, dtype=object) for array in given])]
    if node.op in ("Max", "Min") and all(np.array_equal(np.asarray(array), first) for array in given):
        return [first]
    if node.op in ("Unsqueeze", "Reshape"):
        return [first.reshape(1 if first.ndim == 0 else first.shape)]
    if node.op == "Squeeze":
        return [first.reshape(())]
    if node.op in ("Cast", "Identity"):
        return [first]
    raise Unsupported(f"{node.op} computes with an open size; convert a model whose input sizes are fixed")


def _one_for_all(graph: Graph, node: Node, given: Sequence[np.ndarray | None]) -> np.ndarray:
    """A constant spread over an open size: one element stands for all, because all are the same."""
    from onnx import numpy_helper

    target = given[0] if node.op == "ConstantOfShape" else given[1]
    sizes = [1 if size is None else int(size) for size in np.ravel(np.asarray(target))]
    graph.spread.update(node.outputs)
    if node.op == "Expand":
        array = np.asarray(given[0])
        if np.any(array != array.flat[0]):
            raise Unsupported("Expand spreads different numbers over an open size; convert a model with fixed sizes")
        return np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(sizes)))
    value = node.attributes.get("value")
    fill = np.zeros(1, dtype=np.float32) if value is None else numpy_helper.to_array(value)
    return np.full(sizes, fill[0], dtype=fill.dtype)


def _close(keras: Any, graph: Graph, model: Any) -> tuple[Any, list[str]]:
    """Name the outputs and make the model."""
    names, tensors = [], []
    for item in model.graph.output:
        if item.name not in graph.values:
            raise Unsupported(f"output '{item.name}' depends on no input")
        tensor = graph.plain(item.name)
        tensors.append(keras.layers.Identity(name=graph.fresh(item.name), dtype=tensor.dtype)(tensor))
        names.append(item.name)
    inputs = [graph.values[name].tensor for name in graph.inputs]
    if not inputs:
        raise BadModel("the ONNX model has no inputs")
    name = re.sub(r"\W+", "_", model.graph.name).strip("_") or "model"
    return keras.Model(inputs, tensors, name=name), names


def _notes(built: Any, graph: Graph) -> list[str]:
    notes = [f"{len(built.trainable_variables)} weights can be trained"]
    if graph.fixed:
        shown = ", ".join(sorted(graph.fixed)[:4])
        notes.append(f"{len(graph.fixed)} constants that no layer takes stay fixed in training ({shown})")
    return notes
