"""Inputs read from files: what they become, and the one sentence for everything that cannot be fed."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trueport.artifact import Signature, TensorSpec
from trueport.errors import UsageError
from trueport.feeds import from_arrays, load, load_labels, peek
from trueport.feeds.arrange import chunk
from trueport.feeds.pictures import spread


def spec(name, dtype="float32", shape=("N", 3), **more):
    return TensorSpec(name=name, dtype=dtype, shape=shape, **more)


def model(*inputs):
    return Signature(inputs=inputs, outputs=())


ONE = model(spec("x"))
TWO = model(spec("x"), spec("ids", "int64", ("N", 2), minimum=0, maximum=9))
TOKENS = model(spec("ids", "int64", ("N", "s")))


def samples(feeds, name):
    """The samples of the data cases in order, whatever the runs."""
    return np.concatenate(
        [case.inputs[name].reshape(-1, *case.inputs[name].shape[2:]) for case in feeds.of_kind("data")]
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 100), st.one_of(st.none(), st.integers(1, 120)))
def test_open_batch_keeps_every_sample_in_order(count, limit):
    x = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    feeds = from_arrays({"x": x}, ONE, limit=limit, labels=np.arange(count))
    kept = count if limit is None else min(count, limit)
    np.testing.assert_array_equal(samples(feeds, "x"), x[:kept])
    assert feeds.count == kept == len(feeds.labels)
    assert all(case.inputs["x"].shape[1] <= 16 for case in feeds.cases)
    assert {case.kind for case in feeds.cases} <= {"data", "batch"}
    if kept >= 3:
        sizes = {case.inputs["x"].shape[1] for case in feeds.cases}
        assert len(sizes) > 1, "at least two batch sizes"
    if kept >= 4:
        assert feeds.cases[0].runs >= 4, "enough runs to see what depends on the input"


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(64, 4, 16), (500, 4, 10), (3, 4, 1), (64, 5 << 20, 1), (64, 2 << 20, 4), (22, 4, 5), (1, 0, 1)],
)
def test_samples_per_run(count, size, expected):
    assert chunk(count, size) == expected


def test_fixed_batch_runs_chunk_by_chunk():
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    (case,) = from_arrays({"x": x}, model(spec("x", shape=(4, 3)))).cases
    assert case.inputs["x"].shape == (2, 4, 3)
    (case,) = from_arrays({"x": x}, model(spec("x", shape=(1, 3))), limit=5).cases
    assert case.inputs["x"].shape == (5, 1, 3)
    np.testing.assert_array_equal(case.inputs["x"][:, 0], x[:5])


def test_one_axis_more_is_the_run_axis():
    h = np.arange(2 * 5 * 4, dtype=np.float32).reshape(5, 2, 1, 4)
    two = model(spec("x", shape=("N", 3)), spec("h", shape=(2, None, 4)), spec("sr", "int64", ()))
    x = np.ones((5, 3), np.float32)
    (case,) = from_arrays({"x": x, "h": h, "sr": np.full(5, 8000)}, two).cases
    assert {name: array.shape for name, array in case.inputs.items()} == {"x": (5, 1, 3), "h": (5, 2, 1, 4), "sr": (5,)}
    np.testing.assert_array_equal(case.inputs["h"], h)


def test_a_model_without_batch_axis_takes_one_sample_per_run():
    (case,) = from_arrays({"x": np.ones((6, 10), np.float32)}, model(spec("x", shape=(10,)))).cases
    assert case.inputs["x"].shape == (6, 10)


def test_narrow_conversions_are_made_and_told():
    feeds = from_arrays({"x": np.ones((4, 3))}, ONE)
    assert feeds.cases[0].inputs["x"].dtype == np.float32
    assert "float64 values were converted to float32" in " ".join(feeds.notes)
    feeds = from_arrays({"x": np.ones((4, 3), np.uint8)}, ONE)
    assert feeds.cases[0].inputs["x"].dtype == np.float32
    feeds = from_arrays({"i": np.ones((4, 3), np.int64)}, model(spec("i", "int32")))
    assert feeds.cases[0].inputs["i"].dtype == np.int32


def test_plain_lists_are_taken():
    assert samples(from_arrays({"x": [[1.0, 2.0, 3.0]]}, ONE), "x").tolist() == [[1, 2, 3]]


def f32(*shape):
    return np.ones(shape, np.float32)


BAD = {
    "missing input": (TWO, {"x": f32(4, 3)}, "no array for input ids; the model takes x, ids, given was x"),
    "unknown input": (TWO, {"x": f32(4, 3), "ids": np.ones((4, 2), int), "z": f32(4)}, "name z, which is no input"),
    "nothing": (ONE, {}, "given was nothing"),
    "rank": (ONE, {"x": f32(4)}, r"takes shape \[N, 3\].*has shape \[4\]"),
    "rank too high": (ONE, {"x": f32(4, 1, 1, 3)}, r"has shape \[4, 1, 1, 3\]"),
    "layout": (model(spec("x", shape=(1, 3, 8, 8))), {"x": f32(2, 8, 8, 3)}, "source model's own layout"),
    "size": (ONE, {"x": f32(4, 5)}, r"has shape \[4, 5\]"),
    "scalar": (ONE, {"x": np.float32(1)}, "single number"),
    "zero rows": (ONE, {"x": f32(0, 3)}, "no rows"),
    "empty": (model(spec("x", shape=("N", None))), {"x": f32(4, 0)}, "is empty"),
    "float for int": (TOKENS, {"ids": f32(4, 2)}, "takes integer values.*floating-point"),
    "text for float": (ONE, {"x": np.array([["a", "b", "c"]])}, "floating-point values.*text"),
    "number for text": (model(spec("t", "str", ("N",))), {"t": f32(4)}, "text"),
    "int for bool": (model(spec("m", "bool", ("N",))), {"m": np.ones(4, int)}, "takes boolean"),
    "objects": (ONE, {"x": np.array([[None, 1, 2]])}, "object"),
    "NaN": (ONE, {"x": np.array([[1, 2, 3], [1, np.nan, 3]], np.float32)}, r"NaN at \[1, 1\]"),
    "id too large": (TWO, {"x": f32(4, 3), "ids": np.full((4, 2), 10)}, "integers from 0 to 9, the data hold 10"),
    "id negative": (TWO, {"x": f32(4, 3), "ids": np.full((4, 2), -1)}, "the data hold -1"),
    "one id negative": (TWO, {"x": f32(2, 3), "ids": np.array([[5, 5], [-2, 5]])}, "the data hold -2"),
    "one id too large": (TWO, {"x": f32(2, 3), "ids": np.array([[5, 5], [12, 0]])}, "the data hold 12"),
    "does not fit int8": (model(spec("i", "int8")), {"i": np.full((4, 3), 300)}, "from -128 to 127"),
    "does not fit float16": (model(spec("h", "float16")), {"h": np.full((4, 3), 1e6)}, "does not fit float16"),
    "lengths differ": (
        TWO,
        {"x": f32(4, 3), "ids": np.ones((5, 2), int)},
        "different numbers of samples .x: 4, ids: 5",
    ),
    "no multiple of the batch": (
        model(spec("x", shape=(4, 3))),
        {"x": f32(6, 3)},
        "batches of exactly 4.*give 4 samples",
    ),
    "fewer than a batch": (model(spec("x", shape=(4, 3))), {"x": f32(3, 3)}, "give 4 samples"),
    "runs do not share out": (
        model(spec("x"), spec("k", shape=())),
        {"x": f32(5, 3), "k": f32(2)},
        "cannot be shared out",
    ),
    "no inputs": (model(), {}, "no inputs"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_give_one_sentence(name):
    signature, arrays, says = BAD[name]
    with pytest.raises(UsageError, match=says) as caught:
        from_arrays(arrays, signature)
    assert "\n" not in str(caught.value)


def test_infinities_are_taken_since_masks_use_them():
    x = np.full((4, 3), -np.inf, np.float32)
    np.testing.assert_array_equal(samples(from_arrays({"x": x}, ONE), "x"), x)


def test_labels_must_count_the_samples():
    with pytest.raises(UsageError, match="3 labels for 4 samples"):
        from_arrays({"x": f32(4, 3)}, ONE, labels=np.arange(3))
    with pytest.raises(UsageError, match="at least 1"):
        from_arrays({"x": f32(4, 3)}, ONE, limit=0)


# Files


def test_npz_by_name_and_single_array_under_any_key(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.savez_compressed(tmp_path / "a.npz", whatever=x)
    np.testing.assert_array_equal(samples(load(tmp_path / "a.npz", ONE), "x"), x)
    np.savez(tmp_path / "b.npz", ids=np.ones((4, 2), np.int64), x=np.asfortranarray(x))
    feeds = load(tmp_path / "b.npz", TWO)
    np.testing.assert_array_equal(samples(feeds, "x"), x)
    assert list(feeds.cases[0].inputs) == ["x", "ids"], "in the model's order"
    assert feeds.origin.endswith("b.npz")


def test_npy_is_mapped_and_limited(tmp_path):
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.save(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(samples(load(tmp_path / "x.npy", ONE, limit=4), "x"), x[:4])
    with pytest.raises(UsageError, match=r"takes x, ids: give an \.npz"):
        load(tmp_path / "x.npy", TWO)


def test_peek_reads_one_sample(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=f32(4, 3), k=np.array(7))
    found = peek(tmp_path / "a.npz")
    assert found["x"].shape == (1, 3)
    assert found["k"] == 7
    np.save(tmp_path / "a.npy", f32(4, 3))
    assert peek(tmp_path / "a.npy")["input"].shape == (1, 3)


def _npz(path, name, data):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)


def _header(shape, descr="<f4"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _bomb(path):
    """A 100 MB entry of zeros that would be 8 EB if its header were believed, and one that is truly large but small on disk."""
    _npz(path, "x.npy", _header((1 << 58, 3)) + bytes(1000))


def _honest_bomb(path):
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as entry,
    ):
        entry.write(_header((60, 1 << 18)))
        for _ in range(60):
            entry.write(bytes(1 << 20))


BAD_FILES = {
    "missing": ("none.npz", lambda path: None, "no such file"),
    "empty": ("a.npz", lambda path: path.write_bytes(b""), "empty"),
    "text": ("a.npz", lambda path: path.write_text("hello"), "no readable .npz"),
    "truncated": (
        "a.npz",
        lambda path: (np.savez(path, x=f32(4, 3)), path.write_bytes(path.read_bytes()[:200])),
        "no readable .npz",
    ),
    "no arrays": ("a.npz", lambda path: _npz(path, "readme.txt", "hi"), "holds no arrays"),
    "no header": ("a.npz", lambda path: _npz(path, "x.npy", b"nonsense"), "no readable header"),
    "objects": ("a.npz", lambda path: np.savez(path, x=np.array([{}, {}])), "Python objects"),
    "header lies": ("a.npz", _bomb, "declares .* bytes, its entry holds"),
    "unknown suffix": ("a.pkl", lambda path: path.write_bytes(b"x"), r"inputs come as .npz, .npy, .csv, .jsonl"),
    "npy text": ("a.npy", lambda path: path.write_text("hello"), "no readable .npy"),
    "npy objects": ("a.npy", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "no readable .npy"),
    "jsonl": ("a.jsonl", lambda path: path.write_text('{"x": [1,2,3]}\n{'), ":2 is no JSON"),
    "jsonl keys": ("a.jsonl", lambda path: path.write_text('{"x": [1,2,3]}\n{"y": [1,2,3]}'), ":2 has other inputs"),
    "jsonl null": ("a.jsonl", lambda path: path.write_text('{"x": [1, null, 3]}'), "neither a number nor text"),
    "jsonl mixed": ("a.jsonl", lambda path: path.write_text('{"x": [1, "2", 3]}'), "neither a number nor text"),
    "jsonl ragged": ("a.jsonl", lambda path: path.write_text('{"x": [[1, 2], [3]]}'), "ragged"),
    "jsonl depth": ("a.jsonl", lambda path: path.write_text("[1,2,3]\n[[1,2,3]]"), "nested"),
    "jsonl blank": ("a.jsonl", lambda path: path.write_text("\n\n"), "no rows"),
    "too long": ("a.jsonl", lambda path: path.write_text("[1,2,3,4]"), "longer than"),
    "binary jsonl": ("a.jsonl", lambda path: path.write_bytes(b"\xff\xfe\x00"), "no readable text"),
    "csv words": (
        "a.csv",
        lambda path: path.write_text("width,height\n1,2\n"),
        "no number; the first line may be a header",
    ),
    "csv cells": ("a.csv", lambda path: path.write_text("x\n1 2 3\n1,2,3\n"), "row 3 has 3 cells"),
    "csv only header": ("a.csv", lambda path: path.write_text("x\n"), "no rows"),
    "csv nan": ("a.csv", lambda path: path.write_text("1,nan,3\n"), "NaN"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_give_one_sentence(tmp_path, name):
    file, write, says = BAD_FILES[name]
    write(tmp_path / file)
    with pytest.raises(UsageError, match=says) as caught:
        load(tmp_path / file, ONE)
    assert "\n" not in str(caught.value)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("trueport.feeds.arrays.MAX_BYTES", 32 << 20)
    _honest_bomb(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").stat().st_size < 1 << 20
    with pytest.raises(UsageError, match=r"more than .* GiB.*declares"):
        load(tmp_path / "a.npz", model(spec("x", shape=("N", 1 << 18))))


def test_jsonl_is_padded_where_the_shape_is_open(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"ids": [5, 6, 7]}\n\n{"ids": [8]}\n')
    feeds = load(path, TOKENS)
    assert samples(feeds, "ids").tolist() == [[5, 6, 7], [8, 0, 0]]
    assert "padded with 0" in " ".join(feeds.notes)
    feeds = load(path, model(spec("ids", "int64", ("N", 5))))
    assert samples(feeds, "ids").tolist() == [[5, 6, 7, 0, 0], [8, 0, 0, 0, 0]]


def test_jsonl_names_inputs_and_bare_lists_need_a_single_one(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"x": [1, 2, 3], "ids": [1, 2]}, {"ids": [3, 4], "x": [0.5, 0, 0]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    feeds = load(path, TWO)
    assert samples(feeds, "x").tolist() == [[1, 2, 3], [0.5, 0, 0]]
    assert samples(feeds, "ids").tolist() == [[1, 2], [3, 4]]
    path.write_text("[1, 2]")
    with pytest.raises(UsageError, match="takes several"):
        load(path, TWO)


def test_csv_of_ids_and_with_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("5,6,7\n8,9\n")
    assert samples(load(path, TOKENS), "ids").tolist() == [[5, 6, 7], [8, 9, 0]]
    path.write_text("ids,x\n1 2,1 2 3\n3 4,0.5 0 0\n")
    feeds = load(path, TWO)
    assert samples(feeds, "ids").tolist() == [[1, 2], [3, 4]]
    assert samples(feeds, "x")[1].tolist() == [0.5, 0, 0]
    path.write_text("k,x\n7,1 2 3\n8,4 5 6\n")
    feeds = load(path, model(spec("x"), spec("k", "int64", ("N",))))
    assert samples(feeds, "x").shape == (2, 3)
    assert np.concatenate([case.inputs["k"].ravel() for case in feeds.of_kind("data")]).tolist() == [7, 8]
    path.write_text("text\nthe film was good\nbad\n")
    feeds = load(path, model(spec("text", "str", ("N",))))
    assert [str(text) for case in feeds.of_kind("data") for text in case.inputs["text"].ravel()] == [
        "the film was good",
        "bad",
    ]


# Pictures and labels


@pytest.fixture
def pictures(tmp_path):
    """Twelve 8x6 pictures in two class folders; picture k is uniformly k."""
    folder = tmp_path / "pictures"
    for index in range(12):
        file = folder / ("cat" if index < 6 else "dog") / f"{index:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (index, 0, 100)).save(file)
    return folder


NHWC, NCHW = model(spec("x", shape=("N", 6, 8, 3))), model(spec("x", shape=("N", 3, 6, 8)))


def test_pictures_take_layout_and_size_from_the_model(pictures):
    feeds = load(pictures, NHWC)
    assert samples(feeds, "x").shape == (12, 6, 8, 3)
    assert samples(feeds, "x")[:, 0, 0, 0].tolist() == list(range(12))
    assert (samples(feeds, "x")[..., 2] == 100).all()
    assert "no preprocessing was described" in " ".join(feeds.notes)
    assert samples(load(pictures, NCHW), "x").shape == (12, 3, 6, 8)
    assert feeds.labels is None


def test_pictures_obey_a_description_in_every_form(pictures):
    expected = samples(load(pictures, NCHW, preprocess="size=6x8,scale=1/255,layout=NCHW"), "x")
    assert expected.max() == np.float32(100 / 255)
    (pictures / "preprocess.json").write_text('{"size": [6, 8], "scale": "1/255", "layout": "NCHW"}')
    np.testing.assert_array_equal(samples(load(pictures, NCHW), "x"), expected)
    (pictures / "preprocess.json").rename(pictures.parent / "p.json")
    np.testing.assert_array_equal(samples(load(pictures, NCHW, preprocess=pictures.parent / "p.json"), "x"), expected)
    np.testing.assert_array_equal(
        samples(load(pictures, NCHW, preprocess=str(pictures.parent / "p.json")), "x"), expected
    )


def test_a_limit_is_spread_over_the_folder_with_its_labels(pictures):
    feeds = load(pictures, NHWC, limit=4, labels=pictures)
    assert samples(feeds, "x")[:, 0, 0, 0].tolist() == [0, 3, 6, 9]
    assert feeds.labels.tolist() == [0, 0, 1, 1]
    assert spread(3, 10).tolist() == [0, 1, 2]


def test_classes_are_the_sub_folders_in_sorted_order(pictures):
    (pictures / ".cache").mkdir()
    (pictures / "about.txt").write_text("not a class")
    (pictures / "bird").mkdir()  # a class without a picture still has a number
    assert load_labels(pictures).tolist() == [1] * 6 + [2] * 6


def test_labels_csv_is_aligned_by_file_name(pictures):
    rows = [f"{index:02d}.png,{100 + index},name" for index in reversed(range(12))]
    (pictures / "labels.csv").write_text("file,label,name\n" + "\n".join(rows) + "\n")
    assert load(pictures, NHWC).labels.tolist() == list(range(100, 112))
    (pictures / "labels.csv").write_text("file,label\n00.png,1\n")
    with pytest.raises(UsageError, match=r"no label for cat/01.png \(11 of 12"):
        load(pictures, NHWC)


def test_label_files(tmp_path):
    (tmp_path / "a.txt").write_text("3\n1\n\n2\n")
    assert load_labels(tmp_path / "a.txt").tolist() == [3, 1, 2]
    np.save(tmp_path / "a.npy", np.array([1, 2], np.uint8))
    assert load_labels(tmp_path / "a.npy").tolist() == [1, 2]
    (tmp_path / "a.csv").write_text("label\n4\n5\n")
    assert load_labels(tmp_path / "a.csv").tolist() == [4, 5]
    np.save(tmp_path / "x.npy", f32(4, 3))
    assert load(tmp_path / "x.npy", ONE, labels=np.arange(4)).labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("a.txt", "1\ntwo\n", "a.txt:2: 'two' is no class number"),
        ("a.txt", "\n", "holds no labels"),
        ("a.csv", "name,class\nx,1\n", "columns file,label"),
        ("a.csv", "file,label\nx,cat\n", "a.csv:2: 'cat'"),
        ("a.csv", "", "columns file,label"),
        ("a.json", "[1]", "labels come as"),
        ("missing", None, "no such file"),
    ],
)
def test_bad_labels(tmp_path, file, text, says):
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(UsageError, match=says):
        load_labels(tmp_path / file)


def test_float_labels_and_loose_pictures_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(UsageError, match="row of integers"):
        load_labels(tmp_path / "a.npy")
    Image.new("RGB", (4, 4)).save(tmp_path / "loose.png")
    with pytest.raises(UsageError, match=r"loose\.png lies in no class folder"):
        load_labels(tmp_path)


BAD_PICTURES = {
    "none": (NHWC, {}, lambda folder: [item.unlink() for item in folder.rglob("*.png")], "holds no pictures"),
    "damaged": (NHWC, {}, lambda folder: (folder / "cat" / "03.png").write_text("x"), "03.png is no readable picture"),
    "two inputs": (TWO, {}, None, "one input; this one takes x, ids"),
    "vector": (ONE, {}, None, "takes no RGB or grey pictures"),
    "features": (model(spec("x", shape=("N", 64, 8, 8))), {}, None, "no channel axis"),
    "open sides": (model(spec("x", shape=("N", None, None, 3))), {}, None, "size=224x224"),
    "wrong layout": (NCHW, {"preprocess": "size=6x8"}, None, r"takes shape \[N, 3, 6, 8\]"),
    "sizes differ": (
        model(spec("x", shape=("N", None, None, 3))),
        {"preprocess": "scale=1"},
        lambda folder: Image.new("RGB", (9, 9)).save(folder / "dog" / "zz.png"),
        r"zz.png comes out as \[9, 9, 3\]",
    ),
    "labels": (NHWC, {"labels": np.arange(3)}, None, "3 labels for 12 pictures"),
    "fixed batch": (model(spec("x", shape=(16, 6, 8, 3))), {}, None, "batches of exactly 16"),
    "limit": (NHWC, {"limit": 0}, None, "at least 1"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures_give_one_sentence(pictures, name):
    signature, options, spoil, says = BAD_PICTURES[name]
    if spoil is not None:
        spoil(pictures)
    with pytest.raises(UsageError, match=says):
        load(pictures, signature, **options)


def test_huge_pictures_and_sets_are_refused(pictures, monkeypatch):
    monkeypatch.setattr("trueport.feeds.pictures.MAX_BYTES", 1000)
    with pytest.raises(UsageError, match="use fewer"):
        load(pictures, NHWC)
    monkeypatch.setattr("trueport.feeds.pictures.MAX_PIXELS", 10)
    with pytest.raises(UsageError, match="8x6 pixels"):
        load(pictures, NHWC)


def test_preprocessing_goes_with_pictures_only(tmp_path):
    np.save(tmp_path / "x.npy", f32(4, 3))
    with pytest.raises(UsageError, match="folder of pictures"):
        load(tmp_path / "x.npy", ONE, preprocess="scale=2")


def test_corpus_pictures(corpus):
    cifar = model(spec("x", shape=("N", 32, 32, 3)))
    feeds = load(corpus / "images" / "cifar10", cifar, limit=50)
    assert feeds.count == 50
    assert sorted(set(feeds.labels.tolist())) == list(range(10)), "every class is there"
    recipe = "size=224x224,short_side=256,crop=center,scale=1/255,mean=.485/.456/.406,std=.229/.224/.225,layout=NCHW"
    feeds = load(corpus / "images" / "imagenet", model(spec("x", shape=(1, 3, 224, 224))), preprocess=recipe, limit=3)
    assert feeds.cases[0].inputs["x"].shape == (3, 1, 3, 224, 224)
    assert -3 < feeds.cases[0].inputs["x"].min() < 0 < feeds.cases[0].inputs["x"].max() < 3
