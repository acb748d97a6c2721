"""Cuts a part out of a TFLite file: the operators between values that are put in and values that are wanted.

A value that is put in becomes an input of the part; whoever computes it writes to a copy of its tensor, which can still
be fetched. Operators on which nothing wanted depends, their tensors and the bytes of their constants are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from trueport.frameworks._base import Emit, Unsupported
from trueport.frameworks._tflite_model import Model, Operator, Tensor, pack
from trueport.frameworks._tflite_session import Session, carries_state, collect, refuse_missing_kernels, stored


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a model, as a file of its own. `tensors` are the new file's, by their index there."""

    content: bytes
    tensors: tuple[Tensor, ...]
    feeds: dict[int, int]
    """Tensor of the model that is put in -> tensor of the part."""
    fetches: dict[int, int]
    """Tensor of the model that is wanted -> tensor of the part that holds what its operator computes."""
    stateful: bool
    dense: tuple[tuple[int, int], ...]
    """Data and weights of every FULLY_CONNECTED: LiteRT divides their sizes and does not mind a remainder."""


@lru_cache(maxsize=1)
def cut(model: Model, given: frozenset[int], wanted: tuple[int, ...]) -> Part:
    """Cut out what computes the tensors `wanted` from the tensors `given`, the model's inputs and its constants."""
    operators, read, stateful = _needed(model, given, set(wanted))
    feeds = [index for index in read if index in given or index in model.inputs]
    whole = model.root.subgraphs if any(_runs_subgraph(item) for item in operators) else model.root.subgraphs[:1]
    root = copy.copy(model.root)
    root.metadata = root.metadataBuffer = root.signatureDefs = None
    buffers = _Buffers(model)
    main, numbers, copies = _main(model, operators, set(feeds), buffers)
    main.inputs = np.array([numbers[index] for index in feeds], np.int32)
    fetches = {index: copies.get(index, numbers[index]) for index in wanted}
    main.outputs = np.array([*fetches.values()], np.int32)
    root.subgraphs = [main, *(_with_buffers(graph, buffers) for graph in whole[1:])]
    root.buffers = buffers.kept
    origins = {**{new: old for old, new in numbers.items()}, **{new: old for old, new in copies.items()}}
    return Part(
        content=pack(root),
        tensors=tuple(model.tensors[origins[new]] for new in range(len(origins))),
        feeds={index: numbers[index] for index in feeds},
        fetches=fetches,
        stateful=stateful,
        dense=tuple(
            (numbers[item.inputs[0]], numbers[item.inputs[1]]) for item in operators if item.code == "FULLY_CONNECTED"
        ),
    )


def _needed(model: Model, given: frozenset[int], wanted: set[int]) -> tuple[list[Operator], dict[int, None], bool]:
    """Walk backwards: the operators that have to run, the tensors that they read, and whether they share a state.

    An operator that writes a state is needed when one after it reads a state: nothing else links the two.
    """
    shared = carries_state(model)
    kept: list[Operator] = []
    read: dict[int, None] = {}
    stateful = False
    for operator in reversed(model.operators):
        computes = any(index in wanted or (index in read and index not in given) for index in operator.outputs)
        touches = shared and _touches_state(model, operator)
        if computes or (stateful and touches and not operator.outputs) or (stateful and _runs_subgraph(operator)):
            kept.append(operator)
            stateful = stateful or touches
            read.update(dict.fromkeys(index for index in operator.inputs if index >= 0))
    return kept[::-1], read, stateful


def _touches_state(model: Model, operator: Operator) -> bool:
    handles = any(model.tensors[index].dtype == "resource" for index in operator.inputs if index >= 0)
    return handles or _runs_subgraph(operator)


def _runs_subgraph(operator: Operator) -> bool:
    return operator.options is not None and any("subgraph" in key.lower() for key in vars(operator.options))


class _Buffers:
    """The buffers that a part needs, renumbered; number 0 is the empty one, as the schema demands."""

    def __init__(self, model: Model) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.model, self.make = model, schema.BufferT
        self.kept: list[Any] = [schema.BufferT()]
        self.numbers = {0: 0}

    def number(self, old: int) -> int:
        if old not in self.numbers:
            data = self.model.buffer(old)
            self.numbers[old] = len(self.kept) if data.size else 0
            if data.size:
                self.kept.append(self.make(data=data))
        return self.numbers[old]


def _with_buffers(graph: Any, buffers: _Buffers) -> Any:
    made = copy.copy(graph)
    made.tensors = [_tensor(item, buffers) for item in graph.tensors or ()]
    return made


def _tensor(item: Any, buffers: _Buffers) -> Any:
    made = copy.copy(item)
    made.buffer = buffers.number(int(item.buffer))
    return made


def _main(
    model: Model, operators: list[Operator], fed: set[int], buffers: _Buffers
) -> tuple[Any, dict[int, int], dict[int, int]]:
    """Build the main graph: (graph, old tensor -> new, old tensor -> the copy to which its operator writes)."""
    numbers: dict[int, int] = {}
    copies: dict[int, int] = {}
    tensors: list[Any] = []

    def place(table: dict[int, int], old: int) -> int:
        if old < 0:
            return old
        if old not in table:
            table[old] = len(tensors)
            tensors.append(_tensor(model.main.tensors[old], buffers))
        return table[old]

    made = []
    for operator in operators:
        item = copy.copy(model.main.operators[operator.number])
        item.inputs = np.array([place(numbers, index) for index in operator.inputs], np.int32)
        written = [place(copies if index in fed else numbers, index) for index in operator.outputs]
        item.outputs = np.array(written, np.int32)
        if item.intermediates is not None:
            item.intermediates = np.array([place(numbers, int(index)) for index in item.intermediates], np.int32)
        item.debugMetadataIndex = -1
        made.append(item)
    graph = copy.copy(model.main)
    graph.tensors, graph.operators, graph.debugMetadataIndex = tensors, made, -1
    return graph, numbers, copies


def replay(
    model: Model,
    part: Part,
    arrays: Mapping[int, np.ndarray],
    wanted: Sequence[tuple[str, int]],
    emit: Emit,
    **how: Any,
) -> dict[str, Any]:
    """Run a part on `arrays` (tensor of the model -> [R, *shape], R the same for all) and emit (name, tensor) values.

    how: `variant` ("" for the kernels of `trace`), `budget` in bytes, `runs` = R. Raises Unsupported when LiteRT cannot
    run the part, be it for its shapes or for want of a kernel.
    """
    numbers = {part.feeds[index]: index for index in part.feeds}
    places = [(name, part.fetches[index]) for name, index in wanted]
    try:
        shared = _session(part, how["variant"])

        def calls() -> Iterator[Session]:
            for run in range(how["runs"]):
                session = open_part(part, how["variant"]) if part.stateful else shared
                session.call(
                    {
                        number: stored(part.tensors[number], part.tensors[number].name, arrays[index][run])
                        for number, index in numbers.items()
                    }
                )
                _check_dense(part, session)
                yield session

        uneven = collect(calls, how["runs"], places, how["budget"], emit)
    except RuntimeError as error:
        _session.cache_clear()  # after a failed allocation an interpreter stays broken
        refuse_missing_kernels(model)
        first = str(error).strip().splitlines()[0]
        raise Unsupported(f"LiteRT cannot run the part of the model between these values: {first}") from error
    return {
        "skipped": dict.fromkeys(uneven, "its shape differs between the runs"),
        "kernels": shared.variant,
    }


def _check_dense(part: Part, session: Session) -> None:
    if all(session.shapes[index] == part.tensors[index].shape for index in session.shapes):
        return
    for data, weights in part.dense:
        elements, features = session.elements(data), part.tensors[weights].shape[-1]
        if features and elements % features:
            raise Unsupported(
                f"LiteRT cannot run the part of the model between these values: '{part.tensors[data].name}' would have "
                f"{elements} elements, and its dense layer takes {features} features"
            )


@lru_cache(maxsize=1)
def _session(part: Part, variant: str) -> Session:
    return open_part(part, variant)


def open_part(part: Part, variant: str) -> Session:
    """Open a part with the kernels of a variant, or with those that `trace` would use."""
    fed = list(part.feeds.values())
    if variant:
        return Session(part.content, part.tensors, fed, variant, keep_all=False)
    try:
        return Session(part.content, part.tensors, fed, "builtin", keep_all=False)
    except RuntimeError:
        return Session(part.content, part.tensors, fed, "default", keep_all=True)
