"""Stores new values of a constant in the type, and on the grid, that its place in an ONNX model demands.

A constant that DequantizeLinear or a quantised operator reads holds numbers on a grid: real = (stored - zero) * scale.
New values are given as real ones. They go onto the grid that is there, or the grid is made anew to suit them; then
the bias of the same layer, whose grid hangs on that of the weights, is moved to the new one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
INTEGER = ("MatMulInteger", "ConvInteger")
"""Operators on whole numbers; the scale of their weights stands in a multiplication behind them."""
AXES = {"QLinearConv": 0, "ConvInteger": 0}
"""Operator -> axis of its weights along which scales lie; the last one for all others."""
_INT32 = 6
BIASES = {("QLinearConv", 8): (1, 4), ("QGemm", 6): (1, 4)}
"""(operator, slot of an int32 bias) -> slots of the two scales whose product is its own."""
_WHOLE = {2: (0, 255), 3: (-128, 127), 4: (0, 65535), 5: (-32768, 32767), 6: (-(2**31), 2**31 - 1)}
_NARROW = {21: (0, 15), 22: (-8, 7), 25: (0, 3), 26: (-2, 1)}
LIMITS = {**_WHOLE, **_NARROW}
"""TensorProto data type of a grid -> its least and its greatest number."""


Place = tuple[Any, int]
"""A node and the slot of one of its operands."""


def encode(edit: Editor, reader: Any, name: str, array: np.ndarray, grid: str) -> Any:
    """A TensorProto that holds the real values `array` as `reader` expects them of its constant `name`.

    grid: "keep" or "new"; for "new" the reader gets a new scale and zero point. Raises Unsupported when they do not fit.
    """
    kind = edit.type(name)
    slot = list(reader.input).index(name) if name in reader.input else -1
    if (reader.op_type, slot) in BIASES:
        return bias(edit, reader, slot, array)
    found = _grid(edit, reader, slot)
    if found is None and grid == "new" and reader.op_type == "Cast":
        return tensor(array, int(edit.attribute(reader, "to", kind)))
    if found is None:
        return tensor(array, kind)
    if found.scales.size > 1 and (array.ndim == 0 or array.shape[found.axis] != found.scales.size) and grid != "new":
        raise Unsupported(
            f"the grid of node '{edit.name(reader)}' has {found.scales.size} scales along axis {found.axis}, "
            f"and the new values have shape {list(array.shape)}"
        )
    if kind not in LIMITS:
        return tensor(array / spread(found.scales, array, found.axis), kind)
    if grid == "new":
        return _regrid(edit, reader, found, array, kind)
    return tensor(_rounded(array, found.scales, found.zeros, kind, found.axis), kind)


def real(edit: Editor, reader: Any, name: str) -> np.ndarray:
    """The real values of a constant on a grid, as its reader sees them; of any other constant, what is stored."""
    stored = edit.array(name)
    if stored is None:
        raise Unsupported(f"'{name}' is no constant of the model")
    found = _grid(edit, reader, list(reader.input).index(name))
    values = stored.astype(np.float64)
    if found is None:
        return values
    made: np.ndarray = (values - spread(found.zeros, values, found.axis)) * spread(found.scales, values, found.axis)
    return made


def bias(edit: Editor, reader: Any, slot: int, array: np.ndarray) -> Any:
    """A TensorProto with a bias of a quantised operator: whole numbers, each the product of the two scales."""
    return tensor(_rounded(array, _bias_scale(edit, reader, slot), 0, _INT32, 0), _INT32)


def real_bias(edit: Editor, reader: Any, slot: int) -> np.ndarray:
    """The real values of such a bias."""
    stored = edit.operand(reader, slot)
    if stored is None:
        raise Unsupported(f"the bias of node '{edit.name(reader)}' is computed")
    made: np.ndarray = stored * spread(_bias_scale(edit, reader, slot), stored, 0)
    return made


def _bias_scale(edit: Editor, reader: Any, slot: int) -> np.ndarray:
    first, second = (edit.operand(reader, place) for place in BIASES[reader.op_type, slot])
    if first is None or second is None:
        raise Unsupported(
            f"the scales of node '{edit.name(reader)}' are computed, so the grid of its bias is not known"
        )
    made: np.ndarray = first.astype(np.float64) * second.reshape(-1)
    return made


class Grid(NamedTuple):
    """Scales and zero points (float64) of a constant, their axis, and where they are stored."""

    scales: np.ndarray
    zeros: np.ndarray
    axis: int
    scale_place: Place
    zero_place: Place


def _grid(edit: Editor, reader: Any, slot: int) -> Grid | None:
    """The grid on which a reader takes the constant at `slot`; None where it takes plain numbers."""
    places: tuple[Place, Place] | None = None
    if (reader.op_type, slot) in GRIDS:
        first, second = GRIDS[reader.op_type, slot]
        places = (reader, first), (reader, second)
    elif reader.op_type in INTEGER and slot == 1:
        product = integer_result(edit, reader)
        scale = None if product is None else _weight_scale(edit, product)
        if scale is None:
            raise Unsupported(f"the scale of what node '{edit.name(reader)}' reads is not found behind it")
        places = scale, (reader, 3)
    if places is None:
        return None
    scales, zeros = (edit.operand(*place) for place in places)
    if scales is None or edit.attribute(reader, "block_size", 0):
        raise Unsupported(
            f"the scales of node '{edit.name(reader)}' are computed or in blocks, so its grid is not known"
        )
    if zeros is None and places[1][1] < len(places[1][0].input) and places[1][0].input[places[1][1]]:
        raise Unsupported(f"the zero point of node '{edit.name(reader)}' is computed, so its grid is not known")
    axis = (
        int(edit.attribute(reader, "axis", 1)) if reader.op_type == "DequantizeLinear" else AXES.get(reader.op_type, -1)
    )
    rank = max(edit.rank(reader.input[slot]), 1)
    axis = axis if -rank <= axis < rank else 0
    kept = np.zeros(1) if zeros is None else zeros.astype(np.float64)
    return Grid(scales.astype(np.float64), kept, axis, *places)


def integer_result(edit: Editor, node: Any) -> Any | None:
    """The multiplication that makes the result of an operator on whole numbers real; None where there is none."""
    after = edit.readers(node.output[0])
    if len(after) != 1 or after[0].op_type != "Cast":
        return None
    after = edit.readers(after[0].output[0])
    return after[0] if len(after) == 1 and after[0].op_type == "Mul" else None


def _weight_scale(edit: Editor, product: Any) -> Place | None:
    """Where the constant scale stands in a product of a result and its scales."""
    for slot, name in enumerate(product.input):
        if name in edit.constants:
            return product, slot
        before = edit.producer(name)
        if before is not None and before.op_type == "Mul":
            held = [place for place, inner in enumerate(before.input) if inner in edit.constants]
            if held:
                return before, held[0]
    return None


def spread(given: Any, array: np.ndarray, axis: int) -> np.ndarray:
    """Scales or zero points in a shape that fits along `axis` of an array."""
    values: np.ndarray = np.asarray(given)
    if values.size == 1 or array.ndim == 0:
        return values.reshape(-1)[:1].reshape(())
    shape = [1] * array.ndim
    shape[axis] = values.size
    return values.reshape(shape)


def _rounded(array: np.ndarray, scale: Any, zero: Any, kind: int, axis: int) -> np.ndarray:
    scale, zero = spread(scale, array, axis), spread(zero, array, axis)
    safe = np.where(scale == 0, 1.0, scale)
    made: np.ndarray = np.clip(np.rint(array.astype(np.float64) / safe) + zero, *LIMITS[kind])
    return made


def _regrid(edit: Editor, reader: Any, old: Grid, array: np.ndarray, kind: int) -> Any:
    """Make a grid of the same fineness that suits the new values, and give it to the reader."""
    least, most = LIMITS[kind]
    several = old.scales.size > 1
    others = tuple(place for place in range(array.ndim) if place != old.axis % array.ndim) if several else None
    low = np.minimum(array.min(axis=others), 0.0).reshape(-1)
    high = np.maximum(array.max(axis=others), 0.0).reshape(-1)
    if least < 0 and not old.zeros.any():
        scale, zero = np.maximum(-low, high) / most, np.zeros_like(low)
    else:
        scale = (high - low) / (most - least)
        zero = np.clip(np.rint(least - low / np.where(scale == 0, 1.0, scale)), least, most)
    stored = edit.type(_named(old.scale_place))
    # A grid of zeros alone may have any step; and the step counts as it is stored.
    scale = np.where(scale == 0, old.scales.mean(), scale)
    scale = _as_stored(scale, stored)
    _move_bias(edit, reader, old, scale)
    for place, values, what in ((old.scale_place, scale, stored), (old.zero_place, zero, kind)):
        before = edit.operand(*place)
        if before is not None:
            put(edit, *place, tensor(values.reshape(before.shape if before.size == values.size else -1), what))
        elif values.any() and place is old.zero_place:
            put(edit, *place, tensor(values if several else values.reshape(()), what))
    return tensor(_rounded(array, scale, zero, kind, old.axis), kind)


def _as_stored(values: np.ndarray, kind: int) -> np.ndarray:
    """Values as they are after they were stored in that type."""
    from onnx import helper

    made: np.ndarray = values.astype(helper.tensor_dtype_to_np_dtype(kind)).astype(np.float64)
    return made


def _named(place: Place) -> str:
    return str(place[0].input[place[1]])


def _move_bias(edit: Editor, reader: Any, old: Grid, scale: np.ndarray) -> None:
    """Put the int32 bias of the same layer, whose step is that of input times weights, onto the new grid.

    Runtimes that fuse such a layer take that product for granted, whatever step the bias itself names.
    """
    for (operator, place), scales in BIASES.items():
        held = edit.operand(reader, place) if operator == reader.op_type and old.scale_place[1] in scales else None
        if held is not None:
            before = old.scales.reshape(-1) if old.scales.size == scale.size else old.scales.mean()
            ratio = np.broadcast_to(before / scale, (held.size,))
            put(edit, reader, place, tensor(np.rint(held * ratio.reshape(held.shape)), _INT32))
    layers = edit.readers(reader.output[0]) if reader.op_type == "DequantizeLinear" else []
    for layer in layers:
        biased = edit.producer(layer.input[2]) if len(layer.input) > 2 and layer.input[2] else None
        if biased is not None and biased.op_type == "DequantizeLinear" and biased is not reader:
            _move_dequantised(edit, biased, old.scales.reshape(-1), scale.reshape(-1))


def _move_dequantised(edit: Editor, biased: Any, old: np.ndarray, new: np.ndarray) -> None:
    values, step = edit.operand(biased, 0), edit.operand(biased, 1)
    if values is None or step is None or edit.type(biased.input[0]) != _INT32 or old.size != new.size:
        return
    moved = step.astype(np.float64).reshape(-1) * (new / old)
    if moved.size not in (1, values.size):
        return
    kind = edit.type(biased.input[1])
    moved = _as_stored(moved, kind)
    held = values * spread(step.astype(np.float64), values, 0)
    put(edit, biased, 0, tensor(_rounded(held, moved, 0, _INT32, 0), _INT32))
    put(edit, biased, 1, tensor(moved.reshape(step.shape if moved.size == step.size else -1), kind))


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
