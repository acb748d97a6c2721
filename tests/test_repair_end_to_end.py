"""Repairs of real files, from the command line to the file that comes out: whole, verified, and made again by its script."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "unit"))

from onnx_small import build  # noqa: E402
from pipeline_models import read, trueport  # noqa: E402

from trueport import api  # noqa: E402
from trueport.outcome import Failure, Stage  # noqa: E402
from trueport.session import Session, Settings  # noqa: E402
from trueport.testing import plant  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small ONNX model, twins of it with one fault each, and models that have nothing to do with it."""
    folder = tmp_path_factory.mktemp("onnx")
    with Session(Settings(timeout=120)) as session:
        build(session, "conv_bn_twice", folder / "model.onnx")
        build(session, "three_channels", folder / "another.onnx")
        for kind in ("kernel_flipped", "pads_shifted"):
            planted = plant(folder / "model.onnx", folder / f"{kind}.onnx", kind=kind, seed=1, session=session)
            assert planted.effective
    return folder


def digests(folder: Path) -> dict[str, str]:
    names = ("model.onnx", "another.onnx", "kernel_flipped.onnx", "pads_shifted.onnx")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.mark.parametrize("kind", ["kernel_flipped", "pads_shifted"])
def test_a_wrong_onnx_file_is_mended_verified_and_patched(folder, tmp_path, env, kind):
    before = digests(folder)
    source, target, fixed = folder / "model.onnx", folder / f"{kind}.onnx", tmp_path / "fixed.onnx"
    words = ["repair", source, target, "-o", fixed, "--patch", "fix.py", "--json", "r.json", "--no-tools"]
    done = trueport(*words, cwd=tmp_path)
    document = read(tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert (document["status"], len(document["edits"])) == ("repaired", 1)
    assert document["edits"][0]["where"] == "left-conv"
    assert digests(folder) == before
    assert trueport("verify", source, fixed, "--seed", "5", "-q", cwd=tmp_path).returncode == 0
    assert trueport("verify", source, target, "--seed", "5", "-q", cwd=tmp_path).returncode == 1
    assert f"patch: python {tmp_path / 'fix.py'}" in done.stdout
    again = subprocess.run(
        [str(env("onnx")), "-I", "fix.py", str(target), "again.onnx"], cwd=tmp_path, capture_output=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.onnx").read_bytes() == fixed.read_bytes()


def test_a_target_that_is_another_network_is_refused(folder, tmp_path):
    before = digests(folder)
    words = ["repair", folder / "model.onnx", folder / "another.onnx", "-o", "fixed.onnx", "--patch", "fix.py"]
    done = trueport(*words, "--json", "r.json", "--no-tools", cwd=tmp_path)
    document = read(tmp_path / "r.json")
    assert done.returncode == 1, done.stderr
    assert (document["status"], document["output"], document["edits"]) == ("unrepaired", None, [])
    assert document["refused"] or document["notes"]
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    assert digests(folder) == before


REQUESTS = [
    (["model.onnx", "kernel_flipped.onnx", "-o", "x.tflite"], "would be a .onnx file"),
    (["model.onnx", "kernel_flipped.onnx", "--patch", "fix.sh"], "ends with .py"),
    (["model.onnx", "kernel_flipped.onnx", "--patch", "given.py"], "given.npz is in the way"),
    (["model.onnx", "kernel_flipped.onnx", "--patch", "model.onnx/fix.py"], "cannot be written"),
    (["model.onnx", "given.npz"], "not a model"),
]


@pytest.mark.parametrize(("words", "says"), REQUESTS, ids=[says for _, says in REQUESTS])
def test_a_wrong_request_is_told_and_leaves_nothing(folder, words, says):
    np.savez(folder / "given.npz", x=np.zeros(3, np.float32))
    before = sorted(path.name for path in folder.iterdir())
    done = trueport("repair", *words, cwd=folder)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


FORMS = {
    "keras": ("wrong.keras", "model.save"),
    "h5": ("wrong.h5", "model.save"),
    "savedmodel": ("wrong", "model.export"),
}
"""form -> name of the wrong twin, what writes it."""


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_keras_model_is_mended_as_what_it_is(tmp_path, pool, env, form):
    arguments = {"kind": "residual", "folder": str(tmp_path), "seed": 0}
    made = pool.call(
        env("tensorflow"), "keras_models", "save", arguments, stage=Stage.LOAD, paths=[str(ROOT / "frameworks")]
    )
    assert not isinstance(made, Failure), made
    source, (name, writer) = Path(made.value.value), FORMS[form]
    with Session(Settings(timeout=300)) as session:
        plant(source, tmp_path / "planted.keras", kind="kernel_flipped", seed=2, session=session)
        code = f"import keras; model = keras.models.load_model('planted.keras'); {writer}({name!r})"
        subprocess.run([str(env("tensorflow")), "-c", code], cwd=tmp_path, capture_output=True, check=True)
        out = tmp_path / f"fixed{Path(name).suffix}"
        done = api.repair(source, tmp_path / name, out=out, tools=False, session=session)
        assert str(done.status) == "repaired", done.explanation
        assert [edit.kind for edit in done.edits] == ["set-parameter"]
        assert str(api.verify(source, out, session=session).verdict) == "faithful"
        assert str(api.verify(source, tmp_path / name, session=session).verdict) == "deviates"
    if form != "savedmodel":  # what Keras itself makes of it
        code = f"import keras; keras.models.load_model({out.name!r})"
        subprocess.run([str(env("tensorflow")), "-c", code], cwd=tmp_path, capture_output=True, check=True)
