"""A region computed anew by the source's operators: every translation gives, in any layout, what the source computes."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import normal
from repair_numpy import RUNS, Net, chain, mended, scene

from trueport.align.types import Relation
from trueport.graph import Node
from trueport.repairs.rules import segment
from trueport.repairs.rules._translate import KERNELS, TABLE
from trueport.repairs.rules._writer import Writer, order_of, steps

X = normal(RUNS, 1, 6, 8, 4, seed=6)
"""Channels last; the target has channels first."""

POSITIVE = ("Sqrt", "Pow")
WINDOW = {"kernel_shape": [2, 2], "strides": [2, 2]}
OPERATORS = [
    ("Abs",), ("Add", normal(4)), ("Clip", {"min": -0.2, "max": 0.3}), ("Div", 2 + np.abs(normal(4))), ("Elu", {"alpha": 0.4}),
    ("Exp",), ("Flip", {"axis": -1}), ("Flip", {"axis": (1, 2)}), ("LayerNormalization", normal(4), normal(4, seed=1), {"axis": -1, "epsilon": 1e-3}),
    ("LeakyRelu", {"alpha": 0.25}), ("LogSoftmax", {"axis": 2}), ("Max", normal(8, 1)), ("Min", normal(6, 1, 1)),
    ("Mul", normal(8, 4)), ("Neg",), ("Pad", {"pads": [0, 1, 2, 0, 0, 0, 1, 0], "mode": "constant"}),
    ("Pow", np.float32(1.5)), ("Reciprocal",), ("ReduceMax", {"axes": [3], "keepdims": 1}),
    ("ReduceMean", {"axes": [1, 2], "keepdims": 1}), ("ReduceMean", {"axes": [1], "keepdims": 0}),
    ("ReduceSum", {"axes": [1, 3], "keepdims": 0}), ("Relu",),
    ("Rescaling", {"scale": [1.0, 2.0, 0.5, 3.0], "offset": [0.1, -1.0, 2.0, 0.0]}), ("Rescaling", {"scale": 0.5, "offset": -1.0}), ("Reshape", np.array([1, 12, 4, 4])), ("Sigmoid",),
    ("Softmax", {"axis": -1}), ("Softplus",), ("Sqrt",), ("Square",), ("Sub", normal(4)), ("Tanh",),
    ("Transpose", {"perm": [0, 2, 1, 3]}), ("Unsqueeze", {"axes": [2]}),
    ("BatchNormalization", np.abs(normal(4)) + 1, normal(4, seed=2), normal(4, seed=3), np.abs(normal(4, seed=4)) + 0.5,
     {"epsilon": 1e-3, "channels": 3}),
    ("MatMul", normal(4, 5)),
]  # fmt: skip


def region(source, target, x=X, **where):
    """The surest proposal for the region, and the scene."""
    shown = scene(source, target, x, **where)
    found = segment.propose(shown)
    assert not isinstance(found, str), found
    return found[0], shown


@pytest.mark.parametrize("step", OPERATORS, ids=lambda step: step[0])
def test_every_translation_computes_what_the_source_does_in_the_targets_layout(step):
    before = "Exp" if step[0] in POSITIVE else "Tanh"
    source = chain("keras", before, step, ("Mul", np.float32(1.7)))
    shape = source.run(X)["y2"].shape[1:]
    target = chain("onnx", before)
    turned = (0, 3, 1, 2) if len(shape) == 4 else tuple(range(len(shape)))
    wrong = np.transpose(normal(*shape, seed=9), turned)
    target.add("ReduceMean", "y0", out="m", axes=[0, 1, 2, 3], keepdims=0).add("Add", "m", wrong, out="w")
    target.add("Tanh", "w", out="end")
    source.add("Tanh", "y2", out="end")
    tight = [axis for axis in turned if shape[axis] != 1]
    relation = Relation(tuple(sorted(tight).index(axis) for axis in tight))
    best, shown = region(
        source, target, perm=(0, 3, 1, 2), at="w", twin="y2", relation=relation, kind="struct",
        region=["n_m", "n_w"], source_region=["n_y1", "n_y2"],
    )  # fmt: skip
    change = best.edits[0].change
    assert change["kind"] == "recompute"
    assert best.doubt >= 0.5
    assert mended(shown, target, best), change


@pytest.mark.parametrize(
    ("op", "pads"), [("MaxPool", [0, 0, 0, 0]), ("MaxPool", [1, 0, 1, 0]), ("AveragePool", [0, 0, 0, 0])]
)
def test_pools_and_their_padding_keep_the_layout_of_the_format(op, pads):
    x = normal(RUNS, 1, 4, 6, 8, seed=6)
    rows = 3 + pads[0]
    source = chain("pytorch", "Tanh", (op, {**WINDOW, "pads": pads}))
    cut = ("Slice", np.array([0, 0]), np.array([rows, 4]), np.array([2, 3]), np.array([1, 1]))
    target = chain("onnx", "Tanh", ("Pad", {"pads": [0, 0, 1, 0, 0, 0, 1, 0]}), cut)
    best, shown = region(source, target, x, at="y2", twin="y1", region=["n_y1", "n_y2"], source_region=["n_y1"])
    assert mended(shown, target, best)
    assert [node["op"] for node in best.edits[0].change["nodes"]] == [op]


def convolved(op_kernel, group):
    net = Net("pytorch").add("Tanh", "x", out="y0")
    net.constants |= {"kernel": op_kernel, "bias": normal(op_kernel.shape[0], seed=2)}
    net.nodes.append(
        Node(name="n_y1", op="Conv", native_op="aten.conv2d.default", inputs=("y0", "kernel", "bias"), outputs=("y1",),
             attributes={"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": group})
    )  # fmt: skip
    return net


@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_convolution_takes_the_sources_kernel(group):
    x = normal(RUNS, 1, 4, 6, 8, seed=6)
    source = convolved(normal(4, 4 // group, 3, 3), group)
    target = chain("onnx", "Tanh", ("Mul", np.float32(0.5)))
    best, shown = region(source, target, x, at="y1", twin="y1", region=["n_y1"], source_region=["n_y1"])
    assert best.edits[0].change["nodes"][-1]["attributes"]["group"] == group
    assert mended(shown, target, best)


def test_kernels_lie_as_each_format_stores_them():
    kernel, apart = normal(8, 3, 5, 7), normal(8, 1, 5, 7)
    assert np.array_equal(KERNELS["tflite"](kernel, 1), np.transpose(kernel, (0, 2, 3, 1)))
    assert np.array_equal(KERNELS["tflite"](apart, 8), np.transpose(apart, (1, 2, 3, 0)))
    assert np.array_equal(KERNELS["keras"](kernel, 1), np.transpose(kernel, (2, 3, 1, 0)))
    twice = KERNELS["keras"](apart, 4)
    assert twice.shape == (5, 7, 4, 2)
    assert np.array_equal(twice[:, :, 3, 1], apart[7, 0])
    assert "onnx" not in KERNELS


def test_values_whose_axes_are_merged_are_reshaped_there_and_back():
    x = normal(RUNS, 1, 3, 5, 5, seed=2)
    source = chain("pytorch", "Tanh", ("ReduceMax", {"axes": [1], "keepdims": 1}), ("Softmax", {"axis": 2}))
    target = chain("onnx", ("Reshape", np.array([15, 5])), "Tanh", ("Reshape", np.array([3, 25])), ("ReduceMax", {"axes": [0], "keepdims": 0}))  # fmt: skip
    target.add("Relu", "y3", out="y4")
    best, shown = region(source, target, x, at="y4", twin="y2", region=["n_y4"], source_region=["n_y1", "n_y2"])
    assert mended(shown, target, best), best.edits[0].change


def test_what_has_no_translation_is_named():
    source, target = chain("pytorch", "Tanh", "GridSample"), chain("onnx", "Tanh", "Exp")
    shown = scene(source, target, X, at="y1", twin="y1", region=["n_y1"], source_region=["n_y1"])
    assert segment.propose(shown) == "the source's GridSample has no translation"


def test_large_regions_are_left_alone():
    wide = ["Tanh", "Sigmoid"] * 7
    source, target = chain("pytorch", *wide, "Exp"), chain("onnx", *wide, "Relu")
    where = {"at": "y14", "twin": "y14", "source_region": ["n_y14"]}
    shown = scene(source, target, X, region=[f"n_y{place}" for place in range(15)], **where)
    assert segment.propose(shown) == "the region has 15 operators, too many to be replaced at once"


def test_a_source_that_computes_it_by_many_operators_is_not_written_out():
    source = chain("pytorch", *["Tanh", "Sigmoid"] * 7)
    target = chain("onnx", "Softplus")
    shown = scene(source, target, X, at="y0", twin="y13", region=["n_y0"], source_region=["n_y13"])
    assert "by 14 operators, too many" in segment.propose(shown)


def test_a_flip_of_the_input_is_not_taken_for_the_input():
    """Both hold the same elements, so they are one class to the alignment."""
    source = chain(
        "keras", ("Flip", {"axis": -1}), ("Rescaling", {"scale": 2.0, "offset": [-1.0, 0.5, 2.0, 0.1]}), "Tanh"
    )
    target = chain("onnx", ("Mul", np.float32(0.5)), ("Add", normal(4, 1, 1)), "Tanh")
    best, shown = region(
        source, target, perm=(0, 3, 1, 2), at="y1", twin="y1", relation=Relation((2, 0, 1)), kind="struct",
        region=["n_y0", "n_y1"], source_region=["n_y1"],
    )  # fmt: skip
    assert [node["op"] for node in best.edits[0].change["nodes"]] == ["Gather", "Mul", "Add"]
    assert mended(shown, target, best)


def test_a_missing_operator_of_some_readers_is_no_segment():
    source = Net("pytorch").add("Tanh", "x", out="a").add("Sigmoid", "a", out="b").add("Exp", "a", out="c")
    source.add("Sub", "b", "c", out="d").add("Mul", "d", "c", out="y")
    target = Net("onnx").add("Tanh", "x", out="a").add("Exp", "a", out="c").add("Sub", "a", "c", out="d")
    target.add("Mul", "d", "c", out="y")
    shown = scene(source, target, X, at="a", twin="b", kind="missing", region=["n_a", "n_d"], source_region=["n_b"])
    assert segment.propose(shown) == "only some readers of the value are wrong"


# -- parts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("permutation", "source", "target", "expected"),
    [
        ((2, 0, 1), (1, 6, 8, 4), (1, 4, 6, 8), (0, 3, 1, 2)),
        ((0, 1, 2), (1, 6, 8, 4), (1, 6, 8, 4), (0, 1, 2, 3)),
        ((1, 0), (1, 1, 8, 4), (1, 4, 1, 8), (0, 3, 1, 2)),
        ((0, 1, 2), (1, 6, 8, 4), (6, 8, 4), None),
        ((0, 1, 2), (1, 6, 8, 4), (1, 6, 32), None),
        ((0, 1, 2), (1, 6, 8, 4), (1, 8, 6, 4), None),
    ],
)
def test_an_order_names_the_sources_axis_of_each_of_the_targets(permutation, source, target, expected):
    assert order_of(Relation(permutation), source, target) == expected


def test_a_relation_of_the_other_side_is_turned_round():
    there, back = Relation((2, 0, 1)), Relation((1, 2, 0), "target")
    assert order_of(back, (1, 6, 8, 4), (1, 4, 6, 8)) == order_of(there, (1, 6, 8, 4), (1, 4, 6, 8))


def writer():
    return Writer(None, "onnx", False, lambda name: None, lambda writer, node: None)


def test_steps_are_a_chain_with_their_further_operands():
    made = writer()
    scaled = made.write("Mul", ["x", made.array(2.0)])
    twice = made.write("Sub", ["other", scaled])
    assert steps(made, "x", twice) == [
        {"operator": "Mul", "attributes": {}, "slot": 0, "constants": ["stored 0"]},
        {"operator": "Sub", "attributes": {}, "slot": 1, "others": ["other"]},
    ]


def test_results_are_named_beyond_those_of_an_earlier_edit():
    source = chain("pytorch", "Tanh", "Sigmoid", "Softplus")
    target = (
        Net("onnx").add("Tanh", "x", out="y0").add("Sigmoid", "y0", out="repaired_4").add("Exp", "repaired_4", out="y2")
    )
    best, _ = region(source, target, at="y2", twin="y2", region=["n_y2"], source_region=["n_y2"])
    assert best.edits[0].change["nodes"][0]["outputs"] == ["repaired_5"]


def test_what_branches_is_no_chain():
    made = writer()
    left, right = made.write("Exp", ["x"]), made.write("Neg", ["x"])
    joined = made.write("Add", [left, right])
    assert steps(made, "x", joined) is None
    assert steps(made, "x", left) is None


def test_the_table_has_no_operator_that_nothing_tries():
    tried = {step[0] for step in OPERATORS} | {"MaxPool", "AveragePool", "Conv"}
    assert len(tried & set(TABLE)) >= 30
