"""CG: an operator too many is taken out, a missing one is put in, one of another kind becomes the source's, operands are put
in the source's order.

Rewrites, each one edit at the place that is blamed: `remove-node`; `insert` of the source's operator, in ONNX words and
in the layout of the value behind which it is missing, for the readers that are wrong; `set-operator`; `reorder-inputs`;
`set-input` where an operand is another value than the twin of the source's.
Does not apply where both regions have the same operators on the same operands, or the source's have no translation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from trueport.align.info import numbers, rms
from trueport.diagnosis import structure
from trueport.diagnosis.attributes import TABLE as TYPED
from trueport.diagnosis.attributes import typed
from trueport.diagnosis.operators import ACTIVATIONS, ARITHMETIC, MOVEMENT, ORDERED, kind, kinds, moves
from trueport.diagnosis.structure import Stretch
from trueport.diagnosis.types import Cause
from trueport.frameworks._base import EditDict
from trueport.graph import FINE, Node
from trueport.repairs.rules._solve import Solver
from trueport.repairs.rules._translate import translate
from trueport.repairs.rules._twins import Twins
from trueport.repairs.rules._writer import Made, Placed, Untranslatable, Writer, recomputed, steps
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "CG structure"
CAUSES = frozenset({Cause.STRUCTURE})

CERTAIN, LIKELY, GUESS, FOREIGN = 0.0, 0.05, 0.3, 0.7
"""Doubt: proven by the values; told by the graphs; neither; an operator that the source has not got there."""

FAMILIES: tuple[frozenset[str], ...] = (
    frozenset({*ACTIVATIONS, "Clip", "Exp", "Identity", "Erf"}),
    frozenset(
        {"AveragePool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceProd", "ReduceL2"}
    ),
    frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"}),
    frozenset({"BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"}),
    frozenset({"ReduceMax", "ReduceMin", "ArgMax", "ArgMin"}),
)
"""Kinds that a wrong translation takes for each other."""

REDUCTIONS = frozenset({"ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"})
GLOBAL = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}
"""Reduction -> its name over all of a picture."""

MOST = 8
"""Operators of the source that are tried as a missing one, or in the place of one of the target's."""

LONGEST = 8
"""Operators that are put in one behind the other."""


def propose(scene: Scene) -> list[Proposal] | str:
    """What the graphs and the values tell, the surest first."""
    stretch = scene.stretch
    if stretch is None:
        return "no operator of the target stands in the region"
    twins = Twins(scene)
    told = {odd.node.name: odd.what for odd in structure.oddities(stretch)}
    why: dict[str, None] = {}
    found = [
        *_extra(scene, stretch, told),
        *_missing(scene, twins, why),
        *_changed(scene, stretch, twins, why),
        *_swapped(scene, stretch, told),
        *_joined(scene, stretch, twins),
        *_rewired(scene, stretch, twins),
        *_lost(scene, stretch, twins, why),
        *_solved(scene, stretch),
    ]
    if not found:
        return next(iter(why), "both regions have the same operators on the same operands")
    return sorted(found, key=lambda proposal: proposal.doubt)


def _proposal(edit: Edit, doubt: float) -> Proposal:
    return Proposal(edits=(edit,), doubt=doubt)


# -- an operator too many -------------------------------------------------------------------------------------------------


def _extra(scene: Scene, stretch: Stretch, told: dict[str, str]) -> Iterator[Proposal]:
    """Nodes of the region whose result has the shape of what they read, without them."""
    if scene.finding.kind == "missing":  # what stands before a gap is right
        return
    ours = Counter(name for node in stretch.ours if stretch.source.runs(node) for name in kinds(node))
    declared = scene.finding.kind == "extra"
    place = {node.name: number for number, node in enumerate(scene.blamed)}
    for node in stretch.theirs:
        if not stretch.target.runs(node) or len([name for name in node.outputs if name]) != 1:
            continue
        for slot, name in enumerate(node.inputs):
            if name not in stretch.target.dynamic:
                continue
            if stretch.target.shape(name) != stretch.target.shape(node.outputs[0]):
                continue
            if _is_healed(scene, node.outputs[0], name):
                doubt = CERTAIN
            elif declared or "extra" in told.get(node.name, ""):
                doubt = LIKELY if not moves(node) else GUESS - 0.05
            elif kind(node) not in ours and kind(node) not in MOVEMENT:
                doubt = 0.1 if place.get(node.name) == 0 else GUESS
            else:
                continue
            change: EditDict = {"kind": "remove-node", "node": node.name, "slot": slot}
            reason = f"the source has no {kind(node)} here"
            yield _proposal(scene.edit(NAME, node.name, kind(node), None, reason, change), doubt)


def _is_healed(scene: Scene, value: str, before: str) -> bool:
    """Whether a value, mended, is what another value is in the file."""
    if value != scene.finding.target or scene.finding.kind == "missing":
        return False
    wanted, given = scene.pair.theirs.values.get(value), scene.pair.target.values.get(before)
    return wanted is not None and given is not None and same(scene, wanted, given)


def same(scene: Scene, wanted: np.ndarray, given: np.ndarray) -> bool:
    """Whether two arrays in the target's layout are equal up to what its precision explains."""
    if wanted.shape != given.shape or wanted.dtype.kind not in "fiub":
        return False
    source = scene.finding.source
    info = scene.pair.ours.infos.get(source) if source is not None else None
    unit = info.unit if info is not None else 1.0
    return bool(rms(numbers(np.asarray(wanted)) - numbers(np.asarray(given))) / unit <= scene.pair.tolerance)


# -- a missing operator ---------------------------------------------------------------------------------------------------


def _missing(scene: Scene, twins: Twins, why: dict[str, None]) -> Iterator[Proposal]:
    """What localisation found missing behind a value that agrees: the source's operators up to the value that heals."""
    finding = scene.finding
    if finding.kind != "missing" or finding.source is None or finding.relation is None:
        return
    start = finding.target
    tried: set[str] = set()
    for number, end in enumerate(twins.same(finding.source)):
        between = scene.pair.ours.graph.between(end, twins.known() - {twins.head(finding.source), *twins.same(end)})
        computing = [node for node in between if scene.ours.runs(node) and not moves(node)]
        if not between or len(computing) > LONGEST:
            continue
        writer = twins.writer()
        try:
            made = _written(scene, twins, writer, between, end, start)
        except Untranslatable as error:
            why.setdefault(str(error))
            continue
        if made is None or str(made) in tried:
            continue
        tried.add(str(made))
        shown = " and ".join(str(step["operator"]) for step in made)
        change: EditDict = {"kind": "insert", "value": start, "steps": made}
        if twins.readers is not None:
            change["readers"] = twins.readers
        reason = f"the source's {between[-1].shown} is missing here"
        where = _place(scene, start)
        edit = scene.edit(NAME, where, "nothing", shown, reason, change, **writer.arrays)
        yield _proposal(edit, LIKELY + 0.02 * number)


def _written(
    scene: Scene, twins: Twins, writer: Writer, nodes: Sequence[Node], end: str, start: str
) -> list[dict[str, Any]] | None:
    """These operators as steps behind a value of the target, with the result laid out as that value is; None where they
    are no chain."""
    writer.pending = {name: node for node in nodes for name in node.outputs}
    result = writer.value(end)
    before = next((item for item in writer.places.values() if item.name == start), None)
    if before is None:
        return None
    name = writer.like(result, before)
    return steps(writer, start, name)


def _place(scene: Scene, value: str) -> str:
    """The node to name for an edit behind a value: its producer, else its first reader."""
    graph = scene.pair.target.graph
    node = graph.producer(value)
    if node is None:
        places = graph.consumers.get(value, ())
        node = graph.nodes[places[0]] if places else None
    return value if node is None else node.name


def _lost(scene: Scene, stretch: Stretch, twins: Twins, why: dict[str, None]) -> Iterator[Proposal]:
    """Operators of the source region that the target has not, behind the values that they read."""
    if scene.finding.kind in ("extra", "missing", "layout"):
        return
    theirs = Counter(name for node in stretch.theirs if stretch.target.runs(node) for name in kinds(node))
    ours = Counter(kind(node) for node in stretch.ours if not node.name.startswith(FINE))
    known = twins.known()
    region = {node.name for node in stretch.theirs}
    candidates = [
        node
        for node in stretch.ours
        if stretch.source.runs(node) and not moves(node) and not known.intersection(node.outputs)
    ]
    candidates = [node for node in candidates if theirs[kind(node)] < max(1, ours[kind(node)])]
    for node in candidates[:MOST]:
        for name in stretch.source.data(node):
            start = twins.find(name)
            if start is None:
                continue
            graph = scene.pair.target.graph
            readers = [graph.nodes[place].name for place in graph.consumers.get(start.name, ())]
            inside = [reader for reader in readers if reader in region]
            writer = twins.writer()
            try:
                made = _written(scene, twins, writer, [node], node.outputs[0], start.name)
            except Untranslatable as error:
                why.setdefault(str(error))
                break
            behind = start.name == scene.finding.target
            if made is None or not (inside or behind):
                continue
            change: EditDict = {"kind": "insert", "value": start.name, "steps": made}
            if len(inside) < len(readers) and not behind:
                change["readers"] = inside
            shown = " and ".join(str(step["operator"]) for step in made)
            reason = f"the source's {node.shown} has no counterpart here"
            edit = scene.edit(NAME, _place(scene, start.name), "nothing", shown, reason, change, **writer.arrays)
            yield _proposal(edit, LIKELY if behind else GUESS - 0.05)


def _solved(scene: Scene, stretch: Stretch) -> Iterator[Proposal]:
    """What gives the mended value, as NumPy finds it: a missing operator, or another value as an operand."""
    if scene.finding.kind in ("extra", "missing"):
        return
    solver = Solver(scene, stretch)
    for node, operator, attributes in solver.fitted():
        change: EditDict = {"kind": "set-operator", "node": node.name, "operator": operator, "attributes": attributes}
        reason = f"{operator} of what it reads is what the source has here"
        yield _proposal(scene.edit(NAME, node.name, kind(node), operator, reason, change), LIKELY - 0.01)
    held = {one for node in stretch.ours for one in kinds(node)}
    for number, found in enumerate(solver.solve()):
        need = found.need
        turned = solver.exchanged(found)
        if turned is not None:
            change = {"kind": "reorder-inputs", "node": turned.name, "order": [1, 0]}
            before, reason = list(turned.inputs), "with its operands exchanged it gives what the source has here"
            yield _proposal(scene.edit(NAME, turned.name, before, before[::-1], reason, change), 0.02)
        # An operator of one operand may also undo what another one does wrongly: that one is to be changed first.
        doubt = 0.01 if found.idle else 0.03 if found.other else GUESS - 0.02
        if not found.other and found.operator not in held:
            doubt = FOREIGN  # it fits these values, and the source has none here: the source's own operators go first
        doubt += 0.002 * number
        if number >= MOST:
            return
        if found.operator:
            step: dict[str, Any] = {"operator": found.operator, "attributes": {}, "slot": 0}
            if found.other:
                step["others"] = [found.other]
            change = {"kind": "insert", "value": need.value, "steps": [step]}
            readers = scene.pair.target.graph.consumers.get(need.value, ())
            if need.reader is not None and len(readers) > 1:
                change["readers"] = [need.reader.name]
            where = _place(scene, need.value) if need.reader is None else need.reader.name
            behind = f" with '{found.other}'" if found.other else ""
            reason = f"with {found.operator}{behind} here the target computes what the source does"
            yield _proposal(scene.edit(NAME, where, "nothing", found.operator, reason, change), doubt)
        elif need.reader is not None:
            slot = need.reader.inputs.index(need.value)
            change = {"kind": "set-input", "node": need.reader.name, "slot": slot, "value": found.other}
            reason = "with this operand the target computes what the source does"
            yield _proposal(scene.edit(NAME, need.reader.name, need.value, found.other, reason, change), doubt)


# -- an operator of another kind ------------------------------------------------------------------------------------------


def _changed(scene: Scene, stretch: Stretch, twins: Twins, why: dict[str, None]) -> Iterator[Proposal]:
    """The source's operator in the place of one of the target's that reads the same and is of another kind."""
    if scene.finding.kind in ("extra", "layout"):
        return
    ours = [node for node in stretch.ours if stretch.source.runs(node) and not moves(node)]
    theirs = {name for node in stretch.theirs if stretch.target.runs(node) for name in kinds(node)}
    for node in scene.blamed[:MOST]:
        if not stretch.target.runs(node) or moves(node) or not _in_place(scene, twins, node):
            continue
        for other in ours[: 2 * MOST]:
            if kind(other) == kind(node) or not _alike(kind(other), kind(node)):
                continue
            try:
                made = _instead(scene, twins, node, other)
            except Untranslatable as error:
                why.setdefault(str(error))
                continue
            if made is not None:
                edit, sure = made
                guessed = kind(other) in theirs or kind(node) in ARITHMETIC
                doubt = CERTAIN + 0.02 if sure else GUESS if guessed else LIKELY
                yield _proposal(edit, doubt)


def _in_place(scene: Scene, twins: Twins, node: Node) -> bool:
    """Whether a node may stand in the place of a missing operator: behind the gap, with nothing of its own to give.

    Put in before it, the missing operator makes it idle (an activation of what is activated already), or its result has
    no twin.
    """
    finding = scene.finding
    if finding.kind != "missing" or finding.source is None:
        return True
    match = scene.match(node.outputs[0])
    own = match is not None and twins.head(match.source) != twins.head(finding.source)
    return finding.target in node.inputs and not own


def _alike(first: str, second: str) -> bool:
    return any(first in family and second in family for family in FAMILIES)


def _instead(scene: Scene, twins: Twins, node: Node, other: Node) -> tuple[Edit, bool] | None:
    """The edit that makes `node` the source's `other`, and whether both are known to read the same. None where they cannot."""
    mine, its = scene.theirs.data(node), scene.ours.data(other)
    if len(mine) != len(its):
        return None
    writer = twins.writer()
    sure = True
    for own, name in zip(mine, its, strict=True):
        shapes = scene.ours.shape(name), scene.theirs.shape(own)
        if shapes[0] is None or shapes[1] is None or np.prod(shapes[0]) != np.prod(shapes[1]):
            return None
        placed = twins.placed(name, own) if own in twins.of_file else None
        sure = sure and placed is not None
        writer.places[name] = placed or Placed(own, shapes[0], twins.usual(shapes[0], shapes[1]))
    output, after = other.outputs[0], scene.theirs.shape(node.outputs[0])
    wanted = scene.ours.shape(output)
    if after is None or wanted is None or np.prod(after) != np.prod(wanted):
        return None
    reason = f"the source's {other.shown} stands here"
    change = _as_its_own(scene, node, other)
    if change is None:
        translate(writer, other)
        change = _replacing(scene, twins, writer, node, other)
    if change is None:
        return None
    edit = scene.edit(NAME, node.name, kind(node), kind(other), reason, change, **writer.arrays)
    return edit, sure


def _as_its_own(scene: Scene, node: Node, other: Node) -> EditDict | None:
    """A reduction of another kind along the axes of the target's own; None where the source has no such operator."""
    if not {kind(node), kind(other)} <= REDUCTIONS or (kind(node) not in TYPED and not node.op.startswith("Global")):
        return None
    own = typed(scene.theirs, node)
    before, after = scene.theirs.shape(scene.theirs.data(node)[0]), scene.theirs.shape(node.outputs[0])
    if own.get("axes") is None or before is None or after is None:
        return None
    operator, attributes = kind(other), {"axes": own["axes"], "keepdims": int(len(before) == len(after))}
    if node.op.startswith("Global") and operator in GLOBAL:
        operator, attributes = GLOBAL[operator], {}
    return {"kind": "set-operator", "node": node.name, "operator": operator, "attributes": attributes, "constants": []}


def _replacing(scene: Scene, twins: Twins, writer: Writer, node: Node, other: Node) -> EditDict | None:
    """What was written in the place of a node: as its operator where it is one, else as what computes its result."""
    output, after = other.outputs[0], scene.theirs.shape(node.outputs[0])
    if not writer.made or after is None:
        return None
    made = writer.made[0]
    reads = [name for name in made.inputs if name not in writer.arrays]
    if len(writer.made) == 1 and reads == list(scene.theirs.data(node)):
        constants = [name for name in made.inputs if name in writer.arrays]
        attributes = _own(scene, node, made)
        operator = made.operator
        return {
            "kind": "set-operator",
            "node": node.name,
            "operator": operator,
            "attributes": attributes,
            "constants": constants,
        }
    result = writer.places[output]
    writer.like(result, Placed(node.outputs[0], result.shape, twins.usual(result.shape, after)))
    return recomputed(node.outputs[0], writer)


def _own(scene: Scene, node: Node, made: Made) -> dict[str, Any]:
    """The attributes of the source's operator, and the axes kept where the target's operator keeps them."""
    attributes = dict(made.attributes)
    if "keepdims" in attributes:
        before, after = scene.theirs.shape(scene.theirs.data(node)[0]), scene.theirs.shape(node.outputs[0])
        attributes["keepdims"] = int(before is not None and after is not None and len(before) == len(after))
    if "Pool" in made.operator and "Pool" in kind(node):
        own = typed(scene.theirs, node)
        names = set(TYPED.get(kind(node), {})) & {"kernel_shape", "strides", "pads"}
        attributes |= {name: own[name] for name in names if name in own and name not in attributes}
    return attributes


# -- operands -------------------------------------------------------------------------------------------------------------


def _swapped(scene: Scene, stretch: Stretch, told: dict[str, str]) -> Iterator[Proposal]:
    """The first two operands in each other's place."""
    for place, node in enumerate(scene.blamed[:MOST]):
        if kind(node) not in ORDERED or not stretch.target.runs(node):
            continue
        known = "exchanged" in told.get(node.name, "")
        first = 1 if kind(node) == "Where" else 0
        if len(node.inputs) < first + 2 or (kind(node) in ("MatMul", "PRelu") and not known):
            continue
        order = list(range(len(node.inputs)))
        order[first], order[first + 1] = first + 1, first
        change: EditDict = {"kind": "reorder-inputs", "node": node.name, "order": order}
        before, after = list(node.inputs), [node.inputs[slot] for slot in order]
        reason = "the source has the operands in this order"
        doubt = CERTAIN + 0.02 if known else 0.2 + 0.02 * place
        yield _proposal(scene.edit(NAME, node.name, before, after, reason, change), doubt)


def _joined(scene: Scene, stretch: Stretch, twins: Twins) -> Iterator[Proposal]:
    """The parts of a concatenation in the order in which the source joins them."""
    for node in stretch.theirs:
        if kind(node) != "Concat" or len(node.inputs) < 2:
            continue
        for order, doubt in ((_by_value(scene, node), CERTAIN), (_by_twins(scene, stretch, twins, node), LIKELY)):
            if order is None or order == list(range(len(node.inputs))):
                continue
            change: EditDict = {"kind": "reorder-inputs", "node": node.name, "order": order}
            before, after = list(node.inputs), [node.inputs[slot] for slot in order]
            reason = "the source joins the parts in this order"
            yield _proposal(scene.edit(NAME, node.name, before, after, reason, change), doubt)
            break


def _by_value(scene: Scene, node: Node) -> list[int] | None:
    """The order in which the parts, as the file has them, make up the mended value."""
    if node.outputs[0] != scene.finding.target:
        return None
    whole = scene.pair.theirs.values.get(node.outputs[0])
    parts = [scene.pair.target.values.get(name) for name in node.inputs]
    axis = typed(scene.theirs, node).get("axis")
    if whole is None or not isinstance(axis, int) or any(part is None or part.ndim != whole.ndim for part in parts):
        return None
    along, begin, order = axis % (whole.ndim - 1) + 1, 0, []
    left = {slot: part for slot, part in enumerate(parts) if part is not None}
    while left:
        for slot, part in left.items():
            span = np.take(whole, range(begin, min(begin + part.shape[along], whole.shape[along])), along)
            if same(scene, span, part):
                order.append(slot)
                begin += part.shape[along]
                del left[slot]
                break
        else:
            return None
    return order


def _by_twins(scene: Scene, stretch: Stretch, twins: Twins, node: Node) -> list[int] | None:
    """The order in which the source joins the twins of the parts."""
    mine = [twins.head(match.source) if (match := scene.match(name)) else None for name in node.inputs]
    for other in stretch.ours:
        its = [twins.head(name) for name in other.inputs if name in stretch.source.dynamic]
        if kind(other) == "Concat" and None not in mine and sorted(map(str, its)) == sorted(map(str, mine)):
            left, order = list(enumerate(mine)), []
            for name in its:
                slot = next(place for place, known in left if known == name)
                left = [item for item in left if item[0] != slot]
                order.append(slot)
            return order
    return None


def _rewired(scene: Scene, stretch: Stretch, twins: Twins) -> Iterator[Proposal]:
    """An operand that is not the twin of what the source's operator reads, where the target has that twin."""
    shapes = scene.theirs.shape
    for name in sorted({kind(node) for node in stretch.theirs if not moves(node) or kind(node) == "Concat"}):
        for ours, theirs in structure.pairs(stretch, name):
            mine, its = scene.theirs.data(theirs), scene.ours.data(ours)
            if len(mine) != len(its):
                continue
            for own, other in zip(mine, its, strict=True):
                if other in structure.stands_for(stretch, own):
                    continue
                placed = twins.find(other)
                if placed is None or placed.name == own or shapes(placed.name) != shapes(own):
                    continue
                slot = theirs.inputs.index(own)
                change: EditDict = {"kind": "set-input", "node": theirs.name, "slot": slot, "value": placed.name}
                reason = f"the source's {ours.shown} reads this value"
                doubt = 0.1 if structure.stands_for(stretch, own) else 0.15
                yield _proposal(scene.edit(NAME, theirs.name, own, placed.name, reason, change), doubt)
