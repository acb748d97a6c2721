"""Repair of recurrent operators: every packing is filled gate by gate, and what is right stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import Model, normal
from repair_scenes import only, proposals, refused, same, written
from test_diagnosis_recurrent import HIDDEN, NATIVE, WIDTH, blocks, faults, keras, onnx, packed, tflite, torch

from trueport.repairs.rules import loops, parameters, recurrent

WRONG = {"LSTM": "oifc", "GRU": "rzh"}
"""The first two of ONNX's gates exchanged."""


def applied(target, proposal):
    """The target with the edits of a proposal in it."""
    for (node, parameter), array in written(proposal).items():
        assert node == "rnn"
        assert array.shape == target.constants[parameter].shape
        target.constants[parameter] = array
    return target


def noisy(name, level=0.2):
    def change(model):
        model.constants[name] = (model.constants[name] + level * normal(*model.constants[name].shape, seed=5)).astype(
            np.float32
        )
        return model

    return change


@pytest.mark.parametrize("source", [torch, keras, onnx], ids=["torch", "keras", "onnx"])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_gates_in_the_wrong_order_are_put_in_the_one_that_the_operator_reads(op, source):
    gates = blocks(op)
    target = onnx(op, gates, order=WRONG[op])
    found = proposals(recurrent, source(op, gates), target)
    assert found[0].doubt == 0
    assert faults(source(op, gates), applied(target, found[0])) == []
    assert same(target.constants["W"], np.stack([packed(gates, GATES_ONNX[op], 0)]))


GATES_ONNX = {"LSTM": "iofc", "GRU": "zrh"}


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda gates: onnx("LSTM", gates), "R"),
        (lambda gates: onnx("LSTM", gates), "W"),
        (lambda gates: onnx("LSTM", gates), "B"),
        (lambda gates: keras("LSTM", gates), "kernel"),
        (lambda gates: keras("LSTM", gates), "recurrent_kernel"),
        (lambda gates: keras("LSTM", gates), "bias"),
        (lambda gates: torch("LSTM", gates), "weight_hh_l0"),
        (lambda gates: torch("LSTM", gates), "bias_hh_l0"),
        (tflite, "w0f"),
        (tflite, "w1o"),
        (tflite, "bc"),
    ],
)
def test_noise_in_one_packed_array_changes_that_array_alone(make, name):
    gates = blocks("LSTM")
    wanted = make(gates).constants[name]
    target = noisy(name)(make(gates))
    best = proposals(recurrent, torch("LSTM", gates), target)[0]
    names = {parameter for _, parameter in written(best)}
    assert names <= {name, "bias_ih_l0"}  # two biases that are added up: which of them is off cannot be seen
    assert name in names or name.startswith("bias")
    applied(target, best)
    assert faults(torch("LSTM", gates), target) == []
    if name != "B":  # the halves of which ONNX adds up
        assert np.allclose(target.constants[name], wanted, rtol=1e-6, atol=1e-7)


def test_blocks_that_are_right_keep_every_bit():
    gates = blocks("LSTM")
    target = onnx("LSTM", gates)
    before = target.constants["R"].copy()
    target.constants["R"][0, :HIDDEN] *= 1.2
    new = written(proposals(recurrent, keras("LSTM", gates), target)[0])["rnn", "R"]
    assert np.array_equal(new[0, HIDDEN:], before[0, HIDDEN:])
    assert same(new, before)


@pytest.mark.parametrize("source", [torch, keras], ids=["torch", "keras"])
def test_biases_that_were_dropped_come_back_for_every_gate(source):
    gates = blocks("GRU")
    target = onnx("GRU", gates)
    target.constants["B"][:, 3 * HIDDEN :] = 0  # the recurrent half, which a GRU cannot do without
    best = proposals(recurrent, source("GRU", gates), target)[0]
    assert written(best).keys() == {("rnn", "B")}
    assert faults(source("GRU", gates), applied(target, best)) == []


def test_a_direction_that_was_copied_gets_its_own_weights():
    forward, backward = blocks("LSTM", 1), blocks("LSTM", 2)
    source, target = onnx("LSTM", forward, backward), onnx("LSTM", forward, forward)
    best = proposals(recurrent, source, target)[0]
    assert {parameter for _, parameter in written(best)} == {"W", "R", "B"}
    applied(target, best)
    for name in "WRB":
        assert same(target.constants[name], source.constants[name])


def test_where_the_source_region_has_one_direction_the_other_stays():
    """The backward layer alone is in the region: one way puts it into the second direction, another into the first."""
    forward, backward = blocks("LSTM", 1), blocks("LSTM", 2)
    found = proposals(recurrent, keras("LSTM", backward), onnx("LSTM", forward, forward))
    kernels = [written(one)["rnn", "W"] for one in found]
    wanted = [np.stack([packed(one, "iofc", 0) for one in pair]) for pair in ((forward, backward), (backward, forward))]
    assert all(any(same(kernel, array) for kernel in kernels) for array in wanted)


def test_a_stack_of_layers_is_met_layer_by_layer():
    first, second = blocks("LSTM", 1), blocks("LSTM", 2)
    target = noisy("W", 0.1)(onnx("LSTM", second))
    source = Model("pytorch", x=(1, 7, WIDTH))
    names = []
    for place, gates in enumerate((first, second)):
        for part, name in enumerate(("weight_ih", "weight_hh", "bias_ih", "bias_hh")):
            names.append(source.const(f"{name}_l{place}", packed(gates, "ifco", part)))
    source.add("LSTM", "x", *names, out="y", name="rnn", native=NATIVE["LSTM"], shape=(1, 7, HIDDEN))
    new = written(proposals(recurrent, source, target)[0])["rnn", "W"]
    assert same(new, np.stack([packed(second, "iofc", 0)]))


def test_gates_that_the_source_has_as_single_products():
    """The source computes its cell step by step, from packed matrices; the target's gates are in the wrong order."""
    gates = blocks("LSTM")
    source = Model("keras", x=(1, 7, WIDTH))
    for part, name in enumerate(("kernel", "recurrent")):
        array = packed(gates, "ifco", part).T
        source.add("Gemm", "x", source.const(name, array), out=f"s{part}", native="Dense", shape=(1, 4 * HIDDEN))
    source.add("Add", "s0", source.const("bias", packed(gates, "ifco", 2) + packed(gates, "ifco", 3)), out="s2")
    target = onnx("LSTM", gates, order="oifc")
    best = proposals(recurrent, source, target)[0]
    assert faults(torch("LSTM", gates), applied(target, best)) == []


def steps(op, gates, order):
    """A source that computes its cell from packed matrices, which nothing names."""
    source = Model("savedmodel", x=(1, 7, WIDTH))
    reads = [
        source.const("unknown", packed(gates, order, 0).T),
        source.const("unknown_0", packed(gates, order, 1).T),
        source.const("unknown_1", np.stack([packed(gates, order, 2), packed(gates, order, 3)])),
    ]
    source.add("Loop", "x", *reads, out="y", name="while", native="While", shape=(1, 7, HIDDEN))
    return source


@pytest.mark.parametrize(("op", "order"), [("LSTM", "ifco"), ("GRU", "zrh"), ("GRU", "rzh")])
def test_a_cell_that_is_nothing_like_the_sources_takes_its_matrices_by_their_sizes(op, order):
    gates, other = blocks(op, 1), blocks(op, 2)
    found = proposals(recurrent, steps(op, gates, order), onnx(op, other))
    ends = [faults(torch(op, gates), applied(onnx(op, other), one)) for one in found]
    assert [] in ends


@pytest.mark.parametrize("op", ["LSTM"])
def test_a_bias_of_zeros_beside_right_weights_is_that_of_the_steps(op):
    gates = blocks(op)
    target = onnx(op, gates)
    target.constants["B"][:] = 0
    best = proposals(recurrent, steps(op, gates, "ifco"), target)[0]
    assert written(best).keys() == {("rnn", "B")}
    assert faults(torch(op, gates), applied(target, best)) == []


def test_a_faithful_cell_is_left_alone():
    assert "every gate" in refused(recurrent, torch("LSTM", blocks("LSTM")), onnx("LSTM", blocks("LSTM")))


def test_other_operators_are_not_its_business():
    source, target = Model("pytorch", x=(1, 3)), Model("onnx", x=(1, 3))
    for model in (source, target):
        model.add("Gemm", "x", model.const("w", normal(3, 3)), out="y", shape=(1, 3))
    assert "no recurrent operator" in refused(recurrent, source, target)


def test_the_rule_for_parameters_leaves_packed_gates_to_this_one():
    gates = blocks("LSTM")
    refused(parameters, torch("LSTM", gates), onnx("LSTM", gates, order="oifc"))


# -- loops --------------------------------------------------------------------------------------------------------------------


def loop(gates, *, order="zrh", change=None, **more):
    """A GRU as a loop: its body's constants are listed, and are operands of nothing in the graph."""
    arrays = {
        "body/kernel": packed(gates, order, 0),
        "body/recurrent": packed(gates, order, 1),
        "body/bias": packed(gates, order, 2),
        "body/recurrent_bias": packed(gates, order, 3),
        **{f"body/{name}": array for name, array in more.items()},
    }
    if change is not None:
        change(arrays)
    model = Model("tflite", x=(1, 7, WIDTH))
    names = [model.const(name, np.asarray(array, np.float32)) for name, array in arrays.items()]
    model.add("Loop", "x", out="y", name="rnn", native="WHILE", shape=(1, 7, HIDDEN), inner_constants=names)
    return model


@pytest.mark.parametrize("name", ["body/kernel", "body/recurrent"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda array: array + 0.2 * normal(*array.shape, seed=3),
        lambda array: array[::-1],
        lambda array: np.concatenate([array[HIDDEN : 2 * HIDDEN], array[:HIDDEN], array[2 * HIDDEN :]]),
    ],
    ids=["noise", "reversed", "first gates exchanged"],
)
def test_a_packed_matrix_inside_a_loop(name, spoil):
    gates = blocks("GRU")

    def change(arrays):
        arrays[name] = spoil(arrays[name])

    best = proposals(parameters, keras("GRU", gates), loop(gates, change=change))[0]
    assert written(best).keys() == {("rnn", name)}
    assert same(only(best).arrays["new"], loop(gates).constants[name])


def test_two_gates_of_three_that_stand_alone():
    gates = blocks("GRU")
    split = {"two": packed(gates, "zr", 1), "one": packed(gates, "h", 1)}
    target = loop(gates, **split, change=lambda arrays: arrays.pop("body/recurrent"))
    assert "every parameter" in refused(parameters, keras("GRU", gates), target)
    target.constants["body/two"] = (target.constants["body/two"] + 0.1 * normal(2 * HIDDEN, HIDDEN, seed=2)).astype(
        np.float32
    )
    best = proposals(parameters, keras("GRU", gates), target)[0]
    assert same(only(best).arrays["new"], packed(gates, "zr", 1))


@pytest.mark.parametrize("spoil", [np.zeros_like, None], ids=["dropped", "twice"])
def test_a_bias_that_a_loop_has_lost(spoil):
    gates = blocks("GRU")

    def change(arrays):
        arrays["body/bias"] = arrays["body/recurrent_bias"] if spoil is None else spoil(arrays["body/bias"])

    found = proposals(loops, keras("GRU", gates), loop(gates, change=change))
    made = [written(one).get(("rnn", "body/bias")) for one in found]
    assert any(array is not None and same(array, packed(gates, "zrh", 2)) for array in made)
    assert all(len(one.edits) == 1 for one in found)


def test_a_square_matrix_inside_a_loop_may_be_the_wrong_way_round():
    gates = blocks("RNN")
    made = loop(gates, order="h", change=lambda arrays: arrays.update({"body/recurrent": arrays["body/recurrent"].T}))
    found = proposals(loops, keras("RNN", gates), made)
    assert any(same(one, packed(gates, "h", 1)) for each in found for one in written(each).values())


def test_a_number_that_no_step_computes_with_becomes_the_one():
    gates = blocks("GRU")
    found = proposals(loops, keras("GRU", gates), loop(gates, rest=np.float32(1.5)))
    assert written(found[0]) == {("rnn", "body/rest"): np.float32(1.0)}
    assert "square" not in refused(loops, keras("GRU", gates), loop(gates, rest=np.float32(1.0)))


def test_without_a_loop_there_is_nothing_to_do():
    assert "no loop" in refused(loops, torch("LSTM", blocks("LSTM")), onnx("LSTM", blocks("LSTM")))
