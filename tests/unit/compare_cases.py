"""A source, its twin and its noise floor, made by hand: what the tests of the comparison change one thing of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from trueport.artifact import Signature, TensorSpec
from trueport.compare.types import Comparison, FloorRun
from trueport.compare.verdict import compare

FLOOR = 2e-6
"""Noise of the hand-made floor, relative to the signal."""


def signature(**shapes) -> Signature:
    """A model with one input and float32 outputs of these shapes."""
    return Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 8)),),
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()),
    )


def noisy(array, amount, seed):
    """Add noise of `amount` times the signal to a float array."""
    if amount == 0.0:
        return array.copy()
    rng = np.random.default_rng(seed)
    finite = np.asarray(array, dtype=np.float64)[np.isfinite(array)]
    spread = float(finite.std()) or 1.0 if finite.size else 0.0
    return (array + amount * spread * rng.standard_normal(array.shape)).astype(array.dtype)


def copy(runs):
    """A deep copy of a run set."""
    return {
        case: {
            name: value.copy() if isinstance(value, np.ndarray) else [item.copy() for item in value]
            for name, value in outputs.items()
        }
        for case, outputs in runs.items()
    }


def floors_of(runs, amount=FLOOR, ways=("float64", "kernels: one thread", "inputs moved by one ulp")):
    """Floor runs: the source with fresh noise, for every float array; everything else as it is."""
    made = []
    for number, how in enumerate(ways):
        moved = {
            case: {
                name: noisy(value, amount, 1000 * number + 7)
                if isinstance(value, np.ndarray) and value.dtype.kind == "f"
                else value
                for name, value in outputs.items()
            }
            for case, outputs in runs.items()
        }
        made.append(FloorRun(how=how, runs=moved))
    return tuple(made)


def source_runs(seed=0):
    """Two float outputs: "scores" [R=5, batch 2, 6] and "features" [5, 2, 3, 4], in data, batch and probe cases."""
    rng = np.random.default_rng(seed)

    def case(runs, batch):
        return {
            "scores": rng.standard_normal((runs, batch, 6)).astype(np.float32),
            "features": (3 + rng.standard_normal((runs, batch, 3, 4))).astype(np.float32),
        }

    return {"data": case(5, 2), "batch-3": case(1, 3), "probe-zeros": case(1, 2)}


KINDS = {"data": "data", "batch-3": "batch", "probe-zeros": "probe"}


@dataclass(frozen=True)
class Trial:
    """The arguments of `compare`, of which a test replaces one or two."""

    source: dict
    target: dict
    kinds: dict = field(default_factory=lambda: dict(KINDS))
    floors: tuple = ()
    source_signature: Signature | None = None
    target_signature: Signature | None = None
    repeat_source: dict | None = None
    repeat_target: dict | None = None
    declared: str = "float32"
    renames: dict = field(default_factory=dict)
    layout: dict = field(default_factory=dict)
    task: str = "none"
    labels: np.ndarray | None = None

    def run(self) -> Comparison:
        return compare(
            self.source_signature or shown(self.source),
            self.target_signature or shown(self.target),
            self.kinds,
            self.source,
            self.target,
            self.floors,
            self.repeat_source,
            self.repeat_target,
            declared_precision=self.declared,
            renames=self.renames,
            layout=self.layout,
            task=self.task,
            labels=self.labels,
        )

    def but(self, **changes) -> Trial:
        return replace(self, **changes)


def shown(runs) -> Signature:
    """A signature of free batch size for what the runs show."""
    outputs = next((outputs for outputs in runs.values() if isinstance(outputs, dict)), {})
    shapes = {}
    for name, value in outputs.items():
        runs_given = isinstance(value, list) or np.ndim(value) > 0
        shape = np.asarray(value[0]).shape if runs_given and len(value) else ()
        shapes[name] = (None, *shape[1:]) if shape else ()
    return signature(**shapes)


def clean(seed=0, amount=FLOOR) -> Trial:
    """A source, a twin within the noise, and three floor runs."""
    runs = source_runs(seed)
    target = {
        case: {name: noisy(value, amount, 99 + seed) for name, value in outputs.items()}
        for case, outputs in runs.items()
    }
    return Trial(source=runs, target=target, floors=floors_of(runs))


def one(source, target, *, floor=FLOOR, **changes) -> Trial:
    """One output "y" in one data case."""
    runs = {"data": {"y": source}}
    trial = Trial(source=runs, target={"data": {"y": target}}, kinds={"data": "data"}, floors=floors_of(runs, floor))
    return trial.but(**changes)
