"""The Keras models that the tests convert: small, seeded, and with the layers that converters get wrong.

Runs inside a TensorFlow toolchain only (called by name through a worker). Keras's own initialisers give weights; the
statistics of BatchNorm are set by passing data through the model in training mode, so that a wrong fold shows.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

os.environ["KERAS_BACKEND"] = "tensorflow"


def residual(keras):
    """Residual CNN with BatchNorm, stride 2 (asymmetric padding), 16 x 16 RGB to 5 classes."""
    layers = keras.layers
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.ReLU(name="stem_relu")(x)
    y = layers.Conv2D(16, 3, strides=2, padding="same", name="conv1")(x)
    y = layers.BatchNormalization(name="bn1")(y)
    y = layers.ReLU(name="relu1")(y)
    y = layers.Conv2D(16, 3, padding="same", name="conv2")(y)
    y = layers.BatchNormalization(name="bn2")(y)
    short = layers.Conv2D(16, 1, strides=2, padding="same", name="shortcut")(x)
    x = layers.ReLU(name="relu2")(layers.Add(name="sum")([y, short]))
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, layers.Dense(5, activation="softmax", name="classes")(x), name="residual")


def depthwise(keras):
    """Depthwise separable CNN with ReLU6 and an explicit padding, as MobileNet has it."""
    layers = keras.layers
    image = keras.Input((17, 17, 3), name="image")
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(image)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="conv_bn")(x)
    x = layers.ReLU(6.0, name="conv_relu")(x)
    for i, stride in enumerate((1, 2)):
        x = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False, name=f"dw{i}")(x)
        x = layers.BatchNormalization(name=f"dw{i}_bn")(x)
        x = layers.ReLU(6.0, name=f"dw{i}_relu")(x)
        x = layers.Conv2D(12 + 4 * i, 1, use_bias=False, name=f"pw{i}")(x)
        x = layers.BatchNormalization(name=f"pw{i}_bn")(x)
    x = layers.AveragePooling2D(2, padding="same", name="pool")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(image, layers.Dense(4, name="logits")(x), name="depthwise")


def lstm(keras):
    """Two LSTMs, the first one bidirectional."""
    layers = keras.layers
    steps = keras.Input((7, 5), name="steps")
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True), name="both_ways")(steps)
    x = layers.LSTM(4, name="last")(x)
    return keras.Model(steps, layers.Dense(3, name="scores")(x), name="lstm")


def gru(keras):
    """Two GRUs with the reset gate after the product."""
    layers = keras.layers
    steps = keras.Input((6, 4), name="steps")
    x = layers.GRU(5, return_sequences=True, name="first")(steps)
    x = layers.GRU(4, name="second")(x)
    return keras.Model(steps, layers.Dense(2, name="scores")(x), name="gru")


def gru_reset_before(keras):
    """A GRU with the reset gate before the product."""
    layers = keras.layers
    steps = keras.Input((6, 4), name="steps")
    x = layers.GRU(5, reset_after=False, name="before")(steps)
    return keras.Model(steps, layers.Dense(2, name="scores")(x), name="gru_reset_before")


def transformer(keras):
    """One encoder block over token indices: embedding, self-attention, LayerNorm, tanh-GELU feed-forward."""
    return _transformer(keras, approximate=True)


def exact_gelu(keras):
    """The same with the exact GELU, which tf2onnx cannot express."""
    return _transformer(keras, approximate=False)


def _transformer(keras, *, approximate):
    layers = keras.layers
    tokens = keras.Input((9,), dtype="int32", name="tokens")
    x = layers.Embedding(23, 8, name="embed")(tokens)
    a = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.LayerNormalization(name="norm1")(layers.Add(name="add1")([x, a]))
    h = layers.Dense(16, name="up")(x)
    h = _gelu(keras, approximate=approximate)(h)
    h = layers.Dense(8, name="down")(h)
    x = layers.LayerNormalization(name="norm2")(layers.Add(name="add2")([x, h]))
    x = layers.GlobalAveragePooling1D(name="mean")(x)
    name = "transformer" if approximate else "exact_gelu"
    return keras.Model(tokens, layers.Dense(3, name="logits")(x), name=name)


def _gelu(keras, *, approximate):
    """GELU in the wanted form, from layers that Keras can load again without custom code."""
    if not approximate:
        return keras.layers.Activation("gelu", name="gelu")

    def apply(h):
        inner = keras.layers.Rescaling(0.7978845608, name="gelu_scale")(
            keras.layers.Add(name="gelu_sum")(
                [
                    h,
                    keras.layers.Rescaling(0.044715, name="gelu_cubic")(
                        keras.layers.Multiply(name="gelu_cube")([h, h, h])
                    ),
                ]
            )
        )
        gate = keras.layers.Rescaling(0.5, offset=0.5, name="gelu_gate")(
            keras.layers.Activation("tanh", name="gelu_tanh")(inner)
        )
        return keras.layers.Multiply(name="gelu")([h, gate])

    return apply


def silu(keras):
    """Convolutions with SiLU, as EfficientNet has it; its custom gradient cannot be saved with a graph."""
    layers = keras.layers
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, name="conv1")(image)
    x = layers.Activation("silu", name="silu1")(x)
    x = layers.Conv2D(8, 3, activation="silu", name="conv2")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, layers.Dense(3, name="scores")(x), name="silu")


def multi(keras):
    """Two inputs (features and category indices), three outputs, two of equal shape and in no alphabetical order."""
    layers = keras.layers
    features = keras.Input((6,), name="features")
    category = keras.Input((2,), dtype="int32", name="category")
    e = layers.Flatten(name="flat")(layers.Embedding(11, 3, name="embed")(category))
    x = layers.Concatenate(name="join")([features, e])
    x = layers.Dense(8, activation="tanh", name="hidden")(x)
    zeta = layers.Dense(4, name="zeta")(x)
    alpha = layers.Dense(4, activation="sigmoid", name="alpha")(x)
    middle = layers.Dense(1, name="middle")(x)
    return keras.Model([features, category], [zeta, alpha, middle], name="multi")


MODELS = {
    "residual": residual,
    "depthwise": depthwise,
    "lstm": lstm,
    "gru": gru,
    "transformer": transformer,
    "multi": multi,
}
"""The zoo of the conversion matrix."""
EXTRA = {"exact_gelu": exact_gelu, "gru_reset_before": gru_reset_before, "silu": silu}
"""Models for one test each."""


def save(kind, folder, seed):
    """Build, settle and save one model. Returns the path of the .keras file."""
    import keras

    keras.utils.set_random_seed(seed)
    model = {**MODELS, **EXTRA}[kind](keras)
    _settle(model, seed)
    path = Path(folder) / f"{kind}.keras"
    model.save(path)
    return str(path)


def _settle(model, seed):
    """Give BatchNorm real statistics, scales and shifts, and every bias a value that is not zero."""
    rng = np.random.default_rng(seed)
    norms = [layer for layer in model._flatten_layers() if type(layer).__name__ == "BatchNormalization"]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.5  # four passes are enough
        if layer.gamma is not None:
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
        layer.beta.assign(rng.normal(0, 0.3, layer.beta.shape))
    for weight in model.trainable_weights:
        if weight.path.endswith("bias"):
            weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    for _ in range(4):
        model([sample(tensor, rng, 16) for tensor in model.inputs], training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def sample(tensor, rng, batch):
    """Random data for one symbolic input."""
    shape = [batch, *tensor.shape[1:]]
    if "int" in str(tensor.dtype):
        return rng.integers(0, 11, shape).astype(tensor.dtype)
    return rng.normal(0.2, 1.0, shape).astype(tensor.dtype)
