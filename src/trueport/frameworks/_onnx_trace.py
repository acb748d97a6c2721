"""Shows the values inside an ONNX model: every node output becomes a graph output, in windows that fit a budget.

ONNX Runtime runs with its optimiser off: then exposing a value changes no other bit, and every value still exists.
How large the values are is asked of the runtime first, with a `Size` operator behind each, which itself needs no room.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trueport.frameworks import _onnx_cut, _onnx_run
from trueport.frameworks._base import Arrays, Emit


def sizes(path: str, inputs: Arrays, names: Sequence[str]) -> dict[str, int]:
    """Count the elements of each value, summed over the R runs, without holding any value."""
    return {name: int(np.sum(counts)) for name, counts in measured(path, inputs, names, "Size").items()}


def measured(path: str, inputs: Arrays, names: Sequence[str], operator: str) -> dict[str, np.ndarray]:
    """Reduce each value to one number per run, inside the runtime: name -> [R] of `operator` (Size, ReduceMin, ReduceMax)."""
    wanted = [_onnx_cut.NUMBER + name for name in names]
    loaded = _onnx_run.wrap(_onnx_cut.load(path, _onnx_cut.VARIANT, {}, wanted, number=operator))
    kept, _ = collect(loaded, *_feeds(path, loaded, inputs))
    return {name: kept[place] for place, name in enumerate(names)}


def _feeds(path: str, loaded: _onnx_run.Runner, inputs: Arrays) -> tuple[Iterable[Arrays], int]:
    """Return what each run of a cut takes, and how many there are. Raises ValueError as `_onnx_run.prepare` does."""
    known = _onnx_cut.index(path).inputs
    needed = {name: array for name, array in inputs.items() if name in loaded.inputs or name not in known}
    prepared = _onnx_run.prepare(loaded.inputs, needed)
    runs = _onnx_run.count_runs(inputs)
    return (_onnx_run.one_run(prepared, index) for index in range(runs)), runs


def windows(costs: dict[str, int], budget: int) -> list[list[str]]:
    """Cut the names, in order, into groups whose costs sum to at most `budget`; a larger single value stands alone."""
    made: list[list[str]] = []
    room = 0
    for name, cost in costs.items():
        if not made or cost > room:
            made.append([])
            room = budget
        made[-1].append(name)
        room -= cost
    return made


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int) -> dict[str, Any]:
    """Emit each wanted value [R, *shape]. Returns {"runs", "windows", "skipped": values whose shape differs between runs}.

    Raises ValueError for a name that is no value of the model.
    """
    shown = _onnx_cut.exposed(path)
    unknown = [name for name in wanted if name not in shown and name not in inputs]
    if unknown:
        raise ValueError(f"the model has no value named {unknown[0]!r} that can be shown ({len(unknown)} such names)")
    for name in wanted:
        if name not in shown:
            emit(name, np.asarray(inputs[name]))
    names = [name for name in dict.fromkeys(wanted) if name in shown]
    if not names:
        return {"runs": 0, "windows": 0, "skipped": []}
    runs = max(1, len(next(iter(inputs.values()))) if inputs else 1)
    # One run tells the sizes of all, nearly always. While a window is held, one run's results stand beside the stacked arrays.
    counts = sizes(path, {name: array[:1] for name, array in inputs.items()}, names)
    costs = {name: counts[name] * item_size(shown[name]) * (runs + 1) for name in names}
    groups = windows(costs, budget)
    skipped: list[str] = []
    for group in groups:
        skipped += _show(path, inputs, group, emit)
    return {"runs": runs, "windows": len(groups), "skipped": skipped}


def item_size(dtype: str) -> int:
    """Bytes of one element."""
    return 64 if dtype == "str" else np.dtype(dtype).itemsize  # a text's length is not known beforehand


def _show(path: str, inputs: Arrays, group: list[str], emit: Emit) -> list[str]:
    """Run R calls with these outputs only, then emit and drop each; return those whose shapes differ between runs."""
    loaded = _onnx_run.wrap(_onnx_cut.load(path, _onnx_cut.VARIANT, {}, group))
    kept, uneven = collect(loaded, *_feeds(path, loaded, inputs))
    for place in sorted(kept):
        emit(group[place], kept.pop(place))
    return [group[place] for place in uneven]


def collect(
    loaded: _onnx_run.Runner, feeds: Iterable[Arrays], runs: int
) -> tuple[dict[int, np.ndarray], dict[int, None]]:
    """Run R calls and stack each output by its place to [R, *shape]; and the places of those whose shapes differ."""
    kept: dict[int, np.ndarray] = {}
    uneven: dict[int, None] = {}
    for index, one in enumerate(feeds):
        results = loaded.call(one)
        for place, value in enumerate(results):
            if place not in kept:
                kept[place] = np.empty((runs, *value.shape), dtype=value.dtype)
            if kept[place].shape[1:] == value.shape:
                kept[place][index] = value
            else:
                uneven[place] = None
        del results
    return {place: array for place, array in kept.items() if place not in uneven}, uneven
