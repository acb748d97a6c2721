"""Writes edits of an ONNX file that touch its graph: operators, nodes taken out or put in, and what nodes read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueport.frameworks import _onnx_edit_write as writing
from trueport.frameworks._base import EditDict, Unsupported
from trueport.frameworks._onnx_edit import ALL, Editor
from trueport.frameworks._onnx_edit_job import Job, is_constant


def set_operator(job: Job, edit: EditDict) -> None:
    """Make another operator of a node; its name, its data and its results stay."""
    node = job.edit.node(edit["node"])
    data: list[writing.Operand] = [name for name in node.input if name and not is_constant(job.edit, name)]
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
        slot = next((place for place, name in enumerate(node.input) if name and not is_constant(job.edit, name)), None)
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
        raw = data
        job.edit.note_type(data, kind)
        for place, step in enumerate(steps):
            result = out if place == len(steps) - 1 else job.edit.fresh(f"{step['operator'].lower()}_out")
            made += writing.write(
                job.edit,
                step["operator"],
                _operands(job, step, data, {value: raw}),
                step.get("attributes") or {},
                [result],
            )
            data = result
        return made

    kind = job.edit.type(value)
    job.edit.splice(value, make, edit.get("readers", ALL))


def _operands(job: Job, step: Mapping[str, Any], data: str, renamed: Mapping[str, str]) -> list[writing.Operand]:
    """The operands of an inserted step: its constants, then other values, the data at its slot.

    renamed: the value behind which it is put in may have another name by now.
    """
    operands: list[writing.Operand] = [job.array(key) for key in step.get("constants") or []]
    for other in step.get("others") or []:
        name = renamed.get(other, other)
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


def recompute(job: Job, edit: EditDict) -> None:
    """Let a value be what new nodes make of other values; its old producers go when nothing else needs them."""
    value, nodes = edit["value"], edit["nodes"]
    if not job.edit.exists(value):
        raise Unsupported(f"the model has no value '{value}'")
    if not nodes:
        raise Unsupported(f"nothing is given to compute '{value}' from")
    kind = job.edit.type(value)

    def make(old: str, out: str) -> list[Any]:
        job.edit.note_type(old, kind)
        names, made = {value: old}, []
        for place, node in enumerate(nodes):
            operands = [_operand(job, name, names) for name in node["inputs"]]
            last = place == len(nodes) - 1
            results = [
                out if last and index == 0 else job.edit.fresh(name) if name else ""
                for index, name in enumerate(node["outputs"])
            ]
            made += writing.write(job.edit, node["op"], operands, node.get("attributes") or {}, results)
            names.update(zip(node["outputs"], results))
        return made

    job.edit.splice(value, make)


def _operand(job: Job, name: str, results: Mapping[str, str]) -> writing.Operand:
    """An operand of a node of a recomputation: what a node before gave, an array, or a value of the model."""
    if name in results or not name:
        return results.get(name, "")
    if name in job.arrays:
        return job.array(name)
    if not job.edit.exists(name):
        raise Unsupported(f"the model has no value '{name}'")
    return name
