"""The TFLite planter: every kind fits somewhere, changes what it says and nothing before it, and tells the truth."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from trueport.artifact import Artifact
from trueport.outcome import Failure, Ok, Stage
from trueport.session import Session, Settings
from trueport.testing.planter import Planted, Planter
from trueport.testing.planting.tflite_faults import FAULTS
from trueport.tracing import trace

HERE = Path(__file__).parent
FRAMEWORKS = HERE.parent / "frameworks"
sys.path.append(str(FRAMEWORKS))

CAUSES = {
    "PP": {"inputs"},
    "WB": {"parameters"},
    "LH": {"hyperparameters"},
    "TSS": {"hyperparameters", "structure"},
    "CG": {"structure"},
    "QZ": {"precision"},
}
"""Row of the taxonomy -> causes that a fault of it can have."""
MODELS = ("pictures", "tokens", "steps", "grid")
SILENT = {"weight_float16": "rounding to float16 is what the float32 kernels' own noise can hide"}
"""Kinds that need not show above the noise."""


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=240)) as session:
        yield session


@pytest.fixture(scope="module")
def planters(session, tmp_path_factory):
    """Model name -> its planter."""
    environment = session.environment("litert")
    assert not isinstance(environment, Failure), environment
    outcome = session.pool.call(
        environment.value.python,
        "plant_tflite_models",
        "write",
        {"folder": str(tmp_path_factory.mktemp("plant"))},
        stage=Stage.LOAD,
        paths=[str(FRAMEWORKS), str(HERE)],
    )
    assert isinstance(outcome, Ok), outcome
    return {name: Planter(session, Artifact.open(Path(path))) for name, path in outcome.value.value.items()}


@pytest.fixture(scope="module")
def planted(planters, tmp_path_factory):
    """planted(kind) -> (model, fault) at the first model that takes it."""
    folder = tmp_path_factory.mktemp("planted")
    known = {}

    def get(kind):
        if kind not in known:
            why = {}
            for name in MODELS:
                found = planters[name].kinds()
                made = planters[name].plant(folder / f"{kind}.tflite", kind, 1) if kind in found else "no place"
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


def alike(left, right):
    return left.shape == right.shape and np.array_equal(left, right, equal_nan=left.dtype.kind == "f")


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_a_fault_is_where_it_is_said_to_be(session, planters, planted, kind):
    name, fault = planted(kind)
    assert (fault.kind, fault.row, fault.cause) == (kind, FAULTS[kind].row, FAULTS[kind].cause)
    assert fault.cause in CAUSES[fault.row]
    assert fault.what
    assert fault.source_value != fault.target_value
    before = insides(session, planters[name].artifact.path, planters[name].feeds)
    after = insides(session, fault.path, planters[name].feeds)
    assert fault.nodes
    assert set(fault.nodes) <= {node.name for node in after.graph.nodes}
    for node in after.graph.nodes:  # in execution order: the first that is new or differs must be one of those named
        values = [(before.values.get(out), after.values[out]) for out in node.outputs if out in after.values]
        if any(old is None or not alike(old, new) for old, new in values):
            assert node.name in fault.nodes, f"{node.name} differs before {fault.nodes} do"
            break
    else:
        raise AssertionError("no value differs")


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_a_fault_shows_and_keeps_what_the_model_takes_and_gives(session, planters, planted, kind):
    name, fault = planted(kind)
    assert fault.effective or kind in SILENT, f"{kind}: {fault.error} over a floor of {fault.floor}"
    before, after = (session.signature(one) for one in (planters[name].artifact, Artifact.open(fault.path)))
    assert before.value.inputs == after.value.inputs
    assert before.value.outputs == after.value.outputs


def test_one_edit_changes_few_constants_and_operators(session, planters, planted):
    """A fault of weights changes one constant (a gate order its six), others change one operator and its neighbours."""
    for kind in sorted(FAULTS):
        name, fault = planted(kind)
        sides = []
        for path in (planters[name].artifact.path, fault.path):
            traced = insides(session, path, planters[name].feeds)
            facts = {node.outputs: (node.op, node.inputs, node.attributes) for node in traced.graph.nodes}
            sides.append((facts, traced.constants))
        (before, left), (after, right) = sides
        nodes = {out for out in before.keys() | after.keys() if before.get(out) != after.get(out)}
        new = {key for key in right if key not in left or not alike(left[key], right[key])}
        assert len(nodes) <= 6, f"{kind} changes {nodes}"
        assert len(new) <= (6 if kind == "gate_order" else 2), f"{kind} makes the constants {new}"
        if FAULTS[kind].row == "CG" or "input" in kind:
            assert nodes, f"{kind} changes no operator"


def test_recorded_shapes_are_those_that_the_model_computes(session, planters, planted):
    for kind in ("padding", "stride", "concat_axis", "input_layout"):
        name, fault = planted(kind)
        after = insides(session, fault.path, planters[name].feeds)
        shapes = session.ask(Artifact.open(fault.path), "graph", {}, stage=Stage.TRACE).value.value["nodes"]
        for node in shapes:
            pads = node["attributes"].get("pads")
            if node["op"] != "Conv" or not pads:
                continue
            size, out = (after.values[value].shape[2] for value in (node["inputs"][0], node["outputs"][0]))
            step, window = node["attributes"]["strides"][0], node["attributes"]["kernel_shape"][0]
            assert (size + pads[0] + pads[2] - window) // step + 1 == out, f"{kind}: {node['name']}"


# -- the effect, computed apart


@pytest.fixture(scope="module")
def answer(session):
    """answer(path, inputs) -> the first output of a run."""

    def run(path, inputs):
        arguments = {"cases": {"case": inputs}, "precision": "float32", "variant": "builtin"}
        outcome = session.ask(Artifact.open(path), "run", arguments, stage=Stage.RUN)
        assert isinstance(outcome, Ok), outcome
        return next(iter(outcome.value.value["case"].values()))

    return run


IMAGES = np.random.default_rng(0).normal(0.2, 1.0, (3, 1, 8, 8, 3)).astype(np.float32)
ARRIVALS = {
    "input_scale": lambda x: x / 255,
    "input_mean": lambda x: (x - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225]),
    "input_bgr": lambda x: x[..., ::-1],
    "input_flipped": lambda x: x[..., ::-1, :],
    "input_turned": lambda x: np.swapaxes(x, 2, 3),
    "input_layout": lambda x: x.reshape(3, 1, 3, 8, 8).transpose(0, 1, 3, 4, 2),
}


@pytest.mark.parametrize("kind", ARRIVALS)
def test_a_changed_input_arrives_as_told(planters, answer, tmp_path, kind):
    planter = planters["pictures"]
    fault = planter.plant(tmp_path / "out.tflite", kind, 0)
    wrong = ARRIVALS[kind](IMAGES).astype(np.float32)
    expected = answer(planter.artifact.path, {"image": np.ascontiguousarray(wrong)})
    # the same float32 arithmetic but for the division by 255, which is a product here
    np.testing.assert_allclose(answer(fault.path, {"image": IMAGES}), expected, atol=2e-6)
    assert not np.allclose(expected, answer(planter.artifact.path, {"image": IMAGES}), atol=1e-4)


def test_an_embedding_off_by_one_reads_the_next_row(planters, answer, tmp_path):
    planter = planters["tokens"]
    fault = planter.plant(tmp_path / "out.tflite", "embedding_off_by_one", 0)
    tokens = np.random.default_rng(0).integers(0, 9, (4, 1, 6)).astype(np.int32)
    expected = answer(planter.artifact.path, {"tokens": (tokens + 1) % 9})
    np.testing.assert_array_equal(answer(fault.path, {"tokens": tokens}), expected)


def test_a_softmax_at_the_end_can_be_missing(planters, answer, tmp_path):
    planter = planters["pictures"]
    made = (planter.plant(tmp_path / f"{seed}.tflite", "activation_missing", seed) for seed in range(12))
    fault = next(fault for fault in made if fault.source_value == "SOFTMAX")
    powers = np.exp(answer(fault.path, {"image": IMAGES}).astype(np.float64))
    expected = answer(planter.artifact.path, {"image": IMAGES})
    np.testing.assert_allclose(powers / powers.sum(axis=-1, keepdims=True), expected, atol=1e-6)  # of float32
    (node,) = fault.nodes
    assert ":softmax_" in node, "the layer before it now computes the output"


def test_int8_weights_stay_on_their_grid(session, planters, tmp_path):
    """Whatever is planted into quantised weights, they are multiples of their scale."""
    planter = planters["grid"]
    for kind in ("weight_noise_10", "one_weight", "channels_reversed", "bias_noise", "bias_dropped"):
        fault = planter.plant(tmp_path / "out.tflite", kind, 3)
        constants = session.ask(Artifact.open(fault.path), "graph", {}, stage=Stage.TRACE).value.value["constants"]
        stored = session.ask(Artifact.open(fault.path), "parameters", {}, stage=Stage.TRACE, emit=True).value.emitted
        (changed,) = (name for name in constants if name.endswith("/changed"))
        scale = constants[changed]["quantization"]["scale"][0]
        steps = stored[changed] / scale
        assert np.abs(steps - np.rint(steps)).max() < 1e-3, "of float32 products up to 900 steps"


def test_a_fault_in_a_loop_is_that_of_the_operator_that_runs_it(planters, tmp_path):
    fault = planters["steps"].plant(tmp_path / "out.tflite", "loop_gate_order", 0)
    (node,) = fault.nodes
    assert node.endswith(":count"), "the WHILE, by its first result"


# -- the planter itself


def test_equal_seeds_plant_equal_faults_and_others_go_elsewhere(planters, tmp_path):
    planter = planters["pictures"]
    first, again = (planter.plant(tmp_path / f"{name}.tflite", "weight_noise_10", 5) for name in "ab")
    assert first.path.read_bytes() == again.path.read_bytes()
    assert (first.nodes, first.what) == (again.nodes, again.what)
    places = {planter.plant(tmp_path / "c.tflite", "weight_noise_10", seed).nodes for seed in range(8)}
    assert len(places) >= 3


def test_the_model_itself_is_not_changed(planters, tmp_path):
    path = planters["tokens"].artifact.path
    before = path.read_bytes()
    planters["tokens"].plant(tmp_path / "out.tflite", "one_weight", 2)
    assert path.read_bytes() == before


def test_what_does_not_fit_is_skipped_with_the_reason(planters, tmp_path):
    out = tmp_path / "out.tflite"
    assert "not square" in planters["pictures"].plant(out, "matrix_transposed", 0)
    assert "no place" in planters["steps"].plant(out, "resize_mode", 0)
    assert "grid already" in planters["grid"].plant(out, "weight_int8", 0)
    assert not out.exists()


def test_places_are_counted(planters):
    found = planters["pictures"].kinds()
    assert found["kernel_flipped"] == 3
    assert found["leaky_alpha"] == 1
    assert "gate_order" not in found
    assert planters["steps"].kinds()["loop_gate_order"] == 1
    assert set().union(*(planter.kinds() for planter in planters.values())) == set(FAULTS)


@pytest.fixture(scope="module")
def ask(session):
    """ask(function, ...) -> what that function of the planter returns."""
    environment = session.environment("litert")

    def run(function, **arguments):
        module = "trueport.testing.planting.tflite_faults"
        return session.pool.call(environment.value.python, module, function, arguments, stage=Stage.CONVERT)

    return run


def everything(session, ask, path, folder):
    """Plant every kind that has a place: kind -> truth or reason; what is planted loads, runs and names nodes that exist."""
    found = {}
    for kind in value_of(ask("kinds", path=str(path))):
        out = folder / f"{kind}.tflite"
        found[kind] = value_of(ask("plant", path=str(path), out=str(out), kind=kind, seed=0))
        if "skipped" in found[kind]:
            continue
        assert out.read_bytes() != Path(path).read_bytes()
        graph = session.ask(Artifact.open(out), "graph", {}, stage=Stage.TRACE)
        names = {node["name"] for node in value_of(graph)["nodes"]}
        assert found[kind]["nodes"], kind
        assert set(found[kind]["nodes"]) <= names, kind
    return found


def value_of(outcome):
    assert isinstance(outcome, Ok), outcome
    return outcome.value.value


HAND_MADE = {
    "linear": {"weight_noise_10", "channels_reversed", "bias_dropped", "fused_activation_missing", "input_scale"},
    "two_in_two_out": {"cast_island", "input_scale"},
    "quantised": {"weight_scale", "bias_noise", "one_weight"},
    "half_weights": set(),
    "dynamic_range": {"one_weight", "weight_scale"},
    "lookup": {"embedding_off_by_one", "input_shifted"},
    "recurrent": {"weight_noise_30", "bias_dropped"},
    "counter": {"input_scale"},
    "branches": {"input_scale"},
    "same_names": {"input_scale"},
    "convolution": {"pads_shifted", "kernel_flipped", "fused_activation_changed"},
    "small_integers": {"input_scale"},
    "stray_axis": {"weight_scale", "bias_noise"},
}
"""Model of the frameworks' tests -> kinds that must be planted there, whatever else is."""


@pytest.fixture(scope="module")
def hand_made(session, tmp_path_factory):
    folder = {"folder": str(tmp_path_factory.mktemp("hand"))}
    python = session.environment("litert").value.python
    return value_of(
        session.pool.call(python, "tflite_models", "write", folder, stage=Stage.LOAD, paths=[str(FRAMEWORKS)])
    )


@pytest.mark.parametrize("name", HAND_MADE)
def test_odd_models_take_faults_or_say_why_not(session, ask, hand_made, tmp_path, name):
    found = everything(session, ask, hand_made[name], tmp_path)
    planted = {kind for kind, truth in found.items() if "skipped" not in truth}
    assert planted >= HAND_MADE[name], found
    assert all(truth["skipped"] for kind, truth in found.items() if kind not in planted)


def test_a_model_without_kernels_cannot_be_planted_into(ask, hand_made, tmp_path):
    out = tmp_path / "out.tflite"
    outcome = ask("plant", path=hand_made["flex"], out=str(out), kind="input_scale", seed=0)
    assert isinstance(outcome, Failure)
    assert "FlexErf" in outcome.message


def test_an_unknown_kind_is_told(ask, hand_made, tmp_path):
    outcome = ask("plant", path=hand_made["linear"], out=str(tmp_path / "x"), kind="gremlin", seed=0)
    assert isinstance(outcome, Failure)
    assert "unknown fault kind 'gremlin'; known are activation_changed" in outcome.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision", "least"),
    [("residual", "float32", 33), ("residual", "float16", 32), ("residual", "int8", 28), ("gru", "float32", 14),
     ("transformer", "float32", 27)],
)  # fmt: skip
def test_converted_models_take_faults(session, ask, env, pool, tmp_path, kind, precision, least):
    """What TensorFlow's converter writes: loops, float16 behind DEQUANTIZE, full int8."""
    from test_tf2onnx import convert
    from tf_support import Tf, feeds

    tf = Tf(pool, env("tensorflow"))
    source = tf("keras_models", "save", kind=kind, folder=str(tmp_path), seed=3)
    signature = tf.signature("keras", source)
    asked = {} if precision == "float32" else {"precision": precision}
    inputs = feeds(signature, runs=4, batch=1)
    assert isinstance(convert(tf, "tflite-keras", source, tmp_path / "m.tflite", inputs, signature, **asked), Ok)
    found = everything(session, ask, tmp_path / "m.tflite", tmp_path)
    assert sum("skipped" not in truth for truth in found.values()) >= least, found


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["mlperf_tiny_vww/vww_96_int8.tflite", "movie_review/movie_review.tflite"])
def test_real_models_take_faults(session, corpus, tmp_path, name):
    planter = Planter(session, Artifact.open(corpus / "models" / name))
    made = {}
    for kind in ("weight_noise_30", "bias_dropped", "channels_reversed", "softmax_beta", "operator_repeated"):
        made[kind] = planter.plant(tmp_path / f"{kind}.tflite", kind, 0)
    planted = [fault for fault in made.values() if isinstance(fault, Planted)]
    assert len(planted) >= 4, made
    assert sum(bool(fault.effective) for fault in planted) >= 3
