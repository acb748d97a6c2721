"""Which step made a fault, and which way is right: on the fake framework, whose faults are made to order."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import onnx_small
import pytest
from pipeline_models import route, scale, write, write_changed

from trueport import api, feeds, verification
from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.conversion import Workbench
from trueport.diagnosis import tool
from trueport.diagnosis.tool import Inquiry, Trial
from trueport.feeds import Case, Feeds
from trueport.outcome import Failure, Kind, Stage
from trueport.routes import Hop, Route, steps
from trueport.session import Session, Settings


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=60)) as session:
        yield session


@pytest.fixture(scope="module")
def bare(session, tmp_path_factory):
    """bare(change) -> (reference, a bare target file changed so, feeds, their verification)."""
    folder = tmp_path_factory.mktemp("bare")

    def make(change, name="target"):
        source = Artifact.open(write(folder / "source.fake"))
        target = Artifact.open(write_changed(folder / f"{name}.fake", change))
        return (*pair(session, source, target),)

    return make


def pair(session, source, target):
    reference = verification.reference(session, source).value
    given = api.open_feeds(session, source, None)
    return reference, target, given, verification.verify(reference, target, given)


@pytest.fixture(scope="module")
def made(session, tmp_path_factory):
    """made(*misbehaviours) -> (reference, the target that such a route gave, as a bare file, feeds, verification)."""
    folder = tmp_path_factory.mktemp("made")

    def make(*misbehave):
        source = Artifact.open(write(folder / "source.fake"))
        reference = verification.reference(session, source).value
        given = api.open_feeds(session, source, None)
        attempt = workbench(session, reference, given).attempt(route(*misbehave))
        target = replace(attempt.output, made_by={})
        return reference, target, given, verification.verify(reference, target, given), attempt

    return make


def workbench(session, reference, given):
    return Workbench(session=session, original=reference, given=given, check=True, task="auto")


def trial(misbehave, attempt, **more):
    return Trial(route=route(*misbehave), attempt=attempt, **{"same": None, **more})


# -- a conversion that was just done ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misbehave", "place"),
    [(("perturb:30",), 0), (("", "perturb:30"), 1), (("perturb:30", ""), 0), (("", "", "perturb:30"), 2)],
)
def test_the_hop_that_lied_is_the_stage(made, misbehave, place):
    *_, attempt = made(*misbehave)
    found = tool.of_attempt(attempt)
    assert (found.stage.hop, found.stage.step) == (place, "fake-copy")
    assert found.maker.steps == ("fake-copy",)
    assert ("before it was faithful" in found.stage.reason) is (place > 0)
    assert "made the fault" in found.sentences[0]


def test_a_faithful_conversion_has_no_stage(made):
    *_, attempt = made("", "")
    assert tool.of_attempt(attempt) == Inquiry()


def test_a_faithful_route_beside_it_is_the_way_out(made):
    *_, bad = made("perturb:30")
    *_, good = made("", "")
    *_, worse = made("perturb:90")
    sentences = tool.of_attempt(bad, [bad, worse, good]).sentences
    assert len(sentences) == 2
    assert sentences[1].startswith("fake-copy (numpy ")
    assert "--route fake-copy,fake-copy" in sentences[1]


def test_routes_that_deviate_too_are_no_way_out(made):
    *_, bad = made("perturb:30")
    *_, worse = made("perturb:90")
    assert len(tool.of_attempt(bad, [worse]).sentences) == 1


# -- two bare files --------------------------------------------------------------------------------------------------


def test_the_step_that_does_it_again_is_named(session, made):
    reference, target, given, verified, _ = made("perturb:30")
    found = tool.locate(reference, target, given, verified, routes=[route(""), route("perturb:30")])
    assert (found.stage.hop, found.stage.step) == (0, "fake-copy")
    assert "reproduces the deviation" in found.stage.reason
    assert "misbehave perturb:30" in found.stage.reason
    assert [one.reproduces for one in found.trials] == [False, True]
    assert "is faithful" in found.sentences[-1]


def test_the_second_hop_is_named_with_what_was_before_it(made):
    reference, target, given, verified, _ = made("", "perturb:30")
    found = tool.locate(reference, target, given, verified, routes=[route("", "perturb:30")])
    assert found.stage.hop == 1
    assert "is faithful (fake-copy)" in found.stage.reason


def test_another_fault_of_a_tool_is_not_this_one(bare, made):
    """The tool deviates as well, and otherwise: it must not be blamed for this target."""
    reference, target, given, verified = bare(scale(3.0))
    assert verified.verdict is Verdict.DEVIATES
    found = tool.locate(reference, target, given, verified, routes=[route("perturb:90")])
    assert found.stage is None
    assert found.maker is None
    assert [one.same for one in found.trials] == [False]
    assert "gives this very deviation again" in found.sentences[0]


def test_a_file_that_no_tool_makes_so_was_changed_afterwards(bare):
    reference, target, given, verified = bare(scale(3.0), "changed")
    found = tool.locate(reference, target, given, verified, routes=[route("")])
    assert found.stage is None
    assert "changed after its conversion" in found.sentences[0]
    assert "is faithful" in found.sentences[1]


def test_without_any_route_it_says_so(bare):
    reference, target, given, verified = bare(scale(3.0), "alone")
    found = tool.locate(reference, target, given, verified, routes=[])
    assert found.stage is None
    assert found.sentences == (
        "no route that is known here leads from the source to the target, so the tool was not looked for",
    )


def test_a_route_that_fails_blames_nobody(made):
    reference, target, given, verified, _ = made("perturb:30")
    found = tool.locate(reference, target, given, verified, routes=[route("raise")])
    assert found.stage is None
    assert [one.verdict for one in found.trials] == [None]
    assert [one.same for one in found.trials] == [None]


def test_the_routes_are_planned_when_none_is_given(bare):
    reference, target, given, verified = bare(scale(3.0), "planned")
    found = tool.locate(reference, target, given, verified)
    assert [one.route.name for one in found.trials] == ["fake-copy"]


def test_time_that_is_up_ends_the_search(made):
    reference, target, given, verified, _ = made("perturb:30")
    found = tool.locate(
        reference, target, given, verified, routes=[route(""), route("perturb:30"), route("", "")], seconds=0.0
    )
    assert len(found.trials) == 1, "the first trial is always made"


def test_the_search_ends_when_fault_and_way_out_are_known(made):
    reference, target, given, verified, _ = made("perturb:30")
    routes = [route("perturb:30"), route(""), route("", ""), route("", "", "")]
    found = tool.locate(reference, target, given, verified, routes=routes)
    assert len(found.trials) == 2


def test_a_target_whose_maker_is_known_needs_no_second_conversion(session, made):
    reference, target, given, verified, attempt = made("perturb:30")
    known = replace(target, made_by=attempt.output.made_by)
    found = tool.locate(reference, known, given, verified)
    assert (found.stage.hop, found.stage.step) == (0, "fake-copy")
    assert found.stage.reason == "it made the target from this very source"
    assert found.maker.steps == ("fake-copy",)
    assert "numpy" in found.maker.packages
    assert found.trials == ()


def test_a_maker_that_had_another_source_is_not_believed(session, made, bare):
    *_, attempt = made("perturb:30")
    reference, *_ = bare(scale(3.0), "other")
    stranger = replace(attempt.output, made_by={**attempt.output.made_by, "source": "another"})
    assert tool.made_directly(stranger, reference.artifact) is None
    assert tool.made_directly(attempt.output, reference.artifact) == "fake-copy"


def test_a_verified_attempt_is_read_and_nothing_is_converted(made):
    reference, target, given, verified, attempt = made("", "perturb:30")
    started = time.monotonic()
    found = tool.locate(reference, target, given, verified, attempt=attempt)
    assert time.monotonic() - started < 1.0
    assert found.stage.hop == 1


# -- what it rests on ------------------------------------------------------------------------------------------------


def test_of_two_that_do_it_again_the_one_with_the_same_bytes_is_named(made):
    reference, target, *_, attempt = made("perturb:30")
    far = trial(("perturb:30",), attempt, same=True, closeness=1, variant="far")
    near = trial(("perturb:30",), attempt, same=True, closeness=3, variant="near")
    found = tool.judged([far, near], target, reference.artifact)
    assert "(near) byte for byte" in found.sentences[0]
    assert "byte for byte" not in tool.judged([far], target, reference.artifact).sentences[0]


def test_another_option_of_the_same_route_comes_before_another_route(made):
    reference, target, *_, bad = made("perturb:30")
    *_, good = made("")
    *_, long = made("", "")
    again = trial(("perturb:30",), bad, same=True)
    found = tool.judged([again, trial(("", ""), long), trial(("",), good)], target, reference.artifact)
    assert found.sentences[-1].endswith("(trueport convert --route fake-copy)")


def test_a_route_whose_environment_is_missing_is_told(bare):
    reference, target, *_ = bare(scale(3.0), "missing")
    found = tool.judged([], target, reference.artifact, searched=["torch-dynamo needs an environment"])
    assert found.sentences == ("which tool made the target was not tried: torch-dynamo needs an environment",)


def test_only_environments_that_exist_are_used(tmp_path):
    """With an empty cache nothing is installed, and nothing is built for it."""
    from trueport.envs import EnvStore

    with Session(Settings()) as session:
        object.__setattr__(session, "envs", EnvStore(tmp_path))
        assert not tool.installed(session, steps()["torch-dynamo"])
        assert tool.installed(session, steps()["fake-copy"])
        assert tool.variants(session, steps()["onnxscript-optimizer"]) == []
    assert not any(tmp_path.iterdir())


def test_installed_versions_are_read_off_their_markers(tmp_path):
    """Newest first; of the tool itself, whatever spelling; unfinished ones and those of other toolchains left out."""
    from trueport.envbuild import MARKER, MARKER_FORMAT
    from trueport.envs import EnvStore
    from trueport.interpreters import python_in

    def environment(name, toolchain, packages, built, finished=True):
        folder = tmp_path / "envs" / name
        python_in(folder).parent.mkdir(parents=True)
        python_in(folder).touch()
        marker = {
            "format": MARKER_FORMAT if finished else -1,
            "toolchain": toolchain,
            "built": built,
            "variant": {"packages": packages, "as_of": None},
        }
        (folder / MARKER).write_text(json.dumps(marker), encoding="utf-8")

    environment("onnx-1", "onnx", ["onnxscript==0.5.6"], "2026-01-01")
    environment("onnx-2", "onnx", ["onnxscript==0.5.7"], "2026-02-01")
    environment("onnx-3", "onnx", ["onnx==1.17.0"], "2026-03-01")
    environment("onnx-4", "onnx", [], "2026-04-01")
    environment("onnx-5", "onnx", ["onnxscript==0.4.0"], "2026-05-01", finished=False)
    environment("onnx2tf-6", "onnx2tf", ["onnxscript==0.3.0"], "2026-06-01")
    with Session(Settings()) as session:
        object.__setattr__(session, "envs", EnvStore(tmp_path))
        found = [variant.packages for variant in tool.variants(session, steps()["onnxscript-optimizer"])]
        assert found == [("onnxscript==0.5.7",), ("onnxscript==0.5.6",)]
        assert [variant.packages for variant in tool.variants(session, steps()["opset"])] == [("onnx==1.17.0",)]
        assert tool.variants(session, steps()["fake-copy"]) == []


def test_few_cases_keep_the_one_that_shows_the_deviation(bare):
    reference, target, given, verified = bare(scale(3.0), "few")
    kept = tool.few(given, verified)
    shown = {str(output.worst_index[0]) for output in verified.comparison.outputs}
    assert shown <= {case.name for case in kept.cases}
    assert any(case.kind == "data" for case in kept.cases)
    assert len(kept.cases) <= len(shown) + 1
    again = verification.verify(reference, target, kept)
    assert again.verdict is Verdict.DEVIATES


def test_few_cases_are_all_when_no_case_stands_out(bare):
    _, _, given, verified = bare(scale(3.0), "all")
    silent = replace(verified, comparison=replace(verified.comparison, outputs=()))
    assert tool.few(given, silent) is given


def test_the_count_of_few_cases_is_that_of_the_data_kept():
    arrays = {"x": np.zeros((4, 2), np.float32)}
    cases = [Case(name=name, kind=kind, inputs=arrays) for name, kind in (("a", "data"), ("b", "data"), ("p", "probe"))]
    given = Feeds.of(cases, origin="test", count=8)

    class Output:
        worst_index = ("p", 0)
        verdict = Verdict.DEVIATES

    class Fake:
        class comparison:
            outputs = (Output(),)

    kept = tool.few(given, Fake)
    assert [case.name for case in kept.cases] == ["a", "p"]
    assert kept.count == 4


def test_the_options_that_lead_around_faults_are_options_of_their_steps():
    for name, ways in tool.WAYS_OUT.items():
        known = {option for option, _ in steps()[name].options}
        assert all(set(way) <= known for way in ways), name


def test_a_trial_without_a_result_has_no_verdict(made):
    *_, attempt = made("perturb:30")
    failure = Failure(stage=Stage.CONVERT, kind=Kind.RAISED, message="no")
    failed = replace(attempt, hops=(replace(attempt.hops[0], outcome=failure),))
    assert trial(("",), failed).verdict is None
    assert not trial(("",), failed, same=True).reproduces


# -- with real tools -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reshapes(session, tmp_path_factory):
    """Two Reshapes of which the second copies a dimension from the first, and what onnxoptimizer makes of them."""
    folder = tmp_path_factory.mktemp("reshapes")
    source = Artifact.open(onnx_small.build(session, "reshapes", folder / "source.onnx"))
    reference = verification.reference(session, source).value
    given = feeds.generate(reference.signature, seed=0)
    only = Route(hops=(Hop(step=steps()["onnxoptimizer"]),))
    attempt = workbench(session, reference, given).attempt(only)
    target = replace(attempt.output, made_by={})
    return reference, target, given, verification.verify(reference, target, given)


def test_a_real_pass_is_found_among_those_that_are_installed(reshapes):
    """Two bare ONNX files: of six optimisers one makes this fault."""
    found = tool.locate(*reshapes)
    assert found.stage.step == "onnxoptimizer"
    assert "byte for byte" in found.sentences[0]
    assert found.maker.version("onnxoptimizer") is not None
    assert "is faithful" in found.sentences[-1]
    assert "onnxoptimizer" not in found.sentences[-1]
    assert all(one.route.name != "opset" or one.route.hops[0].options for one in found.trials)


def test_the_steps_of_a_known_bug_are_tried_first(reshapes):
    found = tool.locate(*reshapes, prefer=("onnxoptimizer",))
    assert found.trials[0].route.name == "onnxoptimizer"
    assert found.stage.step == "onnxoptimizer"
