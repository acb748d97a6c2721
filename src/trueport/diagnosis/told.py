"""What a verification's own words tell about the place, where values cannot: a shape that differs, a node that is refused.

An output of another shape has no value to compare, and a target that does not run has none at all. The operator that
computes that output, or that the runtime names, is then the suspect; nothing proves it by putting values in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from trueport.artifact import Artifact
from trueport.compare.types import OutputReport, Verdict, Verification
from trueport.diagnosis.pair import Pair
from trueport.diagnosis.types import Cause, Suspect
from trueport.graph import Graph, Node
from trueport.outcome import Failure, Stage
from trueport.session import Session

CONFIDENCE = 0.6
"""Nothing was proven, but there is one operator only that the words can mean."""
NAN = float("nan")

SHAPES = re.compile(r"shape (\[[^]]*\]) in the source, (\[[^]]*\]) in the target")
"""How the comparison says that an output has another shape."""
PASSES_ON = ("Identity", "Output", "Cast")

UNLIKE = "nothing in common with the source's"
"""How the evidence says that two weights are not related at all."""
ENOUGH = 2
"""Layers that must be unlike: a single one may as well be a fault."""

_TFLITE = re.compile(r"Node number (\d+) \((\w+)\) failed")
_ONNXRUNTIME = re.compile(r"running (\w+) node\. Name:'([^']*)'")


def other_weights(suspects: Sequence[Suspect]) -> tuple[str, ...]:
    """One sentence when every place that is wrong holds weights unlike the source's: no conversion does that."""
    unlike = [suspect for suspect in suspects if suspect.cause is Cause.PARAMETERS and UNLIKE in suspect.what]
    if len(unlike) < ENOUGH or len(unlike) < len(suspects):
        return ()
    return ("The target holds different weights, of another training or initialisation: no converter is at fault.",)


def misshapen(pair: Pair, verification: Verification) -> tuple[Suspect, ...]:
    """The operators that compute outputs whose shape is not the source's, one suspect each."""
    made: dict[str, Suspect] = {}
    for output in verification.comparison.outputs:
        shapes = SHAPES.search(output.reason)
        if output.verdict is not Verdict.DEVIATES or shapes is None:
            continue
        theirs = _maker(pair.target.graph, pair.target.output_value(output.target))
        ours = _maker(pair.source.graph, pair.source.output_value(output.source))
        if theirs is not None:
            made.setdefault(theirs.name, _of_shape(output, shapes, theirs, ours, len(made) + 1))
    return tuple(made.values())


def _of_shape(output: OutputReport, shapes: re.Match[str], theirs: Node, ours: Node | None, rank: int) -> Suspect:
    return _suspect(
        theirs,
        rank,
        cause=Cause.STRUCTURE,
        what=f"output '{output.target}' has another shape than the source's",
        source=() if ours is None else (ours.shown,),
        values=(f"{output.source}: {shapes[1]}", f"{output.target}: {shapes[2]}"),
    )


def _maker(graph: Graph, value: str) -> Node | None:
    """The operator that computes a value, seen through those that only hand it on."""
    node = graph.producer(value)
    while node is not None and node.op in PASSES_ON and node.inputs and graph.producer(node.inputs[0]) is not None:
        node = graph.producer(node.inputs[0])
    return node


def refused(session: Session, target: Artifact, verification: Verification) -> tuple[Suspect, ...]:
    """The operator at which the target's runtime stopped, when its words name one."""
    shown = session.ask(target, "graph", {}, stage=Stage.TRACE)
    if isinstance(shown, Failure):
        return ()
    graph = Graph.from_wire(shown.value.value)
    node = next((found for read in (_by_number, _by_name) if (found := read(graph, verification.reason))), None)
    if node is None:
        return ()
    return (_suspect(node, 1, cause=Cause.RUNTIME, what=f"the runtime refuses this operator: {verification.reason}"),)


def _by_number(graph: Graph, text: str) -> Node | None:
    """LiteRT counts the operators of a file; our names begin with the count."""
    said = _TFLITE.search(text)
    return (
        _find(graph, lambda node: node.name.startswith(f"{said[1]}:") and node.native_op == said[2]) if said else None
    )


def _by_name(graph: Graph, text: str) -> Node | None:
    said = _ONNXRUNTIME.search(text)
    return _find(graph, lambda node: node.name == said[2] and node.native_op == said[1]) if said else None


def _find(graph: Graph, wanted: Callable[[Node], bool]) -> Node | None:
    return next((node for node in graph.nodes if wanted(node)), None)


def _suspect(
    node: Node,
    rank: int,
    *,
    cause: Cause,
    what: str,
    source: tuple[str, ...] = (),
    values: tuple[str | None, str | None] = (None, None),
) -> Suspect:
    return Suspect(
        rank=rank,
        target_nodes=(node.shown,),
        source_nodes=source,
        accumulated=NAN,
        local=NAN,
        causal=NAN,
        cause=cause,
        what=what,
        source_value=values[0],
        target_value=values[1],
        confidence=CONFIDENCE,
        operator=node.op,
    )
