"""MIL operators that work element by element: arithmetic, comparison, activations, casts, quantisation to a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from trueport.frameworks._coreml_program import Call
from trueport.frameworks._mil_values import along, choice, flag, number, text, whole

Kernel = Callable[[Call], Any]

_UNARY = (
    *("abs", "acos", "asin", "atan", "atanh", "ceil", "cos", "cosh", "erf", "exp", "exp2", "floor", "round", "sign"),
    *("sin", "sinh", "sqrt", "square", "tan", "tanh", "relu", "sigmoid", "logical_not"),
)
"""Operators that PyTorch has under the same name; `round` goes to the even neighbour in both."""
_BINARY = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "maximum": "maximum",
    "minimum": "minimum",
    "pow": "pow",
    "equal": "eq",
    "not_equal": "ne",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "logical_and": "logical_and",
    "logical_or": "logical_or",
    "logical_xor": "logical_xor",
}


def _unary(name: str) -> Kernel:
    def kernel(call: Call) -> Any:
        import torch

        return getattr(torch, name)(call["x"])

    return kernel


def _binary(name: str) -> Kernel:
    def kernel(call: Call) -> Any:
        import torch

        return getattr(torch, name)(call["x"], call["y"])

    return kernel


def real_div(call: Call) -> Any:
    """x / y; of integers the quotient is rounded towards zero, as storing it in their type does."""
    import torch

    x, y = call["x"], call["y"]
    if x.is_floating_point() or y.is_floating_point():
        return x / y
    return torch.div(x, y, rounding_mode="trunc")


def floor_div(call: Call) -> Any:
    """The largest whole number not above x / y."""
    import torch

    return torch.div(call["x"], call["y"], rounding_mode="floor")


def mod(call: Call) -> Any:
    """x − floor(x / y) · y: the remainder has the sign of y."""
    import torch

    return torch.remainder(call["x"], call["y"])


def cast(call: Call) -> Any:
    """To another type; floats lose their fraction on the way to integers, and everything but zero is true.

    The type itself is that of the declared result, to which every kernel's value is brought.
    """
    x = call["x"]
    if text(call, "dtype", "") == "bool":
        return x != 0
    return x.trunc() if x.is_floating_point() and "int" in text(call, "dtype", "") else x


def select(call: Call) -> Any:
    """`a` where `cond` holds, `b` elsewhere; the places where it holds when neither is given."""
    import torch

    if "a" not in call:
        return torch.nonzero(call["cond"])
    return torch.where(call["cond"] != 0, call["a"], call["b"])


# -- functions with a small constant


def inverse(call: Call) -> Any:
    """1 / (x + epsilon)."""
    return 1.0 / (call["x"] + number(call, "epsilon", 1e-4))


def log(call: Call) -> Any:
    """ln(x + epsilon)."""
    return (call["x"] + number(call, "epsilon", 1e-45)).log()


def rsqrt(call: Call) -> Any:
    """1 / √(x + epsilon)."""
    return (call["x"] + number(call, "epsilon", 1e-12)).rsqrt()


def clip(call: Call) -> Any:
    """x limited to [alpha, beta]; where the two cross, beta wins."""
    import torch

    return torch.minimum(torch.maximum(call["x"], call["alpha"].to(call["x"])), call["beta"].to(call["x"]))


def threshold(call: Call) -> Any:
    """max(x, alpha)."""
    import torch

    return torch.maximum(call["x"], call["alpha"].to(call["x"]))


# -- activations


def relu6(call: Call) -> Any:
    """min(max(x, 0), 6)."""
    return call["x"].clamp(0.0, 6.0)


def leaky_relu(call: Call) -> Any:
    """x from zero on, alpha · x below."""
    import torch

    return torch.where(call["x"] >= 0, call["x"], call["x"] * call["alpha"])


def clamped_relu(call: Call) -> Any:
    """min(beta, x) from zero on, min(beta, alpha · x) below."""
    import torch

    return torch.minimum(leaky_relu(call), call["beta"].to(call["x"]))


def thresholded_relu(call: Call) -> Any:
    """x from alpha on, zero below."""
    import torch

    return torch.where(call["x"] >= call["alpha"], call["x"], torch.zeros_like(call["x"]))


def elu(call: Call) -> Any:
    """x above zero, alpha · (eˣ − 1) elsewhere."""
    import torch

    return torch.where(call["x"] > 0, call["x"], call["alpha"] * torch.expm1(call["x"]))


def prelu(call: Call) -> Any:
    """x above zero, alpha of its channel (axis 1) times x elsewhere."""
    import torch

    x = call["x"]
    return torch.where(x > 0, x, x * along(call["alpha"], 1, x.dim()))


GELU_MODES = ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")


def gelu(call: Call) -> Any:
    """x · Φ(x), exactly or by one of two approximations."""
    import torch

    x = call["x"]
    mode = choice(call, "mode", "EXACT", GELU_MODES)
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return torch.nn.functional.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def silu(call: Call) -> Any:
    """x · σ(x)."""
    import torch

    return torch.nn.functional.silu(call["x"])


def softplus(call: Call) -> Any:
    """ln(1 + eˣ), without overflow for large x."""
    import torch

    return torch.logaddexp(call["x"], torch.zeros((), dtype=call["x"].dtype))


def softplus_parametric(call: Call) -> Any:
    """alpha · ln(1 + e^(beta · x)) with alpha and beta of each channel (axis 1)."""
    import torch

    x = call["x"]
    alpha, beta = (along(call[name], 1, x.dim()) for name in ("alpha", "beta"))
    return alpha * torch.logaddexp(beta * x, torch.zeros((), dtype=x.dtype))


def softsign(call: Call) -> Any:
    """x / (1 + |x|)."""
    return call["x"] / (1 + call["x"].abs())


def scaled_tanh(call: Call) -> Any:
    """alpha · tanh(beta · x)."""
    return call["alpha"] * (call["beta"] * call["x"]).tanh()


def sigmoid_hard(call: Call) -> Any:
    """alpha · x + beta, limited to [0, 1]."""
    return (call["alpha"] * call["x"] + call["beta"]).clamp(0.0, 1.0)


def linear_activation(call: Call) -> Any:
    """alpha · x + beta."""
    return call["alpha"] * call["x"] + call["beta"]


def softmax(call: Call) -> Any:
    """eˣ over its sum along `axis`."""
    return call["x"].softmax(whole(call, "axis", -1))


# -- a grid of integers


def quantize(call: Call) -> Any:
    """round(input / scale) + zero_point, halves to the even neighbour, limited to the range of the result's type."""
    x = call["input"]
    axis = whole(call, "axis", 0)
    steps = (x / along(call["scale"], axis, x.dim())).round()
    if "zero_point" in call:
        steps = steps + along(call["zero_point"].to(x.dtype), axis, x.dim())
    low, high = (0, 255) if text(call, "output_dtype", "int8") == "uint8" else (-128, 127)
    return steps.clamp(low, high)


def dequantize(call: Call) -> Any:
    """scale · (input − zero_point)."""
    x = call["input"].to(call.float_type)
    axis = whole(call, "axis", 0)
    if "zero_point" in call:
        x = x - along(call["zero_point"].to(call.float_type), axis, x.dim())
    return x * along(call["scale"], axis, x.dim())


def cumsum(call: Call) -> Any:
    """Running sums along `axis`, from the end where `reverse`, without the element itself where `exclusive`."""
    x, axis = call["x"], whole(call, "axis", 0)
    if flag(call, "reverse"):
        x = x.flip(axis)
    total = x.cumsum(axis)
    if flag(call, "exclusive"):
        total = total.roll(1, axis)
        total.select(axis, 0).zero_()
    return total.flip(axis) if flag(call, "reverse") else total


KERNELS: Mapping[str, Kernel] = {
    **{kind: _unary(kind) for kind in _UNARY},
    **{kind: _binary(name) for kind, name in _BINARY.items()},
    "real_div": real_div,
    "floor_div": floor_div,
    "mod": mod,
    "cast": cast,
    "select": select,
    "inverse": inverse,
    "log": log,
    "rsqrt": rsqrt,
    "clip": clip,
    "threshold": threshold,
    "relu6": relu6,
    "leaky_relu": leaky_relu,
    "clamped_relu": clamped_relu,
    "thresholded_relu": thresholded_relu,
    "elu": elu,
    "prelu": prelu,
    "gelu": gelu,
    "silu": silu,
    "softplus": softplus,
    "softplus_parametric": softplus_parametric,
    "softsign": softsign,
    "scaled_tanh": scaled_tanh,
    "sigmoid_hard": sigmoid_hard,
    "linear_activation": linear_activation,
    "softmax": softmax,
    "quantize": quantize,
    "dequantize": dequantize,
    "cumsum": cumsum,
}
