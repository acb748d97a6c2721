"""Writes edits of an ONNX file that touch what it takes and gives: sizes of inputs, and the list of outputs.

A size that changes may be baked in behind the input: as a number in the shape of a Reshape or an Expand, or as the
length of a constant that is joined to the data. Each is freed where the file shows that it is that size and no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import numpy as np

from trueport.frameworks import _onnx_edit_grid as grids
from trueport.frameworks import _onnx_edit_write as writing
from trueport.frameworks._base import Dim, EditDict, Unsupported
from trueport.frameworks._onnx_edit import Editor
from trueport.frameworks._onnx_edit_job import Job

ROUNDS = 64
"""Most times that shapes are inferred anew: one for each baked-in size behind another."""
FREE = "trueport_free_"
"""Before the number of an axis: the name of its size while baked-in sizes are looked for."""


def set_outputs(job: Job, edit: EditDict) -> None:
    """Give these outputs, in this order, and no others."""
    wanted = list(edit["outputs"])
    if not wanted or len(set(wanted)) < len(wanted):
        raise Unsupported("a model needs at least one output, and each only once")
    listed = {item.name: item for item in job.edit.graph.output}
    made = []
    for name in wanted:
        if name not in listed and not job.edit.exists(name):
            raise Unsupported(f"the model has no value '{name}'")
        item = listed.get(name) or job.edit.described(name)
        if item is None:
            raise Unsupported(f"the type of '{name}' is not known, so it cannot be an output")
        copy = type(item)()
        copy.CopyFrom(item)
        made.append(copy)
    graph = job.edit.graph
    for place in reversed([place for place, item in enumerate(graph.value_info) if item.name in wanted]):
        del graph.value_info[place]
    del graph.output[:]
    graph.output.extend(made)


def set_dimensions(job: Job, edit: EditDict) -> None:
    """Let an input take another shape, and free the old sizes where they are baked in."""
    value, wanted = edit["value"], list(edit["shape"])
    item = next((item for item in job.edit.inputs() if item.name == value), None)
    if item is None:
        raise Unsupported(f"the model has no input '{value}'")
    old = job.edit.shape(value)
    if old is not None and len(old) != len(wanted):
        raise Unsupported(f"input '{value}' has {len(old)} axes, and the shape {wanted} has {len(wanted)}")
    changed = [axis for axis, size in enumerate(old or []) if size is not None and size != wanted[axis]]
    if changed:
        _free(job, item, old or [], changed)
    _write_shape(item, wanted)
    job.edit.freed = True
    job.edit.mark(value)


def _write_shape(item: Any, sizes: Sequence[Dim]) -> None:
    shape = item.type.tensor_type.shape
    while len(shape.dim) < len(sizes):
        shape.dim.add()
    for place, size in enumerate(sizes):
        shape.dim[place].Clear() if size is None or isinstance(size, str) else None
        if isinstance(size, str):
            shape.dim[place].dim_param = size
        elif size is not None:
            shape.dim[place].dim_value = int(size)


def _free(job: Job, item: Any, old: list[Any], changed: list[int]) -> None:
    """Find baked-in sizes: with the changed sizes open, they are the ones that the operators insist on."""
    before = {name: job.edit.shape(name) for node in job.edit.graph.node for name in node.output if name}
    before[item.name] = old
    _write_shape(item, [f"{FREE}{axis}" if axis in changed else size for axis, size in enumerate(old)])
    done: set[int] = set()
    for _ in range(ROUNDS):
        opened = job.edit.inferred_anew()
        for node in job.edit.graph.node:
            handler = BAKED.get(node.op_type)
            if handler is None or id(node) in done or node.domain not in ("", "ai.onnx"):
                continue
            if handler(Opening(job.edit, item.name, before, opened), node):
                done.add(id(node))
                job.notes.append(f"a size that was baked into '{job.edit.name(node)}' is free now")
                break
        else:
            return


class Opening:
    """What is known while baked-in sizes are looked for: shapes before (fixed), and with the changed sizes open."""

    def __init__(self, edit: Editor, source: str, before: dict[str, Any], opened: dict[str, Any]) -> None:
        self.edit = edit
        self.source = source
        self._before = before
        self._opened = opened

    def before(self, name: str) -> list[int] | None:
        """The fixed shape of a value in the file as it was; None when it is not fully known."""
        shape = self._before.get(name) or self.edit.shape(name)
        return None if shape is None or None in shape else [int(size) for size in shape if size is not None]

    def free(self, name: str) -> dict[int, int | None]:
        """Axes of a value that are open now and had a fixed size: axis -> axis of the input that it is, if known."""
        kind, fixed = self._opened.get(name), self._before.get(name)
        if kind is None or fixed is None or not kind.tensor_type.HasField("shape"):
            return {}
        found: dict[int, int | None] = {}
        for axis, size in enumerate(kind.tensor_type.shape.dim):
            if axis < len(fixed) and fixed[axis] is not None and not size.HasField("dim_value"):
                known = size.dim_param.startswith(FREE)
                found[axis] = int(size.dim_param[len(FREE) :]) if known else None
        return found

    def size(self, axis: int) -> str:
        """A value that holds the input's size along an axis at run time, as a list of one."""
        build = writing.Builder(self.edit)
        made = build("Gather", build("Shape", self.source), np.array([axis], np.int64), axis=0)
        self.edit.add(*build.nodes)
        return made

    def shape_with(self, sizes: Sequence[int], places: dict[int, int]) -> str:
        """A value that holds `sizes`, at some places (place -> axis of the input) what the input has at run time."""
        build = writing.Builder(self.edit)
        parts = [
            self.size(places[place]) if place in places else np.array([size], np.int64)
            for place, size in enumerate(sizes)
        ]
        made = build("Concat", *parts, axis=0)
        self.edit.add(*build.nodes)
        return made


def _reshape(opening: Opening, node: Any) -> bool:
    """A number in the shape of a Reshape that is an open size of the data: 0 (as in the data) or -1 (what is left)."""
    edit = opening.edit
    target = edit.operand(node, 1)
    free, data, result = opening.free(node.input[0]), opening.before(node.input[0]), opening.before(node.output[0])
    if target is None or not free or data is None or result is None:
        return False
    made = [int(size) for size in target.reshape(-1)]
    copies = not edit.attribute(node, "allowzero", 0)
    for axis in free:
        same = axis < len(made) and made[axis] == data[axis] and _product(data[:axis]) == _product(result[:axis])
        if same and copies and (data[axis] > 1 or axis == 0 or data[: axis + 1] == result[: axis + 1]):
            made[axis] = 0
    rest = [axis for axis in free if axis >= len(made) or made[axis] != 0]
    if rest and -1 not in made:
        place = _remainder(made, [data[axis] for axis in rest], rest)
        if place is not None:
            made[place] = -1
    if made == [int(size) for size in target.reshape(-1)]:
        return False
    grids.put(edit, node, 1, grids.tensor(np.array(made, np.int64), 7))
    return True


def _remainder(made: list[int], sizes: list[int], axes: list[int]) -> int | None:
    """The one number of a shape that must take up the open sizes; None when several could."""
    total = _product(sizes)
    if total == 1:
        return 0 if 0 in axes and made and made[0] == 1 else None
    holding = [place for place, size in enumerate(made) if size > 1 and size % total == 0]
    if 0 in axes and 0 in holding and made[0] == total:
        return 0
    return holding[0] if len(holding) == 1 else None


def _product(sizes: Sequence[int]) -> int:
    return int(np.prod(np.array(sizes, np.int64))) if len(sizes) else 1


def _expand(opening: Opening, node: Any) -> bool:
    """A number in the shape of an Expand: 1 where the data has that size; the input's size where the data has one."""
    edit = opening.edit
    target, data = edit.operand(node, 1), opening.before(node.input[0])
    if target is None or data is None:
        return False
    sizes = [int(size) for size in target.reshape(-1)]
    offset = len(sizes) - len(data)
    made = list(sizes)
    for axis in opening.free(node.input[0]):
        if axis + offset >= 0 and made[axis + offset] == data[axis]:
            made[axis + offset] = 1
    if made != sizes:
        grids.put(edit, node, 1, grids.tensor(np.array(made, np.int64), 7))
        return True
    return _first_is_batch(opening, node, 1, sizes)


def _constant_of_shape(opening: Opening, node: Any) -> bool:
    """A constant that is made as long as the old batch."""
    target = opening.edit.operand(node, 0)
    return target is not None and _first_is_batch(opening, node, 0, [int(size) for size in target.reshape(-1)])


def _first_is_batch(opening: Opening, node: Any, slot: int, sizes: list[int]) -> bool:
    """Put the input's first size at run time in the place of the old batch, where that is more than one."""
    old = opening.before(opening.source)
    if not old or 0 not in opening.free(opening.source) or not sizes or sizes[0] != old[0] or old[0] == 1:
        return False
    if _first_free_elsewhere(opening, node):
        return False
    opening.edit.put(node, slot, opening.shape_with(sizes, {0: 0}))
    return True


def _first_free_elsewhere(opening: Opening, node: Any) -> bool:
    return 0 in opening.free(node.output[0])


def _concat(opening: Opening, node: Any) -> bool:
    """A constant that is joined to data whose first size is open now: it is repeated as often as the input's first size."""
    edit = opening.edit
    joined = int(edit.attribute(node, "axis", 1))
    shapes = [opening.before(name) for name in node.input]
    if joined == 0 or not any(opening.free(name).get(0, -1) == 0 for name in node.input):
        return False
    for slot, name in enumerate(node.input):
        array = edit.operand(node, slot)
        shape = shapes[slot]
        if array is None or not shape or joined == -len(shape) or not np.all(array == array[:1]):
            continue
        build = writing.Builder(edit)
        wide = build("Expand", edit.constant(array[:1], name), opening.shape_with([1, *shape[1:]], {0: 0}))
        edit.add(*build.nodes)
        edit.put(node, slot, wide)
        return True
    return False


def _recurrent(opening: Opening, node: Any) -> bool:
    """A first state of zeros with the old batch in its shape: left out, it is zeros of any batch."""
    edit = opening.edit
    if not opening.free(node.input[0]):
        return False
    slots = [slot for slot in (5, 6) if (array := edit.operand(node, slot)) is not None and not np.any(array)]
    for slot in slots:
        edit.put(node, slot, "")
    return bool(slots)


BAKED: dict[str, Callable[[Opening, Any], bool]] = {
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Concat": _concat,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
"""Operator -> what frees a size that is baked into a node of it; true when it changed something."""
