"""Decides, from the bytes of a Keras file alone, which Keras wrote it, what it holds, and whether loading would run code.

Standard library only, nothing is executed: the parent asks it for the toolchain, the worker asks it before loading.
A `.keras` file is a zip with `metadata.json` and `config.json`; an `.h5` file keeps both texts as attributes of its
root group, which are found here by their HDF5 attribute message and read from the global heap that it points to.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trueport.frameworks._base import BadModel

HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"
MAX_UNPACKED = 1 << 30
"""Bytes that a `.keras` file may unpack to before its compression ratio is looked at."""
MAX_RATIO = 200
"""Trained weights hardly compress; a ratio beyond this, in a file past MAX_UNPACKED, is a zip bomb."""
MAX_CONFIG = 1 << 28
"""Bytes of JSON that are read into memory."""


def is_keras_zip(path: Path) -> bool:
    """Whether this is a zip archive with the members of a `.keras` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    return "config.json" in names and ("metadata.json" in names or any(name.endswith("weights.h5") for name in names))


def is_keras_hdf5(path: Path) -> bool:
    """Whether this HDF5 file holds a whole model (its configuration), not weights alone."""
    data = _read(path)
    return data.startswith(HDF5) and b"model_config\0" in data


def check_archive(path: Path) -> None:
    """Refuse, by the central directory alone, an archive that would unpack to an absurd size. Raises BadModel."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise BadModel(f"{path}: not a readable .keras archive ({error}); it may be cut off, copy it again") from None
    unpacked = sum(entry.file_size for entry in entries)
    packed = max(1, sum(entry.compress_size for entry in entries))
    if unpacked > MAX_UNPACKED and unpacked / packed > MAX_RATIO:
        raise BadModel(
            f"{path}: the archive would unpack to {unpacked / 2**30:.3g} GiB from {packed / 2**20:.3g} MiB, "
            "which no trained model does; it was not opened"
        )


def keras_version(path: Path) -> str | None:
    """Return the version text of the Keras that wrote the file, None where the file does not say."""
    if zipfile.is_zipfile(path):
        metadata = _member(path, "metadata.json")
        return str(metadata["keras_version"]) if "keras_version" in metadata else None
    return next(_attributes(_read(path), b"keras_version"), None)


def is_legacy(path: Path) -> bool:
    """Whether Keras 2 wrote the file, so that only tf_keras gives it its meaning.

    The version in the file decides. Without one, the marks that Keras 3 puts into every configuration do
    ("module" and "registered_name" beside each class name); a file without them is taken for Keras 2.
    """
    version = keras_version(path)
    if version:
        return not version.startswith("3")
    if zipfile.is_zipfile(path):
        return False
    data = _read(path)
    return not (b'"registered_name"' in data and b'"module"' in data)


def config(path: Path) -> dict[str, Any]:
    """Return the model's configuration as JSON. Raises BadModel when the file has none that can be read."""
    if zipfile.is_zipfile(path):
        check_archive(path)
        return _member(path, "config.json")
    data = _read(path)
    if not data.startswith(HDF5):
        raise BadModel(f"{path}: neither a .keras archive nor an HDF5 file")
    for text in _attributes(data, b"model_config"):
        found = _json(text)
        if found is not None:
            return found
    raise BadModel(
        f"{path}: the HDF5 file holds no readable model configuration; it may be cut off or hold weights alone"
    )


def code_in(configuration: Any) -> Iterator[str]:
    """Yield a description of every place where loading this configuration would run code that the file carries."""
    for entry in _objects(configuration):
        inner = entry.get("config")
        inner = inner if isinstance(inner, dict) else {}
        if entry.get("class_name") == "__lambda__" or inner.get("function_type") == "lambda":
            yield f"Lambda layer '{inner.get('name', '?')}'" if "name" in inner else "a Lambda function"
        elif entry.get("class_name") == "Lambda":
            function = inner.get("function")
            if isinstance(function, (list, tuple)) or not isinstance(function, (str, dict)):
                yield f"Lambda layer '{inner.get('name', '?')}'"


def class_names(configuration: Any) -> list[str]:
    """Return the class name of every object in the configuration, in order, with repetitions."""
    return [str(entry["class_name"]) for entry in _objects(configuration)]


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every serialised object (a dictionary with a class name), outer before inner."""
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for item in value.values():
            yield from _objects(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _objects(item)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadModel(f"{path}: cannot be read ({error})") from None


def _member(path: Path, name: str) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(name).file_size > MAX_CONFIG:
                raise BadModel(f"{path}: its {name} is larger than any model's")
            return dict(json.loads(archive.read(name)))
    except KeyError:
        raise BadModel(f"{path}: a zip archive without {name}, so not a .keras file") from None
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise BadModel(f"{path}: its {name} cannot be read ({error}); the file may be damaged") from None


def _json(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _attributes(data: bytes, name: bytes) -> Iterator[str]:
    """Yield the text of every HDF5 attribute of this name (attribute message versions 1 to 3, scalar text)."""
    for found in re.finditer(re.escape(name + b"\0"), data):
        for header, padded in ((8, True), (9, False), (8, False)):
            text = _attribute(data, found.start(), header, padded, len(name) + 1)
            if text is not None:
                yield text
                break


def _attribute(data: bytes, start: int, header: int, padded: bool, length: int) -> str | None:
    """Read one attribute message whose name starts at `start`: version 1 pads its parts to 8 bytes, 3 adds a charset byte."""
    begin = start - header
    if begin < 0 or (data[begin] == 1) != padded or data[begin] not in (1, 2, 3):
        return None
    name_size, type_size, space_size = struct.unpack_from("<HHH", data, begin + 2)
    if name_size != length:
        return None

    def pad(size: int) -> int:
        return -(-size // 8) * 8 if padded else size

    datatype = start + pad(name_size)
    value = datatype + pad(type_size) + pad(space_size)
    try:
        kind = data[datatype] & 0x0F
        if kind == 3:  # text of fixed length, stored in place
            (size,) = struct.unpack_from("<I", data, datatype + 4)
            raw: bytes | None = data[value : value + size]
        elif kind == 9:  # text of variable length, stored in a global heap collection
            size, address, index = struct.unpack_from("<IQI", data, value)
            raw = _heap_object(data, address, index)
            raw = None if raw is None else raw[:size]
        else:
            return None
    except (IndexError, struct.error):
        return None
    return None if raw is None else raw.rstrip(b"\0").decode("utf-8", "replace")


def _heap_object(data: bytes, address: int, index: int) -> bytes | None:
    """Return one object of the global heap collection at `address`."""
    if data[address : address + 4] != b"GCOL":
        return None
    (size,) = struct.unpack_from("<Q", data, address + 8)
    place, end = address + 16, address + size
    while place + 16 <= end:
        number, _, length = struct.unpack_from("<HH4xQ", data, place)
        if number == index:
            return data[place + 16 : place + 16 + length]
        if number == 0:  # the rest is free space
            return None
        place += 16 + -(-length // 8) * 8
    return None
