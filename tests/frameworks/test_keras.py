"""Keras files: what they are, which Keras they belong to, and whether running and looking inside is right."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tf_support import Tf, deviation, feeds

from trueport.errors import UntrustedError, UsageError
from trueport.frameworks import _keras_files as files
from trueport.frameworks import keras
from trueport.frameworks._base import BadModel
from trueport.outcome import Failure, Kind

ZOO = ("residual", "depthwise", "lstm", "gru", "transformer", "multi")
CORPUS_H5 = {
    "mlperf_tiny_resnet8/pretrainedResnet.h5": (32, 32, 3),
    "mlperf_tiny_vww/vww_96.h5": (96, 96, 3),
    "mlperf_tiny_wakeword/str_ww_ref_model.h5": (30, 1, 40),
    "emotion_xception/fer2013_mini_XCEPTION.102-0.66.hdf5": (64, 64, 1),
}


@pytest.fixture(scope="module")
def tf(pool, env):
    return Tf(pool, env("tensorflow"))


@pytest.fixture(scope="module")
def tf_keras(pool, env):
    return Tf(pool, env("tf-keras"))


@pytest.fixture(scope="module")
def zoo(tf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = tf("keras_models", "save", kind=kind, folder=str(folder), seed=3)
        return made[kind]

    return get


def head(path):
    with Path(path).open("rb") as file:
        return file.read(64 * 1024)


def sniff(path):
    return keras.sniff(head(path), Path(path))


# What a file is


def zip_of(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "."), text)
    return path


def test_sniff_takes_keras_archives_and_no_other_zip(tmp_path):
    assert sniff(zip_of(tmp_path / "a", config__json="{}", metadata__json="{}")) == "keras"
    assert sniff(zip_of(tmp_path / "b", config__json="{}", word__txt="x")) is None
    assert sniff(zip_of(tmp_path / "c", data__pkl="x")) is None


def test_sniff_refuses_text_and_damaged_zips(tmp_path):
    (tmp_path / "text.keras").write_text("not a model")
    (tmp_path / "cut.keras").write_bytes(b"PK\x03\x04 cut off")
    assert sniff(tmp_path / "text.keras") is None
    assert sniff(tmp_path / "cut.keras") is None


def test_sniff_tells_whole_hdf5_models_from_weights(tf, zoo, tmp_path):
    tf("tf_odd_models", "save_h5", kind_path=zoo("residual"), path=str(tmp_path / "whole.h5"))
    tf("tf_odd_models", "save_weights_only", kind_path=zoo("residual"), path=str(tmp_path / "some.weights.h5"))
    assert sniff(tmp_path / "whole.h5") == "keras"
    assert sniff(tmp_path / "some.weights.h5") is None


@pytest.mark.parametrize(
    ("version", "toolchain"),
    [("3.15.1", "tensorflow"), ("3.0.0", "tensorflow"), ("2.15.0", "tf-keras"), ("2.12.0", "tf-keras")],
)
def test_archive_version_chooses_the_toolchain(tmp_path, version, toolchain):
    path = zip_of(tmp_path / "m.keras", config__json="{}", metadata__json=json.dumps({"keras_version": version}))
    assert keras.toolchain_for(str(path)) == toolchain


def hdf5_with(name, text, *, version, variable):
    """Bytes around one attribute message as HDF5 lays it out, with its text in place or in a global heap."""
    data = text.encode()
    heap = b""
    if variable:
        kind = bytes([0x19, 1, 0, 0]) + struct.pack("<I", 16) + bytes(12)
        address = 8
        body = struct.pack("<HH4xQ", 1, 1, len(data)) + data + bytes(-len(data) % 8)
        heap = b"GCOL" + bytes([1, 0, 0, 0]) + struct.pack("<Q", 16 + len(body)) + body
        value = struct.pack("<IQI", len(data), address, 1)
    else:
        kind = bytes([0x13, 0, 0, 0]) + struct.pack("<I", len(data))
        value = data
    space = bytes([1, 0, 0, 0]) + bytes(4)
    label = name.encode() + b"\0"
    lengths = struct.pack("<HHH", len(label), len(kind), len(space))
    if version == 1:
        parts = [part + bytes(-len(part) % 8) for part in (label, kind, space)]
        message = bytes([1, 0]) + lengths + b"".join(parts)
    else:
        message = bytes([version, 0]) + lengths + (b"\x01" if version == 3 else b"") + label + kind + space
    return files.HDF5 + heap + bytes(5) + message + value + b"\xff" * 8


@pytest.mark.parametrize("variable", [True, False])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_hdf5_attribute_is_read_in_every_layout(tmp_path, version, variable):
    path = tmp_path / "m.h5"
    path.write_bytes(hdf5_with("keras_version", "2.4.0", version=version, variable=variable))
    assert files.keras_version(path) == "2.4.0"
    assert keras.toolchain_for(str(path)) == "tf-keras"


def test_hdf5_of_keras_3_stays_with_keras_3(tf, zoo, tmp_path):
    tf("tf_odd_models", "save_h5", kind_path=zoo("multi"), path=str(tmp_path / "m.h5"))
    assert files.keras_version(tmp_path / "m.h5").startswith("3.")
    assert keras.toolchain_for(str(tmp_path / "m.h5")) == "tensorflow"
    assert "Embedding" in files.class_names(files.config(tmp_path / "m.h5"))


def test_hdf5_without_a_version_goes_by_the_marks_of_keras_3(tmp_path):
    old, new = tmp_path / "old.h5", tmp_path / "new.h5"
    old.write_bytes(hdf5_with("model_config", '{"class_name": "Model"}', version=1, variable=True))
    marked = '{"module": "keras", "class_name": "Functional", "registered_name": "Functional"}'
    new.write_bytes(hdf5_with("model_config", marked, version=1, variable=True))
    assert keras.toolchain_for(str(old)) == "tf-keras"
    assert keras.toolchain_for(str(new)) == "tensorflow"


def test_zip_bomb_is_refused_before_it_is_opened(tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            archive.writestr(name, "{}")
        archive.getinfo("model.weights.h5").file_size = 3 << 30  # what the central directory claims
    with pytest.raises(BadModel, match=r"would unpack to 3 GiB"):
        files.check_archive(path)


def test_large_honest_archive_is_not_taken_for_a_bomb(tmp_path):
    path = tmp_path / "large.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        info = archive.getinfo("config.json")
        info.file_size, info.compress_size = 3 << 30, 2 << 30
    files.check_archive(path)


def test_bomb_ends_as_a_usage_error(tf, tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("config.json", "metadata.json", "model.weights.h5"):
            archive.writestr(name, "{}")
        archive.getinfo("model.weights.h5").file_size = 3 << 30
    with pytest.raises(UsageError, match="not opened"):
        tf.signature("keras", path)


# What must not load


def test_lambda_needs_trust_and_runs_with_it(tf, tmp_path):
    path = str(tmp_path / "lambda.keras")
    tf("tf_odd_models", "save_lambda", path=path)
    with pytest.raises(UntrustedError, match="--trust"):
        tf.signature("keras", path)
    x = np.arange(6, dtype=np.float32).reshape(2, 1, 3)
    result = tf.run("keras", path, {"x": x}, trust=True)
    np.testing.assert_array_equal(result["doubled"], x * 2 + 1)


def test_lambda_of_keras_2_needs_trust_too(tf_keras, tmp_path):
    path = str(tmp_path / "lambda.h5")
    tf_keras("tf_odd_models", "save_lambda", path=path, legacy=True)
    assert keras.toolchain_for(path) == "tf-keras"
    with pytest.raises(UntrustedError, match="doubled"):
        tf_keras.signature("keras", path)
    x = np.ones((1, 1, 3), np.float32)
    np.testing.assert_array_equal(tf_keras.run("keras", path, {"x": x}, trust=True)["doubled"], x * 3)


def test_custom_layer_is_unsupported_by_name(tf, tmp_path):
    path = str(tmp_path / "custom.keras")
    tf("tf_odd_models", "save_custom", path=path)
    outcome = tf.outcome("trueport.frameworks.keras", "signature", path=path, trust=False)
    assert isinstance(outcome, Failure)
    assert outcome.kind == Kind.UNSUPPORTED
    assert "Wobble" in outcome.message


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_truncated_file_is_the_users_to_mend(tf, zoo, tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".h5":
        tf("tf_odd_models", "save_h5", kind_path=zoo("residual"), path=str(whole))
    else:
        whole.write_bytes(Path(zoo("residual")).read_bytes())
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(UsageError, match="cut"):
        tf.signature("keras", cut)


# Signature


def test_signature_names_shapes_and_index_range(tf, zoo):
    signature = tf.signature("keras", zoo("multi"))
    assert signature["inputs"] == [
        {"name": "features", "dtype": "float32", "shape": ["batch", 6]},
        {"name": "category", "dtype": "int32", "shape": ["batch", 2], "minimum": 0, "maximum": 10},
    ]
    assert [spec["name"] for spec in signature["outputs"]] == ["zeta", "alpha", "middle"]
    assert signature["meta"]["operators"] == {"Embedding": 1, "Flatten": 1, "Concatenate": 1, "Dense": 4}
    assert signature["meta"]["parameters"] == 11 * 3 + (12 * 8 + 8) + 2 * (8 * 4 + 4) + 9
    assert signature["meta"]["producer"].startswith("keras 3.")


def test_names_of_a_sequential_model_do_not_depend_on_the_process(tf, tmp_path, zoo):
    path = str(tmp_path / "m.h5")
    tf("tf_odd_models", "save_h5", kind_path=zoo("depthwise"), path=path)
    assert tf.signature("keras", path)["inputs"] == tf.signature("keras", zoo("depthwise"))["inputs"]


def test_dictionaries_are_fed_and_named_by_key(tf, tmp_path):
    path = str(tmp_path / "dict.keras")
    tf("tf_odd_models", "save_dictionaries", path=path)
    signature = tf.signature("keras", path)
    assert [spec["name"] for spec in signature["inputs"]] == ["a", "b"]
    assert [spec["name"] for spec in signature["outputs"]] == ["echo", "zulu"]
    a, b = np.full((1, 1, 2), 3, np.float32), np.full((1, 1, 2), 1, np.float32)
    one = tf.run("keras", path, {"a": a, "b": b})
    swapped = tf.run("keras", path, {"b": a, "a": b})
    np.testing.assert_allclose(one["echo"], swapped["echo"], rtol=1e-6)  # a sum
    np.testing.assert_allclose(one["zulu"], -swapped["zulu"], rtol=1e-6)  # a difference, bias zero


# Running


@pytest.mark.parametrize("kind", ZOO)
def test_run_equals_predict(tf, zoo, kind):
    signature = tf.signature("keras", zoo(kind))
    inputs = feeds(signature)
    result = tf.run("keras", zoo(kind), inputs)
    expected = tf("tf_odd_models", "predict", path=zoo(kind), inputs=inputs)
    assert list(result) == [spec["name"] for spec in signature["outputs"]]
    for got, want in zip(result.values(), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ZOO)
def test_variants_and_float64_agree_to_float32_noise(tf, zoo, kind):
    inputs = feeds(tf.signature("keras", zoo(kind)))
    exact = tf.run("keras", zoo(kind), inputs, precision="float64")
    for variant in keras.VARIANTS:
        result = tf.run("keras", zoo(kind), inputs, variant=variant)
        for name in exact:
            assert exact[name].dtype == np.float64
            # 2e-5: ten times the largest deviation seen over the zoo and all variants (1.2e-6)
            assert 0 < deviation(result[name], exact[name]) < 2e-5


@pytest.mark.parametrize("kind", ["residual", "transformer", "multi"])
def test_simulated_precisions_grow_coarser(tf, zoo, kind):
    inputs = feeds(tf.signature("keras", zoo(kind)))
    exact = tf.run("keras", zoo(kind), inputs)
    errors = []
    for precision in ("float16", "int8-dynamic", "int8"):
        result = tf.run("keras", zoo(kind), inputs, precision=precision)
        errors.append(max(deviation(result[name], exact[name]) for name in exact))
    assert 1e-5 < errors[0] < 1e-2 < errors[2] < 0.5
    assert errors[0] < errors[1] < errors[2]


def test_run_axis_is_not_batched(tf, zoo):
    """R runs are R calls: each run's answer is the answer of that run alone."""
    inputs = feeds(tf.signature("keras", zoo("residual")), runs=3, batch=1)
    together = tf.run("keras", zoo("residual"), inputs)["classes"]
    assert together.shape == (3, 1, 5)
    for run in range(3):
        alone = tf.run("keras", zoo("residual"), {"image": inputs["image"][run : run + 1]})["classes"]
        np.testing.assert_array_equal(alone[0], together[run])


def test_missing_input_is_named(tf, zoo):
    outcome = tf.outcome(
        "trueport.frameworks.keras",
        "run",
        path=zoo("multi"),
        cases={"case": {"features": np.zeros((1, 1, 6), np.float32)}},
        precision="float32",
        variant="default",
        trust=False,
    )
    assert isinstance(outcome, Failure)
    assert "category" in outcome.message


def test_unknown_precision_is_unsupported(tf, zoo):
    outcome = tf.outcome(
        "trueport.frameworks.keras",
        "run",
        path=zoo("multi"),
        cases={},
        precision="int3",
        variant="default",
        trust=False,
    )
    assert isinstance(outcome, Failure)
    assert outcome.kind == Kind.UNSUPPORTED


def test_wrong_suffix_does_not_matter(tf, zoo, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(Path(zoo("multi")).read_bytes())
    assert sniff(path) == "keras"
    assert tf.signature("keras", path) == tf.signature("keras", zoo("multi"))


# Keras 2


def test_hard_sigmoid_of_keras_2_keeps_its_meaning(tf, tf_keras, tmp_path):
    """An LSTM of the same words and weights in Keras 3 computes another function."""
    path = str(tmp_path / "lstm.h5")
    tf_keras("tf_odd_models", "save_legacy", kind="hard_sigmoid", path=path)
    assert keras.toolchain_for(path) == "tf-keras"
    inputs = {"steps": np.random.default_rng(0).normal(0, 2, (2, 3, 5, 3)).astype(np.float32)}
    expected = tf_keras("tf_odd_models", "hard_sigmoid_by_hand", path=path, inputs=inputs)
    result = tf_keras.run("keras", path, inputs)["scores"]
    assert deviation(result, expected) < 1e-5
    weights, _ = tf_keras.emitted("trueport.frameworks.keras", "parameters", path=path, trust=False)
    other = tf("tf_odd_models", "hard_sigmoid_in_keras_3", weights=list(weights.values()), inputs=inputs)
    assert deviation(other, expected) > 1e-2


@pytest.mark.corpus
@pytest.mark.parametrize("name", CORPUS_H5)
def test_corpus_model_runs(tf_keras, corpus, name):
    path = corpus / "models" / name
    assert sniff(path) == "keras"
    assert keras.toolchain_for(str(path)) == "tf-keras"
    signature = tf_keras.signature("keras", path)
    assert tuple(signature["inputs"][0]["shape"]) == ("batch", *CORPUS_H5[name])
    inputs = feeds(signature, runs=2)
    result = tf_keras.run("keras", path, inputs)
    (expected,) = tf_keras("tf_odd_models", "predict", path=str(path), inputs=inputs, legacy=True)
    exact = tf_keras.run("keras", path, inputs, precision="float64")
    for output in result:
        np.testing.assert_allclose(result[output], expected, rtol=1e-4, atol=1e-5)
        assert deviation(result[output], exact[output]) < 1e-3


@pytest.mark.corpus
def test_corpus_model_with_code_needs_trust(tf_keras, corpus):
    path = corpus / "models" / "slim_portrait" / "slim_reshape.h5"
    with pytest.raises(UntrustedError, match="Lambda layer 'lambda'"):
        tf_keras.signature("keras", path)
    outcome = tf_keras.outcome("trueport.frameworks.keras", "signature", path=str(path), trust=True)
    assert isinstance(outcome, Failure)  # bytecode of Python 3.6; it also calls a function that the file does not hold
    assert outcome.kind == Kind.UNSUPPORTED
    assert "another Python version" in outcome.message


# Looking inside


@pytest.mark.parametrize("kind", ZOO)
def test_trace_ends_in_the_outputs_and_graph_is_well_formed(tf, zoo, kind):
    signature = tf.signature("keras", zoo(kind))
    inputs = feeds(signature)
    names = tf("trueport.frameworks.keras", "names", path=zoo(kind), trust=False)
    values, reply = tf.emitted(
        "trueport.frameworks.keras",
        "trace",
        path=zoo(kind),
        inputs=inputs,
        wanted=names,
        budget=1 << 20,
        trust=False,
    )
    assert set(values) == set(names)
    assert reply == {"skipped": {}}
    for name, value in tf.run("keras", zoo(kind), inputs).items():
        assert deviation(values[name], value) < 1e-5
    graph = tf("trueport.frameworks.keras", "graph", path=zoo(kind), trust=False)
    weights, count = tf.emitted("trueport.frameworks.keras", "parameters", path=zoo(kind), trust=False)
    assert count == {"count": len(weights)}
    assert {name: list(value.shape) for name, value in weights.items()} == {
        name: spec["shape"] for name, spec in graph["constants"].items()
    }
    known = {*graph["inputs"], *graph["constants"]}
    for node in graph["nodes"]:
        assert set(node["inputs"]) <= known, node
        known.update(node["outputs"])
    assert set(graph["outputs"]) <= known
    assert set(names) <= known
    read = {name for node in graph["nodes"] for name in node["inputs"]}
    assert set(graph["constants"]) <= read


def test_trace_equals_a_sub_model(tf, zoo):
    inputs = feeds(tf.signature("keras", zoo("residual")))
    for layer in ("stem_bn", "sum", "pool"):
        values, _ = tf.emitted(
            "trueport.frameworks.keras",
            "trace",
            path=zoo("residual"),
            inputs=inputs,
            wanted=[layer],
            budget=1 << 30,
            trust=False,
        )
        expected = tf("tf_odd_models", "layer_output", path=zoo("residual"), layer=layer, inputs=inputs)
        np.testing.assert_allclose(values[layer], expected, rtol=1e-4, atol=1e-5)


def test_trace_stays_within_the_budget(tf, zoo):
    path = zoo("residual")
    inputs = feeds(tf.signature("keras", path))
    wanted = tf("trueport.frameworks.keras", "names", path=path, trust=False)
    budget = 60_000
    used = tf("tf_odd_models", "windows_used", path=path, inputs=inputs, wanted=wanted, budget=budget)
    assert set(used["sizes"]) == set(wanted)
    assert sum(used["held"]) == sum(used["sizes"].values())
    largest = max(used["sizes"].values())
    assert len(used["held"]) > 3
    assert max(used["held"]) <= max(budget, largest)


def test_graph_says_what_a_layer_is(tf, zoo):
    graph = tf("trueport.frameworks.keras", "graph", path=zoo("residual"), trust=False)
    nodes = {node["name"]: node for node in graph["nodes"]}
    conv = nodes["conv1"]
    assert (conv["op"], conv["native_op"]) == ("Conv", "Conv2D")
    assert conv["attributes"]["strides"] == [2, 2]
    assert conv["inputs"] == ["stem_relu", "conv1/kernel", "conv1/bias"]
    assert nodes["sum"]["inputs"] == ["bn2", "shortcut"] or nodes["sum"]["inputs"] == ["shortcut", "bn2"]
    assert nodes["bn1"]["attributes"]["epsilon"] == pytest.approx(1e-3)


def test_shared_and_nested_layers_have_a_value_for_each_call(tf, tmp_path):
    path = str(tmp_path / "nested.keras")
    tf("tf_odd_models", "save_nested", path=path)
    names = tf("trueport.frameworks.keras", "names", path=path, trust=False)
    assert "tower/inner_dense" in names
    assert "tower/inner_dense@1" in names
    signature = tf.signature("keras", path)
    assert [spec["name"] for spec in signature["inputs"]] == ["right", "left"]
    inputs = feeds(signature)
    values, _ = tf.emitted(
        "trueport.frameworks.keras", "trace", path=path, inputs=inputs, wanted=names, budget=1 << 20, trust=False
    )
    left, right = values["tower/inner_dense"], values["tower/inner_dense@1"]
    np.testing.assert_allclose(values["difference"], left - right, atol=1e-6)


def test_unknown_value_is_refused(tf, zoo):
    outcome = tf.outcome(
        "trueport.frameworks.keras", "trace", emit=True, path=zoo("multi"),
        inputs=feeds(tf.signature("keras", zoo("multi"))), wanted=["nothing"], budget=1, trust=False,
    )  # fmt: skip
    assert isinstance(outcome, Failure)
    assert "nothing" in outcome.message
