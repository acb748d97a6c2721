"""LH: a gate's piecewise linear sigmoid has another slope than the source's, where the target's format has no setting for it.

Rewrite: `set-parameter` of the kernels and the bias of the gates that it is applied to, times the ratio of the slopes:
clip(a z + 1/2) of z is clip(b z' + 1/2) of z' = z a/b, exactly.
Does not apply where the target's operator takes the slope as an attribute, or both have the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trueport.diagnosis.operators import kind
from trueport.diagnosis.types import Cause
from trueport.graph import Node
from trueport.repairs.rules._arranged import Option
from trueport.repairs.rules._stored import place_of
from trueport.repairs.rules.parameters import setting
from trueport.repairs.scene import Scene
from trueport.repairs.types import Edit, Proposal
from trueport.session import runtime_toolchain

NAME = "LH gates"
CAUSES = frozenset({Cause.HYPERPARAMETERS})

SLOPES: Mapping[str, float] = {"tf-keras": 0.2, "tensorflow": 1 / 6}
"""Toolchain of a Keras file -> slope of its `hard_sigmoid`: Keras 2 has clip(z/5 + 1/2), Keras 3 clip(z/6 + 1/2)."""

GATES: Mapping[str, tuple[int, tuple[int, ...]]] = {"LSTM": (4, (0, 1, 3)), "GRU": (3, (0, 1))}
"""Kind -> blocks of a Keras layer's kernels, and those of them that the recurrent activation is applied to."""


def propose(scene: Scene) -> list[Proposal] | str:
    """All recurrent layers of the region, each with its kernels and its bias at once."""
    if scene.format != "keras" or scene.reference.artifact.format != "keras":
        return "the slope of a gate is an attribute in one of both formats"
    mine, its = (SLOPES.get(runtime_toolchain(one)) for one in (scene.target, scene.reference.artifact))
    if mine is None or its is None or mine == its:
        return "both sides have the same piecewise linear sigmoid"
    found = [Proposal(edits=edits) for node in scene.blamed if (edits := _scaled(scene, node, its / mine))]
    return found or "no gate of the region has a piecewise linear sigmoid"


def _scaled(scene: Scene, node: Node, ratio: float) -> tuple[Edit, ...]:
    function = str(node.attributes.get("recurrent_activation", "")).replace("_", "").lower()
    if kind(node) not in GATES or function != "hardsigmoid":
        return ()
    blocks, gates = GATES[kind(node)]
    edits = []
    for item in scene.theirs.parameters(node):
        place = place_of(scene.theirs, item)
        width = item.array.shape[-1] // blocks
        if place is None or not item.real or width * blocks != item.array.shape[-1]:
            return ()
        factors = np.ones(blocks)
        factors[list(gates)] = ratio
        option = Option(item.array * np.repeat(factors, width), f"its gates times {ratio:.4g}")
        edits.append(setting(scene, item, place, option, "the source's hard_sigmoid has another slope", NAME))
    return tuple(edits)
