"""Edits written into ONNX files: each kind does what NumPy says it must, and nothing else in the file differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.frameworks._base import EDIT_KINDS
from trueport.outcome import Failure, Kind, Stage

MODULE = "trueport.frameworks.onnx"
HERE = [str(Path(__file__).parent)]


def samples(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


class Model:
    """One model of onnx_edit_models.py in a worker: edit it, run it, and look at what its file holds."""

    def __init__(self, pool, python, path):
        self.pool, self.python, self.path = pool, python, path

    def _call(self, module, function, arguments):
        return self.pool.call(self.python, module, function, arguments, stage=Stage.LOAD, paths=HERE)

    def ask(self, function, path=None, **arguments):
        outcome = self._call("onnx_edit_models", function, {"path": str(path or self.path), **arguments})
        assert not isinstance(outcome, Failure), outcome
        return outcome.value.value

    def try_edit(self, edits, arrays, out):
        arguments = {"path": str(self.path), "edits": edits, "arrays": arrays, "out": str(out), "trust": False}
        return self._call(MODULE, "edit", arguments)

    def edit(self, *edits, name="out.onnx", **arrays):
        """The edited model, in a folder beside."""
        out = self.path.parent / "edited" / name
        out.parent.mkdir(exist_ok=True)
        outcome = self.try_edit(list(edits), arrays, out)
        assert not isinstance(outcome, Failure), outcome
        made = Model(self.pool, self.python, out)
        made.notes = outcome.value.value["notes"]
        return made

    def refusal(self, *edits, **arrays):
        """The reason for which an edit cannot be written; nothing may be left of the result."""
        out = self.path.parent / "refused.onnx"
        outcome = self.try_edit(list(edits), arrays, out)
        assert isinstance(outcome, Failure), outcome
        assert outcome.kind is Kind.UNSUPPORTED, outcome
        assert not list(self.path.parent.glob("refused.onnx*"))
        return outcome.message

    def look(self):
        return self.ask("look")

    def body(self):
        return {node["name"]: node for node in self.ask("body")}

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
    """model(name) -> Model of onnx_edit_models.py, built once."""
    folder = tmp_path_factory.mktemp("edit")

    def get(name: str) -> Model:
        path = folder / name / "model.onnx"
        if not path.exists():
            path.parent.mkdir()
            arguments = {"name": name, "out": str(path)}
            outcome = pool.call(env("onnx"), "onnx_edit_models", "build", arguments, stage=Stage.LOAD, paths=HERE)
            assert not isinstance(outcome, Failure), outcome
        return Model(pool, env("onnx"), path)

    return get


def edit(kind, **entries):
    return {"kind": kind, **entries}


def touched(before: Model, after: Model) -> set[str]:
    """The pieces of the file that differ, are new, or are gone."""
    old, new = before.look(), after.look()
    return {piece for piece in {*old, *new} if old.get(piece) != new.get(piece)}


def picture_by_hand(x, *, m=None, w=None, b=None, high=6.0, low=-1.0, relu=lambda h: np.maximum(h, 0), reduce=np.mean):
    """What the model "picture" computes."""
    rng = lambda *shape, seed: np.random.default_rng(seed).normal(size=shape).astype(np.float32)  # noqa: E731
    w = rng(4, 3, 3, 3, seed=1) if w is None else w
    b = rng(4, seed=2) if b is None else b
    m = rng(4, 5, seed=3) if m is None else m
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    conv = np.einsum("nchwij,ocij->nohw", windows, w) + b.reshape(1, -1, 1, 1)
    return np.clip(reduce(relu(conv), axis=(2, 3)), low, high) @ m


def near(got, wanted):
    # float32 sums of some hundred terms, in another order than NumPy's
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


X = samples(2, 3, 8, 8)


# -- the frame --------------------------------------------------------------------------------------------------------


def test_every_kind_of_edit_can_be_written_and_the_listed_files_need_nothing_else_of_ours():
    import trueport.frameworks as frameworks
    from trueport.frameworks import onnx

    assert sorted(onnx.EDITS) == sorted(EDIT_KINDS)
    seen = {"_base"}
    for name in onnx.EDIT_FILES:
        text = (Path(frameworks.__file__).parent / f"{name}.py").read_text()
        ours = [line for line in text.splitlines() if line.startswith(("from trueport", "import trueport"))]
        for line in ours:
            package, _, names = line.partition(" import ")
            last = package.rpartition(".")[2]
            needed = {names.split(" as ")[0].strip()} if last == "frameworks" else {last}
            assert needed <= seen, (name, line)
        seen.add(name)
    assert "def apply(" in text


def test_the_same_edits_give_the_same_bytes_and_no_edit_changes_nothing(model):
    net = model("picture")
    edits = [
        edit("insert", value="r", steps=[{"operator": "Gelu", "attributes": {}, "constants": []}]),
        edit("set-parameter", node="mm", parameter="m", array="a"),
    ]
    one = net.edit(*edits, a=samples(4, 5), name="one.onnx").path.read_bytes()
    two = net.edit(*edits, a=samples(4, 5), name="two.onnx").path.read_bytes()
    assert one == two
    assert one != net.path.read_bytes()
    assert net.edit(name="same.onnx").path.read_bytes() == net.path.read_bytes()


def test_the_model_by_hand_is_the_model(model):
    near(model("picture").run(x=X)["y"], picture_by_hand(X))


def test_side_files_are_copied_and_untouched_tensors_still_lie_in_them(model):
    net = model("external")
    made = net.edit(edit("set-parameter", node="mm", parameter="m", array="a"), a=samples(4, 5, seed=9))
    side = made.path.parent / "weights.bin"
    assert side.read_bytes() == (net.path.parent / "weights.bin").read_bytes()
    assert touched(net, made) == {"initializer m"}
    near(made.run(x=X)["y"], picture_by_hand(X, m=samples(4, 5, seed=9)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edit("set-parameter", node="mm", parameter="w", array="a"), "node 'mm' has no constant 'w'; it has 'm'"),
        (edit("set-parameter", node="mm", parameter="m", array="z"), "an array 'z' that was not given"),
        (edit("set-parameter", node="mm", array="a"), "lacks its entry 'parameter'"),
        (edit("remove-node", node="nobody"), "no node named 'nobody'"),
        (edit("set-attribute", node="relu", attribute="alpha", value=1.0), "'Relu' has no attribute 'alpha'"),
        (edit("set-attribute", node="conv", attribute="pads", value="wide"), "attribute 'pads' takes ints"),
        (edit("set-attribute", node="conv", attribute="group", value=1.5), "attribute 'group' takes int"),
        (edit("set-operator", node="relu", operator="Rleu"), "ONNX has no operator 'Rleu'"),
        (edit("set-operator", node="relu", operator="GroupNormalization"), "needs opset 18"),
        (edit("insert", value="v", steps=[{"operator": "Relu"}]), "no value 'v'"),
        (edit("insert", value="c", steps=[]), "at least one step"),
        (edit("insert", value="c", readers=["mm"], steps=[{"operator": "Relu"}]), "'mm' does not read 'c'"),
        (edit("insert", value="c", readers=[""], steps=[{"operator": "Relu"}]), "'c' is no output"),
        (edit("reorder-inputs", node="mm", order=[0, 0]), "is no order"),
        (edit("set-input", node="conv", slot=0, value="r"), "cycle"),
        (edit("set-input", node="conv", slot=0, value="nothing"), "no value 'nothing'"),
        (edit("add-parameter", node="conv", role="bias", array="a"), "has a bias already: 'b'"),
        (edit("add-parameter", node="relu", role="bias", array="a"), "'Relu' takes no bias"),
        (edit("set-dimensions", value="x", shape=[2, 3]), "4 axes"),
        (edit("set-dimensions", value="y", shape=[2, 3]), "no input 'y'"),
        (edit("set-outputs", outputs=["y", "y"]), "only once"),
        (edit("set-outputs", outputs=["q"]), "no value 'q'"),
        (edit("set-precision", node="mm", dtype="int3"), "no precision"),
        (edit("set-precision", node="mm", dtype="float32", parameters={"w": "a"}), "no constant 'w'"),
        (edit("recompute", value="y", nodes=[]), "nothing is given"),
        (edit("recompute", value="c", nodes=[{"op": "Relu", "inputs": ["r"], "outputs": ["o"]}]), "cycle"),
        (edit("explode", node="mm"), "no edit"),
        (edit("reorder-inputs", node="mm", order=[1, 0]), "the model does not load with these edits"),
    ],
)
def test_what_cannot_be_written_is_refused_with_its_reason(model, change, reason):
    assert reason in model("picture").refusal(change, a=samples(4, 5))


# -- set-parameter ----------------------------------------------------------------------------------------------------


def test_a_parameter_of_one_node_is_written_where_it_stands(model):
    net = model("picture")
    wanted = samples(4, 3, 3, 3, seed=11)
    made = net.edit(edit("set-parameter", node="conv", parameter="w", array="a"), a=wanted.astype(np.float64))
    assert touched(net, made) == {"initializer w"}
    np.testing.assert_array_equal(made.ask("read", name="w"), wanted)
    near(made.run(x=X)["y"], picture_by_hand(X, w=wanted))


def test_a_shared_constant_is_copied_for_the_one_node(model):
    net = model("shared")
    x, new = samples(3, 4), samples(4, seed=21)
    before = net.run(x=x)
    made = net.edit(edit("set-parameter", node="second", parameter="s", array="a"), a=new)
    after = made.run(x=x)
    changed = touched(net, made)
    assert {piece for piece in changed if not piece.startswith("initializer")} == {"node second"}
    assert len(changed) == 2
    np.testing.assert_array_equal(after["c"], before["c"])
    np.testing.assert_array_equal(after["f"], before["f"])
    near(after["d"], (x * new) @ made.ask("read", name="q").T)


def test_two_edits_of_one_shared_constant_reach_the_copy(model):
    net = model("shared")
    change = edit("set-parameter", node="second", parameter="s", array="a")
    once = net.edit({**change, "array": "b"}, b=samples(4, seed=22), name="once.onnx")
    twice = net.edit(change, {**change, "array": "b"}, a=samples(4), b=samples(4, seed=22), name="twice.onnx")
    x = samples(3, 4)
    np.testing.assert_array_equal(once.run(x=x)["d"], twice.run(x=x)["d"])


def test_a_constant_behind_a_shared_transposition_changes_for_one_reader(model):
    net = model("shared")
    x, new = samples(3, 4), samples(4, 4, seed=23)
    before = net.run(x=x)
    made = net.edit(edit("set-parameter", node="left", parameter="q", array="a"), a=new)
    after = made.run(x=x)
    near(after["c"], (x * made.ask("read", name="s")) @ new.T)
    np.testing.assert_array_equal(after["d"], before["d"])
    assert "node turn" not in touched(net, made)


def test_a_constant_that_a_subgraph_reads_changes_for_it_alone(model):
    net = model("shared")
    x, new = samples(3, 4), samples(4, seed=24)
    before = net.run(x=x)
    made = net.edit(edit("set-parameter", node="branch", parameter="s", array="a"), a=new)
    after = made.run(x=x)
    near(after["f"] - before["f"], np.broadcast_to(new - net.ask("read", name="s"), (3, 4)))
    np.testing.assert_array_equal(after["c"], before["c"])


def test_a_constant_inside_a_subgraph_and_one_of_a_constant_node(model):
    net = model("shared")
    x = samples(3, 4)
    before = net.run(x=x)
    inner = net.edit(edit("set-parameter", node="branch", parameter="deep", array="a"), a=np.full(4, 1.5))
    near(inner.run(x=x)["f"] - before["f"], np.ones((3, 4)))
    assert touched(net, inner) == {"node branch"}
    outer = net.edit(edit("set-parameter", node="last", parameter="k", array="a"), a=np.zeros(4))
    near(before["f"] - outer.run(x=x)["f"], np.broadcast_to(net.ask("read", name="k"), (3, 4)))
    assert touched(net, outer) == {"node constant"}


def test_another_shape_and_a_listed_input_of_an_old_file(model):
    net = model("ancient")
    wanted, x = samples(6, 7, seed=31), samples(2, 6)
    made = net.edit(edit("set-parameter", node="mm", parameter="m", array="a"), a=wanted)
    near(made.run(x=x)["y"], x @ wanted)
    assert made.ask("sizes")["m"] == [6, 7]
    assert made.ask("sizes")["y"] == ["n", 7]
    assert made.look().get("checker") is None


def test_values_that_do_not_fit_the_type_are_refused(model):
    net = model("order")
    change = edit("set-parameter", node="sum", parameter="axes", array="a")
    assert "whole numbers" in net.refusal(change, a=np.array([1.5]))
    change = edit("set-parameter", node="first", parameter="w", array="a")
    assert "do not fit" in model("half").refusal(change, a=np.full((6, 6), 1e6))


# -- grids ------------------------------------------------------------------------------------------------------------


def test_values_on_the_grid_that_is_there(model):
    net = model("qdq")
    scale = net.ask("read", name="ws").astype(np.float64).reshape(4, 1, 1, 1)
    wanted = samples(4, 3, 3, 3, seed=41) * scale * 40
    made = net.edit(edit("set-parameter", node="weights", parameter="w", array="a"), a=wanted)
    assert touched(net, made) == {"initializer w"}
    stored = made.ask("read", name="w")
    assert stored.dtype == np.int8
    np.testing.assert_array_equal(stored, np.clip(np.rint(wanted / scale), -128, 127))
    assert np.abs(stored * scale - np.clip(wanted, -128 * scale, 127 * scale)).max() <= scale.max() / 2


def test_the_reader_of_the_real_weights_may_be_named_too(model):
    net = model("qdq")
    wanted = samples(4, 3, 3, 3, seed=42)
    one = net.edit(edit("set-parameter", node="weights", parameter="w", array="a"), a=wanted, name="one.onnx")
    two = net.edit(edit("set-parameter", node="conv", parameter="w", array="a"), a=wanted, name="two.onnx")
    assert one.path.read_bytes() == two.path.read_bytes()


def test_a_new_grid_is_as_fine_as_it_can_be_and_the_bias_moves_along(model):
    net = model("qdq")
    wanted = samples(4, 3, 3, 3, seed=43, scale=0.1)
    made = net.edit(edit("set-parameter", node="weights", parameter="w", array="a", grid="new"), a=wanted)
    scale = made.ask("read", name="ws").astype(np.float64)
    np.testing.assert_allclose(scale, np.abs(wanted).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    held = made.ask("read", name="w") * scale.reshape(4, 1, 1, 1)
    assert np.all(np.abs(held - wanted) <= scale.reshape(4, 1, 1, 1) / 2 * (1 + 1e-6))
    np.testing.assert_allclose(made.ask("read", name="bs"), scale * np.float32(0.05), rtol=1e-5)
    old = net.ask("read", name="b") * net.ask("read", name="bs").astype(np.float64)
    new = made.ask("read", name="b") * made.ask("read", name="bs").astype(np.float64)
    assert np.all(np.abs(old - new) <= made.ask("read", name="bs") * 0.51)
    x = samples(2, 3, 5, 5)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.clip(np.rint(x / 0.05), -128, 127) * 0.05, (3, 3), axis=(2, 3)
    )
    by_hand = np.einsum("nchwij,ocij->nohw", windows, held) + new.reshape(1, -1, 1, 1)
    np.testing.assert_allclose(made.run(x=x)["y"], by_hand, atol=1e-4)
    assert touched(net, made) == {f"initializer {name}" for name in ("w", "ws", "b", "bs")}


def test_weights_and_bias_of_an_operator_on_the_grid(model):
    net = model("qlinear")
    scale = net.ask("read", name="ws").astype(np.float64)
    wanted, bias = samples(4, 3, 5, 5, seed=44), samples(4, seed=45)
    made = net.edit(
        edit("set-parameter", node="conv", parameter="w", array="a"),
        edit("set-parameter", node="conv", parameter="b", array="b"),
        a=wanted,
        b=bias,
    )
    stored = np.clip(np.rint(wanted / scale.reshape(4, 1, 1, 1)), -128, 127)
    np.testing.assert_array_equal(made.ask("read", name="w"), stored)
    np.testing.assert_array_equal(made.ask("read", name="b"), np.rint(bias / (np.float64(np.float32(0.05)) * scale)))


def test_an_asymmetric_grid_made_anew_covers_all_values_and_zero(model):
    net = model("qlinear")
    wanted = np.abs(samples(4, 5, seed=46)) + 3
    made = net.edit(edit("set-parameter", node="mm", parameter="m", array="a", grid="new"), a=wanted)
    scale, zero = float(made.ask("read", name="ms")), int(made.ask("read", name="mz"))
    held = (made.ask("read", name="m").astype(np.float64) - zero) * scale
    assert zero == 0
    assert np.abs(held - wanted).max() <= scale * 0.51
    assert scale == pytest.approx(wanted.max() / 255, rel=1e-6)


def test_the_scale_of_a_dynamic_quantisation_stands_behind_it(model):
    net = model("dynamic")
    wanted, x = samples(6, 5, seed=47, scale=0.3), samples(4, 6)
    made = net.edit(edit("set-parameter", node="mm", parameter="w", array="a", grid="new"), a=wanted)
    assert float(made.ask("read", name="ws")) == pytest.approx(np.abs(wanted).max() / 127, rel=1e-6)
    bound = np.abs(x).max() * 6 * 0.3 / 40  # the steps of both grids, over six terms
    assert np.abs(made.run(x=x)["y"] - x @ wanted).max() < bound


# -- add-parameter ----------------------------------------------------------------------------------------------------


def test_a_bias_is_added_where_the_operator_takes_one_and_behind_it_where_not(model):
    net = model("bare")
    x = samples(2, 3, 8, 8)
    biases = {"conv": samples(4, seed=51), "gemm": samples(6, seed=52), "norm": samples(6, seed=53)}
    biases["mm"] = samples(5, seed=54)
    changes = [edit("add-parameter", node=name, role="bias", array=name) for name in biases]
    made = net.edit(*changes, **biases)
    c = np.einsum("nchw,ochw->no", x, made.ask("read", name="w")) + biases["conv"]
    h = c @ made.ask("read", name="g") + biases["gemm"]
    moved = h - h.mean(-1, keepdims=True)
    normal = moved / np.sqrt(moved.var(-1, keepdims=True) + 1e-5) * made.ask("read", name="s") + biases["norm"]
    after = made.run(x=x)
    np.testing.assert_allclose(after["h"], h, atol=1e-4)
    np.testing.assert_allclose(after["y"], normal @ made.ask("read", name="m") + biases["mm"], atol=1e-3)
    nodes = made.body()
    assert {"conv", "flat", "gemm", "norm", "mm"} < set(nodes)
    assert len(nodes) == 6


def test_a_recurrent_layer_gets_its_bias(model):
    net = model("recurrent")
    x, bias = samples(5, 2, 3), samples(1, 32, seed=55)
    made = net.edit(edit("add-parameter", node="lstm", role="bias", array="a"), a=bias)
    assert not np.allclose(made.run(x=x)["y"], net.run(x=x)["y"], atol=1e-3)
    zero = net.edit(edit("add-parameter", node="lstm", role="bias", array="a"), a=bias * 0)
    near(zero.run(x=x)["y"], net.run(x=x)["y"])


# -- set-attribute ----------------------------------------------------------------------------------------------------


def test_attributes_get_the_type_that_the_operator_demands(model):
    net = model("picture")
    made = net.edit(edit("set-attribute", node="p", attribute="keepdims", value=0.0))
    assert touched(net, made) == set()
    made = net.edit(edit("set-attribute", node="conv", attribute="pads", value=[0, 0, 0, 0]))
    assert touched(net, made) == {"node conv", "value_info c", "value_info r"}
    assert made.ask("sizes")["r"] == [2, 4, 6, 6]


def test_an_attribute_is_taken_away(model):
    net = model("picture")
    made = net.edit(edit("set-attribute", node="conv", attribute="pads", value=None))
    near(
        made.run(x=X)["y"], net.edit(edit("set-attribute", node="conv", attribute="pads", value=[0] * 4)).run(x=X)["y"]
    )


def test_what_is_an_operand_in_this_opset_is_set_as_a_constant(model):
    net = model("picture")
    made = net.edit(edit("set-attribute", node="clip", attribute="max", value=0))
    assert touched(net, made) == {"initializer hi"}
    near(made.run(x=X)["y"], picture_by_hand(X, high=0.0))
    free = net.edit(edit("set-attribute", node="clip", attribute="max", value=None))
    near(free.run(x=X)["y"], picture_by_hand(X, high=np.inf))
    assert "initializer hi" in touched(net, free)


def test_what_is_an_attribute_in_an_old_opset_is_set_as_one(model):
    net = model("old")
    x = samples(2, 6, 3)
    made = net.edit(
        edit("set-attribute", node="clip", attribute="max", value=1 / 2),
        edit("set-attribute", node="slice", attribute="starts", value=2),
        edit("set-attribute", node="slice", attribute="ends", value=6),
    )
    near(made.run(x=x)["y"], np.maximum(np.clip(x, -1, 0.5), 0)[:, 2:6])


def test_settings_of_pad_resize_reduction_and_top_k(model):
    net = model("order")
    x, z = samples(1, 2, 4, 4), samples(1, 2, 4, 4, seed=1)
    made = net.edit(
        edit("set-attribute", node="pad", attribute="value", value=2),
        edit("set-attribute", node="resize", attribute="sizes", value=[1, 2, 12, 12]),
        edit("set-attribute", node="sum", attribute="axes", value=[2]),
        edit("set-attribute", node="top", attribute="k", value=3),
    )
    wide = np.repeat(np.repeat(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=2), 2, 2), 2, 3)
    near(made.run(x=x, z=z)["y"], -np.sort(-wide.sum(2), axis=-1)[..., :3])
    assert made.body()["resize"]["inputs"][2:] != ["scales"]


def test_the_value_of_a_constant_node(model):
    net = model("shared")
    x = samples(3, 4)
    made = net.edit(edit("set-attribute", node="constant", attribute="value", value=[1, 2, 3, 4]))
    assert touched(net, made) == {"node constant"}
    near(made.ask("read", name="k"), [1, 2, 3, 4])
    assert not np.allclose(made.run(x=x)["f"], net.run(x=x)["f"])


# -- operators and nodes ----------------------------------------------------------------------------------------------


def hard_swish(h):
    return h * np.clip(h / 6 + 0.5, 0, 1)


def mish(h):
    return h * np.tanh(np.logaddexp(0, h))


def gelu(h):
    return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))


@pytest.mark.parametrize(
    ("operator", "attributes", "constants", "function"),
    [
        ("LeakyRelu", {"alpha": 0.3}, {}, lambda h: np.where(h > 0, h, h * 0.3)),
        ("HardSwish", {}, {}, hard_swish),
        ("Mish", {}, {}, mish),
        ("Gelu", {"approximate": "tanh"}, {}, gelu),
        ("Clip", {"min": 0, "max": 1}, {}, lambda h: np.clip(h, 0, 1)),
        ("PRelu", {}, {"slope": np.array([[[0.1]], [[0.2]], [[0.3]], [[0.4]]])}, None),
        ("Mul", {}, {"slope": np.array(2.5)}, lambda h: h * 2.5),
    ],
)
def test_another_operator_in_the_words_of_the_models_opset(model, operator, attributes, constants, function):
    net = model("picture")
    change = edit("set-operator", node="relu", operator=operator, attributes=attributes, constants=list(constants))
    made = net.edit(change, **constants)
    if function is None:
        slope = constants["slope"].reshape(4, 1, 1)
        function = lambda h: np.where(h > 0, h, h * slope)  # noqa: E731
    np.testing.assert_allclose(made.run(x=X)["y"], picture_by_hand(X, relu=function), atol=1e-4)
    nodes = made.body()
    assert nodes["relu"]["outputs"] == ["r"]
    assert {"conv", "p", "clip", "mm", "useless"} < set(nodes)
    assert made.look().get("checker") is None


def test_the_axes_of_a_reduction_are_an_attribute_or_an_operand_as_the_opset_has_them(model):
    change = edit("set-operator", node="p", operator="ReduceMax", attributes={"axes": [2, 3], "keepdims": 0})
    near(model("picture").edit(change).run(x=X)["y"], picture_by_hand(X, reduce=np.max))
    change = edit("set-operator", node="p", operator="ReduceSum", attributes={"axes": [2, 3], "keepdims": 0})
    near(model("picture").edit(change).run(x=X)["y"], picture_by_hand(X, reduce=np.sum))


@pytest.mark.parametrize("axis", [1, -1, 2])
def test_a_softmax_along_one_axis_in_an_opset_that_flattens(model, axis):
    x = samples(2, 6, 3)
    made = model("old").edit(edit("set-operator", node="relu", operator="Softmax", attributes={"axis": axis}))
    powers = np.exp(np.clip(x, -1, 1)[:, :4])
    near(made.run(x=x)["y"], powers / powers.sum(axis, keepdims=True))


def test_a_node_taken_out_inside_and_at_the_output(model):
    net = model("picture")
    made = net.edit(edit("remove-node", node="relu"))
    near(made.run(x=X)["y"], picture_by_hand(X, relu=lambda h: h))
    assert touched(net, made) == {"node relu", "node p", "node useless", "value_info r"}
    made = net.edit(edit("remove-node", node="mm"))
    near(made.run(x=X)["y"], picture_by_hand(X, m=np.eye(4)))
    assert list(made.run(x=X)) == ["y"]
    assert made.ask("sizes")["y"] == [2, 4]
    assert "initializer m" in touched(net, made)
    assert "initializer spare" not in touched(net, made)


def test_the_slot_tells_what_takes_a_nodes_place(model):
    net = model("order")
    x, z = samples(1, 2, 4, 4), samples(1, 2, 4, 4, seed=1)
    near(net.edit(edit("remove-node", node="less")).run(x=x, z=z)["d"], x)
    near(net.edit(edit("remove-node", node="less", slot=1)).run(x=x, z=z)["d"], z)


def test_operands_in_another_order_and_another_operand(model):
    net = model("order")
    x, z = samples(1, 2, 4, 4), samples(1, 2, 4, 4, seed=1)
    made = net.edit(
        edit("reorder-inputs", node="less", order=[1, 0]), edit("set-input", node="join", slot=1, value="d")
    )
    near(made.run(x=x, z=z)["d"], z - x)
    near(made.run(x=x, z=z)["j"], np.concatenate([x, z - x], 1))
    assert touched(net, made) == {"node less", "node join"}


# -- insert -----------------------------------------------------------------------------------------------------------


def test_steps_before_all_readers_before_one_and_before_the_output(model):
    net = model("bare")
    x = samples(2, 3, 8, 8)
    before = net.run(x=x)
    steps = [{"operator": "Mul", "constants": ["two"]}, {"operator": "Add", "constants": ["one"]}]
    arrays = {"two": np.array(2.0), "one": np.array(1)}
    everyone = net.edit(edit("insert", value="h", steps=steps), **arrays)
    near(everyone.run(x=x)["h"], before["h"] * 2 + 1)
    near(everyone.run(x=x)["y"], before["y"])  # a layer norm cancels both
    inner = net.edit(edit("insert", value="h", readers=["norm"], steps=[{"operator": "Relu"}]))
    np.testing.assert_array_equal(inner.run(x=x)["h"], before["h"])
    assert not np.allclose(inner.run(x=x)["y"], before["y"], atol=1e-3)
    output = net.edit(edit("insert", value="h", readers=[""], steps=steps), **arrays)
    near(output.run(x=x)["h"], before["h"] * 2 + 1)
    np.testing.assert_array_equal(output.run(x=x)["y"], before["y"])
    for made in (everyone, inner, output):
        assert list(made.run(x=x)) == ["y", "h"]
        assert {"conv", "flat", "gemm", "norm", "mm"} < set(made.body())
        assert made.look().get("checker") is None


def test_steps_behind_an_input_and_at_another_slot(model):
    net = model("order")
    x, z = samples(1, 2, 4, 4), samples(1, 2, 4, 4, seed=1)
    made = net.edit(
        edit("insert", value="x", readers=["less", "join"], steps=[{"operator": "Sub", "constants": ["c"], "slot": 1}]),
        edit("insert", value="d", steps=[{"operator": "Concat", "others": ["z", "j"], "attributes": {"axis": 1}}]),
        c=np.full((1, 2, 1, 1), 7.0),
    )
    after = made.run(x=x, z=z)
    near(after["j"], np.concatenate([7 - x, z], 1))
    near(after["d"], np.concatenate([7 - x - z, z, 7 - x, z], 1))
    near(after["y"], net.run(x=x, z=z)["y"])


def test_recorded_shapes_behind_an_insertion_are_inferred_anew(model):
    net = model("picture")
    made = net.edit(
        edit("insert", value="x", steps=[{"operator": "Slice", "constants": ["s", "e", "a"]}]),
        s=np.array([2]),
        e=np.array([8]),
        a=np.array([3]),
    )
    assert made.ask("sizes")["r"] == [2, 4, 8, 6]
    assert made.ask("sizes")["k"] == [2, 4]
    near(made.run(x=X)["y"], picture_by_hand(X[..., 2:8]))


def test_an_old_opset_gets_old_words(model):
    net = model("old")
    x = samples(2, 6, 3)
    steps = [
        {"operator": "Unsqueeze", "constants": ["a"]},
        {"operator": "Pad", "constants": ["p"], "attributes": {"mode": "constant"}},
        {"operator": "Slice", "constants": ["s", "e", "t"]},
        {"operator": "Squeeze", "attributes": {"axes": [0]}},
        {"operator": "Clip", "constants": ["low"]},
        {"operator": "ReduceSum", "attributes": {"axes": [2], "keepdims": 1}},
    ]
    arrays = {"a": [0], "p": [0, 0, 0, 1, 0, 0, 0, 0], "s": [0], "e": [3], "t": [2], "low": 0.1}
    made = net.edit(edit("insert", value="y", steps=steps), **{name: np.array(item) for name, item in arrays.items()})
    y = np.maximum(np.clip(x, -1, 1)[:, :4], 0)
    wide = np.pad(y, ((0, 0), (0, 0), (1, 0)))[:, :3]
    near(made.run(x=x)["y"], np.maximum(wide, np.float32(0.1)).sum(2, keepdims=True))
    assert made.look().get("checker") is None


def test_a_constant_added_to_an_old_file_is_listed_as_it_demands(model):
    net = model("ancient")
    x = samples(2, 6)
    made = net.edit(edit("insert", value="y", steps=[{"operator": "Mul", "constants": ["c"]}]), c=np.array(3.0))
    near(made.run(x=x)["y"], 3 * x @ net.ask("read", name="m"))
    assert made.look().get("checker") is None


# -- sizes and outputs ------------------------------------------------------------------------------------------------


def test_a_baked_in_batch_is_freed(model):
    net = model("patches")
    x = samples(1, 3, 8, 8)
    made = net.edit(edit("set-dimensions", value="x", shape=["batch", 3, 8, 8]))
    np.testing.assert_array_equal(made.run(x=x)["y"], net.run(x=x)["y"])
    many = samples(4, 3, 8, 8, seed=61)
    near(made.run(x=many)["y"], np.concatenate([net.run(x=one[None])["y"] for one in many]))
    sizes = made.ask("sizes")
    assert sizes["x"] == ["batch", 3, 8, 8]
    assert sizes["y"][1:] == [5]
    assert not isinstance(sizes["y"][0], int) or sizes["y"][0] == 0
    assert made.notes
    for name in ("conv", "add", "turn", "mm"):
        assert f"node {name}" not in touched(net, made)


def test_a_batch_of_another_fixed_size(model):
    net = model("patches")
    made = net.edit(edit("set-dimensions", value="x", shape=[4, 3, 8, 8]))
    many = samples(4, 3, 8, 8, seed=62)
    near(made.run(x=many)["y"], np.concatenate([net.run(x=one[None])["y"] for one in many]))
    assert made.ask("sizes")["x"] == [4, 3, 8, 8]


def test_another_picture_size_where_nothing_stands_against_it(model):
    net = model("picture")
    x = samples(2, 3, 11, 6)
    made = net.edit(edit("set-dimensions", value="x", shape=["n", 3, None, "width"]))
    near(made.run(x=x)["y"], picture_by_hand(x))
    assert made.ask("sizes")["x"] == ["n", 3, "", "width"]
    assert touched(net, made) == {"input x", "output y", "value_info c", "value_info r", "value_info k"}


def test_first_states_of_zeros_do_not_hold_the_batch(model):
    net = model("recurrent")
    made = net.edit(edit("set-dimensions", value="x", shape=[5, "n", 3]))
    x = samples(5, 3, 3)
    near(made.run(x=x)["y"][:, :2], net.run(x=x[:, :2])["y"])
    assert made.run(x=x)["y"].shape == (1, 3, 4)


def test_outputs_dropped_reordered_and_inner_values_shown(model):
    net = model("bare")
    x = samples(2, 3, 8, 8)
    before = net.run(x=x)
    swapped = net.edit(edit("set-outputs", outputs=["h", "y"]))
    assert list(swapped.run(x=x)) == ["h", "y"]
    assert touched(net, swapped) == set()
    inner = net.edit(edit("set-outputs", outputs=["f", "h"]))
    after = inner.run(x=x)
    assert list(after) == ["f", "h"]
    np.testing.assert_array_equal(after["h"], before["h"])
    assert touched(net, inner) == {"node norm", "node mm", "initializer s", "initializer m", "output y", "output f"}


# -- precision and recomputation --------------------------------------------------------------------------------------


def test_a_half_precision_node_computes_in_single(model):
    net = model("half")
    w, x = samples(6, 6, seed=71), samples(3, 6)
    made = net.edit(edit("set-precision", node="first", dtype="float32", parameters={"w": "a"}), a=w)
    nodes = made.body()
    assert {"down", "first", "second", "up"} < set(nodes)
    assert made.ask("read", name=nodes["first"]["inputs"][1]).dtype == np.float32
    changed = touched(net, made)
    assert {"node first", "initializer w"} < changed
    assert not changed & {"node down", "node second", "node up", "initializer v", "everything else"}
    a = (x.astype(np.float16).astype(np.float32) @ w).astype(np.float16)
    wanted = a.astype(np.float32) @ net.ask("read", name="v").astype(np.float32)
    np.testing.assert_allclose(made.run(x=x)["y"], wanted, rtol=2e-3, atol=2e-2)  # float16 sums of six


def test_a_layer_between_quantised_ones_computes_with_real_weights(model):
    net = model("qdq")
    w, b, x = samples(4, 3, 3, 3, seed=72), samples(4, seed=73), samples(2, 3, 5, 5)
    made = net.edit(edit("set-precision", node="conv", dtype="float32", parameters={"w": "w", "b": "b"}), w=w, b=b)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    near(made.run(x=x)["y"], np.einsum("nchwij,ocij->nohw", windows, w) + b.reshape(1, -1, 1, 1))
    assert list(made.body()) == ["conv"]


def test_operators_on_grids_become_plain_ones(model):
    net = model("qlinear")
    w, b, x = samples(4, 3, 5, 5, seed=74, scale=0.1), samples(4, seed=75), samples(2, 3, 5, 5)
    made = net.edit(edit("set-precision", node="conv", dtype="float32", parameters={"w": "w", "b": "b"}), w=w, b=b)
    kept = net.edit(edit("set-precision", node="conv", dtype="float32"), name="kept.onnx")
    assert made.body()["conv"]["op"] == "Conv"
    seen = np.clip(np.rint(x / np.float32(0.05)), -128, 127) * np.float32(0.05)
    conv = np.einsum("nchw,ochw->no", seen, w) + b
    grid = np.clip(np.rint(conv / np.float32(0.2)), -120, 135) * np.float32(0.2)
    m = (net.ask("read", name="m").astype(np.float64) - 100) * 0.02
    # One step of the last grid: a sum that falls between two of its numbers may go either way.
    assert np.abs(made.run(x=x)["y"] - np.clip(np.rint(grid @ m / 1.5), -120, 135) * 1.5).max() <= 1.5 + 1e-4
    assert np.abs(kept.run(x=x)["y"] - net.run(x=x)["y"]).max() <= 1.5 + 1e-4


def test_a_dynamic_quantisation_becomes_a_plain_product(model):
    net = model("dynamic")
    w, x = samples(6, 5, seed=76), samples(3, 6)
    made = net.edit(edit("set-precision", node="mm", dtype="float32", parameters={"w": "w"}), w=w)
    near(made.run(x=x)["y"], x @ w)
    assert list(made.body()) == ["mm"]


def test_a_value_is_computed_anew_and_its_old_producers_go(model):
    net = model("picture")
    nodes = [
        {"name": "a", "op": "GlobalMaxPool", "inputs": ["r"], "outputs": ["top"], "attributes": {}},
        {"name": "b", "op": "Squeeze", "inputs": ["top"], "outputs": ["flat"], "attributes": {"axes": [2, 3]}},
        {"name": "c", "op": "Add", "inputs": ["flat", "shift"], "outputs": ["p"], "attributes": {}},
    ]
    made = net.edit(edit("recompute", value="p", nodes=nodes), shift=np.array([1.0, 2, 3, 4]))
    high = samples(4, seed=0) * 0 + np.arange(1, 5)
    near(made.run(x=X)["y"], picture_by_hand(X, reduce=lambda h, axis: h.max(axis) + high))
    names = made.body()
    assert "p" not in names
    assert "useless" in names
    assert len(names) == 8


def test_a_recomputation_may_read_the_value_it_replaces_and_an_input_may_be_one(model):
    net = model("order")
    x, z = samples(1, 2, 4, 4), samples(1, 2, 4, 4, seed=1)
    nodes = [{"op": "Mul", "inputs": ["d", "c"], "outputs": ["o"], "attributes": {}}]
    made = net.edit(edit("recompute", value="d", nodes=nodes), c=np.array(3.0))
    near(made.run(x=x, z=z)["d"], 3 * (x - z))
    nodes = [{"op": "Add", "inputs": ["z", "x"], "outputs": ["o"], "attributes": {}}]
    made = net.edit(edit("recompute", value="z", nodes=nodes))
    near(made.run(x=x, z=z)["d"], -z)
