"""The inside of a model on given inputs: its graph, its constants, and every value that it computes, file-backed.

A framework emits values in windows of bounded memory, each array is on disk before the next window begins, and here
they are memory-mapped: what a large network computes never stands in memory at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trueport.artifact import Artifact, Signature
from trueport.frameworks._base import Arrays
from trueport.graph import FINE, Graph
from trueport.outcome import Failure, Ok, Outcome, Stage
from trueport.session import Session, framework_of
from trueport.worker.pool import Reply

BUDGET = 512 * 2**20
"""Bytes of values that a worker holds at a time when the user sets no limit."""


@dataclass(kw_only=True)
class Traced:
    """One model traced on `inputs` ([R, *shape] by name, in the model's own layout)."""

    session: Session
    artifact: Artifact
    inputs: Arrays
    graph: Graph
    values: dict[str, np.ndarray]
    """Value name (inputs included) -> [R, *shape], memory-mapped. Values whose shape differs between runs are missing."""
    constants: dict[str, np.ndarray]
    """Constant name -> array, without a run axis; quantised ones dequantised."""
    budget: int = BUDGET
    notes: list[str] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    """What holds the arrays on disk; `close` releases them."""

    _inputs: dict[str, str] = field(default_factory=dict)
    _outputs: dict[str, str] = field(default_factory=dict)

    def alias(self, signature: Signature) -> None:
        """Learn which values the signature's names stand for: the value of that name, else the graph's at that place."""
        ours = [(spec.name, place) for place, spec in enumerate(signature.inputs)]
        for name, place in ours:
            known = name in self.graph.inputs or place >= len(self.graph.inputs)
            self._inputs[name] = name if known else self.graph.inputs[place]
            if name in self.inputs:
                self.values.setdefault(self._inputs[name], self.inputs[name])
        for place, spec in enumerate(signature.outputs):
            known = spec.name in self.graph.outputs or place >= len(self.graph.outputs)
            self._outputs[spec.name] = spec.name if known else self.graph.outputs[place]

    def input_value(self, name: str) -> str:
        """The value name of a signature input."""
        return self._inputs.get(name, name)

    def output_value(self, name: str) -> str:
        """The value name of a signature output."""
        return self._outputs.get(name, name)

    @property
    def runs(self) -> int:
        """How many runs every value holds."""
        return len(next(iter(self.inputs.values()))) if self.inputs else 1

    def replay(
        self, given: Arrays, wanted: Sequence[str], *, variant: str = "", inputs: Arrays | None = None
    ) -> Outcome[Reply]:
        """Compute `wanted` with the values in `given` put in; see `replay` in `frameworks/_base.py`.

        The arrays are in `reply.emitted`, memory-mapped; `session.pool.release(reply.folder)` frees their disk.
        """
        arguments = {
            "inputs": dict(self.inputs if inputs is None else inputs),
            "given": dict(given),
            "wanted": list(wanted),
            "variant": variant,
            "budget": self.budget,
        }
        return self.session.ask(self.artifact, "replay", arguments, stage=Stage.TRACE, emit=True)

    def close(self) -> None:
        """Free the disk. The arrays must no longer be used."""
        for reply in self.replies:
            self.session.pool.release(reply.folder)
        self.replies.clear()
        self.values.clear()
        self.constants.clear()


def trace(
    session: Session, artifact: Artifact, inputs: Arrays, *, budget: int = BUDGET, fine: bool = False
) -> Outcome[Traced]:
    """Trace every value of a model; with `fine`, at every granularity that its framework offers, merged into one graph.

    A finer granularity that fails is left out and noted.
    """
    made = _view(session, artifact, inputs, budget, None)
    if isinstance(made, Failure):
        return made
    traced = made.value
    finer = getattr(framework_of(artifact.format), "GRANULARITIES", ("native",))[1:] if fine else ()
    for granularity in finer:
        more = _view(session, artifact, inputs, budget, granularity)
        if isinstance(more, Failure):
            traced.notes.append(f"not traced at granularity '{granularity}': {more.message}")
            continue
        merge(traced, more.value)
    return Ok(traced)


def merge(traced: Traced, fine: Traced) -> None:
    """Add a finer view of the same model on the same inputs."""
    traced.graph = traced.graph.merged(fine.graph)
    traced.values |= {FINE + name: array for name, array in fine.values.items() if name not in traced.inputs}
    traced.constants |= {FINE + name: array for name, array in fine.constants.items()}
    traced.replies += fine.replies
    traced.notes += fine.notes


def _view(
    session: Session, artifact: Artifact, inputs: Arrays, budget: int, granularity: str | None
) -> Outcome[Traced]:
    chosen: dict[str, Any] = {} if granularity is None else {"granularity": granularity}
    shown = session.ask(artifact, "graph", chosen, stage=Stage.TRACE)
    if isinstance(shown, Failure):
        return shown
    listed = session.ask(artifact, "names", chosen, stage=Stage.TRACE)
    if isinstance(listed, Failure):
        return listed
    wanted = [name for name in listed.value.value if name not in inputs]
    arguments = {"inputs": dict(inputs), "wanted": wanted, "budget": budget, **chosen}
    values = session.ask(artifact, "trace", arguments, stage=Stage.TRACE, emit=True)
    if isinstance(values, Failure):
        return values
    stored = session.ask(artifact, "parameters", chosen, stage=Stage.TRACE, emit=True)
    if isinstance(stored, Failure):
        return stored
    return Ok(
        Traced(
            session=session,
            artifact=artifact,
            inputs=dict(inputs),
            graph=Graph.from_wire(shown.value.value),
            values={**inputs, **values.value.emitted},
            constants=dict(stored.value.emitted),
            budget=budget,
            replies=[values.value, stored.value],
        )
    )
