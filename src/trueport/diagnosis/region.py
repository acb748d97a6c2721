"""One model as the search for a cause looks at it: what depends on the inputs, which constants a node reads, shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trueport.graph import FINE, Graph, Node
from trueport.tracing import Traced


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value that a node reads and that does not depend on the model's inputs.

    name: as the node reads it; stored: the constant it comes from (the same, or the one behind Identity, Cast,
    Transpose, DequantizeLinear); array: without run axis, as the node reads it.
    """

    node: Node
    slot: int
    name: str
    stored: str
    array: np.ndarray

    @property
    def real(self) -> bool:
        """Whether it holds floats."""
        return self.array.dtype.kind == "f"


class Inside:
    """A traced model. Cheap to make; what costs is computed when asked for."""

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.graph: Graph = traced.graph

    @property
    def format(self) -> str:
        """The model's format: "onnx", "tflite", …"""
        return str(getattr(self.traced.artifact, "format", ""))

    @cached_property
    def dynamic(self) -> frozenset[str]:
        """Values that depend on an input of the model, or are drawn at random."""
        found = set(self.graph.inputs)
        for node in self.graph.nodes:
            if found.intersection(node.inputs):
                found.update(node.outputs)
        return frozenset(found)

    def runs(self, node: Node) -> bool:
        """Whether a node computes anything that depends on the inputs."""
        return any(name in self.dynamic for name in node.outputs)

    def array(self, name: str) -> np.ndarray | None:
        """The array of a value that does not depend on the inputs; None for others and for what was not traced."""
        if name in self.traced.constants:
            return np.asarray(self.traced.constants[name])
        if not name or name in self.dynamic or name not in self.traced.values:
            return None
        return np.asarray(self.traced.values[name][0])

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a value without the run axis; None where it is not known."""
        if name in self.traced.values:
            return tuple(self.traced.values[name].shape[1:])
        if name in self.traced.constants:
            return tuple(self.traced.constants[name].shape)
        return None

    def parameters(self, node: Node) -> tuple[Parameter, ...]:
        """What a node reads that does not depend on the inputs and whose array is known, in the order of its operands;
        behind them the constants inside a loop or a branch."""
        found = []
        inner = node.attributes.get("inner_constants")
        for slot, name in enumerate((*node.inputs, *(inner if isinstance(inner, list) else ()))):
            array = self.array(name) if name and name not in self.dynamic else None
            if array is not None:
                found.append(Parameter(node, slot, name, self.stored(name), array))
        return tuple(found)

    def stored(self, name: str) -> str:
        """The constant behind a value, where exactly one stands behind it; else the value itself."""
        seen = name
        while seen not in self.graph.constants:
            node = self.graph.producer(seen)
            behind = [item for item in node.inputs if item and self._large(item)] if node is not None else []
            if len(behind) != 1:
                return name
            seen = behind[0]
        return seen

    def _large(self, name: str) -> bool:
        """Whether a value is more than a shape, an axis or a scale."""
        facts = self.graph.constants.get(name)
        return facts is None or not str(facts.get("dtype", "")).startswith(("int32", "int64"))

    def nodes(self, names: Iterable[str]) -> tuple[Node, ...]:
        """The nodes of these names, in execution order; unknown names are left out."""
        wanted = set(names)
        return tuple(node for node in self.graph.nodes if node.name in wanted)

    def whole(self, names: Iterable[str]) -> tuple[Node, ...]:
        """These nodes, the finer ones that they are made of, and the native ones that they are parts of."""
        wanted = set(names)
        origins = {node.origin for node in self.graph.nodes if node.name in wanted and node.origin}
        return tuple(
            node
            for node in self.graph.nodes
            if node.name in wanted or node.name in origins or (node.origin in wanted and node.name.startswith(FINE))
        )

    def data(self, node: Node) -> tuple[str, ...]:
        """The values that a node reads and that depend on the inputs."""
        return tuple(name for name in node.inputs if name in self.dynamic)

    @cached_property
    def channels_last(self) -> bool:
        """Whether the format puts channels last unless a node says otherwise."""
        return self.format in ("tflite", "keras", "savedmodel", "tensorflow", "graphdef", "h5", "frozen")

    def spatial(self, node: Node) -> tuple[int, ...] | None:
        """The sizes of the spatial axes of a node's data [N, C, *spatial] or [N, *spatial, C]."""
        data = self.data(node)
        shape = self.shape(data[0]) if data else None
        if shape is None or len(shape) < 3:
            return None
        given = str(node.attributes.get("data_format", ""))
        last = self.channels_last if not given else not given.lower().startswith(("nc", "channels_first"))
        return shape[1:-1] if last else shape[2:]
