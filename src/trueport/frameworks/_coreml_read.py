"""Reads Core ML files: where a package keeps its parts, the weights file, and an ML program as a `Program`.

Only the message classes of coremltools are used, without the rest of that package, whose import takes seconds. The
weights file is read here, lazily, from a memory map: records of 64 bytes say type, size and offset of each blob.
A constant that is bound directly to an argument is called `OPERATION.ARGUMENT`; values of a program have no dot in
their names. Weights that are stored compressed (`constexpr_*` operations) are constants that unpack when they are read.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import struct
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueport.frameworks._base import BadModel, Dim, Unsupported
from trueport.frameworks._coreml_program import Block, Constant, Operation, Program, Type

_PROTO = "_trueport_coreml_proto"
_SENTINEL = 0xDEADBEEF
_RECORD = struct.Struct("<IIQQQ")
BITS = {"uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "int4": 4, "uint6": 6}
"""Types of less than a byte -> bits; their values lie packed, the first in the lowest bits."""
WRITERS = {"write_state": "input", "coreml_update_state": "state"}
"""Operation that changes a state -> the argument that names it."""


def messages(name: str) -> Any:
    """Return a module of coremltools' protobuf messages by name ("Model", "MIL"). Raises Unsupported where it is not installed."""
    if _PROTO not in sys.modules:
        found = importlib.util.find_spec("coremltools")
        if found is None or found.origin is None:
            raise Unsupported("coremltools, whose message classes read Core ML files, is not in this environment")
        package = types.ModuleType(_PROTO)
        package.__path__ = [str(Path(found.origin).parent / "proto")]
        sys.modules[_PROTO] = package
    return importlib.import_module(f"{_PROTO}.{name}_pb2")


# -- files


def model_file(path: str) -> Path:
    """Return the .mlmodel inside a package, or the file itself. Raises BadModel with the reason."""
    root = Path(path)
    if not root.is_dir():
        return root
    try:
        manifest = json.loads((root / "Manifest.json").read_text(encoding="utf-8"))
        inner = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadModel(f"{path}: its Manifest.json names no model ({error}); save the package again") from None
    found = root / "Data" / str(inner)
    if not found.is_file():
        raise BadModel(f"{path}: {inner}, which its manifest names, is missing; copy the whole folder again")
    return found


def stamp(path: str) -> int:
    """Return when the model last changed: the newest of its files."""
    root = Path(path)
    files = [item for item in root.rglob("*") if item.is_file()] if root.is_dir() else [root]
    return max((item.stat().st_mtime_ns for item in files), default=0)


def read_spec(path: str) -> Any:
    """Return the Model message. Raises BadModel when the file is cut short or no Core ML model."""
    from google.protobuf.message import DecodeError

    spec = messages("Model").Model()
    try:
        spec.ParseFromString(model_file(path).read_bytes())
    except DecodeError:
        raise BadModel(f"{path}: the file is cut short or damaged; copy or convert the Core ML model again") from None
    except OSError as error:
        raise BadModel(f"{path}: cannot be read ({error.strerror})") from None
    if spec.WhichOneof("Type") is None:
        raise BadModel(f"{path}: it holds no model; convert it again")
    return spec


# -- weights


@functools.lru_cache(maxsize=4)
def _mapped(path: str, changed: int) -> np.ndarray:
    return np.memmap(path, dtype=np.uint8, mode="r")


class Blob(NamedTuple):
    """Where a stored array lies: the weights file, the offset of its record, the type and shape that the program says."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Return the array; a view of the map where the type allows it. Raises BadModel when the record is not there."""
        try:
            mapped = _mapped(str(self.file), self.file.stat().st_mtime_ns)
            sentinel, _, size, start, _ = _RECORD.unpack(mapped[self.offset : self.offset + _RECORD.size].tobytes())
        except (OSError, ValueError, struct.error):
            sentinel, size, start, mapped = 0, 0, 0, np.zeros(0, np.uint8)
        if sentinel != _SENTINEL or start + size > len(mapped):
            raise BadModel(
                f"{self.file.name}: there is no array at offset {self.offset}; copy the weights with the model again"
            )
        return from_bytes(mapped[start : start + size], self.dtype, self.shape)


def from_bytes(data: Any, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Turn stored bytes into an array; packed types are unpacked into int8 or uint8, bfloat16 into float32."""
    raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    count = int(np.prod(shape, dtype=np.int64))
    if dtype in BITS:
        return _unpacked(raw, BITS[dtype], count, signed=dtype.startswith("int")).reshape(shape)
    if dtype == "bfloat16":
        wide = raw[: 2 * count].view("<u2").astype(np.uint32) << 16
        return np.asarray(wide.view(np.float32).reshape(shape))
    kind = np.dtype(dtype)
    if len(raw) < count * kind.itemsize:
        raise BadModel(f"a stored {dtype} array of shape {list(shape)} has only {len(raw)} bytes; convert it again")
    return np.asarray(raw[: count * kind.itemsize].view(kind).reshape(shape))


def _unpacked(raw: np.ndarray, bits: int, count: int, *, signed: bool) -> np.ndarray:
    flat = np.unpackbits(np.asarray(raw), bitorder="little")[: count * bits].reshape(count, bits)
    values = (flat.astype(np.uint8) << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if not signed:
        return np.asarray(values)
    wide = values.astype(np.int16)
    return np.asarray(np.where(wide >= 1 << (bits - 1), wide - (1 << bits), wide).astype(np.int8))


# -- types and values


def dtype_name(number: int) -> str:
    """Return NumPy's name of a MIL data type ("str" for text)."""
    name = str(messages("MIL").DataType.Name(number)).lower()
    return {"string": "str", "unused_type": "float32"}.get(name, name)


def read_type(message: Any) -> Type:
    """Turn a ValueType into ours; a dimension that the program leaves open is None."""
    kind = message.WhichOneof("type")
    if kind == "stateType":
        return read_type(message.stateType.wrappedType)
    if kind != "tensorType":
        return Type(str(kind).replace("Type", "").replace("dictionary", "dict"), None)
    tensor = message.tensorType
    if tensor.rank < 0:
        return Type(dtype_name(tensor.dataType), None)
    sizes: list[Dim] = []
    for dimension in tensor.dimensions:
        if dimension.WhichOneof("dimension") == "constant":
            sizes.append(int(dimension.constant.size))
        elif dimension.unknown.variadic:
            return Type(dtype_name(tensor.dataType), None)
        else:
            sizes.append(None)
    return Type(dtype_name(tensor.dataType), tuple(sizes))


_FIELDS = {"floats": "float32", "ints": "int32", "bools": "bool", "longInts": "int64", "doubles": "float64"}


def _immediate(message: Any, declared: Type) -> Any:
    """Turn an ImmediateValue into an array, a text, a list or a dict."""
    kind = message.WhichOneof("value")
    if kind in ("list", "tuple"):
        return [_immediate(item.immediateValue, read_type(item.type)) for item in getattr(message, kind).values]
    if kind == "dictionary":
        return {
            _plain(_immediate(pair.key.immediateValue, read_type(pair.key.type))): _plain(
                _immediate(pair.value.immediateValue, read_type(pair.value.type))
            )
            for pair in message.dictionary.values
        }
    shape = tuple(int(size or 0) for size in declared.shape or ())
    field = message.tensor.WhichOneof("value")
    if field is None:  # an empty vector says nothing of its type
        return np.zeros(shape, "float32" if declared.dtype == "str" else declared.dtype)
    values = getattr(message.tensor, field).values
    if field == "strings":
        return str(values[0]) if not shape else [str(value) for value in values]
    if field == "bytes":
        return from_bytes(values, declared.dtype, shape)
    array = np.array(values, dtype=_FIELDS[field]).reshape(shape)
    return array if declared.dtype in BITS else array.astype(declared.dtype, copy=False)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


# -- programs


class _Reader:
    """Collects the constants of one function while its operations are read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.constants: dict[str, Constant] = {}
        self.compressed: dict[str, str] = {}

    def constant(self, name: str, value: Any) -> None:
        declared = read_type(value.type)
        shape = tuple(int(size or 0) for size in declared.shape or ())
        if value.WhichOneof("value") == "blobFileValue":
            file = self.folder / value.blobFileValue.fileName.replace("@model_path/", "", 1)
            blob = Blob(file, int(value.blobFileValue.offset), declared.dtype, shape)
            dtype = "float32" if declared.dtype == "bfloat16" else declared.dtype
            self.constants[name] = Constant(dtype, shape, blob.read)
            return
        held = _immediate(value.immediateValue, declared)
        self.constants[name] = Constant(declared.dtype, shape, lambda: held)

    def block(self, message: Any) -> Block:
        operations = []
        for item in message.operations:
            if item.type == "const":
                self.constant(item.outputs[0].name, item.attributes["val"])
                continue
            operation = self.operation(item)
            if item.type.startswith("constexpr_"):
                self.unpack(operation)
            else:
                operations.append(operation)
        return Block([item.name for item in message.inputs], list(message.outputs), operations)

    def operation(self, item: Any) -> Operation:
        outputs = [output.name for output in item.outputs]
        written = item.attributes["name"].immediateValue.tensor.strings.values if "name" in item.attributes else ()
        name = outputs[0] if outputs else (str(written[0]) if written else item.type)
        inputs: dict[str, list[str]] = {}
        for argument in sorted(item.inputs):
            bound = []
            for place, binding in enumerate(item.inputs[argument].arguments):
                if binding.WhichOneof("binding") == "name":
                    bound.append(binding.name)
                else:
                    own = f"{name}.{argument}" + (f".{place}" if place else "")
                    self.constant(own, binding.value)
                    bound.append(own)
            inputs[argument] = bound
        attributes: dict[str, Any] = {}
        for argument in sorted(item.attributes):
            value = item.attributes[argument]
            if argument == "name":
                continue
            if value.type.WhichOneof("type") == "tensorType":
                self.constant(f"{name}.{argument}", value)
                inputs[argument] = [f"{name}.{argument}"]
            else:
                attributes[argument] = _immediate(value.immediateValue, Type("str"))
        return Operation(
            name=name,
            kind=item.type,
            inputs=inputs,
            outputs=outputs,
            types=[read_type(output.type) for output in item.outputs],
            attributes=attributes,
            blocks=[self.block(inner) for inner in item.blocks],
            writes=tuple(inputs[WRITERS[item.type]]) if item.type in WRITERS else (),
        )

    def unpack(self, operation: Operation) -> None:
        """Make the results of a `constexpr_*` operation constants that are computed when they are read."""
        from trueport.frameworks import _mil_constexpr

        unpacked = functools.lru_cache(maxsize=1)(lambda: _mil_constexpr.unpack(operation, self.constants))
        for place, (name, declared) in enumerate(zip(operation.outputs, operation.types)):
            shape = tuple(int(size or 0) for size in declared.shape or ())
            load = functools.partial(lambda number: unpacked()[number], place)
            self.constants[name] = Constant(declared.dtype, shape, load)
            self.compressed[name] = _mil_constexpr.describe(operation, self.constants)


def read_program(spec: Any, path: str, function: str = "") -> Program:
    """Turn the ML program of a model into a `Program`: its default function, or the one named.

    `meta` has "opset", "functions" and "compressed" (constant -> how it is stored). Raises BadModel, Unsupported.
    """
    functions = spec.mlProgram.functions
    chosen = function or spec.description.defaultFunctionName or "main"
    if chosen not in functions:
        chosen = next(iter(sorted(functions)), "")
        if not chosen:
            raise BadModel(f"{path}: its ML program has no function; convert it again")
    message = functions[chosen]
    if message.opset not in message.block_specializations:
        raise BadModel(f"{path}: its ML program has no operations for {message.opset}; convert it again")
    reader = _Reader(model_file(path).parent)
    block = reader.block(message.block_specializations[message.opset])
    classes = _without_label(block)
    made = {name: kind for operation in block.operations for name, kind in zip(operation.outputs, operation.types)}
    inputs = {item.name: item for item in message.inputs}
    states = {name: read_type(item.type) for name, item in inputs.items() if _is_state(item)}
    known = {name: read_type(item.type) for name, item in inputs.items() if name not in states}
    made = {**{name: Type(c.dtype, c.shape) for name, c in reader.constants.items()}, **known, **made}
    return Program(
        inputs=known,
        outputs={name: made[name] for name in _checked(block.outputs, made, path)},
        constants=reader.constants,
        block=Block(list(known), block.outputs, block.operations),
        states=states,
        meta={**classes, "opset": message.opset, "functions": sorted(functions), "compressed": reader.compressed},
    )


def _without_label(block: Block) -> dict[str, Any]:
    """Let a classifier give its probabilities alone, in the type that they have before they are given names."""
    if not block.operations or block.operations[-1].kind != "classify":
        return {}
    last = block.operations[-1]
    label, probabilities = last.outputs
    made = {name: kind for item in block.operations for name, kind in zip(item.outputs, item.types)}
    last.types[1] = made.get(last.inputs["probabilities"][0], Type())
    block.outputs = [name for name in block.outputs if name != label]
    return {"notes": [f"the label '{label}' is the class of the largest value of '{probabilities}'"]}


def _is_state(item: Any) -> bool:
    return bool(item.type.WhichOneof("type") == "stateType")


def _checked(names: Iterable[str], known: dict[str, Type], path: str) -> list[str]:
    names = list(names)
    for name in names:
        if name not in known:
            raise BadModel(f"{path}: nothing in its ML program makes the output '{name}'; convert it again")
    return names
