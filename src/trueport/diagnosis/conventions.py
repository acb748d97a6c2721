"""How pixel values become a model's numbers in practice, as data, and the name of an affine map between two such ways.

A convention is `value * scale + shift` for pixels 0..255, per colour in the order red, green, blue. The map between the
inputs of two models is named by the pair of conventions whose quotient it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

COLOURS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0)}
"""Order of channels -> which of red, green, blue each channel holds."""

CLOSE = 1e-3
"""Relative difference up to which two scales are one (255 and 256 differ by four times as much); a shift is held against
the spread that the target's values then have."""


@dataclass(frozen=True, slots=True)
class Convention:
    """One way to write pixels as numbers. scale, shift: one number, or one for each of red, green, blue."""

    words: str
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)

    def coefficients(self, colours: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(scale, shift) for channels that hold `colours`, each [C]."""
        scale, shift = (np.resize(np.array(values, np.float64), 3) for values in (self.scale, self.shift))
        return scale[list(colours)], shift[list(colours)]

    @property
    def fits_grey(self) -> bool:
        """Whether it treats all colours alike, and so also makes sense for one channel or for four."""
        return len(self.scale) == len(self.shift) == 1

    @property
    def low(self) -> float:
        """Least value that a pixel can have."""
        return min(self.shift)

    @property
    def high(self) -> float:
        """Largest value that a pixel can have."""
        return max(255.0 * scale + shift for scale, shift in zip(*self._three(), strict=True))

    def _three(self) -> tuple[list[float], list[float]]:
        scale, shift = self.coefficients((0, 1, 2))
        return scale.tolist(), shift.tolist()


def mean_std(words: str, mean: Sequence[float], std: Sequence[float], *, unit: float = 255.0) -> Convention:
    """The convention (x / unit - mean) / std."""
    scale = tuple(1.0 / (unit * item) for item in std)
    return Convention(words, scale, tuple(-m / s for m, s in zip(mean, std, strict=True)))


RAW = Convention("x (0 to 255)")
UNIT = Convention("x / 255 (0 to 1)", (1 / 255,))
SIGNED = Convention("x / 127.5 - 1 (-1 to 1)", (1 / 127.5,), (-1.0,))
IMAGENET = mean_std("(x / 255 - mean) / std of ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE = Convention("x - ImageNet means (B 103.939, G 116.779, R 123.68)", (1.0,), (-123.68, -116.779, -103.939))

CONVENTIONS = (
    RAW,
    UNIT,
    SIGNED,
    IMAGENET,
    CAFFE,
    Convention("x - 128 (-128 to 127)", (1.0,), (-128.0,)),
    Convention("x / 255 - 0.5 (-0.5 to 0.5)", (1 / 255,), (-0.5,)),
    Convention("(x - 127.5) / 128", (1 / 128,), (-127.5 / 128,)),
    Convention("x / 128 - 1", (1 / 128,), (-1.0,)),
    Convention("x / 256", (1 / 256,)),
    mean_std("(x / 255 - mean) / std of CLIP", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    mean_std("(x / 255 - mean) / std of CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    mean_std("(x / 255 - mean) / std of CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    Convention("(x - 103.53, 116.28, 123.675) / (57.375, 57.12, 58.395) of B, G, R",
               (1 / 58.395, 1 / 57.12, 1 / 57.375), (-123.675 / 58.395, -116.28 / 57.12, -103.53 / 57.375)),
    Convention("x - ImageNet means (B 104, G 117, R 123)", (1.0,), (-123.0, -117.0, -104.0)),
    Convention("(x / 255 - 0.1307) / 0.3081 of MNIST", (1 / 255 / 0.3081,), (-0.1307 / 0.3081,)),
    Convention("x / 16 (0 to 16 taken as 0 to 1)", (1 / 16,)),
    Convention("1 - x / 255 (inverted)", (-1 / 255,), (1.0,)),
    Convention("255 - x (inverted)", (-1.0,), (255.0,)),
)  # fmt: skip
"""The commonest first: of two names that fit, the earlier is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """Both sides of a map, in words. order: "RGB", "BGR" or "" where channels are no colours or both agree."""

    source: Convention
    target: Convention
    source_order: str = ""
    target_order: str = ""

    @property
    def source_words(self) -> str:
        """What the source gets."""
        return ", ".join(filter(None, (self.source.words, self.source_order)))

    @property
    def target_words(self) -> str:
        """What the target expects."""
        return ", ".join(filter(None, (self.target.words, self.target_order)))


def between(
    source: Convention, target: Convention, channels: Sequence[int], order: str = "RGB"
) -> tuple[np.ndarray, np.ndarray]:
    """(scale, shift), each [C], that turn `source` in colour order `order` into `target`.

    channels: which of the source's channels each channel of the target holds.
    """
    colours = [COLOURS[order][channel] if len(channels) == 3 else 0 for channel in channels]
    (k, b), (to_k, to_b) = source.coefficients(colours), target.coefficients(colours)
    return to_k / k, to_b - b * to_k / k


def pairs(channels: int) -> Iterator[tuple[Convention, Convention]]:
    """All ordered pairs of conventions for so many channels, the commonest first; the same one twice is left out."""
    usable = [item for item in CONVENTIONS if channels == 3 or item.fits_grey]
    places = sorted(
        ((i, j) for i in range(len(usable)) for j in range(len(usable)) if i != j), key=lambda ij: (sum(ij), ij)
    )
    for i, j in places:
        yield usable[i], usable[j]


def name_of(
    scale: np.ndarray, shift: np.ndarray, channels: Sequence[int], *, low: float, high: float, spread: float
) -> Named | None:
    """Name the map `source[channels] * scale + shift`; None when no pair of conventions gives it.

    low, high: range of the source's values, which tells conventions apart that have the same quotient (NaN: unknown).
    spread: standard deviation of the target's values, against which a difference of shifts is held.
    """
    swapped = tuple(channels) == (2, 1, 0)
    if len(channels) == 3 and not swapped and tuple(channels) != (0, 1, 2):
        return None
    candidates, scales, shifts = _table(tuple(channels))
    same = np.all(np.abs(scales - scale) <= CLOSE * np.abs(scales), axis=1)
    same &= np.all(np.abs(shifts - shift) <= CLOSE * spread, axis=1)
    found: list[tuple[bool, float, int, Named]] = []
    for place in np.flatnonzero(same):
        first, second, order, rank = candidates[place]
        span = first.high - first.low
        outside = low < first.low - 1e-6 * span or high > first.high + 1e-6 * span
        named = Named(source=first, target=second, **_orders(order, swapped, len(channels)))
        found.append((outside, 0.0 if math.isnan(low) else span, rank, named))
    return min(found, key=lambda item: item[:3])[3] if found else None


@lru_cache
def _table(
    channels: tuple[int, ...],
) -> tuple[list[tuple[Convention, Convention, str, int]], np.ndarray, np.ndarray]:
    """All maps between two conventions: (source, target, order of the source, rank), scales [n, C], shifts [n, C]."""
    usable = [item for item in CONVENTIONS if len(channels) == 3 or item.fits_grey]
    candidates, scales, shifts = [], [], []
    for (i, first), (j, second) in itertools.product(enumerate(usable), repeat=2):
        for order in ("RGB", "BGR") if len(channels) == 3 else ("RGB",):
            scale, shift = between(first, second, channels, order)
            candidates.append((first, second, order, i + j + (order == "BGR")))
            scales.append(scale)
            shifts.append(shift)
    return candidates, np.stack(scales), np.stack(shifts)


def _orders(order: str, swapped: bool, channels: int) -> dict[str, str]:
    if channels != 3:
        return {}
    other = {"RGB": "BGR", "BGR": "RGB"}[order]
    return {"source_order": order, "target_order": other if swapped else order}


def formula(scale: Sequence[float], shift: Sequence[float]) -> str:
    """Write the map as a person would: "x / 127.5 - 1", or per channel "(x - (1, 2, 3)) * (4, 5, 6)"."""
    k, b = _uniform(scale), _uniform(shift)
    if k == -1.0 and b is not None:
        return f"{b:.6g} - x"
    if k is None:
        text = f"x * {_numbers(scale)}"
    else:
        text = "x" if k == 1.0 else f"x / {1 / k:.6g}" if 0 < abs(k) < 1 else f"x * {k:.6g}"
    if b is None:
        return f"{text} + {_numbers(shift)}"
    return text if b == 0 else f"{text} {'-' if b < 0 else '+'} {abs(b):.6g}"


def _uniform(values: Sequence[float]) -> float | None:
    return values[0] if len({float(f"{value:.6g}") for value in values}) == 1 else None


def _numbers(values: Sequence[float]) -> str:
    listed = [f"{value:.5g}" for value in values[:4]]
    return f"({', '.join(listed)}{', ...' if len(values) > 4 else ''})"
