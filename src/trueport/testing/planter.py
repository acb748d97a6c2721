"""The parent's side of the fault planters: which file of `planting/` knows a model, and whether a fault shows at all.

A planted fault that moves no output beyond the noise of the model itself proves nothing about who misses it, so it is
marked `effective=False`. The measure is made here, apart from the verdict: the root mean square of the change over that
of the output's input-dependent part, against the same for the unchanged model computed in other, equally right ways.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from trueport import publish, verification
from trueport.artifact import Artifact
from trueport.compare.types import RunSet
from trueport.errors import UsageError
from trueport.feeds import Feeds
from trueport.opening import Model, open_feeds, open_model, open_session
from trueport.outcome import Failure, Stage
from trueport.session import Session, Settings, framework_of

PLANTERS = ("coreml", "keras", "onnx", "openvino", "tensorflow", "tflite", "torch")
"""Frameworks that have a planter: `planting/NAME_faults.py`."""

ABOVE = 10.0
"""A fault is effective when it changes an output by so many times its noise floor: the floor is the largest of a few
samples of noise, and no clean conversion of the calibration reached ten of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """One fault, and the truth about it.

    row: of the taxonomy (PP, TSS, WB, LH, CG, QZ). cause: a word of `trueport.diagnosis.types.Cause`; `cause_also`:
    causes that describe the same change as well. nodes: names of the faulty nodes as the framework's graph has them,
    several where the fault sits between nodes. effective: whether an output moves beyond the noise; None: not measured.
    error, floor: of the output that moves most, both relative to its input-dependent part.
    """

    path: Path
    kind: str
    row: str
    cause: str
    nodes: tuple[str, ...]
    what: str
    source_value: Any
    target_value: Any
    cause_also: tuple[str, ...] = ()
    effective: bool | None = None
    error: float = float("nan")
    floor: float = float("nan")


@dataclass(slots=True)
class Planter:
    """Plants faults into one model; what the unchanged model gives is computed once."""

    session: Session
    artifact: Artifact
    feeds: Feeds | None = None
    """On these inputs a fault must show; by default generated ones."""
    _clean: verification.Measured | None = field(init=False, default=None)

    def kinds(self) -> Mapping[str, int]:
        """Kind of fault -> number of places for it in this model. Raises UsageError."""
        return dict(self._ask("kinds", {}))

    def plant(self, out: Path, kind: str, seed: int) -> Planted | str:
        """Write a copy with one fault at a random place; a text when this kind cannot be planted here: why."""
        folder = self.session.pool.fresh_folder("planted")
        made = folder / out.name
        truth = self._ask("plant", {"out": str(made), "kind": kind, "seed": seed})
        if "skipped" in truth:
            self.session.pool.release(folder)
            return str(truth["skipped"])
        publish.model(made, out)
        self.session.pool.release(folder)
        planted = Planted(
            path=out,
            kind=truth["kind"],
            row=truth["row"],
            cause=truth["cause"],
            cause_also=tuple(truth.get("cause_also", ())),
            nodes=tuple(truth["nodes"]),
            what=truth["what"],
            source_value=truth["source_value"],
            target_value=truth["target_value"],
        )
        return self._with_effect(planted)

    def _ask(self, function: str, arguments: Mapping[str, Any]) -> Any:
        name = planter_of(self.artifact.format)
        environment = self.session.runner(self.artifact)
        if isinstance(environment, Failure):
            raise UsageError(environment.message)
        module = ModuleType(f"trueport.testing.planting.{name}_faults")  # only its name: it is imported in the worker
        given = {"path": str(self.artifact.path), **arguments}
        outcome = self.session.call(environment.value, module, function, given, stage=Stage.CONVERT)
        if isinstance(outcome, Failure):
            raise UsageError(f"no fault can be planted into {self.artifact.path.name}: {outcome.message}")
        return outcome.value.value

    def _with_effect(self, planted: Planted) -> Planted:
        """Run both models on the same inputs and see whether they differ beyond the noise."""
        clean = self._measured()
        if clean is None or self.feeds is None:
            return planted
        cases = self.feeds.of_kind("data")
        changed = self.session.run(Artifact.open(planted.path, format=self.artifact.format), cases)
        if isinstance(changed, Failure):
            return replace(planted, effective=True)  # it ran in the planter: what does not run here is no small change
        error, floor, effective = 0.0, float("nan"), False
        for case in cases:
            before, after = clean.runs.runs.get(case.name), changed.value.runs.get(case.name)
            if isinstance(before, Failure) or before is None:
                continue
            if isinstance(after, Failure) or after is None:
                effective = True
                continue
            for name, array in before.items():
                moved = distance(array, after.get(name))
                noise = max((distance(array, _output(way.runs, case.name, name)) for way in clean.floors), default=0.0)
                if moved > ABOVE * max(noise, float(np.finfo(np.float32).eps)):
                    effective = True
                if moved >= error:
                    error, floor = moved, noise
        self.session.release(changed.value)
        return replace(planted, effective=effective, error=error, floor=floor)

    def _measured(self) -> verification.Measured | None:
        if self._clean is None:
            self.feeds = self.feeds or open_feeds(self.session, self.artifact, None)
            loaded = verification.reference(self.session, self.artifact)
            if isinstance(loaded, Failure):
                return None
            measured = loaded.value.measure(self.feeds, "float32")
            self._clean = None if isinstance(measured, Failure) else measured.value
        return self._clean


def _output(runs: RunSet, case: str, name: str) -> Any:
    """One output of one case, or None where this way of computing has it not."""
    found = runs.get(case)
    return None if found is None or isinstance(found, Failure) else found.get(name)


def distance(before: Any, after: Any) -> float:
    """Root mean square of the change, over that of the input-dependent part of `before` ([R, *shape] each).

    `after` may hold fewer runs; None, or lists of arrays of several shapes on either side, count as no change at all,
    other shapes and new non-finite values as an infinite one.
    """
    if after is None or isinstance(before, list) or isinstance(after, list):
        return 0.0 if after is None or isinstance(after, list) == isinstance(before, list) else float("inf")
    left, right = (np.asarray(array, np.float64) for array in (before[: len(after)], after[: len(before)]))
    if left.shape != right.shape:
        return float("inf")
    finite = np.isfinite(left)
    if not np.array_equal(finite, np.isfinite(right)):
        return float("inf")
    if not finite.any():
        return 0.0
    change = float(np.sqrt(np.mean(np.square(np.where(finite, left - right, 0.0)))))
    whole = np.where(np.isfinite(before), np.asarray(before, np.float64), 0.0)
    spread = float(np.sqrt(np.mean(np.square(whole - whole.mean(axis=0))))) if len(whole) > 1 else 0.0
    scale = spread or float(np.sqrt(np.mean(np.square(whole)))) or 1.0
    return change / scale


def planter_of(format: str) -> str:
    """Return the name of the framework whose planter knows a format. Raises UsageError where there is none."""
    name = str(framework_of(format).NAME)
    if name not in PLANTERS:
        raise UsageError(f"faults cannot be planted into a {format}; convert it to onnx, tflite or keras first")
    return name


def fault_kinds(model: Model, *, session: Session | None = None) -> Mapping[str, int]:
    """Tell which kinds of fault a model can take: kind -> number of places.

    Raises UsageError when the model is of a format that has no planter, or cannot be read.
    """
    with open_session(session, Settings(), None) as active:
        return Planter(active, open_model(active, model, None, None, None)).kinds()


def plant(
    model: Model, out: str | Path, *, kind: str | None = None, seed: int = 0, session: Session | None = None
) -> Planted:
    """Write a copy of a model with one fault in it, at a random place that `seed` decides.

    Args:
        model: a path, or a live object of a framework that the caller has loaded; it is not changed.
        out: where the copy goes, whole or not at all.
        kind: one of `fault_kinds(model)`; None draws one that can be planted.

    Raises:
        UsageError: the kind is unknown or fits nowhere in this model; the message says why.
    """
    target = Path(out)
    with open_session(session, Settings(), None) as active:
        planter = Planter(active, open_model(active, model, None, None, None))
        folder = not framework_of(planter.artifact.format).SUFFIXES[planter.artifact.format]
        publish.check_model(target, planter.artifact.path, planter.artifact.format, folder=folder)
        found = planter.kinds()
        for one in _order(found, kind, seed):
            planted = planter.plant(target, one, seed)
            if isinstance(planted, Planted):
                return planted
    name = planter.artifact.path.name
    if kind is None:
        raise UsageError(f"no fault fits into {name}")
    raise UsageError(f"'{kind}' cannot be planted into {name}: {planted}; try another of {', '.join(sorted(found))}")


def _order(found: Mapping[str, int], kind: str | None, seed: int) -> Sequence[str]:
    """The kinds to try, in order. Raises UsageError for a kind that this model cannot take."""
    if kind is None:
        names = sorted(found)
        return [names[index] for index in np.random.default_rng(seed).permutation(len(names))]
    if kind not in found:
        raise UsageError(f"this model has no place for {json.dumps(kind)}; it takes {', '.join(sorted(found))}")
    return [kind]
