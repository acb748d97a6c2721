"""How values cross the process boundary: one line of JSON, with arrays as `.npy` files that the reader memory-maps.

Runs on both sides (Python 3.9 and later, NumPy 1.22 and later). An array becomes {"$npy": path}, NaN and the
infinities become {"$float": "nan"}; everything else must be plain JSON. No pickle in either direction. A message ends
with a newline, so whatever else is written into the pipe makes one unreadable line and never a reader that waits for
bytes that do not come.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

MARKS = ("$npy", "$float")
"""Keys that carry a meaning; a value's own dictionary cannot use them."""

USER_DEFINED = 256
"""The numbers of NumPy's own types are below this; those of ml_dtypes, which `.npy` would store as raw bytes, are not."""


class ArrayStore:
    """Writes arrays into one folder, each under a fresh number.

    share: an array that is a read-only memory map of one whole `.npy` file is passed as that file's path, not copied.
    """

    def __init__(self, folder: str, share: bool = False) -> None:
        self.folder = Path(folder)
        self.share = share
        self.count = 0

    def put(self, array: np.ndarray) -> str:
        """Write one array and return its path. Raises TypeError for dtypes that only pickle could store."""
        if self.share:
            path = whole_file(array)
            if path:
                return path
        array = plain(array)
        target = self.folder / f"{self.count:06d}.npy"
        self.count += 1
        np.save(target, array, allow_pickle=False)
        return str(target)


def whole_file(array: Any) -> str:
    """Return the `.npy` file that `array` maps from its first element to its last, or "" when there is none.

    A view of a memory map keeps the attributes of the whole, so shape, dtype and strides are compared with the file's
    header: a view that agrees in all three can only start at the first element. Copy-on-write maps differ from the file.
    """
    if not isinstance(array, np.memmap) or array.filename is None or array.mode not in ("r", "r+"):
        return ""
    try:
        stored = np.lib.format.open_memmap(str(array.filename), mode="r")
    except (OSError, ValueError, EOFError):
        return ""
    same = (
        stored.shape == array.shape
        and stored.dtype == array.dtype
        and stored.strides == array.strides
        and stored.offset == array.offset
    )
    return str(Path(array.filename).resolve()) if same else ""


def plain(value: Any) -> np.ndarray:
    """Return `value` in a dtype that every NumPy knows: text as unicode, bfloat16 and float8 as float32, int4 as int8.

    Raises TypeError for objects that are neither text nor bytes: their printed form would hide their values.
    """
    array: np.ndarray = np.asarray(value)
    kind = array.dtype.kind
    if kind in "OST":
        text: np.ndarray = np.array([_text(item) for item in array.ravel().tolist()], dtype=np.str_)
        return text.reshape(array.shape)
    if array.dtype.names is not None:
        raise TypeError("a structured array cannot cross the process boundary")
    if array.dtype.num < USER_DEFINED:
        return array
    return np.asarray(array, dtype=np.int8 if "int" in array.dtype.name else np.float32)  # ml_dtypes extension types


def _text(item: Any) -> str:
    if isinstance(item, bytes):
        return item.decode("utf-8", "replace")
    if isinstance(item, str):
        return item
    raise TypeError(f"an array that holds objects of type {type(item).__name__} cannot cross the process boundary")


def encode(value: Any, store: ArrayStore) -> Any:
    """Turn a value into JSON, writing its arrays into `store`. Raises TypeError for what JSON cannot say."""
    if isinstance(value, dict):
        if any(mark in value for mark in MARKS):
            raise TypeError(f"a dictionary with one of the keys {', '.join(MARKS)} cannot cross the process boundary")
        return {str(key): encode(item, store) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item, store) for item in value]
    if isinstance(value, np.ndarray):
        return {"$npy": store.put(value)}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__} cannot cross the process boundary")


def decode(value: Any, within: str = "") -> Any:
    """Turn JSON back into a value; arrays come memory-mapped and read-only.

    Raises ValueError for an unreadable array, and for one outside the folder `within` when that is given.
    """
    if isinstance(value, dict):
        if set(value) == {"$npy"}:
            if within and Path(value["$npy"]).parent != Path(within):
                raise ValueError(f"the array file {value['$npy']!r} does not lie in the job's folder")
            return load_array(value["$npy"])
        if set(value) == {"$float"}:
            return float(value["$float"])
        return {key: decode(item, within) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item, within) for item in value]
    return value


def load_array(path: str) -> np.ndarray:
    """Open one `.npy` file, memory-mapped where it has any bytes to map. Raises ValueError when it is missing or damaged."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- `path` comes from outside; Path() would accept less
            if file.read(6) != b"\x93NUMPY":
                raise ValueError("it does not begin as an .npy file does")
        try:
            return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except ValueError as error:
            if "mmap" in str(error) or "empty" in str(error):  # zero-size arrays cannot be mapped
                return np.asanyarray(np.load(path, allow_pickle=False))
            raise
    except Exception as error:  # a damaged header makes NumPy raise whatever its parser meets
        raise ValueError(f"the array file {path!r} cannot be read: {error}") from error


def dumps(value: Any) -> bytes:
    """Encode one message: one line, whose only newline is its last byte."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def loads(data: bytes) -> Any:
    """Decode one message. Raises ValueError (JSONDecodeError, UnicodeDecodeError) when it is none."""
    return json.loads(data.decode())
