"""tf2onnx: every step for real, its names and order, and the faults it is known for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tf_support import Tf, context, deviation, feeds

from trueport.converters import tf2onnx
from trueport.outcome import Failure, Kind

ZOO = ("residual", "depthwise", "lstm", "gru", "transformer", "multi")
NOISE = 2e-5
"""Ten times the largest deviation from float64 seen over the zoo (1.2e-6), rounded up."""


@pytest.fixture(scope="module")
def tf(pool, env):
    return Tf(pool, env("tensorflow"))


@pytest.fixture(scope="module")
def onnx(pool, env):
    return Tf(pool, env("onnx"))


@pytest.fixture(scope="module")
def zoo(tf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = tf("keras_models", "save", kind=kind, folder=str(folder), seed=3)
        return made[kind]

    return get


def convert(tf, step, source, out, inputs=None, signature=None, **options):
    module = {"tf2onnx": "tf2onnx", "tflite": "tflite_converter", "keras": "keras_export", "keras2": "keras_export"}
    return tf.outcome(
        f"trueport.converters.{module[step.split('-')[0]]}",
        "convert",
        step=step,
        source=str(source),
        out=str(out),
        options=options,
        context=context(signature or {"inputs": [], "outputs": [], "meta": {}}, inputs or {}),
    )


def names_of(outcome):
    assert not isinstance(outcome, Failure), f"{outcome.message}\n{outcome.log[-3000:]}"
    return outcome.value.value["names"]


@pytest.mark.parametrize(
    ("kind", "options"), [*((kind, {}) for kind in ZOO), ("lstm", {"unroll": "yes"}), ("gru", {"unroll": "yes"})]
)
def test_keras_model_keeps_its_numbers_names_order_and_batch(tf, onnx, zoo, tmp_path, kind, options):
    signature = tf.signature("keras", zoo(kind))
    out = tmp_path / "model.onnx"
    assert names_of(convert(tf, "tf2onnx-keras", zoo(kind), out, **options)) == {}
    converted = onnx.signature("onnx", out)
    for side in ("inputs", "outputs"):
        assert [spec["name"] for spec in converted[side]] == [spec["name"] for spec in signature[side]]
        assert all(spec["shape"][0] == "batch" for spec in converted[side])
    for batch in (1, 3):
        inputs = feeds(signature, batch=batch)
        expected = tf.run("keras", zoo(kind), inputs, precision="float64")
        result = onnx.run("onnx", out, inputs)
        for name, value in expected.items():
            assert deviation(result[name], value) < NOISE


def test_gru_with_the_reset_gate_before_converts(tf, onnx, zoo, tmp_path):
    out = tmp_path / "model.onnx"
    names_of(convert(tf, "tf2onnx-keras", zoo("gru_reset_before"), out))
    inputs = feeds(tf.signature("keras", zoo("gru_reset_before")))
    expected = tf.run("keras", zoo("gru_reset_before"), inputs)["scores"]
    assert deviation(onnx.run("onnx", out, inputs)["scores"], expected) < NOISE


def test_exact_gelu_is_an_invalid_output_that_names_the_operator(tf, zoo, tmp_path):
    """tf2onnx ends well here and leaves TensorFlow's Erfc in the file."""
    outcome = convert(tf, "tf2onnx-keras", zoo("exact_gelu"), tmp_path / "model.onnx")
    assert isinstance(outcome, Failure)
    assert outcome.kind == Kind.INVALID_OUTPUT
    assert "Erfc" in outcome.message
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("opset", [13, 18])
def test_opset_is_what_was_asked_for(tf, onnx, zoo, tmp_path, opset):
    out = tmp_path / "model.onnx"
    names_of(convert(tf, "tf2onnx-keras", zoo("multi"), out, opset=str(opset)))
    assert f"{opset}" in json.dumps(onnx.signature("onnx", out)["meta"]["opset"])


def test_default_opset(tf, onnx, zoo, tmp_path):
    names_of(convert(tf, "tf2onnx-keras", zoo("multi"), tmp_path / "m.onnx"))
    assert str(tf2onnx.DEFAULT_OPSET) in json.dumps(onnx.signature("onnx", tmp_path / "m.onnx")["meta"]["opset"])


def test_option_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="opset takes a number"):
        tf2onnx.opset_of({"opset": "newest"})
    with pytest.raises(ValueError, match="unroll takes yes or no"):
        tf2onnx.flag({"unroll": "perhaps"}, "unroll")


# SavedModels, and two faults that are in tf2onnx today


def test_saved_model_keeps_names(tf, onnx, zoo, tmp_path):
    signature = tf.signature("keras", zoo("multi"))
    inputs = feeds(signature)
    names = names_of(convert(tf, "keras-savedmodel", zoo("multi"), tmp_path / "saved", inputs, signature))
    assert names_of(convert(tf, "tf2onnx-savedmodel", tmp_path / "saved", tmp_path / "m.onnx")) == {}
    expected = tf.run("keras", zoo("multi"), inputs, precision="float64")
    result = onnx.run("onnx", tmp_path / "m.onnx", inputs)
    assert list(result) == ["output_0", "output_1", "output_2"]
    for name, value in expected.items():
        assert deviation(result[names[name]], value) < NOISE


def test_floor_division_becomes_truncation(tf, onnx, tmp_path):
    """tensorflow-onnx#2174: silently wrong for negative integers. Fails when tf2onnx is mended: then note the version."""
    tf("tf_odd_models", "save_function", kind="floor_division", folder=str(tmp_path / "saved"))
    names_of(convert(tf, "tf2onnx-savedmodel", tmp_path / "saved", tmp_path / "m.onnx"))
    x = np.arange(-7, 8, dtype=np.int32)[None]
    np.testing.assert_array_equal(tf.run("tensorflow", tmp_path / "saved", {"x": x})["y"], x // 2)
    np.testing.assert_array_equal(onnx.run("onnx", tmp_path / "m.onnx", {"x": x})["y"], np.trunc(x / 2))


def test_duplicates_of_a_scatter_are_not_summed(tf, onnx, tmp_path):
    """Silently wrong: 1 + 2 at place 0 becomes 2. Fails when tf2onnx is mended: then note the version."""
    tf("tf_odd_models", "save_function", kind="scatter", folder=str(tmp_path / "saved"))
    names_of(convert(tf, "tf2onnx-savedmodel", tmp_path / "saved", tmp_path / "m.onnx"))
    v = np.array([[1, 2, 3]], np.float32)
    np.testing.assert_array_equal(tf.run("tensorflow", tmp_path / "saved", {"v": v})["y"], [[3, 0, 3, 0]])
    np.testing.assert_array_equal(onnx.run("onnx", tmp_path / "m.onnx", {"v": v})["y"], [[2, 0, 3, 0]])


# TFLite


@pytest.mark.parametrize("kind", ["residual", "depthwise", "multi", "transformer"])
def test_tflite_model_keeps_numbers_and_names(tf, onnx, zoo, tmp_path, kind):
    signature = tf.signature("keras", zoo(kind))
    inputs = feeds(signature)
    names_of(convert(tf, "tflite-keras", zoo(kind), tmp_path / "m.tflite", inputs, signature))
    outcome = convert(tf, "tf2onnx-tflite", tmp_path / "m.tflite", tmp_path / "m.onnx", inputs, signature)
    names = names_of(outcome)
    expected = tf.run("keras", zoo(kind), {n: v[:, :1] for n, v in inputs.items()}, precision="float64")
    result = onnx.run("onnx", tmp_path / "m.onnx", {names.get(n, n): v[:, :1] for n, v in inputs.items()})
    for name, value in expected.items():
        assert deviation(result[names.get(name, name)], value) < NOISE


# Keras 2


def test_keras_2_model_with_two_outputs(tf, onnx, pool, env, tmp_path):
    legacy = Tf(pool, env("tf-keras"))
    source = str(tmp_path / "m.h5")
    legacy("tf_odd_models", "save_legacy", kind="cnn", path=source)
    signature = legacy.signature("keras", source)
    assert [spec["name"] for spec in signature["outputs"]] == ["zeta", "alpha"]
    assert names_of(convert(legacy, "tf2onnx-keras2", source, tmp_path / "m.onnx")) == {}
    inputs = feeds(signature)
    result = onnx.run("onnx", tmp_path / "m.onnx", inputs)
    for name, value in legacy.run("keras", source, inputs, precision="float64").items():
        assert deviation(result[name], value) < NOISE


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name",
    [
        "mlperf_tiny_resnet8/pretrainedResnet.h5",
        "mlperf_tiny_vww/vww_96.h5",
        "mlperf_tiny_wakeword/str_ww_ref_model.h5",
    ],
)
def test_corpus_model_converts(onnx, pool, env, corpus, tmp_path, name):
    legacy = Tf(pool, env("tf-keras"))
    source = corpus / "models" / name
    names_of(convert(legacy, "tf2onnx-keras2", source, tmp_path / "m.onnx"))
    inputs = feeds(legacy.signature("keras", source))
    (expected,) = legacy.run("keras", source, inputs).values()
    (result,) = onnx.run("onnx", tmp_path / "m.onnx", inputs).values()
    assert deviation(result, expected) < 1e-3  # these nets amplify float32 noise on random data: 1.2e-4 seen


# The checks themselves


class Fake:
    """Just enough of an ONNX model for the renaming."""

    class Item:
        def __init__(self, name=""):
            self.name = name

        def CopyFrom(self, other):
            self.name = other.name

    class Node:
        def __init__(self, inputs, outputs):
            self.input, self.output, self.attribute = list(inputs), list(outputs), []

    def __init__(self, inputs, outputs, nodes):
        self.graph = self
        self.node = [self.Node(*node) for node in nodes]
        self.input = [self.Item(name) for name in inputs]
        self.output = [self.Item(name) for name in outputs]
        self.initializer, self.value_info = [], []


def test_names_and_order_are_restored_by_meaning():
    model = Fake(["p", "q"], ["r", "s"], [(["p", "q"], ["r"]), (["r"], ["s"])])
    kept = tf2onnx.restore_names(model, {"second": "q", "first": "p"}, {"late": "s", "early": "r"})
    assert kept == {}
    assert [item.name for item in model.input] == ["second", "first"]
    assert [item.name for item in model.output] == ["late", "early"]
    assert model.node[0].input == ["first", "second"]
    assert model.node[1].input == ["early"]


def test_name_of_an_inner_value_is_not_taken_twice():
    model = Fake(["p"], ["r"], [(["p"], ["y"]), (["y"], ["r"])])
    assert tf2onnx.restore_names(model, {"p": "p"}, {"y": "r"}) == {"y": "r"}
    assert [item.name for item in model.output] == ["r"]
    assert model.node[1].output == ["r"]


def test_steps_say_what_they_take():
    assert all(step.target_format == "onnx" and step.tool == "tf2onnx" for step in tf2onnx.STEPS)
    assert [step.name for step in tf2onnx.STEPS if step.legacy_keras] == ["tf2onnx-keras2"]
