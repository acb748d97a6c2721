"""OpenVINO's frontends through their converter file: values, names, sizes, and weights that stay float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport import api
from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.converters import openvino
from trueport.outcome import Failure, Kind, Stage
from trueport.session import Session, Settings

HERE = str(Path(__file__).parent)
POWER = str(Path(__file__).parents[1] / "power")


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=300)) as session:
        yield session


def built(session, toolchain, module, function, *, where=HERE, **arguments):
    environment = session.environment(toolchain)
    assert not isinstance(environment, Failure), environment
    done = session.pool.call(environment.value.python, module, function, arguments, stage=Stage.LOAD, paths=[where])
    assert not isinstance(done, Failure), done
    return done.value.value


@pytest.fixture(scope="module")
def residual(session, tmp_path_factory):
    """A residual CNN of PyTorch with BatchNorm."""
    made = built(
        session, "torch", "torch_models", "save", kind="residual", folder=str(tmp_path_factory.mktemp("zoo")), seed=0
    )
    return Path(made if isinstance(made, str) else made["pytorch"])


def stored(session, path):
    return built(session, "openvino", "openvino_models", "stored", path=str(path))


def test_every_step_leads_to_openvino_in_float32_first():
    assert [step.source_format for step in openvino.STEPS] == [
        "onnx",
        "tflite",
        "savedmodel",
        "pytorch",
        "torchscript",
    ]
    for step in openvino.STEPS:
        assert step.precisions[0] == "float32"
        assert step.target_format == "openvino"
        assert step.toolchain == ("openvino-torch" if "torch" in step.source_format else "openvino")


@pytest.mark.parametrize(
    ("known", "names", "order"),
    [
        ([{"a"}, {"b", "c"}], ["c", "a"], [1, 0]),
        ([{"a"}, {"b"}], ["x", "y"], [0, 1]),
        ([{"a"}, {"b"}], ["b", "y"], [0, 1]),
        ([set(), set()], ["x", "y"], [0, 1]),
        ([{"a", "b"}, {"c"}], ["a", "b"], [0, 1]),
    ],
)
def test_ports_are_paired_by_name_or_all_by_position(known, names, order):
    assert openvino.paired(known, names) == order


@pytest.mark.parametrize(
    "route",
    [
        "openvino-torch",
        pytest.param("torch-jit,openvino-torchscript", marks=pytest.mark.slow),
        pytest.param("torch-torchscript,openvino-onnx", marks=pytest.mark.slow),
    ],
)
def test_a_torch_model_converts_faithfully_under_its_names_and_sizes(session, residual, tmp_path, route):
    out = tmp_path / "model.xml"
    done = api.convert(residual, to="openvino", out=out, route=route, session=session, repair=False)
    assert done.verification is not None, done.attempts[0].failure
    assert done.verification.verdict == Verdict.FAITHFUL
    source, made = (session.signature(Artifact.open(path)) for path in (residual, out))
    assert not isinstance(source, Failure)
    assert not isinstance(made, Failure)
    assert [spec.name for spec in made.value.inputs] == [spec.name for spec in source.value.inputs]
    assert [spec.name for spec in made.value.outputs] == [spec.name for spec in source.value.outputs]
    fixed = [[size if isinstance(size, int) else None for size in spec.shape] for spec in source.value.inputs]
    assert [list(spec.shape) for spec in made.value.inputs] == fixed
    kinds = {fact["type"] for fact in stored(session, out)["constants"].values()}
    assert "f16" not in kinds


def test_float16_is_stored_only_where_it_is_asked_for(session, residual, tmp_path):
    out = tmp_path / "half.xml"
    route = "openvino-torch"
    done = api.convert(
        residual, to="openvino", out=out, route=route, precision="float16", session=session, repair=False
    )
    assert done.verification is not None
    assert done.verification.verdict == Verdict.FAITHFUL
    facts = stored(session, out)["constants"].values()
    weights = [fact for fact in facts if fact["type"].startswith("f") and np.size(fact["values"]) > 1]
    assert weights
    assert {fact["type"] for fact in weights} == {"f16"}


@pytest.mark.parametrize(
    ("way", "outputs"),
    [
        ("tflite-keras,openvino-tflite", ["alpha", "middle", "zeta"]),
        pytest.param(
            "keras-savedmodel,openvino-savedmodel",
            ["output_0", "output_1", "output_2"],  # as the SavedModel itself calls them
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_keras_model_of_several_outputs_converts_faithfully(session, tmp_path, way, outputs):
    made = built(session, "tensorflow", "keras_models", "save", kind="multi", folder=str(tmp_path), seed=0)
    source = Path(made if isinstance(made, str) else made["keras"])
    out = tmp_path / "model.xml"
    done = api.convert(source, to="openvino", out=out, route=way, session=session, repair=False)
    assert done.verification is not None, done.attempts[0].failure
    assert done.verification.verdict == Verdict.FAITHFUL
    assert sorted(stored(session, out)["outputs"]) == [[name] for name in outputs]


def onnx_model(session, folder, name):
    source = folder / f"{name}.onnx"
    built(session, "onnx", "live_models", "build", where=POWER, maker="onnx", name=name, out=str(source))
    return source


def test_equal_values_that_change_places_deviate_and_are_mended(session, tmp_path):
    source = onnx_model(session, tmp_path, "top_k")
    out = tmp_path / "wrong.xml"
    done = api.convert(source, to="openvino", out=out, route="openvino-onnx", session=session, repair=False)
    assert done.verification is not None
    assert done.verification.verdict == Verdict.DEVIATES
    mended = api.repair(source, out, out=tmp_path / "right.xml", tools=False, session=session)
    assert str(mended.status) == "repaired"
    (edit,) = mended.edits
    assert edit.change["attribute"] == "stable"
    again = api.verify(source, tmp_path / "right.xml", session=session)
    assert again.verdict == Verdict.FAITHFUL


def test_an_operator_without_a_translation_is_unsupported(session, tmp_path):
    source = tmp_path / "strange.onnx"
    built(session, "onnx", "openvino_sources", "strange", out=str(source))
    environment = session.environment("openvino")
    assert not isinstance(environment, Failure)
    context = {
        "signature": {"inputs": [{"name": "x", "dtype": "float32", "shape": [2]}], "outputs": [], "meta": {}},
        "example": {"x": np.zeros(2, np.float32)},
        "calibration": {},
        "trust": False,
    }
    given = {
        "step": "openvino-onnx",
        "source": str(source),
        "out": str(tmp_path / "out.xml"),
        "options": {},
        "context": context,
    }
    outcome = session.pool.call(
        environment.value.python, "trueport.converters.openvino", "convert", given, stage=Stage.CONVERT
    )
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED
    assert "Strange" in outcome.message
    assert not (tmp_path / "out.xml").exists()
