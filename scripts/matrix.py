"""Convert every zoo model over every step that can take it, and write the table to docs/conversion-matrix.md.

    python scripts/matrix.py [--models cnn,lstm] [--steps openvino-onnx,tvm-onnx] [--out FILE]

With `--models` or `--steps` the other cells of the page stay as they are. A cell is the verdict of that step's result against the original model, or the kind of Failure with its reason. The way
to a step's source format is the best route there; the hop that a cell names is always the last one.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trueport import feeds
from trueport.artifact import Artifact
from trueport.conversion import Workbench
from trueport.errors import TrueportError
from trueport.outcome import Failure, Stage
from trueport.routes import Hop, Route, plan, steps
from trueport.session import Session, Settings
from trueport.verification import reference

ROOT = Path(__file__).resolve().parents[1]

KINDS = {
    "pytorch": ("residual", "depthwise", "lstm", "gru", "encoder", "mixed"),
    "keras": ("residual", "depthwise", "lstm", "gru", "transformer", "multi"),
}
"""The zoo: residual CNN with BatchNorm, depthwise CNN, LSTM, GRU, small transformer encoder, several inputs and outputs."""

MAKERS = {"pytorch": ("torch", "torch_models"), "keras": ("tensorflow", "keras_models")}
"""source format -> (toolchain, module under tests/frameworks with `save(kind, folder, seed)`)."""


WAYS = 3
"""Routes to a step's source format that are tried before the step counts as not reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One step on one model."""

    model: str
    step: str
    route: str
    outcome: str
    reason: str


def make(session: Session, format: str, kind: str, seed: int) -> Path:
    """Build a zoo model in its toolchain and return the file."""
    toolchain, module = MAKERS[format]
    environment = session.environment(toolchain)
    assert not isinstance(environment, Failure), environment
    folder = session.pool.fresh_folder(f"zoo-{kind}")
    done = session.pool.call(
        environment.value.python,
        module,
        "save",
        {"kind": kind, "folder": str(folder), "seed": seed},
        stage=Stage.LOAD,
        paths=[str(ROOT / "tests" / "frameworks")],
    )
    assert not isinstance(done, Failure), f"{kind} ({format}): {done}"
    made = done.value.value
    return Path(made if isinstance(made, str) else made[format])


def cells(session: Session, format: str, kind: str, *, only: frozenset[str] | None = None) -> Iterator[Cell]:
    """Run one model over every step that can take it, or something made from it."""
    source = Artifact.open(make(session, format, kind, seed=0))
    loaded = reference(session, source)
    assert not isinstance(loaded, Failure), loaded
    given = feeds.generate(loaded.value.signature, seed=0)
    bench = Workbench(session=session, original=loaded.value, given=given, check=True, task="auto")
    for name, step in steps().items():
        if step.source_format == "fake" or step.legacy_keras or (only is not None and name not in only):
            continue
        for precision in step.precisions:
            label = name if precision == "float32" else f"{name} {precision}"
            found = cell(bench, f"{kind} ({format})", label, ways(source.format, name, precision))
            if found is not None:
                yield found


def ways(source: str, step_name: str, precision: str) -> list[Route]:
    """Return routes from the source's format that end with this step, best first."""
    step = steps()[step_name]
    options = {"precision": precision} if precision != "float32" else {}
    if step_name == "opset":
        options = {"opset": "20"}
    last = Hop(step=step, options=options)
    if step.source_format == source:
        return [Route(hops=(last,))]
    before = plan(source, step.source_format)
    return [Route(hops=(*route.hops, last)) for route in before[:WAYS]]


def cell(bench: Workbench, model: str, label: str, routes: list[Route]) -> Cell | None:
    """Run one cell: the first route on which the step itself is reached. None when no route gets there."""
    for route in routes:
        try:
            attempt = bench.attempt(route)
        except TrueportError as error:
            return Cell(model=model, step=label, route=route.name, outcome="error", reason=str(error))
        failure, verification = attempt.failure, attempt.verification
        if failure is None:
            assert verification is not None
            return Cell(
                model=model, step=label, route=route.name, outcome=str(verification.verdict), reason=verification.reason
            )
        if attempt.hops[-1].hop.step == route.hops[-1].step:
            return Cell(model=model, step=label, route=route.name, outcome=str(failure.kind), reason=failure.message)
    return None


def table(rows: Mapping[tuple[str, str], Cell], models: list[str], labels: list[str]) -> str:
    """Return the Markdown page."""
    lines = [
        "# Conversion matrix",
        "",
        "Generated by `scripts/matrix.py`: small models with seeded random weights, every step that can take them, each",
        "result compared with the original on generated inputs and probes. A cell is a verdict or the kind of failure; the",
        "reasons stand below. An empty cell: no route from this source reached the step.",
        "",
        "| step | " + " | ".join(models) + " |",
        "|---|" + "---|" * len(models),
    ]
    for label in labels:
        found = [rows[(model, label)].outcome if (model, label) in rows else "" for model in models]
        lines.append(f"| `{label}` | " + " | ".join(found) + " |")
    lines += [
        "",
        "## Reasons of everything that is not faithful",
        "",
        "| model | route | outcome | reason |",
        "|---|---|---|---|",
    ]
    for one in rows.values():
        if one.outcome != "faithful":
            reason = one.reason.replace("|", "\\|").replace("\n", " ").replace("](", "] (")  # no link
            lines.append(f"| {one.model} | {one.route} | {one.outcome} | {reason} |")
    return "\n".join(lines) + "\n"


def published(page: Path) -> dict[tuple[str, str], Cell]:
    """The cells that a page holds; nothing where there is none."""
    if not page.exists():
        return {}
    outcomes: dict[tuple[str, str], str] = {}
    reasons: dict[tuple[str, str, str], list[str]] = {}
    models: list[str] = []
    for line in page.read_text(encoding="utf-8").splitlines():
        parts = [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]
        if line.startswith("| step |"):
            models = parts[1:]
        elif line.startswith("| `"):
            label = parts[0].strip("`")
            outcomes |= {(model, label): outcome for model, outcome in zip(models, parts[1:], strict=True) if outcome}
        elif line.startswith("| ") and len(parts) == 4 and parts[0] in models:
            reasons.setdefault((parts[0], parts[1].split(",")[-1], parts[2]), []).append("|".join(parts[1::2]))
    found = {}
    for (model, label), outcome in outcomes.items():
        told = reasons.get((model, label.split()[0], outcome), ["|"])
        route, _, reason = (told.pop(0) if len(told) > 1 else told[0]).partition("|")
        found[(model, label)] = Cell(
            model=model, step=label, route=route, outcome=outcome, reason=reason.replace("\\|", "|")
        )
    return found


def main() -> int:
    """Run the matrix and write the page; exit code 1 when a cell is a bug of ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="all", help="kinds, separated by commas")
    parser.add_argument("--steps", help="only these steps, separated by commas")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "conversion-matrix.md")
    arguments = parser.parse_args()
    only = None if arguments.steps is None else frozenset(arguments.steps.split(","))
    partly = only is not None or arguments.models != "all"
    rows = published(arguments.out) if partly else {}
    run: list[Cell] = []
    with Session(Settings(timeout=600)) as session:
        for format, kinds in KINDS.items():
            for kind in kinds:
                if arguments.models != "all" and kind not in arguments.models.split(","):
                    continue
                for one in cells(session, format, kind, only=only):
                    rows[(one.model, one.step)] = one
                    run.append(one)
                    print(f"{one.model:24} {one.step:34} {one.outcome:16} {one.reason[:120]}", flush=True)
    wanted = [f"{kind} ({format})" for format, kinds in KINDS.items() for kind in kinds]
    models = [model for model in wanted if any(model == name for name, _ in rows)]
    labels = list(dict.fromkeys(label for _, label in rows))
    arguments.out.write_text(table(rows, models, labels), encoding="utf-8")
    return 1 if any(one.outcome == "error" for one in run) else 0


if __name__ == "__main__":
    sys.exit(main())
