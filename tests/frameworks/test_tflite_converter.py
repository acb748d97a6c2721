"""TFLiteConverter: every step and precision for real, with signature names and the batch where it can stay open."""

from __future__ import annotations

import numpy as np
import pytest
from test_tf2onnx import convert, names_of
from tf_support import Tf, deviation, feeds

from trueport.converters import tflite_converter
from trueport.outcome import Failure, Kind

ZOO = ("residual", "depthwise", "lstm", "gru", "transformer", "multi")
NOISE = 2e-5
"""As in test_tf2onnx: ten times the largest deviation from float64 seen over the zoo."""


@pytest.fixture(scope="module")
def tf(pool, env):
    return Tf(pool, env("tensorflow"))


@pytest.fixture(scope="module")
def litert(pool, env):
    return Tf(pool, env("litert"))


@pytest.fixture(scope="module")
def zoo(tf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    made = {}

    def get(kind):
        if kind not in made:
            path = tf("keras_models", "save", kind=kind, folder=str(folder), seed=3)
            made[kind] = (path, tf.signature("keras", path))
        return made[kind]

    return get


@pytest.mark.parametrize("kind", ZOO)
def test_keras_model_keeps_its_numbers_and_names(tf, litert, zoo, tmp_path, kind):
    source, signature = zoo(kind)
    inputs = feeds(signature, batch=1)
    outcome = convert(tf, "tflite-keras", source, tmp_path / "m.tflite", inputs, signature)
    assert names_of(outcome) == {}
    converted = litert.signature("tflite", tmp_path / "m.tflite")
    for side in ("inputs", "outputs"):
        assert {spec["name"] for spec in converted[side]} == {spec["name"] for spec in signature[side]}
    expected = tf.run("keras", source, inputs, precision="float64")
    result = litert.run("tflite", tmp_path / "m.tflite", inputs)
    for name, value in expected.items():
        assert deviation(result[name], value) < NOISE
    fixed = kind in ("lstm", "gru")
    assert any("fixed" in note for note in outcome.value.value["notes"]) == fixed
    assert all((spec["shape"][0] == 1) == fixed for spec in converted["inputs"])


@pytest.mark.parametrize("kind", ["residual", "multi"])
def test_open_batch_runs_at_another_size(tf, litert, zoo, tmp_path, kind):
    source, signature = zoo(kind)
    names_of(convert(tf, "tflite-keras", source, tmp_path / "m.tflite", feeds(signature), signature))
    inputs = feeds(signature, batch=5)
    result = litert.run("tflite", tmp_path / "m.tflite", inputs)
    for name, value in tf.run("keras", source, inputs).items():
        assert deviation(result[name], value) < NOISE


def test_batch_can_be_fixed(tf, litert, zoo, tmp_path):
    source, signature = zoo("residual")
    names_of(convert(tf, "tflite-keras", source, tmp_path / "m.tflite", feeds(signature), signature, batch="4"))
    assert litert.signature("tflite", tmp_path / "m.tflite")["inputs"][0]["shape"] == [4, 16, 16, 3]


def test_unrolled_recurrent_layer_keeps_the_batch_open(tf, litert, zoo, tmp_path):
    source, signature = zoo("gru")
    outcome = convert(tf, "tflite-keras", source, tmp_path / "m.tflite", feeds(signature), signature, unroll="yes")
    names_of(outcome)
    assert outcome.value.value["notes"] == []
    inputs = feeds(signature, batch=4)
    result = litert.run("tflite", tmp_path / "m.tflite", inputs)["scores"]
    assert deviation(result, tf.run("keras", source, inputs)["scores"]) < NOISE


@pytest.mark.parametrize("kind", ["residual", "multi"])
def test_precisions_deviate_as_their_simulation_does(tf, litert, zoo, tmp_path, kind):
    """Against the simulation of the same grid; int8-dynamic leaves weights of fewer than 1024 elements alone."""
    source, signature = zoo(kind)
    inputs = feeds(signature, runs=8, batch=1)
    exact = tf.run("keras", source, inputs)
    seen = {}
    for precision in ("float16", "int8-dynamic", "int8"):
        out = tmp_path / f"{precision}.tflite"
        names_of(convert(tf, "tflite-keras", source, out, inputs, signature, precision=precision))
        result = litert.run("tflite", out, inputs)
        simulated = tf.run("keras", source, inputs, precision=precision)
        seen[precision] = max(deviation(result[name], exact[name]) for name in exact)
        ideal = max(deviation(simulated[name], exact[name]) for name in exact)
        assert seen[precision] < 4 * ideal
    assert 1e-5 < seen["float16"] < 1e-2
    assert 1e-3 < seen["int8"] < 0.5


def test_int8_with_integer_inputs_and_outputs(tf, litert, zoo, tmp_path):
    source, signature = zoo("residual")
    inputs = feeds(signature, runs=8, batch=1)
    for io in ("float32", "int8"):
        out = tmp_path / f"{io}.tflite"
        names_of(convert(tf, "tflite-keras", source, out, inputs, signature, precision="int8", io=io))
        specs = litert.signature("tflite", out)
        quantised = [spec.get("quantization") for spec in (*specs["inputs"], *specs["outputs"])]
        assert all((item is not None) == (io == "int8") for item in quantised)


def test_int8_without_calibration_is_refused(tf, zoo, tmp_path):
    source, signature = zoo("residual")
    outcome = convert(tf, "tflite-keras", source, tmp_path / "m.tflite", {}, signature, precision="int8")
    assert isinstance(outcome, Failure)
    assert outcome.kind == Kind.UNSUPPORTED
    assert "calibration" in outcome.message


@pytest.mark.parametrize("options", [{"precision": "int4"}, {"io": "int8"}])
def test_impossible_options_are_refused(tf, zoo, tmp_path, options):
    source, signature = zoo("residual")
    outcome = convert(tf, "tflite-keras", source, tmp_path / "m.tflite", feeds(signature), signature, **options)
    assert isinstance(outcome, Failure)
    assert outcome.kind == Kind.UNSUPPORTED


def test_int8_of_a_loop_is_refused_with_the_cure(tf, litert, zoo, tmp_path):
    """The converter's calibrator dies of a segmentation fault on loops."""
    source, signature = zoo("gru")
    inputs = feeds(signature, runs=8, batch=1)
    out = tmp_path / "m.tflite"
    outcome = convert(tf, "tflite-keras", source, out, inputs, signature, precision="int8")
    assert isinstance(outcome, Failure)
    assert "unroll=yes" in outcome.message
    names_of(convert(tf, "tflite-keras", source, out, inputs, signature, precision="int8", unroll="yes"))
    expected = tf.run("keras", source, inputs)["scores"]
    assert deviation(litert.run("tflite", out, inputs)["scores"], expected) < 0.3  # int8 over six unrolled steps


def test_saved_model_converts(tf, litert, zoo, tmp_path):
    source, signature = zoo("multi")
    inputs = feeds(signature)
    names = names_of(convert(tf, "keras-savedmodel", source, tmp_path / "saved", inputs, signature))
    between = tf.signature("tensorflow", tmp_path / "saved")
    names_of(convert(tf, "tflite-savedmodel", tmp_path / "saved", tmp_path / "m.tflite", inputs, between))
    result = litert.run("tflite", tmp_path / "m.tflite", inputs)
    for name, value in tf.run("keras", source, inputs, precision="float64").items():
        assert deviation(result[names[name]], value) < NOISE


def test_keras_2_model_converts(litert, pool, env, tmp_path):
    legacy = Tf(pool, env("tf-keras"))
    source = str(tmp_path / "m.h5")
    legacy("tf_odd_models", "save_legacy", kind="cnn", path=source)
    signature = legacy.signature("keras", source)
    inputs = feeds(signature)
    assert names_of(convert(legacy, "tflite-keras2", source, tmp_path / "m.tflite", inputs, signature)) == {}
    result = litert.run("tflite", tmp_path / "m.tflite", inputs)
    for name, value in legacy.run("keras", source, inputs, precision="float64").items():
        assert deviation(result[name], value) < NOISE


@pytest.mark.corpus
def test_corpus_model_equals_the_twin_of_its_authors(litert, pool, env, corpus, tmp_path):
    legacy = Tf(pool, env("tf-keras"))
    folder = corpus / "models" / "mlperf_tiny_vww"
    signature = legacy.signature("keras", folder / "vww_96.h5")
    inputs = {"input_1": np.random.default_rng(0).random((4, 1, 96, 96, 3)).astype(np.float32)}
    names_of(convert(legacy, "tflite-keras2", folder / "vww_96.h5", tmp_path / "m.tflite", inputs, signature))
    (ours,) = litert.run("tflite", tmp_path / "m.tflite", inputs).values()
    twin = litert.signature("tflite", folder / "vww_96_float.tflite")["inputs"][0]["name"]
    (theirs,) = litert.run("tflite", folder / "vww_96_float.tflite", {twin: inputs["input_1"]}).values()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_steps_say_what_they_take():
    assert all(step.precisions == tflite_converter.PRECISIONS for step in tflite_converter.STEPS)
    assert [step.name for step in tflite_converter.STEPS if step.legacy_keras] == ["tflite-keras2"]
