"""The maths of comparing two values: error measures in one streaming pass, and how much of a value depends on the input.

Every sum is additive (`Difference.__add__`), so that cases, runs and blocks are totalled the same way.
Non-finite elements never enter a sum: they are counted, and compared by place and kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trueport.compare.values import CHUNK, FLOAT_KINDS, RELEASE_EVERY, Value, blocks, parts, place, release

EXACT_ULPS = 256
"""Distances below this have a bin each in the histogram of distances."""
PER_OCTAVE = 16
"""Bins per doubling above it: the percentile is right within 4.5 %."""
BINS = EXACT_ULPS + (65 - int(math.log2(EXACT_ULPS))) * PER_OCTAVE
_BITS: dict[int, type[np.signedinteger]] = {2: np.int16, 4: np.int32, 8: np.int64}


def _no_ulps() -> np.ndarray:
    return np.zeros(BINS, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two values of equal shapes, element by element. Norms are root sums of squares over `finite` elements
    (finite on both sides). Places are (run, *index); None where there is none."""

    count: int = 0
    finite: int = 0
    mismatches: int = 0
    """Elements that are not equal (NaN equals NaN, an infinity equals one of its sign)."""
    error_norm: float = 0.0
    source_norm: float = 0.0
    target_norm: float = 0.0
    dot: float = 0.0
    max_abs: float = 0.0
    max_rel: float = 0.0
    """Largest |difference| / |source| over elements whose source is not 0."""
    low: float = math.inf
    high: float = -math.inf
    """Range of the source's finite elements."""
    worst: tuple[int, ...] | None = None
    source_nonfinite: int = 0
    target_nonfinite: int = 0
    source_nan: int = 0
    new_nonfinite: int = 0
    """Target not finite where the source is."""
    lost_nonfinite: int = 0
    """Target finite where the source is not."""
    other_nonfinite: int = 0
    """Neither finite, and not the same (NaN for an infinity, an infinity of the other sign)."""
    nonfinite_at: tuple[int, ...] | None = None
    """First place of any of these three."""
    ulps: np.ndarray = field(default_factory=_no_ulps)

    def __add__(self, other: Difference) -> Difference:
        first = self if self.worst is not None and not other.max_abs > self.max_abs else other
        return Difference(
            count=self.count + other.count,
            finite=self.finite + other.finite,
            mismatches=self.mismatches + other.mismatches,
            error_norm=math.hypot(self.error_norm, other.error_norm),
            source_norm=math.hypot(self.source_norm, other.source_norm),
            target_norm=math.hypot(self.target_norm, other.target_norm),
            dot=self.dot + other.dot,
            max_abs=max(self.max_abs, other.max_abs),
            max_rel=max(self.max_rel, other.max_rel),
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            worst=first.worst if first.worst is not None else self.worst,
            source_nonfinite=self.source_nonfinite + other.source_nonfinite,
            target_nonfinite=self.target_nonfinite + other.target_nonfinite,
            source_nan=self.source_nan + other.source_nan,
            new_nonfinite=self.new_nonfinite + other.new_nonfinite,
            lost_nonfinite=self.lost_nonfinite + other.lost_nonfinite,
            other_nonfinite=self.other_nonfinite + other.other_nonfinite,
            nonfinite_at=self.nonfinite_at if self.nonfinite_at is not None else other.nonfinite_at,
            ulps=self.ulps + other.ulps,
        )

    @property
    def rms(self) -> float:
        """Root mean square of the difference (rmse); NaN when nothing finite was compared."""
        return self.error_norm / math.sqrt(self.finite) if self.finite else math.nan

    @property
    def share(self) -> float:
        """Share of elements that are not equal; NaN when there are none."""
        return self.mismatches / self.count if self.count else math.nan

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two; 1 when both are all zero, 0 when only one is."""
        if not self.finite:
            return math.nan
        if self.source_norm == 0.0 or self.target_norm == 0.0:
            return 1.0 if self.source_norm == self.target_norm else 0.0
        cosine = self.dot / self.source_norm / self.target_norm
        return max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else math.nan

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB, the peak being the source's range; infinite for no error."""
        if not self.finite:
            return math.nan
        if self.error_norm == 0.0:
            return math.inf
        span = self.high - self.low
        return 20.0 * (math.log10(span) - math.log10(self.rms)) if 0.0 < span < math.inf else -math.inf

    @property
    def ulp_p99(self) -> float:
        """99th percentile of the distance in units in the last place of the narrower float type; NaN for none."""
        total = int(self.ulps.sum())
        if not total:
            return math.nan
        index = int(np.searchsorted(np.cumsum(self.ulps), 0.99 * total))
        return float(index) if index < EXACT_ULPS else EXACT_ULPS * 2.0 ** ((index - EXACT_ULPS) / PER_OCTAVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a value is spread over its samples (runs, and batch rows where the first axis is the batch).

    dev: root mean square of the input-dependent part, v minus its mean over samples. rms, peak: of the finite
    elements themselves. constant: every sample is the same, bit for bit (always true of a single sample).
    """

    dev: float
    rms: float
    peak: float
    samples: int
    constant: bool

    @property
    def scale(self) -> float:
        """What deviations are normalised by: dev, or rms for an output that does not vary."""
        return self.dev if self.dev > 0.0 else self.rms


def difference(source: Value, target: Value) -> Difference:
    """Compare two values of equal run shapes, in blocks. Raises ValueError when shapes differ: nothing is broadcast."""
    total = Difference()
    for first, (left, right) in parts(source, target):
        if left.shape != right.shape:
            raise ValueError(f"shapes differ: {left.shape} and {right.shape}")
        for number, block in enumerate(blocks(left.shape), start=1):
            found = _block_difference(np.asarray(left[block]), np.asarray(right[block]))
            total += _placed(found, block, left.shape, first)
            if number % RELEASE_EVERY == 0:
                release(left, right)
        release(left, right)
    return total


def _placed(found: Difference, block: tuple[int | slice, ...], shape: tuple[int, ...], first: int) -> Difference:
    """Turn flat places inside a block into (run, *index)."""
    changes: dict[str, tuple[int, ...]] = {}
    for name, flat in (("worst", found.worst), ("nonfinite_at", found.nonfinite_at)):
        if flat is not None:
            index = place(block, shape, flat[0])
            changes[name] = (index[0] + first, *index[1:])
    values = {name: getattr(found, name) for name in Difference.__dataclass_fields__}
    return Difference(**(values | changes))


def _block_difference(left: np.ndarray, right: np.ndarray) -> Difference:
    """Compare two small arrays of one shape; places are flat."""
    kinds = {left.dtype.kind, right.dtype.kind}
    left, right = left.ravel(), right.ravel()
    if not kinds <= set("biufc"):
        unequal = left.astype(np.str_) != right.astype(np.str_)
        at = (int(np.argmax(unequal)),) if unequal.any() else None
        return Difference(count=left.size, finite=left.size, mismatches=int(unequal.sum()), worst=at)
    with np.errstate(all="ignore"):
        unequal = (left != right) & ~((left != left) & (right != right))
        work = np.complex128 if "c" in kinds else np.float64
        a, b = left.astype(work), right.astype(work)
        good_a, good_b = np.isfinite(a), np.isfinite(b)
        good = good_a & good_b
        bad = unequal & ~good
        ulps = _no_ulps()
        if kinds <= set(FLOAT_KINDS):
            ulps = _ulp_histogram(left[good], right[good])
        a, b = np.where(good, a, 0.0), np.where(good, b, 0.0)
        error = np.abs(a - b)
        size = np.abs(a)
        relative = np.divide(error, size, out=np.zeros_like(error), where=size > 0.0)
        real = a.real[good]
        return Difference(
            count=left.size,
            finite=int(good.sum()),
            mismatches=int(unequal.sum()),
            error_norm=_norm(error),
            source_norm=_norm(size),
            target_norm=_norm(np.abs(b)),
            dot=float(np.einsum("i,i->", a, b.conj()).real),
            max_abs=float(error.max()),
            max_rel=float(relative.max()),
            low=float(real.min()) if real.size else math.inf,
            high=float(real.max()) if real.size else -math.inf,
            worst=(int(np.argmax(error)),) if good.any() else None,
            source_nonfinite=int((~good_a).sum()),
            target_nonfinite=int((~good_b).sum()),
            source_nan=int((left != left).sum()),
            new_nonfinite=int((bad & good_a).sum()),
            lost_nonfinite=int((bad & good_b).sum()),
            other_nonfinite=int((bad & ~good_a & ~good_b).sum()),
            nonfinite_at=(int(np.argmax(bad)),) if bad.any() else None,
            ulps=ulps,
        )


def _norm(values: np.ndarray) -> float:
    """Root of the sum of squares of non-negative numbers, safe against overflow and underflow of the squares."""
    peak = float(values.max(initial=0.0))
    if peak == 0.0 or not math.isfinite(peak):
        return peak
    unit = peak if not 1e-140 < peak < 1e140 else 1.0
    scaled = values if unit == 1.0 else values / unit
    # einsum and not dot: BLAS starts threads for blocks this small, and on a busy machine waits for them.
    return unit * math.sqrt(float(np.einsum("i,i->", scaled, scaled)))


def narrower(left: np.dtype, right: np.dtype) -> np.dtype:
    """Return the real float type with fewer bits of two float or complex types (float32 of float32 and float64)."""
    sizes = [dtype.itemsize // (2 if dtype.kind == "c" else 1) for dtype in (left, right)]
    return np.dtype({2: np.float16, 4: np.float32}.get(min(sizes), np.float64))


def _ulp_histogram(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Histogram of distances in units in the last place of the narrower type; real and imaginary parts each count."""
    dtype = narrower(left.dtype, right.dtype)
    signs, sizes = [], []
    for values in (left, right):
        if values.dtype.kind == "c":
            values = np.stack([values.real, values.imag])
        bits = values.astype(dtype).ravel().view(_BITS[dtype.itemsize]).astype(np.int64)
        signs.append(bits < 0)
        sizes.append(bits & ((1 << (8 * dtype.itemsize - 1)) - 1))
    near = np.abs(sizes[0] - sizes[1]).astype(np.float64)
    far = sizes[0].astype(np.float64) + sizes[1]
    distance = np.where(signs[0] == signs[1], near, far)
    octaves = np.log2(np.maximum(distance, EXACT_ULPS) / EXACT_ULPS)
    bins = np.where(distance < EXACT_ULPS, distance, EXACT_ULPS + np.ceil(octaves * PER_OCTAVE)).astype(np.int64)
    return np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)


def spread(value: Value, *, batch: bool) -> Spread:
    """Measure how a value varies over its samples. `batch`: the first axis of a run counts samples too."""
    if not isinstance(value, np.ndarray):
        return _ragged_spread(value)
    lead = 2 if batch and value.ndim >= 2 else 1
    samples = math.prod(value.shape[:lead])
    exact = value.dtype.kind not in "biufc"
    dev = rms = peak = 0.0
    finite, constant = 0, True
    for number, block in enumerate(blocks(value.shape[lead:], max(1, CHUNK // max(samples, 1)))):
        raw = np.asarray(value[(slice(None),) * lead + block]).reshape(samples, -1)
        if number % RELEASE_EVERY == 0:
            release(value)
        with np.errstate(all="ignore"):
            constant = constant and bool(np.all((raw == raw[:1]) | ((raw != raw) & (raw[:1] != raw[:1]))))
            if exact or not raw.size:
                continue
            work = raw.astype(np.complex128 if raw.dtype.kind == "c" else np.float64)
            good = np.isfinite(work)
            work = np.where(good, work, 0.0)
            size = np.abs(work)
            unit = max(float(size.max()), 1e-300)
            mean = (work / unit).sum(axis=0) / np.maximum(good.sum(axis=0), 1)
            moved = np.where(good, np.abs(work / unit - mean), 0.0)
            dev = math.hypot(dev, unit * _norm(moved.ravel()))
            rms = math.hypot(rms, _norm(size.ravel()))
            peak = max(peak, float(size.max()))
            finite += int(good.sum())
    release(value)
    root = math.sqrt(finite) if finite else 1.0
    return Spread(dev=0.0 if constant else dev / root, rms=rms / root, peak=peak, samples=samples, constant=constant)


def _ragged_spread(runs: Sequence[np.ndarray]) -> Spread:
    """Spread of runs of different shapes: around one common mean, because no element has a partner in every run."""
    values = [np.asarray(run) for run in runs]
    if not values or values[0].dtype.kind not in "biufc":
        constant = all(np.array_equal(run, values[0]) for run in values)
        return Spread(dev=0.0, rms=0.0, peak=0.0, samples=len(values), constant=constant)
    constant = all(np.array_equal(run, values[0], equal_nan=True) for run in values)
    total, finite, rms, peak, dev = 0.0 + 0.0j, 0, 0.0, 0.0, 0.0
    with np.errstate(all="ignore"):
        for run in values:
            good = run[np.isfinite(run)].astype(np.complex128)
            total, finite = total + complex(good.sum()), finite + good.size
            rms, peak = math.hypot(rms, _norm(np.abs(good))), max(peak, float(np.abs(good).max(initial=0.0)))
        mean = total / max(finite, 1)
        for run in values:
            dev = math.hypot(dev, _norm(np.abs(run[np.isfinite(run)].astype(np.complex128) - mean)))
    root = math.sqrt(finite) if finite else 1.0
    return Spread(
        dev=0.0 if constant else dev / root, rms=rms / root, peak=peak, samples=len(values), constant=constant
    )
