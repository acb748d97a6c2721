"""Keras models of the study. Runs in a worker of the TensorFlow toolchain.

Sources come from the constructors of keras.applications, with random weights that are scaled by data (see
`torch_side.py`). Ports of PyTorch networks are built from `networks.py` with the PyTorch weights: no converter writes
Keras files, so the right port is made by transferring weights, as users do.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
from keras import layers
from networks import FRONTS, NETWORKS

APPLICATIONS = {
    "mobilenet_v2": keras.applications.MobileNetV2,
    "resnet101": keras.applications.ResNet101,
    "inception_v3": keras.applications.InceptionV3,
}
OWN_FRONTS = {"mobilenet_v2": "tf", "inception_v3": "tf", "resnet101": "caffe"}
"""The preparation for which keras.applications made each network."""
SPREAD = 3.0
SHIFT = 0.5


def application(kind: str, front: str, size: list[int]) -> Any:
    """A network of keras.applications behind a preparation; takes [N, H, W, 3]."""
    image = keras.Input((*size, 3), name="image")
    return APPLICATIONS[kind](weights=None, input_tensor=prepared(image, front), classes=1000)


def prepared(image: Any, front: str) -> Any:
    """The preparation of FRONTS as Keras layers."""
    given = FRONTS[front]
    if not given:
        return image
    if given.get("reverse"):
        image = keras.ops.flip(image, axis=-1)
    return layers.Rescaling(given["scale"], offset=given["shift"], name="prepare")(image)


def initialise(kind: str, pictures: str, out: str, seed: int) -> dict[str, Any]:
    """Write weights that fit the pictures (.npy, [N, H, W, 3], 0..255) as an .npz, in the order of `get_weights`."""
    keras.utils.set_random_seed(seed)
    images = np.load(pictures)
    model = application(kind, OWN_FRONTS[kind], list(images.shape[1:3]))
    rng = np.random.default_rng(seed)
    ends = {inner.name for layer in model.layers if isinstance(layer, layers.Add) for inner in _sources(layer)}
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0
            if layer.scale:
                low, high = (0.3, 0.6) if layer.name in ends else (0.8, 1.2)
                layer.gamma.assign(rng.uniform(low, high, layer.gamma.shape))
            layer.beta.assign(rng.normal(SHIFT, 0.2, layer.beta.shape))
        elif isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
            kernel = layer.kernel
            fan = int(np.prod(kernel.shape[:3])) if not isinstance(layer, layers.DepthwiseConv2D) else 9
            kernel.assign(rng.normal(0, np.sqrt(2 / fan), kernel.shape))
    inner = keras.Model(model.input, model.layers[-1].input)
    model(images, training=True)
    _head(model.layers[-1], np.asarray(inner(images, training=False)), rng)
    np.savez(out, **{f"{number:04d}": value for number, value in enumerate(model.get_weights())})
    return {"parameters": model.count_params()}


def _sources(layer: Any) -> list[Any]:
    """The layers whose results a layer reads."""
    return [tensor._keras_history.operation for tensor in layer.input]


def _head(dense: Any, features: np.ndarray, rng: Any) -> None:
    """Centre and scale the last layer, so that logits have mean 0 and deviation SPREAD over the data."""
    weight = rng.normal(0, 1, dense.kernel.shape)
    logits = (features - features.mean(0)) @ weight
    weight *= SPREAD / logits.std()
    dense.kernel.assign(weight)
    dense.bias.assign(-features.mean(0) @ weight)


def save(
    kind: str, front: str, weights: str, size: list[int], out: str, epsilon: float | None = None
) -> dict[str, Any]:
    """Write a .keras file. epsilon: of every BatchNorm, None keeps the network's own."""
    keras.backend.clear_session()
    model = application(kind, front, size)
    model.set_weights(_stored(weights))
    if epsilon is not None:
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):
                layer.epsilon = epsilon
    model.save(out)
    return {"path": out}


def _stored(weights: str) -> list[np.ndarray]:
    with np.load(weights) as stored:
        return [stored[name] for name in sorted(stored.files)]


def port(kind: str, weights: str, size: list[int], out: str, entry: str, front: str) -> dict[str, Any]:
    """Write the Keras port of a PyTorch network.

    entry: how the input comes to [N, H, W, 3]: "" (it has this layout), or from [N, 3, H, W] by "transpose" (right),
    "swapped" (height and width too) or "reshape" (the elements stay where they are and are read as NHWC).
    """
    keras.backend.clear_session()
    with np.load(weights) as stored:
        table = {name: stored[name] for name in stored.files}
    image = keras.Input((3, *size) if entry else (*size, 3), name="image")
    moved = {
        "": lambda: lambda x: x,
        "transpose": lambda: layers.Permute((2, 3, 1), name="channels_last"),
        "swapped": lambda: layers.Permute((3, 2, 1), name="channels_last"),
        "reshape": lambda: layers.Reshape((*size, 3), name="channels_last"),
    }[entry]()(image)
    values = {"image": prepared(moved, front)}
    for op in NETWORKS[kind]():
        values[op.name] = _value(op, [values[name] for name in op.inputs])
    model = keras.Model(image, values["classes"], name=kind)
    for layer in model.layers:
        layer.set_weights(_weights(layer, table))
    model.save(out)
    return {"parameters": model.count_params()}


def plan(kind: str, weights: str, size: list[int], out: str) -> dict[str, Any]:
    """Write the weights of a network of keras.applications as an .npz, and return its layers for a port to PyTorch."""
    keras.backend.clear_session()
    model = application(kind, "", size)
    model.set_weights(_stored(weights))
    kept, told = {}, []
    for layer in model.layers[1:]:
        config = layer.get_config()
        given = layer.input if isinstance(layer.input, list) else [layer.input]
        told.append(
            {
                "name": layer.name,
                "kind": type(layer).__name__,
                "inputs": [tensor._keras_history.operation.name for tensor in given],
                "settings": {
                    key: value for key, value in config.items() if isinstance(value, int | float | str | tuple)
                },
            }
        )
        for number, value in enumerate(layer.get_weights()):
            kept[f"{layer.name}/{number}"] = value
    np.savez(out, **kept)
    return {"layers": told, "input": model.layers[0].name}


def _value(op: Any, given: list[Any]) -> Any:
    s, x = op.settings, given[0]
    if op.kind == "unit":
        return _unit(op.name, s, x)
    if op.kind in ("max", "mean"):
        if s["pad"]:  # maxima follow a ReLU, so a rim of zeros is right for both
            x = layers.ZeroPadding2D(s["pad"], name=f"{op.name}_pad")(x)
        kind = layers.MaxPooling2D if op.kind == "max" else layers.AveragePooling2D
        return kind(s["kernel"], s["stride"], name=op.name)(x)
    if op.kind == "global":
        return layers.GlobalAveragePooling2D(name=op.name)(x)
    if op.kind == "dense":
        return layers.Dense(s["out"], name=op.name)(x)
    if op.kind == "relu":
        return layers.ReLU(name=op.name)(x)
    return (layers.Concatenate if op.kind == "cat" else layers.Add)(name=op.name)(given)


def _unit(name: str, s: dict[str, Any], x: Any) -> Any:
    keeps = s["stride"] == 1 and s["pad"] == tuple(size // 2 for size in s["kernel"])
    if not keeps and any(s["pad"]):
        x = layers.ZeroPadding2D(s["pad"], name=f"{name}_pad")(x)
    given = {"strides": s["stride"], "padding": "same" if keeps else "valid", "use_bias": False, "name": f"{name}_conv"}
    if s["groups"] > 1:
        x = layers.DepthwiseConv2D(s["kernel"], **given)(x)
    else:
        x = layers.Conv2D(s["out"], s["kernel"], **given)(x)
    x = layers.BatchNormalization(epsilon=s["epsilon"], name=f"{name}_bn")(x)
    if not s["act"]:
        return x
    return layers.ReLU(6.0 if s["act"] == "relu6" else None, name=f"{name}_{s['act']}")(x)


def _weights(layer: Any, table: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What a layer gets of a PyTorch state dict, in Keras' order and layout."""
    stem = f"parts.{layer.name.removesuffix('_conv').removesuffix('_bn')}"
    if isinstance(layer, layers.DepthwiseConv2D):
        return [table[f"{stem}.conv.weight"].transpose(2, 3, 0, 1)]
    if isinstance(layer, layers.Conv2D):
        return [table[f"{stem}.conv.weight"].transpose(2, 3, 1, 0)]
    if isinstance(layer, layers.BatchNormalization):
        return [table[f"{stem}.bn.{name}"] for name in ("weight", "bias", "running_mean", "running_var")]
    return [table[f"{stem}.weight"].T, table[f"{stem}.bias"]] if isinstance(layer, layers.Dense) else []
