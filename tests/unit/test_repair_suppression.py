"""A non-maximum suppression in plain operators: computed here with NumPy, and when it is not written out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from diagnosis_cases import Model

from trueport.graph import Node
from trueport.repairs.rules import suppression
from trueport.repairs.rules.suppression import MOST, NAME, of_nodes, propose, written_out


def node(**facts):
    given = {"name": "0:y", "op": "NonMaxSuppression", "native_op": "NON_MAX_SUPPRESSION_V4", "origin": None}
    inputs = ("boxes", "scores", "most", "overlap", "least")
    return Node(**{**given, "inputs": inputs, "outputs": ("y", "count"), "attributes": {}, **facts})


def stored(most=3, overlap=0.5, least=-1.0):
    return {
        "most": np.array(most, np.int32),
        "overlap": np.array(overlap, np.float32),
        "least": np.array(least, np.float32),
    }


def shapes(count=4):
    return {"boxes": (count, 4), "scores": (count,)}


def cut(value, start, end):
    parts = tuple(slice(int(one), int(two)) for one, two in zip(np.ravel(start), np.ravel(end), strict=True))
    return value[parts]


COMPUTE = {
    "Slice": cut,
    "Min": np.minimum,
    "Max": np.maximum,
    "Sub": np.subtract,
    "Add": np.add,
    "Mul": np.multiply,
    "Div": np.divide,
    "Greater": np.greater,
    "Where": np.where,
    "Transpose": lambda value, perm: value.transpose(perm),
    "Reshape": lambda value, shape: value.reshape(shape),
    "Cast": lambda value, to: value.astype(to),
    "ArgMax": lambda value, axis, keepdims: value.argmax(axis),
    "Gather": lambda value, places, axis: np.take(value, places, axis),
    "ReduceMax": lambda value, axes, keepdims: value.max(tuple(axes)),
    "ReduceSum": lambda value, axes, keepdims: value.sum(tuple(axes)),
    "Concat": lambda *values, axis: np.concatenate(values, axis),
}


def computed(boxes, scores, **settings):
    """What the operators give, float32 throughout."""
    words, arrays = written_out(node(), shapes(len(scores)), stored(**settings))
    values = {"boxes": np.array(boxes, np.float32), "scores": np.array(scores, np.float32), **arrays}
    for word in words:
        with np.errstate(invalid="ignore"):
            values[word["outputs"][0]] = COMPUTE[word["op"]](
                *(values[name] for name in word["inputs"]), **word["attributes"]
            )
    result = values[words[-1]["outputs"][0]]
    assert result.dtype == np.int32
    return result.tolist()


UNIT, HALF, APART, POINT = (0, 0, 1, 1), (0, 0, 1, 0.5), (5, 5, 6, 6), (0.5, 0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("boxes", "scores", "settings", "wanted"),
    [
        ([UNIT, UNIT, APART, APART], [1, 2, 3, 4], {}, [3, 1]),
        ([UNIT, HALF, APART, POINT], [4, 3, 2, 1], {}, [0, 1, 2]),  # an overlap of 0.5 is none beyond 0.5
        ([UNIT, HALF, APART, POINT], [4, 3, 2, 1], {"overlap": 0.49}, [0, 2, 3]),
        ([POINT, POINT, POINT, POINT], [1, 1, 1, 1], {}, [0, 1, 2]),  # each once, the first of equals first
        ([UNIT, UNIT, UNIT, UNIT], [1, 1, 1, 1], {}, [0]),
        ([(1, 1, 0, 0), UNIT, APART, (6, 6, 5, 5)], [4, 3, 2, 1], {}, [0, 2]),  # corners in any order
        ([UNIT, APART, POINT, UNIT], [0.5, 0.25, 0.75, 0.1], {"least": 0.25}, [2, 0]),
        ([UNIT, APART, POINT, UNIT], [0.5, 0.25, 0.75, 0.1], {"least": 1.0}, []),
        ([UNIT, APART, POINT, HALF], [4, 3, 2, 1], {"most": 1}, [0]),
        ([UNIT, APART, POINT, HALF], [4, 3, 2, 1], {"most": 9}, [0, 1, 2, 3]),
        ([UNIT, APART, POINT, HALF], [-4, -3, -2, -1], {"least": -9.0}, [3, 2, 1]),
    ],
)
def test_the_best_first_and_what_it_overlaps_goes(boxes, scores, settings, wanted):
    assert computed(boxes, scores, **settings) == wanted


def test_every_name_is_made_once():
    words, arrays = written_out(node(), shapes(), stored())
    names = [word["outputs"][0] for word in words]
    assert len(set(names)) == len(names)
    assert not set(names) & set(arrays)
    known = {"boxes", "scores", *arrays}
    for word in words:
        assert {*word["inputs"]} <= known, "an operator reads what was made before it"
        known.update(word["outputs"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (({}, stored()), "the number of boxes is not known"),
        (({"boxes": (1, 4, 4), "scores": (1, 4)}, stored()), "the number of boxes is not known"),
        (({"boxes": (4, 4), "scores": (5,)}, stored()), "the number of boxes is not known"),
        ((shapes(), {}), "is computed"),
        ((shapes(), {**stored(), "overlap": np.zeros(2)}), "is computed"),
        ((shapes(MOST + 1), stored(most=MOST + 1)), "too many"),
        ((shapes(3000), stored()), "too many"),
        ((shapes(), stored(most=0)), "too many"),
    ],
)
def test_what_cannot_be_written_out_says_why(given, says):
    assert says in written_out(node(), *given)


def test_as_many_as_are_allowed_are_written_out():
    words, _ = written_out(node(), shapes(MOST + 1), stored(most=MOST))
    assert sum(word["op"] == "ArgMax" for word in words) == MOST


# -- proposals -----------------------------------------------------------------------------------------------------------


def pair(most=3):
    model = Model("tflite", boxes=(2, 4, 4), scores=(2, 4))
    for name, array in stored(most=most).items():
        model.const(name, array)
    built = model.build("y")
    values = {"boxes": np.zeros((2, 4, 4)), "scores": np.zeros((2, 4))}
    return SimpleNamespace(target=built, theirs=SimpleNamespace(values=values))


def test_the_suppressions_are_written_out_in_one_proposal():
    other = node(name="1:z", outputs=("z", "more"))
    (proposal,) = of_nodes(pair(), [node(), node(native_op="ADD"), other])
    assert [edit.change["value"] for edit in proposal.edits] == ["y", "z"]
    assert {edit.rule for edit in proposal.edits} == {NAME}
    assert all({*edit.arrays} >= {name for word in edit.change["nodes"] for name in word["inputs"] if name.startswith("stored")}
               for edit in proposal.edits)  # fmt: skip


def test_operators_that_are_none_give_no_proposal():
    assert of_nodes(pair(), [node(native_op="ADD")]) == "no suppression of LiteRT's stands here"


def test_one_that_cannot_be_written_out_gives_its_reason():
    assert "too many" in of_nodes(pair(most=0), [node()])


def test_the_rule_looks_at_the_region_alone():
    both = pair()
    both.target.graph = SimpleNamespace(nodes=(node(), node(name="1:z", outputs=("z",))))
    (proposal,) = propose(SimpleNamespace(pair=both, blamed=(both.target.graph.nodes[1],)))
    assert [edit.change["value"] for edit in proposal.edits] == ["z"]
    assert isinstance(propose(SimpleNamespace(pair=both, blamed=())), str)


def test_it_is_one_of_the_rules():
    from trueport.repairs import rules

    assert suppression in rules.RULES
