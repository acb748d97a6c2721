"""Changes an ONNX file in place: the protobuf is edited, so what no change touches keeps every field that it had.

Large tensors in side files stay there. A constant that several nodes share is copied before it changes for one of
them. When the file is written, the nodes stand in an order that runs, what became useless by the changes is gone (and
nothing that was useless before), and recorded shapes behind a change are inferred anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Callable

import numpy as np

from trueport.frameworks import _onnx_edit_recorded as recorded
from trueport.frameworks import _onnx_file
from trueport.frameworks._base import BadModel, Unsupported

ALL = None
"""As `readers`: everyone who reads a value, the model's output included."""
OUTPUT = ""
"""As one of the `readers`: the model's output of that name."""
_NEEDS_INPUTS = 4
"""IR version from which a stored tensor need not be listed among the inputs."""
_SMALL = 1024
"""Stored tensors of more elements than this play no part in the inference of shapes."""
Make = Callable[[str, str], Sequence[Any]]
"""(value read, value made) -> NodeProtos, the last of which makes the value."""


class Editor:
    """One parsed model, its constants, shapes and types. Nodes are those of the main graph, as `graph` shows them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.folder = str(Path(path).parent)
        self.model = _onnx_file.read(path)
        self.graph = self.model.graph
        self.constants: dict[str, Any] = _onnx_file.constants(self.graph)
        self._made = 0
        self._taken = self._names()
        self._nodes = list(self.graph.node)  # held, so that a node keeps its identity while the list changes
        self._prints = {id(node): node.SerializeToString() for node in self._nodes if node.op_type != "Constant"}
        self._useless_nodes = {id(node) for node in self._nodes} - {id(node) for node in self._live()}
        self._useless_constants = {item.name for item in self.graph.initializer} - self._used()
        self._changed: set[str] = set()
        self._noted: dict[str, int] = {}
        self.freed = False

    def _names(self) -> set[str]:
        found = {item.name for item in [*self.graph.input, *self.graph.output]}
        for graph in _onnx_file.graphs(self.model):
            found |= {item.name for item in graph.initializer}
        for node in _onnx_file.nodes(self.model):
            found |= {node.name, *node.output}
        return found

    # -- reading ------------------------------------------------------------------------------------------------

    def nodes(self, *operators: str) -> list[Any]:
        """The nodes of these operators, in the file's order; all nodes without an argument."""
        return [node for node in self.graph.node if not operators or node.op_type in operators]

    def name(self, node: Any) -> str:
        """What `graph` of the framework calls a node."""
        return str(node.name or next((name for name in node.output if name), ""))

    def node(self, name: str) -> Any:
        """The node of that name. Raises Unsupported when there is none, or more than one."""
        found = [node for node in self.graph.node if self.name(node) == name]
        if len(found) != 1:
            raise Unsupported(f"the model has {'several nodes' if found else 'no node'} named '{name}'")
        return found[0]

    def array(self, value: str) -> np.ndarray | None:
        """The constant of that name as it is stored, or None."""
        from onnx import numpy_helper

        stored = self.constants.get(value)
        return None if stored is None else np.array(numpy_helper.to_array(stored, self.folder))

    def operand(self, node: Any, slot: int) -> Any:
        """The constant array that a node reads at `slot`, or None when it reads none there."""
        return self.array(node.input[slot]) if slot < len(node.input) and node.input[slot] else None

    def attribute(self, node: Any, name: str, default: Any = None) -> Any:
        """The value of an attribute: number, text or list."""
        from onnx import helper

        for item in node.attribute:
            if item.name == name:
                value = helper.get_attribute_value(item)
                return value.decode() if isinstance(value, bytes) else value
        return default

    @cached_property
    def _inferred(self) -> dict[str, Any]:
        """Value -> its TypeProto, as the file records it or as it follows from the operators."""
        return {**recorded.types(self.graph), **self._infer(keep=True)}

    def _infer(self, *, keep: bool) -> dict[str, Any]:
        """Value -> TypeProto by inference; `keep`: what the file records about inner values and outputs helps."""
        import onnx

        try:
            self.order()
            found = onnx.shape_inference.infer_shapes(self._light(keep=keep), data_prop=True)
        except Exception:  # noqa: BLE001 -- an operator that it does not know, or a model that it finds wrong
            return {}
        return recorded.types(found.graph)

    def _light(self, *, keep: bool) -> Any:
        """The model without its large tensors, of which only type and shape count here."""
        model = type(self.model)()
        model.ir_version = max(self.model.ir_version, _NEEDS_INPUTS)
        model.opset_import.extend(self.model.opset_import)
        model.functions.extend(self.model.functions)
        graph = model.graph
        graph.name = "light"
        graph.node.extend(self.graph.node)
        graph.input.extend(item for item in self.graph.input if item.name not in self.constants)
        for tensor in self.graph.initializer:
            if np.prod(tensor.dims, dtype=np.int64) <= _SMALL and not tensor.external_data:
                graph.initializer.append(tensor)
            else:
                graph.input.append(_described(tensor.name, tensor.data_type, tensor.dims))
        for sparse in self.graph.sparse_initializer:
            graph.input.append(_described(sparse.values.name, sparse.values.data_type, sparse.dims))
        if keep:
            graph.value_info.extend(self.graph.value_info)
        for item in self.graph.output:
            made = graph.output.add()
            made.name = item.name
            made.type.CopyFrom(item.type)
            if not keep and made.type.HasField("tensor_type"):
                made.type.tensor_type.ClearField("shape")
        return model

    def inferred_anew(self) -> dict[str, Any]:
        """Value -> TypeProto as it follows from the inputs alone, whatever the file records."""
        return self._infer(keep=False)

    def described(self, value: str) -> Any | None:
        """A ValueInfoProto of a value; None when its type is not known."""
        stored = self.constants.get(value)
        if stored is not None:
            return _described(value, stored.data_type, stored.dims)
        found = self._inferred.get(value)
        if found is None:
            return None
        made = self.graph.output.add(name=value)
        self.graph.output.pop()
        made.type.CopyFrom(found)
        return made

    def mark(self, value: str) -> None:
        """Note that a value differs from what the file had, so that what is recorded behind it is inferred anew."""
        self._changed.add(value)

    def type(self, value: str) -> int:
        """The element type of a value (TensorProto.DataType); 0 when it is unknown."""
        stored = self.constants.get(value)
        if stored is not None:
            return int(stored.data_type)
        found = self._inferred.get(value)
        return int(found.tensor_type.elem_type) if found is not None else self._noted.get(value, 0)

    def note_type(self, value: str, kind: int) -> None:
        """Remember the element type of a value that no node of the graph makes yet."""
        self._noted[value] = kind

    def shape(self, value: str) -> list[int | None] | None:
        """The shape of a value, None for an unknown size; None as a whole when the rank is unknown."""
        stored = self.constants.get(value)
        if stored is not None:
            return list(stored.dims)
        found = self._inferred.get(value)
        if found is None or not found.tensor_type.HasField("shape"):
            return None
        return [size.dim_value if size.HasField("dim_value") else None for size in found.tensor_type.shape.dim]

    def rank(self, value: str) -> int:
        """The number of axes; -1 when it is unknown."""
        shape = self.shape(value)
        return -1 if shape is None else len(shape)

    def reads(self, node: Any) -> list[str]:
        """The values that a node reads, those of its subgraphs included."""
        return [*(name for name in node.input if name), *_onnx_file.captured(node)]

    def readers(self, value: str) -> list[Any]:
        """The nodes that read a value."""
        return [node for node in self.graph.node if value in self.reads(node)]

    def producer(self, value: str) -> Any | None:
        """The node that computes a value; None for inputs and initialisers."""
        return next((node for node in self.graph.node if value in node.output), None)

    def computed(self, node: Any) -> list[str]:
        """The inputs of a node that are no constants."""
        return [name for name in node.input if name and name not in self.constants]

    def inputs(self) -> list[Any]:
        """The graph inputs that the caller feeds."""
        return [item for item in self.graph.input if item.name not in self.constants]

    def outputs(self) -> set[str]:
        """The names of the graph outputs."""
        return {item.name for item in self.graph.output}

    def exists(self, value: str) -> bool:
        """Whether the main graph has a value of that name."""
        return (
            value in self.constants
            or any(item.name == value for item in self.graph.input)
            or self.producer(value) is not None
            or any(item.values.name == value for item in self.graph.sparse_initializer)
        )

    def opset(self) -> int:
        """Version of the standard operators."""
        return int(_onnx_file.opsets(self.model).get("", 1))

    # -- constants ----------------------------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A name that the model does not use yet."""
        while True:
            self._made += 1
            name = f"{hint}_{self._made}"
            if name not in self._taken:
                self._taken.add(name)
                return name

    def constant(self, array: np.ndarray, hint: str = "constant") -> str:
        """Store an array as a new initialiser and return its name."""
        from onnx import numpy_helper

        return self.store(numpy_helper.from_array(np.array(array, order="C"), self.fresh(hint)))

    def store(self, tensor: Any) -> str:
        """Add a named TensorProto to the initialisers."""
        self.graph.initializer.append(tensor)
        self.constants[tensor.name] = self.graph.initializer[-1]
        if self.model.ir_version < _NEEDS_INPUTS:
            self.graph.input.append(_described(tensor.name, tensor.data_type, tensor.dims))
        return str(tensor.name)

    def set_operand(self, node: Any, slot: int, array: np.ndarray) -> None:
        """Let this node alone read `array` at `slot`, in the dtype that it had."""
        old = self.operand(node, slot)
        dtype = array.dtype if old is None else old.dtype
        self.put(node, slot, self.constant(np.asarray(array, dtype), node.input[slot] or "constant"))

    def put(self, node: Any, slot: int, value: str) -> None:
        """Let operand `slot` of a node be `value`; operands left out before it become empty."""
        while len(node.input) <= slot:
            node.input.append("")
        node.input[slot] = value
        while node.input and not node.input[-1]:
            del node.input[-1]

    def overwrite(self, value: str, tensor: Any) -> None:
        """Put another TensorProto in the place of a constant, for all who read it. It keeps its name."""
        tensor.name = value
        for item in self.graph.initializer:
            if item.name == value:
                item.CopyFrom(tensor)
                self.constants[value] = item
                break
        else:
            self._overwrite_elsewhere(value, tensor)
        for item in self.graph.input:
            if item.name == value:
                item.type.CopyFrom(_described(value, tensor.data_type, tensor.dims).type)
        self._changed.add(value)

    def _overwrite_elsewhere(self, value: str, tensor: Any) -> None:
        for place, sparse in enumerate(self.graph.sparse_initializer):
            if sparse.values.name == value:
                del self.graph.sparse_initializer[place]
                self.graph.initializer.append(tensor)
                self.constants[value] = self.graph.initializer[-1]
                return
        node = self.producer(value)
        if node is None or node.op_type != "Constant":
            raise Unsupported(f"'{value}' is no constant of the model")
        del node.attribute[:]
        item = node.attribute.add(name="value")
        item.type = item.TENSOR
        item.t.CopyFrom(tensor)
        self.constants[value] = item.t

    # -- changing -----------------------------------------------------------------------------------------------

    def add(self, *made: Any) -> list[Any]:
        """Append nodes; `save` puts them where they can run. Returns them as they stand in the graph."""
        self.graph.node.extend(made)
        found = list(self.graph.node)[len(self.graph.node) - len(made) :]
        self._nodes += found
        self._taken |= {name for node in found for name in (node.name, *node.output)}
        self.forget()
        return found

    def forget(self) -> None:
        """Infer types and shapes anew when they are next asked for."""
        self.__dict__.pop("_inferred", None)

    def splice(self, value: str, make: Make, readers: Sequence[str] | None = ALL) -> list[Any]:
        """Put nodes between a value and its readers (names of nodes, OUTPUT for the model's output; ALL).

        When everyone reads the new value, or the output does, it takes over the name and the old one gets another;
        an input keeps its name. Raises Unsupported for a reader that does not read it.
        """
        chosen = self._chosen(value, readers)
        producer = self.producer(value)
        is_output = value in self.outputs()
        takes_name = producer is not None and (readers is ALL or OUTPUT in readers)
        if is_output and not takes_name and (readers is ALL or OUTPUT in readers):
            raise Unsupported(f"'{value}' is an input or a constant and an output at once; nothing can stand between")
        raw, out = value, self.fresh(f"{value}_edited")
        if takes_name:
            raw, out = out, value
            self.rename_result(producer, value, raw)
        for node in self.readers(value):
            if (node in chosen) is not takes_name:
                self.rewire(node, value, raw if takes_name else out)
        return self.add(*make(raw, out))

    def _chosen(self, value: str, readers: Sequence[str] | None) -> list[Any]:
        found = self.readers(value)
        if readers is ALL:
            return found
        known = {self.name(node): node for node in found}
        for name in readers:
            if name == OUTPUT and value not in self.outputs():
                raise Unsupported(f"'{value}' is no output of the model")
            if name != OUTPUT and name not in known:
                raise Unsupported(f"node '{name}' does not read '{value}'")
        return [known[name] for name in readers if name != OUTPUT]

    def rename_result(self, node: Any, old: str, new: str) -> None:
        """Let a result of a node have another name; the node keeps its own."""
        node.name = self.name(node)
        node.output[list(node.output).index(old)] = new

    def chain(self, value: str, steps: Iterable[tuple[str, Sequence[str], dict[str, Any]]]) -> list[Any]:
        """Nodes (operator, constants that it also reads, attributes) one behind the other, the first one on `value`."""
        from onnx import helper

        made = []
        for operator, more, attributes in steps:
            out = self.fresh(f"{operator.lower()}_out")
            made.append(helper.make_node(operator, [value, *more], [out], name=self.fresh(operator), **attributes))
            value = out
        return made

    def rewire(self, node: Any, old: str, new: str) -> None:
        """Let a node, and its subgraphs, read `new` wherever they read `old`."""
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new
        for attribute in node.attribute:
            for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                self._rewire_graph(graph, old, new)

    def _rewire_graph(self, graph: Any, old: str, new: str) -> None:
        own = {item.name for item in [*graph.input, *graph.initializer]}
        own |= {name for node in graph.node for name in node.output}
        if old in own:
            return
        for node in graph.node:
            self.rewire(node, old, new)
        for item in graph.output:
            if item.name == old:
                item.name = new

    def drop(self, node: Any) -> None:
        """Take a node out of the graph."""
        self.graph.node.remove(node)
        self.forget()

    # -- saving -------------------------------------------------------------------------------------------------

    def _live(self) -> list[Any]:
        """The nodes on which an output depends."""
        makers = {name: node for node in self.graph.node for name in node.output if name}
        waiting = [item.name for item in self.graph.output]
        found: dict[int, Any] = {}
        while waiting:
            node = makers.get(waiting.pop())
            if node is not None and id(node) not in found:
                found[id(node)] = node
                waiting += self.reads(node)
        return list(found.values())

    def _used(self) -> set[str]:
        return self.outputs().union(*(self.reads(node) for node in self.graph.node))

    def finish(self) -> None:
        """Order the nodes, drop what became useless, and bring recorded shapes up to date. Raises Unsupported for a cycle."""
        live = {id(node) for node in self._live()}
        for node in list(self.graph.node):
            if id(node) not in live and id(node) not in self._useless_nodes:
                self.graph.node.remove(node)
        gone = {item.name for item in self.graph.initializer} - self._used() - self._useless_constants
        for items in (self.graph.initializer, self.graph.input):
            for place in reversed([place for place, item in enumerate(items) if item.name in gone]):
                del items[place]
        self.order()
        self.forget()
        recorded.refresh(self.graph, self._stale(), self.inferred_anew, freed=self.freed)

    def order(self) -> None:
        """Put the nodes where each can run, in the file's order as far as that goes. Raises Unsupported for a cycle."""
        nodes = list(self.graph.node)
        made = {name for node in nodes for name in node.output if name}
        ready: set[str] = set()
        places: dict[int, int] = {}
        waiting = nodes
        while waiting:
            later = []
            for node in waiting:
                if all(name in ready or name not in made for name in self.reads(node)):
                    places[id(node)] = len(places)
                    ready.update(node.output)
                else:
                    later.append(node)
            if len(later) == len(waiting):
                raise Unsupported(
                    f"the edits would make a cycle: node '{self.name(later[0])}' would read its own result"
                )
            waiting = later
        self.graph.node.sort(key=lambda node: places[id(node)])

    def _stale(self) -> set[str]:
        """Values that a change may have altered: results of changed nodes, and all behind them."""
        stale = set(self._changed)
        for node in self.graph.node:
            same = self._prints.get(id(node))
            new = node.op_type != "Constant" and (same is None or same != node.SerializeToString())
            if new or any(name in stale for name in self.reads(node)):
                stale.update(node.output)
        return stale

    def save(self, out: str) -> None:
        """Write the model, and copies of its side files beside it. The file appears whole or not at all."""
        try:
            data = self.model.SerializeToString(deterministic=True)
        except Exception as error:  # protobuf has several names for it
            raise Unsupported(
                "the changed model would be larger than the two gigabytes that one file can hold"
            ) from error
        folder = Path(out).parent
        for location in _onnx_file.external_files(self.model, self.path):
            target = folder / location
            if target.exists() and target.samefile(Path(self.folder) / location):
                continue
            if target.exists():
                raise BadModel(f"{target} is in the way of the model's own side file of that name")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(self.folder) / location, target)
        part = Path(f"{out}.part")
        part.write_bytes(data)
        os.replace(part, out)  # noqa: PTH105 -- `out` is a string everywhere here


def _described(name: str, kind: int, shape: Iterable[int]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, kind, list(shape))
