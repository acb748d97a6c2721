"""Conversions on the fake framework: which route is kept, which hop is blamed, and what a failing tool does to the rest."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pipeline_models import ENTRY, hop, route, scale, trueport, write, write_changed

from trueport import api, conversion, publish, verification
from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.errors import UntrustedError, UsageError
from trueport.outcome import Failure, Kind, Ok, Stage
from trueport.session import Session, Settings


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=60)) as session:
        yield session


@pytest.fixture
def convert(session, tmp_path):
    """convert(route, ...) -> the Conversion of the model `write` makes, to `tmp_path/out.fake`."""

    def run(*routes, check=True, source=None, using=None, **more):
        active = using or session
        artifact = Artifact.open(source or write(tmp_path / "model.fake"))
        given = api.open_feeds(active, artifact, None)
        return conversion.convert(active, artifact, routes, given, out=tmp_path / "out.fake", check=check, **more)

    return run


def kinds(result):
    return [None if one.failure is None else str(one.failure.kind) for one in result.attempts]


def test_a_faithful_copy_is_kept_where_the_caller_said(convert, tmp_path):
    result = convert(route(""))
    assert result.verification.verdict == Verdict.FAITHFUL
    assert result.output == tmp_path / "out.fake"
    assert json.loads(result.output.read_text()) == json.loads((tmp_path / "model.fake").read_text())
    assert result.chosen.output.path == result.output
    assert result.verification.target.path == result.output
    assert result.chosen is result.attempts[0]


def test_the_second_hop_is_blamed_when_it_lies(convert):
    result = convert(route("", "perturb:30"))
    first, second = result.attempts[0].hops
    assert first.faithful is True
    assert first.against_previous is None, "the first hop's input is the source"
    assert second.verified.verdict == Verdict.DEVIATES
    assert second.against_previous.verdict == Verdict.DEVIATES
    assert result.attempts[0].blamed is second


def test_a_faithful_second_hop_is_not_blamed_for_the_first(convert):
    result = convert(route("perturb:30", ""))
    first, second = result.attempts[0].hops
    assert second.verified.verdict == Verdict.DEVIATES
    assert second.against_previous.verdict == Verdict.FAITHFUL
    assert result.attempts[0].blamed is first


def test_nobody_is_blamed_for_a_faithful_route(convert):
    assert convert(route("", "", "")).attempts[0].blamed is None


@pytest.mark.parametrize("trouble", ["raise", "unsupported", "perturb:30", "nothing", "crash"])
def test_the_next_route_is_tried(convert, trouble):
    result = convert(route(trouble), route(""))
    assert len(result.attempts) == 2
    assert result.chosen is result.attempts[1]
    assert result.verification.verdict == Verdict.FAITHFUL


def test_no_route_is_tried_after_a_faithful_one(convert):
    assert len(convert(route(""), route("crash")).attempts) == 1


def test_no_more_routes_are_tried_than_allowed(convert):
    result = convert(route("raise"), route("unsupported"), route(""), max_routes=2)
    assert kinds(result) == ["raised", "unsupported"]
    assert result.chosen is None


@pytest.mark.parametrize("order", [("perturb:40", "perturb:2"), ("perturb:2", "perturb:40")])
def test_of_several_deviating_routes_the_best_is_kept(convert, tmp_path, order):
    result = convert(*(route(one) for one in order))
    assert len(result.attempts) == 2
    assert result.chosen.hops[0].hop.options["misbehave"] == "perturb:2"
    weights = [
        np.array(json.loads(path.read_text())["constants"]["w1"]["data"])
        for path in (tmp_path / "model.fake", tmp_path / "out.fake")
    ]
    assert np.abs(weights[1] / weights[0]).max() == pytest.approx(1.02, rel=1e-4)


@pytest.mark.parametrize("worse", ["then:run=crash", "then:run=nan", "then:run=bad-model", "drop-output", "nan"])
def test_a_slightly_deviating_model_is_better_than_one_that_gives_nothing(convert, worse):
    result = convert(route(worse), route("perturb:2"))
    assert result.attempts[0].verification.verdict != Verdict.FAITHFUL
    assert result.attempts[1].verification.verdict == Verdict.DEVIATES
    assert result.chosen is result.attempts[1]


def test_nothing_is_left_when_no_route_succeeds(convert, tmp_path):
    result = convert(route("raise"), route("", "unsupported"))
    assert result.chosen is None
    assert result.output is None
    assert result.verification is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.fake"]


def test_what_stood_at_out_survives_a_failed_conversion(convert, tmp_path):
    (tmp_path / "out.fake").write_text("precious")
    convert(route("raise"))
    assert (tmp_path / "out.fake").read_text() == "precious"


def test_shared_hops_are_converted_once(convert):
    result = convert(route("perturb:1", "raise"), route("perturb:1", "unsupported"), route("perturb:1"))
    first = [one.hops[0] for one in result.attempts]
    assert first[0].outcome.value.path == first[1].outcome.value.path
    assert first[0] is first[1]
    assert kinds(result) == ["raised", "unsupported", None]


def test_hops_with_other_options_are_not_shared(convert):
    result = convert(route("perturb:1", "raise"), route("perturb:2", "raise"))
    assert result.attempts[0].hops[0].outcome.value.sha256 != result.attempts[1].hops[0].outcome.value.sha256


LIES_ON_DISK = {
    "nothing": "wrote nothing",
    "empty": "the file is empty",
    "garbage": "not a model of a known format",
    "half-written": "not a whole model",
    "folder": "not a model of a known format",
    "then:signature=raise": "its file does not load: ValueError",
    "then:signature=crash": "its file does not load",
    "then:signature=bad-model": "the file is damaged",
    "invalid-output": "unusable",
}


@pytest.mark.parametrize(("lie", "says"), LIES_ON_DISK.items(), ids=LIES_ON_DISK)
def test_a_claimed_success_that_does_not_load_is_invalid_output_of_the_conversion(convert, lie, says):
    failure = convert(route(lie)).attempts[0].failure
    assert (failure.stage, failure.kind) == (Stage.CONVERT, Kind.INVALID_OUTPUT)
    assert says in failure.message
    assert "fake-copy" in failure.message or lie == "invalid-output"


ENDS = {
    "raise": Kind.RAISED,
    "sys-exit": Kind.RAISED,
    "unsupported": Kind.UNSUPPORTED,
    "crash": Kind.CRASHED,
    "abort": Kind.CRASHED,
    "killed": Kind.CRASHED,
    "exit": Kind.CRASHED,
    "memory-error": Kind.OUT_OF_MEMORY,
    "missing-package": Kind.UNAVAILABLE,
    "bad-model": Kind.RAISED,
}


@pytest.mark.parametrize(("trouble", "kind"), ENDS.items(), ids=ENDS)
def test_every_end_of_a_converter_is_a_failure_of_its_hop(convert, trouble, kind):
    result = convert(route("", trouble), route(""))
    failure = result.attempts[0].failure
    assert (failure.stage, failure.kind) == (Stage.CONVERT, kind)
    assert isinstance(result.attempts[0].hops[0].outcome, Ok)
    assert result.chosen is result.attempts[1]


def test_a_converter_that_hangs_is_timed_out(convert, tmp_path):
    with Session(Settings(timeout=1.5)) as hasty:
        result = convert(route("hang"), route("slow:0.1"), using=hasty)
    assert kinds(result) == ["timed-out", None]


def test_damage_that_a_converter_complains_of_names_no_temporary_folder(convert, session):
    failure = convert(route("", "bad-model")).attempts[0].failure
    assert str(session.pool.folder) not in failure.message + failure.log


def test_damage_that_the_runtime_finds_in_a_converted_model_makes_it_incomparable(convert):
    result = convert(route("then:run=bad-model"), route(""))
    assert result.attempts[0].verification.verdict == Verdict.INCOMPARABLE
    assert "the converted model does not run" in result.attempts[0].verification.reason
    assert result.chosen is result.attempts[1]


def test_a_damaged_source_is_the_users_affair(convert, tmp_path):
    path = tmp_path / "model.fake"
    whole = write(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="not a whole model"):
        convert(route(""), source=path)


def test_an_untrusted_source_is_refused_whatever_the_route(convert, tmp_path):
    with pytest.raises(UntrustedError, match="runs code"):
        convert(route(""), source=write(tmp_path / "model.fake", runs_code=True))


def test_without_verification_the_first_finished_route_is_taken(convert):
    result = convert(route("raise"), route("perturb:30"), route(""), check=False)
    assert result.chosen is result.attempts[1]
    assert result.verification is None


def test_a_declared_precision_is_judged_as_such(convert):
    lower = conversion.Route(hops=(hop(precision="float16"),))
    result = convert(lower)
    assert result.verification.verdict == Verdict.FAITHFUL
    assert result.verification.declared_precision == "float16"


def test_a_later_hop_does_not_give_back_what_an_earlier_one_rounded(convert):
    result = convert(conversion.Route(hops=(hop(precision="float16"), hop())))
    first, second = result.attempts[0].hops
    assert second.verified.declared_precision == "float16"
    assert second.verified.verdict == Verdict.FAITHFUL
    assert second.against_previous.declared_precision == "float32", "between these two nothing was rounded"
    assert first.outcome.value.made_by["precision"] == "float16"


def test_a_lie_is_no_reduced_precision(convert):
    lower = conversion.Route(hops=(hop("perturb:30", precision="float16"),))
    assert convert(lower).verification.verdict == Verdict.DEVIATES


def test_no_routes_are_a_usage_error(convert):
    with pytest.raises(UsageError, match="trueport routes"):
        convert()


# -- where the result goes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("model.fake", "is the source itself"),
        ("folder", "is a folder; give the name of the file"),
        ("model.fake/under", "is no folder"),
        ("/proc/no/such", "cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(session, tmp_path, monkeypatch, place, says):
    source = write(tmp_path / "model.fake")
    (tmp_path / "folder").mkdir()
    before = source.read_bytes()
    monkeypatch.setattr(session.pool, "call", lambda *_, **__: pytest.fail("work began"))
    with pytest.raises(UsageError, match=says):
        api.convert(source, to="fake", out=tmp_path / place, session=session)
    assert source.read_bytes() == before


def test_a_folder_of_other_things_is_not_replaced_by_a_model(tmp_path):
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "one.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="which would be replaced"):
        publish.check_model(precious, tmp_path / "model.fake", "savedmodel", folder=True)
    (precious / "one.jpg").unlink()
    publish.check_model(precious, tmp_path / "model.fake", "savedmodel", folder=True)


def test_a_folder_replaces_a_folder_whole(tmp_path):
    made, out = tmp_path / "made", tmp_path / "out"
    for folder, name in ((made, "new"), (out, "old")):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / name).write_text(name)
    publish.model(made, out)
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "out"]


def test_weights_beside_the_model_come_along_under_their_name(tmp_path):
    made = tmp_path / "work"
    made.mkdir()
    (made / "net.onnx").write_text("model")
    (made / "net.onnx.data").write_text("weights")
    publish.model(made / "net.onnx", tmp_path / "deep" / "net.onnx")
    assert {path.name: path.read_text() for path in (tmp_path / "deep").iterdir()} == {
        "net.onnx": "model",
        "net.onnx.data": "weights",
    }


def test_files_in_the_making_have_the_name_that_out_has(convert, session, tmp_path):
    """External weights are referred to by name: two results in one folder must not share that name."""
    result = convert(route("", ""))
    assert result.attempts[0].hops[0].outcome.value.path.name == "out.fake"


def test_leftovers_of_dead_processes_are_swept_and_those_of_living_ones_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    out = tmp_path / "out.fake"
    stale = tmp_path / f".out.fake.{dead.pid}-0123abcd.partial"
    folder = tmp_path / f".out.fake.{dead.pid}-4567abcd.partial"
    alive = tmp_path / f".out.fake.{os.getpid()}-0123abcd.partial"
    other = tmp_path / f".other.fake.{dead.pid}-0123abcd.partial"
    for path in (stale, alive, other):
        path.write_text("half")
    (folder / "inner").mkdir(parents=True)
    publish.text(out, "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, other.name, out.name])


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    out = tmp_path / "out.fake"
    out.write_text("before")
    made = write(tmp_path / "made.fake")

    def full(source, target):
        Path(target).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish.shutil, "copyfile", full)
    with pytest.raises(UsageError, match=r"out\.fake: No space left on device; make room"):
        publish.model(made, out)
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.fake", "out.fake"]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_kill_9_leaves_a_whole_output_or_none(tmp_path, seed):
    """A large model, so that the copy takes long enough to be hit; the delay is measured on a run that finishes."""
    source = write(tmp_path / "model.fake", features=300, hidden=400)
    out = tmp_path / "out.fake"
    command = [*ENTRY, "convert", str(source), "--to", "fake", "-o", str(out), "-q", "--no-verify"]
    started = time.monotonic()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    lasts = time.monotonic() - started
    whole = out.read_bytes()
    for delay in sorted(random.Random(seed).uniform(0.3, 1.0) for _ in range(3)):
        out.unlink(missing_ok=True)
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay * lasts)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists() or out.read_bytes() == whole
    assert trueport("convert", source, "--to", "fake", "-o", out, "-q", "--no-verify", cwd=tmp_path).returncode == 0
    assert out.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.fake", "out.fake"]


def test_the_hop_before_is_found_by_its_file_not_by_its_digest(convert, monkeypatch):
    """Weights that lie beside a file are not in its digest: two files may share it and compute different things."""
    real = Artifact.open

    def same_digest(path, **more):
        from dataclasses import replace

        return replace(real(path, **more), sha256="0" * 64)

    monkeypatch.setattr(conversion.Artifact, "open", staticmethod(same_digest))
    result = convert(route("perturb:30", "perturb:1,raise"), route("perturb:10", ""))
    assert result.attempts[1].hops[1].against_previous.verdict == Verdict.FAITHFUL


def test_a_conversion_of_a_changed_source_is_its_own(convert, tmp_path):
    other = write_changed(tmp_path / "other.fake", scale(2.0))
    result = convert(route(""), source=other)
    assert json.loads(result.output.read_text()) == json.loads(other.read_text())


def test_the_outcome_of_a_failed_hop_is_a_value(convert):
    outcome = convert(route("raise")).attempts[0].hops[-1].outcome
    assert isinstance(outcome, Failure)
    assert "the tool raised on demand" in outcome.message
    assert "Traceback" in outcome.log


@pytest.mark.parametrize(("precision", "runs"), [("int8", conversion.CALIBRATION_RUNS), ("float16", 8), (None, 8)])
def test_int8_of_generated_inputs_is_calibrated_on_many(session, tmp_path, precision, runs):
    artifact = Artifact.open(write(tmp_path / "model.fake"))
    given = api.open_feeds(session, artifact, None)
    reference = verification.reference(session, artifact).value
    work = conversion.Workbench(session=session, original=reference, given=given, check=False, task="auto")
    hop = replace(route("").hops[0], options={} if precision is None else {"precision": precision})
    context = work._context(hop, reference.signature, artifact)
    own = given.of_kind("data")[0].inputs
    assert context["calibration"].keys() == own.keys()
    for name, array in context["calibration"].items():
        assert len(array) == runs
        np.testing.assert_array_equal(array[: len(own[name])], own[name])


def test_int8_of_ones_own_inputs_is_calibrated_on_them(session, tmp_path):
    artifact = Artifact.open(write(tmp_path / "model.fake"))
    made = api.open_feeds(session, artifact, None)
    given = replace(made, origin="val.npz")
    reference = verification.reference(session, artifact).value
    work = conversion.Workbench(session=session, original=reference, given=given, check=False, task="auto")
    context = work._context(replace(route("").hops[0], options={"precision": "int8"}), reference.signature, artifact)
    own = made.of_kind("data")[0].inputs
    assert {name: len(array) for name, array in context["calibration"].items()} == {
        name: len(a) for name, a in own.items()
    }
