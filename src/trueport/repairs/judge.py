"""Whether an edit mends the suspect it is for: the edited file is traced at the place of the fault and right behind it.

With several faults the outputs stay wrong until the last is mended, so that they alone cannot tell. Values from the
place of the fault on, up to where the next one begins, can: once mended they agree with the source.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueport.align import relations
from trueport.align.match import GROWTH
from trueport.align.types import Alignment, Match, Relation
from trueport.artifact import Artifact
from trueport.diagnosis.pair import Output, Pair
from trueport.diagnosis.types import Finding
from trueport.outcome import Failure, Ok, Outcome, Stage
from trueport.repairs.gate import Gate, badness
from trueport.session import Session

PROBES = 3
"""Values behind the place of a fault that are looked at: its readers, and theirs."""

NOISE = 6.0
"""Times the error that a value shows with the fault's value put in; the growth rule of alignment allows as much."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A value of the target, its twin, and the error from which it counts as right."""

    target: str
    source: str
    relation: Relation
    limit: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How wrong a file is. `place`: largest error at the probes, over each one's limit; `outputs`: largest error of an
    output that deviates, over its limit. At most 1 is right. NaN: none could be seen."""

    place: float
    outputs: float

    @property
    def mended(self) -> bool:
        """Whether the suspect's fault is gone: the outputs are right, or the place is."""
        return self.outputs <= 1 or self.place <= 1

    @property
    def healed(self) -> bool:
        """Whether all outputs are right."""
        return self.outputs <= 1

    @property
    def worst(self) -> float:
        """One number to compare by: the place where it is seen, else the outputs."""
        return self.outputs if math.isnan(self.place) else min(self.place, self.outputs)


@dataclass(kw_only=True)
class ByVerdict:
    """Scores files by verifying them: for faults of the runtime, whose trace is right, and where nothing can be traced."""

    gate: Gate

    def words(self, artifact: Artifact) -> str:
        """Why a file is still wrong."""
        return f"still {self.gate.on_search(artifact).reason}"

    def score(self, artifact: Artifact) -> Outcome[Score]:
        """Verify on the inputs of the search."""
        verdict, lost, ratio = badness(self.gate.on_search(artifact))
        return Ok(Score(place=math.nan, outputs=0.5 if verdict == 0 else 1e6 * (10 * verdict + lost) + max(ratio, 1.0)))


@dataclass(kw_only=True)
class Judge:
    """Scores files against what the source computes on the inputs of one traced pair."""

    session: Session
    pair: Pair
    healed: Alignment
    finding: Finding
    others: Sequence[Finding] = ()
    wrong: Sequence[Finding] = ()
    """Faults before this one that could not be mended: their right values are put in, so that this one is seen alone."""
    probes: tuple[Probe, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.probes = tuple(self._probes())

    def _probes(self) -> list[Probe]:
        """The place of the fault, then the nearest values behind it that agree once it is mended."""
        found = []
        finding, graph = self.finding, self.pair.theirs.graph
        if finding.source is not None and finding.relation is not None and finding.target not in graph.inputs:
            around = [match.error for name in graph.parents(finding.target) if (match := self._agreeing(name))]
            limit = max([self.pair.tolerance, *(GROWTH * error for error in around)])
            found.append(Probe(finding.target, finding.source, finding.relation, limit))
        stops = {other.target for other in self.others if other is not finding}
        below = graph.downward([finding.target], lambda name: name in stops and name != finding.target)
        for name in below:
            match = self._agreeing(name)
            if match is None or name == finding.target or len(found) > PROBES:
                continue
            limit = max(self.pair.tolerance, NOISE * match.error)
            probe = Probe(name, match.source, match.relation, limit)
            as_found = self.pair.target.values.get(name)
            if as_found is None or self._at(probe, as_found) > 1:  # what the file has right already tells nothing
                found.append(probe)
        return found

    def _agreeing(self, name: str) -> Match | None:
        match = self.healed.matches.get(name)
        return match if match is not None and match.ok and np.isfinite(match.error) else None

    def score(self, artifact: Artifact) -> Outcome[Score]:
        """Trace an edited file at the probes and the outputs. A Failure when it does not run."""
        pair = self.pair
        bad = [output for output in pair.outputs if output.bad]
        known = self.session.ask(artifact, "names", {}, stage=Stage.TRACE)
        if isinstance(known, Failure):
            return known
        there = set(known.value.value)
        wanted = [probe.target for probe in self.probes if probe.target in there]
        wanted += [output.target for output in bad if output.target in there and output.target not in wanted]
        arguments: dict[str, Any] = {"inputs": dict(pair.target.inputs), "wanted": wanted, "budget": pair.target.budget}
        given = {other.target: pair.theirs.values[other.target] for other in self.wrong if other.target in there}
        if given:
            arguments |= {"given": given, "variant": ""}
        function = "replay" if given else "trace"
        traced = self.session.ask(artifact, function, arguments, stage=Stage.TRACE, emit=True)
        if isinstance(traced, Failure):
            return traced
        emitted = traced.value.emitted
        places = [self._at(probe, emitted[probe.target]) for probe in self.probes if probe.target in emitted]
        # An operator that is put in may leave the old name to what stands before it; the values behind tell then.
        behind = [at for probe, at in zip(self.probes, places, strict=False) if probe.target != self.finding.target]
        place = min(places[0], max(behind, default=math.inf)) if places else math.nan
        outputs = max((self._output(output, emitted.get(output.target)) for output in bad), default=math.inf)
        self.session.pool.release(traced.value.folder)
        return Ok(Score(place=place, outputs=outputs))

    def _at(self, probe: Probe, array: np.ndarray) -> float:
        source = self.pair.ours.values.get(probe.source)
        if source is None or array.size != source.size:
            return math.inf
        unit = self.pair.ours.infos[probe.source].unit
        return relations.error(source, array, probe.relation, unit) / probe.limit

    def _output(self, output: Output, array: np.ndarray | None) -> float:
        if array is None:
            return math.inf
        source = self.pair.ours.values.get(output.source)
        if source is None or source.size != array.size:
            return math.inf
        floor = output.floor if math.isfinite(output.floor) else 0.0
        return self.pair.output_error(output, array) / max(self.pair.tolerance, NOISE * floor)
