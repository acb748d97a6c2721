"""One-operator models on which a released converter or runtime is silently wrong, built inside their own toolchain.

The worker calls `build`; the parent never imports a framework. Every model takes generated inputs: no builder hides
the input that shows the fault in a constant.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np


def build(maker, name, out):
    """Write the model `name` of one maker (a key of MAKERS) at `out`."""
    MAKERS[maker](name, out)


# PyTorch


def _torch(name, out):
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(1 if name.endswith("-again") else 0)

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

    class Branches(nn.Module):
        """Two convolutions with BatchNorm that read one input."""

        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 3)
            self.left, self.right = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 1, bias=False)
            self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)])
            for norm in self.norms:
                nn.init.uniform_(norm.weight, 0.5, 2.0)
                for values in (norm.bias, norm.running_mean):
                    nn.init.normal_(values)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            left, right = self.norms[0](self.left(x)), self.norms[1](self.right(x))
            return (torch.relu(left) - torch.sigmoid(right)).mean((2, 3))

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(5, 7, batch_first=True), nn.Linear(7, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    def small():
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 5))

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
        "select_last": lambda: (module(lambda x: x[:, -1], ["x"]), (torch.randn(2, 4, 6),)),
        "index_last": lambda: (module(lambda x: x[:, [0, -1]], ["x"]), (torch.randn(2, 4, 6),)),
        "add_alpha": lambda: (
            module(lambda x, y: torch.add(x, y, alpha=3), ["x", "y"]),
            (torch.randn(2, 6), torch.randn(2, 6)),
        ),
        "arange_ratio": lambda: (module(lambda x: x * (torch.arange(8) / 8), ["x"]), (torch.randn(2, 8),)),
        "selu": lambda: (module(F.selu, ["x"]), (torch.randn(2, 8),)),
        "gelu_tanh": lambda: (module(lambda x: F.gelu(x, approximate="tanh"), ["x"]), (torch.randn(2, 8),)),
        "pad_pool_rim": lambda: (
            module(lambda x: F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 2, 2), ["x"]),
            (torch.randn(1, 2, 4, 4),),
        ),
        "batch_mean": lambda: (
            module(lambda x: x / x.abs().mean(0, keepdim=True), ["x"]),
            (torch.randn(2, 6),),
        ),
        "train_mode": lambda: (Normalised().train(), (torch.randn(2, 3, 8, 8),)),
        "branches": lambda: (Branches(), (torch.randn(1, 3, 8, 8),)),
        "lstm": lambda: (Recurrent(), (torch.randn(1, 4, 5),)),
        "small": lambda: (small(), (torch.randn(1, 3, 8, 8),)),
        "small-again": lambda: (small(), (torch.randn(1, 3, 8, 8),)),
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


def _keras2(name, out):
    """An LSTM as Keras 2.2 saved it, whose hard_sigmoid is clip(0.2 x + 0.5); it knew no `time_major` yet."""
    import json

    import h5py
    import tf_keras as keras

    keras.utils.set_random_seed(0)
    x = keras.Input((6, 4), name="x")
    y = keras.layers.LSTM(5, recurrent_activation="hard_sigmoid", name="lstm")(x)
    keras.Model(x, keras.layers.Dense(3, name="head")(y)).save(out)
    with h5py.File(out, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        for layer in config["config"]["layers"]:
            layer["config"].pop("time_major", None)
        file.attrs["model_config"] = json.dumps(config)


def load_in_keras3(source, out):
    """What a user does with a Keras 2 file in Keras 3: load it and save it again."""
    import keras

    keras.models.load_model(source, compile=False).save(out)


def by_hand(source, out):
    """What a user gets who runs tf2onnx and does not look into its file."""
    if source.endswith(".keras"):
        import keras

        model = keras.models.load_model(source)
        model(np.zeros([1, *model.inputs[0].shape[1:]], np.float32))
        model.export(out, format="onnx", verbose=False)
    else:
        command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", source, "--output", out, "--opset", "17"]
        subprocess.run(command, check=True, capture_output=True)


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

    def statistics(key, count):
        """Scale, bias, mean and variance of a BatchNormalization."""
        names = [floats(f"{key}-{part}", count) for part in ("scale", "bias", "mean", "var")]
        weights[names[-1]] = np.abs(weights[names[-1]]) + 0.5
        return names

    node = helper.make_node
    square = [1, 4, 4, 4]

    def one(op, *more, shape=square, out_shape=square, kind=TensorProto.FLOAT, **attributes):
        return [node(op, ["x", *more], ["y"], **attributes)], [value("x", shape)], [value("y", out_shape, kind)]

    def norm():
        return one("BatchNormalization", *statistics("norm", 4))

    def branches(tied):
        """Two convolutions on one input, each with a BatchNorm; when `tied` with one common weight, one BatchNorm only."""
        nodes = []
        for key, weight in (("left", "w"), ("right", "w" if tied else "u")):
            if weight not in weights:
                floats(weight, 4, 4, 3, 3)
            plain = tied and key == "right"
            made = key if plain else f"{key}-conv"
            nodes.append(node("Conv", ["x", weight], [made], name=f"{key}-conv", pads=[1, 1, 1, 1]))
            if not plain:
                nodes.append(node("BatchNormalization", [made, *statistics(key, 4)], [key], name=f"{key}-norm"))
        nodes += [node("Sigmoid", ["right"], ["gate"]), node("Mul", ["left", "gate"], ["y"])]
        return nodes, [value("x", ["n", 4, 8, 8])], [value("y", ["n", 4, 8, 8])]

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
        "antialias": lambda: one(
            "Resize", "", "", longs("sizes", 1, 4, 3, 3), shape=[1, 4, 7, 8], out_shape=[1, 4, 3, 3], mode="linear",
            antialias=1,
        ),
        "resize_outside": lambda: one(
            "Resize", "", "", longs("sizes", 1, 4, 13, 13), shape=[1, 4, 8, 8], out_shape=[1, 4, 13, 13], mode="cubic",
            exclude_outside=1,
        ),
        "resize_aspect": lambda: one(
            "Resize", "", "", longs("sizes", 8, 8), shape=[1, 4, 8, 16], out_shape=[1, 4, 4, 8], mode="linear",
            keep_aspect_ratio_policy="not_larger", axes=[2, 3],
        ),
        "top_k": lambda: (
            [node("Round", ["x"], ["r"]), node("TopK", ["r", longs("k", 8)], ["values", "places"], axis=-1)],
            [value("x", [2, 32])],
            [value("values", [2, 8]), value("places", [2, 8], TensorProto.INT64)],
        ),
        "lrn": lambda: one("LRN", size=3, alpha=0.5, beta=0.75, bias=1.0),
        "output_padding": lambda: one(
            "ConvTranspose", floats("w", 4, 3, 3, 3), out_shape=[1, 3, 10, 10], strides=[2, 2], output_padding=[1, 1]
        ),
        "prelu": lambda: one("PRelu", floats("slope", 4, 1, 1)),
        "layer_norm": lambda: one("LayerNormalization", floats("scale", 4), floats("bias", 4), axis=-1),
        "conv_norm": lambda: (
            [
                node("Conv", ["x", floats("w", 4, 4, 3, 3)], ["c"], pads=[1, 1, 1, 1]),
                node("LayerNormalization", ["c", floats("scale", 4), floats("bias", 4)], ["y"], axis=-1),
            ],
            [value("x", square)],
            [value("y", square)],
        ),
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
        "conv_bn_twice": lambda: branches(tied=False),
        "conv_bn_tied": lambda: branches(tied=True),
        "gemm_beta": lambda: (
            [
                node("Gemm", ["x", floats("w", 6, 4), floats("b", 4)], ["g"], beta=2.0),
                node("BatchNormalization", ["g", *statistics("norm", 4)], ["y"]),
            ],
            [value("x", ["n", 6])],
            [value("y", ["n", 4])],
        ),
        "conv_bn": lambda: (
            [
                node("Conv", ["x", floats("w", 6, 3, 3, 3), floats("b", 6)], ["c"]),
                node("BatchNormalization", ["c", *statistics("norm", 6)], ["y"]),
            ],
            [value("x", ["n", 3, 12, 12])],
            [value("y", ["n", 6, 10, 10])],
        ),
    }  # fmt: skip
    nodes, inputs, outputs = made[name]()
    stored = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    opset = 18 if name in ("antialias", "resize_outside", "resize_aspect") else 17
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), out)


MAKERS = {"torch": _torch, "tf": _tf, "keras": _keras, "keras2": _keras2, "onnx": _onnx}
