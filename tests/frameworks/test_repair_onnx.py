"""Repairs of ONNX files where something else than a node's numbers is wrong: sizes, outputs, inputs, the runtime itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport import api
from trueport.outcome import Failure, Stage
from trueport.repairs.types import Status
from trueport.session import Session, Settings

HERE = [str(Path(__file__).parent)]


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=120)) as session:
        yield session


@pytest.fixture(scope="module")
def ask(pool, env):
    """ask(module, function, **arguments) in the toolchain of ONNX."""

    def get(module: str, function: str, **arguments):
        outcome = pool.call(env("onnx"), module, function, arguments, stage=Stage.LOAD, paths=HERE)
        assert not isinstance(outcome, Failure), outcome
        return outcome.value.value

    return get


@pytest.fixture(scope="module")
def build(ask, tmp_path_factory):
    """build(name) -> path of that model of `repair_models`, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("models")

    def get(name: str, module: str = "repair_models") -> Path:
        path = folder / name.replace(" ", "-") / "model.onnx"
        if not path.parent.exists():
            path.parent.mkdir()
            ask(module, "build", name=name, out=str(path))
        return path

    return get


@pytest.fixture
def repaired(build, session, tmp_path):
    """repaired(source, target) -> the repair, whose file has been verified again."""

    def make(source: str, target: str, **facts):
        facts = {"inputs": None, **facts}
        out = tmp_path / "fixed.onnx"
        done = api.repair(build(source), build(target), out=out, tools=False, session=session, **facts)
        assert done.status is Status.REPAIRED, (done.explanation, done.refused)
        again = api.verify(build(source), out, session=session, **facts)
        assert str(again.verdict) == "faithful", again.reason
        return done

    return make


def changes(done):
    return [edit.change for edit in done.edits]


SIZES = {
    "rows for columns": ("source", ["n", 3, 8, 10]),
    "another size": ("source", ["n", 3, 8, 10]),
    "channels last": ("source", ["n", 3, 8, 10]),
    "batch of 2": ("batch of 4", [4, 3, 8, 10]),
}
"""target -> source, the sizes that it shall have."""


@pytest.mark.parametrize("target", SIZES)
def test_sizes_that_are_declared_wrong_are_set(repaired, target):
    source, shape = SIZES[target]
    done = repaired(source, target)
    assert changes(done) == [{"kind": "set-dimensions", "value": "x", "shape": shape}]


def test_an_output_too_many_is_left_out(repaired):
    assert changes(repaired("source", "surplus output")) == [{"kind": "set-outputs", "outputs": ["y"]}]


def test_an_output_too_many_beside_wrong_weights(repaired):
    kinds = [change["kind"] for change in changes(repaired("source", "surplus output, wrong weights"))]
    assert sorted(kinds) == ["set-outputs", "set-parameter"]


@pytest.mark.parametrize("source", ["source", "batch of 4"])
def test_a_target_of_a_fixed_batch_keeps_it(repaired, ask, source):
    done = repaired(source, "batch of 4, wrong weights")
    assert [change["kind"] for change in changes(done)] == ["set-parameter"]
    assert ask("onnx_edit_models", "sizes", path=str(done.output))["x"] == [4, 3, 8, 10]


def test_weights_in_a_side_file_are_right_in_the_file_that_comes_out(repaired, build, ask, tmp_path):
    beside = build("external").parent / "weights.bin"
    before = beside.read_bytes()
    done = repaired("source", "external")
    assert [change["kind"] for change in changes(done)] == ["set-parameter"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fixed.onnx", "weights.bin"]
    assert beside.read_bytes() == before
    wanted = ask("repair_models", "stored", path=str(build("source")))
    fixed = ask("repair_models", "stored", path=str(done.output))
    assert all(np.array_equal(fixed[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("samples", [2, 6])
def test_the_users_own_samples_however_few(repaired, samples):
    data = np.random.default_rng(samples).normal(size=(samples, 3, 8, 10)).astype(np.float32)
    done = repaired("source", "wrong weights", inputs={"x": data})
    assert [change["kind"] for change in changes(done)] == ["set-parameter"]


TOO_MUCH = {"scaled": ["scale", "shift"], "swapped": ["order"]}
"""target -> the nodes that prepare its input as the source does not."""


@pytest.mark.parametrize("target", TOO_MUCH)
def test_a_preparation_that_the_source_has_not_is_taken_out(repaired, target):
    done = repaired("source", target)
    assert changes(done) == [{"kind": "remove-node", "node": node} for node in TOO_MUCH[target]]


def test_an_order_of_channels_that_the_target_misses_is_put_in(repaired):
    done = repaired("swapped", "source")
    (edit,) = done.edits
    assert edit.rule == "PP inputs"
    assert (edit.kind, edit.change["value"]) == ("insert", "x")
    (step,) = edit.change["steps"]
    assert (step["operator"], step["attributes"]) == ("Gather", {"axis": 1})
    assert edit.arrays[step["constants"][0]].tolist() == [2, 1, 0]


def test_classes_that_stand_one_place_further_are_the_sources(repaired):
    (edit,) = repaired("source", "shifted classes").edits
    assert edit.kind in ("insert", "recompute")


# -- the runtime ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def refused_fusion(build, ask, tmp_path_factory):
    """(a model whose pool the runtime computes right, the same with a padding that it merges wrongly)."""
    folder = tmp_path_factory.mktemp("runtime")
    for name in ("right", "bare"):
        ask("repair_models", "build", name=name, out=str(folder / f"{name}.onnx"))
    return folder / "right.onnx", folder / "bare.onnx"


def test_a_wrong_fusion_is_kept_from_happening(refused_fusion, session, tmp_path):
    """Zeros around negative values have to win; ONNX Runtime's fused pool pads with something smaller."""
    data = {"x": -np.random.default_rng(0).uniform(0.5, 1.5, (12, 2, 4, 4)).astype(np.float32)}
    source, target = refused_fusion
    done = api.repair(source, target, out=tmp_path / "fixed.onnx", inputs=data, tools=False, session=session)
    assert str(done.before.verdict) == "deviates"
    assert done.status is Status.REPAIRED, (done.explanation, done.refused)
    (edit,) = done.edits
    assert edit.rule == "RT runtime"
    assert edit.change == {
        "kind": "insert",
        "value": "padded",
        "steps": [{"operator": "Max", "attributes": {}, "constants": []}],
        "readers": ["pool"],
    }
    assert str(api.verify(source, tmp_path / "fixed.onnx", inputs=data, session=session).verdict) == "faithful"
