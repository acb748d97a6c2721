"""Faults in the graph of an OpenVINO model: operators missing, added, exchanged or reordered, and what is done to the inputs.

A fault that adds a node is that node. One that removes a node sits between its neighbours: all of them are the truth.
Runs in a worker.
"""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from trueport.testing.planting._openvino_place import Fault, Node, SkipPlace, View, told

NEW = "+"
"""Stands for the names of the nodes that a fault adds, which are known when it is written."""
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "Relu": ("LeakyRelu", {"alpha": 0.1}),
    "LeakyRelu": ("Relu", {}),
    "PRelu": ("Relu", {}),
    "Clip": ("Relu", {}),
    "Sigmoid": ("HardSigmoid", {}),
    "Tanh": ("Softsign", {}),
    "Elu": ("Relu", {}),
    "Selu": ("Elu", {}),
    "Gelu": ("Relu", {}),
    "HardSigmoid": ("Sigmoid", {}),
    "HardSwish": ("Relu", {}),
    "Softplus": ("Relu", {}),
    "Swish": ("Relu", {}),
    "Softmax": ("LogSoftmax", {"axis": -1}),
}
"""Activation -> what a wrong translation makes of it."""
PRODUCERS = ("Conv", "ConvTranspose", "MatMul", "Add")
BINARY = ("Add", "Mul", "Sub", "Div")
REPEATABLE = ("Softmax", "Sigmoid", "Tanh", "Elu", "HardSwish")


def at(*operators: str) -> Callable[[View], list[Node]]:
    """Every node of these operators that computes real numbers from something computed."""
    return lambda view: [node for node in view.at(*operators) if _real(view, node)]


def _real(view: View, node: Node) -> bool:
    return bool(node["outputs"]) and view.floating(node["outputs"][0])


def after_linear(view: View) -> list[Node]:
    """Linear operators whose result is the whole of it: no bias and no activation follows at once."""
    return [
        node
        for node in at(*PRODUCERS)(view)
        if not any(reader["op"] in (*ACTIVATIONS, "Add") for reader in view.readers(node["outputs"][0]))
    ]


def missing(view: View, node: Node) -> dict[str, Any]:
    """Take an operator out; what it read goes on in its place."""
    shape = view.shape(node["outputs"][0])
    slots = [slot for slot, name in enumerate(node["inputs"]) if name in view.computed]
    slot = next((slot for slot in slots if view.shape(node["inputs"][slot]) == shape), None)
    if slot is None:
        raise SkipPlace("nothing that it reads has the shape of its result")
    made, readers = view.producer(node["inputs"][slot]), view.readers(node["outputs"][0])
    view.edit("remove-node", node=node["name"], slot=slot)
    around = [reader["name"] for reader in readers] + ([] if made is None else [made["name"]])
    return told(around, f"{node['op']} {node['name']} left out", node["op"], None)


def activation_extra(view: View, node: Node) -> dict[str, Any]:
    """A Relu that the source has not."""
    value = node["outputs"][0]
    view.edit("insert", value=value, steps=[{"operator": "Relu"}])
    return told([NEW], f"Relu put behind {value}", None, "Relu")


def activation_changed(view: View, node: Node) -> dict[str, Any]:
    """Another activation of the same inputs."""
    new, attributes = ACTIVATIONS[node["op"]]
    view.edit("set-operator", node=node["name"], operator=new, attributes=attributes, constants=[])
    return told([node["name"]], f"kind of {node['name']}", node["op"], new)


def repeated(view: View, node: Node) -> dict[str, Any]:
    """Apply an operator twice."""
    kept = {name: value for name, value in node["attributes"].items() if name in ("axis", "alpha")}
    view.edit("insert", value=node["outputs"][0], steps=[{"operator": node["op"], "attributes": kept}])
    return told([NEW], f"{node['op']} applied twice", 1, 2)


def operands_swapped(view: View, node: Node) -> dict[str, Any]:
    """a - b for b - a."""
    if len(set(node["inputs"])) < 2:
        raise SkipPlace("both operands are the same")
    view.edit("reorder-inputs", node=node["name"], order=[1, 0])
    return told([node["name"]], f"operands of {node['name']}", "first, second", "second, first")


def concat_order(view: View, node: Node) -> dict[str, Any]:
    """Join the parts the other way round."""
    old = list(node["inputs"])
    if old == old[::-1] or len(view.data(node)) < 2:
        raise SkipPlace("the order makes no difference")
    view.edit("reorder-inputs", node=node["name"], order=list(range(len(old)))[::-1])
    return told([node["name"]], f"order of {node['name']}", old, old[::-1])


def branch_missing(view: View, node: Node) -> dict[str, Any]:
    """Leave a branch out: of a + b only one stays."""
    if len(view.data(node)) < 2:
        raise SkipPlace("it joins no two branches")
    return missing(view, node)


def reshaped(view: View, node: Node) -> dict[str, Any]:
    """Reshape for Transpose: the shape is right, the order of the elements is not."""
    shape, given = view.shape(node["outputs"][0]), view.shape(node["inputs"][0])
    perm = node["attributes"].get("perm")
    if shape is None or given is None or perm is None or sum(size is None for size in shape) > 1:
        raise SkipPlace("the shape is not known")
    moving = [axis for axis in perm if given[axis] != 1]
    if moving == sorted(moving):
        raise SkipPlace("the transposition moves nothing")
    wanted = view.keep(np.array([-1 if size is None else size for size in shape], np.int64))
    view.edit("set-operator", node=node["name"], operator="Reshape", attributes={}, constants=[wanted])
    return told([node["name"]], f"kind of {node['name']}", "Transpose", "Reshape")


def cast_island(view: View, node: Node) -> dict[str, Any]:
    """Let a result pass through float16: the casts, and the nodes between which they stand."""
    value = node["outputs"][0]
    readers = [item["name"] for item in view.readers(value)]
    steps = [{"operator": "Cast", "attributes": {"to": kind}} for kind in ("float16", "float32")]
    view.edit("insert", value=value, steps=steps)
    return told([NEW, node["name"], *readers], f"{value} goes through float16", "float32", "float16")


# -- what is done to the inputs -----------------------------------------------------------------------------------------


def floats(view: View) -> list[str]:
    """Inputs of real numbers."""
    return [name for name in view.inputs if view.floating(name)]


def channel_axis(view: View, value: str) -> int | None:
    """The axis with 1 to 4 channels of a picture, or None."""
    shape = view.shape(value) or []
    return next((axis for axis in (1, 3) if len(shape) == 4 and 0 < (shape[axis] or 0) <= 4), None)


def pictures(view: View) -> list[str]:
    """Inputs of four axes, one of them a few channels."""
    return [name for name in floats(view) if channel_axis(view, name) is not None]


def at_front(view: View, name: str, steps: list[dict[str, Any]], what: str, source: Any, target: Any) -> dict[str, Any]:
    """Change an input before anything reads it: the new nodes and the first readers are the truth."""
    readers = [node["name"] for node in view.readers(name)]
    if not readers or name in view.outputs:
        raise SkipPlace("nothing reads the input")
    view.edit("insert", value=name, steps=steps)
    return told([NEW, *readers], f"{what} of {name}", source, target)


def input_scale(view: View, name: str) -> dict[str, Any]:
    """Divide by 255 once more."""
    steps = [{"operator": "Mul", "constants": [view.keep(np.array(1 / 255, np.float32))]}]
    return at_front(view, name, steps, "scale", 1, 1 / 255)


def input_mean(view: View, name: str) -> dict[str, Any]:
    """Subtract a mean and divide by a deviation for each channel, as ImageNet has them."""
    axis, shape = channel_axis(view, name), view.shape(name) or []
    size = shape[axis or 0] or 1
    form = [size if place == axis else 1 for place in range(4)]
    known = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, deviation = (view.keep(np.resize(np.array(row, np.float32), size).reshape(form)) for row in known)
    steps = [{"operator": "Sub", "constants": [mean]}, {"operator": "Div", "constants": [deviation]}]
    return at_front(view, name, steps, "mean and deviation", "none", "ImageNet")


def taken(view: View, name: str, axis: int, order: np.ndarray, what: str) -> dict[str, Any]:
    """Reorder an input along one axis."""
    steps = [{"operator": "Gather", "constants": [view.keep(order.astype(np.int64))], "attributes": {"axis": axis}}]
    return at_front(view, name, steps, what, "as given", order.tolist() if order.size < 9 else "reordered")


def input_bgr(view: View, name: str) -> dict[str, Any]:
    """Blue first."""
    axis = channel_axis(view, name) or 0
    size = (view.shape(name) or [])[axis] or 1
    if size < 2:
        raise SkipPlace("there is one channel")
    return taken(view, name, axis, np.arange(size)[::-1], "channel order")


def input_flipped(view: View, name: str) -> dict[str, Any]:
    """Right for left."""
    axis = 3 if channel_axis(view, name) == 1 else 2
    size = (view.shape(name) or [])[axis]
    if not size:
        raise SkipPlace("the width is not fixed")
    return taken(view, name, axis, np.arange(size)[::-1], "columns")


def input_turned(view: View, name: str) -> dict[str, Any]:
    """Height for width."""
    perm = [0, 1, 3, 2] if channel_axis(view, name) == 1 else [0, 2, 1, 3]
    steps = [{"operator": "Transpose", "attributes": {"perm": perm}}]
    return at_front(view, name, steps, "height and width", [0, 1, 2, 3], perm)


CG, TSS, PP = ("CG", "structure"), ("TSS", "structure"), ("PP", "inputs")
FAULTS = {
    "activation_missing": Fault(*CG, at(*ACTIVATIONS), missing),
    "activation_extra": Fault(*CG, after_linear, activation_extra),
    "activation_changed": Fault(*CG, at(*ACTIVATIONS), activation_changed, ("hyperparameters",)),
    "operator_missing": Fault(*CG, at("MVN", "MaxPool", "Pad"), missing),
    "branch_missing": Fault(*CG, at(*BINARY), branch_missing),
    "operator_repeated": Fault(*CG, at(*REPEATABLE), repeated),
    "operands_swapped": Fault(*CG, at("Subtract", "Divide", "Power"), operands_swapped),
    "concat_order": Fault(*CG, at("Concat"), concat_order),
    "reshape_for_transpose": Fault(*TSS, at("Transpose"), reshaped),
    "cast_island": Fault("QZ", "precision", at(*PRODUCERS, *ACTIVATIONS), cast_island),
    "input_scale": Fault(*PP, floats, input_scale),
    "input_mean": Fault(*PP, pictures, input_mean),
    "input_bgr": Fault(*PP, pictures, input_bgr),
    "input_flipped": Fault(*PP, pictures, input_flipped),
    "input_turned": Fault(*PP, pictures, input_turned),
}
