"""A .pte file as ExecuTorch's own reader gives it: values, kernel calls and constants of its method.

A file has no names. Inputs are `input_N` and outputs `output_N` by position; every other tensor is `value_N` or, when it
is stored, `constant_N`, with the number that it has in the file. Nothing in a file runs when it is read.
"""

from __future__ import annotations

import copy
import functools
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks._base import BadModel, SpecDict, Unsupported

IDENTIFIER = b"ET12"
METHOD = "forward"
_TYPES = {
    "BYTE": "uint8",
    "CHAR": "int8",
    "SHORT": "int16",
    "INT": "int32",
    "LONG": "int64",
    "HALF": "float16",
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "BOOL": "bool",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
}
"""ExecuTorch's name of an element type -> NumPy's."""


VIEW = ("aten::view_copy", "out")
"""Operator and overload of what stands in for a view that the file leaves out."""


class Call:
    """One instruction. `reads`, `writes`: numbers of tensors; `settings`: argument name -> number of a value that is none.

    place: among the file's instructions, -1 for a view that is not among them; `made` is its instruction then.
    """

    def __init__(
        self,
        place: int,
        native: str,
        reads: Sequence[int],
        writes: Sequence[int],
        settings: Mapping[str, int],
        made: Any = None,
    ) -> None:
        self.place = place
        self.made = made
        self.native = native
        self.reads = list(dict.fromkeys(reads)) if native.startswith("delegate") else list(reads)
        self.writes = list(writes)
        self.settings = dict(settings)


class Model:
    """One method of a file."""

    def __init__(self, path: str, content: bytes) -> None:
        from executorch.exir._serialize._program import deserialize_pte_binary

        self.path = path
        self.content = content
        self.file = deserialize_pte_binary(content)
        plans = {plan.name: plan for plan in self.file.program.execution_plan}
        if not plans:
            raise BadModel(f"{path} holds no method")
        self.plan = copy.copy(plans.get(METHOD) or next(iter(plans.values())))  # views are added to it, not to the file
        self.values = [item.val for item in self.plan.values]
        self.inputs = list(self.plan.inputs)
        self.outputs = list(self.plan.outputs)
        for number in (*self.inputs, *self.outputs):
            if not self.is_tensor(number):
                raise Unsupported(f"{path}: an input or output that is no tensor is not handled")
        self.state = set(self._mutated())
        self.calls = list(self._with_views(list(self._read_calls())))
        self.branches = len(self.plan.chains) != 1 or any(
            type(item.instr_args).__name__ in ("JumpFalseCall", "MoveCall")
            for chain in self.plan.chains
            for item in chain.instructions
        )
        self.names = self._named()
        self.number_of = {name: number for number, name in self.names.items()}
        self.producer = {number: call for call in self.calls for number in call.writes}

    def is_tensor(self, number: int) -> bool:
        """Whether a value is one tensor."""
        return type(self.values[number]).__name__ == "Tensor"

    def is_constant(self, number: int) -> bool:
        """Whether a value is a tensor stored in the file, which nothing writes to."""
        value = self.values[number]
        return self.is_tensor(number) and value.allocation_info is None and value.data_buffer_idx > 0

    @property
    def stateful(self) -> bool:
        """Whether the method keeps tensors from call to call."""
        return bool(self.state)

    def _mutated(self) -> Iterator[int]:
        """Tensors that a call changes in place, inputs left out: what a method keeps from call to call."""
        for chain in self.plan.chains:
            for item in chain.instructions:
                if type(item.instr_args).__name__ != "KernelCall":
                    continue
                entry = self.plan.operators[item.instr_args.op_index]
                schema = schema_of(entry.name, entry.overload)
                for argument, number in zip(schema.arguments if schema else (), item.instr_args.args):
                    if argument.alias_info is not None and argument.alias_info.is_write and not argument.is_out:
                        yield from (one for one in self._tensors([number]) if one not in self.plan.inputs)

    def _read_calls(self) -> Iterator[Call]:
        for chain in self.plan.chains:
            for place, item in enumerate(chain.instructions):
                made = item.instr_args
                kind = type(made).__name__
                if kind == "KernelCall":
                    yield self._kernel(place, made)
                elif kind == "DelegateCall":
                    yield self._delegate(place, made)

    def _with_views(self, calls: Sequence[Call]) -> Iterator[Call]:
        """Put in the views that the file leaves out: a tensor that no call writes has the memory of the one that it views."""
        known = {*self.inputs, *self.state}
        owner = {self._memory(number): number for number in self.inputs if self._memory(number) is not None}
        for call in calls:
            yield from self._views(call.reads, known, owner)
            yield call
            known.update(call.writes)
            owner.update({self._memory(number): number for number in call.writes})
        yield from self._views(self.outputs, known, owner)

    def _views(self, reads: Sequence[int], known: set[int], owner: dict[Any, int]) -> Iterator[Call]:
        for number in reads:
            place = self._memory(number)
            base = owner.get(place)
            if number in known or place is None or base is None or self.is_constant(number):
                continue
            if self._elements(base) == self._elements(number):
                known.add(number)
                yield self._view(base, number)

    def _memory(self, number: int) -> tuple[int, int, int] | None:
        info = self.values[number].allocation_info if self.is_tensor(number) else None
        return None if info is None else (info.memory_id, info.memory_offset_low, info.memory_offset_high)

    def _elements(self, number: int) -> tuple[int, str]:
        value = self.values[number]
        return int(np.prod(value.sizes, dtype=np.int64)), value.scalar_type.name

    def _view(self, base: int, number: int) -> Call:
        from executorch.exir import schema

        plan = self.plan
        operators, values = list(plan.operators), list(plan.values)
        sizes = [int(size) for size in self.values[number].sizes]
        first = len(values)
        values += [schema.EValue(schema.Int(size)) for size in sizes]
        values.append(schema.EValue(schema.IntList(list(range(first, first + len(sizes))))))
        operators.append(schema.Operator(*VIEW))
        size = len(values) - 1
        made = schema.Instruction(schema.KernelCall(len(operators) - 1, [base, size, number, number]))
        plan.operators, plan.values = operators, values
        self.values = [item.val for item in values]
        return Call(-1, ".".join(VIEW), [base], [number], {"size": size}, made)

    def _kernel(self, place: int, made: Any) -> Call:
        """Tell operands from results by the operator's schema; without one the last argument is the result."""
        entry = self.plan.operators[made.op_index]
        native = f"{entry.name}.{entry.overload}" if entry.overload else entry.name
        schema = schema_of(entry.name, entry.overload)
        if schema is None or len(schema.arguments) > len(made.args):
            return Call(place, native, self._tensors(made.args[:-1]), self._tensors(made.args[-1:]), {})
        reads: list[int] = []
        writes: list[int] = []
        settings: dict[str, int] = {}
        for argument, number in zip(schema.arguments, made.args):
            tensors = self._tensors([number])
            if argument.is_out:
                writes.extend(tensors)
            elif tensors:
                reads.extend(tensors)
            elif type(self.values[number]).__name__ != "TensorList":
                settings[argument.name] = number
        if not writes:
            returned = self._tensors(made.args[len(schema.arguments) :])
            writes = [number for number in returned if number not in self.inputs and number not in self.state]
        return Call(place, native, reads, list(dict.fromkeys(writes)), settings)

    def _delegate(self, place: int, made: Any) -> Call:
        """A part that a backend has taken over: it computes those of its tensors that nothing before it has."""
        known = self.state | set(self.inputs) | {number for call in self._before(place) for number in call}
        tensors = self._tensors(made.args)
        reads = [number for number in tensors if number in known or self.is_constant(number)]
        name = self.plan.delegates[made.delegate_index].id
        return Call(place, f"delegate.{name}", reads, [number for number in tensors if number not in reads], {})

    def _before(self, place: int) -> Iterator[list[int]]:
        for item in self.plan.chains[0].instructions[:place]:
            if type(item.instr_args).__name__ in ("KernelCall", "DelegateCall"):
                yield self._tensors(item.instr_args.args)

    def _tensors(self, numbers: Sequence[int]) -> list[int]:
        found: list[int] = []
        for number in numbers:
            value = self.values[number]
            if type(value).__name__ == "Tensor":
                found.append(number)
            elif type(value).__name__ in ("TensorList", "OptionalTensorList"):
                found.extend(item for item in value.items if item >= 0)
        return found

    def _named(self) -> dict[int, str]:
        found = {number: f"input_{place}" for place, number in enumerate(self.inputs)}
        written = {number for call in self.calls for number in call.writes}
        for place, number in enumerate(self.outputs):
            if number in written:
                found.setdefault(number, f"output_{place}")
        for number in range(len(self.values)):
            if self.is_tensor(number):
                found.setdefault(number, f"constant_{number}" if self.is_constant(number) else f"value_{number}")
        return found

    def copies(self) -> dict[str, int]:
        """Outputs that are an input, a constant or another output once more: name -> that value."""
        return {
            f"output_{place}": number
            for place, number in enumerate(self.outputs)
            if self.names[number] != f"output_{place}"
        }

    def spec(self, number: int, name: str) -> SpecDict:
        """A tensor as input or output; of one with open sizes the file knows the largest only."""
        value = self.values[number]
        dynamic = int(value.shape_dynamism) != 0
        shape = [None if dynamic else int(size) for size in value.sizes]
        return {"name": name, "dtype": self.dtype(number), "shape": list(shape)}

    def dtype(self, number: int) -> str:
        """NumPy's name of the elements' type. Raises Unsupported for one that NumPy lacks."""
        name = self.values[number].scalar_type.name
        if name not in _TYPES:
            raise Unsupported(f"{self.path}: tensors of {name.lower()} are not handled")
        return _TYPES[name]

    def constant(self, number: int) -> np.ndarray:
        """The values of a stored tensor, in the order of its axes."""
        value = self.values[number]
        stored = self.file.program.constant_buffer[value.data_buffer_idx].storage
        sizes, order = list(value.sizes), list(value.dim_order)
        count = int(np.prod(sizes, dtype=np.int64))
        flat = np.frombuffer(bytes(stored), dtype=self.dtype(number), count=count, offset=0)
        return np.ascontiguousarray(flat.reshape([sizes[axis] for axis in order]).transpose(np.argsort(order)))

    def plain(self, number: int) -> Any:
        """A value that is no tensor, as JSON holds it; None for none and for one that is worked out while it runs."""
        value = self.values[number]
        kind = type(value).__name__
        if kind == "Int":
            return value.int_val
        if kind == "Bool":
            return value.bool_val
        if kind == "Double":
            return float(value.double_val)
        if kind == "String":
            return value.string_val
        if kind == "IntList":
            return [self.plain(item) for item in value.items]
        return list(value.items) if kind in ("DoubleList", "BoolList") else None


def schema_of(name: str, overload: str) -> Any:
    """PyTorch's schema of an operator, None where it is not registered."""
    import torch

    space, _, short = name.partition("::")
    try:
        return operator.attrgetter(f"{space}.{short}.{overload or 'default'}")(torch.ops)._schema
    except (AttributeError, RuntimeError):
        return None


def read(path: str) -> Model:
    """Read a file. Raises BadModel for a damaged one, Unsupported for inputs or outputs that are no tensors."""
    return _read(path, os.stat(path).st_mtime_ns)  # noqa: PTH116


@functools.lru_cache(maxsize=2)
def _read(path: str, modified: int) -> Model:
    from executorch.runtime import Runtime, Verification

    content = Path(path).read_bytes()
    try:
        Runtime.get().load_program(content, verification=Verification.InternalConsistency)
        return Model(path, content)
    except (BadModel, Unsupported):
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadModel(f"{path} is damaged, or of another version of ExecuTorch: {first}") from error


def write(file: Any, out: str) -> None:
    """Write a file by an atomic rename."""
    partial = Path(f"{out}.{os.getpid()}.partial")
    partial.write_bytes(packed(file))
    partial.replace(out)


def packed(file: Any) -> bytes:
    """The bytes of a file that was read or built."""
    from executorch.exir._serialize._program import serialize_pte_binary

    return bytes(serialize_pte_binary(file))
