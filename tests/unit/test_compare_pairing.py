"""Which output answers to which, from names, declarations, positions and shapes alone."""

from __future__ import annotations

import numpy as np
import pytest
from compare_cases import signature

from trueport.compare.pairing import bare, forced_permutation, pair_outputs


def runs(**shapes):
    return {"data": {name: np.zeros((2, *shape), np.float32) for name, shape in shapes.items()}}


def pairs(left, right, *, renames=None, layout=None):
    """Pair outputs given as name -> shape; returns ({source: target}, unpaired source, unpaired target, pairing)."""
    pairing = pair_outputs(
        signature(**left), signature(**right), runs(**left), runs(**right), renames or {}, layout or {}
    )
    return (
        {pair.source: pair.target for pair in pairing.pairs},
        pairing.unpaired_source,
        pairing.unpaired_target,
        pairing,
    )


S, T, U = (1, 4), (1, 5), (1, 3, 8, 6)


@pytest.mark.parametrize(
    ("left", "right", "expected", "how"),
    [
        ({"a": S, "b": S}, {"b": S, "a": S}, {"a": "a", "b": "b"}, {"name"}),
        ({"a": S, "b": T}, {"a:0": S, "b:0": T}, {"a": "a:0", "b": "b:0"}, {"name without decoration"}),
        ({"out/Softmax": S, "b": T}, {"StatefulPartitionedCall/out/Softmax:0": S, "StatefulPartitionedCall_1/b": T}, {"out/Softmax": "StatefulPartitionedCall/out/Softmax:0", "b": "StatefulPartitionedCall_1/b"}, {"name without decoration"}),
        ({"Probs": S, "Boxes": T}, {"boxes": T, "probs": S}, {"Probs": "probs", "Boxes": "boxes"}, {"name without decoration"}),
        ({"a": S}, {"z": T}, {"a": "z"}, {"only output"}),
        ({"a": S, "b": T}, {"x": S, "y": T}, {"a": "x", "b": "y"}, {"position"}),
        ({"a": S, "b": T}, {"x": T, "y": S}, {}, set()),
        ({"a": S, "b": S}, {"a": S, "c": S}, {"a": "a"}, {"name"}),
        ({"a": S, "b": S}, {"a": S}, {"a": "a"}, {"name"}),
        ({"a": S}, {"x": S, "y": S}, {}, set()),
        ({"A": S, "a:0": S}, {"a": S, "x": S}, {}, set()),
    ],
)  # fmt: skip
def test_rules(left, right, expected, how):
    found, unpaired_left, unpaired_right, pairing = pairs(left, right)
    assert found == expected
    assert {pair.how for pair in pairing.pairs} == how
    assert sorted((*found, *unpaired_left)) == sorted(left)
    assert sorted((*found.values(), *unpaired_right)) == sorted(right)


def test_what_the_converter_declared_goes_before_equal_names():
    found, _, _, pairing = pairs({"a": S, "b": S}, {"a": S, "b": S}, renames={"a": "b", "b": "a"})
    assert found == {"a": "b", "b": "a"}
    assert {pair.how for pair in pairing.pairs} == {"declared by the converter"}


def test_a_declared_name_that_does_not_exist_is_told():
    pairing = pairs({"a": S, "b": S}, {"b": S, "c": S}, renames={"a": "gone"})[3]
    assert "'a' became 'gone'" in " ".join(pairing.notes)
    assert pairing.unpaired_source == ("a",)


def test_content_is_never_looked_at():
    """Equal values under another name do not make a pair."""
    value = np.arange(8, dtype=np.float32).reshape(2, 1, 4)
    pairing = pair_outputs(
        signature(a=S, b=S),
        signature(a=S, c=S),
        {"d": {"a": value, "b": value + 1}},
        {"d": {"a": value, "c": value + 1}},
        {},
        {},
    )
    assert pairing.unpaired_source == ("b",)
    assert pairing.unpaired_target == ("c",)


def test_position_needs_equal_dtype_kinds():
    pairing = pair_outputs(
        signature(a=S, b=S),
        signature(x=S, y=S),
        {"d": {"a": np.zeros((2, 1, 4)), "b": np.zeros((2, 1, 4))}},
        {"d": {"x": np.zeros((2, 1, 4)), "y": np.zeros((2, 1, 4), np.int64)}},
        {},
        {},
    )
    assert pairing.pairs == ()
    assert "do not allow 'b' with 'y'" in " ".join(pairing.notes)


def test_an_output_that_only_the_runs_show_is_listed():
    pairing = pair_outputs(signature(a=S), signature(a=S), runs(a=S), runs(a=S, hidden=S), {}, {})
    assert pairing.unpaired_target == ("hidden",)


@pytest.mark.parametrize(
    ("left", "right", "permutation"),
    [
        ((1, 3, 8, 6), (1, 8, 6, 3), (0, 2, 3, 1)),
        ((1, 8, 6, 3), (1, 3, 8, 6), (0, 3, 1, 2)),
        ((1, 3, 8), (1, 8, 3), (0, 2, 1)),
        ((1, 3, 8, 6, 5), (1, 8, 6, 5, 3), (0, 2, 3, 4, 1)),
        ((1, 4, 4, 4), (1, 4, 4, 4), None),
        ((1, 3, 3, 8), (1, 3, 8, 3), (0, 2, 3, 1)),
        ((1, 3, 8, 6), (1, 3, 6, 8), None),
        ((1, 3, 8, 6), (1, 6, 8, 3), None),
        ((3, 8, 6, 1), (1, 3, 8, 6), None),
        ((1, 8), (8, 1), None),
        ((1, 2, 3), (6,), None),
    ],
)
def test_only_channel_first_and_last_are_taken_from_shapes(left, right, permutation):
    one, two = {"d": np.zeros((2, *left))}, {"d": np.zeros((2, *right))}
    assert forced_permutation(one, two) == permutation


def test_a_layout_must_fit_every_case_and_every_run():
    one = {"d": np.zeros((2, 1, 3, 8, 6)), "e": [np.zeros((1, 3, 4, 4)), np.zeros((1, 3, 5, 5))]}
    two = {"d": np.zeros((2, 1, 8, 6, 3)), "e": [np.zeros((1, 4, 4, 3)), np.zeros((1, 5, 5, 3))]}
    assert forced_permutation(one, two) == (0, 2, 3, 1)
    assert forced_permutation(one, dict(two, e=[np.zeros((1, 4, 4, 3)), np.zeros((1, 3, 5, 5))])) is None


def test_a_declared_layout_wins_over_shapes_and_names_its_source():
    layout = {"x": {"source": "a", "permutation": [0, 2, 3, 1]}, "y": {"source": "b", "permutation": [0, 1]}}
    found, _, _, pairing = pairs({"a": (1, 4, 4, 4), "b": S}, {"y": S, "x": (1, 4, 4, 4)}, layout=layout)
    assert found == {"a": "x", "b": "y"}
    assert [pair.permutation for pair in pairing.pairs] == [(0, 2, 3, 1), None]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a:0", "a"), ("model/dense/BiasAdd:0", "dense_biasadd"), ("StatefulPartitionedCall:1", "statefulpartitionedcall"), ("A.b", "a_b"), ("model", "model"), (":0", "")],
)  # fmt: skip
def test_bare_names(name, expected):
    assert bare(name) == expected
