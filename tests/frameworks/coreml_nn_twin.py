"""The ONNX twin of a small Core ML network, node by node. Runs inside the onnx toolchain only."""

from __future__ import annotations

import numpy as np


def write(path, weights, alpha, pads):
    """x [1, 3, 8, 8] -> Conv (stride 2) -> LeakyRelu -> Conv (1 x 1) -> y."""
    import onnx
    from onnx import helper, numpy_helper

    first, second = (np.asarray(item, np.float32) for item in weights)
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["c"], name="conv", strides=[2, 2], pads=pads),
        helper.make_node("LeakyRelu", ["c"], ["r"], name="leaky", alpha=alpha),
        helper.make_node("Conv", ["r", "second"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "twin",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
