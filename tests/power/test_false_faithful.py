"""Twins that are wrong in one way, through the real pipeline with generated inputs: none may be called faithful."""

from __future__ import annotations

from pathlib import Path

import pytest

from trueport import api
from trueport.outcome import Failure, Stage
from trueport.session import Session, Settings

HERE = str(Path(__file__).resolve().parent)
F, D, I, Y = "faithful", "deviates", "incomparable", "flaky"  # noqa: E741

ROWS = [
    ("same", F, ""),
    ("output-dropped", D, "'z'"),
    ("output-added", D, "'z'"),
    ("one-renamed", I, "without a partner"),
    ("all-renamed", F, ""),
    ("swapped-names-kept", D, "another order"),
    ("swapped-renamed", D, "another order"),
    ("reordered-names-kept", F, ""),
    ("cast-int", D, "dtype kind"),
    ("cast-bool", D, "dtype kind"),
    ("cast-half", D, "float16 was not declared"),
    ("cast-double", F, ""),
    ("half-inside", D, ""),
    ("batch-axis-lost", D, "shape [1, 10] in the source, [10]"),
    ("constant", D, "same for every input"),
    ("nan", D, "NaN or infinite"),
    ("nan-at-zero", D, "probe-zeros"),
    ("batch-fixed", F, ""),
    ("right-for-one-sample", D, "batch-3"),
    ("first-row-everywhere", D, "batch-3"),
    ("right-for-positive", D, "probe-negative"),
    ("right-below-100", D, "probe-large"),
    ("one-of-many", D, ""),
    ("one-of-many-slightly", D, ""),
    ("one-class", D, ""),
    ("one-class-slightly", D, ""),
    ("small-bias", D, ""),
    ("small-scale", D, ""),
    ("inputs-swapped-renamed", D, ""),
    ("inputs-renamed", F, ""),
    ("inputs-swapped-names-kept", D, ""),
    ("second-input-ignored", D, ""),
    ("layout-in-and-out", D, ""),
    ("layout-in", D, ""),
    ("layout-out", D, ""),
    ("ids-large", D, "large-integers"),
    ("ids-negative", D, ""),
    ("ids-table", D, ""),
    ("no-input-same", F, ""),
    ("no-input-other", D, ""),
    ("empty", I, "no element"),
    ("empty-beside-good", I, "no element"),
    ("scalar-same", F, ""),
    ("scalar-scaled", D, ""),
    ("scalar-with-axis", D, "shape []"),
    ("random-source", Y, "run twice"),
    ("random-target", Y, "of the target, run twice"),
    ("random-both", Y, "run twice"),
    ("threshold-same", F, ""),
    ("threshold-moved", D, ""),
    ("threshold-as-number", D, "dtype kind"),
    ("epsilon", D, ""),
    ("epsilon-slightly", D, ""),
    ("argmax-same", F, ""),
    ("argmax-other-class", D, ""),
]
"""Pair of `twin_models`, verdict, words of the reason."""


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=300)) as session:
        yield session


@pytest.fixture(scope="module")
def folder(tmp_path_factory, session):
    """All pairs, built in one call."""
    folder = tmp_path_factory.mktemp("twins")
    python = session.environment("onnx").value.python
    made = session.pool.call(
        python, "twin_models", "build_all", {"folder": str(folder)}, stage=Stage.LOAD, paths=[HERE]
    )
    assert not isinstance(made, Failure), f"{made.message}\n{made.log[-2000:]}"
    assert sorted(name for name, _, _ in ROWS) == made.value.value, "every pair has its row"
    return folder


@pytest.mark.parametrize(("name", "verdict", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_twin(session, folder, name, verdict, words):
    result = api.verify(folder / f"{name}.source.onnx", folder / f"{name}.twin.onnx", session=session)
    assert result.comparison.to_json()["verdict"] == verdict, result.reason
    assert words in result.reason


def test_a_twin_without_the_state_of_its_source(session, tmp_path):
    """Both agree on the first call from the stored state, which is all that a run can show."""
    python = session.environment("tensorflow").value.python
    made = session.pool.call(
        python, "twin_models", "build_stateful", {"folder": str(tmp_path)}, stage=Stage.LOAD, paths=[HERE]
    )
    assert not isinstance(made, Failure), f"{made.message}\n{made.log[-2000:]}"
    counting, plain = tmp_path / "counting.tflite", tmp_path / "plain.tflite"
    for source, target, verdict in (
        (counting, plain, I),
        (plain, counting, I),
        (counting, counting, F),
        (plain, plain, F),
    ):
        result = api.verify(source, target, session=session)
        assert result.comparison.to_json()["verdict"] == verdict, result.reason
        told = " ".join((result.reason, *result.comparison.notes))
        assert ("a state between calls" in told) == (counting in (source, target))
