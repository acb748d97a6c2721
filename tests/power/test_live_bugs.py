"""The silent faults of released converters, found with generated inputs; and what must not be called a fault."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import live_bugs

from trueport.session import Session, Settings

QUICK = {"T1", "T3-put", "T7-lengths", "T15", "T17", "T20", "O3", "R1-optimizer", "P1", "batchnorm-fusion"}
"""Rows of the normal run: those whose toolchains, torch and onnx, start fast."""


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=300)) as session:
        yield session


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("live")


@pytest.mark.parametrize(
    "bug",
    [pytest.param(bug, id=bug.id, marks=[] if bug.id in QUICK else pytest.mark.slow) for bug in live_bugs.BUGS],
)
def test_row(session, folder, bug):
    outcome, reason = live_bugs.outcome_of(session, bug, folder)
    assert outcome in bug.expected.split(), reason
    assert bug.words in reason


def test_the_rows_hold_both_faults_and_sound_conversions():
    """A comparison that always says the same passes neither half."""
    counted = Counter(bug.expected for bug in live_bugs.BUGS)
    assert counted["deviates"] >= 18
    assert counted["faithful"] >= 10
    assert len({bug.id for bug in live_bugs.BUGS}) == len(live_bugs.BUGS)
    assert {bug.id for bug in live_bugs.BUGS} >= QUICK
