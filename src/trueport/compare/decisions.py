"""What a deviation does to decisions: label flips with their margins, top-k overlap, and accuracy where labels exist.

A flip is within the noise when the source's own margin between the two labels is smaller than what noise can move.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueport.compare.types import Decisions
from trueport.compare.values import CHUNK, Value, parts
from trueport.errors import UsageError

TASKS = ("auto", "classification", "regression", "detection", "segmentation", "tokens", "none")
MAX_CLASSES = 100_000
TOP_K = 5
LISTED_FLIPS = 50
"""Flips that are listed one by one, those with the largest margin first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One pair's values on one data case, in one layout. `noise`: how far noise may move one element."""

    case: str
    source: Value
    target: Value
    noise: float


@dataclass(slots=True)
class _Tally:
    count: int = 0
    flips: int = 0
    within: int = 0
    overlap: float = 0.0
    right_source: int = 0
    right_target: int = 0
    flipped: list[dict[str, Any]] = field(default_factory=list)


def looks_like_scores(value: Value, *, labelled: bool) -> bool:
    """Tell whether an output is a classifier's: [R, batch, classes] of floats whose rows are probabilities, or a
    single probability per row, or rows of logits (values of both signs; any finite values where labels are given)."""
    if not isinstance(value, np.ndarray) or value.ndim != 3 or value.dtype.kind != "f" or 0 in value.shape:
        return False
    if value.shape[2] > MAX_CLASSES:
        return False
    rows = np.asarray(value[:, : max(1, CHUNK // value.shape[2])], dtype=np.float64)[
        : max(1, CHUNK // rows_size(value))
    ]
    if not np.isfinite(rows).all():
        return False
    inside = bool(rows.min() >= 0.0 and rows.max() <= 1.0)
    if value.shape[2] == 1:
        return inside
    if inside and np.allclose(rows.sum(axis=-1), 1.0, atol=1e-2):
        return True
    return labelled or bool(rows.min() < 0.0 < rows.max())


def rows_size(value: np.ndarray) -> int:
    """Elements of one run."""
    return max(1, math.prod(value.shape[1:]))


def choose_output(task: str, outputs: Sequence[tuple[str, Value]], *, labelled: bool) -> tuple[str, str] | None:
    """Return (task, output name) to decide on, or None. `outputs`: (name, source value of a data case) in order.

    An explicit task wins over the look of the values. Raises UsageError for an unknown task, or for labels that no
    output can be held against.
    """
    if task not in TASKS:
        raise UsageError(f"unknown task '{task}'; it is one of {', '.join(TASKS)}")
    found = None
    if task == "auto":
        found = next((name for name, value in outputs if looks_like_scores(value, labelled=labelled)), None)
        task = "classification"
    elif task in ("classification", "tokens", "segmentation"):
        low = 2 if task == "classification" else 3
        found = next(
            (n for n, v in outputs if isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.ndim >= low and v.size),
            None,
        )
        if found is None:
            raise UsageError(f"--task {task}: no output of the source has a class axis of floating-point scores")
    if found is None and labelled:
        raise UsageError("labels were given, but no output looks like class scores; name the task with --task")
    return None if found is None else (task, found)


def decide(task: str, cases: Sequence[Scores], labels: np.ndarray | None, *, labelled_case: str = "data") -> Decisions:
    """Count decisions over data cases. `labels`: one integer per sample of all cases, or of `labelled_case` alone.

    Raises UsageError when the number, dtype or range of the labels does not fit.
    """
    tally = _Tally()
    expected = _labels_of(cases, labels, labelled_case, task)
    for scores in cases:
        wanted = expected.get(scores.case)
        done = 0
        for run, source, target in _rows(scores, task):
            given = None if wanted is None else wanted[done : done + len(source)]
            done += len(source)
            _count(tally, scores, run, source, target, given)
    labelled = sum(len(wanted) for wanted in expected.values())
    tally.flipped.sort(key=lambda flip: (-flip["margin"], flip["case"], flip["run"]))
    return Decisions(
        task=task,
        count=tally.count,
        top1_flips=tally.flips,
        flips_within_noise=tally.within,
        topk_overlap=tally.overlap / tally.count if tally.count else 0.0,
        accuracy_source=tally.right_source / labelled if labelled else None,
        accuracy_target=tally.right_target / labelled if labelled else None,
        flipped=tuple(tally.flipped[:LISTED_FLIPS]),
    )


def _class_axis(shape: Sequence[int], task: str) -> int:
    """Axis of the classes in one run: the last; for segmentation, axis 1 of [batch, classes, height, width]."""
    if task == "segmentation" and len(shape) == 4 and shape[1] < min(shape[2], shape[3]) and shape[1] < shape[3]:
        return 1
    return len(shape) - 1


def _rows(scores: Scores, task: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Rows [n, classes] of both sides, run by run, in blocks of bounded size; classes are moved to the last axis."""
    for first, (source, target) in parts(scores.source, scores.target):
        axis = _class_axis(source.shape[1:], task) + 1
        for run in range(source.shape[0]):
            left = np.moveaxis(source[run], axis - 1, -1) if source.ndim > 1 else source[run].reshape(1)
            right = np.moveaxis(target[run], axis - 1, -1) if target.ndim > 1 else target[run].reshape(1)
            left, right = left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1])
            step = max(1, CHUNK // left.shape[1])
            for start in range(0, len(left), step):
                yield first + run, _clean(left[start : start + step]), _clean(right[start : start + step])


def _clean(rows: np.ndarray) -> np.ndarray:
    """Rows as float64 with two or more classes: NaN never wins, and one probability p becomes the pair (1 - p, p)."""
    rows = np.where(np.isnan(rows), -np.inf, rows).astype(np.float64)
    return np.concatenate([1.0 - rows, rows], axis=1) if rows.shape[1] == 1 else rows


def _count(
    tally: _Tally, scores: Scores, run: int, source: np.ndarray, target: np.ndarray, labels: np.ndarray | None
) -> None:
    """Add the decisions of one block of rows."""
    top_source, top_target = source.argmax(axis=1), target.argmax(axis=1)
    tally.count += len(source)
    tally.overlap += _overlap(source, target)
    if labels is not None:
        tally.right_source += int((top_source == labels).sum())
        tally.right_target += int((top_target == labels).sum())
    for row in np.flatnonzero(top_source != top_target):
        with np.errstate(invalid="ignore"):
            margin = float(source[row, top_source[row]] - source[row, top_target[row]])
        # Both labels' scores move, towards each other at worst.
        within = margin <= 2.0 * scores.noise
        tally.flips += 1
        tally.within += within
        tally.flipped.append(
            {
                "case": scores.case,
                "run": run,
                "row": int(row),
                "source_label": int(top_source[row]),
                "target_label": int(top_target[row]),
                "margin": margin,
                "within_noise": bool(within),
            }
        )
        if len(tally.flipped) > 20 * LISTED_FLIPS:
            tally.flipped = sorted(tally.flipped, key=lambda flip: -flip["margin"])[:LISTED_FLIPS]


def _overlap(source: np.ndarray, target: np.ndarray) -> float:
    """Sum over rows of |top-k of source ∩ top-k of target| / k. k = 5, or one less than the classes when there are
    fewer than six: with k = classes the overlap would always be 1."""
    classes = source.shape[1]
    k: int = min(TOP_K, classes - 1)
    hits = np.zeros(source.shape, dtype=np.int8)
    for rows in (source, target):
        # A stable sort, so that ties fall the same way on both sides.
        np.put_along_axis(hits, (best := _top(rows, k)), np.take_along_axis(hits, best, axis=1) + 1, axis=1)
    return int(np.count_nonzero(hits == 2)) / k


def _top(rows: np.ndarray, k: int) -> np.ndarray:
    order: np.ndarray = np.argsort(-rows, axis=1, kind="stable")
    return order[:, :k]


def _labels_of(
    cases: Sequence[Scores], labels: np.ndarray | None, labelled_case: str, task: str
) -> Mapping[str, np.ndarray]:
    """Labels of each case, checked."""
    if labels is None:
        return {}
    labels = np.asarray(labels)
    if labels.dtype.kind == "f" and labels.size and bool(np.all(labels == np.round(labels))):
        labels = labels.astype(np.int64)
    if labels.ndim != 1 or labels.dtype.kind not in "biu":
        raise UsageError(f"labels must be one integer per sample, but are {labels.dtype} of shape {list(labels.shape)}")
    counts = {scores.case: 0 for scores in cases}
    classes = 2
    for scores in cases:
        for _, rows, _ in _rows(scores, task):
            counts[scores.case] += len(rows)
            classes = max(classes, rows.shape[1])
    if len(labels) == counts.get(labelled_case, -1):
        counts = {labelled_case: len(labels)}
    elif len(labels) != sum(counts.values()):
        raise UsageError(f"{len(labels)} labels for {sum(counts.values())} samples; give one label per sample")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UsageError(f"labels reach from {labels.min()} to {labels.max()}, but the output has {classes} classes")
    ends = np.cumsum(list(counts.values()))[:-1]
    return dict(zip(counts, np.split(labels, ends), strict=True))
