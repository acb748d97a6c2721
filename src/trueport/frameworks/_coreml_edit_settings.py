"""Settings of operations of an ML program: attributes in Core ML's words or in ONNX's, written as constant arguments.

A setting keeps the type that it has in the file; where the file leaves it out, its type is that of the operator's rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._coreml_editor import Editor
from trueport.frameworks._coreml_emit_shapes import FAR, paired

Setting = Callable[[Editor, Any, Any], dict[str, Any]]
"""(editor, operation, value in ONNX's words) -> values of arguments in Core ML's."""

NORMS = ("batch_norm", "instance_norm", "layer_norm", "l2_norm")
WINDOWS = ("conv", "conv_transpose", "avg_pool", "max_pool", "l2_pool")
REDUCTIONS = (
    "reduce_l1_norm",
    "reduce_l2_norm",
    "reduce_log_sum",
    "reduce_log_sum_exp",
    "reduce_max",
    "reduce_mean",
    "reduce_min",
    "reduce_prod",
    "reduce_sum",
    "reduce_sum_square",
    "squeeze",
    "expand_dims",
)
TYPES = {
    "alpha": "float",
    "antialias": "bool",
    "axes": "int32",
    "axis": "int32",
    "begin": "int32",
    "beta": "float",
    "block_size": "int32",
    "ceil_mode": "bool",
    "constant_val": "float",
    "dilations": "int32",
    "end": "int32",
    "epsilon": "float",
    "exclude_padding_from_average": "bool",
    "groups": "int32",
    "keep_dims": "bool",
    "kernel_sizes": "int32",
    "pad": "int32",
    "perm": "int32",
    "reps": "int32",
    "shape": "int32",
    "stride": "int32",
    "strides": "int32",
}
"""Argument -> its type where the file leaves it out; "float" is that of the data."""


def set_attribute(editor: Editor, operation: Any, name: str, value: Any) -> None:
    """Give a setting of an operation a value; None takes it away, so that Core ML's own default counts."""
    rule = RULES.get((operation.type, name))
    own = name in operation.inputs or name in operation.attributes or name in _arguments(operation.type)
    if rule is None and not own:
        rule = RULES.get(("", name))
        if rule is None:
            raise Unsupported(f"Core ML's {operation.type} has no setting '{name}'")
    given = {name: value} if rule is None else rule(editor, operation, value)
    for argument, wanted in given.items():
        _write(editor, operation, argument, wanted)


def _arguments(kind: str) -> set[str]:
    """The arguments that an operator takes, as coremltools knows it."""
    from coremltools.converters.mil.mil import Builder  # noqa: F401 -- fills the registry
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    versions = SSAOpRegistry.core_ops.get(kind, {})
    return {argument for rule in versions.values() for argument in rule.input_spec.input_types}


def _write(editor: Editor, operation: Any, argument: str, value: Any) -> None:
    """Bind an argument to a new constant, in the type that it had."""
    name = operation.outputs[0].name
    if value is None:
        editor.bind(operation, argument)
        editor.fresh_ones.add(name)  # its defaults are written out again
        return
    old = editor.argument(operation, argument)
    if old is None and argument in operation.inputs:
        raise Unsupported(f"'{argument}' of '{name}' is computed by the model")
    if isinstance(old, str) or isinstance(value, str):
        editor.bind(operation, argument, editor.constant(str(value), f"{name}_{argument}", "str"))
        return
    if isinstance(old, np.ndarray):
        array = np.asarray(value)
        if old.dtype.kind in "iu" and array.dtype.kind == "f" and np.any(array != np.rint(array)):
            raise Unsupported(f"'{argument}' of {operation.type} takes whole numbers")
        array = array.astype(old.dtype)
        array = array.reshape(old.shape) if array.size == old.size else array
        array = array.reshape(-1) if old.ndim and not array.ndim else array
        kind = old.dtype.name
    else:
        array, kind = np.asarray(value), TYPES.get(argument, "float")
        if kind == "float":
            kind = editor.type(_data(editor, operation)).dtype
            kind = kind if kind in ("float16", "float32") else "float32"
    editor.bind(operation, argument, editor.constant(array, f"{name}_{argument}", kind))


def _data(editor: Editor, operation: Any) -> str:
    return next(iter(editor.data(operation)), "")


# -- ONNX's words ---------------------------------------------------------------------------------------------------


def _named(argument: str) -> Setting:
    return lambda editor, operation, value: {argument: value}


def _pads(editor: Editor, operation: Any, value: Any) -> dict[str, Any]:
    if value is None:
        return {"pad_type": "valid"}
    return {"pad_type": "custom", "pad": paired([int(size) for size in value])}


def _auto_pad(editor: Editor, operation: Any, value: Any) -> dict[str, Any]:
    words = {"SAME_UPPER": "same", "SAME": "same", "SAME_LOWER": "same_lower", "VALID": "valid", "NOTSET": "custom"}
    word = words.get(str(value).upper())
    if word is None:
        raise Unsupported(f"Core ML has no padding '{value}'")
    return {"pad_type": word}


def _own_pad(editor: Editor, operation: Any, value: Any) -> dict[str, Any]:
    """Pads in Core ML's order count only where the padding is their own."""
    return {"pad": value, "pad_type": "custom"}


def _counted(editor: Editor, operation: Any, value: Any) -> dict[str, Any]:
    return {"exclude_padding_from_average": not value}


def _axis_of_norm(editor: Editor, operation: Any, value: Any) -> dict[str, Any]:
    """ONNX's LayerNormalization runs from its axis to the last."""
    shape = editor.shape(_data(editor, operation))
    if shape is None:
        raise Unsupported(f"the rank of what '{operation.outputs[0].name}' normalises is not known")
    return {"axes": list(range(int(value) % len(shape), len(shape)))}


def _gelu_mode(editor: Editor, operation: Any, value: Any) -> dict[str, Any]:
    return {"mode": "TANH_APPROXIMATION" if value == "tanh" else "EXACT"}


def _padding_of_pad(editor: Editor, operation: Any, value: Any) -> dict[str, Any]:
    return {"pad": paired([int(size) for size in value])}


def _pad_mode(editor: Editor, operation: Any, value: Any) -> dict[str, Any]:
    words = {"edge": "replicate", "constant": "constant", "reflect": "reflect", "replicate": "replicate"}
    if value not in words:
        raise Unsupported(f"Core ML does not pad in the mode '{value}'")
    return {"mode": words[value]}


def _bounds(argument: str, mask: str) -> Setting:
    """Begins and ends of a slice, along the axes that it cuts; their masks follow."""

    def make(editor: Editor, operation: Any, value: Any) -> dict[str, Any]:
        numbers: Sequence[int] = [int(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
        old = editor.argument(operation, argument)
        count = len(numbers) if not isinstance(old, np.ndarray) else old.size
        if len(numbers) != count:
            raise Unsupported(f"'{operation.outputs[0].name}' cuts {count} axes, and {len(numbers)} numbers were given")
        free = [number >= FAR for number in numbers] if argument == "end" else [False] * count
        return {argument: [min(max(number, -FAR), FAR) for number in numbers], mask: free}

    return make


def _bound(argument: str, usual: float) -> Setting:
    return lambda editor, operation, value: {argument: usual if value is None else float(value)}


def _coordinates(editor: Editor, operation: Any, value: Any) -> dict[str, Any]:
    """How a resize lays its grid: `upsample_bilinear` has a switch for it, `resize_bilinear` a mode."""
    if operation.type == "upsample_bilinear":
        words = {"align_corners": (True, False), "half_pixel": (False, True), "asymmetric": (False, False)}
        if value not in words:
            raise Unsupported(f"Core ML's upsample_bilinear has no grid '{value}'")
        aligned, half = words[value]
        found = {"align_corners": aligned}
        if half or "half_pixel_centers" in operation.inputs:
            found["half_pixel_centers"] = half
        return found
    modes = {
        "align_corners": "STRICT_ALIGN_CORNERS",
        "half_pixel": "UNALIGN_CORNERS",
        "pytorch_half_pixel": "UNALIGN_CORNERS",
        "asymmetric": "DEFAULT",
    }
    if value not in modes or operation.type not in ("resize_bilinear", "resize", "crop_resize"):
        raise Unsupported(f"Core ML's {operation.type} has no grid '{value}'")
    return {"sampling_mode": modes[value]}


def _largest(editor: Editor, operation: Any, value: Any) -> dict[str, Any]:
    return {"ascending": not value}


RULES: dict[tuple[str, str], Setting] = {
    **{(kind, "pads"): _pads for kind in WINDOWS},
    **{(kind, "auto_pad"): _auto_pad for kind in WINDOWS},
    **{(kind, "padding"): _auto_pad for kind in WINDOWS},
    **{(kind, "pad"): _own_pad for kind in WINDOWS},
    **{(kind, "kernel_shape"): _named("kernel_sizes") for kind in ("avg_pool", "max_pool", "l2_pool")},
    **{(kind, "keepdims"): _named("keep_dims") for kind in (*REDUCTIONS, "reduce_argmax", "reduce_argmin")},
    ("avg_pool", "count_include_pad"): _counted,
    ("clip", "max"): _bound("beta", 3.4e38),
    ("clip", "min"): _bound("alpha", -3.4e38),
    ("conv", "group"): _named("groups"),
    ("conv_transpose", "group"): _named("groups"),
    ("depth_to_space", "blocksize"): _named("block_size"),
    ("gelu", "approximate"): _gelu_mode,
    ("layer_norm", "axis"): _axis_of_norm,
    ("local_response_norm", "bias"): _named("k"),
    ("pad", "pads"): _padding_of_pad,
    ("pad", "mode"): _pad_mode,
    ("pad", "value"): _named("constant_val"),
    ("pixel_shuffle", "blocksize"): _named("upscale_factor"),
    ("slice_by_index", "starts"): _bounds("begin", "begin_mask"),
    ("slice_by_index", "ends"): _bounds("end", "end_mask"),
    ("slice_by_index", "steps"): _named("stride"),
    ("space_to_depth", "blocksize"): _named("block_size"),
    ("split", "split"): _named("split_sizes"),
    ("topk", "largest"): _largest,
    ("", "coordinate_transformation_mode"): _coordinates,
}
"""(operator of Core ML, attribute in ONNX's words) -> how it is written."""
