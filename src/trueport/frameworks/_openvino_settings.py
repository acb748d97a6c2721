"""Sets attributes of OpenVINO operators under the names that `graph` shows, or ONNX's. Runs in a worker.

An attribute may be one of the operator, a constant operand, or, where OpenVINO has no such thing there, one more operator
behind it.
"""

from __future__ import annotations

import math
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._openvino_change import Change
from trueport.frameworks._openvino_file import ELEMENTS, array_of, dtype_of
from trueport.frameworks._openvino_ops import MASKS, OPERANDS, WORDS, attributes_of, op_of, raw

CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
POOLS = ("AvgPool", "MaxPool")
RECURRENT = ("LSTMSequence", "GRUSequence", "RNNSequence", "LSTMCell", "GRUCell", "RNNCell")
BEHIND = ("Relu", "Relu6", "Tanh", "Sigmoid", "Elu", "Selu", "Swish", "Silu", "Gelu", "Mish", "Softplus", "Softsign",
          "HardSwish", "Exp", "Softmax")  # fmt: skip
_NAMES = {ours: theirs for theirs, ours in WORDS.items()}
_DEFAULTS: dict[str, Any] = {
    "strides": 1, "dilations": 1, "ceil_mode": 0, "count_include_pad": 0, "keepdims": 0, "approximate": "none",
    "clip": 0.0, "is_causal": 0, "output_padding": 0,
}  # fmt: skip
"""What an attribute that is taken away goes back to."""


def set_attribute(change: Change, node: Any, name: str, value: Any) -> None:
    """Set one attribute of a node. Raises Unsupported, with the reason, when OpenVINO has no such thing there."""
    name = {"dim": "axis", "stride": "strides", "dilation": "dilations", "eps": "epsilon"}.get(name, name)
    value = _DEFAULTS.get(name) if value is None else value
    for fits, write in _WAYS:
        if fits(node, name):
            write(change, node, name, value)
            return
    raise Unsupported(f"{node.get_type_name()} has no attribute '{name}' in an OpenVINO model that could be set")


def _kind(node: Any) -> str:
    return str(node.get_type_name())


def put(node: Any, **values: Any) -> None:
    """Set attributes of the operator itself; shapes follow at the end of an edit."""
    for name, value in values.items():
        node.set_attribute(name, value)


def _numbers(value: Any, count: int, name: str, low: int = 0) -> list[int]:
    found = [int(item) for item in np.ravel(value)]
    found = found * count if len(found) == 1 else found
    if len(found) != count or min(found, default=0) < low:
        raise Unsupported(f"'{name}' takes {count} numbers from {low} on here, and got {value}")
    return found


def _spatial(node: Any) -> int:
    return len(raw(node)["strides"])


# -- windows ----------------------------------------------------------------------------------------------------------


def _pads(change: Change, node: Any, name: str, value: Any) -> None:
    rank = _spatial(node)
    given = [0] * (2 * rank) if value is None else [int(item) for item in np.ravel(value)]
    if name in ("pads_begin", "pads_end"):
        put(node, auto_pad="explicit", **{name: _numbers(given, rank, name)})
        return
    if len(given) == 2 * (rank + 2):  # of all axes; batch and channels get none
        given = [*given[2 : 2 + rank], *given[4 + rank :]]
    given = given * 2 if len(given) == rank else given
    given = _numbers(given, 2 * rank, name)
    put(node, auto_pad="explicit", pads_begin=given[:rank], pads_end=given[rank:])


def _auto_pad(change: Change, node: Any, name: str, value: Any) -> None:
    word = str(value or "explicit").lower()
    word = {"notset": "explicit", "same": "same_upper"}.get(word, word)
    if word not in ("explicit", "valid", "same_upper", "same_lower"):
        raise Unsupported(f"OpenVINO has no padding '{value}'")
    put(node, auto_pad=word)


def _windowed(change: Change, node: Any, name: str, value: Any) -> None:
    own = {"kernel_shape": "kernel"}.get(name, name)
    put(node, **{own: _numbers(value, _spatial(node), name, 0 if name == "output_padding" else 1)})


def _rounding(change: Change, node: Any, name: str, value: Any) -> None:
    put(node, rounding_type="ceil" if value else "floor")


def _include(change: Change, node: Any, name: str, value: Any) -> None:
    own = next((key for key in ("exclude-pad", "exclude_pad") if key in raw(node)), "exclude-pad")
    put(node, **{own: not value})


def _divisor(change: Change, node: Any, name: str, value: Any) -> None:
    """Sums over another number: the mean over the whole window, padding included, times a factor."""
    if value is None:
        return
    count = math.prod(raw(node)["kernel"])
    _include(change, node, "count_include_pad", 1)
    factor = np.array(count / float(value), np.float32)
    change.behind(node.output(0), lambda e, port: e.op("multiply", port, factor))


def _group(change: Change, node: Any, name: str, value: Any) -> None:
    """The kernel is laid out for another number of groups, of which each output reads its own inputs."""
    groups = int(value)
    kernel = change.stored(node, 1)
    if kernel is None:
        raise Unsupported("the kernel of this convolution is computed, so its groups cannot be changed")
    attributes = {key: item for key, item in attributes_of(node).items() if key not in ("group", "kernel_shape")}
    array = array_of(kernel)
    array = array.reshape(-1, *array.shape[2:]) if _kind(node).startswith("Group") else array
    data, fits = node.input_value(0).get_partial_shape()[1], None
    if data.is_static:
        fits = int(data.get_length()) // groups
    if fits is not None and array.shape[1] != fits:
        if array.shape[1] < fits:
            raise Unsupported(f"the kernel has too few inputs for {groups} groups; set it as well, and before")
        array = array[:, :fits]
    operator = "ConvTranspose" if "Backprop" in _kind(node) else "Conv"
    change.replace(node, lambda e: e.emit(operator, [node.input_value(0), array], {**attributes, "group": groups})[0])


# -- constant operands ------------------------------------------------------------------------------------------------


def _slot(node: Any, name: str) -> int | None:
    """The operand that an attribute is."""
    own = {"axes": ("axes", "axis"), "axis": ("axis", "axes"), "split": ("split",)}.get(name, (name,))
    for slot, known in OPERANDS.get(_kind(node), ()):
        if known in own and slot < node.get_input_size():
            return slot
    return None


def _operand(change: Change, node: Any, name: str, value: Any) -> None:
    slot = _slot(node, name)
    assert slot is not None
    if value is None:
        raise Unsupported(f"{_kind(node)} cannot be without '{name}'")
    port = node.input_value(slot)
    dtype = dtype_of(port)
    array = np.asarray(value, dtype if dtype in ELEMENTS else "int64")
    rank = port.get_partial_shape().rank
    if not rank.is_dynamic and rank.get_length() == 1:
        array = np.atleast_1d(array)
    elif not rank.is_dynamic and rank.get_length() == 0 and array.size == 1:
        array = array.reshape(())
    node.input(slot).replace_source_output(change.emitter().port(array, port))


def _all_pads(change: Change, node: Any, name: str, value: Any) -> None:
    given = [int(item) for item in np.ravel(value)]
    half = len(given) // 2
    for slot, part in ((1, given[:half]), (2, given[half:])):
        node.input(slot).replace_source_output(change.emitter().ints(part))


def _pad_mode(change: Change, node: Any, name: str, value: Any) -> None:
    put(node, pad_mode=str(value))


def _pad_value(change: Change, node: Any, name: str, value: Any) -> None:
    data = node.input_value(0)
    operands = [node.input_value(slot) for slot in range(3)]
    given = {"pads": attributes_of(node)["pads"], "mode": "constant", "value": float(value or 0)}
    if node.get_input_size() > 3:
        node.input(3).replace_source_output(change.emitter().port(np.array(given["value"], np.float32), data))
    else:
        change.replace(node, lambda e: e.emit("Pad", operands[:1], given)[0])


def _strided(change: Change, node: Any, name: str, value: Any) -> None:
    """The bits of a mask, or numbers of a window; a number that was ignored counts from then on."""
    count = len(raw(node)["begin_mask"]) or 1
    if name in MASKS:
        put(node, **{name: [int(value) >> place & 1 for place in range(count)]})
        return
    mask = {"starts": "begin_mask", "ends": "end_mask"}.get(name)
    if mask is not None:
        known = attributes_of(node).get(name)
        old = list(raw(node)[mask])
        new = [int(item) for item in np.ravel(value)]
        if isinstance(known, list) and len(known) == len(new):
            put(node, **{mask: [0 if a != b else bit for a, b, bit in zip(known, new, [*old, *[0] * len(new)])]})
    _operand(change, node, name, value)


# -- other words ------------------------------------------------------------------------------------------------------


def _resize(change: Change, node: Any, name: str, value: Any) -> None:
    if name in ("sizes", "scales"):
        e = change.emitter()
        put(node, shape_calculation_mode=name)
        values = np.asarray(value, np.int64 if name == "sizes" else np.float32)
        node.input(1).replace_source_output(e.port(values))
        return
    own = {"cubic_coeff_a": "cube_coeff"}.get(name, name)
    wanted: Any = {"linear": "linear_onnx"}.get(value, value) if name == "mode" else value
    if own == "antialias":
        wanted = bool(value)
    put(node, **{own: float(wanted) if own == "cube_coeff" else wanted})


def _bounds(change: Change, node: Any, name: str, value: Any) -> None:
    """A bound of a Clamp, or of a Relu, which becomes one. Without any bound that counts it is taken out."""
    now = {"min": 0.0, "max": math.inf} if _kind(node) == "Relu" else attributes_of(node)
    bounds = {key: float(now[key]) for key in ("min", "max")}
    bounds[name] = float(value) if value is not None else {"min": -math.inf, "max": math.inf}[name]
    change.replace(node, lambda e: e.emit("Clip", [node.input_value(0)], bounds)[0])


def _slope(change: Change, node: Any, name: str, value: Any) -> None:
    node.input(1).replace_source_output(
        change.emitter().port(np.array([float(value)], np.float32), node.input_value(0))
    )


def _sharper(change: Change, node: Any, name: str, value: Any) -> None:
    """Softmax of the data times a factor."""
    factor = np.array(float(1.0 if value is None else value), np.float32)
    node.input(0).replace_source_output(change.emitter().op("multiply", node.input_value(0), factor))


def _gelu(change: Change, node: Any, name: str, value: Any) -> None:
    put(node, approximation_mode="tanh" if value in ("tanh", True) else "erf")


def _hard_sigmoid(change: Change, node: Any, name: str, value: Any) -> None:
    now = {key: float(attributes_of(node)[key]) for key in ("alpha", "beta")}
    now[name] = float(value)
    change.replace(node, lambda e: e.emit("HardSigmoid", [node.input_value(0)], now)[0])


def _functions(change: Change, node: Any, name: str, value: Any) -> None:
    """All functions of a recurrent operator, or one of its two kinds: of the gates, and of what passes them."""
    named = [str(item).lower() for item in raw(node)["activations"]]
    if name == "activations":
        named = [str(item).lower() for item in value][: len(named)]
    else:
        word = str(value).lower().replace("hard_sigmoid", "hardsigmoid")
        first = name == "recurrent_activation"
        named = [word if (place == 0) == first else item for place, item in enumerate(named)]
    known = ("sigmoid", "tanh", "relu")
    if not set(named) <= set(known):
        raise Unsupported(f"recurrent operators of OpenVINO know {', '.join(known)}, not {', '.join(named)}")
    put(node, activations=named)


def _before_reset(change: Change, node: Any, name: str, value: Any) -> None:
    """Whether the reset gate comes behind the product; its hidden gate then has a bias of its own."""
    wanted, now = bool(value), bool(raw(node)["linear_before_reset"])
    slot = node.get_input_size() - 1
    bias = change.stored(node, slot)
    if wanted == now:
        return
    if bias is None:
        raise Unsupported("the biases of this GRU are computed")
    array = array_of(bias)
    hidden = int(raw(node)["hidden_size"])
    axis = array.ndim - 1
    if wanted:
        changed = np.concatenate([array, np.zeros_like(array[..., :hidden])], axis)
    else:
        changed = array[..., : 3 * hidden].copy()
        changed[..., 2 * hidden :] += array[..., 3 * hidden :]
    node.set_attribute("linear_before_reset", wanted)
    node.input(slot).replace_source_output(change.emitter().port(changed, node.input_value(0)))


def _activation(change: Change, node: Any, name: str, value: Any) -> None:
    """Nothing is fused here: the activation follows as an operator of its own."""
    wanted = str(value or "none").replace("_", "").lower()
    if wanted in ("none", "linear"):
        return
    operator = next((known for known in BEHIND if known.lower() == wanted), None)
    if operator is None:
        raise Unsupported(f"there is no activation '{value}'; it may be one of {', '.join(BEHIND)}")
    change.behind(node.output(0), lambda e, port: e.emit(operator, [port], {})[0])


def _turned(change: Change, node: Any, name: str, value: Any) -> None:
    own = {"transA": "transpose_a", "transB": "transpose_b", "adj_x": "transpose_a", "adj_y": "transpose_b"}
    put(node, **{own.get(name, name): bool(value)})


def _epsilon(change: Change, node: Any, name: str, value: Any) -> None:
    own = next((key for key in ("eps", "epsilon") if key in raw(node)), None)
    if own is None:
        raise Unsupported(f"{_kind(node)} has no epsilon")
    put(node, **{own: float(value)})


def _cast(change: Change, node: Any, name: str, value: Any) -> None:
    if value not in ELEMENTS:
        raise Unsupported(f"OpenVINO does not cast to '{value}'")
    put(node, destination_type=ELEMENTS[value])


def _largest(change: Change, node: Any, name: str, value: Any) -> None:
    put(node, mode="max" if value else "min")


def _blocks(change: Change, node: Any, name: str, value: Any) -> None:
    put(node, mode={"CRD": "depth_first", "DCR": "blocks_first"}.get(str(value), str(value)))


def _reduction(change: Change, node: Any, name: str, value: Any) -> None:
    operator = "ScatterND" if "ND" in _kind(node) else "ScatterElements"
    operands = list(node.input_values())[:3]
    given = {"reduction": str(value or "none")}
    if operator == "ScatterElements":
        given = {**given, "axis": attributes_of(node).get("axis", 0)}
    change.replace(node, lambda e: e.emit(operator, operands, given)[0])


def _axis_of_norm(change: Change, node: Any, name: str, value: Any) -> None:
    rank = int(node.get_input_partial_shape(0).rank.get_length())
    node.input(1).replace_source_output(change.emitter().ints(list(range(int(value) % rank, rank))))


def _own(node: Any, name: str) -> str | None:
    given = raw(node)
    return next((key for key in (name, _NAMES.get(name, name)) if key in given), None)


def _plain(change: Change, node: Any, name: str, value: Any) -> None:
    key = str(_own(node, name))
    old = raw(node)[key]
    if value is None:
        raise Unsupported(f"{_kind(node)} cannot be without '{name}'")
    if isinstance(old, (bool, int, float, str)):
        value = type(old)(value[0] if isinstance(value, list) and len(value) == 1 else value)
    node.set_attribute(key, value)


Fits = Callable[[Any, str], bool]
Write = Callable[[Change, Any, str, Any], None]


def _of(kinds: tuple[str, ...], *names: str) -> Fits:
    return lambda node, name: _kind(node) in kinds and name in names


_WAYS: tuple[tuple[Fits, Write], ...] = (
    (_of((*CONVOLUTIONS, *POOLS), "pads", "padding_widths", "pads_begin", "pads_end"), _pads),
    (_of((*CONVOLUTIONS, *POOLS), "auto_pad", "padding"), _auto_pad),
    (_of((*CONVOLUTIONS, "MaxPool"), "dilations"), _windowed),
    (_of((*CONVOLUTIONS, *POOLS), "strides"), _windowed),
    (_of(CONVOLUTIONS, "output_padding"), _windowed),
    (_of(POOLS, "kernel_shape"), _windowed),
    (_of(POOLS, "ceil_mode"), _rounding),
    (_of(("AvgPool",), "count_include_pad"), _include),
    (_of(("AvgPool",), "divisor_override"), _divisor),
    (_of(CONVOLUTIONS, "group"), _group),
    (_of(("Pad",), "pads"), _all_pads),
    (_of(("Pad",), "mode"), _pad_mode),
    (_of(("Pad",), "value"), _pad_value),
    (_of(("StridedSlice",), *MASKS, "starts", "ends"), _strided),
    (_of(("MVN",), "axis"), _axis_of_norm),
    (lambda node, name: _slot(node, name) is not None, _operand),
    (lambda node, name: _kind(node) == "Interpolate" and name != "axes", _resize),
    (_of(("Clamp", "Relu"), "min", "max"), _bounds),
    (lambda node, name: op_of(node) == "LeakyRelu" and name == "alpha", _slope),
    (_of(("SoftMax", "Softmax"), "beta"), _sharper),
    (_of(("Gelu",), "approximate"), _gelu),
    (_of(("HSigmoid", "HardSigmoid"), "alpha", "beta"), _hard_sigmoid),
    (_of(RECURRENT, "activations", "activation", "recurrent_activation"), _functions),
    (_of(RECURRENT, "linear_before_reset"), _before_reset),
    (lambda node, name: name == "activation" and _kind(node) not in RECURRENT, _activation),
    (_of(("MatMul",), "transpose_a", "transpose_b", "transA", "transB", "adj_x", "adj_y"), _turned),
    (lambda node, name: name == "epsilon", _epsilon),
    (_of(("Convert",), "to"), _cast),
    (_of(("TopK",), "largest"), _largest),
    (_of(("DepthToSpace", "SpaceToDepth"), "mode"), _blocks),
    (_of(("ScatterNDUpdate", "ScatterElementsUpdate"), "reduction"), _reduction),
    (lambda node, name: _own(node, name) is not None, _plain),
)
"""Which attribute of which operator is set how; the first that fits counts."""
