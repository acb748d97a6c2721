"""What lies between two inputs, and between two pipelines: recovered exactly and named, or not claimed at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trueport.diagnosis import conventions, pipelines, recovery
from trueport.diagnosis.inputs import Change, closest, explain, fit
from trueport.errors import UsageError
from trueport.feeds import fields
from trueport.preprocess import Preprocess, from_text

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CAFFE = np.array([103.939, 116.779, 123.68])


def pictures(count=4, height=20, width=24, channels=3, seed=0):
    """[R, 1, H, W, C], 0..255 whole numbers as float32: smooth, with edges, colours alike but not equal."""
    rng = np.random.default_rng(seed)
    made = [np.rint(255 * fields.field(rng, (1, height, width, channels), (1, 2))) for _ in range(count)]
    return np.stack(made).astype(np.float32)


RAW = pictures()
SQUARE = pictures(height=20, width=20)
FIRST = RAW.transpose(0, 1, 4, 2, 3)

NAMED = {
    "x / 255": (RAW, RAW / 255, "x (0 to 255), RGB", "x / 255 (0 to 1), RGB"),
    "x * 255": (RAW / 255, RAW, "x / 255 (0 to 1), RGB", "x (0 to 255), RGB"),
    "signed": (RAW, RAW / 127.5 - 1, "x (0 to 255), RGB", "x / 127.5 - 1 (-1 to 1), RGB"),
    "unit to signed": (RAW / 255, RAW / 127.5 - 1, "x / 255 (0 to 1), RGB", "x / 127.5 - 1 (-1 to 1), RGB"),
    "signed to raw": (RAW / 127.5 - 1, RAW, "x / 127.5 - 1 (-1 to 1), RGB", "x (0 to 255), RGB"),
    "256, not 255": (RAW / 255, RAW / 256, "x / 255 (0 to 1), RGB", "x / 256, RGB"),
    "ImageNet": (RAW, (RAW / 255 - MEAN) / STD, "x (0 to 255), RGB", "(x / 255 - mean) / std of ImageNet, RGB"),
    "ImageNet in half": (
        RAW,
        ((RAW / 255 - MEAN) / STD).astype(np.float16),
        "x (0 to 255), RGB",
        "(x / 255 - mean) / std of ImageNet, RGB",
    ),
    "Caffe": (
        RAW,
        RAW[..., ::-1] - CAFFE,
        "x (0 to 255), RGB",
        "x - ImageNet means (B 103.939, G 116.779, R 123.68), BGR",
    ),
    "ImageNet to Caffe": (
        (RAW / 255 - MEAN) / STD,
        RAW[..., ::-1] - CAFFE,
        "(x / 255 - mean) / std of ImageNet, RGB",
        "x - ImageNet means (B 103.939, G 116.779, R 123.68), BGR",
    ),
    "BGR": (RAW, RAW[..., ::-1], "x (0 to 255), RGB", "x (0 to 255), BGR"),
    "BGR and ImageNet, moved": (
        RAW,
        ((RAW / 255 - MEAN) / STD)[..., ::-1].transpose(0, 1, 4, 2, 3),
        "x (0 to 255), RGB",
        "(x / 255 - mean) / std of ImageNet, BGR, channels moved first (NHWC to NCHW)",
    ),
    "inverted": (RAW[..., :1] / 255, 1 - RAW[..., :1] / 255, "x / 255 (0 to 1)", "1 - x / 255 (inverted)"),
    "int8": (RAW.astype(np.uint8), (RAW - 128).astype(np.int8), "x (0 to 255), RGB", "x - 128 (-128 to 127), RGB"),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_known_way_to_write_pixels_is_named_on_both_sides(name):
    source, target, source_words, target_words = NAMED[name]
    found = explain(source, target)
    assert (found.source_words, found.target_words) == (source_words, target_words)
    np.testing.assert_allclose(
        found.change.apply(source, dtype=np.dtype(np.float64)), target, atol=2e-3 * np.std(target, dtype=np.float64)
    )


PLACES = {
    "channels first": (RAW, FIRST, "channels moved first (NHWC to NCHW)"),
    "channels last": (FIRST, RAW, "channels moved last (NCHW to NHWC)"),
    "swapped": (SQUARE, SQUARE.swapaxes(2, 3), "height and width swapped"),
    "mirrored": (RAW, RAW[:, :, :, ::-1], "flipped along axis 2 (left to right)"),
    "upside down": (FIRST, FIRST[:, :, :, ::-1], "flipped along axis 2 (upside down)"),
    "turned by 180": (RAW, RAW[:, :, ::-1, ::-1], "flipped along axis 1 and 2 (upside down and left to right)"),
    "order": (RAW, RAW[..., [1, 2, 0]], "channels in the order [1, 2, 0]"),
    "own numbers": (RAW, RAW * [0.1, 0.2, 0.3] + [1, 2, 3], "x * (0.1, 0.2, 0.3) + (1, 2, 3)"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_change_of_places_is_told_in_words(name):
    source, target, words = PLACES[name]
    found = explain(source, target)
    assert found.target_words == words
    assert words in str(found)
    assert found.residual < 1e-6  # places are exact; least squares on float32 values rounds by 1e-7


def test_equal_inputs_are_equal_and_nothing_else():
    found = explain(RAW, RAW.copy())
    assert found.identical
    assert found.change == Change(permutation=(0, 1, 2, 3), axis=3, channels=(0, 1, 2))
    assert str(found) == "both inputs hold the same values"


def test_grey_pictures_have_no_channel_order():
    grey = np.repeat(RAW[..., :1], 3, axis=-1)
    assert explain(grey, grey[..., ::-1]).identical


@pytest.mark.parametrize(
    "target",
    [
        np.roll(RAW, 1, axis=3),
        np.roll(RAW, 4, axis=2),
        RAW + np.random.default_rng(1).normal(0, 2, RAW.shape),
        np.sqrt(RAW),
        pictures(seed=5),
        RAW * np.linspace(0.9, 1.1, 24)[:, None],
    ],
    ids=["rolled", "rolled far", "noise", "another curve", "other pictures", "vignette"],
)
def test_what_no_such_change_explains_stays_unexplained(target):
    assert explain(RAW, target) is None
    assert closest(RAW, target).residual > 1e-3


def test_rounding_to_a_grid_is_part_of_an_explanation():
    found = explain(RAW / 255, np.rint(RAW * 0.37 + 3))
    assert found.rounded
    assert found.change.scale == pytest.approx((0.37 * 255,), rel=1e-3)
    mask = (RAW > 127).astype(np.float32)
    assert explain(RAW, mask) is None  # two levels are no rounding of a picture


def test_token_numbers_may_be_shifted_and_nothing_looser():
    ids = np.random.default_rng(0).integers(0, 90, (5, 1, 12))
    assert str(explain(ids, ids + 1)) == "every number of the target's input is 1 above the source's"
    assert str(explain(ids, ids - 3)) == "every number of the target's input is 3 below the source's"
    wrong = ids + 1
    wrong[0, 0, 0] += 1
    assert explain(ids, wrong) is None


def test_features_are_standardised_one_by_one_and_may_be_in_another_order():
    values = np.random.default_rng(0).normal(3, 5, (9, 2, 6))
    scaled = explain(values, (values - 3) / np.arange(1, 7))
    np.testing.assert_allclose(scaled.change.scale, 1 / np.arange(1, 7), rtol=1e-6)
    order = [3, 1, 2, 0, 5, 4]
    assert explain(values, values[..., order]).change.channels == tuple(order)
    few = values[:2, :1]  # two samples: a line through two points explains everything
    assert explain(few, np.random.default_rng(1).normal(size=few.shape)) is None


def test_another_number_of_axes_is_no_difference():
    flat = RAW.reshape(len(RAW), 1, -1)
    assert explain(RAW, flat).change.identity
    moved = explain(RAW, FIRST.reshape(len(RAW), 1, -1))
    assert moved.change.permutation == (0, 3, 1, 2)
    np.testing.assert_array_equal(moved.change.apply(RAW), FIRST.reshape(len(RAW), 1, -1))


def test_arrays_that_cannot_be_one_are_not_explained():
    assert explain(RAW, RAW[:, :, :10]) is None
    assert explain(RAW, np.where(RAW > 250, np.nan, RAW)) is None
    assert explain(RAW.astype(str), RAW.astype(str)) is None
    with pytest.raises(ValueError, match="4 runs against 3"):
        explain(RAW, RAW[:3])


SIDES = st.sampled_from(conventions.CONVENTIONS[:5])


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.sampled_from([(0, 1, 2), (2, 1, 0)]), st.sampled_from([(), (1,), (2,), (1, 2)]), st.booleans())
def test_every_composition_is_recovered(first, second, channels, flips, moved):
    (k, b), (to_k, to_b) = first.coefficients((0, 1, 2)), second.coefficients(channels)
    source = RAW * k + b
    target = np.flip(RAW[..., list(channels)], [axis + 1 for axis in flips]) * to_k + to_b
    target = target.transpose(0, 1, 4, 2, 3) if moved else target
    found = explain(source, target)
    np.testing.assert_allclose(found.change.apply(source), target, atol=1e-4 * target.std())
    assert found.change.reorders == (channels == (2, 1, 0))
    assert len(found.change.flips) == len(flips)
    if first != second:
        assert (found.named.source, found.named.target) == (first, second)


@given(st.integers(0, len(conventions.CONVENTIONS) - 1), st.integers(0, len(conventions.CONVENTIONS) - 1))
def test_a_convention_and_back_is_nothing(i, j):
    first, second = conventions.CONVENTIONS[i], conventions.CONVENTIONS[j]
    k, b = conventions.between(first, second, (0, 1, 2))
    back_k, back_b = conventions.between(second, first, (0, 1, 2))
    np.testing.assert_allclose(back_k * k, 1)
    np.testing.assert_allclose(back_k * b + back_b, 0, atol=1e-9 * max(1, np.abs(back_b).max()))


@pytest.mark.parametrize(
    ("scale", "shift", "words"),
    [
        ((1 / 127.5,), (-1.0,), "x / 127.5 - 1"),
        ((255.0,), (0.0,), "x * 255"),
        ((-1.0,), (255.0,), "255 - x"),
        ((1.0,), (3.0,), "x + 3"),
        ((1.0, 1.0), (2.0, 4.0), "x + (2, 4)"),
        ((2.0, 3.0), (0.0, 0.0), "x * (2, 3)"),
    ],
)
def test_a_map_is_written_as_a_person_would(scale, shift, words):
    assert conventions.formula(scale, shift) == words


# ---- values inside the models ----


def test_fit_tells_which_channels_are_scaled_or_shifted():
    value = np.random.default_rng(0).normal(size=(4, 1, 6, 6, 8))
    factor, offset = np.ones(8), np.zeros(8)
    factor[3], offset[5] = 1.5, 2.0
    found = fit(value, value * factor + offset)
    assert found.explains
    assert found.axis == 3
    np.testing.assert_allclose(found.scale, factor, rtol=1e-9)
    assert str(found) == "2 of 8 channels differ (3: x * 1.5, 5: x + 2)"


def test_fit_takes_one_scale_where_that_is_enough_and_explains_no_noise():
    value = np.random.default_rng(0).normal(size=(4, 1, 6, 6, 8))
    same = fit(value, value)
    assert same.axis is None
    assert str(same) == "both hold the same values"
    assert str(fit(value, value * 2 - 1)) == "the target's values are x * 2 - 1 of the source's x"
    assert not fit(value, value + np.random.default_rng(1).normal(size=value.shape)).explains
    assert fit(value, value[:, :, :3]) is None
    assert fit(value, np.where(value > 2, np.inf, value)) is None


# ---- pipelines ----


@pytest.fixture(scope="module")
def images():
    """Four pictures of different sides, structured."""
    rng = np.random.default_rng(3)
    shapes = ((150, 110), (120, 160), (128, 128), (100, 170))
    return [
        Image.fromarray(np.rint(255 * fields.field(rng, (height, width, 3), (0, 1))).astype(np.uint8))
        for height, width in shapes
    ]


RECIPES = [
    "size=48",
    "size=48,resize=bicubic,scale=1/255",
    "size=48,resize=nearest-floor,order=BGR,mean=103.939/116.779/123.68",
    "size=48,antialias=no,rounded=no,scale=1/127.5,offset=-1",
    "size=48,resize=area,dtype=uint8,layout=NCHW",
    "size=49,crop=center,short_side=56,scale=1/255,mean=.485/.456/.406,std=.229/.224/.225,layout=NCHW",
    "size=48,crop=center,resize=bicubic-sharp,antialias=no",
    "size=48,crop=first,fraction=.875,antialias=no,rounded=no,scale=1/255",
    "size=40x56,resize=bilinear-corner,order=BGR",
    "size=48,order=GREY,layout=NHW,scale=1/255",
    "size=48,order=GREY,layout=NCHW,resize=lanczos",
]


@pytest.mark.parametrize("text", RECIPES)
def test_a_pipeline_is_recovered_from_what_it_made(images, text):
    recipe = from_text(text)
    values = np.stack([recipe.apply(image) for image in images])
    found = recovery.recover(images, values)
    assert found.exact
    again = np.stack([found.preprocess.apply(image) for image in images]).astype(np.float64)
    np.testing.assert_allclose(again, values, atol=1e-4 * float(values.std(dtype=np.float64)))
    for name in ("resize", "crop", "order", "layout", "antialias", "short_side", "fraction", "dtype"):
        assert getattr(found.preprocess, name) == getattr(recipe, name), name


def test_a_pipeline_that_no_description_gives_is_not_called_exact(images):
    values = np.stack([Preprocess(size=(24, 24)).apply(image) for image in images])
    noisy = values + np.random.default_rng(0).normal(0, 6, values.shape).astype(np.float32)
    found = recovery.recover(images, noisy)
    assert not found.exact
    assert 0.01 < found.residual < 0.5
    for bad, words in ((values[:2], "2 arrays for 4"), (np.zeros((4, 9)), "no RGB"), (values * np.nan, "no RGB")):
        with pytest.raises(UsageError, match=words):
            recovery.recover(images, bad)


def test_differences_of_pipelines_carry_their_effect(images):
    ours = from_text("size=48,scale=1/255,layout=NCHW")
    theirs = from_text("size=48,scale=1/127.5,offset=-1,order=BGR,resize=bicubic,layout=NCHW")
    found = {item.what: item for item in pipelines.differences(ours, theirs, images)}
    assert set(found) == {"values", "channel order", "resize"}
    assert str(found["values"]) == "values: x / 255 in the source's pipeline, x / 127.5 - 1 in the target's"
    assert str(found["resize"]) == "resize: bilinear in the source's pipeline, bicubic in the target's"
    assert found["values"].effect > found["resize"].effect > 0
    assert pipelines.differences(ours, ours, images) == ()


def test_a_difference_without_effect_on_these_pictures_is_none(images):
    square = [image.resize((48, 48)) for image in images]
    assert pipelines.differences(from_text("size=48"), from_text("size=48,resize=bicubic,crop=center"), square) == ()


# ---- the words that descriptions have for it ----

LADDER = Image.fromarray(np.arange(8, dtype=np.uint8).reshape(1, 8) * 10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("resize=nearest-floor", [0, 20, 40, 60]),
        ("resize=area", [5, 25, 45, 65]),
        ("resize=bilinear-corner", [0, 20, 40, 60]),
        ("antialias=no", [5, 25, 45, 65]),
        ("antialias=no,resize=bicubic", [4.375, 25, 45, 65.625]),
        ("antialias=no,resize=bicubic-sharp", [4.0625, 25, 45, 65.9375]),
    ],
)
def test_resizing_samples_where_its_definition_says(text, expected):
    """Halving a ramp of steps of 10: half-pixel centres fall between two pixels, corners on one. The cubic kernel gives
    weights a/8 and 1/2 - a/8 to the outer and inner two neighbours; at the rim the last pixel goes on."""
    found = from_text(f"size=1x4,order=GREY,layout=NHW,rounded=no,{text}").apply(LADDER)
    np.testing.assert_allclose(found, [expected], atol=1e-5)


def test_own_resampling_agrees_with_pillow_up_to_its_rounding(images):
    for image in images:
        theirs, ours = (from_text(f"size=48,rounded={word}").apply(image) for word in ("yes", "no"))
        assert 0 < np.abs(theirs - ours).max() <= 1.0 + 1e-4  # Pillow rounds after each of two passes: half a step each


def test_crop_first_takes_a_share_of_the_largest_part():
    picture = Image.fromarray(np.add.outer(np.arange(40), np.arange(80)).astype(np.uint8))
    found = from_text("size=20x20,crop=first,fraction=0.5,order=GREY,layout=NHW").apply(picture)
    np.testing.assert_array_equal(found, np.add.outer(np.arange(10, 30), np.arange(30, 50)))


@pytest.mark.parametrize("text", ["fraction=0", "fraction=1.5", "antialias=perhaps"])
def test_bad_words_are_refused(text):
    with pytest.raises(UsageError, match="preprocessing"):
        from_text(f"size=8,{text}")


def test_new_words_survive_text():
    recipe = from_text("size=8,antialias=no,rounded=no,crop=first,fraction=0.875,resize=area")
    assert from_text(str(recipe)) == recipe
