"""Hyperparameters of operators in one vocabulary, ONNX's, whatever the format and its layout.

A table per kind says which attributes count and what an absent one means in ONNX. Padding is resolved to explicit
begins and ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trueport.diagnosis import coreml_words
from trueport.diagnosis.operators import kind
from trueport.diagnosis.region import Inside
from trueport.graph import Node

ABSENT = object()
"""No default: an absent attribute is not known, and not compared."""

_WINDOW: Mapping[str, Any] = {"kernel_shape": ABSENT, "strides": ABSENT, "dilations": ABSENT, "pads": ABSENT}

TABLE: Mapping[str, Mapping[str, Any]] = {
    "ArgMax": {"axis": 0, "select_last_index": 0},
    "ArgMin": {"axis": 0, "select_last_index": 0},
    "Attention": {"scale": ABSENT, "is_causal": 0},
    "AveragePool": {**_WINDOW, "ceil_mode": 0, "count_include_pad": 0, "divisor_override": ABSENT},
    "BatchNormalization": {"epsilon": 1e-5},
    "Cast": {"to": ABSENT},
    "Celu": {"alpha": 1.0},
    "Clip": {"min": -math.inf, "max": math.inf},
    "Concat": {"axis": ABSENT},
    "Conv": {**_WINDOW, "group": 1},
    "ConvTranspose": {"strides": ABSENT, "dilations": ABSENT, "pads": ABSENT, "group": 1, "output_padding": ABSENT},
    "CumSum": {"axis": ABSENT, "exclusive": 0, "reverse": 0},
    "DepthToSpace": {"blocksize": ABSENT, "mode": "DCR"},
    "Div": {"rounding_mode": ABSENT},
    "Einsum": {"equation": ABSENT},
    "Elu": {"alpha": 1.0},
    "GRU": {"direction": "forward", "linear_before_reset": 0, "activations": ABSENT, "clip": ABSENT},
    "Gather": {"axis": 0},
    "GatherElements": {"axis": 0},
    "Gelu": {"approximate": "none"},
    "Gemm": {"alpha": 1.0, "beta": 1.0},
    "GroupNormalization": {"epsilon": 1e-5, "num_groups": ABSENT},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "InstanceNormalization": {"epsilon": 1e-5},
    "LRN": {"alpha": 1e-4, "beta": 0.75, "bias": 1.0, "size": ABSENT},
    "LSTM": {"direction": "forward", "activations": ABSENT, "clip": ABSENT},
    "LayerNormalization": {"epsilon": 1e-5, "axis": -1},
    "LeakyRelu": {"alpha": 0.01},
    "LogSoftmax": {"axis": -1},
    "LpNormalization": {"axis": -1, "p": 2},
    "MaxPool": {**_WINDOW, "ceil_mode": 0},
    "Mod": {"fmod": 0},
    "OneHot": {"axis": -1, "depth": ABSENT},
    "Pad": {"pads": ABSENT, "mode": "constant", "value": 0.0},
    "RMSNormalization": {"epsilon": 1e-5, "axis": -1},
    "RNN": {"direction": "forward", "activations": ABSENT},
    "ReduceL2": {"axes": ABSENT, "keepdims": ABSENT},
    "ReduceMax": {"axes": ABSENT},
    "ReduceMean": {"axes": ABSENT},
    "ReduceMin": {"axes": ABSENT},
    "ReduceProd": {"axes": ABSENT},
    "ReduceSum": {"axes": ABSENT},
    "Relu": {},
    "Resize": {
        "mode": "nearest",
        "coordinate_transformation_mode": "half_pixel",
        "nearest_mode": "round_prefer_floor",
        "cubic_coeff_a": -0.75,
        "antialias": 0,
        "exclude_outside": 0,
        "sizes": ABSENT,
    },
    "ScatterElements": {"axis": 0, "reduction": "none"},
    "ScatterND": {"reduction": "none"},
    "Selu": {"alpha": 1.67326, "gamma": 1.0507},
    "Slice": {"window": ABSENT},
    "Softmax": {"axis": -1, "beta": 1.0},
    "Softplus": {"beta": 1.0, "threshold": ABSENT},
    "SpaceToDepth": {"blocksize": ABSENT},
    "Split": {"axis": 0, "split": ABSENT},
    "ThresholdedRelu": {"alpha": 1.0},
    "TopK": {"k": ABSENT, "axis": -1, "largest": 1, "stable": 1},
    "Trilu": {"upper": 1, "k": 0},
}
"""Kind -> attribute -> what it means in ONNX when it is absent."""

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "strides": ("strides", "stride"),
    "dilations": ("dilations", "dilation", "dilation_rate"),
    "kernel_shape": ("kernel_shape", "kernel_size", "pool_size"),
    "group": ("group", "groups"),
    "epsilon": ("epsilon", "eps"),
    "alpha": ("alpha", "negative_slope"),
    "max": ("max", "max_value"),
    "axis": ("axis", "dim"),
    "axes": ("axes", "axis", "dim"),
    "linear_before_reset": ("linear_before_reset", "reset_after"),
    "mode": ("mode", "interpolation"),
}
"""Attribute -> the names under which formats show it, the first one found counts."""

_OPERANDS: Mapping[str, Mapping[int, str]] = {
    "Clip": {1: "min", 2: "max"},
    "CumSum": {1: "axis"},
    "OneHot": {1: "depth"},
    "Pad": {1: "pads", 2: "value", 3: "axes"},
    "ReduceL2": {1: "axes"},
    "ReduceMax": {1: "axes"},
    "ReduceMean": {1: "axes"},
    "ReduceMin": {1: "axes"},
    "ReduceProd": {1: "axes"},
    "ReduceSum": {1: "axes"},
    "Resize": {2: "scales", 3: "sizes"},
    "Slice": {1: "starts", 2: "ends", 3: "axes", 4: "steps"},
    "Split": {1: "split"},
    "TopK": {1: "k"},
    "Trilu": {1: "k"},
}
"""ONNX operator -> operand -> the attribute that it was in older opsets."""

_STRIDED = {1: "starts", 2: "ends", 3: "steps"}
"""Operands of TensorFlow's StridedSlice; where they are stored they are not shown as attributes."""

_IMPLIED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "tflite": {
        "AveragePool": {"ceil_mode": 0, "count_include_pad": 0},
        "HardSigmoid": {"alpha": 1 / 6, "beta": 0.5},
        "MaxPool": {"ceil_mode": 0},
        "Elu": {"alpha": 1.0},
        "Softmax": {"axis": -1},
        "TopK": {"stable": 1},
    },
    "keras": {
        "AveragePool": {"ceil_mode": 0, "count_include_pad": 0},
        "Elu": {"alpha": 1.0},
        "MaxPool": {"ceil_mode": 0},
        "Softmax": {"axis": -1, "beta": 1.0},
    },
    "savedmodel": {
        "AveragePool": {"ceil_mode": 0, "count_include_pad": 0},
        "Elu": {"alpha": 1.0},
        "MaxPool": {"ceil_mode": 0},
        "Softmax": {"axis": -1, "beta": 1.0},
    },
    "openvino": {
        "Resize": {"exclude_outside": 0},
        "Softmax": {"beta": 1.0},
    },
    "executorch": {
        "CumSum": {"exclusive": 0, "reverse": 0},
        "HardSigmoid": {"alpha": 1 / 6, "beta": 0.5},
        "Softmax": {"beta": 1.0},
    },
    "tvm": {"CumSum": {"reverse": 0}, "Resize": {"antialias": 0}, "Softmax": {"beta": 1.0}},
    "pytorch": {
        "CumSum": {"exclusive": 0, "reverse": 0},
        "HardSigmoid": {"alpha": 1 / 6, "beta": 0.5},
        "Softmax": {"beta": 1.0},
    },
    "coreml": {"Gemm": {"alpha": 1.0, "beta": 1.0}, "Softmax": {"beta": 1.0}},
    "torchscript": {"HardSigmoid": {"alpha": 1 / 6, "beta": 0.5}, "Softmax": {"beta": 1.0}},
}
"""Format -> kind -> attributes that the format does not have, and what its operators do."""

_MODES = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic", "constant": "constant"}


def typed(inside: Inside, node: Node) -> dict[str, Any]:
    """The attributes of a node that count for its kind, in ONNX's words; those not known are left out."""
    name = kind(node)
    table = TABLE.get(name, {})
    given = _given(inside, node)
    implied = _IMPLIED.get(inside.format, {}).get(name, {})
    found: dict[str, Any] = {}
    for attribute, default in table.items():
        value = next((given[alias] for alias in _ALIASES.get(attribute, (attribute,)) if alias in given), None)
        if value is None:
            value = implied.get(attribute, default if inside.format in ("onnx", "fake") else ABSENT)
        if value is not ABSENT:
            found[attribute] = value
    special = _SPECIAL.get(name)
    if special is not None:
        special(inside, node, given, found)
    return {key: _plain(value) for key, value in found.items() if value is not ABSENT}


def _given(inside: Inside, node: Node) -> dict[str, Any]:
    """Attributes as shown, and those that ONNX takes as operands."""
    given = {key: value for key, value in node.attributes.items() if value is not None}
    if inside.format == "coreml":
        data = inside.shape(inside.data(node)[0]) if inside.data(node) else None
        given = coreml_words.translated(node.native_op, given, None if data is None else len(data))
        given = {key: value for key, value in given.items() if value is not None}
    operands = _OPERANDS.get(node.op, {}) if inside.format in ("onnx", "fake") else {}
    if node.native_op in ("StridedSlice", "STRIDED_SLICE"):
        operands = _STRIDED
    if operands:
        for slot, name in operands.items():
            value = inside.array(node.inputs[slot]) if slot < len(node.inputs) and node.inputs[slot] else None
            if name not in given and value is not None and value.size <= 64 and value.size:
                given[name] = value.ravel().tolist() if value.ndim else value.item()
    for name in ("min", "max", "value", "k", "depth"):
        if isinstance(given.get(name), list) and len(given[name]) == 1:
            given[name] = given[name][0]
    return given


# -- kinds that need more than names --------------------------------------------------------------------------------


def _windowed(inside: Inside, node: Node, given: Mapping[str, Any], found: dict[str, Any]) -> None:
    """Window, strides, dilations per spatial axis; padding as explicit begins and ends."""
    sizes = inside.spatial(node)
    kernel = listed(found.get("kernel_shape")) or _kernel(inside, node, sizes)
    rank = len(kernel) if kernel else len(sizes) if sizes else 0
    if not rank:
        for name in ("kernel_shape", "strides", "dilations", "pads"):
            found.pop(name, None)
        return
    if kind(node).endswith("Pool") and kernel is None:
        return
    if kernel:
        found["kernel_shape"] = kernel
    pooled = kind(node).endswith("Pool") and inside.format == "pytorch"
    found["strides"] = _spread(found.get("strides"), rank, kernel if pooled and kernel else [1] * rank)
    found["dilations"] = _spread(found.get("dilations"), rank, [1] * rank)
    pads = _pads(given, rank, sizes, kernel, found["strides"], found["dilations"], kind(node) == "ConvTranspose")
    if pads is None:
        found.pop("pads", None)
    else:
        found["pads"] = pads
    if kind(node) == "Conv" and "group" not in given and inside.format != "onnx":
        found.pop("group", None)
    if kind(node) == "AveragePool":
        divisor = found.get("divisor_override")
        plain = divisor is None or (kernel is not None and divisor == math.prod(kernel) and not any(pads or ()))
        found["divisor_override"] = "size of the window" if plain else divisor
    _without_effect(found, sizes)


def _kernel(inside: Inside, node: Node, sizes: tuple[int, ...] | None) -> list[int] | None:
    """The spatial sizes of the weights, from their shape."""
    from trueport.diagnosis import layouts

    for item in inside.parameters(node):
        axes = layouts.axes_of(item)
        if axes is not None and "x" in axes:
            return [item.array.shape[place] for place, letter in enumerate(axes) if letter in "xyz"]
    return None


def _pads(
    given: Mapping[str, Any],
    rank: int,
    sizes: Sequence[int] | None,
    kernel: Sequence[int] | None,
    strides: Sequence[int],
    dilations: Sequence[int],
    transposed: bool,
) -> list[int] | None:
    """Begins, then ends; None where they cannot be told."""
    explicit = listed(given.get("pads"))
    padding = given.get("padding")
    auto = str(given.get("auto_pad", padding if isinstance(padding, str) else "NOTSET")).upper()
    if auto in ("VALID",):
        return [0] * (2 * rank)
    if auto.startswith("SAME"):
        if sizes is None or kernel is None or len(sizes) != rank or transposed:
            return None
        begins, ends = [], []
        for size, width, step, gap in zip(sizes, kernel, strides, dilations, strict=True):
            total = max((math.ceil(size / step) - 1) * step + (width - 1) * gap + 1 - size, 0)
            less, more = total // 2, total - total // 2
            begins.append(more if auto == "SAME_LOWER" else less)
            ends.append(less if auto == "SAME_LOWER" else more)
        return begins + ends
    if explicit is not None:
        return {2 * rank: explicit, rank: explicit * 2}.get(len(explicit))
    if isinstance(padding, (int, list)):
        symmetric = _spread(padding, rank, [0] * rank)
        return symmetric * 2
    return [0] * (2 * rank) if padding is None else None


def _without_effect(found: dict[str, Any], sizes: Sequence[int] | None) -> None:
    """Leave out switches that change nothing here: whether padding counts where there is none, rounding that comes out even."""
    pads = found.get("pads")
    if pads is None:
        return
    if not any(pads):
        found.pop("count_include_pad", None)
    kernel = found.get("kernel_shape")
    if "ceil_mode" in found and sizes is not None and kernel and len(sizes) == len(kernel):
        rank = len(kernel)
        spans = [
            (size + pads[axis] + pads[rank + axis] - (width - 1) * gap - 1) % step
            for axis, (size, width, step, gap) in enumerate(
                zip(sizes, kernel, found["strides"], found["dilations"], strict=True)
            )
        ]
        if not any(spans):
            found.pop("ceil_mode")
    if sizes is not None and found.get("dilations") and kernel:
        found["dilations"] = [gap if width > 1 else 1 for gap, width in zip(found["dilations"], kernel, strict=True)]


def _clip(inside: Inside, node: Node, given: Mapping[str, Any], found: dict[str, Any]) -> None:
    if node.op == "Relu" or node.native_op == "ReLU":
        found.setdefault("min", 0.0)
    found.setdefault("min", -math.inf)
    found.setdefault("max", math.inf)


def _recurrent(inside: Inside, node: Node, given: Mapping[str, Any], found: dict[str, Any]) -> None:
    """Direction and activations in ONNX's words, from Keras' and PyTorch's."""
    if "go_backwards" in given:
        found["direction"] = "reverse" if given["go_backwards"] else "forward"
    if "bidirectional" in given:
        found["direction"] = "bidirectional" if given["bidirectional"] else "forward"
    if kind(node) == "GRU":
        default = 1 if inside.format in ("pytorch", "torchscript") else found.get("linear_before_reset", ABSENT)
        found["linear_before_reset"] = int(default) if default is not ABSENT else ABSENT
    usual = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}[kind(node)]
    named = given.get("activations")
    if isinstance(named, list) and named:
        names = [_function(name) for name in named]
        if names == names[: len(usual)] * (len(names) // max(1, len(usual))):
            names = names[: len(usual)]
        found["activations"] = names
    elif "recurrent_activation" in given:
        inner = _function(given.get("activation", "tanh"))
        found["activations"] = [_function(given["recurrent_activation"]), *[inner] * (len(usual) - 1)]
    else:
        found["activations"] = usual if kind(node) != "RNN" else ABSENT


def _function(name: Any) -> str:
    return str(name).lower().replace("_", "")


def _resize(inside: Inside, node: Node, given: Mapping[str, Any], found: dict[str, Any]) -> None:
    mode = str(found.get("mode", ABSENT) if "mode" in found else "")
    if mode:
        found["mode"] = _MODES.get(mode, mode)
    if found.get("mode") != "nearest":
        found.pop("nearest_mode", None)
    if found.get("mode") != "cubic":
        found.pop("cubic_coeff_a", None)
    shape = inside.shape(node.outputs[0]) if node.outputs else None
    before = inside.spatial(node)
    found.pop("sizes", None)
    if shape is not None and before is not None:
        found["sizes"] = sorted(shape[1:])
        if _whole_steps(before, inside, node, shape):
            _even_grid(found)
    if found.get("mode") == "nearest" and "coordinate_transformation_mode" in found:
        way = (found.pop("coordinate_transformation_mode"), found.pop("nearest_mode", "round_prefer_floor"))
        found["coordinate_transformation_mode"] = {
            ("tf_half_pixel_for_nn", "floor"): "half_pixel, round_prefer_ceil",
        }.get(way, ", ".join(map(str, way)))


def _whole_steps(before: Sequence[int], inside: Inside, node: Node, after: Sequence[int]) -> bool:
    """Whether every spatial size becomes a whole multiple of itself."""
    rest = sorted(after[1:])
    return all(any(size and target % size == 0 for target in rest) for size in before)


def _even_grid(found: dict[str, Any]) -> None:
    """Enlarging by a whole factor, these ways of taking the nearest pixel are the same."""
    if found.get("mode") == "nearest":
        way = (found.get("coordinate_transformation_mode"), found.get("nearest_mode", "round_prefer_floor"))
        same = {
            ("asymmetric", "floor"),
            ("half_pixel", "round_prefer_floor"),
            ("half_pixel", "round_prefer_ceil"),
            ("tf_half_pixel_for_nn", "floor"),
            ("tf_half_pixel_for_nn", "round_prefer_floor"),
        }
        if way in same:
            found["coordinate_transformation_mode"], found["nearest_mode"] = "asymmetric", "floor"


def _slice(inside: Inside, node: Node, given: Mapping[str, Any], found: dict[str, Any]) -> None:
    """The window per axis as (begin, end, step); only where all of it is constant."""
    found.pop("window", None)
    data = inside.data(node)
    shape = inside.shape(data[0]) if data else None
    starts, ends = listed(given.get("starts")), listed(given.get("ends"))
    if shape is None or starts is None or ends is None or len(starts) != len(ends):
        return
    axes = listed(given.get("axes")) or list(range(len(starts)))
    steps = listed(given.get("steps")) or [1] * len(starts)
    if given.get("ellipsis_mask") or given.get("new_axis_mask") or len(axes) != len(starts):
        return
    open_start, open_end, single = (int(given.get(name, 0)) for name in ("begin_mask", "end_mask", "shrink_axis_mask"))
    window = {}
    for place, (axis, start, end, step) in enumerate(zip(axes, starts, ends, steps, strict=True)):
        size, bit = shape[axis], 1 << place
        if single & bit:
            span = range(start % size, start % size + 1)
        else:
            cut = slice(None if open_start & bit else start, None if open_end & bit else end, step)
            span = range(*cut.indices(size))
        if not span:
            return
        if list(span) != list(range(size)):
            window[axis % len(shape)] = [span.start, span.stop, span.step]
    found["window"] = window


def _reduced(inside: Inside, node: Node, given: Mapping[str, Any], found: dict[str, Any]) -> None:
    """All spatial axes where an operator reduces them by its name."""
    shape = inside.shape(inside.data(node)[0]) if inside.data(node) else None
    if node.op.startswith("Global") and shape is not None:
        last = inside.channels_last if "data_format" not in given else "last" in str(given["data_format"])
        found["axes"] = list(range(1, len(shape) - 1)) if last else list(range(2, len(shape)))
    if "axes" in found:
        found["axes"] = listed(found["axes"])


_SPECIAL: Mapping[str, Callable[[Inside, Node, Mapping[str, Any], dict[str, Any]], None]] = {
    "AveragePool": _windowed,
    "Clip": _clip,
    "Conv": _windowed,
    "ConvTranspose": _windowed,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "MaxPool": _windowed,
    "RNN": _recurrent,
    "ReduceMax": _reduced,
    "ReduceMean": _reduced,
    "ReduceSum": _reduced,
    "Resize": _resize,
    "Slice": _slice,
}


def listed(value: Any) -> list[int] | None:
    """A number or a list of numbers as a list of ints; None for everything else."""
    if isinstance(value, bool) or value is None or value is ABSENT:
        return None
    if isinstance(value, (int, float)):
        return [int(value)]
    if isinstance(value, (list, tuple)) and all(isinstance(item, (int, float)) for item in value):
        return [int(item) for item in value]
    return None


def _spread(value: Any, rank: int, default: Sequence[int]) -> list[int]:
    values = listed(value)
    if not values:
        return list(default)
    return values * rank if len(values) == 1 else values[-rank:]


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return list(value) if isinstance(value, tuple) else value
