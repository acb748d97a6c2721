"""The search of a repair on the fake framework, with rules made to order: what is tried, in which order, and what stays."""

from __future__ import annotations

import hashlib
import json
import math
import time

import numpy as np
import pytest
from pipeline_models import write, write_changed

from trueport import api, verification
from trueport.artifact import Artifact
from trueport.frameworks import fake
from trueport.outcome import Ok
from trueport.repairs import editing, rules, run, search
from trueport.repairs.gate import Gate, split
from trueport.repairs.judge import Score
from trueport.repairs.rules import parameters
from trueport.repairs.run import Budget
from trueport.repairs.search import CERTAIN, COARSE, LITTLE, PARTLY, Search
from trueport.repairs.types import Edit, Proposal, Status
from trueport.session import Session, Settings

RIGHT = {name: np.array(item["data"], item["dtype"]) for name, item in fake.network(seed=1)["constants"].items()}
READERS = {"w1": "MatMul_product_1", "b1": "Add_affine_1", "w2": "MatMul_product_2", "b2": "Add_scores"}


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=60)) as session:
        yield session


@pytest.fixture
def models(session, tmp_path):
    """models(constants) -> (reference, a target that is wrong in them, inputs)."""

    def make(*names):
        def change(model):
            for name in names:
                item = model["constants"][name]
                item["data"] = (2 * np.array(item["data"]) + 0.5).tolist()

        source = Artifact.open(write(tmp_path / "source.fake"))
        target = Artifact.open(write_changed(tmp_path / "target.fake", change))
        reference = verification.reference(session, source).value
        return reference, target, api.open_feeds(session, source, None)

    return make


@pytest.fixture
def searching(models):
    """searching(constants) -> a search that has not begun."""

    def make(*names, attempts=50, seconds=60.0):
        reference, target, given = models(*names)
        ours, unseen = split(given, reference.signature)
        gate = Gate(reference=reference, target=target, given=ours, unseen=unseen)
        return Search(gate=gate, attempts_left=attempts, deadline=time.monotonic() + seconds)

    return make


class Rule:
    """A rule that proposes what a function gives for the constant that the suspect reads."""

    CAUSES = frozenset()

    def __init__(self, propose, name="XX test"):
        self.NAME = name
        self.offered = propose
        self.asked = []

    def propose(self, scene):
        names = [name for name, reader in READERS.items() if reader in {node.name for node in scene.blamed}]
        self.asked.append(names)
        return self.offered(scene, names)


@pytest.fixture
def use(monkeypatch):
    """use(rule, ...) puts these rules in place of the real ones."""

    def put(*some):
        monkeypatch.setattr(rules, "ordered", lambda scene: some)
        return some[0]

    return put


def setting(name, array, rule="XX test"):
    change = {"kind": "set-parameter", "node": READERS[name], "parameter": name, "array": "new"}
    return Edit(
        rule=rule, kind="set-parameter", where=READERS[name], before=0, after=1, reason="a test", change=change,
        arrays={"new": np.asarray(array, np.float32)},
    )  # fmt: skip


def proposal(name, array, doubt=0.0):
    return Proposal(edits=(setting(name, array),), doubt=doubt)


def rights(scene, names):
    """The source's own constants."""
    return [proposal(name, RIGHT[name]) for name in names]


def stored(artifact, name):
    item = json.loads(artifact.path.read_text())["constants"][name]
    return np.array(item["data"], item["dtype"])


def tried(found):
    return [(attempt.where, attempt.accepted) for attempt in found.attempts]


# -- several faults ----------------------------------------------------------------------------------------------------------


def test_faults_are_mended_in_the_order_of_the_graph_and_one_by_one(searching, use):
    use(Rule(rights))
    found = searching("b2", "w1", "w2")
    found.run()
    assert found.gate.faithful(found.current)
    changed = [edit.change["parameter"] for group in found.steps for edit in group]
    assert sorted(changed) == ["b2", "w1", "w2"]
    assert changed.index("w1") < changed.index("b2")
    assert [attempt.accepted for attempt in found.attempts].count(True) == len(found.steps)
    assert all(np.array_equal(stored(found.current, name), RIGHT[name]) for name in RIGHT)


def test_a_fault_that_stays_does_not_hide_the_one_behind_it(searching, use):
    """The first layer cannot be mended; the second is judged with the first one's right values put in."""
    rule = use(Rule(lambda scene, names: rights(scene, [name for name in names if name != "w1"]) or "not this one"))
    found = searching("w1", "b2")
    found.run()
    assert ["w1"] in [names for names in rule.asked if names]
    assert [edit.change["parameter"] for group in found.steps for edit in group] == ["b2"]
    assert np.array_equal(stored(found.current, "b2"), RIGHT["b2"])
    assert found.refused["XX test"] == "not this one"


def test_the_real_rules_mend_the_same(searching):
    found = searching("w1", "b2")
    found.run()
    assert sorted(edit.change["parameter"] for group in found.steps for edit in group) == ["b2", "w1"]
    assert found.gate.faithful(found.current)


# -- what is tried -----------------------------------------------------------------------------------------------------------


def test_the_least_doubtful_comes_first_and_the_first_that_mends_is_taken(searching, use):
    wrong = [proposal("w1", RIGHT["w1"] * factor, doubt) for factor, doubt in ((1.7, 0.05), (1.5, 0.3), (1.6, 0.8))]
    use(Rule(lambda scene, names: [wrong[2], proposal("w1", RIGHT["w1"], 0.2), wrong[1], wrong[0]]))
    found = searching("w1")
    found.run()
    assert [attempt.accepted for attempt in found.attempts] == [False, True]
    assert np.array_equal(stored(found.current, "w1"), RIGHT["w1"])


def test_a_rule_that_raises_is_noted_and_the_next_one_mends(searching, use):
    def broken(scene, names):
        raise RuntimeError("off by one")

    use(Rule(broken, "YY broken"), Rule(rights))
    found = searching("w1")
    found.run()
    assert found.gate.faithful(found.current)
    assert "RuntimeError: off by one" in found.refused["YY broken"]
    assert any(note.startswith("YY broken") and "off by one" in note for note in found.notes)


def test_what_the_format_cannot_take_is_refused_without_an_attempt(searching, use):
    change = {"kind": "insert", "value": "hidden", "steps": []}
    edit = Edit(rule="XX test", kind="insert", where="hidden", before=0, after=1, reason="a test", change=change)
    use(Rule(lambda scene, names: [Proposal(edits=(edit,))]))
    found = searching("w1")
    found.run()
    assert found.attempts == []
    assert found.refused["XX test"] == "a fake file cannot take: insert"


def test_what_cannot_be_written_or_run_is_an_attempt_that_says_why(searching, use):
    misspelt = setting("w1", RIGHT["w1"])
    misspelt.change["parameter"] = "w9"
    other_size = proposal("w1", RIGHT["w1"][:, :5])
    attribute = {"kind": "remove-node", "node": "MatMul_product_2"}
    lost = Edit(rule="XX test", kind="remove-node", where="x", before=0, after=1, reason="a test", change=attribute)
    use(Rule(lambda scene, names: [Proposal(edits=(misspelt,)), other_size, Proposal(edits=(lost,))]))
    found = searching("w1")
    found.run()
    assert (found.steps, found.current) == ([], found.gate.target)
    whys = [attempt.why for attempt in found.attempts]
    assert "no constant w9" in whys[0]
    assert "has the shape [6, 8]" in whys[1]
    assert whys[2].startswith("the changed model does not run")
    assert all(math.isnan(attempt.after) for attempt in found.attempts)


def test_the_same_proposal_is_tried_once(searching, use):
    use(Rule(lambda scene, names: [proposal("w1", RIGHT["w1"] * 9, doubt) for doubt in (0.0, 0.1, 0.2)]))
    found = searching("w1")
    found.run()
    assert len([attempt for attempt in found.attempts if attempt.where == READERS["w1"]]) == len(found.attempts) == 1


def test_proposals_are_told_apart_by_what_they_write():
    texts = {
        search.fingerprint(one)
        for one in (
            proposal("w1", RIGHT["w1"]),
            proposal("w1", RIGHT["w1"] * 2),
            proposal("w1", RIGHT["w1"].T),
            proposal("b1", RIGHT["b1"]),
            Proposal(edits=(setting("w1", RIGHT["w1"]), setting("b1", RIGHT["b1"]))),
        )
    }
    assert len(texts) == 5
    assert search.fingerprint(proposal("w1", RIGHT["w1"], 0.4)) == search.fingerprint(proposal("w1", RIGHT["w1"]))


# -- budgets ------------------------------------------------------------------------------------------------------------------


def useless(count):
    return lambda scene, names: [
        proposal("w1", RIGHT["w1"] * (1.9 + 0.01 * place), 0.01 * place) for place in range(count)
    ]


def test_no_more_is_tried_than_allowed(searching, use):
    use(Rule(useless(9)))
    found = searching("w1", attempts=3)
    found.run()
    assert len(found.attempts) == 3
    assert found.over


def test_without_time_nothing_is_tried(searching, use):
    rule = use(Rule(rights))
    found = searching("w1", seconds=-1.0)
    found.run()
    assert (rule.asked, found.attempts, found.current) == ([], [], found.gate.target)


def test_what_was_found_before_the_time_is_up_stays(searching, use):
    def last(scene, names):
        found.deadline = time.monotonic() - 1
        return rights(scene, names)

    def first(scene, names):
        return rights(scene, names) if "w1" in names else last(scene, names)

    use(Rule(first))
    found = searching("w1", "b2")
    found.run()
    assert [edit.change["parameter"] for group in found.steps for edit in group] == ["w1"]
    assert np.array_equal(stored(found.current, "w1"), RIGHT["w1"])
    assert not np.array_equal(stored(found.current, "b2"), RIGHT["b2"])


# -- ventures -------------------------------------------------------------------------------------------------------------------

WRONG = (2 * RIGHT["w1"] + 0.5).astype(np.float32)


def halves(scene, names, *, only=(0, 1)):
    """The source's numbers for some columns, as the file has the others: no single proposal mends the layer."""
    if "w1" not in names:
        return "elsewhere"
    now = stored(scene.target, "w1")
    cuts = [slice(0, 3), slice(3, 8)]
    offered = []
    for place in only:
        array = now.copy()
        array[:, cuts[place]] = RIGHT["w1"][:, cuts[place]]
        if not np.array_equal(array, now):
            offered.append(proposal("w1", array, 0.1 * place))
    return offered or "both halves are right"


def test_what_no_single_edit_mends_is_mended_in_steps(searching, use):
    use(Rule(halves))
    found = searching("w1")
    found.run()
    assert len(found.steps) == 2
    assert np.array_equal(stored(found.current, "w1"), RIGHT["w1"])
    assert found.gate.faithful(found.current)


def test_a_venture_that_leads_nowhere_is_taken_back(searching, use):
    use(Rule(lambda scene, names: halves(scene, names, only=(0,))))
    found = searching("w1")
    found.run()
    assert found.ventured_at == 0
    assert [attempt.accepted for attempt in found.attempts] == [True]
    assert (found.steps, found.current.sha256) == ([], found.gate.target.sha256)


def test_what_stood_before_a_venture_stays(searching, use):
    def both(scene, names):
        return rights(scene, ["b2"]) if "b2" in names else halves(scene, names, only=(0,))

    use(Rule(both))
    found = searching("w1", "b2")
    found.run()
    assert found.ventured_at == 1
    assert [edit.change["parameter"] for group in found.steps for edit in group] == ["b2"]
    assert np.array_equal(stored(found.current, "b2"), RIGHT["b2"])
    assert np.array_equal(stored(found.current, "w1"), WRONG)


# -- which of several is kept, by their scores ------------------------------------------------------------------------------

START = Score(place=100.0, outputs=100.0)
KEPT = {
    "the first that mends": ([(0.0, 50), (0.1, 0.5), (0.2, 0.1)], False, 1, 2),
    "nothing that hardly helps": ([(0.0, 95), (0.1, 91)], False, None, 2),
    "what halves the error": ([(0.0, 80), (0.1, 30), (0.2, 40)], False, 1, 3),
    "the best of those that do not mend": ([(0.0, 30), (0.1, 20), (0.2, 25)], False, 1, 3),
    "at a coarse precision the best of those that mend": ([(0.0, 0.9), (0.1, 0.2), (0.2, 0.5)], True, 1, 3),
    "but only of so many": ([(0.01 * n, 0.9 - 0.01 * n) for n in range(COARSE + 3)], True, COARSE - 1, COARSE),
    "no doubtful one beside one that mends": ([(0.0, 0.9), (CERTAIN, 0.1)], True, 0, 1),
    "a doubtful one where nothing else mends": ([(0.0, 60), (CERTAIN, 0.5)], False, 1, 2),
    "what cannot be tried is passed over": ([(0.0, None), (0.1, 0.5)], False, 1, 2),
    "nothing where nothing can be tried": ([(0.0, None), (0.1, None)], False, None, 2),
}
"""(doubt, error after it) of proposals, whether coarse -> place of the one kept, how many were tried."""


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT)
def test_of_several_the_right_one_is_kept(case, monkeypatch):
    offers, coarse, wanted, count = case
    gone, kept, asked = [], [], []
    found = Search(gate=_Nothing(), attempts_left=50, deadline=math.inf)
    proposals = [Proposal(edits=(setting("w1", RIGHT["w1"]),), doubt=doubt) for doubt, _ in offers]

    def attempt(self, one, judge, start):
        place = next(number for number, other in enumerate(proposals) if other is one)
        asked.append(place)
        after = offers[place][1]
        return None if after is None else (Score(place=float(after), outputs=1000.0), f"file {place}")

    monkeypatch.setattr(Search, "_tried_out", attempt)
    monkeypatch.setattr(Search, "_keep", lambda self, artifact, one: kept.append(artifact))
    monkeypatch.setattr(editing, "discard", lambda session, artifact: gone.append(artifact))
    found._best(proposals, None, Ok(START), coarse=coarse)
    assert kept == ([] if wanted is None else [f"file {wanted}"])
    assert len(asked) == count
    held = [] if found._nearest is None else [found._nearest[1]]
    written = [f"file {place}" for place in asked if offers[place][1] is not None]
    assert sorted([*gone, *kept, *held]) == sorted(written), "every file is kept or discarded, once"


def test_only_what_helps_a_little_is_remembered_for_a_venture(monkeypatch):
    monkeypatch.setattr(editing, "discard", lambda session, artifact: None)
    for after, remembered in ((100 * LITTLE + 1, False), (100 * LITTLE - 1, True), (100 * PARTLY + 1, True)):
        found = Search(gate=_Nothing(), attempts_left=50, deadline=math.inf)
        score = Score(place=after, outputs=1000.0)
        monkeypatch.setattr(Search, "_tried_out", lambda *_, score=score: (score, "file"))
        assert found._best([proposal("w1", RIGHT["w1"])], None, Ok(START), coarse=False) is None
        assert (found._nearest is not None) == remembered


class _Nothing:
    """A gate that no one goes through."""

    target = None
    session = None


# -- the whole: ^C, statuses, files ------------------------------------------------------------------------------------------


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def repaired(models, tmp_path):
    """repaired(constants) -> what `repair` gives; that neither model was written to is looked after here."""

    def make(*names, out="fixed.fake", **facts):
        reference, target, given = models(*names)
        before = digest(reference.artifact.path), digest(target.path)
        there = {path.name for path in tmp_path.iterdir()}
        facts = {"tools": False, **facts}
        done = run.repair(reference, target, given, out=out and tmp_path / out, **facts)
        assert (digest(reference.artifact.path), digest(target.path)) == before
        assert {path.name for path in tmp_path.iterdir()} - there == ({out} if done.output else set())
        return done

    return make


def test_a_faithful_target_needs_nothing_and_nothing_is_searched(repaired, use):
    rule = use(Rule(rights))
    done = repaired()
    assert (done.status, done.edits, done.output, done.after) == (Status.NOT_NEEDED, (), None, None)
    assert rule.asked == []


def test_repaired_improved_and_unrepaired(repaired, use):
    use(Rule(rights))
    done = repaired("w1", "b2")
    assert done.status is Status.REPAIRED
    assert done.after.verdict.value == "faithful"
    assert done.artifact.sha256 == digest(done.output)
    use(Rule(lambda scene, names: rights(scene, [name for name in names if name == "w1"]) or "not this one"))
    done = repaired("w1", "b2", out="better.fake")
    assert (done.status, [edit.change["parameter"] for edit in done.edits]) == (Status.IMPROVED, ["w1"])
    assert done.after.verdict.value == "deviates"
    use(Rule(lambda scene, names: "nothing at all"))
    done = repaired("w1", "b2", out="nothing.fake")
    assert (done.status, done.output, done.artifact) == (Status.UNREPAIRED, None, None)
    assert done.refused["XX test"] == "nothing at all"


def test_without_a_place_the_mended_file_stays_in_the_session(repaired, use, session):
    use(Rule(rights))
    done = repaired("w1", out=None)
    assert done.output is None
    assert done.artifact.path.is_relative_to(session.pool.folder)
    assert done.artifact.path.exists()


def test_interrupted_at_the_second_fault_the_first_stays_mended(repaired, use):
    def propose(scene, names):
        if "w1" in names:
            return rights(scene, names)
        raise KeyboardInterrupt

    use(Rule(propose))
    done = repaired("w1", "b2")
    assert (done.status, done.interrupted) == (Status.IMPROVED, True)
    assert [edit.change["parameter"] for edit in done.edits] == ["w1"]
    assert done.output.exists()


def test_interrupted_while_edits_are_left_out_all_stay(repaired, use, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    use(Rule(rights))
    monkeypatch.setattr(Gate, "needed", stop)
    done = repaired("w1", "b2")
    assert (done.status, done.interrupted) == (Status.REPAIRED, True)
    assert sorted(edit.change["parameter"] for edit in done.edits) == ["b2", "w1"]


def test_interrupted_while_other_tools_are_tried_what_is_nearer_stays(repaired, use, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    use(Rule(lambda scene, names: rights(scene, [name for name in names if name == "w1"]) or "not this one"))
    monkeypatch.setattr(run, "switch", stop)
    done = repaired("w1", "b2", tools=True)
    assert (done.status, done.interrupted) == (Status.IMPROVED, True)
    assert [edit.change["parameter"] for edit in done.edits] == ["w1"]


def test_a_budget_of_one_attempt_is_kept(repaired):
    done = repaired("w1", "b2", budget=Budget(attempts=1))
    assert len(done.attempts) == 1
    assert done.status is Status.IMPROVED
    assert {edit.rule for edit in done.edits} == {parameters.NAME}


def test_a_flaky_target_is_not_mended(session, tmp_path, use):
    """No edit makes it answer twice alike, so that nothing can count as faithful."""
    use(Rule(rights))
    source = Artifact.open(write(tmp_path / "source.fake"))
    target = Artifact.open(write(tmp_path / "target.fake", faults={"run": ["random:0.2"]}))
    reference = verification.reference(session, source).value
    given = api.open_feeds(session, source, None)
    done = run.repair(reference, target, given, out=tmp_path / "fixed.fake", tools=False)
    assert (done.status, done.edits) == (Status.UNREPAIRED, ())
    assert not (tmp_path / "fixed.fake").exists()


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_the_users_few_samples_are_enough(models, tmp_path, use, samples):
    use(Rule(rights))
    reference, target, _ = models("w1")
    data = {"x0": np.random.default_rng(samples).normal(size=(samples, 6)).astype(np.float32)}
    given = api.open_feeds(reference.session, reference.artifact, data)
    done = run.repair(reference, target, given, out=tmp_path / "fixed.fake", tools=False)
    assert done.status is Status.REPAIRED
