"""The inside of Keras models and SavedModels: the finer view of a Keras model, attributes in ONNX words, and replay."""

from __future__ import annotations

import numpy as np
import pytest
from tf_support import Tf, context, deviation, feeds

from trueport.graph import FINE, Graph
from trueport.outcome import Failure

KERAS = "trueport.frameworks.keras"
SAVED = "trueport.frameworks.tensorflow"
ZOO = ("residual", "depthwise", "lstm", "gru", "transformer", "multi")


@pytest.fixture(scope="module")
def tf(pool, env):
    return Tf(pool, env("tensorflow"))


@pytest.fixture(scope="module")
def zoo(tf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inside")
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = tf("keras_models", "save", kind=kind, folder=str(folder), seed=3)
        return made[kind]

    return get


@pytest.fixture(scope="module")
def exported(tf, zoo, tmp_path_factory):
    """exported(kind) -> path of the SavedModel of that model."""
    folder = tmp_path_factory.mktemp("exported")
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = str(folder / kind)
            signature = tf.signature("keras", zoo(kind))
            tf(
                "trueport.converters.keras_export",
                "convert",
                step="keras-savedmodel",
                source=zoo(kind),
                out=made[kind],
                options={},
                context=context(signature, feeds(signature)),
            )
        return made[kind]

    return get


@pytest.fixture(scope="module")
def tf_keras(pool, env):
    return Tf(pool, env("tf-keras"))


def view(tf, path, granularity="native", module=KERAS):
    chosen = {} if granularity == "native" else {"granularity": granularity}
    return tf(module, "graph", path=path, trust=False, **chosen)


def traced(tf, path, inputs, granularity="native", module=KERAS, wanted=None):
    chosen = {} if granularity == "native" else {"granularity": granularity}
    wanted = wanted or tf(module, "names", path=path, trust=False, **chosen)
    values, reply = tf.emitted(
        module, "trace", path=path, inputs=inputs, wanted=wanted, budget=1 << 24, trust=False, **chosen
    )
    assert reply == {"skipped": {}}
    assert set(values) == set(wanted)
    return values


# Granularities


@pytest.mark.parametrize("kind", ZOO)
def test_both_granularities_compute_the_same_outputs_under_the_same_names(tf, zoo, kind):
    inputs = feeds(tf.signature("keras", zoo(kind)))
    outputs = tf.run("keras", zoo(kind), inputs)
    coarse, fine = view(tf, zoo(kind)), view(tf, zoo(kind), "decomposed")
    assert fine["inputs"] == coarse["inputs"]
    assert fine["outputs"] == coarse["outputs"] == list(outputs)
    values = traced(tf, zoo(kind), inputs, "decomposed")
    for name, value in outputs.items():
        assert deviation(values[name], value) < 1e-5
    assert len(fine["nodes"]) > len(coarse["nodes"])


@pytest.mark.parametrize("kind", ZOO)
def test_every_operator_has_a_layer_of_origin_and_every_layer_has_operators(tf, zoo, kind):
    coarse, fine = view(tf, zoo(kind)), view(tf, zoo(kind), "decomposed")
    layers = {node["name"] for node in coarse["nodes"]}
    assert {node["origin"] for node in fine["nodes"]} == layers
    assert all("origin" not in node for node in coarse["nodes"])


def test_origins_are_the_layers_that_the_operators_compute(tf, zoo):
    fine = view(tf, zoo("residual"), "decomposed")
    operators = {}
    for node in fine["nodes"]:
        operators.setdefault(node["origin"], []).append(node["native_op"])
    assert [op for op in operators["conv1"] if op in ("Conv2D", "BiasAdd", "Relu")] == ["Conv2D", "BiasAdd"]
    assert operators["relu1"] == ["Relu"]
    assert operators["pool"] == ["MaxPool"]
    assert "Rsqrt" in operators["bn2"]
    assert operators["classes"][:3] == ["MatMul", "BiasAdd", "Softmax"]


@pytest.mark.parametrize("kind", ["residual", "lstm", "transformer"])
def test_merged_views_are_one_well_formed_graph(tf, zoo, kind):
    """Names of the finer view must neither clash nor dangle when both stand side by side."""
    coarse = Graph.from_wire(view(tf, zoo(kind)))
    merged = coarse.merged(Graph.from_wire(view(tf, zoo(kind), "decomposed")))
    produced = [name for node in merged.nodes for name in node.outputs]
    assert len(produced) == len(set(produced))
    known = {*merged.inputs, *merged.constants}
    for node in merged.nodes:
        assert set(node.inputs) <= known, node
        known.update(node.outputs)
    layers = {node.name for node in coarse.nodes}
    assert {node.shown for node in merged.nodes if node.name.startswith(FINE)} <= layers


def test_constants_of_the_finer_view_are_the_weights(tf, zoo):
    coarse, _ = tf.emitted(KERAS, "parameters", path=zoo("residual"), trust=False)
    fine, _ = tf.emitted(KERAS, "parameters", path=zoo("residual"), trust=False, granularity="decomposed")
    shown = view(tf, zoo("residual"), "decomposed")
    assert {name: list(value.shape) for name, value in fine.items()} == {
        name: spec["shape"] for name, spec in shown["constants"].items()
    }
    conv = next(node for node in shown["nodes"] if node["origin"] == "conv2" and node["op"] == "Conv")
    np.testing.assert_array_equal(fine[conv["inputs"][1]], coarse["conv2/kernel"])


@pytest.mark.parametrize("kind", ["hard_sigmoid", "convolutions"])
def test_keras_2_models_have_the_finer_view_too(tf_keras, tmp_path, kind):
    path = str(tmp_path / "old.h5")
    tf_keras("tf_odd_models", "save_legacy", kind=kind, path=path)
    inputs = feeds(tf_keras.signature("keras", path))
    coarse, fine = view(tf_keras, path), view(tf_keras, path, "decomposed")
    assert {node["origin"] for node in fine["nodes"]} == {node["name"] for node in coarse["nodes"]}
    values = traced(tf_keras, path, inputs, "decomposed")
    for name, value in tf_keras.run("keras", path, inputs).items():
        assert deviation(values[name], value) < 1e-5


def test_an_unknown_granularity_is_named(tf, zoo):
    outcome = tf.outcome(KERAS, "names", path=zoo("residual"), trust=False, granularity="atoms")
    assert isinstance(outcome, Failure)
    assert "atoms" in outcome.message


# Replay


def replayed(tf, path, inputs, given, wanted, module=KERAS, variant=""):
    values, reply = tf.emitted(
        module,
        "replay",
        path=path,
        inputs=inputs,
        given=given,
        wanted=wanted,
        variant=variant,
        budget=1 << 20,
        trust=False,
    )
    assert reply == {"skipped": {}}
    assert set(values) == set(wanted)
    return values


def place(tf, zoo, exported, kind, module):
    return (zoo if module == KERAS else exported)(kind)


@pytest.mark.parametrize("module", [KERAS, SAVED])
@pytest.mark.parametrize("kind", ["residual", "lstm", "transformer", "multi"])
def test_replay_with_the_models_own_values_gives_its_own_values(tf, zoo, exported, kind, module):
    """All values given and all wanted: every producer runs on the recorded values and must give what it gave."""
    path = place(tf, zoo, exported, kind, module)
    inputs = feeds(tf.signature(module.rsplit(".", 1)[1], path))
    values = traced(tf, path, inputs, module=module)
    again = replayed(tf, path, inputs, values, list(values), module)
    for name, value in values.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


@pytest.mark.parametrize("module", [KERAS, SAVED])
def test_readers_read_what_is_given_and_the_producer_still_computes(tf, zoo, exported, module):
    path = place(tf, zoo, exported, "residual", module)
    inputs = feeds(tf.signature(module.rsplit(".", 1)[1], path))
    graph = view(tf, path, module=module)
    values = traced(tf, path, inputs, module=module)
    relu = next(node for node in graph["nodes"] if node["op"] == "Relu" and node["inputs"][0] in values)
    before, after = relu["inputs"][0], relu["outputs"][0]
    changed = values[before] - 0.25
    again = replayed(tf, path, {}, {before: changed}, [after], module)  # the model's inputs are not needed
    np.testing.assert_array_equal(again[after], np.maximum(changed, 0))
    both = replayed(tf, path, inputs, {before: changed}, [before, after], module)
    np.testing.assert_array_equal(both[before], values[before])
    np.testing.assert_array_equal(both[after], np.maximum(changed, 0))


@pytest.mark.parametrize("module", [KERAS, SAVED])
def test_a_value_put_in_reaches_the_outputs(tf, zoo, exported, module):
    """Values of other inputs put in at a cut give the outputs of those inputs."""
    path = place(tf, zoo, exported, "residual", module)
    signature = tf.signature(module.rsplit(".", 1)[1], path)
    here, there = feeds(signature, seed=1), feeds(signature, seed=2)
    graph = view(tf, path, module=module)
    pool = next(node["outputs"][0] for node in graph["nodes"] if node["op"] == "MaxPool")
    (output,) = graph["outputs"]
    wanted = traced(tf, path, there, module=module, wanted=[pool, output])
    again = replayed(tf, path, here, {pool: wanted[pool]}, [output], module)
    np.testing.assert_allclose(again[output], wanted[output], atol=1e-6)
    fed = replayed(tf, path, here, there, [output], module)  # a graph input may be given as well
    np.testing.assert_allclose(fed[output], wanted[output], atol=1e-6)


def test_given_values_may_have_another_shape(tf, zoo):
    signature = tf.signature("keras", zoo("residual"))
    values = traced(tf, zoo("residual"), feeds(signature), wanted=["pool", "classes"])
    more = np.concatenate([values["pool"], values["pool"][:, :1]], axis=1)
    again = replayed(tf, zoo("residual"), {}, {"pool": more}, ["classes"])["classes"]
    assert again.shape == (3, 3, 5)
    np.testing.assert_allclose(again[:, :2], values["classes"], atol=1e-6)
    wider = np.zeros((2, 2, 7, 9, 16), np.float32)
    assert replayed(tf, zoo("residual"), {}, {"pool": wider}, ["mean"])["mean"].shape == (2, 2, 16)


@pytest.mark.parametrize(
    ("module", "variants"), [(KERAS, ("eager", "default", "xla")), (SAVED, ("unoptimised", "default", "xla"))]
)
def test_variants_agree_on_a_healthy_model(tf, zoo, exported, module, variants):
    path = place(tf, zoo, exported, "residual", module)
    inputs = feeds(tf.signature(module.rsplit(".", 1)[1], path))
    graph = view(tf, path, module=module)
    pool = next(node["outputs"][0] for node in graph["nodes"] if node["op"] == "MaxPool")
    (output,) = graph["outputs"]
    values = traced(tf, path, inputs, module=module, wanted=[pool, output])
    for variant in variants:
        again = replayed(tf, path, {}, {pool: values[pool]}, [output], module, variant)
        np.testing.assert_allclose(again[output], values[output], atol=1e-5)
    outcome = tf.outcome(
        module,
        "replay",
        emit=True,
        path=path,
        inputs={},
        given={},
        wanted=[output],
        variant="odd",
        budget=1,
        trust=False,
    )
    assert isinstance(outcome, Failure)
    assert "odd" in outcome.message


@pytest.mark.parametrize(
    ("inputs", "given", "wanted", "said"),
    [
        ((), {}, ["classes"], "image"),
        ((), {"nothing": np.zeros((1, 2), np.float32)}, ["classes"], "nothing"),
        ((), {}, ["nothing"], "nothing"),
        ((), {"mean": np.zeros((1, 2, 9), np.float32)}, ["classes"], "on these values"),
    ],
)
def test_what_cannot_be_replayed_is_said(tf, zoo, inputs, given, wanted, said):
    outcome = tf.outcome(
        KERAS, "replay", emit=True, path=zoo("residual"), inputs=dict(inputs), given=given, wanted=wanted,
        variant="", budget=1 << 20, trust=False,
    )  # fmt: skip
    assert isinstance(outcome, Failure)
    assert said in outcome.message


def test_replay_at_the_finer_granularity(tf, zoo):
    inputs = feeds(tf.signature("keras", zoo("transformer")))
    values = traced(tf, zoo("transformer"), inputs, "decomposed")
    name = next(name for name in values if name.endswith("Softmax"))
    again, _ = tf.emitted(
        KERAS, "replay", path=zoo("transformer"), inputs=inputs, given={name: values[name]}, wanted=["logits"],
        variant="", budget=1 << 20, trust=False, granularity="decomposed",
    )  # fmt: skip
    np.testing.assert_allclose(again["logits"], values["logits"], atol=1e-6)


def test_keras_2_models_replay(tf_keras, tmp_path):
    path = str(tmp_path / "old.h5")
    tf_keras("tf_odd_models", "save_legacy", kind="hard_sigmoid", path=path)
    inputs = feeds(tf_keras.signature("keras", path))
    values = traced(tf_keras, path, inputs)
    again = replayed(tf_keras, path, inputs, values, list(values))
    for name, value in values.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)


# Attributes in ONNX words

LAYERS = {
    "pad": ("Pad", {"pads": [1, 3, 2, 0], "mode": "constant"}),
    "conv": (
        "Conv",
        {"kernel_shape": [3, 5], "strides": [2, 1], "group": 2, "auto_pad": "VALID", "activation": "Relu6", "use_bias": True},
    ),
    "depth": ("Conv", {"dilations": [2, 2], "auto_pad": "SAME_UPPER", "kernel_shape": [3, 3]}),
    "norm": ("BatchNormalization", {"epsilon": 0.02, "axis": -1}),
    "leaky": ("LeakyRelu", {"alpha": 0.15}),
    "clip": ("Clip", {"min": 0.0, "max": 4.0}),
    "sloped": ("LeakyRelu", {"alpha": 0.25}),
    "elu": ("Elu", {"alpha": 0.6}),
    "pool": ("AveragePool", {"kernel_shape": [2, 3], "strides": [1, 2], "auto_pad": "SAME_UPPER"}),
    "smooth": ("Resize", {"scales": [2, 1], "mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
    "nearest": ("Resize", {"scales": [1, 2], "mode": "nearest", "coordinate_transformation_mode": "asymmetric"}),
    "crop": ("Slice", {"crops": [1, 2, 0, 3]}),
    "wider": ("ConvTranspose", {"strides": [2, 2], "kernel_shape": [2, 2], "auto_pad": "VALID"}),
    "groups": ("GroupNormalization", {"num_groups": 3, "epsilon": 0.004}),
    "soft": ("Softmax", {"axis": -1}),
    "hard": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "join": ("Concat", {"axis": 2}),
    "swap": ("Transpose", {"perm": [0, 2, 1, 3]}),
    "rows": ("Reshape", {"shape": [0, -1, 114]}),
    "gru": (
        "GRU",
        {"hidden_size": 5, "direction": "reverse", "linear_before_reset": 0, "activation": "Tanh",
         "recurrent_activation": "Sigmoid", "return_sequences": False},
    ),
    "scores": ("Gemm", {"units": 3, "use_bias": False}),
}  # fmt: skip


@pytest.fixture(scope="module")
def settings(tf, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("settings") / "settings.keras")
    tf("tf_attribute_models", "save_settings", path=path)
    return path


@pytest.fixture(scope="module")
def operators(tf, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("operators") / "saved")
    tf("tf_attribute_models", "save_operators", path=path)
    return path


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_read_in_onnx_words(tf, settings, layer):
    node = next(node for node in view(tf, settings)["nodes"] if node["name"] == layer)
    op, expected = LAYERS[layer]
    assert node["op"] == op
    for name, value in expected.items():
        assert node["attributes"].get(name) == pytest.approx(value), name
        assert type(node["attributes"][name]) is type(value), name


@pytest.mark.parametrize(
    ("layer", "op", "expected"),
    [
        ("conv", "Conv", {"kernel_shape": [3, 5], "strides": [2, 1], "group": 2, "auto_pad": "VALID"}),
        ("depth", "Conv", {"kernel_shape": [3, 3], "group": 6, "dilations": [2, 2], "strides": [1, 1]}),
        ("leaky", "LeakyRelu", {"alpha": 0.15}),
        ("pad", "Pad", {"pads": [0, 1, 3, 0, 0, 2, 0, 0], "mode": "constant"}),
        ("pool", "AveragePool", {"kernel_shape": [2, 3], "strides": [1, 2], "auto_pad": "SAME_UPPER"}),
        ("smooth", "Resize", {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}),
        ("join", "Concat", {"axis": 2}),
        ("swap", "Transpose", {"perm": [0, 2, 1, 3]}),
        ("wider", "ConvTranspose", {"strides": [2, 2], "kernel_shape": [2, 2], "group": 1}),
        ("scores", "MatMul", {"transA": 0, "transB": 0}),
    ],
)
def test_operators_of_a_layer_agree_with_the_layer(tf, settings, layer, op, expected):
    nodes = view(tf, settings, "decomposed")["nodes"]
    found = [node["attributes"] for node in nodes if node["origin"] == layer and node["op"] == op]
    assert len(found) == 1, found
    for name, value in expected.items():
        assert found[0].get(name) == pytest.approx(value), name


def only(nodes, native):
    (found,) = [node for node in nodes if node["native_op"] == native]
    return found["attributes"]


def test_constant_operands_of_a_saved_model_read_as_attributes(tf, operators):
    nodes = view(tf, operators, module=SAVED)["nodes"]
    smooth = sorted(
        (node["attributes"] for node in nodes if node["native_op"] == "ResizeBilinear"),
        key=lambda found: found["coordinate_transformation_mode"],
    )
    assert [found["coordinate_transformation_mode"] for found in smooth] == ["align_corners", "asymmetric"]
    assert [found["sizes"] for found in smooth] == [[12, 10], [12, 10]]
    nearest = only(nodes, "ResizeNearestNeighbor")
    assert (nearest["coordinate_transformation_mode"], nearest["nearest_mode"]) == ("tf_half_pixel_for_nn", "floor")
    assert only(nodes, "ConcatV2") == {"axis": 2}
    assert only(nodes, "PadV2") == {"mode": "constant", "pads": [0, 1, 3, 0, 0, 2, 4, 0], "value": 0.5}
    pool = only(nodes, "MaxPool")
    assert pool == {"kernel_shape": [3, 2], "strides": [2, 1], "auto_pad": "NOTSET", "pads": [1, 0, 1, 1]}
    assert only(nodes, "Transpose") == {"perm": [0, 3, 1, 2]}
    assert only(nodes, "Mean") == {"axes": [2, 3], "keepdims": 1}
    assert only(nodes, "Squeeze") == {"axes": [2, 3]}
    assert only(nodes, "Cumsum") == {"axis": 1, "reverse": True, "exclusive": False}
    assert only(nodes, "GatherV2")["axis"] == 1
    assert only(nodes, "MatMul") == {"transA": 0, "transB": 1}
    assert only(nodes, "LeakyRelu") == pytest.approx({"alpha": 0.3})
    assert only(nodes, "TopKV2")["k"] == 2
    assert only(nodes, "Cast") == {"to": "float32"}
    assert only(nodes, "StridedSlice")["starts"] == [0, 1]


@pytest.mark.parametrize(("variant", "limit", "sessions"), [("", 0, 1), ("default", 0, 13)])
def test_many_cuts_keep_few_graphs_and_bounded_weights(tf, zoo, variant, limit, sessions):
    """With an optimiser each cut keeps the weights behind it, so past the limit a session starts anew; else none do."""
    inputs = feeds(tf.signature("keras", zoo("residual")))
    told = tf("tf_replay_probe", "cuts", path=zoo("residual"), inputs=inputs, limit=limit, variant=variant)
    assert told["graphs"] <= 2
    assert told["sessions"] == sessions
    assert told["equal"] is True
