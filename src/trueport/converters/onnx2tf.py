"""onnx2tf: ONNX to TFLite, and to SavedModel, through the tool's own flatbuffer writer.

The tool gives inputs of rank 3 to 5 the channel axis last, keeps sequences that feed a recurrent operator as they are,
and leaves an output channel-first or channel-last as its optimiser finds it, without saying which. So the layout that
this file reports is, for inputs, that documented rule, and for outputs what the shape proves; where a shape fits both
layouts (equal channels, height and width) one run of both models tells the two apart. Only these two layouts are ever
considered, so an output that is wrong in any other way stays wrong.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import Arrays, ConvertContext, ConvertReply, InvalidOutput, Step, Unsupported

_OPTIONS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "keep_shape": (
        "keep_shape_absolutely_input_names",
        lambda text: text.split(","),
        "names of inputs, separated by commas, whose layout stays as it is",
    ),
    "input_shape": (
        "overwrite_input_shape",
        lambda text: text.split(";"),
        "fix dynamic inputs: NAME:DIM,DIM,... separated by semicolons",
    ),
    "quant_type": (
        "quant_type",
        str,
        "per-channel or per-tensor weights of int8 models (default: per-tensor for int8-dynamic, else per-channel)",
    ),
    "simplify": ("not_use_onnxsim", lambda text: not _truth(text), "false: leave out the tool's onnxsim pass"),
    "unroll_rnn": ("enable_rnn_unroll", lambda text: _truth(text), "true: unroll recurrent operators"),
}
"""Our option -> (the tool's argument, how its text is read, help)."""
_HELP = tuple((name, row[2]) for name, row in _OPTIONS.items())
_CHANNELS_LAST = "inputs of rank 3 to 5 become channel-last; equal channels, height and width can confuse the tool"

STEPS = (
    Step(
        name="onnx2tf-tflite",
        source_format="onnx",
        target_format="tflite",
        toolchain="onnx2tf",
        tool="onnx2tf",
        rank=50,
        precisions=("float32", "float16", "int8-dynamic", "int8"),
        options=_HELP,
        max_opset=25,
        note=f"{_CHANNELS_LAST}; its int8 models are often wrong without a message (pooled and depthwise layers)",
    ),
    Step(
        name="onnx2tf-savedmodel",
        source_format="onnx",
        target_format="savedmodel",
        toolchain="onnx2tf-tf",
        tool="onnx2tf",
        rank=60,
        options=_HELP,
        max_opset=25,
        note=_CHANNELS_LAST,
    ),
)

_FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "float32": ("float32", {}),
    "float16": ("float16", {}),
    # per-channel, the tool's own default, puts the scales of a convolution on its input channels: LiteRT 2.3 refuses that
    "int8-dynamic": (
        "dynamic_range_quant",
        {"output_dynamic_range_quantized_tflite": True, "quant_type": "per-tensor"},
    ),
    "int8": ("integer_quant", {"output_integer_quantized_tflite": True}),
}
"""Precision -> (what the tool's file name ends in, the arguments that ask for it)."""
_NAME = "model"
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_NEUTRAL = frozenset({"Cast", "Identity", "Shape", "Size"})
"""Consumers beside a recurrent operator that do not make the tool change an input's layout."""


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Write the TFLite file or the SavedModel folder at `out`. Raises Unsupported, InvalidOutput, or what the tool raises."""
    precision = options.get("precision") or "float32"
    arguments = _arguments(options)
    kept = arguments.get("keep_shape_absolutely_input_names", ())
    model = _Source(source)
    with tempfile.TemporaryDirectory(prefix="onnx2tf-") as folder, _inside(folder):
        suffix, wanted = _FILES[precision]
        arguments = {**wanted, **arguments}
        if precision == "int8":
            arguments["custom_input_op_name_np_data_path"] = _calibration(model, context["calibration"], kept, folder)
        if step == "onnx2tf-savedmodel":
            arguments["flatbuffer_direct_output_saved_model"] = True
        results = _call_tool(source, folder, arguments)
        reply = _describe(model, _existing(results, "float32"), kept, context["example"])
        if suffix != "float32":
            reply = _with_names_of(reply, _existing(results, "float32"), _existing(results, suffix))
        if step == "onnx2tf-savedmodel":
            _move_saved_model(results, out)
        else:
            shutil.move(str(_existing(results, suffix)), out)
    return reply


def _arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {}
    for name, text in options.items():
        if name == "precision" or text is None:
            continue
        if name not in _OPTIONS:
            raise ValueError(f"onnx2tf has no option '{name}' here; it takes {', '.join(_OPTIONS)}")
        argument, reading, _ = _OPTIONS[name]
        arguments[argument] = reading(str(text))
    return arguments


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise ValueError(f"'{text}' is neither true nor false")
    return text.lower() in ("true", "1", "yes", "on")


# -- the tool


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    """Work in `folder`, with the environment's own programs first on PATH: the tool starts onnxsim by name."""
    before, path = Path.cwd(), os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path])
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ["PATH"] = path


def _call_tool(source: str, folder: str, arguments: Mapping[str, Any]) -> Path:
    """Convert a copy of the model and return the folder with the results: the tool rewrites the file that it is given."""
    import onnx

    copy, results = Path(folder) / f"{_NAME}.onnx", Path(folder) / "results"
    model = onnx.load(source)
    large = model.ByteSize() > 2**30
    onnx.save(model, str(copy), save_as_external_data=large)
    del model
    tool = importlib.import_module("onnx2tf")
    try:
        tool.convert(input_onnx_file_path=str(copy), output_folder_path=str(results), verbosity="error", **arguments)
    except SystemExit as error:
        raise RuntimeError(f"onnx2tf gave up with exit code {error.code}") from error
    except Exception as error:
        cause = _root_cause(error)
        if any(word in type(cause).__name__ for word in ("NotImplemented", "Unsupported", "OptionalTensorFlow")):
            raise Unsupported(str(cause)) from error
        if cause is error:
            raise
        raise RuntimeError(f"{error} ({type(cause).__name__}: {cause})") from error
    return results


def _root_cause(error: BaseException) -> BaseException:
    """The tool wraps its reason in a sentence that names none."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _existing(results: Path, suffix: str) -> Path:
    path = results / f"{_NAME}_{suffix}.tflite"
    if not path.is_file():
        found = ", ".join(sorted(item.name for item in results.glob("*"))) or "nothing"
        raise InvalidOutput(f"onnx2tf ended without an error and wrote no {path.name}; it wrote {found}")
    return path


def _move_saved_model(results: Path, out: str) -> None:
    if not (results / "saved_model.pb").is_file():
        raise InvalidOutput("onnx2tf ended without an error and wrote no SavedModel")
    target = Path(out)
    target.mkdir(parents=True)
    for name in ("saved_model.pb", "fingerprint.pb", "variables", "assets"):
        if (results / name).exists():
            shutil.move(str(results / name), str(target / name))


def _calibration(model: _Source, data: Arrays, kept: Sequence[str], folder: str) -> list[list[Any]]:
    """Write calibration arrays in the layout that the tool will give the inputs, one sample per run of batch 1."""
    entries: list[list[Any]] = []
    for name in model.inputs:
        if name not in data:
            raise ValueError(f"int8 needs calibration data for input '{name}'")
        array = np.asarray(data[name])
        if array.dtype.kind != "f":
            raise Unsupported(f"onnx2tf calibrates float inputs only, and '{name}' is {array.dtype}")
        if array.ndim > 1 and array.shape[1] != 1:
            raise Unsupported(
                f"onnx2tf calibrates with a batch of 1, and input '{name}' takes {array.shape[1]} samples at a time"
            )
        array = array.reshape(array.shape[0], *array.shape[2:])
        permutation = model.input_permutation(name, kept)
        if permutation is not None:
            array = array.transpose([0, *permutation[1:]])
        path = str(Path(folder) / f"calibration{len(entries)}.npy")
        np.save(path, np.ascontiguousarray(array, dtype=np.float32))
        entries.append([_tool_name(name), path, 0.0, 1.0])
    return entries


# -- what came of it


class _Source:
    """What the layout rule needs to know of the ONNX model: shapes and consumers of its inputs."""

    def __init__(self, path: str) -> None:
        import onnx

        self.path = path
        graph = onnx.load(path, load_external_data=False).graph
        weights = {item.name for item in graph.initializer}
        self.inputs = {item.name: _dims(item) for item in graph.input if item.name not in weights}
        self.outputs = {item.name: _dims(item) for item in graph.output}
        self._consumers: dict[str, set[str]] = {name: set() for name in self.inputs}
        for node in graph.node:
            for name in node.input:
                if name in self._consumers:
                    self._consumers[name].add(node.op_type)

    def input_permutation(self, name: str, kept: Sequence[str]) -> list[int] | None:
        """The tool's rule: channels last for rank 3 to 5, unless asked to keep the shape or feeding a recurrent operator."""
        dims, consumers = self.inputs[name], self._consumers[name]
        sequence = bool(consumers & _RECURRENT) and consumers <= _RECURRENT | _NEUTRAL
        if dims is None or not 3 <= len(dims) <= 5 or sequence or name in kept:
            return None
        return _channels_last(len(dims))


def _dims(item: Any) -> list[int | None] | None:
    kind = item.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]


def _channels_last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]


def _tool_name(name: str) -> str:
    return name.replace(":", "__")


class _Target:
    """A TFLite file that the tool wrote: names, shapes, and one run. `usable` false: do not ask whether LiteRT can run it."""

    def __init__(self, path: Path, *, usable: bool = True) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=str(path))
        try:
            if usable:
                self.interpreter.allocate_tensors()
        except RuntimeError as error:
            if "custom op" not in str(error):
                raise InvalidOutput(f"LiteRT refuses what onnx2tf wrote: {error}") from error
            raise Unsupported(f"onnx2tf has no TFLite operator for a part of this model: {error}") from error
        self.inputs = self.interpreter.get_input_details()
        self.outputs = self.interpreter.get_output_details()
        named = self.interpreter._get_full_signature_list().get("serving_default", {})
        self.names = {
            side: {index: name for name, index in named.get(side, {}).items()} for side in ("inputs", "outputs")
        }

    def name(self, side: str, detail: Mapping[str, Any]) -> str:
        """The name that the file's signature gives, else the tensor's."""
        return str(self.names[side].get(detail["index"], detail["name"]))

    def run(self, feeds: Mapping[int, np.ndarray]) -> list[np.ndarray]:
        """Run once; `feeds` by tensor index, in the target's layout."""
        for index, value in feeds.items():
            self.interpreter.resize_tensor_input(index, value.shape)
        self.interpreter.allocate_tensors()
        for index, value in feeds.items():
            self.interpreter.set_tensor(index, value)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(detail["index"]) for detail in self.outputs]


def _describe(model: _Source, path: Path, kept: Sequence[str], example: Arrays) -> ConvertReply:
    """Tell names and layouts of inputs and outputs."""
    target = _Target(path)
    reply: ConvertReply = {"notes": [], "layout": {}, "names": {}}
    inputs = _paired(model.inputs, target, "inputs", reply)
    outputs = _paired(model.outputs, target, "outputs", reply)
    fed: dict[str, tuple[Any, list[int] | None]] = {}
    for name, detail in inputs.items():
        permutation = model.input_permutation(name, kept)
        if permutation is not None and not _fits(model.inputs[name], detail, permutation):
            permutation = None  # the shape proves that the tool kept this input
        fed[name] = (detail, permutation)
        _report(reply, name, target.name("inputs", detail), permutation)
    doubtful = []
    for name, detail in outputs.items():
        dims = model.outputs[name]
        rank = len(detail["shape"])
        if dims is not None and (len(dims) != rank or not 3 <= rank <= 5):
            continue
        last = 3 <= rank <= 5 and _fits(dims, detail, _channels_last(rank))
        if last and _fits(dims, detail, list(range(rank))):
            doubtful.append(name)
        elif last:
            _report(reply, name, target.name("outputs", detail), _channels_last(rank))
    if doubtful:
        _settle(model, target, fed, outputs, doubtful, example, reply)
    return reply


def _with_names_of(reply: ConvertReply, plain: Path, final: Path) -> ConvertReply:
    """Put the names of the file that is handed out in place of the float32 file's, by position: quantising renames outputs."""
    before, after = _Target(plain), _Target(final, usable=False)  # a newer LiteRT than this one's may run it
    new: dict[str, str] = {}
    for side, olds, news in (
        ("inputs", before.inputs, after.inputs),
        ("outputs", before.outputs, after.outputs),
    ):
        if len(olds) != len(news):
            raise InvalidOutput(f"the quantised file has {len(news)} {side}, the float32 file {len(olds)}")
        new.update({before.name(side, old): after.name(side, item) for old, item in zip(olds, news)})
    original = {target: source for source, target in reply["names"].items()}
    names = {original.get(old, old): item for old, item in new.items() if original.get(old, old) != item}
    layout = {new.get(target, target): entry for target, entry in reply["layout"].items()}
    return {"notes": reply["notes"], "layout": layout, "names": names}


def _paired(wanted: Mapping[str, Any], target: _Target, side: str, reply: ConvertReply) -> dict[str, Any]:
    """Pair the ONNX model's inputs (outputs) with the file's: by name where all names agree, else by position."""
    details = target.inputs if side == "inputs" else target.outputs
    by_name = {target.name(side, detail): detail for detail in details}
    found = {name: by_name[_tool_name(name)] for name in wanted if _tool_name(name) in by_name}
    if len(found) < len(wanted) and len(details) == len(wanted):
        found = dict(zip(wanted, details))
    for name, detail in found.items():
        if target.name(side, detail) != name:
            reply["names"][name] = target.name(side, detail)
    lost = [name for name in wanted if name not in found]
    if lost:
        reply["notes"].append(f"onnx2tf left out the {side} {', '.join(lost)}")
    return found


def _fits(dims: list[int | None] | None, detail: Mapping[str, Any], permutation: Sequence[int]) -> bool:
    """Whether the permuted ONNX shape can be the tensor's shape; unknown sizes fit any."""
    if dims is None:
        return True
    free = [size < 0 for size in detail["shape_signature"]] or [False] * len(dims)
    shape = [int(size) for size in detail["shape"]]
    if len(shape) != len(dims):
        return False
    return all(
        dims[axis] is None or unknown or dims[axis] == size for axis, size, unknown in zip(permutation, shape, free)
    )


def _report(reply: ConvertReply, source: str, target: str, permutation: list[int] | None) -> None:
    if permutation is not None:
        reply["layout"][target] = {"source": source, "permutation": permutation}


def _settle(
    model: _Source,
    target: _Target,
    fed: Mapping[str, tuple[Any, list[int] | None]],
    outputs: Mapping[str, Any],
    doubtful: Sequence[str],
    example: Arrays,
    reply: ConvertReply,
) -> None:
    """Tell channel-first from channel-last by one run of both models, for outputs whose shape fits both."""
    import onnxruntime

    values = {name: _varied(np.asarray(example[name])) for name in model.inputs if name in example}
    try:
        session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
        expected = dict(zip(model.outputs, session.run(list(model.outputs), values)))
        feeds = {}
        for name, (detail, permutation) in fed.items():
            value = values[name] if permutation is None else values[name].transpose(permutation)
            feeds[detail["index"]] = np.ascontiguousarray(value.astype(detail["dtype"]))
        given = {detail["index"]: value for detail, value in zip(target.outputs, target.run(feeds))}
    except Exception as error:  # noqa: BLE001 -- whatever a runtime raises, the conversion itself is done
        reply["notes"].append(
            f"the layout of {', '.join(doubtful)} is taken as unchanged: its shape fits two, and a run failed ({error})"
        )
        return
    for name in doubtful:
        detail = outputs[name]
        last = _channels_last(expected[name].ndim) if expected[name].ndim >= 3 else None
        if last is None or _error(expected[name], given[detail["index"]], None) <= _error(
            expected[name], given[detail["index"]], last
        ):
            continue
        _report(reply, name, target.name("outputs", detail), last)
    reply["notes"].append(f"the layout of {', '.join(doubtful)} was told by a run of both models: the shape fits two")


def _varied(value: np.ndarray) -> np.ndarray:
    """Float inputs with seeded variation on top, so that no symmetry of the example hides a transposition."""
    if value.dtype.kind != "f":
        return value
    noise = np.random.default_rng(0).standard_normal(value.shape)
    return np.asarray((value + 0.1 * (1.0 + np.abs(value)) * noise).astype(value.dtype))


def _error(expected: np.ndarray, given: np.ndarray, permutation: list[int] | None) -> float:
    if permutation is not None:
        expected = expected.transpose(permutation)
    if expected.shape != given.shape:
        return float("inf")
    difference = np.abs(expected.astype(np.float64) - given.astype(np.float64))
    return float(np.where(np.isnan(difference), np.inf, difference).mean()) if difference.size else 0.0
