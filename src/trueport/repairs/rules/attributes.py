"""LH: a typed attribute that is not the source's is set to the source's, in the words and the numbering of the target.

Rewrite: `set-attribute` of every attribute in which an operator of the region differs from its partner in the source.
A bound of an activation may be another operator (Relu for a Clip without an upper bound): then `set-operator`.
Does not apply where no operator of the region has a partner of its kind, or all typed attributes agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trueport.diagnosis import differences, layouts, mismatches, pool
from trueport.diagnosis.attributes import TABLE, listed, typed
from trueport.diagnosis.evidence import MOST_ATTRIBUTES, paired
from trueport.diagnosis.mismatches import Mismatch
from trueport.diagnosis.operators import activation, kind
from trueport.diagnosis.types import Cause
from trueport.frameworks._base import EditDict
from trueport.graph import FINE, Node
from trueport.repairs.rules._stored import place_of
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
    proposals: list[Proposal] = []
    for ours, theirs, differing in paired(stretch, region.partners):
        place = 0.02 * order.get(theirs.name, len(order))
        proposals += _of_pair(scene, theirs, ours, differing, place)
        for other in stretch.ours:
            if other.name != ours.name and kind(other) == kind(theirs) and scene.ours.runs(other):
                found = mismatches.mismatches(scene.ours, scene.theirs, other, theirs, scene.alignment)
                proposals += _of_pair(scene, theirs, other, found, 0.2 + place)
    proposals += _of_bounds(scene)
    proposals += _of_fused(scene)
    for place, node in enumerate(scene.blamed):
        proposals += _padded(scene, node, 0.3 + 0.02 * place)
        proposals += _other_choices(scene, node, 0.4 + 0.02 * place)
    return proposals or "all typed attributes of the region's operators are the source's"


def _of_pair(scene: Scene, theirs: Node, ours: Node, differing: Sequence[Mismatch], doubt: float) -> Iterator[Proposal]:
    """All attributes in which an operator differs from its partner at once, then each alone."""
    if not differing or len(differing) > MOST_ATTRIBUTES:
        return
    edits = tuple(edit for item in differing for edit in _edits(scene, theirs, ours, item))
    if any(item.name == "group" for item in differing):
        yield from _regrouped(scene, theirs, ours, edits, doubt)
    if edits:
        yield Proposal(edits=edits, doubt=doubt)
    if len(edits) > 1:
        yield from (Proposal(edits=(edit,), doubt=doubt + 0.1) for edit in edits)
    for item in differing:
        if item.name in ("strides", "dilations", "kernel_shape"):
            for pads in _pads(scene, theirs, {one.name: one.source_value for one in differing}):
                yield Proposal(edits=(*edits, pads), doubt=doubt + 0.15)
            return


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
    elif name == "axis" and isinstance(wanted, list) and isinstance(item.target_value, int):
        yield name, min(wanted) if wanted else wanted
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
    lay = mismatches.Axes(scene.ours, scene.theirs, ours, theirs, scene.alignment)
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


def _regrouped(scene: Scene, theirs: Node, ours: Node, edits: tuple[Edit, ...], doubt: float) -> Iterator[Proposal]:
    """A convolution of another number of groups has weights of another size: the source's come with it."""
    region = scene.region
    mine = next((item for item in scene.theirs.parameters(theirs) if layouts.axes_of(item)), None)
    its = next((item for item in scene.ours.parameters(ours) if layouts.axes_of(item)), None)
    place = None if mine is None else place_of(scene.theirs, mine)
    if region is None or mine is None or its is None or place is None:
        return
    axes, known = layouts.axes_of(mine) or "", pool.raw_of(its)
    if known.array.ndim < 3 or "M" in axes or ("1" in axes and known.array.shape[1] != 1):
        return  # a depthwise operator takes one input per output, whatever the source has
    size = [known.array.shape["OI".index(letter)] if letter in "OI" else 1 for letter in axes if letter in "OI1"]
    spatial = iter(known.array.shape[2:])
    shape = [size.pop(0) if letter in "OI1" else next(spatial) for letter in axes]
    scales = [None, *(scale for scale in region.pool.scales if scale.array.size == len(known.array))]
    for number, scale in enumerate(scales[:MOST_ATTRIBUTES]):
        array = known.array
        if scale is not None:
            array = array * scale.array.reshape(-1, *[1] * (array.ndim - 1))
        change: EditDict = {"kind": "set-parameter", "node": place.node, "parameter": place.parameter, "array": "new"}
        weights = scene.edit(
            NAME,
            theirs.name,
            f"{mine.stored}: {differences.shown(mine.array)}",
            f"{known.label}: {differences.shown(array)}",
            "weights of as many groups as the source has",
            change,
            new=layouts.native_of(array, axes, shape),
        )
        yield Proposal(edits=(*edits, weights), doubt=doubt + 0.01 + 0.01 * number)


def _padded(scene: Scene, node: Node, doubt: float) -> Iterator[Proposal]:
    """Other paddings that give the size that the source has here."""
    if "strides" not in TABLE.get(kind(node), {}) or kind(node) == "ConvTranspose":
        return
    for edit in _pads(scene, node, {}):
        yield Proposal(edits=(edit,), doubt=doubt)


def _pads(scene: Scene, node: Node, changed: Mapping[str, Any]) -> Iterator[Edit]:
    """The ways to pad a window so that the result has the source's size: evenly, the odd one before or behind, all on one side."""
    own = {**typed(scene.theirs, node), **changed}
    before = scene.theirs.spatial(node)
    value = scene.pair.theirs.values.get(node.outputs[0])
    if before is None or value is None or value.ndim != len(before) + 3 or "kernel_shape" not in own:
        return
    last = (
        scene.theirs.channels_last
        if "data_format" not in node.attributes
        else "last" in str(node.attributes["data_format"])
    )
    after = value.shape[2:-1] if last else value.shape[3:]
    totals = [
        max(0, (size_after - 1) * step + (width - 1) * gap + 1 - size)
        for size, size_after, width, step, gap in zip(
            before, after, own["kernel_shape"], own["strides"], own["dilations"], strict=True
        )
    ]
    now = typed(scene.theirs, node).get("pads")
    ways = [
        [total // 2 for total in totals] + [total - total // 2 for total in totals],
        [total - total // 2 for total in totals] + [total // 2 for total in totals],
        [0] * len(totals) + totals,
        totals + [0] * len(totals),
    ]
    for pads in {tuple(way): way for way in ways}.values():
        if pads != now:
            change: EditDict = {"kind": "set-attribute", "node": node.name, "attribute": "pads", "value": pads}
            reason = "so padded, the result has the source's size and values"
            yield scene.edit(NAME, node.name, f"pads: {now}", f"pads: {pads}", reason, change)


CHOICES: Mapping[str, tuple[Mapping[str, Any], ...]] = {
    "AveragePool": ({"count_include_pad": 0}, {"count_include_pad": 1}, {"ceil_mode": 0}, {"ceil_mode": 1}),
    "Elu": ({"alpha": 1.0},),
    "GRU": (
        {"linear_before_reset": 0},
        {"linear_before_reset": 1},
        {"recurrent_activation": "sigmoid"},
        {"recurrent_activation": "hard_sigmoid"},
        {"activation": "tanh"},
        {"activation": "relu"},
        {"direction": "forward"},
        {"direction": "reverse"},
    ),
    "Gelu": ({"approximate": "none"}, {"approximate": "tanh"}),
    "LSTM": (
        {"recurrent_activation": "sigmoid"},
        {"recurrent_activation": "hard_sigmoid"},
        {"activation": "tanh"},
        {"activation": "relu"},
        {"direction": "forward"},
        {"direction": "reverse"},
    ),
    "MaxPool": ({"ceil_mode": 0}, {"ceil_mode": 1}),
    "Resize": (
        {"coordinate_transformation_mode": "half_pixel"},
        {"coordinate_transformation_mode": "asymmetric"},
        {"coordinate_transformation_mode": "align_corners"},
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "nearest", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"},
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "ScatterElements": ({"reduction": "add"}, {"reduction": "none"}),
    "ScatterND": ({"reduction": "add"}, {"reduction": "none"}),
}
"""Kind -> settings that there are few of, for where the source is taken apart and does not show its own."""


def _other_choices(scene: Scene, node: Node, doubt: float) -> Iterator[Proposal]:
    """The other settings of an operator that has few; which one is right is proven by the values alone."""
    own = typed(scene.theirs, node)
    for choice in CHOICES.get(kind(node), ()):
        differing = {name: value for name, value in choice.items() if own.get(name, node.attributes.get(name)) != value}
        if not differing or any(name not in own and name not in node.attributes for name in list(choice)[:1]):
            continue
        edits = []
        for name, value in differing.items():
            change: EditDict = {"kind": "set-attribute", "node": node.name, "attribute": name, "value": value}
            reason = "of the settings that there are, the one that gives the source's values"
            edits.append(scene.edit(NAME, node.name, f"{name}: {own.get(name)}", f"{name}: {value}", reason, change))
        yield Proposal(edits=tuple(edits), doubt=doubt)


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
