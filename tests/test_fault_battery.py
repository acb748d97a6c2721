"""Faults while a real framework converts: killed workers, limits, a full disk, an interrupt, a killed parent.

A Keras model goes to ONNX; each fault has to end as the documented value or exit code, with nothing left behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from trueport import api, conversion
from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.outcome import Failure, Kind, Stage
from trueport.routes import plan
from trueport.session import Session, Settings

ENTRY = [sys.executable, "-c", "from trueport.cli import main; main()"]
MODELS = str(Path(__file__).parent / "frameworks")


@pytest.fixture(scope="module")
def model(tmp_path_factory, pool, env) -> Path:
    folder = tmp_path_factory.mktemp("model")
    arguments = {"kind": "residual", "folder": str(folder), "seed": 0}
    made = pool.call(env("tensorflow"), "keras_models", "save", arguments, stage=Stage.LOAD, paths=[MODELS])
    assert not isinstance(made, Failure), made
    env("onnx")
    return Path(made.value.value).rename(folder / "model.keras")


def workers(pid: int) -> list[psutil.Process]:
    """The worker processes below a process."""
    found = []
    for one in psutil.Process(pid).children(recursive=True):
        try:
            if any("child.py" in word for word in one.cmdline()):
                found.append(one)
        except psutil.Error:
            continue
    return found


def hop_begins(stage: str):
    """(progress, event): the event is set when the progress names `stage`."""
    event = threading.Event()

    def progress(line: str) -> None:
        if line.startswith(stage):
            event.set()

    return progress, event


def test_a_worker_killed_while_it_converts_ends_that_route_only(model, tmp_path, env):
    tensorflow = str(env("tensorflow"))
    progress, begun = hop_begins("tf2onnx-keras: keras")
    killed: list[int] = []

    def kill() -> None:
        assert begun.wait(120)
        time.sleep(0.2)
        for worker in workers(os.getpid()):
            if worker.cmdline()[0] == tensorflow:
                worker.kill()
                killed.append(worker.pid)

    with Session(Settings(timeout=300), progress) as session:
        artifact = Artifact.open(model)
        given = api.open_feeds(session, artifact, None)
        routes = plan("keras", "onnx")[:2]
        assert [route.name for route in routes] == ["tf2onnx-keras", "keras-onnx"]
        killer = threading.Thread(target=kill)
        killer.start()
        result = conversion.convert(session, artifact, routes, given, out=tmp_path / "out.onnx")
        killer.join()
    assert killed, "no worker of TensorFlow was found to kill"
    failure = result.attempts[0].failure
    assert failure is not None
    assert (failure.stage, failure.kind) == (Stage.CONVERT, Kind.CRASHED)
    assert result.chosen is result.attempts[1]
    assert result.verification is not None
    assert result.verification.verdict == Verdict.FAITHFUL


@pytest.mark.parametrize(
    ("limit", "kind"), [({"timeout": 0.05}, Kind.TIMED_OUT), ({"memory": 2.0**25}, Kind.OUT_OF_MEMORY)]
)
def test_a_limit_is_the_failure_of_every_route(model, tmp_path, limit, kind):
    """The source is loaded under ordinary limits; then each conversion meets one that it cannot keep."""
    with Session(Settings(timeout=300)) as session:
        artifact = Artifact.open(model)
        given = api.open_feeds(session, artifact, None)
        routes = plan("keras", "onnx")[:3]
        for name, value in limit.items():
            setattr(session.pool, name, value)
        result = conversion.convert(session, artifact, routes, given, out=tmp_path / "out.onnx")
    assert result.chosen is None
    assert len(result.attempts) == 3
    for attempt in result.attempts:
        failure = attempt.failure
        assert failure is not None
        assert failure.stage == Stage.CONVERT
        # Native code that does not look at what malloc gave dies; the message then names the limit that it died under.
        died = (
            kind is Kind.OUT_OF_MEMORY and failure.kind is Kind.CRASHED and "under a memory limit of" in failure.message
        )
        assert failure.kind is kind or died, failure
    assert list(tmp_path.iterdir()) == []


def start(words: list[str], cwd: Path, **more) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*ENTRY, *words], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1, **more
    )


def wait_for(process: subprocess.Popen[str], line: str) -> None:
    """Read stderr until a line begins so."""
    assert process.stderr is not None
    for told in process.stderr:
        if told.startswith(line):
            return
    raise AssertionError(f"the command ended before it said '{line}'")


def test_a_time_limit_that_the_source_cannot_keep_is_told_with_the_cure(model, tmp_path):
    process = start(["convert", str(model), "--to", "onnx", "-o", "out.onnx", "--timeout", "0.2"], tmp_path)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert "model.keras cannot be loaded (timed-out)" in told
    assert "--timeout" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "moment", ["tf2onnx-keras: keras", pytest.param("tf2onnx-keras: verifying", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_no_process_and_nothing_half_written(model, tmp_path, moment, stop):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    words = ["convert", str(model), "--to", "onnx", "-o", "out.onnx", "--json", "r.json", "--report", "report"]
    process = start(words, out, env={**os.environ, "TMPDIR": str(scratch)})
    try:
        wait_for(process, moment)
        left = workers(process.pid)
        assert left
        process.send_signal(stop)
        told = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    _, alive = psutil.wait_procs(left, timeout=5)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    assert process.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL)
    assert list(out.iterdir()) == []
    assert "Traceback" not in told
    deadline = time.monotonic() + 5
    while list(scratch.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(scratch.iterdir()) == [], "the temporary folder of the run is still there"


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(bytes) -> a folder on a file system of that size, where this machine lets us make one."""
    mounted: list[Path] = []

    def make(size: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size", [8192, pytest.param(65536, marks=pytest.mark.slow), 262144])
def test_a_full_temporary_disk_is_one_sentence(model, tmp_path, small_disk, size):
    disk = small_disk(size)
    words = ["convert", str(model), "--to", "onnx", "-o", "out.onnx", "-q"]
    process = start(words, tmp_path, env={**os.environ, "TMPDIR": str(disk)})
    told = process.communicate(timeout=180)[1]
    assert process.returncode == 2, told
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "make room" in errors[0] or "TMPDIR" in errors[0]
    assert not (tmp_path / "out.onnx").exists()
    assert list(disk.iterdir()) == []


def test_a_full_disk_at_the_result_is_one_sentence_and_leaves_what_was_there(model, small_disk):
    disk = small_disk(8192)
    (disk / "out.onnx").write_text("before")
    words = ["convert", str(model), "--to", "onnx", "-o", "out.onnx", "-q", "--no-verify"]
    process = start(words, disk)
    told = process.communicate(timeout=180)[1]
    assert process.returncode == 2, told
    assert "cannot be written to out.onnx: No space left on device; make room" in told
    assert {path.name: path.read_text() for path in disk.iterdir()} == {"out.onnx": "before"}
