"""Keras's own export: every format for real, and which exported name stands for which of the model's."""

from __future__ import annotations

import pytest
from test_tf2onnx import convert, names_of
from tf_support import Tf, deviation, feeds

from trueport.converters import keras_export
from trueport.frameworks._base import Unsupported
from trueport.outcome import Failure, Kind

ZOO = (
    "residual",
    "lstm",
    "multi",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("depthwise", "gru", "transformer")),
)
NOISE = 2e-5
"""As in test_tf2onnx: ten times the largest deviation from float64 seen over the zoo."""
RUNNERS = {"keras-savedmodel": "tensorflow", "keras-onnx": "onnx", "keras-litert": "tflite"}
SUFFIXES = {"keras-savedmodel": "", "keras-onnx": ".onnx", "keras-litert": ".tflite"}


@pytest.fixture(scope="module")
def tools(pool, env):
    names = {"keras": "tensorflow", "tensorflow": "tensorflow", "onnx": "onnx", "tflite": "litert"}
    return {framework: Tf(pool, env(toolchain)) for framework, toolchain in names.items()}


@pytest.fixture(scope="module")
def zoo(tools, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    made = {}

    def get(kind):
        if kind not in made:
            path = tools["keras"]("keras_models", "save", kind=kind, folder=str(folder), seed=3)
            made[kind] = (path, tools["keras"].signature("keras", path))
        return made[kind]

    return get


@pytest.mark.parametrize("step", RUNNERS)
@pytest.mark.parametrize("kind", ZOO)
def test_export_keeps_numbers_under_the_names_it_reports(tools, zoo, tmp_path, kind, step):
    source, signature = zoo(kind)
    inputs = feeds(signature, batch=1)
    out = tmp_path / f"model{SUFFIXES[step]}"
    outcome = convert(tools["keras"], step, source, out, inputs, signature)
    names = names_of(outcome)
    runner = tools[RUNNERS[step]]
    if step == "keras-litert" and kind in ("lstm", "gru"):
        assert "Flex" in outcome.value.value["notes"][0]
        refused = runner.outcome("trueport.frameworks.tflite", "signature", path=str(out), trust=False)
        assert isinstance(refused, Failure)
        assert refused.kind == Kind.UNSUPPORTED
        return
    renamed = {names.get(name, name): value for name, value in inputs.items()}
    result = runner.run(RUNNERS[step], out, renamed)
    expected = tools["keras"].run("keras", source, inputs, precision="float64")
    assert len(result) == len(expected)
    for name, value in expected.items():
        assert deviation(result[names.get(name, name)], value) < NOISE


@pytest.mark.parametrize("step", RUNNERS)
def test_dictionary_outputs_are_paired_by_meaning(tools, tmp_path, step):
    """Two outputs of equal shape whose sorted names are in the opposite order of their making."""
    source = str(tmp_path / "dict.keras")
    tools["keras"]("tf_odd_models", "save_dictionaries", path=source)
    signature = tools["keras"].signature("keras", source)
    inputs = feeds(signature)
    out = tmp_path / f"model{SUFFIXES[step]}"
    names = names_of(convert(tools["keras"], step, source, out, inputs, signature))
    renamed = {names.get(name, name): value for name, value in inputs.items()}
    result = tools[RUNNERS[step]].run(RUNNERS[step], out, renamed)
    for name, value in tools["keras"].run("keras", source, inputs, precision="float64").items():
        assert deviation(result[names.get(name, name)], value) < NOISE


def test_exact_gelu_through_the_onnx_export_is_invalid(tools, zoo, tmp_path):
    source, signature = zoo("exact_gelu")
    outcome = convert(tools["keras"], "keras-onnx", source, tmp_path / "m.onnx", feeds(signature), signature)
    assert isinstance(outcome, Failure)
    assert outcome.kind == Kind.INVALID_OUTPUT
    assert "Erfc" in outcome.message


def test_onnx_export_takes_an_opset(tools, zoo, tmp_path):
    source, signature = zoo("multi")
    outcome = convert(
        tools["keras"], "keras-onnx", source, tmp_path / "m.onnx", feeds(signature), signature, opset="17"
    )
    names_of(outcome)
    assert "17" in str(tools["onnx"].signature("onnx", tmp_path / "m.onnx")["meta"]["opset"])


def test_keras_2_exports_a_saved_model(tools, pool, env, tmp_path):
    legacy = Tf(pool, env("tf-keras"))
    source = str(tmp_path / "m.h5")
    legacy("tf_odd_models", "save_legacy", kind="cnn", path=source)
    signature = legacy.signature("keras", source)
    inputs = feeds(signature)
    names = names_of(convert(legacy, "keras2-savedmodel", source, tmp_path / "saved", inputs, signature))
    renamed = {names.get(name, name): value for name, value in inputs.items()}
    result = tools["tensorflow"].run("tensorflow", tmp_path / "saved", renamed)
    for name, value in legacy.run("keras", source, inputs, precision="float64").items():
        assert deviation(result[names.get(name, name)], value) < NOISE


def test_pairing_goes_by_name_then_by_place():
    assert keras_export._pair(["a", "b"], ["b", "a"]) == {}
    assert keras_export._pair(["a", "b"], ["output_1", "output_0"]) == {"a": "output_0", "b": "output_1"}
    assert keras_export._pair(["a", "b"], ["Identity:0", "Identity_1:0"]) == {"a": "Identity:0", "b": "Identity_1:0"}
    assert keras_export._pair(["in/put"], ["in_put"]) == {"in/put": "in_put"}
    assert keras_export._pair(["only"], ["strange"]) == {"only": "strange"}


def test_pairing_does_not_guess():
    with pytest.raises(Unsupported, match="which is which is not known"):
        keras_export._pair(["a", "b"], ["strange", "stranger"])
