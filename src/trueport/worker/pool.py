"""The parent's side: keep workers by environment, reuse and replace them; every way in which a job can end is an `Outcome`.

A worker serves one job at a time, is reused for jobs of the same environment, recycled after `max_jobs`, and ended (the
whole group, and descendants that left it) on a time-out, on a memory limit, when its reply is corrupt, when the caller
is interrupted, and when the pool closes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trueport.errors import InternalError, UsageError
from trueport.outcome import Failure, Kind, Outcome, Stage
from trueport.worker import wire
from trueport.worker.process import RESULTS, Job, NotAcceptedError, Reply, Worker

__all__ = ["DEFAULT_TIMEOUT", "Pool", "Reply", "environment"]

DEFAULT_TIMEOUT = 900.0
"""Seconds per job: the slowest conversion seen (ResNet-101 through tf2onnx) needs 35 s on two cores."""


class Pool:
    """Workers by environment. Thread-safe; use as a context manager so that nothing is left running.

    folder: where arrays and scratch folders live; by default a temporary folder that disappears with the pool.
    max_jobs: a worker is replaced after so many jobs. timeout (seconds) and memory (bytes beyond what the worker uses
    when a job begins; None: no limit) hold for jobs that do not set their own.
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        max_jobs: int = 200,
        timeout: float = DEFAULT_TIMEOUT,
        memory: float | None = None,
    ) -> None:
        self._own = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="trueport-")) if folder is None else folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.max_jobs = max_jobs
        self.timeout = timeout
        self.memory = memory
        self._idle: dict[Path, list[Worker]] = {}
        self._workers: set[Worker] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._finish = weakref.finalize(self, _finish, self._workers, self.folder if self._own else None, os.getpid())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fresh_folder(self, name: str) -> Path:
        """Make a new empty folder inside the pool's own; it lives until the pool is closed or it is released."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def release(self, folder: Path | None) -> None:
        """Remove a reply's folder (or one from `fresh_folder`) ahead of the pool's end; None is allowed.

        Arrays of that reply must no longer be used. Raises InternalError for a folder that is not this pool's.
        """
        if folder is None:
            return
        if folder.parent != self.folder:
            raise InternalError(f"{folder} is no folder of this worker pool")
        shutil.rmtree(folder, ignore_errors=True)

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
    ) -> Outcome[Reply]:
        """Run `module.function(**arguments)` in the environment of `python`; arrays among the arguments travel as files.

        An argument that maps one whole `.npy` file read-only is passed by its path, not copied. Arrays of the reply
        stay readable until the pool is closed or `reply.folder` is released.
        Raises UsageError or UntrustedError when the worker says that the *file* is at fault, or when the arguments
        cannot be written to disk; every other end is an Outcome.
        """
        folder = self.fresh_folder(function)
        outcome: Outcome[Reply] | None = None
        try:
            job = Job(
                module=module,
                function=function,
                arguments=_encoded(arguments, folder),
                folder=folder,
                stage=stage,
                emit=emit,
                timeout=self.timeout if timeout is None else timeout,
                memory=self.memory if memory is None else memory,
                paths=paths,
            )
            outcome = self._run(Path(python), job)
            return outcome
        finally:
            if outcome is None or isinstance(outcome, Failure):
                shutil.rmtree(folder, ignore_errors=True)
            else:
                shutil.rmtree(folder / "arguments", ignore_errors=True)

    def _run(self, python: Path, job: Job) -> Outcome[Reply]:
        """Give the job to a worker; one that had died while idle is replaced, which the caller does not notice.

        A worker that crashes may have been damaged by an earlier job. So a crash in a used worker counts only when a
        fresh one crashes too; except in a conversion, which may have left half of its output and is not repeated.
        """
        suspect = False
        while True:
            worker = None if suspect else self._take(python)
            fresh = worker is None
            try:
                worker = worker or self._start(python)
            except OSError as error:
                why = error.strerror or str(error)
                return job.fail(Kind.UNAVAILABLE, f"the interpreter {python} cannot be started: {why}", "")
            healthy = False
            try:
                outcome = worker.run(job)
                healthy = worker.alive and not (isinstance(outcome, Failure) and outcome.kind in _FATAL)
            except UsageError:
                healthy = True
                raise
            except NotAcceptedError:
                if not fresh:
                    continue
                outcome = worker.startup_failure(job.stage)
            finally:
                self._give_back(worker, healthy=healthy)
            if self._closed and isinstance(outcome, Failure):
                raise InternalError("the worker pool was closed while a job ran")
            crashed = isinstance(outcome, Failure) and outcome.kind is Kind.CRASHED
            if not crashed or worker.jobs <= 1 or job.stage is Stage.CONVERT:
                return outcome
            suspect = True
            for path in job.results.iterdir():
                path.unlink()

    def warm(self, python: Path) -> None:
        """Start a worker ahead of its first job. That it cannot be started is reported by that job."""
        worker = self._take(Path(python))
        try:
            worker = worker or self._start(Path(python))
        except OSError:
            return
        self._give_back(worker, healthy=True)

    def _take(self, python: Path) -> Worker | None:
        """Take an idle worker that still lives, if there is one."""
        while True:
            with self._lock:
                self._check_open()
                idle = self._idle.get(python)
                if not idle:
                    return None
                worker = idle.pop()
            if worker.alive:
                return worker
            self._give_back(worker, healthy=False)

    def _start(self, python: Path) -> Worker:
        scratch = self.folder if self._own else None
        folder = self.fresh_folder("worker")
        own = {name: str(folder) for name in ("TMPDIR", "TMP", "TEMP")}  # what tools leave behind goes with the worker
        worker = Worker(python, folder, environment() | own, scratch=scratch)
        with self._lock:
            if not self._closed:
                self._workers.add(worker)
                return worker
        worker.close()
        raise InternalError("the worker pool is closed")

    def _give_back(self, worker: Worker, *, healthy: bool) -> None:
        with self._lock:
            keep = healthy and worker.jobs < self.max_jobs and not self._closed
            if keep:
                self._idle.setdefault(worker.python, []).append(worker)
        if not keep:
            worker.close()
            with self._lock:
                self._workers.discard(worker)
            self.release(worker.folder)

    def _check_open(self) -> None:
        if self._closed:
            raise InternalError("the worker pool is closed")

    def close(self) -> None:
        """End every worker and remove the pool's folder if it is ours. A job that still runs raises InternalError."""
        with self._lock:
            self._closed = True
            idle = [worker for workers in self._idle.values() for worker in workers]
            self._idle.clear()
        for worker in idle:
            worker.close()
        self._finish()


_FATAL = (Kind.CRASHED, Kind.TIMED_OUT, Kind.OUT_OF_MEMORY)


def _finish(workers: set[Worker], folder: Path | None, owner: int) -> None:
    if (
        os.getpid() != owner
    ):  # a copy of the parent that somebody forked: neither the workers nor the folder are its own
        return
    for worker in list(workers):
        worker.kill()
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _encoded(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    (folder / RESULTS).mkdir()
    (folder / "arguments").mkdir()
    try:
        encoded: dict[str, Any] = wire.encode(dict(arguments), wire.ArrayStore(str(folder / "arguments"), share=True))
    except OSError as error:
        raise UsageError(
            f"the inputs of a job cannot be written to {folder.parent} ({error.strerror}); make room there or set TMPDIR"
        ) from error
    return encoded


def environment() -> dict[str, str]:
    """The variables of a worker: the caller's, less what would leak packages or devices, plus what keeps tools quiet and offline."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "CONDA"))}
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Threads that wait for each other by spinning starve each other when other processes use the cores too: on
        # two busy cores a ResNet-18 in PyTorch took eight times as long, for six times the processor time.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return kept | {key: value for key, value in quiet.items() if key not in os.environ}
