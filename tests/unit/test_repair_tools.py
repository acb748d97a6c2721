"""Another tool, option or version instead of an edit: which way is taken, and the command that goes it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pipeline_models import route

from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.diagnosis import tool
from trueport.repairs import tools
from trueport.routes import Hop, Route, parse_route, steps

MODEL = Artifact(path=Path("models/my net.fake"), format="fake", sha256="", size=0)


def way(folder, name, verdict=Verdict.FAITHFUL, *, hops=1, written=True, packages=()):
    path = folder / f"{name}.fake"
    if written:
        path.write_text("{}")
    output = Artifact(path=path, format="fake", sha256=name, size=2)
    attempt = SimpleNamespace(output=output, verification=SimpleNamespace(verdict=verdict), hops=())
    return tool.Trial(route=route(*[""] * hops), attempt=attempt, same=None, packages=packages)


@pytest.fixture
def switched(monkeypatch, tmp_path):
    """switched(trials, faithful) -> what is taken, where `faithful` names those that are so on all inputs."""

    def make(*trials, faithful=(), stage=None):
        inquiry = tool.Inquiry(stage=stage, trials=trials)
        monkeypatch.setattr(tool, "locate", lambda *_, **__: inquiry)
        monkeypatch.setattr(tools, "_untried", lambda *_: [])
        gate = SimpleNamespace(
            session=SimpleNamespace(
                progress=lambda text: None, pool=SimpleNamespace(fresh_folder=lambda name: tmp_path / name)
            ),
            reference=SimpleNamespace(artifact=MODEL),
            target=Artifact(path=tmp_path / "target.fake", format="fake", sha256="", size=0),
            given=None,
            on_search=lambda artifact: None,
            faithful=lambda artifact: artifact.sha256 in faithful,
        )
        return tools.switch(gate)

    return make


def test_the_shortest_faithful_way_is_taken(switched, tmp_path):
    trials = [way(tmp_path, "long", hops=2), way(tmp_path, "short"), way(tmp_path, "wrong", Verdict.DEVIATES)]
    made = switched(*trials, faithful=("long", "short", "wrong"))
    assert made.artifact.sha256 == "short"
    assert (made.edit.kind, made.edit.rule) == ("convert-again", tools.NAME)
    assert made.edit.change["value"] == made.command == tools.command_of(MODEL, "fake", trials[1])


def test_what_is_not_faithful_on_the_held_out_inputs_is_no_way(switched, tmp_path):
    trials = [way(tmp_path, "lucky"), way(tmp_path, "long", hops=3)]
    assert switched(*trials, faithful=("long",)).artifact.sha256 == "long"
    assert switched(*trials) == "2 ways were tried, and 2 of them are faithful on the inputs of the search alone"
    wrong = [way(tmp_path, "wrong", Verdict.DEVIATES), way(tmp_path, "worse", Verdict.DEVIATES)]
    assert switched(*wrong) == "2 ways were tried, and none is faithful"
    assert switched(*wrong[:1], trials[0]).startswith("2 ways were tried, and 1 of them")


def test_int8_that_is_right_on_its_own_inputs_alone_wants_more_of_them(switched, tmp_path):
    trial = way(tmp_path, "narrow")
    hop = Hop(step=steps()["fake-copy"], options={"precision": "int8"})
    assert switched(replace(trial, route=Route(hops=(hop,)))).endswith("give more inputs to calibrate int8 on")


def test_a_result_that_is_gone_is_no_way(switched, tmp_path):
    assert isinstance(switched(way(tmp_path, "gone", written=False), faithful=("gone",)), str)


def test_without_a_route_that_is_said(switched):
    assert switched() == "no route that is installed here leads from the source to the target's format"


def test_the_command_names_the_route_its_options_and_its_versions():
    step = steps()["fake-copy"]
    first, last = Hop(step=step, options={"misbehave": "nan"}), Hop(step=step, options={"opset": "17", "names": "a"})
    trial = SimpleNamespace(route=Route(hops=(first, last)), packages=("onnx==1.17", "numpy==2.0"))
    words = shlex.split(tools.command_of(MODEL, "fake", trial))
    route_name = Route(hops=(first, last)).name
    assert words[:3] == ["trueport", "convert", str(MODEL.path)], "one word, whatever the shell makes of spaces"
    assert " ".join(words).endswith(
        f"--to fake --route {route_name} --option fake-copy.misbehave=nan --option fake-copy.opset=17 "
        "--option fake-copy.names=a --with onnx==1.17 --with numpy==2.0"
    )


@pytest.mark.parametrize(
    ("names", "at", "words"),
    [
        (("torch-dynamo", "onnx2tf-tflite"), 1, "--precision int8"),
        (("litert-torch",), 0, "--precision int8"),
        (("onnx2tf-savedmodel", "tflite-savedmodel"), 1, "--precision int8"),
    ],
)
def test_the_command_asks_for_the_precision_that_the_way_gave(names, at, words):
    hops = [
        Hop(step=steps()[name], options={"precision": "int8"} if place == at else {})
        for place, name in enumerate(names)
    ]
    trial = SimpleNamespace(route=Route(hops=tuple(hops)), packages=())
    command = tools.command_of(MODEL, "tflite", trial)
    assert command.endswith(f"--route {','.join(names)} {words}")
    assert parse_route(",".join(names), precision="int8") == trial.route, "which is what the command then does"


def test_a_precision_that_another_step_of_the_way_gave_is_its_option():
    first, last = Hop(step=steps()["keras-savedmodel"]), Hop(step=steps()["tflite-savedmodel"])
    able = replace(first, step=first.step._replace(precisions=("float32", "float16")), options={"precision": "float16"})
    trial = SimpleNamespace(route=Route(hops=(able, last)), packages=())
    command = tools.command_of(MODEL, "tflite", trial)
    assert command.endswith("--option keras-savedmodel.precision=float16")
