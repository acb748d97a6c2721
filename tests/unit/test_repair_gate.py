"""The gate of a repair: which inputs the search does not see, what counts as nearer, and which edits are needed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from pipeline_models import write, write_changed

from trueport import api, feeds, verification
from trueport.artifact import Artifact, Signature, TensorSpec
from trueport.compare.types import Verdict
from trueport.errors import UsageError
from trueport.feeds import Case, Feeds, from_arrays
from trueport.frameworks import fake
from trueport.outcome import Ok
from trueport.repairs import editing, gate
from trueport.repairs.gate import FEW, UNSEEN, Gate, badness, fell, split
from trueport.repairs.types import Edit
from trueport.session import Session, Settings


def signature(*shape):
    x = TensorSpec(name="x", dtype="float32", shape=shape)
    return Signature(inputs=(x,), outputs=(TensorSpec(name="y", dtype="float32", shape=(shape[0], 4)),))


OPEN = signature("batch", 3)


def counted(samples, width=3):
    """Samples whose first number is their place."""
    array = np.random.default_rng(1).normal(size=(samples, width)).astype(np.float32)
    array[:, 0] = np.arange(samples)
    return array


def places(given):
    """The places of the samples of the data cases, in the order in which labels go."""
    return [int(place) for case in given.of_kind("data") for place in case.inputs["x"][..., 0].ravel()]


# -- the halves -----------------------------------------------------------------------------------------------------------


def test_generated_inputs_are_held_out_by_another_seed():
    given = feeds.generate(OPEN, seed=3)
    ours, unseen = split(given, OPEN)
    assert ours is given
    assert unseen.sha256 == feeds.generate(OPEN, seed=3 + UNSEEN).sha256 != given.sha256


@pytest.mark.parametrize("samples", [4, 5, 8, 13, 35, 64, 100])
def test_the_users_samples_are_shared_out_with_their_labels(samples):
    given = from_arrays({"x": counted(samples)}, OPEN, origin="mine.npz", labels=np.arange(samples))
    halves = split(given, OPEN)
    assert sorted(places(halves[0]) + places(halves[1])) == list(range(samples))
    for half in halves:
        assert places(half)
        assert half.count == len(places(half))
        assert half.labels.tolist() == places(half)
    assert abs(halves[0].count - halves[1].count) <= samples // 3 + 1
    assert [half.origin for half in halves] == ["mine.npz (first half)", "mine.npz (other half)"]


def test_a_fixed_batch_keeps_the_labels_of_its_samples_together():
    known = signature(4, 3)
    given = from_arrays({"x": counted(20)}, known, labels=np.arange(20))
    ours, unseen = split(given, known)
    assert ours.labels.tolist() == places(ours) == [*range(4), *range(8, 12), *range(16, 20)]
    assert unseen.labels.tolist() == places(unseen) == [*range(4, 8), *range(12, 16)]
    assert (ours.count, unseen.count) == (12, 8)


def test_data_given_by_runs_have_a_label_for_each_run():
    known = signature(4, 3)
    given = from_arrays({"x": counted(20).reshape(5, 4, 3)}, known, labels=np.arange(5))
    ours, unseen = split(given, known)
    assert ours.labels.tolist() == [0, 2, 4]
    assert unseen.labels.tolist() == [1, 3]
    assert (ours.count, unseen.count) == (3, 2)


def test_the_held_out_samples_are_not_those_of_the_search():
    given = from_arrays({"x": counted(35)}, OPEN)
    ours, unseen = split(given, OPEN)
    assert not set(places(ours)) & set(places(unseen))
    assert not unseen.of_kind("batch"), "a case that repeats samples of the search would be none that it never saw"
    assert ours.of_kind("batch")


def test_labels_that_belong_to_no_sample_are_left_out():
    data = [Case(name="data", kind="data", inputs={"x": counted(6).reshape(6, 1, 3)})]
    given = Feeds.of(data, origin="odd", count=6, labels=np.arange(4))
    assert [half.labels for half in split(given, OPEN)] == [None, None]


@pytest.mark.parametrize("samples", [2, 3])
def test_of_few_samples_none_is_held_out_and_a_note_says_so(samples):
    """A half of one run could never be told faithful."""
    given = from_arrays({"x": counted(samples)}, OPEN, origin="mine.npz", labels=np.arange(samples))
    ours, unseen = split(given, OPEN)
    assert ours is given
    assert unseen.origin.startswith("generated")
    assert unseen.notes[-1].startswith(FEW)
    assert unseen.sha256 == feeds.generate(OPEN, seed=given.seed + UNSEEN).sha256


def test_a_single_sample_is_joined_by_generated_ones():
    given = from_arrays({"x": counted(1)}, OPEN, origin="mine.npz", seed=5, labels=np.arange(1))
    ours, unseen = split(given, OPEN)
    (own,) = [case for case in ours.cases if case.name == "given data"]
    assert np.array_equal(own.inputs["x"], given.cases[0].inputs["x"])
    assert own.kind == "data"
    generated = feeds.generate(OPEN, seed=5)
    assert [case.name for case in ours.cases if case is not own] == [case.name for case in generated.cases]
    assert (ours.labels, ours.count) == (None, 1 + generated.count)
    assert ours.notes[-1].startswith(FEW)
    assert unseen.sha256 == feeds.generate(OPEN, seed=5 + UNSEEN).sha256


@pytest.mark.parametrize("samples", [1, 3])
def test_too_few_samples_of_what_cannot_be_generated_are_refused_with_the_cure(samples):
    x = TensorSpec(name="x", dtype="float32", shape=None)
    data = [Case(name="data", kind="data", inputs={"x": counted(samples).reshape(samples, 1, 3)})]
    given = Feeds.of(data, origin="mine.npz", count=samples)
    with pytest.raises(UsageError, match="give at least 4 different inputs"):
        split(given, Signature(inputs=(x,), outputs=()))


# -- nearer or not ----------------------------------------------------------------------------------------------------------


def judged(verdict, *ratios, lost=(), spoilt=0):
    outputs = [SimpleNamespace(ratio=ratio, target_nonfinite=spoilt, source_nonfinite=0) for ratio in ratios]
    comparison = SimpleNamespace(outputs=outputs, unpaired_source=lost)
    return badness(SimpleNamespace(comparison=comparison, verdict=verdict))


LADDER = [
    judged(Verdict.FAITHFUL, 0.2),
    judged(Verdict.FAITHFUL, 3.0),
    judged(Verdict.DEVIATES, 5.0, 2.0),
    judged(Verdict.DEVIATES, 1.0, 50.0),
    judged(Verdict.DEVIATES, 7.0, math.nan),
    judged(Verdict.DEVIATES, 5.0, lost=("y",)),
    judged(Verdict.DEVIATES, 5.0, 6.0, spoilt=1),
    judged(Verdict.FLAKY, 2.0),
    judged(Verdict.INCOMPARABLE, 2.0),
    judged(Verdict.INCOMPARABLE),
]
"""From the best to the worst."""


def test_a_worse_target_is_worse():
    assert sorted(LADDER) == LADDER
    assert len(set(LADDER)) == len(LADDER)
    assert LADDER[-1][2] == math.inf


@pytest.mark.parametrize("place", range(len(LADDER) - 1))
def test_every_step_down_the_ladder_falls_and_none_up(place):
    assert fell(LADDER[place + 1], LADDER[place])
    assert not fell(LADDER[place], LADDER[place + 1])
    assert not fell(LADDER[place], LADDER[place])


def test_a_deviation_has_to_fall_clearly():
    before = judged(Verdict.DEVIATES, 100.0)
    assert not fell(before, judged(Verdict.DEVIATES, 95.0))
    assert fell(before, judged(Verdict.DEVIATES, 80.0))
    assert not fell(judged(Verdict.DEVIATES, math.inf), judged(Verdict.DEVIATES, math.inf))
    assert fell(judged(Verdict.DEVIATES, math.inf), judged(Verdict.DEVIATES, 80.0))


# -- what is needed ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=60)) as session:
        yield session


def doubled(model, *names):
    """Change constants, so that the target is wrong there."""
    for name in names:
        item = model["constants"][name]
        item["data"] = (2 * np.array(item["data"]) + 0.5).tolist()


@pytest.fixture
def gated(session, tmp_path):
    """gated(constants) -> a gate in front of a target that is wrong in them."""

    def make(*names, **options):
        def change(model):
            doubled(model, *names)
            model.update(options)

        source = Artifact.open(write(tmp_path / "source.fake"))
        target = Artifact.open(write_changed(tmp_path / "target.fake", change))
        reference = verification.reference(session, source).value
        ours, unseen = split(api.open_feeds(session, source, None), reference.signature)
        return Gate(reference=reference, target=target, given=ours, unseen=unseen)

    return make


RIGHT = {name: np.array(item["data"], item["dtype"]) for name, item in fake.network(seed=1)["constants"].items()}
READERS = {"w1": "MatMul_product_1", "b1": "Add_affine_1", "w2": "MatMul_product_2", "b2": "Add_scores"}


def edit(change, **arrays):
    return Edit(
        rule="test", kind=change["kind"], where="here", before=0, after=1, reason="a test", change=change, arrays=arrays
    )


def right(name, *, stored=None):
    """Put the source's own constant in. stored: its name in the file, where that differs."""
    change = {"kind": "set-parameter", "node": READERS[name], "parameter": stored or name, "array": "new"}
    return edit(change, new=RIGHT[name])


def idle(node="Softmax_chances", value=-1):
    """An edit that changes the file and nothing that it computes."""
    return edit({"kind": "set-attribute", "node": node, "attribute": "axis", "value": value})


def applied(gate, steps):
    made = editing.apply(gate.session, gate.target, steps)
    assert isinstance(made, Ok), made
    return made.value


def labelled(steps):
    return [[one.change.get("parameter") or one.change["attribute"] for one in group] for group in steps]


def test_what_is_not_needed_is_dropped_wherever_it_stands(gated):
    here = gated("w1", "b2")
    steps = [(idle(), right("w1")), (idle("Relu_hidden"),), (right("b2"), idle("Add_scores"))]
    whole = applied(here, steps)
    kept, artifact = here.needed(steps, whole)
    assert labelled(kept) == [["w1"], ["b2"]]
    assert here.faithful(artifact)
    assert artifact.path.exists()
    assert whole.path.exists(), "the file that was asked about is the caller's"
    assert artifact.sha256 == applied(here, [(right("w1"),), (right("b2"),)]).sha256


def test_what_is_needed_stays(gated):
    here = gated("w1", "b1", "w2")
    steps = [(right("w1"), right("b1")), (right("w2"),)]
    whole = applied(here, steps)
    kept, artifact = here.needed(steps, whole)
    assert kept == steps
    assert artifact is whole


def test_a_single_edit_is_not_tried_without(gated, monkeypatch):
    here = gated("w1")
    whole = applied(here, [(right("w1"),)])
    monkeypatch.setattr(editing, "apply", lambda *_: pytest.fail("nothing is left to be written"))
    kept, artifact = here.needed([(right("w1"),)], whole)
    assert labelled(kept) == [["w1"]]
    assert artifact is whole


def reads_the_other_bias(model):
    model["nodes"][4]["inputs"][1] = "b1"


@pytest.fixture
def sharing(session, tmp_path):
    """A target whose two additions read one bias, which is right for the first."""
    source = Artifact.open(write(tmp_path / "source.fake", hidden=4))
    model = fake.network(seed=1, hidden=4)
    reads_the_other_bias(model)
    (tmp_path / "target.fake").write_text(fake.text_of(model))
    reference = verification.reference(session, source).value
    ours, unseen = split(api.open_feeds(session, source, None), reference.signature)
    return Gate(reference=reference, target=Artifact.open(tmp_path / "target.fake"), given=ours, unseen=unseen)


def own_bias(stored, array):
    change = {"kind": "set-parameter", "node": "Add_scores", "parameter": stored, "array": "new"}
    return edit(change, new=array)


def test_an_edit_that_another_builds_upon_stays_with_it(sharing):
    """The first edit gives the last addition a bias of its own; without it the second has nothing to write to."""
    b2 = np.array(fake.network(seed=1, hidden=4)["constants"]["b2"]["data"], np.float32)
    steps = [(own_bias("b1", 0 * b2),), (own_bias("b1.Add_scores", b2),)]
    assert not isinstance(editing.apply(sharing.session, sharing.target, steps[1:]), Ok)
    kept, artifact = sharing.needed(steps, applied(sharing, steps))
    assert kept == steps
    assert sharing.faithful(artifact)


def test_what_was_built_upon_goes_with_what_is_not_needed(sharing):
    """The second edit writes what is there already."""
    b2 = np.array(fake.network(seed=1, hidden=4)["constants"]["b2"]["data"], np.float32)
    steps = [(own_bias("b1", b2),), (own_bias("b1.Add_scores", b2),), (idle("Relu_hidden"),)]
    kept, artifact = sharing.needed(steps, applied(sharing, steps))
    assert kept == steps[:1]
    assert sharing.faithful(artifact)


def test_of_a_repair_that_only_improves_the_edits_stay_that_bring_it_nearer(gated):
    here = gated("w1", "w2", "b2")
    steps = [(idle(), right("w2")), (right("w1"),)]
    whole = applied(here, steps)
    assert not here.faithful(whole)
    kept, artifact = here.needed(steps, whole)
    assert labelled(kept) == [["w2"], ["w1"]]
    assert here.badness(artifact) == here.badness(whole)


def test_both_sets_of_inputs_have_to_be_faithful(gated):
    here = gated("w1")
    mended = applied(here, [(right("w1"),)])
    assert here.faithful(mended)
    assert not here.faithful(here.target)
    wrong = here.on_unseen(here.target)
    for given in (here.unseen, here.given):
        other = Gate(reference=here.reference, target=here.target, given=here.given, unseen=here.unseen)
        other._known[mended.sha256, given.sha256] = wrong
        assert not other.faithful(mended)
        assert other.badness(mended) == badness(wrong)


def test_a_file_is_verified_once_for_each_set(gated, monkeypatch):
    here = gated("w1")
    asked = []

    def counting(reference, artifact, given, **facts):
        asked.append((artifact.sha256, given.sha256))
        return verification.verify(reference, artifact, given, **facts)

    monkeypatch.setattr(gate, "verify", counting)
    for _ in range(3):
        here.badness(here.target)
        here.faithful(here.target)
    assert sorted(asked) == sorted({(here.target.sha256, here.given.sha256), (here.target.sha256, here.unseen.sha256)})


def test_a_long_group_is_thinned_out_in_blocks():
    from trueport.repairs.gate import LONG, _blocks

    short, long = tuple(range(3)), tuple(range(LONG + 9))
    blocks = _blocks([short, long])
    assert blocks[:3] == [frozenset({(0, n)}) for n in range(3)]
    rest = blocks[3:]
    assert len(rest) == 8
    assert sorted(place for block in rest for place in block) == [(1, n) for n in range(LONG + 9)]
