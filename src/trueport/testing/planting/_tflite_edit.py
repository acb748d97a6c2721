"""Edits a TFLite graph in place: constants of one operator's own, options, operators put in or taken out. Runs in a worker.

Every edit touches one operator (or one edge). A constant that several operators share is copied before it is changed; one
behind a DEQUANTIZE is changed where it is stored. Values are real: what is quantised goes through its grid both ways.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks._tflite_model import DTYPES, Model, off_grid, on_grid, pack, read_grid


class SkipPlace(Exception):
    """This place cannot take this fault; the message says why."""


class Node(NamedTuple):
    """One operator of one graph. `owner`: the operator of the main graph that runs the graph, when it is a loop's body."""

    graph: Any
    item: Any
    code: str
    owner: Any


class Fault(NamedTuple):
    """One kind of fault: its row in the taxonomy, its cause (`also`: causes that say the same thing), where, and how.

    `change` edits the model at one of the `places` and returns {"nodes", "what", "source_value", "target_value"}.
    """

    row: str
    cause: str
    places: Callable[[Editor], Sequence[Any]]
    change: Callable[[Editor, Any], dict[str, Any]]
    also: tuple[str, ...] = ()


class Editor:
    """One parsed model and a random generator. Operators are those of the main graph and of the bodies of its loops."""

    def __init__(self, path: str, seed: int) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.model = Model(path)
        self.root, self.main = self.model.root, self.model.main
        self.rng = np.random.default_rng(seed)
        self._writers: dict[int, tuple[int, dict[int, Any]]] = {}
        self._codes = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}

    # -- reading ------------------------------------------------------------------------------------------------

    def nodes(self, *codes: str, loops: bool = False) -> list[Node]:
        """The operators of these kinds (all without an argument) in the main graph, with `loops` in bodies of loops too."""
        found = [Node(self.main, item, self._code(item), item) for item in self.main.operators or ()]
        if loops:
            for node in [node for node in found if node.code == "WHILE"]:
                body = self._body(node)
                found += [Node(body, item, self._code(item), node.item) for item in body.operators or ()]
        return [node for node in found if not codes or node.code in codes]

    def _code(self, item: Any) -> str:
        code = self.root.operatorCodes[item.opcodeIndex]
        return str(self._codes.get(max(code.builtinCode, code.deprecatedBuiltinCode), "?"))

    def name(self, node: Node) -> str:
        """What `graph` of the framework calls an operator; a loop stands for what its body does."""
        number = next(place for place, item in enumerate(self.main.operators) if item is node.owner)
        outputs = node.owner.outputs
        return f"{number}:{_text(self.main.tensors[int(outputs[0])].name) if len(outputs) else ''}"

    def tensor(self, node: Node, slot: int) -> Any | None:
        """The tensor that an operator reads at `slot`, None where it reads none."""
        inputs = node.item.inputs
        return None if slot >= len(inputs) or inputs[slot] < 0 else node.graph.tensors[int(inputs[slot])]

    def result(self, node: Node) -> Any:
        """The tensor of an operator's first output."""
        return node.graph.tensors[int(node.item.outputs[0])]

    def shape(self, tensor: Any) -> list[int]:
        """Recorded shape; a free size counts as recorded, usually 1."""
        return [int(size) for size in (tensor.shape if tensor.shape is not None else ())]

    def dtype(self, tensor: Any) -> str:
        """NumPy's name of a tensor's type."""
        return str(DTYPES[tensor.type])

    def _stored(self, node: Node, slot: int) -> tuple[Any, Node | None] | None:
        """The constant tensor behind an operand, and the DEQUANTIZE between them."""
        if slot >= len(node.item.inputs) or node.item.inputs[slot] < 0:
            return None
        index = int(node.item.inputs[slot])
        writer = self.writer(node.graph, index)
        if writer is not None and writer.code == "DEQUANTIZE":
            found = self._stored(writer, 0)
            return None if found is None else (found[0], writer)
        tensor = node.graph.tensors[index]
        inner = any(index == int(other) for other in node.graph.inputs)
        if writer is not None or inner or tensor.isVariable or not self.model.buffer(int(tensor.buffer)).size:
            return None
        return tensor, None

    def writer(self, graph: Any, index: int) -> Node | None:
        """The operator that computes a tensor; None for inputs and constants."""
        count = len(graph.operators or ())
        known = self._writers.get(id(graph))
        if known is None or known[0] != count:
            written = {int(other): item for item in graph.operators or () for other in item.outputs}
            known = self._writers[id(graph)] = (count, written)
        item = known[1].get(index)
        return None if item is None else self._node(graph, item)

    def readers(self, graph: Any, index: int) -> list[Node]:
        """The operators that read a tensor."""
        found = [item for item in graph.operators or () if index in [int(other) for other in item.inputs]]
        return [self._node(graph, item) for item in found]

    def _node(self, graph: Any, item: Any) -> Node:
        """An operator of any graph; one of a loop's body belongs to the loop."""
        owner = item
        if graph is not self.main:
            owner = next((node.item for node in self.nodes("WHILE") if self._body(node) is graph), item)
        return Node(graph, item, self._code(item), owner)

    def _body(self, node: Node) -> Any:
        return self.root.subgraphs[node.item.builtinOptions.bodySubgraphIndex]

    def array(self, node: Node, slot: int) -> np.ndarray | None:
        """The constant that an operator reads at `slot`, in real values; None when it reads none, or one that is packed."""
        found = self._stored(node, slot)
        if found is None or found[0].sparsity is not None or self.dtype(found[0]) in ("int4", "uint4", "str"):
            return None
        tensor = found[0]
        dtype = self.dtype(tensor)
        stored = np.frombuffer(self.model.buffer(int(tensor.buffer)), dtype=dtype).reshape(self.shape(tensor))
        grid = read_grid(tensor, dtype, constant=True)
        return stored.copy() if grid is None else off_grid(stored, grid)

    def floats(self, node: Node, slot: int, least: int = 1) -> Any:
        """The real constant of at least `least` elements at `slot`, or None. float16 comes as float32."""
        array = self.array(node, slot)
        if array is None or array.dtype.kind != "f" or array.size < least:
            return None
        return array.astype(np.float32)

    def computed(self, node: Node) -> list[int]:
        """The slots of an operator that read no constant."""
        slots = range(len(node.item.inputs))
        return [slot for slot in slots if node.item.inputs[slot] >= 0 and self._stored(node, slot) is None]

    def quantised(self, tensor: Any) -> bool:
        """Whether a computed tensor holds steps of a grid."""
        return read_grid(tensor, self.dtype(tensor), constant=False) is not None

    def is_output(self, node: Node) -> bool:
        """Whether an operator computes an output of its graph."""
        return bool({int(index) for index in node.item.outputs} & {int(index) for index in node.graph.outputs})

    # -- changing -----------------------------------------------------------------------------------------------

    def buffer(self, array: np.ndarray) -> int:
        """Store bytes in a new buffer and return its number."""
        made = self.schema.BufferT()
        made.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self.root.buffers.append(made)
        return len(self.root.buffers) - 1

    def set_operand(self, node: Node, slot: int, array: np.ndarray) -> None:
        """Let this operator alone read real values at `slot`, in the type and on the grid that were there."""
        found = self._stored(node, slot)
        assert found is not None
        tensor, between = found
        dtype = self.dtype(tensor)
        grid = read_grid(tensor, dtype, constant=True)
        stored = on_grid(array, grid, dtype) if grid is not None else np.asarray(array).astype(dtype)
        if between is not None:
            alone = [
                self.readers(node.graph, int(index)) for index in (between.item.inputs[0], between.item.outputs[0])
            ]
            if any(len(readers) > 1 for readers in alone):
                raise SkipPlace("the constant is shared")
            tensor.buffer = self.buffer(stored)
            return
        made = copy.copy(tensor)
        made.buffer, made.shape, made.name = self.buffer(stored), list(stored.shape), _text(tensor.name) + "/changed"
        self.rewire(node, slot, self.add_tensor(node.graph, made))

    def rewire(self, node: Node, slot: int, index: int) -> None:
        """Let an operator read another tensor at `slot`."""
        inputs = [int(other) for other in node.item.inputs]
        inputs[slot] = index
        node.item.inputs = inputs

    def add_tensor(self, graph: Any, tensor: Any) -> int:
        """Append a tensor and return its index."""
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def like(self, graph: Any, index: int, name: str, **changes: Any) -> int:
        """Append a computed tensor like another one."""
        made = copy.copy(graph.tensors[index])
        made.name, made.buffer = name, 0
        for key, value in changes.items():
            setattr(made, key, value)
        return self.add_tensor(graph, made)

    def reshaped(self, graph: Any, index: int, name: str, shape: Sequence[int]) -> int:
        """Append a computed tensor like another one but for its shape; a batch that was free stays free."""
        free = graph.tensors[index].shapeSignature
        signature = [-1, *shape[1:]] if free is not None and len(free) and int(free[0]) < 0 else None
        return self.like(graph, index, name, shape=list(shape), shapeSignature=signature)

    def constant(self, graph: Any, array: np.ndarray, name: str = "constant") -> int:
        """Append a plain constant and return its index."""
        made = self.schema.TensorT()
        made.name, made.type, made.shape = f"{name}_{len(graph.tensors)}", DTYPES.index(array.dtype.name), array.shape
        made.buffer, made.hasRank = self.buffer(array), True
        return self.add_tensor(graph, made)

    def operator(
        self, code: str, inputs: Sequence[int], outputs: Sequence[int], options: str = "", **values: Any
    ) -> Any:
        """Make an operator that no graph holds yet; `options` names its table in the schema."""
        item = self.schema.OperatorT()
        item.inputs, item.outputs = list(inputs), list(outputs)
        self.turn_into(item, code, options, **values)
        return item

    def turn_into(self, item: Any, code: str, options: str = "", **values: Any) -> None:
        """Make another kind of an operator; only the options given remain."""
        number = getattr(self.schema.BuiltinOperator, code)
        made = self.schema.OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode, made.version = number, min(number, 127), VERSIONS.get(code, 1)
        self.root.operatorCodes.append(made)
        item.opcodeIndex = len(self.root.operatorCodes) - 1
        item.builtinOptions, item.builtinOptionsType = None, 0
        if options:
            item.builtinOptions = getattr(self.schema, f"{options}T")()
            item.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            for key, value in values.items():
                setattr(item.builtinOptions, key, value)

    def put_before(self, node: Node, items: Iterable[Any]) -> list[Node]:
        """Place operators in front of another one of the same graph."""
        made = list(items)
        place = next(number for number, item in enumerate(node.graph.operators) if item is node.item)
        node.graph.operators[place:place] = made
        return [self._node(node.graph, item) for item in made]

    def remove(self, node: Node, slot: int) -> None:
        """Take an operator of one output out; whoever read it reads its operand `slot`, of the same shape, instead.

        Where it computes an output of the graph, the operator before it computes that output.
        """
        graph, kept, gone = node.graph, int(node.item.inputs[slot]), int(node.item.outputs[0])
        old, new = graph.tensors[kept], graph.tensors[gone]
        if self.shape(old) != self.shape(new) or old.type != new.type:
            raise SkipPlace("its operand has another shape or type")
        writer = self.writer(graph, kept)
        if self.is_output(node):
            if writer is None or self.is_output(writer) or self.quantised(new):
                raise SkipPlace("the operator computes an output, and nothing before it can")
            writer.item.outputs = [gone if int(index) == kept else int(index) for index in writer.item.outputs]
            kept, gone = gone, kept
        graph.operators = [item for item in graph.operators if item is not node.item]
        for reader in self.readers(graph, gone):
            for place, index in enumerate(reader.item.inputs):
                if int(index) == gone:
                    self.rewire(reader, place, kept)

    def save(self, out: str) -> None:
        """Write the model."""
        with open(out, "wb") as file:  # noqa: PTH123 -- as a worker gets it: text
            file.write(pack(self.root))


VERSIONS = {"CAST": 7, "REVERSE_V2": 3, "GATHER": 5, "TRANSPOSE": 5, "PAD": 4, "DEQUANTIZE": 3, "QUANTIZE": 3}
"""Lowest version of an operator that has kernels for every type that is put in here."""


def _text(name: Any) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")


def told(edit: Editor, nodes: Sequence[Node], what: str, source: Any, target: Any) -> dict[str, Any]:
    """What a change did, the two values side by side. Called after the change: operators are named by their place.

    what: "{}" in it stands for the first operator's name, without that it is a part of this operator.
    """
    names = list(dict.fromkeys(edit.name(node) for node in nodes))
    said = what.format(names[0]) if "{}" in what else f"{what} of {names[0]}"
    return {"nodes": names, "what": said, "source_value": source, "target_value": target}


def shown(array: np.ndarray, start: int = 0) -> str:
    """A constant in a few words, with three of its elements from `start` on."""
    size = "x".join(str(length) for length in array.shape) or "scalar"
    if array.size <= 4:
        return f"{size}: {np.round(array.astype(float), 5).reshape(-1).tolist()}"
    few = ", ".join(f"{number:.4g}" for number in array.reshape(-1)[start : start + 3].tolist())
    spread = float(np.sqrt(np.mean(np.square(array.astype(np.float64)))))
    return f"{size}, rms {spread:.5g}, elements from {start} on: {few}"


def at(*codes: str, loops: bool = False) -> Callable[[Editor], list[Node]]:
    """Every operator of these kinds that reads something computed."""
    return lambda edit: [node for node in edit.nodes(*codes, loops=loops) if edit.computed(node)]


def carrying(*codes: str) -> Callable[[Editor], list[Node]]:
    """Those that compute real numbers, not shapes and positions."""

    def find(edit: Editor) -> list[Node]:
        found = [(node, edit.result(node)) for node in at(*codes)(edit)]
        return [node for node, out in found if edit.quantised(out) or edit.dtype(out).startswith("float")]

    return find
