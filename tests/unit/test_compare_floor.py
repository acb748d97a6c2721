"""The noise floor: what sets it, what may not widen it, and that each constant in it matters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from compare_cases import copy, noisy

from trueport.compare import floor as noise
from trueport.compare.metrics import spread
from trueport.compare.types import FloorRun
from trueport.outcome import Failure, Kind, Stage

X = np.random.default_rng(2).standard_normal((8, 2, 50)).astype(np.float32)
SPREAD = spread(X, batch=True)
LEAST = noise.minimum(SPREAD, X.dtype, X.dtype)
LIMIT = noise.gross(SPREAD, X.dtype)


def measured(**ways):
    return noise.measure(X, ways, SPREAD, LEAST, LIMIT)


def test_the_floor_is_the_largest_of_the_ways():
    found = measured(a=noisy(X, 1e-6, 1), b=noisy(X, 5e-6, 2), c=noisy(X, 2e-6, 3))
    assert found.rms == pytest.approx(5e-6 * SPREAD.dev, rel=0.1)
    assert found.max == pytest.approx(np.abs(noisy(X, 5e-6, 2).astype(float) - X).max())
    assert found.measured
    assert found.ways == ("a", "b", "c")
    assert not found.notes


def test_ways_that_agree_bit_for_bit_leave_the_rounding_of_the_result():
    found = measured(a=X.copy(), b=X.copy())
    assert found.rms == pytest.approx(noise.MINIMUM_ROUNDINGS * 2**-24 * SPREAD.rms)
    assert found.max == pytest.approx(noise.MINIMUM_ROUNDINGS * 2**-24 * SPREAD.peak)
    assert found.measured


@pytest.mark.parametrize(
    ("source", "target", "unit"),
    [
        (np.float32, np.float32, 4 * 2**-24),
        (np.float16, np.float16, 4 * 2**-11),
        (np.float16, np.float32, 4 * 2**-11),
        (np.float32, np.float64, 4 * 2**-24),
        (np.float64, np.float64, 4 * 2**-53),
        (np.float64, np.float32, 32 * 2**-24),
        (np.float32, np.float16, 32 * 2**-11),
        (np.complex64, np.complex64, 4 * 2**-24),
    ],
)
def test_the_minimum_is_that_of_the_narrower_type(source, target, unit):
    assert noise.minimum(SPREAD, np.dtype(source), np.dtype(target)).rms == pytest.approx(unit * SPREAD.rms, rel=1e-3)


def test_flushed_subnormals_are_noise_in_float32_and_not_in_float16():
    zero = spread(np.zeros((2, 3), np.float32), batch=False)
    assert noise.minimum(zero, np.dtype(np.float32), np.dtype(np.float32)).max >= 1.1e-38
    assert noise.minimum(zero, np.dtype(np.float16), np.dtype(np.float16)).max < 1e-7


def test_no_way_at_all_is_told():
    found = measured()
    assert not found.measured
    assert "rounding alone" in " ".join(found.notes)
    assert found.rms == LEAST.rms


def test_one_gross_way_is_broken_and_told():
    found = measured(a=noisy(X, 1e-6, 1), b=noisy(X, 1.0, 2))
    assert found.rms < 2e-6
    assert "'b'" in found.notes[0]
    assert not found.unstable


def test_a_gross_way_alone_is_no_measurement():
    found = measured(a=noisy(X, 0.5, 1))
    assert found.rms == LEAST.rms
    assert not found.measured


def test_a_way_far_above_two_others_is_broken_though_not_gross():
    ways = {"a": noisy(X, 1e-6, 1), "b": noisy(X, 2e-6, 2), "c": noisy(X, 2e-6 * noise.OUTLIER * 2, 3)}
    assert measured(**ways).rms < 3e-6
    ways["c"] = noisy(X, 1e-6 * noise.OUTLIER / 2, 3)
    assert measured(**ways).rms > 1e-5


def test_a_way_that_moves_where_the_others_are_bit_equal_is_kept():
    """Kernels often agree bit for bit; the one way that shows the conditioning must not be called broken."""
    assert measured(a=X.copy(), b=X.copy(), c=noisy(X, 1e-4, 3)).rms > 5e-5


def test_gross_ways_that_agree_make_the_source_unstable():
    found = measured(a=noisy(X, 0.05, 1), b=noisy(X, 0.04, 2))
    assert found.unstable
    assert found.rms > 0.03


def test_a_simulated_precision_is_exempt_from_the_rules_on_broken_ways():
    found = measured(a=noisy(X, 1e-6, 1), **{"simulated int8": noisy(X, 0.2, 2)})
    assert found.simulated
    assert found.rms > 0.1
    assert not found.unstable


def test_ways_of_other_shape_or_dtype_are_left_out_and_told():
    found = measured(a=noisy(X, 1e-6, 1), b=X[:, :1], c=X.astype(np.int64), d=X.astype(np.float64))
    assert set(found.ways) == {"a", "d"}
    assert len(found.notes) == 2


def test_a_way_may_cover_only_the_first_runs():
    assert measured(a=noisy(X, 3e-6, 1)[:2]).rms == pytest.approx(3e-6, rel=0.3)
    assert noise.measure_exact(np.arange(10), {"a": np.array([0, 1, 2, 9])}).share == 0.25


def test_non_finite_ways():
    other = noisy(X, 1e-6, 1)
    other[0, 0, 0] = np.nan
    found = measured(a=other)
    assert found.nonfinite
    assert math.isfinite(found.rms)
    assert measured(a=X * np.nan).rms == LEAST.rms


def test_other_data_raises_a_floor_that_a_small_case_measured_too_low_but_never_scales_up():
    big, small, huge = (spread(X * np.float32(factor), batch=True) for factor in (1, 0.5, 1e6))
    floors = {
        "data": measured(a=noisy(X, 1e-5, 1)),
        "batch": LEAST,
        "huge": noise.minimum(huge, X.dtype, X.dtype),
    }
    pooled = noise.pool(floors, {"data": big, "batch": small, "huge": huge}, ["data"])
    assert pooled["batch"].rms == pytest.approx(floors["data"].rms / 2)
    assert pooled["batch"].max == pytest.approx(floors["data"].max / 2)
    assert pooled["huge"].rms == floors["huge"].rms
    assert pooled["data"] == floors["data"]


def test_what_each_way_gives_and_what_is_told_of_those_that_fail():
    runs = {"data": {"y": X}}
    floors = [
        FloorRun(how="float64", runs=copy(runs)),
        FloorRun(how="threads", runs={"data": Failure(stage=Stage.RUN, kind=Kind.RAISED, message="no such kernel")}),
        FloorRun(how="other", runs={"data": {"z": X}}),
        FloorRun(how="elsewhere", runs={}),
        FloorRun(how="simulated int8", runs=copy(runs)),
    ]
    values, notes = noise.ways_for(floors, "data", "y", None, declared="float32")
    assert list(values) == ["float64"]
    assert [word in " ".join(notes) for word in ("no such kernel", "does not give output 'y'", "simulated int8")] == [
        True
    ] * 3
    assert list(noise.ways_for(floors, "data", "y", None, declared="int8")[0]) == ["float64", "simulated int8"]
    assert values["float64"].shape == X.shape
    turned, _ = noise.ways_for(floors, "data", "y", (1, 0), declared="float32")
    assert turned["float64"].shape == (8, 50, 2)


def test_ways_with_a_second_definite_answer_are_told_from_noise():
    """A wrong fusion in the default kernels: those without it agree with one another, the rest with the default."""
    other = noisy(X, 0.5, 9)
    near = {"jitter": noisy(X, 1e-6, 1), "thread": X.copy()}
    assert set(measured(**near, plain=other, double=noisy(other, 1e-6, 2)).split) == {"plain", "double"}
    assert not measured(**near, plain=other, double=noisy(X, 0.5, 3)).split, "two that disagree are no answer"
    assert not measured(**near, plain=other).split, "one alone is broken itself"
    assert not measured(jitter=noisy(X, 0.4, 1), thread=X.copy(), plain=other, double=other).split, "noise moves it too"
    assert not measured(thread=X.copy(), plain=other, double=other).split


def test_kernels_of_an_integer_model_may_differ_by_steps_of_its_grid():
    """7 % of the signal is gross for a float32 model and ordinary between two kernel sets of an int8 one."""
    from trueport.compare.floor import gross
    from trueport.compare.metrics import spread

    size = spread(np.random.default_rng(0).normal(size=(8, 1, 10)).astype(np.float32), batch=True)
    step = 0.07 * size.scale
    assert gross(size, np.dtype(np.float32)) < step < gross(size, np.dtype(np.float32), integer=True)
    assert gross(size, np.dtype(np.float32), integer=True) < size.scale
