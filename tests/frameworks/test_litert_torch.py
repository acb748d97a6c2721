"""litert-torch: the TFLite model has the source's names and numbers, fixed sizes, and the precision that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_torch_onnx import SEED, Chain, done, first

from trueport.converters import litert_torch

(STEP,) = litert_torch.STEPS


@pytest.fixture(scope="module")
def chain(pool, env, tmp_path_factory):
    return Chain(pool, env, tmp_path_factory.mktemp("litert_torch"))


def converted(chain, kind, batch=1, **options):
    feeds = chain.zoo("inputs", kind=kind, seed=SEED, batch=batch, runs=4)
    path, reply = done(
        chain.convert(
            STEP, "litert_torch", chain.model(kind)["pytorch"], first(feeds), ".tflite", calibration=feeds, **options
        )
    )
    return path, reply, feeds


def signature_of(chain, path):
    return done(chain.call("litert", "trueport.frameworks.tflite", "signature", path=path, trust=False))


def narrowed(feeds, signature):
    return {spec["name"]: np.asarray(feeds[spec["name"]]).astype(spec["dtype"]) for spec in signature["inputs"]}


@pytest.mark.parametrize(
    "kind",
    ["residual", "encoder", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("depthwise", "gru", "mixed"))],
)
def test_the_converted_model_is_the_source(chain, kind):
    path, _, feeds = converted(chain, kind)
    signature = signature_of(chain, path)
    source = chain.run("pytorch", chain.model(kind)["pytorch"], feeds)
    assert {spec["name"] for spec in signature["inputs"]} == set(feeds)
    assert {spec["name"] for spec in signature["outputs"]} == set(source)
    target = done(chain.run("tflite", path, narrowed(feeds, signature)))
    for name, value in source.items():
        np.testing.assert_allclose(
            target[name], value, rtol=0, atol=5e-5
        )  # clean float32 noise, LayerNorm re-associated


def test_the_batch_is_baked_as_the_step_says(chain):
    assert STEP.dynamic_shapes is False
    path, _, _ = converted(chain, "residual", batch=2)
    (spec,) = signature_of(chain, path)["inputs"]
    assert spec["shape"] == [2, 3, 16, 16]


@pytest.mark.parametrize(
    "precision",
    [pytest.param("float16", marks=pytest.mark.slow), pytest.param("int8-dynamic", marks=pytest.mark.slow), "int8"],
)
def test_quantised_models_are_smaller_and_near(chain, precision):
    whole, _, feeds = converted(chain, "residual")
    path, _, _ = converted(chain, "residual", precision=precision)
    assert Path(path).stat().st_size < 0.85 * Path(whole).stat().st_size
    assert not list(chain.folder.glob("*.float32.tflite"))
    source = chain.run("pytorch", chain.model("residual")["pytorch"], feeds)["output_0"]
    got = done(chain.run("tflite", path, feeds))["output_0"]
    error = np.sqrt(np.mean((got - source) ** 2)) / np.std(source)
    assert error > 1e-6  # it is quantised
    assert error < {"float16": 6e-3, "int8-dynamic": 0.2, "int8": 0.45}[precision]  # the declared-precision bounds


def test_nearest_interpolation_shows_the_tools_rule(chain):
    x = np.random.default_rng(0).normal(size=(1, 1, 1, 7, 8)).astype(np.float32)
    source = chain.model("nearest", odd=True)["pytorch"]
    path, _ = done(chain.convert(STEP, "litert_torch", source, {"x": x[0]}, ".tflite"))
    (expected,) = chain.run("pytorch", source, {"x": x}).values()
    (got,) = done(chain.run("tflite", path, {"x": x})).values()
    assert np.abs(np.asarray(got) - np.asarray(expected)).max() > 0.1  # a live bug: it must reach us
