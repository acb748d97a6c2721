"""The older Core ML format through the framework: `.mlmodel` files recognised, described, run, traced, cut; a real one beside its ONNX twin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.errors import BadModelError
from trueport.frameworks import coreml
from trueport.outcome import Failure, Kind, Ok, Stage

HERE = str(Path(__file__).parent)
MODULE = "trueport.frameworks.coreml"
RNG = np.random.default_rng(2)
WEIGHTS = RNG.integers(-8, 9, (4, 3, 3, 3)) / 8.0


@pytest.fixture(scope="module")
def call(pool, env):
    """call(function, path, **arguments) -> the Outcome of that function of the framework file in a worker."""
    python = env("coreml")

    def run(function, path, *, emit=False, **arguments):
        given = {"path": str(path), "trust": False, **arguments}
        return pool.call(python, MODULE, function, given, stage=Stage.RUN, emit=emit)

    return run


@pytest.fixture(scope="module")
def write(pool, env, tmp_path_factory):
    """write(name, **what `coreml_nn_models.model` takes) -> path of a `.mlmodel` file."""
    folder = tmp_path_factory.mktemp("mlmodel")

    def run(name, **arguments):
        path = folder / f"{name}.mlmodel"
        given = {"path": str(path), **arguments}
        outcome = pool.call(env("coreml"), "coreml_nn_models", "write", given, stage=Stage.LOAD, paths=[HERE])
        assert isinstance(outcome, Ok), outcome
        return path

    return run


@pytest.fixture(scope="module")
def small(write):
    """An image of 6 x 5 in BGR, scaled, through a convolution, a leaky ReLU and a sum over the plane."""
    convolution = {
        "outputChannels": 4,
        "kernelChannels": 3,
        "valid": {},
        "weights": {"floatValue": WEIGHTS.ravel().tolist()},
    }
    layers = [
        {"name": "conv", "input": ["photo"], "output": ["c"], "convolution": convolution},
        {"name": "relu", "input": ["c"], "output": ["r"], "activation": {"leakyReLU": {"alpha": 0.25}}},
        {"name": "sum", "input": ["r"], "output": ["total"], "reduceSum": {"axes": [2, 3]}},
    ]
    scaler = {"channelScale": 0.25, "blueBias": 1.0, "greenBias": 2.0, "redBias": 4.0}
    image = {"imageType": {"height": 6, "width": 5, "colorSpace": "BGR"}}
    return write(
        "small",
        layers=layers,
        inputs={"photo": image},
        outputs={"total": None},
        network={"preprocessing": [{"featureName": "photo", "scaler": scaler}]},
    )


def computed(photo):
    """Every value of the small network, by plain loops, for one photo [1, 3, 6, 5]."""
    scaled = photo[0] * 0.25 + np.array([1.0, 2.0, 4.0]).reshape(3, 1, 1)
    c = np.zeros((1, 4, 4, 3))
    for channel in range(4):
        for i in range(4):
            for j in range(3):
                c[0, channel, i, j] = (scaled[:, i : i + 3, j : j + 3] * WEIGHTS[channel]).sum()
    r = np.where(c >= 0, c, 0.25 * c)
    return {"photo#imageScaler": scaled[None], "c": c, "r": r, "total": r.sum((2, 3))}


def value(outcome):
    assert isinstance(outcome, Ok), outcome
    return outcome.value.value


def photos(runs=2):
    return RNG.integers(0, 256, (runs, 1, 3, 6, 5)).astype(np.float32)


def test_sniff_goes_by_the_version_number_and_the_suffix(small):
    head = small.read_bytes()[:4096]
    assert coreml.sniff(head, small) == "coreml"
    assert coreml.sniff(head, Path("small.onnx")) is None
    assert coreml.sniff(b"PK\x03\x04", Path("small.mlmodel")) is None


def test_signature_tells_the_image_its_colours_and_its_preparation(call, small):
    told = value(call("signature", small))
    assert told["inputs"] == [{"name": "photo", "dtype": "float32", "shape": [1, 3, 6, 5]}]
    assert told["outputs"][0]["name"] == "total"
    assert told["meta"]["images"] == {"photo": {"colors": "BGR", "height": 6, "width": 5}}
    assert told["meta"]["preprocessing"] == ["scaler"]
    assert told["meta"]["model_type"] == "neuralNetwork"
    assert told["meta"]["parameters"] == WEIGHTS.size


def test_run_gives_what_the_loops_give_in_both_precisions(call, small):
    x = photos()
    for precision, tolerance in (("float32", 1e-5), ("float64", 1e-13)):
        found = value(call("run", small, cases={"case": {"photo": x}}, precision=precision, variant="default"))
        for row, right in zip(found["case"]["total"], (computed(photo)["total"] for photo in x), strict=True):
            np.testing.assert_allclose(row, right, rtol=tolerance)


def test_trace_gives_every_value_and_graph_says_who_writes_it(call, small):
    x = photos()
    shown = value(call("graph", small))
    assert [(node["op"], node["native_op"]) for node in shown["nodes"]] == [
        ("Mul", "nn.imageScaler"),
        ("Conv", "nn.convolution"),
        ("LeakyRelu", "nn.activation"),
        ("ReduceSum", "nn.reduceSum"),
    ]
    conv = shown["nodes"][1]
    assert conv["inputs"] == ["photo#imageScaler", "conv.weights"]
    assert conv["attributes"]["kernelSize"] == [3, 3]
    assert shown["constants"] == {"conv.weights": {"dtype": "float32", "shape": [4, 3, 3, 3]}}
    names = value(call("names", small))
    assert names == [name for node in shown["nodes"] for name in node["outputs"]]
    outcome = call("trace", small, inputs={"photo": x}, wanted=names, budget=1 << 20, emit=True)
    assert isinstance(outcome, Ok), outcome
    for row, photo in enumerate(x):
        for name, right in computed(photo).items():
            np.testing.assert_allclose(outcome.value.emitted[name][row], right, rtol=1e-5, atol=1e-4)


def test_replay_reads_what_is_put_in_and_runs_only_what_is_needed(call, small):
    given = RNG.standard_normal((3, 1, 4, 4, 3)).astype(np.float32)
    outcome = call(
        "replay", small, inputs={}, given={"c": given}, wanted=["total"], variant="", budget=1 << 20, emit=True
    )
    assert isinstance(outcome, Ok), outcome
    right = np.where(given >= 0, given, 0.25 * given).sum((3, 4))
    np.testing.assert_allclose(outcome.value.emitted["total"], right, rtol=1e-5, atol=1e-5)


def test_parameters_are_the_stored_weights(call, small):
    outcome = call("parameters", small, emit=True)
    assert isinstance(outcome, Ok), outcome
    np.testing.assert_array_equal(outcome.value.emitted["conv.weights"], WEIGHTS)


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
def test_a_file_that_is_cut_short_is_damage(call, small, tmp_path, keep):
    data = small.read_bytes()
    short = tmp_path / "short.mlmodel"
    short.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(BadModelError, match=r"short\.mlmodel|holds"):
        call("signature", short)


def test_a_layer_that_is_the_authors_own_code_is_shown_and_not_run(call, write):
    path = write(
        "custom",
        layers=[{"name": "mine", "input": ["x"], "output": ["y"], "custom": {"className": "Mine"}}],
        inputs={"x": [2]},
        outputs={"y": None},
    )
    shown = value(call("graph", path))
    assert shown["nodes"][0]["native_op"] == "nn.custom"
    assert shown["nodes"][0]["attributes"]["className"] == "Mine"
    outcome = call(
        "run", path, cases={"case": {"x": np.ones((1, 2), np.float32)}}, precision="float32", variant="default"
    )
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED
    assert "'mine'" in outcome.message


def test_a_real_network_computes_what_its_onnx_twin_computes(call, pool, env, corpus):
    """SINet, trained and converted by its authors with coremltools 4; both files take the same array."""
    folder = corpus / "models" / "sinet_portrait"
    x = RNG.random((1, 1, 3, 320, 320)).astype(np.float32) * 2 - 1
    arguments = {"precision": "float32", "variant": "default", "trust": False}
    cases = {"path": str(folder / "SINet.onnx"), "cases": {"case": {"data": x}}, **arguments}
    twin = value(pool.call(env("onnx"), "trueport.frameworks.onnx", "run", cases, stage=Stage.RUN))
    right = twin["case"]["classifier/1"]
    found = value(
        call("run", folder / "SINet.mlmodel", cases={"case": {"input.54": x}}, precision="float32", variant="default")
    )
    np.testing.assert_allclose(
        found["case"]["1390"],
        right,
        rtol=0,
        # The largest element counts: 58 convolutions in float32, 2e-6 seen.
        atol=2e-5 * float(np.abs(right).max()),
    )
    notes = value(call("signature", folder / "SINet.mlmodel"))["meta"]["notes"]
    assert "names no channel" in notes[0]
