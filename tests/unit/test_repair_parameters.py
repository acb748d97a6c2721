"""Repair of weights, biases and normalisations: what is written, in which layout, and when nothing is."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import Model, normal
from repair_scenes import only, proposals, refused, same, scene, written

from trueport.repairs.rules import parameters

KERNEL = normal(8, 4, 3, 3, seed=1)
BIAS = normal(8, seed=2)
GAMMA, BETA = 1 + 0.3 * normal(8, seed=3), normal(8, seed=4)
MEAN, VAR = normal(8, seed=5), np.abs(normal(8, seed=6)) + 0.05
EPSILON = 1e-3
SCALE = GAMMA.astype(np.float64) / np.sqrt(VAR.astype(np.float64) + EPSILON)

LAYOUTS = {
    "onnx": ("Conv", (0, 1, 2, 3)),
    "tflite": ("CONV_2D", (0, 2, 3, 1)),
    "keras": ("Conv2D", (2, 3, 1, 0)),
    "savedmodel": ("Conv2D", (2, 3, 1, 0)),
    "pytorch": ("aten.conv2d.default", (0, 1, 2, 3)),
}


def conv(kernel=KERNEL, bias=None, *, format="pytorch", native=None, model=None, name="conv", data="x", out="y"):
    last = format in ("tflite", "keras", "savedmodel")
    model = model or Model(format, x=(1, 6, 6, 4) if last else (1, 4, 6, 6))
    laid = np.transpose(kernel, LAYOUTS[format][1]) if native is None else kernel
    reads = [data, model.const(f"{name}.weight", np.ascontiguousarray(laid))]
    reads += [] if bias is None else [model.const(f"{name}.bias", bias)]
    shape = (1, 6, 6, 8) if last else (1, 8, 6, 6)
    model.add("Conv", *reads, out=out, name=name, native=native or LAYOUTS[format][0], shape=shape)
    return model


def norm(model, data="y", out="z", name="bn", **slots):
    values = {"gamma": GAMMA, "beta": BETA, "mean": MEAN, "var": VAR, **slots}
    reads = [model.const(f"{name}.{slot}", values[slot]) for slot in ("gamma", "beta", "mean", "var")]
    native = "BatchNormalization" if model.format != "pytorch" else "aten.batch_norm.default"
    model.add(
        "BatchNormalization", data, *reads, out=out, name=name, native=native, shape=(1, 8, 6, 6), epsilon=EPSILON
    )
    return model


def dense(weight, bias=None, *, format="onnx", native="Gemm", name="dense", **attributes):
    model = Model(format, x=(1, 6))
    reads = ["x", model.const(f"{name}.weight", weight)]
    reads += [] if bias is None else [model.const(f"{name}.bias", bias)]
    model.add("Gemm", *reads, out="y", name=name, native=native, shape=(1, 6), **attributes)
    return model


# -- weights, in every layout ---------------------------------------------------------------------------------------------

SPOILT = {
    "noise": lambda k: k + 0.3 * normal(*k.shape, seed=7),
    "a little noise": lambda k: k + 0.01 * normal(*k.shape, seed=7),
    "one weight": lambda k: k + 5 * (np.arange(k.size) == 17).reshape(k.shape),
    "height and width exchanged": lambda k: k.swapaxes(2, 3),
    "flipped": lambda k: k[:, :, ::-1, ::-1],
    "output channels reversed": lambda k: k[::-1],
    "scaled by channel": lambda k: k * np.linspace(0.3, 1, len(k)).reshape(-1, 1, 1, 1),
    "float16": lambda k: k.astype(np.float16),
    "int8": lambda k: np.round(k / (np.abs(k).max() / 127)) * (np.abs(k).max() / 127),
    "all zeros": np.zeros_like,
    "those of another layer": lambda k: normal(*k.shape, seed=99),
}


@pytest.mark.parametrize("format", LAYOUTS)
@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_kernel_becomes_the_sources_in_the_layout_of_its_format(format, how):
    target = conv(np.asarray(SPOILT[how](KERNEL), np.float32), BIAS, format=format)
    best = proposals(parameters, conv(KERNEL, BIAS), target)[0]
    edit = only(best)
    assert (edit.change["node"], edit.change["parameter"]) == ("conv", "conv.weight")
    assert best.doubt < 0.1
    assert same(edit.arrays["new"], np.transpose(KERNEL, LAYOUTS[format][1]))
    assert edit.arrays["new"].dtype == np.float32


def test_a_faithful_layer_is_left_alone():
    assert "every parameter" in refused(parameters, conv(KERNEL, BIAS), conv(KERNEL, BIAS, format="tflite"))


def test_depthwise_kernels_of_one_input_channel():
    kernel = normal(8, 1, 3, 3, seed=9)
    source = conv(kernel)
    spoilt = kernel + 0.1 * normal(*kernel.shape, seed=3)
    tflite = conv(spoilt.transpose(1, 2, 3, 0), format="tflite", native="DEPTHWISE_CONV_2D")
    keras = conv(spoilt.transpose(2, 3, 0, 1), format="keras", native="DepthwiseConv2D")
    assert same(only(proposals(parameters, source, tflite)[0]).arrays["new"], kernel.transpose(1, 2, 3, 0))
    assert same(only(proposals(parameters, source, keras)[0]).arrays["new"], kernel.transpose(2, 3, 0, 1))


@pytest.mark.parametrize("turned", [0, 1])
def test_a_transposed_matrix_is_laid_as_its_operator_reads_it(turned):
    weight = normal(6, 6, seed=4)  # [out, in], as PyTorch has it
    source = dense(weight, format="pytorch", native="aten.linear.default")
    wrong = weight if not turned else weight.T  # exactly the other way round
    target = dense(wrong, transB=turned)
    edit = only(proposals(parameters, source, target)[0])
    assert same(edit.arrays["new"], weight.T if not turned else weight)


def test_a_matrix_for_a_kernel_of_one_tap():
    kernel = normal(8, 4, 1, 1, seed=5)
    source = conv(kernel)
    target = Model("onnx", x=(1, 9, 4))
    spoilt = (kernel.reshape(8, 4).T + 0.1).astype(np.float32)
    target.add("MatMul", "x", target.const("w", spoilt), out="y", name="product", shape=(1, 9, 8))
    edit = only(proposals(parameters, source, target)[0])
    assert same(edit.arrays["new"], kernel.reshape(8, 4).T)


def test_weights_whose_layout_is_not_known_are_laid_as_the_others_of_the_model():
    """Two Einsum layers: the right one tells that the target has its axes in another order."""
    kept, wrong = normal(3, 4, 5, seed=1), normal(3, 4, 5, seed=2)
    source, target = Model("keras", x=(1, 3)), Model("onnx", x=(1, 3))
    for place, array in enumerate((kept, wrong)):
        source.add("Einsum", "x", source.const(f"k{place}", array), out=f"s{place}", native="Einsum", shape=(4, 5))
        laid = array.transpose(2, 0, 1)
        laid = laid + 0.2 * normal(*laid.shape, seed=8) if place else laid
        target.add("Einsum", "x", target.const(f"c{place}", laid), out=f"t{place}", native="Einsum", shape=(4, 5))
    facts = {"pairs": {"x": "x", "t0": "s0"}, "ours": ["s1"], "theirs": ["t1"], "place": "t1"}
    found = proposals(parameters, source, target, **facts)
    assert same(only(found[0]).arrays["new"], wrong.transpose(2, 0, 1))


# -- what is read through other operators -----------------------------------------------------------------------------------


def test_a_weight_behind_a_transpose_is_stored_the_other_way_round():
    weight = normal(6, 4, seed=4)
    source = dense(weight.T, format="onnx")  # [in, out]
    target = Model("onnx", x=(1, 4))
    spoilt = (weight + 0.1 * normal(6, 4, seed=5)).astype(np.float32)
    target.const("stored", spoilt)
    target.add("Transpose", "stored", out="turned", name="turn", value=spoilt.T, perm=[1, 0])
    target.add("MatMul", "x", "turned", out="y", name="product", shape=(1, 6))
    edit = only(proposals(parameters, source, target, theirs=["product"])[0])
    assert (edit.change["node"], edit.change["parameter"]) == ("turn", "stored")
    assert same(edit.arrays["new"], weight)
    assert edit.where == "product"


def test_a_part_of_a_packed_matrix_leaves_the_rest_as_it_is():
    packed = normal(12, 4, seed=4)
    source = dense(packed[4:8].T)
    target = Model("onnx", x=(1, 4))
    spoilt = packed.copy()
    spoilt[4:8] += 0.1 * normal(4, 4, seed=5)
    target.const("stored", spoilt)
    target.add("Slice", "stored", out="part", name="cut", value=spoilt[4:8].T.copy().T, starts=[4], ends=[8])
    target.add("Transpose", "part", out="turned", name="turn", value=spoilt[4:8].T, perm=[1, 0])
    target.add("MatMul", "x", "turned", out="y", name="product", shape=(1, 4))
    edit = only(proposals(parameters, source, target, theirs=["product"])[0])
    assert (edit.change["node"], edit.change["parameter"]) == ("cut", "stored")
    assert same(edit.arrays["new"], packed)


def test_a_constant_that_is_computed_otherwise_is_not_written():
    weight = normal(6, 4, seed=4)
    target = Model("onnx", x=(1, 4))
    target.const("stored", weight)
    target.add("Tanh", "stored", out="bent", name="bend", value=np.tanh(weight).T)
    target.add("MatMul", "x", "bent", out="y", name="product", shape=(1, 6))
    assert "no array" in refused(parameters, dense(weight.T), target, theirs=["product"])


# -- biases and folds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [np.zeros(8), BIAS + 0.3 * normal(8, seed=3), normal(8, seed=40)])
def test_a_bias_becomes_the_sources(bias):
    best = proposals(parameters, conv(KERNEL, BIAS), conv(KERNEL, np.asarray(bias, np.float32), format="onnx"))[0]
    assert written(best).keys() == {("conv", "conv.bias")}
    assert same(only(best).arrays["new"], BIAS)


def test_a_bias_that_is_missing_is_added():
    edit = only(proposals(parameters, conv(KERNEL, BIAS), conv(KERNEL, format="onnx"))[0])
    assert edit.change == {"kind": "add-parameter", "node": "conv", "role": "bias", "array": "new"}
    assert same(edit.arrays["new"], BIAS)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("wrong", ["zeros", "another layer's"])
def test_the_bias_beside_folded_weights_is_the_shift_with_the_sources_own_bias(own, wrong):
    source = norm(conv(KERNEL, BIAS if own else None))
    shift = BETA + ((BIAS if own else 0) - MEAN.astype(np.float64)) * SCALE
    spoilt = np.zeros(8, np.float32) if wrong == "zeros" else normal(8, seed=77)
    target = conv((KERNEL * SCALE.reshape(-1, 1, 1, 1)).astype(np.float32), spoilt, format="onnx")
    found = proposals(parameters, source, target)
    assert same(only(found[0]).arrays["new"], shift)


def test_a_fold_with_the_wrong_epsilon_is_made_anew_in_weights_and_bias():
    source = norm(conv(KERNEL, BIAS))
    wrong = GAMMA / np.sqrt(VAR + 1e-1)
    target = conv(
        (KERNEL * wrong.reshape(-1, 1, 1, 1)).astype(np.float32),
        (BETA + (BIAS - MEAN) * wrong).astype(np.float32),
        format="onnx",
    )
    made = written(proposals(parameters, source, target)[0])
    assert same(made["conv", "conv.weight"], KERNEL * SCALE.reshape(-1, 1, 1, 1))
    assert same(made["conv", "conv.bias"], BETA + (BIAS - MEAN.astype(np.float64)) * SCALE)


# -- constants that several nodes read ------------------------------------------------------------------------------------------


def shared(constant):
    """Two layers of the target that read one bias."""
    target = Model("onnx", x=(1, 4, 6, 6))
    conv(KERNEL, constant, format="onnx", model=target, name="first", out="y")
    weight = target.const("second.weight", normal(8, 8, 3, 3, seed=11))
    target.add("Conv", "y", weight, "first.bias", out="z", name="second", native="Conv", shape=(1, 8, 6, 6))
    return target


def two_layers():
    source = conv(KERNEL, BIAS, name="one", out="y")
    weight, bias = source.const("two.weight", normal(8, 8, 3, 3, seed=11)), source.const("two.bias", normal(8, seed=12))
    source.add("Conv", "y", weight, bias, out="z", name="two", native=LAYOUTS["pytorch"][0], shape=(1, 8, 6, 6))
    return source


def test_a_constant_of_another_layer_is_replaced_for_its_wrong_reader_alone():
    facts = {"ours": ["two"], "theirs": ["second"], "place": "z", "pairs": {"x": "x", "y": "y"}}
    found = proposals(parameters, two_layers(), shared(BIAS), **facts)
    assert written(found[0]).keys() == {("second", "first.bias")}
    assert same(only(found[0]).arrays["new"], normal(8, seed=12))


def test_a_constant_that_is_nobodys_is_replaced_for_all_its_readers():
    source = conv(KERNEL, BIAS, name="one", out="y")
    weight = source.const("two.weight", normal(8, 8, 3, 3, seed=11))
    source.add("Conv", "y", weight, "one.bias", out="z", name="two", native=LAYOUTS["pytorch"][0], shape=(1, 8, 6, 6))
    spoilt = (BIAS + 0.3 * normal(8, seed=3)).astype(np.float32)
    facts = {"ours": ["one"], "theirs": ["first"], "pairs": {"x": "x"}}
    made = written(proposals(parameters, source, shared(spoilt), **facts)[0])
    assert made.keys() == {("first", "first.bias"), ("second", "first.bias")}
    assert all(same(array, BIAS) for array in made.values())


def test_a_bias_that_stands_twice_gives_way_to_the_one_that_stands_nowhere():
    """Both biases are in the region of one layer of the source, so that each looks explained wherever it stands."""
    one, two = normal(6, seed=21), normal(6, seed=22)
    weights = normal(6, 6, seed=23), normal(6, 6, seed=24)
    source, target = Model("pytorch", x=(1, 6)), Model("tflite", x=(1, 6))
    names = [source.const(name, array) for name, array in zip("wvab", (*weights, one, two), strict=True)]
    source.add("Cell", "x", *names, out="y", native="aten.cell", shape=(1, 6))
    for place, weight in enumerate(weights):
        reads = target.const(f"w{place}", weight), target.const(f"b{place}", one)
        target.add("Gemm", "x", *reads, out=f"y{place}", name=f"d{place}", native="FULLY_CONNECTED", shape=(1, 6))
    found = proposals(parameters, source, target, theirs=["d1"], place="y1")
    assert written(found[0]).keys() == {("d1", "b1")}
    assert same(only(found[0]).arrays["new"], two)
    target.constants["b1"] = two
    refused(parameters, source, target, theirs=["d1"], place="y1")


# -- normalisations ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "two"), [("mean", "var"), ("gamma", "beta")])
def test_slots_that_were_exchanged_are_filled_as_in_the_source(one, two):
    values = {"gamma": GAMMA, "beta": BETA, "mean": MEAN, "var": VAR}
    wrong = {one: values[two], two: np.abs(values[one]) if two == "var" else values[one]}
    source, target = norm(conv(KERNEL)), norm(conv(KERNEL, format="onnx"), **wrong)
    made = written(proposals(parameters, source, target, theirs=["bn"], ours=["bn"], place="z")[0])
    assert made.keys() == {("bn", f"bn.{one}"), ("bn", f"bn.{two}")}
    assert same(made["bn", f"bn.{one}"], values[one])
    assert same(made["bn", f"bn.{two}"], values[two])


def test_noise_in_one_slot_touches_no_other():
    target = norm(conv(KERNEL, format="onnx"), gamma=(GAMMA + 0.2 * normal(8, seed=9)).astype(np.float32))
    made = written(proposals(parameters, norm(conv(KERNEL)), target, theirs=["bn"], ours=["bn"], place="z")[0])
    assert made.keys() == {("bn", "bn.gamma")}
    assert same(made["bn", "bn.gamma"], GAMMA)


def test_a_shift_that_lost_its_values_gets_them_back():
    def model(format, beta):
        made = Model(format, x=(1, 5, 8))
        reads = [made.const("g", GAMMA), made.const("b", beta)]
        made.add("LayerNormalization", "x", *reads, out="y", name="ln", shape=(1, 5, 8))
        return made

    made = written(proposals(parameters, model("pytorch", BETA), model("onnx", np.zeros(8, np.float32)))[0])
    assert made.keys() == {("ln", "b")}
    assert same(made["ln", "b"], BETA)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("slot", ["gamma", "beta", "mean", "var"])
def test_a_normalisation_that_the_source_computes_as_scale_and_shift(slot, stored):
    """From the parameters that the source works them out of; where it has the numbers alone, such that they come out."""
    shift = (BETA - MEAN * SCALE).astype(np.float32)
    source = Model("savedmodel", x=(1, 6, 6, 8))
    if stored:
        for name, array in (("u1", GAMMA), ("u2", BETA), ("u3", MEAN), ("u4", VAR), ("eps", np.float32(EPSILON))):
            source.const(name, array)
        source.add("Add", "u4", "eps", out="v", name="add", value=VAR + np.float32(EPSILON))
        source.add("Rsqrt", "v", out="r", name="rsqrt", value=1 / np.sqrt(VAR + EPSILON))
        source.add("Mul", "r", "u1", out="scale", name="mul", value=SCALE.astype(np.float32))
        source.add("Mul", "u3", "scale", out="m", name="mul_2", value=(MEAN * SCALE).astype(np.float32))
        source.add("Sub", "u2", "m", out="shift", name="sub", value=shift)
    else:
        source.const("scale", SCALE.astype(np.float32))
        source.const("shift", shift)
    source.add("Mul", "x", "scale", out="y0", name="mul_1", shape=(1, 6, 6, 8))
    source.add("Add", "y0", "shift", out="y", name="add_1", shape=(1, 6, 6, 8))
    target = Model("keras", x=(1, 6, 6, 8))
    values = {"gamma": GAMMA, "beta": BETA, "mean": MEAN, "var": VAR}
    values[slot] = (values[slot] * 1.4 + 0.1).astype(np.float32)
    norm(target, "x", out="y", **values)
    made = written(proposals(parameters, source, target, place="y")[0])
    new = {name: made.get(("bn", f"bn.{name}"), values[name]).astype(np.float64) for name in values}
    if stored:
        assert made.keys() == {("bn", f"bn.{slot}")}
    scale = new["gamma"] / np.sqrt(new["var"] + EPSILON)
    assert np.allclose(scale, SCALE, rtol=1e-5)
    assert np.allclose(new["beta"] - new["mean"] * scale, shift, rtol=1e-5, atol=1e-5)


def folded_source():
    return conv(KERNEL * SCALE.reshape(-1, 1, 1, 1), BETA - MEAN * SCALE, format="onnx")


def test_weights_before_a_normalisation_that_the_source_has_folded_in():
    spoilt = (KERNEL + 0.1 * normal(*KERNEL.shape, seed=3)).astype(np.float32)
    target = norm(conv(spoilt))
    best = proposals(parameters, folded_source(), target, place="z")[0]
    assert written(best).keys() == {("conv", "conv.weight")}
    assert np.allclose(only(best).arrays["new"], KERNEL, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("slot", ["gamma", "beta", "mean", "var"])
def test_a_normalisation_that_the_source_has_folded_in(slot):
    values = {"gamma": GAMMA, "beta": BETA, "mean": MEAN, "var": VAR}
    values[slot] = (values[slot] * 1.4 + 0.1).astype(np.float32)
    found = proposals(parameters, folded_source(), norm(conv(KERNEL), **values), place="z")
    ends = []
    for one in found:
        made = written(one)
        new = {name: made.get(("bn", f"bn.{name}"), values[name]).astype(np.float64) for name in values}
        scale = new["gamma"] / np.sqrt(new["var"] + EPSILON)
        shift = new["beta"] - new["mean"] * scale
        ends.append(np.allclose(scale, SCALE, rtol=1e-5) and np.allclose(shift, BETA - MEAN * SCALE, atol=1e-5))
    assert any(ends)


# -- other parameters ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Mul", "Add", "PRelu"])
def test_constants_of_arithmetic_keep_the_shape_that_broadcasts(op):
    source, target = Model("pytorch", x=(1, 8, 5)), Model("onnx", x=(1, 8, 5))
    source.add(op, "x", source.const("s", BIAS.reshape(8, 1)), out="y", name="a", shape=(1, 8, 5))
    spoilt = (BIAS * 1.3 + 0.1).astype(np.float32).reshape(1, 8, 1)
    target.add(op, "x", target.const("t", spoilt), out="y", name="b", shape=(1, 8, 5))
    edit = only(proposals(parameters, source, target)[0])
    assert same(edit.arrays["new"], BIAS.reshape(1, 8, 1))


def test_an_embedding_whose_rows_moved_on_by_one():
    table = normal(20, 6, seed=3)
    source, target = Model("pytorch", x=(1, 5)), Model("tflite", x=(1, 5))
    source.add("Gather", source.const("s", table), "x", out="y", native="aten.embedding.default", shape=(1, 5, 6))
    target.add("Gather", target.const("t", np.roll(table, 1, 0)), "x", out="y", native="GATHER", shape=(1, 5, 6))
    assert same(only(proposals(parameters, source, target)[0]).arrays["new"], table)


def test_packed_matrices_are_put_together_from_the_sources_parts():
    parts = [normal(4, 4, seed=seed) for seed in (1, 2, 3)]
    source = Model("keras", x=(1, 4))
    for place, part in enumerate(parts):
        source.add("Gemm", "x", source.const(f"w{place}", part), out=f"y{place}", native="Dense", shape=(1, 4))
    packed = np.concatenate(parts, 1)
    target = dense((packed + 0.1 * normal(4, 12, seed=8)).astype(np.float32), name="qkv")
    edit = only(proposals(parameters, source, target)[0])
    assert same(edit.arrays["new"], packed)


def test_one_of_several_parts_of_a_packed_matrix():
    packed = normal(12, 4, seed=1)  # [out, in]
    source = Model("pytorch", x=(1, 4))
    source.add("Gemm", "x", source.const("w", packed), out="s", native="aten.linear.default", shape=(1, 12))
    target = Model("onnx", x=(1, 4))
    for place, part in enumerate(np.split(packed.T, 3, 1)):
        spoilt = part if place != 1 else np.zeros_like(part)
        target.add("MatMul", "x", target.const(f"p{place}", spoilt), out=f"y{place}", name=f"m{place}", shape=(1, 4))
    found = proposals(parameters, source, target, place="y1")
    assert written(found[0]).keys() == {("m1", "p1")}
    assert same(only(found[0]).arrays["new"], packed[4:8].T)


def test_a_vector_that_is_one_gate_of_a_packed_one():
    """A cell whose first step was worked out keeps a part of its bias as the factor of a product."""
    packed = normal(21, seed=1)
    source, target = Model("pytorch", x=(1, 1, 7)), Model("tflite", x=(1, 1, 7))
    source.add("Add", "x", source.const("bias", packed), out="s", native="aten.add.Tensor", shape=(1, 21))
    spoilt = (packed[14:] + 0.3 * packed.std() * normal(7, seed=3)).astype(np.float32).reshape(1, 1, 7)
    target.add("Mul", "x", target.const("c", spoilt), out="y", native="MUL", shape=(1, 1, 7))
    assert same(only(proposals(parameters, source, target)[0]).arrays["new"], packed[14:].reshape(1, 1, 7))


# -- what is declared ---------------------------------------------------------------------------------------------------------------


def test_weights_on_a_declared_grid_are_the_last_that_is_tried():
    half = KERNEL.astype(np.float16).astype(np.float32)
    found = proposals(parameters, conv(KERNEL, BIAS), conv(half, BIAS, format="onnx"), precision="float16")
    assert all(proposal.doubt >= 0.5 for proposal in found)


def test_weights_on_a_grid_that_nobody_declared_are_the_first():
    half = KERNEL.astype(np.float16).astype(np.float32)
    assert proposals(parameters, conv(KERNEL, BIAS), conv(half, BIAS, format="onnx"))[0].doubt == 0


@pytest.mark.parametrize(
    ("declared", "stored", "grids"),
    [
        ("int8", "int8", {"keep", "new"}),
        ("float16", "float16", {"keep", "new"}),
        ("float32", "float16", {"new"}),
        ("float32", "float32", {"keep"}),
        ("int8", "float32", {"keep"}),
    ],
)
def test_a_constant_on_a_grid_keeps_it_only_where_it_is_declared(declared, stored, grids):
    target = conv((2 * KERNEL).astype(np.float32), BIAS, format="onnx")
    made = target.build

    def build(*outputs):
        traced = made(*outputs)
        traced.graph.constants["conv.weight"]["dtype"] = stored
        return traced

    target.build = build
    found = proposals(parameters, conv(KERNEL, BIAS), target, precision=declared)
    edits = [edit for one in found for edit in one.edits if edit.change["parameter"] == "conv.weight"]
    assert {edit.change.get("grid", "keep") for edit in edits} == grids


def test_an_edit_tells_what_was_there_and_what_is_there_now():
    edit = only(proposals(parameters, conv(KERNEL, BIAS), conv(KERNEL, np.zeros(8, np.float32), format="onnx"))[0])
    assert edit.before.startswith("conv.bias: 8, rms 0")
    assert edit.after.startswith("conv.bias: 8, rms")
    assert edit.reason == "conv.bias of the source stands here"


def test_without_a_region_there_is_nothing_to_do():
    target = conv(KERNEL, BIAS, format="onnx")
    shown = scene(conv(KERNEL, BIAS), target, theirs=[], place="x")
    assert parameters.propose(shown) == "no operator of the target stands in the region"
