"""ONNX models made in the tvm toolchain, what onnx's own evaluator computes of them, and TVM's conversion of them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

RNG = np.random.default_rng(7)


def _weight(name, *shape):
    return numpy_helper.from_array(RNG.normal(size=shape).astype(np.float32), name)


def _ints(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def _model(nodes, inputs, outputs, weights, opset=17):
    def infos(items):
        return [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in items]

    graph = helper.make_graph(nodes, "g", infos(inputs), infos(outputs), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model


F = TensorProto.FLOAT


def _cnn():
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "kernel", "bias"], ["c"], pads=[1, 0, 1, 2], strides=[2, 1]),
        node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], epsilon=1e-3),
        node("Relu", ["n"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("ReduceMean", ["p"], ["m"], axes=[2, 3], keepdims=0),
        node("Gemm", ["m", "dense", "offset"], ["logits"], transB=1),
        node("Softmax", ["logits"], ["odds"], axis=1),
    ]
    variance = numpy_helper.from_array(np.abs(RNG.normal(size=5)).astype(np.float32) + 0.5, "var")
    weights = [_weight("kernel", 5, 3, 3, 3), _weight("bias", 5), _weight("gamma", 5), _weight("beta", 5)]
    weights += [_weight("mean", 5), variance, _weight("dense", 4, 5), _weight("offset", 4)]
    return _model(nodes, [("image", F, ["n", 3, 8, 9])], [("odds", F, ["n", 4]), ("m", F, ["n", 5])], weights)


def _parts():
    """A split whose middle part nobody reads, one weight with two readers, an output given twice and an input given out."""
    node = helper.make_node
    nodes = [
        node("Split", ["x", "sizes"], ["a", "b", "c"], axis=1),
        node("Mul", ["a", "shared"], ["d"]),
        node("Add", ["c", "shared"], ["e"]),
        node("Sub", ["d", "e"], ["y"]),
        node("Identity", ["y"], ["again"]),
        node("Identity", ["x"], ["same"]),
    ]
    weights = [_ints("sizes", 3, 2, 3), _weight("shared", 3)]
    outputs = [("y", F, [2, 3]), ("again", F, [2, 3]), ("same", F, [2, 8])]
    return _model(nodes, [("x", F, [2, 8])], outputs, weights)


def _words():
    """Operators whose attributes are worth telling."""
    node = helper.make_node
    nodes = [
        node("Pad", ["x", "pads", "two"], ["padded"]),
        node("Slice", ["padded", "starts", "ends", "axes", "steps"], ["cut"]),
        node("Transpose", ["cut"], ["turned"], perm=[0, 2, 3, 1]),
        node("Clip", ["turned", "low", "high"], ["clipped"]),
        node("LeakyRelu", ["clipped"], ["leaky"], alpha=0.3),
        node("ConvTranspose", ["x", "up"], ["bigger"], strides=[2, 2], pads=[1, 1, 0, 0]),
        node("Resize", ["x", "", "", "wanted"], ["resized"], mode="linear"),
        node("Concat", ["bigger", "bigger"], ["joined"], axis=1),
        node("Gather", ["table", "index"], ["rows"], axis=0),
    ]
    weights = [_ints("pads", 0, 0, 1, 2, 0, 0, 3, 4), numpy_helper.from_array(np.float32(2.0), "two")]
    weights += [_ints("starts", 1), _ints("ends", 6), _ints("axes", 3), _ints("steps", 2)]
    weights += [numpy_helper.from_array(np.float32(-0.5), "low"), numpy_helper.from_array(np.float32(0.75), "high")]
    weights += [_weight("up", 2, 3, 3, 3), _ints("wanted", 1, 2, 8, 6), _weight("table", 6, 4)]
    outputs = [("leaky", F, [1, 8, 3, 2]), ("joined", F, [1, 6, 8, 6]), ("resized", F, [1, 2, 8, 6])]
    outputs += [("rows", F, [2, 4])]
    inputs = [("x", F, [1, 2, 4, 3]), ("index", TensorProto.INT64, [2])]
    return _model(nodes, inputs, outputs, weights)


_ALL = {"cnn": _cnn, "parts": _parts, "words": _words}


def write(folder):
    """Write every model and its conversion; kind -> {"onnx", "tvm"}."""
    from trueport.converters import tvm

    found = {}
    for kind, make in _ALL.items():
        model = make()
        paths = {form: str(Path(folder) / f"{kind}.{form}") for form in ("onnx", "tvm")}
        onnx.save(model, paths["onnx"])
        tvm.convert("tvm-onnx", paths["onnx"], paths["tvm"], {}, _context(model))
        found[kind] = paths
    return found


def _context(model):
    stored = {item.name for item in model.graph.initializer}
    inputs = [{"name": item.name, "dtype": "float32", "shape": None} for item in model.graph.input]
    for spec in inputs:
        if spec["name"] == "index":
            spec.update(minimum=0, maximum=5)
    return {
        "signature": {
            "inputs": [spec for spec in inputs if spec["name"] not in stored],
            "outputs": [{"name": item.name, "dtype": "float32", "shape": None} for item in model.graph.output],
            "meta": {},
        },
        "example": {},
        "calibration": {},
        "trust": False,
    }


def convert(source, out):
    """Convert one ONNX file."""
    from trueport.converters import tvm

    tvm.convert("tvm-onnx", source, out, {}, _context(onnx.load(source)))


def evaluate(path, inputs, wanted):
    """What onnx's evaluator computes for named values [R, *shape]."""
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = ReferenceEvaluator(model)
    rows = [
        session.run(wanted, {k: v[run] for k, v in inputs.items()}) for run in range(len(next(iter(inputs.values()))))
    ]
    return {name: np.stack([row[place] for row in rows]) for place, name in enumerate(wanted)}


def calling(path, out):
    """A module that calls a function of a library by its name."""
    import tvm
    from tvm import relax

    from trueport.frameworks import _tvm_file

    builder = relax.BlockBuilder()
    type_ = relax.TensorType((2,), "float32")
    x = relax.Var("x", type_)
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(relax.call_dps_packed("anything.at.all", (x,), out_ty=type_)))
    spec = {"name": "x", "dtype": "float32", "shape": [2]}
    _tvm_file.write(out, builder.get(), [spec], [{**spec, "name": "y"}], {})
    assert tvm is not None


def damaged(path, out, what):
    """A copy of a file with one member changed."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for item in source.infolist():
            content = source.read(item)
            if what == "version" and item.filename == "trueport-tvm.json":
                content = json.dumps({**json.loads(content), "format": "trueport/tvm/99"}).encode()
            if what == "module" and item.filename == "module.json":
                content = content[: len(content) // 2]
            if not (what == "missing" and item.filename.endswith("0.npy")):
                target.writestr(item.filename, content)


def one(operator, path):
    """A model of one operator on one input."""
    nodes = [helper.make_node(operator, ["x"], ["y"])]
    onnx.save(_model(nodes, [("x", F, [2, 3])], [("y", F, [2, 3])], []), path)
