"""What the planted faults of ONNX models share: the editor with a random generator, and the shape of a fault.

Every edit touches one node (or one edge) and leaves all other nodes their names, so that the place of a planted fault
can be told by name. A constant that several nodes share is copied before it is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks import _onnx_edit
from trueport.frameworks._base import Unsupported

SkipPlace = Unsupported
"""This place cannot take this fault; the message says why."""


class Editor(_onnx_edit.Editor):
    """An editor for random faults: it holds a random generator and finds what a fault may change. Subgraphs are left alone."""

    def __init__(self, path: str, seed: int) -> None:
        from onnx.external_data_helper import load_external_data_for_model

        super().__init__(path)
        load_external_data_for_model(self.model, self.folder)
        self.rng = np.random.default_rng(seed)

    def weights(self, node: Any, slot: int, least: int = 1) -> Any:
        """The floating constant of at least `least` elements at `slot`, or None."""
        array = self.operand(node, slot)
        return array if array is not None and array.dtype.kind == "f" and array.size >= least else None

    def counts(self, value: str) -> bool:
        """Whether a value holds sizes: what Shape gives, or integers made of it."""
        made = self.producer(value)
        if made is None or made.op_type == "Shape":
            return made is not None
        passing = ("Cast", "Gather", "Slice", "Squeeze", "Unsqueeze", "Concat", "Identity")
        return made.op_type in passing and any(self.counts(name) for name in self.computed(made))

    def around(self, value: str) -> list[str]:
        """The names of the nodes on both sides of a value: where a fault of an edge shows."""
        made = self.producer(value)
        return ([] if made is None else [self.name(made)]) + [self.name(node) for node in self.readers(value)]

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

    def insert(self, value: str, steps: Iterable[tuple[str, Sequence[str], dict[str, Any]]]) -> list[Any]:
        """Put a chain of nodes behind a value: all its readers, and the graph output of that name, see the result."""

        def make(data: str, out: str) -> list[Any]:
            made = self.chain(data, steps)
            made[-1].output[0] = out
            return made

        return self.splice(value, make)

    def remove(self, node: Any, value: str) -> None:
        """Take a node of one output out; whoever read it reads `value` instead."""
        out = node.output[0]
        if out in self.outputs():
            raise SkipPlace("the node computes a graph output")
        for reader in self.readers(out):
            self.rewire(reader, out, value)
        self.drop(node)

    def save(self, out: str) -> None:
        """Write the model; recorded inner shapes are left out, for the fault may have changed them."""
        self.order()
        del self.graph.value_info[:]
        super().save(out)


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
