"""Layers of Core ML's neural networks in ONNX's words: which operator one is, and what its settings are called there."""

from __future__ import annotations

from pathlib import Path

import pytest

from trueport.diagnosis.coreml_layers import in_onnx_words
from trueport.diagnosis.coreml_words import translated
from trueport.outcome import Ok, Stage

HERE = str(Path(__file__).parent)
EDGES = {"borderAmounts": [{"startEdgeSize": 1, "endEdgeSize": 2}, {"startEdgeSize": 3, "endEdgeSize": 4}]}
CONV = {"outputChannels": 2, "kernelChannels": 1, "kernelSize": [1, 1], "weights": {"floatValue": [1.0, 2.0]}}
VOLUME = {
    **{f"{part}{axis}": 1 for part in ("kernel", "stride") for axis in ("Depth", "Height", "Width")},
    "customPaddingFront": 1,
    "customPaddingRight": 2,
}
CELL = {"inputVectorSize": 1, "outputVectorSize": 1}

CASES = [
    ("convolution", {**CONV, "valid": {"paddingAmounts": EDGES}}, "Conv", {"pads": [1, 3, 2, 4], "group": 1, "strides": [1, 1]}),
    ("convolution", {**CONV, "same": {}}, "Conv", {"auto_pad": "SAME_UPPER", "kernel_shape": [1, 1]}),
    ("convolution", {**CONV, "same": {"asymmetryMode": "TOP_LEFT_HEAVY"}, "dilationFactor": [2, 3]}, "Conv", {"auto_pad": "SAME_LOWER", "dilations": [2, 3]}),
    ("convolution", {**CONV, "valid": {}, "isDeconvolution": True, "dilationFactor": [2, 2]}, "ConvTranspose", {"dilations": [1, 1], "pads": [0, 0, 0, 0]}),
    ("pooling", {"type": "MAX", "valid": {}}, "MaxPool", {"kernel_shape": [3, 3], "ceil_mode": 0}),
    ("pooling", {"type": "AVERAGE", "includeLastPixel": {"paddingAmounts": [1, 2]}, "avgPoolExcludePadding": True}, "AveragePool", {"pads": [1, 2, 1, 2], "ceil_mode": 1, "count_include_pad": 0}),
    ("pooling", {"type": "AVERAGE", "globalPooling": True}, "GlobalAveragePool", {}),
    ("pooling", {"type": "L2", "valid": {}}, "LpPool", {"strides": [1, 1]}),
    ("pooling3d", {"type": "AVERAGE", "paddingType": "CUSTOM", **VOLUME}, "AveragePool", {"pads": [1, 0, 0, 0, 0, 2], "count_include_pad": 1}),
    ("pooling3d", {"type": "MAX", "paddingType": "SAME", **VOLUME}, "MaxPool", {"auto_pad": "SAME_UPPER", "dilations": [1, 1, 1]}),
    ("upsample", {"scalingFactor": [2, 2]}, "Resize", {"mode": "nearest", "nearest_mode": "floor"}),
    ("upsample", {"scalingFactor": [2, 2], "mode": "BILINEAR", "linearUpsampleMode": "ALIGN_CORNERS_FALSE"}, "Resize", {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
    ("resizeBilinear", {"targetSize": [3, 3], "mode": {"samplingMethod": "UPSAMPLE_MODE"}}, "Resize", {"coordinate_transformation_mode": "asymmetric"}),
    ("resizeBilinear", {"targetSize": [3, 3]}, "Resize", {"coordinate_transformation_mode": "align_corners"}),
    ("batchnorm", {"channels": 1, "mean": {"floatValue": [0.0]}, "variance": {"floatValue": [1.0]}}, "BatchNormalization", {"epsilon": 1e-5}),
    ("batchnorm", {"channels": 1, "computeMeanVar": True, "instanceNormalization": True, "epsilon": 0.5}, "InstanceNormalization", {"epsilon": 0.5}),
    ("activation", {"sigmoidHard": {"alpha": 0.25, "beta": 0.5}}, "HardSigmoid", {"alpha": 0.25, "beta": 0.5}),
    ("activation", {"leakyReLU": {"alpha": 0.25}}, "LeakyRelu", {"alpha": 0.25}),
    ("clampedReLU", {"alpha": 0, "beta": 6}, "Clip", {"min": 0.0, "max": 6.0}),
    ("clampedReLU", {"alpha": 0.5, "beta": 6}, "clampedReLU", {}),
    ("clip", {"minVal": -1, "maxVal": 2}, "Clip", {"min": -1.0, "max": 2.0}),
    ("gelu", {"mode": "TANH_APPROXIMATION"}, "Gelu", {"approximate": "tanh"}),
    ("lrn", {"alpha": 1, "beta": 0.5, "localSize": 3}, "LRN", {"size": 3, "bias": 1.0, "alpha": 1.0}),
    ("softmax", {}, "Softmax", {"axis": -3}),
    ("softmaxND", {"axis": 1}, "Softmax", {"axis": 1}),
    ("concat", {"sequenceConcat": True}, "Concat", {"axis": -5}),
    ("permute", {"axis": [0, 3, 1, 2]}, "Transpose", {"perm": [0, 1, 4, 2, 3]}),
    ("transpose", {"axes": [1, 0]}, "Transpose", {"perm": [1, 0]}),
    ("slice", {"startIndex": 1, "endIndex": -1, "axis": "HEIGHT_AXIS"}, "Slice", {"axes": [-2], "starts": [1], "ends": [-1], "steps": [1]}),
    ("padding", {"reflection": {}, "paddingAmounts": EDGES}, "Pad", {"mode": "reflect"}),
    ("constantPad", {"value": 2, "padAmounts": [1, 2, 3, 4]}, "Pad", {"pads": [1, 3, 2, 4], "value": 2.0}),
    ("reduce", {"mode": "AVG", "axis": "HW"}, "ReduceMean", {"axes": [-2, -1], "keepdims": 1}),
    ("reduceMax", {"axes": [1], "keepDims": True}, "ReduceMax", {"axes": [1], "keepdims": 1}),
    ("argMax", {"axis": 1, "removeDim": True}, "ArgMax", {"axis": 1, "keepdims": 0}),
    ("topK", {"axis": 1, "K": 3, "useBottomK": True}, "TopK", {"k": 3, "largest": 0}),
    ("cumSum", {"axis": 1, "excludeFinalSum": True}, "CumSum", {"exclusive": 1, "reverse": 0}),
    ("reorganizeData", {"mode": "PIXEL_SHUFFLE", "blockSize": 2}, "DepthToSpace", {"blocksize": 2, "mode": "CRD"}),
    ("unary", {"type": "INVERSE"}, "Reciprocal", {"epsilon": 1e-6}),
    ("gru", {**CELL, "activations": [{"sigmoid": {}}, {"tanh": {}}]}, "GRU", {"activations": ["sigmoid", "tanh"], "linear_before_reset": 0, "direction": "forward"}),
    ("uniDirectionalLSTM", {**CELL, "reverseInput": True, "activations": [{"sigmoid": {}}] * 3}, "LSTM", {"direction": "reverse"}),
    ("biDirectionalLSTM", {**CELL, "activationsForwardLSTM": [{"sigmoid": {}}, {"tanh": {}}, {"ReLU": {}}]}, "LSTM", {"direction": "bidirectional", "activations": ["sigmoid", "tanh", "ReLU"]}),
]  # fmt: skip


@pytest.fixture(scope="module")
def nodes(pool, env):
    """The node that each case is shown as."""
    layers = [
        {"name": str(place), "input": ["x"], "output": [f"y{place}"], kind: fields}
        for place, (kind, fields, _, _) in enumerate(CASES)
    ]
    arguments = {"layers": layers, "inputs": {"x": [1, 1, 4, 4]}, "outputs": {"y0": None}}
    outcome = pool.call(env("coreml"), "coreml_nn_models", "nodes", arguments, stage=Stage.LOAD, paths=[HERE])
    assert isinstance(outcome, Ok), outcome
    return outcome.value.value


@pytest.mark.parametrize("place", range(len(CASES)), ids=[f"{place}-{case[0]}" for place, case in enumerate(CASES)])
def test_a_layer_has_onnx_s_operator_and_settings(nodes, place):
    kind, _, operator, settings = CASES[place]
    node = nodes[place]
    assert (node["op"], node["native_op"]) == (operator, f"nn.{kind}")
    given = translated(node["native_op"], node["attributes"], 4)
    assert {name: given[name] for name in settings} == settings


def test_what_has_no_words_of_its_own_keeps_the_fields_of_the_format():
    assert in_onnx_words("sin", {}) == {}
    assert translated("nn.unary", {"alpha": 2.0, "flag": True}, 4) == {"alpha": 2.0, "flag": 1}
