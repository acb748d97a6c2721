"""Writes edits into exported programs (`.pt2`): one function per kind, and `apply`, which does them in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import Arrays, EditDict, Unsupported
from trueport.frameworks._torch_edit_graph import recompute, set_dimensions, set_outputs, set_precision
from trueport.frameworks._torch_editor import Editor, tensor_like
from trueport.frameworks._torch_emit import emit
from trueport.frameworks._torch_emit_values import Place, aten
from trueport.frameworks._torch_program import is_mutable
from trueport.frameworks._torch_set import set_attribute
from trueport.frameworks._torch_values import dtype_name, native_name


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool = False) -> dict[str, Any]:
    """Write a copy of the program with the edits applied in order; returns {"notes": sentences}.

    Raises Unsupported, with the reason, when an edit cannot be written, ValueError when one lacks a key.
    """
    editor = Editor(path, trust=trust)
    editor.arrays = {key: np.asarray(array) for key, array in arrays.items()}
    notes: list[str] = []
    for edit in edits:
        kind = edit.get("kind", "")
        if kind not in KINDS:
            raise Unsupported(f"an exported program takes no edit of kind '{kind}'; it takes {', '.join(KINDS)}")
        try:
            notes.extend(KINDS[kind](editor, edit) or ())
        except KeyError as error:
            raise ValueError(f"the edit {kind} lacks {error}") from error
        except Unsupported as error:
            at = edit.get("node") or edit.get("value") or ""
            raise Unsupported(f"{kind}{f' at {at!r}' if at else ''}: {error}") from error
    editor.save(out)
    return {"notes": notes}


# -- parameters -----------------------------------------------------------------------------------------------------


def set_parameter(editor: Editor, edit: EditDict) -> list[str]:
    """A stored weight gets other numbers; where others read it too, this operator gets one of its own."""
    node, name, array = editor.node(edit["node"]), edit["parameter"], editor.arrays[edit["array"]]
    found = _constant(editor, node, name)
    if found is None:
        _set_number(editor, node, name, array)
        return []
    old = editor.program.constants[found.name]
    if len(found.users) == 1:
        editor.store(found, array)
    else:
        own = editor.add_constant(tensor_like(array, old), f"{editor.spec(found).target}_{node.name}", like=found)
        node.replace_input_with(found, own)
        editor.called[own.name] = name
    new = _stored(editor, node, name)
    if old.dtype.is_floating_point and np.asarray(array).dtype.kind == "f":
        lost = np.abs(np.asarray(array, np.float64) - new.double().detach().numpy()).max(initial=0.0)
        if edit.get("grid") == "new" and lost > 1e-6 * np.abs(array).max(initial=0.0):
            return [f"'{name}' stays {dtype_name(old.dtype)}, which the operator computes in"]
    return []


def _constant(editor: Editor, node: Any, name: str) -> Any:
    """The stored weight that the operator reads under that name, or None."""
    for one in editor.operands(node):
        if editor.is_constant(one) and name in (editor.label(one), editor.called.get(one.name)):
            return one
    return None


def _stored(editor: Editor, node: Any, name: str) -> Any:
    return editor.program.constants[_constant(editor, node, name).name]


def _set_number(editor: Editor, node: Any, name: str, array: np.ndarray) -> None:
    """A number that is an argument gets another value; several numbers become a buffer in its place."""
    known = {one.name for one in editor.schema(node)}
    old = editor.argument(node, name) if name in known else None
    if not isinstance(old, (int, float)):
        names = [editor.label(one) for one in editor.operands(node) if editor.is_constant(one)]
        raise Unsupported(f"it reads no constant '{name}'; it reads {', '.join(names) or 'none'}")
    if np.size(array) == 1:
        number = np.asarray(array).reshape(-1)[0].item()
        whole = isinstance(old, int) and float(number).is_integer()
        editor.set_argument(node, name, type(old)(number) if whole else float(number))
        return
    packet, overload = native_name(node).rpartition(".")[2], str(node.target).rpartition(".")[2]
    if "Scalar" in overload:
        node.target = aten(f"{packet}.{overload.replace('Scalar', 'Tensor')}")
    editor.set_argument(node, name, editor.add_array(array, f"{node.name}_{name}", beside=node))


def add_parameter(editor: Editor, edit: EditDict) -> None:
    """An optional weight that the operator does not have yet."""
    node, role = editor.node(edit["node"]), edit["role"]
    argument = {"scale": "weight"}.get(role, role)
    if argument not in {one.name for one in editor.schema(node)}:
        raise Unsupported(f"{native_name(node)} takes no {role}; insert an operator that adds it")
    if editor.argument(node, argument) is not None:
        raise Unsupported(f"it has a {role}; set that parameter")
    known = [one for one in editor.operands(node) if editor.is_constant(one)]
    stem = editor.spec(known[0]).target.rpartition(".")[0] if known else ""
    name = f"{stem}.{argument}" if stem else f"{node.name}_{argument}"
    like = known[0] if known else None
    array = editor.arrays[edit["array"]]
    editor.set_argument(node, argument, editor.add_array(array, name, beside=like or node, like=like))


# -- operators ------------------------------------------------------------------------------------------------------


def change_attribute(editor: Editor, edit: EditDict) -> None:
    """Another value for an attribute; None is its default."""
    set_attribute(editor, editor.node(edit["node"]), edit["attribute"], edit["value"])


def set_operator(editor: Editor, edit: EditDict) -> None:
    """Another operator on the same data, under the same name."""
    node = editor.node(edit["node"])
    operands: list[Any] = [one for one in editor.operands(node) if not editor.is_constant(one)]
    operands += [editor.arrays[key] for key in edit.get("constants", ())]
    _single(node)
    if is_mutable(node):  # those who read the operand later have read the result so far
        _read_result(editor, node)
    call = emit(Place(editor, node, node.name), edit["operator"], operands, edit.get("attributes", {}))
    editor.replace(node, *call)
    for item in _items(node):
        editor.remove(item, node)


def _items(node: Any) -> list[Any]:
    """The readers that take one result of several out."""
    return [user for user in node.users if getattr(user.target, "__name__", "") == "getitem"]


def _single(node: Any) -> None:
    if isinstance(node.meta.get("val"), (tuple, list)) and any(item.args[1] != 0 for item in _items(node)):
        raise Unsupported("it gives several values, and others than the first are read")


def _read_result(editor: Editor, node: Any) -> None:
    order = {one: index for index, one in enumerate(editor.graph.nodes)}
    for reader in list(node.args[0].users):
        if order[reader] > order[node]:
            editor.redirect(reader, node.args[0], node)


def remove_node(editor: Editor, edit: EditDict) -> None:
    """Its readers read one of its operands."""
    node = editor.node(edit["node"])
    operands = editor.operands(node)
    slot = edit.get("slot")
    if slot is None:
        slot = next((place for place, one in enumerate(operands) if not editor.is_constant(one)), None)
    if slot is None or not 0 <= slot < len(operands):
        raise Unsupported(f"it has {len(operands)} operands, and none at {slot}")
    instead = operands[slot]
    _single(node)
    for item in _items(node):
        editor.remove(item, instead)
    editor.forget(node, instead)
    editor.remove(node, instead)


def insert(editor: Editor, edit: EditDict) -> None:
    """Operators between a value and its readers."""
    value = editor.value(edit["value"])
    editor.fake(value)
    readers = _readers(editor, value, edit.get("readers"))
    order = {node: index for index, node in enumerate(editor.graph.nodes)}
    point = min(readers, key=lambda one: order[one])
    current = value
    for step in edit["steps"]:
        operands: list[Any] = [editor.arrays[key] for key in step.get("constants") or ()]
        others = [editor.value(name) for name in step.get("others") or ()]
        editor.hoist(point, others)
        operands += others
        slot = int(step.get("slot") or 0)
        operands.insert(slot, current)
        place = Place(editor, point, _plain_name(edit["value"]))
        current = place.put(emit(place, step["operator"], operands, step.get("attributes") or {}))
    for reader in readers:
        editor.redirect(reader, value, current)


def _readers(editor: Editor, value: Any, names: Sequence[str] | None) -> list[Any]:
    """The nodes that read a value: all of them, or those named ("" is the output of the graph)."""
    known = list(value.users)
    if names is not None:
        wanted = [editor.last() if name == "" else editor.node(name) for name in names]
        absent = [name for name, node in zip(names, wanted) if node not in known]
        if absent:
            raise Unsupported(f"'{absent[0] or 'the output'}' does not read it")
        known = [node for node in known if node in wanted]
    if not known:
        raise Unsupported("nothing reads it")
    return known


def _plain_name(name: str) -> str:
    return name.replace("#", "_").replace(".", "_")


# -- edges ----------------------------------------------------------------------------------------------------------


def reorder_inputs(editor: Editor, edit: EditDict) -> None:
    """The operands in another order."""
    node, order = editor.node(edit["node"]), list(edit["order"])
    operands = editor.operands(node)
    if sorted(order) != list(range(len(operands))):
        raise Unsupported(f"the order {order} is none of its {len(operands)} operands")
    _assign(editor, node, [operands[place] for place in order])


def set_input(editor: Editor, edit: EditDict) -> None:
    """Another value in an operand's place."""
    node, slot = editor.node(edit["node"]), int(edit["slot"])
    operands = editor.operands(node)
    if not 0 <= slot < len(operands):
        raise Unsupported(f"it has {len(operands)} operands, and none at {slot}")
    operands[slot] = editor.value(edit["value"])
    editor.hoist(node, [operands[slot]])
    _assign(editor, node, operands)


def _assign(editor: Editor, node: Any, operands: Sequence[Any]) -> None:
    """Put operands, in the order of `graph`, into the places of the old ones."""
    import torch

    ordered = list(operands)[::-1] if native_name(node) == "aten.rsub" and len(operands) == 2 else list(operands)
    following = iter(ordered)

    def put(old: Any) -> Any:
        return old if old.op == "get_attr" else next(following)

    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), put)
    editor.replace(node, node.target, args, kwargs)


KINDS: dict[str, Callable[[Editor, EditDict], Any]] = {
    "set-parameter": set_parameter,
    "add-parameter": add_parameter,
    "set-attribute": change_attribute,
    "set-operator": set_operator,
    "remove-node": remove_node,
    "insert": insert,
    "reorder-inputs": reorder_inputs,
    "set-input": set_input,
    "set-dimensions": set_dimensions,
    "set-outputs": set_outputs,
    "set-precision": set_precision,
    "recompute": recompute,
}
"""Kind of edit -> what writes it; it may return sentences worth showing."""
