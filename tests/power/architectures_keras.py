"""Small Keras models of the usual architectures, to plant faults into. Seeded; runs inside a TensorFlow toolchain.

Axes differ in size where the architecture lets them, weights are scaled so that signals neither die nor explode,
BatchNorm has the statistics of data that passed through, and every bias, scale and shift differs from its neutral
value: whatever a converter drops, it shows.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

os.environ["KERAS_BACKEND"] = "tensorflow"


def residual(keras):
    """Two residual blocks with BatchNorm, the second with a projection and a stride of 2."""
    layers = keras.layers
    image = keras.Input((24, 32, 3), name="image")
    x = conv(keras, image, 12, 3, "stem", relu=True)
    y = conv(keras, x, 12, 3, "block1_a", relu=True)
    y = conv(keras, y, 12, 3, "block1_b")
    x = layers.ReLU(name="block1_relu")(layers.Add(name="block1_sum")([x, y]))
    y = conv(keras, x, 20, 3, "block2_a", strides=2, relu=True)
    y = conv(keras, y, 20, 3, "block2_b")
    short = conv(keras, x, 20, 1, "block2_short", strides=2)
    x = layers.ReLU(name="block2_relu")(layers.Add(name="block2_sum")([y, short]))
    x = layers.MaxPooling2D((3, 4), name="pool")(x)
    return image, layers.Dense(7, activation="softmax", name="classes")(layers.Flatten(name="flat")(x))


def inception(keras):
    """Two blocks of four branches of other kernels and an average pool, joined by concatenation."""
    layers = keras.layers
    image = keras.Input((28, 20, 3), name="image")
    x = conv(keras, image, 10, 3, "stem", strides=2, relu=True)
    for block, (a, b, c, d) in enumerate(((4, 6, 5, 3), (6, 8, 4, 5)), 1):
        one = conv(keras, x, a, 1, f"mix{block}_1x1", relu=True)
        three = conv(
            keras, conv(keras, x, b - 2, 1, f"mix{block}_3x3_in", relu=True), b, 3, f"mix{block}_3x3", relu=True
        )
        wide = conv(keras, x, c - 1, 1, f"mix{block}_7_in", relu=True)
        wide = conv(keras, wide, c, (1, 7), f"mix{block}_1x7", relu=True)
        wide = conv(keras, wide, c, (7, 1), f"mix{block}_7x1", relu=True)
        mean = layers.AveragePooling2D(3, strides=1, padding="same", name=f"mix{block}_pool")(x)
        mean = conv(keras, mean, d, 1, f"mix{block}_pool_out", relu=True)
        x = layers.Concatenate(name=f"mix{block}")([one, three, wide, mean])
    x = layers.AveragePooling2D((3, 2), name="pool")(x)
    return image, layers.Dense(9, name="logits")(layers.Flatten(name="flat")(x))


def depthwise(keras):
    """Inverted residuals with ReLU6 and an explicit padding, one of them with squeeze and excitation."""
    layers = keras.layers
    image = keras.Input((30, 26, 3), name="image")
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad")(image)
    x = conv(keras, x, 8, 3, "stem", strides=2, padding="valid", six=True)
    for block, (width, stride) in enumerate(((8, 1), (14, 2)), 1):
        y = conv(keras, x, 24, 1, f"block{block}_expand", six=True)
        y = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False, name=f"block{block}_depth")(y)
        y = layers.BatchNormalization(name=f"block{block}_depth_bn")(y)
        y = layers.ReLU(6.0, name=f"block{block}_depth_relu")(y)
        if block == 1:
            gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(y)
            gate = layers.Conv2D(6, 1, activation="relu", name="squeeze_in")(gate)
            gate = layers.Conv2D(24, 1, activation="sigmoid", name="squeeze_out")(gate)
            y = layers.Multiply(name="excite")([y, gate])
        y = conv(keras, y, width, 1, f"block{block}_project")
        x = layers.Add(name=f"block{block}_sum")([x, y]) if stride == 1 else y
    x = layers.AveragePooling2D((4, 3), name="pool")(x)
    return image, layers.Dense(6, name="logits")(layers.Flatten(name="flat")(x))


def lstm(keras):
    """A bidirectional LSTM and one that gives its last state."""
    layers = keras.layers
    steps = keras.Input((11, 6), name="steps")
    x = layers.Bidirectional(layers.LSTM(10, return_sequences=True), name="both_ways")(steps)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.LSTM(9, name="last")(x)
    return steps, layers.Dense(5, name="scores")(layers.Dense(12, activation="relu", name="hidden")(x))


def gru(keras):
    """Two GRUs, the first with the reset gate behind the product, the second before it and backwards."""
    layers = keras.layers
    steps = keras.Input((9, 5), name="steps")
    x = layers.GRU(12, return_sequences=True, name="first")(steps)
    x = layers.Dense(12, activation="tanh", name="between")(x)
    x = layers.GRU(8, reset_after=False, go_backwards=True, name="second")(x)
    return steps, layers.Dense(4, name="scores")(x)


def transformer(keras):
    """Two encoder blocks over token indices, with positions, LayerNorm and the tanh form of GELU."""
    layers = keras.layers
    tokens = keras.Input((10,), dtype="int32", name="tokens")
    x = layers.Embedding(37, 12, name="embed")(tokens)
    for block in (1, 2):
        a = layers.MultiHeadAttention(3, 4, name=f"attention{block}")(x, x)
        x = layers.LayerNormalization(name=f"norm{block}_a")(layers.Add(name=f"sum{block}_a")([x, a]))
        h = gelu(keras, layers.Dense(20, name=f"up{block}")(x), f"gelu{block}")
        h = layers.Dense(12, name=f"down{block}")(h)
        x = layers.LayerNormalization(name=f"norm{block}_b")(layers.Add(name=f"sum{block}_b")([x, h]))
    return tokens, layers.Dense(5, name="logits")(layers.Flatten(name="flat")(x))


def unet(keras):
    """Down twice and up twice: once by interpolation, once by a transposed convolution, with skips."""
    layers = keras.layers
    image = keras.Input((24, 32, 3), name="image")
    one = conv(keras, image, 8, 3, "down1", relu=True)
    two = conv(keras, layers.MaxPooling2D(2, name="pool1")(one), 12, 3, "down2", relu=True)
    x = conv(keras, layers.MaxPooling2D(2, name="pool2")(two), 16, 3, "bottom", relu=True)
    x = layers.UpSampling2D(2, interpolation="bilinear", name="up2")(x)
    x = conv(keras, layers.Concatenate(name="skip2")([x, two]), 10, 3, "merge2", relu=True)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="up1")(x)
    x = conv(keras, layers.Concatenate(name="skip1")([x, one]), 6, 3, "merge1", relu=True)
    x = layers.Conv2D(4, 3, strides=2, padding="same", name="halve")(x)
    x = layers.UpSampling2D((2, 2), name="nearest")(x)
    return image, layers.Conv2D(2, 1, activation="sigmoid", name="mask")(x)


def branches(keras):
    """Three branches with PReLU, LeakyReLU and ELU, GroupNorm, and a difference of two of them."""
    layers = keras.layers
    image = keras.Input((18, 22, 3), name="image")
    x = layers.Conv2D(12, 3, padding="same", name="stem")(image)
    x = layers.GroupNormalization(3, name="groups")(x)
    a = layers.PReLU(shared_axes=[1, 2], name="prelu")(layers.Conv2D(8, 3, padding="same", name="conv_a")(x))
    b = layers.LeakyReLU(0.2, name="leaky")(layers.Conv2D(8, 5, padding="same", name="conv_b")(x))
    c = layers.ELU(0.7, name="elu")(layers.Conv2D(8, 3, dilation_rate=2, padding="same", name="conv_c")(x))
    d = layers.Subtract(name="difference")([a, b])
    x = layers.Concatenate(name="join")([a, b, c, d])
    x = layers.Conv2D(14, 3, strides=2, padding="same", activation="relu", name="mix")(x)
    x = layers.MaxPooling2D(3, name="pool")(x)
    return image, layers.Dense(5, name="logits")(layers.Flatten(name="flat")(x))


KINDS = ("residual", "inception", "depthwise", "lstm", "gru", "transformer", "unet", "branches")


def conv(keras, x, width, kernel, name, *, strides=1, padding="same", relu=False, six=False):
    """Convolution without bias, BatchNorm, and perhaps ReLU or ReLU6."""
    layers = keras.layers
    start = keras.initializers.HeNormal()
    x = layers.Conv2D(
        width, kernel, strides=strides, padding=padding, use_bias=False, kernel_initializer=start, name=name
    )(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    if six:
        return layers.ReLU(6.0, name=f"{name}_relu")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def gelu(keras, h, name):
    """The tanh form of GELU from layers that Keras loads again without custom code."""
    layers = keras.layers
    cube = layers.Rescaling(0.044715, name=f"{name}_cubic")(layers.Multiply(name=f"{name}_cube")([h, h, h]))
    inner = layers.Rescaling(0.7978845608, name=f"{name}_scale")(layers.Add(name=f"{name}_sum")([h, cube]))
    tanh = layers.Activation("tanh", name=f"{name}_tanh")(inner)
    return layers.Multiply(name=name)([h, layers.Rescaling(0.5, offset=0.5, name=f"{name}_gate")(tanh)])


def save(kind, folder, seed, form="keras"):
    """Build, settle and save one model; returns the path of the .keras file or (form "savedmodel") of the folder."""
    import keras

    keras.utils.set_random_seed(seed)
    inputs, outputs = {build.__name__: build for build in BUILDERS}[kind](keras)
    model = keras.Model(inputs, outputs, name=kind)
    settle(model, seed)
    path = Path(folder) / (f"{kind}.keras" if form == "keras" else kind)
    if form == "keras":
        model.save(path)
    else:
        model.export(str(path), verbose=False)
    return str(path)


BUILDERS = (residual, inception, depthwise, lstm, gru, transformer, unet, branches)


def settle(model, seed):
    """Move every weight off its neutral value, and give BatchNorm the statistics of data.

    The last layer's kernel is scaled so that its output has a spread of about 1 over inputs.
    """
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        role = weight.path.rsplit("/", 1)[-1]
        if role == "gamma":
            weight.assign(rng.uniform(0.6, 1.5, weight.shape))
        elif role in ("beta", "bias"):
            weight.assign(weight + rng.normal(0, 0.2, weight.shape))
        elif role == "alpha":
            weight.assign(rng.uniform(0.1, 0.4, weight.shape))
        elif role == "embeddings":
            weight.assign(rng.normal(0, 1.0, weight.shape))
    norms = [layer for layer in model._flatten_layers() if type(layer).__name__ == "BatchNormalization"]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.5
    for _ in range(8):
        model([sample(tensor, rng, 32) for tensor in model.inputs], training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    last = model.layers[-1]
    before = type(model)(model.inputs, last.input)
    hidden = np.asarray(before([sample(tensor, rng, 32) for tensor in model.inputs]))
    spread = float(np.std(hidden - hidden.mean(axis=0)))
    fan = int(np.prod(last.kernel.shape[:-1]))
    last.kernel.assign(rng.normal(0, 1.5 / (spread * np.sqrt(fan)), last.kernel.shape))


def sample(tensor, rng, batch):
    """Random data for one symbolic input."""
    shape = [batch, *tensor.shape[1:]]
    if "int" in str(tensor.dtype):
        return rng.integers(0, 37, shape).astype(tensor.dtype)
    return rng.normal(0.2, 1.0, shape).astype(tensor.dtype)
