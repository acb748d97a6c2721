"""What judging one output is made of: the calibrated bounds, the evidence, one measured case, and findings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trueport.artifact import Signature
from trueport.compare.channels import Slice
from trueport.compare.floor import Floor
from trueport.compare.metrics import Difference, Spread
from trueport.compare.pairing import Pair
from trueport.compare.types import FloorRun, RunSet, Verdict

RATIO_BOUND_RMS = 10.0
"""Deviation over floor that a float32 twin may have. Kernels that sum in another order were seen to differ by up to six
times the deviation of their nearest neighbours (growth rule of deep nets), and the floor is itself a sample of a few.
Of 200 clean conversions half had 0.8, 99 % at most 4.5 and the worst (EfficientNetB0) 6.3; of 108 planted faults that were
found (1 % of one weight, an epsilon, a bias, the form of GELU) the smallest had 201: docs/noise-floor.md."""

RATIO_BOUND_MAX = 16.0
"""The same for the largest single element, whose sampling error is larger: the extreme of a few ways against one more."""

REDUCED_BOUND_RMS = 3.0
"""Over a floor in which the declared precision is simulated: rounding grids differ (per channel or tensor, calibration),
and int8 kernels of one runtime differ from each other by as much as the grid itself."""

REDUCED_BOUND_MAX = 8.0
"""The same for the largest single element. A clean int8 ResNet-8 on 500 photographs had 3.8 over a floor from four of
them: the largest error grows with the number of samples, and labels of near ties fall the other way."""

REDUCED_CAP = 0.5
"""Beyond half of the input-dependent part no precision is faithful: clean int8 twins were seen at .07 to .29."""

VISIBLE = 100.0
"""The input-dependent part of a full-precision output is seen when it is this many times the floor. Nearer to it, a case
is no evidence: the deviation that the bound allows would be a tenth of the signal and more, and a wrong epsilon in a
network whose output hardly varied passed so. Clean ResNet-101 has 1400."""

EXACT_BOUND = 2.0
"""An exact output (an argmax) may differ in twice the share of elements that the source's own ways change."""

EXACT_CAP = 0.05
"""... but never in more than this share, 25 % at reduced precision: one broken way must not excuse everything."""
REDUCED_EXACT_CAP = 0.25

MINORITY = 0.5
"""NaN in more than this share of the source's elements leaves too little to compare."""

FULL_PRECISION = "float32"
SEVERITY = (Verdict.FAITHFUL, Verdict.INCOMPARABLE, Verdict.FLAKY, Verdict.DEVIATES)
"""From harmless to worst: a fault that was seen outweighs what could not be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that forbids FAITHFUL. `weight` orders findings of one verdict; `numeric`: from values, not structure."""

    verdict: Verdict
    text: str
    weight: float = math.inf
    numeric: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that the outputs are judged on. `kinds`: case -> "data", "batch" or "probe", only cases that the source ran."""

    signature: Signature
    kinds: Mapping[str, str]
    source: RunSet
    target: RunSet
    floors: Sequence[FloorRun]
    repeat_source: RunSet | None
    repeat_target: RunSet | None
    declared: str
    grids: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Target output -> "scale", "zero_point" and "dtype" of the integers that it is stored as."""

    @property
    def reduced(self) -> bool:
        """A precision below float32 was declared."""
        return self.declared not in (FULL_PRECISION, "float64")

    @property
    def integer(self) -> bool:
        """The source itself computes in integers, so that its own kernel sets differ by steps of a coarse grid."""
        return str(self.signature.meta.get("precision", "")).startswith("int8")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One output in one case, measured. Ratios are NaN where nothing finite was compared."""

    kind: str
    difference: Difference
    floor: Floor
    spread: Spread
    exact: bool
    bound_rms: float
    bound_max: float
    target_constant: bool
    worst_slice: Slice | None
    limit: float
    """Floor below which the input-dependent part cannot be seen."""

    @property
    def ratio_rms(self) -> float:
        """Deviation over floor, root mean square (for an exact output: share of changed elements over the allowed share)."""
        if self.exact:
            return over(self.difference.share, self.floor.share)
        return over(self.difference.rms, self.floor.rms)

    @property
    def ratio_max(self) -> float:
        """The same for the largest single element."""
        return 0.0 if self.exact else over(self.difference.max_abs, self.floor.max)

    @property
    def strain(self) -> float:
        """The larger of the two ratios, each over its bound: FAITHFUL needs at most 1. NaN counts as infinite."""
        strain = max(self.ratio_rms / self.bound_rms, self.ratio_max / self.bound_max)
        return math.inf if math.isnan(self.ratio_rms) or math.isnan(strain) else strain

    @property
    def ratio(self) -> float:
        """The ratio that is nearer to its bound."""
        by_rms = self.ratio_rms / self.bound_rms
        return self.ratio_max if self.ratio_max / self.bound_max > by_rms else self.ratio_rms

    @property
    def swamped(self) -> bool:
        """The simulated precision alone drowns the input-dependent part."""
        return not self.exact and self.floor.simulated and self.floor.rms > REDUCED_CAP * self.spread.dev > 0.0

    @property
    def varies(self) -> bool:
        """The source's output depends on the input by more than noise could hide."""
        return not self.spread.constant and (self.exact or self.spread.dev > self.limit)


@dataclass(slots=True)
class Judged:
    """The verdict on one pair, with what the whole verdict needs of it."""

    pair: Pair
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    results: dict[str, CaseResult] = field(default_factory=dict)
    informative: bool = False

    @property
    def worst(self) -> Finding | None:
        """The finding that decides."""
        return worst_of(self.findings)


def worst_of(findings: Sequence[Finding]) -> Finding | None:
    """The most severe finding, of equals the heaviest, of equals the first."""
    return max(findings, key=lambda found: (SEVERITY.index(found.verdict), found.weight), default=None)


def over(amount: float, floor: float) -> float:
    """amount / floor, where nothing over nothing is 0."""
    if floor > 0.0:
        return amount / floor
    return 0.0 if amount == 0.0 else math.nan if math.isnan(amount) else math.inf
