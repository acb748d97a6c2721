"""Label flips, margins, top-k overlap and accuracy; which output is a classifier's."""

from __future__ import annotations

import numpy as np
import pytest

from trueport.compare.decisions import Scores, choose_output, decide, looks_like_scores
from trueport.errors import UsageError

RNG = np.random.default_rng(4)
LOGITS = RNG.standard_normal((6, 2, 10)).astype(np.float32)
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)


def scores(source, target=None, noise=0.0, case="data"):
    return Scores(case=case, source=source, target=source if target is None else target, noise=noise)


def flipped(value, run, row, margin):
    """Make the second best class of one row win by half of `margin`, and the margin before it `margin`."""
    source = value.copy()
    order = np.argsort(-source[run, row])
    source[run, row, order[1]] = source[run, row, order[0]] - margin
    target = source.copy()
    target[run, row, order[1]] += 1.5 * margin
    return source, target, order[0], order[1]


@pytest.mark.parametrize(
    ("value", "labelled", "expected"),
    [
        (PROBABILITIES, False, True),
        (LOGITS, False, True),
        (np.abs(LOGITS) + 1, False, False),
        (np.abs(LOGITS) + 1, True, True),
        (PROBABILITIES[..., :1], False, True),
        (LOGITS[..., :1], False, False),
        (LOGITS[:, 0], False, False),
        (LOGITS[..., np.newaxis], False, False),
        (LOGITS.astype(np.int64), False, False),
        (LOGITS * np.nan, False, False),
        (LOGITS[:0], False, False),
        (np.zeros((1, 1, 100_001), np.float32), True, False),
        ([LOGITS[0], LOGITS[1]], False, False),
    ],
)
def test_what_looks_like_class_scores(value, labelled, expected):
    assert looks_like_scores(value, labelled=labelled) is expected


def test_the_first_output_that_looks_like_scores_is_chosen_and_an_explicit_task_wins():
    outputs = [("boxes", np.abs(LOGITS) + 5), ("scores", PROBABILITIES)]
    assert choose_output("auto", outputs, labelled=False) == ("classification", "scores")
    assert choose_output("classification", outputs, labelled=False) == ("classification", "boxes")
    assert choose_output("regression", outputs, labelled=False) is None
    assert choose_output("auto", outputs[:1], labelled=False) is None


@pytest.mark.parametrize(
    ("task", "outputs", "labelled", "words"),
    [
        ("classify", [], False, "unknown task"),
        ("auto", [("ids", LOGITS.astype(int))], True, "name the task"),
        ("classification", [("ids", LOGITS.astype(int))], False, "no output of the source"),
    ],
)
def test_requests_that_cannot_be_served(task, outputs, labelled, words):
    with pytest.raises(UsageError, match=words):
        choose_output(task, outputs, labelled=labelled)


def test_no_flip_no_change():
    found = decide("classification", [scores(LOGITS)], None)
    assert (found.count, found.top1_flips, found.flips_within_noise, found.topk_overlap) == (12, 0, 0, 1.0)
    assert found.accuracy_source is None


@pytest.mark.parametrize(("noise", "within"), [(0.2, 1), (0.049, 0), (0.051, 1)])
def test_a_flip_is_within_the_noise_when_both_scores_moving_by_it_close_the_margin(noise, within):
    source, target, before, after = flipped(LOGITS, 3, 1, 0.1)
    found = decide("classification", [scores(source, target, noise)], None)
    assert (found.top1_flips, found.flips_within_noise) == (1, within)
    assert found.flipped[0]["margin"] == pytest.approx(0.1, rel=1e-4)
    assert (found.flipped[0]["source_label"], found.flipped[0]["target_label"]) == (before, after)
    assert found.flipped[0]["run"] == 3


def test_overlap_of_the_best_five_and_of_few_classes():
    target = LOGITS.copy()
    best = np.argsort(-LOGITS[0, 0])
    target[0, 0, best[4]], target[0, 0, best[5]] = LOGITS[0, 0, best[5]], LOGITS[0, 0, best[4]]
    assert decide("classification", [scores(LOGITS, target)], None).topk_overlap == pytest.approx(1 - 1 / 5 / 12)
    few = LOGITS[..., :3]
    assert decide("classification", [scores(few, -few)], None).topk_overlap == pytest.approx(0.5)


def test_one_probability_is_a_binary_decision_at_one_half():
    source = np.array([0.2, 0.6, 0.49, 0.9]).reshape(4, 1, 1)
    target = np.array([0.2, 0.6, 0.51, 0.4]).reshape(4, 1, 1)
    found = decide("classification", [scores(source, target, noise=0.011)], np.array([0, 1, 0, 1]))
    assert (found.count, found.top1_flips, found.flips_within_noise) == (4, 2, 1)
    assert (found.accuracy_source, found.accuracy_target) == (1.0, 0.5)


def test_accuracy_over_cases_in_the_order_given():
    first, second = LOGITS[:2], LOGITS[2:]
    labels = LOGITS.reshape(-1, 10).argmax(1)
    both = [scores(first, case="z"), scores(second, -second, case="a")]
    found = decide("classification", both, labels)
    assert found.accuracy_source == 1.0
    assert found.accuracy_target == pytest.approx(4 / 12)
    only = decide("classification", [scores(first), scores(second, case="data-wide")], labels[:4])
    assert only.accuracy_source == 1.0


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(5), "5 labels for 12 samples"),
        (np.full(12, 10), "reach from 10 to 10"),
        (np.full(12, -1), "reach from -1"),
        (np.zeros((12, 10)), "one integer per sample"),
        (np.full(12, 0.5), "one integer per sample"),
        (np.array(["cat"] * 12), "one integer per sample"),
    ],
)
def test_labels_that_do_not_fit(labels, words):
    with pytest.raises(UsageError, match=words):
        decide("classification", [scores(LOGITS)], labels)


def test_whole_numbers_in_a_float_array_are_labels():
    labels = LOGITS.reshape(-1, 10).argmax(1).astype(np.float64)
    assert decide("classification", [scores(LOGITS)], labels).accuracy_source == 1.0


def test_not_a_number_never_wins():
    target = LOGITS.copy()
    target[0, 0, :] = np.nan
    target[1, 0, LOGITS[1, 0].argmin()] = np.nan
    found = decide("classification", [scores(LOGITS, target)], None)
    assert found.top1_flips == (1 if LOGITS[0, 0].argmax() != 0 else 0)


def test_tokens_and_segmentation_decide_at_every_position():
    assert decide("tokens", [scores(RNG.standard_normal((2, 3, 7, 11)))], None).count == 2 * 3 * 7
    first = RNG.standard_normal((2, 1, 4, 9, 8))
    last = np.moveaxis(first, 2, -1)
    assert decide("segmentation", [scores(first)], None).count == 2 * 9 * 8
    assert decide("segmentation", [scores(first, -first)], None).top1_flips == decide("segmentation", [scores(last, -last)], None).top1_flips  # fmt: skip


def test_ragged_runs_count_too():
    ragged = [LOGITS[0], LOGITS[1, :1]]
    assert decide("classification", [scores(ragged)], None).count == 3
