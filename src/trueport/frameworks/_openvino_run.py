"""Runs OpenVINO models on the CPU: whole, with inner values shown, and cut into parts. Runs in a worker.

Arithmetic is pinned to float32: left alone, the CPU plugin computes in bfloat16 where the processor can.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from trueport.frameworks._base import Arrays, Emit, RunResult, Unsupported
from trueport.frameworks._openvino_file import (
    ELEMENTS,
    Opened,
    Value,
    core,
    dtype_of,
    key,
    opened,
    read,
    reason,
)

VARIANTS = ("default", "single-thread", "no-snippets", "unfused")
"""default: the CPU plugin as shipped, in float32; single-thread: with one thread; no-snippets: without kernels that are
generated for chains of operators; unfused: every inner value is an output, which keeps operators from being fused."""
_SETTINGS: dict[str, dict[str, Any]] = {
    "single-thread": {"INFERENCE_NUM_THREADS": 1},
    "no-snippets": {"SNIPPETS_MODE": "DISABLE"},
}


def compiled(model: Any, variant: str) -> Any:
    """Compile for the CPU. Raises Unsupported for what the plugin has no kernel for."""
    given = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", **_SETTINGS.get(variant, {})}
    try:
        return core().compile_model(model, "CPU", given)
    except Exception as error:
        raise Unsupported(f"the CPU plugin of OpenVINO cannot compile this model: {reason(error)}") from error


class Runner:
    """A compiled model. `inputs`: name -> OpenVINO's element type; `count`: how many outputs the caller asked for."""

    def __init__(self, model: Any, inputs: Sequence[str], variant: str) -> None:
        self.compiled = compiled(model, variant)
        self.names = list(inputs)
        self.elements = [dtype_of(port) for port in self.compiled.inputs]
        self.request = self.compiled.create_infer_request()
        self.stateful = bool(self.request.query_state())

    def call(self, one: Arrays) -> list[np.ndarray]:
        """One run from the initial state; results are the caller's own arrays, in order of the outputs."""
        feeds: dict[Any, np.ndarray] = {}
        for place, (name, dtype) in enumerate(zip(self.names, self.elements)):
            feeds[place] = np.ascontiguousarray(one[name].astype(dtype, copy=False))
        if self.stateful:
            self.request.reset_state()
        try:
            self.request.infer(feeds)
        except Exception as error:
            raise _refused(error, one) from error
        return [np.array(self.request.get_output_tensor(place).data) for place in range(len(self.compiled.outputs))]


def _refused(error: Exception, one: Arrays) -> Exception:
    """What OpenVINO says to shapes that do not fit is the caller's mistake; all else is its own failure."""
    said = str(error)
    if "is not compatible with" in said or ("shape" in said.lower() and "input tensor" in said.lower()):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in one.items())
        return ValueError(f"the model does not take inputs of these shapes: {shapes} ({reason(error)})")
    return RuntimeError(f"OpenVINO could not run the model: {reason(error)}")


def check_types(one: Opened) -> None:
    """Raise Unsupported where an input or output holds what NumPy has no type for."""
    ports = [*zip(one.input_names, one.inputs), *zip(one.output_names, one.results)]
    for name, port in ports:
        if dtype_of(port) not in ELEMENTS:
            raise Unsupported(f"'{name}' holds {dtype_of(port)}; inputs and outputs of that type are not supported")


@functools.lru_cache(maxsize=4)
def _shared(one: Opened, variant: str, precision: str) -> Runner:
    check_types(one)
    model = one.model
    if variant == "unfused" or precision != "float32":
        model = read(one.path)
    if precision == "float16":
        _round_weights(model)
    if variant == "unfused":
        copy = Opened(model, one.path)
        model.add_outputs([value.output for value in copy.values.values() if not _given_out(copy, value.output)])
    return Runner(model, one.input_names, variant)


def _given_out(one: Opened, output: Any) -> bool:
    places = [(key(port.get_node()), port.get_index()) for port in one.results]
    return (key(output.get_node()), output.get_index()) in places


def _round_weights(model: Any) -> None:
    """Round every stored float32 to float16."""
    from openvino import op

    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().get_type_name() == "f32":
            rounded = np.array(node.get_data()).astype(np.float16).astype(np.float32)
            node.output(0).replace(op.Constant(rounded, shared_memory=False).output(0))
    model.validate_nodes_and_infer_types()


def run_case(path: str, arrays: Arrays, variant: str, precision: str) -> RunResult:
    """Run one case. Raises ValueError for unknown or missing inputs and shapes that do not fit."""
    one = opened(path)
    runner = _shared(one, variant, precision)
    runs = count_runs(one, arrays)
    found: list[list[np.ndarray]] = [[] for _ in one.output_names]
    for number in range(runs):
        results = runner.call({name: array[number] for name, array in arrays.items()})
        for values, value in zip(found, results):
            values.append(value)
    return {name: stacked(values) for name, values in zip(one.output_names, found)}


def stacked(values: list[np.ndarray]) -> Any:
    """[R, *shape], or the list where shapes differ between runs."""
    return np.stack(values) if len({value.shape for value in values}) == 1 else values


def count_runs(one: Opened, arrays: Arrays) -> int:
    """R of a case that holds exactly the inputs of the model."""
    unknown, missing = sorted(set(arrays) - set(one.input_names)), [n for n in one.input_names if n not in arrays]
    if unknown or missing:
        problem = f"has no input '{unknown[0]}'" if unknown else f"needs a value for its input '{missing[0]}'"
        raise ValueError(f"the model {problem}; its inputs are {', '.join(one.input_names) or 'none'}")
    for name, port in zip(one.input_names, one.inputs):
        shape = port.get_partial_shape()
        if not shape.rank.is_dynamic and shape.rank.get_length() != arrays[name].ndim - 1:
            raise ValueError(f"input '{name}' takes {shape}, and got {list(arrays[name].shape[1:])}")
    return _same_count(arrays)


def _same_count(arrays: Mapping[str, np.ndarray]) -> int:
    counts = {len(array) for array in arrays.values()} or {1}
    if len(counts) > 1:
        raise ValueError(f"the values given to the model hold different numbers of runs: {sorted(counts)}")
    return counts.pop()


# -- looking inside ---------------------------------------------------------------------------------------------------


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int) -> dict[str, Any]:
    """Emit wanted values [R, *shape], each an output of the model, in windows that hold at most `budget` bytes.

    Returns {"windows", "skipped": name -> why}.
    """
    one = opened(path)
    check_types(one)
    known = {**one.values}
    unknown = [name for name in wanted if name not in known and name not in one.input_names]
    if unknown:
        raise ValueError(f"the model has no value '{unknown[0]}' that can be shown")
    runs = count_runs(one, inputs)
    for name in dict.fromkeys(wanted):
        if name not in known:
            emit(name, np.asarray(inputs[name]))
    names = [name for name in dict.fromkeys(wanted) if name in known]
    costs = _costs(one, inputs, names, runs)
    groups = windows(costs, budget)
    skipped: dict[str, str] = {}
    for group in groups:
        skipped.update(_show(one.path, inputs, group, emit, runs))
    return {"windows": len(groups), "skipped": skipped}


def _costs(one: Opened, inputs: Arrays, names: Sequence[str], runs: int) -> dict[str, int | None]:
    """Bytes of each value over all runs, from the shapes that OpenVINO works out; None where it cannot."""
    model = read(one.path)
    try:
        model.reshape({place: list(inputs[name].shape[1:]) for place, name in enumerate(one.input_names)})
    except RuntimeError:
        return dict.fromkeys(names)
    values = Opened(model, one.path).values
    found: dict[str, int | None] = {}
    for name in names:
        value = values.get(name)
        shape = None if value is None else value.output.get_partial_shape()
        if value is None or shape is None or shape.is_dynamic:
            found[name] = None
        else:
            count = int(np.prod([int(size) for size in shape.to_shape()], dtype=np.int64))
            found[name] = count * np.dtype(value.dtype).itemsize * (runs + 1)
    return found


def windows(costs: Mapping[str, int | None], budget: int) -> list[list[str]]:
    """Cut the names, in order, into groups whose costs sum to at most `budget`; what is larger, or not known, stands alone."""
    made: list[list[str]] = []
    room = 0
    for name, cost in costs.items():
        if not made or cost is None or cost > room:
            made.append([])
            room = budget
        made[-1].append(name)
        room = room - cost if cost is not None else 0
    return made


def _show(path: str, inputs: Arrays, group: list[str], emit: Emit, runs: int) -> dict[str, str]:
    import openvino

    one = Opened(read(path), path)
    results = [openvino.opset1.result(one.values[name].output) for name in group]
    runner = _part(results, one.model, one.input_names)
    return _collect(runner, ({n: a[i] for n, a in inputs.items()} for i in range(runs)), runs, group, emit)


def _part(results: list[Any], model: Any, names: Sequence[str], variant: str = "default") -> Runner:
    """A model of these results and all of the inputs."""
    import openvino

    parameters = model.get_parameters()
    try:
        part = openvino.Model(results, model.get_sinks(), parameters, "part")
    except TypeError:
        part = openvino.Model(results, parameters, "part")
    return Runner(part, names, variant)


def _collect(runner: Runner, feeds: Iterable[Arrays], runs: int, names: Sequence[str], emit: Emit) -> dict[str, str]:
    """Run R calls, emit what can be stacked; name -> why for the rest."""
    kept: dict[str, np.ndarray] = {}
    skipped: dict[str, str] = {}
    for number, one in enumerate(feeds):
        for name, value in zip(names, runner.call(one)):
            if name not in kept:
                kept[name] = np.empty((runs, *value.shape), value.dtype)
            if kept[name].shape[1:] == value.shape:
                kept[name][number] = value
            else:
                skipped[name] = "its shape differs between runs"
    for name in list(kept):
        array = kept.pop(name)
        if name not in skipped:
            emit(name, array)
    return skipped


# -- cutting ----------------------------------------------------------------------------------------------------------


def replay(
    path: str, inputs: Arrays, given: Arrays, wanted: Sequence[str], emit: Emit, *, variant: str, budget: int
) -> dict[str, Any]:
    """Emit wanted values, computed by the part of the model behind `given`. Returns {"skipped": name -> why}."""
    shared = opened(path)
    known = {*shared.values, *shared.input_names}
    unknown = [name for name in (*given, *wanted) if name not in known]
    if unknown:
        raise ValueError(f"the model has no value '{unknown[0]}'")
    skipped: dict[str, str] = {}
    computed = []
    for name in dict.fromkeys(wanted):
        if name in shared.values:
            computed.append(name)
        elif name in inputs:
            emit(name, np.asarray(inputs[name]))
        else:
            raise ValueError(f"the model needs a value for its input '{name}'")
    if computed:
        # All at once where the memory allows: one compilation. The sizes are those of the values given, roughly.
        for group in _groups(shared, computed, {**inputs, **given}, budget):
            skipped.update(_replayed(shared, inputs, given, group, emit, variant or "default"))
    return {"skipped": skipped}


def _groups(shared: Opened, names: list[str], arrays: Arrays, budget: int) -> list[list[str]]:
    runs = _same_count(arrays)
    if any(name not in arrays for name in shared.input_names):
        return [[name] for name in names] if len(names) > 1 else [names]
    costs = _costs(shared, {name: arrays[name] for name in shared.input_names}, names, runs)
    return windows(costs, budget)


def _replayed(
    shared: Opened, inputs: Arrays, given: Arrays, wanted: list[str], emit: Emit, variant: str
) -> dict[str, str]:
    import openvino

    one = Opened(read(shared.path), shared.path)
    outputs = {name: one.values[name].output for name in wanted}
    fed = _put_in(one, given)
    results = [openvino.opset1.result(outputs[name]) for name in wanted]
    fed += list(zip(one.input_names, one.model.get_parameters()))
    reached = _reached(results)
    parameters = [(name, node) for name, node in fed if key(node) in reached]
    missing = [name for name, _ in parameters if name not in given and name not in inputs]
    if missing:
        raise ValueError(f"the model needs a value for its input '{missing[0]}'")
    if any(node.get_type_name() in ("ReadValue", "Assign") for node in reached.values()):
        raise Unsupported("a part that reads or writes a state cannot be cut out of an OpenVINO model")
    try:
        part = openvino.Model(results, [node for _, node in parameters], "part")
        runner = Runner(part, [name for name, _ in parameters], variant)
    except (RuntimeError, Unsupported) as error:
        if len(wanted) > 1:
            return _one_by_one(shared, inputs, given, wanted, emit, variant)
        return {wanted[0]: f"it cannot be computed from the values given: {reason(error)}"}
    arrays = {name: given[name] if name in given else inputs[name] for name, _ in parameters}
    runs = _same_count(arrays or {**inputs, **given})
    try:
        feeds = ({name: array[number] for name, array in arrays.items()} for number in range(runs))
        return _collect(runner, feeds, runs, wanted, emit)
    except (RuntimeError, ValueError) as error:
        if len(wanted) > 1:
            return _one_by_one(shared, inputs, given, wanted, emit, variant)
        return {wanted[0]: f"it cannot be computed from the values given: {reason(error)}"}


def _one_by_one(
    shared: Opened, inputs: Arrays, given: Arrays, wanted: list[str], emit: Emit, variant: str
) -> dict[str, str]:
    """What can be computed, when some of the wanted values cannot."""
    skipped: dict[str, str] = {}
    for name in wanted:
        skipped.update(_replayed(shared, inputs, given, [name], emit, variant))
    return skipped


def _put_in(one: Opened, given: Arrays) -> list[tuple[str, Any]]:
    """Let every reader of a given value read a new input instead, and the shapes behind it follow from what is given."""
    import openvino
    from openvino import op

    fed = []
    for name, array in given.items():
        value: Value | None = one.values.get(name)
        output = value.output if value is not None else one.inputs[one.input_names.index(name)]
        parameter = op.Parameter(output.get_element_type(), openvino.PartialShape(list(array.shape[1:])))
        parameter.set_friendly_name(f"given/{name}")
        for reader in output.get_target_inputs():
            reader.replace_source_output(parameter.output(0))
        fed.append((name, parameter))
    for node in one.model.get_ordered_ops():
        if node.get_type_name() not in ("Parameter", "Constant"):
            try:
                node.validate_and_infer_types()
            except RuntimeError:  # outside the part that is wanted, shapes need not fit
                continue
    return fed


def _reached(results: list[Any]) -> dict[str, Any]:
    """Every layer on which these results depend."""
    found: dict[str, Any] = {}
    front = list(results)
    while front:
        node = front.pop()
        if key(node) not in found:
            found[key(node)] = node
            front += [output.get_node() for output in node.input_values()]
    return found
