"""RT: the runtime computes right operators wrongly, because it fuses them; the file keeps it from doing so.

Rewrite: between two operators of the faulty fusion comes one that gives what it is given and that no pass of the runtime
takes out (`Max` of one operand): `insert`. What the model means stays the same.
Does not apply where the wrong kernel is a single operator's, or the format has no such operator.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from trueport.diagnosis.region import Inside
from trueport.diagnosis.types import Cause
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "RT runtime"
CAUSES = frozenset({Cause.RUNTIME})


def propose(scene: Scene) -> list[Proposal] | str:
    """A barrier on each edge inside the region, the last edge first."""
    if scene.suspect.cause is not Cause.RUNTIME:
        return "the runtime's kernels agree with the traced values"
    if scene.format != "onnx":
        return f"a {scene.format} file has no way to keep its runtime from a kernel; run it with another one"
    region = {node.name for node in scene.blamed} | set(scene.finding.region)
    edits = barriers(scene.theirs, region)
    proposals = [Proposal(edits=(edit,), doubt=0.1 * place) for place, edit in enumerate(edits)]
    return proposals or "the operator that is computed wrongly is a single one"


def barriers(inside: Inside, region: Collection[str]) -> Iterator[Edit]:
    """A barrier on each edge between two of these operators of an ONNX model, the last edge first."""
    graph = inside.graph
    for node in reversed([node for node in graph.nodes if node.name in region]):
        for value in inside.data(node):
            made = graph.producer(value)
            if made is None or made.name not in region:
                continue
            yield Edit(
                rule=NAME,
                kind="insert",
                where=node.shown,
                before=f"{made.op}, {node.op}",
                after=f"{made.op}, Max of one operand, {node.op}: not fused",
                reason=f"the runtime fuses {made.op} and {node.op}, and is wrong when it does",
                change={
                    "kind": "insert",
                    "value": value,
                    "steps": [{"operator": "Max", "attributes": {}, "constants": []}],
                    "readers": [node.name],
                },
            )
