"""A resize as products with matrices, one an axis: words that every format has, and that all compute alike."""

from __future__ import annotations

import math

import numpy as np

from trueport.diagnosis.attributes import listed, typed
from trueport.graph import Node
from trueport.repairs.rules._exact import Written, first
from trueport.repairs.rules._writer import Untranslatable, Writer, identity

TRANSFORMATIONS = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def resize(writer: Writer, node: Node) -> Written:
    """ONNX's Resize of the last two axes: a matrix from the left for the rows, one from the right for the columns."""
    data, after = first(writer, node), writer.source.shape(node.outputs[0])
    rank = len(data.shape)
    if writer.source.format != "onnx" or node.native_op != "Resize" or len(node.inputs) < 3:
        raise Untranslatable("the source's Resize is none of ONNX from opset 11 on")
    if after is None or len(after) != rank or rank < 2 or after[:-2] != data.shape[:-2]:
        raise Untranslatable("the source's Resize changes other axes than the last two")
    scales = _scales(writer, node, data.shape, after)
    given = typed(writer.source, node)
    matrices = [
        None
        if size == wanted and scale == 1
        else matrix(
            size,
            wanted,
            scale,
            mode=str(given.get("mode", "nearest")),
            transformation=str(given.get("coordinate_transformation_mode", "half_pixel")),
            rounding=str(given.get("nearest_mode", "round_prefer_floor")),
            coefficient=float(given.get("cubic_coeff_a", -0.75)),
            antialias=bool(given.get("antialias", 0)),
            exclude=bool(given.get("exclude_outside", 0)),
        )
        for size, wanted, scale in zip(data.shape[-2:], after[-2:], scales[-2:], strict=True)
    ]
    name = writer.arranged(data, identity(rank))
    rows, columns = matrices
    if rows is not None:
        name = writer.write("MatMul", [writer.array(rows), name])
    if columns is not None:
        name = writer.write("MatMul", [name, writer.array(columns.T)])
    return Written(name, identity(rank))


def _scales(writer: Writer, node: Node, before: tuple[int, ...], after: tuple[int, ...]) -> list[float]:
    """What each axis is stretched by; with a policy for the aspect ratio that is one number for all, before rounding."""
    axes = [axis % len(before) for axis in listed(node.attributes.get("axes")) or range(len(before))]
    found = [new / old for old, new in zip(before, after, strict=True)]
    operands = [writer.source.array(name) if name else None for name in (*node.inputs[2:4], "")]
    if any(name and array is None for name, array in zip(node.inputs[2:4], operands, strict=False)):
        raise Untranslatable("the sizes of the source's Resize are not known")
    scales, sizes = operands[:2]
    policy = str(node.attributes.get("keep_aspect_ratio_policy") or "stretch")
    if scales is not None and scales.size == len(axes):
        for axis, scale in zip(axes, scales.ravel(), strict=True):
            found[axis] = float(scale)
    elif sizes is not None and policy != "stretch":
        if policy not in ("not_larger", "not_smaller") or sizes.size != len(axes):
            raise Untranslatable(f"the source's Resize has the policy '{policy}'")
        ratios = [int(size) / before[axis] for axis, size in zip(axes, sizes.ravel(), strict=True)]
        common = min(ratios) if policy == "not_larger" else max(ratios)
        for axis in axes:
            found[axis] = common
    return found


def matrix(
    size: int,
    wanted: int,
    scale: float | None = None,
    *,
    mode: str = "linear",
    transformation: str = "half_pixel",
    rounding: str = "round_prefer_floor",
    coefficient: float = -0.75,
    antialias: bool = False,
    exclude: bool = False,
) -> np.ndarray:
    """[wanted, size]: the weights with which one axis of a resize makes its elements. Raises Untranslatable."""
    scale = wanted / size if scale is None else scale
    if transformation not in TRANSFORMATIONS or mode not in ("nearest", "linear", "cubic"):
        raise Untranslatable(f"the source's Resize is {mode}, {transformation}")
    at = _places(size, wanted, scale, transformation)
    found = np.zeros((wanted, size))
    if mode == "nearest":
        if antialias or rounding not in ROUNDINGS:
            raise Untranslatable(f"the source's Resize rounds by '{rounding}'")
        found[np.arange(wanted), np.clip(_rounded(at, rounding), 0, size - 1)] = 1
        return found
    shrunk = min(scale, 1.0) if antialias else 1.0
    reach = math.ceil((1 if mode == "linear" else 2) / shrunk)
    for row, place in enumerate(at):
        seen = np.arange(math.floor(place) - reach, math.floor(place) + reach + 2)
        weights = _kernel((seen - place) * shrunk, mode, coefficient)
        if exclude:
            weights[(seen < 0) | (seen >= size)] = 0
        np.add.at(found[row], np.clip(seen, 0, size - 1), weights / weights.sum())
    return found


def _places(size: int, wanted: int, scale: float, transformation: str) -> np.ndarray:
    """Where the elements of the result lie among those before."""
    x = np.arange(wanted, dtype=np.float64)
    if transformation == "asymmetric":
        return x / scale
    if transformation == "align_corners":
        return x * ((size - 1) / max(wanted - 1, 1))
    return x if transformation == "pytorch_half_pixel" and wanted == 1 else (x + 0.5) / scale - 0.5


def _rounded(at: np.ndarray, rounding: str) -> np.ndarray:
    at = np.round(at, 6)  # float32's quotients hit the middle where float64's miss it by a hair
    known = {
        "floor": np.floor(at),
        "ceil": np.ceil(at),
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
    }
    found: np.ndarray = known[rounding].astype(np.int64)
    return found


def _kernel(distance: np.ndarray, mode: str, a: float) -> np.ndarray:
    d = np.abs(distance)
    if mode == "linear":
        straight: np.ndarray = np.maximum(1 - d, 0)
        return straight
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
