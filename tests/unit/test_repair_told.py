"""What is proposed where no value inside can be compared, and gates whose slope goes into their weights."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from diagnosis_cases import Model, matched, normal

from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.graph import Node
from trueport.outcome import Failure, Kind, Ok, Stage
from trueport.repairs import told
from trueport.repairs.rules import gates, suppression


def verification(reason, verdict=Verdict.DEVIATES):
    output = SimpleNamespace(source="y", target="y", verdict=verdict, reason=reason)
    return SimpleNamespace(comparison=SimpleNamespace(outputs=(output,)), reason=reason)


def shapes(ours, theirs):
    return verification(f"output 'y' in case 'data', run 0: shape {ours} in the source, {theirs} in the target")


def pair(source, target):
    ours, theirs = source.build("y"), target.build("y")
    for side in (ours, theirs):
        side._outputs["y"] = "y"
    views = [SimpleNamespace(graph=side.graph, values=side.values) for side in (ours, theirs)]
    return SimpleNamespace(source=ours, target=theirs, ours=views[0], theirs=views[1])


def single(op, *inputs, shape=(3, 4), format="onnx", **facts):
    model = Model(format, x=(2, 6))
    names = ["x", *(model.const(f"{op}-{place}", array) for place, array in enumerate(inputs))]
    model.add(op, *names, out="y", shape=shape, **facts)
    return model


def offered(models, given, alignment=None):
    found = told.of_shape(models, alignment or matched({"x": "x"}), given)
    return found if isinstance(found, str) else [proposal.edits[0] for proposal in found]


# -- outputs of another shape -------------------------------------------------------------------------------------------


def test_axes_in_another_order_are_transposed():
    models = pair(single("NonZero", shape=(2, 6)), single("NonZero", shape=(6, 2), format="pytorch"))
    edit = offered(models, shapes([2, 6], [6, 2]))[0]
    assert edit.change["kind"] == "insert"
    assert edit.change["value"] == "y"
    assert edit.change["steps"][0]["attributes"] == {"perm": [1, 0]}


@pytest.mark.parametrize(("ours", "theirs"), [([2, 5, 3], [3, 2, 5]), ([7, 5, 3], [3, 7, 5]), ([4, 3], [3, 4])])
def test_the_order_gives_the_sources_shape(ours, theirs):
    models = pair(single("NonZero", shape=tuple(ours)), single("NonZero", shape=tuple(theirs)))
    perm = offered(models, shapes(ours, theirs))[0].change["steps"][0]["attributes"]["perm"]
    assert list(np.zeros(theirs).transpose(perm).shape) == ours


@pytest.mark.parametrize(("ours", "theirs"), [([4, 4, 2], [2, 4, 4]), ([2, 6], [3, 4]), ([12], [3, 4])])
def test_sizes_that_do_not_tell_the_axes_apart_are_not_transposed(ours, theirs):
    models = pair(single("NonZero", shape=tuple(ours)), single("NonZero", shape=tuple(theirs)))
    assert isinstance(offered(models, shapes(ours, theirs)), str)


def test_an_output_is_computed_by_the_sources_own_operators():
    wanted = np.array([3, 4])
    models = pair(single("Reshape", wanted), single("Reshape", np.array([0, -1]), shape=(2, 6)))
    edit = offered(models, shapes([3, 4], [2, 6]))[0]
    assert edit.change["kind"] == "recompute"
    assert edit.change["value"] == "y"
    (node,) = edit.change["nodes"]
    assert node["op"] == "Reshape"
    assert node["inputs"][0] == "x"
    np.testing.assert_array_equal(edit.arrays[node["inputs"][1]], wanted)


def test_an_operator_without_a_translation_gives_no_proposal():
    models = pair(single("Bewitch"), single("Reshape", np.array([0, -1]), shape=(2, 6)))
    assert offered(models, shapes([3, 4], [2, 6])) == "every output has the source's shape"


def test_what_deviates_in_values_alone_is_left_to_the_rules():
    models = pair(single("Reshape", np.array([3, 4])), single("Reshape", np.array([3, 4])))
    assert isinstance(offered(models, verification("output 'y' deviates by 0.5 of its spread")), str)
    assert isinstance(offered(models, verification(shapes([3, 4], [2, 6]).reason, Verdict.FAITHFUL)), str)


def test_a_list_is_cut_where_its_operator_says():
    source, target = single("NonMaxSuppression", shape=(5,)), single("NonMaxSuppression", shape=(8,), format="tflite")
    node = target.nodes[0]
    target.nodes[0] = Node(**{**{slot: getattr(node, slot) for slot in node.__slots__}, "outputs": ("y", "count")})
    edit = offered(pair(source, target), shapes([5], [8]))[0]
    assert edit.change["steps"] == [
        {"operator": "Slice", "attributes": {}, "constants": ["first"], "others": ["count"]}
    ]
    assert not edit.arrays["first"].any()
    assert isinstance(offered(pair(source, target), shapes([8], [5])), str), "what is too short cannot be cut"


def test_a_suppression_behind_an_output_is_written_out():
    source = single("NonMaxSuppression", shape=(5,))
    target = Model("tflite", boxes=(8, 4), scores=(8,))
    limits = {"most": np.array(8, np.int32), "overlap": np.array(0.5), "least": np.array(0.0)}
    names = [target.const(name, array) for name, array in limits.items()]
    target.add("NonMaxSuppression", "boxes", "scores", *names, out="kept", shape=(8,))
    target.nodes[0] = Node(
        **{**{slot: getattr(target.nodes[0], slot) for slot in Node.__slots__}, "native_op": "NON_MAX_SUPPRESSION_V4"}
    )
    target.add("Identity", "kept", out="y", shape=(8,))
    (edit,) = [edit for edit in offered(pair(source, target), shapes([5], [8])) if edit.rule == suppression.NAME]
    assert edit.change["kind"] == "recompute"
    assert edit.change["value"] == "kept"


# -- what the runtime refuses --------------------------------------------------------------------------------------------


class Worker:
    """A session that shows one file."""

    def __init__(self, *nodes, constants=None):
        shown = {"nodes": list(nodes), "inputs": ["x"], "outputs": ["y"], "constants": {}}
        self.answers = {"graph": SimpleNamespace(value=shown), "parameters": SimpleNamespace(emitted=constants or {})}
        self.answers["parameters"].folder = None
        self.pool = SimpleNamespace(release=lambda folder: None)

    def ask(self, artifact, function, arguments, **facts):
        answer = self.answers[function]
        return answer if isinstance(answer, Failure) else Ok(answer)


def node(op, name="n", native=None, inputs=("x",)):
    return {
        "name": name,
        "op": op,
        "native_op": native or op,
        "inputs": list(inputs),
        "outputs": ["y"],
        "attributes": {},
        "origin": None,
    }


X = normal(2, 3, 4)
WORDS = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Exp": np.exp,
    "Log": np.log,
    "Erf": np.vectorize(math.erf),
    "Reverse": lambda x, axes: np.flip(x, axes),
}


def written(edit, x):
    """What the edit's operators give."""
    known = {"x": x, **edit.arrays}
    for item in edit.change["nodes"]:
        operands = [known[name] for name in item["inputs"]]
        known[item["outputs"][0]] = WORDS[item["op"]](*operands, **item["attributes"])
    return known[edit.change["nodes"][-1]["outputs"][0]]


FOREIGN = {
    "Erfc": np.vectorize(math.erfc),
    "Expm1": np.expm1,
    "Log1p": np.log1p,
    "TFL_GELU": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
}


@pytest.mark.parametrize("op", FOREIGN)
def test_an_operator_that_onnx_has_not_is_written_in_onnx(op):
    (found,) = told.of_refusal(Worker(node(op)), None, verification("does not load"))
    (edit,) = found.edits
    x = np.abs(X) if op == "Log1p" else X
    assert edit.change["value"] == "y"
    np.testing.assert_allclose(written(edit, x), FOREIGN[op](x), rtol=1e-5, atol=1e-6)


def test_every_foreign_operator_is_tested_and_no_onnx_operator_is_taken_for_one():
    assert set(FOREIGN) == set(told.FOREIGN)
    assert isinstance(told.of_refusal(Worker(node("Erf")), None, verification("does not load")), str)


def test_all_foreign_operators_of_a_file_go_at_once():
    worker = Worker(node("Erfc", "a"), node("Log1p", "b"))
    (found,) = told.of_refusal(worker, None, verification("does not load"))
    assert [edit.before for edit in found.edits] == ["Erfc", "Log1p"]


REFUSED = "Node number 0 (REVERSE_V2) failed to prepare."


@pytest.mark.parametrize("axes", [[0, 2], [2, 0, 1]])
def test_reversing_over_several_axes_is_done_one_by_one(axes):
    told_of = node("Flip", "0:y", "REVERSE_V2", ["x", "axes"])
    worker = Worker(told_of, constants={"axes": np.array(axes)})
    (found,) = told.of_refusal(worker, None, verification(REFUSED))
    (edit,) = found.edits
    assert [item["attributes"]["axes"] for item in edit.change["nodes"]] == [[axis] for axis in axes]
    np.testing.assert_array_equal(written(edit, X), np.flip(X, axes))


def test_a_reversal_that_the_runtime_takes_is_left_alone():
    told_of = node("Flip", "0:y", "REVERSE_V2", ["x", "axes"])
    both, one = ({"axes": np.array(axes)} for axes in ([0, 2], [1]))
    assert isinstance(told.of_refusal(Worker(told_of, constants=both), None, verification("another reason")), str)
    assert isinstance(told.of_refusal(Worker(told_of, constants=one), None, verification(REFUSED)), str)


def test_a_file_that_cannot_be_read_gives_no_proposal():
    worker = Worker(node("Erfc"))
    worker.answers["graph"] = Failure(stage=Stage.TRACE, kind=Kind.RAISED, message="no")
    assert told.of_refusal(worker, None, verification("does not load")) == "the file cannot be read"


# -- the slope of a gate -------------------------------------------------------------------------------------------------


def keras(tmp_path, op="LSTM", activation="HardSigmoid", blocks=4, versions=("tf-keras", "tensorflow")):
    """A scene of one recurrent layer, from a Keras 2 file to a Keras 3 file."""
    model = Model("keras", x=(6, 4))
    sizes = {"kernel": (4, 5 * blocks), "recurrent_kernel": (5, 5 * blocks), "bias": (5 * blocks,)}
    names = [model.const(f"r/{name}", normal(*size, seed=3)) for name, size in sizes.items()]
    model.add(op, "x", *names, out="y", shape=(5,), recurrent_activation=activation)
    traced = model.build("y")
    from trueport.diagnosis.region import Inside

    artifacts = [Artifact(path=tmp_path / name, format="keras", sha256=name, size=0) for name in versions]
    return SimpleNamespace(
        format="keras",
        target=artifacts[1],
        reference=SimpleNamespace(artifact=artifacts[0]),
        theirs=Inside(traced),
        blamed=traced.graph.nodes,
        edit=lambda rule, where, before, after, reason, change, **arrays: SimpleNamespace(
            change=change, arrays=arrays, rule=rule
        ),
    )


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    """A file's name says which Keras reads it."""
    monkeypatch.setattr(gates, "runtime_toolchain", lambda artifact: artifact.path.name)


def hard(z, slope):
    return np.clip(slope * z + 0.5, 0, 1)


@pytest.mark.parametrize(("op", "blocks", "straight"), [("LSTM", 4, 2), ("GRU", 3, 2)])
def test_the_gates_weights_take_up_the_slope(tmp_path, op, blocks, straight):
    shown = keras(tmp_path, op, blocks=blocks)
    (found,) = gates.propose(shown)
    assert {edit.change["parameter"] for edit in found.edits} == {"r/kernel", "r/recurrent_kernel", "r/bias"}
    stored = {name: shown.theirs.array(name) for name in ("r/kernel", "r/bias")}
    new = {edit.change["parameter"]: edit.arrays["new"] for edit in found.edits}
    x = normal(16, 4, seed=8, scale=3)
    before, after = (x @ arrays["r/kernel"] + arrays["r/bias"] for arrays in (stored, new))
    for block in range(blocks):
        columns = slice(5 * block, 5 * block + 5)
        if block == straight:
            np.testing.assert_array_equal(before[:, columns], after[:, columns])
        else:
            np.testing.assert_allclose(hard(before[:, columns], 0.2), hard(after[:, columns], 1 / 6), atol=1e-6)


def test_gates_that_are_no_piecewise_line_or_of_one_version_are_left_alone(tmp_path):
    assert isinstance(gates.propose(keras(tmp_path, activation="Sigmoid")), str)
    assert isinstance(gates.propose(keras(tmp_path, versions=("tf-keras", "tf-keras"))), str)
    assert isinstance(gates.propose(keras(tmp_path, op="RNN")), str)
    other = keras(tmp_path)
    other.format = "onnx"
    assert isinstance(gates.propose(other), str)
