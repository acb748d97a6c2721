"""Small TFLite files for edits, and what a file consists of, told so that two of them can be compared. Runs in a worker."""

from __future__ import annotations

import hashlib
import json

import numpy as np


def picture(g):
    """A small network of pictures with a free batch: convolution, pooling, flattening with its batch written down, dense layer."""
    x = g.tensor("x", "float32", [1, 6, 6, 2], free=[-1, 6, 6, 2])
    kernel = g.constant("kernel", np.linspace(-1, 1, 3 * 3 * 3 * 2, dtype=np.float32).reshape(3, 3, 3, 2))
    bias = g.constant("bias", np.array([0.5, -0.25, 0.125], np.float32))
    conv = g.tensor("conv", "float32", [1, 6, 6, 3], free=[-1, 6, 6, 3])
    pool, flat = g.tensor("pool", "float32", [1, 3, 3, 3], free=[-1, 3, 3, 3]), g.tensor("flat", "float32", [1, 27])
    shape = g.constant("shape", np.array([1, 27], np.int32))
    w = g.constant("w", np.linspace(-1, 1, 4 * 27, dtype=np.float32).reshape(4, 27) ** 3)
    y = g.tensor("y", "float32", [1, 4])
    g.operator("CONV_2D", [x, kernel, bias], [conv], "Conv2DOptions", strideH=1, strideW=1, padding=0,
               fusedActivationFunction=1)  # fmt: skip
    g.operator("MAX_POOL_2D", [conv], [pool], "Pool2DOptions", filterHeight=2, filterWidth=2, strideH=2, strideW=2,
               padding=1)  # fmt: skip
    g.operator("RESHAPE", [pool, shape], [flat], "ReshapeOptions", newShape=[1, 27])
    g.operator("FULLY_CONNECTED", [flat, w, -1], [y], "FullyConnectedOptions")
    g.ends([x], [y, conv], (["image"], ["scores", "features"]))
    named = g.schema.MetadataT()
    named.name, named.buffer = "notes", g.tensor("unused", "uint8", [3], data=np.array([7, 8, 9], np.uint8))
    named.buffer = g.graph.tensors[named.buffer].buffer
    g.model.metadata = [named]


def shared(g):
    """u = x + c, v = u * c, with one constant."""
    x, c = g.tensor("x", "float32", [1, 3]), g.constant("c", np.array([2.0, 3.0, 4.0], np.float32))
    u, v = g.tensor("u", "float32", [1, 3]), g.tensor("v", "float32", [1, 3])
    g.operator("ADD", [x, c], [u], "AddOptions")
    g.operator("MUL", [u, c], [v], "MulOptions")
    g.ends([x], [v])


def shared_half(g):
    """The same with the constant stored as float16."""
    x, c = g.tensor("x", "float32", [1, 3]), g.constant("c", np.array([2.0, 3.0, 4.0], np.float16))
    wide, u, v = (g.tensor(name, "float32", [3] if name == "wide" else [1, 3]) for name in ("wide", "u", "v"))
    g.operator("DEQUANTIZE", [c], [wide], "DequantizeOptions")
    g.operator("ADD", [x, wide], [u], "AddOptions")
    g.operator("MUL", [u, wide], [v], "MulOptions")
    g.ends([x], [v])


def steps(g):
    """Three dense layers on grids, the second one's activation on its own; weights with a scale for each row."""
    rng = np.random.default_rng(1)
    value = g.tensor("x", "int8", [1, 4], scale=0.05, zero=3)
    first = value
    for number, scale in enumerate((0.1, 0.2, 0.3)):
        w = g.constant(f"w{number}", rng.integers(-127, 128, (4, 4)).astype(np.int8), scale=[0.01, 0.02, 0.005, 0.01])
        before = (0.05, 0.1, 0.2)[number]
        b = g.constant(f"b{number}", rng.integers(-200, 200, 4).astype(np.int32),
                       scale=np.float32(before) * np.array([0.01, 0.02, 0.005, 0.01], np.float32))  # fmt: skip
        h = g.tensor(f"h{number}", "int8", [1, 4], scale=scale, zero=-5)
        g.operator("FULLY_CONNECTED", [value, w, b], [h], "FullyConnectedOptions")
        g.model.operatorCodes[-1].version = 4
        value = h
    y = g.tensor("y", "int8", [1, 4], scale=0.3, zero=-5)
    g.operator("RELU", [value], [y])
    g.ends([first], [y])


def middle(g):
    """y = -m, m = -x with two axes of space and three channels, for operators put in between."""
    x, m, y = (g.tensor(name, "float32", [1, 4, 5, 3], free=[-1, 4, 5, 3]) for name in ("x", "m", "y"))
    g.operator("NEG", [x], [m], "NegOptions")
    g.operator("NEG", [m], [y], "NegOptions")
    g.ends([x], [y])


def middle_int8(g):
    """y = m with m = x on the same grid, in steps of 1/16 from -8 to 7.9."""
    x, m, y = (g.tensor(name, "int8", [1, 4, 5, 3], scale=1 / 16, zero=0) for name in ("x", "m", "y"))
    g.operator("RESHAPE", [x, g.constant("s", np.array([1, 4, 5, 3], np.int32))], [m], "ReshapeOptions")
    g.operator("RESHAPE", [m, g.constant("t", np.array([1, 4, 5, 3], np.int32))], [y], "ReshapeOptions")
    g.ends([x], [y])


def moves(g):
    """Operators side by side on one input of [2, 3, 4], for attributes that are operands or options."""
    x = g.tensor("x", "float32", [2, 3, 4])
    outputs = []

    def ints(*values):
        return g.constant(f"table_{len(g.graph.tensors)}", np.array(values, np.int32))

    def add(code, inputs, shape, options=None, **values):
        outputs.append(g.tensor(code.lower(), "float32", shape))
        g.operator(code, inputs, [outputs[-1]], options, **values)

    add("TRANSPOSE", [x, ints(0, 2, 1)], [2, 4, 3], "TransposeOptions")
    add("MEAN", [x, ints(2)], [2, 3, 1], "ReducerOptions", keepDims=True)
    add("SOFTMAX", [x], [2, 3, 4], "SoftmaxOptions", beta=1.0)
    add("LEAKY_RELU", [x], [2, 3, 4], "LeakyReluOptions", alpha=0.5)
    add("CONCATENATION", [x, x], [2, 3, 8], "ConcatenationOptions", axis=2)
    add("PAD", [x, ints([0, 0], [1, 0], [0, 0])], [2, 4, 4], "PadOptions")
    add("SLICE", [x, ints(0, 1, 0), ints(2, 2, -1)], [2, 2, 4], "SliceOptions")
    add("STRIDED_SLICE", [x, ints(0, 0, 1), ints(2, 3, 4), ints(1, 1, 2)], [2, 3, 2], "StridedSliceOptions")
    add("RELU6", [x], [2, 3, 4])
    add("ELU", [x], [2, 3, 4])
    add("ADD", [x, x], [2, 3, 4], "AddOptions")
    add("RESHAPE", [x, ints(6, 4)], [6, 4], "ReshapeOptions", newShape=[6, 4])
    add("GATHER", [x, ints(1, 0)], [2, 2, 4], "GatherOptions", axis=1)
    g.ends([x], outputs)


def island(g):
    """y = -float32(float16(|x|))."""
    x, a, y = (g.tensor(name, "float32", [1, 3]) for name in ("x", "a", "y"))
    half, back = g.tensor("half", "float16", [1, 3]), g.tensor("back", "float32", [1, 3])
    g.operator("ABS", [x], [a], "AbsOptions")
    g.operator("CAST", [a], [half], "CastOptions", inDataType=0, outDataType=1)
    g.operator("CAST", [half], [back], "CastOptions", inDataType=1, outDataType=0)
    g.operator("NEG", [back], [y], "NegOptions")
    g.ends([x], [y])


def bare(g):
    """A dense layer on grids without a bias."""
    x, y = g.tensor("x", "int8", [1, 4], scale=0.5, zero=3), g.tensor("y", "int8", [1, 2], scale=0.5, zero=-10)
    w = g.constant("w", np.array([[1, -2, 3, 4], [5, 6, -7, 8]], np.int8), scale=[0.25, 0.5])
    g.operator("FULLY_CONNECTED", [x, w, -1], [y], "FullyConnectedOptions")
    g.model.operatorCodes[-1].version = 4
    g.ends([x], [y])


def windows(g):
    """A convolution of four channels and a pooling, side by side on a picture of 7 by 7, without padding."""
    x = g.tensor("x", "float32", [1, 7, 7, 4])
    kernel = g.constant("kernel", np.linspace(-1, 1, 2 * 3 * 3 * 4, dtype=np.float32).reshape(2, 3, 3, 4))
    conv, most = g.tensor("conv", "float32", [1, 5, 5, 2]), g.tensor("most", "float32", [1, 3, 3, 4])
    mean = g.tensor("mean", "float32", [1, 3, 3, 4])
    bias = g.constant("bias", np.zeros(2, np.float32))
    g.operator("CONV_2D", [x, kernel, bias], [conv], "Conv2DOptions", strideH=1, strideW=1, padding=1)
    for code, out in (("MAX_POOL_2D", most), ("AVERAGE_POOL_2D", mean)):
        g.operator(code, [x], [out], "Pool2DOptions", filterHeight=2, filterWidth=2, strideH=2, strideW=2, padding=1)
    g.ends([x], [conv, most, mean])


def write(folder):
    """Write the models of this file; returns name -> path."""
    import tflite_models

    kept = tflite_models.MODELS
    try:
        tflite_models.MODELS = {
            function.__name__: function
            for function in (picture, shared, shared_half, steps, middle, middle_int8, moves, island, bare, windows)
        }
        return tflite_models.write(folder)
    finally:
        tflite_models.MODELS = kept


def facts(path):
    """All that a file says: every table of it as plain values, the bytes of constants as their hashes."""
    from trueport.frameworks._tflite_model import Model

    root = Model(path).root
    hashes = [hashlib.sha256(np.asarray(item.data, np.uint8).tobytes() if item.data is not None else b"").hexdigest()
              for item in root.buffers]  # fmt: skip
    root.buffers = []
    told = {"root": {key: _plain(value) for key, value in vars(root).items() if key not in ("subgraphs", "buffers")}}
    told["buffers"] = hashes
    told["tensors"] = [[_plain(item) for item in graph.tensors] for graph in root.subgraphs]
    told["operators"] = [[_plain(item) for item in graph.operators] for graph in root.subgraphs]
    told["ends"] = [[_plain(graph.inputs), _plain(graph.outputs)] for graph in root.subgraphs]
    return json.loads(json.dumps(told))


def _plain(value):
    if isinstance(value, (np.ndarray, list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return {key: _plain(item) for key, item in vars(value).items()} if hasattr(value, "__dict__") else value
