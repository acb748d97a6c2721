"""The way back: what comes out in PyTorch or Keras gives the same numbers, and learns when it is trained."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import trueport
from trueport.converters import keras_torch, onnx_keras
from trueport.outcome import Failure, Kind, Stage
from trueport.routes import plan
from trueport.session import Session, Settings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import matrix  # noqa: E402

KEPT = {"residual": 1, "lstm": 1, "encoder": 2, "mixed": 3}


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=300)) as session:
        yield session


@pytest.fixture(scope="module")
def ask(pool, env):
    def get(toolchain, function, **arguments):
        done = pool.call(env(toolchain), "way_back_models", function, arguments, stage=Stage.RUN, paths=[str(HERE)])
        assert not isinstance(done, Failure), done
        return done.value.value

    return get


def converted(session, source, to, route, out, **changes):
    result = trueport.convert(source, to=to, route=route, out=out, repair=False, session=session, **changes)
    assert result.verification is not None, result.attempts
    assert str(result.verification.verdict) == "faithful", result.verification.reason
    return [note for hop in result.chosen.hops for note in hop.notes]


# -- to Keras


@pytest.mark.parametrize("kind", ["residual", "depthwise", "lstm", "gru", "encoder", "mixed"])
def test_pytorch_becomes_keras(session, ask, tmp_path, kind):
    source = matrix.make(session, "pytorch", kind, seed=0)
    out = tmp_path / "model.keras"
    notes = converted(session, source, "keras", "torch-torchscript,onnx-keras", out)
    count = next(int(note.split()[0]) for note in notes if note.endswith("weights can be trained"))
    trained = ask("tensorflow", "train_keras", path=str(out), steps=1)
    assert count == trained["trainable"] > 4


def test_the_keras_file_learns(session, ask, tmp_path):
    source = matrix.make(session, "pytorch", "residual", seed=0)
    out = tmp_path / "model.keras"
    converted(session, source, "keras", "torch-torchscript,onnx-keras", out)
    trained = ask("tensorflow", "train_keras", path=str(out), steps=25)
    assert trained["losses"][-1] < 0.5 * trained["losses"][0], trained["losses"]
    assert trained["moved"] == trained["trainable"]  # every weight takes part
    kinds = set(trained["layers"])
    assert {"Conv2D", "Dense"} <= kinds  # the exporter folded the BatchNorms
    assert not kinds & {"Lambda", "TFOpLambda", "TFSMLayer"}


def test_the_planner_finds_the_ways():
    assert plan("onnx", "keras")[0].name == "onnx-keras"
    assert "torch-dynamo,onnx-keras" in [route.name for route in plan("pytorch", "keras")]
    assert plan("keras", "pytorch")[0].name == "keras-torch"
    assert "tf2onnx-tflite,onnx2torch" in [route.name for route in plan("tflite", "pytorch")]


def onnx_cases():
    """name -> arguments of `way_back_models.save_onnx`: settings at which translations go wrong."""
    return {
        "same-upper": {"op": "Conv", "auto_pad": "SAME_UPPER", "strides": [2, 2]},
        "same-lower": {"op": "Conv", "auto_pad": "SAME_LOWER", "strides": [2, 2]},
        "one-sided-pads": {"op": "Conv", "pads": [0, 2, 1, 0]},
        "dilated": {"op": "Conv", "dilations": [2, 1], "pads": [2, 1, 2, 1]},
        "groups": {"op": "Conv", "group": 2, "pads": [1, 1, 1, 1]},
        "multiplier": {"op": "Conv", "group": 4, "pads": [1, 1, 1, 1]},
        "uneven-strides": {"op": "Conv", "group": 4, "strides": [2, 1]},
        "transposed": {"op": "ConvTranspose", "strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        "transposed-wide": {"op": "ConvTranspose", "strides": [4, 4]},
        "max-pads": {"op": "MaxPool", "kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        "max-ceil": {"op": "MaxPool", "kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
        "average-without-pads": {"op": "AveragePool", "kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        "average-with-pads": {
            "op": "AveragePool", "kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1,
        },
        "average-ceil": {"op": "AveragePool", "kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        "instance-norm": {"op": "InstanceNormalization", "epsilon": 0.1},
        "prelu": {"op": "PRelu"},
        "softmax-channels": {"op": "Softmax", "axis": 1},
        "reduce-channels": {"op": "ReduceMean", "axes": [1], "keepdims": 0},
        "concat-channels": {"op": "Concat", "axis": 1},
        "slice-channels": {"op": "Slice"},
        "depth-to-space": {"op": "DepthToSpace", "blocksize": 2, "mode": "CRD"},
        "space-to-depth": {"op": "SpaceToDepth", "blocksize": 2},
        "resize-nearest": {"op": "Resize", "mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        "resize-linear": {"op": "Resize", "mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        "resize-aligned": {"op": "Resize", "mode": "linear", "coordinate_transformation_mode": "align_corners"},
        "bias-behind": {"op": "Conv", "pads": [1, 1, 1, 1], "bias_behind": 1},
        "hard-sigmoid": {"op": "HardSigmoid", "alpha": 0.3, "beta": 0.4},
        "elu": {"op": "Elu", "alpha": 0.3},
        "flatten": {"op": "Flatten"},
        "gru-before": {"op": "GRU", "linear_before_reset": 0},
        "gru-after": {"op": "GRU", "linear_before_reset": 1, "direction": "bidirectional"},
        "lstm-reverse": {"op": "LSTM", "direction": "reverse"},
        "rnn": {"op": "RNN"},
    }  # fmt: skip


def test_settings_at_which_translations_go_wrong(session, ask, tmp_path, pool, env):
    """Each operator alone: the Keras file must give what ONNX Runtime gives, to float32's rounding."""
    for name, settings in onnx_cases().items():
        source = tmp_path / f"{name}.onnx"
        feeds = ask("onnx", "save_onnx", path=str(source), **settings)
        context = ask("onnx", "context", path=str(source))
        out = tmp_path / f"{name}.keras"
        arguments = {"step": "onnx-keras", "source": str(source), "out": str(out), "options": {}, "context": context}
        done = pool.call(env("tensorflow"), onnx_keras.__name__, "convert", arguments, stage=Stage.CONVERT)
        assert not isinstance(done, Failure), f"{name}: {done}"
        expected = ask("onnx", "run_onnx", path=str(source), feeds=feeds)
        got = ask("tensorflow", "run_keras", path=str(out), feeds=feeds)
        for one, other in zip(expected, got, strict=True):
            np.testing.assert_allclose(other, one, rtol=0, atol=2e-5, err_msg=name)
        assert np.ptp(np.asarray(expected[0])) > 1e-3, f"{name} shows nothing"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"op": "ConvTranspose", "group": 2}, "in groups"),
        ({"op": "MaxPool", "kernel_shape": [2, 2], "dilations": [2, 2]}, "dilation"),
        ({"op": "LSTM", "clip": 1.0}, "clip"),
        ({"op": "LRN", "size": 3}, "no Keras layer for the operator LRN"),
    ],
)
def test_what_no_layer_expresses_is_named(ask, tmp_path, pool, env, settings, words):
    source = tmp_path / "model.onnx"
    ask("onnx", "save_onnx", path=str(source), **settings)
    context = ask("onnx", "context", path=str(source))
    out = str(tmp_path / "m.keras")
    arguments = {"step": "onnx-keras", "source": str(source), "out": out, "options": {}, "context": context}
    failure = pool.call(env("tensorflow"), onnx_keras.__name__, "convert", arguments, stage=Stage.CONVERT)
    assert isinstance(failure, Failure)
    assert failure.kind is Kind.UNSUPPORTED
    assert words in failure.message
    assert not Path(out).exists()


@pytest.mark.corpus
@pytest.mark.slow
@pytest.mark.parametrize("name", ["yunet/yunet_n_320_320.onnx", "angle_net/angle_net.onnx", "dtln/model_1.onnx"])
def test_real_models_become_keras(session, tmp_path, corpus, name):
    converted(session, corpus / "models" / name, "keras", "onnx-keras", tmp_path / "model.keras")


# -- to PyTorch


@pytest.mark.parametrize("kind", ["residual", "lstm", "transformer", "multi"])
def test_keras_becomes_pytorch(session, tmp_path, kind):
    source = matrix.make(session, "keras", kind, seed=0)
    converted(session, source, "pytorch", "keras-torch", tmp_path / "model.pt2")


def test_the_pytorch_program_from_keras_learns(session, ask, tmp_path):
    source = matrix.make(session, "keras", "residual", seed=0)
    out = tmp_path / "model.pt2"
    notes = converted(session, source, "pytorch", "keras-torch", out)
    trained = ask("torch", "train_torch", path=str(out), steps=25)
    assert trained["losses"][-1] < 0.7 * trained["losses"][0], trained["losses"]
    assert f"{trained['trainable']} weights can be trained" in notes
    assert trained["moved"] == trained["trainable"]


def test_a_keras_2_file_is_refused_for_pytorch(ask, tmp_path, pool, env):
    source = tmp_path / "old.h5"
    ask("tf-keras", "save_keras2", path=str(source))
    context = {"signature": {"inputs": [], "outputs": [], "meta": {}}, "example": {}, "calibration": {}, "trust": False}
    arguments = {"step": "keras-torch", "source": str(source), "out": "x", "options": {}, "context": context}
    failure = pool.call(env("keras-torch"), keras_torch.__name__, "convert", arguments, stage=Stage.CONVERT)
    assert isinstance(failure, Failure)
    assert failure.kind is Kind.UNSUPPORTED
    assert "Keras 2" in failure.message


def test_tflite_becomes_pytorch_over_onnx(session, tmp_path):
    keras = matrix.make(session, "keras", "residual", seed=0)
    lite, out = tmp_path / "model.tflite", tmp_path / "model.pt2"
    converted(session, keras, "tflite", "tflite-keras", lite)
    result = trueport.convert(lite, to="pytorch", out=out, repair=False, session=session)
    assert result.verification is not None, [attempt.failure for attempt in result.attempts]
    assert str(result.verification.verdict) == "faithful", result.verification.reason
    assert result.chosen.hops[0].hop.step.name == "tf2onnx-tflite"
