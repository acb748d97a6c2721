"""Operators written out exactly, run with NumPy: every value comes out as the source's framework computes it."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import Model

from trueport.diagnosis.region import Inside
from trueport.repairs.rules import _exact
from trueport.repairs.rules._translate import translate
from trueport.repairs.rules._writer import Placed, Untranslatable, Writer, identity


def truncated(left, right):
    """Division as ONNX does it: whole numbers lose what is behind the point."""
    return np.trunc(left / right).astype(left.dtype) if np.asarray(left).dtype.kind == "i" else left / right


KERNELS = {
    "Mod": np.mod,
    "Sub": np.subtract,
    "Div": truncated,
    "Mul": np.multiply,
    "Floor": np.floor,
    "Greater": np.greater,
    "Where": np.where,
    "Softplus": lambda x: np.logaddexp(0, x.astype(np.float64)).astype(x.dtype),
}


def writer(values, *step, format="pytorch", shape=None, **attributes):
    """A Writer, and the one node of a source that reads x, whose runs are `values`."""
    model = Model(format, x=values.shape[1:])
    model.inputs["x"] = model.values["x"] = values
    op, *more = step
    names = ["x", *(model.const(f"c{place}", array) for place, array in enumerate(more))]
    native = attributes.pop("native", None)
    model.add(op, *names, out="y", native=native, **attributes)
    model.values["y"] = np.zeros(values.shape[:1] + (shape or values.shape[1:]), values.dtype)
    traced = model.build("y")
    places = {"x": Placed("x", values.shape[1:], identity(values.ndim - 1))}
    made = Writer(source=Inside(traced), format="onnx", last=False, find=places.get, translate=translate)
    return made, traced.graph.by_name["y"]


def computed(values, *step, **attributes):
    """What the translation of one node gives, run by run."""
    made, node = writer(values, *step, **attributes)
    translate(made, node)
    known = {"x": values, **made.arrays}
    for item in made.made:
        known[item.output] = KERNELS[item.operator](*(known[name] for name in item.inputs))
    return known[made.places["y"].name], [item.operator for item in made.made]


WHOLE = np.arange(-9, 9, dtype=np.int64).reshape(2, 9)


@pytest.mark.parametrize("divisor", [1, 2, 3, -3, 7])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_division_that_rounds_down_does_so_for_negative_numbers(divisor, dtype):
    given = WHOLE.astype(dtype)
    for step, facts in [
        (("floor_divide",), {"other": divisor}),
        (("Div",), {"other": divisor, "rounding_mode": "floor"}),
        (("Div", np.array(divisor, dtype)), {"native": "FloorDiv", "format": "savedmodel"}),
    ]:
        got, _ = computed(given, *step, **facts)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, given // divisor)


def test_a_division_of_floats_is_rounded_down_after_it():
    given = np.linspace(-4, 4, 18, dtype=np.float32).reshape(2, 9)
    got, words = computed(given, "floor_divide", other=1.5)
    np.testing.assert_array_equal(got, np.floor(given / np.float32(1.5)))
    assert words == ["Div", "Floor"]


def test_a_plain_division_stays_one():
    given = np.linspace(1, 4, 18, dtype=np.float32).reshape(2, 9)
    got, words = computed(given, "Div", other=2.0)
    np.testing.assert_allclose(got, given / 2)
    assert words == ["Div"]


@pytest.mark.parametrize("places", [0, 1, 3])
def test_a_shift_is_pythons(places):
    got, _ = computed(WHOLE, "__rshift__", other=places)
    np.testing.assert_array_equal(got, WHOLE >> places)


@pytest.mark.parametrize("places", [-1, 63])
def test_a_shift_by_no_number_of_places_is_not_written(places):
    with pytest.raises(Untranslatable, match="places"):
        translate(*writer(WHOLE, "__rshift__", other=places))


def test_a_divisor_that_is_computed_or_one_of_several_is_not_written():
    with pytest.raises(Untranslatable, match="several numbers"):
        translate(*writer(WHOLE, "floor_divide", np.arange(1, 10)))
    with pytest.raises(Untranslatable, match="divisor"):
        translate(*writer(WHOLE, "floor_divide"))


def softplus(x, beta, threshold):
    return np.where(x * beta > threshold, x, np.log1p(np.exp(np.minimum(x * beta, 50))) / beta)


@pytest.mark.parametrize(("beta", "threshold"), [(1.0, 20.0), (2.0, 3.0), (0.5, 1.0), (1.0, 3.0)])
def test_a_softplus_is_straight_from_its_threshold_on(beta, threshold):
    given = np.linspace(-6, 12, 36, dtype=np.float32).reshape(2, 18)
    got, words = computed(given, "Softplus", beta=beta, threshold=threshold)
    np.testing.assert_allclose(got, softplus(given.astype(np.float64), beta, threshold), rtol=2e-6, atol=1e-6)
    assert ("Where" in words) == (threshold < 10), "a bend that float32 cannot show is not written"


def test_a_softplus_without_settings_is_one_operator():
    assert computed(np.zeros((2, 3), np.float32), "Softplus")[1] == ["Softplus"]


WINDOW = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0], "ceil_mode": 0}


@pytest.mark.parametrize(("divisor", "factor"), [(3, 4 / 3), (1, 4.0), (8, 0.5)])
def test_a_mean_with_a_divisor_of_its_own_is_scaled(divisor, factor):
    values = np.zeros((2, 1, 1, 4, 4), np.float32)
    made, node = writer(values, "AveragePool", shape=(1, 1, 2, 2), divisor_override=divisor, **WINDOW)
    translate(made, node)
    assert [item.operator for item in made.made] == ["AveragePool", "Mul"]
    assert made.made[0].attributes["count_include_pad"] == 1, "the sum is that of the whole window"
    assert made.arrays[made.made[1].inputs[1]] == pytest.approx(factor)


def test_a_mean_with_the_usual_divisor_is_not_scaled():
    made, node = writer(np.zeros((2, 1, 1, 4, 4), np.float32), "AveragePool", shape=(1, 1, 2, 2), **WINDOW)
    translate(made, node)
    assert [item.operator for item in made.made] == ["AveragePool"]


def test_windows_over_the_edge_with_a_divisor_of_their_own_are_not_written():
    values = np.zeros((2, 1, 1, 5, 5), np.float32)
    facts = {**WINDOW, "ceil_mode": 1, "divisor_override": 3}
    with pytest.raises(Untranslatable, match="over the edge"):
        translate(*writer(values, "AveragePool", shape=(1, 1, 3, 3), **facts))


@pytest.mark.parametrize(("to", "words"), [("bool", ["Cast"]), ("float32", []), ("int64", [])])
def test_only_truth_values_are_cast_to(to, words):
    made, node = writer(WHOLE, "Cast", to=to)
    translate(made, node)
    assert [item.operator for item in made.made] == words
    assert made.places["y"].name == (made.made[0].output if words else "x")


def test_every_rule_has_a_kind_that_translates():
    from trueport.repairs.rules._translate import TABLE

    assert set(_exact.RULES) <= set(TABLE)
