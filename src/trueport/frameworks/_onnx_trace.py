"""Shows the values inside an ONNX model: every node output becomes a graph output, in windows that fit a budget.

ONNX Runtime runs with its optimiser off: then exposing a value changes no other bit, and every value still exists.
How large the values are is asked of the runtime first, with a `Size` operator behind each, which itself needs no room.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trueport.frameworks import _onnx_file, _onnx_run
from trueport.frameworks._base import Arrays, Emit

VARIANT = "no-optimization"
_PREFIX = "trueport.number/"


def exposed(path: str) -> dict[str, str]:
    """Name -> dtype of every value that can be shown, in execution order. Left out: sequences, maps, optionals, bfloat16."""
    return dict(_exposed(path, _onnx_file.modified(path)))


@functools.lru_cache(maxsize=4)
def _exposed(path: str, changed: int) -> tuple[tuple[str, str], ...]:
    model = _onnx_file.read(path)
    names = [name for node in model.graph.node for name in node.output if name]
    names += [item.name for item in model.graph.output]
    made = _onnx_run.session(path, VARIANT, model=with_outputs(model, list(dict.fromkeys(names))))
    kinds = [(item.name, item.type) for item in made.get_outputs()]
    return tuple((name, _onnx_run.DTYPES[kind]) for name, kind in kinds if kind in _onnx_run.DTYPES)


def with_outputs(model: Any, names: Sequence[str]) -> Any:
    """Make `names` the model's outputs, untyped, and forget every recorded shape: some files record wrong ones."""
    from onnx import helper

    del model.graph.output[:]
    del model.graph.value_info[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    _drop_unused(model.graph, set(names))
    return model


def _drop_unused(graph: Any, needed: set[str]) -> None:
    """Remove the nodes on which none of the `needed` values depends: the runtime would run them all the same."""
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input, _onnx_file.captured(node))
            kept.append(node)
    if len(kept) < len(graph.node):
        copies = [type(node).FromString(node.SerializeToString()) for node in reversed(kept)]
        del graph.node[:]
        graph.node.extend(copies)


def sizes(path: str, inputs: Arrays, names: Sequence[str]) -> dict[str, int]:
    """Count the elements of each value, summed over the R runs, without holding any value."""
    return {name: int(np.sum(counts)) for name, counts in measured(path, inputs, names, "Size").items()}


def measured(path: str, inputs: Arrays, names: Sequence[str], operator: str) -> dict[str, np.ndarray]:
    """Reduce each value to one number per run, inside the runtime: name -> [R] of `operator` (Size, ReduceMin, ReduceMax)."""
    from onnx import helper

    model = _onnx_file.read(path)
    given = {} if operator == "Size" else {"keepdims": 0}
    model.graph.node.extend(helper.make_node(operator, [name], [_PREFIX + name], **given) for name in names)
    loaded = _onnx_run.runner(path, VARIANT, model=with_outputs(model, [_PREFIX + name for name in names]))
    found = _onnx_run.run_case(loaded, inputs)
    return {name: np.asarray(found[_PREFIX + name]) for name in names}


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
    shown = exposed(path)
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
    counts = sizes(path, inputs, names)
    # While a window is held, one run's results stand beside the stacked arrays.
    costs = {name: counts[name] * item_size(shown[name]) * (runs + 1) // runs for name in names}
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
    loaded = _onnx_run.runner(path, VARIANT, model=with_outputs(_onnx_file.read(path), group))
    prepared = _onnx_run.prepare(loaded.inputs, inputs)
    runs = _onnx_run.count_runs(prepared)
    kept, uneven = collect(loaded, (_onnx_run.one_run(prepared, index) for index in range(runs)), runs)
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
