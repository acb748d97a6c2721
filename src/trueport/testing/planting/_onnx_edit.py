"""Edits an ONNX graph in place: constants of one node's own, attributes, nodes put in or taken out. Runs in a worker.

Every edit touches one node (or one edge) and leaves all other nodes their names, so that the place of a planted fault
can be told by name. A constant that several nodes share is copied before it is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np


class SkipPlace(Exception):
    """This place cannot take this fault; the message says why."""


class Editor:
    """One parsed model, its constants and shapes, and a random generator. Subgraphs are left alone."""

    def __init__(self, path: str, seed: int) -> None:
        import onnx

        self.model = onnx.load(path)
        self.graph = self.model.graph
        self.rng = np.random.default_rng(seed)
        self.constants = {item.name: item for item in self.graph.initializer}
        self.shapes: dict[str, list[int | None]] = {}
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self._read_shapes()
        self._made = 0

    def _read_shapes(self) -> None:
        import onnx

        try:
            inferred = onnx.shape_inference.infer_shapes(self.model).graph
        except (onnx.shape_inference.InferenceError, ValueError):  # larger than protobuf allows, or an odd operator
            inferred = self.graph
        for item in [*inferred.value_info, *inferred.input, *inferred.output]:
            if item.type.tensor_type.HasField("shape"):
                self.shapes[item.name] = [
                    size.dim_value if size.HasField("dim_value") else None for size in item.type.tensor_type.shape.dim
                ]

    # -- reading ------------------------------------------------------------------------------------------------

    def nodes(self, *operators: str) -> list[Any]:
        """The nodes of these operators, in the file's order; all nodes without an argument."""
        return [node for node in self.graph.node if not operators or node.op_type in operators]

    def name(self, node: Any) -> str:
        """What `graph` of the framework calls a node."""
        return str(node.name or node.output[0])

    def array(self, value: str) -> np.ndarray | None:
        """The constant of that name, or None."""
        from onnx import numpy_helper

        stored = self.constants.get(value)
        return None if stored is None else np.array(numpy_helper.to_array(stored))

    def operand(self, node: Any, slot: int) -> Any:
        """The constant array that a node reads at `slot`, or None when it reads none there."""
        return self.array(node.input[slot]) if slot < len(node.input) and node.input[slot] else None

    def weights(self, node: Any, slot: int, least: int = 1) -> Any:
        """The floating constant of at least `least` elements at `slot`, or None."""
        array = self.operand(node, slot)
        return array if array is not None and array.dtype.kind == "f" and array.size >= least else None

    def attribute(self, node: Any, name: str, default: Any = None) -> Any:
        """The value of an attribute: number, text or list."""
        from onnx import helper

        for item in node.attribute:
            if item.name == name:
                value = helper.get_attribute_value(item)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def shape(self, value: str) -> list[int | None] | None:
        """The shape of a value, None for an unknown size; None as a whole when the rank is unknown."""
        stored = self.constants.get(value)
        return list(stored.dims) if stored is not None else self.shapes.get(value)

    def rank(self, value: str) -> int:
        """The number of axes; -1 when it is unknown."""
        shape = self.shape(value)
        return -1 if shape is None else len(shape)

    def counts(self, value: str) -> bool:
        """Whether a value holds sizes: what Shape gives, or integers made of it."""
        made = self.producer(value)
        if made is None or made.op_type == "Shape":
            return made is not None
        passing = ("Cast", "Gather", "Slice", "Squeeze", "Unsqueeze", "Concat", "Identity")
        return made.op_type in passing and any(self.counts(name) for name in self.computed(made))

    def readers(self, value: str) -> list[Any]:
        """The nodes that read a value."""
        return [node for node in self.graph.node if value in node.input]

    def producer(self, value: str) -> Any | None:
        """The node that computes a value; None for inputs and initialisers."""
        return next((node for node in self.graph.node if value in node.output), None)

    def computed(self, node: Any) -> list[str]:
        """The inputs of a node that are no constants."""
        return [name for name in node.input if name and name not in self.constants]

    def inputs(self) -> list[Any]:
        """The graph inputs that the caller feeds."""
        return [item for item in self.graph.input if item.name not in self.constants]

    def outputs(self) -> set[str]:
        """The names of the graph outputs."""
        return {item.name for item in self.graph.output}

    def opset(self) -> int:
        """Version of the standard operators."""
        return int(max(item.version for item in self.model.opset_import if item.domain in ("", "ai.onnx")))

    def around(self, value: str) -> list[str]:
        """The names of the nodes on both sides of a value: where a fault of an edge shows."""
        made = self.producer(value)
        return ([] if made is None else [self.name(made)]) + [self.name(node) for node in self.readers(value)]

    # -- changing -----------------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A name that the graph does not use yet."""
        taken = {name for node in self.graph.node for name in (node.name, *node.output)} | set(self.constants)
        while True:
            self._made += 1
            name = f"{hint}_{self._made}"
            if name not in taken:
                return name

    def constant(self, array: np.ndarray, hint: str = "constant") -> str:
        """Store an array as a new initialiser and return its name."""
        from onnx import numpy_helper

        name = self.fresh(hint)
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        self.constants[name] = self.graph.initializer[-1]
        return name

    def set_operand(self, node: Any, slot: int, array: np.ndarray) -> None:
        """Let this node alone read `array` at `slot`, in the dtype that it had."""
        old = self.operand(node, slot)
        dtype = array.dtype if old is None else old.dtype
        node.input[slot] = self.constant(np.asarray(array, dtype), node.input[slot] or "constant")

    def set_attribute(self, node: Any, name: str, value: Any) -> None:
        """Set an attribute, or remove it when `value` is None."""
        from onnx import helper

        kept = [item for item in node.attribute if item.name != name]
        if value is not None:
            kept.append(helper.make_attribute(name, value))
        del node.attribute[:]
        node.attribute.extend(kept)

    def change_operator(self, node: Any, operator: str, **attributes: Any) -> None:
        """Make another operator of a node that keeps its name, inputs and outputs; only the attributes given remain."""
        from onnx import helper

        node.op_type = operator
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())

    def chain(self, value: str, steps: Iterable[tuple[str, list[str], dict[str, Any]]]) -> list[Any]:
        """Nodes (operator, constants that it also reads, attributes) one behind the other, the first one on `value`."""
        from onnx import helper

        made = []
        for operator, more, attributes in steps:
            out = self.fresh(f"{operator.lower()}_out")
            made.append(helper.make_node(operator, [value, *more], [out], name=self.fresh(operator), **attributes))
            value = out
        return made

    def insert(self, value: str, steps: Iterable[tuple[str, list[str], dict[str, Any]]]) -> list[Any]:
        """Put a chain of nodes behind a value: all its readers, and the graph output of that name, see the result."""
        producer = self.producer(value)
        if producer is None:
            return self._insert_front(value, steps)
        raw = self.fresh(value)
        producer.output[list(producer.output).index(value)] = raw
        if value in self.shapes:
            self.shapes[raw] = self.shapes[value]
        made = self.chain(raw, steps)
        made[-1].output[0] = value
        self._place(made, list(self.graph.node).index(producer) + 1)
        return made

    def _insert_front(self, value: str, steps: Iterable[tuple[str, list[str], dict[str, Any]]]) -> list[Any]:
        readers = self.readers(value)
        made = self.chain(value, steps)
        for node in readers:
            self.rewire(node, value, made[-1].output[0])
        self._place(made, 0)
        return made

    def _place(self, made: list[Any], position: int) -> None:
        copies = list(self.graph.node)
        copies[position:position] = made
        copies = [type(node).FromString(node.SerializeToString()) for node in copies]
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def rewire(self, node: Any, old: str, new: str) -> None:
        """Let a node read `new` wherever it read `old`."""
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new

    def remove(self, node: Any, value: str) -> None:
        """Take a node of one output out; whoever read it reads `value` instead."""
        out = node.output[0]
        if out in self.outputs():
            raise SkipPlace("the node computes a graph output")
        for reader in self.readers(out):
            self.rewire(reader, out, value)
        self.graph.node.remove(node)

    def save(self, out: str) -> None:
        """Write the model; recorded inner shapes are left out, for the fault may have changed them."""
        import onnx

        del self.graph.value_info[:]
        onnx.save(self.model, out)


class Fault(NamedTuple):
    """One kind of fault: its row in the taxonomy, its cause (`also`: causes that say the same thing), where, and how.

    `change` edits the model at one of the `places` and returns {"nodes", "what", "source_value", "target_value"}.
    """

    row: str
    cause: str
    places: Callable[[Editor], Sequence[Any]]
    change: Callable[[Editor, Any], dict[str, Any]]
    also: tuple[str, ...] = ()


def told(nodes: Sequence[str], what: str, source: Any, target: Any) -> dict[str, Any]:
    """What a change did, the two values side by side."""
    return {"nodes": list(dict.fromkeys(nodes)), "what": what, "source_value": source, "target_value": target}
