"""Faults in what a node has learned: weights, biases, statistics, and the grid they lie on. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from trueport.testing.planting._onnx_edit import Editor, Fault, SkipPlace, told

Place = tuple[Any, int]
"""A node and the slot of one of its constants."""

WEIGHTS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Gather": (0,),
}
"""Operator -> slots of its weights."""
BIASES = {"Conv": (2,), "ConvTranspose": (2,), "Gemm": (2,), "Add": (0, 1)}
SCALES = {
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "Mul": (0, 1),
    "PRelu": (1,),
}
"""Operator -> slots of what it multiplies or shifts each channel by."""
GATES = {"LSTM": (4, "iofc"), "GRU": (3, "zrh")}
"""Operator -> number of gate blocks in its weights, and their letters in order."""


def places(table: Mapping[str, tuple[int, ...]], least: int) -> Callable[[Editor], list[Place]]:
    """Where a node of the table reads a floating constant with at least `least` elements."""

    def find(edit: Editor) -> list[Place]:
        return [
            (node, slot)
            for node in edit.nodes(*table)
            for slot in table[node.op_type]
            if edit.computed(node) and edit.weights(node, slot, least) is not None
        ]

    return find


weighted = places(WEIGHTS, 4)
biased = places(BIASES, 2)
scaled = places(SCALES, 2)


def shown(array: np.ndarray) -> str:
    """A constant in a few words."""
    size = "x".join(str(length) for length in array.shape) or "scalar"
    if array.size <= 4:
        return f"{size}: {np.round(array.astype(float), 5).reshape(-1).tolist()}"
    return f"{size}, rms {float(np.sqrt(np.mean(np.square(array.astype(np.float64))))):.5g}"


def changed(edit: Editor, place: Place, new: np.ndarray, what: str) -> dict[str, Any]:
    """Store the new constant; one that equals the old one is no fault."""
    node, slot = place
    old = edit.operand(node, slot)
    if np.array_equal(old, np.asarray(new, old.dtype)):
        raise SkipPlace("the constant stays as it is")
    edit.set_operand(node, slot, new)
    return told([edit.name(node)], f"{what} of {edit.name(node)}", shown(old), shown(np.asarray(new)))


def noise(level: float) -> Callable[[Editor, Place], dict[str, Any]]:
    """Add noise of `level` times the spread of the constant."""

    def change(edit: Editor, place: Place) -> dict[str, Any]:
        old = edit.operand(*place)
        spread = float(np.std(old)) or float(np.max(np.abs(old))) or 1.0
        new = old + level * spread * edit.rng.standard_normal(old.shape)
        return changed(edit, place, new, f"noise of {level:.0%}")

    return change


def one_weight(edit: Editor, place: Place) -> dict[str, Any]:
    """Change one weight by three times the spread of all."""
    old = edit.operand(*place)
    new = old.copy()
    where = int(edit.rng.integers(old.size))
    new.reshape(-1)[where] += 3 * (float(np.std(old)) or 1.0)
    return changed(edit, place, new, f"weight {where}")


def turned(edit: Editor, place: Place) -> dict[str, Any]:
    """Exchange the kernel's height and width."""
    old = edit.operand(*place)
    if old.ndim != 4 or old.shape[2] != old.shape[3] or old.shape[2] < 2:
        raise SkipPlace("the kernel is not square")
    return changed(edit, place, np.swapaxes(old, 2, 3), "height and width of the kernel exchanged")


def flipped(edit: Editor, place: Place) -> dict[str, Any]:
    """Turn the kernel round along all its axes: correlation for convolution."""
    old = edit.operand(*place)
    if place[0].op_type not in ("Conv", "ConvTranspose") or max(old.shape[2:]) < 2:
        raise SkipPlace("no kernel of several taps")
    return changed(edit, place, np.flip(old, tuple(range(2, old.ndim))), "kernel flipped")


def transposed(edit: Editor, place: Place) -> dict[str, Any]:
    """Transpose a square matrix."""
    old = edit.operand(*place)
    if old.ndim != 2 or old.shape[0] != old.shape[1]:
        raise SkipPlace("the matrix is not square")
    return changed(edit, place, old.T, "matrix transposed")


def channels_swapped(edit: Editor, place: Place) -> dict[str, Any]:
    """Reverse the order of the output channels."""
    node, _ = place
    old = edit.operand(*place)
    axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1}.get(node.op_type)
    if node.op_type == "Gemm":
        axis = 0 if edit.attribute(node, "transB", 0) else 1
    if axis is None or old.ndim < 2 or old.shape[axis] < 2:
        raise SkipPlace("no axis of output channels")
    return changed(edit, place, np.flip(old, axis), "output channels of the weights reversed")


def bias_dropped(edit: Editor, place: Place) -> dict[str, Any]:
    """Set the bias to zero."""
    return changed(edit, place, np.zeros_like(edit.operand(*place)), "bias dropped")


def bias_collision(edit: Editor, place: Place) -> dict[str, Any]:
    """Let a node read the bias of another one, as when two constants get the same name."""
    node, slot = place
    old = edit.operand(node, slot)
    for other, there in biased(edit):
        found = edit.operand(other, there)
        if other is not node and found.shape == old.shape and not np.array_equal(found, old):
            node.input[slot] = other.input[there]
            what = f"{edit.name(node)} reads the bias of {edit.name(other)}"
            return told([edit.name(node)], what, shown(old), shown(found))
    raise SkipPlace("no other bias of that shape")


def fold_scaled(edit: Editor, place: Place) -> dict[str, Any]:
    """Scale each output channel as a BatchNorm does that was folded with 1e-3 for 1e-5 (variances 0.002 to 1)."""
    node, _ = place
    old = edit.operand(*place)
    axis = {"Conv": 0, "ConvTranspose": 1}.get(node.op_type)
    if axis is None or old.ndim < 3:
        raise SkipPlace("no convolution")
    variance = edit.rng.uniform(0.002, 1.0, old.shape[axis])
    ratio = np.sqrt((variance + 1e-5) / (variance + 1e-3))
    return changed(edit, place, old * np.expand_dims(ratio, [i for i in range(old.ndim) if i != axis]), "wrong BN fold")


def on_grid(kind: str) -> Callable[[Editor, Place], dict[str, Any]]:
    """Round the weights to float16, or to 255 steps of one scale."""

    def change(edit: Editor, place: Place) -> dict[str, Any]:
        old = edit.operand(*place)
        if kind == "float16":
            return changed(edit, place, old.astype(np.float16).astype(old.dtype), "weights rounded to float16")
        step = float(np.max(np.abs(old))) / 127 or 1.0
        return changed(edit, place, np.round(old / step) * step, "weights rounded to int8")

    return change


def gates_swapped(edit: Editor, place: Any) -> dict[str, Any]:
    """Exchange the first two gates in weights, recurrent weights and biases."""
    count, letters = GATES[place.op_type]
    first = edit.operand(place, 1)
    for slot in (1, 2, 3):
        old = edit.operand(place, slot)
        if old is not None:
            parts = np.split(old, old.shape[1] // (first.shape[1] // count), axis=1)
            for block in range(0, len(parts), count):
                parts[block], parts[block + 1] = parts[block + 1], parts[block]
            edit.set_operand(place, slot, np.concatenate(parts, axis=1))
    wrong = letters[1] + letters[0] + letters[2:]
    return told([edit.name(place)], f"gate order of {edit.name(place)}", letters, wrong)


def recurrent_bias_dropped(edit: Editor, place: Any) -> dict[str, Any]:
    """Set the recurrent half of the biases to zero; all of them where that half is zero already."""
    old = edit.operand(place, 3)
    new = old.copy()
    half = old.shape[1] // 2
    new[:, half:] = 0
    if np.array_equal(new, old):
        new[:] = 0
    return changed(edit, (place, 3), new, "bias dropped")


def direction_copied(edit: Editor, place: Any) -> dict[str, Any]:
    """Give the backward direction the weights of the forward one."""
    for slot in (1, 2, 3):
        old = edit.operand(place, slot)
        if old is not None:
            edit.set_operand(place, slot, np.stack([old[0], old[0]]))
    return told([edit.name(place)], f"weights of {edit.name(place)}", "two directions", "the forward one twice")


def two_ways(edit: Editor) -> list[Any]:
    """Recurrent nodes that run in both directions."""
    return [node for node in recurrent(edit) if edit.attribute(node, "direction", "forward") == "bidirectional"]


def recurrent(edit: Editor) -> list[Any]:
    """LSTM and GRU nodes with constant weights."""
    return [node for node in edit.nodes(*GATES) if edit.weights(node, 1) is not None]


def recurrent_biased(edit: Editor) -> list[Any]:
    """The same with a bias that is not zero."""
    return [node for node in recurrent(edit) if edit.weights(node, 3) is not None and np.any(edit.operand(node, 3))]


def norms(edit: Editor) -> list[Any]:
    """BatchNormalization nodes with constant parameters."""
    found = edit.nodes("BatchNormalization")
    return [node for node in found if all(edit.weights(node, slot) is not None for slot in (1, 2, 3, 4))]


def exchanged(first: int, second: int, what: str) -> Callable[[Editor, Any], dict[str, Any]]:
    """Exchange two parameters of a BatchNormalization; what becomes a variance is made positive."""

    def change(edit: Editor, place: Any) -> dict[str, Any]:
        left, right = edit.operand(place, first), edit.operand(place, second)
        if np.array_equal(left, right):
            raise SkipPlace("the two are equal")
        edit.set_operand(place, first, right)
        edit.set_operand(place, second, np.abs(left) if second == 4 else left)
        return told([edit.name(place)], f"{what} of {edit.name(place)} exchanged", shown(left), shown(right))

    return change


def folded_wrongly(edit: Editor, place: Any) -> dict[str, Any]:
    """Fold a BatchNormalization into the convolution before it with an epsilon of 1e-2."""
    conv = edit.producer(place.input[0])
    if conv is None or conv.op_type != "Conv" or len(edit.readers(place.input[0])) > 1:
        raise SkipPlace("no convolution before it")
    weights = edit.weights(conv, 1)
    if weights is None or place.input[0] in edit.outputs() or place.output[0] in edit.outputs():
        raise SkipPlace("the weights are not constant")
    scale, shift, mean, variance = (edit.operand(place, slot) for slot in (1, 2, 3, 4))
    epsilon = edit.attribute(place, "epsilon", 1e-5)
    factor = scale / np.sqrt(variance + 1e-2)
    old = edit.operand(conv, 2)
    bias = shift + ((0 if old is None else old) - mean) * factor
    edit.set_operand(conv, 1, weights * factor.reshape(-1, *[1] * (weights.ndim - 1)))
    if old is None:
        conv.input.append(edit.constant(bias.astype(weights.dtype), "bias"))
    else:
        edit.set_operand(conv, 2, bias)
    edit.remove(place, conv.output[0])
    return told([edit.name(conv)], f"BatchNorm folded into {edit.name(conv)}", f"epsilon {epsilon:g}", "epsilon 0.01")


def scalars(edit: Editor) -> list[Place]:
    """Arithmetic with a scalar constant that is neither tiny (an epsilon) nor zero."""
    table = {"Mul": (0, 1), "Add": (0, 1), "Sub": (0, 1), "Div": (0, 1)}
    found = places(table, 1)(edit)
    return [place for place in found if edit.operand(*place).size == 1 and abs(edit.operand(*place).item()) > 1e-2]


def scalar_changed(edit: Editor, place: Place) -> dict[str, Any]:
    """Make a scalar constant a tenth larger."""
    return changed(edit, place, edit.operand(*place) * 1.1, "constant")


def rolled(edit: Editor, place: Place) -> dict[str, Any]:
    """Move the rows of an embedding on by one, as when indices count from 1."""
    return changed(
        edit, place, np.roll(edit.operand(*place), 1, edit.attribute(place[0], "axis", 0)), "table off by one"
    )


WB, QZ = ("WB", "parameters"), ("QZ", "precision")
FAULTS = {
    "weight_noise_1": Fault(*WB, weighted, noise(0.01)),
    "weight_noise_10": Fault(*WB, weighted, noise(0.1)),
    "weight_noise_30": Fault(*WB, weighted, noise(0.3)),
    "one_weight": Fault(*WB, weighted, one_weight),
    "kernel_transposed": Fault(*WB, weighted, turned, ("structure",)),
    "kernel_flipped": Fault(*WB, weighted, flipped),
    "matrix_transposed": Fault(*WB, weighted, transposed),
    "channels_reversed": Fault(*WB, weighted, channels_swapped),
    "bias_noise": Fault(*WB, biased, noise(0.3)),
    "bias_dropped": Fault(*WB, biased, bias_dropped, ("structure",)),
    "bias_collision": Fault(*WB, biased, bias_collision),
    "scale_noise": Fault(*WB, scaled, noise(0.3)),
    "bn_fold_scaled": Fault(*WB, weighted, fold_scaled),
    "bn_fold_epsilon": Fault(*WB, norms, folded_wrongly, ("structure", "hyperparameters")),
    "bn_mean_variance": Fault(*WB, norms, exchanged(3, 4, "mean and variance")),
    "bn_scale_shift": Fault(*WB, norms, exchanged(1, 2, "scale and shift")),
    "scalar_constant": Fault(*WB, scalars, scalar_changed, ("hyperparameters",)),
    "embedding_off_by_one": Fault(*WB, places({"Gather": (0,)}, 4), rolled),
    "gate_order": Fault(*WB, recurrent, gates_swapped),
    "recurrent_bias": Fault(*WB, recurrent_biased, recurrent_bias_dropped),
    "direction_copied": Fault(*WB, two_ways, direction_copied),
    "weight_int8": Fault(*QZ, weighted, on_grid("int8")),
    "weight_float16": Fault(*QZ, weighted, on_grid("float16")),
}
