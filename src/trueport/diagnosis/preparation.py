"""Operators that a model has in front of its first layer (scaling, mean and deviation, channel order, flips) and that its
twin has not: they prepare the input, so that a difference there is one of the inputs and not of the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from trueport.align.types import Alignment
from trueport.diagnosis import inputs
from trueport.diagnosis.operators import ARITHMETIC, kind
from trueport.diagnosis.region import Inside
from trueport.diagnosis.types import Finding
from trueport.graph import FINE, Node

KINDS = ARITHMETIC | {
    "BatchNormalization", "Cast", "Concat", "Flip", "Gather", "Identity", "Reshape", "Slice", "Split", "Transpose",
}  # fmt: skip
"""Kinds that preprocessing is written in. With constants only: an Add of two values is a layer."""

CHANNEL_MOVES = ((0, 3, 1, 2), (0, 2, 3, 1), (0, 2, 1), (0, 1, 2, 3), (0, 1, 2), (0, 1))
"""Permutations that bring the channels where the other convention has them."""

MOST = 8
"""Operators of preparation at most."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the target does to an input that the source does not. `nodes`: the target's, the first is to be blamed."""

    nodes: tuple[Node, ...]
    what: str
    source_value: str
    target_value: str


def prepared(
    source: Inside, target: Inside, theirs: Iterable[Node], alignment: Alignment, finding: Finding
) -> Prepared | None:
    """Preparation in a target's region that the source does not do; None where there is none, or both do the same."""
    names = {node.name for node in theirs}
    for name in target.graph.inputs:
        chain = before_layers(target, name)
        mine = [node for node in chain if node.name in names]
        match = alignment.matches.get(name)
        if not mine or match is None or match.source not in source.graph.inputs:
            continue
        end = _end(target, name, chain)
        twin = alignment.matches.get(chain[-1].outputs[0])
        if twin is not None and twin.ok and finding.kind not in ("layout", "shuffle"):
            continue
        before = before_layers(source, match.source)
        turns = sum(kind(node) == "Transpose" for node in chain)
        told = _told(source, target, _end(source, match.source, before), end, turns)
        moved = finding.kind in ("layout", "shuffle") and len(mine) == len(target.nodes(names))
        if told is None and (not moved or any(kind(node) in ("Transpose", "Reshape") for node in before)):
            continue
        listed = ", ".join(kind(node) for node in chain if kind(node) != "Identity")
        how = told or "its elements change place"
        what = f"input '{name}' is prepared by {listed}, which the source does not do: {how}"
        return Prepared(tuple(mine), what, "the input as it is", listed)
    return None


def before_layers(inside: Inside, name: str) -> list[Node]:
    """The operators of preparation that follow an input, in order; parts that are split and joined again count as one."""
    found: list[Node] = []
    reached = {name}
    for node in inside.graph.nodes:
        if node.name.startswith(FINE) or not inside.runs(node):
            continue
        reads = set(inside.data(node))
        if not reads & reached:
            continue
        if kind(node) not in KINDS or not reads <= reached or (len(reads) > 1 and kind(node) != "Concat"):
            if found and len(inside.graph.consumers.get(name, ())) > 1:
                return []
            break
        found.append(node)
        reached.update(node.outputs)
        if len(found) > MOST:
            return []
    return found


def _end(inside: Inside, name: str, chain: list[Node]) -> np.ndarray | None:
    value = chain[-1].outputs[0] if chain else name
    array = inside.traced.values.get(value)
    return None if array is None else np.asarray(array)


def _told(source: Inside, target: Inside, start: np.ndarray | None, end: np.ndarray | None, turns: int) -> str | None:
    """How the prepared input follows from the source's; None when it does not, or only its axes lie as the format wants.

    turns: transposes of the target. One alone between formats of other conventions is the converter's own, right or wrong.
    """
    if start is None or end is None or start.shape[0] != end.shape[0]:
        return None
    explained = inputs.explain(start, end)
    if explained is None or explained.identical:
        return None
    change = explained.change
    only_turned = not change.flips and not change.reorders and not change.scales
    turned = source.channels_last != target.channels_last
    if only_turned and turned and (turns == 1 or change.permutation in CHANNEL_MOVES):
        return None
    return str(explained)
