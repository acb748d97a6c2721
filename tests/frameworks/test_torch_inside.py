"""Looking inside PyTorch models: two granularities, attributes in ONNX vocabulary, and running a part with values put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.frameworks import torch as framework
from trueport.outcome import Failure, Kind, Stage

HERE = str(Path(__file__).parent)
ZOO = ("residual", "depthwise", "lstm", "gru", "encoder", "mixed")
OWN = ("composites", "hyperparameters", "in-place", "chunks", "named-like-a-part")
COMPOSITE = {"LSTM", "GRU", "LayerNormalization", "GroupNormalization", "InstanceNormalization", "Gelu", "Elu", "Swish",
             "HardSwish", "Softmax", "LogSoftmax", "PRelu", "LeakyRelu", "Mish", "Softplus", "Selu", "Attention", "Gemm"}  # fmt: skip


class Torch:
    """Calls into the torch toolchain, on models that are saved once."""

    def __init__(self, pool, python, folder):
        self.pool, self.python, self.folder = pool, python, folder
        self.saved, self.kept = {}, {}

    def ask(self, module, function, emit=False, **arguments):
        return self.pool.call(
            self.python, module, function, arguments, stage=Stage.TRACE, emit=emit, paths=[HERE], timeout=200
        )

    def call(self, function, path, emit=False, **arguments):
        outcome = self.ask("trueport.frameworks.torch", function, emit, path=path, trust=False, **arguments)
        if isinstance(outcome, Failure):
            return outcome
        return (outcome.value.value, outcome.value.emitted) if emit else outcome.value.value

    def made(self, module, function, **arguments):
        outcome = self.ask(module, function, **arguments)
        assert not isinstance(outcome, Failure), outcome
        return outcome.value.value

    def model(self, kind, form="pytorch"):
        if kind not in self.saved and kind in ZOO:
            self.saved[kind] = self.made("torch_models", "save", kind=kind, folder=str(self.folder), seed=4)
        elif kind not in self.saved:
            path = self.made("torch_inside_models", "save", kind=kind, folder=str(self.folder), seed=4)
            self.saved[kind] = {"pytorch": path}
        return self.saved[kind][form]

    def feeds(self, kind):
        """Three runs."""
        if ("feeds", kind) not in self.kept:
            if kind in ZOO:
                self.kept["feeds", kind] = self.made("torch_models", "inputs", kind=kind, seed=4, batch=2, runs=3)
            else:
                self.kept["feeds", kind] = {"x": self.made("torch_inside_models", "inputs", kind=kind, runs=3)}
        return self.kept["feeds", kind]

    def graph(self, kind, granularity="native"):
        key = ("graph", kind, granularity)
        if key not in self.kept:
            self.kept[key] = self.call("graph", self.model(kind), granularity=granularity)
        return self.kept[key]

    def run(self, kind, feeds, **other):
        settings = {"precision": "float32", "variant": "default", **other}
        return self.call("run", self.model(kind), cases={"a": feeds}, **settings)["a"]

    def trace(self, kind, granularity="native"):
        """Every value on `feeds(kind)`."""
        key = ("trace", kind, granularity)
        if key not in self.kept:
            self.kept[key] = self.traced(self.model(kind), self.feeds(kind), granularity)
        return self.kept[key]

    def traced(self, path, feeds, granularity):
        wanted = self.call("names", path, granularity=granularity)
        reply, values = self.call(
            "trace", path, emit=True, inputs=feeds, wanted=wanted, budget=2**28, granularity=granularity
        )
        assert not reply["skipped"]
        return {name: np.array(array) for name, array in values.items()}

    def replay(self, kind, inputs, given, wanted, granularity="native", **other):
        settings = {"variant": "", "budget": 2**28, **other}
        return self.call(
            "replay", self.model(kind), emit=True, inputs=inputs, given=given, wanted=wanted, granularity=granularity, **settings
        )  # fmt: skip


@pytest.fixture(scope="module")
def torch(pool, env, tmp_path_factory):
    return Torch(pool, env("torch"), tmp_path_factory.mktemp("inside"))


# ---- granularities ----


@pytest.mark.parametrize("kind", [*ZOO, *OWN])
def test_the_finer_view_computes_what_the_model_computes(torch, kind):
    feeds = torch.feeds(kind)
    native, fine = (torch.graph(kind, one) for one in framework.GRANULARITIES)
    outputs, exact = torch.run(kind, feeds), torch.run(kind, feeds, precision="float64")
    values = torch.trace(kind, "decomposed")
    assert (fine["inputs"], fine["outputs"]) == (native["inputs"], native["outputs"])
    for name, expected in outputs.items():
        # As far as the model itself moves between float32 and float64, times ten for another order of operations.
        floor = np.abs(expected - exact[name]).max() + np.finfo(np.float32).eps * np.abs(expected).max()
        assert np.abs(values[name] - expected).max() <= 10 * floor, name


@pytest.mark.parametrize("kind", [*ZOO, *OWN])
@pytest.mark.parametrize("granularity", framework.GRANULARITIES)
def test_every_operand_is_known_before_it_is_read(torch, kind, granularity):
    graph = torch.graph(kind, granularity)
    known = {*graph["inputs"], *graph["constants"]}
    for node in graph["nodes"]:
        assert set(node["inputs"]) <= known, node
        assert known.isdisjoint(node["outputs"]), node
        known |= set(node["outputs"])
    assert set(graph["outputs"]) <= known
    assert set(torch.trace(kind, granularity)) <= known
    assert len({node["name"] for node in graph["nodes"]}) == len(graph["nodes"])
    assert not any("getitem" in node["native_op"] for node in graph["nodes"])


@pytest.mark.parametrize("kind", [*ZOO, *OWN])
def test_every_part_names_the_native_node_that_it_comes_from(torch, kind):
    native, fine = (torch.graph(kind, one) for one in framework.GRANULARITIES)
    names = {node["name"]: node["op"] for node in native["nodes"]}
    assert all("origin" not in node for node in native["nodes"])
    parts = [node for node in fine["nodes"] if node["native_op"]]
    assert {node["origin"] for node in parts} <= set(names)
    taken_apart = {node["name"] for node in native["nodes"] if node["op"] in COMPOSITE}
    for name in taken_apart:
        assert names[name] not in {node["op"] for node in parts if node["origin"] == name}, name
    whole = {node["origin"]: node["op"] for node in parts if node["op"] in ("Conv", "BatchNormalization", "Resize")}
    assert whole.items() <= names.items()
    assert sorted(whole) == sorted(name for name, op in names.items() if op in ("Conv", "BatchNormalization", "Resize"))


def test_the_values_of_the_native_view_are_among_the_finer_ones(torch):
    native, fine = torch.trace("encoder"), torch.trace("encoder", "decomposed")
    by_size = {}
    for value in fine.values():
        by_size.setdefault(value.size, []).append(value.ravel())
    for name, value in native.items():
        scale = np.abs(value).max() + 1e-6
        nearest = min(np.abs(other - value.ravel()).max() for other in by_size[value.size])
        assert nearest <= 1e-5 * scale, name  # a few ulps of float32 after reductions in another order


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_layers_are_unrolled_into_steps(torch, kind):
    graph = torch.graph(kind, "decomposed")
    ops = [node["op"] for node in graph["nodes"]]
    gates = {"lstm": 3, "gru": 2}[kind]
    assert ops.count("Sigmoid") == gates * 7 * 2  # seven steps, two layers
    assert ops.count("Tanh") == {"lstm": 2, "gru": 1}[kind] * 7 * 2


@pytest.mark.parametrize("kind", ["residual", "encoder", "composites"])
def test_constants_have_the_same_names_and_values_in_both_views(torch, kind):
    path = torch.model(kind)
    graphs = [torch.graph(kind, one) for one in framework.GRANULARITIES]
    assert graphs[0]["constants"] == graphs[1]["constants"]
    stored = [
        {name: np.array(array) for name, array in torch.call("parameters", path, emit=True, granularity=one)[1].items()}
        for one in framework.GRANULARITIES
    ]
    assert set(stored[0]) == set(stored[1]) == set(graphs[0]["constants"])
    for name, array in stored[0].items():
        np.testing.assert_array_equal(array, stored[1][name])


def test_an_output_keeps_its_name_when_a_part_would_have_it(torch):
    fine = torch.graph("named-like-a-part", "decomposed")
    assert fine["outputs"] == ["expm1", "where"]
    assert "expm1_part" in {node["name"] for node in fine["nodes"]}


def test_what_has_no_finer_view_says_so(torch):
    failure = torch.call("graph", torch.model("residual", "torchscript"), granularity="decomposed")
    assert (failure.kind, "exported program" in failure.message) == (Kind.UNSUPPORTED, True)
    failure = torch.call("names", torch.model("residual"), granularity="atoms")
    assert "native or decomposed" in failure.message


# ---- attributes ----


def only(graph, op):
    (node,) = [node for node in graph["nodes"] if node["op"] == op]
    return node["attributes"]


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("Conv", {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 0], "dilations": [1, 2], "group": 2}),
        ("BatchNormalization", {"epsilon": 1e-2}),
        ("AveragePool", {"kernel_shape": [2, 3], "strides": [1, 2], "pads": [1, 1, 1, 1], "ceil_mode": 0, "count_include_pad": 0}),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0], "dilations": [1, 1], "ceil_mode": 1}),
        ("Pad", {"pads": [0, 0, 0, 1, 0, 0, 3, 2], "mode": "constant"}),
        ("Concat", {"axis": 1}),
        ("Sub", {"other": 1, "reversed": 1}),
        ("GlobalAveragePool", {}),
        ("ReduceMean", {"axes": [1], "keepdims": 1}),
        ("Squeeze", {"axes": [3]}),
        ("Unsqueeze", {"axes": [1]}),
    ],
)  # fmt: skip
def test_attributes_read_as_onnx_has_them(torch, op, expected):
    assert only(torch.graph("hyperparameters"), op) == expected


def test_clips_permutations_and_shapes_are_spelled_out(torch):
    graph = torch.graph("hyperparameters")
    clips = [node["attributes"] for node in graph["nodes"] if node["op"] == "Clip"]
    assert clips == [{"min": -0.5, "max": 4.0}, {"min": -1.0, "max": 1.0}]
    orders = [node["attributes"]["perm"] for node in graph["nodes"] if node["op"] == "Transpose"]
    assert orders == [[0, 2, 3, 1], [0, 3, 2, 1]]
    assert only(graph, "Reshape")["shape"] == [1, 12]


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("LayerNormalization", {"axis": 3, "epsilon": 1e-3}),
        ("GroupNormalization", {"num_groups": 2, "epsilon": 1e-5}),
        ("InstanceNormalization", {"epsilon": 1e-5}),
        ("Elu", {"alpha": 0.7}),
        ("LeakyRelu", {"alpha": 0.2}),
        ("Softmax", {"axis": 1}),
        ("LogSoftmax", {"axis": 1}),
        ("ConvTranspose", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1], "dilations": [1, 1], "group": 1}),
    ],
)  # fmt: skip
def test_attributes_of_normalisations_and_activations(torch, op, expected):
    assert only(torch.graph("composites"), op) == expected


def test_resizes_and_gelus_differ_in_their_attributes(torch):
    graph = torch.graph("composites")
    gelus = [node["attributes"] for node in graph["nodes"] if node["op"] == "Gelu"]
    assert gelus == [{"approximate": "none"}, {"approximate": "tanh"}]
    linear, nearest = (node["attributes"] for node in graph["nodes"] if node["op"] == "Resize")
    assert (linear["mode"], linear["coordinate_transformation_mode"], linear["align_corners"]) == (
        "linear",
        "align_corners",
        1,
    )
    assert (nearest["mode"], nearest["coordinate_transformation_mode"]) == ("nearest", "asymmetric")
    assert linear["sizes"] == nearest["sizes"] == [9, 7]


def test_recurrent_layers_and_embeddings_have_typed_attributes(torch):
    lstm = only(torch.graph("lstm"), "LSTM")
    assert lstm == {"has_biases": True, "num_layers": 2, "direction": "forward", "layout": 1, "hidden_size": 9}
    assert only(torch.graph("gru"), "GRU")["linear_before_reset"] == 1
    encoder = torch.graph("encoder")
    assert only(encoder, "Gather") == {"axis": 0}
    splits = [node["attributes"] for node in encoder["nodes"] if node["op"] == "Split"]
    assert splits == [{"axis": 2, "split": [16, 16, 16]}] * 2


def test_a_number_of_the_export_stays_an_attribute_in_the_finer_view(torch):
    fine = torch.graph("composites", "decomposed")
    epsilons = [node["attributes"].get("other") for node in fine["nodes"] if node["origin"] == "layer_norm"]
    assert 1e-3 in epsilons


@pytest.mark.parametrize(("kind", "writes"), [("stateful", True), ("in-place", False), ("residual", False)])
def test_writing_into_a_buffer_is_told_from_writing_into_a_value(torch, kind, writes):
    if kind == "stateful":
        path = torch.made("torch_models", "save_odd", kind=kind, folder=str(torch.folder))["pytorch"]
    else:
        path = torch.model(kind)
    assert torch.call("signature", path)["meta"]["writes_state"] is writes


# ---- replay ----


@pytest.mark.parametrize("kind", [*ZOO, *OWN])
@pytest.mark.parametrize("granularity", framework.GRANULARITIES)
def test_replaying_a_models_own_values_changes_nothing(torch, kind, granularity):
    feeds = torch.feeds(kind)
    values = torch.trace(kind, granularity)
    outputs = torch.graph(kind)["outputs"]
    reply, whole = torch.replay(kind, feeds, {}, list(values), granularity)
    assert reply == {"skipped": {}}
    for name, value in values.items():
        np.testing.assert_array_equal(whole[name], value, err_msg=name)
    if kind == "in-place" and granularity == "native":
        return  # the traced value of `y` is that before the operators in place; see the test below
    _, cut = torch.replay(kind, feeds, values, list(values), granularity)  # every operator on its own
    for name in outputs:
        np.testing.assert_array_equal(cut[name], values[name], err_msg=name)
    assert set(cut) == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(cut[name], value, err_msg=name)


def test_readers_see_what_is_given_and_the_producer_still_says_what_it_makes(torch):
    feeds = torch.feeds("residual")
    values = torch.trace("residual")
    given = {"relu": values["relu"] * 2}
    reply, found = torch.replay("residual", feeds, given, ["relu", "conv2d_1", "output_0"])
    assert reply == {"skipped": {}}
    np.testing.assert_array_equal(found["relu"], values["relu"])
    np.testing.assert_allclose(found["conv2d_1"], 2 * values["conv2d_1"], rtol=1e-5, atol=1e-6)  # no bias: linear
    assert np.abs(found["output_0"] - values["output_0"]).max() > 1e-3


def test_only_what_is_needed_runs(torch):
    values = torch.trace("residual")  # no input, so nothing before the cut can run
    given = {name: values[name] for name in ("leaky_relu", "conv2d_4")}
    _, found = torch.replay("residual", {}, given, ["output_0"])
    np.testing.assert_array_equal(found["output_0"], values["output_0"])


def test_a_missing_input_that_is_needed_is_named(torch):
    failure = torch.replay("residual", {}, {}, ["output_0"])
    assert isinstance(failure, Failure)
    assert "'image'" in failure.message


def test_an_input_can_be_given_like_any_value(torch):
    feeds = torch.feeds("residual")
    outputs = torch.run("residual", feeds)
    _, found = torch.replay("residual", {}, feeds, ["output_0"])
    np.testing.assert_array_equal(found["output_0"], outputs["output_0"])


def test_one_of_several_outputs_of_an_operator_can_be_given(torch):
    feeds = torch.feeds("chunks")
    values = torch.trace("chunks")
    split = next(name for name in values if name.endswith("#1") and values[name].shape == (3, 1, 2))
    _, found = torch.replay("chunks", feeds, {split: -np.abs(values[split])}, ["output_0", "output_1", split])
    np.testing.assert_array_equal(found["output_0"], np.zeros_like(values["output_0"]))
    np.testing.assert_array_equal(found["output_1"], values["output_1"])
    np.testing.assert_array_equal(found[split], values[split])


def test_operators_in_place_write_into_what_is_given_as_they_would_into_the_value(torch):
    feeds = torch.feeds("in-place")
    values = torch.trace("in-place")
    outputs = torch.run("in-place", feeds)
    _, found = torch.replay("in-place", {}, {"conv2d": values["conv2d"]}, ["output_0", "output_1"])
    for name, expected in outputs.items():
        np.testing.assert_array_equal(found[name], expected)
    clipped = np.maximum(values["conv2d"], 0)
    clipped[:, :, 1:] *= 2
    np.testing.assert_allclose(found["output_1"], clipped.sum((2, 3, 4)), rtol=1e-5)


def test_given_shapes_may_differ_where_the_model_allows_it(torch):
    values = torch.trace("residual")
    given = {"relu": np.concatenate([values["relu"], values["relu"]], axis=1)}  # twice the batch
    _, found = torch.replay("residual", {}, given, ["output_0"])
    np.testing.assert_allclose(found["output_0"][:, :2], values["output_0"], rtol=0, atol=1e-5)
    assert found["output_0"].shape == (3, 4, 10)


def test_what_an_operator_cannot_take_is_skipped_and_the_rest_is_not(torch):
    feeds = torch.feeds("residual")
    values = torch.trace("residual")
    reply, found = torch.replay("residual", feeds, {"relu": values["relu"][:, :, :5]}, ["conv2d_1", "relu", "output_0"])
    assert set(found) == {"relu"}
    assert set(reply["skipped"]) == {"conv2d_1", "output_0"}
    assert "conv2d_1" in reply["skipped"]["conv2d_1"]


def test_replay_in_windows_and_with_other_kernels(torch):
    feeds = torch.feeds("depthwise")
    values = torch.trace("depthwise")
    _, tight = torch.replay("depthwise", feeds, {}, list(values), budget=1)
    _, plain = torch.replay("depthwise", feeds, {}, ["output_0"], variant="no-mkldnn")
    outputs = torch.run("depthwise", feeds, variant="no-mkldnn")
    for name, value in values.items():
        np.testing.assert_array_equal(tight[name], value)
    np.testing.assert_array_equal(plain["output_0"], outputs["output_0"])


def test_what_cannot_be_given_or_wanted_is_named(torch):
    feeds = torch.feeds("residual")
    failure = torch.replay("residual", feeds, {"nothing": np.zeros((3, 1), np.float32)}, ["output_0"])
    assert "'nothing'" in failure.message
    failure = torch.replay("encoder", {}, {"tokens": np.zeros((1, 2, 8), np.float32)}, ["embedding"])
    assert "'tokens' is int64" in failure.message
    failure = torch.replay("residual", feeds, {"relu": np.zeros((1, 2, 8, 16, 16), np.float32)}, ["output_0", "conv2d"])
    assert "different numbers of runs" in failure.message
    reply, _ = torch.replay("residual", feeds, {}, ["nothing"])
    assert "not a tensor" in reply["skipped"]["nothing"]


def test_torchscript_cannot_be_cut(torch):
    outcome = torch.ask(
        "trueport.frameworks.torch", "replay", True, path=torch.model("residual", "torchscript"), trust=False,
        inputs=torch.feeds("residual"), given={}, wanted=["output_0"], variant="", budget=2**20,
    )  # fmt: skip
    assert isinstance(outcome, Failure)
    assert outcome.kind == Kind.UNSUPPORTED
