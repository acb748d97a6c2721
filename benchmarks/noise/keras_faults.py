"""Faults planted in the Keras zoo, and mid-size Keras networks. Runs in the TensorFlow toolchain, called by name through
a worker. The counterpart of `torch_faults`, with the same names of faults.
"""

from __future__ import annotations

from pathlib import Path

import keras
import keras_models as zoo
import numpy as np

LARGE = {
    "mobilenetv2": ("MobileNetV2", 96),
    "mobilenetv2-224": ("MobileNetV2", 224),
    "resnet50": ("ResNet50", 64),
    "resnet101": ("ResNet101", 64),
    "inceptionv3": ("InceptionV3", 96),
    "densenet121": ("DenseNet121", 64),
    "efficientnetb0": ("EfficientNetB0", 64),
}
"""kind -> (architecture of keras.applications, image size). Random weights, statistics from a data pass."""


def make(kind, seed):
    """A zoo model, or a mid-size network."""
    keras.backend.clear_session()  # or layers without a name are numbered on, and places made now are not found later
    keras.utils.set_random_seed(seed)
    if kind in LARGE:
        name, size = LARGE[kind]
        model = getattr(keras.applications, name)(
            weights=None, input_shape=(size, size, 3), classes=50, classifier_activation=None
        )
    else:
        model = {**zoo.MODELS, **zoo.EXTRA}[kind](keras)
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.LayerNormalization):  # Keras starts it with ones and zeros
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.uniform(-0.5, 0.5, layer.beta.shape))
    zoo._settle(model, seed)
    if kind in LARGE:
        _settle_exactly(model, rng)
    return model


def _settle_exactly(model, rng):
    """Take the statistics of one batch and nothing else: a rest of the initial variance of 1 in each of fifty layers
    shrinks the signal below the rounding of the biases, and the network gives the same for every input."""
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(_images(model.inputs[0], rng, 16), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def _images(tensor, rng, batch):
    """Images that differ as a whole, not only pixel by pixel, which pooling would average away."""
    _, height, width, channels = tensor.shape
    coarse = rng.normal(0, 1, (batch, 4, 4, channels)).repeat(-(-height // 4), 1).repeat(-(-width // 4), 2)
    mean = rng.normal(0, 1, (batch, 1, 1, channels))
    return (mean + coarse[:, :height, :width] + rng.normal(0, 0.3, (batch, height, width, channels))).astype("float32")


def save(kind, folder, seed):
    """Write the unchanged model; returns the path of its .keras file."""
    return _write(make(kind, seed), kind, folder)


def places(kind, seed):
    """Fault -> the places of this model where it can be planted."""
    model = make(kind, seed)
    return {fault: found for fault, (find, _) in FAULTS.items() if (found := find(model))}


def plant(kind, folder, seed, fault, where):
    """Write the model with one fault; returns the path of its .keras file."""
    model = make(kind, seed)
    changed = FAULTS[fault][1](model, where, np.random.default_rng(seed + 1))
    return _write(model if changed is None else changed, kind, folder)


def _write(model, kind, folder):
    path = Path(folder) / f"{kind}.keras"
    model.save(path)
    return str(path)


# ---- where a fault can be ----


def _weights(model):
    return [weight.path for weight in model.trainable_weights if len(weight.shape) >= 2 and not _is_bias(weight)]


def _vectors(model):
    return [weight.path for weight in model.trainable_weights if len(weight.shape) == 1]


def _is_bias(weight):
    return weight.path.endswith(("bias", "beta"))


def _biases(model):
    return [weight.path for weight in model.trainable_weights if _is_bias(weight)]


def _with(attribute):
    return lambda model: [
        layer.name for layer in model._flatten_layers() if getattr(layer, attribute, None) is not None
    ]


def _ceilings(model):
    return [layer.name for layer in model.layers if isinstance(layer, keras.layers.ReLU) and layer.max_value]


def _pads(model):
    return [layer.name for layer in model.layers if isinstance(layer, keras.layers.ZeroPadding2D)]


def _gelus(model):
    return ["feed-forward"] if model.name == "exact_gelu" else []


# ---- what it does there ----


def _weight(model, path):
    return next(weight for weight in model.weights if weight.path == path)


def _layer(model, name):
    return next(layer for layer in model._flatten_layers() if layer.name == name)


def _noise(model, path, rng):
    weight = _weight(model, path)
    value = np.array(weight)
    weight.assign(value * (1 + 0.01 * rng.standard_normal(value.shape)))


def _scale(model, path, rng):
    weight = _weight(model, path)
    weight.assign(np.array(weight) * 1.01)


def _drop(model, path, rng):
    weight = _weight(model, path)
    weight.assign(np.zeros(weight.shape))


def _epsilon(model, name, rng):
    """Keras' own default is 1e-3, so the other of the two is planted."""
    layer = _layer(model, name)
    layer.epsilon = 1e-5 if layer.epsilon > 1e-4 else 1e-3


def _one_weight(model, path, rng):
    weight = _weight(model, path)
    value = np.array(weight)
    value.reshape(-1)[rng.integers(value.size)] += np.sqrt(np.mean(value**2))
    weight.assign(value)


def _statistics(model, name, rng):
    mean = _layer(model, name).moving_mean
    mean.assign(np.roll(np.array(mean), 1))


def _no_ceiling(model, name, rng):
    _layer(model, name).max_value = None


def _padding(model, name, rng):
    layer = _layer(model, name)
    layer.padding = tuple(tuple(reversed(pair)) for pair in layer.padding)


def _tanh_gelu(model, where, rng):
    other = zoo.transformer(keras)
    other.set_weights(model.get_weights())
    return other


FAULTS = {
    "1 % noise in a weight": (_weights, _noise),
    "weight scaled by 1.01": (_weights, _scale),
    "1 % noise in a vector": (_vectors, _noise),
    "wrong epsilon": (_with("epsilon"), _epsilon),
    "dropped bias": (_biases, _drop),
    "tanh GELU": (_gelus, _tanh_gelu),
    "one element of a weight": (_weights, _one_weight),
    "shifted mean statistics": (_with("moving_mean"), _statistics),
    "ReLU for ReLU6": (_ceilings, _no_ceiling),
    "other padding": (_pads, _padding),
}
"""Fault -> (where it can be, what it does)."""
