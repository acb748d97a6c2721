"""`trueport repair` as a user runs it: documents, reports, exit codes, files."""

from __future__ import annotations

import hashlib
import json
import os
import shlex

import jsonschema
import numpy as np
import pytest
from pipeline_models import interrupted, read, scale, trueport, write, write_changed

import trueport as library
from trueport import api, publish, results
from trueport.compare.types import Verdict
from trueport.errors import UsageError
from trueport.frameworks import _base, fake
from trueport.repairs import explanation
from trueport.repairs.types import Status
from trueport.report import REPORTERS, wording
from trueport.session import Session, Settings

RUNS = {
    "one": ("one", [], 0, "repaired"),
    "two": ("two", [], 0, "repaired"),
    "same": ("same", [], 0, "not-needed"),
    "other": ("other", [], 1, "unrepaired"),
    "cut-short": ("two", ["--attempts", "1"], 1, "improved"),
    "data": ("one", ["--inputs", "given.npz"], 0, "repaired"),
}
"""name -> target, further words, exit code, status."""

WRITTEN = [name for name, (_, _, _, status) in RUNS.items() if status in ("repaired", "improved")]


def two_faults(model) -> None:
    """A first layer three times too large, which is most of the error, and another bias in the second."""
    scale(3.0)(model)
    model["constants"]["b2"]["data"][1] += 0.1


def slow(model) -> None:
    """The same, and every look inside takes its time, so that ^C can be placed."""
    two_faults(model)
    model["faults"] = {"trace": ["slow:0.4"]}


def other_activation(model) -> None:
    """An operator of another kind, which files of the fake framework cannot be edited to mend."""
    (node,) = [node for node in model["nodes"] if node["op"] == "Relu"]
    node["op"] = "Tanh"


def digests(folder, *names):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write(folder / "model.fake")
    write(folder / "same.fake")
    write(folder / "other.fake", seed=9, hidden=5)
    write_changed(folder / "one.fake", scale(1.2))
    write_changed(folder / "two.fake", two_faults)
    write_changed(folder / "slow.fake", slow)
    write_changed(folder / "tanh.fake", other_activation)
    np.savez(folder / "given.npz", x0=np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def repaired(folder):
    """name -> (finished process, document) of `trueport repair` with every kind of output."""
    found = {}
    for name, (target, more, _, _) in RUNS.items():
        words = ["repair", "model.fake", f"{target}.fake", "-o", f"{name}-fixed.fake", "--no-tools", *more]
        words += ["--json", f"{name}.json", "--report", f"report-{name}"]
        done = trueport(*words, cwd=folder, env={**os.environ, "COLUMNS": "80"})
        found[name] = done, read(folder / f"{name}.json")
    return found


# -- what comes out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_it_ends_with_the_code_of_its_status(repaired, folder, name):
    done, document = repaired[name]
    assert done.returncode == RUNS[name][2], done.stderr
    assert document["status"] == RUNS[name][3]
    assert (folder / f"{name}-fixed.fake").exists() == (name in WRITTEN)
    assert document["output"] == (str(folder / f"{name}-fixed.fake") if name in WRITTEN else None)
    assert (document["after"] is None) == (name not in WRITTEN)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", RUNS)
def test_documents_follow_the_published_schema(repaired, name):
    document = repaired[name][1]
    jsonschema.Draft202012Validator(results.schema("repair")).validate(document)
    for part in filter(None, (document["before"], document["after"])):
        jsonschema.Draft202012Validator(results.schema("verify")).validate(part)
    assert document["format"] == "trueport/repair/1"
    assert document["attempts"] == len(document["tried"])
    assert document["explanation"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.update(status="mended"),
        lambda document: document.update(attempts="many"),
        lambda document: document["edits"][0].update(kind="magic"),
        lambda document: document["edits"][0].pop("reason"),
        lambda document: document["tried"][0].update(after="inf"),
        lambda document: document.pop("before"),
        lambda document: document.update(after={}),
        lambda document: document.update(refused=["a rule"]),
        lambda document: document.update(surplus=1),
    ],
    ids=["status", "attempts", "kind", "reason", "tried", "before", "after", "refused", "surplus"],
)
def test_the_schema_refuses_what_is_not_one(repaired, spoil):
    document = json.loads(json.dumps(repaired["two"][1]))
    spoil(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(results.schema("repair")).validate(document)


def test_the_schema_knows_every_kind_of_edit_and_every_status():
    schema = results.schema("repair")
    kinds = schema["$defs"]["edit"]["properties"]["kind"]["enum"]
    assert set(kinds) == {*_base.EDIT_KINDS, "convert-again"}
    assert schema["properties"]["status"]["enum"] == list(Status)


def test_the_edits_are_the_faults_and_nothing_else(repaired):
    assert [edit["where"] for edit in repaired["one"][1]["edits"]] == ["MatMul_product_1"]
    edits = repaired["two"][1]["edits"]
    assert [(edit["where"], edit["kind"]) for edit in edits] == [
        ("MatMul_product_1", "set-parameter"),
        ("Add_scores", "set-parameter"),
    ]
    assert [edit["step"] for edit in edits] == [1, 2]
    assert all(edit["before"] != edit["after"] and edit["reason"] for edit in edits)


@pytest.mark.parametrize("name", ["one", "two", "data"])
def test_the_mended_file_is_the_source_again(repaired, folder, name):
    mended, source = (json.loads((folder / f).read_text()) for f in (f"{name}-fixed.fake", "model.fake"))
    for constant, item in source["constants"].items():
        assert mended["constants"][constant]["data"] == item["data"]


def test_before_and_after_are_measured_where_the_search_did_not_look(repaired):
    document = repaired["one"][1]
    assert (document["before"]["verdict"], document["after"]["verdict"]) == ("deviates", "faithful")
    assert document["before"]["inputs"] == document["after"]["inputs"]
    assert document["before"]["inputs"]["seed"] != 0
    held_out = repaired["data"][1]["after"]["inputs"]
    assert held_out["origin"] == "given.npz (other half)"
    assert sum(case["runs"] for case in held_out["cases"] if case["kind"] == "data") == 3


@pytest.mark.parametrize("name", WRITTEN)
def test_the_command_to_verify_it_with_agrees(repaired, folder, name):
    document = repaired[name][1]
    (line,) = document["after"]["rerun"]
    assert str(folder / f"{name}-fixed.fake") in shlex.split(line)
    done = trueport(*shlex.split(line)[1:], "--json", "again.json", cwd=folder)
    assert done.returncode == (1 if name == "cut-short" else 0)
    assert f"verify it: {line}" in repaired[name][0].stdout


def test_two_runs_give_the_same_file_and_the_same_edits(repaired, folder):
    document = repaired["two"][1]
    (line,) = document["rerun"]
    before = (folder / "two-fixed.fake").read_bytes()
    again = trueport(*shlex.split(line)[1:], "--json", "two-again.json", "--report", "two-again", cwd=folder)
    assert again.returncode == 0
    assert (folder / "two-fixed.fake").read_bytes() == before
    assert read(folder / "two-again.json")["edits"] == document["edits"]


def test_a_rule_that_could_not_help_says_why(repaired):
    refused = repaired["other"][1]["refused"]
    assert refused
    assert all(reason and len(reason) > 10 for reason in refused.values())
    tried = {attempt["rule"] for attempt in repaired["other"][1]["tried"]}
    assert tried <= set(refused)
    for rule in refused:
        assert rule in repaired["other"][0].stdout


def test_nothing_given_is_ever_written_to(folder, repaired):
    """The models were written before any run; what they hold is known from their seeds."""
    assert (folder / "model.fake").read_text() == fake.text_of(fake.network(seed=1))
    assert (folder / "other.fake").read_text() == fake.text_of(fake.network(seed=9, hidden=5))
    changed = fake.network(seed=1)
    two_faults(changed)
    assert (folder / "two.fake").read_text() == fake.text_of(changed)
    assert not [path.name for path in folder.iterdir() if path.name.endswith(".partial")]


def test_without_a_place_it_goes_beside_the_caller(folder, tmp_path):
    done = trueport("repair", folder / "model.fake", folder / "one.fake", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["one.fixed.fake"]


# -- on the terminal and in reports ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_no_line_is_wider_than_eighty(repaired, name):
    whole = ("report: ", "written to ", "verify it: ")
    lines = [line.rstrip() for line in repaired[name][0].stdout.splitlines() if not line.startswith(whole)]
    assert lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("name", RUNS)
def test_the_summary_begins_with_the_status_and_shows_both_sides(repaired, name):
    text = repaired[name][0].stdout
    status = RUNS[name][3]
    assert text.startswith(f"{wording.MARKS[status]} {status.upper()}  ")
    row = next(line for line in text.splitlines() if line.startswith("scores "))
    verdicts = {
        "repaired": "deviates faithful",
        "improved": "deviates deviates",
        "unrepaired": "deviates –",
        "not-needed": "faithful –",
    }
    assert [word for word in row.split() if word.isalpha() or word == "–"] == ["scores", *verdicts[status].split()]


def test_the_changes_are_a_table(repaired):
    text = repaired["two"][0].stdout
    lines = text.splitlines()
    head = next(
        index for index, line in enumerate(lines) if line.split() == ["#", "change", "place", "was", "is", "now"]
    )
    assert lines[head + 1].split()[:3] == ["1", "set-parameter", "MatMul_product_1"]
    assert any(line.split()[:3] == ["2", "set-parameter", "Add_scores"] for line in lines)


def test_quiet_is_one_line(folder):
    words = ["repair", "model.fake", "one.fake", "-o", "quiet.fake", "-q"]
    done = trueport(*words, cwd=folder, env={**os.environ, "COLUMNS": "300"})
    assert done.stderr == ""
    assert done.stdout.strip() == f"✓ REPAIRED  1 change, written to {folder / 'quiet.fake'}"


def test_json_on_stdout_stands_alone(folder):
    done = trueport("repair", "model.fake", "same.fake", "--json", "-", cwd=folder)
    assert json.loads(done.stdout)["status"] == "not-needed"
    assert "✓ NOT-NEEDED" in done.stderr


@pytest.mark.parametrize("name", RUNS)
def test_a_stored_repair_renders_the_same_again(repaired, folder, name):
    done = trueport("report", f"{name}.json", "-o", f"again-{name}", cwd=folder)
    assert done.returncode == 0, done.stderr
    for file, _ in REPORTERS.values():
        assert (folder / f"again-{name}" / file).read_bytes() == (folder / f"report-{name}" / file).read_bytes(), file


@pytest.mark.parametrize("file", ["report.html", "report.md"])
def test_reports_say_what_was_wrong_what_was_changed_and_what_came_of_it(repaired, folder, file):
    text = (folder / "report-two" / file).read_text(encoding="utf-8")
    for words in (
        "What was wrong",
        "What was changed",
        "Before and after",
        "Add_scores",
        "b2 of the source stands here",
    ):
        assert words in text
    assert repaired["two"][1]["explanation"] in text
    nothing = (folder / "report-other" / file).read_text(encoding="utf-8")
    assert "What was changed" not in nothing
    assert all(rule in nothing for rule in repaired["other"][1]["refused"])


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "a | b\nc", "[red]x[/red]"])
def test_words_of_a_repair_are_text_everywhere(repaired, hostile):
    stored = json.loads(json.dumps(repaired["two"][1]))
    stored["edits"][0] |= {"where": hostile, "before": hostile, "after": [hostile], "reason": hostile, "rule": hostile}
    stored |= {"explanation": hostile, "notes": [hostile], "command": hostile, "refused": {hostile: hostile}}
    assert "<script>alert" not in REPORTERS["html"][1](stored)
    rows = [line for line in REPORTERS["markdown"][1](stored).splitlines() if line.startswith("|")]
    assert {len(line.replace("\\|", "").split("|")) for line in rows} == {6 + 2, 7 + 2, 5 + 2}


# -- another tool ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tools", [True, False])
def test_where_no_change_helps_another_way_of_conversion_may(folder, tmp_path, tools):
    words = [
        "repair",
        folder / "model.fake",
        folder / "tanh.fake",
        "-o",
        "way.fake",
        "--patch",
        "fix.py",
        "--json",
        "r.json",
    ]
    done = trueport(*words, *([] if tools else ["--no-tools"]), cwd=tmp_path)
    document = read(tmp_path / "r.json")
    jsonschema.Draft202012Validator(results.schema("repair")).validate(document)
    if not tools:
        assert (done.returncode, document["status"], document["command"]) == (1, "unrepaired", "")
        assert not (tmp_path / "way.fake").exists()
        return
    assert (done.returncode, document["status"], document["patch"]) == (0, "repaired", None)
    assert [edit["kind"] for edit in document["edits"]] == ["convert-again"]
    assert f"made by: {document['command']}" in done.stdout
    assert "Converted another way" in done.stdout
    assert any("there is no patch" in note for note in document["notes"])
    assert document["command"] in document["explanation"]
    again = trueport(*shlex.split(document["command"])[1:], "-o", tmp_path / "again.fake", "-q", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.fake").read_bytes() == (tmp_path / "way.fake").read_bytes()


# -- ^C -------------------------------------------------------------------------------------------------------------


def test_an_interrupted_repair_keeps_the_best_so_far(folder):
    done = interrupted(folder, "i2", 2, "repair", "model.fake", "slow.fake", "-o", "i2.fake", "--no-tools")
    document = read(folder / "i2.json")
    assert done.returncode == 130, done.stderr
    assert (document["status"], document["interrupted"]) == ("improved", True)
    assert [edit["where"] for edit in document["edits"]] == ["MatMul_product_1"]
    kept = json.loads((folder / "i2.fake").read_text())
    assert kept["constants"]["w1"]["data"] == json.loads((folder / "model.fake").read_text())["constants"]["w1"]["data"]
    assert "interrupted" in done.stdout
    assert "written to" in done.stdout


def test_interrupted_before_anything_helped_nothing_is_written(folder):
    done = interrupted(folder, "i1", 1, "repair", "model.fake", "slow.fake", "-o", "i1.fake", "--no-tools")
    document = read(folder / "i1.json")
    assert done.returncode == 130, done.stderr
    assert (document["status"], document["output"]) == ("unrepaired", None)
    assert not (folder / "i1.fake").exists()
    assert not list(folder.glob(".i1.fake*"))


# -- the library ----------------------------------------------------------------------------------------------------


def test_the_public_function_gives_the_same(folder, tmp_path):
    with Session(Settings(timeout=60)) as session:
        source, target = folder / "model.fake", folder / "two.fake"
        done = library.repair(source, target, out=tmp_path / "a.fake", session=session)
        assert done.status is Status.REPAIRED
        assert done.output == tmp_path / "a.fake"
        assert done.after.verdict is Verdict.FAITHFUL
        assert [edit.where for edit in done.edits] == ["MatMul_product_1", "Add_scores"]
        assert api.verify(source, done.output, session=session).verdict is Verdict.FAITHFUL
        arrays = {"x0": np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)}
        again = library.repair(source, target, out=tmp_path / "b.fake", inputs=arrays, session=session)
        assert again.output.read_bytes() == done.output.read_bytes()
        options = ["fake-copy.misbehave=perturb:30"]
        made = library.convert(source, to="fake", out=tmp_path / "c.fake", options=options, session=session)
        assert made.repair.status is Status.REPAIRED
        assert made.verification.verdict is Verdict.FAITHFUL
        assert made.chosen.verification.verdict is Verdict.DEVIATES
        without = library.convert(
            source, to="fake", out=tmp_path / "d.fake", options=options, repair=False, session=session
        )
        assert without.repair is None
        assert without.verification.verdict is Verdict.DEVIATES


def test_a_patch_that_cannot_be_is_told(folder, tmp_path):
    """No script can be made for models of the fake framework; the repair stands without it."""
    with Session(Settings(timeout=60)) as session:
        source, target = folder / "model.fake", folder / "one.fake"
        done = library.repair(source, target, out=tmp_path / "a.fake", patch=tmp_path / "a.py", session=session)
    assert done.status is Status.REPAIRED
    assert done.patch is None
    assert any("there is no patch" in note for note in done.notes)
    assert [path.name for path in tmp_path.iterdir()] == ["a.fake"]


@pytest.mark.parametrize(
    ("place", "short"),
    [("conv", "conv"), ("0:a/add;b/mul;c", "0:a/add;… (3 names)"), ("a;b", "a;… (2 names)")],
)
def test_places_with_many_names_are_told_by_the_first(place, short):
    assert explanation.short(place) == short


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"seconds": float("nan")}, {"attempts": 0}])
def test_the_library_checks_its_budget(folder, wrong):
    with pytest.raises(UsageError, match="seconds above 0"):
        library.repair(folder / "model.fake", folder / "one.fake", **wrong)


def test_reasons_leave_out_the_rules_that_helped(folder, tmp_path):
    with Session(Settings(timeout=60)) as session:
        done = library.repair(folder / "model.fake", folder / "one.fake", out=tmp_path / "a.fake", session=session)
        other = library.repair(
            folder / "model.fake", folder / "other.fake", out=tmp_path / "b.fake", tools=False, session=session
        )
    assert done.edits[0].rule not in explanation.reasons(done)
    tried = {attempt.rule for attempt in other.attempts}
    assert all("tried: " in explanation.reasons(other)[rule] for rule in tried)


# -- what is given wrongly ------------------------------------------------------------------------------------------

WRONG = {
    "no model": (["nothing.fake", "one.fake"], "nothing.fake"),
    "no target": (["model.fake", "nothing.fake"], "nothing.fake"),
    "a target that is none": (["model.fake", "given.npz"], "not a model"),
    "one model": (["model.fake"], "TARGET"),
    "onto the target": (["model.fake", "one.fake", "-o", "one.fake"], "is the model to be mended"),
    "onto a link to the target": (["model.fake", "one.fake", "-o", "link.fake"], "is the model to be mended"),
    "onto the source": (["model.fake", "one.fake", "-o", "model.fake"], "is the source itself"),
    "onto a folder": (["model.fake", "one.fake", "-o", "."], "is a folder"),
    "no time": (["model.fake", "one.fake", "--seconds", "0"], "--seconds"),
    "no number of seconds": (["model.fake", "one.fake", "--seconds", "nan"], "--seconds"),
    "no attempt": (["model.fake", "one.fake", "--attempts", "0"], "--attempts"),
    "unknown task": (["model.fake", "one.fake", "--task", "guessing"], "guessing"),
    "unknown precision": (["model.fake", "one.fake", "--precision", "float8"], "float8"),
    "JSON onto the source": (["model.fake", "one.fake", "--json", "model.fake"], "uses that place already"),
    "JSON onto a link to the target": (["model.fake", "one.fake", "--json", "link.fake"], "uses that place already"),
    "JSON onto the result": (
        ["model.fake", "one.fake", "-o", "x.fake", "--json", "./x.fake"],
        "uses that place already",
    ),
    "patch onto the result": (["model.fake", "one.fake", "-o", "x.py", "--patch", "x.py"], "uses that place already"),
    "JSON onto the patch": (["model.fake", "one.fake", "--json", "x.py", "--patch", "x.py"], "uses that place already"),
    "no place for the result": (["model.fake", "one.fake", "--json", "model.fake/x.json"], "x.json"),
}


@pytest.mark.parametrize(("words", "named"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_served_ends_with_two(folder, words, named):
    if not (folder / "link.fake").exists():
        (folder / "link.fake").symlink_to("one.fake")
    before = digests(folder, "model.fake", "one.fake")
    names = {path.name for path in folder.iterdir()}
    done = trueport("repair", *words, cwd=folder)
    assert done.returncode == 2, done.stdout + done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert digests(folder, "model.fake", "one.fake") == before
    assert {path.name for path in folder.iterdir()} == names


def test_a_place_within_the_target_is_refused(tmp_path):
    target = tmp_path / "saved"
    target.mkdir()
    with pytest.raises(UsageError, match="lies in the model to be mended"):
        publish.check_apart(target / "fixed", target)
    publish.check_apart(tmp_path / "saved.fixed", target)


@pytest.mark.parametrize(("there", "passes"), [(b"weights", True), (b"another model's", False)])
def test_weights_of_another_model_are_never_replaced(tmp_path, there, passes):
    made = tmp_path / "work"
    made.mkdir()
    (made / "model.onnx").write_bytes(b"model")
    (made / "net.data").write_bytes(b"weights")
    place = tmp_path / "place"
    place.mkdir()
    (place / "net.data").write_bytes(there)
    old = (place / "net.data").stat()
    if passes:
        publish.model(made / "model.onnx", place / "fixed.onnx")
    else:
        with pytest.raises(UsageError, match="is in the way"):
            publish.model(made / "model.onnx", place / "fixed.onnx")
    assert (place / "net.data").read_bytes() == there
    assert (place / "net.data").stat().st_ino == old.st_ino
    assert (place / "fixed.onnx").exists() == passes
