"""Small OpenVINO models for tests, and looks into their files. Runs in the worker, where OpenVINO is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def draw(seed: int, *shape: int) -> np.ndarray:
    """Numbers from a normal distribution, the same for the same seed."""
    return (np.random.default_rng(seed).normal(size=shape) * 0.5).astype(np.float32)


def save(kind: str, out: str) -> str:
    """Write one of BUILDERS as float32 IR."""
    import openvino

    openvino.save_model(BUILDERS[kind](), out, compress_to_fp16=kind.startswith("half"))
    return out


def _input(name: str, *shape: int, dtype: str = "f32") -> Any:
    import openvino

    parameter = openvino.op.Parameter(getattr(openvino.Type, dtype), openvino.PartialShape(list(shape)))
    parameter.set_friendly_name(name)
    parameter.output(0).get_tensor().set_names({name})
    return parameter


def _named(node: Any, name: str) -> Any:
    node.set_friendly_name(name)
    return node


def _model(inputs: list[Any], outputs: dict[str, Any]) -> Any:
    import openvino

    results = []
    for name, port in outputs.items():
        port = port.output(0) if hasattr(port, "outputs") else port
        port.get_tensor().set_names({name})
        results.append(openvino.opset13.result(port))
    return openvino.Model(results, inputs, "model")


def _constant(name: str, array: np.ndarray) -> Any:
    from openvino import opset13

    return _named(opset13.constant(array), name)


def net() -> Any:
    """Convolution, bias, Relu; a grouped convolution; a pool; a dense layer; Softmax. Open batch."""
    from openvino import opset13 as ops

    x = _input("image", -1, 3, 8, 8)
    y = _named(ops.convolution(x, _constant("kernel", draw(0, 4, 3, 3, 3)), [1, 1], [1, 1], [1, 1], [1, 1]), "conv")
    y = _named(ops.add(y, _constant("bias", draw(1, 1, 4, 1, 1))), "biased")
    y = _named(ops.relu(y), "relu")
    y = _named(
        ops.group_convolution(y, _constant("grouped", draw(2, 2, 3, 2, 3, 3)), [2, 2], [1, 1], [1, 1], [1, 1]), "group"
    )
    y = _named(ops.reduce_mean(y, _constant("axes", np.array([2, 3])), keep_dims=False), "mean")
    y = _named(ops.matmul(y, _constant("dense", draw(3, 6, 5)), False, False), "scores")
    return _model([x], {"classes": _named(ops.softmax(y, axis=1), "softmax"), "means": y.input_value(0)})


def half() -> Any:
    """The same; written with weights in float16."""
    return net()


def recurrent() -> Any:
    """An LSTM whose states and lengths are constant."""
    from openvino import opset13 as ops

    x = _input("steps", 2, 5, 3)
    zeros = np.zeros((2, 1, 4), np.float32)
    node = ops.lstm_sequence(
        x,
        _constant("h", zeros),
        _constant("c", zeros),
        _constant("lengths", np.array([5, 5])),
        _constant("W", draw(0, 1, 16, 3)),
        _constant("R", draw(1, 1, 16, 4)),
        _constant("B", draw(2, 1, 16)),
        4,
        "forward",
    )
    _named(node, "lstm")
    return _model([x], {"states": node.output(0)})


def quantised() -> Any:
    """A product behind a FakeQuantize, with weights of int8 that are scaled."""
    from openvino import opset13 as ops

    x = _input("x", -1, 4)
    low, high = (_constant(name, np.array(value, np.float32)) for name, value in (("low", -1.0), ("high", 1.0)))
    rounded = _named(ops.fake_quantize(x, low, high, low, high, 256), "grid")
    stored = _constant("stored", np.arange(-6, 6, dtype=np.int8).reshape(4, 3))
    weights = ops.multiply(ops.convert(stored, "f32"), _constant("scale", np.array(0.1, np.float32)))
    return _model([x], {"y": _named(ops.matmul(rounded, weights, False, False), "product")})


def table() -> Any:
    """Rows of a table by index."""
    from openvino import opset13 as ops

    x = _input("tokens", -1, 4, dtype="i64")
    y = ops.gather(_constant("table", draw(0, 11, 3)), x, _constant("axis", np.array(0)))
    return _model([x], {"rows": _named(y, "lookup")})


def counter() -> Any:
    """Adds its input to what it kept of the run before."""
    import openvino
    from openvino import opset13 as ops
    from openvino.op import util

    x = _input("x", 1, 2)
    facts = util.VariableInfo()
    facts.data_shape, facts.data_type, facts.variable_id = openvino.PartialShape([1, 2]), openvino.Type.f32, "sum"
    variable = util.Variable(facts)
    known = openvino.op.read_value(_constant("zero", np.zeros((1, 2), np.float32)), variable)
    total = _named(ops.add(x, known), "total")
    kept = openvino.op.assign(total, variable)
    total.output(0).get_tensor().set_names({"y"})
    return openvino.Model([ops.result(total)], [kept], [x], "counter")


def twice() -> Any:
    """Two layers of one name, and two outputs of one value."""
    import openvino
    from openvino import opset13 as ops

    x = _input("x", 1, 3)
    first = _named(ops.relu(x), "same")
    second = _named(ops.exp(first), "same")
    third = _named(ops.negative(second), "same")
    return openvino.Model([ops.result(third), ops.result(first)], [x], "twice")


def split() -> Any:
    """A layer of several results."""
    from openvino import opset13 as ops

    x = _input("x", 2, 6)
    parts = _named(ops.split(x, _constant("along", np.array(1)), 3), "parts")
    return _model([x], {"y": _named(ops.add(parts.output(0), parts.output(2)), "sum")})


def text() -> Any:
    """A string comes in."""
    import openvino
    from openvino import opset13 as ops

    x = openvino.op.Parameter(openvino.Type.string, openvino.PartialShape([2]))
    x.set_friendly_name("words")
    return _model([x], {"size": _named(ops.shape_of(x), "size")})


BUILDERS = {
    "net": net,
    "half": half,
    "recurrent": recurrent,
    "quantised": quantised,
    "table": table,
    "counter": counter,
    "twice": twice,
    "split": split,
    "text": text,
}


def stored(path: str) -> dict[str, Any]:
    """Every constant of a file as it is stored: name -> {"type", "values"}, and the output names in order."""
    import openvino

    model = openvino.Core().read_model(path)
    constants = {
        node.get_friendly_name(): {"type": node.get_element_type().get_type_name(), "values": np.array(node.get_data())}
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant"
    }
    outputs = [sorted(port.get_names()) for port in model.outputs]
    return {
        "constants": constants,
        "outputs": outputs,
        "files": sorted(item.name for item in Path(path).parent.iterdir()),
    }


def emitted(operator: str, inputs: dict[str, np.ndarray], constants: list[Any], attributes: dict[str, Any]) -> Any:
    """What the writer makes of one ONNX operator, run on `inputs`; further operands are constants."""
    import openvino

    from trueport.frameworks import _openvino_moves  # noqa: F401 -- fills the table
    from trueport.frameworks._openvino_emit import Emitter

    numbers = iter(range(100))
    ports = [
        openvino.op.Parameter(openvino.Type(array.dtype), openvino.PartialShape(list(array.shape))).output(0)
        for array in inputs.values()
    ]
    emitter = Emitter(lambda: f"layer{next(numbers)}")
    made = emitter.emit(operator, [*ports, *map(np.asarray, constants)], attributes)
    parameters = [port.get_node() for port in ports]
    model = openvino.Model([openvino.opset13.result(port) for port in made], parameters, "one")
    run = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.array(value) for value in run(list(inputs.values())).values()]
