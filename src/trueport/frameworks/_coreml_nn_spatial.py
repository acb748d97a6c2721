"""Kernels of the layers that slide a window: convolution, deconvolution and pooling over two and three dimensions.

The channel is the third axis from the end (the fourth for three spatial dimensions); every axis before it is batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Callable

from trueport.frameworks._coreml_nn_kernel import Layer, LayerKernel, folded, need_rank

if TYPE_CHECKING:
    import torch

Pads = list[tuple[int, int]]
"""(before, after) for each spatial dimension, from the first to the last."""

_AXES_3D = ("Depth", "Height", "Width")
_EDGES_3D = (("Front", "Back"), ("Top", "Bottom"), ("Left", "Right"))


def _flat(pads: Pads) -> list[int]:
    """Amounts in the order of `torch.nn.functional.pad`: the last dimension first."""
    return [amount for pair in reversed(pads) for amount in pair]


def same_pads(sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], heavy_start: bool = False) -> Pads:
    """Amounts that make the result ceil(size / stride) long; an odd one out stands at the end, or at the start."""
    pads = []
    for size, window, step in zip(sizes, kernel, stride):
        total = max(0, (-(-size // step) - 1) * step + window - size)
        small, large = total // 2, total - total // 2
        pads.append((large, small) if heavy_start else (small, large))
    return pads


def _function(name: str, dimensions: int) -> Callable[..., torch.Tensor]:
    import torch.nn.functional as F

    found: Callable[..., torch.Tensor] = getattr(F, f"{name}{dimensions}d")
    return found


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: list[int],
    dilation: list[int],
    groups: int,
    pads: Pads,
) -> torch.Tensor:
    import torch.nn.functional as F

    dimensions = len(stride)
    if all(before == after for before, after in pads):
        padding, padded = [before for before, _ in pads], x
    else:
        padding, padded = [0] * dimensions, F.pad(x, _flat(pads))
    return _function("conv", dimensions)(padded, weight, bias, stride, padding, dilation, groups)


def _deconvolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    stride: list[int],
    groups: int,
    crops: Pads,
) -> torch.Tensor:
    """The full transposed convolution with `crops` cut off; a negative crop at the end adds zeros there."""
    import torch.nn.functional as F

    found = _function("conv_transpose", len(stride))(x, weight, None, stride, 0, 0, groups)
    found = F.pad(found, [-amount for amount in _flat(crops)])
    return found if bias is None else found + bias.reshape(-1, *[1] * len(stride))


def _same_crops(sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], heavy_start: bool) -> Pads:
    """What a deconvolution cuts off so that its result is size * stride long."""
    crops = []
    for window, step, _ in zip(kernel, stride, sizes):
        total = window - step
        small, large = max(total, 0) // 2, total - max(total, 0) // 2
        crops.append((large, small) if heavy_start and total > 0 else (small, large))
    return crops


def _check_output_shape(
    layer: Layer, sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], crops: Pads
) -> None:
    """Raise Unsupported where a deconvolution asks for a size that its padding does not give: the place is not documented."""
    asked = list(layer["outputShape"])
    if not asked:
        return
    given = [(n - 1) * s + k - sum(crop) for n, s, k, crop in zip(sizes, stride, kernel, crops)]
    if asked != given:
        raise layer.refuse(
            f"asks for the output size {asked}, and its padding gives {given}: which part is cut is not documented"
        )


def convolution(layer: Layer, x: torch.Tensor, dynamic: torch.Tensor | None = None) -> torch.Tensor:
    """x [.., C, H, W]; a second input is the kernel [out, C / groups, kh, kw] in place of the stored one."""
    need_rank(layer, x, 3)
    weight = layer.need("weights") if dynamic is None else dynamic
    bias, groups, stride = layer.weight("bias"), layer["nGroups"], layer["stride"]
    sizes, window = list(x.shape[-2:]), list(weight.shape[-2:])
    same = layer["ConvolutionPaddingType"] == "same"
    heavy_start = same and layer["asymmetryMode"] == "TOP_LEFT_HEAVY"
    if layer["isDeconvolution"]:
        crops = _same_crops(sizes, window, stride, heavy_start) if same else _amounts(layer)
        _check_output_shape(layer, sizes, window, stride, crops)
        return folded(x, 3, lambda y: _deconvolution(y, weight, bias, stride=stride, groups=groups, crops=crops))
    dilation = layer["dilationFactor"]
    effective = [(k - 1) * d + 1 for k, d in zip(window, dilation)]
    pads = same_pads(sizes, effective, stride, heavy_start) if same else _amounts(layer)
    return folded(
        x, 3, lambda y: _convolution(y, weight, bias, stride=stride, dilation=dilation, groups=groups, pads=pads)
    )


def _amounts(layer: Layer) -> Pads:
    """The amounts that a layer itself gives; a layer without any pads nothing."""
    return [(int(a), int(b)) for a, b in layer.attributes.get("paddingAmounts") or [[0, 0], [0, 0]]]


def _triple(layer: Layer, prefix: str) -> list[int]:
    return [int(layer[prefix + axis]) for axis in _AXES_3D]


def _custom_3d(layer: Layer) -> Pads:
    return [(int(layer["customPadding" + a]), int(layer["customPadding" + b])) for a, b in _EDGES_3D]


def convolution3d(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """x [N, C, D, H, W]."""
    need_rank(layer, x, 5, 5)
    weight, bias, groups = layer.need("weights"), layer.weight("bias"), layer["nGroups"]
    stride, dilation, sizes, kind = (
        _triple(layer, "stride"),
        _triple(layer, "dilation"),
        x.shape[-3:],
        layer["paddingType"],
    )
    effective = [(k - 1) * d + 1 for k, d in zip(weight.shape[-3:], dilation)]
    if layer["isDeconvolution"]:
        if dilation != [1, 1, 1]:
            raise layer.refuse("is a deconvolution with dilation, which is not documented")
        crops = _same_crops(sizes, effective, stride, False) if kind == "SAME" else _custom_3d(layer)
        crops = [(0, 0)] * 3 if kind == "VALID" else crops
        _check_output_shape(layer, sizes, effective, stride, crops)
        return _deconvolution(x, weight.transpose(0, 1), bias, stride=stride, groups=groups, crops=crops)
    pads = {"SAME": lambda: same_pads(sizes, effective, stride), "VALID": lambda: [(0, 0)] * 3}.get(
        kind, lambda: _custom_3d(layer)
    )()
    return _convolution(x, weight, bias, stride=stride, dilation=dilation, groups=groups, pads=pads)


# -- pooling


def _pool(x: torch.Tensor, mode: str, kernel: list[int], stride: list[int], pads: Pads, exclude: bool) -> torch.Tensor:
    """x [N, C, *spatial]. Averages count padded places unless `exclude`; a maximum never takes a padded place."""
    import torch
    import torch.nn.functional as F

    if mode == "MAX":
        return _function("max_pool", len(kernel))(F.pad(x, _flat(pads), value=float("-inf")), kernel, stride)

    def total(values: torch.Tensor) -> torch.Tensor:
        return _function("avg_pool", len(kernel))(F.pad(values, _flat(pads)), kernel, stride, divisor_override=1)

    if mode == "L2":
        return total(x * x).sqrt()
    counted = total(torch.ones_like(x[:1, :1])) if exclude else float(torch.Size(kernel).numel())
    return total(x) / counted


def _complete(layer: Layer, sizes: Sequence[int], kernel: list[int], stride: list[int]) -> tuple[Pads, list[int]]:
    """Amounts for `includeLastPixel`, and the output sizes: as many windows as cover the last pixel."""
    pads, outputs = [], []
    for size, window, step, pad in zip(sizes, kernel, stride, layer.attributes.get("paddingAmounts") or [0, 0]):
        count = -(-(size + 2 * pad - window) // step) + 1
        # The format drops a window that would begin behind the last pixel and its padding, in both dimensions as soon as one is padded.
        if any(layer["paddingAmounts"]) and (count - 1) * step >= size + pad:
            count -= 1
        pads.append((int(pad), max(0, (count - 1) * step + window - size - int(pad))))
        outputs.append(count)
    return pads, outputs


def pooling(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """x [.., C, H, W]."""
    need_rank(layer, x, 3)
    mode, sizes = layer["type"], list(x.shape[-2:])
    if layer["globalPooling"]:
        return folded(x, 3, lambda y: _pool(y, mode, sizes, [1, 1], [(0, 0)] * 2, False))
    kernel, stride, exclude = list(layer["kernelSize"]), list(layer["stride"]), bool(layer["avgPoolExcludePadding"])
    kind = layer["PoolingPaddingType"]
    if kind == "includeLastPixel":
        pads, outputs = _complete(layer, sizes, kernel, stride)
        overrun = any(after > before for before, after in pads)
        if overrun and mode == "AVERAGE" and not exclude:
            raise layer.refuse(
                "averages over windows that reach past the padding; what it divides by is not documented"
            )
        found = folded(x, 3, lambda y: _pool(y, mode, kernel, stride, pads, exclude))
        return found[..., : outputs[0], : outputs[1]]
    heavy_start = kind == "same" and layer["asymmetryMode"] == "TOP_LEFT_HEAVY"
    pads = same_pads(sizes, kernel, stride, heavy_start) if kind == "same" else _amounts(layer)
    return folded(x, 3, lambda y: _pool(y, mode, kernel, stride, pads, exclude))


def pooling3d(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """x [N, C, D, H, W]."""
    import torch.nn.functional as F

    need_rank(layer, x, 5, 5)
    kernel, stride, kind = _triple(layer, "kernel"), _triple(layer, "stride"), layer["paddingType"]
    pads = {"SAME": lambda: same_pads(x.shape[-3:], kernel, stride), "VALID": lambda: [(0, 0)] * 3}.get(
        kind, lambda: _custom_3d(layer)
    )()
    found = _pool(x, layer["type"], kernel, stride, pads, bool(layer["countExcludePadding"]))
    if layer["type"] == "MAX" and any(map(any, pads)):
        zeros = _pool(F.pad(x, _flat(pads)), "MAX", kernel, stride, [(0, 0)] * 3, False)
        if not zeros.equal(found):
            raise layer.refuse(
                "takes maxima of negative values at a padded edge; the format says that zeros are padded there"
            )
    return found


def global_pooling3d(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """x [N, C, D, H, W] -> [N, C, 1, 1, 1]."""
    need_rank(layer, x, 5, 5)
    return _pool(x, layer["type"], list(x.shape[-3:]), [1, 1, 1], [(0, 0)] * 3, False)


KERNELS: dict[str, LayerKernel] = {
    "convolution": convolution,
    "convolution3d": convolution3d,
    "pooling": pooling,
    "pooling3d": pooling3d,
    "globalPooling3d": global_pooling3d,
}
