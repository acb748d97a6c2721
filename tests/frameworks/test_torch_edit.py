"""Edits of exported programs: each kind does what PyTorch itself makes of the same change, and nothing else changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from trueport.frameworks import torch as framework
from trueport.frameworks._base import EDIT_KINDS
from trueport.outcome import Failure, Kind, Stage

HERE = str(Path(__file__).parent)
RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 3, 3, 3))
SHARED = RNG.normal(size=(4, 4, 3, 3))


class Torch:
    """Calls into the torch toolchain, on one network that is saved once."""

    def __init__(self, pool, python, folder):
        self.pool, self.python, self.folder = pool, python, folder
        self.count, self.cases = 0, {}
        self.net = self.made("save_net", path=str(folder / "net.pt2"))
        self.graph = self.call("graph", path=self.net)
        self.weights = self.made("weights", path=self.net)

    def ask(self, module, function, **arguments):
        outcome = self.pool.call(self.python, module, function, arguments, stage=Stage.TRACE, paths=[HERE], timeout=200)
        return outcome if isinstance(outcome, Failure) else outcome.value.value

    def call(self, function, **arguments):
        found = self.ask("trueport.frameworks.torch", function, trust=False, **arguments)
        assert not isinstance(found, Failure), found
        return found

    def made(self, function, **arguments):
        found = self.ask("torch_edit_models", function, **arguments)
        assert not isinstance(found, Failure), found
        return found

    def edit(self, *edits, arrays=None, path=None):
        """Path of the edited file."""
        self.count += 1
        out = str(self.folder / f"edited-{self.count}.pt2")
        reply = self.call("edit", path=path or self.net, edits=list(edits), arrays=arrays or {}, out=out)
        assert set(reply) == {"notes"}
        return out

    def case(self, name):
        """(edits, arrays, path of the edited file) of a case, written once."""
        if name not in self.cases:
            edits, arrays = CASES[name]
            arrays = {key: self.weights["norm.weight"] if value is None else value for key, value in arrays.items()}
            self.cases[name] = edits, arrays, self.edit(*edits, arrays=arrays)
        return self.cases[name]

    def refused(self, *edits, arrays=None, path=None):
        """The sentence with which an edit is refused; no file is left."""
        out = self.folder / "refused.pt2"
        arguments = {"path": path or self.net, "edits": list(edits), "arrays": arrays or {}, "out": str(out)}
        found = self.ask("trueport.frameworks.torch", "edit", trust=False, **arguments)
        assert isinstance(found, Failure), found
        assert found.kind is Kind.UNSUPPORTED, found
        assert not list(self.folder.glob("refused*"))
        return found.message

    def run(self, path, feeds):
        found = self.call("run", path=path, cases={"a": feeds}, precision="float32", variant="default")["a"]
        return {name: np.asarray(value)[0] for name, value in found.items()}

    def outputs(self, path, batch=3):
        return self.run(path, self.made("inputs", batch=batch))

    def expected(self, case, batch=3, arrays=None):
        return self.made("expected", path=self.net, case=case, batch=batch, arrays=arrays or {})


@pytest.fixture(scope="module")
def torch(pool, env, tmp_path_factory):
    return Torch(pool, env("torch"), tmp_path_factory.mktemp("edits"))


def close(found, expected):
    """Equal up to the order of float32 sums: some tens of products."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


PUT = {"kind": "insert"}
CASES = {
    "nothing": ([], {}),
    "weight": ([{"kind": "set-parameter", "node": "conv2d", "parameter": "first.weight", "array": "w"}], {"w": W}),
    "shared": ([{"kind": "set-parameter", "node": "conv2d_2", "parameter": "shared.weight", "array": "w"}], {"w": SHARED}),
    "number": ([{"kind": "set-parameter", "node": "rsub", "parameter": "other", "array": "n"}], {"n": np.array(2.5)}),
    "numbers": ([{"kind": "set-parameter", "node": "rsub", "parameter": "other", "array": "n"}], {"n": np.arange(4.0)}),
    "bias": ([{"kind": "add-parameter", "node": "linear", "role": "bias", "array": "b"}], {"b": np.arange(5.0)}),
    "pads": ([{"kind": "set-attribute", "node": "conv2d", "attribute": "pads", "value": [0, 0, 2, 2]}], {}),
    "average pads": ([{"kind": "set-attribute", "node": "avg_pool2d", "attribute": "pads", "value": [0, 0, 2, 2]}], {}),
    "epsilon": ([{"kind": "set-attribute", "node": "batch_norm", "attribute": "epsilon", "value": 0.1}], {}),
    "leaky": ([{"kind": "set-operator", "node": "relu", "operator": "LeakyRelu", "attributes": {"alpha": 0.2}}], {}),
    "average": (
        [{"kind": "set-operator", "node": "max_pool2d", "operator": "AveragePool", "attributes": {"kernel_shape": [2, 2], "strides": [2, 2]}}],
        {},
    ),
    "remove relu": ([{"kind": "remove-node", "node": "relu"}], {}),
    "remove add": ([{"kind": "remove-node", "node": "add", "slot": 1}], {}),
    "remove softmax": ([{"kind": "remove-node", "node": "softmax"}], {}),
    "front": (
        [{**PUT, "value": "x", "steps": [
            {"operator": "Flip", "attributes": {"axes": [1]}},
            {"operator": "Sub", "constants": ["m"]},
            {"operator": "Div", "constants": ["s"]},
        ]}],
        {"m": np.arange(3.0).reshape(3, 1, 1), "s": np.array(2.0)},
    ),
    "one reader": ([{**PUT, "value": "relu", "readers": ["add"], "steps": [{"operator": "Tanh"}]}], {}),
    "output": ([{**PUT, "value": "hidden", "readers": [""], "steps": [{"operator": "Sigmoid"}]}], {}),
    "twice": (
        [{"kind": "recompute", "value": "probs", "nodes": [
            {"name": "root", "op": "Sqrt", "inputs": ["probs"], "outputs": ["root"]},
            {"name": "half", "op": "Mul", "inputs": ["root", "h"], "outputs": ["half"]}]}],
        {"h": np.array(0.5)},
    ),
    "other": ([{**PUT, "value": "conv2d_1", "steps": [{"operator": "Mul", "others": ["relu"]}]}], {}),
    "float64": (
        [{"kind": "set-precision", "node": "batch_norm", "dtype": "float64", "parameters": {"norm.weight": "s"}}],
        {"s": None},
    ),
    "recomputed": (
        [{"kind": "recompute", "value": "relu", "nodes": [
            {"name": "scaled", "op": "Mul", "inputs": ["batch_norm", "k"], "outputs": ["scaled"]},
            {"name": "gelu_", "op": "Gelu", "inputs": ["scaled"], "outputs": ["g"], "attributes": {"approximate": "tanh"}},
            {"name": "sum", "op": "Add", "inputs": ["g", "batch_norm"], "outputs": ["s"]}]}],
        {"k": np.linspace(0.5, 2, 4).reshape(1, 4, 1, 1)},
    ),
    "recomputed mean": (
        [{"kind": "recompute", "value": "hidden", "nodes": [
            {"name": "top", "op": "ReduceMax", "inputs": ["avg_pool2d"], "outputs": ["top"], "attributes": {"axes": [2, 3], "keepdims": 0}},
            {"name": "times", "op": "Mul", "inputs": ["top", "k"], "outputs": ["t"]}]}],
        {"k": np.linspace(0.5, 2, 4)},
    ),
}  # fmt: skip
"""Case of `torch_edit_models.STEPS` -> (edits, arrays)."""


@pytest.mark.parametrize("case", CASES)
def test_an_edit_computes_what_pytorch_computes(torch, case):
    _, arrays, path = torch.case(case)
    found = torch.outputs(path)
    close(found, torch.expected(case, arrays=arrays))
    if case not in ("nothing", "float64"):
        before = torch.outputs(torch.net)
        assert any(not np.allclose(found[name], before[name], rtol=1e-3) for name in before), "the edit shows nowhere"
    close(torch.made("module_gives", path=path, batch=3), found)


@pytest.mark.parametrize("case", CASES)
def test_what_no_edit_names_stays_as_it_was(torch, case):
    edits, _, path = torch.case(case)
    before, after = (torch.made("facts", path=one) for one in (torch.net, path))
    for name in ("ranges", "calls", "extra"):
        assert after[name] == before[name], name
    assert list(after["extra"].values()) == ["cat\ndog"]
    assert all(np.array_equal(a, b) for a, b in zip(after["examples"], before["examples"], strict=True))
    edited = "first.weight" if case == "weight" else ""
    for name, value in before["weights"].items():
        same = after["weights"][name].dtype == value.dtype and after["weights"][name].tobytes() == value.tobytes()
        assert same != (name == edited), name
    assert set(before["trained"]) <= set(after["trained"])
    touched = {edit.get("node") or edit.get("value") for edit in edits} | {"relu", "hidden", "probs"}
    nodes = {node["name"]: node for node in torch.call("graph", path=path)["nodes"]}
    for node in torch.graph["nodes"]:
        if node["name"] in touched or touched.intersection([*node["inputs"], *node["outputs"]]):
            continue
        assert nodes[node["name"]]["op"] == node["op"]
        assert nodes[node["name"]]["attributes"] == node["attributes"]
        assert after["meta"][node["name"]] == before["meta"][node["name"]]


def test_the_same_edit_gives_the_same_bytes(torch):
    edits, arrays = CASES["front"]
    digests = {hashlib.sha256(Path(torch.edit(*edits, arrays=arrays)).read_bytes()).hexdigest() for _ in range(2)}
    assert len(digests) == 1


def test_shared_weights_change_for_one_reader_only(torch):
    edits, arrays = CASES["shared"]
    path = torch.edit(*edits, arrays=arrays)
    readings = {
        node["name"]: node["inputs"][1] for node in torch.call("graph", path=path)["nodes"] if node["op"] == "Conv"
    }
    assert readings["conv2d_1"] == "shared.weight" != readings["conv2d_2"]
    found = torch.made("facts", path=path)
    assert readings["conv2d_2"] in found["trained"]
    np.testing.assert_array_equal(found["weights"][readings["conv2d_2"]], SHARED.astype(np.float32))
    again = torch.edit(*edits, *edits, {**edits[0], "array": "v"}, arrays={**arrays, "v": 2 * SHARED})
    close(torch.outputs(again), torch.expected("shared", arrays={"w": 2 * SHARED}))


def test_the_batch_stays_open(torch):
    edits, arrays = CASES["recomputed"]
    path = torch.edit(*edits, arrays=arrays)
    for batch in (1, 6):
        close(torch.outputs(path, batch), torch.expected("recomputed", batch, arrays))


def test_edits_are_applied_in_order(torch):
    """A later edit names what an earlier one made, and what an earlier one changed keeps its name."""
    scale, again = CASES["recomputed"][0][0], {**PUT, "value": "scaled", "steps": [{"operator": "Neg"}]}
    arrays = {"k": -CASES["recomputed"][1]["k"]}
    path = torch.edit(scale, again, arrays=arrays)
    close(torch.outputs(path), torch.expected("recomputed", arrays={"k": -arrays["k"]}))


# ---- wiring ----


def test_operands_in_another_order(torch):
    path = torch.edit({"kind": "reorder-inputs", "node": "add", "order": [1, 0]})
    assert {n["name"]: n["inputs"] for n in torch.call("graph", path=path)["nodes"]}["add"] == ["conv2d_2", "relu"]
    assert "none of its 2 operands" in torch.refused({"kind": "reorder-inputs", "node": "add", "order": [0, 0]})


def test_another_operand(torch):
    path = torch.edit({"kind": "set-input", "node": "add", "slot": 0, "value": "conv2d_2"})
    assert {n["name"]: n["inputs"] for n in torch.call("graph", path=path)["nodes"]}["add"] == ["conv2d_2", "conv2d_2"]
    later = torch.edit({"kind": "set-input", "node": "conv2d_2", "slot": 0, "value": "batch_norm"})
    assert not np.allclose(torch.outputs(later)["probs"], torch.outputs(torch.net)["probs"])
    assert "computed from it" in torch.refused({"kind": "set-input", "node": "relu", "slot": 0, "value": "add"})
    assert "none at 7" in torch.refused({"kind": "set-input", "node": "relu", "slot": 7, "value": "add"})


def test_outputs_dropped_and_in_another_order(torch):
    before = torch.outputs(torch.net)
    found = torch.outputs(torch.edit({"kind": "set-outputs", "outputs": ["hidden", "probs"]}))
    assert list(found) == ["hidden", "probs"]
    close({name: found[name] for name in before}, before)
    path = torch.edit({"kind": "set-outputs", "outputs": ["hidden", "relu"]})
    assert list(torch.outputs(path)) == ["hidden", "relu"] or list(torch.outputs(path)) == ["hidden", "output_relu"]
    assert "softmax" not in [node["name"] for node in torch.call("graph", path=path)["nodes"]]


def test_precision_of_one_operator(torch):
    edits, _ = CASES["float64"]
    path = torch.edit(*edits, arrays={"s": torch.weights["norm.weight"].astype(np.float64)})
    nodes = torch.call("graph", path=path)["nodes"]
    place = [node["name"] for node in nodes].index("batch_norm")
    assert nodes[place + 1]["op"] == "Cast"
    assert torch.made("facts", path=path)["weights"]["norm.weight_batch_norm"].dtype == np.float64
    assert "dtype 'float7'" in torch.refused({"kind": "set-precision", "node": "relu", "dtype": "float7"})


def test_a_baked_in_batch_goes_along(torch):
    path = torch.made("save_fixed", path=str(torch.folder / "fixed.pt2"))
    out = torch.edit({"kind": "set-dimensions", "value": "x", "shape": [5, 3, 4]}, path=path)
    x = RNG.normal(size=(1, 5, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(torch.run(out, {"x": x})["output_0"], np.maximum(2 * x[0].reshape(5, 12), 0))
    assert torch.made("facts", path=out)["examples"][0].shape == (5, 3, 4)
    assert "export the original model again" in torch.refused(
        {"kind": "set-dimensions", "value": "x", "shape": ["n", 3, 4]}, path=path
    )
    assert "is no input" in torch.refused({"kind": "set-dimensions", "value": "relu", "shape": [1]})


# ---- tables ----


@pytest.fixture(scope="module")
def branches(torch):
    """branches(kind) -> (what the edited program gives, what the table says), branch by branch."""
    known = {}

    def get(kind):
        if kind not in known:
            path = str(torch.folder / f"{kind}.pt2")
            names = torch.made("save_branches", path=path, kind=kind)
            rows = torch.made("rows", kind=kind)
            arrays, edits = {}, []
            for name, row in zip(names, rows, strict=True):
                if kind == "attributes":
                    edits.append({"kind": "set-attribute", "node": name, "attribute": row[1], "value": row[2]})
                    continue
                keys = [f"{name}/{index}" for index in range(len(row[2]))]
                arrays.update(zip(keys, row[2], strict=True))
                step = {"operator": row[0], "attributes": row[1], "constants": keys}
                edits.append({**PUT, "value": name, "steps": [step]})
            out = torch.edit(*edits, arrays=arrays, path=path)
            known[kind] = torch.run(out, torch.made("branch_inputs")), torch.made("branch_outputs", kind=kind), rows
        return known[kind]

    return get


@pytest.mark.parametrize("kind", ["attributes", "operators"])
def test_every_row_of_the_tables(branches, kind):
    found, expected, rows = branches(kind)
    assert list(found) == list(expected)
    for row, (name, value) in zip(rows, expected.items(), strict=True):
        assert found[name].dtype == value.dtype, row
        assert found[name].shape == value.shape, row
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=str(row))


@pytest.mark.parametrize(("kind", "fewest"), [("composites", 30), ("hyperparameters", 30)])
def test_what_the_graph_shows_can_be_written_back(torch, kind, fewest):
    count, refused, (before, after) = torch.made("written_again", kind=kind, folder=str(torch.folder))
    assert count >= fewest
    assert refused == []
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"kind": "set-parameter", "node": "nowhere", "parameter": "w", "array": "w"}, "no operator 'nowhere'"),
        ({"kind": "set-parameter", "node": "conv2d", "parameter": "w", "array": "w"}, "reads no constant 'w'; it reads first.weight"),
        ({"kind": "set-parameter", "node": "conv2d", "parameter": "first.bias", "array": "w"}, "does not fit together"),
        ({"kind": "add-parameter", "node": "conv2d", "role": "bias", "array": "w"}, "it has a bias"),
        ({"kind": "add-parameter", "node": "relu", "role": "bias", "array": "w"}, "takes no bias"),
        ({"kind": "set-attribute", "node": "relu", "attribute": "alpha", "value": 1}, "Relu has no attribute 'alpha'"),
        ({"kind": "set-attribute", "node": "conv2d", "attribute": "pads", "value": [1, 2, 3]}, "pads has 3 numbers"),
        ({"kind": "set-operator", "node": "relu", "operator": "Nonsense"}, "operator Nonsense cannot be written"),
        ({"kind": "set-operator", "node": "relu", "operator": "Transpose", "attributes": {"perm": [0, 1]}}, "does not fit together"),
        ({"kind": "remove-node", "node": "add", "slot": 2}, "none at 2"),
        ({**PUT, "value": "void", "steps": [{"operator": "Relu"}]}, "no value 'void'"),
        ({**PUT, "value": "relu", "readers": ["softmax"], "steps": [{"operator": "Relu"}]}, "'softmax' does not read it"),
        ({**PUT, "value": "relu", "steps": [{"operator": "Mul", "others": ["conv2d_1"]}]}, "computed from it"),
        ({**PUT, "value": "relu", "steps": [{"operator": "Reshape", "others": ["conv2d"]}]}, "must be a constant"),
        ({**PUT, "value": "relu", "steps": [{"operator": "MatMul", "constants": ["w"]}]}, "cannot stand there"),
        ({"kind": "recompute", "value": "first.weight", "nodes": [{"op": "Relu", "inputs": ["x"]}]}, "no result of an operator"),
        ({"kind": "set-outputs", "outputs": []}, "without outputs"),
        ({"kind": "paint"}, "no edit of kind 'paint'"),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else None,
)  # fmt: skip
def test_what_cannot_be_written_is_refused_with_the_reason(torch, edit, reason):
    message = torch.refused(edit, arrays={"w": np.ones((2, 3, 4))})
    assert reason in message
    assert "\n" not in message


def test_torchscript_is_refused_with_the_cure(torch):
    path = torch.made("save_script", path=str(torch.folder / "script.pt"))
    assert "export the original model" in torch.refused({"kind": "remove-node", "node": "x"}, path=path)


def test_the_contract():
    assert set(framework.EDITS) == set(EDIT_KINDS)
    folder = Path(framework.__file__).parent
    known = {"_base"}
    for name in framework.EDIT_FILES:
        text = (folder / f"{name}.py").read_text()
        lines = [line.split() for line in text.splitlines() if "trueport." in line and "import" in line.split()]
        for words in lines:
            assert words[0] == "from", words
            module = words[1].removeprefix("trueport.frameworks").lstrip(".")
            names = words[3 : words.index("as") if "as" in words else None]
            needed = [module] if module else [word.strip("(),") for word in names]
            assert set(needed) <= known, f"{name} imports {needed}"
        known.add(name)
    assert "\ndef apply(" in text
