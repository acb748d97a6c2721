"""Turns arrays of samples into cases: whose first axis is samples, whose is runs, and how many samples make a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trueport.artifact import Signature, TensorSpec
from trueport.dtypes import value_dtype
from trueport.errors import UsageError
from trueport.feeds.types import Case, Feeds

MAX_CHUNK = 16
"""Samples per run of a model with an open batch: enough to amortise a call, few enough to hold all activations."""
RUN_BYTES = 8 << 20
"""Bytes of one run's inputs, above which a run gets fewer samples."""
MIN_RUNS = 4
"""Runs that a data case should have: fewer cannot tell what depends on the input (METHOD, inputs)."""
BATCH_RUNS = 4
"""Runs of the case that repeats the first samples at another batch size."""
OTHER_BATCH = 3


def from_arrays(
    arrays: Mapping[str, np.ndarray],
    signature: Signature,
    *,
    origin: str = "arrays",
    seed: int = 0,
    limit: int | None = None,
    labels: np.ndarray | None = None,
    notes: tuple[str, ...] = (),
) -> Feeds:
    """Arrange one array per input, each [samples, ...] in the source's layout (or [runs, *input shape], one rank more).

    limit: take at most the first so many samples. labels: one class number per sample.
    Raises UsageError for wrong names, shapes, dtypes, NaN, illegal integers, no rows, or lengths that differ.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the number of samples must be at least 1, not {limit}")
    said = list(notes)
    found = []
    for spec in signature.inputs:
        array = np.asanyarray(_pick(arrays, spec, signature))
        _check_shape(array, spec)
        found.append(_Stack.of(spec, _cast(array, spec, said)))
    _refuse_unknown(arrays, signature)
    if not found:
        raise UsageError("the model has no inputs, so it takes no data")
    return _arrange(found, origin=origin, seed=seed, limit=limit, labels=labels, notes=said)


# What was given, checked


def _pick(arrays: Mapping[str, np.ndarray], spec: TensorSpec, signature: Signature) -> np.ndarray:
    if spec.name in arrays:
        return arrays[spec.name]
    if len(signature.inputs) == 1 and len(arrays) == 1:
        return next(iter(arrays.values()))
    given = ", ".join(arrays) or "nothing"
    raise UsageError(
        f"the data have no array for input {spec.name}; the model takes {_names(signature)}, given was {given}"
    )


def _refuse_unknown(arrays: Mapping[str, np.ndarray], signature: Signature) -> None:
    known = {spec.name for spec in signature.inputs}
    unknown = [name for name in arrays if name not in known]
    if unknown and not (len(known) == 1 and len(arrays) == 1):
        raise UsageError(f"the data name {', '.join(unknown)}, which is no input; the model takes {_names(signature)}")


def _names(signature: Signature) -> str:
    return ", ".join(spec.name for spec in signature.inputs)


def _check_shape(array: np.ndarray, spec: TensorSpec) -> None:
    """The rank must be the input's, or one more; every fixed size must be met."""
    if array.ndim == 0:
        raise UsageError(f"the array for input {spec.name} is a single number; its first axis must count the samples")
    if array.shape[0] == 0:
        raise UsageError(f"the array for input {spec.name} has no rows; give at least one sample")
    if spec.shape is None:
        return
    shape = array.shape[1:] if array.ndim == len(spec.shape) + 1 else array.shape
    fits = len(shape) == len(spec.shape) and all(
        not isinstance(want, int) or want == have or (axis == 0 and array.ndim == len(spec.shape))
        for axis, (want, have) in enumerate(zip(spec.shape, shape, strict=True))
    )
    if not fits:
        raise UsageError(
            f"input {spec.name} takes shape {_show(spec.shape)}, the array given has shape {_show(array.shape)}; "
            "its first axis counts the samples, the others must be the input's, in the source model's own layout"
        )
    if 0 in array.shape:
        raise UsageError(f"the array for input {spec.name} is empty (shape {_show(array.shape)})")


def _show(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in shape) + "]"


_ACCEPTED = {"f": "fiub", "c": "cfiub", "i": "iub", "u": "iub", "b": "b", "U": "U"}
"""Kind of an input -> kinds of arrays that are converted to it without changing a value unseen."""
_WORDS = {
    "f": "floating-point",
    "c": "complex",
    "i": "integer",
    "u": "integer",
    "b": "boolean",
    "U": "text",
    "O": "object",
}


def _cast(array: np.ndarray, spec: TensorSpec, notes: list[str]) -> np.ndarray:
    """Convert to the input's dtype. Raises UsageError when that would change what the values mean."""
    wanted = value_dtype(spec)
    if wanted is None:
        raise UsageError(f"input {spec.name} has dtype {spec.dtype}, which cannot be fed")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind not in _ACCEPTED[wanted.kind]:
        given = _WORDS.get(array.dtype.kind, str(array.dtype))
        raise UsageError(
            f"input {spec.name} takes {_WORDS[wanted.kind]} values ({wanted}), the array given holds {given} values "
            f"({array.dtype}); convert it first, knowing what the values mean"
        )
    _refuse_nan(array, spec.name)
    _check_range(array, spec, wanted)
    if array.dtype == wanted or wanted.kind == "U":
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    if cast.dtype.kind == "f" and bool(np.any(np.isinf(cast) & np.isfinite(array))):
        raise UsageError(f"input {spec.name}: a value given as {array.dtype} does not fit {wanted}; scale the data")
    notes.append(f"input {spec.name}: {array.dtype} values were converted to {wanted}")
    return cast


def _refuse_nan(array: np.ndarray, name: str) -> None:
    if array.dtype.kind not in "fc":
        return
    for row, values in enumerate(array):  # row by row, so that a large file stays mapped
        bad = np.isnan(values)
        if bad.any():
            place = [row, *(int(index) for index in np.argwhere(bad)[0])] if values.ndim else [row]
            raise UsageError(f"the data for input {name} hold NaN at {place}; remove or replace such values")


def _check_range(array: np.ndarray, spec: TensorSpec, wanted: np.dtype) -> None:
    if wanted.kind not in "iu" or array.dtype.kind == "b":
        return
    info = np.iinfo(wanted)
    low = info.min if spec.minimum is None else max(info.min, spec.minimum)
    high = info.max if spec.maximum is None else min(info.max, spec.maximum)
    least, most = int(array.min()), int(array.max())
    if least < low or most > high:
        worst = least if least < low else most
        raise UsageError(f"input {spec.name} takes integers from {low} to {high}, the data hold {worst}")


# Samples to runs


@dataclass(frozen=True, slots=True)
class _Stack:
    """One input's array with the meaning of its axis 0. runs: how many runs it makes, None when the batch is open."""

    name: str
    array: np.ndarray
    by_run: bool
    batch: int | None

    @staticmethod
    def of(spec: TensorSpec, array: np.ndarray) -> _Stack:
        by_run = spec.shape is not None and array.ndim == len(spec.shape) + 1
        first = spec.shape[0] if spec.shape else None
        return _Stack(spec.name, array, by_run, first if isinstance(first, int) else None)

    @property
    def runs(self) -> int | None:
        rows = int(self.array.shape[0])
        if self.by_run:
            return rows
        if self.batch is None:
            return None
        if rows % self.batch:
            raise UsageError(
                f"input {self.name} takes batches of exactly {self.batch}, and {rows} samples are no multiple of that; "
                f"give {rows - rows % self.batch or self.batch} samples"
            )
        return rows // self.batch

    def cut(self, start: int, runs: int, batch: int) -> np.ndarray:
        """`runs` runs of `batch` samples from row `start` on; [runs, batch, ...] (or [runs, ...] when given by run)."""
        if self.by_run:
            return self.array[start : start + runs]
        size = self.batch or batch
        return self.array[start : start + runs * size].reshape(runs, size, *self.array.shape[1:])


def _arrange(
    stacks: list[_Stack],
    *,
    origin: str,
    seed: int,
    limit: int | None,
    labels: np.ndarray | None,
    notes: list[str],
) -> Feeds:
    fixed = {stack.name: runs for stack in stacks if (runs := stack.runs) is not None}
    opened = {stack.name: len(stack.array) for stack in stacks if stack.runs is None}
    for counts in (fixed, opened):
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name}: {count}" for name, count in counts.items())
            raise UsageError(f"the inputs hold different numbers of samples ({told}); give the same number of each")
    total = next(iter(opened.values())) if opened else next(iter(fixed.values()))
    if not opened:
        return _fixed_batch(stacks, total, origin=origin, seed=seed, limit=limit, labels=labels, notes=notes)
    if fixed:
        runs = next(iter(fixed.values()))
        if total % runs:
            raise UsageError(
                f"{next(iter(fixed))} makes {runs} runs, and {total} samples of {next(iter(opened))} cannot be shared out evenly"
            )
        size = total // runs
        kept = runs if limit is None else max(1, min(runs, limit // size))
        cases = [_cut(stacks, "data", "data", 0, kept, size)]
        return _finish(cases, kept * size, total, origin, seed, labels, notes)
    return _open_batch(stacks, total, origin=origin, seed=seed, limit=limit, labels=labels, notes=notes)


def _fixed_batch(
    stacks: list[_Stack],
    runs: int,
    *,
    origin: str,
    seed: int,
    limit: int | None,
    labels: np.ndarray | None,
    notes: list[str],
) -> Feeds:
    """Each run has the model's own batch; the samples of the first input are what is counted."""
    size = 1 if stacks[0].by_run else (stacks[0].batch or 1)
    kept = runs if limit is None else max(1, min(runs, limit // size))
    return _finish([_cut(stacks, "data", "data", 0, kept, 1)], kept * size, runs * size, origin, seed, labels, notes)


def _open_batch(
    stacks: list[_Stack],
    total: int,
    *,
    origin: str,
    seed: int,
    limit: int | None,
    labels: np.ndarray | None,
    notes: list[str],
) -> Feeds:
    kept = total if limit is None else min(total, limit)
    size = chunk(kept, sum(stack.array[0].nbytes for stack in stacks))
    cases = [_cut(stacks, "data", "data", 0, kept // size, size)]
    if rest := kept % size:
        cases.append(_cut(stacks, "data-rest", "data", kept - rest, 1, rest))
    if size > 1:
        cases.append(_cut(stacks, "batch-1", "batch", 0, min(BATCH_RUNS, kept), 1))
    elif kept >= OTHER_BATCH:
        cases.append(_cut(stacks, f"batch-{OTHER_BATCH}", "batch", 0, min(2, kept // OTHER_BATCH), OTHER_BATCH))
    return _finish(cases, kept, total, origin, seed, labels, notes)


def chunk(samples: int, sample_bytes: int) -> int:
    """How many samples make one run: at most 16 and 8 MiB, at least 4 runs, and no rest where half as many leave none."""
    most = max(1, min(MAX_CHUNK, samples // MIN_RUNS, RUN_BYTES // max(1, sample_bytes)))
    even = [size for size in range(most, 0, -1) if samples % size == 0]
    return even[0] if even[0] * 2 >= most else most


def _cut(stacks: list[_Stack], name: str, kind: str, start: int, runs: int, batch: int) -> Case:
    return Case(name=name, kind=kind, inputs={stack.name: stack.cut(start, runs, batch) for stack in stacks})


def _finish(
    cases: list[Case],
    count: int,
    total: int,
    origin: str,
    seed: int,
    labels: np.ndarray | None,
    notes: list[str],
) -> Feeds:
    if labels is not None and len(labels) != total:
        raise UsageError(f"there are {len(labels)} labels for {total} samples; give one label per sample")
    if count < total:
        notes.append(f"{count} of {total} samples were used")
    return Feeds.of(
        cases, origin=origin, seed=seed, count=count, labels=None if labels is None else labels[:count], notes=notes
    )
