"""Slices along every axis against their own noise."""

from __future__ import annotations

import numpy as np
import pytest
from compare_cases import noisy, one

from trueport.compare import channels, values
from trueport.compare.channels import worst_slice
from trueport.compare.floor import Floor
from trueport.compare.types import FloorRun, Verdict

RNG = np.random.default_rng(11)
SCALES = np.array([640.0, 640.0, 1.0, 0.1], np.float32)
X = (RNG.random((4, 1, 60, 4)) * SCALES).astype(np.float32)


def like(seed, amount=1e-6):
    """X with noise that is relative to each channel."""
    return (X + amount * SCALES * np.random.default_rng(seed).standard_normal(X.shape)).astype(np.float32)


WAYS = {"a": like(1), "b": like(2), "c": like(3)}
TOTAL = Floor(rms=4.5e-4, max=3e-3, share=1.0, measured=True, ways=("a", "b", "c"))


def find(target, ways=None, total=TOTAL, source=X):
    return worst_slice(source, target, WAYS if ways is None else ways, 1e-7, total)


def test_a_fault_in_the_small_channel_is_found_there():
    target = like(9)
    target[..., 3] *= 1.01
    found = find(target)
    assert (found.axis, found.index) == (2, 3)
    assert found.ratio > channels.SLICE_BOUND


def test_noise_is_not():
    for seed in range(30):
        assert find(like(seed + 100)).ratio < 4


def test_a_wrong_border_row_is_found_as_a_row():
    images = RNG.standard_normal((4, 1, 20, 20, 3)).astype(np.float32)
    ways = {how: noisy(images, 1e-6, seed) for seed, how in enumerate("abc")}
    target = noisy(images, 1e-6, 9)
    target[:, :, 19] += 1e-3
    found = find(target, ways, Floor(rms=1e-6, max=5e-6, share=1.0, measured=True, ways=("a", "b", "c")), images)
    assert (found.axis, found.index) == (1, 19)


@pytest.mark.parametrize("limit", [3, 17, 240, 10**6])
def test_blocks_of_any_size_give_the_same_slices(monkeypatch, limit):
    target = like(9)
    target[..., 3] *= 1.01
    whole = find(target)
    monkeypatch.setattr(channels, "blocks", lambda shape: values.blocks(shape, limit))
    cut = find(target)
    assert (cut.axis, cut.index) == (whole.axis, whole.index)
    assert cut.ratio == pytest.approx(whole.ratio)


def test_slices_whose_noise_is_not_known_are_left_alone():
    target = X * np.float32(2)
    assert find(target, {"a": WAYS["a"]}) is None, "one way is no sample"
    assert find(target, WAYS, Floor(rms=1.0, max=1.0, share=0.0, measured=False, ways=("rounding",))) is None
    few = X[:1, :, :3]
    assert find(few * 2, {how: way[:1, :, :3] for how, way in WAYS.items()}, source=few) is None
    assert find([X[0]], source=[X[0]]) is None
    assert find(X.astype(np.complex64), source=X.astype(np.complex64)) is None


def test_ways_that_agree_bit_for_bit_in_a_slice_do_not_make_it_infinitely_sensitive():
    ways = {how: X.copy() for how in "abc"}
    ways["a"][..., 0] = like(1)[..., 0]
    target = X.copy()
    target[..., 2] += 1e-7
    assert find(target, ways).ratio < channels.SLICE_BOUND


def test_elements_that_are_not_finite_are_left_to_their_own_check():
    source, target = X.copy(), like(9)
    source[0, 0, 0, 0] = target[0, 0, 0, 0] = np.inf
    assert find(target, source=source).ratio < 4


def test_the_verdict_names_the_slice():
    ways = tuple(FloorRun(how=how, runs={"data": {"y": way}}) for how, way in WAYS.items())
    assert one(X, like(9)).but(floors=ways).run().verdict is Verdict.FAITHFUL
    target = like(9)
    target[..., 3] *= 1 + 2e-3
    result = one(X, target).but(floors=ways).run()
    assert result.verdict is Verdict.DEVIATES
    assert "slice 3 of axis 2" in result.reason
    assert result.outputs[0].ratio < 10, "the totals alone do not see it"
