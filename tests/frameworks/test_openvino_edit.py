"""Edits written into OpenVINO models: each kind does what NumPy says it must, and nothing else in the files differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.frameworks import openvino
from trueport.frameworks._base import EDIT_KINDS
from trueport.outcome import Failure, Kind, Stage

MODULE = "trueport.frameworks.openvino"
HERE = [str(Path(__file__).parent)]


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Model:
    """One model of openvino_models.py: edit it, run it, and look at what its files hold."""

    def __init__(self, pool, python, path):
        self.pool, self.python, self.path = pool, python, path

    def _call(self, module, function, arguments, **more):
        return self.pool.call(self.python, module, function, arguments, stage=Stage.LOAD, paths=HERE, **more)

    def _done(self, module, function, **arguments):
        outcome = self._call(module, function, arguments)
        assert not isinstance(outcome, Failure), outcome
        return outcome.value.value

    def try_edit(self, edits, arrays, out):
        arguments = {"path": str(self.path), "edits": edits, "arrays": arrays, "out": str(out), "trust": False}
        return self._call(MODULE, "edit", arguments)

    def edit(self, *edits, **arrays):
        """The edited model, in a folder beside. Nothing but a model and its weights may have been written."""
        folder = self.path.parent / f"edited{len(list(self.path.parent.glob('edited*')))}"
        folder.mkdir()
        outcome = self.try_edit(list(edits), arrays, folder / "out.xml")
        assert not isinstance(outcome, Failure), outcome
        assert sorted(item.name for item in folder.iterdir()) == ["out.bin", "out.xml"]
        return Model(self.pool, self.python, folder / "out.xml")

    def refusal(self, *edits, kind=Kind.UNSUPPORTED, **arrays):
        """The reason for which an edit cannot be written; nothing may be left of the result."""
        outcome = self.try_edit(list(edits), arrays, self.path.parent / "refused.xml")
        assert isinstance(outcome, Failure), outcome
        assert outcome.kind is kind, outcome
        assert not list(self.path.parent.glob("refused*"))
        return outcome.message

    def stored(self):
        return self._done("openvino_models", "stored", path=str(self.path))

    def graph(self):
        return self._done(MODULE, "graph", path=str(self.path), trust=False)

    def nodes(self):
        return {node["name"]: node for node in self.graph()["nodes"]}

    def outputs(self):
        return [spec["name"] for spec in self._done(MODULE, "signature", path=str(self.path), trust=False)["outputs"]]

    def parameters(self):
        outcome = self._call(MODULE, "parameters", {"path": str(self.path), "trust": False}, emit=True)
        assert not isinstance(outcome, Failure), outcome
        return {name: np.array(array) for name, array in outcome.value.emitted.items()}

    def run(self, **inputs):
        """One run: output name -> array."""
        cases = {"one": {name: array[None] for name, array in inputs.items()}}
        given = {"path": str(self.path), "cases": cases, "precision": "float32", "variant": "default", "trust": False}
        return {name: array[0] for name, array in self._done(MODULE, "run", **given)["one"].items()}

    def shown(self, *names, **inputs):
        """Values inside, for one run."""
        given = {name: array[None] for name, array in inputs.items()}
        arguments = {"path": str(self.path), "inputs": given, "wanted": list(names), "budget": 1 << 24, "trust": False}
        outcome = self._call(MODULE, "trace", arguments, emit=True)
        assert not isinstance(outcome, Failure), outcome
        return [np.array(outcome.value.emitted[name])[0] for name in names]


@pytest.fixture(scope="module")
def model(pool, env, tmp_path_factory):
    """model(kind) -> Model, built once."""
    folder, made = tmp_path_factory.mktemp("edits"), {}

    def get(kind):
        if kind not in made:
            place = folder / kind / f"{kind}.xml"
            place.parent.mkdir()
            made[kind] = Model(pool, env("openvino"), place)
            made[kind]._done("openvino_models", "save", kind=kind, out=str(place))
        return made[kind]

    return get


X = draw(0, 2, 3, 8, 8)


def same_but(before, after, *changed):
    """Every constant that both files have is the same, value and type; those in `changed` are not looked at."""
    old, new = before.stored()["constants"], after.stored()["constants"]
    for name in (old.keys() & new.keys()) - set(changed):
        assert old[name]["type"] == new[name]["type"]
        np.testing.assert_array_equal(np.asarray(old[name]["values"]), np.asarray(new[name]["values"]))
    return old.keys() - new.keys()


def test_every_kind_of_edit_is_offered():
    assert openvino.EDITS == EDIT_KINDS


def test_no_edit_leaves_the_model_as_it_is(model):
    made = model("net").edit()
    assert same_but(model("net"), made) == set()
    assert made.graph() == model("net").graph()
    for name, array in model("net").run(image=X).items():
        np.testing.assert_array_equal(made.run(image=X)[name], array)


def test_float16_weights_stay_float16(model):
    made = model("half").edit()
    old, new = model("half").stored()["constants"], made.stored()["constants"]
    assert {fact["type"] for fact in old.values()} == {fact["type"] for fact in new.values()} == {"f16", "i64"}
    assert same_but(model("half"), made) == set()


def test_set_parameter_changes_one_constant_and_keeps_its_name(model):
    kernel = model("net").parameters()["kernel"] * 1.5
    edit = {"kind": "set-parameter", "node": "conv", "parameter": "kernel", "array": "new"}
    made = model("net").edit(edit, new=kernel)
    assert same_but(model("net"), made, "kernel") == set()
    np.testing.assert_array_equal(made.parameters()["kernel"], kernel)
    assert made.nodes() == model("net").nodes()
    (before,), (after,) = model("net").shown("conv", image=X), made.shown("conv", image=X)
    np.testing.assert_allclose(after, before * 1.5, atol=1e-5)


def test_set_parameter_takes_a_grouped_kernel_as_it_is_shown(model):
    kernel = model("net").parameters()["grouped"]
    edit = {"kind": "set-parameter", "node": "group", "parameter": "grouped", "array": "new"}
    made = model("net").edit(edit, new=kernel[::-1].copy())
    np.testing.assert_array_equal(made.parameters()["grouped"], kernel[::-1])
    assert made.nodes()["group"]["native_op"] == "GroupConvolution"


def test_set_parameter_keeps_the_grid_unless_told(model):
    name = model("half").nodes()["conv"]["inputs"][1]
    array = np.full((4, 3, 3, 3), 1 / 3, np.float32)
    edit = {"kind": "set-parameter", "node": "conv", "parameter": name, "array": "new"}
    kept = model("half").edit({**edit, "grid": "keep"}, new=array).parameters()
    assert kept[name].dtype == np.float16
    np.testing.assert_array_equal(kept[name], array.astype(np.float16))
    free = model("half").edit({**edit, "grid": "new"}, new=array)
    found = free.parameters()[free.nodes()["conv"]["inputs"][1]]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, array)


def test_add_parameter_puts_a_bias_behind(model):
    made = model("net").edit(
        {"kind": "add-parameter", "node": "group", "role": "bias", "array": "b"}, b=np.arange(6, dtype=np.float32)
    )
    (before,), (after,) = model("net").shown("means", image=X), made.shown("means", image=X)
    np.testing.assert_allclose(after, before + np.arange(6), atol=1e-5)
    assert "no place for a 'bias'" in model("net").refusal(
        {"kind": "add-parameter", "node": "relu", "role": "bias", "array": "b"}, b=np.zeros(4, np.float32)
    )


@pytest.mark.parametrize(
    ("node", "attribute", "value", "shown"),
    [
        ("conv", "pads", [0, 2, 2, 0], [0, 2, 2, 0]),
        ("conv", "auto_pad", "SAME_LOWER", "SAME_LOWER"),
        ("conv", "dilations", [1, 1], [1, 1]),
        ("group", "strides", [1, 1], [1, 1]),
        ("mean", "axes", [3, 2], [3, 2]),
        ("softmax", "axis", 0, 0),
        ("scores", "activation", None, None),
    ],
)
def test_set_attribute_is_what_the_graph_then_shows(model, node, attribute, value, shown):
    edit = {"kind": "set-attribute", "node": node, "attribute": attribute, "value": value}
    made = model("net").edit(edit)
    assert made.nodes()[node]["attributes"].get(attribute) == shown
    assert same_but(model("net"), made) <= {"axes"}


def test_set_attribute_changes_what_is_computed(model):
    set_it = {"kind": "set-attribute", "node": "conv", "attribute": "pads", "value": [0, 0, 2, 2]}
    (made,), (before,) = model("net").edit(set_it).shown("conv", image=X), model("net").shown("conv", image=X)
    np.testing.assert_allclose(made[:, :, :-1, :-1], before[:, :, 1:, 1:], atol=1e-5)


def test_a_bound_turns_a_relu_into_a_clip_and_back(model):
    made = model("net").edit({"kind": "set-attribute", "node": "relu", "attribute": "max", "value": 0.5})
    assert made.nodes()["relu"]["op"] == "Clip"
    (before,), (after,) = model("net").shown("biased", image=X), made.shown("relu", image=X)
    np.testing.assert_allclose(after, np.clip(before, 0, 0.5), atol=1e-6)
    again = made.edit({"kind": "set-attribute", "node": "relu", "attribute": "max", "value": None})
    assert again.nodes()["relu"]["op"] == "Relu"


def test_settings_of_a_recurrent_layer(model):
    x = draw(3, 2, 5, 3)
    reverse = {"kind": "set-attribute", "node": "lstm", "attribute": "direction", "value": "reverse"}
    turned = model("recurrent").edit(reverse).run(steps=x)["states"]
    plain = model("recurrent").run(steps=x[:, ::-1].copy())["states"]
    np.testing.assert_allclose(turned, plain[:, :, ::-1], atol=1e-6)
    relu = {"kind": "set-attribute", "node": "lstm", "attribute": "activation", "value": "relu"}
    assert model("recurrent").edit(relu).nodes()["lstm"]["attributes"]["activations"] == ["sigmoid", "relu", "relu"]
    strange = {**relu, "value": "softsign"}
    assert "know sigmoid, tanh, relu" in model("recurrent").refusal(strange)


def test_an_attribute_that_is_none_is_refused(model):
    edit = {"kind": "set-attribute", "node": "biased", "attribute": "colour", "value": 1}
    assert "Add has no attribute 'colour'" in model("net").refusal(edit)


def test_set_operator_keeps_name_data_and_readers(model):
    edit = {
        "kind": "set-operator",
        "node": "relu",
        "operator": "LeakyRelu",
        "attributes": {"alpha": 0.25},
        "constants": [],
    }
    made = model("net").edit(edit)
    assert made.nodes()["relu"]["op"] == "LeakyRelu"
    assert made.nodes()["group"]["inputs"][0] == "relu"
    (before,), (after,) = model("net").shown("biased", image=X), made.shown("relu", image=X)
    np.testing.assert_allclose(after, np.where(before < 0, before * 0.25, before), atol=1e-6)


def test_set_operator_of_an_output_keeps_its_name(model):
    edit = {
        "kind": "set-operator",
        "node": "softmax",
        "operator": "LogSoftmax",
        "attributes": {"axis": 1},
        "constants": [],
    }
    made = model("net").edit(edit)
    assert made.outputs() == ["classes", "means"]
    np.testing.assert_allclose(made.run(image=X)["classes"], np.log(model("net").run(image=X)["classes"]), atol=1e-5)


def test_an_operator_that_openvino_has_not_is_refused(model):
    edit = {"kind": "set-operator", "node": "relu", "operator": "Hardmax", "attributes": {}, "constants": []}
    assert "no way to write the operator Hardmax" in model("net").refusal(edit)


def test_remove_node_hands_on_what_it_read(model):
    made = model("net").edit({"kind": "remove-node", "node": "relu"})
    assert "relu" not in made.nodes()
    assert made.nodes()["group"]["inputs"][0] == "biased"


def test_remove_node_in_front_of_an_output_keeps_the_outputs_name(model):
    made = model("net").edit({"kind": "remove-node", "node": "softmax"})
    assert made.outputs() == ["classes", "means"]
    (scores,) = model("net").shown("scores", image=X)
    np.testing.assert_allclose(made.run(image=X)["classes"], scores, atol=1e-6)


def test_insert_for_all_readers_and_for_some(model):
    steps = [{"operator": "Mul", "constants": ["two"]}, {"operator": "Add", "constants": ["one"]}]
    numbers = {"two": np.array(2, np.float32), "one": np.array(1, np.float32)}
    everywhere = model("net").edit({"kind": "insert", "value": "means", "steps": steps}, **numbers)
    given_out = model("net").edit({"kind": "insert", "value": "means", "steps": steps, "readers": [""]}, **numbers)
    before = model("net").run(image=X)
    dense = model("net").parameters()["dense"]
    for made, inside in ((everywhere, before["means"] * 2 + 1), (given_out, before["means"])):
        found = made.run(image=X)
        np.testing.assert_allclose(found["means"], before["means"] * 2 + 1, atol=1e-5)
        scores = inside @ dense
        exp = np.exp(scores - scores.max(1, keepdims=True))
        np.testing.assert_allclose(found["classes"], exp / exp.sum(1, keepdims=True), atol=1e-5)
    assert everywhere.outputs() == given_out.outputs() == ["classes", "means"]


def test_insert_takes_other_values_and_a_place_for_the_data(model):
    steps = [{"operator": "Sub", "others": ["biased"], "slot": 1}]
    made = model("net").edit({"kind": "insert", "value": "relu", "steps": steps})
    (biased, relu) = model("net").shown("biased", "relu", image=X)
    new = made.nodes()["group"]["inputs"][0]
    (found,) = made.shown(new, image=X)
    np.testing.assert_allclose(found, biased - relu, atol=1e-6)


def test_reorder_and_set_inputs(model):
    made = model("split").edit({"kind": "set-input", "node": "sum", "slot": 1, "value": "parts:0"})
    x = draw(4, 2, 6)
    np.testing.assert_allclose(made.run(x=x)["y"], 2 * x[:, :2], atol=1e-6)
    turned = model("net").edit({"kind": "reorder-inputs", "node": "biased", "order": [1, 0]})
    assert turned.nodes()["biased"]["inputs"] == ["bias", "conv"]
    order = {"kind": "reorder-inputs", "node": "biased", "order": [0, 0]}
    assert "names every operand" in model("net").refusal(order, kind=Kind.RAISED)


def test_set_dimensions_frees_and_fixes(model):
    fixed = model("net").edit({"kind": "set-dimensions", "value": "image", "shape": [4, 3, 8, 8]})
    assert fixed.run(image=draw(0, 4, 3, 8, 8))["classes"].shape == (4, 5)
    free = fixed.edit({"kind": "set-dimensions", "value": "image", "shape": ["batch", 3, None, None]})
    assert free.run(image=draw(0, 1, 3, 12, 10))["classes"].shape == (1, 5)
    wrong = {"kind": "set-dimensions", "value": "image", "shape": [1, 4, 8, 8]}
    assert "does not take 'image'" in model("net").refusal(wrong)


def test_set_outputs_in_order_and_of_inner_values(model):
    made = model("net").edit({"kind": "set-outputs", "outputs": ["means", "relu"]})
    assert made.outputs() == ["means", "relu"]
    (relu,) = model("net").shown("relu", image=X)
    np.testing.assert_allclose(made.run(image=X)["relu"], relu, atol=1e-6)
    assert "softmax" not in made.nodes()
    constant = {"kind": "set-outputs", "outputs": ["kernel"]}
    assert "is a constant and no output" in model("net").refusal(constant)


def test_set_precision_takes_an_operator_off_the_grid(model):
    weights = draw(5, 4, 3)
    nodes = model("quantised").nodes()
    name = nodes["product"]["inputs"][1]
    edit = {"kind": "set-precision", "node": "product", "dtype": "float32", "parameters": {name: "w"}}
    made = model("quantised").edit(edit, w=weights)
    x = draw(6, 3, 4)
    np.testing.assert_allclose(made.run(x=x)["y"], x @ weights, atol=1e-5)
    assert "to float32, not to float16" in model("quantised").refusal({**edit, "dtype": "float16"}, w=weights)


def test_recompute_gives_a_value_another_origin_under_its_name(model):
    nodes = [
        {"op": "Tanh", "inputs": ["biased"], "outputs": ["t"], "attributes": {}},
        {"op": "Mul", "inputs": ["t", "relu"], "outputs": ["m"], "attributes": {}},
        {"op": "Add", "inputs": ["m", "c"], "outputs": ["z"], "attributes": {}},
    ]
    made = model("net").edit({"kind": "recompute", "value": "relu", "nodes": nodes}, c=np.array(0.5, np.float32))
    (biased,) = model("net").shown("biased", image=X)
    (found,) = made.shown("relu", image=X)
    np.testing.assert_allclose(found, np.tanh(biased) * np.maximum(biased, 0) + 0.5, atol=1e-5)
    assert made.nodes()["group"]["inputs"][0] == "relu"


def test_a_later_edit_names_what_an_earlier_one_made(model):
    first = {
        "kind": "set-operator",
        "node": "relu",
        "operator": "LeakyRelu",
        "attributes": {"alpha": 0.5},
        "constants": [],
    }
    second = {"kind": "set-attribute", "node": "relu", "attribute": "alpha", "value": 0.125}
    third = {"kind": "insert", "value": "relu", "steps": [{"operator": "Neg"}]}
    made = model("net").edit(first, second, third)
    (biased,), (relu,) = model("net").shown("biased", image=X), made.shown("relu", image=X)
    np.testing.assert_allclose(relu, np.where(biased < 0, biased * 0.125, biased), atol=1e-6)


@pytest.mark.parametrize(
    "edit",
    [
        {"kind": "remove-node", "node": "nobody"},
        {"kind": "insert", "value": "nothing", "steps": [{"operator": "Neg"}]},
        {"kind": "set-parameter", "node": "conv", "parameter": "dense", "array": "missing"},
        {"kind": "set-input", "node": "conv", "slot": 7, "value": "image"},
    ],
)
def test_names_that_are_not_there_are_no_edit(model, edit):
    assert model("net").refusal(edit, kind=Kind.RAISED)


def test_what_does_not_hold_together_is_not_written(model):
    edit = {"kind": "set-attribute", "node": "mean", "attribute": "axes", "value": [1]}
    assert "does not hold together" in model("net").refusal(edit)


# -- the writer of operators ----------------------------------------------------------------------------------------------

D = draw(7, 2, 4, 6, 6)
V = draw(8, 4)
SIGMOID = 1 / (1 + np.exp(-D))


def _pooled(data, function, size, step):
    rows = range(0, data.shape[2] - size + 1, step)
    parts = [[function(data[:, :, i : i + size, j : j + size], (2, 3)) for j in rows] for i in rows]
    return np.stack([np.stack(row, -1) for row in parts], -2)


def _normalised(data, axes, epsilon=1e-5):
    centred = data - data.mean(axes, keepdims=True)
    return centred / np.sqrt(np.mean(centred**2, axes, keepdims=True) + epsilon)


EMITTED = [
    ("Add", [np.float32(2)], {}, D + 2),
    ("Sub", [V.reshape(4, 1, 1)], {}, D - V.reshape(4, 1, 1)),
    ("Div", [np.float32(3)], {}, D / 3),
    ("Max", [np.float32(0.1)], {}, np.maximum(D, 0.1)),
    ("Mod", [np.float32(0.7)], {}, np.mod(D, np.float32(0.7))),
    ("Reciprocal", [], {}, 1 / D),
    ("Square", [], {}, D * D),
    ("Swish", [], {}, D * SIGMOID),
    ("LogSigmoid", [], {}, np.log(SIGMOID)),
    ("Celu", [], {"alpha": 2.0}, np.where(D > 0, D, 2 * np.expm1(D / 2))),
    ("Elu", [], {"alpha": 0.5}, np.where(D > 0, D, 0.5 * np.expm1(D))),
    ("Clip", [], {"min": -0.5}, np.maximum(D, -0.5)),
    ("HardSigmoid", [], {"alpha": 0.3, "beta": 0.4}, np.clip(0.3 * D + 0.4, 0, 1)),
    ("HardSwish", [], {}, D * np.clip(D / 6 + 0.5, 0, 1)),
    ("LeakyRelu", [], {"alpha": 0.3}, np.where(D < 0, 0.3 * D, D)),
    ("PRelu", [V.reshape(4, 1, 1)], {}, np.where(D < 0, V.reshape(4, 1, 1) * D, D)),
    ("ThresholdedRelu", [], {"alpha": 0.2}, np.where(D > 0.2, D, 0)),
    ("Softplus", [], {"beta": 2.0}, np.log1p(np.exp(2 * D)) / 2),
    ("Softmax", [], {"axis": 1}, np.exp(D) / np.exp(D).sum(1, keepdims=True)),
    ("ReduceMean", [], {"axes": [2, 3], "keepdims": 0}, D.mean((2, 3))),
    ("ReduceMax", [], {"keepdims": 1}, D.max(keepdims=True)),
    ("GlobalAveragePool", [], {}, D.mean((2, 3), keepdims=True)),
    ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2]}, _pooled(D, np.max, 2, 2)),
    ("AveragePool", [], {"kernel_shape": [3, 3], "strides": [1, 1]}, _pooled(D, np.mean, 3, 1)),
    ("LayerNormalization", [V[:1].repeat(6), V[1:2].repeat(6)], {"axis": -1}, _normalised(D, -1) * V[0] + V[1]),
    (
        "InstanceNormalization",
        [V, V],
        {"epsilon": 1e-3},
        _normalised(D, (2, 3), 1e-3) * V.reshape(4, 1, 1) + V.reshape(4, 1, 1),
    ),
    (
        "BatchNormalization",
        [V, V, V, np.abs(V) + 1],
        {"epsilon": 0.01},
        (D - V.reshape(4, 1, 1)) / np.sqrt(np.abs(V) + 1.01).reshape(4, 1, 1) * V.reshape(4, 1, 1) + V.reshape(4, 1, 1),
    ),
    ("RMSNormalization", [], {"axis": -1}, D / np.sqrt(np.mean(D**2, -1, keepdims=True) + 1e-5)),
    ("LpNormalization", [], {"axis": 1, "p": 1}, D / np.abs(D).sum(1, keepdims=True)),
    ("Transpose", [], {"perm": [0, 2, 3, 1]}, D.transpose(0, 2, 3, 1)),
    ("Reshape", [np.array([0, -1])], {}, D.reshape(2, -1)),
    ("Flatten", [], {"axis": 2}, D.reshape(8, -1)),
    ("Slice", [], {"starts": [-1], "ends": [-7], "steps": [-2], "axes": [3]}, D[..., ::-2]),
    ("Gather", [np.array([2, 0])], {"axis": 1}, D[:, [2, 0]]),
    ("Pad", [], {"pads": [0, 0, 1, 0, 0, 0, 0, 2], "value": 3.0}, np.pad(D, [(0, 0), (0, 0), (1, 0), (0, 2)], constant_values=3)),
    ("Pad", [], {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "mode": "reflect"}, np.pad(D, [(0, 0), (0, 0), (1, 1), (1, 1)], "reflect")),
    ("Tile", [np.array([1, 1, 2, 1])], {}, np.tile(D, (1, 1, 2, 1))),
    ("Unsqueeze", [np.array([1])], {}, D[:, None]),
    ("CumSum", [np.array(2)], {"reverse": 1}, D[:, :, ::-1].cumsum(2)[:, :, ::-1]),
    ("ArgMax", [], {"axis": 1, "keepdims": 0}, D.argmax(1)),
    ("DepthToSpace", [], {"blocksize": 2}, D.reshape(2, 2, 2, 1, 6, 6).transpose(0, 3, 4, 1, 5, 2).reshape(2, 1, 12, 12)),
    ("Einsum", [], {"equation": "nchw->nc"}, D.sum((2, 3))),
    ("Gemm", None, None, None),
    ("Cast", [], {"to": "int32"}, D.astype(np.int32)),
    ("ScatterElements", [np.zeros((2, 4, 1, 6), np.int64), D[:, :, 1:2]], {"axis": 2, "reduction": "add"}, None),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "constants", "attributes", "expected"), EMITTED)
def test_operators_are_written_as_onnx_means_them(model, operator, constants, attributes, expected):
    data = {"x": D}
    if operator == "Gemm":
        left, right, bias = draw(1, 3, 4), draw(2, 5, 4), draw(3, 5)
        data, constants, attributes = {"x": left}, [right, bias], {"alpha": 0.5, "beta": 2.0, "transB": 1}
        expected = 0.5 * left @ right.T + 2 * bias
    if operator == "ScatterElements":
        expected = D.copy()
        expected[:, :, 0] += D[:, :, 1]
    given = {"operator": operator, "inputs": data, "constants": constants, "attributes": attributes}
    (found,) = model("net")._done("openvino_models", "emitted", **given)
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("group", [1, 2])
def test_convolutions_are_written_as_onnx_means_them(model, group):
    kernel, bias = draw(9, 6, 4 // group, 3, 3), draw(10, 6)
    given = {"pads": [1, 0, 0, 1], "strides": [1, 2], "group": group}
    arguments = {"operator": "Conv", "inputs": {"x": D}, "constants": [kernel, bias], "attributes": given}
    (found,) = model("net")._done("openvino_models", "emitted", **arguments)
    padded = np.pad(D, [(0, 0), (0, 0), (1, 0), (0, 1)]).astype(np.float64)
    expected = np.zeros((2, 6, 5, 3))
    for out in range(6):
        first = (out // (6 // group)) * (4 // group)
        for i in range(5):
            for j in range(3):
                window = padded[:, first : first + 4 // group, i : i + 3, 2 * j : 2 * j + 3]
                expected[:, out, i, j] = (window * kernel[out]).sum((1, 2, 3)) + bias[out]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_of_equal_values_the_first_is_taken(model):
    zeros = np.zeros((2, 32), np.float32)
    arguments = {"operator": "TopK", "inputs": {"x": zeros}, "constants": [np.array([5])], "attributes": {"axis": -1}}
    _, indices = model("net")._done("openvino_models", "emitted", **arguments)
    np.testing.assert_array_equal(indices, np.tile(np.arange(5), (2, 1)))
