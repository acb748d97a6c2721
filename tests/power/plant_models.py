"""ONNX models on which every kind of fault has a place. `build` runs in a worker of the onnx toolchain."""

from __future__ import annotations

import numpy as np


class Net:
    """Nodes in a row; every value gets the name of its node with `:0` behind it."""

    def __init__(self, opset, seed):
        self.nodes, self.stored, self.opset = [], [], opset
        self.rng = np.random.default_rng(seed)

    def constant(self, array):
        from onnx import numpy_helper

        name = f"c{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weights(self, *shape, scale=0.3, low=None):
        numbers = self.rng.normal(0, scale, shape) if low is None else self.rng.uniform(low, low + 1, shape)
        return self.constant(numbers.astype(np.float32))

    def add(self, operator, *inputs, outputs=1, **attributes):
        from onnx import helper

        name = f"n{len(self.nodes)}_{operator}"
        names = [f"{name}:{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=name, **attributes))
        return names[0]

    def model(self, inputs, outputs):
        from onnx import TensorProto, helper

        kinds = {"float": TensorProto.FLOAT, "int": TensorProto.INT64}
        given = [helper.make_tensor_value_info(name, kinds[kind], shape) for name, kind, shape in inputs]
        made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs]
        graph = helper.make_graph(self.nodes, "g", given, made, self.stored)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def norm(net, x, channels):
    parts = [
        net.weights(channels, low=0.5),
        net.weights(channels),
        net.weights(channels),
        net.weights(channels, low=0.2),
    ]
    return net.add("BatchNormalization", x, *parts, epsilon=1e-5)


def pictures():
    """Convolutions of every sort, pools with pads, resizing, branches that are joined and subtracted."""
    net = Net(18, 1)
    x = net.add("Conv", "image", net.weights(8, 3, 3, 3), net.weights(8), pads=[1, 1, 1, 1], strides=[2, 2])
    x = norm(net, x, 8)
    x = net.add("LeakyRelu", x, alpha=0.1)
    left = net.add("Conv", x, net.weights(8, 8, 3, 3), net.weights(8), auto_pad="SAME_UPPER", strides=[2, 2])
    right = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1])
    left = net.add("Elu", left, alpha=1.0)
    right = net.add("HardSigmoid", right, alpha=0.2)
    both = net.add("Sub", left, right)
    both = net.add("AveragePool", both, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
    wide = net.add("Concat", both, left, axis=1)
    wide = net.add("Clip", wide, net.constant(np.float32(-0.5)), net.constant(np.float32(0.4)))
    wide = net.add("ConvTranspose", wide, net.weights(16, 4, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1])
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    wide = net.add("Resize", wide, "", scales, mode="nearest", coordinate_transformation_mode="half_pixel")
    more = net.add("Conv", wide, net.weights(4, 4, 3, 3), pads=[1, 1, 1, 1])
    wide = net.add("Add", wide, more)
    wide = net.add("Relu", net.add("Conv", wide, net.weights(8, 4, 1, 1), net.weights(8)))
    wide = net.add("AveragePool", wide, kernel_shape=[2, 2], strides=[2, 2])
    wide = net.add("MaxPool", wide, kernel_shape=[2, 2], strides=[2, 2])
    turned = net.add("Transpose", wide, perm=[0, 3, 2, 1])
    flat = net.add("Flatten", turned)
    y = net.add("Gemm", flat, net.weights(5, 128, scale=0.1), net.weights(5), transB=1)
    return net.model([("image", "float", ["batch", 3, 16, 16])], [(y, ["batch", 5])])


def tokens():
    """An embedding, LayerNorm whole and written out, attention over three axes, GELU, a slice and an index."""
    net = Net(20, 2)
    x = net.add("Gather", net.weights(11, 8, scale=1.0), "ids", axis=0)
    x = net.add("Add", x, net.weights(1, 8, 8))
    x = net.add("LayerNormalization", x, net.weights(8, low=0.5), net.weights(8), axis=-1, epsilon=1e-5)
    q = net.add("Add", net.add("MatMul", x, net.weights(8, 8)), net.weights(8))
    k = net.add("Transpose", net.add("MatMul", x, net.weights(8, 8)), perm=[0, 2, 1])
    scores = net.add("Mul", net.add("MatMul", q, k), net.constant(np.float32(0.35)))
    size = net.add("Gather", net.add("Shape", x), net.constant(np.array([0])))
    scores = net.add("Div", scores, net.add("Cast", size, to=1))
    x = net.add("Add", x, net.add("MatMul", net.add("Softmax", scores, axis=-1), q))
    mean = net.add("ReduceMean", x, net.constant(np.array([-1])), keepdims=1)
    centred = net.add("Sub", x, mean)
    power = net.add("ReduceMean", net.add("Mul", centred, centred), net.constant(np.array([-1])), keepdims=1)
    x = net.add("Div", centred, net.add("Sqrt", net.add("Add", power, net.constant(np.float32(1e-5)))))
    x = net.add("Add", net.add("Mul", x, net.weights(8, low=0.5)), net.weights(8))
    x = net.add("Gelu", x)
    part = net.constant
    first = net.add("Slice", x, part(np.array([1])), part(np.array([5])), part(np.array([1])))
    last = net.add("Gather", x, part(np.array([2])), axis=1)
    x = net.add("Sigmoid", net.add("Mul", first, last))
    x = net.add("Concat", x, net.add("Tanh", x), axis=2)
    y = net.add("ReduceMean", net.add("MatMul", x, net.weights(16, 4)), net.constant(np.array([1])), keepdims=0)
    return net.model([("ids", "int", [6, 8])], [(y, [6, 4])])


def steps():
    """A bidirectional LSTM, a GRU, and a transposition between them."""
    net = Net(17, 3)
    x = net.add("Transpose", "steps", perm=[1, 0, 2])
    x = net.add(
        "LSTM",
        *(x, net.weights(2, 20, 4), net.weights(2, 20, 5), net.weights(2, 40)),
        hidden_size=5,
        direction="bidirectional",
    )
    x = net.add("Transpose", x, perm=[0, 2, 1, 3])
    x = net.add("Reshape", x, net.constant(np.array([6, -1, 10])))
    net.add("GRU", x, net.weights(1, 15, 10), net.weights(1, 15, 5), net.weights(1, 30), hidden_size=5, outputs=2)
    y = net.add("Squeeze", f"{net.nodes[-1].name}:1", net.constant(np.array([0])))
    y = net.add("MatMul", y, net.weights(5, 3))
    return net.model([("steps", "float", [2, 6, 4])], [(y, [2, 3])])


def pooled():
    """Windows on odd sizes before a global pool, which takes any size; parts joined along the height; interpolation."""
    net = Net(17, 5)
    x = net.add("Conv", "image", net.weights(6, 2, 3, 3), net.weights(6), strides=[2, 2])
    x = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.add("Concat", x, net.add("Tanh", x), axis=2)
    x = net.add("Resize", x, "", net.constant(np.array([1, 1, 2, 2], np.float32)), mode="linear")
    x = net.add("Conv", x, net.weights(4, 6, 2, 3), net.weights(4))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    y = net.add("Gemm", x, net.weights(4, 4), net.weights(4))
    return net.model([("image", "float", [1, 2, 19, 23])], [(y, [1, 4])])


def deaf():
    """One branch of the sum is too faint to be heard."""
    net = Net(17, 4)
    loud = net.add("MatMul", "x", net.weights(16, 16))
    faint = net.add("Mul", net.add("Gemm", "x", net.weights(16, 16)), net.constant(np.float32(3e-8)))
    return net.model([("x", "float", [4, 16])], [(net.add("Add", loud, faint), [4, 16])])


MODELS = {"pictures": pictures, "tokens": tokens, "steps": steps, "pooled": pooled, "deaf": deaf}


def build(name, out):
    """Write the model `name` to `out`."""
    import onnx

    model = MODELS[name]()
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, out)
    return out
