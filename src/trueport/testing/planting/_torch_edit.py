"""The editor of exported programs as the fault planter uses it: with a random generator, and a table of faults. In a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks import _torch_editor
from trueport.frameworks._base import Unsupported

SkipPlace = Unsupported
"""This place cannot take this fault; the message says why. The editor raises the same."""


class Editor(_torch_editor.Editor):
    """One loaded program, its operators by name in ONNX vocabulary, and a random generator."""

    def __init__(self, path: str, seed: int) -> None:
        super().__init__(path)
        self.rng = np.random.default_rng(seed)

    def nodes(self, *operators: str) -> list[Any]:
        """The operators of these ONNX names that give a tensor, in execution order; all without an argument."""
        from trueport.frameworks._torch_ops import onnx_name

        known = self.program.operators()
        return [node for node in known if gives(node) and (not operators or onnx_name(node) in operators)]

    def native(self, *names: str) -> list[Any]:
        """The operators of these functions below `aten`."""
        return [node for node in self.nodes() if native(node) in names]

    def stored(self, value: Any) -> np.ndarray | None:
        """The floating weights behind an operand, or None where it is none or others read it too."""
        name = getattr(value, "name", None)
        tensor = self.program.constants.get(name) if name is not None else None
        if tensor is None or not tensor.is_floating_point() or len(value.users) != 1:
            return None
        return np.array(tensor.detach().numpy())

    def remove(self, node: Any, instead: Any) -> None:
        """Take an operator out; its readers read `instead`. One that is an output stays: its name tells the place."""
        if any(user.op == "output" for user in node.users):
            raise SkipPlace("its result is an output of the model")
        super().remove(node, instead)


class Fault(NamedTuple):
    """One kind of fault: its row in the taxonomy, its cause (`also`: causes that say the same thing), where, and how.

    `change` edits the program at one of the `places` and returns {"nodes", "what", "source_value", "target_value"}.
    """

    row: str
    cause: str
    places: Callable[[Editor], Sequence[Any]]
    change: Callable[[Editor, Any], dict[str, Any]]
    also: tuple[str, ...] = ()


def told(nodes: Sequence[Any], what: str, source: Any, target: Any) -> dict[str, Any]:
    """What a change did, the two values side by side."""
    names = list(dict.fromkeys(node.name for node in nodes))
    return {"nodes": names, "what": what, "source_value": source, "target_value": target}


def shown(array: np.ndarray) -> str:
    """A constant in a few words."""
    size = "x".join(str(length) for length in array.shape) or "scalar"
    if array.size <= 4:
        return f"{size}: {np.round(array.astype(float), 5).reshape(-1).tolist()}"
    return f"{size}, rms {float(np.sqrt(np.mean(np.square(array.astype(np.float64))))):.5g}"


def native(node: Any) -> str:
    """ "conv2d" of aten.conv2d.default."""
    from trueport.frameworks._torch_values import native_name

    return native_name(node).rpartition(".")[2]


def gives(node: Any) -> bool:
    """Whether a node gives one tensor or several, and no size."""
    value = node.meta.get("val")
    return isinstance(value, (tuple, list)) or hasattr(value, "shape")


def floating(node: Any) -> bool:
    """Whether a node gives one tensor of float32."""
    return str(getattr(node.meta.get("val"), "dtype", "")) == "torch.float32"
