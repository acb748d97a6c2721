"""Elements in another order: the one change that puts them right is computed beforehand, and nothing else is proposed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from diagnosis_cases import normal
from repair_numpy import OPS, RUNS, Net, chain, mended, scene

from trueport.align.types import Relation
from trueport.repairs.rules import layout

X = normal(RUNS, 1, 4, 4, 6, seed=5)
"""Channels last, as the source has them; height and width are alike, so that a wrong order keeps the shape."""


def offered(source, target, x=X, **where):
    """What is proposed, all of which has to mend, each as one edit."""
    shown = scene(source, target, x, **where)
    found = layout.propose(shown)
    assert not isinstance(found, str), found
    for proposal in found:
        assert len(proposal.edits) == 1
        assert mended(shown, target, proposal), proposal.edits[0].change
    assert [item.doubt for item in found] == sorted(item.doubt for item in found)
    return [proposal.edits[0].change for proposal in found]


def moved(format, *steps):
    """Something computed, movement operators, something computed."""
    return chain(format, "Tanh", *steps, ("Softmax", {"axis": -1}))


@pytest.mark.parametrize("wrong", [(0, 3, 2, 1), (0, 2, 1, 3), (0, 3, 1, 2)])
def test_a_wrong_order_is_set_right(wrong):
    source = moved("pytorch", ("Transpose", {"perm": [0, 2, 3, 1]}), ("Reshape", np.array([1, 4, 24])))
    target = moved("onnx", ("Transpose", {"perm": list(wrong)}), ("Reshape", np.array([1, 4, 24])))
    changes = offered(source, target, at="y2", twin="y2", region=["n_y1", "n_y2"], source_region=["n_y1", "n_y2"])
    assert changes[0] == {"kind": "set-attribute", "node": "n_y1", "attribute": "perm", "value": [0, 2, 3, 1]}


def test_a_reshape_becomes_the_transpose_that_it_stands_for():
    source = moved("pytorch", ("Transpose", {"perm": [0, 3, 1, 2]}))
    target = moved("onnx", ("Reshape", np.array([1, 6, 4, 4])))
    changes = offered(source, target, at="y1", twin="y1", region=["n_y1"], source_region=["n_y1"])
    assert changes[0] == {
        "kind": "set-operator", "node": "n_y1", "operator": "Transpose", "attributes": {"perm": [0, 3, 1, 2]},
    }  # fmt: skip


def test_a_transpose_before_a_flattening_is_taken_out():
    source = moved("pytorch", ("Reshape", np.array([1, 96])))
    target = moved("onnx", ("Transpose", {"perm": [0, 3, 1, 2]}), ("Reshape", np.array([1, 96])))
    changes = offered(source, target, at="y2", twin="y1", region=["n_y1", "n_y2"], source_region=["n_y1"])
    assert changes[0] == {"kind": "remove-node", "node": "n_y1"}


def test_a_missing_transpose_before_a_flattening_is_put_in():
    source = moved("pytorch", ("Transpose", {"perm": [0, 3, 1, 2]}), ("Reshape", np.array([1, 96])))
    target = moved("onnx", ("Reshape", np.array([1, 96])))
    changes = offered(source, target, at="y1", twin="y2", region=["n_y1"], source_region=["n_y1", "n_y2"])
    assert changes[0] == {
        "kind": "insert", "value": "y0", "steps": [{"operator": "Transpose", "attributes": {"perm": [0, 3, 1, 2]}}],
    }  # fmt: skip


def test_the_second_of_two_transposes_may_be_the_one_too_many():
    source = moved("keras", ("Reshape", np.array([1, 96])))
    target = moved(
        "onnx",
        ("Transpose", {"perm": [0, 2, 3, 1]}),
        ("Transpose", {"perm": [0, 2, 3, 1]}),
        ("Reshape", np.array([1, 96])),
    )
    changes = offered(
        source, target, perm=(0, 3, 1, 2), at="y3", twin="y1", region=["n_y2", "n_y3"], source_region=["n_y1"]
    )
    assert {"kind": "remove-node", "node": "n_y2"} in changes
    assert all(change["kind"] != "remove-node" or change["node"] in ("n_y1", "n_y2") for change in changes)


def test_a_place_before_the_wrong_operator_is_seen_through():
    """Put in above the wrong transpose, another order heals as well; the change is made where the elements are moved."""
    source = moved("pytorch", ("Transpose", {"perm": [0, 2, 1, 3]}), ("Reshape", np.array([1, 96])))
    target = moved("onnx", ("Transpose", {"perm": [0, 1, 2, 3]}), ("Reshape", np.array([1, 96])))
    changes = offered(
        source, target, at="y0", twin="y0", kind="layout", relation=Relation((1, 0, 2)),
        region=["n_y1", "n_y2"], source_region=["n_y1", "n_y2"],
    )  # fmt: skip
    assert changes[0] == {"kind": "set-attribute", "node": "n_y1", "attribute": "perm", "value": [0, 2, 1, 3]}


def test_who_only_asks_for_the_shape_does_not_end_a_chain():
    source = moved("pytorch", ("Reshape", np.array([1, 96])))
    target = moved("onnx", ("Transpose", {"perm": [0, 3, 1, 2]}), ("Reshape", np.array([1, 96])))
    target.nodes.insert(1, Net("onnx").add("Shape", "y0", out="size").nodes[0])
    shown = scene(source, target, X, at="y0", twin="y0", kind="layout", relation=Relation((1, 2, 0)), region=["n_y1"], source_region=[])  # fmt: skip
    chain_ = layout.chain_around(shown, "y0")
    assert [node.name for node in chain_.nodes] == ["n_y1", "n_y2"]
    assert (chain_.start, chain_.end) == ("y0", "y2")


def test_only_one_reader_is_given_another_order():
    source, target = (Net(format).add("Tanh", "x", out="a") for format in ("pytorch", "onnx"))
    source.add("Transpose", "a", out="t", perm=[0, 2, 1, 3]).add("Reshape", "t", np.array([1, 96]), out="f")
    target.add("Reshape", "a", np.array([1, 96]), out="f")
    for net in (source, target):
        net.add("Softmax", "f", out="s").add("ReduceMax", "a", out="m", axes=[1, 2, 3], keepdims=0)
        net.add("Mul", "s", "m", out="y")
    changes = offered(source, target, at="f", twin="f", region=["n_f"], source_region=["n_t", "n_f"])
    assert changes[0]["kind"] == "insert"
    assert changes[0]["readers"] == ["n_f"]


def test_axes_of_size_one_do_not_make_proposals_of_their_own():
    found = [tuple(change.get("value", ())) for change in offered(
        moved("pytorch", ("Transpose", {"perm": [0, 2, 1, 3]}), ("Reshape", np.array([1, 96]))),
        moved("onnx", ("Transpose", {"perm": [0, 1, 2, 3]}), ("Reshape", np.array([1, 96]))),
        at="y2", twin="y2", region=["n_y1", "n_y2"], source_region=["n_y1", "n_y2"],
    ) if change["kind"] == "set-attribute"]  # fmt: skip
    assert found == [(0, 2, 1, 3)]


@pytest.mark.parametrize("steps", [("Tanh",), (("Add", normal(6)), ("Reshape", np.array([1, 96])))])
def test_what_is_wrong_otherwise_is_left_to_others(steps):
    source = moved("pytorch", ("Reshape", np.array([1, 96])))
    target = moved("onnx", *steps)
    where = {"at": f"y{len(steps)}", "twin": "y1", "region": [f"n_y{len(steps)}"], "source_region": ["n_y1"]}
    found = layout.propose(scene(source, target, X, **where))
    assert isinstance(found, str)
    assert "order" in found


@pytest.mark.parametrize(("format", "native"), [("keras", "Flatten"), ("onnx", "Reshape")])
def test_an_operator_that_does_not_show_how_it_moves_elements_is_not_reckoned_with(format, native, monkeypatch):
    """Keras' Flatten can flatten channels first, which its graph does not show."""
    monkeypatch.setitem(OPS, "Reshape", lambda x, shape: np.transpose(x, (0, 3, 1, 2)).reshape(1, 96))
    target = moved(format, ("Reshape", np.array([1, 96])))
    target.nodes[1] = replace(target.nodes[1], native_op=native)
    source = moved("savedmodel", ("GridSample",))
    monkeypatch.setitem(OPS, "GridSample", lambda x: x.reshape(1, 96))
    shown = scene(source, target, X, at="y1", twin="y1", region=["n_y1"], source_region=["n_y1"])
    found = layout.propose(shown)
    if native == "Flatten":
        assert [proposal.edits[0].change["operator"] for proposal in found] == ["Flatten"]
    else:
        assert found == "an operator around the fault moves elements in a way that it does not show"


def test_a_superfluous_operator_is_no_matter_of_layout():
    source, target = chain("pytorch", "Tanh", "Exp"), chain("onnx", "Tanh", "Sigmoid", "Exp")
    shown = scene(source, target, X, at="y1", twin="y0", kind="extra", region=["n_y1"], source_region=[])
    assert layout.propose(shown) == "the fault is no wrong order of elements"


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_orders_begin_with_those_that_leave_the_batch(rank):
    found = list(layout.orders(rank))
    assert len(found) == len(set(found)) == np.prod(range(1, rank + 1)) - 1
    kept = [perm[0] == 0 for perm in found]
    assert kept == sorted(kept, reverse=True)
