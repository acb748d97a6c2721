"""The checks on one measured case of one output: non-finite values, deviation beyond the bound, restlessness."""

from __future__ import annotations

from collections.abc import Iterator

from trueport.compare.channels import SLICE_BOUND
from trueport.compare.metrics import Difference, difference
from trueport.compare.pairing import Pair
from trueport.compare.results import (
    EXACT_BOUND,
    EXACT_CAP,
    MINORITY,
    RATIO_BOUND_MAX,
    RATIO_BOUND_RMS,
    REDUCED_CAP,
    REDUCED_EXACT_CAP,
    CaseResult,
    Evidence,
    Finding,
    Judged,
)
from trueport.compare.types import Verdict
from trueport.compare.values import count_runs, dtypes, first_runs, normalise, run_shapes
from trueport.outcome import Failure


def check_values(judged: Judged, evidence: Evidence, case: str, result: CaseResult) -> None:
    """Turn one measured case into findings and notes of `judged`."""
    restless = list(_restless(judged.pair, evidence, case, result))
    judged.findings += [finding for finding, _ in restless]
    found = list(_nonfinite(judged, case, result))
    for finding in _beyond(judged.pair, evidence, case, result):
        # A model's own restlessness is no fault of the conversion, and a drowned signal no evidence of one.
        if any(explains for _, explains in restless) or (evidence.reduced and result.swamped):
            judged.notes.append(finding.text)
        else:
            found.append(finding)
    for finding in found:
        if result.kind == "probe" and evidence.reduced:
            judged.notes.append(f"{finding.text} (a probe outside the range that {evidence.declared} was made for)")
        else:
            judged.findings.append(finding)
    if result.swamped and evidence.reduced:
        _check_swamped(judged, evidence, case, result)
    if result.exact and result.kind == "probe" and result.floor.share > EXACT_CAP and result.difference.mismatches:
        judged.notes.append(
            f"output '{judged.pair.source}' in case '{case}': {result.difference.mismatches} of "
            f"{result.difference.count} values differ, as the source's own evaluations do (a share of "
            f"{result.floor.share:.2g}): ties, of which this case says nothing"
        )
    if result.floor.split and result.kind != "probe":
        text = (
            f"output '{judged.pair.source}' of the source itself is another in case '{case}' when it is evaluated as "
            f"{', '.join(result.floor.split)}, which agree: one set of its runtime's kernels is wrong"
        )
        judged.findings.append(Finding(verdict=Verdict.FLAKY, text=text))
    if not result.floor.unstable:
        return
    alone = all(r.floor.unstable for r in judged.results.values() if r.kind == "data")
    text = (
        f"output '{judged.pair.source}' of the source itself moves by {_part(result.floor.rms, result)} in case "
        f"'{case}' when it is evaluated in other, equally right ways ({', '.join(result.floor.ways)})"
    )
    if result.kind == "data" and alone:
        judged.findings.append(Finding(verdict=Verdict.FLAKY, text=text, weight=result.floor.rms))
    else:  # other data shows the output well above its noise
        judged.notes.append(text)


def _check_swamped(judged: Judged, evidence: Evidence, case: str, result: CaseResult) -> None:
    """Where the declared precision alone drowns the signal, neither agreement nor deviation proves anything."""
    text = (
        f"output '{judged.pair.source}' in case '{case}': rounding to {evidence.declared} alone moves the source by "
        f"{_part(result.floor.rms, result)}, so these inputs cannot show whether the target is right"
    )
    alone = all(r.swamped for r in judged.results.values() if r.kind == "data")
    if result.kind == "data" and alone:
        text += ": give representative inputs"
        judged.findings.append(Finding(verdict=Verdict.INCOMPARABLE, text=text, weight=1.0))
    else:
        judged.notes.append(text)


def _nonfinite(judged: Judged, case: str, result: CaseResult) -> Iterator[Finding]:
    """Findings on NaN and infinities. Equal ones at equal places are equal, if enough finite values remain."""
    found, where = result.difference, f"output '{judged.pair.source}' in case '{case}'"
    probe = result.kind == "probe"
    if found.source_nonfinite == found.target_nonfinite == 0:
        return
    place = f"first at {list(found.nonfinite_at)}" if found.nonfinite_at is not None else ""
    if found.new_nonfinite:
        text = f"{where}: {found.new_nonfinite} elements are NaN or infinite in the target and finite in the source, {place}"
        if probe and result.floor.nonfinite:
            judged.notes.append(f"{text}; so they are in the source evaluated in another way")
        else:
            yield Finding(verdict=Verdict.DEVIATES, text=text, numeric=True)
    if found.lost_nonfinite or found.other_nonfinite:
        text = (
            f"{where}: {found.lost_nonfinite + found.other_nonfinite} elements are NaN or infinite in the source "
            f"and something else in the target, {place}"
        )
        if probe:  # an overflow that another order of operations avoids
            judged.notes.append(text)
        elif found.source_nan <= MINORITY * found.count:
            yield Finding(verdict=Verdict.DEVIATES, text=text, numeric=True)
    if probe:
        judged.notes.append(f"{where}: {found.source_nonfinite} of {found.count} elements of the source are not finite")
    elif found.source_nan > MINORITY * found.count or found.source_nonfinite == found.count:
        text = f"{where}: {found.source_nonfinite} of {found.count} elements of the source itself are NaN or infinite"
        yield Finding(verdict=Verdict.INCOMPARABLE, text=text)
    elif found.source_nonfinite:
        judged.notes.append(
            f"{where}: {found.source_nonfinite} of {found.count} elements are not finite on the source's side"
        )


def _beyond(pair: Pair, evidence: Evidence, case: str, result: CaseResult) -> Iterator[Finding]:
    """The finding on a deviation beyond the bound, if there is one."""
    found = result.difference
    where = f"output '{pair.source}' in case '{case}'"
    if result.exact:
        cap = REDUCED_EXACT_CAP if evidence.reduced else EXACT_CAP
        if result.kind == "probe" and result.floor.share > cap:
            return  # told as a note: the order of ties, which the smallest change of the inputs decides
        if found.mismatches and found.share > min(cap, EXACT_BOUND * result.floor.share):
            text = (
                f"{where}: {found.mismatches} of {found.count} values differ, and the source's own evaluations "
                f"change at most {result.floor.share:.2g} of them"
            )
            yield Finding(verdict=Verdict.DEVIATES, text=_constancy(result) or text, weight=found.share, numeric=True)
        return
    if not found.finite:
        return  # told by _nonfinite
    signal = result.spread.dev
    capped = evidence.reduced and result.varies and not result.swamped and not found.rms <= REDUCED_CAP * signal
    if result.strain <= 1.0 and not capped:
        part = result.worst_slice
        if part is not None and not part.ratio <= SLICE_BOUND:
            text = (
                f"{where}: the slice {part.index} of axis {part.axis} deviates by {part.ratio:.3g} times its own noise "
                f"(bound {SLICE_BOUND:g}), which the larger rest of the output hides"
            )
            yield Finding(verdict=Verdict.DEVIATES, text=text, weight=part.ratio / SLICE_BOUND, numeric=True)
        return
    if result.floor.unstable and result.kind != "data":
        return  # told as a note: the source says nothing here
    bound = result.bound_max if result.ratio == result.ratio_max else result.bound_rms
    text = (
        f"{where} deviates by {_part(found.rms, result)} (largest element {found.max_abs:.2g}), "
        f"{result.ratio:.3g} times the noise floor (bound {bound:g})"
    )
    if capped and result.strain <= 1.0:
        text = f"{where} deviates by {_part(found.rms, result)}: at {evidence.declared} the output no longer follows the source"
    if evidence.reduced and not result.floor.simulated and not capped:
        text += f"; the source could not be evaluated at {evidence.declared}, so rounding cannot be told from a fault"
        yield Finding(verdict=Verdict.INCOMPARABLE, text=text, weight=result.strain, numeric=True)
        return
    text = f"{where}: {_constancy(result)}" if _constancy(result) else text
    yield Finding(verdict=Verdict.DEVIATES, text=text, weight=result.strain, numeric=True)


def _constancy(result: CaseResult) -> str:
    """Say so when one side depends on the input and the other does not."""
    if result.varies and result.target_constant:
        return "the target gives the same for every input, the source does not"
    if result.spread.constant and result.spread.samples > 1 and not result.target_constant:
        return "the source gives the same for every input, the target does not"
    return ""


def _restless(pair: Pair, evidence: Evidence, case: str, result: CaseResult) -> Iterator[tuple[Finding, bool]]:
    """Findings on a model that, run twice on the same inputs, differs beyond the floor; with each, whether that alone
    explains the deviation of the target."""
    for side, first, again, name in (
        ("source", evidence.source, evidence.repeat_source, pair.source),
        ("target", evidence.target, evidence.repeat_target, pair.target),
    ):
        outputs, repeated = first[case], (again or {}).get(case)
        if repeated is None or isinstance(outputs, Failure):
            continue
        text = f"output '{name}' of the {side}, run twice in case '{case}',"
        if isinstance(repeated, Failure) or name not in repeated:
            yield Finding(verdict=Verdict.FLAKY, text=f"{text} is missing the second time"), False
            continue
        two = normalise(repeated[name])
        one = first_runs(normalise(outputs[name]), count_runs(two))  # a repeat may cover only the first runs
        if run_shapes(one) != run_shapes(two) or dtypes(one) != dtypes(two):
            yield Finding(verdict=Verdict.FLAKY, text=f"{text} has another shape or dtype the second time"), False
            continue
        moved, seen = difference(one, two), result.difference
        if _settled(moved, result):
            continue
        if result.exact:
            explains = seen.share <= EXACT_BOUND * moved.share
        else:
            explains = seen.rms <= RATIO_BOUND_RMS * moved.rms and seen.max_abs <= RATIO_BOUND_MAX * moved.max_abs
        amount = f"{moved.share:.2g} of its elements" if result.exact else _part(moved.rms, result)
        yield Finding(verdict=Verdict.FLAKY, text=f"{text} moves by {amount}"), explains


def _settled(moved: Difference, result: CaseResult) -> bool:
    """Tell whether a repeated run stays within the noise."""
    if moved.new_nonfinite or moved.lost_nonfinite or moved.other_nonfinite:
        return False
    if result.exact:
        return moved.mismatches == 0 or moved.share <= min(EXACT_CAP, EXACT_BOUND * result.floor.share)
    if not moved.finite:
        return True
    return moved.rms <= RATIO_BOUND_RMS * result.floor.rms and moved.max_abs <= RATIO_BOUND_MAX * result.floor.max


def _part(amount: float, result: CaseResult) -> str:
    """An amount relative to the signal, in words."""
    if result.spread.dev > 0.0:
        return f"{amount / result.spread.dev:.2g} of its signal"
    return f"{amount / result.spread.rms:.2g} of its magnitude" if result.spread.rms > 0.0 else f"{amount:.2g}"
