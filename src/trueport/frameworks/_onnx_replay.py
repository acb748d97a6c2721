"""Runs an ONNX model cut open: values put in from outside, and only what the wanted values need of the rest.

An operator that refuses what it is given spoils only what depends on it: the rest is computed all the same.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import _onnx_cut, _onnx_file, _onnx_run, _onnx_trace
from trueport.frameworks._base import Arrays, Emit

VARIANTS = ("default", "no-optimization", "single-thread", "reference")
_BLAMED = re.compile(r"Name:'([^']*)' Status Message|Node ?(?:\(| with name ')([^)']*)[)']")
"""How ONNX Runtime names the node that fails, when it runs and when it loads."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


def replay(
    path: str, inputs: Arrays, given: Arrays, wanted: Sequence[str], emit: Emit, *, variant: str, budget: int
) -> dict[str, Any]:
    """Emit each wanted value [R, *shape] as computed from `given`; see `Framework.replay`. Returns {"skipped": name -> why}.

    A value that cannot be computed (an operator refuses the shapes that it is given) is skipped, the others are not.
    Raises ValueError for a name that is no value of the model and for an input that is needed and missing.
    """
    index = _onnx_cut.index(path)
    if variant not in ("", *VARIANTS, *_onnx_run.LEVELS) and not variant.startswith(_onnx_run.WITHOUT):
        raise ValueError(f"there is no variant '{variant}'; known are {', '.join(VARIANTS)}")
    _check_names(path, [*given, *wanted])
    job = _Job(path, index, inputs, given, variant or _onnx_cut.VARIANT)
    for name in dict.fromkeys(wanted):
        if name in index.inputs:  # nothing computes it
            emit(name, np.asarray(inputs[name] if name in inputs else given[name]))
    skipped: dict[str, str] = {}
    names = [name for name in dict.fromkeys(wanted) if name not in index.inputs]
    for group in _onnx_trace.windows(job.costs(names, skipped), budget):
        for name, array in job.values(group, skipped):
            emit(name, array)
    return {"skipped": skipped}


class _Job:
    """One call of `replay`: R runs of some cuts of one model."""

    def __init__(self, path: str, index: _onnx_cut.Index, inputs: Arrays, given: Arrays, variant: str) -> None:
        self.path, self.index, self.variant = path, index, variant
        self.feeds = {**inputs, **given}
        self.given = given
        self.runs = _onnx_run.count_runs(self.feeds)

    def costs(self, names: Sequence[str], skipped: dict[str, str]) -> dict[str, int]:
        """Bytes that each value takes, over all runs. One value alone is not measured: it is computed whatever it costs."""
        costs = dict.fromkeys(names, 0)
        if len(names) < 2:
            return costs
        kinds = _onnx_cut.dtypes(self.path)
        # A value that is put in tells its size; the others are measured on the first run, without being held.
        costs.update({name: self.given[name].nbytes for name in names if name in self.given})
        unknown = [name for name in names if name not in self.given]
        counts = dict(self.values([_onnx_cut.NUMBER + name for name in unknown], skipped, runs=1)) if unknown else {}
        for name in unknown:
            if _onnx_cut.NUMBER + name in skipped:
                skipped[name] = skipped.pop(_onnx_cut.NUMBER + name)
                del costs[name]
                continue
            elements = int(np.sum(counts[_onnx_cut.NUMBER + name]))
            costs[name] = elements * _onnx_trace.item_size(kinds[name]) * (self.runs + 1)
        return costs

    def values(
        self, names: Sequence[str], skipped: dict[str, str], *, runs: int | None = None
    ) -> list[tuple[str, np.ndarray]]:
        """Compute these values together; when an operator fails, those that depend on it are skipped and the rest tried again."""
        waiting = [list(names)]
        found: list[tuple[str, np.ndarray]] = []
        while waiting:
            group = waiting.pop()
            if not group:
                continue
            try:
                loaded = self._runner(tuple(group))
                count = runs or self.runs
                kept, uneven = _onnx_trace.collect(loaded, (self._feeds(loaded, run) for run in range(count)), count)
            except (ValueError, MemoryError):
                raise
            except Exception as error:  # noqa: BLE001 -- whatever an operator says of values it does not expect
                waiting += self._without_failed(group, str(error), skipped)
                continue
            found += [(name, kept[place]) for place, name in enumerate(group) if place in kept]
            skipped.update({group[place]: "its shape differs between runs" for place in uneven})
        return found

    def _runner(self, names: tuple[str, ...]) -> _onnx_run.Runner:
        shapes = tuple((name, self.given[name].shape[1:]) for name in sorted(self.given))
        if self.variant == _onnx_cut.VARIANT:  # sizes are nothing to kernels without an optimiser: one cut serves all
            shapes = tuple((name, ()) for name, _ in shapes)
        return _loaded(self.path, _onnx_file.modified(self.path), self.variant, shapes, names)

    def _feeds(self, loaded: _onnx_run.Runner, run: int) -> Arrays:
        missing = [name for name in loaded.inputs if name not in self.feeds]
        if missing:
            raise ValueError(f"the input {missing[0]!r} is needed to compute what is wanted; give it")
        return {name: cast(np.asarray(self.feeds[name][run]), dtype) for name, dtype in loaded.inputs.items()}

    def _without_failed(self, group: list[str], text: str, skipped: dict[str, str]) -> list[list[str]]:
        """Skip what depends on the node that the message names; where it names none, halve the group."""
        if "bad_alloc" in text:
            raise MemoryError(text)
        reason = " ".join(text.split())[:300]
        match = _BLAMED.search(text)
        blamed = next((name for name in match.groups() if name), "") if match else ""
        lost = _onnx_cut.dependants(self.index, set(self.given), group, blamed)
        if len(group) == 1 or len(lost) == len(group):
            skipped.update(dict.fromkeys(group, reason))
            return []
        if lost:
            skipped.update(dict.fromkeys(lost, reason))
            return [[name for name in group if name not in lost]]
        return [group[: len(group) // 2], group[len(group) // 2 :]]


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """Bring one run's array to the dtype of the value that it stands for; to integers it is rounded and limited."""
    if dtype == "str":
        return array.astype(object)
    kind = np.dtype(dtype)
    if kind.kind in "iu" and array.dtype.kind == "f":
        limits = np.iinfo(kind)
        whole = np.nan_to_num(np.rint(array.astype(np.float64)), nan=0.0)
        # The largest int64 is no float: from there on the cast would wrap round.
        beyond = whole >= float(limits.max)
        inside = np.clip(np.where(beyond, 0.0, whole), float(limits.min), None).astype(kind)
        return np.where(beyond, kind.type(limits.max), inside)
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(kind, copy=False)


def _check_names(path: str, names: Sequence[str]) -> None:
    known = _onnx_cut.dtypes(path)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"the model has no value named {unknown[0]!r} that can be put in or shown ({len(unknown)} such)"
        )


@functools.lru_cache(maxsize=2)
def _loaded(path: str, changed: int, variant: str, given: Shapes, wanted: tuple[str, ...]) -> _onnx_run.Runner:
    """Load a cut; a search asks for the same one again and again, with other values."""
    declared = {name: shape if variant != _onnx_cut.VARIANT else None for name, shape in given}
    if variant != "reference":
        return _onnx_run.wrap(_onnx_cut.load(path, variant, declared, wanted))
    from onnx.external_data_helper import load_external_data_for_model

    model = _onnx_cut.cut(path, declared, wanted)
    load_external_data_for_model(model, str(Path(path).parent))
    plain = _onnx_run.runner(path, "no-optimization", model=model)
    return _onnx_run.reference_runner(model, plain.inputs)
