"""Rewriting an FX graph so that its arithmetic really is float64: casts, created tensors and constants."""

from __future__ import annotations

from typing import Any, Callable

from trueport.frameworks._base import Unsupported
from trueport.frameworks._torch_values import dtype_name, is_float, native_name


def make_double(module: Any) -> None:
    """Rewrite one graph in place so that every cast to, and every creation of, a float is of float64."""
    import torch

    floats = (torch.float16, torch.bfloat16, torch.float32)

    def wider(value: Any) -> Any:
        return torch.float64 if value in floats else value

    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        name = native_name(node)
        if name == "aten._assert_tensor_metadata":
            module.graph.erase_node(node)
            continue
        if str(node.target) == "aten.view.dtype" or name.startswith("quantized"):
            raise Unsupported(f"float64: the operator {node.target} works on the bits of another dtype")
        if "autocast" in name:
            raise Unsupported("float64: the program switches automatic mixed precision on")
        node.args = _map_dtypes(node.args, wider)
        node.kwargs = _map_dtypes(node.kwargs, wider)
    for value in [*module.buffers(recurse=False), *module.parameters(recurse=False)]:
        if value.is_floating_point():
            value.data = value.data.double()
    module.recompile()


def _map_dtypes(value: Any, change: Callable[[Any], Any]) -> Any:
    import torch

    if isinstance(value, torch.dtype):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_map_dtypes(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _map_dtypes(item, change) for key, item in value.items()}
    return value


def demand_double(node: Any, value: Any) -> None:
    """Raise Unsupported when an operator gave a float other than float64."""
    for item in value if isinstance(value, (tuple, list)) else (value,):
        if is_float(item) and dtype_name(item.dtype) != "float64":
            raise Unsupported(f"float64: '{node.name}' ({node.target}) gives {dtype_name(item.dtype)}")
