"""Repair of single numbers: factors, epsilons, indices; the number is the source's, as it is or as a converter derives it."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import Model, normal
from repair_scenes import proposals, refused, scene, written

from trueport.repairs.rules import scalars

SHAPE = (1, 6)


def arithmetic(op, number, *, format="onnx", attribute=None, shape=()):
    """x op number: as a constant, or as an attribute of that name."""
    model = Model(format, x=SHAPE)
    if attribute is not None:
        model.add(op, "x", out="y", name="a", shape=SHAPE, native="aten.op.Tensor", **{attribute: number})
    else:
        model.add(op, "x", model.const("c", np.full(shape, number, np.float32)), out="y", name="b", shape=SHAPE)
    model.values["y"] = normal(2, *SHAPE, seed=77)  # nothing that one number makes of x
    return model


def numbers(found):
    """All numbers that are tried, in order."""
    return [
        float(np.ravel(edit.arrays["new"])[0]) if edit.kind == "set-parameter" else edit.change["value"]
        for one in found
        for edit in one.edits
    ]


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div", "Pow"])
@pytest.mark.parametrize("factor", [1.1, 0.5, 1.5])
def test_a_constant_becomes_the_sources(op, factor):
    source = arithmetic(op, 0.37, format="pytorch", attribute="other")
    found = proposals(scalars, source, arithmetic(op, 0.37 * factor))
    assert np.isclose(numbers(found)[0], 0.37, rtol=1e-6)
    assert written(found[0]).keys() == {("b", "c")}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_the_constant_keeps_its_shape_and_type(shape):
    source = arithmetic("Mul", 0.37, format="pytorch", attribute="other")
    new = written(proposals(scalars, source, arithmetic("Mul", 0.4, shape=shape))[0])["b", "c"]
    assert new.shape == shape
    assert new.dtype == np.float32


def test_a_factor_that_the_source_divides_by_is_inverted():
    source = arithmetic("Div", 7.3, format="pytorch", attribute="other")
    found = proposals(scalars, source, arithmetic("Mul", 1.1 / 7.3))
    assert any(np.isclose(number, 1 / 7.3, rtol=1e-6) for number in numbers(found)[:2])


def test_the_root_of_a_size_is_found_where_the_source_shows_no_number():
    source, target = Model("pytorch", x=(1, 4, 24)), Model("onnx", x=(1, 4, 24))
    source.add("Attention", "x", out="y", name="a", native="aten.scaled_dot_product_attention", shape=(1, 4, 24))
    factor = target.const("c", np.float32(1.1 / np.sqrt(24)))
    target.add("Mul", "x", factor, out="y", name="b", shape=(1, 4, 24))
    assert any(np.isclose(number, 1 / np.sqrt(24), rtol=1e-6) for number in numbers(proposals(scalars, source, target)))


def test_a_number_of_the_source_is_left_alone():
    source = arithmetic("Mul", 0.37, format="pytorch", attribute="other")
    assert "every number" in refused(scalars, source, arithmetic("Mul", 0.37))
    assert "every number" in refused(scalars, source, arithmetic("Div", 1 / 0.37))


def test_an_attribute_is_set_where_the_number_is_one():
    source = arithmetic("Mul", 0.37)
    target = arithmetic("Mul", 0.5, format="pytorch", attribute="other")
    change = proposals(scalars, source, target)[0].edits[0].change
    assert change["kind"] == "set-attribute"
    assert change["attribute"] == "other"
    assert np.isclose(change["value"], 0.37)


COMPUTED = {
    "Add": lambda x, c: x + c,
    "Sub": lambda x, c: x - c,
    "Mul": lambda x, c: x * c,
    "Div": lambda x, c: x / c,
}


@pytest.mark.parametrize("op", COMPUTED)
@pytest.mark.parametrize("first", [False, True])
def test_a_number_that_the_source_does_not_show_is_measured(op, first):
    """The source computes it in another way; the value behind the operator, once it is right, tells the number."""
    source, target = Model("pytorch", x=SHAPE), Model("onnx", x=SHAPE)
    source.add("Elu", "x", out="y", name="a", native="aten.elu", shape=SHAPE)
    target.const("c", np.float32(0.2))
    target.add(op, *(("c", "x") if first else ("x", "c")), out="y", name="b", shape=SHAPE)
    x = target.values["x"]
    target.values["y"] = COMPUTED[op](*((0.71, x) if first else (x, 0.71))).astype(np.float32)
    found = numbers(proposals(scalars, source, target))
    assert any(np.isclose(number, 0.71, rtol=1e-5) for number in found)


def test_a_measured_number_that_is_known_is_that_number():
    source, target = arithmetic("Elu", 0.37, format="pytorch", attribute="alpha"), arithmetic("Mul", 0.2)
    target.values["y"] = (target.values["x"] * 0.370003).astype(np.float32)  # with the rounding of what stands before
    assert float(np.float32(0.37)) in numbers(proposals(scalars, source, target))


def test_nothing_is_measured_where_no_one_number_makes_the_result():
    source, target = Model("pytorch", x=SHAPE), arithmetic("Mul", 1 / 3)
    source.add("Elu", "x", out="y", name="a", native="aten.elu", shape=SHAPE)
    assert "every number" in refused(scalars, source, target)


# -- epsilons -----------------------------------------------------------------------------------------------------------------


def unrolled(epsilon):
    """(x + epsilon) under a root, as converters write a normalisation out."""
    model = Model("tflite", x=SHAPE)
    model.add("Add", "x", model.const("eps", np.float32(epsilon)), out="v", name="add", shape=SHAPE)
    model.add("Rsqrt", "v", out="y", name="root", shape=SHAPE)
    return model


def normalised(epsilon):
    model = Model("keras", x=SHAPE)
    model.add("LayerNormalization", "x", out="y", name="norm", shape=SHAPE, epsilon=epsilon)
    return model


@pytest.mark.parametrize(("wanted", "wrong"), [(1e-3, 1e-5), (1e-5, 1e-3), (1e-6, 1e-2)])
def test_an_epsilon_is_that_of_the_sources_normalisation_at_the_first_try(wanted, wrong):
    found = proposals(scalars, normalised(wanted), unrolled(wrong))
    assert np.isclose(numbers(found)[0], wanted, rtol=1e-6)


def test_an_epsilon_is_found_before_a_root_that_stands_alone_in_the_region():
    """So little is added that only the root shows it."""
    found = proposals(scalars, normalised(1e-3), unrolled(1e-5), theirs=["root"])
    assert written(found[0]) == {("add", "eps"): np.float32(1e-3)}


# -- indices ------------------------------------------------------------------------------------------------------------------


def gathered(index, *, axis=1, value=None, data=(7, 5), name="x", op="Gather"):
    model = Model("onnx", **{name: data})
    array = model.values[name]
    model.add(op, name, model.const("i", np.asarray(index)), out="y", name="take", axis=axis - 1, shape=(1,))
    model.values["y"] = np.take(array, index, axis) if value is None else value
    return model


def picked(index, data=(7, 5)):
    """The source takes elements in a way of its own; what counts is the value that it has there."""
    model = Model("pytorch", x=data)
    model.add("Slice", "x", out="y", name="select", native="aten.select.int", shape=(1,))
    model.values["y"] = np.take(model.values["x"], index, 1)
    return model


@pytest.mark.parametrize(("right", "wrong"), [(3, 4), (0, 6), (6, 0)])
def test_an_index_is_the_place_of_what_the_source_has(right, wrong):
    target = gathered(wrong)
    target.values["y"] = picked(right).values["y"]  # as it is once the source's value is put in
    found = proposals(scalars, picked(right), target)
    assert len(found) == 1
    new = written(found[0])["take", "i"]
    assert int(new) == right
    assert new.dtype == np.asarray(wrong).dtype
    assert new.shape == ()


def test_several_indices_are_told_one_by_one():
    right, wrong = np.array([1, 5]), np.array([2, 6])
    target = gathered(wrong)
    target.values["y"] = np.take(target.values["x"], right, 1)
    found = proposals(scalars, picked(right), target)
    assert written(found[0])["take", "i"].tolist() == [1, 5]


def test_the_right_index_is_left_alone():
    target = gathered(3)
    refused(scalars, picked(3), target)


def test_what_is_not_in_the_data_is_guessed_from_the_neighbours():
    target = gathered(3)
    target.values["y"] = normal(2, 5, seed=50)
    found = proposals(scalars, picked(3), target)
    assert [int(written(one)["take", "i"]) for one in found][:2] == [2, 4]


def test_a_size_is_taken_from_another_axis_where_that_is_another_size():
    """The operator that reads the size is blamed; the Gather that takes it is found through integers alone."""
    source, target = Model("pytorch", x=(4, 9, 4)), Model("onnx", x=(4, 9, 4))
    source.add("Reshape", "x", out="y", name="view", shape=(4, 36))
    target.add("Shape", "x", out="s", name="shape", value=np.array([4, 9, 4]))
    target.add("Gather", "s", target.const("i", np.array([0])), out="n", name="take", value=np.array([4]), axis=0)
    target.add("Expand", "x", "n", out="y", name="expand", shape=(4, 36))
    found = proposals(scalars, source, target, theirs=["expand"])
    assert [written(one)["take", "i"].tolist() for one in found] == [[1]]  # the third axis has the size of the first


def test_without_a_region_there_is_nothing_to_do():
    shown = scene(picked(3), gathered(3), theirs=[], place="x")
    assert scalars.propose(shown) == "no operator of the target stands in the region"
