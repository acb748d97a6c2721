"""Small ONNX models to be edited, and what a file holds piece by piece. `build`, `look` and `body` run in a worker."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from onnx_models import floats, model, node, value

UNKNOWN_FIELD = b"\xa0\x38\x2a"
"""A protobuf field (number 900, a 42) that no version of ONNX knows: what a file holds must outlive an edit."""


def build(name: str, out: str) -> None:
    """Write the model `name` (a key of MODELS) to `out`; "external" has its weights in weights.bin beside it."""
    import onnx

    made = MODELS[name]()
    onnx.checker.check_model(made)
    if name == "external":
        onnx.save(made, out, save_as_external_data=True, location="weights.bin", size_threshold=0)
        return
    with open(out, "wb") as file:  # noqa: PTH123
        file.write(made.SerializeToString() + UNKNOWN_FIELD)


def look(path: str) -> dict[str, Any]:
    """What the file holds: piece ("node conv", "initializer w", "meta ..") -> a digest of its bytes; and the checker's word."""
    import onnx

    made = onnx.load(path, load_external_data=False)
    pieces = {}
    graph = made.graph
    for kind in ("initializer", "sparse_initializer", "value_info", "input", "output"):
        for item in getattr(graph, kind):
            name = item.values.name if kind == "sparse_initializer" else item.name
            pieces[f"{kind} {name}"] = digest(item)
    for item in graph.node:
        pieces[f"node {item.name or item.output[0]}"] = digest(item)
    for kind in ("node", "initializer", "sparse_initializer", "value_info", "input", "output"):
        graph.ClearField(kind)
    pieces["everything else"] = digest(made)
    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:  # noqa: BLE001
        pieces["checker"] = str(error)
    return pieces


def digest(item: Any) -> str:
    return hashlib.sha256(item.SerializeToString(deterministic=True)).hexdigest()[:16]


def body(path: str) -> list[dict[str, Any]]:
    """The nodes: name, operator, inputs, outputs."""
    import onnx

    return [
        {
            "name": item.name or item.output[0],
            "op": item.op_type,
            "inputs": list(item.input),
            "outputs": list(item.output),
        }
        for item in onnx.load(path, load_external_data=False).graph.node
    ]


def read(path: str, name: str) -> np.ndarray:
    """A constant of the main graph as it is stored."""
    import onnx

    from trueport.frameworks import _onnx_file

    made = onnx.load(path)
    return np.array(onnx.numpy_helper.to_array(_onnx_file.constants(made.graph)[name]))


def sizes(path: str) -> dict[str, list[Any]]:
    """Recorded shapes of inputs, outputs and values; a free size is its name or ""."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return {
        item.name: [size.dim_value or size.dim_param for size in item.type.tensor_type.shape.dim]
        for item in [*graph.input, *graph.output, *graph.value_info]
    }


def picture(opset: int = 17) -> Any:
    """Conv, Relu, mean over the picture, Clip, MatMul; recorded shapes, metadata, a spare tensor that nobody reads."""
    weights = {
        "w": floats(4, 3, 3, 3, seed=1),
        "b": floats(4, seed=2),
        "m": floats(4, 5, seed=3),
        "lo": np.float32(-1),
        "hi": np.float32(6),
        "spare": floats(3, seed=4),
    }
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1], doc_string="kept"),
        node("Relu", ["c"], ["r"], name="relu"),
        node("Sigmoid", ["r"], ["unread"], name="useless"),
        node("ReduceMean", ["r"], ["p"], axes=[2, 3], keepdims=0),
        node("Clip", ["p", "lo", "hi"], ["k"], name="clip"),
        node("MatMul", ["k", "m"], ["y"], name="mm"),
    ]
    made = model(nodes, [value("x", [2, 3, 8, 8])], [value("y", [2, 5])], weights, opset=opset)
    made.graph.value_info.extend([value("c", [2, 4, 8, 8]), value("r", [2, 4, 8, 8]), value("k", [2, 4])])
    made.metadata_props.add(key="author", value="tests")
    made.doc_string, made.model_version = "a small model", 7
    return made


def bare() -> Any:
    """No bias anywhere: Conv, then Gemm and MatMul and a layer norm without one; two outputs."""
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="conv"),
        node("Flatten", ["c"], ["f"], name="flat"),
        node("Gemm", ["f", "g"], ["h"], name="gemm", beta=0.5),
        node("LayerNormalization", ["h", "s"], ["n"], name="norm"),
        node("MatMul", ["n", "m"], ["y"], name="mm"),
    ]
    weights = {
        "w": floats(4, 3, 8, 8, seed=1, scale=0.1),
        "g": floats(4, 6, seed=2),
        "s": floats(6, seed=3),
        "m": floats(6, 5, seed=4),
    }
    return model(nodes, [value("x", ["n", 3, 8, 8])], [value("y", ["n", 5]), value("h", ["n", 6])], weights)


def shared() -> Any:
    """Two products and an If read one constant; a Constant node, and a constant behind a Transpose that two nodes read."""
    from onnx import helper, numpy_helper

    inner = helper.make_tensor_value_info("inner", 1, None)
    then = helper.make_graph(
        [node("Add", ["x", "s"], ["t"]), node("Add", ["t", "deep"], ["inner"])],
        "then",
        [],
        [inner],
        [numpy_helper.from_array(np.full(4, 0.5, np.float32), "deep")],
    )
    other = helper.make_graph([node("Identity", ["x"], ["inner2"])], "else", [], [value("inner2", None)])
    tensor = numpy_helper.from_array(floats(4, seed=7), "")
    nodes = [
        node("Constant", [], ["k"], name="constant", value=tensor),
        node("Mul", ["x", "s"], ["a"], name="first"),
        node("Mul", ["x", "s"], ["b"], name="second"),
        node("Transpose", ["q"], ["qt"], name="turn", perm=[1, 0]),
        node("MatMul", ["a", "qt"], ["c"], name="left"),
        node("MatMul", ["b", "qt"], ["d"], name="right"),
        node("If", ["yes"], ["e"], name="branch", then_branch=then, else_branch=other),
        node("Add", ["e", "k"], ["f"], name="last"),
    ]
    weights = {"s": floats(4, seed=5), "q": floats(4, 4, seed=6), "yes": np.array(True)}
    outputs = [value("c", ["n", 4]), value("d", ["n", 4]), value("f", ["n", 4])]
    return model(nodes, [value("x", ["n", 4])], outputs, weights)


def qdq() -> Any:
    """A quantised convolution as QuantizeLinear and DequantizeLinear say it: int8 weights per channel, int32 bias."""
    scale = np.array([0.01, 0.02, 0.03, 0.04], np.float32)
    weights = {
        "w": np.random.default_rng(1).integers(-120, 120, (4, 3, 3, 3)).astype(np.int8),
        "ws": scale,
        "wz": np.zeros(4, np.int8),
        "b": np.random.default_rng(2).integers(-900, 900, 4).astype(np.int32),
        "bs": (scale * np.float32(0.05)).astype(np.float32),
        "xs": np.float32(0.05),
        "xz": np.uint8(128),
    }
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="quantize"),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], name="dequantize"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="weights", axis=0),
        node("DequantizeLinear", ["b", "bs"], ["bd"], name="bias", axis=0),
        node("Conv", ["xd", "wd", "bd"], ["y"], name="conv"),
    ]
    return model(nodes, [value("x", ["n", 3, 5, 5])], [value("y", ["n", 4, 3, 3])], weights)


def qlinear() -> Any:
    """A convolution and a matrix product in operators that work on the grid."""
    weights = {
        "xs": np.float32(0.05),
        "xz": np.uint8(128),
        "w": np.random.default_rng(1).integers(-120, 120, (4, 3, 5, 5)).astype(np.int8),
        "ws": np.array([0.01, 0.02, 0.03, 0.04], np.float32),
        "wz": np.zeros(4, np.int8),
        "ys": np.float32(0.2),
        "yz": np.uint8(120),
        "b": np.random.default_rng(2).integers(-900, 900, 4).astype(np.int32),
        "m": np.random.default_rng(3).integers(0, 255, (4, 5)).astype(np.uint8),
        "ms": np.float32(0.02),
        "mz": np.uint8(100),
        "zs": np.float32(1.5),
    }
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="quantize"),
        node("QLinearConv", ["xq", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"], ["c"], name="conv"),
        node("Flatten", ["c"], ["f"], name="flat"),
        node("QLinearMatMul", ["f", "ys", "yz", "m", "ms", "mz", "zs", "yz"], ["z"], name="mm"),
        node("DequantizeLinear", ["z", "zs", "yz"], ["y"], name="dequantize"),
    ]
    return model(nodes, [value("x", ["n", 3, 5, 5])], [value("y", ["n", 5])], weights)


def dynamic() -> Any:
    """A matrix product that is quantised as it runs."""
    weights = {
        "w": np.random.default_rng(1).integers(-120, 120, (6, 5)).astype(np.int8),
        "ws": np.float32(0.02),
        "wz": np.int8(0),
    }
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"], name="quantize"),
        node("MatMulInteger", ["xq", "w", "xz", "wz"], ["i"], name="mm"),
        node("Cast", ["i"], ["r"], name="cast", to=1),
        node("Mul", ["xs", "ws"], ["both"], name="scales"),
        node("Mul", ["r", "both"], ["y"], name="scaled"),
    ]
    return model(nodes, [value("x", ["n", 6])], [value("y", ["n", 5])], weights)


def half() -> Any:
    """Two float16 products with a float32 input and output."""
    weights = {"w": floats(6, 6, seed=1).astype(np.float16), "v": floats(6, 5, seed=2).astype(np.float16)}
    nodes = [
        node("Cast", ["x"], ["h"], name="down", to=10),
        node("MatMul", ["h", "w"], ["a"], name="first"),
        node("MatMul", ["a", "v"], ["b"], name="second"),
        node("Cast", ["b"], ["y"], name="up", to=1),
    ]
    return model(nodes, [value("x", ["n", 6])], [value("y", ["n", 5])], weights)


def old() -> Any:
    """Opset 9, where the bounds of Clip, the axes of Squeeze and the places of Slice are attributes."""
    nodes = [
        node("Clip", ["x"], ["a"], name="clip", min=-1.0, max=1.0),
        node("Slice", ["a"], ["b"], name="slice", axes=[1], starts=[0], ends=[4]),
        node("Relu", ["b"], ["y"], name="relu"),
    ]
    return model(nodes, [value("x", ["n", 6, 3])], [value("y", ["n", 4, 3])], opset=9, ir=4)


def ancient() -> Any:
    """IR version 3: every stored tensor is listed among the inputs too."""
    return model(
        [node("MatMul", ["x", "m"], ["y"], name="mm")],
        [value("x", ["n", 6]), value("m", [6, 5])],
        [value("y", ["n", 5])],
        {"m": floats(6, 5, seed=1)},
        opset=8,
        ir=3,
    )


def patches() -> Any:
    """A picture model with a batch of one baked in: a Reshape, a joined token, an Expand that does nothing, a Flatten."""
    weights = {
        "w": floats(6, 3, 4, 4, seed=1, scale=0.2),
        "flat": np.array([1, 6, 4], np.int64),
        "token": floats(1, 1, 6, seed=2),
        "position": floats(1, 5, 6, seed=3),
        "heads": np.array([1, 5, 2, 3], np.int64),
        "wide": np.array([1, 5, 2, 3], np.int64),
        "joined": np.array([1, 30], np.int64),
        "m": floats(30, 5, seed=4),
    }
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="conv", strides=[4, 4]),
        node("Reshape", ["c", "flat"], ["f"], name="flatten"),
        node("Transpose", ["f"], ["t"], name="turn", perm=[0, 2, 1]),
        node("Concat", ["token", "t"], ["j"], name="join", axis=1),
        node("Add", ["j", "position"], ["p"], name="add"),
        node("Reshape", ["p", "heads"], ["h"], name="split"),
        node("Expand", ["h", "wide"], ["e"], name="expand"),
        node("Reshape", ["e", "joined"], ["l"], name="merge"),
        node("MatMul", ["l", "m"], ["y"], name="mm"),
    ]
    made = model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 5])], weights)
    made.graph.value_info.extend([value("c", [1, 6, 2, 2]), value("h", [1, 5, 2, 3]), value("l", [1, 30])])
    return made


def recurrent() -> Any:
    """An LSTM with first states of zeros for a batch of two, and no bias."""
    weights = {
        "w": floats(1, 16, 3, seed=1),
        "r": floats(1, 16, 4, seed=2),
        "h0": np.zeros((1, 2, 4), np.float32),
        "c0": np.zeros((1, 2, 4), np.float32),
    }
    nodes = [node("LSTM", ["x", "w", "r", "", "", "h0", "c0"], ["s", "y"], name="lstm", hidden_size=4)]
    return model(nodes, [value("x", [5, 2, 3])], [value("y", [1, 2, 4])], weights)


def order() -> Any:
    """Operators whose operands are settings in today's opset: Pad, Resize, TopK, Split, Squeeze, ReduceSum."""
    weights = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "fill": np.float32(0),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "axes": np.array([3], np.int64),
        "k": np.array([2], np.int64),
    }
    nodes = [
        node("Pad", ["x", "pads", "fill"], ["p"], name="pad"),
        node("Resize", ["p", "", "scales"], ["r"], name="resize", mode="nearest"),
        node("ReduceSum", ["r", "axes"], ["s"], name="sum", keepdims=0),
        node("TopK", ["s", "k"], ["y", "i"], name="top", axis=-1),
        node("Concat", ["x", "z"], ["j"], name="join", axis=1),
        node("Sub", ["x", "z"], ["d"], name="less"),
    ]
    shape = [1, 2, 4, 4]
    outputs = [value("y", [1, 2, 2]), value("j", [1, 4, 4, 4]), value("d", shape)]
    return model(nodes, [value("x", shape), value("z", shape)], outputs, weights)


MODELS = {
    "picture": picture,
    "bare": bare,
    "shared": shared,
    "qdq": qdq,
    "qlinear": qlinear,
    "dynamic": dynamic,
    "half": half,
    "old": old,
    "ancient": ancient,
    "patches": patches,
    "recurrent": recurrent,
    "order": order,
    "external": picture,
}
