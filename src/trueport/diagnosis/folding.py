"""BatchNorms that were folded into a neighbour with another epsilon than their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from trueport.diagnosis import pool
from trueport.diagnosis.pool import Known, Norm


def wrong_epsilon(mine: Known, raw: Sequence[Known], norms: Sequence[Norm]) -> tuple[str, str, str] | None:
    """Which other epsilon explains a parameter: guessed from the factors, proven by folding with it.

    raw: the parameters that the source region has. Returns (what, source's value, target's value), or None.
    """
    for norm in norms:
        for guess in _epsilons(mine, raw, norm):
            scale = norm.scale(guess)
            terms = float(np.max(np.abs(norm.slots["beta"])) + np.max(np.abs(norm.slots["mean"] * scale)))
            if abs(guess / max(norm.epsilon, 1e-12) - 1) > 0.02 and any(
                pool.close(mine.array, array, terms) for array in _folds(mine, raw, norm, scale)
            ):
                usual = f"{norm.epsilon:.3g}"
                what = f"BatchNorm '{norm.node.shown}' was folded in with epsilon {guess:.3g} instead of {usual}"
                return what, f"epsilon {usual}", f"epsilon {guess:.3g}"
    return None


def _folds(mine: Known, raw: Sequence[Known], norm: Norm, scale: np.ndarray) -> Iterator[np.ndarray]:
    """What a parameter of this size would be after folding with a scale: weights, then shifts."""
    if mine.array.ndim >= 2:
        for known in raw:
            if known.array.shape == mine.array.shape and len(known.array) == scale.size:
                yield known.array * scale.reshape(-1, *[1] * (known.array.ndim - 1))
    elif mine.array.size == scale.size:
        for bias in (np.zeros(scale.size), *(known.array.ravel() for known in raw if known.array.size == scale.size)):
            yield norm.slots["beta"] + (bias - norm.slots["mean"]) * scale


def _epsilons(mine: Known, raw: Sequence[Known], norm: Norm) -> Iterator[float]:
    """The epsilons that the ratio to a parameter folded with scale 1 suggests, each rounded as people write them."""
    ones = np.ones(norm.slots["var"].size)
    for plain in _folds(mine, raw, norm, ones):
        with np.errstate(all="ignore"):
            if plain.ndim >= 2:
                factor = pool.factors_between(mine.array, plain, 0)
            else:
                factor = (mine.array.ravel() - norm.slots["beta"]) / (plain - norm.slots["beta"])
            if factor is None:
                continue
            seen = np.square(norm.slots["gamma"] / factor) - norm.slots["var"]
        seen = seen[np.isfinite(seen)]
        middle = float(np.median(seen)) if seen.size else 0.0
        if middle > 0:
            yield float(f"{middle:.1g}")
            yield float(f"{middle:.3g}")
