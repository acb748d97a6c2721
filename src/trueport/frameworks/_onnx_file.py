"""Reads an ONNX file without running it: its bytes, its graphs, its tensors, and whether its external data may be used.

The protobuf is parsed with external data left on disk, so a model of many gigabytes costs only its structure here.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from trueport.frameworks._base import BadModel

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_FIELDS = {
    1: _VARINT,  # ir_version
    2: _BYTES,  # producer_name
    3: _BYTES,  # producer_version
    4: _BYTES,  # domain
    5: _VARINT,  # model_version
    6: _BYTES,  # doc_string
    7: _BYTES,  # graph
    8: _BYTES,  # opset_import
    14: _BYTES,  # metadata_props
    20: _BYTES,  # training_info
    25: _BYTES,  # functions
    26: _BYTES,  # configuration
}
"""Field number -> wire type of ModelProto, from onnx.proto."""
_TEXT_FIELDS = (2, 3, 4, 6)
_GRAPH_FIELDS = (1, 2, 5, 10, 11, 12, 13, 14, 15, 16)
"""Fields of GraphProto; all are length-delimited."""
_NEWEST_IR = 20
"""Well above every published IR version, and far below what the first bytes of other formats would read as."""


def looks_like_model(head: bytes) -> bool:
    """Tell whether these first bytes of a file are those of a ModelProto.

    Every field seen must be one of ModelProto's and of its wire type, text must be printable, and a plausible
    `ir_version` must come before the bytes end. A Core ML model, also a protobuf with a small integer in front, has a
    message where ONNX has the producer's name, so it fails the test for text.
    """
    position, version = 0, None
    try:
        while position < len(head):
            key, position = _varint(head, position)
            field, wire = key >> 3, key & 7
            if _MODEL_FIELDS.get(field) != wire:
                return False
            if wire == _VARINT:
                value, position = _varint(head, position)
                version = value if field == 1 else version
                continue
            size, position = _varint(head, position)
            body = head[position : position + size]
            if (field in _TEXT_FIELDS and not _is_text(body)) or (field == 7 and not _starts_a_graph(body)):
                return False
            position += size
            if position > len(head) and field not in (6, 7, 14, 20, 25):
                return False
    except IndexError:
        # A number may be cut by the end of the 64 KiB, never by the end of a whole file this short.
        if len(head) < 1024:
            return False
    return version is not None and 1 <= version <= _NEWEST_IR and len(head) > 4


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise IndexError


def _is_text(data: bytes) -> bool:
    text = data.decode("utf-8", "replace")
    return all(character >= " " or character in "\n\r\t" for character in text) and data[:1] not in (b"\n", b"\r")


def _starts_a_graph(data: bytes) -> bool:
    return not data or (data[0] & 7 == _BYTES and data[0] >> 3 in _GRAPH_FIELDS)


def modified(path: str) -> int:
    """Return what changes when the file changes, for use as a cache key."""
    return os.stat(path).st_mtime_ns  # noqa: PTH116 -- one call, and the path is a string everywhere here


def read(path: str) -> Any:
    """Parse a model, external tensors left where they are. Returns a ModelProto that the caller may change.

    Raises BadModel when the file is cut short or damaged, or when its external data is missing or out of bounds.
    """
    model = parsed(path)
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def parsed(path: str) -> Any:
    """Parse a model as `read` does. The ModelProto is shared: the caller must not change it."""
    return _parsed(path, modified(path))


@functools.lru_cache(maxsize=2)
def _parsed(path: str, changed: int) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise BadModel(
            f"{path}: the file is cut short or damaged ({error}); copy or export the ONNX model again"
        ) from None
    if not model.HasField("graph") or not (model.graph.node or model.graph.output):
        raise BadModel(f"{path}: the file holds no ONNX graph; copy or export the model again")
    external_files(model, path)
    return model


def with_data(path: str) -> Any:
    """Parse a model and bring its external tensors into memory."""
    from onnx.external_data_helper import load_external_data_for_model

    model = read(path)
    load_external_data_for_model(model, str(Path(path).parent))
    return model


def graphs(model: Any) -> Iterator[Any]:
    """Yield the main graph and every subgraph inside nodes and functions."""
    yield model.graph
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def nodes(model: Any) -> Iterator[Any]:
    """Yield every node: of the main graph, of subgraphs and of function bodies, outer before inner."""
    waiting = [model.graph.node, *(function.node for function in model.functions)]
    while waiting:
        for node in waiting.pop(0):
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g.node)
                waiting.extend(graph.node for graph in attribute.graphs)


def tensors(model: Any) -> Iterator[Any]:
    """Yield every TensorProto that the model stores: initialisers, sparse parts, and tensors in attributes."""
    for graph in graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def external_files(model: Any, path: str) -> list[str]:
    """List the files beside the model that hold its tensors. Raises BadModel for one that is missing, too short, or elsewhere."""
    from onnx import TensorProto

    needed: dict[str, int] = {}
    for tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            location = entry.get("location", "")
            end = int(entry.get("offset", 0)) + int(entry.get("length", 0))
            needed[location] = max(needed.get(location, 0), end)
    for location, end in needed.items():
        file = _beside(path, location)
        if not file.is_file():
            raise BadModel(f"{path}: its weights are in '{location}', which is missing; put that file beside the model")
        if file.stat().st_size < end:
            raise BadModel(
                f"{path}: its external data '{location}' is cut short ({file.stat().st_size} of at least {end} bytes); "
                "copy that file again"
            )
    return sorted(needed)


def _beside(path: str, location: str) -> Path:
    """Return the external file, after making sure that it lies in the model's own folder (links followed)."""
    pure = PurePosixPath(location.replace("\\", "/"))
    outside = not location or pure.is_absolute() or PureWindowsPath(location).is_absolute() or ".." in pure.parts
    file = Path(path).parent / location
    if not outside:
        homes = {Path(path).parent.resolve(), Path(path).resolve().parent}
        outside = not homes & set(file.resolve().parents)
    if outside:
        raise BadModel(
            f"{path}: its external data points outside the model's folder ('{location}'); such a file is not read: "
            "save the model again with its data beside it"
        )
    return file


def dtype_name(elem_type: int) -> str:
    """Return NumPy's name of a TensorProto data type ("float32", "str"); bfloat16 and the like keep their ONNX name."""
    from onnx import TensorProto, helper

    if elem_type == TensorProto.STRING:
        return "str"
    name: str = TensorProto.DataType.Name(elem_type).lower()
    if name in ("float", "double") or name.startswith(("int", "uint", "bool", "complex")) or name == "float16":
        plain = np.dtype(helper.tensor_dtype_to_np_dtype(elem_type))
        return plain.name if plain.kind in "biufc" else name
    return name


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes as Python values; tensors stay TensorProto, graphs GraphProto, text is decoded."""
    from onnx import helper

    values = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute) if not attribute.ref_attr_name else None
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, list) and value and isinstance(value[0], bytes):
            value = [item.decode("utf-8", "replace") for item in value]
        values[attribute.name] = value
    return values


def constant_tensor(node: Any) -> Any | None:
    """Return a Constant node's value as a TensorProto (dense), or None for a node of another kind."""
    from onnx import numpy_helper

    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or not node.attribute:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        return attribute.t
    if attribute.name == "sparse_value":
        return None
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    value = attributes(node)[attribute.name]
    array = np.array(value, dtype=kinds[attribute.name]) if attribute.name in kinds else np.array(value, dtype=object)
    return numpy_helper.from_array(array, name=node.output[0])


def constants(graph: Any) -> dict[str, Any]:
    """Return name -> TensorProto of a graph's own constants: initialisers, then Constant nodes."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        tensor = constant_tensor(node)
        if tensor is not None:
            found[node.output[0]] = tensor
    return found


def opsets(model: Any) -> Mapping[str, int]:
    """Return domain -> version; the ONNX domain is the empty string."""
    return {"" if item.domain == "ai.onnx" else item.domain: item.version for item in model.opset_import}


def captured(node: Any) -> list[str]:
    """List the outer values that a node's subgraphs read without naming them as inputs (If, Loop, Scan), in order."""
    found: dict[str, None] = {}
    for attribute in node.attribute:
        for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            found.update(dict.fromkeys(_free_names(graph)))
    return list(found)


def _free_names(graph: Any) -> list[str]:
    own = {item.name for item in graph.input} | {item.name for item in graph.initializer}
    own |= {name for node in graph.node for name in node.output}
    own |= {item.values.name for item in graph.sparse_initializer}
    used = [name for node in graph.node for name in (*node.input, *captured(node))]
    used += [item.name for item in graph.output]
    return [name for name in dict.fromkeys(used) if name and name not in own]
