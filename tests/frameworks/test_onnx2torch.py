"""onnx2torch: the `.pt2` that it leaves must load in the torch toolchain and give the ONNX model's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_torch_onnx import SEED, STEPS, Chain, done, first, renamed

from trueport.converters import onnx2torch
from trueport.outcome import Failure, Kind

(STEP,) = onnx2torch.STEPS


@pytest.fixture(scope="module")
def chain(pool, env, tmp_path_factory):
    return Chain(pool, env, tmp_path_factory.mktemp("onnx2torch"))


def onnx_of(chain, kind, opset="17", step="torch-torchscript"):
    feeds = chain.zoo("inputs", kind=kind, seed=SEED, batch=2, runs=3)
    path, _ = done(
        chain.convert(STEPS[step], "torch_onnx", chain.model(kind)["pytorch"], first(feeds), ".onnx", opset=opset)
    )
    return path, feeds


def test_the_step_declares_its_opset():
    assert STEP.max_opset == 17
    assert (STEP.source_format, STEP.target_format) == ("onnx", "pytorch")


@pytest.mark.parametrize("kind", ["residual", "mixed"])
def test_there_and_back_gives_the_same_numbers(chain, kind):
    path, feeds = onnx_of(chain, kind, opset="13")
    back, reply = done(chain.convert(STEP, "onnx2torch", path, first(feeds), ".pt2"))
    expected = done(chain.run("onnx", path, feeds))
    got = done(chain.run("pytorch", back, renamed(feeds, reply["names"])))
    assert list(got) == [reply["names"].get(name, name) for name in expected]
    for name, value in expected.items():
        # With BatchNorm left in training mode this would be off by whole units.
        np.testing.assert_allclose(got[reply["names"].get(name, name)], value, rtol=0, atol=2e-5)


def test_the_batch_stays_open_and_the_version_fits(chain):
    path, feeds = onnx_of(chain, "residual", opset="13")
    back, reply = done(chain.convert(STEP, "onnx2torch", path, first(feeds), ".pt2"))
    signature = done(chain.call("torch", "trueport.frameworks.torch", "signature", path=back, trust=False))
    assert isinstance(signature["inputs"][0]["shape"][0], str), reply["notes"]
    more = chain.zoo("inputs", kind="residual", seed=SEED, batch=5, runs=1)
    got = done(chain.run("pytorch", back, renamed(more, reply["names"])))
    np.testing.assert_allclose(
        next(iter(got.values())), next(iter(done(chain.run("onnx", path, more)).values())), rtol=0, atol=2e-5
    )


def test_a_slice_that_cannot_be_exported_is_unsupported(chain):
    path, feeds = onnx_of(chain, "depthwise", opset="13")
    failure = chain.convert(STEP, "onnx2torch", path, first(feeds), ".pt2")
    assert isinstance(failure, Failure)
    assert failure.kind is Kind.UNSUPPORTED
    assert "cannot be exported" in failure.message


def test_an_operator_version_that_it_lacks_is_unsupported(chain):
    path, feeds = onnx_of(chain, "encoder", opset="20", step="torch-dynamo")
    failure = chain.convert(STEP, "onnx2torch", path, first(feeds), ".pt2")
    assert isinstance(failure, Failure)
    assert failure.kind is Kind.UNSUPPORTED
    assert "onnx2torch" in failure.message


def test_real_digit_classifier(chain, corpus):
    path = str(next((corpus / "models" / "mnist_cnn").rglob("*.onnx")))
    signature = done(chain.call("onnx", "trueport.frameworks.onnx", "signature", path=path, trust=False))
    (spec,) = signature["inputs"]
    rng = np.random.default_rng(0)
    shape = [size if isinstance(size, int) else 1 for size in spec["shape"]]
    feeds = {spec["name"]: rng.uniform(0, 255, size=(3, *shape)).astype(np.float32)}
    outcome = chain.convert(STEP, "onnx2torch", path, first(feeds), ".pt2")
    if isinstance(outcome, Failure):
        assert outcome.kind is Kind.UNSUPPORTED, outcome
        pytest.skip(f"onnx2torch does not take this model: {outcome.message}")
    back, reply = outcome
    got = done(chain.run("pytorch", back, renamed(feeds, reply["names"])))
    expected = next(iter(done(chain.run("onnx", path, feeds)).values()))
    np.testing.assert_allclose(next(iter(got.values())), expected, rtol=1e-4, atol=1e-3)  # logits of some thousands


def test_the_file_is_whole(chain):
    path, feeds = onnx_of(chain, "residual", opset="13")
    back, _ = done(chain.convert(STEP, "onnx2torch", path, first(feeds), ".pt2"))
    assert Path(back).stat().st_size > 10_000
