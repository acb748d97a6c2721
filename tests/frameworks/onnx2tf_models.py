"""Small ONNX models for onnx2tf, their reference outputs, and a run of a SavedModel.

Runs inside toolchains only (called by name through a worker): `_build`, `write_models` and `reference` in the onnx
toolchain, `run_saved_model` where TensorFlow is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def _build():
    """Name -> (nodes, inputs, outputs, weights): every shape in words, weights seeded."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    node, f, i64 = helper.make_node, TensorProto.FLOAT, TensorProto.INT64

    def w(name, *shape):
        return numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(np.float32), name)

    def c(name, value, dtype):
        return numpy_helper.from_array(np.array(value, dtype), name)

    def conv(x, weight, y, **more):
        return node("Conv", [x, *weight.split()], [y], kernel_shape=[3, 3], pads=[1, 1, 1, 1], **more)

    return {
        "residual": (
            [
                conv("x", "w1 b1", "c1"), node("Relu", ["c1"], ["r1"]), conv("r1", "w2", "c2"),
                node("Add", ["c2", "r1"], ["sum"]), node("Relu", ["sum"], ["r2"]),
                node("GlobalAveragePool", ["r2"], ["p"]), node("Flatten", ["p"], ["flat"]),
                node("Gemm", ["flat", "w3"], ["y"], transB=1),
            ],
            [("x", f, ["N", 3, 16, 20])], [("y", f, ["N", 5])],
            [w("w1", 8, 3, 3, 3), w("b1", 8), w("w2", 8, 8, 3, 3), w("w3", 5, 8)],
        ),
        "depthwise": (
            [
                conv("x", "w1", "c1", group=6), node("Clip", ["c1", "low", "high"], ["r1"]),
                node("Conv", ["r1", "w2"], ["y"], kernel_shape=[1, 1]),
            ],
            [("x", f, [1, 6, 8, 10])], [("y", f, [1, 4, 8, 10])],
            [w("w1", 6, 1, 3, 3), w("w2", 4, 6, 1, 1), c("low", 0, np.float32), c("high", 6, np.float32)],
        ),
        "lstm": (
            [node("LSTM", ["x", "w", "r", "b"], ["y", "last"], hidden_size=6, direction="bidirectional")],
            [("x", f, [7, 1, 4])], [("y", f, [7, 2, 1, 6]), ("last", f, [2, 1, 6])],
            [w("w", 2, 24, 4), w("r", 2, 24, 6), w("b", 2, 48)],
        ),
        "gru": (
            [node("GRU", ["x", "w", "r", "b"], ["y", "last"], hidden_size=6, linear_before_reset=1)],
            [("x", f, [7, 1, 4])], [("y", f, [7, 1, 1, 6]), ("last", f, [1, 1, 6])],
            [w("w", 1, 18, 4), w("r", 1, 18, 6), w("b", 1, 36)],
        ),
        "attention": (
            [
                node("MatMul", ["x", "wq"], ["q"]), node("MatMul", ["x", "wk"], ["k"]), node("MatMul", ["x", "wv"], ["v"]),
                node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]), node("MatMul", ["q", "kt"], ["s"]),
                node("Softmax", ["s"], ["p"], axis=-1), node("MatMul", ["p", "v"], ["o"]), node("Add", ["o", "x"], ["h"]),
                node("LayerNormalization", ["h", "gamma", "beta"], ["y"], axis=-1),
            ],
            [("x", f, [1, 7, 8])], [("y", f, [1, 7, 8])],
            [w("wq", 8, 8), w("wk", 8, 8), w("wv", 8, 8), w("gamma", 8), w("beta", 8)],
        ),
        "two_in_two_out": (
            [
                conv("img:0", "w1", "a"), node("GlobalAveragePool", ["a"], ["p"]), node("Flatten", ["p"], ["flat"]),
                node("Concat", ["flat", "extra"], ["both"], axis=1), node("Gemm", ["both", "w2"], ["scores"]),
                node("Sigmoid", ["a"], ["mask"]),
            ],
            [("img:0", f, [1, 3, 8, 10]), ("extra", f, [1, 2])], [("scores", f, [1, 4]), ("mask", f, [1, 6, 8, 10])],
            [w("w1", 6, 3, 3, 3), w("w2", 8, 4)],
        ),
        "embedding": (
            [node("Gather", ["table", "tokens"], ["y"])], [("tokens", i64, [1, 7])], [("y", f, [1, 7, 4])], [w("table", 10, 4)],
        ),
        "square": ([conv("x", "w b", "c"), node("Relu", ["c"], ["y"])], [("x", f, [1, 4, 4, 4])], [("y", f, [1, 4, 4, 4])], [w("w", 4, 4, 3, 3), w("b", 4)]),
        "square_softmax": ([node("Softmax", ["x"], ["y"], axis=2)], [("x", f, [1, 4, 4, 4])], [("y", f, [1, 4, 4, 4])], []),
        "square_concat": ([conv("x", "w", "c"), node("Concat", ["c", "x"], ["y"], axis=2)], [("x", f, [1, 4, 4, 4])], [("y", f, [1, 4, 8, 4])], [w("w", 4, 4, 3, 3)]),
        "distinct_concat": ([conv("x", "w", "c"), node("Concat", ["c", "x"], ["y"], axis=2)], [("x", f, [1, 4, 5, 6])], [("y", f, [1, 4, 10, 6])], [w("w", 4, 4, 3, 3)]),
        "foreign": ([node("Foo", ["x"], ["y"], domain="my.ops")], [("x", f, [2, 3])], [("y", f, [2, 3])], []),
    }  # fmt: skip


def write_models(folder):
    """Write every model as opset 17 into `folder`; returns name -> path."""
    import onnx
    from onnx import helper

    paths = {}
    for name, (nodes, inputs, outputs, weights) in _build().items():
        sides = [[helper.make_tensor_value_info(*item) for item in side] for side in (inputs, outputs)]
        graph = helper.make_graph(nodes, name, *sides, weights)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.ops", 1)]
        paths[name] = str(Path(folder) / f"{name}.onnx")
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), paths[name])
    return paths


def reference(path, runs, seed):
    """Seeded inputs [R, ...] (batch 1 where it is free) and the outputs of ONNX Runtime without optimisation."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    inputs = {}
    for item in session.get_inputs():
        shape = [runs, *(size if isinstance(size, int) else 1 for size in item.shape)]
        inputs[item.name] = rng.integers(0, 10, shape) if "int64" in item.type else rng.standard_normal(shape).astype(np.float32)  # fmt: skip
    names = [item.name for item in session.get_outputs()]
    rows = [session.run(names, {key: array[run] for key, array in inputs.items()}) for run in range(runs)]
    return {"inputs": inputs, "outputs": {name: np.stack([row[i] for row in rows]) for i, name in enumerate(names)}}


def run_saved_model(path, feeds):
    """Run a SavedModel's serving signature (inside the toolchain that has TensorFlow)."""
    import tensorflow

    function = tensorflow.saved_model.load(path).signatures["serving_default"]
    return {key: item.numpy() for key, item in function(**{key: tensorflow.constant(value) for key, value in feeds.items()}).items()}  # fmt: skip
