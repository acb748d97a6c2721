"""ExecuTorch: a PyTorch program as a .pte file for the portable kernels or for XNNPACK.

A program whose sizes are open is exported anew with those of the example: memory is planned ahead, and PyTorch's open
sizes have no largest. A .pte has no names, so the reply tells which position belongs to which name.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueport.frameworks._base import ConvertContext, ConvertReply, InvalidOutput, Step, Unsupported

_BACKENDS = ("portable", "xnnpack")

STEPS: tuple[Step, ...] = (
    Step(
        name="executorch",
        source_format="pytorch",
        target_format="executorch",
        toolchain="executorch",
        tool="executorch",
        rank=10,
        options=(("backend", "portable (default): the reference kernels; xnnpack: XNNPACK takes over what it can"),),
        dynamic_shapes=False,
    ),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: ConvertContext) -> ConvertReply:
    """Lower and write. Raises Unsupported for an operator without a kernel, ValueError for an unknown backend."""
    backend = str(options.get("backend") or _BACKENDS[0])
    if backend not in _BACKENDS:
        raise ValueError(f"option backend={backend}: give {' or '.join(_BACKENDS)}")
    logging.getLogger().setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program, notes = _program(source, context)
        try:
            content = _lowered(program, backend)
        except Exception as error:
            raise _mapped(error) from error
    partial = Path(f"{out}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(out)
    inputs = [spec["name"] for spec in context["signature"]["inputs"]]
    outputs = [spec["name"] for spec in context["signature"]["outputs"]]
    names = {name: f"input_{place}" for place, name in enumerate(inputs)}
    names.update({name: f"output_{place}" for place, name in enumerate(outputs)})
    _check_count(out, len(inputs), len(outputs))
    return {"notes": notes, "names": names}


def _program(source: str, context: ConvertContext) -> tuple[Any, list[str]]:
    """The exported program, with every size fixed."""
    import torch

    from trueport.converters.torch_onnx import open_program
    from trueport.frameworks._torch_program import load

    exported = load(source, trust=context["trust"])
    if not exported.range_constraints:
        return exported, []
    module, args, kwargs = open_program(source, context)
    fixed = torch.export.export(module, args, kwargs or None, strict=False)
    return fixed, ["open sizes are fixed to the example's"]


def _lowered(program: Any, backend: str) -> bytes:
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    partitioners = None
    if backend == "xnnpack":
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        partitioners = [XnnpackPartitioner()]
    edge = to_edge_transform_and_lower(
        program, partitioner=partitioners, compile_config=EdgeCompileConfig(_check_ir_validity=True)
    )
    return bytes(edge.to_executorch().buffer)


def _check_count(out: str, inputs: int, outputs: int) -> None:
    """Raise InvalidOutput when the file takes or gives another number of values than the source."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    plan = deserialize_pte_binary(Path(out).read_bytes()).program.execution_plan[0]
    for what, wanted, made in (("inputs", inputs, plan.inputs), ("outputs", outputs, plan.outputs)):
        if len(made) != wanted:
            raise InvalidOutput(f"the model has {wanted} {what}, ExecuTorch wrote {len(made)}")


def _mapped(error: BaseException) -> BaseException:
    """ExecuTorch's exception in our terms: an operator that it cannot lower is Unsupported."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines[:3])[:400]
    if type(error).__name__ in ("SpecViolationError", "NotImplementedError") or "Missing out variants" in str(error):
        return Unsupported(f"ExecuTorch cannot take this model: {text}")
    return RuntimeError(f"{type(error).__name__}: {text}")
