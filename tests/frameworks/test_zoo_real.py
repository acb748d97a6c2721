"""Zoo models as they are made: outputs follow the input, files load where models run, seeds repeat, conversions verify."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from trueport import api, feeds, zoo
from trueport.outcome import Failure, Kind, Ok, Stage
from trueport.session import Session, Settings

HERE = str(Path(__file__).parent)
SMALL = (
    "zoo:keras/MobileNetV3Small?alpha=0.35&size=32",
    "zoo:torchvision/squeezenet1_1",
    "zoo:timm/resnet10t?classes=50&size=32",
    "zoo:transformers/distilbert",
)
MORE = (
    "zoo:keras/MobileNetV2",
    "zoo:keras/EfficientNetB0",
    "zoo:keras/DenseNet121",
    "zoo:torchvision/resnet18",
    "zoo:torchvision/mobilenet_v3_small",
    "zoo:torchvision/shufflenet_v2_x0_5",
    "zoo:timm/convnext_atto",
    "zoo:timm/vit_tiny_patch16_224",
    "zoo:timm/mobilevit_xxs",
    "zoo:transformers/vit",
    "zoo:transformers/gpt2",
    "zoo:transformers/t5-encoder",
)
OPENED = ("roberta", "albert", "deberta-v2", "llama", "t5", "bart", "deit", "swin", "convnextv2", "segformer", "levit", "wav2vec2")  # fmt: skip
"""Architectures of transformers whose configurations differ most from the others'."""


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=500)) as session:
        yield session


@pytest.fixture
def probe(pool, env):
    """probe(toolchain, function, ...) -> what a function of `zoo_probe` returns in a worker."""

    def ask(toolchain, function, **arguments):
        outcome = pool.call(env(toolchain), "zoo_probe", function, arguments, stage=Stage.LOAD, paths=[HERE])
        assert isinstance(outcome, Ok), outcome
        return outcome.value.value

    return ask


def outputs_of(session, artifact, count=16):
    """The first output for generated inputs, [runs, ...]."""
    signature = session.signature(artifact)
    assert isinstance(signature, Ok), signature
    given = feeds.generate(signature.value, seed=11)
    ran = session.run(artifact, given.of_kind("data"))
    assert isinstance(ran, Ok), ran
    assert not ran.value.failures
    first = signature.value.outputs[0].name
    runs = [np.asarray(run[first]) for run in ran.value.runs.values()]
    return np.concatenate([run.reshape(-1, run.shape[-1]) if run.ndim <= 2 else run.reshape(len(run), -1) for run in runs])  # fmt: skip


def check_lively(values):
    """Outputs [N, ...] are finite and follow the input."""
    assert np.isfinite(values).all()
    share = values.std(0).mean() / np.abs(values).mean()
    assert share > 0.1, "the outputs are (nearly) the same for all inputs"
    assert len(set(values.argmax(1).tolist())) > 2, "the top class is the same for all inputs"


@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_of_each_collection_runs_and_follows_its_input(session, name):
    artifact, signature = api.inspect(name, session=session)
    record = json.loads((artifact.path.parent / zoo.RECORD).read_text())
    assert artifact.format == ("keras" if "keras" in name else "pytorch")
    assert record["notes"] == []
    assert record["variation"]["finite"]
    assert record["variation"]["classes"] > record["variation"]["inputs"] // 4
    assert signature.inputs[0].shape[0] is None or isinstance(signature.inputs[0].shape[0], str), "the batch is open"
    check_lively(outputs_of(session, artifact))


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_models_run_and_follow_their_input(session, name):
    check_lively(outputs_of(session, api.inspect(name, session=session)[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPENED)
def test_every_kind_of_transformer_is_made_and_loads(session, name):
    check_lively(outputs_of(session, api.inspect(f"zoo:transformers/{name}", session=session)[0]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, *MORE])
def test_a_zoo_model_becomes_onnx_and_verifies(session, name, tmp_path):
    done = api.convert(name, to="onnx", out=tmp_path / "model.onnx", session=session, diagnose=False)
    assert done.verification.verdict.value == "faithful"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("toolchain", "collection", "name"),
    [("zoo-vision", "torchvision", "squeezenet1_1"), ("tensorflow", "keras", "MobileNetV2")],
)
def test_without_scaling_the_outputs_hardly_follow_the_input(probe, toolchain, collection, name):
    """The control: what the other tests ask for is not so by itself."""
    plain = probe(toolchain, "unscaled", collection=collection, name=name)
    assert plain["share"] < 0.1 or plain["classes"] < plain["inputs"] // 3


def test_layers_are_scaled_each_in_its_own_way(probe):
    toys = probe("torch", "scaled_toys")
    for name in ("grouped", "up"):
        values = np.moveaxis(toys["seen"][name], 1, -1)
        assert np.allclose(values.std((0, 1, 2)), 1, atol=0.02), name
    closed = np.moveaxis(toys["seen"]["closed"], 1, -1)
    assert closed.std((0, 1, 2)).mean() == pytest.approx(1, abs=0.05), "a kernel of zeros got numbers"
    logits = toys["seen"]["head"]
    assert np.abs(logits.mean(0)).max() < 0.01
    assert np.sqrt(logits.var(0).mean()) == pytest.approx(3, rel=0.01)
    assert toys["gamma"].min() >= 0.3, "a branch that the constructor closes is opened"
    assert toys["factors"].min() >= 0.3
    assert toys["table"].std() > 0.1
    assert toys["unused"], "what no input reaches keeps its weights"
    normalised = np.moveaxis(toys["seen"]["norm"], 1, -1)
    assert np.allclose(normalised.mean((0, 1, 2)), toys["shift"], atol=1e-3), "BatchNorm holds its input's statistics"
    assert np.allclose(normalised.std((0, 1, 2)), toys["factors"], atol=1e-3)


def test_a_matrix_with_two_uses_is_not_scaled(probe):
    assert probe("torch", "tied") == {"same": True, "inner": False}


def test_a_seed_repeats_and_another_differs(session):
    def weights(name):
        artifact, _ = api.inspect(f"zoo:transformers/distilbert?layers=1&{name}", session=session)
        return outputs_of(session, artifact), artifact

    first, one = weights("seed=5")
    other, two = weights("seed=6")
    folder = session.pool.fresh_folder("again")
    again = zoo._make(session, zoo._environment(session, zoo.COLLECTIONS["transformers"]), zoo.parse(one.made_by["factory"]))  # fmt: skip
    repeated = outputs_of(session, zoo._artifact(again, zoo.parse(one.made_by["factory"]), {}))
    assert one.path.parent != two.path.parent
    assert np.array_equal(first, repeated)
    assert not np.allclose(first, other)
    session.pool.release(folder)


def test_options_reach_the_constructors(session):
    def shapes(name):
        _, signature = api.inspect(name, session=session)
        return [list(spec.shape) for spec in (*signature.inputs, *signature.outputs)]

    assert shapes("zoo:keras/MobileNetV3Small?alpha=0.35&size=48&classes=7&batch=3") == [[3, 48, 48, 3], [3, 7]]
    assert shapes("zoo:timm/resnet10t?size=40&classes=5&batch=2") == [[2, 3, 40, 40], [2, 5]]
    assert shapes("zoo:transformers/gpt2?length=9&vocabulary=99&layers=1&width=32&heads=2&batch=2") == [[2, 9], [2, 9], [2, 9, 99]]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["keras/MobileNetV3Small?alpha=0.35&size=48", "timm/resnet10t?size=40"])
def test_a_fixed_batch_of_one_is_scaled_on_as_many_inputs_as_an_open_one(session, name):
    fixed = api.inspect(f"zoo:{name}&batch=1", session=session)[0]
    check_lively(outputs_of(session, fixed))


def test_token_ids_have_the_bounds_of_the_vocabulary(session):
    _, signature = api.inspect("zoo:transformers/distilbert?vocabulary=77&layers=1", session=session)
    ids, mask = signature.inputs
    assert (ids.name, ids.dtype, ids.minimum, ids.maximum) == (
        "input_ids",
        "int64",
        -0 if ids.minimum == 0 else -77,
        76,
    )
    assert (mask.name, mask.dtype) == ("attention_mask", "int64")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zoo:keras/mobilenetv2", "keras has no architecture 'mobilenetv2'; did you mean MobileNetV2"),
        ("zoo:timm/resnet19", "timm has no architecture 'resnet19'; did you mean resnet"),
        ("zoo:transformers/brt", "did you mean bert"),
        ("zoo:torchvision/fasterrcnn_resnet50_fpn", "is left out: it finds objects"),
        ("zoo:keras/VGG16?alpha=0.5", "VGG16 has no width factor; leave out alpha"),
        ("zoo:keras/InceptionV3?size=16", "InceptionV3 does not take pictures of 16 × 16"),
        ("zoo:transformers/bert?heads=3", "cannot build 'bert' of these sizes"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(session, name, words):
    with pytest.raises(zoo.UsageError) as caught:
        zoo.open_name(session, name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("toolchain", "maker", "collection", "name"),
    [
        ("tensorflow", "_zoo_keras", "keras", "MobileNetV2"),
        ("zoo-vision", "_zoo_torch", "torchvision", "resnet18"),
        ("zoo-vision", "_zoo_torch", "timm", "resnet10t"),
        ("zoo-transformers", "_zoo_torch", "transformers", "albert"),
    ],
)
def test_pretrained_weights_without_a_network_are_one_sentence_and_soon(pool, env, tmp_path, toolchain, maker, collection, name):  # fmt: skip
    arguments = {
        "maker": maker,
        "collection": collection,
        "name": name,
        "out": str(tmp_path / "m"),
        "home": str(tmp_path),
    }
    started = time.monotonic()
    outcome = pool.call(env(toolchain), "zoo_probe", "without_network", arguments, stage=Stage.LOAD, paths=[HERE])
    assert isinstance(outcome, Failure)
    assert outcome.kind == Kind.UNSUPPORTED, outcome
    assert f"the pretrained weights of zoo:{collection}/{name} could not be fetched" in outcome.message
    assert "they need the network" in outcome.message
    assert "\n" not in outcome.message
    assert time.monotonic() - started < 120
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_weights_that_torchvision_has_fetched_are_those_of_the_model(probe, tmp_path):
    home, out = str(tmp_path / "home"), str(tmp_path / "m.pt2")
    left = probe("zoo-vision", "leave_torchvision_weights", name="resnet18", home=home)
    made = probe("zoo-vision", "without_network", maker="_zoo_torch", collection="torchvision", name="resnet18", out=out, home=home)  # fmt: skip
    found = probe("torch", "parameters", path=made["path"], words=list(left))
    for key, value in left.items():
        assert np.array_equal(found[key], value), key


def test_a_pretrained_encoder_without_a_head_says_so(probe, tmp_path):
    folder, out = str(tmp_path / "checkpoint"), str(tmp_path / "m.pt2")
    left = probe("zoo-transformers", "leave_transformers_weights", name="electra", folder=folder)
    made = probe("zoo-transformers", "without_network", maker="_zoo_torch", collection="transformers", name="electra", out=out, home=str(tmp_path))  # fmt: skip
    found = probe("torch", "parameters", path=made["path"], words=["word_embeddings.weight"])
    assert np.array_equal(found["word_embeddings.weight"], left["words"])
    assert any("classifier" in note and "random" in note for note in made["notes"])
