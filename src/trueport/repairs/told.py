"""What can be changed where no value inside can be compared: an output has another shape, or the runtime refuses an operator.

Rewrites: an output whose axes are in another order is transposed (`insert`); any other is computed by the source's own
operators (`recompute`), where its operator gives a count beside it, it is cut there (`insert`), and a non-maximum
suppression is written out (`recompute`); an operator that the runtime refuses is written in steps that it takes
(`recompute`). Tried against the verdict itself, since there is no place
to look at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trueport.align.types import Alignment
from trueport.artifact import Artifact
from trueport.compare.types import Verdict, Verification
from trueport.diagnosis import told
from trueport.diagnosis.operators import kind
from trueport.diagnosis.pair import Pair
from trueport.diagnosis.region import Inside
from trueport.frameworks._base import EditDict
from trueport.graph import Graph, Node
from trueport.outcome import Failure, Stage
from trueport.repairs.rules import suppression
from trueport.repairs.rules._translate import translate
from trueport.repairs.rules._writer import Placed, Untranslatable, Writer, identity, recomputed
from trueport.repairs.types import Edit, Proposal
from trueport.session import Session

NAME = "CG outputs"

MOST = 12
"""Operators of the source by which an output is computed anew at most."""


# -- outputs of another shape ---------------------------------------------------------------------------------------------


def of_shape(pair: Pair, healed: Alignment, verification: Verification) -> list[Proposal] | str:
    """What would give the outputs that have another shape the source's, the likeliest first."""
    found: list[Proposal] = []
    for output in verification.comparison.outputs:
        shapes = told.SHAPES.search(output.reason)
        if output.verdict is not Verdict.DEVIATES or shapes is None:
            continue
        source, target = pair.source.output_value(output.source), pair.target.output_value(output.target)
        ours, theirs = ([int(size) for size in re.findall(r"\d+", text)] for text in shapes.groups())
        found += _turned(pair, target, ours, theirs)
        found += _cut(pair, target, ours, theirs)
        above = pair.target.graph.upward([target])
        picked = suppression.of_nodes(pair, [node for node in pair.target.graph.nodes if {*node.outputs} & {*above}])
        found += [] if isinstance(picked, str) else picked
        found += _anew(pair, healed, source, target)
    return found or "every output has the source's shape"


def _edit(pair: Pair, value: str, before: Any, after: Any, reason: str, change: EditDict, **arrays: np.ndarray) -> Edit:
    node = pair.target.graph.producer(value)
    where = value if node is None else node.shown
    kind_of = str(change["kind"])
    return Edit(
        rule=NAME, kind=kind_of, where=where, before=before, after=after, reason=reason, change=change, arrays=arrays
    )


def _turned(pair: Pair, value: str, ours: list[int], theirs: list[int]) -> Iterator[Proposal]:
    """The axes of the source: by their sizes, which have to tell them apart."""
    if len(ours) != len(theirs) or sorted(ours) != sorted(theirs) or len(set(ours)) != len(ours) or ours == theirs:
        return
    perm = [theirs.index(size) for size in ours]
    change: EditDict = {
        "kind": "insert",
        "value": value,
        "steps": [{"operator": "Transpose", "attributes": {"perm": perm}, "constants": []}],
    }
    reason = "the source's output has its axes in this order"
    yield Proposal(edits=(_edit(pair, value, theirs, f"Transpose by {perm}: {ours}", reason, change),))


def _cut(pair: Pair, value: str, ours: list[int], theirs: list[int]) -> Iterator[Proposal]:
    """The first so many: the operator gives the number beside the output."""
    node = pair.target.graph.producer(value)
    longer = len(ours) == len(theirs) == 1 and ours[0] < theirs[0]
    if node is None or not longer or len(node.outputs) < 2:
        return
    for count in node.outputs:
        if count == value or not count:
            continue
        change: EditDict = {
            "kind": "insert",
            "value": value,
            "steps": [{"operator": "Slice", "attributes": {}, "constants": ["first"], "others": [count]}],
        }
        reason = f"the source's output ends there: '{count}' says where"
        arrays = {"first": np.zeros(1, np.int64)}
        yield Proposal(edits=(_edit(pair, value, theirs, f"cut at '{count}'", reason, change, **arrays),), doubt=0.1)


def _anew(pair: Pair, healed: Alignment, source: str, value: str) -> Iterator[Proposal]:
    """The source's operators, from what the target has of its values, as the source lays them out."""
    twins = _same(pair, healed, pair.target.graph, value)
    nodes = pair.ours.graph.between(source, set(twins) - {source})
    if not nodes or len(nodes) > MOST:
        return
    format = Inside(pair.target).format
    writer = Writer(source=Inside(pair.source), format=format, last=False, find=twins.get, translate=translate)
    try:
        for node in nodes:
            translate(writer, node)
        result = writer.places[source]
        if result.order is None or result.order != identity(len(result.shape)):
            return
    except (Untranslatable, KeyError):
        return
    if not writer.made or writer.made[-1].output != result.name:
        return
    shown = ", ".join(made.operator for made in writer.made)
    producer = pair.target.graph.producer(value)
    before = "" if producer is None else kind(producer)
    reason = f"the source computes this by {', '.join(node.shown for node in nodes[:4])}"
    yield Proposal(
        edits=(_edit(pair, value, before, shown, reason, recomputed(value, writer), **writer.arrays),), doubt=0.2
    )


def _same(pair: Pair, healed: Alignment, graph: Graph, value: str) -> Mapping[str, Placed]:
    """Values of the source that the target has as they are, and not computed from the wrong output."""
    below = set(graph.downward([value]))
    found: dict[str, Placed] = {}
    for name, match in healed.matches.items():
        theirs, ours = pair.theirs.values.get(name), pair.ours.values.get(match.source)
        if name in below or not match.ok or theirs is None or ours is None or not match.relation.identity:
            continue
        if theirs.shape == ours.shape:
            shape = tuple(ours.shape[1:])
            found.setdefault(match.source, Placed(name, shape, identity(len(shape))))
    return found


# -- operators that the runtime refuses -----------------------------------------------------------------------------------


def of_refusal(session: Session, target: Artifact, verification: Verification) -> list[Proposal] | str:
    """Operators that the format has not, in its own words; the operator at which the runtime stopped, in steps that it takes."""
    shown = session.ask(target, "graph", {}, stage=Stage.TRACE)
    stored = session.ask(target, "parameters", {}, stage=Stage.TRACE, emit=True)
    if isinstance(shown, Failure) or isinstance(stored, Failure):
        return "the file cannot be read"
    graph, arrays = Graph.from_wire(shown.value.value), stored.value.emitted
    refused = {name for suspect in told.refused(session, target, verification) for name in suspect.target_nodes}
    edits = [
        edit
        for node in graph.nodes
        if (rule := FOREIGN.get(node.op) or (STEPWISE.get(kind(node)) if node.shown in refused else None)) is not None
        and (edit := rule(node, arrays)) is not None
    ]
    session.pool.release(stored.value.folder)
    return [Proposal(edits=tuple(edits))] if edits else "there are no other words for what the runtime refuses"


Rule = Callable[[Node, Mapping[str, np.ndarray]], "Edit | None"]
"""An operator and the constants of the file -> the edit that writes it otherwise."""


def _one_axis_at_a_time(node: Node, stored: Mapping[str, np.ndarray]) -> Edit | None:
    """Reversing is done axis by axis in any order."""
    axes = [int(axis) for name in node.inputs[1:] if name in stored for axis in np.ravel(stored[name])]
    if len(axes) < 2:
        return None
    words = [("Reverse", [_RESULT], {"axes": [axis]}) for axis in axes]
    return _written(node, words, "the runtime takes one axis at a time")


_DATA, _RESULT = "data", "result before"
"""Operands of an operator that is put in: the first one of the operator in whose place it comes, what was computed last."""


def _foreign(*words: tuple[str, Sequence[Any]]) -> Rule:
    """These operators instead of one that the format has not."""

    def rule(node: Node, stored: Mapping[str, np.ndarray]) -> Edit | None:
        return _written(node, [(name, operands, {}) for name, operands in words], "the format has no such operator")

    return rule


def _written(node: Node, words: Sequence[tuple[str, Sequence[Any], Mapping[str, Any]]], reason: str) -> Edit | None:
    if not node.outputs or not node.inputs:
        return None
    arrays: dict[str, np.ndarray] = {}
    made, before = [], node.inputs[0]
    for place, (operator, operands, attributes) in enumerate(words):
        names = []
        for operand in operands:
            if isinstance(operand, float):
                names.append(f"number {len(arrays)}")
                arrays[names[-1]] = np.array(operand, np.float32)
            else:
                names.append({_DATA: node.inputs[0], _RESULT: before}[operand])
        before = f"{node.outputs[0]}_{operator.lower()}_{place}"
        made.append(
            {"op": operator, "name": before, "inputs": names, "outputs": [before], "attributes": dict(attributes)}
        )
    change: Any = {"kind": "recompute", "value": node.outputs[0], "nodes": made}
    return Edit(
        rule=NAME,
        kind="recompute",
        where=node.shown,
        before=node.op,
        after=", ".join(
            " ".join([operator, *(f"{key} {value}" for key, value in given.items())]) for operator, _, given in words
        ),
        reason=reason,
        change=change,
        arrays=arrays,
    )


FOREIGN: Mapping[str, Rule] = {
    "Erfc": _foreign(("Erf", [_DATA]), ("Sub", [1.0, _RESULT])),
    "Expm1": _foreign(("Exp", [_DATA]), ("Sub", [_RESULT, 1.0])),
    "Log1p": _foreign(("Add", [_DATA, 1.0]), ("Log", [_RESULT])),
    "TFL_GELU": _foreign(
        ("Mul", [_DATA, 0.7071067811865476]),
        ("Erf", [_RESULT]),
        ("Add", [_RESULT, 1.0]),
        ("Mul", [_RESULT, _DATA]),
        ("Mul", [_RESULT, 0.5]),
    ),
}
"""Operator of TensorFlow that converters leave in ONNX files -> ONNX operators that compute it."""

STEPWISE: Mapping[str, Rule] = {"Flip": _one_axis_at_a_time, "Reverse": _one_axis_at_a_time}
"""Kind of an operator that a runtime may refuse -> what it is in steps."""
