"""Faults planted into Core ML packages: each moves the output, and its truth names the place."""

from __future__ import annotations

import numpy as np
import pytest
from test_coreml_edit import HERE, Model, X

from trueport.outcome import Failure, Stage


@pytest.fixture(scope="module")
def source(pool, env, tmp_path_factory):
    """The model "picture" of coreml_models.py."""
    path = tmp_path_factory.mktemp("coreml_faults") / "model.mlpackage"
    arguments = {"name": "picture", "out": str(path)}
    outcome = pool.call(env("coreml"), "coreml_models", "build", arguments, stage=Stage.LOAD, paths=HERE)
    assert not isinstance(outcome, Failure), (outcome.message, outcome.log[-1500:])
    return Model(pool, env("coreml"), path)


PLANTER = "trueport.testing.planting.coreml_faults"


def plant(source, kind, out, seed=0):
    arguments = {"path": str(source.path), "out": str(out), "kind": kind, "seed": seed}
    outcome = source._call(PLANTER, "plant", arguments)
    assert not isinstance(outcome, Failure), (outcome.message, outcome.log[-1500:])
    return outcome.value.value


def test_every_planted_fault_moves_the_output_and_tells_its_place(source, tmp_path):
    outcome = source._call(PLANTER, "kinds", {"path": str(source.path)})
    kinds = outcome.value.value
    assert {"weight_noise_10", "pads_shifted", "stride", "norm_epsilon", "activation_missing"} <= set(kinds)
    assert "bn_epsilon" not in kinds  # nothing to plant it into
    clean, known = source.run(x=X)["probabilities"], set(source.nodes())
    for kind in ("weight_noise_10", "pads_shifted", "norm_epsilon", "activation_missing", "branch_missing"):
        out = tmp_path / f"{kind}.mlpackage"
        truth = plant(source, kind, out)
        if "skipped" in truth:
            assert kind == "branch_missing"  # no two branches meet in this model
            assert not out.exists()
            continue
        assert set(truth["nodes"]) & known, truth
        assert truth["source_value"] != truth["target_value"]
        assert np.abs(Model(source.pool, source.python, out).run(x=X)["probabilities"] - clean).max() > 0


def test_planting_is_repeatable_and_seeds_differ(source, tmp_path):
    files = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / f"{number}.mlpackage"
        plant(source, "weight_noise_10", out, seed)
        files.append(next(out.rglob("weight.bin")).read_bytes())
    assert files[0] == files[1] != files[2]
