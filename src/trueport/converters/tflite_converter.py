"""Decides how TensorFlow's TFLiteConverter is driven: from a function without variables, with real signature names.

Keras models and SavedModels are frozen first (variables left in the function become operators that fail at run
time), wrapped under the source's input and output names, and converted with the signature, so that the TFLite file
keeps those names. A batch of unknown size is kept where the tool can; where it cannot, the example's size is fixed.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks._base import ConvertContext, ConvertReply, InvalidOutput, Step, Unsupported

PRECISIONS = ("float32", "float16", "int8-dynamic", "int8")
_OPTIONS = (
    ("io", "int8: dtype of inputs and outputs, float32 (default) or int8"),
    ("batch", "fix the batch to this size instead of leaving it open"),
)
_KERAS_OPTIONS = (*_OPTIONS, ("unroll", "write recurrent layers step by step instead of as loops: yes or no (default)"))

STEPS: tuple[Step, ...] = (
    Step(
        "tflite-keras",
        "keras",
        "tflite",
        "tensorflow",
        "tensorflow",
        rank=10,
        precisions=PRECISIONS,
        options=_KERAS_OPTIONS,
    ),
    Step(
        "tflite-keras2",
        "keras",
        "tflite",
        "tf-keras",
        "tensorflow",
        rank=10,
        precisions=PRECISIONS,
        options=_KERAS_OPTIONS,
        legacy_keras=True,
    ),
    Step(
        "tflite-savedmodel",
        "savedmodel",
        "tflite",
        "tensorflow",
        "tensorflow",
        rank=15,
        precisions=PRECISIONS,
        options=_OPTIONS,
    ),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Write the TFLite model at `out`. Raises Unsupported, InvalidOutput, or what the converter raises."""
    from trueport.converters.tf2onnx import flag, frozen_source
    from trueport.frameworks._keras_model import safe_names

    precision = str(options.get("precision", "float32"))
    io = str(options.get("io", "float32"))
    if precision not in PRECISIONS or io not in ("float32", "int8"):
        raise Unsupported(f"TFLiteConverter has no precision '{precision}' with inputs and outputs in '{io}'")
    if io == "int8" and precision != "int8":
        raise Unsupported("option io=int8 needs precision int8")
    saved_model = step == "tflite-savedmodel"
    freeze = functools.partial(
        frozen_source, source, saved_model=saved_model, trust=context["trust"], unroll=flag(options, "unroll")
    )
    frozen = freeze()
    if precision == "int8" and any(node.op in ("While", "StatelessWhile") for node in frozen.graph_def.node):
        raise Unsupported(
            "TFLiteConverter's int8 calibration dies on models with loops, such as recurrent layers; "
            "use --option STEP.unroll=yes or precision int8-dynamic"
        )
    safe = dict(zip(frozen.inputs, safe_names(list(frozen.inputs))))
    safe_out = dict(zip(frozen.outputs, safe_names(list(frozen.outputs))))
    notes: list[str] = []
    fixed = options.get("batch")
    try:
        data = _convert(frozen, safe, safe_out, _shapes(frozen, context, fixed), precision, io, context)
    except Exception as error:  # whatever the converter raises, the reason decides
        if fixed is not None or not _needs_static(error):
            raise
        shapes = _shapes(frozen, context, "example")
        frozen = freeze(shapes=shapes)
        data = _convert(frozen, safe, safe_out, shapes, precision, io, context)
        notes.append("open sizes were fixed to those of the example input: the converter cannot keep them open")
    _write_checked(data, out)
    renamed = {name: new for name, new in [*safe.items(), *safe_out.items()] if name != new}
    return ConvertReply(notes=notes, names=renamed)


def _needs_static(error: BaseException) -> bool:
    text = f"{type(error).__name__} {error}"
    return any(word in text for word in ("TensorList", "static", "dynamic", "requires element_shape", "unknown rank"))


def _shapes(frozen: Any, context: ConvertContext, fixed: Any) -> dict[str, list[Any]]:
    """Input name -> shape to convert with: open sizes stay None, or come from option `batch` or from the example."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(frozen.graph_def, name="")
    shapes = {}
    for name, tensor in frozen.inputs.items():
        shape = graph.get_tensor_by_name(tensor).shape
        example = context["example"].get(name)
        sizes = list(shape.as_list()) if shape.rank is not None else [None] * (0 if example is None else example.ndim)
        if fixed == "example" and example is not None:
            sizes = [int(size) for size in example.shape]
        elif fixed is not None and fixed != "example" and sizes and sizes[0] is None:
            sizes[0] = int(fixed)
        shapes[name] = sizes
    return shapes


def _convert(
    frozen: Any,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    shapes: Mapping[str, list[Any]],
    precision: str,
    io: str,
    context: ConvertContext,
) -> bytes:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        save_frozen(frozen, inputs, outputs, shapes, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serving_default"])
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            if not context["calibration"]:
                raise Unsupported("precision int8 needs calibration data: give representative inputs with --inputs")
            converter.representative_dataset = lambda: _samples(context, inputs, shapes)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            if io == "int8":
                converter.inference_input_type = converter.inference_output_type = tf.int8
        return bytes(converter.convert())


def save_frozen(
    frozen: Any, inputs: Mapping[str, str], outputs: Mapping[str, str], shapes: Mapping[str, list[Any]], folder: str
) -> None:
    """Save a frozen graph as a SavedModel whose signature has these names (source name -> name in the signature)."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(frozen.graph_def, name="")
    specs = {
        inputs[name]: tf.TensorSpec(shapes[name], graph.get_tensor_by_name(tensor).dtype, name=inputs[name])
        for name, tensor in frozen.inputs.items()
    }

    def apply(**arguments: Any) -> dict[str, Any]:
        results = tf.graph_util.import_graph_def(
            frozen.graph_def,
            input_map={tensor: arguments[inputs[name]] for name, tensor in frozen.inputs.items()},
            return_elements=list(frozen.outputs.values()),
            name="model",  # apart from the arguments, whose names the signature takes
        )
        return {outputs[name]: tf.identity(value) for name, value in zip(frozen.outputs, results)}

    module = tf.Module()
    module.apply = tf.function(apply, autograph=False)
    signatures = {"serving_default": module.apply.get_concrete_function(**specs)}
    # The gradient of Keras' silu refers to a tensor outside its function, which cannot be saved; nothing here needs it.
    plain = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, folder, signatures=signatures, options=plain)


def _samples(
    context: ConvertContext, inputs: Mapping[str, str], shapes: Mapping[str, list[Any]]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield calibration inputs under their signature names, one run at a time, cut to a fixed batch where there is one."""
    calibration = {name: context["calibration"][name] for name in inputs}
    for run in range(next(iter(calibration.values())).shape[0]):
        sample = {}
        for name, array in calibration.items():
            value = np.asarray(array[run])
            if shapes[name] and shapes[name][0] is not None:
                value = value[: shapes[name][0]]
            sample[inputs[name]] = value
        yield sample


def flex_notes(interpreter: Any) -> list[str]:
    """Say which TensorFlow operators a TFLite file holds; the plain runtime has no kernels for them."""
    held = sorted(
        {detail["op_name"] for detail in interpreter._get_ops_details() if detail["op_name"].startswith("Flex")}
    )
    return [f"the file needs the TensorFlow (Flex) delegate for {', '.join(held)}"] if held else []


def _write_checked(data: bytes, out: str) -> None:
    """Write the file once the interpreter has accepted it. Raises InvalidOutput when it does not load."""
    import tensorflow as tf

    if len(data) < 8 or data[4:8] != b"TFL3":
        raise InvalidOutput("the converter returned no TFLite file")
    try:
        tf.lite.Interpreter(model_content=data)
    except (ValueError, RuntimeError) as error:
        raise InvalidOutput(f"the converted TFLite file does not load: {str(error).splitlines()[0][:300]}") from error
    Path(out).write_bytes(data)
