"""Applies edits to an OpenVINO model, each kind in its function. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from trueport.frameworks import _openvino_moves  # noqa: F401 -- fills the table of operators, as what it imports does
from trueport.frameworks._base import Arrays, EditDict, Unsupported
from trueport.frameworks._openvino_change import Change
from trueport.frameworks._openvino_emit import Emitter, Operand, channelwise
from trueport.frameworks._openvino_file import ELEMENTS, array_of, key
from trueport.frameworks._openvino_settings import set_attribute

LINEAR = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")


def _set_parameter(change: Change, edit: EditDict) -> None:
    node, array = change.node(edit["node"]), change.array(edit["array"])
    slots = change.slots(node, edit["parameter"])
    if not slots:
        _set_inner(change, node, edit["parameter"], array)
        return
    for slot in slots:
        old = change.stored(node, slot)
        if old is None:
            raise Unsupported(f"'{edit['parameter']}' is computed and cannot be set")
        laid = change.laid(array, node, old)
        direct = node.input_value(slot).get_node()
        narrow = key(direct) != key(old)
        if narrow and edit.get("grid", "keep") == "new":
            node.input(slot).replace_source_output(change.constant(laid, direct, old.get_friendly_name()).output(0))
            continue
        made = change.constant(laid, old, old.get_friendly_name())
        port = made.output(0)
        if narrow:
            wide = change.emitter().op("convert", port, destination_type=_element(direct))
            change.widened[key(made)] = wide.get_node()
            port = wide
        node.input(slot).replace_source_output(port)
    _handed_on(change, edit["parameter"], node, slots[0])


def _element(node: Any) -> str:
    return str(node.get_element_type().get_type_name())


def _handed_on(change: Change, name: str, node: Any, slot: int) -> None:
    """Where nobody else reads the old constant, the new one takes over its name."""
    old, new = change.values[name], change.stored(node, slot)
    readers = list(old.get_target_inputs())
    if any(item.get_node().get_type_name() == "Convert" for item in readers):
        readers = [other for item in readers for other in item.get_node().output(0).get_target_inputs()]
    if readers or new is None:
        return
    friendly = old.get_node().get_friendly_name()
    old.get_node().set_friendly_name(change.new_name())
    change.values.pop(new.get_friendly_name(), None)
    new.set_friendly_name(friendly)
    new.output(0).get_tensor().set_names(set(old.get_names()))
    change.values[name] = new.output(0)


def _set_inner(change: Change, node: Any, name: str, array: np.ndarray) -> None:
    """A constant in the body of a loop or a branch."""
    from trueport.frameworks._openvino_ops import inner_nodes

    for known, constant in inner_nodes(node):
        if known == name:
            import openvino

            made = openvino.op.Constant(
                np.ascontiguousarray(array.astype(array_of(constant).dtype)), shared_memory=False
            )
            made.set_friendly_name(constant.get_friendly_name())
            for reader in constant.output(0).get_target_inputs():
                reader.replace_source_output(made.output(0))
            return
    raise ValueError(f"'{node.get_friendly_name()}' reads no constant '{name}'")


def _add_parameter(change: Change, edit: EditDict) -> None:
    node, array = change.node(edit["node"]), change.array(edit["array"])
    if edit["role"] != "bias" or node.get_type_name() not in LINEAR:
        raise Unsupported(f"{node.get_type_name()} has no place for a '{edit['role']}' in an OpenVINO model")

    def add(e: Emitter, port: Any) -> Any:
        if node.get_type_name() == "MatMul" or array.ndim != 1:
            return e.op("add", port, array)
        return e.op("add", port, channelwise(e, array, e.rank(port)))

    _named(change, change.behind(node.output(0), add))


def _named(change: Change, port: Any) -> None:
    """Let later edits name what was made."""
    node = port.get_node()
    change.nodes.setdefault(node.get_friendly_name(), node)
    if not change.name_of(port):
        several = node.get_output_size() > 1
        change.values[node.get_friendly_name() + (f":{port.get_index()}" if several else "")] = port


def _set_attribute(change: Change, edit: EditDict) -> None:
    set_attribute(change, change.node(edit["node"]), edit["attribute"], edit["value"])


def _set_operator(change: Change, edit: EditDict) -> None:
    node = change.node(edit["node"])
    data = [port for port in node.input_values() if _computed(port)]
    if not data:
        data = list(node.input_values())[:1]
    operands = [*data, *(change.array(name) for name in edit.get("constants") or ())]
    change.replace(node, lambda e: e.emit(edit["operator"], operands, edit.get("attributes") or {})[0])


def _computed(port: Any) -> bool:
    """Whether an input of the model stands behind a value."""
    seen: set[str] = set()
    front = [port.get_node()]
    while front:
        node = front.pop()
        if node.get_type_name() in ("Parameter", "ReadValue"):
            return True
        if key(node) not in seen:
            seen.add(key(node))
            front += [item.get_node() for item in node.input_values()]
    return False


def _remove_node(change: Change, edit: EditDict) -> None:
    node = change.node(edit["node"])
    slot = edit.get("slot")
    if slot is None:
        slot = next((place for place, port in enumerate(node.input_values()) if _computed(port)), 0)
    if not 0 <= slot < node.get_input_size():
        raise ValueError(f"'{edit['node']}' has no operand {slot}")
    old = node.output(0)
    change.redirect(old, node.input_value(slot), list(old.get_target_inputs()))


def _insert(change: Change, edit: EditDict) -> None:
    port = change.value(edit["value"])

    def steps(e: Emitter, data: Any) -> Any:
        for step in edit["steps"]:
            others: list[Operand] = [change.array(name) for name in step.get("constants") or ()]
            others += [change.value(name) for name in step.get("others") or ()]
            slot = int(step.get("slot") or 0)
            operands = [*others[:slot], data, *others[slot:]]
            data = e.emit(step["operator"], operands, step.get("attributes") or {})[0]
            _named(change, data)
        return data

    change.behind(port, steps, edit.get("readers"))


def _reorder(change: Change, edit: EditDict) -> None:
    node, order = change.node(edit["node"]), [int(place) for place in edit["order"]]
    ports = list(node.input_values())
    if sorted(order) != list(range(len(ports))):
        raise ValueError(f"'order' names every operand of '{edit['node']}' once, by its old place")
    for slot, place in enumerate(order):
        node.input(slot).replace_source_output(ports[place])


def _set_input(change: Change, edit: EditDict) -> None:
    node, slot = change.node(edit["node"]), int(edit["slot"])
    if not 0 <= slot < node.get_input_size():
        raise ValueError(f"'{edit['node']}' has no operand {slot}")
    node.input(slot).replace_source_output(change.value(edit["value"]))


# -- inputs and outputs -------------------------------------------------------------------------------------------------


def _set_dimensions(change: Change, edit: EditDict) -> None:
    import openvino

    if edit["value"] not in change.inputs:
        raise Unsupported(f"'{edit['value']}' is no input of the model")
    parameter = change.value(edit["value"]).get_node()
    old = parameter.get_output_partial_shape(0)
    shape = [size if isinstance(size, int) and size >= 0 else -1 for size in edit["shape"]]
    if not old.rank.is_dynamic and len(shape) == old.rank.get_length() and old[0].is_static:
        batch = int(old[0].get_length())
        if shape[:1] != [batch]:
            _free_batch(change, parameter, batch)
    parameter.set_partial_shape(openvino.PartialShape(shape))
    try:
        change.model.validate_nodes_and_infer_types()
    except RuntimeError as error:
        raise Unsupported(f"the model does not take '{edit['value']}' in shape {edit['shape']}: {error}") from error


def _free_batch(change: Change, parameter: Any, batch: int) -> None:
    """Let every Reshape behind an input that has its number of samples written down take what it gets."""
    reached = {key(parameter)}
    for node in change.model.get_ordered_ops():
        if reached.isdisjoint(key(port.get_node()) for port in node.input_values()):
            continue
        reached.add(key(node))
        if node.get_type_name() != "Reshape" or change.stored(node, 1) is None:
            continue
        target = array_of(change.stored(node, 1)).ravel()
        before, after = node.get_input_partial_shape(0), node.get_output_partial_shape(0)
        if not target.size or int(target[0]) != batch or before.rank.is_dynamic or after.is_dynamic:
            continue
        sizes = [int(size) for size in after.to_shape()]
        node.input(1).replace_source_output(change.emitter().ints([-1, *sizes[1:]]))


def _set_outputs(change: Change, edit: EditDict) -> None:
    import openvino

    wanted = [
        (name, change.outputs[name] if name in change.outputs else change.value(name)) for name in edit["outputs"]
    ]
    if not wanted:
        raise Unsupported("a model has to give at least one output")
    for name, port in wanted:
        if not _computed(port):
            raise Unsupported(f"'{name}' is a constant and no output")
    old = list(change.model.get_results())
    made = []
    for name, port in wanted:
        if name not in port.get_names():
            port.get_tensor().set_names({name})
        made.append(openvino.opset13.result(port))
    for result in old:
        change.model.remove_result(result)
    change.model.add_results(made)
    change.outputs = dict(wanted)


# -- precision, and operators anew ------------------------------------------------------------------------------------------


def _set_precision(change: Change, edit: EditDict) -> None:
    """Real numbers in an operator: constants in float32, data as it is before it was put on a grid."""
    if edit["dtype"] != "float32":
        raise Unsupported(f"an operator of an OpenVINO model is set to float32, not to {edit['dtype']}")
    node = change.node(edit["node"])
    e = change.emitter()
    given = dict(edit.get("parameters") or {})
    for slot in range(node.get_input_size()):
        port = node.input_value(slot)
        name = change.name_of(port)
        if name in given:
            array = change.array(given.pop(name)).astype(np.float32)
            old = change.stored(node, slot)
            node.input(slot).replace_source_output(e.port(array if old is None else change.laid(array, node, old)))
        elif port.get_node().get_type_name() == "FakeQuantize" and _computed(port):
            node.input(slot).replace_source_output(port.get_node().input_value(0))
    if given:
        raise ValueError(f"'{edit['node']}' does not read all constants that 'parameters' names")


def _recompute(change: Change, edit: EditDict) -> None:
    """The value is computed by other operators; its own name among their operands means what it was."""
    if not edit["nodes"]:
        raise ValueError("'recompute' needs at least one operator")
    old, name = change.value(edit["value"]), edit["value"]
    readers = list(old.get_target_inputs())
    made = _emitted(change, edit["nodes"], {name: old})
    dtype = old.get_element_type().get_type_name()
    if made.get_element_type().get_type_name() != dtype and dtype in ELEMENTS.values():
        made = change.emitter().op("convert", made, destination_type=dtype)
    change.redirect(old, made, readers)
    before, mine = old.get_node(), made.get_node()
    if before.get_output_size() == 1 and mine.get_output_size() == 1 and before.get_type_name() != "Parameter":
        own = before.get_friendly_name()  # values go by the layer that computes them
        before.set_friendly_name(change.new_name())
        mine.set_friendly_name(own)
    change.values[name] = made
    _named(change, made)


def _emitted(change: Change, nodes: Sequence[Mapping[str, Any]], known: dict[str, Any]) -> Any:
    """Emit operators in ONNX vocabulary; `known`: what names mean before those of the model do. The last one's first result."""
    e = change.emitter()
    made: list[Any] = []
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


KINDS: dict[str, Callable[[Change, EditDict], None]] = {
    "set-parameter": _set_parameter,
    "add-parameter": _add_parameter,
    "set-attribute": _set_attribute,
    "set-operator": _set_operator,
    "remove-node": _remove_node,
    "insert": _insert,
    "reorder-inputs": _reorder,
    "set-input": _set_input,
    "set-dimensions": _set_dimensions,
    "set-outputs": _set_outputs,
    "set-precision": _set_precision,
    "recompute": _recompute,
}


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str) -> dict[str, Any]:
    """Write a copy of the model with the edits applied, one after the other.

    Returns {"notes": [...]}. Raises ValueError for names that the model does not have, Unsupported, with the reason, when
    an edit cannot be written at its place or OpenVINO cannot run what comes out.
    """
    change = Change(path, arrays)
    for edit in edits:
        kind = KINDS.get(edit["kind"])
        if kind is None:
            raise Unsupported(f"edits of kind '{edit['kind']}' cannot be written into an OpenVINO model")
        try:
            kind(change, edit)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise Unsupported(f"OpenVINO refuses the edit '{edit['kind']}': {lines[-1] if lines else error}") from error
    change.save(out)
    return {"notes": change.notes}
