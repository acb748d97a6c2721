"""ONNX operators that compute element by element, reduce or multiply, written as operations of an ML program.

Operands are names of values, arrays that become constants in the type of the data beside them, or None for one that is
absent. What Core ML has no word for is written in several operations; where even that is not exact, it is Unsupported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, Union

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._coreml_editor import Editor
from trueport.frameworks._coreml_program import Type

Operand = Union[str, np.ndarray, None]
Attributes = Mapping[str, Any]
FLOATS = ("float16", "float32")


class Emitter:
    """Writes operations one behind the other; `make` returns the name of the result. `hint`: how their names begin."""

    def __init__(self, editor: Editor, arrays: Mapping[str, np.ndarray], hint: str) -> None:
        self.editor, self.arrays, self.hint = editor, arrays, hint

    def emit(self, operator: str, operands: Sequence[Operand], attributes: Attributes) -> list[str]:
        """Write an ONNX operator; returns the names of its results. Raises Unsupported."""
        maker = MAKERS.get(operator)
        if maker is None:
            raise Unsupported(f"ONNX's {operator} cannot be written as an operation of Core ML here")
        made = maker(self, operands, attributes)
        return made if isinstance(made, list) else [made]

    def make(self, kind: str, *, like: Type | None = None, **arguments: Any) -> str:
        """One operation. Arguments are names of values, or lists of them; None is left out."""
        given = {name: value for name, value in arguments.items() if value is not None}
        first = next((value for value in given.values() if isinstance(value, str)), "")
        output = self.editor.fresh(f"{self.hint}_{kind}")
        self.editor.add(kind, given, output, like=like or self.editor.type(first))
        return output

    def dtype(self, operand: Operand) -> str:
        """The type of numbers that a value holds; floats are those of the data that it meets."""
        return self.editor.type(operand).dtype if isinstance(operand, str) else "float32"

    def rank(self, operand: Operand) -> int:
        """The number of axes. Raises Unsupported where it is not known."""
        return len(self.shape(operand))

    def shape(self, operand: Operand) -> list[int | None]:
        """The shape, None for open sizes. Raises Unsupported where it is not known."""
        found = list(operand.shape) if isinstance(operand, np.ndarray) else self.editor.shape(operand or "")
        if found is None:
            raise Unsupported(f"the shape of '{operand}' is not known")
        return found

    def value(self, operand: Operand, beside: Operand = None) -> str:
        """An operand as a value: an array becomes a constant, floats in the type of `beside`."""
        if isinstance(operand, str):
            return operand
        array = np.asarray(operand)
        kind = self.dtype(beside) if array.dtype.kind == "f" or self.dtype(beside) in FLOATS else "int32"
        if array.dtype.kind == "b":
            kind = "bool"
        return self.editor.constant(array, f"{self.hint}_constant", kind)

    def number(self, value: float, beside: Operand) -> str:
        """One number in the type of `beside`."""
        kind = self.dtype(beside)
        return self.editor.constant(np.array(value), f"{self.hint}_number", kind if kind in FLOATS else "float32")

    def whole(self, value: Any) -> str:
        """Whole numbers: one, or a vector."""
        return self.editor.constant(np.array(value, np.int32), f"{self.hint}_numbers", "int32")

    def flag(self, value: bool) -> str:
        """True or false."""
        return self.editor.constant(np.array(bool(value)), f"{self.hint}_flag", "bool")

    def flags(self, values: Sequence[bool]) -> str:
        """A vector of true and false."""
        return self.editor.constant(np.array(values, bool), f"{self.hint}_flags", "bool")

    def text(self, value: str) -> str:
        """A word."""
        return self.editor.constant(value, f"{self.hint}_text", "str")

    def listed(self, operands: Sequence[Operand], slot: int, attributes: Attributes, name: str) -> list[Any] | None:
        """Numbers from an attribute, or from the operand at `slot`; None where neither is there."""
        given = attributes.get(name)
        if given is None and slot < len(operands) and operands[slot] is not None:
            operand = operands[slot]
            given = self.editor.array(operand) if isinstance(operand, str) else operand
            if given is None:
                raise Unsupported(f"'{name}' must be a constant, and is computed by the model")
        if given is None:
            return None
        return [item.item() for item in np.asarray(given).reshape(-1)]


Maker = Callable[[Emitter, Sequence[Operand], Attributes], Any]


def data(e: Emitter, operands: Sequence[Operand]) -> str:
    """The first operand, which must be a value of the model or becomes a constant."""
    return e.value(operands[0])


# -- element by element -------------------------------------------------------------------------------------------


def _plain(kind: str) -> Maker:
    return lambda e, operands, attributes: e.make(kind, x=data(e, operands))


def _binary(kind: str, result: str | None = None) -> Maker:
    def make(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
        tensors = [one for one in operands if isinstance(one, str)]
        beside = tensors[0] if tensors else None
        names = [e.value(one, beside) for one in operands]
        made = names[0]
        for other in names[1:]:
            like = Type(result or e.dtype(beside), _broadcast(e, made, other))
            made = e.make(kind, like=like, x=made, y=other)
        return made

    return make


def _broadcast(e: Emitter, left: str, right: str) -> tuple[Any, ...] | None:
    shapes = [e.editor.type(name).shape for name in (left, right)]
    if any(shape is None for shape in shapes):
        return None
    short, long = sorted(((*shape,) for shape in shapes if shape is not None), key=len)
    padded = (1,) * (len(long) - len(short)) + short
    return tuple(one if two == 1 else two for one, two in zip(padded, long))


def _numbered(kind: str, *names: tuple[str, str, float]) -> Maker:
    """An operation with numbers: (argument, ONNX attribute, ONNX default)."""

    def make(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
        x = data(e, operands)
        given: dict[str, Any] = {
            argument: e.number(float(attributes.get(name, usual)), x) for argument, name, usual in names
        }
        return e.make(kind, x=x, **given)

    return make


def _clip(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    found = (e.listed(operands, slot, attributes, name) for slot, name in ((1, "min"), (2, "max")))
    low, high = (float(bound[0]) if bound else None for bound in found)
    if low is not None and high is not None:
        return e.make("clip", x=x, alpha=e.number(low, x), beta=e.number(high, x))
    if low == 0:
        return e.make("relu", x=x)
    if low is not None:
        return e.make("maximum", x=x, y=e.number(low, x))
    return e.make("identity", x=x) if high is None else e.make("minimum", x=x, y=e.number(high, x))


def _gelu(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    mode = "EXACT" if attributes.get("approximate", "none") == "none" else "TANH_APPROXIMATION"
    return e.make("gelu", x=data(e, operands), mode=e.text(mode))


def _reciprocal(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    """A quotient: Core ML's own inverse adds an epsilon."""
    x = data(e, operands)
    return e.make("real_div", like=e.editor.type(x), x=e.number(1.0, x), y=x)


def _negative(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    return e.make("mul", x=x, y=e.value(np.array(-1.0 if e.dtype(x) in FLOATS else -1), x))


def _log(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    return e.make("log", x=x, epsilon=e.number(0.0, x))


def _selu(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    bent = e.make("elu", x=x, alpha=e.number(float(attributes.get("alpha", 1.6732632423543772)), x))
    return e.make("mul", x=bent, y=e.number(float(attributes.get("gamma", 1.0507009873554805)), x))


def _hard_swish(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    return e.make("mul", x=x, y=e.make("sigmoid_hard", x=x, alpha=e.number(1 / 6, x), beta=e.number(0.5, x)))


def _mish(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    return e.make("mul", x=x, y=e.make("tanh", x=e.make("softplus", x=x)))


def _prelu(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    kept = e.make("relu", x=x)
    scaled = e.make("mul", x=e.make("sub", x=x, y=kept), y=e.value(operands[1], x))
    return e.make("add", x=kept, y=scaled)


def _where(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    beside = next((one for one in operands[1:] if isinstance(one, str)), None)
    chosen, other = (e.value(one, beside) for one in operands[1:3])
    return e.make("select", like=e.editor.type(chosen), cond=e.value(operands[0]), a=chosen, b=other)


CASTS = {
    1: "fp32",
    6: "int32",
    7: "int32",
    9: "bool",
    10: "fp16",
    "float32": "fp32",
    "int32": "int32",
    "int64": "int32",
    "bool": "bool",
    "float16": "fp16",
}
"""ONNX's number of an element type, or NumPy's name -> Core ML's word for the target of a cast."""
_NAMES = {"fp32": "float32", "fp16": "float16"}


def _cast(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    word = CASTS.get(attributes["to"])
    if word is None:
        raise Unsupported(f"Core ML does not cast to {attributes['to']}")
    x = data(e, operands)
    return e.make("cast", like=Type(_NAMES.get(word, word), e.editor.type(x).shape), x=x, dtype=e.text(word))


# -- products -------------------------------------------------------------------------------------------------------


def _matmul(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    return _product(e, operands[0], operands[1], False, False)


def _product(e: Emitter, left: Operand, right: Operand, turn_left: bool, turn_right: bool) -> str:
    beside = left if isinstance(left, str) else right
    x, y = e.value(left, beside), e.value(right, beside)
    like = Type(e.dtype(beside), None)
    return e.make("matmul", like=like, x=x, y=y, transpose_x=e.flag(turn_left), transpose_y=e.flag(turn_right))


def _gemm(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    turns = (bool(attributes.get("transA", 0)), bool(attributes.get("transB", 0)))
    made = _product(e, operands[0], operands[1], *turns)
    alpha, beta = (float(attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    if alpha != 1.0:
        made = e.make("mul", x=made, y=e.number(alpha, made))
    if len(operands) < 3 or operands[2] is None or beta == 0.0:
        return made
    shift = e.value(operands[2], made)
    if beta != 1.0:
        shift = e.make("mul", x=shift, y=e.number(beta, made))
    return e.make("add", x=made, y=shift)


# -- reductions and normalisations --------------------------------------------------------------------------------------


def _reduce(kind: str) -> Maker:
    def make(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
        x = data(e, operands)
        axes = e.listed(operands, 1, attributes, "axes")
        axes = axes if axes else list(range(e.rank(x)))
        keep = bool(attributes.get("keepdims", 1))
        return e.make(
            kind,
            like=_reduced(e, x, axes, keep),
            x=x,
            axes=e.whole([int(axis) for axis in axes]),
            keep_dims=e.flag(keep),
        )

    return make


def _reduced(e: Emitter, x: str, axes: Sequence[int], keep: bool) -> Type:
    known = e.editor.type(x)
    if known.shape is None:
        return Type(known.dtype, None)
    gone = {axis % len(known.shape) for axis in axes}
    sizes = [1 if axis in gone else size for axis, size in enumerate(known.shape) if keep or axis not in gone]
    return Type(known.dtype, tuple(sizes))


def _global(kind: str) -> Maker:
    def make(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
        axes = list(range(2, e.rank(operands[0])))
        return str(_reduce(kind)(e, operands[:1], {"axes": axes, "keepdims": 1}))

    return make


def _arg(kind: str) -> Maker:
    def make(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
        x, axis = data(e, operands), int(attributes.get("axis", 0))
        keep = bool(attributes.get("keepdims", 1))
        like = Type("int32", _reduced(e, x, [axis], keep).shape)
        return e.make(kind, like=like, x=x, axis=e.whole(axis), keep_dims=e.flag(keep))

    return make


def _softmax(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    return e.make("softmax", x=data(e, operands), axis=e.whole(int(attributes.get("axis", -1))))


def _log_softmax(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x, axis = data(e, operands), int(attributes.get("axis", -1))
    like = _reduced(e, x, [axis], True)
    total = e.make("reduce_log_sum_exp", like=like, x=x, axes=e.whole([axis]), keep_dims=e.flag(True))
    return e.make("sub", x=x, y=total)


def _batch_norm(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    gamma, beta, mean, variance = (e.value(one, x) for one in operands[1:5])
    epsilon = e.number(float(attributes.get("epsilon", 1e-5)), x)
    return e.make("batch_norm", x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=epsilon)


def _layer_norm(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    rank = e.rank(x)
    axes = list(range(int(attributes.get("axis", -1)) % rank, rank))
    gamma = e.value(operands[1], x) if len(operands) > 1 and operands[1] is not None else None
    beta = e.value(operands[2], x) if len(operands) > 2 and operands[2] is not None else None
    epsilon = e.number(float(attributes.get("epsilon", 1e-5)), x)
    return e.make("layer_norm", x=x, axes=e.whole(axes), gamma=gamma, beta=beta, epsilon=epsilon)


def _instance_norm(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x = data(e, operands)
    epsilon = e.number(float(attributes.get("epsilon", 1e-5)), x)
    return e.make("instance_norm", x=x, gamma=e.value(operands[1], x), beta=e.value(operands[2], x), epsilon=epsilon)


def _lp_norm(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    x, axis = data(e, operands), int(attributes.get("axis", -1))
    kind = {1: "reduce_l1_norm", 2: "reduce_l2_norm"}.get(int(attributes.get("p", 2)))
    if kind is None:
        raise Unsupported("Core ML has norms of order 1 and 2 only")
    size = e.make(kind, like=_reduced(e, x, [axis], True), x=x, axes=e.whole([axis]), keep_dims=e.flag(True))
    return e.make("real_div", x=x, y=size)


def _cumsum(e: Emitter, operands: Sequence[Operand], attributes: Attributes) -> str:
    axis = e.listed(operands, 1, attributes, "axis") or [0]
    flags: dict[str, Any] = {name: e.flag(bool(attributes.get(name, 0))) for name in ("exclusive", "reverse")}
    return e.make("cumsum", x=data(e, operands), axis=e.whole(int(axis[0])), **flags)


MAKERS: dict[str, Maker] = {
    **{name: _plain(kind) for name, kind in {
        "Abs": "abs", "Acos": "acos", "Asin": "asin", "Atan": "atan", "Atanh": "atanh", "Ceil": "ceil", "Cos": "cos",
        "Cosh": "cosh", "Erf": "erf", "Exp": "exp", "Floor": "floor", "Identity": "identity", "Not": "logical_not",
        "Relu": "relu", "Round": "round", "Sigmoid": "sigmoid", "Sign": "sign", "Sin": "sin", "Sinh": "sinh",
        "Softplus": "softplus", "Softsign": "softsign", "Sqrt": "sqrt", "Square": "square", "Swish": "silu",
        "Tan": "tan", "Tanh": "tanh",
    }.items()},
    **{name: _binary(kind) for name, kind in {
        "Add": "add", "Div": "real_div", "Max": "maximum", "Min": "minimum", "Mod": "mod", "Mul": "mul", "Pow": "pow",
        "Sub": "sub", "Sum": "add",
    }.items()},
    **{name: _binary(kind, "bool") for name, kind in {
        "And": "logical_and", "Equal": "equal", "Greater": "greater", "GreaterOrEqual": "greater_equal", "Less": "less",
        "LessOrEqual": "less_equal", "Or": "logical_or", "Xor": "logical_xor",
    }.items()},
    **{name: _reduce(kind) for name, kind in {
        "ReduceL1": "reduce_l1_norm", "ReduceL2": "reduce_l2_norm", "ReduceLogSum": "reduce_log_sum",
        "ReduceLogSumExp": "reduce_log_sum_exp", "ReduceMax": "reduce_max", "ReduceMean": "reduce_mean",
        "ReduceMin": "reduce_min", "ReduceProd": "reduce_prod", "ReduceSum": "reduce_sum",
        "ReduceSumSquare": "reduce_sum_square",
    }.items()},
    "ArgMax": _arg("reduce_argmax"),
    "ArgMin": _arg("reduce_argmin"),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "CumSum": _cumsum,
    "Elu": _numbered("elu", ("alpha", "alpha", 1.0)),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global("reduce_mean"),
    "GlobalMaxPool": _global("reduce_max"),
    "HardSigmoid": _numbered("sigmoid_hard", ("alpha", "alpha", 0.2), ("beta", "beta", 0.5)),
    "HardSwish": _hard_swish,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": _numbered("leaky_relu", ("alpha", "alpha", 0.01)),
    "Log": _log,
    "LogSoftmax": _log_softmax,
    "LpNormalization": _lp_norm,
    "MatMul": _matmul,
    "Mish": _mish,
    "Neg": _negative,
    "PRelu": _prelu,
    "Reciprocal": _reciprocal,
    "Selu": _selu,
    "Softmax": _softmax,
    "ThresholdedRelu": _numbered("thresholded_relu", ("alpha", "alpha", 1.0)),
    "Where": _where,
}  # fmt: skip
"""ONNX operator -> how it is written; `_coreml_emit_shapes` adds those that move elements or have a window."""
