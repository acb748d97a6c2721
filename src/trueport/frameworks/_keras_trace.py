"""Decides what a layer's value is and where it lies: each layer call of a Keras model, found in its frozen graph.

While the model is traced into a graph, every layer's `call` is watched and its output tensors are noted. After
freezing, a layer's value is a tensor of the frozen graph, so that tracing needs no Keras any more; what reads what
follows from walking that graph backwards between the noted tensors. A value is named by its layer's path
(`block/conv`), `@1` added for a second call of the layer and `:1` for its second output. Layers inside loops (the
cells of recurrent layers) have no value of their own.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from trueport.frameworks import _keras_attributes as views
from trueport.frameworks import _keras_model as models
from trueport.frameworks import _tf_graph as graphs
from trueport.frameworks._base import GraphDict, NodeDict


class Value(NamedTuple):
    """One output of one layer call: its tensor in the frozen graph, and the layer."""

    name: str
    tensor: str
    layer: Any


class Watched(NamedTuple):
    """A frozen model with the values of its layers, in execution order."""

    frozen: graphs.Frozen
    values: tuple[Value, ...]


def watch(loaded: models.Loaded) -> Watched:
    """Trace and freeze the model once while watching its layers."""
    noted: list[tuple[str, Any, Any]] = []
    calls: dict[str, int] = {}

    def note(path: str, layer: Any, result: Any) -> None:
        import tensorflow as tf

        count = calls.get(path, 0)
        calls[path] = count + 1
        called = f"{path}@{count}" if count else path
        flat = [item for item in tf.nest.flatten(result) if isinstance(item, tf.Tensor)]
        noted.extend((f"{called}:{i}" if i else called, item, layer) for i, item in enumerate(flat))

    undo = []
    for path, layer in models.layers_of(loaded.model, legacy=loaded.legacy):
        object.__setattr__(layer, "call", _watcher(layer.call, functools.partial(note, path, layer)))
        undo.append(layer)
    try:
        concrete = models.function(loaded).get_concrete_function()
    finally:
        for layer in undo:
            object.__delattr__(layer, "call")
    frozen = graphs.freeze(concrete, list(loaded.inputs), list(loaded.outputs))
    present = {node.name for node in frozen.graph_def.node}
    values: dict[str, Value] = {}
    for name, tensor, layer in noted:
        if getattr(tensor, "graph", None) is concrete.graph and tensor.op.name in present:
            values.setdefault(tensor.name, Value(name, tensor.name, layer))
    fed = set(frozen.inputs.values())
    return Watched(frozen, tuple(value for value in values.values() if value.tensor not in fed))


def _watcher(original: Any, note: Any) -> Any:
    @functools.wraps(original)
    def watched(*arguments: Any, **keywords: Any) -> Any:
        result = original(*arguments, **keywords)
        note(result)
        return result

    return watched


def tensors(watched: Watched) -> dict[str, str]:
    """Value name -> tensor name of all values, then of the outputs that have a name of their own."""
    found = {value.name: value.tensor for value in watched.values}
    for name, tensor in watched.frozen.outputs.items():
        found.setdefault(name, tensor)
    return found


def graph(loaded: models.Loaded, watched: Watched) -> GraphDict:
    """The model as a graph of layer calls."""
    import tensorflow as tf

    names = {value.tensor: value.name for value in watched.values}
    names.update({tensor: name for name, tensor in watched.frozen.inputs.items()})
    nodes_by_name = {node.name: node for node in watched.frozen.graph_def.node}
    weights = models.weight_names(loaded)
    taken: set[int] = set()
    grouped: dict[str, NodeDict] = {}
    for value in watched.values:
        called = value.name.rsplit(":", 1)[0] if value.name.rsplit(":", 1)[-1].isdigit() else value.name
        if called in grouped:
            grouped[called]["outputs"].append(value.name)
            continue
        own = {id(weight) for weight in getattr(value.layer, "weights", ())}
        constants = [name for name, weight in weights.items() if id(weight) in own - taken]
        if "@" not in called:
            taken |= own
        operator, attributes = views.describe(value.layer, legacy=loaded.legacy)
        grouped[called] = NodeDict(
            name=called,
            op=operator,
            native_op=type(value.layer).__name__,
            inputs=[*_reads(value.tensor, names, nodes_by_name), *constants],
            outputs=[value.name],
            attributes=attributes,
        )
    made = {name for node in grouped.values() for name in node["outputs"]}
    for name, tensor in watched.frozen.outputs.items():
        if name not in made:
            reads = _reads(tensor, names, nodes_by_name)
            grouped[f"output {name}"] = NodeDict(
                name=f"output {name}", op="Identity", native_op="Output", inputs=reads, outputs=[name], attributes={}
            )
    constants_view = {
        name: {"dtype": tf.as_dtype(weight.dtype).name, "shape": [int(d) for d in weight.shape]}
        for name, weight in weights.items()
    }
    return GraphDict(
        nodes=list(grouped.values()),
        inputs=list(watched.frozen.inputs),
        outputs=list(watched.frozen.outputs),
        constants=constants_view,
    )


def _reads(tensor: str, names: dict[str, str], nodes: dict[str, Any]) -> list[str]:
    """Names of the nearest noted tensors before `tensor`, walking the frozen graph backwards."""
    found: list[str] = []
    start = tensor.split(":")[0]
    pending = [graphs.full(item) for item in nodes[start].input]
    seen: set[str] = set()
    while pending:
        item = pending.pop(0)
        if item in seen or item.startswith("^"):
            continue
        seen.add(item)
        if item in names:
            if names[item] not in found:
                found.append(names[item])
            continue
        pending += [graphs.full(source) for source in nodes[item.split(":")[0]].input]
    return found


def add_origins(operators: GraphDict, layers: GraphDict, watched: Watched) -> None:
    """Give every node of the frozen graph the native node that it is a part of: the one whose value it helps to compute.

    What helps several layers goes to the first of them; what helps none (an unread second output) goes to the node
    that it reads from.
    """
    stops = {value.tensor for value in watched.values} | set(watched.frozen.inputs.values())
    nodes = {node.name: node for node in watched.frozen.graph_def.node}
    tensor_of = tensors(watched)
    made_by = {name: node["name"] for node in layers["nodes"] for name in node["outputs"]}
    origins: dict[str, str] = {}
    for layer in layers["nodes"]:
        pending = [tensor_of[name] for name in layer["outputs"]]
        seen: set[str] = set()
        while pending:
            name = pending.pop().split(":")[0].lstrip("^")
            if name in seen:
                continue
            seen.add(name)
            origins.setdefault(name, layer["name"])
            pending += [item for item in nodes[name].input if graphs.full(item) not in stops]
    for node in operators["nodes"]:
        name = node["name"]
        if name not in nodes:  # "output x"
            origins[name] = made_by[node["outputs"][0]]
        elif name not in origins:
            before = [item.split(":")[0].lstrip("^") for item in nodes[name].input]
            known = [origins[item] for item in before if item in origins]
            origins[name] = known[0] if known else layers["nodes"][0]["name"]
        node["origin"] = origins[name]
