"""Spoils a TFLite file in the ways of the study. Runs in a worker of the LiteRT toolchain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trueport.testing.planting._tflite_edit import Editor, Node

WEIGHED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
LAST_STAGE = "conv5_"
"""How keras.applications begins the names of the layers of ResNet's last stage."""


def spoil(path: str, quantised: str, out: str, steps: list[str]) -> dict[str, Any]:
    """Write a copy of `path` with the changes of SPOILERS; `quantised` is the same model with int8 weights.

    Returns {step: number of places changed}.
    """
    edit, other = Editor(path, 0), Editor(quantised, 0)
    done = {step: SPOILERS[step](edit, other) for step in steps}
    assert all(done.values()), done
    edit.save(out)
    return done


def silently_dequantised(edit: Editor, quantised: Editor, only: str = "") -> int:
    """Weights become those that the int8 grid can hold, in float32. Biases stay: the optimisation leaves them."""
    rounded = {weight_name(quantised, node): node for node in quantised.nodes(*WEIGHED)}
    changed = 0
    for node in edit.nodes(*WEIGHED):
        twin = rounded.get(weight_name(edit, node))
        if only not in weight_name(edit, node) or twin is None or edit.floats(node, 1) is None:
            continue
        values = quantised.array(twin, 1)
        if quantised.dtype(quantised.tensor(twin, 1)) == "int8" and values is not None:
            overwrite(edit, node, values.astype(np.float32))
            changed += 1
    return changed


def overwrite(edit: Editor, node: Node, values: np.ndarray) -> None:
    """Put other values in the place of an operator's constant; the old ones are in the file no more."""
    stored = edit.root.buffers[int(edit.tensor(node, 1).buffer)]
    stored.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)


def weight_name(edit: Editor, node: Node) -> str:
    """The name of an operator's weights, the same in both files of one converter."""
    name = edit.tensor(node, 1).name
    return name.decode() if isinstance(name, bytes) else str(name)


def pads(edit: Editor, quantised: Editor) -> int:
    """The first PAD: one row and one column less in front, one more behind."""
    node = edit.nodes("PAD")[0]
    values = np.array(edit.array(node, 1))
    values[1:3] += [[-1, 1], [-1, 1]]
    overwrite(edit, node, values)
    return 1


def activation(edit: Editor, quantised: Editor) -> int:
    """A convolution in the middle of the network loses the ReLU that is fused into it."""
    fused = [node for node in edit.nodes("CONV_2D") if node.item.builtinOptions.fusedActivationFunction == 1]
    fused[len(fused) // 2].item.builtinOptions.fusedActivationFunction = 0
    return 1


SPOILERS: dict[str, Callable[[Editor, Editor], int]] = {
    "dequantised": silently_dequantised,
    "dequantised-stage": lambda edit, other: silently_dequantised(edit, other, LAST_STAGE),
    "pads": pads,
    "activation": activation,
}
