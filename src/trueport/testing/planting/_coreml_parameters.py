"""Faults in what an operator of a Core ML model has learned: weights, biases, statistics. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from trueport.testing.planting._coreml_view import Change, Fault, Node, SkipPlace, View, shown, told

Place = tuple[Node, int]
"""An operator and the slot of one of its constants."""
WEIGHTS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (0, 1), "LSTM": (3, 4), "Gather": (0,)}
BIASES = {"Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,), "Add": (0, 1)}
SCALES = {"LayerNormalization": (1, 2), "InstanceNormalization": (1, 2), "Mul": (0, 1)}
"""Operator -> slots of its weights, its bias, and what it multiplies or shifts each channel by."""
_OUT = {"conv": 0, "conv_transpose": 1, "linear": 0, "matmul": -1}
"""Operator of Core ML -> axis of the output channels in its weights."""


def places(table: Mapping[str, tuple[int, ...]], least: int) -> Callable[[View], list[Place]]:
    """Where an operator of the table reads a floating constant with at least `least` elements."""

    def find(view: View) -> list[Place]:
        return [
            (node, slot)
            for node in view.nodes(*table)
            for slot in table[node["op"]]
            if view.weights(node, slot, least) is not None
        ]

    return find


weighted, biased, scaled = places(WEIGHTS, 4), places(BIASES, 2), places(SCALES, 2)


def changed(view: View, place: Place, new: Any, what: str) -> Change:
    """Store another constant; one that equals the old one is no fault."""
    node, slot = place
    old = view.array(node, slot)
    made = np.asarray(new, old.dtype)
    if np.array_equal(old, made):
        raise SkipPlace("the constant stays as it is")
    truth = told([node["name"]], f"{what} of {node['name']}", shown(old), shown(made))
    edit: Any = {"kind": "set-parameter", "node": node["name"], "parameter": node["inputs"][slot], "array": "new"}
    return Change([edit], {"new": made}, truth)


def noise(level: float) -> Callable[[View, Place], Change]:
    """Add noise of `level` times the spread of the constant."""

    def change(view: View, place: Place) -> Change:
        old = view.array(*place).astype(np.float64)
        spread = float(np.std(old)) or float(np.max(np.abs(old))) or 1.0
        new = old + level * spread * view.rng.standard_normal(old.shape)
        return changed(view, place, new, f"noise of {level:.0%}")

    return change


def one_weight(view: View, place: Place) -> Change:
    """Change one weight by three times the spread of all."""
    new = np.array(view.array(*place))
    where = int(view.rng.integers(new.size))
    new.reshape(-1)[where] += 3 * (float(np.std(new)) or 1.0)
    return changed(view, place, new, f"weight {where}")


def turned(view: View, place: Place) -> Change:
    """Exchange the kernel's height and width."""
    old = view.array(*place)
    if old.ndim != 4 or old.shape[2] != old.shape[3] or old.shape[2] < 2:
        raise SkipPlace("the kernel is not square")
    return changed(view, place, np.swapaxes(old, 2, 3), "height and width of the kernel exchanged")


def flipped(view: View, place: Place) -> Change:
    """Turn the kernel round along all its axes: correlation for convolution."""
    old = view.array(*place)
    if not place[0]["native_op"].startswith("conv") or max(old.shape[2:]) < 2:
        raise SkipPlace("no kernel of several taps")
    return changed(view, place, np.flip(old, tuple(range(2, old.ndim))), "kernel flipped")


def transposed(view: View, place: Place) -> Change:
    """Transpose a square matrix."""
    old = view.array(*place)
    if old.ndim != 2 or old.shape[0] != old.shape[1]:
        raise SkipPlace("the matrix is not square")
    return changed(view, place, old.T, "matrix transposed")


def channels_reversed(view: View, place: Place) -> Change:
    """Reverse the order of the output channels."""
    node, _ = place
    old = view.array(*place)
    axis = _OUT.get(node["native_op"])
    if node["attributes"].get("transpose_y"):
        axis = -2
    if axis is None or old.ndim < 2 or old.shape[axis] < 2:
        raise SkipPlace("no axis of output channels")
    return changed(view, place, np.flip(old, axis), "output channels of the weights reversed")


def dropped(view: View, place: Place) -> Change:
    """Set the bias to zero."""
    return changed(view, place, np.zeros_like(view.array(*place)), "bias dropped")


def fold_scaled(view: View, place: Place) -> Change:
    """Scale each output channel as a BatchNorm does that was folded with 1e-3 for 1e-5 (variances 0.002 to 1)."""
    old = view.array(*place)
    axis = _OUT.get(place[0]["native_op"])
    if axis is None or old.ndim < 3:
        raise SkipPlace("no convolution")
    variance = view.rng.uniform(0.002, 1.0, old.shape[axis])
    ratio = np.sqrt((variance + 1e-5) / (variance + 1e-3))
    others = [place for place in range(old.ndim) if place != axis]
    return changed(view, place, old * np.expand_dims(ratio, others), "wrong BN fold")


def norms(view: View) -> list[Node]:
    """Normalisations over the batch with constant statistics, in Core ML's order: gamma, beta, mean, variance."""
    found = view.nodes("BatchNormalization")
    return [node for node in found if all(view.weights(node, slot) is not None for slot in (1, 2, 3, 4))]


def exchanged(first: int, second: int, what: str) -> Callable[[View, Node], Change]:
    """Exchange two parameters of a BatchNormalization; what becomes a variance is made positive."""

    def change(view: View, node: Node) -> Change:
        left, right = view.array(node, first), view.array(node, second)
        if np.array_equal(left, right):
            raise SkipPlace("the two are equal")
        arrays = {"first": right, "second": np.abs(left) if second == 4 else left}
        edits: Any = [
            {"kind": "set-parameter", "node": node["name"], "parameter": node["inputs"][slot], "array": key}
            for slot, key in ((first, "first"), (second, "second"))
        ]
        truth = told([node["name"]], f"{what} of {node['name']} exchanged", shown(left), shown(right))
        return Change(edits, arrays, truth)

    return change


def rolled(view: View, place: Place) -> Change:
    """Move the rows of an embedding on by one, as when indices count from 1."""
    axis = int(place[0]["attributes"].get("axis", 0))
    return changed(view, place, np.roll(view.array(*place), 1, axis), "table off by one")


def on_grid(kind: str) -> Callable[[View, Place], Change]:
    """Round the weights to float16, or to 255 steps of one scale."""

    def change(view: View, place: Place) -> Change:
        old = view.array(*place)
        if kind == "float16":
            return changed(view, place, old.astype(np.float16).astype(old.dtype), "weights rounded to float16")
        step = float(np.max(np.abs(old))) / 127 or 1.0
        return changed(view, place, np.round(old / step) * step, "weights rounded to int8")

    return change


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
    "bias_dropped": Fault(*WB, biased, dropped, ("structure",)),
    "scale_noise": Fault(*WB, scaled, noise(0.3)),
    "bn_fold_scaled": Fault(*WB, weighted, fold_scaled),
    "bn_mean_variance": Fault(*WB, norms, exchanged(3, 4, "mean and variance")),
    "bn_scale_shift": Fault(*WB, norms, exchanged(1, 2, "scale and shift")),
    "embedding_off_by_one": Fault(*WB, places({"Gather": (0,)}, 4), rolled),
    "weight_int8": Fault(*QZ, weighted, on_grid("int8")),
    "weight_float16": Fault(*QZ, weighted, on_grid("float16")),
}
