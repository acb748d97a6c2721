"""Lets one node of an ONNX model compute in another precision: casts around it, or a plain operator for a quantised one."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.frameworks import _onnx_edit_grid as grids
from trueport.frameworks import _onnx_edit_write as writing
from trueport.frameworks._base import EditDict, Unsupported
from trueport.frameworks._onnx_edit import Editor
from trueport.frameworks._onnx_edit_job import Job, path_to

KINDS = {"float32": 1, "float64": 11, "float16": 10}
"""Name of a precision -> TensorProto data type."""
FLOATING = (1, 10, 11, 16)
PLAIN: dict[str, tuple[str, tuple[int, ...], int, int | None]] = {
    "QLinearConv": ("Conv", (0, 3), 6, 8),
    "QLinearMatMul": ("MatMul", (0, 3), 6, None),
    "QLinearAdd": ("Add", (0, 3), 6, None),
    "QLinearMul": ("Mul", (0, 3), 6, None),
}
"""Quantised operator -> the plain one, slots of its data (scale and zero point behind each), of the result's scale, of
its bias."""
INTEGER = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
"""Operator on whole numbers -> the plain one; a cast and a multiplication behind it make its result real."""


def set_precision(job: Job, edit: EditDict) -> None:
    """Let a node compute in `dtype`; the constants named in `parameters` hold the given arrays from then on."""
    node, dtype = job.edit.node(edit["node"]), edit["dtype"]
    if dtype not in KINDS:
        raise Unsupported(f"'{dtype}' is no precision that a node can compute in ({', '.join(KINDS)})")
    given = {name: job.array(key) for name, key in (edit.get("parameters") or {}).items()}
    if node.op_type in PLAIN:
        _plain(job.edit, node, KINDS[dtype], given)
    elif node.op_type in INTEGER:
        _real(job.edit, node, KINDS[dtype], given)
    else:
        _cast(job.edit, node, KINDS[dtype], given)


def _cast(edit: Editor, node: Any, kind: int, given: dict[str, np.ndarray]) -> None:
    known = writing.schema(edit, node.op_type, node.domain)
    results = {name: edit.type(name) for name in node.output if name}
    if any(not found for found in results.values()):
        raise Unsupported(f"the types of what node '{edit.name(node)}' computes are not known")
    operands = {slot: name for slot, name in enumerate(node.input) if name}
    used = set()
    for slot, name in operands.items():
        fixed = known is not None and known.inputs[min(slot, len(known.inputs) - 1)].type_str.startswith("tensor(")
        parameter = next((item for item in given if _reads(edit, node, slot, item)), None)
        if parameter is not None:
            used.add(parameter)
            _hold(edit, node, slot, given[parameter], edit.type(name) if fixed else kind)
        elif not fixed and edit.type(name) in FLOATING:
            _convert(edit, node, slot, kind)
    for name in given:
        if name not in used:
            raise Unsupported(f"node '{edit.name(node)}' has no constant '{name}'")
    for name, found in results.items():
        if found in FLOATING and found != kind and (edit.readers(name) or name in edit.outputs()):
            _cast_back(edit, name, found, kind)


def _reads(edit: Editor, node: Any, slot: int, constant: str) -> bool:
    """Whether operand `slot` is that constant, or made of it."""
    name = node.input[slot]
    before = edit.producer(name)
    return bool(name == constant or (before is not None and path_to(edit, before, constant) is not None))


def _hold(edit: Editor, node: Any, slot: int, array: np.ndarray, kind: int) -> None:
    """Let operand `slot` be a constant of that type, whatever stood between it and the constant before."""
    made = grids.tensor(array, kind)
    made.name = edit.fresh(node.input[slot] or "constant")
    edit.put(node, slot, edit.store(made))


def _convert(edit: Editor, node: Any, slot: int, kind: int) -> None:
    """Bring an operand into the precision: what was rounded to a grid is read as it was before, the rest is cast."""
    name = node.input[slot]
    whole = edit.producer(name)
    before = edit.producer(whole.input[0]) if whole is not None and whole.op_type == "DequantizeLinear" else None
    if before is not None and before.op_type == "QuantizeLinear":
        edit.put(node, slot, before.input[0])
        name = before.input[0]
    found = edit.type(name)
    if found == kind or found not in FLOATING:
        return
    array = edit.array(name)
    if array is not None:
        _hold(edit, node, slot, array, kind)
        return
    out = edit.fresh(f"{name}_cast")
    edit.add(*writing.write(edit, "Cast", [name], {"to": kind}, [out]))
    edit.put(node, slot, out)


def _cast_back(edit: Editor, name: str, found: int, kind: int) -> None:
    def make(data: str, out: str) -> list[Any]:
        edit.note_type(data, kind)
        return writing.write(edit, "Cast", [data], {"to": found}, [out])

    edit.splice(name, make)


def _plain(edit: Editor, node: Any, kind: int, given: dict[str, np.ndarray]) -> None:
    """Write DequantizeLinear, the plain operator and QuantizeLinear in the place of an operator that works on grids."""
    operator, data, result, bias = PLAIN[node.op_type]
    slots = [*data, *([bias] if bias is not None and bias < len(node.input) and node.input[bias] else [])]
    unknown = [name for name in given if name not in [node.input[slot] for slot in slots]]
    if unknown:
        raise Unsupported(f"node '{edit.name(node)}' has no constant '{unknown[0]}'")
    build, operands = writing.Builder(edit), []
    for slot in slots:
        name = node.input[slot]
        if name in given:
            operands.append(_stored(edit, given[name], kind, name))
        elif slot == bias:
            operands.append(_stored(edit, grids.real_bias(edit, node, slot), kind, name))
        else:
            operands.append(_dequantised(edit, build, node, slot, kind))
    out = edit.fresh(f"{node.output[0]}_real")
    attributes = list(node.attribute) if operator == "Conv" else []
    made = writing.write(edit, operator, operands, {}, [out], edit.name(node))[0]
    made.attribute.extend(attributes)
    edit.note_type(out, kind)
    real = out if kind == 1 else edit.fresh(f"{out}_single")
    grid = [real, node.input[result], node.input[result + 1]]
    after = writing.write(edit, "QuantizeLinear", grid, {}, [node.output[0]])
    back = [] if kind == 1 else [_one(edit, out, real)]
    node.CopyFrom(made)
    edit.add(*build.nodes, *back, *after)


def _one(edit: Editor, data: str, out: str) -> Any:
    return writing.write(edit, "Cast", [data], {"to": 1}, [out])[0]


def _stored(edit: Editor, array: np.ndarray, kind: int, hint: str) -> str:
    made = grids.tensor(array, kind)
    made.name = edit.fresh(hint)
    return edit.store(made)


def _dequantised(edit: Editor, build: writing.Builder, node: Any, slot: int, kind: int) -> str:
    name, scale, zero = node.input[slot], node.input[slot + 1], node.input[slot + 2]
    stored = edit.array(name)
    if stored is not None:
        return _stored(edit, grids.real(edit, node, name), kind, name)
    found = build("DequantizeLinear", name, scale, zero)
    return found if kind == 1 else build("Cast", found, to=kind)


def _real(edit: Editor, node: Any, kind: int, given: dict[str, np.ndarray]) -> None:
    """Compute in real numbers what DynamicQuantizeLinear, an operator on whole numbers, Cast and Mul compute together."""
    source = edit.producer(node.input[0])
    scaled = grids.integer_result(edit, node)
    if source is None or source.op_type != "DynamicQuantizeLinear" or scaled is None:
        raise Unsupported(
            f"what stands around node '{edit.name(node)}' is no dynamic quantisation as it is usually written"
        )
    name = node.input[1]
    if any(item != name for item in given):
        raise Unsupported(f"node '{edit.name(node)}' has no constant '{next(item for item in given if item != name)}'")
    array = given[name] if name in given else grids.real(edit, node, name)
    out = scaled.output[0]
    build = writing.Builder(edit)
    data = source.input[0] if kind == 1 else build("Cast", source.input[0], to=kind)
    raw = out if kind == 1 else edit.fresh(f"{out}_real")
    attributes = list(node.attribute)
    made = writing.write(
        edit, INTEGER[node.op_type], [data, _stored(edit, array, kind, name)], {}, [raw], edit.name(node)
    )[0]
    made.attribute.extend(attributes)
    edit.rename_result(scaled, out, edit.fresh(f"{out}_before"))
    node.CopyFrom(made)
    edit.add(*build.nodes, *([] if kind == 1 else [_one(edit, raw, out)]))
