"""Alignment: values are paired by what they hold, and what cannot be told apart is not guessed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_models import W1, Net, dense, pair, relu, source, target

from trueport.align import relations
from trueport.align.info import Kind, describe
from trueport.align.types import Relation


def test_every_value_of_a_true_twin_finds_its_own():
    found = pair(source(), target()).align()
    assert {name: match.source for name, match in found.matches.items()} == {
        "x": "x", "a": "h", "b": "r", "c": "d", "e": "t", "f": "p", "z": "y",
    }  # fmt: skip
    assert all(match.ok for match in found.matches.values())
    assert {"h", "r", "d", "t", "p", "y"} <= found.explained


def test_another_layout_is_one_relation_and_no_fault():
    turned = Net(
        [
            ("i", "Transpose", lambda x: x.T, ["x"]),
            ("a", "MatMul", lambda x: W1.T @ x, ["i"]),
            ("b", "Relu", relu, ["a"]),
            ("z", "Transpose", lambda x: x.T, ["b"]),
        ]
    )
    plain = Net([("h", "MatMul", dense(W1), ["x"]), ("y", "Relu", relu, ["h"])])
    found = pair(plain, turned).align()
    assert found.matches["a"].relation == Relation((1, 0))
    assert found.matches["a"].source == "h"
    assert found.consensus[2] == (1, 0)


def test_the_same_elements_in_no_known_order_are_a_shuffle_and_not_right():
    order = np.random.default_rng(0).permutation(6)
    shuffled = Net([("a", "Gemm", lambda x: dense(W1)(x)[:, order], ["x"]), ("z", "Relu", relu, ["a"])])
    plain = Net([("h", "Gemm", dense(W1), ["x"]), ("y", "Relu", relu, ["h"])])
    match = pair(plain, shuffled).align().matches["a"]
    assert (match.how, match.source, match.ok) == ("shuffle", "h", False)


def test_equal_values_are_rivals_and_the_place_decides():
    twice = Net([("a", "Gemm", dense(W1), ["x"]), ("b", "Identity", lambda x: x, ["a"]), ("z", "Relu", relu, ["b"])])
    plain = Net([("h", "Gemm", dense(W1), ["x"]), ("i", "Identity", lambda x: x, ["h"]), ("y", "Relu", relu, ["i"])])
    found = pair(plain, twice).align()
    assert found.matches["a"].source == "h"
    assert found.matches["b"].source == "i"
    assert found.matches["b"].rivals == ("h",)
    assert found.matches["b"].sure < found.matches["z"].sure


def test_a_wrong_value_has_no_twin_that_agrees():
    found = pair(source(), target(h=dense(W1 * 1.5))).align()
    assert not found.ok("a")
    assert not found.ok("c")


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.arange(24.0).reshape(4, 6), Kind.ACT),
        (np.ones((4, 6)) * 3, Kind.STATIC),
        (np.tile(np.arange(6.0), (4, 1)), Kind.STATIC),
        (np.array([[0.0, 1.0]] * 2 + [[1.0, 0.0]] * 2), Kind.LOWINFO),
        (np.array([[1.0, np.nan]] * 4), Kind.NONFINITE),
        (np.zeros((4, 0)), Kind.OTHER),
        (np.array([["a"]] * 4), Kind.OTHER),
    ],
)
def test_kinds(array, kind):
    assert describe(array).kind is kind


def test_what_does_not_depend_on_an_input_is_constant():
    assert describe(np.arange(24.0).reshape(4, 6), dependent=False).kind is Kind.CONST


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(3)), st.sampled_from(["source", "target"]), st.integers(0, 99))
def test_the_relation_that_made_a_value_is_found(axes, side, seed):
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(3, 2, 4, 5))
    axes = tuple(axes)
    other = made.transpose(0, *(axis + 1 for axis in axes))
    mine, its = (made, other) if side == "source" else (other, made)
    if side == "target":  # read flat, so that only a relation of the target's axes fits
        mine = mine.reshape(3, -1)
    ours, theirs = describe(mine), describe(its)
    found = relations.best(mine, ours, its, theirs, {}, enough=1e-9)
    assert found is not None
    relation, error = found
    assert error < 1e-12
    assert np.array_equal(relation.to_target(mine, its.shape[1:]), its)


def test_the_sketch_is_a_lower_bound_of_the_error_under_every_order():
    rng = np.random.default_rng(1)
    for _ in range(20):
        left, right = rng.normal(size=(2, 1, 400))
        bound = np.sqrt(np.mean((np.sort(left) - np.sort(right)) ** 2))
        assert bound <= np.sqrt(np.mean((left - rng.permutation(right[0])) ** 2)) + 1e-12


def test_sizes_that_cannot_be_related_are_infinitely_far():
    left, right = np.ones((2, 6)), np.ones((2, 5))
    assert relations.error(left, right, Relation((0,)), 1.0) == np.inf


def test_values_that_overflow_at_the_same_places_can_agree():
    left = np.array([[1.0, np.inf, -np.inf, 2.0]])
    assert relations.error(left, left.copy(), Relation((0,)), 1.0) == 0.0
    assert relations.error(left, np.array([[1.0, np.inf, np.inf, 2.0]]), Relation((0,)), 1.0) == np.inf
