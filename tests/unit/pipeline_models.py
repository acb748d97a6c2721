"""Models of the fake framework on disk, and whole runs on them, for the tests of the pipeline."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from trueport.frameworks import fake
from trueport.routes import Hop, Route, steps

ENTRY = [sys.executable, "-c", "from trueport.cli import main; main()"]


def write(path: Path, *, seed: int = 1, **more) -> Path:
    """Write a network of the fake framework; `more` as for `fake.network`."""
    path.write_text(fake.text_of(fake.network(seed=seed, **more)), encoding="utf-8")
    return path


def write_changed(path: Path, change, *, seed: int = 1) -> Path:
    """Write the network of `write` after `change(network)`."""
    model = fake.network(seed=seed)
    change(model)
    path.write_text(fake.text_of(model), encoding="utf-8")
    return path


def scale(factor: float):
    """A change that makes every weight of the first layer `factor` times as large."""

    def change(model) -> None:
        item = model["constants"]["w1"]
        item["data"] = [[value * factor for value in row] for row in item["data"]]

    return change


def hop(misbehave: str = "", **options: str) -> Hop:
    """A `fake-copy` that misbehaves."""
    given = {"misbehave": misbehave} if misbehave else {}
    return Hop(step=steps()["fake-copy"], options={**given, **options})


def route(*misbehave: str) -> Route:
    """A route of `fake-copy` hops, one per argument."""
    return Route(hops=tuple(hop(one) for one in misbehave))


def trueport(*words: str | Path, cwd: Path, timeout: float = 120, env=None) -> subprocess.CompletedProcess[str]:
    """Run the real command line in a process of its own."""
    return subprocess.run(
        [*ENTRY, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=timeout, env=env, check=False
    )


def interrupted(folder: Path, name: str, after: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that repairs, press ^C when the `after`-th change is tried, and return the finished process."""
    words = [*ENTRY, *command, "--json", f"{name}.json"]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = 0
    for line in process.stderr:
        seen += line.startswith("trying")
        if seen == after:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def read(path: Path):
    """Read strict JSON: a bare NaN or Infinity is an error."""

    def refuse(word: str):
        raise AssertionError(f"{path}: {word} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
