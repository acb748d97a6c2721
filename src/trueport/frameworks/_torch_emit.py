"""Writes any ONNX operator that PyTorch can compute into an exported program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trueport.frameworks import _torch_emit_shapes, _torch_emit_values
from trueport.frameworks._base import Unsupported
from trueport.frameworks._torch_emit_values import Attributes, Call, Maker, Place

MAKERS: dict[str, Maker] = {**_torch_emit_values.MAKERS, **_torch_emit_shapes.MAKERS}


def emit(place: Place, operator: str, operands: Sequence[Any], attributes: Attributes) -> Call:
    """The call that computes an ONNX operator on these operands. Raises Unsupported for one that cannot be written."""
    if operator not in MAKERS:
        raise Unsupported(f"the operator {operator} cannot be written into an exported program")
    if not operands:
        raise Unsupported(f"the operator {operator} needs an operand")
    try:
        return MAKERS[operator](place, operands, attributes)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise Unsupported(f"{operator} cannot be written with these operands and attributes ({what})") from error
