"""Is it the runtime? Tells apart a model that is wrong from a right model that the default kernels compute wrongly.

A trace shows every value, and for that it may run kernels without fusions. A model that is right there and wrong in its
default kernels is the victim of an optimiser pass, a delegate or a kernel. The first value that the default runtime
gets wrong is found by running the model cut off behind one value at a time, with nothing else shown, so that the
optimiser can do to the part what it does to the whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trueport.diagnosis.rounding import BEYOND, GRID_STEPS, JITTER, deviation, noise, precision, rounding, step
from trueport.diagnosis.types import Cause, Evidence, Finding
from trueport.feeds import Case
from trueport.graph import FINE, Node
from trueport.outcome import Failure, Ok, Outcome, Stage
from trueport.session import framework_of
from trueport.tracing import Traced
from trueport.worker.pool import Reply

HEALED = 0.02
"""Share of the error that may stay when a fault is healed, as in the causal test of localisation."""
DEPTH = 6
"""How many operators in a row a fusion can join; ONNX Runtime's longest chains are of about that length."""
GRID_DEPTH = 2
"""The same on an integer grid, where a kernel takes at most its neighbour in, and rounding adds up from layer to layer."""
FAULTS = 4
"""How many faults of one runtime in one model are searched for."""
SECONDS = 120.0
"""After so long a search ends with what it has found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserverEffect:
    """What showing the intermediate values and running other kernels each did to the outputs.

    Deviations by output, in units of the output's spread. plain: the traced outputs against the default run.
    exposure: the traced ones against the same kernels with nothing else shown; empty where nothing had to be explained
    or the model cannot be cut. tolerance: what rounding explains.
    """

    plain: Mapping[str, float]
    exposure: Mapping[str, float]
    tolerance: Mapping[str, float]

    @property
    def differing(self) -> tuple[str, ...]:
        """Outputs that the trace computes otherwise than the default run."""
        return tuple(name for name, off in self.plain.items() if off > self.tolerance[name])

    @property
    def exposed(self) -> tuple[str, ...]:
        """Outputs that change because other values are shown: the trace does not tell how the model computes them."""
        return tuple(name for name in self.differing if self.exposure.get(name, 0.0) > self.tolerance[name])

    @property
    def kernels(self) -> tuple[str, ...]:
        """Outputs that the tracing kernels and the default ones compute differently, by rounding or by a fault (`find`)."""
        return tuple(name for name in self.differing if self.exposure.get(name, math.inf) <= self.tolerance[name])

    @property
    def note(self) -> str:
        """One sentence, or "" when the trace shows what the default run computes."""
        if not self.differing:
            return ""
        worst = max(self.differing, key=self.plain.__getitem__)
        start = f"the traced output '{worst}' is off the plain run by {_amount(self.plain[worst])}"
        if self.exposed:
            return f"{start}: showing the values in between changes it"
        if self.kernels:
            return f"{start}: the kernels that show values compute it otherwise than the default ones"
        return f"{start}, and whether showing values or the kernels cause it cannot be told apart for this model"


def observer_effect(
    target: Traced, plain: Mapping[str, np.ndarray], *, tolerance: float | None = None
) -> ObserverEffect:
    """Compare the outputs of a plain run (default kernels, nothing shown; name -> [R, *shape]) with the traced ones.

    Only when they differ by more than kernels do (`tolerance`, by default from the model's precision) the model is run
    again: in the tracing kernels with its inputs rounded anew, which tells how far rounding goes in this model, and
    with nothing shown but the outputs.
    """
    limit = noise(target) if tolerance is None else tolerance
    off = {name: deviation(target.values[name], array) for name, array in plain.items() if name in target.values}
    limits, differing = _beyond_rounding(target, off, limit)
    exposure: dict[str, float] = {}
    if differing:
        again = target.replay({}, differing)
        if not isinstance(again, Failure):
            arrays = again.value.emitted
            exposure = {name: deviation(target.values[name], arrays[name]) for name in differing if name in arrays}
            target.session.pool.release(again.value.folder)
    return ObserverEffect(plain=off, exposure=exposure, tolerance=limits)


def plain_outputs(target: Traced) -> Outcome[dict[str, np.ndarray]]:
    """Run the model as it ships on the inputs of its trace: output -> [R, *shape]; those of uneven shape are left out."""
    ran = target.session.run(target.artifact, [Case(name="traced", kind="data", inputs=target.inputs)])
    if isinstance(ran, Failure):
        return ran
    outputs = ran.value.runs["traced"]
    if isinstance(outputs, Failure):
        return outputs
    return Ok({name: array for name, array in outputs.items() if isinstance(array, np.ndarray)})


def retrace(target: Traced, *, seconds: float = SECONDS) -> int:
    """Trace again with nothing but one value shown at a time, where showing them together changes them (`ObserverEffect.exposed`).

    The values are replaced in place; those that cannot be computed alone, or not in time, are removed: they are not
    to be trusted. Returns how many were replaced, and leaves a note in `target.notes`.
    """
    deadline = time.monotonic() + seconds
    names = [name for name in target.values if name in target.graph.producers and not name.startswith(FINE)]
    replaced = 0
    for name in names:
        outcome = target.replay({}, [name]) if time.monotonic() < deadline else None
        if isinstance(outcome, Ok):
            target.replies.append(outcome.value)
        if isinstance(outcome, Ok) and name in outcome.value.emitted:
            target.values[name] = outcome.value.emitted[name]
            replaced += 1
        else:
            del target.values[name]
    lost = f"; {len(names) - replaced} could not be had so and are left out" if replaced < len(names) else ""
    target.notes.append(
        f"showing values changes the outputs, so {replaced} values were computed one at a time, by the part of the model "
        f"that ends there{lost}"
    )
    return replaced


def find(
    target: Traced,
    plain: Mapping[str, np.ndarray],
    *,
    tolerance: float | None = None,
    seconds: float = SECONDS,
) -> tuple[tuple[Finding, Evidence], ...]:
    """Name the operators that the default runtime computes wrongly, in a model whose traced values are right.

    plain: the outputs of a default run with nothing shown, name -> [R, *shape]. The traced values are taken as right:
    call this only where they agree with the source and the plain ones do not. One pair per fault, as they were found; none where the plain outputs agree with the traced ones, or the model cannot be cut.
    """
    limit = noise(target) if tolerance is None else tolerance
    off = {name: deviation(target.values[name], array) for name, array in plain.items() if name in target.values}
    _, wrong = _beyond_rounding(target, off, limit)
    search = _Search(target, limit, time.monotonic() + seconds)
    found: dict[str, str] = {}  # the value -> the output that led to it
    while wrong and len(found) < FAULTS:
        place = search.first_wrong(wrong[0])
        if place is None or not search.proven(place):
            wrong = wrong[1:]  # wrong only in the whole model, not to be cut there, or no more than rounding
            continue
        found[place] = wrong[0]
        search.healed = list(found)
        wrong = [name for name in wrong if name != place and search.wrong(name)]
    return tuple(search.explain(place, output, found) for place, output in found.items())


def _beyond_rounding(target: Traced, off: Mapping[str, float], limit: float) -> tuple[dict[str, float], list[str]]:
    """Return each output's limit, and the outputs that are off by more. Rounding is only measured where that matters."""
    limits = dict.fromkeys(off, limit)
    differing = [name for name, value in off.items() if value > limit]
    for name, moved in rounding(target, differing, target.inputs).items():
        limits[name] = max(limit, BEYOND * moved)
    return limits, [name for name in differing if off[name] > limits[name]]


@dataclass
class _Search:
    """Runs cuts of one model and remembers how far off each was. `healed`: values whose faults are found, put in right."""

    target: Traced
    limit: float
    deadline: float
    healed: list[str] = field(default_factory=list)
    known: dict[tuple[str, frozenset[str], str], float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def default(self) -> str:
        """The variant that ships."""
        return str(framework_of(self.target.artifact.format).VARIANTS[0])

    def off(self, value: str, given: Iterable[str] = (), variant: str | None = None) -> float:
        """How far off a value is when computed alone, with the right `given` ones put in; NaN where it cannot be."""
        put_in = frozenset(given).union(self.healed) - {value}
        key = (value, put_in, variant or self.default)
        if key not in self.known:
            self.known[key] = self._measure(*key)
        return self.known[key]

    def _measure(self, value: str, put_in: Collection[str], variant: str) -> float:
        if time.monotonic() > self.deadline:
            return math.nan
        given = {name: self.target.values[name] for name in sorted(put_in)}
        outcome = self.target.replay(given, [value], variant=variant)
        if isinstance(outcome, Failure):
            return math.nan
        reply: Reply = outcome.value
        self.versions = reply.versions
        array = reply.emitted.get(value)
        found = math.nan if array is None else deviation(self.target.values[value], array)
        self.target.session.pool.release(reply.folder)
        return found

    def wrong(self, value: str, given: Iterable[str] = (), variant: str | None = None) -> bool:
        """Whether a value computed alone is off by more than noise; False where it cannot be computed."""
        return self.off(value, given, variant) > self.limit

    def judged(self, value: str) -> bool:
        """Whether a value can be compared: traced, computed by a node of the native view, not text."""
        if value not in self.target.values or value not in self.target.graph.producers or value.startswith(FINE):
            return False
        return value not in self.healed and self.target.values[value].dtype.kind in "biuf"

    def first_wrong(self, output: str) -> str | None:
        """A value on the way to `output` that is wrong although all that it is computed from is right."""
        if not self.wrong(output):
            return None
        graph = self.target.graph
        place = output
        while True:
            before = graph.upward(graph.parents(place), lambda name: name in self.healed)
            order = sorted((name for name in before if self.judged(name)), key=graph.producers.__getitem__)
            first, last = 0, len(order)  # order[last] is wrong; at the end stands the place itself
            while first < last:
                middle = (first + last) // 2
                if self.wrong(order[middle]):
                    last = middle
                else:
                    first = middle + 1
            place = [*order, place][last]
            # Wrongness need not grow along the order: a branch beside it can be right. So the neighbours are asked.
            nearest = graph.nearest(place, self.judged)
            wrong = [name for name in nearest if self.wrong(name)]
            if not wrong:
                return place
            place = wrong[0]

    def explain(self, value: str, output: str, found: Collection[str]) -> tuple[Finding, Evidence]:
        """Say which nodes take part, which kernels are right, and which pass is to blame, the other faults `found` healed."""
        self.healed = []
        accumulated = self.off(value)
        self.healed = [name for name in found if name != value]
        region, given = self.smallest(value)
        target = self.target
        before, after = self.off(output), 0.0 if output == value else self.off(output, [value])
        share = 1.0 - after / before if before > 0 and math.isfinite(before) else float(after <= self.limit)
        nodes = tuple(node.name for node in region)
        finding = Finding(
            kind="runtime",
            target=value,
            source=None,
            relation=None,
            region=nodes,
            source_region=(),
            accumulated=accumulated,
            local=self.off(value, given),
            causal=share,
            confirmed=after <= max(self.limit, HEALED * before),
        )
        right = [name for name in framework_of(target.artifact.format).VARIANTS[1:] if self._right(value, given, name)]
        level, cures = self.passes(value, given)
        producer = target.graph.producer(value)
        shown = self._example(value, given)
        evidence = Evidence(
            node=producer.name if producer else nodes[-1],
            source_nodes=(),
            cause=Cause.RUNTIME,
            what=self._sentence(region, right, level, cures, self.off(value, given)),
            source_value=f"kernels '{right[0] if right else 'of the trace'}': {shown[0]}",
            target_value=f"kernels '{self.default}': {shown[1]}",
            weight=2.0 if cures else 1.5,
        )
        return finding, evidence

    def proven(self, value: str) -> bool:
        """Whether the default kernels, fed with right values, are off by far more than rounding those values explains."""
        _, given = self.smallest(value)
        moved = rounding(self.target, [value], given or self.target.inputs, self.healed).get(value, 0.0)
        return self.off(value, given) > max(self.limit, BEYOND * moved, self.grid(value))

    def grid(self, value: str) -> float:
        """Deviation of a value whose elements are all off by as many steps of its integer grid as rounding may be."""
        if precision(self.target) in JITTER:
            return 0.0
        right = self.target.values[value]
        return GRID_STEPS * deviation(right, right + step(right)) if right.dtype.kind == "f" else 0.0

    def _right(self, value: str, given: Collection[str], variant: str) -> bool:
        return self.off(value, given, variant) <= self.limit

    def smallest(self, value: str) -> tuple[tuple[Node, ...], frozenset[str]]:
        """The fewest nodes that the default runtime computes wrongly together, and the values to put in around them."""
        graph = self.target.graph
        inside = {value}
        stops: set[str] = set()
        for _ in range(DEPTH if precision(self.target) in JITTER else GRID_DEPTH):
            stops = {name for item in inside for name in graph.nearest(item, self._cuttable)} - inside
            if self.wrong(value, stops) or not any(name in graph.producers for name in stops):
                break
            inside |= {name for name in stops if self.judged(name)}
        if not self.wrong(value, stops):
            return graph.between(value, set(self.healed))[-DEPTH:], frozenset()
        for name in sorted(inside - {value}, key=graph.producers.__getitem__):
            fewer = stops | {name}
            if self.wrong(value, fewer):
                stops = fewer
        kept = graph.upward([value], lambda name: name in stops)
        used = {name for name in stops if any(name in graph.parents(item) for item in kept)}
        return graph.between(value, stops), frozenset(used or stops)

    def _cuttable(self, value: str) -> bool:
        return value in self.target.values and not value.startswith(FINE)

    def passes(self, value: str, given: Collection[str]) -> tuple[str, list[str]]:
        """The least optimisation that is wrong, and the passes each of which, left out alone, makes the value right."""
        target = self.target
        if not hasattr(framework_of(target.artifact.format), "passes"):
            return "", []
        around = {name: list(target.values[name].shape[1:]) for name in {*given, *self.healed} - {value}}
        arguments = {"given": around, "wanted": value}
        outcome = target.session.ask(target.artifact, "passes", arguments, stage=Stage.TRACE)
        if isinstance(outcome, Failure):
            return "", []
        listed = outcome.value.value
        level = next((name for name in listed["levels"] if self.wrong(value, given, name)), "")
        cures = [name for name in listed["passes"] if self._right(value, given, name)]
        return level.partition(":")[2], [name.partition(":")[2] for name in cures]

    def _sentence(
        self, region: Sequence[Node], right: Sequence[str], level: str, cures: Sequence[str], off: float
    ) -> str:
        operators = " + ".join(dict.fromkeys(node.native_op or node.op for node in region))
        runtime = next((f"{name} {self.versions[name]}" for name in RUNTIMES if name in self.versions), "the runtime")
        made = f"{runtime} computes {operators} wrongly in its default kernels (off by {_amount(off)})"
        if cures:
            names = " or ".join(f"'{name}'" for name in cures)
            made += f"; it is right when the optimiser pass {names} is disabled"
        elif level:
            made += f"; wrong from optimisation level '{level}' on, and no single pass is to blame"
        if right:
            made += f"; right in the variants {', '.join(right)}"
        return made

    def _example(self, value: str, given: Iterable[str]) -> tuple[str, str]:
        """The element that is furthest off, from right and from default kernels, as text."""
        put_in = frozenset(given).union(self.healed) - {value}
        right = self.target.values[value]
        outcome = self.target.replay({name: self.target.values[name] for name in put_in}, [value], variant=self.default)
        if isinstance(outcome, Failure):
            return "right", "not computed"
        array = outcome.value.emitted.get(value)
        if array is None or array.shape != right.shape or not right.size:
            shown = (
                f"shape {list(right.shape[1:])}",
                "not computed" if array is None else f"shape {list(array.shape[1:])}",
            )
        else:
            with np.errstate(invalid="ignore"):
                apart = np.abs(np.asarray(array, np.float64) - np.asarray(right, np.float64))
            worst = np.unravel_index(int(np.argmax(np.nan_to_num(apart, nan=np.inf))), right.shape)
            place = f"run {worst[0]}, place {[int(index) for index in worst[1:]]}"
            shown = f"{right[worst]:.6g} at {place}", f"{array[worst]:.6g} at {place}"
        self.target.session.pool.release(outcome.value.folder)
        return shown


RUNTIMES = ("onnxruntime", "ai-edge-litert", "tensorflow", "tensorflow-cpu", "torch", "keras")
"""Distributions that run models, as the environments name them, the most telling first."""


def _amount(off: float) -> str:
    return f"{off:.2g} of its spread" if math.isfinite(off) else "values that are not numbers or another shape"
