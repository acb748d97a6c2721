"""ONNX models that ONNX Runtime computes wrongly by default: a padding with zeros fused into a pooling. Runs in a worker."""

from __future__ import annotations


def write(path, name):
    """Write `single`, `twice`, `plain` (no padding), `folded` (what a wrong optimiser makes of `single`) or `zeroed`."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rim = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "rim")
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}

    def pooled(start, end, **more):
        return helper.make_node("MaxPool", [start], [end], name=end, **window, **more)

    def padded(start, end):
        return helper.make_node("Pad", [start, "rim"], [end], name=end)

    nodes, size = {
        "single": ([padded("x", "p"), pooled("p", "y")], 3),
        "twice": (
            [
                padded("x", "p"),
                pooled("p", "m"),
                helper.make_node("Neg", ["m"], ["n"], name="n"),
                padded("n", "q"),
                pooled("q", "y"),
            ],
            2,
        ),
        "plain": ([pooled("x", "y")], 2),
        "folded": ([pooled("x", "y", pads=[1, 1, 1, 1])], 3),
        "zeroed": ([padded("x", "p"), helper.make_node("Max", ["p"], ["b"], name="b"), pooled("b", "y")], 3),
    }[name]
    ends = [helper.make_tensor_value_info(key, TensorProto.FLOAT, [1, 2, n, n]) for key, n in (("x", 4), ("y", size))]
    graph = helper.make_graph(nodes, name, ends[:1], ends[1:], [rim])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
