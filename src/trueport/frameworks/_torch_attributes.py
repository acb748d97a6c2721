"""The attributes of PyTorch's operators, named, typed and spelled out as ONNX has them.

Defaults are filled in from the operator's schema, one number for all axes becomes one per axis, axes count from the
front where the rank is known, and flags are 0 or 1. What ONNX has no name for keeps PyTorch's.
"""

from __future__ import annotations

from typing import Any, Callable

from trueport.frameworks._torch_ops import onnx_name
from trueport.frameworks._torch_values import native_name

_WITHOUT_EFFECT = frozenset(
    {
        "momentum",
        "training",
        "cudnn_enabled",
        "cudnn_enable",
        "benchmark",
        "deterministic",
        "allow_tf32",
        "memory_format",
        "layout",
        "device",
        "pin_memory",
        "non_blocking",
        "copy",
        "implicit",
        "transposed",
        "train",
        "use_input_stats",
        "dropout_p",
        "dropout",
        "sparse",
        "scale_grad_by_freq",
    }
)
"""Arguments that change no value when a model is evaluated, or that the operator's name already tells."""

_RENAMED = {
    "stride": "strides",
    "dilation": "dilations",
    "groups": "group",
    "kernel_size": "kernel_shape",
    "eps": "epsilon",
    "negative_slope": "alpha",
    "keepdim": "keepdims",
    "min_val": "min",
    "max_val": "max",
    "upscale_factor": "blocksize",
    "downscale_factor": "blocksize",
    "diagonal": "k",
    "dtype": "to",
}
"""PyTorch's name -> ONNX's, the same for all operators."""
_FLAGS = frozenset({"ceil_mode", "count_include_pad", "keepdims", "largest", "sorted", "is_causal", "align_corners"})
_AXIS_OPERATORS = frozenset(
    {"Softmax", "LogSoftmax", "Concat", "ConcatFromSequence", "ArgMax", "ArgMin", "TopK", "CumSum", "Split"}
    | {"Gather", "GatherElements", "ScatterElements", "Sort"}
)

_Values = dict[str, Any]
_Reader = Callable[[Any, _Values], None]


def attributes(node: Any) -> dict[str, Any]:
    """The operator's arguments that are no tensors, as plain JSON in ONNX vocabulary."""
    values = _bound(node)
    operator = onnx_name(node)
    for name in _WITHOUT_EFFECT.intersection(values):
        del values[name]
    if operator in _AXIS_OPERATORS and "dim" in values:
        values["axis"] = _from_front(node, values.pop("dim"))
    reader = _READERS.get(operator)
    if reader is not None:
        reader(node, values)
    found = {}
    for name, value in values.items():
        name = _RENAMED.get(name, name)
        if value is not None and value != []:
            found[name] = int(value) if name in _FLAGS and isinstance(value, bool) else _plain(value)
    return found


def _bound(node: Any) -> _Values:
    """Argument name -> value, defaults filled in, those left out that hold tensors."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        named = {f"arg{index}": value for index, value in enumerate(node.args)}
        named.update(node.kwargs)
    else:
        named = {one.name: one.default_value for one in schema.arguments if one.has_default_value()}
        named.update({one.name: value for one, value in zip(schema.arguments, node.args)})
        named.update(node.kwargs)
    return {name: value for name, value in named.items() if not _holds_nodes(value)}


def _holds_nodes(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_holds_nodes(item) for item in value)
    return hasattr(value, "op") and hasattr(value, "all_input_nodes")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value).replace("torch.", "")


# ---- shapes ----


def _shape(value: Any) -> list[int] | None:
    """The shape of a node's (first) tensor, -1 for sizes that are open; None where it is no tensor."""
    meta: Any = value.meta.get("val") if hasattr(value, "meta") else None
    if isinstance(meta, (tuple, list)) and meta:
        meta = meta[0]
    return [size if isinstance(size, int) else -1 for size in meta.shape] if hasattr(meta, "shape") else None


def _operand(node: Any, index: int = 0) -> list[int] | None:
    """The shape of an operand; of the first one in a list of them."""
    value = node.args[index] if index < len(node.args) else None
    if isinstance(value, (tuple, list)):
        value = value[0] if value else None
    return _shape(value)


def _from_front(node: Any, axis: Any) -> Any:
    """The axis or axes of the first operand, counted from the front."""
    if isinstance(axis, (tuple, list)):
        return [_from_front(node, one) for one in axis]
    shape = _operand(node)
    if shape is None or not isinstance(axis, int):
        return axis
    rank = len(shape) + (1 if native_name(node) in ("aten.unsqueeze", "aten.stack") else 0)
    return axis + rank if axis < 0 else axis


def _spread(value: Any, count: int) -> list[Any]:
    listed = list(value) if isinstance(value, (tuple, list)) else [value]
    return listed * count if len(listed) == 1 else listed


# ---- one reader for each operator that needs more than names ----


def _windowed(node: Any, values: _Values, spatial: int) -> None:
    """Window attributes: strides, dilations and pads per axis, all begins before all ends."""
    for name in ("kernel_size", "stride", "dilation", "output_padding"):
        if name in values and values[name] is not None and values[name] != []:
            values[name] = _spread(values[name], spatial)
    if "kernel_size" in values and not values.get("stride"):
        values["stride"] = values["kernel_size"]
    padding = values.pop("padding", 0)
    if padding == "same":
        values["auto_pad"] = "SAME_UPPER"
    else:
        values["pads"] = _spread(0 if padding == "valid" else padding, spatial) * 2


def _convolution(node: Any, values: _Values) -> None:
    kernel = _operand(node, 1)
    if kernel is None:
        return
    values["kernel_shape"] = kernel[2:]
    _windowed(node, values, len(kernel) - 2)
    if onnx_name(node) == "Conv":
        values.pop("output_padding", None)


def _pool(node: Any, values: _Values) -> None:
    native, shape = native_name(node), _operand(node)
    if "adaptive" not in native:
        found = [int(part) for part in native if part.isdigit()]
        _windowed(node, values, found[0])
        return
    sizes = _spread(values.pop("output_size", 1), int(native[native.index("pool") + 4]))
    values["output_size"] = sizes
    inner = (shape or [])[-len(sizes) :]
    if inner and all(size > 0 and wanted and size % wanted == 0 for size, wanted in zip(inner, sizes)):
        window = [size // wanted for size, wanted in zip(inner, sizes)]
        values.update(kernel_shape=window, strides=window, pads=[0] * (2 * len(window)))


def _global_pool(node: Any, values: _Values) -> None:
    values.clear()


def _layer_norm(node: Any, values: _Values) -> None:
    values["axis"] = _from_front(node, -len(values.pop("normalized_shape")))


def _group_norm(node: Any, values: _Values) -> None:
    for name in ("N", "C", "HxW"):
        values.pop(name, None)
    if "group" in values:
        values["num_groups"] = values.pop("group")


def _clip(node: Any, values: _Values) -> None:
    if native_name(node).rstrip("_") == "aten.relu6":
        values.update(min=0.0, max=6.0)


def _transpose(node: Any, values: _Values) -> None:
    shape = _operand(node)
    if shape is None:
        return
    order = list(range(len(shape)))
    if "dims" in values:
        order = _from_front(node, values.pop("dims"))
    elif native_name(node) in ("aten.t", "aten.numpy_T"):
        order.reverse()
    else:
        first, second = (
            values.pop(name, None) for name in (("dim0", "dim1") if "dim0" in values else ("axis0", "axis1"))
        )
        if isinstance(first, int) and isinstance(second, int):
            order[first], order[second] = order[second], order[first]
    values["perm"] = order


def _to_shape(node: Any, values: _Values) -> None:
    values.pop("size", None)
    values["shape"] = _shape(node)
    if "start_dim" in values:
        values["axis"] = _from_front(node, values.pop("start_dim"))
        values["end_dim"] = _from_front(node, values["end_dim"])


def _slice(node: Any, values: _Values) -> None:
    start = values.pop("start", 0) or 0
    end = values.pop("end", None)
    if "length" in values and isinstance(start, int):
        end = start + values.pop("length")
    values["axes"] = [_from_front(node, values.pop("dim", 0))]
    values["starts"], values["steps"] = [start], [values.pop("step", 1)]
    if isinstance(end, int):
        values["ends"] = [end]


def _pad(node: Any, values: _Values) -> None:
    shape, native = _operand(node), native_name(node)
    pad = values.pop("pad", values.pop("padding", None))
    if shape is not None and pad is not None:
        begins, ends = [0] * len(shape), [0] * len(shape)
        for place in range(len(pad) // 2):  # PyTorch begins at the last axis, and pairs begin and end
            begins[-1 - place], ends[-1 - place] = pad[2 * place], pad[2 * place + 1]
        values["pads"] = begins + ends
    known = {"reflect": "reflect", "replicate": "edge", "circular": "wrap", "constant": "constant"}
    kind = values.get("mode") or (
        "reflect" if "reflection" in native else "replicate" if "replication" in native else ""
    )
    values["mode"] = known.get(kind or "constant", kind)


def _split(node: Any, values: _Values) -> None:
    for name in ("chunks", "split_size", "split_sizes"):
        values.pop(name, None)
    parts = [value.shape for value in node.meta.get("val", ()) if hasattr(value, "shape")]
    axis = values.get("axis")
    if isinstance(axis, int) and native_name(node) != "aten.unbind" and all(isinstance(p[axis], int) for p in parts):
        values["split"] = [part[axis] for part in parts]


def _axes(node: Any, values: _Values) -> None:
    if onnx_name(node).startswith("Reduce"):
        values.setdefault("keepdim", False)
    if "dim" in values:
        dim = values.pop("dim")
        if dim is not None and dim != []:
            values["axes"] = _from_front(node, list(dim) if isinstance(dim, (tuple, list)) else [dim])


def _gather(node: Any, values: _Values) -> None:
    if native_name(node) == "aten.embedding":
        values.clear()
        values["axis"] = 0
    elif "index" in values:
        values["indices"] = values.pop("index")


def _resize(node: Any, values: _Values) -> None:
    native, before, after = native_name(node), _operand(node), _shape(node)
    kinds = {"nearest": "nearest", "bicubic": "cubic"}
    values["mode"] = next((mode for word, mode in kinds.items() if word in native), "linear")
    corners = values.get("align_corners")
    if values["mode"] == "nearest":
        exact = "exact" in native
        values["coordinate_transformation_mode"] = "half_pixel" if exact else "asymmetric"
        values["nearest_mode"] = "round_prefer_floor" if exact else "floor"
    else:
        values["coordinate_transformation_mode"] = "align_corners" if corners else "half_pixel"
    for name in ("output_size", "scales_h", "scales_w", "scales_d", "scales"):
        values.pop(name, None)
    factors = values.pop("scale_factors", None)
    if before is not None and after is not None:
        values["sizes"] = after[2:]
        known = all(a > 0 and b > 0 for a, b in zip(after[2:], before[2:]))
        values["scales"] = [a / b for a, b in zip(after[2:], before[2:])] if known else factors


def _recurrent(node: Any, values: _Values) -> None:
    values["direction"] = "bidirectional" if values.pop("bidirectional", False) else "forward"
    values["layout"] = int(bool(values.pop("batch_first", False)))
    if onnx_name(node) == "GRU":
        values["linear_before_reset"] = 1
    weights = node.args[3] if isinstance(node.args[2], bool) else node.args[2]
    recurrent = _shape(weights[1]) if isinstance(weights, (tuple, list)) and len(weights) > 1 else None
    if recurrent:
        values["hidden_size"] = recurrent[-1]


def _gemm(node: Any, values: _Values) -> None:
    values["transB"] = int(native_name(node) == "aten.linear")
    values["alpha"], values["beta"] = float(values.get("alpha", 1)), float(values.get("beta", 1))


def _elu(node: Any, values: _Values) -> None:
    for name in ("scale", "input_scale"):
        if values.get(name) == 1:
            del values[name]


def _scaled_sum(node: Any, values: _Values) -> None:
    if values.get("alpha") == 1:
        del values["alpha"]
    if native_name(node) == "aten.rsub" and "other" in values:
        values["reversed"] = 1  # the number comes first; of two tensors the view swaps the operands


def _constants(**known: Any) -> _Reader:
    return lambda node, values: values.update(known)


_READERS: dict[str, _Reader] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "Clip": _clip,
    "Transpose": _transpose,
    "Reshape": _to_shape,
    "Expand": _to_shape,
    "Slice": _slice,
    "Pad": _pad,
    "Split": _split,
    "Squeeze": _axes,
    "Unsqueeze": _axes,
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "VarMean"), _axes),
    "Gather": _gather,
    "Resize": _resize,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Gemm": _gemm,
    "Elu": _elu,
    "Add": _scaled_sum,
    "Sub": _scaled_sum,
    "HardSigmoid": _constants(alpha=1 / 6, beta=0.5),
    "Selu": _constants(alpha=1.6732632423543772, gamma=1.0507009873554805),
    "DepthToSpace": _constants(mode="CRD"),
}
