"""An exported JAX function as plain data: StableHLO operators in execution order, calls unfolded, constants apart.

A file is what `jax.export.Exported.serialize()` gives. Values are named after JAX's own operations ("dot_general",
"relu/max"), constants by number. JAX's checks of the sizes that it is called with are left out: they compute nothing.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueport.frameworks._base import BadModel, Dim, SpecDict, Unsupported

BYTECODE = b"ML\xefR"
"""How a program in MLIR's bytecode begins; the file holds one, behind the root of a flatbuffer."""
DIALECT = b"StableHLO_v"
_CHECKS = ("shape_assertion",)
_DTYPES = {
    "i1": "bool", "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64", "ui8": "uint8", "ui16": "uint16",
    "ui32": "uint32", "ui64": "uint64", "f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64",
    "complex<f32>": "complex64", "complex<f64>": "complex128",
}  # fmt: skip


class Type(NamedTuple):
    """Dtype by NumPy's name, and shape; None for an open size."""

    dtype: str
    shape: tuple[int | None, ...]


class Op(NamedTuple):
    """One operator: `kind` without "stablehlo."; values by name; `types` of its results."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    blocks: tuple[Block, ...]
    types: tuple[Type, ...]


class Block(NamedTuple):
    """The body of an operator, or of the whole program."""

    arguments: tuple[str, ...]
    ops: tuple[Op, ...]
    returns: tuple[str, ...]


class Program(NamedTuple):
    """A file in memory. `exported` is JAX's own object, which runs it; `body` takes and gives `inputs` and `outputs`."""

    exported: Any
    inputs: tuple[SpecDict, ...]
    outputs: tuple[SpecDict, ...]
    body: Block
    constants: dict[str, np.ndarray]
    version: str


def is_exported(head: bytes) -> bool:
    """Whether a file that begins so is a serialised `jax.export.Exported`: a flatbuffer that holds StableHLO."""
    if len(head) < 64 or head.startswith(BYTECODE):
        return False
    (root,) = struct.unpack_from("<I", head)
    place = head.find(BYTECODE)
    return 4 <= root < min(len(head), 4096) and place > root and DIALECT in head[place : place + 64]


def load(path: str) -> Program:
    """Read a file, once per version. Raises BadModel, Unsupported."""
    return _load(path, Path(path).stat().st_mtime_ns if Path(path).exists() else 0)


@functools.lru_cache(maxsize=2)
def _load(path: str, stamp: int) -> Program:
    from jax import export

    from trueport.frameworks import _jax_sizes

    data = bytearray(Path(path).read_bytes())
    try:
        exported = export.deserialize(data)
    except Exception as error:  # flatbuffers and MLIR raise whatever their bytes make them
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if "version" in line.lower() and "serialization" in line.lower():
            raise Unsupported(f"{path}: written by a JAX of another generation than the one here ({line})") from error
        raise BadModel(f"{path}: not a readable jax.export file ({line}); it may be cut off") from error
    if exported.nr_devices != 1:
        raise Unsupported(f"{path}: exported for {exported.nr_devices} devices; export it for one")
    if "cpu" not in exported.platforms:
        raise Unsupported(f"{path}: exported for {', '.join(exported.platforms)}; export it with platforms=['cpu']")
    if exported.ordered_effects or exported.unordered_effects:
        raise Unsupported(f"{path}: the exported function has side effects (printing, callbacks)")
    version = re.search(rb"StableHLO_v([0-9.]+)", bytes(exported.mlir_module_serialized[:64]))
    reader = _Reader(exported)
    inputs, outputs = reader.inputs(), reader.outputs()
    kept = [inputs[index]["name"] for index in exported.module_kept_var_idx]
    body = reader.read(kept, [spec["name"] for spec in outputs])
    ops = needed(_jax_sizes.fold(body.ops, inputs, reader.constants), body.returns, {})
    used = {name for op in ops for name in reads(op)}
    constants = {name: array for name, array in reader.constants.items() if name in used}
    text = version.group(1).decode() if version else "?"
    return Program(exported, inputs, outputs, body._replace(ops=tuple(ops)), constants, text)


class _Reader:
    """Turns one MLIR module into a Block, calls unfolded."""

    def __init__(self, exported: Any) -> None:
        from jax._src.interpreters.mlir import make_ir_context  # the only place that knows all dialects JAX writes
        from jaxlib.mlir import ir

        self.exported = exported
        self.ir = ir
        self.constants: dict[str, np.ndarray] = {}
        self.taken: dict[str, int] = {}
        self.context = make_ir_context()
        with self.context:
            self.module = ir.Module.parse(exported.mlir_module())
            self.functions = {item.attributes["sym_name"].value: item for item in self.module.body.operations}

    def inputs(self) -> tuple[SpecDict, ...]:
        """Names: of keyword arguments their own, of positional ones those in the source code where the file has them."""
        import jax

        exported = self.exported
        marked = jax.tree_util.tree_unflatten(exported.in_tree, list(range(len(exported.in_avals))))
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(marked)[0]]
        known = self._argument_names()
        names = []
        for index, path in enumerate(paths):
            parts = [_key(part) for part in path]
            first = parts[1] if parts[0] == "1" else known.get(index, f"arg{parts[1]}")
            names.append(".".join([first, *parts[2:]]))
        return tuple(_spec(name, aval) for name, aval in zip(_distinct(names), exported.in_avals))

    def _argument_names(self) -> dict[int, str]:
        """Index of a flat input -> the parameter's name, from the locations that JAX writes."""
        entry = self.functions.get("_wrapped_jax_export_main", self.functions["main"])
        arguments = list(entry.regions[0].blocks[0].arguments)
        arguments = arguments[len(arguments) - len(self.exported.module_kept_var_idx) :]  # sizes come first
        found = {}
        for index, argument in zip(self.exported.module_kept_var_idx, arguments):
            match = re.match(r'loc\("([A-Za-z_]\w*)', str(argument.location))
            if match:
                found[index] = match.group(1)
        return found

    def outputs(self) -> tuple[SpecDict, ...]:
        """Names: a dictionary's keys, else output_0 and so on."""
        import jax

        exported = self.exported
        marked = jax.tree_util.tree_unflatten(exported.out_tree, list(range(len(exported.out_avals))))
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(marked)[0]]
        names = []
        for index, path in enumerate(paths):
            name = ".".join(_key(part) for part in path)
            names.append(f"output_{index}" if not path or name.isdigit() else name)
        return tuple(_spec(name, aval) for name, aval in zip(_distinct(names), exported.out_avals))

    def read(self, inputs: Sequence[str], outputs: Sequence[str]) -> Block:
        """The whole program with its inputs and outputs under these names."""
        self.taken.update(dict.fromkeys([*inputs, *outputs], 1))
        ops: list[Op] = []
        with self.context:
            returned = self._inline(self.functions["main"], inputs, ops, "")
        ops += [Op(f"output {n}", "output", (v,), (n,), {}, (), ()) for n, v in zip(outputs, returned)]
        return Block(tuple(inputs), tuple(ops), tuple(outputs))

    def _inline(self, function: Any, arguments: Sequence[str], ops: list[Op], prefix: str) -> list[str]:
        block = function.regions[0].blocks[0]
        return self._block(block, dict(zip(block.arguments, arguments)), ops, prefix)

    def _block(self, block: Any, known: dict[Any, str], ops: list[Op], prefix: str) -> list[str]:
        """Append the operators of a block to `ops`, return the names of what it gives."""
        for item in block.operations:
            op = item.operation
            kind = op.name.rpartition("stablehlo.")[2]
            given = [known[value] for value in op.operands]
            if op.name in ("func.return", "stablehlo.return"):
                return given
            if op.name in ("func.call", "func.func_call") or kind == "composite":
                callee = op.attributes["decomposition" if kind == "composite" else "callee"].value
                inner = f"{prefix}{callee.strip('_')}/" if not callee.startswith("_wrapped_jax") else prefix
                made = self._inline(self.functions[callee], given, ops, inner)
                known.update(zip(op.results, made))
                continue
            if kind == "custom_call" and op.attributes["call_target_name"].value in _CHECKS:
                continue
            if kind == "constant":
                name = self._fresh("constant")
                self.constants[name] = np.array(op.attributes["value"])
                known[op.results[0]] = name
                continue
            ops.append(self._op(op, kind, given, known, prefix))
        return []

    def _op(self, op: Any, kind: str, given: Sequence[str], known: dict[Any, str], prefix: str) -> Op:
        name = self._fresh(prefix + _label(str(op.location), kind))
        results = [name] if len(op.results) == 1 else [f"{name}:{place}" for place in range(len(op.results))]
        known.update(zip(op.results, results))
        blocks = []
        for region in op.regions:
            for block in region.blocks:
                arguments = [self._fresh(f"{name}.argument") for _ in block.arguments]
                inner: list[Op] = []
                returns = self._block(block, {**known, **dict(zip(block.arguments, arguments))}, inner, f"{name}.")
                blocks.append(Block(tuple(arguments), tuple(inner), tuple(returns)))
        attributes = {item.name: _attribute(item.attr) for item in _attributes(op)}
        types = tuple(_type(str(value.type)) for value in op.results)
        return Op(name, kind, tuple(given), tuple(results), attributes, tuple(blocks), types)

    def _fresh(self, name: str) -> str:
        count = self.taken.get(name, 0)
        self.taken[name] = count + 1
        return name if not count else self._fresh(f"{name}_{count}")


class _Named(NamedTuple):
    name: str
    attr: Any


def _attributes(op: Any) -> list[_Named]:
    """The attributes of an operator, whichever way this JAX iterates over them (names, or pairs with a name)."""
    return [_Named(n, op.attributes[n]) for n in (getattr(item, "name", item) for item in op.attributes)]


_NUMBERS = ("ConvDimensionNumbers", "GatherDimensionNumbers", "ScatterDimensionNumbers", "DotDimensionNumbers")


def _attribute(attr: Any) -> Any:
    """An MLIR attribute as numbers, texts, lists, or a dictionary of those."""
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo

    for name in _NUMBERS:
        special = getattr(stablehlo, name)
        if _is(special, attr):
            fields = [
                field for field in vars(special) if field.endswith(("dimension", "dimensions", "dims", "_dim", "map"))
            ]
            values = {field: getattr(special(attr), field) for field in fields}
            return {field: value if isinstance(value, int) else list(value) for field, value in values.items()}
    if _is(ir.DenseElementsAttr, attr):
        return np.array(attr).tolist()
    for array in (ir.DenseI64ArrayAttr, ir.DenseBoolArrayAttr, ir.DenseI32ArrayAttr):
        if _is(array, attr):
            return list(array(attr))
    for scalar in (ir.BoolAttr, ir.IntegerAttr, ir.FloatAttr, ir.StringAttr, ir.FlatSymbolRefAttr):
        if _is(scalar, attr):
            return scalar(attr).value
    if _is(ir.ArrayAttr, attr):
        return [_attribute(item) for item in ir.ArrayAttr(attr)]
    text = str(attr)
    match = re.fullmatch(r"#stablehlo<\w+ (\w+)>", text)
    return match.group(1) if match else text


def _is(kind: Any, attr: Any) -> bool:
    """Whether an attribute is of this kind: old bindings have a method for that, new ones Python classes."""
    return bool(kind.isinstance(attr)) if hasattr(kind, "isinstance") else isinstance(attr, kind)


def _type(text: str) -> Type:
    """Read `tensor<?x6xf32>`."""
    match = re.match(r"tensor<((?:(?:\d+|\?)x)*)([^,>]+(?:<[^>]*>)?)", text)
    if not match:
        return Type(text, ())
    sizes = [part for part in match.group(1).split("x") if part]
    dtype = _DTYPES.get(match.group(2), match.group(2))
    return Type(dtype, tuple(None if part == "?" else int(part) for part in sizes))


def _label(location: str, kind: str) -> str:
    """The operation's name in JAX: the last part of `loc("jit(f)/dot_general"(…))`."""
    match = re.match(r'loc\("([^"]*)"', location)
    name = match.group(1).rstrip(":").rpartition("/")[2] if match else ""
    return name if re.fullmatch(r"[A-Za-z_][\w.]*", name) and name != "jit" else kind


def _key(part: Any) -> str:
    for field in ("key", "idx", "name"):
        if hasattr(part, field):
            return str(getattr(part, field))
    return str(part)


def _distinct(names: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    made = []
    for name in names:
        count = seen.get(name, 0)
        seen[name] = count + 1
        made.append(f"{name}_{count}" if count else name)
    return made


def _spec(name: str, aval: Any) -> SpecDict:
    shape: list[Dim] = [int(size) if isinstance(size, int) else str(size) for size in aval.shape]
    return SpecDict(name=name, dtype=str(np.dtype(aval.dtype)) if aval.dtype != "key" else "key", shape=shape)


_KEEPS_INDICES = (
    "select", "add", "broadcast_in_dim", "dynamic_broadcast_in_dim", "reshape", "dynamic_reshape", "convert",
    "concatenate", "clamp",
)  # fmt: skip
"""Operators through which an index reaches its gather: JAX first makes negative ones count from the end."""


def index_limits(program: Program) -> dict[str, int]:
    """Input name -> largest legal index, where a gather from a constant table reads that input."""
    makers = {name: op for op in program.body.ops for name in op.outputs}
    own = {spec["name"] for spec in program.inputs}
    found: dict[str, int] = {}
    for op in program.body.ops:
        if op.kind != "gather" or op.inputs[0] not in program.constants:
            continue
        table = program.constants[op.inputs[0]]
        axes = op.attributes["dimension_numbers"]["start_index_map"]
        limit = min(table.shape[axis] - op.attributes["slice_sizes"][axis] for axis in axes)
        left, seen = [op.inputs[1]], set()
        while left:
            name = left.pop()
            if name in own:
                found[name] = min(limit, found.get(name, limit))
            elif name not in seen and name in makers and makers[name].kind in _KEEPS_INDICES:
                left += makers[name].inputs
            seen.add(name)
    return found


def needed(ops: Sequence[Op], wanted: Sequence[str], given: Mapping[str, Any]) -> list[Op]:
    """The operators on which the wanted values depend, cut off at the given ones, in order.

    A wanted value that is given too is computed from its own operands. So what JAX's checks of sizes need goes.
    """
    open_names = set(wanted)
    found = []
    for op in reversed(ops):
        if any(name in open_names for name in op.outputs):
            found.append(op)
            open_names |= {name for name in reads(op) if name not in given}
    return found[::-1]


def reads(op: Op) -> list[str]:
    """What an operator reads, with what its blocks read from outside."""
    names = list(op.inputs)
    for block in op.blocks:
        own = set(block.arguments)
        for inner in block.ops:
            names += [name for name in reads(inner) if name not in own]
            own |= set(inner.outputs)
        names += [name for name in block.returns if name not in own]
    return list(dict.fromkeys(names))
