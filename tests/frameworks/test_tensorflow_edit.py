"""Edits of SavedModels: each kind computes what it says, all else computes what it did, and the bytes hang on the edits alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tf_support import Tf

from trueport.artifact import Artifact
from trueport.frameworks import tensorflow
from trueport.outcome import Failure, Kind
from trueport.session import Session, Settings
from trueport.testing.planter import Planter, planter_of

SAVED = "trueport.frameworks.tensorflow"
RNG = np.random.default_rng(3)
X = RNG.normal(size=(2, 2, 8, 8, 3)).astype(np.float32)
KERNEL = RNG.normal(size=(3, 3, 3, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def tf(pool, env):
    return Tf(pool, env("tensorflow"))


@pytest.fixture(scope="module")
def saved(tf, tmp_path_factory):
    return tf("keras_edit_models", "save", kind="wired", path=str(tmp_path_factory.mktemp("saved") / "saved"))


def graph_of(tf, path):
    return tf(SAVED, "graph", path=str(path), trust=False)


def values_of(tf, path):
    wanted = tf(SAVED, "names", path=str(path), trust=False)
    found, _ = tf.emitted(SAVED, "trace", path=str(path), inputs={"x": X}, wanted=wanted, budget=1 << 26, trust=False)
    return {**{name: np.asarray(value) for name, value in found.items()}, "x": X}


@pytest.fixture(scope="module")
def names(tf, saved):
    """Nodes of the model by what they are: the first of each operator, and what the outputs are made of."""
    found = {}
    for node in graph_of(tf, saved)["nodes"]:
        if "Tensordot" not in node["name"]:
            found.setdefault(node["op"], node)
        if "apart" in node["name"] and node["op"] == "Sub":  # BatchNormalization has one as well
            found["Sub"] = node
    return found


@pytest.fixture(scope="module")
def old(tf, saved):
    return values_of(tf, saved)


def edit(tf, path, out, *edits, **arrays):
    return tf(SAVED, "edit", path=str(path), edits=list(edits), arrays=arrays, out=str(out), trust=False)["notes"]


def change(kind, **keys):
    return {"kind": kind, **keys}


def step(operator, **more):
    return {"operator": operator, **more}


# edits, the value to look at, what it is made of the values before; `n`: nodes by operator
EDITS = {
    "attribute of a window": (lambda n: [change("set-attribute", node=n["MaxPool"]["name"], attribute="strides", value=[1, 1])],
                              lambda n: n["MaxPool"]["name"],
                              lambda v, n: np.max([v[n["MaxPool"]["inputs"][0]][:, :, i : 7 + i, j : 7 + j] for i in (0, 1) for j in (0, 1)], 0)),
    "attribute that is an operand": (lambda n: [change("set-attribute", node=n["Concat"]["name"], attribute="axis", value=2)],
                                     lambda n: n["Concat"]["name"], lambda v, n: np.concatenate([v[i] for i in n["Concat"]["inputs"][:2]], 3)),
    "attribute with pads": (lambda n: [change("set-attribute", node=n["Conv"]["name"], attribute="pads", value=[1, 1, 1, 1])],
                            lambda n: n["Conv"]["name"], lambda v, n: v[n["Conv"]["name"]]),
    "padded maximum": (lambda n: [change("set-attribute", node=n["MaxPool"]["name"], attribute="pads", value=[1, 1, 1, 1])],
                       lambda n: n["MaxPool"]["name"],
                       lambda v, n: np.pad(v[n["MaxPool"]["inputs"][0]], [(0, 0)] * 2 + [(1, 1)] * 2 + [(0, 0)], constant_values=-np.inf)
                       .reshape(2, 2, 5, 2, 5, 2, 4).max((3, 5))),
    "attribute of TensorFlow's": (lambda n: [change("set-attribute", node=n["LeakyRelu"]["name"], attribute="alpha", value=0.7)],
                                  lambda n: n["LeakyRelu"]["name"],
                                  lambda v, n: (lambda x: np.where(x > 0, x, 0.7 * x))(v[n["LeakyRelu"]["inputs"][0]])),
    "another operator": (lambda n: [change("set-operator", node=n["LeakyRelu"]["name"], operator="HardSigmoid", attributes={"alpha": 0.25})],
                         lambda n: n["LeakyRelu"]["name"], lambda v, n: np.clip(0.25 * v[n["LeakyRelu"]["inputs"][0]] + 0.5, 0, 1)),
    "node out": (lambda n: [change("remove-node", node=n["LeakyRelu"]["name"])], lambda n: n["MaxPool"]["name"],
                 lambda v, n: v[n["LeakyRelu"]["inputs"][0]].reshape(2, 2, 4, 2, 4, 2, 4).max((3, 5))),
    "node before an output": (lambda n: [change("remove-node", node=n["Softmax"]["name"])], lambda n: "output_0",
                              lambda v, n: v[n["Softmax"]["inputs"][0]]),
    "input changed": (lambda n: [change("insert", value="x", steps=[step("Mul", constants=["two"]), step("Flip", attributes={"axes": [-1]})])],
                      lambda n: "inserted_flip", lambda v, n: 2 * v["x"][..., ::-1]),
    "behind an output": (lambda n: [change("insert", value="output_1", steps=[step("Tanh")])], lambda n: "output_1", lambda v, n: np.tanh(v["output_1"])),
    "before one reader": (lambda n: [change("insert", value=n["Sub"]["inputs"][0], readers=[n["Sub"]["name"]],
                                            steps=[step("Add", others=[n["Sub"]["inputs"][1]])])], lambda n: "output_1",
                          lambda v, n: v[n["Sub"]["inputs"][0]]),
    "others untouched": (lambda n: [change("insert", value=n["Sub"]["inputs"][0], readers=[n["Sub"]["name"]], steps=[step("Neg")])],
                         lambda n: "output_0", lambda v, n: v["output_0"]),
    "operands exchanged": (lambda n: [change("reorder-inputs", node=n["Sub"]["name"], order=[1, 0])], lambda n: "output_1", lambda v, n: -v["output_1"]),
    "another operand": (lambda n: [change("set-input", node=n["Sub"]["name"], slot=1, value=n["MaxPool"]["name"])], lambda n: "output_1",
                        lambda v, n: v[n["Sub"]["inputs"][0]] - v[n["MaxPool"]["name"]]),
    "bias added": (lambda n: [change("add-parameter", node=n["Conv"]["name"], role="bias", array="four")],
                   lambda n: f"{n['Conv']['name']}_bias", lambda v, n: v[n["Conv"]["name"]] + np.arange(4)),
    "computed anew": (lambda n: [change("recompute", value="output_1", nodes=[
        {"op": "Transpose", "inputs": [n["Sub"]["inputs"][0]], "outputs": ["t"], "attributes": {"perm": [0, 2, 1, 3]}},
        {"op": "Mul", "inputs": ["t", "two"], "outputs": ["w"]}])], lambda n: "output_1",
        lambda v, n: 2 * v[n["Sub"]["inputs"][0]].swapaxes(2, 3)),
}  # fmt: skip
ARRAYS = {"two": np.array(2, np.float32), "four": np.arange(4, dtype=np.float32), "kernel": KERNEL}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_computes_what_it_says(tf, saved, names, old, tmp_path, name):
    edits, value, expected = EDITS[name]
    out = tmp_path / "out"
    if (
        name == "attribute that is an operand"
    ):  # the sizes behind it no longer fit a fixed batch, so only the graph is looked at
        edit(tf, saved, out, *edits(names), **ARRAYS)
        shown = {node["name"]: node for node in graph_of(tf, out)["nodes"]}
        assert shown[names["Concat"]["name"]]["attributes"]["axis"] == 2
        return
    notes = edit(tf, saved, out, *edits(names), **ARRAYS)
    assert "constants" in notes[0]
    found = values_of(tf, out)[value(names)]
    right = np.asarray(expected(old, names))
    assert found.shape == right.shape
    np.testing.assert_allclose(
        found, right, rtol=1e-4, atol=1e-5
    )  # float32 sums of up to 27 products, in another order


def test_every_kind_that_is_offered_is_tried(names):
    tried = {one["kind"] for edits, *_ in EDITS.values() for one in edits(names)}
    assert tried == set(tensorflow.EDITS) - {"set-parameter", "set-dimensions", "set-outputs"}  # below


def test_a_constant_changes_for_its_node_alone_and_the_bytes_are_the_same_again(tf, saved, names, old, tmp_path):
    kernel = next(name for name in names["Conv"]["inputs"] if name in graph_of(tf, saved)["constants"])
    one = change("set-parameter", node=names["Conv"]["name"], parameter=kernel, array="kernel")
    for folder in ("a", "b"):
        edit(tf, saved, tmp_path / folder, one, **ARRAYS)
    files = [sorted(p for p in (tmp_path / folder).rglob("*") if p.is_file()) for folder in ("a", "b")]
    assert [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]
    (before, _), (after, _) = (
        tf.emitted(SAVED, "parameters", path=str(path), trust=False) for path in (saved, tmp_path / "a")
    )
    assert np.array_equal(after[kernel], KERNEL)
    assert set(before) == set(after)
    assert all(np.array_equal(before[name], after[name]) for name in before if name != kernel)
    new = values_of(tf, tmp_path / "a")[names["Conv"]["name"]]
    padded = np.pad(X, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    np.testing.assert_allclose(new, np.einsum("rnhwcij,ijco->rnhwo", windows, KERNEL), rtol=1e-4, atol=1e-4)


def test_a_shared_constant_stays_for_its_other_readers(tf, saved, names, old, tmp_path):
    """The dense layer that is called twice has one kernel; only the second call gets another."""
    graph = graph_of(tf, saved)
    products = [node for node in graph["nodes"] if node["op"] == "MatMul"]
    kernel = next(n for n in products[0]["inputs"] if n in graph["constants"])
    sharing = [node for node in products if kernel in node["inputs"]]
    assert len(sharing) == 2
    edit(tf, saved, tmp_path / "out", change("set-parameter", node=sharing[1]["name"], parameter=kernel, array="k"),
         k=np.zeros((4, 4), np.float32))  # fmt: skip
    new = values_of(tf, tmp_path / "out")
    assert not new[sharing[1]["name"]].any()
    assert np.array_equal(new[sharing[0]["name"]], old[sharing[0]["name"]])


def test_inputs_and_outputs_change_the_signature(tf, saved, tmp_path):
    edit(
        tf,
        saved,
        tmp_path / "out",
        change("set-dimensions", value="x", shape=[2, 8, 8, 3]),
        change("set-outputs", outputs=["output_1"]),
    )
    signature = tf.signature("tensorflow", tmp_path / "out")
    assert signature["inputs"][0]["shape"] == [2, 8, 8, 3]
    assert [spec["name"] for spec in signature["outputs"]] == ["output_1"]
    assert "Softmax" not in {node["op"] for node in graph_of(tf, tmp_path / "out")["nodes"]}


REFUSED = [
    (lambda n: change("set-parameter", node=n["Conv"]["name"], parameter="nope", array="kernel"), "has no parameter 'nope'"),
    (lambda n: change("set-attribute", node=n["Conv"]["name"], attribute="nonsense", value=1), "nothing that says nonsense"),
    (lambda n: change("set-operator", node=n["Relu"]["name"], operator="NonMaxSuppression"), "nothing is known here"),
    (lambda n: change("remove-node", node="nope"), "no node 'nope'"),
    (lambda n: change("insert", value="nope", steps=[step("Relu")]), "no value 'nope'"),
    (lambda n: change("insert", value="x", readers=[n["Sub"]["name"]], steps=[step("Relu")]), "does not read 'x'"),
    (lambda n: change("set-input", node=n["Conv"]["name"], slot=0, value=n["Sub"]["name"]), "computed from itself"),
    (lambda n: change("set-precision", node=n["Conv"]["name"], dtype="float64"), "edits of kind 'set-precision'"),
    (lambda n: change("insert", value="x", steps=[step("Transpose", attributes={"perm": [0, 3, 1, 2]})]), "TensorFlow does not build it"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "reason"), REFUSED)
def test_what_cannot_be_written_is_refused_with_its_reason(tf, saved, names, tmp_path, one, reason):
    arguments = {"path": saved, "edits": [one(names)], "arrays": ARRAYS, "out": str(tmp_path / "out"), "trust": False}
    outcome = tf.outcome(SAVED, "edit", **arguments)
    assert isinstance(outcome, Failure)
    assert outcome.kind is Kind.UNSUPPORTED, outcome
    assert reason in outcome.message
    assert not (tmp_path / "out").exists()


def test_the_modules_for_patches_pull_in_nothing_else():
    folder = Path(tensorflow.__file__).parent
    for name in tensorflow.EDIT_FILES:
        for line in (folder / f"{name}.py").read_text().splitlines():
            if line.strip().startswith(("from trueport", "import trueport")):
                words = line.replace(",", " ").split()
                wanted = words[3] if words[1] == "trueport.frameworks" else words[1].rsplit(".", 1)[1]
                assert wanted == "_base" or tensorflow.EDIT_FILES.index(wanted) < tensorflow.EDIT_FILES.index(name), (
                    line
                )


def test_the_planter_takes_saved_models(saved, tmp_path):
    assert planter_of("savedmodel") == "tensorflow"
    with Session(Settings()) as session:
        planter = Planter(session, Artifact.open(Path(saved)))
        planted = planter.plant(tmp_path / "planted", "leaky_alpha", 0)
    assert not isinstance(planted, str), planted
    assert planted.effective
    assert (tmp_path / "planted" / "saved_model.pb").is_file()
