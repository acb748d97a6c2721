"""Turns the layers of a Core ML neural network into operations: one for each layer, its fields as attributes under the proto's names.

Inside the network a name may be written twice (a copy in a loop); here every write outside nested networks gets a name of
its own, the last one the plain name. Branches and loops are single operations that hold their networks as blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from trueport.frameworks._base import BadModel
from trueport.frameworks._coreml_nn_weights import constant, is_set
from trueport.frameworks._coreml_program import Block, Constant, Operation, Type

PREFIX = "nn."
NESTED = {"branch": ("ifBranch", "elseBranch"), "loop": ("conditionNetwork", "bodyNetwork")}
"""Layers that hold networks -> the fields that hold them, in the order of the operation's blocks."""

_RECURRENT = {"cellClipThreshold": 50.0}
DEFAULTS: dict[str, dict[str, Any]] = {
    "convolution": {"kernelSize": [3, 3], "stride": [1, 1], "dilationFactor": [1, 1], "nGroups": 1},
    "convolution3d": {"nGroups": 1},
    "pooling": {"kernelSize": [3, 3], "stride": [1, 1]},
    "batchnorm": {"epsilon": 1e-5},
    "mvn": {"epsilon": 1e-6},
    "l2normalize": {"epsilon": 1e-6},
    "lrn": {"k": 1.0},
    "unary": {"epsilon": 1e-6, "scale": 1.0},
    "reduce": {"epsilon": 1e-6},
    "resizeBilinear": {"targetSize": [1, 1]},
    "cropResize": {"targetSize": [1, 1]},
    "sequenceRepeat": {"nRepetitions": 1},
    "permute": {"axis": [0, 1, 2, 3]},
    "uniDirectionalLSTM": _RECURRENT,
    "biDirectionalLSTM": _RECURRENT,
}
"""What a field means that is absent, empty or 0, where the format says that it means something else."""
_SWITCHES = {
    "hasBias": ("bias",),
    "hasBiasVector": ("biasVector",),
    "hasBiasVectors": ("BiasVector",),
    "hasPeepholeVectors": ("PeepholeVector",),
}
"""A flag that is off -> endings of the weights that do not count then."""


class Reader:
    """Collects operations and constants of one network, and knows which value a name stands for at each place.

    inputs: name in the network -> value that it stands for at the start; outputs: names that are read at the end.
    """

    def __init__(self, layers: Iterable[Any], inputs: Mapping[str, str], outputs: Iterable[str]) -> None:
        self.operations: list[Operation] = []
        self.constants: dict[str, Constant] = {}
        self.current = dict(inputs)
        self.layers = list(layers)
        self.outputs = list(outputs)
        self._labels: Counter[str] = Counter()
        self._writes = Counter(name for layer in self.layers for name in dict.fromkeys(written(layer)))
        self._writes.update(list(inputs))
        self._version: Counter[str] = Counter(list(inputs))

    def read(self) -> None:
        """Turn every layer into an operation. Raises BadModel when a layer is empty or reads what nothing has written."""
        for index, layer in enumerate(self.layers):
            kind = kind_of(layer)
            if kind in NESTED:
                later = {name for rest in self.layers[index + 1 :] for name in reads(rest)} | set(self.outputs)
                self._nest(layer, kind, later)
            elif kind in ("loadConstant", "loadConstantND"):
                self._load(layer, kind)
            else:
                inputs = [self._known(layer, name) for name in layer.input]
                self.operations.append(self._operation(layer, kind, inputs, [self._fresh(n) for n in layer.output]))

    def _known(self, layer: Any, name: str) -> str:
        if name not in self.current:
            raise BadModel(f"the layer '{layer.name}' reads '{name}', which nothing before it writes")
        return self.current[name]

    def _fresh(self, name: str) -> str:
        """A name for what is written to `name` now: the plain one for the last write."""
        self._version[name] += 1
        last = self._version[name] == self._writes[name]
        given = name if last and name not in self.constants else f"{name}#{self._version[name] - 1}"
        self.current[name] = given
        return given

    def _label(self, layer: Any, kind: str) -> str:
        """A name for the operation that no other one has."""
        name = str(layer.name) or kind
        self._labels[name] += 1
        return name if self._labels[name] == 1 else f"{name}#{self._labels[name] - 1}"

    def _load(self, layer: Any, kind: str) -> None:
        """A layer that only gives a stored value is a constant under the name of that value."""
        attributes, weights = fields(getattr(layer, kind), kind)
        if "data" not in weights:
            raise BadModel(f"the layer '{layer.name}' holds no values")
        name = self._fresh(layer.output[0])
        self.constants[name] = constant(name, kind, "data", attributes, weights["data"])

    def _operation(self, layer: Any, kind: str, inputs: list[str], outputs: list[str]) -> Operation:
        label = self._label(layer, kind)
        attributes, weights = fields(getattr(layer, kind), kind)
        arguments = {"x": inputs} if inputs else {}
        for field, weight in weights.items():
            stored = f"{label}.{field}"
            self.constants[stored] = constant(stored, kind, field, attributes, weight)
            arguments[field] = [stored]
        return Operation(label, PREFIX + kind, arguments, outputs, _types(layer), attributes)

    # -- nested networks

    def _nest(self, layer: Any, kind: str, later: set[str]) -> None:
        """A branch or a loop: it reads what its networks take from outside and writes what is read after it."""
        inside = dict(self.current)
        made = list(dict.fromkeys(written(layer)))
        shown = [name for name in made if name in later]
        before = [self.current[name] for name in made if name in self.current]
        operation = self._nested(layer, kind, inside)
        operation.inputs["before"] = [name for name in before if name not in operation.inputs.get("x", [])]
        operation.attributes["results"] = [inside[name] for name in shown]
        for name in made:
            if name not in shown:  # nobody reads it: no value of the program
                self._version[name] += 1
        operation.outputs = [self._fresh(name) for name in shown]
        operation.types = [Type() for _ in shown]
        self.operations.append(operation)

    def _nested(self, layer: Any, kind: str, inside: dict[str, str]) -> Operation:
        """An operation with its blocks, in which a name stands for one changing value throughout (`inside`)."""
        label = self._label(layer, kind)
        message = getattr(layer, kind)
        attributes, _ = fields(message, kind)
        blocks = []
        for field in NESTED[kind]:
            network = getattr(message, field)
            operations = [self._inner(inner, inside, label) for inner in network.layers] if network.layers else []
            blocks.append(Block([], [], operations))
        if "conditionVar" in attributes:
            attributes["conditionVar"] = inside.get(attributes["conditionVar"], attributes["conditionVar"])
        arguments = {"x": [inside.get(name, name) for name in layer.input]} if layer.input else {}
        results = list(dict.fromkeys(inside.get(name, name) for name in written(layer)))
        return Operation(label, PREFIX + kind, arguments, results, [Type() for _ in results], attributes, blocks)

    def _inner(self, layer: Any, inside: dict[str, str], label: str) -> Operation:
        kind = kind_of(layer)
        for name in written(layer):
            inside.setdefault(name, f"{label}/{name}")
        if kind in NESTED:
            return self._nested(layer, kind, inside)
        inputs = [inside.get(name, name) for name in layer.input]
        return self._operation(layer, kind, inputs, [inside[name] for name in layer.output])


def kind_of(layer: Any) -> str:
    """Which layer it is, as the format calls it. Raises BadModel when it is none that this version of the format has."""
    kind = layer.WhichOneof("layer")
    if kind is None:
        raise BadModel(f"the layer '{layer.name}' is of no kind that coremltools knows")
    return str(kind)


def _networks(layer: Any) -> Iterator[Any]:
    kind = layer.WhichOneof("layer")
    for field in NESTED.get(kind, ()):
        yield getattr(getattr(layer, kind), field)


def written(layer: Any) -> Iterator[str]:
    """Names that a layer writes, those of its nested networks included."""
    yield from layer.output
    for network in _networks(layer):
        for inner in network.layers:
            yield from written(inner)


def reads(layer: Any) -> Iterator[str]:
    """Names that a layer reads, those of its nested networks included."""
    yield from layer.input
    for network in _networks(layer):
        for inner in network.layers:
            yield from reads(inner)


def _types(layer: Any) -> list[Type]:
    """Everything inside a network is a float; the shapes are there where the converter wrote them."""
    shapes: list[Any] = [tuple(int(size) if size > 0 else None for size in t.dimValue) for t in layer.outputTensor]
    if len(shapes) != len(layer.output):
        shapes = [None] * len(layer.output)
    return [Type("float32", shape or None) for shape in shapes]


# -- fields of a message


def fields(message: Any, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (attributes, weights) of a layer: every field by its name, those of inner messages beside its own.

    A choice between messages is an attribute under its own name ("ConvolutionPaddingType": "valid").
    """
    attributes: dict[str, Any] = {}
    weights: dict[str, Any] = {}
    _collect(message, attributes, weights, "")
    for name, value in DEFAULTS.get(kind, {}).items():
        if not attributes.get(name):
            attributes[name] = list(value) if isinstance(value, list) else value
    if kind == "upsample" and not attributes["scalingFactor"] and not attributes["fractionalScalingFactor"]:
        attributes["scalingFactor"] = [1, 1]
    for flag, endings in _SWITCHES.items():
        if attributes.get(flag) is False:
            weights = {name: weight for name, weight in weights.items() if not name.endswith(endings)}
    return attributes, weights


def _collect(message: Any, attributes: dict[str, Any], weights: dict[str, Any], prefix: str) -> None:
    for oneof in message.DESCRIPTOR.oneofs:
        attributes[oneof.name] = message.WhichOneof(oneof.name) or ""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None:
            attributes[field.name] = _plain(field, value)
        elif field.message_type.name == "WeightParams" and not _repeated(field):
            if is_set(value):
                weights[prefix + field.name] = value
        elif field.message_type.name == "BorderAmounts":
            amounts = [[int(edge.startEdgeSize), int(edge.endEdgeSize)] for edge in value.borderAmounts]
            attributes[field.name] = amounts or [[0, 0], [0, 0]]
        elif field.message_type.name == "LSTMWeightParams" and _repeated(field):
            for direction, inner in zip(("forward.", "backward."), value):
                _collect(inner, attributes, weights, direction)
        elif field.message_type.name == "ActivationParams" and _repeated(field):
            attributes[field.name] = [_activation(inner) for inner in value]
        elif field.message_type.name == "ActivationParams":
            attributes[field.name] = _activation(value)
        elif _is_part(message, field):
            _collect(value, attributes, weights, prefix)


def _is_part(message: Any, field: Any) -> bool:
    """Whether an inner message holds fields of the layer: one that is chosen, or that is no choice; networks are blocks."""
    if _repeated(field) or field.message_type.name == "NeuralNetwork":
        return False
    return field.containing_oneof is None or bool(message.HasField(field.name))


def _repeated(field: Any) -> bool:
    """Whether a field is a list; newer protobuf libraries no longer have the label."""
    known = getattr(field, "is_repeated", None)
    return bool(field.label == field.LABEL_REPEATED) if known is None else bool(known)


def _plain(field: Any, value: Any) -> Any:
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    if _repeated(field):
        return [bool(item) if isinstance(item, bool) else item for item in value]
    return value


def _activation(message: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    _collect(message, attributes, {}, "")
    return attributes
