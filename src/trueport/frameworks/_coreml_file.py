"""Decides what a Core ML file is, and opens it: its program, its kernels, and what it says of its inputs and outputs.

An image input is an array [1, channels, height, width] of values 0 to 255, the channels in the order that the model asks
for. A classifier gives its probabilities under the name of its dictionary, in the order of its classes; the label, which
is the class of the largest, is no output here. A size that the model leaves open is None.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueport.frameworks import _coreml_nn, _coreml_read
from trueport.frameworks._base import Dim, SpecDict, Unsupported
from trueport.frameworks._coreml_program import FLOATS, Program, Type

PROGRAM = "mlProgram"
_CARRY = ("cast", "identity", "reshape", "squeeze", "expand_dims", "transpose", "select", "concat", "slice_by_index")
"""Operators that hand on the integers that they read."""


@dataclass(frozen=True)
class Opened:
    """A model as it is run. `specs`: what `signature` says of inputs and outputs; `choices`: input -> the shapes it takes."""

    path: str
    program: Program
    kernels: Mapping[str, Callable[[Any], Any]] = field(repr=False)
    inputs: list[SpecDict]
    outputs: list[SpecDict]
    choices: Mapping[str, list[tuple[int, ...]]]
    ranges: Mapping[str, list[tuple[int, int]]]
    meta: dict[str, Any]


def opened(path: str) -> Opened:
    """Open a model, once per version of its files. Raises BadModel, Unsupported."""
    return _opened(path, _coreml_read.stamp(path))


@functools.lru_cache(maxsize=2)
def _opened(path: str, changed: int) -> Opened:
    spec = _coreml_read.read_spec(path)
    kind = spec.WhichOneof("Type")
    program, kernels = _program(spec, path, kind)
    described = {item.name: item for item in spec.description.input}
    inputs = [_input(described.get(name), name, declared) for name, declared in program.inputs.items()]
    for item in inputs:
        if item["dtype"].startswith(("int", "uint")):
            sizes = list(_tables(program, item["name"]))
            if sizes:
                item["minimum"], item["maximum"] = 0, min(sizes) - 1
    outputs: list[SpecDict] = [
        {"name": name, "dtype": declared.dtype, "shape": None if declared.shape is None else list(declared.shape)}
        for name, declared in program.outputs.items()
    ]
    choices, ranges = _flexible(described)
    return Opened(path, program, kernels, inputs, outputs, choices, ranges, _meta(spec, program, kind, choices, ranges))


def _program(spec: Any, path: str, kind: str) -> tuple[Program, Mapping[str, Any]]:
    if kind == PROGRAM:
        from trueport.frameworks._mil_kernels import KERNELS

        return _coreml_read.read_program(spec, path), KERNELS
    if kind in _coreml_nn.NETWORKS:
        return _coreml_nn.read(spec), _coreml_nn.KERNELS
    raise Unsupported(
        f"a Core ML model of type '{kind}' is not run; only ML programs and neural networks are "
        "(of a pipeline, save its models one by one)"
    )


# -- inputs


def _input(feature: Any, name: str, declared: Type) -> SpecDict:
    shape = declared.shape
    dtype = declared.dtype
    kind = None if feature is None else feature.type.WhichOneof("Type")
    if kind == "multiArrayType":
        shape = _coreml_nn.array_shape(feature.type.multiArrayType) or shape
        dtype = _coreml_nn.array_dtype(feature.type.multiArrayType)
    elif kind == "imageType" and shape is not None and len(shape) == 4:
        height, width = _coreml_nn.image_sizes(feature.type.imageType)
        shape = (shape[0], shape[1], height, width)
    return {"name": name, "dtype": dtype, "shape": None if shape is None else list(shape)}


def _flexible(
    described: Mapping[str, Any],
) -> tuple[dict[str, list[tuple[int, ...]]], dict[str, list[tuple[int, int]]]]:
    """The shapes that inputs enumerate, and the bounds (lowest, highest or −1) of those that give ranges."""
    choices: dict[str, list[tuple[int, ...]]] = {}
    ranges: dict[str, list[tuple[int, int]]] = {}
    for name, feature in described.items():
        if feature.type.WhichOneof("Type") != "multiArrayType":
            continue
        array = feature.type.multiArrayType
        flexible = array.WhichOneof("ShapeFlexibility")
        if flexible == "enumeratedShapes":
            choices[name] = [tuple(int(size) for size in item.shape) for item in array.enumeratedShapes.shapes]
        elif flexible == "shapeRange":
            ranges[name] = [(int(item.lowerBound), int(item.upperBound)) for item in array.shapeRange.sizeRanges]
    return choices, ranges


def check_shape(one: Opened, name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError, with what is taken, when a model does not take an input of this shape."""
    spec = next(item for item in one.inputs if item["name"] == name)
    wanted: list[Dim] | None = spec["shape"]
    if name in one.choices and shape not in one.choices[name]:
        allowed = ", ".join(_shown(item) for item in one.choices[name])
        raise ValueError(f"input '{name}' takes the shapes {allowed}, and {_shown(shape)} was given")
    fits = wanted is None or (
        len(wanted) == len(shape) and all(size is None or size == given for size, given in zip(wanted, shape))
    )
    if not fits:
        raise ValueError(f"input '{name}' takes {_shown(wanted or ())}, and {_shown(shape)} was given")
    for (low, high), size in zip(one.ranges.get(name, ()), shape):
        if size < low or (high >= 0 and size > high):
            bounds = f"{low} to {high}" if high >= 0 else f"at least {low}"
            raise ValueError(f"input '{name}' takes sizes {bounds} where {size} was given")


def _shown(shape: Any) -> str:
    return "×".join("?" if size is None else str(size) for size in shape) or "a scalar"


def _tables(program: Program, name: str) -> Iterator[int]:
    """Sizes of the constant tables in which integers of this value look up."""
    for operation in program.block.operations:
        if operation.kind == "gather" and operation.inputs.get("indices") == [name]:
            table = program.constants.get(operation.inputs["x"][0])
            if table is not None and table.shape:
                stored = program.constants.get(operation.inputs.get("axis", [""])[0])
                axis = int(np.asarray(stored.load()).reshape(-1)[0]) if stored is not None else 0
                yield table.shape[axis]
        elif operation.kind in _CARRY and any(name in bound for bound in operation.inputs.values()):
            for output in operation.outputs:
                yield from _tables(program, output)


# -- what the file says about itself


def _meta(
    spec: Any, program: Program, kind: str, choices: Mapping[str, Any], ranges: Mapping[str, Any]
) -> dict[str, Any]:
    weights: Counter[str] = Counter()
    for name, stored in program.constants.items():
        if stored.dtype in FLOATS and not _part_of_compressed(program, name):
            weights[stored.dtype] += int(np.prod(stored.shape, dtype=np.int64))
    own = {key: str(value) for key, value in spec.description.metadata.userDefined.items()}
    meta: dict[str, Any] = {
        "producer": f"coremltools {own.get('com.github.apple.coremltools.version', '')}".strip(),
        "source": own.get("com.github.apple.coremltools.source", ""),
        "model_type": kind,
        "spec_version": int(spec.specificationVersion),
        "operators": dict(Counter(item.kind for item in program.block.all_operations()).most_common()),
        "parameters": sum(weights.values()),
        "weights": dict(weights),
        **{key: value for key, value in program.meta.items() if key not in ("compressed", "layers")},
        "precision": declared_precision(program),
        "state": [
            {"name": name, "dtype": item.dtype, "shape": list(item.shape or ())}
            for name, item in program.states.items()
        ],
        "images": program.meta.get("images") or _images(spec),
    }
    if program.meta.get("layers"):
        meta["operators"] = program.meta["layers"]
    if choices:
        meta["shapes"] = {name: [list(shape) for shape in shapes] for name, shapes in choices.items()}
    if ranges:
        meta["ranges"] = {name: [list(pair) for pair in pairs] for name, pairs in ranges.items()}
    stored_as = Counter(program.meta.get("compressed", {}).values())
    if stored_as:
        meta["compressed"] = dict(stored_as.most_common())
    return meta


def _part_of_compressed(program: Program, name: str) -> bool:
    """Whether a constant only says how another one is compressed (a scale, a table, what is not zero)."""
    compressed = program.meta.get("compressed", {})
    return name.rpartition(".")[0] in compressed or (name in compressed and compressed[name].startswith("sparse "))


def _images(spec: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for item in spec.description.input:
        if item.type.WhichOneof("Type") == "imageType":
            image = item.type.imageType
            colours = image.DESCRIPTOR.enum_types_by_name["ColorSpace"].values_by_number[image.colorSpace].name
            found[item.name] = {"colors": colours, "height": int(image.height), "width": int(image.width)}
    return found


def declared_precision(program: Program) -> str:
    """Name the precision that a model shows: int8 where activations lie on a grid, int8-dynamic where most weights are stored
    on one of at most 8 bits, else the float type that most of what it computes, or most of its weights, has."""
    kinds = Counter(item.kind for item in program.block.all_operations())
    if kinds["quantize"]:
        return "int8"
    sizes: Counter[str] = Counter()
    compressed = program.meta.get("compressed", {})
    for name, stored in program.constants.items():
        if _part_of_compressed(program, name):
            continue
        count = int(np.prod(stored.shape, dtype=np.int64))
        if name in compressed and compressed[name] not in ("sparse", "float16"):
            sizes["int8-dynamic"] += count
        elif stored.dtype in FLOATS:
            sizes[stored.dtype] += count
        elif name.endswith("#quantized"):
            sizes["int8-dynamic"] += count
    if sizes and sizes.most_common(1)[0][0] == "int8-dynamic":
        return "int8-dynamic"
    computed = Counter(
        declared.dtype
        for operation in program.block.operations
        for declared in operation.types
        if declared.dtype in FLOATS and operation.kind != "cast"
    )
    if computed["float16"] > sum(computed.values()) / 2 or (sizes and sizes.most_common(1)[0][0] == "float16"):
        return "float16"
    return "float32"


def require(one: Opened, names: Any) -> None:
    """Raise ValueError, naming the first, when the program has no such value."""
    known = one.program.types()
    for name in names:
        if name not in known:
            raise ValueError(f"{one.path.rsplit('/', 1)[-1]} has no value '{name}'")
