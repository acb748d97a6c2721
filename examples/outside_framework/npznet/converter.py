"""The converter file of `.npznet`: to ONNX, in trueport's own toolchain for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from npznet import framework
from trueport.frameworks._base import Step, Unsupported

STEPS = (
    Step(
        name="npznet-onnx",
        source_format="npznet",
        target_format="onnx",
        toolchain="onnx",
        tool="onnx",
        rank=10,
        note="dense networks only",
    ),
)


def convert(step: str, source: str, out: str, options: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """Write every layer as the ONNX operator of the same name."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    shown = framework.graph(source, trust=False)
    told = framework.signature(source, trust=False)
    stored: dict[str, Any] = {}
    framework.parameters(source, stored.__setitem__, trust=False)
    unknown = {node["op"] for node in shown["nodes"]} - set(framework.OPERATORS)
    if unknown:
        raise Unsupported(f"no ONNX operator is known for {', '.join(sorted(unknown))}")
    nodes = [
        helper.make_node(node["op"], node["inputs"], node["outputs"], name=node["name"], **node["attributes"])
        for node in shown["nodes"]
    ]
    ends = [
        [helper.make_tensor_value_info(spec["name"], TensorProto.FLOAT, spec["shape"]) for spec in told[side]]
        for side in ("inputs", "outputs")
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "npznet", ends[0], ends[1], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    onnx.checker.check_model(model)
    onnx.save(model, out)
    return {"notes": []}
