"""What the faults of TFLite files share: an editor with a random generator, what a fault is, and how one is told. Runs in a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks import _tflite_editor
from trueport.frameworks._base import Unsupported
from trueport.frameworks._tflite_editor import Node as Node

SkipPlace = Unsupported
"""This place cannot take this fault; the message says why. What the editor refuses is one reason of many."""


class Fault(NamedTuple):
    """One kind of fault: its row in the taxonomy, its cause (`also`: causes that say the same thing), where, and how.

    `change` edits the model at one of the `places` and returns {"nodes", "what", "source_value", "target_value"}.
    """

    row: str
    cause: str
    places: Callable[[Editor], Sequence[Any]]
    change: Callable[[Editor, Any], dict[str, Any]]
    also: tuple[str, ...] = ()


class Editor(_tflite_editor.Editor):
    """An editor with a random generator; what it changes stands apart from what was there."""

    def __init__(self, path: str, seed: int) -> None:
        super().__init__(path)
        self.rng = np.random.default_rng(seed)

    def set_operand(self, node: Node, slot: int, array: np.ndarray, **how: Any) -> None:
        """Let this operator alone read real values at `slot`; a constant behind a DEQUANTIZE is taken only unshared."""
        found = self.stored(node, slot)
        if found is None or found[1] is None:
            super().set_operand(node, slot, array, apart=True, **how)
            return
        between = found[1].item
        alone = [self.readers(node.graph, int(index)) for index in (between.inputs[0], between.outputs[0])]
        if any(len(readers) > 1 for readers in alone):
            raise SkipPlace("the constant is shared")
        super().set_operand(node, slot, array, **how)

    def remove(self, node: Node, slot: int) -> None:
        """Take an operator of one output out; whoever read it reads its operand `slot`, of the same shape, instead."""
        old, new = self.tensor(node, slot), self.result(node)
        if old is None or self.shape(old) != self.shape(new) or old.type != new.type:
            raise SkipPlace("its operand has another shape or type")
        if self.is_output(node):
            writer = self.writer(node.graph, int(node.item.inputs[slot]))
            if writer is None or self.is_output(writer) or self.quantised(new):
                raise SkipPlace("the operator computes an output, and nothing before it can")
        self.bypass(node, slot)


def told(edit: Editor, nodes: Sequence[Node], what: str, source: Any, target: Any) -> dict[str, Any]:
    """What a change did, the two values side by side. Called after the change: operators are named by their place.

    what: "{}" in it stands for the first operator's name, without that it is a part of this operator.
    """
    names = list(dict.fromkeys(edit.name(node) for node in nodes))
    said = what.format(names[0]) if "{}" in what else f"{what} of {names[0]}"
    return {"nodes": names, "what": said, "source_value": source, "target_value": target}


def shown(array: np.ndarray, start: int = 0) -> str:
    """A constant in a few words, with three of its elements from `start` on."""
    size = "x".join(str(length) for length in array.shape) or "scalar"
    if array.size <= 4:
        return f"{size}: {np.round(array.astype(float), 5).reshape(-1).tolist()}"
    few = ", ".join(f"{number:.4g}" for number in array.reshape(-1)[start : start + 3].tolist())
    spread = float(np.sqrt(np.mean(np.square(array.astype(np.float64)))))
    return f"{size}, rms {spread:.5g}, elements from {start} on: {few}"


def at(*codes: str, loops: bool = False) -> Callable[[Editor], list[Node]]:
    """Every operator of these kinds that reads something computed."""
    return lambda edit: [node for node in edit.nodes(*codes, loops=loops) if edit.computed(node)]


def carrying(*codes: str) -> Callable[[Editor], list[Node]]:
    """Those that compute real numbers, not shapes and positions."""

    def find(edit: Editor) -> list[Node]:
        found = [(node, edit.result(node)) for node in at(*codes)(edit)]
        return [node for node, out in found if edit.quantised(out) or edit.dtype(out).startswith("float")]

    return find
