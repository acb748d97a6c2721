"""A suppression written out into a TFLite file gives what TensorFlow's gives, computed here box by box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tflite_suppression_model import BOXES, MOST, OVERLAP, SCORE

from trueport.graph import Graph
from trueport.outcome import Ok, Stage
from trueport.repairs.rules import suppression

MODULE = "trueport.frameworks.tflite"
HERE = str(Path(__file__).parent)


def picked(boxes, scores):
    """TensorFlow's rule: best score first, of equal ones the first; out goes what overlaps a picked one by more."""

    def overlap(one, other):
        low = [np.minimum(box[:2], box[2:]) for box in (one, other)]
        high = [np.maximum(box[:2], box[2:]) for box in (one, other)]
        areas = [np.prod(end - begin) for begin, end in zip(low, high, strict=True)]
        if min(areas) <= 0:
            return 0.0
        common = np.prod(np.maximum(np.minimum(*high) - np.maximum(*low), 0))
        return common / (sum(areas) - common)

    found = []
    for index in sorted(range(len(scores)), key=lambda place: (-scores[place], place)):
        if scores[index] > SCORE and all(overlap(boxes[index], boxes[other]) <= OVERLAP for other in found):
            found.append(index)
    return found[:MOST]


@pytest.fixture(scope="module")
def call(pool, env, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("suppression"))
    made = pool.call(
        env("litert"), "tflite_suppression_model", "write", {"folder": folder}, stage=Stage.LOAD, paths=[HERE]
    )
    assert isinstance(made, Ok), made

    def run(function, path=made.value.value["suppression"], *, emit=False, **more):
        done = pool.call(
            env("litert"), MODULE, function, {"path": str(path), "trust": False, **more}, stage=Stage.TRACE, emit=emit
        )
        assert isinstance(done, Ok), done
        return done.value

    return run


@pytest.fixture(scope="module")
def mended(call, tmp_path_factory):
    """The file with its suppression written out."""
    node = Graph.from_wire(call("graph").value).nodes[0]
    shapes = {"boxes": (BOXES, 4), "scores": (BOXES,)}
    words, arrays = suppression.written_out(node, shapes, call("parameters", emit=True).emitted)
    out = tmp_path_factory.mktemp("mended") / "mended.tflite"
    change = {"kind": "recompute", "value": node.outputs[0], "nodes": words}
    call("edit", edits=[change], arrays=arrays, out=str(out))
    return out


@pytest.fixture
def indices(call):
    """indices(path, boxes, scores) -> those of each run."""

    def run(path, boxes, scores):
        case = {"boxes": np.asarray(boxes, np.float32), "scores": np.asarray(scores, np.float32)}
        given = call("run", path, cases={"case": case}, precision="float32", variant="builtin").value["case"]
        return [[int(index) for index in one] for one in next(iter(given.values()))]

    return run


def cases(kind, runs=24):
    rng = np.random.default_rng(3)
    boxes, scores = rng.standard_normal((runs, BOXES, 4)), rng.random((runs, BOXES))
    if kind == "coarse":  # boxes without area, overlaps of exactly the limit, equal scores
        return np.round(2 * boxes), np.round(4 * scores) / 4
    if kind == "crowded":
        return boxes * 0.1 + np.array([0.0, 0.0, 1.0, 1.0]), scores
    if kind == "few":
        return boxes, scores * 0.4
    return boxes, scores


@pytest.mark.parametrize("kind", ["plain", "coarse", "crowded", "few"])
def test_it_gives_what_tensorflow_gives(mended, indices, kind):
    boxes, scores = cases(kind)
    wanted = [
        picked(one.astype(np.float32), other.astype(np.float32)) for one, other in zip(boxes, scores, strict=True)
    ]
    assert indices(mended, boxes, scores) == wanted
    assert len({len(one) for one in wanted}) > 1, "the lists must have several lengths to show anything"


def test_litert_itself_fills_up_and_repeats(call, indices):
    """The fault that is mended: were it gone, the rule would be in vain."""
    boxes, scores = cases("coarse")
    path = call.__defaults__[0]
    found = indices(path, boxes, scores)
    assert {len(one) for one in found} == {MOST}
    point = np.zeros((1, BOXES, 4))
    assert len(set(indices(path, point, np.ones((1, BOXES)))[0])) < MOST


def test_no_box_at_all_is_an_empty_list_and_the_next_run_is_whole(mended, indices):
    """The length is left free in the file, though the run on zeros after an edit gives an empty list."""
    boxes, scores = cases("plain", runs=3)
    scores[1] = 0.0
    found = indices(mended, boxes, scores)
    assert found[1] == []
    assert found[0] == picked(boxes[0], scores[0])
    assert found[2] == picked(boxes[2], scores[2])


def test_the_file_says_that_the_length_is_free(mended, call):
    (output,) = call("signature", mended).value["outputs"]
    assert output["shape"] == [None]
    assert output["dtype"] == "int32"
