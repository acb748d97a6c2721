"""The paragraph about a repair: what it tells, and what it leaves to the list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from trueport.artifact import Artifact
from trueport.repairs.explanation import MOST, compose
from trueport.repairs.types import PAIR, Edit, Repair, Status


def verified(ratio):
    outputs = (SimpleNamespace(ratio=ratio),)
    return SimpleNamespace(comparison=SimpleNamespace(outputs=outputs), verdict="deviates")


def made(status, *, edits=0, refused=None):
    source, target = (
        Artifact(path=Path(name), format="onnx", sha256=name, size=1, made_by={})
        for name in ("source.onnx", "target.onnx")
    )
    listed = tuple(
        Edit(
            rule="r", kind="k", where=f"node{n}", before="a", after="b", reason="why", change={"kind": "set-attribute"}
        )
        for n in range(edits)
    )
    return Repair(
        status=status,
        source=source,
        target=target,
        before=verified(5000.0),
        after=verified(0.5),
        steps=(listed,) if listed else (),
        refused=refused or {},
    )


def test_of_a_source_that_is_computed_wrongly_it_tells_what_is_meant():
    said = "By default its runtime computes it wrongly."
    text = compose(replace(made(Status.REPAIRED, edits=1), settled=said))
    assert text.startswith("target.onnx computes what source.onnx means after 1 change")
    assert "falls from" not in text, "the figures before are those of a source that is computed wrongly"
    assert text.endswith(said)
    left = compose(replace(made(Status.NOT_NEEDED), settled=said))
    assert left == f"target.onnx computes what source.onnx means as it is; nothing was changed. {said}"


def test_every_change_of_a_few_is_told():
    text = compose(made(Status.REPAIRED, edits=2))
    assert "faithful after 2 changes" in text
    assert "falls from 5e+03 times the noise floor to 0.5 times" in text
    assert "node0: a → b (why)." in text
    assert "node1" in text
    assert "more" not in text


@pytest.mark.parametrize(("more", "said"), [(1, "And 1 change more"), (43, "And 43 changes more")])
def test_many_changes_are_left_to_the_list(more, said):
    text = compose(made(Status.REPAIRED, edits=MOST + more))
    assert f"after {MOST + more} changes" in text
    assert f"node{MOST - 1}:" in text
    assert f"node{MOST}:" not in text
    assert said in text


def test_a_stranger_is_said_to_be_one():
    text = compose(made(Status.UNREPAIRED, refused={PAIR: "this is another network"}))
    assert text.startswith("target.onnx is not taken for a conversion of source.onnx")
    assert "this is another network" in text
