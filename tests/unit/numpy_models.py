"""Small models made of NumPy functions, traced and replayed in this process: ground truth for alignment and localisation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from trueport.align.match import View
from trueport.align.types import Match, Relation
from trueport.diagnosis.pair import Output, Pair
from trueport.graph import Graph, Node
from trueport.outcome import Ok
from trueport.tracing import Traced
from trueport.worker.pool import Reply

RNG = np.random.default_rng(5)
W1, W2 = RNG.normal(size=(3, 6)), RNG.normal(size=(6, 4))
B1 = RNG.normal(size=6)


class Net:
    """Nodes in order: (output, operator, function, inputs). The values have no run axis inside the functions."""

    def __init__(self, nodes, inputs=("x",), outputs=None):
        self.nodes = nodes
        self.inputs = inputs
        self.outputs = outputs or (nodes[-1][0],)

    def graph(self):
        nodes = tuple(
            Node(name=f"n_{out}", op=op, native_op=op, inputs=tuple(reads), outputs=(out,))
            for out, op, _, reads in self.nodes
        )
        return Graph(nodes=nodes, inputs=self.inputs, outputs=self.outputs)

    def run(self, inputs, given=None):
        """(what consumers read, what producers compute), each name -> [R, ...]."""
        given = given or {}
        read, computed = {**inputs, **{k: v for k, v in given.items() if k in inputs}}, {}
        for out, _, function, reads in self.nodes:
            runs = [function(*(read[name][run] for name in reads)) for run in range(len(next(iter(inputs.values()))))]
            computed[out] = np.stack(runs)
            read[out] = given.get(out, computed[out])
        return read, computed

    def traced(self, inputs):
        net = self

        class Own(Traced):
            def replay(self, given, wanted, *, variant="", inputs=None):
                try:
                    _, computed = net.run(self.inputs, given)
                except ValueError:  # an operator refuses the shapes
                    return Ok(Reply(value={"skipped": dict.fromkeys(wanted, "shape")}, emitted={}))
                return Ok(Reply(value={"skipped": {}}, emitted={name: computed[name] for name in wanted}))

        session = SimpleNamespace(pool=SimpleNamespace(release=lambda folder: None))
        values = self.run(inputs)[0]
        return Own(session=session, artifact=None, inputs=inputs, graph=self.graph(), values=values, constants={})


def pair(source, target, *, permutation=(0,), runs=4, shape=(5, 3), seed=0, tolerance=1e-5):
    """Trace both on the same inputs; the only output is said to deviate when it does."""
    inputs = {"x": np.random.default_rng(seed).normal(size=(runs, *shape)) + 0.3}
    ours, theirs = source.traced(inputs), target.traced(inputs)
    left, right = View.of(ours.graph, ours.values), View.of(theirs.graph, theirs.values)
    order = Relation(tuple(range(len(shape))))
    pins = [Match(target="x", source="x", relation=order, error=0.0, how="input", ok=True)]
    outputs = []
    for mine, its in zip(source.outputs, target.outputs, strict=True):
        rank = sum(size != 1 for size in left.infos[mine].shape)
        relation = Relation(tuple(range(rank)))
        pins.append(Match(target=its, source=mine, relation=relation, error=float("nan"), how="output", ok=False))
        outputs.append(Output(source=mine, target=its, relation=relation, bad=True, floor=1e-9))
    return Pair(
        source=ours,
        target=theirs,
        ours=left,
        theirs=right,
        pins=tuple(pins),
        outputs=tuple(outputs),
        tolerance=tolerance,
        precision="float32",
    )


def relu(x):
    return np.maximum(x, 0)


def dense(weights, bias=0.0):
    return lambda x: x @ weights + bias


def source(scale=1.0):
    """x [5, 3] -> dense -> relu -> dense -> tanh -> transpose -> flatten."""
    return Net(
        [
            ("h", "Gemm", dense(W1, B1), ["x"]),
            ("r", "Relu", relu, ["h"]),
            ("d", "Gemm", dense(W2), ["r"]),
            ("t", "Tanh", lambda x: np.tanh(scale * x), ["d"]),
            ("p", "Transpose", lambda x: x.T, ["t"]),
            ("y", "Reshape", lambda x: x.reshape(-1), ["p"]),
        ]
    )


def target(**changed):
    """The same with other names; `changed`: value -> another function (None leaves the node out)."""
    names = {"h": "a", "r": "b", "d": "c", "t": "e", "p": "f", "y": "z"}
    nodes, passed = [], {"x": "x"}
    for out, op, function, reads in source().nodes:
        if out in changed and changed[out] is None:
            passed[out] = passed[reads[0]]
            continue
        passed[out] = names[out]
        nodes.append((names[out], op, changed.get(out, function), [passed[name] for name in reads]))
    return Net(nodes)
