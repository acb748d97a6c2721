"""What alignment finds: which value of the target is which value of the source, under which relation, and how sure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class Relation:
    """How a source array becomes a target array: transpose the squeezed axes of one side, then read flat.

    side "source": source.transpose(permutation), read flat, is the target read flat.
    side "target": target.transpose(permutation), read flat, is the source read flat.
    The run axis comes first on both sides and never takes part; axes of size 1 are left out before.
    """

    permutation: tuple[int, ...]
    side: str = "source"

    @property
    def identity(self) -> bool:
        """Whether the elements keep their order."""
        return self.permutation == tuple(range(len(self.permutation)))

    def to_target(self, source: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Arrange a source array [R, ...] as the target's [R, *shape]. Raises ValueError when the sizes do not agree."""
        runs = source.shape[0]
        if self.side == "source":
            return np.reshape(moved(squeezed(source), self.permutation), (runs, *shape))
        tight = [size for size in shape if size != 1]
        turned = np.reshape(source, (runs, *(tight[axis] for axis in self.permutation)))
        back = tuple(int(place) for place in np.argsort(self.permutation))
        return np.reshape(moved(turned, back), (runs, *shape))

    def __str__(self) -> str:
        if self.identity:
            return "same order"
        return f"{self.side} transposed by {list(self.permutation)}"


def squeezed(array: np.ndarray) -> np.ndarray:
    """Leave out the axes of size 1, except the run axis."""
    return np.reshape(array, (array.shape[0], *(size for size in array.shape[1:] if size != 1)))


def moved(array: np.ndarray, permutation: tuple[int, ...]) -> np.ndarray:
    """Transpose all axes but the run axis."""
    return np.transpose(array, (0, *(axis + 1 for axis in permutation)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A target value and its twin in the source.

    error: rms(target - relation(source)) / dev(source), dev the rms of the source's input-dependent part.
    how: "input" | "output" | "value" | "name" | "structure" | "shuffle" (same elements, no relation found).
    ok: the error lies within what the declared precision and the growth over depth explain.
    rivals: other source values that fit as well (equal tensors): the pair is one of values, not of places.
    """

    target: str
    source: str
    relation: Relation
    error: float
    how: str
    ok: bool
    rivals: tuple[str, ...] = ()

    @property
    def sure(self) -> float:
        """Confidence between 0 and 1."""
        base = {"input": 1.0, "output": 1.0, "value": 0.98, "name": 0.9, "structure": 0.6, "shuffle": 0.5}[self.how]
        return base if not self.rivals else base * 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """The twins of all target values that have one, and what is known about the rest.

    consensus: rank -> the permutation (source to target, of squeezed axes) that the model as a whole follows.
    explained: source values whose value class has an ok twin.
    """

    matches: Mapping[str, Match]
    consensus: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    explained: frozenset[str] = frozenset()
    alike: Mapping[str, str] = field(default_factory=dict)
    """Source value -> representative of the class of source values that are equal to it."""

    def ok(self, target: str) -> bool:
        """Whether a target value has a twin and agrees with it."""
        match = self.matches.get(target)
        return match is not None and match.ok
