"""Edits of a Core ML neural network, the older format: its layers, their weights, fields and operands.

A weight keeps its storage where that is float32 or float16; one on a grid or in a table becomes float32 when asked for a
grid of its own. Shapes that the converter recorded are hints, and are left out of layers once one has changed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from trueport.frameworks import _coreml_read as reading
from trueport.frameworks._base import Arrays, EditDict, Unsupported


class Network:
    """One network opened for change; `layers`: messages of their own, in the file's order."""

    def __init__(self, path: str, arrays: Arrays) -> None:
        self.path, self.arrays = path, arrays
        self.spec = reading.read_spec(path)
        self.network = getattr(self.spec, self.spec.WhichOneof("Type"))
        self.layers = []
        for layer in self.network.layers:
            made = type(layer)()
            made.CopyFrom(layer)
            self.layers.append(made)
        self.moved = False

    def layer(self, name: str) -> Any:
        """The layer of that name. Raises Unsupported."""
        found = [layer for layer in self.layers if layer.name == name]
        if len(found) != 1:
            raise Unsupported(f"the network has {'several layers' if found else 'no layer'} named '{name}'")
        return found[0]

    def producer(self, value: str) -> Any | None:
        """The last layer that writes a value."""
        return next((layer for layer in reversed(self.layers) if value in layer.output), None)

    def exists(self, value: str) -> bool:
        """Whether the network has a value of that name."""
        return self.producer(value) is not None or value in [item.name for item in self.spec.description.input]

    @property
    def outputs(self) -> list[str]:
        """Names of the model's outputs."""
        return [item.name for item in self.spec.description.output]

    def fresh(self, hint: str) -> str:
        """A name that nothing in the network has."""
        taken = {layer.name for layer in self.layers} | {name for layer in self.layers for name in layer.output}
        taken.update(item.name for item in self.spec.description.input)
        count, name = 0, hint
        while name in taken:
            count += 1
            name = f"{hint}_{count}"
        return name

    def array(self, key: str) -> np.ndarray:
        """The array of that key. Raises Unsupported when none was handed over."""
        if key not in self.arrays:
            raise Unsupported(f"the edits name an array '{key}' that was not given")
        return np.asarray(self.arrays[key])

    def add(self, name: str, inputs: Sequence[str], output: str, behind: Any | None) -> Any:
        """A new layer behind another one (in front of all where `behind` is None)."""
        copy = type(self.network.layers.add())()
        del self.network.layers[-1]
        copy.name = self.fresh(name)
        copy.input.extend(inputs)
        copy.output.append(output)
        place = 0 if behind is None else next(n for n, one in enumerate(self.layers) if one is behind) + 1
        self.layers.insert(place, copy)
        self.moved = True
        return copy

    def save(self, out: str) -> None:
        """Write the file or the package. It appears whole or not at all."""
        if self.moved:
            for layer in self.layers:
                layer.ClearField("inputTensor")
                layer.ClearField("outputTensor")
        del self.network.layers[:]
        self.network.layers.extend(self.layers)
        data = self.spec.SerializeToString(deterministic=True)
        root, part = Path(self.path), Path(f"{out}.part")
        if root.is_dir():
            shutil.copytree(root, part)
            (part / reading.model_file(self.path).relative_to(root)).write_bytes(data)
        else:
            part.write_bytes(data)
        os.replace(part, out)  # noqa: PTH105 -- `out` is a string everywhere here


# -- weights and fields -----------------------------------------------------------------------------------------------


def _set_parameter(net: Network, edit: EditDict) -> None:
    node, name = net.layer(edit["node"]), edit["parameter"]
    owner, _, field = name.rpartition(".")
    loaded = net.producer(name)
    if owner == node.name:
        weight = _weight(getattr(node, node.WhichOneof("layer")), field)
    elif loaded is not None and loaded.WhichOneof("layer") in ("loadConstant", "loadConstantND") and name in node.input:
        if sum(name in layer.input for layer in net.layers) > 1:
            copy = net.add(name, [], net.fresh(name), loaded)
            getattr(copy, loaded.WhichOneof("layer")).CopyFrom(getattr(loaded, loaded.WhichOneof("layer")))
            node.input[list(node.input).index(name)] = copy.output[0]
            loaded = copy
        weight = getattr(loaded, loaded.WhichOneof("layer")).data
    else:
        raise Unsupported(f"the layer '{edit['node']}' does not read '{name}'")
    _store(weight, net.array(edit["array"]), name, edit.get("grid", "keep"))


def _weight(message: Any, path: str) -> Any:
    """The WeightParams under a field name, wherever in the layer it stands."""
    for field in message.DESCRIPTOR.fields:
        kind = field.message_type
        if kind is None or type(getattr(message, field.name)).__name__.startswith("Repeated"):
            continue
        value = getattr(message, field.name)
        if kind.name == "WeightParams" and field.name == path:
            return value
        if kind.name != "WeightParams" and message.HasField(field.name):
            try:
                return _weight(value, path)
            except Unsupported:
                continue
    raise Unsupported(f"the layer has no weight '{path}'")


def _store(weight: Any, array: np.ndarray, name: str, grid: str) -> None:
    flat = np.ascontiguousarray(array).reshape(-1)
    half = bool(weight.float16Value)
    if not (weight.floatValue or half) and grid != "new":
        raise Unsupported(f"'{name}' is stored in fewer bits; give it a grid of its own")
    count = len(weight.floatValue) or len(weight.float16Value) // 2 or flat.size
    if flat.size != count:
        raise Unsupported(f"'{name}' holds {count} values, and {flat.size} were given")
    weight.Clear()
    if half and grid != "new":
        weight.float16Value = flat.astype(np.float16).tobytes()
    else:
        weight.floatValue.extend(flat.astype(np.float32))


def _add_parameter(net: Network, edit: EditDict) -> None:
    node = net.layer(edit["node"])
    kind = node.WhichOneof("layer")
    message = getattr(node, kind)
    if edit["role"] != "bias" or not hasattr(message, "hasBias"):
        raise Unsupported(f"a layer of kind {kind} takes no {edit['role']}")
    if message.hasBias:
        raise Unsupported(f"'{edit['node']}' has a bias already")
    message.hasBias = True
    message.bias.Clear()
    message.bias.floatValue.extend(np.asarray(net.array(edit["array"]), np.float32).reshape(-1))


WORDS = {
    "strides": "stride",
    "dilations": "dilationFactor",
    "kernel_shape": "kernelSize",
    "keepdims": "keepDims",
    "perm": "axes",
    "max": "beta",
    "min": "alpha",
}
"""ONNX's name of an attribute -> the field's, where a layer has a field of that name."""


def _set_attribute(net: Network, edit: EditDict) -> None:
    node, name, value = net.layer(edit["node"]), edit["attribute"], edit.get("value")
    message = getattr(node, node.WhichOneof("layer"))
    net.moved = True
    if name in ("pads", "auto_pad", "paddingAmounts"):
        _set_pads(message, name, value)
        return
    if name == "count_include_pad":
        name, value = "avgPoolExcludePadding", not value
    if name == "approximate":
        name, value = "mode", {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}.get(str(value), value)
    if value is None or not (_set_field(message, name, value) or _set_field(message, WORDS.get(name, ""), value)):
        raise Unsupported(f"a layer of kind {node.WhichOneof('layer')} has no setting '{name}' that can be {value!r}")


def _set_field(message: Any, name: str, value: Any) -> bool:
    """Set a field by its name, in the message or in one that it holds; false where there is none."""
    for field in message.DESCRIPTOR.fields:
        current = getattr(message, field.name)
        if field.name == name and field.message_type is None:
            if isinstance(value, (list, tuple)):
                if not hasattr(current, "extend"):
                    return False
                del current[:]
                current.extend(value)
            elif hasattr(current, "extend"):
                current[:] = [value]
            elif field.enum_type is not None:
                number = field.enum_type.values_by_name.get(str(value))
                if number is None:
                    return False
                setattr(message, name, number.number)
            else:
                setattr(message, name, type(current)(value))
            return True
    for field in message.DESCRIPTOR.fields:
        inner = field.message_type
        if inner is None or inner.name == "WeightParams" or hasattr(getattr(message, field.name), "extend"):
            continue
        if message.HasField(field.name) and _set_field(getattr(message, field.name), name, value):
            return True
    return False


def _set_pads(message: Any, name: str, value: Any) -> None:
    if not hasattr(message, "valid"):
        raise Unsupported("the layer has no padding of its own")
    if name == "auto_pad" and str(value).upper().startswith("SAME"):
        mode = message.same.SamePaddingMode
        message.same.asymmetryMode = mode.Value("TOP_LEFT_HEAVY" if str(value).upper() == "SAME_LOWER" else "BOTTOM_RIGHT_HEAVY")  # fmt: skip
        return
    pairs = value if name == "paddingAmounts" else []
    if name == "pads":
        half = len(value) // 2
        pairs = [(value[place], value[place + half]) for place in range(half)]
    message.valid.SetInParent()
    del message.valid.paddingAmounts.borderAmounts[:]
    for before, after in pairs:
        edge = message.valid.paddingAmounts.borderAmounts.add()
        edge.startEdgeSize, edge.endEdgeSize = int(before), int(after)


# -- layers -----------------------------------------------------------------------------------------------------------


def _activation(kind: str, **names: float) -> Callable[[Any, Mapping[str, Any]], None]:
    def fill(layer: Any, attributes: Mapping[str, Any]) -> None:
        message = getattr(layer.activation, kind)
        message.SetInParent()
        for name, usual in names.items():
            setattr(message, name, float(attributes.get(name, usual)))

    return fill


def _plain(kind: str) -> Callable[[Any, Mapping[str, Any]], None]:
    return lambda layer, attributes: getattr(layer, kind).SetInParent()


def _gelu(layer: Any, attributes: Mapping[str, Any]) -> None:
    layer.gelu.mode = layer.gelu.GeluMode.Value("EXACT" if attributes.get("approximate", "none") == "none" else "TANH_APPROXIMATION")  # fmt: skip


def _clip(layer: Any, attributes: Mapping[str, Any]) -> None:
    low, high = attributes.get("min"), attributes.get("max")
    layer.clip.minVal = -3.4e38 if low is None else float(low)
    layer.clip.maxVal = 3.4e38 if high is None else float(high)


def _transpose(layer: Any, attributes: Mapping[str, Any]) -> None:
    layer.transpose.axes.extend(int(axis) for axis in attributes["perm"])


def _softmax(layer: Any, attributes: Mapping[str, Any]) -> None:
    layer.softmaxND.axis = int(attributes.get("axis", -1))


def _reduce(kind: str) -> Callable[[Any, Mapping[str, Any]], None]:
    def fill(layer: Any, attributes: Mapping[str, Any]) -> None:
        message = getattr(layer, kind)
        message.axes.extend(int(axis) for axis in attributes.get("axes") or ())
        message.reduceAll = not attributes.get("axes")
        message.keepDims = bool(attributes.get("keepdims", 1))

    return fill


MAKERS: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "Add": _plain("addBroadcastable"),
    "Clip": _clip,
    "Div": _plain("divideBroadcastable"),
    "Elu": _activation("ELU", alpha=1.0),
    "Erf": _plain("erf"),
    "Gelu": _gelu,
    "HardSigmoid": _activation("sigmoidHard", alpha=0.2, beta=0.5),
    "Identity": _activation("linear", alpha=1.0, beta=0.0),
    "LeakyRelu": _activation("leakyReLU", alpha=0.01),
    "Max": _plain("maxBroadcastable"),
    "Min": _plain("minBroadcastable"),
    "Mul": _plain("multiplyBroadcastable"),
    "Pow": _plain("powBroadcastable"),
    "ReduceMax": _reduce("reduceMax"),
    "ReduceMean": _reduce("reduceMean"),
    "ReduceSum": _reduce("reduceSum"),
    "Relu": _activation("ReLU"),
    "Sigmoid": _activation("sigmoid"),
    "Softmax": _softmax,
    "Softplus": _activation("softplus"),
    "Softsign": _activation("softsign"),
    "Sub": _plain("subtractBroadcastable"),
    "Tanh": _activation("tanh"),
    "Transpose": _transpose,
}
"""ONNX operator -> what makes a layer of it."""


def _emit(net: Network, operator: str, inputs: Sequence[Any], attributes: Mapping[str, Any], output: str, behind: Any) -> Any:  # fmt: skip
    """A new layer; arrays among its inputs become constants in front of it. Returns the layer."""
    if operator not in MAKERS:
        raise Unsupported(f"ONNX's {operator} cannot be written as a layer of a neural network here")
    names = []
    for one in inputs:
        if isinstance(one, np.ndarray):
            stored = net.add(f"{output}_constant", [], net.fresh(f"{output}_constant"), behind)
            stored.loadConstantND.shape.extend(one.shape or (1,))
            stored.loadConstantND.data.floatValue.extend(np.asarray(one, np.float32).reshape(-1))
            names.append(stored.output[0])
            behind = stored
        else:
            names.append(one)
    layer = net.add(output, names, output, behind)
    MAKERS[operator](layer, attributes)
    return layer


def _set_operator(net: Network, edit: EditDict) -> None:
    node = net.layer(edit["node"])
    data = [name for name in node.input if not _constant(net, name)]
    data += [net.array(key) for key in edit.get("constants") or ()]
    made = _emit(net, edit["operator"], data, edit.get("attributes") or {}, node.output[0], node)
    net.layers = [layer for layer in net.layers if layer is not node]
    made.name = node.name


def _constant(net: Network, name: str) -> bool:
    made = net.producer(name)
    return made is not None and made.WhichOneof("layer") in ("loadConstant", "loadConstantND")


def _remove(net: Network, edit: EditDict) -> None:
    node = net.layer(edit["node"])
    data = [name for name in node.input if not _constant(net, name)]
    slot = edit.get("slot")
    if not data or (slot is not None and not 0 <= slot < len(node.input)):
        raise Unsupported(f"'{edit['node']}' has no operand that could take its place")
    before = data[0] if slot is None else node.input[slot]
    if node.output[0] in net.outputs:
        _set_operator(net, {**edit, "operator": "Identity", "attributes": {}, "constants": []})
        net.layer(edit["node"]).input[:] = [before]
        return
    for layer in net.layers:
        layer.input[:] = [before if name == node.output[0] else name for name in layer.input]
    net.layers = [layer for layer in net.layers if layer is not node]
    net.moved = True


def _splice(net: Network, value: str, readers: Sequence[str] | None, make: Callable[[str, str, Any], None]) -> None:
    """Put layers between a value and its readers ("" is the model's output; None: all)."""
    if not net.exists(value):
        raise Unsupported(f"the network has no value '{value}'")
    producer, at_end = net.producer(value), value in net.outputs
    chosen = [layer for layer in net.layers if value in layer.input and (readers is None or layer.name in readers)]
    if readers is not None and (
        len(chosen) < len([name for name in readers if name]) or ("" in readers and not at_end)
    ):
        raise Unsupported(f"not all of {list(readers)} read the value '{value}'")
    takes_name = producer is not None and (readers is None or "" in readers)
    raw, out = (net.fresh(f"{value}_before"), value) if takes_name else (value, net.fresh(f"{value}_edited"))
    for layer in net.layers:
        picked = any(layer is one for one in chosen)
        if takes_name and not picked:
            layer.input[:] = [raw if name == value else name for name in layer.input]
        elif picked and not takes_name:
            layer.input[:] = [out if name == value else name for name in layer.input]
    if takes_name and producer is not None:
        producer.output[:] = [raw if name == value else name for name in producer.output]
    make(raw, out, producer)


def _insert(net: Network, edit: EditDict) -> None:
    value, steps = edit["value"], edit["steps"]

    def make(raw: str, out: str, behind: Any) -> None:
        current = raw
        for place, step in enumerate(steps):
            given: list[Any] = [net.array(key) for key in step.get("constants") or ()]
            given += [raw if other == value else other for other in step.get("others") or ()]
            given.insert(int(step.get("slot") or 0), current)
            current = out if place == len(steps) - 1 else net.fresh(f"{out}_{place}")
            behind = _emit(net, step["operator"], given, step.get("attributes") or {}, current, behind)

    if not steps:
        raise Unsupported("an insertion needs at least one step")
    _splice(net, value, edit.get("readers"), make)


def _recompute(net: Network, edit: EditDict) -> None:
    value, nodes = edit["value"], edit["nodes"]
    if not nodes:
        raise Unsupported(f"nothing is given to compute '{value}' from")

    def make(raw: str, out: str, behind: Any) -> None:
        known: dict[str, str] = {value: raw}
        for place, node in enumerate(nodes):
            given = [net.array(name) if name in net.arrays and name not in known else known.get(name, name) for name in node["inputs"]]  # fmt: skip
            result = out if place == len(nodes) - 1 else net.fresh(f"{out}_{place}")
            places = [number for number, layer in enumerate(net.layers) if layer is behind]
            makers = [net.producer(name) for name in given if isinstance(name, str)]
            later = [number for number, layer in enumerate(net.layers) if any(layer is one for one in makers)]
            last = max([*places, *later], default=-1)
            behind = _emit(net, node["op"], given, node.get("attributes") or {}, result, net.layers[last] if last >= 0 else None)  # fmt: skip
            known.update(zip(node["outputs"], [result]))

    _splice(net, value, None, make)
    _prune(net)


def _prune(net: Network) -> None:
    """Drop layers that nothing reads any more."""
    while True:
        read = {name for layer in net.layers for name in layer.input} | set(net.outputs)
        kept = [layer for layer in net.layers if layer.WhichOneof("layer") in ("branch", "loop", "copy") or read.intersection(layer.output)]  # fmt: skip
        if len(kept) == len(net.layers):
            return
        net.layers = kept


def _reorder(net: Network, edit: EditDict) -> None:
    node, order = net.layer(edit["node"]), [int(slot) for slot in edit["order"]]
    names = list(node.input)
    if sorted(order) != list(range(len(names))):
        raise Unsupported(f"'{edit['node']}' has {len(names)} operands, and {order} is no order of them")
    node.input[:] = [names[slot] for slot in order]


def _set_input(net: Network, edit: EditDict) -> None:
    node, slot = net.layer(edit["node"]), int(edit["slot"])
    if not net.exists(edit["value"]) or not 0 <= slot < len(node.input):
        raise Unsupported(f"'{edit['node']}' has no operand number {slot}, or the network no value '{edit['value']}'")
    node.input[slot] = edit["value"]
    net.moved = True


KINDS: dict[str, Callable[[Network, EditDict], None]] = {
    "set-parameter": _set_parameter,
    "add-parameter": _add_parameter,
    "set-attribute": _set_attribute,
    "set-operator": _set_operator,
    "remove-node": _remove,
    "insert": _insert,
    "recompute": _recompute,
    "reorder-inputs": _reorder,
    "set-input": _set_input,
}
"""Kind of edit -> the function that writes it; the others are written into ML programs only."""


def apply(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str) -> dict[str, Any]:
    """Write a copy of the network with the edits applied. Returns {"notes": [...]}. Raises Unsupported with the reason."""
    net = Network(path, arrays)
    for edit in edits:
        kind = edit.get("kind", "")
        if kind not in KINDS:
            raise Unsupported(f"'{kind}' is not written into a neural network; convert the model to an ML program")
        try:
            KINDS[kind](net, edit)
        except KeyError as error:
            raise Unsupported(f"the edit '{kind}' lacks its entry {error}") from None
    net.save(out)
    return {"notes": []}
