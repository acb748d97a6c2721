"""Edits of Keras files: each kind computes what it says, all else stays what it was, and the same edits give the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tf_support import Tf

from trueport.errors import UntrustedError
from trueport.frameworks import keras
from trueport.frameworks._base import EDIT_KINDS
from trueport.outcome import Failure, Kind

KERAS = "trueport.frameworks.keras"
RNG = np.random.default_rng(5)
SQUARE = RNG.normal(size=(4, 4)).astype(np.float32)
THREE = np.array([0.5, 2.0, -1.0], np.float32)
INPUTS = {"wired": {"x": RNG.normal(size=(2, 2, 8, 8, 3)).astype(np.float32)},
          "chain": {"q": RNG.normal(size=(2, 3, 6)).astype(np.float32)},
          "gated": {"steps": RNG.normal(size=(2, 2, 5, 3)).astype(np.float32)}}  # fmt: skip


class Files:
    """The models of one Keras, each written once, and what edits make of them."""

    def __init__(self, tf, folder, *, legacy):
        self.tf, self.folder, self.legacy, self.made = tf, folder, legacy, {}

    def path(self, kind, suffix="keras", trained=False):
        key = f"{kind}{'_trained' * trained}.{suffix}"
        if key not in self.made:
            self.made[key] = self.tf(
                "keras_edit_models", "save", kind=kind, path=str(self.folder / key), legacy=self.legacy, trained=trained
            )
        return self.made[key]

    def values(self, path, kind):
        """Every value inside, by name; the inputs too."""
        wanted = self.tf(KERAS, "names", path=str(path), trust=False)
        arguments = {"inputs": INPUTS[kind], "wanted": wanted, "budget": 1 << 26, "trust": False}
        found, _ = self.tf.emitted(KERAS, "trace", path=str(path), **arguments)
        return {**{name: np.asarray(value) for name, value in found.items()}, **INPUTS[kind]}

    def weights(self, path):
        found, _ = self.tf.emitted(KERAS, "parameters", path=str(path), trust=False)
        return {name: np.asarray(value) for name, value in found.items()}

    def nodes(self, path):
        return {node["name"]: node for node in self.tf(KERAS, "graph", path=str(path), trust=False)["nodes"]}

    def edit(self, path, out, *edits, **arrays):
        return self.tf(KERAS, "edit", path=str(path), edits=list(edits), arrays=arrays, out=str(out), trust=False)[
            "notes"
        ]

    def refused(self, path, out, *edits, **arrays):
        arguments = {"path": str(path), "edits": list(edits), "arrays": arrays, "out": str(out), "trust": False}
        outcome = self.tf.outcome(KERAS, "edit", **arguments)
        assert isinstance(outcome, Failure), "the edit was written"
        assert outcome.kind is Kind.UNSUPPORTED, outcome
        assert not Path(out).exists()
        return outcome.message


@pytest.fixture(scope="module")
def three(pool, env, tmp_path_factory):
    return Files(Tf(pool, env("tensorflow")), tmp_path_factory.mktemp("keras3"), legacy=False)


@pytest.fixture(scope="module")
def two(pool, env, tmp_path_factory):
    return Files(Tf(pool, env("tf-keras")), tmp_path_factory.mktemp("keras2"), legacy=True)


@pytest.fixture(scope="module")
def before(three, two):
    """Values of the unchanged models, by Keras."""
    held = {}

    def get(files, kind):
        if (files.legacy, kind) not in held:
            held[files.legacy, kind] = files.values(files.path(kind), kind)
        return held[files.legacy, kind]

    return get


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def step(operator, **more):
    return {"operator": operator, **more}


def relu(x):
    return np.maximum(x, 0)


def change(kind, **keys):
    return {"kind": kind, **keys}


def set_to(node, attribute, value):
    return change("set-attribute", node=node, attribute=attribute, value=value)


def become(node, operator, attributes=None, **more):
    return change("set-operator", node=node, operator=operator, attributes=attributes or {}, **more)


def behind(value, *steps, **more):
    return change("insert", value=value, steps=list(steps), **more)


def pooled(x, take):
    return take(x.reshape(2, 2, 4, 2, 4, 2, 4), axis=(3, 5))


# edits, the value to look at, what it is made of the values before: all of the model "wired"
EDITS = {
    "activation of its own": ([set_to("leaky", "alpha", 0.4)], "leaky", lambda v: np.where(v["norm"] > 0, v["norm"], 0.4 * v["norm"])),
    "activation dropped": ([set_to("dense", "activation", "Tanh"), set_to("dense", "activation", None)], "dense", lambda v: v["dense"]),
    "activation built in": ([set_to("dense", "activation", "Sigmoid")], "dense", lambda v: 1 / (1 + np.exp(-v["dense"]))),
    "pads that are same": ([set_to("conv", "pads", [1, 1, 1, 1])], "conv", lambda v: v["conv"]),
    "pads in front": ([set_to("conv", "pads", [0, 0, 0, 0]), set_to("conv", "pads", [2, 2, 0, 0])], "conv",
                      lambda v: np.concatenate([np.zeros_like(v["conv"][:, :, :1]), v["conv"]], 2)[:, :, :-1, :0]),
    "pool of another kind": ([become("pool", "AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]})], "pool",
                             lambda v: pooled(v["leaky"], np.mean)),
    "padded maximum": ([set_to("pool", "strides", [1, 1]), set_to("pool", "kernel_shape", [1, 1]),
                        become("pool", "MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]})], "pool",
                       lambda v: v["pool"]),
    "operator for an activation": ([become("soft", "Relu")], "soft", lambda v: relu(v["both"])),
    "operator for a merge": ([become("apart", "Mul")], "apart", lambda v: v["dense"] * v["inner/bent"]),
    "clip": ([become("soft", "Clip", {"min": -0.5, "max": 0.5})], "soft", lambda v: np.clip(v["both"], -0.5, 0.5)),
    "several layers for one": ([become("soft", "HardSigmoid", {"alpha": 0.25, "beta": 0.4})], "soft",
                               lambda v: np.clip(0.25 * v["both"] + 0.4, 0, 1)),
    "node out": ([change("remove-node", node="leaky")], "pool", lambda v: pooled(v["norm"], np.max)),
    "node before an output": ([change("remove-node", node="soft")], "soft", lambda v: v["both"]),
    "node of a nested model out": ([change("remove-node", node="inner/bent")], "both",
                                   lambda v: np.concatenate([v["dense"], v["inner/inside"]], -1)),
    "channels scaled": ([behind("x", step("Mul", constants=["m"]), step("Sub", constants=["m"]))], "inserted_sub",
                        lambda v: v["x"] * THREE - THREE),
    "constant in front": ([behind("x", step("Sub", constants=["m"], slot=1))], "inserted_sub", lambda v: THREE - v["x"]),
    "normalised": ([behind("x", step("Normalization", attributes={"mean": [1, 2, 3], "variance": [4, 1, 9]}))],
                   "inserted_normalization", lambda v: (v["x"] - [1, 2, 3]) / [2, 1, 3]),
    "transposed": ([behind("x", step("Transpose", attributes={"perm": [0, 2, 1, 3]}))], "inserted_transpose",
                   lambda v: v["x"].swapaxes(2, 3)),
    "padded and cut": ([behind("x", step("Pad", attributes={"pads": [0, 1, 1, 0, 0, 1, 1, 0]}),
                               step("Slice", attributes={"starts": [0, 2], "ends": [8, 10], "axes": [1, 2]}))], "inserted_slice",
                       lambda v: np.pad(v["x"], [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)])[:, :, 0:8, 2:10]),
    "channels flipped": ([behind("x", step("Flip", attributes={"axes": [-1]}))], "inserted_flip", lambda v: v["x"][..., ::-1]),
    "channels chosen": ([behind("x", step("Gather", attributes={"axis": -1}, constants=["order"]))], "inserted_gather",
                        lambda v: v["x"][..., [1, 2, 0]]),
    "behind an output": ([behind("apart", step("Tanh"))], "apart", lambda v: np.tanh(v["apart"])),
    "before one reader": ([behind("dense", step("Relu"), readers=["apart"])], "apart", lambda v: relu(v["dense"]) - v["inner/bent"]),
    "others untouched": ([behind("dense", step("Relu"), readers=["apart"])], "both", lambda v: v["both"]),
    "another value added": ([behind("dense@1", step("Add", others=["dense"]))], "inserted_add", lambda v: v["dense@1"] + v["dense"]),
    "through a layer that does not show": ([behind("pool", step("Relu"), readers=["dense"])], "inserted_relu", lambda v: relu(v["pool"])),
    "inside a nested model": ([behind("inner/bent", step("Neg"))], "both", lambda v: np.concatenate([v["dense"], -v["inner/bent"]], -1)),
    "operands exchanged": ([change("reorder-inputs", node="apart", order=[1, 0])], "apart", lambda v: -v["apart"]),
    "another operand": ([change("set-input", node="apart", slot=1, value="dense@1")], "apart", lambda v: v["dense"] - v["dense@1"]),
    "computed anew": ([change("recompute", value="apart", nodes=[
        {"op": "MatMul", "inputs": ["dense", "k"], "outputs": ["t"]}, {"op": "Sub", "inputs": ["dense@1", "t"], "outputs": ["u"]},
        {"op": "LeakyRelu", "inputs": ["u"], "outputs": ["w"], "attributes": {"alpha": 0.5}}])], "apart",
        lambda v: (lambda u: np.where(u > 0, u, 0.5 * u))(v["dense@1"] - v["dense"] @ SQUARE)),
    "a call of its own": ([change("set-parameter", node="dense@1", parameter="dense/kernel", array="k")], "dense_call1",
                          lambda v: v["dense"] @ SQUARE + (v["dense@1"] - v["dense"] @ v["dense/kernel"])),
    "all calls": ([change("set-parameter", node="dense", parameter="dense/kernel", array="k")], "dense",
                  lambda v: v["pool"] @ SQUARE + (v["dense"] - v["pool"] @ v["dense/kernel"])),
    "bias added": ([change("add-parameter", node="inner/inside", role="bias", array="four")], "inner/inside",
                   lambda v: v["inner/inside"] + np.arange(4)),
}  # fmt: skip
ARRAYS = {"k": SQUARE, "m": THREE, "order": np.array([1, 2, 0]), "four": np.arange(4, dtype=np.float32)}
WEIGHTED = {"a call of its own", "all calls", "bias added"}
BOTH = ("activation of its own", "pads in front", "pool of another kind", "clip", "node before an output",
        "node of a nested model out", "channels flipped", "padded and cut", "channels chosen", "behind an output",
        "another value added", "computed anew", "a call of its own", "operands exchanged", "bias added")  # fmt: skip


def computes(files, before, name, out, suffix="keras"):
    edits, value, expected = EDITS[name]
    path = files.path("wired", suffix)
    files.edit(path, out, *edits, **ARRAYS)
    old, weights = before(files, "wired"), files.weights(path)
    found = files.values(out, "wired")[value]
    right = np.asarray(expected({**old, **weights}))
    if name == "pads in front":
        assert found.shape == old["conv"].shape
        moved = np.abs(found[:, :, 1:, 1:] - old["conv"][:, :, :-1, :-1]).max()
        assert moved < 1e-5  # the window starts one row and one column earlier
    else:
        assert found.shape == right.shape
        np.testing.assert_allclose(
            found, right, rtol=1e-4, atol=1e-5
        )  # float32 sums of up to 27 products, in another order
    kept = files.weights(out)
    if name not in WEIGHTED:
        assert set(kept) >= set(weights)
        assert all(np.array_equal(kept[one], weights[one]) for one in weights)


SLOW = ("activation dropped", "pads that are same", "padded maximum", "operator for a merge", "constant in front",
        "transposed", "others untouched", "inside a nested model", "normalised", "several layers for one")  # fmt: skip


def marked(names, slow):
    """The cases, those that tell least that the others do not marked as slow."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


@pytest.mark.parametrize("name", marked(EDITS, SLOW))
def test_an_edit_computes_what_it_says_and_keeps_every_other_weight(three, before, tmp_path, name):
    computes(three, before, name, tmp_path / "out.keras")


@pytest.mark.parametrize("name", marked(BOTH, BOTH[5:]))
def test_the_same_in_keras_2(two, before, tmp_path, name):
    computes(two, before, name, tmp_path / "out.keras")


@pytest.mark.parametrize("name", marked(["channels flipped", "channels chosen", "computed anew"], ["channels chosen"]))
def test_the_same_in_an_h5_file(three, two, before, tmp_path, name):
    for files in (three, two):
        computes(files, before, name, tmp_path / f"out{files.legacy}.h5", "h5")


def test_every_kind_is_offered_and_tried():
    assert set(keras.EDITS) == set(EDIT_KINDS)
    tried = {edit["kind"] for edits, *_ in EDITS.values() for edit in edits}
    assert tried == set(EDIT_KINDS) - {
        "set-dimensions",
        "set-outputs",
        "set-precision",
    }  # these have tests of their own


def test_the_modules_for_patches_pull_in_nothing_else():
    folder = Path(keras.__file__).parent
    for name in keras.EDIT_FILES:
        for line in (folder / f"{name}.py").read_text().splitlines():
            if line.strip().startswith(("from trueport", "import trueport")):
                words = line.replace(",", " ").split()
                wanted = words[3] if words[1] == "trueport.frameworks" else words[1].rsplit(".", 1)[1]
                assert wanted == "_base" or keras.EDIT_FILES.index(wanted) < keras.EDIT_FILES.index(name), line


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("files", ["three", "two"])
def test_the_same_edits_give_the_same_bytes_and_the_training_state_stays(request, files, suffix, tmp_path):
    files = request.getfixturevalue(files)
    path = files.path("wired", suffix, trained=True)
    edits = [set_to("norm", "epsilon", 1e-2), change("set-parameter", node="dense", parameter="dense/bias", array="four"),
             change("reorder-inputs", node="both", order=[1, 0])]  # fmt: skip
    outs = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    notes = [files.edit(path, out, *edits, **ARRAYS) for out in outs]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert outs[0].read_bytes() != Path(path).read_bytes()
    assert not any("optimiser" in note for note in notes[0])
    states = [
        files.tf("keras_edit_models", "training_state", path=str(p), legacy=files.legacy) for p in (path, outs[0])
    ]
    assert states[0] == states[1]
    assert len(states[0][1]) >= (10 if suffix == "keras" or files.legacy else 2)  # Keras 3 reads two back from .h5
    if suffix == "keras":
        members = [files.tf("keras_edit_models", "members", path=str(p)) for p in (path, outs[0])]
        assert members[0]["metadata.json"] == members[1]["metadata.json"]


def test_a_training_state_that_no_longer_fits_is_left_out_and_said(three, tmp_path):
    path, out = three.path("wired", trained=True), tmp_path / "out.keras"
    notes = three.edit(path, out, change("add-parameter", node="inner/inside", role="bias", array="four"), **ARRAYS)
    assert any("optimiser's state" in note for note in notes)
    assert three.tf("keras_edit_models", "training_state", path=str(out)) is None


def test_a_chain_stays_a_chain_where_it_can(three, two, tmp_path):
    for files in (three, two):
        path = files.path("chain")
        outs = [tmp_path / f"{files.legacy}{i}.keras" for i in range(3)]
        assert files.edit(path, outs[0], behind("a", step("Sigmoid")), change("remove-node", node="r")) == []
        assert list(files.nodes(outs[0])) == ["a", "inserted_sigmoid", "z"]
        files.edit(path, outs[1], become("r", "PRelu", constants=["five"]), five=np.arange(5, dtype=np.float32))
        old, new = files.values(path, "chain"), files.values(outs[1], "chain")
        np.testing.assert_allclose(new["r"], np.where(old["a"] > 0, old["a"], old["a"] * np.arange(5)), rtol=1e-6)
        notes = files.edit(path, outs[2], behind("r", step("Add", others=["a"])))
        assert "became a Functional one" in notes[0]
        kinds = [files.tf("keras_edit_models", "kind_of_model", path=str(p), legacy=files.legacy) for p in outs]
        assert kinds == ["Sequential", "Sequential", "Functional"]


def test_inputs_and_outputs_change_their_signature(three, two, tmp_path):
    for files in (three, two):
        path, out = files.path("wired"), tmp_path / f"{files.legacy}.keras"
        files.edit(
            path,
            out,
            change("set-dimensions", value="x", shape=[2, 8, 8, 3]),
            change("set-outputs", outputs=["apart", "pool"]),
        )
        signature = files.tf.signature("keras", out)
        assert signature["inputs"][0]["shape"] == [2, 8, 8, 3]
        assert [spec["name"] for spec in signature["outputs"]] == ["apart", "pool"]
        files.edit(out, tmp_path / "free.keras", change("set-dimensions", value="x", shape=["N", 8, 8, 3]),
                   change("set-outputs", outputs=["pool"]))  # fmt: skip
        signature = files.tf.signature("keras", tmp_path / "free.keras")
        assert signature["inputs"][0]["shape"] == ["batch", 8, 8, 3]
        assert [spec["name"] for spec in signature["outputs"]] == ["pool"]
        assert set(files.nodes(tmp_path / "free.keras")) == {"conv", "norm", "leaky", "pool"}


def test_recurrent_layers_and_layers_inside_layers(three, tmp_path):
    path, out = three.path("gated"), tmp_path / "out.keras"
    edits = [set_to("gru", "direction", "reverse"), set_to("gru", "recurrent_activation", "HardSigmoid"),
             set_to("spread/each", "activation", "Relu")]  # fmt: skip
    three.edit(path, out, *edits)
    shown = three.nodes(out)["gru"]["attributes"]
    assert shown["direction"] == "reverse"
    assert shown["recurrent_activation"] == "HardSigmoid"
    assert three.values(out, "gated")["spread"].min() >= 0
    three.edit(path, tmp_path / "before.keras", set_to("gru", "linear_before_reset", 0))
    bias = next(name for name in three.weights(path) if name.startswith("gru") and name.endswith("bias"))
    assert np.array_equal(three.weights(tmp_path / "before.keras")[bias], three.weights(path)[bias].sum(axis=0))


def test_a_layer_computes_in_another_precision(three, tmp_path):
    path, out = three.path("wired"), tmp_path / "out.keras"
    three.edit(path, out, change("set-precision", node="norm", dtype="float64", parameters={}))
    assert three.weights(out)["norm/gamma"].dtype == np.float64
    assert three.weights(out)["conv/kernel"].dtype == np.float32


def test_a_later_edit_names_what_an_earlier_one_made(three, before, tmp_path):
    path, out = three.path("wired"), tmp_path / "out.keras"
    three.edit(path, out, behind("apart", step("Tanh")), become("apart", "Add"), behind("apart", step("Neg")))
    old = before(three, "wired")
    np.testing.assert_allclose(
        three.values(out, "wired")["apart"], -np.tanh(old["dense"] + old["inner/bent"]), rtol=1e-5
    )


REFUSED = [
    ([change("set-parameter", node="dense", parameter="nope", array="k")], "has no parameter 'nope'; it has dense/kernel, dense/bias"),
    ([change("set-parameter", node="dense", parameter="dense/kernel", array="lost")], "no array 'lost'"),
    ([change("set-parameter", node="nope", parameter="dense/kernel", array="k")], "no node 'nope'"),
    ([change("set-parameter", node="conv", parameter="conv/kernel", array="k")], "takes an array of shape"),
    ([set_to("conv", "nonsense", 1)], "nothing that says nonsense=1"),
    ([set_to("conv", "activation", "Nonsense")], "no activation for 'Nonsense'"),
    ([set_to("conv", "auto_pad", "SAME_LOWER")], "nothing that says auto_pad"),
    ([become("soft", "NonMaxSuppression")], "no stock layer of Keras computes NonMaxSuppression"),
    ([behind("nope", step("Relu"))], "no value 'nope'"),
    ([behind("conv", step("Relu"), readers=["apart"])], "'apart' does not read 'conv'"),
    ([behind("pool", step("Add", others=["apart"]))], "is computed from 'pool'"),
    ([change("set-input", node="norm", slot=0, value="apart")], "would make a circle"),
    ([change("reorder-inputs", node="apart", order=[0, 0])], "does not order"),
    ([change("set-outputs", outputs=["inner/inside"])], "inside a nested model"),
    ([change("remove-node", node="conv")], "Keras does not build it"),
    ([change("add-parameter", node="dense", role="bias", array="four")], "has a bias"),
    ([change("paint")], "edits of kind 'paint'"),
    ([change("insert", value="x")], "no 'steps'"),
]  # fmt: skip


@pytest.mark.parametrize(("edits", "reason"), REFUSED)
def test_what_cannot_be_written_is_refused_with_its_reason_and_leaves_nothing(three, tmp_path, edits, reason):
    assert reason in three.refused(three.path("wired"), tmp_path / "out.keras", *edits, **ARRAYS)
    assert list(tmp_path.iterdir()) == []


def test_an_h5_file_says_what_it_cannot_hold(three, tmp_path):
    message = three.refused(
        three.path("wired", "h5"), tmp_path / "out.h5", become("soft", "Clip", {"min": -1.0, "max": 1.0})
    )
    assert "save it as .keras" in message


def test_a_subclassed_model_is_refused(three, tmp_path):
    message = three.tf("keras_edit_models", "subclassed", path=str(tmp_path / "own.keras"))
    assert "subclassed" in message or "fixed inputs" in message


def test_code_in_the_file_runs_only_where_the_user_allows_it(three, two, tmp_path):
    for files in (three, two):
        path, out = files.path("carrying"), str(tmp_path / f"{files.legacy}.keras")
        arguments = {"path": path, "edits": [set_to("z", "activation", "Relu")], "arrays": {}, "out": out}
        with pytest.raises(UntrustedError, match="--trust"):
            files.tf.outcome(KERAS, "edit", **arguments, trust=False)
        files.tf(KERAS, "edit", **arguments, trust=True)
        inputs = {"q": INPUTS["chain"]["q"]}
        before, after = (next(iter(files.tf.run("keras", one, inputs, trust=True).values())) for one in (path, out))
        np.testing.assert_allclose(after, relu(before), rtol=1e-6)
