"""What the writers of ONNX edits share: the file under change, the arrays, and what is known of constants' readers."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.frameworks._base import Arrays, Unsupported
from trueport.frameworks._onnx_edit import Editor

PASSING = ("Identity", "Cast", "Transpose", "DequantizeLinear", "Reshape", "Squeeze", "Unsqueeze")
"""Operators through which a node may read a constant: the constant behind them can be named."""


class Job:
    """One file under change: the editor, the arrays that edits name, and notes for the user."""

    def __init__(self, path: str, arrays: Arrays) -> None:
        self.edit = Editor(path)
        self.arrays = arrays
        self.notes: list[str] = []
        self._copies: dict[tuple[str, str], str] = {}

    def array(self, key: str) -> np.ndarray:
        """The array of that key. Raises Unsupported when none was handed over."""
        if key not in self.arrays:
            raise Unsupported(f"the edits name an array '{key}' that was not given")
        return np.asarray(self.arrays[key])

    def current(self, node: str, parameter: str) -> str:
        """The name under which a node reads a constant now: an edit before may have given it a copy of its own."""
        return self._copies.get((node, parameter), parameter)

    def copied(self, node: str, parameter: str, name: str) -> None:
        """Note that a node reads `name` where the file had `parameter`."""
        if parameter != name:
            self._copies[node, parameter] = name


def path_to(edit: Editor, node: Any, constant: str) -> list[Any] | None:
    """The nodes from the one that reads the constant to `node` itself; None when it does not read it."""
    sparse = {item.values.name for item in edit.graph.sparse_initializer}
    if constant not in edit.constants and constant not in sparse:
        return None
    if constant in edit.reads(node):
        return [node]
    for name in node.input:
        before = edit.producer(name) if name else None
        if before is not None and before.op_type in PASSING:
            found = path_to(edit, before, constant)
            if found is not None:
                return [*found, node]
    return None


def is_constant(edit: Editor, value: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a value is a constant, or made of constants alone."""
    if value in edit.constants or any(item.values.name == value for item in edit.graph.sparse_initializer):
        return True
    node = edit.producer(value)
    if node is None or value in seen or node.op_type.startswith("Random"):
        return False
    return bool(edit.reads(node)) and all(is_constant(edit, name, seen | {value}) for name in edit.reads(node))
