"""How far right kernels may differ: by the declared precision of a model, and by what rounding does at one of its places."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from trueport.outcome import Failure, Ok
from trueport.tracing import Traced

NOISE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 0.1, "int8": 0.3, "int8-dynamic": 0.3}
"""Declared precision -> deviation of an output that another kernel set explains. Largest between right kernels on clean
networks: float32 7e-4 (ResNet-101 with random weights; MobileNetV2 3e-5, small ones 4e-6), float16 4e-3, int8 0.29;
bfloat16 has 8 times the rounding of float16. A kernel or pass that is wrong gives 0.05 and more in float32."""
JITTER = {"float32": 1e-6, "float16": 5e-4, "bfloat16": 4e-3}
"""Declared precision -> rounding of one operator, relative to the size of its values: 8 units in the last place of
float32, where sums are long, and half a unit of the others. On an integer grid it is one step of the grid."""
BEYOND = 8.0
"""A kernel is wrong when it is off by so many times what rounding its inputs does to the right kernel."""
LEVELS = 256
"""Levels of an 8-bit grid; a value of a quantised model that has more is float and is rounded to them by its readers."""
GRID_STEPS = 2.0
"""Steps of an integer grid by which right kernels may differ: one where they round a product, one where they round its shift."""


def noise(target: Traced) -> float:
    """Deviation between kernel sets that the precision which the model declares explains."""
    return NOISE.get(precision(target), NOISE["float32"])


def precision(target: Traced) -> str:
    """The precision that the model's file declares; "float32" where it says nothing."""
    signature = target.session.signature(target.artifact)
    if isinstance(signature, Failure):
        return "float32"
    return str(signature.value.meta.get("precision", "float32"))


def jittered(array: np.ndarray, precision: str) -> np.ndarray:
    """A copy of a value [R, *shape] with as much noise as one operator's rounding makes; integers and flags stay."""
    if array.dtype.kind != "f" or not array.size:
        return array
    random = np.random.default_rng(0)
    if precision in JITTER:
        noise = random.standard_normal(array.shape) * (JITTER[precision] * _size(array))
    else:
        noise = random.uniform(-1, 1, array.shape) * step(array)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows stays infinite
        return np.asarray((array + noise).astype(array.dtype))


def step(array: np.ndarray) -> float:
    """The step of the grid of up to 256 levels that the elements lie on, or that a kernel will put them on."""
    levels = np.unique(array[np.isfinite(array)])
    if len(levels) > LEVELS:
        return float(levels[-1] - levels[0]) / (LEVELS - 1)
    return float(np.diff(levels).min()) if len(levels) > 1 else 0.0


def _size(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)].astype(np.float64)
    return float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0


def deviation(right: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference of two arrays [R, *shape], in units of the spread of the first over the runs.

    Infinite where shapes differ or other places are not finite; NaN for text. The spread counts as at least 1 % of the
    values' own size: rounding grows with what is there, not with what varies.
    """
    if right.dtype.kind not in "biuf" or other.dtype.kind not in "biuf":
        return math.nan
    if right.shape != other.shape:
        return math.inf
    if not right.size:
        return 0.0
    mean = np.zeros(right.shape[1:])
    for one in right:
        mean += np.where(np.isfinite(one), one, 0.0) / len(right)
    squares = np.zeros(3)  # of the difference, of the varying part, of the values
    for one, two in zip(right, other, strict=True):
        left, far = np.asarray(one, np.float64), np.asarray(two, np.float64)
        finite = np.isfinite(left)
        if not np.array_equal(left[~finite], far[~finite], equal_nan=True) or not np.isfinite(far[finite]).all():
            return math.inf
        there = left[finite]
        squares += [np.sum(np.square(part)) for part in (there - far[finite], there - mean[finite], there)]
    off, varying, size = np.sqrt(squares / right.size)
    scale = max(varying, 0.01 * size) or 1.0
    return float(off / scale)


def rounding(
    target: Traced, wanted: Sequence[str], around: Iterable[str], healed: Iterable[str] = ()
) -> dict[str, float]:
    """How far the tracing kernels move when the values `around` are rounded anew; values that cannot be had are missing.

    healed: values that are put in as they are. Nothing but `wanted` is shown.
    """
    kind = precision(target)
    right = {name: target.values[name] for name in [*healed, *around] if name in target.values and name not in wanted}
    moved = right | {name: jittered(right[name], kind) for name in around if name in right}
    before, after = (_replayed(target, given, wanted) for given in (right, moved))
    found = {name: deviation(before[name], after[name]) for name in wanted if name in before and name in after}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _replayed(target: Traced, given: dict[str, np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
    outcome = target.replay(given, wanted) if wanted else None
    if not isinstance(outcome, Ok):
        return {}
    copies = {name: np.array(array) for name, array in outcome.value.emitted.items()}
    target.session.pool.release(outcome.value.folder)
    return copies
