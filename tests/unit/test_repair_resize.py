"""A resize as products with matrices: its weights against Pillow's and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from diagnosis_cases import Model

from trueport.diagnosis.region import Inside
from trueport.repairs.rules._resize import matrix
from trueport.repairs.rules._translate import translate
from trueport.repairs.rules._writer import Placed, Untranslatable, Writer, identity

IMAGE = np.random.default_rng(0).normal(size=(9, 14)).astype(np.float32)


def translated(before, after, *operands, order=None, **attributes):
    """What a Resize of ONNX is written as, computed with NumPy; the data, without the run axis, has this order."""
    values = np.random.default_rng(1).normal(size=(2, *before)).astype(np.float32)
    model = Model("onnx", x=before)
    model.inputs["x"] = model.values["x"] = values
    names = [
        "" if array is None else model.const(f"c{place}", np.asarray(array)) for place, array in enumerate(operands)
    ]
    model.add("Resize", "x", *names, out="y", **attributes)
    model.values["y"] = np.zeros((2, *after), np.float32)
    traced = model.build("y")
    order = order or identity(len(before))
    places = {"x": Placed("x", before, order)}
    made = Writer(source=Inside(traced), format="openvino", last=False, find=places.get, translate=translate)
    translate(made, traced.graph.by_name["y"])
    known = {"x": np.transpose(values[0], order), **made.arrays}
    for item in made.made:
        operate = {"MatMul": np.matmul, "Transpose": lambda x, item=item: np.transpose(x, item.attributes["perm"])}
        known[item.output] = operate[item.operator](*(known[name] for name in item.inputs))
    assert made.places["y"].order == identity(len(before))
    return values[0], known[made.places["y"].name], [item.operator for item in made.made]


@pytest.mark.parametrize("size", [(4, 5), (3, 14), (20, 6), (18, 30)])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialias_is_pillows(size, mode):
    pillow = pytest.importorskip("PIL.Image")
    method = {"linear": pillow.Resampling.BILINEAR, "cubic": pillow.Resampling.BICUBIC}[mode]
    wanted = np.asarray(pillow.fromarray(IMAGE).resize(size[::-1], method))
    rows, columns = (
        matrix(old, new, mode=mode, antialias=True, exclude=True, coefficient=-0.5)
        for old, new in zip(IMAGE.shape, size, strict=True)
    )
    np.testing.assert_allclose(rows @ IMAGE @ columns.T, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "wanted", "settings", "rows"),
    [
        (2, 4, {}, [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]),
        (2, 4, {"transformation": "asymmetric"}, [[1, 0], [0.5, 0.5], [0, 1], [0, 1]]),
        (2, 3, {"transformation": "align_corners"}, [[1, 0], [0.5, 0.5], [0, 1]]),
        (3, 1, {"transformation": "pytorch_half_pixel"}, [[1, 0, 0]]),
        (3, 1, {}, [[0, 1, 0]]),
        (4, 2, {}, [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]),
        (4, 2, {"antialias": True}, [[0.5, 0.375, 0.125, 0], [0, 0.125, 0.375, 0.5]]),
        (4, 2, {"antialias": True, "exclude": True}, [[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]]),
        (4, 2, {"mode": "cubic"}, [[0.5, 0.59375, -0.09375, 0], [0, -0.09375, 0.59375, 0.5]]),
        (4, 2, {"mode": "nearest"}, [[1, 0, 0, 0], [0, 0, 1, 0]]),
        (4, 2, {"mode": "nearest", "rounding": "round_prefer_ceil"}, [[0, 1, 0, 0], [0, 0, 0, 1]]),
        (2, 3, {"mode": "nearest", "transformation": "asymmetric", "rounding": "ceil"}, [[1, 0], [0, 1], [0, 1]]),
    ],
)
def test_weights(size, wanted, settings, rows):
    np.testing.assert_allclose(matrix(size, wanted, **settings), rows, atol=1e-9)


def test_two_products():
    x, y, written = translated((2, 4, 6), (2, 2, 3), None, None, [2, 2, 3], mode="linear")
    assert written == ["MatMul", "MatMul"]
    np.testing.assert_allclose(y, x.reshape(2, 2, 2, 3, 2).mean((2, 4)), atol=1e-6)


def test_one_axis_is_one_product_and_other_layouts_are_turned():
    x, y, written = translated((2, 4, 6), (2, 4, 3), None, [1.0, 1.0, 0.5], order=(1, 2, 0), mode="linear")
    assert written == ["Transpose", "MatMul"]
    np.testing.assert_allclose(y, x.reshape(2, 4, 3, 2).mean(3), atol=1e-6)


def test_aspect_has_one_scale_for_both_axes():
    """7 rows become 3, though the scale is 0.4: the rows are 2.5 apart, not 7 / 3."""
    attributes = {"mode": "linear", "axes": [1, 2], "keep_aspect_ratio_policy": "not_larger"}
    x, y, _ = translated((1, 7, 10), (1, 3, 4), None, None, [5, 4], **attributes)
    np.testing.assert_allclose(y, matrix(7, 3, 0.4) @ x @ matrix(10, 4, 0.4).T, atol=1e-6)
    assert not np.allclose(matrix(7, 3, 0.4), matrix(7, 3))


@pytest.mark.parametrize(
    "attributes",
    [
        {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"},
        {"mode": "nearest", "antialias": 1},
        {"mode": "nearest", "nearest_mode": "other"},
        {"mode": "linear", "keep_aspect_ratio_policy": "other"},
    ],
)
def test_no_words(attributes):
    with pytest.raises(Untranslatable):
        translated((2, 4, 6), (2, 2, 3), None, None, [2, 2, 3], **attributes)


def test_channels_are_not_resized():
    with pytest.raises(Untranslatable):
        translated((2, 4, 6), (4, 4, 6), None, None, [4, 4, 6], mode="linear")
