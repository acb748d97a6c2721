"""Reads inputs from what a user has: arrays, a folder of pictures, or lines of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from trueport.artifact import Signature
from trueport.errors import UsageError
from trueport.feeds.arrange import from_arrays
from trueport.feeds.arrays import read_npy, read_npz
from trueport.feeds.labels import load_labels
from trueport.feeds.pictures import load_pictures
from trueport.feeds.tokens import read_csv, read_jsonl
from trueport.feeds.types import Feeds
from trueport.preprocess import Preprocess


def load(
    path: Path,
    signature: Signature,
    *,
    preprocess: Preprocess | str | Path | None = None,
    limit: int | None = None,
    labels: np.ndarray | Path | None = None,
) -> Feeds:
    """Read the inputs of `signature` from `path`, the first axis being samples, in the source's layout and dtype.

    path: .npz, .npy (one input), .csv or .jsonl of tokens, or a folder of pictures.
    preprocess: for pictures: a description, its inline text, or its file; absent, the folder's own or one derived from the shape.
    limit: at most so many samples (of a folder: spread evenly over it). labels: class numbers, or where they stand.
    Raises UsageError with the cure for anything that cannot be fed.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the number of samples must be at least 1, not {limit}")
    if path.is_dir():
        return load_pictures(path, signature, preprocess, limit, labels)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder with inputs")
    if preprocess is not None:
        raise UsageError(f"a preprocessing goes with a folder of pictures, {path.name} is none")
    if path.suffix not in READERS:
        raise UsageError(f"{path}: inputs come as {', '.join(READERS)}, or a folder of pictures")
    if path.stat().st_size == 0:
        raise UsageError(f"{path}: the file is empty")
    arrays, notes = READERS[path.suffix](path, signature)
    numbers = load_labels(labels) if isinstance(labels, Path) else labels
    return from_arrays(arrays, signature, origin=str(path), limit=limit, labels=numbers, notes=notes)


Arrays = tuple[Mapping[str, np.ndarray], tuple[str, ...]]


def _npz(path: Path, signature: Signature) -> Arrays:
    return read_npz(path), ()


def _npy(path: Path, signature: Signature) -> Arrays:
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise UsageError(
            f"{path.name} holds one array, the model takes {names or 'no input'}: give an .npz with one array per input"
        )
    return {signature.inputs[0].name: read_npy(path)}, ()


READERS: Mapping[str, Callable[[Path, Signature], Arrays]] = {
    ".npz": _npz,
    ".npy": _npy,
    ".csv": read_csv,
    ".jsonl": read_jsonl,
}
