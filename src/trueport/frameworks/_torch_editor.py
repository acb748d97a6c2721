"""An exported program opened for change: what its names stand for, how nodes and weights are put in, and how it is saved.

Every change touches one operator (or one edge) and leaves all others their names. Shapes are worked out anew before the
program is written. What the archive holds beside the program (extra files, example inputs) goes along.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import _torch_archive as archive
from trueport.frameworks._base import Arrays, Unsupported
from trueport.frameworks._torch_program import Program, load
from trueport.frameworks._torch_values import native_name, to_numpy
from trueport.frameworks._torch_view import references


class Editor:
    """One loaded program that is changed in place; `values` and `nodes` are looked up by the names that `graph` gives.

    Names are those of the file as it was opened, whatever has been changed since; what an edit makes adds its own.
    """

    def __init__(self, path: str, *, trust: bool = False) -> None:
        self.path = path
        self.program = Program(load(path, trust=trust))
        self.exported = self.program.exported
        self.graph = self.exported.graph
        self.arrays: Arrays = {}
        self.called: dict[str, str] = {}  # a weight that an edit made -> the name of the one that it stands for
        self._edited = False  # whether more than weights changed
        self._nodes: dict[str, Any] = {node.name: node for node in self.program.operators()}
        self._values: dict[str, tuple[Any, int | None]] = {}
        self._known_values()

    def _known_values(self) -> None:
        program = self.program
        for node in program.inputs:
            self._values[node.name] = (node, None)
        for node in program.nodes:
            if node.op == "placeholder" and node.name in program.targets:
                self._values[program.targets[node.name]] = (node, None)
        for node in program.operators():
            self._values.setdefault(program.name_of(node), (node, None))
            for name, index in program.tensors(node):
                self._values[name] = (node, index)
        for index, name in program.outputs:
            if hasattr(program.results[index], "op"):
                source, item = program.aliases.get(program.results[index], (program.results[index], None))
                self._values.setdefault(name, (source, item))

    # -- reading ------------------------------------------------------------------------------------------------

    def node(self, name: str) -> Any:
        """The operator of that name. Raises Unsupported."""
        if name not in self._nodes:
            raise Unsupported(f"the program has no operator '{name}'")
        return self._nodes[name]

    def value(self, name: str) -> Any:
        """The graph node that is the value of that name; an item of several is taken out where nothing reads it yet."""
        if name not in self._values:
            raise Unsupported(f"the program has no value '{name}'")
        node, index = self._values[name]
        if index is None:
            return node
        for user in node.users:
            if user.op == "call_function" and user.target is operator.getitem and user.args[1] == index:
                return user
        with self.graph.inserting_after(node):
            item = self.graph.call_function(operator.getitem, (node, index))
        item.meta = {**self._context(node), "val": node.meta["val"][index]}
        return item

    def label(self, node: Any) -> str:
        """The name that `graph` gives a value."""
        source, index = self.program.aliases.get(node, (node, None))
        return self.program.name_of(source, index) if index is not None else self.program.name_of(node)

    def operands(self, node: Any) -> list[Any]:
        """What an operator reads, in the order of `graph`."""
        found = [one for one in references((node.args, node.kwargs)) if one.op != "get_attr"]
        return found[::-1] if native_name(node) == "aten.rsub" and len(found) == 2 else found

    def is_constant(self, node: Any) -> bool:
        """Whether a value is stored in the file."""
        return getattr(node, "name", None) in self.program.constants

    def computed(self, node: Any) -> list[Any]:
        """The operands that are no stored weights."""
        return [one for one in node.all_input_nodes if not self.is_constant(one)]

    def operand(self, node: Any, slot: int) -> Any:
        """The argument at a place, or None."""
        return node.args[slot] if slot < len(node.args) else None

    def fake(self, value: Any) -> Any:
        """The value's shape and dtype as the program has worked them out. Raises Unsupported for what is no tensor."""
        found: Any = value.meta.get("val") if hasattr(value, "meta") else None
        if not hasattr(found, "shape"):
            raise Unsupported(f"'{getattr(value, 'name', value)}' is no single tensor: it gives several values")
        return found

    def shape(self, value: Any) -> list[int]:
        """The shape of a value, -1 for sizes that are open. Raises Unsupported for what is no tensor."""
        return [size if isinstance(size, int) else -1 for size in self.fake(value).shape]

    def schema(self, node: Any) -> list[Any]:
        """The arguments that the operator's function takes."""
        found = getattr(node.target, "_schema", None)
        if found is None:
            raise Unsupported(f"'{node.name}' ({native_name(node)}) is no operator of PyTorch, but one of Python's")
        return list(found.arguments)

    def argument(self, node: Any, name: str) -> Any:
        """The value of an argument by its name in the schema, its default where it is not given."""
        for place, one in enumerate(self.schema(node)):
            if one.name == name:
                return node.args[place] if place < len(node.args) else node.kwargs.get(name, one.default_value)
        raise Unsupported(f"{native_name(node)} has no argument '{name}'")

    # -- weights ------------------------------------------------------------------------------------------------

    def spec(self, value: Any) -> Any:
        """The entry of the signature for a stored weight."""
        return next(one for one in self.exported.graph_signature.input_specs if one.arg.name == value.name)

    def store(self, value: Any, array: np.ndarray) -> None:
        """Give a stored weight other numbers, in the type that it has; the shape may be another."""
        import torch

        spec = self.spec(value)
        table = self.exported.state_dict if spec.target in self.exported.state_dict else self.exported.constants
        old = table[spec.target]
        tensor = tensor_like(array, old)
        if isinstance(old, torch.nn.Parameter):
            tensor = torch.nn.Parameter(tensor, requires_grad=old.requires_grad)
        table[spec.target] = tensor
        self.program.constants[value.name] = tensor
        if tensor.shape != old.shape:
            self._edited = True
            value.meta["val"] = self._imagined(tensor)

    def add_constant(self, tensor: Any, name: str, *, like: Any = None) -> Any:
        """A new weight of the state (a parameter where `like` is one, else a buffer), which no operator reads yet."""
        import torch
        from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

        self._edited = True
        exported, program = self.exported, self.program
        parameter = like is not None and isinstance(program.constants[like.name], torch.nn.Parameter)
        target = free(name, (*exported.state_dict, *exported.constants, *self._nodes))
        if parameter:
            tensor = torch.nn.Parameter(tensor, requires_grad=False)
        exported.state_dict[target] = tensor
        specs = exported.graph_signature.input_specs
        kinds = [spec.kind.name for spec in specs]
        place = next((i for i, kind in enumerate(kinds) if kind == "USER_INPUT"), len(kinds))
        holders = [node for node in self.graph.nodes if node.op == "placeholder"]
        following = holders[place] if place < len(holders) else next(n for n in self.graph.nodes if n not in holders)
        with self.graph.inserting_before(following):
            made = self.graph.placeholder(("p_" if parameter else "b_") + target.replace(".", "_"))
        made.meta = {"val": self._imagined(tensor)}
        kind = InputKind.PARAMETER if parameter else InputKind.BUFFER
        persistent = None if parameter else True
        specs.insert(place, InputSpec(kind, TensorArgument(made.name), target, persistent))
        program.constants[made.name], program.targets[made.name] = tensor, target
        self._values[target] = (made, None)
        return made

    def add_array(self, array: np.ndarray, name: str, *, beside: Any = None, like: Any = None) -> Any:
        """A new weight from an array: floats in the dtype of the value `beside` that it is computed with."""
        import torch

        tensor = torch.from_numpy(np.array(array, order="C"))
        dtype = getattr(beside.meta.get("val"), "dtype", None) if beside is not None else None
        if tensor.is_floating_point() and dtype is not None and dtype.is_floating_point:
            tensor = tensor.to(dtype)
        return self.add_constant(tensor, name, like=like)

    def array_of(self, value: Any) -> np.ndarray | None:
        """The numbers of a stored weight, None for what is none."""
        return to_numpy(self.program.constants[value.name]) if self.is_constant(value) else None

    def _mode(self) -> Any:
        inputs = [node.meta.get("val") for node in self.graph.nodes if node.op == "placeholder"]
        mode = next((one.fake_mode for one in inputs if hasattr(one, "fake_mode")), None)
        if mode is None:
            raise Unsupported("the program reads no tensor at all")
        return mode

    def _imagined(self, tensor: Any) -> Any:
        return self._mode().from_tensor(tensor, static_shapes=True)

    def imagine(self, node: Any, sizes: Sequence[Any], dtype: Any) -> None:
        """Give an input of the graph another shape; sizes that are open stay symbols."""
        import torch

        self._edited = True
        with self._mode():
            node.meta["val"] = torch.empty(tuple(sizes), dtype=dtype)

    # -- operators ----------------------------------------------------------------------------------------------

    def set_argument(self, node: Any, name: str, value: Any) -> None:
        """Give an argument another value; defaults before it are written out."""
        self._edited = True
        schema = self.schema(node)
        place = next((place for place, one in enumerate(schema) if one.name == name), None)
        if place is None:
            raise Unsupported(f"{native_name(node)} has no argument '{name}'")
        if schema[place].kwarg_only:
            node.kwargs = {**node.kwargs, name: value}
            return
        args = list(node.args)
        while len(args) <= place:
            args.append(schema[len(args)].default_value)
        args[place] = value
        node.args = tuple(args)

    def replace(self, node: Any, function: Any, args: Sequence[Any], kwargs: dict[str, Any] | None = None) -> None:
        """Make another operator of a node, under the same name."""
        self._edited = True
        node.target, node.args, node.kwargs = function, tuple(args), dict(kwargs or {})

    def call_before(
        self,
        point: Any,
        function: Any,
        args: Sequence[Any],
        kwargs: dict[str, Any] | None = None,
        name: str | None = None,
    ) -> Any:
        """A new operator that runs just before the node `point`. Raises Unsupported where it cannot run on its operands."""
        self._edited = True
        context = next((one for one in args if hasattr(one, "op")), point)
        with self.graph.inserting_before(point):
            made = self.graph.create_node("call_function", function, tuple(args), dict(kwargs or {}), name)
        made.meta = self._context(context)
        self._nodes[made.name] = made
        self._values[made.name] = (made, None)
        self.infer(made)
        return made

    def _context(self, node: Any) -> dict[str, Any]:
        return {key: item for key, item in node.meta.items() if key not in ("from_node", "val")}

    def infer(self, node: Any) -> None:
        """Work out shape and dtype of what an operator gives. Raises Unsupported with PyTorch's words where it cannot run."""
        import torch
        from torch._dispatch.python import enable_python_dispatcher

        def known(value: Any) -> Any:
            return value.meta["val"]

        mode = self._mode()
        try:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known)
            with torch.no_grad(), mode, enable_python_dispatcher():
                node.meta["val"] = node.target(*args, **kwargs)
        except Exception as error:
            raise Unsupported(f"{native_name(node)} cannot stand there: {first_line(error)}") from error

    def insert(self, after: Any, steps: Sequence[tuple[Any, tuple[Any, ...]]]) -> list[Any]:
        """Put operators behind a value: (function, arguments after the first); all readers read the last one."""
        readers = list(after.users)
        made, value = [], after
        for function, arguments in steps:
            value = self.call_before(self._behind(value), function, (value, *arguments))
            made.append(value)
        for reader in readers:
            self.redirect(reader, after, value)
        return made

    def insert_between(self, value: Any, reader: Any, function: Any, arguments: tuple[Any, ...]) -> Any:
        """Put an operator on the edge from a value to one of its readers."""
        made = self.call_before(reader, function, (value, *arguments))
        reader.replace_input_with(value, made)
        return made

    def _behind(self, value: Any) -> Any:
        """The node that runs next, behind all inputs of the graph."""
        node = value.next
        while node.op == "placeholder":
            node = node.next
        return node

    def remove(self, node: Any, instead: Any) -> None:
        """Take an operator out; its readers read `instead`."""
        self._edited = True
        for reader in list(node.users):
            self.redirect(reader, node, instead)
        self.graph.erase_node(node)

    def redirect(self, reader: Any, before: Any, after: Any) -> None:
        """Let a reader (an operator, or the output of the graph) read another value."""
        self._edited = True
        reader.replace_input_with(before, after)
        if reader.op == "output":
            for spec in self.exported.graph_signature.output_specs:
                if spec.arg.name == before.name and spec.kind.name == "USER_OUTPUT":
                    spec.arg.name = after.name

    def depends(self, values: Iterable[Any], on: Any) -> bool:
        """Whether one of the values is `on`, or computed from it."""
        todo, seen = list(values), set()
        while todo:
            node = todo.pop()
            if node is on:
                return True
            if node not in seen:
                seen.add(node)
                todo.extend(node.all_input_nodes)
        return False

    def hoist(self, point: Any, needed: Iterable[Any]) -> None:
        """Move what computes `needed` before the node `point`. Raises Unsupported where it depends on `point` itself."""
        place = {node: index for index, node in enumerate(self.graph.nodes)}
        late: set[Any] = set()
        todo = [one for one in needed if place[one] >= place[point]]
        while todo:
            node = todo.pop()
            if node is point:
                raise Unsupported(f"'{point.name}' would read what is computed from it")
            if node not in late:
                late.add(node)
                todo.extend(one for one in node.all_input_nodes if place[one] >= place[point])
        for node in sorted(late, key=lambda one: place[one]):
            point.prepend(node)

    def sweep(self, candidates: Iterable[Any]) -> None:
        """Take operators out that nobody reads any more, and what only they read. Weights stay in the file."""
        todo = list(candidates)
        while todo:
            node = todo.pop()
            if node.op == "call_function" and not node.users and node.graph is self.graph and not node._erased:
                before = list(node.all_input_nodes)
                self.graph.erase_node(node)
                todo.extend(before)

    def touched(self) -> None:
        """Have shapes worked out anew when the program is written."""
        self._edited = True

    def know(self, name: str, node: Any, index: int | None = None) -> None:
        """Let later edits find a value under a name."""
        self._values[name] = (node, index)

    def forget(self, node: Any, instead: Any) -> None:
        """Let later edits find `instead` under the names of the values of `node`, and no operator `node`."""
        self._nodes.pop(node.name, None)
        for name, (known, _) in list(self._values.items()):
            if known is node:
                self._values[name] = (instead, None)

    def last(self) -> Any:
        """The node that is the output of the graph."""
        return list(self.graph.nodes)[-1]

    # -- writing ------------------------------------------------------------------------------------------------

    def save(self, out: str) -> None:
        """Work shapes out anew and write the program. Raises Unsupported when it does not fit together any more."""
        import torch

        try:
            self._propagate()
            part = f"{out}.part"
            # A file object, because torch refuses paths with other suffixes.
            with open(part, "wb") as file:  # noqa: PTH123
                torch.export.save(self.exported, file, extra_files=extra_files(self.path))
            os.replace(part, out)  # noqa: PTH105
        except Exception as error:
            Path(f"{out}.part").unlink(missing_ok=True)
            raise Unsupported(f"the program does not fit together: {first_line(error)}") from error

    def _propagate(self) -> None:
        import torch
        from torch._dispatch.python import enable_python_dispatcher
        from torch.fx.passes.fake_tensor_prop import FakeTensorProp

        module = self.exported.graph_module
        inputs = [node.meta.get("val") for node in self.graph.nodes if node.op == "placeholder"]
        self.graph.lint()
        module.recompile()
        if self._edited:  # the dispatcher in Python keeps open sizes open; that in C++ would fix some
            with torch.no_grad(), enable_python_dispatcher():
                FakeTensorProp(module, self._mode()).propagate_dont_convert_inputs(*inputs)


def tensor_like(array: np.ndarray, old: Any) -> Any:
    """The array in the dtype of a tensor; numbers for an integer type are rounded and cut off at its limits."""
    import torch

    if old.dtype.is_floating_point or old.dtype.is_complex or old.dtype is torch.bool:
        plain = np.array(array, order="C")
        return torch.from_numpy(plain).to(old.dtype)
    limits = torch.iinfo(old.dtype)
    rounded = np.rint(array) if np.asarray(array).dtype.kind == "f" else np.asarray(array)
    return torch.from_numpy(np.array(np.clip(rounded, limits.min, limits.max), order="C")).to(old.dtype)


def extra_files(path: str) -> dict[str, Any]:
    """What the archive holds beside the program: name -> content."""
    with archive.open_archive(path) as opened:
        found = [(name.partition("/")[2], name) for name in opened.namelist()]
        return {tail[6:]: opened.read(name).decode() for tail, name in found if tail.startswith("extra/")}


def free(name: str, taken: Iterable[str]) -> str:
    """The name, with a number behind it where it is taken."""
    known = set(taken)
    found, number = name, 1
    while found in known:
        found, number = f"{name}_{number}", number + 1
    return found


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
