"""One trial: make a model, perhaps plant a fault, convert, verify, and keep the figures as a row.

A clean trial converts a model; a planted one converts a copy that is wrong in one way and compares it with the unchanged
source. Models of one kind and seed share the source's runs and floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueport import feeds
from trueport.artifact import Artifact
from trueport.compare.metrics import difference, spread
from trueport.compare.types import Verification
from trueport.compare.values import has_batch_axis, normalise
from trueport.conversion import Workbench
from trueport.errors import TrueportError
from trueport.feeds import Feeds
from trueport.outcome import Failure, Stage
from trueport.routes import parse_route
from trueport.session import Session
from trueport.verification import Reference, reference, verify

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT / "tests" / "frameworks"), str(ROOT / "benchmarks" / "noise")]
MAKERS = {"torch": ("torch", "torch_faults"), "keras": ("tensorflow", "keras_faults")}
"""framework -> (toolchain, worker-side module with `save`, `places` and `plant`)."""

TO_ONNX = {"torch": "torch-dynamo", "keras": "tf2onnx-keras"}
"""How a model of either framework becomes the source of the ONNX trials."""

FLOAT64_ROUNDING = 2.0**-52 * 4096
"""A change of the source below this share of its magnitude, computed in float64, is no change: the rounding of float64 in
some thousand operations."""


class TrialError(Exception):
    """The benchmark itself failed: a model could not be made or its source could not be run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """framework: "torch", "keras", or "onnx/torch", "onnx/keras" for an ONNX source made from one. fault: "" is clean."""

    framework: str
    kind: str
    seed: int
    route: str
    fault: str = ""
    where: str = ""

    @property
    def key(self) -> str:
        """What names the trial in the file of rows."""
        return "|".join((self.framework, self.kind, str(self.seed), self.route, self.fault, self.where))

    @property
    def source(self) -> tuple[str, str, int]:
        """Trials of equal sources share its runs."""
        return self.framework, self.kind, self.seed


class Bench:
    """Runs trials in one session; keeps the source of the last trial."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._source: tuple[tuple[str, str, int], Workbench] | None = None

    def run(self, trial: Trial) -> dict[str, Any]:
        """Run a trial and return its row. Raises TrialError when the source cannot be made or loaded."""
        bench = self._bench(trial)
        row: dict[str, Any] = {"key": trial.key, **{name: getattr(trial, name) for name in Trial.__slots__}}
        changed = bench
        if trial.fault:
            path = self._make(trial.framework, "plant", trial, fault=trial.fault, where=trial.where)
            changed = self._workbench(Artifact.open(path), bench.given)
        try:
            attempt = changed.attempt(parse_route(trial.route))
        except TrueportError as error:
            return {**row, "verdict": "not converted", "reason": f"{type(error).__name__}: {error}"}
        if attempt.output is None:
            reason = attempt.failure.message if attempt.failure is not None else "no result"
            return {**row, "verdict": "not converted", "reason": reason}
        found = verify(bench.original, attempt.output, bench.given)
        row |= figures(found)
        if trial.fault and row["verdict"] != "deviates":
            row["effect"], row["effect_ratio"] = self._effect(bench, changed, floors(found))
        return row

    def places(self, framework: str, kind: str, seed: int) -> Mapping[str, Sequence[str]]:
        """Fault -> the places of a model where it can be planted."""
        toolchain, module = MAKERS[framework]
        return dict(self._call(toolchain, module, "places", {"kind": kind, "seed": seed}))

    def _bench(self, trial: Trial) -> Workbench:
        if self._source is None or self._source[0] != trial.source:
            base = trial.framework.rpartition("/")[2]
            artifact = Artifact.open(self._make(base, "save", trial))
            if base != trial.framework:
                attempt = self._workbench(artifact, None).attempt(parse_route(TO_ONNX[base]))
                if attempt.output is None:
                    raise TrialError(f"{trial.key}: no ONNX source: {attempt.failure}")
                artifact = Artifact.open(attempt.output.path)  # a source of its own, without the history of its making
            self._source = (trial.source, self._workbench(artifact, None, seed=trial.seed))
        return self._source[1]

    def _workbench(self, artifact: Artifact, given: Feeds | None, seed: int = 0) -> Workbench:
        loaded = reference(self.session, artifact)
        if isinstance(loaded, Failure):
            raise TrialError(f"{artifact.path.name}: {loaded.message}")
        given = given or feeds.generate(loaded.value.signature, seed=seed)
        return Workbench(session=self.session, original=loaded.value, given=given, check=False, task="auto")

    def _make(self, framework: str, function: str, trial: Trial, **more: str) -> Path:
        toolchain, module = MAKERS[framework]
        folder = self.session.pool.fresh_folder(f"model-{trial.kind}")
        arguments = {"kind": trial.kind, "folder": str(folder), "seed": trial.seed, **more}
        return Path(self._call(toolchain, module, function, arguments))

    def _call(self, toolchain: str, module: str, function: str, arguments: Mapping[str, Any]) -> Any:
        environment = self.session.environment(toolchain)
        if isinstance(environment, Failure):
            raise TrialError(environment.message)
        done = self.session.pool.call(
            environment.value.python, module, function, arguments, stage=Stage.LOAD, paths=PATHS
        )
        if isinstance(done, Failure):
            raise TrialError(f"{module}.{function} {dict(arguments)}: {done.message}\n{done.log}")
        return done.value.value

    def _effect(
        self, original: Workbench, changed: Workbench, floors: Mapping[tuple[str, str], float]
    ) -> tuple[float | None, float | None]:
        """Largest change of the source's outputs by the fault itself, computed in float64: as a share of their
        input-dependent part (of their magnitude where nothing varies), and over the noise floor of its case.

        0.0: at most float64's rounding. None: it cannot be evaluated so. floors: (output, case) -> floor as a share.
        """
        given = original.given.cases
        before = self.session.run(original.original.artifact, given, precision="float64")
        after = self.session.run(changed.original.artifact, given, precision="float64")
        if isinstance(before, Failure) or isinstance(after, Failure):
            return None, None
        shares = {}
        for case, left in before.value.runs.items():
            right = after.value.runs.get(case)
            if isinstance(left, Failure) or isinstance(right, Failure) or right is None:
                return None, None
            for (name, one), two in zip(left.items(), right.values(), strict=True):
                shares[name, case] = _moved(original.original, name, one, two)
        ratios = [share / floors[place] for place, share in shares.items() if floors.get(place)]
        return max(shares.values()), max(ratios, default=None)


def floors(found: Verification) -> dict[tuple[str, str], float]:
    """(output, case) -> its noise floor as a share of its input-dependent part."""
    return {
        (output.source, case): numbers["floor"]
        for output in found.comparison.outputs
        for case, numbers in output.cases.items()
    }


def _moved(source: Reference, name: str, one: Any, two: Any) -> float:
    """Change of one output in one case, as a share; 0.0 within float64's rounding."""
    left, right = normalise(one), normalise(two)
    apart, size = difference(left, right), spread(left, batch=has_batch_axis(source.signature, name))
    if apart.mismatches == 0 or apart.rms <= FLOAT64_ROUNDING * size.rms:
        return 0.0
    return apart.rms / (size.scale or 1.0)


def figures(found: Verification) -> dict[str, Any]:
    """The verdict, and the worst ratios over outputs and cases, of data (with batches) and of probes apart."""
    row: dict[str, Any] = {"verdict": str(found.verdict), "reason": found.reason}
    details = [
        (output.source, case, numbers) for output in found.comparison.outputs for case, numbers in output.cases.items()
    ]
    for group, probe in (("data", False), ("probe", True)):
        chosen = [item for item in details if item[1].startswith("probe-") == probe]
        for name in ("ratio_rms", "ratio_max", "ratio_slice"):
            worst = max(chosen, key=lambda item: _number(item[2].get(name)), default=None)
            row[f"{group}_{name}"] = None if worst is None else _number(worst[2].get(name))
            row[f"{group}_{name}_at"] = None if worst is None else f"{worst[0]} {worst[1]}"
    row["floor"] = max((_number(numbers["floor"]) for _, case, numbers in details if case == "data"), default=None)
    row["seconds"] = found.timings.get("total")
    return row


def _number(value: float | None) -> float:
    """A ratio; one that could not be measured counts as 0, an infinite one stays."""
    return 0.0 if value is None or math.isnan(value) else value
