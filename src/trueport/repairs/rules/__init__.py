"""The rules of repair, as a literal table: one file each, at least one for every row of the taxonomy's fault table.

A rule is a module with `NAME` (its row and a word), `CAUSES` (the causes of a suspect for which it is asked first) and
`propose(scene) -> list[Proposal] | str`: what it would change, or in one sentence why it has nothing to offer here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trueport.diagnosis.types import Cause
from trueport.repairs.rules import (
    attributes,
    everywhere,
    gates,
    inputs,
    layout,
    loops,
    parameters,
    precision,
    recurrent,
    runtime,
    scalars,
    segment,
    structure,
    suppression,
)
from trueport.repairs.scene import Scene
from trueport.repairs.types import Proposal


class Rule(Protocol):
    """What a module in this folder offers."""

    NAME: str
    CAUSES: frozenset[Cause]

    def propose(self, scene: Scene) -> list[Proposal] | str:
        """The edits that would mend the suspect, or why there are none."""


RULES: tuple[Rule, ...] = (
    everywhere,
    parameters,
    recurrent,
    loops,
    scalars,
    precision,
    attributes,
    gates,
    layout,
    suppression,
    structure,
    inputs,
    runtime,
    segment,
)
"""In the order in which they are asked among those that fit a cause alike."""


def ordered(scene: Scene) -> Sequence[Rule]:
    """The rules for a suspect: first those for its cause, then those for what else speaks against its nodes, then the rest."""
    causes = [scene.suspect.cause, *(item.cause for item in scene.evidence[1:])]

    def rank(rule: Rule) -> int:
        return min((place for place, cause in enumerate(causes) if cause in rule.CAUSES), default=len(causes))

    return sorted(RULES, key=rank)
