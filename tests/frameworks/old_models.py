"""Small models for old converters, written in the environment that can: runs on Python 3.9 and TensorFlow 2.8."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def save(kind, folder):
    """Write one and return the path."""
    return _save_keras(kind, Path(folder)) if kind in ("keras2", "savedmodel", "tflite") else _save_onnx(kind, folder)


def _save_keras(kind, folder):
    import tensorflow as tf

    tf.random.set_seed(0)
    layers = tf.keras.layers
    first = layers.Conv2D(8, 3, padding="same", activation="relu", input_shape=(16, 16, 3))
    model = tf.keras.Sequential([first, layers.MaxPooling2D(), layers.Flatten(), layers.Dense(10)])
    rng = np.random.default_rng(0)  # biases that are not zero: the TFLite converter leaves those away
    model.set_weights([weight + rng.normal(scale=0.05, size=weight.shape) for weight in model.get_weights()])
    if kind == "tflite":
        path = folder / "model.tflite"
        path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
        return str(path)
    path = folder / ("model.h5" if kind == "keras2" else "model")
    model.save(str(path))
    return str(path)


def _save_onnx(kind, folder):
    """Opset 11: convolution, then "dense" (only flattened), "pooled" (a max pool), "global" (an average of all places)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)

    def array(name, *shape):
        values = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]) or 1)
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1])]
    nodes.append(helper.make_node("Relu", ["c"], ["r"], "relu"))
    last, size = "r", 8 * 8 * 8
    if kind == "pooled":
        nodes.append(helper.make_node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]))
        last, size = "p", 8 * 4 * 4
    if kind == "global":
        nodes.append(helper.make_node("GlobalAveragePool", ["r"], ["g"], "global"))
        last, size = "g", 8
    nodes.append(helper.make_node("Flatten", [last], ["f"], "flat"))
    nodes.append(helper.make_node("Gemm", ["f", "d", "e"], ["y"], "dense", transB=1))
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])]
    stored = [array("w", 8, 3, 3, 3), array("b", 8), array("d", 10, size), array("e", 10)]
    graph = helper.make_graph(nodes, "small", given, made, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    model.ir_version = 6
    path = str(Path(folder) / f"{kind}.onnx")
    onnx.save(model, path)
    return path
