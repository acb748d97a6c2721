"""The repair within `trueport convert`: what is delivered, what is said of it, and how it is switched off."""

from __future__ import annotations

import hashlib
import json
import os
import shlex

import jsonschema
import pytest
from pipeline_models import interrupted, read, trueport, write

from trueport import results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write(folder / "model.fake")
    return folder


BAD = ["--option", "fake-copy.misbehave=perturb:30"]


def converted(folder, name: str, *more: str):
    words = ["convert", "model.fake", "--to", "fake", "-o", f"{name}.fake", "--json", f"{name}.json", *more]
    return trueport(*words, cwd=folder, env={**os.environ, "COLUMNS": "80"}), read(folder / f"{name}.json")


@pytest.fixture(scope="module")
def mended(folder):
    return converted(folder, "c-mended", *BAD, "--report", "report-c-mended")


def test_a_conversion_that_is_not_faithful_is_mended(mended, folder):
    done, document = mended
    assert done.returncode == 0, done.stderr
    jsonschema.Draft202012Validator(results.schema("convert")).validate(document)
    jsonschema.Draft202012Validator(results.schema("repair")).validate(document["repair"])
    assert document["repair"]["status"] == "repaired"
    assert document["verify"]["verdict"] == "faithful"
    assert document["diagnose"]["verdict"] == document["tried"][0]["verdict"] == "deviates"
    out = folder / "c-mended.fake"
    assert document["output"] == document["repair"]["output"] == document["verify"]["target"]["path"] == str(out)
    assert hashlib.sha256(out.read_bytes()).hexdigest() == document["verify"]["target"]["sha256"]
    source = json.loads((folder / "model.fake").read_text())
    assert json.loads(out.read_text())["constants"] == source["constants"]
    assert document["verify"]["inputs"]["seed"] == 0, "the verification of what is delivered is that of the request"


def test_its_commands_do_what_they_say(mended, folder):
    _, document = mended
    (again,) = document["verify"]["rerun"]
    assert trueport(*shlex.split(again)[1:], cwd=folder).returncode == 0
    (diagnosed,) = document["diagnose"]["rerun"]
    assert shlex.split(diagnosed)[-1] == "--no-repair"
    assert document["diagnose"]["verify"]["rerun"] == [], "the model that it speaks of no longer lies there"
    assert document["repair"]["before"]["rerun"] == []


def test_it_says_what_was_wrong_and_what_was_changed(mended, folder):
    done, document = mended
    text = done.stdout
    assert text.index("As the converters made it:") < text.index("✓ REPAIRED") < text.index("✓ FAITHFUL")
    assert "after 1 change to the converted file" in " ".join(text.split())
    assert document["repair"]["edits"][0]["where"] in text
    for file in ("report.html", "report.md"):
        report = (folder / "report-c-mended" / file).read_text(encoding="utf-8")
        assert report.index("Diagnosis") < report.index("What was changed") < report.index("Before and after")


@pytest.mark.parametrize("off", ["--no-repair", "--no-diagnose", "--no-verify"])
def test_it_can_be_switched_off(folder, off):
    done, document = converted(folder, f"c{off}", *BAD, off)
    assert document["repair"] is None
    assert done.returncode == (0 if off == "--no-verify" else 1)
    kept = json.loads((folder / f"c{off}.fake").read_text())["constants"]
    assert kept != json.loads((folder / "model.fake").read_text())["constants"]


def test_what_is_faithful_at_once_is_left_alone(folder):
    done, document = converted(folder, "c-fine")
    assert done.returncode == 0
    assert document["repair"] is None
    assert "REPAIR" not in done.stdout


def test_what_cannot_be_mended_stays_as_the_converters_made_it(folder):
    bad = ["--option", "fake-copy.misbehave=drop-output"]
    plain, _ = converted(folder, "c-lost-plain", *bad, "--no-repair")
    done, document = converted(folder, "c-lost", *bad)
    assert done.returncode == plain.returncode == 1
    assert document["repair"]["status"] == "unrepaired"
    assert document["verify"]["verdict"] != "faithful"
    assert (folder / "c-lost.fake").read_bytes() == (folder / "c-lost-plain.fake").read_bytes()


def test_an_interrupted_repair_within_a_conversion_leaves_the_converted_model(folder):
    bad = ["--option", "fake-copy.misbehave=perturb:30,then:trace=slow:0.4"]
    words = ["convert", "model.fake", "--to", "fake", "-o", "c-i.fake", *bad]
    done = interrupted(folder, "c-i", 1, *words)
    document = read(folder / "c-i.json")
    assert done.returncode == 130, done.stderr
    assert (document["repair"]["interrupted"], document["repair"]["status"]) == (True, "unrepaired")
    assert hashlib.sha256((folder / "c-i.fake").read_bytes()).hexdigest() == document["verify"]["target"]["sha256"]
    assert document["verify"]["verdict"] == "deviates"
