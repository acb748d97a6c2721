"""Typed attributes that are not the source's: what is proposed is run by NumPy, and has to mend."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import Model, normal
from repair_numpy import RUNS, chain, mended, scene
from repair_scenes import refused
from repair_scenes import scene as drawn

from trueport.repairs.rules import attributes

X = normal(RUNS, 1, 4, 9, 9, seed=3)
KERNEL, BIAS = normal(6, 4, 3, 3, seed=1), normal(6, seed=2)
PLAIN = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1}
POOL = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def one(op, *constants, **settings):
    """Tanh, the operator, and something that shows every number."""
    return chain("onnx", "Tanh", (op, *constants, settings), ("ReduceMean", {"axes": [2, 3], "keepdims": 0}))


def offered(source, target, x=X):
    shown = scene(source, target, x, at="y1", twin="y1", region=["n_y1"], source_region=["n_y1"])
    found = attributes.propose(shown)
    assert not isinstance(found, str), found
    return shown, sorted(found, key=lambda proposal: proposal.doubt)


def written(proposal):
    return {(edit.change["attribute"]): edit.change["value"] for edit in proposal.edits if edit.kind == "set-attribute"}


WRONG = {
    "strides": ("Conv", (KERNEL, BIAS), PLAIN, {"strides": [2, 2]}),
    "one stride": ("Conv", (KERNEL, BIAS), {**PLAIN, "strides": [1, 2]}, {"strides": [2, 2]}),
    "pads": ("Conv", (KERNEL, BIAS), PLAIN, {"pads": [0, 0, 2, 2]}),
    "pads and strides": ("Conv", (KERNEL, BIAS), PLAIN, {"strides": [3, 3], "pads": [0, 0, 0, 0]}),
    "a pool's strides": ("MaxPool", (), POOL, {"strides": [1, 1]}),
    "a pool's window": ("MaxPool", (), POOL, {"kernel_shape": [2, 2]}),
    "a mean's window": ("AveragePool", (), {**POOL, "pads": [0, 0, 0, 0]}, {"kernel_shape": [2, 2]}),
    "an axis": ("Softmax", (), {"axis": 1}, {"axis": 3}),
    "a slope": ("LeakyRelu", (), {"alpha": 0.3}, {"alpha": 0.01}),
    "an alpha": ("Elu", (), {"alpha": 1.0}, {"alpha": 0.4}),
}
"""What is wrong -> operator, constants, the source's settings, those of the target that differ."""


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_the_first_that_is_proposed_sets_what_differs_and_mends(case):
    op, constants, right, wrong = case
    target = one(op, *constants, **{**right, **wrong})
    shown, found = offered(one(op, *constants, **right), target)
    assert written(found[0]) == {name: right[name] for name in wrong}
    assert mended(shown, target, found[0])
    for edit in found[0].edits:
        assert edit.change["node"] == "n_y1"
        assert edit.rule == attributes.NAME
        assert all(name in edit.before and name in edit.after for name in [edit.change["attribute"]])


def test_each_of_several_attributes_is_offered_alone_as_well():
    target = one("Conv", KERNEL, BIAS, **{**PLAIN, "strides": [3, 3], "pads": [0, 0, 0, 0]})
    _, found = offered(one("Conv", KERNEL, BIAS, **PLAIN), target)
    settings = [written(proposal) for proposal in found]
    assert settings[0] == {"strides": [1, 1], "pads": [1, 1, 1, 1]}
    assert {"strides": [1, 1]} in settings[1:]
    assert {"pads": [1, 1, 1, 1]} in settings[1:]


def test_pads_that_give_the_sources_size_are_tried_all_ways():
    """Which side gets the odd row is told by the values alone."""
    target = one("MaxPool", kernel_shape=[2, 2], strides=[1, 1], pads=[1, 1, 0, 0])
    source = one("MaxPool", kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1])
    shown, found = offered(source, target)
    assert any(written(proposal) == {"pads": [0, 0, 1, 1]} and mended(shown, target, proposal) for proposal in found)
    tried = [tuple(written(proposal)["pads"]) for proposal in found if set(written(proposal)) == {"pads"}]
    assert (1, 1, 0, 0) not in tried, "what stands there already"


def test_groups_come_with_the_weights_of_as_many():
    """A grouped convolution that was written as one over all channels, of which only the first group's are read."""
    grouped = normal(6, 2, 3, 3, seed=7)
    source = one("Conv", grouped, BIAS, **{**PLAIN, "group": 2})
    target = one("Conv", KERNEL, BIAS, **PLAIN)
    _, found = offered(source, target)
    complete = [proposal for proposal in found if any(edit.kind == "set-parameter" for edit in proposal.edits)]
    assert written(complete[0]) == {"group": 2}
    assert complete[0].doubt < 0.05
    (weights,) = [edit for edit in complete[0].edits if edit.kind == "set-parameter"]
    assert np.array_equal(weights.arrays[weights.change["array"]], grouped)


BOUNDS = {
    "an upper bound": ("Relu", {}, "Clip", {"min": 0.0, "max": 0.1}),
    "no upper bound": ("Clip", {"min": 0.0, "max": 0.2}, "Relu", {}),
    "another bound": ("Clip", {"min": 0.0, "max": 0.2}, "Clip", {"min": 0.0, "max": 0.1}),
    "a lower bound": ("Clip", {"min": -0.1, "max": 0.2}, "Clip", {"min": 0.0, "max": 0.2}),
}
"""What is wrong -> operator and settings of the source, then of the target."""


@pytest.mark.parametrize("case", BOUNDS.values(), ids=BOUNDS)
def test_what_an_activation_lets_through_is_set(case):
    (op, right, other, wrong) = case
    target = one(other, **wrong)
    shown, found = offered(one(op, **right), target)
    healing = [proposal for proposal in found if mended(shown, target, proposal)]
    assert healing
    assert len(healing[0].edits) == 1
    assert healing[0] is found[0]


def test_the_same_operators_with_the_same_settings_are_left_alone():
    model = one("Conv", KERNEL, BIAS, **PLAIN)
    shown = scene(model, model, X, at="y1", twin="y1", region=["n_y1"], source_region=["n_y1"])
    found = attributes.propose(shown)
    assert isinstance(found, str) or not any(set(written(proposal)) - {"pads"} for proposal in found), (
        "the windows that give this size, and nothing else"
    )


# -- settings that a file of one format alone has -----------------------------------------------------------------------------


def fused(format, activation, **more):
    model = Model(format, x=(1, 8))
    weights = model.const("w", normal(8, 8, seed=4))
    model.add(
        "Gemm", "x", weights, out="y", shape=(1, 8), **({} if activation is None else more | {"activation": activation})
    )
    return model


@pytest.mark.parametrize(("source", "wanted"), [("Relu", "relu"), ("Tanh", "tanh"), ("Sigmoid", "sigmoid")])
def test_a_fused_activation_that_is_another_is_set_to_the_sources(source, wanted):
    ours = Model("pytorch", x=(1, 8))
    ours.add("Gemm", "x", ours.const("w", normal(8, 8, seed=4)), out="h", shape=(1, 8))
    ours.add(source, "h", out="y", shape=(1, 8))
    found = attributes.propose(drawn(ours, fused("tflite", "relu6")))
    assert not isinstance(found, str), found
    first = min(found, key=lambda proposal: proposal.doubt)
    assert [edit.change["value"] for edit in first.edits] == [wanted]
    assert first.edits[0].change["attribute"] == "activation"


def test_a_fused_activation_that_the_source_has_not_is_taken_away():
    ours = Model("pytorch", x=(1, 8))
    ours.add("Gemm", "x", ours.const("w", normal(8, 8, seed=4)), out="y", shape=(1, 8))
    found = attributes.propose(drawn(ours, fused("tflite", "relu")))
    assert not isinstance(found, str), found
    assert any([edit.change["value"] for edit in proposal.edits] == [None] for proposal in found)


def test_without_a_partner_of_its_kind_nothing_is_set():
    ours, theirs = Model("pytorch", x=(1, 8)), Model("onnx", x=(1, 8))
    ours.add("Tanh", "x", out="y", shape=(1, 8))
    theirs.add("Sigmoid", "x", out="y", shape=(1, 8))
    assert refused(attributes, ours, theirs) == "all typed attributes of the region's operators are the source's"
