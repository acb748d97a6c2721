"""Operators too many or too few, operands and parts in another order, elements laid out in another order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from diagnosis_cases import Model, finding, matched, normal

from trueport.diagnosis.evidence import examine
from trueport.diagnosis.operators import PARTS, kind, kinds, moves, native, parts
from trueport.diagnosis.region import Inside
from trueport.diagnosis.structure import move
from trueport.diagnosis.types import Cause
from trueport.graph import Node

SHAPE = (1, 4, 6)


def chain(format, *operators, fine=False, start="x", model=None, **constants):
    """A model of one operator after another on vectors."""
    model = model or Model(format, x=SHAPE)
    value = start
    for place, op in enumerate(operators):
        name, attributes = (op, {}) if isinstance(op, str) else op
        value = model.add(
            name,
            value,
            out=f"{'f' if fine else 'y'}{place}",
            name=f"{name}{place}",
            shape=SHAPE,
            fine=fine,
            **attributes,
        )
    return model


def examined(source, target, *, at=None, twin=None, region=None, source_region=None, alignment=None, **more):
    at = at or target.nodes[-1].outputs[0]
    return examine(
        finding(
            at, twin or source.nodes[-1].outputs[0],
            region=[n.name for n in target.nodes] if region is None else region,
            source_region=[n.name for n in source.nodes] if source_region is None else source_region, **more,
        ),
        source.build(source.nodes[-1].outputs[0]), target.build(target.nodes[-1].outputs[0]),
        alignment or matched({"x": "x"}),
    )  # fmt: skip


def suspicious(found):
    return [item for item in found if item.weight > 0.5]


# -- vocabulary ---------------------------------------------------------------------------------------------------------


def node(op, native=None, **attributes):
    return Node(name="n", op=op, native_op=native or op, attributes=attributes)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (node("Relu6"), "Clip"),
        (node("Clip", min=0.0), "Relu"),
        (node("Clip", min=0.0, max=6.0), "Clip"),
        (node("Relu", "ReLU", max_value=6.0), "Clip"),
        (node("Relu", "ReLU", negative_slope=0.2), "LeakyRelu"),
        (node("Relu", "ReLU", negative_slope=0.0), "Relu"),
        (node("Activation", activation="tanh"), "Tanh"),
        (node("Activation", activation="linear"), "Identity"),
        (node("Tanh", "Activation"), "Tanh"),
        (node("GlobalAveragePool"), "ReduceMean"),
        (node("RSQRT"), "Rsqrt"),
        (node("adaptive_avg_pool2d"), "AveragePool"),
        (node("Dropout"), "Identity"),
        (node("BiasAdd"), "Add"),
    ],
)
def test_one_kind_for_every_spelling(given, expected):
    assert kind(given) == expected


def test_fused_activations_are_kinds_of_their_own():
    assert kinds(node("Conv", "CONV_2D", activation="Relu6")) == ("Conv", "Clip")
    assert kinds(node("Gemm", "Dense", activation="linear")) == ("Gemm",)
    assert kinds(node("LSTM", activation="tanh")) == ("LSTM",)


def test_native_names_lose_their_overload():
    assert native(node("Conv", "aten.conv2d.default")) == "aten.conv2d"
    assert native(node("Conv", "CONV_2D")) == "CONV_2D"


def test_parts_are_closed_and_hold_the_operator_itself():
    assert {"HardSwish", "HardSigmoid", "Clip", "Relu", "Mul", "Add"} <= parts(["HardSwish"])
    assert "Softmax" not in parts(["Gelu"])
    assert all(name in parts([name]) for name in PARTS)


# -- kinds ----------------------------------------------------------------------------------------------------------------

ALIKE = [
    (["HardSwish"], [("Add", {"other": 3.0}), ("Clip", {"min": 0.0, "max": 6.0}), "Mul"]),
    (["Gelu"], ["Div", "Erf", "Add", "Mul", "Mul"]),
    (["Softmax"], ["ReduceMax", "Sub", "Exp", "ReduceSum", "Div"]),
    (["LayerNormalization"], ["ReduceMean", "Sub", "Pow", "ReduceMean", "Add", "Sqrt", "Div", "Mul", "Add"]),
    (["BatchNormalization"], ["Mul", "Add"]),
    (["Swish"], ["Sigmoid", "Mul"]),
    (["Gemm"], ["MatMul", "Add"]),
    (["Softplus"], ["Exp", "Add", "Log"]),
    (["Sigmoid", "Mul"], ["Swish"]),
    (["ReduceMean", "Sub", "Mul", "ReduceMean", "Add", "Rsqrt", "Mul"], ["LayerNormalization"]),
    (["MatMul", "Add"], ["Gemm"]),
    (["Relu"], [("Clip", {"min": 0.0})]),
    (["Identity", "Relu"], ["Cast", "Relu", "Reshape"]),
]


@pytest.mark.parametrize(
    ("ours", "theirs"), ALIKE, ids=lambda item: "-".join(i if isinstance(i, str) else i[0] for i in item)
)
def test_what_is_taken_apart_or_put_together_is_no_other_operator(ours, theirs):
    assert suspicious(examined(chain("pytorch", *ours), chain("onnx", *theirs))) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "blamed"),
    [
        (["Add"], ["Add", "Relu"], "Relu1"),
        (["Add"], ["Abs", "Add"], "Abs0"),
        (["MaxPool"], ["AveragePool"], "AveragePool0"),
        (["ReduceMean"], ["ReduceMax"], "ReduceMax0"),
        (["Sigmoid"], ["Tanh"], "Tanh0"),
        (["Relu", "Add"], ["Add", "Softmax"], "Softmax1"),
    ],
)
def test_an_operator_that_the_source_does_not_have_is_blamed(ours, theirs, blamed):
    first = examined(chain("pytorch", *ours), chain("onnx", *theirs))[0]
    assert first.node == blamed
    assert first.cause is Cause.STRUCTURE
    assert first.weight > 0.9


def test_a_missing_operator_is_named_with_its_source():
    first = examined(chain("pytorch", "Conv", "Tanh", "Add"), chain("onnx", "Conv", "Add"))[0]
    assert first.cause is Cause.STRUCTURE
    assert "Tanh 'Tanh1'" in first.what
    assert first.source_nodes == ("Tanh1",)


def test_the_operator_that_stands_there_once_too_often_is_the_one_out_of_order():
    found = examined(chain("keras", "Add", "Relu"), chain("tflite", "Relu", ("Add", {"activation": "Relu"})))
    assert found[0].node == "Relu0"
    assert found[0].cause is Cause.STRUCTURE


def test_a_fused_activation_too_many_is_an_attribute():
    found = examined(chain("keras", "Add"), chain("tflite", ("Add", {"activation": "Relu"})))
    assert found[0].cause is Cause.HYPERPARAMETERS
    assert "fused" in found[0].what


def test_arithmetic_that_the_source_does_more_often_is_missing_where_no_weights_take_it_up():
    source = chain("keras", "Mul", "Add", "Add")
    found = examined(source, chain("tflite", "Add"))
    assert found[0].cause is Cause.STRUCTURE
    assert found[0].source_value == "Mul, 2 Add"
    assert "where the source has" not in examined(source, chain("tflite", "Mul", "Add", "Add"))[0].what
    absorbed = examined(chain("keras", "MatMul", "Mul", "Add"), chain("tflite", "MatMul"))
    assert all("where the source has" not in item.what for item in absorbed)


def test_a_repeated_operator_is_extra():
    source, target = chain("pytorch", "LeakyRelu"), chain("onnx", "LeakyRelu", "LeakyRelu")
    agreed = matched({"x": "x", "y0": "y0", "y1": "y0"}, bad=("y1",))
    found = examined(source, target, region=["LeakyRelu1"], alignment=agreed)
    assert "extra" in found[0].what
    assert found[0].cause is Cause.STRUCTURE
    assert (
        suspicious(examined(source, chain("onnx", "LeakyRelu"), alignment=matched({"x": "x", "y0": "y0"}, bad=("y0",))))
        == []
    )


def test_a_gap_is_blamed_on_the_operator_that_stands_in_its_place():
    source = chain("pytorch", "Conv", "Relu", "Add")
    swapped = chain("onnx", "Conv", "LeakyRelu", "Add")
    found = examined(source, swapped, kind="missing", region=["Conv0", "LeakyRelu1"], source_region=["Relu1"], at="y0")
    assert found[0].node == "LeakyRelu1"
    assert "in the place of" in found[0].what
    left_out = chain("onnx", "Conv", "Add")
    found = examined(source, left_out, kind="missing", region=["Conv0", "Add1"], source_region=["Relu1"], at="y0")
    assert found[0].node == "Conv0"
    assert found[0].what == "the source's Relu is missing here"


def test_neighbours_of_a_gap_are_not_held_against_their_parameters():
    source, target = chain("pytorch", "Relu"), chain("onnx")
    target.add("Conv", "x", target.const("w", normal(4, 4, 3)), out="y0", name="conv", shape=SHAPE)
    target.add("Add", "y0", "x", out="y1", name="add", shape=SHAPE)
    found = examined(source, target, kind="missing", at="y0")
    assert {item.cause for item in found if item.weight > 0.5} == {Cause.STRUCTURE}


# -- operands -----------------------------------------------------------------------------------------------------------


def binary(format, op, first, second, **attributes):
    model = Model(format, a=SHAPE, b=SHAPE)
    model.const("c", normal(1, 4, 6, seed=8))
    model.add(op, first, second, out="y", name="op", shape=SHAPE, **attributes)
    return model


BOTH = matched({"a": "a", "b": "b"})


@pytest.mark.parametrize("op", ["Sub", "Div", "Pow", "MatMul", "Less"])
@pytest.mark.parametrize("pair", [("a", "b"), ("a", "c"), ("c", "b")])
def test_exchanged_operands_are_found(op, pair):
    source = binary("pytorch", op, *pair)
    if op == "MatMul" and "c" in pair:
        return  # a converter may transpose both operands and the result
    found = examined(source, binary("onnx", op, *reversed(pair)), alignment=BOTH)
    assert "exchanged" in found[0].what
    assert found[0].cause is Cause.STRUCTURE
    assert not any("exchanged" in item.what for item in examined(source, binary("onnx", op, *pair), alignment=BOTH))


def test_operands_of_a_sum_may_change_places():
    assert (
        suspicious(examined(binary("pytorch", "Add", "a", "b"), binary("onnx", "Add", "b", "a"), alignment=BOTH)) == []
    )


SCALARS = [
    ({"other": 2.5}, ("x", "c"), False),
    ({"other": 2.5}, ("c", "x"), True),
    ({"other": 2.5, "reversed": 1}, ("c", "x"), False),
    ({"other": 2.5, "reversed": 1}, ("x", "c"), True),
    ({"self": 2.5}, ("c", "x"), False),
    ({"self": 2.5}, ("x", "c"), True),
]


@pytest.mark.parametrize(("scalar", "operands", "wrong"), SCALARS)
@pytest.mark.parametrize("op", ["Sub", "Div", "Pow"])
def test_a_scalar_attribute_is_an_operand_like_a_constant(op, scalar, operands, wrong):
    source, target = Model("pytorch", x=SHAPE), Model("onnx", x=SHAPE)
    source.add(op, "x", out="y", name="op", shape=SHAPE, **scalar)
    target.const("c", np.float32(2.5))
    target.add(op, *operands, out="y", name="op", shape=SHAPE)
    found = examined(source, target, alignment=matched({"x": "x"}))
    assert ("exchanged" in found[0].what) is wrong
    if wrong:
        assert found[0].cause is Cause.STRUCTURE
        assert set(found[0].source_value) == {"x", "2.5"}


def joined(format, *names):
    model = Model(format, a=SHAPE, b=SHAPE, c=SHAPE)
    model.add("Concat", *names, out="y", name="join", shape=(1, 12, 6), axis=1)
    return model


def test_parts_joined_in_another_order_are_found():
    three = matched({name: name for name in "abc"})
    source = joined("pytorch", "a", "b", "c")
    found = examined(source, joined("onnx", "b", "a", "c"), kind="shuffle", alignment=three)
    assert found[0].cause is Cause.STRUCTURE
    assert found[0].source_value == ["a", "b", "c"]
    assert found[0].target_value == ["b", "a", "c"]
    assert "[1, 0, 2]" in found[0].what
    same = examined(source, joined("onnx", "a", "b", "c"), alignment=three)
    assert suspicious(same) == []


def test_equal_parts_may_stand_for_each_other():
    alike = matched({name: name for name in "abc"}, alike={"a": "a", "b": "a"})
    assert suspicious(examined(joined("pytorch", "a", "b", "c"), joined("onnx", "b", "a", "c"), alignment=alike)) == []


# -- layout ---------------------------------------------------------------------------------------------------------------


def heads(format, *, wrong=False, perm=(0, 2, 1, 3)):
    """Split the last axis into heads and bring them to the front."""
    model = Model(format, x=(1, 4, 6))
    model.add("Reshape", "x", out="split", name="split", shape=(1, 4, 2, 3))
    if wrong:
        model.add("Reshape", "split", out="y", name="front", shape=(1, 2, 4, 3))
    else:
        model.add("Transpose", "split", out="y", name="front", shape=(1, 2, 4, 3), perm=list(perm))
    model.add("Reshape", "y", out="z", name="flat", shape=(2, 12))
    return model


def test_a_reshape_in_the_place_of_a_transpose_is_found_by_moving_numbers():
    alignment = matched({"x": "x"}, order={"x": (0, 1)})
    found = examined(heads("pytorch"), heads("onnx", wrong=True), kind="layout", alignment=alignment)
    assert found[0].node == "front"
    assert found[0].cause is Cause.STRUCTURE
    assert "Reshape [1, 4, 2, 3] to [1, 2, 4, 3]" in found[0].target_value
    assert "Transpose by [0, 2, 1, 3]" in found[0].source_value


def test_where_nothing_can_be_moved_the_kinds_tell():
    source, target = heads("pytorch"), heads("onnx", wrong=True)
    found = examined(source, target, kind="layout", alignment=matched({}), at="y")
    assert found[0].node == "front"
    assert "reshapes where the source transposes" in found[0].what


def test_what_localisation_saw_first_counts_most():
    source, target = heads("pytorch"), heads("onnx", wrong=True)
    given = finding("z", region=["split", "front", "flat"], source_region=["split", "front", "flat"], kind="layout")
    given = replace(given, prior={"flat": 2.0})
    found = examine(given, source.build("z"), target.build("z"), matched({}))
    assert found[0].node == "flat"


def test_a_transpose_that_exchanges_nothing_is_suspicious():
    target = heads("onnx", perm=(0, 1, 2, 3))
    found = examined(heads("pytorch"), target, kind="layout", alignment=matched({}))
    assert found[0].node == "front"
    assert "exchanges nothing" in found[0].what


def test_moving_elements_as_the_operators_do():
    model = Model("onnx", x=(2, 3))
    model.add("Transpose", "x", out="t", shape=(3, 2), perm=[1, 0])
    model.add("Reshape", "t", out="r", shape=(6,))
    model.add("Tanh", "r", out="y", shape=(6,))
    inside = Inside(model.build("y"))
    numbers = np.arange(6).reshape(2, 3)
    turned = move(inside, inside.graph.nodes[0], numbers)
    assert turned.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert move(inside, inside.graph.nodes[1], turned).tolist() == [0, 3, 1, 4, 2, 5]
    assert move(inside, inside.graph.nodes[2], turned) is None
    assert moves(inside.graph.nodes[0])
    assert not moves(inside.graph.nodes[2])


def test_a_permutation_of_keras_counts_without_the_batch():
    model = Model("keras", x=(1, 2, 3))
    model.add("Transpose", "x", out="y", shape=(1, 3, 2), native="Permute", dims=[2, 1])
    inside = Inside(model.build("y"))
    assert move(inside, inside.graph.nodes[0], np.arange(6).reshape(1, 2, 3)).tolist() == [[[0, 3], [1, 4], [2, 5]]]
