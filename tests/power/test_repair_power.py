"""What repair mends: planted faults are gone afterwards, on inputs that nobody saw, by edits where the fault is.

A few faults of every row run with the normal tests; the whole benchmark, with the floors of the acceptance, is slow.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from trueport.session import Session, Settings

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import power_pairs  # noqa: E402
import repair_power  # noqa: E402
import repair_tables  # noqa: E402

import power  # noqa: E402

SLICE = (
    ("torch → onnx, dynamo", "residual", ("weight_noise_10", "dilation", "input_mean", "activation_missing")),
    ("keras → tflite", "depthwise", ("bias_noise", "flatten_order", "fused_activation_clipped")),
    ("torch → onnx, dynamo", "transformer", ("cast_island", "reshape_for_transpose")),
)
"""Pair, model, kinds: every row of the taxonomy that can be planted."""

SEVERAL = ("torch → onnx, dynamo", "residual", 2, 5)
"""Pair, model, number of faults, seed."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repair")
    with Session(Settings(timeout=300)) as session:
        workshop = power_pairs.Workshop(session, folder / "models")
        yield repair_power.Bench(session, workshop, folder / "cases.jsonl", verbose=True)


def ground_of(bench, name, model):
    pair = next(pair for pair in power_pairs.PAIRS if pair.name == name)
    module = next(module for module, kind in bench.workshop.models(pair.zoo) if kind == model)
    made = bench.ground(pair, module, model)
    assert not isinstance(made, str), made
    return made


@pytest.mark.parametrize(("name", "model", "kinds"), SLICE, ids=[f"{name}, {model}" for name, model, _ in SLICE])
def test_planted_faults_are_mended_where_they_are(bench, name, model, kinds):
    ground = ground_of(bench, name, model)
    for kind in kinds:
        assert bench.single(ground, kind, 1), f"{kind} cannot be planted, or does not show"
        case = bench.cases[f"single|{name}|{model}|{kind}|1"]
        assert case["status"] == "repaired", repair_tables.details(case)
        assert case["fresh"] == "faithful", repair_tables.details(case)
        assert case["spurious"] == 0, repair_tables.details(case)


def test_two_faults_at_once_are_mended(bench):
    name, model, count, seed = SEVERAL
    ground = ground_of(bench, name, model)
    ground.kinds = ("weight_noise_30", "operator_repeated", "bias_dropped", "one_weight")
    assert bench.several(ground, count, seed)
    case = bench.cases[f"several|{name}|{model}|{count}|{seed}"]
    assert repair_tables.mended(case), repair_tables.details(case)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_the_whole_table_keeps_its_floors(tmp_path):
    with Session(Settings(timeout=600)) as session:
        workshop = power_pairs.Workshop(session, tmp_path / "models")
        whole = repair_power.Bench(session, workshop, tmp_path / "cases.jsonl", verbose=True)
        for more in ({"limit": 4, "multi": False}, {"limit": 1, "multi": True}):
            power.run(whole, argparse.Namespace(pairs="", models="", kinds="", seed=7, clean=False, **more))
    sums = repair_tables.totals(whole.cases.values())
    assert sums["single"] >= 300
    assert sums["several"] >= 60
    assert repair_tables.below_floor(whole.cases.values()) == []


# -- how cases are judged and added up ----------------------------------------------------------------------------------


def case_of(status="repaired", fresh="faithful", edits=1, spurious=0, mode="single", **more):
    made = {"mode": mode, "status": status, "fresh": fresh, "edits": [{"rule": "r"}] * edits, "spurious": spurious}
    return {
        **made, "effective": True, "pair": "a", "model": "m#1", "kind": "k", "format": "onnx", "row": "WB",
        "seconds": 4.0, "verify_seconds": 2.0, **more,
    }  # fmt: skip


def test_a_repair_counts_only_when_a_fresh_verification_agrees():
    assert repair_tables.mended(case_of())
    assert not repair_tables.mended(case_of(fresh="deviates"))
    assert not repair_tables.mended(case_of(status="improved", fresh=None))
    assert repair_tables.missed(case_of(spurious=1))


def test_floors_name_what_is_missed():
    good = [case_of() for _ in range(9)]
    assert repair_tables.below_floor([*good, case_of(status="unrepaired", fresh=None, edits=0)]) == []
    assert repair_tables.below_floor([*good, *[case_of(status="unrepaired", fresh=None, edits=0)] * 2])
    assert repair_tables.below_floor([*good, case_of(fresh="deviates")])
    assert any("spurious" in problem for problem in repair_tables.below_floor([*good, case_of(spurious=1)]))
    several = [case_of(mode="several", faults=[{}, {}], status="improved", fresh=None)] * 2
    assert any("several" in problem for problem in repair_tables.below_floor([*good, *several]))


def test_cost_is_told_in_times_of_one_verification():
    assert repair_tables.totals([case_of(), case_of(seconds=8.0)])["cost"] == 3.0


def test_the_page_shows_every_table():
    page = repair_tables.page([case_of(), case_of(mode="several", faults=[{}, {}])])
    for title in ("| pair |", "| format |", "| row |", "| kind |", "| faults at once |"):
        assert title in page
