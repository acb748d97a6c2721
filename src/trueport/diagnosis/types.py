"""The values that a diagnosis consists of. `Finding` is where a fault sits, `Evidence` is what is wrong there, `Suspect` both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from trueport.align.types import Relation
from trueport.compare.types import Verification


class Cause(StrEnum):
    """What kind of thing is wrong."""

    INPUTS = "inputs"
    PARAMETERS = "parameters"
    HYPERPARAMETERS = "hyperparameters"
    STRUCTURE = "structure"
    PRECISION = "precision"
    RUNTIME = "runtime"
    TOOL = "tool"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Where a fault sits, as localisation proved it.

    kind: which hypothesis healed: "input", "drift", "struct", "reshape", "extra", "missing", "layout", "shuffle",
    "nonfinite", "constant" (an output that does not depend on the inputs any more), "local" (by local replay alone).
    target: the value of the target at which putting in `relation(source)` takes the error away.
    region, source_region: node names between the values that still agree and `target` (`source`), in execution order.
    accumulated: deviation of the value as it is; local: of its operator run on the source's inputs; causal: share of
    the output error that goes away when the source's value is put in (NaN where it was not tried).
    confirmed: the causal test healed the output, or as much of it as this fault was responsible for.
    """

    kind: str
    target: str
    source: str | None
    relation: Relation | None
    region: tuple[str, ...]
    source_region: tuple[str, ...]
    accumulated: float
    local: float
    causal: float
    confirmed: bool
    prior: Mapping[str, float] = field(default_factory=dict)
    """Node name -> weight that localisation itself lays on a node of the region, to be added to the evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is wrong with one node of a finding's region, the two values side by side.

    weight: how strongly it speaks against this node; the heaviest wins. source_value, target_value: plain JSON
    (numbers, short lists, or a sentence such as "3x3x8x16 weights, rms 0.11").
    """

    node: str
    source_nodes: tuple[str, ...]
    cause: Cause
    what: str
    source_value: Any
    target_value: Any
    weight: float
    parameter: str | None = None
    """The target's constant that is wrong, where it is one: suspects that share it are grouped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """One fault: place, proof, cause. Node names are the ones that the model's own format shows."""

    rank: int
    target_nodes: tuple[str, ...]
    """The blamed node first, then the rest of the region in falling suspicion."""
    source_nodes: tuple[str, ...]
    accumulated: float
    local: float
    causal: float
    cause: Cause
    what: str
    source_value: Any
    target_value: Any
    confidence: float
    operator: str = ""
    """Operator of the blamed node in ONNX vocabulary."""
    finding: Finding | None = None

    def to_json(self) -> dict[str, Any]:
        """Return its part of `trueport/diagnose/1`."""
        return {
            "rank": self.rank,
            "target_nodes": list(self.target_nodes),
            "source_nodes": list(self.source_nodes),
            "accumulated": self.accumulated,
            "local": self.local,
            "causal": self.causal,
            "cause": str(self.cause),
            "detail": {"what": self.what, "source_value": self.source_value, "target_value": self.target_value},
            "confidence": self.confidence,
            "operator": self.operator,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownIssue:
    """A bug upstream that a diagnosis matches."""

    id: str
    url: str
    fixed_in: str | None
    summary: str
    cure: str

    def to_json(self) -> dict[str, Any]:
        """Return its part of `trueport/diagnose/1`."""
        return {
            "id": self.id,
            "url": self.url,
            "fixed_in": self.fixed_in,
            "summary": self.summary,
            "cure": self.cure,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Which conversion step made the fault: hop 0 is the first."""

    hop: int
    step: str
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return its part of `trueport/diagnose/1`."""
        return {"hop": self.hop, "step": self.step, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """`trueport/diagnose/1`. Without a deviation there are no suspects."""

    verification: Verification
    suspects: tuple[Suspect, ...] = ()
    stage: Stage | None = None
    known_issue: KnownIssue | None = None
    explanation: str = ""
    notes: tuple[str, ...] = ()
    alignment: Mapping[str, int] = field(default_factory=dict)
    """{"values", "paired", "agreeing", "unpaired"}: of the target's values."""
    timings: Mapping[str, float] = field(default_factory=dict)
