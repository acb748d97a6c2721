"""Targets that only expect other inputs are told what they expect; targets that differ in anything else are told nothing.

The source of each pair holds, before its first convolution, what the target leaves to the caller.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trueport import feeds, verification
from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.diagnosis import pipelines, preprocessing, recovery
from trueport.diagnosis.types import Cause
from trueport.errors import UsageError
from trueport.feeds import fields
from trueport.outcome import Failure, Stage
from trueport.preprocess import from_text
from trueport.session import Session, Settings

HERE = [str(Path(__file__).parent)]


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=300)) as session:
        yield session


@pytest.fixture(scope="module")
def made(session, tmp_path_factory):
    """made(**arguments of preprocessing_models.build) -> Artifact, each built once."""
    folder = tmp_path_factory.mktemp("preprocessing")
    done: dict[str, Artifact] = {}

    def get(function="build", **arguments):
        key = str((function, arguments))
        if key not in done:
            path = folder / f"{len(done)}.onnx"
            call(session, "onnx", function, out=str(path), **arguments)
            done[key] = Artifact.open(path)
        return done[key]

    return get


def call(session, toolchain, function, **arguments):
    python = session.environment(toolchain).value.python
    outcome = session.pool.call(python, "preprocessing_models", function, arguments, stage=Stage.LOAD, paths=HERE)
    assert not isinstance(outcome, Failure), outcome
    return outcome.value


def pictures(count=20, channels=3, size=16, seed=0):
    """[N, C, H, W], 0..255, whole numbers."""
    rng = np.random.default_rng(seed)
    made = [np.rint(255 * fields.field(rng, (size, size, channels), (0, 1))) for _ in range(count)]
    return np.stack(made).transpose(0, 3, 1, 2).astype(np.float32)


RAW = pictures()


def searched(session, source, target, inputs=None, labels=None, **more):
    """(finding or None, verification) of a pair on arrays, or on generated inputs."""
    outcome = verification.reference(session, source)
    assert not isinstance(outcome, Failure), outcome
    reference = outcome.value
    if inputs is None:
        given = feeds.generate(reference.signature, seed=0)
    else:
        name = reference.signature.inputs[0].name
        given = feeds.from_arrays({name: inputs}, reference.signature, labels=labels)
    verified = verification.verify(reference, target, given)
    return preprocessing.search(reference, target, given, verified, **more), verified


IMAGENET = "(x / 255 - mean) / std of ImageNet"
EXPECTED = {
    "x / 255": ("x (0 to 255), RGB", "x / 255 (0 to 1), RGB"),
    "x / 127.5 - 1": ("x (0 to 255), RGB", "x / 127.5 - 1 (-1 to 1), RGB"),
    "ImageNet": ("x (0 to 255), RGB", f"{IMAGENET}, RGB"),
    "BGR": ("x (0 to 255), RGB", "x (0 to 255), BGR"),
    "Caffe": ("x (0 to 255), RGB", "x - ImageNet means (B 103.939, G 116.779, R 123.68), BGR"),
    "BGR ImageNet": ("x (0 to 255), RGB", f"{IMAGENET}, BGR"),
    "height and width swapped": ("x", "height and width swapped"),
    "left to right": ("x", "flipped along axis 3 (left to right)"),
    "upside down, x / 255": ("x (0 to 255), RGB", "x / 255 (0 to 1), RGB, flipped along axis 2 (upside down)"),
    "left to right, BGR, x / 127.5 - 1": (
        "x (0 to 255), RGB",
        "x / 127.5 - 1 (-1 to 1), BGR, flipped along axis 3 (left to right)",
    ),
}
UNITS = {
    "x * 255": ("x / 255 (0 to 1), RGB", "x (0 to 255), RGB"),
    "x * 2 - 1": ("x / 255 (0 to 1), RGB", "x / 127.5 - 1 (-1 to 1), RGB"),
}


@pytest.mark.parametrize("front", [*EXPECTED, *UNITS])
def test_what_the_target_expects_is_found_on_pictures_and_named(session, made, front):
    inputs = RAW / 255 if front in UNITS else RAW
    found, verified = searched(session, made(front=front), made(), inputs)
    assert verified.verdict == Verdict.DEVIATES
    assert (found.source_words, found.target_words) == {**EXPECTED, **UNITS}[front]
    assert not found.fitted
    assert found.rivals == ()
    assert found.checked_after < 1e-4 < 0.5 < found.checked_before
    assert found.agreement_after == 1.0
    assert found.share > 0.999


@pytest.mark.parametrize("front", ["x / 255", "BGR", "Caffe", "left to right"])
def test_generated_inputs_do_as_well(session, made, front):
    found, _ = searched(session, made(front=front), made())
    assert (found.source_words, found.target_words) == EXPECTED[front]
    assert found.checked_after < 1e-3  # values of 0..255 through a network made for 0..1: the floor is higher


def test_numbers_that_no_convention_has_are_fitted_on_demand_and_said_to_be_so(session, made):
    assert searched(session, made(front="own mean and std"), made(), RAW)[0] is None
    found, _ = searched(session, made(front="own mean and std"), made(), RAW, fitted=True)
    np.testing.assert_allclose(found.change.scale, [0.013, 0.011, 0.017], rtol=1e-4)
    np.testing.assert_allclose(found.change.shift, [-1.3, -0.9, -2.1], rtol=1e-3)
    assert found.fitted
    assert found.confidence == 0.5
    assert "a first layer whose weights or bias are wrong looks the same" in str(found)


CLASSES = {
    "background first": "class i of the source is class i + 1 of the target (10 classes in the source, 11 in the target): a background class comes first",
    "other last": "the classes beyond the common ones have no counterpart (10 classes in the source, 11 in the target)",
    "shifted": "class i of the source is class i + 1 of the target",
}


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "softmax"])
def test_shifted_classes_are_told(session, made, classes, softmax):
    found, verified = searched(session, made(softmax=softmax), made(classes=classes, softmax=softmax), RAW / 255)
    assert verified.verdict == Verdict.DEVIATES
    assert found.change.identity
    assert str(found.labels) == f"output scores: {CLASSES[classes]}"
    assert found.suspect().target_nodes == ("scores",)


def test_shifted_class_numbers_are_told(session, made):
    found, _ = searched(session, made(classes="numbers"), made(classes="numbers from 1"), RAW)
    assert (found.labels.offset, found.labels.source_classes) == (1, None)


def test_inputs_and_classes_together(session, made):
    found, _ = searched(session, made(front="BGR ImageNet"), made(classes="background first"), RAW)
    assert found.target_words == f"{IMAGENET}, BGR"
    assert found.labels.offset == 1
    assert found.suspect().target_nodes == ("x",)


def test_grey_pictures(session, made):
    grey = pictures(channels=1)
    found, _ = searched(session, made(front="x / 127.5 - 1", channels=1), made(channels=1), grey)
    assert (found.source_words, found.target_words) == ("x (0 to 255)", "x / 127.5 - 1 (-1 to 1)")


def test_a_fixed_batch_of_one(session, made):
    found, _ = searched(session, made(front="Caffe", batch=1), made(batch=1), RAW)
    assert found.target_words == EXPECTED["Caffe"][1]


@pytest.mark.parametrize("shift", [1, -3])
def test_token_numbers_counted_from_another_start(session, made, shift):
    ids = np.random.default_rng(0).integers(4, 36, (24, 6))
    found, _ = searched(session, made("embedding", shift=0), made("embedding", shift=shift), ids)
    assert found.change.shift == (float(shift),)
    assert found.checked_after < 1e-6


# ---- nothing to find ----


@pytest.mark.parametrize("spoil", ["noise", "channel", "bias", "stride", "kernel", "late", "slightly", "factor"])
@pytest.mark.parametrize("unit", [1, 255], ids=["raw", "unit"])
def test_another_fault_is_no_preprocessing(session, made, spoil, unit):
    found, verified = searched(session, made(), made(spoil=spoil), RAW / unit)
    if (spoil, unit) != ("channel", 255):  # that channel is below zero everywhere in 0..1
        assert verified.verdict == Verdict.DEVIATES
    assert found is None


def test_other_weights_are_no_preprocessing(session, made):
    for inputs in (RAW / 255, None):
        found, verified = searched(session, made(), made(seed=50), inputs)
        assert verified.verdict == Verdict.DEVIATES
        assert found is None


def test_a_fault_beside_other_inputs_is_not_hidden_by_them(session, made):
    found, verified = searched(session, made(front="x / 255"), made(spoil="noise"), RAW)
    assert verified.verdict == Verdict.DEVIATES
    assert found is None


def test_a_faithful_pair_is_not_searched(session, made):
    found, verified = searched(session, made(), made(), RAW)
    assert verified.verdict == Verdict.FAITHFUL
    assert found is None


def test_one_input_proves_nothing(session, made):
    assert searched(session, made(front="x / 255"), made(), RAW[:1])[0] is None


def test_what_heals_the_runs_of_the_search_alone_is_not_reported(session, made, monkeypatch):
    """The check decides: with a target that is right on the searched runs only, nothing may be claimed."""
    first = preprocessing.heals
    calls: list[float] = []

    def only_in_the_search(before, after, noise):
        calls.append(after)
        return first(before, after, noise)

    real = preprocessing.Trials.try_all

    def spoiled(self, tried, *, part=None):
        done = real(self, tried, part=part)
        if part is self.check:
            done = [preprocessing.replace(trial, deviation=max(trial.deviation, 0.3)) for trial in done]
        return done

    monkeypatch.setattr(preprocessing, "heals", only_in_the_search)
    monkeypatch.setattr(preprocessing.Trials, "try_all", spoiled)
    assert searched(session, made(front="x / 255"), made(), RAW)[0] is None
    assert min(calls) < 1e-4  # the search itself did find it


def test_healing_needs_both_the_deviation_and_the_signal():
    assert preprocessing.heals(1.0, 0.01, 0.0)
    assert not preprocessing.heals(1000.0, 5.0, 0.0)  # a thousand times nearer, and still another model
    assert not preprocessing.heals(0.05, 0.01, 0.0)
    assert preprocessing.heals(0.4, 0.05, 0.05)
    assert not preprocessing.heals(0.4, 0.2, 0.3)  # within a coarse floor, but hardly nearer than before
    assert preprocessing.heals(float("inf"), 0.001, 0.0)


def test_time_ends_the_search(session, made):
    assert searched(session, made(front="left to right"), made(), RAW, seconds=0.0)[0] is None


def test_the_finding_as_evidence_and_suspect(session, made):
    found, _ = searched(session, made(front="Caffe"), made(), RAW)
    evidence, suspect = found.evidence(), found.suspect(2)
    assert (evidence.node, evidence.cause, evidence.source_nodes) == ("x", Cause.INPUTS, ("x",))
    assert (evidence.source_value, evidence.target_value) == EXPECTED["Caffe"]
    assert (suspect.rank, suspect.cause, suspect.causal > 0.999) == (2, Cause.INPUTS, True)
    assert suspect.accumulated == suspect.local > 1.0
    assert "source: x (0 to 255), RGB; target expects x - ImageNet means" in suspect.what


# ---- two pipelines ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of different sides, and labels that the plain model gives when it gets them as 0..1, 16x16."""
    home = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(4)
    for number in range(12):
        height, width = (int(side) for side in rng.integers(40, 90, 2))
        values = np.rint(255 * fields.field(rng, (height, width, 3), (0, 1))).astype(np.uint8)
        Image.fromarray(values).save(home / f"{number:02d}.png")
    return home


OURS = from_text("size=16,layout=NCHW,scale=1/255")


@pytest.mark.parametrize(
    ("theirs", "culprits"),
    [
        ("size=16,layout=NCHW,scale=1/127.5,offset=-1", ("values",)),
        ("size=16,layout=NCHW,scale=1/255,order=BGR", ("channel order",)),
        ("size=16,layout=NCHW,scale=1/255,crop=center", ("crop",)),
        ("size=16,layout=NCHW,scale=1/255,antialias=no,resize=bicubic-sharp", ("resize",)),
        ("size=16,layout=NCHW,order=BGR,mean=103.939/116.779/123.68", ("channel order", "values")),
    ],
)
def test_the_part_of_a_pipeline_that_matters_is_named(session, made, folder, theirs, culprits):
    reference = verification.reference(session, made()).value
    found = pipelines.settle(reference, made(), folder, OURS, from_text(theirs))
    assert sorted(found.culprits) == sorted(culprits)
    assert found.rows[0].deviation > 0.02
    assert found.rows[-1].deviation < 1e-5
    assert found.rows[-1].agreement == 1.0
    assert found.count == 12
    suspect = found.suspect()
    assert suspect.cause is Cause.INPUTS
    assert suspect.causal > 0.99


def test_a_pipeline_given_as_arrays_is_recovered_first(session, made, folder):
    recipe = from_text("size=16,layout=NCHW,order=BGR,scale=1/127.5,offset=-1")
    files = sorted(folder.glob("*.png"))
    arrays = np.stack([recipe.apply(Image.open(file)) for file in files])
    reference = verification.reference(session, made()).value
    found = pipelines.settle(reference, made(), folder, OURS, arrays)
    assert found.target == recipe
    assert sorted(found.culprits) == ["channel order", "values"]
    with pytest.raises(UsageError, match="3 arrays for the 12 pictures"):
        recovery.recover_folder(folder, arrays[:3])


def test_equal_pipelines_of_different_models_blame_no_pipeline(session, made, folder):
    reference = verification.reference(session, made()).value
    found = pipelines.settle(reference, made(seed=50), folder, OURS, from_text("size=16,layout=NCHW,scale=1/127.5"))
    assert found.culprits == ()
    assert found.suspect() is None
    assert "differ as much" in str(found)


def test_accuracy_tells_whose_pipeline_is_right(session, made, folder, tmp_path):
    home = tmp_path / "labelled"
    shutil.copytree(folder, home)
    reference = verification.reference(session, made()).value
    given = feeds.load(home, reference.signature, preprocess=OURS)
    runs = session.run(reference.artifact, given.of_kind("data")).value.runs
    labels = np.concatenate([runs[case.name]["scores"].reshape(-1, 10).argmax(-1) for case in given.of_kind("data")])
    theirs = from_text("size=16,layout=NCHW,scale=1,order=BGR")
    found = pipelines.settle(reference, made(), home, OURS, theirs, labels=labels)
    assert found.accuracy_source == found.rows[-1].accuracy == 1.0
    assert found.rows[0].accuracy < 1.0
    assert "accuracy from" in str(found)


# ---- a real network on real pictures ----


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("scale", "shift", "reverse", "words"),
    [
        ([1 / 255] * 3, [0.0] * 3, False, "x / 255 (0 to 1), RGB"),
        ([1.0] * 3, [-103.939, -116.779, -123.68], True, "x - ImageNet means (B 103.939, G 116.779, R 123.68), BGR"),
    ],
    ids=["x / 255", "Caffe"],
)
def test_a_trained_network_on_photographs(session, corpus, tmp_path, scale, shift, reverse, words):
    """ResNet-8 of MLPerf Tiny takes 0..255; its twin here undoes another pipeline, and so expects that one."""
    path = corpus / "models" / "mlperf_tiny_resnet8" / "pretrainedResnet.h5"
    out = tmp_path / "twin.keras"
    call(session, "tensorflow", "wrap", path=str(path), out=str(out), scale=scale, shift=shift, reverse=reverse)
    source, target = Artifact.open(path), Artifact.open(out)
    reference = verification.reference(session, source).value
    given = feeds.load(corpus / "images" / "cifar10", reference.signature, limit=120)
    verified = verification.verify(reference, target, given)
    assert verified.verdict == Verdict.DEVIATES
    found = preprocessing.search(reference, target, given, verified)
    assert found.target_words == words
    assert found.accuracy_after == found.accuracy_source > 0.6
    assert found.accuracy_before < found.accuracy_source - 0.2
    assert found.checked_after < 1e-3


@pytest.mark.corpus
def test_a_quantised_twin_is_judged_by_its_own_precision(session, corpus, tmp_path):
    """The source takes 0..1 in BGR, its int8 twin 0..255 in RGB: what is left is what int8 costs."""
    models = corpus / "models" / "mlperf_tiny_resnet8"
    out = tmp_path / "unit.keras"
    arguments = {"scale": [1 / 255] * 3, "shift": [0.0] * 3, "reverse": True}
    call(session, "tensorflow", "wrap", path=str(models / "pretrainedResnet.h5"), out=str(out), **arguments)
    reference = verification.reference(session, Artifact.open(out)).value
    target = Artifact.open(models / "pretrainedResnet_quant.tflite")
    given = feeds.load(corpus / "images" / "cifar10", reference.signature, limit=80, preprocess="scale=1/255")
    found = preprocessing.search(reference, target, given, verification.verify(reference, target, given))
    assert (found.source_words, found.target_words) == ("x / 255 (0 to 1), RGB", "x (0 to 255), BGR")
    assert found.agreement_after > 0.9
    assert 0.01 < found.checked_after < 0.3
