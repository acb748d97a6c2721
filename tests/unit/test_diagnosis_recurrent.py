"""Weights of recurrent operators, packed as each format packs them, compared gate by gate."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import Model, matched, normal

from trueport.diagnosis.parameters import Region
from trueport.diagnosis.recurrent import cells
from trueport.diagnosis.region import Inside
from trueport.diagnosis.types import Cause

HIDDEN, WIDTH = 5, 3
GATES = {"LSTM": "ifco", "GRU": "zrh", "RNN": "h"}
TORCH = {"LSTM": "ifco", "GRU": "rzh", "RNN": "h"}
ONNX = {"LSTM": "iofc", "GRU": "zrh", "RNN": "h"}
NATIVE = {"LSTM": "aten.lstm.input", "GRU": "aten.gru.input", "RNN": "aten.rnn_tanh.input"}


def blocks(op, seed=0):
    """Gate -> (input weights, recurrent weights, bias, recurrent bias)."""
    return {
        gate: (
            normal(HIDDEN, WIDTH, seed=100 * seed + 10 * place),
            normal(HIDDEN, HIDDEN, seed=100 * seed + 10 * place + 1),
            normal(HIDDEN, seed=100 * seed + 10 * place + 2),
            normal(HIDDEN, seed=100 * seed + 10 * place + 3),
        )
        for place, gate in enumerate(GATES[op])
    }


def packed(gates, order, part):
    return np.concatenate([gates[gate][part] for gate in order])


def torch(op, *layers, order=None):
    model = Model("pytorch", x=(1, 7, WIDTH))
    names = []
    for place, gates in enumerate(layers):
        for part, name in enumerate(("weight_ih", "weight_hh", "bias_ih", "bias_hh")):
            names.append(model.const(f"{name}_l{place}", packed(gates, order or TORCH[op], part)))
    model.add(op, "x", *names, out="y", name="rnn", native=NATIVE[op], shape=(1, 7, HIDDEN))
    return model


def keras(op, gates, *, order=None):
    """Keras has one bias (for a GRU two), which replaces both of the others."""
    order = order or GATES[op]
    bias = packed(gates, order, 2) + packed(gates, order, 3)
    if op == "GRU":
        bias = np.stack([packed(gates, order, 2), packed(gates, order, 3)])
    arrays = {"kernel": packed(gates, order, 0).T, "recurrent_kernel": packed(gates, order, 1).T, "bias": bias}
    model = Model("keras", x=(1, 7, WIDTH))
    names = [model.const(name, array) for name, array in arrays.items()]
    model.add(op, "x", *names, out="y", name="rnn", shape=(1, 7, HIDDEN), hidden_size=HIDDEN)
    return model


def onnx(op, *directions, order=None, change=None):
    order = order or ONNX[op]
    arrays = [np.stack([packed(gates, order, part) for gates in directions]) for part in range(4)]
    arrays = [arrays[0], arrays[1], np.concatenate(arrays[2:], axis=1)]
    if change is not None:
        change(arrays)
    model = Model("onnx", x=(7, 1, WIDTH))
    names = [model.const(name, array) for name, array in zip("WRB", arrays, strict=True)]
    model.add(op, "x", *names, out="y", name="rnn", shape=(7, 1, HIDDEN), hidden_size=HIDDEN)
    return model


def tflite(gates, *, order="ifco"):
    model = Model("tflite", x=(1, 7, WIDTH))
    names = [model.const(f"w{part}{gate}", gates[gate][part]) for part in (0, 1) for gate in order]
    names += [model.const(f"b{gate}", gates[gate][2] + gates[gate][3]) for gate in order]
    model.add("LSTM", "x", *names, out="y", name="rnn", native="UNIDIRECTIONAL_SEQUENCE_LSTM", shape=(1, 7, HIDDEN))
    return model


def faults(source, target):
    one, two = Inside(source.build("y")), Inside(target.build("y"))
    return Region(one, two, one.graph.nodes, two.graph.nodes, matched({"x": "x"})).faults()


def only(found):
    assert len(found) == 1, [fault.what for fault in found]
    assert found[0].cause is Cause.PARAMETERS
    return found[0]


@pytest.mark.parametrize("op", GATES)
def test_every_packing_of_the_same_gates_is_the_same(op):
    gates = blocks(op)
    every = [torch(op, gates), keras(op, gates), onnx(op, gates)]
    if op == "LSTM":
        every.append(tflite(gates))
    for source in every:
        for target in every:
            assert faults(source, target) == [], (source.format, target.format)


@pytest.mark.parametrize("source", [torch, keras, onnx], ids=["torch", "keras", "onnx"])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_gates_in_the_wrong_order_are_named(op, source):
    gates = blocks(op)
    wrong = ONNX[op][1] + ONNX[op][0] + ONNX[op][2:]
    fault = only(faults(source(op, gates), onnx(op, gates, order=wrong)))
    assert f"in the order {wrong}" in fault.what
    assert (fault.source_value[-len(wrong) :], fault.target_value[-len(wrong) :]) == (ONNX[op], wrong)
    assert fault.parameter == "W"


def test_a_gate_that_is_off_is_named():
    def change(arrays):
        arrays[1][0, HIDDEN : 2 * HIDDEN] *= 1.1  # the output gate of an LSTM

    fault = only(faults(torch("LSTM", blocks("LSTM")), onnx("LSTM", blocks("LSTM"), change=change)))
    assert "R of gate o differ by 0.1" in fault.what
    assert fault.parameter == "R"
    assert "weight_hh_l0" in fault.source_value


def test_a_dropped_bias_of_a_cell_is_named():
    def change(arrays):
        arrays[2][:] = 0

    fault = only(faults(torch("LSTM", blocks("LSTM")), onnx("LSTM", blocks("LSTM"), change=change)))
    assert "all zeros" in fault.what
    assert fault.target_value == "B: all zeros"


def test_half_of_the_bias_may_stand_in_the_other_half_but_not_in_the_hidden_gate_of_a_gru():
    def moved(arrays):
        first, second = np.split(arrays[2], 2, axis=1)
        arrays[2] = np.concatenate([first + second, 0 * second], axis=1)

    assert faults(torch("LSTM", blocks("LSTM")), onnx("LSTM", blocks("LSTM"), change=moved)) == []

    def exchanged(arrays):
        arrays[2] = np.concatenate(np.split(arrays[2], 2, axis=1)[::-1], axis=1)

    assert faults(torch("LSTM", blocks("LSTM")), onnx("LSTM", blocks("LSTM"), change=exchanged)) == []
    fault = only(faults(torch("GRU", blocks("GRU")), onnx("GRU", blocks("GRU"), change=exchanged)))
    assert "Wb of gate h" in fault.what


def test_layers_and_directions_are_matched_by_what_they_hold():
    first, second = blocks("LSTM", 1), blocks("LSTM", 2)
    source = torch("LSTM", first, second)
    assert faults(source, onnx("LSTM", second)) == []
    assert faults(source, onnx("LSTM", first, second)) == []
    twice = only(faults(source, onnx("LSTM", first, first)))
    assert "once more" in twice.what


def test_what_is_packed_otherwise_is_left_to_the_other_rules():
    model = Model("onnx", x=(7, 1, WIDTH))
    model.add("LSTM", "x", model.const("W", normal(1, 7, 3)), out="y", name="rnn")
    inside = Inside(model.build("y"))
    assert cells(inside.parameters(inside.graph.nodes[0])) == ()
    dense = onnx("LSTM", blocks("LSTM"))
    dense.nodes = [type(dense.nodes[0])(name="d", op="Gemm", inputs=("x", "W"), outputs=("y",))]
    inside = Inside(dense.build("y"))
    assert cells(inside.parameters(inside.graph.nodes[0])) == ()
