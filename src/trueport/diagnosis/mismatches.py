"""The hyperparameters in which two paired operators differ: axes are translated through the pairs that alignment found,
and only what both sides show is compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trueport.align.types import Alignment, Match
from trueport.diagnosis.attributes import TABLE, listed, typed
from trueport.diagnosis.operators import activation, kind
from trueport.diagnosis.region import Inside
from trueport.graph import Node


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One attribute that differs. Values in the target's terms, plain JSON."""

    name: str
    source_value: Any
    target_value: Any
    node: str | None = None
    """The node that has it, where that is not the one compared: the Pad in front of a convolution."""


def mismatches(source: Inside, target: Inside, ours: Node, theirs: Node, alignment: Alignment) -> list[Mismatch]:
    """The attributes in which two operators of one kind differ; those that one side does not show are passed over."""
    mine, its = typed(target, theirs), typed(source, ours)
    lay = Axes(source, target, ours, theirs, alignment)
    found = []
    ahead = pad_before(target, theirs), pad_before(source, ours)
    if ahead != (None, None):
        mine, its = _with_pad(target, theirs, mine, ahead[0]), _with_pad(source, ours, its, ahead[1])
    for name in mine.keys() & its.keys():
        wanted, got = its[name], mine[name]
        if name in ("axis", "axes"):
            if not lay.same_axes(listed(wanted), listed(got)):
                found.append(Mismatch(name, lay.translated(listed(wanted), wanted), got))
        elif name == "pads" and kind(theirs) == "Pad":
            if not lay.same_pads(listed(wanted), listed(got)):
                found.append(Mismatch(name, wanted, got))
        elif name == "window":
            if sorted(map(str, wanted.values())) != sorted(map(str, got.values())) and not _of_more(
                source, target, ours, theirs
            ):
                found.append(Mismatch(name, _windows(wanted), _windows(got)))
        elif not _same(wanted, got):
            owner = (
                ahead[0].name if ahead[0] is not None and name == "pads" and not _pads_itself(target, theirs) else None
            )
            found.append(Mismatch(name, wanted, got, owner))
    fused = _fused(ours, theirs)
    return sorted(found, key=lambda item: item.name) + fused


def _of_more(source: Inside, target: Inside, ours: Node, theirs: Node) -> bool:
    """Whether two slices give results of the same sizes, taken of values of different sizes: the last of all steps of a
    loop, or all of one that kept only the last."""
    sizes = [
        sorted(size for size in inside.shape(name) or () if size != 1)
        for inside, node in ((source, ours), (target, theirs))
        for name in (*inside.data(node)[:1], *node.outputs[:1])
    ]
    return len(sizes) == 4 and sizes[0] != sizes[2] and sizes[1] == sizes[3]


def pad_before(inside: Inside, node: Node) -> Node | None:
    """The Pad that feeds a convolution or pool, looked for through what hands values on."""
    data = inside.data(node)
    if "strides" not in TABLE.get(kind(node), {}) or not data:
        return None
    found = inside.graph.producer(data[0])
    while found is not None and kind(found) in ("Identity", "Cast", "Transpose", "QuantizeLinear", "DequantizeLinear"):
        found = inside.graph.producer(found.inputs[0])
    return found if found is not None and kind(found) == "Pad" else None


def _with_pad(inside: Inside, node: Node, given: dict[str, Any], pad: Node | None) -> dict[str, Any]:
    """The attributes of a node with the padding of the Pad in front of it added to its own."""
    changed = {name: value for name, value in given.items() if name != "count_include_pad"}
    if pad is None or "pads" not in given:
        return changed
    full = listed(typed(inside, pad).get("pads"))
    before = inside.shape(inside.data(pad)[0]) if inside.data(pad) else None
    if full is None or before is None or len(full) != 2 * len(before):
        return {name: value for name, value in changed.items() if name != "pads"}
    rank = len(before)
    last = (
        inside.channels_last if "data_format" not in node.attributes else "last" in str(node.attributes["data_format"])
    )
    axes = range(1, rank - 1) if last else range(2, rank)
    extra = [full[axis] for axis in axes] + [full[rank + axis] for axis in axes]
    own = given["pads"]
    changed["pads"] = [one + two for one, two in zip(own, extra, strict=True)] if len(own) == len(extra) else own
    return changed


def _pads_itself(inside: Inside, node: Node) -> bool:
    return any(typed(inside, node).get("pads", ()))


_FUSED_BOUNDS = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0), "relun1to1": (-1.0, 1.0)}
"""Fused activation -> the values that it lets through."""


def bounds(inside: Inside, nodes: Sequence[Node]) -> list[tuple[Node, tuple[float, float]]]:
    """The activations among these nodes that cut values off, with the values they let through, in order."""
    found = []
    for node in nodes:
        if not inside.runs(node):
            continue
        own = typed(inside, node) if kind(node) == "Clip" else {}
        if kind(node) == "Relu":
            found.append((node, _FUSED_BOUNDS["relu"]))
        elif isinstance(own.get("min"), (int, float)) and isinstance(own.get("max"), (int, float)):
            found.append((node, (_far(float(own["min"])), _far(float(own["max"])))))
        fused = str(node.attributes.get("activation", "")).lower().replace("_", "")
        if activation(node) is not None and fused in _FUSED_BOUNDS and kind(node) not in ("Relu", "Clip"):
            found.append((node, _FUSED_BOUNDS[fused]))
    return found


def _far(bound: float) -> float:
    """A bound as wide as float32 is none."""
    return math.copysign(math.inf, bound) if abs(bound) > 3e38 else bound


def axis_of_reduction(
    source: Inside, target: Inside, ours: Node, theirs: Node, alignment: Alignment
) -> list[Mismatch] | None:
    """The axis of an operator against the axes of a reduction that is a part of it in the source; None where unknown."""
    wanted, got = typed(source, ours).get("axes"), typed(target, theirs).get("axis")
    if listed(wanted) is None or listed(got) is None:
        return None
    lay = Axes(source, target, ours, theirs, alignment)
    meant = listed(got)
    if kind(theirs) == "LayerNormalization" and meant and lay.target:  # from its axis on, all of them
        meant = list(range(meant[0] % len(lay.target), len(lay.target)))
    if lay.same_axes(listed(wanted), meant):
        return []
    return [Mismatch("axis", lay.translated(listed(wanted), wanted), got)]


def _fused(ours: Node, theirs: Node) -> list[Mismatch]:
    """Fused activations that differ where both operators have one."""
    wanted, got = activation(ours), activation(theirs)
    if wanted is None or got is None or wanted == got:
        return []
    return [Mismatch("activation", wanted, got)]


def windows(inside: Inside, nodes: Sequence[Node]) -> set[str]:
    """What all these Slices together take of their axes, by size, whichever axis it is."""
    taken = [typed(inside, node).get("window") or {} for node in nodes]
    return {str(span) for window in taken for span in window.values()}


def _windows(window: Mapping[int, list[int]]) -> str:
    return (
        ", ".join(f"axis {axis}: {begin} to {end} by {step}" for axis, (begin, end, step) in sorted(window.items()))
        or "all"
    )


def _same(wanted: Any, got: Any) -> bool:
    if isinstance(wanted, (int, float)) and isinstance(got, (int, float)):
        if math.isinf(wanted) or math.isinf(got):
            far = 3e38
            return wanted == got or (abs(wanted) > far and abs(got) > far and (wanted > 0) == (got > 0))
        return abs(wanted - got) <= 1e-5 * max(abs(wanted), abs(got), 1e-12)
    if isinstance(wanted, str) and isinstance(got, str):
        return wanted.lower() == got.lower()
    if isinstance(wanted, list) and isinstance(got, list):
        return len(wanted) == len(got) and all(_same(one, two) for one, two in zip(wanted, got, strict=True))
    return bool(wanted == got)


class Axes:
    """Which axis of the target's operand is which axis of the source's."""

    def __init__(self, source: Inside, target: Inside, ours: Node, theirs: Node, alignment: Alignment) -> None:
        mine, its = target.data(theirs), source.data(ours)
        self.target = target.shape(mine[0]) if mine else None
        self.source = source.shape(its[0]) if its else None
        self.turned = ""
        if source.channels_last != target.channels_last:
            self.turned = "last" if target.channels_last else "first"
        self.order = self._order(alignment.matches.get(mine[0]) if mine else None, alignment)

    def _order(self, match: Match | None, alignment: Alignment) -> list[int] | None:
        """Target axis -> source axis of the squeezed operands; None where it is not known."""
        if self.target is None or self.source is None:
            return None
        t, s = ([size for size in shape if size != 1] for shape in (self.target, self.source))
        if len(t) != len(s):
            return None
        order = list(match.relation.permutation) if match is not None and match.ok else None
        if order is not None and match is not None and match.relation.side == "target":
            order = [order.index(place) for place in range(len(order))]
        if order is None and len(t) in alignment.consensus:
            order = list(alignment.consensus[len(t)])
        if order is None or len(order) != len(t) or [s[place] for place in order] != t:
            return None
        return order

    @staticmethod
    def _tight(axes: Sequence[int], shape: Sequence[int]) -> set[int]:
        """Axes counted among those that are larger than 1."""
        numbers: dict[int, int] = {}
        for place, size in enumerate(shape):
            if size != 1:
                numbers[place] = len(numbers)
        return {numbers[axis % len(shape)] for axis in axes if axis % len(shape) in numbers}

    def same_axes(self, wanted: list[int] | None, got: list[int] | None) -> bool:
        """Whether the same axes are meant; where the layout is not known, axes of equal size count as the same."""
        if wanted is None or got is None or self.target is None or self.source is None:
            return True
        if not self.target or not self.source:
            return True
        if self.order is not None:
            return {self.order[axis] for axis in self._tight(got, self.target)} == self._tight(wanted, self.source)
        if len(self.target) == len(self.source) and {axis % len(self.target) for axis in got} in self._places(wanted):
            return True
        sizes = [
            sorted(shape[axis % len(shape)] for axis in axes)
            for axes, shape in ((wanted, self.source), (got, self.target))
        ]
        return [size for size in sizes[0] if size != 1] == [size for size in sizes[1] if size != 1]

    def _places(self, wanted: Sequence[int]) -> tuple[set[int], ...]:
        """The same axes as they are numbered here; with channels last instead of first where the formats differ in that."""
        rank = len(self.target or ())
        same = {axis % rank for axis in wanted}
        if not self.turned or rank < 3:
            return (same,)
        order = [0, *range(2, rank), 1] if self.turned == "last" else [0, rank - 1, *range(1, rank - 1)]
        return (same, {order.index(axis) for axis in same})

    def translated(self, wanted: list[int] | None, original: Any) -> Any:
        """The source's axes as the target would number them."""
        if wanted is None or self.order is None or self.target is None or self.source is None:
            return original
        real = [place for place, size in enumerate(self.target) if size != 1]
        axes = sorted(real[self.order.index(axis)] for axis in self._tight(wanted, self.source))
        return axes if isinstance(original, list) or len(axes) != 1 else axes[0]

    def same_pads(self, wanted: list[int] | None, got: list[int] | None) -> bool:
        """Whether two lists of begins and ends for all axes say the same."""
        if not wanted or not got or self.target is None or self.source is None:
            return True
        pairs = []
        for pads, shape in ((wanted, self.source), (got, self.target)):
            if len(pads) != 2 * len(shape):
                return True
            pairs.append([(pads[axis], pads[len(shape) + axis]) for axis in range(len(shape))])
        real = [
            [pair for pair, size in zip(item, shape, strict=True) if size != 1 or any(pair)]
            for item, shape in zip(pairs, (self.source, self.target), strict=True)
        ]
        if self.order is not None and all(len(item) == len(self.order) for item in real):
            return all(real[1][axis] == real[0][place] for axis, place in enumerate(self.order))
        return sorted(real[0]) == sorted(real[1])
