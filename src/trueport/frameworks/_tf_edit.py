"""A SavedModel's frozen graph as something to change, and to write under the same signature. Runs in a worker.

Weights are constants in what is written. Nodes keep their names, so that a later edit, and `graph`, find them again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from trueport.frameworks import _tf_graph as graphs
from trueport.frameworks import _tf_saved as saves
from trueport.frameworks._base import Unsupported


class Graph:
    """The frozen graph of a SavedModel, to change. Reads of constants are looked through."""

    def __init__(self, path: str, *, trust: bool = False) -> None:
        saved = saves.load(path, trust=trust)
        self.key = saved.key if saved.key not in ("serve", "__call__") else "serving_default"
        self.inputs, self.outputs = dict(saved.frozen.inputs), dict(saved.frozen.outputs)
        self.graph_def = type(saved.frozen.graph_def)()
        self.graph_def.CopyFrom(saved.frozen.graph_def)
        self.index()

    def index(self) -> None:
        """Look at the nodes anew, after some were added, renamed or taken away."""
        self.nodes = {node.name: node for node in self.graph_def.node}
        self.reads = graphs.constant_reads(self.frozen())

    def frozen(self) -> graphs.Frozen:
        """The graph as it is now."""
        return graphs.Frozen(self.graph_def, self.inputs, self.outputs)

    def of(self, *operators: str) -> list[Any]:
        """Nodes of these operators."""
        return [node for node in graphs.ordered(self.graph_def) if node.op in operators]

    def constant(self, item: str) -> Any:
        """The Const node that a node input is, or None."""
        name = item.split(":")[0]
        node = self.nodes.get(self.reads.get(name, name))
        return node if node is not None and node.op == "Const" else None

    def array(self, node: Any) -> np.ndarray:
        """The value of a Const node."""
        from tensorflow.python.framework import tensor_util

        return np.asarray(tensor_util.MakeNdarray(node.attr["value"].tensor))

    def set(self, node: Any, array: np.ndarray) -> None:
        """Store another value in a Const node, of the same dtype."""
        from tensorflow.python.framework import tensor_util

        node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(array))

    def readers(self, constant: Any) -> list[str]:
        """The nodes that read a constant, as `graph` shows them."""
        names = {constant.name, *(name for name, held in self.reads.items() if held == constant.name)}
        reading = [node for node in self.graph_def.node if node.name not in self.reads]
        return [node.name for node in reading if any(item.split(":")[0] in names for item in node.input)]

    def save(self, out: str) -> None:
        """Write a SavedModel whose bytes hang on the graph alone. Raises Unsupported when TensorFlow does not take it."""
        import tensorflow as tf
        from tensorflow.core.protobuf import saved_model_pb2

        shutil.rmtree(out, ignore_errors=True)
        v1 = tf.compat.v1.saved_model
        with tf.Graph().as_default() as graph:
            try:
                tf.graph_util.import_graph_def(self.graph_def, name="")
            except (ValueError, tf.errors.InvalidArgumentError) as error:
                raise Unsupported(f"TensorFlow does not build it: {line(error)}") from error
            info = {
                side: {name: v1.build_tensor_info(graph.get_tensor_by_name(tensor)) for name, tensor in tensors.items()}
                for side, tensors in (("inputs", self.inputs), ("outputs", self.outputs))
            }
            signature = v1.build_signature_def(**info, method_name="tensorflow/serving/predict")
            with tf.compat.v1.Session(graph=graph) as session:
                builder = v1.Builder(out)
                builder.add_meta_graph_and_variables(session, ["serve"], {self.key: signature})
                builder.save()
        file = Path(out) / "saved_model.pb"
        whole = saved_model_pb2.SavedModel.FromString(file.read_bytes())
        file.write_bytes(whole.SerializeToString(deterministic=True))
        (Path(out) / "fingerprint.pb").unlink(missing_ok=True)  # it holds a random number

    # -- changing -----------------------------------------------------------------------------------------------

    def node(self, name: str) -> Any:
        """A node that `graph` shows. Raises Unsupported when there is none."""
        found = self.nodes.get(name)
        if found is None or found.op == "Const" or name in self.reads:
            raise Unsupported(f"the model has no node '{name}' that could be changed")
        return found

    def tensor(self, name: str) -> str:
        """The tensor that a value of `graph` is. Raises Unsupported when there is none."""
        if name in self.inputs:
            return str(self.inputs[name])
        if name in self.outputs:
            return str(self.outputs[name])
        bare = name[len("graph/") :] if name.startswith("graph/") else name
        if bare.split(":")[0] not in self.nodes:
            raise Unsupported(f"the model has no value '{name}'")
        return graphs.full(bare)

    def data(self, node: Any) -> list[int]:
        """The places of a node's operands that are values and no constants."""
        return [i for i, item in enumerate(node.input) if not item.startswith("^") and self.constant(item) is None]

    def put(self, node: Any, slot: int, tensor: str) -> None:
        """Let a node read another tensor at a place."""
        node.input[slot] = graphs.short(tensor)

    def redirect(self, old: str, new: str, skip: Sequence[str] = (), only: Sequence[str] | None = None) -> int:
        """Let the nodes that read one tensor read another; returns how many did."""
        count = 0
        for node in self.graph_def.node:
            if node.name in skip or (only is not None and node.name not in only):
                continue
            for slot, item in enumerate(node.input):
                if not item.startswith("^") and graphs.full(item) == old:
                    self.put(node, slot, new)
                    count += 1
        return count

    def fresh(self, name: str) -> str:
        """A node name that is free, with all that could stand under it."""
        base, count = name, 0
        while name in self.nodes or any(one.startswith(f"{name}/") for one in self.nodes):
            count += 1
            name = f"{base}_{count}"
        return name

    def hold(self, name: str, array: np.ndarray) -> str:
        """Store an array; returns its tensor."""
        node = self.graph_def.node.add(name=self.fresh(name), op="Const")
        self.set(node, array)
        node.attr["dtype"].type = node.attr["value"].tensor.dtype
        self.index()
        return f"{node.name}:0"

    def build(self, name: str, function: Callable[[list[Any]], Any], tensors: Sequence[str]) -> str:
        """Add the nodes that a function of tensors makes; the last one is called `name`. Returns its tensor."""
        import tensorflow as tf

        known = graphs.built(self.graph_def)
        scope = self.fresh(f"{name}_parts")
        with tf.Graph().as_default() as graph:
            given = []
            for index, tensor in enumerate(tensors):
                held = self.constant(tensor)
                like = known.get_tensor_by_name(tensor)
                if held is not None and not graphs.is_large(held):
                    given.append(tf.constant(self.array(held), name=f"{scope}/given_{index}"))
                else:
                    given.append(tf.compat.v1.placeholder(like.dtype, like.shape, name=f"{scope}/given_{index}"))
            with tf.name_scope(scope):
                try:
                    result = function(given)
                except (ValueError, TypeError, KeyError, tf.errors.InvalidArgumentError) as error:
                    raise Unsupported(f"TensorFlow does not build it: {line(error)}") from error
                result = tf.identity(result) if any(result is one for one in given) else result
        names = {one.name.split(":")[0]: tensor for one, tensor in zip(given, tensors)}
        for node in graph.as_graph_def().node:
            if node.name in names:
                continue
            added = self.graph_def.node.add()
            added.CopyFrom(node)
            added.name = name if node.name == result.op.name else node.name
            for slot, item in enumerate(added.input):
                mark, bare = ("^", item[1:]) if item.startswith("^") else ("", item)
                source = bare.split(":")[0]
                if source in names:
                    added.input[slot] = mark + graphs.short(names[source])
                elif source == result.op.name:
                    added.input[slot] = mark + name + bare[len(source) :]
        self.index()
        return f"{name}:{result.name.split(':')[1]}"

    def rename(self, old: str, new: str) -> None:
        """Give a node another name, wherever it is named."""
        self.nodes[old].name = new
        for node in self.graph_def.node:
            for slot, item in enumerate(node.input):
                mark, bare = ("^", item[1:]) if item.startswith("^") else ("", item)
                name, _, output = bare.partition(":")
                if name == old:
                    node.input[slot] = mark + new + (f":{output}" if output else "")
        for side in (self.inputs, self.outputs):
            side.update({k: new + t[len(old) :] for k, t in side.items() if t.split(":")[0] == old})
        self.index()

    def origin(self, tensor: str) -> str:
        """What a tensor hands on unchanged, looking through Identities."""
        node = self.nodes[tensor.split(":")[0]]
        while node.op == "Identity":
            tensor = graphs.full(node.input[0])
            node = self.nodes[tensor.split(":")[0]]
        return tensor

    def prune(self) -> None:
        """Take away what no output needs; inputs stay."""
        needed = [tensor.split(":")[0] for tensor in (*self.outputs.values(), *self.inputs.values())]
        keep, pending = set(), list(needed)
        while pending:
            name = pending.pop()
            if name not in keep and name in self.nodes:
                keep.add(name)
                pending += graphs.sources(self.nodes[name])
        left = [node for node in self.graph_def.node if node.name in keep]
        copies = [type(node).FromString(node.SerializeToString()) for node in left]
        del self.graph_def.node[:]
        self.graph_def.node.extend(copies)
        self.index()


def line(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return lines[0][:200] if lines else type(error).__name__
