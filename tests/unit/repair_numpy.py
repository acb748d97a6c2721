"""Small networks that NumPy runs, and edits of them: whether what a rule proposes mends a target is then computed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from trueport.align.match import View, align
from trueport.align.types import Match, Relation
from trueport.artifact import Artifact
from trueport.diagnosis.evidence import examine
from trueport.diagnosis.types import Finding
from trueport.graph import Graph, Node
from trueport.repairs.scene import Scene
from trueport.tracing import Traced

RUNS = 3


def _softmax(x, axis=-1):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def _layer_norm(x, gamma, beta=0.0, axis=-1, epsilon=1e-5):
    moved = x - x.mean(axis, keepdims=True)
    return moved / np.sqrt((moved**2).mean(axis, keepdims=True) + epsilon) * gamma + beta


def _batch_norm(x, gamma, beta, mean, var, epsilon=1e-5, channels=1):
    form = [-1 if axis == channels else 1 for axis in range(x.ndim)]
    gamma, beta, mean, var = (np.reshape(item, form) for item in (gamma, beta, mean, var))
    return (x - mean) / np.sqrt(var + epsilon) * gamma + beta


def _reshape(x, shape=None, **given):
    return x.reshape([int(size) for size in (given.get("to") if shape is None else shape)])


def _slice(x, starts, ends, axes, steps):
    cut = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(int(start), int(end), int(step))
    return x[tuple(cut)]


def _pad(x, pads, mode="constant", value=0.0):
    widths = [(pads[axis], pads[x.ndim + axis]) for axis in range(x.ndim)]
    return np.pad(x, widths, constant_values=value) if mode == "constant" else np.pad(x, widths, mode=mode)


def _windows(x, kernel_shape, strides, pads, fill):
    widths = [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])]
    full = np.lib.stride_tricks.sliding_window_view(np.pad(x, widths, constant_values=fill), kernel_shape, (2, 3))
    return full[:, :, :: strides[0], :: strides[1]]


def _max_pool(x, kernel_shape, strides, pads):
    return _windows(x, kernel_shape, strides, pads, -np.inf).max((-2, -1))


def _average_pool(x, kernel_shape, strides, pads):
    return _windows(x, kernel_shape, strides, pads, 0.0).mean((-2, -1))


def _conv(x, kernel, bias=None, kernel_shape=None, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1):
    parts = []
    for part, own in zip(np.split(x, group, 1), np.split(kernel, group, 0), strict=True):
        seen = _windows(part, own.shape[2:], strides, pads, 0.0)
        parts.append(np.einsum("nchwij,ocij->nohw", seen, own))
    out = np.concatenate(parts, 1)
    return out if bias is None else out + bias.reshape(1, -1, 1, 1)


def _reduced(function):
    return lambda x, axes, keepdims=1: function(x, axis=tuple(axes), keepdims=bool(keepdims))


OPS = {
    "Abs": np.abs,
    "Add": np.add,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": lambda x: x,
    "Clip": lambda x, min=-np.inf, max=np.inf: np.clip(x, min, max),
    "Concat": lambda *parts, axis: np.concatenate(parts, axis),
    "Conv": _conv,
    "Div": np.divide,
    "Elu": lambda x, alpha=1.0: np.where(x > 0, x, alpha * (np.exp(x) - 1)),
    "Exp": np.exp,
    "Flip": lambda x, axis: np.flip(x, axis),
    "Gather": lambda x, places, axis: np.take(x, np.asarray(places, int), axis),
    "GridSample": lambda x: 3 * x + 1,  # of no kind that is translated, whatever it computes
    "Greater": lambda a, b: a > b,
    "Identity": lambda x: x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, alpha=0.01: np.where(x > 0, x, alpha * x),
    "LogSoftmax": lambda x, axis=-1: np.log(_softmax(x, axis)),
    "MatMul": np.matmul,
    "Max": np.maximum,
    "MaxPool": _max_pool,
    "Min": np.minimum,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Pad": _pad,
    "Pow": np.power,
    "Reciprocal": lambda x: 1 / x,
    "ReduceMax": _reduced(np.max),
    "ReduceMean": _reduced(np.mean),
    "ReduceSum": _reduced(np.sum),
    "Relu": lambda x: np.maximum(x, 0),
    "Reshape": _reshape,
    "Rescaling": lambda x, scale, offset: x * np.array(scale) + np.array(offset),
    "Shape": lambda x: np.array(x.shape, np.float32),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": lambda x: np.log1p(np.exp(x)),
    "Sqrt": np.sqrt,
    "Square": np.square,
    "SquaredDifference": lambda a, b: (a - b) ** 2,
    "Sub": np.subtract,
    "Tanh": np.tanh,
    "Transpose": lambda x, perm: np.transpose(x, perm),
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(axes)),
    "Where": np.where,
}


@dataclass
class Net:
    """A network of one input `x`; its last node gives the output."""

    format: str = "onnx"
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, op, *inputs, out, **attributes):
        names = []
        for place, item in enumerate(inputs):
            if not isinstance(item, str):
                name = f"{out}/constant{place}"
                self.constants[name] = np.asarray(item)
                item = name
            names.append(item)
        self.nodes.append(
            Node(name=f"n_{out}", op=op, native_op=op, inputs=tuple(names), outputs=(out,), attributes=attributes)
        )
        return self

    def run(self, x, given=()):
        """Every value [R, *shape]; `given`: values that are put in."""
        given = dict(given)
        values = {"x": x}
        known = {node.outputs[0] for node in self.nodes}
        left = list(self.nodes)
        while left:  # edits append nodes anywhere
            node = next(one for one in left if all(name in values or name not in known for name in one.inputs))
            left.remove(node)
            attributes = {key: value for key, value in node.attributes.items() if key != "data_format"}
            rows = [
                OPS[node.op](*(self._operand(values, name, run) for name in node.inputs), **attributes)
                for run in range(len(x))
            ]
            value = np.stack(rows)
            values[node.outputs[0]] = value.astype(np.float32) if value.dtype.kind == "f" else value
            values |= {name: array for name, array in given.items() if name == node.outputs[0]}
        return values

    def _operand(self, values, name, run):
        return values[name][run] if name in values else self.constants[name]

    @property
    def graph(self):
        facts = {name: {"dtype": item.dtype.name, "shape": list(item.shape)} for name, item in self.constants.items()}
        return Graph(nodes=tuple(self.nodes), inputs=("x",), outputs=(self.nodes[-1].outputs[0],), constants=facts)

    def traced(self, x, values):
        artifact = Artifact(path=Path(f"model.{self.format}"), format=self.format, sha256="", size=0)
        return Traced(
            session=None, artifact=artifact, inputs={"x": x}, graph=self.graph, values=values, constants=self.constants
        )


def chain(format, *steps, x="x"):
    """Operators one behind the other, each (op, further inputs.., attributes) or its name; results are y0, y1, ..."""
    net, value = Net(format), x
    for place, step in enumerate(steps):
        op, *more = (step,) if isinstance(step, str) else step
        attributes = more.pop() if more and isinstance(more[-1], dict) else {}
        net.add(op, value, *more, out=f"y{place}", **attributes)
        value = f"y{place}"
    return net


def scene(source, target, x, *, at, twin, kind="drift", perm=None, relation=None, region, source_region):
    """The suspect at value `at`, where `relation(twin)` heals. perm: all axes of the source's input in the target's order.

    The alignment is the real one, of the target with that value put in.
    """
    turned = x if perm is None else np.transpose(x, (0, *(axis + 1 for axis in perm)))
    ours, as_found = source.run(x), target.run(np.ascontiguousarray(turned))
    relation = (
        relation if relation is not None else Relation(tuple(range(sum(size != 1 for size in ours[twin].shape[1:]))))
    )
    shape = as_found[at].shape[1:]
    if np.prod(shape) != ours[twin][0].size:  # a stride, a window: it heals in the source's sizes
        shape = ours[twin].shape[1:]
    put = relation.to_target(ours[twin], shape)
    healed = target.run(np.ascontiguousarray(turned), {at: put.astype(np.float32)})
    one, two = source.traced(x, ours), target.traced(turned, as_found)
    order = tuple(range(x.ndim - 1)) if perm is None else perm
    tight = [axis for axis in order if x.shape[axis + 1] != 1]
    pin = Match(
        target="x", source="x", relation=Relation(tuple(sorted(tight).index(axis) for axis in tight)), error=0.0,
        how="input", ok=True,
    )  # fmt: skip
    view, mended = View.of(one.graph, ours), View.of(two.graph, healed)
    alignment = align(view, mended, (pin,), tolerance=1e-5)
    found = Finding(
        kind=kind, target=at, source=twin, relation=relation, region=tuple(region), source_region=tuple(source_region),
        accumulated=0.5, local=0.5, causal=1.0, confirmed=True,
    )  # fmt: skip
    pair = SimpleNamespace(
        source=one, target=two, ours=view, theirs=mended, precision="float32", tolerance=1e-5, growth=6.0, pins=(pin,)
    )
    evidence = examine(found, one, two, alignment)
    return Scene(
        reference=None, target=two.artifact, given=None, verification=None, pair=pair, alignment=alignment, healed=alignment,
        suspect=SimpleNamespace(cause=evidence[0].cause), finding=found, evidence=evidence,
    )  # fmt: skip


def mended(scene, target, proposal):
    """Whether the target, with the proposed edits, computes what stands behind the mended value."""
    net = target
    for edit in proposal.edits:
        net = edited(net, edit.change, edit.arrays)
    values = net.run(scene.pair.target.inputs["x"])
    output = target.nodes[-1].outputs[0]
    wanted = scene.pair.theirs.values[output]
    return values[output].shape == wanted.shape and bool(np.allclose(values[output], wanted, rtol=1e-4, atol=1e-5))


def edited(net, change, arrays):
    """A copy of a network with one change, as the contract of edits describes it."""
    nodes, constants = list(net.nodes), {**net.constants, **arrays}
    place = next((index for index, node in enumerate(nodes) if node.name == change.get("node")), None)
    node = None if place is None else nodes[place]
    computed = {"x", *(one.outputs[0] for one in nodes)}
    kind = change["kind"]
    if kind == "remove-node":
        nodes.pop(place)
        nodes = _reading(nodes, node.outputs[0], node.inputs[change.get("slot", 0)])
        if node is net.nodes[-1]:
            nodes.append(replace(node, op="Identity", inputs=(node.inputs[change.get("slot", 0)],), attributes={}))
    elif kind == "set-attribute":
        nodes[place] = replace(node, attributes={**node.attributes, change["attribute"]: change["value"]})
    elif kind == "set-operator":
        data = [name for name in node.inputs if name in computed]
        inputs = (*data, *change.get("constants", ()))
        nodes[place] = replace(node, op=change["operator"], inputs=inputs, attributes=change["attributes"])
    elif kind == "reorder-inputs":
        nodes[place] = replace(node, inputs=tuple(node.inputs[slot] for slot in change["order"]))
    elif kind == "set-input":
        inputs = list(node.inputs)
        inputs[change["slot"]] = change["value"]
        nodes[place] = replace(node, inputs=tuple(inputs))
    elif kind == "insert":
        nodes = _inserted(nodes, change)
    elif kind == "recompute":
        nodes = _recomputed(nodes, change)
    else:
        raise AssertionError(f"unknown kind '{kind}'")
    last = net.nodes[-1].outputs[0]
    nodes.sort(key=lambda one: one.outputs[0] == last)
    return Net(net.format, nodes, constants)


def _reading(nodes, old, new, only=None):
    """Let nodes (those named) read another value."""
    return [
        node if only is not None and node.name not in only else
        replace(node, inputs=tuple(new if name == old else name for name in node.inputs))
        for node in nodes
    ]  # fmt: skip


def _inserted(nodes, change):
    value, raw = change["value"], change["value"]
    output = nodes[-1].outputs[0]
    if value == output and change.get("readers") is None:  # the output keeps its name
        raw = f"{value}/raw"
        nodes = [replace(node, outputs=(raw,)) if node.outputs[0] == value else node for node in nodes]
    made, current = [], raw
    for place, step in enumerate(change["steps"]):
        operands = [*step.get("constants", ()), *(raw if name == value else name for name in step.get("others", ()))]
        operands.insert(step.get("slot", 0), current)
        last = place == len(change["steps"]) - 1
        current = value if last and raw != value else f"{value}/step{place}"
        made.append(
            Node(
                name=current,
                op=step["operator"],
                inputs=tuple(operands),
                outputs=(current,),
                attributes=step["attributes"],
            )
        )
    return [*_reading(nodes, value, current, change.get("readers")), *made]


def _recomputed(nodes, change):
    value = change["value"]
    made = []
    for place, item in enumerate(change["nodes"]):
        last = place == len(change["nodes"]) - 1
        inputs = tuple(f"{name}/old" if name == value else name for name in item["inputs"])
        outputs = (value,) if last else tuple(item["outputs"])
        made.append(
            Node(name=item["name"], op=item["op"], inputs=inputs, outputs=outputs, attributes=item["attributes"])
        )
    old = [replace(node, outputs=(f"{value}/old",)) if node.outputs[0] == value else node for node in nodes]
    return [*old, *made]
