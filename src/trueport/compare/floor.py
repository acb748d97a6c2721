"""How far an output of the source moves by itself: the noise floor that the target's deviation is divided by.

The source is evaluated in other, equally right ways (float64, other kernels, one thread, inputs moved by one unit in
the last place). The floor is the largest deviation of any of them from the default run, taken twice: as root mean
square and as largest single element. It is never smaller than the rounding of the result itself, and one broken way
cannot widen it. Everything here is in the output's own units. A way may cover only the first runs of a case.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trueport.compare.metrics import Difference, Spread, difference, narrower
from trueport.compare.types import FloorRun
from trueport.compare.values import (
    FLOAT_KINDS,
    Value,
    count_runs,
    dtypes,
    first_runs,
    kind_of,
    normalise,
    permuted,
    run_shapes,
)
from trueport.outcome import Failure

MINIMUM_ROUNDINGS = 4.0
"""A result that is rounded once is off by at most half a unit in the last place. Four such roundings (a product, a sum,
an activation, a store) are below what any network does; without a minimum, ways of evaluation that happen to agree
bit for bit would make the smallest difference infinitely large."""

NARROWED_ROUNDINGS = 32.0
"""The same where the source computes in float64 and the target in float32: the source's own ways say nothing about
float32, and small clean float32 networks were seen at 1e-6 (median) to 4e-6 (largest) of the signal, 17 to 67 roundings."""

GROSS = 1e-2
"""A way that moves a float32 output by 1 % of its input-dependent part is no rounding: clean ResNet-101 has 7e-4."""

GROSS_ROUNDINGS = 64.0
"""The same in roundings, for types so coarse (float16, 2^-11) that it exceeds GROSS."""

GROSS_INTEGER = 0.5
"""The same for a source that computes in integers: its kernel sets round every layer's result to another step of a
coarse grid. LiteRT's built-in kernels and XNNPACK were seen 7 % of the range apart on int8 models, and neither is wrong."""

OUTLIER = 30.0
"""A way that moves an output this many times further than the median of the others is not like them. Kernels, threads,
jitter and float64 were seen within a factor of ten of each other."""

LEAST_STEPS = 32
"""Steps that a sound 8-bit grid has over the values: calibration gives about 255, and a softmax that is bound to steps
of 1/256 still has 32 when no probability passes 1/8. Fewer would let a badly calibrated output excuse itself."""

SIMULATED = "simulated "
"""Prefix of `FloorRun.how` for the source evaluated at a declared, reduced precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Noise floor of one output in one case. rms, max: in the output's units. share: largest share of elements that any
    way changed (what exact outputs are allowed). measured: at least one way succeeded and was used."""

    rms: float
    max: float
    share: float
    measured: bool
    unstable: bool = False
    """Several ways agree that the source moves grossly: it cannot serve as a reference."""
    simulated: bool = False
    """The declared reduced precision was simulated and is part of this floor."""
    split: tuple[str, ...] = ()
    """Ways that agree with one another and grossly not with the default run, while at least two others keep to it."""
    nonfinite: bool = False
    """Some way gave a non-finite element where the default run has a finite one."""
    ways: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def minimum(spread: Spread, source: np.dtype, target: np.dtype) -> Floor:
    """The floor that rounding alone gives, for float or complex outputs of these two dtypes."""
    dtype = narrower(source, target)
    narrowed = source.kind in "fc" and narrower(source, source).itemsize > dtype.itemsize
    info = np.finfo(dtype)
    factor = (NARROWED_ROUNDINGS if narrowed else MINIMUM_ROUNDINGS) * float(info.eps) / 2.0
    # Kernels may flush subnormal float32 and float64 results to zero; float16 subnormals are ordinary values.
    least = float(info.smallest_subnormal if dtype == np.float16 else info.tiny)
    return Floor(
        rms=factor * spread.rms + least, max=factor * spread.peak + least, share=0.0, measured=False, ways=("rounding",)
    )


def gross(spread: Spread, dtype: np.dtype, *, integer: bool = False) -> float:
    """Deviation (rms) above which a way of evaluation is no rounding any more; none for an output that is all zero.

    integer: the source itself computes in integers, whatever the dtype of the output.
    """
    if spread.scale == 0.0:
        return math.inf
    if integer:
        return GROSS_INTEGER * spread.scale
    coarse = GROSS_ROUNDINGS * float(np.finfo(narrower(dtype, dtype)).eps) / 2.0
    return max(GROSS * spread.scale, coarse * spread.rms)


def ways_for(
    floors: Sequence[FloorRun], case: str, output: str, permutation: Sequence[int] | None, *, declared: str
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """The values that each way gave for one output, and notes on those that gave none or do not apply."""
    values: dict[str, Value] = {}
    notes = []
    for floor in floors:
        if floor.how.startswith(SIMULATED) and floor.how != SIMULATED + declared:
            notes.append(f"'{floor.how}' is not the declared precision {declared} and does not widen the floor")
            continue
        outputs = floor.runs.get(case)
        if outputs is None:
            continue  # the caller need not evaluate every way on every case
        if isinstance(outputs, Failure):
            notes.append(f"the source could not be evaluated as '{floor.how}': {outputs.message}")
        elif output not in outputs:
            notes.append(f"the source evaluated as '{floor.how}' does not give output '{output}'")
        else:
            values[floor.how] = permuted(normalise(outputs[output]), permutation)
    return values, tuple(notes)


def measure(source: Value, ways: Mapping[str, Value], spread: Spread, least: Floor, limit: float) -> Floor:
    """The floor of a float output in one case. `least` from `minimum`, `limit` from `gross`."""
    found: dict[str, Difference] = {}
    notes = []
    for how, value in ways.items():
        if not _same_form(source, value):
            notes.append(f"the source evaluated as '{how}' gives another shape or dtype and is not used")
        else:
            found[how] = difference(first_runs(source, count_runs(value)), value)
    plain = {how: way.rms for how, way in found.items() if not how.startswith(SIMULATED) and way.finite}
    broken = _broken(plain, least.rms, limit)
    notes += [
        f"the source evaluated as '{how}' moves by {plain[how] / (spread.scale or 1.0):.2g} of the signal, "
        "unlike its other evaluations: not used for the floor"
        for how in broken
    ]
    used = {how: way for how, way in found.items() if way.finite and how not in broken}
    steady = [rms for how, rms in plain.items() if how not in broken]
    if not used:
        notes.append("no other evaluation of the source could be used: the floor is rounding alone")
    return Floor(
        rms=max([least.rms, *(way.rms for way in used.values())]),
        max=max([least.max, *(way.max_abs for way in used.values())]),
        share=max([0.0, *(way.share for way in used.values())]),
        measured=bool(steady),
        unstable=bool(steady) and max(steady) > limit,
        split=_split(ways, plain, limit),
        simulated=any(how.startswith(SIMULATED) for how in used),
        nonfinite=any(way.new_nonfinite for way in found.values()),
        ways=tuple(used) or least.ways,
        notes=tuple(notes),
    )


def stored(floor: Floor, source: Value, quantization: Mapping[str, Any]) -> Floor:
    """Widen a simulated floor by what storing the result on the target's own output grid costs.

    A simulation takes its grid from the data, the target may be bound to another: TFLite's int8 softmax always has
    steps of 1/256 and ends at 255/256, so a probability of 1 comes out as 0.9961. quantization: "scale" (one step),
    "zero_point" and "dtype" of the target's output. No element is excused by more than one step, for a grid that is too
    short for the values is a fault, and a grid of fewer than LEAST_STEPS over the values excuses nothing.
    """
    scale, info = quantization.get("scale"), np.iinfo(quantization.get("dtype", "int8"))
    if not floor.simulated or not isinstance(scale, float) or not 0.0 < scale < math.inf:
        return floor
    parts = [source] if isinstance(source, np.ndarray) else source
    extent = max(float(part.max()) for part in parts) - min(float(part.min()) for part in parts)
    if not scale * LEAST_STEPS <= extent:
        return floor
    zero = int(quantization.get("zero_point", 0))

    def on_grid(array: np.ndarray) -> np.ndarray:
        steps = np.clip(np.rint(array.astype(np.float64) / scale) + zero, info.min, info.max) - zero
        return np.asarray(array + np.clip(steps * scale - array, -scale, scale), dtype=array.dtype)

    moved = on_grid(source) if isinstance(source, np.ndarray) else [on_grid(part) for part in parts]
    apart = difference(source, moved)
    if not apart.finite:
        return floor
    return replace(floor, rms=max(floor.rms, apart.rms), max=max(floor.max, apart.max_abs))


def measure_exact(source: Value, ways: Mapping[str, Value]) -> Floor:
    """The floor of an integer, bool or text output in one case: the share of elements that the ways change."""
    shares = {
        how: difference(first_runs(source, count_runs(value)), value).share
        for how, value in ways.items()
        if _same_form(source, value)
    }
    known = {how: share for how, share in shares.items() if share == share}
    return Floor(
        rms=0.0,
        max=0.0,
        share=max(known.values(), default=0.0),
        measured=bool(known),
        simulated=any(how.startswith(SIMULATED) for how in known),
        ways=tuple(known),
    )


def pool(floors: Mapping[str, Floor], spreads: Mapping[str, Spread], reference: Sequence[str]) -> dict[str, Floor]:
    """Widen each case's floor by those of the `reference` (data) cases.

    A case of a few elements sees too few roundings to measure its noise; the same model on other data is the better
    estimate. A floor is scaled down to a case of smaller magnitude, never up to one of larger magnitude, where a part
    of the noise may be absolute (a sigmoid near 0 errs by the rounding of 1). Probes never widen data cases.
    """
    return {
        case: replace(
            floor,
            rms=max([floor.rms, *(floors[o].rms * _shrink(spreads[case].rms, spreads[o].rms) for o in reference)]),
            max=max([floor.max, *(floors[o].max * _shrink(spreads[case].peak, spreads[o].peak) for o in reference)]),
        )
        for case, floor in floors.items()
    }


def _shrink(size: float, reference: float) -> float:
    """size / reference, at most 1."""
    return size / reference if size < reference else 1.0


def _same_form(source: Value, value: Value) -> bool:
    """Equal shapes of every run that the way covers, and dtypes that can be compared (float64 beside float32 is a way)."""
    kinds = {kind_of(dtype) for item in (source, value) for dtype in dtypes(item)}
    covered = count_runs(value)
    return run_shapes(source)[:covered] == run_shapes(value) and (len(kinds) == 1 or kinds <= set(FLOAT_KINDS.values()))


def _split(ways: Mapping[str, Value], rms: Mapping[str, float], limit: float) -> tuple[str, ...]:
    """The ways that give a second, definite answer: noise would move every way, so one set of kernels is wrong."""
    near = [how for how, value in rms.items() if value <= limit / OUTLIER]
    far = [how for how, value in rms.items() if value > limit]
    if len(near) < 2 or len(far) < 2 or len(near) + len(far) < len(rms) or not math.isfinite(limit):
        return ()
    first = ways[far[0]]
    apart = [difference(first, first_runs(ways[how], count_runs(first))) for how in far[1:]]
    return tuple(far) if all(one.finite and one.rms <= limit / OUTLIER for one in apart) else ()


def _broken(rms: Mapping[str, float], least: float, limit: float) -> list[str]:
    """Ways that are unlike the others: gross and alone with it, or far above the median of at least two that moved."""
    broken = []
    for how, value in rms.items():
        others = [other for name, other in rms.items() if name != how]
        moved = [max(other, least) for other in others if other > 0.0]
        alone = value > limit and all(other < value / OUTLIER for other in others)
        unlike = len(moved) >= 2 and value > OUTLIER * statistics.median(moved)
        if alone or unlike or not np.isfinite(value):
            broken.append(how)
    return broken
