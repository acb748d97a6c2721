"""What becomes of one case: its two models made, compared, diagnosed and repaired, and judged on pictures kept apart."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

import trueport
from fetafix.cases import BY_ID, Case
from fetafix.study import Workshop
from trueport import api
from trueport.artifact import Artifact
from trueport.compare.types import Verdict, Verification
from trueport.diagnosis.types import Diagnosis
from trueport.errors import TrueportError
from trueport.feeds.types import Case as Runs
from trueport.outcome import Failure

PATIENCE = 3600.0
"""Seconds that a repair may take: the usual ten minutes are short for two of the largest networks on a slow machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One target against the source on held-out pictures.

    mismatch: share of pictures with another label; None where nothing could be compared. ratio: of the worst output to
    its noise floor.
    """

    verdict: str
    mismatch: float | None
    ratio: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A case as it went. `sound`: the same pair without the fault. edits: what the repair changed, each as one line."""

    case: Case
    sound: Side
    before: Side
    suspects: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    explanation: str = ""
    status: str = "not tried"
    after: Side | None = None
    edits: tuple[str, ...] = ()
    fewest: int = 0
    diagnosis_seconds: float = 0.0
    repair_seconds: float = 0.0
    error: str = ""

    @property
    def diagnosed(self) -> bool:
        """Whether the diagnosis calls the fault what it is."""
        return bool({*self.causes[:1], self.before.verdict} & set(self.case.kinds))

    @property
    def repaired(self) -> bool:
        """Whether every held-out label is right again, at the noise floor."""
        return self.after is not None and self.after.verdict == Verdict.FAITHFUL and self.after.mismatch == 0

    @property
    def minimal(self) -> bool:
        """Whether the file was mended, not made anew by another conversion, and nothing changed that did not have to be."""
        anew = any(edit.startswith("convert-again") for edit in self.edits)
        return not anew and 0 < len(self.edits) <= self.fewest

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            **asdict(self),
            "case": self.case.id,
            "diagnosed": self.diagnosed,
            "repaired": self.repaired,
            "minimal": self.minimal,
        }


def from_json(told: Mapping[str, Any]) -> Result:
    """Read what `to_json` gave. Raises KeyError for a case that is none any more."""
    named = {field.name for field in fields(Result)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items() if name in named}
    sides = {name: Side(**told[name]) for name in ("sound", "before", "after") if told[name] is not None}
    return Result(**{**given, **sides, "case": BY_ID[told["case"]]})


def judge(shop: Workshop, case: Case, *, repair: bool = True, diagnose: bool = False) -> Result:
    """Make the two models of a case and see what becomes of them. A tool that fails is told in `error`."""
    source = shop.model(case.network, case.source)
    held_out, search = shop.inputs(case, "held-out"), shop.inputs(case, "search")
    sound = _compared(shop, source, shop.model(case.network, case.right), held_out)
    target = shop.model(case.network, case.wrong)
    result = Result(case=case, sound=sound, before=_compared(shop, source, target, held_out), fewest=shop.fewest(case))
    if diagnose:
        result = _diagnosed(shop, result, source, target, search)
    return _repaired(shop, result, source, target, search, held_out) if repair else result


def _compared(shop: Workshop, source: Artifact, target: Artifact, inputs: dict[str, np.ndarray]) -> Side:
    """Verify, and where the shapes forbid that, count labels on pictures stretched to what the target declares."""
    found = api.verify(source, target, inputs=inputs, task="classification", session=shop.session)
    side = side_of(found)
    if side.mismatch is None:
        side = replace(side, mismatch=_stretched(shop, source, target, inputs["image"]))
    return side


def side_of(found: Verification) -> Side:
    """The figures of a verification."""
    decisions, outputs = found.comparison.decisions, found.comparison.outputs
    return Side(
        verdict=str(found.verdict),
        mismatch=None if decisions is None or not decisions.count else decisions.top1_flips / decisions.count,
        ratio=max((output.ratio for output in outputs), default=None),
        reason=found.reason,
    )


def _stretched(shop: Workshop, source: Artifact, target: Artifact, images: np.ndarray) -> float | None:
    """Label mismatch when a harness fits the pictures to the target's declared size, as the study's did."""
    signature = shop.session.signature(target)
    if isinstance(signature, Failure) or signature.value.inputs[0].shape is None:
        return None
    declared, fitted = signature.value.inputs[0].shape, images
    for axis, size in enumerate(declared):
        if axis and isinstance(size, int) and size != fitted.shape[axis]:
            fitted = fitted.take(np.linspace(0, fitted.shape[axis] - 1, size).round().astype(int), axis)
    labels = []
    for artifact, pictures in ((source, images), (target, fitted)):
        known = shop.session.signature(artifact)
        if isinstance(known, Failure):
            return None
        case = Runs(name="data", kind="data", inputs={known.value.inputs[0].name: pictures[:, None]})
        ran = shop.session.run(artifact, [case])
        answers = None if isinstance(ran, Failure) else ran.value.runs["data"]
        if answers is None or isinstance(answers, Failure):
            return None
        labels.append(np.asarray(next(iter(answers.values()))).reshape(len(images), -1).argmax(1))
    return float((labels[0] != labels[1]).mean())


def _diagnosed(
    shop: Workshop, result: Result, source: Artifact, target: Artifact, inputs: dict[str, np.ndarray]
) -> Result:
    started = time.monotonic()
    try:
        found: Diagnosis = api.diagnose(source, target, inputs=inputs, tools=False, session=shop.session)
    except TrueportError as error:
        return replace(result, error=f"diagnosis: {error}")
    return replace(
        result,
        suspects=tuple(f"{s.cause} at {s.target_nodes[0]}: {s.what}" for s in found.suspects),
        causes=tuple(str(suspect.cause) for suspect in found.suspects),
        explanation=found.explanation,
        diagnosis_seconds=time.monotonic() - started,
    )


def _repaired(
    shop: Workshop,
    result: Result,
    source: Artifact,
    target: Artifact,
    search: dict[str, np.ndarray],
    held_out: dict[str, np.ndarray],
) -> Result:
    """Repair with the pictures of the search; what comes out is compared on those kept apart from all of it."""
    started = time.monotonic()
    out = Path(shop.session.pool.fresh_folder("repaired")) / target.path.name
    try:
        done = trueport.repair(source, target, out=out, inputs=search, seconds=PATIENCE, session=shop.session)
    except TrueportError as error:
        return replace(result, error=f"repair: {error}")
    seconds = time.monotonic() - started
    result = replace(
        result,
        status=str(done.status),
        edits=tuple(f"{edit.kind} at {edit.where}" for edit in done.edits),
        repair_seconds=seconds,
        suspects=tuple(f"{s.cause} at {s.target_nodes[0]}: {s.what}" for s in done.suspects),
        causes=tuple(str(suspect.cause) for suspect in done.suspects),
        explanation=done.explanation,
    )
    if done.output is None:
        return result
    mended = Artifact.open(done.output, format=target.format)
    return replace(result, after=_compared(shop, source, mended, held_out))
