"""Repairs the real faults of released converters and writes the page about them.

    python benchmarks/repair_cases.py [--out docs/repair-cases.md] [--cases FILE] [--again] [-v] [ID ...]

    python benchmarks/repair_cases.py --out docs/repair-cases.md R1 L11      # these rows anew, the others as they stand

Every fault of `tests/power/real_cases.py` is built, converted by the tool that has it, and repaired: first by edits of
the target's own file, and where those do not make it faithful, by another tool, option or version. What calls itself
repaired is verified once more on inputs that neither the search nor its gate saw. A case that is in the file of cases
is not run again, unless it was missed and `--again` is given. With IDs and `--out` the other rows stay as the page has
them. Exit code 1: a fault is not mended, or not all of it.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trueport import __version__, api, opening, publish, verification
from trueport.artifact import Artifact
from trueport.compare.types import Verification
from trueport.outcome import Failure, Kind, Ok
from trueport.repairs.explanation import reasons
from trueport.repairs.types import Edit, Repair, Status
from trueport.routes import parse_route
from trueport.session import Session, Settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "power"))

import real_cases  # noqa: E402
from real_cases import ROWS, Row  # noqa: E402

FRESH = 104_729
"""Seed of the inputs of the last verification, which neither the search nor its gate saw."""

IN_FILE, ELSEWHERE, NOT = "edits", "another way", "not mended"

LENGTH = 90
"""Characters of a value that a table shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """How one fault was mended.

    before, fresh: a verdict, or the kind of a failure. how: by edits of the file, another way, or not at all. edits: in
    words. command: the way that is faithful. reasons: rule -> why it mended nothing. status: of the repair by edits.
    """

    id: str
    model: str
    converter: str
    before: str
    how: str = NOT
    status: str = ""
    edits: tuple[str, ...] = ()
    command: str = ""
    fresh: str = ""
    seconds: float = 0.0
    reasons: Mapping[str, str] = field(default_factory=dict)
    tried: tuple[str, ...] = ()

    @property
    def mended(self) -> bool:
        """Faithful on inputs that nobody saw, in its own format or by a command."""
        return self.how != NOT and self.fresh == "faithful"


# -- one case -------------------------------------------------------------------------------------------------------------


def faults() -> tuple[Row, ...]:
    """The rows in which a converter is at fault."""
    return tuple(row for row in ROWS if not row.negative)


def run(session: Session, row: Row, folder: Path) -> Case:
    """Build, convert, repair, verify."""
    started = time.monotonic()
    source = real_cases.build(session, row, row.model, folder)
    target, converter = _made(session, row, source, folder)
    known = {"id": row.id, "model": f"{row.maker} {row.model}", "converter": converter}
    if isinstance(target, Failure):
        found = _converted_otherwise(session, row, source, folder)
        case = Case(**known, before=str(target.kind), **found)
    else:
        case = Case(**known, **_repaired(session, row, source, target, folder))
    return Case(**{**_fields(case), "seconds": round(time.monotonic() - started, 1)})


def _fields(case: Case) -> dict[str, Any]:
    return asdict(case)


def _made(session: Session, row: Row, source: Path, folder: Path) -> tuple[Path | Artifact | Failure, str]:
    """The wrong target, or how its conversion failed; and the tools that did it, with their versions."""
    if not row.route:
        target = real_cases.make_target(session, row, source, folder)
        return (target[0] if isinstance(target, tuple) else target), row.twin.replace("_", " ")
    done, made = real_cases.converted(session, row, source, folder)
    hops = done.attempts[0].hops
    parts = []
    for hop in hops:
        tool = hop.hop.step.tool
        given = "".join(f" {key}={value}" for key, value in hop.hop.options.items())
        parts.append(f"{hop.hop.step.name}{given} ({tool} {hop.versions.get(tool) or hop.versions.get(f'{tool}-cpu')})")
    words = ", then ".join(parts) + (f", as of {row.as_of}" if row.as_of else "")
    failure = done.attempts[0].failure
    if failure is not None and failure.kind == Kind.INVALID_OUTPUT:  # the tool itself writes the file
        bare = folder / f"{row.id}-by-hand{made.suffix}"
        real_cases.in_worker(session, "tensorflow", "by_hand", {"source": str(source), "out": str(bare)})
        return bare, f"{words}, run by hand"
    if failure is not None:
        return failure, words
    if row.converted_here and done.chosen is not None and done.chosen.output is not None:
        return done.chosen.output, words
    bare = folder / f"{row.id}{made.suffix}"
    publish.model(made, bare)  # with the weights that lie beside it
    return bare, words


def _repaired(session: Session, row: Row, source: Path, target: Path | Artifact, folder: Path) -> dict[str, Any]:
    """By edits of the file; where those do not make it faithful, by another tool, option or version."""
    suffix = (target if isinstance(target, Path) else target.path).suffix
    out = folder / f"{row.id}-fixed{suffix}"
    given = {"out": out, "session": session, "seconds": 240.0}
    made = api.repair(source, target, tools=False, **given)
    found: dict[str, Any] = {
        "before": str(made.before.verdict),
        "status": str(made.status),
        "reasons": {"verdict": made.before.reason, **reasons(made)},
        "tried": tuple(f"{one.rule}: {one.where}: {one.why}" for one in made.attempts),
    }
    if made.status is Status.REPAIRED:
        words = (*map(told, made.edits), *([made.settled.replace(f"{folder}/", "")] if made.settled else []))
        return {**found, "how": IN_FILE, "edits": words, "fresh": fresh(session, source, made)}
    if made.status is Status.NOT_NEEDED:
        return {**found, "fresh": str(made.before.verdict)}
    way = api.repair(source, target, tools=True, **{**given, "out": folder / f"{row.id}-other{suffix}"}, attempts=1)
    if way.status is Status.REPAIRED and way.command:
        command = way.command.replace(f"{folder}/", "")
        return {**found, "how": ELSEWHERE, "command": command, "fresh": fresh(session, source, way)}
    left = {rule: why for rule, why in reasons(way).items() if rule.startswith("CT")}
    return {**found, "edits": tuple(map(told, made.edits)), "reasons": {**found["reasons"], **left}}


def _converted_otherwise(session: Session, row: Row, source: Path, folder: Path) -> dict[str, Any]:
    """There is no file to mend: the routes that are left, with the locked tools."""
    route = parse_route(row.route)
    suffix = (
        "" if not route.target_format else real_cases.framework_of(route.target_format).SUFFIXES[route.target_format]
    )
    out = folder / f"{row.id}-other{suffix}"
    done = api.convert(source, to=route.target_format, out=out, session=session)
    words = {
        attempt.route.name: attempt.failure.message[:200] for attempt in done.attempts if attempt.failure is not None
    }
    if done.chosen is None or done.verification is None or str(done.verification.verdict) != "faithful":
        return {"reasons": words}
    command = f"trueport convert {source.name} --to {route.target_format} --route {done.chosen.route.name}"
    return {"how": ELSEWHERE, "command": command, "fresh": _verdict(verified(session, source, out)), "reasons": words}


def fresh(session: Session, source: Path, made: Repair) -> str:
    """The verdict on a result that calls itself repaired, on inputs that nobody saw before.

    By the source; where its own runtime computes it wrongly, by the copy that its runtime computes rightly.
    """
    if made.artifact is None:
        return ""
    judge = made.after.source.path if made.settled and made.after is not None else source
    return _verdict(verified(session, judge, made.artifact))


def verified(session: Session, source: Path, target: Path | Artifact) -> Verification:
    """Verify a target on inputs of a seed that is used nowhere else."""
    model = opening.open_model(session, source, None, None, None)
    twin = opening.open_model(session, target, None, None, None)
    loaded = verification.reference(session, model)
    assert isinstance(loaded, Ok), loaded
    given = opening.generated(session, model, loaded.value.signature, seed=FRESH)
    return verification.verify(loaded.value, twin, given)


def _verdict(made: Verification) -> str:
    return str(made.verdict)


def told(edit: Edit) -> str:
    """An edit in words."""
    return f"{edit.kind} at {_short(edit.where)}: {_short(edit.before)} → {_short(edit.after)} ({edit.reason})"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= LENGTH else text[: LENGTH - 1] + "…"


# -- the page -------------------------------------------------------------------------------------------------------------


def cell(text: str) -> str:
    """Text that stays inside one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def line(case: Case) -> str:
    """One row of the page."""
    mending = "; ".join(case.edits) if case.how == IN_FILE else f"`{case.command}`" if case.how == ELSEWHERE else NOT
    cells = [case.id, case.model, case.converter, case.before, case.how, mending, case.fresh or "–"]
    return "| " + " | ".join(map(cell, [*cells, f"{case.seconds:.0f}"])) + " |"


def figures(cases: Sequence[Case]) -> dict[str, int]:
    """What the table adds up to."""
    return {
        "faults": len(cases),
        "mended in the target's own file": sum(case.mended and case.how == IN_FILE for case in cases),
        "switched to a faithful tool, option or version": sum(case.mended and case.how == ELSEWHERE for case in cases),
        "not mended": sum(not case.mended for case in cases),
        "called repaired, and not faithful on fresh inputs": sum(
            bool(case.how != NOT) and not case.mended for case in cases
        ),
    }


def page(cases: Sequence[Case]) -> str:
    """The whole page as Markdown."""
    text = [
        "# Real faults of released converters, repaired",
        "",
        f"Made by `python benchmarks/repair_cases.py --out docs/repair-cases.md` (trueport {__version__}, Python"
        f" {platform.python_version()}). The faults are those of [real-cases.md](real-cases.md). Each target is first"
        " repaired in its own format, from the two files and generated inputs alone; where no edit makes it faithful,"
        " another tool, option or version is looked for among what is installed. A conversion that gives no model"
        " leaves nothing to edit, so only another way is left. The last verdict is on inputs that neither the search"
        " nor its gate saw. An int8 model is judged within the range that it was calibrated on. Where the source's own"
        " runtime computes the source wrongly, the target is mended and judged by a copy of the source that the runtime"
        " computes rightly, as the row says; by the source as it is that verdict stays flaky.",
        "",
        "| what | cases |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in figures(cases).items()),
        "",
        "| case | model | converter | before | mended by | how | fresh verdict | s |",
        "|---|---|---|---|---|---|---|---|",
        *map(line, cases),
    ]
    left = [case for case in cases if not case.mended]
    if left:
        text += ["", "## Not mended", "", "| case | why |", "|---|---|"]
        text += [
            f"| {case.id} | {cell('; '.join(f'{rule}: {why}' for rule, why in case.reasons.items()))} |"
            for case in left
        ]
    text += ["", "## Not rebuilt", "", "| case | why |", "|---|---|"]
    text += [f"| {cell(name)} | {cell(why)} |" for name, why in real_cases.NOT_RUNNABLE.items()]
    return "\n".join([*text, ""])


def shown(file: Path) -> dict[str, Case]:
    """The cases of a page that was written before, as far as it tells of them."""
    if not file.exists():
        return {}
    rows = [
        [part.strip().replace("\\|", "|") for part in re.split(r"(?<!\\)\|", text)[1:-1]]
        for text in file.read_text(encoding="utf-8").splitlines()
        if text.startswith("| ")
    ]
    known = {row.id for row in faults()}
    found: dict[str, Case] = {}
    for row in (row for row in rows if row[0] in known and len(row) == 8):
        name, model, converter, before, how, mending, verdict, seconds = row
        found[name] = Case(
            id=name,
            model=model,
            converter=converter,
            before=before,
            how=how,
            edits=(mending,) if how == IN_FILE else (),
            command=mending.strip("`") if how == ELSEWHERE else "",
            fresh=verdict.replace("–", ""),
            seconds=float(seconds),
        )
    for name, why in (row for row in rows if row[0] in found and len(row) == 2):
        rule, _, text = why.partition(": ")
        found[name] = replace(found[name], reasons={rule: text} if text else {})
    return found


# -- running --------------------------------------------------------------------------------------------------------------


def cases(rows: Iterable[Row], known: Mapping[str, Case], progress: Any = None) -> Iterator[Case]:
    """Run the rows that are not known yet."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Session(Settings(timeout=300), progress or (lambda line: None)) as session,
    ):
        for row in rows:
            yield known[row.id] if row.id in known else run(session, row, Path(folder))


def stored(file: Path | None) -> dict[str, Case]:
    """The cases of a file, the last one of each row."""
    if file is None or not file.exists():
        return {}
    lines = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines() if text]
    return {one["id"]: Case(**{**one, "edits": tuple(one["edits"]), "tried": tuple(one["tried"])}) for one in lines}


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", help="rows to run; all without any")
    parser.add_argument("--out", type=Path, help="the page to write")
    parser.add_argument("--cases", type=Path, help="file that keeps every case, one a line")
    parser.add_argument("--again", action="store_true", help="run again what was missed")
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="say of each case that no edit mends what was tried"
    )
    given = parser.parse_args()
    known = stored(given.cases)
    wanted = [row for row in faults() if not given.ids or row.id in given.ids]
    keep = {name: case for name, case in known.items() if not given.again or case.how == IN_FILE}
    done = []
    for case in cases(wanted, {} if given.ids else keep):
        done.append(case)
        print(line(case), flush=True)
        if given.verbose and case.how != IN_FILE:
            print(
                "\n".join(
                    [f"    {rule}: {why}" for rule, why in case.reasons.items()] + [f"    - {t}" for t in case.tried]
                )
            )
        if given.cases is not None and known.get(case.id) != case:
            with given.cases.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(case), ensure_ascii=False) + "\n")
    for name, count in figures(done).items():
        print(f"{name}: {count}")
    if given.out is not None:
        latest = {**(shown(given.out) if given.ids else {}), **{case.id: case for case in done}}
        publish.text(given.out, page([latest[row.id] for row in faults() if row.id in latest]))
    return 0 if all(case.mended for case in done) else 1


if __name__ == "__main__":
    sys.exit(main())
