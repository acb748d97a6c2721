"""Reads lines of tokens: `.jsonl` (an object per line) and `.csv` (a header of input names, or a row of ids per line)."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.artifact import Signature, TensorSpec
from trueport.dtypes import value_dtype
from trueport.errors import UsageError

Rows = dict[str, list[Any]]
"""Input name -> one nested list (or number, or text) per sample."""


def read_jsonl(path: Path, signature: Signature) -> tuple[Mapping[str, np.ndarray], tuple[str, ...]]:
    """Read {"input": [ids], ...} per line (or a bare list for a model with one input). Returns arrays and notes."""
    rows: Rows = {}
    samples = 0
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}:{number} is no JSON ({str(error)[:80]})") from error
        if not isinstance(value, dict):
            value = {_only(signature, path, number): value}
        samples += 1
        for name, item in value.items():
            rows.setdefault(name, []).append(item)
        uneven = next((name for name, items in rows.items() if len(items) != samples), None)
        if uneven is not None:
            raise UsageError(
                f"{path}:{number} has other inputs than the lines before it ({uneven}); every line needs the same"
            )
    return _arrays(rows, signature, path)


def read_csv(path: Path, signature: Signature) -> tuple[Mapping[str, np.ndarray], tuple[str, ...]]:
    """Read a header of input names with cells of ids separated by spaces, or (one input) ids without a header."""
    table = [row for row in csv.reader(_lines(path)) if any(cell.strip() for cell in row)]
    if not table:
        raise UsageError(f"{path} holds no rows")
    specs = {spec.name: spec for spec in signature.inputs}
    header = [cell.strip() for cell in table[0]]
    if any(name in specs for name in header):
        rows: Rows = {name: [] for name in header}
        for number, row in enumerate(table[1:], start=2):
            if len(row) != len(header):
                raise UsageError(f"{path}: row {number} has {len(row)} cells, the header has {len(header)}")
            for name, cell in zip(header, row, strict=True):
                rows[name].append(_cell(cell, specs.get(name), f"{path}: row {number}"))
        return _arrays(rows, signature, path)
    name = _only(signature, path, 1)
    numbers = [
        [_number(cell, f"{path}: row {number}") for cell in row if cell.strip()]
        for number, row in enumerate(table, start=1)
    ]
    return _arrays({name: numbers}, signature, path)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no readable text ({str(error)[:100]})") from error


def _only(signature: Signature, path: Path, number: int) -> str:
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise UsageError(f"{path}:{number} does not name its inputs, and the model takes several ({names})")
    return signature.inputs[0].name


def _cell(cell: str, spec: TensorSpec | None, where: str) -> Any:
    if spec is not None and value_dtype(spec) == np.dtype(np.str_):
        return cell
    numbers = [_number(part, where) for part in cell.split()]
    single = spec is not None and spec.shape is not None and len(spec.shape) <= 1 and len(numbers) == 1
    return numbers[0] if single else numbers


def _number(text: str, where: str) -> int | float:
    for reader in (int, float):
        try:
            return reader(text)
        except ValueError:
            continue
    raise UsageError(f"{where}: {text.strip()[:40]!r} is no number; the first line may be a header of input names")


def _arrays(rows: Rows, signature: Signature, path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    if not any(rows.values()):
        raise UsageError(f"{path} holds no rows")
    specs = {spec.name: spec for spec in signature.inputs}
    arrays, notes = {}, []
    for name, items in rows.items():
        spec = specs.get(name)
        array, padded = _pad(items, spec, f"{path}: input {name}")
        if padded:
            notes.append(f"input {name}: shorter samples were padded with 0 to shape {list(array.shape[1:])}")
        arrays[name] = array
    return arrays, tuple(notes)


def _pad(items: Sequence[Any], spec: TensorSpec | None, where: str) -> tuple[np.ndarray, bool]:
    """Stack nested lists, the shorter ones filled up with 0 to the longest, or to the size that the input fixes."""
    shapes = [_shape(item, f"{where}, sample {number}") for number, item in enumerate(items, start=1)]
    rank = len(shapes[0])
    odd = next((number for number, shape in enumerate(shapes, start=1) if len(shape) != rank), None)
    if odd is not None:
        raise UsageError(f"{where}: sample {odd} is nested {len(shapes[odd - 1])} deep, sample 1 {rank} deep")
    longest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    wanted = tuple(_fixed(spec, rank, axis) or size for axis, size in enumerate(longest))
    if any(have > want for have, want in zip(longest, wanted, strict=True)):
        raise UsageError(
            f"{where}: a sample of shape {list(longest)} is longer than the {list(wanted)} that the model takes; cut it"
        )
    if all(shape == wanted for shape in shapes):
        return np.array(items), False
    parts = [np.array(item) for item in items]
    kinds = {part.dtype.kind for part in parts if part.size}
    if not kinds <= set("biuf"):
        raise UsageError(f"{where}: samples of text must all have one shape")
    stack = np.zeros((len(parts), *wanted), np.float64 if "f" in kinds else np.int64)
    for row, part in zip(stack, parts, strict=True):
        row[tuple(slice(size) for size in part.shape)] = part
    return stack, True


def _fixed(spec: TensorSpec | None, rank: int, axis: int) -> int | None:
    """The size that the input fixes for this axis of one sample; a sample may come with or without the batch axis."""
    if spec is None or spec.shape is None or rank not in (len(spec.shape), len(spec.shape) - 1):
        return None
    dim = spec.shape[axis + len(spec.shape) - rank]
    return dim if isinstance(dim, int) else None


def _shape(item: Any, where: str) -> tuple[int, ...]:
    try:
        array = np.array(item)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{where} is ragged inside; only its length as a whole may differ from other samples"
        ) from None
    if array.dtype.kind not in "biufU" or (array.dtype.kind == "U" and _mixed(item)):
        raise UsageError(f"{where} holds something that is neither a number nor text")
    return array.shape


def _mixed(item: Any) -> bool:
    """Whether a nested list mixes text with anything else, which NumPy would turn into text unasked."""
    if isinstance(item, list):
        return any(_mixed(part) for part in item)
    return not isinstance(item, str)
