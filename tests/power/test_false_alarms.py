"""Sound models with tempting features over sound routes, with generated inputs: no false alarm."""

from __future__ import annotations

from pathlib import Path

import pytest

from trueport import api
from trueport.compare.types import Verdict
from trueport.outcome import Failure, Stage
from trueport.session import Session, Settings

HERE = str(Path(__file__).resolve().parent)
MAKERS = {"torch": ("torch", ".pt2"), "tf": ("tensorflow", ".keras")}
ROUTES = {"torch": ("torch-torchscript", "torch-dynamo"), "tf": ("tf2onnx-keras", "tflite-keras")}
MODELS = {
    "torch": [
        "softmax-saturated",
        "log-softmax",
        "sigmoid-saturated",
        "deep",
        "deep-relu",
        "tiny",
        "huge",
        "argmax",
        "argmax-ties",
        "topk",
        "topk-ties",
        "sort",
        "where-bool",
        "layer-norm",
        "layer-norm-bare",
        "instance-norm",
        "group-norm",
        "standardise",
        "divide-small",
        "divide",
        "cosine",
        "exp",
        "log",
        "logsumexp",
        "pow",
        "cumsum",
        "bicubic",
        "bilinear",
        "gelu",
        "activations",
        "round",
        "sine-large",
        "lstm",
        "pool",
        "mean-far",
        "variance",
        "float64",
        "two-batch-axes",
        "encoder",
        "encoder-causal",
        "encoder-infinite",
        "decoder-infinite",
    ],
    "tf": [
        "softmax-saturated",
        "embedding",
        "layer-norm",
        "top-k",
        "gru",
        "resize",
        "separable",
        "attention",
        "tiny",
        "exp",
        "cumsum",
    ],
}
REFUSED = {("round", "torch-torchscript")}
"""The exporter says that it does not do these."""
QUICK = {"softmax-saturated", "tiny", "topk-ties", "standardise", "divide", "encoder-infinite", "decoder-infinite"}
ROWS = [
    pytest.param(
        maker,
        name,
        route,
        id=f"{maker}-{name}-{route}",
        marks=[] if maker == "torch" and name in QUICK and route == "torch-torchscript" else pytest.mark.slow,
    )
    for maker, names in MODELS.items()
    for name in names
    for route in ROUTES[maker]
    if (name, route) not in REFUSED
]


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=300)) as session:
        yield session


def convert(session, folder, maker, name, route):
    """Build a model and convert it with generated inputs."""
    toolchain, suffix = MAKERS[maker]
    source = folder / f"{name}{suffix}"
    python = session.environment(toolchain).value.python
    arguments = {"maker": maker, "name": name, "out": str(source)}
    made = session.pool.call(python, "sane_models", "build", arguments, stage=Stage.LOAD, paths=[HERE])
    assert not isinstance(made, Failure), f"{made.message}\n{made.log[-2000:]}"
    to = "tflite" if route.startswith("tflite") else "onnx"
    return api.convert(source, to=to, out=folder / f"out.{to}", route=route, session=session, repair=False)


@pytest.mark.parametrize(("maker", "name", "route"), ROWS)
def test_sound_conversion(session, tmp_path, maker, name, route):
    done = convert(session, tmp_path, maker, name, route)
    assert done.attempts[0].failure is None, done.attempts[0].failure
    assert done.verification.verdict is Verdict.FAITHFUL, done.verification.reason


def test_a_signal_below_the_rounding_of_its_offset_is_not_called_a_fault(session, tmp_path):
    """1000 + 1e-3 tanh: float32 keeps some ten steps of it, so nothing is proved, and no fault is alleged."""
    done = convert(session, tmp_path, "torch", "offset", "torch-torchscript")
    assert done.verification.verdict is Verdict.INCOMPARABLE, done.verification.reason


@pytest.mark.slow
def test_numbers_that_kernels_may_flush_to_zero_prove_nothing(session, tmp_path):
    """1e-39 is no normal float32: some kernels keep it, others write 0, and neither is a fault."""
    done = convert(session, tmp_path, "torch", "subnormal", "torch-torchscript")
    assert done.verification.verdict is Verdict.INCOMPARABLE, done.verification.reason
