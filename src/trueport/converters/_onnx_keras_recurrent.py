"""LSTM, GRU and RNN: ONNX's gates and layouts as one Keras layer for each direction."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.converters._onnx_keras_values import Graph, Node
from trueport.frameworks._base import Unsupported

_KINDS = {"LSTM": ("LSTM", 4, (0, 2, 3, 1)), "GRU": ("GRU", 3, (0, 1, 2)), "RNN": ("SimpleRNN", 1, (0,))}
"""Operator -> (Keras layer, gates, for each of Keras' gates its place in ONNX: iofc there, ifco here; zrh in both)."""
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _recurrent(graph: Graph, node: Node) -> None:
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[
        node.get("direction", "forward")
    ]
    _check(graph, node, len(directions))
    tensor = graph.stored(graph.value(node), (1, 0, 2))  # ONNX: time, batch, features; Keras: batch, time, features
    states = [_states(graph, node, place) for place in range(len(directions))]
    sequences, finals = [], []
    for place, (backwards, state) in enumerate(zip(directions, states)):
        sequence, *final = _one(graph, node, tensor, place, backwards, state)
        sequences.append(graph.keras.ops.flip(sequence, axis=1) if backwards else sequence)
        finals.append(final)
    if _wanted(graph, node, 0):  # stored as batch, time, direction, features
        graph.give(node, graph.keras.ops.stack(sequences, axis=2), (1, 2, 0, 3), 0)
    for slot in range(1, len(node.outputs)):
        if _wanted(graph, node, slot):
            graph.give(node, graph.keras.ops.stack([final[slot - 1] for final in finals], axis=0), None, slot)


def _wanted(graph: Graph, node: Node, slot: int) -> bool:
    return slot < len(node.outputs) and bool(node.outputs[slot]) and graph.uses.get(node.outputs[slot], 0) > 0


def _check(graph: Graph, node: Node, directions: int) -> None:
    usual = _USUAL[node.op] * directions
    activations = [item.decode() if isinstance(item, bytes) else item for item in node.get("activations", usual)]
    if activations != usual:
        raise Unsupported(f"activations {', '.join(activations)}")
    for name in ("clip", "layout", "input_forget", "activation_alpha", "activation_beta"):
        if node.get(name, 0):
            raise Unsupported(f"attribute {name}")
    lengths = graph.constant(node, 4)
    time = graph.value(node).shape[0]
    if len(node.inputs) > 4 and node.inputs[4] and (lengths is None or np.any(lengths != time)):
        raise Unsupported("sequences of different lengths")
    if len(node.inputs) > 7 and node.inputs[7] and np.any(graph.required(node, 7, "peepholes")):
        raise Unsupported("peepholes")


def _states(graph: Graph, node: Node, place: int) -> list[Any] | None:
    """First states of one direction, None where they are zero."""
    found = []
    for slot in (5, 6) if node.op == "LSTM" else (5,):
        if slot >= len(node.inputs) or not node.inputs[slot]:
            continue
        array = graph.constant(node, slot)
        if array is None:
            found.append(graph.plain_operand(node, slot)[place])
        elif np.any(array):
            raise Unsupported("first states that are constants other than zero")
    if found and len(found) < (2 if node.op == "LSTM" else 1):
        raise Unsupported("only one of its two first states is given")
    return found or None


def _one(graph: Graph, node: Node, tensor: Any, place: int, backwards: bool, state: list[Any] | None) -> list[Any]:
    kind, gates, order = _KINDS[node.op]
    units = int(node.attributes["hidden_size"])
    kernel = _gates(graph.required(node, 1, "weight")[place], order, units)
    recurrent = _gates(graph.required(node, 2, "recurrent weight")[place], order, units)
    bias = graph.constant(node, 3)
    both = np.zeros(2 * gates * units, dtype=np.float32) if bias is None else bias[place]
    first, second = (_gates(part, order, units) for part in np.split(both, 2))
    settings: dict[str, Any] = {}
    weight = first + second
    if node.op == "GRU":
        settings["reset_after"] = bool(node.get("linear_before_reset", 0))
        if settings["reset_after"]:
            weight = np.stack([first, second])
    made = getattr(graph.keras.layers, kind)(
        units,
        name=graph.fresh(node.name),
        return_sequences=True,
        return_state=True,
        go_backwards=backwards,
        **settings,
    )
    results = made(tensor) if state is None else made(tensor, initial_state=state)
    made.set_weights([kernel, recurrent, weight])
    return list(results)


def _gates(array: np.ndarray, order: tuple[int, ...], units: int) -> np.ndarray:
    """[gates * units, ...] in ONNX's order as [..., gates * units] in Keras'."""
    parts = array.reshape(len(order), units, *array.shape[1:])[list(order)]
    return parts.reshape(array.shape).T


HANDLERS = {"LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent}
