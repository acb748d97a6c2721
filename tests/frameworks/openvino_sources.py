"""Sources that OpenVINO's frontends refuse. Runs in a worker, where the source's library is."""

from __future__ import annotations


def strange(out: str) -> None:
    """An ONNX model with an operator that nobody knows."""
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Strange", ["x"], ["y"], domain="of.nobody")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("of.nobody", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), out)
