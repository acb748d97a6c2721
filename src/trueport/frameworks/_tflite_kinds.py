"""Edits of single operators and edges of a TFLite file, one function for each kind. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import _tflite_constants as constants
from trueport.frameworks import _tflite_settings as settings
from trueport.frameworks._base import EditDict, Unsupported
from trueport.frameworks._tflite_change import Change
from trueport.frameworks._tflite_editor import Node, text
from trueport.frameworks._tflite_emit import Emitter, Operand


def set_parameter(change: Change, edit: EditDict) -> None:
    """Let a node read other values as one of its constants, or of those inside the loop that it runs."""
    node, name = change.node(edit["node"]), edit["parameter"]
    array, grid = change.array(edit["array"]), edit.get("grid", "keep")
    if name.startswith("subgraph "):
        _set_inner(change, node, name, array, grid)
        return
    if name not in change.values:
        raise ValueError(f"{Path(change.edit.model.path).name} has no constant '{name}'")
    meant = {change.values[name], change.value(name)}
    slots = [slot for slot, index in enumerate(node.item.inputs) if int(index) in meant]
    if not slots:  # an edit before may have given the node a copy
        was = change.was.get(id(node.item), [])
        slots = [slot for slot, index in enumerate(was) if index in meant and change.edit.stored(node, slot)]
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


def set_attribute(change: Change, edit: EditDict) -> None:
    """Set an attribute; one that the weights imply is checked when all edits are done."""
    node = change.node(edit["node"])
    if edit["attribute"] in ("group", "kernel_shape") and node.code in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        change.implied.append((node.item, edit["attribute"], edit.get("value")))
        return
    settings.set_attribute(change.edit, node, edit["attribute"], edit.get("value"))


def set_operator(change: Change, edit: EditDict) -> None:
    """Let another operator compute a node's results from its data."""
    node = change.node(edit["node"])
    data: list[Operand] = [int(node.item.inputs[slot]) for slot in change.edit.computed(node)]
    data += [change.array(key) for key in edit.get("constants") or ()]
    e = change.emitter(text(change.edit.result(node).name))
    made = e.emit(edit["operator"], data, edit.get("attributes") or {})
    e.instead_of(node, made[0])


def remove_node(change: Change, edit: EditDict) -> None:
    """Let readers of a node's result read its operand; where the two lie on other grids, a conversion stays in its place."""
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
    writer = reads.writer(change.main, index)
    if node.code == "CAST" and writer is not None and writer.code == "CAST":
        first = reads.tensor(writer, 0)
        if first is not None and first.type == result.type and not reads.is_output(node):
            index, operand = int(writer.item.inputs[0]), first  # two casts, there and back
            reads.rewire(node, slot, index)
    real = [reads.quantised(tensor) or reads.dtype(tensor) == "float32" for tensor in (operand, result)]
    behind = reads.readers(change.main, int(node.item.outputs[0]))
    casts = [reader for reader in behind if reader.code == "CAST"]
    if node.code == "CAST" and len(casts) == len(behind) and not reads.is_output(node):
        for reader in casts:
            reads.reads_instead(reader, int(node.item.outputs[0]), index)
            reader.item.builtinOptions.inDataType = operand.type
        return
    if operand.type != result.type and not all(real):
        raise Unsupported(f"the operator makes {reads.dtype(result)} of {reads.dtype(operand)}")
    given_out = {int(other) for other in change.main.outputs}
    stuck = reads.is_output(node) and (writer is None or index in given_out)
    if reads.same_grid(operand, result) and not stuck:
        reads.bypass(node, slot)
        return
    e = change.emitter(text(result.name))
    e.instead_of(node, e.on_grid_of(index, result))


def insert(change: Change, edit: EditDict) -> None:
    """Put operators between a value and its readers; an output keeps its name and is what the last of them computes."""
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


def reorder_inputs(change: Change, edit: EditDict) -> None:
    """Let the operands of a node change places; those beyond `order` stay."""
    node, order = change.node(edit["node"]), [int(slot) for slot in edit["order"]]
    old = [int(index) for index in node.item.inputs]
    if sorted(order) != list(range(len(order))) or len(order) > len(old):
        raise ValueError(f"{order} is no order of the {len(old)} operands of '{edit['node']}'")
    node.item.inputs = [old[slot] for slot in order] + old[len(order) :]


def add_parameter(change: Change, edit: EditDict) -> None:
    """Give a node the operand that it does not have."""
    if edit["role"] != "bias":
        raise Unsupported(f"operators of TFLite files get no '{edit['role']}', only a bias")
    constants.add_bias(change.edit, change.node(edit["node"]), change.array(edit["array"]))


def set_input(change: Change, edit: EditDict) -> None:
    """Let a node read another value at `slot`, in the type and on the grid of what it read there."""
    node, slot, index = change.node(edit["node"]), int(edit["slot"]), change.value(edit["value"])
    if not 0 <= slot < len(node.item.inputs):
        raise Unsupported(f"the operator has {len(node.item.inputs)} operands, and none number {slot}")
    old = change.edit.tensor(node, slot)
    e = change.emitter(text(change.main.tensors[index].name))
    made = index if old is None else e.on_grid_of(index, old)
    e.put_in()
    change.edit.rewire(node, slot, made)
