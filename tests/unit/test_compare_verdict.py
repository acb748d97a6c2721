"""The rules of the verdict one by one, and for every tolerance a mutant: widened, it would let a fault pass."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from compare_cases import FLOOR, KINDS, clean, copy, floors_of, noisy, one, source_runs

from trueport.compare import channels, checks, floor, judge
from trueport.compare.types import FloorRun, Verdict
from trueport.errors import UsageError
from trueport.outcome import Failure, Kind, Stage

RNG = np.random.default_rng(8)
X = RNG.standard_normal((16, 2, 50)).astype(np.float32)
F, D, I, Y = Verdict.FAITHFUL, Verdict.DEVIATES, Verdict.INCOMPARABLE, Verdict.FLAKY  # noqa: E741


def spiked(array, size, index=(3, 1, 7)):
    """One element off by `size` times the signal."""
    array = array.copy()
    array[index] += size
    return array


def simulated(array, amount, precision="int8"):
    return FloorRun(how=f"simulated {precision}", runs={"data": {"y": noisy(array, amount, 77)}})


def int8(deviation, *, floor_amount=0.1, **changes):
    """A target declared int8 with `deviation`, against a simulation that moves by `floor_amount`."""
    trial = one(X, noisy(X, deviation, 5), declared="int8")
    return trial.but(floors=(*trial.floors, simulated(X, floor_amount)), **changes)


# -- bounds, and that each of them matters ------------------------------------------------------------------------------

ARGMAX = RNG.standard_normal((500, 2, 20)).argmax(-1)


def argmax_floor(share):
    """Floor runs of an exact output in which a share of the elements differs."""
    moved = ARGMAX.copy()
    moved.reshape(-1)[: round(share * moved.size)] += 1
    return (FloorRun(how="float64", runs={"data": {"y": moved}}),)


def exact(share, floor_share, **changes):
    target = ARGMAX.copy()
    target.reshape(-1)[-round(share * target.size) :] += 1
    return one(ARGMAX, target).but(floors=argmax_floor(floor_share), **changes)


def two_scales(fault):
    """One channel in thousands, the other below one and off by `fault`: the noise of the first hides the second."""
    source = X[..., :2].copy()
    source[..., 0] *= 1e3
    target, ways = source.copy(), []
    for channel, size in ((0, 1e3), (1, 1.0)):
        target[..., channel] = source[..., channel] + FLOOR * size * RNG.standard_normal(source.shape[:2])
    target[..., 1] *= 1 + fault
    for seed in (1, 2, 3):
        way = source.astype(np.float64)
        way += FLOOR * np.array([1e3, 1.0]) * np.random.default_rng(seed).standard_normal(source.shape)
        ways.append(FloorRun(how=f"way {seed}", runs={"data": {"y": way.astype(np.float32)}}))
    return one(source, target).but(floors=tuple(ways))


def reduced_probe(declared):
    runs = source_runs()
    target = copy(runs)
    target["probe-zeros"]["scores"] += 1
    extra = FloorRun(
        how="simulated int8", runs={c: {n: noisy(v, 0.05, 3) for n, v in o.items()} for c, o in runs.items()}
    )
    return clean().but(source=runs, target=target, declared=declared, floors=(*floors_of(runs), extra))


BIG = np.float32(1e5)
"""An offset beside which the signal is some 40 roundings of the output."""

MUTANTS = [
    # constant, where it is used, value that would hide the fault, a trial whose fault it must catch
    ("RATIO_BOUND_RMS", judge, 100.0, one(X, noisy(X, 12 * FLOOR, 1))),
    ("RATIO_BOUND_MAX", judge, 1e9, one(X, spiked(X, 2e-4))),
    ("REDUCED_BOUND_RMS", judge, 1e9, int8(0.4)),
    ("REDUCED_BOUND_MAX", judge, 1e9, one(X, spiked(noisy(X, 0.05, 1), 5), declared="int8").but(floors=(simulated(X, 0.1),))),
    ("REDUCED_CAP", checks, 1e9, int8(0.6, floor_amount=0.3)),
    ("EXACT_BOUND", checks, 1e9, exact(0.04, 0.01)),
    ("EXACT_CAP", checks, 1.0, exact(0.1, 0.2)),
    ("REDUCED_EXACT_CAP", checks, 1.0, exact(0.4, 0.5, declared="int8")),
    ("MINORITY", checks, 1.0, one(np.where(X < 0.5, np.nan, X), np.where(X < 0.5, np.nan, X))),
    ("SLICE_BOUND", checks, 1e12, two_scales(1e-3)),
    ("VISIBLE", judge, 1.0, one(X + BIG, noisy(X, 0.05, 1) + BIG, floor=0.0)),
    ("GROSS", floor, 1e9, one(X, noisy(X, 0.5, 1), floor=0.05)),
    ("OUTLIER", floor, 1e12, one(X, noisy(X, 1e-3, 1)).but(floors=(*one(X, X).floors, FloorRun(how="odd", runs={"data": {"y": noisy(X, 2e-3, 9)}})))),
    ("MINIMUM_ROUNDINGS", floor, 1e4, one(X, noisy(X, 1e-4, 1), floor=0.0)),
    ("NARROWED_ROUNDINGS", floor, 1e4, one(X.astype(np.float64), noisy(X, 1e-4, 1), floor=0.0)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "module", "wide", "trial"), MUTANTS, ids=lambda row: row if isinstance(row, str) else "")  # fmt: skip
def test_every_tolerance_catches_something_that_a_wider_one_would_not(monkeypatch, name, module, wide, trial):
    assert trial.run().verdict is not F
    before = trial.run().verdict
    for part in (judge, checks, floor, channels):
        if hasattr(part, name):
            monkeypatch.setattr(part, name, wide)
    if name in ("REDUCED_CAP",):  # also read by CaseResult
        from trueport.compare import results

        monkeypatch.setattr(results, name, wide)
    if name == "GROSS":
        assert before is D
        assert trial.run().verdict is D, "a deviation of ten floors is one whatever GROSS says"
        calm = one(X, noisy(X, 0.05, 1), floor=0.05)
        assert calm.run().verdict is I, "beside a floor of 5 % no fault could be seen"
        return
    assert trial.run().verdict is F


@pytest.mark.parametrize(
    "trial",
    [
        one(X, noisy(X, 5 * FLOOR, 1)),
        one(X, spiked(X, 20 * FLOOR)),
        one(X, spiked(X, 2e-6), floor=0.0),
        int8(0.2),
        exact(0.02, 0.015),
        two_scales(0.0),
    ],
)
def test_just_inside_the_bounds_is_faithful(trial):
    result = trial.run()
    assert result.verdict is F, result.reason


def test_one_wrong_element_among_a_million_and_one_wrong_sample_among_many():
    source = RNG.standard_normal((4, 1, 250_000)).astype(np.float32)
    result = one(source, spiked(source, 0.01, (2, 0, 123_456))).run()
    assert result.verdict is D
    assert result.outputs[0].worst_index == ("data", 2, 0, 123_456)
    many = RNG.standard_normal((500, 1, 20)).astype(np.float32)
    wrong = many.copy()
    wrong[321] = many[320]
    assert one(many, wrong).run().verdict is D


def test_small_faults_of_one_percent_are_found_under_the_floor_of_a_deep_net():
    """ResNet-101 in float32 moves by 7e-4; a weight off by 1 % moves an output by more."""
    assert one(X, noisy(X, 7e-4, 1), floor=7e-4).run().verdict is F
    assert one(X, noisy(X, 1e-2, 1), floor=7e-4).run().verdict is D


# -- flaky ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["repeat_source", "repeat_target"])
def test_a_model_that_differs_from_itself_is_flaky(side):
    dropout = {"data": {"y": noisy(X, 0.3, 3)}}
    same = {"data": {"y": noisy(X, FLOOR, 3)}}
    result = one(X, noisy(X, 0.3, 4), **{side: dropout}).run()
    assert result.verdict is Y, result.reason
    assert side.removeprefix("repeat_") in result.reason
    assert one(X, X, **{side: same}).run().verdict is F
    assert one(X, X, **{side: {"data": {"y": X[:4]}}}).run().verdict is F, "a repeat may cover the first runs only"
    assert one(X, X, **{side: {}}).run().verdict is F


def test_restlessness_that_does_not_explain_the_deviation_is_no_excuse():
    assert one(X, noisy(X, 0.5, 4), repeat_source={"data": {"y": noisy(X, 1e-4, 3)}}).run().verdict is D


@pytest.mark.parametrize(
    "again",
    [
        {"data": Failure(stage=Stage.RUN, kind=Kind.CRASHED, message="gone")},
        {"data": {}},
        {"data": {"y": X[:, :1]}},
        {"data": {"y": X.astype(np.float64)}},
        {"data": {"y": np.where(X > 2, np.nan, X)}},
    ],
)
def test_a_second_run_that_is_not_the_same_kind_of_thing_is_flaky(again):
    assert one(X, X, repeat_target=again).run().verdict is Y


def test_random_labels_are_flaky():
    assert one(ARGMAX, ARGMAX + 1, repeat_source={"data": {"y": ARGMAX + 2}}).run().verdict is Y


def test_an_unstable_source_is_flaky_and_says_by_how_much():
    result = one(X, noisy(X, 0.05, 1), floor=0.05).run()
    assert result.verdict is Y
    assert "0.05" in result.reason
    assert "float64" in result.reason


@pytest.mark.parametrize(("kind", "verdict"), [("data", Y), ("batch", Y), ("probe", F)])
def test_two_definite_answers_of_the_source_are_no_reference(kind, verdict):
    """The target equals what the source's default kernels give, but its other kernels agree on something else."""
    other = noisy(X, 0.5, 9)
    values = {"jitter": noisy(X, FLOOR, 1), "thread": noisy(X, FLOOR, 2), "plain": other, "double": other}
    good = {"data": {"y": X + 1}}
    ways = tuple(
        FloorRun(how=how, runs={"data": {"y": noisy(X + 1, FLOOR, 4)}, "odd": {"y": value}})
        for how, value in values.items()
    )
    runs = good | {"odd": {"y": X}}
    result = one(X, X).but(source=runs, target=runs, kinds={"data": "data", "odd": kind}, floors=ways).run()
    assert result.verdict is verdict, result.reason
    if verdict is Y:
        assert "plain, double, which agree" in result.reason


def test_decisions_of_a_restless_source_are_not_blamed_on_the_target():
    again = {"data": {"y": noisy(X, 0.3, 4)}}
    result = one(X, noisy(X, 0.3, 5), repeat_source=again, task="classification").run()
    assert result.verdict is Y
    assert result.decisions.top1_flips > 0
    assert one(X, noisy(X, 0.3, 5), task="classification").run().verdict is D


def test_ties_in_a_probe_say_nothing():
    ties = np.zeros((1, 2, 20), dtype=np.int64)
    runs, target = {"data": {"y": ARGMAX}, "ties": {"y": ties}}, {"data": {"y": ARGMAX}, "ties": {"y": ties + 1}}
    moved = FloorRun(how="inputs moved by one ulp", runs={"data": {"y": ARGMAX}, "ties": {"y": ties + 2}})
    trial = one(ARGMAX, ARGMAX).but(source=runs, target=target, kinds={"data": "data", "ties": "probe"})
    result = trial.but(floors=(moved,)).run()
    assert result.verdict is F, result.reason
    assert "ties, of which this case says nothing" in " ".join(result.notes)
    steady = FloorRun(how="float64", runs=runs)
    assert trial.but(floors=(steady,)).run().verdict is D
    assert trial.but(floors=(moved,), kinds={"data": "data", "ties": "data"}).run().verdict is D


def test_an_unstable_case_beside_a_stable_one_is_a_note():
    runs = {"data": {"y": X}, "dull": {"y": X * np.float32(1e-6)}}
    ways = tuple(
        FloorRun(
            how=how, runs={"data": {"y": noisy(X, FLOOR, seed)}, "dull": {"y": noisy(runs["dull"]["y"], 0.1, seed)}}
        )
        for seed, how in enumerate(("float64", "threads"))
    )
    result = one(X, X).but(source=runs, target=runs, kinds={"data": "data", "dull": "data"}, floors=ways).run()
    assert result.verdict is F, result.reason
    assert "dull" in " ".join(result.notes)


# -- declared precision ----------------------------------------------------------------------------------------------------


def test_declared_precision_is_judged_against_its_simulation_and_says_so():
    result = int8(0.1).run()
    assert result.verdict is F
    assert "faithful at int8" in result.reason
    assert int8(0.1, declared="float32").run().verdict is D, "nobody declared int8"
    assert int8(0.1, declared="float16").run().verdict is I, "another precision's simulation does not count"


def test_without_a_simulation_rounding_cannot_be_told_from_a_fault():
    trial = one(X, noisy(X, 0.1, 5), declared="int8")
    assert trial.run().verdict is I
    assert "could not be evaluated at int8" in trial.run().reason
    assert one(X, noisy(X, FLOOR, 5), declared="int8").run().verdict is F
    assert one(X, noisy(X, 0.9, 5), declared="int8").run().verdict is D


def test_inputs_on_which_the_precision_alone_drowns_the_signal_prove_nothing():
    assert int8(0.8, floor_amount=0.8).run().verdict is I
    assert "representative inputs" in int8(0.8, floor_amount=0.8).run().reason
    wrong = int8(50.0, floor_amount=0.8).run()
    assert wrong.verdict is I
    assert "times the noise floor" in " ".join(wrong.notes)


def test_a_case_that_the_precision_drowns_does_not_hide_a_fault_on_other_data():
    runs = {"data": {"y": X}, "dull": {"y": (1 + X * 1e-6).astype(np.float32)}}
    extra = FloorRun(how="simulated int8", runs={"data": {"y": noisy(X, 0.1, 3)}, "dull": {"y": runs["dull"]["y"] + X[::-1] * np.float32(0.1)}})  # fmt: skip
    trial = one(X, X).but(source=runs, kinds={"data": "data", "dull": "data"}, declared="int8", floors=(extra,))
    fine = {"data": {"y": noisy(X, 0.1, 5)}, "dull": {"y": runs["dull"]["y"] + np.float32(5)}}
    assert trial.but(target=fine).run().verdict is F
    assert trial.but(target=dict(fine, data={"y": noisy(X, 0.45, 5)})).run().verdict is D


def test_a_probe_counts_in_full_precision_and_is_a_note_below_it():
    assert reduced_probe("float32").run().verdict is D
    lenient = reduced_probe("int8").run()
    assert lenient.verdict is F, lenient.reason
    assert "outside the range that int8 was made for" in " ".join(lenient.notes)


def test_declared_float16_may_give_float16():
    trial = one(X, noisy(X, 2e-4, 5).astype(np.float16), declared="float16")
    result = trial.but(floors=(*trial.floors, simulated(X, 1e-3, "float16"))).run()
    assert result.verdict is F, result.reason


# -- the rest --------------------------------------------------------------------------------------------------------------


def test_decisions_that_change_outside_the_noise_forbid_faithful_and_are_counted():
    labels = X.reshape(-1, 50).argmax(1)
    clean_twin = one(X, noisy(X, FLOOR, 1), task="classification", labels=labels).run()
    assert clean_twin.decisions.accuracy_source == 1.0
    assert clean_twin.decisions.top1_flips == 0
    result = one(X, X[..., ::-1].copy(), task="auto", labels=labels).run()
    assert result.verdict is D
    assert result.decisions.top1_flips == 32
    assert result.decisions.accuracy_target < 0.2
    with pytest.raises(UsageError, match="labels"):
        one(X, X, task="classification", labels=labels[:-1]).run()
    with pytest.raises(UsageError, match="unknown task"):
        one(X, X, task="classify").run()


def test_a_flip_of_a_near_tie_is_within_the_noise():
    source = X.copy()
    source[0, 0, :2] = 10.0, 10.0 + 1e-6
    target = source.copy()
    target[0, 0, :2] = 10.0 + 1e-6, 10.0
    result = one(source, target, task="classification").run()
    assert result.verdict is F, result.reason
    assert (result.decisions.top1_flips, result.decisions.flips_within_noise) == (1, 1)


def test_probes_need_equal_overflow_only_where_the_source_is_steady():
    runs = source_runs()
    target, way = copy(runs), floors_of(runs)
    target["probe-zeros"]["scores"][0, 0, 0] = np.inf
    assert clean().but(source=runs, target=target, floors=way).run().verdict is D
    way[0].runs["probe-zeros"]["scores"][0, 0, 1] = np.inf
    steady = clean().but(source=runs, target=target, floors=way).run()
    assert steady.verdict is F, steady.reason
    assert "in another way" in " ".join(steady.notes)


def test_a_probe_on_which_the_target_does_not_overflow_is_a_note():
    runs = source_runs()
    runs["probe-zeros"]["scores"][0, 0, 0] = np.inf
    target = copy(runs)
    target["probe-zeros"]["scores"][0, 0, 0] = 1.0
    assert clean().but(source=runs, target=target, floors=floors_of(runs)).run().verdict is F


def test_an_output_of_two_in_swapped_order_names_both():
    runs = source_runs()
    for number, outputs in enumerate(runs.values()):
        outputs["other"] = noisy(outputs["scores"], 1.0, number)
    target = copy(runs)
    for outputs in target.values():
        outputs["other"], outputs["scores"] = outputs["scores"], outputs["other"]
    result = clean().but(source=runs, target=target, floors=floors_of(runs)).run()
    assert result.verdict is D
    assert "target output 'other' holds the source's output 'scores'" in result.reason
    target["data"]["other"][0, 0, 0] += 0.5
    result = clean().but(source=runs, target=target, floors=floors_of(runs)).run()
    assert result.verdict is D
    assert "another order" not in result.reason


def test_failed_ways_are_skipped_and_listed():
    broken = FloorRun(
        how="float64", runs=dict.fromkeys(KINDS, Failure(stage=Stage.RUN, kind=Kind.RAISED, message="no kernel"))
    )
    trial = clean()
    result = trial.but(floors=(*trial.floors, broken)).run()
    assert result.verdict is F
    assert "no kernel" in " ".join(result.notes)
    alone = one(X, X).but(floors=(FloorRun(how="float64", runs={"data": broken.runs["data"]}),)).run()
    assert alone.verdict is F
    assert "rounding alone" in " ".join(alone.notes)


def test_the_reason_names_the_worst_output_and_its_number():
    trial = clean()
    trial.target["data"]["scores"][...] += np.float32(1e-3)
    trial.target["data"]["features"][...] += np.float32(0.5)
    result = trial.run()
    assert "'features'" in result.reason
    assert "times the noise floor" in result.reason
    assert [item.verdict for item in result.outputs] == [D, D]


def test_the_json_form_has_the_published_keys_and_plain_values():
    trial = clean()
    document = trial.but(task="classification").run().to_json()
    assert set(document) == {"verdict", "reason", "outputs", "unpaired", "decisions"}
    keys = {"source", "target", "permutation", "verdict", "max_abs", "max_rel", "rmse", "cosine", "psnr", "ulp_p99", "floor", "ratio", "worst_index", "source_nonfinite", "target_nonfinite"}  # fmt: skip
    assert keys <= set(document["outputs"][0])
    assert set(document["decisions"]) == {"task", "count", "top1_flips", "flips_within_noise", "topk_overlap", "accuracy_source", "accuracy_target"}  # fmt: skip
    assert json.loads(json.dumps(document))["verdict"] == "faithful"
    nothing = one(X * np.nan, X).run().to_json()
    assert np.isnan(nothing["outputs"][0]["rmse"])


def test_the_same_arguments_give_the_same_result_and_no_warning():
    bad = X.copy()
    bad[0, 0, :4] = np.inf, -np.inf, np.nan, 3e38
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source, target in ((X, bad), (bad, X), (bad, bad)):
            trial = one(source, target)
            assert json.dumps(trial.run().to_json()) == json.dumps(trial.run().to_json())


def test_a_verdict_is_never_a_bool():
    with pytest.raises(TypeError, match="no truth value"):
        bool(clean().run().verdict)
