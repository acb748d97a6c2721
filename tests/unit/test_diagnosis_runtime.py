"""Faults of a runtime, on the fake framework: cutting models open, the observer's effect, and finding a wrong kernel."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from trueport import tracing
from trueport.artifact import Artifact
from trueport.diagnosis import rounding, runtime
from trueport.diagnosis.types import Cause
from trueport.feeds import Case
from trueport.frameworks import fake
from trueport.outcome import Failure, Ok
from trueport.session import Session

RUNS = 4


@pytest.fixture
def save(tmp_path):
    """save(**network arguments) -> path of the file."""

    def save(**more) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.fake"
        path.write_text(fake.text_of(fake.network(**more)), encoding="utf-8")
        return path

    return save


def feed(seed: int = 1, inputs: int = 1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {f"x{index}": random.standard_normal((RUNS, 2, 6)).astype(np.float32) for index in range(inputs)}


# -- cutting the fake framework's models open ---------------------------------------------------------------------------


def values(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    names = fake.names(str(path), trust=False)
    fake.trace(str(path), inputs, names, found.__setitem__, budget=10**9, trust=False)
    return found


def replay(path: Path, inputs, given, wanted, variant: str = ""):
    found: dict[str, np.ndarray] = {}
    reply = fake.replay(str(path), inputs, given, wanted, found.__setitem__, variant=variant, budget=1, trust=False)
    return found, reply["skipped"]


def test_all_values_put_in_at_once_are_all_made_again(save):
    path = save(inputs=2)
    inputs = feed(inputs=2)
    whole = values(path, inputs)
    found, skipped = replay(path, inputs, {**inputs, **whole}, [*whole, "x0", "w1"])
    assert skipped == {}
    assert all(np.array_equal(found[name], whole[name]) for name in whole)
    assert np.array_equal(found["x0"], inputs["x0"])
    assert found["w1"].shape == (RUNS, 6, 8)


def test_a_value_put_in_changes_what_reads_it_and_not_what_makes_it(save):
    path = save()
    mine, other = values(path, feed(1)), values(path, feed(2))
    found, _ = replay(path, feed(1), {"hidden": other["hidden"]}, ["scores", "hidden"])
    assert np.array_equal(found["scores"], other["scores"])
    assert np.array_equal(found["hidden"], mine["hidden"])
    alone, _ = replay(path, {}, {"hidden": other["hidden"]}, ["chances"])
    assert np.array_equal(alone["chances"], other["chances"])
    constant, _ = replay(path, feed(1), {"b2": np.zeros((RUNS, 4), np.float32)}, ["scores"])
    assert np.array_equal(constant["scores"], mine["product_2"])


def test_what_the_given_shapes_do_not_allow_is_skipped_and_a_missing_input_is_refused(save):
    path = save()
    found, skipped = replay(path, feed(), {"hidden": np.zeros((RUNS, 5, 3), np.float32)}, ["scores", "hidden"])
    assert list(found) == ["hidden"]
    assert "shapes" in skipped["scores"]
    larger, _ = replay(path, {}, {"hidden": np.ones((RUNS, 7, 8), np.float32)}, ["scores"])
    assert larger["scores"].shape == (RUNS, 7, 4)
    with pytest.raises(ValueError, match="'x0' is needed"):
        replay(path, {}, {}, ["scores"])
    with pytest.raises(ValueError, match="no value named nowhere"):
        replay(path, feed(), {"nowhere": np.zeros(RUNS)}, ["scores"])


def test_wrong_kernels_are_wrong_by_default_alone_and_wrong_fusions_only_where_nothing_parts_them(save):
    faults = {"run": ["wrong-kernel:Relu_hidden"], "replay": ["wrong-kernel:Relu_hidden", "wrong-fusion:Add_scores"]}
    path = save(faults=faults)
    whole = values(path, feed())
    for variant in ("", "reversed-sum"):
        found, _ = replay(path, feed(), {}, ["hidden"], variant)
        np.testing.assert_allclose(found["hidden"], whole["hidden"], rtol=1e-5, atol=1e-6)
    found, _ = replay(path, feed(), {}, ["hidden"], "default")
    np.testing.assert_array_equal(found["hidden"], whole["hidden"] + 1)
    parted, _ = replay(path, feed(), {"product_2": whole["product_2"]}, ["scores"], "default")
    np.testing.assert_array_equal(parted["scores"], whole["scores"])
    fused, _ = replay(path, feed(), {"hidden": whole["hidden"]}, ["scores"], "default")
    np.testing.assert_array_equal(fused["scores"], whole["scores"] + 1)
    run = fake.run(str(path), {"data": feed()}, precision="float32", variant="default", trust=False)["data"]
    assert not np.allclose(run["scores"], whole["scores"])


# -- how far apart ------------------------------------------------------------------------------------------------------


def test_deviation_is_in_units_of_what_varies_over_the_runs():
    right = np.float32([[0, 10], [2, 10], [4, 10]])  # varies by rms sqrt(8/6) about its mean
    assert rounding.deviation(right, right) == 0
    assert rounding.deviation(right, right + 3) == pytest.approx(3 / math.sqrt(8 / 6))


def test_deviation_of_values_that_hardly_vary_is_in_units_of_their_size():
    right = np.full((3, 4), 100.0)
    assert rounding.deviation(right, right + 1) == pytest.approx(1.0)
    assert rounding.deviation(right[:1], right[:1] + 1e-6) == pytest.approx(1e-6)
    assert rounding.deviation(right * 0, right * 0 + 2) == 2.0


def test_deviation_of_other_shapes_other_infinities_text_and_nothing():
    right = np.float32([[1, np.inf], [2, np.nan]])
    assert rounding.deviation(right, right) == 0
    assert rounding.deviation(right, -right) == math.inf
    assert rounding.deviation(right, np.nan_to_num(right)) == math.inf
    assert rounding.deviation(np.zeros((2, 3)), np.full((2, 3), np.nan)) == math.inf
    assert rounding.deviation(right, right[:, :1]) == math.inf
    assert math.isnan(rounding.deviation(np.array(["a"]), np.array(["a"])))
    assert rounding.deviation(np.zeros((2, 0)), np.zeros((2, 0))) == 0
    assert rounding.deviation(np.array([[True], [False]]), np.array([[True], [True]])) > 1


# -- searching ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session():
    with Session() as session:
        yield session


@pytest.fixture
def traced(session, save):
    """traced(faults) -> the traced model, and the outputs of its plain run."""
    opened = []

    def make(**faults):
        artifact = Artifact.open(save(faults=faults))
        made = tracing.trace(session, artifact, feed())
        assert isinstance(made, Ok), made
        opened.append(made.value)
        ran = session.run(artifact, [Case(name="data", kind="data", inputs=feed())])
        assert isinstance(ran, Ok), ran
        return made.value, ran.value.runs["data"]

    yield make
    for item in opened:
        item.close()


def bad(*behaviours: str) -> dict[str, list[str]]:
    return {"run": list(behaviours), "replay": list(behaviours)}


def test_a_right_runtime_is_not_blamed_and_showing_values_does_nothing(traced):
    target, plain = traced()
    effect = runtime.observer_effect(target, plain)
    assert set(effect.plain) == {"scores", "chances"}
    assert (effect.differing, effect.exposed, effect.kernels, effect.note, effect.exposure) == ((), (), (), "", {})
    assert runtime.find(target, plain) == ()


@pytest.mark.parametrize(
    ("node", "value"),
    [
        ("MatMul_product_1", "product_1"),
        ("Add_affine_1", "affine_1"),
        ("Relu_hidden", "hidden"),
        ("MatMul_product_2", "product_2"),
        ("Add_scores", "scores"),
        ("Softmax_chances", "chances"),
    ],
)
def test_a_kernel_that_is_wrong_by_default_alone_is_named_wherever_it_stands(traced, node, value):
    target, plain = traced(**bad(f"wrong-kernel:{node}"))
    [(finding, evidence)] = runtime.find(target, plain)
    assert (finding.kind, finding.target, finding.region) == ("runtime", value, (node,))
    assert finding.confirmed
    assert finding.causal == pytest.approx(1.0, abs=1e-4)
    assert finding.local == pytest.approx(rounding.deviation(target.values[value], target.values[value] + 1), rel=1e-3)
    assert (evidence.node, evidence.cause) == (node, Cause.RUNTIME)
    assert "right in the variants reversed-sum" in evidence.what
    assert evidence.source_value.startswith("kernels 'reversed-sum': ")
    assert evidence.target_value.startswith("kernels 'default': ")


def test_a_wrong_fusion_takes_both_its_nodes_and_not_those_around(traced):
    target, plain = traced(**bad("wrong-fusion:Add_scores"))
    [(finding, evidence)] = runtime.find(target, plain)
    assert finding.region == ("MatMul_product_2", "Add_scores")
    assert evidence.node == "Add_scores"
    assert finding.confirmed


def test_two_wrong_kernels_are_both_found_in_the_order_of_computation(traced):
    target, plain = traced(**bad("wrong-kernel:Add_affine_1", "wrong-fusion:Softmax_chances"))
    found = runtime.find(target, plain)
    assert [evidence.node for _, evidence in found] == ["Add_affine_1", "Softmax_chances"]
    assert all(finding.confirmed for finding, _ in found)


def test_the_search_stops_at_its_deadline_and_where_the_model_cannot_be_cut(traced):
    target, plain = traced(**bad("wrong-kernel:Relu_hidden"))
    assert runtime.find(target, plain, seconds=0.0) == ()
    target, plain = traced(run=["wrong-kernel:Relu_hidden"], replay=["unsupported"])
    assert runtime.find(target, plain) == ()


def test_a_difference_within_the_tolerance_is_nobodys_fault(traced):
    target, plain = traced(**bad("wrong-kernel:Relu_hidden"))
    assert runtime.find(target, plain, tolerance=1e6) == ()
    assert runtime.observer_effect(target, plain, tolerance=1e6).note == ""


# -- the observer's effect ----------------------------------------------------------------------------------------------


def test_an_output_that_changes_because_values_are_shown_is_told(traced):
    target, plain = traced(trace=["perturb:10"])
    effect = runtime.observer_effect(target, plain)
    assert set(effect.exposed) == {"scores", "chances"}
    assert effect.kernels == ()
    assert "showing the values in between changes it" in effect.note


def test_an_output_that_other_kernels_compute_otherwise_is_no_effect_of_showing(traced):
    target, plain = traced(**bad("wrong-kernel:Softmax_chances"))
    effect = runtime.observer_effect(target, plain)
    assert (effect.differing, effect.kernels, effect.exposed) == (("chances",), ("chances",), ())
    assert effect.exposure == {"chances": 0.0}
    assert "otherwise than the default ones" in effect.note


def test_values_that_showing_changes_are_computed_one_at_a_time(traced):
    target, plain = traced(trace=["perturb:10"])
    assert rounding.deviation(plain["scores"], target.values["scores"]) > 0.01
    assert runtime.retrace(target) == 6
    assert runtime.observer_effect(target, plain).note == ""
    assert set(target.values) == {"x0", *fake.names(str(target.artifact.path), trust=False)}
    assert "6 values were computed one at a time" in target.notes[-1]


def test_values_that_cannot_be_computed_alone_or_in_time_are_not_kept(traced):
    for faults, seconds in (({"replay": ["unsupported"]}, 60.0), ({}, 0.0)):
        target, _ = traced(trace=["perturb:10"], **faults)
        assert runtime.retrace(target, seconds=seconds) == 0
        assert set(target.values) == {"x0"}
        assert "6 could not be had so" in target.notes[-1]


def test_plain_outputs_are_those_of_a_run_and_its_failure_is_handed_on(traced):
    target, plain = traced()
    again = runtime.plain_outputs(target)
    assert isinstance(again, Ok)
    assert all(np.array_equal(again.value[name], plain[name]) for name in plain)


@pytest.mark.parametrize("behaviour", ["raise", "unsupported"])
def test_a_model_that_traces_and_does_not_run_is_a_failure(session, save, behaviour):
    made = tracing.trace(session, Artifact.open(save(faults={"run": [behaviour]})), feed())
    assert isinstance(made, Ok)
    assert isinstance(runtime.plain_outputs(made.value), Failure)
    made.value.close()


def test_where_the_model_cannot_be_cut_it_is_said_that_nothing_can_be_told(traced):
    target, plain = traced(run=["wrong-kernel:Softmax_chances"], replay=["unsupported"])
    effect = runtime.observer_effect(target, plain)
    assert (effect.differing, effect.kernels, effect.exposed) == (("chances",), (), ())
    assert "cannot be told apart" in effect.note


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "something-new"])
def test_the_declared_precision_tells_how_much_noise_there_may_be(session, save, precision):
    made = tracing.trace(session, Artifact.open(save(precision=precision)), feed())
    assert isinstance(made, Ok)
    assert rounding.precision(made.value) == precision
    assert rounding.noise(made.value) == {"float16": 1e-2, "int8": 0.3}.get(precision, 1e-3)
    made.value.close()


def test_jitter_is_of_the_size_of_rounding():
    values = np.random.default_rng(0).normal(5, 1, (3, 400)).astype(np.float32)
    moved = rounding.jittered(values, "float32") - values
    assert 2e-6 < np.sqrt(np.mean(np.square(moved.astype(np.float64)))) < 1e-5
    grid = (np.arange(-128, 127).reshape(1, -1) * np.float32(0.25)).astype(np.float32)
    steps = np.abs(rounding.jittered(grid, "int8") - grid)
    assert 0.2 < steps.max() <= 0.25
    floats = np.linspace(-1, 1, 1001, dtype=np.float32).reshape(1, -1)  # a kernel rounds these to 256 levels
    assert 0.9 * 2 / 255 < np.abs(rounding.jittered(floats, "int8-dynamic") - floats).max() <= 2.001 / 255
    assert rounding.jittered(np.arange(4), "int8").tolist() == [0, 1, 2, 3]
    assert rounding.jittered(np.full((1, 3), np.nan), "float32").shape == (1, 3)


def test_a_failure_of_the_trace_is_not_hidden(session, save):
    made = tracing.trace(session, Artifact.open(save(faults={"trace": ["raise"]})), feed())
    assert isinstance(made, Failure)
