"""What the cases of the power benchmark add up to: rates by pair, by row, by kind, by model, and the floors they must keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Case = Mapping[str, Any]

FLOORS = {"detected": 0.99, "top1": 0.90, "top3": 0.97, "cause_right": 0.90}
"""Least share of the faults that show, from the acceptance of the diagnosis."""
FLOOR_SEVERAL = 0.85
"""Least share of cases with two or three faults in which all are found."""
ROWS = {
    "PP": "inputs",
    "ID": "dimensions",
    "TSS": "layout and axes",
    "WB": "weights and biases",
    "LH": "hyperparameters",
    "CG": "operators of the graph",
    "QZ": "precision",
    "RT": "runtime",
}


def singles(cases: Iterable[Case]) -> list[Case]:
    """Single faults that show; those that change nothing measurable are not counted."""
    return [case for case in cases if case["mode"] == "single" and case["effective"] is not False]


def missed(case: Case) -> bool:
    """Whether a case went wrong in any way that is counted."""
    if case["mode"] == "clean":
        return case["verdict"] != "faithful" or bool(case["suspects"])
    if case["mode"] == "single":
        return case["effective"] is not False and not (case["detected"] and case["top1"] and case["cause_right"])
    return case["mode"] == "several" and case["found"] < len(case["faults"])


def line(case: Case) -> str:
    """One case in one line."""
    where = f"{case['pair']} | {case['model']}"
    if case["mode"] == "skipped":
        return f"skip   {where} | {case['kind']}: {case['why'][:90]}"
    if case["mode"] == "single" and case["effective"] is False:
        return f"none   {where} | {case['kind']}: changes nothing measurable ({case['error']:.1e})"
    seconds = f"{case.get('seconds', 0.0):.1f}s"
    if case["mode"] == "clean":
        return f"{'MISS' if missed(case) else 'ok':<6} {where} | clean: {case['verdict']} {seconds}"
    if case["mode"] == "several":
        kinds = ", ".join(fault["kind"] for fault in case["faults"])
        return f"{'MISS' if missed(case) else 'ok':<6} {where} | {kinds}: {case['found']} of {len(case['faults'])} {seconds}"
    marks = "".join(mark if case[name] else "-" for name, mark in zip(FLOORS, "D13C", strict=True))
    return f"{'MISS' if missed(case) else 'ok':<6} {where} | {case['kind']}: {marks} {seconds}"


def details(case: Case) -> str:
    """What is needed to see why a case was missed."""
    lines = []
    for fault in case.get("faults", [case] if case["mode"] == "single" else []):
        lines.append(f"    truth  {fault['cause']} at {', '.join(fault['nodes'])}: {fault['what']}")
        lines.append(
            f"           {_short(fault['source_value'])} -> {_short(fault['target_value'])}, error {fault['error']:.2e}"
        )
    lines.append(f"    verdict {case['verdict']}; alignment {case.get('alignment')}")
    for suspect in case["suspects"][:4]:
        nodes = ", ".join(suspect["target_nodes"][:5])
        numbers = f"acc {suspect['accumulated']:.2g} local {suspect['local']:.2g} causal {suspect['causal']:.2g}"
        detail = suspect["detail"]
        lines.append(f"    suspect {suspect['rank']} {suspect['cause']} at {nodes} ({numbers})")
        lines.append(
            f"           {detail['what'][:160]}: {_short(detail['source_value'])} -> {_short(detail['target_value'])}"
        )
    if case["note"]:
        lines.append(f"    notes  {case['note']}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)[:100]


# -- tables -------------------------------------------------------------------------------------------------------------


def share(cases: Sequence[Case], name: str) -> float:
    """Share of cases for which `name` holds; NaN of none."""
    return sum(bool(case[name]) for case in cases) / len(cases) if cases else float("nan")


def totals(cases: Iterable[Case]) -> dict[str, Any]:
    """Every figure that a floor holds for, and how many cases stand behind it."""
    known = list(cases)
    found, clean = singles(known), [case for case in known if case["mode"] == "clean"]
    several = [case for case in known if case["mode"] == "several"]
    return {
        "single": len(found),
        "ineffective": sum(case["mode"] == "single" for case in known) - len(found),
        "pairs": len({case["pair"] for case in found}),
        "models": len({case["model"].partition("#")[0] for case in found}),
        "kinds": len({case["kind"] for case in found}),
        **{name: share(found, name) for name in (*FLOORS, "cause_exact")},
        "spurious": sum(case["spurious"] for case in found),
        "clean": len(clean),
        "clean_not_faithful": sum(case["verdict"] != "faithful" for case in clean),
        "false_suspects": sum(len(case["suspects"]) for case in clean),
        "several": len(several),
        "several_all_found": sum(case["found"] == len(case["faults"]) for case in several) / max(1, len(several)),
        "several_spurious": sum(case["spurious"] for case in several),
    }


def below_floor(cases: Iterable[Case]) -> list[str]:
    """The floors that are missed, in words. What was not run has no floor."""
    sums = totals(cases)
    problems = [
        f"{name} {sums[name]:.3f} < {floor}" for name, floor in FLOORS.items() if sums["single"] and sums[name] < floor
    ]
    if sums["several"] and sums["several_all_found"] < FLOOR_SEVERAL:
        problems.append(f"several {sums['several_all_found']:.3f} < {FLOOR_SEVERAL}")
    if sums["false_suspects"]:
        problems.append(f"{sums['false_suspects']} false suspects on clean pairs")
    return problems


def grouped(cases: Sequence[Case], key: Callable[[Case], str]) -> list[tuple[str, list[Case]]]:
    """Cases by a key, in the key's order."""
    names = sorted({key(case) for case in cases})
    return [(name, [case for case in cases if key(case) == name]) for name in names]


def table(title: str, cases: Sequence[Case], key: Callable[[Case], str]) -> list[str]:
    """A Markdown table of the rates of each group."""
    lines = [f"| {title} | faults | detected | top-1 | top-3 | cause | spurious |", "|---|---|---|---|---|---|---|"]
    for name, group in [*grouped(cases, key), ("**all**", list(cases))]:
        rates = " | ".join(_percent(group, one) for one in FLOORS)
        lines.append(f"| {name} | {len(group)} | {rates} | {sum(case['spurious'] for case in group)} |")
    return [*lines, ""]


def _percent(cases: Sequence[Case], name: str) -> str:
    """100 % only where it is exactly that."""
    count = sum(bool(case[name]) for case in cases)
    if count == len(cases):
        return "100 %"
    return f"{min(99.9, 100 * count / len(cases)):.1f} % ({count})"


def _several_table(cases: Sequence[Case]) -> list[str]:
    lines = [
        "| faults at once | cases | all named | each by a suspect of its own | spurious |",
        "|---|---|---|---|---|",
    ]
    for name, group in grouped(cases, lambda case: str(len(case["faults"]))):
        counts = [sum(case[how] == len(case["faults"]) for case in group) for how in ("found", "own")]
        shares = " | ".join(f"{100 * count / len(group):.1f} % ({count})" for count in counts)
        lines.append(f"| {name} | {len(group)} | {shares} | {sum(case['spurious'] for case in group)} |")
    return [*lines, ""]


def text(cases: Sequence[Case]) -> str:
    """All tables, for the terminal and for the page."""
    found = singles(cases)
    lines: list[str] = []
    if found:
        lines += table("pair", found, lambda case: case["pair"])
        lines += table("names", found, lambda case: "shared" if case["names"] else "not shared")
        lines += table("row", found, lambda case: f"{case['row']}: {ROWS[case['row']]}")
        lines += table("model", found, lambda case: case["model"].partition("#")[0])
        lines += table("kind", found, lambda case: case["kind"])
    several = [case for case in cases if case["mode"] == "several"]
    if several:
        lines += _several_table(several)
    sums = totals(cases)
    if sums["clean"]:
        lines.append(
            f"Clean pairs: {sums['clean']}, of which {sums['clean_not_faithful']} were not found faithful; "
            f"false suspects: {sums['false_suspects']}."
        )
    lines += ["", *(f"BELOW THE FLOOR: {problem}" for problem in below_floor(cases))]
    return "\n".join(lines).rstrip() + "\n"


HEAD = """# What a diagnosis finds

Faults of {kinds} kinds were planted at random places into {models} models that had been converted faithfully, over
{pairs} pairs of formats, and each was diagnosed with generated inputs and without any hint. {single} of them show;
{ineffective} more change no output beyond ten times its noise floor and are not counted.

- *detected*: the verdict is `deviates`.
- *top-1*: the first node of the first suspect is the faulty one. *top-3*: it is among the first three of the ranking.
  A fault that sits between nodes (an operator left out, a cast) counts as found at any node next to it.
- *cause*: the first suspect's cause is the planted one, or says the same in other words (a kernel's height and width
  exchanged may be called parameters or structure); exactly the planted word in {exact:.1f} %.
- *spurious*: suspects none of whose nodes has to do with the fault.
- of several faults at once, one is *named* when it is among the first three nodes of a suspect. Neighbouring faults may
  be named by one suspect.

`python benchmarks/power.py --out docs/power.md` makes this page; `--clean` and `--multi` add the pairs without a fault
and those with several.

"""


def page(cases: Sequence[Case]) -> str:
    """The page for docs/."""
    sums = totals(cases)
    return HEAD.format(**sums, exact=100 * sums["cause_exact"]) + text(cases)
