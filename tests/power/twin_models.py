"""Pairs of ONNX models, an honest source and a twin that is wrong in one way, built in the onnx toolchain.

`build(name, folder)` writes NAME.source.onnx and NAME.twin.onnx. The parent never imports onnx.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FLOAT, INT64, BOOL, HALF, DOUBLE = 1, 7, 9, 10, 11


class Graph:
    """A model in the making. Inputs, outputs and weights are dictionaries; `add` appends a node and names its output."""

    def __init__(self, **inputs):
        self.inputs = {name: shape if isinstance(shape, tuple) else (shape, FLOAT) for name, shape in inputs.items()}
        self.nodes, self.weights, self.outputs = [], {}, {}

    def weight(self, array):
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(array)
        return name

    def add(self, op, *inputs, out=None, **attributes):
        from onnx import helper

        name = out or f"v{len(self.nodes)}"
        given = [item if isinstance(item, str) else self.weight(item) for item in inputs]
        self.nodes.append(helper.make_node(op, given, [name], **attributes))
        return name

    def give(self, value, name, shape, kind=FLOAT):
        """Make a value an output."""
        self.add("Identity", value, out=name)
        self.outputs[name] = (shape, kind)
        return self

    def save(self, path):
        import onnx
        from onnx import helper, numpy_helper

        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "g",
            [info(name, kind, shape) for name, (shape, kind) in self.inputs.items()],
            [info(name, kind, shape) for name, (shape, kind) in self.outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(made, str(path))


def f32(array):
    return np.asarray(array, np.float32)


def normal(*shape, seed=1):
    return f32(np.random.default_rng(seed).standard_normal(shape))


def i64(*values):
    return np.array(values, np.int64)


def dense(graph, x="x", width=6, classes=10):
    """Logits and features of a small classifier."""
    hidden = graph.add("Relu", graph.add("Gemm", x, normal(width, 16, seed=1), normal(16, seed=2)))
    return graph.add("Gemm", hidden, normal(16, classes, seed=3), normal(classes, seed=4)), hidden


def classifier(change=None, names=("y", "z"), batch="n"):
    """Source (no change) or twin: `change(graph, logits, features)` returns what the outputs shall be."""
    graph = Graph(x=[batch, 6])
    logits, features = dense(graph)
    if change is not None:
        logits, features = change(graph, logits, features)
    graph.give(logits, names[0], [batch, 10]).give(features, names[1], [batch, 16])
    return graph


def single(change=None, shape=("n", 10), kind=FLOAT, batch="n"):
    """The classifier with its logits alone."""
    graph = Graph(x=[batch, 6])
    logits, _ = dense(graph)
    return graph.give(logits if change is None else change(graph, logits), "y", list(shape), kind)


def bump(size, index, amount):
    array = np.zeros(size, np.float32)
    array.flat[index] = amount
    return array


def rows(graph):
    """The batch size as a float."""
    size = graph.add("Gather", graph.add("Shape", "x"), np.int64(0))
    return graph.add("Cast", size, to=FLOAT)


def _two_alike(order, names):
    graph = Graph(x=["n", 6])
    a, _ = dense(graph)
    b = graph.add("Neg", graph.add("Mul", a, f32(0.5)))
    for name, index in zip(names, order, strict=True):
        graph.give((a, b)[index], name, ["n", 10])
    return graph


def _two_inputs(names, swapped=False, formula=lambda g, a, b: g.add("Sub", a, g.add("Mul", b, f32(2.0)))):
    graph = Graph(**{name: ["n", 6] for name in names})
    a, b = reversed(names) if swapped else names
    return graph.give(formula(graph, a, b), "y", ["n", 6])


def _picture(layout):
    """x [1, 4, 4, 4]: equal channels, height and width, so that no shape tells a wrong layout."""
    graph = Graph(x=[1, 4, 4, 4])
    x = graph.add("Transpose", "x", perm=[0, 3, 1, 2]) if layout in ("nhwc", "nhwc-in") else "x"
    y = graph.add("Conv", x, normal(4, 4, 3, 3), pads=[1, 1, 1, 1])
    y = graph.add("Transpose", y, perm=[0, 2, 3, 1]) if layout in ("nhwc", "nhwc-out") else y
    return graph.give(y, "y", [1, 4, 4, 4])


def _elementwise(change=None, shape=("n", 6)):
    graph = Graph(x=list(shape))
    y = graph.add("LeakyRelu", "x", alpha=0.2)
    return graph.give(y if change is None else change(graph), "y", list(shape))


def _many(amount=None, index=7_777):
    graph = Graph(x=[1, 150, 150])
    y = graph.add("Tanh", "x")
    if amount is not None:
        y = graph.add("Add", y, bump((1, 150, 150), index, amount))
    return graph.give(y, "y", [1, 150, 150])


def _ids(change=None, kind=INT64):
    """y from integers whose range nothing shows."""
    graph = Graph(ids=(["n", 5], kind))
    y = graph.add("Cast", "ids", to=FLOAT)
    y = graph.add("Sin", y) if change is None else change(graph, y)
    return graph.give(y, "y", ["n", 5])


def _constant(value):
    graph = Graph()
    return graph.give(graph.add("Identity", f32(value)), "y", [2])


def _empty(good):
    graph = Graph(x=["n", 6])
    graph.give(graph.add("Slice", "x", i64(0), i64(0), i64(1)), "y", ["n", 0])
    if good:
        graph.give(graph.add("Tanh", "x"), "z", ["n", 6])
    return graph


def _scalar(factor=1.0, shape=()):
    graph = Graph(x=[1, 6])
    y = graph.add("Mul", graph.add("ReduceMean", "x", keepdims=0), f32(factor))
    y = graph.add("Reshape", y, np.array(shape, np.int64)) if shape else y
    return graph.give(y, "y", list(shape))


def _random(scale):
    graph = Graph(x=["n", 6])
    noise = graph.add("Mul", graph.add("RandomNormalLike", "x"), f32(scale))
    return graph.give(graph.add("Add", graph.add("Tanh", "x"), noise), "y", ["n", 6])


def _threshold(level, kind=BOOL):
    graph = Graph(x=["n", 64])
    y = graph.add("Greater", "x", f32(level))
    return graph.give(y if kind == BOOL else graph.add("Cast", y, to=kind), "y", ["n", 64], kind)


def _norm(epsilon):
    graph = Graph(x=["n", 6])
    y = graph.add("LayerNormalization", "x", normal(6, seed=5), normal(6, seed=6), epsilon=epsilon)
    return graph.give(y, "y", ["n", 6])


def _half(graph, value):
    return graph.add("Cast", graph.add("Cast", value, to=HALF), to=FLOAT)


def _only_first(graph, logits, features):
    """Right for one sample per call, wrong beyond."""
    extra = graph.add("Sub", rows(graph), f32(1.0))
    return graph.add("Add", logits, graph.add("Mul", extra, f32(0.01))), features


def _first_row_everywhere(graph, logits, features):
    """Every row gets the first row's answer, as of a reduction over a baked batch."""
    first = graph.add("Gather", logits, i64(0), axis=0)
    zero = graph.add("Mul", logits, f32(0.0))
    return graph.add("Add", zero, first), features


def _ignores(graph, logits):
    return graph.add("Add", graph.add("Mul", logits, f32(0.0)), normal(10, seed=4))


def _drop(graph):
    del graph.outputs["z"]
    return graph


def _nan_at_zero(graph):
    ratio = graph.add("Div", "x", "x")
    return graph.add("Mul", graph.add("LeakyRelu", "x", alpha=0.2), ratio)


def _clipped(graph):
    return graph.add("LeakyRelu", graph.add("Clip", "x", f32(-100.0), f32(100.0)), alpha=0.2)


def _late_modulo(graph, y):
    whole = graph.add("Mod", "ids", np.int64(100), fmod=0)
    return graph.add("Sin", graph.add("Cast", whole, to=FLOAT))


def _truncated(graph, y):
    """Floor division by 2 as truncation."""
    return graph.add("Sin", graph.add("Cast", graph.add("Div", "ids", np.int64(2)), to=FLOAT))


def _floored(graph, y):
    return graph.add("Sin", graph.add("Floor", graph.add("Div", y, f32(2.0))))


def _table(order):
    graph = Graph(ids=(["n", 5], INT64))
    table = normal(8, 3, seed=7)[list(order)]
    y = graph.add("Gather", table, graph.add("Abs", graph.add("Mod", "ids", np.int64(8))))
    return graph.give(y, "y", ["n", 5, 3])


def _argmax(graph, logits, last=0):
    return graph.add("ArgMax", logits, axis=1, keepdims=0, select_last_index=last)


def _class(amount):
    return lambda g, y: g.add("Add", y, bump((10,), 3, amount))


def _fixed_rows(graph, y):
    return graph.add("Reshape", y, i64(10))


PAIRS = {
    "same": (classifier, classifier),
    "output-dropped": (classifier, lambda: _drop(classifier())),
    "output-added": (lambda: _drop(classifier()), classifier),
    "one-renamed": (classifier, lambda: classifier(names=("y", "other"))),
    "all-renamed": (classifier, lambda: classifier(names=("a", "b"))),
    "swapped-names-kept": (lambda: _two_alike((0, 1), ("y", "z")), lambda: _two_alike((1, 0), ("y", "z"))),
    "swapped-renamed": (lambda: _two_alike((0, 1), ("y", "z")), lambda: _two_alike((1, 0), ("a", "b"))),
    "reordered-names-kept": (lambda: _two_alike((0, 1), ("y", "z")), lambda: _two_alike((1, 0), ("z", "y"))),
    "cast-int": (single, lambda: single(lambda g, y: g.add("Cast", y, to=INT64), kind=INT64)),
    "cast-bool": (single, lambda: single(lambda g, y: g.add("Cast", y, to=BOOL), kind=BOOL)),
    "cast-half": (single, lambda: single(lambda g, y: g.add("Cast", y, to=HALF), kind=HALF)),
    "cast-double": (single, lambda: single(lambda g, y: g.add("Cast", y, to=DOUBLE), kind=DOUBLE)),
    "half-inside": (single, lambda: single(_half)),
    "batch-axis-lost": (lambda: single(batch=1, shape=(1, 10)), lambda: single(_fixed_rows, batch=1, shape=(10,))),
    "constant": (single, lambda: single(_ignores)),
    "nan": (single, lambda: single(lambda g, y: g.add("Mul", y, f32(np.nan)))),
    "nan-at-zero": (_elementwise, lambda: _elementwise(_nan_at_zero)),
    "batch-fixed": (single, lambda: single(batch=1, shape=(1, 10))),
    "right-for-one-sample": (classifier, lambda: classifier(_only_first)),
    "first-row-everywhere": (classifier, lambda: classifier(_first_row_everywhere)),
    "right-for-positive": (_elementwise, lambda: _elementwise(lambda g: g.add("Relu", "x"))),
    "right-below-100": (_elementwise, lambda: _elementwise(_clipped)),
    "one-of-many": (_many, lambda: _many(1e-2)),
    "one-of-many-slightly": (_many, lambda: _many(1e-4, 0)),
    "one-class": (single, lambda: single(_class(0.05))),
    "one-class-slightly": (single, lambda: single(_class(1e-3))),
    "small-bias": (single, lambda: single(lambda g, y: g.add("Add", y, f32(1e-4)))),
    "small-scale": (single, lambda: single(lambda g, y: g.add("Mul", y, f32(1.0001)))),
    "inputs-swapped-renamed": (lambda: _two_inputs(("a", "b")), lambda: _two_inputs(("p", "q"), swapped=True)),
    "inputs-renamed": (lambda: _two_inputs(("a", "b")), lambda: _two_inputs(("p", "q"))),
    "inputs-swapped-names-kept": (lambda: _two_inputs(("a", "b")), lambda: _two_inputs(("a", "b"), swapped=True)),
    "second-input-ignored": (
        lambda: _two_inputs(("a", "b")),
        lambda: _two_inputs(("a", "b"), formula=lambda g, a, b: g.add("Add", a, g.add("Mul", b, f32(0.0)))),
    ),
    "layout-in-and-out": (lambda: _picture("nchw"), lambda: _picture("nhwc")),
    "layout-in": (lambda: _picture("nchw"), lambda: _picture("nhwc-in")),
    "layout-out": (lambda: _picture("nchw"), lambda: _picture("nhwc-out")),
    "ids-large": (_ids, lambda: _ids(_late_modulo)),
    "ids-negative": (lambda: _ids(_floored), lambda: _ids(_truncated)),
    "ids-table": (lambda: _table(range(8)), lambda: _table((0, 1, 2, 3, 4, 5, 7, 6))),
    "no-input-same": (lambda: _constant([1, 2]), lambda: _constant([1, 2])),
    "no-input-other": (lambda: _constant([1, 2]), lambda: _constant([1, 2.1])),
    "empty": (lambda: _empty(False), lambda: _empty(False)),
    "empty-beside-good": (lambda: _empty(True), lambda: _empty(True)),
    "scalar-same": (_scalar, _scalar),
    "scalar-scaled": (_scalar, lambda: _scalar(1.001)),
    "scalar-with-axis": (_scalar, lambda: _scalar(shape=(1,))),
    "random-source": (lambda: _random(0.1), lambda: _random(0.0)),
    "random-target": (lambda: _random(0.0), lambda: _random(0.1)),
    "random-both": (lambda: _random(0.1), lambda: _random(0.1)),
    "threshold-same": (lambda: _threshold(0.1), lambda: _threshold(0.1)),
    "threshold-moved": (lambda: _threshold(0.1), lambda: _threshold(0.11)),
    "threshold-as-number": (lambda: _threshold(0.1), lambda: _threshold(0.1, INT64)),
    "epsilon": (lambda: _norm(1e-5), lambda: _norm(1e-3)),
    "epsilon-slightly": (lambda: _norm(1e-5), lambda: _norm(1e-6)),
    "argmax-same": (
        lambda: single(_argmax, shape=("n",), kind=INT64),
        lambda: single(_argmax, shape=("n",), kind=INT64),
    ),
    "argmax-other-class": (
        lambda: single(_argmax, shape=("n",), kind=INT64),
        lambda: single(lambda g, y: _argmax(g, _class(2.0)(g, y)), shape=("n",), kind=INT64),
    ),
}


def build(name, folder):
    """Write both models of a pair."""
    for side, make in zip(("source", "twin"), PAIRS[name], strict=True):
        make().save(Path(folder) / f"{name}.{side}.onnx")


def build_all(folder):
    for name in PAIRS:
        build(name, folder)
    return sorted(PAIRS)


def build_stateful(folder):
    """Two TFLite models that agree on the first call: y = x · count, where count grows with every call, and y = x · 1."""
    import tensorflow as tf

    spec = [tf.TensorSpec([1, 4], tf.float32, name="x")]

    class Counting(tf.Module):
        def __init__(self):
            super().__init__()
            self.count = tf.Variable([0.0])

        @tf.function(input_signature=spec)
        def call(self, x):
            self.count.assign_add([1.0])
            return {"y": x * self.count}

    class Plain(tf.Module):
        @tf.function(input_signature=spec)
        def call(self, x):
            return {"y": x * 1.0}

    for name, module in (("counting", Counting()), ("plain", Plain())):
        saved = str(Path(folder) / name)
        tf.saved_model.save(module, saved, signatures=module.call.get_concrete_function())
        converter = tf.lite.TFLiteConverter.from_saved_model(saved)
        converter.experimental_enable_resource_variables = True
        Path(f"{saved}.tflite").write_bytes(converter.convert())
