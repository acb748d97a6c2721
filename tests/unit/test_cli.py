"""The command line on the fake framework: exit codes, documents, reports, and what goes to which stream."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time

import jsonschema
import psutil
import pytest
from pipeline_models import ENTRY, read, scale, trueport, write, write_changed

from trueport import results
from trueport.report import REPORTERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model, twins of every verdict, and models with faults."""
    folder = tmp_path_factory.mktemp("models")
    write(folder / "model.fake")
    write(folder / "faithful.fake")
    write_changed(folder / "deviates.fake", scale(1.2))
    write(folder / "incomparable.fake", faults={"signature": ["crash"]})
    write(folder / "flaky.fake", faults={"run": ["random:0.2"]})
    write(folder / "nan.fake", faults={"run": ["nan"]})
    return folder


VERDICTS = {"faithful": 0, "deviates": 1, "incomparable": 1, "flaky": 1, "nan": 1}


@pytest.fixture(scope="module")
def verified(folder):
    """name -> (finished process, document) of `trueport verify` with every kind of output."""
    found = {}
    for name in VERDICTS:
        done = trueport(
            "verify", "model.fake", f"{name}.fake", "--json", f"{name}.json", "--report", f"report-{name}", cwd=folder
        )
        found[name] = done, read(folder / f"{name}.json")
    return found


@pytest.fixture(scope="module")
def converted(folder):
    """name -> (finished process, document) of `trueport convert`."""
    runs = {
        "ok": [],
        "deviates": ["--no-repair", "--option", "fake-copy.misbehave=perturb:30"],
        "nan": ["--no-repair", "--option", "fake-copy.misbehave=nan"],
        "failed": ["--option", "fake-copy.misbehave=raise:it | breaks\non *two* lines"],
        "unverified": ["--no-verify"],
        "lower": ["--precision", "float16"],
    }
    found = {}
    for name, more in runs.items():
        words = ["convert", "model.fake", "--to", "fake", "-o", f"out-{name}.fake", *more]
        done = trueport(*words, "--json", f"c-{name}.json", "--report", f"report-c-{name}", cwd=folder)
        found[name] = done, read(folder / f"c-{name}.json")
    return found


CONVERTED = {"ok": 0, "deviates": 1, "nan": 1, "failed": 4, "unverified": 0, "lower": 0}


@pytest.mark.parametrize(("name", "code"), VERDICTS.items(), ids=VERDICTS)
def test_verify_ends_with_the_code_of_its_verdict(verified, name, code):
    done, document = verified[name]
    assert done.returncode == code, done.stderr
    assert document["verdict"] == {"nan": "deviates"}.get(name, name)
    assert document["verdict"].upper() in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", VERDICTS)
def test_verify_documents_follow_the_published_schema(verified, name):
    jsonschema.Draft202012Validator(results.schema("verify")).validate(verified[name][1])


def test_a_nan_is_counted_in_the_document(verified):
    assert sum(output["target_nonfinite"] for output in verified["nan"][1]["outputs"]) > 0


@pytest.mark.parametrize(("name", "code"), CONVERTED.items(), ids=CONVERTED)
def test_convert_ends_with_the_documented_code(converted, folder, name, code):
    done, document = converted[name]
    assert done.returncode == code, done.stderr
    assert document["status"] == ("failed" if code == 4 else "ok")
    out = folder / f"out-{name}.fake"
    assert out.exists() == (code != 4)
    assert document["output"] == (str(out) if code != 4 else None)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", CONVERTED)
def test_convert_documents_follow_the_published_schema(converted, name):
    document = converted[name][1]
    jsonschema.Draft202012Validator(results.schema("convert")).validate(document)
    if document["verify"] is not None:
        jsonschema.Draft202012Validator(results.schema("verify")).validate(document["verify"])


def test_a_failed_route_is_listed_with_its_failure(converted):
    done, document = converted["failed"]
    (attempt,) = document["tried"]
    assert attempt["failure"]["kind"] == "raised"
    assert attempt["failure"]["stage"] == "convert"
    assert "it | breaks" in done.stdout


@pytest.mark.parametrize("name", ["ok", "deviates", "lower"])
def test_output_and_rerun_name_no_temporary_place(converted, name):
    document = converted[name][1]
    places = [
        document["output"],
        *document["rerun"],
        *document["verify"]["rerun"],
        document["verify"]["target"]["path"],
    ]
    assert not [place for place in places if "trueport-" in place]
    assert "trueport-" not in json.dumps(document).replace(str(document["source"]["path"]), "")


def test_the_rerun_of_a_conversion_verifies_the_same(converted, folder):
    (line,) = converted["deviates"][1]["verify"]["rerun"]
    import shlex

    again = trueport(*shlex.split(line)[1:], "--json", "again.json", cwd=folder)
    assert again.returncode == 1
    assert stable(read(folder / "again.json"))["outputs"] == stable(converted["deviates"][1]["verify"])["outputs"]


def stable(document):
    """A document without what may differ between two runs: durations."""
    text = json.dumps(document)
    text = re.sub(r'"(seconds|source_run|floor|target_run|total)": [\d.e-]+(?=[,}])', r'"\1": 0', text)
    return json.loads(text)


@pytest.mark.parametrize(
    "words", [["verify", "model.fake", "deviates.fake"], ["convert", "model.fake", "--to", "fake"]]
)
def test_two_runs_give_the_same_document(folder, words):
    more = (
        ["-o", "same.fake", "--no-repair", "--option", "fake-copy.misbehave=perturb:5"] if words[0] == "convert" else []
    )
    texts = []
    for _ in range(2):
        done = trueport(*words, *more, "--json", "-", "--seed", "7", cwd=folder)
        assert done.returncode == 1
        texts.append(json.loads(done.stdout))
    assert texts[0]["format"].startswith(f"trueport/{words[0]}/")
    for text in texts:
        if text.get("diagnose"):
            text["diagnose"]["timings"] = text["diagnose"]["verify"]["timings"] = {}
        (text.get("verify") or text)["timings"] = {}
        for attempt in text.get("tried", []):
            for hop in attempt["hops"]:
                hop["seconds"] = 0
        for hop in text.get("route", []):
            hop["seconds"] = 0
    assert texts[0] == texts[1]


def test_json_on_stdout_stands_alone(folder):
    done = trueport("verify", "model.fake", "faithful.fake", "--json", "-", cwd=folder)
    assert json.loads(done.stdout)["verdict"] == "faithful"
    assert "FAITHFUL" in done.stderr
    quiet = trueport("verify", "model.fake", "faithful.fake", "--json", "-", "-q", cwd=folder)
    assert json.loads(quiet.stdout)["verdict"] == "faithful"
    assert quiet.stderr == ""


def test_progress_goes_to_stderr_and_quiet_is_one_result(folder):
    done = trueport("verify", "model.fake", "deviates.fake", "-v", cwd=folder)
    assert "running source and target" in done.stderr
    assert "running source and target" not in done.stdout
    quiet = trueport("verify", "model.fake", "deviates.fake", "-q", cwd=folder)
    assert quiet.stderr == ""
    assert quiet.stdout.startswith("✗ DEVIATES")


def test_no_colour_is_written_to_a_pipe_or_under_no_color(folder):
    for extra in ({}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}):
        done = trueport("verify", "model.fake", "deviates.fake", cwd=folder, env={**os.environ, **extra})
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", done.stdout + done.stderr), extra


@pytest.mark.parametrize("name", ["verify", "convert"])
def test_nothing_is_wider_than_the_terminal(folder, name):
    route = ["--to", "fake", "-o", "wide.fake", "--route", "fake-copy,fake-copy,fake-copy"]
    route += ["--option", "fake-copy.misbehave=perturb:30"]
    words = [name, "model.fake", *(["deviates.fake"] if name == "verify" else route)]
    done = trueport(*words, cwd=folder, env={**os.environ, "COLUMNS": "80"})
    lines = [line.rstrip() for line in done.stdout.splitlines() if "written to" not in line]
    assert lines
    assert max(map(len, lines)) <= 80
    assert not re.search(r"^\W*\w{1,3}$", done.stdout, flags=re.M), "a column was squeezed to shreds"


# -- reports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*VERDICTS, *(f"c-{name}" for name in CONVERTED)])
def test_a_stored_result_renders_the_same_again(verified, converted, folder, name):
    first = folder / f"report-{name}"
    assert sorted(path.name for path in first.iterdir()) == sorted(file for file, _ in REPORTERS.values())
    again = folder / f"again-{name}"
    done = trueport("report", f"{name}.json", "-o", again, cwd=folder)
    assert done.returncode == 0, done.stderr
    for file in first.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name
    from_report = folder / f"twice-{name}"
    trueport("report", first / "result.json", "-o", from_report, "--form", "html", cwd=folder)
    assert [path.name for path in from_report.iterdir()] == ["report.html"]
    assert (from_report / "report.html").read_bytes() == (first / "report.html").read_bytes()


# -- the other commands ---------------------------------------------------------------------------------------------


def test_inspect_tells_what_a_model_takes_and_gives(folder):
    done = trueport("inspect", "model.fake", "--json", cwd=folder)
    document = json.loads(done.stdout)
    assert done.returncode == 0
    assert [spec["name"] for spec in document["inputs"]] == ["x0"]
    assert [spec["name"] for spec in document["outputs"]] == ["scores", "chances"]
    plain = trueport("inspect", "model.fake", cwd=folder).stdout
    assert "MatMul 2" in plain
    assert "batch×6" in plain


def test_routes_lists_steps_and_routes(folder):
    steps = trueport("routes", cwd=folder)
    assert steps.returncode == 0
    assert "tf2onnx-keras" in steps.stdout
    assert "fake" not in steps.stdout
    found = trueport("routes", "onnx", "--to", "tflite", cwd=folder)
    assert "1. onnx2tf-tflite" in found.stdout
    assert "1. fake-copy" in trueport("routes", "model.fake", "--to", "fake", cwd=folder).stdout


def test_version_and_help(folder):
    from trueport import __version__

    assert trueport("--version", cwd=folder).stdout == f"trueport {__version__}\n"
    help_text = trueport("--help", cwd=folder).stdout
    for command in ("demo", "convert", "verify", "diagnose", "repair", "inspect", "routes", "envs", "report", "doctor"):
        assert re.search(rf"^\s+{command}\s", help_text, flags=re.M), command


def test_a_bug_of_ours_is_told_as_one_with_a_log(folder):
    code = (
        "from trueport import verification\n"
        "def broken(*a, **k): raise ZeroDivisionError('planted')\n"
        "verification.verify = broken\n"
        "from trueport.cli import main; main()\n"
    )
    done = subprocess.run(
        [ENTRY[0], "-c", code, "verify", "model.fake", "faithful.fake"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "This is a bug in trueport" in done.stderr
    assert "ZeroDivisionError: planted" in done.stderr
    assert "verify model.fake faithful.fake" in done.stderr


def family(process) -> list[psutil.Process]:
    """The processes that belong to a run, workers in sessions of their own included."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_for_worker(process, seconds=20.0) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = family(process)
        if found and any("child.py" in " ".join(one.cmdline()) for one in found if one.is_running()):
            return found
        time.sleep(0.05)
    raise AssertionError("no worker was started")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_conversion_leaves_no_process_and_no_output(folder, stop):
    out = folder / f"stopped-{stop}.fake"
    words = [
        "convert",
        "model.fake",
        "--to",
        "fake",
        "-o",
        out.name,
        "--option",
        "fake-copy.misbehave=hang-with-family",
    ]
    process = subprocess.Popen([*ENTRY, *words], cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_worker(process)
        time.sleep(1.0)
        left = family(process)
        process.send_signal(stop)
        told = process.communicate(timeout=10)[1]
    finally:
        process.kill()
    _, alive = psutil.wait_procs(left, timeout=5)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    assert process.returncode == (130 if stop == signal.SIGINT else -stop)
    assert not list(folder.glob(f"*{out.name}*"))
    assert "Traceback" not in told
    if stop == signal.SIGINT:
        assert "interrupted" in told
