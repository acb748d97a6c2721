"""Values of an ONNX model on their way to Keras: a symbolic tensor and the order in which its axes are stored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from trueport.frameworks._base import Unsupported

Order = tuple[int, ...]
"""`order[i]` is the stored axis that holds axis i of the ONNX value."""


def identity(rank: int) -> Order:
    """Stored as ONNX has it."""
    return tuple(range(rank))


def channels_last(rank: int) -> Order:
    """Stored with axis 1 at the end."""
    return (0, rank - 1, *range(1, rank - 1)) if rank > 2 else identity(rank)


class Value(NamedTuple):
    """A symbolic Keras tensor; see `Order`."""

    tensor: Any
    order: Order

    @property
    def shape(self) -> tuple[Any, ...]:
        """The shape that ONNX gives it; None for an open size."""
        return tuple(self.tensor.shape[axis] for axis in self.order)


class Node:
    """One ONNX node with its attributes as Python values."""

    def __init__(self, proto: Any) -> None:
        from onnx import helper

        self.proto = proto
        self.op: str = proto.op_type
        self.inputs: list[str] = list(proto.input)
        self.outputs: list[str] = list(proto.output)
        self.name: str = proto.name or (self.outputs[0] if self.outputs else self.op)
        self.attributes: dict[str, Any] = {}
        for item in proto.attribute:
            value = helper.get_attribute_value(item)
            self.attributes[item.name] = value.decode() if isinstance(value, bytes) else value

    def get(self, name: str, default: Any) -> Any:
        """An attribute, or what the operator takes without it."""
        return self.attributes.get(name, default)

    def axis(self, rank: int, default: int) -> int:
        """Attribute `axis`, counted from the front."""
        axis = int(self.attributes.get("axis", default))
        return axis + rank if axis < 0 else axis


@dataclass
class Graph:
    """What has been translated so far.

    constants: a size that is open is None in them. uses: how often each value is read; readers: its last reader.
    fixed: constants that went into the model as they are. taken: names of layers. spread: constants all of whose
    elements are the same, which hold one of them where ONNX has as many as an open size says.
    """

    keras: Any
    opset: int
    constants: dict[str, np.ndarray]
    uses: Mapping[str, int]
    readers: Mapping[str, Any]
    values: dict[str, Value] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    fixed: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)
    spread: set[str] = field(default_factory=set)

    def fresh(self, name: str) -> str:
        """A name that Keras accepts and no other layer has, close to the given one."""
        safe = re.sub(r"[^\w.-]+", "_", name).strip("_.-") or "value"
        safe = safe if re.match(r"[A-Za-z0-9.]", safe) else f"v{safe}"
        found, count = safe, 1
        while found.lower() in self.taken:
            count += 1
            found = f"{safe}_{count}"
        self.taken.add(found.lower())
        return found

    def constant(self, node: Node, slot: int) -> np.ndarray | None:
        """Operand number `slot` if it is a constant without open sizes, else None."""
        if slot >= len(node.inputs) or not node.inputs[slot]:
            return None
        found = self.constants.get(node.inputs[slot])
        return None if found is None or found.dtype == object else found

    def numbers(self, node: Node, slot: int, attribute: str) -> list[int] | None:
        """Integers that stand in an attribute in old opsets, and are an operand in new ones."""
        if attribute in node.attributes:
            given = node.attributes[attribute]
            return [int(item) for item in (given if isinstance(given, (list, tuple)) else [given])]
        if slot >= len(node.inputs) or not node.inputs[slot]:
            return None
        found = self.constant(node, slot)
        if found is None:
            raise Unsupported(f"its {attribute} are computed from the input")
        return [int(item) for item in np.ravel(found)]

    def required(self, node: Node, slot: int, what: str) -> np.ndarray:
        """A constant operand that the operator must have here."""
        found = self.constant(node, slot)
        if found is None:
            raise Unsupported(f"its {what} is no constant")
        return found

    def value(self, node: Node, slot: int = 0) -> Value:
        """Operand number `slot` in whatever order it is stored; a constant becomes a fixed tensor's worth of numbers."""
        name = node.inputs[slot]
        if name in self.values:
            return self.values[name]
        array = self.constant(node, slot)
        if array is None:
            raise Unsupported(f"its operand '{name}' holds an open size")
        self.note_fixed(name, array)
        return Value(array, identity(array.ndim))

    def note_fixed(self, name: str, array: np.ndarray) -> None:
        """Remember a constant of weight-like size that goes into the model as it is."""
        if array.dtype.kind == "f" and array.size > 1:
            self.fixed.add(name)

    def stored(self, value: Value, order: Order) -> Any:
        """The value's tensor with its axes stored in `order`."""
        if value.order == order:
            return value.tensor
        back = {stored: axis for axis, stored in enumerate(order)}
        axes = tuple(value.order[back[place]] for place in range(len(order)))
        if isinstance(value.tensor, np.ndarray):
            return np.transpose(value.tensor, axes)
        if axes[0] == 0:
            return self.keras.layers.Permute(axes[1:])(value.tensor)
        return self.keras.ops.transpose(value.tensor, axes)

    def plain(self, name: str) -> Any:
        """The tensor of this value as ONNX has it."""
        value = self.values[name]
        tensor = self.stored(value, identity(len(value.order)))
        self.values[name] = Value(tensor, identity(len(value.order)))
        return tensor

    def plain_operand(self, node: Node, slot: int = 0) -> Any:
        """Operand number `slot` as ONNX has it."""
        value = self.value(node, slot)
        return self.plain(node.inputs[slot]) if node.inputs[slot] in self.values else value.tensor

    def last(self, node: Node, slot: int = 0) -> Any:
        """Operand number `slot` with channels at the end."""
        value = self.value(node, slot)
        return self.stored(value, channels_last(len(value.order)))

    def give(self, node: Node, tensor: Any, order: Order | None = None, slot: int = 0) -> None:
        """Set the node's result number `slot`."""
        self.values[node.outputs[slot]] = Value(tensor, order or identity(len(tensor.shape)))

    def layer(self, node: Node, kind: str, given: Any, weights: Sequence[np.ndarray] = (), **settings: Any) -> Any:
        """Call a new layer named after the node, and give it these weights."""
        made = getattr(self.keras.layers, kind)(name=self.fresh(node.name), **settings)
        result = made(given)
        if weights:
            made.set_weights([np.asarray(array, dtype=np.float32) for array in weights])
        return result


def without(order: Order, removed: Sequence[int]) -> Order:
    """The order of a value that lost these ONNX axes."""
    left = [stored for axis, stored in enumerate(order) if axis not in removed]
    ranks = {stored: place for place, stored in enumerate(sorted(left))}
    return tuple(ranks[stored] for stored in left)


def positive(axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from the front."""
    return [axis + rank if axis < 0 else axis for axis in axes]


def reshaped(graph: Graph, tensor: Any, target: Sequence[int | None]) -> Any:
    """`tensor` with sizes `target`: None is the open size, -1 whatever is left."""
    shape = list(tensor.shape)
    opened = shape.count(None)
    if opened > 1:
        raise Unsupported("it reshapes several open sizes")
    known = int(np.prod([size for size in shape if size is not None]))
    fixed = int(np.prod([size for size in target if size not in (None, -1)]))
    sizes = list(target)
    if None in sizes and -1 in sizes:  # the open size keeps its place, so what is left can be counted
        sizes[sizes.index(-1)] = known // max(fixed, 1)
    if sizes.count(None) > 1:
        raise Unsupported("it makes several open sizes")
    sizes = [-1 if size is None else size for size in sizes]
    if shape and shape[0] is None and sizes[0] == -1 and fixed == known and len(sizes) > 1:
        return graph.keras.layers.Reshape(tuple(sizes[1:]))(tensor)
    return graph.keras.ops.reshape(tensor, tuple(sizes))
