"""Which interpreter is found, and which of the user's own is accepted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import uv
import wheelhouse

from trueport import interpreters
from trueport.interpreters import check_own, find_interpreter, version_of
from trueport.outcome import Failure, Kind, Ok, Stage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="interpreters are shell scripts here")


def script(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def pretend(path, version):
    return script(path, f"echo cpython {version}")


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No interpreter can be found but what the test puts there."""

    def nowhere():
        raise FileNotFoundError

    monkeypatch.setattr("uv.find_uv_bin", nowhere)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv(
        "PATH", f"{tmp_path / 'shims'}{os.pathsep}{tmp_path / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
    )
    return tmp_path


def test_this_interpreter_is_taken_for_its_own_version():
    assert find_interpreter(wheelhouse.PYTHON) == Path(sys.executable)


def test_an_interpreter_that_nobody_has(alone):
    assert find_interpreter("3.4") is None


def test_the_newest_patch_that_pyenv_keeps(alone):
    for patch in ("9", "10", "2"):
        pretend(alone / "pyenv" / "versions" / f"3.4.{patch}" / "bin" / "python", "3.4")
    assert find_interpreter("3.4") == alone / "pyenv" / "versions" / "3.4.10" / "bin" / "python"


def test_a_shim_that_does_not_run_is_passed_over(alone):
    script(alone / "shims" / "python3.4", "echo 'no such version' >&2; exit 127")
    pretend(alone / "bin" / "python3.4", "3.4")
    assert find_interpreter("3.4") == alone / "bin" / "python3.4"


def test_an_interpreter_that_lies_about_its_version_is_passed_over(alone):
    pretend(alone / "bin" / "python3.4", "3.5")
    assert find_interpreter("3.4") is None


def test_a_setting_names_the_interpreter_and_a_wrong_one_is_not_ignored(alone, monkeypatch):
    pretend(alone / "bin" / "python3.4", "3.4")
    named = pretend(alone / "mine", "3.4")
    monkeypatch.setenv("TRUEPORT_PYTHON_3_4", str(named))
    assert find_interpreter("3.4") == named
    monkeypatch.setenv("TRUEPORT_PYTHON_3_4", str(alone / "absent"))
    assert find_interpreter("3.4") is None
    assert "TRUEPORT_PYTHON_3_4=" in interpreters.no_interpreter(wheelhouse.toolchain(python="3.4"))


def test_what_is_no_cpython_has_no_version(tmp_path):
    assert version_of(script(tmp_path / "pypy", "echo pypy 3.11")) is None
    assert version_of(script(tmp_path / "dead", "exit 1")) is None
    assert version_of(tmp_path) is None
    assert version_of(Path(sys.executable)) == wheelhouse.PYTHON


def refused(python, **row):
    outcome = check_own(wheelhouse.toolchain(**row), python)
    assert isinstance(outcome, Failure)
    assert (outcome.stage, outcome.kind) == (Stage.ENVIRONMENT, Kind.UNAVAILABLE)
    assert outcome.message.startswith(f"the interpreter '{python}' ")
    return outcome


def answer(folder, **found):
    return script(folder / "python", f"echo '{json.dumps(found)}'")


def test_an_interpreter_with_numpy_and_the_framework_is_accepted():
    assert check_own(wheelhouse.toolchain(health="import json, absent"), Path(sys.executable)) == Ok(
        Path(sys.executable)
    )


def test_the_folder_of_a_virtual_environment_is_accepted():
    outcome = check_own(wheelhouse.toolchain(health="import json"), Path(sys.prefix))
    assert outcome == Ok(Path(sys.prefix) / "bin" / "python")


def test_an_interpreter_that_is_not_there(tmp_path):
    assert "does not exist" in refused(tmp_path / "absent").message
    assert "does not exist" in refused(tmp_path).message


def test_what_does_not_run(tmp_path):
    text = tmp_path / "python"
    text.write_text("print(1)")
    assert "does not run" in refused(text).message
    assert "does not run" in refused(script(tmp_path / "python", "echo broken >&2; exit 3")).message
    assert "does not run" in refused(script(tmp_path / "python", "echo hello")).message


def test_an_interpreter_without_numpy(tmp_path):
    subprocess.run([uv.find_uv_bin(), "venv", "-q", "--python", sys.executable, str(tmp_path / "bare")], check=True)
    failure = refused(tmp_path / "bare")
    assert "has no working NumPy; install numpy there" in failure.message
    assert "ModuleNotFoundError" in failure.log


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"python": [3, 8, 1], "numpy": "1.22.0"}, "is Python 3.8.1, and 3.9 or later"),
        ({"python": [3, 9, 0], "numpy": "1.21.6"}, "has NumPy 1.21.6, and 1.22 or later"),
    ],
)
def test_what_is_too_old(tmp_path, found, words):
    assert words in refused(answer(tmp_path, **found)).message


def test_the_oldest_that_will_do(tmp_path):
    python = answer(tmp_path, python=[3, 9, 0], numpy="1.22.0")
    assert check_own(wheelhouse.toolchain(), python) == Ok(python)


def test_an_interpreter_without_the_framework():
    failure = refused(Path(sys.executable), health="import no_such_framework, json")
    assert "cannot import no_such_framework, which toolchain 'tiny' needs" in failure.message
    assert "ModuleNotFoundError" in failure.log
