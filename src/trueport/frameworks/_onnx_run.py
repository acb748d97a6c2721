"""Runs ONNX models: ONNX Runtime in its variants, and the reference evaluator as a second, independent implementation.

The reference evaluator is trusted only where it agrees roughly with ONNX Runtime (see `check_reference`): it has
kernels that are simply wrong, and a wrong witness would make a noise floor so wide that everything looks faithful.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np

from trueport.frameworks import _onnx_file
from trueport.frameworks._base import Arrays, BadModel, RunResult, Unsupported

DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
    "tensor(string)": "str",
}
"""ONNX Runtime's type names -> NumPy's, for every type that can enter or leave it as a NumPy array."""

MAX_MULTIPLICATIONS = 5e10
"""Most multiply-adds that the reference evaluator is asked for; measured at 4e9 a second for 3×3 convolutions
and 1e8 for depthwise ones."""

MAX_DISAGREEMENT = 0.05
"""Relative root mean square beyond which a difference between two evaluators is a wrong kernel and not arithmetic:
float32 noise of the deepest nets seen is 1e-3, the wrong kernels found gave 0.5 and more."""


WITHOUT = "without:"
"""Before the name of an optimiser pass: the default variant without that pass."""

LEVELS = {"level:basic": "ORT_ENABLE_BASIC", "level:extended": "ORT_ENABLE_EXTENDED"}
"""Variants with less optimisation than the default -> ONNX Runtime's name of the level."""


class Runner(NamedTuple):
    """A loaded model. `call` takes one run's inputs by name and returns the outputs in order."""

    inputs: Mapping[str, str]
    outputs: Sequence[str]
    call: Callable[[Arrays], list[np.ndarray]]


def options(variant: str) -> Any:
    """Return ONNX Runtime's session options for one variant; it stays silent below the level of an error."""
    import onnxruntime

    made = onnxruntime.SessionOptions()
    made.log_severity_level = 4
    made.intra_op_num_threads = 1 if variant == "single-thread" else (os.cpu_count() or 1)
    made.inter_op_num_threads = 1
    # Spinning doubled the processor time, and on shared cores the wall time as well.
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = {"no-optimization": "ORT_DISABLE_ALL", **LEVELS}.get(variant, "ORT_ENABLE_ALL")
    made.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return made


def session(
    path: str, variant: str, *, model: Any = None, stored: Mapping[str, Any] | None = None, severity: int = 4
) -> Any:
    """Load a file, or a changed `model` whose external data lie beside `path`. Raises BadModel or Unsupported.

    stored: the OrtValue of each initialiser that the model names but does not hold. severity: the least that ONNX Runtime writes of (1: what the optimiser does, 4: nothing that it survives).
    """
    import onnxruntime

    made = options(variant)
    made.log_severity_level = severity
    disabled = [variant[len(WITHOUT) :]] if variant.startswith(WITHOUT) else None
    source: str | bytes = path
    if model is not None:
        made.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(Path(path).parent.absolute())
        )
        source = _serialised(model, path)
    if stored:
        made.add_external_initializers(list(stored), list(stored.values()))
    try:
        loaded = onnxruntime.InferenceSession(
            source, made, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
    except Exception as error:
        raise _refusal(error, path) from error
    loaded.trueport_stored = stored  # the session may read them in place: they must live as long
    return loaded


def _serialised(model: Any, path: str) -> bytes:
    from google.protobuf.message import EncodeError

    try:
        data: bytes = model.SerializeToString()
    except (EncodeError, ValueError) as error:
        raise Unsupported(f"{path}: too large to be rewritten in memory (protobuf ends at 2 GB): {error}") from None
    return data


_NEWER = ("Unsupported model IR version", "is under development", "is till opset")
_NO_KERNEL = (
    "Could not find an implementation",
    "is not a registered function/op",
    "No Op registered",
    "NOT_IMPLEMENTED",
)


def _refusal(error: Exception, path: str) -> Exception:
    """Turn an exception of ONNX Runtime's loader into one of ours."""
    text = " ".join(str(error).split())
    reason = text.split(" : ", 2)[-1][:300]
    kind = type(error).__name__
    if isinstance(error, MemoryError) or "bad_alloc" in text:
        return MemoryError(text)
    if any(words in text for words in _NEWER):
        return Unsupported(
            f"the model is newer than this ONNX Runtime ({reason}); lower its opset or take a newer runtime"
        )
    if kind == "NotImplemented" or any(words in text for words in _NO_KERNEL):
        foreign = _foreign_operators(path)
        if foreign:
            return Unsupported(f"ONNX Runtime has no kernel for the custom operators {', '.join(foreign)}")
        return Unsupported(f"ONNX Runtime has no kernel for an operator: {reason}")
    if kind == "InvalidProtobuf":
        return BadModel(f"{path}: the file is cut short or damaged; copy or export the ONNX model again")
    return BadModel(f"{path}: ONNX Runtime cannot load it: {reason}; check how it was made, or export it again")


_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.training", "ai.onnx.preview.training")


def _foreign_operators(path: str) -> list[str]:
    model = _onnx_file.read(path)
    own = {(function.domain, function.name) for function in model.functions}
    return sorted(
        {
            f"{node.domain}::{node.op_type}"
            for node in _onnx_file.nodes(model)
            if node.domain not in _KNOWN_DOMAINS
            and not node.domain.startswith("com.microsoft")
            and (node.domain, node.op_type) not in own
        }
    )


def runner(path: str, variant: str, *, model: Any = None) -> Runner:
    """Load for ONNX Runtime. Raises Unsupported when an input or output is not a tensor of a common type."""
    return wrap(session(path, variant, model=model))


def wrap(made: Any) -> Runner:
    """Make a runner of a session. Raises Unsupported as `runner` does."""
    inputs = {item.name: tensor_dtype("input", item.name, item.type) for item in made.get_inputs()}
    for item in made.get_outputs():
        tensor_dtype("output", item.name, item.type)
    names = [item.name for item in made.get_outputs()]

    def call(feeds: Arrays) -> list[np.ndarray]:
        results = made.run(names, feeds)
        for name, value in zip(names, results):
            if not isinstance(value, np.ndarray):
                raise Unsupported(f"output '{name}' came out empty or as a list; only tensors can be compared")
        return list(results)

    return Runner(inputs, names, call)


def tensor_dtype(what: str, name: str, kind: str) -> str:
    """Return NumPy's dtype name of an ONNX Runtime type. Raises Unsupported, with the cure, for what is not a plain tensor."""
    if kind in DTYPES:
        return DTYPES[kind]
    cure = "make the model give a tensor"
    if "map(" in kind:
        cure = "export the classifier without ZipMap (zipmap=False)"
    elif "float8" in kind or "bfloat16" in kind or "4" in kind:
        cure = "add a Cast to a common type"
    raise Unsupported(f"{what} '{name}' is a {kind}, and only plain tensors can be compared: {cure}")


def first_that_runs(first: Callable[[], Runner], second: Callable[[], Runner]) -> Runner:
    """Load `first`, and `second` in its place when that fails to load or, at the first call, to run.

    ONNX Runtime accepts some models whose kernels refuse float64 only when they run.
    """
    try:
        preferred = first()
    except Exception:  # noqa: BLE001 -- any refusal means: take the other
        return second()
    chosen: list[Runner] = []

    def call(feeds: Arrays) -> list[np.ndarray]:
        if not chosen:
            try:
                results = preferred.call(feeds)
            except Exception:  # noqa: BLE001 -- as above
                chosen.append(second())
            else:
                chosen.append(preferred)
                return results
        return chosen[0].call(feeds)

    return Runner(preferred.inputs, preferred.outputs, call)


def reference_runner(model: Any, inputs: Mapping[str, str]) -> Runner:
    """Load for the reference evaluator. `inputs`: name -> dtype. Raises Unsupported where it has no such operator."""
    from onnx.reference import ReferenceEvaluator

    _give_loops_a_condition(model)
    replaced = [_batch_normalization()] if _onnx_file.opsets(model).get("", 14) < 14 else []
    try:
        evaluator = ReferenceEvaluator(model, new_ops=replaced)
    except Exception as error:
        raise Unsupported(f"the reference evaluator cannot take this model: {_first_line(error)}") from error

    def call(feeds: Arrays) -> list[np.ndarray]:
        try:
            with np.errstate(all="ignore"):
                results = evaluator.run(None, feeds)
        except MemoryError:
            raise
        except Exception as error:
            raise Unsupported(f"the reference evaluator cannot run this model: {_first_line(error)}") from error
        return [np.asarray(item) for item in results]

    return Runner(inputs, list(evaluator.output_names), call)


def _give_loops_a_condition(model: Any) -> None:
    """Put a constant true where a Loop's condition is left out: onnx's own kernel would then not run its body at all."""
    from onnx import numpy_helper

    name = "trueport.true"
    loops = [node for node in _onnx_file.nodes(model) if node.op_type == "Loop" and node.input[1] == ""]
    for node in loops:
        node.input[1] = name
    if loops:
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), name))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"


@functools.lru_cache(maxsize=1)
def _batch_normalization() -> type:
    """Inference-mode BatchNormalization for opset 13 and older, where onnx's own kernel takes batch statistics."""
    from onnx.reference.op_run import OpRun

    def normalise(self: Any, x: Any, scale: Any, bias: Any, mean: Any, var: Any, **attributes: Any) -> Any:
        shape = (1, -1) + (1,) * (x.ndim - 2)
        factor = scale / np.sqrt(var + np.asarray(attributes.get("epsilon") or 1e-5, dtype=x.dtype))
        y = (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
        return (y.astype(x.dtype),)

    return type("BatchNormalization", (OpRun,), {"op_domain": "", "_run": normalise})


def run_case(loaded: Runner, arrays: Arrays) -> RunResult:
    """Run R calls and stack each output to [R, *shape], or a list where the shapes differ."""
    prepared = prepare(loaded.inputs, arrays)
    runs = count_runs(prepared)
    results = [loaded.call(one_run(prepared, index)) for index in range(runs)]
    return {name: stack([result[place] for result in results]) for place, name in enumerate(loaded.outputs)}


def one_run(arrays: Arrays, index: int) -> Arrays:
    """Return the inputs of one run; a scalar input stays an array of rank 0."""
    return {name: array[index, ...] for name, array in arrays.items()}


def stack(arrays: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """Stack to [R, *shape], or return the list when the shapes differ."""
    if all(array.shape == arrays[0].shape for array in arrays):
        return np.stack(arrays)
    return arrays


def count_runs(arrays: Arrays) -> int:
    """R: the common first axis; 1 for a model without inputs."""
    counts = {array.shape[0] for array in arrays.values()}
    if len(counts) > 1:
        raise ValueError(f"the inputs of one case have different numbers of runs: {sorted(counts)}")
    return counts.pop() if counts else 1


def prepare(wanted: Mapping[str, str], arrays: Arrays) -> Arrays:
    """Check the names and bring every array to the model's dtype. Raises ValueError when an input is missing or unknown."""
    missing = [name for name in wanted if name not in arrays]
    unknown = [name for name in arrays if name not in wanted]
    if missing or unknown:
        raise ValueError(f"the model takes {list(wanted)}; missing: {missing}, unknown: {unknown}")
    made = {}
    for name, dtype in wanted.items():
        array = np.asarray(arrays[name])
        made[name] = array.astype(object) if dtype == "str" else array.astype(dtype, copy=False)
    return made


def check_reference(expected: RunResult, got: RunResult) -> None:
    """Raise Unsupported when the second evaluator is off by more than any arithmetic explains (see MAX_DISAGREEMENT)."""
    for name, value in expected.items():
        pairs = zip(value, got[name]) if len(value) == len(got[name]) else [(value, np.zeros(0))]
        if any(_far_apart(np.asarray(first), np.asarray(second)) for first, second in pairs):
            raise Unsupported(
                f"the reference evaluator differs grossly from ONNX Runtime without optimisation at output '{name}': "
                "one of their kernels is wrong for this model, so it is no measure of noise"
            )


def _far_apart(first: np.ndarray, second: np.ndarray) -> bool:
    if first.shape != second.shape:
        return True
    if first.dtype.kind not in "fc":
        return bool(np.mean(first.astype(second.dtype) != second) > 0.2) if first.size else False
    one, two = first.astype(np.float64), second.astype(np.float64)
    finite = np.isfinite(one) & np.isfinite(two)
    if not finite.any():
        return False
    one, two = one[finite], two[finite]
    return bool(np.sqrt(np.mean((one - two) ** 2)) > MAX_DISAGREEMENT * np.sqrt(np.mean(one**2)) + 1e-6)
