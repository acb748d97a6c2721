"""The gate: what counts as nearer to the source, on the inputs of the search and on inputs that the search never saw.

An edit stays only if the deviation falls, and only if it is needed: the accepted set is thinned out edit by edit, as
long as what is left is as good.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trueport import feeds as inputs
from trueport.artifact import Artifact, Signature
from trueport.compare.types import Verdict, Verification
from trueport.feeds import Case, Feeds
from trueport.outcome import Ok
from trueport.repairs import editing
from trueport.repairs.types import Edit
from trueport.session import Session
from trueport.verification import Reference, verify

UNSEEN = 7919
"""Added to the seed for inputs that the search never saw."""

FALLS = 0.9
"""Share to which the deviation must fall for an edit to have helped."""

_ORDER = {Verdict.FAITHFUL: 0, Verdict.DEVIATES: 1, Verdict.FLAKY: 2, Verdict.INCOMPARABLE: 3}

Badness = tuple[int, int, float]
"""Verdict, outputs that are lost or not finite, largest ratio to the noise floor: the smaller the better."""


def badness(verification: Verification) -> Badness:
    """How far a target is from faithful."""
    comparison = verification.comparison
    spoilt = [output for output in comparison.outputs if output.target_nonfinite > output.source_nonfinite]
    ratios = [math.inf if math.isnan(output.ratio) else output.ratio for output in comparison.outputs]
    lost = len(comparison.unpaired_source) + len(spoilt)
    return _ORDER[verification.verdict], lost, max(ratios, default=math.inf)


def fell(before: Badness, after: Badness) -> bool:
    """Whether a deviation is clearly smaller than another."""
    if after[:2] != before[:2]:
        return after[:2] < before[:2]
    return after[2] < FALLS * before[2]


def split(given: Feeds, signature: Signature) -> tuple[Feeds, Feeds]:
    """The inputs for the search, and others that it does not see.

    Generated inputs: others of another seed. The user's: every second sample of each case; where there is but one, the
    held-out ones are generated (a note says so).
    """
    if given.origin.startswith("generated"):
        return given, inputs.generate(signature, seed=given.seed + UNSEEN)
    halves: tuple[list[Case], list[Case]] = ([], [])
    for case in given.cases:
        if case.kind != "data" or case.runs < 2:
            halves[0].append(case)
            continue
        for number, half in enumerate(halves):
            half.append(replace(case, inputs={name: array[number::2] for name, array in case.inputs.items()}))
    if not halves[1]:
        return given, inputs.generate(signature, seed=given.seed + UNSEEN)
    labels = _labels(given)
    parts = [
        Feeds.of(
            half,
            origin=f"{given.origin} ({word} half)",
            count=sum(case.runs for case in half if case.kind == "data"),
            seed=given.seed,
            labels=None if labels is None else labels[number],
            notes=given.notes,
        )
        for number, (half, word) in enumerate(zip(halves, ("first", "other"), strict=True))
    ]
    return parts[0], parts[1]


def _labels(given: Feeds) -> tuple[np.ndarray, np.ndarray] | None:
    """The labels of both halves; None where they do not go one to one with the runs."""
    data = given.of_kind("data")
    if given.labels is None or len(given.labels) != sum(case.runs for case in data):
        return None
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    start = 0
    for case in data:
        own = given.labels[start : start + case.runs]
        start += case.runs
        if case.runs < 2:
            parts[0].append(own)
        else:
            parts[0].append(own[0::2])
            parts[1].append(own[1::2])
    return np.concatenate(parts[0]), np.concatenate(parts[1])


@dataclass(kw_only=True)
class Gate:
    """Verifies files against one source. `given`: inputs of the search; `unseen`: those that it does not see."""

    reference: Reference
    target: Artifact
    given: Feeds
    unseen: Feeds
    precision: str | None = None
    task: str = "auto"
    _known: dict[tuple[str, str], Verification] = field(default_factory=dict)

    @property
    def session(self) -> Session:
        """Where models run."""
        return self.reference.session

    def on_search(self, artifact: Artifact) -> Verification:
        """Verify on the inputs of the search."""
        return self._verified(artifact, self.given)

    def on_unseen(self, artifact: Artifact) -> Verification:
        """Verify on the inputs that the search does not see."""
        return self._verified(artifact, self.unseen)

    def _verified(self, artifact: Artifact, given: Feeds) -> Verification:
        key = (artifact.sha256, given.sha256)
        if key not in self._known:
            self._known[key] = verify(self.reference, artifact, given, precision=self.precision, task=self.task)
        return self._known[key]

    def badness(self, artifact: Artifact) -> Badness:
        """The worse of both sets of inputs."""
        return max(badness(self.on_unseen(artifact)), badness(self.on_search(artifact)))

    def faithful(self, artifact: Artifact) -> bool:
        """Whether a file is faithful on both sets of inputs."""
        return self.on_unseen(artifact).verdict is Verdict.FAITHFUL and (
            self.on_search(artifact).verdict is Verdict.FAITHFUL
        )

    def needed(self, steps: Sequence[tuple[Edit, ...]], whole: Artifact) -> tuple[list[tuple[Edit, ...]], Artifact]:
        """Drop every edit without which the result is as good, the last ones first; the edits left and their file."""
        kept, artifact = [tuple(group) for group in steps], whole
        if sum(map(len, kept)) < 2:
            return kept, artifact
        for place in reversed([(row, column) for row, group in enumerate(kept) for column in range(len(group))]):
            fewer = [
                tuple(edit for number, edit in enumerate(group) if (index, number) != place)
                for index, group in enumerate(kept)
            ]
            made = editing.apply(self.session, self.target, [group for group in fewer if group])
            if not isinstance(made, Ok):
                continue
            if made.value is not self.target and self._as_good(made.value, artifact):
                if artifact is not whole:
                    editing.discard(self.session, artifact)
                kept, artifact = fewer, made.value
            elif made.value is not self.target:
                editing.discard(self.session, made.value)
        return [group for group in kept if group], artifact

    def _as_good(self, fewer: Artifact, whole: Artifact) -> bool:
        if self.faithful(whole):
            return self.faithful(fewer)
        return not fell(self.badness(fewer), self.badness(whole))
