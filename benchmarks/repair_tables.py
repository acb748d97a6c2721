"""What the cases of the repair benchmark add up to: rates by pair, format, row and kind, and the floors they must keep."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from power_tables import ROWS, grouped

Case = Mapping[str, Any]

REPAIRED, REPAIRED_SEVERAL, SPURIOUS = 0.90, 0.80, 0.02
"""Least share of faults mended, of cases with several faults mended, and largest share of results with a spurious edit."""
COST = 20.0
"""Median time of a repair, in times of one verification."""


def counted(cases: Iterable[Case], mode: str) -> list[Case]:
    """Single faults that show, or cases of several."""
    return [case for case in cases if case["mode"] == mode and case.get("effective") is not False and "status" in case]


def mended(case: Case) -> bool:
    """Repaired, and found faithful on inputs that neither the search nor its gate saw."""
    return bool(case["status"] == "repaired" and case["fresh"] == "faithful")


def missed(case: Case) -> bool:
    """Whether a case went wrong in any way that is counted."""
    return "status" in case and (not mended(case) or bool(case["spurious"]))


def stored(case: Case) -> str:
    """One line of the file of cases."""
    return json.dumps(case, ensure_ascii=False, default=str)


def line(case: Case) -> str:
    """One case in one line."""
    where = f"{case['pair']} | {case['model']}"
    if case["mode"] == "skipped":
        return f"skip   {where} | {case['kind']}: {case['why'][:90]}"
    kinds = ", ".join(fault["kind"] for fault in case.get("faults", [case]))
    if "status" not in case:
        return f"none   {where} | {kinds}: changes nothing measurable ({case['error']:.1e})"
    word = "ok" if not missed(case) else "SPUR" if mended(case) else "MISS"
    edits = ", ".join(f"{edit['rule']}:{edit['kind']}" for edit in case["edits"])
    return f"{word:<6} {where} | {kinds}: {case['status']} [{edits}] {case.get('attempts')} tries {case.get('seconds', 0)}s"


def details(case: Case) -> str:
    """What is needed to see why a case was missed."""
    lines = []
    for fault in case.get("faults", [case]):
        lines.append(f"    truth  {fault['cause']} at {', '.join(fault['nodes'])}: {fault['what']}")
        lines.append(f"           {_short(fault['source_value'])} -> {_short(fault['target_value'])}")
    lines += [
        f"    suspect {item['cause']} at {item['nodes']}: {item['what'][:150]}" for item in case.get("suspects", [])
    ]
    lines += [
        f"    edit    {edit['rule']} {edit['kind']} at {edit['where']}: {_short(edit['before'])} -> {_short(edit['after'])}"
        for edit in case["edits"]
    ]
    lines += [
        f"    tried   {item['rule']} at {item['where']} x{item['edits']}: {item['before']:.3g} -> {item['after']:.3g} {item['why'][:110]}"
        for item in case.get("tried", [])[:14]
    ]
    lines += [f"    refused {rule}: {why[:150]}" for rule, why in case.get("refused", {}).items()]
    lines.append(f"    fresh {case.get('fresh')}; notes {case.get('note')}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:100]


# -- tables -------------------------------------------------------------------------------------------------------------


def totals(cases: Iterable[Case]) -> dict[str, Any]:
    """Every figure that a floor holds for."""
    known = list(cases)
    single, several = counted(known, "single"), counted(known, "several")
    costs = [case["seconds"] / case["verify_seconds"] for case in single if case.get("verify_seconds")]
    both = [*single, *several]
    written = [case for case in both if case["edits"]]
    return {
        "single": len(single),
        "mended": sum(map(mended, single)),
        "several": len(several),
        "several_mended": sum(map(mended, several)),
        "results": len(written),
        "spurious": sum(bool(case["spurious"]) for case in written),
        "wrong": sum(case["status"] == "repaired" and case["fresh"] == "deviates" for case in both),
        "cost": statistics.median(costs) if costs else float("nan"),
        "seconds": statistics.median(case["seconds"] for case in single if "seconds" in case)
        if costs
        else float("nan"),
        "kinds": len({case["kind"] for case in single}),
        "pairs": len({case["pair"] for case in single}),
        "models": len({case["model"].partition("#")[0] for case in single}),
    }


def below_floor(cases: Iterable[Case]) -> list[str]:
    """The floors that are missed, in words. What was not run has no floor."""
    sums = totals(cases)
    problems = []
    if sums["single"] and sums["mended"] < REPAIRED * sums["single"]:
        problems.append(f"mended {sums['mended']} of {sums['single']}")
    if sums["several"] and sums["several_mended"] < REPAIRED_SEVERAL * sums["several"]:
        problems.append(f"several mended {sums['several_mended']} of {sums['several']}")
    if sums["spurious"] > SPURIOUS * max(1, sums["results"]):
        problems.append(f"{sums['spurious']} of {sums['results']} results with a spurious edit")
    if sums["wrong"]:
        problems.append(f"{sums['wrong']} results that call themselves repaired and deviate")
    return problems


def table(title: str, cases: Sequence[Case], key: Callable[[Case], str]) -> list[str]:
    """A Markdown table of the rates of each group."""
    lines = [
        f"| {title} | faults | repaired | improved | not repaired | spurious | edits | median seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, group in [*grouped(cases, key), ("**all**", list(cases))]:
        good = sum(map(mended, group))
        better = sum(case["status"] == "improved" for case in group)
        spurious = sum(bool(case["spurious"]) for case in group if case["edits"])
        edits = [len(case["edits"]) for case in group if mended(case)]
        seconds = [case["seconds"] for case in group if "seconds" in case]
        mean = f"{statistics.mean(edits):.1f}" if edits else "–"
        middle = f"{statistics.median(seconds):.1f}" if seconds else "–"
        rate = f"{100 * good / len(group):.1f} % ({good})" if group else "–"
        lines.append(
            f"| {name} | {len(group)} | {rate} | {better} | {len(group) - good - better} | {spurious} | {mean} | {middle} |"
        )
    return [*lines, ""]


def text(cases: Iterable[Case]) -> str:
    """The tables and the totals."""
    known = list(cases)
    single, several = counted(known, "single"), counted(known, "several")
    lines: list[str] = []
    if single:
        lines += table("pair", single, lambda case: str(case["pair"]))
        lines += table("format", single, lambda case: str(case["format"]))
        lines += table("row", single, lambda case: f"{case['row']}: {ROWS.get(case['row'], '')}")
        lines += table("kind", single, lambda case: str(case["kind"]))
    if several:
        lines += table("faults at once", several, lambda case: str(len(case["faults"])))
    sums = totals(known)
    lines += [f"{name}: {value}" for name, value in sums.items()]
    lines += [f"BELOW THE FLOOR: {problem}" for problem in below_floor(known)]
    return "\n".join(lines)


def page(cases: Iterable[Case]) -> str:
    """The page `docs/repair-power.md`."""
    known = list(cases)
    sums = totals(known)
    single, several = counted(known, "single"), counted(known, "several")
    head = f"""# What a repair mends

Faults of {sums["kinds"]} kinds were planted at random places into {sums["models"]} models that had been converted
faithfully, over {sums["pairs"]} pairs of formats, and each target was repaired in its own format, with generated
inputs and without any hint. {sums["single"]} of them show. Tools are never switched here.

- *repaired*: the result is faithful to the noise floor on the inputs of the search, on others that only its gate saw,
  and on a third set that nothing saw before the result was final. *improved*: nearer to the source, not faithful.
- *spurious*: results with an edit that touches neither a faulty node nor one right beside it.
- *edits*: mean number of edits of what was repaired.

Results that call themselves repaired and that a fresh verification calls deviating: {sums["wrong"]}. Results with a
spurious edit: {sums["spurious"]} of {sums["results"]}. Median time of a repair: {sums["cost"]:.1f} times that of one
verification of the same pair ({sums["seconds"]:.1f} s).

`python benchmarks/repair_power.py --out docs/repair-power.md` makes this page; `--multi` adds the cases with several faults.
"""
    lines = [head]
    lines += table("pair", single, lambda case: str(case["pair"]))
    lines += table("format", single, lambda case: str(case["format"]))
    lines += table("row", single, lambda case: f"{case['row']}: {ROWS.get(case['row'], '')}")
    lines += table("kind", single, lambda case: str(case["kind"]))
    if several:
        lines += table("faults at once", several, lambda case: str(len(case["faults"])))
    return "\n".join(lines).rstrip() + "\n"
