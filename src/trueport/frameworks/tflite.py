"""TFLite files in LiteRT: recognise, describe, run with each kernel set, and trace every tensor.

Value names are the file's: an input or output goes by its SignatureDef name where the file has one, so that signature,
run, trace and graph agree; every other tensor by its own name, with `#index` when the name is repeated. Node names are
`INDEX:name of the first output tensor`. Values of quantised tensors cross dequantised, as float32.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueport.frameworks._base import (
    Arrays,
    EditDict,
    Emit,
    GraphDict,
    RunResult,
    SignatureDict,
    SpecDict,
    Unsupported,
)
from trueport.frameworks._tflite_session import (
    NO_KERNEL,
    RESOLVERS,
    Session,
    carries_state,
    check_shape,
    collect,
    refuse_missing_kernels,
    stack,
    stored,
)

if TYPE_CHECKING:
    from trueport.frameworks._tflite_model import Model, Operator, Tensor

NAME = "tflite"
FORMATS = {"tflite": "litert"}
SUFFIXES = {"tflite": ".tflite"}
VARIANTS = ("default", "builtin", "reference", "single-thread")
"""default: as shipped, with XNNPACK; builtin: without delegates; reference: the reference kernels; single-thread: default with one thread."""
PRECISIONS = ("float32",)

EDITS = (
    "set-parameter",
    "add-parameter",
    "set-attribute",
    "set-operator",
    "remove-node",
    "insert",
    "reorder-inputs",
    "set-input",
    "set-dimensions",
    "set-outputs",
    "set-precision",
    "recompute",
)
EDIT_FILES = (
    "_tflite_model",
    "_tflite_ops",
    "_tflite_editor",
    "_tflite_emit",
    "_tflite_operators",
    "_tflite_layers",
    "_tflite_constants",
    "_tflite_settings",
    "_tflite_change",
    "_tflite_kinds",
    "_tflite_edit",
)

_IDENTIFIER = b"TFL3"
_VERSIONS = (1, 2, 3)


def sniff(head: bytes, path: Path) -> str | None:
    """Recognise a TFLite flatbuffer by its identifier, or a file from before it by the shape of its root table."""
    if head[4:8] == _IDENTIFIER:
        return "tflite"
    return "tflite" if path.suffix in (".tflite", ".lite") and _has_model_table(head) else None


def _has_model_table(head: bytes) -> bool:
    """Whether the root is a table of at most 8 fields whose first is a schema version: a Model of the TFLite schema."""
    try:
        (root,) = struct.unpack_from("<I", head, 0)
        (back,) = struct.unpack_from("<i", head, root)
        size, _, first = struct.unpack_from("<HHH", head, root - back)
        (version,) = struct.unpack_from("<I", head, root + first)
    except struct.error:
        return False
    return first > 0 and 6 <= size <= 20 and size % 2 == 0 and root - back >= 4 and version in _VERSIONS


# -- description


def signature(path: str, *, trust: bool) -> SignatureDict:
    """Describe inputs, outputs and what the file says about itself. Raises BadModel, Unsupported."""
    from trueport.frameworks._tflite_ops import index_limits

    model = _open(path)
    refuse_missing_kernels(model)
    inputs, outputs = _user_names(model)
    limits = index_limits(model)
    specs: list[SpecDict] = []
    for index, name in zip(model.inputs, inputs):
        spec = _spec(model.tensors[index], name)
        if index in limits:
            spec["minimum"], spec["maximum"] = 0, limits[index]
        specs.append(spec)
    return {
        "inputs": specs,
        "outputs": [_spec(model.tensors[index], name) for index, name in zip(model.outputs, outputs)],
        "meta": _meta(model),
    }


def _open(path: str) -> Model:
    from trueport.frameworks._tflite_model import open_model

    return open_model(path)


def _user_names(model: Model) -> tuple[list[str], list[str]]:
    """Names of inputs and outputs by position; the same tensor given out twice keeps both of its names."""
    sides = []
    for indices, given in zip((model.inputs, model.outputs), model.signature_names):
        names: list[str] = []
        for position, (index, name) in enumerate(zip(indices, given)):
            name = name or model.tensors[index].name
            names.append(name if name not in names else f"{name}#{position}")
        sides.append(names)
    return sides[0], sides[1]


def _spec(tensor: Tensor, name: str) -> SpecDict:
    if tensor.dtype == "str":
        raise Unsupported(f"'{name}' holds text, and text tensors of TFLite are not handled")
    spec: SpecDict = {
        "name": name,
        "dtype": tensor.dtype if tensor.quantization is None else "float32",
        "shape": None if tensor.dims is None else list(tensor.dims),
    }
    if tensor.quantization is not None:
        spec["quantization"] = {
            "scale": float(tensor.quantization.scale[0]),
            "zero_point": int(tensor.quantization.zero_point[0]),
            "dtype": tensor.dtype,
        }
    return spec


def _meta(model: Model) -> dict[str, Any]:
    from trueport.frameworks._tflite_ops import precision_of

    operators = model.all_operators()
    custom = sorted({operator.code for operator in operators if operator.custom})
    constants = [
        tensor for tensor in model.tensors if tensor.constant and tensor.dtype not in ("int32", "int64", "str", "bool")
    ]
    weights = Counter(tensor.dtype for tensor in constants)
    biases = [
        tensor
        for tensor in model.tensors
        if tensor.constant and tensor.dtype in ("int32", "int64") and tensor.quantization
    ]
    metadata = {_decode(item.name): item.buffer for item in model.root.metadata or ()}
    meta: dict[str, Any] = {
        "producer": _decode(model.root.description),
        "schema_version": int(model.root.version),
        "precision": precision_of(model),
        "operators": dict(Counter(operator.code for operator in operators).most_common()),
        "parameters": sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in (*constants, *biases)),
        "weights": dict(weights),
        "subgraphs": len(model.root.subgraphs),
        "custom_operators": custom,
        "signatures": [_decode(item.signatureKey) for item in model.root.signatureDefs or ()],
        "writes_state": any(operator.code == "ASSIGN_VARIABLE" for operator in model.operators),
        "state": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in model.tensors if t.variable],
    }
    if model.mended:
        meta["notes"] = [
            f"the quantisation axis of {len(model.mended)} one-dimensional tensors is out of range in the file; read as 0"
        ]
    if "min_runtime_version" in metadata:
        meta["min_runtime_version"] = (
            model.buffer(metadata["min_runtime_version"]).tobytes().rstrip(b"\0").decode("ascii", "replace")
        )
    return meta


def _decode(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


# -- running


@lru_cache(maxsize=2)
def _shared_session(model: Model, variant: str) -> Session:
    return Session.of(model, variant)


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, RunResult]:
    """Run every case, R calls each from the initial state.

    Raises ValueError when an input is missing, unknown, or of a shape or type that the file does not take; Unsupported
    for a precision that LiteRT cannot compute in and for operators that it has no kernel for.
    """
    if precision not in PRECISIONS:
        raise Unsupported(f"LiteRT computes a TFLite file in its own precision; it cannot run it in {precision}")
    if variant not in RESOLVERS:
        raise ValueError(f"there is no variant '{variant}'; known are {', '.join(VARIANTS)}")
    model = _open(path)
    refuse_missing_kernels(model)
    results = {}
    for name, arrays in cases.items():
        try:
            results[name] = _run_case(model, variant, arrays)
        except RuntimeError as error:  # after a failed allocation an interpreter stays broken
            _shared_session.cache_clear()
            if any(words in str(error).lower() for words in NO_KERNEL):
                first = str(error).strip().splitlines()[0]
                raise Unsupported(f"LiteRT has no kernel for this model: {first}") from error
            raise
    return results


def _run_case(model: Model, variant: str, arrays: Arrays) -> RunResult:
    _, names = _user_names(model)
    found: list[list[np.ndarray]] = [[] for _ in names]
    for inputs in _rows(model, arrays):
        session = Session.of(model, variant) if carries_state(model) else _shared_session(model, variant)
        session.call(inputs)
        for values, index in zip(found, model.outputs):
            values.append(session.value(index))
    return {name: stack(values) for name, values in zip(names, found)}


def _rows(model: Model, arrays: Arrays) -> Iterator[dict[int, np.ndarray]]:
    """Yield what to store into the input tensors, run by run. Raises ValueError with one sentence."""
    names, _ = _user_names(model)
    unknown, missing = sorted(set(arrays) - set(names)), [name for name in names if name not in arrays]
    if unknown or missing:
        problem = f"has no input '{unknown[0]}'" if unknown else f"needs a value for its input '{missing[0]}'"
        raise ValueError(f"{Path(model.path).name} {problem}; its inputs are {', '.join(names) or 'none'}")
    counts = {len(arrays[name]) for name in names} or {1}
    if len(counts) > 1:
        raise ValueError(f"the inputs of {Path(model.path).name} hold different numbers of runs: {sorted(counts)}")
    for name, index in zip(names, model.inputs):
        check_shape(model.tensors[index], name, arrays[name].shape[1:])
    for number in range(counts.pop()):
        yield {
            index: stored(model.tensors[index], name, arrays[name][number]) for name, index in zip(names, model.inputs)
        }


# -- looking inside


def names(path: str, *, trust: bool) -> list[str]:
    """Names of all values that the nodes of `graph` write, in execution order."""
    model = _open(path)
    widened = _widened(model)
    return [model.tensors[index].name for index in _traceable(model) if index not in widened]


def _traceable(model: Model) -> list[int]:
    """Tensors that operators write and LiteRT keeps: it gives no memory to results of a loop that nobody reads."""
    from trueport.frameworks._tflite_model import OPAQUE

    read = {index for operator in model.operators for index in operator.inputs} | set(model.outputs)
    written = dict.fromkeys(
        index
        for operator in model.operators
        for index in operator.outputs
        if index >= 0 and (operator.code != "WHILE" or index in read)
    )
    return [index for index in written if model.tensors[index].dtype not in OPAQUE]


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int, trust: bool) -> dict[str, Any]:
    """Emit wanted values [R, *shape], from the builtin kernels without delegates, every tensor preserved.

    Where those lack a kernel (convolutions with float16 weights), the default ones are used; "kernels" in the result says which.
    At most `budget` bytes of values are held at a time (one value at least). Values whose shape differs between runs
    cannot be stacked and are listed under "uneven" in the result.
    """
    model = _open(path)
    refuse_missing_kernels(model)
    index_of = {model.tensors[index].name: index for index in (*model.inputs, *_traceable(model))}
    unknown = [name for name in wanted if name not in index_of]
    if unknown:
        raise ValueError(f"{Path(path).name} has no value '{unknown[0]}'")
    rows = list(_rows(model, inputs))
    shared = _tracing_session(model)

    def calls() -> Iterator[Session]:
        for row in rows:
            session = _tracing_session(model) if carries_state(model) else shared
            session.call(row)
            yield session

    named = [(name, index_of[name]) for name in dict.fromkeys(wanted)]
    uneven = collect(calls, len(rows), named, budget, emit)
    return {"uneven": uneven, "kernels": shared.variant}


def _tracing_session(model: Model) -> Session:
    try:
        return Session.of(model, "builtin", keep_all=True)
    except RuntimeError:
        return Session.of(model, "default", keep_all=True)


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
    """Run R calls with values of the main graph put in, which are rounded to the grid where their tensor is quantised.

    See `_base.py`. "kernels" in the result says which were used. Raises ValueError for an unknown name, a missing input
    or values that do not fit their tensor; Unsupported when LiteRT cannot run the part that is cut out.
    """
    from trueport.frameworks import _tflite_replay as parts

    if variant and variant not in RESOLVERS:
        raise ValueError(f"there is no variant '{variant}'; known are {', '.join(VARIANTS)}")
    model = _open(path)
    index_of = {model.tensors[index].name: index for index in (*model.inputs, *_traceable(model))}
    unknown = [name for name in (*given, *wanted) if name not in index_of]
    if unknown:
        raise ValueError(f"{Path(path).name} has no value '{unknown[0]}'")
    fed = {i: inputs[name] for i, name in zip(model.inputs, _user_names(model)[0]) if name in inputs}
    put_in = {index_of[name]: array for name, array in given.items()}
    computed = [(name, index_of[name]) for name in dict.fromkeys(wanted) if index_of[name] not in model.inputs]
    for name in dict.fromkeys(wanted):
        if index_of[name] in model.inputs:
            _need(model, index_of[name], fed)
            emit(name, _on_grid(model.tensors[index_of[name]], fed[index_of[name]]))
    if not computed:
        return {"skipped": {}, "kernels": ""}
    part = parts.cut(model, frozenset(put_in), tuple(index for _, index in computed))
    for index in part.feeds:
        if index not in put_in:
            _need(model, index, fed)
            check_shape(model.tensors[index], model.tensors[index].name, fed[index].shape[1:])
    arrays = {index: put_in[index] if index in put_in else fed[index] for index in part.feeds}
    counts = {len(array) for array in (arrays or {**fed, **put_in}).values()} or {1}
    if len(counts) > 1:
        raise ValueError(f"the values given to {Path(path).name} hold different numbers of runs: {sorted(counts)}")
    return parts.replay(model, part, arrays, computed, emit, variant=variant, budget=budget, runs=counts.pop())


def _need(model: Model, index: int, fed: Mapping[int, np.ndarray]) -> None:
    if index not in fed:
        raise ValueError(f"{Path(model.path).name} needs a value for its input '{model.tensors[index].name}'")


def _on_grid(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    from trueport.frameworks._tflite_model import dequantize, quantize

    return values if tensor.quantization is None else dequantize(tensor, quantize(tensor, values))


def graph(path: str, *, trust: bool) -> GraphDict:
    """Return the operators of the main graph; operands of WHILE and IF are explicit in the format.

    An absent operand before a given one is "". A constant that only passes a DEQUANTIZE (float16 weights) is shown as the
    operand itself, without that operator. A state tensor counts as a constant: every run starts from the same value.
    The float constants inside a loop or a branch are constants too; its operator lists them as "inner_constants".
    """
    from trueport.frameworks._tflite_ops import ONNX_NAMES, attributes

    model = _open(path)
    tensors = model.tensors
    widened = _widened(model)
    return {
        "nodes": [
            {
                "name": f"{operator.number}:{tensors[operator.outputs[0]].raw_name if operator.outputs else ''}",
                "op": ONNX_NAMES.get(operator.code, operator.code),
                "native_op": operator.code,
                "inputs": _operands(model, operator, widened),
                "outputs": [tensors[index].name for index in operator.outputs if index >= 0],
                "attributes": {**attributes(model, operator), **_inside(model, operator)},
            }
            for operator in model.operators
            if widened.keys().isdisjoint(operator.outputs)
        ],
        "inputs": [tensors[index].name for index in model.inputs],
        "outputs": [tensors[index].name for index in model.outputs],
        "constants": {
            **{tensor.name: _constant_facts(tensor) for tensor in tensors if tensor.constant or tensor.variable},
            **{name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in _inner(model)},
        },
    }


def _inside(model: Model, operator: Operator) -> dict[str, Any]:
    names = [name for number in model.bodies(operator) for name, _ in model.inner(number)]
    return {"inner_constants": names} if names else {}


def _inner(model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """The constants of every subgraph that an operator of the main one runs."""
    numbers = {number: None for operator in model.operators for number in model.bodies(operator)}
    for number in numbers:
        yield from model.inner(number)


def _widened(model: Model) -> dict[int, int]:
    """Tensor that a DEQUANTIZE makes of a constant -> that constant; not where the tensor is an output."""
    return {
        operator.outputs[0]: operator.inputs[0]
        for operator in model.operators
        if operator.code == "DEQUANTIZE"
        and model.tensors[operator.inputs[0]].constant
        and operator.outputs[0] not in model.outputs
    }


def _operands(model: Model, operator: Operator, widened: Mapping[int, int]) -> list[str]:
    names = ["" if index < 0 else model.tensors[widened.get(index, index)].name for index in operator.inputs]
    while names and not names[-1]:
        names.pop()
    return names


def _constant_facts(tensor: Tensor) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "dtype": tensor.dtype if tensor.quantization is None else "float32",
        "shape": list(tensor.shape),
    }
    if tensor.quantization is not None:
        scale, zero_point, axis = tensor.quantization
        facts["quantization"] = {
            "scale": scale.tolist(),
            "zero_point": zero_point.tolist(),
            "axis": axis,
            "dtype": tensor.dtype,
        }
    return facts


def parameters(path: str, emit: Emit, *, trust: bool) -> dict[str, Any]:
    """Emit every constant: quantised ones dequantised to float32, float16 as stored, state tensors as the zeros they start from.

    Constants that cannot be read (text, sparse) are listed under "unreadable" in the result.
    """
    model = _open(path)
    unreadable = []
    for tensor in model.tensors:
        if tensor.variable:
            emit(tensor.name, np.zeros(tensor.shape, "float32" if tensor.quantization else tensor.dtype))
        elif tensor.constant:
            try:
                emit(tensor.name, model.constant(tensor.number))
            except Unsupported:
                unreadable.append(tensor.name)
    for name, array in _inner(model):
        emit(name, array)
    return {"unreadable": unreadable}


def edit(path: str, edits: Sequence[EditDict], arrays: Arrays, out: str, *, trust: bool) -> dict[str, Any]:
    """Write a copy of the model with the edits applied, and let LiteRT run it once; see `_base.py`.

    Raises BadModel, ValueError for names that the file does not have, and Unsupported, with the reason.
    """
    from trueport.frameworks import _tflite_edit

    return _tflite_edit.apply(path, edits, arrays, out)
