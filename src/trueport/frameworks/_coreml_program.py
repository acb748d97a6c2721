"""A Core ML program as plain data, and the interpreter that runs one with any table of kernels.

A *kernel* is a function of one `Call` that returns the operation's value, or a tuple of them. Values are PyTorch tensors,
Python strings, lists (a list in Core ML) and `State`s. Every floating-point value is computed in one arithmetic, float32
or float64, whatever type the program declares for it; a value that is declared float16 is rounded to that grid after each
operation where the caller asks for it, and integers take their declared type. Accumulation inside an operation is that
of the arithmetic: how the device accumulates is not documented.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from trueport.frameworks._base import Dim, Unsupported

if TYPE_CHECKING:
    import torch

_LARGEST_HALF = 65504.0
FLOATS = ("float16", "float32", "float64", "bfloat16")


REFUSALS = (RuntimeError, IndexError, ValueError, Unsupported)
"""What kernels raise of values that they cannot take."""


@dataclass(frozen=True)
class Type:
    """What the program declares of a value. `dtype`: NumPy's name, "str", or "list", "state", "tuple", "dict"; shape None: unknown."""

    dtype: str = "float32"
    shape: tuple[Dim, ...] | None = None


@dataclass
class Constant:
    """A stored value. `load` reads it from the file: an ndarray of `dtype` and `shape`, or a string."""

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], Any]


@dataclass
class Operation:
    """One step of a program.

    inputs: argument -> names of the values it reads (one, or several where the argument is a list); attributes: argument ->
    a value that stands in the operation itself; `writes`: names of the states that it changes.
    """

    name: str
    kind: str
    inputs: dict[str, list[str]]
    outputs: list[str]
    types: list[Type] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    writes: tuple[str, ...] = ()

    def reads(self) -> list[str]:
        """Names of all values it needs, those that its blocks take from outside included."""
        names = [name for bound in self.inputs.values() for name in bound]
        for block in self.blocks:
            names += block.captures()
        return list(dict.fromkeys(names))


@dataclass
class Block:
    """Operations in the order of execution. Names of an outer block are visible inside."""

    inputs: list[str]
    outputs: list[str]
    operations: list[Operation]

    def captures(self) -> list[str]:
        """Names that are read inside and made outside."""
        own = set(self.inputs)
        found: dict[str, None] = {}
        for operation in self.operations:
            found.update(dict.fromkeys(name for name in operation.reads() if name not in own))
            own.update(operation.outputs)
        found.update(dict.fromkeys(name for name in self.outputs if name not in own))
        return list(found)

    def all_operations(self) -> Iterator[Operation]:
        """Every operation, those in nested blocks after the one that holds them."""
        for operation in self.operations:
            yield operation
            for block in operation.blocks:
                yield from block.all_operations()


@dataclass
class Program:
    """One function of a model. `inputs` and `outputs` are in the order of the model's description; `states` start at zero."""

    inputs: dict[str, Type]
    outputs: dict[str, Type]
    constants: dict[str, Constant]
    block: Block
    states: dict[str, Type] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    lifted: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)
    """(constant, arithmetic) -> its value as kernels take it, filled when it is first read."""

    def types(self) -> dict[str, Type]:
        """Name -> declared type of the inputs, the states and every value that an operation outside nested blocks writes."""
        found = {**self.inputs, **self.states}
        for operation in self.block.operations:
            found.update(zip(operation.outputs, operation.types))
        return found


@dataclass
class State:
    """A tensor that keeps its value between operations; the program reads and writes it by reference."""

    value: Any


class Call:
    """One operation with the values of its arguments; what a kernel sees."""

    __slots__ = ("evaluator", "operation", "scope")

    def __init__(self, operation: Operation, scope: dict[str, Any], evaluator: Evaluator) -> None:
        self.operation, self.scope, self.evaluator = operation, scope, evaluator

    def __contains__(self, argument: str) -> bool:
        return argument in self.operation.inputs or argument in self.operation.attributes

    def __getitem__(self, argument: str) -> Any:
        """The value of an argument; of a list argument its first. Raises KeyError where the operation does not have it."""
        bound = self.operation.inputs.get(argument)
        if bound is not None:
            return self.evaluator.value(bound[0], self.scope)
        return self.evaluator.lift(self.operation.attributes[argument])

    def get(self, argument: str, default: Any = None) -> Any:
        """The value of an argument, or `default` where the operation does not have it."""
        if argument in self:
            return self[argument]
        return default

    def all(self, argument: str) -> list[Any]:
        """The values of a list argument."""
        bound = self.operation.inputs.get(argument)
        if bound is None:
            found = self.evaluator.lift(self.operation.attributes[argument])
            return found if isinstance(found, list) else [found]
        return [self.evaluator.value(name, self.scope) for name in bound]

    @property
    def float_type(self) -> torch.dtype:
        """The torch dtype of every floating-point value."""
        return self.evaluator.float_type

    def block(self, index: int, values: Sequence[Any] = ()) -> list[Any]:
        """Run a nested block with values for its inputs; gives the values of its outputs."""
        return self.evaluator.run_block(self.operation.blocks[index], values, self.scope)


Kernels = Mapping[str, Callable[[Call], Any]]
Emit = Callable[[str, Any], None]


def torch_type(dtype: str, float_type: torch.dtype) -> torch.dtype:
    """Return the torch dtype in which a value declared as `dtype` is held. Types that torch computes poorly with are held wider."""
    import torch

    if dtype in FLOATS:
        return float_type
    wider = {
        "uint16": "int32",
        "uint32": "int64",
        "uint64": "int64",
        "int4": "int8",
        "uint1": "uint8",
        "uint2": "uint8",
    }
    wider.update({"uint3": "uint8", "uint4": "uint8", "uint6": "uint8"})
    found: torch.dtype = getattr(torch, wider.get(dtype, dtype))
    return found


class Evaluator:
    """Runs the part of a program on which `wanted` depends, cut off at the names in `given`; reusable for any number of runs.

    precision: "float32" or "float64", the arithmetic of every floating-point value, or "float16": float32 with every stored
    tensor of more than one element rounded to float16. rounding: whether values declared float16 are rounded to it (never
    in float64). Raises Unsupported, naming them all, when operations have no kernel, and
    ValueError for a wanted name that the program does not have.
    """

    def __init__(
        self,
        program: Program,
        kernels: Kernels,
        *,
        wanted: Sequence[str],
        given: Sequence[str] = (),
        precision: str = "float32",
        rounding: bool = True,
    ) -> None:
        import torch

        self.program, self.kernels = program, kernels
        self.precision = precision
        self.float_type = torch.float64 if precision == "float64" else torch.float32
        self.rounding = rounding and precision != "float64"
        self.wanted, self.given = frozenset(wanted), frozenset(given)
        self.steps, self.needed = self._plan()
        self._refuse_missing()
        self.last = self._last_readers()

    def _plan(self) -> tuple[list[Operation], frozenset[str]]:
        """The operations that must run, in order, and the names of inputs, states and constants that they start from."""
        needed = set(self.wanted)
        steps = []
        for operation in reversed(self.program.block.operations):
            written = set(operation.outputs)
            # What is given is read in place of what is computed, unless the computed value itself is wanted.
            asked = (written & needed) - (self.given - self.wanted)
            if not asked and not needed.intersection(operation.writes):
                continue
            steps.append(operation)
            needed -= written - self.given
            needed.update(operation.reads())
        steps.reverse()
        made = {name for operation in steps for name in operation.outputs}
        unknown = sorted(needed - made - set(self.program.types()) - set(self.program.constants) - self.given)
        if unknown:
            raise ValueError(f"the program has no value '{unknown[0]}'")
        return steps, frozenset(needed)

    def _refuse_missing(self) -> None:
        kinds = {operation.kind for operation in self.steps}
        for operation in self.steps:
            for block in operation.blocks:
                kinds.update(inner.kind for inner in block.all_operations())
        missing = sorted(kinds - set(self.kernels))
        if missing:
            raise Unsupported(f"there is no kernel for the operators {', '.join(missing)}")

    def _last_readers(self) -> list[list[str]]:
        """For each step the names that nothing reads after it."""
        seen: set[str] = set()
        last: list[list[str]] = []
        for operation in reversed(self.steps):
            done = [name for name in dict.fromkeys([*operation.reads(), *operation.outputs]) if name not in seen]
            seen.update(done)
            last.append(done)
        last.reverse()
        return last

    # -- values

    def value(self, name: str, scope: dict[str, Any]) -> Any:
        """A value by name: of the running block, or a constant of the program."""
        if name in scope:
            return scope[name]
        return self.constant(name)

    def constant(self, name: str) -> Any:
        """A stored value as kernels take it. Kept, because the next run reads it again."""
        key = (name, self.precision)
        if key not in self.program.lifted:
            stored = self.program.constants[name].load()
            if (
                self.precision == "float16"
                and isinstance(stored, np.ndarray)
                and stored.dtype.kind == "f"
                and stored.size > 1
            ):
                stored = np.clip(stored, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)
            self.program.lifted[key] = self.lift(stored)
        return self.program.lifted[key]

    def lift(self, value: Any) -> Any:
        """Turn an ndarray (or numbers) into a tensor as kernels take it; strings, lists and None stay."""
        import torch

        if value is None or isinstance(value, (str, State, torch.Tensor)):
            return value
        if isinstance(value, (list, tuple)) and any(isinstance(item, (str, np.ndarray)) for item in value):
            return [self.lift(item) for item in value]
        array = np.asarray(value)
        if array.dtype.kind in "OSU":
            return array.item() if array.ndim == 0 else array.tolist()
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            array = array.astype(np.float64 if self.precision == "float64" else np.float32, copy=False)
        elif array.dtype.name in ("uint16", "uint32", "uint64"):
            array = array.astype({"uint16": np.int32}.get(array.dtype.name, np.int64))
        if not array.flags.writeable or not array.flags.c_contiguous:
            array = array.copy(order="C").reshape(array.shape)
        return torch.from_numpy(array)

    def settle(self, value: Any, declared: Type) -> Any:
        """Bring a kernel's result to its declared type: floats to the arithmetic (rounded to float16), integers to theirs."""
        import torch

        if not isinstance(value, torch.Tensor) or declared.dtype in ("list", "state", "tuple", "dict", "str"):
            return value
        if declared.dtype in FLOATS:
            if self.rounding and declared.dtype == "float16":
                return value.to(torch.float16).to(self.float_type)
            return value if value.dtype == self.float_type else value.to(self.float_type)
        wanted = torch_type(declared.dtype, self.float_type)
        return value if value.dtype == wanted else value.to(wanted)

    def lower(self, value: Any, declared: Type) -> Any:
        """Turn a value into an ndarray of its declared type, which for floats is the arithmetic where nothing is rounded."""
        import torch

        if isinstance(value, State):
            value = value.value
        if not isinstance(value, torch.Tensor):
            return np.asarray(value)
        array = value.detach().numpy()
        if declared.dtype == "float16" and self.rounding:
            return array.astype(np.float16)
        if declared.dtype in ("uint16", "uint32", "uint64"):
            return array.astype(declared.dtype)
        return array

    # -- running

    def run(
        self,
        feeds: Mapping[str, Any],
        given: Mapping[str, Any] | None = None,
        *,
        emit: Emit,
        skipped: dict[str, str] | None = None,
    ) -> None:
        """Run once. feeds: input name -> array; given: name -> array that its consumers read instead of the computed value.

        emit(name, array) is called for each wanted value as soon as it is there. Where `skipped` is a dict, an operation
        that fails is no error: it takes the names that cannot be computed, with the reason.
        Raises ValueError for an input that is needed and missing.
        """
        import torch

        given = given or {}
        types = self.program.types()
        scope: dict[str, Any] = {}
        for name, declared in self.program.states.items():
            scope[name] = State(
                torch.zeros([int(size or 0) for size in declared.shape or ()], dtype=self._type(declared))
            )
        for name in self.needed:
            if name in given:
                scope[name] = self.settle(self.lift(given[name]), types.get(name, Type()))
            elif name in self.program.inputs:
                if name not in feeds:
                    raise ValueError(f"the input '{name}' is needed to compute what is wanted; give it")
                scope[name] = self.settle(self.lift(feeds[name]), types[name])
            if name in self.wanted and name in self.program.inputs:
                emit(name, self.lower(scope[name], types[name]))
            elif name in self.wanted and name in self.program.constants:
                emit(name, self.lower(self.constant(name), Type(self.program.constants[name].dtype)))
        with torch.no_grad():
            for operation, done in zip(self.steps, self.last):
                self._step(operation, scope, given, emit, skipped)
                for name in done:
                    if name not in self.program.states:
                        scope.pop(name, None)

    def _type(self, declared: Type) -> torch.dtype:
        return torch_type(declared.dtype, self.float_type)

    def _step(
        self,
        operation: Operation,
        scope: dict[str, Any],
        given: Mapping[str, Any],
        emit: Emit,
        skipped: dict[str, str] | None,
    ) -> None:
        if skipped is None:
            values = self.call(operation, scope)
        else:
            lost = next((name for name in operation.reads() if name in skipped and name not in given), None)
            if lost is not None:
                skipped.update((name, skipped[lost]) for name in operation.outputs)
                return
            try:
                values = self.call(operation, scope)
            except REFUSALS as error:
                reason = f"{operation.kind}: {' '.join(str(error).split())[:300]}"
                skipped.update((name, reason) for name in operation.outputs)
                return
        for name, value, declared in zip(operation.outputs, values, operation.types):
            if name in self.wanted:
                emit(name, self.lower(value, declared))
            if name not in given:
                scope[name] = value

    def call(self, operation: Operation, scope: dict[str, Any]) -> list[Any]:
        """Run one operation; gives its values in their declared types."""
        result = self.kernels[operation.kind](Call(operation, scope, self))
        values = list(result) if isinstance(result, tuple) else [result]
        return [self.settle(value, declared) for value, declared in zip(values, operation.types)]

    def run_block(self, block: Block, values: Sequence[Any], outer: Mapping[str, Any]) -> list[Any]:
        """Run a nested block in a scope of its own, over that of the block around it."""
        scope = dict(outer)
        scope.update(zip(block.inputs, values))
        for operation in block.operations:
            scope.update(zip(operation.outputs, self.call(operation, scope)))
        return [self.value(name, scope) for name in block.outputs]


def evaluate(
    program: Program,
    kernels: Kernels,
    feeds: Mapping[str, Any],
    *,
    given: Mapping[str, Any] | None = None,
    wanted: Sequence[str],
    emit: Emit,
    precision: str = "float32",
    rounding: bool = True,
) -> None:
    """Run a program once and emit each wanted value; see `Evaluator`, which is to be kept where there are many runs."""
    evaluator = Evaluator(
        program, kernels, wanted=wanted, given=tuple(given or ()), precision=precision, rounding=rounding
    )
    evaluator.run(feeds, given, emit=emit)
