"""What each StableHLO operator computes, by `jax.lax`: the same program operator by operator, outside of XLA's fusion.

Values may be arrays, or JAX's tracers (then the program becomes part of another JAX function).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._jax_program import Block, Op

_WIDER = {"float32": "float64", "float16": "float64", "bfloat16": "float64"}


class Evaluator:
    """Runs operators on an environment of values. `wide`: in float64 throughout."""

    def __init__(self, constants: Mapping[str, np.ndarray], symbols: Mapping[str, Any], *, wide: bool = False) -> None:
        self.wide = wide
        self.constants = constants
        self.symbols = symbols

    def dtype(self, name: str) -> Any:
        """The dtype in which a value of this declared dtype is computed."""
        import jax.numpy as jnp

        return jnp.dtype(_WIDER.get(name, name) if self.wide else name)

    def constant(self, name: str) -> np.ndarray:
        """A constant of the program."""
        array = self.constants[name]
        return array.astype(_WIDER[array.dtype.name]) if self.wide and array.dtype.name in _WIDER else array

    def get(self, env: Mapping[str, Any], name: str) -> Any:
        """A value by name."""
        return env[name] if name in env else self.constant(name)

    def step(self, op: Op, env: Mapping[str, Any]) -> list[Any]:
        """What the operator gives. Raises Unsupported for one that is not known here."""
        import jax

        handler = HANDLERS.get(op.kind)
        if handler is None:
            raise Unsupported(f"the StableHLO operator {op.kind} ('{op.name}') is not known here")
        given = [self.get(env, name) for name in op.inputs]
        fixed = "sizes" not in op.attributes or all(isinstance(size, int) for size in self.symbols.values())
        if fixed and not op.blocks and given and all(isinstance(item, np.ndarray) for item in given):
            with jax.ensure_compile_time_eval():  # constants stay NumPy's also while JAX traces
                return [np.asarray(item) for item in handler(self, op, given, env)]
        return list(handler(self, op, given, env))

    def body(self, block: Block, env: Mapping[str, Any]) -> Callable[..., Any]:
        """A block as a Python function of its arguments."""

        def call(*arguments: Any) -> tuple[Any, ...]:
            inner = dict(env)
            inner.update(zip(block.arguments, arguments))
            for op in block.ops:
                inner.update(zip(op.outputs, self.step(op, inner)))
            return tuple(self.get(inner, name) for name in block.returns)

        return call


@contextlib.contextmanager
def wide_numbers(wanted: bool) -> Iterator[None]:
    """Let JAX have 64-bit numbers while the context lasts."""
    import jax

    switch = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with switch(True) if wanted else contextlib.nullcontext():
        yield


def _sizes(run: Evaluator, op: Op, given: Sequence[Any], place: int) -> tuple[Any, ...]:
    """List number `place` of the sizes that the program computes; `given`: the operands that hold them, if any do."""
    from trueport.frameworks._jax_sizes import value

    if "sizes" in op.attributes:
        return tuple(value(size, run.symbols) for size in op.attributes["sizes"][place])
    try:
        return tuple(int(item) for item in np.asarray(given[place]).ravel())
    except Exception as error:  # a tracer has no numbers, and which error says so is JAX's own affair
        raise Unsupported(f"in {op.kind} '{op.name}' a size depends on values, not on shapes") from error


def _size(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from trueport.frameworks._jax_sizes import value

    found = [value(size, run.symbols) for size in op.attributes["size"]]
    if not all(isinstance(size, (int, np.integer)) for size in found):
        raise Unsupported(f"'{op.name}' computes with an open size as a number; export the function with fixed sizes")
    return [np.array(found, dtype=np.int32).reshape(op.attributes["shape"])]


def _lax(name: str) -> Callable[..., list[Any]]:
    def handler(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
        from jax import lax

        return [getattr(lax, name)(*given)]

    return handler


def _dimension(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    return [np.array(given[0].shape[op.attributes["dimension"]], dtype=np.int32)]


def _logical(boolean: str, arithmetic: str) -> Callable[..., list[Any]]:
    """`add` of truth values is `or`, `multiply` is `and`."""

    def handler(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
        from jax import lax

        return [getattr(lax, boolean if given[0].dtype == bool else arithmetic)(*given)]

    return handler


def _compare(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    return [getattr(lax, op.attributes["comparison_direction"].lower())(*given)]


def _select(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    wanted, yes, no = given
    if yes.dtype != bool:
        return [lax.select(wanted, yes, no)]
    wanted = lax.broadcast(wanted, yes.shape) if wanted.ndim < yes.ndim else wanted
    # the same in the operators of logic: ONNX Runtime does not choose between truth values
    return [lax.bitwise_or(lax.bitwise_and(wanted, yes), lax.bitwise_and(lax.bitwise_not(wanted), no))]


def _convert(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    return [lax.convert_element_type(given[0], run.dtype(op.types[0].dtype))]


def _broadcast(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    shape = op.types[0].shape if op.kind == "broadcast_in_dim" else _sizes(run, op, given[1:], 0)
    return [lax.broadcast_in_dim(given[0], shape, op.attributes["broadcast_dimensions"])]


def _reshape(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    return [lax.reshape(given[0], op.types[0].shape if op.kind == "reshape" else _sizes(run, op, given[1:], 0))]


def _iota(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    shape = op.types[0].shape if op.kind == "iota" else _sizes(run, op, given, 0)
    return [lax.broadcasted_iota(run.dtype(op.types[0].dtype), shape, op.attributes["iota_dimension"])]


def _slice(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    names = ("start_indices", "limit_indices", "strides")
    if op.kind == "slice":
        return [lax.slice(given[0], *(op.attributes[name] for name in names))]
    return [lax.slice(given[0], *(_sizes(run, op, given[1:], place) for place in range(3)))]


def _dynamic_slice(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    return [lax.dynamic_slice(given[0], given[1:], op.attributes["slice_sizes"])]


def _dynamic_update(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    return [lax.dynamic_update_slice(given[0], given[1], given[2:])]


def _pad(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    names = ("edge_padding_low", "edge_padding_high", "interior_padding")
    if op.kind == "pad":
        widths = [op.attributes[name] for name in names]
    else:
        widths = [_sizes(run, op, given[2:], place) for place in range(3)]
    return [lax.pad(given[0], given[1], list(zip(*widths)))]


def _concatenate(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    return [lax.concatenate(list(given), op.attributes["dimension"])]


def _transpose(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    return [lax.transpose(given[0], op.attributes["permutation"])]


def _reverse(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    return [lax.rev(given[0], op.attributes["dimensions"])]


def _dot(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    numbers = op.attributes["dot_dimension_numbers"]
    axes = [numbers[f"{side}_{what}_dimensions"] for what in ("contracting", "batching") for side in ("lhs", "rhs")]
    made = run.dtype(op.types[0].dtype)
    pairs = ((axes[0], axes[1]), (axes[2], axes[3]))
    return [lax.dot_general(given[0], given[1], pairs, preferred_element_type=made)]


def _convolution(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    at, n = op.attributes, op.attributes["dimension_numbers"]
    left = (n["input_batch_dimension"], n["input_feature_dimension"], *n["input_spatial_dimensions"])
    right = (n["kernel_output_feature_dimension"], n["kernel_input_feature_dimension"], *n["kernel_spatial_dimensions"])
    made = (n["output_batch_dimension"], n["output_feature_dimension"], *n["output_spatial_dimensions"])
    count = len(left) - 2
    kernel = given[1]
    turned = [axis for axis, wanted in zip(n["kernel_spatial_dimensions"], at.get("window_reversal", ())) if wanted]
    if turned:
        kernel = lax.rev(kernel, turned)
    return [
        lax.conv_general_dilated(
            given[0],
            kernel,
            window_strides=at.get("window_strides", [1] * count),
            padding=[tuple(pair) for pair in at.get("padding", [[0, 0]] * count)],
            lhs_dilation=at.get("lhs_dilation", [1] * count),
            rhs_dilation=at.get("rhs_dilation", [1] * count),
            dimension_numbers=lax.ConvDimensionNumbers(left, right, made),
            feature_group_count=at.get("feature_group_count", 1),
            batch_group_count=at.get("batch_group_count", 1),
            preferred_element_type=run.dtype(op.types[0].dtype),
        )
    ]


_FOLDS = {
    "add": "add", "multiply": "mul", "maximum": "max", "minimum": "min", "and": "bitwise_and", "or": "bitwise_or",
}  # fmt: skip


def fold_of(block: Block) -> str | None:
    """The kind of the one operator that a reduction repeats, None for a body of another form."""
    if len(block.ops) != 1 or block.returns != block.ops[0].outputs:
        return None
    op = block.ops[0]
    return op.kind if sorted(op.inputs) == sorted(block.arguments) and op.kind in _FOLDS else None


def _folding(run: Evaluator, op: Op, env: Any) -> tuple[Callable[..., Any], int]:
    from jax import lax

    block = op.blocks[0]
    kind = fold_of(block)
    count = len(op.outputs)
    if kind is not None:
        return getattr(lax, _FOLDS[kind]), count
    call = run.body(block, env)
    if count == 1:
        return (lambda a, b: call(a, b)[0]), 1
    return (lambda a, b: call(*a, *b)), count


def _reduce(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    fold, count = _folding(run, op, env)
    axes = op.attributes["dimensions"]
    if count == 1:
        return [lax.reduce(given[0], given[1], fold, axes)]
    return list(lax.reduce(tuple(given[:count]), tuple(given[count:]), fold, axes))


def _reduce_window(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    fold, count = _folding(run, op, env)
    at = op.attributes
    rank = len(at["window_dimensions"])
    one = [1] * rank
    operands, starts = (given[0], given[1]) if count == 1 else (tuple(given[:count]), tuple(given[count:]))
    made = lax.reduce_window(
        operands,
        starts,
        fold,
        window_dimensions=at["window_dimensions"],
        window_strides=at.get("window_strides", one),
        padding=[tuple(pair) for pair in at.get("padding", [[0, 0]] * rank)],
        base_dilation=at.get("base_dilations", one),
        window_dilation=at.get("window_dilations", one),
    )
    return [made] if count == 1 else list(made)


def _arg(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    axis, largest = op.attributes["axis"], op.kind == "argmax"
    value = (lax.reduce_max if largest else lax.reduce_min)(given[0], (axis,))
    index = (lax.argmax if largest else lax.argmin)(given[0], axis, np.dtype(op.types[1].dtype))
    return [value, index]


def _index_last(indices: Any, place: int) -> Any:
    from jax import numpy as jnp

    return indices[..., None] if place == indices.ndim else jnp.moveaxis(indices, place, -1)


def _gather(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    n = op.attributes["dimension_numbers"]
    fields = ("offset_dims", "collapsed_slice_dims", "start_index_map", "operand_batching_dims")
    numbers = lax.GatherDimensionNumbers(
        **{name: tuple(n[name]) for name in fields},
        start_indices_batching_dims=tuple(n["start_indices_batching_dims"]),
    )
    sizes = op.attributes["slice_sizes"] if op.kind == "gather" else _sizes(run, op, given[2:], 0)
    indices = _index_last(given[1], n["index_vector_dim"])
    return [lax.gather(given[0], indices, numbers, tuple(sizes), mode=lax.GatherScatterMode.CLIP)]


_SCATTERS = {
    "add": "scatter_add", "multiply": "scatter_mul", "maximum": "scatter_max", "minimum": "scatter_min",
}  # fmt: skip


def _scatter(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    block = op.blocks[0]
    kind = fold_of(block)
    replaces = not block.ops and block.returns == block.arguments[1:]
    if len(op.outputs) != 1 or not (replaces or kind in _SCATTERS):
        raise Unsupported(f"scatter '{op.name}' combines values in a way that is not known here")
    n = op.attributes["scatter_dimension_numbers"]
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=tuple(n["update_window_dims"]),
        inserted_window_dims=tuple(n["inserted_window_dims"]),
        scatter_dims_to_operand_dims=tuple(n["scattered_dims_to_operand_dims"]),
        operand_batching_dims=tuple(n["input_batching_dims"]),
        scatter_indices_batching_dims=tuple(n["scatter_indices_batching_dims"]),
    )
    function = getattr(lax, "scatter" if replaces else _SCATTERS[str(kind)])
    indices = _index_last(given[1], n["index_vector_dim"])
    mode = lax.GatherScatterMode.FILL_OR_DROP
    return [function(given[0], indices, given[2], numbers, mode=mode)]


def _sort(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    block = op.blocks[0]
    last = block.ops[-1]
    if last.kind != "compare" or block.returns != last.outputs:
        raise Unsupported(f"sort '{op.name}' compares in a way that is not known here")
    used = {name for inner in block.ops for name in inner.inputs} & set(block.arguments)
    direction = last.attributes["comparison_direction"]
    if used != set(block.arguments[:2]) or direction not in ("LT", "GT"):
        raise Unsupported(f"sort '{op.name}' compares in a way that is not known here")
    axis, stable = op.attributes["dimension"], bool(op.attributes.get("is_stable", False))
    keys = given[0] if direction == "LT" else lax.neg(given[0])
    made = lax.sort((keys, *given), dimension=axis, is_stable=stable, num_keys=1)
    return list(made[1:])


def _while(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    test, body = (run.body(block, env) for block in op.blocks)
    return list(lax.while_loop(lambda state: test(*state)[0], lambda state: body(*state), tuple(given)))


def _branch(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    branches = [run.body(block, env) for block in op.blocks]
    if op.kind == "if":
        return list(lax.cond(given[0], branches[0], branches[1]))
    return list(lax.switch(given[0], branches))


def _custom(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    from jax import lax

    target = op.attributes["call_target_name"]
    known = {"mhlo.erf": lax.erf, "Sharding": lambda value: value}
    if target not in known:
        raise Unsupported(f"the program calls '{target}', which is not known here")
    return [known[target](*given)]


def _same(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
    return list(given)


_NAMES = {
    "abs": "abs", "negate": "neg", "exponential": "exp", "exponential_minus_one": "expm1", "log": "log",
    "log_plus_one": "log1p", "logistic": "logistic", "tanh": "tanh", "tan": "tan", "sine": "sin", "cosine": "cos",
    "sqrt": "sqrt", "rsqrt": "rsqrt", "cbrt": "cbrt", "floor": "floor", "ceil": "ceil", "sign": "sign",
    "not": "bitwise_not", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "is_finite": "is_finite",
    "subtract": "sub", "divide": "div", "power": "pow", "maximum": "max", "minimum": "min", "remainder": "rem",
    "atan2": "atan2", "shift_left": "shift_left", "shift_right_logical": "shift_right_logical",
    "shift_right_arithmetic": "shift_right_arithmetic", "clamp": "clamp", "erf": "erf",
}  # fmt: skip


def _rounded(method: str) -> Callable[..., list[Any]]:
    def handler(run: Evaluator, op: Op, given: Sequence[Any], env: Any) -> list[Any]:
        from jax import lax

        return [lax.round(given[0], getattr(lax.RoundingMethod, method))]

    return handler


HANDLERS: Mapping[str, Callable[..., Sequence[Any]]] = {
    **{kind: _lax(name) for kind, name in _NAMES.items()},
    "add": _logical("bitwise_or", "add"),
    "multiply": _logical("bitwise_and", "mul"),
    "round_nearest_even": _rounded("TO_NEAREST_EVEN"),
    "round_nearest_afz": _rounded("AWAY_FROM_ZERO"),
    "get_dimension_size": _dimension,
    "size": _size,
    "compare": _compare,
    "convert": _convert,
    "select": _select,
    "broadcast_in_dim": _broadcast,
    "dynamic_broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "dynamic_reshape": _reshape,
    "iota": _iota,
    "dynamic_iota": _iota,
    "slice": _slice,
    "real_dynamic_slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "pad": _pad,
    "dynamic_pad": _pad,
    "concatenate": _concatenate,
    "transpose": _transpose,
    "reverse": _reverse,
    "dot_general": _dot,
    "convolution": _convolution,
    "reduce": _reduce,
    "reduce_window": _reduce_window,
    "argmax": _arg,
    "argmin": _arg,
    "gather": _gather,
    "dynamic_gather": _gather,
    "scatter": _scatter,
    "sort": _sort,
    "while": _while,
    "if": _branch,
    "case": _branch,
    "custom_call": _custom,
    "optimization_barrier": _same,
    "output": _same,
}
"""StableHLO operator -> function(evaluator, op, values, environment) that gives the results."""
