"""Pairs of models that differ only in the inputs that they expect. The functions run in a worker of `onnx` or `tensorflow`:

pool.call(python, "preprocessing_models", "build", {"out": str(path), "front": {...}}, stage=Stage.LOAD, paths=[FOLDER])
"""

from __future__ import annotations

from typing import Any

import numpy as np

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CAFFE = [103.939, 116.779, 123.68]

FRONTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "x / 255": {"scale": 1 / 255},
    "x * 255": {"scale": 255.0},
    "x / 127.5 - 1": {"scale": 1 / 127.5, "shift": -1.0},
    "x * 2 - 1": {"scale": 2.0, "shift": -1.0},
    "ImageNet": {
        "scale": [1 / 255 / s for s in IMAGENET[1]],
        "shift": [-m / s for m, s in zip(*IMAGENET)],  # noqa: B905 -- runs on Python 3.9
    },
    "BGR": {"reverse": True},
    "Caffe": {"reverse": True, "shift": [-item for item in CAFFE]},
    "BGR ImageNet": {
        "reverse": True,
        "scale": [1 / 255 / s for s in IMAGENET[1][::-1]],
        "shift": [-m / s for m, s in zip(IMAGENET[0][::-1], IMAGENET[1][::-1])],  # noqa: B905 -- runs on Python 3.9
    },
    "height and width swapped": {"swap": True},
    "left to right": {"flip": 3},
    "upside down, x / 255": {"flip": 2, "scale": 1 / 255},
    "left to right, BGR, x / 127.5 - 1": {"flip": 3, "reverse": True, "scale": 1 / 127.5, "shift": -1.0},
    "own mean and std": {"scale": [0.013, 0.011, 0.017], "shift": [-1.3, -0.9, -2.1]},
}
"""What a model does to its input before its first convolution: the twin without it expects just that."""


def build(
    out: str,
    front: str = "plain",
    *,
    channels: int = 3,
    size: int = 16,
    seed: int = 0,
    classes: str = "ten",
    softmax: bool = False,
    batch: Any = "batch",
    spoil: str = "",
) -> None:
    """Write x [batch, channels, size, size] → front → a convolution, a residual block, pooling, Gemm → scores.

    classes: "ten", "background first" or "other last" (eleven), "shifted" (class i at place i + 1, the last one first),
    "numbers" (argmax), "numbers from 1". spoil: a fault of another kind.
    """
    import onnx
    from onnx_models import batch_norm, floats, model, node, value

    weights = {
        "c0": floats(8, channels, 3, 3, seed=seed + 1, scale=0.3),
        "b0": floats(8, seed=seed + 2),
        "c1": floats(8, 8, 3, 3, seed=seed + 3, scale=0.2),
        "fc.w": floats(10, 8 * (size // 4) ** 2, seed=seed + 4, scale=0.2),
        "fc.b": floats(10, seed=seed + 5),
        **batch_norm("bn", 8, seed + 6),
    }
    _spoiled(weights, spoil)
    nodes, last = _front(FRONTS[front], weights, channels)
    stride = 1 if spoil == "stride" else 2
    nodes += [
        node("Conv", [last, "c0", "b0"], ["h0"], pads=[1, 1, 1, 1], strides=[stride, stride], name="stem"),
        *([node("AveragePool", ["h0"], ["p0"], kernel_shape=[2, 2], strides=[2, 2])] if stride == 1 else []),
        node("BatchNormalization", ["p0" if stride == 1 else "h0", *(f"bn.{part}" for part in ("scale", "bias", "mean", "var"))], ["n0"]),
        node("Relu", ["n0"], ["r0"]),
        node("Conv", ["r0", "c1"], ["h1"], pads=[1, 1, 1, 1]),
        node("Add", ["h1", "r0"], ["sum"]),
        node("Tanh", ["sum"], ["t"]),
        node("MaxPool", ["t"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["pooled"], ["flat"]),
        node("Gemm", ["flat", "fc.w", "fc.b"], ["raw"], transB=1),
    ]  # fmt: skip
    nodes += _back(classes, weights, softmax=softmax)
    count = {"ten": 10, "shifted": 10}.get(classes, 11)
    output = value("scores", [batch], "INT64") if "numbers" in classes else value("scores", [batch, count])
    shape = [batch, channels, size, size]
    onnx.save(model(nodes, [value("x", shape)], [output], weights), out)


def _front(front: dict[str, Any], weights: dict[str, np.ndarray], channels: int) -> tuple[list[Any], str]:
    from onnx_models import node

    nodes, last = [], "x"
    if front.get("swap"):
        nodes.append(node("Transpose", [last], ["swapped"], perm=[0, 1, 3, 2]))
        last = "swapped"
    if "flip" in front:
        far = np.iinfo(np.int64)
        weights.update({"start": np.int64([-1]), "end": np.int64([far.min]), "axis": np.int64([front["flip"]]), "step": np.int64([-1])})  # fmt: skip
        nodes.append(node("Slice", [last, "start", "end", "axis", "step"], ["flipped"]))
        last = "flipped"
    if front.get("reverse"):
        weights["order"] = np.arange(channels)[::-1].astype(np.int64)
        nodes.append(node("Gather", [last, "order"], ["turned"], axis=1))
        last = "turned"
    for name, op in (("scale", "Mul"), ("shift", "Add")):
        if name in front:
            numbers = np.resize(np.array(front[name], np.float32), channels)
            weights[name] = numbers.reshape(1, channels, 1, 1)
            nodes.append(node(op, [last, name], [f"{name}d"]))
            last = f"{name}d"
    return nodes, last


def _back(classes: str, weights: dict[str, np.ndarray], *, softmax: bool) -> list[Any]:
    from onnx_models import node

    nodes, last = [], "raw"
    if classes in ("background first", "other last"):
        weights.update({"value": np.float32(-30), "ends": np.int64([0, 1, 0, 0] if classes == "background first" else [0, 0, 0, 1])})  # fmt: skip
        nodes.append(node("Pad", ["raw", "ends", "value"], ["padded"]))
        last = "padded"
    if classes == "shifted":
        weights["places"] = np.int64([9, 0, 1, 2, 3, 4, 5, 6, 7, 8])
        nodes.append(node("Gather", ["raw", "places"], ["rolled"], axis=1))
        last = "rolled"
    if "numbers" in classes:
        nodes.append(node("ArgMax", [last], ["first"], axis=1, keepdims=0))
        weights["one"] = np.int64([1 if classes == "numbers from 1" else 0])
        return [*nodes, node("Add", ["first", "one"], ["scores"])]
    return [*nodes, node("Softmax" if softmax else "Identity", [last], ["scores"])]


def _spoiled(weights: dict[str, np.ndarray], spoil: str) -> None:
    numbers = np.random.default_rng(9)
    if spoil == "noise":
        weights["c0"] = weights["c0"] * (1 + 0.3 * numbers.normal(size=weights["c0"].shape)).astype(np.float32)
    if spoil == "channel":
        weights["c0"] = weights["c0"] * np.where(np.arange(8) == 3, -1, 1).astype(np.float32).reshape(8, 1, 1, 1)
    if spoil == "bias":
        weights["b0"] = weights["b0"] * 0
    if spoil == "kernel":
        weights["c0"] = weights["c0"].transpose(0, 1, 3, 2).copy()
    if spoil in ("slightly", "factor"):  # what a scale of the input would do as well, but none that anybody uses
        weights["c0"] = weights["c0"] * np.float32({"slightly": 0.9925, "factor": 0.78}[spoil])
    if spoil == "late":
        weights["fc.w"] = weights["fc.w"] * 255


def embedding(out: str, shift: int) -> None:
    """Write ids [batch, 6] → a table of 40 rows, moved on by `shift` rows → mean → scores [batch, 5]."""
    import onnx
    from onnx_models import floats, model, node, value

    table = floats(40, 8, seed=3)
    weights = {"table": np.roll(table, shift, axis=0), "w": floats(8, 5, seed=4), "axes": np.int64([1])}
    nodes = [
        node("Gather", ["table", "ids"], ["rows"]),
        node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
        node("MatMul", ["mean", "w"], ["scores"]),
    ]
    del weights["axes"]
    onnx.save(model(nodes, [value("ids", ["batch", 6], "INT64")], [value("scores", ["batch", 5])], weights), out)


def wrap(path: str, out: str, scale: list[float], shift: list[float], reverse: bool) -> None:
    """In `tensorflow`: a Keras model [batch, H, W, 3] behind what undoes x → x[channels] * scale + shift; writes `.keras`."""
    import keras

    inner = keras.models.load_model(path, compile=False)
    shape = inner.input_shape[1:]
    image = keras.Input(shape, name="image")
    undone = keras.layers.Rescaling(
        [1 / item for item in scale],
        [-b / k for k, b in zip(scale, shift)],  # noqa: B905 -- runs on Python 3.9
    )(image)
    if reverse:
        undone = keras.ops.flip(undone, axis=-1)
    keras.Model(image, inner(undone)).save(out)
