"""CG, at last: the target's region is computed anew by the source's operators, in ONNX words.

Rewrite: one `recompute` of the value at which the target was healed, from the nearest values that agree, by the source's
operators between their twins; constants are the source's, and transposes stand where the layouts differ.
Does not apply where a region is large, or one of the source's operators has no translation.
"""

from __future__ import annotations

from trueport.diagnosis.operators import moves
from trueport.diagnosis.types import Cause
from trueport.graph import Node
from trueport.repairs.rules._twins import Twins
from trueport.repairs.rules._writer import Placed, Untranslatable, order_of, recomputed
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "CG segment"
CAUSES: frozenset[Cause] = frozenset()

MOST = 12
"""Operators of either region up to which a segment is replaced."""

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that are not written into a model of declared int8: its layers would become those of a float model."""

DOUBT = 0.5
"""Of a segment; each operator that is written adds a little, so that the shorter of two is tried first."""


def propose(scene: Scene) -> list[Proposal] | str:
    """The segment at each granularity of the source, the shortest first."""
    finding = scene.finding
    if finding.source is None or finding.relation is None or not finding.region:
        return "it is not known what the target should compute here"
    if len(finding.region) > MOST:
        return f"the region has {len(finding.region)} operators, too many to be replaced at once"
    twins = Twins(scene)
    if twins.readers is not None:
        return "only some readers of the value are wrong"
    why: dict[str, None] = {}
    found: list[Proposal] = []
    tried: set[str] = set()
    ends = twins.same(finding.source)
    known = twins.known() - {twins.head(finding.source), *ends}
    for end in ends:
        nodes = scene.pair.ours.graph.between(end, known)
        computing = [node for node in nodes if scene.ours.runs(node) and not moves(node)]
        if not nodes or len(computing) > MOST:
            why.setdefault(f"the source computes this by {len(computing)} operators, too many to be written at once")
            continue
        try:
            edit = _edit(scene, twins, nodes, end)
        except Untranslatable as error:
            why.setdefault(str(error))
            continue
        key = str(edit.change)
        if key not in tried:
            tried.add(key)
            found.append(Proposal(edits=(edit,), doubt=DOUBT + 0.01 * len(edit.change["nodes"])))
    return sorted(found, key=lambda proposal: proposal.doubt) or next(iter(why), "the source has nothing to put here")


def _edit(scene: Scene, twins: Twins, nodes: tuple[Node, ...], end: str) -> Edit:
    """The value at the place of the fault, computed by these operators of the source. Raises Untranslatable."""
    finding, writer = scene.finding, twins.writer()
    value = scene.pair.theirs.values.get(finding.target)
    if value is None or finding.relation is None:
        raise Untranslatable("the value at the place of the fault was not traced")
    writer.pending = {name: node for node in nodes for name in node.outputs}
    result, shape = writer.value(end), tuple(value.shape[1:])
    order, flat = None, False
    if scene.ours.shape(end) == scene.ours.shape(str(finding.source)):
        order, flat = order_of(finding.relation, result.shape, shape), finding.relation.identity
    order = order if order is not None or flat else twins.usual(result.shape, shape)
    name = writer.like(result, Placed(finding.target, result.shape, order, shape if order is None and flat else None))
    if not writer.made or writer.made[-1].output != name:
        name = writer.write("Identity", [name])
    if scene.precision == "int8" and any(made.operator in WEIGHTED for made in writer.made):
        raise Untranslatable("the source computes this in floats, and the target is declared as int8")
    shown = ", ".join(made.operator for made in writer.made)
    region = ", ".join(node.op for node in scene.theirs.nodes(finding.region))
    producer = scene.pair.target.graph.producer(finding.target)
    where = scene.blamed[0].name if scene.blamed else finding.target if producer is None else producer.name
    reason = f"the source computes this by {', '.join(node.shown for node in nodes[:4])}"
    return scene.edit(NAME, where, region, shown, reason, recomputed(finding.target, writer), **writer.arrays)
