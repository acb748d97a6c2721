"""A TFLite file under change: what its names mean, and what has to hold of the file in the end. Runs in a worker.

Names are those that `graph` gives for the file as it comes, so operators and tensors are looked up before the first
change. What is changed is run once on zeros; the shapes that LiteRT then has are recorded where they are new.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._tflite_editor import OPTIMISED, PLAIN, Editor, Node, run_on_zeros, text
from trueport.frameworks._tflite_emit import Emitter


class Change:
    """A file under change: its editor, and what the names of the original mean now."""

    def __init__(self, path: str, arrays: Mapping[str, np.ndarray]) -> None:
        self.edit = Editor(path)
        self.arrays = arrays
        self.main = self.edit.main
        self.items = list(self.main.operators or ())
        self.notes: list[str] = []
        self.before = self.edit.model.content() or self.edit.model.data
        self.was = {id(item): [int(index) for index in item.inputs] for item in self.items}
        self.implied: list[tuple[Any, str, Any]] = []
        """(operator, attribute, value) that its weights say, and have to say in the end."""
        self.resized = False
        """Whether an input has got another shape, so that every recorded shape is old."""
        self.names = {self.edit.name(node): node.item for node in self.edit.nodes()}
        self.values = {tensor.name: tensor.number for tensor in self.edit.model.tensors}
        self.read = {int(index) for item in self.main.operators or () for index in item.inputs if int(index) >= 0}
        self.tensors = len(self.main.tensors)
        self.islands: list[Any] = []
        """Operators put in by set-precision to go from a grid to real numbers and back."""

    def node(self, name: str) -> Node:
        """The operator of a name. Raises ValueError."""
        item = self.names.get(name)
        if item is None:  # an edit of an earlier file moved the numbers on; the tensor's name may still tell
            alike = [other for known, other in self.names.items() if known.split(":", 1)[1] == name.partition(":")[2]]
            item = alike[0] if len(alike) == 1 else None
        if item is None:
            raise ValueError(f"{Path(self.edit.model.path).name} has no operator '{name}'")
        if not any(other is item for other in self.main.operators):
            raise ValueError(f"the operator '{name}' has been taken out by an edit before")
        return self.edit.node(self.main, item)

    def value(self, name: str) -> int:
        """The tensor of a name; a stored constant stands for what its DEQUANTIZE makes of it. Raises ValueError."""
        if name not in self.values:
            made = [place for place, tensor in enumerate(self.main.tensors) if text(tensor.name) == name]
            if not made or made[0] < self.tensors:
                raise ValueError(f"{Path(self.edit.model.path).name} has no value '{name}'")
            return made[0]
        index = self.values[name]
        wide = [node for node in self.edit.readers(self.main, index) if node.code == "DEQUANTIZE"]
        return int(wide[0].item.outputs[0]) if wide and self.edit.writer(self.main, index) is None and not any(
            index == int(other) for other in self.main.inputs) else index  # fmt: skip

    def array(self, key: str) -> np.ndarray:
        """An array of the edit. Raises ValueError."""
        if key not in self.arrays:
            raise ValueError(f"the edit names the array '{key}', which was not given")
        return np.asarray(self.arrays[key])

    def emitter(self, name: str) -> Emitter:
        """An emitter whose tensors are called after `name`."""
        return Emitter(self.edit, self.main, name)

    def fork(self, index: int) -> int:
        """Let the operator that computes a tensor compute a new one, and return that; the old one has no writer then."""
        writer = self.edit.writer(self.main, index)
        assert writer is not None
        name = self.edit.fresh_name(self.main, text(self.main.tensors[index].name) + "/before")
        inner = self.edit.like(self.main, index, name)
        writer.item.outputs = [inner if int(other) == index else int(other) for other in writer.item.outputs]
        self.edit.rewritten(self.main)
        return inner

    def give_out(self, old: int, new: int) -> None:
        """Let the model's output be another tensor, under the same name in its signatures."""
        self.values = {name: new if index == old else index for name, index in self.values.items()}
        self.main.outputs = [new if int(index) == old else int(index) for index in self.main.outputs]
        for signature in self.edit.root.signatureDefs or ():
            for entry in (signature.outputs or ()) if signature.subgraphIndex == 0 else ():
                entry.tensorIndex = new if int(entry.tensorIndex) == old else entry.tensorIndex


def in_order(graph: Any) -> None:
    """Put operators behind what they read; those that are stay in their order. Raises Unsupported for a circle."""
    writer = {int(index): item for item in graph.operators for index in item.outputs}
    done: set[int] = set()
    front: set[int] = set()
    ordered: list[Any] = []
    for item in graph.operators:
        stack = [item]
        while stack:
            current = stack[-1]
            needs = [writer[int(i)] for i in current.inputs if int(i) in writer and id(writer[int(i)]) not in done]
            if id(current) in done or not needs:
                stack.pop()
                front.discard(id(current))
                if id(current) not in done:
                    done.add(id(current))
                    ordered.append(current)
                continue
            front.add(id(current))
            if any(id(other) in front for other in needs):
                raise Unsupported("the edit lets an operator read what it computes itself")
            stack.append(needs[0])
    graph.operators = ordered


def prune(change: Change) -> None:
    """Take out operators, and empty constants, that were read before the edits and are not any more."""
    graph, outputs = change.main, {int(index) for index in change.main.outputs}
    while True:
        read = {int(index) for item in graph.operators for index in item.inputs} | outputs
        dead = [
            item
            for item in graph.operators
            if len(item.outputs)
            and not read & {int(index) for index in item.outputs}
            and any(int(index) in change.read or int(index) >= change.tensors for index in item.outputs)
        ]
        if not dead:
            break
        graph.operators = [item for item in graph.operators if not any(item is other for other in dead)]
    change.edit.rewritten(graph)
    kept = read | {int(index) for index in graph.inputs} | {int(i) for item in graph.operators for i in item.outputs}
    root = change.edit.root
    for index in change.read - kept:
        number = int(graph.tensors[index].buffer)
        graph.tensors[index].buffer = 0
        users = [tensor for other in root.subgraphs for tensor in other.tensors or () if int(tensor.buffer) == number]
        if number and not users and not any(int(item.buffer) == number for item in root.metadata or ()):
            root.buffers[number] = change.edit.schema.BufferT()


def record_shapes(change: Change) -> None:
    """Run the changed file on zeros, and record the shapes that differ from those of the file as it was.

    Raises Unsupported when LiteRT cannot run it, or cannot at another size where an edit has freed one.
    """
    edit, graph = change.edit, change.main
    try:
        found = run_on_zeros(edit.content(), {}, kernels=(PLAIN,))
    except Unsupported:
        if _runs(change.before):
            raise
        found = run_on_zeros(edit.content(), {}, kernels=(OPTIMISED,))
    written = sorted({int(index) for item in graph.operators for index in item.outputs})
    written = [index for index in written if found[index] is not None]
    by_values = not any(any(edit.free(graph.tensors[int(index)])) for index in graph.inputs)
    other = [index for index in written if not _recorded(edit, graph.tensors[index], found[index], by_values)]
    if any(index < change.tensors for index in other) and not change.resized:
        before = run_on_zeros(change.before, {})
        other = [index for index in other if index >= change.tensors or before[index] != found[index]]
    larger = {}
    for index in (int(index) for index in graph.inputs):
        tensor = graph.tensors[index]
        if any(edit.free(tensor)):
            larger[index] = [size + 1 if free else size for size, free in zip(edit.shape(tensor), edit.free(tensor))]
    other = written if change.resized else other
    grown = found
    if larger and other:
        try:
            grown = run_on_zeros(edit.content(), larger)
        except Unsupported as error:
            if change.resized:
                raise Unsupported(f"the size is fixed further on in the model: {error}") from error
            change.notes.append("the model runs at the recorded sizes of its inputs only")
    for index in other:
        tensor, now, then = graph.tensors[index], found[index] or [], grown[index] or []
        tensor.shape, tensor.hasRank = now, True
        follows = [-1 if one != two else one for one, two in zip(now, then)]
        tensor.shapeSignature = follows if -1 in follows else None


def _recorded(edit: Editor, tensor: Any, found: list[int] | None, by_values: bool) -> bool:
    """Whether a tensor's recorded shape says what was found; a size that `by_values` only values decide is left free."""
    shape = edit.shape(tensor)
    if not by_values or found is None or len(shape) != len(found):
        return shape == found
    return all(one == two or free for one, two, free in zip(shape, found, edit.free(tensor)))


def _runs(content: bytes) -> bool:
    """Whether a file runs on the plain kernels."""
    try:
        run_on_zeros(content, {}, kernels=(PLAIN,))
    except Unsupported:
        return False
    return True


def check_implied(change: Change) -> None:
    """Raise Unsupported where an attribute was asked for that the weights do not say."""
    for item, name, value in change.implied:
        node = change.edit.node(change.main, item)
        data, weights = (change.edit.tensor(node, slot) for slot in (0, 1))
        if data is None or weights is None:
            continue
        channels, kernel = change.edit.shape(data)[-1], change.edit.shape(weights)
        groups = channels if node.code == "DEPTHWISE_CONV_2D" else channels // max(1, kernel[3])
        found = groups if name == "group" else kernel[1:3]
        if found != value:
            raise Unsupported(
                f"'{name}' of {node.code} is what its weights say, {found}: other weights have to come with it"
            )
