"""ID: what a target takes and gives is not what the source takes and gives, so that nothing can be traced in common.

Rewrites: `set-dimensions` of an input to the source's, in the target's layout; `set-outputs` to the outputs that the
source has, in its order. Tried against the verdict itself, since there is no place inside to look at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trueport import reconcile
from trueport.artifact import Artifact, Signature, TensorSpec
from trueport.compare.types import Verification
from trueport.frameworks._base import Dim, EditDict
from trueport.outcome import Failure
from trueport.repairs.types import Edit, Proposal
from trueport.verification import Reference

NAME = "ID interface"

LAYOUTS: tuple[tuple[int, ...], ...] = ((0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 2), (0, 2, 1), (0, 1), (0,))
"""Orders of a source's axes that a target may have: as they are, channels moved to the other end."""


def proposals(
    reference: Reference, target: Artifact, verification: Verification, *, refused: bool = False
) -> list[Proposal] | str:
    """What would give the target the source's interface, the likeliest first; else why there is nothing to change.

    refused: the target does not run, so that the sizes it declares may be wrong even where they are the source's in
    another layout.
    """
    loaded = reference.session.signature(target)
    if isinstance(loaded, Failure):
        return f"the target does not load: {loaded.message}"
    theirs = loaded.value
    found = [*_dimensions(reference.signature, theirs, refused=refused), *_outputs(verification, theirs)]
    return sorted(found, key=lambda proposal: proposal.doubt) or "inputs and outputs are those of the source"


def _dimensions(ours: Signature, theirs: Signature, *, refused: bool) -> Iterator[Proposal]:
    """Inputs at the same place whose sizes differ: the source's sizes, in each layout that the rank allows."""
    if len(ours.inputs) != len(theirs.inputs):
        return
    for source, target in zip(ours.inputs, theirs.inputs, strict=True):
        if source.shape is None or target.shape is None or len(source.shape) != len(target.shape):
            continue
        shapes = [[source.shape[axis] for axis in order] for order in LAYOUTS if len(order) == len(source.shape)]
        if not refused and any(_same(wanted, target.shape) for wanted in shapes):
            continue
        for wanted in shapes:
            if _same(wanted, target.shape) or _distance(wanted, target.shape) > len(wanted) - 1:
                continue
            yield Proposal(edits=(_resized(target, source, wanted),), doubt=0.1 * _distance(wanted, target.shape))


def _same(wanted: Sequence[Dim], got: Sequence[Dim]) -> bool:
    return all(
        one == two or (not isinstance(one, int) and not isinstance(two, int))
        for one, two in zip(wanted, got, strict=True)
    )


def _distance(wanted: Sequence[Dim], got: Sequence[Dim]) -> int:
    """How many axes differ."""
    return sum(one != two for one, two in zip(wanted, got, strict=True))


def _resized(target: TensorSpec, source: TensorSpec, wanted: Sequence[Dim]) -> Edit:
    change: EditDict = {"kind": "set-dimensions", "value": target.name, "shape": list(wanted)}
    return Edit(
        rule=NAME,
        kind="set-dimensions",
        where=target.name,
        before=reconcile.show(target.shape),
        after=reconcile.show(tuple(wanted)),
        reason=f"the source's input {source.name} takes {reconcile.show(source.shape)}",
        change=change,
    )


def _outputs(verification: Verification, theirs: Signature) -> Iterator[Proposal]:
    """Leave out outputs that the source has not, and give the rest in the source's order."""
    comparison = verification.comparison
    paired: list[Any] = [output.target for output in comparison.outputs]
    now = [spec.name for spec in theirs.outputs]
    if comparison.unpaired_target and paired and paired != now:
        change: EditDict = {"kind": "set-outputs", "outputs": paired}
        yield Proposal(
            edits=(
                Edit(
                    rule=NAME,
                    kind="set-outputs",
                    where=", ".join(comparison.unpaired_target),
                    before=", ".join(now),
                    after=", ".join(paired),
                    reason="the source has no such output",
                    change=change,
                ),
            )
        )
