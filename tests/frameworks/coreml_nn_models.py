"""Core ML neural networks, written as the messages of the format, and run layer by layer. Runs inside a Core ML toolchain only."""

from __future__ import annotations

import numpy as np


def model(layers, inputs, outputs, *, mapping="exact", kind="neuralNetwork", network=None, **description):
    """A Model message: layers as dictionaries in the JSON form of the format; inputs and outputs name -> shape or feature."""
    from google.protobuf.json_format import ParseDict

    from trueport.frameworks._coreml_read import messages

    exact = mapping == "exact"
    body = {
        "layers": layers,
        "arrayInputShapeMapping": "EXACT_ARRAY_MAPPING" if exact else "RANK5_ARRAY_MAPPING",
        "imageInputShapeMapping": "RANK4_IMAGE_MAPPING" if exact else "RANK5_IMAGE_MAPPING",
        **(network or {}),
    }
    features = {"input": _features(inputs), "output": _features(outputs)}
    whole = {"specificationVersion": 5 if exact else 3, "description": {**features, **description}, kind: body}
    return ParseDict(whole, messages("Model").Model())


def _features(wanted):
    found = []
    for name, shape in wanted.items():
        array = {"dataType": "FLOAT32"} if shape is None else {"dataType": "FLOAT32", "shape": list(shape)}
        found.append({"name": name, "type": shape if isinstance(shape, dict) else {"multiArrayType": array}})
    return found


def run(layers, inputs, outputs, precision="float32", shapes=None, **further):
    """Values of the outputs; inputs: name -> array. `shapes`: what the model declares where it is not the array's own."""
    shapes = {name: (shapes or {}).get(name, list(array.shape)) for name, array in inputs.items()}
    wanted = outputs if isinstance(outputs, dict) else dict.fromkeys(outputs)
    return evaluate(model(layers, shapes, wanted, **further), inputs, precision)


def evaluate(spec, inputs, precision="float32", wanted=None):
    """Values of the outputs (or of `wanted`) of a Model message."""
    from trueport.frameworks import _coreml_nn
    from trueport.frameworks._coreml_program import Evaluator

    program = _coreml_nn.read(spec)
    found = {}
    evaluator = Evaluator(program, _coreml_nn.KERNELS, wanted=wanted or list(program.outputs), precision=precision)
    evaluator.run(inputs, emit=found.__setitem__)
    return {name: np.array(value) for name, value in found.items()}


def write(path, layers, inputs, outputs, **further):
    """Write a model as a `.mlmodel` file."""
    from pathlib import Path

    Path(path).write_bytes(model(layers, inputs, outputs, **further).SerializeToString())


def describe(layers, inputs, outputs, **further):
    """What `read` makes of a model: operations, constants, inputs, outputs, meta."""
    from trueport.frameworks import _coreml_nn

    program = _coreml_nn.read(model(layers, inputs, outputs, **further))
    return {
        "operations": [
            [item.name, item.kind, item.inputs, item.outputs, item.attributes] for item in program.block.operations
        ],
        "constants": {name: [stored.dtype, list(stored.shape)] for name, stored in program.constants.items()},
        "inputs": {name: [kind.dtype, kind.shape and list(kind.shape)] for name, kind in program.inputs.items()},
        "outputs": {name: [kind.dtype, kind.shape and list(kind.shape)] for name, kind in program.outputs.items()},
        "meta": program.meta,
    }


def nodes(layers, inputs, outputs):
    """What the graph of a model shows of its layers."""
    from trueport.frameworks import _coreml_nn, _coreml_view

    return _coreml_view.graph(_coreml_nn.read(model(layers, inputs, outputs)))["nodes"]


def coverage():
    """Layers that the format has, those that are run, and those that are refused with a reason."""
    from trueport.frameworks import _coreml_nn
    from trueport.frameworks._coreml_nn_read import PREFIX
    from trueport.frameworks._coreml_read import messages

    layer = messages("NeuralNetwork").NeuralNetworkLayer.DESCRIPTOR
    known = [field.name for field in layer.oneofs_by_name["layer"].fields]
    return {
        "all": known,
        "kernels": [name[len(PREFIX) :] for name in _coreml_nn.KERNELS],
        "refused": sorted(_coreml_nn.REFUSED),
    }
