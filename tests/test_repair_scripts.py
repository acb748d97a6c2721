"""Patch scripts in bare environments: only the format's library, nothing of ours on the path, and the same file comes out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from trueport.artifact import Artifact, digest
from trueport.outcome import Failure, Ok, Stage
from trueport.repairs import editing, patch
from trueport.repairs.types import Edit
from trueport.session import Session, Settings, framework_of

FRAMEWORKS = str(Path(__file__).parent / "frameworks")
FORMATS = {"onnx": "onnx"}
"""Those of the test models that hold fields which no version of the format knows, and are not recognised by them."""
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=200)) as session:
        yield session


@pytest.fixture(scope="module")
def models(session, tmp_path_factory):
    """models(name) -> the Artifact, made on first use."""
    folder = tmp_path_factory.mktemp("models")

    def ask(toolchain, module, function, **arguments):
        environment = session.environment(toolchain)
        assert isinstance(environment, Ok), environment
        outcome = session.pool.call(
            environment.value.python, module, function, arguments, stage=Stage.LOAD, paths=[FRAMEWORKS]
        )
        assert isinstance(outcome, Ok), outcome
        return outcome.value.value

    def onnx(name):
        place = folder / name
        place.mkdir()
        ask("onnx", "onnx_edit_models", "build", name=name.partition("-")[2], out=str(place / "model.onnx"))
        return place / "model.onnx"

    makers = {
        "onnx-picture": onnx,
        "onnx-external": onnx,
        "tflite": lambda name: ask("litert", "tflite_edit_models", "write", folder=str(folder))["picture"],
        "torch": lambda name: ask("torch", "torch_edit_models", "save_net", path=str(folder / "net.pt2")),
        "keras": lambda name: ask(
            "tensorflow", "keras_edit_models", "save", kind="wired", path=str(folder / "wired.keras")
        ),
        "savedmodel": lambda name: ask(
            "tensorflow", "keras_edit_models", "save", kind="wired", path=str(folder / "wired-saved")
        ),
    }
    known = {}

    def get(name):
        if name not in known:
            known[name] = Artifact.open(Path(makers[name](name)), format=FORMATS.get(name.partition("-")[0]))
        return known[name]

    return get


def edit(kind, **rest):
    """One edit with its arrays, which are what is an array among the rest."""
    arrays = {key: value for key, value in rest.items() if isinstance(value, np.ndarray)}
    change = {"kind": kind, **{key: value for key, value in rest.items() if key not in arrays}}
    where = str(change.get("node") or change.get("value") or "")
    return Edit(
        rule="test", kind=kind, where=where, before=None, after=None, reason="because", change=change, arrays=arrays
    )


CASES = {
    "onnx weight": ("onnx-picture", [[edit("set-parameter", node="conv", parameter="w", array="a", a=RNG.normal(size=(4, 3, 3, 3)))]]),
    "onnx attribute": ("onnx-picture", [[edit("set-attribute", node="conv", attribute="pads", value=[0, 0, 2, 2])]]),
    "onnx steps": (
        "onnx-picture",
        [
            [edit("insert", value="x", steps=[{"operator": "Mul", "constants": ["s"]}], s=np.array(1 / 255, np.float32))],
            [edit("remove-node", node="relu"), edit("set-operator", node="clip", operator="Tanh")],
        ],
    ),
    "onnx weights beside": ("onnx-external", [[edit("set-attribute", node="conv", attribute="pads", value=[2, 2, 0, 0])]]),
    "tflite weight": ("tflite", [[edit("set-parameter", node="0:conv", parameter="kernel", array="a", a=RNG.normal(size=(3, 3, 3, 2)))]]),
    "tflite insert": (
        "tflite",
        [[edit("insert", value="image", steps=[{"operator": "Sub", "constants": ["m"]}], m=np.array([0.1, 0.2], np.float32))]],
    ),
    "tflite remove": ("tflite", [[edit("set-attribute", node="1:pool", attribute="strides", value=[2, 2])], [edit("insert", value="scores", steps=[{"operator": "Relu"}])]]),
    "torch weight": ("torch", [[edit("set-parameter", node="conv2d_2", parameter="shared.weight", array="a", a=RNG.normal(size=(4, 4, 3, 3)))]]),
    "torch recompute": (
        "torch",
        [[edit("recompute", value="relu", nodes=[{"name": "n", "op": "Mul", "inputs": ["batch_norm", "k"], "outputs": ["n"]}], k=np.array(0.5))]],
    ),
    "torch steps": ("torch", [[edit("remove-node", node="softmax")], [edit("set-attribute", node="batch_norm", attribute="epsilon", value=0.1)]]),
    "keras weight": ("keras", [[edit("set-parameter", node="conv", parameter="conv/bias", array="a", a=np.arange(4.0))]]),
    "keras steps": (
        "keras",
        [
            [edit("insert", value="pool", steps=[{"operator": "Mul", "constants": ["s"]}], s=np.array(0.5, np.float32))],
            [edit("set-attribute", node="leaky", attribute="alpha", value=0.3), edit("set-operator", node="soft", operator="Relu")],
        ],
    ),
    "savedmodel steps": (
        "savedmodel",
        [
            [edit("set-attribute", node="StatefulPartitionedCall/wired_1/leaky_1/LeakyRelu", attribute="alpha", value=0.3)],
            [edit("insert", value="x", steps=[{"operator": "Mul", "constants": ["s"]}], s=np.array(0.5, np.float32))],
        ],
    ),
}  # fmt: skip
"""Case -> (model, groups of edits)."""


def _all_cases():
    """Those of TensorFlow take seconds to import it, twice."""
    heavy = ("keras", "savedmodel")
    return [pytest.param(case, marks=pytest.mark.slow) if case.startswith(heavy) else case for case in CASES]


@pytest.mark.parametrize("case", _all_cases())
def test_a_script_gives_the_file_that_the_repair_gave(session, models, tmp_path, case):
    name, steps = CASES[case]
    target = models(name)
    made = editing.apply(session, target, steps)
    assert isinstance(made, Ok), made
    result = made.value
    assert result.sha256 != target.sha256
    written = patch.script(
        target.format,
        [editing.packed(group) for group in steps],
        explanation=f"The case '{case}'.",
        source_sha256=target.sha256,
        result_sha256=result.sha256,
    )
    assert written.arrays is None
    (tmp_path / "mend.py").write_text(written.script)
    done = _run(session, target, tmp_path, "mend.py", str(target.path), "fixed")
    assert done.returncode == 0, done.stderr
    assert "is the expected result" in done.stdout
    assert digest(tmp_path / "fixed") == result.sha256
    assert _body(session, result) == _body(session, Artifact.open(tmp_path / "fixed", format=target.format))
    assert sorted(_parameters(session, result)) == sorted(
        _parameters(session, Artifact.open(tmp_path / "fixed", format=target.format))
    )
    assert digest(target.path) == target.sha256
    sides = [side for side in target.path.parent.iterdir() if side.name == "weights.bin"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["fixed", "mend.py", *(side.name for side in sides)])


def test_large_arrays_lie_beside_the_script(session, models, tmp_path):
    target = models("onnx-picture")
    change = edit("insert", value="r", steps=[{"operator": "Concat", "constants": ["big"], "attributes": {"axis": 1}},
                  {"operator": "Slice", "constants": ["zero", "four", "one"]}], big=np.zeros((2, 2000, 8, 8), np.float32),
                  zero=np.array([0]), four=np.array([4]), one=np.array([1]))  # fmt: skip
    made = editing.apply(session, target, [[change]])
    assert isinstance(made, Ok), made
    written = patch.script(
        "onnx", [editing.packed([change])], explanation="", source_sha256=target.sha256, result_sha256=made.value.sha256
    )
    assert written.arrays is not None
    assert len(written.script) < 400_000
    (tmp_path / "mend.py").write_text(written.script)
    refused = _run(session, target, tmp_path, "mend.py", str(target.path), "fixed.onnx")
    assert refused.returncode == 2
    assert "mend.npz is missing" in refused.stderr
    (tmp_path / "mend.npz").write_bytes(written.arrays)
    done = _run(session, target, tmp_path, "mend.py", str(target.path), "fixed.onnx")
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "fixed.onnx") == made.value.sha256


def test_another_model_is_refused(session, models, tmp_path):
    target = models("torch")
    steps = [[edit("remove-node", node="softmax")]]
    written = patch.script(
        "pytorch", [editing.packed(group) for group in steps], explanation="", source_sha256="0" * 64, result_sha256="1" * 64
    )  # fmt: skip
    (tmp_path / "mend.py").write_text(written.script)
    done = _run(session, target, tmp_path, "mend.py", str(target.path), "fixed.pt2")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not the model that this patch was made for" in done.stderr
    assert not (tmp_path / "fixed.pt2").exists()


def _run(session, target, folder, *arguments):
    """Run a script with the interpreter of the format's environment, isolated: no site of ours, no variables."""
    environment = session.environment(framework_of(target.format).FORMATS[target.format])
    assert not isinstance(environment, Failure), environment
    bare = {"PATH": os.environ["PATH"], "HOME": str(folder.parent)}
    check = "import importlib.util, sys; sys.exit(importlib.util.find_spec('trueport') is not None)"
    python = str(environment.value.python)
    assert subprocess.run([python, "-I", "-c", check], cwd=folder, env=bare, check=False).returncode == 0
    return subprocess.run(
        [python, "-I", "-W", "ignore", *arguments], cwd=folder, env=bare, capture_output=True, text=True, check=False, timeout=200
    )  # fmt: skip


def _parameters(session, artifact):
    outcome = session.ask(artifact, "parameters", {}, stage=Stage.TRACE, emit=True)
    assert isinstance(outcome, Ok), outcome
    return [(name, np.asarray(array).tobytes()) for name, array in outcome.value.emitted.items()]


def _body(session, artifact):
    outcome = session.ask(artifact, "graph", {}, stage=Stage.TRACE)
    assert isinstance(outcome, Ok), outcome
    return [(node["name"], node["op"], node["inputs"], node["attributes"]) for node in outcome.value.value["nodes"]]
