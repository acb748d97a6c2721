"""Verifications and sessions on the fake framework: what a verdict stands on, what stays on disk, what a rerun says."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from pipeline_models import scale, write, write_changed

from trueport import api, reconcile, verification
from trueport.artifact import Artifact, Signature, TensorSpec
from trueport.compare.types import Verdict
from trueport.errors import UntrustedError, UsageError
from trueport.frameworks import fake
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
    "perturb:20": {Verdict.DEVIATES},
    "nan": {Verdict.DEVIATES},
    "swap-outputs": {Verdict.DEVIATES},
    "crash": {Verdict.DEVIATES},
    # By chance the two runs of one case may be so alike that its deviation is not put down to chance.
    "random:0.2": {Verdict.FLAKY, Verdict.DEVIATES},
}


@pytest.mark.parametrize(("fault", "verdicts"), FAULTS.items(), ids=FAULTS)
def test_a_target_that_runs_wrongly_is_not_faithful(pair, session, fault, verdicts):
    result = api.verify(*pair(faults={"run": [fault]}), session=session)
    assert result.verdict in verdicts, result.reason
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


# -- quantised twins ------------------------------------------------------------------------------------------------

GRID_IN = {"scale": 1.0, "zero_point": 3, "dtype": "int8"}
GRID_OUT = {"scale": 0.25, "zero_point": -5, "dtype": "int8"}


def quantised(path, *, bare: bool, shift: float = 0.0, out: str = "int8"):
    """The same int8 network: with bare integers outside, or with real values outside as a file that tells its grids.

    shift: steps that the network adds to every result. out: the integer type of a bare output.
    """
    weights = np.random.default_rng(0).integers(-3, 4, size=(6, 4)).astype(np.float32)
    numbers = {"half": 128.5 + 3, "offset": 128.0, "w": weights, "step": 0.01, "hundred": 100.0}
    numbers |= {"shift": shift + 128.5, "least": 128.0, "zero": 5.0, "quarter": 0.25}
    outer = {"dtype": "int8"} if bare else {"dtype": "float32", "quantization": GRID_IN}
    given = {"dtype": out} if bare else {"dtype": "float32", "quantization": GRID_OUT}
    layers = [] if bare else [("Add", ["x", "half"], "x1"), ("Cast", ["x1"], "x2", "int32")]
    layers += [("Cast", ["x" if bare else "x2"], "x3", "float32")]
    layers += [] if bare else [("Sub", ["x3", "offset"], "x4")]
    layers += [
        ("MatMul", ["x3" if bare else "x4", "w"], "p"),
        ("Mul", ["p", "step"], "scaled"),
        ("Tanh", ["scaled"], "t"),
    ]
    layers += [("Mul", ["t", "hundred"], "u"), ("Add", ["u", "shift"], "v"), ("Cast", ["v"], "v1", "int32")]
    layers += [("Cast", ["v1"], "v2", "float32"), ("Sub", ["v2", "least"], "steps")]
    layers += (
        [("Cast", ["steps"], "y", out)] if bare else [("Add", ["steps", "zero"], "z"), ("Mul", ["z", "quarter"], "y")]
    )
    model = {
        fake.MAGIC: 1,
        "inputs": [{"name": "x", "shape": ["batch", 6], **outer}],
        "outputs": [{"name": "y", "shape": ["batch", 4], **given}],
        "constants": {
            name: {"dtype": "float32", "shape": list(np.shape(value)), "data": np.asarray(value).tolist()}
            for name, value in numbers.items()
        },
        "nodes": [
            {"name": name, "op": op, "inputs": values, "outputs": [name], "attributes": {"to": more[0]} if more else {}}
            for op, values, name, *more in layers
        ],
    }
    path.write_text(fake.text_of(model), encoding="utf-8")
    return path


@pytest.mark.parametrize("bare_source", [False, True])
def test_twins_that_differ_in_bare_integers_only_are_faithful_with_a_note(tmp_path, session, bare_source):
    source = quantised(tmp_path / "a.fake", bare=bare_source)
    result = api.verify(source, quantised(tmp_path / "b.fake", bare=not bare_source), session=session)
    assert result.verdict == Verdict.FAITHFUL, result.reason
    assert result.comparison.outputs[0].max_abs == 0
    said = " ".join(result.notes)
    assert "int8 steps of 1, zero point 3" in said
    assert f"{'source' if bare_source else 'target'} output y: its integers are compared as real values" in said


@pytest.mark.parametrize("bare_source", [False, True])
def test_such_a_twin_that_is_off_by_some_steps_deviates(tmp_path, session, bare_source):
    source = quantised(tmp_path / "a.fake", bare=bare_source)
    wrong = quantised(tmp_path / "b.fake", bare=not bare_source, shift=4)
    result = api.verify(source, wrong, session=session)
    assert result.verdict == Verdict.DEVIATES, result.reason
    assert result.comparison.outputs[0].max_abs == pytest.approx(4 * GRID_OUT["scale"])


def test_integers_of_another_type_are_not_taken_for_the_grid(tmp_path, session):
    source = quantised(tmp_path / "a.fake", bare=False)
    result = api.verify(source, quantised(tmp_path / "b.fake", bare=True, out="int32"), session=session)
    assert result.verdict in (Verdict.INCOMPARABLE, Verdict.DEVIATES)
    assert not any("as real values" in note for note in result.notes)


def outputs(*specs):
    return Signature(inputs=(), outputs=specs)


def test_output_grids_follow_the_pairs():
    told = TensorSpec(name="a", dtype="float32", shape=(4,), quantization=GRID_OUT)
    plain = TensorSpec(name="b", dtype="int8", shape=(4,))
    grid = reconcile.Grid(scale=0.25, zero_point=-5, dtype=np.dtype("int8"))
    assert verification.output_grids(outputs(told), outputs(plain), {}, {})[:2] == ({}, {"b": grid})
    assert verification.output_grids(outputs(plain), outputs(told), {}, {})[:2] == ({"b": grid}, {})
    both = outputs(told, plain), outputs(plain, told)  # equal names: b is an integer on both sides
    assert verification.output_grids(*both, {}, {}) == ({}, {}, ())
    assert verification.output_grids(*both, {"a": "b", "b": "a"}, {})[:2] == ({"b": grid}, {"b": grid})
    assert verification.output_grids(outputs(told), outputs(plain, told), {"a": "none"}, {}) == ({}, {}, ())


def test_in_reals_changes_the_named_outputs_and_nothing_else():
    grid = reconcile.Grid(scale=0.25, zero_point=-5, dtype=np.dtype("int8"))
    failure = Failure(stage=Stage.RUN, kind=Kind.RAISED, message="no")
    steps, wrong = np.array([[-128, -5, 127]], np.int8), np.ones((1, 3), np.float32)
    runs = {
        "data": {"y": steps, "n": steps},
        "ragged": {"y": [steps[0], steps[0, :1]]},
        "odd": {"y": wrong},
        "bad": failure,
    }
    real = verification.in_reals(runs, {"y": grid})
    assert real["data"]["y"].tolist() == [[-30.75, 0.0, 33.0]]
    assert real["data"]["y"].dtype == np.float32
    assert real["data"]["n"] is steps
    assert [part.tolist() for part in real["ragged"]["y"]] == [[-30.75, 0.0, 33.0], [-30.75]]
    assert real["odd"]["y"] is wrong
    assert real["bad"] is failure
    assert verification.in_reals(runs, {}) is runs


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
    with pytest.raises(UsageError, match=r"'caffe' is not known; known are coreml, .*keras, .*onnx") as told:
        framework_of("caffe")
    assert "fake" not in str(told.value)
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


def test_an_int8_target_is_judged_on_generated_inputs_within_its_calibration():
    from trueport.artifact import Signature, TensorSpec
    from trueport.feeds import generate
    from trueport.verification import within_calibration

    image = TensorSpec(name="image", dtype="float32", shape=("batch", 3, 32, 32))
    given = generate(Signature(inputs=(image,), outputs=()), seed=0)
    kinds = [case.kind for case in given.cases]
    assert kinds.count("data") > 1
    narrowed = within_calibration(given, "int8")
    assert [case.name for case in narrowed.cases if case.kind == "data"] == ["data"]
    assert [case.name for case in narrowed.cases if case.kind != "data"] == [
        case.name for case in given.cases if case.kind != "data"
    ]
    assert narrowed.count == narrowed.cases[0].runs
    assert narrowed.sha256 != given.sha256
    assert "beyond the range of case data" in narrowed.notes[-1]
    assert within_calibration(given, "float32") is given
    assert within_calibration(given, "int8-dynamic") is given
