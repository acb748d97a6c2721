"""The ONNX planter: every kind fits somewhere, changes what it says and nothing before it, and tells the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.artifact import Artifact
from trueport.errors import UsageError
from trueport.outcome import Failure, Stage
from trueport.session import Session, Settings
from trueport.testing import fault_kinds, plant
from trueport.testing.planter import Planted, Planter, distance
from trueport.testing.planting.onnx_faults import FAULTS
from trueport.tracing import trace

HERE = str(Path(__file__).parent)
CAUSES = {
    "PP": {"inputs"},
    "ID": {"hyperparameters"},
    "WB": {"parameters"},
    "LH": {"hyperparameters"},
    "TSS": {"hyperparameters", "structure"},
    "CG": {"structure"},
    "QZ": {"precision"},
}
"""Row of the taxonomy -> causes that a fault of it can have."""
MODELS = ("pictures", "tokens", "steps", "pooled")


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=120)) as session:
        yield session


@pytest.fixture(scope="module")
def planters(session, tmp_path_factory):
    """Model name -> its planter."""
    folder = tmp_path_factory.mktemp("plant")
    made = {}
    environment = session.environment("onnx")
    assert not isinstance(environment, Failure), environment
    for name in (*MODELS, "deaf"):
        out = str(folder / f"{name}.onnx")
        arguments = {"name": name, "out": out}
        outcome = session.pool.call(
            environment.value.python, "plant_models", "build", arguments, stage=Stage.LOAD, paths=[HERE]
        )
        assert not isinstance(outcome, Failure), outcome
        made[name] = Planter(session, Artifact.open(Path(out)))
    return made


@pytest.fixture(scope="module")
def planted(planters, tmp_path_factory):
    """planted(kind) -> (model, fault) at the first model of the three that takes it."""
    folder = tmp_path_factory.mktemp("planted")
    known = {}

    def get(kind):
        if kind not in known:
            why = {}
            for name in MODELS:
                found = planters[name].kinds()
                made = planters[name].plant(folder / f"{kind}.onnx", kind, 1) if kind in found else "no place"
                if isinstance(made, Planted):
                    known[kind] = name, made
                    break
                why[name] = made
            else:
                raise AssertionError(f"{kind} fits nowhere: {why}")
        return known[kind]

    return get


def insides(session, path, feeds):
    """The graph, and every value on the first of the feeds' cases."""
    outcome = trace(session, Artifact.open(path), dict(feeds.of_kind("data")[0].inputs))
    assert not isinstance(outcome, Failure), outcome
    return outcome.value


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_a_fault_is_where_it_is_said_to_be(session, planters, planted, kind):
    name, fault = planted(kind)
    assert (fault.kind, fault.row, fault.cause) == (kind, FAULTS[kind].row, FAULTS[kind].cause)
    assert fault.cause in CAUSES[fault.row]
    assert fault.what
    before = insides(session, planters[name].artifact.path, planters[name].feeds)
    after = insides(session, fault.path, planters[name].feeds)
    known = {node.name for node in after.graph.nodes}
    assert fault.nodes
    assert set(fault.nodes) <= known
    for node in after.graph.nodes:  # in execution order: the first that differs must be one of those named
        same = [out for out in node.outputs if out in before.values and out in after.values]
        moved = [out for out in same if not alike(before.values[out], after.values[out])]
        if moved:
            assert node.name in fault.nodes, f"{node.name} differs before {fault.nodes} do"
            break
    else:
        raise AssertionError("no value differs")


def alike(left, right):
    return left.shape == right.shape and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_a_fault_keeps_what_the_model_takes_and_gives(session, planters, planted, kind):
    name, fault = planted(kind)
    assert fault.effective is True, f"{kind}: {fault.error} over a floor of {fault.floor}"
    before, after = (session.signature(one) for one in (planters[name].artifact, Artifact.open(fault.path)))
    assert [(spec.name, spec.dtype) for spec in before.value.inputs] == [
        (spec.name, spec.dtype) for spec in after.value.inputs
    ]
    assert [spec.name for spec in before.value.outputs] == [spec.name for spec in after.value.outputs]


def test_most_nodes_stay_as_they_are(session, planters, planted):
    """One edit: nodes whose facts differ between the two graphs are few, whatever the kind."""
    for kind in FAULTS:
        name, fault = planted(kind)
        graphs = [
            session.ask(Artifact.open(path), "graph", {}, stage=Stage.TRACE).value.value["nodes"]
            for path in (planters[name].artifact.path, fault.path)
        ]
        before, after = ({node["name"]: node for node in nodes} for nodes in graphs)
        differing = {node for node in before.keys() | after.keys() if before.get(node) != after.get(node)}
        assert 0 < len(differing) <= 6, f"{kind} changes {differing}"


def test_equal_seeds_plant_equal_faults_and_others_go_elsewhere(planters, tmp_path):
    planter = planters["pictures"]
    first, again = (planter.plant(tmp_path / f"{name}.onnx", "weight_noise_10", 5) for name in "ab")
    assert first.path.read_bytes() == again.path.read_bytes()
    places = {planter.plant(tmp_path / "c.onnx", "weight_noise_10", seed).nodes for seed in range(8)}
    assert len(places) >= 3


def test_the_model_itself_is_not_changed(planters, tmp_path):
    path = planters["tokens"].artifact.path
    before = path.read_bytes()
    plant(path, tmp_path / "out.onnx", kind="one_weight", seed=2)
    assert path.read_bytes() == before


def test_noise_of_ten_times_the_level_moves_the_output_about_ten_times_as_far(planters, tmp_path):
    planter = planters["deaf"]
    seed = next(
        seed for seed in range(9) if planter.plant(tmp_path / "n.onnx", "weight_noise_1", seed).nodes == ("n0_MatMul",)
    )
    small, large = (
        planter.plant(tmp_path / "n.onnx", kind, seed).error for kind in ("weight_noise_1", "weight_noise_10")
    )
    assert large == pytest.approx(10 * small, rel=0.2)


def test_a_fault_that_nobody_can_hear_is_marked(planters, tmp_path):
    found = [planters["deaf"].plant(tmp_path / f"{seed}.onnx", "matrix_transposed", seed) for seed in range(6)]
    made = {fault.nodes: fault.effective for fault in found if isinstance(fault, Planted)}
    assert made[("n0_MatMul",)] is True
    assert made[("n1_Gemm",)] is False


def test_a_drawn_kind_fits_and_depends_on_the_seed(planters, tmp_path, session):
    path = planters["steps"].artifact.path
    kinds = {plant(path, tmp_path / "out.onnx", seed=seed, session=session).kind for seed in range(6)}
    assert len(kinds) >= 3
    assert kinds <= set(fault_kinds(path, session=session))


def test_what_cannot_be_planted_is_said_with_its_cure(planters, tmp_path, session):
    path = planters["steps"].artifact.path
    out = tmp_path / "out.onnx"
    with pytest.raises(UsageError, match=r'no place for "same_lower"; it takes .*gate_order'):
        plant(path, out, kind="same_lower", session=session)
    with pytest.raises(UsageError, match=r"'kernel_flipped' cannot be planted .*no kernel of several taps"):
        plant(path, out, kind="kernel_flipped", session=session)
    with pytest.raises(UsageError, match="is the source itself"):
        plant(path, path, kind="gate_order", session=session)
    assert not out.exists()
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    with pytest.raises(UsageError, match="not a model of a known format"):
        fault_kinds(text, session=session)


def test_a_format_without_a_planter_is_refused(tmp_path, session):
    saved = Artifact(path=tmp_path, format="fake", sha256="", size=0)
    with pytest.raises(UsageError, match="cannot be planted into a fake; convert it to onnx"):
        Planter(session, saved).kinds()


def test_distance_measures_the_change_over_the_input_dependent_part():
    rng = np.random.default_rng(0)
    before = 100.0 + rng.normal(0, 2.0, (500, 3))
    assert distance(before, before) == 0.0
    assert distance(before, before + 1.0) == pytest.approx(0.5, rel=0.05)
    assert distance(before, (before + 1.0)[:4]) == pytest.approx(0.5, rel=0.05)
    assert distance(before, np.zeros((500, 4))) == float("inf")
    holed = before.copy()
    holed[3, 1] = np.nan
    assert distance(before, holed) == float("inf")
    assert distance(holed, holed) == 0.0
    assert distance(before, None) == 0.0
    assert distance(np.ones((4, 2)), np.full((4, 2), 1.5)) == pytest.approx(0.5)
