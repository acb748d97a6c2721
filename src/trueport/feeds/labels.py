"""Class numbers of samples: from a table of file names, a list, or the sub-folders of a folder of pictures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trueport.errors import UsageError
from trueport.feeds.arrays import read_npy

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def pictures_in(folder: Path) -> list[Path]:
    """Every picture below `folder`, sorted by its relative path with "/" so that all platforms agree."""
    found = [item for item in folder.rglob("*") if item.suffix.lower() in PICTURES and item.is_file()]
    return sorted(found, key=lambda item: item.relative_to(folder).as_posix())


def load_labels(path: Path, *, files: Sequence[str] | None = None) -> np.ndarray:
    """Class numbers [N], int64.

    path: .csv with columns file and label (aligned to `files` by name) or label alone, .npy of integers, .txt with one integer per line, or a
    folder whose sub-folders are the classes, numbered in sorted order. files: relative names of the samples, if they have any.
    Raises UsageError naming the line, or the samples without a label.
    """
    if path.is_dir():
        table = path / "labels.csv"
        return load_labels(table, files=files) if table.is_file() else _from_folders(path, files)
    if not path.is_file():
        raise UsageError(f"{path}: no such file with labels")
    if path.suffix == ".npy":
        return _whole(read_npy(path), path)
    if path.suffix in (".txt", ".csv"):
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} is no readable text ({error})") from error
        return _from_csv(text, path, files) if path.suffix == ".csv" else _from_lines(text.split("\n"), path)
    raise UsageError(
        f"{path}: labels come as .csv (columns file,label), .npy, .txt (one integer per line), or a folder of class folders"
    )


def _whole(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim != 1 or array.dtype.kind not in "iu" or not array.size:
        raise UsageError(
            f"{path} must hold one row of integers, one per sample, not {array.dtype} of shape {list(array.shape)}"
        )
    return np.array(array, dtype=np.int64)


def _from_lines(lines: Sequence[str], path: Path) -> np.ndarray:
    found = [_integer(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise UsageError(f"{path} holds no labels")
    return np.array(found, dtype=np.int64)


def _integer(text: str, where: str) -> int:
    try:
        return int(text.strip())
    except ValueError:
        raise UsageError(f"{where}: {text.strip()[:40]!r} is no class number") from None


def _from_csv(text: str, path: Path, files: Sequence[str] | None) -> np.ndarray:
    rows = list(csv.DictReader(text.splitlines()))
    columns = set(rows[0]) if rows else set()
    if "label" not in columns:
        raise UsageError(f"{path} must have a header with the columns file,label and at least one row")
    numbers = [_integer(row["label"] or "", f"{path}:{line}") for line, row in enumerate(rows, start=2)]
    if files is None or "file" not in columns:
        return np.array(numbers, dtype=np.int64)
    by_name = {row["file"].replace("\\", "/"): number for row, number in zip(rows, numbers, strict=True) if row["file"]}
    missing = [name for name in files if name not in by_name and Path(name).name not in by_name]
    if missing:
        raise UsageError(f"{path} has no label for {missing[0]} ({len(missing)} of {len(files)} files have none)")
    return np.array([by_name.get(name, by_name.get(Path(name).name)) for name in files], dtype=np.int64)


def _from_folders(folder: Path, files: Sequence[str] | None) -> np.ndarray:
    names = [item.relative_to(folder).as_posix() for item in pictures_in(folder)] if files is None else list(files)
    loose = [name for name in names if "/" not in name]
    if loose or not names:
        what = f"{loose[0]} lies in no class folder" if loose else "it holds no pictures"
        raise UsageError(f"{folder} gives no labels: {what} and there is no labels.csv")
    classes = sorted({item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")})
    return np.array([classes.index(name.split("/")[0]) for name in names], dtype=np.int64)
