"""What a verification's words tell about the place: another shape, a node that is refused, weights of another training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from trueport import diagnosis
from trueport.artifact import Signature, TensorSpec
from trueport.compare.types import Verdict
from trueport.compare.verdict import compare
from trueport.diagnosis import told
from trueport.diagnosis.types import Cause, Suspect
from trueport.graph import Graph, Node
from trueport.outcome import Failure, Kind, Ok, Stage


def node(name, op, inputs, outputs, native=None):
    return Node(name=name, op=op, native_op=native or op, inputs=tuple(inputs.split()), outputs=tuple(outputs.split()))


def graph(*nodes):
    return Graph(nodes=nodes, inputs=("x",), outputs=("y",))


def traced(made, outputs=None):
    return SimpleNamespace(graph=made, output_value=lambda name: (outputs or {}).get(name, name))


def pair(source, target, **names):
    return SimpleNamespace(source=traced(source, names.get("ours")), target=traced(target, names.get("theirs")))


def compared(left, right, *outputs):
    """The verification of runs of these shapes, as the comparison words it."""
    names = outputs or ("y",)
    signature = Signature(inputs=(), outputs=tuple(TensorSpec(name=n, dtype="float32", shape=None) for n in names))
    rng = np.random.default_rng(0)
    comparison = compare(
        source_signature=signature,
        target_signature=signature,
        cases_kinds={"data": "data"},
        source_runs={"data": {name: rng.standard_normal((4, *left)).astype(np.float32) for name in names}},
        target_runs={"data": {name: rng.standard_normal((4, *right)).astype(np.float32) for name in names}},
        repeat_source=None,
        repeat_target=None,
        floors=[],
        declared_precision="float32",
        renames={},
        layout={},
        task="auto",
        labels=None,
    )
    return SimpleNamespace(comparison=comparison, reason=comparison.reason)


RESHAPED = graph(node("first", "Reshape", "x", "r"), node("second", "Reshape", "r", "y"))
MERGED = graph(node("only", "Reshape", "x", "y"))


def test_the_operator_that_gives_another_shape_is_the_suspect():
    (found,) = told.misshapen(pair(RESHAPED, MERGED), compared((3, 4), (2, 6)))
    assert found.target_nodes == ("only",)
    assert found.source_nodes == ("second",)
    assert (found.operator, found.cause, found.rank) == ("Reshape", Cause.STRUCTURE, 1)
    assert found.source_value == "y: [3, 4]"
    assert found.target_value == "y: [2, 6]"


def test_an_output_of_the_same_shape_is_not_a_matter_of_shapes():
    verification = compared((3, 4), (3, 4))
    assert verification.comparison.verdict is Verdict.DEVIATES
    assert told.misshapen(pair(RESHAPED, MERGED), verification) == ()


def test_operators_that_hand_on_are_seen_through():
    target = graph(node("nms", "NonMaxSuppression", "x", "n"), node("same", "Identity", "n", "y"))
    (found,) = told.misshapen(pair(RESHAPED, target), compared((7,), (8,)))
    assert found.target_nodes == ("nms",)


def test_an_output_that_only_hands_on_an_input_is_the_operator_that_does():
    target = graph(node("same", "Identity", "x", "y"))
    (found,) = told.misshapen(pair(RESHAPED, target), compared((7,), (8,)))
    assert found.target_nodes == ("same",)


def test_a_node_of_several_outputs_is_one_suspect():
    target = graph(node("split", "Split", "x", "y z"))
    found = told.misshapen(pair(RESHAPED, target), compared((7,), (8,), "y", "z"))
    assert [suspect.target_nodes for suspect in found] == [("split",)]


def test_two_nodes_are_ranked():
    target = graph(node("a", "Reshape", "x", "y"), node("b", "Reshape", "x", "z"))
    found = told.misshapen(pair(RESHAPED, target), compared((7,), (8,), "y", "z"))
    assert [(suspect.rank, suspect.target_nodes) for suspect in found] == [(1, ("a",)), (2, ("b",))]


def test_values_may_have_other_names_than_outputs():
    renamed = pair(RESHAPED, graph(node("only", "Reshape", "x", "inner")), theirs={"y": "inner"})
    assert told.misshapen(renamed, compared((3, 4), (2, 6)))[0].target_nodes == ("only",)


def test_an_output_without_a_producer_blames_nobody():
    assert told.misshapen(pair(RESHAPED, graph()), compared((3, 4), (2, 6))) == ()


# -- refused -------------------------------------------------------------------------------------------------------------

LITE = graph(node("0:neg", "Neg", "x", "n", "NEG"), node("10:rev", "Reverse", "n", "y", "REVERSE_V2"))
ONNX = graph(node("resize", "Reshape", "x", "r"), node("/pool", "MaxPool", "r", "y"))


def refused(made, reason):
    wire = {
        "nodes": [
            {
                "name": item.name,
                "op": item.op,
                "native_op": item.native_op,
                "inputs": list(item.inputs),
                "outputs": list(item.outputs),
                "attributes": {},
            }
            for item in made.nodes
        ],
        "inputs": ["x"],
        "outputs": ["y"],
        "constants": {},
    }
    session = SimpleNamespace(ask=lambda *_, **__: Ok(SimpleNamespace(value=wire)))
    return told.refused(session, None, SimpleNamespace(reason=reason))


@pytest.mark.parametrize(
    ("made", "reason", "name"),
    [
        (
            LITE,
            "RuntimeError: Non-contiguous `axes` not supportedNode number 10 (REVERSE_V2) failed to invoke.",
            "10:rev",
        ),
        (LITE, "Node number 0 (NEG) failed to prepare.", "0:neg"),
        (ONNX, "Non-zero status code returned while running Reshape node. Name:'resize' Status Message: no", "resize"),
        (ONNX, "while running MaxPool node. Name:'/pool' Status", "/pool"),
    ],
)
def test_the_node_that_the_runtime_names_is_the_suspect(made, reason, name):
    (found,) = refused(made, reason)
    assert found.target_nodes == (name,)
    assert found.cause is Cause.RUNTIME
    assert reason in found.what


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (LITE, "it simply fails"),
        (LITE, "Node number 1 (NEG) failed to prepare."),
        (LITE, "Node number 10 (ADD) failed to prepare."),
        (LITE, "Node number 3 (TfLiteXNNPackDelegate) failed to prepare."),
        (ONNX, "while running Reshape node. Name:'other' Status"),
        (ONNX, "while running MaxPool node. Name:'resize' Status"),
    ],
)
def test_words_that_name_no_node_of_the_model_blame_none(made, reason):
    assert refused(made, reason) == ()


def test_a_graph_that_cannot_be_read_blames_none():
    failure = Failure(stage=Stage.TRACE, kind=Kind.RAISED, message="no")
    session = SimpleNamespace(ask=lambda *_, **__: failure)
    assert told.refused(session, None, SimpleNamespace(reason="Node number 0 (NEG) failed")) == ()


# -- other weights -------------------------------------------------------------------------------------------------------


def suspect(what, cause=Cause.PARAMETERS):
    return Suspect(
        rank=1,
        target_nodes=("n",),
        source_nodes=(),
        accumulated=1.0,
        local=1.0,
        causal=1.0,
        cause=cause,
        what=what,
        source_value=None,
        target_value=None,
        confidence=1.0,
    )


UNLIKE = suspect(f"weights 'w' has {told.UNLIKE} (correlation 0.01)")
SCALED = suspect("weights 'w' is scaled by 2")


def test_layers_that_are_all_unlike_are_of_another_training():
    (said,) = told.other_weights([UNLIKE, UNLIKE])
    assert "different weights" in said
    assert "no converter is at fault" in said


@pytest.mark.parametrize(
    "suspects", [[], [UNLIKE], [SCALED, SCALED], [UNLIKE, SCALED], [UNLIKE, UNLIKE, suspect("gone", Cause.STRUCTURE)]]
)
def test_anything_else_is_a_fault(suspects):
    assert told.other_weights(suspects) == ()


def test_the_evidence_says_it_in_these_words():
    folder = Path(diagnosis.__file__).parent
    files = [path.name for path in folder.glob("*.py") if told.UNLIKE in path.read_text(encoding="utf-8")]
    assert set(files) - {"told.py"}, "no file of the diagnosis says so any more"
