"""`trueport diagnose`, and the diagnosis within `trueport convert`, as a user runs them: documents, reports, exit codes."""

from __future__ import annotations

import json
import os
import re
import shlex

import jsonschema
import numpy as np
import pytest
from onnx_small import BUILDERS, build
from pipeline_models import ENTRY, read, scale, trueport, write, write_changed

from trueport import api, results
from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.conversion import Attempt, Conversion, HopResult
from trueport.outcome import Failure, Kind, Stage
from trueport.report import REPORTERS
from trueport.routes import Hop, Route, steps
from trueport.session import Session, Settings
from trueport.testing import plant

CODES = {"faithful": 0, "deviates": 1, "two": 1, "incomparable": 1, "flaky": 1, "nan": 1, "inputs": 1}
VERDICTS = {"nan": "deviates", "two": "deviates", "inputs": "incomparable"}
"""Of those that are not called after theirs."""


def two_faults(model) -> None:
    """Another first layer, and another bias in the second."""
    scale(1.2)(model)
    model["constants"]["b2"]["data"][1] += 3.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write(folder / "model.fake")
    write(folder / "faithful.fake")
    write_changed(folder / "deviates.fake", scale(1.2))
    write_changed(folder / "two.fake", two_faults)
    write(folder / "incomparable.fake", faults={"signature": ["crash"]})
    write(folder / "flaky.fake", faults={"run": ["random:0.2"]})
    write(folder / "nan.fake", faults={"run": ["nan"]})
    write(folder / "inputs.fake", inputs=2)
    write(folder / "untraced.fake", seed=3, faults={"trace": ["raise:cannot be looked into"]})
    np.savez(folder / "given.npz", x0=np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def diagnosed(folder):
    """name -> (finished process, document) of `trueport diagnose` with every kind of output."""
    found = {}
    for name in CODES:
        words = ["diagnose", "model.fake", f"{name}.fake", "--no-tools", "--json", f"{name}.json"]
        done = trueport(*words, "--report", f"report-{name}", cwd=folder, env={**os.environ, "COLUMNS": "80"})
        found[name] = done, read(folder / f"{name}.json")
    return found


@pytest.mark.parametrize(("name", "code"), CODES.items(), ids=CODES)
def test_it_ends_with_the_code_of_its_verdict(diagnosed, name, code):
    done, document = diagnosed[name]
    assert done.returncode == code, done.stderr
    assert document["verdict"] == document["verify"]["verdict"] == VERDICTS.get(name, name)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", CODES)
def test_documents_follow_the_published_schema(diagnosed, name):
    document = diagnosed[name][1]
    jsonschema.Draft202012Validator(results.schema("diagnose")).validate(document)
    jsonschema.Draft202012Validator(results.schema("verify")).validate(document["verify"])
    assert document["format"] == "trueport/diagnose/1"
    assert document["explanation"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.pop("explanation"),
        lambda document: document["suspects"][0].update(cause="weather"),
        lambda document: document["suspects"][0].update(local="inf"),
        lambda document: document["suspects"][0]["detail"].pop("source_value"),
        lambda document: document.update(stage={"hop": -1, "step": "x"}),
        lambda document: document.update(known_issue={"id": "x", "url": "https://x"}),
        lambda document: document.update(verdict="wrong"),
        lambda document: document.update(surplus=1),
    ],
    ids=["explanation", "cause", "local", "value", "stage", "issue", "verdict", "surplus"],
)
def test_the_schema_refuses_what_is_not_one(diagnosed, spoil):
    document = json.loads(json.dumps(diagnosed["deviates"][1]))
    spoil(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(results.schema("diagnose")).validate(document)


def test_the_wrong_layer_is_named_with_both_values(diagnosed):
    _, document = diagnosed["deviates"]
    (suspect,) = document["suspects"]
    assert suspect["rank"] == 1
    assert suspect["target_nodes"][0] == "MatMul_product_1"
    assert "MatMul_product_1" in suspect["source_nodes"]
    assert suspect["cause"] == "parameters"
    assert suspect["causal"] > 0.99
    assert suspect["detail"]["source_value"] != suspect["detail"]["target_value"]
    assert "MatMul_product_1" in document["explanation"]
    assert document["alignment"]["paired"] >= document["alignment"]["agreeing"] > 0


def test_two_faults_are_two_suspects(diagnosed):
    suspects = diagnosed["two"][1]["suspects"]
    assert [suspect["rank"] for suspect in suspects] == [1, 2]
    assert {suspect["target_nodes"][0] for suspect in suspects} == {"MatMul_product_1", "Add_scores"}


@pytest.mark.parametrize("name", ["faithful", "flaky"])
def test_without_a_proven_deviation_there_is_no_suspect(diagnosed, name):
    assert diagnosed[name][1]["suspects"] == []


def test_a_faithful_target_is_told_as_such(diagnosed):
    done, document = diagnosed["faithful"]
    assert "FAITHFUL" in done.stdout
    assert "There is nothing to diagnose." in done.stdout
    assert (document["stage"], document["known_issue"], document["alignment"]) == (None, None, {})


def test_figures_that_were_not_measured_are_the_string_nan(diagnosed):
    """`read` refuses a bare NaN. An input that cannot be fed is told without a run, so without figures."""
    done, document = diagnosed["inputs"]
    (suspect,) = document["suspects"]
    assert [suspect[key] for key in ("accumulated", "local", "causal")] == ["NaN"] * 3
    assert suspect["cause"] == "inputs"
    assert re.search(r"^1\s+the inputs\s+inputs\s+–\s+–$", done.stdout, flags=re.M)


def test_an_output_that_is_not_a_number_is_no_suspect_by_itself(diagnosed):
    """Only the run of the whole model spoils it here: no place inside shows the fault, and none is invented."""
    document = diagnosed["nan"][1]
    assert document["suspects"] == []
    assert any("not numbers" in note for note in document["notes"])


def test_the_rerun_is_the_command_and_gives_the_same(diagnosed, folder):
    document = diagnosed["deviates"][1]
    (line,) = document["rerun"]
    assert shlex.split(line)[:4] == ["trueport", "diagnose", "model.fake", "deviates.fake"]
    again = trueport(*shlex.split(line)[1:], "--json", "again.json", "--report", "again", cwd=folder)
    assert again.returncode == 1
    assert read(folder / "again.json")["suspects"] == document["suspects"]


# -- on the terminal ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODES)
def test_no_line_is_wider_than_eighty(diagnosed, name):
    lines = [line.rstrip() for line in diagnosed[name][0].stdout.splitlines() if not line.startswith("report: ")]
    assert lines
    assert max(map(len, lines)) <= 80


def test_the_summary_begins_with_the_verdict_and_lists_the_suspects(diagnosed):
    lines = diagnosed["two"][0].stdout.splitlines()
    assert lines[0].startswith("✗ DEVIATES")
    head = next(index for index, line in enumerate(lines) if re.fullmatch(r"#\s+place\s+cause\s+local\s+causal", line))
    assert [line.split()[0] for line in lines[head + 1 : head + 3]] == ["1", "2"]
    assert re.search(r"MatMul MatMul_product_1\s+parameters\s+[\d.]+\s+-?[\d.]+ %", diagnosed["two"][0].stdout)
    assert re.search(r"^source\s+target\s*$", diagnosed["two"][0].stdout, flags=re.M)


def test_quiet_is_one_result(folder):
    done = trueport("diagnose", "model.fake", "deviates.fake", "--no-tools", "-q", cwd=folder)
    assert done.stderr == ""
    assert done.stdout.startswith("✗ DEVIATES  MatMul MatMul_product_1 (parameters): ")
    assert "source " not in done.stdout.splitlines()[-1]


def test_json_on_stdout_stands_alone(folder):
    done = trueport("diagnose", "model.fake", "deviates.fake", "--no-tools", "--json", "-", cwd=folder)
    assert json.loads(done.stdout)["format"] == "trueport/diagnose/1"
    assert "✗ DEVIATES" in done.stderr


# -- reports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODES)
def test_a_stored_diagnosis_renders_the_same_again(diagnosed, folder, name):
    done = trueport("report", f"{name}.json", "-o", f"again-{name}", cwd=folder)
    assert done.returncode == 0, done.stderr
    for file, _ in REPORTERS.values():
        assert (folder / f"again-{name}" / file).read_bytes() == (folder / f"report-{name}" / file).read_bytes(), file


def test_reports_show_the_suspect_and_the_paragraph(diagnosed, folder):
    document = diagnosed["deviates"][1]
    for file in ("report.html", "report.md"):
        text = (folder / "report-deviates" / file).read_text(encoding="utf-8")
        assert "Diagnosis" in text
        assert "MatMul_product_1" in text
        assert "There is nothing to diagnose." not in text
        assert "trueport diagnose model.fake deviates.fake" in text
    assert document["explanation"] in (folder / "report-deviates" / "report.md").read_text(encoding="utf-8")
    assert "There is nothing to diagnose." in (folder / "report-faithful" / "report.html").read_text(encoding="utf-8")


# -- what is given wrongly ------------------------------------------------------------------------------------------

WRONG = {
    "no model": (["nothing.fake", "deviates.fake"], "nothing.fake"),
    "no target": (["model.fake"], "TARGET"),
    "unknown task": (["model.fake", "deviates.fake", "--task", "guessing"], "guessing"),
    "unknown precision": (["model.fake", "deviates.fake", "--precision", "float8"], "float8"),
    "memory": (["model.fake", "deviates.fake", "--memory", "0"], "--memory"),
    "no inputs": (["model.fake", "deviates.fake", "--inputs", "none.npz"], "none.npz"),
    "labels alone": (["model.fake", "deviates.fake", "--labels", "none.txt"], "--labels"),
    "an option of convert": (["model.fake", "deviates.fake", "--to", "onnx"], "--to"),
    "no place for the result": (["model.fake", "deviates.fake", "--json", "model.fake/x.json"], "x.json"),
}


@pytest.mark.parametrize(("words", "named"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_served_ends_with_two(folder, words, named):
    done = trueport("diagnose", *words, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_of_ours_ends_with_three(folder):
    import subprocess

    code = (
        "from trueport.diagnosis import run\n"
        "def broken(*a, **k): raise ZeroDivisionError('planted')\n"
        "run.locate = broken\n"
        "from trueport.cli import main; main()\n"
    )
    words = [ENTRY[0], "-c", code, "diagnose", "model.fake", "deviates.fake"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "ZeroDivisionError: planted" in done.stderr


def test_memory_bounds_the_values_that_are_held():
    assert api.tracing_budget(None) == api.tracing_budget(float(2**40))
    assert api.tracing_budget(64.0 * 2**20) == 16 * 2**20
    assert api.tracing_budget(1.0) == 2**20


def test_memory_given_on_the_command_line_still_finds_it(folder):
    words = ["diagnose", "model.fake", "deviates.fake", "--no-tools", "--memory", "1", "--inputs", "given.npz", "-q"]
    done = trueport(*words, cwd=folder)
    assert done.returncode == 1
    assert "MatMul_product_1" in done.stdout


def test_a_model_that_cannot_be_looked_into_is_told(folder):
    done = trueport("diagnose", "model.fake", "untraced.fake", "--no-tools", "--json", "u.json", cwd=folder)
    document = read(folder / "u.json")
    assert done.returncode == 1
    assert document["suspects"] == []
    assert any("cannot be looked into" in note for note in document["notes"])
    assert "cannot be looked into" in done.stdout


# -- within a conversion --------------------------------------------------------------------------------------------

BAD = ["--no-repair", "--option", "fake-copy.misbehave=perturb:30"]


def converted(folder, name: str, *more: str):
    words = ["convert", "model.fake", "--to", "fake", "-o", f"{name}.fake", "--json", f"{name}.json", *more]
    return trueport(*words, cwd=folder, env={**os.environ, "COLUMNS": "80"}), read(folder / f"{name}.json")


def test_a_conversion_that_is_not_faithful_says_where_and_which_step(folder):
    done, document = converted(folder, "c-bad", "--route", "fake-copy,fake-copy", *BAD, "--report", "report-c-bad")
    found = document["diagnose"]
    assert done.returncode == 1
    jsonschema.Draft202012Validator(results.schema("convert")).validate(document)
    jsonschema.Draft202012Validator(results.schema("diagnose")).validate(found)
    assert found["verify"] == document["verify"]
    assert found["suspects"]
    blamed = [hop["step"] for hop in document["route"]].index(document["tried"][0]["blamed"])
    assert (found["stage"]["hop"], found["stage"]["step"]) == (blamed, "fake-copy")
    assert found["suspects"][0]["target_nodes"][0] in done.stdout
    assert "made by" in done.stdout
    for file in ("report.html", "report.md"):
        assert "Diagnosis" in (folder / "report-c-bad" / file).read_text(encoding="utf-8")


def test_its_rerun_diagnoses_the_kept_model(folder):
    _, document = converted(folder, "c-again", *BAD)
    (line,) = document["diagnose"]["rerun"]
    words = shlex.split(line)
    assert words[1] == "diagnose"
    assert words[3] == str(folder / "c-again.fake")
    done = trueport(*words[1:], "--no-tools", "--json", "c-again-2.json", cwd=folder)
    assert done.returncode == 1
    again = read(folder / "c-again-2.json")["suspects"]
    assert [one["target_nodes"] for one in again] == [one["target_nodes"] for one in document["diagnose"]["suspects"]]


@pytest.mark.parametrize("more", [[], [*BAD, "--no-diagnose"], [*BAD, "--no-verify"]], ids=["faithful", "off", "blind"])
def test_no_diagnosis_where_none_is_due(folder, more):
    done, document = converted(folder, "c-none", *more)
    assert document["diagnose"] is None
    assert "place" not in done.stdout


def test_the_public_function_gives_the_same(folder, tmp_path):
    with Session(Settings(timeout=60)) as session:
        options = ["fake-copy.misbehave=perturb:30"]
        arguments = {"to": "fake", "options": options, "session": session, "repair": False}
        done = api.convert(folder / "model.fake", out=tmp_path / "a.fake", **arguments)
        assert done.verification.verdict is Verdict.DEVIATES
        assert done.diagnosis.verification is done.verification
        assert done.diagnosis.stage.step == "fake-copy"
        without = api.convert(folder / "model.fake", out=tmp_path / "b.fake", diagnose=False, **arguments)
        assert without.diagnosis is None
        twin = api.diagnose(folder / "model.fake", tmp_path / "a.fake", tools=False, session=session)
    assert [one.target_nodes for one in twin.suspects] == [one.target_nodes for one in done.diagnosis.suspects]
    assert twin.stage is None


# -- on real models -------------------------------------------------------------------------------------------------


def test_a_planted_fault_in_a_real_model_is_named(tmp_path):
    with Session(Settings(timeout=120)) as session:
        environment = session.environment("onnx")
        assert not isinstance(environment, Failure), environment
        arguments = {"name": "pictures", "out": str(tmp_path / "model.onnx")}
        made = session.pool.call(
            environment.value.python, "plant_models", "build", arguments, stage=Stage.LOAD, paths=[str(BUILDERS)]
        )
        assert not isinstance(made, Failure), made
        truth = plant(tmp_path / "model.onnx", tmp_path / "wrong.onnx", kind="bias_noise", seed=1, session=session)
    assert truth.effective
    words = ["diagnose", "model.onnx", "wrong.onnx", "--no-tools", "--json", "d.json"]
    done = trueport(*words, cwd=tmp_path, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 1, done.stderr
    document = read(tmp_path / "d.json")
    jsonschema.Draft202012Validator(results.schema("diagnose")).validate(document)
    (suspect,) = document["suspects"]
    assert suspect["target_nodes"][0] in truth.nodes
    assert suspect["cause"] == truth.cause == "parameters"
    assert suspect["target_nodes"][0] in done.stdout


def test_a_failed_hop_still_says_which_versions_failed(tmp_path):
    with Session(Settings(timeout=120)) as session:
        build(session, "batch_norm", tmp_path / "model.onnx")
    words = [
        "convert",
        "model.onnx",
        "--to",
        "onnx",
        "-o",
        "out.onnx",
        "--route",
        "opset",
        "--option",
        "opset.opset=99",
    ]
    done = trueport(*words, "--json", "c.json", cwd=tmp_path)
    assert done.returncode == 4
    (hop,) = read(tmp_path / "c.json")["tried"][0]["hops"]
    assert hop["failure"]["stage"] == "convert"
    assert re.fullmatch(r"\d+\.\d+\.\d+", hop["versions"]["onnx"])
    assert hop["known_issue"] is None


OLD_EXPORTER = "No module named 'onnxscript._framework_apis.torch_2_11'"


@pytest.mark.parametrize(
    ("step", "message", "versions", "known", "sure"),
    [
        ("torch-dynamo", OLD_EXPORTER, {"onnxscript": "0.5.6"}, "onnxscript-older-than-torch", True),
        ("torch-dynamo", OLD_EXPORTER, {}, "onnxscript-older-than-torch", False),
        ("torch-dynamo", "PassError: it broke", {"onnxscript": "0.5.6"}, "onnxscript-onnx-ir-1.1", True),
        ("torch-dynamo", "PassError: it broke", {"onnxscript": "0.7.2"}, None, False),
        ("onnxsim", "PassError: it broke", {"onnxscript": "0.5.6"}, None, False),
        ("torch-dynamo", "something else broke", {"onnxscript": "0.5.6"}, None, False),
    ],
)
def test_a_known_bug_stands_beside_the_failure(tmp_path, step, message, versions, known, sure):
    failure = Failure(stage=Stage.CONVERT, kind=Kind.RAISED, message=message)
    hop = Hop(step=steps()[step])
    attempt = Attempt(route=Route(hops=(hop,)), hops=(HopResult(hop=hop, outcome=failure, versions=versions),))
    source = Artifact.open(write(tmp_path / "model.fake"))
    result = Conversion(source=source, target_format="onnx", attempts=(attempt,), chosen=None, output=None)
    document = results.convert_document(result, rerun="trueport convert")
    jsonschema.Draft202012Validator(results.schema("convert")).validate(document)
    issue = document["tried"][0]["hops"][0]["known_issue"]
    assert (issue and issue["id"]) == known
    if known:
        assert issue["summary"].startswith("probably: ") != sure
    for _, render in REPORTERS.values():
        text = render(document)
        assert known in text if known else "nown issue" not in text


@pytest.mark.slow
def test_a_known_bug_of_a_real_converter_is_named_with_the_version_to_take(tmp_path):
    """onnxscript 0.5.6, in an environment of its day, gives two convolutions one bias."""
    with Session(Settings(timeout=120)) as session:
        build(session, "conv_bn_twice", tmp_path / "model.onnx")
    words = ["convert", "model.onnx", "--to", "onnx", "-o", "out.onnx", "--route", "onnxscript-optimizer"]
    words += ["--with", "onnxscript==0.5.6", "--as-of", "2025-11-25", "--json", "c.json"]
    done = trueport(*words, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stderr
    document = read(tmp_path / "c.json")
    assert (document["repair"]["status"], document["verify"]["verdict"]) == ("repaired", "faithful")
    found = document["diagnose"]
    assert (found["known_issue"]["id"], found["known_issue"]["fixed_in"]) == ("onnxscript-2553", "0.5.7")
    assert found["stage"]["step"] == "onnxscript-optimizer"
    suspect = found["suspects"][0]
    assert (suspect["operator"], suspect["cause"]) == ("Conv", "parameters")
    assert "bias" in suspect["detail"]["what"]
    assert "fixed in 0.5.7" in done.stdout
