"""Writes edits of an ONNX file that touch what a node holds: its constants and its attributes."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.frameworks import _onnx_edit_grid as grids
from trueport.frameworks import _onnx_edit_write as writing
from trueport.frameworks import _onnx_file
from trueport.frameworks._base import EditDict, Unsupported
from trueport.frameworks._onnx_edit import Editor
from trueport.frameworks._onnx_edit_job import Job, path_to

MOST_NAMES = 8
"""Names that an error lists."""


def set_parameter(job: Job, edit: EditDict) -> None:
    """Give one node other values for a constant that it reads, directly or behind a Cast or the like."""
    node = job.edit.node(edit["node"])
    name = job.current(edit["node"], edit["parameter"])
    array = job.array(edit["array"])
    path = path_to(job.edit, node, name)
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


BIAS = {
    "Conv": 2,
    "ConvTranspose": 2,
    "FusedConv": 2,
    "DeformConv": 3,
    "Gemm": 2,
    "FusedGemm": 2,
    "LSTM": 3,
    "GRU": 3,
    "RNN": 3,
    "LayerNormalization": 2,
    "QLinearConv": 8,
    "QGemm": 6,
    "DynamicQuantizeMatMul": 4,
    "MatMulIntegerToFloat": 6,
}
"""Operator -> slot of its bias."""
ADDED = ("MatMul", "FusedMatMul", "Einsum", "MatMulNBits")
"""Operators without one, behind which a bias is added."""


def add_parameter(job: Job, edit: EditDict) -> None:
    """Give a node an operand that it does not have."""
    node, role, array = job.edit.node(edit["node"]), edit["role"], job.array(edit["array"])
    if role == "bias" and node.op_type in ADDED:
        _add_behind(job.edit, node, array)
        return
    known = writing.schema(job.edit, node.op_type, node.domain)
    slot = BIAS.get(node.op_type) if role == "bias" else None
    if slot is None and known is not None:
        slot = writing.slot_of(known, node.op_type, role)
    if slot is None:
        raise Unsupported(f"operator '{node.op_type}' takes no {role}")
    if slot < len(node.input) and node.input[slot]:
        raise Unsupported(f"node '{edit['node']}' has a {role} already: '{node.input[slot]}'")
    if (node.op_type, slot) in grids.BIASES:
        made = grids.bias(job.edit, node, slot, array)
        made.name = job.edit.fresh(role)
        job.edit.put(node, slot, job.edit.store(made))
        return
    job.edit.put(node, slot, writing.store(job.edit, known, node.op_type, slot, list(node.input), array))
    if node.op_type == "Gemm":
        writing.replace_attribute(node, "beta", None)  # it would scale what was not there before


def _add_behind(edit: Editor, node: Any, array: np.ndarray) -> None:
    kind = edit.type(node.output[0])

    def make(data: str, out: str) -> list[Any]:
        edit.note_type(data, kind)
        return writing.write(edit, "Add", [data, array], {}, [out])

    edit.splice(node.output[0], make)
