"""What feeds are: cases of equally shaped runs, and the digest that names their exact bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """A group of runs with the same input shapes. Compared by identity: arrays have no single answer to `==`.

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feeds:
    """All cases, with where they came from. `count` is the number of samples in the data cases.

    `labels`: one class number per sample, in the order of the cases of kind "data", their runs, and the batch axis.
    """

    cases: tuple[Case, ...]
    origin: str
    seed: int
    count: int
    sha256: str
    labels: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def of_kind(self, *kinds: str) -> tuple[Case, ...]:
        """The cases of these kinds, in order."""
        return tuple(case for case in self.cases if case.kind in kinds)

    @staticmethod
    def of(
        cases: Iterable[Case],
        *,
        origin: str,
        count: int,
        seed: int = 0,
        labels: np.ndarray | None = None,
        notes: Iterable[str] = (),
    ) -> Feeds:
        """Bundle cases with their digest. Raises ValueError when two cases share a name or runs differ inside a case."""
        found = tuple(cases)
        if len({case.name for case in found}) != len(found):
            raise ValueError("two cases share a name")
        for case in found:
            if len({array.shape[0] for array in case.inputs.values()}) > 1:
                raise ValueError(f"the inputs of case {case.name} differ in their number of runs")
        return Feeds(
            cases=found,
            origin=origin,
            seed=seed,
            count=count,
            sha256=digest(found),
            labels=labels,
            notes=tuple(notes),
        )


def digest(cases: Iterable[Case]) -> str:
    """SHA-256 over names, kinds, dtypes, shapes and little-endian bytes of all cases, independent of memory layout."""
    total = hashlib.sha256()
    for case in cases:
        total.update(f"{case.name}\0{case.kind}\0".encode())
        for name, array in case.inputs.items():
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            total.update(f"{name}\0{little.dtype.str}\0{array.shape}\0".encode())
            for run in little:
                total.update(np.ascontiguousarray(run).tobytes())
    return total.hexdigest()
