"""Operators of the source that only move elements, as the target has them; axes are numbered as the target's values lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from trueport.diagnosis.attributes import listed, typed
from trueport.diagnosis.operators import kind
from trueport.graph import Node
from trueport.repairs.rules._exact import Rule, Written, first
from trueport.repairs.rules._writer import Untranslatable, Writer, identity


def _pad(writer: Writer, node: Node) -> Written:
    data, given = first(writer, node), typed(writer.source, node)
    pads, rank = listed(given.get("pads")), len(data.shape)
    if data.order is None or pads is None or len(pads) != 2 * rank:
        raise Untranslatable("the widths of the source's Pad are not known")
    own = [pads[axis] for axis in data.order] + [pads[rank + axis] for axis in data.order]
    attributes: dict[str, Any] = {"pads": own, "mode": str(given.get("mode", "constant"))}
    if attributes["mode"] == "constant" and given.get("value"):
        attributes["value"] = float(given["value"])
    return Written(writer.write("Pad", [data.name], **attributes), data.order)


def _concat(writer: Writer, node: Node) -> Written:
    parts = [writer.value(name) for name in node.inputs if name in writer.source.dynamic]
    constants = [writer.source.array(name) for name in node.inputs if name and name not in writer.source.dynamic]
    if not parts or any(array is None or array.ndim for array in constants):  # a scalar is the axis
        raise Untranslatable("the source joins constants")
    order = parts[0].order if parts[0].order is not None else identity(len(parts[0].shape))
    axis = typed(writer.source, node).get("axis")
    if not isinstance(axis, int):
        raise Untranslatable("the axis of the source's Concat is not known")
    return Written(
        writer.write("Concat", [writer.arranged(part, order) for part in parts], axis=order.index(axis % len(order))),
        order,
    )


def _slice(writer: Writer, node: Node) -> Written:
    data, window = first(writer, node), typed(writer.source, node).get("window")
    after = writer.source.shape(node.outputs[0])
    if data.order is None or window is None or after is None or len(after) != len(data.shape):
        raise Untranslatable("the window of the source's Slice is not known")
    axes = sorted(window)
    spans = [[int(window[axis][place]) for axis in axes] for place in range(3)]
    own = [data.order.index(int(axis)) for axis in axes]
    inputs = [writer.array(item, np.int64) for item in (spans[0], spans[1], own, spans[2])]
    return Written(writer.write("Slice", [data.name, *inputs]), data.order)


def _flip(writer: Writer, node: Node) -> Written:
    """The elements of some axes in reversed order: every format has a Gather, few have a word of their own."""
    data = first(writer, node)
    named = (listed(node.attributes.get(name)) for name in ("axes", "axis", "dims"))
    axes = next((found for found in named if found), None)
    if data.order is None or axes is None:
        raise Untranslatable(f"the axes of the source's {kind(node)} are not known")
    name = data.name
    for axis in sorted({axis % len(data.shape) for axis in axes}):
        places = writer.array(np.arange(data.shape[axis])[::-1], np.int64)
        name = writer.write("Gather", [name, places], axis=data.order.index(axis))
    return Written(name, data.order)


def _transpose(writer: Writer, node: Node) -> Written:
    """Nothing is written: the axes of the result are others."""
    data = first(writer, node)
    perm = listed(node.attributes.get("perm", node.attributes.get("dims")))
    rank = len(data.shape)
    if perm is None and writer.source.format == "onnx":
        perm = list(range(rank))[::-1]
    if perm is not None and len(perm) == rank - 1:  # Keras' Permute counts without the batch, from 1
        perm = [0, *perm]
    if data.order is None or perm is None or sorted(perm) != list(range(rank)):
        raise Untranslatable("the order of the source's Transpose is not known")
    return Written(data.name, tuple(perm.index(axis) for axis in data.order))


def _reshape(writer: Writer, node: Node) -> Written:
    data, after = first(writer, node), writer.source.shape(node.outputs[0])
    if after is None or math.prod(after) != math.prod(data.shape):
        raise Untranslatable("the shape of the source's Reshape is not known")
    if after == data.shape:
        return Written(data.name, data.order, data.at)
    if data.order is None and data.at is not None:
        return Written(data.name, None, data.at)
    name = writer.arranged(data, identity(len(data.shape)))
    wanted = [-1 if axis == 0 and data.shape and after[0] == data.shape[0] else size for axis, size in enumerate(after)]
    return Written(writer.write("Reshape", [name, writer.array(wanted, np.int64)]), identity(len(after)))


RULES: Mapping[str, Rule] = {
    "Concat": _concat,
    "Flip": _flip,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _reshape,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
"""Kind of an operator of the source -> how it is written."""
