"""What the graph of a TFLite file says in ONNX vocabulary: operands, constants behind DEQUANTIZE, attributes worked out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.outcome import Ok, Stage

MODULE = "trueport.frameworks.tflite"
HERE = str(Path(__file__).parent)
FAR = 2**31 - 1


@pytest.fixture(scope="module")
def models(pool, env, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tflite")
    found = {}
    for module in ("tflite_models", "tflite_parts"):
        outcome = pool.call(env("litert"), module, "write", {"folder": str(folder)}, stage=Stage.LOAD, paths=[HERE])
        assert isinstance(outcome, Ok), outcome
        found.update(outcome.value.value)
    return found


@pytest.fixture(scope="module")
def ask(pool, env, models):
    """ask(function, model, ...) -> the Reply of that function of the framework file."""

    def run(function, model, *, emit=False, **more):
        arguments = {"path": models.get(model, str(model)), "trust": False, **more}
        outcome = pool.call(env("litert"), MODULE, function, arguments, stage=Stage.TRACE, emit=emit)
        assert isinstance(outcome, Ok), outcome
        return outcome.value

    return run


@pytest.fixture(scope="module")
def vocabulary(ask):
    """Native name, with #2 for the second of its kind, -> attributes."""
    found = {}
    for node in ask("graph", "vocabulary").value["nodes"]:
        name = node["native_op"]
        found[name if name not in found else f"{name}#2"] = node["attributes"]
    return found


EXPECTED = {
    # 7 rows in steps of two: four windows of three span nine, so one row before and one after
    "CONV_2D": {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 1], "auto_pad": "SAME_UPPER", "group": 1},
    "DEPTHWISE_CONV_2D": {"kernel_shape": [5, 5], "dilations": [2, 1], "pads": [4, 2, 4, 2], "group": 4},
    "MAX_POOL_2D": {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1]},
    "AVERAGE_POOL_2D": {"kernel_shape": [2, 2], "pads": [0, 0, 0, 0], "auto_pad": "VALID", "count_include_pad": 0},
    # the full result is 15 x 17, of which 14 x 16 are asked for
    "TRANSPOSE_CONV": {"kernel_shape": [3, 3], "output_shape": [14, 16], "pads": [0, 0, 1, 1], "strides": [2, 2]},
    "RESIZE_BILINEAR": {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "sizes": [14, 16]},
    "RESIZE_NEAREST_NEIGHBOR": {
        "mode": "nearest",
        "coordinate_transformation_mode": "align_corners",
        "nearest_mode": "round_prefer_ceil",
    },
    "STRIDED_SLICE": {"starts": [0, 1, -1, 0], "ends": [FAR, 6, 0, 1], "steps": [1, 2, -1, 1]},
    "SLICE": {"starts": [0, 1, 2, 0], "ends": [1, 6, FAR, 4]},
    "MIRROR_PAD": {"mode": "symmetric", "pads": [0, 1, 0, 0, 0, 2, 0, 0]},
    "GELU": {"approximate": "tanh"},
    "CAST": {"to": "int32"},
    "LOCAL_RESPONSE_NORMALIZATION": {"size": 5, "alpha": 2.5, "beta": 0.75, "bias": 1.0},
}


@pytest.mark.parametrize("operator", EXPECTED)
def test_attributes_are_those_of_onnx(vocabulary, operator):
    found = vocabulary[operator]
    assert {key: found.get(key) for key in EXPECTED[operator]} == EXPECTED[operator]


def test_padding_of_an_image_of_any_size_stays_symbolic(vocabulary):
    assert vocabulary["CONV_2D#2"]["auto_pad"] == "SAME_UPPER"
    assert "pads" not in vocabulary["CONV_2D#2"]


def test_pads_are_what_the_kernels_do(ask):
    """Convolution and pooling of ones: how much of a window lies on the image tells where the padding is."""
    image = {"image": np.ones((1, 1, 7, 8, 4), np.float32), "free": np.ones((1, 1, 1, 1, 4), np.float32)}
    wanted = ["conv_2d_0", "depthwise_conv_2d_2", "transpose_conv_5"]
    seen = ask("trace", "vocabulary", emit=True, inputs=image, wanted=wanted, budget=2**20).emitted
    on = seen["conv_2d_0"][0, 0, :, :, 0] / 4
    np.testing.assert_array_equal(on, [[6, 6, 6, 4], [9, 9, 9, 6], [9, 9, 9, 6], [6, 6, 6, 4]])
    row = seen["depthwise_conv_2d_2"][0, 0, :, 4, 0] / 5
    np.testing.assert_array_equal(row, [3, 3, 4, 3, 4, 3, 3])  # five taps two rows apart, four rows of padding
    np.testing.assert_array_equal(seen["transpose_conv_5"][0, 0, :4, 1, 0] / 4, [1, 1, 2, 1])


def test_a_constant_behind_dequantize_is_the_operand_itself(ask):
    shown = ask("graph", "half_weights").value
    (node,) = shown["nodes"]
    assert (node["name"], node["inputs"]) == ("1:y", ["x", "w16"]), "names still count the operators of the file"
    assert shown["constants"]["w16"] == {"dtype": "float16", "shape": [2, 2]}
    assert ask("names", "half_weights").value == ["y"]
    inputs = {"x": np.zeros((1, 2, 2), np.float32)}
    widened = ask("trace", "half_weights", emit=True, inputs=inputs, wanted=["w"], budget=100).emitted["w"][0]
    np.testing.assert_array_equal(widened, ask("parameters", "half_weights", emit=True).emitted["w16"])


@pytest.mark.corpus
def test_float16_weights_of_a_real_model_are_operands(ask, corpus):
    shown = ask("graph", corpus / "models" / "blazeface" / "face_detection_front.tflite").value
    assert not any(node["native_op"] == "DEQUANTIZE" for node in shown["nodes"])
    weights = [node["inputs"][1] for node in shown["nodes"] if node["op"] == "Conv"]
    assert len(weights) == 37
    assert {shown["constants"][name]["dtype"] for name in weights} == {"float16"}


@pytest.mark.corpus
def test_absent_operands_keep_the_places_of_the_others(ask, corpus):
    shown = ask("graph", corpus / "models" / "tflm" / "trained_lstm.tflite").value
    (node,) = (node for node in shown["nodes"] if node["op"] == "LSTM")
    assert [place for place, name in enumerate(node["inputs"]) if not name] == [9, 10, 11, 16, 17]
    assert len(node["inputs"]) == 20, "absent operands at the end are left out"


def test_grids_of_values_and_constants_are_told(ask):
    shown = ask("graph", "quantised").value
    (node,) = shown["nodes"]
    assert (node["attributes"]["y_scale"], node["attributes"]["y_zero_point"]) == (0.5, -10)
    assert shown["constants"]["w"]["quantization"] == {
        "scale": [0.25, 0.5, 0.125],
        "zero_point": [0, 0, 0],
        "axis": 0,
        "dtype": "int8",
    }
    assert "quantization" not in ask("graph", "linear").value["constants"]["w"]


def test_the_constants_inside_a_loop_are_told_and_given_out(ask):
    graph = ask("graph", "loop").value
    (loop,) = (node for node in graph["nodes"] if node["op"] == "Loop")
    (name,) = loop["attributes"]["inner_constants"]
    assert "two" in name
    assert graph["constants"][name] == {"dtype": "float32", "shape": [1]}
    emitted = ask("parameters", "loop", emit=True).emitted
    np.testing.assert_array_equal(emitted[name], [2.0])
    assert set(emitted) == set(graph["constants"])
    assert not any("inner_constants" in node["attributes"] for node in ask("graph", "chain").value["nodes"])
