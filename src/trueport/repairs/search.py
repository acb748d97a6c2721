"""The search for the edits that mend a target: suspects in causal order, rules by cause, one gate for every edit.

A proposal is written into a copy of the file, and the copy is traced at the place of the suspect. What mends the place
stays, and the next suspect is looked at in the file that came of it; then the whole is verified and diagnosed again,
until it is faithful or nothing helps any more. Which of the kept edits are needed is decided at the end, on inputs that
no rule has seen (`gate.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trueport.artifact import Artifact
from trueport.compare.types import Verdict, Verification
from trueport.diagnosis import evidence as weighing
from trueport.diagnosis import layouts
from trueport.diagnosis.pair import Pair, trace_pair
from trueport.diagnosis.region import Inside
from trueport.diagnosis.run import Investigation, investigate
from trueport.diagnosis.told import other_weights
from trueport.diagnosis.types import Cause, Finding, Suspect
from trueport.outcome import Failure, Outcome
from trueport.repairs import editing, interface, rules, told
from trueport.repairs.gate import Gate
from trueport.repairs.judge import ByVerdict, Judge, Score
from trueport.repairs.rules import everywhere
from trueport.repairs.scene import Scene
from trueport.repairs.types import PAIR, Attempt, Edit, Proposal

ROUNDS = 6
"""Times that a file which is better and not yet right is diagnosed again."""

PARTLY = 0.5
"""Share to which an edit that does not mend its place must bring the error down to be built upon."""

LITTLE = 0.9
"""Share to which an edit must bring the error down to be ventured when nothing else helps."""

VENTURES = 2
"""Edits that are ventured at most."""

KINDRED, ENOUGH = 0.2, 10
"""Share of the target's values that must be the source's once the faults are put right, in a model of so many values."""

MANY = 4
"""Faults from which on the parameters are asked as well: so many are rather other weights."""

HALF, FEW = 0.5, 4
"""Share of the parameters that must be the source's where the values are not; arrays of so few elements do not count."""

CERTAIN = 0.5
"""Doubt from which on proposals are compared with each other, and not the first that mends is taken."""

COARSE = 6
"""Proposals that are compared at a reduced precision, whose noise hides what is only nearly right."""


@dataclass(kw_only=True)
class Search:
    """The state of one repair. `steps`: the edits that stay, in groups that are applied one after the other.

    attempts: everything that was tried. refused: rule -> the last reason why it proposed nothing.
    """

    gate: Gate
    attempts_left: int
    deadline: float
    steps: list[tuple[Edit, ...]] = field(default_factory=list)
    current: Artifact = field(init=False)
    attempts: list[Attempt] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    stranger: str = ""
    """Why the target is not taken for this source's at all, so that nothing is to be changed in it."""
    compared: bool = False
    """Whether the insides of both models were seen, and belong together."""
    mended: int = 0
    """Steps that mended their place, and did not only bring it nearer."""
    _tried: set[str] = field(default_factory=set)
    ventured_at: int | None = None
    """Number of steps before the first that was only ventured."""
    _nearest: tuple[float, Artifact, Proposal] | None = None
    _number: dict[int, int] = field(default_factory=dict)
    """id of a proposal -> its place among the attempts."""

    def __post_init__(self) -> None:
        self.current = self.gate.target

    @property
    def over(self) -> bool:
        """Whether the time or the attempts are used up."""
        return self.attempts_left <= 0 or time.monotonic() > self.deadline

    def run(self) -> None:
        """Search until the target is faithful on the inputs of the search, or nothing helps."""
        try:
            for number in range(ROUNDS):
                verification = self.gate.on_search(self.current)
                if verification.verdict is Verdict.FAITHFUL or self.over or not self._round(verification, number):
                    break
        finally:
            self._take_back()

    # -- one round

    def _round(self, verification: Verification, number: int) -> bool:
        """Diagnose the file as it is now and mend suspect after suspect. False when nothing was found to change."""
        gate = self.gate
        gate.session.progress("looking for the place" if number == 0 else "looking for what is still wrong")
        unlike = verification.verdict is Verdict.INCOMPARABLE or bool(verification.comparison.unpaired_target)
        if unlike and self._interface(verification):
            return True
        traced = trace_pair(gate.reference, self.current, gate.given, verification)
        if isinstance(traced, Failure):
            self.notes.append(f"the insides could not be compared ({traced.kind}): {traced.message}")
            if not unlike and self._interface(verification, refused=True):
                return True
            return self._by_words(told.of_refusal(gate.session, self.current, verification))
        pair = traced.value
        try:
            found = investigate(
                gate.reference,
                self.current,
                gate.given,
                verification,
                pair,
                seconds=max(1.0, self.deadline - time.monotonic()),
            )
            if number == 0:
                self.suspects += found.suspects
                self.notes += found.notes
                self.stranger = strange(found, pair)
                if self.stranger:
                    self.refused[PAIR] = self.stranger
                    return False
                self.compared = True
            changed = False
            wrong: list[Finding] = []
            for scene in self._scenes(verification, pair, found):
                if self.over:
                    break
                mended = self._mend(scene, wrong)
                changed = changed or mended is not None
                if mended is None or not mended.mended:
                    wrong.append(scene.finding)
                elif mended.healed and not wrong:
                    break
            if not changed and all(suspect.finding is None for suspect in found.suspects):
                return self._by_words(told.of_shape(pair, pair.align(), verification))
            return changed or self._venture()
        finally:
            self._forget()
            pair.close()

    def _venture(self) -> bool:
        """Nothing mends its place, which two faults beside each other keep any single edit from: go on from the edit that
        brought its place nearest. It is taken back unless the search ends well."""
        if self._nearest is None or (self.ventured_at is not None and len(self.steps) >= self.ventured_at + VENTURES):
            return False
        _, artifact, proposal = self._nearest
        self._nearest = None
        if self.ventured_at is None:
            self.ventured_at = len(self.steps)
        self._keep(artifact, proposal)
        return True

    def _forget(self) -> None:
        if self._nearest is not None:
            editing.discard(self.gate.session, self._nearest[1])
            self._nearest = None

    def _take_back(self) -> None:
        """Give up what was ventured and did not lead to a faithful model."""
        if self.ventured_at is None or self.gate.on_search(self.current).verdict is Verdict.FAITHFUL:
            return
        self.steps = self.steps[: self.ventured_at]
        made = editing.apply(self.gate.session, self.gate.target, self.steps)
        self.current = self.gate.target if isinstance(made, Failure) else made.value

    def _interface(self, verification: Verification, *, refused: bool = False) -> bool:
        """Give the target the source's inputs and outputs. False when that is not what is wrong."""
        offered = interface.proposals(self.gate.reference, self.current, verification, refused=refused)
        if isinstance(offered, str):
            self.refused[interface.NAME] = offered
            return False
        return self._by_words(offered)

    def _by_words(self, offered: list[Proposal] | str) -> bool:
        """Try what can be judged by the verdict alone. False when nothing helps."""
        if isinstance(offered, str):
            self.refused[told.NAME] = offered
            return False
        judge = ByVerdict(gate=self.gate)
        return self._best(offered, judge, judge.score(self.current), coarse=False) is not None

    def _scenes(self, verification: Verification, pair: Pair, found: Investigation) -> Iterator[Scene]:
        """The suspects in causal order: what stands first in the target is mended first."""
        place = {node.name: number for number, node in enumerate(pair.target.graph.nodes)}
        inputs = set(pair.target.graph.inputs)

        def order(suspect: Suspect) -> int:
            finding = suspect.finding
            if finding is None or finding.target in inputs:
                return -1
            return min((place.get(name, len(place)) for name in finding.region), default=len(place))

        alignment = pair.align() if found.located is None else found.located.alignment
        healed = (None if found.located is None else found.located.after) or alignment
        suspects = [_at_input(suspect, found, pair) for suspect in found.suspects]
        ranked = sorted((suspect for suspect in suspects if suspect.finding is not None), key=order)
        findings = tuple(suspect.finding for suspect in ranked if suspect.finding is not None)
        proofs = {id(finding): (proof,) for finding, proof in found.kernels}
        for suspect in ranked:
            finding = suspect.finding
            if finding is None:
                continue
            evidence = proofs.get(id(finding)) or weighing.examine(
                finding, pair.source, pair.target, alignment, precision=pair.precision
            )
            yield Scene(
                reference=self.gate.reference,
                target=self.current,
                given=self.gate.given,
                verification=verification,
                pair=pair,
                alignment=alignment,
                healed=healed,
                suspect=suspect,
                finding=finding,
                evidence=evidence,
                others=tuple(other for other in findings if other is not finding),
                prepared=found.prepared if suspect.cause is Cause.INPUTS else None,
            )

    # -- one suspect

    def _mend(self, scene: Scene, wrong: Sequence[Finding]) -> Score | None:
        """Try what the rules propose for a suspect and keep the best. None when nothing helps.

        wrong: the faults before it that could not be mended.
        """
        judge: Judge | ByVerdict
        if scene.suspect.cause is Cause.RUNTIME:
            judge = ByVerdict(gate=self.gate)
        else:
            judge = Judge(
                session=self.gate.session,
                pair=scene.pair,
                healed=scene.healed,
                finding=scene.finding,
                others=scene.others,
                wrong=tuple(wrong),
            )
        before = judge.score(self.current)
        return self._best(self._proposals(scene), judge, before, coarse=scene.precision != "float32")

    def _best(
        self, proposals: Iterable[Proposal], judge: Judge | ByVerdict, before: Outcome[Score], *, coarse: bool
    ) -> Score | None:
        """Try proposals in order and keep the first that mends; with `coarse`, the best of several."""
        start = Score(place=math.inf, outputs=math.inf) if isinstance(before, Failure) else before.value
        best: tuple[Score, Artifact, Proposal] | None = None
        compared = 0
        for proposal in proposals:
            if self.over:
                break
            if best is not None and best[0].mended and (proposal.doubt >= CERTAIN or not coarse or compared >= COARSE):
                break
            compared += 1
            made = self._tried_out(proposal, judge, start)
            if made is None:
                continue
            score, artifact = made
            if best is None or (score.mended, -score.worst) > (best[0].mended, -best[0].worst):
                if best is not None:
                    editing.discard(self.gate.session, best[1])
                best = (score, artifact, proposal)
            else:
                editing.discard(self.gate.session, artifact)
        if best is None:
            return None
        score, artifact, proposal = best
        if not score.mended and not score.worst < PARTLY * start.worst:
            share = score.worst / start.worst if start.worst > 0 else 1.0
            if share < LITTLE and (self._nearest is None or share < self._nearest[0]):
                self._forget()
                self._nearest = (share, artifact, proposal)
            else:
                editing.discard(self.gate.session, artifact)
            return None
        self._keep(artifact, proposal)
        self.mended += score.mended
        return score

    def _proposals(self, scene: Scene) -> Iterator[Proposal]:
        """What the rules propose, rule by rule, each proposal once in the whole search; the doubtful ones last."""
        doubtful: list[Proposal] = []
        for rule in rules.ordered(scene):
            try:
                offered = rule.propose(scene)
            except Exception as error:  # noqa: BLE001 -- the other rules may still help; the note shows the bug
                offered = f"stopped with an error of its own ({type(error).__name__}: {error})"
                self.notes.append(f"{rule.NAME} {offered}")
            if isinstance(offered, str):
                self.refused[rule.NAME] = offered
                continue
            self.refused.pop(rule.NAME, None)
            for proposal in sorted(offered, key=lambda item: item.doubt):
                if proposal.doubt >= CERTAIN:
                    doubtful.append(proposal)
                else:
                    yield proposal
        yield from sorted(doubtful, key=lambda item: item.doubt)

    def _tried_out(self, proposal: Proposal, judge: Judge | ByVerdict, start: Score) -> tuple[Score, Artifact] | None:
        """Write a proposal into a copy and score it. None when it cannot be written, does not run or was tried before."""
        lacking = {edit.kind for edit in proposal.edits} - set(editing.supported(self.current.format))
        if lacking:
            rule = proposal.edits[0].rule
            self.refused.setdefault(rule, f"a {self.current.format} file cannot take: {', '.join(sorted(lacking))}")
            return None
        key = f"{self.current.sha256}:{fingerprint(proposal)}"
        if key in self._tried:
            return None
        self._tried.add(key)
        self.attempts_left -= 1
        first = proposal.edits[0]
        self.gate.session.progress(f"trying {first.rule}: {first.where}")
        made = editing.apply(self.gate.session, self.current, [proposal.edits])
        if isinstance(made, Failure):
            self._note(proposal, start, math.nan, False, made.message)
            return None
        scored = judge.score(made.value)
        if isinstance(scored, Failure):
            self._note(proposal, start, math.nan, False, f"the changed model does not run: {scored.message}")
            editing.discard(self.gate.session, made.value)
            return None
        score = scored.value
        wrong = judge.words(made.value) if isinstance(judge, ByVerdict) else "its place stays wrong"
        why = "its place agrees with the source" if score.mended else wrong
        self._note(proposal, start, score.worst, False, why)
        return score, made.value

    def _note(self, proposal: Proposal, start: Score, after: float, accepted: bool, why: str) -> None:
        first = proposal.edits[0]
        self._number[id(proposal)] = len(self.attempts)
        self.attempts.append(
            Attempt(
                rule=first.rule,
                where=first.where,
                edits=len(proposal.edits),
                before=start.worst,
                after=after,
                accepted=accepted,
                why=why,
            )
        )

    def _keep(self, artifact: Artifact, proposal: Proposal) -> None:
        """The one place where the state of the search changes."""
        before, self.current = self.current, artifact  # in one go: ^C may come at any moment
        self.steps.append(proposal.edits)
        if before is not self.gate.target:
            editing.discard(self.gate.session, before)
        place = self._number[id(proposal)]
        self.attempts[place] = replace(self.attempts[place], accepted=True)


def strange(found: Investigation, pair: Pair) -> str:
    """Why a target is another network, or holds other weights; empty where it is this source's with faults in it.

    Layer after layer such a target could be made the source's. That would be no repair of a conversion.
    """
    words = other_weights(found.suspects)
    if words:
        return words[0]
    after = None if found.located is None else found.located.after
    values = [name for name, info in pair.theirs.infos.items() if info.kind == "act"]
    ours = sum(info.kind == "act" for info in pair.ours.infos.values())
    if found.prepared is not None or after is None or min(len(values), ours) < ENOUGH:  # one operator may be ten there
        return ""
    agreeing = sum(after.ok(name) for name in values)
    many = found.located is not None and len(found.located.findings) >= MANY
    if not many and agreeing >= KINDRED * len(values):
        return ""
    layers = everywhere.recognised(Inside(pair.source), Inside(pair.target), rounded=pair.precision != "float32")
    if shared_parameters(pair) >= HALF or layers >= HALF:
        return ""
    return (
        f"{agreeing} of {len(values)} values inside the target are the source's, even with what was found put right, and "
        "most weights are not: this is another network, or the same with other weights"
    )


def shared_parameters(pair: Pair) -> float:
    """Share of the target's parameters whose elements are, in any order, those of one of the source's. A fault early in
    a loop that is unrolled leaves no value in agreement, and every other parameter as it was."""
    ours = [layouts.print_of(array) for array in pair.source.constants.values() if _counts(array)]
    theirs = [layouts.print_of(array) for array in pair.target.constants.values() if _counts(array)]
    held = sum(any(layouts.same_elements(mine, other) for other in ours) for mine in theirs)
    return held / len(theirs) if theirs else 0.0


def _counts(array: np.ndarray) -> bool:
    """Whether an array is a parameter that tells one network from another: not all one number, and more than a few."""
    return array.dtype.kind == "f" and array.size > FEW and bool(np.any(array != array.flat[0]))


def _at_input(suspect: Suspect, found: Investigation, pair: Pair) -> Suspect:
    """A suspect at an input of the target, where only a change of the inputs heals and no place inside was found."""
    if suspect.finding is not None or found.prepared is None:
        return suspect
    finding = Finding(
        kind="input",
        target=pair.target.input_value(found.prepared.input),
        source=None,
        relation=None,
        region=(),
        source_region=(),
        accumulated=suspect.accumulated,
        local=suspect.local,
        causal=suspect.causal,
        confirmed=True,
    )
    return replace(suspect, finding=finding)


def fingerprint(proposal: Proposal) -> str:
    """What a proposal would write, as a text to compare by."""
    parts = []
    for edit in proposal.edits:
        arrays = {name: (array.shape, hash(array.tobytes())) for name, array in edit.arrays.items()}
        parts.append(f"{sorted(edit.change.items(), key=str)}{sorted(arrays.items(), key=str)}")
    return "|".join(parts)
