"""The real faults of released converters, diagnosed from bare files; the table that measures it; what is judged right."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import real_cases
from real_cases import ROWS, Result

from trueport.compare.types import Comparison, Verdict, Verification
from trueport.diagnosis.known_data import entries
from trueport.diagnosis.types import Cause, Diagnosis, KnownIssue, Stage, Suspect
from trueport.routes import parse_options, parse_route
from trueport.session import Session, Settings


def page_module():
    """The benchmark of the same name."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "real_cases.py"
    spec = importlib.util.spec_from_file_location("real_cases_page", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = page_module()
QUICK = {"T1", "P1", "batchnorm-fusion"}
"""Rows of the normal run: each of another kind, in toolchains that start fast and are the locked ones."""
SHORT_OF = {
    "R1": "the source's own runtime is wrong, so the verdict is flaky, and of a flaky pair no place is looked for",
    "onnxscript-tied": "both convolutions compute the same in the source, so the scaled weight passes for a fold of the other",
}
"""Row -> what is not right yet. A row that has become right must leave this table."""


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=300)) as session:
        yield session


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("real")


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.id, marks=[] if row.id in QUICK else pytest.mark.slow) for row in ROWS]
)
def test_row(session, folder, row):
    result, _ = real_cases.run(session, row, folder)
    if row.id in SHORT_OF:
        assert not result.all_right, f"{row.id} is right now: take it out of SHORT_OF"
        return
    assert result.all_right, result.text
    assert result.step is not False, result.text


# -- the rows --------------------------------------------------------------------------------------------------------


def test_the_rows_ask_for_what_exists():
    ids = [row.id for row in ROWS]
    known = {entry.id for entry in entries()}
    assert len(set(ids)) == len(ids)
    assert set(ids) >= QUICK | set(SHORT_OF)
    for row in ROWS:
        assert row.issue is None or row.issue in known
        assert row.route or row.twin
        if row.route:
            parse_route(row.route, precision=row.precision, options=parse_options(row.options))


def test_every_fault_says_what_is_true_of_it():
    for row in ROWS:
        if row.negative:
            assert row.issue is None
        elif row.expected in ("deviates", "flaky"):
            assert row.places, row.id
            assert row.causes, row.id
            assert row.issue, row.id
        else:
            assert row.issue, row.id


def test_there_are_enough_rows_of_either_kind():
    faults = [row for row in ROWS if not row.negative]
    assert len(faults) >= 30
    assert len(ROWS) - len(faults) >= 9
    assert len({row.issue for row in faults}) >= 22
    assert len(SHORT_OF) <= 0.1 * len(faults), "nine of ten must be right"


def test_the_bugs_of_the_data_that_no_row_shows_are_few_and_named():
    """Each of these has a reason: its tool version is not built here, it cannot be reached by a conversion of ours, or its tool
    has no planter and stands among the live bugs alone (TVM, ExecuTorch)."""
    shown = {row.issue for row in ROWS}
    assert {entry.id for entry in entries()} - shown == {
        "executorch-22851",
        "tvm-antialias",
        "tvm-torch-alpha",
        "tvm-torch-divisor",
        "tvm-torch-nearest",
        "tvm-torch-negative-index",
        "tvm-torch-selu",
        "keras2-groups",
        "onnx2tf-int8-fill",
        "onnx2torch-cumsum",
        "onnx2torch-opset",
        "onnxscript-2879",
        "onnxscript-onnx-ir-1.1",
        "tensorflow-61150",
        "tf2onnx-tfl-operator",
    }


# -- judging ---------------------------------------------------------------------------------------------------------


def diagnosis(
    verdict="deviates", operator="Div", cause=Cause.STRUCTURE, issue="pytorch-191014", step="torch-torchscript"
):
    comparison = Comparison(
        verdict=Verdict(verdict), reason="", outputs=(), unpaired_source=(), unpaired_target=(), decisions=None
    )
    verification = Verification(
        comparison=comparison,
        source=None,
        target=None,
        inputs={},
        declared_precision="float32",
        versions={},
        timings={},
        rerun=(),
    )
    suspect = Suspect(
        rank=1,
        target_nodes=("n",),
        source_nodes=(),
        accumulated=1.0,
        local=1.0,
        causal=1.0,
        cause=cause,
        what="",
        source_value=None,
        target_value=None,
        confidence=1.0,
        operator=operator,
    )
    known = KnownIssue(id=issue, url="", fixed_in=None, summary="", cure="") if issue else None
    return Diagnosis(
        verification=verification,
        suspects=(suspect,) if operator else (),
        stage=Stage(hop=0, step=step) if step else None,
        known_issue=known,
    )


def row_of(name):
    return next(row for row in ROWS if row.id == name)


def answers(result):
    return result.detected, result.place, result.cause, result.issue, result.step


def test_a_right_diagnosis_is_right():
    result = real_cases.judge(row_of("T1"), diagnosis())
    assert answers(result) == (True, True, True, True, True)
    assert result.all_right


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"verdict": "faithful"}, 0),
        ({"operator": "Mul"}, 1),
        ({"operator": ""}, 1),
        ({"cause": Cause.PARAMETERS}, 2),
        ({"issue": "pytorch-78442"}, 3),
        ({"issue": None}, 3),
        ({"step": "torch-dynamo"}, 4),
        ({"step": None}, 4),
    ],
)
def test_what_is_wrong_counts_as_wrong(change, wrong):
    result = real_cases.judge(row_of("T1"), diagnosis(**change))
    assert answers(result)[wrong] is False
    assert result.all_right is (wrong == 4), "the step is asked for beside place, cause and bug"


@pytest.mark.parametrize(
    "change", [{}, {"operator": ""}, {"step": None}, {"issue": None}, {"operator": "", "issue": None}]
)
def test_a_sound_conversion_on_which_anything_is_blamed_is_wrong(change):
    row = row_of("T1-sound")
    assert not real_cases.judge(row, diagnosis(verdict="faithful", **change)).all_right
    quiet = diagnosis(verdict="faithful", operator="", issue=None, step=None)
    assert real_cases.judge(row, quiet).all_right


def test_other_weights_must_be_called_so_and_no_step_blamed():
    row = row_of("other-weights")
    told = diagnosis(operator="Conv", cause=Cause.PARAMETERS, issue=None, step=None)
    assert not real_cases.judge(row, told).all_right
    assert real_cases.judge(row, replace(told, explanation="The target holds different weights.")).all_right
    blamed = diagnosis(operator="Conv", cause=Cause.PARAMETERS, issue=None, step="torch-dynamo")
    assert real_cases.judge(row, blamed).step is False


# -- the page --------------------------------------------------------------------------------------------------------


def result(name="T1", detected=True, place=True, cause=True, issue=True, step=True):
    return Result(
        row=row_of(name), detected=detected, place=place, cause=cause, issue=issue, step=step, text="a | b\nc"
    )


def test_the_figures_count_faults_and_sound_rows_apart():
    counted = PAGE.figures([result(), result(place=False), result(detected=False), result("T1-sound")])
    assert counted["detected"] == (2, 3)
    assert counted["place"] == (1, 2)
    assert counted["place, cause and known bug"] == (1, 2)
    assert counted["not blamed on a converter"] == (1, 1)


def test_too_few_detected_named_or_a_wrong_blame_are_told():
    good = [result() for _ in range(9)]
    assert PAGE.missed([*good, result("T1-sound")]) == []
    assert "detected" in PAGE.missed([*good, *[result(detected=False)] * 2])[0]
    assert "place, cause" in PAGE.missed([*good, *[result(cause=False)] * 2])[0]
    assert "not blamed" in PAGE.missed([*good, result("T1-sound", place=False)])[0]
    assert PAGE.missed([*good, result(cause=False)]) == [], "nine of ten are enough"


def test_the_page_holds_every_row_and_every_case_that_is_not_rebuilt():
    text = PAGE.page([result(), result("N2-concat"), result("T1-sound")])
    assert "| T1 |" in text
    assert "| N2-concat¹ |" in text, "it was not a bare file"
    assert "a \\| b c" in text, "what was said stays in its cell"
    assert all(PAGE.cell(name) in text for name in real_cases.NOT_RUNNABLE)
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith(("| T1 |", "| row |"))}
    assert len(widths) == 1
