"""Which parameters of a target are the source's, as they are or derived, and what is said of those that are not."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import Model, finding, matched, normal

from trueport.diagnosis.evidence import examine
from trueport.diagnosis.parameters import Region
from trueport.diagnosis.region import Inside
from trueport.diagnosis.types import Cause

KERNEL = normal(8, 4, 3, 3, seed=1)
BIAS = normal(8, seed=2)
GAMMA, BETA = 1 + 0.3 * normal(8, seed=3), normal(8, seed=4)
MEAN, VAR = normal(8, seed=5), np.abs(normal(8, seed=6)) + 0.05
EPSILON = 1e-3


def conv(kernel, bias=None, *, format="onnx", native=None, name="conv", **attributes):
    """A model of one convolution."""
    channels_last = format in ("tflite", "keras", "savedmodel")
    model = Model(format, x=(1, 6, 6, 4) if channels_last else (1, 4, 6, 6))
    reads = ["x", model.const(f"{name}.weight", kernel)]
    if bias is not None:
        reads.append(model.const(f"{name}.bias", bias))
    model.add(
        "Conv",
        *reads,
        out="y",
        name=name,
        native=native,
        shape=(1, 6, 6, 8) if channels_last else (1, 8, 6, 6),
        **attributes,
    )
    return model


def torch_conv(kernel=KERNEL, bias=BIAS):
    return conv(kernel, bias, format="pytorch", native="aten.conv2d.default")


def with_norm(model, *, format="pytorch"):
    names = {"gamma": GAMMA, "beta": BETA, "mean": MEAN, "var": VAR}
    constants = [model.const(f"bn.{name}", array) for name, array in names.items()]
    model.add(
        "BatchNormalization",
        "y",
        *constants,
        out="z",
        name="bn",
        native="aten.batch_norm.default",
        shape=(1, 8, 6, 6),
        epsilon=EPSILON,
    )
    return model


def faults(source, target, *, ours=None, theirs=None, declared="float32", alignment=None):
    ours = ours or [node.name for node in source.nodes]
    theirs = theirs or [node.name for node in target.nodes]
    one, two = Inside(source.build("y")), Inside(target.build("y"))
    region = Region(one, two, one.whole(ours), two.nodes(theirs), alignment or matched({"x": "x"}), declared)
    return region.faults()


def only(found):
    assert len(found) == 1, [fault.what for fault in found]
    return found[0]


def folded(epsilon=EPSILON, bias=BIAS):
    scale = GAMMA / np.sqrt(VAR + epsilon)
    return (KERNEL * scale.reshape(-1, 1, 1, 1)).astype(np.float32), (BETA + (bias - MEAN) * scale).astype(np.float32)


# -- faithful: nothing is said ------------------------------------------------------------------------------------------

LAYOUTS = {
    "onnx": ("Conv", lambda k: k),
    "tflite": ("CONV_2D", lambda k: k.transpose(0, 2, 3, 1)),
    "keras": ("Conv2D", lambda k: k.transpose(2, 3, 1, 0)),
    "savedmodel": ("Conv2D", lambda k: k.transpose(2, 3, 1, 0)),
}


@pytest.mark.parametrize("format", LAYOUTS)
def test_a_kernel_in_the_layout_of_its_format_is_the_sources(format):
    native, laid = LAYOUTS[format]
    assert faults(torch_conv(), conv(laid(KERNEL), BIAS, format=format, native=native)) == []


@pytest.mark.parametrize("format", LAYOUTS)
def test_a_kernel_with_height_and_width_exchanged_is_not(format):
    native, laid = LAYOUTS[format]
    target = conv(np.ascontiguousarray(laid(KERNEL.swapaxes(2, 3))), BIAS, format=format, native=native)
    fault = only(faults(torch_conv(), target))
    assert fault.cause is Cause.PARAMETERS
    assert "height and width are exchanged" in fault.what
    assert fault.parameter == "conv.weight"
    assert "conv.weight" in str(fault.source_value)


def test_depthwise_kernels_of_all_formats_are_one():
    kernel = normal(8, 1, 3, 3, seed=9)
    source = conv(kernel, format="pytorch", native="aten.conv2d.default")
    tflite = conv(kernel.transpose(1, 2, 3, 0), format="tflite", native="DEPTHWISE_CONV_2D")
    keras = conv(kernel.transpose(2, 3, 0, 1), format="keras", native="DepthwiseConv2D")
    assert faults(source, tflite) == []
    assert faults(source, keras) == []
    assert faults(keras, tflite) == []


def test_a_depthwise_kernel_with_a_multiplier_joins_channel_and_multiplier():
    kernel = normal(3, 3, 4, 2, seed=9)  # [height, width, channel, multiplier]
    source = conv(kernel, format="keras", native="DepthwiseConv2D")
    target = conv(kernel.transpose(2, 3, 0, 1).reshape(8, 1, 3, 3))
    assert faults(source, target) == []
    wrong = conv(kernel.transpose(3, 2, 0, 1).reshape(8, 1, 3, 3))
    assert faults(source, wrong)


def test_a_folded_batchnorm_is_fine():
    kernel, bias = folded()
    assert faults(with_norm(torch_conv()), conv(kernel, bias)) == []


def test_a_folded_batchnorm_without_bias_before_it_is_fine():
    kernel, bias = folded(bias=0)
    assert faults(with_norm(torch_conv(bias=None)), conv(kernel, bias)) == []


def test_a_batchnorm_folded_by_a_factor_that_it_does_not_have_is_not_fine():
    kernel, bias = folded()
    factor = 1 + 0.1 * np.abs(normal(8, seed=20)).reshape(-1, 1, 1, 1)
    fault = only(faults(with_norm(torch_conv()), conv((kernel * factor).astype(np.float32), bias)))
    assert "scaled per channel" in fault.what
    assert fault.node.name == "conv"


def test_a_batchnorm_folded_with_another_epsilon_is_named():
    kernel, bias = folded(epsilon=1e-2)
    found = faults(with_norm(torch_conv()), conv(kernel, bias))
    assert found
    assert all("epsilon 0.01 instead of 0.001" in fault.what for fault in found)
    assert found[0].source_value == "epsilon 0.001"
    assert found[0].target_value == "epsilon 0.01"


def test_a_sum_of_two_biases_is_fine():
    other = normal(8, seed=21)
    source = torch_conv()
    source.add("Add", "y", source.const("more", other), out="z", name="add", shape=(1, 8, 6, 6))
    assert faults(source, conv(KERNEL, BIAS + other)) == []


def test_parts_of_a_joined_matrix_and_a_join_of_parts_are_fine():
    whole = normal(12, 4, seed=30)

    def dense(matrix, name):
        model = Model("pytorch", x=(1, 4))
        model.add(
            "Gemm",
            "x",
            model.const("w", matrix),
            out="y",
            name=name,
            native="aten.linear.default",
            shape=(1, len(matrix)),
        )
        return model

    def three():
        model = Model("pytorch", x=(1, 4))
        for place, letter in enumerate("qkv"):
            matrix = model.const(letter, whole[4 * place : 4 * place + 4])
            model.add("Gemm", "x", matrix, out=letter + "y", name=letter, native="aten.linear.default", shape=(1, 4))
        return model

    assert faults(dense(whole, "in_proj"), three()) == []
    assert faults(three(), dense(whole, "in_proj")) == []
    mixed = np.concatenate([whole[4:8], whole[:4], whole[8:]])
    assert only(faults(dense(whole, "in_proj"), dense(mixed, "in_proj"))).what.endswith("in the order [1, 0, 2]")


@pytest.mark.parametrize(("declared", "silent"), [("float32", False), ("float16", True), ("int8", True)])
def test_float16_weights_are_fine_where_they_are_declared(declared, silent):
    target = conv(KERNEL.astype(np.float16).astype(np.float32), BIAS)
    found = faults(torch_conv(), target, declared=declared)
    if silent:
        assert found == []
    else:
        assert only(found).cause is Cause.PRECISION
        assert "float16" in only(found).what


@pytest.mark.parametrize(
    ("declared", "silent"), [("float32", False), ("float16", False), ("int8", True), ("int8-dynamic", True)]
)
@pytest.mark.parametrize("per_channel", [False, True])
def test_int8_weights_are_fine_where_they_are_declared(declared, silent, per_channel):
    step = np.max(np.abs(KERNEL), axis=(1, 2, 3) if per_channel else None, keepdims=True) / 127
    target = conv((np.round(KERNEL / step) * step).astype(np.float32), BIAS)
    found = faults(torch_conv(), target, declared=declared)
    if silent:
        assert found == []
    else:
        assert only(found).cause is Cause.PRECISION
        assert "int8" in only(found).what


def test_noise_is_no_grid():
    noisy = KERNEL + 0.01 * normal(*KERNEL.shape, seed=40)
    fault = only(faults(torch_conv(), conv(noisy, BIAS), declared="float32"))
    assert fault.cause is Cause.PARAMETERS
    assert only(faults(torch_conv(), conv(KERNEL + 0.1 * normal(*KERNEL.shape, seed=40), BIAS), declared="int8"))


# -- wrong ----------------------------------------------------------------------------------------------------------------


def test_one_weight_is_counted_and_placed():
    kernel = KERNEL.copy()
    kernel[3, 2, 1, 0] += 0.9
    fault = only(faults(torch_conv(), conv(kernel, BIAS)))
    assert "1 of 288 elements" in fault.what
    assert "largest by 0.9 at [3, 2, 1, 0]" in fault.target_value


def test_noise_is_measured():
    fault = only(faults(torch_conv(), conv(KERNEL + 0.1 * normal(*KERNEL.shape, seed=41), BIAS)))
    assert "of its size" in fault.what
    assert fault.source_nodes == ("conv",)


def test_a_flipped_kernel_is_named():
    fault = only(faults(torch_conv(), conv(KERNEL[:, :, ::-1, ::-1].copy(), BIAS)))
    assert "reversed along height and width" in fault.what


def test_reversed_output_channels_are_named():
    assert "reversed along output channels" in only(faults(torch_conv(), conv(KERNEL[::-1].copy(), BIAS))).what


def test_a_scaled_kernel_is_named():
    assert "2 times" in only(faults(torch_conv(), conv(2 * KERNEL, BIAS))).what


def test_a_dropped_bias_is_named():
    fault = only(faults(torch_conv(), conv(KERNEL, np.zeros_like(BIAS))))
    assert "dropped" in fault.what
    assert fault.parameter == "conv.bias"


def test_a_bias_that_is_not_there_at_all_is_missed():
    fault = only(faults(torch_conv(), conv(KERNEL)))
    assert "'conv.bias' of the source is missing" in fault.what
    assert fault.target_value == "no bias"


def test_zeros_are_fine_where_the_source_has_no_bias():
    assert faults(torch_conv(bias=None), conv(KERNEL, np.zeros_like(BIAS))) == []


def test_zeros_are_fine_where_the_bias_is_added_by_the_next_node():
    target = conv(KERNEL, np.zeros_like(BIAS))
    target.add("Add", "y", target.const("added", BIAS.reshape(1, 8, 1, 1)), out="z", name="add", shape=(1, 8, 6, 6))
    assert faults(torch_conv(), target) == []


def two_layers(biases, *, native=None, format="pytorch", shared=None):
    model = Model(format, x=(1, 4, 6, 6))
    value = "x"
    for place, bias in enumerate(biases):
        kernel = KERNEL if place == 0 else normal(8, 8, 3, 3, seed=50)
        name = shared or f"conv{place}.bias"
        value = model.add(
            "Conv", value, model.const(f"conv{place}.weight", kernel), model.const(name, bias),
            out=f"y{place}", name=f"conv{place}", native=native, shape=(1, 8, 6, 6),
        )  # fmt: skip
    return model


def test_the_bias_of_another_layer_is_not_explained_by_it():
    other = normal(8, seed=51)
    source = two_layers([BIAS, other], native="aten.conv2d.default")
    target = two_layers([other, other], format="onnx", shared="bias")
    fault = only(faults(source, target, ours=["conv0"], theirs=["conv0"]))
    assert "another layer" in fault.what
    assert "conv1.bias" in fault.what
    assert "2 nodes share this constant" in fault.what
    assert fault.parameter == "bias"


def test_the_folded_bias_of_another_layer_is_recognised():
    source = two_layers([BIAS, BIAS], native="aten.conv2d.default")
    arrays = zip(("g", "b", "m", "v"), (GAMMA, BETA, MEAN, VAR), strict=True)
    source.add(
        "BatchNormalization",
        "y1",
        *(source.const(name, array) for name, array in arrays),
        out="z",
        name="bn1",
        epsilon=EPSILON,
    )
    target = two_layers([folded()[1], folded()[1]], format="onnx", shared="bias")
    fault = only(faults(source, target, ours=["conv0"], theirs=["conv0"]))
    assert "BatchNorm shift with bias" in fault.what
    assert "'bn1'" in fault.what


@pytest.mark.parametrize(
    ("first", "second", "words"), [("mean", "var", "mean and variance"), ("gamma", "beta", "scale and shift")]
)
def test_exchanged_parameters_of_a_batchnorm_are_named(first, second, words):
    source = with_norm(torch_conv())
    target = with_norm(conv(KERNEL, BIAS))
    left, right = target.constants[f"bn.{first}"], target.constants[f"bn.{second}"]
    target.constants[f"bn.{first}"], target.constants[f"bn.{second}"] = right, np.abs(left) if second == "var" else left
    fault = only(faults(source, target))
    assert f"{words} are exchanged" in fault.what
    assert fault.node.name == "bn"


def test_a_square_matrix_may_not_be_transposed():
    matrix = normal(6, 6, seed=60)

    def dense(format, native, array, **attributes):
        model = Model(format, x=(1, 6))
        model.add(
            "Gemm", "x", model.const("w", array), out="y", name="dense", native=native, shape=(1, 6), **attributes
        )
        return model

    source = dense("pytorch", "aten.linear.default", matrix)
    assert faults(source, dense("onnx", "Gemm", matrix, transB=1)) == []
    assert faults(source, dense("onnx", "MatMul", matrix.T.copy())) == []
    assert faults(source, dense("tflite", "FULLY_CONNECTED", matrix)) == []
    assert faults(source, dense("keras", "Dense", matrix.T.copy())) == []
    assert "exchanged" in only(faults(source, dense("onnx", "MatMul", matrix))).what
    assert "exchanged" in only(faults(source, dense("tflite", "FULLY_CONNECTED", matrix.T.copy()))).what


def attention(format, native, matrices):
    model = Model(format, x=(1, 5, 6))
    for place, matrix in enumerate(matrices):
        model.add(
            "Einsum",
            "x",
            model.const(f"w{place}", matrix),
            out=f"y{place}",
            name=f"project{place}",
            native=native,
            shape=(1, 5, 6),
        )
    return model


def test_weights_of_unknown_layout_follow_the_vote_of_the_others():
    kernels = [normal(6, 6, seed=70 + place) for place in range(4)]
    source = attention("keras", "EinsumDense", kernels)
    turned = [kernel.T.copy() for kernel in kernels]
    agreed = matched({f"y{place}": f"y{place}" for place in range(4)}, bad=("y0",))
    assert (
        faults(
            source,
            attention("tflite", "BATCH_MATMUL_X", turned),
            ours=["project0"],
            theirs=["project0"],
            alignment=agreed,
        )
        == []
    )
    one_plain = [kernels[0], *turned[1:]]
    found = faults(
        source,
        attention("tflite", "BATCH_MATMUL_X", one_plain),
        ours=["project0"],
        theirs=["project0"],
        alignment=agreed,
    )
    assert only(found).node.name == "project0"


def test_an_embedding_that_is_off_by_one_is_named():
    table = normal(9, 4, seed=80)

    def embed(array):
        model = Model("onnx", x=(5,))
        model.add("Gather", model.const("table", array), "x", out="y", name="embed", shape=(5, 4), axis=0)
        return model

    assert faults(embed(table), embed(table)) == []
    fault = only(faults(embed(table), embed(np.roll(table, 1, 0))))
    assert "off by one" in fault.what
    assert "rows" in fault.what


def test_constants_behind_identity_and_cast_are_the_nodes_parameters():
    source = Model("savedmodel", x=(1, 6, 6, 4))
    source.const("var", KERNEL.transpose(2, 3, 1, 0))
    source.add("Identity", "var", out="read", value=KERNEL.transpose(2, 3, 1, 0))
    source.add("Conv", "x", "read", out="y", name="conv", native="Conv2D", shape=(1, 6, 6, 8))
    assert faults(source, conv(KERNEL)) == []
    wrong = only(faults(source, conv(KERNEL.swapaxes(2, 3).copy())))
    assert "var" in wrong.source_value


def test_the_finer_view_of_the_source_explains_too():
    source = torch_conv(bias=None)
    source.const("decomposed:bias", BIAS)
    source.add(
        "Conv",
        "x",
        "conv.weight",
        "decomposed:bias",
        out="fine",
        origin="conv",
        fine=True,
        native="aten.convolution.default",
        shape=(1, 8, 6, 6),
    )
    assert faults(source, conv(KERNEL, BIAS), ours=["conv"]) == []


def test_examine_puts_the_wrong_parameter_first():
    source, target = torch_conv(), conv(KERNEL.swapaxes(2, 3).copy(), BIAS)
    source.add("Relu", "y", out="z", native="aten.relu.default", shape=(1, 8, 6, 6))
    target.add("Relu", "y", out="z", shape=(1, 8, 6, 6))
    names = [node.name for node in target.nodes]
    found = examine(
        finding("z", region=names, source_region=[node.name for node in source.nodes]),
        source.build("z"), target.build("z"), matched({"x": "x"}),
    )  # fmt: skip
    assert [item.node for item in found] == ["conv", "z"]
    assert found[0].cause is Cause.PARAMETERS
    assert found[0].weight > 2 > found[1].weight


# -- a constant that the source folded into a bias ---------------------------------------------------------------------------


def behind(op, *constants, kernel=KERNEL, bias=BIAS, **attributes):
    """An ONNX convolution with an operator behind it."""
    model = conv(kernel, bias)
    names = [model.const(f"{op}.{place}", np.float32([array])) for place, array in enumerate(constants)]
    model.add(op, "y", *names, out="z", name="behind", shape=(1, 8, 6, 6), **attributes)
    return model


def source_with(added):
    kernel = KERNEL.transpose(0, 2, 3, 1).copy()
    return conv(kernel, (BIAS + added).astype(np.float32), format="tflite", native="CONV_2D")


@pytest.mark.parametrize(
    ("target", "added"),
    [
        (behind("Add", 0.75), 0.75),
        (behind("Sub", 0.75), -0.75),
        (behind("HardSigmoid", alpha=1 / 6, beta=0.5), 3.0),
        (behind("HardSwish"), 3.0),
    ],
)
def test_a_constant_folded_into_the_bias_before_it_is_no_fault(target, added):
    assert faults(source_with(added), target) == []


@pytest.mark.parametrize(
    ("target", "added", "cause"),
    [
        (behind("Add", 0.75), 0.5, Cause.PARAMETERS),
        (behind("Sub", 0.75), 0.75, Cause.PARAMETERS),
        (behind("HardSigmoid", alpha=0.2, beta=0.5), 3.0, Cause.HYPERPARAMETERS),
    ],
)
def test_another_constant_than_the_one_in_the_bias_is_that_of_the_operator_behind(target, added, cause):
    fault = only(faults(source_with(added), target))
    assert (fault.node.name, fault.cause) == ("behind", cause)
    assert fault.source_value == pytest.approx(added)


def test_a_bias_that_is_off_by_one_number_is_a_bias_where_nothing_behind_adds_one():
    fault = only(faults(source_with(0.75), behind("Tanh")))
    assert (fault.node.name, fault.cause) == ("conv", Cause.PARAMETERS)


def test_a_bias_that_is_off_by_several_numbers_is_a_bias():
    noisy = behind("Add", 0.75, bias=BIAS + 0.1 * normal(8, seed=77))
    assert only(faults(source_with(0.75), noisy)).node.name == "conv"


@pytest.mark.parametrize("op", ["LayerNormalization", "InstanceNormalization", "GroupNormalization"])
def test_normalisations_without_running_statistics_are_compared(op):
    def norm(format, epsilon):
        model = Model(format, x=(1, 8, 6, 6))
        names = [model.const("gamma", GAMMA), model.const("beta", BETA)]
        model.add(op, "x", *names, out="y", name="norm", shape=(1, 8, 6, 6), epsilon=epsilon)
        return model

    assert faults(norm("pytorch", 1e-5), norm("onnx", 1e-2)) == []


# -- a scale that the target left beside its weights --------------------------------------------------------------------------

SCALE = 0.5 + np.abs(normal(8, seed=21))
INT8 = np.abs(KERNEL).max() / 127


def beside(kernel, scale):
    """A convolution, a scale and a shift, where the source has one convolution."""
    model = conv(kernel)
    model.add("Mul", "y", model.const("scale", scale.reshape(1, 8, 1, 1)), out="s", name="scale", shape=(1, 8, 6, 6))
    model.add("Add", "s", model.const("shift", BIAS.reshape(1, 8, 1, 1)), out="z", name="shift", shape=(1, 8, 6, 6))
    return model


def fused():
    return torch_conv((KERNEL * SCALE.reshape(-1, 1, 1, 1)).astype(np.float32))


def test_a_scale_beside_its_weights_is_no_fault():
    assert faults(fused(), beside(KERNEL, SCALE)) == []


@pytest.mark.parametrize(
    ("kernel", "cause", "words"),
    [
        (np.float32(np.round(KERNEL / INT8) * INT8), Cause.PRECISION, "int8"),
        (KERNEL.astype(np.float16).astype(np.float32), Cause.PRECISION, "float16"),
        (KERNEL + 0.1 * normal(8, 4, 3, 3, seed=3), Cause.PARAMETERS, "differs from the source's"),
        (np.ascontiguousarray(KERNEL[..., ::-1]), Cause.PARAMETERS, "reversed along width"),
    ],
)
def test_of_weights_and_a_scale_beside_them_the_wrong_one_is_blamed_the_weights(kernel, cause, words):
    fault = only(faults(fused(), beside(kernel, SCALE)))
    assert (fault.node.name, fault.cause) == ("conv", cause)
    assert words in fault.what


def test_of_weights_and_a_scale_beside_them_the_wrong_one_is_blamed_the_scale():
    noisy = SCALE * (1 + 0.3 * np.abs(normal(8, seed=31)))
    fault = only(faults(fused(), beside(KERNEL, noisy)))
    assert (fault.node.name, fault.parameter) == ("scale", "scale")


def test_what_stands_right_behind_the_region_is_folded_into_the_target():
    scale = GAMMA / np.sqrt(VAR + EPSILON)
    source = torch_conv(bias=None)
    source.add("Mul", "y", source.const("scale", scale), out="s", name="times", shape=(1, 8, 6, 6))
    source.add("Add", "s", source.const("shift", BETA - MEAN * scale), out="z", name="plus", shape=(1, 8, 6, 6))
    source.add("Add", "z", source.const("later", normal(8, seed=99)), out="l", name="later", shape=(1, 8, 6, 6))
    kernel = (KERNEL * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
    assert faults(source, conv(kernel, BETA - MEAN * scale), ours=["conv"]) == []
    assert faults(source, conv(kernel, BETA - MEAN * scale), ours=["conv", "times"]) == []
    foreign = only(faults(source, conv(kernel, normal(8, seed=99)), ours=["conv", "times"]))
    assert foreign.cause is Cause.PARAMETERS
