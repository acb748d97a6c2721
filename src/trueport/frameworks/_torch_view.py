"""The graph of an exported program: which operator is which in ONNX vocabulary, what it reads, and what it gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trueport.frameworks._base import GraphDict, NodeDict
from trueport.frameworks._torch_attributes import attributes
from trueport.frameworks._torch_ops import onnx_name
from trueport.frameworks._torch_values import dtype_name, native_name


def view(program: Any) -> GraphDict:
    """The read-only view of a Program. Size computations are operators too, though `trace` gives tensors only."""
    import torch

    nodes = [_node(program, node) for node in program.operators()]
    made = {name for node in nodes for name in node["outputs"]}
    for index, name in program.outputs:
        if name not in made and hasattr(program.results[index], "op"):
            source = program.name_of(program.results[index])
            nodes.append({"name": name, "op": "Identity", "native_op": "", "inputs": [source], "outputs": [name], "attributes": {}})  # fmt: skip
    constants = {
        program.targets[name]: {"dtype": dtype_name(value.dtype), "shape": list(value.shape)}
        for name, value in program.constants.items()
        if isinstance(value, torch.Tensor)
    }
    inputs = [node.name for node in program.inputs]
    return {"nodes": nodes, "inputs": inputs, "outputs": [name for _, name in program.outputs], "constants": constants}


def _node(program: Any, node: Any) -> NodeDict:
    inputs: list[str] = []
    for source in references((node.args, node.kwargs)):
        if source.op == "get_attr":
            continue
        whole: list[str] = []
        if source not in program.aliases:
            whole = [name for name, index in program.tensors(source) if index is not None]
        inputs.extend(whole or [program.name_of(source)])
    if native_name(node) == "aten.rsub" and len(inputs) == 2:
        inputs.reverse()
    made: NodeDict = {
        "name": node.name,
        "op": onnx_name(node),
        "native_op": str(node.target),
        "inputs": inputs,
        "outputs": [name for name, _ in program.tensors(node)] or [program.name_of(node)],
        "attributes": attributes(node),
    }
    if program.native is not None and node.name in program.origins:
        made["origin"] = program.origins[node.name]
    return made


def references(value: Any) -> Iterator[Any]:
    """The graph nodes inside an argument, in order."""
    if hasattr(value, "op") and hasattr(value, "all_input_nodes"):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from references(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from references(item)
