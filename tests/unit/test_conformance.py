"""The conformance kit passes on a framework file that keeps the contract, and every check of it fails on one that does not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from trueport.errors import UsageError
from trueport.testing import Sample, check_framework
from trueport.testing.checks import CHECKS, ONCE

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "outside_framework" / "npznet"
LAYERS = [
    {"name": "hidden", "op": "MatMul", "inputs": ["x"], "parameters": ["kernel"]},
    {"name": "shifted", "op": "Add", "inputs": ["hidden"], "parameters": ["bias"]},
    {"name": "bent", "op": "Tanh", "inputs": ["shifted"]},
    {"name": "scores", "op": "MatMul", "inputs": ["bent"], "parameters": ["head"]},
    {"name": "shares", "op": "Softmax", "inputs": ["scores"]},
]

rng = np.random.default_rng(5)
ARRAYS = {
    "kernel": rng.normal(size=(6, 8)).astype(np.float32),
    "bias": rng.normal(size=8).astype(np.float32),
    "head": rng.normal(size=(8, 4)).astype(np.float32),
}
X = rng.normal(size=(3, 2, 6)).astype(np.float32)


def answer(x):
    """The network, written down once more."""
    scores = np.tanh(x @ ARRAYS["kernel"] + ARRAYS["bias"]) @ ARRAYS["head"]
    powers = np.exp(scores)
    return powers / powers.sum(-1, keepdims=True)


@pytest.fixture
def framework(tmp_path, monkeypatch):
    """framework(*(old, new)) -> the example's framework file with these texts replaced, under a name of its own."""
    made = []

    def build(*changes):
        name = f"outside{len(made)}_{tmp_path.name.replace('-', '_')}"
        folder = tmp_path / f"lib{len(made)}" / name
        folder.mkdir(parents=True)
        text = (EXAMPLE / "framework.py").read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) >= 1, old
            text = text.replace(old, new)
        (folder / "__init__.py").write_text("", encoding="utf-8")
        (folder / "framework.py").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder.parent))
        made.append(name)
        return importlib.import_module(f"{name}.framework")

    yield build
    for name in list(sys.modules):
        if name.split(".")[0] in made:
            del sys.modules[name]


def sample(module, tmp_path, **changes):
    path = tmp_path / "small.npznet"
    module.save(str(path), LAYERS, ARRAYS)
    return Sample(path=path, inputs={"x": X}, **{"expected": {"shares": answer(X)}, **changes})


def checked(module, tmp_path, **changes):
    return check_framework(module, [sample(module, tmp_path, **changes)], python=sys.executable)


def test_a_file_that_keeps_the_contract_passes_every_check(framework, tmp_path):
    found = checked(framework(), tmp_path)
    assert not found.broken, str(found)
    assert not found.left_out
    assert list(found.passed) == [name for name, _ in (*ONCE, *CHECKS)]


WRONG = {
    "constants": [('PRECISIONS = ("float32", "float64")', 'PRECISIONS = ("float64",)')],
    "light-import": [("import numpy as np\n", "import numpy as np\nimport rich\n")],
    "sniff": [("if head[:4] == b\"PK\\x03\\x04\" and head[30 : 30 + len(MARK)] == MARK else", 'if head[:2] == b"PK" else')],
    "signature": [('            "operators": dict(Counter(layer["op"] for layer in layers)),\n', "")],
    "damaged-file": [("zipfile.BadZipFile, KeyError", "KeyError")],
    "run": [("results[case] = {layers[-1][\"name\"]: np.stack(rows)}", "results[case] = {layers[-1][\"name\"]: rows[0]}")],
    "run-repeated": [("    results = {}\n", "    results = {}\n    import os\n    noise = float(np.frombuffer(os.urandom(1), np.uint8)[0])\n"),
                     ("np.stack(rows)}\n", "np.stack(rows) + np.float32(noise)}\n")],
    "runs-apart": [("np.stack(rows)}\n", "np.cumsum(np.stack(rows), 0)}\n")],
    "runs-differ": [("np.stack(rows)}\n", "np.stack(rows) * 0}\n")],
    "expected": [("_softmax,\n", "lambda x: _softmax(2 * x),\n")],
    "variants": [("x[..., ::-1].copy() @ kernel[::-1].copy()", "x @ kernel[::-1].copy()")],
    "float64": [("    dtype = np.dtype(precision)\n", "    dtype = np.dtype(precision)\n    given = {k: v * (dtype.itemsize / 4) for k, v in given.items()}\n")],
    "graph": [('"inputs": [*layer["inputs"], *layer.get("parameters", [])]', '"inputs": [*layer["inputs"], "nowhere"]')],
    "names": [('return [layer["name"] for layer in _read(path)[0]]', 'return [layer["op"] for layer in _read(path)[0]]')],
    "parameters": [("emit(name, array)\n", "emit(name, array.T)\n")],
    "trace": [('{"x": x}, "float32", "default")[name]', '{"x": x + 1}, "float32", "default")[name]')],
    "trace-budget": [('np.stack([_values(layers, arrays, {"x": x}, "float32", "default")[name] for x in inputs["x"]])',
                      'np.stack([_values(layers, arrays, {"x": x}, "float32", "default")[name] for x in inputs["x"]])'
                      " * np.float32(0.5 if budget < 2 and name == 'bent' else 1)")],
    "replay": [("values.setdefault(layer[\"name\"], made)", "values[layer[\"name\"]] = made")],
    "edit": [('stored[change["parameter"]] = np.asarray(arrays[change["array"]], np.float32)', "pass")],
}  # fmt: skip
"""Check -> changes that make the example break the promise that it looks at."""


def test_there_is_a_wrong_file_for_every_check():
    assert set(WRONG) == {name for name, _ in (*ONCE, *CHECKS)}


@pytest.mark.parametrize("check", WRONG)
def test_every_check_fails_on_a_file_that_breaks_its_promise(check, framework, tmp_path):
    found = checked(framework(*WRONG[check]), tmp_path)
    assert check in {broken.check for broken in found.broken}, str(found)
    assert check not in found.passed


@pytest.mark.parametrize("check", ["light-import", "damaged-file", "variants", "trace-budget", "edit"])
def test_a_single_slip_is_told_as_one(check, framework, tmp_path):
    found = checked(framework(*WRONG[check]), tmp_path)
    assert {broken.check for broken in found.broken} == {check}, str(found)


def test_what_a_file_says_not_to_do_is_left_out_with_its_reason(framework, tmp_path):
    module = framework(("    layers, arrays = _read(path)\n    runs =", '    raise Unsupported("cannot be cut")\n    runs ='),
                       ('EDITS = ("set-parameter",)', "EDITS = ()"))  # fmt: skip
    found = checked(module, tmp_path, expected=None)
    assert not found.broken, str(found)
    assert found.left_out["replay"] == "cannot be cut"
    assert set(found.left_out) == {"replay", "edit", "expected"}
    assert not set(found.left_out) & set(found.passed)


def test_a_function_that_is_not_there_is_no_excuse(framework, tmp_path):
    found = checked(framework(("def replay(", "def another(")), tmp_path)
    assert any(item.check == "replay" and "no function 'replay'" in item.message for item in found.broken)


def test_without_a_model_nothing_can_be_said(framework, tmp_path):
    with pytest.raises(UsageError, match="at least one model"):
        check_framework(framework(), [])
    with pytest.raises(UsageError, match="no such file"):
        check_framework(framework(), [Sample(path=tmp_path / "none", inputs={})])


def test_the_kit_passes_on_the_framework_for_tests(tmp_path):
    from trueport.frameworks import fake

    path = tmp_path / "small.fake"
    path.write_text(
        """{"trueport-fake": 1,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 2]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["N", 2]}],
        "constants": {"k": {"dtype": "float32", "shape": [2, 2], "data": [1, 2, -1, 0.5]}},
        "nodes": [{"name": "m", "op": "MatMul", "inputs": ["x", "k"], "outputs": ["h"], "attributes": {}},
                  {"name": "t", "op": "Tanh", "inputs": ["h"], "outputs": ["y"], "attributes": {}}]}""",
        encoding="utf-8",
    )
    found = check_framework(fake, [Sample(path=path, inputs={"x": X[:, :, :2]})])
    assert not found.broken, str(found)
