"""A patch script for TVM or ExecuTorch stands alone: in that library's environment it writes what the edit writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from trueport.artifact import digest
from trueport.frameworks import executorch, tvm
from trueport.outcome import Ok, Stage
from trueport.repairs import patch

HERE = str(Path(__file__).parent)
MAKERS = {"tvm": ("tvm_models", "parts", "tvm"), "executorch": ("executorch_models", "parts", "portable")}
FRAMEWORKS = {"tvm": tvm, "executorch": executorch}
NEW = np.array([1, 2, 3], np.float32)


def done(outcome):
    assert isinstance(outcome, Ok), outcome
    return outcome.value


@pytest.mark.parametrize("format", list(MAKERS))
def test_a_patch_writes_what_the_edit_writes(pool, env, tmp_path, format):
    maker, kind, form = MAKERS[format]
    module, suffix = f"trueport.frameworks.{format}", FRAMEWORKS[format].SUFFIXES[format]

    def call(where, function, arguments):
        return done(pool.call(env(format), where, function, arguments, stage=Stage.TRACE, paths=[HERE])).value

    source = call(maker, "write", {"folder": str(tmp_path)})[kind][form]
    product = next(n for n in call(module, "graph", {"path": source, "trust": False})["nodes"] if n["op"] == "Mul")
    stored = call(module, "graph", {"path": source, "trust": False})["constants"]
    (name,) = (item for item in product["inputs"] if item in stored)
    edits = [{"kind": "set-parameter", "node": product["name"], "parameter": name, "array": "w"}]
    edited, patched = tmp_path / f"edited{suffix}", tmp_path / f"patched{suffix}"
    arguments = {"path": source, "edits": edits, "arrays": {"w": NEW}, "out": str(edited), "trust": False}
    call(module, "edit", arguments)
    written = patch.script(
        format,
        [(edits, {"w": NEW})],
        explanation="One weight of one reader.",
        source_sha256=digest(Path(source)),
        result_sha256=digest(edited),
    )
    script = tmp_path / "patch.py"
    script.write_text(written.script, encoding="utf-8")
    command = [str(env(format)), "-I", str(script), source, str(patched)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert patched.read_bytes() == edited.read_bytes() != Path(source).read_bytes()
