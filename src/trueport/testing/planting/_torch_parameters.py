"""Faults in what an operator has learned: weights, biases, statistics, and the grid they lie on. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from trueport.testing.planting._torch_edit import Editor, Fault, SkipPlace, native, shown, told

Place = tuple[Any, Any]
"""An operator and the stored weight that it reads."""
Change = Callable[[Editor, Any], dict[str, Any]]

WEIGHTS = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "linear"), (1,)),
    "embedding": (0,),
    **dict.fromkeys(("matmul", "mm", "bmm"), (0, 1)),
}
"""Function -> slots of its weights."""
BIASES = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "linear"), (2,)),
    "add": (0, 1),
}
SCALES = {
    "layer_norm": (2, 3),
    "group_norm": (2, 3),
    "instance_norm": (1, 2),
    "batch_norm": (1, 2),
    "prelu": (1,),
    "mul": (0, 1),
}
"""Function -> slots of what it multiplies or shifts each channel by."""
GATES = {"lstm": (4, "ifgo"), "gru": (3, "rzn")}
"""Function -> number of gate blocks in its weights, and their letters in order."""


def places(table: Mapping[str, tuple[int, ...]], least: int) -> Callable[[Editor], list[Place]]:
    """Where an operator of the table reads stored floats, `least` of them or more."""

    def find(edit: Editor) -> list[Place]:
        found = []
        for node in edit.native(*table):
            for slot in table[native(node)]:
                value = edit.operand(node, slot)
                array = edit.stored(value)
                if array is not None and array.size >= least and edit.computed(node):
                    found.append((node, value))
        return found

    return find


def recurrent_weights(edit: Editor) -> list[Place]:
    """The matrices of recurrent layers."""
    return [
        (node, value)
        for node in edit.native(*GATES)
        for value in parts(edit, node)
        if (array := edit.stored(value)) is not None and array.ndim == 2
    ]


def weighted(edit: Editor) -> list[Place]:
    """Every weight that is no bias, scale or shift."""
    return places(WEIGHTS, 4)(edit) + recurrent_weights(edit)


biased = places(BIASES, 2)
scaled = places(SCALES, 2)


def parts(edit: Editor, node: Any) -> list[Any]:
    """The weights of a recurrent layer in the order in which it takes them."""
    return [value for value in edit.argument(node, "params") if edit.stored(value) is not None]


def changed(edit: Editor, place: Place, new: np.ndarray, what: str) -> dict[str, Any]:
    """Store other numbers; equal ones are no fault."""
    node, value = place
    old = edit.stored(value)
    if old is None or np.array_equal(old, np.asarray(new, old.dtype)):
        raise SkipPlace("the weights stay as they are")
    edit.store(value, new)
    return told([node], f"{what} of {node.name}", shown(old), shown(np.asarray(new)))


def array_of(edit: Editor, place: Place) -> np.ndarray:
    """The numbers at a place."""
    found = edit.stored(place[1])
    if found is None:
        raise SkipPlace("the weights are not its own")
    return found


def noise(level: float) -> Change:
    """Add noise of `level` times the spread of the weights."""

    def change(edit: Editor, place: Place) -> dict[str, Any]:
        old = array_of(edit, place)
        spread = float(np.std(old)) or float(np.max(np.abs(old))) or 1.0
        new = old + level * spread * edit.rng.standard_normal(old.shape)
        return changed(edit, place, new, f"noise of {level:.0%} on the weights")

    return change


def one_weight(edit: Editor, place: Place) -> dict[str, Any]:
    """Change one weight by three times the spread of all."""
    new = array_of(edit, place)
    where, spread = int(edit.rng.integers(new.size)), float(np.std(new)) or 1.0
    new.reshape(-1)[where] += 3 * spread
    return changed(edit, place, new, f"weight {where}")


def turned(edit: Editor, place: Place) -> dict[str, Any]:
    """Exchange the kernel's height and width."""
    old = array_of(edit, place)
    if old.ndim != 4 or old.shape[2] != old.shape[3] or old.shape[2] < 2:
        raise SkipPlace("the kernel is not square")
    return changed(edit, place, np.swapaxes(old, 2, 3), "height and width of the kernel")


def flipped(edit: Editor, place: Place) -> dict[str, Any]:
    """Turn the kernel round along all its axes: correlation for convolution."""
    old = array_of(edit, place)
    if "conv" not in native(place[0]) or max(old.shape[2:]) < 2:
        raise SkipPlace("no kernel of several taps")
    return changed(edit, place, np.flip(old, tuple(range(2, old.ndim))), "direction of the kernel")


def transposed(edit: Editor, place: Place) -> dict[str, Any]:
    """Transpose a square matrix."""
    old = array_of(edit, place)
    if old.ndim != 2 or old.shape[0] != old.shape[1]:
        raise SkipPlace("the matrix is not square")
    return changed(edit, place, old.T, "order of the matrix")


def channels_reversed(edit: Editor, place: Place) -> dict[str, Any]:
    """Reverse the order of the output channels."""
    old, name = array_of(edit, place), native(place[0])
    axis = 1 if "transpose" in name else 0 if "conv" in name or name == "linear" else None
    if axis is None or old.shape[axis] < 2:
        raise SkipPlace("no axis of output channels")
    return changed(edit, place, np.flip(old, axis), "output channels of the weights")


def bias_dropped(edit: Editor, place: Place) -> dict[str, Any]:
    """Set the bias to zero."""
    return changed(edit, place, np.zeros_like(array_of(edit, place)), "bias")


def bias_collision(edit: Editor, place: Place) -> dict[str, Any]:
    """Let an operator read the bias of another one, as when two constants get the same name."""
    node, value = place
    old = array_of(edit, place)
    for other, there in biased(edit):
        found = array_of(edit, (other, there))
        if other is not node and found.shape == old.shape and not np.array_equal(found, old):
            node.replace_input_with(value, there)
            return told([node], f"{node.name} reads the bias of {other.name}", shown(old), shown(found))
    raise SkipPlace("no other bias of that shape")


def fold_scaled(edit: Editor, place: Place) -> dict[str, Any]:
    """Scale each output channel as a BatchNorm does that was folded with 1e-3 for 1e-5 (variances 0.002 to 1)."""
    old, name = array_of(edit, place), native(place[0])
    if "conv" not in name:
        raise SkipPlace("no convolution")
    axis = 1 if "transpose" in name else 0
    variance = edit.rng.uniform(0.002, 1.0, old.shape[axis])
    ratio = np.sqrt((variance + 1e-5) / (variance + 1e-3))
    return changed(
        edit, place, old * np.expand_dims(ratio, [i for i in range(old.ndim) if i != axis]), "BatchNorm fold"
    )


def on_grid(kind: str) -> Change:
    """Round the weights to float16, or to 255 steps of one scale."""

    def change(edit: Editor, place: Place) -> dict[str, Any]:
        old = array_of(edit, place)
        if kind == "float16":
            return changed(edit, place, old.astype(np.float16).astype(old.dtype), "float16 weights")
        step = float(np.max(np.abs(old))) / 127 or 1.0
        return changed(edit, place, np.round(old / step) * step, "int8 weights")

    return change


def rolled(edit: Editor, place: Place) -> dict[str, Any]:
    """Move the rows of an embedding on by one, as when indices count from 1."""
    return changed(edit, place, np.roll(array_of(edit, place), 1, 0), "rows of the table")


def gates_swapped(edit: Editor, node: Any) -> dict[str, Any]:
    """Exchange the first two gates in weights, recurrent weights and biases."""
    count, letters = GATES[native(node)]
    for value in parts(edit, node):
        blocks = np.split(array_of(edit, (node, value)), count, axis=0)
        blocks[0], blocks[1] = blocks[1], blocks[0]
        edit.store(value, np.concatenate(blocks, axis=0))
    return told([node], f"gate order of {node.name}", letters, letters[1] + letters[0] + letters[2:])


def recurrent_bias_dropped(edit: Editor, node: Any) -> dict[str, Any]:
    """Set the recurrent bias of the first layer to zero."""
    found = [value for value in parts(edit, node) if array_of(edit, (node, value)).ndim == 1]
    if len(found) < 2:
        raise SkipPlace("it has no biases")
    return changed(edit, (node, found[1]), np.zeros_like(array_of(edit, (node, found[1]))), "recurrent bias")


def direction_copied(edit: Editor, node: Any) -> dict[str, Any]:
    """Give the backward direction the weights of the forward one."""
    known = parts(edit, node)
    each = 4 if edit.argument(node, "has_biases") else 2
    if not edit.argument(node, "bidirectional") or len(known) < 2 * each:
        raise SkipPlace("it has one direction")
    for there, back in zip(known[:each], known[each : 2 * each]):
        edit.store(back, array_of(edit, (node, there)))
    return told([node], f"weights of {node.name}", "two directions", "the forward one twice")


def exchanged(first: int, second: int, what: str) -> Change:
    """Exchange two parameters of a BatchNorm; what becomes a variance is made positive."""

    def change(edit: Editor, node: Any) -> dict[str, Any]:
        left, right = edit.operand(node, first), edit.operand(node, second)
        before, after = array_of(edit, (node, left)), array_of(edit, (node, right))
        if np.array_equal(before, after):
            raise SkipPlace("the two are equal")
        edit.store(left, after)
        edit.store(right, np.abs(before) if second == 4 else before)
        return told([node], f"{what} of {node.name} exchanged", shown(before), shown(after))

    return change


def recurrent(edit: Editor) -> list[Any]:
    """LSTM and GRU layers with stored weights."""
    return [node for node in edit.native(*GATES) if parts(edit, node)]


def norms(edit: Editor) -> list[Any]:
    """BatchNorms with stored parameters of their own."""
    found = edit.native("batch_norm")
    return [n for n in found if all(edit.stored(edit.operand(n, slot)) is not None for slot in (1, 2, 3, 4))]


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
    "bn_mean_variance": Fault(*WB, norms, exchanged(3, 4, "mean and variance")),
    "bn_scale_shift": Fault(*WB, norms, exchanged(1, 2, "scale and shift")),
    "embedding_off_by_one": Fault(*WB, places({"embedding": (0,)}, 4), rolled),
    "gate_order": Fault(*WB, recurrent, gates_swapped),
    "recurrent_bias": Fault(*WB, recurrent, recurrent_bias_dropped),
    "direction_copied": Fault(*WB, recurrent, direction_copied),
    "weight_int8": Fault(*QZ, weighted, on_grid("int8")),
    "weight_float16": Fault(*QZ, weighted, on_grid("float16")),
}
