"""Repair of what makes values coarser: casts that nobody asked for go, and a declared grid stays unless nothing else helps."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import Model, normal
from repair_scenes import proposals, refused, scene

from trueport.repairs.rules import precision

SHAPE = (1, 6)
HALF, SINGLE = 10, 1


def source():
    model = Model("pytorch", x=SHAPE)
    model.add("Relu", "x", out="r", name="relu", shape=SHAPE)
    model.add("Tanh", "r", out="y", name="tanh", shape=SHAPE)
    return model


def island(*, to=HALF, readers=("Tanh",), outputs=False):
    """Relu -> Cast -> Cast -> readers; with `outputs` the island gives the model's output itself."""
    model = Model("onnx", x=SHAPE)
    model.add("Relu", "x", out="r", name="relu", shape=SHAPE)
    model.add("Cast", "r", out="half", name="narrow", shape=SHAPE, to=to)
    model.add("Cast", "half", out="y" if outputs else "back", name="widen", shape=SHAPE, to=SINGLE)
    for place, op in enumerate(() if outputs else readers):
        model.add(op, "back", out=("y", "z", "w")[place], name=f"reader{place}", shape=SHAPE)
    return model


def changes(proposal):
    return [dict(edit.change) for edit in proposal.edits]


def test_who_reads_behind_the_casts_reads_before_them():
    best = proposals(precision, source(), island())[0]
    assert changes(best) == [{"kind": "set-input", "node": "reader0", "slot": 0, "value": "r"}]
    assert best.doubt == 0
    assert best.edits[0].before == "back, in float16"


def test_every_reader_is_led_past_them():
    best = proposals(precision, source(), island(readers=("Tanh", "Exp")))[0]
    assert [change["node"] for change in changes(best)] == ["reader0", "reader1"]


def test_both_casts_are_removed_in_either_order_where_that_is_all_that_can_be_done():
    found = proposals(precision, source(), island(outputs=True))
    orders = [[change["node"] for change in changes(one)] for one in found]
    assert orders == [["narrow", "widen"], ["widen", "narrow"]]
    assert {change["kind"] for one in found for change in changes(one)} == {"remove-node"}


def test_a_cast_that_the_source_has_too_stays():
    model = Model("pytorch", x=SHAPE)
    model.add("Relu", "x", out="r", name="relu", shape=SHAPE)
    model.add("Cast", "r", out="half", name="narrow", shape=SHAPE, to=HALF)
    model.add("Tanh", "half", out="y", name="tanh", shape=SHAPE)
    assert "nothing in the region" in refused(precision, model, island())


@pytest.mark.parametrize(("declared", "stays"), [("float32", False), ("float16", True), ("int8", True)])
def test_what_the_declared_precision_covers_is_no_fault(declared, stays):
    offered = precision.propose(scene(source(), island(), precision=declared))
    kinds = set() if isinstance(offered, str) else {edit.kind for one in offered for edit in one.edits}
    assert ("set-input" not in kinds) is stays


def test_quantisation_that_nobody_declared_is_passed_by():
    model = Model("onnx", x=SHAPE)
    model.add("Relu", "x", out="r", name="relu", shape=SHAPE)
    grid = [model.const("scale", np.float32(0.1)), model.const("zero", np.int8(0))]
    model.add("QuantizeLinear", "r", *grid, out="q", name="quantise", shape=SHAPE)
    model.add("DequantizeLinear", "q", *grid, out="d", name="dequantise", shape=SHAPE)
    model.add("Tanh", "d", out="y", name="tanh", shape=SHAPE)
    assert changes(proposals(precision, source(), model)[0]) == [
        {"kind": "set-input", "node": "tanh", "slot": 0, "value": "r"}
    ]


def dense(weight, format="pytorch", native="aten.linear.default"):
    model = Model(format, x=SHAPE)
    model.add("Gemm", "x", model.const("w", weight), out="y", name="dense", native=native, shape=SHAPE)
    return model


def test_a_layer_of_a_quantised_model_in_float_is_the_last_resort_and_has_the_sources_weights():
    weight = normal(6, 6, seed=1)
    step = np.abs(weight).max() / 127
    target = dense((np.round(weight / step) * step).astype(np.float32), "tflite", "FULLY_CONNECTED")
    found = proposals(precision, dense(weight), target, precision="int8")
    assert [one.edits[0].kind for one in found] == ["set-precision"]
    assert found[0].doubt >= 0.5
    edit = found[0].edits[0]
    assert edit.change["dtype"] == "float32"
    assert np.array_equal(edit.arrays[edit.change["parameters"]["w"]], weight)


def test_a_model_in_float_is_never_told_to_compute_in_float():
    refused(precision, dense(normal(6, 6)), dense(normal(6, 6, seed=2), "tflite", "FULLY_CONNECTED"))
