"""Edits of an exported program that touch more than one operator: its inputs and outputs, precision, a value computed anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trueport.frameworks._base import EditDict, Unsupported
from trueport.frameworks._torch_editor import Editor
from trueport.frameworks._torch_emit import emit
from trueport.frameworks._torch_emit_values import Place, aten, dtype_of
from trueport.frameworks._torch_values import dtype_name, native_name


def set_outputs(editor: Editor, edit: EditDict) -> None:
    """The model gives these values; a dictionary gets them as its keys, else they are numbered anew."""
    import torch.utils._pytree as pytree
    from torch.export.graph_signature import OutputKind, OutputSpec, TensorArgument

    names = list(edit["outputs"])
    if not names:
        raise Unsupported("a model without outputs cannot be written")
    values = [editor.value(name) for name in names]
    for value in values:
        editor.fake(value)
    last, specs = editor.last(), editor.exported.graph_signature.output_specs
    kept = [(spec, value) for spec, value in zip(specs, last.args[0]) if spec.kind.name != "USER_OUTPUT"]
    old = [value for spec, value in zip(specs, last.args[0]) if spec.kind.name == "USER_OUTPUT"]
    last.args = (tuple([value for _, value in kept] + values),)
    made = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(value.name), None) for value in values]
    specs[:] = [spec for spec, _ in kept] + made
    signature = editor.exported.module_call_graph[0].signature
    signature.out_spec = pytree.tree_structure(_packed(signature.out_spec, names))
    editor.touched()
    editor.sweep(value for value in old if hasattr(value, "op"))


def _packed(spec: Any, names: Sequence[str]) -> Any:
    if spec.type is dict:
        if len(set(names)) < len(names):
            raise Unsupported("a dictionary gives every output once")
        return dict.fromkeys(names, 0)
    if spec.num_leaves == 1 and not spec.num_children and len(names) == 1:
        return 0
    return [0] * len(names) if spec.type is list else (0,) * len(names)


def set_precision(editor: Editor, edit: EditDict) -> None:
    """The operator computes in another type of float: casts around it, its weights stored in that type."""
    import torch

    node, dtype = editor.node(edit["node"]), dtype_of(edit["dtype"])
    before = editor.fake(node).dtype
    if not dtype.is_floating_point or not before.is_floating_point:
        raise Unsupported(f"{native_name(node)} gives {dtype_name(before)}; only floats can change their type")
    given = edit.get("parameters") or {}
    unknown = set(given) - {editor.label(one) for one in editor.operands(node)}
    if unknown:
        raise Unsupported(f"it reads no constant '{sorted(unknown)[0]}'")
    place = Place(editor, node, node.name)
    for one in dict.fromkeys(editor.operands(node)):
        stored = editor.program.constants.get(one.name)
        key = given.get(editor.label(one)) if stored is not None else None
        if key is not None:
            tensor = torch.from_numpy(np.array(editor.arrays[key], order="C")).to(dtype)
            new = editor.add_constant(tensor, f"{editor.spec(one).target}_{node.name}", like=one)
            editor.called[new.name] = editor.label(one)
        elif editor.fake(one).dtype.is_floating_point and editor.fake(one).dtype != dtype:
            new = place.call("to.dtype", one, dtype)
        else:
            continue
        node.replace_input_with(one, new)
    readers = list(node.users)
    editor.infer(node)
    if before != dtype and readers:
        back = editor.call_before(node.next, aten("to.dtype"), (node, before))
        for reader in readers:
            editor.redirect(reader, node, back)


def set_dimensions(editor: Editor, edit: EditDict) -> list[str]:
    """An input takes another fixed shape; a batch size that is baked in behind it goes along."""
    node = editor.value(edit["value"])
    if node not in editor.program.inputs:
        raise Unsupported("it is no input of the model")
    fake = editor.fake(node)
    old, new = editor.shape(node), list(edit["shape"])
    if len(old) != len(new):
        raise Unsupported(f"it has {len(old)} axes, the new shape {len(new)}")
    sizes: list[Any] = []
    for axis, (was, size) in enumerate(zip(old, new)):
        if (was < 0) != (not isinstance(size, int)):
            raise Unsupported(
                f"the size of axis {axis} is {'open' if was < 0 else 'fixed'}, and every shape behind it was worked out from that; "
                "export the original model again, with dynamic_shapes for the sizes that are to be open"
            )
        sizes.append(size if isinstance(size, int) else fake.shape[axis])
    if min((size for size in sizes if isinstance(size, int)), default=1) < 1:
        raise Unsupported(f"the shape {new} has a size below 1")
    editor.imagine(node, sizes, fake.dtype)
    freed = []
    if old and old[0] != new[0]:
        freed = _batch_anew(editor, node, old[0], sizes[0])
    _examples_anew(editor, node)
    return [f"the batch size in {', '.join(freed)} went along"] if freed else []


def _batch_anew(editor: Editor, start: Any, old: int, new: int) -> list[str]:
    """Write the new batch size into shapes that operators behind an input have as numbers; names of those operators."""
    behind, freed = {start}, []
    for node in editor.program.operators():
        if not behind.intersection(node.all_input_nodes):
            continue
        behind.add(node)
        behind.update(user for user in node.users if user in editor.program.aliases)
        for one in editor.schema(node) if hasattr(node.target, "_schema") else ():
            if one.name in ("shape", "size") and str(one.type) in ("List[int]", "List[SymInt]"):
                sizes = list(editor.argument(node, one.name))
                if sizes and sizes[0] == old and editor.shape(node)[:1] == [old]:
                    editor.set_argument(node, one.name, [new, *sizes[1:]])
                    freed.append(node.name)
    return freed


def _examples_anew(editor: Editor, node: Any) -> None:
    """The example input in the new shape: the old one's values over and over."""
    import torch
    import torch.utils._pytree as pytree

    examples = editor.exported.example_inputs
    if examples is None:
        return
    flat, spec = pytree.tree_flatten(examples)
    place = [n for n in editor.graph.nodes if n.op == "placeholder" and not editor.is_constant(n)].index(node)
    old = flat[place]
    sizes = [size if isinstance(size, int) else old.shape[axis] for axis, size in enumerate(editor.fake(node).shape)]
    flat[place] = torch.from_numpy(np.resize(old.numpy(), sizes))
    editor.exported.example_inputs = pytree.tree_unflatten(flat, spec)


def recompute(editor: Editor, edit: EditDict) -> None:
    """A value is what other operators make of other values; what served it alone goes away."""
    value, nodes = editor.value(edit["value"]), list(edit["nodes"])
    if not nodes:
        raise Unsupported("there is no operator to compute it with")
    if editor.is_constant(value) or value in editor.program.inputs:
        raise Unsupported("it is no result of an operator; insert operators behind it instead")
    outer = [editor.value(name) for name in _outer(editor, nodes)]
    own = value not in editor.program.aliases and not editor.depends(outer, value)
    readers = list(value.users)
    order = {node: index for index, node in enumerate(editor.graph.nodes)}
    point = value if own else min(readers, key=lambda one: order[one], default=editor.last())
    editor.hoist(point, outer)
    old = list(value.all_input_nodes)
    made: dict[str, Any] = {}
    for index, described in enumerate(nodes):
        place = Place(editor, point, described.get("name") or f"{value.name}_{index}")
        operands = [_operand(editor, made, name) for name in described.get("inputs", ())]
        call = emit(place, described["op"], operands, described.get("attributes") or {})
        if own and index == len(nodes) - 1:
            editor.replace(value, *call)
            result = value
        else:
            result = place.put(call, described.get("name"))
        for name in (*list(described.get("outputs", ()))[:1], described.get("name")):
            if name:
                made[name] = result
                editor.know(name, result)
    for reader in readers if not own else ():
        editor.redirect(reader, value, result)
    editor.sweep(old if own else [value])
    editor.know(edit["value"], result)


def _outer(editor: Editor, nodes: Sequence[dict[str, Any]]) -> list[str]:
    """The values of the model that the operators read."""
    made: set[str] = set()
    found = []
    for described in nodes:
        names = [name for name in described.get("inputs", ()) if name and name not in made]
        found += [name for name in names if name not in editor.arrays]
        made.update(list(described.get("outputs", ()))[:1])
        made.add(described.get("name", ""))
    return found


def _operand(editor: Editor, made: dict[str, Any], name: str) -> Any:
    if not name:
        return None
    if name in made:
        return made[name]
    return editor.arrays[name] if name in editor.arrays else editor.value(name)
