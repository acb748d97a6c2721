"""Open sizes of an exported JAX function: what the program computes with them, as expressions instead of operators.

JAX writes the work on sizes into the program, as integers that begin with the sizes of the inputs. Taken as operators
they would make every value depend on the inputs, and hide the function among them. Here they become attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

import numpy as np

from trueport.frameworks._base import SpecDict, Unsupported
from trueport.frameworks._jax_program import Op

Size = Union[int, str, tuple[Any, ...]]
"""A number, the name of a symbol, or (operation, Size, Size)."""

_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a // b,
    "remainder": lambda a, b: a % b,
    "maximum": max,
    "minimum": min,
}
_FIRST = {
    "dynamic_broadcast_in_dim": 1, "dynamic_reshape": 1, "dynamic_iota": 0, "real_dynamic_slice": 1,
    "dynamic_pad": 2, "dynamic_gather": 2,
}  # fmt: skip
"""Operator -> number of its first operand that is a list of sizes; all behind it are, too."""


def fold(ops: Sequence[Op], inputs: Sequence[SpecDict], constants: Mapping[str, np.ndarray]) -> tuple[Op, ...]:
    """The operators without those that only work on sizes; lists of sizes stand in attribute `sizes`."""
    shapes = {spec["name"]: spec["shape"] for spec in inputs}
    return tuple(_named(_fold(ops, {}, shapes, constants)))


_ARG = ["and", "compare", "compare", "compare", "compare", "or", "or", "select", "select"]
"""The operators with which JAX writes that the larger of two values wins, or a NaN, and of equal ones the earlier."""


def _named(ops: Sequence[Op]) -> list[Op]:
    """The same with reductions that are `argmax` or `argmin` named so: they give the value and where it stands."""
    makers = {name: op for op in ops for name in op.outputs}
    made = []
    for op in ops:
        axes = op.attributes.get("dimensions", [])
        if op.kind == "reduce" and len(op.outputs) == 2 and len(axes) == 1:
            counter = makers.get(op.inputs[1])
            inner = op.blocks[0].ops
            first = next((item.attributes["comparison_direction"] for item in inner if item.kind == "compare"), "")
            counts = counter is not None and counter.attributes.get("iota_dimension") == axes[0]
            if counts and sorted(item.kind for item in inner) == _ARG and first in ("GT", "LT"):
                kind = "argmax" if first == "GT" else "argmin"
                op = op._replace(kind=kind, inputs=op.inputs[:1], attributes={"axis": axes[0]}, blocks=())
        made.append(op)
    return made


def _fold(
    ops: Sequence[Op], known: dict[str, np.ndarray], shapes: Mapping[str, Any], constants: Mapping[str, np.ndarray]
) -> list[Op]:
    made: list[Op] = []
    shown: set[str] = set()

    for op in ops:
        if op.kind == "get_dimension_size" and op.inputs[0] in shapes:
            known[op.outputs[0]] = _one(shapes[op.inputs[0]][op.attributes["dimension"]])
            continue
        found = _work(op, known, constants)
        if found is not None:
            known[op.outputs[0]] = found
            continue
        first = _FIRST.get(op.kind)
        if first is not None and all(name in known or name in constants for name in op.inputs[first:]):
            arrays = [known[name] if name in known else constants[name] for name in op.inputs[first:]]
            lists = [[_size(item) for item in np.ravel(array)] for array in arrays]
            op = op._replace(inputs=op.inputs[:first], attributes={**op.attributes, "sizes": lists})
        blocks = tuple(
            block._replace(ops=tuple(_fold(block.ops, dict(known), shapes, constants))) for block in op.blocks
        )
        op = op._replace(blocks=blocks)
        for name in _read(op):
            if name in known and name not in shown:  # it is used as a number as well
                shown.add(name)
                attributes = {"size": [_size(item) for item in np.ravel(known[name])], "shape": list(known[name].shape)}
                made.append(Op(name, "size", (), (name,), attributes, (), ()))
        made.append(op)
    return made


def _read(op: Op) -> list[str]:
    names = list(op.inputs)
    for block in op.blocks:
        names += [*block.returns, *(name for inner in block.ops for name in _read(inner))]
    return names


def _one(size: Any) -> np.ndarray:
    made = np.empty((), dtype=object)
    made[()] = size
    return made


def _size(item: Any) -> Size:
    return int(item) if isinstance(item, (int, np.integer)) else item


def _work(op: Op, known: Mapping[str, np.ndarray], constants: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """What an operator makes of sizes, None when it is not work on sizes alone."""
    if not any(name in known for name in op.inputs) or not op.types or "int" not in op.types[0].dtype:
        return None
    given = [known.get(name, constants.get(name)) for name in op.inputs]
    arrays = [array for array in given if array is not None]
    if len(arrays) < len(given):
        return None
    first = arrays[0]
    target = tuple(size or 0 for size in op.types[0].shape)  # lists of sizes have a fixed length
    if op.kind in ("convert", "reshape"):
        return first.reshape(target) if op.kind == "reshape" else first
    if op.kind == "broadcast_in_dim" and first.size == 1:
        return np.broadcast_to(first.reshape((1,) * len(target)), target)
    if op.kind == "concatenate":
        return np.concatenate([array.astype(object) for array in arrays])
    if op.kind == "slice":
        at = op.attributes
        return first[tuple(slice(*cut) for cut in zip(at["start_indices"], at["limit_indices"], at["strides"]))]
    if op.kind in _ARITHMETIC and arrays[0].shape == arrays[1].shape:
        pairs = zip(np.ravel(arrays[0]), np.ravel(arrays[1]))
        made = np.empty(first.size, dtype=object)
        for place, (a, b) in enumerate(pairs):
            made[place] = _apply(op.kind, _size(a), _size(b))
        return made.reshape(first.shape)
    return None


def _apply(kind: str, first: Size, second: Size) -> Size:
    if isinstance(first, int) and isinstance(second, int):
        return int(_ARITHMETIC[kind](first, second))
    return (kind, first, second)


def value(size: Any, symbols: Mapping[str, Any]) -> Any:
    """What a size is for these symbols (numbers, or JAX's own symbols). Raises Unsupported for an unknown one."""
    if isinstance(size, (tuple, list)):
        kind, first, second = size
        return _ARITHMETIC[kind](value(first, symbols), value(second, symbols))
    if isinstance(size, str):
        if size not in symbols:
            raise Unsupported(f"the size '{size}' is not known from what was given")
        return symbols[size]
    return int(size)


def symbols_of(inputs: Sequence[SpecDict], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Symbol -> size, as the shapes of these inputs say."""
    found: dict[str, Any] = {}
    for spec in inputs:
        array = arrays.get(spec["name"])
        pairs = zip(spec["shape"] or (), () if array is None else array.shape)
        found.update({size: real for size, real in pairs if isinstance(size, str) and size.isidentifier()})
    return found


def solve(symbol: str, seen: Mapping[str, tuple[int, ...]], shapes: Mapping[int, Mapping[str, Any]]) -> int | None:
    """The size of the one symbol that gives values these shapes. `shapes`: the values' shapes at two sizes of it."""
    (low, at_low), (high, at_high) = sorted(shapes.items())
    for name, shape in seen.items():
        for real, one, two in zip(shape, at_low.get(name, ()), at_high.get(name, ())):
            slope = (two - one) // (high - low)
            if slope and (real - one) % slope == 0:
                return int(low + (real - one) // slope)
    return None
