"""Applies edits to an ONNX file: the table of kinds, and `apply`, which writes the changed copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable

from trueport.frameworks import _onnx_edit_interface as interface
from trueport.frameworks import _onnx_edit_nodes as nodes
from trueport.frameworks import _onnx_edit_parameters as parameters
from trueport.frameworks import _onnx_edit_precision as precision
from trueport.frameworks._base import Arrays, EditDict, Unsupported
from trueport.frameworks._onnx_edit_job import Job

KINDS: dict[str, Callable[[Job, EditDict], None]] = {
    "set-parameter": parameters.set_parameter,
    "add-parameter": parameters.add_parameter,
    "set-attribute": parameters.set_attribute,
    "set-operator": nodes.set_operator,
    "remove-node": nodes.remove_node,
    "insert": nodes.insert,
    "reorder-inputs": nodes.reorder_inputs,
    "set-input": nodes.set_input,
    "set-dimensions": interface.set_dimensions,
    "set-outputs": interface.set_outputs,
    "set-precision": precision.set_precision,
    "recompute": nodes.recompute,
}
"""Kind of edit -> the function that writes it."""


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str) -> list[str]:
    """Write a copy of the model at `out`, changed by the edits in their order. Returns notes.

    The same file and the same edits give the same bytes. Raises Unsupported when an edit cannot be written.
    """
    job = Job(path, arrays)
    for edit in edits:
        kind = edit.get("kind", "")
        if kind not in KINDS:
            raise Unsupported(f"'{kind}' is no edit that can be written into an ONNX file")
        try:
            KINDS[kind](job, edit)
        except KeyError as error:
            raise Unsupported(f"the edit '{kind}' lacks its entry {error}") from None
        job.edit.forget()
    job.edit.finish()
    job.edit.save(out)
    return job.notes
