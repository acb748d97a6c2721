"""The rebuilt FetaFix cases: networks and pictures are what they say, every pair is sound but for its fault, repairs hold.

The normal run takes the networks and one fault of MobileNetV2 at small pictures; all 15 cases are marked slow.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "studies"))

from fetafix import judging, networks, page, run, study
from fetafix.cases import BY_ID, CASES, Model
from fetafix.judging import Result, Side
from fetafix.pictures import pictures

from trueport.compare.types import Verdict
from trueport.session import Session, Settings

SIZES = {"mobilenet_v2": 32, "resnet101": 48, "inception_v3": 75}
GOOD = Side(verdict="faithful", mismatch=0.0, ratio=1.2, reason="")
BAD = Side(verdict="deviates", mismatch=0.6, ratio=5000.0, reason="")


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=900)) as session:
        yield session


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fetafix")


# The networks, as plans


def counted(ops) -> int:
    """Trained numbers of a plan: convolutions without bias, two per BatchNorm channel, the dense layer."""
    total = 0
    for op in ops:
        s = op.settings
        if op.kind == "unit":
            total += s["before"] // s["groups"] * s["out"] * s["kernel"][0] * s["kernel"][1] + 2 * s["out"]
        elif op.kind == "dense":
            total += s["before"] * s["out"] + s["out"]
    return total


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_networks_have_the_published_number_of_parameters(network):
    assert counted(networks.NETWORKS[network]()) == networks.PARAMETERS[network]


@pytest.mark.parametrize("network", networks.NETWORKS)
def test_networks_read_only_what_was_computed_before_and_channels_fit(network):
    channels = {"image": 3}
    for op in networks.NETWORKS[network]():
        given = [channels[name] for name in op.inputs]
        assert op.name not in channels
        if op.kind in ("unit", "dense"):
            assert given == [op.settings["before"]]
        if op.kind == "add":
            assert given[0] == given[1]
        channels[op.name] = op.settings.get("out", sum(given) if op.kind == "cat" else given[0])
    assert channels["classes"] == 1000


def test_the_torch_preparation_is_the_usual_one():
    picture = np.full((1, 1, 1, 3), 255.0)
    told = study.prepared(picture, "torch").reshape(3)
    assert told == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rel=1e-6)


def test_the_caffe_preparation_reverses_the_channels_before_it_takes_the_means_away():
    picture = np.array([10.0, 20.0, 30.0]).reshape(1, 1, 1, 3)
    told = study.prepared(picture, "caffe").reshape(3)
    assert told == pytest.approx([30 - 103.939, 20 - 116.779, 10 - 123.68], rel=1e-6)
    assert study.prepared(picture, "caffe-rgb").reshape(3)[0] == pytest.approx(10 - 103.939, rel=1e-6)


# The pictures


def test_pictures_are_whole_numbers_of_a_byte_and_repeat_with_their_seed():
    first, again, other = pictures(6, 40, 1), pictures(6, 40, 1), pictures(6, 40, 2)
    assert first.shape == (6, 40, 40, 3)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 255
    assert np.array_equal(first, np.rint(first))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_pictures_have_colours_sides_and_structure():
    """Swapped height and width, reversed channels and another order of elements must all show."""
    found = pictures(16, 40, 3)
    for changed in (found.transpose(0, 2, 1, 3), found[..., ::-1], found.reshape(16, 3, 40, 40).transpose(0, 2, 3, 1)):
        assert np.sqrt(np.mean((changed - found) ** 2)) > 0.2 * found.std()
    near = np.corrcoef(found[:, :, 1:].ravel(), found[:, :, :-1].ravel())[0, 1]
    assert near > 0.8, "neighbouring pixels hardly resemble each other: that is noise"


# The cases


def test_there_are_the_fifteen_cases_of_the_study():
    assert len(CASES) == len(BY_ID) == 15
    conversions = {(case.network, case.conversion) for case in CASES}
    assert len(conversions) == 15
    assert sum(case.network == "resnet101" for case in CASES) == 7
    assert sum(case.network == "mobilenet_v2" for case in CASES) == 6


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_wrong_target_differs_from_the_right_one_in_its_fault_alone(case):
    assert case.right != case.wrong
    fields = ("front", "taller", "epsilon", "entry", "spoiled")
    different = [field for field in fields if getattr(case.right, field) != getattr(case.wrong, field)]
    assert len(different) == 1, different
    assert (case.right.zoo, case.right.route) == (case.wrong.zoo, case.wrong.route)
    assert (case.fewest == 0) == bool(case.wrong.spoiled)


def test_files_of_different_models_have_different_names():
    models = {model for case in CASES for model in (case.source, case.right, case.wrong)}
    assert len({study.name(model) for model in models}) == len(models)
    assert study.name(Model(zoo="keras", epsilon=1e-3)) == "keras-epsilon0.001"


def test_an_unknown_case_ends_the_program_with_one_sentence():
    with pytest.raises(SystemExit, match="no case is called nonsense"):
        run.chosen(["nonsense"])
    assert [case.id for case in run.chosen(["resnet-tf-keras"])] == ["resnet-tf-keras"]
    assert len(run.chosen([])) == 15


# What counts as repaired


def result(**changes) -> Result:
    given = {"case": BY_ID["mobilenet-tf-keras"], "sound": GOOD, "before": BAD, "after": GOOD, "fewest": 2}
    return Result(**{**given, "edits": ("a", "b"), "status": "repaired", **changes})


def test_a_case_is_repaired_only_with_every_label_right_and_at_the_floor():
    assert result().repaired
    assert result().minimal
    assert not result(after=None).repaired
    assert not result(after=replace(GOOD, mismatch=0.01)).repaired
    assert not result(after=replace(GOOD, mismatch=None)).repaired
    assert not result(after=replace(GOOD, verdict="deviates")).repaired


def test_edits_beyond_the_faults_are_not_minimal():
    assert not result(edits=("a", "b", "c")).minimal
    assert not result(edits=()).minimal
    assert result(edits=("a",)).minimal
    assert not result(edits=("convert-again at x.tflite",), fewest=49).minimal, (
        "another conversion is no edit of the file"
    )


def test_only_the_first_suspect_counts_as_the_diagnosis():
    assert result(causes=("inputs",)).diagnosed
    assert not result(causes=("runtime", "inputs")).diagnosed
    assert not result(causes=()).diagnosed
    dimensions = BY_ID["resnet-tf-keras"]
    assert result(case=dimensions, before=replace(BAD, verdict="incomparable")).diagnosed


def test_the_page_shows_both_tables_and_what_failed():
    failed = result(case=BY_ID["resnet-torch-tf"], after=None, edits=(), error="repair: a | b", status="not tried")
    text = page.page([result(), failed], full=False)
    assert "Of the 15 cases 1 end at 0 % other labels" in text
    assert "1 were run and do not, 13 have no result here" in text
    assert "60 % → 0 %" in text
    assert "5000 → 1.2" in text
    assert "2 (2)" in text
    assert "0 % without edits (49 %)" in text
    assert "462 of the 755" in text
    assert "repair: a \\| b" in text
    assert "Without a result: `inception-tf-tflite`" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {len(page.COLUMNS) + 1}


def test_results_can_be_written_as_json():
    told = json.loads(json.dumps(result().to_json(), default=str))
    assert told["case"] == "mobilenet-tf-keras"
    assert told["repaired"]
    assert told["before"]["mismatch"] == 0.6


def test_results_of_an_earlier_run_are_kept_for_the_cases_that_are_not_run_again(tmp_path):
    path = tmp_path / "results.json"
    other = result(case=BY_ID["resnet-tf-keras"], after=None, causes=("inputs",))
    path.write_text(json.dumps([result().to_json(), other.to_json()], default=str), encoding="utf-8")
    assert run.earlier(path, [BY_ID["mobilenet-tf-keras"]]) == {"resnet-tf-keras": other}
    assert run.ordered(run.earlier(path, [])) == [result(), other]
    assert run.earlier(tmp_path / "none.json", []) == {}


def test_a_model_that_cannot_be_made_is_a_result(monkeypatch):
    def fails(*given, **named):
        raise run.TrueportError("no such thing")

    monkeypatch.setattr(run, "judge", fails)
    (only,) = run.results(None, [CASES[0]], repair=True)
    assert only.error == "no such thing"
    assert not only.repaired


# Models


@pytest.fixture(scope="module")
def small(session, folder):
    """MobileNetV2 at 32 pixels."""
    return study.Workshop(session, folder, size=32)


def test_a_change_of_the_code_makes_models_anew(session, folder, monkeypatch):
    shop = study.Workshop(session, folder, size=32)
    before = shop.home("mobilenet_v2")
    monkeypatch.setattr(study, "SOURCES", study.SOURCES[:-1])
    assert shop.home("mobilenet_v2") != before


def test_search_and_held_out_pictures_are_different_ones(small):
    case = BY_ID["mobilenet-torch-keras"]
    seen, unseen = small.inputs(case, "search")["image"], small.inputs(case, "held-out")["image"]
    assert seen.shape[1:] == (3, 32, 32)
    assert len(seen) == study.SEARCHED
    assert len(unseen) == study.HELD_OUT
    assert not any(np.array_equal(one, other) for one in seen for other in unseen)


def test_a_keras_pair_is_sound_but_for_its_preparation(small):
    case = BY_ID["mobilenet-tf-keras"]
    found = judging.judge(small, case, repair=False)
    assert found.sound.verdict == Verdict.FAITHFUL
    assert found.sound.mismatch == 0
    assert found.before.verdict == Verdict.DEVIATES
    assert found.before.mismatch > 0.3
    assert found.before.ratio > 100
    assert found.fewest == 2


@pytest.mark.slow
@pytest.mark.parametrize("id", ["mobilenet-torch-keras", "mobilenet-keras-torch", "mobilenet-keras-tflite"])
def test_other_mobilenet_pairs_are_sound_but_for_their_fault(small, id):
    found = judging.judge(small, BY_ID[id], repair=False, diagnose=True)
    assert found.sound.verdict == Verdict.FAITHFUL, found.sound.reason
    assert found.before.verdict == Verdict.DEVIATES
    assert found.before.mismatch > 0.1
    assert found.diagnosed, found.causes


@pytest.mark.slow
def test_silently_dequantised_weights_lie_on_a_grid_of_255_steps(small):
    case = BY_ID["mobilenet-keras-tflite"]
    right, wrong = small.model(case.network, case.right), small.model(case.network, case.wrong)
    assert right.path.stat().st_size == pytest.approx(wrong.path.stat().st_size, rel=0.01), "not float32 weights alone"
    places = json.loads(wrong.path.with_suffix(".places.json").read_text(encoding="utf-8"))
    assert small.fewest(case) == places["dequantised"] > 30


@pytest.mark.slow
def test_labels_differ_from_picture_to_picture(small):
    """Outputs that hardly depend on the picture would hide every fault."""
    case = BY_ID["mobilenet-torch-keras"]
    source, images = small.model(case.network, case.source), small.inputs(case, "held-out")["image"]
    again = judging._stretched(small, source, source, images)
    turned = judging._stretched(small, source, source, images[::-1].copy())
    assert again == turned == 0.0
    runs = judging.Runs(name="data", kind="data", inputs={"image": images[:, None]})
    answers = np.asarray(next(iter(small.session.run(source, [runs]).value.runs["data"].values())))
    assert len(set(answers.reshape(len(images), -1).argmax(1).tolist())) >= 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_case_is_repaired_with_the_fewest_edits(session, folder, case):
    shop = study.Workshop(session, folder, size=SIZES[case.network])
    found = judging.judge(shop, case)
    assert found.sound.verdict == Verdict.FAITHFUL, found.sound.reason
    assert found.before.verdict != Verdict.FAITHFUL
    assert not found.error, found.error
    assert found.repaired, (found.status, found.explanation)
    assert found.minimal, found.edits
