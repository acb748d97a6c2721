"""One pair of outputs judged over all cases: structure first, then non-finite values, then the deviation over the floor.

Each check yields findings; the worst finding is the output's verdict. A check never stops at the first fault of a case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from trueport.compare import floor as noise
from trueport.compare.channels import Slice, worst_slice
from trueport.compare.checks import check_values
from trueport.compare.floor import Floor
from trueport.compare.metrics import Difference, Spread, difference, spread
from trueport.compare.pairing import Pair
from trueport.compare.results import (
    EXACT_BOUND,
    FULL_PRECISION,
    RATIO_BOUND_MAX,
    RATIO_BOUND_RMS,
    REDUCED_BOUND_MAX,
    REDUCED_BOUND_RMS,
    VISIBLE,
    CaseResult,
    Evidence,
    Finding,
    Judged,
    over,
)
from trueport.compare.types import OutputReport, Verdict
from trueport.compare.values import (
    EXACT_KINDS,
    FLOAT_KINDS,
    Value,
    count_elements,
    count_runs,
    dtypes,
    has_batch_axis,
    kind_of,
    normalise,
    permuted,
    run_shapes,
    sample_rows,
)
from trueport.outcome import Failure


def judge(pair: Pair, evidence: Evidence) -> Judged:
    """Compare one pair of outputs in every case that both models ran."""
    judged = Judged(pair=pair)
    ready: dict[str, tuple[Value, Value]] = {}
    for case in evidence.kinds:
        values = _fetch(judged, evidence, case)
        if values is not None and _same_structure(judged, evidence, case, *values):
            ready[case] = values
    _measure(judged, evidence, ready)
    if not any(evidence.kinds[case] == "data" for case in judged.results) and not judged.findings:
        judged.findings.append(
            Finding(verdict=Verdict.INCOMPARABLE, text=f"output '{pair.source}' has no element in any data case")
        )
    for case, result in judged.results.items():
        check_values(judged, evidence, case, result)
    judged.informative = _informative(judged, ready)
    if not judged.informative and not evidence.reduced:
        judged.findings += _hidden(judged)
    if judged.results and not judged.informative:
        judged.notes.append(
            f"output '{pair.source}' does not depend on these inputs: only its constant value was compared"
        )
    return judged


def _fetch(judged: Judged, evidence: Evidence, case: str) -> tuple[Value, Value] | None:
    """Both values of one case, the source's in the target's layout; None (and a finding) when one is missing."""
    pair, source, target = judged.pair, evidence.source[case], evidence.target.get(case)
    if target is None or isinstance(target, Failure) or isinstance(source, Failure):
        return None  # the verdict on the whole names these, once and not per output
    for side, outputs, name, verdict in (
        ("source", source, pair.source, Verdict.INCOMPARABLE),
        ("target", target, pair.target, Verdict.DEVIATES),
    ):
        if name not in outputs:
            text = f"the {side} gives no output '{name}' in case '{case}'"
            judged.findings.append(Finding(verdict=verdict, text=text))
            return None
    return permuted(normalise(source[pair.source]), pair.permutation), normalise(target[pair.target])


def _same_structure(judged: Judged, evidence: Evidence, case: str, source: Value, target: Value) -> bool:
    """Check run counts, dtypes and shapes; nothing is broadcast or cast to fit. False when values cannot be compared."""
    name, runs = judged.pair.source, (count_runs(source), count_runs(target))
    if 0 in runs or runs[0] != runs[1]:
        text = f"output '{name}' in case '{case}': {runs[0]} runs of the source against {runs[1]} of the target"
        judged.findings.append(Finding(verdict=Verdict.INCOMPARABLE, text=text))
        return False
    if not _same_dtypes(judged, evidence, case, source, target):
        return False
    shapes = list(zip(run_shapes(source), run_shapes(target), strict=True))
    unequal = next(((run, both) for run, both in enumerate(shapes) if both[0] != both[1]), None)
    if unequal is not None:
        run, (left, right) = unequal
        text = f"output '{name}' in case '{case}', run {run}: shape {list(left)} in the source, {list(right)} in the target"
        judged.findings.append(Finding(verdict=Verdict.DEVIATES, text=text))
        return False
    if count_elements(source) == 0:
        judged.notes.append(f"output '{name}' is empty on both sides in case '{case}'")
        return False
    return True


def _same_dtypes(judged: Judged, evidence: Evidence, case: str, source: Value, target: Value) -> bool:
    """Check the kind of dtype, and that a narrower float was declared."""
    name, left, right = judged.pair.source, dtypes(source), dtypes(target)
    words = f"{'/'.join(map(str, left))} in the source, {'/'.join(map(str, right))} in the target"
    kinds = {kind_of(dtype) for dtype in (*left, *right)}
    if len(kinds) != 1 or not kinds <= {*EXACT_KINDS.values(), *FLOAT_KINDS.values()}:
        text = f"output '{name}' in case '{case}': dtype kind differs, {words}"
        judged.findings.append(Finding(verdict=Verdict.DEVIATES, text=text))
        return False
    halves = [dtype for dtype in right if dtype == np.float16]
    if halves and np.dtype(np.float16) not in left and evidence.declared != "float16":
        text = f"output '{name}' in case '{case}': {words}, and float16 was not declared"
        judged.findings.append(Finding(verdict=Verdict.DEVIATES, text=text))
        return False
    if left != right and kinds != {"text"}:
        note = (
            f"output '{name}' is {words}: compared in the narrower type"
            if kinds <= {"float", "complex"}
            else (f"output '{name}' is {words}: compared exactly")
        )
        if note not in judged.notes:
            judged.notes.append(note)
    return True


def _measure(judged: Judged, evidence: Evidence, ready: Mapping[str, tuple[Value, Value]]) -> None:
    """Fill `results`: difference, floor and spread of every case that can be compared."""
    pair = judged.pair
    batch = has_batch_axis(evidence.signature, pair.source)
    spreads = {case: _spread_of(source, pair, batch=batch) for case, (source, _) in ready.items()}
    least: dict[str, Floor] = {}
    floors: dict[str, Floor] = {}
    slices: dict[str, Slice | None] = {}
    for case, (source, target) in ready.items():
        ways, notes = noise.ways_for(evidence.floors, case, pair.source, pair.permutation, declared=evidence.declared)
        slices[case] = None
        if kind_of(dtypes(source)[0]) in EXACT_KINDS.values():
            floors[case] = least[case] = noise.measure_exact(source, ways)
        else:
            least[case] = noise.minimum(spreads[case], dtypes(source)[0], dtypes(target)[0])
            limit = noise.gross(spreads[case], dtypes(source)[0], integer=evidence.integer)
            floors[case] = noise.measure(source, ways, spreads[case], least[case], limit)
            if evidence.reduced and pair.target in evidence.grids:
                floors[case] = noise.stored(floors[case], source, evidence.grids[pair.target])
            if evidence.kinds[case] != "probe" and not evidence.reduced:
                relative = over(least[case].rms, spreads[case].rms)
                slices[case] = worst_slice(source, target, ways, relative, floors[case])
        for note in (*notes, *floors[case].notes):
            text = f"case '{case}': {note}"
            if text not in judged.notes:
                judged.notes.append(text)
    steady = [case for case in ready if evidence.kinds[case] == "data" and not floors[case].unstable]
    pooled = noise.pool(floors, spreads, steady)
    for case, (source, target) in ready.items():
        exact = kind_of(dtypes(source)[0]) in EXACT_KINDS.values()
        simulated = evidence.reduced and pooled[case].simulated
        coarse = (
            simulated or evidence.integer
        )  # a floor of steps of a grid, which the bounds of rounding would overstretch
        judged.results[case] = CaseResult(
            kind=evidence.kinds[case],
            difference=difference(source, target),
            floor=pooled[case],
            spread=spreads[case],
            exact=exact,
            bound_rms=EXACT_BOUND if exact else REDUCED_BOUND_RMS if coarse else RATIO_BOUND_RMS,
            bound_max=REDUCED_BOUND_MAX if coarse else RATIO_BOUND_MAX,
            target_constant=_spread_of(target, pair, batch=batch).constant,
            worst_slice=slices[case],
            limit=_visible(source, target, simulated=simulated) * (least[case] if simulated else pooled[case]).rms,
        )


def _visible(source: Value, target: Value, *, simulated: bool) -> float:
    """Multiple of the floor from which the input-dependent part can be seen."""
    half = any(dtype == np.float16 for dtype in (*dtypes(source), *dtypes(target)))
    return RATIO_BOUND_RMS if simulated or half else VISIBLE


def _spread_of(value: Value, pair: Pair, *, batch: bool) -> Spread:
    """Spread of a value; a layout that moves the batch axis leaves the runs as the only samples."""
    moved = pair.permutation is not None and pair.permutation[0] != 0
    return spread(value, batch=batch and not moved)


def _informative(judged: Judged, ready: Mapping[str, tuple[Value, Value]]) -> bool:
    """Tell whether the output depends on the input by more than noise could hide.

    Where the data have several samples of a float output, it must do so over them: a probe that leaves a saturated
    range does not show that the target is right inside it.
    """
    plain = {case: result for case, result in judged.results.items() if result.kind != "probe"}
    able = any(result.spread.samples > 1 and not result.exact for result in plain.values())
    chosen = plain if able else judged.results
    return any(result.varies for result in chosen.values()) or _varies_between(judged, ready, list(chosen))


def _hidden(judged: Judged) -> list[Finding]:
    """An output that reacts to its inputs, but within its own noise, must be near the target's all the same.

    Other outputs may carry the evidence for the model; they say nothing about this one. What the bound allows where an
    output is just visible, a tenth of its signal, is therefore the most that noise excuses. A signal at the level of
    rounding (a saturated softmax) is none.
    """
    for case, result in judged.results.items():
        if result.kind == "probe" or result.exact or result.spread.constant:
            continue
        rounding = noise.minimum(result.spread, np.dtype(np.float32), np.dtype(np.float32)).rms
        signal, apart = result.spread.dev, result.difference.rms
        if signal > RATIO_BOUND_RMS * rounding and apart > RATIO_BOUND_RMS / VISIBLE * signal:
            text = (
                f"output '{judged.pair.source}' in case '{case}' deviates by {apart / signal:.2g} of its signal, which its "
                f"own noise ({result.floor.rms / signal:.2g} of the signal) hides: nothing is proven about it"
            )
            return [Finding(verdict=Verdict.INCOMPARABLE, text=text, weight=apart / signal, numeric=True)]
    return []


def _varies_between(judged: Judged, ready: Mapping[str, tuple[Value, Value]], cases: Sequence[str]) -> bool:
    """Tell whether the source's first samples of two cases differ by more than noise could hide."""
    firsts = []
    for case in cases:
        source = ready[case][0]
        if isinstance(source, np.ndarray):
            moved = judged.pair.permutation is not None and judged.pair.permutation[0] != 0
            firsts.append((case, sample_rows(source, batch=not moved)[np.newaxis]))
    for case, first in firsts[1:]:
        if first.shape == firsts[0][1].shape:
            apart = difference(firsts[0][1], first)
            result = judged.results[case]
            limit = max(result.limit, judged.results[firsts[0][0]].limit)
            if apart.mismatches if result.exact else apart.finite and apart.rms > limit:
                return True
    return False


def report(judged: Judged, declared: str) -> OutputReport:
    """The public form."""
    pair, results = judged.pair, judged.results
    plain = {case: result for case, result in results.items() if result.kind != "probe"} or results
    total = sum((result.difference for result in plain.values()), Difference())
    counted = {case: r for case, r in results.items() if r.kind != "probe" or declared == FULL_PRECISION}
    counted = {case: r for case, r in counted.items() if r.difference.finite} or results
    counted = {case: r for case, r in counted.items() if not r.swamped} or counted  # a drowned case is no evidence
    case = max(counted, key=lambda name: counted[name].strain, default=None)
    worst = None if case is None else counted[case]
    place = () if worst is None else worst.difference.worst or worst.difference.nonfinite_at or ()
    finding = judged.worst
    return OutputReport(
        source=pair.source,
        target=pair.target,
        how=pair.how,
        permutation=pair.permutation,
        verdict=Verdict.FAITHFUL if finding is None else finding.verdict,
        reason=f"output '{pair.source}' is within its noise" if finding is None else finding.text,
        max_abs=total.max_abs if total.finite else math.nan,
        max_rel=total.max_rel if total.finite else math.nan,
        rmse=total.rms,
        cosine=total.cosine,
        psnr=total.psnr,
        ulp_p99=total.ulp_p99,
        floor=math.nan
        if worst is None
        else worst.floor.share
        if worst.exact
        else worst.floor.rms / (worst.spread.scale or 1.0),
        ratio=math.nan if worst is None else worst.ratio,
        worst_index=(case, *place) if case is not None else (),
        source_nonfinite=total.source_nonfinite,
        target_nonfinite=total.target_nonfinite,
        notes=tuple(judged.notes),
        cases={name: _details(result) for name, result in results.items()},
    )


def _details(result: CaseResult) -> dict[str, float]:
    """One case in numbers, relative to the signal."""
    scale = 1.0 if result.exact else result.spread.scale or 1.0
    found = result.difference
    return {
        "deviation": found.share if result.exact else over(found.rms, scale),
        "floor": result.floor.share if result.exact else over(result.floor.rms, scale),
        "ratio": result.ratio,
        "ratio_rms": result.ratio_rms,
        "ratio_max": result.ratio_max,
        "ratio_slice": math.nan if result.worst_slice is None else result.worst_slice.ratio,
        "max_abs": found.max_abs,
        "signal": result.spread.dev,
        "magnitude": result.spread.rms,
        "samples": float(result.spread.samples),
    }
