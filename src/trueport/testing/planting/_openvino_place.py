"""Where faults go in an OpenVINO model, and how: what the graph shows, and changes written as edits. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks import openvino
from trueport.frameworks._base import Unsupported

Node = Mapping[str, Any]


class SkipPlace(Exception):
    """The fault cannot be planted at this place; the text says why."""


class Fault(NamedTuple):
    """One kind of fault: its row in the taxonomy, its cause (`also`: causes that say the same thing), where, and how.

    `change` writes edits into the view at one of the `places` and returns {"nodes", "what", "source_value", "target_value"}.
    """

    row: str
    cause: str
    places: Callable[[View], Sequence[Any]]
    change: Callable[[View, Any], dict[str, Any]]
    also: tuple[str, ...] = ()


class View:
    """A model as its graph shows it, and the edits that a fault consists of."""

    def __init__(self, path: str, seed: int) -> None:
        self.path, self.rng = path, np.random.default_rng(seed)
        graph = openvino.graph(path, trust=False)
        self.nodes: list[Node] = list(graph["nodes"])
        self.inputs, self.outputs = graph["inputs"], graph["outputs"]
        self.stored: dict[str, np.ndarray] = {}
        openvino.parameters(path, lambda name, array: self.stored.__setitem__(name, array), trust=False)
        self.shapes = _shapes(path)
        self.computed = set(self.inputs)
        for node in self.nodes:
            if self.computed.intersection(node["inputs"]):
                self.computed.update(node["outputs"])
        self.edits: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}

    # -- looking

    def at(self, *operators: str) -> list[Node]:
        """The nodes of these operators (OpenVINO's names or ONNX's) that read something computed."""
        return [
            node
            for node in self.nodes
            if (node["op"] in operators or node["native_op"] in operators) and self.data(node)
        ]

    def data(self, node: Node) -> list[str]:
        """What a node reads that depends on the inputs."""
        return [name for name in node["inputs"] if name in self.computed]

    def constant(self, node: Node, slot: int) -> np.ndarray | None:
        """The constant that a node reads at a slot."""
        return self.stored.get(node["inputs"][slot]) if slot < len(node["inputs"]) else None

    def readers(self, value: str) -> list[Node]:
        """The nodes that read a value."""
        return [node for node in self.nodes if value in node["inputs"]]

    def producer(self, value: str) -> Node | None:
        """The node that computes a value."""
        return next((node for node in self.nodes if value in node["outputs"]), None)

    def shape(self, value: str) -> list[int | None] | None:
        """The shape of a value as the file tells it."""
        return self.shapes.get(value)

    def floating(self, value: str) -> bool:
        """Whether a value holds real numbers."""
        return value in self.shapes and value in self.real

    @property
    def real(self) -> set[str]:
        """Names of the values that hold real numbers."""
        from trueport.frameworks._openvino_file import opened

        one = opened(self.path)
        names = {name for name, value in one.values.items() if value.dtype.startswith("float")}
        return names | {name for name, port in zip(one.input_names, one.inputs) if port.get_element_type().is_real()}

    # -- changing

    def edit(self, kind: str, **keys: Any) -> None:
        """Add one edit; arrays among the keys are stored."""
        for name, value in keys.items():
            if isinstance(value, np.ndarray):
                keys[name] = self.keep(value)
        self.edits.append({"kind": kind, **keys})

    def keep(self, array: np.ndarray) -> str:
        """Store an array for an edit; returns its key."""
        key = f"array_{len(self.arrays)}"
        self.arrays[key] = array
        return key

    def set_constant(self, node: Node, slot: int, new: np.ndarray) -> None:
        """Let a node read another constant at a slot."""
        old = self.constant(node, slot)
        if old is None or np.array_equal(old, np.asarray(new, old.dtype)):
            raise SkipPlace("the constant stays as it is")
        self.edit("set-parameter", node=node["name"], parameter=node["inputs"][slot], array=np.asarray(new))

    def set_attribute(self, node: Node, name: str, old: Any, new: Any) -> dict[str, Any]:
        """Set an attribute; the old value again is no fault."""
        if old == new:
            raise SkipPlace(f"{name} is {old} already")
        self.edit("set-attribute", node=node["name"], attribute=name, value=new)
        return told([node["name"]], f"{name} of {node['name']}", old, new)

    def write(self, out: str) -> list[str]:
        """Write the changed model; returns the names of the nodes that it has and the unchanged one has not."""
        try:
            openvino.edit(self.path, self.edits, self.arrays, out, trust=False)  # type: ignore[arg-type]
        except (Unsupported, ValueError) as error:
            raise SkipPlace(str(error)) from error
        before = {node["name"] for node in self.nodes}
        return [node["name"] for node in openvino.graph(out, trust=False)["nodes"] if node["name"] not in before]


def _shapes(path: str) -> dict[str, list[int | None] | None]:
    from trueport.frameworks._openvino_file import opened, shape_of

    one = opened(path)
    found = {name: shape_of(value.output) for name, value in one.values.items()}
    found |= {name: shape_of(port) for name, port in zip(one.input_names, one.inputs)}
    return {
        name: None if shape is None else [size if isinstance(size, int) else None for size in shape]
        for name, shape in found.items()
    }


def told(nodes: Sequence[str], what: str, source: Any, target: Any) -> dict[str, Any]:
    """What a change did, the two values side by side. The name "+" stands for the nodes that it adds."""
    return {"nodes": list(dict.fromkeys(nodes)), "what": what, "source_value": source, "target_value": target}
