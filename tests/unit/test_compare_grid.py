"""The grid of integers that a quantised target stores its output on: what it excuses, and what it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from compare_cases import noisy, signature

from trueport.artifact import Signature, TensorSpec
from trueport.compare.types import FloorRun, Verdict
from trueport.compare.verdict import compare

STEP = 1 / 256
SOFTMAX = {"scale": STEP, "zero_point": -128, "dtype": "int8"}
"""What TFLite's int8 softmax is bound to: 0 to 255/256."""


def scores(runs=24):
    """Confident probabilities of three classes, [runs, 1, 3]: most are 0 or 1 to four digits."""
    logits = np.random.default_rng(0).normal(scale=9, size=(runs, 1, 3))
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(np.float32)


def on_grid(array, grid):
    """What a runtime gives back: rounded and clipped to the integers of the grid."""
    steps = np.clip(np.rint(array / grid["scale"]) + grid["zero_point"], -128, 127) - grid["zero_point"]
    return (steps * grid["scale"]).astype(np.float32)


def verdict(source, target, grid, *, simulated=1e-4, declared="int8", task="none"):
    floors = [FloorRun(how="float64", runs={"data": {"y": noisy(source, 1e-7, 1)}})]
    if simulated is not None:
        floors.append(FloorRun(how=f"simulated {declared}", runs={"data": {"y": noisy(source, simulated, 2)}}))
    left = signature(y=(None, 3))
    right = replace(left, outputs=(replace(left.outputs[0], quantization=grid),))
    runs = ({"data": {"y": source}}, {"data": {"y": target}})
    return compare(
        left,
        right,
        {"data": "data"},
        *runs,
        floors,
        None,
        None,
        declared_precision=declared,
        renames={},
        layout={},
        task=task,
        labels=None,
    )


def test_the_grid_that_the_target_is_bound_to_is_no_fault():
    source = scores()
    target = on_grid(source, SOFTMAX)
    assert target.max() == 255 / 256
    assert verdict(source, target, SOFTMAX).verdict is Verdict.FAITHFUL
    assert verdict(source, target, None).verdict is Verdict.DEVIATES, "without the grid the steps look like a fault"


def test_the_grid_excuses_its_steps_and_nothing_else():
    source = scores()
    wrong = on_grid(np.roll(source, 1, axis=0), SOFTMAX)
    assert verdict(source, wrong, SOFTMAX).verdict is Verdict.DEVIATES
    shifted = on_grid(source, SOFTMAX) + np.float32(4 * STEP)
    assert verdict(source, shifted, SOFTMAX).verdict is Verdict.DEVIATES


def test_a_grid_too_short_for_the_values_is_a_fault():
    source = scores() * np.float32(4)
    short = dict(SOFTMAX, scale=STEP)
    assert verdict(source, on_grid(source, short), short).verdict is Verdict.DEVIATES


@pytest.mark.parametrize("scale", [0.9, 0.2, 0.05])
def test_a_grid_too_coarse_to_follow_the_source_excuses_nothing(scale):
    source = scores()
    coarse = {"scale": scale, "zero_point": 0, "dtype": "int8"}
    assert verdict(source, on_grid(source, coarse), coarse).verdict is Verdict.DEVIATES


@pytest.mark.parametrize("declared", ["float32", "float16"])
def test_the_grid_counts_only_at_a_declared_and_simulated_precision(declared):
    source = scores()
    target = on_grid(source, SOFTMAX)
    assert verdict(source, target, SOFTMAX, simulated=None, declared="int8").verdict is Verdict.INCOMPARABLE
    result = verdict(source, target, SOFTMAX, simulated=None, declared=declared)
    assert result.verdict is not Verdict.FAITHFUL


@pytest.mark.parametrize("broken", [{"scale": 0.0}, {"scale": float("nan")}, {"scale": [STEP, STEP]}, {}])
def test_a_grid_that_makes_no_sense_is_ignored(broken):
    source = scores()
    assert verdict(source, on_grid(source, SOFTMAX), {"dtype": "int8", **broken}).verdict is Verdict.DEVIATES


def flipping():
    """A source with a near tie in every row, and a twin that decides the other way."""
    rng = np.random.default_rng(4)
    source = np.full((12, 1, 3), 0.2, np.float32)
    source[:, 0, 0], source[:, 0, 1] = 0.41, 0.39
    source[:, 0] += rng.uniform(-0.05, 0.05, size=(12, 1)).astype(np.float32) * np.array([1, 1, -2], np.float32)
    target = source.copy()
    target[:, 0, 0] -= 0.015
    target[:, 0, 1] += 0.015
    return source, target


def test_a_flip_whose_noise_is_not_known_is_no_proof_of_a_fault():
    source, target = flipping()
    unknown = verdict(source, target, None, simulated=None, task="classification")
    assert unknown.decisions is not None
    assert unknown.decisions.top1_flips == 12
    assert unknown.verdict is Verdict.INCOMPARABLE
    assert "could not be evaluated at int8" in unknown.reason
    known = verdict(source, target, None, simulated=1e-4, task="classification")
    assert known.verdict is Verdict.DEVIATES
    assert verdict(source, target, None, simulated=None, declared="float32", task="classification").verdict is (
        Verdict.DEVIATES
    )


def test_the_ratio_of_a_drowned_case_is_not_reported_as_the_worst():
    sharp, dull = scores(), np.full((6, 1, 3), 1 / 3, np.float32) + np.arange(6, dtype=np.float32)[:, None, None] * 1e-7
    moved = dull + np.float32(0.2)
    floors = [
        FloorRun(how="float64", runs={"data": {"y": noisy(sharp, 1e-7, 1)}, "dull": {"y": dull}}),
        FloorRun(how="simulated int8", runs={"data": {"y": noisy(sharp, 1e-2, 2)}, "dull": {"y": dull + np.float32(1e-3)}}),
    ]  # fmt: skip
    both = signature(y=(None, 3))
    result = compare(
        both,
        both,
        {"data": "data", "dull": "data"},
        {"data": {"y": sharp}, "dull": {"y": dull}},
        {"data": {"y": noisy(sharp, 1e-2, 3)}, "dull": {"y": moved}},
        floors,
        None,
        None,
        declared_precision="int8",
        renames={},
        layout={},
        task="none",
        labels=None,
    )
    assert result.verdict is Verdict.FAITHFUL, result.reason
    assert result.outputs[0].ratio <= 3.0
    assert result.outputs[0].cases["dull"]["ratio"] > 3.0


@pytest.mark.parametrize(("precision", "verdict"), [("float32", Verdict.FAITHFUL), ("int8", Verdict.DEVIATES)])
def test_the_noise_of_an_integer_source_is_not_stretched_by_the_bounds_of_rounding(precision, verdict):
    """Five times the floor is rounding for a float32 source; over the grid of an integer one it is a fault."""
    rng = np.random.default_rng(0)
    source = rng.normal(size=(16, 1, 8)).astype(np.float32)
    noise = rng.normal(size=source.shape).astype(np.float32)
    spec = TensorSpec(name="y", dtype="float32", shape=(1, 8))
    given = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    ours = Signature(inputs=(given,), outputs=(spec,), meta={"precision": precision})
    twin = Signature(inputs=(given,), outputs=(spec,))
    ways = [
        FloorRun(how=f"kernels: {name}", runs={"data": {"y": source + sign * 1e-4 * noise}})
        for name, sign in (("a", 1), ("b", -1))
    ]
    found = compare(
        ours,
        twin,
        {"data": "data"},
        {"data": {"y": source}},
        {"data": {"y": source + 5e-4 * noise}},
        ways,
        None,
        None,
        declared_precision="float32",
        renames={},
        layout={},
        task="regression",
        labels=None,
    )
    assert found.verdict is verdict, found.reason


@pytest.mark.parametrize(
    ("apart", "verdict"),
    [(0.0, Verdict.FAITHFUL), (0.02, Verdict.FAITHFUL), (0.11, Verdict.INCOMPARABLE), (0.3, Verdict.DEVIATES)],
)
def test_a_good_output_does_not_speak_for_a_noisy_one_beside_it(apart, verdict):
    """An integer source whose second output moves by 4 % of its signal by itself: three such floors hide a tenth of it."""
    rng = np.random.default_rng(0)
    clear, noisy_one, noise = (rng.normal(size=(16, 1, 8)).astype(np.float32) for _ in range(3))
    specs = tuple(TensorSpec(name=name, dtype="float32", shape=(1, 8)) for name in ("clear", "noisy"))
    given = (TensorSpec(name="x", dtype="float32", shape=(1, 4)),)
    form = Signature(inputs=given, outputs=specs, meta={"precision": "int8"})
    ways = [
        FloorRun(
            how=how, runs={"data": {"clear": clear + sign * 1e-7 * noise, "noisy": noisy_one + sign * 4e-2 * noise}}
        )
        for how, sign in (("kernels: a", 1), ("inputs moved by one ulp", -1))
    ]
    found = compare(
        form,
        replace(form, meta={}),
        {"data": "data"},
        {"data": {"clear": clear, "noisy": noisy_one}},
        {"data": {"clear": clear, "noisy": noisy_one + apart * noise}},
        ways,
        None,
        None,
        declared_precision="float32",
        renames={},
        layout={},
        task="regression",
        labels=None,
    )
    assert found.verdict is verdict, found.reason
