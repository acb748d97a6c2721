"""Where a parameter lies in the file: a node may read a constant through operators that only hand it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trueport.diagnosis.operators import kind
from trueport.diagnosis.region import Inside, Parameter

_ON = ("Identity", "Cast", "DequantizeLinear", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that give the values that they were given, up to type and shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The constant `parameter` that `node` reads. `stored` arranges an array as it lies there."""

    node: str
    parameter: str
    stored: Callable[[np.ndarray], np.ndarray]


def place_of(inside: Inside, item: Parameter) -> Place | None:
    """The constant behind a parameter, and how it must be arranged; None where it is computed in another way."""
    name, node = item.name, item.node.name
    turns: list[tuple[int, ...]] = []
    while name not in inside.graph.constants:
        made = inside.graph.producer(name)
        if made is None:
            return Place(node=node, parameter=name, stored=lambda array: array)
        behind = [one for one in made.inputs if one and one not in inside.dynamic]
        if not behind:
            return None
        if kind(made) == "Transpose":
            order = made.attributes.get("perm") or made.attributes.get("dims")
            if not isinstance(order, list):
                return None
            turns.append(tuple(int(axis) for axis in np.argsort(order)))
        elif kind(made) not in _ON:
            return None
        node, name = made.name, behind[0]
    facts = inside.graph.constants[name]
    shape = tuple(int(size) for size in facts.get("shape") or ())

    def stored(array: np.ndarray) -> np.ndarray:
        turned = array
        for order in turns:
            turned = np.transpose(turned, order)
        return np.ascontiguousarray(turned.reshape(shape) if turned.size == np.prod(shape, dtype=int) else turned)

    return Place(node=node, parameter=name, stored=stored)
