"""The gate: what counts as nearer to the source, on the inputs of the search and on inputs that the search never saw.

An edit stays only if the deviation falls, and only if it is needed: the accepted set is thinned out edit by edit, as
long as what is left is as good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trueport import feeds as inputs
from trueport.artifact import Artifact, Signature
from trueport.compare.types import Verdict, Verification
from trueport.errors import UsageError
from trueport.feeds import Case, Feeds
from trueport.feeds.dims import batch_axes
from trueport.outcome import Ok
from trueport.repairs import editing
from trueport.repairs.types import Edit
from trueport.session import Session
from trueport.verification import Reference, verify

UNSEEN = 7919
"""Added to the seed for inputs that the search never saw."""

FEWEST = 2
"""Runs of data that a verdict needs: of one alone nobody can tell what depends on the input."""

FEW = "the data are too few to be halved"

LONG = 64
"""Edits of one group from which on they are not tried one by one: each trial writes and runs the model."""

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

    Generated inputs: others of another seed. The user's: every second run of each case. Of fewer than 4 runs a half would
    be a single one, which tells nothing: then the held-out ones are generated, and a note says so. A single run is joined
    by generated ones in the search as well. Raises UsageError where that cannot be.
    """
    if given.origin.startswith("generated"):
        return given, inputs.generate(signature, seed=given.seed + UNSEEN)
    data = given.of_kind("data")
    if sum(case.runs // 2 for case in data) < FEWEST:
        return _too_few(given, signature, sum(case.runs for case in data))
    halves: tuple[list[Case], list[Case]] = ([], [])
    for case in given.cases:
        if case.kind != "data" or case.runs < 2:
            halves[0].append(case)
            continue
        for number, half in enumerate(halves):
            half.append(replace(case, inputs={name: array[number::2] for name, array in case.inputs.items()}))
    sizes = _samples(given, signature)
    parts = [
        Feeds.of(
            half,
            origin=f"{given.origin} ({word} half)",
            count=sum(case.runs * sizes.get(case.name, 1) for case in half if case.kind == "data"),
            seed=given.seed,
            labels=_labels(given, sizes, number),
            notes=given.notes,
        )
        for number, (half, word) in enumerate(zip(halves, ("first", "other"), strict=True))
    ]
    return parts[0], parts[1]


def _too_few(given: Feeds, signature: Signature, runs: int) -> tuple[Feeds, Feeds]:
    """All of the user's inputs for the search, and generated ones that it does not see."""
    try:
        unseen = inputs.generate(signature, seed=given.seed + UNSEEN)
        joined = None if runs >= FEWEST else inputs.generate(signature, seed=given.seed)
    except UsageError as error:
        raise UsageError(
            f"the data are too few to keep some from the search, and none can be generated ({error}); give at least "
            f"{2 * FEWEST} different inputs"
        ) from None
    unseen = replace(unseen, notes=(*unseen.notes, f"{FEW}, so those that the search never saw are generated ones"))
    if joined is None:
        return given, unseen
    own = [replace(case, name=f"given {case.name}") for case in given.of_kind("data")]
    origin, count = f"{given.origin} and generated ones (seed {given.seed})", given.count + joined.count
    notes = (*given.notes, f"{FEW}, so the search takes generated ones as well")
    return Feeds.of((*joined.cases, *own), origin=origin, count=count, seed=given.seed, notes=notes), unseen


def _samples(given: Feeds, signature: Signature) -> dict[str, int]:
    """Data case -> samples of one of its runs, such that all make up the count; empty where they do not."""
    data, axes = given.of_kind("data"), batch_axes(signature)
    runs = sum(case.runs for case in data)
    opened = [(name, axis + 1) for name, axis in axes.items() if axis is not None]
    if opened:
        name, axis = opened[0]
        sizes = {case.name: case.inputs[name].shape[axis] for case in data if name in case.inputs}
        if sum(case.runs * sizes.get(case.name, 0) for case in data) == given.count:
            return sizes
    return {case.name: given.count // runs for case in data} if given.count % runs == 0 else {}


def _labels(given: Feeds, sizes: Mapping[str, int], half: int) -> np.ndarray | None:
    """The labels of one half; None where it is not known which sample each belongs to."""
    if given.labels is None or len(given.labels) != given.count or not sizes:
        return None
    parts: list[np.ndarray] = []
    start = 0
    for case in given.of_kind("data"):
        own = given.labels[start : start + case.runs * sizes[case.name]].reshape(case.runs, -1)
        start += own.size
        if case.runs >= 2:
            parts.append(own[half::2].ravel())
        elif half == 0:
            parts.append(own.ravel())
    return np.concatenate(parts)


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
        """Drop every edit without which the result is as good, the last ones first; the edits left and their file.

        Of a long group, which one rule proposed for one fault all over the model, whole blocks are dropped or stay.
        """
        kept, artifact = [tuple(group) for group in steps], whole
        if sum(map(len, kept)) < 2:
            return kept, artifact
        for places in reversed(_blocks(kept)):
            fewer = [
                tuple(edit for number, edit in enumerate(group) if (index, number) not in places)
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


def _blocks(steps: Sequence[tuple[Edit, ...]]) -> list[frozenset[tuple[int, int]]]:
    """The places (group, number) that are tried to be left out together: one by one, of a long group an eighth at a time."""
    found: list[frozenset[tuple[int, int]]] = []
    for row, group in enumerate(steps):
        places = [(row, column) for column in range(len(group))]
        size = 1 if len(group) <= LONG else -(-len(group) // 8)
        found += [frozenset(places[start : start + size]) for start in range(0, len(places), size)]
    return found
