"""Attributes of operators in one vocabulary, and what is said where they differ; layouts and formats must not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
from diagnosis_cases import Model, finding, matched, normal

from trueport.diagnosis.attributes import typed
from trueport.diagnosis.evidence import examine
from trueport.diagnosis.mismatches import mismatches
from trueport.diagnosis.region import Inside
from trueport.diagnosis.types import Cause

NCHW, NHWC = (1, 4, 6, 8), (1, 6, 8, 4)
TO_LAST = (1, 2, 0)
"""Source axes (channels first, batch left out) in the target's order (channels last)."""


def one(format, op, shape, *, native=None, constants=(), out_shape=None, **attributes):
    """A model of one operator on an input `x`."""
    model = Model(format, x=shape)
    names = [model.const(f"c{place}", array) for place, array in enumerate(constants)]
    model.add(op, "x", *names, out="y", name="op", native=native, shape=out_shape or shape, **attributes)
    return model


def compared(source, target, *, order=()):
    one, two = Inside(source.build("y")), Inside(target.build("y"))
    alignment = matched(
        {"x": "x"}, order={"x": order} if order else {"x": tuple(range(len([s for s in one.shape("x") if s != 1])))}
    )
    found = mismatches(one, two, one.graph.nodes[0], two.graph.nodes[0], alignment)
    return {item.name: (item.source_value, item.target_value) for item in found}


# -- windows -----------------------------------------------------------------------------------------------------------

KERNEL = normal(8, 4, 3, 3, seed=1)


def conv(format, **attributes):
    if format == "tflite":
        return one("tflite", "Conv", NHWC, native="CONV_2D", constants=[KERNEL.transpose(0, 2, 3, 1)], **attributes)
    if format == "keras":
        return one("keras", "Conv", NHWC, native="Conv2D", constants=[KERNEL.transpose(2, 3, 1, 0)], **attributes)
    native = "aten.conv2d.default" if format == "pytorch" else None
    return one(format, "Conv", NCHW, native=native, constants=[KERNEL], **attributes)


SAME = [
    ("pytorch", {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1}),
    ("onnx", {"pads": [1, 1, 1, 1]}),
    ("onnx", {"auto_pad": "SAME_UPPER", "strides": [1, 1]}),
    ("tflite", {"auto_pad": "SAME_UPPER", "strides": [1, 1], "dilations": [1, 1], "kernel_shape": [3, 3]}),
    ("keras", {"padding": "same", "strides": [1, 1], "dilation_rate": [1, 1], "kernel_size": [3, 3], "data_format": "channels_last"}),
    ("pytorch", {"stride": [1, 1], "padding": [1, 1]}),
]  # fmt: skip


@pytest.mark.parametrize("one", SAME, ids=lambda item: item[0])
@pytest.mark.parametrize("two", SAME, ids=lambda item: item[0])
def test_one_convolution_in_every_spelling_is_one(one, two):
    order = TO_LAST if (one[0] in ("tflite", "keras")) != (two[0] in ("tflite", "keras")) else ()
    assert compared(conv(one[0], **one[1]), conv(two[0], **two[1]), order=order) == {}


def test_same_padding_is_resolved_by_size_stride_and_kernel():
    # 6 with stride 2, kernel 3: outputs at 0, 2, 4 need 7 pixels, so one is added, at the end; of 8 likewise.
    source, target = (
        conv("pytorch", strides=[2, 2], pads=[1, 1, 1, 1]),
        conv("tflite", auto_pad="SAME_UPPER", strides=[2, 2]),
    )
    assert compared(source, target, order=TO_LAST) == {"pads": ([1, 1, 1, 1], [0, 0, 1, 1])}
    lower = conv("onnx", auto_pad="SAME_LOWER", strides=[2, 2])
    assert compared(lower, target, order=TO_LAST) == {"pads": ([1, 1, 0, 0], [0, 0, 1, 1])}


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"strides": [2, 1]}, "strides"),
        ({"dilations": [2, 2]}, "dilations"),
        ({"group": 2}, "group"),
        ({"pads": [2, 1, 0, 1]}, "pads"),
    ],
)
def test_each_attribute_of_a_convolution_counts(changed, name):
    usual = {"strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1], "group": 1}
    found = compared(conv("pytorch", **usual), conv("onnx", **{**usual, **changed}))
    assert set(found) == {name}
    assert found[name] == (usual[name], changed[name])


def test_dilation_of_a_kernel_of_one_tap_says_nothing():
    kernel = normal(8, 4, 1, 1, seed=1)
    source = one("pytorch", "Conv", NCHW, native="aten.conv2d.default", constants=[kernel], dilations=[2, 2])
    target = one("onnx", "Conv", NCHW, constants=[kernel], dilations=[1, 1])
    assert compared(source, target) == {}


def pool(format, shape=NCHW, **attributes):
    return one(format, "AveragePool", shape, **attributes)


def test_switches_of_a_pool_count_only_where_they_change_something():
    bare = {"kernel_shape": [2, 2], "strides": [2, 2]}
    assert (
        compared(pool("pytorch", **bare, count_include_pad=1, ceil_mode=0), pool("onnx", **bare, count_include_pad=0))
        == {}
    )
    assert compared(pool("pytorch", **bare, ceil_mode=1), pool("onnx", **bare)) == {}
    padded = {**bare, "pads": [1, 1, 1, 1]}
    found = compared(pool("pytorch", **padded, count_include_pad=1), pool("onnx", **padded))
    assert found == {"count_include_pad": (1, 0)}
    odd = {"kernel_shape": [3, 3], "strides": [2, 2]}  # 6 and 8 do not come out even
    assert compared(pool("pytorch", **odd, ceil_mode=1), pool("onnx", **odd)) == {"ceil_mode": (1, 0)}


def test_a_dropped_divisor_shows():
    window = {"kernel_shape": [2, 2], "strides": [2, 2]}
    with_divisor = pool("pytorch", **window, divisor_override=3)
    without = pool("onnx", **window)
    assert "divisor_override" in compared(with_divisor, without)
    assert compared(pool("pytorch", **window), without) == {}


def test_the_stride_of_a_pool_defaults_to_its_window_in_pytorch_and_to_one_in_onnx():
    found = compared(pool("pytorch", kernel_shape=[2, 2]), pool("onnx", kernel_shape=[2, 2]))
    assert found["strides"] == ([2, 2], [1, 1])


# -- axes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "wrong"), [(3, False), (-1, False), (1, True), (2, True)])
def test_an_axis_is_translated_through_the_layout(axis, wrong):
    source = one("pytorch", "Softmax", NCHW, axis=1)
    target = one("savedmodel", "Softmax", NHWC, axis=axis)
    found = compared(source, target, order=TO_LAST)
    assert (found == {"axis": (3, axis)}) if wrong else (found == {})


def test_a_negative_axis_is_the_same_axis():
    assert compared(one("pytorch", "Softmax", NCHW, axis=1), one("onnx", "Softmax", NCHW, axis=-3)) == {}
    assert compared(one("pytorch", "Softmax", NCHW, axis=1), one("onnx", "Softmax", NCHW)) == {"axis": (1, -1)}


def test_axes_are_compared_as_sets_and_axes_of_one_element_are_left_out():
    source = one("pytorch", "ReduceMean", NCHW, axes=[2, 3])
    assert compared(source, one("savedmodel", "ReduceMean", NHWC, axes=[2, 1]), order=TO_LAST) == {}
    assert compared(source, one("savedmodel", "ReduceMean", NHWC, axes=[0, 1, 2]), order=TO_LAST) == {}
    assert compared(source, one("savedmodel", "ReduceMean", NHWC, axes=[1, 3]), order=TO_LAST) == {
        "axes": ([1, 2], [1, 3])
    }


def test_global_pooling_and_a_mean_over_the_picture_are_one():
    source = one("keras", "GlobalAveragePool", NHWC, native="GlobalAveragePooling2D", data_format="channels_last")
    onnx = one("onnx", "ReduceMean", NCHW, constants=[np.array([2, 3])])
    assert compared(source, onnx, order=(2, 0, 1)) == {}
    wrong = one("onnx", "ReduceMean", NCHW, constants=[np.array([1, 2])])
    assert "axes" in compared(source, wrong, order=(2, 0, 1))


def test_without_a_known_layout_axes_of_equal_size_count_as_the_same():
    cube = (1, 4, 4, 4)
    source, target = one("pytorch", "Softmax", cube, axis=1), one("tflite", "Softmax", cube, axis=-1)
    one_, two = Inside(source.build("y")), Inside(target.build("y"))
    assert mismatches(one_, two, one_.graph.nodes[0], two.graph.nodes[0], matched({})) == []


# -- single attributes --------------------------------------------------------------------------------------------------

SINGLE = [
    ("BatchNormalization", {"epsilon": 1e-3}, {"epsilon": 1e-5}, "epsilon"),
    ("LayerNormalization", {"epsilon": 1e-6}, {}, "epsilon"),
    ("LeakyRelu", {"alpha": 0.1}, {"alpha": 0.3}, "alpha"),
    ("LeakyRelu", {"negative_slope": 0.2}, {}, "alpha"),
    ("Elu", {"alpha": 1.5}, {}, "alpha"),
    ("HardSigmoid", {}, {}, "alpha"),
    ("Gelu", {"approximate": "tanh"}, {}, "approximate"),
    ("CumSum", {}, {"reverse": 1}, "reverse"),
    ("Softplus", {"beta": 2.0}, {}, "beta"),
    ("TopK", {"largest": 0}, {}, "largest"),
    ("Resize", {"mode": "bilinear", "coordinate_transformation_mode": "align_corners"}, {"mode": "linear"}, "coordinate_transformation_mode"),
    ("GRU", {"linear_before_reset": 1}, {}, "linear_before_reset"),
    ("LSTM", {"bidirectional": True}, {}, "direction"),
    ("LSTM", {"recurrent_activation": "hard_sigmoid", "activation": "tanh"}, {"activations": ["Sigmoid", "Tanh", "Tanh"]}, "activations"),
    ("DepthToSpace", {"mode": "CRD"}, {}, "mode"),
    ("ScatterND", {"reduction": "add"}, {}, "reduction"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "ours", "theirs", "name"), SINGLE, ids=lambda item: item if isinstance(item, str) else ""
)
def test_an_attribute_that_differs_from_the_default_of_onnx_shows(op, ours, theirs, name):
    found = compared(one("pytorch", op, (1, 5, 6), **ours), one("onnx", op, (1, 5, 6), **theirs))
    assert set(found) == {name}


def test_numbers_are_equal_up_to_float32():
    source, target = (
        one("pytorch", "LeakyRelu", NCHW, alpha=0.1),
        one("onnx", "LeakyRelu", NCHW, alpha=0.10000000149011612),
    )
    assert compared(source, target) == {}


CLIPS = [
    ("pytorch", "Clip", {"min": 0.0, "max": 6.0}, ()),
    ("tflite", "Clip", {"min": 0.0, "max": 6.0}, ()),
    ("onnx", "Clip", {}, (np.float32(0), np.float32(6))),
    ("keras", "Relu", {"max_value": 6.0, "negative_slope": 0.0, "threshold": 0.0}, ()),
]


@pytest.mark.parametrize("one_", CLIPS, ids=lambda item: item[0])
@pytest.mark.parametrize("two", CLIPS, ids=lambda item: item[0])
def test_relu6_is_one_in_every_spelling(one_, two):
    source = one(one_[0], one_[1], (1, 9), constants=one_[3], **one_[2])
    target = one(two[0], two[1], (1, 9), constants=two[3], **two[2])
    assert compared(source, target) == {}


def test_another_bound_of_a_clip_shows():
    source = one("pytorch", "Clip", (1, 9), min=0.0, max=6.0)
    assert compared(source, one("onnx", "Clip", (1, 9), constants=(np.float32(0), np.float32(5)))) == {
        "max": (6.0, 5.0)
    }
    unbounded = one("onnx", "Clip", (1, 9), constants=(np.float32(-1),))
    assert compared(source, unbounded) == {"max": (6.0, math.inf), "min": (0.0, -1.0)}


def test_enlarging_by_a_whole_factor_makes_ways_of_nearest_equal():
    def resize(format, shape, out_shape, **attributes):
        return one(format, "Resize", shape, out_shape=out_shape, **attributes)

    torch = resize(
        "pytorch",
        NCHW,
        (1, 4, 12, 16),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    half = resize(
        "onnx",
        NCHW,
        (1, 4, 12, 16),
        mode="nearest",
        coordinate_transformation_mode="half_pixel",
        nearest_mode="round_prefer_ceil",
    )
    assert compared(torch, half) == {}
    corners = resize("onnx", NCHW, (1, 4, 12, 16), mode="nearest", coordinate_transformation_mode="align_corners")
    assert "coordinate_transformation_mode" in compared(torch, corners)
    torch = resize(
        "pytorch",
        NCHW,
        (1, 4, 9, 12),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    half = resize("onnx", NCHW, (1, 4, 9, 12), mode="nearest", coordinate_transformation_mode="half_pixel")
    assert "coordinate_transformation_mode" in compared(torch, half)


def test_a_slice_is_compared_by_what_it_takes():
    end = np.iinfo(np.int64).max
    source = one("pytorch", "Slice", (1, 5, 6), axes=[1], starts=[1], ends=[5], steps=[1])
    assert compared(source, one("onnx", "Slice", (1, 5, 6), constants=[np.array(v) for v in ([1], [end], [1])])) == {}
    assert compared(source, one("onnx", "Slice", (1, 5, 6), constants=[np.array(v) for v in ([-4], [end], [-2])])) == {}
    found = compared(source, one("onnx", "Slice", (1, 5, 6), constants=[np.array(v) for v in ([0], [4], [1])]))
    assert found == {"window": ("axis 1: 1 to 5 by 1", "axis 1: 0 to 4 by 1")}


def test_the_stored_operands_of_a_strided_slice_are_read():
    def strided(begin):
        operands = [np.array(v, np.int32) for v in ([0, begin, 0], [0, 4, 0], [1, 1, 1])]
        return one(
            "savedmodel", "Slice", (1, 5, 6), native="StridedSlice", constants=operands, begin_mask=5, end_mask=5
        )

    target = one("onnx", "Slice", (1, 5, 6), constants=[np.array(v) for v in ([1], [4], [1])])
    assert compared(strided(1), target) == {}
    assert compared(strided(2), target) == {"window": ("axis 1: 2 to 4 by 1", "axis 1: 1 to 4 by 1")}


@pytest.mark.parametrize(("steps", "equal"), [(1, True), (5, False)])
def test_the_last_of_all_steps_is_all_of_the_only_step(steps, equal):
    def last(format, count, begin):
        model = Model(format, x=(1, count, 6))
        operands = [
            model.const(name, np.array([value])) for name, value in zip("sea", (begin, begin + 1, 1), strict=True)
        ]
        model.add("Slice", "x", *operands, out="y", name="node", shape=(1, 1, 6))
        return model

    assert (compared(last("onnx", steps, 0), last("onnx", 5, 4)) == {}) is equal


def test_masks_of_a_strided_slice_are_read():
    def strided(**masks):
        return one(
            "savedmodel", "Slice", (1, 5, 6), native="StridedSlice", starts=[0, -1], ends=[0, 0], steps=[1, 1], **masks
        )

    last = one("onnx", "Slice", (1, 5, 6), constants=[np.array(v) for v in ([4], [5], [1])])
    assert compared(strided(begin_mask=1, end_mask=1, shrink_axis_mask=2), last) == {}
    first = one("onnx", "Slice", (1, 5, 6), constants=[np.array(v) for v in ([0], [1], [1])])
    assert "window" in compared(strided(begin_mask=1, end_mask=1, shrink_axis_mask=2), first)
    assert compared(strided(ellipsis_mask=1), last) == {}


def test_padding_is_compared_axis_by_axis():
    source = one("pytorch", "Pad", NCHW, pads=[0, 0, 1, 2, 0, 0, 1, 2])
    same = one("tflite", "Pad", NHWC, pads=[0, 1, 2, 0, 0, 1, 2, 0])
    other = one("tflite", "Pad", NHWC, pads=[0, 2, 1, 0, 0, 2, 1, 0])
    assert compared(source, same, order=TO_LAST) == {}
    assert set(compared(source, other, order=TO_LAST)) == {"pads"}


def test_what_a_format_does_not_show_is_not_compared():
    assert "alpha" not in typed(
        Inside(one("tflite", "Gemm", (1, 5)).build("y")), one("tflite", "Gemm", (1, 5)).nodes[0]
    )
    assert compared(one("pytorch", "Split", (1, 6), axis=1), one("onnx", "Split", (1, 6), axis=1, split=[2, 4])) == {}


# -- as evidence --------------------------------------------------------------------------------------------------------


def chain(format, slopes):
    model, value = Model(format, x=(1, 9)), "x"
    for place, slope in enumerate(slopes):
        value = model.add("LeakyRelu", value, out=f"y{place}", name=f"leaky{place}", shape=(1, 9), alpha=slope)
    return model


def examined(source, target, target_value):
    return examine(
        finding(target_value, region=[n.name for n in target.nodes], source_region=[n.name for n in source.nodes]),
        source.build(target_value), target.build(target_value), matched({"x": "x"}),
    )  # fmt: skip


def test_equal_operators_are_paired_in_order():
    found = examined(chain("pytorch", [0.1, 0.2, 0.3]), chain("onnx", [0.1, 0.25, 0.3]), "y2")
    assert found[0].node == "leaky1"
    assert found[0].cause is Cause.HYPERPARAMETERS
    assert found[0].source_nodes == ("leaky1",)
    assert (found[0].source_value, found[0].target_value) == ("alpha: 0.2", "alpha: 0.25")
    assert {item.node for item in found[1:] if item.weight > 1} == set()


def test_operators_with_weights_are_paired_by_their_weights():
    """Two convolutions of which the target has only the second: it is compared with that, not with the first."""

    def two(format, kernels, strides):
        model, value = Model(format, x=NCHW), "x"
        native = "aten.conv2d.default" if format == "pytorch" else None
        for place, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
            value = model.add("Conv", value, model.const(f"w{place}", kernel), out=f"y{place}", name=f"conv{place}", native=native,
                              shape=(1, 4, 6, 8), strides=[stride] * 2, pads=[1] * 4)  # fmt: skip
        return model

    first, second = normal(4, 4, 3, 3, seed=2), normal(4, 4, 3, 3, seed=3)
    source = two("pytorch", [first, second], [1, 2])
    assert examined(source, two("onnx", [second], [2]), "y0")[0].weight < 1
    wrong = examined(source, two("onnx", [second], [1]), "y0")
    assert wrong[0].source_nodes == ("conv1",)
    assert wrong[0].target_value == "strides: [1, 1]"


FUSED = [("Relu", math.inf), ("Relu6", 6.0), ("ReluN1To1", 1.0)]


@pytest.mark.parametrize(("fused", "bound"), FUSED)
def test_a_fused_activation_is_compared_with_one_that_stands_alone(fused, bound):
    source = one("pytorch", "Add", (1, 9))
    source.add("Clip", "y", out="z", name="clip", shape=(1, 9), min=0.0, max=6.0)
    found = examined(source, one("tflite", "Add", (1, 9), activation=fused), "y")
    if fused == "Relu6":
        assert found[0].weight < 1
    else:
        assert found[0].cause is Cause.HYPERPARAMETERS
        assert found[0].source_value == "0 to 6"
        assert found[0].target_value.endswith(f"to {bound:g}")


def test_an_operator_that_reads_another_shape_is_blamed_after_the_one_that_made_it():
    def two(format, stride):
        native = "aten.conv2d.default" if format == "pytorch" else None
        model = one(format, "Conv", NCHW, native=native, constants=[KERNEL], strides=[stride] * 2, pads=[1] * 4,
                    out_shape=(1, 8, 6 // stride, 8 // stride))  # fmt: skip
        window = (
            {"starts": [0], "ends": [2], "axes": [2], "steps": [1]}
            if stride == 1
            else {"starts": [0], "ends": [1], "axes": [2]}
        )
        model.add("Slice", "y", out="z", name="slice", shape=(1, 8, 2, 8), **window)
        return model

    found = examined(two("pytorch", 1), two("onnx", 2), "z")
    assert [item.node for item in found] == ["op", "slice"]


def test_operators_that_differ_in_everything_are_not_one_operator():
    source = conv("pytorch", strides=[1, 1], dilations=[1, 1], pads=[1, 1, 1, 1], group=1)
    target = one(
        "onnx",
        "Conv",
        NCHW,
        constants=[normal(8, 1, 2, 5, seed=4)],
        strides=[2, 2],
        dilations=[2, 1],
        pads=[0, 1, 0, 1],
        group=4,
    )
    found = examined(source, target, "y")
    assert found[0].cause is Cause.PARAMETERS
