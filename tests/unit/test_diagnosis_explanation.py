"""The paragraph of a diagnosis: what it must say, and what it must not claim."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from diagnosis_cases import finding

from trueport.artifact import Artifact
from trueport.compare.types import Comparison, Decisions, OutputReport, Verdict, Verification
from trueport.diagnosis.explanation import compose
from trueport.diagnosis.types import Cause, KnownIssue, Stage, Suspect


def output(**more):
    given = {
        "source": "out", "target": "scores", "how": "name", "permutation": None, "verdict": Verdict.DEVIATES, "reason": "",
        "max_abs": 3.81, "max_rel": 1.0, "rmse": 1.0, "cosine": 0.5, "psnr": 1.0, "ulp_p99": 1.0, "floor": 1e-6,
        "ratio": 51234.0, "worst_index": (0, 0, 1), "source_nonfinite": 0, "target_nonfinite": 0, **more,
    }  # fmt: skip
    return OutputReport(**given)


def verification(verdict=Verdict.DEVIATES, outputs=None, decisions=None, reason="it is what it is"):
    def artifact(name, format):
        return Artifact(path=Path("somewhere") / name, format=format, sha256="", size=1)

    return Verification(
        comparison=Comparison(
            verdict=verdict, reason=reason, outputs=(output(),) if outputs is None else outputs,
            unpaired_source=(), unpaired_target=(), decisions=decisions,
        ),
        source=artifact("net.pt2", "pytorch"), target=artifact("net.onnx", "onnx"), inputs={}, declared_precision="float32",
        versions={"torch": "2.9.1", "onnxscript": "0.5.6"}, timings={}, rerun=(),
    )  # fmt: skip


def suspect(name="node_Conv_3", rank=1, *, confirmed=True, causal=0.998, local=0.4, **more):
    given = {
        "cause": Cause.PARAMETERS, "what": "bias 'b' is that of another layer", "source_value": "16, rms 0.2",
        "target_value": "16, rms 0.9", "operator": "Conv", "source_nodes": ("conv2d", "batch_norm"), **more,
    }  # fmt: skip
    return Suspect(
        rank=rank, target_nodes=(name, "node_relu"), accumulated=0.5, local=local, causal=causal, confidence=0.9,
        finding=finding("v", region=[name], confirmed=confirmed), **given,
    )  # fmt: skip


STAGE = Stage(hop=0, step="torch-onnx", reason="the other exporter is right")
ISSUE = KnownIssue(
    id="onnxscript#2553", url="https://example.org/2553", fixed_in="0.5.7", summary="two convolutions share one bias.",
    cure="Take onnxscript 0.5.7 or newer",
)  # fmt: skip


def test_everything_that_is_known_stands_in_one_paragraph():
    text = compose(verification(), [suspect()], stage=STAGE, known_issue=ISSUE)
    for part in (
        "net.onnx", "net.pt2", "'scores'", "3.81", "51234 times the noise", "Conv 'node_Conv_3'", "'conv2d', 'batch_norm'",
        "bias 'b' is that of another layer", "Source: 16, rms 0.2; target: 16, rms 0.9", "removes 99.8 % of the output error",
        "torch-onnx", "hop 1", "the other exporter is right", "onnxscript#2553", "https://example.org/2553",
        "fixed in 0.5.7", "Take onnxscript 0.5.7 or newer.", "torch 2.9.1", "onnxscript 0.5.6",
    ):  # fmt: skip
        assert part in text, part
    assert "\n" not in text
    assert "  " not in text
    assert ".." not in text
    assert "unconfirmed" not in text
    assert "somewhere" not in text, "a path on one machine means nothing to others"


def test_what_is_not_proven_is_called_unconfirmed():
    assert "(unconfirmed)" in compose(verification(), [suspect(confirmed=False)])
    bare = suspect(confirmed=False, causal=math.nan, local=math.nan)
    assert "This is unconfirmed." in compose(verification(), [bare])
    assert "nan" not in compose(verification(), [bare]).replace("finance", "")


@pytest.mark.parametrize(
    ("share", "shown"),
    [(1.0, "100 %"), (0.99999, "more than 99.9 %"), (0.5, "50.0 %"), (0.998, "99.8 %"), (0.0, "0.0 %")],
)
def test_all_of_the_error_is_said_only_when_it_is_all(share, shown):
    assert f"removes {shown} of" in compose(verification(), [suspect(causal=share)])


def test_the_first_suspect_in_detail_the_others_in_a_clause():
    others = [
        suspect("node_B", 2, what="pads differ.", cause=Cause.HYPERPARAMETERS),
        suspect("node_C", 3, confirmed=False),
    ]
    text = compose(verification(), [suspect(), *others])
    assert text.count("Source:") == 1
    assert "Besides, 'node_B' (hyperparameters: pads differ, 99.8 % of the error); 'node_C' (" in text
    assert text.count("unconfirmed") == 1
    assert "Besides" not in compose(verification(), [suspect()])


def test_decisions_that_change_are_counted():
    decisions = Decisions(
        task="classification",
        count=64,
        top1_flips=7,
        flips_within_noise=0,
        topk_overlap=0.9,
        accuracy_source=None,
        accuracy_target=None,
    )
    assert "7 of 64 decisions change" in compose(verification(decisions=decisions), [suspect()])


def test_the_worst_output_is_the_one_that_is_named():
    outputs = (
        output(target="calm", ratio=12.0),
        output(target="wild", ratio=900.0),
        output(target="odd", ratio=math.nan),
    )
    assert "output 'wild'" in compose(verification(outputs=outputs), [suspect()])
    endless = compose(verification(outputs=(output(ratio=math.inf),)), [suspect()])
    assert "beyond all noise" in endless
    assert "inf " not in endless


def test_without_a_suspect_nothing_is_blamed():
    text = compose(verification(), [])
    assert "No place inside the target could be made out" in text
    assert "begins at" not in text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Verdict.FAITHFUL, "computes what net.pt2 (pytorch) computes."),
        (Verdict.FLAKY, "cannot be judged against net.pt2 (pytorch): it is what it is."),
        (Verdict.INCOMPARABLE, "cannot be compared with net.pt2 (pytorch): it is what it is."),
    ],
)
def test_other_verdicts_accuse_nobody(verdict, words):
    text = compose(verification(verdict), [])
    assert words in text
    assert "begins at" not in text
    assert "No place" not in text


def test_values_that_are_not_there_are_left_out():
    text = compose(verification(), [suspect(source_value=None, target_value=None, source_nodes=())])
    assert "Source:" not in text
    assert "where the source has" not in text
    half = compose(verification(), [suspect(source_value=None, target_value=[0.12345678, 2])])
    assert "Source: nothing; target: [0.123, 2]." in half


def test_versions_can_be_those_of_the_tool():
    text = compose(verification(), [suspect()], versions={f"tool{place}": str(place) for place in range(9)})
    assert "tool0 0" in text
    assert "tool8" not in text
    assert "torch 2.9.1" not in text
    assert "Versions" not in compose(verification(), [suspect()], versions={})


def test_what_was_found_out_about_the_tool_stands_before_the_cure_and_is_not_said_twice():
    said = ("another converter is faithful", f"torch-onnx made it: {STAGE.reason}")
    text = compose(verification(), [suspect()], stage=STAGE, known_issue=ISSUE, said=said)
    assert text.index("another converter is faithful.") < text.index(ISSUE.id)
    assert text.count(STAGE.reason) == 1


def test_a_fault_that_another_one_hides_is_no_negative_share():
    text = compose(verification(), [suspect(), suspect("other", 2, causal=-0.2)])
    assert "partly hidden by the others" in text
    assert "-20" not in text


def test_the_tools_of_both_sides_are_named():
    versions = {
        "trueport": "1",
        "source.python": "3.11",
        "source.torch": "2.9",
        "target.numpy": "2",
        "target.onnxruntime": "1.31",
    }
    text = compose(verification(), [suspect()], versions=versions)
    assert "Versions: trueport 1, source.torch 2.9, target.onnxruntime 1.31." in text


def test_an_overflow_is_told_by_its_reason_and_not_by_the_error_of_the_finite_elements():
    text = compose(
        verification(outputs=(output(target_nonfinite=3, max_abs=4e-7, reason="3 elements are infinite"),)), []
    )
    assert "3 elements are infinite." in text
    assert "4e-07" not in text
