"""How often does the verdict cry wolf, and what does it miss? Prints the table that the bounds are calibrated on.

    python benchmarks/noise_floor.py [--clean 200] [--places 2] [--seed 0] [--quick]

Clean conversions of many models and seeds must be faithful; copies of the source with one planted fault, converted
cleanly, must deviate. Rows are kept in a file and reused as long as the code that judges is the same, so that an
interrupted run goes on where it stopped. Exit code 1: a false alarm, or a required fault that was not found.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from noise import plan, tables
from noise.trials import ROOT, Bench, Trial, TrialError

from trueport.session import Session, Settings

JUDGING = (
    "src/trueport/compare",
    "src/trueport/feeds",
    "src/trueport/verification.py",
    *(f"benchmarks/noise/{name}.py" for name in ("trials", "torch_faults", "keras_faults")),
)
"""What a row depends on beside the toolchains: rows that other versions of these files wrote are not reused."""

QUICK_SOURCES = (("torch", "residual"), ("torch", "encoder"), ("keras", "depthwise"), ("onnx/torch", "mixed"))
QUICK_PLANTED = {"torch": ("encoder", "depthwise"), "keras": ("depthwise", "exact_gelu")}


def code_digest() -> str:
    """Digest of the files under JUDGING."""
    total = hashlib.sha256()
    for name in JUDGING:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            total.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return total.hexdigest()[:16]


class Rows:
    """Rows of trials, appended to a file one by one."""

    def __init__(self, path: Path, *, reuse: bool) -> None:
        self.path, self.code, self.known = path, code_digest(), {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            text = path.read_text(encoding="utf-8")
            if text and not text.endswith("\n"):
                path.write_text(text + "\n", encoding="utf-8")  # an interrupted run was writing this line
            for line in text.splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if reuse or row["code"] == self.code:
                    self.known[row["key"]] = row

    def get(self, bench: Bench, trial: Trial) -> dict[str, Any]:
        """Return the row of a trial, from the file or by running it."""
        if trial.key not in self.known:
            try:
                row = {**bench.run(trial), "code": self.code}
            except TrialError as error:
                sys.exit(f"the benchmark itself failed: {error}")
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.known[trial.key] = row
        return self.known[trial.key]


def run_clean(rows: Rows, bench: Bench, count: int, trials: Iterable[Trial]) -> tuple[list[Any], list[Any]]:
    """Run clean trials until `count` were converted. Returns their rows, and those of known converter faults."""
    clean: list[Any] = []
    known: list[Any] = []
    done = 0
    for trial in trials:
        row = rows.get(bench, trial)
        if plan.known_fault(trial):
            known.append({**row, "reason": f"{plan.known_fault(trial)}: {row['reason']}"})
            continue
        clean.append(row)
        done += row["verdict"] != "not converted"
        progress(f"clean {done}/{count}", row)
        if done >= count:
            break
    return clean, known


def progress(label: str, row: dict[str, Any]) -> None:
    """Say on stderr what a trial gave."""
    more = "" if row["verdict"] == "faithful" else f" {row['reason'][:150]}"
    where = f" {row['fault']} {row['where']}" if row["fault"] else ""
    name = f"{row['framework']} {row['kind']} {row['seed']} {row['route']}{where}"
    print(f"{label} {name}: {row['verdict']}, strain {tables.strain(row):.3g}{more}", file=sys.stderr, flush=True)


def failed(clean: list[Any], known: list[Any], planted: list[Any]) -> bool:
    """Tell whether there is a false alarm, a known fault that passed, or a required fault that could be found and was not."""
    noise = tables.clean_noise(clean)
    lost = [row for row in planted if row["verdict"] != "deviates" and row["fault"] in tables.ACCEPTED]
    missed = [row for row in lost if tables.missed_as(row, noise) == tables.MISSED]
    wrong = [row for row in clean if row["verdict"] not in ("faithful", "not converted")]
    return bool(wrong or missed or [row for row in known if row["verdict"] == "faithful"])


def main() -> int:
    """Run the trials and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clean", type=int, default=200, help="clean conversions to reach")
    parser.add_argument("--places", type=int, default=2, help="places per fault, model and route")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="12 clean conversions, 4 small models with faults")
    parser.add_argument("--rows", type=Path, default=ROOT / "build" / "noise-floor.jsonl", help="file of rows")
    parser.add_argument(
        "--reuse", action="store_true", help="take rows of other versions of the code (for work on the tables)"
    )
    parser.add_argument("--out", type=Path, help="write the page there too, such as docs/noise-floor.md")
    given = parser.parse_args()
    rows, started = Rows(given.rows, reuse=given.reuse), time.perf_counter()
    with Session(Settings(timeout=900)) as session:
        bench = Bench(session)
        trials = plan.clean(given.seed, deep=not given.quick, sources=QUICK_SOURCES if given.quick else plan.SMALL)
        clean, known = run_clean(rows, bench, 12 if given.quick else given.clean, trials)
        planted = []
        models = QUICK_PLANTED if given.quick else plan.PLANTED
        for trial in plan.planted(bench, given.seed, 1 if given.quick else given.places, models):
            planted.append(rows.get(bench, trial))
            progress(f"planted {len(planted)}", planted[-1])
    options = "--quick" if given.quick else f"--clean {given.clean} --places {given.places}"
    page = tables.report(clean, known, planted, f"{options} --seed {given.seed}")
    print(page)
    print(f"{len(clean) + len(known) + len(planted)} trials in {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if given.out is not None:
        partial = given.out.with_name(f".{given.out.name}.partial")
        partial.write_text(page, encoding="utf-8")
        partial.replace(given.out)
    return 1 if failed(clean, known, planted) else 0


if __name__ == "__main__":
    sys.exit(main())
