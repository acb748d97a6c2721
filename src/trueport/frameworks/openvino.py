"""OpenVINO IR (`.xml` with `.bin` beside it): recognise, describe, run on the CPU, look inside, cut and edit.

How values and layers are named says `_openvino_file`. Attributes are shown in ONNX vocabulary where one exists, constant
operands that only say how to compute (axes, sizes, orders) among them. Grouped kernels are shown as ONNX has them,
[groups * out, in, *spatial].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import _openvino_run
from trueport.frameworks._base import (
    EDIT_KINDS,
    Arrays,
    EditDict,
    Emit,
    GraphDict,
    NodeDict,
    RunResult,
    SignatureDict,
    SpecDict,
    Unsupported,
)
from trueport.frameworks._openvino_file import Opened, array_of, dtype_of, key, meta_of, opened, shape_of, shown_shape
from trueport.frameworks._openvino_run import VARIANTS

NAME = "openvino"
FORMATS = {"openvino": "openvino"}
SUFFIXES = {"openvino": ".xml"}
PRECISIONS = ("float32", "float16")
EDITS: tuple[str, ...] = EDIT_KINDS
EDIT_FILES = (
    "_openvino_file",
    "_openvino_ops",
    "_openvino_emit",
    "_openvino_rules",
    "_openvino_moves",
    "_openvino_change",
    "_openvino_settings",
    "_openvino_edit",
)

_CARRY = ("Convert", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that hand on the integers of their first operand."""


def sniff(head: bytes, path: Path) -> str | None:
    """Return "openvino" for XML whose root is a `net` with layers; the suffix plays no part."""
    text = head[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not text.startswith((b"<?xml", b"<net")):
        return None
    start = text.find(b"<net")
    return "openvino" if 0 <= start < 1024 and b"version=" in text[start : start + 512] else None


def signature(path: str, *, trust: bool) -> SignatureDict:
    """Read the model and describe it. Raises BadModel, with the cure where the weights are missing; Unsupported."""
    one = opened(path)
    _openvino_run.check_types(one)
    return {
        "inputs": [_spec(one, name, port) for name, port in zip(one.input_names, one.inputs)],
        "outputs": [_spec(one, name, port) for name, port in zip(one.output_names, one.results)],
        "meta": meta_of(one),
    }


def _spec(one: Opened, name: str, port: Any) -> SpecDict:
    spec: SpecDict = {"name": name, "dtype": dtype_of(port), "shape": shape_of(port)}
    if port.get_node().get_type_name() == "Parameter" and spec["dtype"].startswith(("int", "uint")):
        sizes = list(_tables(port))
        if sizes:
            spec["minimum"], spec["maximum"] = 0, min(sizes) - 1
    return spec


def _tables(port: Any) -> Iterator[int]:
    """Sizes of the constant tables that integers of this port look up."""
    for reader in port.get_target_inputs():
        node = reader.get_node()
        if node.get_type_name() in _CARRY and reader.get_index() == 0:
            yield from _tables(node.output(0))
        elif node.get_type_name() == "Gather" and reader.get_index() == 1:
            table, axis = node.input_value(0), node.input_value(2).get_node()
            if not _computed(table) and axis.get_type_name() == "Constant" and table.get_partial_shape().is_static:
                yield int(table.get_shape()[int(array_of(axis).ravel()[0])])


def _computed(output: Any) -> bool:
    """Whether an input of the model stands behind a value."""
    node = output.get_node()
    return node.get_type_name() == "Parameter" or any(_computed(item) for item in node.input_values())


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, RunResult]:
    """Run every case, R calls each from the initial state, on the CPU in float32.

    float16: weights rounded to that grid, computed in float32. Raises ValueError when an input is missing, unknown or of
    a wrong shape; Unsupported for another precision and for what the CPU plugin has no kernel for.
    """
    if precision not in PRECISIONS:
        raise Unsupported(f"OpenVINO's CPU plugin computes in float32; it cannot run a model in {precision}")
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant '{variant}'; known are {', '.join(VARIANTS)}")
    return {name: _openvino_run.run_case(path, arrays, variant, precision) for name, arrays in cases.items()}


def names(path: str, *, trust: bool) -> list[str]:
    """Names of all values that layers compute and that NumPy has a type for, in execution order."""
    return list(opened(path).values)


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int, trust: bool) -> dict[str, Any]:
    """Emit wanted values [R, *shape]. Showing a value keeps it from being fused away, so its last bits may differ from a run's."""
    return _openvino_run.trace(path, inputs, wanted, emit, budget=budget)


def replay(
    path: str,
    inputs: Arrays,
    given: Arrays,
    wanted: Sequence[str],
    emit: Emit,
    *,
    variant: str,
    budget: int,
    trust: bool,
) -> dict[str, Any]:
    """Run the part of the model between `given` and `wanted`; shapes behind a given value follow from what is given."""
    if variant and variant not in VARIANTS:
        raise ValueError(f"there is no variant '{variant}'; known are {', '.join(VARIANTS)}")
    return _openvino_run.replay(path, inputs, given, wanted, emit, variant=variant, budget=budget)


def graph(path: str, *, trust: bool) -> GraphDict:
    """The layers of the main graph. The float constants inside a loop or a branch are listed as "inner_constants"."""
    from trueport.frameworks._openvino_ops import inner

    one = opened(path)
    constants = {
        name: {"dtype": dtype_of(node.output(0)), "shape": shown_shape(node)} for name, node in one.constants.items()
    }
    for node in one.computing:
        for name, array in _inside(node, inner).items():
            constants[name] = {"dtype": str(array.dtype), "shape": list(array.shape)}
    return {
        "nodes": [_node(one, node, name) for node, name in zip(one.computing, one.node_names)],
        "inputs": one.input_names,
        "outputs": [one.name(port) for port in one.results],
        "constants": constants,
    }


def _inside(node: Any, inner: Any) -> dict[str, np.ndarray]:
    return inner(node) if node.get_type_name() in ("Loop", "TensorIterator", "If") else {}


def _node(one: Opened, node: Any, name: str) -> NodeDict:
    from trueport.frameworks._openvino_ops import attributes_of, op_of

    read = [output for output in node.outputs() if node.get_output_size() == 1 or output.get_target_inputs()]
    return {
        "name": name,
        "op": op_of(node),
        "native_op": str(node.get_type_name()),
        "inputs": [one.name(output) for output in node.input_values()],
        "outputs": [one.names[key(node), output.get_index()] for output in read],
        "attributes": attributes_of(node),
    }


def parameters(path: str, emit: Emit, *, trust: bool) -> dict[str, Any]:
    """Emit every constant as stored, grouped kernels as [groups * out, in, *spatial]. Packed integers are "unreadable"."""
    from trueport.frameworks._openvino_ops import inner

    one = opened(path)
    unreadable = []
    for name, node in one.constants.items():
        try:
            emit(name, array_of(node).reshape(shown_shape(node)))
        except Unsupported:
            unreadable.append(name)
    for node in one.computing:
        for name, array in _inside(node, inner).items():
            emit(name, array)
    return {"unreadable": unreadable}


def edit(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
    """Write a copy of the model with the edits applied, and let OpenVINO compile it; see `_base.py`.

    Raises BadModel, ValueError for names that the model does not have, and Unsupported, with the reason.
    """
    from trueport.frameworks import _openvino_edit

    return _openvino_edit.apply(path, edits, arrays, out)
