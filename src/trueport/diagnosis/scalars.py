"""Scalar constants of arithmetic (an epsilon, a factor, a threshold): whether each stands in the source too, as it is or derived."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trueport.diagnosis.operators import kind, number
from trueport.diagnosis.region import Inside, Parameter
from trueport.diagnosis.types import Cause
from trueport.graph import Node

KINDS = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Clip", "Greater", "Less", "Where", "Mod", "PRelu",
    "GreaterOrEqual", "LessOrEqual"
})  # fmt: skip
"""Kinds in which a scalar constant is part of the computation."""

CLOSE = 2e-5
"""Relative difference that writing a number in float32 and computing with it explains."""

ODD, ORPHAN, EPSILON = 2.1, 0.7, 2.9
"""Weights: a scalar that the source has otherwise; one that the source region gives no reason for; an epsilon, which
weighs more than what follows from it: that an operator seems missing, or to have no effect."""

LARGEST_EPSILON = 0.1

_FAR = math.log(3)
"""Logarithm of the factor up to which a number may have been meant for another."""

_USUAL = (
    *(0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 0.5, 0.25, 1 / 6, 1 / 3, 0.2, 127.5, 255.0, 1 / 255),
    *(math.sqrt(2), math.sqrt(0.5), math.sqrt(2 / math.pi), math.sqrt(8 / math.pi), 0.044715, 0.0356774, 1.702),
    *(math.pi, math.e, math.log(2), 1.6732632423543772, 1.0507009873554805, 1e-12, 1e-7, 3.4028234663852886e38),
)
"""Numbers that decompositions of activations bring along."""


@dataclass(frozen=True, slots=True)
class Odd:
    """A scalar that is not the source's."""

    node: Node
    cause: Cause
    what: str
    source_value: Any
    target_value: Any
    weight: float
    source_nodes: tuple[str, ...]
    parameter: str | None
    number: float
    """What the target has."""
    wanted: float | None = None
    """The source's number that it was taken for."""


@dataclass(frozen=True, slots=True)
class _Seen:
    value: float
    node: Node
    stored: str | None


def odd(source: Inside, target: Inside, ours: Sequence[Node], theirs: Sequence[Node]) -> list[Odd]:
    """The scalars of the target region that the source region does not explain."""
    given, read = _scalars(source, ours), _scalars(target, theirs)
    known = [*_derived(seen.value for seen in given), *_sizes(source, ours)]
    taken = [other.value for other in read]
    found = []
    for seen in read:
        if _has(known, seen.value):
            continue
        free = [other for other in given if not _has(_derived([other.value]), *taken) and kind(other.node) in KINDS]
        free = [other for other in free if _comparable(seen.value, other.value)]
        if free:
            nearest = min(
                free,
                key=lambda other: (kind(other.node) != kind(seen.node), abs(math.log(abs(seen.value / other.value)))),
            )
            what = f"the constant of {kind(seen.node)} '{seen.node.shown}' is {seen.value:.6g} where the source has {nearest.value:.6g}"
            cause = Cause.HYPERPARAMETERS if seen.stored is None else Cause.PARAMETERS
            names = (nearest.node.name,)
            found.append(
                Odd(
                    seen.node,
                    cause,
                    what,
                    nearest.value,
                    seen.value,
                    ODD,
                    names,
                    seen.stored,
                    seen.value,
                    nearest.value,
                )
            )
        elif not _has(_USUAL, seen.value, -seen.value) and not _epsilon_like(given, seen):
            what = (
                f"the constant {seen.value:.6g} of {kind(seen.node)} '{seen.node.shown}' is none of the source's here"
            )
            found.append(Odd(seen.node, Cause.PARAMETERS, what, None, seen.value, ORPHAN, (), seen.stored, seen.value))
    return found


def inner(source: Inside, ours: Sequence[Node], node: Node, value: float, stored: str) -> Odd | None:
    """A number inside the body of a loop that the source region does not give and nobody writes down; None for others."""
    known = [*_derived(other.value for other in _scalars(source, ours)), *_sizes(source, ours), *_USUAL]
    if _has(known, value, -value):
        return None
    what = f"the constant {value:.6g} inside {kind(node)} '{node.shown}' is none of the source's here"
    return Odd(node, Cause.PARAMETERS, what, None, value, ORPHAN, (), stored, value)


def likely(source: Inside, ours: Sequence[Node], seen: Odd) -> list[float]:
    """Numbers that the source gives for one of the target's, the likeliest first: what it was taken for, as it is or
    derived; other constants and sizes of the source region; what decompositions bring along."""
    given = [other.value for other in _scalars(source, ours)]

    def far(value: float) -> float:
        return abs(math.log(value / seen.number)) if value * seen.number > 0 else math.inf

    found: list[float] = []
    wanted = [] if seen.wanted is None else [seen.wanted]
    for group in (wanted, _derived(wanted), _derived(given), _sizes(source, ours), _USUAL):
        for value in sorted(group, key=far):
            meant = group is wanted or far(value) < _FAR
            if meant and not _has([*found, seen.number], value):
                found.append(value)
    return found


def epsilons(source: Inside, target: Inside, ours: Sequence[Node], theirs: Sequence[Node]) -> list[Odd]:
    """Guards against division by zero that the source has otherwise, as an attribute or as a constant before a root."""
    given, read = _guards(source, ours), _guards(target, theirs)
    free = [other for other in given if not _has([other.value], *(seen.value for seen in read))]
    found = []
    for seen in read:
        if _has([other.value for other in given], seen.value) or not free:
            continue
        nearest = min(free, key=lambda other: abs(math.log(seen.value / other.value)))
        what = f"the epsilon of {kind(seen.node)} '{seen.node.shown}' is {seen.value:.4g} where the source has {nearest.value:.4g}"
        told = [f"epsilon: {value:.6g}" for value in (nearest.value, seen.value)]
        names = (nearest.node.name,)
        found.append(
            Odd(
                seen.node,
                Cause.HYPERPARAMETERS,
                what,
                told[0],
                told[1],
                EPSILON,
                names,
                seen.stored,
                seen.value,
                nearest.value,
            )
        )
    return found


def _guards(inside: Inside, nodes: Sequence[Node]) -> list[_Seen]:
    """Epsilons of normalisations, and small constants added to what a root is taken of."""
    found = []
    for node in nodes:
        if not inside.runs(node):
            continue
        if kind(node).endswith("Normalization"):
            given = next((value for name in ("epsilon", "eps") if (value := number(node.attributes, name))), None)
            found += [] if given is None else [_Seen(given, node, None)]
        elif kind(node) == "Add" and _rooted(inside, node):
            stored: list[tuple[float, str | None]] = [
                (value, item.stored) for item in inside.parameters(node) if (value := _single(item)) is not None
            ]
            other = number(node.attributes, "other")
            added = stored[:1] or ([(other, None)] if other is not None else [])
            found += [_Seen(value, node, name) for value, name in added if 0 < value < LARGEST_EPSILON]
    return found


def _rooted(inside: Inside, node: Node) -> bool:
    readers = [other for other in inside.graph.nodes if set(node.outputs) & set(other.inputs)]
    return any(kind(other) in ("Sqrt", "Rsqrt", "Pow") for other in readers)


def _comparable(seen: float, other: float) -> bool:
    """Whether one number may have been written for the other: of like size, or both guards against division by zero."""
    if not seen or not other:
        return False
    return 0.02 < abs(seen / other) < 50 or max(abs(seen), abs(other)) < 0.05


def _epsilon_like(given: Sequence[_Seen], seen: _Seen) -> bool:
    """Guards against division by zero are a converter's own business."""
    return 0 < abs(seen.value) < 1e-3 and not any(0 < abs(other.value) < 1e-2 for other in given)


def _scalars(inside: Inside, nodes: Sequence[Node]) -> list[_Seen]:
    """Constants of one value, and numeric attributes."""
    found: list[_Seen] = []
    for node in nodes:
        if not inside.runs(node):
            continue
        if kind(node) in KINDS:
            for item in inside.parameters(node):
                value = _single(item)
                if value is not None:
                    found.append(_Seen(value, node, item.stored))
        found += [_Seen(float(value), node, None) for value in _numbers(node)]
    return found


_NUMBERS = (
    "other", "exponent", "scale", "value", "self", "offset", "epsilon", "eps", "alpha", "beta", "gamma", "min", "max",
    "arg1", "threshold",
)  # fmt: skip


def _numbers(node: Node) -> Iterable[float]:
    """Numeric attributes that enter the computation; those of arithmetic given as arguments ("other") too."""
    for name in _NUMBERS:
        value = node.attributes.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield float(value)


def _single(item: Parameter) -> float | None:
    if not item.real or item.array.size == 0 or (item.array.size > 1 and np.any(item.array != item.array.flat[0])):
        return None
    value = float(item.array.flat[0])
    return value if math.isfinite(value) else None


def _derived(values: Iterable[float]) -> list[float]:
    """Values, and what a converter makes of them: negated, inverted, squared, rooted."""
    found = []
    for value in values:
        found += [value, value * value]
        if value:
            found.append(1 / value)
        if value > 0:
            found += [math.sqrt(value), 1 / math.sqrt(value)]
    return [*found, *(-value for value in found)]


def _sizes(inside: Inside, nodes: Sequence[Node]) -> list[float]:
    """What depends on a size: means divide by it, attention by its root."""
    sizes: set[int] = set()
    for node in nodes:
        for name in (*node.inputs, *node.outputs):
            shape = inside.shape(name)
            sizes.update(shape or ())
            sizes.add(int(np.prod(shape)) if shape else 1)
            if shape and len(shape) > 2:
                sizes.add(int(np.prod(shape[1:-1])))
                sizes.add(int(np.prod(shape[2:])))
    found: list[float] = []
    for size in sizes - {0, 1}:
        found += [size, 1 / size, math.sqrt(size), 1 / math.sqrt(size), size**-0.25, size**0.25]
    return found


def _has(known: Iterable[float], *values: float) -> bool:
    return any(abs(value - one) <= CLOSE * max(abs(value), abs(one)) for one in known for value in values)
