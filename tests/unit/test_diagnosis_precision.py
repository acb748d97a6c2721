"""Which grid an array lies on, and operators that make values coarser; noise and few values must not look like a grid."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import Model, finding, matched, normal
from hypothesis import given, settings
from hypothesis import strategies as st

from trueport.diagnosis.evidence import examine
from trueport.diagnosis.precision import covered, grid_of
from trueport.diagnosis.types import Cause

WEIGHTS = normal(16, 8, 3, 3, seed=1).astype(np.float64)


def rounded(array, levels=127, axis=None):
    others = None if axis is None else tuple(place for place in range(array.ndim) if place != axis)
    step = np.max(np.abs(array), axis=others, keepdims=True) / levels
    return (np.round(array / step) * step).astype(np.float32).astype(np.float64)


def bfloat16(array):
    bits = np.asarray(array, np.float32).view(np.uint32)
    return ((bits + 0x8000) & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


@pytest.mark.parametrize(
    ("target", "grid"),
    [
        (WEIGHTS.astype(np.float16).astype(np.float64), "float16"),
        (bfloat16(WEIGHTS), "bfloat16"),
        (rounded(WEIGHTS), "int8"),
        (rounded(WEIGHTS, axis=0), "int8"),
        (rounded(WEIGHTS, axis=1), "int8"),
        (rounded(WEIGHTS, levels=7), "int8"),
        (WEIGHTS, None),
        (WEIGHTS.astype(np.float32).astype(np.float64) * (1 + 1e-3), None),
        (WEIGHTS + 1e-2 * normal(16, 8, 3, 3, seed=2), None),
        (np.sign(WEIGHTS), None),
        (np.zeros_like(WEIGHTS), None),
        (rounded(WEIGHTS)[::-1], None),
    ],
    ids=[
        "float16",
        "bfloat16",
        "int8",
        "int8-0",
        "int8-1",
        "int4",
        "equal",
        "scaled",
        "noise",
        "sign",
        "zeros",
        "reversed",
    ],
)
def test_the_grid_on_which_the_source_was_rounded(target, grid):
    assert grid_of(target, WEIGHTS) == grid


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 400), st.floats(1e-3, 1e3))
def test_rounding_is_seen_at_every_scale_and_noise_is_not(seed, size, scale):
    array = np.random.default_rng(seed).standard_normal(size) * scale
    assert grid_of(rounded(array), array) in ("int8", None if size < 40 else "int8")
    assert grid_of(array * (1 + 0.01 * np.random.default_rng(seed + 1).standard_normal(size)), array) is None


def test_non_finite_and_unlike_arrays_lie_on_no_grid():
    assert grid_of(np.full(8, np.nan), np.ones(8)) is None
    assert grid_of(np.ones(8), np.ones(9)) is None


@pytest.mark.parametrize(
    ("grid", "declared", "fine"),
    [
        ("float16", "float32", False),
        ("int8", "float32", False),
        ("float16", "float16", True),
        ("int8", "float16", False),
        ("int8", "int8", True),
        ("int8", "int8-dynamic", True),
        ("int8", "something new", False),
    ],
)
def test_a_grid_is_fine_where_it_was_declared(grid, declared, fine):
    assert covered(grid, declared) is fine


def island(format, *, to=None, native="Cast"):
    model = Model(format, x=(1, 9))
    value = "x"
    if to is not None:
        value = model.add("Cast", value, out="half", name="down", shape=(1, 9), native=native, to=to)
        value = model.add("Cast", value, out="back", name="up", shape=(1, 9), native=native, to=1)
    model.add("Tanh", value, out="y", name="tanh", shape=(1, 9))
    return model


def examined(source, target, **more):
    given = finding("y", region=[n.name for n in target.nodes], source_region=[n.name for n in source.nodes])
    return examine(given, source.build("y"), target.build("y"), matched({"x": "x"}), **more)


@pytest.mark.parametrize("to", [10, "float16", 16])
def test_a_cast_to_a_narrow_type_is_blamed(to):
    found = examined(island("pytorch"), island("onnx", to=to))
    assert found[0].node == "down"
    assert found[0].cause is Cause.PRECISION
    assert found[0].source_value == "float32"


def test_a_cast_that_the_source_has_too_or_that_was_declared_is_not():
    assert all(
        item.cause is not Cause.PRECISION for item in examined(island("pytorch", to="float16"), island("onnx", to=10))
    )
    declared = examined(island("pytorch"), island("onnx", to=10), precision="float16")
    assert all(item.weight < 1 for item in declared)


def test_a_cast_to_a_wide_type_is_no_loss():
    assert all(item.weight < 1 for item in examined(island("pytorch"), island("onnx", to=11)))


def test_quantisation_that_the_source_does_not_have_is_blamed():
    target = Model("onnx", x=(1, 9))
    names = [target.const("scale", np.float32(0.1)), target.const("zero", np.int8(0))]
    target.add("QuantizeLinear", "x", *names, out="q", name="quantize", shape=(1, 9))
    target.add("DequantizeLinear", "q", *names, out="d", name="dequantize", shape=(1, 9))
    target.add("Tanh", "d", out="y", name="tanh", shape=(1, 9))
    found = examined(island("pytorch"), target)
    assert found[0].cause is Cause.PRECISION
    assert found[0].node == "quantize"
    declared = examined(island("pytorch"), target, precision="int8")
    assert not any("the source does not" in item.what or "stays in" in item.what for item in declared)
    assert {item.cause for item in declared} == {Cause.PRECISION}, "of a declared int8 only the grid is left to blame"
