"""The corpus of real models: what each file, each pair of twins and each conversion is expected to give, as data rows.

The rows were read off the trial (`scripts/corpus.py`, docs/corpus-trial.md) and then explained; a change here is a change
of what users get. Verdicts only: ratios belong to the machine that measured them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from trueport.session import Session, Settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import corpus as trial  # noqa: E402 -- a script, not a package
from corpus_cases import CONVERSIONS, EXPLAINED, PAIRS, REFUSED  # noqa: E402

PAGE = ROOT / "docs" / "corpus-trial.md"

MODELS = {
    "angle_net/angle_net.onnx": ("onnx", "1 → 1"),
    "blazeface/face_detection_front.tflite": ("tflite", "1 → 2"),
    "candy_style/candy.onnx": ("onnx", "1 → 1"),
    "dtln/model_1.onnx": ("onnx", "2 → 2"),
    "dtln/model_1.tflite": ("tflite", "2 → 2"),
    "dtln/model_2.onnx": ("onnx", "2 → 2"),
    "dtln/model_2.tflite": ("tflite", "2 → 2"),
    "dtln/model_quant_1.tflite": ("tflite", "2 → 2"),
    "emotion_xception/fer2013_mini_XCEPTION.102-0.66.hdf5": ("keras", "1 → 1"),
    "keras2_qat_ptq/mobilenet_v1_0.25_128_quant.tflite": ("tflite", "1 → 1"),
    "mlperf_tiny_resnet8/pretrainedResnet.h5": ("keras", "1 → 1"),
    "mlperf_tiny_resnet8/pretrainedResnet.tflite": ("tflite", "1 → 1"),
    "mlperf_tiny_resnet8/pretrainedResnet_quant.tflite": ("tflite", "1 → 1"),
    "mlperf_tiny_vww/vww_96.h5": ("keras", "1 → 1"),
    "mlperf_tiny_vww/vww_96_float.tflite": ("tflite", "1 → 1"),
    "mlperf_tiny_vww/vww_96_int8.tflite": ("tflite", "1 → 1"),
    "mlperf_tiny_wakeword/str_ww_ref_model.h5": ("keras", "1 → 1"),
    "mlperf_tiny_wakeword/str_ww_ref_model.tflite": ("tflite", "1 → 1"),
    "mnist_cnn/mnist_8/model.onnx": ("onnx", "1 → 1"),
    "movie_review/movie_review.tflite": ("tflite", "1 → 1"),
    "silero_vad/silero_vad.jit": ("torchscript", "2 → 1"),
    "silero_vad/silero_vad.onnx": ("onnx", "3 → 2"),
    "silero_vad/silero_vad_16k_op15.onnx": ("onnx", "3 → 2"),
    "sinet_portrait/SINet.mlmodel": ("coreml", "1 → 1"),
    "sinet_portrait/SINet.onnx": ("onnx", "1 → 1"),
    "slim_portrait/slim_reshape.tflite": ("tflite", "1 → 1"),
    "tflm/person_detect.tflite": ("tflite", "1 → 1"),
    "tflm/trained_lstm.tflite": ("tflite", "1 → 1"),
    "yunet/yunet_n_320_320.onnx": ("onnx", "1 → 12"),
    "yunet/yunet_n_dynamic.onnx": ("onnx", "1 → 12"),
}
"""Model that loads and runs -> (format, inputs → outputs)."""

REFUSALS = {
    "slim_portrait/slim_reshape.h5": "another Python version",
    "resnet_cifar/resnet20-12fca82f.th": "--checkpoint",
    "resnet_cifar/resnet32-d509ac18.th": "--checkpoint",
}
"""Model that is refused -> words of the sentence."""

HEAVY = ("candy_style/candy.onnx", "slim_portrait/slim_reshape.tflite", "silero_vad/silero_vad.jit")
"""720 x 720 and 512 x 512 pixels; PyTorch."""

NOT_FAITHFUL = {
    "pretrainedResnet.tflite -> pretrainedResnet_quant.tflite": "incomparable",
    "vww_96_float.tflite -> vww_96_int8.tflite": "incomparable",
    "str_ww_ref_model.tflite (64 spectrograms": "deviates",
    "model_1.onnx -> model_quant_1.tflite": "deviates",
    "model_1.tflite -> model_quant_1.tflite": "incomparable",
    "silero_vad.jit -> silero_vad": "incomparable",
    "slim_reshape.h5 -> slim_reshape.tflite": "refused",
}
"""Part of a pair's name -> outcome; every other pair is faithful."""

FAILING = {
    "mnist_cnn/mnist_8/model.onnx -> pytorch": "unsupported",
    "silero_vad/silero_vad_16k_op15.onnx -> tflite": "deviates",
    "silero_vad/silero_vad_16k_op15.onnx -> pytorch": "unsupported",
    "silero_vad/silero_vad.jit -> onnx": "unsupported",
    "tflm/person_detect.tflite -> onnx": "raised",
    "tflm/trained_lstm.tflite -> onnx": "raised",
    "dtln/model_quant_1.tflite -> onnx": "incomparable",
    "keras2_qat_ptq/mobilenet_v1_0.25_128_quant.tflite -> onnx": "incomparable",
    "candy_style/candy.onnx -> tflite": "unsupported",
}
"""Conversion -> outcome; every other one is faithful."""

ACCURACY = {
    "mlperf_tiny_resnet8: pretrainedResnet.h5 -> pretrainedResnet.tflite": (75.2, 75.2),
    "mlperf_tiny_resnet8: pretrainedResnet.h5 -> pretrainedResnet_quant.tflite": (75.2, 74.8),
    "mlperf_tiny_resnet8: pretrainedResnet.tflite -> pretrainedResnet_quant.tflite": (75.2, 74.8),
    "mlperf_tiny_resnet8/pretrainedResnet.h5 -> onnx": (75.2, 75.2),
    "mlperf_tiny_resnet8/pretrainedResnet.h5 -> tflite": (75.2, 75.2),
    "mlperf_tiny_resnet8/pretrainedResnet.h5 -> tflite at int8": (75.2, 74.8),
    "torch_models:resnet20 -> onnx": (79.8, 79.8),
    "torch_models:resnet20 -> tflite": (79.8, 79.8),
    "torch_models:resnet32 -> onnx": (83.6, 83.6),
}
"""Name -> accuracy in per cent of source and target on the 500 CIFAR-10 images (the manifest gives those of ResNet-8)."""

ONE_IMAGE = 0.2
"""Per cent that one of 500 images makes: float kernels of another machine may turn one near tie."""


@pytest.fixture(scope="module")
def session():
    settings = Settings(timeout=600, trust=True, paths=(str(trial.FACTORIES),))
    with Session(settings) as session:
        yield session


def marked(rows, slow):
    """One parameter for each row; `slow` tells which are heavy."""
    return [pytest.param(row, id=name, marks=[pytest.mark.slow] if slow(row) else []) for name, row in rows]


def check_accuracy(name, row):
    """Hold the accuracies that the row reports against the table."""
    expected = ACCURACY.get(name)
    reported = re.search(r"([\d.]+)% → ([\d.]+)%", " ".join(row.facts))
    assert (expected is None) == (reported is None), row
    if expected is not None:
        found = [float(number) for number in reported.groups()]
        assert np.abs(np.subtract(found, expected)).max() <= ONE_IMAGE + 1e-9, (name, found)


# ---- models ----


@pytest.mark.corpus
def test_no_file_of_the_corpus_is_left_out(corpus):
    assert set(trial.models(corpus)) == {*MODELS, *REFUSALS}
    assert set(REFUSED) == set(REFUSALS)


@pytest.mark.corpus
@pytest.mark.parametrize("name", marked(((name, name) for name in MODELS), lambda name: name in HEAVY))
def test_model_is_sniffed_loaded_and_run(session, corpus, name):
    row = trial.run_model(session, corpus, name)
    assert row.outcome == "runs", row.reason
    assert row.facts == MODELS[name]
    assert re.match(r"cases: [1-9]", row.reason), "a model that was fed nothing did not run"


@pytest.mark.corpus
@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_run_is_refused_with_one_sentence(session, corpus, name):
    row = trial.run_model(session, corpus, name)
    assert row.outcome == "refused"
    assert REFUSALS[name] in row.reason
    assert "Traceback" not in row.reason


# ---- pairs ----


def expected_of(pair):
    """Outcome of a pair by the table."""
    found = {outcome for part, outcome in NOT_FAITHFUL.items() if part in pair.name}
    assert len(found) <= 1, pair.name
    return found.pop() if found else "faithful"


@pytest.mark.corpus
@pytest.mark.parametrize("pair", marked(((pair.name, pair) for pair in PAIRS), lambda pair: pair.slow))
def test_pair_of_twins(session, corpus, pair):
    row = trial.run_pair(session, corpus, pair)
    assert row.outcome == expected_of(pair), row.reason
    check_accuracy(row.name.partition(" (500")[0], row)


def test_every_expected_pair_exists():
    for part in NOT_FAITHFUL:
        assert any(part in pair.name for pair in PAIRS), part
    assert len({pair.name for pair in PAIRS}) == len(PAIRS)


# ---- conversions ----


@pytest.mark.corpus
@pytest.mark.parametrize("case", marked(((case.name, case) for case in CONVERSIONS), lambda case: case.slow))
def test_conversion(session, corpus, case, tmp_path):
    row = trial.run_conversion(session, corpus, case, tmp_path)
    assert row.outcome == FAILING.get(case.name, "faithful"), row.reason
    check_accuracy(case.name, row)
    left = list(tmp_path.iterdir())
    assert bool(left) == (row.outcome in ("faithful", "deviates", "incomparable", "flaky")), left


def test_every_expected_conversion_exists():
    names = [case.name for case in CONVERSIONS]
    assert set(FAILING) <= set(names)
    assert len(set(names)) == len(names)


# ---- the page and its explanations ----


def test_everything_that_is_not_faithful_is_explained():
    wrong = {pair.name for pair in PAIRS if expected_of(pair) != "faithful"} | set(FAILING)
    assert wrong == set(EXPLAINED), wrong ^ set(EXPLAINED)


def test_the_page_shows_every_row_with_its_outcome():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    expected = {**dict.fromkeys(MODELS, "runs"), **dict.fromkeys(REFUSALS, "refused")}
    expected |= {pair.name: expected_of(pair) for pair in PAIRS}
    expected |= {case.name: FAILING.get(case.name, "faithful") for case in CONVERSIONS}
    for name, outcome in expected.items():
        rows = [line.split(" | ") for line in lines if line.startswith(f"| {name} | ")]
        assert len(rows) == 1, name
        assert outcome in rows[0], (name, rows)
    for name, text in EXPLAINED.items():
        assert f"- **{name}**: {text}" in lines


def test_the_page_names_no_machine():
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(work|tmp|root|opt|home/(?!keras)|usr)/", text)


def test_a_row_without_an_explanation_is_found():
    rows = [
        trial.Row(name="new", outcome="deviates", reason=""),
        trial.Row(name="fine", outcome="faithful", reason=""),
        trial.Row(name=next(iter(EXPLAINED)), outcome="deviates", reason=""),
    ]
    assert trial.unexplained(rows) == ["new"]


def test_parts_that_ran_apart_make_one_page(tmp_path):
    rows = (trial.Row(name="a", outcome="runs", reason="cases: 1 data", facts=("onnx", "1 → 1"), seconds=1.0),)
    assert trial.kept(tmp_path, {"models": rows}) == {"models": rows}
    pairs = (trial.Row(name="b | c", outcome="deviates", reason="why"),)
    both = trial.kept(tmp_path, {"pairs": pairs})
    assert list(both) == ["models", "pairs"]
    text = trial.page(both)
    assert "| a | onnx | 1 → 1 | runs | cases: 1 data |" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[3].count("|") == table[4].count("|"), "a head and its rule have equal width"


def test_the_made_inputs_are_what_they_say(corpus):
    spectra = trial.MADE["spectra"](corpus)
    assert spectra["input_2"].shape == (16, 1, 1, 257)
    assert spectra["input_2"].min() >= 0
    assert np.abs(spectra["input_3"]).max() < 1
    assert not spectra["input_3"][0].any()
    features = trial.MADE["features"](corpus)["input_1"]
    assert features.shape == (64, 30, 1, 40)
    assert features.min() >= 0
    assert 0.94 < features.max() <= 1, "beyond the range of the int8 wake word file, on purpose"
    digits = trial.MADE["digits"](corpus)["Input3"]
    assert digits.shape == (3, 1, 28, 28)
    assert digits.max() > 1
    assert all(digit.any() for digit in digits)


def test_reasons_show_no_folder_of_any_machine(tmp_path):
    text = trial._clean(f"{tmp_path}/models/a/b.onnx: see /home/someone/model.py:12\nor | a/b/c, 1/255", tmp_path)
    assert text == "a/b.onnx: see …/model.py:12 or \\| a/b/c, 1/255"
