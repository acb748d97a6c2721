"""Nothing compared, or not the same thing compared, is never FAITHFUL. One row per way to be fooled."""

from __future__ import annotations

import numpy as np
import pytest
from compare_cases import KINDS, Trial, clean, copy, floors_of, one, signature

from trueport.compare.types import Verdict
from trueport.outcome import Failure, Kind, Stage

D, I = Verdict.DEVIATES, Verdict.INCOMPARABLE  # noqa: E741


def failure(kind=Kind.RAISED):
    return Failure(stage=Stage.RUN, kind=kind, message="the tool says no")


def data(shape=(5, 2, 6), seed=3, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def edited(edit, trial=None):
    """A clean trial whose target runs were edited."""
    trial = trial or clean()
    target = copy(trial.target)
    edit(target)
    return trial.but(target=target)


def put(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def swap(target):
    for outputs in target.values():
        outputs["scores"], outputs["scores2"] = outputs["scores2"], outputs["scores"]


def two_alike():
    """A clean trial with a second output of the same shape."""
    trial = clean()
    source, target = copy(trial.source), copy(trial.target)
    for number, case in enumerate(source):
        extra = data(source[case]["scores"].shape, seed=50 + number)
        source[case]["scores2"], target[case]["scores2"] = extra, extra.copy()
    return trial.but(source=source, target=target, floors=floors_of(source))


def rename(target, **names):
    for outputs in target.values():
        for old, new in names.items():
            outputs[new] = outputs.pop(old)


def drop_everywhere(name):
    return lambda target: [outputs.pop(name) for outputs in target.values()]


def add_extra(target):
    for outputs in target.values():
        outputs["extra"] = outputs["scores"].copy()


def nothing(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


X = data()
INTEGERS = np.random.default_rng(1).integers(0, 9, (5, 2, 6))
BOOLS = INTEGERS > 4
TEXTS = np.array([["cat", "dog"], ["dog", "cat"], ["cow", "cat"]])

ROWS = [
    # what happens, trial, verdict, words that the reason holds
    ("output missing everywhere", edited(drop_everywhere("features")), D, "features"),
    ("output missing, still in the signature", edited(drop_everywhere("features")).but(target_signature=signature(scores=None, features=None)), D, "gives no output 'features'"),
    ("output missing in one case", edited(lambda t: t["batch-3"].pop("scores")), D, "batch-3"),
    ("output missing in the source's runs", one(X, X).but(source={"data": {}}, source_signature=signature(y=None)), I, "source gives no output 'y'"),
    ("extra output", edited(add_extra), D, "extra"),
    ("extra output in one case", edited(lambda t: t["data"].update(extra=X)), D, "extra"),
    ("one of two outputs renamed, undeclared", edited(lambda t: rename(t, scores="renamed")), I, "renamed"),
    ("outputs swapped, names intact", edited(swap, two_alike()), D, "another order"),
    ("outputs of unequal shape swapped", edited(lambda t: [o.update(scores=o["features"], features=o["scores"]) for o in t.values()]), D, "another order"),
    ("all renamed and in another order", edited(lambda t: (swap(t), rename(t, scores="a", scores2="b", features="c")), two_alike()).but(target_signature=signature(a=None, c=None, b=None), source_signature=signature(scores=None, features=None, scores2=None)), D, "another order"),
    ("all renamed, shapes do not fit by position", edited(lambda t: rename(t, scores="b", features="a")).but(target_signature=signature(a=None, b=None)), I, "without a partner"),
    ("int against float", one(X, INTEGERS), D, "dtype kind"),
    ("float against int of equal values", one(INTEGERS.astype(np.float32), INTEGERS), D, "dtype kind"),
    ("bool against int8 zero and one", one(BOOLS, BOOLS.astype(np.int8)), D, "dtype kind"),
    ("bool against uint8", one(BOOLS.astype(np.uint8), BOOLS), D, "dtype kind"),
    ("bool outputs that differ", one(BOOLS, put(BOOLS, (0, 0, 0), not BOOLS[0, 0, 0])), D, "1 of 60 values differ"),
    ("integers that differ", one(INTEGERS, put(INTEGERS, (4, 1, 5), 99)), D, "1 of 60 values differ"),
    ("large integers that float64 cannot tell apart", one(put(INTEGERS, (0, 0, 0), 2**62), put(INTEGERS, (0, 0, 0), 2**62 + 1)), D, "1 of 60"),
    ("texts that differ", one(TEXTS, put(TEXTS, (0, 0), "cow")), D, "1 of 6 values differ"),
    ("complex against float", one(X.astype(np.complex64), X), D, "dtype kind"),
    ("undeclared float16", one(X, X.astype(np.float16)), D, "float16 was not declared"),
    ("float16 under declared int8", one(X, X.astype(np.float16), declared="int8"), D, "float16 was not declared"),
    ("float16 overflow", one(put(X, (0, 0, 0), 1e5), put(X, (0, 0, 0), 1e5).clip(-2e5, 2e5).astype(np.float64).astype(np.float32)).but(target={"data": {"y": np.where(np.abs(put(X, (0, 0, 0), 1e5)) > 65504, np.inf, X).astype(np.float16)}}, declared="float16"), D, "NaN or infinite in the target"),
    ("empty arrays on both sides", one(nothing(3, 0), nothing(3, 0)), I, "no element"),
    ("zero runs", one(nothing(0, 2, 6), nothing(0, 2, 6)), I, "0 runs"),
    ("zero rows", one(nothing(3, 0, 6), nothing(3, 0, 6)), I, "no element"),
    ("no run axis at all", one(np.float32(1.0).reshape(()), np.float32(1.0).reshape(())), I, "0 runs"),
    ("no runs in a list", one([], []), I, "0 runs"),
    ("fewer runs", one(X, X[:3]), I, "5 runs of the source against 3"),
    ("NaN everywhere on both sides", one(X * np.nan, X * np.nan), I, "NaN or infinite"),
    ("infinite everywhere on both sides", one(X * 0 + np.inf, X * 0 + np.inf), I, "NaN or infinite"),
    ("NaN in most elements on both sides", one(np.where(X < 1, np.nan, X), np.where(X < 1, np.nan, X)), I, "NaN or infinite"),
    ("NaN in the source everywhere", one(X * np.nan, X), I, "source itself"),
    ("NaN in one element of the source", one(put(X, (2, 0, 1), np.nan), X), D, "something else in the target"),
    ("NaN in one element of the target", one(X, put(X, (2, 0, 1), np.nan)), D, "first at [2, 0, 1]"),
    ("infinity in one element of the target", one(X, put(X, (0, 0, 1), np.inf)), D, "NaN or infinite in the target"),
    ("infinities of different sign", one(put(X, (0, 0, 1), np.inf), put(X, (0, 0, 1), -np.inf)), D, "something else"),
    ("infinity for NaN", one(put(X, (0, 0, 1), np.nan), put(X, (0, 0, 1), np.inf)), D, "something else"),
    ("NaN at another place", one(put(X, (0, 0, 1), np.nan), put(X, (0, 0, 2), np.nan)), D, "NaN or infinite"),
    ("new NaN in a probe", edited(lambda t: t["probe-zeros"]["scores"].__setitem__((0, 0, 0), np.nan)), D, "probe-zeros"),
    ("broadcastable: [1, 6] against [6]", one(X[:, :1], X[:, 0]), D, "shape [1, 6] in the source, [6] in the target"),
    ("broadcastable: batch 1 against 2", one(X[:, :1], X), D, "shape [1, 6] in the source, [2, 6]"),
    ("broadcastable: a scalar", one(X, X[:, :1, :1]), D, "shape [2, 6] in the source, [1, 1]"),
    ("same elements, other shape", one(X, X.reshape(5, 6, 2)[:, :, ::1].reshape(5, 3, 4)), D, "shape [2, 6]"),
    ("flattened", one(X, X.reshape(5, 12)), D, "shape [2, 6] in the source, [12]"),
    ("transposed as no layout would be", one(data((5, 2, 3, 4)), data((5, 2, 3, 4)).transpose(0, 3, 2, 1)), D, "shape"),
    ("transposed and square: identity is possible", one(data((5, 1, 4, 4, 4)), data((5, 1, 4, 4, 4)).transpose(0, 1, 3, 4, 2)), D, "times the noise floor"),
    ("ragged runs of unequal shape", one([X[0], X[1, :1]], [X[0], X[1, :1, :5]]), D, "run 1: shape [1, 6] in the source, [1, 5]"),
    ("constant output for a varying source", one(X, np.broadcast_to(X[:1, :1], X.shape).copy()), D, "same for every input"),
    ("varying output for a constant source", one(np.ones_like(X), 1 + X), D, "the source gives the same for every input"),
    ("constant on both sides", one(np.ones_like(X), np.ones_like(X)), I, "ignores its inputs"),
    ("all-zero twins", one(np.zeros_like(X), np.zeros_like(X)), I, "ignores its inputs"),
    ("constant integers on both sides", one(INTEGERS * 0, INTEGERS * 0), I, "ignores its inputs"),
    ("varying less than the noise", one((1000 + 1e-4 * X.astype(np.float64)).astype(np.float32), np.full_like(X, 1000), floor=1.0), I, "ignores its inputs"),
    ("a single sample", one(X[:1, :1], X[:1, :1]), I, "at least two"),
    ("missing data case", edited(lambda t: t.pop("data")), I, "not run on case 'data'"),
    ("missing batch case", edited(lambda t: t.pop("batch-3")), I, "not run on case 'batch-3'"),
    ("no cases at all", clean().but(kinds={}), I, "nothing was compared"),
    ("only probes", clean().but(kinds={"probe-zeros": "probe"}), I, "no case with representative inputs"),
    ("target fails on data", edited(lambda t: t.update(data=failure())), D, "the tool says no"),
    ("target fails on another batch size", edited(lambda t: t.update({"batch-3": failure()})), D, "batch size may be baked in"),
    ("target fails on a probe", edited(lambda t: t.update({"probe-zeros": failure(Kind.CRASHED)})), D, "crashed"),
    ("target's toolchain is not to be had", edited(lambda t: t.update(data=failure(Kind.UNAVAILABLE))), I, "unavailable"),
    ("target times out", edited(lambda t: t.update(data=failure(Kind.TIMED_OUT))), I, "timed-out"),
    ("source fails on data", clean().but(source=dict(clean().source, data=failure())), I, "source's case 'data' failed"),
    ("source fails on everything", clean().but(source=dict.fromkeys(KINDS, failure()), source_signature=signature(scores=None, features=None)), I, "nothing was compared"),
    ("both fail on everything", clean().but(source=dict.fromkeys(KINDS, failure()), target=dict.fromkeys(KINDS, failure())), I, "nothing"),
    ("no outputs on either side", Trial(source={"data": {}}, target={"data": {}}, kinds={"data": "data"}), I, "neither model has an output"),
    ("nothing ran on either side", Trial(source={}, target={}), I, "nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("trial", "verdict", "words"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_never_faithful(trial, verdict, words):
    result = trial.run()
    assert result.verdict is verdict, result.reason
    assert words in result.reason


def test_the_unedited_trials_are_faithful():
    """Without this, the rows above would pass with a comparison that never says FAITHFUL."""
    for trial in (clean(), two_alike(), one(X, X), one(INTEGERS, INTEGERS), one(BOOLS, BOOLS), one(TEXTS, TEXTS)):
        result = trial.run()
        assert result.verdict is Verdict.FAITHFUL, result.reason


HARMLESS = [
    ("names swapped along with the outputs", edited(lambda t: t.update({c: dict(reversed(o.items())) for c, o in t.items()}), two_alike())),
    ("all renamed, order intact", edited(lambda t: rename(t, scores="StatefulPartitionedCall:0", features="StatefulPartitionedCall:1")).but(target_signature=signature(**{"StatefulPartitionedCall:0": None, "StatefulPartitionedCall:1": None}))),
    ("renamed, and declared", edited(lambda t: rename(t, scores="a")).but(renames={"scores": "a"})),
    ("only output, renamed", one(X, X).but(target={"data": {"z": X}})),
    ("one constant output among varying ones", edited(lambda t: None, clean()).but(source={c: dict(o, k=np.full((len(o["scores"]), 1), 7.0, np.float32)) for c, o in clean().source.items()}, target={c: dict(o, k=np.full((len(o["scores"]), 1), 7.0, np.float32)) for c, o in clean().target.items()})),
    ("equal infinities at equal places", one(np.where(X > 1.5, -np.inf, X), np.where(X > 1.5, -np.inf, X))),
    ("a few NaN at equal places", one(np.where(X > 1.5, np.nan, X), np.where(X > 1.5, np.nan, X))),
    ("int64 against int32 of equal values", one(INTEGERS.astype(np.int64), INTEGERS.astype(np.int32))),
    ("float64 against float32", one(X.astype(np.float64) * (1 + 1e-8), X, floor=1e-15)),
    ("declared layout", one(data((5, 1, 3, 4, 5)), data((5, 1, 3, 4, 5)).transpose(0, 1, 3, 4, 2)).but(layout={"y": {"source": "y", "permutation": [0, 2, 3, 1]}})),
    ("layout forced by shapes", one(data((5, 1, 3, 4, 5)), data((5, 1, 3, 4, 5)).transpose(0, 1, 3, 4, 2))),
    ("layout forced by shapes, rank 3", one(data((5, 1, 3, 4)), data((5, 1, 3, 4)).transpose(0, 1, 3, 2))),
    ("scalars, one per run", one(data((6,)), data((6,))).but(source_signature=signature(y=()))),
    ("ragged runs", one([X[0], X[1, :1], X[2]], [X[0], X[1, :1], X[2]])),
    ("complex numbers", one((X + 1j * X[::-1]).astype(np.complex64), (X + 1j * X[::-1]).astype(np.complex64))),
    ("empty in one case, as other runs are not", one([X[0], X[1, :0]], [X[0], X[1, :0]])),
    ("source fails on a probe", clean().but(source=dict(clean().source, **{"probe-zeros": failure()}))),
    ("NaN at equal places in a probe", edited(lambda t: t["probe-zeros"]["scores"].__setitem__((0, 0), np.nan)).but(source=dict(clean().source, **{"probe-zeros": {n: put(v, (0, 0), np.nan) if n == "scores" else v for n, v in clean().source["probe-zeros"].items()}}))),
]  # fmt: skip


@pytest.mark.parametrize("trial", [row[1] for row in HARMLESS], ids=[row[0] for row in HARMLESS])
def test_harmless_differences_are_no_false_alarm(trial):
    result = trial.run()
    assert result.verdict is Verdict.FAITHFUL, result.reason


def test_notes_tell_what_was_tolerated():
    notes = dict(zip([row[0] for row in HARMLESS], [" ".join(row[1].run().notes) for row in HARMLESS], strict=True))
    assert "paired by position" in notes["all renamed, order intact"]
    assert "not finite" in notes["a few NaN at equal places"]
    assert "int64 in the source, int32 in the target" in notes["int64 against int32 of equal values"]
    assert "narrower type" in notes["float64 against float32"]
    assert "another layout" in notes["layout forced by shapes"]
    assert "skipped" in notes["source fails on a probe"]
    assert "does not depend on these inputs" in notes["one constant output among varying ones"]
