"""The conversion matrix: every step on every zoo model that it can take; what was faithful must stay so."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import matrix  # noqa: E402

from trueport.routes import HISTORIC  # noqa: E402
from trueport.session import Session, Settings, formats  # noqa: E402

PAGE = ROOT / "docs" / "conversion-matrix.md"
NAMED = {"unavailable", "unsupported", "raised", "timed-out", "out-of-memory", "invalid-output", "crashed"}
VERDICTS = {"faithful", "deviates", "incomparable", "flaky"}


def published() -> dict[tuple[str, str], str]:
    """(model, step) -> outcome as the page in docs/ shows it."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| step |"))
    models = [cell.strip() for cell in lines[start].strip("|").split("|")][1:]
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("| `"):
            break
        label, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        found |= {(model, label.strip("`")): cell for model, cell in zip(models, cells, strict=True) if cell}
    return found


def check(cell: matrix.Cell) -> None:
    assert cell.outcome in VERDICTS | NAMED, f"{cell.model} over {cell.step}: {cell.outcome}: {cell.reason}"
    assert cell.reason, f"{cell.model} over {cell.step} ends as {cell.outcome} without a reason"
    if published().get((cell.model, cell.step)) == "faithful":
        assert cell.outcome == "faithful", (
            f"{cell.model} over {cell.step} was faithful, now {cell.outcome}: {cell.reason}"
        )


def test_the_page_covers_six_models_of_each_framework_and_every_step():
    cells = published()
    models = {model for model, _ in cells}
    for format, kinds in matrix.KINDS.items():
        assert len(kinds) >= 6
        assert {f"{kind} ({format})" for kind in kinds} <= models
    shown = {re.sub(r" (float16|int8-dynamic|int8)$", "", label) for _, label in cells}
    reached = {*matrix.KINDS, *(to for start in matrix.KINDS for to in formats() if matrix.plan(start, to))}
    found = {name: step for name, step in matrix.steps().items() if step.source_format in reached}
    expected = {name for name, step in found.items() if not step.legacy_keras and step.rank < HISTORIC}
    shown = {name for name in shown if matrix.steps()[name].rank < HISTORIC}
    assert shown == expected
    assert set(cells.values()) <= VERDICTS | NAMED


@pytest.mark.parametrize(
    ("format", "kind", "only"),
    [
        ("keras", "residual", {"tf2onnx-keras", "tflite-keras", "onnxslim"}),
        ("pytorch", "lstm", {"torch-torchscript", "torch-dynamo"}),
    ],
)
def test_some_cells(format, kind, only):
    with Session(Settings(timeout=300)) as session:
        cells = list(matrix.cells(session, format, kind, only=frozenset(only)))
    assert {cell.step.split()[0] for cell in cells} == only
    for cell in cells:
        check(cell)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    ("format", "kind"), [(format, kind) for format, kinds in matrix.KINDS.items() for kind in kinds]
)
def test_every_cell(format, kind):
    with Session(Settings(timeout=600)) as session:
        cells = list(matrix.cells(session, format, kind))
    assert {(cell.model, cell.step) for cell in cells} == {key for key in published() if key[0] == f"{kind} ({format})"}
    for cell in cells:
        check(cell)
