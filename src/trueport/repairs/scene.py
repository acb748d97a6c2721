"""What a rule gets to see: one suspect, with both models traced on the inputs of the search."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trueport.align.match import View, align
from trueport.align.types import Alignment, Match
from trueport.artifact import Artifact
from trueport.compare.types import Verification
from trueport.diagnosis.evidence import Look, look
from trueport.diagnosis.pair import Pair
from trueport.diagnosis.parameters import Region
from trueport.diagnosis.preprocessing import PreprocessingFinding
from trueport.diagnosis.region import Inside
from trueport.diagnosis.structure import Stretch
from trueport.diagnosis.types import Evidence, Finding, Suspect
from trueport.feeds import Feeds
from trueport.frameworks._base import EditDict
from trueport.graph import Node
from trueport.repairs.types import Edit
from trueport.verification import Reference


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One suspect. Values in `pair.theirs` are those of the target with every finding's value put in: what stands
    behind the fault agrees with the source there; `pair.target.values` are what the file really computes.

    target: the file to be changed, as it was traced. alignment: of its values as the file computes them; healed: with
    every finding's value put in. evidence: of the suspect's region, heaviest first. others: the findings of the other suspects. prepared: the change
    of the target's inputs under which it gives what the source gives, where the diagnosis found one.
    """

    reference: Reference
    target: Artifact
    given: Feeds
    verification: Verification
    pair: Pair
    alignment: Alignment
    healed: Alignment
    suspect: Suspect
    finding: Finding
    evidence: tuple[Evidence, ...]
    others: tuple[Finding, ...] = ()
    prepared: PreprocessingFinding | None = None

    @property
    def format(self) -> str:
        """The target's format."""
        return self.target.format

    @property
    def precision(self) -> str:
        """The target's declared precision."""
        return self.pair.precision

    @cached_property
    def look(self) -> Look | None:
        """The stretch of both graphs around the fault, None where the finding has none."""
        return look(self.finding, self.pair.source, self.pair.target, self.alignment, precision=self.precision)

    @cached_property
    def ours(self) -> Inside:
        """The source."""
        return Inside(self.pair.source)

    @cached_property
    def theirs(self) -> Inside:
        """The target."""
        return Inside(self.pair.target)

    @cached_property
    def as_found(self) -> Alignment:
        """The twins of the target's values as the file computes them, with nothing put in."""
        pair = self.pair
        view = View.of(pair.target.graph, pair.target.values)
        return align(pair.ours, view, pair.pins, tolerance=pair.tolerance, growth=pair.growth)

    @property
    def stretch(self) -> Stretch | None:
        """Nodes of both regions."""
        return None if self.look is None else self.look.stretch

    @property
    def region(self) -> Region | None:
        """Parameters of both regions."""
        return None if self.look is None else self.look.region

    @cached_property
    def blamed(self) -> tuple[Node, ...]:
        """The nodes of the target's region, the most suspicious first."""
        nodes = self.pair.target.graph.by_name
        names = dict.fromkeys([item.node for item in self.evidence] + list(self.finding.region))
        return tuple(nodes[name] for name in names if name in nodes)

    def match(self, value: str) -> Match | None:
        """The twin of a target value that agrees with it once the faults are mended."""
        match = self.alignment.matches.get(value)
        return match if match is not None and match.ok else None

    def twin(self, value: str) -> str | None:
        """Name of the twin of a target value."""
        match = self.match(value)
        return None if match is None else match.source

    def edit(
        self, rule: str, where: str, before: Any, after: Any, reason: str, change: EditDict, **arrays: np.ndarray
    ) -> Edit:
        """An edit of this target. `where`: a node's name as `graph` gives it."""
        node = self.pair.target.graph.by_name.get(where)
        return Edit(
            rule=rule,
            kind=str(change["kind"]),
            where=where if node is None else node.shown,
            before=before,
            after=after,
            reason=reason,
            change=change,
            arrays=arrays,
        )
