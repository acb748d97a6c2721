"""Feeds kept for replay, moved by one ulp, and cut to what two models share."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trueport.artifact import Signature, TensorSpec
from trueport.errors import UsageError
from trueport.feeds import Case, Feeds, from_arrays, generate, jitter, open_saved, restrict, save


def model(*shapes, dtype="float32", names="xyz"):
    inputs = [TensorSpec(name=name, dtype=dtype, shape=shape) for name, shape in zip(names, shapes, strict=False)]
    return Signature(inputs=tuple(inputs), outputs=())


def one_case(array, name="data", kind="data"):
    return Feeds.of([Case(name=name, kind=kind, inputs={"x": array})], origin="test", count=len(array))


ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int8, np.bool_, np.complex64, np.dtype("U5")]),
    hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ARRAYS, min_size=1, max_size=3), st.booleans())
def test_saved_feeds_come_back_bit_for_bit(tmp_path_factory, arrays, labelled):
    folder = tmp_path_factory.mktemp("feeds") / "kept"
    cases = [Case(name=f"c{i}/ü", kind="data", inputs={"a:0": array, "b": array}) for i, array in enumerate(arrays)]
    labels = np.arange(3) if labelled else None
    feeds = Feeds.of(cases, origin="ünï", count=3, seed=5, labels=labels, notes=["one"])
    back = open_saved(save(feeds, folder))
    assert (back.origin, back.seed, back.count, back.sha256, back.notes) == ("ünï", 5, 3, feeds.sha256, ("one",))
    assert (back.labels is None) == (labels is None)
    for ours, theirs in zip(feeds.cases, back.cases, strict=True):
        assert (ours.name, ours.kind, list(ours.inputs)) == (theirs.name, theirs.kind, list(theirs.inputs))
        for name in ours.inputs:
            assert ours.inputs[name].dtype == theirs.inputs[name].dtype
            assert ours.inputs[name].shape == theirs.inputs[name].shape
            assert ours.inputs[name].tobytes() == theirs.inputs[name].tobytes()


def test_digest_sees_every_byte_shape_and_name_but_no_memory_layout():
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    digests = {
        one_case(base).sha256,
        one_case(base + 1).sha256,
        one_case(base.reshape(2, 4, 3)).sha256,
        one_case(base.astype(np.float64)).sha256,
        one_case(base, name="other").sha256,
        one_case(base, kind="probe").sha256,
    }
    assert len(digests) == 6
    assert one_case(np.asfortranarray(base)).sha256 == one_case(base.astype(">f4")).sha256 == one_case(base).sha256


def test_feeds_refuse_what_could_not_be_run():
    x = np.zeros((2, 1))
    with pytest.raises(ValueError, match="share a name"):
        Feeds.of([Case(name="a", kind="data", inputs={"x": x})] * 2, origin="", count=1)
    with pytest.raises(ValueError, match="number of runs"):
        Feeds.of([Case(name="a", kind="data", inputs={"x": x, "y": x[:1]})], origin="", count=1)


def test_saving_replaces_saved_feeds_and_nothing_else(tmp_path):
    folder = tmp_path / "deep" / "kept"
    first, second = one_case(np.zeros((2, 3))), one_case(np.ones((2, 3)))
    save(first, folder)
    save(second, folder)
    assert open_saved(folder).sha256 == second.sha256
    assert [item.name for item in folder.parent.iterdir()] == ["kept"], "no partial folder is left"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo").write_text("precious")
    with pytest.raises(UsageError, match="something else"):
        save(first, tmp_path / "mine")
    assert (tmp_path / "mine" / "photo").read_text() == "precious"


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="no space"):
        save(one_case(np.zeros((1, 1))), tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def _edit(folder, **changes):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | changes))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "index.json").unlink(), "no saved inputs"),
        (lambda folder: (folder / "index.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "index.json").write_text("[]"), "format"),
        (lambda folder: _edit(folder, format="trueport/feeds/9"), "trueport/feeds/9"),
        (lambda folder: _edit(folder, cases=None), "damaged"),
        (lambda folder: (folder / "00000.npy").unlink(), "damaged"),
        (lambda folder: (folder / "00000.npy").write_bytes(b"\x93NUMPY"), "damaged"),
        (lambda folder: np.save(folder / "00000.npy", np.ones((2, 3))), "changed"),
        (
            lambda folder: _edit(folder, cases=[{"name": "a", "kind": "data", "inputs": {"x": "../../secret.npy"}}]),
            "plain file name",
        ),
    ],
)
def test_damaged_folders_are_refused(tmp_path, damage, says):
    folder = save(one_case(np.zeros((2, 3))), tmp_path / "kept")
    damage(folder)
    with pytest.raises(UsageError, match=says):
        open_saved(folder)


# Jitter


FLOATS = st.one_of(
    hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats()),
    hnp.arrays(np.float16, st.integers(1, 30), elements=st.floats(width=16)),
)


@settings(max_examples=80, deadline=None)
@given(FLOATS, st.integers(0, 1000))
def test_every_finite_float_moves_by_exactly_one_ulp(values, seed):
    moved = jitter(one_case(values), seed).cases[0].inputs["x"]
    assert moved.dtype == values.dtype
    finite = np.isfinite(values)
    np.testing.assert_array_equal(moved[~finite], values[~finite])
    assert np.isfinite(moved[finite]).all()
    with np.errstate(over="ignore"):
        up, down = np.nextafter(values, np.inf, dtype=values.dtype), np.nextafter(values, -np.inf, dtype=values.dtype)
    assert ((moved == up) | (moved == down))[finite].all()
    assert (moved != values)[finite].all()


def test_jitter_goes_both_ways_and_leaves_integers_alone():
    feeds = generate(
        Signature(
            inputs=(
                TensorSpec(name="x", dtype="float32", shape=(1, 50)),
                TensorSpec(name="i", dtype="int64", shape=(1, 5)),
            ),
            outputs=(),
        ),
        seed=0,
    )
    moved = jitter(feeds, 1)
    assert moved.sha256 != feeds.sha256
    for ours, theirs in zip(feeds.cases, moved.cases, strict=True):
        np.testing.assert_array_equal(ours.inputs["i"], theirs.inputs["i"])
    up = moved.cases[0].inputs["x"] > feeds.cases[0].inputs["x"]
    assert 0.4 < up.mean() < 0.6
    assert jitter(feeds, 1).sha256 == moved.sha256
    assert jitter(feeds, 2).sha256 != moved.sha256


def test_nothing_to_move_gives_none():
    assert jitter(one_case(np.zeros((2, 3), np.int64)), 0) is None


# Restrict


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.booleans())
def test_restrict_never_loses_a_sample(samples, batch, labelled):
    x = np.arange(samples, dtype=np.float32).reshape(samples, 1)
    feeds = from_arrays({"x": x}, model(("N", 1)), labels=np.arange(samples) if labelled else None)
    common = restrict(feeds, model(("N", 1)), model((batch, 1)))
    (data,) = common.of_kind("data")
    assert data.inputs["x"].shape[1:] == (batch, 1)
    flat = data.inputs["x"].ravel()
    np.testing.assert_array_equal(flat[:samples], np.arange(samples))
    assert set(flat) == set(range(samples)), "filled up with real samples only"
    assert len(flat) - samples < batch
    assert common.count == len(flat)
    if labelled:
        np.testing.assert_array_equal(common.labels, flat)


def test_restrict_leaves_equal_models_alone():
    feeds = generate(model(("N", 3, 8, 8)), seed=0)
    common = restrict(feeds, model(("N", 3, 8, 8)), model(("M", 3, 8, 8)))
    assert common.cases == feeds.cases
    assert (common.sha256, common.notes) == (feeds.sha256, feeds.notes)


def test_a_target_that_lost_the_dynamic_batch_gets_no_batch_case_and_says_so():
    feeds = generate(model(("N", 3, 8, 8)), seed=0)
    common = restrict(feeds, model(("N", 3, 8, 8)), model((1, 8, 8, 3)))
    assert not common.of_kind("batch")
    assert "the target has lost the dynamic batch" in common.notes
    assert [case.name for case in common.of_kind("data", "probe")] == [
        case.name for case in feeds.of_kind("data", "probe")
    ]


def test_restrict_follows_a_permuted_layout():
    feeds = generate(model(("N", 3, 8, 8)), seed=0, batch=3)
    common = restrict(feeds, model(("N", 3, 8, 8)), model((4, 8, 8, 3)))
    assert {case.inputs["x"].shape[1:] for case in common.cases} == {(4, 3, 8, 8)}


def test_states_are_regrouped_along_their_own_batch_axis():
    source = model(("N", 2), (3, "N", 1))
    x, h = np.arange(16.0, dtype=np.float32).reshape(1, 8, 2), np.arange(24.0, dtype=np.float32).reshape(1, 3, 8, 1)
    feeds = Feeds.of([Case(name="data", kind="data", inputs={"x": x, "y": h})], origin="", count=8)
    (data,) = restrict(feeds, source, model((2, 2), (3, 2, 1))).cases
    assert data.inputs["x"].shape == (4, 2, 2)
    assert data.inputs["y"].shape == (4, 3, 2, 1)
    np.testing.assert_array_equal(data.inputs["y"][1, :, :, 0], h[0, :, 2:4, 0])


def test_runs_that_disagree_in_a_shared_input_are_not_merged():
    source = model(("N", 2), ())
    inputs = {"x": np.zeros((2, 1, 2), np.float32), "y": np.array([1.0, 2.0], np.float32)}
    feeds = Feeds.of([Case(name="data", kind="data", inputs=inputs)], origin="", count=2)
    common = restrict(feeds, source, model((2, 2), ()))
    assert common.cases == ()
    assert "left out" in " ".join(common.notes)


def test_impossible_sizes_leave_no_case():
    feeds = generate(model((1, 3, 8, 8)), seed=0)
    assert restrict(feeds, model((1, 3, 8, 8)), model((4, 3, 8, 8))).cases == ()
    other = restrict(generate(model(("N", "s")), seed=0), model(("N", "s")), model(("N", 7)))
    assert other.cases == ()
    assert "left out" in " ".join(other.notes)


def test_labels_go_with_samples_that_are_left_out_and_stay_otherwise():
    source, wide = model(("N", "s")), np.zeros((2, 3, 5), np.float32)
    cases = [
        Case(name="data", kind="data", inputs={"x": wide}),
        Case(name="more", kind="data", inputs={"x": wide[..., :2]}),
    ]
    feeds = Feeds.of(cases, origin="", count=12, labels=np.arange(12))
    common = restrict(feeds, source, model((3, 5)))
    assert [case.name for case in common.cases] == ["data"]
    assert common.labels is None
    assert "labels were dropped" in " ".join(common.notes)
    kept = restrict(replace(feeds, cases=tuple(cases[:1]), labels=np.arange(6)), source, model((3, 5)))
    assert kept.labels.tolist() == list(range(6))
