"""Replay of TFLite files: values put in, parts cut out. Numbers come from the hand-made files, or from `trace` of real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.frameworks import tflite
from trueport.outcome import Failure, Kind, Ok, Stage

MODULE = "trueport.frameworks.tflite"
HERE = str(Path(__file__).parent)
BUDGET = 64 * 2**20


@pytest.fixture(scope="module")
def call(pool, env):
    """call(function, path, ...) -> the Outcome of that function of the framework file in a worker."""

    def run(function, path, *, emit=True, **arguments):
        given = {"path": str(path), "trust": False, **arguments}
        return pool.call(env("litert"), MODULE, function, given, stage=Stage.TRACE, emit=emit)

    return run


@pytest.fixture(scope="module")
def models(pool, env, tmp_path_factory):
    """Name -> path of the hand-made files."""
    folder = tmp_path_factory.mktemp("tflite")
    found = {}
    for module in ("tflite_models", "tflite_parts"):
        outcome = pool.call(env("litert"), module, "write", {"folder": str(folder)}, stage=Stage.LOAD, paths=[HERE])
        assert isinstance(outcome, Ok), outcome
        found.update(outcome.value.value)
    return found


@pytest.fixture(scope="module")
def replay(call, models):
    """replay(model, inputs, given, wanted, ...) -> name -> array; the model by its name or path."""

    def run(model, inputs, given, wanted, *, variant="", budget=BUDGET):
        arguments = {"inputs": inputs, "given": given, "wanted": wanted, "variant": variant, "budget": budget}
        outcome = call("replay", models.get(model, model), **arguments)
        assert isinstance(outcome, Ok), outcome
        assert set(outcome.value.emitted) | set(outcome.value.value["skipped"]) == set(wanted)
        return outcome.value.emitted

    return run


def refused(call, path, inputs, given, wanted, *, variant=""):
    outcome = call("replay", path, inputs=inputs, given=given, wanted=wanted, variant=variant, budget=BUDGET)
    assert isinstance(outcome, Failure)
    return outcome


def rows(*values):
    return np.array(values, np.float32)


# -- what is computed from what


def test_consumers_read_what_is_put_in_and_the_producer_is_still_seen(replay):
    a, b, put_in = rows([2, 3], [4, 5]), rows([10, 20], [30, 40]), rows([7, 8], [-1, 0.5])
    got = replay("two_in_two_out", {"first": a, "second": b}, {"out_total": put_in}, ["out_product", "out_total"])
    np.testing.assert_array_equal(got["out_product"], a * put_in)
    np.testing.assert_array_equal(got["out_total"], a + b)


def test_only_what_is_needed_has_to_be_given(replay, call, models):
    a, total = rows([2, 3]), rows([7, 8])
    got = replay("two_in_two_out", {"first": a}, {"out_total": total}, ["out_product"])
    np.testing.assert_array_equal(got["out_product"], a * total)
    got = replay("two_in_two_out", {}, {"first": a, "out_total": total}, ["out_product"])
    np.testing.assert_array_equal(got["out_product"], a * total)
    failure = refused(call, models["two_in_two_out"], {"first": a}, {"first": a}, ["out_product"])
    assert "needs a value for its input 'second'" in failure.message


def test_an_input_can_be_put_in_and_is_wanted_as_it_came(replay):
    a, b, other = rows([2, 3]), rows([10, 20]), rows([-1, -2])
    got = replay("two_in_two_out", {"first": a, "second": b}, {"first": other}, ["first", "out_total"])
    np.testing.assert_array_equal(got["first"], a)
    np.testing.assert_array_equal(got["out_total"], other + b)


def test_every_value_at_once_gives_every_operator_alone(replay):
    x = rows([1, -2])
    given = {"t#1": rows([5, -6]), "#2": rows([0.5, 0.25]), "y": rows([9, 9])}
    got = replay("same_names", {"t#0": x}, given, ["t#1", "#2", "y"])
    np.testing.assert_array_equal(got["t#1"], -x)
    np.testing.assert_array_equal(got["#2"], [[5, 6]])
    np.testing.assert_allclose(got["y"], np.exp(rows([0.5, 0.25])), rtol=1e-6)  # exp of float32


@pytest.mark.parametrize("variant", ["", *tflite.VARIANTS])
@pytest.mark.parametrize("budget", [1, BUDGET])
def test_variants_and_windows_compute_the_same(replay, variant, budget):
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 13, 2)).astype(np.float32)
    kernel = (np.arange(24, dtype=np.float32) / 8 - 1).reshape(3, 2, 2, 2)
    blocks = np.stack([x[:, :, i : i + 7 : 2, j : j + 12 : 2] for i in (0, 1) for j in (0, 1)], axis=-2)
    expected = np.clip(np.einsum("rbhwkc,okc->rbhwo", blocks, kernel.reshape(3, 4, 2)), 0, 6)
    image = np.zeros((3, 1, 5, 6, 2), np.float32)
    got = replay("convolution", {"x": image}, {"padded": x}, ["padded", "y"], variant=variant, budget=budget)
    # eight products and a sum of numbers below 8: some units in the last place of 8
    np.testing.assert_allclose(got["y"], expected, atol=5e-6)
    assert not got["padded"].any()


def test_shapes_may_differ_from_those_of_the_file(replay):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 9, 2)).astype(np.float32)
    assert replay("convolution", {}, {"padded": x}, ["y"])["y"].shape == (2, 3, 2, 4, 3)
    small = replay("convolution", {}, {"padded": x[:, :1, :, :5]}, ["y"])["y"]
    assert small.shape == (2, 1, 2, 2, 3), "after a larger one"


def test_results_of_uneven_shape_are_skipped_and_said(call, models):
    mask = np.array([[True, False, True, False], [True, True, True, False]])
    arguments = {"inputs": {}, "given": {"mask": mask}, "wanted": ["y"], "variant": "", "budget": BUDGET}
    outcome = call("replay", models["positive_places"], **arguments)
    assert outcome.value.emitted == {}
    assert "differs between the runs" in outcome.value.value["skipped"]["y"]
    arguments["given"] = {"mask": mask[:1]}
    outcome = call("replay", models["positive_places"], **arguments)
    np.testing.assert_array_equal(outcome.value.emitted["y"], [[[0], [2]]])


# -- grids, constants, state, loops


def test_quantised_values_are_put_on_the_grid_and_come_out_of_it(replay):
    weights = np.array([[1, -2, 3, 4], [5, 6, -7, 8], [9, -10, 11, 12]]) * np.array([[0.25], [0.5], [0.125]])
    off = np.array([[[0.3, -0.7, 1e6, 0.24]], [[1.6, 2.2, 0.74, -3.1]]], np.float32)
    on = np.array([[[0.5, -0.5, 62, 0]], [[1.5, 2, 0.5, -3]]])
    exact = on @ weights.T + np.array([0.5, -2.0, 1.0])
    expected = (np.clip(np.rint(exact / 0.5) - 10, -128, 127) + 10) * 0.5
    got = replay("quantised", {"x": off}, {}, ["x", "y"])
    np.testing.assert_array_equal(got["x"], on)
    np.testing.assert_allclose(got["y"], expected, atol=0.5)  # kernels round their own way: one step of the grid
    again = replay("quantised", {}, {"x": off}, ["y"])["y"]
    np.testing.assert_array_equal(again, got["y"])


def test_a_dequantised_constant_can_be_put_in(replay):
    x, put_in = np.ones((1, 2, 2), np.float32), np.array([[[1, 2], [3, 4]]], np.float32)
    got = replay("half_weights", {"x": x}, {"w": put_in}, ["y"])
    np.testing.assert_array_equal(got["y"], x + put_in)


def test_a_value_of_constants_alone_needs_no_input(replay):
    i, j = np.mgrid[:2, :2]
    expected = ((i - j / 2 + 1) / 4).astype(np.float32)
    np.testing.assert_array_equal(replay("half_weights", {}, {}, ["w"])["w"], [expected])
    given = {"x": np.zeros((3, 2, 2), np.float32)}
    assert replay("half_weights", given, {}, ["w"])["w"].shape == (3, 2, 2)


def test_state_starts_afresh_in_every_run(replay):
    x = rows([1, 2], [3, 4], [5, 6])
    np.testing.assert_array_equal(replay("counter", {"x": x}, {}, ["total", "y"], budget=1)["y"], x)
    put_in = rows([10, 10], [20, 20], [30, 30])
    got = replay("counter", {"x": x}, {"total": put_in}, ["total", "y"])
    np.testing.assert_array_equal(got["y"], x + put_in)
    np.testing.assert_array_equal(got["total"], np.zeros((3, 2)))
    steps = np.repeat(np.array([[[[1.0, -1.0], [0.5, 2.0]]]], np.float32), 2, axis=0)
    recurrent = replay("recurrent", {}, {"x": steps}, ["y"])["y"]
    np.testing.assert_array_equal(recurrent[0], recurrent[1])


def test_branches_and_loops_are_run_whole(replay, call, models):
    given = {"condition": np.array([[True], [False]]), "x": rows([1, 2], [1, 2])}
    np.testing.assert_array_equal(replay("branches", {}, given, ["y"])["y"], [[4, 7], [3, 10]])
    x, put_in = rows([1, 2], [3, 4]), rows([10, 20], [-1, -2])
    assert call("names", models["loop"], emit=False).value.value == ["scaled", "looped", "y"], "nobody reads 'count'"
    got = replay("loop", {"x": x}, {"scaled": put_in}, ["scaled", "looped", "y"])
    np.testing.assert_array_equal(got["scaled"], x / 2)
    np.testing.assert_array_equal(got["looped"], put_in * 8)
    np.testing.assert_array_equal(got["y"], put_in * 8 + 1)
    np.testing.assert_array_equal(replay("loop", {"x": x}, {"looped": put_in}, ["y"])["y"], put_in + 1)


def test_integers_come_in_whole(replay, call, models):
    i, j = np.mgrid[:10, :2]
    table = ((i - j / 2 + 1) / 4).astype(np.float32)
    got = replay("lookup", {}, {"flat": np.array([[3, 0, 9]], np.int64)}, ["y"])["y"]
    np.testing.assert_array_equal(got[0], table[[3, 0, 9]])
    failure = refused(call, models["lookup"], {}, {"flat": rows([0.5, 1, 2])}, ["y"])
    assert "do not fit" in failure.message


# -- the part that is cut out


@pytest.fixture(scope="module")
def part(pool, env, models):
    """part(model, given, wanted) -> what the part consists of."""

    def ask(model, given, wanted):
        arguments = {"path": models[model], "given": given, "wanted": wanted}
        outcome = pool.call(env("litert"), "tflite_parts", "part_of", arguments, stage=Stage.TRACE, paths=[HERE])
        assert isinstance(outcome, Ok), outcome
        return outcome.value.value

    return ask


def test_what_is_not_needed_is_left_out(part):
    weights = 64 * 64 * 4
    middle = part("chain", ["h0"], ["h1"])
    assert middle["operators"] == 1
    assert weights < middle["bytes"] < weights + 4096
    assert middle["whole"] > 3 * weights
    assert part("chain", [], ["h2"])["operators"] == 3
    assert part("chain", ["x", "h0", "h1", "h2"], ["h0", "h1", "h2"])["operators"] == 3
    assert part("loop", ["looped"], ["y"])["subgraphs"] == 1
    assert part("loop", [], ["y"])["subgraphs"] == 3


def test_constants_are_aligned_as_the_schema_demands(part):
    for facts in (part("chain", [], ["h2"]), part("loop", [], ["y"]), part("convolution", [], ["y"])):
        assert facts["offsets"]
        assert all(offset % 16 == 0 for offset in facts["offsets"])


# -- refusals


def test_wrong_calls_are_told_in_one_sentence(call, models):
    path, a = models["two_in_two_out"], rows([2, 3])
    both = {"first": a, "second": a}
    assert "no value 'nothing'" in refused(call, path, both, {"nothing": a}, ["out_total"]).message
    assert "no value 'nothing'" in refused(call, path, both, {}, ["nothing"]).message
    assert "no variant 'fast'" in refused(call, path, both, {}, ["out_total"], variant="fast").message
    uneven = refused(call, path, both, {"out_total": np.zeros((2, 2), np.float32)}, ["out_product"])
    assert "different numbers of runs: [1, 2]" in uneven.message
    assert (
        "takes 2, and 3 was given"
        in refused(call, path, {**both, "second": rows([1, 2, 3])}, {}, ["out_total"]).message
    )


def test_what_litert_cannot_run_is_unsupported_and_the_next_call_works(replay, call, models):
    failure = refused(call, models["linear"], {}, {"features": np.zeros((1, 1, 5), np.float32)}, ["scores"])
    assert failure.kind is Kind.UNSUPPORTED
    assert "'features' would have 5 elements, and its dense layer takes 4 features" in failure.message
    failure = refused(call, models["convolution"], {}, {"padded": np.zeros((1, 1, 8, 13, 5), np.float32)}, ["y"])
    assert failure.kind is Kind.UNSUPPORTED
    assert "cannot run the part of the model between these values" in failure.message
    got = replay("linear", {}, {"features": np.zeros((1, 1, 4), np.float32)}, ["scores"])["scores"]
    np.testing.assert_array_equal(got, [[[0.5, 0, 0.25]]])
    failure = refused(call, models["flex"], {"x": rows([1, 2])}, {}, ["y"])
    assert failure.kind is Kind.UNSUPPORTED
    assert "FlexErf" in failure.message


# -- real models

CORPUS_FILES = (
    "mlperf_tiny_resnet8/pretrainedResnet.tflite",
    "mlperf_tiny_vww/vww_96_int8.tflite",
    "mlperf_tiny_wakeword/str_ww_ref_model.tflite",
    "dtln/model_quant_1.tflite",
    "blazeface/face_detection_front.tflite",
    "movie_review/movie_review.tflite",
    "tflm/trained_lstm.tflite",
    "slim_portrait/slim_reshape.tflite",
)


@pytest.mark.corpus
@pytest.mark.parametrize("name", CORPUS_FILES)
def test_real_model_put_together_again_from_its_values(corpus, call, replay, name):
    """All values put in at once, or one of them: bit for bit what the model computes; another value changes the output."""
    path = str(corpus / "models" / name)
    rng = np.random.default_rng(3)
    inputs = {}
    for spec in call("signature", path, emit=False).value.value["inputs"]:
        shape = (2, *(size or 1 for size in spec["shape"]))
        whole = rng.integers(0, spec.get("maximum", 5) + 1, shape)
        inputs[spec["name"]] = whole.astype(spec["dtype"]) if "int" in spec["dtype"] else rng.random(shape, np.float32)
    names = call("names", path, emit=False).value.value
    values = call("trace", path, inputs=inputs, wanted=names, budget=BUDGET).value.emitted
    alone = replay(path, inputs, dict(values), names)
    for value in names:
        np.testing.assert_array_equal(alone[value], values[value])
    outputs = call("graph", path, emit=False).value.value["outputs"]
    for value in names[1 : -1 : max(1, len(names) // 4)]:
        healed = replay(path, inputs, {value: values[value]}, outputs)
        for output in outputs:
            np.testing.assert_array_equal(healed[output], values[output])
    largest = max(names[:-1], key=lambda value: values[value].size if values[value].dtype == np.float32 else 0)
    disturbed = replay(path, inputs, {largest: np.zeros_like(values[largest])}, outputs)
    assert any(not np.array_equal(disturbed[output], values[output]) for output in outputs)
