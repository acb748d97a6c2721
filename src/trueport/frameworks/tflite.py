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

from trueport.frameworks._base import Arrays, Emit, GraphDict, RunResult, SignatureDict, SpecDict, Unsupported

if TYPE_CHECKING:
    from trueport.frameworks._tflite_model import Model, Tensor

NAME = "tflite"
FORMATS = {"tflite": "litert"}
SUFFIXES = {"tflite": ".tflite"}
VARIANTS = ("default", "builtin", "reference", "single-thread")
"""default: as shipped, with XNNPACK; builtin: without delegates; reference: the reference kernels; single-thread: default with one thread."""
PRECISIONS = ("float32",)

_RESOLVERS = {
    "default": ("AUTO", None),
    "builtin": ("BUILTIN_WITHOUT_DEFAULT_DELEGATES", None),
    "reference": ("BUILTIN_REF", None),
    "single-thread": ("AUTO", 1),
}
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
    _refuse_missing_kernels(model)
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
            model.buffer(metadata["min_runtime_version"]).rstrip(b"\0").decode("ascii", "replace")
        )
    return meta


def _decode(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _refuse_missing_kernels(model: Model) -> None:
    """Raise Unsupported, naming them, when LiteRT has no kernel for custom or Flex operators of the file."""
    custom = sorted({operator.code for operator in model.all_operators() if operator.custom})
    if not custom:
        return
    try:
        _Session(model, "builtin")
    except RuntimeError as error:
        if any(word in str(error) for word in ("custom op", "Select TensorFlow op", "Custom", "not registered")):
            raise Unsupported(f"LiteRT has no kernel for the operators {', '.join(custom)}") from error


# -- running


class _Session:
    """One interpreter over one file, fed by input name."""

    def __init__(self, model: Model, variant: str, *, keep_all: bool = False) -> None:
        from ai_edge_litert import interpreter as litert

        resolver, threads = _RESOLVERS[variant]
        content = model.content()
        self.model = model
        self.variant = variant
        self.interpreter = litert.Interpreter(
            **({"model_path": model.path} if content is None else {"model_content": content}),
            num_threads=threads,
            experimental_op_resolver_type=litert.OpResolverType[resolver],
            experimental_preserve_all_tensors=keep_all,
            experimental_disable_delegate_node_fusion=keep_all,
        )
        self.shapes = {index: model.tensors[index].shape for index in model.inputs}
        self.interpreter.allocate_tensors()

    def resize(self, wanted: Mapping[int, tuple[int, ...]]) -> None:
        """Give the inputs these shapes; sizes that the file fixes have been checked before."""
        changed = {index: shape for index, shape in wanted.items() if shape != self.shapes[index]}
        for index, shape in changed.items():
            self.interpreter.resize_tensor_input(index, shape)
        if changed:
            self.interpreter.allocate_tensors()
            self.shapes.update(changed)

    def call(self, inputs: Mapping[int, np.ndarray]) -> None:
        """Run once from the initial state; `inputs` are stored values by tensor index."""
        self.interpreter.reset_all_variables()
        for index, value in inputs.items():
            if value.size:
                self.interpreter.set_tensor(index, value)
        self.interpreter.invoke()

    def value(self, index: int) -> np.ndarray:
        """Return a copy of one tensor, dequantised."""
        from trueport.frameworks._tflite_model import dequantize

        try:
            stored = self.interpreter.get_tensor(index)
        except ValueError:  # a tensor of no elements has no data to point at
            shape = self.interpreter._get_tensor_details(index, 0)["shape"]
            if np.prod(shape, dtype=np.int64):
                raise
            stored = np.zeros(tuple(shape), self.model.tensors[index].dtype)
        return dequantize(self.model.tensors[index], stored)


@lru_cache(maxsize=2)
def _shared_session(model: Model, variant: str) -> _Session:
    return _Session(model, variant)


def _carries_state(model: Model) -> bool:
    """Whether resource variables would carry values from run to run, whatever is reset."""
    return any(operator.code in ("VAR_HANDLE", "HASHTABLE") for operator in model.all_operators())


_NO_KERNEL = ("unresolved custom op", "not currently supported", "supported currently", "currently not supported")
"""What LiteRT says of an operator, or of a type in one, that it has no kernel for; the file itself may be right."""


def run(path: str, cases: Mapping[str, Arrays], *, precision: str, variant: str, trust: bool) -> dict[str, RunResult]:
    """Run every case, R calls each from the initial state.

    Raises ValueError when an input is missing, unknown, or of a shape or type that the file does not take; Unsupported
    for a precision that LiteRT cannot compute in and for operators that it has no kernel for.
    """
    if precision not in PRECISIONS:
        raise Unsupported(f"LiteRT computes a TFLite file in its own precision; it cannot run it in {precision}")
    if variant not in _RESOLVERS:
        raise ValueError(f"there is no variant '{variant}'; known are {', '.join(VARIANTS)}")
    model = _open(path)
    _refuse_missing_kernels(model)
    results = {}
    for name, arrays in cases.items():
        try:
            results[name] = _run_case(model, variant, arrays)
        except RuntimeError as error:  # after a failed allocation an interpreter stays broken
            _shared_session.cache_clear()
            if any(words in str(error).lower() for words in _NO_KERNEL):
                first = str(error).strip().splitlines()[0]
                raise Unsupported(f"LiteRT has no kernel for this model: {first}") from error
            raise
    return results


def _run_case(model: Model, variant: str, arrays: Arrays) -> RunResult:
    _, names = _user_names(model)
    found: list[list[np.ndarray]] = [[] for _ in names]
    for inputs in _rows(model, arrays):
        session = _Session(model, variant) if _carries_state(model) else _shared_session(model, variant)
        session.resize({index: value.shape for index, value in inputs.items()})
        session.call(inputs)
        for values, index in zip(found, model.outputs):
            values.append(session.value(index))
    return {name: _stack(values) for name, values in zip(names, found)}


def _stack(values: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    return np.stack(values) if len({value.shape for value in values}) == 1 else values


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
        _check_shape(model.tensors[index], name, arrays[name].shape[1:])
    for number in range(counts.pop()):
        yield {
            index: _stored(model.tensors[index], name, arrays[name][number]) for name, index in zip(names, model.inputs)
        }


def _check_shape(tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
    wanted = tensor.dims
    if wanted is not None and (
        len(wanted) != len(shape) or any(size is not None and size != given for size, given in zip(wanted, shape))
    ):
        taken = "×".join("?" if size is None else str(size) for size in wanted) or "a scalar"
        raise ValueError(f"input '{name}' takes {taken}, and {'×'.join(map(str, shape)) or 'a scalar'} was given")


def _stored(tensor: Tensor, name: str, value: np.ndarray) -> np.ndarray:
    """Turn one run's value into what the tensor stores."""
    from trueport.frameworks._tflite_model import quantize

    value = np.asarray(value)
    if value.dtype.kind not in "fiub" and value.dtype.kind != np.dtype(tensor.dtype).kind:
        raise ValueError(f"input '{name}' is {tensor.dtype}, and {value.dtype} was given")
    if tensor.quantization is not None:
        return quantize(tensor, value)
    wanted = np.dtype(tensor.dtype)
    if wanted.kind in "iub" and value.dtype != wanted:
        cast = value.astype(wanted)
        if value.dtype.kind == "f" or not np.array_equal(cast, value):
            raise ValueError(f"input '{name}' is {tensor.dtype}, and the {value.dtype} values given do not fit it")
        value = cast
    return np.ascontiguousarray(value, dtype=wanted).reshape(value.shape)


# -- looking inside


def names(path: str, *, trust: bool) -> list[str]:
    """Names of all values that operators of the main graph write, in execution order."""
    model = _open(path)
    return [model.tensors[index].name for index in _traceable(model)]


def _traceable(model: Model) -> list[int]:
    from trueport.frameworks._tflite_model import OPAQUE

    written = (index for operator in model.operators for index in operator.outputs if index >= 0)
    return [index for index in dict.fromkeys(written) if model.tensors[index].dtype not in OPAQUE]


def trace(path: str, inputs: Arrays, wanted: Sequence[str], emit: Emit, *, budget: int, trust: bool) -> dict[str, Any]:
    """Emit wanted values [R, *shape], from the builtin kernels without delegates, every tensor preserved.

    Where those lack a kernel (convolutions with float16 weights), the default ones are used; "kernels" in the result says which.
    At most `budget` bytes of values are held at a time (one value at least). Values whose shape differs between runs
    cannot be stacked and are listed under "uneven" in the result.
    """
    model = _open(path)
    _refuse_missing_kernels(model)
    index_of = {model.tensors[index].name: index for index in (*model.inputs, *_traceable(model))}
    unknown = [name for name in wanted if name not in index_of]
    if unknown:
        raise ValueError(f"{Path(path).name} has no value '{unknown[0]}'")
    rows = list(_rows(model, inputs))
    uneven: list[str] = []
    session = _tracing_session(model)
    for window in _windows(session, rows, [(name, index_of[name]) for name in dict.fromkeys(wanted)], budget):
        held: dict[str, list[np.ndarray]] = {name: [] for name, _ in window}
        for row in rows:
            if _carries_state(model):
                session = _tracing_session(model)
            _call(session, row)
            for name, index in window:
                held[name].append(session.value(index))
        for name in list(held):
            stacked = _stack(held.pop(name))
            if isinstance(stacked, list):
                uneven.append(name)
            else:
                emit(name, stacked)
    return {"uneven": uneven, "kernels": session.variant}


def _tracing_session(model: Model) -> _Session:
    try:
        return _Session(model, "builtin", keep_all=True)
    except RuntimeError:
        return _Session(model, "default", keep_all=True)


def _call(session: _Session, row: dict[int, np.ndarray]) -> None:
    session.resize({index: value.shape for index, value in row.items()})
    session.call(row)


def _windows(
    session: _Session, rows: list[dict[int, np.ndarray]], wanted: list[tuple[str, int]], budget: int
) -> Iterator[list[tuple[str, int]]]:
    """Split the wanted values into groups that fit the budget, by their sizes in a first run."""
    if not wanted or not rows:
        return
    _call(session, rows[0])
    sizes = [session.value(index).nbytes * len(rows) for _, index in wanted]
    window: list[tuple[str, int]] = []
    held = 0
    for item, size in zip(wanted, sizes):
        if window and held + size > budget:
            yield window
            window, held = [], 0
        window.append(item)
        held += size
    yield window


def graph(path: str, *, trust: bool) -> GraphDict:
    """Return the operators of the main graph; operands of WHILE and IF are explicit in the format, absent operands are left out.

    A state tensor counts as a constant: every run starts from the same initial value.
    """
    from trueport.frameworks._tflite_ops import ONNX_NAMES, attributes

    model = _open(path)
    tensors = model.tensors
    return {
        "nodes": [
            {
                "name": f"{operator.number}:{tensors[operator.outputs[0]].raw_name if operator.outputs else ''}",
                "op": ONNX_NAMES.get(operator.code, operator.code),
                "native_op": operator.code,
                "inputs": [tensors[index].name for index in operator.inputs if index >= 0],
                "outputs": [tensors[index].name for index in operator.outputs if index >= 0],
                "attributes": attributes(model, operator),
            }
            for operator in model.operators
        ],
        "inputs": [tensors[index].name for index in model.inputs],
        "outputs": [tensors[index].name for index in model.outputs],
        "constants": {
            tensor.name: {
                "dtype": tensor.dtype if tensor.quantization is None else "float32",
                "shape": list(tensor.shape),
            }
            for tensor in tensors
            if tensor.constant or tensor.variable
        },
    }


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
    return {"unreadable": unreadable}
