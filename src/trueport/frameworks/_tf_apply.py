"""Writes edits into a SavedModel, each kind as a change of its frozen graph, and sees whether the result runs. In a worker.

Operators come and go as TensorFlow's own, built from ONNX vocabulary by `_tf_operators`.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from trueport.frameworks import _tf_attributes as words
from trueport.frameworks import _tf_graph as graphs
from trueport.frameworks import _tf_saved as saves
from trueport.frameworks._base import Arrays, EditDict, Unsupported
from trueport.frameworks._tf_edit import Graph, line
from trueport.frameworks._tf_operators import LOWEST, made

FROZEN = "the weights of the SavedModel became constants: it computes as before, and cannot be trained further"


class Patch:
    """A graph while its edits are applied."""

    def __init__(self, path: str, arrays: Arrays, *, trust: bool) -> None:
        self.graph = Graph(path, trust=trust)
        self.arrays = arrays
        self.notes = [FROZEN]

    def array(self, key: str) -> np.ndarray:
        """An array that came with the edits. Raises Unsupported when it did not."""
        if key not in self.arrays:
            raise Unsupported(f"no array '{key}' came with the edits")
        return np.asarray(self.arrays[key])

    def operator(
        self, name: str, operator: str, attributes: Mapping[str, Any], tensors: Sequence[str], constants: Sequence[str]
    ) -> str:
        """Add an operator that reads these tensors and, behind them, these arrays."""
        held = [self.graph.hold(f"{name}_constant", self.array(key)) for key in constants]
        return self.graph.build(name, functools.partial(_made, operator, attributes), [*tensors, *held])


def _made(operator: str, attributes: Mapping[str, Any], tensors: list[Any]) -> Any:
    return made(operator, tensors, attributes)


def set_parameter(patch: Patch, edit: EditDict) -> None:
    """Let a node read another constant; other readers keep the old one."""
    graph, name = patch.graph, edit["parameter"]
    node = graph.node(edit["node"])
    slots = [i for i, item in enumerate(node.input) if (held := graph.constant(item)) is not None and held.name == name]
    if not slots:
        known = [graph.constant(item).name for item in node.input if graph.constant(item) is not None]
        raise Unsupported(f"'{edit['node']}' has no parameter '{name}'; it has {', '.join(known) or 'none'}")
    held = graph.nodes[name]
    array = patch.array(edit["array"]).astype(graph.array(held).dtype)
    if graph.readers(held) == [node.name] and not any(t.split(":")[0] == name for t in graph.outputs.values()):
        graph.set(held, array)
        return
    fresh = graph.hold(f"{name}_of_{node.name.rsplit('/', 1)[-1]}", array)
    for slot in slots:
        graph.put(graph.nodes[edit["node"]], slot, fresh)


def add_parameter(patch: Patch, edit: EditDict) -> None:
    """Add a bias behind a node."""
    if edit["role"] != "bias":
        raise Unsupported(f"a SavedModel takes no '{edit['role']}'; a bias can be added")
    node = patch.graph.node(edit["node"])
    _behind(patch, f"{node.name}:0", f"{node.name}_bias", "Add", {}, [edit["array"]])


def _behind(
    patch: Patch, tensor: str, name: str, operator: str, attributes: dict[str, Any], keys: Sequence[str]
) -> None:
    graph = patch.graph
    before = set(graph.nodes)
    new = patch.operator(graph.fresh(name), operator, attributes, [tensor], keys)
    graph.redirect(tensor, new, skip=[one for one in graph.nodes if one not in before])
    graph.outputs = {key: new if old == tensor else old for key, old in graph.outputs.items()}


def set_attribute(patch: Patch, edit: EditDict) -> None:
    """Set an attribute under the name that `graph` shows: an operand, a list over all axes, or TensorFlow's own."""
    graph, attribute, value = patch.graph, edit["attribute"], edit.get("value")
    node = graph.node(edit["node"])
    for position, name in words.OPERANDS.get(node.op, ()):
        if name == attribute and -len(node.input) <= position < len(node.input):
            return _set_operand(patch, node, position % len(node.input), value)
    if attribute == "pads" and node.op in ("Pad", "PadV2", "MirrorPad"):
        return _set_operand(patch, node, 1, np.reshape(np.asarray(value), (2, -1)).T)
    if attribute == "pads" and "padding" in node.attr:
        return _set_pads(patch, node, [int(size) for size in value or []])
    if attribute == "auto_pad" and "padding" in node.attr:
        wanted = {"SAME_UPPER": b"SAME", "VALID": b"VALID", "NOTSET": b"VALID"}.get(str(value))
        if wanted is None:
            raise Unsupported(f"TensorFlow has no padding '{value}'")
        node.attr["padding"].s = wanted
        return None
    if attribute in ("strides", "dilations", "kernel_shape") and "padding" in node.attr:
        return _set_window(node, {"kernel_shape": "ksize"}.get(attribute, attribute), value)
    if node.op.startswith("Resize") and attribute in ("mode", "coordinate_transformation_mode"):
        return _set_resize(node, attribute, str(value))
    return _set_plain(node, attribute, value)


def _set_operand(patch: Patch, node: Any, slot: int, value: Any) -> None:
    held = patch.graph.constant(node.input[slot])
    if held is None or value is None:
        raise Unsupported(f"'{node.name}' computes operand {slot}, which therefore has no value to be set")
    old = patch.graph.array(held)
    new = np.asarray(value, old.dtype)
    new = new.reshape(()) if old.ndim == 0 else new
    name = node.name
    fresh = patch.graph.hold(f"{name}_operand_{slot}", new)
    patch.graph.put(patch.graph.nodes[name], slot, fresh)


def _set_window(node: Any, key: str, value: Any) -> None:
    """Strides, dilations or size of a window, over the spatial axes."""
    if key not in node.attr:
        raise Unsupported(f"a {node.op} of TensorFlow has no {key}")
    whole = list(node.attr[key].list.i)
    first = 2 if node.attr["data_format"].s.startswith(b"NC") else 1
    sizes = [int(size) for size in np.ravel(value)]
    if len(sizes) != len(whole) - 2:
        raise Unsupported(f"'{node.name}' takes {len(whole) - 2} numbers, not {len(sizes)}")
    whole[first : first + len(sizes)] = sizes
    del node.attr[key].list.i[:]
    node.attr[key].list.i.extend(whole)


def _set_pads(patch: Patch, node: Any, pads: Sequence[int]) -> None:
    """Explicit pads of a window, as a Pad in front of it."""
    graph, name = patch.graph, node.name
    if "Backprop" in node.op or (node.op.startswith("Avg") and any(pads)):
        raise Unsupported(f"a {node.op} of TensorFlow takes no explicit pads")
    node.attr["padding"].s = b"VALID"
    node.attr["explicit_paddings"].list.ClearField("i")
    if not any(pads):
        return
    half = len(pads) // 2
    pairs = [[0, 0], *([pads[i], pads[half + i]] for i in range(half)), [0, 0]]
    if node.attr["data_format"].s.startswith(b"NC"):
        pairs = [[0, 0], [0, 0], *pairs[1:-1]]
    maximum = node.op.startswith("Max")
    attributes = {
        "pads": [pair[0] for pair in pairs] + [pair[1] for pair in pairs],
        "value": LOWEST if maximum else 0.0,
    }
    new = patch.operator(graph.fresh(f"{name}_pad"), "Pad", attributes, [graphs.full(node.input[0])], [])
    graph.put(graph.nodes[name], 0, new)


def _set_resize(node: Any, attribute: str, value: str) -> None:
    """Kind or coordinates of a resize."""
    if attribute == "mode":
        kinds = {"nearest": "ResizeNearestNeighbor", "linear": "ResizeBilinear", "cubic": "ResizeBicubic"}
        if value not in kinds:
            raise Unsupported(f"TensorFlow has no resize of kind '{value}'")
        node.op = kinds[value]
        return
    if value not in ("align_corners", "asymmetric", "half_pixel", "tf_half_pixel_for_nn"):
        raise Unsupported(f"TensorFlow does not resize with coordinates '{value}'")
    node.attr["align_corners"].b = value == "align_corners"
    node.attr["half_pixel_centers"].b = "half_pixel" in value


OWN = {"keepdims": "keep_dims", "transA": "transpose_a", "transB": "transpose_b", "blocksize": "block_size", "to": "DstT",
       "axes": "squeeze_dims"}  # fmt: skip
"""Attribute as shown -> TensorFlow's name."""


def _set_plain(node: Any, attribute: str, value: Any) -> None:
    """An attribute of TensorFlow's own, of the type that it has."""
    import tensorflow as tf

    key = next((k for k in (attribute, OWN.get(attribute, ""), attribute.replace("trans", "adj_").replace("A", "x").replace("B", "y"))
                if k in node.attr), None)  # fmt: skip
    if key is None or value is None:
        raise Unsupported(f"a {node.op} of TensorFlow has nothing that says {attribute}={value!r}")
    held = node.attr[key]
    kind = held.WhichOneof("value")
    if kind == "type":
        held.type = tf.as_dtype(str(value)).as_datatype_enum
    elif kind == "s":
        held.s = str(value).encode()
    elif kind == "list":
        held.list.ClearField("i")
        held.list.i.extend(int(item) for item in np.ravel(value))
    elif kind in ("f", "i", "b"):
        setattr(held, kind, {"f": float, "i": int, "b": bool}[kind](value))
    else:
        raise Unsupported(f"'{key}' of a {node.op} cannot be set")


def set_operator(patch: Patch, edit: EditDict) -> None:
    """Put another operator at a node's place, under its name."""
    graph = patch.graph
    node = graph.node(edit["node"])
    tensors = [graphs.full(node.input[slot]) for slot in graph.data(node)]
    old, attributes = node.name, edit.get("attributes") or {}
    new = patch.operator(graph.fresh(f"{old}_new"), edit["operator"], attributes, tensors, edit.get("constants") or [])
    graph.redirect(f"{old}:0", new)
    graph.outputs = {key: new if tensor == f"{old}:0" else tensor for key, tensor in graph.outputs.items()}
    graph.prune()
    if old not in graph.nodes:
        graph.rename(new.split(":")[0], old)


def remove_node(patch: Patch, edit: EditDict) -> None:
    """Let the readers of a node read one of its operands."""
    graph = patch.graph
    node = graph.node(edit["node"])
    slot = edit.get("slot")
    places = graph.data(node)
    if slot is None and not places:
        raise Unsupported(f"'{node.name}' reads no value that could stand for it")
    slot = places[0] if slot is None else int(slot)
    if not 0 <= slot < len(node.input) or node.input[slot].startswith("^"):
        raise Unsupported(f"'{node.name}' has no operand {slot}")
    old, new = f"{node.name}:0", graphs.full(node.input[slot])
    graph.redirect(old, new)
    graph.outputs = {key: new if tensor == old else tensor for key, tensor in graph.outputs.items()}
    graph.prune()


def insert(patch: Patch, edit: EditDict) -> None:
    """Put operators between a value and its readers."""
    graph = patch.graph
    tensor, readers = graph.tensor(edit["value"]), edit.get("readers")
    before, current = set(graph.nodes), tensor
    if not edit["steps"]:
        raise Unsupported("an insertion needs a step")
    for step in edit["steps"]:
        slot = int(step.get("slot") or 0)
        held = [graph.hold("inserted_constant", patch.array(key)) for key in step.get("constants") or []]
        others = [*held, *(graph.tensor(name) for name in step.get("others") or [])]
        name = graph.fresh(f"inserted_{step['operator'].lower()}")
        operands = [*others[:slot], current, *others[slot:]]
        attributes = step.get("attributes") or {}
        current = graph.build(name, functools.partial(_made, step["operator"], attributes), operands)
    new = [name for name in graph.nodes if name not in before]
    for name in [one for one in readers or [] if one]:
        if not graph.redirect(tensor, current, only=[graph.node(name).name]):
            raise Unsupported(f"'{name}' does not read '{edit['value']}'")
    if readers is None:
        graph.redirect(tensor, current, skip=new)
    if readers is None or "" in readers:
        given = [
            key
            for key, old in graph.outputs.items()
            if old == tensor or (readers and graph.origin(old) == graph.origin(tensor))
        ]
        if readers is not None and not given:
            raise Unsupported(f"'{edit['value']}' is no output of the model")
        graph.outputs = {key: current if key in given else old for key, old in graph.outputs.items()}
    _acyclic(graph)


def _acyclic(graph: Graph) -> None:
    """Raise Unsupported when a node now needs itself."""
    done: set[str] = set()
    for node in graphs.ordered(graph.graph_def):
        if any(name in graph.nodes and name not in done for name in graphs.sources(node)):
            raise Unsupported(f"'{node.name}' would be computed from itself")
        done.add(node.name)


def reorder_inputs(patch: Patch, edit: EditDict) -> None:
    """Let a node read its operands in another order."""
    node = patch.graph.node(edit["node"])
    reads = [item for item in node.input if not item.startswith("^")]
    order = [int(place) for place in edit["order"]]
    if len(order) < len(reads) and sorted(order) == list(range(len(order))):
        order += range(len(order), len(reads))
    if sorted(order) != list(range(len(reads))):
        raise Unsupported(f"'{node.name}' reads {len(reads)} tensors, which {edit['order']} does not order")
    for slot, place in enumerate(order):
        node.input[slot] = reads[place]


def set_input(patch: Patch, edit: EditDict) -> None:
    """Let a node read another value at one of its places."""
    node, slot = patch.graph.node(edit["node"]), int(edit["slot"])
    if not 0 <= slot < len(node.input) or node.input[slot].startswith("^"):
        raise Unsupported(f"'{node.name}' has no operand {slot}")
    patch.graph.put(node, slot, patch.graph.tensor(edit["value"]))
    _acyclic(patch.graph)  # TensorFlow would complain of shapes, or not at all
    patch.graph.prune()


def set_dimensions(patch: Patch, edit: EditDict) -> None:
    """Give an input another shape; a Reshape that holds the old batch size is freed where it can be."""
    graph, name = patch.graph, edit["value"]
    if name not in graph.inputs:
        raise Unsupported(f"'{name}' is no input of the model")
    node = graph.nodes[graph.inputs[name].split(":")[0]]
    old = [dim.size for dim in node.attr["shape"].shape.dim]
    sizes = [size if isinstance(size, int) else -1 for size in edit["shape"]]
    del node.attr["shape"].shape.dim[:]
    node.attr["shape"].shape.unknown_rank = False
    for size in sizes:
        node.attr["shape"].shape.dim.add(size=size)
    if old and sizes and old[0] > 0 and sizes[0] != old[0]:
        for reader in [one.name for one in graph.graph_def.node if one.op == "Reshape"]:
            held = graph.constant(graph.nodes[reader].input[1])
            shape = None if held is None else graph.array(held).copy()
            if shape is not None and shape.size and shape[0] == old[0] and -1 not in shape:
                shape[0] = -1
                graph.put(graph.nodes[reader], 1, graph.hold(f"{reader}_shape", shape))


def set_outputs(patch: Patch, edit: EditDict) -> None:
    """Let the model give these values and no others."""
    graph = patch.graph
    chosen = {name.replace("/", "_").replace(":", "_") if name not in graph.outputs else name: graph.tensor(name)
              for name in edit["outputs"]}  # fmt: skip
    if any(tensor in graph.inputs.values() for tensor in chosen.values()):
        raise Unsupported("an input of the model is no output")
    if list(chosen) != sorted(chosen):
        patch.notes.append("a SavedModel gives its outputs by name; the order is not kept")
    graph.outputs = chosen
    graph.prune()


def recompute(patch: Patch, edit: EditDict) -> None:
    """Compute a value anew, from operators in ONNX vocabulary."""
    graph = patch.graph
    old = graph.tensor(edit["value"])
    found: dict[str, str] = {}
    before, last = set(graph.nodes), ""
    for node in edit["nodes"]:
        tensors = []
        for name in node["inputs"]:
            if name in found:
                tensors.append(found[name])
            elif name in patch.arrays:
                tensors.append(graph.hold("recomputed_constant", patch.array(name)))
            else:
                tensors.append(graph.tensor(name))
        if len(node["outputs"]) > 1:
            raise Unsupported(f"'{node['op']}' gives several values, a recomputation is made of single ones")
        name = graph.fresh(str(node.get("name") or f"recomputed_{node['op'].lower()}"))
        attributes = node.get("attributes") or {}
        last = graph.build(name, functools.partial(_made, node["op"], attributes), tensors)
        found[node["outputs"][0]] = last
    if not last:
        raise Unsupported("a recomputation needs a node")
    graph.redirect(old, last, skip=[name for name in graph.nodes if name not in before])
    graph.outputs = {key: last if tensor == old else tensor for key, tensor in graph.outputs.items()}
    graph.prune()


KINDS: dict[str, Callable[[Patch, EditDict], None]] = {
    "set-parameter": set_parameter,
    "add-parameter": add_parameter,
    "set-attribute": set_attribute,
    "set-operator": set_operator,
    "remove-node": remove_node,
    "insert": insert,
    "reorder-inputs": reorder_inputs,
    "set-input": set_input,
    "set-dimensions": set_dimensions,
    "set-outputs": set_outputs,
    "recompute": recompute,
}


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool = False) -> list[str]:
    """Write a copy of the model at `out` with the edits applied, in order; returns what a user should know.

    Raises Unsupported when an edit cannot be written at its place, or when the edited model does not run.
    """
    patch = Patch(path, arrays, trust=trust)
    for edit in edits:
        kind = edit.get("kind", "")
        if kind not in KINDS:
            raise Unsupported(f"edits of kind '{kind}' cannot be written into a SavedModel")
        KINDS[kind](patch, edit)
        for node in patch.graph.graph_def.node:
            node.attr.pop("_output_shapes", None)
    patch.graph.save(out)
    try:
        check(out, trust=trust)
    except Exception as error:  # whatever TensorFlow says of a graph that was changed
        shutil.rmtree(out, ignore_errors=True)
        raise Unsupported(f"the edited model does not run: {line(error)}") from error
    return patch.notes


def check(path: str, *, trust: bool) -> None:
    """Load a model and call it once on zeros; unknown sizes are 1 for the batch and 32 for others."""
    saved = saves.load(path, trust=trust)
    feeds = {}
    for name, spec in saved.inputs.items():
        sizes = [] if spec.shape.rank is None else spec.shape.as_list()
        whole = [int(size) if size is not None else 32 if i else 1 for i, size in enumerate(sizes)]
        feeds[name] = np.zeros([1, *whole], spec.dtype.as_numpy_dtype)
    graphs.run_frozen(saved.frozen, {"zeros": feeds})
