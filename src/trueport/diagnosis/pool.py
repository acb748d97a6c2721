"""What the parameters of a stretch of the source may look like in a faithful target: as they are, or derived.

Derived are a BatchNorm's scale and shift (with the bias of the convolution before it), weights folded with a known
scale, sums of two vectors, blocks that were joined or split, and values on a coarser grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trueport.diagnosis import layouts
from trueport.diagnosis.operators import kind, number
from trueport.diagnosis.region import Inside, Parameter
from trueport.graph import Node

CLOSE = 1e-5
"""Largest difference, as a share of the largest element, that re-computing a parameter in float32 explains."""

CANCEL = 2e-6
"""The same as a share of the terms of a sum, for what is a difference of larger terms (the shift of a BatchNorm)."""

_SLOTS = {"gamma": "gamma", "weight": "gamma", "scale": "gamma", "beta": "beta", "bias": "beta", "offset": "beta"}


@dataclass(frozen=True, slots=True)
class Known:
    """An array that the source region gives. `array`: weights as [out, in, *spatial], all else as it is.

    names: the stored parameters that it comes from; how: "" as it is, else what was done; terms: magnitude of the
    terms of a sum; axes: whether the layout is known; parameter: where it was read.
    """

    array: np.ndarray
    names: tuple[str, ...]
    how: str = ""
    terms: float = 0.0
    axes: str | None = None
    parameter: Parameter | None = None
    slot: str = ""

    @property
    def label(self) -> str:
        """What it is, for people."""
        listed = ", ".join(dict.fromkeys(self.names))
        return f"{self.how} of {listed}" if self.how else listed


@dataclass
class Pool:
    """All that a stretch of the source gives."""

    raw: list[Known] = field(default_factory=list)
    scales: list[Known] = field(default_factory=list)
    vectors: list[Known] = field(default_factory=list)
    """Derived vectors: shifts, sums."""

    @property
    def everything(self) -> list[Known]:
        """Raw, then derived."""
        return [*self.raw, *self.scales, *self.vectors]


@dataclass(frozen=True, slots=True)
class Norm:
    """A BatchNorm's parameters by slot, as float64 vectors, and its epsilon. `read`: the slots that it reads itself."""

    node: Node
    slots: dict[str, np.ndarray]
    names: dict[str, str]
    epsilon: float
    read: Mapping[str, Parameter] = field(default_factory=dict)

    def scale(self, epsilon: float | None = None) -> np.ndarray:
        """gamma / sqrt(var + epsilon)."""
        return self.slots["gamma"] / np.sqrt(self.slots["var"] + (self.epsilon if epsilon is None else epsilon))


def norm_of(inside: Inside, node: Node) -> Norm | None:
    """The parameters of a BatchNorm node; a missing gamma is ones, a missing beta zeros."""
    if kind(node) != "BatchNormalization":
        return None
    found = [item for item in inside.parameters(node) if item.real and item.array.ndim == 1]
    slots: dict[str, Parameter] = {}
    if len(found) == 4:
        slots = dict(zip(("gamma", "beta", "mean", "var"), found, strict=True))
    elif len(found) >= 2:
        slots = {"mean": found[-2], "var": found[-1]}
        for item in found[:-2]:
            name = item.stored.replace("/", ".").split(".")[-1].split(":")[0]
            slots.setdefault(_SLOTS.get(name, "gamma"), item)
    if not slots:
        return None
    size = slots["var"].array.size
    arrays = {"gamma": np.ones(size), "beta": np.zeros(size)}
    arrays |= {slot: np.asarray(item.array, np.float64) for slot, item in slots.items()}
    if len({array.size for array in arrays.values()}) > 1:
        return None
    epsilon = number(node.attributes, "epsilon")
    if epsilon is None:
        epsilon = number(node.attributes, "eps")
    names = {slot: item.stored for slot, item in slots.items()}
    return Norm(node, arrays, names, 1e-5 if epsilon is None else epsilon, slots)


def norm_behind(inside: Inside, node: Node) -> Norm | None:
    """The BatchNorm that alone reads what a node gives; None where there is none."""
    readers = [inside.graph.nodes[place] for name in node.outputs for place in inside.graph.consumers.get(name, ())]
    return norm_of(inside, readers[0]) if len(readers) == 1 else None


def pool_of(inside: Inside, nodes: Sequence[Node]) -> Pool:
    """Collect what these nodes give."""
    made = Pool()
    seen: set[tuple[str, str]] = set()
    factors: list[Known] = []
    for node in nodes:
        if not inside.runs(node):
            continue
        for item in inside.parameters(node):
            if not item.real or item.array.size == 0 or (item.name, node.name) in seen:
                continue
            seen.add((item.name, node.name))
            known = raw_of(item)
            made.raw.append(known)
            if kind(node) in ("Mul", "Div") and layouts.tight(item.array).ndim <= 1:
                array = np.asarray(item.array, np.float64).ravel()
                with np.errstate(divide="ignore"):
                    factors.append(Known(1 / array if kind(node) == "Div" else array, known.names, "scale"))
    norms = [norm for node in nodes if (norm := norm_of(inside, node)) is not None]
    _derive(made, norms, factors)
    return made


def linear_behind(inside: Inside, nodes: Sequence[Node]) -> list[Node]:
    """The scale and the shift that follow right behind these nodes and are none of them."""
    known = {node.name for node in nodes}
    given = {name for node in nodes for name in node.outputs if name in inside.dynamic}
    found = []
    for node in inside.graph.nodes:
        if node.name in known or kind(node) not in ("Add", "Sub", "Mul", "BatchNormalization"):
            continue
        data = inside.data(node)
        if len(data) == 1 and data[0] in given:
            found.append(node)
            if kind(node) == "Mul":
                given.update(node.outputs)
    return found


def raw_of(parameter: Parameter) -> Known:
    """A parameter as it is, a weight of known layout turned into [out, in, *spatial]."""
    axes = layouts.axes_of(parameter)
    array = np.asarray(parameter.array, np.float64)
    if axes is not None:
        array = layouts.canonical(array, axes)
    return Known(array, (parameter.stored,), axes=axes, parameter=parameter)


def _derive(made: Pool, norms: Sequence[Norm], factors: Sequence[Known]) -> None:
    biases = [item for item in made.raw if layouts.tight(item.array).ndim == 1]
    for norm in norms:
        scale, names = norm.scale(), tuple(norm.names.values())
        made.scales.append(Known(scale, names, "BatchNorm scale"))
        product = norm.slots["mean"] * scale
        terms = np.max(np.abs(norm.slots["beta"])) + np.max(np.abs(product))
        shift = Known(norm.slots["beta"] - product, names, "BatchNorm shift", float(terms))
        made.vectors += [shift, Known(-norm.slots["mean"], names, "negated mean", 0.0)]
        made.vectors.append(Known(np.sqrt(norm.slots["var"] + norm.epsilon), names, "standard deviation"))
        for bias in biases:
            flat = bias.array.ravel()
            if flat.size == scale.size:
                moved = flat * scale
                total = float(terms + np.max(np.abs(moved)))
                made.vectors.append(
                    Known(shift.array + moved, (*bias.names, *names), "BatchNorm shift with bias", total)
                )
    made.scales += [item for item in factors if item.array.size > 1 or abs(float(item.array[0])) > 0]
    for first, second in itertools.islice(itertools.combinations(biases, 2), 200):
        one, two = first.array.ravel(), second.array.ravel()
        if one.size == two.size > 1 and first.names != second.names:
            terms = float(np.max(np.abs(one)) + np.max(np.abs(two)))
            made.vectors.append(Known(one + two, (*first.names, *second.names), "sum", terms))
    for bias, factor in itertools.islice(itertools.product(biases, factors), 200):
        if factor.array.size in (1, bias.array.size):
            made.vectors.append(Known(bias.array.ravel() * factor.array, (*bias.names, *factor.names), "scaled bias"))


def close(target: np.ndarray, source: np.ndarray, terms: float = 0.0) -> bool:
    """Whether two flat arrays are equal up to re-computation in float32."""
    if target.size != source.size or target.size == 0:
        return False
    bound = CLOSE * float(np.max(np.abs(source))) + CANCEL * terms
    with np.errstate(invalid="ignore"):
        return bool(np.max(np.abs(target.ravel() - source.ravel())) <= bound)


def factors_between(target: np.ndarray, source: np.ndarray, axis: int) -> np.ndarray | None:
    """The factor per index of `axis` by which `target` is `source`; None when it is not that alone."""
    if target.shape != source.shape or target.ndim <= axis:
        return None
    others = tuple(place for place in range(target.ndim) if place != axis)
    power = np.sum(source * source, axis=others)
    factor = np.sum(target * source, axis=others) / np.where(power == 0, 1, power)
    factor = np.where(power == 0, np.nan, factor)
    shaped = np.expand_dims(np.nan_to_num(factor), others)
    if not close(target, source * shaped, float(np.max(np.abs(target)))):
        return None
    return np.asarray(factor)


def known_factor(factor: np.ndarray, scales: Sequence[Known]) -> Known | None:
    """The scale, or product of two scales, that a factor per channel equals."""
    seen = ~np.isnan(factor)
    if not seen.any():
        return None

    def fits(array: np.ndarray) -> bool:
        if array.size not in (1, factor.size):
            return False
        wanted = np.broadcast_to(array, factor.shape)[seen]
        return bool(np.max(np.abs(factor[seen] - wanted)) <= 5e-5 * np.max(np.abs(wanted)))

    for scale in scales:
        if fits(scale.array):
            return scale
    for first, second in itertools.islice(itertools.combinations(scales, 2), 100):
        if first.array.size in (1, second.array.size) or second.array.size == 1:
            product = first.array * second.array
            if fits(product):
                return Known(product, (*first.names, *second.names), "product of two scales")
    return None


def is_block(t: np.ndarray, s: np.ndarray) -> bool:
    """Whether t is a whole slice of s along one axis."""
    axes = [axis for axis in range(t.ndim) if t.shape[axis] != s.shape[axis]]
    if len(axes) != 1 or s.shape[axes[0]] % t.shape[axes[0]]:
        return False
    count = s.shape[axes[0]] // t.shape[axes[0]]
    return any(close(t, block) for block in np.split(s, count, axes[0]))


def joined(mine: Known, raw: Sequence[Known]) -> Known | None:
    """A block of a larger source array, or several of them end to end, in the order in which the source has them."""
    t = mine.array
    for known in raw:
        s = known.array
        if s.size > t.size and s.ndim == t.ndim and is_block(t, s):
            return Known(t, known.names, "a block", axes=known.axes)
    for axis in range(min(t.ndim, 2)):
        names: list[str] = []
        filled = 0
        for known in raw:
            s = known.array
            if s.ndim != t.ndim or s.shape[axis] > t.shape[axis] - filled or s.size >= t.size:
                continue
            part = np.take(t, range(filled, filled + s.shape[axis]), axis)
            if part.shape == s.shape and close(part, s):
                names += known.names
                filled += s.shape[axis]
        if filled == t.shape[axis] and filled:
            return Known(t, tuple(names), "joined", axes=mine.axes)
    return None


def is_bias(known: Known) -> bool:
    """Whether an array is added to each channel: a bias, a shift, a vector of an addition."""
    if known.how:
        return "shift" in known.how or known.how == "sum"
    item = known.parameter
    if item is None or layouts.tight(item.array).ndim != 1:
        return False
    if kind(item.node) in ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"):
        return True
    return kind(item.node) in ("Add", "Sub")


def slots_of(inside: Inside, node: Node) -> dict[str, np.ndarray]:
    """The parameters of a normalisation by slot: gamma, beta, and of a BatchNorm mean and var."""
    norm = norm_of(inside, node)
    if norm is not None:
        return norm.slots
    return {slot: np.asarray(item.array, np.float64) for slot, item in slot_parameters(inside, node).items()}


def slot_parameters(inside: Inside, node: Node) -> dict[str, Parameter]:
    """The parameters that a normalisation reads, by slot."""
    norm = norm_of(inside, node)
    if norm is not None:
        return dict(norm.read)
    floats = [item for item in inside.parameters(node) if item.real and item.array.ndim == 1]
    if len(floats) != 2 or floats[0].array.size != floats[1].array.size:
        return {}
    return {"gamma": floats[0], "beta": floats[1]}


def exchanged(mine: Mapping[str, np.ndarray], its: Mapping[str, np.ndarray]) -> tuple[str, str] | None:
    """The two slots of a normalisation whose parameters stand in each other's place; None where none do."""
    for first, second in (("mean", "var"), ("gamma", "beta"), ("gamma", "var"), ("beta", "mean")):
        if first not in mine or second not in mine or close(its[first], its[second]):
            continue
        crossed = close(np.abs(mine[first]), np.abs(its[second])) and close(np.abs(mine[second]), np.abs(its[first]))
        if crossed and not close(mine[first], its[first]):
            return first, second
    return None
