"""Applies edits to a Core ML model, program or network: the table of kinds, and `apply`, which writes the changed copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

from trueport.frameworks import _coreml_edit_kinds as kinds
from trueport.frameworks import _coreml_edit_network as network
from trueport.frameworks import _coreml_read as reading
from trueport.frameworks._base import Arrays, EditDict, Unsupported
from trueport.frameworks._coreml_edit_kinds import Change
from trueport.frameworks._coreml_edit_types import settle

KINDS: dict[str, Callable[[Change, EditDict], None]] = {
    "set-parameter": kinds.set_parameter,
    "add-parameter": kinds.add_parameter,
    "set-attribute": kinds.set_attribute,
    "set-operator": kinds.set_operator,
    "remove-node": kinds.remove_node,
    "insert": kinds.insert,
    "reorder-inputs": kinds.reorder_inputs,
    "set-input": kinds.set_input,
    "set-dimensions": kinds.set_dimensions,
    "set-outputs": kinds.set_outputs,
    "set-precision": kinds.set_precision,
    "recompute": kinds.recompute,
}
"""Kind of edit -> the function that writes it."""
NETWORKS = ("neuralNetwork", "neuralNetworkClassifier", "neuralNetworkRegressor")
EDITS = tuple(KINDS)
EDIT_FILES = (
    "_coreml_program",
    "_mil_constexpr",
    "_coreml_read",
    "_coreml_view",
    "_coreml_messages",
    "_coreml_editor",
    "_coreml_emit",
    "_coreml_emit_shapes",
    "_coreml_edit_settings",
    "_coreml_edit_grids",
    "_coreml_edit_types",
    "_coreml_edit_kinds",
    "_coreml_edit_network",
    "_coreml_edit",
)


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str) -> dict[str, Any]:
    """Write a copy of the model with the edits applied, one after the other. Returns {"notes": [...]}.

    Raises Unsupported, with the reason, when an edit cannot be written at its place or coremltools finds the result wrong.
    """
    kind = reading.read_spec(path).WhichOneof("Type")
    if kind in NETWORKS:
        return network.apply(path, edits, arrays, out)
    if kind != "mlProgram":
        raise Unsupported(f"edits are written into ML programs and neural networks, and this is a {kind}")
    change = Change(path, arrays)
    for edit in edits:
        kind = edit.get("kind", "")
        if kind not in KINDS:
            raise Unsupported(f"'{kind}' is no edit that can be written into a Core ML model")
        try:
            KINDS[kind](change, edit)
        except KeyError as error:
            raise Unsupported(f"the edit '{kind}' lacks its entry {error}") from None
    editor = change.edit
    editor.prune()
    editor.order()
    if editor.changed():
        settle(editor)
        editor.order()
    editor.save(out)
    return {"notes": change.notes}
