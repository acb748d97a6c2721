"""Preparation of inputs that is too much or too little: what is written into a file does what the diagnosis found."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from diagnosis_cases import normal
from repair_numpy import RUNS, chain, mended, scene

from trueport.diagnosis.inputs import Change
from trueport.repairs.rules import inputs

X = normal(RUNS, 1, 3, 4, 5, seed=5)


OPERATORS = {
    "Transpose": lambda value, attributes, constants: value.transpose(attributes["perm"]),
    "Reshape": lambda value, attributes, constants: value.reshape(constants[0].tolist()),
    "Gather": lambda value, attributes, constants: value.take(constants[0], attributes["axis"]),
    "Mul": lambda value, attributes, constants: value * constants[0],
    "Add": lambda value, attributes, constants: value + constants[0],
}


def steps(array, change):
    """What the steps that are written make of one run."""
    written, arrays = inputs.steps_of(change, array.shape)
    for step in written:
        constants = [arrays[name] for name in step["constants"]]
        array = OPERATORS[step["operator"]](array, step["attributes"], constants)
    return array, [step["operator"] for step in written]


ORDER = (0, 2, 3, 1)
CHANGES = {
    "nothing": (Change.none(4), []),
    "channels last": (Change(permutation=ORDER), ["Transpose"]),
    "another rank": (Change(permutation=(0, 1, 2, 3), shape=(1, 60)), ["Reshape"]),
    "turned, then another rank": (Change(permutation=ORDER, shape=(1, 60)), ["Transpose", "Reshape"]),
    "upside down": (Change(permutation=(0, 1, 2, 3), flips=(2,), axis=1), ["Gather"]),
    "both ways": (Change(permutation=(0, 1, 2, 3), flips=(2, 3), axis=1), ["Gather", "Gather"]),
    "channels in reverse": (Change(permutation=(0, 1, 2, 3), axis=1, channels=(2, 1, 0)), ["Gather"]),
    "scaled": (Change(permutation=(0, 1, 2, 3), scale=(0.5,)), ["Mul"]),
    "shifted": (Change(permutation=(0, 1, 2, 3), shift=(-1.0,)), ["Add"]),
    "by channel": (
        Change(permutation=(0, 1, 2, 3), axis=1, scale=(0.5, 2.0, 1.0), shift=(1.0, -2.0, 0.0)),
        ["Mul", "Add"],
    ),
    "all of it": (
        Change(
            permutation=ORDER, flips=(1,), axis=3, channels=(2, 0, 1), scale=(0.5, 2.0, 1.5), shift=(1.0, -2.0, 0.5)
        ),
        ["Transpose", "Gather", "Gather", "Mul", "Add"],
    ),
}


@pytest.mark.parametrize("case", CHANGES.values(), ids=CHANGES)
def test_the_steps_do_what_the_change_does_and_no_more(case):
    change, operators = case
    array, written = steps(X[0], change)
    assert written == operators
    wanted = change.apply(X[:1])[0]
    assert array.shape == wanted.shape
    assert np.allclose(array, wanted, rtol=1e-6, atol=1e-6)


def test_arrays_have_the_types_that_the_operators_read():
    change = Change(permutation=ORDER, flips=(1,), axis=3, channels=(2, 0, 1), scale=(0.5,), shift=(1.0,))
    written, arrays = inputs.steps_of(change, (1, 3, 4, 5))
    kinds = {step["operator"]: arrays[step["constants"][0]].dtype for step in written if step["constants"]}
    assert kinds == {"Gather": np.dtype(np.int64), "Mul": np.dtype(np.float32), "Add": np.dtype(np.float32)}
    assert [name for step in written for name in step["constants"]] == list(arrays)


def test_a_free_batch_stays_free_where_the_rank_changes():
    _, arrays = inputs.steps_of(Change(permutation=(0, 1, 2, 3), shape=(1, 60)), (1, 3, 4, 5))
    assert arrays["a0"].tolist() == [-1, 60]


# -- too much ---------------------------------------------------------------------------------------------------------------

KERNEL = normal(4, 3, 3, 3, seed=1)
CONV = ("Conv", KERNEL, {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]})
HALF, LESS = np.float32(0.5), normal(1, 3, 1, 1, seed=2)


def network(*before):
    return chain("onnx", *before, CONV, ("ReduceMean", {"axes": [2, 3], "keepdims": 0}))


SURPLUS = {
    "one": [("Mul", HALF)],
    "two": [("Mul", HALF), ("Sub", LESS)],
    "three": [("Mul", HALF), ("Sub", LESS), ("Div", normal(1, 3, 1, 1, seed=9) + 3)],
}


@pytest.mark.parametrize("before", SURPLUS.values(), ids=SURPLUS)
def test_operators_in_front_of_the_first_layer_are_taken_out(before):
    source, target = network(), network(*before)
    last = f"y{len(before) - 1}"
    region = [f"n_y{place}" for place in range(len(before))]
    shown = scene(source, target, X, at=last, twin="x", region=region, source_region=[])
    found = inputs.propose(shown)
    assert not isinstance(found, str), found
    first = min(found, key=lambda proposal: proposal.doubt)
    assert [edit.change for edit in first.edits] == [{"kind": "remove-node", "node": name} for name in region]
    assert mended(shown, target, first)


def test_of_two_operators_the_one_that_the_source_has_stays():
    source, target = network(("Sub", LESS)), network(("Mul", HALF), ("Sub", LESS))
    shown = scene(source, target, X, at="y0", twin="x", region=["n_y0"], source_region=[])
    found = inputs.propose(shown)
    first = min(found, key=lambda proposal: proposal.doubt)
    assert [edit.change["node"] for edit in first.edits] == ["n_y0"]
    assert mended(shown, target, first)


def test_the_reader_may_read_the_input_itself():
    target = network(("Mul", HALF), ("Sub", LESS))
    shown = scene(network(), target, X, at="y1", twin="x", region=["n_y0", "n_y1"], source_region=[])
    bypass = [one for one in inputs.propose(shown) if one.edits[0].kind == "set-input"]
    assert [edit.change for edit in bypass[0].edits] == [
        {"kind": "set-input", "node": "n_y2", "slot": 0, "value": "x"}
    ]  # fmt: skip
    assert mended(shown, target, bypass[0])
    assert bypass[0].doubt > min(one.doubt for one in inputs.propose(shown))


def test_a_fault_behind_the_first_layer_is_none_of_the_inputs():
    source = chain("onnx", ("Mul", HALF), CONV, "Relu", ("ReduceMean", {"axes": [2, 3], "keepdims": 0}))
    target = chain("onnx", ("Mul", HALF), CONV, "Tanh", ("ReduceMean", {"axes": [2, 3], "keepdims": 0}))
    shown = scene(source, target, X, at="y2", twin="y2", region=["n_y2"], source_region=["n_y2"])
    assert isinstance(inputs.propose(shown), str)


# -- too little -------------------------------------------------------------------------------------------------------------


def test_a_preparation_that_was_found_to_heal_is_put_in_behind_the_input():
    target = network()
    shown = scene(
        network(("Mul", HALF)), target, X, at="y0", twin="y1", region=["n_y0"], source_region=["n_y0", "n_y1"]
    )
    change = Change(permutation=(0, 1, 2, 3), scale=(0.5,))
    found = SimpleNamespace(
        input="x", change=change, labels=None, source_words="x", target_words="x / 2", fitted=False
    )  # fmt: skip
    (proposal,) = inputs._prepared(shown, found)
    (edit,) = proposal.edits
    assert (edit.kind, edit.change["value"]) == ("insert", "x")
    assert [step["operator"] for step in edit.change["steps"]] == ["Mul"]
    (one_fitted,) = inputs._prepared(shown, SimpleNamespace(**{**vars(found), "fitted": True}))
    assert one_fitted.doubt > proposal.doubt


LABELS = {"input": "x", "change": Change.none(4), "source_words": "", "target_words": "", "fitted": False}


@pytest.mark.parametrize(
    ("offset", "ours", "theirs", "kept"),
    [
        (1, 3, 4, [1, 2, 3]),
        (0, 3, 4, [0, 1, 2]),
        (2, 3, 4, None),
        (-1, 3, 4, None),
        (1, 3, 5, None),
        (1, None, 4, None),
    ],
)
def test_classes_at_another_place_are_taken_from_there(offset, ours, theirs, kept):
    target = network()
    shown = scene(
        network(("Mul", HALF)), target, X, at="y0", twin="y1", region=["n_y0"], source_region=["n_y0", "n_y1"]
    )
    labels = SimpleNamespace(
        output=target.nodes[-1].outputs[0], offset=offset, source_classes=ours, target_classes=theirs
    )
    found = list(inputs._prepared(shown, SimpleNamespace(**LABELS, labels=labels)))
    if kept is None:
        assert found == []
        return
    (edit,) = found[0].edits
    assert edit.change["readers"] == [""], "the output alone, and no one else who reads the value"
    assert edit.arrays["kept"].tolist() == kept
    assert edit.change["steps"] == [{"operator": "Gather", "attributes": {"axis": 1}, "constants": ["kept"]}]
