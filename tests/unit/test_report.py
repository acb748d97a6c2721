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
NAMES = ("faithful", "deviates", "incomparable", "failed", "several-routes")


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
    lines = [line for line in on_terminal(document(name), width).splitlines() if not line.startswith("written to")]
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("name", NAMES)
def test_the_page_loads_nothing(name):
    page = REPORTERS["html"][1](document(name))
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
            keep(
                name, results.convert_document(done, rerun="trueport convert model.fake --to fake -o out.fake"), folder
            )


def keep(name: str, found, folder: Path) -> None:
    text = results.dumps(found).replace(str(folder), "models")
    text = re.sub(r'("(?:seconds|source_run|target_run|total)": )[\d.e-]+', r"\g<1>0.25", text)
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
    for one in NAMES:
        for suffix, render in FORMS.items():
            (GOLD / f"{one}.{suffix}").write_text(render(document(one)), encoding="utf-8")
