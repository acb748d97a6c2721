"""Faults planted in a `.mlmodel` file beside its ONNX twin: found, placed at the layer, and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import trueport
from trueport.outcome import Ok, Stage

HERE = str(Path(__file__).parent)
RNG = np.random.default_rng(4)
FIRST = (RNG.integers(-8, 9, (6, 3, 3, 3)) / 16.0).astype(np.float32)
SECOND = (RNG.integers(-8, 9, (4, 6, 1, 1)) / 8.0).astype(np.float32)
FAULTS = {"none": {}, "pads": {"edges": (0, 2)}, "alpha": {"alpha": 0.5}, "weights": {"factor": 1.5}}


def layers(edges=(1, 1), alpha=0.125, factor=1.0):
    """The layers of the network, with a fault where an argument differs."""
    edge = {"startEdgeSize": edges[0], "endEdgeSize": edges[1]}
    first = FIRST.copy()
    first[:2] *= factor
    conv = {
        "outputChannels": 6,
        "kernelChannels": 3,
        "stride": [2, 2],
        "weights": {"floatValue": first.ravel().tolist()},
    }
    conv["valid"] = {"paddingAmounts": {"borderAmounts": [edge, edge]}}
    head = {"outputChannels": 4, "kernelChannels": 6, "kernelSize": [1, 1], "valid": {}}
    head["weights"] = {"floatValue": SECOND.ravel().tolist()}
    return [
        {"name": "first layer", "input": ["x"], "output": ["c"], "convolution": conv},
        {"name": "second layer", "input": ["c"], "output": ["r"], "activation": {"leakyReLU": {"alpha": alpha}}},
        {"name": "third layer", "input": ["r"], "output": ["y"], "convolution": head},
    ]


@pytest.fixture(scope="module")
def files(pool, env, tmp_path_factory):
    """Name -> path: "twin" is the ONNX file, the others are networks with a fault each."""
    folder = tmp_path_factory.mktemp("faults")
    found = {"twin": folder / "twin.onnx"}
    twin = {"path": str(found["twin"]), "weights": [FIRST, SECOND], "alpha": 0.125, "pads": [1, 1, 1, 1]}
    assert isinstance(pool.call(env("onnx"), "coreml_nn_twin", "write", twin, stage=Stage.LOAD, paths=[HERE]), Ok)
    for name, fault in FAULTS.items():
        found[name] = folder / f"{name}.mlmodel"
        model = {
            "path": str(found[name]),
            "layers": layers(**fault),
            "inputs": {"x": [1, 3, 8, 8]},
            "outputs": {"y": None},
        }
        outcome = pool.call(env("coreml"), "coreml_nn_models", "write", model, stage=Stage.LOAD, paths=[HERE])
        assert isinstance(outcome, Ok), outcome
    return found


@pytest.mark.slow
def test_a_network_without_a_fault_is_faithful_to_its_twin(files):
    assert trueport.verify(files["twin"], files["none"]).verdict.name == "FAITHFUL"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "place", "words"),
    [
        ("pads", "first layer", "pads"),
        ("alpha", "second layer", "alpha"),
        ("weights", "first layer", "first layer.weights"),
    ],
)
def test_a_planted_fault_is_placed_at_its_layer_and_named(files, fault, place, words):
    found = trueport.diagnose(files["twin"], files[fault], tools=False)
    first = found.suspects[0]
    assert first.target_nodes == (place,)
    assert words in first.what
