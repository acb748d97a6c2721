"""The parent's side: start, reuse, limit, kill and replace workers; turn every way to die into a `Failure`.

One worker is one process group. It serves one job at a time, is reused for jobs of the same environment, recycled
after `max_jobs`, and killed (the whole group, and descendants that left it) on a time-out, on a memory limit, when the
reply is corrupt, and when the pool closes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from trueport.errors import InternalError, UntrustedError, UsageError
from trueport.outcome import Failure, Kind, Ok, Outcome, Stage
from trueport.worker import wire

PACKAGE = Path(__file__).resolve().parents[1]
LOG_TAIL = 8000
"""Characters of a worker's output that a Failure keeps."""
DEFAULT_TIMEOUT = 900.0
"""Seconds per job: the slowest conversion seen (ResNet-101 through tf2onnx) needs 35 s on two cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A job's result: its value, the arrays it emitted by name, and the versions in its environment."""

    value: Any
    emitted: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A call of `module.function(**arguments)` in a worker. `memory` is in bytes beyond the worker's own, `timeout` in seconds."""

    module: str
    function: str
    arguments: Mapping[str, Any]
    stage: Stage
    emit: bool = False
    timeout: float = DEFAULT_TIMEOUT
    memory: float | None = None
    paths: Sequence[str] = ()
    after_reply: str = ""


class Worker:
    """One child process in one environment."""

    def __init__(self, python: Path, folder: Path, environ: Mapping[str, str]) -> None:
        self.python = python
        self.folder = folder
        self.jobs = 0
        self._killed = False
        self.log = folder / "log.txt"
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [
                    str(python),
                    "-I",
                    "-u",
                    str(PACKAGE / "worker" / "child.py"),
                    str(PACKAGE),
                    str(theirs.fileno()),
                    str(self.log),
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environ),
                cwd=folder,
                start_new_session=True,
            )
        self.pipe = Connection(ours.detach())

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def run(self, job: Job, folder: Path) -> Outcome[Reply]:
        """Run one job to its end, whatever that is. After a Failure of kind crashed/timed-out/out-of-memory the worker is dead."""
        self.jobs += 1
        offset = self.log.stat().st_size if self.log.exists() else 0
        store = wire.ArrayStore(str(folder))
        inputs = wire.encode(dict(job.arguments), store)
        results = folder / "results"
        results.mkdir()
        request = {
            "module": job.module,
            "function": job.function,
            "arguments": inputs,
            "folder": str(results),
            "emit": job.emit,
            "memory": job.memory,
            "paths": list(job.paths),
            "after_reply": job.after_reply,
        }
        try:
            self.pipe.send_bytes(wire.dumps(request))
        except OSError:
            return self._dead(job, offset)
        outcome = self._wait(job, offset)
        if isinstance(outcome, Failure):
            return outcome
        return self._read(outcome, job, offset)

    def _wait(self, job: Job, offset: int) -> bytes | Failure:
        deadline = time.monotonic() + job.timeout
        pause = 0.05
        while True:
            try:
                if self.pipe.poll(pause):
                    return self.pipe.recv_bytes()
            except (EOFError, OSError):
                self.process.wait()
                return self._dead(job, offset)
            if not self.alive and not self.pipe.poll(0):
                return self._dead(job, offset)
            if time.monotonic() > deadline:
                self.kill()
                return Failure(
                    stage=job.stage,
                    kind=Kind.TIMED_OUT,
                    message=f"no answer within {job.timeout:g} s; the process was ended",
                    log=self._tail(offset),
                )
            if job.memory is not None and self._resident() > job.memory * 1.25 + 2**29:
                self.kill()
                return Failure(
                    stage=job.stage,
                    kind=Kind.OUT_OF_MEMORY,
                    message=f"more than {job.memory / 2**30:.3g} GiB of memory in use; the process was ended",
                    log=self._tail(offset),
                )
            pause = min(pause * 1.5, 0.5)

    def _read(self, data: bytes, job: Job, offset: int) -> Outcome[Reply]:
        try:
            reply = wire.loads(data)
            if "error" in reply:
                return self._refusal(reply, job, offset)
            value = wire.decode(reply["value"])
            emitted = wire.decode(reply["emitted"])
            return Ok(
                Reply(value=value, emitted=emitted, seconds=reply["seconds"], versions=reply["versions"]),
                reply["seconds"],
            )
        except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
            self.kill()
            return Failure(
                stage=job.stage,
                kind=Kind.INVALID_OUTPUT,
                message=f"the worker's reply cannot be read: {error}",
                log=self._tail(offset),
            )

    def _refusal(self, reply: Mapping[str, Any], job: Job, offset: int) -> Failure:
        kind, message = reply["error"], _sentence(reply.get("type", ""), reply["message"])
        log = f"{self._tail(offset)}\n{reply.get('traceback', '')}".strip()[-LOG_TAIL:]
        if kind == "untrusted":
            raise UntrustedError(reply["message"])
        if kind == "bad-model":
            raise UsageError(reply["message"])
        return Failure(stage=job.stage, kind=Kind(kind), message=message, log=log)

    def _dead(self, job: Job, offset: int) -> Failure:
        code = self.process.wait()
        log = self._tail(offset)
        self.kill()
        if job.memory is not None and any(
            word in log.lower() for word in ("bad_alloc", "memoryerror", "out of memory", "cannot allocate")
        ):
            return Failure(
                stage=job.stage,
                kind=Kind.OUT_OF_MEMORY,
                message=f"the limit of {job.memory / 2**30:.3g} GiB was hit and the process died",
                log=log,
            )
        what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Failure(stage=job.stage, kind=Kind.CRASHED, message=f"the process died with {what}", log=log)

    def _resident(self) -> int:
        total = 0
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.process.pid)
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    total += one.memory_info().rss
        return total

    def _tail(self, offset: int) -> str:
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(offset, size - LOG_TAIL))
                return file.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""

    def kill(self) -> None:
        """End the process group and every descendant that left it; returns when they are gone."""
        if self._killed:
            return
        self._killed = True
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for one in family:
            with contextlib.suppress(psutil.Error):
                one.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=5)
        self.pipe.close()


def _sentence(kind: str, message: str) -> str:
    first = next((line.strip() for line in message.strip().splitlines() if line.strip()), "")
    return f"{kind}: {first[:400]}" if kind not in ("Unsupported", "InvalidOutput") else first[:400]


class Pool:
    """Workers by environment. Thread-safe; use as a context manager so that nothing is left running."""

    def __init__(
        self,
        *,
        folder: Path | None = None,
        max_jobs: int = 200,
        timeout: float = DEFAULT_TIMEOUT,
        memory: float | None = None,
    ) -> None:
        self._own_folder = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="trueport-")) if folder is None else folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.max_jobs = max_jobs
        self.timeout = timeout
        self.memory = memory
        self._idle: dict[Path, list[Worker]] = {}
        self._busy: set[Worker] = set()
        self._count = 0
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fresh_folder(self, name: str) -> Path:
        """Make a new empty folder inside the pool's own; it lives until the pool is closed."""
        with self._lock:
            self._count += 1
            folder = self.folder / f"{self._count:05d}-{name}"
        folder.mkdir()
        return folder

    def call(
        self,
        python: Path,
        module: str,
        function: str,
        arguments: Mapping[str, Any],
        *,
        stage: Stage,
        emit: bool = False,
        timeout: float | None = None,
        memory: float | None = None,
        paths: Sequence[str] = (),
        after_reply: str = "",
    ) -> Outcome[Reply]:
        """Run `module.function(**arguments)` in the environment of `python`; arrays among the arguments travel as files.

        Raises UsageError or UntrustedError when the worker says that the *file* is at fault; every other end is an Outcome.
        """
        job = Job(
            module=module,
            function=function,
            arguments=arguments,
            stage=stage,
            emit=emit,
            timeout=self.timeout if timeout is None else timeout,
            memory=self.memory if memory is None else memory,
            paths=paths,
            after_reply=after_reply,
        )
        worker = self._take(python)
        healthy = False
        try:
            outcome = worker.run(job, self.fresh_folder(function))
            healthy = (
                not (
                    isinstance(outcome, Failure) and outcome.kind in (Kind.CRASHED, Kind.TIMED_OUT, Kind.OUT_OF_MEMORY)
                )
                and worker.alive
            )
            return outcome
        except UsageError:
            healthy = worker.alive
            raise
        finally:
            self._give_back(worker, healthy=healthy)

    def warm(self, python: Path) -> None:
        """Start a worker ahead of its first job."""
        self._give_back(self._take(python), healthy=True)

    def _take(self, python: Path) -> Worker:
        with self._lock:
            if self._closed:
                raise InternalError("the worker pool is closed")
            idle = self._idle.get(python, [])
            while idle:
                worker = idle.pop()
                if worker.alive:
                    self._busy.add(worker)
                    return worker
                worker.kill()
        worker = Worker(python, self.fresh_folder("worker"), environment())
        with self._lock:
            self._busy.add(worker)
        return worker

    def _give_back(self, worker: Worker, *, healthy: bool) -> None:
        with self._lock:
            self._busy.discard(worker)
            keep = healthy and worker.jobs < self.max_jobs and not self._closed
            if keep:
                self._idle.setdefault(worker.python, []).append(worker)
        if not keep:
            worker.kill()

    def close(self) -> None:
        """Kill every worker and remove the pool's folder if it is ours."""
        with self._lock:
            self._closed = True
            workers = [worker for idle in self._idle.values() for worker in idle] + list(self._busy)
            self._idle.clear()
        for worker in workers:
            worker.kill()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def environment() -> dict[str, str]:
    """The variables of a worker: the caller's, less what would leak packages or devices, plus what keeps tools quiet and offline."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "CONDA"))}
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return kept | {key: value for key, value in quiet.items() if key not in os.environ}
