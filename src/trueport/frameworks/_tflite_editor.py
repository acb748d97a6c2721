"""Edits a TFLite graph in place: constants of one operator's own, operators put in or taken out. Runs in a worker.

A constant that several operators share is copied before it is changed; one behind a DEQUANTIZE is changed where it is
stored. Values are real: what is quantised goes through its grid both ways. Shapes are those that LiteRT computes.
"""

from __future__ import annotations

import copy
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._tflite_model import DTYPES, Model, off_grid, on_grid, pack, read_grid

PACKED = ("int4", "uint4")
VERSIONS = {"CAST": 7, "REVERSE_V2": 3, "GATHER": 5, "TRANSPOSE": 5, "PAD": 4, "DEQUANTIZE": 3, "QUANTIZE": 3}
"""Lowest version of an operator that has kernels for every type that is put in here."""


class Node(NamedTuple):
    """One operator of one graph. `owner`: the operator of the main graph that runs the graph, when it is a loop's body."""

    graph: Any
    item: Any
    code: str
    owner: Any


class Editor:
    """One parsed model. Operators are those of the main graph and of the bodies of its loops."""

    def __init__(self, path: str) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.model = Model(path)
        self.root, self.main = self.model.root, self.model.main
        self._writers: dict[int, tuple[int, dict[int, Any]]] = {}
        self._codes = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}

    # -- reading ------------------------------------------------------------------------------------------------

    def nodes(self, *codes: str, loops: bool = False) -> list[Node]:
        """The operators of these kinds (all without an argument) in the main graph, with `loops` in bodies of loops too."""
        found = [Node(self.main, item, self.code(item), item) for item in self.main.operators or ()]
        if loops:
            for node in [node for node in found if node.code == "WHILE"]:
                body = self._body(node)
                found += [Node(body, item, self.code(item), node.item) for item in body.operators or ()]
        return [node for node in found if not codes or node.code in codes]

    def code(self, item: Any) -> str:
        """Name of an operator's kind in the schema."""
        code = self.root.operatorCodes[item.opcodeIndex]
        return str(self._codes.get(max(code.builtinCode, code.deprecatedBuiltinCode), "?"))

    def name(self, node: Node) -> str:
        """What `graph` of the framework calls an operator; a loop stands for what its body does."""
        number = next(place for place, item in enumerate(self.main.operators) if item is node.owner)
        outputs = node.owner.outputs
        return f"{number}:{text(self.main.tensors[int(outputs[0])].name) if len(outputs) else ''}"

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

    def free(self, tensor: Any) -> list[bool]:
        """Which sizes of a tensor are free."""
        signature, shape = tensor.shapeSignature, self.shape(tensor)
        if signature is None or len(signature) != len(shape):
            return [False] * len(shape)
        return [int(size) < 0 for size in signature]

    def dtype(self, tensor: Any) -> str:
        """NumPy's name of a tensor's type."""
        return str(DTYPES[tensor.type])

    def stored(self, node: Node, slot: int) -> tuple[Any, Node | None] | None:
        """The constant tensor behind an operand, and the DEQUANTIZE between them."""
        if slot >= len(node.item.inputs) or node.item.inputs[slot] < 0:
            return None
        index = int(node.item.inputs[slot])
        writer = self.writer(node.graph, index)
        if writer is not None and writer.code == "DEQUANTIZE":
            found = self.stored(writer, 0)
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
        return None if item is None else self.node(graph, item)

    def readers(self, graph: Any, index: int) -> list[Node]:
        """The operators that read a tensor."""
        found = [item for item in graph.operators or () if index in [int(other) for other in item.inputs]]
        return [self.node(graph, item) for item in found]

    def node(self, graph: Any, item: Any) -> Node:
        """An operator of any graph; one of a loop's body belongs to the loop."""
        owner = item
        if graph is not self.main:
            owner = next((node.item for node in self.nodes("WHILE") if self._body(node) is graph), item)
        return Node(graph, item, self.code(item), owner)

    def _body(self, node: Node) -> Any:
        return self.root.subgraphs[node.item.builtinOptions.bodySubgraphIndex]

    def array(self, node: Node, slot: int) -> np.ndarray | None:
        """The constant that an operator reads at `slot`, in real values; None when it reads none, or one that is packed."""
        found = self.stored(node, slot)
        if found is None or found[0].sparsity is not None or self.dtype(found[0]) in (*PACKED, "str"):
            return None
        return self.values(found[0])

    def values(self, tensor: Any) -> np.ndarray:
        """A constant tensor in real values. It is neither sparse nor packed."""
        dtype = self.dtype(tensor)
        raw = np.frombuffer(self.model.buffer(int(tensor.buffer)), dtype=dtype).reshape(self.shape(tensor))
        grid = read_grid(tensor, dtype, constant=True)
        return raw.copy() if grid is None else off_grid(raw, grid)

    def floats(self, node: Node, slot: int, least: int = 1) -> Any:
        """The real constant of at least `least` elements at `slot`, or None. float16 comes as float32."""
        array = self.array(node, slot)
        if array is None or array.dtype.kind != "f" or array.size < least:
            return None
        return array.astype(np.float32)

    def computed(self, node: Node) -> list[int]:
        """The slots of an operator that read no constant."""
        slots = range(len(node.item.inputs))
        return [slot for slot in slots if node.item.inputs[slot] >= 0 and self.stored(node, slot) is None]

    def quantised(self, tensor: Any) -> bool:
        """Whether a computed tensor holds steps of a grid."""
        return read_grid(tensor, self.dtype(tensor), constant=False) is not None

    def same_grid(self, one: Any, other: Any) -> bool:
        """Whether two tensors store the same numbers as the same steps."""
        if one.type != other.type:
            return False
        left, right = (read_grid(item, self.dtype(item), constant=False) for item in (one, other))
        if left is None or right is None:
            return left is right
        return bool(np.array_equal(left.scale, right.scale) and np.array_equal(left.zero_point, right.zero_point))

    def is_output(self, node: Node) -> bool:
        """Whether an operator computes an output of its graph."""
        return bool({int(index) for index in node.item.outputs} & {int(index) for index in node.graph.outputs})

    # -- changing constants -------------------------------------------------------------------------------------

    def buffer(self, array: np.ndarray) -> int:
        """Store bytes in a new buffer and return its number."""
        made = self.schema.BufferT()
        made.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self.root.buffers.append(made)
        return len(self.root.buffers) - 1

    def steps(self, tensor: Any, array: np.ndarray) -> np.ndarray:
        """Real values as a constant tensor stores them: on its grid, in its type, packed. Raises Unsupported."""
        dtype = self.dtype(tensor)
        if tensor.sparsity is not None or dtype == "str":
            raise Unsupported(f"the constant '{text(tensor.name)}' is stored sparse or as text and cannot be written")
        grid = read_grid(tensor, dtype, constant=True)
        if grid is not None and grid.scale.size > 1 and array.shape[grid.axis : grid.axis + 1] != grid.scale.shape:
            raise Unsupported(f"the constant '{text(tensor.name)}' has {grid.scale.size} scales, one per channel")
        if grid is None:
            return np.asarray(array).astype(dtype)
        whole = on_grid(array, grid, dtype)
        if dtype not in PACKED:
            return whole
        nibbles = np.append(whole.ravel(), np.zeros(whole.size % 2, whole.dtype)).view(np.uint8) & 0x0F
        return np.asarray(nibbles[0::2] | nibbles[1::2] << 4, np.uint8)

    def set_operand(
        self, node: Node, slot: int, array: np.ndarray, *, apart: bool = False, grid: Any = None, dtype: str = ""
    ) -> None:
        """Let this operator alone read real values at `slot`, in the type and on the grid that were there.

        A constant that nobody else reads is changed where it stands, unless `apart`; else a copy is.
        grid, dtype: quantisation (as the schema has it) and type that the constant gets instead.
        """
        found = self.stored(node, slot)
        assert found is not None
        tensor, between = found
        made = copy.copy(tensor)
        if grid is not None:
            made.quantization = grid
        if dtype:
            made.type = DTYPES.index(dtype)
        raw = self.steps(made, array)
        made.shape = [int(size) for size in np.shape(array)]
        made.shapeSignature = None
        place = next(number for number, item in enumerate(node.graph.tensors) if item is tensor)
        if not apart and self._alone(node, slot, place, between):
            self._store(node.graph, place, made, raw)
            if between is not None:
                wide = self.result(between)
                wide.shape, wide.shapeSignature = made.shape, None
            return
        made.buffer, made.name = self.buffer(raw), self.fresh_name(node.graph, text(tensor.name) + "/changed")
        index = self.add_tensor(node.graph, made)
        if between is not None:
            wide = self.like(node.graph, int(between.item.outputs[0]), self.fresh_name(node.graph, made.name + "/wide"))
            node.graph.tensors[wide].shape, node.graph.tensors[wide].shapeSignature = made.shape, None
            item = copy.copy(between.item)
            item.inputs, item.outputs = [index], [wide]
            self.put_before(node, [item])
            index = wide
        self.rewire(node, slot, index)

    def _alone(self, node: Node, slot: int, place: int, between: Node | None) -> bool:
        """Whether nothing but `slot` of this operator depends on a constant tensor."""
        index = int(node.item.inputs[slot])
        if {index, place} & {int(other) for other in node.graph.outputs}:
            return False
        uses = [int(other) for item in node.graph.operators for other in item.inputs]
        return uses.count(index) == 1 and (between is None or uses.count(place) == 1)

    def _store(self, graph: Any, place: int, made: Any, raw: np.ndarray) -> None:
        """Put a changed constant where the old one stands; its buffer is reused when no other tensor has it."""
        number = int(made.buffer)
        users = [item for other in self.root.subgraphs for item in other.tensors or () if int(item.buffer) == number]
        users += [item for item in self.root.metadata or () if int(item.buffer) == number]
        if len(users) == 1 and (self.root.buffers[number].offset or 0) <= 1:
            fresh = copy.copy(self.root.buffers[number])
            fresh.data = np.frombuffer(np.ascontiguousarray(raw).tobytes(), np.uint8)
            self.root.buffers[number] = fresh
        else:
            made.buffer = self.buffer(raw)
        graph.tensors[place] = made

    # -- changing the graph -------------------------------------------------------------------------------------

    def rewire(self, node: Node, slot: int, index: int) -> None:
        """Let an operator read another tensor at `slot`."""
        inputs = [int(other) for other in node.item.inputs]
        inputs[slot] = index
        node.item.inputs = inputs

    def reads_instead(self, node: Node, old: int, new: int) -> None:
        """Let an operator read tensor `new` wherever it reads `old`."""
        node.item.inputs = [new if int(index) == old else int(index) for index in node.item.inputs]

    def add_tensor(self, graph: Any, tensor: Any) -> int:
        """Append a tensor and return its index."""
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def fresh_name(self, graph: Any, wanted: str) -> str:
        """`wanted`, with a number behind it when a tensor of the graph is called so already."""
        taken = {text(item.name) for item in graph.tensors}
        number, name = 2, wanted
        while name in taken:
            name, number = f"{wanted}_{number}", number + 1
        return name

    def like(self, graph: Any, index: int, name: str, **changes: Any) -> int:
        """Append a computed tensor like another one."""
        made = copy.copy(graph.tensors[index])
        made.name, made.buffer, made.isVariable = name, 0, False
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
        made.name, made.type = f"{name}_{len(graph.tensors)}", DTYPES.index(array.dtype.name)
        made.shape = [int(size) for size in array.shape]
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
        item.opcodeIndex = self._code_index(number, VERSIONS.get(code, 1))
        item.builtinOptions, item.builtinOptionsType = None, 0
        item.builtinOptions2, item.builtinOptions2Type = None, 0
        if options:
            item.builtinOptions = getattr(self.schema, f"{options}T")()
            item.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            for key, value in values.items():
                setattr(item.builtinOptions, key, value)

    def _code_index(self, number: int, version: int) -> int:
        """The first operator code of this kind that is new enough; a new one where the file has none."""
        for index, code in enumerate(self.root.operatorCodes):
            if max(code.builtinCode, code.deprecatedBuiltinCode) == number and int(code.version) >= version:
                return index
        made = self.schema.OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode, made.version = number, min(number, 127), version
        self.root.operatorCodes.append(made)
        return len(self.root.operatorCodes) - 1

    def put_before(self, node: Node, items: Iterable[Any]) -> list[Node]:
        """Place operators in front of another one of the same graph."""
        made = list(items)
        place = next(number for number, item in enumerate(node.graph.operators) if item is node.item)
        node.graph.operators[place:place] = made
        self.rewritten(node.graph)
        return [self.node(node.graph, item) for item in made]

    def rewritten(self, graph: Any) -> None:
        """Forget who computes what in a graph: an operator has been added, or computes something else."""
        self._writers.pop(id(graph), None)

    def take_out(self, node: Node) -> None:
        """Remove an operator; what it computed has no writer any more."""
        node.graph.operators = [item for item in node.graph.operators if item is not node.item]
        self.rewritten(node.graph)

    def bypass(self, node: Node, slot: int) -> None:
        """Take an operator of one output out; whoever read it reads its operand `slot` instead.

        Where it computes an output of the graph, the operator before it computes that output. Raises Unsupported when
        there is none that could.
        """
        graph, kept, gone = node.graph, int(node.item.inputs[slot]), int(node.item.outputs[0])
        if self.is_output(node):
            writer = self.writer(graph, kept)
            if writer is None or kept in [int(index) for index in graph.outputs]:
                raise Unsupported("the operator computes an output, and nothing before it can")
            writer.item.outputs = [gone if int(index) == kept else int(index) for index in writer.item.outputs]
            kept, gone = gone, kept
        self.take_out(node)
        for reader in self.readers(graph, gone):
            self.reads_instead(reader, gone, kept)

    # -- shapes and files ---------------------------------------------------------------------------------------

    def complete(self, graph: Any, item: Any) -> None:
        """Give what a new operator computes the shape that LiteRT says; sizes that follow a free one are free."""
        model, names = self._alone_in_a_file(graph, item)
        inputs = [(new, graph.tensors[old]) for old, new in names.items() if new in set(model.subgraphs[0].inputs)]
        content = pack(model)
        places = [names[int(index)] for index in item.outputs]
        shapes = run_on_zeros(content, {}, invoke=False)
        larger = {
            number: [size + 1 if free else size for size, free in zip(self.shape(tensor), self.free(tensor))]
            for number, tensor in inputs
            if any(self.free(tensor))
        }
        try:
            others = run_on_zeros(content, larger, invoke=False) if larger else shapes
        except Unsupported:  # a size is fixed in the operator itself
            others = shapes
        for index, place in zip(item.outputs, places):
            tensor, now, larger_now = graph.tensors[int(index)], shapes[place], others[place]
            if now is None or larger_now is None:
                raise Unsupported(f"the shape of '{text(tensor.name)}' would depend on values")
            tensor.shape, tensor.hasRank = now, True
            follows = [-1 if one != other else one for one, other in zip(now, larger_now)]
            tensor.shapeSignature = follows if -1 in follows else None

    def _alone_in_a_file(self, graph: Any, item: Any) -> tuple[Any, dict[int, int]]:
        """A model of one operator, and where its tensors went."""
        model, part = self.schema.ModelT(), self.schema.SubGraphT()
        model.version, model.subgraphs, model.buffers = 3, [part], [self.schema.BufferT()]
        model.operatorCodes = [self.root.operatorCodes[item.opcodeIndex]]
        used = dict.fromkeys(int(index) for index in (*item.inputs, *item.outputs) if int(index) >= 0)
        names = {old: new for new, old in enumerate(used)}
        part.tensors, part.inputs = [], []
        for old, new in names.items():
            tensor = copy.copy(graph.tensors[old])
            data = self.model.buffer(int(tensor.buffer))
            tensor.buffer = 0
            if data.size and old not in [int(index) for index in item.outputs]:
                model.buffers.append(self.schema.BufferT(data=data))
                tensor.buffer = len(model.buffers) - 1
            elif old not in [int(index) for index in item.outputs]:
                part.inputs.append(new)
            part.tensors.append(tensor)
        alone = copy.copy(item)
        alone.opcodeIndex = 0
        alone.inputs = [names.get(int(index), -1) for index in item.inputs]
        alone.outputs = [names[int(index)] for index in item.outputs]
        part.operators, part.outputs = [alone], alone.outputs
        return model, names

    def content(self) -> bytes:
        """The file as it is now, with the files that the original carries behind its graph (labels of metadata)."""
        packed = pack(self.root)
        if not zipfile.is_zipfile(self.model.path):
            return packed
        written = io.BytesIO(packed)
        with zipfile.ZipFile(self.model.path) as old, zipfile.ZipFile(written, "a") as new:
            for info in old.infolist():
                new.writestr(info, old.read(info))
        return written.getvalue()

    def save(self, out: str) -> None:
        """Write the model."""
        Path(out).write_bytes(self.content())


PLAIN, OPTIMISED = "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "AUTO"
"""Sets of kernels: the first checks more, the second has some for float16 that the first lacks."""


def run_on_zeros(
    content: bytes,
    sizes: Mapping[int, Sequence[int]],
    *,
    invoke: bool = True,
    kernels: Sequence[str] = (PLAIN, OPTIMISED),
) -> list[list[int] | None]:
    """Let LiteRT allocate a file, `sizes` given to these inputs, and run it; returns the shape of every tensor, if it has one.

    kernels: sets of kernels, tried in this order. Raises Unsupported with what LiteRT says when none can.
    """
    from ai_edge_litert import interpreter as litert

    why = ""
    for resolver in kernels:
        try:
            made = litert.Interpreter(
                model_content=content, experimental_op_resolver_type=litert.OpResolverType[resolver]
            )
            for index, size in sizes.items():
                made.resize_tensor_input(index, size)
            made.allocate_tensors()
            for details in made.get_input_details() if invoke else ():
                if np.prod(details["shape"]):
                    made.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
            if invoke:
                made.invoke()
            count = max((details["index"] for details in made.get_tensor_details()), default=-1) + 1
            return [_shape_of(made, index) for index in range(count)]
        except (RuntimeError, ValueError) as error:
            why = why or next(iter(str(error).strip().splitlines()), "no reason given")
    raise Unsupported(f"LiteRT cannot run the changed model: {why[:300]}")


def _shape_of(interpreter: Any, index: int) -> list[int] | None:
    """None for what kernels keep for themselves, and for what has no shape before it is computed."""
    try:
        return [int(size) for size in interpreter._get_tensor_details(index, 0)["shape"]]
    except ValueError:
        return None


def text(name: Any) -> str:
    """A name as the schema's reader gives it, as text."""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")
