"""Kernels of the layers that work on each element: activations, unary functions, arithmetic, comparison, logic and choice."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import TYPE_CHECKING, Any

from trueport.frameworks._coreml_nn_kernel import Layer, LayerKernel, method

if TYPE_CHECKING:
    import torch

Parameters = dict[str, Any]


def _relu_below(x: torch.Tensor, slope: torch.Tensor | float) -> torch.Tensor:
    import torch
    import torch.nn.functional as F

    return torch.where(x >= 0, x, x * slope) if isinstance(slope, torch.Tensor) else F.leaky_relu(x, slope)


def _elu(x: torch.Tensor, alpha: float) -> torch.Tensor:
    return x.clamp(min=0) + alpha * x.clamp(max=0).expm1()


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(x)), without overflow for large x."""
    return x.clamp(min=0) + (-x.abs()).exp().log1p()


ACTIVATIONS: dict[str, Callable[[torch.Tensor, Parameters], torch.Tensor]] = {
    "linear": lambda x, p: p["alpha"] * x + p["beta"],
    "ReLU": lambda x, p: x.clamp(min=0),
    "leakyReLU": lambda x, p: _relu_below(x, p["alpha"]),
    "thresholdedReLU": lambda x, p: x * (x >= p["alpha"]),
    "tanh": lambda x, p: x.tanh(),
    "scaledTanh": lambda x, p: p["alpha"] * (p["beta"] * x).tanh(),
    "sigmoid": lambda x, p: x.sigmoid(),
    "sigmoidHard": lambda x, p: (p["alpha"] * x + p["beta"]).clamp(0, 1),
    "ELU": lambda x, p: _elu(x, p["alpha"]),
    "softsign": lambda x, p: x / (1 + x.abs()),
    "softplus": lambda x, p: softplus(x),
}
"""Activations that need numbers only: (value, fields of the activation) -> value."""


def _by_channel(layer: Layer, x: torch.Tensor, field: str) -> torch.Tensor:
    """A weight with one value for all, or one for each channel, shaped to stand against the input.

    The channel is the third axis from the end. Converters write these layers for values of rank 1 and 2 too, where the
    format names no channel: then it is the only axis as long as the weight. Raises Unsupported when there is not one.
    """
    values = layer.need(field)
    if values.numel() == 1 or x.dim() >= 3:
        return values.reshape(-1, 1, 1) if x.dim() >= 3 else values.reshape(1)
    fitting = [axis for axis, size in enumerate(x.shape) if size == values.numel()]
    if len(fitting) != 1:
        raise layer.refuse(f"has {values.numel()} channels, and its input of the shape {list(x.shape)} names none")
    return values.reshape([-1 if axis == fitting[0] else 1 for axis in range(x.dim())])


def activation(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Any activation; those with weights have one for each channel."""
    kind = layer["NonlinearityType"]
    if kind in ACTIVATIONS:
        return ACTIVATIONS[kind](x, layer.attributes)
    if kind == "PReLU":
        return _relu_below(x, _by_channel(layer, x, "alpha"))
    if kind == "parametricSoftplus":
        return _by_channel(layer, x, "alpha") * softplus(_by_channel(layer, x, "beta") * x)
    raise layer.refuse(f"has the activation '{kind}', which is not known")


_UNARY: dict[str, Callable[[torch.Tensor, Parameters], torch.Tensor]] = {
    "SQRT": lambda x, p: x.sqrt(),
    "RSQRT": lambda x, p: (x + p["epsilon"]).rsqrt(),
    "INVERSE": lambda x, p: (x + p["epsilon"]).reciprocal(),
    "POWER": lambda x, p: x ** p["alpha"],
    "EXP": lambda x, p: x.exp(),
    "LOG": lambda x, p: x.log(),
    "ABS": lambda x, p: x.abs(),
    "THRESHOLD": lambda x, p: x.clamp(min=p["alpha"]),
}


def unary(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """A function of scale * x + shift."""
    return _UNARY[layer["type"]](layer["scale"] * x + layer["shift"], layer.attributes)


def clamped_relu(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """A leaky ReLU with an upper bound."""
    import torch

    return torch.where(x >= 0, x, layer["alpha"] * x).clamp(max=layer["beta"])


def gelu(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """GELU, exact or by one of two approximations."""
    mode = layer["mode"]
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())
    if mode == "SIGMOID_APPROXIMATION":
        return x * (1.702 * x).sigmoid()
    return 0.5 * x * (1 + (x / math.sqrt(2)).erf())


# -- several values


def _chain(function: Callable[[Any, Any], Any]) -> LayerKernel:
    """A function of two values, applied along all inputs."""
    return lambda _layer, *values: reduce(function, values)


def _or_scalar(function: Callable[[Any, Any], Any]) -> LayerKernel:
    """A function along all inputs, or of the only one and the number `alpha`."""
    return lambda layer, *values: reduce(function, values) if len(values) > 1 else function(values[0], layer["alpha"])


def _average(_layer: Layer, *values: torch.Tensor) -> torch.Tensor:
    return reduce(operator.add, values) / len(values)


def _logical(function: Callable[[Any, Any], Any]) -> LayerKernel:
    return lambda _layer, x, y: function(x != 0, y != 0)


def _largest(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.maximum(y)


def _smallest(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.minimum(y)


def where(_layer: Layer, condition: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Choose between two values by a third that is not 0."""
    import torch

    return torch.where(condition != 0, x, y)


def _floor_divide(_layer: Layer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x / y).floor()


def _clip(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=layer["minVal"]).clamp(max=layer["maxVal"])


def _exp2(_layer: Layer, x: torch.Tensor) -> torch.Tensor:
    return x.exp2()


_METHODS = [
    *("ceil", "floor", "sign", "round", "erf"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh"),
]
"""Layers that are a tensor's own methods."""

KERNELS: dict[str, LayerKernel] = {
    **{name: method(name) for name in _METHODS},
    "activation": activation,
    "unary": unary,
    "clampedReLU": clamped_relu,
    "gelu": gelu,
    "clip": _clip,
    "exp2": _exp2,
    "add": _or_scalar(operator.add),
    "multiply": _or_scalar(operator.mul),
    "average": _average,
    "max": _chain(_largest),
    "min": _chain(_smallest),
    "addBroadcastable": _chain(operator.add),
    "subtractBroadcastable": _chain(operator.sub),
    "multiplyBroadcastable": _chain(operator.mul),
    "divideBroadcastable": _chain(operator.truediv),
    "floorDivBroadcastable": _floor_divide,
    "modBroadcastable": _chain(operator.mod),
    "powBroadcastable": _chain(operator.pow),
    "maxBroadcastable": _chain(_largest),
    "minBroadcastable": _chain(_smallest),
    "equal": _or_scalar(operator.eq),
    "notEqual": _or_scalar(operator.ne),
    "lessThan": _or_scalar(operator.lt),
    "lessEqual": _or_scalar(operator.le),
    "greaterThan": _or_scalar(operator.gt),
    "greaterEqual": _or_scalar(operator.ge),
    "logicalAnd": _logical(operator.and_),
    "logicalOr": _logical(operator.or_),
    "logicalXor": _logical(operator.xor),
    "logicalNot": lambda _layer, x: x == 0,
    "whereBroadcastable": where,
}
