"""SavedModels: recognised, loaded by either loader, run in every arithmetic, and looked into."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tf_support import Tf, context, deviation, feeds

from trueport.errors import UntrustedError, UsageError
from trueport.frameworks import tensorflow
from trueport.outcome import Failure, Kind

ZOO = ("residual", "lstm", "transformer", "multi")


@pytest.fixture(scope="module")
def tf(pool, env):
    return Tf(pool, env("tensorflow"))


@pytest.fixture(scope="module")
def saved(tf, tmp_path_factory):
    """saved(kind) -> (.keras path, SavedModel path, source name -> name in the SavedModel)."""
    folder = tmp_path_factory.mktemp("saved")
    made = {}

    def get(kind):
        if kind not in made:
            source = tf("keras_models", "save", kind=kind, folder=str(folder), seed=4)
            signature = tf.signature("keras", source)
            out = str(folder / f"{kind}.saved")
            reply = tf(
                "trueport.converters.keras_export",
                "convert",
                step="keras-savedmodel",
                source=source,
                out=out,
                options={},
                context=context(signature, feeds(signature)),
            )
            made[kind] = (source, out, reply["names"])
        return made[kind]

    return get


def function(tf, kind, tmp_path):
    tf("tf_odd_models", "save_function", kind=kind, folder=str(tmp_path / kind))
    return str(tmp_path / kind)


def refused(tf, path, **arguments):
    outcome = tf.outcome("trueport.frameworks.tensorflow", "signature", path=path, trust=False, **arguments)
    assert isinstance(outcome, Failure)
    return outcome


def test_sniff_takes_folders_with_a_saved_model(tmp_path):
    assert tensorflow.sniff(b"", tmp_path) is None
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    assert tensorflow.sniff(b"", tmp_path) == "savedmodel"
    assert tensorflow.sniff(b"x", tmp_path / "saved_model.pb") is None


@pytest.mark.parametrize("kind", ZOO)
def test_exported_model_computes_what_keras_computes(tf, saved, kind):
    source, path, names = saved(kind)
    inputs = feeds(tf.signature("keras", source))
    expected = tf.run("keras", source, inputs, precision="float64")
    renamed = {names.get(name, name): value for name, value in inputs.items()}
    for variant in tensorflow.VARIANTS:
        result = tf.run("tensorflow", path, renamed, variant=variant)
        for name, value in expected.items():
            assert deviation(result[names.get(name, name)], value) < 2e-5  # as in test_keras: ten times what was seen
    exact = tf.run("tensorflow", path, renamed, precision="float64")
    for name, value in expected.items():
        assert exact[names.get(name, name)].dtype == np.float64
        assert deviation(exact[names.get(name, name)], value) < 1e-12


def test_simulated_precisions_grow_coarser(tf, saved):
    source, path, names = saved("residual")
    inputs = feeds(tf.signature("keras", source))
    exact = tf.run("tensorflow", path, inputs)[names["classes"]]
    errors = [
        deviation(tf.run("tensorflow", path, inputs, precision=precision)[names["classes"]], exact)
        for precision in ("float16", "int8-dynamic", "int8")
    ]
    assert 1e-5 < errors[0] < errors[1] < errors[2] < 0.5


def test_signature_has_open_sizes_and_the_embedding_range(tf, saved):
    _, path, _ = saved("multi")
    signature = tf.signature("tensorflow", path)
    inputs = {spec["name"]: spec for spec in signature["inputs"]}
    assert inputs["features"] == {"name": "features", "dtype": "float32", "shape": [None, 6]}
    assert inputs["category"] == {"name": "category", "dtype": "int32", "shape": [None, 2], "minimum": 0, "maximum": 10}
    assert [spec["name"] for spec in signature["outputs"]] == ["output_0", "output_1", "output_2"]
    assert signature["meta"]["operators"]["MatMul"] == 4
    assert signature["meta"]["signature"] == "serving_default"


@pytest.mark.parametrize("kind", ZOO)
def test_trace_graph_and_parameters_fit_together(tf, saved, kind):
    source, path, names = saved(kind)
    inputs = {names.get(name, name): value for name, value in feeds(tf.signature("keras", source)).items()}
    wanted = tf("trueport.frameworks.tensorflow", "names", path=path, trust=False)
    values, reply = tf.emitted(
        "trueport.frameworks.tensorflow",
        "trace",
        path=path,
        inputs=inputs,
        wanted=wanted,
        budget=1 << 18,
        trust=False,
    )
    assert set(values) | set(reply["skipped"]) == set(wanted)
    for name, value in tf.run("tensorflow", path, inputs).items():
        assert deviation(values[name], value) < 1e-5
    graph = tf("trueport.frameworks.tensorflow", "graph", path=path, trust=False)
    constants, _ = tf.emitted("trueport.frameworks.tensorflow", "parameters", path=path, trust=False)
    assert {name: list(value.shape) for name, value in constants.items()} == {
        name: spec["shape"] for name, spec in graph["constants"].items()
    }
    known = {*graph["inputs"], *graph["constants"]}
    for node in graph["nodes"]:
        assert set(node["inputs"]) <= known, node
        known.update(node["outputs"])
    assert set(wanted) <= known
    assert set(graph["outputs"]) <= known


def test_graph_speaks_onnx_where_it_can(tf, saved):
    graph = tf("trueport.frameworks.tensorflow", "graph", path=saved("residual")[1], trust=False)
    convolutions = [node for node in graph["nodes"] if node["native_op"] == "Conv2D"]
    assert len(convolutions) == 4
    assert {node["op"] for node in convolutions} == {"Conv"}
    assert [2, 2] in [node["attributes"]["strides"] for node in convolutions]


def test_recurrent_loop_stays_one_node(tf, saved):
    graph = tf("trueport.frameworks.tensorflow", "graph", path=saved("lstm")[1], trust=False)
    assert sum(node["op"] == "Loop" for node in graph["nodes"]) == 3


def test_float64_passes_through_operators_that_give_float32(tf, tmp_path):
    path = function(tf, "resize", tmp_path)
    x = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 2)).astype(np.float32)
    exact = tf.run("tensorflow", path, {"x": x}, precision="float64")["y"]
    assert exact.dtype == np.float64
    assert deviation(exact, tf.run("tensorflow", path, {"x": x})["y"]) < 1e-6


def test_floor_division_of_negative_integers(tf, tmp_path):
    path = function(tf, "floor_division", tmp_path)
    x = np.arange(-7, 8, dtype=np.int32)[None]
    np.testing.assert_array_equal(tf.run("tensorflow", path, {"x": x})["y"], x // 2)


def test_model_of_tensorflow_1_runs(tf, tmp_path):
    path = str(tmp_path / "tf1")
    tf("tf_odd_models", "save_tf1", folder=path)
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    expected = np.maximum(x @ (np.arange(6).reshape(3, 2) / 3.0) - 1.0, 0)
    np.testing.assert_allclose(tf.run("tensorflow", path, {"features": x})["scores"], expected, atol=1e-5)
    by_tf1 = tf("tf_odd_models", "load_by_tf1", path=path, inputs={"features": x})
    np.testing.assert_allclose(by_tf1["scores"], expected, atol=1e-5)


def test_file_operators_need_trust(tf, tmp_path):
    path = function(tf, "reads_file", tmp_path)
    with pytest.raises(UntrustedError, match="ReadFile"):
        tf.signature("tensorflow", path)
    assert tf.signature("tensorflow", path, trust=True)["inputs"][0]["dtype"] == "str"


def test_ambiguous_and_missing_signatures_are_named(tf, tmp_path):
    ambiguous = refused(tf, function(tf, "two_signatures", tmp_path))
    assert ambiguous.kind == Kind.UNSUPPORTED
    assert "infer, train" in ambiguous.message
    assert "no signature" in refused(tf, function(tf, "no_signature", tmp_path)).message


def test_damaged_saved_model_is_the_users_to_mend(tf, saved, tmp_path):
    whole = (Path(saved("residual")[1]) / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"saved_model\.pb"):
        tf.signature("tensorflow", tmp_path)


def test_missing_variables_are_the_users_to_mend(tf, saved, tmp_path):
    whole = (Path(saved("residual")[1]) / "saved_model.pb").read_bytes()
    (tmp_path / "saved_model.pb").write_bytes(whole)
    with pytest.raises(UsageError, match="cannot load"):
        tf.signature("tensorflow", tmp_path)


def test_unknown_value_and_missing_input_are_named(tf, saved):
    path = saved("multi")[1]
    inputs = {"features": np.zeros((1, 1, 6), np.float32)}
    trace = tf.outcome(
        "trueport.frameworks.tensorflow",
        "trace",
        emit=True,
        path=path,
        inputs=inputs,
        wanted=["nothing"],
        budget=1,
        trust=False,
    )
    assert isinstance(trace, Failure)
    assert "nothing" in trace.message
    run = tf.outcome(
        "trueport.frameworks.tensorflow",
        "run",
        path=path,
        cases={"c": inputs},
        precision="float32",
        variant="default",
        trust=False,
    )
    assert isinstance(run, Failure)
    assert "category" in run.message
