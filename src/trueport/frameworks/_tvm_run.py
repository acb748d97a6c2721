"""Compiles Relax functions with LLVM for the CPU and runs them in TVM's virtual machine; cuts parts out of them.

A part is the operators between values that are put in and values that are wanted, built anew operator by operator, so
that every type follows from the shapes that are there. Weights are constants of what is compiled, as in deployment.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trueport.frameworks import _tvm_file
from trueport.frameworks._base import Arrays, Emit, RunResult, Unsupported
from trueport.frameworks._tvm_view import Step, View, type_name

VARIANTS = ("default", "unfused", "unfolded", "unoptimized")
"""default: what `tvm.compile` does by itself; unfused: no operator fusion and no constant folding; unfolded: weights are
arguments, nothing can be worked out ahead; unoptimized: default with LLVM's optimiser off."""

_TARGETS = {"unoptimized": {"kind": "llvm", "opt-level": 0}}


class Compiled:
    """A function in the virtual machine. `weights` are further arguments behind the inputs."""

    def __init__(self, function: Any, weights: Sequence[Any]) -> None:
        self.function = function
        self.weights = weights

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One call; the outputs in order, each a copy of its own."""
        import tvm

        result = self.function(*(tvm.runtime.tensor(np.ascontiguousarray(item)) for item in arrays), *self.weights)
        return [np.array(item.numpy()) for item in _leaves(result)]


def _leaves(result: Any) -> Iterator[Any]:
    if hasattr(result, "numpy"):
        yield result
    else:
        for item in result:
            yield from _leaves(item)


@functools.lru_cache(maxsize=4)
def compiled(path: str, modified: int, variant: str, trust: bool) -> Compiled:
    """The whole model, compiled once for each variant."""
    import tvm
    from tvm import relax

    model = _tvm_file.read(path, trust=trust)
    weights = [tvm.runtime.tensor(array) for array in model.arrays.values()]
    if variant == "unfolded" or not weights:
        return build(model.module, variant, weights)
    parameters = model.module["main"].params[len(model.inputs) :]
    bound = relax.transform.BindParams("main", dict(zip(parameters, weights)))(model.module)
    return build(bound, variant)


def build(module: Any, variant: str, weights: Sequence[Any] = ()) -> Compiled:
    """Compile a module's `main`. Raises Unsupported where TVM has no way to lower an operator."""
    import tvm
    from tvm import relax

    target = tvm.target.Target(_TARGETS.get(variant, {"kind": "llvm"}))
    pipeline = relax.get_pipeline("default_build") if variant == "unfused" else relax.get_default_pipeline(target)
    try:
        made = tvm.compile(module, target, relax_pipeline=pipeline)
    except Exception as error:
        raise Unsupported(f"TVM cannot compile this model: {reason(error)}") from error
    machine = relax.VirtualMachine(made, tvm.cpu())
    return Compiled(machine["main"], list(weights))


def reason(error: BaseException) -> str:
    """The sentence in an exception of TVM's, without its trace."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("File ", "Traceback", "at ", "^"))]
    return (said or [type(error).__name__])[-1][:300]


def run_rows(call: Compiled, inputs: Sequence[np.ndarray], names: Sequence[str]) -> RunResult:
    """R calls; inputs [R, *shape] in the function's order."""
    runs = len(inputs[0]) if inputs else 1
    rows = [call([array[run] for array in inputs]) for run in range(runs)]
    return {name: _stacked([row[place] for row in rows]) for place, name in enumerate(names)}


def _stacked(values: list[np.ndarray]) -> Any:
    return np.stack(values) if len({value.shape for value in values}) == 1 else values


def checked(model: _tvm_file.Model, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The inputs in order, in the model's dtypes. Raises ValueError with one sentence for a missing or unfit one."""
    names = [spec["name"] for spec in model.inputs]
    unknown, missing = sorted(set(arrays) - set(names)), [name for name in names if name not in arrays]
    if unknown or missing:
        problem = f"has no input '{unknown[0]}'" if unknown else f"needs a value for its input '{missing[0]}'"
        raise ValueError(f"{model.path} {problem}; its inputs are {', '.join(names) or 'none'}")
    for spec in model.inputs:
        _check_shape(spec["name"], spec["shape"], arrays[spec["name"]].shape[1:])
    return [np.asarray(arrays[spec["name"]]).astype(spec["dtype"], copy=False) for spec in model.inputs]


def _check_shape(name: str, wanted: Any, given: tuple[int, ...]) -> None:
    if wanted is None:
        return
    fits = len(wanted) == len(given) and all(not isinstance(a, int) or a == b for a, b in zip(wanted, given))
    if not fits:
        raise ValueError(f"input '{name}' has the shape {list(given)}; the model takes {wanted}")


# -- parts


class Part:
    """What is needed to compute `wanted` from `given`: the steps, the inputs that they read, and the symbols' sizes."""

    def __init__(self, view: View, given: Mapping[int, np.ndarray], wanted: Sequence[int]) -> None:
        self.view = view
        self.given = dict(given)
        self.wanted = list(wanted)
        self.skipped: dict[int, str] = {}
        self.steps, self.reads = self._needed()

    def _needed(self) -> tuple[list[Step], set[int]]:
        asked, reads = set(self.wanted), set()
        kept: list[Step] = []
        for step in reversed(self.view.steps):
            if any(n in asked or (n in reads and n not in self.given) for n in step.outputs):
                kept.append(step)
                reads.update(step.reads)
        reads.update(number for number in asked if number not in self.view.producer)
        return kept[::-1], reads

    def inputs(self) -> list[int]:
        """Model inputs that have to be fed."""
        return [number for number in self.view.inputs if number in self.reads and number not in self.given]

    def module(self, shapes: Mapping[int, tuple[int, ...]]) -> tuple[Any, list[int], list[int]]:
        """Build the part for these shapes of what is fed: the module, what it takes, and what it gives, in order."""
        import tvm
        from tvm import relax

        view = self.view
        builder = relax.BlockBuilder()
        feeds = [number for number in shapes if number in self.reads]
        env: dict[int, Any] = {}
        for number in feeds:
            type_ = relax.TensorType(list(shapes[number]), type_name(view.types[number]))
            env[number] = relax.Var(f"fed_{number}", type_)
        computed: dict[int, Any] = {}
        with builder.function("main", [env[number] for number in feeds]):
            with builder.dataflow():
                for number, array in view.constants.items():
                    if number in self.reads and number not in env:
                        env[number] = relax.const(array)
                for step in self.steps:
                    self._emit(builder, step, env, computed)
                gives = [number for number in self.wanted if number in computed]
                result = builder.emit_output(relax.Tuple([computed[number] for number in gives]))
            builder.emit_func_output(result)
        main = builder.get()["main"].with_attr("global_symbol", "main")
        others = {k: v for k, v in view.model.module.functions.items() if k.name_hint != "main"}
        return tvm.IRModule({**others, tvm.ir.GlobalVar("main"): main}), feeds, gives

    def _emit(self, builder: Any, step: Step, env: dict[int, Any], computed: dict[int, Any]) -> None:
        """Emit one operator; what it cannot compute from these shapes goes to `skipped`, with what depends on it."""
        from tvm import relax

        lost = next((number for number in step.reads if number not in env), None)
        why = self.skipped.get(lost, "a value before it is missing") if lost is not None else ""
        if not why:
            try:
                made = builder.emit(rebuilt(self.view, step, env))
                if not hasattr(made.ty, "fields"):
                    parts = [made]
                else:
                    parts = [builder.emit(relax.TupleGetItem(made, place)) for place in range(len(step.outputs))]
                for number, value in zip(step.outputs, parts):
                    computed[number] = value
                    env.setdefault(number, value)
                return
            except Unsupported:
                raise
            except Exception as error:  # noqa: BLE001 -- type inference raises TVM's and Python's errors
                why = f"{step.variable.name} cannot be computed from these shapes: {reason(error)}"
        for number in step.outputs:
            self.skipped.setdefault(number, why)


def rebuilt(view: View, step: Step, env: Mapping[int, Any]) -> Any:
    """The call of a step with operands from `env`."""
    from tvm import relax

    if type(step.call).__name__ == "If":
        raise Unsupported("TVM: a model with a conditional cannot be cut into parts")

    def value_of(value: Any) -> Any:
        kind = type(value).__name__
        tree = view.tree(value)
        if isinstance(tree, int):
            return env[tree]
        if isinstance(tree, list) and None not in tree:
            return relax.Tuple([env[number] for number in view.flat(tree)])
        if kind == "Tuple":
            return relax.Tuple([value_of(item) for item in value.fields])
        return _shape_variable(view, value) if kind in ("Var", "DataflowVar") else value

    operands = [value_of(item) for item in step.call.args]
    return relax.Call(step.call.op, operands, step.call.attrs, list(step.call.ty_args))


def _shape_variable(view: View, variable: Any) -> Any:
    """A variable that holds a shape: its shape, where it is bound to one in plain sight."""
    for block in view.function.body.blocks:
        for binding in block.bindings:
            if binding.var.same_as(variable) and type(binding.value).__name__ == "ShapeExpr":
                return binding.value
    raise Unsupported(
        f"TVM: '{variable.name}' is a shape that is worked out while the model runs; it cannot be cut there"
    )


def sized(view: View, shapes: Mapping[int, tuple[int, ...]]) -> View:
    """The view with open axes fixed to the sizes of what is fed; its values have the same numbers and names."""
    sizes: dict[Any, int] = {}
    for number, shape in shapes.items():
        declared = getattr(view.types[number], "shape", None)
        for item, size in zip(getattr(declared, "values", []), shape):
            if type(item).__name__ == "Var":
                sizes.setdefault(item, int(size))
    if not sizes:
        return view
    main = view.function.bind_symbolic_vars(sizes)
    model = view.model
    module = model.module.clone()
    module.update_func(module.get_global_var("main"), main)
    return View(_tvm_file.Model(model.path, model.facts, module, model.arrays, model.foreign))


def replay_rows(
    view: View, fed: Mapping[int, np.ndarray], wanted: Sequence[int], variant: str, budget: int, emit: Emit
) -> dict[int, str]:
    """Emit each wanted value [R, *shape] as computed from `fed`, at most `budget` bytes at a time; returns what is skipped."""
    view = sized(view, {number: array.shape[1:] for number, array in fed.items()})
    part = Part(view, {n: a for n, a in fed.items() if n not in view.inputs}, wanted)
    feeds = {n: a for n, a in fed.items() if n in part.reads}
    for number in part.inputs():
        if number not in feeds:
            raise ValueError(f"{view.model.path} needs a value for its input '{view.names[number]}'")
    arrays = {n: np.asarray(a).astype(type_name(view.types[n]), copy=False) for n, a in feeds.items()}
    module, takes, gives = part.module({n: a.shape[1:] for n, a in arrays.items()})
    if not gives:
        return {number: part.skipped[number] for number in wanted}
    call = build(module, variant or VARIANTS[0])
    runs = len(next(iter(arrays.values()))) if arrays else max([len(a) for a in fed.values()] or [1])
    _collect(call, [arrays[n] for n in takes], runs, view, gives, budget, emit, part.skipped)
    return {number: why for number, why in part.skipped.items() if number in set(wanted)}


def _collect(
    call: Compiled,
    arrays: Sequence[np.ndarray],
    runs: int,
    view: View,
    gives: Sequence[int],
    budget: int,
    emit: Emit,
    skipped: dict[int, str],
) -> None:
    """Run the rows once for each window of values that fits the budget."""
    waiting = list(range(len(gives)))
    first = call([array[0] for array in arrays])
    while waiting:
        window: list[int] = []
        while waiting and (not window or sum(first[p].nbytes for p in [*window, waiting[0]]) * runs <= budget):
            window.append(waiting.pop(0))
        held: dict[int, list[np.ndarray]] = {place: [first[place]] for place in window}
        for run in range(1, runs):
            row = call([array[run] for array in arrays])
            for place in window:
                held[place].append(row[place])
        for place in window:
            if len({value.shape for value in held[place]}) > 1:
                skipped[gives[place]] = "its shape differs between runs"
            else:
                emit(view.names[gives[place]], np.stack(held[place]))


def with_names(found: Mapping[int, str], view: View) -> dict[str, str]:
    """Skipped values by name."""
    return {view.names[number]: why for number, why in found.items()}


def copies(view: View, arrays: Arrays) -> Arrays:
    """Arrays under the names of copied outputs."""
    return {name: arrays[view.names[number]] for name, number in view.copies() if view.names[number] in arrays}
