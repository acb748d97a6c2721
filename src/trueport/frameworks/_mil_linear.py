"""MIL operators that sum products: convolutions, pools, matrix products, attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from trueport.frameworks._coreml_program import Call
from trueport.frameworks._mil_values import choice, flag, text, wholes

PAD_TYPES = ("valid", "same", "same_lower", "custom")


def _pads(call: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Elements put before and after each spatial axis. `kernel`: with the gaps of a dilation."""
    kind = choice(call, "pad_type", "valid", PAD_TYPES)
    if kind == "custom":
        pad = wholes(call, "pad", [0] * (2 * len(sizes)))
        return [(pad[2 * place], pad[2 * place + 1]) for place in range(len(sizes))]
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    pads = []
    for size, width, stride in zip(sizes, kernel, strides):
        total = max(0, (math.ceil(size / stride) - 1) * stride + width - size)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if kind == "same" else (large, small))
    return pads


def padded(x: Any, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Any:
    """Put `value` around the last axes; a negative number cuts off."""
    import torch

    flat = [number for pair in reversed(pads) for number in pair]
    return torch.nn.functional.pad(x, flat, value=value) if any(flat) else x


def conv(call: Call) -> Any:
    """Cross-correlation over one to three spatial axes; weight [C_out, C_in / groups, *K]."""
    import torch

    x, weight = call["x"], call["weight"]
    rank = x.dim() - 2
    ones = [1] * rank
    strides, dilations = wholes(call, "strides", ones), wholes(call, "dilations", ones)
    kernel = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations)]
    pads = _pads(call, x.shape[2:], kernel, strides)
    groups = wholes(call, "groups", [1])[0]
    within: list[int] = [before for before, _ in pads]
    if any(before != after for before, after in pads):
        x, within = padded(x, pads), [0] * rank
    function = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
    return function(x, weight, call.get("bias"), strides, within, dilations, groups)


def conv_transpose(call: Call) -> Any:
    """The gradient of a convolution; weight [C_in, C_out / groups, *K].

    Every input element lays its kernel into a result without padding; `pad` (or "same") says what is cut off before, and
    the size asked for where it ends, beyond which there is only the bias.
    """
    import torch

    x, weight = call["x"], call["weight"]
    rank = x.dim() - 2
    ones = [1] * rank
    strides, dilations = wholes(call, "strides", ones), wholes(call, "dilations", ones)
    function = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[rank - 1]
    groups = wholes(call, "groups", [1])[0]
    full = function(x, weight, None, strides, [0] * rank, [0] * rank, groups, dilations)
    kind = choice(call, "pad_type", "valid", PAD_TYPES)
    pad = wholes(call, "pad", [0] * (2 * rank)) if kind == "custom" else [0] * (2 * rank)
    given = wholes(call, "output_shape")[2:] if call.get("output_shape") is not None else []
    cuts = []
    for place in range(rank):
        size = full.shape[2 + place]
        before = pad[2 * place]
        wanted = size - before - pad[2 * place + 1]
        if kind in ("same", "same_lower"):
            wanted = given[place] if given else x.shape[2 + place] * strides[place]
            small = (size - wanted) // 2
            before = small if kind == "same" else (size - wanted) - small
        elif given:
            wanted = given[place]
        cuts.append((-before, before + wanted - size))
    full = padded(full, cuts)
    bias = call.get("bias")
    return full if bias is None else full + bias.reshape([-1, *ones])


# -- pools


def _windows(call: Call, x: Any) -> tuple[list[int], list[int], list[tuple[int, int]], list[int]]:
    """Kernel, strides, pads, and what the last window reaches beyond the padded input in ceil mode.

    In ceil mode a last window counts when it starts inside the input or what was put before it.
    """
    kernel = wholes(call, "kernel_sizes")
    strides = wholes(call, "strides", [1] * len(kernel))
    sizes = list(x.shape[2:])
    pads = _pads(call, sizes, kernel, strides)
    beyond = []
    for size, width, stride, (before, after) in zip(sizes, kernel, strides, pads):
        room = size + before + after - width
        count = (math.ceil(room / stride) if flag(call, "ceil_mode") else room // stride) + 1
        if flag(call, "ceil_mode") and (count - 1) * stride >= size + before:
            count -= 1
        beyond.append(max(0, (count - 1) * stride + width - (size + before + after)))
    return kernel, strides, pads, beyond


def _wider(pads: Sequence[tuple[int, int]], beyond: Sequence[int]) -> list[tuple[int, int]]:
    return [(before, after + more) for (before, after), more in zip(pads, beyond)]


def max_pool(call: Call) -> Any:
    """The largest value of each window; what was put around it never is."""
    import torch

    x = call["x"]
    kernel, strides, pads, beyond = _windows(call, x)
    function = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)[len(kernel) - 1]
    return function(padded(x, _wider(pads, beyond), -math.inf), kernel, strides)


def _mean_windows(x: Any, kernel: list[int], strides: list[int]) -> Any:
    import torch

    functional = torch.nn.functional
    function = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[len(kernel) - 1]
    return function(x, kernel, strides)


def avg_pool(call: Call) -> Any:
    """The mean of each window; what lies around the input counts as zeros unless `exclude_padding_from_average`.

    What a window reaches beyond the end in ceil mode is treated as padding too. The documentation says "same as PyTorch",
    which never counts it; Core ML was measured to (coremltools issues 2772 and 2844), and the file is run by Core ML.
    """
    import torch

    x = call["x"]
    kernel, strides, pads, beyond = _windows(call, x)
    around = _wider(pads, beyond)
    means = _mean_windows(padded(x, around), kernel, strides)
    if not flag(call, "exclude_padding_from_average") or not any(map(any, around)):
        return means
    inside = padded(torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype), around)
    return means / _mean_windows(inside, kernel, strides)


def l2_pool(call: Call) -> Any:
    """The square root of the sum of squares of each window."""
    x = call["x"]
    kernel, strides, pads, beyond = _windows(call, x)
    return (_mean_windows(padded(x.square(), _wider(pads, beyond)), kernel, strides) * math.prod(kernel)).sqrt()


# -- products


def linear(call: Call) -> Any:
    """x · weightᵀ + bias."""
    import torch

    return torch.nn.functional.linear(call["x"], call["weight"].to(call["x"].dtype), call.get("bias"))


def matmul(call: Call) -> Any:
    """Matrix product over the last two axes, the others broadcast; a transposition applies from rank 2 on."""
    x, y = call["x"], call["y"]
    if flag(call, "transpose_x") and x.dim() > 1:
        x = x.transpose(-1, -2)
    if flag(call, "transpose_y") and y.dim() > 1:
        y = y.transpose(-1, -2)
    return x @ y


def einsum(call: Call) -> Any:
    """Sum of products in Einstein's notation."""
    import torch

    return torch.einsum(text(call, "equation", ""), *call.all("values"))


def scaled_dot_product_attention(call: Call) -> Any:
    """softmax(Q · Kᵀ / √E + mask) · V; a Boolean mask lets through where it is true."""
    import torch

    query, mask = call["query"], call.get("attn_mask")
    scores = query @ call["key"].transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -math.inf)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1) @ call["value"]


KERNELS: Mapping[str, Callable[[Call], Any]] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "l2_pool": l2_pool,
    "linear": linear,
    "matmul": matmul,
    "einsum": einsum,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
