"""onnx2tf on small ONNX models: converted and compared with ONNX Runtime in the layout that the reply declares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.converters import onnx2tf
from trueport.envs import toolchains
from trueport.outcome import Failure, Kind, Ok, Stage

HERE = str(Path(__file__).parent)
MODELS = "onnx2tf_models"
LAST = [0, 2, 3, 1]


@pytest.fixture(scope="module")
def models(pool, env, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("onnx"))
    outcome = pool.call(env("onnx"), MODELS, "write_models", {"folder": folder}, stage=Stage.LOAD, paths=[HERE])
    assert isinstance(outcome, Ok), outcome
    return outcome.value.value


class Bench:
    """Reference, conversion and run of one model, each in its own environment."""

    def __init__(self, pool, env, models, folder):
        self.pool, self.env, self.models, self.folder = pool, env, models, folder
        self.done = {}

    def reference(self, name, runs=4, seed=0):
        arguments = {"path": self.models[name], "runs": runs, "seed": seed}
        outcome = self.pool.call(self.env("onnx"), MODELS, "reference", arguments, stage=Stage.RUN, paths=[HERE])
        assert isinstance(outcome, Ok), outcome
        return outcome.value.value["inputs"], outcome.value.value["outputs"]

    def convert(self, name, step="onnx2tf-tflite", example=None, **options):
        """Convert once per model, step and options; a conversion takes two to four seconds."""
        key = (name, step, *sorted(options.items()))
        if key not in self.done:
            self.done[key] = self._convert(name, step, example, options)
        return self.done[key]

    def _convert(self, name, step, example, options):
        out = self.folder / f"{name}-{'-'.join(map(str, options.values()))}{'.tflite' if 'tflite' in step else ''}"
        inputs = self.reference(name, runs=128, seed=1)[0] if example is None else {}
        context = {
            "signature": {"inputs": [], "outputs": [], "meta": {}},
            "example": {key: array[0] for key, array in inputs.items()},
            "calibration": inputs,
            "trust": False,
        }
        toolchain = next(item.toolchain for item in onnx2tf.STEPS if item.name == step)
        arguments = {"step": step, "source": self.models[name], "out": str(out), "options": options, "context": context}
        outcome = self.pool.call(
            self.env(toolchain), "trueport.converters.onnx2tf", "convert", arguments, stage=Stage.CONVERT
        )
        return outcome, out

    def ported(self, name, **options):
        """Convert, run on the reference's inputs in the declared layout, return (reply, expected, given) by ONNX output name."""
        outcome, out = self.convert(name, **options)
        assert isinstance(outcome, Ok), outcome
        reply = outcome.value.value
        inputs, expected = self.reference(name)
        layout, renamed = reply["layout"], reply["names"]

        def turned(source, array):
            entry = layout.get(renamed.get(source, source))
            assert entry is None or entry["source"] == source
            return array if entry is None else array.transpose([0, *(axis + 1 for axis in entry["permutation"])])

        feeds = {renamed.get(key, key): turned(key, np.asarray(array)) for key, array in inputs.items()}
        arguments = {
            "path": str(out),
            "cases": {"c": feeds},
            "precision": "float32",
            "variant": "default",
            "trust": False,
        }
        ran = self.pool.call(self.env("litert"), "trueport.frameworks.tflite", "run", arguments, stage=Stage.RUN)
        assert isinstance(ran, Ok), ran
        given = ran.value.value["c"]
        return reply, {key: turned(key, np.asarray(value)) for key, value in expected.items()}, {
            key: given[renamed.get(key, key)] for key in expected
        }  # fmt: skip


@pytest.fixture(scope="module")
def bench(pool, env, models, tmp_path_factory):
    return Bench(pool, env, models, tmp_path_factory.mktemp("ported"))


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("residual", {"x": LAST}),
        ("depthwise", {"x": LAST, "y": LAST}),
        ("lstm", {}),
        ("gru", {}),
        ("attention", {"x": [0, 2, 1]}),
        ("two_in_two_out", {"img__0": LAST, "mask": LAST}),
        ("embedding", {}),
        ("distinct_concat", {"x": LAST}),
        ("square", {"x": LAST, "y": LAST}),
        ("square_softmax", {"x": LAST}),
    ],
)
def test_converted_model_computes_the_same_in_the_declared_layout(bench, name, layout):
    reply, expected, given = bench.ported(name)
    assert {key: entry["permutation"] for key, entry in reply["layout"].items()} == layout
    for key, array in expected.items():
        # sums of up to 100 products of size 1: float32 noise, measured at most 1.2e-6
        np.testing.assert_allclose(given[key], array, atol=1e-5, err_msg=key)
        assert np.ptp(array) > 0.05, "an output that hardly moves proves nothing"


def test_renamed_inputs_are_told(bench):
    reply, _, _ = bench.ported("two_in_two_out")
    assert reply["names"] == {"img:0": "img__0"}


def test_equal_sizes_are_told_apart_by_values_and_said_so(bench):
    """Conv on 1x4x4x4 comes out channel-last, Softmax comes out as it was, and both have the shape 1x4x4x4."""
    conv, _, _ = bench.ported("square")
    softmax, _, _ = bench.ported("square_softmax")
    assert ("y" in conv["layout"], "y" in softmax["layout"]) == (True, False)
    assert all("told by a run of both models" in " ".join(reply["notes"]) for reply in (conv, softmax))


def test_the_silent_layout_fault_stays_visible(bench):
    """Conv then Concat on axis 2: right on 1x4x5x6 (above), silently wrong on 1x4x4x4, in every layout that we could declare."""
    reply, expected, given = bench.ported("square_concat")
    assert reply["layout"] == {"x": {"source": "x", "permutation": LAST}}
    right, got = expected["y"], given["y"]
    assert got.shape == right.shape
    for order in ([0, 1, 2, 3, 4], [0, 1, 4, 3, 2]):
        assert np.abs(right.transpose(order) - got).max() > 0.5


def test_dynamic_batch_stays_dynamic(bench, pool, env):
    outcome, out = bench.convert("residual")
    assert isinstance(outcome, Ok), outcome
    arguments = {"path": str(out), "trust": False}
    signature = pool.call(env("litert"), "trueport.frameworks.tflite", "signature", arguments, stage=Stage.LOAD)
    assert signature.value.value["inputs"][0]["shape"] == [None, 16, 20, 3]
    assert all(step.dynamic_shapes for step in onnx2tf.STEPS)
    fixed, out = bench.convert("residual", input_shape="x:2,3,16,20")
    assert isinstance(fixed, Ok), fixed
    arguments = {"path": str(out), "trust": False}
    signature = pool.call(env("litert"), "trueport.frameworks.tflite", "signature", arguments, stage=Stage.LOAD)
    assert signature.value.value["inputs"][0]["shape"] == [2, 16, 20, 3]


@pytest.mark.parametrize(
    ("name", "precision", "largest"),
    # shares of the largest output: float16 has 11 bits of mantissa; int8 has 8 bits for weights, then also for activations
    [
        ("depthwise", "float16", 0.002),
        ("two_in_two_out", "int8-dynamic", 0.03),
        ("square", "int8", 0.05),
    ],
)
def test_declared_precisions(bench, pool, env, name, precision, largest):
    _, expected, given = bench.ported(name, precision=precision)
    for key, array in expected.items():
        error = np.abs(given[key] - array).max() / np.abs(array).max()
        assert 0 < error < largest, (key, error)
    out = bench.folder / f"{name}-{precision}.tflite"
    arguments = {"path": str(out), "trust": False}
    signature = pool.call(env("litert"), "trueport.frameworks.tflite", "signature", arguments, stage=Stage.LOAD)
    assert signature.value.value["meta"]["precision"] == precision


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "output"),
    [
        ("two_in_two_out", "int8", "scores"),  # a convolution gets the narrow range of the mean over it, and is clipped
        ("depthwise", "int8-dynamic", "y"),  # per-tensor depthwise weights, which the hybrid kernel does not read
    ],
)
def test_silent_quantisation_faults_of_the_tool_stay_visible(bench, name, precision, output):
    """Seen with onnx2tf 2.6.9, without a message: four times the 5 % that a sound int8 convolution stays under (above)."""
    _, expected, given = bench.ported(name, precision=precision)
    assert np.abs(given[output] - expected[output]).max() > 0.2 * np.abs(expected[output]).max()


@pytest.mark.slow
def test_per_channel_dynamic_range_is_refused_by_the_runtime(bench, pool, env):
    """Why per-tensor is the default here: the tool puts a convolution's scales on the wrong axis. Mend the default when this fails."""
    outcome, out = bench.convert("depthwise", precision="int8-dynamic", quant_type="per-channel")
    assert isinstance(outcome, Ok), outcome
    arguments = {"path": str(out), "cases": {"c": {"x": np.ones((1, 1, 8, 10, 6), np.float32)}}}
    arguments |= {"precision": "float32", "variant": "default", "trust": False}
    ran = pool.call(env("litert"), "trueport.frameworks.tflite", "run", arguments, stage=Stage.RUN)
    assert isinstance(ran, Failure)
    assert "quantized_dimension" in ran.message


def test_int8_of_integer_inputs_is_unsupported(bench):
    outcome, out = bench.convert("embedding", precision="int8")
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED
    assert "'tokens' is int64" in outcome.message
    assert not out.exists()


def test_keep_shape_keeps_the_layout(bench):
    reply, expected, given = bench.ported("depthwise", keep_shape="x")
    assert "x" not in reply["layout"]
    np.testing.assert_allclose(given["y"], expected["y"], atol=1e-5)


def test_foreign_operator_is_unsupported_by_name(bench):
    """The tool itself ends well: it writes a custom operator that no runtime has."""
    outcome, out = bench.convert("foreign", example=False)
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED
    assert "FOO" in outcome.message
    assert not out.exists()


def test_unknown_option_is_told(bench):
    outcome, _ = bench.convert("embedding", speed="high")
    assert isinstance(outcome, Failure)
    assert "no option 'speed'" in outcome.message


def test_damaged_source_is_a_failure(bench, models, tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"\x08\x08garbage that is no model")
    models["bad"] = str(bad)
    outcome, out = bench.convert("bad", example=False)
    assert isinstance(outcome, Failure)
    assert not out.exists()


@pytest.mark.slow
def test_savedmodel_is_written_and_loads(bench, pool, env):
    if "onnx2tf-tf" not in toolchains():
        pytest.skip("there is no toolchain 'onnx2tf-tf' (onnx2tf with TensorFlow)")
    outcome, out = bench.convert("two_in_two_out", step="onnx2tf-savedmodel")
    assert isinstance(outcome, Ok), outcome
    assert (out / "saved_model.pb").is_file()
    assert outcome.value.value["layout"]["mask"] == {"source": "mask", "permutation": LAST}
    inputs, expected = bench.reference("two_in_two_out")
    feeds = {"img__0": np.asarray(inputs["img:0"])[0].transpose(LAST), "extra": np.asarray(inputs["extra"])[0]}
    arguments = {"path": str(out), "feeds": feeds}
    ran = pool.call(env("onnx2tf-tf"), MODELS, "run_saved_model", arguments, stage=Stage.RUN, paths=[HERE])
    assert isinstance(ran, Ok), ran
    np.testing.assert_allclose(ran.value.value["mask"], expected["mask"][0].transpose(LAST), atol=1e-5)
    np.testing.assert_allclose(ran.value.value["scores"], expected["scores"][0], atol=1e-5)
