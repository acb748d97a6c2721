"""Small TFLite files, written operator by operator with the flatbuffer schema, so that every number in them is known.

Runs inside the litert toolchain only (called by name through a worker). Weights are small and hand-made: the tests
compute the expected outputs from the same formulas.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

DTYPES = {
    "float32": 0,
    "float16": 1,
    "int32": 2,
    "uint8": 3,
    "int64": 4,
    "str": 5,
    "bool": 6,
    "int8": 9,
    "resource": 13,
    "int4": 17,
}


def grid(rows, columns):
    """A matrix without symmetries: (i - j/2 + 1)/4."""
    i, j = np.mgrid[:rows, :columns]
    return ((i - j / 2 + 1) / 4).astype(np.float32)


class Graph:
    """One subgraph under construction; buffers and operator codes are shared by all subgraphs of a model."""

    def __init__(self, model):
        from ai_edge_litert import schema_py_generated as schema

        self.schema, self.model = schema, model
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.inputs, self.graph.outputs = [], [], [], []
        model.subgraphs.append(self.graph)

    def tensor(self, name, dtype, shape, *, free=None, scale=None, zero=None, axis=0, data=None, variable=False):
        tensor = self.schema.TensorT()
        tensor.name, tensor.type, tensor.shape, tensor.isVariable = name, DTYPES[dtype], list(shape), variable
        tensor.hasRank = True
        tensor.shapeSignature = None if free is None else list(free)
        if scale is not None:
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = list(np.atleast_1d(scale))
            tensor.quantization.zeroPoint = list(
                np.atleast_1d(zero if zero is not None else np.zeros(np.size(scale), int))
            )
            tensor.quantization.quantizedDimension = axis
        tensor.buffer = 0
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, name, data, **more):
        data = np.asarray(data)
        return self.tensor(name, more.pop("dtype", data.dtype.name), more.pop("shape", data.shape), data=data, **more)

    def operator(self, code, inputs, outputs, options=None, *, custom=None, **values):
        schema = self.schema
        number = getattr(schema.BuiltinOperator, code)
        found = schema.OperatorCodeT()
        found.builtinCode, found.deprecatedBuiltinCode, found.version = number, min(number, 127), 1
        found.customCode = custom
        self.model.operatorCodes.append(found)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        if options is not None:
            operator.builtinOptions = getattr(schema, f"{options}T")()
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            for key, value in values.items():
                setattr(operator.builtinOptions, key, value)
        self.graph.operators.append(operator)

    def ends(self, inputs, outputs, signature=None):
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)
        if signature is None:
            return
        found = self.schema.SignatureDefT()
        found.signatureKey, found.subgraphIndex = "serving_default", 0
        for side, indices, names in (("inputs", inputs, signature[0]), ("outputs", outputs, signature[1])):
            maps = []
            for index, name in zip(indices, names, strict=True):
                entry = self.schema.TensorMapT()
                entry.name, entry.tensorIndex = name, index
                maps.append(entry)
            setattr(found, side, maps[::-1])  # a map has no order: readers must use the graph's
        self.model.signatureDefs = [found]


def linear(g):
    x = g.tensor("x:0", "float32", [1, 4], free=[-1, 4])
    w, b = g.constant("w", grid(3, 4)), g.constant("b", np.array([0.5, -2.0, 0.25], np.float32))
    y = g.tensor("y:0", "float32", [1, 3], free=[-1, 3])
    g.operator("FULLY_CONNECTED", [x, w, b], [y], "FullyConnectedOptions", fusedActivationFunction=1)
    g.ends([x], [y], (["features"], ["scores"]))


def two_in_two_out(g):
    a, b = g.tensor("a", "float32", [2]), g.tensor("b", "float32", [2])
    total, product = g.tensor("total", "float32", [2]), g.tensor("product", "float32", [2])
    g.operator("ADD", [a, b], [total], "AddOptions")
    g.operator("MUL", [a, total], [product], "MulOptions")
    g.ends([a, b], [product, total], (["first", "second"], ["out_product", "out_total"]))


def quantised(g):
    x = g.tensor("x", "int8", [1, 4], scale=0.5, zero=3)
    steps = np.array([[1, -2, 3, 4], [5, 6, -7, 8], [9, -10, 11, 12]], np.int8)
    w = g.constant("w", steps, scale=[0.25, 0.5, 0.125])
    b = g.constant("b", np.array([4, -8, 16], np.int32), scale=[0.125, 0.25, 0.0625])
    y = g.tensor("y", "int8", [1, 3], scale=0.5, zero=-10)
    g.operator("FULLY_CONNECTED", [x, w, b], [y], "FullyConnectedOptions")
    g.model.operatorCodes[-1].version = 4
    g.ends([x], [y])


def half_weights(g):
    x, y = g.tensor("x", "float32", [2, 2]), g.tensor("y", "float32", [2, 2])
    w, wide = g.constant("w16", grid(2, 2).astype(np.float16)), g.tensor("w", "float32", [2, 2])
    g.operator("DEQUANTIZE", [w], [wide], "DequantizeOptions")
    g.operator("ADD", [x, wide], [y], "AddOptions")
    g.ends([x], [y])


def dynamic_range(g):
    x, y = g.tensor("x", "float32", [1, 4]), g.tensor("y", "float32", [1, 2])
    w = g.constant("w", np.array([[1, 2, 3, 4], [-5, 6, 7, 127]], np.int8), scale=0.01)
    g.operator("FULLY_CONNECTED", [x, w, -1], [y], "FullyConnectedOptions")
    g.model.operatorCodes[-1].version = 3
    g.ends([x], [y])


def lookup(g):
    index = g.tensor("tokens", "int32", [1, 3])
    flat = g.tensor("flat", "int32", [3])
    table = g.constant("table", grid(10, 2))
    y = g.tensor("y", "float32", [3, 2])
    g.operator("RESHAPE", [index, g.constant("shape", np.array([3], np.int32))], [flat], "ReshapeOptions", newShape=[3])
    g.operator("GATHER", [table, flat], [y], "GatherOptions", axis=0)
    g.ends([index], [y])


def recurrent(g):
    x = g.tensor("x", "float32", [1, 2, 2])
    w, r = g.constant("w", grid(3, 2)), g.constant("r", grid(3, 3))
    b = g.constant("b", np.array([0.1, 0.2, 0.3], np.float32))
    state = g.tensor("state", "float32", [1, 3], variable=True)
    y = g.tensor("y", "float32", [1, 2, 3])
    g.operator("UNIDIRECTIONAL_SEQUENCE_RNN", [x, w, r, b, state], [y], "SequenceRNNOptions", fusedActivationFunction=4)
    g.ends([x], [y])


def counter(g):
    """y = x + total; total = y, with total in a resource variable that an initialiser graph sets to zero."""
    x, y = g.tensor("x", "float32", [2]), g.tensor("y", "float32", [2])
    handle, total = g.tensor("handle", "resource", []), g.tensor("total", "float32", [2])
    g.operator("CALL_ONCE", [], [], "CallOnceOptions", initSubgraphIndex=1)
    g.operator("VAR_HANDLE", [], [handle], "VarHandleOptions", sharedName="total", container="")
    g.operator("READ_VARIABLE", [handle], [total], "ReadVariableOptions")
    g.operator("ADD", [x, total], [y], "AddOptions")
    g.operator("ASSIGN_VARIABLE", [handle, y], [], "AssignVariableOptions")
    g.ends([x], [y])
    start = Graph(g.model)
    handle, zero = start.tensor("handle", "resource", []), start.constant("zero", np.zeros(2, np.float32))
    start.operator("VAR_HANDLE", [], [handle], "VarHandleOptions", sharedName="total", container="")
    start.operator("ASSIGN_VARIABLE", [handle, zero], [], "AssignVariableOptions")
    start.ends([], [])


def branches(g):
    """IF: y = x + c when the condition holds, else x * c; c is passed to both branches as an operand."""
    condition, x = g.tensor("condition", "bool", [1]), g.tensor("x", "float32", [2])
    c, y = g.constant("c", np.array([3.0, 5.0], np.float32)), g.tensor("y", "float32", [2])
    g.operator("IF", [condition, x, c], [y], "IfOptions", thenSubgraphIndex=1, elseSubgraphIndex=2)
    g.ends([condition, x], [y])
    for code, options in (("ADD", "AddOptions"), ("MUL", "MulOptions")):
        inner = Graph(g.model)
        a, b, out = (inner.tensor(name, "float32", [2]) for name in ("a", "b", "out"))
        inner.operator(code, [a, b], [out], options)
        inner.ends([a, b], [out])


def positive_places(g):
    """WHERE(x > 0): the number of rows depends on the values."""
    x, zero = g.tensor("x", "float32", [4]), g.constant("zero", np.zeros(1, np.float32))
    mask, y = g.tensor("mask", "bool", [4]), g.tensor("y", "int64", [0, 1], free=[-1, 1])
    g.operator("GREATER", [x, zero], [mask], "GreaterOptions")
    g.operator("WHERE", [mask], [y], "WhereOptions")
    g.ends([x], [y])


def same_names(g):
    x, inner = g.tensor("t", "float32", [2]), g.tensor("t", "float32", [2])
    nameless, y = g.tensor("", "float32", [2]), g.tensor("y", "float32", [2])
    g.operator("NEG", [x], [inner], "NegOptions")
    g.operator("ABS", [inner], [nameless], "AbsOptions")
    g.operator("EXP", [nameless], [y], "ExpOptions")
    g.ends([x], [y, y])


def convolution(g):
    """Pad, then a strided convolution with ReLU6 and one of its weights' grids per output channel."""
    x = g.tensor("x", "float32", [1, 5, 6, 2])
    pads = g.constant("pads", np.array([[0, 0], [1, 2], [3, 4], [0, 0]], np.int32))
    padded = g.tensor("padded", "float32", [1, 8, 13, 2])
    kernel = g.constant("kernel", np.arange(3 * 2 * 2 * 2, dtype=np.float32).reshape(3, 2, 2, 2) / 8 - 1)
    bias, y = g.constant("bias", np.zeros(3, np.float32)), g.tensor("y", "float32", [1, 4, 6, 3])
    g.operator("PAD", [x, pads], [padded], "PadOptions")
    g.operator(
        "CONV_2D",
        [padded, kernel, bias],
        [y],
        "Conv2DOptions",
        strideH=2,
        strideW=2,
        padding=1,
        fusedActivationFunction=3,
    )
    g.ends([x], [y])


def custom(g, code="MyThing"):
    x, y = g.tensor("x", "float32", [2]), g.tensor("y", "float32", [2])
    g.operator("CUSTOM", [x], [y], custom=code)
    g.ends([x], [y])


def flex(g):
    custom(g, "FlexErf")


def text(g):
    x, y = g.tensor("words", "str", [2]), g.tensor("y", "str", [2])
    g.operator("RESHAPE", [x, g.constant("shape", np.array([2], np.int32))], [y], "ReshapeOptions", newShape=[2])
    g.ends([x], [y])


def small_integers(g):
    """Weights of four bits, two to a byte, low half first: 1, -2, 7, -8, 3."""
    x, y = g.tensor("x", "float32", [1, 5]), g.tensor("y", "float32", [1, 1])
    packed = np.array([0xE1, 0x87, 0x03], np.uint8)
    w = g.constant("w", packed, dtype="int4", shape=[1, 5], scale=0.5)
    g.operator("FULLY_CONNECTED", [x, w, -1], [y], "FullyConnectedOptions")
    g.ends([x], [y])


def stray_axis(g):
    """A convolution whose bias names the weights' axis 3, as old converters wrote it."""
    quantised(g)
    g.graph.tensors[2].quantization.quantizedDimension = 3


MODELS = {
    function.__name__: function
    for function in (
        linear, two_in_two_out, quantised, half_weights, dynamic_range, lookup, recurrent, counter, branches,
        positive_places, same_names, convolution, custom, flex, text, small_integers, stray_axis,
    )
}  # fmt: skip


def write(folder):
    """Write every model into `folder`; returns name -> path."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    paths = {}
    for name, build in MODELS.items():
        model = schema.ModelT()
        model.version, model.description = 3, "hand-made"
        model.buffers, model.operatorCodes, model.subgraphs = [schema.BufferT()], [], []
        build(Graph(model))
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        paths[name] = str(Path(folder) / f"{name}.tflite")
        Path(paths[name]).write_bytes(bytes(builder.Output()))
    return paths
