"""Reads `.npy` and `.npz` without pickle, without trusting a declared size, and only as many rows as are wanted."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from trueport.errors import UsageError

MAX_BYTES = 4 << 30
"""Bytes of all arrays together that one set of inputs may take in memory."""


def read_npy(path: Path, *, limit: int | None = None) -> np.ndarray:
    """Map one `.npy` file; at most `limit` rows of it."""
    try:
        array: np.ndarray = np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise UsageError(f"{path} is no readable .npy file ({_short(error)})") from error
    return array if limit is None or array.ndim == 0 else array[:limit]


def read_npz(path: Path, *, limit: int | None = None) -> dict[str, np.ndarray]:
    """Read every array of an `.npz`; at most `limit` rows of each (uncompressed no further than that).

    Raises UsageError when the file is damaged, holds objects, or would take more than MAX_BYTES.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [item for item in archive.infolist() if item.filename.endswith(".npy")]
            if not members:
                raise UsageError(f"{path} holds no arrays")
            arrays: dict[str, np.ndarray] = {}
            left = MAX_BYTES
            for member in members:
                with archive.open(member) as stream:
                    array = _read(stream, member, path, limit, left)
                left -= array.nbytes
                arrays[member.filename.removesuffix(".npy")] = array
            return arrays
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{path} is no readable .npz file ({_short(error)})") from error


def _read(stream: IO[bytes], member: zipfile.ZipInfo, path: Path, limit: int | None, left: int) -> np.ndarray:
    name = member.filename.removesuffix(".npy")
    shape, fortran, dtype = _header(stream, path, name)
    if dtype.hasobject:
        raise UsageError(
            f"{path}: array {name} holds Python objects, which only pickle could load; save plain numbers or text"
        )
    declared = math.prod(shape) * dtype.itemsize
    if stream.tell() + declared != member.file_size:
        raise UsageError(
            f"{path}: array {name} declares {declared} bytes, its entry holds {member.file_size - stream.tell()}"
        )
    rows = shape[0] if shape else 1
    kept = rows if limit is None or fortran or not shape else min(rows, limit)
    wanted = declared // rows * kept if rows else 0
    if wanted > left:
        raise UsageError(
            f"{path}: its arrays would take more than {MAX_BYTES >> 30} GiB (array {name} declares {declared} bytes); "
            "give fewer samples, or save each input as its own .npy"
        )
    data = bytearray()
    while len(data) < wanted and (block := stream.read(min(1 << 20, wanted - len(data)))):
        data += block
    if len(data) != wanted:
        raise UsageError(f"{path}: array {name} is cut short")
    if fortran:
        return np.frombuffer(data, dtype).reshape(shape[::-1]).transpose()
    return np.frombuffer(data, dtype).reshape((kept, *shape[1:]) if shape else ())


def _header(stream: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        version = np.lib.format.read_magic(stream)
        if version not in readers:
            raise ValueError(f"version {version}")
        shape, fortran, dtype = readers[version](stream)
    except ValueError as error:
        raise UsageError(f"{path}: array {name} has no readable header ({_short(error)})") from error
    return shape, fortran, dtype


def peek(path: Path) -> dict[str, np.ndarray]:
    """The first sample of each array, with its sample axis: enough to trace a model with. [1, ...] each."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if path.suffix == ".npy":
        return {"input": np.array(read_npy(path, limit=1))}
    return {name: array[:1] if array.ndim else array for name, array in read_npz(path, limit=1).items()}


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:120] if text else type(error).__name__
