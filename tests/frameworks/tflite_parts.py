"""What the tests of TFLite's `replay` ask inside a worker: a loop, and what a part that is cut out consists of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tflite_models import Graph


def loop(g):
    """Doubles x three times, then adds one; the loop's counter is read by nobody after it."""
    x, start = g.tensor("x", "float32", [2]), g.constant("start", np.array([0], np.int32))
    scaled = g.tensor("scaled", "float32", [2])
    count, looped, y = (
        g.tensor("count", "int32", [1]),
        g.tensor("looped", "float32", [2]),
        g.tensor("y", "float32", [2]),
    )
    g.operator("MUL", [x, g.constant("half", np.array([0.5], np.float32))], [scaled], "MulOptions")
    g.operator("WHILE", [start, scaled], [count, looped], "WhileOptions", condSubgraphIndex=1, bodySubgraphIndex=2)
    g.operator("ADD", [looped, g.constant("one", np.array([1], np.float32))], [y], "AddOptions")
    g.ends([x], [y])
    condition = Graph(g.model)
    i, value, more = condition.tensor("i", "int32", [1]), condition.tensor("v", "float32", [2]), None
    more = condition.tensor("more", "bool", [1])
    condition.operator("LESS", [i, condition.constant("limit", np.array([3], np.int32))], [more], "LessOptions")
    condition.ends([i, value], [more])
    body = Graph(g.model)
    i, value = body.tensor("i", "int32", [1]), body.tensor("v", "float32", [2])
    following, doubled = body.tensor("next", "int32", [1]), body.tensor("doubled", "float32", [2])
    body.operator("ADD", [i, body.constant("step", np.array([1], np.int32))], [following], "AddOptions")
    body.operator("MUL", [value, body.constant("two", np.array([2], np.float32))], [doubled], "MulOptions")
    body.constant("unread", np.array([5], np.float32))
    body.ends([i, value], [following, doubled])


def chain(g):
    """Three dense layers, each with 4096 weights of its own."""
    rng = np.random.default_rng(0)
    value = g.tensor("x", "float32", [1, 64])
    ends = [value]
    for number in range(3):
        weights = g.constant(f"w{number}", rng.standard_normal((64, 64)).astype(np.float32))
        following = g.tensor(f"h{number}", "float32", [1, 64])
        g.operator("FULLY_CONNECTED", [value, weights, -1], [following], "FullyConnectedOptions")
        value = following
    g.ends([*ends], [value])


def vocabulary(g):
    """Operators whose ONNX attributes have to be worked out. They stand side by side, each on an input of its own shape."""
    image, free = (
        g.tensor("image", "float32", [1, 7, 8, 4]),
        g.tensor("free", "float32", [1, 1, 1, 4], free=[1, -1, -1, 4]),
    )
    kernel, each = (
        g.constant("kernel", np.ones((2, 3, 3, 4), np.float32)),
        g.constant("each", np.ones((1, 5, 5, 4), np.float32)),
    )
    two, four = (g.constant(f"zeros_{size}", np.zeros(size, np.float32)) for size in (2, 4))
    outputs = []

    def add(code, inputs, shape, options=None, dtype="float32", **values):
        number = len(outputs)
        outputs.append(g.tensor(f"{code.lower()}_{number}", dtype, shape))
        g.operator(code, inputs, [outputs[-1]], options, **values)

    def ints(*values):
        return g.constant(f"constant_{len(g.graph.tensors)}", np.array(values, np.int32))

    step = {"strideH": 2, "strideW": 2}
    add("CONV_2D", [image, kernel, two], [1, 4, 4, 2], "Conv2DOptions", padding=0, **step)
    add("CONV_2D", [free, kernel, two], [1, 1, 1, 2], "Conv2DOptions", padding=0, strideH=1, strideW=1)
    add("DEPTHWISE_CONV_2D", [image, each, four], [1, 7, 8, 4], "DepthwiseConv2DOptions", strideH=1, strideW=1,
        depthMultiplier=1, dilationHFactor=2, dilationWFactor=1)  # fmt: skip
    add("MAX_POOL_2D", [image], [1, 4, 4, 4], "Pool2DOptions", padding=0, filterHeight=3, filterWidth=3, **step)
    add("AVERAGE_POOL_2D", [image], [1, 3, 4, 4], "Pool2DOptions", padding=1, filterHeight=2, filterWidth=2, **step)
    back = g.constant("back", np.ones((4, 3, 3, 4), np.float32))
    add("TRANSPOSE_CONV", [ints(1, 14, 16, 4), back, image], [1, 14, 16, 4], "TransposeConvOptions", **step)
    sizes = ints(14, 16)
    add("RESIZE_BILINEAR", [image, sizes], [1, 14, 16, 4], "ResizeBilinearOptions", halfPixelCenters=True)
    add("RESIZE_NEAREST_NEIGHBOR", [image, sizes], [1, 14, 16, 4], "ResizeNearestNeighborOptions", alignCorners=True)
    add("STRIDED_SLICE", [image, ints(9, 1, -1, 0), ints(9, 6, 0, 0), ints(1, 2, -1, 1)], [1, 3, 7],
        "StridedSliceOptions", beginMask=1, endMask=1, shrinkAxisMask=8)  # fmt: skip
    add("SLICE", [image, ints(0, 1, 2, 0), ints(1, 5, -1, 4)], [1, 5, 6, 4], "SliceOptions")
    add("MIRROR_PAD", [image, ints([0, 0], [1, 2], [0, 0], [0, 0])], [1, 10, 8, 4], "MirrorPadOptions", mode=1)
    add("GELU", [image], [1, 7, 8, 4], "GeluOptions", approximate=True)
    add("CAST", [image], [1, 7, 8, 4], "CastOptions", dtype="int32", inDataType=0, outDataType=2)
    add("LOCAL_RESPONSE_NORMALIZATION", [image], [1, 7, 8, 4], "LocalResponseNormalizationOptions", radius=2, bias=1.0,
        alpha=0.5, beta=0.75)  # fmt: skip
    g.ends([image, free], outputs)


def write(folder):
    """Write the models of this file; returns name -> path."""
    import tflite_models

    kept = tflite_models.MODELS
    try:
        tflite_models.MODELS = {"loop": loop, "chain": chain, "vocabulary": vocabulary}
        return tflite_models.write(folder)
    finally:
        tflite_models.MODELS = kept


def part_of(path, given, wanted):
    """Cut a part out; returns its size in bytes, its operators and the file offsets of its constants."""
    from ai_edge_litert import schema_py_generated as schema

    from trueport.frameworks import _tflite_model, _tflite_replay

    model = _tflite_model.open_model(path)
    index_of = {tensor.name: tensor.number for tensor in model.tensors}
    part = _tflite_replay.cut(model, frozenset(index_of[name] for name in given), tuple(index_of[n] for n in wanted))
    content = np.frombuffer(part.content, np.uint8)
    read = schema.Model.GetRootAs(part.content, 0)
    offsets = []
    for number in range(read.BuffersLength()):
        if read.Buffers(number).DataLength():
            data = read.Buffers(number).DataAsNumpy()
            offsets.append(data.__array_interface__["data"][0] - content.__array_interface__["data"][0])
    return {
        "bytes": len(part.content),
        "whole": Path(path).stat().st_size,
        "operators": read.Subgraphs(0).OperatorsLength(),
        "subgraphs": read.SubgraphsLength(),
        "offsets": offsets,
    }
