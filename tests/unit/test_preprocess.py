"""A described preprocessing: what it does to pixels, and how it is written down and read back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trueport.errors import UsageError
from trueport.preprocess import CROPS, DTYPES, FILTERS, Preprocess, from_file, from_mapping, from_text

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
PICTURE = Image.fromarray(PIXELS)

NUMBERS = st.floats(-1e3, 1e3).filter(lambda number: abs(number) > 1e-3)
RECIPES = st.builds(
    Preprocess,
    size=st.one_of(st.none(), st.tuples(st.integers(1, 40), st.integers(1, 40))),
    resize=st.sampled_from(sorted(FILTERS)),
    crop=st.sampled_from(CROPS),
    order=st.sampled_from(["RGB", "BGR"]),
    scale=NUMBERS,
    offset=NUMBERS,
    mean=st.one_of(st.tuples(NUMBERS), st.tuples(NUMBERS, NUMBERS, NUMBERS)),
    std=st.one_of(st.tuples(NUMBERS), st.tuples(NUMBERS, NUMBERS, NUMBERS)),
    layout=st.sampled_from(["NHWC", "NCHW"]),
    dtype=st.sampled_from(DTYPES),
)


@given(RECIPES)
def test_every_recipe_survives_json_and_inline_text(recipe):
    assert from_mapping(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert from_text(str(recipe)) == recipe


def test_inline_text_tells_only_what_is_not_the_default():
    assert str(Preprocess()) == ""
    assert str(Preprocess(size=(2, 3), mean=(1.0, 2.0, 3.0))) == "size=2x3,mean=1.0/2.0/3.0"


def test_plain_recipe_keeps_pixels():
    np.testing.assert_array_equal(Preprocess().apply(PICTURE), PIXELS.astype(np.float32))
    assert Preprocess().apply(PICTURE).dtype == np.float32


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("order=BGR", PIXELS[..., ::-1]),
        ("layout=NCHW", PIXELS.transpose(2, 0, 1)),
        ("layout=nchw,order=bgr", PIXELS[..., ::-1].transpose(2, 0, 1)),
        ("scale=1/255", (PIXELS / 255).astype(np.float32)),
        ("scale=1/127.5,offset=-1", (PIXELS / 127.5 - 1).astype(np.float32)),
        ("mean=1/2/3,std=2/4/8", ((PIXELS - [1.0, 2, 3]) / [2, 4, 8]).astype(np.float32)),
        ("mean=1;2;3", (PIXELS - [1.0, 2, 3]).astype(np.float32)),
        ("order=BGR,mean=103.939/116.779/123.68", (PIXELS[..., ::-1] - [103.939, 116.779, 123.68]).astype(np.float32)),
        ("scale=1/255,mean=.5,std=.25", ((PIXELS / 255 - 0.5) / 0.25).astype(np.float32)),
        ("dtype=uint8", PIXELS),
        ("dtype=int8,offset=-128", PIXELS.astype(np.int16) - 128),
        ("size=2x3,resize=nearest", PIXELS[1::2, 1::2]),
        ("size=4x4,crop=center", PIXELS[:, 1:5]),
        ("size=2x2,short_side=4,crop=centre", PIXELS[1:3, 2:4]),
        ("size=4x4,short_side=4,crop=center", PIXELS[:, 1:5]),
    ],
)
def test_pixels(text, expected):
    found = from_text(text).apply(PICTURE)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)  # one rounding to float32
    assert found.shape == expected.shape


def test_size_is_height_by_width_and_one_number_is_a_square():
    assert from_text("size=2x3").apply(PICTURE).shape == (2, 3, 3)
    assert from_text("size=5").size == (5, 5)
    assert from_mapping({"size": [2, 3]}).size == (2, 3)


def test_grey_has_one_channel_or_none():
    expected = np.asarray(PICTURE.convert("L"))
    np.testing.assert_array_equal(from_text("order=gray").apply(PICTURE)[..., 0], expected)
    np.testing.assert_array_equal(from_text("order=GREY,layout=NCHW").apply(PICTURE)[0], expected)
    np.testing.assert_array_equal(from_text("order=GREY,layout=NHW").apply(PICTURE), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_ordinary_mode_becomes_rgb(mode):
    assert Preprocess().apply(PICTURE.convert(mode)).shape == (4, 6, 3)


def test_filters_differ_and_a_fitting_picture_is_not_resampled():
    small = {name: from_text(f"size=3x5,resize={name}").apply(PICTURE).tobytes() for name in FILTERS}
    assert len(set(small.values())) >= 4
    np.testing.assert_array_equal(from_text("size=4x6,resize=lanczos").apply(PICTURE), PIXELS)


def test_deep_pictures_are_refused_rather_than_clipped():
    with pytest.raises(UsageError, match="8 bits"):
        Preprocess().apply(Image.fromarray(np.full((4, 4), 40000, np.uint16)))


def test_values_that_do_not_fit_an_integer_dtype():
    with pytest.raises(UsageError, match="do not fit uint8"):
        from_text("scale=10,dtype=uint8").apply(PICTURE)


BAD = {
    "size=32y32": "'32y32' is no size; write for example 224x224",
    "size=1x2x3": "HEIGHTxWIDTH",
    "size=0x4": "at least 1",
    "scale=fast": "'fast' is no scale",
    "scale=1/0": "is no scale",
    "scale=0": "must not be 0",
    "std=1/0/1": "must not be 0",
    "mean=1/2": "1 or 3 numbers, not 2",
    "mean=nan": "finite",
    "order=RGBA": "one of RGB, BGR, GREY",
    "layout=HWC": "one of NHWC, NCHW, NHW",
    "resize=best": "one of nearest, bilinear",
    "crop=left": "one of none, center",
    "dtype=float8": "one of float32",
    "colour=RGB": "unknown 'colour'; the fields are size, resize",
    "order": "NAME=VALUE",
    "mean=.4,.5,.6": "NAME=VALUE.*separated by '/'",
    "scale=1,scale=2": "given twice",
    "layout=NHW": "order must be GREY",
    "order=GREY,mean=1/2/3": "needs 1 or 1 numbers",
    "short_side=256": "short_side needs a size",
    "size=224x224,short_side=200": "at least as large",
    "missing.json": "no such file",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_descriptions_give_one_sentence(text):
    with pytest.raises(UsageError, match=BAD[text]) as caught:
        from_text(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given_value",
    [{"size": 2.5}, {"size": True}, {"order": 3}, {"scale": True}, {"mean": []}, {"mean": {"r": 1}}, {"scale": None}],
)
def test_bad_json_values(given_value):
    with pytest.raises(UsageError, match="write for example"):
        from_mapping(given_value)


def test_files(tmp_path):
    recipe = Preprocess(size=(2, 3), mean=(0.5,), layout="NCHW")
    (tmp_path / "p.json").write_text(json.dumps(recipe.to_json()))
    (tmp_path / "p.toml").write_text('size = [2, 3]\nmean = 0.5\nlayout = "NCHW"\n')
    assert from_file(tmp_path / "p.json") == from_text(str(tmp_path / "p.toml")) == recipe
    (tmp_path / "p.json").write_text("[1]")
    with pytest.raises(UsageError, match="one object"):
        from_file(tmp_path / "p.json")
    (tmp_path / "p.toml").write_text("size = [")
    with pytest.raises(UsageError, match="no readable TOML"):
        from_file(tmp_path / "p.toml")
