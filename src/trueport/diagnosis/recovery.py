"""The description of a pipeline, recovered from the pictures that it took and the arrays that it made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trueport.diagnosis.inputs import TOLERANCE, Change, Explanation, closest
from trueport.errors import UsageError
from trueport.feeds.dims import channel_axis
from trueport.feeds.labels import pictures_in
from trueport.feeds.pictures import open_picture, spread
from trueport.preprocess import DTYPES, Preprocess

PICTURES = 4
"""Pictures from which a pipeline is recovered."""
FRACTIONS = (1.0, 0.875, 0.9, 0.95, 0.8)
"""Shares of a picture that a central crop keeps; 0.875 is 224 of 256."""
KEPT_CROPS = 3
"""Best crops (all tried with one way of resizing) for which every way of resizing is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """A pipeline recovered from its arrays. residual: what the description leaves, in standard deviations of a channel:
    0 to 0.001 is exact; a few hundredths are left when pictures were decoded otherwise."""

    preprocess: Preprocess
    explanation: Explanation
    residual: float

    @property
    def exact(self) -> bool:
        """Whether the description gives the very arrays."""
        return self.residual <= TOLERANCE


def recover(images: Sequence[Image.Image], values: np.ndarray) -> Recovered:
    """Recover the pipeline that made `values` [N, ...] of `images` (as many, in order): the nearest that is known.

    Look at `exact` before relying on it. Raises UsageError when the values are no pictures of one size.
    """
    if len(images) != len(values):
        raise UsageError(f"there are {len(values)} arrays for {len(images)} pictures")
    axis = channel_axis((1, *values.shape[1:])) if values.ndim == 4 else None
    if values.ndim not in (3, 4) or (values.ndim == 4 and axis is None) or not np.isfinite(values).all():
        raise UsageError(f"arrays of shape {list(values.shape[1:])} are no RGB or grey pictures")
    sides = [int(size) for place, size in enumerate(values.shape[1:], 1) if place != axis]
    plain: dict[str, Any] = {"order": "GREY"} if axis is None or values.shape[axis] == 1 else {}
    plain |= {"layout": "NHW"} if axis is None else {}
    size = (sides[0], sides[1])
    crops = _nearest(images, values, [Preprocess(size=size, **crop, **plain) for crop in _crops(size)])
    if not crops:
        raise UsageError("the arrays hold only one value, so nothing can be told from them")
    best = crops
    if crops[0][0] > TOLERANCE / 10:
        tried = [replace(crop, **way) for _, crop, _ in crops[:KEPT_CROPS] for way in WAYS]
        best = _nearest(images, values, tried, like=crops[0][2].change)
    _, geometry, found = best[0]
    recipe = _described(geometry, found, values)
    return Recovered(preprocess=recipe, explanation=found, residual=_left(recipe, images, values))


def _nearest(
    images: Sequence[Image.Image], values: np.ndarray, tried: Sequence[Preprocess], *, like: Change | None = None
) -> list[tuple[float, Preprocess, Explanation]]:
    """(residual, geometry, what lies between it and the values), the nearest first; stops at one that is exact."""
    done: list[tuple[float, Preprocess, Explanation]] = []
    for geometry in tried:
        made = np.stack([geometry.apply(image) for image in images])
        found = closest(made, np.asarray(values), like=like)
        if found is not None:
            done.append((found.residual, geometry, found))
            if found.residual <= TOLERANCE / 10:
                break
    return sorted(done, key=lambda item: item[0])


def _left(recipe: Preprocess, images: Sequence[Image.Image], values: np.ndarray) -> float:
    """What a description leaves of the values, in standard deviations of the worst channel."""
    made = np.stack([recipe.apply(image) for image in images]).astype(np.float64)
    if made.shape != values.shape:
        return math.inf
    axis = channel_axis((1, *values.shape[1:])) if values.ndim == 4 else None
    rest = tuple(place for place in range(values.ndim) if place != axis)
    apart = np.sqrt(np.mean((made - values) ** 2, axis=rest))
    return float(np.max(apart / np.maximum(values.std(axis=rest, dtype=np.float64), 1e-12)))


def _crops(size: tuple[int, int]) -> list[dict[str, Any]]:
    """Which part of a picture is taken, the commonest first."""
    short = [None, *(round(max(size) / fraction) for fraction in FRACTIONS[1:]), *([256] if max(size) <= 256 else [])]
    found: list[dict[str, Any]] = [{"crop": "none"}]
    found += [{"crop": "center", "short_side": side} for side in dict.fromkeys(short)]
    return found + [{"crop": "first", "fraction": fraction} for fraction in FRACTIONS]


WAYS: tuple[dict[str, Any], ...] = (
    *({"resize": how} for how in ("bilinear", "bicubic", "nearest")),
    *(
        {"resize": how, "antialias": False, "rounded": rounded}
        for how in ("bilinear", "bicubic", "bicubic-sharp")
        for rounded in (False, True)
    ),
    *({"resize": how, "rounded": False} for how in ("bilinear", "bicubic", "area", "lanczos", "bilinear-corner")),
    *({"resize": how} for how in ("lanczos", "box", "area", "nearest-floor", "bilinear-corner")),
)
"""Ways of resizing, the commonest first."""


def _described(geometry: Preprocess, found: Explanation, values: np.ndarray) -> Preprocess:
    """The description that gives the values: places and numbers of the explanation."""
    change = found.change
    places: dict[str, Any] = {"dtype": str(values.dtype) if str(values.dtype) in DTYPES else "float32"}
    if change.permutation == (2, 0, 1):
        places["layout"] = "NCHW"
    if change.channels == (2, 1, 0):
        places["order"] = "BGR"
    scale, shift = change.scale, change.shift
    if len(set(scale)) == len(set(shift)) == 1:
        return replace(geometry, scale=scale[0], offset=shift[0], **places)
    count = max(len(scale), len(shift))
    k, b = np.resize(np.array(scale), count), np.resize(np.array(shift), count)
    unit = 255.0 if found.named is not None and "/ 255" in found.named.target.words else 1.0
    mean, std = (tuple(float(f"{number:.6g}") for number in numbers / unit) for numbers in (-b / k, 1.0 / k))
    return replace(geometry, scale=1.0 / unit, mean=mean, std=std[:1] if len(set(std)) == 1 else std, **places)


def recover_folder(folder: Path, values: np.ndarray) -> Recovered:
    """As `recover`, for the pictures of a folder in the order of their names; looks at a few of them."""
    files = pictures_in(folder)
    if len(files) != len(values):
        raise UsageError(
            f"there are {len(values)} arrays for the {len(files)} pictures of {folder}; give one per picture, in the order of their names"
        )
    places = spread(len(files), PICTURES)
    return recover([open_picture(files[place]) for place in places], np.asarray(values)[places])
