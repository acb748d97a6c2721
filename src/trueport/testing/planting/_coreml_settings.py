"""Faults in how operators of a Core ML model are set up and joined: pads, strides, axes, epsilons, activations, operands."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

from trueport.testing.planting._coreml_view import Change, Fault, Node, SkipPlace, View, told

WINDOWS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "Relu": ("LeakyRelu", {"alpha": 0.1}),
    "LeakyRelu": ("Relu", {}),
    "Clip": ("Relu", {}),
    "Sigmoid": ("HardSigmoid", {}),
    "Tanh": ("Softsign", {}),
    "Elu": ("Relu", {}),
    "Gelu": ("Relu", {}),
    "HardSigmoid": ("Sigmoid", {}),
    "Swish": ("Relu", {}),
    "Softplus": ("Relu", {}),
    "Erf": ("Tanh", {}),
    "Softmax": ("LogSoftmax", {"axis": -1}),
}
"""Activation -> what a wrong translation makes of it."""
PRODUCERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "BatchNormalization", "LayerNormalization")


def at(*operators: str) -> Callable[[View], list[Node]]:
    """Every operator of these kinds that computes something of the inputs."""
    return lambda view: view.nodes(*operators)


def altered(node: Node, name: str, new: Any, **more: Any) -> Change:
    """Set an attribute to another value; `more`: others that change with it."""
    old = node["attributes"].get(name)
    if old is None:
        raise SkipPlace(f"{node['name']} shows no {name}")
    if old == new:
        raise SkipPlace(f"{name} is {old} already")
    edits: Any = [
        {"kind": "set-attribute", "node": node["name"], "attribute": key, "value": value}
        for key, value in {name: new, **more}.items()
    ]
    return Change(edits, {}, told([node["name"]], f"{name} of {node['name']}", old, new))


def kernel(view: View, node: Node) -> list[int]:
    """The window's size along each axis."""
    if "kernel_sizes" in node["attributes"]:
        return list(node["attributes"]["kernel_sizes"])
    weights = view.array(node, 1)
    if weights is None:
        raise SkipPlace("the kernel is computed")
    return list(weights.shape[2:])


def pads(view: View, node: Node) -> list[int]:
    """The explicit pads, begin and end of each axis. Raises SkipPlace where they are worked out."""
    kind = node["attributes"].get("pad_type", "valid")
    if kind == "valid":
        return [0] * (2 * len(kernel(view, node)))
    if kind != "custom":
        raise SkipPlace("pads are automatic")
    return list(node["attributes"]["pad"])


def pads_shifted(view: View, node: Node) -> Change:
    """Move padding from one side to the other, the output keeps its size; an uneven pair is exchanged."""
    old = pads(view, node)
    new = list(old)
    for place in range(0, len(old), 2):
        before, after = old[place : place + 2]
        if before != after:
            new[place : place + 2] = [after, before]
        elif after:
            new[place : place + 2] = [before + 1, after - 1]
    return altered(node, "pad", new)


def same_lower(view: View, node: Node) -> Change:
    """Pad the smaller half at the end, or the other way."""
    old = node["attributes"].get("pad_type")
    if old not in ("same", "same_lower"):
        raise SkipPlace("pads are explicit")
    return altered(node, "pad_type", "same_lower" if old == "same" else "same")


def dilated(view: View, node: Node) -> Change:
    """Dilation 2 for 1, padded so that the output keeps its size."""
    size, old = kernel(view, node), list(node["attributes"].get("dilations", []))
    if max(size) < 2 or set(old) != {1}:
        raise SkipPlace("nothing to dilate")
    new = [2] * len(size)
    if node["attributes"].get("pad_type") in ("same", "same_lower"):
        return altered(node, "dilations", new)
    wide = list(pads(view, node))
    for axis, length in enumerate(size):
        wide[2 * axis] += (length - 1) // 2
        wide[2 * axis + 1] += length - 1 - (length - 1) // 2
    return altered(node, "dilations", new, pad=wide, pad_type="custom")


def strided(view: View, node: Node) -> Change:
    """Stride 1 for 2, or 2 for 1."""
    old = list(node["attributes"].get("strides", []))
    return altered(node, "strides", [1 if step > 1 else 2 for step in old])


def epsilon(view: View, node: Node) -> Change:
    """The other framework's default: 1e-3 where it is smaller, else 1e-5."""
    old = float(node["attributes"].get("epsilon", 1e-5))
    return altered(node, "epsilon", 1e-3 if old < 5e-4 else 1e-5)


def small_constants(view: View) -> list[tuple[Node, int]]:
    """Additions of a scalar between 0 and 1e-2: an epsilon that is written out."""
    found = [(node, slot) for node in view.nodes("Add") for slot in (0, 1)]
    small = [place for place in found if (array := view.weights(*place)) is not None and array.size == 1]
    return [place for place in small if 0 < view.array(*place).item() <= 1e-2]


def small_constant(view: View, place: tuple[Node, int]) -> Change:
    """1e-3 where it is smaller, else 1e-5."""
    node, slot = place
    old = view.array(node, slot)
    new = 1e-3 if old.item() < 5e-4 else 1e-5
    edit: Any = {"kind": "set-parameter", "node": node["name"], "parameter": node["inputs"][slot], "array": "new"}
    truth = told([node["name"]], f"constant of {node['name']}", old.item(), new)
    return Change([edit], {"new": np.full_like(old, new)}, truth)


def axis(view: View, node: Node) -> Change:
    """Another axis, not the batch."""
    shape = view.shape(view.data(node)[0])
    old = int(node["attributes"].get("axis", -1)) % max(len(shape), 1)
    others = [place for place in range(1, len(shape)) if place != old]
    if len(shape) < 3 or not others:
        raise SkipPlace("there is no other axis")
    return altered(node, "axis", others[int(view.rng.integers(len(others)))])


def concat_axis(view: View, node: Node) -> Change:
    """Another axis of equal sizes."""
    shapes = [view.shape(name) for name in node["inputs"]]
    if len(shapes) < 2 or any(shape != shapes[0] for shape in shapes):
        raise SkipPlace("the parts differ in shape")
    return axis(view, node)


def reduce_axis(view: View, node: Node) -> Change:
    """Reduce over another axis."""
    shape, old = view.shape(view.data(node)[0]), node["attributes"].get("axes")
    if not isinstance(old, list) or len(old) != 1 or len(shape) < 3:
        raise SkipPlace("it does not reduce one of several axes")
    others = [place for place in range(1, len(shape)) if place != old[0] % len(shape)]
    return altered(node, "axes", [others[int(view.rng.integers(len(others)))]])


def perm(view: View, node: Node) -> Change:
    """Exchange two axes of equal size in the result; any two where none are equal."""
    shape, old = view.shape(view.data(node)[0]), list(node["attributes"].get("perm", []))
    if len(shape) != len(old):
        raise SkipPlace("the shape is not known")
    pairs = [(a, b) for a in range(1, len(old)) for b in range(a + 1, len(old))]
    equal = [(a, b) for a, b in pairs if shape[old[a]] == shape[old[b]] and shape[old[a]] not in (None, 1)]
    if not pairs:
        raise SkipPlace("there are no two axes to exchange")
    chosen = (equal or pairs)[int(view.rng.integers(len(equal or pairs)))]
    new = list(old)
    new[chosen[0]], new[chosen[1]] = old[chosen[1]], old[chosen[0]]
    return altered(node, "perm", new)


def scaled(name: str, factor: float) -> Callable[[View, Node], Change]:
    """Multiply a number."""

    def change(view: View, node: Node) -> Change:
        old = node["attributes"].get(name)
        if not isinstance(old, (int, float)):
            raise SkipPlace(f"{name} is computed")
        return altered(node, name, old * factor)

    return change


def toggled(name: str) -> Callable[[View, Node], Change]:
    """Turn a flag round."""
    return lambda view, node: altered(node, name, not node["attributes"].get(name, False))


def gelu(view: View, node: Node) -> Change:
    """The approximation by tanh for the exact function, or the other way."""
    old = node["attributes"].get("mode", "EXACT")
    return altered(node, "mode", "TANH_APPROXIMATION" if old == "EXACT" else "EXACT")


def other_pool(view: View, node: Node) -> Change:
    """The maximum for the mean, or the other way."""
    new = {"MaxPool": "AveragePool", "AveragePool": "MaxPool"}[node["op"]]
    flat = pads(view, node)
    attributes = {
        "kernel_shape": kernel(view, node),
        "strides": list(node["attributes"].get("strides", [])),
        "pads": [*flat[::2], *flat[1::2]],
    }
    return _replaced(node, new, attributes)


def _replaced(node: Node, new: str, attributes: dict[str, Any]) -> Change:
    edit: Any = {"kind": "set-operator", "node": node["name"], "operator": new, "attributes": attributes}
    return Change([edit], {}, told([node["name"]], f"kind of {node['name']}", node["op"], new))


def mean_to_max(view: View, node: Node) -> Change:
    """ReduceMax for ReduceMean."""
    attributes = {"axes": node["attributes"].get("axes"), "keepdims": int(node["attributes"].get("keep_dims", True))}
    return _replaced(node, "ReduceMax", attributes)


# -- the graph ------------------------------------------------------------------------------------------------------


def activation_changed(view: View, node: Node) -> Change:
    """Another activation of the same data."""
    new, attributes = ACTIVATIONS[node["op"]]
    return _replaced(node, new, attributes)


def missing(view: View, node: Node) -> Change:
    """Take an operator out; what it read goes on in its place."""
    shape, out = view.shape(node["outputs"][0]), node["outputs"][0]
    before = next((name for name in view.data(node) if view.shape(name) == shape), None)
    if before is None or out in view.graph["outputs"]:
        raise SkipPlace("nothing that it reads has the shape of its result")
    edit: Any = {"kind": "remove-node", "node": node["name"], "slot": node["inputs"].index(before)}
    made = view.producer(before)
    around = view.readers(out) + ([] if made is None else [made])
    return Change([edit], {}, told(around, f"{node['op']} {node['name']} left out", node["op"], None))


def branch_missing(view: View, node: Node) -> Change:
    """Leave a branch out: of a + b only one stays."""
    if len(set(view.data(node))) < 2:
        raise SkipPlace("it joins no two branches")
    return missing(view, node)


def added(*steps: dict[str, Any]) -> Callable[[View, Node], Change]:
    """Put operators behind a node; they, and the nodes around them, are the truth."""

    def change(view: View, node: Node) -> Change:
        value = node["outputs"][0]
        if any(reader["op"] in ACTIVATIONS for reader in view.nodes() if value in reader["inputs"]):
            raise SkipPlace("an activation follows at once")
        edit: Any = {"kind": "insert", "value": value, "steps": [dict(step) for step in steps]}
        names = ", ".join(step["operator"] for step in steps)
        return Change([edit], {}, told([value, f"{value}_before"], f"{names} put behind {value}", None, names))

    return change


def after_linear(view: View) -> list[Node]:
    """Linear operators that compute float32."""
    return [node for node in view.nodes(*PRODUCERS) if view.types[node["outputs"][0]].dtype == "float32"]


def swapped(view: View, node: Node) -> Change:
    """a - b for b - a."""
    if len(set(node["inputs"][:2])) < 2:
        raise SkipPlace("both operands are the same")
    edit: Any = {"kind": "reorder-inputs", "node": node["name"], "order": [1, 0]}
    return Change([edit], {}, told([node["name"]], f"operands of {node['name']}", "first, second", "second, first"))


def concat_order(view: View, node: Node) -> Change:
    """Join the parts the other way round."""
    old = list(node["inputs"])
    if old == old[::-1] or len(view.data(node)) < 2:
        raise SkipPlace("the order makes no difference")
    edit: Any = {"kind": "reorder-inputs", "node": node["name"], "order": list(range(len(old)))[::-1]}
    return Change([edit], {}, told([node["name"]], f"order of {node['name']}", old, old[::-1]))


def input_scale(view: View, value: str) -> Change:
    """Divide by 255 once more."""
    return _at_front(view, value, [{"operator": "Mul", "attributes": {}, "constants": ["factor"]}], "scale", 1, 1 / 255)


def input_turned(view: View, value: str) -> Change:
    """Height for width."""
    shape = view.shape(value)
    high, wide = (2, 3) if shape[1] in (1, 2, 3, 4) else (1, 2)
    order = list(range(4))
    order[high], order[wide] = wide, high
    steps = [{"operator": "Transpose", "attributes": {"perm": order}}]
    return _at_front(view, value, steps, "height and width", [0, 1, 2, 3], order)


def _at_front(view: View, value: str, steps: Any, what: str, source: Any, target: Any) -> Change:
    readers = view.readers(value)
    if not readers:
        raise SkipPlace("nothing reads the input")
    edit: Any = {"kind": "insert", "value": value, "steps": steps}
    arrays = {"factor": np.array(1 / 255, np.float32)}
    names = [f"{value}_{word}" for word in ("mul", "transpose")]
    return Change([edit], arrays, told([*names, *readers], f"{what} of {value}", source, target))


def floats(view: View) -> list[str]:
    """Inputs of float32."""
    return [name for name in view.graph["inputs"] if view.types[name].dtype == "float32"]


def pictures(view: View) -> list[str]:
    """Inputs of four axes."""
    return [name for name in floats(view) if len(view.shape(name)) == 4]


LH, TSS, CG, PP = ("LH", "hyperparameters"), ("TSS", "hyperparameters"), ("CG", "structure"), ("PP", "inputs")
_HALF = ({"operator": "Cast", "attributes": {"to": 10}}, {"operator": "Cast", "attributes": {"to": 1}})
FAULTS = {
    "pads_shifted": Fault(*LH, at("Conv", "ConvTranspose", "AveragePool"), pads_shifted),
    "max_pool_pads": Fault(*LH, at("MaxPool"), pads_shifted),
    "same_lower": Fault(*LH, at(*WINDOWS), same_lower),
    "dilation": Fault(*LH, at("Conv"), dilated),
    "stride": Fault(*LH, at("Conv", "MaxPool", "AveragePool"), strided),
    "bn_epsilon": Fault(*LH, at("BatchNormalization"), epsilon),
    "norm_epsilon": Fault(*LH, at("LayerNormalization", "InstanceNormalization"), epsilon),
    "epsilon_constant": Fault(*LH, small_constants, small_constant, ("parameters",)),
    "softmax_axis": Fault(*TSS, at("Softmax"), axis),
    "concat_axis": Fault(*TSS, at("Concat"), concat_axis),
    "reduce_axis": Fault(*TSS, at("ReduceMean", "ReduceSum", "ReduceMax"), reduce_axis, ("parameters",)),
    "transpose_perm": Fault(*TSS, at("Transpose"), perm, ("structure",)),
    "leaky_alpha": Fault(*LH, at("LeakyRelu"), scaled("alpha", 3.0)),
    "elu_alpha": Fault(*LH, at("Elu"), scaled("alpha", 0.5)),
    "clip_bound": Fault(*LH, at("Clip"), scaled("beta", 0.5), ("parameters",)),
    "count_include_pad": Fault(*LH, at("AveragePool"), toggled("exclude_padding_from_average")),
    "ceil_mode": Fault(*LH, at("MaxPool", "AveragePool"), toggled("ceil_mode")),
    "gelu_approximate": Fault(*LH, at("Gelu"), gelu),
    "pool_kind": Fault(*CG, at("MaxPool", "AveragePool"), other_pool, ("hyperparameters",)),
    "mean_to_max": Fault(*CG, at("ReduceMean"), mean_to_max, ("hyperparameters",)),
    "activation_missing": Fault(*CG, at(*ACTIVATIONS), missing),
    "activation_extra": Fault(*CG, after_linear, added({"operator": "Relu", "attributes": {}})),
    "activation_changed": Fault(*CG, at(*ACTIVATIONS), activation_changed, ("hyperparameters",)),
    "operator_missing": Fault(*CG, at("BatchNormalization", "LayerNormalization", "Pad"), missing),
    "branch_missing": Fault(*CG, at("Add", "Mul", "Sub", "Div"), branch_missing),
    "operands_swapped": Fault(*CG, at("Sub", "Div", "Pow"), swapped),
    "concat_order": Fault(*CG, at("Concat"), concat_order),
    "cast_island": Fault("QZ", "precision", after_linear, added(*_HALF)),
    "input_scale": Fault(*PP, floats, input_scale),
    "input_turned": Fault(*PP, pictures, input_turned),
}
