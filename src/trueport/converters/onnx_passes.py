"""Optimisers and version converters that take an ONNX file and leave an ONNX file.

None of them is needed to reach a format, except the opset conversion; they are here because people run them on their
models, because other converters run them inside, and because they are where many silent faults come from.
Every result must satisfy onnx.checker and load in ONNX Runtime before its step counts as done.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

from trueport.frameworks import _onnx_file, _onnx_run
from trueport.frameworks._base import BadModel, ConvertContext, ConvertReply, InvalidOutput, Step, Unsupported

_LEVELS = {"basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}

STEPS = (
    Step(
        name="opset",
        source_format="onnx",
        target_format="onnx",
        toolchain="onnx",
        tool="onnx",
        rank=40,
        options=(("opset", "the opset to convert to, up or down; required"),),
        note="going down, onnx's version converter knows few operators: not Add or Relu below 14, not BatchNormalization below 15",
    ),
    Step(
        name="onnxscript-optimizer",
        source_format="onnx",
        target_format="onnx",
        toolchain="onnx",
        tool="onnxscript",
        note="before onnxscript 0.5.7 its BatchNorm fusion gives convolutions that share an input one common bias",
    ),
    Step(
        name="onnxsim",
        source_format="onnx",
        target_format="onnx",
        toolchain="onnx",
        tool="onnxsim",
    ),
    Step(
        name="onnxslim",
        source_format="onnx",
        target_format="onnx",
        toolchain="onnx",
        tool="onnxslim",
    ),
    Step(
        name="onnxoptimizer",
        source_format="onnx",
        target_format="onnx",
        toolchain="onnx",
        tool="onnxoptimizer",
        rank=60,
        options=(("passes", "comma-separated pass names; absent: the fuse and elimination passes it runs by default"),),
        note="fuse_pad_into_pool is wrong for negative values",
    ),
    Step(
        name="ort-optimizer",
        source_format="onnx",
        target_format="onnx",
        toolchain="onnx",
        tool="onnxruntime",
        options=(("level", "basic (default), extended or all"),),
        note="levels above basic write operators of the domain com.microsoft, which only ONNX Runtime runs",
    ),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Run one step and write the result at `out`, its large tensors beside it when it would pass protobuf's 2 GB.

    Raises Unsupported for an option it does not know or a conversion the tool cannot do, and InvalidOutput when the
    tool's result fails onnx.checker or does not load in ONNX Runtime.
    """
    notes: list[str] = []
    try:
        _TOOLS[step](source, out, options, notes)
    except SystemExit as error:  # a command-line tool at heart
        raise RuntimeError(f"{step} tried to end the process with exit code {error.code}") from None
    _must_be_valid(step, out)
    return {"notes": notes}


def _must_be_valid(step: str, out: str) -> None:
    import onnx

    if not Path(out).is_file():
        raise InvalidOutput(f"{step} left no file")
    try:
        onnx.checker.check_model(out)
    except Exception as error:
        raise InvalidOutput(f"{step} left a model that onnx.checker refuses: {_first_line(error)}") from error
    try:
        _onnx_run.session(out, "no-optimization")
    except (BadModel, Unsupported) as error:
        raise InvalidOutput(f"{step} left a model that does not load: {error}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(" failed: ")[-1][:300]  # what stands before it is a place in the tool's C++ code


def _loaded(source: str, notes: list[str]) -> Any:
    """Read the model with its data. Before IR 4 every initialiser had to be listed as an input, so that being listed
    meant nothing; the tools take it for an input that may be overridden, or drop it and leave an invalid file.
    """
    model = _onnx_file.with_data(source)
    if model.ir_version < 4:
        stored = {tensor.name for tensor in model.graph.initializer}
        kept = [item for item in model.graph.input if item.name not in stored]
        if len(kept) < len(model.graph.input):
            notes.append(
                f"IR version {model.ir_version} raised to 4, and the initializers taken off the list of inputs"
            )
            copies = [type(item).FromString(item.SerializeToString()) for item in kept]
            del model.graph.input[:]
            model.graph.input.extend(copies)
            model.ir_version = 4
    return model


def _save(model: Any, out: str) -> None:
    """Write a ModelProto; above 2 GB its tensors go to a file beside it."""
    import onnx

    if model.ByteSize() < 2**31 - 2**20:
        onnx.save(model, out)
        return
    onnx.save(model, out, save_as_external_data=True, location=f"{Path(out).name}.data")


def _to_opset(source: str, out: str, options: Mapping[str, Any], notes: list[str]) -> None:
    from onnx import version_converter

    wanted = str(options.get("opset", ""))
    if not wanted.isdigit():
        raise Unsupported(f"the step opset needs its option opset=NUMBER, not '{wanted}'")
    model = _loaded(source, notes)
    found = _onnx_file.opsets(model).get("")
    if found is None:
        raise Unsupported("the model names no opset of the ONNX domain, so there is nothing to convert")
    if found == int(wanted):
        notes.append(f"the model is at opset {found} already")
        _save(model, out)
        return
    try:
        changed = version_converter.convert_version(model, int(wanted))
    except Exception as error:
        raise Unsupported(
            f"onnx's version converter cannot go from opset {found} to {wanted}: {_first_line(error)}"
        ) from error
    _save(changed, out)


def _onnxscript(source: str, out: str, options: Mapping[str, Any], notes: list[str]) -> None:
    import onnxscript.optimizer
    import onnxscript.rewriter

    model = onnxscript.optimizer.optimize(_loaded(source, notes))
    _save(onnxscript.rewriter.rewrite(model), out)


def _onnxsim(source: str, out: str, options: Mapping[str, Any], notes: list[str]) -> None:
    import onnxsim

    model, agreed = onnxsim.simplify(_loaded(source, notes), check_n=0)
    if not agreed:
        raise InvalidOutput("onnxsim says that its own result is wrong")
    _save(model, out)


def _onnxslim(source: str, out: str, options: Mapping[str, Any], notes: list[str]) -> None:
    import onnxslim

    model = onnxslim.slim(_loaded(source, notes))
    if model is None:
        raise InvalidOutput("onnxslim returned nothing")
    _save(model, out)


def _onnxoptimizer(source: str, out: str, options: Mapping[str, Any], notes: list[str]) -> None:
    import onnxoptimizer

    passes = None
    if options.get("passes"):
        passes = [name.strip() for name in str(options["passes"]).split(",") if name.strip()]
        unknown = sorted(set(passes) - set(onnxoptimizer.get_available_passes()))
        if unknown:
            raise Unsupported(f"onnxoptimizer has no pass named {', '.join(unknown)}")
    _save(onnxoptimizer.optimize(_loaded(source, notes), passes), out)


def _ort(source: str, out: str, options: Mapping[str, Any], notes: list[str]) -> None:
    import onnxruntime

    level = str(options.get("level", "basic"))
    if level not in _LEVELS:
        raise Unsupported(f"ort-optimizer knows the levels {', '.join(_LEVELS)}, not '{level}'")
    made = _onnx_run.options("default")
    made.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[level])
    made.optimized_model_filepath = out
    prepared = f"{out}.prepared.onnx"
    _save(_loaded(source, notes), prepared)
    try:
        if Path(source).stat().st_size > 2**30 or _onnx_file.external_files(_onnx_file.read(source), source):
            made.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", f"{Path(out).name}.data"
            )
        onnxruntime.InferenceSession(prepared, made, providers=["CPUExecutionProvider"])
    finally:
        for left in Path(out).parent.glob(f"{Path(prepared).name}*"):
            left.unlink()
    if level != "basic":
        notes.append("the result may hold com.microsoft operators, which only ONNX Runtime runs")


_TOOLS: dict[str, Callable[[str, str, Mapping[str, Any], list[str]], None]] = {
    "opset": _to_opset,
    "onnxscript-optimizer": _onnxscript,
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "onnxoptimizer": _onnxoptimizer,
    "ort-optimizer": _ort,
}
