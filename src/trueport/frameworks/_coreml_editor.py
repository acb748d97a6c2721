"""An ML program opened for change: its operations by name, constants read and stored, operations put in and taken out.

The protobuf message is edited and the weights file only added to, or overwritten where exactly one constant lies, so
what no change touches keeps every byte. Names are those that `graph` gives: an operation has that of its first result.
Only operations of the main block can be changed; what loops and branches hold inside stays.
"""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueport.frameworks import _coreml_read as reading
from trueport.frameworks import _coreml_view as view
from trueport.frameworks._base import BadModel, Unsupported
from trueport.frameworks._coreml_messages import copied, dtype_of, every, is_constant, made_in, reads, rewire, values
from trueport.frameworks._coreml_program import Constant, Type

SMALL = 10
"""Stored arrays of fewer elements stand in the program itself, as coremltools writes them."""
_BLOBS = {"float16": 1, "float32": 2, "uint8": 3, "int8": 4}
"""Types of arrays in the weights file -> their numbers there."""
_ALIGN = 64
_WEIGHTS = "@model_path/weights/weight.bin"
_FIELDS = {
    "float32": "floats",
    "int32": "ints",
    "bool": "bools",
    "int64": "longInts",
    "float64": "doubles",
    "str": "strings",
}
_PACKED = ("float16", "int8", "uint8")


class Place(NamedTuple):
    """One operand: the argument of the operation, and its number where the argument is a list."""

    argument: str
    number: int


class Editor:
    """One program. `operations`: those of the main block, constants included, as messages of their own."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.spec = reading.read_spec(path)
        if self.spec.WhichOneof("Type") != "mlProgram":
            raise Unsupported("the file is no ML program")
        self.program = reading.read_program(self.spec, path)
        functions = self.spec.mlProgram.functions
        wanted = self.spec.description.defaultFunctionName or "main"
        self.function = functions[wanted if wanted in functions else min(functions)]
        self.block = self.function.block_specializations[self.function.opset]
        self.operations = [copied(item) for item in self.block.operations]
        self.outputs = list(self.block.outputs)
        self.folder = reading.model_file(path).parent
        self.fresh_ones: set[str] = set()
        self.resized = False
        self.unpacked: dict[str, np.ndarray] = {}
        self._types: dict[str, Type] = self._known()
        self._taken = self._names()
        self._useless = {id(item) for item in self.operations} - {id(item) for item in self.live()}
        self._prints = {id(item): item.SerializeToString(deterministic=True) for item in self.operations}
        self._patches: dict[int, bytes] = {}
        self._added = bytearray()
        self._count = 0

    def _known(self) -> dict[str, Type]:
        found = {item.name: reading.read_type(item.type) for item in self.function.inputs}
        for operation in self.operations:
            found.update((output.name, reading.read_type(output.type)) for output in operation.outputs)
        return found

    def _names(self) -> set[str]:
        found = {item.name for item in [*self.spec.description.input, *self.spec.description.output]}
        for function in self.spec.mlProgram.functions.values():
            found |= {item.name for item in function.inputs}
            for block in function.block_specializations.values():
                found |= set(made_in(block))
        return found

    # -- reading ------------------------------------------------------------------------------------------------

    def node(self, name: str) -> Any:
        """The operation whose first result has that name. Raises Unsupported."""
        for operation in self.operations:
            if operation.outputs and operation.outputs[0].name == name and not is_constant(operation):
                return operation
        raise Unsupported(f"the program has no operation '{name}'")

    def producer(self, value: str) -> Any | None:
        """The operation that makes a value, constants included; None for inputs and for what does not exist."""
        return next((item for item in self.operations if any(one.name == value for one in item.outputs)), None)

    def exists(self, value: str) -> bool:
        """Whether the main block has a value of that name."""
        return value in self.inputs or self.producer(value) is not None

    @property
    def inputs(self) -> list[str]:
        """Names of the function's inputs."""
        return [item.name for item in self.function.inputs]

    def readers(self, value: str) -> list[Any]:
        """The operations that read a value, those whose blocks read it included."""
        return [item for item in self.operations if value in reads(item)]

    def stored(self, name: str) -> Any | None:
        """The operation that holds a constant (a `const`, or one that unpacks); None where it is none."""
        made = self.producer(name)
        return made if made is not None and is_constant(made) else None

    def array(self, name: str) -> Any | None:
        """The value of a constant as nodes read it: an array or a text; None where the name is no constant."""
        made = self.stored(name)
        if made is None:
            return None
        if made.type == "const":
            return self.value_of(made.attributes["val"])
        if name in self.unpacked:
            return self.unpacked[name]
        found = self.program.constants.get(name)
        return None if found is None else found.load()

    def value_of(self, message: Any) -> Any:
        """What a stored Value holds. Raises Unsupported for an array that was stored by this change."""
        declared = reading.read_type(message.type)
        if message.WhichOneof("value") == "blobFileValue":
            offset = int(message.blobFileValue.offset)
            kept = self._again(offset, declared)
            if kept is not None:
                return kept
            file = self.folder / message.blobFileValue.fileName.replace("@model_path/", "", 1)
            return reading.Blob(file, offset, declared.dtype, tuple(int(n or 0) for n in declared.shape or ())).read()
        return reading._immediate(message.immediateValue, declared)

    def _again(self, offset: int, declared: Type) -> np.ndarray | None:
        """An array that this change has put into the weights file."""
        start, data = offset, self._patches.get(offset)
        if data is None and offset >= self.end and self._added:
            header = self._added[start - self.end : start - self.end + _ALIGN]
            size, begin = struct.unpack_from("<QQ", header, 8)
            data = bytes(self._added[begin - self.end : begin - self.end + size])
        if data is None:
            return None
        return np.frombuffer(data, declared.dtype).reshape([int(size or 0) for size in declared.shape or ()])

    def argument(self, operation: Any, name: str) -> Any | None:
        """The constant value of an argument: an array, a text, or a list; None where it is absent or computed."""
        if name in operation.attributes:
            return self.value_of(operation.attributes[name])
        bindings = operation.inputs[name].arguments if name in operation.inputs else ()
        found = [self._bound(binding) for binding in bindings]
        if not found or any(item is None for item in found):
            return None
        return found[0] if len(found) == 1 else found

    def _bound(self, binding: Any) -> Any | None:
        return self.array(binding.name) if binding.WhichOneof("binding") == "name" else self.value_of(binding.value)

    def operands(self, operation: Any) -> list[tuple[Place, str]]:
        """Places and names of what an operation reads, in the order of `graph`, which shows settings as attributes."""
        found = []
        name = operation.outputs[0].name if operation.outputs else ""
        order = {argument: rank for rank, argument in enumerate(view.DATA)}
        for argument in sorted(operation.inputs, key=lambda one: (order.get(one, len(order)), one)):
            bindings = operation.inputs[argument].arguments
            for number, binding in enumerate(bindings):
                own = f"{name}.{argument}" + (f".{number}" if number else "")
                bound = binding.name if binding.WhichOneof("binding") == "name" else own
                if len(bindings) == 1 and view.is_attribute(self.program, argument, bound):
                    continue
                found.append((Place(argument, number), bound))
        return found

    def operand(self, operation: Any, slot: int) -> tuple[Place, str]:
        """The operand number `slot`. Raises Unsupported."""
        found = self.operands(operation)
        if not 0 <= slot < len(found):
            raise Unsupported(f"the operation has {len(found)} operands, and none number {slot}")
        return found[slot]

    def data(self, operation: Any) -> list[str]:
        """The operands that are computed, in the order of `graph`."""
        return [name for _, name in self.operands(operation) if self.exists(name) and not self.is_fixed(name)]

    def is_fixed(self, value: str) -> bool:
        """Whether a value does not depend on an input of the model."""
        if value in self.inputs:
            return False
        made = self.producer(value)
        return made is not None and (is_constant(made) or all(self.is_fixed(name) for name in reads(made)))

    def type(self, value: str) -> Type:
        """The declared type of a value; float32 of unknown shape where nothing is known."""
        return self._types.get(value, Type("float32", None))

    def note(self, value: str, declared: Type) -> None:
        """Say what type a value has, as far as it is known before all types are worked out anew."""
        self._types[value] = declared

    def shape(self, value: str) -> list[int | None] | None:
        """The shape of a value, None for open sizes; None as a whole when the rank is unknown."""
        sizes = self.type(value).shape
        return None if sizes is None else [size if isinstance(size, int) else None for size in sizes]

    # -- constants ----------------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A name that the model does not use yet."""
        plain = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in hint)
        plain = plain if plain[:1].isalpha() or plain[:1] == "_" else f"_{plain}"
        count, name = 0, plain
        while name in self._taken:
            count += 1
            name = f"{plain}_{count}"
        self._taken.add(name)
        return name

    def constant(self, value: Any, hint: str = "constant", dtype: str | None = None) -> str:
        """Store an array, a number or a text as a new constant and return its name."""
        name = self.fresh(hint)
        operation = reading.messages("MIL").Operation(type="const")
        operation.attributes["name"].CopyFrom(self._value(name, "str", small=True))
        made = self._value(value, dtype or dtype_of(value))
        operation.attributes["val"].CopyFrom(made)
        output = operation.outputs.add(name=name)
        output.type.CopyFrom(made.type)
        self.operations.insert(0, operation)
        self.note(name, reading.read_type(made.type))
        self._stored_anew(name)
        return name

    def _stored_anew(self, name: str) -> None:
        """Let the program know a new constant, or one of another shape, so that `operands` shows it as `graph` will."""
        declared = self.type(name)
        shape = tuple(int(size or 0) for size in declared.shape or ())
        self.program.constants[name] = Constant(declared.dtype, shape, lambda: self.array(name))

    def overwrite(self, operation: Any, value: Any) -> None:
        """Give a `const` another value in the type that it has; in its place in the weights file where it fits there."""
        message = operation.attributes["val"]
        declared = reading.read_type(message.type)
        array = np.asarray(value, declared.dtype)
        same = tuple(array.shape) == tuple(declared.shape or ())
        if message.WhichOneof("value") == "blobFileValue" and same and self._alone(message, operation):
            self._patches[int(message.blobFileValue.offset)] = array.tobytes()
            return
        message.CopyFrom(self._value(array, declared.dtype))
        operation.outputs[0].type.CopyFrom(message.type)
        self.note(operation.outputs[0].name, reading.read_type(message.type))
        self._stored_anew(operation.outputs[0].name)

    def _alone(self, message: Any, operation: Any) -> bool:
        """Whether no other constant of any function lies at the same place of the weights file."""
        offset = int(message.blobFileValue.offset)
        if offset >= self.end:
            return False
        others = [
            value
            for function in self.spec.mlProgram.functions.values()
            for block in function.block_specializations.values()
            for one in (self.operations if block is self.block else every(block))
            if one is not operation
            for value in values(one)
        ]
        if len(self.spec.mlProgram.functions) > 1:
            return False
        return not any(
            value.WhichOneof("value") == "blobFileValue" and int(value.blobFileValue.offset) == offset
            for value in others
        )

    def _value(self, value: Any, dtype: str, *, small: bool = False) -> Any:
        """A Value message. Arrays of some size go into the weights file."""
        mil = reading.messages("MIL")
        message = mil.Value()
        array = np.asarray(value, object if dtype == "str" else dtype)
        tensor = message.type.tensorType
        tensor.dataType = mil.DataType.Value({"str": "STRING"}.get(dtype, dtype.upper()))
        tensor.rank = array.ndim
        for size in array.shape:
            tensor.dimensions.add().constant.size = size
        if array.size >= SMALL and dtype in _BLOBS and not small:
            message.blobFileValue.fileName = _WEIGHTS
            message.blobFileValue.offset = self._append(array)
        elif dtype in _PACKED:
            message.immediateValue.tensor.bytes.values = array.tobytes()
        else:
            field = getattr(message.immediateValue.tensor, _FIELDS[dtype])
            field.SetInParent()
            field.values.extend(array.reshape(-1).tolist())
        return message

    @property
    def end(self) -> int:
        """Where the first new record of the weights file begins."""
        file = self.folder / "weights" / "weight.bin"
        size = file.stat().st_size if file.is_file() else _ALIGN
        return -(-size // _ALIGN) * _ALIGN

    def _append(self, array: np.ndarray) -> int:
        data = np.ascontiguousarray(array).tobytes()
        offset = self.end + len(self._added)
        record = struct.pack("<IIQQQ", 0xDEADBEEF, _BLOBS[array.dtype.name], len(data), offset + _ALIGN, 0)
        self._added += record.ljust(_ALIGN, b"\0") + data + b"\0" * (-len(data) % _ALIGN)
        self._count += 1
        return offset

    # -- changing -----------------------------------------------------------------------------------------------

    def bind(self, operation: Any, argument: str, *names: str) -> None:
        """Let an argument read these values; none takes it away."""
        operation.attributes.pop(argument, None)
        operation.inputs.pop(argument, None)
        for name in names:
            operation.inputs[argument].arguments.add(name=name)

    def rebind(self, operation: Any, place: Place, name: str) -> None:
        """Let one operand be another value."""
        if place.argument in operation.attributes:
            operation.attributes.pop(place.argument)
        bindings = operation.inputs[place.argument].arguments
        while len(bindings) <= place.number:
            bindings.add()
        bindings[place.number].Clear()
        bindings[place.number].name = name

    def add(self, kind: str, arguments: dict[str, Any], output: str, *, like: Type) -> Any:
        """Append an operation; `arguments` hold names of values, or lists of them. `save` puts it where it can run."""
        made = reading.messages("MIL").Operation(type=kind)
        made.attributes["name"].CopyFrom(self._value(output, "str", small=True))
        for name, value in arguments.items():
            for one in value if isinstance(value, list) else [value]:
                made.inputs[name].arguments.add(name=one)
        made.outputs.add(name=output)
        self._types[output] = like
        self.operations.append(made)
        self.fresh_ones.add(output)
        return made

    def replace(self, operation: Any, before: str, after: str) -> None:
        """Let an operation, and what its blocks hold, read `after` wherever it reads `before`."""
        rewire(operation, before, after)

    def rename(self, operation: Any, before: str, after: str) -> None:
        """Let a result of an operation have another name; who reads it is not changed."""
        for output in operation.outputs:
            if output.name == before:
                output.name = after
        self._taken.add(after)
        self._types[after] = self.type(before)
        if before in self.fresh_ones:
            self.fresh_ones.add(after)

    def drop(self, operation: Any) -> None:
        """Take an operation out."""
        self.operations = [item for item in self.operations if item is not operation]

    # -- saving -------------------------------------------------------------------------------------------------

    def live(self) -> list[Any]:
        """The operations on which an output or a state depends."""
        makers = {output.name: item for item in self.operations for output in item.outputs}
        waiting = [*self.outputs]
        found = {id(item): item for item in self.operations if not item.outputs or item.type in reading.WRITERS}
        for item in found.values():
            waiting += reads(item)
        while waiting:
            item = makers.get(waiting.pop())
            if item is not None and id(item) not in found:
                found[id(item)] = item
                waiting += reads(item)
        return list(found.values())

    def order(self) -> None:
        """Put the operations where each can run, in the file's order as far as that goes. Raises Unsupported for a cycle."""
        made = {output.name for item in self.operations for output in item.outputs}
        ready: set[str] = set()
        done: list[Any] = []
        waiting = self.operations
        while waiting:
            later = []
            for item in waiting:
                if all(name in ready or name not in made for name in reads(item)):
                    done.append(item)
                    ready.update(output.name for output in item.outputs)
                else:
                    later.append(item)
            if len(later) == len(waiting):
                name = later[0].outputs[0].name if later[0].outputs else later[0].type
                raise Unsupported(f"the edits would make a cycle: operation '{name}' would read its own result")
            waiting = later
        self.operations = done

    def prune(self) -> None:
        """Drop what the changes have made useless, and nothing that was useless before."""
        alive = {id(item) for item in self.live()}
        self.operations = [item for item in self.operations if id(item) in alive or id(item) in self._useless]

    def changed(self) -> bool:
        """Whether any operation is other than the file has it, values in the weights file aside."""
        return (
            self.resized
            or any(self._prints.get(id(item)) != item.SerializeToString(deterministic=True) for item in self.operations)
            or len(self.operations) != len(self._prints)
        )

    def save(self, out: str) -> None:
        """Write the package. It appears whole or not at all."""
        del self.block.operations[:]
        self.block.operations.extend(self.operations)
        del self.block.outputs[:]
        self.block.outputs.extend(self.outputs)
        root, part = Path(self.path), Path(f"{out}.part")
        if part.exists():
            shutil.rmtree(part)
        inner = reading.model_file(self.path).relative_to(root)
        shutil.copytree(root, part)
        (part / inner).write_bytes(self.spec.SerializeToString(deterministic=True))
        self._write_weights((part / inner).parent / "weights" / "weight.bin")
        os.replace(part, out)  # noqa: PTH105 -- `out` is a string everywhere here

    def _write_weights(self, file: Path) -> None:
        if not self._patches and not self._added:
            return
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(struct.pack("<II", 0, 2).ljust(_ALIGN, b"\0"))
        with file.open("r+b") as stream:
            stream.seek(0)
            count, version = struct.unpack("<II", stream.read(8))
            for offset, data in self._patches.items():
                stream.seek(offset)
                sentinel, _, size, begin = struct.unpack("<IIQQ", stream.read(24))
                if sentinel != 0xDEADBEEF or size != len(data):
                    raise BadModel(f"{self.path}: its weights file has no array of {len(data)} bytes at {offset}")
                stream.seek(begin)
                stream.write(data)
            if self._added:
                stream.seek(0, os.SEEK_END)
                stream.write(b"\0" * (-stream.tell() % _ALIGN) + self._added)
                stream.seek(0)
                stream.write(struct.pack("<II", count + self._count, version))
