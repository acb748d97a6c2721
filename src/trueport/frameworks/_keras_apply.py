"""Writes edits into a Keras file and sees whether the result runs. In a worker.

`apply` is all that a patch needs, with the modules that it imports.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from trueport.frameworks import _keras_model as models
from trueport.frameworks import _keras_patch as layers
from trueport.frameworks import _keras_structure as structure
from trueport.frameworks._base import Arrays, EditDict, Unsupported
from trueport.frameworks._keras_edit import line
from trueport.frameworks._keras_patch import Patch

KINDS: dict[str, Callable[[Patch, EditDict], None]] = {
    "set-parameter": layers.set_parameter,
    "add-parameter": layers.add_parameter,
    "set-attribute": layers.set_attribute,
    "set-operator": layers.set_operator,
    "set-precision": layers.set_precision,
    "remove-node": structure.remove_node,
    "insert": structure.insert,
    "reorder-inputs": structure.reorder_inputs,
    "set-input": structure.set_input,
    "set-dimensions": structure.set_dimensions,
    "set-outputs": structure.set_outputs,
    "recompute": structure.recompute,
}


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool = False) -> list[str]:
    """Write a copy of the model at `out` with the edits applied, in order; returns what a user should know.

    Raises Unsupported when an edit cannot be written at its place, or when the edited model does not run.
    """
    patch = Patch(path, arrays, trust=trust)
    for number, edit in enumerate(edits):
        kind = edit.get("kind", "")
        if kind not in KINDS:
            raise Unsupported(f"edits of kind '{kind}' cannot be written into a Keras file")
        try:
            KINDS[kind](patch, edit)
        except KeyError as error:
            raise Unsupported(
                f"edit {number + 1} ({kind}) cannot be written: it or its layer has no {error}"
            ) from error
    patch.wiring.finish()
    patch.editor.save(out)
    try:
        check(out, trust=trust)
    except Exception as error:  # whatever Keras says of a model that was changed
        Path(out).unlink(missing_ok=True)
        raise Unsupported(f"the edited model does not run: {line(error)}") from error
    return list(dict.fromkeys(patch.editor.notes))


def check(path: str, *, trust: bool) -> None:
    """Load a model and call it once on zeros; unknown sizes are 1 for the batch and 32 for others."""
    import tensorflow as tf

    loaded = models.read(path, trust=trust)
    feeds = []
    for tensor in loaded.inputs.values():
        sizes = [int(size) if size is not None else 32 if i else 1 for i, size in enumerate(tensor.shape)]
        feeds.append(tf.zeros(sizes, models.dtype_name(tensor)))
    models.call(loaded, feeds)
