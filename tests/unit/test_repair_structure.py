"""Operators too many, missing, of another kind, operands in another order: what is proposed mends the target, by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import normal
from repair_numpy import OPS, RUNS, Net, chain, mended, scene

from trueport.align.types import Relation
from trueport.repairs.rules import structure

SHAPE = (1, 5, 7)
X = normal(RUNS, *SHAPE, seed=3)
GAMMA, BETA = normal(7, seed=1), normal(7, seed=2)


def offered(shown):
    found = structure.propose(shown)
    assert not isinstance(found, str), found
    return found


def first(source, target, x=X, **where):
    """The surest proposal, which has to be one edit that mends."""
    shown = scene(source, target, x, **where)
    best = offered(shown)[0]
    assert len(best.edits) == 1
    assert mended(shown, target, best), best.edits[0].change
    return best


def change(proposal):
    return proposal.edits[0].change


# -- too many -----------------------------------------------------------------------------------------------------------


def test_an_operator_too_many_is_taken_out():
    source, target = chain("pytorch", "Sigmoid", "Neg"), chain("onnx", "Sigmoid", "Tanh", "Neg")
    best = first(source, target, at="y1", twin="y0", kind="extra", region=["n_y1"], source_region=[])
    assert change(best) == {"kind": "remove-node", "node": "n_y1", "slot": 0}
    assert best.doubt == structure.CERTAIN


def test_an_operator_applied_twice_is_taken_out_once():
    norm = ("LayerNormalization", GAMMA, BETA)
    source, target = chain("pytorch", norm, "Tanh"), chain("onnx", norm, norm, "Tanh")
    best = first(source, target, at="y1", twin="y0", kind="extra", region=["n_y1"], source_region=[])
    assert change(best)["kind"] == "remove-node"
    assert change(best)["node"] == "n_y1"


def test_the_operand_that_carries_the_value_takes_the_place():
    source = chain("pytorch", "Sigmoid", "Tanh")
    target = Net("onnx").add("Sigmoid", "x", out="y0").add("Neg", "x", out="aside")
    target.add("Sub", "aside", "y0", out="y1").add("Tanh", "y1", out="y2")
    best = first(source, target, at="y1", twin="y0", kind="extra", region=["n_y1"], source_region=[])
    assert change(best)["slot"] == 1


# -- missing ------------------------------------------------------------------------------------------------------------

MISSING = [
    ("LeakyRelu", {"alpha": 0.2}),
    ("Softmax", {"axis": -1}),
    ("Clip", {"min": 0.0, "max": 0.5}),
    ("LayerNormalization", GAMMA, BETA, {"axis": -1, "epsilon": 1e-3}),
    ("Mul", GAMMA),
    ("Elu", {"alpha": 0.7}),
    ("Square",),
]


@pytest.mark.parametrize("step", MISSING, ids=lambda step: step[0])
def test_a_missing_operator_is_put_in_with_the_sources_attributes_and_constants(step):
    source = chain("pytorch", "Tanh", step, ("Add", 2 * BETA), "Sigmoid")
    target = chain("onnx", "Tanh", ("Add", 2 * BETA), "Sigmoid")
    best = first(source, target, at="y0", twin="y1", kind="missing", region=["n_y0", "n_y1"], source_region=["n_y1"])
    assert change(best)["kind"] == "insert"
    assert change(best)["value"] == "y0"
    assert "readers" not in change(best)


def test_only_the_readers_that_are_wrong_get_what_is_put_in():
    source = Net("pytorch").add("Tanh", "x", out="y0").add("LeakyRelu", "y0", out="y1", alpha=0.3)
    source.add("Add", "y0", BETA, out="left").add("Mul", "y1", GAMMA, out="right").add("Sub", "left", "right", out="y")
    target = (
        Net("onnx").add("Tanh", "x", out="y0").add("Add", "y0", BETA, out="left").add("Mul", "y0", GAMMA, out="right")
    )
    target.add("Sub", "left", "right", out="y")
    shown = scene(source, target, X, at="right", twin="right", region=["n_right"], source_region=["n_y1", "n_right"])
    best = next(item for item in offered(shown) if mended(shown, target, item))
    assert change(best)["kind"] == "insert"
    assert change(best)["readers"] == ["n_right"]
    assert change(best)["steps"][0]["attributes"] == {"alpha": 0.3}


def test_a_lost_branch_is_joined_again():
    source = Net("pytorch").add("Tanh", "x", out="a").add("Sigmoid", "x", out="b").add("Add", "a", "b", out="sum")
    source.add("Mul", "sum", GAMMA, out="y").add("Neg", "b", out="c").add("Add", "y", "c", out="z")
    target = Net("onnx").add("Tanh", "x", out="a").add("Sigmoid", "x", out="b").add("Mul", "a", GAMMA, out="y")
    target.add("Neg", "b", out="c").add("Add", "y", "c", out="z")
    best = first(source, target, at="a", twin="sum", kind="missing", region=["n_a", "n_y"], source_region=["n_sum"])
    assert change(best)["steps"] == [{"operator": "Add", "attributes": {}, "slot": 0, "others": ["b"]}]


def test_axes_and_constants_follow_the_targets_layout():
    x = normal(RUNS, 1, 4, 6, 3, seed=8)
    scale = normal(3, seed=4)
    source = chain("keras", "Tanh", ("Softmax", {"axis": -1}), ("Mul", scale), "Sigmoid")
    target = chain("onnx", "Tanh", "Sigmoid")
    shown = scene(
        source, target, x, perm=(0, 3, 1, 2), at="y0", twin="y2", kind="missing", relation=Relation((2, 0, 1)),
        region=["n_y0", "n_y1"], source_region=["n_y1", "n_y2"],
    )  # fmt: skip
    best = offered(shown)[0]
    assert mended(shown, target, best), change(best)
    softmax, product = change(best)["steps"]
    assert softmax["attributes"]["axis"] == 1
    assert best.edits[0].arrays[product["constants"][0]].shape == (3, 1, 1)


def test_a_fused_activation_at_the_end_is_put_in_behind_the_output():
    source = Net("keras").add("Tanh", "x", out="y0").add("Softmax", "y0", out="y1", axis=-1)
    target = chain("onnx", "Tanh")
    shown = scene(source, target, X, at="y0", twin="y1", region=["n_y0"], source_region=["n_y0", "n_y1"])
    best = next(item for item in offered(shown) if mended(shown, target, item))
    assert change(best)["kind"] in ("insert", "set-operator")


def test_an_operator_without_a_translation_is_named():
    source, target = chain("pytorch", "Tanh", "GridSample"), chain("onnx", "Tanh")
    shown = scene(source, target, X, at="y0", twin="y1", kind="missing", region=["n_y0"], source_region=["n_y1"])
    assert structure.propose(shown) == "the source's GridSample has no translation"


# -- of another kind ----------------------------------------------------------------------------------------------------

CHANGED = [
    (("LeakyRelu", {"alpha": 0.3}), ("Relu",)),
    (("Tanh",), ("Sigmoid",)),
    (("Elu", {"alpha": 0.5}), ("Relu",)),
    (("Clip", {"min": -0.5, "max": 0.5}), ("Tanh",)),
    (("Softmax", {"axis": 1}), ("LogSoftmax", {"axis": 1})),
    (("Add", BETA), ("Mul", BETA)),
]


@pytest.mark.parametrize(("ours", "theirs"), CHANGED, ids=lambda step: step[0])
def test_an_operator_of_another_kind_becomes_the_sources(ours, theirs):
    source, target = chain("pytorch", "Neg", ours, "Exp"), chain("onnx", "Neg", theirs, "Exp")
    best = first(source, target, at="y1", twin="y1", region=["n_y1"], source_region=["n_y1"])
    assert change(best)["kind"] == "set-operator"
    assert change(best)["operator"] == ours[0]


COMPOSED = [
    ("Relu", {}, lambda x: np.maximum(x, 0)),
    ("LeakyRelu", {"alpha": 0.15}, lambda x: np.where(x > 0, x, 0.15 * x)),
    ("Elu", {"alpha": 0.8}, lambda x: np.where(x > 0, x, 0.8 * (np.exp(x) - 1))),
    ("Clip", {"min": -0.25, "max": 0.75}, lambda x: np.clip(x, -0.25, 0.75)),
    ("Softplus", {}, lambda x: np.log1p(np.exp(x))),
    ("Sigmoid", {}, lambda x: 1 / (1 + np.exp(-x))),
]


@pytest.mark.parametrize(
    ("op", "attributes", "function"), COMPOSED, ids=lambda item: item if isinstance(item, str) else ""
)
def test_an_activation_that_the_source_takes_apart_is_told_by_its_values(op, attributes, function, monkeypatch):
    monkeypatch.setitem(OPS, "GridSample", function)
    source, target = chain("savedmodel", "Neg", "GridSample", "Exp"), chain("onnx", "Neg", "Tanh", "Exp")
    best = first(source, target, at="y1", twin="y1", region=["n_y1"], source_region=["n_y1"])
    assert change(best)["operator"] == op
    assert change(best)["attributes"] == pytest.approx(attributes, rel=1e-4)


def test_no_activation_is_fitted_to_what_none_gives():
    source, target = chain("savedmodel", "Neg", "GridSample", "Exp"), chain("onnx", "Neg", "Tanh", "Exp")
    shown = scene(source, target, X, at="y1", twin="y1", region=["n_y1"], source_region=["n_y1"])
    found = structure.propose(shown)
    assert isinstance(found, str) or all(item.edits[0].kind != "set-operator" for item in found)


def test_an_activation_that_hides_behind_a_missing_one_is_changed_and_not_doubled():
    source, target = chain("pytorch", "Neg", "Relu", "Exp"), chain("onnx", "Neg", ("LeakyRelu", {"alpha": 0.1}), "Exp")
    best = first(source, target, at="y0", twin="y1", kind="missing", region=["n_y0", "n_y1"], source_region=["n_y1"])
    assert change(best) == {
        "kind": "set-operator", "node": "n_y1", "operator": "Relu", "attributes": {}, "constants": [],
    }  # fmt: skip


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_reduction_of_another_kind_keeps_the_axes_of_the_target(keepdims):
    x = normal(RUNS, 1, 4, 6, 3, seed=8)
    source = chain("keras", "Tanh", ("ReduceMean", {"axes": [1, 2], "keepdims": keepdims}), "Sigmoid")
    target = chain("onnx", "Tanh", ("ReduceMax", {"axes": [2, 3], "keepdims": keepdims}), "Sigmoid")
    best = first(
        source, target, x, perm=(0, 3, 1, 2), at="y1", twin="y1", region=["n_y1"], source_region=["n_y1"],
        relation=Relation((0,)),
    )  # fmt: skip
    assert change(best)["operator"] == "ReduceMean"
    assert change(best)["attributes"] == {"axes": [2, 3], "keepdims": keepdims}


def test_a_pool_of_another_kind_gets_the_sources_window():
    x = normal(RUNS, 1, 2, 6, 8, seed=8)
    window = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]}
    source, target = chain("pytorch", ("MaxPool", window)), chain("onnx", ("AveragePool", window))
    best = first(source, target, x, at="y0", twin="y0", region=["n_y0"], source_region=["n_y0"])
    assert change(best)["operator"] == "MaxPool"
    assert change(best)["attributes"] == window


# -- operands -----------------------------------------------------------------------------------------------------------


def joined(format, *order):
    net = Net(format).add("Tanh", "x", out="a").add("Sigmoid", "x", out="b").add("Neg", "x", out="c")
    return net.add("Concat", *order, out="y", axis=2)


@pytest.mark.parametrize(("op", "constant"), [("Sub", False), ("Div", False), ("Sub", True), ("Pow", True)])
def test_exchanged_operands_go_back(op, constant):
    other = np.full(7, 2.5, np.float32) if constant else "b"
    source, target = (
        Net(format).add("Exp", "x", out="a").add("Sigmoid", "x", out="b") for format in ("pytorch", "onnx")
    )
    source.add(op, "a", other, out="y").add("Tanh", "y", out="z")
    target.add(op, other, "a", out="y").add("Tanh", "y", out="z")
    best = first(source, target, at="y", twin="y", region=["n_y"], source_region=["n_y"])
    assert change(best) == {"kind": "reorder-inputs", "node": "n_y", "order": [1, 0]}


@pytest.mark.parametrize("order", ["bca", "cab", "cba", "bac"])
def test_parts_are_joined_in_the_sources_order_by_value(order):
    source, target = joined("pytorch", *"abc"), joined("onnx", *order)
    best = first(source, target, at="y", twin="y", region=["n_y"], source_region=["n_y"])
    assert change(best)["kind"] == "reorder-inputs"
    assert [order[place] for place in change(best)["order"]] == list("abc")


def test_parts_are_joined_in_the_sources_order_by_their_twins():
    source, target = (
        joined("pytorch", *"abc").add("Softmax", "y", out="z"),
        joined("onnx", *"cab").add("Softmax", "y", out="z"),
    )
    best = first(source, target, at="z", twin="z", region=["n_y", "n_z"], source_region=["n_y", "n_z"])
    assert change(best) == {"kind": "reorder-inputs", "node": "n_y", "order": [1, 2, 0]}


def test_an_operand_that_is_another_value_is_set_to_the_twin_of_the_sources():
    source, target = (
        Net(format).add("Tanh", "x", out="a").add("Sigmoid", "x", out="b") for format in ("pytorch", "onnx")
    )
    source.add("Add", "a", "b", out="y").add("Exp", "y", out="z")
    target.add("Add", "a", "a", out="y").add("Exp", "y", out="z")
    shown = scene(source, target, X, at="y", twin="y", region=["n_y"], source_region=["n_y"])
    best = next(item for item in offered(shown) if mended(shown, target, item))
    assert change(best)["kind"] == "set-input"
    assert change(best)["value"] == "b"
    assert best.doubt < 0.5


# -- solved -------------------------------------------------------------------------------------------------------------


def normalised(format, lost=False):
    """x * scale + shift, both worked out from the data, as converters take a normalisation apart."""
    net = Net(format).add("ReduceMean", "x", out="mean", axes=[2], keepdims=1).add("Exp", "mean", out="scale")
    net.add("Neg", "mean", out="shift")
    net.add("Mul", "x", "scale", out="scaled")
    return net.add("Add", "x" if lost else "scaled", "shift", out="y").add("Tanh", "y", out="z")


def test_a_product_with_a_value_that_nobody_reads_is_found():
    source, target = normalised("pytorch"), normalised("onnx", lost=True)
    target.nodes = [node for node in target.nodes if node.name != "n_scaled"]
    shown = scene(source, target, X, at="y", twin="y", region=["n_y"], source_region=["n_scaled", "n_y"])
    best = offered(shown)[0]
    assert mended(shown, target, best)
    assert change(best)["steps"] == [{"operator": "Mul", "attributes": {}, "slot": 0, "others": ["scale"]}]
    assert change(best)["readers"] == ["n_y"], "the mean reads x as well, and rightly"


def test_what_is_missing_two_operators_before_the_mended_value_is_solved_for():
    source = Net("pytorch").add("Tanh", "x", out="a").add("Sigmoid", "x", out="b").add("Mul", "a", "b", out="m")
    source.add("Sub", "m", 3 * BETA, out="s").add("Add", "s", "b", out="y").add("Exp", "y", out="z")
    target = Net("onnx").add("Tanh", "x", out="a").add("Sigmoid", "x", out="b")
    target.add("Add", "b", -3 * BETA, out="moved").add("Add", "moved", "a", out="y").add("Exp", "y", out="z")
    shown = scene(source, target, X, at="y", twin="y", region=["n_moved", "n_y"], source_region=["n_m", "n_s", "n_y"])
    best = offered(shown)[0]
    assert mended(shown, target, best)
    assert change(best) == {
        "kind": "insert", "value": "a", "steps": [{"operator": "Mul", "attributes": {}, "slot": 0, "others": ["b"]}],
    }  # fmt: skip


def test_a_difference_the_wrong_way_round_behind_a_reshape_is_turned_and_not_undone_later():
    source, target = (
        Net(format).add("Tanh", "x", out="a").add("Sigmoid", "x", out="b") for format in ("pytorch", "onnx")
    )
    source.add("Sub", "b", "a", out="d").add("Exp", "d", out="e").add("Add", "e", "d", out="y").add(
        "Tanh", "y", out="z"
    )
    target.add("Sub", "a", "b", out="turned").add("Reshape", "turned", np.array(SHAPE), out="d").add(
        "Exp", "d", out="x1"
    )
    target.add("Reciprocal", "x1", out="e").add("Add", "e", "d", out="y").add("Tanh", "y", out="z")
    shown = scene(source, target, X, at="y", twin="y", region=["n_y"], source_region=["n_y"])
    exchanged = [item for item in offered(shown) if change(item)["kind"] == "reorder-inputs"]
    assert [change(item)["node"] for item in exchanged] == ["n_turned"]
    assert all(exchanged[0].doubt < item.doubt for item in offered(shown) if change(item)["kind"] == "set-operator")


# -- nothing to do ------------------------------------------------------------------------------------------------------


def test_equal_regions_have_a_reason():
    source, target = chain("pytorch", "Tanh", ("Add", BETA)), chain("onnx", "Tanh", ("Add", 1.1 * BETA + 0.3))
    shown = scene(source, target, X, at="y1", twin="y1", region=["n_y1"], source_region=["n_y1"])
    found = structure.propose(shown)
    assert found == "both regions have the same operators on the same operands"


def test_nothing_is_proposed_that_is_sure_and_wrong():
    """What the values prove has to mend: a doubt of CERTAIN or a little more is never a guess."""
    for step in CHANGED:
        source, target = chain("pytorch", "Neg", step[0], "Exp"), chain("onnx", "Neg", step[1], "Exp")
        shown = scene(source, target, X, at="y1", twin="y1", region=["n_y1"], source_region=["n_y1"])
        for proposal in offered(shown):
            assert proposal.doubt > 0.02 or mended(shown, target, proposal)
