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


def faults(source, target, declared="float32"):
    one, two = Inside(source.build("y")), Inside(target.build("y"))
    return Region(one, two, one.graph.nodes, two.graph.nodes, matched({"x": "x"}), declared).faults()


def only(found, cause=Cause.PARAMETERS):
    assert len(found) == 1, [fault.what for fault in found]
    assert found[0].cause is cause
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


# -- coarser grids ------------------------------------------------------------------------------------------------------


def int8(array):
    step = np.abs(array).max() / 127
    return (np.round(array / step) * step).astype(np.float32)


def float16(array):
    return array.astype(np.float16).astype(np.float32)


ROUNDED = {"int8": int8, "float16": float16}


def rounds(grid, *slots):
    def change(arrays):
        for slot in slots:
            arrays[slot] = ROUNDED[grid](arrays[slot])

    return change


@pytest.mark.parametrize("grid", ROUNDED)
@pytest.mark.parametrize("slots", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_packed_weights_on_a_grid_lack_precision(op, slots, grid):
    gates = blocks(op)
    fault = only(faults(torch(op, gates), onnx(op, gates, change=rounds(grid, *slots))), Cause.PRECISION)
    assert f"rounded to {grid}" in fault.what


def test_weights_on_a_grid_that_are_not_the_sources_rounded_are_other_weights():
    def change(arrays):
        arrays[1] = int8(arrays[1] + 0.1 * normal(*arrays[1].shape, seed=8))

    gates = blocks("LSTM")
    assert "differ by 0.1" in only(faults(torch("LSTM", gates), onnx("LSTM", gates, change=change))).what


@pytest.mark.parametrize(("declared", "count"), [("int8-dynamic", 0), ("float16", 1), ("float32", 1)])
def test_a_declared_precision_explains_the_weights_of_a_cell(declared, count):
    gates = blocks("GRU")
    assert len(faults(torch("GRU", gates), onnx("GRU", gates, change=rounds("int8", 0)), declared=declared)) == count


# -- sources that compute a cell step by step ------------------------------------------------------------------------------


def unrolled(gates, op="GRU", order="rzh", added=False):
    """Two steps of a cell as a converter without recurrent operators writes them: dense layers for all gates at once."""
    model = Model("tflite", x=(1, WIDTH))
    kernel, recurrent = (model.const(name, packed(gates, order, part)) for part, name in enumerate(("ih", "hh")))
    biases = [packed(gates, order, part) for part in (2, 3)]
    biases = [biases[0] + biases[1]] if added else biases
    first, *second = [model.const(f"bias{place}", array) for place, array in enumerate(biases)]
    width = HIDDEN * len(order)
    for step in range(2):
        model.add("Gemm", "x", kernel, first, out=f"in{step}", native="FULLY_CONNECTED", shape=(1, width))
        model.add("Gemm", "h", recurrent, *second, out=f"h{step}", native="FULLY_CONNECTED", shape=(1, width))
        model.add("Add", f"in{step}", f"h{step}", out="y" if step else "h", shape=(1, width))
    return model


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("op", "order"), [("GRU", "rzh"), ("LSTM", "ifco")])
def test_a_cell_is_the_unrolled_sources_whatever_its_gates_order(op, order, added):
    gates = blocks(op)
    assert faults(unrolled(gates, op, order, added), onnx(op, gates)) == []


def test_a_kernel_of_input_and_state_joined_is_taken_apart():
    gates = blocks("LSTM")
    model = Model("savedmodel", x=(1, WIDTH + HIDDEN))
    both = np.concatenate([packed(gates, "ifco", 0), packed(gates, "ifco", 1)], axis=1).T
    model.const("kernel", both)
    model.add("MatMul", "x", "kernel", out="y", native="MatMul", shape=(1, 4 * HIDDEN))
    assert faults(model, onnx("LSTM", gates)) == []


@pytest.mark.parametrize(
    ("change", "cause", "words"),
    [
        (rounds("float16", 1), Cause.PRECISION, "R of gate z is the source's rounded to float16"),
        (lambda arrays: arrays[1].__imul__(1.05), Cause.PARAMETERS, "R of gate z differs by 0.05"),
        (lambda arrays: arrays[2][:, :HIDDEN].__imul__(-1), Cause.PARAMETERS, "bias of gate z differs"),
        (lambda arrays: arrays[1][:, :HIDDEN].fill(0.3), Cause.PARAMETERS, "R of gate z is none of the source's"),
    ],
)
def test_what_is_wrong_with_a_cell_is_told_against_an_unrolled_source(change, cause, words):
    gates = blocks("GRU")
    found = faults(unrolled(gates), onnx("GRU", gates, change=change))
    assert (found[0].cause, found[0].node.name) == (cause, "rnn")
    assert words in found[0].what


def test_a_cell_none_of_whose_matrices_the_source_has_is_not_compared_by_gate():
    found = faults(unrolled(blocks("GRU", seed=3)), onnx("GRU", blocks("GRU")))
    assert {fault.parameter for fault in found} == {"W", "R", "B"}
    assert not any("of gate" in fault.what for fault in found)


@pytest.mark.parametrize("order", ["fico", "icfo", "ofci"])
def test_gates_in_another_order_than_the_unrolled_sources_are_named(order):
    gates = blocks("LSTM")
    found = faults(unrolled(gates, "LSTM", "ifco"), onnx("LSTM", gates, order=order))
    assert f"in the order {order} where this operator reads iofc" in found[0].what
    assert found[0].cause is Cause.PARAMETERS


# -- loops whose body holds the weights -----------------------------------------------------------------------------------


def loop(gates, op="LSTM", order="ifco", change=None):
    """A layer as a loop with its kernels inside, turned round as dense layers have them, each bias on its own."""
    model = Model("tflite", x=(1, 7, WIDTH))
    arrays = [packed(gates, order, part) for part in range(4)]
    arrays = [*arrays[:2], arrays[2] + arrays[3]] if op == "LSTM" else arrays
    if change is not None:
        change(arrays)
    names = [model.const(f"body/{place}", array) for place, array in enumerate(arrays)]
    model.add("Loop", "x", out="y", name="rnn", native="WHILE", shape=(1, 7, HIDDEN), inner_constants=names)
    return model


@pytest.mark.parametrize(("op", "order"), [("LSTM", "ifco"), ("GRU", "zrh")])
def test_the_weights_inside_a_loop_are_those_of_the_layer(op, order):
    gates = blocks(op)
    assert faults(keras(op, gates), loop(gates, op, order)) == []
    assert faults(loop(gates, op, order), onnx(op, gates)) == []


@pytest.mark.parametrize(
    ("change", "cause", "name"),
    [
        (lambda arrays: arrays[0].__imul__(1.2), Cause.PARAMETERS, "body/0"),
        (lambda arrays: arrays[1].__setitem__((2, 3), 9), Cause.PARAMETERS, "body/1"),
        (lambda arrays: arrays[2].__iadd__(0.1 * normal(*arrays[2].shape, seed=4)), Cause.PARAMETERS, "body/2"),
        (lambda arrays: arrays[2].fill(0), Cause.PARAMETERS, "body/2"),
        (lambda arrays: arrays.__setitem__(1, float16(arrays[1])), Cause.PRECISION, "body/1"),
    ],
)
def test_what_is_wrong_with_a_weight_inside_a_loop_is_told(change, cause, name):
    gates = blocks("LSTM")
    fault = only(faults(keras("LSTM", gates), loop(gates, change=change)), cause)
    assert (fault.node.name, fault.parameter) == ("rnn", name)


def test_the_zeros_a_source_starts_from_do_not_explain_a_dropped_bias_inside_a_loop():
    gates = blocks("LSTM")
    source = keras("LSTM", gates)
    source.add("Add", "y", source.const("start", np.float32(0)), out="z", name="start", shape=(1, 7, HIDDEN))
    fault = only(faults(source, loop(gates, change=lambda arrays: arrays[2].fill(0))))
    assert fault.parameter == "body/2"


# -- OpenVINO's packing -----------------------------------------------------------------------------------------------------


def openvino_parameters(op, gates, order, *, apart):
    """What an OpenVINO sequence reads: [1, gates, in], [1, gates, hidden], one bias, and the hidden gate's own one if `apart`."""
    import numpy as np

    from trueport.diagnosis.region import Parameter
    from trueport.graph import Node

    kernel, recurrent, first, second = (np.asarray(packed(gates, order, part)) for part in range(4))
    kernel, recurrent = (array if len(array) % len(order) == 0 else array.T for array in (kernel, recurrent))
    hidden = len(first) // len(order)
    both = first + second
    bias = np.concatenate([both[:-hidden], first[-hidden:], second[-hidden:]]) if apart else both
    node = Node(name="rnn", op=op, native_op=f"{op}Sequence")
    arrays = {"W": kernel[None], "R": recurrent[None], "B": bias[None]}
    return [Parameter(node, slot, name, name, array) for slot, (name, array) in enumerate(arrays.items(), 4)]


@pytest.mark.parametrize(
    ("op", "order", "apart"), [("LSTM", "fico", False), ("GRU", "zrh", False), ("GRU", "zrh", True)]
)
def test_the_cells_of_an_openvino_sequence_are_read_gate_by_gate(op, order, apart):
    from trueport.diagnosis import recurrent

    ours = openvino_parameters(op, blocks(op), order, apart=apart)
    (cell,) = recurrent.cells(ours)
    assert cell.order == order
    assert cell.slots == {"W": "W", "R": "R", "Wb": "B"}
    size = len(cell.blocks["W", order[0]])
    for place, gate in enumerate(order):
        assert (cell.blocks["W", gate] == ours[0].array[0, place * size : (place + 1) * size]).all()
        assert (cell.blocks["R", gate] == ours[1].array[0, place * size : (place + 1) * size]).all()
    assert (("Rb", "h") in cell.blocks) == apart
    if apart:
        assert (cell.blocks["Rb", "h"] == ours[2].array[0, -size:]).all()
