"""Operators of the source that ONNX has no single word for, written out such that every value comes out right.

Those that converters write by a word that is nearly theirs: a division that rounds down, a shift to the right, a Softplus
that is straight from a threshold on, a mean that is divided by a number of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from trueport.diagnosis.attributes import typed
from trueport.diagnosis.operators import kind, number
from trueport.graph import Node
from trueport.repairs.rules._writer import Order, Placed, Untranslatable, Writer


class Written(NamedTuple):
    """Name of a result, and how it lies; see `Placed`."""

    name: str
    order: Order | None
    at: tuple[int, ...] | None = None


Rule = Callable[[Writer, Node], Written]

ONNX_BOOL = 9
"""ONNX's number for truth values; other formats take NumPy's name of a type."""

VISIBLE = 1e-8
"""Share of a value from which a bend of a function can be seen in float32."""


def rounds_down(writer: Writer, node: Node) -> bool:
    """Whether a division gives the largest whole number that is not above the quotient."""
    return node.native_op in ("FloorDiv", "FLOOR_DIV") or node.attributes.get("rounding_mode") == "floor"


def division(plain: Rule) -> Rule:
    """A division; where it rounds down, with what is left over taken off first (`Mod` has the divisor's sign)."""

    def rule(writer: Writer, node: Node) -> Written:
        return floor_division(writer, node) if rounds_down(writer, node) else plain(writer, node)

    return rule


def floor_division(writer: Writer, node: Node) -> Written:
    """The quotient, rounded down."""
    divisor = _second(writer, node)
    if divisor is None:
        raise Untranslatable(f"the divisor of the source's {kind(node)} is not known")
    return _floored(writer, first(writer, node), divisor)


def shift(writer: Writer, node: Node) -> Written:
    """A shift to the right: a division by a power of two that rounds down."""
    places = _second(writer, node)
    if places is None or (np.asarray(places) < 0).any() or (np.asarray(places) > 62).any():
        raise Untranslatable(f"the places of the source's {kind(node)} are not known")
    return _floored(writer, first(writer, node), 2 ** np.asarray(places, np.int64))


def softplus(writer: Writer, node: Node) -> Written:
    """Softplus(beta x) / beta, and x itself where beta x is above the threshold, if that can be seen."""
    data, given = first(writer, node), typed(writer.source, node)
    beta, threshold = float(given.get("beta", 1.0)), given.get("threshold")
    scaled = data.name if beta == 1.0 else writer.write("Mul", [data.name, writer.array(beta)])
    result = writer.write("Softplus", [scaled])
    if beta != 1.0:
        result = writer.write("Div", [result, writer.array(beta)])
    if threshold is not None and math.exp(-float(threshold)) > VISIBLE * max(1.0, float(threshold)):
        above = writer.write("Greater", [scaled, writer.array(float(threshold))])
        result = writer.write("Where", [above, data.name, result])
    return Written(result, data.order, data.at)


def cast(writer: Writer, node: Node) -> Written:
    """Nothing is written for another width; truth values are another kind of value, and only they choose."""
    data = first(writer, node)
    if str(typed(writer.source, node).get("to")) != "bool":
        return Written(data.name, data.order, data.at)
    to = ONNX_BOOL if writer.format == "onnx" else "bool"
    return Written(writer.write("Cast", [data.name], to=to), data.order, data.at)


def own_divisor(writer: Writer, node: Node, mean: str) -> str:
    """A mean over windows, with paddings counted, such that it is the sum divided by the source's own number."""
    given = typed(writer.source, node)
    divisor = given.get("divisor_override")
    if not isinstance(divisor, (int, float)):
        return mean
    if given.get("ceil_mode"):
        raise Untranslatable("the source's AveragePool divides windows that reach over the edge by a number of its own")
    return writer.write("Mul", [mean, writer.array(math.prod(given["kernel_shape"]) / divisor)])


def _floored(writer: Writer, data: Placed, divisor: Any) -> Written:
    values = writer.source.traced.values.get(_named(writer, data))
    dtype = values.dtype if values is not None else np.dtype(np.float32)
    constant = np.asarray(divisor)
    if constant.size != 1:
        raise Untranslatable("the source divides by several numbers")
    name = writer.array(constant.reshape(()), dtype)
    if dtype.kind == "f":
        return Written(writer.write("Floor", [writer.write("Div", [data.name, name])]), data.order, data.at)
    over = writer.write("Mod", [data.name, name])
    whole = writer.write("Sub", [data.name, over])
    return Written(writer.write("Div", [whole, name]), data.order, data.at)


def _named(writer: Writer, data: Placed) -> str:
    """The source's value of which this is the target's."""
    return next((name for name, placed in writer.places.items() if placed is data), "")


def first(writer: Writer, node: Node) -> Placed:
    """The first operand of an operator of the source, which has to be computed. Raises Untranslatable."""
    if not node.inputs or node.inputs[0] not in writer.source.dynamic:
        raise Untranslatable(f"the first operand of the source's {kind(node)} is not computed")
    return writer.value(node.inputs[0])


def _second(writer: Writer, node: Node) -> np.ndarray | None:
    """The second operand, where it does not depend on the model's inputs."""
    if len(node.inputs) > 1 and node.inputs[1]:
        return writer.source.array(node.inputs[1])
    scalar = number(node.attributes, "other")
    return None if scalar is None else np.asarray(scalar)


RULES: Mapping[str, Rule] = {
    "Cast": cast,
    "FLOOR_DIV": floor_division,
    "FloorDiv": floor_division,
    "Softplus": softplus,
    "__rshift__": shift,
    "bitwise_right_shift": shift,
    "floor_divide": floor_division,
}
"""Kind of an operator of the source -> how it is written."""
