"""The PyTorch planter and the models that it plants into: every kind fits somewhere, and the truth told is the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.artifact import Artifact
from trueport.graph import Graph
from trueport.outcome import Failure, Stage
from trueport.session import Session, Settings
from trueport.testing.planter import Planted, Planter
from trueport.testing.planting.torch_faults import FAULTS
from trueport.tracing import trace

HERE = str(Path(__file__).parent)
CAUSES = {
    "PP": {"inputs"},
    "WB": {"parameters"},
    "LH": {"hyperparameters"},
    "TSS": {"hyperparameters", "structure"},
    "CG": {"structure"},
    "QZ": {"precision"},
}
"""Row of the taxonomy -> causes that a fault of it can have."""
QUICK = (
    "weight_noise_10",
    "bias_collision",
    "gate_order",
    "bn_mean_variance",
    "dilation",
    "pads_shifted",
    "gelu_approximate",
    "concat_order",
    "activation_missing",
    "activation_extra",
    "reshape_for_transpose",
    "input_layout",
)
"""At least one of every row and way of editing, for every run; the rest is slow."""
HOMES = {
    "gate_order": "lstm", "recurrent_bias": "gru", "direction_copied": "lstm", "gather_index": "gru",
    "embedding_off_by_one": "transformer", "gelu_approximate": "transformer", "matrix_transposed": "transformer",
    "reshape_for_transpose": "transformer", "resize_coordinates": "unet", "resize_mode": "unet", "ceil_mode": "depthwise",
    "elu_alpha": "branches", "leaky_alpha": "branches", "clip_bound": "branches", "clip_dropped": "branches",
    "norm_epsilon": "branches", "operands_swapped": "branches", "transpose_perm": "branches", "input_shifted": "lstm",
    "pads_shifted": "unet", "count_include_pad": "inception", "concat_order": "inception", "stride": "depthwise",
    "mean_to_max": "depthwise", "reduce_axis": "branches", "softmax_axis": "transformer", "bias_collision": "depthwise",
    "concat_axis": "unet",
}  # fmt: skip
"""Kind -> a model that takes it; the others go into "residual"."""
KINDS = ("residual", "inception", "depthwise", "lstm", "gru", "transformer", "unet", "branches")


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=200)) as session:
        yield session


@pytest.fixture(scope="module")
def zoo(session, tmp_path_factory):
    """zoo(kind) -> path of the model; zoo.ask(function, **arguments) for its facts."""
    folder = tmp_path_factory.mktemp("zoo")
    environment = session.environment("torch")
    assert not isinstance(environment, Failure), environment

    def ask(function, **arguments):
        outcome = session.pool.call(
            environment.value.python, "architectures_torch", function, arguments, stage=Stage.LOAD, paths=[HERE]
        )
        assert not isinstance(outcome, Failure), outcome
        return outcome.value.value

    def get(kind):
        if not (folder / f"{kind}.pt2").exists():
            ask("save", kind=kind, folder=str(folder), seed=0)
        return folder / f"{kind}.pt2"

    get.ask = ask
    return get


@pytest.fixture(scope="module")
def planted(session, zoo, tmp_path_factory):
    """planted(kind) -> (planter, fault)."""
    folder = tmp_path_factory.mktemp("planted")
    planters, known = {}, {}

    def get(kind):
        home = HOMES.get(kind, "residual")
        if home not in planters:
            planters[home] = Planter(session, Artifact.open(zoo(home)))
        if kind not in known:
            known[kind] = planters[home].plant(folder / f"{kind}.pt2", kind, 1)
        assert isinstance(known[kind], Planted), f"{kind}: {known[kind]}"
        return planters[home], known[kind]

    return get


def insides(session, path, feeds):
    outcome = trace(session, Artifact.open(path), dict(feeds.of_kind("data")[0].inputs))
    assert not isinstance(outcome, Failure), outcome
    return outcome.value


def alike(left, right):
    return left.shape == right.shape and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


def all_kinds():
    return [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in sorted(FAULTS)]


@pytest.mark.parametrize("kind", all_kinds())
def test_a_fault_is_where_it_is_said_to_be(session, planted, kind):
    planter, fault = planted(kind)
    assert (fault.kind, fault.row, fault.cause) == (kind, FAULTS[kind].row, FAULTS[kind].cause)
    assert fault.cause in CAUSES[fault.row]
    assert fault.effective is True or kind in ("weight_float16", "bn_epsilon", "norm_epsilon"), fault
    before, after = (insides(session, path, planter.feeds) for path in (planter.artifact.path, fault.path))
    assert set(fault.nodes) <= {node.name for node in after.graph.nodes}
    assert after.graph.inputs == before.graph.inputs
    assert after.graph.outputs == before.graph.outputs
    reached = after.graph.downward(
        out for node in after.graph.nodes if node.name in fault.nodes for out in node.outputs
    )
    common = [name for name in after.values if name in before.values and name not in before.inputs]
    moved = {name for name in common if not alike(before.values[name], after.values[name])}
    assert moved & set(after.graph.outputs)
    assert moved <= set(reached), f"{moved - set(reached)} differ, but no way leads there from {fault.nodes}"
    first = next(node for node in after.graph.nodes if moved & set(node.outputs))
    near = {*fault.nodes, *readers_of(after.graph, fault.nodes)}
    assert first.name in near, f"{first.name} is the first that differs, {fault.nodes} are told"


def readers_of(graph: Graph, nodes):
    made = {out for node in graph.nodes if node.name in nodes for out in node.outputs}
    return {node.name for node in graph.nodes if made & set(node.inputs)}


@pytest.mark.parametrize("kind", [kind for kind in QUICK if FAULTS[kind].row == "WB"])
def test_a_fault_in_the_weights_leaves_the_graph_as_it_is(session, planted, kind):
    planter, fault = planted(kind)
    graphs = [
        session.ask(Artifact.open(path), "graph", {}, stage=Stage.TRACE).value.value
        for path in (planter.artifact.path, fault.path)
    ]
    stored = [
        session.ask(Artifact.open(path), "parameters", {}, stage=Stage.TRACE, emit=True).value.emitted
        for path in (planter.artifact.path, fault.path)
    ]
    before, after = ({node["name"]: node for node in graph["nodes"]} for graph in graphs)
    changed = {name for name, array in stored[0].items() if not np.array_equal(array, stored[1][name])}
    if kind == "bias_collision":
        assert not changed
        assert [name for name in before if before[name] != after[name]] == list(fault.nodes)
    else:
        assert before == after
        assert changed
        assert changed <= {name for node in fault.nodes for name in after[node]["inputs"]}


def test_open_sizes_stay_open(session, planted):
    for kind in ("gate_order", "dilation", "input_layout"):
        _, fault = planted(kind)
        signature = session.signature(Artifact.open(fault.path)).value
        assert isinstance(signature.inputs[0].shape[0], str)
        assert signature.outputs[0].shape[0] == signature.inputs[0].shape[0]


def test_equal_seeds_plant_equal_faults_and_others_go_elsewhere(session, zoo, tmp_path):
    artifact = Artifact.open(zoo("transformer"))
    first, again, *others = (
        session.call(
            session.runner(artifact).value,
            _planter_module(),
            "plant",
            {"path": str(artifact.path), "out": str(tmp_path / f"{place}.pt2"), "kind": "one_weight", "seed": seed},
            stage=Stage.CONVERT,
        ).value.value
        for place, seed in enumerate((5, 5, 6, 7))
    )
    assert first == again
    assert len({tuple(truth["nodes"]) for truth in (first, *others)}) >= 2


def _planter_module():
    from types import ModuleType

    return ModuleType("trueport.testing.planting.torch_faults")


def test_the_model_itself_is_not_changed(zoo, planted):
    data = zoo("residual").read_bytes()
    planted("dilation")
    planted("weight_noise_10")
    assert zoo("residual").read_bytes() == data


def test_what_a_model_takes_is_listed(session, zoo):
    kinds = Planter(session, Artifact.open(zoo("lstm"))).kinds()
    assert kinds["gate_order"] == 2  # two layers, the second in both directions
    assert {"weight_noise_10", "input_shifted", "activation_changed"} <= set(kinds)
    assert not {"stride", "concat_order", "embedding_off_by_one"} & set(kinds)


def test_a_place_that_cannot_take_a_fault_says_why(session, zoo, tmp_path):
    planter = Planter(session, Artifact.open(zoo("depthwise")))
    assert "not square" in planter.plant(tmp_path / "out.pt2", "matrix_transposed", 0)
    assert "has no place" in planter.plant(tmp_path / "out.pt2", "gate_order", 0)
    assert not (tmp_path / "out.pt2").exists()


# ---- the zoo ----


def test_the_zoo_is_the_one_that_is_tested(zoo):
    assert tuple(zoo.ask("kinds")) == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_no_weight_is_neutral_and_outputs_depend_on_the_input(zoo, kind):
    facts = zoo.ask("describe", kind=kind, seed=0)
    assert facts["neutral"] == []
    for spread, shape in zip(facts["spreads"], facts["shapes"], strict=True):
        assert spread > 0.02, shape  # far above the noise of float32; below it no fault could be heard
    assert facts["parameters"] < 20_000


def test_equal_seeds_make_equal_models_and_a_batch_can_be_fixed(session, zoo, tmp_path):
    artifacts = []
    for name, seed, batch in (("a", 3, 1), ("b", 3, 1), ("c", 4, 1)):
        (tmp_path / name).mkdir()
        zoo.ask("save", kind="branches", folder=str(tmp_path / name), seed=seed, batch=batch)
        artifacts.append(Artifact.open(tmp_path / name / "branches.pt2"))
    stored = [session.ask(one, "parameters", {}, stage=Stage.TRACE, emit=True).value.emitted for one in artifacts]
    assert all(np.array_equal(array, stored[1][name]) for name, array in stored[0].items())
    assert not all(np.array_equal(array, stored[2][name]) for name, array in stored[0].items())
    assert session.signature(artifacts[0]).value.inputs[0].shape == (1, 4, 18, 22)
