"""What one value is like: its kind, how much of it depends on the input, and a sketch that survives any permutation.

The sketch holds equally spaced order statistics of every run. For any permutation P, |sort t - sort s| <= |t - P s|, so
the distance of two sketches is (up to the thinning) a lower bound of the error under every layout: it prunes soundly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from trueport.graph import Graph

POINTS = 33
"""Order statistics per run."""
FEW = 8
"""A value with fewer distinct numbers (a mask, a class number) says too little to be recognised by it."""
PROBES = 48
"""Elements on which relations are tried before a whole value is read."""


class Kind(StrEnum):
    """How a value can be used: only `ACT` is matched by value, the others are passed on graph walks."""

    CONST = "const"
    """Does not depend on any input."""
    STATIC = "static"
    """Depends on an input and does not vary with it: shapes, positions."""
    LOWINFO = "lowinfo"
    NONFINITE = "nonfinite"
    ACT = "act"
    OTHER = "other"
    """Not numeric, or without elements."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Info:
    """One value: kind, elements per run, rms of its input-dependent part, rms, sketch [R, POINTS], shape without runs."""

    kind: Kind
    size: int
    dev: float
    rms: float
    shape: tuple[int, ...]
    sketch: np.ndarray

    @property
    def unit(self) -> float:
        """What errors are divided by: the part that depends on the input, or all of it where nothing does."""
        return self.dev if self.dev > 0 else self.rms if self.rms > 0 else 1.0

    @property
    def tight(self) -> tuple[int, ...]:
        """The shape without axes of size 1."""
        return tuple(size for size in self.shape if size != 1)


def infos(graph: Graph, values: Mapping[str, np.ndarray]) -> dict[str, Info]:
    """Describe every traced value of a model, in execution order, inputs first."""
    dependent = graph.downward(graph.inputs)
    order = [name for name in graph.inputs if name in values]
    order += [name for node in graph.nodes for name in node.outputs if name in values]
    order += [name for name in values if name not in set(order)]
    return {name: describe(values[name], dependent=name in dependent) for name in dict.fromkeys(order)}


def describe(array: np.ndarray, *, dependent: bool = True) -> Info:
    """Describe one value [R, *shape]."""
    runs, shape = array.shape[0], tuple(array.shape[1:])
    size = int(np.prod(shape, dtype=np.int64))
    nothing = np.zeros((runs, 0), np.float32)
    if array.dtype.kind not in "fiub" or size == 0 or runs == 0:
        return Info(kind=Kind.OTHER, size=size, dev=0.0, rms=0.0, shape=shape, sketch=nothing)
    flat = numbers(array).reshape(runs, size)
    if not np.isfinite(flat).all():
        return Info(kind=Kind.NONFINITE, size=size, dev=float("nan"), rms=float("nan"), shape=shape, sketch=nothing)
    ordered = np.sort(flat, axis=1)
    sketch = ordered[:, np.linspace(0, size - 1, POINTS).round().astype(np.int64)]
    with np.errstate(over="ignore", invalid="ignore"):
        dev = rms(flat - flat.mean(axis=0)) if runs > 1 else rms(flat - flat.mean())
        level = rms(flat)
    if not dependent:
        kind = Kind.CONST
    elif dev <= 1e-7 * level:
        kind = Kind.STATIC
    elif size * runs < FEW or _distinct(ordered) < FEW:
        kind = Kind.LOWINFO
    else:
        kind = Kind.ACT
    return Info(kind=kind, size=size, dev=dev, rms=level, shape=shape, sketch=sketch)


def numbers(array: np.ndarray) -> np.ndarray:
    """The values as floats: float32 stays, everything else that may hold large integers becomes float64."""
    return np.asarray(array, dtype=np.float32 if array.dtype in (np.float32, np.float16, np.bool_) else np.float64)


def rms(array: np.ndarray) -> float:
    """Root mean square, summed in float64."""
    if array.size == 0:
        return 0.0
    flat = array.reshape(-1)
    return float(np.sqrt(np.dot(flat, flat) / flat.size)) if flat.dtype == np.float64 else _rms32(flat)


def _rms32(flat: np.ndarray) -> float:
    total = 0.0
    for start in range(0, flat.size, 1 << 20):  # float64 copies of one piece at a time
        part = flat[start : start + (1 << 20)].astype(np.float64)
        total += float(np.dot(part, part))
    return float(np.sqrt(total / flat.size))


def _distinct(ordered: np.ndarray) -> int:
    """Distinct numbers over all runs; counting stops where it is enough."""
    found: set[float] = set()
    for row in ordered:
        thinned = row[:: max(1, row.size // 4096)]
        steps = np.concatenate([thinned[:1], thinned[1:][np.diff(thinned) != 0]])
        found.update(steps[:FEW].tolist())
        if len(found) >= FEW:
            break
    return len(found)
