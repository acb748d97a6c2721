"""Cuts feeds to what two models can both take: runs of the batch that either side fixes, no case that is impossible."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from trueport.artifact import Signature, TensorSpec
from trueport.feeds.dims import batch_axes
from trueport.feeds.types import Case, Feeds
from trueport.frameworks._base import Dim
from trueport.reconcile import InputMap, reconcile_inputs

LOST = "the target has lost the dynamic batch"


def restrict(feeds: Feeds, source: Signature, target: Signature, *, mapping: InputMap | None = None) -> Feeds:
    """The cases that both models can take, in the source's layout; `notes` says what was regrouped or left out.

    mapping: how the inputs correspond (absent: found from the signatures). No sample of a data case is lost: when the
    fixed batch does not divide their number, the last run is filled up with the first samples again (and their labels).
    May return no case at all; then the models have no common input shape, and nothing can be compared.
    """
    found = reconcile_inputs(source, target) if mapping is None else mapping
    wanted = _wanted(source, target, found)
    axes = batch_axes(source)
    sizes = {wanted[name][axis] for name, axis in axes.items() if axis is not None and name in wanted}
    fixed = {size for size in sizes if isinstance(size, int)}
    size = fixed.pop() if len(fixed) == 1 else None
    notes: list[str] = []
    cases: list[Case] = []
    labels = feeds.labels
    for case in feeds.cases if size is None else _joined(feeds.cases, axes):
        if size is not None and case.kind == "batch" and _batch(case, axes) not in (None, size):
            _say(notes, LOST)
            continue
        moved = case if size is None or _batch(case, axes) in (None, size) else _rechunk(case, axes, size)
        if moved is None or not _taken(moved, wanted):
            _say(notes, f"case {case.name} was left out: its shapes are not among those that the target takes")
            continue
        if moved is not case:
            _say(notes, f"samples were regrouped into runs of {size}, the batch that the target fixes")
        cases.append(moved)
    kept = {case.name for case in cases}
    if labels is not None and not all(
        case.name in kept or case.name.endswith("-rest") for case in feeds.of_kind("data")
    ):
        labels = None
        _say(notes, "labels were dropped with the samples that were left out")
    if labels is not None and size is not None:
        labels = np.resize(labels, _data_samples(cases, axes, len(labels)))
    count = _data_samples(cases, axes, feeds.count) if size is not None else feeds.count
    if len(cases) == len(feeds.cases) and all(map(operator.is_, cases, feeds.cases)):
        return replace(feeds, notes=(*feeds.notes, *notes))
    told = (*feeds.notes, *notes)
    return Feeds.of(cases, origin=feeds.origin, count=count, seed=feeds.seed, labels=labels, notes=told)


def _say(notes: list[str], sentence: str) -> None:
    if sentence not in notes:
        notes.append(sentence)


def _wanted(source: Signature, target: Signature, mapping: InputMap) -> dict[str, list[Dim]]:
    """Source input -> sizes that the target (or the source) fixes, in the source's order of axes."""
    specs: Mapping[str, TensorSpec] = {spec.name: spec for spec in target.inputs}
    own = {spec.name: spec for spec in source.inputs}
    found: dict[str, list[Dim]] = {}
    for rule in mapping.rules:
        ours, theirs = own[rule.source].shape, specs[rule.target].shape
        if ours is None or theirs is None or len(ours) != len(theirs):
            continue
        order = rule.permutation or tuple(range(len(ours)))
        dims: list[Dim] = list(ours)
        for place, axis in enumerate(order):
            if isinstance(theirs[place], int):
                dims[axis] = theirs[place]
        found[rule.source] = dims
    return found


def _taken(case: Case, wanted: Mapping[str, list[Dim]]) -> bool:
    """Whether every array has the sizes that are fixed."""
    return all(
        not isinstance(dim, int) or dim == have
        for name, dims in wanted.items()
        if name in case.inputs and len(dims) == case.inputs[name].ndim - 1
        for dim, have in zip(dims, case.inputs[name].shape[1:], strict=True)
    )


def _batch(case: Case, axes: Mapping[str, int | None]) -> int | None:
    """Samples per run, None when no input has a batch axis."""
    found = (
        case.inputs[name].shape[axis + 1] for name, axis in axes.items() if axis is not None and name in case.inputs
    )
    return next(found, None)


def _data_samples(cases: list[Case], axes: Mapping[str, int | None], otherwise: int) -> int:
    data = [case for case in cases if case.kind == "data"]
    return sum(case.runs * (_batch(case, axes) or 1) for case in data) if data else otherwise


def _joined(cases: tuple[Case, ...], axes: Mapping[str, int | None]) -> list[Case]:
    """Put "X-rest" back behind "X", as single-sample runs, so that regrouping fills up at the end only."""
    rests = {case.name: case for case in cases if case.name.endswith("-rest")}
    found = []
    for case in cases:
        rest = rests.get(f"{case.name}-rest")
        if case.name in rests:
            continue
        ones = None if rest is None else [_rechunk(part, axes, 1) for part in (case, rest)]
        if ones is None or ones[0] is None or ones[1] is None:
            found.append(case)
            continue
        inputs = {name: np.concatenate([ones[0].inputs[name], ones[1].inputs[name]]) for name in case.inputs}
        found.append(replace(case, inputs=inputs))
    return found


def _rechunk(case: Case, axes: Mapping[str, int | None], size: int) -> Case | None:
    """The same samples in runs of `size`; None when an input that all samples of a run share differs between merged runs."""
    have = _batch(case, axes)
    if have is None or have == size:
        return case
    samples = case.runs * have
    runs = -(-samples // size)
    order = np.arange(runs * size) % samples
    inputs = {}
    for name, array in case.inputs.items():
        axis = axes.get(name)
        if axis is None:
            shared = array[order // have].reshape(runs, size, *array.shape[1:])
            if not bool(np.all(shared == shared[:, :1])):
                return None
            inputs[name] = shared[:, 0]
            continue
        front = np.moveaxis(array, axis + 1, 1)
        flat = front.reshape(samples, *front.shape[2:])[order].reshape(runs, size, *front.shape[2:])
        inputs[name] = np.moveaxis(flat, 1, axis + 1)
    return replace(case, inputs=inputs)
