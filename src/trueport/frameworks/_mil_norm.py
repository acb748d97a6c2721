"""MIL operators that normalise, reduce an axis, or order values along one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from trueport.frameworks._coreml_program import Call
from trueport.frameworks._mil_values import along, axes, flag, number, whole

Kernel = Callable[[Call], Any]


def batch_norm(call: Call) -> Any:
    """gamma · (x − mean) / √(variance + epsilon) + beta, each of the channel (axis 1)."""
    import torch

    return torch.nn.functional.batch_norm(
        call["x"],
        call["mean"],
        call["variance"],
        call.get("gamma"),
        call.get("beta"),
        training=False,
        eps=number(call, "epsilon", 1e-5),
    )


def instance_norm(call: Call) -> Any:
    """As batch_norm, with mean and variance of each sample's channel."""
    x = call["x"]
    spatial = list(range(2, x.dim()))
    mean = x.mean(spatial, keepdim=True)
    centred = x - mean
    scaled = centred * (centred.square().mean(spatial, keepdim=True) + number(call, "epsilon", 1e-5)).rsqrt()
    if call.get("gamma") is not None:
        scaled = scaled * along(call["gamma"], 1, x.dim())
    return scaled if call.get("beta") is None else scaled + along(call["beta"], 1, x.dim())


def layer_norm(call: Call) -> Any:
    """gamma · (x − mean) / √(variance + epsilon) + beta over `axes`; gamma and beta have the shape of these axes."""
    import torch

    x = call["x"]
    over = sorted(axes(call, "axes", x.dim()))
    epsilon = number(call, "epsilon", 1e-5)
    gamma, beta = call.get("gamma"), call.get("beta")
    if over == list(range(x.dim() - len(over), x.dim())):
        return torch.nn.functional.layer_norm(x, [x.shape[axis] for axis in over], gamma, beta, epsilon)
    centred = x - x.mean(over, keepdim=True)
    scaled = centred * (centred.square().mean(over, keepdim=True) + epsilon).rsqrt()
    shape = [size if axis in over else 1 for axis, size in enumerate(x.shape)]
    if gamma is not None:
        scaled = scaled * gamma.reshape(shape)
    return scaled if beta is None else scaled + beta.reshape(shape)


def l2_norm(call: Call) -> Any:
    """x / √(Σ x² + epsilon) over the last three axes."""
    x = call["x"]
    return x * (x.square().sum([-3, -2, -1], keepdim=True) + number(call, "epsilon", 1e-6)).rsqrt()


def local_response_norm(call: Call) -> Any:
    """x / (k + alpha / size · Σ x²)^beta, the sum over `size` neighbouring channels."""
    import torch

    return torch.nn.functional.local_response_norm(
        call["x"],
        whole(call, "size", 1),
        number(call, "alpha", 1e-4),
        number(call, "beta", 0.75),
        number(call, "k", 1.0),
    )


# -- reductions


def _reduction(function: Callable[[Any, list[int], bool], Any]) -> Kernel:
    def kernel(call: Call) -> Any:
        x = call["x"]
        if not x.is_floating_point():  # sums and roots of integers are formed exactly, then stored in their type
            import torch

            x = x.to(torch.float64)
        return function(x, axes(call, "axes", x.dim()), flag(call, "keep_dims"))

    return kernel


def _product(x: Any, over: list[int], keep: bool) -> Any:
    for axis in sorted(over, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: Mapping[str, Callable[[Any, list[int], bool], Any]] = {
    "reduce_sum": lambda x, over, keep: x.sum(over, keepdim=keep),
    "reduce_mean": lambda x, over, keep: x.mean(over, keepdim=keep),
    "reduce_max": lambda x, over, keep: x.amax(over, keepdim=keep),
    "reduce_min": lambda x, over, keep: x.amin(over, keepdim=keep),
    "reduce_prod": _product,
    "reduce_l1_norm": lambda x, over, keep: x.abs().sum(over, keepdim=keep),
    "reduce_l2_norm": lambda x, over, keep: x.square().sum(over, keepdim=keep).sqrt(),
    "reduce_sum_square": lambda x, over, keep: x.square().sum(over, keepdim=keep),
    "reduce_log_sum": lambda x, over, keep: x.sum(over, keepdim=keep).log(),
    "reduce_log_sum_exp": lambda x, over, keep: x.logsumexp(over, keepdim=keep),
}


def reduce_argmax(call: Call) -> Any:
    """Index of the largest value along `axis`, the first of equal ones."""
    return call["x"].argmax(whole(call, "axis", -1), keepdim=flag(call, "keep_dims"))


def reduce_argmin(call: Call) -> Any:
    """Index of the smallest value along `axis`, the first of equal ones."""
    return call["x"].argmin(whole(call, "axis", -1), keepdim=flag(call, "keep_dims"))


# -- order


def argsort(call: Call) -> Any:
    """Indices that sort along `axis`, the largest first unless `ascending`; equal values keep their order."""
    return call["x"].argsort(dim=whole(call, "axis", -1), descending=not flag(call, "ascending"), stable=True)


def topk(call: Call) -> Any:
    """The k largest values along `axis` (smallest: `ascending`) and their indices, sorted; k = −1 takes all."""
    x, axis = call["x"], whole(call, "axis", -1)
    count = whole(call, "k", 1)
    count = x.shape[axis] if count == -1 else count
    values, indices = x.sort(dim=axis, descending=not flag(call, "ascending"), stable=True)
    values, indices = values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
    return (values, indices) if flag(call, "return_indices", True) else values


KERNELS: Mapping[str, Kernel] = {
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "l2_norm": l2_norm,
    "local_response_norm": local_response_norm,
    **{kind: _reduction(function) for kind, function in _REDUCTIONS.items()},
    "reduce_argmax": reduce_argmax,
    "reduce_argmin": reduce_argmin,
    "argsort": argsort,
    "topk": topk,
}
