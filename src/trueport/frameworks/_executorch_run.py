"""Runs .pte files in ExecuTorch's runtime, and cuts parts out of them.

A part is a file of its own: the calls between values that are put in and values that are wanted, in which every tensor
has memory to itself. In a shipped file, tensors share memory, so that what is inside is gone when a call returns.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trueport.frameworks._base import Arrays, Emit, RunResult, Unsupported
from trueport.frameworks._executorch_file import METHOD, Call, Model, packed

_ALIGNMENT = 64
"""Bytes; what vector kernels like best, and more than the runtime asks for."""
_MEMORY = 1
"""The first buffer of a method; 0 means none."""


class Session:
    """A loaded method. A method that keeps state is loaded anew for every call."""

    def __init__(self, content: bytes, method: str, stateful: bool) -> None:
        self.content = content
        self.name = method
        self.stateful = stateful
        self.program, self.method = self._load()

    def _load(self) -> tuple[Any, Any]:
        from executorch.runtime import Runtime, Verification

        try:
            program = Runtime.get().load_program(self.content, verification=Verification.Minimal)
            method = program.load_method(self.name)
        except Exception as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Unsupported(f"ExecuTorch's runtime cannot load this model: {first}") from error
        return program, method

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One call; copies of the outputs, because the next call writes to their memory."""
        import torch

        if self.stateful:
            self.program, self.method = self._load()
        feeds = [torch.from_numpy(np.array(array, order="C")) for array in arrays]
        return [np.array(item.detach().numpy()) for item in self.method.execute(feeds)]


@functools.lru_cache(maxsize=2)
def whole(model: Model) -> Session:
    """The method as it was shipped."""
    return Session(model.content, model.plan.name, model.stateful)


def run_case(model: Model, arrays: Arrays) -> RunResult:
    """R calls; inputs by name [R, *shape]. Raises ValueError for a missing or unfit input."""
    fed = checked(model, arrays)
    session = whole(model)
    rows = [session([array[run] for array in fed]) for run in range(len(fed[0]) if fed else 1)]
    return {f"output_{place}": _stacked([row[place] for row in rows]) for place in range(len(model.outputs))}


def _stacked(values: list[np.ndarray]) -> Any:
    return np.stack(values) if len({value.shape for value in values}) == 1 else values


def checked(model: Model, arrays: Arrays) -> list[np.ndarray]:
    """The inputs in order, in the file's types. Raises ValueError with one sentence."""
    names = [model.names[number] for number in model.inputs]
    unknown, missing = sorted(set(arrays) - set(names)), [name for name in names if name not in arrays]
    if unknown or missing:
        problem = f"has no input '{unknown[0]}'" if unknown else f"needs a value for its input '{missing[0]}'"
        raise ValueError(f"{model.path} {problem}; its inputs are {', '.join(names) or 'none'}")
    for number, name in zip(model.inputs, names):
        check_shape(model, number, arrays[name].shape[1:])
    return [arrays[name].astype(model.dtype(number), copy=False) for number, name in zip(model.inputs, names)]


def check_shape(model: Model, number: int, given: Sequence[int]) -> None:
    """Raise ValueError when a tensor cannot hold this shape: other sizes, or larger than the largest it may have."""
    value = model.values[number]
    sizes = [int(size) for size in value.sizes]
    dynamic = int(value.shape_dynamism) != 0
    if len(sizes) == len(given) and all(a == b or (dynamic and b <= a) for a, b in zip(sizes, given)):
        return
    at_most = "at most " if dynamic else ""
    raise ValueError(f"'{model.names[number]}' has the shape {list(given)}; the model takes {at_most}{sizes}")


# -- parts


class Part:
    """A part as a file: what is put in and what comes out, as numbers of the whole model's values."""

    def __init__(self, model: Model, given: Sequence[int], wanted: Sequence[int]) -> None:
        if model.branches:
            raise Unsupported("ExecuTorch: a method with branches cannot be cut into parts")
        self.model = model
        self.wanted = list(wanted)
        self.calls, reads = needed(model, set(given), set(wanted))
        self.feeds = [n for n in dict.fromkeys([*model.inputs, *given]) if n in reads]
        self.session = Session(packed(self._file(set(given))), METHOD, model.stateful)

    def _file(self, given: set[int]) -> Any:
        """The shipped file with these calls only, memory of its own for every tensor, and other inputs and outputs."""
        model = self.model
        values = [copy.copy(item) for item in model.plan.values]
        renamed: dict[int, int] = {}
        for number in given.intersection(self.wanted):
            # Whoever computes a value that is put in writes to a copy of it, which can still be fetched.
            renamed[number] = len(values)
            values.append(copy.deepcopy(values[number]))
        size = _spread(values)
        plan = copy.copy(model.plan)
        plan.name = METHOD
        plan.values = values
        plan.inputs = list(self.feeds)
        plan.outputs = [renamed.get(number, number) for number in self.wanted]
        plan.non_const_buffer_sizes = [0, size, *plan.non_const_buffer_sizes[2:]]
        chain = copy.copy(plan.chains[0])
        chain.instructions = [self._instruction(call, renamed, values) for call in self.calls]
        chain.stacktrace = None
        plan.chains = [chain]
        program = copy.copy(model.file.program)
        program.execution_plan = [plan]
        file = copy.copy(model.file)
        file.program = program
        return file

    def _instruction(self, call: Call, renamed: Mapping[int, int], values: list[Any]) -> Any:
        made = self.model.plan.chains[0].instructions[call.place] if call.made is None else call.made
        written = {number: renamed[number] for number in call.writes if number in renamed}
        if not written:
            return made
        made = copy.deepcopy(made)
        for slot, number in enumerate(made.instr_args.args):
            value = values[number].val
            if number in written:
                made.instr_args.args[slot] = written[number]
            elif type(value).__name__ == "TensorList" and set(value.items) & set(written):
                fresh = copy.deepcopy(values[number])
                fresh.val.items = [written.get(item, item) for item in value.items]
                values.append(fresh)
                made.instr_args.args[slot] = len(values) - 1
        return made


def needed(model: Model, given: set[int], wanted: set[int]) -> tuple[list[Call], set[int]]:
    """Walk backwards: the calls that have to run, and the tensors that they read."""
    kept: list[Call] = []
    reads: set[int] = set()
    for call in reversed(model.calls):
        if any(n in wanted or (n in reads and n not in given) for n in call.writes) or model.stateful:
            kept.append(call)
            reads.update(call.reads)
    return kept[::-1], reads


def _spread(values: list[Any]) -> int:
    """Give every planned tensor memory of its own; returns how many bytes that takes."""
    offset = 0
    for item in values:
        value = item.val
        if type(value).__name__ != "Tensor" or value.allocation_info is None:
            continue
        place = copy.copy(value.allocation_info)
        place.memory_id, place.memory_offset_low, place.memory_offset_high = _MEMORY, offset % 2**32, offset // 2**32
        item.val = copy.copy(value)
        item.val.allocation_info = place
        size = int(np.prod(value.sizes, dtype=np.int64)) * _width(value)
        offset += -(-max(size, 1) // _ALIGNMENT) * _ALIGNMENT
    return max(offset, _ALIGNMENT)


def _width(value: Any) -> int:
    return {"BYTE": 1, "CHAR": 1, "BOOL": 1, "SHORT": 2, "HALF": 2, "BFLOAT16": 2, "UINT16": 2}.get(
        value.scalar_type.name, 4 if value.scalar_type.name in ("INT", "FLOAT", "UINT32") else 8
    )


@functools.lru_cache(maxsize=2)
def part(model: Model, given: tuple[int, ...], wanted: tuple[int, ...]) -> Part:
    """Cut a part, once for the same question."""
    return Part(model, given, wanted)


def replay_rows(
    model: Model, fed: Mapping[int, np.ndarray], given: Sequence[int], wanted: Sequence[int], budget: int, emit: Emit
) -> dict[str, str]:
    """Emit each wanted value [R, *shape] as computed, at most `budget` bytes at a time; returns what is skipped."""
    cut = part(model, tuple(given), tuple(wanted))
    arrays = []
    for number in cut.feeds:
        if number not in fed:
            raise ValueError(f"{model.path} needs a value for its input '{model.names[number]}'")
        check_shape(model, number, fed[number].shape[1:])
        arrays.append(np.asarray(fed[number]).astype(model.dtype(number), copy=False))
    runs = len(arrays[0]) if arrays else max([len(array) for array in fed.values()] or [1])
    return dict(_collect(cut, arrays, runs, budget, emit))


def _collect(cut: Part, arrays: Sequence[np.ndarray], runs: int, budget: int, emit: Emit) -> Iterator[tuple[str, str]]:
    """Run the rows once for each window of values that fits the budget; yields what is skipped and why."""
    first = cut.session([array[0] for array in arrays])
    waiting = list(range(len(cut.wanted)))
    while waiting:
        window: list[int] = []
        while waiting and (not window or sum(first[p].nbytes for p in [*window, waiting[0]]) * runs <= budget):
            window.append(waiting.pop(0))
        held: dict[int, list[np.ndarray]] = {place: [first[place]] for place in window}
        for run in range(1, runs):
            row = cut.session([array[run] for array in arrays])
            for place in window:
                held[place].append(row[place])
        for place in window:
            name = cut.model.names[cut.wanted[place]]
            if len({value.shape for value in held[place]}) > 1:
                yield name, "its shape differs between runs"
            else:
                emit(name, np.stack(held[place]))
