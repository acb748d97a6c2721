"""Kernels of the layers that crop, pad, resize and rearrange the last two dimensions (H, W)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trueport.frameworks._coreml_nn_kernel import Layer, LayerKernel, folded, need_rank

if TYPE_CHECKING:
    import torch


def crop(layer: Layer, x: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """Cut a border off, or cut out the size of a second input at an offset."""
    height, width = x.shape[-2:]
    if like is None:
        (top, bottom), (left, right) = layer["cropAmounts"]
    else:
        (top, left), (tall, wide) = layer["offset"] or [0, 0], like.shape[-2:]
        bottom, right = height - top - tall, width - left - wide
    if min(top, bottom, left, right, height - top - bottom - 1, width - left - right - 1) < 0:
        raise ValueError(f"the layer '{layer.name}' cuts out more than its input of size {height} x {width} has")
    return x[..., top : height - bottom, left : width - right]


def padding(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Put a border around: a constant, or what stands at the edge, mirrored or repeated."""
    import torch
    import torch.nn.functional as F

    need_rank(layer, x, 2)
    amounts, kind = layer["paddingAmounts"], layer["PaddingType"]
    if kind not in ("reflection", "replication"):
        (top, bottom), (left, right) = amounts
        return F.pad(x, [left, right, top, bottom], value=layer.attributes.get("value", 0.0))
    for axis, (before, after) in zip((-2, -1), amounts):
        size = x.shape[axis]
        places = torch.arange(-before, size + after)
        if kind == "reflection":
            if max(before, after) >= size:
                raise layer.refuse(f"mirrors {max(before, after)} places of an axis that has {size}")
            places = (size - 1) - (size - 1 - places.abs()).abs()
        x = x.index_select(axis, places.clamp(0, size - 1))
    return x


# -- resizing


def sample(x: torch.Tensor, points: torch.Tensor, axis: int) -> torch.Tensor:
    """Interpolate linearly at `points` (float64, within 0 .. size - 1) along an axis."""
    low = points.floor().long()
    share = (points - low).to(x.dtype).reshape([-1 if index == x.dim() + axis else 1 for index in range(x.dim())])
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    before, after = x.index_select(axis, low), x.index_select(axis, high)
    return before * (1 - share) + after * share


def _upsample_points(size: int, count: int, mode: str) -> torch.Tensor:
    """Where the `count` results lie on an axis of `size`, for each `linearUpsampleMode`."""
    import torch

    steps = torch.arange(count, dtype=torch.float64)
    if mode == "ALIGN_CORNERS_FALSE":
        points = (steps + 0.5) * (size / count) - 0.5
    else:
        reach = size - 1 if mode == "ALIGN_CORNERS_TRUE" else size - size / count
        points = steps * (reach / (count - 1)) if count > 1 else steps * 0
    return points.clamp(0, size - 1)


def upsample(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Enlarge [.., H, W], by repetition or linear interpolation."""
    import torch.nn.functional as F

    need_rank(layer, x, 2)
    factors = layer["scalingFactor"] or layer["fractionalScalingFactor"]
    if layer["mode"] == "NN":
        if any(factor != int(factor) for factor in factors):
            raise layer.refuse(
                f"repeats the nearest value by the factors {factors}; which one is nearest is not documented"
            )
        return x.repeat_interleave(int(factors[0]), -2).repeat_interleave(int(factors[1]), -1)
    mode, sizes = layer["linearUpsampleMode"], [int(x.shape[axis] * factor) for axis, factor in zip((-2, -1), factors)]
    if mode != "DEFAULT" and x.dim() >= 3:
        aligned = mode == "ALIGN_CORNERS_TRUE"
        return folded(x, 3, lambda y: F.interpolate(y, sizes, mode="bilinear", align_corners=aligned))
    for axis, size in zip((-2, -1), sizes):
        x = sample(x, _upsample_points(x.shape[axis], size, mode), axis)
    return x


def grid(mode: str, start: torch.Tensor, extent: torch.Tensor, count: int, limit: int) -> torch.Tensor:
    """Sampling points of `SamplingMode` on an interval that begins at `start` and is `extent` long (size - 1 for a whole axis)."""
    import torch

    steps = torch.arange(count, dtype=torch.float64)
    if mode == "ROI_ALIGN_MODE":
        points = start + (steps + 0.5) * (extent.clamp(min=1) / count)
    elif mode == "UPSAMPLE_MODE":
        size = extent + 1
        points = start + (steps * ((size - size / count) / (count - 1)) if count > 1 else steps * 0)
    elif count == 1:
        points = start + (extent / 2 if mode == "ALIGN_ENDPOINTS_MODE" else steps * 0)
    else:
        points = start + steps * (extent / (count - 1))
    return points.reshape(count).clamp(max=limit)


def resize_bilinear(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Resize [.., H, W] to `targetSize`."""
    import torch

    need_rank(layer, x, 2)
    for axis, count in zip((-2, -1), layer["targetSize"]):
        extent = torch.tensor(float(x.shape[axis] - 1), dtype=torch.float64)
        x = sample(x, grid(layer["samplingMethod"], extent * 0, extent, count, x.shape[axis] - 1), axis)
    return x


_CORNERS = {
    "CORNERS_HEIGHT_FIRST": (0, 1, 2, 3),
    "CORNERS_WIDTH_FIRST": (1, 0, 3, 2),
    "CENTER_SIZE_HEIGHT_FIRST": (0, 1, 2, 3),
    "CENTER_SIZE_WIDTH_FIRST": (1, 0, 3, 2),
}
"""Box mode -> where height and width of the first pair, then of the second, stand in a box."""


def _corners(layer: Layer, box: torch.Tensor, sizes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (start [2], extent [2]) of a box in the order height, width, in pixels."""
    import torch

    ordered = box.to(torch.float64)[list(_CORNERS[layer["boxMode"]])]
    first, second = ordered[:2], ordered[2:]
    if layer["boxMode"].startswith("CENTER"):
        first, second = first - second / 2, first + second / 2
    scale = torch.tensor(
        [float(size - 1) if layer["normalizedCoordinates"] else 1.0 for size in sizes], dtype=torch.float64
    )
    scale = scale * layer["spatialScale"]
    return first * scale, (second - first) * scale


def crop_resize(layer: Layer, x: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """x [1, B, C, H, W], boxes [N, 1, 4 or 5, 1, 1] -> [N, B (or 1, where the box names its image), C, h, w]."""
    import torch

    need_rank(layer, x, 5, 5)
    need_rank(layer, boxes, 5, 5)
    if layer["spatialScale"] == 0:
        raise layer.refuse("has no spatialScale, and what that means is not documented")
    sizes, found = x.shape[-2:], []
    for box in boxes.reshape(len(boxes), -1):
        image = x[0] if len(box) == 4 else x[0, int(box[0])].unsqueeze(0)
        start, extent = _corners(layer, box[-4:], sizes)
        last = start + extent
        if bool((start < 0).any()) or bool((last[0] > sizes[0] - 1) | (last[1] > sizes[1] - 1)):
            raise layer.refuse("crops beyond its image; what stands there is not documented")
        for axis, count in zip((-2, -1), layer["targetSize"]):
            points = grid(layer["samplingMethod"], start[axis], extent[axis], count, x.shape[axis] - 1)
            image = sample(image, points, axis)
        found.append(image)
    return torch.stack(found)


def reorganize(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Move blocks between the channels and the plane of [.., C, H, W]."""
    need_rank(layer, x, 3)
    return folded(x, 3, lambda y: _reorganized(y, layer["mode"], layer["blockSize"]))


def _reorganized(x: torch.Tensor, mode: str, block: int) -> torch.Tensor:
    count, channels, height, width = x.shape
    if mode == "SPACE_TO_DEPTH":
        cut = x.reshape(count, channels, height // block, block, width // block, block).permute(0, 3, 5, 1, 2, 4)
        return cut.reshape(count, channels * block * block, height // block, width // block)
    inner = channels // (block * block)
    if mode == "PIXEL_SHUFFLE":  # a channel of the result is block * block channels in a row
        spread = x.reshape(count, inner, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        spread = x.reshape(count, block, block, inner, height, width).permute(0, 3, 4, 1, 5, 2)
    return spread.reshape(count, inner, height * block, width * block)


KERNELS: dict[str, LayerKernel] = {
    "crop": crop,
    "padding": padding,
    "upsample": upsample,
    "resizeBilinear": resize_bilinear,
    "cropResize": crop_resize,
    "reorganizeData": reorganize,
}
