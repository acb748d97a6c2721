"""The comparison with other tools judges them rightly: reading order, thresholds, neighbours, failures and alarms."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from trueport.artifact import Artifact
from trueport.graph import Graph, Node
from trueport.outcome import Failure, Stage
from trueport.session import Session, Settings
from trueport.testing.planter import Planted, Planter

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import peers  # noqa: E402
import peers_page  # noqa: E402

CHAIN = Graph(
    nodes=tuple(
        Node(name=name, op="Relu", inputs=(before,), outputs=(after,))
        for name, before, after in (("a", "x", "u"), ("b", "u", "v"), ("c", "v", "w"), ("d", "w", "y"))
    ),
    inputs=("x",),
    outputs=("y",),
)
TOOL = peers.Peer(name="tool", function="polygraphy", toolchain="onnx")


def row(value, bad, error):
    return {"value": value, "bad": bad, "error": error}


def truth(*nodes):
    return Planted(
        path=Path("m.onnx"),
        kind="k",
        row="WB",
        cause="parameters",
        nodes=nodes,
        what="",
        source_value=0,
        target_value=1,
    )


class Stub(peers.Contest):
    """A contest whose tools have answered, about the chain."""

    def __init__(self, rows, failed=None):
        self.answer = {"failed": failed} if failed else {"rows": rows, "seconds": 1.0, "versions": {"tool": "1"}}

    def _reply(self, peer, ground, target):
        return self.answer

    def _graph(self, artifact):
        return CHAIN


def asked(rows, peer=TOOL, planted=None, clean=None):
    return Stub(rows)._asked(peer, None, None, planted, clean)


def test_the_first_mismatch_is_that_of_the_graph_and_the_largest_that_of_the_report():
    said = asked(
        [row("y", True, 9.0), row("w", True, 2.0), row("v", True, 1.0), row("u", False, 0.0)], planted=truth("b")
    )
    assert (said["first_named"], said["worst_named"]) == ("b", "d")
    assert said["first_right"]
    assert not said["worst_right"]
    assert said["noticed"]
    assert (said["compared"], said["alarms"]) == (4, 3)


@pytest.mark.parametrize(("named", "near"), [("u", True), ("w", True), ("y", False)])
def test_beside_is_right_before_or_behind(named, near):
    said = asked([row(named, True, 1.0)], planted=truth("b"))
    assert not said["first_right"]
    assert said["first_near"] is near


def test_nothing_over_the_threshold_names_nothing():
    said = asked([row("u", False, 1e-6)], planted=truth("a"))
    assert not said["noticed"]
    assert not said["first_right"]
    assert not said["first_near"]
    assert said["first_named"] == ""


def test_values_that_no_node_computes_do_not_count():
    said = asked([row("x", True, 5.0), row("elsewhere", True, 5.0)])
    assert said["compared"] == 0
    assert not said["noticed"]


def test_rows_of_one_value_count_one_by_one_or_by_the_best():
    rows = [row("u", True, 7.0), row("u", False, 0.0), row("v", True, 1.0)]
    merged = peers.Peer(name="tool", function="polygraphy", toolchain="onnx", merged=True)
    assert asked(rows, planted=truth("b"))["first_named"] == "a"
    said = asked(rows, merged, truth("b"))
    assert said["first_named"] == "b"
    assert said["compared"] == 2


def test_without_a_threshold_the_clean_pair_gives_it():
    silent = peers.Peer(name="tool", function="activations", toolchain="onnx", threshold=False)
    clean = asked([row("u", None, -90.0), row("v", None, -80.0)], silent)
    assert not clean["noticed"]
    assert clean["threshold"] is False
    almost = -80.0 + peers.DECIBELS - 1
    said = asked([row("u", None, almost), row("v", None, -20.0)], silent, truth("b"), clean)
    assert said["first_named"] == "b"
    assert said["alarms"] == 1


def test_a_tool_that_fails_is_reported_with_its_reason():
    said = Stub([], failed="raised: no such operator")._asked(TOOL, None, None, truth("a"), {})
    assert said == {"failed": "raised: no such operator"}


# -- the page


def case(mode, **tools):
    return {"mode": mode, "group": "A → B", "model": "m", "kind": "k", "tools": tools}


def verdict(noticed=True, first=True, near=True, alarms=1, **more):
    found = {"noticed": noticed, "first_right": first, "worst_right": first, "first_near": near, "alarms": alarms}
    return {"seconds": 2.0, "compared": 10, "threshold": True, **found, **more}


def cells(text, tool):
    line = next(line for line in text.splitlines() if line.startswith(f"| {tool} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rates_count_every_fault_and_an_exception_names_no_node():
    said = peers_page.tables(
        [
            case("clean", check=verdict(noticed=False, alarms=0), other={"failed": "x"}),
            case("fault", check=verdict(), other=verdict()),
            case("fault", check=verdict(first=False), other={"failed": "raised: no"}),
        ]
    )
    assert "2 faults, 1 clean pairs" in said
    assert cells(said, "check")[1:5] == ["2 of 2 (100 %)", "1 of 2 (50 %)", "1 of 2 (50 %)", "2 of 2 (100 %)"]
    assert cells(said, "check")[6] == "0 of 1 (0 of 10 values)"
    assert cells(said, "other")[1:3] == ["2 of 2 (100 %), 1 by raising", "1 of 2 (50 %)"]
    assert cells(said, "other")[6] == "0 of 0, 1 raised"


def test_alarms_on_clean_pairs_are_values_a_verdict_or_nothing_to_say():
    assert peers_page._alarms([verdict(alarms=3), verdict(alarms=0, noticed=False)]) == "1 of 2 (3 of 20 values)"
    mine = {"alarms": 0, "noticed": False, "seconds": 1.0}
    assert peers_page._alarms([{**mine, "verdict": "faithful"}]) == "0 of 1"
    assert peers_page._alarms([{**mine, "verdict": "incomparable"}]) == "1 of 1"
    assert peers_page._alarms([verdict(threshold=False)]) == "no threshold"


def test_only_the_diagnosis_can_name_a_cause():
    mine, other = verdict(cause_right=True), verdict(cause_right=True)
    said = peers_page.tables([case("fault", **{peers_page.OURS: mine}, check=other)])
    assert cells(said, peers_page.OURS)[5] == "1 of 1 (100 %)"
    assert cells(said, "check")[5] == "–"


def test_the_page_shows_every_fault_and_the_versions():
    tools = {
        "tool": verdict(versions={"onnxruntime": "1.2.3"}),
        "other": verdict(first=False, versions={"onnx": "9.9"}),
    }
    page = peers_page.page([case("fault", **tools)])
    assert "onnx 9.9, onnxruntime 1.2.3" in page
    assert "| m | k | 1 | b |" in page


# -- a tool itself


def test_activations_point_at_the_changed_node(tmp_path):
    with Session(Settings(timeout=120)) as session:
        environment = session.environment("onnx")
        assert not isinstance(environment, Failure), environment

        def call(module, function, folder, **arguments):
            outcome = session.pool.call(
                environment.value.python, module, function, arguments, stage=Stage.RUN, paths=[str(folder)]
            )
            assert not isinstance(outcome, Failure), outcome
            return outcome.value.value

        clean = tmp_path / "pictures.onnx"
        call("plant_models", "build", Path(__file__).parent, name="pictures", out=str(clean))
        planter = Planter(session, Artifact.open(clean))
        planted = planter.plant(tmp_path / "broken.onnx", "bias_noise", 3)
        assert isinstance(planted, Planted)
        inputs = dict(planter.feeds.of_kind("data")[0].inputs)
        given = {"reference": str(clean), "inputs": inputs}
        same = call("peers_tools", "activations", BENCHMARKS, target=str(clean), **given)
        broken = call("peers_tools", "activations", BENCHMARKS, target=str(planted.path), **given)
        graph = Graph.from_wire(session.ask(Artifact.open(clean), "graph", {}, stage=Stage.LOAD).value.value)
    silent = max(one["error"] for one in same["rows"])
    assert silent < -200, "the same file twice has no noise at all"
    loud = {one["value"] for one in broken["rows"] if one["error"] > silent + peers.DECIBELS}
    first = min(loud, key=lambda value: graph.producers.get(value, np.inf))
    assert graph.producer(first).name in planted.nodes
