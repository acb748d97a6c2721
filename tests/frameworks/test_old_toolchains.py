"""The table of the studies' converters: complete, true to what running gives, and never in the planner's way."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from trueport.envs import toolchains
from trueport.errors import UsageError
from trueport.routes import HISTORIC, parse_route, plan, steps
from trueport.session import Session, Settings

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import old_toolchains  # noqa: E402

TOOLS = {"tf2onnx", "onnx2keras", "onnxmltools", "tflite2onnx", "onnx-tf", "MMdnn"}
OUTCOMES = {
    "faithful",
    "deviates",
    "incomparable",
    "unsupported",
    "raised",
    "not-installed",
    "invalid-output",
    "crashed",
}


def rows():
    return tomllib.loads(old_toolchains.TABLE.read_text(encoding="utf-8"))["trial"]


def old_steps():
    return {name: step for name, step in steps().items() if step.rank >= HISTORIC}


def test_every_tool_of_the_studies_has_a_row_with_an_outcome_and_a_reason():
    assert {row["tool"] for row in rows()} == TOOLS
    for row in rows():
        assert row["outcome"] in OUTCOMES, row
        assert len(row["reason"]) > 10, row
        assert any("==" in version for version in row["versions"]), row


def test_the_table_is_of_the_trials_and_the_toolchains_that_there_are():
    tried = [(trial.tool, trial.step, trial.options, trial.model) for trial in old_toolchains.TRIALS]
    shown = [(row["tool"], row["step"], row["options"], row["model"]) for row in rows()]
    assert shown == [*tried, ("MMdnn", "", "", "keras2")]
    assert {row["step"] for row in rows() if row["step"]} == set(old_steps())
    for row in rows():
        if row["step"]:
            toolchain = toolchains()[old_steps()[row["step"]].toolchain]
            assert row["versions"] == list(toolchain.requirements)
            assert toolchain.lock, f"{toolchain.name} has no lock"


@pytest.mark.parametrize("step", sorted(old_steps()))
def test_an_old_step_runs_where_it_is_named_and_nowhere_else(step):
    known = steps()[step]
    assert parse_route(step).name == step
    for legacy in (False, True):
        for route in plan(known.source_format, known.target_format, legacy_keras=legacy):
            assert all(hop.step.rank < HISTORIC for hop in route.hops), route.name


def test_an_unknown_old_step_is_told():
    with pytest.raises(UsageError, match="no conversion step 'old-mmdnn'"):
        parse_route("old-mmdnn")


def test_the_table_is_written_as_it_is_read():
    assert tomllib.loads(old_toolchains.written(rows()))["trial"] == rows()
    assert old_toolchains.TABLE.read_text(encoding="utf-8") == old_toolchains.written(rows())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "trial", old_toolchains.TRIALS, ids=lambda trial: f"{trial.step}-{trial.model}-{trial.options}"
)
def test_a_trial_ends_as_the_table_says(trial):
    expected = next(
        row for row in rows() if (row["step"], row["model"], row["options"]) == (trial.step, trial.model, trial.options)
    )
    with Session(Settings(timeout=300, trust=True)) as session:
        outcome, reason = old_toolchains.attempt(session, trial)
    assert outcome == expected["outcome"], reason
