"""The verdict on a twin: FAITHFUL only when every output of both sides was compared in every case and nothing forbids it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trueport.artifact import Signature
from trueport.compare import decisions as deciding
from trueport.compare.judge import judge, report
from trueport.compare.metrics import Difference, difference
from trueport.compare.pairing import Layout, Pair, Pairing, pair_outputs
from trueport.compare.results import (
    FULL_PRECISION,
    RATIO_BOUND_MAX,
    RATIO_BOUND_RMS,
    Evidence,
    Finding,
    Judged,
    worst_of,
)
from trueport.compare.types import Comparison, Decisions, FloorRun, OutputReport, RunSet, Verdict
from trueport.compare.values import Value, dtypes, kind_of, normalise, permuted, run_shapes
from trueport.errors import UsageError
from trueport.outcome import Failure, Kind

NOT_THE_MODEL = (Kind.UNAVAILABLE, Kind.UNSUPPORTED, Kind.TIMED_OUT, Kind.OUT_OF_MEMORY)
"""Failures that say something about this machine, its runtime and its limits, not about what the target computes."""

SEARCHED_OUTPUTS = 32
"""Outputs beyond which it is not searched whether they are in another order: the search is quadratic."""

UNKNOWN_FLOOR = 1e-3
"""Share of the signal up to which two outputs are called the same where no floor could be measured for the pair."""


def compare(
    source_signature: Signature,
    target_signature: Signature,
    cases_kinds: Mapping[str, str],
    source_runs: RunSet,
    target_runs: RunSet,
    floors: Sequence[FloorRun],
    repeat_source: RunSet | None,
    repeat_target: RunSet | None,
    *,
    declared_precision: str,
    renames: Mapping[str, str],
    layout: Layout,
    task: str,
    labels: np.ndarray | None,
) -> Comparison:
    """Compare what two models gave. A pure function: same arguments, same result.

    cases_kinds: every case that both models were to run -> "data", "batch" or "probe"; a case listed here that the
    target did not run forbids FAITHFUL, so leave out what the target is not meant to take (another batch size).
    floors: the source evaluated in other ways; simulated precisions count only if they are the declared one.
    renames, layout: as the converters declared. task, labels: see `decisions`.
    Raises UsageError for an unknown task, or labels that do not fit the samples.
    """
    if task not in deciding.TASKS:
        raise UsageError(f"unknown task '{task}'; it is one of {', '.join(deciding.TASKS)}")
    ran, notes, findings = _cases(cases_kinds, source_runs, target_runs)
    # Outputs are taken from all that ran, so that an output that shows up in one case alone is not overlooked.
    source = {case: source_runs[case] for case in ran}
    target = {case: target_runs[case] for case in ran if case in target_runs}
    pairing = pair_outputs(source_signature, target_signature, source, target, renames, layout)
    evidence = Evidence(
        signature=source_signature,
        kinds=ran,
        source=source,
        target=target,
        floors=floors,
        repeat_source=repeat_source,
        repeat_target=repeat_target,
        declared=declared_precision,
        grids={spec.name: spec.quantization for spec in target_signature.outputs if spec.quantization},
    )
    judged = [judge(pair, evidence) for pair in pairing.pairs]
    findings += _unpaired(pairing)
    findings += _thin(judged, source_signature, findings)
    findings += _in_another_order(judged, evidence)
    decisions, flips = _decide(judged, evidence, task, labels)
    findings += flips
    outputs = tuple(report(item, declared_precision) for item in judged)
    finding = worst_of([*findings, *(item.worst for item in judged if item.worst is not None)])
    return Comparison(
        verdict=Verdict.FAITHFUL if finding is None else finding.verdict,
        reason=_praise(outputs, declared_precision) if finding is None else finding.text,
        outputs=outputs,
        unpaired_source=pairing.unpaired_source,
        unpaired_target=pairing.unpaired_target,
        decisions=decisions,
        notes=tuple(dict.fromkeys((*notes, *pairing.notes, *(note for item in judged for note in item.notes)))),
    )


def _cases(kinds: Mapping[str, str], source: RunSet, target: RunSet) -> tuple[dict[str, str], list[str], list[Finding]]:
    """Cases that the source ran (data first, else in the order given: labels follow it), notes on the others, findings on what the target did not run."""
    rank = {"data": 0, "batch": 1, "probe": 2}
    ran: dict[str, str] = {}
    notes, findings, failed = [], [], []
    for case in sorted(kinds, key=lambda name: rank[kinds[name]]):
        outputs, answer = source.get(case), target.get(case)
        if outputs is None or isinstance(outputs, Failure):
            why = "was not run" if outputs is None else f"failed: {outputs.message}"
            notes.append(f"case '{case}' is skipped, for the source {why}")
            failed += [f"case '{case}' {why}"] if kinds[case] == "data" else []
            continue
        ran[case] = kinds[case]
        if answer is None:
            text = f"the target was not run on case '{case}'"
            findings.append(Finding(verdict=Verdict.INCOMPARABLE, text=text))
        elif isinstance(answer, Failure):
            findings.append(_failure(case, kinds[case], answer))
    if "data" not in ran.values():
        why = f": the source's {failed[0]}" if failed else ": there is no case with representative inputs"
        findings.append(Finding(verdict=Verdict.INCOMPARABLE, text=f"nothing was compared{why}"))
    return ran, notes, findings


def _failure(case: str, kind: str, failure: Failure) -> Finding:
    """The target fails where the source runs."""
    if failure.kind in NOT_THE_MODEL:
        text = f"the target could not be run on case '{case}' ({failure.kind}): {failure.message}"
        return Finding(verdict=Verdict.INCOMPARABLE, text=text)
    hint = "; its batch size may be baked in" if kind == "batch" else ""
    text = f"the target fails on case '{case}', which the source runs ({failure.kind}): {failure.message}{hint}"
    return Finding(verdict=Verdict.DEVIATES, text=text)


def _unpaired(pairing: Pairing) -> list[Finding]:
    """Anything unpaired forbids FAITHFUL. Unequal counts are a fault; equal counts may be names that nobody declared."""
    left, right = pairing.unpaired_source, pairing.unpaired_target
    if not pairing.pairs and not left and not right:
        return [Finding(verdict=Verdict.INCOMPARABLE, text="nothing was compared: neither model has an output")]
    if not left and not right:
        return []
    words = [
        f"the {side}'s {', '.join(repr(name) for name in names)}"
        for side, names in (("source", left), ("target", right))
        if names
    ]
    verdict = Verdict.INCOMPARABLE if len(left) == len(right) else Verdict.DEVIATES
    return [Finding(verdict=verdict, text=f"outputs without a partner: {' and '.join(words)}")]


def _thin(judged: Sequence[Judged], source: Signature, findings: Sequence[Finding]) -> list[Finding]:
    """Evidence that would also accept a target that ignores its inputs is none."""
    compared = [item for item in judged if item.results]
    if not compared:
        known = any(found.verdict is Verdict.INCOMPARABLE for found in findings)
        return [] if known else [Finding(verdict=Verdict.INCOMPARABLE, text="nothing was compared", weight=0.0)]
    if source.inputs and not any(item.informative for item in compared):
        text = (
            "no output of the source varies over these inputs by more than its noise, so a target that ignores its "
            "inputs would pass: give at least two different, representative inputs"
        )
        return [Finding(verdict=Verdict.INCOMPARABLE, text=text, weight=0.0)]
    return []


def _in_another_order(judged: Sequence[Judged], evidence: Evidence) -> list[Finding]:
    """Where outputs deviate and another assignment of them fits by content, say so. The verdict stays DEVIATES."""
    wrong = [item for item in judged if item.worst is not None and item.worst.verdict is Verdict.DEVIATES]
    if not 2 <= len(wrong) <= SEARCHED_OUTPUTS:
        return []
    fits = {
        item.pair.source: [
            other.pair.target for other in wrong if other is not item and _holds(item, other.pair, evidence)
        ]
        for item in wrong
    }
    taken = _assign(fits)
    if taken is None:
        return []
    words = ", ".join(
        f"target output '{target}' holds the source's output '{source}'" for source, target in taken.items()
    )
    return [Finding(verdict=Verdict.DEVIATES, text=f"{words}: the outputs are in another order")]


def _holds(item: Judged, other: Pair, evidence: Evidence) -> bool:
    """Tell whether `other`'s target output equals `item`'s source output at floor level in every data case."""
    found = False
    for case, kind in evidence.kinds.items():
        source, target = evidence.source[case], evidence.target.get(case)
        if kind != "data" or target is None or isinstance(source, Failure) or isinstance(target, Failure):
            continue
        if item.pair.source not in source or other.target not in target:
            return False
        left, right = normalise(source[item.pair.source]), normalise(target[other.target])
        if {kind_of(dtype) for dtype in dtypes(left)} != {kind_of(dtype) for dtype in dtypes(right)}:
            return False
        left = left if run_shapes(left) == run_shapes(right) else permuted(left, item.pair.permutation)
        if run_shapes(left) != run_shapes(right):
            return False
        apart = difference(left, right)
        if not _close(apart, item, case):
            return False
        found = apart.count > 0 or found
    return found


def _close(apart: Difference, item: Judged, case: str) -> bool:
    """Tell whether a difference is at the level of the source's floor (of a guess, where none was measured)."""
    if apart.mismatches == 0:
        return True
    result = item.results.get(case)
    if result is None or result.exact:
        return 0.0 < apart.error_norm <= UNKNOWN_FLOOR * apart.source_norm
    return apart.rms <= RATIO_BOUND_RMS * result.floor.rms and apart.max_abs <= RATIO_BOUND_MAX * result.floor.max


def _assign(fits: Mapping[str, Sequence[str]]) -> dict[str, str] | None:
    """Give every source output another target output, each used once (augmenting paths); None when impossible."""
    owner: dict[str, str] = {}

    def place(source: str, seen: set[str]) -> bool:
        for target in fits[source]:
            if target not in seen:
                seen.add(target)
                if target not in owner or place(owner[target], seen):
                    owner[target] = source
                    return True
        return False

    if not all(place(source, set()) for source in fits):
        return None
    return {source: target for source in fits for target in owner if owner[target] == source}


def _decide(
    judged: Sequence[Judged], evidence: Evidence, task: str, labels: np.ndarray | None
) -> tuple[Decisions | None, list[Finding]]:
    """Decisions on the first output that is a classifier's, and a finding when one changed outside the noise."""
    usable = {item.pair.source: item for item in judged if any(r.kind == "data" for r in item.results.values())}
    if not usable:
        return None, []
    cases = {name: [case for case, r in item.results.items() if r.kind == "data"] for name, item in usable.items()}
    sides = {name: _sides(item.pair, evidence, cases[name][0]) for name, item in usable.items()}
    chosen = deciding.choose_output(
        task, [(name, values[0]) for name, values in sides.items()], labelled=labels is not None
    )
    if chosen is None:
        return None, []
    task, name = chosen
    scores = []
    for case in cases[name]:
        source, target = _sides(usable[name].pair, evidence, case)
        result = usable[name].results[case]
        noise = result.bound_max * result.floor.max
        scores.append(deciding.Scores(case=case, source=source, target=target, noise=noise))
    decisions = deciding.decide(task, scores, labels)
    outside = decisions.top1_flips - decisions.flips_within_noise
    worst_found = usable[name].worst
    restless = worst_found is not None and worst_found.verdict is Verdict.FLAKY
    if not outside or restless:  # a model that moves by itself changes its own decisions
        return decisions, []
    worst = decisions.flipped[0]
    text = (
        f"output '{name}': {outside} of {decisions.count} decisions change outside the noise, such as label "
        f"{worst['source_label']} to {worst['target_label']} in run {worst['run']} of case '{worst['case']}' "
        f"(margin {worst['margin']:.2g})"
    )
    verdict = Verdict.DEVIATES
    if evidence.reduced and not all(usable[name].results[case].floor.simulated for case in cases[name]):
        text += f"; the source could not be evaluated at {evidence.declared}, so rounding cannot be told from a fault"
        verdict = Verdict.INCOMPARABLE
    return decisions, [Finding(verdict=verdict, text=text, weight=0.0, numeric=True)]


def _sides(pair: Pair, evidence: Evidence, case: str) -> tuple[Value, Value]:
    """Both values of a compared case, in the target's layout."""
    source, target = evidence.source[case], evidence.target[case]
    if isinstance(source, Failure) or isinstance(target, Failure):
        raise AssertionError("a compared case has values on both sides")
    return permuted(normalise(source[pair.source]), pair.permutation), normalise(target[pair.target])


def _praise(outputs: Sequence[OutputReport], declared: str) -> str:
    """The reason of FAITHFUL: how near the worst output came to its bound."""
    worst = max(outputs, key=lambda output: output.ratio)
    count = "the output stays" if len(outputs) == 1 else f"all {len(outputs)} outputs stay"
    where = "" if declared == FULL_PRECISION else f"faithful at {declared}: "
    return f"{where}{count} within the noise of the source itself; '{worst.source}' is worst with {worst.ratio:.3g} times the floor"
