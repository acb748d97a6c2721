"""A framework of another distribution: installed beside trueport it is found, inspected, converted, verified and repaired."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import uv

MAIN = "import sys; from trueport.cli import main; sys.exit(main())"
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "outside_framework"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of a real installation of the example, beside nothing else."""
    home = tmp_path_factory.mktemp("outside")
    shutil.copytree(EXAMPLE, home / "source")
    command = [
        uv.find_uv_bin(),
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--python",
        sys.executable,
        "--target",
        home / "site",
    ]
    done = subprocess.run([*command, home / "source"], capture_output=True, text=True, check=False)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip(f"the build backend cannot be had here: {done.stderr.strip().splitlines()[-1]}")
    assert not done.returncode, done.stderr
    return home / "site"


@pytest.fixture
def command(installed, tmp_path):
    """command(*words) -> a finished `trueport` with the example installed."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*words):
        done = [sys.executable, *(["-c", MAIN] if not str(words[0]).endswith(".py") else []), *map(str, words)]
        return subprocess.run(done, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)

    made = run(EXAMPLE / "make_model.py", "small.npznet")
    assert not made.returncode, made.stderr
    return run


def test_it_is_inspected_converted_and_verified(command, tmp_path):
    shown = command("inspect", "small.npznet")
    assert shown.returncode == 0, shown.stderr
    assert "npznet" in shown.stdout
    done = command("convert", "small.npznet", "--to", "onnx", "-o", "small.onnx", "--json", "-")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["verification"]["verdict"] == "faithful" if "verification" in told else "faithful" in done.stdout
    assert (tmp_path / "small.onnx").stat().st_size > 0
    routes = command("routes", "--to", "onnx")
    assert "npznet-onnx" in routes.stdout


def test_a_fault_in_it_is_diagnosed_and_mended_in_its_own_format(command, installed, tmp_path):
    code = (
        "import numpy as np; from npznet import framework as f; layers, arrays = f._read('small.npznet');"
        "arrays['head'] = arrays['head'] * np.float32(1.3); f.save('wrong.npznet', layers, arrays)"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert command("verify", "small.npznet", "wrong.npznet").returncode == 1
    found = command("diagnose", "small.npznet", "wrong.npznet")
    assert "scores" in found.stdout, found.stdout + found.stderr
    mended = command("repair", "small.npznet", "wrong.npznet", "-o", "mended.npznet")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert command("verify", "small.npznet", "mended.npznet").returncode == 0


def test_without_it_the_file_is_none_that_is_known(command, tmp_path):
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "inspect", "small.npznet"],
        capture_output=True, text=True, cwd=tmp_path, env=bare, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "not a model of a known format" in done.stderr
