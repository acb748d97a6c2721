"""Where a parameter lies in the file: a node may read a constant through operators that only hand it on, or a part of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from trueport.diagnosis.operators import kind
from trueport.diagnosis.region import Inside, Parameter

_ON = ("Identity", "Cast", "DequantizeLinear", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split")
"""Operators that give the values that they were given, up to type, shape and order, or some of them."""

_NARROW = ("float16", "bfloat16", "int8", "uint8", "int16", "int32")
"""Stored types of a constant whose real values lie on a coarser grid than float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The constant `parameter` that `node` reads. `stored` arranges an array as it lies there; `grid`: whether it keeps
    the type and the scales that it has there, or gets new ones; `narrow`: whether it lies on a grid at all."""

    node: str
    parameter: str
    stored: Callable[[np.ndarray], np.ndarray]
    grid: str = "keep"
    narrow: bool = False


def place_of(inside: Inside, item: Parameter) -> Place | None:
    """The constant behind a parameter, and how it must be arranged; None where it is computed in another way."""
    name, node = item.name, item.node.name
    while name not in inside.graph.constants:
        made = inside.graph.producer(name)
        if made is None:  # inside a loop or a branch, or a value without a producer
            return Place(node=node, parameter=name, stored=lambda array: array)
        behind = [one for one in made.inputs if one and one not in inside.dynamic]
        if not behind or kind(made) not in _ON:
            return None
        node, name = made.name, behind[0]
    constant = inside.array(name)
    narrow = str(inside.graph.constants[name].get("dtype", "")) in _NARROW
    if constant is None or node == item.node.name:
        return Place(node=node, parameter=name, stored=lambda array: array, narrow=narrow)
    place = _behind(node, name, np.asarray(constant), np.asarray(item.array))
    return None if place is None else replace(place, narrow=narrow)


def _behind(node: str, name: str, constant: np.ndarray, read: np.ndarray) -> Place | None:
    """How what a node reads came of a constant is told by the numbers: another order, or a part of it."""
    if constant.size == read.size:
        order = _order(constant, read)
        if order is None:
            return None
        back = tuple(int(axis) for axis in np.argsort(order))
        turned = tuple(constant.shape[axis] for axis in order)
        return Place(
            node=node,
            parameter=name,
            stored=lambda array: np.ascontiguousarray(np.transpose(np.reshape(array, turned), back)),
        )
    for order in itertools.permutations(range(constant.ndim)):
        where = _part(np.transpose(constant, order), read)
        if where is not None:
            return Place(node=node, parameter=name, stored=_into(constant, order, where, read.shape))
    return None


def _into(
    constant: np.ndarray, order: Sequence[int], where: tuple[slice, ...], shape: Sequence[int]
) -> Callable[[np.ndarray], np.ndarray]:
    """Put an array into the part of a constant that the node reads."""

    def stored(array: np.ndarray) -> np.ndarray:
        whole = np.array(np.transpose(constant, order), copy=True)
        whole[where] = np.reshape(np.reshape(array, shape), whole[where].shape)
        return np.ascontiguousarray(np.transpose(whole, np.argsort(order)))

    return stored


def _order(constant: np.ndarray, read: np.ndarray) -> tuple[int, ...] | None:
    """The order of axes in which a constant is what was read; the plain one where several fit."""
    if constant.ndim > 5:
        return tuple(range(constant.ndim)) if np.array_equal(constant.ravel(), read.ravel()) else None
    tight = [size for size in read.shape if size != 1]
    for order in itertools.permutations(range(constant.ndim)):
        turned = np.transpose(constant, order)
        shaped = [size for size in turned.shape if size != 1] == tight
        if (shaped or order == tuple(range(constant.ndim))) and np.array_equal(turned.ravel(), read.ravel()):
            return order
    return None


def _part(constant: np.ndarray, read: np.ndarray) -> tuple[slice, ...] | None:
    """The slice along one axis that was read; None where it is none, or not the only one."""
    shape = read.shape
    if constant.ndim != len(shape) or constant.ndim > 4:
        return None
    axes = [axis for axis in range(constant.ndim) if constant.shape[axis] != shape[axis]]
    if len(axes) != 1 or constant.shape[axes[0]] < shape[axes[0]]:
        return None
    axis, width = axes[0], shape[axes[0]]
    found = []
    for begin in range(constant.shape[axis] - width + 1):
        where = tuple(slice(begin, begin + width) if place == axis else slice(None) for place in range(constant.ndim))
        if np.array_equal(constant[where], read):
            found.append(where)
    return found[0] if len(found) == 1 else None
