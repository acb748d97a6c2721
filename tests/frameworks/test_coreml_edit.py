"""Edits written into Core ML packages: each kind does what NumPy says it must, and nothing else in the file differs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from trueport.frameworks._base import EDIT_KINDS
from trueport.frameworks.coreml import EDIT_FILES, EDITS
from trueport.outcome import Failure, Kind, Stage
from trueport.repairs import patch

MODULE = "trueport.frameworks.coreml"
HERE = [str(Path(__file__).parent)]


def samples(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


class Model:
    """One package in a worker: edit it, run it, and look at what it holds."""

    def __init__(self, pool, python, path):
        self.pool, self.python, self.path = pool, python, Path(path)

    def _call(self, module, function, arguments):
        return self.pool.call(self.python, module, function, arguments, stage=Stage.LOAD, paths=HERE)

    def ask(self, function):
        outcome = self._call("coreml_models", function, {"path": str(self.path)})
        assert not isinstance(outcome, Failure), outcome
        return outcome.value.value

    def try_edit(self, edits, arrays, out):
        arguments = {"path": str(self.path), "edits": edits, "arrays": arrays, "out": str(out), "trust": False}
        return self._call(MODULE, "edit", arguments)

    def edit(self, *edits, name="out.mlpackage", **arrays):
        """The edited model, in a folder of its own."""
        folder = self.path.parent / "edited"
        folder.mkdir(exist_ok=True)
        out = folder / f"{len(list(folder.iterdir()))}-{name}"
        outcome = self.try_edit(list(edits), arrays, out)
        assert not isinstance(outcome, Failure), (outcome.message, outcome.log[-1500:])
        return Model(self.pool, self.python, out)

    def refusal(self, *edits, **arrays):
        """The reason for which an edit cannot be written; nothing may be left of the result."""
        out = self.path.parent / "refused.mlpackage"
        outcome = self.try_edit(list(edits), arrays, out)
        assert isinstance(outcome, Failure), outcome
        assert outcome.kind is Kind.UNSUPPORTED, outcome
        assert not list(self.path.parent.glob("refused*"))
        return outcome.message

    def nodes(self):
        outcome = self._call(MODULE, "graph", {"path": str(self.path), "trust": False})
        return {node["name"]: node for node in outcome.value.value["nodes"]}

    def run(self, **inputs):
        """One run: output name -> array."""
        arguments = {
            "path": str(self.path),
            "cases": {"one": {name: array[None] for name, array in inputs.items()}},
            "precision": "float32",
            "variant": "default",
            "trust": False,
        }
        outcome = self._call(MODULE, "run", arguments)
        assert not isinstance(outcome, Failure), outcome
        return {name: array[0] for name, array in outcome.value.value["one"].items()}


@pytest.fixture(scope="module")
def model(pool, env, tmp_path_factory):
    """model(name) -> Model of coreml_models.py, built once."""
    folder = tmp_path_factory.mktemp("coreml_edit")

    def get(name: str) -> Model:
        path = folder / name / "model.mlpackage"
        if not path.exists():
            path.parent.mkdir()
            toolchain = "coreml-torch" if name == "quantised" else "coreml"
            arguments = {"name": name, "out": str(path)}
            outcome = pool.call(env(toolchain), "coreml_models", "build", arguments, stage=Stage.LOAD, paths=HERE)
            assert not isinstance(outcome, Failure), (outcome.message, outcome.log[-1500:])
        return Model(pool, env("coreml"), path)

    return get


def edit(kind, **entries):
    return {"kind": kind, **entries}


def touched(before: Model, after: Model) -> set[str]:
    """The pieces of the file that differ, are new, or are gone."""
    old, new = before.ask("look"), after.ask("look")
    return {piece for piece in {*old, *new} if old.get(piece) != new.get(piece)}


X = samples(2, 3, 8, 8, seed=9)


def picture_by_hand(x=X, *, w=None, gamma=None, shared=None, bent=None, strides=1, pads=(1, 1, 1, 1), epsilon=1e-3,
                    pool=np.max, reduce=np.mean, matrix=None, bias=None, after=None, axis=-1):  # fmt: skip
    """What the model "picture" computes, in float64."""
    w = samples(6, 3, 3, 3, seed=1) if w is None else w
    b, gamma = samples(6, seed=2), samples(6, seed=3) if gamma is None else gamma
    shared = (samples(1, 6, 1, 1, seed=5),) * 2 if shared is None else shared
    matrix = samples(4, 6, seed=4) if matrix is None else matrix
    y = conv(x, w, strides, pads) + b.reshape(1, -1, 1, 1)
    y = np.maximum(y, 0) if bent is None else bent(y)
    y = y * shared[0] + shared[1]
    high, wide = y.shape[2] // 2, y.shape[3] // 2
    y = pool(y[:, :, : 2 * high, : 2 * wide].reshape(*y.shape[:2], high, 2, wide, 2), axis=(3, 5))
    y = reduce(y, axis=(2, 3))
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + epsilon) * gamma + b
    y = y @ matrix.T + (0 if bias is None else bias)
    y = y if after is None else after(y)
    e = np.exp(y - y.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def conv(x, w, stride, pads):
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (pads[0], pads[1]), (pads[2], pads[3])))
    rows = (x.shape[2] - w.shape[2]) // stride + 1
    columns = (x.shape[3] - w.shape[3]) // stride + 1
    out = np.zeros((len(x), len(w), rows, columns))
    for row in range(rows):
        for column in range(columns):
            window = x[:, :, stride * row : stride * row + w.shape[2], stride * column : stride * column + w.shape[3]]
            out[:, :, row, column] = np.einsum("bcij,ocij->bo", window, w)
    return out


def same(made: Model, expected, **inputs):
    """The only output is the expected one, and coremltools reads the file back."""
    (value,) = made.run(**(inputs or {"x": X})).values()
    np.testing.assert_allclose(value, expected, rtol=0, atol=2e-6)  # float32 against float64, values below 1
    made.ask("sound")


def test_every_kind_is_written_and_every_file_is_named():
    assert set(EDITS) == set(EDIT_KINDS)
    folder = Path(patch.frameworks.__path__[0])
    assert EDIT_FILES[-1] == "_coreml_edit"
    for name in EDIT_FILES:
        text = (folder / f"{name}.py").read_text(encoding="utf-8")
        wanted = [line.split("#")[0].split(" import ")[1].split(" as ")[0] for line in text.splitlines()
                  if line.startswith("from trueport.frameworks import ")]  # fmt: skip
        wanted += [line.split()[1].rpartition(".")[2] for line in text.splitlines()
                   if line.startswith("from trueport.frameworks._")]  # fmt: skip
        assert {part.strip() for one in wanted for part in one.split(",")} <= {*EDIT_FILES, "_base"}, name


def test_the_model_is_what_it_is_taken_for(model):
    same(model("picture"), picture_by_hand())


# -- constants ------------------------------------------------------------------------------------------------------


def test_a_weight_is_overwritten_in_its_place(model):
    w = samples(6, 3, 3, 3, seed=20)
    parameter = model("picture").nodes()["conv"]["inputs"][1]
    made = model("picture").edit(edit("set-parameter", node="conv", parameter=parameter, array="w"), w=w)
    same(made, picture_by_hand(w=w))
    assert touched(model("picture"), made) == {f"{parameter}:value"}
    old, new = (next(item.path.rglob("weight.bin")).read_bytes() for item in (model("picture"), made))
    assert len(old) == len(new)
    differing = [place for place, (one, two) in enumerate(zip(old, new, strict=True)) if one != two]
    assert differing[-1] - differing[0] < w.nbytes


def test_a_shared_constant_stays_for_its_other_reader(model):
    new = samples(1, 6, 1, 1, seed=21)
    made = model("picture").edit(edit("set-parameter", node="scaled", parameter="shared", array="s"), s=new)
    same(made, picture_by_hand(shared=(new, samples(1, 6, 1, 1, seed=5))))
    assert made.nodes()["shifted"]["inputs"][1] == "shared"


def test_a_second_edit_finds_the_copy_that_the_first_made(model):
    first, second = samples(1, 6, 1, 1, seed=21), samples(1, 6, 1, 1, seed=22)
    made = model("picture").edit(
        edit("set-parameter", node="scaled", parameter="shared", array="a"),
        edit("set-parameter", node="scaled", parameter="shared", array="b"),
        a=first,
        b=second,
    )
    same(made, picture_by_hand(shared=(second, samples(1, 6, 1, 1, seed=5))))


def test_a_bias_is_added(model):
    bias = samples(4, seed=23)
    same(model("picture").edit(edit("add-parameter", node="logits", role="bias", array="b"), b=bias),
         picture_by_hand(bias=bias))  # fmt: skip
    assert "already" in model("picture").refusal(edit("add-parameter", node="conv", role="bias", array="b"), b=bias)


def test_compressed_weights_stay_on_their_grid_or_leave_it(model):
    plain = model("quantised")
    (name,) = [name for name in plain.nodes()["y"]["inputs"] if name != "x"][:1]
    wanted = samples(32, 16, seed=7) * np.float32(0.5)
    x = samples(1, 16, seed=24)
    kept = plain.edit(edit("set-parameter", node="y", parameter=name, array="w"), w=wanted)
    free = plain.edit(edit("set-parameter", node="y", parameter=name, array="w", grid="new"), w=wanted)
    (coarse,), (fine,) = kept.run(x=x).values(), free.run(x=x).values()
    step = np.abs(samples(32, 16, seed=7)).max() / 127
    error = np.abs(coarse - x @ wanted.T)
    assert 1e-6 < error.max() < np.abs(x).sum() * step / 2  # half a step for each weight
    np.testing.assert_allclose(fine, x @ wanted.T, rtol=0, atol=1e-5)
    assert "constexpr" in " ".join(kept.ask("sound"))


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "attribute", "value", "expected"),
    [
        ("conv", "strides", [2, 2], {"strides": 2}),
        ("conv", "pads", [0, 1, 2, 1], {"pads": (0, 2, 1, 1)}),  # ONNX lists begins, then ends
        ("conv", "pad", [0, 2, 1, 1], {"pads": (0, 2, 1, 1)}),
        ("conv", "auto_pad", "SAME_UPPER", {}),
        ("conv", "auto_pad", "VALID", {"pads": (0, 0, 0, 0)}),
        ("norm", "epsilon", 0.25, {"epsilon": 0.25}),
        ("probabilities", "axis", 0, {"axis": 0}),
    ],
)
def test_a_setting_in_either_vocabulary(model, node, attribute, value, expected):
    made = model("picture").edit(edit("set-attribute", node=node, attribute=attribute, value=value))
    same(made, picture_by_hand(**expected))
    assert not {"shared", "logits"} & touched(model("picture"), made)


def test_types_behind_a_change_are_worked_out_anew(model):
    made = model("picture").edit(edit("set-attribute", node="conv", attribute="strides", value=[2, 2]))
    assert model("picture").ask("declared")["pooled"] == ["float32", [2, 6, 4, 4]]
    assert made.ask("declared")["conv"] == ["float32", [2, 6, 4, 4]]
    assert made.ask("declared")["pooled"] == ["float32", [2, 6, 2, 2]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("set-attribute", node="conv", attribute="strides", value=[0.5, 1]), "whole numbers"),
        (edit("set-attribute", node="probabilities", attribute="beta", value=2.0), "no setting 'beta'"),
        (edit("set-attribute", node="conv", attribute="dilations", value=[9, 9]), "cannot stand there"),
        (edit("set-attribute", node="nobody", attribute="axis", value=0), "no operation 'nobody'"),
        (edit("remove-node", node="mean"), "cannot stand there"),
        (edit("remove-node", node="conv", slot=5), "none number 5"),
        (edit("set-operator", node="bent", operator="Nonsense"), "Nonsense"),
        (edit("insert", value="nothing", steps=[{"operator": "Relu"}]), "no value 'nothing'"),
        (edit("insert", value="bent", steps=[]), "at least one step"),
        (edit("insert", value="bent", readers=["logits"], steps=[{"operator": "Relu"}]), "read the value"),
        (edit("set-input", node="scaled", slot=0, value="pooled"), "cycle"),
        (edit("set-outputs", outputs=[]), "at least one output"),
        (edit("set-parameter", node="conv", parameter="shared", array="a"), "does not read"),
        (edit("set-parameter", node="conv", parameter="shared", array="b"), "was not given"),
        (edit("set-dimensions", value="bent", shape=[1]), "no array that the model takes"),
        (edit("unheard-of"), "no edit"),
        (edit("remove-node"), "lacks its entry"),
    ],
)
def test_what_cannot_be_written_is_refused_with_the_reason(model, change, words):
    assert words in model("picture").refusal(change, a=samples(1))


# -- the graph ------------------------------------------------------------------------------------------------------


def test_an_operator_is_taken_out(model):
    made = model("picture").edit(edit("remove-node", node="bent"))
    same(made, picture_by_hand(bent=lambda y: y))
    assert "bent" not in made.nodes()


def test_the_last_operator_is_taken_out_and_the_output_keeps_its_name(model):
    made = model("picture").edit(edit("remove-node", node="probabilities"))
    assert list(made.run(x=X)) == ["probabilities"]
    value = made.run(x=X)["probabilities"].astype(np.float64)
    e = np.exp(value - value.max(-1, keepdims=True))
    np.testing.assert_allclose(e / e.sum(-1, keepdims=True), picture_by_hand(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("operator", "attributes", "function"),
    [
        ("LeakyRelu", {"alpha": 0.3}, lambda y: np.where(y > 0, y, 0.3 * y)),
        ("Clip", {"min": 0.0, "max": 0.5}, lambda y: np.clip(y, 0, 0.5)),
        ("Clip", {"max": 0.5}, lambda y: np.minimum(y, 0.5)),
        ("Elu", {"alpha": 0.5}, lambda y: np.where(y > 0, y, 0.5 * np.expm1(np.minimum(y, 0)))),
        ("HardSwish", {}, lambda y: y * np.clip(y / 6 + 0.5, 0, 1)),
        ("Mish", {}, lambda y: y * np.tanh(np.logaddexp(0, y))),
        ("Selu", {}, lambda y: 1.0507009873554805 * np.where(y > 0, y, 1.6732632423543772 * np.expm1(np.minimum(y, 0)))),
        ("Softsign", {}, lambda y: y / (1 + np.abs(y))),
        ("Reciprocal", {}, lambda y: 1 / y),
        ("Neg", {}, lambda y: -y),
    ],
)  # fmt: skip
def test_another_operator_stands_in_its_place(model, operator, attributes, function):
    made = model("picture").edit(edit("set-operator", node="bent", operator=operator, attributes=attributes))
    (value,) = made.run(x=X).values()
    np.testing.assert_allclose(value, picture_by_hand(bent=function), rtol=0, atol=1e-5)  # a quotient may be large
    assert "bent" in made.nodes()
    made.ask("sound")


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("ReduceMax", ["pooled"], {"axes": [2, 3], "keepdims": 0})], {"reduce": np.max}),
        ([("GlobalMaxPool", ["pooled"], {}), ("Flatten", [0], {"axis": 1})], {"reduce": np.max}),
        ([("GlobalAveragePool", ["pooled"], {}), ("Reshape", [0, "shape"], {})], {}),
        ([("Transpose", ["pooled"], {"perm": [0, 2, 3, 1]}), ("ReduceMean", [0], {"axes": [1, 2], "keepdims": 0})], {}),
        ([("MaxPool", ["shifted"], {"kernel_shape": [2, 2], "strides": [2, 2]}), ("ReduceMean", [0], {"axes": [2, 3], "keepdims": 0})], {}),
        ([("AveragePool", ["shifted"], {"kernel_shape": [2, 2], "strides": [2, 2]}), ("ReduceMean", [0], {"axes": [2, 3], "keepdims": 0})], {"pool": np.mean}),
    ],
)  # fmt: skip
def test_a_value_is_computed_in_another_way(model, nodes, expected):
    made_of = [
        {"op": op, "inputs": [f"new_{one}" if isinstance(one, int) else one for one in inputs],
         "outputs": [f"new_{place}"], "attributes": attributes}
        for place, (op, inputs, attributes) in enumerate(nodes)
    ]  # fmt: skip
    made = model("picture").edit(edit("recompute", value="mean", nodes=made_of), shape=np.array([2, 6]))
    same(made, picture_by_hand(**expected))
    assert ("pooled" in made.nodes()) is any("pooled" in inputs for _, inputs, _ in nodes)


def test_steps_are_put_between_a_value_and_all_its_readers(model):
    factor = np.full((1, 6, 1, 1), 3, np.float32)
    steps = [{"operator": "Mul", "attributes": {}, "constants": ["f"]}, {"operator": "Tanh", "attributes": {}}]
    made = model("picture").edit(edit("insert", value="bent", steps=steps), f=factor)
    same(made, picture_by_hand(bent=lambda y: np.tanh(3 * np.maximum(y, 0))))


def test_steps_are_put_in_for_the_output_alone_and_at_an_input(model):
    steps = [{"operator": "Mul", "attributes": {}, "constants": ["f"]}]
    made = model("picture").edit(
        edit("insert", value="probabilities", readers=[""], steps=steps), f=np.array(2, np.float32)
    )
    same(made, 2 * picture_by_hand())
    turned = model("picture").edit(edit("insert", value="x", steps=[{"operator": "Transpose", "attributes": {"perm": [0, 1, 3, 2]}}]))  # fmt: skip
    same(turned, picture_by_hand(X.swapaxes(2, 3)))


def test_operands_change_places_and_others_are_read(model):
    x = samples(2, 4, seed=25)
    a, b = x.astype(np.float64) @ samples(4, 4, seed=6).T.astype(np.float64), np.tanh(x)
    swapped = model("open").edit(edit("reorder-inputs", node="difference", order=[1, 0]))
    same(swapped, np.concatenate([b - a, a], 1), x=x)
    other = model("open").edit(edit("set-input", node="joined", slot=1, value="b"))
    same(other, np.concatenate([a - b, b], 1), x=x)
    joined = model("open").edit(edit("reorder-inputs", node="joined", order=[1, 0]))
    same(joined, np.concatenate([a, a - b], 1), x=x)


# -- interface and precision ------------------------------------------------------------------------------------------


def test_outputs_are_chosen_and_ordered(model):
    made = model("open").edit(edit("set-outputs", outputs=["b", "difference"]))
    x = samples(2, 4, seed=26)
    found = made.run(x=x)
    assert list(found) == ["b", "difference"]
    np.testing.assert_allclose(found["b"], np.tanh(x), rtol=0, atol=1e-6)
    assert "joined" not in made.nodes()


def test_a_batch_is_opened_and_fixed(model):
    opened = model("picture").edit(edit("set-dimensions", value="x", shape=["batch", 3, 8, 8]))
    wide = np.concatenate([X, X[:1]])
    same(opened, picture_by_hand(wide), x=wide)
    assert opened.ask("declared")["mean"] == ["float32", [None, 6]]
    fixed = model("open").edit(edit("set-dimensions", value="x", shape=[5, 4]))
    assert fixed.ask("declared")["joined"] == ["float32", [5, 8]]


def test_one_operator_computes_in_half_precision(model):
    made = model("picture").edit(edit("set-precision", node="conv", dtype="float16"))
    (value,) = made.run(x=X).values()
    error = np.abs(value - picture_by_hand()).max()
    assert 1e-6 < error < 1e-2  # ten bits of mantissa in one operator
    back = made.edit(edit("set-precision", node=half_of(made), dtype="float32"))
    assert np.abs(back.run(x=X)["probabilities"] - picture_by_hand()).max() < error / 2 or error < 1e-4


def half_of(made):
    return next(name for name, node in made.nodes().items() if node["native_op"] == "conv")


# -- the file -------------------------------------------------------------------------------------------------------


def test_the_same_edits_give_the_same_bytes(model):
    change = edit("insert", value="bent", steps=[{"operator": "Mul", "attributes": {}, "constants": ["f"]}])
    arrays = {"f": samples(1, 6, 8, 8, seed=27)}
    first, second = (model("picture").edit(change, **arrays) for _ in range(2))
    files = [{item.relative_to(one.path): item.read_bytes() for item in one.path.rglob("*") if item.is_file()}
             for one in (first, second)]  # fmt: skip
    assert files[0] == files[1]


def test_what_no_edit_names_keeps_its_bytes(model):
    change = edit("insert", value="bent", steps=[{"operator": "Mul", "attributes": {}, "constants": ["f"]}])
    made = model("picture").edit(change, f=samples(1, 6, 8, 8, seed=27))
    old, new = (next(item.path.rglob("weight.bin")).read_bytes() for item in (model("picture"), made))
    assert new[64 : len(old)] == old[64:]  # the header counts the records
    kept = {"conv", "pooled", "mean", "norm", "logits", "probabilities", "shared", "description"}
    assert not kept & touched(model("picture"), made)


def test_a_patch_script_writes_the_same_file(model, tmp_path):
    source = model("picture")
    change = edit("set-attribute", node="norm", attribute="epsilon", value=0.25)
    made = source.edit(change)
    from trueport.artifact import Artifact

    hashes = [Artifact.open(item.path, format="coreml").sha256 for item in (source, made)]
    written = patch.script("coreml", [([change], {})], explanation="epsilon", source_sha256=hashes[0], result_sha256=hashes[1])  # fmt: skip
    script = tmp_path / "mend.py"
    script.write_text(written.script, encoding="utf-8")
    out = tmp_path / "mended.mlpackage"
    done = subprocess.run([source.python, script, source.path, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    same(Model(source.pool, source.python, out), picture_by_hand(epsilon=0.25))


# -- the older format -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(pool, env, tmp_path_factory):
    """A neural network in one .mlmodel file."""
    path = tmp_path_factory.mktemp("network") / "model.mlmodel"
    outcome = pool.call(env("coreml"), "coreml_models", "network", {"out": str(path)}, stage=Stage.LOAD, paths=HERE)
    assert not isinstance(outcome, Failure), (outcome.message, outcome.log[-1500:])
    return Model(pool, env("coreml"), path)


ROWS = samples(3, 5, seed=30)


def network_by_hand(*, w=None, bias=0.0, bent=lambda y: np.maximum(y, 0), factor=None, axis=-1):
    w = samples(4, 5, seed=8) if w is None else w
    y = bent(ROWS.astype(np.float64) @ w.T + bias) * (samples(1, 4, seed=9) if factor is None else factor)
    e = np.exp(y - y.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


FOUR = samples(4, seed=31)
STEPS = [{"operator": "Tanh", "attributes": {}}, {"operator": "Mul", "attributes": {}, "constants": ["a"]}]


@pytest.mark.parametrize(
    ("change", "array", "expected"),
    [
        (edit("set-parameter", node="matrix", parameter="matrix.weights", array="a"), samples(4, 5, seed=32), {"w": samples(4, 5, seed=32)}),
        (edit("set-parameter", node="scaled", parameter="factor", array="a"), FOUR.reshape(1, 4), {"factor": FOUR}),
        (edit("add-parameter", node="matrix", role="bias", array="a"), FOUR, {"bias": FOUR}),
        (edit("set-attribute", node="y", attribute="axis", value=0), FOUR, {"axis": 0}),
        (edit("remove-node", node="bent"), FOUR, {"bent": lambda y: y}),
        (edit("set-operator", node="bent", operator="LeakyRelu", attributes={"alpha": 0.5}), FOUR, {"bent": lambda y: np.where(y > 0, y, 0.5 * y)}),
        (edit("insert", value="rows", steps=STEPS), np.full((1, 4), 3, np.float32), {"bent": lambda y: np.maximum(3 * np.tanh(y), 0)}),
        (edit("set-input", node="scaled", slot=0, value="rows"), FOUR, {"bent": lambda y: y}),
        (edit("reorder-inputs", node="scaled", order=[1, 0]), FOUR, {}),
        (edit("recompute", value="bent", nodes=[{"op": "Sigmoid", "inputs": ["rows"], "outputs": ["s"], "attributes": {}}]), FOUR, {"bent": lambda y: 1 / (1 + np.exp(-y))}),
    ],
)  # fmt: skip
def test_a_neural_network_is_edited(network, change, array, expected):
    made = network.edit(change, name="out.mlmodel", a=array)
    assert list(made.run(x=ROWS)) == ["y"]
    np.testing.assert_allclose(made.run(x=ROWS)["y"], network_by_hand(**expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (edit("set-precision", node="matrix", dtype="float16"), "ML program"),
        (edit("set-parameter", node="matrix", parameter="matrix.weights", array="a"), "holds 20 values"),
        (edit("set-parameter", node="bent", parameter="factor", array="a"), "does not read"),
        (edit("add-parameter", node="bent", role="bias", array="a"), "takes no bias"),
        (edit("set-attribute", node="y", attribute="speed", value=1), "no setting 'speed'"),
        (edit("set-operator", node="bent", operator="Conv"), "Conv"),
        (edit("remove-node", node="nobody"), "no layer named 'nobody'"),
    ],
)
def test_what_a_network_cannot_take_is_refused(network, change, words):
    assert words in network.refusal(change, a=FOUR)


def test_layers_that_no_edit_names_keep_their_bytes(network):
    made = network.edit(edit("remove-node", node="bent"), name="out.mlmodel")
    assert samples(4, 5, seed=8).tobytes() in made.path.read_bytes()
    assert samples(1, 4, seed=9).tobytes() in made.path.read_bytes()
