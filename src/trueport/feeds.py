"""The inputs on which two models are compared: recorded, read from data, or generated; kept for replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A group of runs with the same input shapes.

    kind: "data" (representative; decides floor and decisions), "batch" (another batch size of the same data),
    "probe" (zeros, large, negative, ... : shows faults that ordinary data hides).
    inputs: source input name -> [R, *shape of one run].
    """

    name: str
    kind: str
    inputs: Mapping[str, np.ndarray]

    @property
    def runs(self) -> int:
        """R."""
        return next(iter(self.inputs.values())).shape[0] if self.inputs else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeds:
    """All cases, with where they came from. `count` is the number of samples in the data cases; `labels` are per sample of case "data"."""

    cases: tuple[Case, ...]
    origin: str
    seed: int
    count: int
    sha256: str
    labels: np.ndarray | None = None
    notes: tuple[str, ...] = ()
