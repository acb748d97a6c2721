"""Faults in what an OpenVINO model has learned: weights, biases, tables, gates, and the grid they lie on. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from trueport.testing.planting._openvino_place import Fault, Node, SkipPlace, View, told

Place = tuple[Node, int]
"""A node and the slot of one of its constants."""

CONVOLUTIONS = ("Convolution", "GroupConvolution")
TURNED = ("ConvolutionBackpropData", "GroupConvolutionBackpropData")
WEIGHTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys((*CONVOLUTIONS, *TURNED), (1,)),
    "MatMul": (0, 1),
    "Gather": (0,),
    "LSTMSequence": (4, 5),
    "GRUSequence": (3, 4),
}
"""Operator -> slots of its weights."""
BIASES = {"Add": (0, 1)}
SCALES = {"Multiply": (0, 1), "PRelu": (1,)}
GATES = {"LSTMSequence": (4, "fico"), "GRUSequence": (3, "zrh")}
"""Operator -> slot of its first weights, which is the number of its gates too, and their letters in order."""


def places(table: Mapping[str, tuple[int, ...]], least: int) -> Callable[[View], list[Place]]:
    """Where a node of the table reads a real constant with at least `least` elements."""

    def find(view: View) -> list[Place]:
        return [
            (node, slot)
            for node in view.at(*table)
            for slot in table[node["native_op"]]
            if (array := view.constant(node, slot)) is not None and array.dtype.kind == "f" and array.size >= least
        ]

    return find


weighted = places(WEIGHTS, 4)
scaled = places(SCALES, 2)


def biased(view: View) -> list[Place]:
    """Additions of one number a channel behind something linear."""
    found = places(BIASES, 2)(view)
    linear = (*CONVOLUTIONS, *TURNED, "MatMul")
    return [
        (node, slot)
        for node, slot in found
        if any((made := view.producer(name)) is not None and made["native_op"] in linear for name in view.data(node))
    ]


def shown(array: np.ndarray) -> str:
    """A constant in a few words."""
    size = "x".join(str(length) for length in array.shape) or "scalar"
    if array.size <= 4:
        return f"{size}: {np.round(array.astype(float), 5).reshape(-1).tolist()}"
    return f"{size}, rms {float(np.sqrt(np.mean(np.square(array.astype(np.float64))))):.5g}"


def changed(view: View, place: Place, new: np.ndarray, what: str) -> dict[str, Any]:
    """Store the new constant; one that equals the old one is no fault."""
    node, slot = place
    old = constant(view, place)
    view.set_constant(node, slot, np.asarray(new, old.dtype))
    return told([node["name"]], f"{what} of {node['name']}", shown(old), shown(np.asarray(new)))


def constant(view: View, place: Place) -> np.ndarray:
    """The constant at a place."""
    found = view.constant(*place)
    assert found is not None
    return found


def noise(level: float) -> Callable[[View, Place], dict[str, Any]]:
    """Add noise of `level` times the spread of the constant."""

    def change(view: View, place: Place) -> dict[str, Any]:
        old = constant(view, place)
        spread = float(np.std(old)) or float(np.max(np.abs(old))) or 1.0
        return changed(view, place, old + level * spread * view.rng.standard_normal(old.shape), f"noise of {level:.0%}")

    return change


def one_weight(view: View, place: Place) -> dict[str, Any]:
    """Change one weight by three times the spread of all."""
    new = constant(view, place).copy()
    where = int(view.rng.integers(new.size))
    new.reshape(-1)[where] += 3 * (float(np.std(new)) or 1.0)
    return changed(view, place, new, f"weight {where}")


def turned(view: View, place: Place) -> dict[str, Any]:
    """Exchange the kernel's height and width."""
    old = constant(view, place)
    if old.ndim != 4 or old.shape[2] != old.shape[3] or old.shape[2] < 2:
        raise SkipPlace("the kernel is not square")
    return changed(view, place, np.swapaxes(old, 2, 3), "height and width of the kernel exchanged")


def flipped(view: View, place: Place) -> dict[str, Any]:
    """Turn the kernel round along all its axes: correlation for convolution."""
    old = constant(view, place)
    if place[0]["native_op"] not in (*CONVOLUTIONS, *TURNED) or max(old.shape[2:]) < 2:
        raise SkipPlace("no kernel of several taps")
    return changed(view, place, np.flip(old, tuple(range(2, old.ndim))), "kernel flipped")


def transposed(view: View, place: Place) -> dict[str, Any]:
    """Transpose a square matrix."""
    old = constant(view, place)
    if old.ndim != 2 or old.shape[0] != old.shape[1]:
        raise SkipPlace("the matrix is not square")
    return changed(view, place, old.T, "matrix transposed")


def channels_reversed(view: View, place: Place) -> dict[str, Any]:
    """Reverse the order of the output channels."""
    node, slot = place
    old = constant(view, place)
    axis = {**dict.fromkeys(CONVOLUTIONS, 0), **dict.fromkeys(TURNED, 1)}.get(node["native_op"])
    if node["native_op"] == "MatMul" and slot == 1:
        axis = 0 if node["attributes"].get("transpose_b") else -1
    if axis is None or old.ndim < 2 or old.shape[axis] < 2:
        raise SkipPlace("no axis of output channels")
    return changed(view, place, np.flip(old, axis), "output channels of the weights reversed")


def bias_dropped(view: View, place: Place) -> dict[str, Any]:
    """Set the bias to zero: one of the addition, and of the linear operator whose bias it is."""
    facts = changed(view, place, np.zeros_like(constant(view, place)), "bias dropped")
    owners = [made["name"] for name in view.data(place[0]) if (made := view.producer(name)) is not None]
    return {**facts, "nodes": [*facts["nodes"], *owners]}


def bias_collision(view: View, place: Place) -> dict[str, Any]:
    """Let a node read the bias of another one, as when two constants get the same name."""
    node, slot = place
    old = constant(view, place)
    for other, there in biased(view):
        found = constant(view, (other, there))
        if other is not node and found.shape == old.shape and not np.array_equal(found, old):
            view.edit("set-input", node=node["name"], slot=slot, value=other["inputs"][there])
            return told([node["name"]], f"{node['name']} reads the bias of {other['name']}", shown(old), shown(found))
    raise SkipPlace("no other bias of that shape")


def fold_scaled(view: View, place: Place) -> dict[str, Any]:
    """Scale each output channel as a BatchNorm does that was folded with 1e-3 for 1e-5 (variances 0.002 to 1)."""
    old = constant(view, place)
    axis = {**dict.fromkeys(CONVOLUTIONS, 0), "ConvolutionBackpropData": 1}.get(place[0]["native_op"])
    if axis is None or old.ndim < 3:
        raise SkipPlace("no convolution")
    variance = view.rng.uniform(0.002, 1.0, old.shape[axis])
    ratio = np.sqrt((variance + 1e-5) / (variance + 1e-3))
    spread = np.expand_dims(ratio, [place for place in range(old.ndim) if place != axis])
    return changed(view, place, old * spread, "wrong BN fold")


def on_grid(kind: str) -> Callable[[View, Place], dict[str, Any]]:
    """Round the weights to float16, or to 255 steps of one scale."""

    def change(view: View, place: Place) -> dict[str, Any]:
        old = constant(view, place)
        if kind == "float16":
            return changed(view, place, old.astype(np.float16).astype(old.dtype), "weights rounded to float16")
        step = float(np.max(np.abs(old))) / 127 or 1.0
        return changed(view, place, np.round(old / step) * step, "weights rounded to int8")

    return change


def recurrent(view: View) -> list[Node]:
    """LSTM and GRU nodes with constant weights."""
    return [node for node in view.at(*GATES) if view.constant(node, GATES[node["native_op"]][0]) is not None]


def gates_exchanged(view: View, node: Node) -> dict[str, Any]:
    """Exchange the first two gates in weights, recurrent weights and biases."""
    count, letters = GATES[node["native_op"]]
    hidden = int(node["attributes"]["hidden_size"])
    for slot in range(count, count + 3):
        old = view.constant(node, slot)
        if old is None:
            continue
        parts = np.split(old, old.shape[1] // hidden, axis=1)
        parts[0], parts[1] = parts[1], parts[0]
        new = np.concatenate(parts, axis=1)
        if not np.array_equal(old, new):
            view.set_constant(node, slot, new)
    if not view.edits:
        raise SkipPlace("both gates are equal")
    wrong = letters[1] + letters[0] + letters[2:]
    return told([node["name"]], f"gate order of {node['name']}", letters, wrong)


def recurrent_bias(view: View, node: Node) -> dict[str, Any]:
    """Set the biases to zero."""
    slot = GATES[node["native_op"]][0] + 2
    old = view.constant(node, slot)
    if old is None or not np.any(old):
        raise SkipPlace("it has no bias")
    return changed(view, (node, slot), np.zeros_like(old), "bias dropped")


def direction_copied(view: View, node: Node) -> dict[str, Any]:
    """Give the backward direction the weights of the forward one."""
    if node["attributes"].get("direction") != "bidirectional":
        raise SkipPlace("it runs in one direction")
    count, _ = GATES[node["native_op"]]
    for slot in range(count, count + 3):
        old = view.constant(node, slot)
        if old is not None:
            view.set_constant(node, slot, np.stack([old[0], old[0]]))
    return told([node["name"]], f"weights of {node['name']}", "two directions", "the forward one twice")


def scalars(view: View) -> list[Place]:
    """Arithmetic with a scalar constant that is neither tiny (an epsilon) nor zero."""
    table = {"Multiply": (0, 1), "Add": (0, 1), "Subtract": (0, 1), "Divide": (0, 1)}
    return [
        place
        for place in places(table, 1)(view)
        if constant(view, place).size == 1 and abs(constant(view, place).item()) > 1e-2
    ]


def scalar_changed(view: View, place: Place) -> dict[str, Any]:
    """Make a scalar constant a tenth larger."""
    return changed(view, place, constant(view, place) * 1.1, "constant")


def small_constants(view: View) -> list[Place]:
    """Additions of a scalar between 0 and 1e-2."""
    found = [place for place in places(BIASES, 1)(view) if constant(view, place).size == 1]
    return [place for place in found if 0 < constant(view, place).item() <= 1e-2]


def small_constant(view: View, place: Place) -> dict[str, Any]:
    """An epsilon that is written out as an addition: 1e-3 where it is smaller, else 1e-5."""
    old = constant(view, place)
    return changed(view, place, np.full_like(old, 1e-3 if old.item() < 5e-4 else 1e-5), "constant")


def rolled(view: View, place: Place) -> dict[str, Any]:
    """Move the rows of a table on by one, as when indices count from 1."""
    axis = int(place[0]["attributes"].get("axis", 0))
    return changed(view, place, np.roll(constant(view, place), 1, axis), "table off by one")


WB, QZ = ("WB", "parameters"), ("QZ", "precision")
FAULTS = {
    "weight_noise_1": Fault(*WB, weighted, noise(0.01)),
    "weight_noise_10": Fault(*WB, weighted, noise(0.1)),
    "weight_noise_30": Fault(*WB, weighted, noise(0.3)),
    "one_weight": Fault(*WB, weighted, one_weight),
    "kernel_transposed": Fault(*WB, weighted, turned, ("structure",)),
    "kernel_flipped": Fault(*WB, weighted, flipped),
    "matrix_transposed": Fault(*WB, weighted, transposed),
    "channels_reversed": Fault(*WB, weighted, channels_reversed),
    "bias_noise": Fault(*WB, biased, noise(0.3)),
    "bias_dropped": Fault(*WB, biased, bias_dropped, ("structure",)),
    "bias_collision": Fault(*WB, biased, bias_collision),
    "scale_noise": Fault(*WB, scaled, noise(0.3)),
    "bn_fold_scaled": Fault(*WB, weighted, fold_scaled),
    "scalar_constant": Fault(*WB, scalars, scalar_changed, ("hyperparameters",)),
    "epsilon_constant": Fault("LH", "hyperparameters", small_constants, small_constant, ("parameters",)),
    "embedding_off_by_one": Fault(*WB, places({"Gather": (0,)}, 4), rolled),
    "gate_order": Fault(*WB, recurrent, gates_exchanged),
    "recurrent_bias": Fault(*WB, recurrent, recurrent_bias),
    "direction_copied": Fault(*WB, recurrent, direction_copied),
    "weight_int8": Fault(*QZ, weighted, on_grid("int8")),
    "weight_float16": Fault(*QZ, weighted, on_grid("float16")),
}
