"""Models that the tests of edits change: small, seeded, with a shared layer, a nested model and a layer that does not show.

Runs inside a worker, with Keras 3 or Keras 2.
"""

from __future__ import annotations

import os
import zipfile

import numpy as np


def _keras(legacy):
    os.environ["TF_USE_LEGACY_KERAS" if legacy else "KERAS_BACKEND"] = "1" if legacy else "tensorflow"
    if legacy:
        import tf_keras

        return tf_keras
    import keras

    return keras


def wired(keras):
    """conv -> dropout -> dense, called twice -> nested chain; two outputs."""
    layers = keras.layers
    x = keras.Input((8, 8, 3), name="x")
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.LeakyReLU(0.1, name="leaky")(y)
    y = layers.MaxPooling2D(2, name="pool")(y)
    y = layers.Dropout(0.3, name="drop")(y)
    dense = layers.Dense(4, name="dense")
    first = dense(y)
    second = dense(first)
    inner = keras.Sequential(
        [keras.Input((4, 4, 4)), layers.Dense(4, use_bias=False, name="inside"), layers.ReLU(name="bent")], name="inner"
    )
    third = inner(second)
    both = layers.Concatenate(name="both")([first, third])
    apart = layers.Subtract(name="apart")([first, third])
    return keras.Model(x, [layers.Softmax(name="soft")(both), apart], name="wired")


def chain(keras):
    """A Sequential model."""
    layers = keras.layers
    steps = [keras.Input((6,), name="q"), layers.Dense(5, name="a"), layers.ReLU(name="r"), layers.Dense(3, name="z")]
    return keras.Sequential(steps, name="chain")


def gated(keras):
    """A GRU inside a Bidirectional, and a wrapped Dense."""
    layers = keras.layers
    x = keras.Input((5, 3), name="steps")
    y = layers.GRU(4, return_sequences=True, name="gru")(x)
    y = layers.TimeDistributed(layers.Dense(2, name="each"), name="spread")(y)
    return keras.Model(x, y, name="gated")


def carrying(keras):
    """A model with code of its own."""
    x = keras.Input((6,), name="q")
    y = keras.layers.Lambda(lambda t: t * 2 + 1, output_shape=(6,), name="code")(x)
    return keras.Model(x, keras.layers.Dense(3, name="z")(y), name="carrying")


def save(kind, path, legacy=False, trained=False):
    """Write a model; `trained`: after a step of Adam, so that the file has an optimiser's state."""
    keras = _keras(legacy)
    keras.utils.set_random_seed(7)
    model = {"wired": wired, "chain": chain, "gated": gated, "carrying": carrying}[kind](keras)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if "kernel" not in str(getattr(weight, "path", weight.name)):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape).astype(np.float32))
    if trained:
        model.compile("adam", [keras.losses.MeanSquaredError()] * len(model.outputs))
        feeds = rng.normal(size=(4, *model.inputs[0].shape[1:])).astype(np.float32)
        model.fit(feeds, [np.zeros([4, *output.shape[1:]], np.float32) for output in model.outputs], verbose=0)
    if path.endswith("saved"):
        model.export(path, verbose=False)
    else:
        model.save(path)
    return path


def subclassed(path):
    """A model that is its own code, as a SavedModel cannot be told from: written as .keras it needs the class."""
    keras = _keras(False)

    @keras.saving.register_keras_serializable("tests")
    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = keras.layers.Dense(2)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(np.zeros((1, 3), np.float32))
    from trueport.frameworks import _keras_edit as editing
    from trueport.frameworks._base import Unsupported

    model.save(path)
    try:
        editing.Editor(path)
    except Unsupported as error:
        return str(error)
    return ""


def training_state(path, legacy=False):
    """How Keras loads the file for training: the optimiser's class and its variables."""
    model = _keras(legacy).models.load_model(path)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return None
    held = optimizer.variables
    held = held() if callable(held) else held
    return [type(optimizer).__name__, [np.asarray(value).astype(float).ravel().tolist() for value in held]]


def members(path):
    """Names and bytes (as hexadecimal text) of the small members of an archive."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).hex() for name in archive.namelist() if name.endswith("json")}


def kind_of_model(path, legacy=False):
    """Class of the loaded model."""
    return type(_keras(legacy).models.load_model(path, compile=False)).__name__
