"""Moves every floating-point input by one unit in the last place: how far may equally right inputs move the output?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trueport.feeds.types import Case, Feeds


def jitter(feeds: Feeds, seed: int) -> Feeds | None:
    """Every finite float one ulp up or down at random; all else unchanged. None when no input is a float.

    The largest finite number only moves down, so that nothing becomes infinite; NaN and the infinities stay.
    """
    if not any(array.dtype.kind in "fc" for case in feeds.cases for array in case.inputs.values()):
        return None
    cases = []
    for case in feeds.cases:
        rng = np.random.Generator(np.random.PCG64([seed, *case.name.encode()]))
        inputs = {name: move(array, rng) if array.dtype.kind in "fc" else array for name, array in case.inputs.items()}
        cases.append(Case(name=case.name, kind=case.kind, inputs=inputs))
    moved = Feeds.of(cases, origin=feeds.origin, count=feeds.count, seed=feeds.seed, labels=feeds.labels)
    return replace(moved, notes=(*feeds.notes, "floating-point inputs moved by one ulp"))


def move(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One array, each element one ulp towards a random side."""
    if array.dtype.kind == "c":
        parts = np.empty(array.shape, array.dtype)
        parts.real, parts.imag = move(array.real, rng), move(array.imag, rng)
        return parts
    top = np.finfo(array.dtype).max
    up = rng.integers(0, 2, size=array.shape, dtype=np.int8).astype(bool)
    up = np.where(array == top, False, np.where(array == -top, True, up))
    towards = np.where(up, array.dtype.type(np.inf), array.dtype.type(-np.inf))
    return np.where(np.isfinite(array), np.nextafter(array, towards), array)
