"""What the planted faults of Core ML models share: the graph with its constants and shapes, and the shape of a fault.

A fault is written as edits of the framework's own editor, each at one operator, so that all others keep their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks import coreml
from trueport.frameworks._base import EditDict, Unsupported

SkipPlace = Unsupported
"""This place cannot take this fault; the message says why."""
Node = Mapping[str, Any]


class Change(NamedTuple):
    """Edits that plant a fault, the arrays that they name, and the truth: nodes, what, source_value, target_value."""

    edits: list[EditDict]
    arrays: dict[str, np.ndarray]
    told: dict[str, Any]


class View:
    """One model as faults look at it. `rng` decides what is drawn."""

    def __init__(self, path: str, seed: int) -> None:
        from trueport.frameworks._coreml_file import opened

        self.path = path
        self.rng = np.random.default_rng(seed)
        self.graph = coreml.graph(path, trust=False)
        self.program = opened(path).program
        self.types = self.program.types()
        computed = set(self.graph["inputs"])
        for node in self.graph["nodes"]:
            if computed.intersection(node["inputs"]):
                computed.update(node["outputs"])
        self.computed = computed

    def nodes(self, *operators: str) -> list[Node]:
        """The operators of these ONNX names that compute something of the inputs; all without an argument."""
        return [
            node
            for node in self.graph["nodes"]
            if (not operators or node["op"] in operators) and self.computed.intersection(node["outputs"])
        ]

    def array(self, node: Node, slot: int) -> Any:
        """The constant that an operator reads at `slot`; None where it is computed or absent."""
        name = node["inputs"][slot] if slot < len(node["inputs"]) else ""
        stored = self.program.constants.get(name)
        return None if stored is None else np.asarray(stored.load())

    def weights(self, node: Node, slot: int, least: int = 1) -> Any:
        """The same where it holds floats, and at least so many."""
        array = self.array(node, slot)
        return array if array is not None and array.dtype.kind == "f" and array.size >= least else None

    def data(self, node: Node) -> list[str]:
        """The operands that are computed."""
        return [name for name in node["inputs"] if name in self.computed]

    def shape(self, value: str) -> list[Any]:
        """The declared shape, None for open sizes; empty where it is not known."""
        declared = self.types.get(value)
        return [] if declared is None or declared.shape is None else list(declared.shape)

    def readers(self, value: str) -> list[str]:
        """The names of the operators that read a value."""
        return [node["name"] for node in self.graph["nodes"] if value in node["inputs"]]

    def producer(self, value: str) -> str | None:
        """The name of the operator that makes a value."""
        return next((node["name"] for node in self.graph["nodes"] if value in node["outputs"]), None)

    def around(self, value: str) -> list[str]:
        """The operators on both sides of a value."""
        made = self.producer(value)
        return ([] if made is None else [made]) + self.readers(value)


class Fault(NamedTuple):
    """One kind of fault: its row in the taxonomy, its cause (`also`: causes that say the same), where, and how."""

    row: str
    cause: str
    places: Callable[[View], Sequence[Any]]
    change: Callable[[View, Any], Change]
    also: tuple[str, ...] = ()


def told(nodes: Sequence[str], what: str, source: Any, target: Any) -> dict[str, Any]:
    """What a change did, the two values side by side."""
    return {"nodes": list(dict.fromkeys(nodes)), "what": what, "source_value": source, "target_value": target}


def shown(array: np.ndarray) -> str:
    """A constant in a few words."""
    size = "x".join(str(length) for length in array.shape) or "scalar"
    if array.size <= 4:
        return f"{size}: {np.round(array.astype(float), 5).reshape(-1).tolist()}"
    return f"{size}, rms {float(np.sqrt(np.mean(np.square(array.astype(np.float64))))):.5g}"
