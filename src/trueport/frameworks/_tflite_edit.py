"""Applies edits to a TFLite file: which node, value and constant an edit means, and what each kind does. Runs in a worker.

Names are those that `graph` gives for the file as it comes, so operators and tensors are looked up before the first
change. What is changed is run once on zeros; the shapes that LiteRT then has are recorded where they are new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from trueport.frameworks import _tflite_constants as constants
from trueport.frameworks import _tflite_operators  # noqa: F401 -- fills the table of operators
from trueport.frameworks import _tflite_settings as settings
from trueport.frameworks._base import Arrays, EditDict, Unsupported
from trueport.frameworks._tflite_editor import Editor, Node, run_on_zeros, text
from trueport.frameworks._tflite_emit import Emitter, Operand


class Change:
    """A file under change: its editor, and what the names of the original mean now."""

    def __init__(self, path: str, arrays: Mapping[str, np.ndarray]) -> None:
        self.edit = Editor(path)
        self.arrays = arrays
        self.main = self.edit.main
        self.notes: list[str] = []
        self.items = list(self.main.operators or ())
        self.names = {self.edit.name(node): node.item for node in self.edit.nodes()}
        self.values = {tensor.name: tensor.number for tensor in self.edit.model.tensors}
        self.read = {int(index) for item in self.main.operators or () for index in item.inputs}
        self.tensors = len(self.main.tensors)
        self.islands: list[Any] = []
        """Operators put in by set-precision to go from a grid to real numbers and back."""

    def node(self, name: str) -> Node:
        """The operator of a name. Raises ValueError."""
        item = self.names.get(name)
        if item is None:
            raise ValueError(f"{Path(self.edit.model.path).name} has no operator '{name}'")
        if not any(other is item for other in self.main.operators):
            raise ValueError(f"the operator '{name}' has been taken out by an edit before")
        return self.edit.node(self.main, item)

    def value(self, name: str) -> int:
        """The tensor of a name; a stored constant stands for what its DEQUANTIZE makes of it. Raises ValueError."""
        if name not in self.values:
            raise ValueError(f"{Path(self.edit.model.path).name} has no value '{name}'")
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
        self.main.outputs = [new if int(index) == old else int(index) for index in self.main.outputs]
        for signature in self.edit.root.signatureDefs or ():
            for entry in (signature.outputs or ()) if signature.subgraphIndex == 0 else ():
                entry.tensorIndex = new if int(entry.tensorIndex) == old else entry.tensorIndex


# -- kinds ----------------------------------------------------------------------------------------------------------


def _set_parameter(change: Change, edit: EditDict) -> None:
    node, name = change.node(edit["node"]), edit["parameter"]
    array, grid = change.array(edit["array"]), edit.get("grid", "keep")
    if name.startswith("subgraph "):
        _set_inner(change, node, name, array, grid)
        return
    if name not in change.values:
        raise ValueError(f"{Path(change.edit.model.path).name} has no constant '{name}'")
    meant = {change.values[name], change.value(name)}
    slots = [slot for slot, index in enumerate(node.item.inputs) if int(index) in meant]
    if not slots:
        raise ValueError(f"the operator '{edit['node']}' does not read '{name}'")
    for slot in slots:
        constants.set_constant(change.edit, node, slot, array, grid)


def _set_inner(change: Change, node: Node, name: str, array: np.ndarray, grid: str) -> None:
    """A constant in the body of a loop or branch, which this operator alone runs."""
    number = int(name[len("subgraph ") :].split(":")[0])
    index = int(name.rpartition("#")[2])
    model = change.edit.model
    running = [change.items[item.number] for item in model.operators if number in model.bodies(item)]
    if not any(item is node.item for item in running):
        raise ValueError(f"the operator '{change.edit.name(node)}' does not run the part that holds '{name}'")
    if len(running) > 1:
        raise Unsupported(f"the part that holds '{name}' is run by several operators")
    graph = change.edit.root.subgraphs[number]
    for reader in change.edit.readers(graph, index):
        for slot, other in enumerate(reader.item.inputs):
            if int(other) == index:
                constants.set_constant(
                    change.edit, reader, slot, array, "keep" if reader.code == "DEQUANTIZE" else grid
                )


def _set_attribute(change: Change, edit: EditDict) -> None:
    node = change.node(edit["node"])
    settings.set_attribute(change.edit, node, edit["attribute"], edit.get("value"))


def _set_operator(change: Change, edit: EditDict) -> None:
    node = change.node(edit["node"])
    data: list[Operand] = [int(node.item.inputs[slot]) for slot in change.edit.computed(node)]
    data += [change.array(key) for key in edit.get("constants") or ()]
    e = change.emitter(text(change.edit.result(node).name))
    made = e.emit(edit["operator"], data, edit.get("attributes") or {})
    e.instead_of(node, made[0])


def _remove_node(change: Change, edit: EditDict) -> None:
    node, reads = change.node(edit["node"]), change.edit
    slots = reads.computed(node)
    slot = edit["slot"] if "slot" in edit else slots[0] if slots else 0
    operand = reads.tensor(node, slot)
    if operand is None:
        raise Unsupported(f"the operator has no operand number {slot}")
    used = [i for i in node.item.outputs if reads.readers(change.main, int(i)) or int(i) in list(change.main.outputs)]
    if any(int(index) != int(node.item.outputs[0]) for index in used):
        raise Unsupported("the operator has several results, and one operand cannot stand for all of them")
    result, index = reads.result(node), int(node.item.inputs[slot])
    real = [reads.quantised(tensor) or reads.dtype(tensor) == "float32" for tensor in (operand, result)]
    if operand.type != result.type and not all(real):
        raise Unsupported(f"the operator makes {reads.dtype(result)} of {reads.dtype(operand)}")
    writer = reads.writer(change.main, index)
    given_out = {int(other) for other in change.main.outputs}
    stuck = reads.is_output(node) and (writer is None or index in given_out)
    if reads.same_grid(operand, result) and not stuck:
        reads.bypass(node, slot)
        return
    e = change.emitter(text(result.name))
    e.instead_of(node, e.on_grid_of(index, result))


def _insert(change: Change, edit: EditDict) -> None:
    index, name = change.value(edit["value"]), edit["value"]
    given_out = index in [int(other) for other in change.main.outputs]
    reading = change.edit.readers(change.main, index)
    wanted = edit.get("readers")
    chosen, at_end = reading, given_out
    if wanted is not None:
        items = [change.node(reader).item for reader in wanted if reader]
        chosen = [node for node in reading if any(node.item is item for item in items)]
        at_end = "" in wanted
        if len(chosen) < len(items) or (at_end and not given_out):
            raise ValueError(f"not all of {wanted} read the value '{name}'")
    if not chosen and not at_end:
        raise Unsupported(f"nobody reads the value '{name}'")
    e = change.emitter(text(change.main.tensors[index].name))
    moved = at_end and change.edit.writer(change.main, index) is not None
    source = change.fork(index) if moved else index
    made = _steps(change, e, source, edit["steps"], name)
    pattern = change.main.tensors[source]
    made = e.on_grid_of(made, pattern)
    if made == source:
        made = e.copied(source)
    if moved:
        e.write_to(made, index)
        for node in reading:
            if not any(node.item is other.item for other in chosen):
                change.edit.reads_instead(node, index, source)
    else:
        for node in chosen:
            change.edit.reads_instead(node, index, made)
        if at_end:
            change.give_out(index, made)
    e.put_in()


def _steps(change: Change, e: Emitter, source: int, steps: Sequence[Mapping[str, Any]], name: str) -> int:
    current = source
    for step in steps:
        operands: list[Operand] = [change.array(key) for key in step.get("constants") or ()]
        operands += [source if other == name else change.value(other) for other in step.get("others") or ()]
        slot = int(step.get("slot", 0))
        if not 0 <= slot <= len(operands):
            raise ValueError(f"the step {step['operator']} has no place number {slot} for its data")
        operands.insert(slot, current)
        current = e.emit(step["operator"], operands, step.get("attributes") or {})[0]
    return current


def _reorder_inputs(change: Change, edit: EditDict) -> None:
    node, order = change.node(edit["node"]), [int(slot) for slot in edit["order"]]
    old = [int(index) for index in node.item.inputs]
    if sorted(order) != list(range(len(order))) or len(order) > len(old):
        raise ValueError(f"{order} is no order of the {len(old)} operands of '{edit['node']}'")
    node.item.inputs = [old[slot] for slot in order] + old[len(order) :]


# -- the file as a whole --------------------------------------------------------------------------------------------


def _in_order(graph: Any) -> None:
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


def _prune(change: Change) -> None:
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


def _record_shapes(change: Change, path: str) -> None:
    """Run the changed file on zeros, and record the shapes that differ from those of the file as it was."""
    edit, graph = change.edit, change.main
    found = run_on_zeros(edit.content(), {})
    written = {int(index) for item in graph.operators for index in item.outputs}
    other = [index for index in sorted(written) if edit.shape(graph.tensors[index]) != found[index]]
    if not other:
        return
    if any(index < change.tensors for index in other):
        before = run_on_zeros(Path(path).read_bytes() if not edit.model.mended else edit.content(), {})
        other = [index for index in other if index >= change.tensors or before[index] != found[index]]
    larger = {}
    for index in (int(index) for index in graph.inputs):
        tensor = graph.tensors[index]
        if any(edit.free(tensor)):
            larger[index] = [size + 1 if free else size for size, free in zip(edit.shape(tensor), edit.free(tensor))]
    grown = found
    if larger and other:
        try:
            grown = run_on_zeros(edit.content(), larger)
        except Unsupported:
            change.notes.append("the model runs at the recorded sizes of its inputs only")
    for index in other:
        tensor = graph.tensors[index]
        tensor.shape, tensor.hasRank = found[index], True
        follows = [-1 if one != two else one for one, two in zip(found[index], grown[index])]
        tensor.shapeSignature = follows if -1 in follows else None


KINDS: dict[str, Callable[[Change, EditDict], None]] = {
    "set-parameter": _set_parameter,
    "set-attribute": _set_attribute,
    "set-operator": _set_operator,
    "remove-node": _remove_node,
    "insert": _insert,
    "reorder-inputs": _reorder_inputs,
}


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str) -> dict[str, Any]:
    """Write a copy of the file with the edits applied, one after the other.

    Returns {"notes": [...]}. Raises ValueError for names that the file does not have, Unsupported, with the reason, when
    an edit cannot be written at its place or LiteRT cannot run what comes out.
    """
    change = Change(path, arrays)
    for edit in edits:
        kind = KINDS.get(edit["kind"])
        if kind is None:
            raise Unsupported(f"edits of kind '{edit['kind']}' cannot be written into a TFLite file")
        kind(change, edit)
    _in_order(change.main)
    _prune(change)
    _record_shapes(change, path)
    change.edit.save(out)
    if change.edit.model.mended:
        change.notes.append(
            "the quantisation axis of one-dimensional tensors, out of range in the file, is written as 0"
        )
    return {"notes": change.notes}
