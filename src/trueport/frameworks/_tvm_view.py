"""What a Relax function shows: its values under names that do not change between calls, and its operators in order.

A value goes by the name of the variable that it is bound to; an output by its name in the header; a part of a tuple by
the variable that takes it out, else `TUPLE[INDEX]`. Bindings that only rename, pack or unpack are no operators.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Union

import numpy as np

from trueport.frameworks import _tvm_file
from trueport.frameworks._base import Arrays, Dim, GraphDict, NodeDict, Unsupported

Tree = Union[int, "list[Tree]", None]
"""Which values a variable stands for: the number of one, one tree for each field of a tuple, None for a written-out shape."""


class Step:
    """One binding that computes something. `outputs`: numbers of its values; `reads`: of its operands, in order."""

    def __init__(self, variable: Any, call: Any, outputs: list[int], reads: list[int]) -> None:
        self.variable = variable
        self.call = call
        self.outputs = outputs
        self.reads = reads


class View:
    """The function `main` of a model. Values are numbers; `names` and `types` give what they are called and hold."""

    def __init__(self, model: _tvm_file.Model) -> None:
        self.model = model
        self.function = model.module["main"]
        self.names: list[str] = []
        self.types: list[Any] = []
        self.trees: dict[Any, Tree] = {}
        self.constants: dict[int, np.ndarray] = {}
        self.steps: list[Step] = []
        self._hints: list[str] = []
        self._inline: list[tuple[Any, int]] = []
        count = len(model.inputs)
        for spec, parameter in zip(model.inputs, self.function.params):
            self.trees[parameter] = self._new(spec["name"], parameter.ty)
        self.inputs = list(range(count))
        for (name, array), parameter in zip(model.arrays.items(), self.function.params[count:]):
            number = self._new(name, parameter.ty)
            self.trees[parameter] = number
            self.constants[number] = array
        for block in self.function.body.blocks:
            for binding in block.bindings:
                self._read(binding)
        self.outputs = self.flat(self.tree(self.function.body.body))
        self._name_values()
        self.number_of = {name: number for number, name in enumerate(self.names)}
        self.producer = {number: step for step in self.steps for number in step.outputs}

    def _new(self, hint: str, type_: Any) -> int:
        self._hints.append(hint)
        self.types.append(type_)
        return len(self.types) - 1

    def _read(self, binding: Any) -> None:
        """Enter one binding: an operator becomes a step, all else another name for values that are there."""
        value, variable = binding.value, binding.var
        if type(value).__name__ in ("Call", "If"):
            self.trees[variable] = made = self._fresh(variable.name, variable.ty)
            self.steps.append(Step(variable, value, self.flat(made), list(self._operands(value))))
            return
        tree = self.tree(value)
        self.trees[variable] = tree
        if type(value).__name__ == "TupleGetItem" and isinstance(tree, int) and self._hints[tree].endswith("]"):
            self._hints[tree] = variable.name

    def _fresh(self, hint: str, type_: Any) -> Tree:
        if hasattr(type_, "fields"):
            return [self._fresh(f"{hint}[{place}]", field) for place, field in enumerate(type_.fields)]
        return self._new(hint, type_)

    def tree(self, value: Any) -> Tree:
        """Which values an expression stands for."""
        kind = type(value).__name__
        if kind == "TupleGetItem":
            whole = self.tree(value.tuple_value)
            return whole[value.index] if isinstance(whole, list) else None
        if kind == "Tuple":
            return [self.tree(item) for item in value.fields]
        if _tvm_file.is_constant(value):
            return self._constant(value)
        return self.trees.get(value) if kind in ("Var", "DataflowVar") else None

    def _constant(self, value: Any) -> int:
        for seen, number in self._inline:
            if seen.same_as(value):
                return number
        number = self._new(f"constant:{len(self._inline)}", value.ty)
        self._inline.append((value, number))
        self.constants[number] = value.value.numpy()
        return number

    def _operands(self, value: Any) -> Iterator[int]:
        if type(value).__name__ == "If":
            for variable in _free(value):
                yield from self.flat(self.trees.get(variable))
            return
        for item in value.args:
            yield from self.flat(self.tree(item))

    def flat(self, tree: Tree) -> list[int]:
        """The values of a tree, in order."""
        if tree is None:
            return []
        return [tree] if isinstance(tree, int) else [number for item in tree for number in self.flat(item)]

    def _name_values(self) -> None:
        """Give every value its name: outputs as the header says, the rest by their variables, each name once."""
        if len(self.outputs) != len(self.model.outputs):
            raise Unsupported(f"{self.model.path}: an output of its function is no tensor")
        computed = {number for step in self.steps for number in step.outputs}
        wanted: dict[int, str] = {}
        for number, spec in zip(self.outputs, self.model.outputs):
            if number in computed:
                wanted.setdefault(number, spec["name"])
        reserved = {spec["name"] for spec in [*self.model.inputs, *self.model.outputs]}
        taken = set(reserved)
        for number, hint in enumerate(self._hints):
            if number in wanted or number in self.inputs:
                self.names.append(wanted.get(number, hint))
                continue
            name, more = hint, 0
            while name in taken:
                more += 1
                name = f"{hint}#{more}"
            taken.add(name)
            self.names.append(name)

    # -- what it tells

    def copies(self) -> Iterator[tuple[str, int]]:
        """Outputs that are another value once more (an input, a constant, an output given twice): name and that value."""
        for number, spec in zip(self.outputs, self.model.outputs):
            if self.names[number] != spec["name"]:
                yield spec["name"], number

    def number(self, name: str) -> int:
        """The value of that name; for a copied output, what it is a copy of. Raises ValueError when there is none."""
        found = self.number_of.get(name, dict(self.copies()).get(name))
        if found is None:
            raise ValueError(f"{self.model.path} has no value '{name}'")
        return found

    def traceable(self) -> list[str]:
        """Names of all computed tensors in execution order, outputs included; shapes are values, but no tensors."""
        computed = [number for step in self.steps for number in step.outputs if is_tensor(self.types[number])]
        return [self.names[number] for number in computed] + [name for name, _ in self.copies()]

    def graph(self) -> GraphDict:
        """The view that the contract asks for."""
        nodes: list[NodeDict] = [self.node(step) for step in self.steps]
        for name, number in self.copies():
            nodes.append(
                {
                    "name": name,
                    "op": "Identity",
                    "native_op": "output",
                    "inputs": [self.names[number]],
                    "outputs": [name],
                    "attributes": {},
                }
            )
        return {
            "nodes": nodes,
            "inputs": [self.names[number] for number in self.inputs],
            "outputs": [spec["name"] for spec in self.model.outputs],
            "constants": {
                self.names[number]: {"dtype": str(array.dtype), "shape": list(array.shape)}
                for number, array in self.constants.items()
            },
        }

    def node(self, step: Step) -> NodeDict:
        """One operator in ONNX vocabulary."""
        from trueport.frameworks import _tvm_ops

        native = operator_name(step.call)
        shapes = [shape_of(self.types[number]) for number in step.reads]
        return {
            "name": step.variable.name if not step.outputs else self.names[step.outputs[0]],
            "op": _tvm_ops.onnx_name(native),
            "native_op": native,
            "inputs": [self.names[number] for number in step.reads],
            "outputs": [self.names[number] for number in step.outputs],
            "attributes": _tvm_ops.attributes(step.call, native, shapes),
        }

    def arrays(self) -> Arrays:
        """Every constant under its name in the graph."""
        return {self.names[number]: array for number, array in self.constants.items()}


def _free(branch: Any) -> Sequence[Any]:
    """Variables that a conditional reads from around it."""
    from tvm import relax

    found = [branch.cond] if type(branch.cond).__name__ in ("Var", "DataflowVar") else []
    for body in (branch.true_branch, branch.false_branch):
        found.extend(relax.analysis.free_vars(body))
    return found


def operator_name(call: Any) -> str:
    """What TVM calls it, without the dialect: "nn.conv2d"; for a kernel or a function of the module "call_tir:NAME"."""
    if type(call).__name__ == "If":
        return "If"
    name = str(getattr(call.op, "name", "") or getattr(call.op, "name_hint", "") or type(call.op).__name__)
    name = name[len("relax.") :] if name.startswith("relax.") else name
    if name.startswith("call_") and call.args and hasattr(call.args[0], "name_hint"):
        return f"{name}:{call.args[0].name_hint}"
    return name


def is_tensor(type_: Any) -> bool:
    """Whether a Relax type is a tensor's."""
    return type(type_).__name__ == "TensorType"


def type_name(type_: Any) -> str:
    """NumPy's name of a tensor type's elements. Raises Unsupported for those that NumPy does not have."""
    if not is_tensor(type_):
        raise Unsupported(f"a value of type {type(type_).__name__} is no tensor")
    name = str(getattr(type_.dtype, "dtype", type_.dtype))
    try:
        return str(np.dtype(name))
    except TypeError:
        raise Unsupported(f"tensors of {name} are not handled") from None


def shape_of(type_: Any) -> list[Dim] | None:
    """Sizes; a symbol's name where the size is open, None where it is computed from others; None for an unknown rank."""
    shape = getattr(type_, "shape", None)
    if shape is None:
        rank = int(getattr(type_, "ndim", -1))
        return None if rank < 0 else [None] * rank
    return [_size(item) for item in getattr(shape, "values", [])]


def _size(item: Any) -> Dim:
    if hasattr(item, "value"):
        return int(item.value)
    return str(item.name) if type(item).__name__ == "Var" else None
