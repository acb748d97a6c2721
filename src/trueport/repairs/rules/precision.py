"""QZ: what makes values coarser, and nobody asked for, is taken out; what a declared grid does badly is computed in float.

Rewrite: `remove-node` of casts to a narrow type and back, and of quantisation, that the source does not have, down to
the operators that hand the coarse values on. Parameters on a grid are set by the rule for parameters. In a model that
is declared as quantised, an operator whose grid loses too much is computed in float32 (`set-precision`), last of all.
Does not apply where the region makes nothing coarser than the declared precision does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trueport.diagnosis import precision
from trueport.diagnosis.operators import kind
from trueport.diagnosis.types import Cause
from trueport.frameworks._base import EditDict
from trueport.graph import Node
from trueport.repairs.rules._arranged import options
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "QZ precision"
CAUSES = frozenset({Cause.PRECISION})

_CASTS = ("Cast", "QuantizeLinear", "DequantizeLinear", "Quantize", "FakeQuantWithMinMaxVars")
"""Kinds that change nothing but the grid of values."""


def propose(scene: Scene) -> list[Proposal] | str:
    """Casts and quantisation that are not the source's; then a layer's own grid, where the model is a quantised one."""
    stretch = scene.stretch
    if stretch is None:
        return "no operator of the target stands in the region"
    proposals: list[Proposal] = []
    seen: set[str] = set()
    found = precision.narrowings(stretch.source, stretch.target, stretch.ours, stretch.theirs)
    for item in found:
        if item.node.name in seen or precision.covered(str(item.target_value), scene.precision):
            continue
        back = _back(scene, item.node)
        seen.update(node.name for node in [item.node, *back])
        ways = [_past(scene, item.node, back, item.what)]
        ways += [tuple(_removed(scene, node, item.what) for node in order) for order in _orders(item.node, back)]
        proposals += [
            Proposal(edits=way, doubt=0.02 * len(proposals) + 0.02 * place) for place, way in enumerate(ways) if way
        ]
    proposals += _in_float(scene)
    return proposals or "nothing in the region makes values coarser than the declared precision does"


def _orders(first: Node, back: list[Node]) -> list[list[Node]]:
    """The orders in which a narrowing and what undoes it may be taken out: formats check types after each step."""
    return [[first, *back], [*back, first]] if back else [[first]]


def _past(scene: Scene, first: Node, back: list[Node], what: str) -> tuple[Edit, ...]:
    """Who reads the coarse values reads those before them: both casts are then of no use and go away."""
    graph = scene.theirs.graph
    data = scene.theirs.data(first)
    ends = {name for node in back or [first] for name in node.outputs}
    if len(data) != 1 or ends.intersection(graph.outputs):
        return ()
    edits = []
    for name in ends:
        for place in graph.consumers.get(name, ()):
            reader = graph.nodes[place]
            for slot in (slot for slot, read in enumerate(reader.inputs) if read == name):
                change: EditDict = {"kind": "set-input", "node": reader.name, "slot": slot, "value": data[0]}
                made = precision.grid_made(first)
                edits.append(
                    scene.edit(NAME, reader.name, f"{name}, in {made}", f"{data[0]}, in float32", what, change)
                )
    return tuple(edits)


def _removed(scene: Scene, node: Node, what: str) -> Edit:
    change: EditDict = {"kind": "remove-node", "node": node.name}
    return scene.edit(NAME, node.name, f"{kind(node)} to {precision.grid_made(node)}", "no such operator", what, change)


def _back(scene: Scene, node: Node) -> list[Node]:
    """The nodes that undo a narrowing, right behind it; none where the values are used as they are."""
    graph = scene.theirs.graph
    readers = [graph.nodes[place] for name in node.outputs for place in graph.consumers.get(name, ())]
    if readers and all(kind(reader) in _CASTS and reader.name != node.name for reader in readers):
        return readers
    return []


# -- a declared grid that loses too much --------------------------------------------------------------------------------


def _in_float(scene: Scene) -> Iterator[Proposal]:
    """The operator at the place of the fault computed in float32, with the source's values on no grid."""
    if not scene.precision.startswith("int8"):
        return
    for place, node in enumerate(scene.blamed[:2]):
        if not scene.theirs.runs(node) or kind(node) in _CASTS:
            continue
        parameters: dict[str, str] = {}
        arrays: dict[str, np.ndarray] = {}
        for number, item in enumerate(scene.theirs.parameters(node)):
            if item.real and item.name in scene.theirs.graph.constants:
                known = next(iter(options(scene.region, item)), None) if scene.region is not None else None
                parameters[item.name] = f"p{number}"
                arrays[f"p{number}"] = np.asarray(item.array if known is None else known.array, np.float32)
        change: EditDict = {"kind": "set-precision", "node": node.name, "dtype": "float32", "parameters": parameters}
        reason = f"its grid loses more than the rest of the model does, and {kind(node)} in float32 does not"
        edit = scene.edit(NAME, node.name, scene.precision, "float32", reason, change, **arrays)
        yield Proposal(edits=(edit,), doubt=0.8 + 0.05 * place)
