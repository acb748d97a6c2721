"""The benchmarks' own code: ratios, tables, exit codes, recorded passes, and each benchmark on something tiny. No timings are judged."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trueport.session import Session

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """load(name) -> a module of the benchmarks' folder, which imports its neighbours by plain names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("harness", "speed", "memory", "run")
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)


# -- ratios and rows


def test_a_row_is_judged_by_its_median(load):
    row = functools.partial(load("harness").Row, name="x", bound=1.15)
    assert not row(values=(1.0, 1.15, 9.0)).missed
    assert row(values=(1.0, 1.16, 1.16)).missed
    assert row(values=(float("nan"),)).missed, "what could not be measured is not met"
    assert not load("harness").Row(name="x", values=(99.0,)).missed, "a row without a bound is for information"


def test_a_row_prints_its_median_spread_bound_and_mark(load):
    text = load("harness").Row(name="convert", values=(1.0, 2.0, 3.0), bound=1.5, note="why").text()
    assert text.split() == ["convert", "2", "(1..3)", "<=", "1.5", "MISSED", "why"]
    assert load("harness").Row(name="x", values=(0.5,), unit=" s").text().split() == ["x", "0.5", "s", "(one", "run)"]


def test_both_sides_take_turns_in_going_first(load):
    harness, order = load("harness"), []

    def side(name, wall):
        order.append(name)
        return harness.Cost(wall, wall / 2)

    pairs = harness.pairs_of(lambda: side("ours", 3.0), lambda: side("floor", 2.0), 3)
    assert order == ["ours", "floor", "floor", "ours", "ours", "floor"]
    assert [(ours.wall, floor.wall) for ours, floor in pairs] == [(3.0, 2.0)] * 3


def test_the_ratio_is_ours_over_the_floor_and_names_processor_time(load):
    harness = load("harness")
    pairs = [(harness.Cost(3.0, 8.0), harness.Cost(2.0, 4.0)), (harness.Cost(1.0, 2.0), harness.Cost(2.0, 1.0))]
    row = harness.row("x", pairs, bound=1.0)
    assert row.values == (1.5, 0.5)
    assert "2.00 s / 2.00 s; in processor time 2.00" in row.note


def test_cost_counts_the_processor_time_of_children(load):
    harness = load("harness")
    busy = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.3: pass\nprint(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        found = harness.cost(child.stdout.readline)
        child.stdin.close()
    assert found.cpu >= 0.25, "a lower bound that no machine can beat: the child burnt 0.3 s"
    assert found.wall >= 0.25


# -- the command line


@pytest.mark.parametrize(("values", "missed"), [((1.0, 1.0), 0), ((1.0, 2.0), 1), ((2.0, 2.0), 2)])
def test_show_counts_what_missed(load, capsys, values, missed):
    row = load("harness").Row
    assert load("run").show(row(name="x", values=(value,), bound=1.5) for value in values) == missed
    assert ("every bound is met" in capsys.readouterr().out) == (missed == 0)


def test_exit_code_is_1_when_a_bound_is_missed(load, monkeypatch, tmp_path):
    run, row = load("run"), load("harness").Row
    monkeypatch.setattr(run.speed, "start", lambda repeats: [row(name="x", values=(repeats,), bound=2.0)])
    assert run.main(["--only", "start", "--repeats", "2", "--folder", str(tmp_path)]) == 0
    assert run.main(["--only", "start", "--repeats", "3", "--folder", str(tmp_path)]) == 1


def test_every_part_can_be_asked_for(load, tmp_path):
    run, speed = load("run"), load("speed")
    with speed.bench(tmp_path, 1) as bench:
        assert tuple(run.parts(bench)) == run.PARTS
    with pytest.raises(SystemExit):
        run.options(["--only", "nonsense"])


def test_start_measures_three_processes(load):
    rows = list(load("speed").start(1))
    assert [row.name for row in rows] == ["import trueport", "trueport --help", "(python -c pass)"]
    assert [row.bound for row in rows] == [0.3, None, None]
    assert all(len(row.values) == 5 and min(row.values) > 0 for row in rows)


# -- data and recorded passes


def test_images_are_structured_bounded_and_seeded(load):
    images = load("harness").images
    made = images(2, 64, seed=1)
    assert made.shape == (2, 64, 64, 3)
    assert made.dtype == np.float32
    assert np.abs(made).max() == 1.0
    assert np.array_equal(made, images(2, 64, seed=1))
    assert not np.array_equal(made, images(2, 64, seed=2))
    steps = np.abs(np.diff(made, axis=1)).mean()
    assert steps < 0.5 * np.abs(made - made[:, ::-1]).mean(), "neighbours are more alike than strangers"


def test_the_recorder_keeps_what_was_asked_of_each_side(load, tmp_path):
    harness = load("harness")
    asked = []
    with Session() as session:
        original = session.pool.call
        session.pool.call = lambda *given, **rest: asked.append(given[2])
        recorder = harness.Recorder(session, tmp_path)
        inputs = {"x": np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)}
        with recorder.recording():
            arguments = {"precision": "float64", "variant": "default", "cases": {"data": inputs}}
            session.pool.call(Path("python"), "trueport.frameworks.keras", "run", arguments, stage=None)
            session.pool.call(Path("python"), "trueport.frameworks.keras", "signature", {}, stage=None)
        session.pool.call = original
    assert asked == ["run", "signature"], "a recorded call is still made"
    (request,) = recorder.requests["keras"]
    assert (request["precision"], request["variant"]) == ("float64", "default")
    assert np.array_equal(np.load(request["cases"]["data"]["x"]), inputs["x"])
    assert recorder.count("keras") == (2, 6)
    assert recorder.count("tflite") == (0, 0)


def test_the_plain_script_imports_nothing_of_ours_and_answers_by_line():
    text = (FOLDER / "plain.py").read_text(encoding="utf-8")
    assert "import trueport" not in text
    assert "from trueport" not in text
    done = subprocess.run([sys.executable, "-I", str(FOLDER / "plain.py")], input="", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_peak_is_of_this_process_in_megabytes(load):
    memory = load("memory")
    before = memory.peak_mb()
    held = np.ones(100_000_000 // 8)
    assert memory.peak_mb() >= 100.0
    assert before > 5.0
    del held


# -- the benchmarks themselves, tiny


@pytest.mark.slow
def test_the_passes_of_the_floor_are_those_of_verify(load, tmp_path):
    speed = load("speed")
    with speed.bench(tmp_path, 1) as bench:
        (row,) = speed.verification(bench, samples=8, size=32)
        assert len(row.values) == 1
        assert "source 6 kinds, 40 calls" in row.note, "4 runs and 4 of batch 1 six times; other kernels skip batch 1"
        assert not bench.scripts, "the scripts have ended"


@pytest.mark.slow
def test_conversions_give_a_bound_row_and_one_for_information(load, tmp_path):
    speed = load("speed")
    case = next(case for case in speed.CONVERSIONS if case.floor == "tflite_keras")
    with speed.bench(tmp_path, 1) as bench:
        rows = list(speed.conversions(bench, (case,), size=32))
    assert [row.bound for row in rows] == [1.15, None, None]
    assert "--no-verify" in rows[0].name
    assert "with verification" in rows[2].name
    assert (tmp_path / "plain.tflite").read_bytes()[4:8] == b"TFL3"
    assert (tmp_path / "ours.tflite").read_bytes()[4:8] == b"TFL3"


@pytest.mark.slow
def test_memory_reports_the_parent_alone(load, tmp_path):
    (row,) = load("memory").peak(tmp_path, name="MobileNetV2", size=32, samples=4)
    assert row.bound == 300.0
    assert 20.0 < row.median < 2000.0
    assert "faithful" in row.note
    json.dumps(row.values)
