"""Applies edits to a TFLite file, each kind in its function; here are those that reach beyond one operator. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from trueport.frameworks import _tflite_constants as constants
from trueport.frameworks import _tflite_kinds as kinds
from trueport.frameworks import _tflite_layers as layers
from trueport.frameworks import _tflite_operators  # noqa: F401 -- fills the table of operators
from trueport.frameworks._base import Arrays, EditDict, Unsupported
from trueport.frameworks._tflite_change import Change, check_implied, in_order, prune, record_shapes
from trueport.frameworks._tflite_editor import Node, text
from trueport.frameworks._tflite_emit import Emitter, Operand, ints


def _recompute(change: Change, edit: EditDict) -> None:
    """The value's tensor is computed by other operators; its own name among their operands means what it was."""
    index, name = change.value(edit["value"]), edit["value"]
    reading, computed = change.edit.readers(change.main, index), change.edit.writer(change.main, index) is not None
    given_out = index in [int(other) for other in change.main.outputs]
    source = change.fork(index) if computed else index
    e = change.emitter(text(change.main.tensors[index].name))
    made = e.on_grid_of(_computed(change, e, edit["nodes"], {name: source}), change.main.tensors[index])
    if not any(made in [int(other) for other in item.outputs] for item in e.items):
        made = e.copied(made)
    if computed:
        e.write_to(made, index)
    else:
        for node in reading:
            change.edit.reads_instead(node, index, made)
        if given_out:
            change.give_out(index, made)
    e.put_in()


def _computed(change: Change, e: Emitter, nodes: Sequence[Mapping[str, Any]], known: dict[str, int]) -> int:
    """Emit operators in ONNX vocabulary; `known`: what names mean before those of the model do. Returns the last result."""
    if not nodes:
        raise ValueError("'recompute' needs at least one operator")
    made: list[int] = []
    for node in nodes:
        operands: list[Operand] = []
        for operand in node["inputs"]:
            if operand in known:
                operands.append(known[operand])
            elif operand in change.arrays:
                operands.append(change.array(operand))
            elif operand:
                operands.append(change.value(operand))
        made = e.emit(node["op"], operands, node.get("attributes") or {})
        known.update(zip(node["outputs"], made))
    return made[0]


# -- inputs and outputs ---------------------------------------------------------------------------------------------


def _set_outputs(change: Change, edit: EditDict) -> None:
    model, main = change.edit.model, change.main
    named: dict[str, int] = {}
    for position, (index, given) in enumerate(zip(model.outputs, model.signature_names[1])):
        own = given or model.tensors[index].name
        named[own if own not in named else f"{own}#{position}"] = change.value(model.tensors[index].name)
    wanted = [(name, named[name] if name in named else change.value(name)) for name in edit["outputs"]]
    if not wanted:
        raise Unsupported("a model has to give at least one output")
    for name, index in wanted:
        if change.edit.writer(main, index) is None and index not in [int(other) for other in main.inputs]:
            raise Unsupported(f"'{name}' is a constant and no output")
    main.outputs = [index for _, index in wanted]
    for signature in change.edit.root.signatureDefs or ():
        if signature.subgraphIndex != 0:
            continue
        old = list(signature.outputs or ())
        kept = []
        for name, index in wanted:
            entry = next((item for item in old if int(item.tensorIndex) == index), None)
            if entry is None:
                entry = change.edit.schema.TensorMapT()
                entry.name, entry.tensorIndex = name, index
            else:
                old.remove(entry)
            kept.append(entry)
        signature.outputs = kept


def _set_dimensions(change: Change, edit: EditDict) -> None:
    index = change.value(edit["value"])
    if index not in [int(other) for other in change.main.inputs]:
        raise Unsupported(f"'{edit['value']}' is no input of the model")
    tensor = change.main.tensors[index]
    old, wanted = change.edit.shape(tensor), edit["shape"]
    fixed = [size if isinstance(size, int) and size >= 0 else None for size in wanted]
    usual = old if len(old) == len(fixed) else [1] * len(fixed)
    tensor.shape = [known if size is None else size for size, known in zip(fixed, usual)]
    signature = [-1 if size is None else size for size in fixed]
    tensor.shapeSignature = signature if None in fixed else None
    tensor.hasRank, change.resized = True, True
    if old and len(old) == len(fixed) and fixed[0] != old[0]:
        _free_batch(change, index, old[0])


def _free_batch(change: Change, index: int, batch: int) -> None:
    """Let operators behind an input that have its number of pictures written down take what they get."""
    reached = {index}
    for item in list(change.main.operators):
        if reached.isdisjoint(int(other) for other in item.inputs):
            continue
        reached.update(int(other) for other in item.outputs)
        node = change.edit.node(change.main, item)
        free = _FREED.get(node.code)
        if free is not None:
            free(change, node, batch)


def _free_reshape(change: Change, node: Node, batch: int) -> None:
    """[1, 7, 7, 8] -> [-1, 7, 7, 8]; a size that was left open before is worked out."""
    target, data, result = change.edit.array(node, 1), change.edit.tensor(node, 0), change.edit.result(node)
    if target is None or data is None or not target.size or not change.edit.shape(data):
        return
    if int(target[0]) != batch or change.edit.shape(data)[0] != batch:
        return
    recorded = change.edit.shape(result)
    sizes = [recorded[place] if size < 0 and place < len(recorded) else int(size) for place, size in enumerate(target)]
    constants.set_constant(change.edit, node, 1, ints([-1, *sizes[1:]]), "keep")


def _free_slice(change: Change, node: Node, batch: int) -> None:
    """A slice that begins with the first picture and ends with the last takes all of them."""
    begin, end = change.edit.array(node, 1), change.edit.array(node, 2)
    if begin is None or end is None or int(begin.ravel()[0]) != 0 or int(end.ravel()[0]) != batch:
        return
    if node.code == "STRIDED_SLICE":
        if not int(node.item.builtinOptions.shrinkAxisMask) & 1:
            node.item.builtinOptions.endMask = int(node.item.builtinOptions.endMask) | 1
        return
    constants.set_constant(change.edit, node, 2, np.array([-1, *end.ravel()[1:]], end.dtype), "keep")


def _free_transposed(change: Change, node: Node, batch: int) -> None:
    """The shape asked of a transposed convolution is worked out from the pictures that come."""
    target, data = change.edit.array(node, 0), int(node.item.inputs[2])
    if target is None or int(target[0]) != batch:
        return
    e = change.emitter(text(change.edit.result(node).name))
    tensor = change.main.tensors[data]
    shape = change.edit.shape(tensor)
    tensor.shapeSignature = [-1, *shape[1:]]
    made = e.place(layers.with_batch(e, data, [int(size) for size in target[1:]]))
    change.edit.put_before(node, e.items)
    change.edit.rewire(node, 0, made)


_FREED: dict[str, Callable[[Change, Node, int], None]] = {
    "RESHAPE": _free_reshape,
    "SLICE": _free_slice,
    "STRIDED_SLICE": _free_slice,
    "TRANSPOSE_CONV": _free_transposed,
}
"""Operator -> what frees a batch that is written down in it."""


# -- precision ------------------------------------------------------------------------------------------------------


def _set_precision(change: Change, edit: EditDict) -> None:
    """Real numbers in an operator: what it reads leaves its grid before it, and what it computes gets on its grid behind it."""
    if edit["dtype"] != "float32":
        raise Unsupported(f"an operator of a TFLite file is set to float32, not to {edit['dtype']}")
    node, editor = change.node(edit["node"]), change.edit
    given = {change.values.get(name, -1): key for name, key in (edit.get("parameters") or {}).items()}
    used = set()
    e = change.emitter(text(editor.result(node).name))
    inputs = [int(index) for index in node.item.inputs]
    for slot, index in enumerate(inputs):
        if index < 0:
            continue
        found = editor.stored(node, slot)
        if found is None:
            inputs[slot] = _real(change, e, index)
            continue
        place = next(number for number, item in enumerate(change.main.tensors) if item is found[0])
        real = change.array(given[place]) if place in given else editor.array(node, slot)
        if real is None:
            raise Unsupported(f"the constant '{text(found[0].name)}' is packed and cannot be read")
        if place in given or (real.dtype.kind == "f" and editor.dtype(found[0]) != "float32"):
            inputs[slot] = e.place(np.asarray(real, np.float32))
        used.add(place)
    if set(given) - used:
        raise ValueError(f"'{edit['node']}' does not read all constants that 'parameters' names")
    change.islands += e.items
    editor.put_before(node, e.items)
    node.item.inputs = inputs
    _back_on_grid(change, node)


def _real(change: Change, e: Emitter, index: int) -> int:
    """A computed value in real numbers: those before it got on its grid, where an edit has put it there."""
    writer = change.edit.writer(change.main, index)
    if writer is not None and writer.code == "QUANTIZE" and any(writer.item is item for item in change.islands):
        return int(writer.item.inputs[0])
    return e.place(e.real(index))


def _back_on_grid(change: Change, node: Node) -> None:
    editor, graph = change.edit, change.main
    outputs = [int(index) for index in node.item.outputs]
    behind = []
    for place, index in enumerate(outputs):
        tensor = graph.tensors[index]
        if not editor.quantised(tensor):
            continue
        name = editor.fresh_name(graph, text(tensor.name) + "/real")
        wide = editor.like(graph, index, name, type=0, quantization=None)
        outputs[place] = wide
        item = editor.operator("QUANTIZE", [wide], [index], "QuantizeOptions")
        behind.append(item)
        for reader in editor.readers(graph, index):
            if reader.code == "DEQUANTIZE" and any(reader.item is other for other in change.islands):
                for after in editor.readers(graph, int(reader.item.outputs[0])):
                    editor.reads_instead(after, int(reader.item.outputs[0]), wide)
    node.item.outputs = outputs
    place = next(number for number, item in enumerate(graph.operators) if item is node.item)
    graph.operators[place + 1 : place + 1] = behind
    change.islands += behind
    editor.rewritten(graph)


KINDS: dict[str, Callable[[Change, EditDict], None]] = {
    "set-parameter": kinds.set_parameter,
    "add-parameter": kinds.add_parameter,
    "set-attribute": kinds.set_attribute,
    "set-operator": kinds.set_operator,
    "remove-node": kinds.remove_node,
    "insert": kinds.insert,
    "reorder-inputs": kinds.reorder_inputs,
    "set-input": kinds.set_input,
    "set-dimensions": _set_dimensions,
    "set-outputs": _set_outputs,
    "set-precision": _set_precision,
    "recompute": _recompute,
}


def _sorted(edits: Sequence[EditDict]) -> list[EditDict]:
    """The edits, but of the attributes of one operator in a row its padding last: what it takes depends on the others."""
    found: list[EditDict] = []
    row: list[EditDict] = []
    for edit in edits:
        if row and (edit["kind"] != "set-attribute" or edit["node"] != row[0]["node"]):
            found += sorted(row, key=_late)
            row = []
        if edit["kind"] == "set-attribute":
            row.append(edit)
        else:
            found.append(edit)
    return found + sorted(row, key=_late)


def _late(edit: EditDict) -> int:
    return {"pads": 1, "auto_pad": 1, "padding": 1, "nearest_mode": 1, "ceil_mode": 2}.get(edit["attribute"], 0)


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str) -> dict[str, Any]:
    """Write a copy of the file with the edits applied, one after the other.

    Returns {"notes": [...]}. Raises ValueError for names that the file does not have, Unsupported, with the reason, when
    an edit cannot be written at its place or LiteRT cannot run what comes out.
    """
    change = Change(path, arrays)
    for edit in _sorted(edits):
        kind = KINDS.get(edit["kind"])
        if kind is None:
            raise Unsupported(f"edits of kind '{edit['kind']}' cannot be written into a TFLite file")
        kind(change, edit)
    check_implied(change)
    in_order(change.main)
    prune(change)
    record_shapes(change)
    change.edit.save(out)
    if change.edit.model.mended:
        change.notes.append(
            "the quantisation axis of one-dimensional tensors, out of range in the file, is written as 0"
        )
    return {"notes": change.notes}
