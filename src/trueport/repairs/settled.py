"""The source's own runtime computes the source wrongly: what the source means, as a file that its runtime computes rightly.

Where other kernels and float64 agree with one another and not with a model's default run, a fusion of that run is wrong.
No target can be judged by such a source; `verify` calls the pair flaky. `settle` keeps the runtime from the fusion, in a
copy of the source. The copy is taken only when every kernel set that was right computes it bit for bit as it computes the
source, and its default run agrees with them: what the source means is then unchanged, and is what is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trueport.artifact import Artifact
from trueport.compare.types import Verdict, Verification
from trueport.compare.values import Value
from trueport.diagnosis import runtime
from trueport.diagnosis.region import Inside
from trueport.feeds import Case, Feeds
from trueport.outcome import Failure, Ok
from trueport.repairs import editing
from trueport.repairs.rules.runtime import barriers
from trueport.repairs.types import Edit
from trueport.session import Session
from trueport.tracing import trace
from trueport.verification import Reference, verify
from trueport.verification import reference as load

SPLIT = re.compile(r"of the source itself is another in case .* when it is evaluated as (.+), which agree: one set of")
"""How the comparison says that a source's default kernels are alone with what they give."""

KERNELS = "kernels: "
"""Before the name of a kernel set in those words."""

DEFINING = frozenset({"kernels: reference", "float64"})
"""One of these must be among what agrees: ONNX's own evaluator, or twice the digits. Two sets of kernels may share a fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A source that its runtime computes as it is meant. ways: evaluations of the source as it was that agree with it."""

    reference: Reference
    edits: tuple[Edit, ...]
    ways: tuple[str, ...]

    @property
    def artifact(self) -> Artifact:
        """The file."""
        return self.reference.artifact

    def told(self, source: Artifact, place: str) -> str:
        """What was done, in one sentence. place: where the settled source lies, or how it is called."""
        changes = "; ".join(f"{edit.where}: {edit.before} → {edit.after}" for edit in self.edits)
        ways = " and ".join(way.removeprefix(KERNELS) for way in self.ways)
        name = source.path.name
        return (
            f"By default {name}'s own runtime computes it wrongly: {ways} agree on other values. The target was therefore "
            f"judged by {place}, whose default run gives those values ({changes}); by {name} itself it stays flaky."
        )


def agreeing(verification: Verification) -> tuple[str, ...]:
    """The evaluations of the source that agree with one another and not with its default run; none where all do."""
    texts = [verification.reason, *(output.reason for output in verification.comparison.outputs)]
    found = [match for text in texts if (match := SPLIT.search(text)) is not None]
    return tuple(found[0][1].split(", ")) if found and verification.verdict is Verdict.FLAKY else ()


def settle(reference: Reference, feeds: Sequence[Feeds], ways: Sequence[str]) -> Settled | str:
    """Keep the source's runtime from what it does wrongly; else why that cannot be done. ways: those of `agreeing`."""
    source, session = reference.artifact, reference.session
    kernels = [way.removeprefix(KERNELS) for way in ways if way.startswith(KERNELS)]
    if source.format != "onnx":
        return f"a {source.format} file has no way to keep its runtime from a kernel"
    if not kernels or not DEFINING & {*ways}:
        return f"nothing that defines what the source means speaks against its default kernels, only {', '.join(ways)}"
    session.progress("looking for what the source's own runtime computes wrongly")
    found = _kept_apart(session, source, feeds[0])
    if found is None:
        return "nothing was found that keeps the source's own runtime from computing it wrongly"
    edits, made = found
    cases = [case for given in feeds for case in given.cases]
    if not all(_alike(session, source, made, cases, name) for name in kernels):
        return "what keeps the source's own runtime from computing it wrongly would change what the source means"
    loaded = load(session, made)
    if isinstance(loaded, Failure):
        return f"the source does not load with the changes: {loaded.message}"
    if any(verify(loaded.value, made, given).verdict is not Verdict.FAITHFUL for given in feeds):
        return "the source's default kernels stay wrong"
    return Settled(reference=loaded.value, edits=edits, ways=tuple(ways))


def _kept_apart(session: Session, source: Artifact, given: Feeds) -> tuple[tuple[Edit, ...], Artifact] | None:
    """Barriers in a copy of the source, one for each fusion that is wrong; None where that helps nothing."""
    edits: list[Edit] = []
    current = source
    places = _wrong(session, source, given)
    while places:
        target, offered = next(iter(places.items()))
        for edit in offered:
            made = editing.apply(session, source, [[*edits, edit]])
            if isinstance(made, Failure):
                continue
            left = _wrong(session, made.value, given)
            if target not in left:
                edits, current, places = [*edits, edit], made.value, left
                break
            editing.discard(session, made.value)
        else:
            return None
    return (tuple(edits), current) if edits else None


def _wrong(session: Session, model: Artifact, given: Feeds) -> dict[str, list[Edit]]:
    """The values that the default kernels compute wrongly, each with the barriers that may help."""
    traced = trace(session, model, dict(given.of_kind("data")[0].inputs))
    if isinstance(traced, Failure):
        return {}
    plain = runtime.plain_outputs(traced.value)
    found = () if isinstance(plain, Failure) else runtime.find(traced.value, plain.value)
    inside = Inside(traced.value)
    places = {str(finding.target): list(barriers(inside, finding.region)) for finding, _ in found}
    traced.value.close()
    return places


def _alike(session: Session, one: Artifact, other: Artifact, cases: Sequence[Case], kernels: str) -> bool:
    """Whether two files give the same bits in these kernels."""
    ran = [session.run(model, cases, variant=kernels) for model in (one, other)]
    if any(isinstance(outcome, Failure) for outcome in ran):
        return False
    runs = [outcome.value.runs for outcome in ran if isinstance(outcome, Ok)]
    return all(_same(runs[0][case.name], runs[1][case.name]) for case in cases)


def _same(one: Mapping[str, Value] | Failure, other: Mapping[str, Value] | Failure) -> bool:
    if isinstance(one, Failure) or isinstance(other, Failure):
        return isinstance(one, Failure) and isinstance(other, Failure)
    return one.keys() == other.keys() and all(
        np.array_equal(left, right, equal_nan=left.dtype.kind in "fc")
        for name in one
        for left, right in zip(_parts(one[name]), _parts(other[name]), strict=True)
    )


def _parts(value: Value) -> list[np.ndarray]:
    """The runs of a value whose shape differs between them, else the value as one."""
    return [value] if isinstance(value, np.ndarray) else list(value)
