"""What lies between two arrays that should be one: layout, flips, channel order, and a scale and shift per channel.

The simplest change that explains the target's values exactly is the answer; what no such change explains stays
unexplained. Only arrays are looked at: no model is run (see `preprocessing` for that).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trueport.diagnosis.conventions import Named, between, formula, name_of
from trueport.feeds.dims import channel_axis

TOLERANCE = 1e-3
"""Residual, in standard deviations of the target's channel, up to which a change explains it: half precision rounds
values of a few deviations by 5e-4. A picture moved by one pixel leaves 0.05 and more."""
ELEMENTS = 1 << 21
"""Elements per side that are looked at (whole runs, at least one)."""
COLOUR_CHANNELS = 4
"""Channels up to which every order is tried; of more, each takes its own best, which must be all different."""
ROWS_PER_FEATURE = 4
"""Samples from which a scale and shift of one feature are more than two numbers fitted to two."""
MOST_FEATURES = 2048
"""Channels beyond which only one scale and shift for all is looked for (the fit needs their square)."""
COARSEST = 0.5
"""Step of a grid, in standard deviations, beyond which rounding would explain too much (a mask, a handful of labels)."""

NAMED_MOVES = {
    (0, 2, 3, 1): "channels moved last (NCHW to NHWC)",
    (0, 3, 1, 2): "channels moved first (NHWC to NCHW)",
    (0, 3, 2, 1): "channels moved last, height and width swapped",
    (1, 2, 0): "channels moved last (CHW to HWC)",
    (2, 0, 1): "channels moved first (HWC to CHW)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of an input [R, *shape]: transpose, reshape, flip, reorder channels, then scale and shift, in this order.

    permutation: of the axes without R. shape: of one run of the result, where it has another rank. flips, axis: axes of
    the result without R; `axis` is that of the channels. scale, shift: one number, or one per channel of the result.
    """

    permutation: tuple[int, ...]
    shape: tuple[int, ...] | None = None
    flips: tuple[int, ...] = ()
    axis: int | None = None
    channels: tuple[int, ...] | None = None
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)

    @staticmethod
    def none(rank: int) -> Change:
        """The change that changes nothing, for arrays of `rank` axes besides R."""
        return Change(permutation=tuple(range(rank)))

    @property
    def moves(self) -> bool:
        """Whether elements change place."""
        return bool(self.flips) or self.reorders or self.permutation != tuple(range(len(self.permutation)))

    @property
    def reorders(self) -> bool:
        """Whether channels change place."""
        return self.channels is not None and self.channels != tuple(range(len(self.channels)))

    @property
    def scales(self) -> bool:
        """Whether values change."""
        return set(self.scale) != {1.0} or set(self.shift) != {0.0}

    @property
    def identity(self) -> bool:
        """Whether nothing changes but perhaps the number of axes."""
        return not self.moves and not self.scales

    @property
    def steps(self) -> int:
        """How many things it changes: of two changes that explain the same, the one with fewer is taken."""
        moved = self.permutation != tuple(range(len(self.permutation)))
        return moved + len(self.flips) + self.reorders + self.scales + (self.shape is not None)

    def move(self, array: np.ndarray) -> np.ndarray:
        """Everything but scale and shift (a view where possible)."""
        moved = array.transpose(0, *(axis + 1 for axis in self.permutation))
        if self.shape is not None:
            moved = moved.reshape(len(array), *self.shape)
        if self.flips:
            moved = np.flip(moved, tuple(axis + 1 for axis in self.flips))
        if self.reorders and self.axis is not None and self.channels is not None:
            moved = moved.take(self.channels, axis=self.axis + 1)
        return moved

    def apply(self, array: np.ndarray, *, dtype: np.dtype | None = None) -> np.ndarray:
        """The changed array, computed in float64, in `dtype` (absent: the array's own). Integers are rounded and clipped."""
        kept = array.dtype if dtype is None else dtype
        moved = self.move(array)
        if not self.scales:
            return np.ascontiguousarray(moved.astype(kept, copy=False))
        scale, shift = self._spread(self.scale, moved.ndim), self._spread(self.shift, moved.ndim)
        values = moved.astype(np.float64) * scale + shift
        if kept.kind in "iu":
            limits = np.iinfo(kept)
            values = np.clip(np.rint(values), limits.min, limits.max)
        return np.ascontiguousarray(values.astype(kept))

    def _spread(self, numbers: Sequence[float], rank: int) -> np.ndarray:
        """Numbers per channel, shaped so that they meet their axis."""
        if len(numbers) == 1 or self.axis is None:
            return np.array(numbers[0], np.float64)
        return np.array(numbers, np.float64).reshape([-1 if at == self.axis + 1 else 1 for at in range(rank)])

    def phrases(self) -> tuple[str, ...]:
        """What it does, step by step, in words."""
        said = []
        if self.permutation != tuple(range(len(self.permutation))):
            said.append(self._move_words())
        if self.flips:
            said.append(f"flipped along axis {' and '.join(map(str, self.flips))}{self._flip_words()}")
        if self.channels is not None and self.reorders:
            known = self.channels == (2, 1, 0)
            said.append(
                "channels in reverse order (RGB against BGR)"
                if known
                else f"channels in the order {list(self.channels)}"
            )
        if self.scales:
            said.append(formula(self.scale, self.shift))
        return tuple(said)

    def _move_words(self) -> str:
        moved = [axis for axis, place in enumerate(self.permutation) if axis != place]
        if len(moved) == 2 and self.axis is not None and self.axis not in moved:
            return "height and width swapped"
        return NAMED_MOVES.get(self.permutation, f"axes transposed by {list(self.permutation)}")

    def _flip_words(self) -> str:
        """Which way a picture [N, H, W, C] or [N, C, H, W] is flipped; nothing for other arrays."""
        if len(self.permutation) != 4 or self.shape is not None or self.axis not in (1, 3):
            return ""
        height = 2 if self.axis == 1 else 1
        names = {height: "upside down", height + 1: "left to right"}
        words = [names[axis] for axis in self.flips if axis in names]
        return f" ({' and '.join(words)})" if words else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """How a target's values follow from the source's. residual: what is left, in standard deviations of the target's
    channel (the worst one). rounded: the target's values are those of the change, put on a coarser grid."""

    change: Change
    residual: float
    named: Named | None = None
    rounded: bool = False
    whole: bool = False
    """Both sides are integers (tokens, classes)."""

    @property
    def identical(self) -> bool:
        """Whether the two are one array."""
        return self.change.identity and not self.rounded

    @property
    def source_words(self) -> str:
        """The source's side, for a table of two columns."""
        return self.named.source_words if self.named is not None else "x"

    @property
    def target_words(self) -> str:
        """The target's side: the named convention, or the change itself."""
        moves = replace(self.change, scale=(1.0,), shift=(0.0,))
        order = self.named is not None and self.named.target_order
        if order and moves.reorders:
            moves = replace(moves, channels=None)
        values = self.named.target_words if self.named is not None else formula(self.change.scale, self.change.shift)
        said = moves.phrases()
        return ", ".join(said if said and values == "x" else (values, *said))

    def __str__(self) -> str:
        if self.identical:
            return "both inputs hold the same values"
        if self.whole and self.change.scales and not self.change.moves and self.change.scale == (1.0,):
            return f"every number of the target's input is {abs(self.change.shift[0]):g} {'above' if self.change.shift[0] > 0 else 'below'} the source's"
        text = f"the target's input is the source's x: {', then '.join(self.change.phrases()) or 'the same values'}"
        if self.named is not None and self.change.scales:
            text += f" (source: {self.named.source_words}; target: {self.named.target_words})"
        return text + (", rounded to a grid" if self.rounded else "")


def explain(source: np.ndarray, target: np.ndarray, *, tolerance: float = TOLERANCE) -> Explanation | None:
    """Say how `target` follows from `source`; None when no layout, flip, channel order, scale and shift explains it.

    source, target: [R, *shape], the same runs. Of all changes that explain the target within `tolerance` the one with
    the fewest steps is given. Raises ValueError when the runs differ in number.
    """
    if source.shape[0] != target.shape[0]:
        raise ValueError(f"{source.shape[0]} runs against {target.shape[0]}")
    if source.size != target.size or not source.size or not _numeric(source, target):
        return None
    source, target = _some(source), _some(target)
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        return None
    both_whole = source.dtype.kind in "iub" and target.dtype.kind in "iub"
    step = 0.0 if both_whole else _grid(target)  # between integers a rounded scale says nothing
    best: Explanation | None = None
    for base in placements(source.shape[1:], target.shape[1:]):
        if best is not None and best.change.steps <= base.steps:
            break  # placements come with the fewest steps first, and a fit only adds to them
        found = _fitted(base, source, target, tolerance, step)
        if found is not None and (best is None or found.change.steps < best.change.steps):
            best = found
    return None if best is None else replace(best, whole=both_whole)


def closest(source: np.ndarray, target: np.ndarray, *, like: Change | None = None) -> Explanation | None:
    """As `explain`, but the change that leaves least, however much that is; of equally good ones the simplest.

    like: only changes that put the axes where this one does.
    """
    if source.shape[0] != target.shape[0] or source.size != target.size or not _numeric(source, target):
        return None
    source, target = _some(source), _some(target)
    best: tuple[float, Change, np.ndarray, np.ndarray] | None = None
    for base in placements(source.shape[1:], target.shape[1:]):
        if like is not None and (base.permutation, base.flips, base.axis) != (like.permutation, like.flips, like.axis):
            continue
        sums = _Sums.of(_by_channel(base.move(source), base.axis), _by_channel(target, base.axis))
        for order in _orders(sums):
            scale, shift, rest = sums.fit(order)
            if best is None or float(rest.max()) < 0.9 * best[0]:
                best = (float(rest.max()), replace(base, channels=order), scale, shift)
    if best is None or not math.isfinite(best[0]):
        return None
    left, right = _by_channel(best[1].move(source), best[1].axis), _by_channel(target, best[1].axis)
    return _told(best[1], best[2], best[3], best[0], left, right, 0.0, math.inf)


def _numeric(*arrays: np.ndarray) -> bool:
    return all(array.dtype.kind in "fiub" for array in arrays)


def _some(array: np.ndarray) -> np.ndarray:
    """As many whole runs as are looked at."""
    runs = max(1, ELEMENTS // max(1, array[0].size))
    return np.asarray(array[:runs])


def placements(shape: tuple[int, ...], wanted: tuple[int, ...]) -> list[Change]:
    """Transpositions and flips that bring `shape` to `wanted`, those with the fewest steps first."""
    found = []
    for base in _transpositions(shape, wanted):
        for axis in _channel_axes(wanted):
            free = [at for at in _free_axes(wanted) if at != axis and wanted[at] > 1]
            for count in range(3 if len(free) <= 3 else 1):
                found += [replace(base, axis=axis, flips=flips) for flips in itertools.combinations(free, count)]
    return sorted(found, key=lambda change: change.steps)


def _transpositions(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[Change]:
    """Axis orders that fit; the batch axis of a tensor of rank 4 or more stays where it is."""
    rank = len(shape)
    if rank > 5:
        orders: Iterator[tuple[int, ...]] = iter([tuple(range(rank))])
    elif rank >= 4:
        orders = ((0, *rest) for rest in itertools.permutations(range(1, rank)))
    else:
        orders = itertools.permutations(range(rank))
    seen = set()
    for order in orders:
        moved = tuple(shape[axis] for axis in order)
        tight = tuple(axis for axis in order if shape[axis] != 1)
        if moved == wanted and tight not in seen:
            seen.add(tight)
            yield Change(permutation=order)
        elif rank != len(wanted) and tight not in seen:
            seen.add(tight)
            yield Change(permutation=order, shape=wanted)


def _free_axes(shape: tuple[int, ...]) -> range:
    """Axes that may be flipped: never the batch axis of three axes or more."""
    return range(1 if len(shape) >= 3 and not (len(shape) == 3 and channel_axis(shape) == 0) else 0, len(shape))


def _channel_axes(shape: tuple[int, ...]) -> tuple[int | None, ...]:
    """Where channels may be: the colour axis if the shape shows one, else the last axis, else nowhere."""
    known = channel_axis(shape)
    if known is not None:
        return (known,)
    if len(shape) in (4, 5) and min(shape[1:]) <= COLOUR_CHANNELS:
        return (int(np.argmin(shape[1:])) + 1,)
    return (None, len(shape) - 1) if len(shape) >= 2 and shape[-1] <= MOST_FEATURES else (None,)


def _fitted(base: Change, source: np.ndarray, target: np.ndarray, tolerance: float, step: float) -> Explanation | None:
    """The base with the best channel order, scale and shift, when that explains the target."""
    left, right = _by_channel(base.move(source), base.axis), _by_channel(target, base.axis)
    if base.axis is not None and left.shape[1] < ROWS_PER_FEATURE:
        return None
    sums = _Sums.of(left, right)
    rounding = step / math.sqrt(12) / np.sqrt(np.maximum(sums.var_right, 1e-300))
    usable = step <= COARSEST * math.sqrt(float(sums.var_right.max()))
    for order in _orders(sums):
        scale, shift, rest = sums.fit(order)
        # A fit to rounded values leaves their rounding, and little more.
        if np.all(rest <= np.maximum(tolerance, 1.2 * rounding if usable else 0.0)):
            return _told(replace(base, channels=order), scale, shift, float(rest.max()), left, right, step, tolerance)
    return None


def _told(
    found: Change,
    scale: np.ndarray,
    shift: np.ndarray,
    residual: float,
    left: np.ndarray,
    right: np.ndarray,
    step: float,
    tolerance: float,
) -> Explanation | None:
    """Tidy the fitted numbers, name them, and make sure that a rounded target is the rounding of what was found."""
    order = found.channels or (0,)
    rounded, spread = residual > tolerance, float(right.std()) or 1.0
    slack = 1e-4 + 5.0 * residual / math.sqrt(left.shape[1])  # what a least-squares fit to so many values leaves open
    scale, shift = _tidy(scale, 1.0, slack), _tidy(shift, 0.0, slack * spread, absolute=True)
    plain = bool(np.all(scale == 1.0) and np.all(shift == 0.0))
    named = None
    if not plain or order == (2, 1, 0):
        named = name_of(scale, shift, order, low=float(left.min()), high=float(left.max()), spread=spread)
        if named is not None and not plain:
            scale, shift = between(named.source, named.target, order, named.source_order or "RGB")
    if rounded:
        guess = left[list(order)] * scale.reshape(-1, 1) + shift.reshape(-1, 1)
        if not np.all(np.abs(guess - right) <= 0.51 * step + 1e-3 * spread):
            return None
    channels = order if found.axis is not None else None
    change = replace(found, channels=channels, scale=_short(scale), shift=_short(shift))
    return Explanation(change=change, residual=residual, named=named, rounded=rounded)


def _short(values: np.ndarray) -> tuple[float, ...]:
    return (float(values[0]),) if len(set(values.tolist())) == 1 else tuple(values.tolist())


def _tidy(values: np.ndarray, plain: float, slack: float, *, absolute: bool = False) -> np.ndarray:
    """`plain` where all values are near it, their mean where they agree, else themselves."""
    for centre in (plain, float(values.mean())):
        if np.all(np.abs(values - centre) <= slack * (1.0 if absolute else abs(centre))):
            return np.full_like(values, centre)
    return values


def _by_channel(array: np.ndarray, axis: int | None) -> np.ndarray:
    """[C, everything else], float64; C = 1 without a channel axis."""
    if axis is None:
        return array.reshape(1, -1).astype(np.float64)
    return np.moveaxis(array, axis + 1, 0).reshape(array.shape[axis + 1], -1).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Second moments of two [C, n] arrays: all that least squares needs. together: covariances [C of left, C of right],
    or [C] of equal places alone."""

    mean_left: np.ndarray
    mean_right: np.ndarray
    var_left: np.ndarray
    var_right: np.ndarray
    together: np.ndarray

    @staticmethod
    def of(left: np.ndarray, right: np.ndarray, *, square: bool = True) -> _Sums:
        means = left.mean(1), right.mean(1)
        a, b = left - means[0][:, None], right - means[1][:, None]
        # einsum and not BLAS for few channels: threads for so little work wait for each other on a busy machine.
        product = np.einsum("in,jn->ij", a, b) if len(a) <= COLOUR_CHANNELS else a @ b.T
        together = product / left.shape[1] if square else (a * b).mean(1)
        return _Sums(*means, (a * a).mean(1), (b * b).mean(1), together)

    def fit(self, order: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(scale, shift, residual), each [C], of right[j] = left[order[j]] * scale[j] + shift[j]."""
        take = list(order)
        cov = self.together if self.together.ndim == 1 else self.together[take, range(len(take))]
        var, mean = self.var_left[take], self.mean_left[take]
        flat, still = _constant(var, mean), _constant(self.var_right, self.mean_right)
        scale = np.where(flat, 1.0, cov / np.where(flat, 1.0, var))
        shift = self.mean_right - scale * mean
        rest = np.sqrt(
            np.maximum(self.var_right - np.where(flat, 0.0, scale * cov), 0.0) / np.where(still, 1.0, self.var_right)
        )
        return scale, shift, np.where(still, np.where(flat, 0.0, np.inf), rest)


def _constant(variance: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Which channels hold one value only, but for the rounding of its mean."""
    return np.asarray(variance <= 1e-24 * np.maximum(1e-12, mean**2))


def _orders(sums: _Sums) -> list[tuple[int, ...]]:
    """Channel orders to try, the unchanged one first."""
    count = len(sums.mean_left)
    same = tuple(range(count))
    if count == 1:
        return [same]
    if count <= COLOUR_CHANNELS:
        return sorted(
            itertools.permutations(range(count)), key=lambda order: (order != same, order != same[::-1], order)
        )
    spread = np.sqrt(np.outer(sums.var_left, sums.var_right))
    likeness = np.abs(sums.together) / np.where(spread > 0, spread, np.inf)
    best = tuple(int(place) for place in likeness.argmax(0))
    return [same, best] if sorted(best) == list(same) and best != same else [same]


def _grid(array: np.ndarray) -> float:
    """Distance between the levels of values that lie on one even grid of at most 256; 0 where they do not."""
    if array.dtype.kind in "iub":
        return 1.0
    levels = np.unique(array)
    if not 3 <= len(levels) <= 256:
        return 0.0
    gaps = np.diff(levels.astype(np.float64))
    steps = gaps / gaps.min()
    return float(gaps.min()) if np.all(np.abs(steps - np.rint(steps)) <= 1e-3 * np.maximum(1.0, steps)) else 0.0


# A value inside the models


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """target = source * scale + shift per channel, by least squares. axis: of the channels, without R; None: one for all.

    residual: what is left, in standard deviations of the target's channel (the worst one).
    """

    axis: int | None
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    residual: float

    @property
    def explains(self) -> bool:
        """Whether nothing but scale and shift lies between the two."""
        return self.residual <= TOLERANCE

    def __str__(self) -> str:
        off = [
            place
            for place, (scale, shift) in enumerate(zip(self.scale, self.shift, strict=True))
            if scale != 1.0 or shift != 0.0
        ]
        if not off:
            return "both hold the same values"
        if len(off) == len(self.scale):
            return f"the target's values are {formula(self.scale, self.shift)} of the source's x"
        some = ", ".join(
            f"{place}: {formula(self.scale[place : place + 1], self.shift[place : place + 1])}" for place in off[:3]
        )
        return f"{len(off)} of {len(self.scale)} channels differ ({some}{', ...' if len(off) > 3 else ''})"


def fit(source: np.ndarray, target: np.ndarray, *, axis: int | None = None) -> Fit | None:
    """Fit a scale and shift per channel between two values of one layout, [R, *shape] each; None when that is no question.

    axis: of the channels, without R; absent, the axis is taken whose fit leaves least (one for all where that is as good).
    """
    if source.shape != target.shape or not source.size or not _numeric(source, target):
        return None
    source, target = _some(source), _some(target)
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        return None
    rank = source.ndim - 1
    places: list[int | None] = [None, *range(rank)] if axis is None else [axis]
    best: Fit | None = None
    for place in places:
        if place is not None and not (
            source.size >= ROWS_PER_FEATURE * source.shape[place + 1] <= 4 * MOST_FEATURES**2
        ):
            continue
        found = _fit_along(source, target, place)
        if best is None or (best.residual > TOLERANCE and found.residual < 0.5 * best.residual):
            best = found
    return best


def _fit_along(source: np.ndarray, target: np.ndarray, axis: int | None) -> Fit:
    left, right = _by_channel(source, axis), _by_channel(target, axis)
    scale, shift, rest = _Sums.of(left, right, square=False).fit(tuple(range(len(left))))
    spread = np.sqrt(np.maximum(right.var(1), 1e-300))
    scale = np.where(np.abs(scale - 1.0) <= 1e-4, 1.0, scale)
    shift = np.where(np.abs(shift) <= 1e-4 * spread, 0.0, shift)
    return Fit(axis=axis, scale=tuple(scale.tolist()), shift=tuple(shift.tolist()), residual=float(rest.max()))
