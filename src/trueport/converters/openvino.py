"""OpenVINO's own frontends: ONNX, TFLite, SavedModel, PyTorch programs and TorchScript as OpenVINO IR.

`save_model` stores weights as float16 unless told otherwise; here it does so only where precision float16 is asked for.
Inputs and outputs of the result carry the source's names, paired by name where the frontend kept it, else by position.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueport.frameworks._base import ConvertContext, ConvertReply, InvalidOutput, SpecDict, Step, Unsupported

PRECISIONS = ("float32", "float16")
_COMPRESSED = "precision float16 stores the weights as float16 and computes in float32"


def _step(name: str, source: str, toolchain: str, rank: int, **more: Any) -> Step:
    return Step(
        name=name,
        source_format=source,
        target_format="openvino",
        toolchain=toolchain,
        tool="openvino",
        rank=rank,
        precisions=PRECISIONS,
        **more,
    )


STEPS: tuple[Step, ...] = (
    _step("openvino-onnx", "onnx", "openvino", 10, note="Resize takes no notice of antialias and exclude_outside"),
    _step("openvino-tflite", "tflite", "openvino", 20),
    _step("openvino-savedmodel", "savedmodel", "openvino", 15),
    _step("openvino-torch", "pytorch", "openvino-torch", 10),
    _step("openvino-torchscript", "torchscript", "openvino-torch", 15),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Write the IR at `out`, its weights beside it. Raises Unsupported for an operator that the frontend lacks."""
    import openvino

    precision = str(options.get("precision", "float32"))
    if precision not in PRECISIONS:
        raise Unsupported(f"OpenVINO's converter has no precision '{precision}'; it gives {', '.join(PRECISIONS)}")
    with _errors():
        model = _READERS.get(step, _from_file)(source, context)
    signature = context["signature"]
    _fix_sizes(model, signature["inputs"])
    _name(model.inputs, [spec["name"] for spec in signature["inputs"]], "inputs")
    _name(model.outputs, [spec["name"] for spec in signature["outputs"]], "outputs")
    openvino.save_model(model, out, compress_to_fp16=precision == "float16")
    if not Path(out).is_file():
        raise InvalidOutput("OpenVINO reported success and wrote no file")
    return {"notes": [_COMPRESSED] if precision == "float16" else []}


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """What a frontend raises for an operator that it does not translate is Unsupported, with the operator's name."""
    try:
        yield
    except Exception as error:  # frontends raise classes of their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        telling = [
            line
            for line in lines
            if "No translator found" in line or "is not supported" in line or "doesn't support" in line
            or "not supported" in line or "No conversion rule" in line or "Conversion is failed for" in line
        ]  # fmt: skip
        if telling:
            raise Unsupported(f"OpenVINO cannot convert this model: {' '.join(telling)[:400]}") from error
        raise


def _from_file(source: str, context: ConvertContext) -> Any:
    import openvino

    return openvino.convert_model(source)


def _from_program(source: str, context: ConvertContext) -> Any:
    import openvino

    from trueport.frameworks._torch_program import load

    return openvino.convert_model(load(source, trust=context["trust"]))


def _from_script(source: str, context: ConvertContext) -> Any:
    """TorchScript shows no shapes: those that the source's signature has are given, axes that it leaves open stay open."""
    import openvino
    import torch

    script = torch.jit.load(source, map_location="cpu").eval()
    shapes, examples = [], []
    for spec in context["signature"]["inputs"]:
        example = np.array(context["example"][spec["name"]])
        examples.append(torch.from_numpy(example))
        known = [None] * example.ndim if spec["shape"] is None else spec["shape"]
        shapes.append(openvino.PartialShape([size if isinstance(size, int) else -1 for size in known]))
    types = [openvino.Type(np.dtype(spec["dtype"])) for spec in context["signature"]["inputs"]]
    return openvino.convert_model(script, example_input=tuple(examples), input=list(zip(shapes, types)))


_READERS = {"openvino-torch": _from_program, "openvino-torchscript": _from_script}


def _fix_sizes(model: Any, specs: Sequence[SpecDict]) -> None:
    """Sizes that the source fixes are fixed in the result too: frontends of PyTorch leave all of them open."""
    import openvino

    order = paired([port.get_names() for port in model.inputs], [spec["name"] for spec in specs])
    shapes = {}
    for place, spec in zip(order, specs):
        now = model.inputs[place].get_partial_shape()
        if spec["shape"] is None or (not now.rank.is_dynamic and now.rank.get_length() != len(spec["shape"])):
            continue
        shapes[place] = openvino.PartialShape([size if isinstance(size, int) else -1 for size in spec["shape"]])
    with contextlib.suppress(RuntimeError):  # a size that the graph itself contradicts is left as the frontend has it
        model.reshape(shapes)


def _name(ports: Sequence[Any], names: Sequence[str], what: str) -> None:
    """Give the ports the source's names. Raises InvalidOutput where there are not as many."""
    if len(ports) != len(names):
        raise InvalidOutput(f"the source has {len(names)} {what}, and what OpenVINO made of it {len(ports)}")
    order = paired([port.get_names() for port in ports], names)
    for place, name in zip(order, names):
        ports[place].get_tensor().set_names({name})


def paired(known: Sequence[Any], names: Sequence[str]) -> list[int]:
    """For each name the port that has it; by position where not every name belongs to a port of its own."""
    places = [next((place for place, own in enumerate(known) if name in own), -1) for name in names]
    return places if sorted(places) == list(range(len(known))) else list(range(len(known)))
