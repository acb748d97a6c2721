"""The real faults of released converters, repaired; the table that measures it."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from trueport.session import Session, Settings


def bench_module():
    """The benchmark of the same name."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "repair_cases.py"
    spec = importlib.util.spec_from_file_location("repair_cases", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


BENCH = bench_module()
QUICK = {"P1"}
"""Rows of the normal run."""
COMMAND = {"onnxscript-old", "litert-int8"}
"""Rows that no edit mends, but another tool, option or version does. A conversion that fails leaves nothing to edit, and
the ranges that litert-torch averages over the samples of its calibration stand in every grid of the file."""
NOT_MENDED: dict[str, str] = {}
"""Row -> why it is not mended. A row that is mended now must leave this table."""
BY_MEANING = {"R1"}
"""Rows whose source its own runtime computes wrongly."""


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=300)) as session:
        yield session


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("repaired")


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.id, marks=[] if row.id in QUICK else pytest.mark.slow) for row in BENCH.faults()],
)
def test_row(session, folder, row):
    case = BENCH.run(session, row, folder)
    assert case.before != "faithful"
    if row.id in NOT_MENDED:
        assert not case.mended, f"{row.id} is mended now: take it out of NOT_MENDED"
        assert case.how == BENCH.NOT, "what is not faithful must not be called repaired"
        assert case.reasons, "a miss says why"
        return
    assert case.mended, (case.how, case.fresh, case.reasons, case.tried)
    assert case.how == (BENCH.ELSEWHERE if row.id in COMMAND else BENCH.IN_FILE)
    if case.how == BENCH.ELSEWHERE:
        assert case.command.startswith("trueport convert ")
        assert str(folder) not in case.command
    else:
        assert case.edits
        assert len(case.edits) <= 4, "a single operator is at fault"
        assert any("stays flaky" in edit for edit in case.edits) is (row.id in BY_MEANING)


# -- the table -----------------------------------------------------------------------------------------------------------


def test_the_tables_name_rows():
    ids = {row.id for row in BENCH.faults()}
    assert len(ids) == 37
    assert ids >= QUICK | COMMAND | set(NOT_MENDED)
    assert not COMMAND & set(NOT_MENDED)
    assert len(NOT_MENDED) <= 0.1 * len(ids), "nine of ten must be mended"
    assert not any(row.negative for row in BENCH.faults())


def case(id="T1", **facts):
    given = {"model": "torch shift", "converter": "tool 1.0", "before": "deviates", "seconds": 3.4}
    return BENCH.Case(**{"id": id, **given, **facts})


MENDED = case(how=BENCH.IN_FILE, edits=("set-attribute at n: a → b (c)",), fresh="faithful")
SWITCHED = case("T2", how=BENCH.ELSEWHERE, command="trueport convert a --to onnx", fresh="faithful")
WRONG = case("T3", how=BENCH.IN_FILE, edits=("remove-node at n: a → b (c)",), fresh="deviates")
LEFT = case("T4", reasons={"LH attributes": "all | agree"})


@pytest.mark.parametrize(("given", "mended"), [(MENDED, True), (SWITCHED, True), (WRONG, False), (LEFT, False)])
def test_mended_is_what_is_faithful_on_inputs_that_nobody_saw(given, mended):
    assert given.mended is mended


def test_the_figures_tell_what_was_called_repaired_and_is_not():
    assert list(BENCH.figures([MENDED, SWITCHED, WRONG, LEFT]).values()) == [4, 1, 1, 2, 1]


def test_the_page_shows_edits_commands_and_reasons():
    text = BENCH.page([MENDED, SWITCHED, WRONG, LEFT])
    assert "set-attribute at n: a → b (c)" in text
    assert "`trueport convert a --to onnx`" in text
    assert "| T4 | LH attributes: all \\| agree |" in text
    assert "| T3 |" in text.split("## Not mended")[1], "what is not faithful is no repair"
    assert "| T1 |" not in text.split("## Not mended")[1]


def test_a_page_without_misses_has_no_such_section():
    assert "## Not mended" not in BENCH.page([MENDED, SWITCHED])


def test_cases_are_read_back_as_they_were_and_the_last_of_a_row_counts(tmp_path):
    file = tmp_path / "cases.jsonl"
    lines = [LEFT, MENDED, replace(LEFT, seconds=9.0)]
    file.write_text("".join(json.dumps(asdict(one)) + "\n" for one in lines), encoding="utf-8")
    known = BENCH.stored(file)
    assert known == {"T4": replace(LEFT, seconds=9.0), "T1": MENDED}
    assert BENCH.stored(tmp_path / "none") == {}
    assert BENCH.stored(None) == {}


def test_rows_that_were_not_run_again_stay_as_the_page_has_them(tmp_path):
    ids = [row.id for row in BENCH.faults()[:4]]
    before = [replace(one, id=name) for one, name in zip((MENDED, SWITCHED, WRONG, LEFT), ids, strict=True)]
    file = tmp_path / "page.md"
    file.write_text(BENCH.page(before), encoding="utf-8")
    known = BENCH.shown(file)
    assert list(known) == ids
    assert BENCH.page(list(known.values())) == BENCH.page([replace(one, seconds=3.0) for one in before])
    assert [one.mended for one in known.values()] == [True, True, False, False]
    assert known[ids[3]].reasons == {"LH attributes": "all | agree"}
    assert BENCH.shown(tmp_path / "none.md") == {}


def test_a_result_by_a_copy_of_the_source_is_verified_by_that_copy(monkeypatch):
    seen = []
    monkeypatch.setattr(
        BENCH, "verified", lambda session, source, target: seen.append(source) or SimpleNamespace(verdict="faithful")
    )
    after = SimpleNamespace(source=SimpleNamespace(path=Path("copy.onnx")))
    for settled in ("", "judged by copy.onnx"):
        made = SimpleNamespace(artifact="fixed.onnx", after=after, settled=settled)
        assert BENCH.fresh(None, Path("source.onnx"), made) == "faithful"
    assert seen == [Path("source.onnx"), Path("copy.onnx")]


def test_long_values_are_cut():
    assert len(BENCH._short("x" * 500)) == BENCH.LENGTH
    assert BENCH._short(" a\n b ") == "a b"
