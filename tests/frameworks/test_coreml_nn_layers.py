"""Every layer of Core ML's neural networks against NumPy: the cases stand in `coreml_nn_cases` and its two companions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from coreml_nn_cases import plane_cases, window_cases
from coreml_nn_more_cases import classic_cases, elementwise_cases, index_cases
from coreml_nn_shape_cases import lstm_cases, recurrent_cases, shape_cases

from trueport.outcome import Ok, Stage

HERE = str(Path(__file__).parent)
GROUPS = (
    window_cases,
    plane_cases,
    classic_cases,
    elementwise_cases,
    index_cases,
    shape_cases,
    lstm_cases,
    recurrent_cases,
)
TOLERANCE = 1e-11
"""Relative to the largest element. Both sides work in double precision on numbers that float32 holds exactly; the sums of
the largest case have some hundred terms, each with a rounding error of 1e-16."""
CONTROL = {"branch", "loop", "loopBreak", "loopContinue"}
"""Tested in test_coreml_nn.py."""


def numbered():
    """(id, case) of every case."""
    seen: Counter[str] = Counter()
    for group in GROUPS:
        for case in group():
            seen[case[0]] += 1
            yield f"{case[0]}-{seen[case[0]]}", case


CASES = dict(numbered())


@pytest.fixture(scope="module")
def call(pool, env):
    """call(function, **arguments) -> Outcome of a function of `coreml_nn_models` in a worker."""
    python = env("coreml-torch")

    def run(function, **arguments):
        return pool.call(python, "coreml_nn_models", function, arguments, stage=Stage.RUN, paths=[HERE])

    return run


@pytest.mark.parametrize("name", CASES)
def test_layer_gives_what_the_format_says(call, name):
    kind, fields, arrays, expected = CASES[name]
    wanted = expected if isinstance(expected, list) else [expected]
    inputs = {f"x{index}": array for index, array in enumerate(arrays)}
    outputs = [f"y{index}" for index in range(len(wanted))]
    layer = {"name": "layer", "input": list(inputs), "output": outputs, kind: fields}
    outcome = call("run", layers=[layer], inputs=inputs, outputs=outputs, precision="float64")
    assert isinstance(outcome, Ok), outcome
    for output, right in zip(outputs, wanted, strict=True):
        found = outcome.value.value[output]
        assert found.shape == right.shape
        scale = max(1.0, float(np.abs(right).max(initial=0.0)))
        np.testing.assert_allclose(found, right, rtol=0, atol=TOLERANCE * scale)


def test_every_layer_of_the_format_is_run_or_refused_by_name_and_every_one_that_is_run_is_tested(call):
    found = call("coverage").value.value
    tested = {name.rsplit("-", 1)[0] for name in CASES}
    known, refused = set(found["all"]), set(found["refused"])
    assert known <= set(found["kernels"])
    assert known - refused == tested | CONTROL
    assert refused < known, "a refusal names a layer that there is"
    assert len(known - refused) / len(known) > 0.9
