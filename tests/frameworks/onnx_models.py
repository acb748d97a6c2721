"""Small ONNX models for tests. `build` runs in a worker of the `onnx` toolchain, because the parent has no onnx:

pool.call(python, "onnx_models", "build", {"name": "two_conv_bn", "out": str(path)}, stage=Stage.LOAD, paths=[FOLDER])
"""

from __future__ import annotations

from typing import Any

import numpy as np

OPSET = 17


def build(name: str, out: str) -> None:
    """Write the model `name` (a key of MODELS) to `out`."""
    import onnx

    made = MODELS[name]()
    if name == "external":
        onnx.save(made, out, save_as_external_data=True, location="weights.bin", size_threshold=0)
        return
    onnx.save(made, out)


def build_huge(out: str, width: int) -> None:
    """Write y = −(x·w) as MatMul and Neg; w [width, width] lies in a sparse file "huge.data", zero but for a first row of −1."""
    from pathlib import Path

    from onnx import TensorProto

    made = model(
        [node("MatMul", ["x", "w"], ["h"]), node("Neg", ["h"], ["y"])],
        [value("x", [1, width])],
        [value("y", [1, width])],
    )
    tensor = TensorProto(name="w", dims=[width, width], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, item in (("location", "huge.data"), ("offset", "0"), ("length", str(4 * width * width))):
        tensor.external_data.add(key=key, value=item)
    made.graph.initializer.append(tensor)
    with (Path(out).parent / "huge.data").open("wb") as file:
        file.write(np.full(width, -1, np.float32).tobytes())
        file.truncate(4 * width * width)
    Path(out).write_bytes(made.SerializeToString())


def change(path: str, out: str, edit: str) -> None:
    """Write a model with one thing made wrong: `edit` is "new-opset", "new-ir", "foreign-op", "escape" or "no-graph"."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    if edit == "new-opset":
        model.opset_import[0].version = 90
    elif edit == "new-ir":
        model.ir_version = 19
    elif edit == "foreign-op":
        model.opset_import.append(onnx.helper.make_opsetid("my.company", 1))
        model.graph.node[0].domain, model.graph.node[0].op_type = "my.company", "Magic"
    elif edit == "escape":
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../weights.bin"
    elif edit == "no-graph":
        model.ClearField("graph")
    with open(out, "wb") as file:  # noqa: PTH123 -- onnx.save would resolve the external data
        file.write(model.SerializeToString())


def fetch(path: str) -> np.ndarray:
    """Read a TensorProto file, as the ONNX model zoo records test data."""
    import onnx

    tensor = onnx.TensorProto()
    with open(path, "rb") as file:  # noqa: PTH123
        tensor.ParseFromString(file.read())
    return onnx.numpy_helper.to_array(tensor)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def floats(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (rng(seed).normal(size=shape) * scale).astype(np.float32)


def value(name: str, shape: Any, kind: str = "FLOAT") -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape)


def node(op: str, inputs: Any, outputs: Any, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(op, inputs, outputs, **attributes)


def model(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: dict[str, np.ndarray] | None = None,
    *,
    opset: int = OPSET,
    ir: int = 8,
    more: tuple[tuple[str, int], ...] = (),
    functions: Any = (),
) -> Any:
    from onnx import helper, numpy_helper

    stored = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(*item) for item in more)]
    return helper.make_model(
        graph,
        opset_imports=imports,
        ir_version=ir,
        producer_name="tests",
        producer_version="1",
        functions=list(functions),
    )


def batch_norm(name: str, channels: int, seed: int) -> dict[str, np.ndarray]:
    """Scale, bias, mean and variance, far enough from 1, 0, 0, 1 that dropping or swapping one shows."""
    numbers = rng(seed)
    return {
        f"{name}.scale": numbers.uniform(0.5, 2.0, channels).astype(np.float32),
        f"{name}.bias": numbers.normal(0, 2.0, channels).astype(np.float32),
        f"{name}.mean": numbers.normal(0, 1.0, channels).astype(np.float32),
        f"{name}.var": numbers.uniform(0.5, 2.0, channels).astype(np.float32),
    }


def two_conv_bn(*, width: int = 8, size: int = 12) -> Any:
    """x [1, 4, size, size] → two convolutions without bias on the SAME input, each with its own BatchNormalization → add.

    The BatchNormalization nodes are in the graph for an optimiser to fuse; onnxscript 0.5.6 then gives both fused
    convolutions one bias, because it names the new initialiser after their common input.
    """
    weights = {
        "left.w": floats(width, 4, 3, 3, seed=1, scale=0.3),
        "right.w": floats(width, 4, 3, 3, seed=2, scale=0.3),
    }
    weights.update(batch_norm("left.bn", width, 3))
    weights.update(batch_norm("right.bn", width, 4))
    nodes = []
    for side in ("left", "right"):
        nodes.append(node("Conv", ["x", f"{side}.w"], [f"{side}.conv"], pads=[1, 1, 1, 1], name=f"{side}/conv"))
        stored = [f"{side}.bn.{part}" for part in ("scale", "bias", "mean", "var")]
        nodes.append(node("BatchNormalization", [f"{side}.conv", *stored], [f"{side}.out"], name=f"{side}/bn"))
    nodes.append(node("Add", ["left.out", "right.out"], ["y"]))
    return model(nodes, [value("x", [1, 4, size, size])], [value("y", [1, width, size, size])], weights)


def residual() -> Any:
    """x [batch, 3, 16, 16] → Conv, BatchNormalization, Relu, a residual block, pooling, Gemm → logits [batch, 5]."""
    weights = {"c0": floats(8, 3, 3, 3, seed=1, scale=0.3), "c1": floats(8, 8, 3, 3, seed=2, scale=0.2)}
    weights.update({"fc.w": floats(5, 8, seed=3), "fc.b": floats(5, seed=4)})
    weights.update({**batch_norm("b0", 8, 5), **batch_norm("b1", 8, 6)})
    parts = ("scale", "bias", "mean", "var")
    nodes = [
        node("Conv", ["x", "c0"], ["h0"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["h0", *(f"b0.{part}" for part in parts)], ["n0"]),
        node("Relu", ["n0"], ["r0"]),
        node("Conv", ["r0", "c1"], ["h1"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["h1", *(f"b1.{part}" for part in parts)], ["n1"]),
        node("Add", ["n1", "r0"], ["sum"]),
        node("Relu", ["sum"], ["r1"]),
        node("GlobalAveragePool", ["r1"], ["pooled"]),
        node("Flatten", ["pooled"], ["flat"]),
        node("Gemm", ["flat", "fc.w", "fc.b"], ["logits"], transB=1),
    ]
    return model(nodes, [value("x", ["batch", 3, 16, 16])], [value("logits", ["batch", 5])], weights)


def lstm() -> Any:
    """x [6, 2, 4] → bidirectional LSTM of 5 → y [6, 2, 2, 5] and the last hidden state."""
    weights = {
        "w": floats(2, 20, 4, seed=1, scale=0.5),
        "r": floats(2, 20, 5, seed=2, scale=0.5),
        "b": floats(2, 40, seed=3),
    }
    nodes = [node("LSTM", ["x", "w", "r", "b"], ["y", "h", ""], hidden_size=5, direction="bidirectional")]
    return model(nodes, [value("x", [6, 2, 4])], [value("y", [6, 2, 2, 5]), value("h", [2, 2, 5])], weights)


def gru() -> Any:
    """x [6, 2, 4] → GRU of 5 → last hidden state [1, 2, 5]; the sequence output and the initial state are left out."""
    weights = {
        "w": floats(1, 15, 4, seed=1, scale=0.5),
        "r": floats(1, 15, 5, seed=2, scale=0.5),
        "b": floats(1, 30, seed=3),
    }
    nodes = [node("GRU", ["x", "w", "r", "b", "", ""], ["", "h"], hidden_size=5, linear_before_reset=1, name="cell")]
    return model(nodes, [value("x", [6, 2, 4])], [value("h", [1, 2, 5])], weights)


def branch() -> Any:
    """y = x·w + 1 where the sum of x is above zero, else x − 2; both branches read the outer value `double` = 2x."""
    from onnx import helper

    def side(name: str, op: str, other: str) -> Any:
        return helper.make_graph([node(op, ["double", other], [name])], name, [], [value(name, None)])

    nodes = [
        node("Add", ["x", "x"], ["double"]),
        node("ReduceSum", ["x"], ["total"], keepdims=0),
        node("Greater", ["total", "zero"], ["positive"]),
        node(
            "If",
            ["positive"],
            ["y"],
            then_branch=side("yes", "Mul", "w"),
            else_branch=side("no", "Sub", "two"),
            name="choice",
        ),
    ]
    weights = {"zero": np.float32(0).reshape(()), "two": np.float32([2]), "w": np.float32([1, 2, 3])}
    return model(nodes, [value("x", [3])], [value("y", [3])], weights)


def loop() -> Any:
    """y = x after `count` steps of x ← 0.5·x + shift (shift = 2·bias is computed outside the loop body)."""
    from onnx import helper

    body = helper.make_graph(
        [
            node("Mul", ["state", "half"], ["halved"]),
            node("Add", ["halved", "shift"], ["next"]),
            node("Identity", ["going"], ["still"]),
        ],
        "body",
        [value("step", [], "INT64"), value("going", [], "BOOL"), value("state", [4])],
        [value("still", [], "BOOL"), value("next", [4])],
    )
    nodes = [node("Add", ["bias", "bias"], ["shift"]), node("Loop", ["count", "", "x"], ["y"], body=body, name="steps")]
    weights = {"half": np.float32([0.5]), "count": np.int64(3).reshape(())}
    return model(nodes, [value("x", [4]), value("bias", [4])], [value("y", [4])], weights)


def old_style() -> Any:
    """Opset 9, IR 3: initialisers are listed among the inputs, and the BatchNormalization carries a momentum."""
    weights = {"w": floats(4, 2, 3, 3, seed=1), **batch_norm("bn", 4, 2)}
    nodes = [
        node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        node(
            "BatchNormalization",
            ["h", *(f"bn.{part}" for part in ("scale", "bias", "mean", "var"))],
            ["y"],
            momentum=0.9,
        ),
    ]
    inputs = [value("x", [1, 2, 6, 6]), *(value(name, list(array.shape)) for name, array in weights.items())]
    return model(nodes, inputs, [value("y", [1, 4, 6, 6])], weights, opset=9, ir=3)


def many() -> Any:
    """Two inputs (float and int32), outputs of four dtypes: sum, argmax, flag, and text passed through."""
    nodes = [
        node("Cast", ["b"], ["b.float"], to=1),
        node("Add", ["a", "b.float"], ["sum"]),
        node("ArgMax", ["sum"], ["best"], axis=1, keepdims=0),
        node("Greater", ["a", "b.float"], ["more"]),
        node("Identity", ["text"], ["echo"]),
    ]
    inputs = [value("a", ["n", 3]), value("b", ["n", 3], "INT32"), value("text", [2], "STRING")]
    outputs = [
        value("sum", ["n", 3]),
        value("best", ["n"], "INT64"),
        value("more", ["n", 3], "BOOL"),
        value("echo", [2], "STRING"),
    ]
    return model(nodes, inputs, outputs)


def embedding() -> Any:
    """ids → Unsqueeze → Cast → Gather on a 7-row table, and the same ids on a 5-row table behind an If."""
    from onnx import helper

    def side(name: str, table: str) -> Any:
        return helper.make_graph([node("Gather", [table, "wide"], [name])], name, [], [value(name, None)])

    nodes = [
        node("Unsqueeze", ["ids", "axes"], ["column"]),
        node("Cast", ["column"], ["wide"], to=7),
        node("Gather", ["big", "wide"], ["rows"], axis=0),
        node("If", ["flag"], ["other"], then_branch=side("yes", "small"), else_branch=side("no", "big")),
        node("Gather", ["data", "pick"], ["picked"], axis=1),
    ]
    weights = {"big": floats(7, 3, seed=1), "small": floats(5, 3, seed=2), "axes": np.int64([0])}
    inputs = [value("ids", [2], "INT32"), value("flag", [], "BOOL"), value("data", [2, 9]), value("pick", [1], "INT64")]
    return model(nodes, inputs, [value("rows", None), value("other", None), value("picked", None)], weights)


def dense(kind: Any = np.float32, name: str = "FLOAT") -> Any:
    """y = relu(x·w + b)·v for x [batch, 6]."""
    weights = {
        "w": floats(6, 16, seed=1).astype(kind),
        "b": floats(16, seed=2).astype(kind),
        "v": floats(16, 4, seed=3).astype(kind),
    }
    nodes = [
        node("MatMul", ["x", "w"], ["xw"], name="first"),
        node("Add", ["xw", "b"], ["shifted"]),
        node("Relu", ["shifted"], ["relu"]),
        node("MatMul", ["relu", "v"], ["y"]),
    ]
    return model(nodes, [value("x", ["batch", 6], name)], [value("y", ["batch", 4], name)], weights)


def qdq() -> Any:
    """Activations quantised: x → QuantizeLinear → DequantizeLinear → MatMul."""
    weights = {"scale": np.float32(0.05).reshape(()), "zero": np.uint8(128).reshape(()), "w": floats(6, 4)}
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        node("MatMul", ["d", "w"], ["y"]),
    ]
    return model(nodes, [value("x", [1, 6])], [value("y", [1, 4])], weights)


def dynamic_int8() -> Any:
    """DynamicQuantizeLinear and MatMulInteger."""
    weights = {"w": rng().integers(-100, 100, (6, 4)).astype(np.int8)}
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        node("MatMulInteger", ["q", "w", "zero"], ["whole"]),
        node("Cast", ["whole"], ["real"], to=1),
        node("Mul", ["real", "scale"], ["y"]),
    ]
    return model(nodes, [value("x", [1, 6])], [value("y", [1, 4])], weights)


def pad_pool() -> Any:
    """Pad with 0, then MaxPool: on negative data the rim is 0; ONNX Runtime's Pad_Fusion has given negative maxima there."""
    weights = {"pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1])}
    nodes = [
        node("Pad", ["x", "pads"], ["padded"]),
        node("MaxPool", ["padded"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    return model(nodes, [value("x", [1, 2, 4, 4])], [value("y", [1, 2, 3, 3])], weights)


def ragged() -> Any:
    """The places of the positive elements: the output's shape depends on the data."""
    nodes = [node("Relu", ["x"], ["r"]), node("NonZero", ["r"], ["places"])]
    return model(nodes, [value("x", [5])], [value("places", [1, "n"], "INT64")])


def sequence() -> Any:
    """An output that is a sequence of tensors; a tensor on the way can still be traced."""
    from onnx import TensorProto, helper

    nodes = [node("Relu", ["x"], ["r"]), node("SequenceConstruct", ["r", "x"], ["both"])]
    return model(nodes, [value("x", [2])], [helper.make_tensor_sequence_value_info("both", TensorProto.FLOAT, None)])


def sequence_inside() -> Any:
    """A sequence on the way from input to output: y = the first of (relu(x), x)."""
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("SequenceConstruct", ["r", "x"], ["both"]),
        node("SequenceAt", ["both", "place"], ["y"]),
    ]
    return model(nodes, [value("x", [2])], [value("y", None)], {"place": np.int64(0).reshape(())})


def with_function() -> Any:
    """y = twice(x) + x, where twice is a function stored in the model."""
    from onnx import helper

    twice = helper.make_function(
        "local", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", OPSET)]
    )
    nodes = [node("Twice", ["x"], ["d"], domain="local"), node("Add", ["d", "x"], ["y"])]
    return model(nodes, [value("x", [3])], [value("y", [3])], more=(("local", 1),), functions=[twice])


def constants() -> Any:
    """Constant nodes of several kinds, a sparse one left out; y = (x + 1.5)·[1, 2, 3] clipped from below at 0."""
    from onnx import numpy_helper

    nodes = [
        node("Constant", [], ["shift"], value_float=1.5),
        node("Constant", [], ["factor"], value=numpy_helper.from_array(np.float32([1, 2, 3]))),
        node("Constant", [], ["top"], value=numpy_helper.from_array(np.float32(40).reshape(()))),
        node("Add", ["x", "shift"], ["a"]),
        node("Mul", ["a", "factor"], ["b"]),
        node("Clip", ["b", "", "top"], ["y"]),
    ]
    return model(nodes, [value("x", [3])], [value("y", [3])])


def normalised() -> Any:
    """LayerNormalization, Cast down and up again, ConstantOfShape with its default: what a rewrite to float64 must know."""
    weights = {"gain": floats(6, seed=1), "shape": np.int64([6])}
    nodes = [
        node("LayerNormalization", ["x", "gain"], ["n"]),
        node("ConstantOfShape", ["shape"], ["nothing"]),
        node("Add", ["n", "nothing"], ["s"]),
        node("Cast", ["s"], ["whole"], to=6),
        node("Cast", ["whole"], ["back"], to=1),
        node("Sub", ["s", "back"], ["y"]),
    ]
    return model(nodes, [value("x", [2, 6])], [value("y", [2, 6])], weights)


def sizes() -> Any:
    """Three values of 40 kB, 40 kB and 4 bytes, to see windows."""
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("Neg", ["a"], ["b"]),
        node("ReduceSum", ["b"], ["y"], keepdims=0),
    ]
    return model(nodes, [value("x", [10000])], [value("y", [])])


MODELS = {
    "two_conv_bn": two_conv_bn,
    "residual": residual,
    "lstm": lstm,
    "gru": gru,
    "branch": branch,
    "loop": loop,
    "old_style": old_style,
    "many": many,
    "embedding": embedding,
    "dense": dense,
    "dense_half": lambda: dense(np.float16, "FLOAT16"),
    "external": dense,
    "qdq": qdq,
    "dynamic_int8": dynamic_int8,
    "pad_pool": pad_pool,
    "ragged": ragged,
    "sequence": sequence,
    "sequence_inside": sequence_inside,
    "with_function": with_function,
    "constants": constants,
    "normalised": normalised,
    "sizes": sizes,
}
