"""Decides how coremltools is driven: from PyTorch programs, TorchScript, frozen TensorFlow graphs, and Keras on either backend.

What coremltools would choose silently is fixed here: float32 arithmetic unless another precision is asked for, inputs and
outputs in the source's types, sizes that the source leaves open stay open up to a bound, and the source's names, as far as
Core ML takes them. Nothing is run: that needs macOS. The toolchains hold PyTorch alone or TensorFlow alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trueport.converters import _coreml_weights as weights
from trueport.converters._coreml_interface import (
    Interface,
    Sizes,
    dtype_of,
    finish,
    open_axes,
    refused,
    tensor_type,
)
from trueport.frameworks._base import ConvertContext, ConvertReply, Step, Unsupported

PRECISIONS = ("float32", "float16", "int8-dynamic")
TARGET = "iOS16"
"""Deployment target of an ML Program where none is asked for: the first with compressed weights and float16 inputs."""
INEXACT = ("common::fuse_elementwise_to_batchnorm",)
"""Passes left out: a product and a sum become a normalisation with an epsilon of 1e-5, which makes weights 5e-6 smaller."""
_OPTIONS = (
    ("convert_to", "mlprogram (default) or neuralnetwork, the older format"),
    (
        "minimum_deployment_target",
        f"oldest system that must run it, such as iOS15 or macOS14 (default {TARGET}; iOS14 for a neural network)",
    ),
    ("largest", "largest size of an axis that the source leaves open (default 1024)"),
    (
        "passes",
        "exact (default): coremltools' passes but those that change values; default: all of coremltools' own",
    ),
    ("palettize", "bits of a lookup table for each weight: 8, 6, 4, 2 or 1 (default: none)"),
)

STEPS: tuple[Step, ...] = (
    Step(
        "coreml-torch",
        "pytorch",
        "coreml",
        "coreml-torch",
        "coremltools",
        rank=10,
        precisions=PRECISIONS,
        options=_OPTIONS,
        note="64-bit integers become 32-bit",
    ),
    Step(
        "coreml-trace",
        "pytorch",
        "coreml",
        "coreml-torch",
        "coremltools",
        rank=20,
        precisions=PRECISIONS,
        options=_OPTIONS,
        note="a trace: control flow and sizes that Python saw are baked in",
    ),
    Step(
        "coreml-torchscript",
        "torchscript",
        "coreml",
        "coreml-torch",
        "coremltools",
        rank=15,
        precisions=PRECISIONS,
        options=_OPTIONS,
        note="axes other than the batch are fixed to those of the example",
    ),
    Step(
        "coreml-savedmodel",
        "savedmodel",
        "coreml",
        "coreml-tensorflow",
        "coremltools",
        rank=15,
        precisions=PRECISIONS,
        options=_OPTIONS,
        note="its TensorFlow front end has no Erfc, so an exact GELU fails",
    ),
    Step(
        "coreml-keras",
        "keras",
        "coreml",
        "coreml-tensorflow",
        "coremltools",
        rank=10,
        precisions=PRECISIONS,
        options=_OPTIONS,
        note="its TensorFlow front end has no Erfc, so an exact GELU fails",
    ),
    Step(
        "coreml-keras-torch",
        "keras",
        "coreml",
        "coreml-torch",
        "coremltools",
        rank=20,
        precisions=PRECISIONS,
        options=_OPTIONS,
        dynamic_shapes=False,
        note="a trace of the model on Keras' PyTorch backend, with every size fixed to the example's",
    ),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Write the Core ML model at `out`. Raises Unsupported for what coremltools cannot convert, InvalidOutput for an
    interface that is not the source's."""
    wanted = _Wanted(options)
    try:
        model, interface, notes = _STEPS[step](source, wanted, context)
    except Exception as error:
        found = refused(error)
        if found is error:
            raise
        raise found from error
    model = weights.compressed(model, wanted.precision, wanted.palette, network=wanted.network)
    return finish(model, interface, out, notes)


class _Wanted:
    """The options, checked. Raises ValueError for one that means nothing, Unsupported for a combination that is not there."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        import coremltools

        self.precision = str(options.get("precision", "float32"))
        if self.precision not in PRECISIONS:
            raise Unsupported(f"precision {self.precision}: coremltools gives {', '.join(PRECISIONS)}")
        form = str(options.get("convert_to", "mlprogram")).lower()
        if form not in ("mlprogram", "neuralnetwork"):
            raise ValueError(f"option convert_to={form}: give mlprogram or neuralnetwork")
        self.network = form == "neuralnetwork"
        self.form = form
        name = str(options.get("minimum_deployment_target", "iOS14" if self.network else TARGET))
        known = {item.name.lower(): item for item in coremltools.target}
        if name.lower() not in known:
            raise ValueError(f"option minimum_deployment_target={name}: give one of {', '.join(sorted(known))}")
        self.target = known[name.lower()]
        self.largest = _number(options, "largest", 1024)
        palette = _number(options, "palettize", 0)
        if palette not in (0, 1, 2, 4, 6, 8):
            raise ValueError(f"option palettize={palette}: give 8, 6, 4, 2 or 1")
        self.palette = palette
        self.passes = str(options.get("passes", "exact"))
        if self.passes not in ("exact", "default"):
            raise ValueError(f"option passes={self.passes}: give exact or default")

    def settings(self) -> dict[str, Any]:
        """Arguments of `coremltools.convert` that do not depend on the source."""
        import coremltools

        found: dict[str, Any] = {
            "convert_to": self.form,
            "minimum_deployment_target": self.target,
            "skip_model_load": True,
        }
        if self.passes == "exact":
            found["pass_pipeline"] = coremltools.PassPipeline.DEFAULT
            found["pass_pipeline"].remove_passes(set(INEXACT))
        if not self.network:
            half = self.precision == "float16"
            found["compute_precision"] = coremltools.precision.FLOAT16 if half else coremltools.precision.FLOAT32
        return found


def _number(options: Mapping[str, Any], name: str, default: int) -> int:
    text = str(options.get(name, default))
    if not text.isdigit():
        raise ValueError(f"option {name}={text}: give a number")
    return int(text)


Made = tuple[Any, Interface, list[str]]


# -- PyTorch --------------------------------------------------------------------------------------------------------


def _program(source: str, wanted: _Wanted, context: ConvertContext) -> Made:
    """An exported program as it is, in the operators that coremltools reads."""
    import coremltools

    from trueport.frameworks._torch_program import load

    program = load(source, trust=context["trust"]).run_decompositions({})
    _bound(program, wanted.largest)
    interface = Interface.of(context["signature"])
    model = coremltools.convert(program, outputs=interface.output_types(context), **wanted.settings())
    return model, interface, []


def _bound(program: Any, largest: int) -> None:
    """Give sizes that are open without a limit one: coremltools would write 2147483647."""
    import sympy
    from torch.utils._sympy.value_ranges import ValueRanges

    for symbol, span in list(program.range_constraints.items()):
        if span.upper == sympy.oo or span.upper > 2**31 - 1:
            program.range_constraints[symbol] = ValueRanges(span.lower, sympy.Integer(max(largest, int(span.lower))))


def _trace(source: str, wanted: _Wanted, context: ConvertContext) -> Made:
    """A trace of an exported program."""
    import torch

    from trueport.converters.torch_onnx import _show_sizes_to_tracer, open_program

    module, args, kwargs = open_program(source, context)
    _show_sizes_to_tracer(module)
    with torch.no_grad():
        if kwargs:
            traced = torch.jit.trace(
                module, example_inputs=None, example_kwarg_inputs=kwargs, strict=False, check_trace=False
            )
        else:
            traced = torch.jit.trace(module, args, strict=False, check_trace=False)
    return _traced(traced, wanted, context, open_axes(context["signature"]))


def _script(source: str, wanted: _Wanted, context: ConvertContext) -> Made:
    """A TorchScript file. Where it does not say which axes are open, the first is taken to be."""
    import torch

    module = torch.jit.load(source, map_location="cpu").eval()
    axes = open_axes(context["signature"])
    for spec in context["signature"]["inputs"]:
        if spec["shape"] is None and context["example"][spec["name"]].ndim > 1:
            axes[spec["name"]] = (0,)
    return _traced(module, wanted, context, axes)


def _traced(module: Any, wanted: _Wanted, context: ConvertContext, axes: Sizes) -> Made:
    """Convert a traced module with its open axes; where that fails, with all sizes fixed."""
    import coremltools

    interface = Interface.of(context["signature"])

    def converted(open_ones: Sizes) -> Any:
        inputs = [
            tensor_type(interface.inputs[spec["name"]], spec, context, open_ones, wanted.largest)
            for spec in context["signature"]["inputs"]
        ]
        outputs = interface.output_types(context)
        return coremltools.convert(module, source="pytorch", inputs=inputs, outputs=outputs, **wanted.settings())

    return _open_or_fixed(converted, axes, interface)


def _open_or_fixed(converted: Any, axes: Sizes, interface: Interface) -> Made:
    try:
        return converted(axes), interface, []
    except Exception:  # whatever coremltools stumbles over, fixed sizes are its safe ground
        if not any(axes.values()):
            raise
        model = converted({})
    return model, interface, ["open sizes were fixed to those of the example: coremltools could not keep them open"]


def _keras_torch(source: str, wanted: _Wanted, context: ConvertContext) -> Made:
    """A trace of a Keras model that runs on PyTorch."""
    import torch

    from trueport.converters._coreml_keras import know_aliases, on_torch

    module = on_torch(source, trust=context["trust"])
    example = tuple(
        torch.from_numpy(context["example"][spec["name"]].copy()) for spec in context["signature"]["inputs"]
    )
    with torch.no_grad():
        traced = torch.jit.trace(module, example, strict=False, check_trace=False)
    know_aliases()
    return _traced(traced, wanted, context, {})


# -- TensorFlow -----------------------------------------------------------------------------------------------------


def _savedmodel(source: str, wanted: _Wanted, context: ConvertContext) -> Made:
    return _frozen(source, wanted, context, saved_model=True)


def _keras(source: str, wanted: _Wanted, context: ConvertContext) -> Made:
    return _frozen(source, wanted, context, saved_model=False)


def _frozen(source: str, wanted: _Wanted, context: ConvertContext, *, saved_model: bool) -> Made:
    """A frozen graph as one concrete function under the source's names."""
    import coremltools

    from trueport.converters._coreml_tensorflow import concrete
    from trueport.converters.tf2onnx import frozen_source

    frozen = frozen_source(source, saved_model=saved_model, trust=context["trust"])
    interface = Interface.of(context["signature"])
    specs = {spec["name"]: spec for spec in context["signature"]["inputs"]}

    def converted(open_ones: Sizes) -> Any:
        function = concrete(frozen, interface.inputs, open_ones, context)
        inputs = [
            tensor_type(interface.inputs[name], specs[name], context, open_ones, wanted.largest)
            for name in frozen.inputs
        ]
        names = [tensor.op.name for tensor in function.outputs]
        interface.written.update(zip(frozen.outputs, names))
        types = [dtype_of(spec) for spec in context["signature"]["outputs"]]
        outputs = [coremltools.TensorType(name=name, dtype=dtype) for name, dtype in zip(names, types)]
        return coremltools.convert([function], source="tensorflow", inputs=inputs, outputs=outputs, **wanted.settings())

    return _open_or_fixed(converted, open_axes(context["signature"]), interface)


_STEPS = {
    "coreml-torch": _program,
    "coreml-trace": _trace,
    "coreml-torchscript": _script,
    "coreml-savedmodel": _savedmodel,
    "coreml-keras": _keras,
    "coreml-keras-torch": _keras_torch,
}
