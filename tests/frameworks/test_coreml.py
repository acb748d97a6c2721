"""Core ML packages in the framework file: recognised, described, evaluated, traced, cut; and told apart when damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from trueport import Verdict, verify
from trueport.errors import UsageError
from trueport.frameworks import coreml
from trueport.outcome import Failure, Kind, Ok, Stage

HERE = str(Path(__file__).parent)
MODULE = "trueport.frameworks.coreml"


@pytest.fixture(scope="module")
def package(pool, env, tmp_path_factory):
    """package(name) -> path of a model of mil_models, made once."""
    folder = tmp_path_factory.mktemp("coreml")
    made = {}

    def get(name):
        if name not in made:
            arguments = {"name": name, "folder": str(folder)}
            outcome = pool.call(env("coreml"), "mil_models", "build", arguments, stage=Stage.LOAD, paths=[HERE])
            assert isinstance(outcome, Ok), outcome
            made[name] = outcome.value.value
        return made[name]

    return get


@pytest.fixture(scope="module")
def call(pool, env):
    """call(function, path, ...) -> the Outcome of that function of the framework file in a worker."""

    def run(function, path, *, emit=False, **arguments):
        given = {"path": str(path), "trust": False, **arguments}
        return pool.call(env("coreml"), MODULE, function, given, stage=Stage.RUN, emit=emit)

    return run


@pytest.fixture(scope="module")
def outputs(call):
    """outputs(path, inputs, ...) -> name -> array [R, *shape]."""

    def run(path, inputs, *, precision="float32", variant="default"):
        outcome = call("run", path, cases={"case": inputs}, precision=precision, variant=variant)
        assert isinstance(outcome, Ok), outcome
        return {name: np.array(value) for name, value in outcome.value.value["case"].items()}

    return run


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weights(*shape, seed=0):  # as in mil_models
    return noise(*shape, seed=seed)


def convolved(x):
    """The first two layers of `network`, in float64: [N, 8, 4, 4]."""
    kernel, bias = weights(8, 3, 3, 3).astype(np.float64), weights(8, seed=1)
    wide = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1)])
    found = np.zeros((len(x), 8, 4, 4))
    for row in range(4):
        for column in range(4):
            window = wide[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            found[:, :, row, column] = np.einsum("nchw,ochw->no", window, kernel) + bias
    return np.maximum(found, 0)


def scored(hidden):
    """What `network` makes of its hidden values."""
    scores = hidden.mean((2, 3)) @ weights(5, 8, seed=2).astype(np.float64).T + weights(5, seed=3)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


# -- recognising


def test_a_package_is_known_by_its_manifest(package, tmp_path):
    path = Path(package("network"))
    assert coreml.sniff(b"", path) == "coreml"
    (tmp_path / "Manifest.json").write_text('{"rootModelIdentifier": "x"}')
    assert coreml.sniff(b"", tmp_path) is None
    assert coreml.sniff(b"", tmp_path / "nothing") is None


def test_a_file_is_known_by_suffix_and_version(tmp_path):
    assert coreml.sniff(b"\x08\x07\x12", tmp_path / "a.mlmodel") == "coreml"
    assert coreml.sniff(b"\x08\x07\x12", tmp_path / "a.onnx") is None
    assert coreml.sniff(b"PK", tmp_path / "a.mlmodel") is None


# -- describing


def test_signature(call, package):
    described = call("signature", package("network")).value.value
    assert described["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 3, 8, 8]}]
    assert described["outputs"] == [{"name": "y", "dtype": "float32", "shape": [1, 5]}]
    meta = described["meta"]
    assert meta["operators"] == {"conv": 1, "relu": 1, "reduce_mean": 1, "linear": 1, "softmax": 1}
    assert meta["parameters"] == 8 * 27 + 8 + 40 + 5
    assert meta["precision"] == "float32"
    assert call("signature", package("half")).value.value["meta"]["precision"] == "float16"


def test_open_sizes_are_none_and_choices_are_listed(call, package):
    ranged = call("signature", package("ranged")).value.value
    assert ranged["inputs"][0]["shape"] == [None, 4]
    assert ranged["meta"]["ranges"] == {"x": [[1, 6], [4, 4]]}
    listed = call("signature", package("enumerated")).value.value
    assert listed["meta"]["shapes"] == {"x": [[1, 4], [3, 4]]}


def test_sizes_outside_of_what_the_model_takes_are_refused(call, outputs, package):
    assert outputs(package("ranged"), {"x": noise(2, 5, 4)})["y"].shape == (2, 5, 3)
    assert outputs(package("enumerated"), {"x": noise(2, 3, 4)})["y"].shape == (2, 3, 3)
    for name, rows, words in (("ranged", 7, "1 to 6"), ("enumerated", 2, "1×4, 3×4"), ("network", 2, "1×3×8×8")):
        shape = (1, rows, 4) if name != "network" else (1, rows, 3, 8, 8)
        outcome = call("run", package(name), cases={"c": {"x": noise(*shape)}}, precision="float32", variant="default")
        assert isinstance(outcome, Failure)
        assert words in outcome.message


def test_an_embedding_bounds_its_indices(call, package):
    (spec,) = call("signature", package("embedding")).value.value["inputs"]
    assert (spec["dtype"], spec["minimum"], spec["maximum"]) == ("int32", 0, 6)


def test_an_image_says_its_colours(call, outputs, package):
    described = call("signature", package("image")).value.value
    assert described["meta"]["images"] == {"x": {"colors": "BGR", "height": 8, "width": 8}}
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 3, 8, 8)).astype(np.float32)
    wanted = scored(convolved(pixels.reshape(2, 3, 8, 8) / 127.5 - 1))
    np.testing.assert_allclose(outputs(package("image"), {"x": pixels})["y"][:, 0], wanted, rtol=1e-4, atol=1e-6)


def test_a_classifier_gives_its_probabilities_in_the_order_of_its_classes(call, outputs, package):
    described = call("signature", package("classifier")).value.value
    assert [item["name"] for item in described["outputs"]] == ["classLabel_probs"]
    assert "classLabel" in described["meta"]["notes"][0]
    x = noise(2, 1, 3, 8, 8)
    wanted = scored(convolved(x[:, 0]))
    np.testing.assert_allclose(outputs(package("classifier"), {"x": x})["classLabel_probs"][:, 0], wanted, rtol=1e-4)


# -- running


def test_every_variant_and_precision_computes_the_network(outputs, package):
    x = noise(3, 1, 3, 8, 8)
    wanted = scored(convolved(x[:, 0]))
    for variant in ("default", "float32", "plain-kernels", "single-thread"):
        np.testing.assert_allclose(outputs(package("network"), {"x": x}, variant=variant)["y"][:, 0], wanted, atol=1e-6)
    double = outputs(package("network"), {"x": x}, precision="float64")["y"]
    assert double.dtype == np.float64
    np.testing.assert_allclose(double[:, 0], wanted, rtol=1e-12)


def test_halves_are_rounded_by_default_and_not_in_the_variant_float32(outputs, package):
    x = noise(3, 1, 3, 8, 8)
    exact = outputs(package("half"), {"x": x}, precision="float64")["y"]
    rounded = np.abs(outputs(package("half"), {"x": x})["y"] - exact).max()
    smooth = np.abs(outputs(package("half"), {"x": x}, variant="float32")["y"] - exact).max()
    assert rounded > 20 * smooth
    assert rounded < 0.02


def test_simulated_half_weights(outputs, package):
    x = noise(2, 1, 3, 8, 8)
    plain, halved = (outputs(package("network"), {"x": x}, precision=p)["y"] for p in ("float32", "float16"))
    assert 1e-6 < np.abs(plain - halved).max() < 1e-2


def test_loops_branches_and_lists(outputs, package):
    x = np.array([[1.0, 2.0], [30.0, 30.0]], np.float32)
    # 3 doubles to 192 in six rounds (even: kept), 60 to 120 in one (odd: negated)
    assert outputs(package("loop"), {"x": x})["y"].tolist() == [[65.0, 129.0], [-61.0, -61.0]]
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert outputs(package("lists"), {"x": rows})["y"].tolist() == [[[2, 3], [0, 1]], [[6, 7], [4, 5]]]


def test_a_state_starts_at_zero_in_every_run(call, outputs, package):
    assert call("signature", package("state")).value.value["meta"]["state"][0]["name"] == "total"
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float16)
    assert outputs(package("state"), {"x": x})["y"].tolist() == (3 * x).tolist()


def test_operators_without_a_kernel_are_named_before_anything_runs(call, package):
    cases = {"c": {"x": noise(1, 2, 2)}}
    outcome = call("run", package("random"), cases=cases, precision="float32", variant="default")
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED
    assert "random_normal" in outcome.message
    assert "band_part" not in outcome.message
    assert isinstance(call("signature", package("random")), Ok)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int8"}, "not in int8"),
        ({"variant": "native"}, "macOS"),
        ({"variant": "fast"}, "no variant"),
    ],
)
def test_what_cannot_be_run_says_so(call, package, options, words):
    arguments = {"precision": "float32", "variant": "default", **options}
    outcome = call("run", package("network"), cases={"c": {"x": noise(1, 1, 3, 8, 8)}}, **arguments)
    assert isinstance(outcome, Failure)
    assert words in outcome.message


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "needs a value for its input 'x'"),
        ({"z": noise(1, 1, 3, 8, 8)}, "has no input 'z'"),
        ({"x": noise(1, 3, 8, 8)}, "takes 1×3×8×8"),
    ],
)
def test_wrong_inputs(call, package, inputs, words):
    outcome = call("run", package("network"), cases={"c": inputs}, precision="float32", variant="default")
    assert isinstance(outcome, Failure)
    assert words in outcome.message


def test_integers_that_do_not_fit_are_refused(call, package):
    arguments = {"precision": "float32", "variant": "default"}
    wide = np.full((1, 2, 3), 2**40)
    outcome = call("run", package("embedding"), cases={"c": {"x": wide}}, **arguments)
    assert isinstance(outcome, Failure)
    assert "do not fit" in outcome.message
    assert isinstance(call("run", package("embedding"), cases={"c": {"x": wide % 7}}, **arguments), Ok)


# -- compressed weights


def read_parameters(call, path):
    outcome = call("parameters", path, emit=True)
    assert isinstance(outcome, Ok), outcome
    return {name: np.array(value) for name, value in outcome.value.emitted.items()}


@pytest.mark.parametrize("name", ["quantized", "quantized_blocks", "palettized", "palettized_groups", "pruned"])
def test_compressed_weights_unpack_to_what_coremltools_unpacks_them_to(pool, env, call, package, name):
    path = package(name)
    outcome = pool.call(env("coreml"), "mil_models", "dense_weights", {"path": path}, stage=Stage.LOAD, paths=[HERE])
    assert isinstance(outcome, Ok), outcome
    wanted = {tuple(shape): np.array(values).reshape(shape) for shape, values in outcome.value.value}
    ours = {value.shape: value for value in read_parameters(call, path).values() if value.ndim == 2}
    assert ours.keys() == wanted.keys() == {(64, 32), (16, 64)}
    for shape, value in wanted.items():
        np.testing.assert_allclose(ours[shape], value, rtol=1e-6, atol=1e-7)
    meta = call("signature", path).value.value["meta"]
    assert meta["parameters"] == 64 * 32 + 64 + 16 * 64 + 16
    assert sum(meta["compressed"].values()) == 2


def test_declared_precision_of_compressed_weights(call, package):
    declared = {
        name: call("signature", package(name)).value.value["meta"]["precision"]
        for name in ("quantized", "palettized", "pruned")
    }
    assert declared == {"quantized": "int8-dynamic", "palettized": "int8-dynamic", "pruned": "float32"}


# -- looking inside


def traced(call, path, inputs, wanted, budget=1 << 24):
    outcome = call("trace", path, emit=True, inputs=inputs, wanted=wanted, budget=budget)
    assert isinstance(outcome, Ok), outcome
    return {name: np.array(value) for name, value in outcome.value.emitted.items()}, outcome.value.value


def test_trace_gives_every_value(call, package):
    x = noise(3, 1, 3, 8, 8)
    names = call("names", package("network")).value.value
    assert names[1:] == ["hidden", "mean", "scores", "y"]
    values, facts = traced(call, package("network"), {"x": x}, names)
    assert facts == {"uneven": []}
    np.testing.assert_allclose(values["hidden"][:, 0], convolved(x[:, 0]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values["y"][:, 0], scored(convolved(x[:, 0])), rtol=1e-4, atol=1e-6)


def test_a_small_budget_gives_the_same_values(call, package):
    x = noise(4, 1, 3, 8, 8)
    names = call("names", package("network")).value.value
    wide, _ = traced(call, package("network"), {"x": x}, names)
    narrow, _ = traced(call, package("network"), {"x": x}, names, budget=1)
    assert wide.keys() == narrow.keys()
    for name, value in wide.items():
        np.testing.assert_array_equal(value, narrow[name])


def test_halves_are_traced_as_halves(call, package):
    names = call("names", package("half")).value.value
    values, _ = traced(call, package("half"), {"x": noise(2, 1, 3, 8, 8)}, names)
    assert {value.dtype.name for name, value in values.items() if "hidden" in name} == {"float16"}


def replayed(call, path, inputs, given, wanted, variant=""):
    arguments = {"inputs": inputs, "given": given, "wanted": wanted, "variant": variant, "budget": 1 << 24}
    outcome = call("replay", path, emit=True, **arguments)
    assert isinstance(outcome, Ok), outcome
    return {name: np.array(value) for name, value in outcome.value.emitted.items()}, outcome.value.value["skipped"]


def test_replay_reads_what_is_given_and_needs_nothing_before_it(call, package):
    hidden = np.abs(noise(3, 1, 8, 4, 4, seed=5))
    found, skipped = replayed(call, package("network"), {}, {"hidden": hidden}, ["y", "mean"])
    assert skipped == {}
    np.testing.assert_allclose(found["y"][:, 0], scored(hidden[:, 0].astype(np.float64)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["mean"][:, 0], hidden[:, 0].mean((2, 3)), rtol=1e-5)


def test_a_value_that_is_given_and_wanted_is_what_its_own_producer_makes(call, package):
    x, other = noise(2, 1, 3, 8, 8), np.zeros((2, 1, 8, 4, 4), np.float32)
    found, _ = replayed(call, package("network"), {"x": x}, {"hidden": other}, ["hidden", "mean"])
    np.testing.assert_allclose(found["hidden"][:, 0], convolved(x[:, 0]), rtol=1e-4, atol=1e-5)
    assert not found["mean"].any()


def test_replay_of_an_input_and_of_a_missing_one(call, package):
    x = noise(2, 1, 3, 8, 8)
    found, _ = replayed(call, package("network"), {}, {"x": x}, ["hidden"])
    np.testing.assert_allclose(found["hidden"][:, 0], convolved(x[:, 0]), rtol=1e-4, atol=1e-5)
    arguments = {"inputs": {}, "given": {}, "wanted": ["mean"], "variant": "", "budget": 1 << 24}
    outcome = call("replay", package("network"), emit=True, **arguments)
    assert isinstance(outcome, Failure)
    assert "'x' is needed" in outcome.message


def test_an_operator_that_cannot_take_what_is_given_spoils_only_what_depends_on_it(call, package):
    given = {"mean": noise(2, 1, 9)}  # the dense layer takes 8
    x = noise(2, 1, 3, 8, 8)
    found, skipped = replayed(call, package("network"), {"x": x}, given, ["hidden", "scores", "y"])
    assert list(found) == ["hidden"]
    assert set(skipped) == {"scores", "y"}
    assert skipped["y"].startswith("linear")


def test_replay_cuts_into_a_program_with_loops(call, package):
    found, _ = replayed(call, package("loop"), {"x": noise(1, 2)}, {"shifted": np.array([[3, 4]], np.float32)}, ["y"])
    assert np.abs(found["y"]).tolist() == [[3.0, 4.0]]


def test_graph(call, package):
    shown = call("graph", package("network")).value.value
    assert [node["op"] for node in shown["nodes"]] == ["Conv", "Relu", "ReduceMean", "Gemm", "Softmax"]
    conv = shown["nodes"][0]
    assert conv["native_op"] == "conv"
    assert conv["attributes"]["strides"] == [2, 2]
    assert conv["attributes"]["pad"] == [1, 1, 1, 1]
    data, kernel, bias = conv["inputs"]
    assert data == "x"
    assert shown["constants"][kernel]["shape"] == [8, 3, 3, 3]
    assert shown["constants"][bias]["shape"] == [8]
    assert (shown["inputs"], shown["outputs"]) == (["x"], ["y"])
    emitted = read_parameters(call, package("network"))
    assert emitted.keys() == shown["constants"].keys()
    np.testing.assert_array_equal(emitted[kernel], weights(8, 3, 3, 3))


def test_a_loop_shows_what_its_blocks_read(call, package):
    shown = call("graph", package("loop")).value.value
    branch = next(node for node in shown["nodes"] if node["native_op"] == "cond")
    assert "shifted" in branch["inputs"]


# -- damage


@pytest.fixture
def copied(package, tmp_path):
    path = tmp_path / "model.mlpackage"
    shutil.copytree(package("network"), path)
    return path


def test_a_package_without_its_model(call, copied):
    next(copied.rglob("model.mlmodel")).unlink()
    outcome = refused(call, copied)
    assert "missing" in outcome


def test_a_damaged_manifest(call, copied):
    manifest = copied / "Manifest.json"
    content = json.loads(manifest.read_text())
    del content["rootModelIdentifier"]
    manifest.write_text(json.dumps(content))
    assert "names no model" in refused(call, copied)


def test_a_model_cut_short(call, copied):
    file = next(copied.rglob("model.mlmodel"))
    file.write_bytes(file.read_bytes()[:-7])
    assert "cut short" in refused(call, copied)


def test_weights_cut_short(call, copied):
    file = next(copied.rglob("weight.bin"))
    file.write_bytes(file.read_bytes()[:128])
    with pytest.raises(UsageError, match="no array at offset"):
        call("run", copied, cases={"c": {"x": noise(1, 1, 3, 8, 8)}}, precision="float32", variant="default")


def refused(call, path):
    with pytest.raises(UsageError) as caught:
        call("signature", path)
    return str(caught.value)


# -- with the rest


def test_a_package_is_faithful_to_itself_and_halves_are_judged_as_halves(package):
    same = verify(package("network"), package("network"))
    assert same.verdict is Verdict.FAITHFUL
    halves = verify(package("network"), package("half"))
    assert halves.verdict is Verdict.FAITHFUL
    assert halves.declared_precision == "float16"


def test_another_network_is_not(package, call, tmp_path):
    """The same file with one weight changed in place."""
    path = tmp_path / "changed.mlpackage"
    shutil.copytree(package("network"), path)
    file = next(path.rglob("weight.bin"))
    data = bytearray(file.read_bytes())
    stored = weights(8, 3, 3, 3).tobytes()
    place = bytes(data).find(stored[:64])
    assert place > 0
    changed = weights(8, 3, 3, 3)
    changed[:, 0] *= 1.2
    data[place : place + len(stored)] = changed.tobytes()
    file.write_bytes(bytes(data))
    assert verify(package("network"), str(path)).verdict is Verdict.DEVIATES
