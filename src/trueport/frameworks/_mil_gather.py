"""MIL operators that read or write at computed places: gather, scatter, suppression of overlapping boxes, classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from trueport.frameworks._base import Unsupported
from trueport.frameworks._coreml_program import Call
from trueport.frameworks._mil_values import choice, flag, number, plain, whole

_OLD = ("", "CoreML5", "CoreML6")
"""Opsets in which a negative index counts from the end; later ones leave open what it means."""


def _wrapped(call: Call, indices: Any, size: int) -> Any:
    """Indices as int64, from the front. Raises Unsupported for one that reads or writes what nothing defines."""
    import torch

    indices = indices.to(torch.int64)
    opset = str(call.evaluator.program.meta.get("opset", ""))
    least = -size if opset in _OLD else 0
    if indices.numel() and (int(indices.min()) < least or int(indices.max()) >= size):
        raise Unsupported(
            f"{call.operation.kind} '{call.operation.name}' gets an index outside of {least} to {size - 1}, "
            "for which Core ML defines no result"
        )
    return torch.where(indices < 0, indices + size, indices)


def gather(call: Call) -> Any:
    """Slices of `axis` at the indices; the first `batch_dims` axes of both run together."""
    import torch

    x, indices = call["x"], call["indices"]
    axis, batch = whole(call, "axis", 0) % call["x"].dim(), whole(call, "batch_dims", 0)
    indices = _wrapped(call, indices, x.shape[axis])
    if batch == 0:
        found = x.index_select(axis, indices.reshape(-1))
        return found.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])
    lead = x.shape[:batch]
    flat, places = x.reshape(-1, *x.shape[batch:]), indices.reshape(-1, *indices.shape[batch:])
    inner = axis - batch
    rows = [
        row.index_select(inner, place.reshape(-1)).reshape([*row.shape[:inner], *place.shape, *row.shape[inner + 1 :]])
        for row, place in zip(flat, places)
    ]
    found = torch.stack(rows)
    return found.reshape([*lead, *found.shape[1:]])


def gather_along_axis(call: Call) -> Any:
    """x at the indices along `axis`, every other axis at its own place."""
    import torch

    x, axis = call["x"], whole(call, "axis", 0)
    return torch.take_along_dim(x, _wrapped(call, call["indices"], x.shape[axis]), axis)


def _flat_places(call: Call, indices: Any, sizes: list[int]) -> Any:
    """Turn index vectors (last axis) into numbers of slices of the axes that they index."""
    import torch

    total = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for place, size in enumerate(sizes):
        total = total * size + _wrapped(call, indices[..., place], size)
    return total


def gather_nd(call: Call) -> Any:
    """The slices that the vectors along the last axis of `indices` name."""
    import torch

    x, indices = call["x"], call["indices"]
    batch, depth = whole(call, "batch_dims", 0), call["indices"].shape[-1]
    sizes = list(x.shape[batch : batch + depth])
    rest = x.shape[batch + depth :]
    places = _flat_places(call, indices, sizes)
    if batch == 0:
        return x.reshape(-1, *rest)[places]
    rows = x.reshape(-1, int(torch.tensor(sizes).prod()), *rest)
    flat = places.reshape(len(rows), -1)
    found = torch.stack([row[place] for row, place in zip(rows, flat)])
    return found.reshape([*indices.shape[:-1], *rest])


MODES = ("update", "add", "sub", "mul", "div", "max", "min")


def _last_of_each(places: Any) -> Any:
    """For every update the number of the last one with the same place, so that it does not matter which is written last."""
    import torch

    unique, which = places.unique(return_inverse=True)
    last = torch.zeros(len(unique), dtype=torch.int64)
    last = last.scatter_reduce(0, which, torch.arange(len(places)), "amax")
    return last[which]


def _put(data: Any, places: Any, updates: Any, mode: str) -> Any:
    """Write updates [N] at places [N] of the flattened data; of several updates with one place, all count, the last in "update"."""
    import torch

    flat, places, updates = data.reshape(-1).clone(), places.reshape(-1), updates.reshape(-1).to(data.dtype)
    if mode == "update":
        flat[places] = updates[_last_of_each(places)]
    elif mode in ("add", "sub"):
        flat.index_add_(0, places, updates, alpha=1 if mode == "add" else -1)
    elif mode == "div":
        flat = flat / torch.ones_like(flat).scatter_reduce(0, places, updates, "prod")
    else:
        flat = flat.scatter_reduce(0, places, updates, {"mul": "prod", "max": "amax", "min": "amin"}[mode])
    return flat.reshape(data.shape)


def _mode(call: Call) -> str:
    if "mode" not in call:
        raise Unsupported(f"{call.operation.kind} without a mode: its documentation names two defaults")
    return choice(call, "mode", "add", MODES)


def _numbers(data: Any) -> Any:
    import torch

    return torch.arange(data.numel()).reshape(data.shape)


def scatter(call: Call) -> Any:
    """Slices written at the indices (a vector) of `axis`."""
    data, axis = call["data"], whole(call, "axis", 0)
    places = _numbers(data).index_select(axis, _wrapped(call, call["indices"], data.shape[axis]).reshape(-1))
    return _put(data, places, call["updates"].expand(places.shape), _mode(call))


def scatter_along_axis(call: Call) -> Any:
    """Values written at the indices along `axis`, every other axis at its own place."""
    import torch

    data, axis = call["data"], whole(call, "axis", 0)
    places = torch.gather(_numbers(data), axis, _wrapped(call, call["indices"], data.shape[axis]))
    return _put(data, places, call["updates"], _mode(call))


def scatter_nd(call: Call) -> Any:
    """Slices written where the vectors along the last axis of `indices` say."""
    data, indices = call["data"], call["indices"]
    depth = indices.shape[-1]
    slices = _flat_places(call, indices, list(data.shape[:depth]))
    places = _numbers(data).reshape(-1, *data.shape[depth:])[slices]
    return _put(data, places, call["updates"], _mode(call))


# -- boxes and classes


def _overlaps(boxes: Any) -> Any:
    """Intersection over union of every pair of boxes [B, 4] (centre x, centre y, width, height): [B, B]."""
    import torch

    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    sides = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0)
    common = sides.prod(-1)
    area = boxes[:, 2:].prod(-1)
    return common / (area[:, None] + area - common)


def _survivors(boxes: Any, scores: Any, call: Call) -> list[int]:
    """Numbers of the boxes that stay, the best first. boxes [B, 4], scores [B, K]."""
    best, classes = scores.max(-1)
    overlaps = _overlaps(boxes)
    limit, least = number(call, "iou_threshold", 0.0), number(call, "score_threshold", -float("inf"))
    apart = flag(call, "per_class_suppression")
    kept: list[int] = []
    for place in plain(best.argsort(descending=True, stable=True)):
        if len(kept) == whole(call, "max_boxes", 0) or float(best[place]) < least:
            break
        rivals = [other for other in kept if not apart or classes[other] == classes[place]]
        if all(float(overlaps[place, other]) <= limit for other in rivals):
            kept.append(place)
    return kept


def non_maximum_suppression(call: Call) -> Any:
    """The best boxes that do not overlap a better one: boxes, scores and indices, filled up with 0, 0 and −1.

    Before iOS 17 boxes lie along axis 1 and a fourth result counts them; from then on along the last axis.
    """
    import torch

    old = "score_threshold" in call
    boxes, scores = call["boxes"], call["scores"]
    if not old:
        boxes, scores = boxes.transpose(1, 2), scores.transpose(1, 2)
    count, (batch, _, classes) = whole(call, "max_boxes", 0), scores.shape
    kept_boxes, kept_scores = boxes.new_zeros(batch, count, 4), scores.new_zeros(batch, count, classes)
    indices, counts = torch.full((batch, count), -1), torch.zeros(batch, dtype=torch.int64)
    for place in range(batch):
        kept = _survivors(boxes[place], scores[place], call)
        counts[place] = len(kept)
        kept_boxes[place, : len(kept)] = boxes[place, kept]
        kept_scores[place, : len(kept)] = scores[place, kept]
        indices[place, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
    if old:
        return kept_boxes, kept_scores, indices, counts
    return kept_boxes.transpose(1, 2).contiguous(), kept_scores.transpose(1, 2).contiguous(), indices


def classify(call: Call) -> Any:
    """The class of the largest probability, and the probabilities in the order of the classes."""
    probabilities = call["probabilities"]
    classes = call.all("classes")
    classes = classes[0] if len(classes) == 1 and isinstance(classes[0], list) else classes
    best = classes[int(probabilities.argmax())]
    return best, probabilities


KERNELS: Mapping[str, Callable[[Call], Any]] = {
    function.__name__: function
    for function in (
        gather,
        gather_along_axis,
        gather_nd,
        scatter,
        scatter_along_axis,
        scatter_nd,
        non_maximum_suppression,
        classify,
    )
}
