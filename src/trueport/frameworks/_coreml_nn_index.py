"""Kernels of the layers that work with places: gather, scatter, sorting, counting, and the choice among boxes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from trueport.frameworks._coreml_nn_kernel import Layer, LayerKernel, need_rank, whole

if TYPE_CHECKING:
    import torch


def _within(layer: Layer, indices: torch.Tensor, size: int) -> torch.Tensor:
    """Whole indices from 0 on; those below 0 count from the end. Raises ValueError for one outside."""
    places = indices.long()
    if places.numel() and not bool(((places >= -size) & (places < size)).all()):
        raise ValueError(f"the layer '{layer.name}' was given an index outside an axis of size {size}")
    return places.remainder(size)


def gather(layer: Layer, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Slices of an axis, which becomes the axes of the indices."""
    axis = layer["axis"] % x.dim()
    places = _within(layer, indices, x.shape[axis])
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_nd(layer: Layer, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Slices at places that the last axis of the indices spells out."""
    places = tuple(_within(layer, part, size) for part, size in zip(indices.unbind(-1), x.shape))
    return x[places]


def gather_along_axis(layer: Layer, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Elements of an axis, for each place its own."""
    axis = layer["axis"] % x.dim()
    return x.take_along_dim(_within(layer, indices, x.shape[axis]), axis)


def _assign(target: np.ndarray, place: Any, values: np.ndarray) -> None:
    target[place] = values  # of a place that is named twice, the last value counts


_MODES: dict[str, Callable[[np.ndarray, Any, np.ndarray], None]] = {
    "SCATTER_UPDATE": _assign,
    "SCATTER_ADD": np.add.at,
    "SCATTER_SUB": np.subtract.at,
    "SCATTER_MUL": np.multiply.at,
    "SCATTER_DIV": np.divide.at,
    "SCATTER_MAX": np.maximum.at,
    "SCATTER_MIN": np.minimum.at,
}


def _scattered(layer: Layer, container: torch.Tensor, place: Any, updates: torch.Tensor) -> torch.Tensor:
    """Put updates into a copy of the container, one after the other in the order of the indices."""
    import torch

    target = container.numpy().copy()
    _MODES[layer["mode"]](target, place, updates.numpy())
    return torch.from_numpy(target)


def scatter(layer: Layer, container: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """The inverse of `gather`."""
    axis = layer["axis"] % container.dim()
    places = _within(layer, indices, container.shape[axis]).numpy()
    return _scattered(layer, container, (*[slice(None)] * axis, places), updates)


def scatter_nd(layer: Layer, container: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """The inverse of `gather_nd`."""
    places = tuple(_within(layer, part, size).numpy() for part, size in zip(indices.unbind(-1), container.shape))
    return _scattered(layer, container, places, updates)


def scatter_along_axis(
    layer: Layer, container: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor
) -> torch.Tensor:
    """The inverse of `gather_along_axis`."""
    axis = layer["axis"] % container.dim()
    places: list[Any] = list(np.ogrid[tuple(slice(size) for size in indices.shape)])
    places[axis] = _within(layer, indices, container.shape[axis]).numpy()
    return _scattered(layer, container, tuple(places), updates)


def _ordered(x: torch.Tensor, axis: int, descending: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorted values and their places; of equal ones the first stays first."""
    values, places = x.sort(dim=axis, descending=descending, stable=True)
    return values, places


def top_k(layer: Layer, x: torch.Tensor, count: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest (or smallest) values along an axis, and their places."""
    axis = layer["axis"]
    size = layer["K"] if count is None else whole(count)[0]
    values, places = _ordered(x, axis, not layer["useBottomK"])
    return values.narrow(axis, 0, size), places.narrow(axis, 0, size)


def _place_of(name: str) -> LayerKernel:
    """The place of the largest or smallest value along an axis, which stays as size 1 unless it is to go."""

    def run(layer: Layer, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = getattr(x, name)(layer["axis"], keepdim=not layer["removeDim"])
        return found

    return run


def where_non_zero(_layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Places of the elements that are not 0, [count, rank]."""
    return x.nonzero()


def one_hot(layer: Layer, x: torch.Tensor, size: torch.Tensor | None = None) -> torch.Tensor:
    """`onValue` at the place that an index names, `offValue` elsewhere, along a new axis."""
    import torch

    count = layer["oneHotVectorSize"] if size is None else whole(size)[0]
    hit = x.long()[..., None] == torch.arange(count)
    off, on = (torch.tensor(layer[name], dtype=x.dtype) for name in ("offValue", "onValue"))
    axis = layer["axis"] % (x.dim() + 1)
    return torch.where(hit, on, off).movedim(-1, axis)


def cumulative_sum(layer: Layer, x: torch.Tensor, axis: torch.Tensor | None = None) -> torch.Tensor:
    """Sums up to each place of an axis, from either end, with or without the place itself."""
    along = layer["axis"] if axis is None else whole(axis)[0]
    y = x.flip(along) if layer["reverse"] else x
    found = y.cumsum(along)
    if layer["excludeFinalSum"]:
        found = found.roll(1, along)
        found.select(along, 0).zero_()
    return found.flip(along) if layer["reverse"] else found


# -- boxes


def _overlap(box: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Intersection over union of one box with each of [N, 4]; boxes are centre x, centre y, width, height."""
    low = (box[:2] - box[2:] / 2).maximum(boxes[:, :2] - boxes[:, 2:] / 2)
    high = (box[:2] + box[2:] / 2).minimum(boxes[:, :2] + boxes[:, 2:] / 2)
    common = (high - low).clamp(min=0).prod(-1)
    return common / (box[2] * box[3] + boxes[:, 2] * boxes[:, 3] - common)


def _chosen(boxes: torch.Tensor, scores: torch.Tensor, limits: dict[str, Any]) -> list[int]:
    """Places of the boxes that stay, the best first; the best of all where none is good enough."""
    best, kinds = scores.max(-1)
    _, order = _ordered(best, 0, True)
    waiting = [place for place in order.tolist() if best[place] >= limits["scoreThreshold"]]
    kept: list[int] = []
    while waiting and len(kept) < limits["maxBoxes"]:
        place = waiting.pop(0)
        kept.append(place)
        if waiting:
            hidden = _overlap(boxes[place], boxes[waiting]) > limits["iouThreshold"]
            if limits["perClassSuppression"]:
                hidden = hidden & (kinds[waiting] == kinds[place])
            waiting = [other for other, gone in zip(waiting, hidden.tolist()) if not gone]
    return kept or order[:1].tolist()


_LIMITS = ("iouThreshold", "scoreThreshold", "maxBoxes")


def non_maximum_suppression(
    layer: Layer, boxes: torch.Tensor, scores: torch.Tensor, *given: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """boxes [B, N, 4], scores [B, N, C] -> boxes [B, M, 4], scores [B, M, C], places [B, M] (-1: none), counts [B]."""
    need_rank(layer, boxes, 3, 3)
    limits = {name: layer[name] for name in (*_LIMITS, "perClassSuppression")}
    limits.update({name: float(value.reshape(-1)[0]) for name, value in zip(_LIMITS, given)})
    room = int(limits["maxBoxes"])
    count, classes = boxes.shape[0], scores.shape[-1]
    found = (
        boxes.new_zeros(count, room, 4),
        scores.new_zeros(count, room, classes),
        boxes.new_full((count, room), -1.0),
    )
    counts = boxes.new_zeros(count)
    for index in range(count):
        kept = _chosen(boxes[index], scores[index], limits)
        number = len(kept)
        found[0][index, :number], found[1][index, :number] = boxes[index, kept], scores[index, kept]
        found[2][index, :number] = boxes.new_tensor(kept)
        counts[index] = number
    return (*found, counts)


KERNELS: dict[str, LayerKernel] = {
    "gather": gather,
    "gatherND": gather_nd,
    "gatherAlongAxis": gather_along_axis,
    "scatter": scatter,
    "scatterND": scatter_nd,
    "scatterAlongAxis": scatter_along_axis,
    "topK": top_k,
    "argSort": lambda layer, x: _ordered(x, layer["axis"], layer["descending"])[1],
    "argMax": _place_of("argmax"),
    "argMin": _place_of("argmin"),
    "whereNonZero": where_non_zero,
    "oneHot": one_hot,
    "cumSum": cumulative_sum,
    "NonMaximumSuppression": non_maximum_suppression,
}
