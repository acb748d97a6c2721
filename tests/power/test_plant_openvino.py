"""Faults planted into OpenVINO models: every one loads, runs, changes an output, and is where it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.outcome import Failure, Stage

MODULE = "trueport.testing.planting.openvino_faults"
MODELS = str(Path(__file__).parents[1] / "frameworks")
NET = ("weight_noise_1", "weight_noise_10", "weight_noise_30", "one_weight", "kernel_transposed", "kernel_flipped",
       "channels_reversed", "bias_noise", "bias_dropped", "bn_fold_scaled", "weight_int8", "weight_float16", "pads_shifted",
       "dilation", "mean_to_max", "activation_missing", "activation_changed", "activation_extra", "operator_repeated",
       "input_scale", "input_mean", "input_bgr", "input_flipped", "input_turned")  # fmt: skip
RECURRENT = ("gate_order", "recurrent_bias", "recurrent_direction", "weight_noise_10")


class Planter:
    def __init__(self, pool, python, folder):
        self.pool, self.python, self.folder = pool, python, folder

    def call(self, module, function, **arguments):
        done = self.pool.call(self.python, module, function, arguments, stage=Stage.LOAD, paths=[MODELS])
        assert not isinstance(done, Failure), done
        return done.value.value

    def model(self, kind):
        place = self.folder / f"{kind}.xml"
        if not place.exists():
            self.call("openvino_models", "save", kind=kind, out=str(place))
        return str(place)

    def plant(self, kind, fault, seed=0):
        out = self.folder / "planted" / f"{kind}-{fault}-{seed}.xml"
        out.parent.mkdir(exist_ok=True)
        return str(out), self.call(MODULE, "plant", path=self.model(kind), out=str(out), kind=fault, seed=seed)

    def graph(self, path):
        return self.call("trueport.frameworks.openvino", "graph", path=path, trust=False)

    def run(self, path, **inputs):
        given = {"path": path, "cases": {"one": inputs}, "precision": "float32", "variant": "default", "trust": False}
        return self.call("trueport.frameworks.openvino", "run", **given)["one"]


@pytest.fixture(scope="module")
def planter(pool, env, tmp_path_factory):
    return Planter(pool, env("openvino"), tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    ("kind", "fault"), [*(("net", name) for name in NET), *(("recurrent", name) for name in RECURRENT)]
)
def test_a_planted_fault_runs_shows_and_is_where_it_says(planter, kind, fault):
    out, truth = planter.plant(kind, fault)
    assert "skipped" not in truth, truth
    names = {node["name"] for node in planter.graph(out)["nodes"]}
    assert truth["nodes"]
    assert set(truth["nodes"]) <= names
    assert truth["kind"] == fault
    shape, name = ((2, 2, 3, 8, 8), "image") if kind == "net" else ((2, 2, 5, 3), "steps")
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    before, after = planter.run(planter.model(kind), **{name: x}), planter.run(out, **{name: x})
    assert before.keys() == after.keys()
    assert all(before[key].shape == after[key].shape for key in before)
    assert any(not np.array_equal(before[key], after[key]) for key in before)


def test_only_the_faulty_node_differs(planter):
    out, truth = planter.plant("net", "pads_shifted")
    before, after = (
        {node["name"]: node for node in planter.graph(path)["nodes"]} for path in (planter.model("net"), out)
    )
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == set(truth["nodes"])


def test_kinds_are_those_that_have_a_place(planter):
    found = planter.call(MODULE, "kinds", path=planter.model("net"))
    assert set(NET) <= set(found)
    assert found["input_scale"] == 1
    assert "gate_order" not in found
    assert planter.call(MODULE, "kinds", path=planter.model("recurrent"))["gate_order"] == 1


def test_seeds_choose_places_and_repeat_themselves(planter):
    told = [planter.plant("net", "weight_noise_10", seed)[1] for seed in (0, 0, 1, 2, 3, 4)]
    assert told[0] == told[1]
    assert len({tuple(truth["nodes"]) for truth in told}) > 1


def test_a_kind_without_a_place_says_why_and_leaves_nothing(planter):
    out, truth = planter.plant("net", "direction_copied")
    assert truth == {"skipped": "the model has no place for 'direction_copied'"}
    out, truth = planter.plant("net", "same_lower")
    assert truth == {"skipped": "pads are explicit"}
    assert not Path(out).exists()
    assert not Path(out).with_suffix(".bin").exists()


def test_gates_change_places_in_weights_and_biases_alike(planter):
    out, truth = planter.plant("recurrent", "gate_order")
    assert (truth["source_value"], truth["target_value"]) == ("fico", "ifco")
    constants = [
        planter.call("openvino_models", "stored", path=path)["constants"] for path in (planter.model("recurrent"), out)
    ]
    for name in ("W", "R", "B"):
        old, new = (np.asarray(one[name]["values"]) for one in constants)
        np.testing.assert_array_equal(new[:, 0:4], old[:, 4:8])
        np.testing.assert_array_equal(new[:, 4:8], old[:, 0:4])
        np.testing.assert_array_equal(new[:, 8:], old[:, 8:])
