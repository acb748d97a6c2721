"""Real runtimes that compute a right model wrongly: ONNX Runtime's optimiser, and kernel sets that merely round otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport import tracing
from trueport.artifact import Artifact
from trueport.diagnosis import rounding, runtime
from trueport.diagnosis.types import Cause
from trueport.feeds import Case
from trueport.outcome import Failure, Ok, Stage
from trueport.session import Session

HERE = [str(Path(__file__).parent)]


@pytest.fixture(scope="module")
def session():
    with Session() as session:
        yield session


@pytest.fixture(scope="module")
def build(pool, env, tmp_path_factory):
    """build(module, name) -> path of an ONNX model made by that module."""
    folder = tmp_path_factory.mktemp("runtime")

    def get(module: str, name: str) -> Path:
        path = folder / f"{name}.onnx"
        if not path.exists():
            arguments = {"name": name, "out": str(path)}
            outcome = pool.call(env("onnx"), module, "build", arguments, stage=Stage.LOAD, paths=HERE)
            assert not isinstance(outcome, Failure), outcome
        return path

    return get


@pytest.fixture
def opened(session):
    """opened(path, inputs) -> the traced model, and the outputs of its plain run."""
    traces = []

    def get(path: Path, inputs: dict[str, np.ndarray]):
        artifact = Artifact.open(path)
        made = tracing.trace(session, artifact, inputs)
        assert isinstance(made, Ok), made
        traces.append(made.value)
        ran = session.run(artifact, [Case(name="data", kind="data", inputs=inputs)])
        assert isinstance(ran, Ok), ran
        return made.value, ran.value.runs["data"]

    yield get
    for item in traces:
        item.close()


def samples(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def negative(*shape: int, seed: int = 0) -> np.ndarray:
    return -np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)


def test_padding_with_zero_merged_into_a_pool_is_found_with_the_pass_to_blame(build, opened):
    """The default optimiser gives negative maxima where the rim of zeros should win."""
    target, plain = opened(build("runtime_models", "bare"), {"x": negative(3, 1, 2, 4, 4)})
    assert (plain["y"][:, :, :, 0] < 0).all()
    assert (target.values["y"][:, :, :, 0] == 0).all()
    [(finding, evidence)] = runtime.find(target, plain)
    assert finding.target == "y"
    assert finding.region == ("pad", "pool")
    assert (finding.confirmed, finding.causal) == (True, 1.0)
    assert (evidence.node, evidence.cause) == ("pool", Cause.RUNTIME)
    assert "the optimiser pass 'Pad_Fusion' is disabled" in evidence.what
    assert "onnxruntime 1." in evidence.what
    assert "right in the variants no-optimization, reference" in evidence.what
    assert evidence.source_value.startswith("kernels 'no-optimization': 0 at run ")
    assert evidence.target_value.startswith("kernels 'default': -")


def test_the_same_data_above_zero_shows_nothing(build, opened):
    target, plain = opened(build("runtime_models", "bare"), {"x": -negative(3, 1, 2, 4, 4)})
    assert runtime.find(target, plain) == ()
    assert runtime.observer_effect(target, plain).note == ""


def test_the_pass_is_found_in_the_middle_of_a_network_and_its_healthy_branch_is_left_alone(build, opened):
    target, plain = opened(build("runtime_models", "pools"), {"x": samples(3, 2, 3, 8, 8)})
    effect = runtime.observer_effect(target, plain)
    assert effect.kernels == ("y",)
    assert effect.exposed == ()
    [(finding, evidence)] = runtime.find(target, plain)
    assert (finding.target, finding.region) == ("one.y", ("one.pad", "one.pool"))
    assert finding.confirmed
    assert finding.causal == pytest.approx(1.0, abs=1e-5)
    assert "'Pad_Fusion'" in evidence.what


def test_a_merge_that_changes_nothing_is_no_fault(build, opened):
    """A rim below all data never wins either, so the same pass is harmless."""
    target, plain = opened(build("runtime_models", "pools_low_rim"), {"x": samples(3, 2, 3, 8, 8)})
    assert runtime.find(target, plain) == ()


def test_the_same_pass_at_two_places_is_two_faults(build, opened):
    target, plain = opened(build("runtime_models", "pools_twice"), {"x": samples(3, 2, 3, 8, 8)})
    found = runtime.find(target, plain)
    assert [finding.target for finding, _ in found] == ["one.y", "two.y"]
    assert all(finding.confirmed for finding, _ in found)
    assert all("'Pad_Fusion'" in evidence.what for _, evidence in found)


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("residual", {"x": (3, 2, 3, 16, 16)}),
        ("lstm", {"x": (3, 6, 2, 4)}),
        ("normalised", {"x": (3, 2, 6)}),
        ("dense_half", {"x": (3, 2, 6)}),
        ("qdq", {"x": (3, 1, 6)}),
        ("dynamic_int8", {"x": (3, 1, 6)}),
    ],
)
def test_right_models_are_not_blamed_on_the_runtime(build, opened, name, inputs):
    target, plain = opened(build("onnx_models", name), {key: samples(*shape) for key, shape in inputs.items()})
    assert runtime.find(target, plain) == ()
    effect = runtime.observer_effect(target, plain)
    assert effect.note == ""
    assert all(effect.plain[output] < limit / 2 for output, limit in effect.tolerance.items())


def test_an_operator_that_only_blows_up_rounding_is_not_blamed(build, opened):
    target, plain = opened(build("runtime_models", "chaos"), {"x": samples(3, 2, 3, 8, 8)})
    effect = runtime.observer_effect(target, plain)
    assert effect.plain["y"] > 0.05  # grossly off, and yet
    assert effect.note == ""
    assert runtime.find(target, plain) == ()


@pytest.mark.parametrize(
    ("module", "name", "wanted", "shape", "expected"),
    [
        ("runtime_models", "bare", "y", (1, 2, 4, 4), "Pad_Fusion"),
        ("onnx_models", "dense", "y", (2, 6), "MatMulAddFusion"),
    ],
)
def test_the_passes_that_changed_a_cut_are_listed_and_can_be_left_out(
    build, opened, session, module, name, wanted, shape, expected
):
    """A rule inside a rule-based transformer, and a transformer of its own that the log names."""
    target, _ = opened(build(module, name), {"x": -np.abs(samples(3, *shape)) - 1})
    outcome = session.ask(target.artifact, "passes", {"given": {}, "wanted": wanted}, stage=Stage.TRACE)
    assert isinstance(outcome, Ok), outcome
    listed = outcome.value.value
    assert listed["levels"] == ["level:basic", "level:extended"]
    assert f"without:{expected}" in listed["passes"]
    assert "without:LayerNormFusion" not in listed["passes"]  # nothing to fuse here
    for variant in (*listed["levels"], *listed["passes"]):
        replayed = target.replay({}, [wanted], variant=variant)
        assert isinstance(replayed, Ok), replayed
        right = np.allclose(replayed.value.emitted[wanted], target.values[wanted], atol=1e-5)
        assert right == (name == "dense" or variant == "without:Pad_Fusion"), variant


@pytest.mark.parametrize("name", ["pretrainedResnet.tflite", "pretrainedResnet_quant.tflite"])
def test_kernel_sets_of_litert_that_round_otherwise_are_no_fault(corpus, session, opened, name):
    """XNNPACK and LiteRT's own kernels round an int8 model otherwise, within what the grid explains."""
    path = corpus / "models" / "mlperf_tiny_resnet8" / name
    signature = session.signature(Artifact.open(path))
    assert isinstance(signature, Ok), signature
    coarse = np.random.default_rng(0).uniform(0, 255, (4, 1, 4, 4, 3))
    pictures = coarse.repeat(8, axis=2).repeat(8, axis=3).astype(np.float32)
    target, plain = opened(path, {signature.value.inputs[0].name: pictures})
    assert rounding.precision(target) == ("int8" if "quant" in name else "float32")
    # The softmax of the int8 model turns a few steps of its grid into most of the little that these pictures change.
    assert (max(runtime.observer_effect(target, plain).plain.values()) > rounding.noise(target)) == ("quant" in name)
    assert runtime.observer_effect(target, plain).note == ""
    assert runtime.find(target, plain) == ()
