"""Verifications and sessions on the fake framework: what a verdict stands on, what stays on disk, what a rerun says."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from pipeline_models import scale, write, write_changed

from trueport import api, verification
from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.errors import UntrustedError, UsageError
from trueport.outcome import Failure, Kind, Ok, Stage
from trueport.session import Session, Settings, first_run, formats, framework_of


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=60)) as session:
        yield session


@pytest.fixture
def pair(tmp_path):
    """pair(change or faults) -> (source path, target path)."""

    def make(change=lambda model: None, **more):
        return write(tmp_path / "source.fake"), write_changed(
            tmp_path / "target.fake", lambda model: (change(model), model.update(more))
        )

    return make


def test_twins_are_faithful(pair, session):
    result = api.verify(*pair(), session=session)
    assert result.verdict == Verdict.FAITHFUL
    assert {output.source for output in result.comparison.outputs} == {"scores", "chances"}
    assert result.inputs["origin"].startswith("generated")
    assert result.timings["total"] >= result.timings["target_run"] > 0


FAULTS = {
    "perturb:20": Verdict.DEVIATES,
    "nan": Verdict.DEVIATES,
    "swap-outputs": Verdict.DEVIATES,
    "crash": Verdict.DEVIATES,
    "random:0.2": Verdict.FLAKY,
}


@pytest.mark.parametrize(("fault", "verdict"), FAULTS.items(), ids=FAULTS)
def test_a_target_that_runs_wrongly_is_not_faithful(pair, session, fault, verdict):
    result = api.verify(*pair(faults={"run": [fault]}), session=session)
    assert result.verdict == verdict, result.reason
    assert result.reason


def test_a_target_that_crashes_on_load_is_incomparable(pair, session):
    result = api.verify(*pair(faults={"signature": ["crash"]}), session=session)
    assert result.verdict == Verdict.INCOMPARABLE
    assert "cannot be loaded" in result.reason
    assert result.comparison.unpaired_source == ("scores", "chances")


def test_a_failing_load_is_not_tried_twice(pair, session):
    source, target = pair(faults={"signature": ["slow:0.6", "raise"]})
    result = api.verify(source, target, session=session)
    assert result.verdict == Verdict.INCOMPARABLE
    again = session.signature(Artifact.open(target))
    assert isinstance(again, Failure)
    assert again is session.signature(Artifact.open(target))


def test_a_source_that_does_not_load_is_the_users_affair(tmp_path, session):
    source = write(tmp_path / "source.fake", faults={"signature": ["raise"]})
    with pytest.raises(UsageError, match=r"source\.fake cannot be loaded \(raised\)"):
        api.verify(source, write(tmp_path / "target.fake"), session=session)


def test_a_source_that_loads_too_slowly_is_told_with_the_cure(tmp_path):
    source = write(tmp_path / "source.fake", faults={"signature": ["hang"]})
    with pytest.raises(UsageError, match=r"timed-out.*allow more with --timeout"):
        api.verify(source, write(tmp_path / "t.fake"), settings=Settings(timeout=1))


def test_a_source_that_runs_on_nothing_is_incomparable(tmp_path, session):
    source = write(tmp_path / "source.fake", faults={"run": ["raise"]})
    result = api.verify(source, write(tmp_path / "target.fake"), session=session)
    assert result.verdict == Verdict.INCOMPARABLE
    assert "the source does not run on these inputs (raised)" in result.reason


def test_inputs_that_do_not_match_are_incomparable(pair, session):
    def change(model):
        model["inputs"][0]["shape"] = ["batch", 9]
        model["constants"]["w1"] = {"dtype": "float32", "shape": [9, 8], "data": np.ones((9, 8)).tolist()}

    result = api.verify(*pair(change), session=session)
    assert result.verdict == Verdict.INCOMPARABLE


def test_a_toolchain_that_cannot_be_had_is_a_usage_error(pair, monkeypatch):
    source, target = pair(scale(1.5))
    missing = Failure(stage=Stage.ENVIRONMENT, kind=Kind.UNAVAILABLE, message="no such toolchain here; get one")
    real = Session.runner
    monkeypatch.setattr(
        Session, "runner", lambda self, model: missing if model.path.name == "target.fake" else real(self, model)
    )
    with Session() as fresh, pytest.raises(UsageError, match="no such toolchain here; get one"):
        api.verify(source, target, session=fresh)


def test_what_only_the_file_declares_is_the_declared_precision(pair, session):
    result = api.verify(*pair(precision="float16"), session=session)
    assert result.declared_precision == "float16"


def test_a_verification_holds_no_arrays_and_leaves_none_on_disk(pair):
    source, target = pair()
    with Session() as session:
        artifact, twin = Artifact.open(source), Artifact.open(target)
        given = api.open_feeds(session, artifact, None)
        loaded = verification.reference(session, artifact)
        assert isinstance(loaded, Ok)
        verification.verify(loaded.value, twin, given)
        after_one = sorted(session.pool.folder.rglob("*.npy"))
        assert after_one, "the source's runs serve the next target"
        result = verification.verify(loaded.value, twin, given)
        assert sorted(session.pool.folder.rglob("*.npy")) == after_one
    assert not holds_array(result)


def test_a_target_that_deviates_leaves_nothing_either(pair):
    source, target = pair(scale(1.5))
    with Session() as session:
        given = api.open_feeds(session, Artifact.open(source), None)
        loaded = verification.reference(session, Artifact.open(source))
        counts = []
        for _ in range(2):
            verified = verification.verify(loaded.value, Artifact.open(target), given)
            assert verified.verdict == Verdict.DEVIATES
            counts.append(len(list(session.pool.folder.rglob("*.npy"))))
        assert counts[0] == counts[1]


def holds_array(value, depth=0) -> bool:
    if isinstance(value, np.ndarray):
        return True
    if isinstance(value, dict):
        return any(holds_array(item, depth + 1) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(holds_array(item, depth + 1) for item in value)
    slots = getattr(type(value), "__slots__", ())
    return any(holds_array(getattr(value, name), depth + 1) for name in slots) if depth < 20 else False


def test_the_search_for_arrays_finds_one():
    assert holds_array({"a": [np.zeros(1)]})


@pytest.mark.parametrize("given", ["generated", "file", "arrays"])
def test_the_rerun_repeats_the_verification_or_is_not_offered(tmp_path, pair, session, given, monkeypatch):
    source, target = pair(scale(1.2))
    data = {"x0": np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)}
    np.savez(tmp_path / "val.npz", **data)
    inputs = {"generated": None, "file": tmp_path / "val.npz", "arrays": data}[given]
    result = api.verify(source, target, inputs=inputs, session=session)
    if given == "arrays":
        assert result.rerun == ()
        return
    (line,) = result.rerun
    words = shlex.split(line)
    assert words[:2] == ["trueport", "verify"]
    named = dict(zip(words[4::2], words[5::2], strict=True))
    again = api.verify(words[2], words[3], inputs=named.get("--inputs"), settings=Settings(seed=int(named["--seed"])))
    assert again.inputs["sha256"] == result.inputs["sha256"]
    assert again.reason == result.reason


def test_the_rerun_of_a_trusted_and_reduced_model_says_so(tmp_path):
    trusting = Settings(trust=True, seed=3)
    source = write(tmp_path / "a.fake", runs_code=True)
    result = api.verify(source, write(tmp_path / "b.fake", precision="float16"), settings=trusting)
    (line,) = result.rerun
    assert "--trust" in line
    assert "--precision float16" in line
    assert "--seed 3" in line


def test_a_seed_decides_the_inputs(pair):
    source, target = pair()
    digests = [api.verify(source, target, settings=Settings(seed=seed)).inputs["sha256"] for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


# -- sessions -------------------------------------------------------------------------------------------------------


def test_one_bad_case_does_not_hide_the_others(tmp_path, session):
    artifact = Artifact.open(write(tmp_path / "a.fake"))
    given = api.open_feeds(session, artifact, None)
    good = given.cases[0]
    from dataclasses import replace

    bad = replace(good, name="bad", inputs={"x0": np.ones((2, 1, 5), np.float32)})
    outcome = session.run(artifact, [good, bad])
    assert isinstance(outcome, Ok)
    assert list(outcome.value.failures) == ["bad"]
    assert outcome.value.runs[good.name]["scores"].shape[0] == good.runs
    assert all(folder.is_dir() for folder in outcome.value.folders)
    session.release(outcome.value)
    assert not any(folder.exists() for folder in outcome.value.folders)


def test_messages_name_files_without_the_temporary_folder(session):
    folder = session.pool.fresh_folder("work")
    artifact = Artifact(path=folder / "gone.fake", format="fake", sha256="0", size=0)
    with pytest.raises(UsageError, match=r"^gone\.fake: No such file"):
        session.ask(artifact, "signature", {}, stage=Stage.LOAD)


def test_a_full_disk_is_no_verdict_on_the_tool(tmp_path, session):
    source = write(tmp_path / "a.fake", faults={"signature": ["unsupported:[Errno 28] No space left on device"]})
    with pytest.raises(UsageError, match=r"is full; make room there or set TMPDIR"):
        session.signature(Artifact.open(source))


def test_an_untrusted_model_is_refused_and_a_trusted_one_runs(tmp_path):
    source = write(tmp_path / "a.fake", runs_code=True)
    with pytest.raises(UntrustedError):
        api.inspect(source)
    assert api.inspect(source, settings=Settings(trust=True))[0].format == "fake"


def test_an_unknown_format_is_told_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'coreml' is not known; known are .*onnx"):
        framework_of("coreml")
    assert {"onnx", "tflite", "keras", "savedmodel", "pytorch", "torchscript"} <= set(formats())


def test_variants_concern_the_toolchains_that_hold_the_package():
    from trueport.routes import steps

    settings = Settings(packages=("onnxscript==0.5.6",), as_of="2025-11-01")
    with Session(settings) as session:
        concerned, other = session.step_variant(steps()["torch-dynamo"]), session.step_variant(steps()["onnx2torch"])
        assert (concerned.packages, concerned.as_of) == (("onnxscript==0.5.6",), "2025-11-01")
        assert other.plain or "onnxscript" in str(other.packages)
        assert session.step_variant(steps()["fake-copy"]).plain


def test_an_example_is_one_run_of_the_first_case(tmp_path, session):
    artifact = Artifact.open(write(tmp_path / "a.fake"))
    given = api.open_feeds(session, artifact, None)
    example = first_run(given.cases)
    np.testing.assert_array_equal(example["x0"], given.cases[0].inputs["x0"][0])
    assert example["x0"].ndim == 2
