"""ONNX models cut open: values put in, values taken out. Expected values are computed in NumPy or by the uncut model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.outcome import Failure, Stage

MODULE = "trueport.frameworks.onnx"
HERE = [str(Path(__file__).parent)]


class Model:
    """One model of onnx_models.py in a worker: trace it, and replay it with values put in."""

    def __init__(self, pool, python, path):
        self.pool, self.python, self.path = pool, python, path

    def ask(self, function, *, emit=True, **arguments):
        given = {"path": self.path, "trust": False, **arguments}
        return self.pool.call(self.python, MODULE, function, given, stage=Stage.TRACE, emit=emit)

    def names(self):
        return self.ask("names", emit=False).value.value

    def trace(self, inputs):
        outcome = self.ask("trace", inputs=inputs, wanted=self.names(), budget=2**28)
        assert not isinstance(outcome, Failure), outcome
        return outcome.value.emitted

    def replay(self, inputs, given, wanted, *, variant="", budget=2**28):
        """The arrays, and what was skipped."""
        outcome = self.ask("replay", inputs=inputs, given=given, wanted=list(wanted), variant=variant, budget=budget)
        assert not isinstance(outcome, Failure), outcome
        return outcome.value.emitted, outcome.value.value["skipped"]


@pytest.fixture(scope="module")
def model(pool, env, tmp_path_factory):
    """model(name) -> Model of onnx_models.py, built once."""
    folder = tmp_path_factory.mktemp("replay")

    def get(name: str) -> Model:
        path = folder / name / "model.onnx"
        if not path.exists():
            path.parent.mkdir()
            arguments = {"name": name, "out": str(path)}
            outcome = pool.call(env("onnx"), "onnx_models", "build", arguments, stage=Stage.LOAD, paths=HERE)
            assert not isinstance(outcome, Failure), outcome
        return Model(pool, env("onnx"), str(path))

    return get


def samples(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs_of_residual(seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": samples(3, 2, 3, 16, 16, seed=seed)}


# -- one value --------------------------------------------------------------------------------------------------------


def test_a_value_put_in_reaches_the_output_bit_for_bit_as_in_a_whole_run(model):
    net = model("residual")
    other = net.trace(inputs_of_residual(seed=5))
    got, skipped = net.replay({}, {"r0": other["r0"]}, ["logits", "sum"])
    assert skipped == {}
    np.testing.assert_array_equal(got["logits"], other["logits"])
    np.testing.assert_array_equal(got["sum"], other["sum"])


def test_what_lies_before_the_cut_is_computed_from_the_inputs_and_what_lies_behind_from_the_given(model):
    net = model("residual")
    mine, other = net.trace(inputs_of_residual()), net.trace(inputs_of_residual(seed=5))
    got, _ = net.replay(inputs_of_residual(), {"n1": other["n1"]}, ["sum", "h1"])
    np.testing.assert_array_equal(got["h1"], mine["h1"])
    np.testing.assert_array_equal(got["sum"], other["n1"] + mine["r0"])


def test_nothing_put_in_gives_what_a_trace_gives(model):
    net = model("residual")
    whole = net.trace(inputs_of_residual())
    got, skipped = net.replay(inputs_of_residual(), {}, list(whole))
    assert skipped == {}
    assert set(got) == set(whole)
    assert all(np.array_equal(got[name], whole[name]) for name in whole)


@pytest.mark.parametrize("variant", ["default", "no-optimization", "single-thread"])
@pytest.mark.parametrize("name", ["residual", "external", "two_conv_bn"])
def test_the_outputs_of_an_uncut_replay_are_those_of_a_run_bit_for_bit(model, name, variant):
    net = model(name)
    x = samples(3, *{"residual": (2, 3, 16, 16), "external": (2, 6), "two_conv_bn": (1, 4, 12, 12)}[name])
    ran = net.ask("run", cases={"only": {"x": x}}, precision="float32", variant=variant, emit=False)
    expected = ran.value.value["only"]
    got, _ = net.replay({"x": x}, {}, list(expected), variant=variant)
    for key, array in expected.items():
        np.testing.assert_array_equal(got[key], array)


def test_a_value_that_is_put_in_and_wanted_comes_as_its_own_producer_makes_it(model):
    net = model("residual")
    whole = net.trace(inputs_of_residual())
    given = {"h0": whole["h0"], "r0": np.full_like(whole["r0"], 7)}
    got, _ = net.replay({}, given, ["r0", "h1"])
    np.testing.assert_array_equal(got["r0"], whole["r0"])
    sevens, _ = net.replay({}, {"r0": given["r0"]}, ["h1"])
    np.testing.assert_array_equal(got["h1"], sevens["h1"])
    assert not np.allclose(got["h1"], whole["h1"])


def test_a_graph_input_and_a_stored_tensor_can_be_put_in(model):
    net = model("residual")
    given = {"x": inputs_of_residual(seed=3)["x"]}
    expected = net.trace(given)["logits"]
    got, _ = net.replay(inputs_of_residual(), given, ["logits"])
    np.testing.assert_array_equal(got["logits"], expected)
    bias = samples(3, 5, seed=9)
    whole = net.trace(inputs_of_residual())
    flat, _ = net.replay(inputs_of_residual(), {"fc.b": np.zeros_like(bias)}, ["logits"])
    moved, _ = net.replay(inputs_of_residual(), {"fc.b": bias}, ["logits", "fc.b"])
    np.testing.assert_allclose(moved["logits"] - flat["logits"], np.repeat(bias[:, None], 2, 1), rtol=1e-4, atol=1e-5)
    assert moved["fc.b"].shape == (3, 5)
    assert not np.array_equal(moved["fc.b"], bias)
    np.testing.assert_allclose(flat["logits"] + moved["fc.b"][:, None], whole["logits"], rtol=1e-4, atol=1e-5)


def test_an_input_that_is_wanted_is_handed_back(model):
    net = model("residual")
    given = inputs_of_residual(seed=2)
    got, _ = net.replay(inputs_of_residual(), given, ["x", "r0"])
    np.testing.assert_array_equal(got["x"], inputs_of_residual()["x"])
    got, _ = net.replay({}, given, ["x"])
    np.testing.assert_array_equal(got["x"], given["x"])


def test_a_needed_input_that_is_missing_and_an_unknown_name_are_refused_in_a_sentence(model):
    net = model("residual")
    common = {"variant": "", "budget": 2**20}
    missing = net.ask("replay", inputs={}, given={}, wanted=["r0"], **common)
    assert isinstance(missing, Failure)
    assert "'x' is needed" in missing.message
    unknown = net.ask("replay", inputs=inputs_of_residual(), given={"nowhere": samples(3, 1)}, wanted=["r0"], **common)
    assert isinstance(unknown, Failure)
    assert "no value named 'nowhere'" in unknown.message
    common["variant"] = "fastest"
    variant = net.ask("replay", inputs=inputs_of_residual(), given={}, wanted=["r0"], **common)
    assert isinstance(variant, Failure)
    assert "no variant 'fastest'; known are default, " in variant.message


# -- all values at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["residual", "lstm", "normalised", "two_conv_bn", "old_style", "external", "with_function"]
)
def test_every_operator_alone_on_the_values_of_the_whole_model_repeats_them(model, name):
    """Local replay: every value is put in, every value is wanted; each operator must make again what it made before."""
    net = model(name)
    shapes = {
        "residual": {"x": (2, 3, 16, 16)},
        "lstm": {"x": (6, 2, 4)},
        "normalised": {"x": (2, 6)},
        "two_conv_bn": {"x": (1, 4, 12, 12)},
        "old_style": {"x": (1, 2, 6, 6)},
        "external": {"x": (2, 6)},
        "with_function": {"x": (3,)},
    }[name]
    inputs = {key: samples(3, *shape) for key, shape in shapes.items()}
    whole = net.trace(inputs)
    got, skipped = net.replay(inputs, {**inputs, **whole}, list(whole))
    assert skipped == {}
    assert list(got) == list(whole)
    for value in whole:
        np.testing.assert_array_equal(got[value], whole[value], err_msg=value)


def test_a_wrong_operator_is_the_only_one_that_differs_in_local_replay(model):
    """The values of a twin whose bias is another: only the operator that adds the bias is off."""
    net = model("residual")
    inputs = inputs_of_residual()
    bias = samples(5, seed=8)
    twin = dict(net.trace(inputs))
    twin["logits"] = twin["logits"] + bias
    got, _ = net.replay(inputs, twin, list(twin))
    assert [name for name in twin if not np.array_equal(got[name], twin[name])] == ["logits"]


def test_windows_give_the_same_whatever_the_budget(model):
    net = model("residual")
    inputs = inputs_of_residual()
    whole = net.trace(inputs)
    for given in ({}, whole):
        for budget in (1, 60_000):
            got, skipped = net.replay(inputs, given, list(whole), budget=budget)
            assert skipped == {}
            assert list(got) == list(whole)
            assert all(np.array_equal(got[name], whole[name]) for name in whole)


# -- subgraphs --------------------------------------------------------------------------------------------------------


def test_branches_of_an_if_see_the_value_that_is_put_in(model):
    net = model("branch")
    inputs = {"x": np.float32([[1, 2, 3], [-1, -2, -3]])}
    double = np.float32([[10, 20, 30], [40, 50, 60]])
    got, _ = net.replay(inputs, {"double": double}, ["y", "double"])
    np.testing.assert_array_equal(got["y"], [[10, 40, 90], [38, 48, 58]])
    np.testing.assert_array_equal(got["double"], 2 * inputs["x"])
    turned, _ = net.replay(inputs, {"double": double, "positive": np.array([0.0, 1.0])}, ["y"])
    np.testing.assert_array_equal(turned["y"], [[8, 18, 28], [40, 100, 180]])


def test_the_body_of_a_loop_sees_the_value_that_is_put_in(model):
    net = model("loop")
    x = np.float32([[8, 16, 24, 32]])
    got, _ = net.replay({"x": x}, {"shift": np.float32([[1, 2, 3, 4]])}, ["y"])  # `bias` is not needed
    np.testing.assert_array_equal(got["y"], x / 8 + np.float32([[1, 2, 3, 4]]) * 1.75)
    steps, _ = net.replay({"x": x, "bias": x}, {"count": np.float32([1.2])}, ["y"])
    np.testing.assert_array_equal(steps["y"], x / 2 + 2 * x)


# -- other shapes and dtypes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["", "default", "no-optimization", "single-thread", "reference"])
def test_a_value_of_another_shape_is_taken_in_every_variant(model, variant):
    net = model("residual")
    wide = samples(3, 4, 8, 9, 7)  # another batch, other planes
    got, skipped = net.replay({}, {"n1": wide, "r0": wide}, ["logits", "r1"], variant=variant)
    assert skipped == {}
    np.testing.assert_array_equal(got["r1"], np.maximum(2 * wide, 0))
    assert got["logits"].shape == (3, 4, 5)
    with_default, _ = net.replay({}, {"n1": wide, "r0": wide}, ["logits"])
    np.testing.assert_allclose(got["logits"], with_default["logits"], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_computed_from_the_given_shapes_is_skipped_with_the_reason_and_the_rest_is_not(model):
    net = model("residual")
    inputs = inputs_of_residual()
    whole = net.trace(inputs)
    given = dict(whole, n1=samples(3, 2, 8, 5, 5))
    got, skipped = net.replay(inputs, given, list(whole))
    assert list(skipped) == ["sum"]
    assert "Add" in skipped["sum"]
    assert set(got) == set(whole) - {"sum"}
    got, skipped = net.replay(inputs, {"n1": given["n1"]}, ["h1", "sum", "r1", "logits"])
    assert set(skipped) == {"sum", "r1", "logits"}
    np.testing.assert_array_equal(got["h1"], whole["h1"])


def test_given_values_are_brought_to_the_dtype_of_the_value(model):
    net = model("qdq")
    inputs = {"x": samples(2, 1, 6)}
    whole = net.trace(inputs)
    assert whole["q"].dtype == np.uint8
    got, _ = net.replay({}, {"q": whole["q"].astype(np.float64) + 0.4}, ["d"])
    np.testing.assert_array_equal(got["d"], whole["d"])
    far, _ = net.replay({}, {"q": np.float32([[[-9, 300, np.nan, np.inf, -np.inf, 7]]])}, ["d"])
    np.testing.assert_allclose(far["d"], (np.float32([[[0, 255, 0, 255, 0, 7]]]) - 128) * 0.05, rtol=1e-6)
    doubles, _ = net.replay({}, {"d": whole["d"].astype(np.float64)}, ["y"])
    np.testing.assert_array_equal(doubles["y"], whole["y"])


def test_integers_text_and_shapes_that_depend_on_the_data(model):
    net = model("many")
    inputs = {"a": samples(2, 4, 3), "b": np.ones((2, 4, 3), np.int32), "text": np.array([["p", "q"], ["r", "s"]])}
    got, skipped = net.replay(inputs, {"sum": -inputs["a"], "text": inputs["text"][::-1]}, ["best", "echo", "more"])
    assert skipped == {}
    np.testing.assert_array_equal(got["best"], (-inputs["a"]).argmax(2))
    assert got["echo"].tolist() == [["r", "s"], ["p", "q"]]
    np.testing.assert_array_equal(got["more"], inputs["a"] > 1)
    ragged = model("ragged")
    got, skipped = ragged.replay({}, {"r": np.float32([[1, 0, 1, 0, 0], [1, 1, 1, 0, 0]])}, ["places"])
    assert skipped == {"places": "its shape differs between runs"}
    assert got == {}


# -- large models -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_of_more_than_two_gigabytes_is_cut_as_any_other(pool, env, tmp_path):
    path = str(tmp_path / "huge.onnx")
    arguments = {"out": path, "width": 23_500}
    outcome = pool.call(env("onnx"), "onnx_models", "build_huge", arguments, stage=Stage.LOAD, paths=HERE)
    assert not isinstance(outcome, Failure), outcome
    net = Model(pool, env("onnx"), path)
    x = samples(1, 1, 23_500)
    # The weights are zero but for the first row, which is minus one.
    got, _ = net.replay({"x": x}, {"h": x}, ["h", "y"])
    np.testing.assert_array_equal(got["y"], -x)
    np.testing.assert_array_equal(got["h"], np.broadcast_to(-x[..., :1], x.shape))


@pytest.mark.parametrize("file", ["silero_vad/silero_vad_16k_op15.onnx", "yunet/yunet_n_dynamic.onnx"])
def test_operators_of_a_real_model_repeat_its_values_one_by_one(pool, env, corpus, file):
    """Local replay of a network with If branches, LSTM cells and shape arithmetic, and of one with many outputs."""
    net = Model(pool, env("onnx"), str(corpus / "models" / file))
    signature = net.ask("signature", emit=False).value.value
    random = np.random.default_rng(0)
    sizes = {"sr": (), "input": (1, 512) if "vad" in file else (1, 3, 96, 96)}
    inputs = {}
    for spec in signature["inputs"]:
        shape = (
            sizes.get(spec["name"])
            if spec["name"] in sizes
            else tuple(d if isinstance(d, int) else 1 for d in spec["shape"])
        )
        inputs[spec["name"]] = (
            np.full((2, *shape), 16000) if spec["name"] == "sr" else random.normal(size=(2, *shape)).astype(np.float32)
        )
    whole = net.trace(inputs)
    assert len(whole) > 20
    got, skipped = net.replay(inputs, {**inputs, **whole}, list(whole))
    assert skipped == {}
    different = [name for name in whole if not np.array_equal(got[name], whole[name], equal_nan=True)]
    assert different == []
    half = list(whole)[len(whole) // 2]
    outputs = [item["name"] for item in signature["outputs"]]
    healed, _ = net.replay(inputs, {half: whole[half]}, outputs)
    assert all(np.array_equal(healed[name], whole[name]) for name in outputs)
