"""Differences between two stretches of graph as such: operators too many or too few, operands or parts in another order,
elements laid out in another order by transposes and reshapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from trueport.align.types import Alignment
from trueport.diagnosis.operators import (
    ACTIVATIONS,
    ARITHMETIC,
    MOVEMENT,
    ORDERED,
    PARTS,
    kind,
    kinds,
    moves,
    number,
    parts,
)
from trueport.diagnosis.region import Inside
from trueport.diagnosis.types import Finding
from trueport.graph import FINE, Node

SWAPPED, ORDER, LAYOUT, FOREIGN, ARITHMETIC_FOREIGN, LOST, DECLARED = 2.6, 2.8, 2.4, 1.0, 0.4, 1.1, 2.2
"""Weights: operands exchanged; parts joined in another order; layout; an operator kind that the source region has not;
the same for arithmetic; one of the source's that is missing; what localisation itself found missing or extra."""


ABSORBING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Einsum", "LSTM", "GRU", "RNN"})
"""Kinds whose weights take up arithmetic around them."""


@dataclass(frozen=True, slots=True)
class Oddity:
    """What is odd about the graph at `node`."""

    node: Node
    what: str
    source_value: Any
    target_value: Any
    weight: float
    source_nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stretch:
    """A finding's nodes on both sides. `ours`: of the source, at all granularities; `theirs`: of the target."""

    source: Inside
    target: Inside
    ours: tuple[Node, ...]
    theirs: tuple[Node, ...]
    alignment: Alignment
    finding: Finding


def oddities(stretch: Stretch) -> list[Oddity]:
    """Everything odd about the structure of a finding's region."""
    found = [*_foreign(stretch), *_lost(stretch), *_swapped(stretch), *_joined(stretch), *_fewer(stretch)]
    if stretch.finding.kind in ("layout", "shuffle"):
        found += _laid_out(stretch)
    if stretch.finding.kind in ("extra", "missing"):
        found += _declared(stretch)
    else:
        found += _repeated(stretch)
    return found


# -- operator kinds ---------------------------------------------------------------------------------------------------


def _of(inside: Inside, nodes: Sequence[Node]) -> list[str]:
    return [name for node in nodes if inside.runs(node) for name in kinds(node)]


def _counts(inside: Inside, nodes: Sequence[Node]) -> Counter[str]:
    """How often each kind occurs, at the granularity that has more of it."""
    native = Counter(_of(inside, [node for node in nodes if not node.name.startswith(FINE)]))
    fine = Counter(_of(inside, [node for node in nodes if node.name.startswith(FINE)]))
    return native | fine


def _foreign(stretch: Stretch) -> list[Oddity]:
    """Operators of the target whose kind nothing in the source region is, or may be taken apart into."""
    ours, theirs = _counts(stretch.source, stretch.ours), _counts(stretch.target, stretch.theirs)
    if not stretch.ours:
        return []
    possible = parts(ours)
    listed = _list(ours)
    beyond = _beyond(stretch)
    found = []
    for node in stretch.theirs:
        if not stretch.target.runs(node):
            continue
        for name in kinds(node):
            if name in MOVEMENT or name in possible or _composite_of(name, ours):
                if (node.name, name) not in beyond:
                    continue
                weight = FOREIGN
                what = f"{name} stands here {theirs[name]} times, in the source {ours[name]} times"
                found.append(Oddity(node, what, ours[name], theirs[name], weight))
                continue
            weight = ARITHMETIC_FOREIGN if name in ARITHMETIC else FOREIGN
            fused = "" if name == kind(node) else " (fused)"
            what = f"an operator {name}{fused} that the source does not have here (it has {listed})"
            found.append(Oddity(node, what, listed, _list(theirs), weight, _names(stretch.ours)))
    return found


def _beyond(stretch: Stretch) -> frozenset[tuple[str, str]]:
    """(Target node, kind) of operators that stand there more often than in the source, told by the order of kinds."""
    mine = [(node.name, name) for node in stretch.theirs if stretch.target.runs(node) for name in kinds(node)]
    mine = [(node, name) for node, name in mine if name not in MOVEMENT]
    found: list[frozenset[tuple[str, str]]] = []
    for fine in (False, True):
        ours = [node for node in stretch.ours if node.name.startswith(FINE) == fine]
        its = [name for name in _of(stretch.source, ours) if name not in MOVEMENT]
        if not its:
            continue
        matcher = SequenceMatcher(None, its, [name for _, name in mine], autojunk=False)
        paired = {block.b + step for block in matcher.get_matching_blocks() for step in range(block.size)}
        counts = Counter(its)
        surplus = Counter(name for _, name in mine) - counts
        found.append(
            frozenset(
                mine[place]
                for place in range(len(mine))
                if place not in paired
                and surplus[mine[place][1]]
                and counts[mine[place][1]]
                and mine[place][1] not in ARITHMETIC
            )
        )
    return frozenset.intersection(*found) if found else frozenset()


def _composite_of(name: str, ours: Mapping[str, int]) -> bool:
    """Whether a kind may be put together from kinds that the source has."""
    needed = set(PARTS.get(name, ()))
    telling = needed - ARITHMETIC - MOVEMENT
    return bool((telling or needed) & set(ours))


def _lost(stretch: Stretch) -> list[Oddity]:
    """Operators of the source region that nothing in the target region is, or is made of."""
    theirs = _counts(stretch.target, stretch.theirs)
    if not stretch.theirs:
        return []
    native = _open_parts(stretch)
    possible = parts(theirs)
    place = _place(stretch)
    found = []
    for node in native:
        for name in kinds(node) if stretch.source.runs(node) else ():
            if name in MOVEMENT or name in ARITHMETIC or name == "BatchNormalization" or name in possible:
                continue
            made_of = parts([name]) - {name}
            if made_of and len(made_of & set(theirs)) >= min(2, len(made_of)):
                continue
            what = f"the source's {name} '{node.shown}' has no counterpart"
            found.append(Oddity(place, what, f"{name} '{node.shown}'", _list(theirs), LOST, (node.name,)))
    return found


def _fewer(stretch: Stretch) -> list[Oddity]:
    """Arithmetic that the source does more often, where no weights could have taken it up."""
    left = _open_parts(stretch)
    if any(kind(node) in ABSORBING or kind(node) in PARTS for node in (*stretch.theirs, *left)):
        return []
    ours, theirs = _counts(stretch.source, left), _counts(stretch.target, stretch.theirs)
    fewer = ours - theirs
    if sum(ours.values()) <= sum(theirs.values()) or not set(fewer) & ARITHMETIC:
        return []
    what = f"the target has {_list(theirs)} where the source has {_list(ours)}"
    return [Oddity(_place(stretch), what, _list(ours), _list(theirs), ARITHMETIC_FOREIGN)]


def _open_parts(stretch: Stretch) -> list[Node]:
    """The source's nodes; in the place of one that was traced finer too, those of its parts that have no twin yet."""
    whole = {node.origin for node in stretch.ours if node.name.startswith(FINE)}
    found = [node for node in stretch.ours if not node.name.startswith(FINE) and node.name not in whole]
    explained = stretch.alignment.explained
    fine = [node for node in stretch.ours if node.name.startswith(FINE)]
    return found + [node for node in fine if not explained.intersection(node.outputs)]


def _place(stretch: Stretch) -> Node:
    """The node that gives the value at which the fault was healed; else the last of the region."""
    node = stretch.target.graph.producer(stretch.finding.target)
    return node if node is not None and node in stretch.theirs else stretch.theirs[0]


def _declared(stretch: Stretch) -> list[Oddity]:
    """What localisation proved: the region computes something that the source does not, or lacks something that it does."""
    finding, place = stretch.finding, _place(stretch)
    named = [node for node in stretch.ours if node.name in finding.source_region]
    ours, theirs = _counts(stretch.source, named), _counts(stretch.target, stretch.theirs)
    if finding.kind == "extra":
        computing = [node for node in stretch.theirs if stretch.target.runs(node) and not moves(node)]
        node = computing[-1] if computing else place
        what = f"{kind(node)} '{node.shown}' is extra: without it the target computes what the source does"
        return [Oddity(node, what, "nothing", _list(theirs), DECLARED)]
    lacking = {name for name in ours if name not in MOVEMENT} - set(theirs)
    if not lacking:
        return []
    listed = _list(Counter({name: ours[name] for name in sorted(lacking)}))
    for node in stretch.theirs:
        if kind(node) in ACTIVATIONS and lacking & ACTIVATIONS and kind(node) not in ours:
            what = f"{kind(node)} '{node.shown}' stands in the place of the source's {listed}"
            return [Oddity(node, what, listed, kind(node), DECLARED + 0.4, _names(stretch.ours))]
    what = f"the source's {listed} is missing here"
    return [Oddity(place, what, listed, "nothing", DECLARED, _names(stretch.ours))]


def _repeated(stretch: Stretch) -> list[Oddity]:
    """Operators behind a value that is already what the source has where the target was healed."""
    finding = stretch.finding
    if finding.source is None or finding.kind in ("layout", "shuffle"):
        return []
    classes = {finding.source, stretch.alignment.alike.get(finding.source, finding.source)}
    above = stretch.target.graph.upward([finding.target])
    for name in above:
        match = stretch.alignment.matches.get(name)
        if name == finding.target or match is None or not match.ok or match.how == "input":
            continue
        if match.source in classes or stretch.alignment.alike.get(match.source) in classes:
            extra = [node for node in stretch.theirs if stretch.target.runs(node) and not moves(node)]
            if not extra:
                return []
            what = f"{kind(extra[0])} '{extra[0].shown}' is extra: the value before it is already the source's"
            return [Oddity(extra[0], what, "nothing", _list(Counter(map(kind, extra))), DECLARED + 0.6)]
    return []


def _list(counts: Counter[str]) -> str:
    shown = [f"{count} {name}" if count > 1 else name for name, count in counts.items() if name != "Identity"]
    return ", ".join(shown) or "no operator"


def _names(nodes: Sequence[Node]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes)


# -- operands -----------------------------------------------------------------------------------------------------------


def stands_for(stretch: Stretch, value: str) -> frozenset[str]:
    """The source values that a target value may stand for."""
    match = stretch.alignment.matches.get(value)
    if match is None:
        return frozenset()
    alike = stretch.alignment.alike
    names = {match.source, *match.rivals}
    classes = {alike[name] for name in names if name in alike}
    return frozenset(names | {name for name, first in alike.items() if first in classes} | classes)


def pairs(stretch: Stretch, wanted: str) -> list[tuple[Node, Node]]:
    """Nodes of one kind on both sides, in order; the source's at the granularity that has as many."""
    theirs = [node for node in stretch.theirs if kind(node) == wanted and stretch.target.runs(node)]
    for fine in (False, True):
        ours = [node for node in stretch.ours if kind(node) == wanted and node.name.startswith(FINE) == fine]
        ours = [node for node in ours if stretch.source.runs(node)]
        if ours and len(ours) == len(theirs):
            return list(zip(ours, theirs, strict=True))
    return []


def _swapped(stretch: Stretch) -> list[Oddity]:
    """Operands of operators that are not commutative in each other's place."""
    found = []
    for name in sorted({kind(node) for node in stretch.theirs} & ORDERED):
        for ours, theirs in pairs(stretch, name):
            its, mine = (_operands(inside, node) for inside, node in ((stretch.source, ours), (stretch.target, theirs)))
            if its is None or mine is None:
                continue
            fixed, wanted = (
                [value not in inside.dynamic for value in values]
                for inside, values in ((stretch.target, mine), (stretch.source, its))
            )
            if sum(fixed) == 1 and sum(wanted) == 1:
                wrong = fixed != wanted and name not in ("MatMul",)
            elif not any(fixed) and not any(wanted):
                twins = [stands_for(stretch, value) for value in mine]
                wrong = its[1] in twins[0] and its[0] in twins[1] and not (its[0] in twins[0] and its[1] in twins[1])
            else:
                continue
            if wrong:
                what = f"the operands of {name} are exchanged"
                found.append(Oddity(theirs, what, list(its), list(mine), SWAPPED, (ours.name,)))
    return found


def _operands(inside: Inside, node: Node) -> tuple[str, str] | None:
    """The first two operands in the order in which they are computed with; a scalar among the attributes is one."""
    found = list(node.inputs[:2])
    if len(found) == 1:
        scalar = next(
            (name for name in ("other", "exponent", "self") if number(node.attributes, name) is not None), None
        )
        if scalar is None:
            return None
        found.insert(0 if scalar == "self" else 1, f"{number(node.attributes, scalar):.6g}")
    if len(found) != 2:
        return None
    return (found[1], found[0]) if node.attributes.get("reversed") else (found[0], found[1])


def _joined(stretch: Stretch) -> list[Oddity]:
    """Concatenations that join the same parts in another order."""
    found = []
    for ours, theirs in pairs(stretch, "Concat"):
        mine = [value for value in theirs.inputs if value in stretch.target.dynamic]
        its = [value for value in ours.inputs if value in stretch.source.dynamic]
        if len(mine) != len(its) or len(mine) < 2:
            continue
        twins = [stands_for(stretch, value) for value in mine]
        order = [[place for place, value in enumerate(its) if value in twin] for twin in twins]
        if any(not places for places in order) or all(place in places for place, places in enumerate(order)):
            continue
        first = [places[0] for places in order]
        if sorted(first) == list(range(len(its))):
            what = f"parts are joined in the order {first} of the source's"
            found.append(Oddity(theirs, what, list(its), [its[place] for place in first], ORDER, (ours.name,)))
    return found


# -- layout ----------------------------------------------------------------------------------------------------------


def _laid_out(stretch: Stretch) -> list[Oddity]:
    """The operator that puts elements where the source does not, found by running both chains on element numbers."""
    theirs = [node for node in stretch.theirs if stretch.target.runs(node)]
    if not theirs:
        return []
    chain = [node for node in theirs if moves(node)]
    stages = _stages(stretch)
    if stages is not None:
        wrong, ours = stages
        what = f"{kind(wrong)} '{wrong.shown}' puts the elements in another order than the source"
        return [
            Oddity(wrong, what, _told(stretch.source, ours), _told(stretch.target, [wrong]), LAYOUT + 0.4, _names(ours))
        ]
    mine = Counter(kind(node) for node in chain)
    its = Counter(kind(node) for node in stretch.ours if moves(node) and stretch.source.runs(node))
    movers = [node for node in stretch.ours if kind(node) in ("Transpose", "Reshape", "Concat")]
    shown = _told(stretch.source, movers) if movers else "no transpose or reshape"
    if its["Transpose"] > mine["Transpose"]:
        suspects = [node for node in chain if kind(node) == "Reshape"] or theirs
        what = "reshapes where the source transposes: the elements keep an order that they should not"
    elif mine["Transpose"] > its["Transpose"]:
        suspects = [node for node in chain if kind(node) == "Transpose"]
        what = "transposes where the source does not"
    else:
        suspects = [node for node in chain if kind(node) in ("Transpose", "Reshape", "Concat", "Split")] or theirs
        what = "puts the elements in another order than the source"
    place = _place(stretch)
    prior = stretch.finding.prior
    for idle in chain:
        perm = idle.attributes.get("perm")
        if kind(idle) == "Transpose" and isinstance(perm, (list, tuple)) and list(perm) == sorted(perm):
            what = f"Transpose '{idle.shown}' exchanges nothing"
            return [Oddity(idle, what, shown, f"Transpose by {list(perm)}", LAYOUT + 3.0, _names(movers))]
    blamed = max(theirs, key=lambda node: prior.get(node.name, 0.0))
    if prior.get(blamed.name):
        node = blamed
        what = (
            f"is the first whose result has its elements in another order: it {what}"
            if node in suspects
            else "puts the elements in another order than the source"
        )
    else:
        node = place if place in suspects else suspects[0]
    return [
        Oddity(
            node, f"{kind(node)} '{node.shown}' {what}", shown, _told(stretch.target, [node]), LAYOUT, _names(movers)
        )
    ]


def _told(inside: Inside, nodes: Sequence[Node]) -> str:
    """Movement operators with what they do."""
    listed = []
    for node in nodes:
        before = inside.shape(inside.data(node)[0]) if inside.data(node) else None
        after = inside.shape(node.outputs[0]) if node.outputs else None
        perm = node.attributes.get("perm", node.attributes.get("dims"))
        how = f" by {list(perm)}" if isinstance(perm, (list, tuple)) else ""
        sizes = f" {list(before)} to {list(after)}" if before is not None and after is not None else ""
        listed.append(f"{kind(node)}{how}{sizes}")
    return ", ".join(listed) or "no operator"


def _stages(stretch: Stretch) -> tuple[Node, tuple[Node, ...]] | None:
    """The first movement operator of the target after which no stage of the source has the elements in that order.

    Both chains run on the numbers of the source's elements. None when a chain is not a chain of known movements.
    """
    theirs = _chain(stretch.target, stretch.theirs)
    if not theirs:
        return None
    start = stretch.target.data(theirs[0])[0]
    match = stretch.alignment.matches.get(start)
    if match is None or not match.ok:
        return None
    shape, mine = stretch.source.shape(match.source), stretch.target.shape(start)
    if shape is None or mine is None:
        return None
    for fine in (False, True):
        ours = _chain(stretch.source, [node for node in stretch.ours if node.name.startswith(FINE) == fine])
        if not ours or stretch.source.data(ours[0])[0] not in stands_for(stretch, start):
            continue
        numbers = np.arange(int(np.prod(shape)))
        values = [numbers.reshape(shape)]
        for node in ours:
            moved = move(stretch.source, node, values[-1])
            if moved is None:
                return None
            values.append(moved)
        current = match.relation.to_target(values[0][None], mine)[0]
        for node in theirs:
            after = move(stretch.target, node, current)
            if after is None:
                return None
            if not _laid_alike(after, values, stretch.alignment):
                return node, tuple(ours)
            current = after
        return None
    return None


def _laid_alike(target: np.ndarray, stages: Sequence[np.ndarray], alignment: Alignment) -> bool:
    """Whether element numbers lie as at a stage of the source of that shape, plain or permuted as the model is; True
    where no stage has that shape, because then nothing can be said."""
    t = target.reshape([size for size in target.shape if size != 1])
    comparable = []
    for stage in stages:
        s = stage.reshape([size for size in stage.shape if size != 1])
        order = alignment.consensus.get(s.ndim)
        comparable += [s] if order is None else [s, np.transpose(s, order)]
    comparable = [stage for stage in comparable if stage.shape == t.shape]
    return not comparable or any(np.array_equal(t, stage) for stage in comparable)


def _chain(inside: Inside, nodes: Sequence[Node]) -> list[Node]:
    """The movement operators among the nodes that follow one another from the first; empty when they branch."""
    found: list[Node] = []
    for node in nodes:
        if not inside.runs(node):
            continue
        if not moves(node) or len(inside.data(node)) != 1 or len(node.outputs) != 1:
            if found:
                break
            continue
        if found and inside.data(node)[0] != found[-1].outputs[0]:
            continue
        found.append(node)
    return found


def move(inside: Inside, node: Node, array: np.ndarray) -> np.ndarray | None:
    """Do to an array (without run axis) what a movement operator does; None for what is not known."""
    name = kind(node)
    after = inside.shape(node.outputs[0])
    if name in ("Identity", "Cast", "DequantizeLinear", "QuantizeLinear", "Dequantize", "Quantize"):
        return array
    if name in ("Reshape", "Squeeze", "Unsqueeze"):
        return array.reshape(after) if after is not None and int(np.prod(after)) == array.size else None
    if name == "Transpose":
        perm = node.attributes.get("perm", node.attributes.get("dims"))
        if perm is None and inside.format == "onnx":
            perm = list(range(array.ndim))[::-1]
        if isinstance(perm, (list, tuple)):
            given = [int(place) for place in perm]
            if len(given) == array.ndim - 1:  # Keras' Permute counts without the batch, from 1
                given = [0, *given]
            return (
                np.transpose(array, given)
                if sorted(place % array.ndim for place in given) == list(range(array.ndim))
                else None
            )
    return None
