"""What a converter folds into a neighbour: a BatchNorm, maybe with another epsilon than its own; a constant that is
added to a whole tensor, into the bias before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trueport.diagnosis import pool
from trueport.diagnosis.attributes import typed
from trueport.diagnosis.operators import kind, moves
from trueport.diagnosis.pool import Known, Norm
from trueport.diagnosis.region import Inside
from trueport.graph import Node


def wrong_epsilon(mine: Known, raw: Sequence[Known], norms: Sequence[Norm]) -> tuple[str, str, str] | None:
    """Which other epsilon explains a parameter: guessed from the factors, proven by folding with it.

    raw: the parameters that the source region has. Returns (what, source's value, target's value), or None.
    """
    for norm in norms:
        for guess in _epsilons(mine, raw, norm):
            scale = norm.scale(guess)
            terms = float(np.max(np.abs(norm.slots["beta"])) + np.max(np.abs(norm.slots["mean"] * scale)))
            if abs(guess / max(norm.epsilon, 1e-12) - 1) > 0.02 and any(
                pool.close(mine.array, array, terms) for array in _folds(mine, raw, norm, scale)
            ):
                usual = f"{norm.epsilon:.3g}"
                what = f"BatchNorm '{norm.node.shown}' was folded in with epsilon {guess:.3g} instead of {usual}"
                return what, f"epsilon {usual}", f"epsilon {guess:.3g}"
    return None


def _folds(mine: Known, raw: Sequence[Known], norm: Norm, scale: np.ndarray) -> Iterator[np.ndarray]:
    """What a parameter of this size would be after folding with a scale: weights, then shifts."""
    if mine.array.ndim >= 2:
        for known in raw:
            if known.array.shape == mine.array.shape and len(known.array) == scale.size:
                yield known.array * scale.reshape(-1, *[1] * (known.array.ndim - 1))
    elif mine.array.size == scale.size:
        for bias in (np.zeros(scale.size), *(known.array.ravel() for known in raw if known.array.size == scale.size)):
            yield norm.slots["beta"] + (bias - norm.slots["mean"]) * scale


def _epsilons(mine: Known, raw: Sequence[Known], norm: Norm) -> Iterator[float]:
    """The epsilons that the ratio to a parameter folded with scale 1 suggests, each rounded as people write them."""
    ones = np.ones(norm.slots["var"].size)
    for plain in _folds(mine, raw, norm, ones):
        with np.errstate(all="ignore"):
            if plain.ndim >= 2:
                factor = pool.factors_between(mine.array, plain, 0)
            else:
                factor = (mine.array.ravel() - norm.slots["beta"]) / (plain - norm.slots["beta"])
            if factor is None:
                continue
            seen = np.square(norm.slots["gamma"] / factor) - norm.slots["var"]
        seen = seen[np.isfinite(seen)]
        middle = float(np.median(seen)) if seen.size else 0.0
        if middle > 0:
            yield float(f"{middle:.1g}")
            yield float(f"{middle:.3g}")


_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def unfolded(target: Inside, nodes: Sequence[Node], raw: Sequence[Known]) -> tuple[list[Known], list[Known]]:
    """What the target's weights and the scale behind them should be where the source has the product of both as its weights.

    nodes: the target region; raw: the parameters that the source region has. Returns (weights, scales).
    """
    weights: list[Known] = []
    scales: list[Known] = []
    for node in nodes:
        if kind(node) not in _WEIGHTED or not target.runs(node):
            continue
        for mine in (pool.raw_of(item) for item in target.parameters(node) if item.real and item.array.ndim > 1):
            if any(pool.close(mine.array, known.array) for known in raw):
                continue
            for scale in _scales_behind(target, node, len(mine.array)):
                for known in raw:
                    true = _true_scale(mine.array, known.array, scale)
                    if true is not None:
                        shape = (-1, *[1] * (known.array.ndim - 1))
                        before = known.array / true.reshape(shape)
                        weights.append(
                            Known(
                                before,
                                known.names,
                                "weights before the scale",
                                axes=known.axes,
                                parameter=known.parameter,
                            )
                        )
                        scales.append(Known(true, known.names, "scale"))
    return weights, scales


def _scales_behind(inside: Inside, node: Node, channels: int) -> Iterator[np.ndarray]:
    for reader in _readers(inside, node):
        if kind(reader) == "Mul":
            for item in inside.parameters(reader):
                if item.real and item.array.size == channels > 1 and np.all(item.array):
                    yield np.asarray(item.array, np.float64).ravel()


def _true_scale(mine: np.ndarray, theirs: np.ndarray, scale: np.ndarray) -> np.ndarray | None:
    """The scale per channel that belongs to weights whose product is `theirs`; None where `mine` is not a factor of them."""
    if mine.shape != theirs.shape:
        return None
    product = mine * scale.reshape(-1, *[1] * (mine.ndim - 1))
    factor = pool.factors_between(product, theirs, 0)
    if factor is not None and np.all(np.isfinite(factor)) and np.all(factor):
        return scale if pool.close(product, theirs) else scale / factor
    sizes, wanted = (np.sqrt(np.sum(np.square(array.reshape(len(array), -1)), axis=1)) for array in (product, theirs))
    return scale if float(np.sum(np.abs(sizes - wanted))) < 0.5 * float(np.sum(wanted)) else None


@dataclass(frozen=True, slots=True)
class Absorbed:
    """A constant that the source added to a bias and the target adds in a node of its own.

    equal: both are the same number. attribute: it is one of the node's attributes, else a parameter.
    """

    node: Node
    what: str
    source_value: float
    target_value: float
    equal: bool
    attribute: bool


def absorbed(target: Inside, node: Node, mine: Known, theirs: Known) -> Absorbed | None:
    """The node behind `node` that adds what makes the source's bias of the target's; None where no one number does."""
    t, s = mine.array.ravel(), theirs.array.ravel()
    if t.size != s.size or t.size < 2 or np.squeeze(mine.array).ndim != 1:
        return None
    added = float(np.mean(s - t))
    size = max(float(np.max(np.abs(s))), float(np.max(np.abs(t))))
    if abs(added) <= 1e-4 * size or float(np.max(np.abs(s - t - added))) > pool.CLOSE * size:
        return None
    for reader in _readers(target, node):
        own = _added(target, reader)
        if own is not None:
            value, attribute = own
            what = f"{kind(reader)} '{reader.shown}' adds {value:.6g} where the source adds {added:.6g} to the bias before it"
            equal = abs(value - added) <= 2 * pool.CLOSE * size
            return Absorbed(reader, what, float(f"{added:.6g}"), float(f"{value:.6g}"), equal, attribute)
    return None


def _readers(inside: Inside, node: Node) -> Iterator[Node]:
    """The nodes that compute with what a node gives, looked for through what only hands it on."""
    front = list(node.outputs)
    for name in front:
        for reader in inside.graph.nodes:
            if name in reader.inputs:
                if moves(reader):
                    front += [value for value in reader.outputs if value not in front]
                else:
                    yield reader


def _added(inside: Inside, node: Node) -> tuple[float, bool] | None:
    """What a node adds to all elements of its data before anything else, and whether that is an attribute."""
    if kind(node) in ("HardSigmoid", "HardSwish"):  # max(0, min(1, alpha * x + beta)), of x + beta / alpha
        found = {"alpha": 1 / 6, "beta": 0.5, **typed(inside, node)} if kind(node) == "HardSigmoid" else {}
        return found.get("beta", 0.5) / found.get("alpha", 1 / 6), True
    if kind(node) not in ("Add", "Sub") or len(inside.data(node)) != 1:
        return None
    first = bool(node.inputs) and node.inputs[0] in inside.dynamic
    sign = 1.0 if kind(node) == "Add" else -1.0
    single = [item.array for item in inside.parameters(node) if item.real and item.array.size == 1]
    if single and (first or kind(node) == "Add"):
        return sign * float(single[0].ravel()[0]), False
    other = node.attributes.get("other")
    return (sign * float(other), True) if isinstance(other, (int, float)) and "rsub" not in node.native_op else None


@dataclass(frozen=True, slots=True)
class Unrolled:
    """A BatchNorm that a model computes as a scale and a shift. `slots`: the parameters from which it works both out
    itself; empty where they are stored as numbers."""

    scale: np.ndarray
    shift: np.ndarray
    slots: dict[str, np.ndarray]
    nodes: tuple[Node, ...]


def unrolled(inside: Inside, nodes: Sequence[Node]) -> list[Unrolled]:
    """The scales among these nodes that a shift follows, per channel."""
    found = []
    for node in nodes:
        for scale in _vectors(inside, node) if kind(node) == "Mul" and inside.runs(node) else ():
            for reader in _readers(inside, node):
                if kind(reader) not in ("Add", "Sub") or len(inside.data(reader)) != 1:
                    continue
                for shift in _vectors(inside, reader):
                    if shift[1].size == scale[1].size:
                        sign = -1.0 if kind(reader) == "Sub" else 1.0
                        slots = _slots_behind(inside, (scale[0], shift[0]), scale[1], sign * shift[1])
                        found.append(Unrolled(scale[1], sign * shift[1], slots, (node, reader)))
    return found


def folded_in(target: Inside, norm: Node, source: Inside, ours: Sequence[Node]) -> Iterator[Unrolled]:
    """The scale and the shift by which the source's weights and bias differ from those of the operator before a BatchNorm
    of the target: the source has them folded in."""
    before = target.graph.producer(norm.inputs[0])
    if before is None or kind(before) not in _WEIGHTED:
        return
    mine = [pool.raw_of(item) for item in target.parameters(before) if item.real]
    weights = [known for known in mine if known.axes is not None]
    biases = [known.array.ravel() for known in mine if known.array.ndim == 1]
    for node in (node for node in ours if kind(node) in _WEIGHTED and source.runs(node)):
        its = [pool.raw_of(item) for item in source.parameters(node) if item.real]
        added = [known.array.ravel() for known in its if known.array.ndim == 1]
        for known in (known for known in its if weights and known.axes is not None):
            scale = pool.factors_between(known.array, weights[0].array, 0)
            if scale is not None and np.all(np.isfinite(scale)):
                shift = (added[0] if added else 0.0) - (biases[0] * scale if biases else 0.0)
                yield Unrolled(scale, np.broadcast_to(shift, scale.shape), {}, (node,))


def _vectors(inside: Inside, node: Node) -> Iterator[tuple[str, np.ndarray]]:
    for item in inside.parameters(node):
        if item.real and item.array.size > 1 and np.squeeze(item.array).ndim == 1:
            yield item.name, np.asarray(item.array, np.float64).ravel()


def _slots_behind(inside: Inside, names: Sequence[str], scale: np.ndarray, shift: np.ndarray) -> dict[str, np.ndarray]:
    """The stored vectors from which scale and shift are worked out, told apart by doing the sum with each of them."""
    behind = inside.graph.upward(names)
    arrays = [
        np.asarray(array, np.float64) for name in behind if (array := inside.traced.constants.get(name)) is not None
    ]
    for name in behind:
        node = inside.graph.producer(name)
        own = [] if node is None else [inside.traced.constants.get(read) for read in node.inputs]
        arrays += [np.asarray(array, np.float64) for array in own if array is not None]
    small = {float(array.ravel()[0]) for array in arrays if array.size == 1 and 0 < array.ravel()[0] < 0.1}
    vectors: dict[bytes, np.ndarray] = {a.tobytes(): a.ravel() for a in arrays if a.size == scale.size > 1}
    rest = list(vectors.values())
    if len(rest) > 5:
        return {}
    ones, zeros = np.ones(scale.size), np.zeros(scale.size)
    for var in (array for array in rest if np.all(array >= 0)):
        for gamma in (ones, *rest):
            for epsilon in small:
                if not pool.close(gamma / np.sqrt(var + epsilon), scale):
                    continue
                for mean, beta in ((mean, beta) for mean in rest for beta in (zeros, *rest)):
                    terms = float(np.max(np.abs(beta)) + np.max(np.abs(mean * scale)))
                    if pool.close(beta - mean * scale, shift, terms):
                        return {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    return {}
