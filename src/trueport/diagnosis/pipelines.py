"""Two ways from a folder of pictures to a model's inputs: what differs between them, and which difference matters.

A pipeline is a description (`Preprocess`), or the arrays that it made, from which its description is recovered. Models
are run only by `settle`, which asks whether a target that deviates just gets other pictures than its source.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image

from trueport import feeds
from trueport.artifact import Artifact, Signature
from trueport.compare.pairing import pair_outputs
from trueport.compare.values import normalise
from trueport.diagnosis.conventions import formula
from trueport.diagnosis.preprocessing import heals
from trueport.diagnosis.recovery import PICTURES, recover_folder
from trueport.diagnosis.types import Cause, Suspect
from trueport.errors import UsageError
from trueport.feeds.labels import pictures_in
from trueport.feeds.pictures import open_picture, spread
from trueport.outcome import Failure
from trueport.preprocess import Preprocess
from trueport.verification import Reference

SETTLED = 64
"""Pictures on which two pipelines are held against each other by what the models give."""

WORDS = {
    "size": ("size",),
    "resize": ("resize", "antialias", "rounded"),
    "crop": ("crop", "short_side", "fraction"),
    "channel order": ("order",),
    "values": ("scale", "offset", "mean", "std"),
    "layout": ("layout",),
    "type": ("dtype",),
}
"""What people call a difference -> the fields of a description that make it."""
OWN = ("layout", "type")
"""Differences that belong to the models: each takes its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing in which two pipelines differ. effect: how far the target's inputs move when this alone is taken from the
    source's pipeline, in standard deviations of its inputs (NaN where shapes change)."""

    what: str
    source: str
    target: str
    effect: float

    def __str__(self) -> str:
        return f"{self.what}: {self.source} in the source's pipeline, {self.target} in the target's"


@dataclass(frozen=True, slots=True)
class Row:
    """What the target gives with some things taken from the source's pipeline. Shares are of all pictures.

    deviation: of the outputs from the source's, in units of the source's signal.
    """

    changed: tuple[str, ...]
    deviation: float
    agreement: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineFinding:
    """Two pipelines, held against each other by what both models give for the pictures of a folder.

    culprits: the things which, taken from the source's pipeline, bring the target's outputs to the source's; empty when
    nothing in the pipelines does.
    """

    input: str
    source: Preprocess
    target: Preprocess
    differences: tuple[Difference, ...]
    rows: tuple[Row, ...]
    culprits: tuple[str, ...]
    accuracy_source: float | None
    count: int

    @property
    def share(self) -> float:
        """Share of the deviation that comes from the pipelines."""
        return max(0.0, 1.0 - self.rows[-1].deviation / self.rows[0].deviation) if self.rows[0].deviation else 0.0

    def __str__(self) -> str:
        if not self.differences:
            return "both pipelines are the same"
        listed = "; ".join(str(item) for item in self.differences)
        if not self.culprits:
            return f"the pipelines differ ({listed}), but the outputs differ as much when the target gets the source's inputs"
        blamed = " and ".join(self.culprits)
        text = f"{listed}. With the source's {blamed} the target's outputs come to {self._with(self.culprits).deviation:.2g} of the signal from the source's ({self.rows[0].deviation:.2g} before)"
        after, before = self._with(self.culprits), self.rows[0]
        if after.agreement is not None and before.agreement is not None:
            text += f"; equal labels go from {before.agreement:.1%} to {after.agreement:.1%}"
        if after.accuracy is not None and before.accuracy is not None and self.accuracy_source is not None:
            text += (
                f", accuracy from {before.accuracy:.1%} to {after.accuracy:.1%} (source: {self.accuracy_source:.1%})"
            )
        return f"{text}, on {self.count} pictures"

    def _with(self, culprits: Sequence[str]) -> Row:
        return next(row for row in self.rows if row.changed == tuple(culprits))

    def suspect(self, rank: int = 1) -> Suspect | None:
        """As a suspect of a diagnosis; None when the pipelines are not to blame."""
        if not self.culprits:
            return None
        blamed = [item for item in self.differences if item.what in self.culprits]
        effect = max((item.effect for item in blamed if math.isfinite(item.effect)), default=1.0)
        return Suspect(
            rank=rank,
            target_nodes=(self.input,),
            source_nodes=(),
            accumulated=effect,
            local=effect,
            causal=self.share,
            cause=Cause.INPUTS,
            what=str(self),
            source_value="; ".join(f"{item.what} {item.source}" for item in blamed),
            target_value="; ".join(f"{item.what} {item.target}" for item in blamed),
            confidence=0.95,
        )


# What differs


def differences(source: Preprocess, target: Preprocess, images: Sequence[Image.Image]) -> tuple[Difference, ...]:
    """Compare two descriptions, each difference with its effect on the target's inputs, the largest first."""
    found = []
    plain = _stack(target, images)
    for what, names in WORDS.items():
        if all(getattr(source, name) == getattr(target, name) for name in names):
            continue
        try:
            other = _stack(taken(target, source, (what,)), images)
        except UsageError:  # one word alone may not make sense without another
            other = None
        effect = math.nan
        if other is not None and plain is not None and other.shape == plain.shape:
            effect = float(np.sqrt(np.mean((other - plain) ** 2)) / (plain.std() or 1.0))
        if effect != 0.0:
            found.append(
                Difference(what=what, source=_shown(source, names), target=_shown(target, names), effect=effect)
            )
    return tuple(sorted(found, key=lambda item: -item.effect if math.isfinite(item.effect) else -math.inf))


def taken(target: Preprocess, source: Preprocess, what: Sequence[str]) -> Preprocess:
    """The target's pipeline with some things taken from the source's. Raises UsageError when they do not go together."""
    names = [name for word in what for name in WORDS[word]]
    return replace(target, **{name: getattr(source, name) for name in names})


def _stack(recipe: Preprocess, images: Sequence[Image.Image]) -> np.ndarray | None:
    """All pictures, float64; None when they come out in different shapes."""
    made = [recipe.apply(image).astype(np.float64) for image in images]
    return np.stack(made) if len({item.shape for item in made}) == 1 else None


def _shown(recipe: Preprocess, names: Sequence[str]) -> str:
    """Some fields of a description, for people: the first as it is, the others where they are not the usual ones."""
    usual = {item.name: item.default for item in fields(Preprocess)}
    if names[0] == "scale":
        parts = [formula((recipe.scale,), (recipe.offset,))]
    else:
        value = getattr(recipe, names[0])
        parts = ["x".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    for name in names[1:]:
        value = getattr(recipe, name)
        if value != usual[name] and name != "offset":
            parts.append(f"{name} {'/'.join(map(str, value)) if isinstance(value, tuple) else value}")
    return ", ".join(parts)


# Which difference matters


def settle(
    source: Reference,
    target: Artifact,
    folder: Path,
    source_pipeline: Preprocess,
    target_pipeline: Preprocess | np.ndarray,
    *,
    labels: np.ndarray | Path | None = None,
    limit: int = SETTLED,
) -> PipelineFinding:
    """Run the source on its own pipeline and the target on its own, then with one thing after another taken from the
    source's: says which things bring the target's outputs to the source's.

    target_pipeline: a description, or the arrays that it made of all pictures. labels: as for `feeds.load`.
    Raises UsageError when a model does not run on its own pipeline, or outputs cannot be paired.
    """
    recipe = target_pipeline
    if not isinstance(recipe, Preprocess):
        recipe = recover_folder(folder, recipe).preprocess
    loaded = source.session.signature(target)
    if isinstance(loaded, Failure):
        raise UsageError(f"{target.path.name} cannot be loaded: {loaded.message}")
    pairs = pair_outputs(source.signature, loaded.value, {}, {}, target.made_by.get("names", {}), {}).pairs
    if not pairs:
        raise UsageError(
            "no output of the target answers to one of the source's, so the pipelines cannot be held against each other"
        )
    work = _Settling(source, target, loaded.value, folder, labels, limit)
    truth, numbers = work.outputs(source.artifact, source.signature, source_pipeline)
    work.truth = [truth[pair.source] for pair in pairs if pair.source in truth]
    work.names = [pair.target for pair in pairs if pair.source in truth]
    work.numbers = numbers
    files = pictures_in(folder)
    found = differences(source_pipeline, recipe, [open_picture(files[place]) for place in spread(len(files), PICTURES)])
    rows, culprits = work.rows(source_pipeline, recipe, [item.what for item in found if item.what not in OWN])
    return PipelineFinding(
        input=loaded.value.inputs[0].name,
        source=source_pipeline,
        target=recipe,
        differences=found,
        rows=tuple(rows),
        culprits=culprits,
        accuracy_source=_accuracy(work.truth, numbers),
        count=len(work.truth[0]),
    )


@dataclass(slots=True)
class _Settling:
    """The runs of `settle`: everything is [samples, ...] here, whatever batches the models take."""

    source: Reference
    target: Artifact
    signature: Signature
    folder: Path
    labels: np.ndarray | Path | None
    limit: int
    truth: list[np.ndarray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    numbers: np.ndarray | None = None

    def outputs(
        self, model: Artifact, signature: Signature, recipe: Preprocess
    ) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """All outputs of a model for the pictures under a pipeline, and the labels."""
        given = feeds.load(self.folder, signature, preprocess=recipe, limit=self.limit, labels=self.labels)
        session = self.source.session
        outcome = session.run(model, given.of_kind("data"))
        if isinstance(outcome, Failure):
            raise UsageError(f"{model.path.name} does not run on these pictures: {outcome.message}")
        found: dict[str, list[np.ndarray]] = {}
        for values in outcome.value.runs.values():
            if isinstance(values, Failure):
                raise UsageError(f"{model.path.name} does not run on these pictures: {values.message}")
            for name, value in values.items():
                array = normalise(value)
                if isinstance(array, np.ndarray) and array.ndim >= 2:
                    found.setdefault(name, []).append(np.array(array, np.float64).reshape(-1, *array.shape[2:]))
        session.release(outcome.value)
        return {name: np.concatenate(parts) for name, parts in found.items()}, given.labels

    def rows(self, source: Preprocess, target: Preprocess, usable: Sequence[str]) -> tuple[list[Row], tuple[str, ...]]:
        """What the target gives with ever more things taken from the source, and the fewest that heal it."""
        first = self.row(target, ())
        rows = [first]
        tried = [group for count in range(1, len(usable) + 1) for group in itertools.combinations(usable, count)]
        for group in tried:
            try:
                made = self.row(taken(target, source, group), group)
            except UsageError:  # a size that the target does not take, or fields that do not go together
                continue
            rows.append(made)
            if heals(first.deviation, made.deviation, 0.0):
                return rows, group
        return rows, ()

    def row(self, recipe: Preprocess, group: Sequence[str]) -> Row:
        """What the target gives under one pipeline."""
        given, _ = self.outputs(self.target, self.signature, replace(recipe))
        theirs = [given[name] for name in self.names]
        apart = [_apart(ours, values) for ours, values in zip(self.truth, theirs, strict=True)]
        scores = [(ours, values) for ours, values in zip(self.truth, theirs, strict=True) if _scores(ours, values)]
        agreement = float(np.mean(scores[0][0].argmax(-1) == scores[0][1].argmax(-1))) if scores else None
        return Row(tuple(group), max(apart), agreement, _accuracy(theirs, self.numbers))


def _apart(source: np.ndarray, target: np.ndarray) -> float:
    """Deviation in units of the source's input-dependent part; infinite where shapes differ or values are not finite."""
    if source.shape != target.shape:
        return math.inf
    signal = float(np.sqrt(np.mean((source - source.mean(0)) ** 2)))
    apart = float(np.sqrt(np.mean((target - source) ** 2)))
    return apart / (signal or 1.0) if math.isfinite(apart) else math.inf


def _scores(source: np.ndarray, target: np.ndarray) -> bool:
    return source.ndim == 2 and source.shape == target.shape and source.shape[1] >= 2


def _accuracy(outputs: Sequence[np.ndarray], labels: np.ndarray | None) -> float | None:
    """Share of right labels by the first output that holds scores."""
    scores = next((values for values in outputs if values.ndim == 2 and values.shape[1] >= 2), None)
    if scores is None or labels is None or len(labels) != len(scores):
        return None
    return float(np.mean(scores.argmax(-1) == labels))
