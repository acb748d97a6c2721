"""What the documents say is true: commands and options exist, the reference has not drifted, the README's code runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from trueport.cli import app

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def command_lines() -> list[str]:
    lines = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    return [line.split("   #")[0].strip() for line in lines if line.startswith("trueport ")]


def find(words: list[str]):
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    return command, words


def test_the_readme_shows_commands():
    assert len(command_lines()) >= 8


@pytest.mark.parametrize("line", command_lines())
def test_readme_commands_and_options_exist(line):
    command, rest = find(shlex.split(line)[1:])
    assert not hasattr(command, "commands"), f"{line}: no such command"
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    for word in rest:
        if word.startswith("-"):
            assert word in known, f"{line}: {word} is unknown"


def test_the_command_line_reference_has_not_drifted():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "docs.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_option_has_a_help_text():
    def walk(command, name):
        for child, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{name} {child}")
        if not hasattr(command, "commands"):
            yield name, command

    for name, command in walk(typer.main.get_command(app), "trueport"):
        assert command.help, f"{name} has no help"
        for param in command.params:
            if param.param_type_name == "option":
                assert getattr(param, "help", None), f"{name} {param.opts[0]} has no help text"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_reach_something(path):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_machine_paths(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(root|work|opt|home|tmp)/", text)


def test_the_make_targets_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z-]+)", "\n".join(blocks(ROOT / "README.md", "sh")), flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_the_readme_python_runs(tmp_path, pool, env, monkeypatch):
    import numpy as np

    from trueport.outcome import Failure, Stage

    folder = str(ROOT / "tests" / "frameworks")
    arguments = {"kind": "residual", "folder": str(tmp_path), "seed": 0}
    made = pool.call(env("tensorflow"), "keras_models", "save", arguments, stage=Stage.LOAD, paths=[folder])
    assert not isinstance(made, Failure), made
    monkeypatch.chdir(tmp_path)
    Path(made.value.value).rename("model.keras")
    images = np.random.default_rng(0).normal(size=(6, 16, 16, 3)).astype(np.float32)
    np.savez("val.npz", image=images)
    code = blocks(ROOT / "README.md", "python")[0]
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert str(scope["result"].verification.verdict) == "faithful"
    assert Path("model.tflite").exists()
