"""Source and target traced on the same few inputs, with what is known about them beforehand: which inputs and outputs belong together.

The inputs are chosen from those that were verified: the runs that deviate most, and others of the same shape, because
one run alone cannot tell what depends on the input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from trueport import feeds, reconcile, tracing
from trueport.align import relations
from trueport.align.match import GROWTH, View, align
from trueport.align.types import Alignment, Match, Relation
from trueport.artifact import Artifact
from trueport.compare.types import Verdict, Verification
from trueport.feeds import Case, Feeds
from trueport.outcome import Failure, Kind, Ok, Outcome, Stage
from trueport.reconcile import InputMap
from trueport.tracing import Traced
from trueport.verification import Reference

RUNS = 4
"""Runs that are traced: 2, 3 and 6 gave the same result on 110 planted faults; more cost memory."""

CLEARLY = 100.0
"""Ratio to the floor from which a case shows a fault of its own beside an output that is infinite in another case."""

OVERFLOW = re.compile(r"in case '([^']*)': \d+ elements are NaN or infinite in the target")
"""How the comparison says that a case, a probe too, has an output that is not finite in the target alone."""

TOLERANCE: Mapping[str, float] = {"float32": 3e-5, "float16": 6e-3, "int8-dynamic": 0.3, "int8": 0.45}
"""Error up to which a value counts as equal, by declared precision: an order above what clean small networks show."""

SMALL_FAULT = 4.0
"""A deviation must be so many times the tolerance; else the tolerance shrinks to a share of the deviation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One pair of outputs by value name, and whether the verification says that it deviates."""

    source: str
    target: str
    relation: Relation
    bad: bool
    floor: float


@dataclass(kw_only=True)
class Pair:
    """Both models traced. `view`s describe the values; the target's changes as faults are healed."""

    source: Traced
    target: Traced
    ours: View
    theirs: View
    pins: tuple[Match, ...]
    outputs: tuple[Output, ...]
    tolerance: float
    precision: str
    growth: float = GROWTH
    notes: list[str] = field(default_factory=list)

    def align(self, known: Alignment | None = None, anew: Sequence[str] | None = None) -> Alignment:
        """Pair the values as they are now."""
        return align(
            self.ours, self.theirs, self.pins, tolerance=self.tolerance, growth=self.growth, known=known, anew=anew
        )

    def output_error(self, output: Output, value: np.ndarray | None = None) -> float:
        """Error of an output (of `value` in its place)."""
        array = self.theirs.values.get(output.target) if value is None else value
        if array is None or output.source not in self.ours.values:
            return float("inf")
        unit = self.ours.infos[output.source].unit
        return relations.error(self.ours.values[output.source], array, output.relation, unit)

    def refresh(self) -> None:
        """Describe the target's values anew after they were traced again."""
        self.theirs = View.of(self.target.graph, self.target.values)

    def close(self) -> None:
        """Free the disk."""
        self.source.close()
        self.target.close()


def trace_pair(
    reference: Reference,
    target: Artifact,
    given: Feeds,
    verification: Verification,
    *,
    budget: int = tracing.BUDGET,
    fine: bool = True,
) -> Outcome[Pair]:
    """Trace both models on the runs that deviate most, the source at all granularities with `fine`.

    A Failure when either cannot be traced.
    """
    session = reference.session
    loaded = session.signature(target)
    if isinstance(loaded, Failure):
        return loaded
    theirs = loaded.value
    names, layout = target.made_by.get("names", {}), target.made_by.get("layout", {})
    mapping = reconcile.reconcile_inputs(reference.signature, theirs, names, layout)
    common = feeds.restrict(given, reference.signature, theirs, mapping=mapping)
    if mapping.problems or not common.cases:
        why = "; ".join(mapping.problems or common.notes[-1:])
        return Failure(stage=Stage.TRACE, kind=Kind.UNSUPPORTED, message=f"they take no common inputs: {why}")
    chosen = worst_runs(common, verification)
    moved = reconcile.apply(mapping, replace(common, cases=(chosen,)))[0]
    ours_traced = tracing.trace(session, reference.artifact, dict(chosen.inputs), budget=budget, fine=fine)
    if isinstance(ours_traced, Failure):
        return ours_traced
    theirs_traced = tracing.trace(session, target, dict(moved.inputs), budget=budget)
    if isinstance(theirs_traced, Failure):
        return theirs_traced
    source, traced = ours_traced.value, theirs_traced.value
    source.alias(reference.signature)
    traced.alias(theirs)
    our_view, their_view = View.of(source.graph, source.values), View.of(traced.graph, traced.values)
    outputs = _outputs(verification, source, traced, our_view, their_view)
    pair = Pair(
        source=source,
        target=traced,
        ours=our_view,
        theirs=their_view,
        pins=(*_input_pins(mapping, source, traced, our_view, their_view), *_output_pins(outputs)),
        outputs=outputs,
        tolerance=TOLERANCE.get(verification.declared_precision, TOLERANCE["float32"]),
        precision=verification.declared_precision,
        notes=[*source.notes, *traced.notes],
    )
    _sharpen(pair)
    return Ok(pair)


def _sharpen(pair: Pair) -> None:
    """Lower the tolerance for a small fault, which the usual one would hide. Growth over depth then excuses less."""
    errors = [error for output in pair.outputs if output.bad and np.isfinite(error := pair.output_error(output))]
    if errors and max(errors) < SMALL_FAULT * pair.tolerance:
        pair.tolerance = max(errors) / SMALL_FAULT
        pair.growth = 2.0


def worst_runs(given: Feeds, verification: Verification) -> Case:
    """Up to RUNS runs of one shape: those that deviate most first, filled up with others of the same shapes."""
    weight: dict[str, float] = {}
    first: dict[str, int] = {}
    for output in verification.comparison.outputs:
        for name, numbers in output.cases.items():
            ratio = float(numbers.get("ratio", 0.0))
            weight[name] = max(weight.get(name, 0.0), np.inf if np.isnan(ratio) else ratio)
        if output.verdict is not Verdict.FAITHFUL and len(output.worst_index) > 1:
            first[str(output.worst_index[0])] = int(output.worst_index[1])
    # A representative case speaks for the model; a probe is traced only where nothing else deviates, or alone overflows.
    overflowing = _overflowing(verification)
    least = CLEARLY if overflowing else 1.0
    bad = [case for case in given.cases if weight.get(case.name, 0.0) > least and case.kind == "data"]
    bad = bad or [case for case in given.cases if case.name in overflowing]
    bad = bad or [case for case in given.cases if case.name in first] or list(given.cases)
    # A coarse model's noise follows the loudest run, and an int8 model saturates beyond its calibration: both hide faults.
    coarse = verification.declared_precision in TOLERANCE and verification.declared_precision != "float32"
    bad = _calmest(bad, weight, verification) if coarse else bad
    start = max(bad, key=lambda case: (weight.get(case.name, 0.0), case.kind == "data"))
    shapes = _shapes(start)
    rest = [] if coarse and start.runs > 1 else [case for case in given.cases if case is not start]
    alike = [start] + [case for case in rest if _shapes(case) == shapes]
    alike.sort(key=lambda case: (case is not start, case.kind != "data"))
    rows: list[tuple[Case, int]] = []
    for case in alike:
        order = list(range(case.runs))
        worst = first.get(case.name)
        if worst is not None and worst in order:
            order.insert(0, order.pop(worst))
        rows += [(case, run) for run in order]
    # Half of them from the worst case, the others from other ranges of the data: what saturates in one shows in another.
    own = [row for row in rows if row[0] is start]
    others = [next(row for row in rows if row[0] is case) for case in alike if case is not start]
    chosen = [*own[: max(RUNS // 2, RUNS - len(others))], *others, *rows][:RUNS]
    inputs = {name: np.stack([case.inputs[name][run] for case, run in chosen]) for name in start.inputs}
    return Case(name=start.name, kind=start.kind, inputs=inputs)


def _calmest(cases: Sequence[Case], weight: Mapping[str, float], verification: Verification) -> list[Case]:
    """Of the cases that deviate clearly, the one on which the target's own noise is smallest."""
    most = max(weight.get(case.name, 0.0) for case in cases)
    clear = [case for case in cases if weight.get(case.name, 0.0) >= most / 2]

    def floor(case: Case) -> float:
        known = [output.cases.get(case.name, {}).get("floor") for output in verification.comparison.outputs]
        return max((float(item) for item in known if item is not None), default=float("inf"))

    return [min(clear, key=floor)]


def _overflowing(verification: Verification) -> set[str]:
    """The cases in which an output is NaN or infinite in the target alone: they have no ratio for it."""
    return {case for output in verification.comparison.outputs for case in OVERFLOW.findall(output.reason)}


def _shapes(case: Case) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape[1:]) for name, array in case.inputs.items()}


def _input_pins(mapping: InputMap, source: Traced, target: Traced, ours: View, theirs: View) -> list[Match]:
    pins = []
    for rule in mapping.rules:
        left, right = source.input_value(rule.source), target.input_value(rule.target)
        if left not in ours.infos or right not in theirs.infos:
            continue
        rank = len(ours.infos[left].shape)
        relation = squeezed_relation(rule.permutation or tuple(range(rank)), ours.infos[left].shape)
        pins.append(Match(target=right, source=left, relation=relation, error=0.0, how="input", ok=True))
    return pins


def _output_pins(outputs: Sequence[Output]) -> list[Match]:
    return [
        Match(
            target=output.target,
            source=output.source,
            relation=output.relation,
            error=float("nan"),
            how="output",
            ok=False,
        )
        for output in outputs
    ]


def squeezed_relation(permutation: Sequence[int], shape: Sequence[int]) -> Relation:
    """The relation of squeezed axes that a permutation of all axes of a source value of this shape means."""
    kept = [axis for axis in permutation if shape[axis] != 1] if len(permutation) == len(shape) else []
    order = sorted(kept)
    return Relation(tuple(order.index(axis) for axis in kept))


def _outputs(
    verification: Verification, source: Traced, target: Traced, ours: View, theirs: View
) -> tuple[Output, ...]:
    found = []
    for report in verification.comparison.outputs:
        left, right = source.output_value(report.source), target.output_value(report.target)
        if left not in ours.infos or right not in theirs.infos:
            continue
        shape = ours.infos[left].shape
        relation = squeezed_relation(report.permutation or tuple(range(len(shape))), shape)
        found.append(
            Output(
                source=left,
                target=right,
                relation=relation,
                bad=report.verdict is not Verdict.FAITHFUL,
                floor=float(report.floor),
            )
        )
    return tuple(found)
