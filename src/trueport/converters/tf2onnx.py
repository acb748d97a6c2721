"""Decides how tf2onnx is driven: from a frozen Keras model, a SavedModel, or a TFLite file, to a checked ONNX file.

tf2onnx reports success while it leaves TensorFlow operators in the file, so every result is checked operator by
operator against ONNX's own schemas. Inputs and outputs get the source's names and order back.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trueport.frameworks._base import ConvertContext, ConvertReply, InvalidOutput, Step

DEFAULT_OPSET = 17
"""ONNX Runtime and onnx2torch both read it; 18 changes the reductions' signature, which older readers refuse."""
_OPTIONS = (("opset", f"ONNX opset of the result (default {DEFAULT_OPSET})"),)
_KERAS_OPTIONS = (*_OPTIONS, ("unroll", "write recurrent layers step by step instead of as loops: yes or no (default)"))

STEPS: tuple[Step, ...] = (
    Step("tf2onnx-keras", "keras", "onnx", "tensorflow", "tf2onnx", rank=20, options=_KERAS_OPTIONS),
    Step("tf2onnx-keras2", "keras", "onnx", "tf-keras", "tf2onnx", rank=20, options=_KERAS_OPTIONS, legacy_keras=True),
    Step("tf2onnx-savedmodel", "savedmodel", "onnx", "tensorflow", "tf2onnx", rank=25, options=_OPTIONS),
    Step(
        "tf2onnx-tflite",
        "tflite",
        "onnx",
        "tensorflow",
        "tf2onnx",
        rank=40,
        options=_OPTIONS,
        note="int8 models become float models with quantise/dequantise pairs; custom operators are not read.",
    ),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Write the ONNX model at `out`. Raises InvalidOutput, Unsupported, or what tf2onnx raises."""
    opset = opset_of(options)
    with errors_of("tf2onnx") as said:
        if step == "tf2onnx-tflite":
            model, inputs, outputs = _from_tflite(source, opset, context)
        else:
            model, inputs, outputs = _from_frozen(step, source, opset, context["trust"], flag(options, "unroll"))
    check(model, said)
    names = restore_names(model, inputs, outputs)
    if step.startswith("tf2onnx-keras"):
        name_batch(model)
    Path(out).write_bytes(model.SerializeToString())
    return ConvertReply(notes=[f"tf2onnx logged: {line}" for line in said[:5]], names=names)


def opset_of(options: Mapping[str, Any]) -> int:
    """Read option `opset`. Raises ValueError for what is not a number."""
    text = str(options.get("opset", DEFAULT_OPSET))
    if not text.isdigit():
        raise ValueError(f"option opset takes a number, not '{text}'")
    return int(text)


def _from_frozen(
    step: str, source: str, opset: int, trust: bool, unroll: bool
) -> tuple[Any, dict[str, str], dict[str, str]]:
    """Convert through a frozen GraphDef. Returns the model and source name -> ONNX name of inputs and of outputs."""
    import tf2onnx

    frozen = frozen_source(source, saved_model=step == "tf2onnx-savedmodel", trust=trust, unroll=unroll)
    model, _ = tf2onnx.convert.from_graph_def(
        frozen.graph_def,
        name=Path(source).stem,
        input_names=list(frozen.inputs.values()),
        output_names=list(frozen.outputs.values()),
        opset=opset,
    )
    return model, dict(frozen.inputs), dict(frozen.outputs)


def frozen_source(
    source: str,
    *,
    saved_model: bool,
    trust: bool,
    shapes: Mapping[str, Sequence[Any]] | None = None,
    unroll: bool = False,
) -> Any:
    """Freeze a SavedModel or a Keras file into one graph with named inputs and outputs.

    `shapes` (input name -> sizes) traces a Keras model for these sizes, which settles the shapes inside its loops;
    `unroll` traces its recurrent layers step by step instead of as loops.
    """
    if saved_model:
        from trueport.frameworks import tensorflow as savedmodels

        return savedmodels.load(source, trust=trust).frozen
    from trueport.frameworks import _keras_model as models
    from trueport.frameworks import _tf_graph as graphs

    loaded = models.load(source, trust=trust)
    with unrolled(loaded) if unroll else contextlib.nullcontext():
        concrete = models.function(loaded, shapes=shapes).get_concrete_function()
    return graphs.freeze(concrete, list(loaded.inputs), list(loaded.outputs))


@contextlib.contextmanager
def unrolled(loaded: Any) -> Iterator[None]:
    """Let the recurrent layers of a loaded model unroll while the context lasts."""
    from trueport.frameworks import _keras_model as models

    layers = [layer for _, layer in models.layers_of(loaded.model, legacy=loaded.legacy) if hasattr(layer, "unroll")]
    before = [layer.unroll for layer in layers]
    for layer in layers:
        layer.unroll = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before):
            layer.unroll = value


def flag(options: Mapping[str, Any], name: str) -> bool:
    """Read an option that is yes or no. Raises ValueError for anything else."""
    text = str(options.get(name, "no")).lower()
    if text not in ("yes", "no", "true", "false", "1", "0"):
        raise ValueError(f"option {name} takes yes or no, not '{text}'")
    return text in ("yes", "true", "1")


def _from_tflite(source: str, opset: int, context: ConvertContext) -> tuple[Any, dict[str, str], dict[str, str]]:
    """Convert a TFLite file; its tensors are matched to the source's names by signature, by name, or by position."""
    import tf2onnx

    details = _tflite_tensors(source)
    model, _ = tf2onnx.convert.from_tflite(source, opset=opset)
    inputs = [item.name for item in model.graph.input]
    outputs = [item.name for item in model.graph.output]
    signature = context["signature"]
    return (
        model,
        _match([spec["name"] for spec in signature["inputs"]], details["inputs"], inputs),
        _match([spec["name"] for spec in signature["outputs"]], details["outputs"], outputs),
    )


def _tflite_tensors(source: str) -> dict[str, dict[str, str]]:
    """For "inputs" and "outputs": every name by which one may be known (signature name, tensor name) -> tensor name."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_path=source)
    indices = {item["index"]: item["name"] for item in interpreter.get_input_details()}
    indices.update({item["index"]: item["name"] for item in interpreter.get_output_details()})
    found: dict[str, dict[str, str]] = {"inputs": {}, "outputs": {}}
    # the list above is complete; which tensor a signature name means is only in the runner's own table
    for key in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(key)
        for side, details in (("inputs", runner.get_input_details()), ("outputs", runner.get_output_details())):
            for name, detail in details.items():
                found[side].setdefault(name, detail["name"])
    for detail in interpreter.get_input_details():
        found["inputs"].setdefault(detail["name"], detail["name"])
    for detail in interpreter.get_output_details():
        found["outputs"].setdefault(detail["name"], detail["name"])
    return found


def _match(wanted: Sequence[str], known: Mapping[str, str], present: Sequence[str]) -> dict[str, str]:
    """Source name -> ONNX name, by the TFLite tensor that both stand for; by position when all names are strange."""
    found = {name: known[name] for name in wanted if known.get(name) in present}
    if not found and len(wanted) == len(present):
        return dict(zip(wanted, present))
    return found


class errors_of:
    """Collect what a logger says at level ERROR: tf2onnx logs failures that it then passes over."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)
        self.said: list[str] = []
        self.handler = logging.Handler(logging.ERROR)
        self.handler.emit = lambda record: self.said.append(record.getMessage().strip())  # type: ignore[method-assign]

    def __enter__(self) -> list[str]:
        self.logger.addHandler(self.handler)
        return self.said

    def __exit__(self, *rest: Any) -> None:
        self.logger.removeHandler(self.handler)


def _has_schema(operator: str, version: int) -> bool:
    """Whether ONNX itself has this operator at this version; by a call that old and new ONNX packages share."""
    import onnx

    try:
        onnx.defs.get_schema(operator, version, "")
    except onnx.defs.SchemaError:
        return False
    return True


def check(model: Any, said: Sequence[str] = ()) -> None:
    """Raise InvalidOutput for a model that is not ONNX: an operator without a schema, or what ONNX's checker refuses."""
    import onnx

    opsets = {item.domain or "ai.onnx": item.version for item in model.opset_import}
    unknown: dict[str, str] = {}
    for node in nodes_of(model.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = opsets.get(node.domain or "ai.onnx")
        if domain == "" and not _has_schema(node.op_type, version or 1):
            unknown.setdefault(node.op_type, node.name)
        elif version is None:
            unknown.setdefault(f"{node.domain}::{node.op_type}", node.name)
    if unknown:
        listed = ", ".join(f"{op} (node {name})" for op, name in list(unknown.items())[:4])
        raise InvalidOutput(
            f"the ONNX file holds operators that ONNX opset {opsets.get('ai.onnx')} does not have: {listed}"
        )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        first = str(error).strip().splitlines()[0][:300]
        raise InvalidOutput(f"the ONNX file is not valid: {first}{'; ' + said[0] if said else ''}") from error


def nodes_of(graph: Any) -> Iterator[Any]:
    """Yield all nodes of a graph and of its subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)
            for inner in attribute.graphs:
                yield from nodes_of(inner)


def restore_names(model: Any, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, str]:
    """Give graph inputs and outputs the source's names and order (source name -> name now, for each side).

    Returns the renames that could not be made: a name that another value of the graph already carries, or one
    that stands for an input and an output at once.
    """
    graph = model.graph
    used = {name for node in nodes_of(graph) for name in [*node.input, *node.output]}
    used |= {item.name for item in graph.initializer}
    rename: dict[str, str] = {}
    kept: dict[str, str] = {}
    for wanted, now in [*inputs.items(), *outputs.items()]:
        if wanted == now:
            continue
        if wanted in used or wanted in rename.values() or now in rename:
            kept[wanted] = now
        else:
            rename[now] = wanted
    _rename(graph, rename)
    for side, names in ((graph.input, inputs), (graph.output, outputs)):
        order = [rename.get(now, now) for now in names.values()]
        items = {item.name: item for item in list(side)}
        copies = []
        for name in [*order, *(name for name in items if name not in order)]:
            if name in items:
                copy = type(items[name])()
                copy.CopyFrom(items[name])
                copies.append(copy)
        del side[:]
        side.extend(copies)
    return kept


def _rename(graph: Any, rename: Mapping[str, str]) -> None:
    for node in nodes_of(graph):
        for index, name in enumerate(node.input):
            node.input[index] = rename.get(name, name)
        for index, name in enumerate(node.output):
            node.output[index] = rename.get(name, name)
    for item in [*graph.input, *graph.output, *graph.value_info]:
        item.name = rename.get(item.name, item.name)


def name_batch(model: Any) -> None:
    """Call the unknown first size of every input and output `batch`, as Keras means it."""
    for item in [*model.graph.input, *model.graph.output]:
        sizes = item.type.tensor_type.shape.dim
        if sizes and not sizes[0].HasField("dim_value"):
            sizes[0].dim_param = "batch"
