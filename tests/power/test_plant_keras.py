"""Planted faults in Keras models: the files load, differ where the truth says, and nowhere else."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from trueport.outcome import Failure, Stage

FOLDER = Path(__file__).parent
FRAMEWORKS = str(FOLDER.parent / "frameworks")
PLANTER = "trueport.testing.planting.keras_faults"
KERAS = "trueport.frameworks.keras"
ROWS = {"PP": "inputs", "TSS": "hyperparameters", "WB": "parameters", "LH": "hyperparameters", "CG": "structure",
        "QZ": "precision"}  # fmt: skip
PLANTED = [
    ("residual", "weight_noise_30"),
    ("residual", "kernel_transposed"),
    ("residual", "bn_mean_variance"),
    ("residual", "bn_epsilon"),
    ("residual", "operator_missing"),
    ("residual", "branch_missing"),
    ("residual", "flatten_order"),
    ("residual", "dilation"),
    ("residual", "input_bgr"),
    ("depthwise", "pads_shifted"),
    ("depthwise", "clip_bound"),
    ("depthwise", "clip_dropped"),
    ("depthwise", "channels_reversed"),
    ("depthwise", "pool_kind"),
    ("gru", "gate_order"),
    ("gru", "linear_before_reset"),
    ("gru", "recurrent_activation"),
    ("gru", "recurrent_direction"),
    ("gru", "matrix_transposed"),
    ("lstm", "direction_copied"),
    ("lstm", "weight_int8"),
    ("transformer", "embedding_off_by_one"),
    ("transformer", "rescale"),
    ("unet", "resize_mode"),
    ("unet", "concat_order"),
    ("branches", "operands_swapped"),
    ("branches", "leaky_alpha"),
    ("branches", "elu_alpha"),
    ("branches", "norm_groups"),
    ("branches", "activation_missing"),
]


@pytest.fixture(scope="module")
def call(pool, env):
    """call(module, function, toolchain=..., emit=..., **arguments) -> value, or (arrays, value)."""

    def ask(module, function, toolchain="tensorflow", emit=False, **arguments):
        outcome = pool.call(
            env(toolchain),
            module,
            function,
            arguments,
            stage=Stage.RUN,
            emit=emit,
            paths=[str(FOLDER), FRAMEWORKS],
            timeout=240,
        )
        assert not isinstance(outcome, Failure), f"{outcome.message}\n{outcome.log[-1500:]}"
        return (outcome.value.emitted, outcome.value.value) if emit else outcome.value.value

    return ask


@pytest.fixture(scope="module")
def zoo(call, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = call("architectures_keras", "save", kind=kind, folder=str(folder), seed=5)
        return made[kind]

    return get


def feeds(signature, runs=4, seed=0):
    rng = np.random.default_rng(seed)
    found = {}
    for spec in signature["inputs"]:
        shape = [runs, *(size if isinstance(size, int) else 2 for size in spec["shape"])]
        whole = "int" in spec["dtype"]
        array = rng.integers(0, spec.get("maximum", 1) + 1, shape) if whole else rng.normal(0.2, 1.0, shape)
        found[spec["name"]] = array.astype(spec["dtype"])
    return found


def inside(call, path, inputs, wanted, **more):
    """Values computed by the file when every node reads the recorded ones."""
    values, reply = call(
        KERAS, "replay", emit=True, path=path, inputs=inputs, wanted=wanted, budget=1 << 26, trust=False, **more
    )
    assert reply == {"skipped": {}}
    return values


def thinned(cases):
    """Every third case in the normal run, the others with the slow tests."""
    return [case if place % 3 == 0 else pytest.param(*case, marks=pytest.mark.slow) for place, case in enumerate(cases)]


@pytest.mark.parametrize(("kind", "fault"), thinned(PLANTED))
def test_the_named_layer_and_no_other_computes_something_else(call, zoo, tmp_path, kind, fault):
    """Replay both files on the values of the whole one: they differ at the named layers, and only there."""
    path, out = zoo(kind), str(tmp_path / "planted.keras")
    truth = call(PLANTER, "plant", path=path, out=out, kind=fault, seed=zlib.crc32(f"{kind} {fault}".encode()) % 97)
    assert "skipped" not in truth, truth
    assert truth["cause"] == ROWS[truth["row"]]
    assert (
        truth["source_value"] != truth["target_value"]
        or "exchanged" in truth["what"]
        or "rms" in str(truth["source_value"])
    )
    inputs = feeds(call(KERAS, "signature", path=path, trust=False))
    names = call(KERAS, "names", path=path, trust=False)
    values, _ = call(KERAS, "trace", emit=True, path=path, inputs=inputs, wanted=names, budget=1 << 26, trust=False)
    graph = call(KERAS, "graph", path=out, trust=False)
    known = [name for name in call(KERAS, "names", path=out, trust=False) if name in values]
    whole = inside(call, path, inputs, known, given=dict(values), variant="")
    broken = inside(call, out, inputs, known, given={name: values[name] for name in known}, variant="")
    makers = {name: node["name"] for node in graph["nodes"] for name in node["outputs"]}
    differing = {makers[name] for name in known if not np.array_equal(whole[name], broken[name])}
    assert differing
    assert differing <= set(truth["nodes"]), truth


@pytest.mark.parametrize("kind", ["residual", "lstm"])
def test_an_unchanged_build_computes_the_same(call, zoo, tmp_path, kind):
    """What the planter builds from configuration and weights is the model, so that a planted fault is the only one."""
    out = str(tmp_path / "same.keras")
    call("planting_probe", "rebuilt", path=zoo(kind), out=out)
    inputs = feeds(call(KERAS, "signature", path=zoo(kind), trust=False))
    run = {"cases": {"c": inputs}, "precision": "float32", "variant": "default", "trust": False}
    before, after = (call(KERAS, "run", path=path, **run)["c"] for path in (zoo(kind), out))
    assert list(before) == list(after)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_planting_repeats_with_the_same_seed(call, zoo, tmp_path):
    told = [
        call(PLANTER, "plant", path=zoo("residual"), out=str(tmp_path / f"{i}.keras"), kind="one_weight", seed=seed)
        for i, seed in enumerate((4, 4, 5))
    ]
    assert told[0] == told[1]
    assert told[0] != told[2]


def test_kinds_are_those_that_the_model_has_places_for(call, zoo):
    found = call(PLANTER, "kinds", path=zoo("gru"))
    assert found["gate_order"] == 2
    assert found["recurrent_direction"] == 2
    assert "bn_epsilon" not in found
    assert "pool_kind" not in found
    nothing = call(PLANTER, "plant", path=zoo("gru"), out="unused", kind="bn_epsilon", seed=0)
    assert "no place" in nothing["skipped"]


def test_a_fault_that_breaks_the_build_is_skipped_and_said(call, zoo, tmp_path):
    """Another concatenation axis cannot be built in a U-Net whose skips differ in channels."""
    told = call(PLANTER, "plant", path=zoo("unet"), out=str(tmp_path / "x.keras"), kind="concat_axis", seed=0)
    assert "Keras does not build it" in told["skipped"]


@pytest.mark.parametrize(
    "fault", ["activation_missing", "weight_noise_10", "bn_scale_shift", "input_scale", "dilation"]
)
def test_keras_2_files_take_faults_and_stay_keras_2(call, tmp_path, fault):
    path, out = str(tmp_path / "old.h5"), str(tmp_path / "planted.h5")
    call("tf_odd_models", "save_legacy", toolchain="tf-keras", kind="convolutions", path=path)
    truth = call(PLANTER, "plant", toolchain="tf-keras", path=path, out=out, kind=fault, seed=3)
    assert "skipped" not in truth, truth
    signature = call(KERAS, "signature", toolchain="tf-keras", path=out, trust=False)
    assert signature["meta"]["legacy"] is True
    known = {node["name"] for node in call(KERAS, "graph", toolchain="tf-keras", path=out, trust=False)["nodes"]}
    assert set(truth["nodes"]) <= known


SAVED = "trueport.frameworks.tensorflow"
SAVED_PLANTER = "trueport.testing.planting.tensorflow_faults"


@pytest.fixture(scope="module")
def saved(call, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = call("architectures_keras", "save", kind=kind, folder=str(folder), seed=5, form="savedmodel")
        return made[kind]

    return get


SAVED_FAULTS = [
    ("branches", "leaky_alpha"),
    ("unet", "resize_coordinates"),
    ("unet", "concat_order"),
    ("branches", "kernel_flipped"),
    ("branches", "bias_dropped"),
    ("branches", "pool_kind"),
    ("unet", "activation_missing"),
    ("unet", "weight_noise_10"),
]


@pytest.mark.parametrize(("kind", "fault"), thinned(SAVED_FAULTS))
def test_a_planted_saved_model_differs_at_the_named_operators_alone(call, saved, tmp_path, kind, fault):
    path, out = saved(kind), str(tmp_path / "planted")
    truth = call(SAVED_PLANTER, "plant", path=path, out=out, kind=fault, seed=2)
    assert "skipped" not in truth, truth
    assert truth["cause"] == ROWS[truth["row"]]
    inputs = feeds(call(SAVED, "signature", path=path, trust=False))
    graph = call(SAVED, "graph", path=out, trust=False)
    known = set(call(SAVED, "names", path=out, trust=False)) & set(call(SAVED, "names", path=path, trust=False))
    wanted = sorted(known)
    values, _ = call(SAVED, "trace", emit=True, path=path, inputs=inputs, wanted=wanted, budget=1 << 26, trust=False)
    again = []
    for model in (path, out):
        computed, reply = call(
            SAVED, "replay", emit=True, path=model, inputs=inputs, given=dict(values), wanted=wanted, variant="",
            budget=1 << 26, trust=False,
        )  # fmt: skip
        assert reply == {"skipped": {}}
        again.append(computed)
    makers = {name: node["name"] for node in graph["nodes"] for name in node["outputs"]}
    differing = {makers[name] for name in wanted if not np.array_equal(again[0][name], again[1][name])}
    assert differing
    assert differing <= set(truth["nodes"]), truth


def test_saved_models_take_only_what_they_have_places_for(call, saved):
    found = call(SAVED_PLANTER, "kinds", path=saved("branches"))
    assert found["leaky_alpha"] == 1
    assert "resize_coordinates" not in found
