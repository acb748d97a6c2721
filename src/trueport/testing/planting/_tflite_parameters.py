"""Faults in what a TFLite model has learned, and in the grids on which it is stored. Runs in a worker."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from trueport.testing.planting._tflite_edit import Editor, Fault, Node, SkipPlace, shown, told

Place = tuple[Node, int]
"""An operator and the slot of one of its constants."""
Change = Callable[[Editor, Place], dict[str, Any]]

KERNELS = {"CONV_2D": (1,), "DEPTHWISE_CONV_2D": (1,), "TRANSPOSE_CONV": (1,)}
DENSE = {"FULLY_CONNECTED": (1,), "BATCH_MATMUL": (0, 1)}
RECURRENT = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM": tuple(range(1, 9)),
    "BIDIRECTIONAL_SEQUENCE_LSTM": tuple(range(1, 9)),
    "UNIDIRECTIONAL_SEQUENCE_RNN": (1, 2),
    "SVDF": (1, 2),
}
TABLES = {"GATHER": (0,), "EMBEDDING_LOOKUP": (1,)}
WEIGHTS = {**KERNELS, **DENSE, **RECURRENT, **TABLES}
"""Operator -> slots of its weights."""
BIASES = {
    "CONV_2D": (2,),
    "DEPTHWISE_CONV_2D": (2,),
    "TRANSPOSE_CONV": (3,),
    "FULLY_CONNECTED": (2,),
    "ADD": (0, 1),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (12, 13, 14, 15),
    "UNIDIRECTIONAL_SEQUENCE_RNN": (3,),
}
SCALES = {"MUL": (0, 1), "PRELU": (1,)}
"""Operator -> slots of what it multiplies each channel by."""
SCALARS = dict.fromkeys(("ADD", "SUB", "MUL", "DIV", "POW", "MAXIMUM", "MINIMUM"), (0, 1))
CHANNELS = {"DEPTHWISE_CONV_2D": -1, "BATCH_MATMUL": -1}
"""Operator -> axis of the output channels in its weights; 0 for the others."""


def places(table: Mapping[str, tuple[int, ...]], least: int, most: float = np.inf) -> Callable[[Editor], list[Place]]:
    """Where an operator of the table, also in a loop, reads a real constant of `least` to `most` elements."""

    def find(edit: Editor) -> list[Place]:
        found = []
        for node in edit.nodes(*table, loops=True):
            for slot in table[node.code] if edit.computed(node) else ():
                array = edit.floats(node, slot, least)
                if array is not None and array.size <= most:
                    found.append((node, slot))
        return found

    return find


def on_grid_only(find: Callable[[Editor], list[Place]]) -> Callable[[Editor], list[Place]]:
    """Those places whose constant is quantised."""

    def kept(edit: Editor) -> list[Place]:
        return [(node, slot) for node, slot in find(edit) if edit.quantised(_tensor(edit, node, slot))]

    return kept


def _tensor(edit: Editor, node: Node, slot: int) -> Any:
    tensor = edit.tensor(node, slot)
    assert tensor is not None
    return tensor


def changed(edit: Editor, place: Place, new: np.ndarray, what: str) -> dict[str, Any]:
    """Store the new constant; one that equals the old one on its grid is no fault."""
    node, slot = place
    old = edit.array(node, slot)
    assert old is not None
    edit.set_operand(node, slot, np.asarray(new))
    kept = edit.array(node, slot)
    assert kept is not None
    if np.array_equal(old, kept):
        raise SkipPlace("the constant stays as it is")
    first = int(np.flatnonzero(old.reshape(-1) != kept.reshape(-1))[0])
    return told(edit, [node], what, shown(old, first), shown(kept, first))


def noise(level: float) -> Change:
    """Add noise of `level` times the spread of the constant."""

    def change(edit: Editor, place: Place) -> dict[str, Any]:
        old = edit.floats(*place)
        spread = float(np.std(old)) or float(np.max(np.abs(old))) or 1.0
        return changed(edit, place, old + level * spread * edit.rng.standard_normal(old.shape), f"noise of {level:.0%}")

    return change


def one_weight(edit: Editor, place: Place) -> dict[str, Any]:
    """Change one weight by three times the spread of all, towards the middle so that no grid ends it."""
    old = edit.floats(*place)
    new = old.copy()
    where = int(edit.rng.integers(old.size))
    step = 3 * (float(np.std(old)) or 1.0)
    new.reshape(-1)[where] += -step if new.reshape(-1)[where] > np.mean(old) else step
    return changed(edit, place, new, f"weight {where}")


def turned(edit: Editor, place: Place) -> dict[str, Any]:
    """Exchange the kernel's height and width."""
    old = edit.floats(*place)
    if old.shape[1] != old.shape[2] or old.shape[1] < 2:
        raise SkipPlace("the kernel is not square")
    return changed(edit, place, np.swapaxes(old, 1, 2), "height and width of the kernel exchanged")


def flipped(edit: Editor, place: Place) -> dict[str, Any]:
    """Turn the kernel round in both directions: convolution for correlation."""
    old = edit.floats(*place)
    if max(old.shape[1:3]) < 2:
        raise SkipPlace("the kernel has one tap")
    return changed(edit, place, np.flip(old, (1, 2)), "kernel flipped")


def transposed(edit: Editor, place: Place) -> dict[str, Any]:
    """Transpose a square matrix."""
    old = edit.floats(*place)
    if old.ndim != 2 or old.shape[0] != old.shape[1]:
        raise SkipPlace("the matrix is not square")
    return changed(edit, place, old.T, "matrix transposed")


def channels_reversed(edit: Editor, place: Place) -> dict[str, Any]:
    """Reverse the order of the output channels."""
    node, _ = place
    old = edit.floats(*place)
    axis = CHANNELS.get(node.code, 0)
    if old.ndim < 2 or old.shape[axis] < 2:
        raise SkipPlace("one output channel")
    return changed(edit, place, np.flip(old, axis), "output channels of the weights reversed")


def bias_dropped(edit: Editor, place: Place) -> dict[str, Any]:
    """Set the bias to zero."""
    return changed(edit, place, np.zeros_like(edit.floats(*place)), "bias dropped")


def bias_collision(edit: Editor, place: Place) -> dict[str, Any]:
    """Let an operator read the bias of another one, as when two constants get the same name."""
    node, slot = place
    old = edit.floats(node, slot)
    for other, there in biased(edit):
        found = edit.floats(other, there)
        if other.item is not node.item and found.shape == old.shape and not np.allclose(found, old):
            return changed(edit, place, found, f"bias of {edit.name(other)} for the bias")
    raise SkipPlace("no other bias of that shape")


def fold_scaled(edit: Editor, place: Place) -> dict[str, Any]:
    """Scale each output channel as a BatchNorm does that was folded with 1e-3 for 1e-5 (variances 0.002 to 1)."""
    node, _ = place
    old = edit.floats(*place)
    axis = CHANNELS.get(node.code, 0) % old.ndim
    variance = edit.rng.uniform(0.002, 1.0, old.shape[axis])
    ratio = np.sqrt((variance + 1e-5) / (variance + 1e-3))
    spread = [size if number == axis else 1 for number, size in enumerate(old.shape)]
    return changed(edit, place, old * ratio.reshape(spread), "wrong BN fold in the weights")


def rounded(kind: str) -> Change:
    """Round float weights to float16, or to 255 steps of one scale."""

    def change(edit: Editor, place: Place) -> dict[str, Any]:
        old = edit.floats(*place)
        if edit.quantised(_tensor(edit, *place)):
            raise SkipPlace("the weights lie on a grid already")
        if kind == "float16":
            return changed(edit, place, old.astype(np.float16), "rounding to float16 of the weights")
        step = float(np.max(np.abs(old))) / 127 or 1.0
        return changed(edit, place, np.round(old / step) * step, "rounding to int8 of the weights")

    return change


def scalar_changed(edit: Editor, place: Place) -> dict[str, Any]:
    """Another number: half as much again."""
    old = edit.floats(*place)
    return changed(edit, place, old * 1.5 + (0.0 if np.any(old) else 0.1), "scalar constant")


def small_constant(edit: Editor, place: Place) -> dict[str, Any]:
    """An epsilon that is written out as an addition: 1e-3 where it is smaller, else 1e-5."""
    old = edit.floats(*place)
    return changed(edit, place, np.full_like(old, 1e-3 if float(old.ravel()[0]) < 1e-3 else 1e-5), "epsilon")


def small_constants(edit: Editor) -> list[Place]:
    """Additions of a scalar between 0 and 1e-2."""
    return [place for place in places({"ADD": (0, 1)}, 1, 1)(edit) if 0 < float(edit.floats(*place).ravel()[0]) <= 1e-2]


def rolled(edit: Editor, place: Place) -> dict[str, Any]:
    """Give every index the row after its own."""
    return changed(edit, place, np.roll(edit.floats(*place), -1, axis=0), "embedding off by one")


def gates_exchanged(edit: Editor, place: Any) -> dict[str, Any]:
    """Exchange the input and the forget gate of an LSTM: weights, recurrent weights and biases."""
    for first, second in ((1, 2), (5, 6), (12, 13)):
        left, right = edit.array(place, first), edit.array(place, second)
        if left is None or right is None:
            raise SkipPlace("the gates are not constant")
        edit.set_operand(place, first, right)
        edit.set_operand(place, second, left)
    return told(edit, [place], "gate order", "input, forget", "forget, input")


def blocks_exchanged(edit: Editor, place: Place) -> dict[str, Any]:
    """Exchange the first two of four (LSTM) or three (GRU) blocks of the weights in a loop's body."""
    old = edit.floats(*place)
    count = next((count for count in (4, 3) if old.ndim == 2 and old.shape[0] % count == 0), 0)
    if not count:
        raise SkipPlace("no gates in the weights")
    parts = np.split(old, count)
    return changed(edit, place, np.concatenate([parts[1], parts[0], *parts[2:]]), "gate order")


def in_loops(edit: Editor) -> list[Place]:
    """Dense layers in the bodies of loops."""
    return [place for place in weighted(edit) if place[0].item is not place[0].owner]


def scale_edited(factor: float, what: str) -> Change:
    """Multiply the scale of a quantised constant: every value that it stands for."""

    def change(edit: Editor, place: Place) -> dict[str, Any]:
        node, slot = place
        made = copy.copy(_tensor(edit, node, slot))
        made.quantization = copy.copy(made.quantization)
        old = np.asarray(made.quantization.scale, np.float32)
        made.quantization.scale = old * np.float32(factor)
        edit.rewire(node, slot, edit.add_tensor(node.graph, made))
        return told(edit, [node], what, shown(old), shown(old * factor))

    return change


def activations(edit: Editor) -> list[Any]:
    """Operators that compute a quantised tensor out of others."""
    moving = (
        "QUANTIZE",
        "DEQUANTIZE",
        "RESHAPE",
        "PAD",
        "TRANSPOSE",
        "CONCATENATION",
        "MAX_POOL_2D",
        "SOFTMAX",
        "LOGISTIC",
    )
    return [
        node
        for node in edit.nodes()
        if node.code not in moving and len(node.item.outputs) and edit.quantised(edit.result(node))
        if edit.computed(node) and not edit.is_output(node)
    ]


def grid_edited(scale: float, steps: int) -> Callable[[Editor, Node], dict[str, Any]]:
    """Another grid for a computed tensor, so that values are clipped."""

    def change(edit: Editor, place: Node) -> dict[str, Any]:
        tensor = edit.result(place)
        tensor.quantization = copy.copy(tensor.quantization)
        grid = tensor.quantization
        old = (float(grid.scale[0]), int(grid.zeroPoint[0]))
        limits = np.iinfo(edit.dtype(tensor))
        zero = int(
            np.clip(old[1] + (steps if old[1] < sum((limits.min, limits.max)) / 2 else -steps), limits.min, limits.max)
        )
        grid.scale = np.array([old[0] * scale], np.float32)
        grid.zeroPoint = np.array([zero if steps else old[1]], np.int64)
        nodes = [place, *edit.readers(place.graph, int(place.item.outputs[0]))]
        new = (float(grid.scale[0]), int(grid.zeroPoint[0]))
        return told(edit, nodes, "scale and zero point of the result", list(old), list(new))

    return change


weighted = places(WEIGHTS, 4)
kernels = places(KERNELS, 4)
biased = places(BIASES, 2)
lstms = lambda edit: [node for node in edit.nodes("UNIDIRECTIONAL_SEQUENCE_LSTM") if edit.computed(node)]  # noqa: E731

WB, QZ = ("WB", "parameters"), ("QZ", "precision")
FAULTS = {
    "weight_noise_1": Fault(*WB, weighted, noise(0.01)),
    "weight_noise_10": Fault(*WB, weighted, noise(0.1)),
    "weight_noise_30": Fault(*WB, weighted, noise(0.3)),
    "one_weight": Fault(*WB, weighted, one_weight),
    "kernel_transposed": Fault(*WB, kernels, turned, ("structure",)),
    "kernel_flipped": Fault(*WB, kernels, flipped),
    "matrix_transposed": Fault(*WB, places(DENSE, 4), transposed),
    "channels_reversed": Fault(*WB, weighted, channels_reversed),
    "bias_noise": Fault(*WB, biased, noise(0.3)),
    "bias_dropped": Fault(*WB, biased, bias_dropped, ("structure",)),
    "bias_collision": Fault(*WB, biased, bias_collision),
    "scale_noise": Fault(*WB, places(SCALES, 2), noise(0.3)),
    "bn_fold_scaled": Fault(*WB, kernels, fold_scaled),
    "scalar_constant": Fault(*WB, places(SCALARS, 1, 1), scalar_changed, ("hyperparameters",)),
    "epsilon_constant": Fault("LH", "hyperparameters", small_constants, small_constant, ("parameters",)),
    "embedding_off_by_one": Fault(*WB, places(TABLES, 4), rolled),
    "gate_order": Fault(*WB, lstms, gates_exchanged),
    "loop_gate_order": Fault(*WB, in_loops, blocks_exchanged),
    "weight_int8": Fault(*QZ, weighted, rounded("int8")),
    "weight_float16": Fault(*QZ, weighted, rounded("float16")),
    "weight_scale": Fault(*QZ, on_grid_only(weighted), scale_edited(1.25, "scale of the weights"), ("parameters",)),
    "activation_scale": Fault(*QZ, activations, grid_edited(0.5, 0), ("parameters", "hyperparameters")),
    "activation_zero_point": Fault(*QZ, activations, grid_edited(1.0, 64), ("parameters", "hyperparameters")),
}
