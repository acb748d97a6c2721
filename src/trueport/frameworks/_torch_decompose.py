"""The finer view of an exported program: composite operators taken apart into elementary ones, recurrent ones per step.

Converters take composite operators apart too (LayerNorm, GELU, attention, an unrolled LSTM), and only then do the
values between their parts have a counterpart here. Two stages: PyTorch's own decompositions, which see every operator,
then those that they leave whole. A decomposition that fails on a model is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Callable

from trueport.frameworks._base import Unsupported
from trueport.frameworks._torch_program import Program
from trueport.frameworks._torch_values import settings

_KEPT_WHOLE = ("upsample", "grid_sampler", "pixel_shuffle", "pixel_unshuffle", "adaptive_avg_pool", "avg_pool")
"""Operators that every format has too; taken apart they become index arithmetic that resembles nothing."""

_LATER = (
    "silu",
    "hardswish",
    "hardsigmoid",
    "_prelu_kernel",
    "leaky_relu",
    "softplus",
    "mish",
)
"""Operators that the first stage leaves whole, taken apart by PyTorch's own second table."""


def decompose(native: Program) -> Program:
    """The finer view of a loaded program, with the same names of inputs, outputs and constants; weights are shared.

    Raises Unsupported when not even the first stage can be done.
    """
    finer, origins = _taken_apart(native.exported)
    taken = {name for _, name in native.outputs} | set(native.targets.values())
    for node in finer.graph.nodes:
        if node.op == "call_function" and node.name in taken:
            before = node.name
            node._rename(f"{before}_part")
            origins[node.name] = origins.pop(before, "")
    whole = {node.name: source.name for node, (source, _) in native.aliases.items()}
    shown = {node.name for node in native.operators()}
    origins = {name: whole.get(origin, origin) for name, origin in origins.items()}
    return Program(finer, native=native, origins={name: one for name, one in origins.items() if one in shown})


def _taken_apart(exported: Any) -> tuple[Any, dict[str, str]]:
    """(the finer ExportedProgram, its node name -> the node of `exported` that it is a part of)."""
    origins = {node.name: node.name for node in exported.graph.nodes}
    _forget_sources(exported)
    with settings("no-mkldnn"):  # else a recurrent layer becomes one opaque operator of oneDNN
        try:
            finer = exported.run_decompositions(_first_table())
        except Exception as error:
            raise Unsupported(f"the program cannot be taken apart: {_first_line(error)}") from error
        origins = _follow(finer, origins)
        return _second_stage(finer, origins)


def _second_stage(exported: Any, origins: dict[str, str]) -> tuple[Any, dict[str, str]]:
    table = _second_table({node.target for node in exported.graph.nodes if node.op == "call_function"})
    # All at once, because each pass traces the whole program anew; one by one only to find what can be kept.
    for part in [list(table), *([target] for target in table)] if table else []:
        _forget_sources(exported)
        try:
            finer = exported.run_decompositions({target: table[target] for target in part})
        except Exception:  # noqa: BLE001 -- whatever it is, the operators stay whole
            continue
        exported, origins = finer, _follow(finer, origins)
        if len(part) == len(table):
            break
    return exported, origins


def _first_table() -> dict[Any, Callable[..., Any]]:
    import torch

    table = torch.export.default_decompositions()
    for target in list(table.keys()):
        if any(word in str(target) for word in _KEPT_WHOLE):
            table.pop(target)
    return table  # type: ignore[no-any-return]


def _second_table(present: Iterable[Any]) -> dict[Any, Callable[..., Any]]:
    import torch
    from torch._decomp import get_decompositions

    aten = torch.ops.aten
    known = get_decompositions([getattr(aten, name) for name in _LATER if hasattr(aten, name)])
    known.update(_own())
    return {target: known[target] for target in present if target in known}


def _own() -> dict[Any, Callable[..., Any]]:
    """Decompositions as other formats write them, where PyTorch's own takes other steps to the same result."""
    import torch

    aten = torch.ops.aten

    def layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
        y, mean, inverse = normalised(x, list(range(x.dim() - len(shape), x.dim())), eps)
        return scaled(y, weight, bias), mean, inverse

    def normalised(x: Any, axes: list[int], eps: float) -> tuple[Any, Any, Any]:
        mean = aten.mean.dim(x, axes, True)
        centred = aten.sub.Tensor(x, mean)
        variance = aten.mean.dim(aten.mul.Tensor(centred, centred), axes, True)
        deviation = aten.sqrt.default(aten.add.Tensor(variance, eps))
        return aten.div.Tensor(centred, deviation), mean, aten.reciprocal.default(deviation)

    def scaled(x: Any, weight: Any, bias: Any) -> Any:
        x = x if weight is None else aten.mul.Tensor(x, weight)
        return x if bias is None else aten.add.Tensor(x, bias)

    def per_channel(value: Any, rank: int) -> Any:
        return None if value is None else aten.view.default(value, [1, -1] + [1] * (rank - 2))

    def group_norm(x: Any, weight: Any, bias: Any, n: Any, c: Any, inner: Any, groups: int, eps: float) -> Any:
        y, mean, inverse = normalised(aten.view.default(x, [n, groups, -1]), [2], eps)
        y = aten.view.default(y, list(x.shape))
        y = scaled(y, per_channel(weight, x.dim()), per_channel(bias, x.dim()))
        return y, aten.view.default(mean, [n, groups]), aten.view.default(inverse, [n, groups])

    def instance_norm(x: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float) -> Any:
        y, mean, inverse = normalised(x, [axis for axis in range(x.dim()) if axis != 1], eps)
        y = scaled(y, per_channel(weight, x.dim()), per_channel(bias, x.dim()))
        return y, aten.view.default(mean, [-1]), aten.view.default(inverse, [-1])

    def elu(x: Any, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Any:
        inner = x if input_scale == 1 else aten.mul.Tensor(x, input_scale)
        curve = aten.expm1.default(inner)
        curve = curve if alpha == 1 else aten.mul.Tensor(curve, alpha)
        y = aten.where.self(aten.gt.Scalar(x, 0), x, curve)
        return y if scale == 1 else aten.mul.Tensor(y, scale)

    def gelu(x: Any, approximate: str = "none") -> Any:
        if approximate == "tanh":
            cube = aten.pow.Tensor_Scalar(x, 3)
            inner = aten.add.Tensor(x, aten.mul.Tensor(cube, 0.044715))
            scaled = aten.tanh.default(aten.mul.Tensor(inner, 0.7978845608028654))  # sqrt(2 / pi)
        else:
            scaled = aten.erf.default(aten.mul.Tensor(x, 0.7071067811865476))  # sqrt(1 / 2)
        return aten.mul.Tensor(aten.mul.Tensor(x, aten.add.Tensor(scaled, 1.0)), 0.5)

    def softmax(x: Any, dim: int, half_to_float: bool) -> Any:
        powers = aten.exp.default(aten.sub.Tensor(x, aten.amax.default(x, [dim], True)))
        return aten.div.Tensor(powers, aten.sum.dim_IntList(powers, [dim], True))

    def log_softmax(x: Any, dim: int, half_to_float: bool) -> Any:
        shifted = aten.sub.Tensor(x, aten.amax.default(x, [dim], True))
        return aten.sub.Tensor(shifted, aten.log.default(aten.sum.dim_IntList(aten.exp.default(shifted), [dim], True)))

    def addmm(bias: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> Any:
        product = aten.mm.default(a, b) if a.dim() == 2 else aten.bmm.default(a, b)
        product = product if alpha == 1 else aten.mul.Tensor(product, alpha)
        return aten.add.Tensor(product, bias if beta == 1 else aten.mul.Tensor(bias, beta))

    return {
        aten.addmm.default: addmm,
        aten.baddbmm.default: addmm,
        aten.native_layer_norm.default: layer_norm,
        aten.native_group_norm.default: group_norm,
        aten._native_batch_norm_legit.no_stats: instance_norm,
        aten.elu.default: elu,
        aten.gelu.default: gelu,
        aten._softmax.default: softmax,
        aten._log_softmax.default: log_softmax,
    }


def _forget_sources(exported: Any) -> None:
    for node in exported.graph.nodes:
        node.meta.pop("from_node", None)


def _follow(finer: Any, before: Mapping[str, str]) -> dict[str, str]:
    """Node of the finer program -> origin, given the origins of the nodes of the program that it was made from."""
    found: dict[str, str] = {}
    nodes = list(finer.graph.nodes)
    for node in nodes:
        sources = node.meta.get("from_node") or []
        if node.op == "call_function" and sources and sources[0].name in before:
            found[node.name] = before[sources[0].name]
    # Size computations carry no source: they belong to the operator that asks for the size.
    for node in reversed(nodes):
        if node.op == "call_function" and node.name not in found:
            users = [found[user.name] for user in node.users if user.name in found]
            operands = [found[one.name] for one in node.all_input_nodes if one.name in found]
            named = users or operands
            if named:
                found[node.name] = named[0]
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
