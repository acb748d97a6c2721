"""The values that a repair consists of. An `Edit` is one change to a file, a `Proposal` is what a rule suggests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from trueport.artifact import Artifact
from trueport.compare.types import Verification
from trueport.diagnosis.types import Suspect
from trueport.frameworks._base import EditDict

PAIR = "source and target"
"""Stands among the reasons of the rules for what is true of the whole pair."""


class Status(StrEnum):
    """How a repair ended."""

    REPAIRED = "repaired"
    """Faithful on the inputs of the search and on those that the search never saw."""
    IMPROVED = "improved"
    """Nearer to the source, and still not faithful."""
    UNREPAIRED = "unrepaired"
    """Nothing helped; nothing was written."""
    NOT_NEEDED = "not-needed"
    """The target was faithful already."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Edit:
    """One change to the target's file.

    where: the node, value or output that it changes, as the target's format shows it. before, after: plain JSON, for
    people. change: what is written into the file; the arrays that it names are in `arrays`, in the file's own layout.
    """

    rule: str
    kind: str
    where: str
    before: Any
    after: Any
    reason: str
    change: EditDict
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return its part of `trueport/repair/1`."""
        return {
            "rule": self.rule,
            "kind": self.kind,
            "where": self.where,
            "before": self.before,
            "after": self.after,
            "reason": self.reason,
            "change": dict(self.change),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proposal:
    """Edits that belong together and would mend one suspect. `doubt`: 0 for what puts in the source's own value at the
    place that the diagnosis blames; more, the further the rule guesses. Small ones are tried first."""

    edits: tuple[Edit, ...]
    doubt: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One proposal as it went. before, after: error at the place of the suspect, and of the outputs, whichever is told.

    accepted: it stayed. why: for people, what happened.
    """

    rule: str
    where: str
    edits: int
    before: float
    after: float
    accepted: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return its part of `trueport/repair/1`."""
        return {
            "rule": self.rule,
            "where": self.where,
            "edits": self.edits,
            "before": self.before,
            "after": self.after,
            "accepted": self.accepted,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """`trueport/repair/1`. before, after: on the inputs that the search never saw.

    output: where the mended model lies; None where nothing was written. refused: rule -> why it proposed nothing.
    command: what makes a faithful model by another way, where a tool, an option or a version was changed instead.
    """

    status: Status
    source: Artifact
    target: Artifact
    before: Verification
    after: Verification | None = None
    output: Path | None = None
    artifact: Artifact | None = None
    steps: tuple[tuple[Edit, ...], ...] = ()
    """Groups of edits; each is applied to the file that the one before gave."""
    attempts: tuple[Attempt, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    explanation: str = ""
    command: str = ""
    notes: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    suspects: tuple[Suspect, ...] = ()
    """What the diagnosis of the target as it was found."""
    interrupted: bool = False
    settled: str = ""
    """That and how the source was settled (`settled.py`), where its own runtime computes it wrongly; `after` is then the
    verification by the settled source."""
    patch: Path | None = None
    """The script that makes the same changes, where one was asked for."""

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits, in the order in which they are applied."""
        return tuple(edit for group in self.steps for edit in group)
