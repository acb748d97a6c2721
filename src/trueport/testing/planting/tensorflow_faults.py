"""Plants faults into SavedModels: `kinds` tells what a model can take, `plant` writes a changed copy. Runs in a worker.

The frozen graph is changed (weights are constants there) and written as a SavedModel without variables, under the same
signature. A planted model gives other outputs than the model did on random inputs; else the next place is tried.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks import _tf_edit as editing
from trueport.frameworks import _tf_graph as graphs
from trueport.frameworks import _tf_view as views
from trueport.frameworks import tensorflow as framework
from trueport.frameworks._base import Unsupported
from trueport.testing.planting._keras_edit import SkipPlace, shown, told

TRIES = 12
"""Places that are tried before a kind is given up."""
CONVOLUTIONS = {"Conv2D": -1, "Conv3D": -1, "DepthwiseConv2dNative": -2, "Conv2DBackpropInput": -2}
"""Operator -> axis of output channels of its kernel."""
WEIGHTS = {**CONVOLUTIONS, "MatMul": -1, "BatchMatMulV2": -1, "Einsum": -1, "GatherV2": -1}
TWINS = {"MaxPool": "AvgPool", "AvgPool": "MaxPool", "Mean": "Max", "Max": "Mean"}
ACTIVATIONS = {
    "Relu": "Relu6",
    "Relu6": "Relu",
    "LeakyRelu": "Relu",
    "Elu": "Relu",
    "Tanh": "Sigmoid",
    "Sigmoid": "Tanh",
}


class Graph(editing.Graph):
    """The frozen graph of a SavedModel, with a random generator."""

    def __init__(self, path: str, seed: int) -> None:
        super().__init__(path)
        self.rng = np.random.default_rng(seed)

    def save(self, out: str) -> None:
        """Write a SavedModel. Raises SkipPlace when TensorFlow does not take the graph."""
        try:
            super().save(out)
        except Unsupported as error:
            raise SkipPlace(str(error)) from error


class Fault(NamedTuple):
    """One kind of fault: its row in the taxonomy, its cause (`also`: causes that say the same thing), where, and how."""

    row: str
    cause: str
    places: Callable[[Graph], Sequence[Any]]
    change: Callable[[Graph, Any], dict[str, Any]]
    also: tuple[str, ...] = ()


def at(*operators: str) -> Callable[[Graph], list[Any]]:
    """Nodes of these operators."""
    return lambda graph: graph.of(*operators)


def stored(operators: Sequence[str], slots: Sequence[int], least: int) -> Callable[[Graph], list[tuple[Any, int]]]:
    """(node, operand) where a float constant with at least `least` elements is read."""

    def find(graph: Graph) -> list[tuple[Any, int]]:
        found = []
        for node in graph.of(*operators):
            for slot in slots:
                held = graph.constant(node.input[slot]) if slot < len(node.input) else None
                if held is not None and held.attr["dtype"].type == 1 and graph.array(held).size >= least:
                    found.append((node, slot))
        return found

    return find


weighted = stored(tuple(WEIGHTS), (0, 1), 4)
biased = stored(("BiasAdd", "AddV2", "Add"), (0, 1), 2)


def parameter(what: str, new: Callable[[Graph, Any, np.ndarray], np.ndarray]) -> Callable[[Graph, Any], dict[str, Any]]:
    """Replace a constant; one that stays is no fault."""

    def change(graph: Graph, place: Any) -> dict[str, Any]:
        node, slot = place
        held = graph.constant(node.input[slot])
        old = graph.array(held)
        made = np.asarray(new(graph, node, old), old.dtype)
        if np.array_equal(old, made):
            raise SkipPlace("the constant stays as it is")
        graph.set(held, made)
        return told(graph.readers(held), f"{what} ({held.name})", shown(old), shown(made))

    return change


def noise(level: float) -> Callable[[Graph, Any, np.ndarray], np.ndarray]:
    """Add noise of `level` times the spread."""
    return lambda graph, node, old: old + level * (float(np.std(old)) or 1.0) * graph.rng.standard_normal(old.shape)


def turned(graph: Graph, node: Any, old: np.ndarray) -> np.ndarray:
    """Exchange the kernel's height and width."""
    if node.op not in CONVOLUTIONS or old.ndim != 4 or old.shape[0] != old.shape[1]:
        raise SkipPlace("no square kernel")
    return np.swapaxes(old, 0, 1)


def flipped(graph: Graph, node: Any, old: np.ndarray) -> np.ndarray:
    """Turn the kernel round along its spatial axes."""
    if node.op not in CONVOLUTIONS or old.ndim < 3:
        raise SkipPlace("no convolution")
    return np.flip(old, tuple(range(old.ndim - 2)))


def channels_reversed(graph: Graph, node: Any, old: np.ndarray) -> np.ndarray:
    """Reverse the order of the output channels."""
    if old.ndim < 2:
        raise SkipPlace("no axis of output channels")
    return np.flip(old, WEIGHTS[node.op])


def on_int8(graph: Graph, node: Any, old: np.ndarray) -> np.ndarray:
    """Round to 255 steps of one scale."""
    step = float(np.max(np.abs(old))) / 127 or 1.0
    return np.round(old / step) * step


def on_float16(graph: Graph, node: Any, old: np.ndarray) -> np.ndarray:
    """Round to float16."""
    return old.astype(np.float16)


def number(key: str, new: Callable[[float], float]) -> Callable[[Graph, Any], dict[str, Any]]:
    """Change an attribute that is a number."""

    def change(graph: Graph, node: Any) -> dict[str, Any]:
        old = float(node.attr[key].f)
        node.attr[key].f = new(old)
        return told([node.name], f"{key} of {node.name}", old, new(old))

    return change


def padding(graph: Graph, node: Any) -> dict[str, Any]:
    """SAME for VALID, or the other way round."""
    old = node.attr["padding"].s
    if old not in (b"SAME", b"VALID"):
        raise SkipPlace("its padding is explicit")
    node.attr["padding"].s = b"VALID" if old == b"SAME" else b"SAME"
    return told([node.name], f"padding of {node.name}", old.decode(), node.attr["padding"].s.decode())


def corners(graph: Graph, node: Any) -> dict[str, Any]:
    """Corners aligned for half pixels, or the other way round."""
    old = bool(node.attr["align_corners"].b)
    half = bool(node.attr["half_pixel_centers"].b)
    node.attr["align_corners"].b, node.attr["half_pixel_centers"].b = not old, old
    before = "align_corners" if old else "half_pixel" if half else "asymmetric"
    return told([node.name], f"coordinates of {node.name}", before, "half_pixel" if old else "align_corners")


def operator(table: dict[str, str], keep: tuple[str, ...]) -> Callable[[Graph, Any], dict[str, Any]]:
    """Put another operator in an operator's place; only the attributes in `keep` go with it."""

    def change(graph: Graph, node: Any) -> dict[str, Any]:
        old = node.op
        node.op = table[old]
        for key in [key for key in node.attr if key not in keep]:
            del node.attr[key]
        return told([node.name], f"operator {node.name}", old, node.op)

    return change


def left_out(graph: Graph, node: Any) -> dict[str, Any]:
    """Pass the input on."""
    old = node.op
    kind = node.attr["T"].type
    node.op = "Identity"
    node.attr.clear()
    node.attr["T"].type = kind
    return told([node.name], f"{old} {node.name}", old, "Identity")


def concat_order(graph: Graph, node: Any) -> dict[str, Any]:
    """Join in the opposite order."""
    reads = list(node.input)
    if len(reads) < 3 or reads[0] == reads[-2]:
        raise SkipPlace("it joins nothing")
    del node.input[:]
    node.input.extend([*reads[-2::-1], reads[-1]])
    return told([node.name], f"order of {node.name}", "as it was", "reversed")


WB, QZ, LH, CG = ("WB", "parameters"), ("QZ", "precision"), ("LH", "hyperparameters"), ("CG", "structure")
FAULTS = {
    "weight_noise_1": Fault(*WB, weighted, parameter("noise of 1%", noise(0.01))),
    "weight_noise_10": Fault(*WB, weighted, parameter("noise of 10%", noise(0.1))),
    "weight_noise_30": Fault(*WB, weighted, parameter("noise of 30%", noise(0.3))),
    "kernel_transposed": Fault(*WB, weighted, parameter("height and width exchanged", turned), ("structure",)),
    "kernel_flipped": Fault(*WB, weighted, parameter("kernel flipped", flipped)),
    "channels_reversed": Fault(*WB, weighted, parameter("output channels reversed", channels_reversed)),
    "bias_dropped": Fault(*WB, biased, parameter("bias dropped", lambda g, n, old: np.zeros_like(old)), ("structure",)),
    "bias_noise": Fault(*WB, biased, parameter("noise of 30%", noise(0.3))),
    "weight_int8": Fault(*QZ, weighted, parameter("rounded to int8", on_int8)),
    "weight_float16": Fault(*QZ, weighted, parameter("rounded to float16", on_float16)),
    "leaky_alpha": Fault(*LH, at("LeakyRelu"), number("alpha", lambda old: old * 0.1)),
    "padding": Fault(*LH, at(*CONVOLUTIONS, "MaxPool", "AvgPool"), padding),
    "resize_coordinates": Fault(*LH, at("ResizeBilinear", "ResizeNearestNeighbor"), corners),
    "pool_kind": Fault(*CG, at("MaxPool", "AvgPool"), operator(TWINS, ("T", "ksize", "strides", "padding", "data_format")),
                       ("hyperparameters",)),
    "mean_to_max": Fault(*CG, at("Mean", "Max"), operator(TWINS, ("T", "Tidx", "keep_dims")), ("hyperparameters",)),
    "activation_changed": Fault(*CG, at(*ACTIVATIONS), operator(ACTIVATIONS, ("T",)), ("hyperparameters",)),
    "activation_missing": Fault(*CG, at(*ACTIVATIONS), left_out),
    "concat_order": Fault(*CG, at("ConcatV2"), concat_order),
}  # fmt: skip


def kinds(path: str) -> dict[str, int]:
    """Kind -> number of places at which it may be planted; a place may still turn out not to take it."""
    graph = Graph(path, 0)
    counts = {kind: len(fault.places(graph)) for kind, fault in FAULTS.items()}
    return {kind: count for kind, count in counts.items() if count}


def plant(path: str, out: str, kind: str, seed: int) -> dict[str, Any]:
    """Write a copy of the model with one fault at a random place, and return the truth about it.

    Returns {"kind", "row", "cause", "cause_also", "nodes", "what", "source_value", "target_value"} or {"skipped": why}.
    Raises ValueError for an unknown kind.
    """
    if kind not in FAULTS:
        raise ValueError(f"unknown fault kind '{kind}'; known are {', '.join(sorted(FAULTS))}")
    fault = FAULTS[kind]
    order = np.random.default_rng(seed).permutation(len(fault.places(Graph(path, seed))))
    if not len(order):
        return {"skipped": f"the model has no place for '{kind}'"}
    signature, why = framework.signature(path, trust=False), ""
    expected = _answers(path, signature)
    for index in order[:TRIES]:
        graph = Graph(path, seed)
        try:
            facts = fault.change(graph, fault.places(graph)[int(index)])
            graph.save(out)
        except SkipPlace as error:
            why = why or str(error)
            continue
        problem = _problem(out, facts["nodes"], signature, expected)
        if problem is None:
            return {"kind": kind, "row": fault.row, "cause": fault.cause, "cause_also": list(fault.also), **facts}
        why = problem
    shutil.rmtree(out, ignore_errors=True)
    return {"skipped": why}


def _problem(out: str, nodes: Sequence[str], signature: Any, expected: dict[str, np.ndarray]) -> str | None:
    """Why a planted model is of no use, or None."""
    try:
        found = _answers(out, signature)
    except Exception as error:  # noqa: BLE001 -- whatever TensorFlow says of a model that we broke
        return f"the planted model does not run: {str(error).splitlines()[0][:200]}"
    if any(name not in found or found[name].shape != value.shape for name, value in expected.items()):
        return "the outputs change their shape"
    if all(np.array_equal(found[name], value, equal_nan=value.dtype.kind == "f") for name, value in expected.items()):
        return "the outputs stay as they are"
    shown_nodes = {node["name"] for node in views.graph(framework.load(out, trust=False).frozen)["nodes"]}
    return None if set(nodes) <= shown_nodes else "the written model names its nodes otherwise"


def _answers(path: str, signature: Any) -> dict[str, np.ndarray]:
    """What the model gives on two samples of random inputs, the same for every model of one signature."""
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in signature["inputs"]:
        sizes = [
            size if isinstance(size, int) else 2 if place == 0 else 7 for place, size in enumerate(spec["shape"] or [])
        ]
        whole = "int" in spec["dtype"]
        array = rng.integers(0, spec.get("maximum", 1) + 1, sizes) if whole else rng.normal(0.2, 1.0, sizes)
        feeds[spec["name"]] = array.astype(spec["dtype"])[None]
    cases = {"c": feeds}
    found = graphs.run_frozen(framework.load(path, trust=False).frozen, cases)["c"]
    return {name: np.asarray(value) for name, value in found.items()}
