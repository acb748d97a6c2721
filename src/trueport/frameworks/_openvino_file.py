"""Reads OpenVINO IR (`.xml` with `.bin` beside it): nodes, the names of their values, constants. Runs in a worker.

A value goes by the name of the input or output that it is, else by the layer that computes it (with `:PORT` where the
layer gives several); a name that is repeated gets `#NUMBER`. A constant that is only widened for the computation (float16
weights) is the constant itself: the `Convert` behind it is left out.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueport.frameworks._base import BadModel, Dim, Unsupported

DTYPES = {
    "boolean": "bool",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
}
"""OpenVINO's name of an element type -> NumPy's. What is not here (text, bfloat16, packed integers) has no array."""
ELEMENTS = {name: element for element, name in DTYPES.items()}
ENDS = ("Result", "Assign", "ReadValue", "Parameter", "Constant")
GROUPED = ("GroupConvolution", "GroupConvolutionBackpropData")


class Value(NamedTuple):
    """One output port of a layer."""

    name: str
    dtype: str
    """NumPy's name, or OpenVINO's where NumPy has none."""
    output: Any


class Opened:
    """A model that was read, with names for all that is in it. `nodes`: OpenVINO's, in execution order."""

    def __init__(self, model: Any, path: str) -> None:
        self.model, self.path = model, path
        ordered = list(model.get_ordered_ops())
        self.inputs = [parameter.output(0) for parameter in model.get_parameters()]
        self.results = [output.get_node().input_value(0) for output in model.outputs]
        self.widened = {key(node): node.input_value(0).get_node() for node in ordered if _widens(node, self.results)}
        self.hidden = frozenset(self.widened)
        self.nodes = [node for node in ordered if node.get_type_name() != "Result" and key(node) not in self.hidden]
        self.constants: dict[str, Any] = {}
        """Name -> Constant node."""
        self.names: dict[tuple[str, int], str] = {}
        """(node, port) -> name of the value."""
        self.input_names = _input_names(model)
        self.output_names = _output_names(model, self.results)
        self._name_values()
        self.node_names = _unique(node.get_friendly_name() for node in self.computing)
        """Names of `computing`, in order."""

    @property
    def computing(self) -> list[Any]:
        """The layers that compute something."""
        return [node for node in self.nodes if node.get_type_name() not in ("Parameter", "Constant")]

    def _name_values(self) -> None:
        taken: set[str] = set()

        def put(output: Any, name: str) -> None:
            place = (key(output.get_node()), output.get_index())
            if place not in self.names:
                self.names[place] = fresh(name, taken)
                taken.add(self.names[place])

        for output, name in zip(self.inputs, self.input_names):
            put(output, name)
        for output, name in zip(self.results, self.output_names):
            put(output, name)
        for node in self.nodes:
            several = node.get_output_size() > 1
            for output in node.outputs():
                put(output, node.get_friendly_name() + (f":{output.get_index()}" if several else ""))
            if node.get_type_name() == "Constant":
                self.constants[self.names[key(node), 0]] = node

    def name(self, output: Any) -> str:
        """The name of the value that an output port gives; of the constant behind a widening."""
        node = self.widened.get(key(output.get_node()))
        return self.names[key(node), 0] if node is not None else self.names[key(output.get_node()), output.get_index()]

    @functools.cached_property
    def values(self) -> dict[str, Value]:
        """Every value that a layer computes and that can be shown, in execution order."""
        found = {}
        for node in self.computing:
            for output in node.outputs():
                dtype = dtype_of(output)
                if dtype in ELEMENTS and not _idle(node, output):
                    found[self.name(output)] = Value(self.name(output), dtype, output)
        return found


def key(node: Any) -> str:
    """What tells a layer from all others of its model: OpenVINO numbers them."""
    return str(node.get_name())


def fresh(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken."""
    if name not in taken:
        return name
    number = 1
    while f"{name}#{number}" in taken:
        number += 1
    return f"{name}#{number}"


def _unique(names: Any) -> list[str]:
    found: list[str] = []
    taken: set[str] = set()
    for name in names:
        found.append(fresh(name, taken))
        taken.add(found[-1])
    return found


def _idle(node: Any, output: Any) -> bool:
    """Whether nobody reads a further result of a layer: kernels may leave it unwritten."""
    return bool(node.get_output_size() > 1 and not output.get_target_inputs())


def _widens(node: Any, results: Any) -> bool:
    """Whether a layer only turns a stored float16 into the type of the computation."""
    if node.get_type_name() != "Convert" or node.input_value(0).get_node().get_type_name() != "Constant":
        return False
    given_out = any(key(output.get_node()) == key(node) for output in results)
    return not given_out and node.get_input_element_type(0).get_type_name() in ("f16", "bf16")


def _input_names(model: Any) -> list[str]:
    return _unique(_any_name(item) or item.get_node().get_friendly_name() for item in model.inputs)


def _output_names(model: Any, results: Any) -> list[str]:
    """Names of the outputs: of their tensors, else of the layers that compute them."""
    found = []
    for output, source in zip(model.outputs, results):
        layer = source.get_node().get_friendly_name()
        several = source.get_node().get_output_size() > 1
        found.append(_any_name(output) or layer + (f":{source.get_index()}" if several else ""))
    return _unique(found)


def _any_name(output: Any) -> str:
    names = sorted(output.get_names())
    return str(names[0]) if names else ""


def dtype_of(output: Any) -> str:
    """NumPy's name of a port's element type; OpenVINO's own where NumPy has none."""
    name = str(output.get_element_type().get_type_name())
    return DTYPES.get(name, name)


def shape_of(output: Any) -> list[Dim] | None:
    """The shape of a port: None for a rank, and for a size, that the file leaves open."""
    shape = output.get_partial_shape()
    if shape.rank.is_dynamic:
        return None
    return [size.get_length() if size.is_static else None for size in shape]


def array_of(node: Any) -> np.ndarray:
    """The elements of a Constant; bfloat16 as float32. Raises Unsupported for what NumPy has no type for."""
    element = node.get_element_type().get_type_name()
    if element == "bf16":
        return np.array(node.get_data(dtype=np.float32))
    if element not in DTYPES:
        raise Unsupported(f"constants of type {element} cannot be read")
    return np.array(node.get_data())


# -- grouped kernels are shown as ONNX has them: [groups * out, in, *spatial] ---------------------------------------------------


def is_grouped(node: Any) -> bool:
    """Whether a constant is the kernel of grouped convolutions, [groups, out, in, *spatial], and nothing else."""
    readers = [reader for output in node.outputs() for reader in output.get_target_inputs()]
    users = []
    for reader in readers:
        user = reader.get_node()
        if user.get_type_name() == "Convert":
            users += [(item.get_node(), item.get_index()) for item in user.output(0).get_target_inputs()]
        else:
            users.append((user, reader.get_index()))
    return bool(users) and all(user.get_type_name() in GROUPED and slot == 1 for user, slot in users)


def shown_shape(node: Any) -> list[int]:
    """The shape of a constant as `graph` shows it."""
    shape = [int(size) for size in node.get_output_shape(0)]
    return [shape[0] * shape[1], *shape[2:]] if is_grouped(node) else shape


# -- opening ----------------------------------------------------------------------------------------------------------


def opened(path: str) -> Opened:
    """Read a model, or take it from memory when the files have not changed. It is shared: never change it."""
    return _opened(path, _stamp(path))


def _stamp(path: str) -> tuple[int, ...]:
    weights = Path(path).with_suffix(".bin")
    files = [Path(path), *([weights] if weights.is_file() else [])]
    facts = [file.stat() for file in files]
    return tuple(number for fact in facts for number in (fact.st_mtime_ns, fact.st_size))


@functools.lru_cache(maxsize=2)
def _opened(path: str, stamp: tuple[int, ...]) -> Opened:
    return Opened(read(path), path)


@functools.lru_cache(maxsize=1)
def core() -> Any:
    """OpenVINO itself."""
    import openvino

    return openvino.Core()


def read(path: str) -> Any:
    """Read a model that nobody else holds. Raises BadModel with the cure where the file is damaged or lacks its weights."""
    file = Path(path)
    weights = file.with_suffix(".bin")
    text = file.read_bytes()
    try:
        return core().read_model(path)
    except Exception as error:
        said = reason(error)
        needed = _needed_bytes(text)
        if not needed:
            raise BadModel(f"{file.name} is no OpenVINO model that can be read: {said}") from error
        if not weights.is_file():
            raise BadModel(
                f"{file.name} keeps its weights in {weights.name}, which is not there; put it beside it"
            ) from error
        if weights.stat().st_size < needed:
            raise BadModel(
                f"{weights.name} is shorter than {file.name} says; copy both files of the model anew"
            ) from error
        if "Unsupported operation" in str(error) or "Cannot create" in str(error):
            raise Unsupported(f"OpenVINO has no such operator: {said}") from error
        raise BadModel(f"{file.name} is no OpenVINO model that can be read: {said}") from error


def _needed_bytes(text: bytes) -> int:
    """The end of the last constant that the file names; 0 where there is none, or the file is no XML."""
    from xml.etree import ElementTree

    try:
        data = [item.attrib for item in ElementTree.fromstring(text).iter("data")]
    except ElementTree.ParseError:
        return 0
    ends = [int(item["offset"]) + int(item["size"]) for item in data if {"offset", "size"} <= set(item)]
    return max(ends, default=0)


def reason(error: BaseException) -> str:
    """The telling line of OpenVINO's messages, which begin with places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    said = (telling or lines or [type(error).__name__])[-1 if len(telling) < 2 else 0]
    return said[:300]


# -- what a model declares --------------------------------------------------------------------------------------------


def meta_of(one: Opened) -> dict[str, Any]:
    """Producer, precision, operators, number of parameters."""
    operators = Counter(node.get_type_name() for node in one.computing)
    stored = [(node.get_element_type().get_type_name(), size_of(node)) for node in one.constants.values()]
    weights = Counter[str]()
    for element, size in stored:
        if element not in ("i32", "i64", "boolean", "string"):
            weights[DTYPES.get(element, element)] += size
    found: dict[str, Any] = {
        "producer": "OpenVINO",
        "precision": _precision(operators, weights),
        "operators": dict(operators.most_common()),
        "parameters": sum(weights.values()),
        "weights": dict(weights),
        "writes_state": bool(one.model.get_variables()),
    }
    version = _info(one.model, "Runtime_version").partition("-")[0]
    return {**found, "producer_version": version} if version else found


def size_of(node: Any) -> int:
    """Elements of a Constant."""
    return int(np.prod(node.get_output_shape(0), dtype=np.int64))


def _precision(operators: Counter[str], weights: Counter[str]) -> str:
    """float32, float16, float64, int8 (activations on a grid too) or int8-dynamic (weights alone)."""
    if operators.get("FakeQuantize"):
        return "int8"
    floats = {name: size for name, size in weights.items() if "float" in name or name == "bf16"}
    narrow = sum(size for name, size in weights.items() if name not in floats)
    if narrow > sum(floats.values()):
        return "int8-dynamic"
    most = max(floats, key=lambda name: floats[name]) if floats else "float32"
    return {"bf16": "bfloat16"}.get(most, most)


def _info(model: Any, name: str) -> str:
    try:
        return str(model.get_rt_info([name]).astype(str)) if model.has_rt_info([name]) else ""
    except (RuntimeError, TypeError):
        return ""
