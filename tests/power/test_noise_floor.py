"""The verdict's power: clean conversions are faithful, planted faults deviate, and saturated inputs prove nothing.

A small part of `benchmarks/noise_floor.py` on real models, that benchmark's own book-keeping, and all of it as `slow`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trueport.artifact import Artifact, Signature, TensorSpec
from trueport.compare.types import FloorRun, Verdict
from trueport.compare.verdict import compare
from trueport.feeds import Case, Feeds
from trueport.outcome import Failure, Kind, Stage
from trueport.session import RunResults, Session, Settings
from trueport.verification import Measured, Reference

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import noise_floor  # noqa: E402
from noise import plan, tables  # noqa: E402
from noise.trials import Bench, Trial  # noqa: E402


@pytest.fixture(scope="module")
def bench():
    with Session(Settings(timeout=300)) as session:
        yield Bench(session)


# ---- real models ----

CLEAN = [
    ("torch", "depthwise", "torch-dynamo"),
    ("torch", "depthwise", "torch-torchscript"),
    ("torch", "encoder", "torch-dynamo"),
    ("onnx/torch", "mixed", "ort-optimizer"),
    ("keras", "depthwise", "tf2onnx-keras"),
    ("keras", "depthwise", "tflite-keras"),
    ("keras", "exact_gelu", "tflite-keras"),
    ("keras", "silu", "tflite-keras"),
]


@pytest.mark.parametrize(("framework", "kind", "route"), CLEAN)
def test_a_clean_conversion_is_faithful(bench, framework, kind, route):
    row = bench.run(Trial(framework=framework, kind=kind, seed=11, route=route))
    assert row["verdict"] == "faithful", row["reason"]
    assert 0 <= tables.strain(row) < 1
    assert row["floor"] < 1e-4


REQUIRED = [
    ("torch", "depthwise", "1 % noise in a weight", "project.0.weight"),
    ("torch", "depthwise", "weight scaled by 1.01", "expand.0.weight"),
    ("torch", "depthwise", "wrong epsilon", "project.1"),
    ("torch", "depthwise", "dropped bias", "squeeze.1.bias"),
    ("torch", "depthwise", "one element of a weight", "head.weight"),
    ("torch", "depthwise", "shifted mean statistics", "depth.1"),
    ("torch", "depthwise", "ReLU for ReLU6", "depth.2"),
    ("torch", "encoder", "1 % noise in a weight", "layers.0.qkv.weight"),
    ("torch", "encoder", "wrong epsilon", "layers.1.norm2"),
    ("torch", "encoder", "dropped bias", "layers.0.norm1.bias"),
    ("torch", "encoder", "tanh GELU", "feed-forward"),
    ("keras", "exact_gelu", "tanh GELU", "feed-forward"),
    ("keras", "depthwise", "1 % noise in a weight", "dw0/kernel"),
    ("keras", "depthwise", "wrong epsilon", "pw1_bn"),
    ("keras", "depthwise", "dropped bias", "logits/bias"),
    ("keras", "depthwise", "other padding", "pad"),
]


@pytest.mark.parametrize(("framework", "kind", "fault", "where"), REQUIRED)
def test_a_planted_fault_deviates(bench, framework, kind, fault, where):
    route = {"torch": "torch-dynamo", "keras": "tflite-keras"}[framework]
    row = bench.run(Trial(framework=framework, kind=kind, seed=11, route=route, fault=fault, where=where))
    assert row["verdict"] == "deviates", row["reason"]
    assert tables.strain(row) > 3, "found, but so narrowly that another seed would hide it"


def test_the_source_itself_tells_whether_a_change_has_an_effect(bench):
    trial = Trial(
        framework="torch", kind="depthwise", seed=11, route="torch-dynamo", fault="ReLU for ReLU6", where="depth.2"
    )
    original = bench._bench(trial)
    known = dict.fromkeys([("output_0", case.name) for case in original.given.cases], 1e-6)
    same = bench._workbench(original.original.artifact, original.given)
    assert bench._effect(original, same, known) == (0.0, 0.0)
    path = bench._make("torch", "plant", trial, fault=trial.fault, where=trial.where)
    share, ratio = bench._effect(original, bench._workbench(Artifact.open(path), original.given), known)
    assert share > 1e-3
    assert ratio == pytest.approx(share / 1e-6)


def test_every_place_of_a_fault_can_be_planted(bench):
    for framework, kind in (("torch", "depthwise"), ("torch", "encoder"), ("keras", "depthwise")):
        places = bench.places(framework, kind, 11)
        assert set(tables.ACCEPTED) - {"tanh GELU"} <= set(places)
        assert ("tanh GELU" in places) == (kind == "encoder")


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_whole_benchmark(tmp_path):
    """Two hundred clean conversions without a false alarm; every planted fault of the required kinds is found."""
    command = [sys.executable, str(ROOT / "benchmarks" / "noise_floor.py"), "--rows", str(tmp_path / "rows.jsonl")]
    done = subprocess.run([*command, "--places", "1"], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 clean conversions" in done.stdout
    assert " 0 false alarms" in done.stdout


@pytest.mark.slow
def test_an_input_that_is_far_more_sensitive_than_the_first_four_is_no_fault(bench):
    """On its eighth input this network moves two hundred times as far, by rounding alone, as on the first four."""
    for route in plan.ROUTES["keras"][:2]:
        row = bench.run(Trial(framework="keras", kind="efficientnetb0", seed=1, route=route))
        assert row["verdict"] == "faithful", row["reason"]


class Recorded(Reference):
    """A reference whose floors tell how many runs they were asked for."""

    def _floors(self, few, given, precision):
        runs = {case.name: {"p": np.zeros((case.runs, 1), np.float32)} for case in few}
        return [FloorRun(how="float64", runs=runs)], []


def test_before_a_deviation_is_told_the_floor_covers_more_runs():
    def case(name, runs, kind="data"):
        return Case(name=name, kind=kind, inputs={"x": np.zeros((runs, 1), np.float32)})

    cases = (case("data", 9), case("long", 300), case("short", 4), case("broken", 9))
    given = Feeds.of(cases, origin="arrays", count=9)
    failed = Failure(stage=Stage.RUN, kind=Kind.RAISED, message="no")
    first = FloorRun(
        how="float64", runs={name: {"p": np.zeros((4, 1), np.float32)} for name in ("data", "long", "short")}
    )
    measured = Measured(
        runs=RunResults(runs={"broken": failed}, versions={}), repeat={}, floors=(first,), notes=(), seconds={}
    )
    reference = Recorded(session=None, artifact=None, signature=None)
    (found,) = reference.floors_closer(given, "float32", measured)
    assert {name: len(outputs["p"]) for name, outputs in found.runs.items()} == {"data": 9, "long": 64, "short": 4}
    assert reference.floors_closer(given, "float32", measured)[0] is found


# ---- saturated inputs: a softmax whose input-dependent part lies far below rounding ----

WEIGHT = np.random.default_rng(3).standard_normal((6, 4))
SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("n", 6)),),
    outputs=(TensorSpec(name="p", dtype="float32", shape=("n", 4)),),
)


def classifier(x, dtype=np.float32, order=slice(None)):
    """softmax(40 x W) over the last axis; `order` sums the products in another order."""
    logits = (x.astype(dtype)[..., order] @ (40 * WEIGHT[order]).astype(dtype)).astype(dtype)
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return (shifted / shifted.sum(-1, keepdims=True)).astype(dtype)


def saturated(runs=8):
    """Inputs for which one class has all: the others have about 1e-20."""
    direction = np.linalg.lstsq(WEIGHT.T, np.array([1.2, 0.0, 0.0, 0.0]), rcond=None)[0]
    rng = np.random.default_rng(1)
    return (direction + 0.002 * rng.standard_normal((runs, 2, 6))).astype(np.float32)


def ordinary(runs=8):
    return (0.02 * np.random.default_rng(2).standard_normal((runs, 2, 6))).astype(np.float32)


def judge(cases, target, kinds=None):
    """Compare `target` with the classifier; its ways are float64, another order of sums, and inputs moved by one ulp."""

    def runs(function):
        return {name: {"p": function(x)} for name, x in cases.items()}

    ways = (
        FloorRun(how="float64", runs=runs(lambda x: classifier(x, np.float64))),
        FloorRun(how="reversed sums", runs=runs(lambda x: classifier(x, order=slice(None, None, -1)))),
        FloorRun(how="inputs moved by one ulp", runs=runs(lambda x: classifier(np.nextafter(x, np.float32(9))))),
    )
    return compare(
        SIGNATURE,
        SIGNATURE,
        kinds or dict.fromkeys(cases, "data"),
        runs(classifier),
        runs(target),
        ways,
        runs(classifier),
        runs(target),
        declared_precision="float32",
        renames={},
        layout={},
        task="auto",
        labels=None,
    )


def deaf(x):
    """A target that ignores its input, and is right wherever the softmax is saturated."""
    return np.broadcast_to(np.array([1, 0, 0, 0], np.float32), (*x.shape[:-1], 4)).copy()


def another_kernel(x):
    """A clean target: float64 inside, and tiny results flushed to zero."""
    p = classifier(x, np.float64)
    return np.where(p < 1e-30, 0, p).astype(np.float32)


def test_the_saturated_case_is_one():
    p = classifier(saturated(), np.float64)
    assert 0 < np.ptp(p, axis=(0, 1)).max() < 1e-15
    assert np.ptp(classifier(ordinary()), axis=(0, 1)).max() > 0.1


def test_saturated_data_alone_are_no_evidence():
    for target in (deaf, another_kernel, classifier):
        found = judge({"data": saturated()}, target)
        assert found.verdict == Verdict.INCOMPARABLE
        assert "representative inputs" in found.reason


def test_a_probe_that_is_not_saturated_does_not_speak_for_data_that_are():
    kinds = {"data": "data", "probe-zeros": "probe"}
    cases = {"data": saturated(), "probe-zeros": ordinary(2)}
    found = judge(cases, another_kernel, kinds)
    assert found.verdict == Verdict.INCOMPARABLE, found.reason
    assert judge(cases, deaf, kinds).verdict == Verdict.DEVIATES, "a fault that the probe shows stays one"
    single = {"data": ordinary(8)[:1, :1], "probe-zeros": ordinary(2)[1:, :1]}
    assert judge(single, another_kernel, kinds).verdict == Verdict.FAITHFUL, "one sample cannot vary by itself"


def test_a_saturated_case_raises_no_alarm_beside_good_data():
    found = judge({"data": ordinary(), "data-wide": saturated()}, another_kernel)
    assert found.verdict == Verdict.FAITHFUL, found.reason


def test_a_saturated_case_does_not_widen_the_floor_of_the_others():
    alone = judge({"data": ordinary()}, another_kernel).outputs[0].cases["data"]
    beside = judge({"data": ordinary(), "data-wide": saturated()}, another_kernel).outputs[0].cases["data"]
    assert beside["floor"] == pytest.approx(alone["floor"], rel=1e-9)
    wide = judge({"data": ordinary(), "data-wide": saturated()}, deaf).outputs[0].cases["data-wide"]
    assert wide["ratio"] < 1, "the saturated case itself sees nothing"


def test_a_fault_that_saturation_hides_is_found_in_the_other_case():
    assert judge({"data": ordinary(), "data-wide": saturated()}, deaf).verdict == Verdict.DEVIATES
    slightly = judge({"data": ordinary(), "data-wide": saturated()}, lambda x: classifier(x * np.float32(1.001)))
    assert slightly.verdict == Verdict.DEVIATES


# ---- the benchmark's own book-keeping ----


def row(**changes):
    made = {
        "key": "k",
        "framework": "torch",
        "kind": "residual",
        "seed": 0,
        "route": "torch-dynamo",
        "fault": "",
        "where": "",
        "verdict": "faithful",
        "reason": "",
        "floor": 1e-6,
        "data_ratio_rms": 1.5,
        "data_ratio_max": 2.0,
        "data_ratio_slice": 0.0,
        "probe_ratio_rms": 1.0,
        "probe_ratio_max": 3.0,
        "probe_ratio_slice": 0.0,
    }
    return {**made, **changes}


def fault(**changes):
    return row(
        **{"fault": "dropped bias", "where": "head.bias", "verdict": "deviates", "data_ratio_rms": 500.0, **changes}
    )


def test_worst_and_strain_take_data_and_probes():
    assert tables.worst(row(), "ratio_rms") == 1.5
    assert tables.worst(row(), "ratio_max") == 3.0
    assert tables.strain(row(probe_ratio_max=160.0)) == pytest.approx(160.0 / tables.RATIO_BOUND_MAX)
    assert tables.strain(row(data_ratio_rms=None, probe_ratio_rms=None)) == pytest.approx(3.0 / tables.RATIO_BOUND_MAX)


def test_only_a_source_that_did_not_move_counts_as_no_effect():
    missed = fault(verdict="faithful")
    assert tables.missed_as({**missed, "effect": 0.0, "effect_ratio": 0.0}, 2.0) == tables.NO_EFFECT
    assert tables.missed_as({**missed, "effect": 1e-6, "effect_ratio": 1.9}, 2.0) == tables.BELOW_NOISE
    assert tables.missed_as({**missed, "effect": 1e-6, "effect_ratio": 2.1}, 2.0) == tables.MISSED
    assert tables.missed_as({**missed, "effect": None, "effect_ratio": None}, 2.0) == tables.MISSED
    assert tables.missed_as(missed, 2.0) == tables.MISSED


def test_the_noise_is_that_of_conversions_found_faithful():
    assert tables.clean_noise([]) == 1.0
    assert tables.clean_noise([row(), row(verdict="deviates", data_ratio_rms=50.0)]) == 1.5


@pytest.mark.parametrize(
    ("clean", "known", "planted", "bad"),
    [
        ([row()], [], [fault()], False),
        ([row(verdict="not converted")], [], [], False),
        ([row(verdict="deviates")], [], [], True),
        ([row(verdict="incomparable")], [], [], True),
        ([row(verdict="flaky")], [], [], True),
        ([], [row(verdict="deviates")], [], False),
        ([], [row(verdict="faithful")], [], True),
        ([], [], [fault(verdict="faithful", effect=1e-3, effect_ratio=9.0)], True),
        ([], [], [fault(verdict="not converted")], True),
        ([], [], [fault(verdict="faithful", effect=1e-6, effect_ratio=0.9)], False),
        ([], [], [fault(verdict="faithful", effect=1e-6, effect_ratio=1.2)], True),
        ([row()], [], [fault(verdict="faithful", effect=1e-6, effect_ratio=1.2)], False),
        ([], [], [fault(verdict="incomparable")], True),
        ([], [], [fault(verdict="faithful", effect=0.0)], False),
        ([], [], [fault(fault="other padding", verdict="faithful", effect=1e-3)], False),
    ],
)
def test_exit_code(clean, known, planted, bad):
    assert noise_floor.failed(clean, known, planted) is bad


def test_the_page_counts_what_happened():
    clean = [row(seed=seed, data_ratio_rms=float(seed)) for seed in range(10)]
    clean.append(row(seed=99, verdict="deviates", reason="a | b", data_ratio_rms=70.0))
    clean.append(row(seed=98, verdict="not converted", reason="no such operator"))
    planted = [
        fault(),
        fault(data_ratio_rms=90.0),
        fault(verdict="faithful", effect=0.0),
        fault(verdict="faithful", effect=0.1),
    ]
    page = tables.report(clean, [row(verdict="deviates", reason="batch")], planted, "--seed 5")
    assert "noise_floor.py --seed 5`" in page
    assert "11 clean conversions of 11 models, 1 false alarms" in page
    assert "| torch: torch-dynamo | 11 | 1 | 5 |" in page
    assert "| dropped bias | 4 | 0 | 1 | 0 | 1 | 2 | 9 |" in page
    assert "a \\| b" in page
    assert "no such operator" in page
    assert "| no effect |" in page
    assert "| missed |" in page
    assert "### Known faults of converters" in page


def test_rows_are_kept_and_reused_only_for_the_same_code(tmp_path):
    class Counting:
        calls = 0

        def run(self, trial):
            self.calls += 1
            return row(key=trial.key)

    trial = Trial(framework="torch", kind="residual", seed=0, route="torch-dynamo")
    path, counting = tmp_path / "deep" / "rows.jsonl", Counting()
    rows = noise_floor.Rows(path, reuse=False)
    assert rows.get(counting, trial) == rows.get(counting, trial)
    assert counting.calls == 1
    noise_floor.Rows(path, reuse=False).get(counting, trial)
    assert counting.calls == 1
    old = {**json.loads(path.read_text()), "code": "of another day"}
    path.write_text(json.dumps(old) + "\n" + '{"key": "cut of')
    assert noise_floor.Rows(path, reuse=True).known.keys() == {trial.key}
    noise_floor.Rows(path, reuse=False).get(counting, trial)
    assert counting.calls == 2
    noise_floor.Rows(path, reuse=False).get(counting, trial)
    assert counting.calls == 2, "the row written after a cut line must be readable"


def test_the_plan_has_enough_different_clean_trials():
    found = [trial for _, trial in zip(range(300), plan.clean(0), strict=False)]
    assert len({trial.key for trial in found}) == 300
    deep = [trial for trial in found if (trial.framework, trial.kind) in plan.DEEP]
    assert {trial.kind for trial in deep} == {kind for _, kind in plan.DEEP}
    assert all(trial.seed == 0 for trial in deep)


def test_known_faults_are_named_by_the_last_step():
    trial = Trial(framework="torch", kind="lstm", seed=0, route="torch-dynamo,onnx2tf-tflite")
    assert "batch" in plan.known_fault(trial)
    assert plan.known_fault(Trial(framework="torch", kind="lstm", seed=0, route="torch-dynamo")) == ""
