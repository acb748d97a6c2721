"""QZ, WB: weights that are the source's rounded, or folded otherwise, all over the model are set right all at once.

Rewrite: `set-parameter` of the weights of every layer that are a source layer's (plain, or with the BatchNorm behind it
folded in) put on a grid of int8 or float16, or times a factor per channel; of the bias as well where the factor tells
of another fold. That is what a model looks like whose weights were rounded and written back as floats without a word,
or folded with another epsilon: there is one fault, and layer by layer the search would meet it as often as there are
layers. Weights that are merely near in most layers are another training's, and are left alone.
Does not apply where fewer than FEW layers differ so, where a declared precision explains the rounding, or where a layer
comes near none of the source's, or near several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trueport.diagnosis import differences, layouts, pool, precision
from trueport.diagnosis.operators import kind
from trueport.diagnosis.region import Inside, Parameter
from trueport.diagnosis.types import Cause
from trueport.graph import Node
from trueport.repairs.rules._arranged import Option
from trueport.repairs.rules._stored import place_of
from trueport.repairs.rules.parameters import setting
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "QZ everywhere"
CAUSES = frozenset({Cause.PARAMETERS, Cause.PRECISION})

FEW = 3
"""Layers from which a fault counts as the whole model's; fewer are as many faults, for the other rules."""

HALF = 0.5
"""Share of the layers that differ which must tell how: then the others, of too few elements to tell, have the same fault."""

NEAR = 0.15
"""Distance up to which weights are a layer's own, changed a little: an int8 grid leaves 0.01 to 0.05, unrelated weights
of one size are 1.4 apart."""

APART = 3.0
"""Times that the next layer must be further away."""

FOLDED = "with other factors per channel"
"""What a fold with another epsilon leaves."""

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layer of a faithful target may hold. weights: [out, in, *spatial]; shift: what is added per channel (None:
    nothing); names: the stored parameters behind the weights; terms: magnitude of the terms of the shift."""

    weights: np.ndarray
    shift: np.ndarray | None
    names: tuple[str, ...]
    how: str = ""
    terms: float = 0.0


def recognised(ours: Inside, theirs: Inside, *, rounded: bool = False) -> float:
    """Share of the target's layers whose weights are a layer's of the source: equal, rounded, or folded otherwise.

    rounded: a declared precision rounds them all, so that being near is enough.
    """
    known = _by_shape(ours)
    arrays = [pool.raw_of(weights).array for _, weights in _weighted(theirs)]

    def held(mine: np.ndarray) -> bool:
        near = [
            layer.weights
            for layer in known.get(mine.shape, ())
            if differences.distance(mine, layer.weights)
            < NEAR  # the next layer of a shape is more than three times as far
        ]
        return any(rounded or pool.close(mine, wanted) or bool(_fault(mine, wanted)) for wanted in near)

    return sum(map(held, arrays)) / len(arrays) if arrays else 0.0


def _by_shape(inside: Inside) -> dict[tuple[int, ...], list[Layer]]:
    known: dict[tuple[int, ...], list[Layer]] = {}
    for layer in _layers(inside):
        known.setdefault(layer.weights.shape, []).append(layer)
    return known


def _fault(mine: np.ndarray, wanted: np.ndarray) -> str:
    """How weights came of others that are nearly the same: FOLDED, or the name of a grid; empty where that cannot be told."""
    return FOLDED if pool.factors_between(mine, wanted, 0) is not None else precision.grid_of(mine, wanted) or ""


def propose(scene: Scene) -> list[Proposal] | str:
    """One proposal with every edit, or why there is none."""
    if scene.precision != "float32":
        return f"the declared precision ({scene.precision}) rounds the weights of all layers"
    known = _by_shape(scene.ours)
    found: list[tuple[Node, Parameter, Layer, str]] = []
    for node, weights in _weighted(scene.theirs):
        mine = pool.raw_of(weights).array
        twin = _nearest(mine, known.get(mine.shape, ()))
        if twin is not None and not pool.close(mine, twin.weights):
            found.append((node, weights, twin, _fault(mine, twin.weights)))
    proven = [fault for *_, fault in found if fault]
    if len(proven) < max(FEW, HALF * len(found)):
        return f"{len(proven)} layers are the source's rounded or folded otherwise; that is no fault of the whole model"
    usual = max(
        proven, key=proven.count
    )  # of few elements nobody can tell whether they lie on a grid: they share its fault
    edits: dict[tuple[str, str], Edit] = {}
    for node, weights, twin, fault in found:
        for edit in _edits(scene, node, weights, twin, fault or usual):
            edits.setdefault((edit.change["node"], edit.change["parameter"]), edit)
    return [Proposal(edits=tuple(edits.values()))]


def _weighted(inside: Inside) -> Iterator[tuple[Node, Parameter]]:
    """The layers of a model, each with its weights, where it has one array of them in a known layout."""
    for node in inside.graph.nodes:
        if kind(node) not in _LAYERS or not inside.runs(node):
            continue
        weights = [item for item in inside.parameters(node) if item.real and layouts.axes_of(item) is not None]
        if len(weights) == 1:
            yield node, weights[0]


def _layers(inside: Inside) -> Iterator[Layer]:
    """Every layer of the source as it is, and with the BatchNorm behind it folded in."""
    for node, item in _weighted(inside):
        weights = pool.raw_of(item).array
        bias = _vector(inside, node, len(weights))
        last = node
        if bias is None:
            after = _sole_reader(inside, node)
            bias = None if after is None or kind(after) != "Add" else _vector(inside, after, len(weights))
            last = node if bias is None or after is None else after
        shift = None if bias is None else bias.array.astype(np.float64).ravel()
        yield Layer(weights, shift, (item.stored,))
        behind = _behind(inside, last, len(weights))
        if behind is None:
            continue
        scale, added, centre = behind
        product = ((0.0 if shift is None else shift) - centre) * scale
        terms = float(np.max(np.abs(added)) + np.max(np.abs(product)))
        folded = weights * scale.reshape(-1, *[1] * (weights.ndim - 1))
        yield Layer(folded, added + product, (item.stored,), "folded weights", terms)


def _behind(inside: Inside, node: Node, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Scale, shift, and what is taken away before the scale, of the BatchNorm behind a layer: one operator, or a product
    and a sum."""
    norm = pool.norm_behind(inside, node)
    if norm is not None:
        return (norm.scale(), norm.slots["beta"], norm.slots["mean"]) if norm.slots["var"].size == size else None
    product = _sole_reader(inside, node)
    scale = None if product is None or kind(product) != "Mul" else _vector(inside, product, size)
    total = None if product is None or scale is None else _sole_reader(inside, product)
    shift = None if total is None or kind(total) != "Add" else _vector(inside, total, size)
    if scale is None or shift is None:
        return None
    return np.asarray(scale.array, np.float64).ravel(), np.asarray(shift.array, np.float64).ravel(), np.zeros(size)


def _sole_reader(inside: Inside, node: Node) -> Node | None:
    places = [place for name in node.outputs for place in inside.graph.consumers.get(name, ())]
    return inside.graph.nodes[places[0]] if len(places) == 1 else None


def _vector(inside: Inside, node: Node, size: int) -> Parameter | None:
    """The one vector with an element per channel that a node adds."""
    found = [
        item for item in inside.parameters(node)
        if item.real and item.array.size == size and layouts.tight(item.array).ndim == 1 and layouts.axes_of(item) is None
    ]  # fmt: skip
    return found[0] if len(found) == 1 else None


def _nearest(mine: np.ndarray, layers: Sequence[Layer]) -> Layer | None:
    """The layer that these weights come near, where the next one is far away or holds the same."""
    ranked = sorted(((differences.distance(mine, layer.weights), place) for place, layer in enumerate(layers)))
    if not ranked or not ranked[0][0] < NEAR:
        return None
    best = layers[ranked[0][1]]
    for distance, place in ranked[1:]:
        other = layers[place]
        if distance < APART * ranked[0][0] and other.names != best.names:
            same = pool.close(other.weights, best.weights) and _equal(other.shift, best.shift)
            if not same:
                return None
    return best


def _equal(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other or one is None or other is None or pool.close(one, other, float(np.max(np.abs(other))))


def _edits(scene: Scene, node: Node, weights: Parameter, twin: Layer, fault: str) -> Iterator[Edit]:
    """What puts a layer's weights right, and its bias where another fold has moved it."""
    axes = layouts.axes_of(weights)
    if axes is None:
        return
    label = " ".join(filter(None, [twin.how, ", ".join(twin.names)]))
    reason = f"all over the model weights are the source's, {'' if fault == FOLDED else 'rounded to '}{fault}"
    yield from _set(scene, weights, layouts.native_of(twin.weights, axes, weights.array.shape), label, reason)
    bias = _vector(scene.theirs, node, len(twin.weights))
    if fault != FOLDED or bias is None or twin.shift is None or pool.close(bias.array, twin.shift, twin.terms):
        return
    if differences.distance(np.asarray(bias.array, np.float64), twin.shift) < NEAR:
        yield from _set(scene, bias, np.reshape(twin.shift, bias.array.shape), f"shift beside {label}", reason)


def _set(scene: Scene, item: Parameter, array: np.ndarray, label: str, reason: str) -> Iterator[Edit]:
    place = place_of(scene.theirs, item)
    if place is not None:
        where = replace(place, grid="new") if place.narrow else place
        yield setting(scene, item, where, Option(array, label), reason, NAME)
