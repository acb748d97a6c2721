"""Which target input gets which source input: every rule, every refusal, and what happens to the values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueport.artifact import Signature, TensorSpec
from trueport.errors import UsageError
from trueport.feeds import Case, Feeds
from trueport.reconcile import Grid, apply, reconcile_inputs


def model(*inputs):
    specs = [TensorSpec(name=name, dtype=dtype, shape=shape) for name, dtype, shape in inputs]
    return Signature(inputs=tuple(specs), outputs=())


def feeds(**arrays):
    return Feeds.of([Case(name="data", kind="data", inputs=arrays)], origin="test", count=1)


def pairs(mapping):
    return {rule.target: rule.source for rule in mapping.rules}


A = ("a", "float32", ("N", 4))
B = ("b", "float32", ("N", 4))


def test_equal_names_win_over_order_and_need_no_note():
    mapping = reconcile_inputs(model(A, B), model(B, A))
    assert pairs(mapping) == {"a": "a", "b": "b"}
    assert (mapping.notes, mapping.problems) == ((), ())


def test_declared_renames_win_over_equal_names():
    mapping = reconcile_inputs(model(A, B), model(A, B), {"a": "b", "b": "a"})
    assert pairs(mapping) == {"a": "b", "b": "a"}
    assert "renaming that the converter declared" in mapping.notes[0]


def test_declared_layout_wins_over_all():
    layout = {"b": {"source": "a", "permutation": [1, 0]}}
    mapping = reconcile_inputs(
        model(("a", "float32", (4, 4)), ("b", "float32", (4, 4))), model(("b", "float32", (4, 4))), {"b": "b"}, layout
    )
    assert pairs(mapping) == {"b": "a"}
    assert mapping.rules[0].permutation == (1, 0)
    assert "source input b has no counterpart" in " ".join(mapping.notes)


@pytest.mark.parametrize("name", ["serving_default_a:0", "A", "model/scope/a", "serving_default_a"])
def test_decorated_names(name):
    mapping = reconcile_inputs(model(B, A), model((name, "float32", ("N", 4)), B))
    assert pairs(mapping)[name] == "a"
    assert "similar names" in mapping.notes[0]


def test_names_that_become_equal_are_not_similar_but_positional():
    mapping = reconcile_inputs(
        model(("x/a", "float32", (1,)), ("y/a", "float32", (1,))),
        model(("a:0", "float32", (1,)), ("A", "float32", (1,))),
    )
    assert pairs(mapping) == {"a:0": "x/a", "A": "y/a"}
    assert all("position" in note for note in mapping.notes)


def test_position_is_used_only_when_every_pair_is_possible():
    image, ids = ("image", "float32", (1, 3, 8, 8)), ("ids", "int64", (1, 5))
    mapping = reconcile_inputs(model(image, ids), model(("p", "int64", (1, 5)), ("q", "float32", (1, 3, 8, 8))))
    assert pairs(mapping) == {"p": "ids", "q": "image"}
    assert all("by shape" in note for note in mapping.notes)


def test_an_input_without_counterpart_is_a_problem_named():
    mapping = reconcile_inputs(model(A), model(A, ("sr", "int64", ())))
    assert pairs(mapping) == {"a": "a"}
    assert len(mapping.problems) == 1
    assert "target input sr (int64, shape [])" in mapping.problems[0]
    with pytest.raises(UsageError, match="target input sr"):
        apply(mapping, feeds(a=np.zeros((1, 1, 4), np.float32)))


def test_one_source_input_feeds_one_target_input_only():
    mapping = reconcile_inputs(model(A), model(A, ("A:0", "float32", ("N", 4))))
    assert pairs(mapping) == {"a": "a"}
    assert len(mapping.problems) == 1


NCHW_NHWC = (0, 2, 3, 1)
NHWC_NCHW = (0, 3, 1, 2)


@pytest.mark.parametrize(
    ("ours", "theirs", "permutation"),
    [
        ((1, 3, 8, 8), (1, 8, 8, 3), NCHW_NHWC),
        ((1, 8, 8, 3), (1, 3, 8, 8), NHWC_NCHW),
        (("N", 3, 8, 9), (1, 8, 9, 3), NCHW_NHWC),
        (("N", 3, None, None), ("M", None, None, 3), None),
        ((1, 3, 3, 3), (1, 3, 3, 3), None),
        ((1, 3, 8, 8), (None, None, None, None), None),
        ((1, 16, 5), (1, 5, 16), "both ways"),
        ((1, 2, 3, 4, 5), (1, 3, 4, 5, 2), (0, 2, 3, 4, 1)),
    ],
)
def test_layout_changes_only_when_the_shapes_force_it(ours, theirs, permutation):
    mapping = reconcile_inputs(model(("x", "float32", ours)), model(("x", "float32", theirs)))
    if permutation == "both ways":  # for rank 3 both channel moves are the same permutation
        permutation = (0, 2, 1)
    assert mapping.problems == ()
    assert mapping.rules[0].permutation == permutation
    assert (permutation is None) == (not mapping.notes)


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ((1, 3, 8, 8), (1, 3, 9, 9), "shapes do not fit"),
        ((1, 3, 8, 9), (1, 9, 8, 3), "shapes do not fit"),
        ((1, 4), (4, 1), "shapes do not fit"),
        ((1, 4), (2, 4), "shapes do not fit"),
        ((4,), (1, 4), "differ in rank"),
    ],
)
def test_shapes_that_cannot_be_one_tensor(ours, theirs, says):
    mapping = reconcile_inputs(model(("x", "float32", ours)), model(("x", "float32", theirs)))
    assert len(mapping.problems) == 1
    assert says in mapping.problems[0]


def test_a_declared_permutation_that_does_not_fit_is_a_problem():
    for axes in ([0, 2, 1], [0, 1, 2, 3], [0, 0, 1, 2]):
        mapping = reconcile_inputs(
            model(("x", "float32", (1, 3, 8, 8))),
            model(("x", "float32", (1, 8, 8, 3))),
            None,
            {"x": {"source": "x", "permutation": axes}},
        )
        assert "the converter declared" in mapping.problems[0]


@pytest.mark.parametrize(
    ("ours", "theirs", "cast"),
    [
        ("float32", "float32", None),
        ("int64", "int32", "int32"),
        ("int32", "int64", "int64"),
        ("float64", "float32", "float32"),
        ("float32", "float16", "float16"),
        ("bool", "int64", "int64"),
        ("int64", "bool", "bool"),
    ],
)
def test_widths_change_with_a_note(ours, theirs, cast):
    mapping = reconcile_inputs(model(("x", ours, (1,))), model(("x", theirs, (1,))))
    assert mapping.problems == ()
    assert mapping.rules[0].dtype == (None if cast is None else np.dtype(cast))
    assert bool(mapping.notes) == (cast is not None)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("float32", "int64"),
        ("int64", "float32"),
        ("str", "int64"),
        ("bool", "float32"),
        ("complex64", "float32"),
        ("float32", "seq(x)"),
    ],
)
def test_kinds_do_not_change(ours, theirs):
    mapping = reconcile_inputs(model(("x", ours, (1,))), model(("x", theirs, (1,))))
    assert len(mapping.problems) == 1


def test_a_quantised_target_takes_real_values():
    spec = TensorSpec(
        name="x", dtype="int8", shape=(1, 4), quantization={"scale": 0.1, "zero_point": 0, "dtype": "int8"}
    )
    mapping = reconcile_inputs(model(("x", "float32", (1, 4))), Signature(inputs=(spec,), outputs=()))
    assert mapping.problems == ()
    assert mapping.rules[0].dtype is None


def told(dtype="int8", scale=0.1, zero_point=0, stored="int8", name="x", shape=(4,)):
    """A tensor that a file stores quantised: it crosses as real values."""
    facts = {"scale": scale, "zero_point": zero_point, "dtype": stored}
    return TensorSpec(name=name, dtype=dtype, shape=shape, quantization=facts)


def bare(dtype, name="x", shape=(4,)):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def one(spec):
    return Signature(inputs=(spec,), outputs=())


@pytest.mark.parametrize(
    ("stored", "scale", "zero_point", "reals", "integers"),
    [
        ("int8", 0.5, -1, [0.0, 1.0, -0.5, 3.0], [-1, 1, -2, 5]),
        ("uint8", 0.5, 10, [0.0, 1.0, -0.5, 3.0], [10, 12, 9, 16]),
        ("int8", 1.0, 0, [0.5, 1.5, 2.5, -0.5], [0, 2, 2, 0]),  # half to even, as the runtimes round
        ("int8", 1.0, -128, [0.0, 255.0, 256.0, -1.0], [-128, 127, 127, -128]),  # beyond the grid: its end
        ("uint8", 2.0, 3, [np.nan, np.inf, -np.inf, 2.0], [3, 255, 0, 4]),
        ("int16", 0.25, 0, [100.0, -100.0, 1e9, -1e9], [400, -400, 32767, -32768]),
    ],
)
def test_a_target_with_bare_integers_is_fed_on_the_sources_grid(stored, scale, zero_point, reals, integers):
    source = one(told("float32", scale, zero_point, stored))
    mapping = reconcile_inputs(source, one(bare(stored)))
    assert mapping.problems == ()
    assert "the source's grid" in mapping.notes[0]
    assert f"zero point {zero_point}" in mapping.notes[0]
    (case,) = apply(mapping, feeds(x=np.array([reals], np.float32)))
    assert case.inputs["x"].dtype == np.dtype(stored)
    assert case.inputs["x"].tolist() == [integers]


def test_a_target_with_a_grid_is_fed_what_the_sources_bare_integers_stand_for():
    mapping = reconcile_inputs(one(bare("int8")), one(told("float32", 0.25, -3)))
    assert mapping.problems == ()
    assert "the target's grid" in mapping.notes[0]
    (case,) = apply(mapping, feeds(x=np.array([[-128, -3, 0, 127]], np.int8)))
    assert case.inputs["x"].dtype == np.float32
    assert case.inputs["x"].tolist() == [[-31.25, 0.0, 0.75, 32.5]]


@given(
    st.sampled_from(["int8", "uint8"]),
    st.floats(2**-20, 2**10, width=32),
    st.integers(0, 127),
)
def test_every_integer_survives_the_way_to_its_real_value_and_back(stored, scale, zero_point):
    info = np.iinfo(stored)
    every = np.arange(info.min, info.max + 1).astype(stored)
    grid = Grid(scale=scale, zero_point=zero_point, dtype=np.dtype(stored))
    np.testing.assert_array_equal(grid.integers(grid.reals(every)), every)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (told("float32", stored="int8"), bare("uint8")),
        (told("float32", stored="uint8"), bare("int8")),
        (told("float32", stored="int8"), bare("int64")),
        (bare("int64"), told("float32", stored="int8")),
        (told("float32", scale=None), bare("int8")),
        (told("float32", scale=0.0), bare("int8")),
        (told("float32", scale=float("nan")), bare("int8")),
        (bare("float32"), bare("int8")),
    ],
)
def test_without_one_integer_type_and_a_usable_scale_nothing_is_put_on_a_grid(source, target):
    mapping = reconcile_inputs(one(source), one(target))
    assert len(mapping.problems) == 1
    assert "mean different things" in mapping.problems[0]


def test_two_sides_that_both_tell_a_grid_exchange_real_values():
    mapping = reconcile_inputs(one(told("float32", 0.1)), one(told("float32", 0.2)))
    assert (mapping.problems, mapping.notes) == ((), ())
    assert (mapping.rules[0].dtype, mapping.rules[0].grid) == (None, None)


def test_a_grid_and_a_layout_change_together():
    source = one(told("float32", 0.5, 0, "int8", shape=(1, 2, 2, 3)))
    mapping = reconcile_inputs(source, one(bare("int8", shape=(1, 3, 2, 2))))
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 2, 2, 3) / 2
    (case,) = apply(mapping, feeds(x=x))
    np.testing.assert_array_equal(case.inputs["x"], (np.moveaxis(x, -1, 2) * 2).astype(np.int8))


@pytest.mark.parametrize(("ours", "theirs"), [((), (1,)), ((1,), ())])
@pytest.mark.parametrize("layout", [None, "identity"])
def test_a_scalar_and_a_vector_of_one_element_are_one_number(ours, theirs, layout):
    declared = {"x": {"source": "x", "permutation": list(range(len(ours)))}} if layout else None
    mapping = reconcile_inputs(model(("x", "int64", ours)), model(("x", "int64", theirs)), None, declared)
    assert mapping.problems == ()
    assert any("scalar" in note for note in mapping.notes)
    (case,) = apply(mapping, feeds(x=np.array([7, 8]).reshape(2, *ours)))
    assert case.inputs["x"].shape == (2, *theirs)
    assert case.inputs["x"].ravel().tolist() == [7, 8]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((), (2,)), ((2,), ()), ((), (1, 1)), ((), ("N",)), ((None,), ()), ((1,), (1, 1)), ((1, 1), (1,))],
)
def test_no_other_difference_in_rank_is_bridged(ours, theirs):
    mapping = reconcile_inputs(model(("x", "float32", ours)), model(("x", "float32", theirs)))
    assert len(mapping.problems) == 1
    assert "differ in rank" in mapping.problems[0]


def test_a_declared_layout_between_different_ranks_is_a_problem_not_an_error():
    layout = {"x": {"source": "x", "permutation": [1, 0]}}
    mapping = reconcile_inputs(model(("x", "float32", (1, 4))), model(("x", "float32", (4,))), None, layout)
    assert "differ in rank" in mapping.problems[0]


def test_apply_moves_axes_renames_and_casts():
    source = model(("x", "float64", ("N", 3, 4, 5)), ("i", "int64", ("N", 2)))
    target = model(("image", "float32", (None, 4, 5, 3)), ("i", "int32", (None, 2)))
    x = np.arange(2 * 1 * 60, dtype=np.float64).reshape(2, 1, 3, 4, 5)
    (case,) = apply(reconcile_inputs(source, target), feeds(x=x, i=np.ones((2, 1, 2), np.int64)))
    assert (case.name, case.kind) == ("data", "data")
    np.testing.assert_array_equal(case.inputs["image"], np.moveaxis(x, 2, -1).astype(np.float32))
    assert case.inputs["image"].dtype == np.float32
    assert case.inputs["i"].dtype == np.int32


@pytest.mark.parametrize(
    ("have", "want", "value"),
    [
        ("int64", "int32", 2**40),
        ("int64", "int32", -(2**31) - 1),
        ("int64", "uint8", -1),
        ("int64", "bool", 2),
        ("float64", "float32", 1e300),
        ("float32", "float16", 1e5),
    ],
)
def test_a_value_that_does_not_survive_the_cast_is_refused(have, want, value):
    mapping = reconcile_inputs(model(("x", have, (1,))), model(("x", want, (1,))))
    with pytest.raises(UsageError, match=f"of input x .* in case data.*does not fit the {want}"):
        apply(mapping, feeds(x=np.array([[0], [value]], have)))


def test_infinities_survive_a_narrower_float():
    mapping = reconcile_inputs(model(("x", "float64", (1,))), model(("x", "float32", (1,))))
    (case,) = apply(mapping, feeds(x=np.array([[-np.inf]])))
    assert case.inputs["x"][0, 0] == -np.inf


@given(st.permutations(range(5)))
def test_renamed_and_shuffled_inputs_are_found_when_every_shape_is_unique(order):
    source = model(*((f"s{i}", "float32", (1, 10 + i)) for i in range(5)))
    target = model(*((f"t{i}", "float32", (1, 10 + i)) for i in order))
    mapping = reconcile_inputs(source, target)
    assert mapping.problems == ()
    assert pairs(mapping) == {f"t{i}": f"s{i}" for i in range(5)}
