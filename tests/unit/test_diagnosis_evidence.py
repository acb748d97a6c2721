"""Which node of a region is blamed: ranking, inputs and their preparation, scalar constants, and what is said without evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from diagnosis_cases import RUNS, Model, finding, matched, normal

from trueport.diagnosis.evidence import examine
from trueport.diagnosis.region import Inside
from trueport.diagnosis.types import Cause

SHAPE = (1, 3, 6, 8)


def chain(format, *operators, shape=SHAPE):
    """Operators one after another; each is a name or (name, attributes, constants)."""
    model, value = Model(format, x=shape), "x"
    for place, item in enumerate(operators):
        op, attributes, constants = item if isinstance(item, tuple) else (item, {}, ())
        names = [model.const(f"c{place}_{index}", array) for index, array in enumerate(constants)]
        value = model.add(op, value, *names, out=f"y{place}", name=f"{op}{place}", shape=shape, **attributes)
    return model


def examined(source, target, *, alignment=None, precision="float32", **more):
    given = {
        "region": [node.name for node in target.nodes],
        "source_region": [node.name for node in source.nodes],
        "at": target.nodes[-1].outputs[0],
        "twin": source.nodes[-1].outputs[0],
        **more,
    }
    at, twin = given.pop("at"), given.pop("twin")
    one, two = source.build(twin), target.build(at)
    return examine(finding(at, twin, **given), one, two, alignment or matched({"x": "x"}), precision=precision)


# -- every node has evidence ----------------------------------------------------------------------------------------------


def test_every_node_of_a_region_has_one_evidence_heaviest_first():
    operators = ["Cast", "Tanh", "Pad", "Sigmoid"]
    found = examined(chain("pytorch", *operators), chain("onnx", *operators))
    assert sorted(item.node for item in found) == ["Cast0", "Pad2", "Sigmoid3", "Tanh1"]
    assert [item.weight for item in found] == sorted((item.weight for item in found), reverse=True)
    assert all(item.weight < 0.5 for item in found)
    assert found[0].node == "Sigmoid3", "the node that gives the healed value comes first where nothing else speaks"
    assert {item.node for item in found[2:]} == {"Cast0", "Pad2"}


def test_nodes_that_compute_nothing_from_the_input_come_last():
    target = chain("onnx", "Tanh")
    target.const("w", normal(4))
    target.add("Identity", "w", out="moved", name="static", value=normal(4))
    found = examined(chain("pytorch", "Tanh"), target, at="y0")
    assert found[-1].node == "static"
    assert found[-1].weight < -4


def test_explained_parameters_speak_for_a_node():
    kernel = normal(3, 3, 3, 3)
    operators = [("Conv", {}, [kernel]), "Tanh"]
    source = chain("pytorch", ("Conv", {"native": "aten.conv2d.default"}, [kernel]), "Tanh")
    found = {item.node: item.weight for item in examined(source, chain("onnx", *operators), at="y9")}
    assert found["Conv0"] < found["Tanh1"]


def test_a_finding_without_a_region_blames_the_producer_of_its_value():
    found = examined(chain("pytorch", "Tanh"), chain("onnx", "Tanh"), region=[])
    assert [item.node for item in found] == ["Tanh0"]
    nowhere = examined(chain("pytorch", "Tanh"), chain("onnx", "Tanh"), region=[], at="stored")
    assert [item.node for item in nowhere] == ["stored"]


def test_a_parameter_and_an_attribute_weigh_alike_and_more_than_an_odd_operator():
    kernel = normal(3, 3, 3, 3)
    native = {"native": "aten.conv2d.default"}

    def weight(source, target):
        return max(item.weight for item in examined(source, target))

    source = chain("pytorch", ("Conv", {**native, "pads": [1] * 4}, [kernel]))
    parameter = weight(source, chain("onnx", ("Conv", {"pads": [1] * 4}, [kernel + 0.3 * normal(3, 3, 3, 3, seed=5)])))
    attribute = weight(source, chain("onnx", ("Conv", {"pads": [0, 0, 2, 2]}, [kernel])))
    odd = weight(chain("pytorch", "Add"), chain("onnx", "Add", "Relu"))
    assert abs(parameter - attribute) < 1
    assert min(parameter, attribute) > odd + 0.5 > 1


def test_evidence_is_plain_json():
    import json

    found = examined(
        chain("pytorch", ("LeakyRelu", {"alpha": 0.1}, ())), chain("onnx", ("LeakyRelu", {"alpha": 0.2}, ()))
    )
    assert json.loads(json.dumps([found[0].source_value, found[0].target_value])) == ["alpha: 0.1", "alpha: 0.2"]


# -- inputs -----------------------------------------------------------------------------------------------------------


def picture(seed=1):
    return np.random.default_rng(seed).uniform(0, 255, (RUNS, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda a: a / 255, "scale|255"), (lambda a: a[:, :, ::-1], "reverse order"), (lambda a: a - 127, "127")],
    ids=["scale", "bgr", "mean"],
)
def test_an_input_that_is_fed_otherwise_is_explained(change, words):
    source, target = Model("pytorch", x=SHAPE), Model("onnx", x=SHAPE)
    source.values["x"] = source.inputs["x"] = picture()
    target.values["x"] = target.inputs["x"] = np.ascontiguousarray(change(picture()))
    for model in (source, target):
        model.add("Tanh", "x", out="y", name="tanh", shape=SHAPE)
    found = examine(
        finding("x", region=[], kind="input"), source.build("y"), target.build("y"), matched({"x": "x"}, bad=("x",))
    )
    assert len(found) == 1
    assert found[0].cause is Cause.INPUTS
    assert any(word in found[0].what for word in words.split("|"))
    assert "to" in found[0].source_value


def test_an_input_that_cannot_be_explained_is_still_the_inputs():
    source, target = Model("pytorch", x=SHAPE), Model("onnx", x=SHAPE)
    target.values["x"] = target.inputs["x"] = normal(RUNS, *SHAPE, seed=77)
    for model in (source, target):
        model.add("Tanh", "x", out="y", name="tanh", shape=SHAPE)
    found = examine(
        finding("x", region=["tanh"], kind="drift"), source.build("y"), target.build("y"), matched({"x": "x"})
    )
    assert found[0].cause is Cause.INPUTS


def prepared(format, *steps, kernel=None):
    """Operators in front of a convolution, their values computed. Each step: (op, attributes, constants, function)."""
    model = Model(format, x=SHAPE)
    model.values["x"] = model.inputs["x"] = value = picture()
    name = "x"
    for place, (op, attributes, constants, function) in enumerate(steps):
        names = [model.const(f"p{place}_{index}", array) for index, array in enumerate(constants)]
        name = model.add(op, name, *names, out=f"p{place}", name=f"{op}{place}", **attributes)
        value = function(value).astype(np.float32)
        model.values[name] = value
    kernel = normal(3, 3, 3, 3) if kernel is None else kernel
    native = "aten.conv2d.default" if format == "pytorch" else None
    model.add("Conv", name, model.const("w", kernel), out="y", name="conv", native=native, shape=SHAPE)
    return model


SCALE = ("Mul", {}, [np.float32(1 / 255)], lambda a: a / 255)
MEAN = ("Sub", {}, [np.float32([[[123]], [[117]], [[104]]])], lambda a: a - np.float32([[[123]], [[117]], [[104]]]))
ORDER = ("Gather", {"axis": 1}, [np.array([2, 1, 0])], lambda a: a[:, :, ::-1])
TURN = ("Transpose", {"perm": [0, 1, 3, 2]}, [], lambda a: a.swapaxes(3, 4))


@pytest.mark.parametrize(
    "steps", [[SCALE], [MEAN], [MEAN, SCALE], [ORDER]], ids=["scale", "mean", "mean-scale", "order"]
)
def test_preparation_that_the_source_does_not_do_is_a_fault_of_the_inputs(steps):
    found = examined(prepared("pytorch"), prepared("onnx", *steps))
    assert found[0].cause is Cause.INPUTS
    assert found[0].node == f"{steps[0][0]}0"
    assert "is prepared by" in found[0].what


@pytest.mark.parametrize("steps", [[SCALE], [MEAN, SCALE], [ORDER]], ids=["scale", "mean-scale", "order"])
def test_preparation_on_both_sides_is_none(steps):
    found = examined(prepared("pytorch", *steps), prepared("onnx", *steps))
    assert all(item.cause is not Cause.INPUTS for item in found)


def test_an_input_turned_on_its_side_is_a_fault_of_the_inputs():
    found = examined(prepared("pytorch"), prepared("onnx", TURN), kind="layout")
    assert found[0].cause is Cause.INPUTS
    to_last = ("Transpose", {"perm": [0, 2, 3, 1]}, [], lambda a: np.moveaxis(a, 2, -1))
    found = examined(prepared("pytorch"), prepared("tflite", TURN, to_last), kind="layout")
    assert found[0].cause is Cause.INPUTS


def test_the_one_transpose_between_two_layouts_is_the_converters_own_even_when_it_is_wrong():
    wrong = ("Transpose", {"perm": [0, 3, 2, 1]}, [], lambda a: a.transpose(0, 1, 4, 3, 2))
    found = examined(prepared("pytorch"), prepared("tflite", wrong), kind="layout")
    assert found[0].node == "Transpose0"
    assert found[0].cause is Cause.STRUCTURE


def test_a_layout_that_the_format_wants_is_no_preparation():
    to_last = ("Transpose", {"perm": [0, 2, 3, 1]}, [], lambda a: np.moveaxis(a, 2, -1))
    found = examined(prepared("pytorch"), prepared("tflite", to_last))
    assert all(item.cause is not Cause.INPUTS for item in found)


# -- scalars -----------------------------------------------------------------------------------------------------------


def with_scalar(format, op, value, **attributes):
    return chain(format, (op, attributes, [np.float32(value)]))


@pytest.mark.parametrize(("ours", "theirs"), [(0.7, 0.77), (1e-5, 1e-3), (3.0, 3.5)])
def test_another_scalar_constant_is_blamed(ours, theirs):
    found = examined(with_scalar("pytorch", "Mul", ours), with_scalar("onnx", "Mul", theirs))
    assert found[0].cause is Cause.PARAMETERS
    assert (found[0].source_value, found[0].target_value) == (pytest.approx(ours), pytest.approx(theirs))
    assert found[0].parameter == "c0_0"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (("Div", 4.0), ("Mul", 0.25)),
        (("Sub", 0.7), ("Add", -0.7)),
        (("Mul", 3.0), ("Mul", 9.0**0.5)),
        (("Pow", 2.5), ("Pow", 2.5)),
    ],
)
def test_a_scalar_written_otherwise_is_the_same(ours, theirs):
    found = examined(with_scalar("pytorch", *ours), with_scalar("onnx", *theirs))
    assert all(item.cause is not Cause.PARAMETERS for item in found)


def test_numbers_of_a_decomposed_activation_need_no_source():
    target = chain(
        "onnx",
        ("Div", {}, [np.float32(2**0.5)]), "Erf", ("Add", {}, [np.float32(1)]), ("Mul", {}, [np.float32(0.5)]),
    )  # fmt: skip
    assert examined(chain("pytorch", "Gelu"), target)[0].weight < 1
    wrong = chain(
        "onnx", ("Div", {}, [np.float32(1.9)]), "Erf", ("Add", {}, [np.float32(1)]), ("Mul", {}, [np.float32(0.5)])
    )
    found = examined(chain("pytorch", "Gelu"), wrong)
    assert found[0].node == "Div0"
    assert "1.9" in found[0].what


def test_a_scale_by_the_root_of_a_size_needs_no_source():
    found = examined(
        chain("pytorch", "Attention", shape=(1, 7, 48)),
        chain("onnx", "MatMul", ("Mul", {}, [np.float32(48**-0.5)]), "Softmax", shape=(1, 7, 48)),
    )
    assert all(item.cause is not Cause.PARAMETERS for item in found)


# -- the region ------------------------------------------------------------------------------------------------------------


def test_what_depends_on_the_input_and_which_constant_stands_behind_a_value():
    model = Model("onnx", x=(1, 4))
    model.const("w", normal(4))
    model.const("axes", np.array([0]))
    model.add("Unsqueeze", "w", "axes", out="lifted", value=normal(1, 4))
    model.add("Add", "x", "lifted", out="y", name="add", shape=(1, 4))
    inside = Inside(model.build("y"))
    assert inside.dynamic == {"x", "y"}
    assert inside.stored("lifted") == "w"
    parameters = inside.parameters(inside.graph.by_name["add"])
    assert [(item.slot, item.name, item.stored, item.array.shape) for item in parameters] == [
        (1, "lifted", "w", (1, 4))
    ]
    assert inside.parameters(inside.graph.by_name["lifted"])[0].name == "w"
    assert not inside.runs(inside.graph.by_name["lifted"])


def test_a_region_is_widened_to_layers_and_their_parts():
    model = chain("pytorch", "Gelu")
    model.add("Erf", "x", out="erf", fine=True, origin="Gelu0", shape=SHAPE)
    model.add("Mul", "decomposed:erf", out="product", fine=True, origin="Gelu0", shape=SHAPE)
    inside = Inside(model.build("y0"))
    assert [node.name for node in inside.whole(["Gelu0"])] == ["Gelu0", "decomposed:erf", "decomposed:product"]
    assert [node.name for node in inside.whole(["decomposed:erf"])] == ["Gelu0", "decomposed:erf"]


def test_prior_of_localisation_is_added():
    source, target = chain("pytorch", "Tanh", "Sigmoid"), chain("onnx", "Tanh", "Sigmoid")
    given = finding("y1", region=["Tanh0", "Sigmoid1"], source_region=["Tanh0", "Sigmoid1"])
    plain = examine(given, source.build("y1"), target.build("y1"), matched({"x": "x"}))
    moved = examine(replace(given, prior={"Tanh0": 1.0}), source.build("y1"), target.build("y1"), matched({"x": "x"}))
    assert plain[0].node == "Sigmoid1"
    assert moved[0].node == "Tanh0"


# -- windows of slices where the numbers differ --------------------------------------------------------------------------


def slices(format, *reads, width=6):
    """Slices of different values, each the first row."""
    model = Model(format, **dict.fromkeys("abc", SHAPE))
    for place, (name, begin) in enumerate(reads):
        starts = [
            model.const(f"{key}{place}", np.int64([value]))
            for key, value in (("starts", begin), ("ends", begin + 2), ("axes", 2))
        ]
        model.add("Slice", name, *starts, out=f"y{place}", name=f"slice{place}", shape=(1, 3, 2, 8))
    return model


@pytest.mark.parametrize(("read", "blamed"), [("a", True), ("c", False)])
def test_a_window_counts_against_one_of_several_only_where_it_is_taken_of_the_same_value(read, blamed):
    source = slices("onnx", ("a", 0), ("b", 1))
    target = slices("onnx", (read, 3))
    found = examined(source, target, alignment=matched({name: name for name in "abc"}))
    assert ("window" in found[0].what) is blamed


# -- epsilons and axes of normalisations taken apart ---------------------------------------------------------------------------


def taken_apart(format, epsilon, *, axes=(2,), root="Rsqrt", attribute=False):
    """A normalisation as operators."""
    model = Model(format, x=(1, 5, 8))
    model.add("ReduceMean", "x", out="mean", name="mean", shape=(1, 5, 1), axes=list(axes))
    model.add("SquaredDifference", "x", "mean", out="square", name="square", shape=(1, 5, 8))
    model.add("ReduceMean", "square", out="variance", name="variance", shape=(1, 5, 1), axes=list(axes))
    added = () if attribute else (model.const("epsilon", np.float32([epsilon])),)
    more = {"other": epsilon} if attribute else {}
    model.add("Add", "variance", *added, out="guarded", name="add", shape=(1, 5, 1), **more)
    model.add(root, "guarded", out="root", name="root", shape=(1, 5, 1))
    model.add("Sub", "x", "mean", out="centred", name="centre", shape=(1, 5, 8))
    model.add("Mul", "centred", "root", out="y", name="scale", shape=(1, 5, 8))
    return model


def as_one(format, epsilon, op="LayerNormalization", **attributes):
    model = Model(format, x=(1, 5, 8))
    model.add(op, "x", out="y", name="norm", shape=(1, 5, 8), epsilon=epsilon, **attributes)
    return model


NORMS = {
    "keras, operators": (lambda e: as_one("keras", e), lambda e: taken_apart("onnx", e, root="Sqrt"), "add"),
    "operators, onnx": (lambda e: taken_apart("tflite", e), lambda e: as_one("onnx", e), "norm"),
    "operators, operators": (lambda e: taken_apart("savedmodel", e), lambda e: taken_apart("onnx", e), "add"),
    "scalars, operators": (
        lambda e: taken_apart("pytorch", e, attribute=True),
        lambda e: taken_apart("onnx", e),
        "add",
    ),
}


@pytest.mark.parametrize("kind", ["struct", "drift", "missing"])
@pytest.mark.parametrize("pair", NORMS)
def test_another_epsilon_is_a_hyperparameter_on_the_node_that_adds_it(pair, kind):
    one, two, blamed = NORMS[pair]
    found = examined(one(1e-3), two(1e-5), kind=kind)
    assert (found[0].node, found[0].cause) == (blamed, Cause.HYPERPARAMETERS)
    assert (found[0].source_value, found[0].target_value) == ("epsilon: 0.001", "epsilon: 1e-05")
    assert not any("epsilon" in item.what for item in examined(one(1e-3), two(1e-3), kind=kind))


def test_a_number_that_no_root_is_taken_of_is_no_epsilon():
    found = examined(as_one("keras", 1e-3), taken_apart("onnx", 1e-5, root="Tanh"))
    assert not any("the epsilon of" in item.what for item in found)


@pytest.mark.parametrize("kind", ["struct", "missing"])
@pytest.mark.parametrize(("axis", "blamed"), [(1, True), (2, False), (-1, False)])
def test_the_axis_of_a_normalisation_is_that_of_its_means(kind, axis, blamed):
    target = as_one("onnx", 1e-3, axis=axis)
    found = examined(taken_apart("tflite", 1e-3), target, kind=kind)
    assert ("axis" in found[0].what) is blamed
    if blamed:
        assert found[0].cause is Cause.HYPERPARAMETERS
        assert found[0].target_value == "axis: 1"


def test_a_recurrent_operator_whose_weights_are_the_sources_comes_before_what_moves_its_result():
    model = Model("onnx", x=(7, 1, 3))
    weights = [model.const(name, normal(*shape)) for name, shape in (("W", (1, 20, 3)), ("R", (1, 20, 5)))]
    model.add("LSTM", "x", *weights, out="h", name="rnn", shape=(7, 1, 1, 5), hidden_size=5)
    model.add("Slice", "h", out="y", name="last", shape=(1, 1, 1, 5))
    source = Model("savedmodel", x=(7, 1, 3))
    kernels = [
        source.const(f"k{place}", model.constants[name][0].reshape(4, 5, -1)[[0, 2, 3, 1]].reshape(20, -1))
        for place, name in enumerate("WR")
    ]
    for place, (reads, kernel) in enumerate(zip(("x", "v0"), kernels, strict=True)):
        source.add("MatMul", reads, kernel, out=f"v{place}", native="MatMul", shape=(7, 20), transpose_b=True)
    source.add("TensorListStack", "v1", out="y", name="stack", shape=(7, 20))
    found = examined(source, model)
    assert (found[0].node, found[0].cause) == ("rnn", Cause.HYPERPARAMETERS)
