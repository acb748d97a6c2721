"""JAX: exported functions must run as the functions themselves, show values that their outputs follow from, and convert."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import trueport
from trueport.artifact import sniff
from trueport.errors import UntrustedError, UsageError
from trueport.frameworks import jax as framework
from trueport.outcome import Failure, Kind, Stage
from trueport.session import Settings

HERE = Path(__file__).parent
FRAMEWORK = "trueport.frameworks.jax"
TRUSTED = Settings(trust=True)


class Bench:
    """Exports models and asks the framework in its environment."""

    def __init__(self, pool, env, folder):
        self.pool, self.env, self.folder = pool, env, folder
        self.made = {}

    def call(self, module, function, toolchain="jax", *, emit=False, **arguments):
        return self.pool.call(
            self.env(toolchain), module, function, arguments, stage=Stage.RUN, paths=[str(HERE)], emit=emit
        )

    def value(self, module, function, toolchain="jax", **arguments):
        done = self.call(module, function, toolchain, **arguments)
        assert not isinstance(done, Failure), done
        return done.value.value

    def file(self, kind, batch="open"):
        if (kind, batch) not in self.made:
            toolchain = "jax2onnx" if kind == "flax" else "jax"
            self.made[kind, batch] = self.value(
                "jax_models", "save", toolchain, kind=kind, folder=str(self.folder), batch=batch
            )
        return self.made[kind, batch]

    def run(self, kind, feeds, **changes):
        settings = {"precision": "float32", "variant": "default", "trust": False, **changes}
        return self.value(FRAMEWORK, "run", path=self.file(kind), cases={"a": feeds}, **settings)["a"]

    def inside(self, kind, function, **arguments):
        emit = function in ("trace", "replay", "parameters")
        done = self.call(FRAMEWORK, function, path=self.file(kind), trust=False, emit=emit, **arguments)
        assert not isinstance(done, Failure), done
        return done.value


@pytest.fixture(scope="module")
def bench(pool, env, tmp_path_factory):
    return Bench(pool, env, tmp_path_factory.mktemp("jax"))


def feeds_for(kind, runs=2, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=(runs, batch, *shape)).astype(np.float32)  # noqa: E731
    return {
        "mlp": lambda: {"x": normal(12)},
        "cnn": lambda: {"image": normal(12, 12, 3)},
        "attention": lambda: {"ids": rng.integers(0, 30, (runs, batch, 5)).astype(np.int32)},
        "flax": lambda: {"x": normal(8, 8, 3)},
        "several": lambda: {"x": normal(4), "scale": normal(1)},
    }[kind]()


# -- recognised and described


def test_a_file_is_told_by_its_bytes_not_by_its_suffix(bench, tmp_path):
    data = Path(bench.file("mlp")).read_bytes()
    other = tmp_path / "model.bin"
    other.write_bytes(data)
    assert sniff(other) == "jax"
    assert framework.sniff(b"\x18\x00\x00\x00TFL3" + data[8:], other) is None or data[4:8] != b"TFL3"
    place = data.find(b"ML\xefR")
    assert framework.sniff(data[place:], other) is None  # a bare StableHLO file says nothing of inputs
    broken = data[:place] + b"xxxx" + data[place + 4 :]
    assert framework.sniff(broken, other) is None
    assert framework.sniff(b"", other) is None


def test_a_file_that_is_cut_off_is_a_bad_model(bench, tmp_path):
    short = tmp_path / "short.jax"
    short.write_bytes(Path(bench.file("mlp")).read_bytes()[:-600])
    with pytest.raises(UsageError, match=r"not a readable jax\.export file"):
        bench.call(FRAMEWORK, "signature", path=str(short), trust=False)


def test_the_signature_has_the_names_of_the_source_code_and_the_legal_indices(bench):
    signature = bench.inside("attention", "signature").value
    (ids,) = signature["inputs"]
    assert ids == {"name": "ids", "dtype": "int32", "shape": ["batch", 5], "minimum": 0, "maximum": 29}
    assert [spec["name"] for spec in signature["outputs"]] == ["best", "logits"]
    assert signature["meta"]["parameters"] >= 30 * 16 + 3 * 16 * 16 + 2 * 16 * 32
    two = bench.inside("several", "signature").value
    assert [spec["name"] for spec in two["inputs"]] == ["x", "scale"]
    assert [spec["name"] for spec in two["outputs"]] == ["output_0", "output_1", "output_2"]


# -- run


@pytest.mark.parametrize("kind", ["mlp", "cnn", "attention", "several", "flax"])
def test_compiled_and_op_by_op_agree_with_the_function_itself(bench, kind):
    feeds = feeds_for(kind)
    path = bench.file(kind)
    toolchain = "jax2onnx" if kind == "flax" else "jax"
    expected = bench.value("jax_models", "expected", toolchain, kind=kind, feeds=feeds)
    names = [spec["name"] for spec in bench.inside(kind, "signature").value["outputs"]]
    for settings in ({}, {"variant": "op-by-op"}, {"precision": "float64"}):
        got = bench.run(kind, feeds, **settings)
        for run, row in enumerate(expected):
            for name, value in zip(names, row, strict=True):
                # float32 over a few hundred additions: 1e-5 of values of size 1
                np.testing.assert_allclose(got[name][run], value, rtol=0, atol=2e-5, err_msg=f"{path} {settings}")


def test_float64_is_computed_in_float64(bench):
    feeds = feeds_for("mlp")
    single, double = bench.run("mlp", feeds), bench.run("mlp", feeds, precision="float64")
    assert double["output_0"].dtype == np.float64
    assert np.any(double["output_0"] != double["output_0"].astype(np.float32))
    assert 0 < np.abs(double["output_0"] - single["output_0"]).max() < 1e-6
    # the rows of a softmax sum to one: to 1e-15 in float64, to 1e-8 at best in float32
    assert np.abs(double["output_0"].sum(-1) - 1).max() < 1e-14


def test_unknown_precision_and_variant_and_missing_input_are_refused(bench):
    arguments = {"path": bench.file("mlp"), "cases": {"a": feeds_for("mlp")}, "trust": False}
    for change in ({"precision": "int8", "variant": "default"}, {"precision": "float32", "variant": "xla"}):
        failure = bench.call(FRAMEWORK, "run", **arguments, **change)
        assert isinstance(failure, Failure)
        assert failure.kind is Kind.UNSUPPORTED
    empty = {**arguments, "cases": {"a": {}}}
    failure = bench.call(FRAMEWORK, "run", **empty, precision="float32", variant="default")
    assert isinstance(failure, Failure)
    assert "no value for input x" in failure.message


# -- inside


def test_the_graph_is_in_onnx_words_and_hangs_together(bench):
    graph = bench.inside("cnn", "graph").value
    ops = [node["op"] for node in graph["nodes"]]
    assert {"Conv", "MaxPool", "MatMul", "ReduceSum"} <= set(ops)
    assert "get_dimension_size" not in {node["native_op"] for node in graph["nodes"]}  # sizes are attributes
    known = {*graph["inputs"], *graph["constants"]}
    for node in graph["nodes"]:
        assert set(node["inputs"]) <= known, node
        assert not set(node["outputs"]) & known
        known |= set(node["outputs"])
    assert set(graph["outputs"]) <= known
    conv = next(node for node in graph["nodes"] if node["op"] == "Conv")
    assert conv["attributes"]["padding"] == [[1, 1], [1, 1]]
    attention = bench.inside("attention", "graph").value
    assert {"ArgMax", "Gather", "Einsum"} <= {node["op"] for node in attention["nodes"]}


def test_parameters_are_the_weights(bench):
    reply = bench.inside("mlp", "parameters")
    arrays = [np.asarray(reply.emitted[name]) for name in reply.emitted]
    (first,) = [array for array in arrays if array.shape == (12, 16)]
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(first, (rng.normal(size=(12, 16)) / np.sqrt(12)).astype(np.float32))


@pytest.mark.parametrize("kind", ["mlp", "cnn", "attention", "several"])
def test_a_trace_ends_in_what_run_gives_and_small_windows_change_nothing(bench, kind):
    feeds = feeds_for(kind)
    names = bench.inside(kind, "names").value
    outputs = bench.run(kind, feeds, variant="op-by-op")
    whole = bench.inside(kind, "trace", inputs=feeds, wanted=names, budget=10**9)
    assert set(whole.emitted) == set(names)
    for name, value in outputs.items():
        np.testing.assert_array_equal(np.asarray(whole.emitted[name]), value)
    small = bench.inside(kind, "trace", inputs=feeds, wanted=names, budget=2000)
    for name in names:
        np.testing.assert_array_equal(np.asarray(small.emitted[name]), np.asarray(whole.emitted[name]))


@pytest.mark.parametrize("kind", ["mlp", "cnn", "attention"])
def test_values_put_in_give_the_same_result_and_others_another(bench, kind):
    feeds = feeds_for(kind)
    graph = bench.inside(kind, "graph").value
    middle = [node for node in graph["nodes"] if node["op"] in ("MatMul", "Conv", "Einsum")][1]["outputs"][0]
    output = graph["outputs"][-1]
    traced = bench.inside(kind, "trace", inputs=feeds, wanted=[middle, output], budget=10**9).emitted
    given = {middle: np.asarray(traced[middle])}
    common = {"wanted": [output], "variant": "", "budget": 10**9}
    same = bench.inside(kind, "replay", inputs=feeds, given=given, **common)
    np.testing.assert_array_equal(np.asarray(same.emitted[output]), np.asarray(traced[output]))
    other = bench.inside(kind, "replay", inputs=feeds, given={middle: given[middle] * 0 + 1}, **common)
    assert np.abs(np.asarray(other.emitted[output]) - np.asarray(traced[output])).max() > 1e-3


def test_cut_off_behind_the_inputs_the_batch_size_comes_from_what_is_put_in(bench):
    feeds = feeds_for("mlp")
    names = bench.inside("mlp", "names").value
    traced = bench.inside("mlp", "trace", inputs=feeds, wanted=["dot_general", "output_0"], budget=10**9).emitted
    assert "dot_general" in names
    given = {"dot_general": np.asarray(traced["dot_general"])}
    common = {"wanted": ["output_0"], "variant": "", "budget": 10**9}
    alone = bench.inside("mlp", "replay", inputs={}, given=given, **common)
    np.testing.assert_array_equal(np.asarray(alone.emitted["output_0"]), np.asarray(traced["output_0"]))
    failure = bench.call(
        FRAMEWORK, "replay", emit=True, path=bench.file("mlp"), trust=False, inputs={}, given={}, **common
    )
    assert isinstance(failure, Failure)
    assert "no value for input" in failure.message


# -- converted


@pytest.mark.parametrize(
    ("kind", "to", "route"),
    [
        ("cnn", "savedmodel", "jax-savedmodel"),
        ("attention", "savedmodel", "jax-savedmodel"),
        ("cnn", "tflite", "jax-savedmodel,tflite-savedmodel"),
        ("mlp", "onnx", "jax2onnx"),
        ("cnn", "onnx", "jax2onnx"),
        ("attention", "onnx", "jax2onnx"),
        ("flax", "onnx", "jax2onnx"),
    ],
)
def test_conversions_are_faithful(bench, tmp_path, kind, to, route):
    out = tmp_path / f"out.{to}"
    result = trueport.convert(bench.file(kind), to=to, route=route, out=out, repair=False)
    assert str(result.verification.verdict) == "faithful", result.verification.reason
    assert out.exists()


def test_the_open_batch_survives_the_way_to_onnx(bench, tmp_path):
    out = tmp_path / "open.onnx"
    trueport.convert(bench.file("cnn"), to="onnx", route="jax2onnx", out=out, repair=False)
    signature = bench.value("trueport.frameworks.onnx", "signature", "onnx", path=str(out), trust=False)
    assert [spec["name"] for spec in signature["inputs"]] == ["image"]
    assert isinstance(signature["inputs"][0]["shape"][0], str)


def test_a_wrong_weight_is_not_faithful(bench, tmp_path):
    """The same function with one filter exchanged must not pass for this one."""
    data = bytearray(Path(bench.file("mlp")).read_bytes())
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(12, 16)) / np.sqrt(12)).astype(np.float32).tobytes()
    place = bytes(data).find(weight)
    assert place > 0
    data[place : place + 64] = bytes(64)  # the first row becomes zero
    wrong = tmp_path / "wrong.jax"
    wrong.write_bytes(bytes(data))
    result = trueport.verify(bench.file("mlp"), wrong)
    assert str(result.verdict) == "deviates", result


# -- factories


def test_a_factory_needs_trust_and_gives_a_function(tmp_path, monkeypatch):
    monkeypatch.chdir(HERE)
    out = tmp_path / "out.onnx"
    with pytest.raises(UntrustedError):
        trueport.convert("jax_models:mlp", source_format="jax", to="onnx", out=out)
    result = trueport.convert("jax_models:mlp", source_format="jax", to="onnx", out=out, settings=TRUSTED, repair=False)
    assert str(result.verification.verdict) == "faithful"


@pytest.mark.parametrize(
    ("factory", "words"),
    [("jax_models:alone", "example arguments"), ("jax_models:nothing", "nothing"), ("no_such:thing", "no module")],
)
def test_a_factory_that_gives_nothing_says_so(tmp_path, monkeypatch, factory, words):
    monkeypatch.chdir(HERE)
    with pytest.raises(UsageError, match=words):
        trueport.convert(factory, source_format="jax", to="onnx", out=tmp_path / "o.onnx", settings=TRUSTED)


def test_a_factory_of_another_format_is_refused(tmp_path):
    with pytest.raises(UsageError, match="gives pytorch or jax, not keras"):
        trueport.convert("jax_models:mlp", source_format="keras", to="onnx", out=tmp_path / "o.onnx", settings=TRUSTED)


def test_the_parent_never_imports_jax():
    assert "jax" not in sys.modules
