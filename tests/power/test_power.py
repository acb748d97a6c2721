"""The power of the diagnosis: planted faults are found, at the right node and with the right cause, and nothing else is.

A few faults run with the normal tests; the whole benchmark, with the floors of the acceptance, is slow.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from trueport.session import Session, Settings
from trueport.testing.planter import Planted

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import power_pairs  # noqa: E402
import power_tables  # noqa: E402

import power  # noqa: E402

SLICE = (
    ("keras → onnx", "residual", ("weight_noise_10", "activation_extra", "one_weight")),
    ("keras → tflite", "depthwise", ("kernel_flipped", "bias_noise", "weight_noise_30")),
    ("torch → onnx, dynamo", "transformer", ("matrix_transposed", "scale_noise", "cast_island")),
    ("tflite → onnx", "residual", ("dilation", "bias_collision", "input_scale")),
)
"""Pair, model, kinds: other planters' kinds have the names that they give them."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("power")
    with Session(Settings(timeout=300)) as session:
        yield power.Bench(
            session, power_pairs.Workshop(session, folder / "models"), folder / "cases.jsonl", verbose=True
        )


def ground_of(bench, name, model):
    pair = next(pair for pair in power_pairs.PAIRS if pair.name == name)
    module = next(module for module, kind in bench.workshop.models(pair.zoo) if kind == model)
    made = bench.ground(pair, module, model)
    assert not isinstance(made, str), made
    return made


@pytest.mark.parametrize(("name", "model", "kinds"), SLICE, ids=[f"{name}, {model}" for name, model, _ in SLICE])
def test_faults_are_found_where_they_are(bench, name, model, kinds):
    ground = ground_of(bench, name, model)
    for kind in kinds:
        assert bench.single(ground, kind, 0), f"{kind} cannot be planted, or does not show"
        case = bench.cases[f"single|{name}|{model}|{kind}|0"]
        assert case["detected"], power_tables.details(case)
        assert case["top1"], power_tables.details(case)
        assert case["spurious"] == 0, power_tables.details(case)


def test_a_clean_pair_has_no_suspects(bench):
    bench.clean(ground_of(bench, "keras → onnx", "residual"))
    case = bench.cases["clean|keras → onnx|residual"]
    assert (case["verdict"], case["suspects"]) == ("faithful", [])


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_the_whole_table_keeps_its_floors(tmp_path):
    with Session(Settings(timeout=600)) as session:
        whole = power.Bench(session, power_pairs.Workshop(session, tmp_path / "models"), tmp_path / "cases.jsonl", True)
        common = {"pairs": "", "models": "", "kinds": "", "seed": 7}
        for more in (
            {"limit": 4, "clean": False, "multi": False},
            {"limit": 1, "clean": True, "multi": False},
            {"limit": 1, "clean": False, "multi": True},
        ):
            power.run(whole, argparse.Namespace(**common, **more))
    sums = power_tables.totals(whole.cases.values())
    assert sums["single"] >= 300
    assert sums["pairs"] >= 6
    assert sums["models"] >= 8
    assert sums["clean"] >= 60
    assert sums["several"] >= 60
    assert power_tables.below_floor(whole.cases.values()) == []


# -- how cases are judged and added up ----------------------------------------------------------------------------------


def fault(*nodes, cause="parameters", also=()):
    return Planted(
        path=Path("x"),
        kind="k",
        row="WB",
        cause=cause,
        cause_also=also,
        nodes=nodes,
        what="",
        source_value=0,
        target_value=1,
    )


def suspect(*nodes, cause="parameters"):
    return {"target_nodes": list(nodes), "cause": cause}


@pytest.mark.parametrize(
    ("suspects", "expected"),
    [
        ([suspect("a", "b")], (True, True, True, 0)),
        ([suspect("b", "a")], (False, True, True, 0)),
        ([suspect("b", "c", "d", "a")], (False, False, True, 0)),
        ([suspect("b"), suspect("c"), suspect("a")], (False, True, True, 2)),
        ([suspect("a", cause="structure")], (True, True, False, 0)),
        ([], (False, False, False, 0)),
    ],
)
def test_one_fault_is_judged_by_the_ranking_that_a_reader_sees(suspects, expected):
    judged = power._judged(suspects, [fault("a")], True)
    assert tuple(judged[name] for name in ("top1", "top3", "cause_right", "spurious")) == expected


def test_a_cause_in_other_words_counts_but_is_told_apart():
    judged = power._judged([suspect("a", cause="structure")], [fault("a", also=("structure",))], True)
    assert (judged["cause_right"], judged["cause_exact"]) == (True, False)


@pytest.mark.parametrize(
    ("suspects", "found"),
    [
        ([suspect("a"), suspect("b")], 2),
        ([suspect("a", "b")], 1),  # one suspect accounts for one fault
        ([suspect("a", "b"), suspect("a")], 2),  # the first for b, so that the second can stand for a
        ([suspect("x", "y", "z", "a"), suspect("b")], 1),
        ([suspect("c")], 0),
    ],
)
def test_each_of_several_faults_needs_a_suspect_of_its_own(suspects, found):
    judged = power._judged(suspects, [fault("a"), fault("b")], True)
    assert judged["own"] == found


def test_neighbouring_faults_may_be_named_by_one_suspect_and_numbers_may_move():
    assert power._judged([suspect("z", "a", "b")], [fault("a"), fault("b")], True)["found"] == 2
    assert power._judged([suspect("w", "x", "y", "a")], [fault("a"), fault("b")], True)["found"] == 0
    assert power._judged([suspect("7:a")], [fault("5:a"), fault("b")], True)["found"] == 1


def single(**more):
    case = {
        "mode": "single", "pair": "p", "model": "m", "names": True, "kind": "k", "row": "WB", "effective": True,
        "detected": True, "top1": True, "top3": True, "cause_right": True, "cause_exact": True, "spurious": 0,
    }  # fmt: skip
    return case | more


def test_totals_leave_out_what_does_not_show():
    cases = [single(), single(effective=False, detected=False, top1=False), single(top1=False, spurious=2)]
    sums = power_tables.totals(cases)
    assert (sums["single"], sums["ineffective"], sums["detected"], sums["top1"]) == (2, 1, 1.0, 0.5)
    assert sums["spurious"] == 2


def test_floors_are_missed_in_words():
    good = [single() for _ in range(200)]
    assert power_tables.below_floor(good) == []
    assert power_tables.below_floor([*good, *(single(detected=False) for _ in range(2))]) == []
    assert power_tables.below_floor([*good, *(single(detected=False) for _ in range(3))]) == ["detected 0.985 < 0.99"]
    several = {"mode": "several", "faults": [1, 2], "found": 1, "spurious": 0, "pair": "p", "model": "m"}
    assert power_tables.below_floor([several]) == ["several 0.000 < 0.85"]
    clean = {"mode": "clean", "verdict": "faithful", "suspects": [{}], "pair": "p", "model": "m"}
    assert power_tables.below_floor([clean]) == ["1 false suspects on clean pairs"]


def test_a_hundred_percent_is_exactly_that():
    nearly = [single() for _ in range(4999)] + [single(top1=False)]
    shown = power_tables.table("row", nearly, lambda case: case["row"])
    assert shown[2] == "| WB | 5000 | 100 % | 99.9 % (4999) | 100 % | 100 % | 0 |"


def test_the_page_shows_every_table(tmp_path):
    several = {"mode": "several", "faults": [1, 2], "found": 2, "own": 1, "spurious": 1, "pair": "p", "model": "m"}
    clean = {"mode": "clean", "verdict": "faithful", "suspects": [], "pair": "p", "model": "m"}
    page = power_tables.page([single(), single(kind="other", names=False), several, clean])
    for head in ("| pair |", "| names |", "| row |", "| model |", "| kind |", "| faults at once |"):
        assert head in page
    assert "2 of them show" in page
    assert "| 2 | 1 | 100.0 % (1) | 0.0 % (0) | 1 |" in page
    assert "false suspects: 0" in page


def test_cases_are_kept_and_not_run_again(tmp_path, bench):
    file = tmp_path / "cases.jsonl"
    first = power.Bench(bench.session, bench.workshop, file)
    first.keep({**single(), "key": "one", "seconds": 1.0})
    first.keep({**single(top1=False), "key": "two", "seconds": 1.0})
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**single(), "key": "crashed", "verdict": "crash"}) + "\n" + '{"key": "cut')
    assert set(power.Bench(bench.session, bench.workshop, file).cases) == {"one", "two"}
    assert set(power.Bench(bench.session, bench.workshop, file, again=True).cases) == {"one"}


def test_kinds_that_were_planted_least_come_first():
    from collections import Counter

    kinds = ["a", "b", "c", "d"]
    found = power.order(kinds, Counter({"a": 2, "c": 1}), 3)
    assert set(found[:2]) == {"b", "d"}
    assert found[2:] == ["c", "a"]
    assert len({tuple(power.order(kinds, Counter(), seed)) for seed in range(20)}) > 5


def test_the_zoos_list_their_models_without_being_run(tmp_path):
    file = tmp_path / "zoo.py"
    file.write_text("import nowhere\nKINDS = ('one', 'two')\n")
    assert power_pairs.listed(file) == ["one", "two"]
    file.write_text("BUILDERS = {'three': None, 'four': 4}\nKINDS = tuple(BUILDERS)\n")
    assert power_pairs.listed(file) == ["three", "four"]
