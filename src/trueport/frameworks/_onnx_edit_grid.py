"""Stores new values of a constant in the type, and on the grid, that its place in an ONNX model demands.

A constant that DequantizeLinear or a quantised operator reads holds numbers on a grid: real = (stored - zero) * scale.
New values are given as real ones. They go onto the grid that is there, or the grid is made anew to suit them; then
the bias of the same layer, whose grid hangs on that of the weights, is moved to the new one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._onnx_edit import Editor

GRIDS = {
    ("DequantizeLinear", 0): (1, 2),
    ("QLinearConv", 3): (4, 5),
    ("QLinearMatMul", 0): (1, 2),
    ("QLinearMatMul", 3): (4, 5),
    ("QGemm", 3): (4, 5),
    ("QLinearAdd", 0): (1, 2),
    ("QLinearAdd", 3): (4, 5),
    ("QLinearMul", 0): (1, 2),
    ("QLinearMul", 3): (4, 5),
    ("DynamicQuantizeMatMul", 1): (2, 3),
    ("MatMulIntegerToFloat", 1): (3, 5),
}
"""(operator, slot of a constant) -> slots of its scale and its zero point."""
BIASES = {("QLinearConv", 8): (1, 4), ("QGemm", 6): (1, 4)}
"""(operator, slot of an int32 bias) -> slots of the two scales whose product is its own."""
_WHOLE = {2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767), 6: (-(2**31), 2**31 - 1)}
_NARROW = {21: (0, 15), 22: (-8, 7), 25: (0, 3), 26: (-2, 1)}
LIMITS = {**_WHOLE, **_NARROW}
"""TensorProto data type of a grid -> its least and its greatest number."""


def encode(edit: Editor, reader: Any, name: str, array: np.ndarray, grid: str) -> Any:
    """A TensorProto that holds the real values `array` as `reader` expects them of its constant `name`.

    grid: "keep" or "new"; for "new" the reader gets a new scale and zero point. Raises Unsupported when they do not fit.
    """
    kind = edit.type(name)
    slot = list(reader.input).index(name) if name in reader.input else -1
    if (reader.op_type, slot) in BIASES:
        first, second = (edit.operand(reader, place) for place in BIASES[reader.op_type, slot])
        if first is None or second is None:
            raise Unsupported(f"the scales of the bias '{name}' are computed, so its grid is not known")
        return tensor(_rounded(array, first.astype(np.float64) * second, 0, kind, -1), kind)
    slots = GRIDS.get((reader.op_type, slot))
    if slots is None:
        return tensor(array, kind)
    if grid == "new":
        return _regrid(edit, reader, slots, array, kind)
    scale, zero, axis = _grid(edit, reader, slots, array)
    if kind not in LIMITS:
        return tensor(array / spread(scale, array, axis), kind)
    return tensor(_rounded(array, scale, zero, kind, axis), kind)


def _grid(edit: Editor, reader: Any, slots: tuple[int, int], array: np.ndarray) -> tuple[Any, Any, int]:
    """Scale, zero point and axis of the grid that a reader's constant lies on."""
    scale = edit.operand(reader, slots[0])
    if scale is None:
        raise Unsupported(f"the scale that node '{edit.name(reader)}' uses is computed, so its grid is not known")
    zero = edit.operand(reader, slots[1])
    if edit.attribute(reader, "block_size", 0):
        raise Unsupported(f"node '{edit.name(reader)}' has a grid in blocks, which is not written")
    axis = _axis(edit, reader, array)
    if scale.size > 1 and array.shape[axis] != scale.size:
        raise Unsupported(f"the grid of node '{edit.name(reader)}' has {scale.size} scales along axis {axis}")
    return scale.astype(np.float64), np.asarray(0 if zero is None else zero), axis


def _axis(edit: Editor, reader: Any, array: np.ndarray) -> int:
    """The axis along which the scales of a grid lie, if there are several."""
    if reader.op_type == "DequantizeLinear":
        axis = int(edit.attribute(reader, "axis", 1))
        return axis if -array.ndim <= axis < array.ndim else 0
    return 0 if reader.op_type == "QLinearConv" else array.ndim - 1


def spread(values: np.ndarray, array: np.ndarray, axis: int) -> np.ndarray:
    """Scales or zero points in a shape that fits along `axis` of an array."""
    values = np.asarray(values)
    if values.size == 1 or array.ndim == 0:
        return values.reshape(())
    shape = [1] * array.ndim
    shape[axis] = values.size
    return values.reshape(shape)


def _rounded(array: np.ndarray, scale: Any, zero: Any, kind: int, axis: int) -> np.ndarray:
    scale, zero = spread(scale, array, axis), spread(np.asarray(zero, np.float64), array, axis)
    safe = np.where(scale == 0, 1.0, scale)
    made: np.ndarray = np.clip(np.rint(array.astype(np.float64) / safe) + zero, *LIMITS[kind])
    return made


def _regrid(edit: Editor, reader: Any, slots: tuple[int, int], array: np.ndarray, kind: int) -> Any:
    """Make a grid of the same fineness that suits the new values, and give it to the reader."""
    old, zero, axis = _grid_of_any_size(edit, reader, slots, array)
    if kind not in LIMITS:
        raise Unsupported(f"node '{edit.name(reader)}' has no whole-number grid that could be made anew")
    least, most = LIMITS[kind]
    others = tuple(place for place in range(array.ndim) if place != axis % max(array.ndim, 1)) if old.size > 1 else None
    low, high = np.minimum(array.min(axis=others), 0.0), np.maximum(array.max(axis=others), 0.0)
    if zero is None or not np.any(zero):
        scale = np.maximum(high / most, low / least if least else 0.0)
        scale = np.maximum(np.maximum(np.abs(low), np.abs(high)) / most, 0.0) if least < 0 else scale
        new = np.zeros_like(scale)
    else:
        scale = (high - low) / (most - least)
        new = np.clip(np.rint(least - low / np.where(scale == 0, 1.0, scale)), least, most)
    scale = np.where(scale == 0, np.asarray(old.mean(), np.float64), scale)
    stored = edit.constants[reader.input[slots[0]]]
    kept = np.asarray(scale, np.float32).astype(np.float64)
    shape = list(stored.dims) if old.size == 1 else [-1]
    put(edit, reader, slots[0], tensor(kept.reshape(shape), stored.data_type))
    if zero is not None:
        put(edit, reader, slots[1], tensor(np.asarray(new).reshape(shape), kind))
    _move_bias(edit, reader, slots[0], old, kept)
    return tensor(_rounded(array, kept, new, kind, axis), kind)


def _grid_of_any_size(edit: Editor, reader: Any, slots: tuple[int, int], array: np.ndarray) -> tuple[Any, Any, int]:
    scale = edit.operand(reader, slots[0])
    if scale is None or edit.attribute(reader, "block_size", 0):
        raise Unsupported(f"the grid of node '{edit.name(reader)}' is computed or in blocks, so no new one is made")
    return scale.astype(np.float64), edit.operand(reader, slots[1]), _axis(edit, reader, array)


def _move_bias(edit: Editor, reader: Any, slot: int, old: np.ndarray, new: np.ndarray) -> None:
    """Put the int32 bias of the same layer, whose scale is that of input times weights, onto the new grid."""
    for (operator, place), scales in BIASES.items():
        bias = edit.operand(reader, place) if operator == reader.op_type and scales[1] == slot else None
        if bias is not None:
            ratio = np.broadcast_to(np.asarray(old / new).reshape(-1), (bias.size,)).reshape(bias.shape)
            put(edit, reader, place, tensor(np.rint(bias * ratio), 6))
    if reader.op_type != "DequantizeLinear":
        return
    for layer in edit.readers(reader.output[0]):
        biased = edit.producer(layer.input[2]) if len(layer.input) > 2 and layer.input[2] else None
        if biased is None or biased.op_type != "DequantizeLinear" or biased is reader:
            continue
        values, scale = edit.operand(biased, 0), edit.operand(biased, 1)
        if values is None or scale is None or edit.type(biased.input[0]) != 6:
            continue
        ratio = (new / old).reshape(-1) if new.size == old.size else (new.reshape(-1) / old.mean())
        if scale.size not in (1, ratio.size) and ratio.size != 1:
            continue
        moved = scale.astype(np.float64).reshape(-1) * ratio
        real = values * spread(scale.astype(np.float64), values, 0)
        shape = [-1] if moved.size > 1 else list(scale.shape)
        put(edit, biased, 0, tensor(_rounded(real, moved, 0, 6, 0), 6))
        put(edit, biased, 1, tensor(moved.reshape(shape), edit.type(biased.input[1])))


def put(edit: Editor, node: Any, slot: int, made: Any) -> str:
    """Let operand `slot` of this node alone be a constant: in place where nobody else reads the old one, else a copy."""
    name = node.input[slot] if slot < len(node.input) else ""
    shared = not name or name in edit.outputs() or len(edit.readers(name)) > 1 or list(node.input).count(name) > 1
    if name in edit.constants and not shared:
        edit.overwrite(name, made)
        return str(name)
    made.name = edit.fresh(name or "constant")
    edit.put(node, slot, edit.store(made))
    return str(node.input[slot])


def tensor(array: np.ndarray, kind: int) -> Any:
    """A TensorProto of that data type. Raises Unsupported for values that it cannot hold."""
    from onnx import TensorProto, helper, numpy_helper

    array = np.asarray(array)
    called = TensorProto.DataType.Name(kind).lower()
    if kind == TensorProto.STRING:
        return numpy_helper.from_array(np.array(array, dtype=object))
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    if dtype.kind in "iu" and array.dtype.kind == "f":
        if not np.array_equal(array, np.rint(array)):
            raise Unsupported(f"the constant holds whole numbers ({called}), and the new values are none")
        limits = np.iinfo(dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise Unsupported(f"the new values do not fit into {called}")
    with np.errstate(over="ignore"):
        made = np.array(array.astype(dtype), order="C")
    if dtype.kind == "f" and np.any(np.isinf(made) & np.isfinite(array)):
        raise Unsupported(f"the new values do not fit into {called}")
    found = numpy_helper.from_array(made)
    if found.data_type == kind:
        return found
    return helper.make_tensor("", kind, array.shape, array.reshape(-1).tolist())
