"""What must hold for every comparison, whatever the values: searched with Hypothesis."""

from __future__ import annotations

import numpy as np
import pytest
from compare_cases import KINDS, Trial, clean, copy, floors_of, one
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trueport.compare.results import RATIO_BOUND_MAX
from trueport.compare.types import Verdict
from trueport.outcome import Failure, Kind, Stage

CASES = sorted(KINDS)
OUTPUTS = ("scores", "features")
many = settings(max_examples=60, deadline=None, derandomize=True)


@many
@given(
    seed=st.integers(0, 2**16),
    case=st.sampled_from(CASES),
    output=st.sampled_from(OUTPUTS),
    position=st.floats(0, 1, exclude_max=True),
    excess=st.floats(1.05, 1e6),
    sign=st.sampled_from((-1, 1)),
)
def test_one_element_beyond_the_bound_is_never_faithful(seed, case, output, position, excess, sign):
    """Any element, any case, any output: the bound is what `compare` itself says the floor of that case is."""
    trial = clean(seed % 50, amount=0.0)
    report = next(item for item in trial.run().outputs if item.source == output)
    numbers = report.cases[case]
    target = copy(trial.target)
    values = target[case][output].reshape(-1)
    at = int(position * values.size)
    probe = target[case][output].copy()
    probe.reshape(-1)[at] += 1.0
    # Largest deviation that the bound allows, read off a trial with a known deviation of 1.
    known = trial.but(target=dict(trial.target, **{case: dict(trial.target[case], **{output: probe})})).run()
    ratio = next(item for item in known.outputs if item.source == output).cases[case]["ratio_max"]
    allowed = RATIO_BOUND_MAX / ratio
    assert 0 < allowed < 1e-2 * numbers["magnitude"]
    values[at] += sign * allowed * excess
    assert trial.but(target=target).run().verdict is Verdict.DEVIATES


@many
@given(
    source=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=4, min_side=2, max_side=4),
        elements=st.floats(-1000, 1000, width=32),
    )
)
def test_identical_runs_of_a_varying_source_are_faithful(source):
    source = source.copy()
    source[0] += np.float32(500.0)
    source[1] -= np.float32(500.0)
    result = one(source, source.copy()).run()
    assert result.verdict is Verdict.FAITHFUL, result.reason
    assert result.outputs[0].ratio == 0.0


@many
@given(
    source=hnp.arrays(
        st.sampled_from((np.float16, np.float32, np.float64, np.complex64)),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=3),
    ),
    target=hnp.arrays(
        st.sampled_from((np.float16, np.float32, np.int32, np.bool_)),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=3),
    ),
)
def test_any_two_arrays_are_compared_without_an_exception_or_a_false_yes(source, target):
    """NaN, infinities, subnormals, empty shapes. FAITHFUL only for values that are equal to rounding."""
    result = one(source, target, floor=0.0).run()
    if result.verdict is Verdict.FAITHFUL:
        assert source.shape == target.shape
        assert source.dtype.kind == target.dtype.kind
        a, b = source.astype(np.complex128).ravel(), target.astype(np.complex128).ravel()
        finite = np.isfinite(a)
        assert np.array_equal(finite, np.isfinite(b))
        assert np.isfinite(source).any()
        peak = float(np.abs(a[finite]).max())
        least = np.finfo(np.promote_types(np.float16, min(source.dtype, target.dtype, key=lambda d: d.itemsize)))
        assert np.abs(a[finite] - b[finite]).max() <= 600 * float(least.eps) * peak + 100 * float(least.tiny)


@many
@given(order=st.permutations(CASES), outputs=st.permutations(OUTPUTS), fault=st.booleans(), seed=st.integers(0, 20))
def test_the_verdict_does_not_depend_on_the_order_of_cases_and_outputs(order, outputs, fault, seed):
    trial = clean(seed)
    if fault:
        trial.target["data"]["scores"][0, 0, 0] += 0.01
    plain = trial.run()
    other = trial.but(
        kinds={case: KINDS[case] for case in order},
        target={case: {name: trial.target[case][name] for name in outputs} for case in order},
    ).run()
    assert other.verdict is plain.verdict is (Verdict.DEVIATES if fault else Verdict.FAITHFUL)
    by_name = {item.source: item for item in other.outputs}
    assert all(by_name[item.source].ratio == item.ratio for item in plain.outputs)


@many
@given(
    side=st.sampled_from(("source", "target")),
    cases=st.sets(st.sampled_from(CASES), min_size=1),
    name=st.text(min_size=1),
)
def test_anything_unpaired_is_never_faithful(side, cases, name):
    trial = clean()
    runs = copy(getattr(trial, side))
    if name in OUTPUTS:
        return
    for case in cases:
        runs[case][name] = runs[case]["scores"].copy()
    result = trial.but(**{side: runs}).run()
    assert result.verdict is not Verdict.FAITHFUL
    assert name in (*result.unpaired_source, *result.unpaired_target)


def delete_case(runs, case, output, seed):
    del runs[case]


def delete_output(runs, case, output, seed):
    del runs[case][output]


def fail(runs, case, output, seed):
    kinds = list(Kind)
    runs[case] = Failure(stage=Stage.RUN, kind=kinds[seed % len(kinds)], message="it broke")


def truncate_runs(runs, case, output, seed):
    runs[case][output] = runs[case][output][:-1]


def drop_a_class(runs, case, output, seed):
    runs[case][output] = runs[case][output][..., :-1]


def to_integers(runs, case, output, seed):
    runs[case][output] = runs[case][output].astype(np.int64)


def zero(runs, case, output, seed):
    runs[case][output] = np.zeros_like(runs[case][output])


def scale(runs, case, output, seed):
    runs[case][output] *= np.float32(1.01)


def shift_samples(runs, case, output, seed):
    runs[case][output] = np.roll(runs[case][output], 1, axis=1)


def shift_classes(runs, case, output, seed):
    runs[case][output] = np.roll(runs[case][output], 1 + seed % 2, axis=-1)


def negate_one(runs, case, output, seed):
    flat = runs[case][output].reshape(-1)
    flat[np.argmax(np.abs(flat))] *= -1


def poison(runs, case, output, seed):
    runs[case][output].reshape(-1)[seed % 5] = (np.nan, np.inf, -np.inf)[seed % 3]


def swap_outputs(runs, case, output, seed):
    runs[case]["scores"], runs[case]["features"] = runs[case]["features"], runs[case]["scores"]


def to_half(runs, case, output, seed):
    runs[case][output] = runs[case][output].astype(np.float16)


def flatten(runs, case, output, seed):
    runs[case][output] = runs[case][output].reshape(len(runs[case][output]), -1)


MUTATIONS = (
    delete_case, delete_output, fail, truncate_runs, drop_a_class, to_integers, zero, scale, shift_samples,
    shift_classes, negate_one, poison, swap_outputs, to_half,
)  # fmt: skip


@pytest.mark.parametrize("mutation", [*MUTATIONS, pytest.param(flatten)], ids=lambda mutation: mutation.__name__)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=st.sampled_from(CASES), output=st.sampled_from(OUTPUTS), seed=st.integers(0, 1000))
def test_a_mutated_target_is_never_faithful(mutation, case, output, seed):
    trial = clean(seed % 7)
    target = copy(trial.target)
    mutation(target, case, output, seed)
    result = trial.but(target=target).run()
    assert result.verdict is not Verdict.FAITHFUL


@many
@given(mutations=st.lists(st.tuples(st.sampled_from(MUTATIONS), st.sampled_from(CASES), st.sampled_from(OUTPUTS)), min_size=1, max_size=3), seed=st.integers(0, 99))  # fmt: skip
def test_several_mutations_are_never_faithful(mutations, seed):
    """Two swaps, or two negations of one element, undo each other: those are left out by comparing with the original."""
    trial = clean(seed % 7)
    target = copy(trial.target)
    for mutation, case, output in mutations:
        if isinstance(target.get(case), dict) and output in target[case] and target[case][output].dtype == np.float32:
            try:
                mutation(target, case, output, seed)
            except (KeyError, IndexError, ValueError):
                continue
    if same(target, trial):
        return
    assert trial.but(target=target).run().verdict is not Verdict.FAITHFUL


def same(target, trial: Trial) -> bool:
    """The mutations left nothing changed."""
    if target.keys() != trial.target.keys() or any(isinstance(outputs, Failure) for outputs in target.values()):
        return False
    return all(
        outputs.keys() == trial.target[case].keys()
        and all(np.array_equal(outputs[name], trial.target[case][name]) for name in outputs)
        for case, outputs in target.items()
    )


@many
@given(seed=st.integers(0, 2**16), amount=st.floats(0, 3 * 2e-6), ways=st.integers(1, 5))
def test_noise_like_that_of_the_source_is_never_an_alarm(seed, amount, ways):
    trial = clean(seed, amount=amount)
    trial = trial.but(floors=floors_of(trial.source, ways=tuple(f"way {number}" for number in range(ways))))
    result = trial.run()
    assert result.verdict is Verdict.FAITHFUL, result.reason


@many
@given(
    seed=st.integers(0, 100),
    how=st.sampled_from(("float64", "another way", "simulated int8")),
    size=st.floats(1e-2, 1e3),
    fault=st.floats(1e-3, 1.0),
)
def test_one_broken_way_never_widens_the_floor(seed, how, size, fault):
    """A target that deviates by `fault` is found although one evaluation of the source is off by `size`."""
    trial = clean(seed)
    broken = floors_of(trial.source, amount=size, ways=(how,))
    good = trial.but(floors=(*trial.floors, *broken)).run()
    assert good.verdict is Verdict.FAITHFUL
    for outputs in trial.target.values():
        outputs["scores"] += np.float32(fault)
    assert trial.but(floors=(*trial.floors, *broken)).run().verdict is Verdict.DEVIATES
