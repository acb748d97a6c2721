"""New values for weights that an ML program stores compressed: put on the grid that is there, or stored plainly."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._coreml_editor import Editor


def packed(editor: Editor, stored: Any, array: np.ndarray, grid: str) -> str:
    """Return the name of a constant with these values, stored as the old one is (`grid` "keep") or plainly ("new").

    Raises Unsupported where the old grid cannot take them.
    """
    name = stored.outputs[0].name
    declared = editor.type(name)
    if grid == "new":
        return editor.constant(array, name, declared.dtype)
    if tuple(array.shape) != tuple(declared.shape or ()):
        raise Unsupported(f"'{name}' is compressed, and its shape cannot change")
    old = {argument: editor.argument(stored, argument) for argument in _arguments(stored)}
    if "scale" in old and ("quantized_data" in old or "data" in old):
        return _on_scales(editor, stored, np.asarray(array, np.float32), old)
    raise Unsupported(f"'{name}' is stored as {stored.type}; give it a grid of its own")


def _arguments(stored: Any) -> list[str]:
    return [name for name in {*stored.attributes, *stored.inputs} if name != "name"]


def _on_scales(editor: Editor, stored: Any, array: np.ndarray, old: dict[str, Any]) -> str:
    """Quantise on the scales and zero points that are there."""
    word = "quantized_data" if "quantized_data" in old else "data"
    data = np.asarray(old[word])
    scale, shift = np.asarray(old["scale"], np.float32), old.get("zero_point", old.get("offset"))
    zero = np.asarray(0.0 if shift is None else shift, np.float32)
    if word == "quantized_data":
        axis = int(np.asarray(old.get("axis", 0)).reshape(-1)[0]) if old.get("axis") is not None else 0
        form = [-1 if place == axis % array.ndim else 1 for place in range(array.ndim)]
        scale, zero = (item.reshape(form) if item.ndim else item for item in (scale, zero))
    else:
        scale, zero = (_spread(item, array.shape) for item in (scale, zero))
    if data.dtype.name not in ("int8", "uint8") or (data.size and data.shape != array.shape):
        raise Unsupported(f"'{stored.outputs[0].name}' is stored in less than a byte; give it a grid of its own")
    limits = np.iinfo(data.dtype)
    levels = np.clip(np.rint(array / np.where(scale == 0, 1, scale) + zero), limits.min, limits.max).astype(data.dtype)
    made = type(stored)()
    made.CopyFrom(stored)
    name = editor.fresh(stored.outputs[0].name)
    made.outputs[0].name = name
    value = editor._value(levels, data.dtype.name)
    if word in made.attributes:
        made.attributes[word].CopyFrom(value)
    else:
        made.inputs[word].arguments[0].Clear()
        made.inputs[word].arguments[0].value.CopyFrom(value)
    editor.operations.insert(0, made)
    editor.note(name, editor.type(stored.outputs[0].name))
    editor.program.constants[name] = editor.program.constants[stored.outputs[0].name]
    editor.unpacked[name] = np.asarray((levels.astype(np.float32) - zero) * scale, np.float32)
    return name


def _spread(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if blocks.ndim == 0:
        return blocks
    for axis, size in enumerate(shape):
        blocks = np.repeat(blocks, size // blocks.shape[axis], axis=axis)
    return blocks
