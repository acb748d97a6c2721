"""Writes changes into a .pte file: values of stored tensors, and settings of kernel calls.

Memory is planned for the shapes that the file has, so an edit must leave them as they are. Values that a call shares
with others are given to it as copies of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trueport.frameworks import _executorch_file, _executorch_ops
from trueport.frameworks._base import Arrays, EditDict, Unsupported
from trueport.frameworks._executorch_file import Call, Model


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str) -> list[str]:
    """Write a copy of the file at `out` with the edits applied, in order. Returns notes. Raises Unsupported."""
    model = _executorch_file.read(path)
    for edit in edits:
        kind = edit["kind"]
        if kind not in _KINDS:
            raise Unsupported(
                f"the edit '{kind}' cannot be written into an ExecuTorch file: its memory is planned ahead"
            )
        file = copy.deepcopy(model.file)
        _KINDS[kind](model, _Target(model, file), edit, arrays)
        model = _reread(model.path, file)
    _executorch_file.write(model.file, out)
    return []


def _reread(path: str, file: Any) -> Model:
    return Model(path, _executorch_file.packed(file))


class _Target:
    """The copy of a file that is changed: its plan, values and constants."""

    def __init__(self, model: Model, file: Any) -> None:
        plans = [plan for plan in file.program.execution_plan if plan.name == model.plan.name]
        self.program = file.program
        self.plan = plans[0]
        self.values = self.plan.values

    def args(self, call: Call) -> list[int]:
        """The arguments of a call, to be changed in place."""
        found: list[int] = self.plan.chains[0].instructions[call.place].instr_args.args
        return found

    def add(self, value: Any) -> int:
        """A new value; returns its number."""
        made = copy.deepcopy(self.values[0])
        made.val = value
        self.values.append(made)
        return len(self.values) - 1


def _call(model: Model, name: str) -> Call:
    found = next((call for call in model.calls if call.writes and model.names[call.writes[0]] == name), None)
    if found is None:
        raise Unsupported(f"the file has no operator '{name}'")
    if found.place < 0:
        raise Unsupported(f"'{name}' is a view, which the file has no call for")
    if found.native.startswith("delegate."):
        raise Unsupported(f"'{name}' is computed by {found.native[len('delegate.') :]}, whose bytes are its own")
    return found


def _set_parameter(model: Model, target: _Target, edit: EditDict, arrays: Arrays) -> None:
    """New values for a stored tensor that the call reads, in the type and the shape that it has."""
    call = _call(model, edit["node"])
    number = model.number_of.get(edit["parameter"])
    if number is None or number not in call.reads or not model.is_constant(number):
        raise Unsupported(f"'{edit['node']}' reads no constant '{edit['parameter']}'")
    old = model.values[number]
    new = np.asarray(arrays[edit["array"]]).astype(model.dtype(number))
    if list(new.shape) != [int(size) for size in old.sizes]:
        raise Unsupported(f"'{edit['parameter']}' has the shape {list(old.sizes)}; memory is planned for no other")
    stored = copy.deepcopy(target.program.constant_buffer[old.data_buffer_idx])
    stored.storage = np.ascontiguousarray(new.transpose(list(old.dim_order))).tobytes()
    target.program.constant_buffer.append(stored)
    value = copy.deepcopy(target.values[number].val)
    value.data_buffer_idx = len(target.program.constant_buffer) - 1
    fresh = target.add(value)
    args = target.args(call)
    for slot, item in enumerate(args):
        held = target.values[item].val
        if item == number:
            args[slot] = fresh
        elif type(held).__name__ in ("TensorList", "OptionalTensorList") and number in held.items:
            changed = copy.deepcopy(held)
            changed.items = [fresh if one == number else one for one in held.items]
            args[slot] = target.add(changed)


def _set_attribute(model: Model, target: _Target, edit: EditDict, arrays: Arrays) -> None:
    """A new value for a setting of the call, under the name that `graph` shows; None puts PyTorch's None there."""
    call = _call(model, edit["node"])
    settings = {name: model.plain(number) for name, number in call.settings.items()}
    operator = _executorch_ops.onnx_name(call.native, settings)
    shown, value = edit["attribute"], edit["value"]
    found = _own_name(operator, settings, shown)
    if found is None:
        raise Unsupported(f"{call.native} has no setting '{shown}'; it has {', '.join(settings) or 'none'}")
    value = _own_value(found, shown, value)
    args = target.args(call)
    schema = _executorch_file.schema_of(*_operator(call.native))
    slot = next(place for place, argument in enumerate(schema.arguments) if argument.name == found)
    args[slot] = _value(model, target, call.settings[found], value)


def _operator(native: str) -> tuple[str, str]:
    name, _, overload = native.rpartition(".")
    return (name, overload) if name else (overload, "")


def _own_name(operator: str, settings: Mapping[str, Any], shown: str) -> str | None:
    aliases = {"pads": ("padding", "pad")}.get(shown, ())
    return next((n for n in settings if _executorch_ops.shown_name(operator, n) == shown or n in aliases), None)


def _own_value(setting: str, shown: str, value: Any) -> Any:
    """The value in PyTorch's form: one padding for both ends of an axis, or pairs from the last axis on."""
    if shown in ("axes", "starts", "ends", "steps") and setting in ("dim", "start", "end", "step"):
        return value[0] if isinstance(value, list) else value
    if shown != "pads" or not isinstance(value, list):
        return value
    half = len(value) // 2
    begins, ends = value[:half], value[half:]
    if setting == "pad":
        return [size for pair in zip(begins[::-1], ends[::-1]) for size in pair]
    if begins != ends:
        raise Unsupported(f"this kernel pads both ends of an axis alike; {value} cannot be written")
    return begins


def _value(model: Model, target: _Target, number: int, value: Any) -> int:
    """A value of the kind of an old one; returns the number of the new one."""
    from executorch.exir import schema

    old = model.values[number]
    kind = type(old).__name__
    if value is None:
        return target.add(schema.Null())
    if kind == "IntList":
        return target.add(schema.IntList([target.add(schema.Int(int(item))) for item in value]))
    if kind in ("DoubleList", "BoolList"):
        return target.add(type(old)(list(value)))
    plain = {"Int": int, "Double": float, "Bool": bool, "String": str}.get(kind)
    if plain is None:
        plain = bool if isinstance(value, bool) else int if isinstance(value, int) else float
    made = {int: schema.Int, float: schema.Double, bool: schema.Bool, str: schema.String}[plain]
    return target.add(made(plain(value)))


_KINDS: Mapping[str, Any] = {"set-parameter": _set_parameter, "set-attribute": _set_attribute}
