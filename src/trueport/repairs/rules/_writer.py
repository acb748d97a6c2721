"""Operators under construction: values of the source as the target has them, each with the order of its axes.

A value of the target is held with its order: which axis of the source's value each of its axes is. Operators that work
element by element keep the order, a transposition of the source changes only the order, and one that demands an order
gets a transposition in front where the value lies otherwise. Which operator is written how, `_translate.py` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueport.align.types import Relation
from trueport.diagnosis.region import Inside
from trueport.frameworks._base import EditDict
from trueport.graph import Node

Order = tuple[int, ...]
"""Axis of the target's value -> axis of the source's."""

RESULT = "repaired"
"""Name before the number of a value that an edit makes."""


class Untranslatable(Exception):
    """An operator, or a layout, for which there are no words. The text says which."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A value of the source as the target has it. `order` None: its axes are merged, split or not known.

    shape: of the source's value; at: of the target's, where the elements keep their order though the axes do not.
    """

    name: str
    shape: tuple[int, ...]
    order: Order | None
    at: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """One operator to be written. `inputs`: values of the target, results of operators before, or keys of arrays."""

    operator: str
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    output: str


def order_of(relation: Relation, source: Sequence[int], target: Sequence[int]) -> Order | None:
    """The order in which a target's value of this shape has the axes of its twin; None where axes are merged or split.

    Axes of size 1 are paired from the front; None too where one side has more of them.
    """
    mine, its = ([axis for axis, size in enumerate(shape) if size != 1] for shape in (target, source))
    permutation = list(relation.permutation)
    if len(source) != len(target) or len(mine) != len(its) or len(permutation) != len(its):
        return None
    if relation.side == "target":
        permutation = [permutation.index(place) for place in range(len(permutation))]
    if [source[its[place]] for place in permutation] != [target[axis] for axis in mine]:
        return None
    found = dict(zip(mine, (its[place] for place in permutation), strict=True))
    left = [axis for axis in range(len(source)) if source[axis] == 1]
    found |= dict(zip([axis for axis in range(len(target)) if axis not in found], left, strict=True))
    return tuple(found[axis] for axis in range(len(target)))


def identity(rank: int) -> Order:
    """The order of the source."""
    return tuple(range(rank))


@dataclass
class Writer:
    """Operators under construction. `find`: a value of the source as the target has it already, None where it has not.

    format: the target's; last: whether it puts channels last. translate: writes one operator of the source; first:
    number of the first result, beyond those that the target has from an earlier edit; pending: operators
    that may be written, by what they give.
    """

    source: Inside
    format: str
    last: bool
    find: Callable[[str], Placed | None]
    translate: Callable[[Writer, Node], None]
    first: int = 0
    pending: dict[str, Node] = field(default_factory=dict)
    made: list[Made] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    places: dict[str, Placed] = field(default_factory=dict)

    # -- operands

    def value(self, name: str) -> Placed:
        """A value of the source, computed where the target has it not. Raises Untranslatable where that cannot be."""
        node = self.pending.pop(name, None)
        if node is not None and name not in self.places:
            self.translate(self, node)
        placed = self.places.get(name) or self.find(name)
        if placed is None:
            raise Untranslatable(f"the target has no value for the source's '{name}'")
        self.places[name] = placed
        return placed

    def array(self, array: Any, dtype: Any = np.float32) -> str:
        """A constant."""
        name = f"stored {len(self.arrays)}"
        self.arrays[name] = np.ascontiguousarray(np.asarray(array, dtype))
        return name

    def write(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add an operator; gives the name of its result."""
        output = f"{RESULT}_{self.first + len(self.made)}"
        self.made.append(Made(operator, tuple(inputs), attributes, output))
        return output

    def arranged(self, placed: Placed, wanted: Order) -> str:
        """The value with its axes in another order."""
        name, order = placed.name, placed.order
        if order is None:
            if placed.at is None:
                raise Untranslatable(f"the layout of '{placed.name}' is not known")
            name, order = self.shaped(name, placed.shape), identity(len(placed.shape))
        perm = [order.index(axis) for axis in wanted]
        return name if perm == sorted(perm) else self.write("Transpose", [name], perm=perm)

    def shaped(self, name: str, shape: Sequence[int]) -> str:
        """The value in another shape, the first axis of which follows from the rest."""
        return self.write("Reshape", [name, self.array([-1, *shape[1:]], np.int64)])

    def like(self, result: Placed, before: Placed) -> str:
        """A result laid out as another value is. Raises Untranslatable."""
        if before.order is not None and len(before.order) == len(result.shape):
            return self.arranged(result, before.order)
        if before.at is None:
            if result.order is None and result.at is None:
                return result.name
            raise Untranslatable(f"the layout of '{before.name}' is not known")
        if result.order is None and result.at == before.at:
            return result.name
        name = self.arranged(result, identity(len(result.shape)))
        return name if result.shape == before.at else self.shaped(name, before.at)

    def constant(self, array: np.ndarray, placed: Placed, order: Order | None) -> str:
        """A constant that is broadcast against a value, laid out as that value is here."""
        array, rank = np.asarray(array, np.float32), len(placed.shape)
        if array.size == 1:
            return self.array(array.reshape(()))
        if order is None and array.ndim == 1 and placed.at is not None and placed.at[-1] == array.size:
            return self.array(array)
        if order is None or array.ndim > rank:
            raise Untranslatable("the layout of the value that a constant meets is not known")
        full = array.reshape((1,) * (rank - array.ndim) + array.shape)
        turned = np.transpose(full, order)
        ones = next((axis for axis, size in enumerate(turned.shape) if size != 1), turned.ndim)
        return self.array(turned.reshape(turned.shape[ones:]))


def steps(writer: Writer, start: str, end: str) -> list[dict[str, Any]] | None:
    """What was written as steps of an insertion behind `start`; None where it is no chain from there to `end`."""
    found: list[dict[str, Any]] = []
    current = start
    for made in writer.made:
        data = [place for place, name in enumerate(made.inputs) if name == current]
        others = [name for name in made.inputs if name not in writer.arrays and name != current]
        constants = [name for name in made.inputs if name in writer.arrays]
        known = {item.output for item in writer.made}
        if not data or any(name in known for name in others) or (others and constants):
            return None
        if len(data) > 1:
            others = [current] * (len(data) - 1)
        if others and current in others and current != start:
            return None
        step: dict[str, Any] = {"operator": made.operator, "attributes": dict(made.attributes), "slot": data[0]}
        if constants:
            step["constants"] = constants
        if others:
            step["others"] = others
        found.append(step)
        current = made.output
    return found if current == end else None


def nodes(writer: Writer) -> list[dict[str, Any]]:
    """What was written as the nodes of a recomputation."""
    return [
        {
            "name": made.output,
            "op": made.operator,
            "native_op": made.operator,
            "inputs": list(made.inputs),
            "outputs": [made.output],
            "attributes": dict(made.attributes),
        }
        for made in writer.made
    ]


def recomputed(value: str, writer: Writer) -> EditDict:
    """The edit that makes a value of the target of what was written."""
    change: Any = {"kind": "recompute", "value": value, "nodes": nodes(writer)}
    return change  # type: ignore[no-any-return]
