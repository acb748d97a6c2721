"""How OpenVINO writes ONNX's arithmetic, activations and products; fills `RULES`. Runs in a worker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._openvino_emit import (
    RULES,
    Attributes,
    Emitter,
    Operand,
    Rule,
    channelwise,
    number,
    scalar,
    whole,
)
from trueport.frameworks._openvino_file import ELEMENTS, dtype_of


def unary(name: str) -> Rule:
    """An operator of one operand without settings."""
    return lambda e, operands, given: e.op(name, operands[0])


def binary(name: str) -> Rule:
    """An operator of two operands; more are folded in from the left."""

    def write(e: Emitter, operands: list[Any], given: Attributes) -> Any:
        if len(operands) < 2:
            raise Unsupported(f"'{name}' takes two operands, and got {len(operands)}")
        result = operands[0]
        for other in operands[1:]:
            if isinstance(result, np.ndarray) and not isinstance(other, np.ndarray):
                result = e.port(_typed(result, other), other)
            elif isinstance(other, np.ndarray) and not isinstance(result, np.ndarray):
                other = e.port(_typed(other, result), result)
            result = e.op(name, result, other)
        return result

    return write


def _typed(array: np.ndarray, like: Any) -> np.ndarray:
    """A constant in the type of the data that it meets."""
    wanted = dtype_of(like)
    return array.astype(wanted) if wanted in ELEMENTS else array


def along(name: str, default: int) -> Rule:
    """An operator along one axis."""
    return lambda e, operands, given: e.op(
        name, operands[0], axis=int(given.get("axis", default)) % max(1, e.rank(operands[0]))
    )


def reduce(name: str) -> Rule:
    """A reduction; without axes over all of them."""

    def write(e: Emitter, operands: list[Any], given: Attributes) -> Any:
        axes = whole(e, operands, given, 1, "axes")
        axes = list(range(e.rank(operands[0]))) if axes is None else axes
        return e.op(name, operands[0], np.asarray(axes, np.int64), keep_dims=bool(given.get("keepdims", 1)))

    return write


# -- element by element -----------------------------------------------------------------------------------------------


def _clip(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    low = number(e, operands, given, 1, "min", -math.inf)
    high = number(e, operands, given, 2, "max", math.inf)
    if low == 0 and math.isinf(high):
        return e.op("relu", operands[0])
    far = float(np.finfo(np.float32).max)
    return e.op("clamp", operands[0], min_value=max(low, -far), max_value=min(high, far))


def _leaky(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return e.op("prelu", operands[0], np.array([float(given.get("alpha", 0.01))], np.float32))


def _hard_sigmoid(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    alpha, beta = float(given.get("alpha", 0.2)), float(given.get("beta", 0.5))
    return e.op("hard_sigmoid", operands[0], scalar(alpha), scalar(beta))


def _selu(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    alpha, gamma = float(given.get("alpha", 1.6732632)), float(given.get("gamma", 1.0507010))
    return e.op("selu", operands[0], scalar(alpha), scalar(gamma))


def _celu(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    alpha = float(given.get("alpha", 1.0))
    inner = e.op("elu", e.op("divide", operands[0], scalar(alpha)), alpha=1.0)
    return e.op("multiply", inner, scalar(alpha))


def _gelu(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    mode = "tanh" if given.get("approximate") in ("tanh", True) else "erf"
    return e.op("gelu", operands[0], approximation_mode=mode)


def _swish(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return e.op("swish", operands[0])


def _softplus(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    beta = float(given.get("beta", 1.0))
    if beta == 1.0:
        return e.op("softplus", operands[0])
    return e.op("divide", e.op("softplus", e.op("multiply", operands[0], scalar(beta))), scalar(beta))


def _log_sigmoid(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return e.op("negative", e.op("softplus", e.op("negative", operands[0])))


def _rsqrt(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return e.op("divide", scalar(1.0), e.op("sqrt", operands[0]))


def _reciprocal(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return e.op("divide", scalar(1.0), operands[0])


def _square(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return e.op("multiply", operands[0], operands[0])


def _thresholded(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    above = e.op("greater", operands[0], scalar(float(given.get("alpha", 1.0))))
    return e.op("select", above, operands[0], e.port(scalar(0.0), operands[0]))


def _prelu(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    """ONNX broadcasts the slope; OpenVINO takes a vector as one number a channel: max(x, 0) + slope * min(x, 0)."""
    zero = scalar(0.0)
    below = e.op("multiply", e.op("minimum", operands[0], zero), operands[1])
    return e.op("add", e.op("maximum", operands[0], zero), below)


def _mod(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return binary("mod" if given.get("fmod") else "floor_mod")(e, operands, given)


def _cast(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    wanted = str(given.get("to", ""))
    if wanted not in ELEMENTS:
        raise Unsupported(f"OpenVINO is not asked to cast to '{wanted}'")
    return e.op("convert", e.port(operands[0]), destination_type=ELEMENTS[wanted])


def _where(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    like = next((item for item in operands[1:] if not isinstance(item, np.ndarray)), None)
    return e.op("select", *[e.port(item, like) for item in operands])


def _identity(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return operands[0]


# -- products -----------------------------------------------------------------------------------------------------------


def _gemm(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    turned = {"transpose_a": bool(given.get("transA", 0)), "transpose_b": bool(given.get("transB", 0))}
    result = e.op("matmul", operands[0], operands[1], **turned)
    if float(given.get("alpha", 1.0)) != 1.0:
        result = e.op("multiply", result, scalar(float(given["alpha"])))
    if len(operands) > 2:
        bias = operands[2]
        if float(given.get("beta", 1.0)) != 1.0:
            bias = e.op("multiply", e.port(bias, result), scalar(float(given["beta"])))
        result = e.op("add", result, bias)
    return result


def _matmul(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    return e.op("matmul", operands[0], operands[1], transpose_a=False, transpose_b=False)


def window(e: Emitter, given: Attributes, rank: int) -> dict[str, list[int]]:
    pads = [int(value) for value in np.ravel(given.get("pads", [0] * (2 * rank)))]
    auto = str(given.get("auto_pad", "NOTSET")).upper()
    if auto not in ("NOTSET", "VALID", "EXPLICIT", "SAME_UPPER", "SAME_LOWER") or len(pads) != 2 * rank:
        raise Unsupported(f"padding {auto} {pads} is not known for {rank} axes")
    return {
        "strides": [int(value) for value in np.ravel(given.get("strides", [1] * rank))],
        "dilations": [int(value) for value in np.ravel(given.get("dilations", [1] * rank))],
        "pads_begin": pads[:rank],
        "pads_end": pads[rank:],
    }


def auto_pad(given: Attributes) -> str:
    auto = str(given.get("auto_pad", "NOTSET")).lower()
    return {"notset": "explicit"}.get(auto, auto)


def _conv(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    group = int(given.get("group", 1))
    spread = window(e, given, e.rank(operands[0]) - 2)
    kernel = operands[1] if group == 1 else _grouped(e, operands[1], group)
    name = "convolution" if group == 1 else "group_convolution"
    result = e.op(name, operands[0], kernel, **spread, auto_pad=auto_pad(given))
    return _biased(e, result, operands[2:])


def _conv_transpose(e: Emitter, operands: list[Any], given: Attributes) -> Any:
    group = int(given.get("group", 1))
    rank = e.rank(operands[0]) - 2
    spread = window(e, given, rank)
    kernel = operands[1] if group == 1 else _grouped(e, operands[1], group)
    name = "convolution_backprop_data" if group == 1 else "group_convolution_backprop_data"
    extra = [int(value) for value in np.ravel(given.get("output_padding", [0] * rank))]
    make = getattr(e.ops, name)
    data = e.port(operands[0])
    node = make(
        data,
        e.port(kernel, data),
        spread["strides"],
        pads_begin=spread["pads_begin"],
        pads_end=spread["pads_end"],
        dilations=spread["dilations"],
        auto_pad=auto_pad(given),
        output_padding=extra,
    )
    return _biased(e, e.made(node), operands[2:])


def _grouped(e: Emitter, kernel: Operand, group: int) -> np.ndarray:
    """[groups * out, in, *spatial] as [groups, out, in, *spatial]."""
    array = e.array(kernel)
    if array is None or array.shape[0] % group:
        raise Unsupported("the kernel of a grouped convolution has to be constant, with as many outputs a group")
    return array.reshape(group, array.shape[0] // group, *array.shape[1:])


def _biased(e: Emitter, result: Any, biases: Sequence[Operand]) -> Any:
    if not biases:
        return result
    return e.op("add", result, channelwise(e, biases[0], e.rank(result)))


RULES.update({
    **{
        name: unary(name.lower())
        for name in ["Abs", "Acos", "Asin", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Log", "Mish", "Relu", "Sigmoid", "Sign", "Sin", "Sinh", "Softsign", "Sqrt", "Tan", "Tanh"]
    },
    **{
        name: binary(ours)
        for name, ours in {
            "Add": "add", "And": "logical_and", "Div": "divide", "Equal": "equal", "Greater": "greater",
            "GreaterOrEqual": "greater_equal", "Less": "less", "LessOrEqual": "less_equal", "Max": "maximum",
            "Min": "minimum", "Mul": "multiply", "Or": "logical_or", "Pow": "power", "Sub": "subtract", "Sum": "add",
            "Xor": "logical_xor",
        }.items()
    },
    **{
        name: reduce(ours)
        for name, ours in {
            "ReduceL1": "reduce_l1", "ReduceL2": "reduce_l2", "ReduceMax": "reduce_max", "ReduceMean": "reduce_mean",
            "ReduceMin": "reduce_min", "ReduceProd": "reduce_prod", "ReduceSum": "reduce_sum",
        }.items()
    },
    "Cast": _cast,
    "Celu": _celu,
    "Clip": _clip,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Elu": lambda e, operands, given: e.op("elu", operands[0], alpha=float(given.get("alpha", 1.0))),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": unary("hswish"),
    "Identity": _identity,
    "LeakyRelu": _leaky,
    "LogSigmoid": _log_sigmoid,
    "LogSoftmax": along("log_softmax", -1),
    "MatMul": _matmul,
    "Mod": _mod,
    "Neg": unary("negative"),
    "Not": unary("logical_not"),
    "PRelu": _prelu,
    "Reciprocal": _reciprocal,
    "Relu6": lambda e, operands, given: _clip(e, operands[:1], {"min": 0.0, "max": 6.0}),
    "Round": lambda e, operands, given: e.op("round", operands[0], mode="half_to_even"),
    "Rsqrt": _rsqrt,
    "Selu": _selu,
    "Silu": _swish,
    "Softmax": along("softmax", -1),
    "Softplus": _softplus,
    "Square": _square,
    "Swish": _swish,
    "ThresholdedRelu": _thresholded,
    "Where": _where,
})  # fmt: skip
