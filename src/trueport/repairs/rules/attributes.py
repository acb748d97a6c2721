"""LH: a typed attribute that is not the source's is set to the source's, in the words and the numbering of the target.

Rewrite: `set-attribute` of every attribute in which an operator of the region differs from its partner in the source.
A bound of an activation may be another operator (Relu for a Clip without an upper bound): then `set-operator`.
Does not apply where no operator of the region has a partner of its kind, or all typed attributes agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from trueport.diagnosis import mismatches
from trueport.diagnosis.attributes import listed, typed
from trueport.diagnosis.evidence import MOST_ATTRIBUTES, paired
from trueport.diagnosis.mismatches import Mismatch
from trueport.diagnosis.operators import activation, kind
from trueport.diagnosis.types import Cause
from trueport.frameworks._base import EditDict
from trueport.graph import FINE, Node
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "LH attributes"
CAUSES = frozenset({Cause.HYPERPARAMETERS})

FUNCTIONS = {
    "elu": "Elu",
    "hardsigmoid": "HardSigmoid",
    "linear": "Affine",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "tanh": "Tanh",
}
"""Activation of a recurrent operator in our spelling -> in ONNX's."""

BOUNDS = {(0.0, math.inf): "relu", (0.0, 6.0): "relu6", (-1.0, 1.0): "relu_n1_to_1", (-math.inf, math.inf): None}
"""What an activation lets through -> the name of the fused one."""

FUSED = {"Relu": "relu", "Tanh": "tanh", "Sigmoid": "sigmoid", "Elu": "elu", "Swish": "swish", "Gelu": "gelu"}
"""Kind of an activation -> its name as a fused one; a Clip is named by its bounds."""


def propose(scene: Scene) -> list[Proposal] | str:
    """All differing attributes of one operator at once, the most suspicious operator first; then bounds, then fused ones."""
    stretch, region = scene.stretch, scene.region
    if stretch is None or region is None:
        return "no operator of the target stands in the region"
    region.faults()  # tells which operators read the same parameters
    order = {node.name: place for place, node in enumerate(scene.blamed)}
    found: list[tuple[int, Proposal]] = []
    for _ours, theirs, differing in paired(stretch, region.partners):
        if not differing or len(differing) > MOST_ATTRIBUTES:
            continue
        edits = tuple(edit for item in differing for edit in _edits(scene, theirs, _ours, item))
        if not edits:
            continue
        place = order.get(theirs.name, len(order))
        found.append((place, Proposal(edits=edits, doubt=0.02 * place)))
        if len(edits) > 1:
            found += [(place, Proposal(edits=(edit,), doubt=0.1 + 0.02 * place)) for edit in edits]
    proposals = [proposal for _, proposal in sorted(found, key=lambda item: (item[0], item[1].doubt))]
    proposals += _of_bounds(scene)
    proposals += _of_fused(scene)
    return proposals or "all typed attributes of the region's operators are the source's"


# -- attributes that differ -----------------------------------------------------------------------------------------------


def _edits(scene: Scene, theirs: Node, ours: Node, item: Mismatch) -> Iterator[Edit]:
    """The edits that set one attribute; none where the target has no word for what the source does."""
    owner = item.node or theirs.name
    for name, value in _words(scene, theirs, ours, item):
        change: EditDict = {"kind": "set-attribute", "node": owner, "attribute": name, "value": value}
        reason = f"{item.name} of {kind(theirs)} is that of the source's {ours.shown}"
        yield scene.edit(
            NAME, owner, f"{item.name}: {item.target_value}", f"{item.name}: {item.source_value}", reason, change
        )


def _words(scene: Scene, theirs: Node, ours: Node, item: Mismatch) -> Iterator[tuple[str, Any]]:
    """(attribute, value) as the target's operator takes them."""
    name, wanted = item.name, item.source_value
    if name == "window":
        yield from _window(scene, theirs, ours)
    elif name == "coordinate_transformation_mode" and ", " in str(wanted):
        way, nearest = str(wanted).split(", ", 1)
        yield name, way
        yield "nearest_mode", nearest
    elif name == "activations" and isinstance(wanted, list):
        if scene.format == "onnx":
            both = 2 if theirs.attributes.get("direction") == "bidirectional" else 1
            yield name, [FUNCTIONS.get(str(one), str(one)) for one in wanted] * both
        else:
            yield "recurrent_activation", _spelt(str(wanted[0]))
            yield "activation", _spelt(str(wanted[-1]))
    elif name == "activation":
        yield name, None if wanted is None else FUSED.get(str(wanted), str(wanted).lower())
    elif name == "divisor_override" and isinstance(wanted, str):
        yield name, None
    elif name == "sizes":
        return
    elif name in ("min", "max") and isinstance(wanted, float) and math.isinf(wanted):
        yield name, None
    else:
        yield name, wanted


def _spelt(function: str) -> str:
    return "hard_sigmoid" if function == "hardsigmoid" else function


def _window(scene: Scene, theirs: Node, ours: Node) -> Iterator[tuple[str, Any]]:
    """The begins, ends and steps of a Slice, along the axes that it has already."""
    stretch = scene.stretch
    if stretch is None:
        return
    wanted, got = typed(scene.ours, ours).get("window"), typed(scene.theirs, theirs).get("window")
    data = scene.theirs.data(theirs)
    shape = scene.theirs.shape(data[0]) if data else None
    if wanted is None or got is None or shape is None:
        return
    lay = mismatches.Axes(scene.ours, scene.theirs, ours, theirs, scene.healed)
    placed = {}
    for axis, span in wanted.items():
        own = lay.translated([axis], axis)
        if not isinstance(own, int):
            return
        placed[own] = span
    axes = _axes_of(scene, theirs, len(shape))
    if axes is None or not set(placed) <= set(axes):
        return
    spans = [placed.get(axis, [0, shape[axis], 1]) for axis in axes]
    now = [got.get(axis, [0, shape[axis], 1]) for axis in axes]
    for place, name in enumerate(("starts", "ends", "steps")):
        if [span[place] for span in spans] != [span[place] for span in now]:
            yield name, [span[place] for span in spans]


def _axes_of(scene: Scene, node: Node, rank: int) -> list[int] | None:
    """The axes along which a Slice cuts, in its own order."""
    given = listed(node.attributes.get("axes"))
    if given is None and len(node.inputs) > 3 and node.inputs[3]:
        array = scene.theirs.array(node.inputs[3])
        given = None if array is None or node.native_op in ("StridedSlice", "STRIDED_SLICE") else listed(array.tolist())
    if given is None:
        first = listed(node.attributes.get("starts"))
        if first is None and len(node.inputs) > 1:
            array = scene.theirs.array(node.inputs[1])
            first = None if array is None else listed(array.ravel().tolist())
        given = None if first is None else list(range(len(first)))
    return None if given is None else [axis % rank for axis in given]


# -- activations that cut values off ----------------------------------------------------------------------------------------


def _of_bounds(scene: Scene) -> Iterator[Proposal]:
    """Activations compared in order by what they let through, as the diagnosis does."""
    stretch = scene.stretch
    if stretch is None:
        return
    mine = mismatches.bounds(stretch.target, stretch.theirs)
    for fine in (False, True):
        its = mismatches.bounds(stretch.source, [node for node in stretch.ours if node.name.startswith(FINE) == fine])
        if not its or len(its) != len(mine):
            continue
        for (ours, wanted), (theirs, got) in zip(its, mine, strict=True):
            if wanted != got:
                edits = tuple(_bounded(scene, theirs, ours, wanted, got))
                if edits:
                    yield Proposal(edits=edits, doubt=0.05)
        return


def _bounded(
    scene: Scene, theirs: Node, ours: Node, wanted: tuple[float, float], got: tuple[float, float]
) -> Iterator[Edit]:
    """Let an activation give what lies between two bounds."""
    before, after = (f"{low:g} to {high:g}" for low, high in (got, wanted))
    reason = f"the activation lets through what the source's {ours.shown} does"
    changes: list[EditDict] = []
    if activation(theirs) is not None and kind(theirs) not in ("Relu", "Clip"):
        if wanted in BOUNDS:
            changes = [
                {"kind": "set-attribute", "node": theirs.name, "attribute": "activation", "value": BOUNDS[wanted]}
            ]
    elif kind(theirs) == "Clip" and scene.format == "onnx":
        for name, now, then in zip(("min", "max"), got, wanted, strict=True):
            if now != then:
                value = None if math.isinf(then) else then
                changes.append({"kind": "set-attribute", "node": theirs.name, "attribute": name, "value": value})
    elif wanted == (0.0, math.inf):
        changes = [{"kind": "set-operator", "node": theirs.name, "operator": "Relu", "attributes": {}}]
    else:
        bounds = {name: value for name, value in zip(("min", "max"), wanted, strict=True) if math.isfinite(value)}
        changes = [{"kind": "set-operator", "node": theirs.name, "operator": "Clip", "attributes": bounds}]
    for change in changes:
        yield scene.edit(NAME, theirs.name, before, after, reason, change)


def _of_fused(scene: Scene) -> Iterator[Proposal]:
    """A fused activation that is lost, changed or too many: what the source's region has of activations stands there."""
    stretch = scene.stretch
    if stretch is None:
        return
    wanted = list(dict.fromkeys(_fusable(scene, stretch.ours)))
    for place, node in enumerate(scene.blamed):
        if "activation" not in node.attributes or node.op in ("LSTM", "GRU", "RNN"):
            continue
        now = node.attributes["activation"]
        own = activation(node)
        for choice in [*wanted, None] if own is not None else wanted:
            if choice is not None and str(now).lower() == choice:
                continue
            reason = "the source's operator has this activation" if choice else "the source has no activation here"
            change: EditDict = {"kind": "set-attribute", "node": node.name, "attribute": "activation", "value": choice}
            edit = scene.edit(NAME, node.name, f"activation: {now}", f"activation: {choice}", reason, change)
            yield Proposal(edits=(edit,), doubt=0.15 + 0.02 * place)


def _fusable(scene: Scene, nodes: Sequence[Node]) -> Iterator[str]:
    """The activations among these nodes of the source, fused or not, under the names of fused ones."""
    for node in nodes:
        for name in (kind(node), activation(node)):
            if name == "Clip":
                for _, bounds in mismatches.bounds(scene.ours, [node]):
                    fused = BOUNDS.get(bounds)
                    if fused is not None:
                        yield fused
            elif name in FUSED:
                yield FUSED[name]
