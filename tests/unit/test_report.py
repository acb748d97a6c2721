"""Reports against whole stored ones in tests/gold; `python tests/unit/test_report.py` writes them anew, for a reader's eye."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from trueport import results
from trueport.report import REPORTERS, terminal, wording

GOLD = Path(__file__).resolve().parents[1] / "gold"
NAMES = (
    "faithful", "deviates", "incomparable", "failed", "several-routes",
    "diagnosed", "diagnosed-faithful", "known-issue", "failed-known-issue",
    "repaired", "unrepaired", "convert-repaired",
)  # fmt: skip
WHOLE = ("written to", "verify it: ", "patch: ", "another way: ")
"""Lines that are there to be copied, and so never broken."""
LINK = re.compile(r"""<a href="https://[^"]*" rel="noreferrer">""")
"""A link is followed by a reader, not loaded by the page."""


def document(name: str):
    return results.read(GOLD / f"{name}.json")


def on_terminal(stored, width: int = 80) -> str:
    stream = io.StringIO()
    terminal.show(stored, Console(file=stream, width=width, highlight=False, color_system=None))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


FORMS = {
    "txt": on_terminal,
    "md": REPORTERS["markdown"][1],
    "html": lambda stored: re.sub(r"trueport \d+\.\d+\.\d+", "trueport VERSION", REPORTERS["html"][1](stored)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_a_report_is_the_stored_one(name, form):
    assert FORMS[form](document(name)) == (GOLD / f"{name}.{form}").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_line_is_wider_than_the_terminal(name, width):
    lines = [line for line in on_terminal(document(name), width).splitlines() if not line.startswith(WHOLE)]
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("name", NAMES)
def test_the_page_loads_nothing(name):
    page = LINK.sub("", REPORTERS["html"][1](document(name)))
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(\s*['"]?http""", page)
    assert page.lstrip().lower().startswith("<!doctype html>")


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "a | b\nc", "[red]x[/red]", "`x`"])
def test_names_from_a_model_are_text_everywhere(hostile):
    stored = document("deviates")
    stored["outputs"][0]["source"] = hostile
    stored["reason"] = f"output {hostile} deviates"
    page = REPORTERS["html"][1](stored)
    assert "<script>alert" not in page
    rows = [line for line in REPORTERS["markdown"][1](stored).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}
    if "\n" not in hostile:
        assert hostile in on_terminal(stored, 200)


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "a | b\nc", "[red]x[/red]", "`x`"])
def test_words_of_a_diagnosis_are_text_everywhere(hostile):
    stored = document("known-issue")
    diagnosis = stored["diagnose"]
    suspect = diagnosis["suspects"][0]
    suspect["target_nodes"] = suspect["source_nodes"] = [hostile] * 2
    suspect["detail"] = {"what": hostile, "source_value": hostile, "target_value": [hostile, {"a": hostile}]}
    diagnosis["explanation"], diagnosis["notes"] = hostile, [hostile]
    page = REPORTERS["html"][1](stored)
    assert "<script>alert" not in page
    rows = [line for line in REPORTERS["markdown"][1](stored).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7, 8, 10}
    if "\n" not in hostile:
        assert hostile in on_terminal(stored, 200)


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "http://example.org", "data:text/html,x", 'https://x" onclick="y']
)
def test_only_secure_links_are_links(url):
    stored = document("known-issue")
    stored["diagnose"]["known_issue"]["url"] = url
    page = REPORTERS["html"][1](stored)
    assert not re.search(r"""href="(?!https://)""", page)
    assert 'onclick="' not in page


def test_the_version_to_take_is_shown_everywhere():
    stored = document("known-issue")
    for text in (REPORTERS["html"][1](stored), REPORTERS["markdown"][1](stored), on_terminal(stored)):
        assert "fixed in 0.5.7" in text
        assert "https://example.org/issues/1" in text
        assert "take 0.5.7 or newer" in text
    quiet = document("failed-known-issue")
    for text in (REPORTERS["html"][1](quiet), REPORTERS["markdown"][1](quiet), on_terminal(quiet)):
        assert "pass-error" in text
        assert "take another" in text


@pytest.mark.parametrize("name", ["repaired", "unrepaired"])
def test_what_to_do_next_is_shown_everywhere(name):
    stored = document(name)
    said = {"repaired": "fix.py models/wrong.fake", "unrepaired": stored["command"]}[name]
    for text in (REPORTERS["html"][1](stored), REPORTERS["markdown"][1](stored), on_terminal(stored)):
        assert said in text


def test_many_changes_are_cut_on_the_terminal_only():
    stored = document("repaired")
    first = stored["edits"][0] | {"where": "a/very_long_name/" * 9, "kind": "set-dimensions", "before": [1.5] * 40}
    stored["edits"] = [first] * 30
    lines = on_terminal(stored).splitlines()
    assert max(len(line) for line in lines if not line.startswith(WHOLE)) <= 80
    assert "and 18 more; the JSON document has them all" in lines
    assert REPORTERS["markdown"][1](stored).count("| set-dimensions |") == 30


def test_long_names_and_many_suspects_stay_within_the_terminal():
    stored = document("diagnosed")
    first = stored["suspects"][0]
    first["target_nodes"] = ["/encoder/layers." + "very_long_name_" * 12] * 9
    first["cause"], first["local"], first["causal"] = "hyperparameters", 123456.789, -12.3456
    stored["suspects"] = [{**first, "rank": rank} for rank in range(1, 13)]
    lines = on_terminal(stored).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("hyperparameters" in line and "-1234.56 %" in line for line in lines), "a figure was broken"


def test_figures_that_could_not_be_taken_are_dashes():
    stored = document("diagnosed")
    stored["suspects"][0] |= {"accumulated": "NaN", "local": "Infinity", "causal": "NaN"}
    row = next(line for line in on_terminal(stored).splitlines() if line.startswith("1 "))
    assert row.split()[-2:] == ["∞", "–"]
    assert "NaN" not in REPORTERS["markdown"][1](stored)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), ("", "–"), ("a text", "a text"), (1e-5, "1e-05"), (1.001e-5, "1.001e-05"), (3, "3"), (True, "true"),
        ([1, 2.5, [None]], "[1, 2.5, [–]]"), ({"a": [1]}, '{"a": [1]}'), (float("inf"), "∞"), ("Infinity", "∞"),
    ],
)  # fmt: skip
def test_the_two_values(value, text):
    assert wording.plain(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(1, "100.00 %"), (0.9999999, "99.99 %"), (-0.05, "-5.00 %"), ("NaN", "–"), ("-Infinity", "−∞"), (None, "–")]
)  # fmt: skip
def test_shares(share, text):
    assert wording.share(share) == text


@pytest.mark.parametrize(
    ("fixed", "cure", "text"),
    [("2.0", "take it", "fixed in 2.0; take it"), (None, "take it", "take it"), ("2.0", "", "fixed in 2.0"),
     (None, "", "no release that fixes it is known")],
)  # fmt: skip
def test_advice(fixed, cure, text):
    assert wording.advice({"fixed_in": fixed, "cure": cure}) == text


def test_a_list_of_names_is_cut():
    assert wording.some(["a", "b"]) == "a, b"
    assert wording.some(list("abcd"), 3) == "a, b, c and 1 more"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.0, "0"), (1.23456, "1.23"), (1.5e-7, "1.5e-07"), (float("nan"), "NaN"), (float("inf"), "∞"),
        (-float("inf"), "−∞"), ("NaN", "NaN"), (None, "–"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"), [(1, "100.00 %"), (0.999999, "99.99 %"), (0.5, "50.00 %"), (0, "0.00 %"), (None, "–")]
)
def test_a_hundred_percent_is_only_all(share, text):
    assert wording.percent(share) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 ms"), (0.25, "250 ms"), (1, "1.0 s"), (75.3, "75.3 s")])
def test_durations(seconds, text):
    assert wording.seconds(seconds) == text


def make_documents(folder: Path) -> None:
    """Run what the gold documents record, and scrub what differs from run to run."""
    from pipeline_models import route, scale, write, write_changed

    from trueport import api, conversion
    from trueport.artifact import Artifact
    from trueport.session import Session

    source = write(folder / "model.fake")
    write(folder / "twin.fake")
    write_changed(folder / "wrong.fake", scale(1.2))
    write(folder / "broken.fake", faults={"signature": ["raise"]})
    with Session() as session:
        for name, target in (("faithful", "twin"), ("deviates", "wrong"), ("incomparable", "broken")):
            found = api.verify(source, folder / f"{target}.fake", session=session)
            keep(name, results.verify_document(found), folder)
        for name, routes in (
            ("failed", [route("raise"), route("", "unsupported"), route("nothing")]),
            ("several-routes", [route("crash"), route("", "perturb:30"), route("perturb:5")]),
        ):
            artifact = Artifact.open(source)
            given = api.open_feeds(session, artifact, None)
            done = conversion.convert(session, artifact, routes, given, out=folder / "out.fake")
            keep(name, results.convert_document(done, rerun=CONVERT), folder)
    make_diagnoses(folder)


CONVERT = "trueport convert model.fake --to fake -o out.fake"


def make_diagnoses(folder: Path) -> None:
    """The same with diagnoses; known bugs are put in by hand, since none is known of a framework for tests."""
    from pipeline_models import scale, write, write_changed

    from trueport import api
    from trueport.session import Session

    def two_faults(model) -> None:
        scale(1.2)(model)
        model["constants"]["b2"]["data"][1] += 3.0

    source = write(folder / "model.fake")
    write(folder / "twin.fake")
    write_changed(folder / "wrong.fake", two_faults)
    issue = {
        "id": "tool-1", "url": "https://example.org/issues/1", "fixed_in": "0.5.7",
        "summary": "two layers end up with one bias", "cure": "take 0.5.7 or newer",
    }  # fmt: skip
    with Session() as session:
        for name, target in (("diagnosed-faithful", "twin"), ("diagnosed", "wrong")):
            found = api.diagnose(source, folder / f"{target}.fake", tools=False, session=session)
            keep(name, results.diagnose_document(found), folder)
        options = ["fake-copy.misbehave=perturb:30"]
        done = api.convert(source, to="fake", out=folder / "out.fake", options=options, session=session)
        found = results.convert_document(done, rerun=CONVERT)
        found["diagnose"]["known_issue"] = issue
        keep("known-issue", found, folder)
    failed = document("failed")
    hop = failed["tried"][0]["hops"][0]
    hop["known_issue"] = {**issue, "id": "pass-error", "fixed_in": None, "cure": "take another"}
    keep("failed-known-issue", failed, folder)


def make_repairs(folder: Path) -> None:
    """The same with repairs, alone and within a conversion. The patch and the other way are put in by hand."""
    from pipeline_models import scale, write, write_changed

    from trueport import api
    from trueport.session import Session

    def two_faults(model) -> None:
        scale(3.0)(model)
        model["constants"]["b2"]["data"][1] += 0.1

    source = write(folder / "model.fake")
    write_changed(folder / "wrong.fake", two_faults)
    write(folder / "another.fake", seed=9, hidden=5)
    with Session() as session:
        for name, target in (("repaired", "wrong"), ("unrepaired", "another")):
            out = folder / "fixed.fake"
            done = api.repair(source, folder / f"{target}.fake", out=out, tools=False, session=session)
            found = results.repair_document(done, rerun=[f"trueport repair model.fake {target}.fake -o fixed.fake"])
            if name == "repaired":
                found["patch"] = f"{folder}/fix.py"
            else:
                found["command"] = "trueport convert model.fake --to fake --option fake-copy.misbehave="
            keep(name, found, folder)
        options = ["fake-copy.misbehave=perturb:30"]
        made = api.convert(source, to="fake", out=folder / "out.fake", options=options, session=session)
        keep("convert-repaired", results.convert_document(made, rerun=CONVERT), folder)


def keep(name: str, found, folder: Path) -> None:
    text = results.dumps(found).replace(str(folder), "models")
    text = re.sub(
        r'("(?:seconds|source_run|target_run|total|trace|runtime|search|inputs|tools|verify)": )[\d.e-]+',
        r"\g<1>0.25",
        text,
    )
    text = re.sub(r'("floor": )[\d.e-]+(?=\n\s+}|,\n\s+"(?:target_run|total))', r"\g<1>0.25", text)
    text = re.sub(r'("log": )"(?:[^"\\]|\\.)*"', r'\g<1>"…"', text)
    text = re.sub(r'("(?:[a-z]+\.)?(?:python|numpy|trueport)": )"[\d.]+"', r'\g<1>"VERSION"', text)
    GOLD.mkdir(exist_ok=True)
    (GOLD / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        if "--documents" in sys.argv:
            make_documents(Path(made))
        if "--diagnoses" in sys.argv:
            make_diagnoses(Path(made))
        if "--repairs" in sys.argv:
            make_repairs(Path(made))
    for one in NAMES:
        for suffix, render in FORMS.items():
            (GOLD / f"{one}.{suffix}").write_text(render(document(one)), encoding="utf-8")
