"""Core ML neural networks as a whole: how values enter and leave, names, branches and loops, stored grids, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from trueport.errors import BadModelError
from trueport.outcome import Failure, Kind, Ok, Stage

HERE = str(Path(__file__).parent)
RNG = np.random.default_rng(11)


@pytest.fixture(scope="module")
def call(pool, env):
    """call(function, **arguments) -> Outcome of a function of `coreml_nn_models` in a worker."""
    python = env("coreml")

    def run(function, **arguments):
        return pool.call(python, "coreml_nn_models", function, arguments, stage=Stage.RUN, paths=[HERE])

    return run


def value(outcome):
    assert isinstance(outcome, Ok), outcome
    return outcome.value.value


def refused(outcome, *words):
    assert isinstance(outcome, Failure), outcome
    assert outcome.kind is Kind.UNSUPPORTED, outcome
    for word in words:
        assert word in outcome.message
    return outcome.message


def damaged(words):
    """The call inside finds the file damaged, and says so with these words."""
    return pytest.raises(BadModelError, match=re.escape(words))


def layer(kind, inputs, outputs, **fields):
    return {"name": f"{kind} of {outputs[0] if outputs else ''}", "input": inputs, "output": outputs, kind: fields}


def add(inputs, output, alpha=0.0):
    return layer("add", inputs, [output], alpha=alpha)


def image(colours, height, width):
    return {"imageType": {"width": width, "height": height, "colorSpace": colours}}


def floats(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


# -- the way in and out


def test_an_array_keeps_its_shape_in_a_network_with_exact_mapping(call):
    x = floats(2, 3)
    found = value(call("run", layers=[add(["x"], "y", 1.0)], inputs={"x": x}, outputs=["y"]))
    np.testing.assert_array_equal(found["y"], x + 1)


@pytest.mark.parametrize(
    ("given", "declared", "inside"),
    [((5,), [5], (1, 1, 5, 1, 1)), ((3, 4, 2), [3, 4, 2], (1, 1, 3, 4, 2)), ((4, 2, 5), [5], (4, 2, 5, 1, 1))],
)
def test_old_networks_see_every_array_as_sequence_batch_channels_height_width(call, given, declared, inside):
    """`getShape` is no layer of an old network, but it shows what one sees."""
    x = floats(*given)
    layers = [layer("getShape", ["x"], ["s"]), add(["x"], "y", 1.0)]
    arguments = {"layers": layers, "inputs": {"x": x}, "mapping": "rank5", "shapes": {"x": declared}}
    found = value(call("run", outputs={"s": None, "y": None}, **arguments))
    assert found["s"].ravel().tolist() == list(inside)
    assert found["y"].shape == inside, "an output that declares no shape keeps what the network computes"
    if given == tuple(declared):
        found = value(call("run", outputs={"y": declared}, **arguments))
        np.testing.assert_array_equal(found["y"], x + 1)


def test_an_old_network_with_two_sizes_is_damaged(call):
    with damaged("takes 1 or 3 sizes"):
        call("run", layers=[add(["x"], "y")], inputs={"x": floats(2, 3)}, outputs=["y"], mapping="rank5")


def test_an_output_declared_as_integer_leaves_as_one(call):
    x = np.array([[3.0, 1.0, 2.0]], np.float32)
    kind = {"multiArrayType": {"dataType": "INT32", "shape": [1, 1]}}
    layers = [layer("argMax", ["x"], ["y"], axis=1)]
    found = value(call("run", layers=layers, inputs={"x": x}, outputs={"y": kind}))
    assert found["y"].dtype == np.int32
    assert found["y"].tolist() == [[0]]


@pytest.mark.parametrize("mapping", ["exact", "rank5"])
@pytest.mark.parametrize(
    ("colours", "order"),
    [("RGB", ["red", "green", "blue"]), ("BGR", ["blue", "green", "red"]), ("GRAYSCALE", ["gray"])],
)
def test_an_image_is_scaled_channel_by_channel_in_the_order_of_its_colours(call, mapping, colours, order):
    biases = {"red": -1.5, "green": 2.0, "blue": 0.25, "gray": 7.0}
    pixels = RNG.integers(0, 256, (1, len(order), 4, 3)).astype(np.float32)
    scaler = {"channelScale": 0.5, **{f"{name}Bias": bias for name, bias in biases.items()}}
    network = {"preprocessing": [{"featureName": "x", "scaler": scaler}]}
    arguments = {"layers": [add(["x"], "y")], "mapping": mapping, "network": network}
    found = value(
        call(
            "run",
            inputs={"x": pixels},
            outputs={"y": [len(order), 4, 3]},
            shapes={"x": image(colours, 4, 3)},
            **arguments,
        )
    )
    expected = pixels[0] * 0.5 + np.array([biases[name] for name in order]).reshape(-1, 1, 1)
    np.testing.assert_allclose(found["y"], expected, rtol=1e-6)


def test_a_mean_image_is_subtracted_and_the_description_tells_of_it(call):
    pixels, mean = floats(1, 3, 2, 4), floats(3, 2, 4)
    network = {"preprocessing": [{"featureName": "x", "meanImage": {"meanImage": mean.ravel().tolist()}}]}
    arguments = {"layers": [add(["x"], "y")], "outputs": {"y": None}, "network": network}
    found = value(call("run", inputs={"x": pixels}, shapes={"x": image("RGB", 2, 4)}, **arguments))
    np.testing.assert_allclose(found["y"][0], pixels[0] - mean, rtol=1e-6)
    told = value(call("describe", inputs={"x": image("BGR", 2, 4)}, **arguments))
    assert told["inputs"] == {"x": ["float32", [1, 3, 2, 4]]}
    assert told["meta"]["images"] == {"x": {"colors": "BGR", "height": 2, "width": 4}}
    assert told["meta"]["preprocessing"] == ["meanImage"]
    assert told["constants"]["x.meanImage"] == ["float32", [3, 2, 4]]


def test_a_mean_image_of_another_size_is_damage(call):
    network = {"preprocessing": [{"featureName": "x", "meanImage": {"meanImage": [1.0, 2.0]}}]}
    arguments = {"layers": [add(["x"], "y")], "outputs": {"y": None}, "network": network}
    with damaged("mean image of 'x' has 2 values"):
        call("describe", inputs={"x": image("RGB", 2, 4)}, **arguments)


def test_a_classifier_gives_its_scores_and_names_its_label_in_a_note(call):
    scores = np.array([[0.25, 0.5, 0.25]], np.float32)
    names = {"vector": ["cat", "dog", "eel"]}
    network = {"stringClassLabels": names, "labelProbabilityLayerName": "p"}
    features = {"probabilities": {"dictionaryType": {"stringKeyType": {}}}, "animal": {"stringType": {}}}
    arguments = {
        "layers": [add(["x"], "p", 0.0)],
        "outputs": features,
        "kind": "neuralNetworkClassifier",
        "network": network,
        "predictedFeatureName": "animal",
        "predictedProbabilitiesName": "probabilities",
    }
    found = value(call("run", inputs={"x": scores}, **arguments))
    assert list(found) == ["probabilities"]
    np.testing.assert_array_equal(found["probabilities"], scores[0])
    told = value(call("describe", inputs={"x": [1, 3]}, **arguments))
    assert told["outputs"] == {"probabilities": ["float32", [3]]}
    assert told["meta"]["classes"] == 3
    assert "'animal'" in told["meta"]["notes"][0]


def test_a_regressor_gives_a_number(call):
    arguments = {"kind": "neuralNetworkRegressor", "mapping": "rank5"}
    layers = [layer("reduce", ["x"], ["y"], mode="SUM", axis="CHW")]
    found = value(
        call("run", layers=layers, inputs={"x": floats(4) * 0 + 1}, outputs={"y": {"doubleType": {}}}, **arguments)
    )
    assert found["y"].tolist() == [4.0]
    told = value(call("describe", layers=layers, inputs={"x": [4]}, outputs={"y": {"doubleType": {}}}, **arguments))
    assert told["outputs"] == {"y": ["float64", [1]]}


# -- names and stored values


def test_every_layer_is_an_operation_with_the_fields_of_the_format_and_its_weights_as_constants(call):
    fields = {
        "outputChannels": 2,
        "kernelChannels": 1,
        "kernelSize": [2, 3],
        "same": {"asymmetryMode": "TOP_LEFT_HEAVY"},
        "hasBias": True,
        "weights": {"floatValue": [1.0] * 12},
        "bias": {"float16Value": "AAAAAA=="},
    }
    layers = [layer("convolution", ["x"], ["c"], **fields), layer("activation", ["c"], ["y"], leakyReLU={"alpha": 0.5})]
    told = value(call("describe", layers=layers, inputs={"x": [1, 1, 4, 4]}, outputs={"y": None}))
    (name, kind, inputs, outputs, attributes), (_, second, _, _, further) = told["operations"]
    assert (kind, second) == ("nn.convolution", "nn.activation")
    assert inputs == {"x": ["x"], "weights": [f"{name}.weights"], "bias": [f"{name}.bias"]}
    assert outputs == ["c"]
    assert attributes["ConvolutionPaddingType"] == "same"
    assert attributes["asymmetryMode"] == "TOP_LEFT_HEAVY"
    assert (attributes["stride"], attributes["dilationFactor"], attributes["nGroups"]) == ([1, 1], [1, 1], 1)
    assert told["constants"] == {f"{name}.weights": ["float32", [2, 1, 2, 3]], f"{name}.bias": ["float16", [2]]}
    assert (further["NonlinearityType"], further["alpha"]) == ("leakyReLU", 0.5)


def test_two_layers_of_one_name_are_two_operations(call):
    layers = [{**add(["x"], "a", 1.0), "name": "twin"}, {**add(["a"], "y", 2.0), "name": "twin"}]
    told = value(call("describe", layers=layers, inputs={"x": [2]}, outputs={"y": None}))
    assert [item[0] for item in told["operations"]] == ["twin", "twin#1"]


def test_a_name_that_is_written_again_keeps_both_values(call):
    layers = [
        add(["x"], "v", 1.0),
        add(["v"], "old", 0.0),
        add(["v"], "more", 10.0),
        layer("copy", ["more"], ["v"]),
        add(["v", "old"], "y"),
    ]
    x = floats(3)
    found = value(call("run", layers=layers, inputs={"x": x}, outputs=["y", "v"]))
    np.testing.assert_allclose(found["v"], x + 11, rtol=1e-6)
    np.testing.assert_allclose(found["y"], (x + 11) + (x + 1), rtol=1e-6)
    told = value(call("describe", layers=layers, inputs={"x": [3]}, outputs={"y": None}))
    written = [name for item in told["operations"] for name in item[3]]
    assert len(written) == len(set(written)), "every value has a name of its own"


@pytest.mark.parametrize(
    ("bits", "codes"), [(8, [0, 7, 255, 16]), (4, [0, 15, 7, 9]), (1, [1, 0, 0, 1]), (3, [7, 1, 0, 5])]
)
def test_packed_weights_have_the_highest_bit_first(call, bits, codes):
    import base64

    stream = "".join(format(code, f"0{bits}b") for code in codes)
    stream += "0" * (-len(stream) % 8)
    raw = bytes(int(stream[place : place + 8], 2) for place in range(0, len(stream), 8))
    linear = {"numberOfBits": bits, "linearQuantization": {"scale": [0.5, 0.25], "bias": [-1.0, 2.0]}}
    weights = {"rawValue": base64.b64encode(raw).decode(), "quantization": linear}
    fields = {"inputChannels": 2, "outputChannels": 2, "weights": weights}
    found = value(
        call(
            "run",
            layers=[layer("innerProduct", ["x"], ["y"], **fields)],
            inputs={"x": np.eye(2, dtype=np.float32)},
            outputs=["y"],
        )
    )
    stored = np.array(codes, float).reshape(2, 2) * [[0.5], [0.25]] + [[-1.0], [2.0]]
    np.testing.assert_array_equal(found["y"], stored.T)


def test_scales_of_a_deconvolution_go_with_its_output_channels(call):
    """Its weights are stored [in, out, ...]: the scales stand along the second axis."""
    import base64

    codes = np.arange(6, dtype=np.uint8)
    linear = {"numberOfBits": 8, "linearQuantization": {"scale": [1.0, 0.5, 4.0]}}
    weights = {"rawValue": base64.b64encode(codes.tobytes()).decode(), "quantization": linear}
    fields = {
        "outputChannels": 3,
        "kernelChannels": 2,
        "kernelSize": [1, 1],
        "isDeconvolution": True,
        "weights": weights,
    }
    x = floats(1, 2, 2, 2)
    layers = [layer("convolution", ["x"], ["y"], valid={}, **fields)]
    found = value(call("run", layers=layers, inputs={"x": x}, outputs=["y"]))
    stored = codes.reshape(2, 3) * [1.0, 0.5, 4.0]
    np.testing.assert_allclose(found["y"], np.einsum("nihw,io->nohw", x, stored), rtol=1e-5, atol=1e-6)


def test_a_look_up_table_gives_the_weights(call):
    import base64

    table = {"numberOfBits": 2, "lookupTableQuantization": {"floatValue": [-1.0, 0.5, 2.0, 8.0]}}
    weights = {"rawValue": base64.b64encode(bytes([0b00011011])).decode(), "quantization": table}
    fields = {"inputChannels": 2, "outputChannels": 2, "weights": weights}
    layers = [layer("innerProduct", ["x"], ["y"], **fields)]
    found = value(call("run", layers=layers, inputs={"x": np.eye(2, dtype=np.float32)}, outputs=["y"]))
    np.testing.assert_array_equal(found["y"], [[-1.0, 2.0], [0.5, 8.0]])


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"floatValue": [1.0, 2.0, 3.0]}, "holds 3 values, and its layer needs 4 [2, 2]"),
        (
            {"rawValue": "AAAAAA==", "quantization": {"numberOfBits": 8, "linearQuantization": {"scale": [1, 2, 3]}}},
            "3 scales, which fit no axis",
        ),
        (
            {
                "rawValue": "AAECAw==",
                "quantization": {"numberOfBits": 8, "lookupTableQuantization": {"floatValue": [1]}},
            },
            "look-up table of 1",
        ),
    ],
)
def test_weights_that_do_not_fit_their_layer_are_damage(call, weights, words):
    fields = {"inputChannels": 2, "outputChannels": 2, "weights": weights}
    layers = [layer("innerProduct", ["x"], ["y"], **fields)]
    with damaged(words):
        call("run", layers=layers, inputs={"x": floats(1, 2)}, outputs=["y"])


# -- branches and loops


def network(*layers):
    return {"layers": list(layers)}


@pytest.mark.parametrize(("condition", "expected"), [(1.0, 5.0), (0.0, -3.0), (1e-7, -3.0), (-2.0, 5.0)])
def test_a_branch_writes_by_name_what_is_read_after_it(call, condition, expected):
    yes, no = network(add(["x"], "inner", 4.0), layer("copy", ["inner"], ["out"])), network(add(["x"], "out", -4.0))
    layers = [layer("branch", ["c"], [], ifBranch=yes, elseBranch=no), add(["out"], "y", 0.0)]
    arrays = {"x": np.ones(1, np.float32), "c": np.array([condition], np.float32)}
    found = value(call("run", layers=layers, inputs=arrays, outputs=["y"]))
    assert found["y"].tolist() == [expected]


def test_a_branch_without_an_else_leaves_the_old_value(call):
    change = network(add(["v"], "new", 4.0), layer("copy", ["new"], ["v"]))
    layers = [add(["x"], "v", 1.0), layer("branch", ["c"], [], ifBranch=change), add(["v"], "y", 0.0)]
    for condition, expected in ((0.0, 2.0), (1.0, 6.0)):
        arrays = {"x": np.ones(1, np.float32), "c": np.array([condition], np.float32)}
        found = value(call("run", layers=layers, inputs=arrays, outputs=["y"]))
        assert found["y"].tolist() == [expected]


def test_a_branch_that_leaves_without_a_value_says_which(call):
    layers = [layer("branch", ["c"], [], ifBranch=network(add(["c"], "out", 1.0))), add(["out"], "y", 0.0)]
    outcome = call("run", layers=layers, inputs={"c": np.zeros(1, np.float32)}, outputs=["y"])
    assert isinstance(outcome, Failure)
    assert "left without a value" in outcome.message


def doubling(*more):
    return network(layer("multiply", ["v"], ["twice"], alpha=2.0), layer("copy", ["twice"], ["v"]), *more)


def test_a_loop_runs_as_often_as_it_says_or_as_its_input_says(call):
    layers = [add(["x"], "v"), layer("loop", [], [], maxLoopIterations=5, bodyNetwork=doubling()), add(["v"], "y")]
    found = value(call("run", layers=layers, inputs={"x": np.ones(1, np.float32)}, outputs=["y"]))
    assert found["y"].tolist() == [32.0]
    layers[1] = layer("loop", ["n"], [], maxLoopIterations=5, bodyNetwork=doubling())
    arrays = {"x": np.ones(1, np.float32), "n": np.array([3.0], np.float32)}
    assert value(call("run", layers=layers, inputs=arrays, outputs=["y"]))["y"].tolist() == [8.0]


@pytest.mark.parametrize(("limit", "expected"), [(0, 128.0), (3, 8.0)])
def test_a_loop_with_a_condition_stops_at_it_or_at_its_limit(call, limit, expected):
    condition = network(layer("lessThan", ["v"], ["go"], alpha=100.0))
    fields = {
        "maxLoopIterations": limit,
        "conditionVar": "go",
        "conditionNetwork": condition,
        "bodyNetwork": doubling(),
    }
    layers = [add(["x"], "v"), layer("loop", [], [], **fields), add(["v"], "y")]
    found = value(call("run", layers=layers, inputs={"x": np.ones(1, np.float32)}, outputs=["y"]))
    assert found["y"].tolist() == [expected]


def test_break_and_continue_inside_a_branch_inside_a_loop(call):
    """v doubles; the count goes up only while v is at most 8 (continue), and the loop ends when v passes 64 (break)."""
    large = layer("greaterThan", ["v"], ["large"], alpha=8.0)
    huge = layer("greaterThan", ["v"], ["huge"], alpha=64.0)
    body = doubling(
        huge,
        layer("branch", ["huge"], [], ifBranch=network(layer("loopBreak", [], []))),
        large,
        layer("branch", ["large"], [], ifBranch=network(layer("loopContinue", [], []))),
        add(["n"], "next", 1.0),
        layer("copy", ["next"], ["n"]),
    )
    layers = [
        add(["x"], "v"),
        layer("loadConstantND", [], ["n"], shape=[1], data={"floatValue": [0.0]}),
        layer("loop", [], [], maxLoopIterations=50, bodyNetwork=body),
        add(["v"], "y"),
        add(["n"], "count"),
    ]
    found = value(call("run", layers=layers, inputs={"x": np.ones(1, np.float32)}, outputs=["y", "count"]))
    assert (found["y"].tolist(), found["count"].tolist()) == ([128.0], [3.0])


def test_a_loop_in_a_loop_shares_its_names(call):
    inner = layer("loop", [], [], maxLoopIterations=2, bodyNetwork=doubling())
    outer = network(inner, add(["v"], "plus", 1.0), layer("copy", ["plus"], ["v"]))
    layers = [add(["x"], "v"), layer("loop", [], [], maxLoopIterations=2, bodyNetwork=outer), add(["v"], "y")]
    found = value(call("run", layers=layers, inputs={"x": np.ones(1, np.float32)}, outputs=["y"]))
    assert found["y"].tolist() == [(1 * 4 + 1) * 4 + 1]


# -- what is refused, and what is damage


@pytest.mark.parametrize(
    ("kind", "fields", "arrays", "words"),
    [
        ("custom", {"className": "Mine"}, [floats(2)], "is code of the model's author"),
        ("randomNormalStatic", {"outputShape": [2]}, [], "draws random numbers"),
        (
            "innerProduct",
            {"inputChannels": 2, "outputChannels": 1, "int8DynamicQuantize": True},
            [floats(1, 2)],
            "int8",
        ),
        ("lrn", {"alpha": 1, "beta": 1, "localSize": 4}, [floats(1, 6, 2, 2)], "even window"),
        ("upsample", {"fractionalScalingFactor": [1.5, 2.0]}, [floats(1, 2, 4, 4)], "which one is nearest"),
        ("softmax", {}, [floats(2, 3)], "rank at least 3"),
        ("reshape", {"targetShape": [2, 3, 1, 1]}, [floats(1, 2, 3, 1, 1)], "in which order is not documented"),
        ("reshapeStatic", {"targetShape": [0, 6]}, [floats(2, 3)], "a size of 0"),
        ("activation", {"PReLU": {"alpha": {"floatValue": [1.0, 2.0]}}}, [floats(2, 2)], "names none"),
        (
            "pooling",
            {"type": "AVERAGE", "kernelSize": [3, 3], "stride": [2, 2], "includeLastPixel": {}},
            [floats(1, 1, 6, 6)],
            "what it divides by is not documented",
        ),
        (
            "pooling3d",
            {
                "type": "MAX",
                "paddingType": "CUSTOM",
                "customPaddingLeft": 1,
                **{f"{part}{axis}": 2 for part in ("kernel", "stride") for axis in ("Depth", "Height", "Width")},
            },
            [-np.ones((1, 1, 2, 2, 3), np.float32)],
            "negative values at a padded edge",
        ),
    ],
)
def test_what_the_format_leaves_open_is_refused_by_name(call, kind, fields, arrays, words):
    inputs = {f"x{index}": array for index, array in enumerate(arrays)}
    outcome = call("run", layers=[layer(kind, list(inputs), ["y"], **fields)], inputs=inputs, outputs=["y"])
    message = refused(outcome, words)
    assert f"nn.{kind}" in message


def test_a_deconvolution_whose_size_its_padding_does_not_give_is_refused(call):
    fields = {
        "outputChannels": 1,
        "kernelChannels": 1,
        "kernelSize": [3, 3],
        "stride": [2, 2],
        "isDeconvolution": True,
        "outputShape": [8, 8],
        "valid": {},
        "weights": {"floatValue": [1.0] * 9},
    }
    outcome = call(
        "run", layers=[layer("convolution", ["x"], ["y"], **fields)], inputs={"x": floats(1, 1, 4, 4)}, outputs=["y"]
    )
    refused(outcome, "[8, 8]", "[9, 9]")


def test_a_recurrent_layer_that_gives_a_backward_sequence_is_refused(call):
    fields = {
        "inputVectorSize": 1,
        "outputVectorSize": 1,
        "activation": {"tanh": {}},
        "sequenceOutput": True,
        "reverseInput": True,
        "weightMatrix": {"floatValue": [1.0]},
        "recursionMatrix": {"floatValue": [1.0]},
    }
    layers = [layer("simpleRecurrent", ["x"], ["y"], **fields)]
    refused(call("run", layers=layers, inputs={"x": floats(3, 1, 1, 1, 1)}, outputs=["y"]), "in which order")


def test_a_layer_that_reads_what_nothing_writes_is_damage(call):
    with damaged("reads 'ghost'"):
        call("run", layers=[add(["ghost"], "y")], inputs={"x": floats(2)}, outputs=["y"])


def test_an_output_that_nothing_writes_is_damage(call):
    with damaged("nothing in the network writes 'y'"):
        call("run", layers=[add(["x"], "z")], inputs={"x": floats(2)}, outputs=["y"])


def test_an_index_outside_its_table_is_an_error_of_one_sentence(call):
    fields = {"vocabSize": 3, "embeddingSize": 1, "weights": {"floatValue": [1.0, 2.0, 3.0]}}
    layers = [layer("embeddingND", ["x"], ["y"], **fields)]
    outcome = call("run", layers=layers, inputs={"x": np.array([[3.0]], np.float32)}, outputs=["y"])
    assert isinstance(outcome, Failure)
    assert "the indices 0 to 2" in outcome.message


def test_the_description_is_plain_data(call):
    told = value(call("describe", layers=[add(["x"], "y")], inputs={"x": [2]}, outputs={"y": None}))
    assert json.loads(json.dumps(told)) == told
    assert told["meta"]["layers"] == {"add": 1}
