"""Decides how JAX functions that were exported (`jax.export`, a file of `Exported.serialize()`) are run and looked into.

JAX runs the whole program compiled by XLA; for the values inside, the program's StableHLO operators are run one by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks import _jax_program as programs
from trueport.frameworks._base import (
    Arrays,
    EditDict,
    Emit,
    GraphDict,
    NodeDict,
    RunResult,
    SignatureDict,
    SpecDict,
    Unsupported,
)

NAME = "jax"
FORMATS = {"jax": "jax"}
SUFFIXES = {"jax": ".jax"}
VARIANTS = ("default", "op-by-op")
"""The program compiled as a whole, and each of its operators by itself."""
PRECISIONS = ("float32", "float64")
EDITS: tuple[str, ...] = ()
EDIT_FILES: tuple[str, ...] = ()

_ONNX = {
    "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "negate": "Neg", "exponential": "Exp",
    "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt", "abs": "Abs", "floor": "Floor", "ceil": "Ceil",
    "sine": "Sin", "cosine": "Cos", "tan": "Tan", "sign": "Sign", "power": "Pow", "maximum": "Max", "minimum": "Min",
    "remainder": "Mod", "select": "Where", "convert": "Cast", "reshape": "Reshape", "dynamic_reshape": "Reshape",
    "transpose": "Transpose", "concatenate": "Concat", "slice": "Slice", "real_dynamic_slice": "Slice", "pad": "Pad",
    "dynamic_pad": "Pad", "broadcast_in_dim": "Expand", "dynamic_broadcast_in_dim": "Expand", "convolution": "Conv",
    "gather": "Gather", "dynamic_gather": "Gather", "clamp": "Clip", "while": "Loop", "if": "If", "and": "And",
    "or": "Or", "xor": "Xor", "not": "Not", "round_nearest_even": "Round", "output": "Identity", "erf": "Erf",
    "iota": "Range", "dynamic_iota": "Range", "argmax": "ArgMax", "argmin": "ArgMin",
    "get_dimension_size": "Shape", "scatter": "ScatterND",
}  # fmt: skip
_COMPARED = {"EQ": "Equal", "GE": "GreaterOrEqual", "GT": "Greater", "LE": "LessOrEqual", "LT": "Less"}
_REDUCED = {"add": "ReduceSum", "maximum": "ReduceMax", "minimum": "ReduceMin", "multiply": "ReduceProd"}


def sniff(head: bytes, path: Path) -> str | None:
    """Tell a serialised `jax.export.Exported`: a flatbuffer with a StableHLO program inside."""
    return "jax" if programs.is_exported(head) else None


def signature(path: str, *, trust: bool) -> SignatureDict:
    """Describe the function. Raises BadModel, Unsupported."""
    program = programs.load(path)
    for spec in (*program.inputs, *program.outputs):
        if spec["dtype"] not in np.sctypeDict and spec["dtype"] != "bfloat16":
            raise Unsupported(
                f"{path}: '{spec['name']}' holds values of type {spec['dtype']}, which cannot be handed over"
            )
    inputs = [SpecDict(**spec) for spec in program.inputs]
    limits = programs.index_limits(program)
    for spec in inputs:
        if spec["name"] in limits and "int" in spec["dtype"]:
            spec["minimum"], spec["maximum"] = 0, limits[spec["name"]]
    weights = [array for array in program.constants.values() if array.size > 1]
    return SignatureDict(
        inputs=inputs,
        outputs=list(program.outputs),
        meta={
            "producer": f"jax.export, StableHLO {program.version}",
            "function": str(program.exported.fun_name),
            "calling_convention": int(program.exported.calling_convention_version),
            "operators": dict(Counter(op.kind for op in program.body.ops if op.kind != "output")),
            "parameters": int(sum(array.size for array in weights)),
            "precision": "float32",
        },
    )


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, RunResult]:
    """Run every case, R calls each: compiled as a whole, or operator by operator, and so for float64."""
    if precision not in PRECISIONS or variant not in VARIANTS:
        raise Unsupported(f"jax runs no precision '{precision}' with variant '{variant}'")
    program = programs.load(path)
    outputs = [spec["name"] for spec in program.outputs]
    results: dict[str, RunResult] = {}
    for case, arrays in cases.items():
        rows = []
        for row in _rows(program, arrays):
            if precision == "float64" or variant == "op-by-op":
                found = _evaluate(program, row, {}, outputs, wide=precision == "float64")
                rows.append([found[name] for name in outputs])
            else:
                rows.append(_compiled(program, row))
        results[case] = {name: _stack([row[place] for row in rows]) for place, name in enumerate(outputs)}
    return results


def _rows(program: programs.Program, arrays: Arrays) -> list[Arrays]:
    names = [spec["name"] for spec in program.inputs]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"no value for input {', '.join(missing)}; the function takes {', '.join(names)}")
    count = len(arrays[names[0]]) if names else 1
    return [{name: np.asarray(arrays[name][index]) for name in names} for index in range(count)]


def _compiled(program: programs.Program, row: Arrays) -> list[np.ndarray]:
    import jax

    from trueport.frameworks import _jax_ops as operators

    exported = program.exported
    with operators.wide_numbers(_has_wide(program)):
        flat = [row[spec["name"]].astype(aval.dtype) for spec, aval in zip(program.inputs, exported.in_avals)]
        args, kwargs = jax.tree_util.tree_unflatten(exported.in_tree, flat)
        return [_plain(value) for value in jax.tree_util.tree_leaves(exported.call(*args, **kwargs))]


def _has_wide(program: programs.Program) -> bool:
    avals = (*program.exported.in_avals, *program.exported.out_avals)
    arrays = program.constants.values()
    made = (np.dtype(kind.dtype) for op in program.body.ops for kind in op.types if kind.dtype in np.sctypeDict)
    return any(str(item).endswith("64") and str(item) != "complex64" for item in (
        *(np.dtype(aval.dtype) for aval in avals), *(array.dtype for array in arrays), *made
    ))  # fmt: skip


def _plain(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _stack(rows: Sequence[np.ndarray]) -> Any:
    return np.stack(rows) if len({row.shape for row in rows}) == 1 else list(rows)


def _evaluate(
    program: programs.Program, row: Arrays, given: Arrays, wanted: Sequence[str], *, wide: bool = False
) -> dict[str, np.ndarray]:
    """Values of one run, operator by operator; who reads a value in `given` gets that one."""
    from trueport.frameworks import _jax_ops as operators

    evaluator = operators.Evaluator(program.constants, _symbols(program, row, given), wide=wide)
    dtypes = {spec["name"]: spec["dtype"] for spec in program.inputs}
    found: dict[str, np.ndarray] = {}
    with operators.wide_numbers(wide or _has_wide(program)):
        env: dict[str, Any] = {name: _typed(array, dtypes[name], evaluator) for name, array in row.items()}
        types = {name: kind.dtype for op in program.body.ops for name, kind in zip(op.outputs, op.types)}
        for name, array in given.items():
            env[name] = _typed(array, types.get(name, dtypes.get(name, str(array.dtype))), evaluator)
        for op in programs.needed(program.body.ops, wanted, given):
            missing = [name for name in programs.reads(op) if name not in env and name not in program.constants]
            if missing:
                raise ValueError(f"no value for input {missing[0]}, on which {', '.join(list(wanted)[:3])} depends")
            for name, value in zip(op.outputs, evaluator.step(op, env)):
                if name in wanted:
                    found[name] = _plain(value)
                if name not in given:
                    env[name] = value
    return found


def _symbols(program: programs.Program, row: Arrays, given: Arrays) -> dict[str, Any]:
    """Open sizes, as the inputs have them, or else as the values that were put in have them."""
    from trueport.frameworks import _jax_sizes as sizes

    found = sizes.symbols_of(program.inputs, row)
    every = {size for spec in program.inputs for size in spec["shape"] or () if isinstance(size, str)}
    left = sorted(every - set(found))
    if len(left) == 1 and left[0].isidentifier() and given:
        seen = {name: array.shape for name, array in given.items()}
        solved = sizes.solve(left[0], seen, {size: _shapes(program, {**found, left[0]: size}) for size in (5, 12)})
        found.update({} if solved is None else {left[0]: solved})
    return found


def _shapes(program: programs.Program, symbols: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of every value for these open sizes; nothing is computed."""
    import jax

    from trueport.frameworks import _jax_ops as operators
    from trueport.frameworks import _jax_sizes as sizes

    evaluator = operators.Evaluator(program.constants, symbols)

    def whole(row: Any) -> dict[str, Any]:
        env = dict(row)
        for op in program.body.ops:
            env.update(zip(op.outputs, evaluator.step(op, env)))
        return env

    with operators.wide_numbers(_has_wide(program)):
        row = {
            spec["name"]: jax.ShapeDtypeStruct([sizes.value(size, symbols) for size in spec["shape"] or ()], aval.dtype)
            for spec, aval in zip(program.inputs, program.exported.in_avals)
        }
        return {name: tuple(value.shape) for name, value in jax.eval_shape(whole, row).items()}


def _typed(array: np.ndarray, dtype: str, evaluator: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(array, dtype=evaluator.dtype(dtype) if dtype in np.sctypeDict or dtype == "bfloat16" else None)


def names(path: str, *, trust: bool) -> list[str]:
    """Names of all values that operators give, in execution order, outputs included."""
    return [name for op in programs.load(path).body.ops for name in op.outputs]


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int, trust: bool) -> dict[str, Any]:
    """Emit the wanted values in windows of at most `budget` bytes. Raises Unsupported for an unknown name."""
    return replay(path, inputs, {}, wanted, emit, variant="", budget=budget, trust=trust)


def replay(
    path: str,
    inputs: Arrays,
    given: Arrays,
    wanted: Sequence[str],
    emit: Emit,
    *,
    variant: str,
    budget: int,
    trust: bool,
) -> dict[str, Any]:
    """Compute the wanted values with the given ones put in, operator by operator.

    Raises Unsupported for unknown names and for another variant than that, ValueError for a missing input.
    """
    if variant not in ("", "op-by-op"):
        raise Unsupported("a compiled JAX program cannot be cut open; its operators are run one by one instead")
    program = programs.load(path)
    own = [spec["name"] for spec in program.inputs]
    known = {*own, *(name for op in program.body.ops for name in op.outputs)}
    unknown = [name for name in (*given, *wanted) if name not in known]
    if unknown:
        raise Unsupported(f"the function has no value '{unknown[0]}'")
    counts = {len(array) for array in (*inputs.values(), *given.values())} or {1}
    if len(counts) > 1:
        raise ValueError(f"the given arrays have different numbers of runs: {', '.join(map(str, sorted(counts)))}")
    runs = counts.pop()

    def once(index: int, some: Sequence[str]) -> dict[str, np.ndarray]:
        row = {name: np.asarray(array[index]) for name, array in inputs.items() if name in own}
        return _evaluate(program, row, {name: np.asarray(array[index]) for name, array in given.items()}, some)

    for name in dict.fromkeys(wanted):
        if name in own:  # nothing computes it
            emit(name, np.asarray(inputs[name] if name in inputs else given[name]))
    names = [name for name in dict.fromkeys(wanted) if name not in own]
    skipped: dict[str, str] = {}
    for window in _windows(once, names, runs, budget):
        rows = [once(index, window) for index in range(runs)]
        for name in window:
            stacked = _stack([row[name] for row in rows])
            if isinstance(stacked, list):
                skipped[name] = "its shape differs between runs"
            else:
                emit(name, stacked)
    return {"skipped": skipped}


def _windows(once: Any, names: Sequence[str], runs: int, budget: int) -> list[list[str]]:
    """Groups of names whose values, over all runs, fit the budget together; a larger single value stands alone."""
    if len(names) < 2:
        return [list(names)] if names else []
    sizes = {name: array.nbytes * runs for name, array in once(0, names).items()}
    made: list[list[str]] = []
    room = 0
    for name in names:
        if not made or sizes[name] > room:
            made.append([])
            room = budget
        made[-1].append(name)
        room -= sizes[name]
    return made


def graph(path: str, *, trust: bool) -> GraphDict:
    """The program's operators, calls unfolded; what loops and branches hold inside is not shown."""
    program = programs.load(path)
    nodes = [
        NodeDict(
            name=op.name,
            op=_onnx_name(op),
            native_op=op.kind,
            inputs=programs.reads(op),
            outputs=list(op.outputs),
            attributes=op.attributes,
        )
        for op in program.body.ops
    ]
    return GraphDict(
        nodes=nodes,
        inputs=[spec["name"] for spec in program.inputs],
        outputs=[spec["name"] for spec in program.outputs],
        constants={
            name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in program.constants.items()
        },
    )


def _onnx_name(op: programs.Op) -> str:
    from trueport.frameworks import _jax_ops as operators

    if op.kind == "compare":
        return _COMPARED.get(op.attributes["comparison_direction"], op.kind)
    if op.kind in ("reduce", "reduce_window"):
        fold = operators.fold_of(op.blocks[0]) or ""
        return (
            ("MaxPool" if fold == "maximum" else op.kind) if op.kind == "reduce_window" else _REDUCED.get(fold, op.kind)
        )
    if op.kind == "dot_general":
        numbers = op.attributes["dot_dimension_numbers"]
        batch = list(range(len(numbers["lhs_batching_dimensions"])))
        rank = len(op.types[0].shape)
        plain = (
            numbers["lhs_batching_dimensions"] == numbers["rhs_batching_dimensions"] == batch
            and numbers["rhs_contracting_dimensions"] == [len(batch)]
            and numbers["lhs_contracting_dimensions"] == [rank - 1]
        )
        return "MatMul" if plain else "Einsum"
    return _ONNX.get(op.kind, op.kind)


def parameters(path: str, emit: Emit, *, trust: bool) -> dict[str, Any]:
    """Emit every constant under its name in `graph`."""
    program = programs.load(path)
    for name, array in program.constants.items():
        emit(name, _plain(array))
    return {"count": len(program.constants)}


def edit(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
    """Refuse: a compiled export is made anew from its source code."""
    raise Unsupported("an exported JAX function is not edited; change its source code and export it again")


def materialise(
    factory: str, checkpoint: str | None, example: Any, out: str, paths: Sequence[str], trust: bool
) -> SignatureDict:
    """Call `package.module:factory`, export what it returns to `out`, and describe it; see `_jax_factory`."""
    from trueport.frameworks import _jax_factory as factories

    notes = factories.materialise(factory, checkpoint, example, out, paths, trust=trust)
    described = signature(out, trust=trust)
    described["meta"]["notes"] = notes
    return described
