"""Edits of the fake framework: each changes what it names, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from trueport.frameworks import fake
from trueport.frameworks._base import EDIT_KINDS, BadModel, Unsupported, Untrusted


@pytest.fixture
def edited(tmp_path):
    """edited(edit, arrays, change) -> the file's content before and after."""

    def run(edit, arrays=None, change=lambda model: None, **more):
        model = fake.network(seed=1, **more)
        change(model)
        (tmp_path / "in.fake").write_text(fake.text_of(model))
        out = tmp_path / "out.fake"
        fake.edit(str(tmp_path / "in.fake"), [edit], arrays or {}, str(out), trust=False)
        return json.loads((tmp_path / "in.fake").read_text()), json.loads(out.read_text())

    return run


def parameter(node="Add_affine_1", name="b1"):
    return {"kind": "set-parameter", "node": node, "parameter": name, "array": "new"}


def share(model) -> None:
    """Both additions read one bias, so the hidden layer is as wide as the last."""
    model["nodes"][4]["inputs"] = ["product_2", "b1"]


def test_a_constant_is_replaced_and_all_else_stays(edited):
    before, after = edited(parameter(), {"new": np.arange(8.0)})
    assert after["constants"]["b1"]["data"] == list(range(8))
    before["constants"]["b1"]["data"] = after["constants"]["b1"]["data"]
    assert before == after


def test_the_type_of_the_file_is_kept(edited):
    _, after = edited(parameter(), {"new": np.full(8, 1 / 3)})
    assert after["constants"]["b1"]["dtype"] == "float32"
    assert after["constants"]["b1"]["data"][0] == float(np.float32(1 / 3))


def test_another_reader_of_a_constant_keeps_the_old_one(edited):
    before, after = edited(parameter(), {"new": np.zeros(4)}, share, hidden=4)
    readers = {node["name"]: node["inputs"][1] for node in after["nodes"] if node["op"] == "Add"}
    assert readers["Add_scores"] == "b1"
    assert readers["Add_affine_1"] != "b1"
    assert after["constants"]["b1"] == before["constants"]["b1"]
    assert after["constants"][readers["Add_affine_1"]]["data"] == [0.0] * 4


@pytest.mark.parametrize(("value", "left"), [(1, {"axis": 1}), (None, {})])
def test_an_attribute_is_set_or_taken_away(edited, value, left):
    def axis(model) -> None:
        model["nodes"][5]["attributes"] = {"axis": 0}

    edit = {"kind": "set-attribute", "node": "Softmax_chances", "attribute": "axis", "value": value}
    before, after = edited(edit, change=axis)
    assert after["nodes"][5]["attributes"] == left
    before["nodes"][5]["attributes"] = left
    assert before == after


def test_a_node_is_taken_out_and_its_readers_read_what_it_read(edited):
    _, after = edited({"kind": "remove-node", "node": "Relu_hidden"})
    assert "Relu_hidden" not in [node["name"] for node in after["nodes"]]
    (reader,) = [node for node in after["nodes"] if node["name"] == "MatMul_product_2"]
    assert reader["inputs"] == ["affine_1", "w2"]


REFUSED = {
    "a kind that it does not know": {"kind": "recompute", "value": "scores", "nodes": []},
    "a node that is not there": parameter(node="nothing"),
    "a constant of another node": parameter(name="w2"),
    "a value that is no constant": parameter(name="product_1"),
    "another shape": parameter(node="Add_scores", name="b2"),
    "the node of an output": {"kind": "remove-node", "node": "Softmax_chances"},
}


@pytest.mark.parametrize("edit", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(edited, tmp_path, edit):
    with pytest.raises(Unsupported):
        edited(edit, {"new": np.zeros(8)})
    assert not (tmp_path / "out.fake").exists()


def test_a_file_that_runs_code_needs_trust(edited):
    with pytest.raises(Untrusted):
        edited(parameter(), {"new": np.zeros(8)}, runs_code=True)


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "in.fake").write_text('{"trueport-fake": 1}')
    with pytest.raises(BadModel):
        fake.edit(str(tmp_path / "in.fake"), [], {}, str(tmp_path / "out.fake"), trust=False)


def test_its_kinds_are_among_those_of_the_contract():
    assert set(fake.EDITS) <= set(EDIT_KINDS)
