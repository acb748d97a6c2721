"""Faults in how Keras layers are set and wired: hyperparameters, axes, operators, inputs. Runs in a worker."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from trueport.testing.planting._keras_edit import Editor, Entry, Fault, SkipPlace, told
from trueport.testing.planting._keras_parameters import GATES, role

CONVOLUTIONS = ("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv2D")
TRANSPOSED = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
POOLS = ("MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "AveragePooling1D", "AveragePooling2D", "AveragePooling3D")
TWINS = {
    **{f"MaxPooling{n}D": f"AveragePooling{n}D" for n in (1, 2, 3)},
    **{f"AveragePooling{n}D": f"MaxPooling{n}D" for n in (1, 2, 3)},
    **{f"GlobalMaxPooling{n}D": f"GlobalAveragePooling{n}D" for n in (1, 2, 3)},
    **{f"GlobalAveragePooling{n}D": f"GlobalMaxPooling{n}D" for n in (1, 2, 3)},
}
NORMS = ("BatchNormalization", "LayerNormalization", "GroupNormalization", "UnitNormalization")
RECURRENT = ("LSTM", "GRU", "SimpleRNN")
ACTIVATIONS = ("Activation", "ReLU", "LeakyReLU", "ELU")
"""Layers that are nothing but an activation without weights."""
OTHERS = {"relu": "relu6", "relu6": "relu", "tanh": "sigmoid", "sigmoid": "hard_sigmoid", "hard_sigmoid": "sigmoid",
          "gelu": "silu", "silu": "relu", "swish": "relu", "elu": "relu", "selu": "elu", "softmax": "sigmoid",
          "leaky_relu": "relu", "softplus": "relu"}  # fmt: skip
"""Activation -> one that a converter might put in its place."""

Change = Callable[[Editor, Entry], dict[str, Any]]


def at(*kinds: str) -> Callable[[Editor], list[Entry]]:
    """Layers of these classes."""
    return lambda edit: edit.entries(*kinds)


def altered(entry: Entry, key: str, new: Any) -> dict[str, Any]:
    """Set a hyperparameter; one that stays is no fault."""
    old = entry.config.get(key)
    if old == new:
        raise SkipPlace(f"{key} stays as it is")
    entry.config[key] = new
    return told(entry.nodes, f"{key} of {entry.path}", old, new)


def other(key: str, *pair: Any) -> Change:
    """Exchange two values of a hyperparameter; any other value is no place."""

    def change(edit: Editor, entry: Entry) -> dict[str, Any]:
        old = entry.config.get(key)
        if old not in pair:
            raise SkipPlace(f"{key} is {old}")
        return altered(entry, key, pair[1] if old == pair[0] else pair[0])

    return change


def times(factor: float, *keys: str) -> Change:
    """Multiply the first of these hyperparameters that is a number other than zero."""

    def change(edit: Editor, entry: Entry) -> dict[str, Any]:
        for key in keys:
            old = entry.config.get(key)
            if isinstance(old, (int, float)) and not isinstance(old, bool) and old:
                return altered(entry, key, old * factor)
        raise SkipPlace(f"it has no {' or '.join(keys)}")

    return change


def epsilon(edit: Editor, entry: Entry) -> dict[str, Any]:
    """The other framework's default: 1e-3 where it is smaller, else 1e-5."""
    old = float(entry.config.get("epsilon", 1e-3))
    return altered(entry, "epsilon", 1e-3 if old < 5e-4 else 1e-5)


def strided(edit: Editor, entry: Entry) -> dict[str, Any]:
    """A stride of 1 for 2, or of 2 for 1; only where the sizes behind it do not matter does the model still build."""
    old = entry.config["strides"]
    new = [1 if size > 1 else 2 for size in old] if isinstance(old, list) else (1 if old > 1 else 2)
    return altered(entry, "strides", new)


def dilated(edit: Editor, entry: Entry) -> dict[str, Any]:
    """A dilation of 2 for 1, or of 1 for more."""
    old = entry.config["dilation_rate"]
    new = [1 if size > 1 else 2 for size in old] if isinstance(old, list) else (1 if old > 1 else 2)
    return altered(entry, "dilation_rate", new)


def pads_shifted(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Move a padding from the end of each axis to its begin, or one row of an even one."""
    old = entry.config["padding"]
    pairs = [list(old)] if entry.kind.endswith("1D") else [list(pair) for pair in old]
    moved = [[end, begin] if begin != end else [begin + 1, end - 1] if end else [begin, end] for begin, end in pairs]
    return altered(entry, "padding", moved[0] if entry.kind.endswith("1D") else moved)


def axis_changed(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Another axis: the one before the last for the last, the last for any other."""
    old = entry.config["axis"]
    single = old[0] if isinstance(old, list) and len(old) == 1 else old
    if not isinstance(single, int):
        raise SkipPlace("it has several axes")
    rank = _rank(edit, entry)
    new = rank - 2 if single in (-1, rank - 1) else rank - 1
    if new < 1:
        raise SkipPlace("it has no other axis than that of the batch")
    return altered(entry, "axis", [new] if isinstance(old, list) else new)


def _rank(edit: Editor, entry: Entry) -> int:
    shape = entry.whole.get("build_config", {}).get("input_shape")
    while shape and isinstance(shape[0], list):
        shape = shape[0]
    if not shape:
        raise SkipPlace("its rank is not known")
    return len(shape)


def permuted(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Exchange the last two axes of a permutation."""
    dims = list(entry.config["dims"])
    if len(dims) < 2:
        raise SkipPlace("it moves one axis")
    return altered(entry, "dims", [*dims[:-2], dims[-1], dims[-2]])


def activation(change: Callable[[str], str | None]) -> Change:
    """Change the activation that a layer has built in."""

    def apply(edit: Editor, entry: Entry) -> dict[str, Any]:
        old = entry.config.get("activation")
        new = change(old) if isinstance(old, str) else None
        if new is None:
            raise SkipPlace("it has no such activation")
        return altered(entry, "activation", new)

    return apply


def active(edit: Editor) -> list[Entry]:
    """Layers with an activation, built in or of their own; recurrent ones have theirs inside the loop."""
    built_in = [entry for entry in edit.entries() if isinstance(entry.config.get("activation"), str)]
    plain = [entry for entry in built_in if entry.kind not in RECURRENT and entry.config["activation"] != "linear"]
    return plain + edit.entries("ReLU", "LeakyReLU", "ELU")


def linear(edit: Editor) -> list[Entry]:
    """Layers whose built-in activation is none."""
    return [
        entry for entry in edit.entries() if entry.config.get("activation") == "linear" and entry.kind != "Activation"
    ]


def replaced(entry: Entry, kind: str, config: dict[str, Any]) -> None:
    """Put another layer class at a layer's place, under its name; what its calls said beside tensors (a mask) is dropped."""
    for call in entry.whole.get("inbound_nodes") or []:
        if isinstance(call, dict):
            call["kwargs"] = {}
    kept = {key: entry.config[key] for key in ("name", "trainable", "dtype") if key in entry.config}
    entry.whole["class_name"] = kind
    entry.whole["config"] = {**kept, **config}


def activation_missing(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Take an activation away."""
    if "activation" in entry.config and entry.kind != "Activation":
        return altered(entry, "activation", "linear")
    return removed(edit, entry)


def activation_changed(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Put another activation in an activation's place."""
    if "activation" in entry.config:
        return activation(OTHERS.get)(edit, entry)
    old, new = entry.kind, "tanh" if entry.kind == "ReLU" else "relu"
    replaced(entry, "Activation", {"activation": new})
    return told(entry.nodes, f"activation {entry.path}", old, new)


def clip_dropped(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Take the ceiling of a ReLU away."""
    if entry.config.get("max_value") is None:
        raise SkipPlace("it has no ceiling")
    return altered(entry, "max_value", None)


def removed(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Let a layer pass its input on; as such a layer computes nothing, the layers around it are the truth."""
    old = entry.config.get("activation", entry.kind) if entry.kind == "Activation" else entry.kind
    replaced(entry, "Activation", {"activation": "linear"})
    return told(edit.around(entry), f"{old} {entry.path} left out", old, None)


def other_pool(edit: Editor, entry: Entry) -> dict[str, Any]:
    """The mean for the maximum, or the other way round."""
    old, new = entry.kind, TWINS[entry.kind]
    entry.whole["class_name"] = new
    return told(entry.nodes, f"pool {entry.path}", old, new)


def operands(edit: Editor, entry: Entry) -> list[Any]:
    """The list of tensors that a layer with several inputs reads, as it stands in the configuration."""
    inbound = entry.whole.get("inbound_nodes") or []
    if len(inbound) != 1:
        raise SkipPlace("it is called several times")
    reads = inbound[0] if edit.legacy else (inbound[0].get("args") or [None])[0]
    if not isinstance(reads, list) or len(reads) < 2 or reads[0] == reads[1]:
        raise SkipPlace("it does not read two tensors")
    return reads


def operands_reversed(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Read the operands in the opposite order."""
    operands(edit, entry).reverse()
    return told(entry.nodes, f"order of the operands of {entry.path}", "as they were", "reversed")


def operand_repeated(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Read one operand twice and another one not at all."""
    reads = operands(edit, entry)
    reads[-1] = reads[0]
    return told(entry.nodes, f"operands of {entry.path}", "each once", "the first twice, the last not at all")


def reset_placed(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Move a GRU's reset gate before or behind the recurrent product; the biases are added up or split to fit."""
    after = bool(entry.config.get("reset_after", False))
    held = [node for node in edit.graph["nodes"] if node["name"] in entry.nodes]
    for name in [name for node in held for name in node["inputs"] if name in edit.arrays and role(name) == "bias"]:
        bias = edit.arrays[name]
        edit.arrays[name] = bias[0] + bias[1] if after else np.stack([bias, np.zeros_like(bias)])
    return altered(entry, "reset_after", not after)


def groups(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Normalise over groups of another size."""
    old = int(entry.config["groups"])
    return altered(entry, "groups", old // 2 if old > 1 else 2)


def flattened(edit: Editor, entry: Entry) -> dict[str, Any]:
    """Flatten channels first."""
    return altered(entry, "data_format", "channels_first")


def floats(edit: Editor) -> list[dict[str, Any]]:
    """Inputs of float32."""
    return [dict(spec) for spec in edit.signature["inputs"] if spec["dtype"] == "float32"]


def pictures(edit: Editor) -> list[dict[str, Any]]:
    """Inputs with height, width and 3 channels."""
    return [spec for spec in floats(edit) if len(spec["shape"] or []) == 4 and spec["shape"][3] == 3]


def front(
    edit: Editor,
    spec: dict[str, Any],
    kind: str,
    config: dict[str, Any],
    what: str,
    source: Any,
    target: Any,
    *arrays: np.ndarray,
) -> dict[str, Any]:
    """Change an input before anything reads it: the new layer and the first readers are the truth."""
    nodes = edit.put_front(spec["name"], kind, config, *arrays)
    return told(nodes, f"{what} of {spec['name']}", source, target)


def input_scale(edit: Editor, spec: dict[str, Any]) -> dict[str, Any]:
    """Divide by 255 once more."""
    return front(edit, spec, "Rescaling", {"scale": 1 / 255, "offset": 0.0}, "scale", 1, 1 / 255)


def input_mean(edit: Editor, spec: dict[str, Any]) -> dict[str, Any]:
    """Bring [0, 1] to [-1, 1] once more."""
    return front(edit, spec, "Rescaling", {"scale": 2.0, "offset": -1.0}, "range", [0, 1], [-1, 1])


def input_turned(edit: Editor, spec: dict[str, Any]) -> dict[str, Any]:
    """Exchange height and width."""
    if spec["shape"][1] != spec["shape"][2]:
        raise SkipPlace("the picture is not square")
    return front(edit, spec, "Permute", {"dims": [2, 1, 3]}, "axes", [1, 2, 3], [2, 1, 3])


def input_bgr(edit: Editor, spec: dict[str, Any]) -> dict[str, Any]:
    """Read the channels in the opposite order (a convolution with a permutation for its kernel)."""
    config = {"filters": 3, "kernel_size": [1, 1], "use_bias": False}
    kernel = np.eye(3, dtype=np.float32)[::-1].reshape(1, 1, 3, 3)
    return front(edit, spec, "Conv2D", config, "channels", "RGB", "BGR", kernel)


LH, TSS, CG = ("LH", "hyperparameters"), ("TSS", "hyperparameters"), ("CG", "structure")
PP = ("PP", "inputs")
FAULTS = {
    "stride": Fault(*LH, at(*CONVOLUTIONS, *POOLS), strided),
    "padding": Fault(*LH, at(*CONVOLUTIONS, *TRANSPOSED, *POOLS), other("padding", "same", "valid")),
    "pads_shifted": Fault(*LH, at("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"), pads_shifted),
    "dilation": Fault(*LH, at(*CONVOLUTIONS), dilated),
    "bn_epsilon": Fault(*LH, at("BatchNormalization"), epsilon),
    "norm_epsilon": Fault(*LH, at("LayerNormalization", "GroupNormalization"), epsilon),
    "norm_groups": Fault(*LH, at("GroupNormalization"), groups),
    "leaky_alpha": Fault(*LH, at("LeakyReLU"), times(0.1, "negative_slope", "alpha")),
    "elu_alpha": Fault(*LH, at("ELU"), times(0.5, "alpha")),
    "clip_dropped": Fault(*LH, at("ReLU"), clip_dropped, ("structure",)),
    "clip_bound": Fault(*LH, at("ReLU"), times(0.25, "max_value")),
    "resize_mode": Fault(*LH, at("UpSampling2D", "Resizing"), other("interpolation", "nearest", "bilinear")),
    "recurrent_direction": Fault(*LH, at(*RECURRENT), other("go_backwards", False, True)),
    "recurrent_activation": Fault(*LH, at(*GATES), other("recurrent_activation", "sigmoid", "hard_sigmoid")),
    "cell_activation": Fault(*LH, at(*RECURRENT), other("activation", "tanh", "relu")),
    "linear_before_reset": Fault(*LH, at("GRU"), reset_placed),
    "rescale": Fault(*LH, at("Rescaling"), times(1.1, "scale"), ("parameters",)),
    "softmax_axis": Fault(*TSS, at("Softmax"), axis_changed),
    "concat_axis": Fault(*TSS, at("Concatenate"), axis_changed),
    "norm_axis": Fault(*TSS, at("LayerNormalization"), axis_changed),
    "transpose_perm": Fault(*TSS, at("Permute"), permuted, ("structure",)),
    "flatten_order": Fault(*TSS, at("Flatten"), flattened, ("structure",)),
    "pool_kind": Fault(*CG, at(*TWINS), other_pool, ("hyperparameters",)),
    "activation_missing": Fault(*CG, active, activation_missing, ("hyperparameters",)),
    "activation_changed": Fault(*CG, active, activation_changed, ("hyperparameters",)),
    "activation_extra": Fault(*CG, linear, activation(lambda old: "relu"), ("hyperparameters",)),
    "operator_missing": Fault(*CG, at(*NORMS), removed),
    "concat_order": Fault(*CG, at("Concatenate"), operands_reversed),
    "operands_swapped": Fault(*CG, at("Subtract"), operands_reversed),
    "branch_missing": Fault(*CG, at("Add", "Multiply", "Concatenate", "Average", "Maximum"), operand_repeated),
    "input_scale": Fault(*PP, floats, input_scale),
    "input_mean": Fault(*PP, floats, input_mean),
    "input_bgr": Fault(*PP, pictures, input_bgr),
    "input_turned": Fault(*PP, pictures, input_turned),
}
