"""MIL operators that resample images: resizing in all sampling modes, crops of boxes, affine maps, free coordinates.

Points are computed in float64 and weights in the arithmetic of the program, so that a size does not decide by rounding
which pixel is read. The nearest pixel is that of the output pixel's centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._coreml_program import Call
from trueport.frameworks._mil_values import choice, flag, number, plain, whole, wholes

SAMPLING_MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def points(size: float, count: int, mode: str) -> np.ndarray:
    """Where `count` output pixels lie on an axis of `size` input pixels, before they are limited to it: float64 [count]."""
    steps = np.arange(count, dtype=np.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if count == 1:
            return np.array([(size - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0])
        return steps * ((size - 1) / (count - 1))
    if mode == "OFFSET_CORNERS":
        return (steps + 0.5) * (max(1.0, size - 1) / count)
    if mode == "UNALIGN_CORNERS":
        return (steps + 0.5) * (size / count) - 0.5
    return steps * (size / count)


def _interpolated(x: Any, axis: int, where: np.ndarray) -> Any:
    """Values between neighbours along one axis, at points limited to it."""
    import torch

    size = x.shape[axis]
    limited = np.clip(where, 0, size - 1)
    low = np.floor(limited).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    weight = torch.from_numpy(limited - low).to(x.dtype).reshape([-1] + [1] * (x.dim() - 1 - axis % x.dim()))
    before = x.index_select(axis, torch.from_numpy(low))
    if not weight.any():
        return before
    return before + (x.index_select(axis, torch.from_numpy(high)) - before) * weight


def _resized(x: Any, sizes: Sequence[int], mode: str) -> Any:
    """The last axes resized by linear interpolation, one after the other."""
    import torch

    x = x if x.is_floating_point() else x.to(torch.float64)
    for axis, count in enumerate(sizes, x.dim() - len(sizes)):
        x = _interpolated(x, axis, points(x.shape[axis], count, mode))
    return x


def _nearest(x: Any, sizes: Sequence[int]) -> Any:
    """The last axes resized to the pixel under each output pixel's centre."""
    import torch

    for axis, count in enumerate(sizes, x.dim() - len(sizes)):
        size = x.shape[axis]
        if count != size:
            x = x.index_select(axis, (2 * torch.arange(count) + 1) * size // (2 * count))
    return x


def _target(call: Call) -> list[int]:
    return [whole(call, "target_size_height", 1), whole(call, "target_size_width", 1)]


def _scaled(call: Call) -> list[int]:
    """Sizes of the last two axes after scaling: as the program declares them, else rounded down in float32 as it was made."""
    declared = call.operation.types[0].shape
    sizes = []
    for axis, argument in ((-2, "scale_factor_height"), (-1, "scale_factor_width")):
        size = declared[axis] if declared else None
        if not isinstance(size, int):
            size = int(np.floor(np.float32(number(call, argument, 1.0)) * np.float32(call["x"].shape[axis])))
        sizes.append(size)
    return sizes


def resize_bilinear(call: Call) -> Any:
    """To a size, by linear interpolation."""
    return _resized(call["x"], _target(call), choice(call, "sampling_mode", "DEFAULT", SAMPLING_MODES))


def resize_nearest_neighbor(call: Call) -> Any:
    """To a size, by the nearest pixel."""
    return _nearest(call["x"], _target(call))


def upsample_bilinear(call: Call) -> Any:
    """By a factor, by linear interpolation; the spacing follows from the rounded size."""
    corners = flag(call, "align_corners", True)
    centres = flag(call, "half_pixel_centers", not corners)
    if corners and centres:
        raise Unsupported("upsample_bilinear with both align_corners and half_pixel_centers is not documented")
    mode = "STRICT_ALIGN_CORNERS" if corners else "UNALIGN_CORNERS" if centres else "DEFAULT"
    return _resized(call["x"], _scaled(call), mode)


def upsample_nearest_neighbor(call: Call) -> Any:
    """By a factor: output pixel i reads input pixel ⌊i · size before / size after⌋."""
    import torch

    x = call["x"]
    for axis, count in enumerate(_scaled(call), x.dim() - 2):
        if count != x.shape[axis]:
            x = x.index_select(axis, torch.arange(count) * x.shape[axis] // count)
    return x


def resize(call: Call) -> Any:
    """The last `resized_dims` axes to the sizes in `shape`; 0 keeps the size."""
    x, count = call["x"], whole(call, "resized_dims", 0)
    sizes = (
        [size or x.shape[place - count] for place, size in enumerate(wholes(call, "shape")[-count:])] if count else []
    )
    mode = choice(call, "sampling_mode", "DEFAULT", SAMPLING_MODES)
    if choice(call, "interpolation_mode", "LINEAR", ("LINEAR", "NEAREST_NEIGHBOR")) == "LINEAR":
        return _resized(x, sizes, mode)
    if mode not in ("DEFAULT", "UNALIGN_CORNERS"):
        raise Unsupported(f"resize to the nearest neighbour with sampling_mode '{mode}' is not documented")
    return _nearest(x, sizes)


# -- free coordinates

PADDING_MODES = ("constant", "border", "reflection", "symmetric")


def _inside(where: Any, size: int, mode: str) -> Any:
    """Map coordinates beyond the image to those inside that continue it."""
    import torch

    if mode == "constant":
        return where
    if mode in ("reflection", "symmetric") and size > 1:
        first, length = (0.0, size - 1) if mode == "reflection" else (-0.5, size)
        turned = torch.remainder(where - first, 2 * length)
        where = torch.minimum(turned, 2 * length - turned) + first
    return where.clamp(0, size - 1)


def sample(
    x: Any, rows: Any, columns: Any, *, mode: str = "bilinear", padding: str = "constant", value: float = 0.0
) -> Any:
    """Read images at points. x [B, C, H, W]; rows and columns [B, *P] in pixels; gives [B, C, *P]."""
    import torch

    height, width = x.shape[-2:]
    batch = torch.arange(x.shape[0]).reshape([-1] + [1] * (rows.dim() - 1))

    rows, columns = _inside(rows, height, padding), _inside(columns, width, padding)

    def pixel(row: Any, column: Any) -> Any:
        found = x[batch, :, row.clamp(0, height - 1), column.clamp(0, width - 1)].movedim(-1, 1)
        if padding != "constant":
            return found
        outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
        return torch.where(outside.unsqueeze(1), torch.full((), value, dtype=x.dtype), found)

    if mode == "nearest":
        return pixel(rows.round().to(torch.int64), columns.round().to(torch.int64))
    top, left = rows.floor(), columns.floor()
    down, right = (rows - top).to(x.dtype).unsqueeze(1), (columns - left).to(x.dtype).unsqueeze(1)
    first, second = top.to(torch.int64), left.to(torch.int64)
    upper = pixel(first, second) * (1 - right) + pixel(first, second + 1) * right
    lower = pixel(first + 1, second) * (1 - right) + pixel(first + 1, second + 1) * right
    return upper * (1 - down) + lower * down


def _unnormalised(where: Any, size: int, mode: str, corners: bool) -> Any:
    """Turn coordinates of one axis into pixels."""
    if mode == "unnormalized":
        return where
    share = (where + 1) / 2 if mode == "normalized_minus_one_to_one" else where
    return share * (size - 1) if corners else share * size - 0.5


COORDINATES = ("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one")


def resample(call: Call) -> Any:
    """The image at the coordinates (x, y) of every output pixel."""
    import torch

    x, coordinates = call["x"], call["coordinates"].to(torch.float64)
    kind = choice(call, "coordinates_mode", "unnormalized", COORDINATES)
    corners = flag(call, "align_corners")
    return sample(
        x,
        _unnormalised(coordinates[..., 1], x.shape[2], kind, corners),
        _unnormalised(coordinates[..., 0], x.shape[3], kind, corners),
        mode=choice(call, "sampling_mode", "bilinear", ("bilinear", "nearest")),
        padding=choice(call, "padding_mode", "constant", PADDING_MODES),
        value=number(call, "padding_value", 0.0),
    )


def affine(call: Call) -> Any:
    """The image under a linear map of normalised coordinates: (x, y) reads (a0·x + a1·y + a2, b0·x + b1·y + b2)."""
    import torch

    x = call["x"]
    corners = flag(call, "align_corners", True)
    matrix = call["transform_matrix"].to(torch.float64).reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    tall, wide = whole(call, "output_height", 1), whole(call, "output_width", 1)
    grid = torch.nn.functional.affine_grid(matrix, [x.shape[0], x.shape[1], tall, wide], align_corners=corners)
    choice(call, "coordinates_mode", COORDINATES[1], COORDINATES[1:2])
    return sample(
        x,
        _unnormalised(grid[..., 1], x.shape[2], COORDINATES[1], corners),
        _unnormalised(grid[..., 0], x.shape[3], COORDINATES[1], corners),
        mode=choice(call, "sampling_mode", "bilinear", ("bilinear", "nearest")),
        padding=choice(call, "padding_mode", "constant", PADDING_MODES),
        value=number(call, "padding_value", 0.0),
    )


# -- boxes

BOX_MODES = ("CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST")


def _corners(call: Call, boxes: Any) -> tuple[Any, Any, Any, Any]:
    """Top, left, bottom and right of boxes [N, 4], each [N]."""
    mode = choice(call, "box_coordinate_mode", BOX_MODES[0], BOX_MODES)
    first, second, third, fourth = (boxes[:, place] for place in range(4))
    if mode.endswith("WIDTH_FIRST"):
        first, second, third, fourth = second, first, fourth, third
    if mode.startswith("CENTER"):
        return first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2
    return first, second, third, fourth


def _box_points(start: Any, end: Any, count: int, mode: str) -> Any:
    """Rows (or columns) [N, count] at which boxes from `start` to `end` are read, in the modes that a box defines."""
    import torch

    if mode not in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        grids = []
        for low, high in zip(plain(start), plain(end)):
            where = points(abs(high - low) + 1, count, mode)
            grids.append(low + np.clip(where, 0, abs(high - low)) * (1 if high >= low else -1))
        return torch.from_numpy(np.array(grids))
    grid = torch.from_numpy(points(2.0, count, mode))
    return start.unsqueeze(1) + (end - start).unsqueeze(1) * grid


def crop_resize(call: Call) -> Any:
    """Boxes cut out of images and resized by linear interpolation; a point outside of the image is `pad_value`, unmixed.

    With `roi` [N, 1, 4, 1, 1] every image gives every box, with [N, 1, 5, 1, 1] the first number says which image.
    """
    import torch

    x = call["x"]
    height, width = x.shape[-2:]
    every = False
    if "boxes" in call:
        boxes = call["boxes"].to(torch.float64)
        images = call["box_indices"].to(torch.int64) if "box_indices" in call else torch.arange(boxes.shape[0])
    else:
        roi = call["roi"].to(torch.float64)
        boxes = roi.reshape(roi.shape[0], roi.shape[2])
        every = boxes.shape[1] == 4
        images = torch.zeros(len(boxes), dtype=torch.int64) if every else boxes[:, 0].to(torch.int64)
        boxes = boxes[:, -4:]
    boxes = boxes * number(call, "spatial_scale", 1.0)
    top, left, bottom, right = _corners(call, boxes)
    if flag(call, "normalized_coordinates"):
        top, bottom, left, right = top * (height - 1), bottom * (height - 1), left * (width - 1), right * (width - 1)
    mode = choice(call, "sampling_mode", "DEFAULT", SAMPLING_MODES)
    tall, wide = whole(call, "target_height", 1), whole(call, "target_width", 1)
    rows, columns = _box_points(top, bottom, tall, mode), _box_points(left, right, wide, mode)
    rows = rows.unsqueeze(2).expand(-1, tall, wide)
    columns = columns.unsqueeze(1).expand(-1, tall, wide)
    outside = ((rows < 0) | (rows > height - 1) | (columns < 0) | (columns > width - 1)).unsqueeze(1)
    value = torch.full((), number(call, "pad_value", 0.0), dtype=x.dtype)

    def cut(image: Any) -> Any:
        return torch.where(outside, value, sample(image, rows, columns, padding="border"))

    if every:
        return torch.stack([cut(image.unsqueeze(0).expand(len(rows), -1, -1, -1)) for image in x], 1)
    return cut(x[images]) if "boxes" in call else cut(x[images]).unsqueeze(1)


KERNELS: Mapping[str, Callable[[Call], Any]] = {
    function.__name__: function
    for function in (
        resize_bilinear,
        resize_nearest_neighbor,
        upsample_bilinear,
        upsample_nearest_neighbor,
        resize,
        resample,
        affine,
        crop_resize,
    )
}
