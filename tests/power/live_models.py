"""One-operator models on which a released converter or runtime is silently wrong, built inside their own toolchain.

The worker calls `build`; the parent never imports a framework. Every model takes generated inputs: no builder hides
the input that shows the fault in a constant.
"""

from __future__ import annotations

import numpy as np


def build(maker, name, out):
    """Write the model `name` of one maker ("torch", "tf", "keras", "onnx") at `out`."""
    MAKERS[maker](name, out)


# PyTorch


def _torch(name, out):
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(0)

    class Apply(nn.Module):
        def __init__(self, function, *parts):
            super().__init__()
            self.function, self.parts = function, nn.ModuleList(parts)

    def module(function, names, *parts):
        """A module whose `forward` has these argument names."""
        scope = {"function": function}
        exec(f"def forward(self, {', '.join(names)}): return self.function({', '.join(names)})", scope)
        return type("Model", (Apply,), {"forward": scope["forward"]})(function, *parts)

    class Normalised(nn.Module):
        """Convolution and BatchNorm whose stored statistics are not those of a batch; dropout; saved in train mode."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.drop = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5)
            nn.init.uniform_(self.norm.weight, 0.5, 2.0)
            nn.init.normal_(self.norm.bias)
            nn.init.normal_(self.norm.running_mean)
            nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

        def forward(self, x):
            return self.drop(self.norm(self.conv(x))).mean((2, 3))

    def long(*values):
        return torch.tensor(values, dtype=torch.int64)

    words = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
    made = {
        "shift": lambda: (module(lambda x: x >> 1, ["x"]), (long(*range(-7, 8)),)),
        "floor_divide": lambda: (module(lambda x: x // 2, ["x"]), (long(*range(-7, 8)),)),
        "index_put": lambda: (
            module(lambda idx, v: torch.zeros(4).index_put((idx,), v, accumulate=True), ["idx", "v"]),
            (long(0, 0, 2), torch.tensor([1.0, 2.0, 3.0])),
        ),
        "index_add": lambda: (
            module(lambda idx, v: torch.zeros(12).index_add(0, idx, v), ["idx", "v"]),
            (long(0, 0, 2), torch.tensor([1.0, 2.0, 3.0])),
        ),
        "attention_mask": lambda: (
            module(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), ["q", "k", "v", "mask"]),
            (*words, torch.ones(1, 2, 5, 6, dtype=torch.bool)),
        ),
        "attention_lengths": lambda: (
            module(
                lambda q, k, v, attention_mask: F.scaled_dot_product_attention(
                    q, k, v, attn_mask=attention_mask.bool()[:, None, None]
                ),
                ["q", "k", "v", "attention_mask"],
            ),
            (*words, torch.ones(1, 6, dtype=torch.int64)),
        ),
        "avg_pool_divisor": lambda: (
            module(lambda x: F.avg_pool2d(x, 2, stride=2, divisor_override=3), ["x"]),
            (torch.randn(1, 1, 4, 4),),
        ),
        "logsigmoid": lambda: (module(F.logsigmoid, ["x"]), (torch.randn(2, 4),)),
        "softplus": lambda: (module(lambda x: F.softplus(x, beta=2.0, threshold=3.0), ["x"]), (torch.randn(2, 8),)),
        "nearest": lambda: (
            module(lambda x: F.interpolate(x, (3, 5), mode="nearest"), ["x"]),
            (torch.randn(1, 1, 7, 8),),
        ),
        "pad_pool": lambda: (
            module(lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 2), ["x"]),
            (torch.randn(1, 2, 4, 4),),
        ),
        "batch_mean": lambda: (
            module(lambda x: x / x.abs().mean(0, keepdim=True), ["x"]),
            (torch.randn(2, 6),),
        ),
        "train_mode": lambda: (Normalised().train(), (torch.randn(2, 3, 8, 8),)),
    }  # fmt: skip
    model, sample = made[name]()
    dynamic = name in ("batch_mean", "train_mode")
    shapes = {"x": {0: torch.export.Dim("batch", min=1)}} if dynamic else None
    # What is compared is the model as it serves; the parent's own save does the same for live objects.
    torch.export.save(torch.export.export(model.eval(), sample, dynamic_shapes=shapes), out)


# TensorFlow and Keras


def _tf(name, out):
    import tensorflow as tf

    real, whole = tf.float32, tf.int32

    def boxes(b, s):
        return tf.image.non_max_suppression(b, s, 8, iou_threshold=0.3)

    made = {
        "floor_divide": (lambda x: x // 2, [("x", [15], whole)]),
        "scatter": (lambda idx, v: tf.scatter_nd(idx, v, [12]), [("idx", [3, 1], whole), ("v", [3], real)]),
        "logsigmoid": (tf.math.log_sigmoid, [("x", [2, 4], real)]),
        "log1p": (tf.math.log1p, [("x", [2, 4], real)]),
        "reverse": (lambda x: tf.reverse(x, [0, 2]), [("x", [2, 3, 4], real)]),
        "nms": (boxes, [("b", [8, 4], real), ("s", [8], real)]),
    }
    function, inputs = made[name]
    specs = [tf.TensorSpec(shape, dtype, name=key) for key, shape, dtype in inputs]
    wrapped = tf.function(lambda *values: {"y": function(*values)}, input_signature=specs)
    module = tf.Module()
    module.f = wrapped
    tf.saved_model.save(module, out, signatures=wrapped.get_concrete_function())


def _keras(name, out):
    import keras

    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    if name == "gelu":
        y = keras.layers.Dense(4)(x)
        y = keras.layers.Activation("gelu")(y)
    else:
        y = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(keras.layers.Dense(4)(x)))
    keras.Model(x, y).save(out)


# ONNX


def _onnx(name, out):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {}

    def value(key, shape, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(key, kind, shape)

    def floats(key, *shape):
        weights[key] = rng.standard_normal(shape).astype(np.float32)
        return key

    def longs(key, *numbers):
        weights[key] = np.array(numbers, np.int64)
        return key

    node = helper.make_node
    square = [1, 4, 4, 4]

    def one(op, *more, shape=square, out_shape=square, kind=TensorProto.FLOAT, **attributes):
        return [node(op, ["x", *more], ["y"], **attributes)], [value("x", shape)], [value("y", out_shape, kind)]

    def norm():
        names = [floats("scale", 4), floats("bias", 4), floats("mean", 4), floats("var", 4)]
        weights["var"] = np.abs(weights["var"]) + 0.5
        return one("BatchNormalization", *names)

    made = {
        "softmax_axis2": lambda: one("Softmax", axis=2),
        "conv_concat": lambda: (
            [
                node("Conv", ["x", floats("w", 4, 4, 3, 3)], ["c"], pads=[1, 1, 1, 1]),
                node("Concat", ["c", "x"], ["y"], axis=2),
            ],
            [value("x", square)],
            [value("y", [1, 4, 8, 4])],
        ),
        "slice_axis2": lambda: one(
            "Slice", longs("from", 0), longs("to", 4), longs("axes", 2), longs("step", 2), out_shape=[1, 4, 2, 4]
        ),
        "layer_norm": lambda: one("LayerNormalization", floats("scale", 4), floats("bias", 4), axis=-1),
        "three_channels": lambda: one(
            "Conv", floats("w", 5, 3, 3, 3), shape=[1, 3, 16, 16], out_shape=[1, 5, 14, 14]
        ),
        "cumsum": lambda: one("CumSum", longs("axis", 1), shape=[2, 6], out_shape=[2, 6]),
        "nonzero": lambda: one("NonZero", shape=[2, 3], out_shape=[2, "n"], kind=TensorProto.INT64),
        "batch_norm": norm,
        "pad_pool": lambda: (
            [
                node("Pad", ["x", longs("pads", 0, 0, 1, 1, 0, 0, 1, 1)], ["padded"]),
                node("MaxPool", ["padded"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
            ],
            [value("x", [1, 2, 4, 4])],
            [value("y", [1, 2, 3, 3])],
        ),
        "reshapes": lambda: (
            [
                node("Reshape", ["x", longs("first", 3, 4)], ["r"]),
                node("Reshape", ["r", longs("second", 0, -1)], ["y"]),
            ],
            [value("x", [2, 6])],
            [value("y", [3, 4])],
        ),
        "conv_bn": lambda: (
            [
                node("Conv", ["x", floats("w", 6, 3, 3, 3), floats("b", 6)], ["c"]),
                node(
                    "BatchNormalization", ["c", *(floats(k, 6) for k in ("scale", "bias", "mean", "var"))], ["y"]
                ),
            ],
            [value("x", ["n", 3, 12, 12])],
            [value("y", ["n", 6, 10, 10])],
        ),
    }  # fmt: skip
    nodes, inputs, outputs = made[name]()
    if name == "conv_bn":
        weights["var"] = np.abs(weights["var"]) + 0.5
    stored = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), out)


MAKERS = {"torch": _torch, "tf": _tf, "keras": _keras, "onnx": _onnx}
