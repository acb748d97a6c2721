"""Runs part of an exported program with values put in: what a node computes when its operands are others than its own.

A cut program runs only the nodes on which the wanted values depend, back to the values that are given. An operator
that works in place is run as well when it writes into memory that a node of the cut reads afterwards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from trueport.frameworks._base import Arrays
from trueport.frameworks._torch_ops import COPYING, TRANSPARENT
from trueport.frameworks._torch_program import Program, is_mutable
from trueport.frameworks._torch_values import dtype_name, native_name, stand_in, to_numpy
from trueport.frameworks._torch_view import references

Key = tuple[Any, Optional[int]]
"""One value: (graph node, index among its outputs or None)."""


class _NotComputed(Exception):
    """An operator cannot be computed, and so nothing that reads it."""


class Cut:
    """The part of `program` that computes `wanted` from the values named in `given` and from the inputs."""

    def __init__(self, program: Program, given: Sequence[str], wanted: Sequence[str]) -> None:
        import torch

        self.program = program
        self._keys = _named_values(program)
        self._passed = {name: program.results[index] for index, name in program.outputs if name not in self._keys}
        unknown = [name for name in given if name not in self._keys and name not in self._passed]
        if unknown:
            raise ValueError(f"the model has no value named {unknown[0]!r} that could be given")
        self._given = {self._keys[name]: name for name in given if name in self._keys}
        known = [name for name in wanted if name in self._keys or name in self._passed]
        self.wanted = dict.fromkeys(known)
        self._names = {self._keys[name]: name for name in self.wanted if name in self._keys}
        self.failed: dict[str, str] = {}  # operator -> why it cannot be computed
        self._runner = torch.fx.Interpreter(program.module)
        self._nodes = self._needed()
        self._last = self._last_readers()

    # ---- which nodes run ----

    def _needed(self) -> list[Any]:
        place = {node: index for index, node in enumerate(self.program.nodes)}
        found: set[Any] = set()
        todo = [self._keys[name][0] for name in self.wanted if name in self._keys]
        todo += [one for name in self.wanted if name in self._passed for one in self._unmet(self._passed[name])]
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo.extend(self._unmet((node.args, node.kwargs)))
            if not todo:
                todo.extend(one for one in self._writers(found, place) if one not in found)
        return [node for node in self.program.nodes if node in found]

    def _unmet(self, value: Any) -> list[Any]:
        """The nodes behind the references in an argument that are not given."""
        return [self._key(one)[0] for one in references(value) if self._key(one) not in self._given]

    def _writers(self, found: set[Any], place: Mapping[Any, int]) -> list[Any]:
        """In-place operators not in the cut whose memory a later node of the cut reads."""
        if not self.program.mutates:
            return []
        read: dict[Key, int] = {}
        for node in found:
            for one in references((node.args, node.kwargs)):
                root = self._root(one)
                read[root] = max(read.get(root, -1), place[node])
        for name in self.wanted:
            if name in self._passed:
                for one in references(self._passed[name]):
                    read[self._root(one)] = len(place)
        missing = []
        for node in self.program.nodes:
            if node not in found and is_mutable(node):
                written = [self._root(value) for value in _written(node)]
                if any(read.get(root, -1) > place[node] for root in written):
                    missing.append(node)
        return missing

    def _root(self, node: Any) -> Key:
        """The value in whose memory this one lives, back to a given one."""
        while self._key(node) not in self._given and node.op == "call_function":
            views = native_name(node) in TRANSPARENT - COPYING
            if not (views or is_mutable(node)) or not hasattr(node.args[0], "op"):
                break
            node = node.args[0]
        return self._key(node)

    def _key(self, node: Any) -> Key:
        return self.program.aliases.get(node, (node, None))

    def _last_readers(self) -> dict[Any, list[Any]]:
        """Node -> the nodes whose values nobody reads after it."""
        readers: dict[Any, Any] = {}
        for node in self._nodes:
            for one in references((node.args, node.kwargs)):
                readers[self._key(one)[0]] = node
        kept = {
            self._key(one)[0] for name in self.wanted if name in self._passed for one in references(self._passed[name])
        }
        last: dict[Any, list[Any]] = {}
        for source, reader in readers.items():
            if source not in kept:
                last.setdefault(reader, []).append(source)
        return last

    @property
    def inputs(self) -> list[Any]:
        """The specs of the inputs that the cut reads."""
        names = {node.name for node in self._nodes if node.op == "placeholder"}
        return [spec for spec in self.program.specs if spec["name"] in names]

    # ---- running ----

    def run(
        self, feeds: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray], keep: set[str] | None
    ) -> dict[str, np.ndarray]:
        """One run: wanted name -> array as its producer computes it, those in `keep`; for None, stand-ins that only
        tell shape and dtype. Why one is missing is put into `failed`.
        """
        from torch.fx.node import map_arg

        put = {key: self._tensor(key, given[name]) for key, name in self._given.items()}
        made: dict[Any, Any] = {}
        results: dict[str, np.ndarray] = {}

        def read(node: Any) -> Any:
            return self._read(node, made, put)

        def take(name: str | None, value: Any) -> None:
            if name is None or (keep is not None and name not in keep):
                return
            array = to_numpy(value) if keep is not None else stand_in(value)  # a copy: an operator may write into it
            if array is not None:
                results[name] = array

        for node in self._nodes:
            try:
                made[node] = self._compute(node, feeds, read, map_arg)
            except _NotComputed as error:
                made[node] = error
                continue
            for index, value in _parts(made[node]):
                take(self._names.get((node, index)), value)
            for done in self._last.get(node, ()):
                made.pop(done, None)
        for name, passed in self._passed.items():
            if name in self.wanted:
                with contextlib.suppress(_NotComputed):
                    take(name, map_arg(passed, read))
        return results

    def _compute(self, node: Any, feeds: Mapping[str, np.ndarray], read: Any, map_arg: Any) -> Any:
        if node.op == "placeholder":
            return self.program.argument(node, feeds)
        if node.op == "get_attr":
            return self._runner.fetch_attr(node.target)
        args, kwargs = map_arg(node.args, read), map_arg(node.kwargs, read)
        try:
            return node.target(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            failure = _NotComputed(f"the operator '{node.name}' cannot take what it is given: {reason}")
            self.failed.setdefault(node.name, str(failure))
            raise failure from error

    def _read(self, node: Any, made: Mapping[Any, Any], put: Mapping[Key, Any]) -> Any:
        key = self._key(node)
        if key in put:
            return put[key]
        value = made[key[0]]
        if isinstance(value, _NotComputed):
            raise value
        if key[1] is not None:
            return value[key[1]]
        if any(whole is node for whole, _ in put):
            return type(value)(put.get((node, index), item) for index, item in enumerate(value))
        return value

    def _tensor(self, key: Key, array: np.ndarray) -> Any:
        """A given array as a fresh tensor of the dtype that the value has in the program."""
        import torch

        value = key[0].meta.get("val")
        value = value[key[1]] if key[1] is not None else value
        if value is None:  # a stored tensor
            value = self.program.constants[key[0].name]
        wanted = torch.empty(0, dtype=value.dtype)
        tensor = torch.from_numpy(np.array(array))
        if tensor.is_floating_point() != wanted.is_floating_point() or tensor.is_complex() != wanted.is_complex():
            name = self._given[key]
            raise ValueError(f"the value {name!r} is {dtype_name(value.dtype)}, the given array is {array.dtype.name}")
        return _laid_out(tensor.to(value.dtype), value)


def _laid_out(tensor: Any, like: Any) -> Any:
    """The tensor with its axes in memory in the order of `like`'s, on which the order of a kernel's sums depends."""
    steps = (step if isinstance(step, int) else getattr(step.node, "hint", None) for step in like.stride())
    strides = [step for step in steps if step is not None]
    if len(strides) != tensor.dim():
        return tensor
    order = sorted(range(tensor.dim()), key=lambda axis: -strides[axis])
    back = sorted(range(tensor.dim()), key=lambda axis: order[axis])
    return tensor.permute(order).contiguous().permute(back)


def _named_values(program: Program) -> dict[str, Key]:
    """Public name -> value, for inputs, constants and everything that the operators give."""
    found: dict[str, Key] = {node.name: (node, None) for node in program.inputs}
    for node in program.nodes:
        if node.op == "placeholder" and node.name in program.targets:
            found[program.targets[node.name]] = (node, None)
    for node in program.operators():
        found.update({name: (node, index) for name, index in program.tensors(node)})
    return found


def _parts(value: Any) -> Any:
    return enumerate(value) if isinstance(value, (tuple, list)) else [(None, value)]


def _written(node: Any) -> list[Any]:
    """The operands into which an operator writes."""
    pairs = zip(node.target._schema.arguments, node.args)
    return [
        value
        for argument, value in pairs
        if argument.alias_info is not None and argument.alias_info.is_write and hasattr(value, "op")
    ]


def rows_of(inputs: Arrays, given: Arrays, needed: Sequence[str]) -> int:
    """R, the same for everything that is read. Raises ValueError."""
    missing = [name for name in needed if name not in inputs]
    if missing:
        raise ValueError(f"what is wanted depends on the input {missing[0]!r}, which is neither fed nor cut off")
    runs = {len(array) for array in given.values()} | {len(inputs[name]) for name in needed}
    if len(runs) > 1:
        raise ValueError(
            "the inputs and the given values have different numbers of runs (the first axis of every array)"
        )
    return runs.pop() if runs else 1
