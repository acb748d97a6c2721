"""Edits an exported program in place: weights, arguments, operators put in or taken out. Runs in a worker.

Every edit touches one operator (or one edge) and leaves all others their names, so that the place of a planted fault
can be told by name. Shapes are worked out anew before the program is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np


class SkipPlace(Exception):
    """This place cannot take this fault; the message says why."""


class Editor:
    """One loaded program, its operators by name in ONNX vocabulary, and a random generator."""

    def __init__(self, path: str, seed: int) -> None:
        from trueport.frameworks._torch_program import Program, load

        self.program = Program(load(path, trust=False))
        self.exported = self.program.exported
        self.graph = self.exported.graph
        self.rng = np.random.default_rng(seed)
        self._edited = False  # whether more than weights changed

    # -- reading ------------------------------------------------------------------------------------------------

    def nodes(self, *operators: str) -> list[Any]:
        """The operators of these ONNX names that give a tensor, in execution order; all without an argument."""
        from trueport.frameworks._torch_ops import onnx_name

        known = self.program.operators()
        return [node for node in known if gives(node) and (not operators or onnx_name(node) in operators)]

    def native(self, *names: str) -> list[Any]:
        """The operators of these functions below `aten`."""
        return [node for node in self.nodes() if native(node) in names]

    def stored(self, value: Any) -> np.ndarray | None:
        """The floating weights behind an operand, or None where it is none or others read it too."""
        name = getattr(value, "name", None)
        tensor = self.program.constants.get(name) if name is not None else None
        if tensor is None or not tensor.is_floating_point() or len(value.users) != 1:
            return None
        return np.array(tensor.detach().numpy())

    def operand(self, node: Any, slot: int) -> Any:
        """The operand at a place, or None."""
        return node.args[slot] if slot < len(node.args) else None

    def shape(self, value: Any) -> list[int]:
        """The shape of a value, -1 for sizes that are open. Raises SkipPlace for what is no tensor."""
        found: Any = value.meta.get("val") if hasattr(value, "meta") else None
        if not hasattr(found, "shape"):
            raise SkipPlace("it gives several values")
        return [size if isinstance(size, int) else -1 for size in found.shape]

    def computed(self, node: Any) -> list[Any]:
        """The operands that are no stored weights."""
        return [one for one in node.all_input_nodes if one.name not in self.program.constants]

    def argument(self, node: Any, name: str) -> Any:
        """The value of an argument by its name in the schema, its default where it is not given."""
        for place, one in enumerate(node.target._schema.arguments):
            if one.name == name:
                return node.args[place] if place < len(node.args) else node.kwargs.get(name, one.default_value)
        raise SkipPlace(f"{native(node)} has no argument '{name}'")

    # -- changing -----------------------------------------------------------------------------------------------

    def set_argument(self, node: Any, name: str, value: Any) -> None:
        """Give an argument another value; defaults before it are written out."""
        self._edited = True
        schema = node.target._schema.arguments
        place = next(place for place, one in enumerate(schema) if one.name == name)
        if schema[place].kwarg_only:
            node.kwargs = {**node.kwargs, name: value}
            return
        args = list(node.args)
        while len(args) <= place:
            args.append(schema[len(args)].default_value)
        args[place] = value
        node.args = tuple(args)

    def store(self, value: Any, array: np.ndarray) -> None:
        """Give a stored weight other numbers."""
        import torch

        spec = next(one for one in self.exported.graph_signature.input_specs if one.arg.name == value.name)
        table = self.exported.state_dict if spec.target in self.exported.state_dict else self.exported.constants
        old = table[spec.target]
        tensor = torch.from_numpy(np.array(array, dtype=np.float64, order="C")).to(old.dtype)
        if isinstance(old, torch.nn.Parameter):
            tensor = torch.nn.Parameter(tensor, requires_grad=old.requires_grad)
        table[spec.target] = tensor
        self.program.constants[value.name] = tensor

    def insert(self, after: Any, steps: Sequence[tuple[Any, tuple[Any, ...]]]) -> list[Any]:
        """Put operators behind a value: (function, arguments after the first); all readers read the last one."""
        self._edited = True
        readers = [user for user in after.users if user.op != "output"]
        leaves = any(user.op == "output" for user in after.users)
        made, value = [], after
        for function, arguments in steps:
            with self.graph.inserting_after(value):
                new = self.graph.call_function(function, (value, *arguments))
            new.meta = {key: item for key, item in after.meta.items() if key != "from_node"}
            made.append(new)
            value = new
        for reader in readers:
            reader.replace_input_with(after, value)
        if leaves:
            self._output_is_now(after, value)
        return made

    def insert_between(self, value: Any, reader: Any, function: Any, arguments: tuple[Any, ...]) -> Any:
        """Put an operator on the edge from a value to one of its readers."""
        self._edited = True
        with self.graph.inserting_before(reader):
            new = self.graph.call_function(function, (value, *arguments))
        new.meta = {key: item for key, item in value.meta.items() if key != "from_node"}
        reader.replace_input_with(value, new)
        return new

    def remove(self, node: Any, instead: Any) -> None:
        """Take an operator out; its readers read `instead`."""
        if any(user.op == "output" for user in node.users):
            raise SkipPlace("its result is an output of the model")
        self._edited = True
        node.replace_all_uses_with(instead)
        self.graph.erase_node(node)

    def replace(self, node: Any, function: Any, args: tuple[Any, ...]) -> None:
        """Make another operator of a node, under the same name."""
        self._edited = True
        node.target, node.args, node.kwargs = function, args, {}

    def _output_is_now(self, before: Any, after: Any) -> None:
        last = list(self.graph.nodes)[-1]
        last.replace_input_with(before, after)
        for spec in self.exported.graph_signature.output_specs:
            if spec.arg.name == before.name:
                spec.arg.name = after.name

    def save(self, out: str) -> None:
        """Work shapes out anew and write the program. Raises SkipPlace when it does not fit together any more."""
        import torch
        from torch._dispatch.python import enable_python_dispatcher
        from torch.fx.passes.fake_tensor_prop import FakeTensorProp

        module = self.exported.graph_module
        inputs = [node.meta.get("val") for node in self.graph.nodes if node.op == "placeholder"]
        mode = next((one.fake_mode for one in inputs if hasattr(one, "fake_mode")), None)
        try:
            self.graph.lint()
            module.recompile()
            if self._edited:  # the dispatcher in Python keeps open sizes open; that in C++ would fix some
                with torch.no_grad(), enable_python_dispatcher():
                    FakeTensorProp(module, mode).propagate_dont_convert_inputs(*inputs)
            with open(out, "wb") as file:  # noqa: PTH123 -- a file object, because torch refuses paths with other suffixes
                torch.export.save(self.exported, file)
        except Exception as error:
            raise SkipPlace(f"the program does not fit together: {_line(error)}") from error


class Fault(NamedTuple):
    """One kind of fault: its row in the taxonomy, its cause (`also`: causes that say the same thing), where, and how.

    `change` edits the program at one of the `places` and returns {"nodes", "what", "source_value", "target_value"}.
    """

    row: str
    cause: str
    places: Callable[[Editor], Sequence[Any]]
    change: Callable[[Editor, Any], dict[str, Any]]
    also: tuple[str, ...] = ()


def told(nodes: Sequence[Any], what: str, source: Any, target: Any) -> dict[str, Any]:
    """What a change did, the two values side by side."""
    names = list(dict.fromkeys(node.name for node in nodes))
    return {"nodes": names, "what": what, "source_value": source, "target_value": target}


def shown(array: np.ndarray) -> str:
    """A constant in a few words."""
    size = "x".join(str(length) for length in array.shape) or "scalar"
    if array.size <= 4:
        return f"{size}: {np.round(array.astype(float), 5).reshape(-1).tolist()}"
    return f"{size}, rms {float(np.sqrt(np.mean(np.square(array.astype(np.float64))))):.5g}"


def native(node: Any) -> str:
    """ "conv2d" of aten.conv2d.default."""
    from trueport.frameworks._torch_values import native_name

    return native_name(node).rpartition(".")[2]


def gives(node: Any) -> bool:
    """Whether a node gives one tensor or several, and no size."""
    value = node.meta.get("val")
    return isinstance(value, (tuple, list)) or hasattr(value, "shape")


def floating(node: Any) -> bool:
    """Whether a node gives one tensor of float32."""
    return str(getattr(node.meta.get("val"), "dtype", "")) == "torch.float32"


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
