"""Writes operators of ONNX's vocabulary as OpenVINO's, in the layout of the file. Runs in a worker.

`Emitter.emit` looks an operator up in `RULES`, which `_openvino_rules` and `_openvino_moves` fill. Operands are output ports of layers, or arrays, which become constants of
the type that the data has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, Union

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._openvino_file import array_of, dtype_of

Operand = Union[Any, np.ndarray]
"""An output port, or a constant that is not in the graph yet."""
Attributes = Mapping[str, Any]
Rule = Callable[["Emitter", list[Any], Attributes], Any]
RULES: dict[str, Callable[[Emitter, list[Any], Attributes], Any]] = {}
"""ONNX operator -> how it is written: from emitter, operands and attributes to its result, or a list of them."""


class Emitter:
    """Layers under construction. `name`: gives each a friendly name that the model does not have yet."""

    def __init__(self, name: Callable[[], str]) -> None:
        import openvino
        from openvino import opset13

        self.ov, self.ops, self.name = openvino, opset13, name

    # -- operands

    def port(self, operand: Operand, like: Any = None) -> Any:
        """The output port of an operand; an array of floats gets the element type of the port `like`."""
        if not isinstance(operand, np.ndarray):
            return operand
        array = operand
        if array.dtype.kind == "f":
            wanted = dtype_of(like) if like is not None else "float32"
            array = array.astype(wanted if wanted.startswith("float") else "float32")
        node = self.ov.op.Constant(np.ascontiguousarray(array).reshape(array.shape), shared_memory=False)
        node.set_friendly_name(self.name())
        return node.output(0)

    def ints(self, values: Any) -> Any:
        """A constant of int64."""
        return self.port(np.asarray(values, np.int64))

    def made(self, node: Any) -> Any:
        """The first result of a new layer, which gets a name."""
        node.set_friendly_name(self.name())
        return node.output(0)

    def array(self, operand: Operand) -> np.ndarray | None:
        """The values of an operand that is constant, else None."""
        if isinstance(operand, np.ndarray):
            return operand
        node = operand.get_node()
        while node.get_type_name() == "Convert":
            node = node.input_value(0).get_node()
        return array_of(node) if node.get_type_name() == "Constant" else None

    def rank(self, operand: Operand) -> int:
        """Number of axes. Raises Unsupported where the file leaves it open."""
        if isinstance(operand, np.ndarray):
            return operand.ndim
        rank = operand.get_partial_shape().rank
        if rank.is_dynamic:
            raise Unsupported("the number of axes of the data is open in this file")
        return int(rank.get_length())

    def size(self, operand: Operand, axis: int) -> int:
        """A size that has to be fixed. Raises Unsupported."""
        if isinstance(operand, np.ndarray):
            return int(operand.shape[axis])
        found = operand.get_partial_shape()[axis % self.rank(operand)]
        if found.is_dynamic:
            raise Unsupported(f"axis {axis} of the data is open in this file, and its size is needed")
        return int(found.get_length())

    # -- operators

    def op(self, name: str, *operands: Operand, **more: Any) -> Any:
        """Add one of OpenVINO's operators and return its first result."""
        data = next((item for item in operands if not isinstance(item, np.ndarray)), None)
        return self.made(getattr(self.ops, name)(*[self.port(item, data) for item in operands], **more))

    def emit(self, operator: str, operands: Sequence[Operand], attributes: Attributes) -> list[Any]:
        """Add an ONNX operator and return its results. Raises Unsupported, naming what OpenVINO has not."""
        rule = RULES.get(operator)
        if rule is None:
            raise Unsupported(f"there is no way to write the operator {operator} into an OpenVINO model")
        if not operands:
            raise Unsupported(f"the operator {operator} reads nothing")
        given = {key: value for key, value in attributes.items() if value is not None}
        try:
            made = rule(self, list(operands), given)
        except RuntimeError as error:
            raise Unsupported(f"OpenVINO refuses {operator} with these operands: {_first(error)}") from error
        return [self.port(item) for item in (made if isinstance(made, list) else [made])]


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


# -- parts that several rules use -----------------------------------------------------------------------------------


def whole(e: Emitter, operands: list[Any], given: Attributes, slot: int, name: str) -> list[int] | None:
    """Integers that are an attribute, or a constant operand at `slot`. None when neither."""
    if name in given:
        return [int(value) for value in np.ravel(given[name])]
    if slot < len(operands):
        found = e.array(operands[slot])
        if found is None:
            raise Unsupported(f"'{name}' has to be constant")
        return [int(value) for value in found.ravel()]
    return None


def number(e: Emitter, operands: list[Any], given: Attributes, slot: int, name: str, default: float) -> float:
    """A number that is an attribute, or a constant operand at `slot`."""
    if name in given:
        return float(np.ravel(given[name])[0])
    if slot < len(operands):
        found = e.array(operands[slot])
        if found is None or found.size != 1:
            raise Unsupported(f"'{name}' has to be one constant number")
        return float(found.ravel()[0])
    return default


def scalar(value: float) -> np.ndarray:
    """A constant number."""
    return np.array(value, np.float32)


def channelwise(e: Emitter, vector: Operand, rank: int) -> Operand:
    """A vector as [1, channels, 1, ...]."""
    array = e.array(vector)
    if array is None:
        return e.op("reshape", vector, np.array([1, -1, *[1] * (rank - 2)], np.int64), special_zero=False)
    return array.reshape(1, -1, *[1] * (rank - 2))
