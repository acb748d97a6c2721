"""What one output gave in one case, as arrays that can be walked in bounded memory: shapes, runs, blocks, layout.

A *value* is an array `[R, *shape]`, or a sequence of R arrays when the shape differs between runs.
Arrays may be memory-mapped and larger than memory; nothing here reads more than a block at a time.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence

import numpy as np

from trueport.artifact import Signature

Value = np.ndarray | Sequence[np.ndarray]
"""Array `[R, *shape]`, or R arrays of different shapes."""

RELEASED = 16 << 20
"""Bytes from which a memory map is given back after it was read."""

RELEASE_EVERY = 48
"""Blocks after which that is done: 48 MiB of float32 per array. Every block would spend the time on page faults."""

CHUNK = 1 << 18
"""Elements read at a time: 2 MiB as float64, so that a dozen temporaries stay far below the parent's 300 MiB."""

EXACT_KINDS = {"b": "bool", "i": "integer", "u": "integer", "U": "text", "S": "text"}
"""NumPy kinds that are compared exactly, with the word for each."""

FLOAT_KINDS = {"f": "float", "c": "complex"}
"""NumPy kinds that are compared against a noise floor."""


def kind_of(dtype: np.dtype) -> str:
    """Return "bool", "integer", "text", "float" or "complex" (or NumPy's letter for anything else)."""
    return (EXACT_KINDS | FLOAT_KINDS).get(dtype.kind, dtype.kind)


def normalise(value: Value) -> Value:
    """Stack a small sequence of equal-shaped runs into one array; leave everything else as it is."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asanyarray(value)
    runs = [np.asarray(run) for run in value]
    same = len({(run.shape, run.dtype) for run in runs}) == 1
    return np.stack(runs) if same and sum(run.size for run in runs) <= CHUNK else runs


def count_runs(value: Value) -> int:
    """R. A 0-dimensional array has no run axis and counts as no run."""
    if isinstance(value, np.ndarray):
        return value.shape[0] if value.ndim else 0
    return len(value)


def count_elements(value: Value) -> int:
    """Elements over all runs; 0 where there is no run axis."""
    if isinstance(value, np.ndarray):
        return value.size if value.ndim else 0
    return sum(run.size for run in value)


def first_runs(value: Value, count: int) -> Value:
    """The first `count` runs (a view)."""
    return value[:count]


def run_shapes(value: Value) -> tuple[tuple[int, ...], ...]:
    """Shape of each run, without the run axis."""
    if isinstance(value, np.ndarray):
        return (value.shape[1:],) * count_runs(value)
    return tuple(run.shape for run in value)


def dtypes(value: Value) -> tuple[np.dtype, ...]:
    """The different dtypes of the runs (one, unless a model gives another dtype in another run)."""
    if isinstance(value, np.ndarray):
        return (value.dtype,)
    return tuple(dict.fromkeys(run.dtype for run in value))


def permuted(value: Value, permutation: Sequence[int] | None) -> Value:
    """Transpose every run (a view); the run axis never takes part. Values of another rank come back unchanged."""
    if permutation is None:
        return value
    rank = len(permutation)
    if isinstance(value, np.ndarray):
        return value.transpose(0, *(axis + 1 for axis in permutation)) if value.ndim == rank + 1 else value
    return [run.transpose(*permutation) if run.ndim == rank else run for run in value]


def parts(*values: Value) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Cut values of equal run shapes into aligned stacks `[r, *shape]`; yields (number of the first run, stacks)."""
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    if len(arrays) == len(values):
        yield 0, arrays
        return
    for run in range(count_runs(values[0])):
        yield (
            run,
            [value[run : run + 1] if isinstance(value, np.ndarray) else value[run][np.newaxis] for value in values],
        )


def blocks(shape: Sequence[int], limit: int = CHUNK) -> Iterator[tuple[int | slice, ...]]:
    """Index tuples that cut an array of `shape` into boxes of at most `limit` elements, in C order, on any strides."""
    if 0 in shape:
        return
    inner, axis = 1, len(shape)
    while axis > 0 and inner * shape[axis - 1] <= limit:
        axis -= 1
        inner *= shape[axis]
    if axis == 0:
        yield ()
        return
    axis -= 1
    step = max(1, limit // inner)
    for outer in np.ndindex(*shape[:axis]):
        for start in range(0, shape[axis], step):
            yield (*outer, slice(start, min(start + step, shape[axis])))


def release(*arrays: np.ndarray) -> None:
    """Give pages of large read-only memory maps back to the system, so that reading all does not mean holding all.

    They stay in the file cache. Copy-on-write maps are left alone: they would lose what was written.
    """
    for array in arrays:
        base: object = array
        while isinstance(base, np.ndarray):
            if isinstance(base, np.memmap) and (base.mode != "r" or base.nbytes < RELEASED):
                break
            base = base.base
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)


def place(block: tuple[int | slice, ...], shape: Sequence[int], flat: int) -> tuple[int, ...]:
    """Index in the whole array of element number `flat` (C order) of a block from `blocks`."""
    head = [index for index in block if isinstance(index, int)]
    cut = [index for index in block if isinstance(index, slice)]
    lengths = [index.stop - index.start for index in cut] + list(shape[len(block) :])
    inside = [int(index) for index in np.unravel_index(flat, lengths)] if lengths else []
    if cut:
        inside[0] += cut[0].start
    return (*head, *inside)


def has_batch_axis(signature: Signature, output: str) -> bool:
    """Tell whether the first axis of an output counts samples: it is of free size, or as long as that of every input."""
    spec = next((spec for spec in signature.outputs if spec.name == output), None)
    if spec is None or spec.shape is None:
        return True
    if not spec.shape:
        return False
    first = spec.shape[0]
    if not isinstance(first, int):
        return True
    heads = [item.shape[0] if item.shape else None for item in signature.inputs]
    return bool(heads) and all(head == first for head in heads)


def sample_rows(value: np.ndarray, *, batch: bool) -> np.ndarray:
    """First sample of the first run."""
    row = value[0, 0] if batch and value.ndim >= 2 and value.shape[1] else value[0]
    return np.asarray(row)
