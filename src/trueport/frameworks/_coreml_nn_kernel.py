"""What a kernel of a neural-network layer sees, and how a table of such kernels becomes one that the evaluator takes.

A layer kernel is a function of a `Layer` and of its inputs as tensors, all of them floating point: inside a network Core ML
knows no other type. Indices are floats that hold whole numbers; the smallest rank is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable

from trueport.frameworks._base import Unsupported
from trueport.frameworks._coreml_program import Call

if TYPE_CHECKING:
    import torch

LayerKernel = Callable[..., Any]
"""(Layer, *inputs) -> tensor or tuple of tensors."""


class Layer:
    """One layer as it runs: its fields by name, its weights as tensors."""

    __slots__ = ("attributes", "call", "name")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.attributes: dict[str, Any] = call.operation.attributes
        self.name = call.operation.name

    def __getitem__(self, field: str) -> Any:
        """The value of a field as plain Python: number, text, or list."""
        return self.attributes[field]

    def weight(self, field: str) -> torch.Tensor | None:
        """A stored weight, or None where the layer has none."""
        return self.call[field] if field in self.call.operation.inputs else None

    def need(self, field: str) -> torch.Tensor:
        """A stored weight that must be there. Raises Unsupported with the layer's name."""
        found = self.weight(field)
        if found is None:
            raise self.refuse(f"has no {field}")
        return found

    def refuse(self, why: str) -> Unsupported:
        """An error that names the layer; `why` goes on from its name."""
        return Unsupported(f"the {self.call.operation.kind} layer '{self.name}' {why}")


def adapt(kernel: LayerKernel) -> Callable[[Call], Any]:
    """Make a kernel for the evaluator: inputs become floats, results of rank 0 get rank 1."""

    def run(call: Call) -> Any:
        values = [value.to(call.float_type) for value in call.all("x")] if "x" in call else []
        found = kernel(Layer(call), *values)
        if isinstance(found, tuple):
            return tuple(_ranked(value, call.float_type) for value in found)
        return _ranked(found, call.float_type)

    return run


def _ranked(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    value = value.to(dtype)
    return value.reshape(1) if value.dim() == 0 else value


def method(name: str, *arguments: Any) -> LayerKernel:
    """A kernel that is a tensor's own method with fixed further arguments."""
    return lambda _layer, x: getattr(x, name)(*arguments)


def folded(x: torch.Tensor, rank: int, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Apply a function that takes [N, *the last `rank` dimensions] to a tensor with any number of dimensions before them."""
    leading, inner = x.shape[: x.dim() - rank], x.shape[x.dim() - rank :]
    found = function(x.reshape(-1, *inner))
    return found.reshape(*leading, *found.shape[1:])


def need_rank(layer: Layer, x: torch.Tensor, least: int, most: int | None = None) -> None:
    """Raise Unsupported when a layer that is defined for some ranks gets another."""
    if x.dim() < least or (most is not None and x.dim() > most):
        allowed = f"{least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        raise layer.refuse(f"takes values of rank {allowed}, and its input has the shape {list(x.shape)}")


def whole(values: torch.Tensor) -> list[int]:
    """The numbers of a tensor that stands for a shape, as integers."""
    return [int(value) for value in values.reshape(-1).tolist()]


def refusing(why: str) -> LayerKernel:
    """A kernel that raises Unsupported: the layer is known, and this is why it is not run."""

    def refuse(layer: Layer, *_inputs: Any) -> Any:
        raise layer.refuse(why)

    return refuse


def table(kernels: Mapping[str, LayerKernel], prefix: str) -> dict[str, Callable[[Call], Any]]:
    """Make the evaluator's table of a table of layer kernels."""
    return {prefix + name: adapt(kernel) for name, kernel in kernels.items()}
