"""What localisation finds: one injection and what it healed, and the findings of a whole search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from trueport.align.types import Alignment
from trueport.diagnosis.candidates import Candidate
from trueport.diagnosis.types import Finding

WIDE = 6
"""Nodes of a region from which a stricter look is worth its time."""


class Trial(NamedTuple):
    """One injection: what it did to the outputs, how many are right with it, how many values behind it agree again."""

    candidate: Candidate
    given: Mapping[str, np.ndarray]
    errors: Mapping[str, float]
    healed: bool
    outputs: int
    gained: int

    @property
    def rank(self) -> tuple[int, int, float]:
        """Larger is better, among injections that do not heal everything."""
        worst = max(self.errors.values(), default=0.0)
        return (self.outputs, self.gained, -worst)


@dataclass(kw_only=True)
class Located:
    """What localisation found. `healed`: whether the outputs are right once all findings are mended."""

    findings: list[Finding] = field(default_factory=list)
    healed: bool = False
    alignment: Alignment
    """Of the values as the target computes them."""
    after: Alignment | None = None
    """Of the values with every finding's put in; None where that was not looked at."""
    injected: dict[str, np.ndarray] = field(default_factory=dict)
    tries: int = 0
    before: dict[str, float] = field(default_factory=dict)
    """Error of each target output before anything was put in."""
    notes: list[str] = field(default_factory=list)

    @property
    def sharp(self) -> bool:
        """Whether everything is proven, every region is small, and the errors arise there and are not only passed on."""
        return self.healed and bool(self.findings) and all(_sharp(finding) for finding in self.findings)

    def better(self, other: Located) -> bool:
        """Whether this one proves more, or the same with smaller regions."""
        mine, theirs = (sum(map(_sharp, one.findings)) / max(1, len(one.findings)) for one in (self, other))
        return (self.healed, mine, -self._width()) > (other.healed, theirs, -other._width())

    def _width(self) -> int:
        return sum(len(finding.region) for finding in self.findings) if self.findings else 10**6


def _sharp(finding: Finding) -> bool:
    passed_on = finding.kind in ("drift", "struct") and finding.local < 0.1 * finding.accumulated
    return len(finding.region) <= WIDE and not passed_on


def share(before: float, after: float) -> float:
    """How much of an error went away: 1 all of it, 0 nothing, negative when it grew."""
    if not np.isfinite(before):
        return 1.0 if np.isfinite(after) else 0.0
    if before <= 0:
        return 0.0
    return float("nan") if not np.isfinite(after) else (before - after) / before
