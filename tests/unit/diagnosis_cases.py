"""Small graphs made by hand, traced values and all, for the tests of the search for causes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trueport.align.types import Alignment, Match, Relation
from trueport.artifact import Artifact
from trueport.diagnosis.types import Finding
from trueport.graph import FINE, Graph, Node
from trueport.tracing import Traced

RUNS = 2


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


class Model:
    """A graph in the making. `add` appends a node and gives the name of its output; values are drawn, not computed."""

    def __init__(self, format="onnx", **inputs):
        self.format = format
        self.inputs = {name: self._drawn(name, shape) for name, shape in inputs.items()}
        self.values = dict(self.inputs)
        self.nodes, self.constants, self.outputs = [], {}, []

    @staticmethod
    def _drawn(name, shape):
        return normal(RUNS, *shape, seed=len(name))

    def const(self, name, array):
        self.constants[name] = np.asarray(array)
        return name

    def add(
        self,
        op,
        /,
        *inputs,
        out=None,
        shape=None,
        value=None,
        native=None,
        name=None,
        origin=None,
        fine=False,
        **attributes,
    ):
        prefix = FINE if fine else ""
        out = prefix + (out or f"v{len(self.nodes)}")
        self.nodes.append(
            Node(
                name=prefix + (name or out.removeprefix(FINE)),
                op=op,
                native_op=native or op,
                inputs=tuple(inputs),
                outputs=(out,),
                attributes=attributes,
                origin=origin,
            )
        )
        if value is not None:
            self.values[out] = np.stack([np.asarray(value)] * RUNS)
        elif shape is not None:
            self.values[out] = self._drawn(out, shape)
        return out

    def build(self, *outputs):
        facts = {
            name: {"dtype": array.dtype.name, "shape": list(array.shape)} for name, array in self.constants.items()
        }
        graph = Graph(nodes=tuple(self.nodes), inputs=tuple(self.inputs), outputs=outputs, constants=facts)
        artifact = Artifact(path=Path(f"model.{self.format}"), format=self.format, sha256="", size=0)
        return Traced(
            session=None,
            artifact=artifact,
            inputs=self.inputs,
            graph=graph,
            values=self.values,
            constants=self.constants,
        )


def finding(target, source=None, *, region, source_region=(), kind="struct", causal=1.0, confirmed=True):
    return Finding(
        kind=kind,
        target=target,
        source=source if source is not None else target,
        relation=None,
        region=tuple(region),
        source_region=tuple(source_region),
        accumulated=0.5,
        local=0.5,
        causal=causal,
        confirmed=confirmed,
    )


def matched(pairs, *, order=None, bad=(), consensus=None, alike=None):
    """An alignment of target -> source value names, all agreeing but those in `bad`."""
    matches = {}
    for target, source in pairs.items():
        permutation = (order or {}).get(target, ())
        matches[target] = Match(
            target=target,
            source=source,
            relation=Relation(tuple(permutation)),
            error=0.5 if target in bad else 1e-7,
            how="value",
            ok=target not in bad,
        )
    return Alignment(matches=matches, consensus=consensus or {}, alike=alike or {})
