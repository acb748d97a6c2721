"""Edits of TFLite files: what changes is what was asked for, computed here with NumPy, and all else is what it was."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from trueport.frameworks import tflite
from trueport.frameworks._base import EDIT_KINDS
from trueport.outcome import Failure, Kind, Ok, Stage

MODULE = "trueport.frameworks.tflite"
HERE = str(Path(__file__).parent)
ROUNDING = 2e-6
"""Of float32 results below 8: some units in the last place."""


@pytest.fixture(scope="module")
def models(pool, env, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tflite_edit")
    found = {}
    for module in ("tflite_models", "tflite_parts", "tflite_edit_models"):
        outcome = pool.call(env("litert"), module, "write", {"folder": str(folder)}, stage=Stage.LOAD, paths=[HERE])
        assert isinstance(outcome, Ok), outcome
        found.update(outcome.value.value)
    return found


@pytest.fixture(scope="module")
def call(pool, env, models):
    """call(function, model, ...) -> the Outcome of that function of the framework file."""

    def run(function, model, *, emit=False, **more):
        arguments = {"path": models.get(model, str(model)), "trust": False, **more}
        return pool.call(env("litert"), MODULE, function, arguments, stage=Stage.TRACE, emit=emit)

    return run


@pytest.fixture
def edit(call, tmp_path):
    """edit(model, edits..., arrays) -> path of the edited file."""

    def run(model, *edits, **arrays):
        out = tmp_path / f"edited_{len(list(tmp_path.iterdir()))}.tflite"
        given = {key: np.asarray(value) for key, value in arrays.items()}
        outcome = call("edit", model, edits=list(edits), arrays=given, out=str(out))
        assert isinstance(outcome, Ok), outcome
        assert isinstance(outcome.value.value["notes"], list)
        return out

    return run


@pytest.fixture
def refused(call, tmp_path):
    """refused(model, edit, arrays) -> the Failure; no file is written."""

    def run(model, *edits, **arrays):
        given = {key: np.asarray(value) for key, value in arrays.items()}
        outcome = call("edit", model, edits=list(edits), arrays=given, out=str(tmp_path / "no.tflite"))
        assert isinstance(outcome, Failure), outcome
        assert not (tmp_path / "no.tflite").exists()
        return outcome

    return run


@pytest.fixture(scope="module")
def results(call):
    """results(model, inputs without a run axis) -> name -> array."""

    def run(model, **inputs):
        case = {name: np.asarray(value)[None] for name, value in inputs.items()}
        outcome = call("run", model, cases={"case": case}, precision="float32", variant="builtin")
        assert isinstance(outcome, Ok), outcome
        return {name: array[0] for name, array in outcome.value.value["case"].items()}

    return run


@pytest.fixture(scope="module")
def facts(pool, env, models):
    """facts(model) -> every table of the file as plain values."""

    def run(model):
        path = {"path": models.get(model, str(model))}
        outcome = pool.call(env("litert"), "tflite_edit_models", "facts", path, stage=Stage.LOAD, paths=[HERE])
        assert isinstance(outcome, Ok), outcome
        return outcome.value.value

    return run


@pytest.fixture(scope="module")
def graph(call):
    def run(model):
        outcome = call("graph", model)
        assert isinstance(outcome, Ok), outcome
        return outcome.value.value

    return run


def changed(before, after):
    """Which parts of two files differ: (part, index) pairs; tables that only one of them has count too."""
    found = set()
    for part in ("tensors", "operators"):
        for number, (old, new) in enumerate(zip(before[part], after[part], strict=True)):
            found |= {(part, number, i) for i in range(max(len(old), len(new))) if old[i : i + 1] != new[i : i + 1]}
    old, new = before["buffers"], after["buffers"]
    found |= {("buffers", i) for i in range(max(len(old), len(new))) if old[i : i + 1] != new[i : i + 1]}
    return found | {(part,) for part in ("root", "ends") if before[part] != after[part]}


def conv(x, kernel, bias, pads, stride=1):
    """Convolution of pictures with kernels [O, H, W, I]."""
    x = np.pad(x, [(0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)])
    height, width = kernel.shape[1:3]
    rows, columns = (x.shape[1] - height) // stride + 1, (x.shape[2] - width) // stride + 1
    y = np.zeros((len(x), rows, columns, len(kernel)), np.float64)
    for i in range(height):
        for j in range(width):
            part = x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            y += part.astype(np.float64) @ kernel[:, i, j].T
    return y + bias


KERNEL = np.linspace(-1, 1, 54, dtype=np.float32).reshape(3, 3, 3, 2)
BIAS = np.array([0.5, -0.25, 0.125], np.float32)
W = np.linspace(-1, 1, 4 * 27, dtype=np.float32).reshape(4, 27) ** 3


def image(batch=1):
    return np.random.default_rng(5).standard_normal((batch, 6, 6, 2)).astype(np.float32)


def network(x, kernel=KERNEL, bias=BIAS, pads=(1, 1, 1, 1), stride=1, activation=lambda v: np.maximum(v, 0)):
    """What the model `picture` computes: (scores, features)."""
    features = activation(conv(x, kernel, bias, pads, stride))
    pooled = features[:, : features.shape[1] // 2 * 2, : features.shape[2] // 2 * 2]
    pooled = pooled.reshape(len(x), features.shape[1] // 2, 2, -1, 2, 3).max((2, 4))
    return pooled.reshape(len(x), -1) @ W.T, features


# -- parameters


def test_every_kind_of_edit_can_be_written():
    assert sorted(tflite.EDITS) == sorted(EDIT_KINDS)


def test_a_parameter_is_set_and_nothing_else_changes(edit, results, facts):
    kernel = KERNEL[:, ::-1].copy()
    out = edit("picture", {"kind": "set-parameter", "node": "0:conv", "parameter": "kernel", "array": "k"}, k=kernel)
    scores, features = network(image(), kernel)
    got = results(out, image=image())
    np.testing.assert_allclose(got["features"], features, atol=ROUNDING * 4)
    np.testing.assert_allclose(got["scores"], scores, atol=ROUNDING * 16)
    assert changed(facts("picture"), facts(out)) == {("buffers", 1)}, "the bytes of one constant"


def test_without_edits_the_file_says_what_it_said(edit, facts, models):
    for model in ("picture", "steps", "loop", "half_weights", "recurrent", "vocabulary", "counter"):
        assert changed(facts(model), facts(edit(model))) == set(), model


def test_the_same_edits_give_the_same_bytes(edit):
    edits = (
        {"kind": "set-parameter", "node": "0:conv", "parameter": "kernel", "array": "k"},
        {"kind": "insert", "value": "features", "steps": [{"operator": "Mish"}]},
    )
    one, other = (edit("picture", *edits, k=KERNEL * 2).read_bytes() for _ in range(2))
    assert one == other


@pytest.mark.parametrize("model", ["shared", "shared_half"])
def test_other_nodes_keep_a_shared_constant(edit, results, graph, model):
    c, new, x = np.array([2, 3, 4], np.float32), np.array([0.5, -1, 8], np.float32), np.ones((1, 3), np.float32)
    (node,) = (node["name"] for node in graph(model)["nodes"] if node["native_op"] == "MUL")
    out = edit(model, {"kind": "set-parameter", "node": node, "parameter": "c", "array": "a"}, a=new)
    np.testing.assert_array_equal(results(out, x=x)["v"], (x + c) * new)
    (node,) = (node["name"] for node in graph(model)["nodes"] if node["native_op"] == "ADD")
    out = edit(model, {"kind": "set-parameter", "node": node, "parameter": "c", "array": "a"}, a=new)
    np.testing.assert_array_equal(results(out, x=x)["v"], (x + new) * c)


def test_float16_stays_so_or_becomes_what_holds_the_values(edit, results, graph):
    x, exact = np.ones((2, 2), np.float32), np.full((2, 2), 0.7, np.float32)
    setting = {"kind": "set-parameter", "node": "1:y", "parameter": "w16", "array": "a"}
    out = edit("half_weights", setting, a=exact)
    np.testing.assert_array_equal(results(out, x=x)["y"], x + exact.astype(np.float16))
    assert graph(out)["constants"]["w16"]["dtype"] == "float16"
    out = edit("half_weights", {**setting, "grid": "new"}, a=exact)
    np.testing.assert_array_equal(results(out, x=x)["y"], x + exact)
    assert [node["native_op"] for node in graph(out)["nodes"]] == ["ADD"], "the DEQUANTIZE has gone"


def test_int8_weights_on_their_grid_and_on_a_new_one(edit, results, graph, call):
    weights = np.array([[0.3, -0.7, 0.11, 0.05]] * 3, np.float32) * [[1], [10], [100]]
    setting = {"kind": "set-parameter", "node": "0:y", "parameter": "w", "array": "a"}
    out = edit("quantised", setting, a=weights)
    scales = np.array([[0.25], [0.5], [0.125]])
    kept = call("parameters", out, emit=True).value.emitted["w"]
    np.testing.assert_allclose(kept, np.clip(np.rint(weights / scales), -128, 127) * scales, rtol=1e-6)
    out = edit("quantised", {**setting, "grid": "new"}, a=weights)
    told = graph(out)["constants"]
    np.testing.assert_allclose(told["w"]["quantization"]["scale"], np.abs(weights).max(1) / 127, rtol=1e-6)
    np.testing.assert_allclose(
        told["b"]["quantization"]["scale"], 0.5 * np.array(told["w"]["quantization"]["scale"]), rtol=1e-6
    )
    values = call("parameters", out, emit=True).value.emitted
    np.testing.assert_allclose(values["w"], weights, atol=np.abs(weights).max() / 250)
    np.testing.assert_allclose(values["b"], [0.5, -2, 1], atol=0.2)
    x = np.array([[1, 0.5, -1, 2]], np.float32)
    exact = np.clip(np.rint((x @ values["w"].T + values["b"]) / 0.5) - 10, -128, 127) * 0.5 + 5
    np.testing.assert_allclose(results(out, x=x)["y"], exact, atol=0.5)  # kernels round their own way: one step


def test_a_bias_goes_on_the_grid_that_its_layer_asks_for(edit, graph, call):
    bias = np.array([1.0, -3.0, 0.7], np.float32)
    setting = {"kind": "set-parameter", "node": "0:y", "parameter": "b", "array": "a", "grid": "new"}
    out = edit("quantised", setting, a=bias)
    np.testing.assert_allclose(graph(out)["constants"]["b"]["quantization"]["scale"], [0.125, 0.25, 0.0625])
    np.testing.assert_allclose(call("parameters", out, emit=True).value.emitted["b"], bias, atol=0.13)


def test_four_bits_are_packed(edit, results, call):
    new = np.array([[1.5, -4, 3.5, 0, -0.5]], np.float32)
    out = edit("small_integers", {"kind": "set-parameter", "node": "0:y", "parameter": "w", "array": "a"}, a=new)
    x = np.array([[1, 2, 4, 8, 16]], np.float32)
    np.testing.assert_array_equal(call("parameters", out, emit=True).value.emitted["w"], new)
    half = 16 / 127 / 2  # the kernel rounds the input to int8
    np.testing.assert_allclose(results(out, x=x)["y"], x @ new.T, atol=half * np.abs(new).sum())


def test_the_constant_of_a_loop(edit, results, refused):
    setting = {"kind": "set-parameter", "node": "1:count", "parameter": "subgraph 2: two#5", "array": "a"}
    out = edit("loop", setting, a=np.array([3.0], np.float32))
    np.testing.assert_array_equal(results(out, x=np.ones(2, np.float32))["y"], np.full(2, 0.5 * 27 + 1))
    failure = refused("loop", {**setting, "node": "0:scaled"}, a=np.array([3.0], np.float32))
    assert "does not run the part" in failure.message


def test_constants_that_are_shapes(edit, results):
    out = edit("lookup", {"kind": "set-parameter", "node": "0:flat", "parameter": "shape", "array": "a"},
               a=np.array([3, 1], np.int32))  # fmt: skip
    assert results(out, tokens=np.array([[1, 2, 3]], np.int32))["y"].shape == (3, 1, 2)


def test_a_bias_is_added(edit, results, refused, graph):
    bias = np.array([1.0, -2.0], np.float32)
    out = edit("dynamic_range", {"kind": "add-parameter", "node": "0:y", "role": "bias", "array": "a"}, a=bias)
    x = np.array([[1, 2, 3, 4]], np.float32)
    before = results("dynamic_range", x=x)["y"]
    np.testing.assert_allclose(results(out, x=x)["y"], before + bias, rtol=1e-6)
    out = edit("bare", {"kind": "add-parameter", "node": "0:y", "role": "bias", "array": "a"}, a=bias)
    assert graph(out)["constants"]["bias_3"]["quantization"]["scale"] == [0.125, 0.25]
    np.testing.assert_array_equal(results(out, x=x)["y"], results("bare", x=x)["y"] + bias)
    failure = refused("linear", {"kind": "add-parameter", "node": "0:y:0", "role": "bias", "array": "a"}, a=bias)
    assert failure.kind is Kind.UNSUPPORTED
    assert "has a bias" in failure.message


# -- attributes


@pytest.mark.parametrize(
    ("name", "value", "pads", "stride", "activation"),
    [
        ("activation", None, (1, 1, 1, 1), 1, lambda v: v),
        ("activation", "RELU6", (1, 1, 1, 1), 1, lambda v: np.clip(v, 0, 6)),
        ("activation", "ReluN1To1", (1, 1, 1, 1), 1, lambda v: np.clip(v, -1, 1)),
        ("pads", [1, 1, 1, 1], (1, 1, 1, 1), 1, None),
        ("pads", [2, 2, 0, 0], (2, 2, 0, 0), 1, None),
        ("auto_pad", "SAME_UPPER", (1, 1, 1, 1), 1, None),
    ],
)
def test_attributes_of_a_convolution(edit, results, graph, name, value, pads, stride, activation):
    out = edit("picture", {"kind": "set-attribute", "node": "0:conv", "attribute": name, "value": value})
    more = {} if activation is None else {"activation": activation}
    scores, features = network(image(), pads=pads, stride=stride, **more)
    got = results(out, image=image())
    np.testing.assert_allclose(got["features"], features, atol=ROUNDING * 4)
    np.testing.assert_allclose(got["scores"], scores, atol=ROUNDING * 16)
    padded = [node for node in graph(out)["nodes"] if node["op"] == "Pad"]
    assert bool(padded) == (name == "pads" and value == [2, 2, 0, 0]), "SAME where SAME does it"


SHOWN = {
    ("vocabulary", "CONV_2D", "strides"): [1, 2],
    ("vocabulary", "CONV_2D", "dilations"): [2, 1],
    ("vocabulary", "CONV_2D", "auto_pad"): "VALID",
    ("vocabulary", "DEPTHWISE_CONV_2D", "dilations"): [1, 1],
    ("vocabulary", "MAX_POOL_2D", "kernel_shape"): [2, 3],
    ("vocabulary", "AVERAGE_POOL_2D", "auto_pad"): "SAME_UPPER",
    ("vocabulary", "TRANSPOSE_CONV", "output_shape"): [15, 17],
    ("vocabulary", "TRANSPOSE_CONV", "pads"): [2, 0, 0, 1],
    ("vocabulary", "RESIZE_BILINEAR", "coordinate_transformation_mode"): "align_corners",
    ("vocabulary", "RESIZE_BILINEAR", "sizes"): [7, 9],
    ("vocabulary", "RESIZE_NEAREST_NEIGHBOR", "align_corners"): False,
    ("vocabulary", "SLICE", "starts"): [0, 0, 2, 0],
    ("vocabulary", "STRIDED_SLICE", "starts"): [0, 0, -1, 2],
    ("vocabulary", "MIRROR_PAD", "mode"): "reflect",
    ("vocabulary", "MIRROR_PAD", "pads"): [0, 2, 0, 0, 0, 1, 0, 0],
    ("vocabulary", "GELU", "approximate"): "none",
    ("vocabulary", "CAST", "to"): "int64",
    ("vocabulary", "LOCAL_RESPONSE_NORMALIZATION", "size"): 3,
    ("vocabulary", "LOCAL_RESPONSE_NORMALIZATION", "alpha"): 5.0,
    ("vocabulary", "LOCAL_RESPONSE_NORMALIZATION", "bias"): 2.0,
    ("moves", "TRANSPOSE", "perm"): [1, 0, 2],
    ("moves", "MEAN", "axes"): [0, 1],
    ("moves", "MEAN", "keepdims"): 0,
    ("moves", "SOFTMAX", "beta"): 2.0,
    ("moves", "LEAKY_RELU", "alpha"): 0.25,
    ("moves", "CONCATENATION", "axis"): 1,
    ("moves", "PAD", "pads"): [0, 0, 2, 0, 1, 1],
    ("moves", "SLICE", "ends"): [2, 2, 2147483647],
    ("moves", "STRIDED_SLICE", "steps"): [1, 2, 1],
    ("moves", "ADD", "activation"): "Tanh",
    ("moves", "RESHAPE", "shape"): [3, 8],
    ("moves", "GATHER", "axis"): 2,
}


@pytest.mark.parametrize(("model", "operator", "name"), SHOWN)
def test_an_attribute_is_shown_as_it_was_set(edit, graph, model, operator, name):
    """`edit` runs the file, so shapes fit; nodes beside the one that is changed are what they were."""
    value = SHOWN[model, operator, name]
    before = graph(model)
    place, node = next((i, node) for i, node in enumerate(before["nodes"]) if node["native_op"] == operator)
    assert node["attributes"].get(name) != value
    out = edit(model, {"kind": "set-attribute", "node": node["name"], "attribute": name, "value": value})
    after = graph(out)
    made = next(item for item in after["nodes"] if node["outputs"] == item["outputs"])
    if (operator, name) == ("TRANSPOSE_CONV", "pads"):
        # what is cut off is not even on both sides of the rows: the whole result, and a slice of it
        assert made["op"] == "Slice"
        made["attributes"] = {"pads": value}
        after["nodes"] = [item for item in after["nodes"] if not item["outputs"][0].endswith("/whole")]
    assert made["attributes"].get(name) == value
    others = [
        (one, other) for i, (one, other) in enumerate(zip(before["nodes"], after["nodes"], strict=True)) if i != place
    ]
    assert all({**one, "name": 0} == {**other, "name": 0} for one, other in others)


CUBE = np.random.default_rng(2).standard_normal((2, 3, 4)).astype(np.float32) * 4


def softmax(x, axis=-1):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


@pytest.mark.parametrize(
    ("operator", "name", "value", "expected"),
    [
        ("SOFTMAX", "axis", 1, softmax(CUBE, 1)),
        ("RELU6", "max", 3.0, np.clip(CUBE, 0, 3)),
        ("RELU6", "min", -1.0, np.clip(CUBE, -1, 6)),
        ("RELU6", "max", None, np.maximum(CUBE, 0)),
        ("ELU", "alpha", 0.5, np.where(CUBE > 0, CUBE, 0.5 * np.expm1(CUBE))),
        ("PAD", "value", 2.5, np.pad(CUBE, [(0, 0), (1, 0), (0, 0)], constant_values=2.5)),
        ("PAD", "pads", [0, -1, 0, 0, 2, 0], np.pad(CUBE[:, 1:], [(0, 0), (0, 2), (0, 0)])),
        ("PAD", "mode", "reflect", np.pad(CUBE, [(0, 0), (1, 0), (0, 0)], mode="reflect")),
        ("STRIDED_SLICE", "window", {"2": [3, None, -1], "1": [1, 2, 1]}, CUBE[:, 1:2, 3:0:-1]),
        ("SLICE", "starts", [1, 0, 2], CUBE[1:, :3, 2:]),
        ("MEAN", "axis", 1, CUBE.mean(1, keepdims=True)),
        ("GATHER", "axis", 0, CUBE[[1, 0]]),
    ],
)
def test_attributes_that_take_another_operator(edit, results, graph, operator, name, value, expected):
    if name == "window":
        value = {**value, "2": [3, 0, -1]}
    node = next(node for node in graph("moves")["nodes"] if node["native_op"] == operator)
    out = edit("moves", {"kind": "set-attribute", "node": node["name"], "attribute": name, "value": value})
    before, after = results("moves", x=CUBE), results(out, x=CUBE)
    assert list(before) == list(after)
    np.testing.assert_allclose(after[operator.lower()], expected, atol=ROUNDING * 2)
    for other in set(before) - {operator.lower()}:
        np.testing.assert_array_equal(after[other], before[other])


def test_pooling_with_explicit_pads(edit, results, graph):
    x = np.random.default_rng(0).standard_normal((1, 7, 8, 4)).astype(np.float32)
    pads = {"kind": "set-attribute", "attribute": "pads", "value": [1, 1, 0, 0]}
    names = {node["native_op"]: node["name"] for node in graph("vocabulary")["nodes"]}
    out = edit("vocabulary", {**pads, "node": names["MAX_POOL_2D"]}, {**pads, "node": names["AVERAGE_POOL_2D"]})
    got = results(out, image=x, free=x)
    low = np.pad(x, [(0, 0), (1, 0), (1, 0), (0, 0)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(low, (3, 3), (1, 2))[:, ::2, ::2]
    np.testing.assert_array_equal(got["max_pool_2d_3"], windows.max((-1, -2)))
    sums, counts = (np.pad(part, [(0, 0), (1, 0), (1, 0), (0, 0)]) for part in (x, np.ones_like(x)))
    sums, counts = (
        np.lib.stride_tricks.sliding_window_view(p, (2, 2), (1, 2))[:, ::2, ::2].sum((-1, -2)) for p in (sums, counts)
    )
    np.testing.assert_allclose(got["average_pool_2d_4"], sums / counts, atol=ROUNDING)


GRAY = np.random.default_rng(8).standard_normal((1, 7, 7, 4)).astype(np.float32)


def test_padding_counts_on_the_strides_whatever_comes_first(edit, results):
    kernel = np.linspace(-1, 1, 72, dtype=np.float32).reshape(2, 3, 3, 4)
    setting = {"kind": "set-attribute", "node": "0:conv"}
    pads = {**setting, "attribute": "pads", "value": [1, 1, 0, 0]}
    out = edit("windows", pads, {**setting, "attribute": "strides", "value": [2, 2]})
    np.testing.assert_allclose(results(out, x=GRAY)["conv"], conv(GRAY, kernel, 0, (1, 1, 0, 0), 2), atol=ROUNDING * 4)


def test_sizes_are_rounded_up(edit, results):
    settings = [
        {"kind": "set-attribute", "node": n, "attribute": "ceil_mode", "value": 1} for n in ("1:most", "2:mean")
    ]
    got = results(edit("windows", *settings), x=GRAY)
    wide = np.pad(GRAY, [(0, 0), (0, 1), (0, 1), (0, 0)], constant_values=np.nan).reshape(1, 4, 2, 4, 2, 4)
    np.testing.assert_array_equal(got["most"], np.nanmax(wide, (2, 4)))
    np.testing.assert_allclose(got["mean"], np.nanmean(wide, (2, 4)), atol=ROUNDING)


def test_groups_come_with_their_weights(edit, results, refused):
    group = {"kind": "set-attribute", "node": "0:conv", "attribute": "group", "value": 2}
    kernel = np.linspace(-1, 1, 36, dtype=np.float32).reshape(2, 3, 3, 2)
    out = edit(
        "windows", group, {"kind": "set-parameter", "node": "0:conv", "parameter": "kernel", "array": "a"}, a=kernel
    )
    halves = [conv(GRAY[..., 2 * i : 2 * i + 2], kernel[i : i + 1], 0, (0, 0, 0, 0)) for i in (0, 1)]
    np.testing.assert_allclose(results(out, x=GRAY)["conv"], np.concatenate(halves, -1), atol=ROUNDING * 4)
    assert "other weights have to come with it" in refused("windows", group).message


def test_an_activation_that_is_not_fused_follows(edit, results, refused):
    setting = {"kind": "set-attribute", "node": "0:conv", "attribute": "activation", "value": "sigmoid"}
    out = edit("picture", setting)
    _, features = network(image(), activation=lambda v: 1 / (1 + np.exp(-v)))
    np.testing.assert_allclose(results(out, image=image())["features"], features, atol=ROUNDING)
    assert "grid of the result" in refused("steps", {**setting, "node": "3:y"}).message


def test_the_grid_of_a_result_is_set(edit, results, graph):
    out = edit("steps", {"kind": "set-attribute", "node": "0:h0", "attribute": "y_scale", "value": 0.2})
    assert graph(out)["nodes"][0]["attributes"]["y_scale"] == pytest.approx(0.2)
    assert graph(out)["nodes"][0]["attributes"]["y_zero_point"] == -5
    old, new = (graph(name)["constants"]["b1"]["quantization"]["scale"] for name in ("steps", out))
    np.testing.assert_allclose(new, np.multiply(old, 2), rtol=1e-6)
    x = np.array([[1, -2, 3, 0.5]], np.float32)
    # the last layer's steps are 0.3; a coarser grid before it moves the result by at most some of them
    np.testing.assert_allclose(results(out, x=x)["y"], results("steps", x=x)["y"], atol=1.5)


def test_attributes_that_are_not_there(refused):
    setting = {"kind": "set-attribute", "node": "0:conv"}
    failure = refused("picture", {**setting, "attribute": "ceil_mode", "value": 1})
    assert failure.kind is Kind.UNSUPPORTED
    assert "no attribute 'ceil_mode'" in failure.message
    assert "fuses no activation" in refused("picture", {**setting, "attribute": "activation", "value": "Sin"}).message
    assert "takes 2 numbers" in refused("picture", {**setting, "attribute": "strides", "value": [1, 2, 3]}).message
    failure = refused("picture", {**setting, "attribute": "strides", "value": [2, 2]})
    assert failure.kind is Kind.UNSUPPORTED, "the flattening has its size written down"
    assert "LiteRT cannot run the changed model" in failure.message


# -- operators

ROOM = np.random.default_rng(3).standard_normal((2, 4, 5, 3)).astype(np.float32) * 2
TABLE = np.random.default_rng(4).standard_normal((3, 3)).astype(np.float32)


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def layer_norm(x):
    apart = x - x.mean(-1, keepdims=True)
    return apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-5)


PER = np.array([0.5, -2, 3], np.float32)
PUT_IN = {
    "Relu": ({}, (), lambda x: np.maximum(x, 0)),
    "Clip": ({"min": 0, "max": 6}, (), lambda x: np.clip(x, 0, 6)),
    "Clip 2": ({"min": -0.5, "max": 1.5}, (), lambda x: np.clip(x, -0.5, 1.5)),
    "LeakyRelu": ({"alpha": 0.1}, (), lambda x: np.where(x > 0, x, 0.1 * x)),
    "PRelu": ({}, (PER,), lambda x: np.where(x > 0, x, PER * x)),
    "Elu": ({"alpha": 2.0}, (), lambda x: np.where(x > 0, x, 2 * np.expm1(x))),
    "Selu": ({}, (), lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))),
    "Celu": ({"alpha": 0.5}, (), lambda x: np.maximum(x, 0) + np.minimum(0, 0.5 * np.expm1(x / 0.5))),
    "Sigmoid": ({}, (), lambda x: 1 / (1 + np.exp(-x))),
    "Tanh": ({}, (), np.tanh),
    "HardSwish": ({}, (), lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "HardSigmoid": ({"alpha": 1 / 6, "beta": 0.5}, (), lambda x: np.clip(x / 6 + 0.5, 0, 1)),
    "Gelu": ({}, (), gelu),
    "Swish": ({}, (), lambda x: x / (1 + np.exp(-x))),
    "Mish": ({}, (), lambda x: x * np.tanh(np.log1p(np.exp(x)))),
    "Softplus": ({}, (), lambda x: np.log1p(np.exp(x))),
    "Softsign": ({}, (), lambda x: x / (1 + np.abs(x))),
    "Erf": ({}, (), np.vectorize(math.erf)),
    "Softmax": ({"axis": -1}, (), softmax),
    "Softmax 2": ({"axis": 1}, (), lambda x: softmax(x, 1)),
    "LogSoftmax": ({"axis": -1}, (), lambda x: np.log(softmax(x))),
    "Exp": ({}, (), np.exp),
    "Abs": ({}, (), np.abs),
    "Neg": ({}, (), np.negative),
    "Identity": ({}, (), lambda x: x),
    "Reciprocal": ({}, (), lambda x: 1 / x),
    "Add": ({}, (PER,), lambda x: x + PER),
    "Sub": ({}, (PER,), lambda x: x - PER),
    "Mul": ({}, (np.float32(3),), lambda x: x * 3),
    "Div": ({}, (PER,), lambda x: x / PER),
    "Max": ({}, (PER,), lambda x: np.maximum(x, PER)),
    "Pow": ({}, (np.float32(2),), lambda x: x**2),
    "BatchNormalization": (
        {"epsilon": 1e-3}, (PER, PER[::-1], PER * 2, PER**2),
        lambda x: (x - PER * 2) / np.sqrt(PER**2 + 1e-3) * PER + PER[::-1],
    ),
    "LayerNormalization": ({}, (PER, PER[::-1]), lambda x: layer_norm(x) * PER + PER[::-1]),
    "MaxPool": ({"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}, (), None),
    "AveragePool": ({"kernel_shape": [2, 2], "strides": [1, 1], "pads": [0, 0, 1, 1]}, (), None),
    "ReduceMean": ({"axes": [1, 2]}, (), lambda x: x.mean((1, 2), keepdims=True)),
    "ReduceMax": ({"axes": [-1]}, (), lambda x: x.max(-1, keepdims=True)),
    "ReduceSum": ({"axes": [3]}, (), lambda x: x.sum(3, keepdims=True)),
    "LpNormalization": ({"axis": -1}, (), lambda x: x / np.sqrt((x**2).sum(-1, keepdims=True))),
    "Square": ({}, (), np.square),
    "GlobalAveragePool": ({}, (), lambda x: x.mean((1, 2), keepdims=True)),
    "Transpose": ({"perm": [0, 2, 1, 3]}, (), lambda x: x.transpose(0, 2, 1, 3)),
    "Reshape": ({"shape": [0, 5, 4, 3]}, (), lambda x: x.reshape(-1, 5, 4, 3)),
    "Flatten": ({}, (), lambda x: x.reshape(len(x), -1)),
    "Unsqueeze": ({"axes": [-1]}, (), lambda x: x[..., None]),
    "Slice": ({"starts": [2], "ends": [-100], "axes": [3], "steps": [-1]}, (), lambda x: x[..., ::-1]),
    "Slice 2": ({"starts": [1, 0], "ends": [4, 3], "axes": [2, 1]}, (), lambda x: x[:, :3, 1:4]),
    "Reverse": ({"axes": [1, 3]}, (), lambda x: x[:, ::-1, :, ::-1]),
    "Pad": ({"pads": [0, 1, 0, 0, 0, 0, 2, 0], "value": 1.5}, (), lambda x: np.pad(
        x, [(0, 0), (1, 0), (0, 2), (0, 0)], constant_values=1.5)),
    "Pad 2": ({"pads": [0, -1, 1, 0, 0, 0, -2, 0]}, (), lambda x: np.pad(x[:, 1:, :-2], [(0, 0), (0, 0), (1, 0), (0, 0)])),
    "Gather": ({"axis": 3}, (np.array([2, 1, 0]),), lambda x: x[..., ::-1]),
    "MatMul": ({}, (TABLE,), lambda x: x @ TABLE),
    "Gemm": ({"transB": 1}, (TABLE, PER), lambda x: x @ TABLE.T + PER),
    "Conv": ({"pads": [1, 0, 1, 0]}, (np.concatenate([KERNEL, KERNEL[..., :1]], 3), BIAS), lambda x: conv(
        x, np.concatenate([KERNEL, KERNEL[..., :1]], 3), BIAS, (1, 0, 1, 0))),
    "ConvTranspose": ({"strides": [2, 2]}, (np.ones((1, 2, 2, 3), np.float32),), lambda x: x.sum(
        -1, keepdims=True).repeat(2, 1).repeat(2, 2)),
    "Resize": ({"sizes": [8, 10], "mode": "nearest", "coordinate_transformation_mode": "asymmetric"}, (), lambda x: (
        x.repeat(2, 1).repeat(2, 2))),
    "DepthToSpace": ({"blocksize": 1}, (), lambda x: x),
    "CumSum": ({"axis": 1}, (), lambda x: x.cumsum(1)),
}  # fmt: skip


def pooled(x, kernel, reduce, pads):
    """Windows one step apart, padded with NaN, which `reduce` leaves out."""
    wide = np.pad(x, [(0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)], constant_values=np.nan)
    return reduce(np.lib.stride_tricks.sliding_window_view(wide, (kernel, kernel), (1, 2)), (-1, -2))


@pytest.mark.parametrize("case", PUT_IN)
def test_an_operator_is_put_in_between(edit, results, call, case):
    """The batch stays free: the file was written for one picture and is run on two."""
    attributes, constants, function = PUT_IN[case]
    arrays = {f"c{place}": array for place, array in enumerate(constants)}
    step = {"operator": case.split()[0], "attributes": attributes, "constants": list(arrays)}
    out = edit("middle", {"kind": "insert", "value": "m", "steps": [step]}, **arrays)
    if function is None:
        kernel, reduce = attributes["kernel_shape"][0], {"MaxPool": np.nanmax, "AveragePool": np.nanmean}[case]
        expected = -pooled(-ROOM, kernel, reduce, attributes["pads"])
    else:
        expected = -function(-ROOM.astype(np.float64))
    got = results(out, x=ROOM)["y"]
    assert got.shape == expected.shape
    # exp and tanh of float32 kernels are good to some units in the last place of what they compute
    np.testing.assert_allclose(got, expected, atol=ROUNDING * 2, rtol=1e-5)
    spec = call("signature", out).value.value["outputs"][0]["shape"]
    assert spec == [None, *expected.shape[1:]]


INT8 = ("Relu", "Clip", "Sigmoid", "Tanh", "HardSwish", "Softmax 2", "Add", "Mul", "MaxPool", "Transpose", "Slice", "Slice 2",
        "Reverse", "Pad", "Gather", "Reshape", "MatMul", "Conv", "AveragePool", "Concat")  # fmt: skip


@pytest.mark.parametrize("case", INT8)
def test_an_operator_is_put_between_values_on_a_grid(edit, results, graph, case):
    attributes, constants, function = PUT_IN.get(case, ({"axis": 3}, (), lambda x: np.concatenate([x, x], 3)))
    arrays = {f"c{place}": array for place, array in enumerate(constants)}
    step = {"operator": case.split()[0], "attributes": attributes, "constants": list(arrays)}
    if case == "Concat":
        step["others"] = ["m"]
    if case == "Reshape":
        step["attributes"] = {"shape": [1, 5, 4, 3]}
    keeps = {"kind": "set-attribute", "node": "1:y", "attribute": "shape"}
    x = np.clip(np.rint(ROOM[:1] * 16) / 16, -8, 127 / 16)
    if function is None:
        reduce = {"MaxPool": np.nanmax, "AveragePool": np.nanmean}[case]
        expected = pooled(x, attributes["kernel_shape"][0], reduce, attributes["pads"])
    else:
        expected = function(x)
    out = edit("middle_int8", {"kind": "insert", "value": "m", "steps": [step]},
               {**keeps, "value": list(expected.shape)}, **arrays)  # fmt: skip
    got = results(out, x=x)["y"]
    np.testing.assert_allclose(got, np.clip(expected, -8, 127 / 16), atol=1 / 16)
    assert graph(out)["nodes"][-1]["attributes"]["y_scale"] == 1 / 16


def test_an_operator_that_only_moves_keeps_the_grid(edit, graph):
    step = {"operator": "Transpose", "attributes": {"perm": [0, 1, 2, 3]}}
    out = edit("middle_int8", {"kind": "insert", "value": "m", "steps": [step]})
    assert [node["native_op"] for node in graph(out)["nodes"]] == ["RESHAPE", "TRANSPOSE", "RESHAPE"]
    out = edit("middle_int8", {"kind": "insert", "value": "m", "steps": [{"operator": "Mish"}]})
    inside = [node["native_op"] for node in graph(out)["nodes"]]
    assert inside[1] == "DEQUANTIZE"
    assert inside[-2] == "QUANTIZE"


def test_readers_are_chosen(edit, results, call):
    x = np.array([2.0, -3.0], np.float32)
    double = {"operator": "Mul", "constants": ["two"]}
    a, b = x, np.array([10.0, 20.0], np.float32)
    put = {"kind": "insert", "value": "out_total", "steps": [double]}
    for readers, expected in (
        (None, (a * (a + b) * 2, (a + b) * 2)),
        ([""], (a * (a + b), (a + b) * 2)),
        (["1:product"], (a * (a + b) * 2, a + b)),
    ):
        chosen = put if readers is None else {**put, "readers": readers}
        out = edit("two_in_two_out", chosen, two=np.float32(2))
        got = results(out, first=a, second=b)
        np.testing.assert_array_equal(got["out_product"], expected[0])
        np.testing.assert_array_equal(got["out_total"], expected[1])
        names = [item["name"] for item in call("signature", out).value.value["outputs"]]
        assert names == ["out_product", "out_total"]


def test_other_values_are_operands(edit, results):
    a, b = np.array([2.0, -3.0], np.float32), np.array([10.0, 20.0], np.float32)
    step = {"operator": "Sub", "others": ["second"], "slot": 1}
    out = edit("two_in_two_out", {"kind": "insert", "value": "first", "readers": ["1:product"], "steps": [step]})
    np.testing.assert_array_equal(results(out, first=a, second=b)["out_product"], (b - a) * (a + b))


def test_an_input_is_changed_before_anybody_reads_it(edit, results, facts):
    mean, deviation = np.array([0.5, -1], np.float32), np.array([2, 4], np.float32)
    steps = [{"operator": "Sub", "constants": ["mean"]}, {"operator": "Div", "constants": ["deviation"]}]
    out = edit("picture", {"kind": "insert", "value": "image", "steps": steps}, mean=mean, deviation=deviation)
    scores, _ = network((image() - mean) / deviation)
    np.testing.assert_allclose(results(out, image=image())["scores"], scores, atol=ROUNDING * 16)
    before, after = facts("picture"), facts(out)
    assert after["operators"][0][2:] == [
        {**item, "inputs": now["inputs"], "opcodeIndex": item["opcodeIndex"]}
        for item, now in zip(before["operators"][0], after["operators"][0][2:], strict=True)
    ]
    assert after["tensors"][0][: len(before["tensors"][0])] == before["tensors"][0]
    assert after["buffers"][: len(before["buffers"])] == before["buffers"]


def test_an_operator_is_exchanged(edit, results, graph):
    out = edit("picture", {"kind": "set-operator", "node": "1:pool", "operator": "AveragePool",
                           "attributes": {"kernel_shape": [2, 2], "strides": [2, 2]}})  # fmt: skip
    features = network(image())[1]
    flat = features.reshape(1, 3, 2, 3, 2, 3).mean((2, 4)).reshape(1, -1)
    np.testing.assert_allclose(results(out, image=image())["scores"], flat @ W.T, atol=ROUNDING * 16)
    out = edit("steps", {"kind": "set-operator", "node": "3:y", "operator": "Tanh", "attributes": {}})
    x = np.array([[1, -2, 3, 0.5]], np.float32)
    linear = results(edit("steps", {"kind": "remove-node", "node": "3:y"}), x=x)["y"]
    np.testing.assert_allclose(results(out, x=x)["y"], np.tanh(linear), atol=0.15)  # half a step of 0.3
    assert graph(out)["outputs"] == ["y"]


def test_an_operator_is_taken_out(edit, results, graph, refused):
    x = np.array([1.0, -2.0], np.float32)
    assert results(edit("same_names", {"kind": "remove-node", "node": "0:t"}), **{"t#0": x})["y"] == pytest.approx(
        np.exp(np.abs(x)), rel=1e-6
    )
    out = edit("same_names", {"kind": "remove-node", "node": "2:y"})
    np.testing.assert_array_equal(results(out, **{"t#0": x})["y"], np.abs(x))
    out = edit("two_in_two_out", {"kind": "remove-node", "node": "0:total", "slot": 1})
    got = results(out, first=x, second=x * 10)
    np.testing.assert_array_equal(got["out_total"], x * 10)
    np.testing.assert_array_equal(got["out_product"], x * x * 10)
    failure = refused("lookup", {"kind": "remove-node", "node": "1:y", "slot": 1})
    assert "makes float32 of int32" in failure.message


@pytest.mark.parametrize("names", [("1:half", "2:back"), ("2:back", "1:half"), ("1:half",), ("2:back",)])
def test_casts_there_and_back_are_taken_out(edit, results, graph, names):
    x = np.array([[0.1, -0.7, 3.3]], np.float32)
    out = edit("island", *({"kind": "remove-node", "node": name} for name in names))
    np.testing.assert_array_equal(results(out, x=x)["y"], -np.abs(x))
    kinds = [node["native_op"] for node in graph(out)["nodes"]]
    assert kinds.count("CAST") == (1 if names == ("1:half",) else 0)


def test_operands_change_places_and_values(edit, results, refused):
    a, b = np.array([2.0, -3.0], np.float32), np.array([10.0, 20.0], np.float32)
    turned = edit("two_in_two_out", {"kind": "set-operator", "node": "1:product", "operator": "Sub"},
                  {"kind": "reorder-inputs", "node": "1:product", "order": [1, 0]})  # fmt: skip
    np.testing.assert_array_equal(results(turned, first=a, second=b)["out_product"], (a + b) - a)
    other = edit("two_in_two_out", {"kind": "set-input", "node": "1:product", "slot": 1, "value": "second"})
    np.testing.assert_array_equal(results(other, first=a, second=b)["out_product"], a * b)
    failure = refused("two_in_two_out", {"kind": "set-input", "node": "0:total", "slot": 1, "value": "out_product"})
    assert "computes itself" in failure.message
    failure = refused("two_in_two_out", {"kind": "reorder-inputs", "node": "1:product", "order": [0, 0]})
    assert "no order of the 2 operands" in failure.message


def test_a_value_is_computed_anew(edit, results, graph):
    nodes = [
        {
            "name": "a",
            "op": "Conv",
            "inputs": ["image", "k", "b"],
            "outputs": ["p"],
            "attributes": {"pads": [0, 1, 2, 1]},
        },
        {"name": "b", "op": "Mish", "inputs": ["p"], "outputs": ["q"], "attributes": {}},
    ]
    out = edit("picture", {"kind": "recompute", "value": "features", "nodes": nodes}, k=KERNEL * 0.5, b=BIAS)
    plain = conv(image(), KERNEL * 0.5, BIAS, (0, 1, 2, 1))
    got = results(out, image=image())
    np.testing.assert_allclose(got["features"], plain * np.tanh(np.log1p(np.exp(plain))), atol=ROUNDING * 4, rtol=1e-5)
    shown = graph(out)
    assert [node["native_op"] for node in shown["nodes"] if node["op"] == "Conv"] == ["CONV_2D"], "the old one has gone"
    assert "kernel" not in shown["constants"], "and its kernel"
    again = [{"name": "n", "op": "Neg", "inputs": ["features"], "outputs": ["n"], "attributes": {}}]
    out = edit("picture", {"kind": "recompute", "value": "features", "nodes": again})
    np.testing.assert_allclose(results(out, image=image())["features"], -network(image())[1], atol=ROUNDING * 4)


def test_a_quantised_value_is_computed_anew(edit, results):
    nodes = [{"name": "n", "op": "Mul", "inputs": ["h0", "half"], "outputs": ["n"], "attributes": {}}]
    out = edit("steps", {"kind": "recompute", "value": "h1", "nodes": nodes}, half=np.float32(0.5))
    same = [{"name": "n", "op": "Identity", "inputs": ["h0"], "outputs": ["n"], "attributes": {}}]
    other = edit("steps", {"kind": "recompute", "value": "h1", "nodes": same})
    x = np.array([[1, -2, 3, 0.5]], np.float32)
    assert not np.array_equal(results(out, x=x)["y"], results(other, x=x)["y"])


# -- inputs, outputs, precision


def test_a_batch_is_freed(edit, results, call, refused):
    failing = call("run", "picture", cases={"c": {"image": image(2)[None]}}, precision="float32", variant="builtin")
    assert isinstance(failing, Failure), "its flattening has one picture written down"
    out = edit("picture", {"kind": "set-dimensions", "value": "image", "shape": [None, 6, 6, 2]})
    scores, _ = network(image(2))
    got = results(out, image=image(2))
    np.testing.assert_allclose(got["scores"], scores, atol=ROUNDING * 16)
    spec = call("signature", out).value.value
    assert [item["shape"] for item in (*spec["inputs"], *spec["outputs"])] == [
        [None, 6, 6, 2], [None, 4], [None, 6, 6, 3]]  # fmt: skip
    out = edit("picture", {"kind": "set-dimensions", "value": "image", "shape": [2, 6, 6, 2]})
    np.testing.assert_allclose(results(out, image=image(2))["scores"], scores, atol=ROUNDING * 16)
    assert call("signature", out).value.value["inputs"][0]["shape"] == [2, 6, 6, 2]
    failure = refused("picture", {"kind": "set-dimensions", "value": "image", "shape": [None, 8, 8, 2]})
    assert failure.kind is Kind.UNSUPPORTED
    assert "no input" in refused("picture", {"kind": "set-dimensions", "value": "features", "shape": [1]}).message


def test_outputs_are_dropped_and_ordered(edit, results, call):
    out = edit("picture", {"kind": "set-outputs", "outputs": ["features", "scores"]})
    assert [item["name"] for item in call("signature", out).value.value["outputs"]] == ["features", "scores"]
    out = edit("picture", {"kind": "set-outputs", "outputs": ["pool", "scores"]})
    got = results(out, image=image())
    assert list(got) == ["pool", "scores"]
    assert got["pool"].shape == (1, 3, 3, 3)
    out = edit("same_names", {"kind": "set-outputs", "outputs": ["y"]})
    assert list(results(out, **{"t#0": np.ones(2, np.float32)})) == ["y"]


def test_layers_compute_in_float32(edit, results, graph, call):
    values = call("parameters", "steps", emit=True).value.emitted
    x = np.array([[1, -2, 3, 0.5]], np.float32)

    def on(value, scale, zero):
        return (np.clip(np.rint(value / scale) + zero, -128, 127) - zero) * scale

    weights = values["w1"] * 1.003
    setting = {"kind": "set-precision", "node": "1:h1", "dtype": "float32", "parameters": {"w1": "a"}}
    one = edit("steps", setting, a=weights)
    first = on(on(x, 0.05, 3) @ values["w0"].T + values["b0"], 0.1, -5)
    second = first @ weights.T + values["b1"]
    third = on(on(second, 0.2, -5) @ values["w2"].T + values["b2"], 0.3, -5)
    np.testing.assert_allclose(results(one, x=x)["y"], np.maximum(third, 0), atol=0.3)
    for order in ((1, 2), (2, 1)):
        pair = [{**setting, "node": f"{i}:h{i}", "parameters": {"w1": "a"} if i == 1 else {}} for i in order]
        both = edit("steps", *pair, a=weights)
        third = on(second @ values["w2"].T + values["b2"], 0.3, -5)
        np.testing.assert_allclose(results(both, x=x)["y"], np.maximum(third, 0), atol=1e-5)
        kinds = [node["native_op"] for node in graph(both)["nodes"]]
        assert kinds.count("QUANTIZE") == kinds.count("DEQUANTIZE") == 1, "nothing between the two"
    assert results(edit("dynamic_range", {**setting, "node": "0:y", "parameters": {}}), x=x)["y"] == pytest.approx(
        x @ call("parameters", "dynamic_range", emit=True).value.emitted["w"].T, rel=1e-5
    )


# -- names and files


def test_the_listed_files_are_all_that_a_patch_needs(env, models, edit, tmp_path):
    """Copied beside each other, with the contract, they write the same file in an interpreter that has LiteRT alone."""
    package = tmp_path / "alone" / "trueport" / "frameworks"
    package.mkdir(parents=True)
    for name in ("_base", *tflite.EDIT_FILES):
        (package / f"{name}.py").write_bytes((Path(tflite.__file__).parent / f"{name}.py").read_bytes())
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    edits = [{"kind": "insert", "value": "features", "steps": [{"operator": "Mish"}]},
             {"kind": "set-attribute", "node": "0:conv", "attribute": "pads", "value": [2, 2, 0, 0]}]  # fmt: skip
    expected = edit("picture", *edits)
    program = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        f"from trueport.frameworks import {tflite.EDIT_FILES[-1]} as last\n"
        "last.apply(sys.argv[2], json.loads(sys.argv[3]), {}, sys.argv[4])\n"
        "print(sorted(name for name in sys.modules if name.startswith('trueport.')))"
    )
    out = tmp_path / "alone.tflite"
    told = subprocess.run(
        [env("litert"), "-I", "-c", program, str(tmp_path / "alone"), models["picture"], json.dumps(edits), str(out)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert out.read_bytes() == expected.read_bytes()
    names = ["_base", *tflite.EDIT_FILES]
    assert told.stdout.splitlines()[-1] == str(
        sorted(["trueport.frameworks", *(f"trueport.frameworks.{name}" for name in names)])
    )


def test_wrong_names_are_told(refused):
    setting = {"kind": "set-parameter", "node": "0:conv", "parameter": "kernel", "array": "k"}
    assert "no operator '0:convolution'" in refused("picture", {**setting, "node": "0:convolution"}, k=KERNEL).message
    assert "no constant 'kernels'" in refused("picture", {**setting, "parameter": "kernels"}, k=KERNEL).message
    assert "does not read 'w'" in refused("picture", {**setting, "parameter": "w"}, k=KERNEL).message
    assert "array 'k', which was not given" in refused("picture", setting).message
    assert "no value 'm'" in refused("picture", {"kind": "insert", "value": "m", "steps": []}).message
    failure = refused("picture", {"kind": "insert", "value": "pool", "steps": [{"operator": "Einsum"}]})
    assert failure.kind is Kind.UNSUPPORTED
    assert "operator Einsum" in failure.message
    failure = refused("picture", {**setting, "parameter": "bias"}, k=np.ones(5, np.float32))
    assert "5 values for 3 channels" in failure.message
    assert "kind 'colour'" in refused("picture", {"kind": "colour"}).message
    twice = {"kind": "remove-node", "node": "3:y"}
    assert "taken out" in refused("steps", twice, twice).message


def test_names_are_those_of_the_file_before_any_edit(edit, results):
    """The second edit names an operator whose number the first one moves."""
    out = edit("picture", {"kind": "insert", "value": "image", "steps": [{"operator": "Neg"}]},
               {"kind": "set-attribute", "node": "0:conv", "attribute": "activation", "value": None},
               {"kind": "set-parameter", "node": "3:y", "parameter": "w", "array": "a"}, a=W * 2)  # fmt: skip
    scores, _ = network(-image(), activation=lambda v: v)
    np.testing.assert_allclose(results(out, image=image())["scores"], scores * 2, atol=ROUNDING * 32)


def test_files_behind_the_graph_come_along(edit, models, tmp_path):
    """Metadata of TFLite files puts labels into a ZIP archive behind the model."""
    labelled = tmp_path / "labelled.tflite"
    shutil.copy(models["picture"], labelled)
    with zipfile.ZipFile(labelled, "a") as archive:
        archive.writestr("labels.txt", "cat\ndog\n")
    out = edit(labelled, {"kind": "set-attribute", "node": "0:conv", "attribute": "activation", "value": None})
    with zipfile.ZipFile(out) as archive:
        assert archive.read("labels.txt") == b"cat\ndog\n"
        assert archive.testzip() is None


# -- real models


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name",
    ["blazeface/face_detection_front", "mlperf_tiny_resnet8/pretrainedResnet_quant", "tflm/trained_lstm"],
)
def test_what_a_real_model_shows_can_be_set_and_changes_nothing(corpus, edit, results, graph, call, facts, name):
    """Every attribute and constant of one operator of each kind, set to what it is, leaves the outputs bit for bit."""
    path = corpus / "models" / f"{name}.tflite"
    assert changed(facts(path), facts(edit(path))) == set()
    rng = np.random.default_rng(0)
    inputs = {
        item["name"]: rng.random([size or 1 for size in item["shape"]], np.float32)
        for item in call("signature", path).value.value["inputs"]
    }
    expected = results(path, **inputs)
    shown, values = graph(path), call("parameters", path, emit=True).value.emitted
    implied = {"inner_constants", "count_include_pad"}  # not set, as there is no choice
    done = 0
    for node in {node["native_op"]: node for node in shown["nodes"]}.values():
        edits = [
            {"kind": "set-attribute", "node": node["name"], "attribute": key, "value": value}
            for key, value in node["attributes"].items()
            if key not in implied
        ]
        stored = [key for key in dict.fromkeys(node["inputs"]) if key in values and "zeros" not in key]
        edits += [{"kind": "set-parameter", "node": node["name"], "parameter": key, "array": key} for key in stored]
        out = edit(path, *edits, **{key: values[key] for key in stored})
        for key, array in results(out, **inputs).items():
            np.testing.assert_array_equal(array, expected[key])
        done += len(edits)
    assert done >= 10
