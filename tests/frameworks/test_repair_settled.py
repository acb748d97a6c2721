"""A source that ONNX Runtime computes wrongly: what it means is found, and its target is mended by that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from trueport import api, opening, results, verification
from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.outcome import Ok, Stage
from trueport.repairs import settled as module
from trueport.repairs.settled import Settled, agreeing, settle
from trueport.repairs.types import Status
from trueport.report import wording
from trueport.session import Session, Settings

HERE = str(Path(__file__).parent)
WAYS = ("kernels: no-optimization", "kernels: reference", "float64")


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=120)) as session:
        yield session


@pytest.fixture(scope="module")
def models(session, tmp_path_factory):
    """models[name] -> path."""
    folder = tmp_path_factory.mktemp("padding")
    python = session.environment("onnx").value.python
    found = {}
    for name in ("single", "twice", "plain", "folded", "zeroed"):
        found[name] = folder / f"{name}.onnx"
        arguments = {"path": str(found[name]), "name": name}
        made = session.pool.call(python, "onnx_padding_models", "write", arguments, stage=Stage.LOAD, paths=[HERE])
        assert isinstance(made, Ok), made
    return found


@pytest.fixture
def opened(session, models):
    """opened(name) -> (reference, two sets of inputs)."""

    def run(name):
        model = opening.open_model(session, models[name], None, None, None)
        reference = verification.reference(session, model).value
        return reference, [opening.generated(session, model, reference.signature, seed=seed) for seed in (0, 5)]

    return run


def verified(reason, verdict=Verdict.FLAKY):
    return SimpleNamespace(reason=reason, verdict=verdict, comparison=SimpleNamespace(outputs=()))


SAYS = (
    "output 'y' of the source itself is another in case 'data' when it is evaluated as kernels: reference, float64, "
    "which agree: one set of its runtime's kernels is wrong"
)


@pytest.mark.parametrize(
    ("given", "ways"),
    [
        (verified(SAYS), ("kernels: reference", "float64")),
        (verified(SAYS, Verdict.DEVIATES), ()),
        (verified("output 'y' of the source, run twice in case 'data', moves by 0.1 of its signal"), ()),
    ],
)
def test_only_a_split_source_has_agreeing_evaluations(given, ways):
    assert agreeing(given) == ways


def test_the_comparison_still_says_it_in_these_words(opened):
    reference, (given, _) = opened("single")
    assert agreeing(verification.verify(reference, reference.artifact, given)) == WAYS


@pytest.mark.parametrize(("name", "barriers"), [("single", 1), ("twice", 2)])
def test_every_wrong_fusion_is_kept_apart_and_nothing_else(opened, session, name, barriers):
    reference, feeds = opened(name)
    found = settle(reference, feeds, WAYS)
    assert isinstance(found, Settled), found
    assert len(found.edits) == barriers
    assert {edit.kind for edit in found.edits} == {"insert"}
    for given in feeds:
        assert verification.verify(found.reference, found.artifact, given).verdict is Verdict.FAITHFUL
        now = session.run(found.artifact, given.cases).value.runs
        meant = session.run(reference.artifact, given.cases, variant="reference").value.runs
        for case in given.cases:
            np.testing.assert_array_equal(now[case.name]["y"], meant[case.name]["y"])


def test_a_copy_that_means_something_else_is_refused(opened, models, monkeypatch, session):
    reference, feeds = opened("single")
    other = Artifact.open(models["folded"])
    monkeypatch.setattr(module, "_kept_apart", lambda *_: ((), other))
    assert "would change what the source means" in settle(reference, feeds, WAYS)


def test_a_copy_that_stays_wrong_is_refused(opened, monkeypatch):
    reference, feeds = opened("single")
    monkeypatch.setattr(module, "_kept_apart", lambda *_: ((), reference.artifact))
    assert settle(reference, feeds, WAYS) == "the source's default kernels stay wrong"


@pytest.mark.parametrize(
    ("ways", "says"),
    [(("kernels: no-optimization",), "nothing that defines"), (("float64",), "nothing that defines")],
)
def test_two_sets_of_kernels_alone_do_not_say_what_is_meant(opened, ways, says):
    assert says in settle(*opened("single"), ways)


def test_where_nothing_is_wrong_there_is_nothing_to_settle(opened):
    assert isinstance(settle(*opened("plain"), WAYS), str)


def test_other_formats_cannot_be_kept_from_a_kernel(opened):
    reference, feeds = opened("plain")
    other = replace(reference, artifact=replace(reference.artifact, format="tflite"))
    assert settle(other, feeds, WAYS) == "a tflite file has no way to keep its runtime from a kernel"


@pytest.fixture
def repaired(session, models, tmp_path):
    """repaired(target) -> the repair of it by the source `single`."""

    def run(target):
        return api.repair(models["single"], models[target], out=tmp_path / "fixed.onnx", session=session)

    return run


def test_a_target_is_mended_by_what_its_source_means(repaired, models, session, tmp_path):
    before = {name: path.read_bytes() for name, path in models.items()}
    made = repaired("folded")
    assert made.status is Status.REPAIRED
    assert made.before.verdict is Verdict.FLAKY
    assert made.after.verdict is Verdict.FAITHFUL
    assert {path.name for path in tmp_path.iterdir()} == {"fixed.onnx", "fixed.source.onnx"}
    assert before == {name: path.read_bytes() for name, path in models.items()}, "neither source nor target is touched"
    beside = tmp_path / "fixed.source.onnx"
    assert made.after.source.path == beside
    assert made.after.rerun[0].split()[2:4] == [str(beside), str(tmp_path / "fixed.onnx")]
    assert api.verify(beside, tmp_path / "fixed.onnx", settings=Settings(seed=77)).verdict is Verdict.FAITHFUL
    assert api.verify(models["single"], tmp_path / "fixed.onnx", session=session).verdict is Verdict.FLAKY, (
        "by the source as it is run nothing is faithful"
    )
    assert not any(edit.after == "Relu" for edit in made.edits), "the source has no Relu"
    assert "stays flaky" in made.explanation
    document = json.loads(json.dumps(results.repair_document(made), default=str))
    assert wording.headline(document)[1] == wording.BY_MEANING["repaired"]


def test_a_target_that_computes_what_is_meant_is_left_alone(repaired, tmp_path):
    made = repaired("zeroed")
    assert made.status is Status.NOT_NEEDED
    assert not list(tmp_path.iterdir())
    assert "computes what single.onnx means as it is" in made.explanation
    document = json.loads(json.dumps(results.repair_document(made), default=str))
    assert wording.headline(document)[1] == wording.BY_MEANING["not-needed"]


def test_the_settled_source_never_replaces_the_source(session, models, tmp_path):
    source = tmp_path / "net.source.onnx"
    source.write_bytes(models["single"].read_bytes())
    with pytest.raises(api.UsageError, match="is the source itself"):
        api.repair(source, models["folded"], out=tmp_path / "net.onnx", session=session)
    assert source.read_bytes() == models["single"].read_bytes()
    assert not (tmp_path / "net.onnx").exists()
