"""PyTorch modules through coremltools' own converter to the older Core ML format: the network gives what the module gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.outcome import Ok, Stage

HERE = str(Path(__file__).parent)
FLOAT32 = 2e-6
"""Of the largest element. Both sides compute in float32 with PyTorch's kernels, in another order where layers were fused;
the largest difference seen is 4e-7."""
MODULES = {
    "residual": {"convolution", "batchnorm", "pooling", "clip", "softmaxND", "innerProduct"},
    "lstm": {"uniDirectionalLSTM"},
    "lstm-both-ways": {"biDirectionalLSTM", "concat", "splitND"},
    "gru": {"loop", "copy"},
    "rnn": {"simpleRecurrent"},
    "attention": {"batchedMatmul", "softmaxND", "gelu", "mvn", "scale"},
    "tensors": {"topK", "whereBroadcastable", "greaterThan", "cumSum", "reverse"},
    "average": {"pooling", "activation", "unary"},
    "average-counted": {"pooling", "activation", "unary"},
    "enlarge": {"convolution", "upsample"},
    "aligned": {"upsample"},
    "plane": {"padding", "reorganizeData", "activation"},
    "volume": {"convolution3d", "pooling3d"},
    "embedding": {"embeddingND"},
}
"""Module -> layers that its conversion has to contain, so that the test compares what it means to compare."""


@pytest.fixture(scope="module")
def convert(pool, env):
    """convert(name, **options) -> {"pairs", "layers", "weights"} of `coreml_nn_converted`."""
    python = env("coreml-torch")

    def run(name, **options):
        arguments = {"name": name, **options}
        outcome = pool.call(python, "coreml_nn_converted", "convert", arguments, stage=Stage.CONVERT, paths=[HERE])
        assert isinstance(outcome, Ok), outcome
        return outcome.value.value

    return run


@pytest.mark.parametrize("name", MODULES)
def test_converted_network_computes_what_the_module_computes(convert, name):
    found = convert(name)
    assert set(found["layers"]) >= MODULES[name]
    for right, value in found["pairs"]:
        assert value.shape == right.shape
        scale = max(1.0, float(np.abs(right).max()))
        np.testing.assert_allclose(value, right, rtol=0, atol=FLOAT32 * scale)


@pytest.mark.parametrize(
    ("bits", "mode", "bound"),
    [
        (16, "linear", 2e-3),
        (8, "linear", 3e-2),
        (8, "linear_symmetric", 3e-2),
        (6, "linear_lut", 0.2),
        (4, "linear", 0.3),
    ],
)
def test_compressed_weights_are_read_as_the_grid_that_they_lie_on(convert, bits, mode, bound):
    """Rounding to so many bits moves the result, and not further than weights rounded to them can."""
    plain = convert("residual")["pairs"][0][0]
    found = convert("residual", bits=bits, mode=mode)
    right, value = found["pairs"][0]
    np.testing.assert_array_equal(right, plain)
    moved = float(np.abs(value - right).max())
    assert 0 < moved < bound
    for name, theirs, ours in found["unpacked"]:
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=1e-6 * max(1.0, float(np.abs(theirs).max())), err_msg=name
        )
    assert len(found["unpacked"]) == (0 if bits == 16 else 3)
    assert found["weights"].get("float16", 0) > 0 if bits == 16 else "float16" not in found["weights"]
