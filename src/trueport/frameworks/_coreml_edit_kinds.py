"""Edits of an ML program, one function for each kind. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueport.frameworks import _coreml_edit_grids as grids
from trueport.frameworks import _coreml_edit_settings as settings
from trueport.frameworks import _coreml_emit_shapes  # noqa: F401 -- fills the table of operators
from trueport.frameworks._base import Arrays, EditDict, Unsupported
from trueport.frameworks._coreml_editor import Editor
from trueport.frameworks._coreml_emit import FLOATS, Emitter, Operand
from trueport.frameworks._coreml_messages import reads
from trueport.frameworks._coreml_program import Type


class Change:
    """One file under change: the editor, the arrays that edits name, notes for the user."""

    def __init__(self, path: str, arrays: Arrays) -> None:
        self.edit = Editor(path)
        self.arrays = arrays
        self.notes: list[str] = []
        self.copies: dict[tuple[str, str], str] = {}
        """(node, constant that it read) -> the copy that an edit before has given it."""

    def array(self, key: str) -> np.ndarray:
        """The array of that key. Raises Unsupported when none was handed over."""
        if key not in self.arrays:
            raise Unsupported(f"the edits name an array '{key}' that was not given")
        return np.asarray(self.arrays[key])

    def emitter(self, hint: str) -> Emitter:
        """What writes new operations, whose names begin with `hint`."""
        return Emitter(self.edit, self.arrays, hint)

    def value(self, name: str) -> str:
        """The name, where the program has such a value. Raises Unsupported."""
        if not self.edit.exists(name):
            raise Unsupported(f"the model has no value '{name}'")
        return name


# -- what an operation holds ------------------------------------------------------------------------------------------


def set_parameter(change: Change, edit: EditDict) -> None:
    """Let a node read other values as one of its constants."""
    editor, name = change.edit, edit["parameter"]
    node, array, grid = editor.node(edit["node"]), change.array(edit["array"]), edit.get("grid", "keep")
    own, dot, argument = name.partition(".")
    if dot and own == edit["node"]:
        _set_bound(editor, node, argument, array)
        return
    current = change.copies.get((edit["node"], name), name)
    stored = editor.stored(current)
    if stored is None:
        raise Unsupported(f"'{name}' is no constant of the model")
    places = [place for place, one in editor.operands(node) if one == current]
    if not places:
        raise Unsupported(f"the operation '{edit['node']}' does not read '{name}'")
    shared = len(editor.readers(current)) > 1 or current in editor.outputs
    if stored.type != "const":
        made = grids.packed(editor, stored, array, grid)
    elif not shared and not _resized(editor, stored, array):
        editor.overwrite(stored, array)
        return
    else:
        made = editor.constant(array, current, editor.type(current).dtype)
    for place in places:
        editor.rebind(node, place, made)
    change.copies[edit["node"], name] = made


def _resized(editor: Editor, stored: Any, array: np.ndarray) -> bool:
    return tuple(array.shape) != tuple(editor.type(stored.outputs[0].name).shape or ())


def _set_bound(editor: Editor, node: Any, argument: str, array: np.ndarray) -> None:
    """A constant that stands in the operation itself."""
    argument, _, number = argument.partition(".")
    if argument not in node.inputs and argument not in node.attributes:
        raise Unsupported(f"'{node.outputs[0].name}' has no argument '{argument}'")
    old = editor.argument(node, argument)
    if not isinstance(old, np.ndarray) or number:
        raise Unsupported(f"'{argument}' of '{node.outputs[0].name}' is no array")
    editor.bind(node, argument, editor.constant(array, f"{node.outputs[0].name}_{argument}", old.dtype.name))


BIASED = ("conv", "conv_transpose", "linear")


def add_parameter(change: Change, edit: EditDict) -> None:
    """Give a node the operand that it does not have."""
    editor, node = change.edit, change.edit.node(edit["node"])
    role, array = edit["role"], change.array(edit["array"])
    kind = editor.type(node.outputs[0].name).dtype
    if role == "bias" and node.type in BIASED:
        if "bias" in node.inputs:
            old = editor.argument(node, "bias")
            if old is None or np.any(old):
                raise Unsupported(f"'{edit['node']}' has a bias already")
        editor.bind(node, "bias", editor.constant(array.reshape(-1), f"{edit['node']}_bias", kind))
        return
    if role == "bias" and node.type in ("matmul", "einsum"):
        value = node.outputs[0].name
        _splice(change, value, None, lambda e, before: e.make("add", x=before, y=e.value(array, before)))
        return
    norms = {"scale": "gamma", "gamma": "gamma", "bias": "beta", "beta": "beta", "B": "beta"}
    if node.type in ("layer_norm", "batch_norm", "instance_norm") and role in norms and norms[role] not in node.inputs:
        editor.bind(node, norms[role], editor.constant(array, f"{edit['node']}_{norms[role]}", kind))
        return
    raise Unsupported(f"Core ML's {node.type} takes no further {role}")


def set_attribute(change: Change, edit: EditDict) -> None:
    """Set a setting of an operation."""
    node = change.edit.node(edit["node"])
    if edit["attribute"] == "kernel_shape" and node.type in ("conv", "conv_transpose"):
        weight = change.edit.argument(node, "weight")
        if weight is None or list(weight.shape[2:]) != [int(size) for size in edit.get("value") or ()]:
            raise Unsupported("the size of a kernel is that of its weights")
        return
    settings.set_attribute(change.edit, node, edit["attribute"], edit.get("value"))


# -- operations -------------------------------------------------------------------------------------------------------


def set_operator(change: Change, edit: EditDict) -> None:
    """Let another operator compute a node's result from its data."""
    editor, node = change.edit, change.edit.node(edit["node"])
    _single(change, node)
    data: list[Operand] = [*editor.data(node)]
    data += [change.array(key) for key in edit.get("constants") or ()]
    name = node.outputs[0].name
    e = change.emitter(name)
    made = e.emit(edit["operator"], data, edit.get("attributes") or {})[0]
    _take_place(change, name, made, node)


def _single(change: Change, node: Any) -> None:
    """Raises Unsupported when results other than the first are in use."""
    for output in list(node.outputs)[1:]:
        if change.edit.readers(output.name) or output.name in change.edit.outputs:
            raise Unsupported(f"'{node.outputs[0].name}' has several results in use")


def _take_place(change: Change, name: str, made: str, node: Any | None) -> None:
    """Let the value `made` go under `name`; what computed that before (`node`) goes away."""
    editor = change.edit
    if node is not None:
        editor.drop(node)
    producer = editor.producer(made)
    if producer is None or made in editor.outputs or not _new(editor, made):
        made = change.emitter(name).make("identity", x=made)
        producer = editor.producer(made)
    editor.rename(producer, made, name)
    for reader in editor.operations:
        if reader is not producer:
            editor.replace(reader, made, name)
    _named(producer, name)


def _new(editor: Editor, value: str) -> bool:
    return value in editor.fresh_ones


def _named(operation: Any, name: str) -> None:
    """Let the operation's own name be that of its result, as coremltools writes it."""
    if "name" in operation.attributes and operation.outputs[0].name == name:
        operation.attributes["name"].immediateValue.tensor.strings.values[:] = [name]


def remove_node(change: Change, edit: EditDict) -> None:
    """Take a node out: its readers read one of its operands."""
    editor, node = change.edit, change.edit.node(edit["node"])
    _single(change, node)
    slot = edit.get("slot")
    if slot is None:
        computed = editor.data(node)
        if not computed:
            raise Unsupported(f"'{edit['node']}' has no operand that could take its place")
        value = computed[0]
    else:
        value = change.value(editor.operand(node, int(slot))[1])
    name = node.outputs[0].name
    if editor.type(value).dtype != editor.type(name).dtype:
        raise Unsupported(f"the operation makes {editor.type(name).dtype} of {editor.type(value).dtype}")
    if name in editor.outputs:
        producer = editor.producer(value)
        if producer is None or value in editor.outputs or editor.is_fixed(value):
            _take_place(change, name, value, node)
            return
        editor.drop(node)
        editor.rename(producer, value, name)
        for reader in editor.operations:
            editor.replace(reader, value, name)
        return
    editor.drop(node)
    for reader in editor.operations:
        editor.replace(reader, name, value)


def _splice(change: Change, value: str, readers: Sequence[str] | None, make: Any) -> None:
    """Put operations between a value and its readers ("" stands for the model's output; None: all)."""
    editor = change.edit
    reading = editor.readers(value)
    chosen, at_end = reading, value in editor.outputs
    if readers is not None:
        wanted = [editor.node(name) for name in readers if name]
        chosen = [item for item in reading if any(item is one for one in wanted)]
        at_end = "" in readers
        if len(chosen) < len(wanted) or (at_end and value not in editor.outputs):
            raise Unsupported(f"not all of {list(readers)} read the value '{value}'")
    producer = editor.producer(value)
    if not chosen and not at_end:
        raise Unsupported(f"nobody reads the value '{value}'")
    takes_name = producer is not None and (readers is None or at_end)
    if at_end and not takes_name:
        raise Unsupported(f"'{value}' is an input and an output at once; nothing can stand between")
    raw = value
    if takes_name:
        raw = editor.fresh(f"{value}_before")
        editor.rename(producer, value, raw)
    e = change.emitter(value)
    made = make(e, raw)
    if made == raw:
        made = e.make("identity", x=raw)
    new = editor.producer(made)
    before_new = {id(item) for item in _behind(editor, raw, made)}
    for reader in reading:
        if id(reader) in before_new:
            continue
        picked = any(reader is one for one in chosen)
        editor.replace(reader, value, (made if picked else raw) if takes_name or picked else value)
    if takes_name:
        editor.rename(new, made, value)
        _named(new, value)
        for reader in editor.operations:
            if reader is not new:
                editor.replace(reader, made, value)


def _behind(editor: Editor, raw: str, made: str) -> list[Any]:
    """The operations that were put in: those that compute `made`, as far as they are new."""
    found: list[Any] = []
    waiting = [made]
    while waiting:
        item = editor.producer(waiting.pop())
        if item is None or item.outputs[0].name not in editor.fresh_ones or any(item is one for one in found):
            continue
        found.append(item)
        waiting += [name for name in reads(item) if name != raw]
    return found


def insert(change: Change, edit: EditDict) -> None:
    """Put steps between a value and its readers."""
    value, steps = change.value(edit["value"]), edit["steps"]
    if not steps:
        raise Unsupported("an insertion needs at least one step")

    def make(e: Emitter, raw: str) -> str:
        current = raw
        for step in steps:
            given: list[Operand] = [change.array(key) for key in step.get("constants") or ()]
            given += [raw if other == value else change.value(other) for other in step.get("others") or ()]
            given.insert(int(step.get("slot") or 0), current)
            current = e.emit(step["operator"], given, step.get("attributes") or {})[0]
        return current

    _splice(change, value, edit.get("readers"), make)


def reorder_inputs(change: Change, edit: EditDict) -> None:
    """Let a node read its operands in another order."""
    node, order = change.edit.node(edit["node"]), [int(slot) for slot in edit["order"]]
    found = change.edit.operands(node)
    if sorted(order) != list(range(len(order))) or len(order) > len(found):
        raise Unsupported(f"{order} is no order of the {len(found)} operands of '{edit['node']}'")
    names = [name for _, name in found]
    if not all(change.edit.exists(names[slot]) for slot in order):
        raise Unsupported(f"an operand of '{edit['node']}' stands in the operation itself")
    for place, slot in zip([place for place, _ in found], order):
        change.edit.rebind(node, place, names[slot])


def set_input(change: Change, edit: EditDict) -> None:
    """Let one operand of a node be another value."""
    node, value = change.edit.node(edit["node"]), change.value(edit["value"])
    place, _ = change.edit.operand(node, int(edit["slot"]))
    change.edit.rebind(node, place, value)


def recompute(change: Change, edit: EditDict) -> None:
    """Let a value be what new nodes make of other values; its own name among their operands means what it was."""
    value, nodes = change.value(edit["value"]), edit["nodes"]
    if not nodes:
        raise Unsupported(f"nothing is given to compute '{value}' from")

    def make(e: Emitter, raw: str) -> str:
        known: dict[str, Operand] = {value: raw}
        made: list[str] = []
        for node in nodes:
            given = [_operand(change, name, known) for name in node["inputs"]]
            made = e.emit(node["op"], given, node.get("attributes") or {})
            known.update(zip(node["outputs"], made))
        return made[0]

    _splice(change, value, None, make)


def _operand(change: Change, name: str, known: Mapping[str, Operand]) -> Operand:
    if name in known or not name:
        return known.get(name)
    return change.array(name) if name in change.arrays else change.value(name)


# -- inputs, outputs, precision -----------------------------------------------------------------------------------------


def set_outputs(change: Change, edit: EditDict) -> None:
    """Let the model give these values, in this order and no others."""
    editor = change.edit
    if not edit["outputs"]:
        raise Unsupported("a model has to give at least one output")
    described = {item.name: item.SerializeToString() for item in editor.spec.description.output}
    wanted = [change.value(name) for name in edit["outputs"]]
    final = []
    for name in wanted:
        if name in editor.inputs or editor.is_fixed(name):
            name = change.emitter(name).make("identity", x=name)
        final.append(name)
    editor.outputs = final
    side = editor.spec.description.output
    del side[:]
    for name in final:
        item = side.add()
        if name in described:
            item.ParseFromString(described[name])
            continue
        item.name = name
        kinds = item.type.multiArrayType
        number = {"float16": "FLOAT16", "float32": "FLOAT32", "int32": "INT32", "bool": "INT32"}.get(
            editor.type(name).dtype
        )
        if number is None:
            raise Unsupported(f"'{name}' is {editor.type(name).dtype}, which a model of Core ML does not give")
        kinds.dataType = kinds.ArrayDataType.Value(number)
    if editor.spec.description.predictedFeatureName and editor.spec.description.predictedFeatureName not in final:
        raise Unsupported("the outputs of a classifier cannot be taken away")


def set_dimensions(change: Change, edit: EditDict) -> None:
    """Let an input take another shape. Texts and None are open sizes, up to the largest that Core ML knows."""
    editor, name = change.edit, edit["value"]
    message = next((item for item in editor.function.inputs if item.name == name), None)
    feature = next((item for item in editor.spec.description.input if item.name == name), None)
    if message is None or feature is None or feature.type.WhichOneof("Type") != "multiArrayType":
        raise Unsupported(f"'{name}' is no array that the model takes")
    sizes = [size if isinstance(size, int) and size >= 0 else None for size in edit["shape"]]
    array, tensor = feature.type.multiArrayType, message.type.tensorType
    old = [int(size) for size in array.shape]
    usual = old if len(old) == len(sizes) else [1] * len(sizes)
    kinds = array.dataType
    array.Clear()
    array.dataType = kinds
    array.shape.extend(known if size is None else size for size, known in zip(sizes, usual))
    if None in sizes:
        for size in sizes:
            span = array.shapeRange.sizeRanges.add()
            span.lowerBound, span.upperBound = (1, LARGEST) if size is None else (size, size)
    tensor.rank = len(sizes)
    del tensor.dimensions[:]
    for size in sizes:
        dimension = tensor.dimensions.add()
        if size is None:
            dimension.unknown.variadic = False
        else:
            dimension.constant.size = size
    editor.note(name, Type(editor.type(name).dtype, tuple(sizes)))
    editor.resized = True
    if old and len(old) == len(sizes) and sizes[0] != old[0]:
        _free_batch(change, name, old[0])


LARGEST = 1024
"""Largest size of an axis that an edit opens."""


def _free_batch(change: Change, name: str, batch: int) -> None:
    """Let reshapes behind an input that have its number of samples written down take what they get."""
    editor, reached = change.edit, {name}
    for node in editor.operations:
        if not reached.intersection(reads(node)):
            continue
        reached.update(output.name for output in node.outputs)
        target = editor.argument(node, "shape") if node.type == "reshape" else None
        if isinstance(target, np.ndarray) and target.size and int(target[0]) == batch and -1 not in target:
            settings.set_attribute(editor, node, "shape", [-1, *(int(size) for size in target[1:])])


def set_precision(change: Change, edit: EditDict) -> None:
    """Let a node compute in float32: casts stand before and behind it, its constants are stored anew."""
    editor, node = change.edit, change.edit.node(edit["node"])
    wanted = edit["dtype"]
    if wanted not in FLOATS:
        raise Unsupported(f"an operation of Core ML computes in float16 or float32, not in {wanted}")
    _single(change, node)
    name = node.outputs[0].name
    word = {"float32": "fp32", "float16": "fp16"}[wanted]
    given = dict(edit.get("parameters") or {})
    e = change.emitter(name)
    old = editor.type(name).dtype
    for place, one in editor.operands(node):
        if not editor.exists(one) or editor.type(one).dtype not in FLOATS:
            continue
        stored = editor.stored(one)
        if stored is not None:
            array = change.array(given[one]) if one in given else np.asarray(editor.array(one))
            editor.rebind(node, place, editor.constant(array, one, wanted))
        elif editor.type(one).dtype != wanted:
            like = Type(wanted, editor.type(one).shape)
            editor.rebind(node, place, e.make("cast", like=like, x=one, dtype=e.text(word)))
    if old == wanted:
        return
    editor.note(name, Type(wanted, editor.type(name).shape))
    back = {"float32": "fp32", "float16": "fp16"}[old]
    like = Type(old, editor.type(name).shape)
    _splice(change, name, None, lambda e, raw: e.make("cast", like=like, x=raw, dtype=e.text(back)))
