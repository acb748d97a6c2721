"""The values that a verification consists of. Everything here is immutable and has a JSON form (INTERFACE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from trueport.artifact import Artifact
from trueport.outcome import Failure


class Verdict(StrEnum):
    """The answer to "is the twin faithful?". Has no truth value on purpose: three of the four are not "yes"."""

    FAITHFUL = "faithful"
    DEVIATES = "deviates"
    INCOMPARABLE = "incomparable"
    FLAKY = "flaky"

    def __bool__(self) -> bool:
        raise TypeError("a Verdict has no truth value; compare it with Verdict.FAITHFUL")


CaseOutputs = Mapping[str, "np.ndarray | list[np.ndarray]"]
"""Output name -> [R, *shape], or R arrays of different shapes."""

RunSet = Mapping[str, "CaseOutputs | Failure"]
"""Case name -> what the model gave for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorRun:
    """The source evaluated in another, equally right way; `how` says which ("float64", "threads-1", "inputs moved by one ulp")."""

    how: str
    runs: RunSet


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputReport:
    """One output compared. Errors are absolute, over data and batch cases (a probe's large magnitudes would drown
    the rest; probes stand in `cases`). `floor` is relative to the root mean square of the output's input-dependent
    part. `ratio` = deviation / floor, of rms or of the largest element, whichever is nearer to its bound.
    `worst_index` is [case, run, *index in the target's layout]."""

    source: str
    target: str
    how: str
    permutation: tuple[int, ...] | None
    verdict: Verdict
    reason: str
    max_abs: float
    max_rel: float
    rmse: float
    cosine: float
    psnr: float
    ulp_p99: float
    floor: float
    ratio: float
    worst_index: tuple[Any, ...]
    source_nonfinite: int
    target_nonfinite: int
    notes: tuple[str, ...] = ()
    cases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """case -> {"deviation", "floor", "ratio", ...}: what the report plots against the floor."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; non-finite numbers stay floats, the writer turns them into strings."""
        return {
            "source": self.source,
            "target": self.target,
            "permutation": None if self.permutation is None else list(self.permutation),
            "verdict": str(self.verdict),
            "max_abs": self.max_abs,
            "max_rel": self.max_rel,
            "rmse": self.rmse,
            "cosine": self.cosine,
            "psnr": self.psnr,
            "ulp_p99": self.ulp_p99,
            "floor": self.floor,
            "ratio": self.ratio,
            "worst_index": list(self.worst_index),
            "source_nonfinite": self.source_nonfinite,
            "target_nonfinite": self.target_nonfinite,
            "how": self.how,
            "reason": self.reason,
            "notes": list(self.notes),
            "cases": {case: dict(numbers) for case, numbers in self.cases.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """What the deviation does to decisions."""

    task: str
    count: int
    top1_flips: int
    flips_within_noise: int
    topk_overlap: float
    accuracy_source: float | None
    accuracy_target: float | None
    flipped: Sequence[Mapping[str, Any]] = ()
    """{"case", "run", "row", "source_label", "target_label", "margin", "within_noise"} of the flips, largest margin first."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "task": self.task,
            "count": self.count,
            "top1_flips": self.top1_flips,
            "flips_within_noise": self.flips_within_noise,
            "topk_overlap": self.topk_overlap,
            "accuracy_source": self.accuracy_source,
            "accuracy_target": self.accuracy_target,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The pure result of comparing two sets of runs; a Verification adds where they came from."""

    verdict: Verdict
    reason: str
    outputs: tuple[OutputReport, ...]
    unpaired_source: tuple[str, ...]
    unpaired_target: tuple[str, ...]
    decisions: Decisions | None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return its part of `trueport/verify/1`."""
        return {
            "verdict": str(self.verdict),
            "reason": self.reason,
            "outputs": [output.to_json() for output in self.outputs],
            "unpaired": {"source": list(self.unpaired_source), "target": list(self.unpaired_target)},
            "decisions": None if self.decisions is None else self.decisions.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """`trueport/verify/1`."""

    comparison: Comparison
    source: Artifact
    target: Artifact
    inputs: Mapping[str, Any]
    declared_precision: str
    versions: Mapping[str, str]
    timings: Mapping[str, float]
    rerun: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The verdict of the comparison."""
        return self.comparison.verdict

    @property
    def reason(self) -> str:
        """One sentence."""
        return self.comparison.reason
