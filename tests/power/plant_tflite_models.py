"""TFLite models on which every kind of fault has a place. `write` runs in a worker of the litert toolchain."""

from __future__ import annotations

import numpy as np
from tflite_models import Graph  # from tests/frameworks, which the caller puts on the path


class Net:
    """Operators in a row, with seeded weights; every computed tensor is called after its operator."""

    def __init__(self, g, seed):
        self.g, self.rng = g, np.random.default_rng(seed)

    def weights(self, *shape, scale=0.4):
        return self.g.constant(f"w{len(self.g.graph.tensors)}", self.rng.normal(0, scale, shape).astype(np.float32))

    def ints(self, *values):
        return self.g.constant(f"i{len(self.g.graph.tensors)}", np.array(values, np.int32))

    def number(self, *values):
        return self.g.constant(f"f{len(self.g.graph.tensors)}", np.array(values, np.float32))

    def add(self, code, inputs, shape, options=None, version=1, dtype="float32", **values):
        out = self.g.tensor(f"{code.lower()}_{len(self.g.graph.tensors)}", dtype, shape)
        self.g.operator(code, inputs, [out], options, **values)
        self.g.model.operatorCodes[-1].version = version
        return out


def pictures(g):
    """Pads, convolutions, pooling, a resize and two branches, flattened into a dense layer."""
    net = Net(g, 1)
    x = g.tensor("image", "float32", [1, 8, 8, 3])
    pads = net.ints([0, 0], [0, 1], [0, 1], [0, 0])
    v = net.add("PAD", [x, pads], [1, 9, 9, 3], "PadOptions")
    conv = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    v = net.add("CONV_2D", [v, net.weights(4, 3, 3, 3), net.weights(4)], [1, 9, 9, 4], "Conv2DOptions", **conv,
                fusedActivationFunction=1)  # fmt: skip
    v = net.add("CONV_2D", [v, net.weights(4, 3, 3, 4), net.weights(4)], [1, 9, 9, 4], "Conv2DOptions", **conv)
    v = net.add("LEAKY_RELU", [v], [1, 9, 9, 4], "LeakyReluOptions", alpha=0.2)
    v = net.add("DEPTHWISE_CONV_2D", [v, net.weights(1, 3, 3, 4), net.weights(4)], [1, 9, 9, 4],
                "DepthwiseConv2DOptions", depthMultiplier=1, **conv, fusedActivationFunction=3)  # fmt: skip
    pool = {"filterHeight": 2, "filterWidth": 2, "strideH": 2, "strideW": 2}
    small = net.add("AVERAGE_POOL_2D", [v], [1, 5, 5, 4], "Pool2DOptions", **pool)
    size = net.ints(9, 9)
    big = net.add("RESIZE_BILINEAR", [small, size], [1, 9, 9, 4], "ResizeBilinearOptions", halfPixelCenters=True)
    both = net.add("CONCATENATION", [v, big], [1, 9, 9, 8], "ConcatenationOptions", axis=3)
    twice = net.add("CONCATENATION", [big, v], [1, 9, 9, 8], "ConcatenationOptions", axis=3)
    v = net.add("ADD", [both, twice], [1, 9, 9, 8], "AddOptions")
    v = net.add("PRELU", [v, net.weights(1, 1, 8)], [1, 9, 9, 8])
    v = net.add("MAX_POOL_2D", [v], [1, 4, 4, 8], "Pool2DOptions", padding=1, **pool)
    v = net.add("RESHAPE", [v, net.ints(1, 128)], [1, 128], "ReshapeOptions")
    v = net.add("FULLY_CONNECTED", [v, net.weights(4, 128, scale=0.1), net.weights(4)], [1, 4], "FullyConnectedOptions")
    g.ends([x], [net.add("SOFTMAX", [v], [1, 4], "SoftmaxOptions", beta=1.0)])


def tokens(g):
    """An embedding, attention over square matrices, a normalisation written out, GELU and a choice of steps."""
    net = Net(g, 2)
    x = g.tensor("tokens", "int32", [1, 6])
    v = net.add("GATHER", [net.weights(9, 6, scale=1.0), x], [1, 6, 6], "GatherOptions", axis=0)
    turned = net.add("TRANSPOSE", [v, net.ints(0, 2, 1)], [1, 6, 6], "TransposeOptions")
    scores = net.add("BATCH_MATMUL", [v, turned], [1, 6, 6], "BatchMatMulOptions")
    scores = net.add("MUL", [scores, net.number(0.4)], [1, 6, 6], "MulOptions")
    scores = net.add("SOFTMAX", [scores], [1, 6, 6], "SoftmaxOptions", beta=1.0)
    seen = net.add("BATCH_MATMUL", [scores, v], [1, 6, 6], "BatchMatMulOptions")
    v = net.add("ADD", [v, seen], [1, 6, 6], "AddOptions")
    mean = net.add("MEAN", [v, net.ints(2)], [1, 6, 1], "ReducerOptions", keepDims=True)
    centred = net.add("SUB", [v, mean], [1, 6, 6], "SubOptions")
    square = net.add("SQUARED_DIFFERENCE", [v, mean], [1, 6, 6], "SquaredDifferenceOptions")
    variance = net.add("MEAN", [square, net.ints(2)], [1, 6, 1], "ReducerOptions", keepDims=True)
    safe = net.add("ADD", [variance, net.number(1e-5)], [1, 6, 1], "AddOptions")
    inverse = net.add("RSQRT", [safe], [1, 6, 1])
    v = net.add("MUL", [centred, inverse], [1, 6, 6], "MulOptions")
    v = net.add("MUL", [v, net.weights(6, scale=1.0)], [1, 6, 6], "MulOptions")
    v = net.add("FULLY_CONNECTED", [v, net.weights(6, 6), net.weights(6)], [1, 6, 6], "FullyConnectedOptions",
                keepNumDims=True)  # fmt: skip
    v = net.add("GELU", [v], [1, 6, 6], "GeluOptions", approximate=False)
    v = net.add("GATHER", [v, net.ints(4, 2, 0)], [1, 3, 6], "GatherOptions", axis=1)
    v = net.add("STRIDED_SLICE", [v, net.ints(0, 1, 0), net.ints(1, 2, 6), net.ints(1, 1, 1)], [1, 6],
                "StridedSliceOptions", beginMask=5, endMask=5, shrinkAxisMask=2)  # fmt: skip
    g.ends([x], [net.add("FULLY_CONNECTED", [v, net.weights(6, 6), net.weights(6)], [1, 6], "FullyConnectedOptions")])


def steps(g):
    """An LSTM operator, its results beside their tanh, and a loop with a dense layer in its body."""
    net = Net(g, 3)
    x = g.tensor("steps", "float32", [1, 5, 3])
    gates = [*(net.weights(4, 3) for _ in range(4)), *(net.weights(4, 4) for _ in range(4))]
    biases = [net.weights(4) for _ in range(4)]
    state = [g.tensor(name, "float32", [1, 4], variable=True) for name in ("hidden", "cell")]
    absent = [-1] * 4
    v = net.add("UNIDIRECTIONAL_SEQUENCE_LSTM", [x, *gates, *absent[:3], *biases, *absent[:2], *state, *absent],
                [1, 5, 4], "UnidirectionalSequenceLSTMOptions", fusedActivationFunction=4)  # fmt: skip
    bent = net.add("TANH", [v], [1, 5, 4])
    v = net.add("CONCATENATION", [v, bent], [1, 10, 4], "ConcatenationOptions", axis=1)
    v = net.add("RESHAPE", [v, net.ints(1, 40)], [1, 40], "ReshapeOptions")
    v = net.add("FULLY_CONNECTED", [v, net.weights(4, 40), net.weights(4)], [1, 4], "FullyConnectedOptions")
    count, looped = g.tensor("count", "int32", [1]), g.tensor("looped", "float32", [1, 4])
    g.operator("WHILE", [net.ints(0), v], [count, looped], "WhileOptions", condSubgraphIndex=1, bodySubgraphIndex=2)
    g.ends([x], [net.add("MUL", [looped, net.number(2.0, 1.0, 0.5, -1.0)], [1, 4], "MulOptions")])
    inner = Net(Graph(g.model), 4)
    ends = inner.g.tensor("i", "int32", [1]), inner.g.tensor("v", "float32", [1, 4])
    inner.g.ends(ends, [inner.add("LESS", [ends[0], inner.ints(3)], [1], "LessOptions", dtype="bool")])
    inner = Net(Graph(g.model), 5)
    i, v = inner.g.tensor("i", "int32", [1]), inner.g.tensor("v", "float32", [1, 4])
    following = inner.add("ADD", [i, inner.ints(1)], [1], "AddOptions", dtype="int32")
    dense = inner.add(
        "FULLY_CONNECTED", [v, inner.weights(4, 4, scale=0.8), inner.weights(4)], [1, 4], "FullyConnectedOptions"
    )
    inner.g.ends([i, v], [following, dense])


def grid(g):
    """Two int8 layers between QUANTIZE and DEQUANTIZE."""
    net = Net(g, 6)
    x = g.tensor("x", "float32", [1, 8])
    v = g.tensor("quantised", "int8", [1, 8], scale=0.03, zero=4)
    g.operator("QUANTIZE", [x], [v], "QuantizeOptions")
    for number, step in enumerate((0.05, 0.08)):
        steps = net.rng.integers(-127, 128, (8, 8)).astype(np.int8)
        scale = 0.01 if number else 0.008
        before = (0.03, 0.05)[number]
        w = g.constant(f"w{number}", steps, scale=[scale], zero=[0])
        b = g.constant(f"b{number}", net.rng.integers(-900, 900, 8).astype(np.int32), scale=[scale * before], zero=[0])
        out = g.tensor(f"dense{number}", "int8", [1, 8], scale=step, zero=-7)
        g.operator("FULLY_CONNECTED", [v, w, b], [out], "FullyConnectedOptions", fusedActivationFunction=1 - number)
        g.model.operatorCodes[-1].version = 4
        v = out
    y = g.tensor("y", "float32", [1, 8])
    g.operator("DEQUANTIZE", [v], [y], "DequantizeOptions")
    g.model.operatorCodes[-1].version = 2
    g.ends([x], [y])


MODELS = {"pictures": pictures, "tokens": tokens, "steps": steps, "grid": grid}


def write(folder):
    """Write every model; returns name -> path."""
    import tflite_models

    kept = tflite_models.MODELS
    try:
        tflite_models.MODELS = MODELS
        return tflite_models.write(folder)
    finally:
        tflite_models.MODELS = kept
