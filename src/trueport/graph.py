"""The read-only view of a model's graph: nodes, values, and walks between them. Pure data; tests build graphs by hand.

A value is named as the framework's `trace` names it. Positions are execution order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from trueport.frameworks._base import GraphDict

FINE = "decomposed:"
"""Before the names of nodes and values that come from a finer granularity of the same model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One operator. `op` in ONNX vocabulary where one exists; `origin` names the native node that this is a part of."""

    name: str
    op: str
    native_op: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    origin: str | None = None

    @property
    def shown(self) -> str:
        """The name in the model's own format, which users see."""
        return self.origin or self.name.removeprefix(FINE)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Nodes in execution order. `constants`: name -> {"dtype", "shape"}."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @staticmethod
    def from_wire(given: GraphDict) -> Graph:
        """Read the dictionary that a framework file returns."""
        nodes = tuple(
            Node(
                name=node["name"],
                op=node["op"],
                native_op=node["native_op"],
                inputs=tuple(node["inputs"]),
                outputs=tuple(node["outputs"]),
                attributes=node["attributes"],
                origin=node.get("origin"),
            )
            for node in given["nodes"]
        )
        return Graph(
            nodes=nodes,
            inputs=tuple(given["inputs"]),
            outputs=tuple(given["outputs"]),
            constants=given["constants"],
        )

    @cached_property
    def producers(self) -> Mapping[str, int]:
        """Value -> position of the node that computes it."""
        return {name: place for place, node in enumerate(self.nodes) for name in node.outputs if name}

    @cached_property
    def consumers(self) -> Mapping[str, tuple[int, ...]]:
        """Value -> positions of the nodes that read it, in order."""
        found: dict[str, list[int]] = {}
        for place, node in enumerate(self.nodes):
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(place)
        return {name: tuple(places) for name, places in found.items()}

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Node name -> node."""
        return {node.name: node for node in self.nodes}

    def producer(self, value: str) -> Node | None:
        """The node that computes a value; None for inputs and constants."""
        place = self.producers.get(value)
        return None if place is None else self.nodes[place]

    def parents(self, value: str) -> tuple[str, ...]:
        """The values that a value's producer reads, constants and absent operands left out."""
        node = self.producer(value)
        if node is None:
            return ()
        return tuple(name for name in dict.fromkeys(node.inputs) if name and name not in self.constants)

    def children(self, value: str) -> tuple[str, ...]:
        """The values that the readers of a value compute."""
        return tuple(
            dict.fromkeys(name for place in self.consumers.get(value, ()) for name in self.nodes[place].outputs if name)
        )

    def upward(self, starts: Iterable[str], stop: Callable[[str], bool] = lambda value: False) -> dict[str, None]:
        """Every value from which `starts` are computed, nearest first, `starts` included unless they stop.

        A value for which `stop` holds is neither returned nor passed.
        """
        return self._walk(starts, self.parents, stop)

    def downward(self, starts: Iterable[str], stop: Callable[[str], bool] = lambda value: False) -> dict[str, None]:
        """Every value that is computed from `starts`, `starts` included unless they stop."""
        return self._walk(starts, self.children, stop)

    def nearest(self, value: str, wanted: Callable[[str], bool]) -> dict[str, None]:
        """The closest ancestors of a value (itself left out) for which `wanted` holds, on every path backwards."""
        found: dict[str, None] = {}
        seen: set[str] = set()
        front = list(self.parents(value))
        while front:
            name = front.pop(0)
            if name in seen:
                continue
            seen.add(name)
            if wanted(name):
                found[name] = None
            else:
                front.extend(self.parents(name))
        return found

    def between(self, value: str, stops: Collection[str]) -> tuple[Node, ...]:
        """The nodes that compute `value` from `stops` (and from inputs and constants), in execution order."""
        values = self.upward([value], lambda name: name in stops)
        places = sorted({self.producers[name] for name in values if name in self.producers})
        return tuple(self.nodes[place] for place in places)

    @staticmethod
    def _walk(
        starts: Iterable[str], step: Callable[[str], tuple[str, ...]], stop: Callable[[str], bool]
    ) -> dict[str, None]:
        found: dict[str, None] = {}
        front = list(starts)
        while front:
            name = front.pop(0)
            if name in found or stop(name):
                continue
            found[name] = None
            front.extend(step(name))
        return found

    def merged(self, fine: Graph) -> Graph:
        """This graph and a finer view of the same model side by side; the finer names get a prefix, the inputs are shared.

        Outputs stay those of this graph. The finer outputs are computed twice, under two names, which alignment by
        value does not mind.
        """
        shared = set(self.inputs)

        def renamed(name: str) -> str:
            return name if name in shared or not name else FINE + name

        nodes = tuple(
            replace(
                node,
                name=FINE + node.name,
                inputs=tuple(map(renamed, node.inputs)),
                outputs=tuple(map(renamed, node.outputs)),
            )
            for node in fine.nodes
        )
        constants = {**self.constants, **{FINE + name: facts for name, facts in fine.constants.items()}}
        return Graph(nodes=self.nodes + nodes, inputs=self.inputs, outputs=self.outputs, constants=constants)
