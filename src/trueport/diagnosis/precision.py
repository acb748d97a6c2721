"""Values and operators of a lower precision: which grid an array lies on, and casts and quantisation that the source does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueport.diagnosis.operators import kind
from trueport.diagnosis.region import Inside
from trueport.graph import Node

_LEVELS = 256

_COVERS: Mapping[str, frozenset[str]] = {
    "float32": frozenset(),
    "float16": frozenset({"float16"}),
    "bfloat16": frozenset({"bfloat16", "float16"}),
    "int8-dynamic": frozenset({"int8", "float16"}),
    "int8": frozenset({"int8", "float16", "bfloat16"}),
}
"""Declared precision -> grids that weights may then lie on."""

_NARROW = {
    10: "float16",
    16: "bfloat16",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "half": "float16",
    "fp16": "float16",
}
"""What a Cast may name as its target type (ONNX numbers, names) -> the narrow type."""

_QUANTISERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "FakeQuantWithMinMaxVars", "Quantize")


def covered(grid: str, declared: str) -> bool:
    """Whether the declared precision lets weights lie on this grid."""
    return grid in _COVERS.get(declared, frozenset())


def grid_of(target: np.ndarray, source: np.ndarray) -> str | None:
    """The grid on which `target` is `source` rounded: "float16", "bfloat16", "int8"; None when it is not that, or equal.

    Both have the same shape; an int8 grid may have one step for all, or one per index of any axis.
    """
    if target.shape != source.shape or target.size < 2 or np.array_equal(target, source):
        return None
    if not (np.all(np.isfinite(target)) and np.all(np.isfinite(source))):
        return None
    for name, share in (("float16", 2.0**-11), ("bfloat16", 2.0**-8)):
        if _rounded(target, name) and np.all(np.abs(target - source) <= 1.05 * share * np.abs(source) + 1e-7):
            return name
    for axis in (None, *range(target.ndim)):
        step = _steps(target, axis)
        if step is not None and np.all(np.abs(target - source) <= 0.51 * step + 1e-6 * np.max(np.abs(source))):
            return "int8"
    return None


def _rounded(array: np.ndarray, name: str) -> bool:
    """Whether every element is representable in the narrow type, which wider values are only by accident."""
    single = np.asarray(array, np.float32)
    if name == "float16":
        with np.errstate(over="ignore"):
            return bool(np.array_equal(single.astype(np.float16).astype(np.float32), single))
    bits = np.ascontiguousarray(single).view(np.uint32)
    return bool(np.all(bits & 0xFFFF == 0))


def _steps(array: np.ndarray, axis: int | None) -> np.ndarray | None:
    """The step of the integer grid that an array lies on, along `axis` one per index; None when it lies on none."""
    if axis is None:
        step = _step(array.ravel())
        return None if step is None else np.full((1,) * array.ndim, step)
    if array.shape[axis] < 2 or array.size // array.shape[axis] < 4:
        return None
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    steps = [_step(row) for row in rows]
    if any(step is None for step in steps):
        return None
    return np.asarray(steps, float).reshape([-1 if place == axis else 1 for place in range(array.ndim)])


def _step(flat: np.ndarray) -> float | None:
    """The step of the grid k * step, |k| < 256, that holds all elements; None when there is none of so few levels."""
    largest = float(np.max(np.abs(flat)))
    if largest == 0:
        return 1e-30
    levels = np.unique(np.abs(flat) / largest)
    gaps = np.diff(np.concatenate([[0.0], levels]))
    gap = float(np.min(gaps[gaps > 1e-5], initial=1.0))
    if levels.size > _LEVELS or gap < 0.9 / _LEVELS:
        return None
    # The smallest gap is a multiple of the step, seldom more than a few steps on a real tensor.
    for parts in (1, 2, 3, 4):
        step = gap / parts
        counts = levels / step
        if np.max(counts) < _LEVELS and np.max(np.abs(counts - np.round(counts))) < 2e-2:
            if parts > 1 and flat.size < 64:
                return None
            return step * largest if flat.size >= 8 or np.max(counts) > 3 else None
    symmetric = largest / 127
    counts = flat / symmetric
    return symmetric if np.max(np.abs(counts - np.round(counts))) < 1e-2 else None


@dataclass(frozen=True, slots=True)
class Narrowing:
    """A node of the target region that makes values coarser, which no node of the source region does."""

    node: Node
    what: str
    source_value: Any
    target_value: Any


def narrowings(source: Inside, target: Inside, ours: Sequence[Node], theirs: Sequence[Node]) -> list[Narrowing]:
    """Casts to a narrow type and quantisation in the target region. `ours`: source region, `theirs`: target region."""
    present = {name for node in ours if (name := _narrow(node)) is not None}
    found = []
    for node in theirs:
        name = _narrow(node)
        if name is None or name in present or not target.runs(node):
            continue
        what = (
            f"{node.op} to {name}, where the source stays in float32"
            if name in _NARROW.values()
            else f"{node.op} rounds to an integer grid, which the source does not"
        )
        found.append(Narrowing(node, what, "float32", name))
    return found


def grid_made(node: Node) -> str:
    """What a cast or a quantisation makes of values: "float16", "int8", "float32"."""
    return _narrow(node) or "float32"


def _narrow(node: Node) -> str | None:
    if kind(node) == "Cast":
        given = node.attributes.get("to", node.attributes.get("dtype"))
        return _NARROW.get(given if isinstance(given, (int, str)) else "")
    return "int8" if node.op in _QUANTISERS else None
