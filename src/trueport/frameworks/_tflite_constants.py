"""Constants of TFLite operators: real values into what the file stores, on the old grid or on one that suits them. Runs in a worker."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._tflite_editor import Editor, Node, text
from trueport.frameworks._tflite_model import read_grid

BIAS = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3, "CONV_3D": 2}
"""Operator -> slot of its bias."""
DATA = {"TRANSPOSE_CONV": 2}
"""Operator with a bias -> slot of its data, where that is not the first."""
WEIGHTS = 1
CHANNELS = {"DEPTHWISE_CONV_2D": 3, "CONV_3D": 4}
"""Operator -> axis of its weights that counts its output channels, where that is not the first."""
_LARGEST = {"int4": 7, "int8": 127, "int16": 32767}
"""Steps on either side of zero of a symmetric grid, as TFLite's kernels take it."""


def set_constant(edit: Editor, node: Node, slot: int, array: np.ndarray, grid: str) -> None:
    """Let a node alone read real values at `slot`; `grid` is "keep" or "new". Raises Unsupported."""
    found = edit.stored(node, slot)
    if found is None:
        raise Unsupported("the operand is computed, or a state, and no stored constant")
    if not np.all(np.isfinite(array)) and read_grid(found[0], edit.dtype(found[0]), constant=True) is not None:
        raise Unsupported("values that are not finite have no place on a grid")
    _check_bias(edit, node, slot, array)
    if grid == "new":
        _on_new_grid(edit, node, slot, array)
    else:
        edit.set_operand(node, slot, array)
    if node.code == "RESHAPE" and slot == 1 and getattr(node.item.builtinOptions, "newShape", None) is not None:
        node.item.builtinOptions.newShape = [int(size) for size in np.ravel(array)]


def _check_bias(edit: Editor, node: Node, slot: int, array: np.ndarray) -> None:
    """LiteRT trusts the size of a bias."""
    if BIAS.get(node.code) != slot:
        return
    weights = edit.tensor(node, WEIGHTS)
    channels = edit.shape(weights)[CHANNELS.get(node.code, 0)] if weights is not None else array.size
    if array.size != channels:
        raise Unsupported(f"the bias has {array.size} values for {channels} channels")


def _on_new_grid(edit: Editor, node: Node, slot: int, array: np.ndarray) -> None:
    found = edit.stored(node, slot)
    assert found is not None
    tensor, _ = found
    kind = edit.dtype(tensor)
    old = read_grid(tensor, kind, constant=True)
    if old is None and kind == "float16" and not np.array_equal(array.astype(np.float16).astype(array.dtype), array):
        wide = edit.constant(node.graph, array.astype(np.float32), text(tensor.name))
        edit.rewire(node, slot, wide)
        return
    if old is None:
        edit.set_operand(node, slot, array)
        return
    if BIAS.get(node.code) == slot and kind in ("int32", "int64"):
        edit.set_operand(node, slot, array, grid=bias_grid(edit, node, tensor))
        return
    edit.set_operand(node, slot, array, grid=suited(tensor, kind, array))
    settle_bias(edit, node)


def suited(tensor: Any, dtype: str, array: np.ndarray) -> Any:
    """The quantisation (as the schema has it) that suits real values best, of the same form as the tensor's own."""
    old = read_grid(tensor, dtype, constant=True)
    assert old is not None
    values = np.asarray(array, np.float64)
    if old.scale.size > 1:
        values = np.moveaxis(values, old.axis, 0).reshape(values.shape[old.axis], -1)
    else:
        values = values.reshape(1, -1)
    if dtype in _LARGEST and not np.any(old.zero_point):
        scale = np.max(np.abs(values), axis=1, initial=0) / _LARGEST[dtype]
        zero = np.zeros(len(scale), np.int64)
    else:
        limits = {"uint4": (0, 15), "int4": (-8, 7)}.get(dtype) or (np.iinfo(dtype).min, np.iinfo(dtype).max)
        low, high = np.min(values, axis=1, initial=0), np.max(values, axis=1, initial=0)
        scale = (high - low) / (limits[1] - limits[0])
        zero = np.rint(limits[0] - low / np.where(scale > 0, scale, 1)).astype(np.int64)
    return grid_like(tensor, np.where(scale > 0, scale, 1.0), zero)


def grid_like(tensor: Any, scale: Any, zero: Any) -> Any:
    """A tensor's quantisation with other numbers; what it says of the range goes."""
    made = copy.copy(tensor.quantization)
    made.scale, made.zeroPoint = np.asarray(scale, np.float32).ravel(), np.asarray(zero, np.int64).ravel()
    made.min = made.max = None
    return made


def bias_grid(edit: Editor, node: Node, pattern: Any) -> Any:
    """The quantisation that a node's bias has to have: scale of its data times scale of its weights."""
    data, weights = edit.tensor(node, DATA.get(node.code, 0)), edit.tensor(node, WEIGHTS)
    left = None if data is None else read_grid(data, edit.dtype(data), constant=False)
    right = None if weights is None else read_grid(weights, edit.dtype(weights), constant=True)
    if left is None or right is None:
        raise Unsupported("an int32 bias needs data and weights that are quantised")
    made = grid_like(pattern, np.float64(left.scale[0]) * right.scale.astype(np.float64), np.zeros(right.scale.size))
    made.quantizedDimension = 0
    return made


def settle_bias(edit: Editor, node: Node) -> None:
    """Put a node's int32 bias on the grid that its data and weights ask for; its real values stay."""
    slot = BIAS.get(node.code)
    found = None if slot is None else edit.stored(node, slot)
    if slot is None or found is None or edit.dtype(found[0]) not in ("int32", "int64"):
        return
    old = read_grid(found[0], edit.dtype(found[0]), constant=True)
    wanted = bias_grid(edit, node, found[0])
    if old is None or np.array_equal(old.scale, wanted.scale):
        return
    real = edit.array(node, slot)
    if real is not None:
        edit.set_operand(node, slot, real, grid=wanted)


def add_bias(edit: Editor, node: Node, array: np.ndarray) -> None:
    """Give a node the bias that it does not have. Raises Unsupported."""
    slot = BIAS.get(node.code)
    if slot is None:
        raise Unsupported(f"{node.code} takes no bias")
    if edit.tensor(node, slot) is not None:
        raise Unsupported("the operator has a bias; it can be set")
    _check_bias(edit, node, slot, array)
    data = edit.tensor(node, DATA.get(node.code, 0))
    values = np.asarray(array, np.float32).ravel()
    if data is not None and edit.quantised(data):
        wide = "int64" if edit.dtype(data) == "int16" else "int32"
        index = edit.constant(node.graph, np.zeros(values.shape, wide), "bias")
        tensor = node.graph.tensors[index]
        tensor.quantization = edit.schema.QuantizationParametersT()
        tensor.quantization = bias_grid(edit, node, tensor)
        tensor.buffer = edit.buffer(edit.steps(tensor, values))
    else:
        index = edit.constant(node.graph, values, "bias")
    inputs = [int(other) for other in node.item.inputs]
    inputs += [-1] * (slot + 1 - len(inputs))
    inputs[slot] = index
    node.item.inputs = inputs
