"""Zoo names as they are read, the cache of models that were made, and the numbers that weights are scaled by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from trueport import api, opening, zoo
from trueport.envs import Environment
from trueport.errors import UsageError
from trueport.frameworks import _zoo_names, _zoo_scale
from trueport.frameworks._base import BadModel, Unsupported
from trueport.session import Session, Settings
from trueport.toolchains import toolchains

MAKER = """
import json
from pathlib import Path
from trueport.frameworks._base import BadModel, Unsupported


def names(collection):
    return ["large", "small"]


def make(collection, name, options, out):
    if name not in names(collection):
        raise BadModel(f"{collection} has no architecture '{name}'")
    if options["weights"] == "hub":
        raise Unsupported("the weights cannot be fetched")
    if options.get("batch") == 13:
        raise ValueError("an accident")
    count = Path(__file__).with_name("count")
    count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
    Path(out).write_text(Path(__file__).with_name("model.fake").read_text())
    return {"path": out, "notes": ["a note"], "variation": {"share": 1.0}}
"""


@pytest.fixture
def fake_zoo(tmp_path, monkeypatch):
    """A collection `toy` whose models are made by this interpreter, an empty cache, and how often a model was made."""
    from pipeline_models import write

    (tmp_path / "zoo_toy_maker.py").write_text(MAKER)
    write(tmp_path / "model.fake")
    toy = replace(zoo.COLLECTIONS["keras"], maker=ModuleType("zoo_toy_maker"), suffix=".fake", some=("small",))
    monkeypatch.setattr(zoo, "COLLECTIONS", {"toy": toy})
    monkeypatch.setattr(zoo, "_environment", lambda session, collection: Environment(toolchain="fake", python=Path(sys.executable)))  # fmt: skip
    monkeypatch.setenv("TRUEPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)  # the pool looks where a module from outside comes from
    monkeypatch.delitem(sys.modules, "zoo_toy_maker", raising=False)
    settings = Settings(paths=(str(tmp_path),))
    with Session(settings) as session:
        yield session, lambda: int((tmp_path / "count").read_text()) if (tmp_path / "count").exists() else 0


# Names


def test_a_name_is_read_with_its_options_and_typed_values():
    name = zoo.parse("zoo:keras/MobileNetV2?size=96&alpha=0.35&activation=linear")
    assert (name.collection, name.architecture) == ("keras", "MobileNetV2")
    assert name.options == {"weights": "random", "size": 96, "alpha": 0.35, "activation": "linear"}
    assert name.stem == "MobileNetV2"


def test_the_same_model_has_one_name_however_its_options_are_written():
    first = zoo.parse("zoo:timm/resnet18.a1_in1k?size=64&seed=3&weights=random")
    second = zoo.parse("zoo:timm/resnet18.a1_in1k?seed=03&size=064")
    assert str(first) == str(second) == "zoo:timm/resnet18.a1_in1k?seed=3&size=64"
    assert zoo.parse(str(first)) == zoo.parse(str(second))
    assert first.stem == "resnet18_a1_in1k"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("zoo:torch/resnet18", "no collection 'torch'; it has keras, torchvision, timm, transformers"),
        ("zoo:keras/", "name an architecture, such as zoo:keras/MobileNetV2"),
        ("zoo:keras/../../etc", "name an architecture"),
        ("zoo:keras/VGG16?siz=64", "have no option 'siz'; they have weights, seed, batch, size"),
        ("zoo:keras/VGG16?layers=2", "keras models have no option 'layers'"),
        ("zoo:keras/VGG16?size=4", "size must be a whole number from 8 to 1024, not '4'"),
        ("zoo:keras/VGG16?size=-64", "size must be a whole number"),
        ("zoo:keras/VGG16?size=", "size must be a whole number"),
        ("zoo:keras/VGG16?size", "options are written as ?size=96&classes=10"),
        ("zoo:keras/MobileNetV2?alpha=0", "alpha must be a number above 0"),
        ("zoo:keras/MobileNetV2?activation=relu", "activation must be softmax or linear, not 'relu'"),
        ("zoo:transformers/bert?weights=good", "weights must be random or hub, not 'good'"),
        ("zoo:transformers/bert?weights=hub&layers=2", "pretrained weights come with their own layers"),
        ("zoo:timm/resnet18?weights=hub&classes=10", "pretrained weights come with their own classes"),
    ],
)
def test_what_is_no_name_is_refused_with_the_cure(text, words):
    with pytest.raises(UsageError) as caught:
        zoo.parse(text)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["zoo:", "zoo:keras", "zoo:keras/"])
def test_a_collection_is_a_list_and_no_model(text):
    assert zoo.is_list(text)
    assert zoo.is_name(text)


@pytest.mark.parametrize("text", ["zoo:keras/VGG16", "zoo:keras/VGG16?size=64", "zoo:torch/x"])
def test_a_model_is_no_list(text):
    assert not zoo.is_list(text)


@pytest.mark.parametrize("model", ["model.onnx", "package.module:factory", "zoology:make", Path("zoo:keras"), None])
def test_other_models_are_none_of_the_zoo(model):
    assert not zoo.is_name(model)


# Making and keeping


def test_a_model_is_made_once_and_then_found(fake_zoo):
    session, count = fake_zoo
    first = zoo.open_name(session, "zoo:toy/small?seed=1&size=64")
    second = zoo.open_name(session, "zoo:toy/small?size=64&seed=1")
    assert count() == 1
    assert first == second
    assert first.format == "fake"
    assert first.path.name == "small.fake"
    assert first.made_by["factory"] == "zoo:toy/small?seed=1&size=64"
    assert first.made_by["notes"] == ["a note"]
    assert first.made_by["versions"]["numpy"] == np.__version__


@pytest.mark.parametrize("other", ["zoo:toy/large", "zoo:toy/small?seed=2", "zoo:toy/small?size=96"])
def test_every_part_of_a_name_counts(fake_zoo, other):
    session, count = fake_zoo
    first = zoo.open_name(session, "zoo:toy/small?seed=1")
    assert zoo.open_name(session, other).path != first.path
    assert count() == 2


def test_another_toolchain_makes_another_model(fake_zoo, monkeypatch):
    session, _ = fake_zoo
    first = zoo.open_name(session, "zoo:toy/small")
    row = toolchains()["tensorflow"]
    changed = {"tensorflow": replace(row, lock=(*row.lock[:-1], "wrapt==99.0"))}
    monkeypatch.setattr(zoo.toolchains, "toolchains", lambda: changed)
    assert zoo.open_name(session, "zoo:toy/small").path != first.path


def test_what_an_interpreter_of_the_users_makes_is_not_kept(fake_zoo):
    session, count = fake_zoo
    object.__setattr__(session, "settings", replace(session.settings, python=Path(sys.executable)))
    first = zoo.open_name(session, "zoo:toy/small")
    second = zoo.open_name(session, "zoo:toy/small")
    assert count() == 2
    assert first.made_by["python"] == sys.executable
    assert first.path.is_relative_to(session.pool.folder)
    assert second.path != first.path


def test_nothing_half_made_lies_in_the_cache(fake_zoo, tmp_path):
    session, _ = fake_zoo
    for name, words in (
        ("zoo:toy/smal", "toy has no architecture 'smal'"),
        ("zoo:toy/small?weights=hub", "zoo:toy/small?weights=hub cannot be made (unsupported): the weights cannot"),
        ("zoo:toy/small?batch=13", "cannot be made (raised): ValueError: an accident"),
    ):
        with pytest.raises(UsageError) as caught:
            zoo.open_name(session, name)
        assert words in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*"))
    zoo.open_name(session, "zoo:toy/small")
    assert [path.name.partition("-")[0] for path in (tmp_path / "cache" / "zoo").iterdir()] == ["small"]


def test_a_damaged_record_is_told_with_the_cure(fake_zoo):
    session, _ = fake_zoo
    kept = zoo.open_name(session, "zoo:toy/small").path.parent
    (kept / zoo.RECORD).write_text("{")
    with pytest.raises(UsageError, match=r"is damaged; remove it, and zoo:toy/small is made again"):
        zoo.open_name(session, "zoo:toy/small")


def test_a_quicker_process_wins(fake_zoo):
    session, _ = fake_zoo
    kept = zoo.open_name(session, "zoo:toy/small").path.parent
    late = session.pool.fresh_folder("late")
    (late / zoo.RECORD).write_text("{}")
    zoo._keep(late, kept)
    assert json.loads((kept / zoo.RECORD).read_text())["name"] == "zoo:toy/small"
    assert list(kept.parent.iterdir()) == [kept]


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 1)() == 0, reason="everything can be written")
def test_a_cache_that_cannot_be_written_is_told(fake_zoo, tmp_path):
    session, _ = fake_zoo
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        zoo.open_name(session, "zoo:toy/small")


def test_a_file_in_the_caches_place_is_told(fake_zoo, tmp_path):
    session, _ = fake_zoo
    (tmp_path / "cache").write_text("")
    with pytest.raises(UsageError, match=r"the cache folder .* cannot be written"):
        zoo.open_name(session, "zoo:toy/small")


def test_pretrained_weights_are_not_asked_for_offline(fake_zoo):
    session, count = fake_zoo
    object.__setattr__(session, "settings", replace(session.settings, offline=True))
    with pytest.raises(UsageError, match="pretrained weights need the network, and --offline was given"):
        zoo.open_name(session, "zoo:toy/small?weights=hub")
    assert count() == 0


# Where sources are accepted


def test_a_zoo_name_is_a_source_like_any_other(fake_zoo, tmp_path):
    session, count = fake_zoo
    artifact, signature = api.inspect("zoo:toy/small?size=64", session=session)
    assert artifact.format == "fake"
    assert signature.inputs
    verification = api.verify("zoo:toy/small?size=64", artifact.path, session=session)
    assert verification.verdict.value == "faithful"
    assert count() == 1


def test_a_checkpoint_does_not_go_with_a_zoo_name(fake_zoo):
    session, _ = fake_zoo
    with pytest.raises(UsageError, match="a zoo model has weights=random or weights=hub"):
        opening.open_model(session, "zoo:toy/small", None, "weights.pth", None)


def test_a_list_is_no_model(fake_zoo):
    session, _ = fake_zoo
    with pytest.raises(UsageError, match="zoo:toy/ names no model; zoo:toy/small is one"):
        zoo.open_name(session, "zoo:toy/")


def test_a_result_is_called_after_the_architecture(fake_zoo):
    session, _ = fake_zoo
    source = "zoo:toy/small?size=64"
    assert api.default_output(source, zoo.open_name(session, source), "onnx") == Path("small.onnx")


def test_a_collection_lists_what_it_has(fake_zoo):
    session, _ = fake_zoo
    assert zoo.listing(session, "zoo:toy/") == "zoo:toy/large\nzoo:toy/small"
    with pytest.raises(UsageError, match="no collection 'other'"):
        zoo.listing(session, "zoo:other/")


def test_inspecting_the_zoo_tells_the_collections_and_their_options():
    code = "import sys; from trueport.cli import main; sys.argv[1:] = ['inspect', 'zoo:']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines[1:]] == ["keras", "torchvision", "timm", "transformers"]
    assert "MobileNetV2" in lines[1]
    assert "options weights, seed, batch, size" in lines[2]


# The toolchains


@pytest.mark.parametrize("name", ["zoo-vision", "zoo-transformers"])
def test_a_zoo_model_is_written_by_the_torch_that_reads_it(name):
    def torch_of(toolchain):
        return next(line for line in toolchains()[toolchain].lock if line.startswith("torch=="))

    assert torch_of(name) == torch_of("torch"), "a .pt2 file belongs to its version of torch"


def test_every_collection_has_a_toolchain():
    for collection in zoo.COLLECTIONS.values():
        assert collection.toolchain in toolchains()
        assert zoo.BUILT[-1] == "seed"
        assert set(zoo.COMMON) <= set(collection.options)


# What makers say


def test_an_unknown_architecture_is_told_with_near_names():
    error = _zoo_names.unknown("keras", "mobilenetv2", ["MobileNetV2", "VGG16"])
    assert isinstance(error, BadModel)
    assert "did you mean MobileNetV2?" in str(error)
    assert "zoo:keras/` lists all 2" in str(error)
    assert "did you mean" not in str(_zoo_names.unknown("keras", "qqqq", ["MobileNetV2", "VGG16"]))


def test_weights_that_cannot_be_fetched_are_one_sentence():
    def load():
        raise OSError("no such host\nand a long story")

    with pytest.raises(Unsupported) as caught:
        _zoo_names.fetched("timm", "x", load)
    assert "zoo:timm/x could not be fetched (no such host); they need the network" in str(caught.value)
    assert _zoo_names.fetched("timm", "x", lambda: 5) == 5


def test_fetching_has_its_own_patience_and_leaves_the_old_one():
    import socket

    before = socket.getdefaulttimeout()
    assert _zoo_names.fetched("timm", "x", socket.getdefaulttimeout) == _zoo_names.PATIENCE
    assert socket.getdefaulttimeout() == before


# Numbers


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_scaled_channels_have_deviation_one_and_small_means(rng):
    outputs = rng.normal(3, 1, (400, 64)) * np.linspace(2, 20, 64)
    factors, mean = _zoo_scale.channels(outputs, rng)
    now = outputs * factors + (mean - factors * outputs.mean(0))
    assert np.allclose(now.std(0), 1)
    assert np.allclose(now.mean(0), mean)
    assert 0.5 * _zoo_scale.SHIFT < mean.std() < 2 * _zoo_scale.SHIFT


def test_a_dead_channel_is_not_blown_up(rng):
    outputs = rng.normal(0, 1, (400, 10))
    outputs[:, 3] *= 1e-9
    factors, _ = _zoo_scale.channels(outputs, rng)
    assert factors[3] < 1.5 / _zoo_scale.LEAST


def test_a_dead_layer_keeps_its_weights(rng):
    for outputs in (np.zeros((5, 4)), np.full((5, 4), np.inf)):
        with np.errstate(invalid="ignore"):
            factors, mean = _zoo_scale.channels(outputs, rng)
        assert np.array_equal(factors, np.ones(4))
        assert not mean.any()


@pytest.mark.parametrize("shape", [(200, 10), (200, 7, 10), (200, 3, 4, 10)])
def test_a_head_is_centred_and_spread_over_the_inputs(rng, shape):
    outputs = 100 + 1e-3 * rng.normal(0, 1, shape)
    factor, centre = _zoo_scale.head(outputs)
    logits = (outputs - centre) * factor
    assert abs(logits.mean()) < 0.1
    assert np.sqrt(logits.reshape(200, -1).var(0).mean()) == pytest.approx(_zoo_scale.SPREAD)


def test_what_differs_between_places_only_is_not_taken_for_spread(rng):
    """A map that is the same for all inputs but for a trace must be scaled by the trace."""
    place = rng.normal(0, 1, (1, 9, 4))
    outputs = place + 1e-4 * rng.normal(0, 1, (50, 9, 4))
    factor, _ = _zoo_scale.head(outputs)
    assert factor == pytest.approx(_zoo_scale.SPREAD / 1e-4, rel=0.1)


def test_factors_biases_and_closed_branches(rng):
    ones, zeros = np.ones(500, np.float32), np.zeros(500, np.float32)
    assert _zoo_scale.vector(ones, "weight", rng).min() >= _zoo_scale.OPEN[0]
    opened = _zoo_scale.vector(zeros, "weight", rng)
    assert _zoo_scale.BRANCH[0] <= opened.min() <= opened.max() <= _zoo_scale.BRANCH[1]
    assert np.array_equal(opened > 0, np.ones(500, bool))
    assert _zoo_scale.vector(ones * 1e-6, "gamma", rng).min() >= _zoo_scale.BRANCH[0]
    bias = _zoo_scale.vector(zeros, "bias", rng)
    assert abs(bias.mean()) < 0.05
    assert bias.dtype == np.float32


def test_pictures_differ_are_smooth_and_repeat_with_their_seed():
    made = _zoo_scale.pictures(8, (32, 48, 3), seed=5)
    assert made.shape == (8, 32, 48, 3)
    assert made.dtype == np.float32
    assert np.abs(made).max() <= 2
    assert np.array_equal(made, _zoo_scale.pictures(8, (32, 48, 3), seed=5))
    assert not np.array_equal(made, _zoo_scale.pictures(8, (32, 48, 3), seed=6))
    assert np.corrcoef(made.reshape(8, -1))[np.triu_indices(8, 1)].max() < 0.9
    step = np.abs(np.diff(made, axis=1)).mean()
    assert step < 0.5 * made.std(), "neighbours are alike, as in pictures"


def test_videos_have_one_more_axis():
    assert _zoo_scale.pictures(2, (4, 16, 16, 3), seed=0).shape == (2, 4, 16, 16, 3)


def test_sounds_differ_and_repeat():
    made = _zoo_scale.signals(4, 1000, seed=1)
    assert made.shape == (4, 1000)
    assert np.array_equal(made, _zoo_scale.signals(4, 1000, seed=1))
    assert np.abs(np.corrcoef(made)[np.triu_indices(4, 1)]).max() < 0.5


def test_variation_tells_outputs_that_follow_the_input_from_those_that_do_not(rng):
    lively = _zoo_scale.variation(rng.normal(0, 1, (20, 10)))
    still = _zoo_scale.variation(np.tile(rng.normal(0, 1, (1, 10)), (20, 1)) + 1e-5 * rng.normal(0, 1, (20, 10)))
    assert lively["share"] > 0.5
    assert lively["classes"] > 5
    assert still["share"] < 1e-3
    assert still["classes"] == 1
    assert not _zoo_scale.variation(np.array([[np.nan, 1.0], [0.0, 1.0]]))["finite"]


def test_a_deep_random_network_needs_the_scaling(rng):
    """Twenty layers of ReLU with plain random weights answer every input alike; scaled by data they do not."""
    data = rng.normal(0, 1, (64, 32))

    def outputs(scaled):
        values = data
        for number in range(20):
            product = values @ np.random.default_rng(number).normal(0, (2 / 32) ** 0.5, (32, 32))
            if scaled:
                factors, mean = _zoo_scale.channels(product, rng)
                product = product * factors + (mean - factors * product.mean(0))
            values = np.maximum(product, 0)
        if scaled:
            factor, centre = _zoo_scale.head(values)
            values = (values - centre) * factor
        return _zoo_scale.variation(values)

    plain, scaled = outputs(False), outputs(True)
    assert plain["share"] < 0.5
    assert scaled["share"] > 0.9
    assert scaled["classes"] > 3 * plain["classes"]
