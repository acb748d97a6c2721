"""TFLite in LiteRT: hand-made files whose numbers are known, damaged files, and real models made by others."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from trueport.errors import UsageError
from trueport.frameworks import tflite
from trueport.frameworks._base import SignatureDict
from trueport.outcome import Failure, Kind, Ok, Stage

MODULE = "trueport.frameworks.tflite"
HERE = str(Path(__file__).parent)


@pytest.fixture(scope="module")
def call(pool, env):
    """call(function, path, **arguments) -> the Outcome of that function of the framework file in a worker."""
    python = env("litert")

    def run(function, path, *, emit=False, **arguments):
        return pool.call(
            python, MODULE, function, {"path": str(path), "trust": False, **arguments}, stage=Stage.RUN, emit=emit
        )

    return run


@pytest.fixture(scope="module")
def models(pool, env, tmp_path_factory):
    """Name -> path of the hand-made files."""
    folder = tmp_path_factory.mktemp("tflite")
    outcome = pool.call(
        env("litert"), "tflite_models", "write", {"folder": str(folder)}, stage=Stage.LOAD, paths=[HERE]
    )
    assert isinstance(outcome, Ok), outcome
    return {name: Path(path) for name, path in outcome.value.value.items()}


def value(outcome):
    assert isinstance(outcome, Ok), outcome
    return outcome.value.value


def run(call, path, inputs, variant="default"):
    return value(call("run", path, cases={"case": inputs}, precision="float32", variant=variant))["case"]


def grid(rows, columns):
    i, j = np.mgrid[:rows, :columns]
    return ((i - j / 2 + 1) / 4).astype(np.float32)


# -- recognition and damage


def test_sniff_tells_by_bytes(models, tmp_path):
    head = models["linear"].read_bytes()
    assert tflite.sniff(head, Path("renamed.bin")) == "tflite"
    assert tflite.sniff(b"PK\x03\x04" + bytes(60), Path("model.tflite")) is None
    assert tflite.sniff(b"", Path("model.tflite")) is None
    assert tflite.sniff(b"\x00" * 64, Path("model.tflite")) is None


def test_sniff_tells_a_file_from_before_the_identifier_by_its_root_table(models):
    head = models["linear"].read_bytes()
    old = head[:4] + b"\x00\x00\x00\x00" + head[8:]
    assert tflite.sniff(old, Path("old.tflite")) == "tflite"
    assert tflite.sniff(old, Path("old.bin")) is None, "without the identifier the suffix has to agree"


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.9])
def test_truncated_file_is_one_sentence(call, models, tmp_path, keep):
    data = models["convolution"].read_bytes()
    short = tmp_path / "short.tflite"
    short.write_bytes(data[: max(9, int(len(data) * keep))])
    with pytest.raises(UsageError, match=r"damaged|truncated|not in the file|without a graph"):
        call("signature", short)


def test_a_constant_shorter_than_its_shape_is_refused(call, models, tmp_path, pool, env):
    data = models["linear"].read_bytes()
    place = data.index(grid(3, 4).tobytes())
    length = data[place - 4 : place]
    assert int.from_bytes(length, "little") == 48
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(data[: place - 4] + (40).to_bytes(4, "little") + data[place:])
    with pytest.raises(UsageError, match=r"constant 'w' needs 48 bytes and the file holds 40"):
        call("signature", bad)


def test_random_damage_ends_in_a_named_outcome(call, models, tmp_path):
    """Whatever bytes are overwritten: a sentence, a Failure, or a model that still answers; the pool survives."""
    data = models["convolution"].read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for number in range(30):
        place = int(rng.integers(8, len(data) - 16))
        bad = tmp_path / f"bad{number}.tflite"
        bad.write_bytes(data[:place] + rng.bytes(16) + data[place + 16 :])
        try:
            outcome = call("signature", bad)
        except UsageError as error:
            refused += str(bad) in str(error)
        else:
            assert isinstance(outcome, (Ok, Failure))
    assert refused >= 5
    assert isinstance(call("signature", models["linear"]), Ok)


# -- description


def test_signature_uses_the_names_of_the_signature_def_in_the_graphs_order(call, models):
    found = value(call("signature", models["linear"]))
    assert found["inputs"] == [{"name": "features", "dtype": "float32", "shape": [None, 4]}]
    assert found["outputs"] == [{"name": "scores", "dtype": "float32", "shape": [None, 3]}]
    two = value(call("signature", models["two_in_two_out"]))
    assert [spec["name"] for spec in two["inputs"]] == ["first", "second"]
    assert [spec["name"] for spec in two["outputs"]] == ["out_product", "out_total"]
    assert found["meta"]["operators"] == {"FULLY_CONNECTED": 1}
    assert found["meta"]["parameters"] == 3 * 4 + 3
    assert found["meta"]["producer"] == "hand-made"


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("linear", "float32"),
        ("half_weights", "float16"),
        ("dynamic_range", "int8-dynamic"),
        ("small_integers", "int8-dynamic"),
        ("quantised", "int8"),
    ],
)
def test_declared_precision(call, models, name, precision):
    assert value(call("signature", models[name]))["meta"]["precision"] == precision


def test_quantised_inputs_are_float_to_the_user(call, models):
    (spec,) = value(call("signature", models["quantised"]))["inputs"]
    assert spec["dtype"] == "float32"
    assert spec["quantization"] == {"scale": 0.5, "zero_point": 3, "dtype": "int8"}


def test_index_range_is_found_behind_a_reshape(call, models):
    (spec,) = value(call("signature", models["lookup"]))["inputs"]
    assert (spec["minimum"], spec["maximum"]) == (0, 9)


def test_state_is_told(call, models):
    assert value(call("signature", models["recurrent"]))["meta"]["state"] == [
        {"name": "state", "dtype": "float32", "shape": [1, 3]}
    ]


@pytest.mark.parametrize(("name", "operator"), [("custom", "MyThing"), ("flex", "FlexErf")])
def test_operators_without_kernel_are_named(call, models, name, operator):
    for function, more in (("signature", {}), ("run", {"cases": {}, "precision": "float32", "variant": "default"})):
        outcome = call(function, models[name], **more)
        assert isinstance(outcome, Failure)
        assert outcome.kind is Kind.UNSUPPORTED
        assert operator in outcome.message


def test_text_is_unsupported_in_one_sentence(call, models):
    outcome = call("signature", models["text"])
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED
    assert "'words' holds text" in outcome.message


# -- running


@pytest.mark.parametrize("variant", tflite.VARIANTS)
def test_linear_in_every_variant_and_batch(call, models, variant):
    weights, bias = grid(3, 4), np.array([0.5, -2.0, 0.25], np.float32)
    rng = np.random.default_rng(0)
    for batch in (1, 5, 2):
        x = rng.standard_normal((3, batch, 4)).astype(np.float32)
        expected = np.maximum(x @ weights.T + bias, 0)
        got = run(call, models["linear"], {"features": x}, variant)["scores"]
        assert got.shape == (3, batch, 3)
        # four products and a sum of numbers below 8: some units in the last place of 8
        np.testing.assert_allclose(got, expected, atol=4e-6)


def test_inputs_and_outputs_keep_their_names(call, models):
    a, b = np.array([[2.0, 3.0]], np.float32), np.array([[10.0, 20.0]], np.float32)
    got = run(call, models["two_in_two_out"], {"second": b, "first": a})
    np.testing.assert_array_equal(got["out_total"], [[12.0, 23.0]])
    np.testing.assert_array_equal(got["out_product"], [[24.0, 69.0]])


@pytest.mark.parametrize("name", ["quantised", "stray_axis"])
@pytest.mark.parametrize("variant", ["default", "builtin", "reference"])
def test_quantised_model_computes_on_its_grid(call, models, name, variant):
    """Inputs are rounded half to even and clipped; outputs come back as multiples of the output's scale."""
    x = np.array([[[0.25, -0.75, 1e6, -1e6]], [[1.5, 2.0, 0.74, -3.0]]], np.float32)
    stored = np.clip(np.rint(x / 0.5) + 3, -128, 127)
    real = (stored - 3) * 0.5
    assert stored[0, 0].tolist() == [3, 1, 127, -128]  # 0.5 -> 0 and -1.5 -> -2: half to even
    weights = np.array([[1, -2, 3, 4], [5, 6, -7, 8], [9, -10, 11, 12]]) * np.array([[0.25], [0.5], [0.125]])
    exact = real @ weights.T + np.array([0.5, -2.0, 1.0])
    expected = (np.clip(np.rint(exact / 0.5) - 10, -128, 127) + 10) * 0.5
    got = run(call, models[name], {"x": x}, variant)["y"]
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got % 0.5, 0)
    # kernels round the rescaled sum their own way: one step of the output's grid
    np.testing.assert_allclose(got, expected, atol=0.5)


def test_half_weights_and_branches(call, models):
    x = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    np.testing.assert_array_equal(run(call, models["half_weights"], {"x": x})["y"], x + grid(2, 2))
    inputs = {"condition": np.array([[True], [False]]), "x": np.array([[1, 2], [1, 2]], np.float32)}
    np.testing.assert_array_equal(run(call, models["branches"], inputs)["y"], [[4, 7], [3, 10]])


def test_runs_are_independent_of_each_other(call, models):
    """A recurrent state and a resource variable both start afresh in every run."""
    x = np.repeat(np.array([[[[1.0, -1.0], [0.5, 2.0]]]], np.float32), 3, axis=0)
    got = run(call, models["recurrent"], {"x": x})["y"]
    assert np.array_equal(got[0], got[1])
    assert np.array_equal(got[0], got[2])
    state, bias = np.zeros(3, np.float32), np.array([0.1, 0.2, 0.3], np.float32)
    for step in range(2):
        state = np.tanh(grid(3, 2) @ x[0, 0, step] + grid(3, 3) @ state + bias)
        np.testing.assert_allclose(got[0, 0, step], state, atol=1e-6)  # tanh of float32: a few units in the last place
    twice = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    np.testing.assert_array_equal(run(call, models["counter"], {"x": twice})["y"], twice)


def test_outputs_of_different_shapes_come_as_a_list(call, models):
    got = run(call, models["positive_places"], {"x": np.array([[1, -1, 2, -2], [-1, -1, -1, 5]], np.float32)})["y"]
    assert [item.tolist() for item in got] == [[[0], [2]], [[3]]]
    none = run(call, models["positive_places"], {"x": -np.ones((1, 4), np.float32)})["y"]
    assert none.shape == (1, 0, 1)


def test_an_empty_batch_runs_in_the_builtin_kernels(call, models):
    got = run(call, models["linear"], {"features": np.zeros((2, 0, 4), np.float32)}, "builtin")["scores"]
    assert got.shape == (2, 0, 3)


def test_after_a_failed_run_the_next_one_works(call, models):
    """XNNPACK refuses an empty batch and leaves its interpreter unusable."""
    empty = {"case": {"features": np.zeros((1, 0, 4), np.float32)}}
    call("run", models["linear"], cases=empty, precision="float32", variant="default")
    x = np.ones((1, 1, 4), np.float32)
    assert run(call, models["linear"], {"features": x})["scores"].shape == (1, 1, 3)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "needs a value for its input 'features'"),
        ({"features": np.zeros((1, 1, 4), np.float32), "x": np.zeros(1)}, "has no input 'x'; its inputs are features"),
        ({"features": np.zeros((1, 1, 5), np.float32)}, "takes ?×4, and 1×5 was given"),
        ({"features": np.zeros((1, 4), np.float32)}, "takes ?×4, and 4 was given"),
        ({"features": np.array([[["a", "b", "c", "d"]]])}, "'features' is float32"),
    ],
)
def test_wrong_inputs_are_told_in_one_sentence(call, models, inputs, words):
    outcome = call("run", models["linear"], cases={"case": inputs}, precision="float32", variant="default")
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.RAISED
    assert words in outcome.message


def test_integers_are_not_cut_silently(call, models):
    ok = run(call, models["lookup"], {"tokens": np.array([[[3, 0, 9]]], np.int64)})["y"]
    np.testing.assert_array_equal(ok[0], grid(10, 2)[[3, 0, 9]])
    for bad in (np.array([[[2**40, 0, 0]]]), np.array([[[0.5, 1.0, 2.0]]], np.float32)):
        outcome = call("run", models["lookup"], cases={"c": {"tokens": bad}}, precision="float32", variant="default")
        assert isinstance(outcome, Failure)
        assert "do not fit" in outcome.message


def test_other_precisions_are_unsupported(call, models):
    outcome = call("run", models["linear"], cases={}, precision="float64", variant="default")
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED


def test_a_changed_file_is_read_again(call, models, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(models["linear"].read_bytes())
    assert len(value(call("signature", path))["inputs"]) == 1
    path.write_bytes(models["two_in_two_out"].read_bytes())
    assert len(value(call("signature", path))["inputs"]) == 2


# -- looking inside


@pytest.mark.parametrize("budget", [1, 10**9])
def test_trace_gives_every_value_in_windows(call, models, budget):
    x = np.random.default_rng(1).standard_normal((3, 1, 5, 6, 2)).astype(np.float32)
    names = value(call("names", models["convolution"]))
    assert names == ["padded", "y"]
    outcome = call("trace", models["convolution"], emit=True, inputs={"x": x}, wanted=names, budget=budget)
    traced = outcome.value.emitted
    np.testing.assert_array_equal(traced["padded"], np.pad(x, ((0, 0), (0, 0), (1, 2), (3, 4), (0, 0))))
    np.testing.assert_array_equal(traced["y"], run(call, models["convolution"], {"x": x}, "builtin")["y"])


def test_trace_of_repeated_names_state_and_uneven_values(call, models):
    x = np.array([[1.0, -2.0], [3.0, 4.0]], np.float32)
    names = value(call("names", models["same_names"]))
    assert names == ["t#1", "#2", "y"]
    traced = call("trace", models["same_names"], emit=True, inputs={"t#0": x}, wanted=names, budget=1).value.emitted
    np.testing.assert_array_equal(traced["t#1"], -x)
    np.testing.assert_array_equal(traced["#2"], np.abs(x))
    counted = call("trace", models["counter"], emit=True, inputs={"x": x}, wanted=["total", "y"], budget=1)
    np.testing.assert_array_equal(counted.value.emitted["y"], x)
    uneven = call("trace", models["positive_places"], emit=True, inputs={"x": np.eye(2, 4, dtype=np.float32) + np.array([[0, 0, 0, 1], [0, 0, 0, 0]], np.float32)}, wanted=["mask", "y"], budget=100)  # fmt: skip
    assert uneven.value.value == {"uneven": ["y"], "kernels": "builtin"}
    assert set(uneven.value.emitted) == {"mask"}


def test_trace_dequantises(call, models):
    x = np.array([[[1.5, 2.0, 0.5, -3.0]]], np.float32)
    outcome = call("trace", models["quantised"], emit=True, inputs={"x": x}, wanted=["x", "y"], budget=10**6)
    np.testing.assert_array_equal(outcome.value.emitted["x"], x)
    assert outcome.value.emitted["y"].dtype == np.float32


def test_trace_of_an_unknown_value_is_told(call, models):
    outcome = call("trace", models["linear"], emit=True, inputs={"features": np.zeros((1, 1, 4), np.float32)}, wanted=["nothing"], budget=1)  # fmt: skip
    assert isinstance(outcome, Failure)
    assert "no value 'nothing'" in outcome.message


def test_graph_speaks_onnx_where_it_can(call, models):
    graph = value(call("graph", models["convolution"]))
    pad, conv = graph["nodes"]
    assert (pad["name"], pad["op"], pad["native_op"]) == ("0:padded", "Pad", "PAD")
    assert pad["attributes"]["pads"] == [0, 1, 3, 0, 0, 2, 4, 0]
    assert (conv["op"], conv["inputs"], conv["outputs"]) == ("Conv", ["padded", "kernel", "bias"], ["y"])
    wanted = {"strides": [2, 2], "dilations": [1, 1], "auto_pad": "VALID", "activation": "Relu6", "kernel_shape": [2, 2], "group": 1}  # fmt: skip
    assert wanted.items() <= conv["attributes"].items()
    assert (graph["inputs"], graph["outputs"]) == (["x"], ["y"])
    assert graph["constants"]["kernel"] == {"dtype": "float32", "shape": [3, 2, 2, 2]}


def test_graph_of_branches_and_of_absent_operands(call, models):
    (node,) = value(call("graph", models["branches"]))["nodes"]
    assert (node["op"], node["inputs"]) == ("If", ["condition", "x", "c"])
    (node,) = value(call("graph", models["dynamic_range"]))["nodes"]
    assert node["inputs"] == ["x", "w"]
    graph = value(call("graph", models["linear"]))
    assert graph["nodes"][0]["name"] == "0:y:0"
    assert (graph["inputs"], graph["outputs"]) == (["features"], ["scores"])
    assert graph["nodes"][0]["outputs"] == ["scores"], "signature, run and graph use one name"


def test_parameters_are_dequantised_per_channel(call, models):
    emitted = call("parameters", models["quantised"], emit=True).value.emitted
    np.testing.assert_array_equal(emitted["w"], [[0.25, -0.5, 0.75, 1], [2.5, 3, -3.5, 4], [1.125, -1.25, 1.375, 1.5]])
    np.testing.assert_array_equal(emitted["b"], [0.5, -2.0, 1.0])
    half = call("parameters", models["half_weights"], emit=True).value.emitted["w16"]
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, grid(2, 2))
    packed = call("parameters", models["small_integers"], emit=True).value.emitted["w"]
    np.testing.assert_array_equal(packed, [[0.5, -1.0, 3.5, -4.0, 1.5]])


# -- real models

CORPUS_FILES = {
    "mlperf_tiny_resnet8/pretrainedResnet.tflite": ("float32", [None, 32, 32, 3]),
    "mlperf_tiny_resnet8/pretrainedResnet_quant.tflite": ("int8", [None, 32, 32, 3]),
    "mlperf_tiny_vww/vww_96_float.tflite": ("float32", [None, 96, 96, 3]),
    "mlperf_tiny_vww/vww_96_int8.tflite": ("int8", [None, 96, 96, 3]),
    "mlperf_tiny_wakeword/str_ww_ref_model.tflite": ("int8", [None, 30, 1, 40]),
    "dtln/model_1.tflite": ("float32", [1, 1, 257]),
    "dtln/model_2.tflite": ("float32", [1, 1, 512]),
    "dtln/model_quant_1.tflite": ("int8-dynamic", [1, 1, 257]),
    "blazeface/face_detection_front.tflite": ("float16", [1, 128, 128, 3]),
    "keras2_qat_ptq/mobilenet_v1_0.25_128_quant.tflite": ("int8", [1, 128, 128, 3]),
    "movie_review/movie_review.tflite": ("float32", [1, 256]),
    "tflm/person_detect.tflite": ("int8", [1, 96, 96, 1]),
    "tflm/trained_lstm.tflite": ("float32", [1, 28, 28]),
    "slim_portrait/slim_reshape.tflite": ("float32", [1, 512, 512, 3]),
}


def random_inputs(signature: SignatureDict, runs: int):
    rng = np.random.default_rng(3)
    inputs = {}
    for spec in signature["inputs"]:
        shape = (runs, *(size or 1 for size in spec["shape"]))
        if spec["dtype"].startswith("int"):
            inputs[spec["name"]] = rng.integers(spec["minimum"], spec["maximum"] + 1, shape).astype(spec["dtype"])
        else:
            inputs[spec["name"]] = rng.random(shape).astype(np.float32)
    return inputs


@pytest.mark.corpus
@pytest.mark.parametrize("name", CORPUS_FILES)
def test_real_model_from_end_to_end(corpus, call, name):
    """Describe, run, trace and read the graph: everything agrees with everything."""
    path = corpus / "models" / name
    precision, shape = CORPUS_FILES[name]
    assert tflite.sniff(path.read_bytes()[:65536], path) == "tflite"
    signature = value(call("signature", path))
    assert signature["meta"]["precision"] == precision
    assert signature["inputs"][0]["shape"] == shape
    inputs = random_inputs(signature, 1 if "portrait" in name else 2)
    out = run(call, path, inputs, "builtin")
    assert list(out) == [spec["name"] for spec in signature["outputs"]]
    assert all(np.isfinite(array).all() and np.ptp(array) > 0 for array in out.values())
    names, graph = value(call("names", path)), value(call("graph", path))
    traced = call("trace", path, emit=True, inputs=inputs, wanted=names, budget=64 * 2**20).value
    assert set(traced.emitted) == set(names)
    for output, array in zip(graph["outputs"], out.values(), strict=True):
        np.testing.assert_array_equal(traced.emitted[output], array)
    known = {"", *names, *graph["inputs"], *graph["constants"]}
    assert all(operand in known for node in graph["nodes"] for operand in node["inputs"])
    shown = signature["meta"]["operators"].items()
    counted = sum(number for code, number in shown if code != "DEQUANTIZE")
    assert counted == sum(node["native_op"] != "DEQUANTIZE" for node in graph["nodes"])
    emitted = call("parameters", path, emit=True).value.emitted
    assert set(emitted) == set(graph["constants"])
    assert all(list(emitted[key].shape) == entry["shape"] for key, entry in graph["constants"].items())
    json.dumps(graph)


@pytest.fixture(scope="module")
def cifar(corpus):
    from PIL import Image

    with (corpus / "images" / "cifar10" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    images = [np.asarray(Image.open(corpus / "images" / "cifar10" / row["file"]).convert("RGB")) for row in rows]
    return np.stack(images)[:, None].astype(np.float32), np.array([int(row["label"]) for row in rows])


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("file", "variant", "expected"),
    [
        ("pretrainedResnet.tflite", "default", 0.752),
        ("pretrainedResnet.tflite", "builtin", 0.752),
        ("pretrainedResnet_quant.tflite", "default", 0.748),
        ("pretrainedResnet_quant.tflite", "builtin", 0.738),  # the int8 kernels differ by several steps of the grid
    ],
)
def test_resnet8_classifies_cifar10(corpus, call, cifar, file, variant, expected):
    """The accuracy that others measured on these 500 unscaled images, give or take two of them on other machines."""
    images, labels = cifar
    path = corpus / "models" / "mlperf_tiny_resnet8" / file
    (spec,) = value(call("signature", path))["inputs"]
    (scores,) = run(call, path, {spec["name"]: images}, variant).values()
    assert (scores[:, 0].argmax(axis=-1) == labels).mean() == pytest.approx(expected, abs=0.004)


@pytest.mark.corpus
def test_a_batch_gives_what_single_runs_give(corpus, call, cifar):
    images, _ = cifar
    path = corpus / "models" / "mlperf_tiny_resnet8" / "pretrainedResnet.tflite"
    one = run(call, path, {"input_1": images[:8]})["Identity"]
    batch = run(call, path, {"input_1": images[:8].transpose(1, 0, 2, 3, 4)})["Identity"]
    # other blocking of the same sums: float32 noise of a softmax output
    np.testing.assert_allclose(batch[0], one[:, 0], atol=1e-5)
