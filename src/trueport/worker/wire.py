"""How values cross the process boundary: JSON, with arrays as `.npy` files that the reader memory-maps.

Runs on both sides (Python 3.9 and later, NumPy 1.22 and later). An array becomes {"$npy": path}, NaN and the
infinities become {"$float": "nan"}; everything else must be plain JSON. No pickle in either direction.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np


class ArrayStore:
    """Writes arrays into one folder, each under a fresh number."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.count = 0

    def put(self, array: np.ndarray) -> str:
        """Write one array and return its path. Raises TypeError for dtypes that only pickle could store."""
        array = plain(array)
        path = self.folder / f"{self.count:06d}.npy"
        self.count += 1
        np.save(path, array, allow_pickle=False)
        return str(path)


def plain(array: Any) -> np.ndarray:
    """Return `array` in a dtype that every NumPy knows: text as unicode, bfloat16 and float8 as float32, int4 as int8."""
    array = np.asarray(array)
    if array.dtype.kind == "O":
        flat = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in array.ravel()]
        return np.array(flat, dtype=np.str_).reshape(array.shape)
    if array.dtype.kind == "V" or array.dtype.name not in np.sctypeDict:  # ml_dtypes extension types
        return np.asarray(array, dtype=np.int8 if "int" in array.dtype.name else np.float32)
    return array


def encode(value: Any, store: ArrayStore) -> Any:
    """Turn a value into JSON, writing its arrays into `store`."""
    if isinstance(value, dict):
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


def decode(value: Any) -> Any:
    """Turn JSON back into a value; arrays come memory-mapped and read-only."""
    if isinstance(value, dict):
        if set(value) == {"$npy"}:
            return load_array(value["$npy"])
        if set(value) == {"$float"}:
            return float(value["$float"])
        return {key: decode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


def load_array(path: str) -> np.ndarray:
    """Open one `.npy` file, memory-mapped where it has any bytes to map."""
    try:
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except ValueError as error:
        if "mmap" in str(error) or "empty" in str(error):  # zero-size arrays cannot be mapped
            return np.asanyarray(np.load(path, allow_pickle=False))
        raise


def dumps(value: Any) -> bytes:
    """Encode one message."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def loads(data: bytes) -> Any:
    """Decode one message."""
    return json.loads(data.decode())
