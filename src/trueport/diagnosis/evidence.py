"""Which node of a finding's region is to be blamed, and for what: every rule weighs, the heaviest wins.

Weights follow what was measured on planted faults: a parameter or an attribute that is not the source's weighs most,
then operators that the source does not have; movement operators and nodes that compute nothing from the inputs last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueport.align.types import Alignment
from trueport.diagnosis import (
    attributes,
    inputs,
    mismatches,
    parameters,
    precision,
    preparation,
    recurrent,
    scalars,
    structure,
)
from trueport.diagnosis.operators import ARITHMETIC, activation, kind, moves
from trueport.diagnosis.region import Inside
from trueport.diagnosis.types import Cause, Evidence, Finding
from trueport.graph import FINE, Node
from trueport.tracing import Traced

ATTRIBUTE = 2.6
"""An attribute of a paired operator that differs: about as much as a parameter that is unexplained."""

RESHAPED = -0.8
"""Added where the operator reads data of another size than its partner: something before it is wrong already."""

NARROWED = 2.2
"""A cast or quantisation that the source does not have."""

LOST = 2.5
"""An operator whose parameter has no effect, where the source's has."""

INPUT = 3.0
FALLBACK = 0.05
"""Of a node against which nothing speaks but that it stands in the region."""

PRODUCER = 0.2
"""Added to the node that gives the value at which the fault was healed."""

EXPLAINED = -0.1
MOVES = -0.3
STATIC = -5.0
"""Added to nodes whose parameters are all explained; that only move elements; that compute nothing from the inputs."""

MORE = 0.05
"""Share of the weight of further evidence against the same node that is added."""

REDUCTIONS = {
    "LayerNormalization": ("ReduceMean",),
    "LogSoftmax": ("ReduceMax", "ReduceSum"),
    "Softmax": ("ReduceMax", "ReduceSum"),
}
"""Kind -> the reductions that it consists of, along its own axis."""

MOST_ATTRIBUTES = 4
"""Attributes that may differ in a pair of operators that is believed; where more do, they are not the same operator."""


@dataclass(frozen=True, slots=True)
class _Point:
    """One thing that speaks against a node."""

    node: str
    cause: Cause
    what: str
    source_value: Any
    target_value: Any
    weight: float
    source_nodes: tuple[str, ...] = ()
    parameter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A finding's nodes on both sides, and the parameters that they read."""

    stretch: structure.Stretch
    region: parameters.Region


def look(
    finding: Finding, source: Traced, target: Traced, alignment: Alignment, *, precision: str = "float32"
) -> Look | None:
    """Gather what is to be weighed; None where no node of the target stands in the region."""
    ours, theirs = Inside(source), Inside(target)
    region = theirs.nodes(finding.region)
    if not region:
        producer = target.graph.producer(finding.target)
        region = (producer,) if producer is not None else ()
    if not region:
        return None
    mine = ours.whole(finding.source_region)
    stretch = structure.Stretch(ours, theirs, mine, region, alignment, finding)
    region_of = region
    if finding.kind == "missing":  # the operators beside the gap are not those that are missing
        region_of = tuple(node for node in region if _idle(node, theirs, alignment))
    named = frozenset(finding.source_region)
    known = parameters.Region(ours, theirs, mine, region_of, alignment, precision, named)
    return Look(stretch=stretch, region=known)


def examine(
    finding: Finding, source: Traced, target: Traced, alignment: Alignment, *, precision: str = "float32"
) -> tuple[Evidence, ...]:
    """Weigh every node of a finding's region, heaviest first; at least one. `precision`: the declared one of the target."""
    if finding.kind == "input" or finding.target in target.graph.inputs:
        return (_input(finding, source, target),)
    seen = look(finding, source, target, alignment, precision=precision)
    if seen is None:
        return (_nowhere(finding),)
    stretch, known = seen.stretch, seen.region
    ours, theirs, mine, region, region_of = stretch.source, stretch.target, stretch.ours, stretch.theirs, known.theirs
    points = [*_of_structure(stretch), *_of_preparation(stretch), *_of_precision(ours, theirs, mine, region, precision)]
    if finding.kind == "missing":
        points += _of_parameters(known)
        points += [_neutral(node, theirs) for node in region_of]
        points += _of_scalars(scalars.epsilons(ours, theirs, mine, region))
        points += _of_attributes(stretch, {}, frozenset(REDUCTIONS))
    elif finding.kind != "extra" and (finding.kind not in ("shuffle", "layout") or known.pool.raw):
        points += _of_parameters(known)
        points += _of_scalars(scalars.odd(ours, theirs, mine, region))
        points += _of_scalars(scalars.epsilons(ours, theirs, mine, region))
        points += _of_attributes(stretch, known.partners)
        points += _of_bounds(stretch)
    return _ranked(finding, theirs, region, points, mine, precision)


def _idle(node: Node, inside: Inside, alignment: Alignment) -> bool:
    """Whether a node has parameters and gives what it was given: a bias of zeros, a scale of ones."""

    def twin(name: str) -> str | None:
        match = alignment.matches.get(name)
        return None if match is None or not match.ok else alignment.alike.get(match.source, match.source)

    data = inside.data(node)
    if moves(node) or not data or len(data) == len([name for name in node.inputs if name]):
        return False
    given = {twin(name) for name in data} - {None}
    return any(twin(name) in given for name in node.outputs)


def _neutral(node: Node, inside: Inside) -> _Point:
    """A node that has a parameter and does nothing with it, where the source does something: its parameter was lost."""
    name = next(name for name in node.inputs if name and name not in inside.data(node))
    what = f"parameter '{name}' of {kind(node)} has no effect here, and the source's has"
    return _Point(node.name, Cause.PARAMETERS, what, "a parameter that counts", "no effect", LOST, (), name)


# -- the rules ----------------------------------------------------------------------------------------------------------


def _of_parameters(region: parameters.Region) -> Iterable[_Point]:
    for fault in region.faults():
        yield _Point(
            fault.node.name,
            fault.cause,
            fault.what,
            fault.source_value,
            fault.target_value,
            fault.weight,
            fault.source_nodes,
            fault.parameter,
        )


def _of_scalars(found: Iterable[scalars.Odd]) -> Iterable[_Point]:
    for odd in found:
        yield _Point(
            odd.node.name,
            odd.cause,
            odd.what,
            odd.source_value,
            odd.target_value,
            odd.weight,
            odd.source_nodes,
            odd.parameter,
        )


def _of_preparation(stretch: structure.Stretch) -> Iterable[_Point]:
    done = preparation.prepared(stretch.source, stretch.target, stretch.theirs, stretch.alignment, stretch.finding)
    for place, node in enumerate(() if done is None else done.nodes):
        if done is not None:
            weight = INPUT - 0.1 * place
            yield _Point(node.name, Cause.INPUTS, done.what, done.source_value, done.target_value, weight)


def _of_attributes(
    stretch: structure.Stretch, partners: Mapping[str, frozenset[str]], only: frozenset[str] | None = None
) -> Iterable[_Point]:
    """`only`: the kinds of the target's operators to look at."""
    for ours, theirs, found in paired(stretch, partners):
        if only is not None and (kind(theirs) not in only or kind(ours) not in REDUCTIONS[kind(theirs)]):
            continue
        if not found or len(found) > MOST_ATTRIBUTES:
            continue
        owner = found[0].node if len(found) == 1 and found[0].node in {node.name for node in stretch.theirs} else None
        names = ", ".join(item.name for item in found)
        verb = "differ" if len(found) > 1 else "differs"
        its = {item.name: item.source_value for item in found}
        mine = {item.name: item.target_value for item in found}
        single = len(found) == 1
        yield _Point(
            owner or theirs.name,
            Cause.HYPERPARAMETERS,
            f"{names} of {kind(theirs)} {verb} from the source's",
            f"{names}: {_worded(its[names])}" if single else _listed(its),
            f"{names}: {_worded(mine[names])}" if single else _listed(mine),
            ATTRIBUTE + 0.1 * min(len(found), 3) - 0.1 + (0.0 if _same_sizes(stretch, ours, theirs) else RESHAPED),
            (ours.name,),
        )


def _same_sizes(stretch: structure.Stretch, ours: Node, theirs: Node) -> bool:
    """Whether both operators read data of the same sizes; where not, an operator before them changed the shape."""
    sizes = []
    for inside, node in ((stretch.source, ours), (stretch.target, theirs)):
        data = inside.data(node)
        shape = inside.shape(data[0]) if data else None
        if shape is None:
            return True
        sizes.append(math.prod(shape))
    return sizes[0] == sizes[1]


def _of_bounds(stretch: structure.Stretch) -> Iterable[_Point]:
    """Activations that cut values off, fused or not, compared in order by what they let through."""
    mine = mismatches.bounds(stretch.target, stretch.theirs)
    for fine in (False, True):
        its = mismatches.bounds(stretch.source, [node for node in stretch.ours if node.name.startswith(FINE) == fine])
        if not its or len(its) != len(mine):
            continue
        for (ours, wanted), (theirs, got) in zip(its, mine, strict=True):
            if wanted != got:
                what = f"the activation of {kind(theirs)} '{theirs.shown}' lets other values through than the source's"
                before, after = (f"{low:g} to {high:g}" for low, high in (wanted, got))
                yield _Point(theirs.name, Cause.HYPERPARAMETERS, what, before, after, ATTRIBUTE, (ours.name,))
        return


Pairing = tuple[Node, Node, list[mismatches.Mismatch]]


def paired(stretch: structure.Stretch, partners: Mapping[str, frozenset[str]]) -> list[Pairing]:
    """Operators of one kind on both sides, with the attributes in which they differ.

    A node's partner is the one that has its parameters; else the one at its place among those of the kind, where both
    sides have as many; else the one from which it differs least.
    """
    found: list[Pairing] = []
    by_kind: dict[str, list[Node]] = {}
    for node in stretch.theirs:
        if kind(node) in attributes.TABLE and stretch.target.runs(node):
            by_kind.setdefault(kind(node), []).append(node)
    for name, theirs in by_kind.items():
        ours = [node for node in stretch.ours if kind(node) == name and stretch.source.runs(node)]
        aligned = _in_order(ours, theirs)
        for place, node in enumerate(theirs):
            own = [other for other in ours if other.name in partners.get(node.name, frozenset())]
            candidates = own or ([pair[place] for pair in aligned] if aligned else ours)
            compared = [
                (other, mismatches.mismatches(stretch.source, stretch.target, other, node, stretch.alignment))
                for other in candidates
            ]
            compared = compared or _taken_apart(stretch, node)
            if compared:
                other, differing = min(compared, key=lambda item: len(item[1]))
                if len(ours) != len(theirs):
                    differing = _telling(stretch, (ours, theirs), (other, node), differing)
                found.append((other, node, differing))
    return found


def _telling(
    stretch: structure.Stretch,
    kinds: tuple[Sequence[Node], Sequence[Node]],
    pair: tuple[Node, Node],
    differing: list[mismatches.Mismatch],
) -> list[mismatches.Mismatch]:
    """Leave out what follows from another number of operators: one in both directions for two, one window for several,
    the windows of operators that read different values."""
    ours, theirs = kinds
    several = mismatches.windows(stretch.source, ours) == mismatches.windows(stretch.target, theirs)
    if not several:
        mine, its = stretch.target.data(pair[1])[:1], stretch.source.data(pair[0])[:1]
        several = not any(name in structure.stands_for(stretch, value) for value in mine for name in its)
    return [item for item in differing if item.name != "direction" and not (item.name == "window" and several)]


def _taken_apart(stretch: structure.Stretch, node: Node) -> list[tuple[Node, list[mismatches.Mismatch]]]:
    """The axis of an operator that the source computes step by step: that of its reductions."""
    steps = [other for other in stretch.ours if kind(other) in REDUCTIONS.get(kind(node), ())]
    return [
        (other, found)
        for other in steps
        if (found := mismatches.axis_of_reduction(stretch.source, stretch.target, other, node, stretch.alignment))
        is not None
    ]


def _in_order(ours: Sequence[Node], theirs: Sequence[Node]) -> list[list[Node]]:
    """The source's nodes at each granularity that has as many as the target."""
    split = [[node for node in ours if node.name.startswith(FINE) == fine] for fine in (False, True)]
    return [nodes for nodes in split if len(nodes) == len(theirs)]


def _of_precision(
    source: Inside, target: Inside, ours: Sequence[Node], theirs: Sequence[Node], declared: str
) -> Iterable[_Point]:
    for item in precision.narrowings(source, target, ours, theirs):
        if not precision.covered(str(item.target_value), declared):
            yield _Point(item.node.name, Cause.PRECISION, item.what, item.source_value, item.target_value, NARROWED)


def _of_structure(stretch: structure.Stretch) -> Iterable[_Point]:
    for odd in structure.oddities(stretch):
        cause = Cause.STRUCTURE
        if odd.weight <= structure.LOST and _is_fused(stretch, odd):
            cause = Cause.HYPERPARAMETERS
        yield _Point(odd.node.name, cause, odd.what, odd.source_value, odd.target_value, odd.weight, odd.source_nodes)


def _is_fused(stretch: structure.Stretch, odd: structure.Oddity) -> bool:
    """Whether what is odd is a fused activation, which is an attribute of its operator."""
    fused = activation(odd.node)
    return fused is not None and f" {fused} " in f" {odd.what} " and fused != kind(odd.node)


# -- ranking --------------------------------------------------------------------------------------------------------------


def _ranked(
    finding: Finding,
    target: Inside,
    region: Sequence[Node],
    points: Sequence[_Point],
    ours: Sequence[Node],
    precision: str,
) -> tuple[Evidence, ...]:
    against: dict[str, list[_Point]] = {node.name: [] for node in region}
    for point in points:
        against.setdefault(point.node, []).append(point)
    producer = target.graph.producer(finding.target)
    found = []
    for node in region:
        listed = sorted(against[node.name], key=lambda point: -point.weight)
        weight = listed[0].weight + MORE * sum(point.weight for point in listed[1:]) if listed else FALLBACK
        weight += _standing(target, node, bool(listed))
        weight += PRODUCER if producer is not None and producer.name == node.name else 0.0
        weight += finding.prior.get(node.name, 0.0)
        found.append(_evidence(node, listed, weight, ours, precision))
    return tuple(sorted(found, key=lambda item: -item.weight))


def _standing(target: Inside, node: Node, accused: bool) -> float:
    """What a node's kind adds or takes away, whatever it is accused of."""
    if not target.runs(node):
        return STATIC
    if accused:
        return 0.0
    if moves(node) or kind(node) in ("Identity", "Pad"):
        return MOVES
    if (
        kind(node) in recurrent.KINDS
    ):  # its direction, and what it does beside its weights, are seldom shown by both sides
        return 0.0
    return EXPLAINED if any(parameters.counts(item) for item in target.parameters(node)) else 0.0


def _unexplained(node: Node, ours: Sequence[Node], precision: str) -> Cause:
    """What is left where parameters and attributes are the source's: its grid, another operator, or an attribute unseen."""
    if precision.startswith("int8"):
        return Cause.PRECISION
    alike = kind(node) in recurrent.KINDS or any(kind(other) == kind(node) for other in ours)
    return Cause.STRUCTURE if moves(node) or kind(node) in ARITHMETIC or not alike else Cause.HYPERPARAMETERS


def _evidence(node: Node, listed: Sequence[_Point], weight: float, ours: Sequence[Node], precision: str) -> Evidence:
    if not listed:
        return Evidence(
            node=node.name,
            source_nodes=tuple(other.name for other in ours if kind(other) == kind(node))[:2],
            cause=_unexplained(node, ours, precision),
            what=f"{kind(node)} '{node.shown}' lies where the difference begins; its parameters and the attributes that can be compared are the source's",
            source_value=None,
            target_value=None,
            weight=weight,
        )
    first = listed[0]
    return Evidence(
        node=node.name,
        source_nodes=first.source_nodes,
        cause=first.cause,
        what=first.what,
        source_value=first.source_value,
        target_value=first.target_value,
        weight=weight,
        parameter=first.parameter,
    )


# -- without a region ------------------------------------------------------------------------------------------------------


def _input(finding: Finding, source: Traced, target: Traced) -> Evidence:
    """What was done to an input on one side that was not done on the other."""
    what = f"input '{finding.target}' is not the source's input"
    ours: Any = finding.source
    theirs: Any = finding.target
    given = source.values.get(finding.source) if finding.source is not None else None
    read = target.values.get(finding.target)
    if given is not None and read is not None:
        told = inputs.explain(np.asarray(given), np.asarray(read))
        if told is not None:
            what = f"input '{finding.target}' is the source's '{finding.source}' changed: {told}"
        ours, theirs = (
            f"{name}: {_described(np.asarray(value))}"
            for name, value in ((finding.source, given), (finding.target, read))
        )
    return Evidence(
        node=finding.region[0] if finding.region else finding.target,
        source_nodes=() if finding.source is None else (finding.source,),
        cause=Cause.INPUTS,
        what=what,
        source_value=ours,
        target_value=theirs,
        weight=INPUT,
    )


def _described(array: np.ndarray) -> str:
    shape = "x".join(map(str, array.shape[1:])) or "scalar"
    if array.dtype.kind not in "fiu" or array.size == 0:
        return f"{shape} {array.dtype}"
    return f"{shape}, {float(np.min(array)):.4g} to {float(np.max(array)):.4g}, mean {float(np.mean(array)):.4g}"


def _nowhere(finding: Finding) -> Evidence:
    return Evidence(
        node=finding.target,
        source_nodes=() if finding.source is None else (finding.source,),
        cause=Cause.STRUCTURE,
        what=f"'{finding.target}' is the first value that is not the source's; no operator of the target computes it",
        source_value=finding.source,
        target_value=finding.target,
        weight=FALLBACK,
    )


def _worded(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {_worded(value)}" for name, value in values.items())
