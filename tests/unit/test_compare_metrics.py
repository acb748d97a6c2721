"""The maths of comparing two values, against the plain formulas on whole arrays."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trueport.compare import metrics, values
from trueport.compare.metrics import Difference, difference, spread
from trueport.compare.values import blocks, place

RNG = np.random.default_rng(5)
A = RNG.standard_normal((4, 3, 7, 5)).astype(np.float32)
B = (A + 1e-3 * RNG.standard_normal(A.shape)).astype(np.float32)


def test_measures_equal_their_definitions():
    found = difference(A, B)
    error = A.astype(np.float64) - B
    assert found.count == found.finite == A.size
    assert found.rms == pytest.approx(np.sqrt((error**2).mean()))
    assert found.max_abs == np.abs(error).max()
    assert found.max_rel == pytest.approx((np.abs(error) / np.abs(A)).max())
    a, b = A.ravel().astype(np.float64), B.ravel().astype(np.float64)
    assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.psnr == pytest.approx(20 * np.log10((a.max() - a.min()) / found.rms))
    assert found.worst == np.unravel_index(np.abs(error).argmax(), A.shape)


@pytest.mark.parametrize("limit", [1, 2, 7, 64, 10**6])
def test_blocks_of_any_size_give_the_same_totals(monkeypatch, limit):
    whole = difference(A, B)
    monkeypatch.setattr(metrics, "blocks", lambda shape, _=None: blocks(shape, limit))
    cut = difference(A, B)
    assert cut.rms == pytest.approx(whole.rms, rel=1e-12)
    assert (cut.max_abs, cut.worst, cut.mismatches, cut.ulp_p99) == (
        whole.max_abs,
        whole.worst,
        whole.mismatches,
        whole.ulp_p99,
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5), limit=st.integers(1, 40))
def test_blocks_cover_every_element_once(shape, limit):
    seen = np.zeros(shape, int)
    for block in blocks(shape, limit):
        seen[block] += 1
        assert np.asarray(seen[block]).size <= max(limit, 1)
        numbers = np.arange(seen.size).reshape(shape)
        cut = np.asarray(numbers[block])
        assert numbers[place(block, shape, cut.size - 1)] == cut.reshape(-1)[-1]
    assert (seen == 1).all()


def test_views_in_any_layout_are_compared_element_by_element():
    assert difference(A.transpose(0, 3, 1, 2), B.transpose(0, 3, 1, 2)).rms == pytest.approx(difference(A, B).rms)
    assert difference(np.asfortranarray(A), A).mismatches == 0


def test_shapes_are_never_broadcast():
    with pytest.raises(ValueError, match="shapes differ"):
        difference(A, A[:, :1])


@pytest.mark.parametrize(
    ("left", "right", "ulps"),
    [
        (np.float32(1), np.nextafter(np.float32(1), np.float32(2)), 1),
        (np.float32(-0.0), np.float32(0.0), 0),
        (np.nextafter(np.float32(0), np.float32(-1)), np.nextafter(np.float32(0), np.float32(1)), 2),
        (np.float64(1), np.float32(1) + np.float32(2**-23), 1),
        (np.float16(1), np.float16(1 + 5 * 2**-10), 5),
        (np.float64(1), np.float64(1 + 3 * 2**-52), 3),
        (np.float32(1e-45), np.float32(0), 1),
    ],
)
def test_units_in_the_last_place_of_the_narrower_type(left, right, ulps):
    assert difference(np.array([left]), np.array([right])).ulp_p99 == ulps


def test_the_percentile_of_large_distances_is_right_within_a_bin():
    b = (A.astype(np.float64) * (1 + 1e-3)).astype(np.float32)
    steps = np.abs(A.view(np.int32).astype(np.int64) - b.view(np.int32))
    assert difference(A, b).ulp_p99 == pytest.approx(np.percentile(steps, 99), rel=0.06)
    assert math.isnan(difference(np.arange(3), np.arange(3)).ulp_p99)


def test_non_finite_elements_are_counted_by_kind_and_enter_no_sum():
    nan, inf = np.nan, np.inf
    a = np.array([[1.0, nan, inf, -inf, nan, 2.0, 3.0, inf]], np.float32)
    b = np.array([[1.0, nan, inf, inf, 1.00, nan, 3.5, nan]], np.float32)
    found = difference(a, b)
    assert (found.source_nonfinite, found.target_nonfinite, found.source_nan) == (5, 5, 2)
    assert (found.new_nonfinite, found.lost_nonfinite, found.other_nonfinite) == (1, 1, 2)
    assert found.nonfinite_at == (0, 3)
    assert found.finite == 2
    assert found.max_abs == 0.5
    assert found.mismatches == 5


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e200, 1e308])
def test_extreme_magnitudes_neither_overflow_nor_vanish(size):
    a = np.array([1.0, 0.5, 0.25]) * size
    found = difference(a, np.array([1.0, 0.5, 0.0]) * size)
    assert found.rms == pytest.approx(0.25 * size / math.sqrt(3), rel=0.01)
    assert spread(a, batch=False).rms == pytest.approx(size * math.sqrt(1.3125 / 3), rel=0.01)
    assert spread(a, batch=False).dev == pytest.approx(size * np.std([1, 0.5, 0.25]), rel=0.01)


def test_integers_beyond_two_to_the_53_and_mixed_signs_are_exact():
    a = np.array([2**60, -1], np.int64)
    assert difference(a, a + np.array([1, 0])).mismatches == 1
    assert difference(np.array([-1], np.int64), np.array([2**64 - 1], np.uint64)).mismatches == 1
    assert difference(np.array([7], np.int64), np.array([7], np.uint64)).mismatches == 0


def test_text_and_complex():
    found = difference(np.array([["a", "bc"]]), np.array([["a", "bd"]]))
    assert (found.mismatches, found.count, found.worst) == (1, 2, (0, 1))
    found = difference(np.array([1 + 1j, 2.0]), np.array([1 - 1j, 2.0]))
    assert found.max_abs == 2.0
    assert found.worst == (0,)


def test_totals_add_up():
    total = difference(A[:2], B[:2]) + difference(A[2:], B[2:])
    whole = difference(A, B)
    assert total.rms == pytest.approx(whole.rms)
    assert total.max_abs == whole.max_abs
    assert total.ulp_p99 == whole.ulp_p99
    assert (Difference() + whole).worst == whole.worst
    assert math.isnan(Difference().rms)


def test_ragged_runs_keep_the_number_of_the_run():
    a = [np.zeros((2, 3)), np.zeros((1, 3)), np.zeros((4, 3))]
    b = [item.copy() for item in a]
    b[2][3, 1] = 5
    found = difference(a, b)
    assert found.worst == (2, 3, 1)
    assert found.count == 21


def test_spread_counts_batch_rows_as_samples_only_when_told():
    rows = np.array([[1.0, 2.0], [1.0, 2.0]])[:, :, np.newaxis]
    assert spread(rows, batch=False).constant
    assert spread(rows, batch=False).dev == 0.0
    both = spread(rows, batch=True)
    assert not both.constant
    assert both.dev == pytest.approx(0.5)
    assert both.samples == 4


def test_the_input_dependent_part_ignores_what_all_runs_share():
    base = 100 * RNG.standard_normal((1, 50))
    moving = RNG.standard_normal((40, 50))
    found = spread(base + moving, batch=False)
    assert found.dev == pytest.approx(np.std(moving, axis=0, ddof=0).mean(), rel=0.05)
    assert found.rms > 50


def test_big_memory_mapped_arrays_are_read_in_blocks(tmp_path):
    shape = (4, 2, 1_000_000)
    for name in ("a", "b"):
        made = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.float32, shape)
        made[:] = np.arange(shape[2], dtype=np.float32)
        made[3, 1, 999_999] += name == "b"
    a, b = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("a", "b"))
    tracemalloc.start()
    found, varied = difference(a, b), spread(b, batch=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.worst == (3, 1, 999_999)
    assert found.mismatches == 1
    assert not varied.constant
    assert peak < 40 * 2**20 < 2 * a.nbytes


def test_releasing_pages_loses_nothing(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(values.RELEASED, dtype=np.uint8))
    read = np.load(tmp_path / "a.npy", mmap_mode="r")
    edited = np.load(tmp_path / "a.npy", mmap_mode="c")
    edited[5] = 99
    values.release(read, read[3:], read.reshape(2, -1).T, edited, np.zeros(3))
    assert read[5] == 5
    assert edited[5] == 99


def test_normalise_stacks_only_equal_runs():
    stacked = values.normalise([np.zeros((2, 3)), np.ones((2, 3))])
    assert isinstance(stacked, np.ndarray)
    assert stacked.shape == (2, 2, 3)
    assert isinstance(values.normalise([np.zeros(2), np.zeros(3)]), list)
    assert isinstance(values.normalise([np.zeros(2, np.float32), np.zeros(2)]), list)
