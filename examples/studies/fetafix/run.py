"""Rebuilds the 15 erroneous conversions of the FetaFix study, repairs them, and prints our table beside theirs.

    python examples/studies/fetafix/run.py [--full] [--cases ID ...] [--json FILE] [--out docs/studies/fetafix.md]

Exit code 1: a case does not end at 0 % other labels and at the noise floor, or with more edits than there were faults.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fetafix.cases import BY_ID, CASES, Case
from fetafix.judging import Result, Side, from_json, judge
from fetafix.page import line, page
from fetafix.study import Workshop
from trueport import publish
from trueport.envs import cache_folder
from trueport.errors import TrueportError
from trueport.session import Session, Settings


def chosen(ids: Sequence[str]) -> list[Case]:
    """The cases of these names in this order, all without any. Ends the program with one sentence for a name that is none."""
    unknown = sorted(set(ids) - {case.id for case in CASES})
    if unknown:
        sys.exit(f"no case is called {', '.join(unknown)}; there are {', '.join(case.id for case in CASES)}")
    return [BY_ID[id] for id in dict.fromkeys(ids)] or list(CASES)


def results(shop: Workshop, cases: Sequence[Case], *, repair: bool) -> Iterator[Result]:
    """One case after the other, each told as soon as it is there; a model that cannot be made is a result as well."""
    for case in cases:
        try:
            yield judge(shop, case, repair=repair, diagnose=not repair)
        except TrueportError as error:
            nothing = Side(verdict="not made", mismatch=None, ratio=None, reason="")
            yield Result(case=case, sound=nothing, before=nothing, error=" ".join(str(error).split())[:500])


def earlier(path: Path | None, cases: Sequence[Case]) -> dict[str, Result]:
    """What an earlier run wrote of other cases than these: a study of hours can be run in parts."""
    if path is None or not path.exists():
        return {}
    told = json.loads(path.read_text(encoding="utf-8"))
    anew = {case.id for case in cases}
    return {one["case"]: from_json(one) for one in told if one["case"] in BY_ID and one["case"] not in anew}


def ordered(done: Mapping[str, Result]) -> list[Result]:
    """In the order of the study."""
    return [done[case.id] for case in CASES if case.id in done]


def _said(words: str) -> None:
    print(f"    {time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="pictures of the networks' native sizes (hours)")
    parser.add_argument("--size", type=int, help="pictures of this size for all networks")
    parser.add_argument("--cases", nargs="+", default=[], metavar="ID", help="only these cases")
    parser.add_argument("--folder", type=Path, help="where models are kept between runs")
    parser.add_argument("--no-repair", action="store_true", help="only make, compare and diagnose the cases")
    parser.add_argument(
        "--json", type=Path, help="write all results there; those of other cases that it holds are kept"
    )
    parser.add_argument("--out", type=Path, help="write the page there")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell what is being done")
    given = parser.parse_args()
    cases = chosen(given.cases)
    folder = given.folder or cache_folder() / "fetafix"
    done, started = earlier(given.json, cases), time.monotonic()
    settings = Settings(timeout=3600 if given.full else 1200)
    with Session(settings, progress=_said if given.verbose else lambda words: None) as session:
        shop = Workshop(session, folder.absolute(), full=given.full, size=given.size)
        for result in results(shop, cases, repair=not given.no_repair):
            done[result.case.id] = result
            print(line(result), flush=True)
            for words in (*result.suspects[:3], *result.edits[:5], *filter(None, [result.error])):
                print(f"    {' '.join(words.split())[:220]}", flush=True)
            if given.json is not None:
                publish.text(given.json, json.dumps([one.to_json() for one in ordered(done)], indent=1, default=str))
    if given.out is not None:
        publish.text(given.out, page(ordered(done), full=given.full))
    good = [result.before.verdict != "faithful" and not result.error for result in done.values()]
    if not given.no_repair:
        good = [result.repaired and result.minimal for result in done.values()]
    print(f"{sum(good)} of {len(good)} as they should be, {time.monotonic() - started:.0f} s")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
