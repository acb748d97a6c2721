"""Applies edits to an ONNX file: one function for each kind of edit, and `apply`, which writes the changed copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from trueport.frameworks import _onnx_edit_grid as grids
from trueport.frameworks import _onnx_edit_write as writing
from trueport.frameworks import _onnx_file
from trueport.frameworks._base import Arrays, EditDict, Unsupported
from trueport.frameworks._onnx_edit import ALL, Editor

PASSING = ("Identity", "Cast", "Transpose", "DequantizeLinear", "Reshape", "Squeeze", "Unsqueeze")
"""Operators through which a node may read a constant: the constant behind them can be named."""
MOST_NAMES = 8
"""Names that an error lists."""


class Job:
    """One file under change: the editor, the arrays that edits name, and notes for the user."""

    def __init__(self, path: str, arrays: Arrays) -> None:
        self.edit = Editor(path)
        self.arrays = arrays
        self.notes: list[str] = []
        self._copies: dict[tuple[str, str], str] = {}

    def array(self, key: str) -> np.ndarray:
        """The array of that key. Raises Unsupported when none was handed over."""
        if key not in self.arrays:
            raise Unsupported(f"the edits name an array '{key}' that was not given")
        return np.asarray(self.arrays[key])

    def current(self, node: str, parameter: str) -> str:
        """The name under which a node reads a constant now: an edit before may have given it a copy of its own."""
        return self._copies.get((node, parameter), parameter)

    def copied(self, node: str, parameter: str, name: str) -> None:
        """Note that a node reads `name` where the file had `parameter`."""
        if parameter != name:
            self._copies[node, parameter] = name


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str) -> list[str]:
    """Write a copy of the model at `out`, changed by the edits in their order. Returns notes.

    The same file and the same edits give the same bytes. Raises Unsupported when an edit cannot be written.
    """
    job = Job(path, arrays)
    for edit in edits:
        kind = edit.get("kind", "")
        if kind not in KINDS:
            raise Unsupported(f"'{kind}' is no edit that can be written into an ONNX file")
        try:
            KINDS[kind](job, edit)
        except KeyError as error:
            raise Unsupported(f"the edit '{kind}' lacks its entry {error}") from None
        job.edit.forget()
    job.edit.finish()
    job.edit.save(out)
    return job.notes


# -- parameters and attributes ------------------------------------------------------------------------------------


def set_parameter(job: Job, edit: EditDict) -> None:
    """Give one node other values for a constant that it reads, directly or behind a Cast or the like."""
    node = job.edit.node(edit["node"])
    name = job.current(edit["node"], edit["parameter"])
    array = job.array(edit["array"])
    path = _path(job.edit, node, name)
    if path is None:
        _set_inner(job.edit, node, name, array)
        return
    path = _own(job.edit, path, name)
    reader = path[0]
    made = grids.encode(job.edit, reader, name, array, edit.get("grid", "keep"))
    if len(job.edit.readers(name)) == 1 and name not in job.edit.outputs():
        job.edit.overwrite(name, made)
        return
    made.name = job.edit.fresh(name)
    job.edit.rewire(reader, name, job.edit.store(made))
    job.copied(edit["node"], edit["parameter"], made.name)


def _path(edit: Editor, node: Any, constant: str) -> list[Any] | None:
    """The nodes from the one that reads the constant to `node` itself; None when it does not read it."""
    sparse = {item.values.name for item in edit.graph.sparse_initializer}
    if constant not in edit.constants and constant not in sparse:
        return None
    if constant in edit.reads(node):
        return [node]
    for name in node.input:
        before = edit.producer(name) if name else None
        if before is not None and before.op_type in PASSING:
            found = _path(edit, before, constant)
            if found is not None:
                return [*found, node]
    return None


def _own(edit: Editor, path: list[Any], constant: str) -> list[Any]:
    """Copies of the nodes between a constant and its reader where others read them too; else those nodes themselves."""
    between = path[:-1]
    if all(len(edit.readers(node.output[0])) == 1 and node.output[0] not in edit.outputs() for node in between):
        return path
    made: list[Any] = []
    for node in between:
        copy = type(node)()
        copy.CopyFrom(node)
        copy.name, copy.output[0] = edit.fresh(edit.name(node)), edit.fresh(node.output[0])
        for place, name in enumerate(copy.input):
            if made and name == between[len(made) - 1].output[0]:
                copy.input[place] = made[-1].output[0]
        made += edit.add(copy)
    edit.rewire(path[-1], between[-1].output[0], made[-1].output[0])
    return [*made, path[-1]]


def _set_inner(edit: Editor, node: Any, name: str, array: np.ndarray) -> None:
    """Change a constant inside a node's subgraphs. Raises Unsupported when there is none of that name."""
    for graph in _subgraphs(node):
        for tensor in graph.initializer:
            if tensor.name == name:
                made = grids.tensor(array, tensor.data_type)
                made.name = name
                tensor.CopyFrom(made)
                return
        for inner in graph.node:
            stored = _onnx_file.constant_tensor(inner)
            if stored is not None and inner.output[0] == name:
                made = grids.tensor(array, stored.data_type)
                made.name = name
                del inner.attribute[:]
                item = inner.attribute.add(name="value")
                item.type = item.TENSOR
                item.t.CopyFrom(made)
                return
    known = [item for item in edit.reads(node) if item in edit.constants]
    listed = ", ".join(f"'{item}'" for item in known[:MOST_NAMES])
    raise Unsupported(f"node '{edit.name(node)}' has no constant '{name}'" + (f"; it has {listed}" if listed else ""))


def _subgraphs(node: Any) -> list[Any]:
    """The graphs inside a node, inner ones included."""
    found = []
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            found += [graph, *(deeper for inner in graph.node for deeper in _subgraphs(inner))]
    return found


def set_attribute(job: Job, edit: EditDict) -> None:
    """Set an attribute, or the constant operand that the model's opset has in its place."""
    node, name, value = job.edit.node(edit["node"]), edit["attribute"], edit.get("value")
    known = writing.schema(job.edit, node.op_type, node.domain)
    if known is not None and name not in known.attributes:
        slot = writing.slot_of(known, node.op_type, name)
        if slot is not None:
            _set_operand(job.edit, node, known, slot, value)
            _drop_conflict(job.edit, node, name, value)
            return
    if value is None:
        writing.replace_attribute(node, name, None)
        return
    made = writing.attribute(job.edit, node, name, value)
    if node.op_type == "Constant":
        _set_constant(job.edit, node, made)
        return
    writing.replace_attribute(node, name, made)
    _drop_conflict(job.edit, node, name, value)


def _set_constant(edit: Editor, node: Any, made: Any) -> None:
    """Give a Constant node a value; it has only one, whatever its attribute was called."""
    del node.attribute[:]
    node.attribute.append(made)
    tensor = _onnx_file.constant_tensor(node)
    if tensor is None:
        raise Unsupported(f"the constant '{edit.name(node)}' cannot be set to a value of that kind")
    edit.overwrite(node.output[0], tensor)


def _set_operand(edit: Editor, node: Any, known: Any, slot: int, value: Any) -> None:
    formal = known.inputs[slot]
    if value is None:
        if formal.option.name == "Single":
            raise Unsupported(f"operator '{node.op_type}' cannot do without its operand '{formal.name}'")
        edit.put(node, slot, "")
        return
    array, old = np.asarray(value), edit.operand(node, slot)
    array = array if old is None or array.dtype.kind == "f" else array.astype(old.dtype)
    others = ["" if place == slot else name for place, name in enumerate(node.input)]
    if old is not None and old.size == array.size == 1:
        array = array.reshape(old.shape)
    if old is None:
        edit.put(node, slot, writing.store(edit, known, node.op_type, slot, others, array))
        return
    array = writing.fit(edit, known, node.op_type, slot, others, array)
    grids.put(edit, node, slot, grids.tensor(array, edit.type(node.input[slot])))


def _drop_conflict(edit: Editor, node: Any, name: str, value: Any) -> None:
    """Take away what cannot stand beside a new value: automatic pads beside explicit ones, scales beside sizes."""
    if value is None:
        return
    if name == "pads" and edit.attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        writing.replace_attribute(node, "auto_pad", None)
    if name == "auto_pad" and value != "NOTSET":
        writing.replace_attribute(node, "pads", None)
    other = writing.CONFLICTS.get((node.op_type, name))
    known = writing.schema(edit, node.op_type, node.domain)
    if other is None or known is None:
        return
    if other in known.attributes:
        writing.replace_attribute(node, other, None)
    else:
        slot = writing.slot_of(known, node.op_type, other)
        if slot is not None and slot < len(node.input):
            edit.put(node, slot, "")


# -- nodes --------------------------------------------------------------------------------------------------------


def _constant(edit: Editor, value: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a value is a constant, or made of constants alone."""
    if value in edit.constants or any(item.values.name == value for item in edit.graph.sparse_initializer):
        return True
    node = edit.producer(value)
    if node is None or value in seen or node.op_type.startswith("Random"):
        return False
    return bool(edit.reads(node)) and all(_constant(edit, name, seen | {value}) for name in edit.reads(node))


def set_operator(job: Job, edit: EditDict) -> None:
    """Make another operator of a node; its name, its data and its results stay."""
    node = job.edit.node(edit["node"])
    data: list[writing.Operand] = [name for name in node.input if name and not _constant(job.edit, name)]
    operands = data + [job.array(key) for key in edit.get("constants", [])]
    outputs = [name for name in node.output if name]
    known = writing.schema(job.edit, edit["operator"].rpartition("::")[2], edit["operator"].rpartition("::")[0])
    room = known.max_output if known is not None else 1
    unread = [name for name in outputs[room:] if not job.edit.readers(name) and name not in job.edit.outputs()]
    if outputs[room:] != unread:
        raise Unsupported(
            f"node '{edit['node']}' has {len(outputs)} results in use, operator '{edit['operator']}' gives {room}"
        )
    name = job.edit.name(node)
    made = writing.write(job.edit, edit["operator"], operands, edit.get("attributes", {}), outputs[:room], name)
    *before, last = made
    node.CopyFrom(last)
    job.edit.add(*before)


def remove_node(job: Job, edit: EditDict) -> None:
    """Take a node out: its readers read one of its operands."""
    node = job.edit.node(edit["node"])
    slot = edit.get("slot")
    if slot is None:
        slot = next((place for place, name in enumerate(node.input) if name and not _constant(job.edit, name)), None)
    if slot is None or not 0 <= slot < len(node.input) or not node.input[slot]:
        raise Unsupported(f"node '{edit['node']}' has no operand that could take its place")
    results = [name for name in node.output if name and (job.edit.readers(name) or name in job.edit.outputs())]
    if any(name != node.output[0] for name in results):
        raise Unsupported(f"node '{edit['node']}' has further results that are read")
    value, out = node.input[slot], node.output[0]
    for reader in job.edit.readers(out):
        job.edit.rewire(reader, out, value)
    if out not in job.edit.outputs():
        job.edit.drop(node)
    elif job.edit.producer(value) is None or value in job.edit.outputs():
        made = writing.write(job.edit, "Identity", [value], {}, [out], job.edit.name(node))
        node.CopyFrom(made[0])
    else:
        _give_name(job.edit, node, value, out)


def _give_name(edit: Editor, node: Any, value: str, out: str) -> None:
    """Let the value that takes a removed node's place have the name of the model's output."""
    edit.drop(node)
    producer = edit.producer(value)
    for reader in edit.readers(value):
        edit.rewire(reader, value, out)
    edit.rename_result(producer, value, out)


def insert(job: Job, edit: EditDict) -> None:
    """Put steps between a value and its readers."""
    value = edit["value"]
    if not job.edit.exists(value):
        raise Unsupported(f"the model has no value '{value}'")
    steps = edit["steps"]
    if not steps:
        raise Unsupported("an insertion needs at least one step")

    def make(data: str, out: str) -> list[Any]:
        made: list[Any] = []
        job.edit.note_type(data, kind)
        for place, step in enumerate(steps):
            result = out if place == len(steps) - 1 else job.edit.fresh(f"{step['operator'].lower()}_out")
            made += writing.write(
                job.edit, step["operator"], _operands(job, step, data), step.get("attributes") or {}, [result]
            )
            data = result
        return made

    kind = job.edit.type(value)
    job.edit.splice(value, make, edit.get("readers", ALL))


def _operands(job: Job, step: Mapping[str, Any], data: str) -> list[writing.Operand]:
    """The operands of an inserted step: its constants, then other values, the data at its slot."""
    operands: list[writing.Operand] = [job.array(key) for key in step.get("constants") or []]
    for name in step.get("others") or []:
        if not job.edit.exists(name):
            raise Unsupported(f"the model has no value '{name}'")
        operands.append(name)
    operands.insert(int(step.get("slot") or 0), data)
    return operands


def reorder_inputs(job: Job, edit: EditDict) -> None:
    """Let a node read its operands in another order."""
    node, order = job.edit.node(edit["node"]), [int(place) for place in edit["order"]]
    names = list(node.input)
    if sorted(order) != list(range(len(names))):
        raise Unsupported(f"node '{edit['node']}' has {len(names)} operands, and {order} is no order of them")
    del node.input[:]
    node.input.extend(names[place] for place in order)


def set_input(job: Job, edit: EditDict) -> None:
    """Let one operand of a node be another value."""
    node, slot, value = job.edit.node(edit["node"]), int(edit["slot"]), edit["value"]
    if value and not job.edit.exists(value):
        raise Unsupported(f"the model has no value '{value}'")
    if not 0 <= slot <= len(node.input):
        raise Unsupported(f"node '{edit['node']}' has no operand number {slot}")
    job.edit.put(node, slot, value)


KINDS: dict[str, Callable[[Job, EditDict], None]] = {
    "set-parameter": set_parameter,
    "set-attribute": set_attribute,
    "set-operator": set_operator,
    "remove-node": remove_node,
    "insert": insert,
    "reorder-inputs": reorder_inputs,
    "set-input": set_input,
}
"""Kind of edit -> the function that writes it."""
