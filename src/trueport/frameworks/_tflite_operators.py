"""Activations, arithmetic, reductions and moves of ONNX's vocabulary, as TFLite writes them. Importing it fills `RULES`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trueport.frameworks import _tflite_emit as emit
from trueport.frameworks._base import Unsupported
from trueport.frameworks._tflite_emit import (
    FAR,
    RULES,
    Attributes,
    Emitter,
    Operand,
    Rule,
    add,
    axis_of,
    div,
    ints,
    mul,
    number,
    reduced,
    sub,
    whole,
)
from trueport.frameworks._tflite_model import DTYPES

Operands = list[Any]

# -- activations ----------------------------------------------------------------------------------------------------


def _clip(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    low = number(e, operands, given, 1, "min", -math.inf)
    return emit.clipped(e, operands[0], low, number(e, operands, given, 2, "max", math.inf))


def _leaky(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    return e.op("LEAKY_RELU", operands[:1], "LeakyReluOptions", alpha=float(given.get("alpha", 0.01)))


def _prelu(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    slope = e.array(operands[1])
    if slope is None:
        raise Unsupported("the slope of PRelu has to be constant in a TFLite file")
    shape = e.shape(operands[0])[1:]
    slope = np.broadcast_to(
        slope.astype(np.float32), [*[1] * (len(shape) - 1), *shape[-1:]] if slope.size == 1 else slope.shape
    )
    while slope.ndim > len(shape):
        slope = slope[0]
    return e.op("PRELU", [operands[0], np.array(slope)])


def _elu(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    alpha = float(given.get("alpha", 1.0))
    return e.op("ELU", operands[:1]) if alpha == 1 else _exponential(e, operands[0], alpha, 1.0)


def _exponential(e: Emitter, data: Operand, alpha: float, gamma: float) -> Operand:
    """gamma * (max(x, 0) + alpha * (exp(min(x, 0)) - 1)), with ELU for the second half: it is exact near zero."""
    negative = mul(e, e.op("ELU", [emit.least(e, data, 0.0)]), alpha)
    total = add(e, e.op("RELU", [data]), negative)
    return total if gamma == 1 else mul(e, total, gamma)


def _selu(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    alpha, gamma = float(given.get("alpha", 1.6732632423543772)), float(given.get("gamma", 1.0507009873554805))
    return _exponential(e, operands[0], alpha, gamma)


def _celu(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    alpha = float(given.get("alpha", 1.0))
    negative = mul(e, e.op("ELU", [mul(e, emit.least(e, operands[0], 0.0), 1 / alpha)]), alpha)
    return add(e, e.op("RELU", operands[:1]), negative)


def _gelu(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    return e.op("GELU", operands[:1], "GeluOptions", approximate=given.get("approximate", "none") in ("tanh", True))


def _softplus(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    """max(x, 0) + log(1 + exp(-|x|)): no exponential overflows."""
    small = e.op("EXP", [e.op("NEG", [e.op("ABS", operands[:1], "AbsOptions")], "NegOptions")], "ExpOptions")
    return add(e, e.op("RELU", operands[:1]), e.op("LOG", [add(e, small, 1.0)]))


def _mish(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    return mul(e, operands[0], e.op("TANH", [_softplus(e, operands, given)]))


def _swish(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    alpha = float(given.get("alpha", 1.0))
    return mul(e, operands[0], e.op("LOGISTIC", [operands[0] if alpha == 1 else mul(e, operands[0], alpha)]))


def _hard_sigmoid(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    alpha, beta = float(given.get("alpha", 0.2)), float(given.get("beta", 0.5))
    return emit.clipped(e, add(e, mul(e, operands[0], alpha), beta), 0.0, 1.0)


def _softsign(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    return div(e, operands[0], add(e, e.op("ABS", operands[:1], "AbsOptions"), 1.0))


def _softmax(code: str, options: str) -> Any:
    def write(e: Emitter, operands: Operands, given: Attributes) -> Operand:
        data, rank = operands[0], len(e.shape(operands[0]))
        axis = axis_of(e, data, given, -1)
        settings = {"beta": float(given.get("beta", 1.0))} if code == "SOFTMAX" else {}
        if axis == rank - 1:
            return e.op(code, [data], options, **settings)
        perm = [other for other in range(rank) if other != axis] + [axis]
        last = e.op(code, [emit.transposed(e, data, perm)], options, **settings)
        return emit.transposed(e, last, np.argsort(perm).tolist())

    return write


ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
"""Coefficients of Abramowitz and Stegun, 7.1.26: wrong by 1.5e-7 at most."""


def _erf(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    x = e.op("ABS", operands[:1], "AbsOptions")
    t = div(e, 1.0, add(e, mul(e, x, 0.3275911), 1.0))
    total: Operand = mul(e, t, ERF[-1])
    for coefficient in ERF[-2::-1]:
        total = mul(e, add(e, total, coefficient), t)
    bell = e.op("EXP", [e.op("NEG", [mul(e, x, x)], "NegOptions")], "ExpOptions")
    return mul(e, e.op("SIGN", operands[:1], "SignOptions"), sub(e, 1.0, mul(e, total, bell)))


# -- reductions and normalisations ----------------------------------------------------------------------------------


def _reduction(code: str) -> Any:
    def write(e: Emitter, operands: Operands, given: Attributes) -> Operand:
        rank = len(e.shape(operands[0]))
        axes = whole(e, operands, given, 1, "axes")
        keep = bool(given.get("keepdims", 1))
        return reduced(
            e, code, operands[0], list(range(rank)) if axes is None else [axis % rank for axis in axes], keep
        )

    return write


def _norm(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    squares = [mul(e, operands[0], operands[0]), *operands[1:]]
    return e.op("SQRT", [_reduction("SUM")(e, squares, given)])


def _lp_normalised(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    data, order = operands[0], int(given.get("p", 2))
    if order not in (1, 2):
        raise Unsupported(f"LpNormalization of order {order} is not written; 1 and 2 are")
    axes = [axis_of(e, data, given, -1)]
    if order == 1:
        return div(e, data, reduced(e, "SUM", e.op("ABS", [data], "AbsOptions"), axes))
    return div(e, data, e.op("SQRT", [reduced(e, "SUM", mul(e, data, data), axes)]))


def _global(code: str) -> Any:
    """Over the axes between the batch and the channels, which come last."""
    return lambda e, operands, given: reduced(e, code, operands[0], list(range(1, len(e.shape(operands[0])) - 1)))


def _extreme(code: str, options: str) -> Any:
    def write(e: Emitter, operands: Operands, given: Attributes) -> Operand:
        axis = axis_of(e, operands[0], given, 0)
        found = e.op(code, [operands[0], ints([axis])], options, dtype="int64", outputType=DTYPES.index("int64"))
        return e.op("EXPAND_DIMS", [found, ints([axis])], "ExpandDimsOptions") if given.get("keepdims", 1) else found

    return write


def _normalised(e: Emitter, data: Operand, axes: list[int], epsilon: float) -> Operand:
    apart = sub(e, data, reduced(e, "MEAN", data, axes))
    variance = reduced(e, "MEAN", mul(e, apart, apart), axes)
    return mul(e, apart, e.op("RSQRT", [add(e, variance, epsilon)]))


def _affine(e: Emitter, data: Operand, scale: Operand | None, shift: Operand | None) -> Operand:
    data = data if scale is None else mul(e, data, scale)
    return data if shift is None else add(e, data, shift)


def _layer_norm(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    rank, axis = len(e.shape(operands[0])), axis_of(e, operands[0], given, -1)
    found = _normalised(e, operands[0], list(range(axis, rank)), float(given.get("epsilon", 1e-5)))
    return _affine(e, found, *[*operands[1:3], None, None][:2])


def _instance_norm(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    rank = len(e.shape(operands[0]))
    found = _normalised(e, operands[0], list(range(1, rank - 1)), float(given.get("epsilon", 1e-5)))
    return _affine(e, found, *[*operands[1:3], None, None][:2])


def _batch_norm(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    """Folded into one factor and one summand per channel, the last axis."""
    scale, shift, mean, variance = (e.array(operand) for operand in operands[1:5])
    if scale is None or shift is None or mean is None or variance is None:
        raise Unsupported("the parameters of BatchNormalization have to be constant in a TFLite file")
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + float(given.get("epsilon", 1e-5)))
    return add(e, mul(e, operands[0], factor), shift - mean * factor)


# -- order and shape ------------------------------------------------------------------------------------------------


def _transpose(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    rank = len(e.shape(operands[0]))
    perm = whole(e, operands, given, 1, "perm")
    return emit.transposed(e, operands[0], list(range(rank))[::-1] if perm is None else perm)


def _reshape(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    shape = whole(e, operands, given, 1, "shape")
    if shape is None:
        raise Unsupported("Reshape needs a 'shape'")
    old = e.shape(operands[0])
    free = [False] * len(old) if isinstance(operands[0], np.ndarray) else e.edit.free(e.tensor(operands[0]))
    new = []
    for place, size in enumerate(shape):
        copied = size == 0 and not given.get("allowzero") and place < len(old)
        new.append((-1 if free[place] and -1 not in shape else old[place]) if copied else size)
    if new.count(-1) > 1:
        raise Unsupported(f"the shape {shape} leaves more than one size open")
    return _to_shape(e, operands[0], new)


def _to_shape(e: Emitter, data: Operand, shape: list[int]) -> int:
    return e.op("RESHAPE", [data, ints(shape)], "ReshapeOptions", newShape=shape)


def _flatten(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    rank = len(e.shape(operands[0]))
    axis = int(given.get("axis", 1)) % (rank + 1)
    after = int(np.prod(e.fixed(operands[0], range(axis, rank), "Flatten"), dtype=np.int64))
    return _to_shape(e, operands[0], [-1, after])


def _squeeze(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    rank, axes = len(e.shape(operands[0])), whole(e, operands, given, 1, "axes")
    if axes is None:
        free = e.edit.free(e.tensor(e.place(operands[0])))
        axes = [axis for axis, size in enumerate(e.shape(operands[0])) if size == 1 and not free[axis]]
    return e.op("SQUEEZE", operands[:1], "SqueezeOptions", squeezeDims=[axis % rank for axis in axes])


def _unsqueeze(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    axes = whole(e, operands, given, 1, "axes") or []
    rank = len(e.shape(operands[0])) + len(axes)
    result: Operand = operands[0]
    for axis in sorted(axis % rank for axis in axes):
        result = e.op("EXPAND_DIMS", [result, ints([axis])], "ExpandDimsOptions")
    return result


def _concat(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    axis = axis_of(e, operands[0], given, 0)
    return e.op("CONCATENATION", operands, "ConcatenationOptions", axis=axis)


def _split(e: Emitter, operands: Operands, given: Attributes) -> list[int]:
    axis = axis_of(e, operands[0], given, 0)
    sizes = whole(e, operands, given, 1, "split")
    count = len(sizes) if sizes is not None else int(given.get("num_outputs", 2))
    if sizes is None:
        (size,) = e.fixed(operands[0], [axis], "Split")
        sizes = [min(-(-size // count), size - place * -(-size // count)) for place in range(count)]
    more: dict[str, Any] = {"results": count, "numSplits": count, "dtype": e.dtype(operands[0])}
    if e.quantised(operands[0]):
        more["grid"] = e.tensor(operands[0])
    return e.ops("SPLIT_V", [operands[0], ints(sizes), ints(axis)], "SplitVOptions", **more)


def _pad(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    pads = whole(e, operands, given, 1, "pads")
    if pads is None:
        raise Unsupported("Pad needs 'pads'")
    rank, axes = len(e.shape(operands[0])), given.get("axes")
    if axes is not None:
        spread = [0] * 2 * rank
        for place, axis in enumerate(axes):
            spread[int(axis) % rank], spread[rank + int(axis) % rank] = pads[place], pads[len(axes) + place]
        pads = spread
    value = number(e, operands, given, 2, "value", 0.0)
    return emit.padded(e, operands[0], pads, value, str(given.get("mode", "constant")))


def _slice(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    rank = len(e.shape(operands[0]))
    if rank == 1 and len(operands) == 3 and e.array(operands[2]) is None:
        return _first_of(e, operands)
    starts, ends = whole(e, operands, given, 1, "starts"), whole(e, operands, given, 2, "ends")
    if starts is None or ends is None:
        raise Unsupported("Slice needs 'starts' and 'ends'")
    axes = whole(e, operands, given, 3, "axes")
    axes = list(range(len(starts))) if axes is None else [axis % rank for axis in axes]
    steps = whole(e, operands, given, 4, "steps") or [1] * len(axes)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise Unsupported("'starts', 'ends', 'axes' and 'steps' of Slice have different lengths")
    low, high, step = [0] * rank, [FAR] * rank, [1] * rank
    for axis, start, end, pace in zip(axes, starts, ends, steps):
        low[axis], high[axis], step[axis] = start, end, pace
    return emit.strided(e, operands[0], low, high, step)


def _first_of(e: Emitter, operands: Operands) -> Operand:
    """The elements of a list before an end that is computed."""
    first = e.array(operands[1])
    if first is None or first.any() or e.dtype(operands[2]) != "int32":
        raise Unsupported("a Slice up to a place that is computed begins at 0, and its end is an int32")
    size = _to_shape(e, operands[2], [1])
    longest = e.shape(operands[0])
    return e.op("SLICE", [operands[0], ints([0]), size], "SliceOptions", known=(longest, [-1]))


def _reverse(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    rank = len(e.shape(operands[0]))
    result: Operand = operands[0]
    axes = whole(e, operands, given, 1, "axes")
    if axes is None:
        axes = [axis_of(e, result, given, 0)]
    for axis in axes:  # some kernels take one axis at a time
        result = e.op("REVERSE_V2", [result, ints([axis % rank])], "ReverseV2Options")
    return result


def _gather(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    axis = axis_of(e, operands[0], given, 0)
    indices = e.array(operands[1])
    size: int = e.shape(operands[0])[axis]
    places = operands[1] if indices is None else ints(np.where(indices < 0, indices + size, indices))
    kind = e.dtype(operands[0])
    more = {"grid": e.tensor(operands[0])} if e.quantised(operands[0]) else {}
    return e.op("GATHER", [operands[0], places], "GatherOptions", axis=axis, dtype=kind, **more)


def _cast(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    to = given.get("to")
    if to not in DTYPES:
        raise Unsupported(f"Cast to '{to}' is not known in TFLite; write NumPy's name of a type")
    old = DTYPES.index(e.dtype(operands[0]))
    return e.op("CAST", operands[:1], "CastOptions", dtype=to, inDataType=old, outDataType=DTYPES.index(to))


def _expand(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    return e.op("BROADCAST_TO", [operands[0], ints(whole(e, operands, given, 1, "shape"))])


def _tile(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    return e.op("TILE", [operands[0], ints(whole(e, operands, given, 1, "repeats"))])


def _depth(code: str, options: str) -> Any:
    def write(e: Emitter, operands: Operands, given: Attributes) -> Operand:
        block, data = int(given["blocksize"]), operands[0]
        if str(given.get("mode", "DCR")) == "CRD":
            channels = e.shape(data)[-1]
            order = np.arange(channels).reshape(-1, block * block).T.ravel()
            data = _gather(e, [data, order], {"axis": -1})
        return e.op(code, [data], options, blockSize=block)

    return write


def _cumsum(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    axis = whole(e, operands, given, 1, "axis") or [0]
    flags = {key: bool(given.get(key, 0)) for key in ("exclusive", "reverse")}
    return e.op("CUMSUM", [operands[0], ints(axis[0])], "CumsumOptions", **flags)


_UNARY = {
    "Abs": ("ABS", "AbsOptions"), "Ceil": ("CEIL", ""), "Cos": ("COS", "CosOptions"), "Exp": ("EXP", "ExpOptions"),
    "Floor": ("FLOOR", ""), "HardSwish": ("HARD_SWISH", "HardSwishOptions"), "Log": ("LOG", ""),
    "Neg": ("NEG", "NegOptions"), "Not": ("LOGICAL_NOT", "LogicalNotOptions"), "Round": ("ROUND", ""),
    "Rsqrt": ("RSQRT", ""), "Sigmoid": ("LOGISTIC", ""), "Sign": ("SIGN", "SignOptions"), "Sin": ("SIN", ""),
    "Sqrt": ("SQRT", ""), "Tanh": ("TANH", ""),
}  # fmt: skip
_BINARY = {
    "Add": ("ADD", "AddOptions"), "Sub": ("SUB", "SubOptions"), "Mul": ("MUL", "MulOptions"),
    "Div": ("DIV", "DivOptions"), "Min": ("MINIMUM", "MaximumMinimumOptions"), "Pow": ("POW", "PowOptions"),
    "Max": ("MAXIMUM", "MaximumMinimumOptions"), "Sum": ("ADD", "AddOptions"), "And": ("LOGICAL_AND", "LogicalAndOptions"),
    "Or": ("LOGICAL_OR", "LogicalOrOptions"),
}  # fmt: skip
_COMPARISONS = {
    "Equal": ("EQUAL", "EqualOptions"), "Greater": ("GREATER", "GreaterOptions"), "Less": ("LESS", "LessOptions"),
    "GreaterOrEqual": ("GREATER_EQUAL", "GreaterEqualOptions"), "LessOrEqual": ("LESS_EQUAL", "LessEqualOptions"),
}  # fmt: skip
_REDUCTIONS = {"Mean": "MEAN", "Sum": "SUM", "Max": "REDUCE_MAX", "Min": "REDUCE_MIN", "Prod": "REDUCE_PROD"}

RULES.update({name: Rule(emit.unary(*how)) for name, how in _UNARY.items()})
RULES.update({name: Rule(emit.binary(*how)) for name, how in _BINARY.items()})
RULES.update({name: Rule(emit.compare(*how)) for name, how in _COMPARISONS.items()})
RULES.update({f"Reduce{name}": Rule(_reduction(code)) for name, code in _REDUCTIONS.items()})
RULES.update({
    "ArgMax": Rule(_extreme("ARG_MAX", "ArgMaxOptions")), "ArgMin": Rule(_extreme("ARG_MIN", "ArgMinOptions")),
    "BatchNormalization": Rule(_batch_norm), "Cast": Rule(_cast),
    "Celu": Rule(_celu), "Clip": Rule(_clip), "Concat": Rule(_concat, True),
    "CumSum": Rule(_cumsum), "DepthToSpace": Rule(_depth("DEPTH_TO_SPACE", "DepthToSpaceOptions"), True),
    "Dropout": Rule(lambda e, operands, given: operands[0], True), "Elu": Rule(_elu), "Erf": Rule(_erf),
    "Expand": Rule(_expand), "Flatten": Rule(_flatten, True), "Gather": Rule(_gather, True), "Gelu": Rule(_gelu),
    "GlobalAveragePool": Rule(_global("MEAN")), "GlobalMaxPool": Rule(_global("REDUCE_MAX"), True),
    "HardSigmoid": Rule(_hard_sigmoid), "Identity": Rule(lambda e, operands, given: operands[0], True),
    "InstanceNormalization": Rule(_instance_norm), "LayerNormalization": Rule(_layer_norm), "LeakyRelu": Rule(_leaky),
    "LogSoftmax": Rule(_softmax("LOG_SOFTMAX", "LogSoftmaxOptions")),
    "LpNormalization": Rule(_lp_normalised),
    "Mish": Rule(_mish), "Pad": Rule(_pad, True), "PRelu": Rule(_prelu),
    "Reciprocal": Rule(lambda e, operands, given: div(e, 1.0, operands[0])), "ReduceL2": Rule(_norm),
    "Relu": Rule(emit.unary("RELU"), True), "Relu6": Rule(emit.unary("RELU6"), True), "Reshape": Rule(_reshape, True),
    "Reverse": Rule(_reverse, True), "Selu": Rule(_selu), "Slice": Rule(_slice, True),
    "Softmax": Rule(_softmax("SOFTMAX", "SoftmaxOptions")), "Softplus": Rule(_softplus), "Softsign": Rule(_softsign),
    "Square": Rule(lambda e, operands, given: mul(e, operands[0], operands[0])),
    "SpaceToDepth": Rule(_depth("SPACE_TO_DEPTH", "SpaceToDepthOptions"), True), "Split": Rule(_split, True),
    "Squeeze": Rule(_squeeze, True), "Swish": Rule(_swish), "Tile": Rule(_tile), "Transpose": Rule(_transpose, True),
    "Unsqueeze": Rule(_unsqueeze, True),
    "Where": Rule(lambda e, operands, given: e.op("SELECT_V2", operands[:3], "SelectV2Options", dtype=e.dtype(operands[1]))),
})  # fmt: skip
RULES["Flip"], RULES["Silu"] = RULES["Reverse"], RULES["Swish"]
