"""Reads a TFLite file: tensors with unique names, quantisation, constants, and whether the file is sound.

Uses the flatbuffer object API that ships with LiteRT and no other part of it. LiteRT trusts indices and sizes inside
a file, so everything that it would follow blindly is checked here first and a damaged file ends in one sentence.
"""

from __future__ import annotations

import copy
import re
import struct
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueport.frameworks._base import BadModel, Unsupported

DTYPES = [
    "float32",
    "float16",
    "int32",
    "uint8",
    "int64",
    "str",
    "bool",
    "int16",
    "complex64",
    "int8",
    "float64",
    "complex128",
    "uint64",
    "resource",
    "variant",
    "uint32",
    "uint16",
    "int4",
    "bfloat16",
    "int2",
    "uint4",
    "float8_e4m3fn",
    "float8_e5m2",
]
"""NumPy's name of every TensorType, by its number in the schema."""
OPAQUE = frozenset({"str", "resource", "variant", "bfloat16", "int2", "float8_e4m3fn", "float8_e5m2"})
"""Types whose values cannot be handed over."""
_GRID = frozenset({"int8", "uint8", "int16", "uint16", "int4", "uint4"})
"""Types that hold quantised activations when a tensor of them has a scale."""
_NIBBLES = {"int4": (-8, 7), "uint4": (0, 15)}
_PACKED = frozenset(_NIBBLES)


class Quantization(NamedTuple):
    """scale, zero_point: one value each, or one per slice along `axis`."""

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int


class Tensor(NamedTuple):
    """One tensor of the main subgraph. `number` is its index there. `shape` as stored, `dims` with None where the size is free, or None for unknown rank."""

    number: int
    raw_name: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    dims: tuple[int | None, ...] | None
    quantization: Quantization | None
    constant: bool
    variable: bool
    buffer: int


class Operator(NamedTuple):
    """One operator. `code` is the builtin's name or the custom code; -1 (absent) operands stay in `inputs`."""

    number: int
    code: str
    custom: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


class Model:
    """A parsed and checked file; the main subgraph is the one that LiteRT runs."""

    def __init__(self, path: str) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.path = path
        self.data = Path(path).read_bytes()
        self.root = _unpack(self.data, path)
        self._codes = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        self.main = self.root.subgraphs[0]
        self.inputs = _indices(self.main.inputs)
        self.outputs = _indices(self.main.outputs)
        self.operators = self._operators(self.main)
        self.signature_names = self._signature_names()
        self.mended = self._mend()
        self.tensors = self._tensors()
        self._check()

    def content(self) -> bytes | None:
        """Return the mended file where LiteRT would refuse the stored one, else None."""
        return pack(self.root) if self.mended else None

    # -- reading

    def _operators(self, subgraph: Any) -> list[Operator]:
        found = []
        for index, operator in enumerate(subgraph.operators or ()):
            code = self.root.operatorCodes[operator.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            name = self._codes.get(number, f"BUILTIN_{number}")
            custom = name == "CUSTOM"
            found.append(
                Operator(
                    number=index,
                    code=_text(code.customCode) if custom else name,
                    custom=custom,
                    inputs=_indices(operator.inputs),
                    outputs=_indices(operator.outputs),
                    options=operator.builtinOptions
                    if operator.builtinOptions is not None
                    else operator.builtinOptions2,
                )
            )
        return found

    def all_operators(self) -> list[Operator]:
        """Operators of every subgraph, for counting."""
        return [operator for subgraph in self.root.subgraphs for operator in self._operators(subgraph)]

    def _signature_names(self) -> tuple[list[str | None], list[str | None]]:
        """Names that the file's SignatureDef gives to the main subgraph's inputs and outputs, by position."""
        signatures = [item for item in self.root.signatureDefs or () if item.subgraphIndex == 0]
        signatures.sort(key=lambda item: _text(item.signatureKey) != "serving_default")
        if not signatures:
            return [None] * len(self.inputs), [None] * len(self.outputs)
        return (
            _by_position(self.inputs, signatures[0].inputs),
            _by_position(self.outputs, signatures[0].outputs),
        )

    def _tensors(self) -> list[Tensor]:
        tensors = self.main.tensors or ()
        names = self._value_names([_text(item.name) for item in tensors])
        written = {index for operator in self.operators for index in operator.outputs} | set(self.inputs)
        ranked = any(getattr(item, "hasRank", False) for item in tensors)
        found = []
        for index, item in enumerate(tensors):
            dtype = DTYPES[item.type] if 0 <= item.type < len(DTYPES) else f"type {item.type}"
            shape = _indices(item.shape)
            empty = 0 in shape and index not in written
            constant = index not in written and not item.isVariable and (empty or self._has_data(item.buffer))
            found.append(
                Tensor(
                    number=index,
                    raw_name=_text(item.name),
                    name=names[index],
                    dtype=dtype,
                    shape=shape,
                    dims=self._dims(index, item, shape, ranked),
                    quantization=read_grid(item, dtype, constant=constant),
                    constant=constant,
                    variable=bool(item.isVariable),
                    buffer=int(item.buffer),
                )
            )
        return found

    def _value_names(self, raw: list[str]) -> list[str]:
        """Unique names: the signature's for inputs and outputs, else the tensor's own, with `#index` when repeated or empty."""
        chosen: dict[int, str] = {}
        for indices, given in zip((self.inputs, self.outputs), self.signature_names):
            for index, name in zip(indices, given):
                if name is not None and 0 <= index < len(raw):
                    chosen.setdefault(index, name)
        names: list[str] = [chosen.get(index, own) for index, own in enumerate(raw)]
        count = Counter(names)
        taken: set[str] = set()
        for index, wanted in enumerate(names):
            alone = count[wanted] == 1 or (index in chosen and wanted not in taken)
            names[index] = wanted if wanted and alone else f"{wanted}#{index}"
            taken.add(names[index])
        return names

    def _dims(self, index: int, item: Any, shape: tuple[int, ...], ranked: bool) -> tuple[int | None, ...] | None:
        signature = _indices(item.shapeSignature)
        if not shape and not signature and not item.hasRank and index not in self.inputs:
            return None  # old files do not tell a scalar from an unknown rank; the weaker claim is always true
        if not shape and not signature and ranked and not item.hasRank:
            return None
        return tuple(None if size < 0 else size for size in (signature or shape))

    def _has_data(self, number: int) -> bool:
        if not 0 <= number < len(self.root.buffers or ()):
            return False
        buffer = self.root.buffers[number]
        return (buffer.data is not None and len(buffer.data) > 0) or (buffer.offset or 0) > 1

    def buffer(self, number: int) -> np.ndarray:
        """Return the bytes of one buffer, not copied, also of those that lie behind the flatbuffer (files over 2 GB)."""
        buffer = self.root.buffers[number]
        if (buffer.offset or 0) > 1:
            return np.frombuffer(memoryview(self.data)[buffer.offset : buffer.offset + buffer.size], np.uint8)
        return np.ascontiguousarray(() if buffer.data is None else buffer.data, dtype=np.uint8)

    # -- values

    def constant(self, index: int, *, raw: bool = False) -> np.ndarray:
        """Return a constant in its shape: dequantised to float32, or as stored when `raw`. Raises Unsupported."""
        return self._values(self.tensors[index], self.main.tensors[index].sparsity is not None, raw=raw)

    def _values(self, tensor: Tensor, sparse: bool, *, raw: bool = False) -> np.ndarray:
        if tensor.dtype in OPAQUE or sparse:
            kind = "sparse" if sparse else tensor.dtype
            raise Unsupported(f"the constant '{tensor.name}' is {kind}, which cannot be read")
        data = np.frombuffer(self.buffer(tensor.buffer), dtype=_storage(tensor.dtype))
        if tensor.dtype in _PACKED:
            data = _unpack_nibbles(data, int(np.prod(tensor.shape, dtype=np.int64)), signed=tensor.dtype == "int4")
        data = data.reshape(tensor.shape)
        return data if raw else dequantize(tensor, data)

    def bodies(self, operator: Operator) -> list[int]:
        """The subgraphs that a loop or a branch runs, and those that these run."""
        found: list[int] = []
        front = [operator]
        while front:
            options = front.pop().options
            for name in ("bodySubgraphIndex", "thenSubgraphIndex", "elseSubgraphIndex"):
                number = getattr(options, name, None)
                if isinstance(number, int) and 0 < number < len(self.root.subgraphs) and number not in found:
                    found.append(number)
                    front += self._operators(self.root.subgraphs[number])
        return found

    def inner(self, number: int) -> Iterator[tuple[str, np.ndarray]]:
        """The float constants that the operators of another subgraph read, dequantised, by a name that says which; those that cannot be read are left out."""
        subgraph = self.root.subgraphs[number]
        operators = self._operators(subgraph)
        written = {index for operator in operators for index in operator.outputs}
        read = {index for operator in operators for index in operator.inputs}
        for index, item in enumerate(subgraph.tensors or ()):
            if (
                index in written
                or index not in read
                or item.isVariable
                or not self._has_data(item.buffer)
                or item.sparsity is not None
            ):
                continue
            dtype = DTYPES[item.type] if 0 <= item.type < len(DTYPES) else f"type {item.type}"
            grid = read_grid(item, dtype, constant=True)
            if grid is None and not dtype.startswith("float"):
                continue
            raw, shape = _text(item.name), _indices(item.shape)
            name = f"subgraph {number}: {raw}#{index}"
            yield (
                name,
                self._values(Tensor(index, raw, name, dtype, shape, shape, grid, True, False, int(item.buffer)), False),
            )

    # -- soundness

    def _mend(self) -> list[str]:
        """Point the grid of one-dimensional tensors at their only axis. Old converters left the weights' axis there and LiteRT refuses it now."""
        mended = []
        for subgraph in self.root.subgraphs:
            for item in subgraph.tensors or ():
                if (
                    item.quantization is not None
                    and len(_indices(item.shape)) == 1
                    and item.quantization.quantizedDimension
                ):
                    item.quantization.quantizedDimension = 0
                    mended.append(_text(item.name))
        return mended

    def _check(self) -> None:
        for subgraph in self.root.subgraphs:
            count = len(subgraph.tensors or ())
            used = [*_indices(subgraph.inputs), *_indices(subgraph.outputs)]
            operands = [index for item in self._operators(subgraph) for index in (*item.inputs, *item.outputs)]
            if any(not 0 <= index < count for index in used) or any(not -1 <= index < count for index in operands):
                raise BadModel(f"{self.path}: an operator refers to a tensor that is not in the file; it is damaged")
            for item in subgraph.tensors or ():
                if not 0 <= item.buffer < len(self.root.buffers or ()):
                    raise BadModel(
                        f"{self.path}: tensor '{_text(item.name)}' refers to a buffer that is not in the file"
                    )
        for tensor in self.tensors:
            if tensor.constant:
                self._check_size(tensor)

    def _check_size(self, tensor: Tensor) -> None:
        item = self.main.tensors[tensor.number]
        if tensor.dtype in OPAQUE or item.sparsity is not None or tensor.dtype not in DTYPES:
            return
        elements = int(np.prod(tensor.shape, dtype=np.int64))
        expected = (elements + 1) // 2 if tensor.dtype in _PACKED else elements * _storage(tensor.dtype).itemsize
        found = len(self.buffer(tensor.buffer))
        if found < expected:
            raise BadModel(
                f"{self.path}: constant '{tensor.name}' needs {expected} bytes and the file holds {found}; it is damaged"
            )


@lru_cache(maxsize=2)
def _open(path: str, stamp: tuple[int, int]) -> Model:
    return Model(path)


def open_model(path: str) -> Model:
    """Parse and check a file, once per version of it. Raises BadModel."""
    status = Path(path).stat()
    return _open(path, (status.st_mtime_ns, status.st_size))


def _unpack(data: bytes, path: str) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    try:
        root = schema.ModelT.InitFromPackedBuf(data, 0)
        if not root.subgraphs:
            raise BadModel(f"{path}: a TFLite file without a graph")
        codes = len(root.operatorCodes or ())
        if any(not 0 <= item.opcodeIndex < codes for graph in root.subgraphs for item in graph.operators or ()):
            raise BadModel(f"{path}: an operator code is missing; the file is damaged")
    except (struct.error, ValueError, TypeError, IndexError, AttributeError, OverflowError, MemoryError) as error:
        raise BadModel(f"{path}: a damaged or truncated TFLite file ({type(error).__name__}: {error})") from error
    return root


class _AlignedBuffer:
    """Packs the bytes of one buffer at a multiple of 16, as the schema demands and its generated Python code does not."""

    def __init__(self, data: Any) -> None:
        self.data = np.ascontiguousarray(() if data is None else data, dtype=np.uint8)

    def Pack(self, builder: Any) -> int:
        from ai_edge_litert import schema_py_generated as schema

        vector = 0
        if self.data.size:
            builder.StartVector(1, self.data.size, 16)
            builder.head -= self.data.size
            memoryview(builder.Bytes)[builder.head : builder.head + self.data.size] = self.data.data
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector:
            schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))


def pack(root: Any) -> bytes:
    """Write a model (ModelT) as a TFLite file. Raises Unsupported when its buffers lie outside it, as beyond 2 GB."""
    import flatbuffers

    if any((buffer.offset or 0) > 1 for buffer in root.buffers or ()):
        raise Unsupported("a TFLite file whose constants lie behind its graph (over 2 GB) cannot be written again")
    written = copy.copy(root)
    written.buffers = [_AlignedBuffer(buffer.data) for buffer in root.buffers or ()]
    room = sum(buffer.data.size + 64 for buffer in written.buffers)
    room += sum(512 * (len(graph.tensors or ()) + len(graph.operators or ())) for graph in root.subgraphs)
    builder = flatbuffers.Builder(room + 65536)  # it doubles, and copies, when that is too little
    builder.Finish(written.Pack(builder), b"TFL3")
    return bytes(memoryview(builder.Bytes)[builder.Head() :])


def quantize(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """Put real values on the grid of a quantised tensor: round half to even, clip, NaN to the zero point."""
    assert tensor.quantization is not None
    return on_grid(values, tensor.quantization, tensor.dtype)


def on_grid(values: np.ndarray, grid: Quantization, dtype: str) -> np.ndarray:
    """Return the stored integers of real values, at most a byte wide where the dtype packs two to a byte."""
    low, high = _NIBBLES.get(dtype) or (np.iinfo(dtype).min, np.iinfo(dtype).max)
    scale, zero = (part.astype(np.float64) for part in _along_axis(grid, np.ndim(values)))
    steps = np.rint(np.asarray(values, dtype=np.float64) / scale) + zero
    steps = np.where(np.isnan(steps), zero, steps)
    return np.asarray(np.clip(steps, low, high).astype({"int4": "int8", "uint4": "uint8"}.get(dtype, dtype)))


def dequantize(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """Return float32 values of a quantised tensor, any other tensor as it is."""
    return values if tensor.quantization is None else off_grid(values, tensor.quantization)


def off_grid(values: np.ndarray, grid: Quantization) -> np.ndarray:
    """Return the float32 values of stored integers."""
    scale, zero = _along_axis(grid, values.ndim)
    steps = values.astype(np.int64) - zero
    return np.asarray(steps.astype(np.float32) * scale)


def _along_axis(grid: Quantization, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point, of a shape that broadcasts along the axis they belong to."""
    if grid.scale.size == 1:
        return grid.scale.reshape(()), grid.zero_point.reshape(())
    shape = [1] * axes
    shape[grid.axis] = -1
    return grid.scale.reshape(shape), grid.zero_point.reshape(shape)


def read_grid(item: Any, dtype: str, *, constant: bool) -> Quantization | None:
    """Read the grid of a tensor. Integers wider than 16 bits are indices unless they are constants (biases)."""
    found = item.quantization
    if found is None or found.scale is None or len(found.scale) == 0 or not np.any(found.scale):
        return None
    if dtype not in _GRID and not (constant and dtype in ("int32", "int64")):
        return None
    scale = np.asarray(found.scale, dtype=np.float32)
    zero: np.ndarray = np.zeros(scale.shape, np.int64)
    if found.zeroPoint is not None and len(found.zeroPoint):
        zero = np.resize(np.asarray(found.zeroPoint, dtype=np.int64), scale.shape)
    return Quantization(scale=scale, zero_point=zero, axis=int(found.quantizedDimension or 0))


def _by_position(indices: tuple[int, ...], entries: Any) -> list[str | None]:
    left = [(int(entry.tensorIndex), _text(entry.name)) for entry in entries or ()]
    names: list[str | None] = []
    for index in indices:
        match = next((entry for entry in left if entry[0] == index), None)
        names.append(None if match is None else match[1])
        if match is not None:
            left.remove(match)
    return names


def _unpack_nibbles(data: np.ndarray, elements: int, *, signed: bool) -> np.ndarray:
    low, high = data & 0x0F, data >> 4
    values = np.stack([low, high], axis=1).reshape(-1)[:elements].astype(np.int8)
    return np.where(values > 7, values - 16, values).astype(np.int8) if signed else values.astype(np.uint8)


def _storage(dtype: str) -> np.dtype[Any]:
    return np.dtype(np.uint8 if dtype in _PACKED else dtype)


def _indices(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(value) for value in values)


def _text(value: Any) -> str:
    return "" if value is None else value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def snake(name: str) -> str:
    """Return the schema's own spelling of an option: strideW -> stride_w."""
    return re.sub(r"[A-Z]", lambda match: "_" + match.group(0).lower(), name)
