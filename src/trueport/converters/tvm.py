"""TVM's frontends: an ONNX model, a PyTorch program or a TFLite file as a Relax module, kept with its weights.

Weights get the names that equal arrays have in the source. Inputs and outputs keep the source's names, because the
module knows them by position.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trueport.frameworks import _tvm_file
from trueport.frameworks._base import Arrays, ConvertContext, ConvertReply, InvalidOutput, SpecDict, Step, Unsupported

STEPS: tuple[Step, ...] = (
    Step(
        name="tvm-onnx",
        source_format="onnx",
        target_format="tvm",
        toolchain="tvm",
        tool="apache-tvm",
        rank=20,
    ),
    Step(
        name="tvm-torch",
        source_format="pytorch",
        target_format="tvm",
        toolchain="tvm-torch",
        tool="apache-tvm",
        rank=10,
    ),
    Step(
        name="tvm-tflite",
        source_format="tflite",
        target_format="tvm",
        toolchain="tvm",
        tool="apache-tvm",
        rank=30,
        dynamic_shapes=False,
        note="open sizes are fixed to the example's",
    ),
)

_UNKNOWN = ("OpNotImplemented", "NotImplementedError", "OpAttributeUnImplemented", "not supported", "Unsupported")
"""Words by which the frontends say that they do not know an operator."""


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Run one of STEPS. Raises Unsupported for an operator that the frontend lacks, InvalidOutput for an unusable module."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # frontends warn about every name that they make valid
            module, known, inputs = _FRONTENDS[step](source, context)
    except (Unsupported, InvalidOutput, MemoryError):
        raise
    except Exception as error:
        raise _mapped(error) from error
    outputs = _outputs(module, context["signature"]["outputs"])
    _tvm_file.store(module, out, inputs, outputs, known)
    return {"notes": []}


def _onnx(source: str, context: ConvertContext) -> tuple[Any, Arrays, list[SpecDict]]:
    import onnx
    from onnx import numpy_helper
    from tvm.relax.frontend.onnx import from_onnx

    model = onnx.load(source)
    stored = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    module = from_onnx(model, keep_params_in_input=False)
    given = {spec["name"]: spec for spec in context["signature"]["inputs"]}
    order = [item.name for item in model.graph.input if item.name not in stored]
    return module, stored, _inputs(module, [given[name] for name in order if name in given])


def _torch(source: str, context: ConvertContext) -> tuple[Any, Arrays, list[SpecDict]]:
    from tvm.relax.frontend.torch import from_exported_program

    from trueport.frameworks._torch_program import load

    program = load(source, trust=context["trust"])
    stored = {**program.state_dict, **{k: v for k, v in program.constants.items() if hasattr(v, "detach")}}
    module = from_exported_program(program, keep_params_as_input=False)
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in stored.items() if _plain(tensor)}
    return module, arrays, _inputs(module, context["signature"]["inputs"])


def _plain(tensor: Any) -> bool:
    return "bfloat16" not in str(tensor.dtype) and "float8" not in str(tensor.dtype)


def _tflite(source: str, context: ConvertContext) -> tuple[Any, Arrays, list[SpecDict]]:
    from tflite.Model import Model
    from tvm.relax.frontend.tflite import from_tflite

    model = Model.GetRootAsModel(Path(source).read_bytes(), 0)
    module = from_tflite(model)
    if isinstance(module, tuple):
        module = module[0]
    return module, {}, _inputs(module, context["signature"]["inputs"])


def _inputs(module: Any, specs: Sequence[SpecDict]) -> list[SpecDict]:
    """The source's inputs with the types that the function takes. Raises InvalidOutput when their number differs."""
    parameters = list(module["main"].params)
    if len(parameters) != len(specs):
        raise InvalidOutput(f"the model has {len(specs)} inputs, TVM's frontend made {len(parameters)} of them")
    return [_typed(spec, parameter.ty) for spec, parameter in zip(specs, parameters)]


def _outputs(module: Any, specs: Sequence[SpecDict]) -> list[SpecDict]:
    result = module["main"].ret_ty
    types = list(result.fields) if hasattr(result, "fields") else [result]
    if len(types) != len(specs):
        raise InvalidOutput(f"the model has {len(specs)} outputs, TVM's frontend made {len(types)}")
    return [_typed(spec, type_) for spec, type_ in zip(specs, types)]


def _typed(spec: SpecDict, type_: Any) -> SpecDict:
    from trueport.frameworks._tvm_view import shape_of, type_name

    made: SpecDict = {"name": spec["name"], "dtype": type_name(type_), "shape": shape_of(type_)}
    if "minimum" in spec:
        made["minimum"] = spec["minimum"]
    if "maximum" in spec:
        made["maximum"] = spec["maximum"]
    return made


def _mapped(error: BaseException) -> BaseException:
    """A frontend's exception in our terms: an operator that it does not know is Unsupported."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[-1] if "Traceback" in lines[0] else lines[0]
    if isinstance(error, (NotImplementedError, KeyError)) or any(
        word in type(error).__name__ or word in str(error) for word in _UNKNOWN
    ):
        return Unsupported(f"TVM's frontend cannot take this model: {text}")
    return RuntimeError(f"{type(error).__name__}: {text}")


_FRONTENDS = {"tvm-onnx": _onnx, "tvm-torch": _torch, "tvm-tflite": _tflite}
