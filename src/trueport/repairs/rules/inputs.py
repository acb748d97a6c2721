"""PP: the target prepares its inputs, or numbers its classes, otherwise than the source does.

Rewrite, where operators in front of the target's first layer do what the source does not: `remove-node` of them, or
their readers read the input itself (`set-input`). Where the target expects inputs that were prepared in another way:
`insert` behind the input what makes the one of the other (order of axes and channels, flips, scale and shift), and
behind an output whose classes are shifted the classes that the source has.
Does not apply where neither the place of the fault nor a healing preparation lies at an input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from trueport.diagnosis.inputs import Change, explain
from trueport.diagnosis.preparation import before_layers
from trueport.diagnosis.preprocessing import PreprocessingFinding
from trueport.diagnosis.types import Cause
from trueport.frameworks._base import EditDict
from trueport.graph import Node
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal

NAME = "PP inputs"
CAUSES = frozenset({Cause.INPUTS})

LONGEST = 4
"""Operators of preparation that are taken out together at most."""


def propose(scene: Scene) -> list[Proposal] | str:
    """Take out what the source does not do; else put in what the target misses."""
    proposals = [*_without(scene), *(_changed(scene) if scene.prepared is None else _prepared(scene, scene.prepared))]
    return proposals or "no preparation of an input in front of the first layer, and none that heals"


# -- too much ---------------------------------------------------------------------------------------------------------------


def _without(scene: Scene) -> Iterator[Proposal]:
    """Take operators in front of the first layer out, those of the region first, as few as possible."""
    graph = scene.pair.target.graph
    region = {node.name for node in scene.blamed}
    for name in graph.inputs:
        chain = before_layers(scene.theirs, name)
        if not chain or not (region & {node.name for node in chain} or scene.finding.target == name):
            continue
        spans = [
            (start, end)
            for start in range(len(chain))
            for end in range(start + 1, min(len(chain), start + LONGEST) + 1)
        ]
        whole = [node.name in region for node in chain]
        first = whole.index(True) if any(whole) else 0
        last = len(whole) - whole[::-1].index(True) if any(whole) else len(chain)
        spans.sort(key=lambda span: (abs(span[0] - first) + abs(span[1] - last), span[1] - span[0]))
        for place, (start, end) in enumerate(spans):
            part = chain[start:end]
            doubt = 0.03 * min(place, 12)
            if all(len(node.outputs) == 1 and len(scene.theirs.data(node)) == 1 for node in part):
                edits = tuple(_removed(scene, name, node) for node in part)
                yield Proposal(edits=edits, doubt=doubt)
        bypass = tuple(_bypassed(scene, name, chain))
        if bypass:
            yield Proposal(edits=bypass, doubt=0.4)


def _removed(scene: Scene, name: str, node: Node) -> Edit:
    change: EditDict = {"kind": "remove-node", "node": node.name}
    what = f"{node.op} of input '{name}'"
    return scene.edit(NAME, node.name, what, "the input as it is", "the source does not prepare its input so", change)


def _bypassed(scene: Scene, name: str, chain: list[Node]) -> Iterator[Edit]:
    """Whoever reads the end of the preparation reads the input itself."""
    graph = scene.pair.target.graph
    end = chain[-1].outputs[0]
    before, after = scene.theirs.shape(end), scene.theirs.shape(name)
    if before != after:
        return
    listed = ", ".join(node.op for node in chain)
    for place in graph.consumers.get(end, ()):
        reader = graph.nodes[place]
        for slot, value in enumerate(reader.inputs):
            if value == end:
                change: EditDict = {"kind": "set-input", "node": reader.name, "slot": slot, "value": name}
                reason = "the source does not prepare its input so"
                yield scene.edit(
                    NAME, reader.name, f"reads '{name}' through {listed}", f"reads '{name}'", reason, change
                )


# -- too little -------------------------------------------------------------------------------------------------------------


def _prepared(scene: Scene, found: PreprocessingFinding) -> Iterator[Proposal]:
    """Write a preparation that was found to heal into the file."""
    edits: list[Edit] = []
    value = scene.pair.target.input_value(found.input)
    if not found.change.identity:
        shape = scene.theirs.shape(value)
        steps, arrays = steps_of(found.change, shape or ())
        if shape is None or not steps:
            return
        change: EditDict = {"kind": "insert", "value": value, "steps": steps}
        edits.append(scene.edit(NAME, value, found.source_words, found.target_words, str(found), change, **arrays))
    if found.labels is not None:
        label = _classes(scene, found)
        if label is None:
            return
        edits.append(label)
    if edits:
        yield Proposal(edits=tuple(edits), doubt=0.3 if not found.fitted else 0.6)


def _changed(scene: Scene) -> Iterator[Proposal]:
    """Write into the file what makes the value that heals of the input as it is, where the fault lies at an input."""
    value = scene.finding.target
    given, healing = scene.pair.target.values.get(value), scene.pair.theirs.values.get(value)
    if value not in scene.pair.target.graph.inputs or given is None or healing is None:
        return
    found = explain(np.asarray(given), np.asarray(healing))
    if found is None or found.identical or found.rounded:
        return
    steps, arrays = steps_of(found.change, given.shape[1:])
    change: EditDict = {"kind": "insert", "value": value, "steps": steps}
    what = ", then ".join(found.change.phrases())
    edit = scene.edit(NAME, value, "the input as it is", what, "the source prepares its input so", change, **arrays)
    yield Proposal(edits=(edit,), doubt=0.6 if found.change.scales else 0.3)


def steps_of(change: Change, shape: tuple[int, ...]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Operators in ONNX vocabulary that change an input of this shape so, with the arrays that they read."""
    steps: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}

    def add(operator: str, attributes: dict[str, Any], array: np.ndarray | None = None) -> None:
        constants = []
        if array is not None:
            constants = [f"a{len(arrays)}"]
            arrays[constants[0]] = array
        steps.append({"operator": operator, "attributes": attributes, "constants": constants})

    sizes = [shape[axis] for axis in change.permutation]
    if list(change.permutation) != sorted(change.permutation):
        add("Transpose", {"perm": list(change.permutation)})
    if change.shape is not None and list(change.shape) != sizes:
        sizes = list(change.shape)
        add("Reshape", {}, np.array([-1, *sizes[1:]], np.int64))
    for axis in change.flips:
        add("Gather", {"axis": axis}, np.arange(sizes[axis])[::-1].astype(np.int64))
    if change.channels is not None and change.axis is not None:
        add("Gather", {"axis": change.axis}, np.array(change.channels, np.int64))
    for operator, values, neutral in (("Mul", change.scale, 1.0), ("Add", change.shift, 0.0)):
        if any(number != neutral for number in values):
            spread = [1] * len(sizes)
            if len(values) > 1 and change.axis is not None:
                spread[change.axis] = len(values)
            add(operator, {}, np.array(values, np.float32).reshape(spread))
    return steps, arrays


def _classes(scene: Scene, found: PreprocessingFinding) -> Edit | None:
    """Give the classes of the source, where the target numbers them otherwise."""
    labels = found.labels
    if labels is None or labels.source_classes is None or labels.target_classes is None or labels.offset < 0:
        return None
    value = scene.pair.target.output_value(labels.output)
    shape = scene.theirs.shape(value)
    if not shape or shape[-1] != labels.target_classes:
        return None
    kept = np.arange(labels.offset, labels.offset + labels.source_classes, dtype=np.int64)
    if kept[-1] >= labels.target_classes:
        return None
    steps = [{"operator": "Gather", "attributes": {"axis": len(shape) - 1}, "constants": ["kept"]}]
    change: EditDict = {"kind": "insert", "value": value, "steps": steps, "readers": [""]}
    counts = f"{labels.target_classes} classes", f"{labels.source_classes} classes"
    return scene.edit(NAME, labels.output, counts[0], counts[1], str(labels), change, kept=kept)
