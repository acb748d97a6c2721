"""Faults in what a Keras layer has learned: weights, biases, statistics, and the grid they lie on. Runs in a worker."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from trueport.testing.planting._keras_edit import Editor, Entry, Fault, SkipPlace, shown, told

Place = tuple[Any, str]
"""A node and the name of one of its weights."""

WEIGHTS = ("kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings")
GATES = {"LSTM": (4, "ifco"), "GRU": (3, "zrh")}
"""Recurrent layer -> number of gate blocks in its weights, and their letters in order."""


def role(name: str) -> str:
    """What a weight is to its layer: the last part of its name, without a number."""
    return name.rsplit("/", 1)[-1].rstrip("0123456789").rstrip("_")


def named(*roles: str, least: int = 2) -> Callable[[Editor], list[Place]]:
    """Weights of these roles with at least `least` elements."""

    def find(edit: Editor) -> list[Place]:
        return [(n, w) for n, w in edit.weights() if role(w) in roles and edit.arrays[w].size >= least]

    return find


weighted = named(*WEIGHTS, least=4)
biased = named("bias")
scaled = named("gamma", "beta", "alpha")


def changed(edit: Editor, place: Place, new: np.ndarray, what: str) -> dict[str, Any]:
    """Store the new array; one that equals the old one is no fault."""
    name = place[1]
    old = edit.arrays[name]
    new = np.asarray(new, old.dtype)
    if np.array_equal(old, new):
        raise SkipPlace("the weights stay as they are")
    edit.arrays[name] = new
    return told(readers(edit, name), f"{what} ({name})", shown(old), shown(new))


def readers(edit: Editor, name: str) -> list[str]:
    """The nodes that use a weight: a shared layer is called several times, but its first call alone reads it in `graph`."""
    first = [node["name"] for node in edit.graph["nodes"] if name in node["inputs"]]
    return [node["name"] for node in edit.graph["nodes"] if node["name"].split("@")[0] in first]


def noise(level: float) -> Callable[[Editor, Place], dict[str, Any]]:
    """Add noise of `level` times the spread of the weights."""

    def change(edit: Editor, place: Place) -> dict[str, Any]:
        old = edit.arrays[place[1]]
        spread = float(np.std(old)) or float(np.max(np.abs(old))) or 1.0
        return changed(edit, place, old + level * spread * edit.rng.standard_normal(old.shape), f"noise of {level:.0%}")

    return change


def one_weight(edit: Editor, place: Place) -> dict[str, Any]:
    """Change one weight by three times the spread of all."""
    new = edit.arrays[place[1]].copy()
    where = int(edit.rng.integers(new.size))
    new.reshape(-1)[where] += 3 * (float(np.std(new)) or 1.0)
    return changed(edit, place, new, f"weight {where} changed")


def spatial(place: Place, old: np.ndarray) -> int:
    """Number of spatial axes of a convolution's kernel, which come first. Raises SkipPlace for any other weight."""
    if "Conv" not in place[0]["native_op"] or old.ndim < 3:
        raise SkipPlace("no convolution")
    return old.ndim - 2


def turned(edit: Editor, place: Place) -> dict[str, Any]:
    """Exchange the kernel's height and width."""
    old = edit.arrays[place[1]]
    if spatial(place, old) != 2 or old.shape[0] != old.shape[1] or old.shape[0] < 2:
        raise SkipPlace("the kernel is not square")
    return changed(edit, place, np.swapaxes(old, 0, 1), "height and width of the kernel exchanged")


def flipped(edit: Editor, place: Place) -> dict[str, Any]:
    """Turn the kernel round along all its spatial axes: correlation for convolution."""
    old = edit.arrays[place[1]]
    axes = tuple(range(spatial(place, old)))
    if max(old.shape[axis] for axis in axes) < 2:
        raise SkipPlace("the kernel has one tap")
    return changed(edit, place, np.flip(old, axes), "kernel flipped")


def transposed(edit: Editor, place: Place) -> dict[str, Any]:
    """Transpose a square matrix."""
    old = edit.arrays[place[1]]
    if old.ndim != 2 or old.shape[0] != old.shape[1]:
        raise SkipPlace("the matrix is not square")
    return changed(edit, place, old.T, "matrix transposed")


def output_axis(place: Place, old: np.ndarray) -> int:
    """The axis of output channels of a kernel."""
    if old.ndim < 2 or role(place[1]) == "embeddings":
        raise SkipPlace("no axis of output channels")
    turned_round = "Transpose" in place[0]["native_op"] or role(place[1]) == "depthwise_kernel"
    return old.ndim - 2 if turned_round else old.ndim - 1


def channels_reversed(edit: Editor, place: Place) -> dict[str, Any]:
    """Reverse the order of the output channels."""
    old = edit.arrays[place[1]]
    return changed(edit, place, np.flip(old, output_axis(place, old)), "output channels of the weights reversed")


def fold_scaled(edit: Editor, place: Place) -> dict[str, Any]:
    """Scale each output channel as a BatchNorm does that was folded with 1e-3 for 1e-5 (variances 0.002 to 1)."""
    old = edit.arrays[place[1]]
    spatial(place, old)
    axis = output_axis(place, old)
    variance = edit.rng.uniform(0.002, 1.0, old.shape[axis])
    ratio = np.sqrt((variance + 1e-5) / (variance + 1e-3))
    return changed(edit, place, old * np.expand_dims(ratio, [i for i in range(old.ndim) if i != axis]), "wrong BN fold")


def zeroed(edit: Editor, place: Place) -> dict[str, Any]:
    """Set the bias to zero."""
    return changed(edit, place, np.zeros_like(edit.arrays[place[1]]), "bias dropped")


def bias_collision(edit: Editor, place: Place) -> dict[str, Any]:
    """Give a layer the bias of another one, as when two constants get the same name."""
    old = edit.arrays[place[1]]
    for node, name in biased(edit):
        found = edit.arrays[name]
        if name != place[1] and found.shape == old.shape and not np.array_equal(found, old):
            return changed(edit, place, found, f"bias of {node['name']}")
    raise SkipPlace("no other bias of that shape")


def on_grid(kind: str) -> Callable[[Editor, Place], dict[str, Any]]:
    """Round the weights to float16, or to 255 steps of one scale."""

    def change(edit: Editor, place: Place) -> dict[str, Any]:
        old = edit.arrays[place[1]]
        if kind == "float16":
            return changed(edit, place, old.astype(np.float16).astype(old.dtype), "weights rounded to float16")
        step = float(np.max(np.abs(old))) / 127 or 1.0
        return changed(edit, place, np.round(old / step) * step, "weights rounded to int8")

    return change


def rolled(edit: Editor, place: Place) -> dict[str, Any]:
    """Move the rows of an embedding on by one, as when indices count from 1."""
    return changed(edit, place, np.roll(edit.arrays[place[1]], 1, 0), "table off by one")


def norms(edit: Editor) -> list[Any]:
    """BatchNormalization nodes."""
    return [node for node in edit.graph["nodes"] if node["op"] == "BatchNormalization"]


def exchanged(first: str, second: str, what: str) -> Callable[[Editor, Any], dict[str, Any]]:
    """Exchange two parameters of a BatchNormalization; what becomes a variance is made positive."""

    def change(edit: Editor, node: Any) -> dict[str, Any]:
        names = {role(name): name for name in node["inputs"] if name in edit.arrays}
        if first not in names or second not in names:
            raise SkipPlace(f"the layer has no {first} or no {second}")
        left, right = edit.arrays[names[first]], edit.arrays[names[second]]
        if np.array_equal(left, right):
            raise SkipPlace("the two are equal")
        edit.arrays[names[first]] = right
        edit.arrays[names[second]] = np.abs(left) if second == "moving_variance" else left
        return told(readers(edit, names[first]), f"{what} of {node['name']} exchanged", shown(left), shown(right))

    return change


def recurrent(edit: Editor) -> list[Any]:
    """LSTM and GRU nodes."""
    return [node for node in edit.graph["nodes"] if node["op"] in GATES]


def gates_swapped(edit: Editor, node: Any) -> dict[str, Any]:
    """Exchange the first two gates in weights, recurrent weights and biases."""
    count, letters = GATES[node["op"]]
    own = [name for name in node["inputs"] if name in edit.arrays]
    for name in own:
        parts = np.split(edit.arrays[name], count, axis=-1)
        parts[0], parts[1] = parts[1], parts[0]
        edit.arrays[name] = np.concatenate(parts, axis=-1)
    if not own:
        raise SkipPlace("it shares the weights of another layer")
    wrong = letters[1] + letters[0] + letters[2:]
    return told([node["name"]], f"gate order of {node['name']}", letters, wrong)


def direction_copied(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Give the backward direction the weights of the forward one."""
    backward = [node for node in edit.graph["nodes"] if node["name"] in entry.nodes and "/backward_" in node["name"]]
    names = [name for node in backward for name in node["inputs"] if name in edit.arrays]
    for name in names:
        twin = "forward_".join(name.rsplit("backward_", 1))
        if twin not in edit.arrays:
            raise SkipPlace("the two directions are not named as Keras names them")
        edit.arrays[name] = edit.arrays[twin]
    if not names:
        raise SkipPlace("it has no backward weights")
    return told(
        [node["name"] for node in backward], f"weights of {entry.path}", "two directions", "the forward one twice"
    )


def bidirectional(edit: Editor) -> list[Entry]:
    """Layers that run in both directions."""
    return edit.entries("Bidirectional")


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
    "bias_dropped": Fault(*WB, biased, zeroed, ("structure",)),
    "bias_collision": Fault(*WB, biased, bias_collision),
    "scale_noise": Fault(*WB, scaled, noise(0.3)),
    "bn_fold_scaled": Fault(*WB, weighted, fold_scaled),
    "bn_mean_variance": Fault(*WB, norms, exchanged("moving_mean", "moving_variance", "mean and variance")),
    "bn_scale_shift": Fault(*WB, norms, exchanged("gamma", "beta", "scale and shift")),
    "embedding_off_by_one": Fault(*WB, named("embeddings"), rolled),
    "gate_order": Fault(*WB, recurrent, gates_swapped),
    "direction_copied": Fault(*WB, bidirectional, direction_copied),
    "weight_int8": Fault(*QZ, weighted, on_grid("int8")),
    "weight_float16": Fault(*QZ, weighted, on_grid("float16")),
}
