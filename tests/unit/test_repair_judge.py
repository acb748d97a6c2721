"""The judge of a repair, on models of NumPy functions: a mended place is right, whatever else is wrong."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from numpy_models import B1, W1, W2, dense, pair, source, target

from trueport.compare.types import Verdict
from trueport.diagnosis.localize import locate
from trueport.outcome import Failure, Kind, Ok, Stage
from trueport.repairs.judge import NOISE, PROBES, ByVerdict, Judge, Score
from trueport.worker.pool import Reply

WRONG_FIRST, WRONG_LAST = dense(W1[::-1], B1), (lambda x: np.tanh(1.3 * x))
BOTH = {"h": WRONG_FIRST, "t": WRONG_LAST}


class Workers:
    """What the judge asks of a session, answered by a model of functions. Keeps what was asked."""

    def __init__(self):
        self.asked = []
        self.pool = SimpleNamespace(release=lambda folder: None)

    def ask(self, net, function, arguments, **facts):
        self.asked.append((function, sorted(arguments.get("wanted", ())), sorted(arguments.get("given", ()))))
        if function == "names":
            return Ok(Reply(value=[node[0] for node in net.nodes], emitted={}))
        try:
            computed = net.run(arguments["inputs"], arguments.get("given"))[1]
        except ValueError as error:
            return Failure(stage=Stage.TRACE, kind=Kind.RAISED, message=str(error))
        return Ok(Reply(value={}, emitted={name: computed[name] for name in arguments["wanted"]}))


def judges(**wrong):
    """A judge for each fault that is found, in the order of the graph."""
    traced = pair(source(), target(**wrong))
    traced.target.budget = 1 << 20
    located = locate(traced)
    assert located.healed
    healed = traced.align()  # with the values of all findings put in
    found = sorted(located.findings, key=lambda finding: [node[0] for node in target().nodes].index(finding.target))
    return [
        Judge(session=Workers(), pair=traced, healed=healed, finding=finding, others=tuple(found)) for finding in found
    ]


def scored(judge, **wrong):
    made = judge.score(target(**wrong))
    assert isinstance(made, Ok), made
    return made.value


def test_the_probes_begin_at_the_place_and_are_few():
    (judge,) = judges(h=WRONG_FIRST)
    assert judge.probes[0].target == judge.finding.target == "a"
    assert 1 < len(judge.probes) <= PROBES + 1
    assert all(probe.limit >= judge.pair.tolerance for probe in judge.probes)


def test_a_mended_file_is_mended_and_the_wrong_one_is_not():
    (judge,) = judges(h=WRONG_FIRST)
    right, wrong = scored(judge), scored(judge, h=WRONG_FIRST)
    assert right.mended
    assert right.healed
    assert not wrong.mended
    assert wrong.place > 100
    assert scored(judge, h=dense(W1 * (1 + 1e-3), B1)).worst < wrong.worst


def test_of_two_faults_each_is_judged_at_its_own_place():
    first, _ = judges(**BOTH)
    after = scored(first, t=WRONG_LAST)
    assert after.mended
    assert not after.healed, "the other one is still there"
    assert not scored(first, **BOTH).mended
    assert not scored(first, h=WRONG_FIRST).mended, "the other one was mended, not this"


def test_behind_a_fault_that_stays_the_right_values_are_put_in():
    first, last = judges(**BOTH)
    blind = scored(last, h=WRONG_FIRST)
    assert not blind.mended, "what the first fault spoils is not right at the second one's place"
    last.wrong = (first.finding,)
    seeing = scored(last, h=WRONG_FIRST)
    assert seeing.mended
    assert not scored(last, **BOTH).mended
    assert last.session.asked[-1][0] == "replay"
    assert last.session.asked[-1][2] == [first.finding.target]


def test_values_that_are_right_as_found_are_no_probes():
    (judge,) = judges(d=dense(np.where(np.arange(24).reshape(6, 4) == 5, 3.0, W2)))
    before = judge.pair.target.values
    assert {"a", "b"} & {probe.target for probe in judge.probes} == set()
    assert all(judge._at(probe, before[probe.target]) > 1 for probe in judge.probes[1:])


def test_the_probes_of_one_fault_end_where_the_next_begins():
    first, last = judges(**BOTH)
    assert last.finding.target not in {probe.target for probe in first.probes}


def test_a_value_that_is_gone_is_not_looked_at():
    (judge,) = judges(r=lambda x: np.where(x > 0, x, 0.2 * x))
    lost = target(r=None)
    made = judge.score(lost)
    assert isinstance(made, Ok)
    wanted = judge.session.asked[-1][1]
    assert "b" not in wanted
    assert wanted
    assert not made.value.mended


def test_a_file_that_does_not_run_is_a_failure():
    (judge,) = judges(h=WRONG_FIRST)
    made = judge.score(target(h=dense(np.ones((7, 7)))))
    assert isinstance(made, Failure)


def test_another_size_is_infinitely_wrong():
    (judge,) = judges(h=WRONG_FIRST)
    made = judge._at(judge.probes[0], np.zeros((4, 2, 2)))
    assert made == math.inf


@pytest.mark.parametrize(
    ("place", "outputs", "mended", "healed", "worst"),
    [
        (0.5, 50.0, True, False, 0.5),
        (50.0, 0.5, True, True, 0.5),
        (50.0, 9.0, False, False, 9.0),
        (math.nan, 9.0, False, False, 9.0),
        (math.nan, 1.0, True, True, 1.0),
        (1.0, math.inf, True, False, 1.0),
        (math.inf, math.inf, False, False, math.inf),
    ],
)
def test_a_score_is_right_up_to_its_limit(place, outputs, mended, healed, worst):
    score = Score(place=place, outputs=outputs)
    assert (score.mended, score.healed, score.worst) == (mended, healed, worst)


def test_outputs_may_keep_the_noise_of_their_floor():
    (judge,) = judges(h=WRONG_FIRST)
    (output,) = judge.pair.outputs
    values = judge.pair.ours.values[output.source]
    error = judge.pair.output_error(output, values * (1 + 1e-3))
    loud = SimpleNamespace(**{name: getattr(output, name) for name in ("source", "target", "relation")}, floor=1e-2)
    assert judge._output(output, values * (1 + 1e-3)) == pytest.approx(error / judge.pair.tolerance)
    assert judge._output(loud, values * (1 + 1e-3)) == pytest.approx(error / (NOISE * 1e-2))
    assert judge._output(output, None) == math.inf


RATIOS = [
    (Verdict.FAITHFUL, 0, 0.4, True),
    (Verdict.DEVIATES, 0, 40.0, False),
    (Verdict.DEVIATES, 0, 90.0, False),
    (Verdict.DEVIATES, 1, 20.0, False),
    (Verdict.FLAKY, 0, 1.0, False),
    (Verdict.INCOMPARABLE, 0, math.inf, False),
]


def test_by_its_verdict_a_file_is_right_when_it_is_faithful_and_else_the_nearer_the_better():
    found = []
    for verdict, lost, ratio, right in RATIOS:
        outputs = [SimpleNamespace(ratio=ratio, target_nonfinite=0, source_nonfinite=0)]
        comparison = SimpleNamespace(outputs=outputs, unpaired_source=("y",) * lost)
        verification = SimpleNamespace(verdict=verdict, comparison=comparison)
        judge = ByVerdict(gate=SimpleNamespace(on_search=lambda artifact, given=verification: given))
        score = judge.score(None).value
        assert score.mended == right
        found.append(score.worst)
    assert found == sorted(found)
    assert len(set(found)) == len(found)
