"""A model file (or folder) as a value: where it lies, what it is, its digest, its signature, and who made it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trueport.errors import UsageError
from trueport.frameworks._base import Dim, SignatureDict, SpecDict
from trueport.plugins import frameworks

HEAD = 64 * 1024
"""Bytes that sniffing looks at."""

CORE_ML = (".mlmodel", ".mlpackage")

WEIGHTS = {".xml": ".bin"}
"""Suffix of a model's file -> suffix of the file of the same name that holds its weights (OpenVINO)."""

PICKLES = tuple(bytes((0x80, protocol)) for protocol in (2, 3, 4, 5))
"""How a pickle begins, by its protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output. `shape` None: unknown rank; a dimension: a size, a symbol, or None (unknown)."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None
    minimum: int | None = None
    maximum: int | None = None
    quantization: Mapping[str, Any] | None = None

    @staticmethod
    def from_wire(spec: SpecDict) -> TensorSpec:
        """Read the dictionary that a framework file returns."""
        shape = spec["shape"]
        return TensorSpec(
            name=spec["name"],
            dtype=spec["dtype"],
            shape=None if shape is None else tuple(shape),
            minimum=spec.get("minimum"),
            maximum=spec.get("maximum"),
            quantization=spec.get("quantization"),
        )

    def to_wire(self) -> SpecDict:
        """Return the dictionary that framework and converter files take."""
        wire: SpecDict = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": None if self.shape is None else list(self.shape),
        }
        if self.minimum is not None:
            wire["minimum"] = self.minimum
        if self.maximum is not None:
            wire["maximum"] = self.maximum
        if self.quantization is not None:
            wire["quantization"] = dict(self.quantization)
        return wire

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"name": self.name, "dtype": self.dtype, "shape": None if self.shape is None else list(self.shape)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a model takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_wire(signature: SignatureDict) -> Signature:
        """Read the dictionary that a framework file returns."""
        return Signature(
            inputs=tuple(TensorSpec.from_wire(spec) for spec in signature["inputs"]),
            outputs=tuple(TensorSpec.from_wire(spec) for spec in signature["outputs"]),
            meta=signature["meta"],
        )

    def to_wire(self) -> SignatureDict:
        """Return the dictionary that framework and converter files take."""
        return {
            "inputs": [spec.to_wire() for spec in self.inputs],
            "outputs": [spec.to_wire() for spec in self.outputs],
            "meta": dict(self.meta),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model on disk. `made_by`: how it came to be (step, tool versions, layout and renames the tool declared), {} for a user's file."""

    path: Path
    format: str
    sha256: str
    size: int
    """Bytes on disk."""
    made_by: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def open(path: Path, *, format: str | None = None, made_by: Mapping[str, Any] | None = None) -> Artifact:
        """Sniff and digest a model. Raises UsageError when it is missing, empty or of no known format."""
        known = format or sniff(path)
        if format is not None and not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        return Artifact(
            path=path.absolute(), format=known, sha256=digest(path), size=size_of(path), made_by=made_by or {}
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "path": str(self.path),
            "format": self.format,
            "sha256": self.sha256,
            "size": self.size,
            "made_by": dict(self.made_by),
        }


def sniff(path: Path) -> str:
    """Tell a model's format from its bytes. Raises UsageError with one sentence when it is none that we know."""
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(HEAD)
        if not head:
            raise UsageError(f"{path}: the file is empty")
    for framework in frameworks().values():
        found = framework.sniff(head, path)
        if found is not None:
            return str(found)
    raise UsageError(f"{path}: not a model of a known format{_what_else(head, path)}")


def offered() -> str:
    """The formats as messages list them: sorted, without the one that serves tests."""
    return ", ".join(
        sorted(name for framework in frameworks().values() for name in framework.FORMATS if framework.NAME != "fake")
    )


def _what_else(head: bytes, path: Path) -> str:
    """What a file is that is no model, where that is known, and the cure."""
    if path.suffix.lower() in CORE_ML:
        return ": a Core ML file begins with its version, and a package has a Manifest.json that names its model"
    if path.is_file() and head[:2] in PICKLES:
        return (
            " but a pickle, which holds weights at most: name the architecture as package.module:factory and give this "
            "file with --checkpoint"
        )
    return f" ({offered()}); if it is one, say so with --source-format or --target-format"


def weights_of(path: Path) -> Path | None:
    """The file with a model's weights where the format always has them in a second one of the same name; it is part of the model."""
    return path.with_suffix(WEIGHTS[path.suffix]) if path.suffix in WEIGHTS else None


def _files(path: Path) -> list[Path]:
    if path.is_file():
        weights = weights_of(path)
        return [path] if weights is None or not weights.is_file() else [path, weights]
    return sorted(item for item in path.rglob("*") if item.is_file())


def size_of(path: Path) -> int:
    """Bytes of a file with its weights, or of all files in a folder."""
    return sum(file.stat().st_size for file in _files(path))


def digest(path: Path) -> str:
    """SHA-256 of a file with its weights, or of a folder's sorted relative names and contents."""
    total = hashlib.sha256()
    for file in _files(path):
        if path.is_dir():
            total.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()
