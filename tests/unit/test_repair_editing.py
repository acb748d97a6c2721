"""Edits on their way into a file: names of arrays, notes, what a format can take, what becomes of the disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pipeline_models import write, write_changed

from trueport.artifact import Artifact
from trueport.frameworks import fake
from trueport.outcome import Failure, Ok
from trueport.repairs import editing
from trueport.repairs.types import Edit
from trueport.session import Session, Settings


def edit(change, **arrays):
    return Edit(
        rule="test", kind=change["kind"], where="here", before=0, after=1, reason="a test", change=change, arrays=arrays
    )


def recompute(name):
    """An edit whose operators, attributes and values are called as its array is."""
    node = {
        "operator": name,
        "op": name,
        "attributes": {"mode": name, "parts": [name]},
        "constants": [name],
        "inputs": [name, "x"],
        "parameters": {"weight": name},
    }
    change = {"kind": "recompute", "value": name, "node": name, "readers": [name], "nodes": [node], "array": name}
    return edit(change, **{name: np.ones(3)})


def test_arrays_of_several_edits_get_names_of_their_own():
    changes, arrays = editing.packed([recompute("a0"), recompute("a0"), edit({"kind": "remove-node", "node": "a0"})])
    assert sorted(arrays) == ["e0.a0", "e1.a0"]
    assert [change.get("array") for change in changes] == ["e0.a0", "e1.a0", None]
    assert changes[2] == {"kind": "remove-node", "node": "a0"}


def test_only_what_names_an_array_is_renamed():
    (change,), _ = editing.packed([recompute("Add")])
    (node,) = change["nodes"]
    assert (node["operator"], node["op"], node["attributes"]) == ("Add", "Add", {"mode": "Add", "parts": ["Add"]})
    assert (node["constants"], node["inputs"], node["parameters"]) == (
        ["e0.Add"],
        ["e0.Add", "x"],
        {"weight": "e0.Add"},
    )
    assert (change["value"], change["node"], change["readers"]) == ("Add", "Add", ["Add"])


def test_packing_changes_nothing_of_the_edit():
    one = recompute("a0")
    before = json.dumps(one.to_json())
    (change,), arrays = editing.packed([one])
    change["nodes"].clear()
    arrays.clear()
    assert json.dumps(one.to_json()) == before
    assert list(one.arrays) == ["a0"]


@pytest.mark.parametrize(("format", "kind", "takes"), [("onnx", "insert", True), ("fake", "insert", False)])
def test_a_format_says_what_it_can_take(format, kind, takes):
    assert (kind in editing.supported(format)) == takes


# -- files ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=60)) as session:
        yield session


def bias(value, node="Add_scores", name="b2"):
    change = {"kind": "set-parameter", "node": node, "parameter": name, "array": "new"}
    return edit(change, new=np.full(4, value, np.float32))


def folders(session):
    return {path.name for path in session.pool.folder.iterdir() if path.name.startswith("edited")}


def test_groups_are_applied_one_after_the_other_and_leave_one_folder(session, tmp_path):
    target = Artifact.open(write(tmp_path / "target.fake"), made_by={"step": "fake-copy", "notes": ("first",)})
    before = folders(session)
    made = editing.apply(session, target, [[bias(1.0)], [bias(2.0), bias(3.0)]])
    assert isinstance(made, Ok), made
    assert json.loads(made.value.path.read_text())["constants"]["b2"]["data"] == [3.0] * 4
    assert (made.value.format, made.value.made_by["step"]) == ("fake", "fake-copy")
    assert made.value.sha256 == Artifact.open(made.value.path).sha256 != target.sha256
    assert len(folders(session) - before) == 1
    editing.discard(session, made.value)
    assert folders(session) == before
    assert target.path.exists()


def test_without_groups_it_is_the_target_itself(session, tmp_path):
    target = Artifact.open(write(tmp_path / "target.fake"))
    assert editing.apply(session, target, []).value is target


def test_an_edit_that_cannot_be_written_leaves_nothing_behind(session, tmp_path):
    target = Artifact.open(write(tmp_path / "target.fake"))
    before, digest = folders(session), target.sha256
    made = editing.apply(session, target, [[bias(1.0)], [bias(1.0, node="nobody")]])
    assert isinstance(made, Failure)
    assert "there is no node nobody" in made.message
    assert folders(session) == before
    assert Artifact.open(target.path).sha256 == digest


@pytest.mark.parametrize("known", [(), ("first",), ("told", "first")])
def test_notes_of_the_writer_are_kept_once(session, tmp_path, monkeypatch, known):
    made_by = {"notes": known} if known else {}
    target = Artifact.open(write(tmp_path / "target.fake"), made_by=made_by)
    asked = Session.ask

    def telling(self, artifact, function, *rest, **facts):
        outcome = asked(self, artifact, function, *rest, **facts)
        if function == "edit":
            outcome.value.value["notes"] = ["told"]
        return outcome

    monkeypatch.setattr(Session, "ask", telling)
    made = editing.apply(session, target, [[bias(1.0)], [bias(2.0)]])
    assert made.value.made_by["notes"] == (known if "told" in known else (*known, "told"))
    assert dict(target.made_by) == made_by


def test_what_the_fake_framework_writes_loads(session, tmp_path):
    target = Artifact.open(write_changed(tmp_path / "target.fake", lambda model: None))
    made = editing.apply(session, target, [[bias(1.0)]])
    assert isinstance(session.signature(made.value), Ok)
    assert fake.sniff(made.value.path.read_bytes()[:64], made.value.path) == "fake"
