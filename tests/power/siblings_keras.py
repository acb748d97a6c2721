"""What a PyTorch sibling of a Keras model needs of it: its weights. Runs inside a TensorFlow toolchain."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

os.environ["KERAS_BACKEND"] = "tensorflow"


def weights(model, out):
    """Write every weight of a .keras file into an .npz under its path ("stem/kernel"), as Keras lays it out."""
    import keras

    loaded = keras.saving.load_model(model, compile=False, safe_mode=True)
    named = {weight.path: np.asarray(weight) for weight in loaded.weights}
    if len(named) != len(loaded.weights):
        raise ValueError(f"{Path(model).name}: two weights have one path")
    np.savez(out, **named)
    return out
