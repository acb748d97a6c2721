"""coremltools: the package has the source's names, types, open sizes and numbers, in the precision that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.converters import coreml
from trueport.outcome import Failure, Kind, Stage

HERE = str(Path(__file__).parent)
SEED = 3
STEPS = {step.name: step for step in coreml.STEPS}
SLOW = pytest.mark.slow


class Shop:
    """Models of the zoos, converted once for each set of options, and run where each belongs."""

    def __init__(self, pool, env, folder):
        self.pool, self.env, self.folder = pool, env, folder
        self.saved, self.made = {}, {}

    def call(self, toolchain, module, function, **arguments):
        outcome = self.pool.call(self.env(toolchain), module, function, arguments, stage=Stage.CONVERT, paths=[HERE])
        return outcome if isinstance(outcome, Failure) else outcome.value.value

    def source(self, form, kind):
        """Path of a zoo model in a format."""
        zoo = "torch" if form in ("pytorch", "torchscript") else "keras"
        if (zoo, kind) not in self.saved:
            place = self.folder / zoo
            place.mkdir(exist_ok=True)
            toolchain = {"torch": "torch", "keras": "tensorflow"}[zoo]
            self.saved[zoo, kind] = done(
                self.call(toolchain, f"{zoo}_models", "save", kind=kind, folder=str(place), seed=SEED)
            )
        found = self.saved[zoo, kind]
        return found[form] if isinstance(found, dict) else found

    def signature(self, form, path):
        toolchain, module = RUNNERS[form]
        return done(self.call(toolchain, f"trueport.frameworks.{module}", "signature", path=str(path), trust=False))

    def feeds(self, signature, runs=2, batch=2, seed=SEED):
        rng = np.random.default_rng(seed)
        found = {}
        for spec in signature["inputs"]:
            shape = [runs, *(size if isinstance(size, int) else batch for size in spec["shape"])]
            found[spec["name"]] = (
                rng.normal(0.2, 1.0, shape).astype(spec["dtype"])
                if spec["dtype"].startswith("float")
                else rng.integers(0, 3, shape).astype(spec["dtype"])
            )
        return found

    def try_convert(self, step, kind, path=None, **options):
        """(path, reply) or the Failure."""
        form = STEPS[step].source_format
        source = path or self.source(form, kind)
        signature = self.signature(form, source)
        example = {name: array[0] for name, array in self.feeds(signature).items()}
        out = self.folder / f"{len(self.made)}{'.mlmodel' if options.pop('file', False) else '.mlpackage'}"
        self.made[out] = None
        reply = self.call(
            STEPS[step].toolchain,
            "trueport.converters.coreml",
            "convert",
            step=step,
            source=str(source),
            out=str(out),
            options=options,
            context={"signature": signature, "example": example, "calibration": {}, "trust": False},
        )
        return reply if isinstance(reply, Failure) else (out, reply)

    def convert(self, step, kind, **options):
        key = (step, kind, *sorted(options.items()))
        if key not in self.made:
            self.made[key] = done(self.try_convert(step, kind, **options))
        return self.made[key]

    def run(self, form, path, feeds, **more):
        toolchain, module = RUNNERS[form]
        arguments = {"precision": "float32", "variant": "default", "trust": False, **more}
        name = f"trueport.frameworks.{module}"
        return done(self.call(toolchain, name, "run", path=str(path), cases={"a": feeds}, **arguments))["a"]


RUNNERS = {
    "pytorch": ("torch", "torch"),
    "torchscript": ("torch", "torch"),
    "keras": ("tensorflow", "keras"),
    "coreml": ("coreml", "coreml"),
}


def done(outcome):
    assert not isinstance(outcome, Failure), (outcome.message, outcome.log[-1500:])
    return outcome


@pytest.fixture(scope="module")
def shop(pool, env, tmp_path_factory):
    return Shop(pool, env, tmp_path_factory.mktemp("coreml"))


def compare(shop, step, kind, tolerance=2e-5, **options):
    """Convert, run both sides, and give the largest difference over the outputs; names and shapes must agree."""
    form = STEPS[step].source_format
    path, reply = shop.convert(step, kind, **options)
    signature = shop.signature("coreml", path)
    feeds = shop.feeds(shop.signature(form, shop.source(form, kind)))
    source = shop.run(form, shop.source(form, kind), feeds)
    assert reply["names"] == {}
    assert [spec["name"] for spec in signature["outputs"]] == list(source)
    kinds = {spec["name"]: spec["dtype"] for spec in signature["inputs"]}
    target = shop.run("coreml", path, {name: array.astype(kinds[name]) for name, array in feeds.items()})
    worst = 0.0
    for name, value in source.items():
        value, got = np.asarray(value), np.asarray(target[name])
        assert got.shape == value.shape
        worst = max(worst, float(np.abs(got - value).max()))
    assert worst <= tolerance  # clean float32 noise of nets this size, unless a test says otherwise
    return worst


TORCH = ["residual", *(pytest.param(kind, marks=SLOW) for kind in ("depthwise", "encoder", "mixed"))]


@pytest.mark.parametrize("kind", TORCH)
def test_an_exported_program_becomes_the_same_program(shop, kind):
    compare(shop, "coreml-torch", kind)


@pytest.mark.parametrize("kind", ["lstm", *(pytest.param(kind, marks=SLOW) for kind in ("residual", "gru"))])
def test_a_trace_becomes_the_same_program(shop, kind):
    compare(shop, "coreml-trace", kind)


def test_a_recurrent_program_is_unsupported_without_a_trace(shop):
    failure = shop.try_convert("coreml-torch", "lstm")
    assert isinstance(failure, Failure)
    assert failure.kind is Kind.UNSUPPORTED
    assert "lstm" in failure.message


def test_torchscript_becomes_the_same_program(shop):
    compare(shop, "coreml-torchscript", "residual")


KERAS = ["residual", *(pytest.param(kind, marks=SLOW) for kind in ("depthwise", "multi", "transformer"))]


@pytest.mark.parametrize("kind", KERAS)
def test_a_keras_model_becomes_the_same_program(shop, kind):
    compare(shop, "coreml-keras", kind)


@pytest.mark.parametrize("kind", ["exact_gelu", *(pytest.param(kind, marks=SLOW) for kind in ("residual", "lstm"))])
def test_a_keras_model_on_torch_becomes_the_same_program(shop, kind):
    compare(shop, "coreml-keras-torch", kind)


def test_an_exact_gelu_through_tensorflow_is_unsupported(shop, tmp_path):
    path = tmp_path / "gelu.keras"
    done(shop.call("tensorflow", "coreml_models", "keras_gelu", out=str(path)))
    failure = shop.try_convert("coreml-keras", "gelu", path=path)
    assert isinstance(failure, Failure)
    assert failure.kind is Kind.UNSUPPORTED
    assert "Erfc" in failure.message
    made, _ = done(shop.try_convert("coreml-keras-torch", "gelu", path=path))
    assert "gelu" in shop.signature("coreml", made)["meta"]["operators"]


@pytest.mark.slow
def test_a_savedmodel_becomes_the_same_program(shop, tmp_path):
    source = shop.source("keras", "depthwise")
    folder = tmp_path / "saved"
    done(shop.call("tensorflow", "coreml_models", "export", source=source, out=str(folder)))
    RUNNERS["savedmodel"] = ("tensorflow", "tensorflow")
    made, reply = done(shop.try_convert("coreml-savedmodel", "depthwise", path=folder))
    feeds = shop.feeds(shop.signature("keras", source))
    (name,) = feeds
    (expected,) = shop.run("keras", source, feeds).values()
    inner = {spec["name"]: feeds[name] for spec in shop.signature("coreml", made)["inputs"]}
    (got,) = shop.run("coreml", made, inner).values()
    assert reply["names"] == {}
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


# -- what coremltools would choose silently ---------------------------------------------------------------------------


def test_arithmetic_is_float32_unless_asked(shop):
    path, _ = shop.convert("coreml-torch", "residual")
    meta = shop.signature("coreml", path)["meta"]
    assert meta["precision"] == "float32"
    assert meta["spec_version"] == 7  # iOS16
    assert meta["weights"].keys() == {"float32"}


def test_float16_is_declared_and_costs_what_it_must(shop):
    path, _ = shop.convert("coreml-torch", "residual", precision="float16")
    signature = shop.signature("coreml", path)
    assert signature["meta"]["precision"] == "float16"
    assert {spec["dtype"] for spec in (*signature["inputs"], *signature["outputs"])} == {"float32"}
    assert compare(shop, "coreml-torch", "residual", tolerance=2e-2, precision="float16") > 1e-5  # ten bits of mantissa


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [({"precision": "int8-dynamic"}, 1e-4, 0.3), pytest.param({"palettize": "4"}, 1e-3, 3.0, marks=SLOW)],
)
def test_compressed_weights_are_smaller_and_near(shop, options, low, high):
    plain, _ = shop.convert("coreml-torch", "residual")
    path, _ = shop.convert("coreml-torch", "residual", **options)
    assert weight_bytes(path) < 0.75 * weight_bytes(plain)
    assert low < compare(shop, "coreml-torch", "residual", tolerance=high, **options)  # coarse, and no other model
    assert shop.signature("coreml", path)["meta"]["compressed"]


def weight_bytes(path):
    return next(Path(path).rglob("weight.bin")).stat().st_size


def test_the_older_format(shop):
    path, _ = shop.convert("coreml-torch", "residual", convert_to="neuralnetwork")
    assert shop.signature("coreml", path)["meta"]["model_type"] == "neuralNetwork"
    compare(shop, "coreml-torch", "residual", convert_to="neuralnetwork")


@pytest.mark.slow
def test_the_older_format_in_a_file_with_half_the_bits(shop):
    plain, _ = done(shop.try_convert("coreml-torch", "residual", convert_to="neuralnetwork", file=True))
    half, _ = done(
        shop.try_convert("coreml-torch", "residual", convert_to="neuralnetwork", file=True, precision="float16")
    )
    assert plain.is_file()
    assert half.stat().st_size < 0.75 * plain.stat().st_size


def test_the_batch_stays_open_up_to_a_bound(shop):
    path, _ = shop.convert("coreml-torch", "residual", largest="8")
    (spec,) = shop.signature("coreml", path)["inputs"]
    assert spec["shape"][0] is None
    assert spec["shape"][1:] == [3, 16, 16]
    assert shop.signature("coreml", path)["meta"]["ranges"][spec["name"]][0] == [1, 8]
    for batch in (1, 5):
        feeds = shop.feeds({"inputs": [spec]}, batch=batch)
        (value,) = shop.run("coreml", path, feeds).values()
        (expected,) = shop.run("pytorch", shop.source("pytorch", "residual"), feeds).values()
        np.testing.assert_allclose(value, expected, rtol=0, atol=2e-5)


def test_the_pass_that_shrinks_weights_is_left_out(shop):
    """coremltools makes a normalisation with epsilon 1e-5 and variance 1 of a product and a sum: 5e-6 of every weight."""
    bound = 1e-6
    exact = compare(shop, "coreml-keras", "residual", tolerance=1e-4)
    shrunk = compare(shop, "coreml-keras", "residual", tolerance=1e-3, passes="default")
    assert exact < bound < shrunk


def test_names_that_core_ml_does_not_take_are_told(shop, tmp_path):
    path = tmp_path / "odd.keras"
    done(shop.call("tensorflow", "coreml_models", "keras_odd_names", out=str(path)))
    made, reply = done(shop.try_convert("coreml-keras", "odd", path=path))
    signature = shop.signature("coreml", made)
    assert reply["names"] == {"3rd input": "x3rd_input", "out-put": "out_put"}
    assert [spec["name"] for spec in signature["inputs"]] == ["x3rd_input"]
    assert [spec["name"] for spec in signature["outputs"]] == ["out_put"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"convert_to": "onnx"}, "mlprogram or neuralnetwork"),
        ({"minimum_deployment_target": "iOS99"}, "minimum_deployment_target=iOS99"),
        ({"palettize": "5"}, "palettize=5"),
        ({"largest": "many"}, "give a number"),
        ({"passes": "some"}, "give exact or default"),
        ({"precision": "int8"}, "float32, float16, int8-dynamic"),
    ],
)
def test_an_option_that_means_nothing_is_refused(shop, options, words):
    failure = shop.try_convert("coreml-torch", "residual", **options)
    assert isinstance(failure, Failure)
    assert words in failure.message


def test_steps_and_toolchains_fit():
    assert {step.target_format for step in coreml.STEPS} == {"coreml"}
    assert {step.toolchain for step in coreml.STEPS} == {"coreml-torch", "coreml-tensorflow"}
    assert set(STEPS) == set(coreml._STEPS)
    assert all(step.precisions[0] == "float32" for step in coreml.STEPS)
