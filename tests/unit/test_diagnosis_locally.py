"""Localisation in quantised targets, on a small int8 network that is computed here: each layer judged alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from trueport.align.match import View
from trueport.align.types import Match, Relation
from trueport.artifact import Artifact
from trueport.diagnosis import localize, locally
from trueport.diagnosis.locally import Locally, locate, saturation, sweep
from trueport.diagnosis.pair import Output, Pair
from trueport.diagnosis.types import Cause
from trueport.graph import Graph, Node
from trueport.outcome import Failure, Kind, Ok, Stage
from trueport.tracing import Traced

RUNS, ROWS, WIDTH, DEPTH = 4, 24, 12, 7
SAME = Relation((0, 1))


class Network:
    """x -> (QuantizeLinear ->) DEPTH layers of MatMul and, but for the last, Relu. `grids`: value -> (step, least, most)."""

    def __init__(self, weights, grids=None, scale=()):
        self.weights, self.grids, self.scale = weights, grids or {}, dict(scale)
        self.order = [*(["q"] if grids else []), *(f"h{layer}" for layer in range(DEPTH))]
        self.calls = []

    def graph(self):
        nodes, before = [], "x"
        if "q" in self.order:
            nodes.append(Node(name="q", op="QuantizeLinear", native_op="QUANTIZE", inputs=("x",), outputs=("q",)))
            before = "q"
        for layer in range(DEPTH):
            name = f"h{layer}"
            nodes.append(Node(name=name, op="Gemm", native_op="Gemm", inputs=(before, f"w{layer}"), outputs=(name,)))
            before = name
        constants = {f"w{layer}": {"dtype": "float32", "shape": [WIDTH, WIDTH]} for layer in range(DEPTH)}
        return Graph(nodes=tuple(nodes), inputs=("x",), outputs=(f"h{DEPTH - 1}",), constants=constants)

    def on_grid(self, name, array):
        if name not in self.grids:
            return array.astype(np.float32)
        step, least, most = self.grids[name]
        return (np.clip(np.round(array / step), least, most) * step).astype(np.float32)

    def run(self, inputs, given, wanted=None):
        """Every value as it is computed, its readers reading what is given, which is rounded to its grid."""
        values, made = {"x": inputs}, {}
        for place, name in enumerate(self.order):
            before = values[self.order[place - 1] if place else "x"]
            if name == "q":
                made[name] = self.on_grid(name, before)
            else:
                layer = int(name[1:])
                raw = before @ self.weights[layer] * self.scale.get(layer, 1.0)
                made[name] = self.on_grid(name, raw if layer == DEPTH - 1 else np.maximum(raw, 0))
            values[name] = self.on_grid(name, given[name]) if name in given else made[name]
        return made


class FakeTraced(Traced):
    """A traced network that is cut open here and not in a worker."""

    def replay(self, given, wanted, *, variant="", inputs=None):
        self.network.calls.append((sorted(given), list(wanted)))
        failure = Failure(stage=Stage.TRACE, kind=Kind.RAISED, message="cannot be cut")
        if self.refuses:
            return failure
        try:
            made = self.network.run((inputs or self.inputs)["x"], given)
        except ValueError:  # values of a shape that the next layer cannot read
            return failure
        return Ok(SimpleNamespace(emitted={name: made.get(name, self.inputs["x"]) for name in wanted}, folder=None))


def traced(network, inputs, tmp_path):
    found = FakeTraced(
        session=SimpleNamespace(pool=SimpleNamespace(release=lambda folder: None)),
        artifact=Artifact(path=tmp_path / "m.fake", format="fake", sha256="", size=0),
        inputs={"x": inputs},
        graph=network.graph(),
        values={"x": inputs, **network.run(inputs, {})},
        constants={f"w{layer}": array for layer, array in enumerate(network.weights)},
    )
    found.network, found.refuses = network, False
    return found


@pytest.fixture
def build(tmp_path):
    """build(spoil(weights, grids, scale), inputs=1.0) -> a pair; the grids are calibrated on the source's own values."""

    def make(spoil=lambda weights, grids, scale: None, inputs=1.0, precision="int8"):
        random = np.random.default_rng(5)
        x = random.standard_normal((RUNS, ROWS, WIDTH)).astype(np.float32)
        weights = [
            (random.standard_normal((WIDTH, WIDTH)) * np.sqrt(2 / WIDTH)).astype(np.float32) for _ in range(DEPTH)
        ]
        source = Network(weights)
        grids = {}
        for name, array in {"q": x, **source.run(x, {})}.items():
            step = float(np.abs(array).max()) / 127
            grids[name] = (step, -128, 127)
        clean = Network(weights, dict(grids))
        wrong, scale, ends = [array.copy() for array in weights], {}, dict(grids)
        spoil(wrong, ends, scale)
        target = Network(wrong, ends, scale)
        ours, theirs = traced(source, x * inputs, tmp_path), traced(target, x * inputs, tmp_path)
        last = f"h{DEPTH - 1}"
        views = [View.of(one.graph, one.values) for one in (ours, theirs)]
        floor = np.sqrt(np.mean((clean.run(x, {})[last] - source.run(x, {})[last]) ** 2)) / views[0].infos[last].unit
        pins = (
            Match(target="x", source="x", relation=SAME, error=0.0, how="input", ok=True),
            Match(target=last, source=last, relation=SAME, error=float("nan"), how="output", ok=False),
        )
        pair = Pair(
            source=ours,
            target=theirs,
            ours=views[0],
            theirs=views[1],
            pins=pins,
            outputs=(Output(source=last, target=last, relation=SAME, bad=True, floor=float(floor)),),
            tolerance=0.45,
            precision=precision,
        )
        pair.clean_floor = float(floor)
        return pair

    return make


def transposed(layer):
    def spoil(weights, grids, scale):
        weights[layer] = np.ascontiguousarray(weights[layer].T)

    return spoil


def noisy(layer, share=0.35):
    def spoil(weights, grids, scale):
        random = np.random.default_rng(layer)
        weights[layer] += (share * weights[layer].std() * random.standard_normal((WIDTH, WIDTH))).astype(np.float32)

    return spoil


def halved(name):
    def spoil(weights, grids, scale):
        step, least, most = grids[name]
        grids[name] = (step / 2, least, most)

    return spoil


# -- each operator alone ------------------------------------------------------------------------------------------------


def test_a_clean_target_is_off_by_rounding_only_wherever_it_is_cut(build):
    pair = build()
    alone = sweep(pair, {}, 0.01)
    assert set(alone) == {"q", *(f"h{layer}" for layer in range(DEPTH))}
    assert max(one.error for one in alone.values()) < locally.NOISE["int8"].least
    search = Locally(pair)
    assert search.outliers == []
    assert not search.suspicious()
    assert {name: one.source for name, one in alone.items()} == {
        "q": "x",
        **{name: name for name in alone if name != "q"},
    }


def test_the_error_of_a_fault_does_not_reach_the_values_behind_it(build):
    alone = sweep(build(noisy(1)), {}, 0.01)
    assert alone["h1"].error > 0.2
    assert max(one.error for name, one in alone.items() if name != "h1") < locally.NOISE["int8"].least


def test_accumulated_rounding_exceeds_that_of_one_operator(build):
    pair = build()
    alone = sweep(pair, {}, 0.01)
    last = f"h{DEPTH - 1}"
    assert pair.output_error(pair.outputs[0]) > 1.5 * alone[last].error


def test_a_target_that_cannot_be_cut_keeps_its_pairs_by_value(build):
    pair = build(noisy(3))
    pair.target.refuses = True
    alone = sweep(pair, {}, 0.01)
    assert alone["h2"].source == "h2"
    located = locate(pair)
    assert not located.healed
    assert not any(finding.confirmed for finding in located.findings)


# -- finding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 3, DEPTH - 1])
@pytest.mark.parametrize("fault", [transposed, noisy])
def test_the_layer_that_is_wrong_is_blamed_and_nothing_else(build, layer, fault):
    pair = build(fault(layer))
    located = locate(pair)
    assert [finding.region for finding in located.findings] == [(f"h{layer}",)]
    (finding,) = located.findings
    assert located.healed
    assert finding.confirmed
    assert finding.source == f"h{layer}"
    assert finding.source_region == (f"h{layer}",)
    assert finding.causal > 0.5
    assert finding.local > locally.NOISE["int8"].least
    assert located.before[f"h{DEPTH - 1}"] > 2 * pair.clean_floor


def test_two_faults_are_two_findings_in_order(build):
    def both(weights, grids, scale):
        transposed(1)(weights, grids, scale)
        transposed(4)(weights, grids, scale)

    located = locate(build(both))
    assert [finding.target for finding in located.findings] == ["h1", "h4"]
    assert located.healed


def test_the_usual_tolerance_hides_what_is_seen_alone(build):
    pair = build(noisy(4, share=0.2))
    usual = localize.Localizer(pair).alignment
    assert usual.ok("h4"), "the accumulated error must be within the tolerance, or this test shows nothing"
    assert not Locally(pair).alignment.ok("h4")


def test_float32_targets_are_searched_as_before(build, monkeypatch):
    pair, seen = build(precision="float32"), []
    monkeypatch.setattr(localize, "locate", lambda pair, deadline: seen.append(pair) or "as before")
    assert locate(pair) == "as before"
    assert seen == [pair]


def test_a_target_without_a_wrong_operator_gets_no_finding(build):
    located = locate(build())
    assert located.findings == []
    assert "the rounding of int8" in located.notes[0]


def test_the_threshold_follows_the_noise_of_the_network_within_its_bounds(build):
    search = Locally(build())
    assert search.threshold == locally.NOISE["int8"].least  # four medians of this network lie below it
    finest = Locally(build(), share=0.01)
    errors = [one.error for one in finest.alone.values()]
    assert finest.threshold == pytest.approx(locally.MEDIANS * np.median(errors)), (
        "below it lies the noise of every layer"
    )


def test_an_output_is_right_again_within_its_noise_and_only_when_much_went_away(build):
    search = Locally(build(noisy(2)))
    (output,) = search.pair.outputs
    search.before[output.target] = 100 * output.floor
    assert search._limit(output) == pytest.approx(max(locally.HEALED, 2.0) * output.floor)  # RESIDUE of 100 floors: 2
    search.before[output.target] = 10 * output.floor
    assert search._limit(output) == pytest.approx(locally.HEALED * output.floor)
    search.before[output.target] = 2 * output.floor
    assert search._limit(output) == pytest.approx(output.floor)
    search.before[output.target] = float("inf")
    assert np.isfinite(search._limit(output))


# -- grids --------------------------------------------------------------------------------------------------------------


def test_a_grid_that_ends_too_early_is_one_finding_with_its_range(build):
    pair = build(halved("h2"))
    located = locate(pair)
    assert [finding.target for finding in located.findings] == ["h2"]
    evidence = saturation(pair, located.findings[0])
    assert evidence is not None
    assert (evidence.node, evidence.cause) == ("h2", Cause.PRECISION)
    step, _, most = pair.target.network.grids["h2"]
    beyond = np.mean(pair.source.values["h2"] > (most + 1) * step)
    assert evidence.what.startswith(f"{beyond:.1%} of the elements of what Gemm gives lie outside")
    assert f"{most * step:.4g}" in evidence.what


def test_inputs_beyond_the_calibrated_range_are_told_as_such(build):
    """Proven by the source itself: on the inputs cut off alike, it gives what the target gives."""
    pair = build(inputs=4.0)
    (finding,) = locate(pair).findings
    assert finding.target == "q"
    assert finding.causal > locally.PROVES
    evidence = saturation(pair, finding)
    assert evidence is not None
    assert (evidence.node, evidence.cause) == ("q", Cause.PRECISION)
    assert "of the input lie outside the calibrated range" in evidence.what


def test_a_quantised_input_within_its_range_is_not_blamed(build):
    assert locally._beyond_calibration(build(noisy(2))) is None


@pytest.mark.parametrize("fault", [transposed(2), noisy(2)])
def test_wrong_weights_are_no_saturation(build, fault):
    pair = build(fault)
    (finding,) = locate(pair).findings
    assert saturation(pair, finding) is None


def test_where_an_activation_ends_nothing_was_cut_off(build):
    """A superfluous Relu6 ends at 6 whatever the grid: that is an operator too many, and no calibration."""
    pair = build()
    clipped = np.clip(pair.source.values["h6"] * 6, 0, 6)
    pair.target.values["h6"] = clipped
    pair.source.values["h6"] = pair.ours.values["h6"] * 6
    pair.ours = View.of(pair.source.graph, pair.source.values)
    finding = SimpleNamespace(target="h6", source="h6", relation=SAME)
    assert saturation(pair, finding) is None
    pair.target.values["h6"] = np.clip(pair.source.values["h6"], -4.5, 4.5)
    assert saturation(pair, finding) is not None


def test_saturation_is_a_matter_of_integer_grids_only(build):
    pair = build(halved("h2"))
    (finding,) = locate(pair).findings
    pair.precision = "float16"
    assert saturation(pair, finding) is None


def test_the_prescribed_grid_of_a_sigmoid_is_no_fault(build):
    """Its values may fill a few of the 256 steps only; then one step is a large share of what varies."""
    pair = build()
    search = Locally(pair)
    coarse = locally._step(pair.target.values["h6"]) / pair.ours.infos["h6"].unit
    search.threshold, search.alone["h6"] = coarse / 4, locally.Alone("h6", SAME, coarse * 0.9)
    assert not search._sound("h6")
    nodes = tuple(Node(**{**_fields(node), "op": "Sigmoid"}) for node in pair.theirs.graph.nodes)
    graph = Graph(nodes=nodes, inputs=("x",), outputs=("h6",), constants=pair.theirs.graph.constants)
    pair.theirs = View(graph=graph, values=pair.theirs.values, infos=pair.theirs.infos)
    assert search._sound("h6")
    search.alone["h6"] = locally.Alone("h6", SAME, coarse * 1.1)
    assert not search._sound("h6")


def _fields(node):
    return {name: getattr(node, name) for name in ("name", "op", "native_op", "inputs", "outputs", "attributes")}


def test_the_step_is_the_smallest_distance():
    assert locally._step(np.array([0.5, 1.0, 1.0, 2.5])) == 0.5
    assert locally._step(np.full(3, 7.0)) == 0.0
