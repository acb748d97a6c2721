"""Diagnoses the real faults of released converters and writes the page about them.

    python benchmarks/real_cases.py [--out docs/real-cases.md] [ID ...]

Exit code 1: fewer than 85 % of the faults are detected, fewer than 90 % of those get place, cause and known bug right,
or something that is no fault of a converter is blamed on one.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from trueport import __version__, publish

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "power"))

import real_cases  # noqa: E402
from real_cases import Result, mark  # noqa: E402

DETECTED, NAMED = 0.85, 0.90


def figures(results: Sequence[Result]) -> dict[str, tuple[int, int]]:
    """Question -> (right answers, all answers)."""
    faults = [result for result in results if not result.row.negative]
    found = [result for result in faults if result.detected]
    sound = [result for result in results if result.row.negative]
    asked = {
        "place": [result.place for result in found if result.place is not None],
        "cause": [result.cause for result in found if result.cause is not None],
        "known bug": [result.issue for result in found if result.issue is not None],
        "step": [result.step for result in found if result.step is not None],
    }
    counted = {"detected": (len(found), len(faults))}
    counted |= {name: (sum(map(bool, answers)), len(answers)) for name, answers in asked.items()}
    counted["place, cause and known bug"] = (sum(result.all_right for result in found), len(found))
    counted["not blamed on a converter"] = (sum(result.all_right for result in sound), len(sound))
    return counted


def missed(results: Sequence[Result]) -> list[str]:
    """What falls short of what is asked for; empty when nothing does."""
    counted = figures(results)
    bounds = {"detected": DETECTED, "place, cause and known bug": NAMED, "not blamed on a converter": 1.0}
    return [
        f"{name}: {right} of {of}, not {bound:.0%}"
        for name, bound in bounds.items()
        for right, of in [counted[name]]
        if of and right / of < bound
    ]


def cell(text: str) -> str:
    """Text that stays inside one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def line(result: Result) -> str:
    """One row of the page."""
    row = result.row
    how = row.route + "".join(f" {option}" for option in row.options) if row.route else row.twin
    made = " + ".join((*row.packages, *([f"as of {row.as_of}"] if row.as_of else [])))
    answers = (result.detected, result.place, result.cause, result.issue, result.step)
    cells = [row.id, f"{row.maker} {row.model}", how + (f" ({made})" if made else ""), row.expected]
    cells += [mark(answer) for answer in answers]
    return "| " + " | ".join(map(cell, [*cells, row.issue or "–", f"{result.seconds:.0f}", result.text])) + " |"


def page(results: Sequence[Result]) -> str:
    """The whole page as Markdown."""
    counted = figures(results)
    text = [
        "# Real faults of released converters, diagnosed",
        "",
        "Made by `python benchmarks/real_cases.py --out docs/real-cases.md` (trueport "
        f"{__version__}, Python {platform.python_version()}). Every row builds a small model, converts it with the tool"
        " that has the fault, and diagnoses the two files with generated inputs and no hints: neither side tells how"
        " the target came to be, except what the tool itself wrote into the file. Rows marked ¹ keep the layout or the"
        " calibration that the conversion declared, because no file tells it.",
        "",
        "| question | right | of | share |",
        "|---|---|---|---|",
    ]
    text += [f"| {name} | {right} | {of} | {right / of:.0%} |" for name, (right, of) in counted.items() if of]
    text += [
        "",
        "Place: the blamed node's operator is the one that is wrong. Cause: one of seven. Known bug: the entry of"
        " `known_issues.toml`. Step: the conversion step, found by converting again with what is installed. A dash"
        " means that the question does not arise (a conversion that fails has no place).",
        "",
        "| row | model | conversion | expected | detected | place | cause | known bug | step | which bug | s | what was said |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    text += [
        line(result).replace(f"| {result.row.id} ", f"| {result.row.id}{'¹' if result.row.converted_here else ''} ", 1)
        for result in results
    ]
    text += ["", "## Not rebuilt", "", "| case | why |", "|---|---|"]
    text += [f"| {cell(name)} | {cell(why)} |" for name, why in real_cases.NOT_RUNNABLE.items()]
    return "\n".join([*text, ""])


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", help="rows to run; all without any")
    parser.add_argument("--out", type=Path, help="the page to write")
    given = parser.parse_args()
    results = []
    for result, _ in real_cases.rows(given.ids):
        results.append(result)
        print(line(result), flush=True)
    for name, (right, of) in figures(results).items():
        print(f"{name}: {right} of {of}")
    if given.out is not None:
        publish.text(given.out, page(results))
    short = missed(results)
    for words in short:
        print(f"MISSED {words}")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
