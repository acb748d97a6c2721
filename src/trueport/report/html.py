"""A result as one self-contained HTML page: opens from disk, loads nothing, needs no script to be read."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import jinja2

from trueport import __version__
from trueport.report import wording
from trueport.results import Document

WIDTH = 640.0
ROW = 18.0
LABEL = 190.0


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trueport.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    filters: dict[str, Any] = {
        "number": wording.number,
        "percent": wording.percent,
        "seconds": wording.seconds,
        "measure": wording.measure,
        "share": wording.share,
        "plain": wording.plain,
        "place": wording.place,
        "advice": wording.advice,
        "some": wording.some,
        "step": wording.step,
        "alignment": wording.alignment,
        "outcome": wording.outcome,
        "before_after": wording.before_after,
        "changes": wording.changes,
        "patching": wording.patching,
        "unmended": wording.unmended,
    }
    environment.filters.update(filters)
    return environment


def render(document: Document) -> str:
    """Return the page."""
    state, sentence = wording.headline(document)
    verify = wording.verification(document)
    return (
        _environment()
        .get_template("result.html")
        .render(
            version=__version__,
            document=document,
            verify=verify,
            diagnosis=wording.diagnosis(document),
            repair=wording.repair(document),
            within=not wording.is_repair(document),
            reason=wording.reason(document),
            state=state,
            sentence=sentence,
            mark=wording.MARKS[state],
            plots=[] if verify is None else [plot(output) for output in verify["outputs"]],
        )
    )


def plot(output: Document) -> dict[str, Any]:
    """Lay out one output's deviations against its noise floor, case by case, on a logarithmic axis.

    Returns coordinates for the template: `rows` of {"label", "y", "floor", "deviation"} and axis `ticks`.
    """
    rows = []
    values = []
    for name, case in output.get("cases", {}).items():
        floor, deviation = (_positive(case.get(key)) for key in ("floor", "deviation"))
        values += [value for value in (floor, deviation) if value is not None]
        rows.append({"label": name, "floor": floor, "deviation": deviation, "ratio": case.get("ratio")})
    low = math.floor(math.log10(min(values))) if values else -8
    high = math.ceil(math.log10(max(values))) if values else 0
    high = max(high, low + 1)

    def x(value: float | None) -> float | None:
        if value is None:
            return None
        return LABEL + (math.log10(value) - low) / (high - low) * (WIDTH - LABEL - 20)

    for index, row in enumerate(rows):
        row |= {"y": 14 + ROW * index, "floor": x(row["floor"]), "deviation": x(row["deviation"])}
    step = max(1, (high - low) // 6)
    ticks = [{"x": x(10.0**power), "label": f"1e{power}"} for power in range(low, high + 1, step)]
    return {"source": output["source"], "rows": rows, "ticks": ticks, "width": WIDTH, "height": ROW * len(rows) + 36}


def _positive(value: Any) -> float | None:
    number = value if isinstance(value, (int, float)) else None
    return float(number) if number is not None and number > 0 and math.isfinite(number) else None
