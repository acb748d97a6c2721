"""One worker process, seen from the parent: start it, give it one job at a time, watch it, end it and all it started.

A worker is one process group, and every process that it starts carries its mark in the environment, so descendants
that left the group are found too. The process is not reaped before its group has been ended: until then the system
cannot give its number to anybody else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from trueport.errors import BadModelError, UntrustedError
from trueport.outcome import Failure, Kind, Ok, Outcome, Stage
from trueport.worker import wire

PACKAGE = Path(__file__).resolve().parents[1]
MARK = "TRUEPORT_WORKER"
RESULTS = "results"
"""Folder inside a job's folder that takes its arrays."""
LOG_TAIL = 8000
"""Characters of a worker's output that a Failure keeps."""
LOG_LIMIT = 2**28
"""Bytes of output after which a log is emptied, so that a tool that prints without end does not fill the disk."""
REPLY_LIMIT = 2**30
"""Bytes of one line of JSON; arrays travel as files, so nothing sensible comes near."""
MEMORY_WORDS = (
    "bad_alloc",
    "memoryerror",
    "out of memory",
    "cannot allocate",
    "can't allocate",
    "failed to allocate",
    "unable to allocate",
    "resource temporarily unavailable",
    "pthread_create",
    "can't start new thread",
    "failed to map segment",
    "cannot map zero-fill pages",
)
"""What a process prints before it dies because an allocation, or the stack of a new thread, was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A job's result: its value, the arrays it emitted by name, and the versions in its environment.

    folder: where its arrays lie; `Pool.release(reply.folder)` frees the disk when none of them is needed any more.
    """

    value: Any
    emitted: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A call of `module.function(**arguments)`; `arguments` are encoded, results go into `folder`/results.

    memory: bytes beyond what the worker uses when the job begins, None for no limit. timeout: seconds.
    """

    module: str
    function: str
    arguments: Mapping[str, Any]
    folder: Path
    stage: Stage
    emit: bool
    timeout: float
    memory: float | None
    paths: Sequence[str]

    @property
    def results(self) -> Path:
        """Where the worker writes the arrays of its reply."""
        return self.folder / RESULTS

    def fail(self, kind: Kind, message: str, log: str) -> Failure:
        """Return the failure of this job."""
        return Failure(stage=self.stage, kind=kind, message=message, log=log)


class NotAcceptedError(Exception):
    """The worker died before it took up the job, so another may have it."""


class _LimitError(Exception):
    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Worker:
    """One child process in one environment, with `folder` as its working folder. `scratch`: removed if the parent is killed.

    Raises OSError when the interpreter cannot be started.
    """

    def __init__(self, python: Path, folder: Path, environ: Mapping[str, str], *, scratch: Path | None = None) -> None:
        self.python = python
        self.folder = folder
        self.jobs = 0
        self.ended = False
        self.log = folder / "log.txt"
        self._mark = secrets.token_hex(8)
        self._buffer = bytearray()
        self._ending = threading.Lock()
        ours, theirs = socket.socketpair()
        read_end, self._lifeline = os.pipe()
        try:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [
                        *(str(python), "-I", "-u", "-X", "utf8", str(PACKAGE / "worker" / "child.py")),
                        *(str(PACKAGE), str(theirs.fileno()), str(read_end), str(scratch or "")),
                    ],
                    pass_fds=(theirs.fileno(), read_end),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(environ) | {MARK: self._mark},
                    cwd=folder,
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(read_end)
        ours.setblocking(False)
        self._socket = ours

    @property
    def alive(self) -> bool:
        """Whether the process still runs. Does not reap it."""
        if self.ended or self.process.returncode is not None:
            return False
        try:
            return bool(psutil.Process(self.process.pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
        except psutil.Error:
            return False

    def run(self, job: Job) -> Outcome[Reply]:
        """Run one job to its end, whatever that is. After a Failure other than the tool's own error the worker is dead.

        Raises NotAcceptedError, and BadModelError or UntrustedError when the worker says that the file is at fault.
        """
        if self.jobs:
            self._empty_log()
        self.jobs += 1
        watch = _Watch(self, job)
        request = {
            "number": self.jobs,
            "module": job.module,
            "function": job.function,
            "arguments": job.arguments,
            "folder": str(job.results),
            "emit": job.emit,
            "memory": job.memory,
            "paths": list(job.paths),
        }
        try:
            self._start(wire.dumps(request), watch)
            line = self._line(watch)
        except _LimitError as limit:
            log = self._tail()
            self.kill()
            return job.fail(limit.kind, str(limit), log)
        except OSError:
            return self._dead(job)
        return self._read(line, job)

    def _start(self, request: bytes, watch: _Watch) -> None:
        """Hand over the request and wait until the worker says that it has it."""
        pending = memoryview(request)
        try:
            while pending:
                self._await(selectors.EVENT_WRITE, watch)
                pending = pending[self._socket.send(pending) :]
            line = self._line(watch)
        except OSError as error:
            raise NotAcceptedError(str(error)) from error
        if line != wire.dumps({"accepted": self.jobs}):
            raise _LimitError(
                Kind.INVALID_OUTPUT, "something wrote into the worker's reply pipe; the process was ended"
            )

    def _line(self, watch: _Watch) -> bytes:
        """Read up to the next newline. Raises ConnectionError when the worker dies first."""
        seen = 0
        while (end := self._buffer.find(b"\n", seen)) < 0:
            seen = len(self._buffer)
            if seen > REPLY_LIMIT:
                raise _LimitError(Kind.INVALID_OUTPUT, f"the worker's reply is longer than {REPLY_LIMIT} bytes")
            self._await(selectors.EVENT_READ, watch)
            block = self._socket.recv(1 << 20)
            if not block:
                raise ConnectionError("the worker closed its pipe")
            self._buffer += block
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        return line

    def _await(self, event: int, watch: _Watch) -> None:
        """Wait until the pipe is ready. A process that the tool forked may hold it open, so the end of file proves nothing."""
        watch.check()
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, event)
            while not selector.select(watch.pause()):
                if not self.alive and not selector.select(0):
                    raise ConnectionError("the worker died")
                watch.check()

    def _read(self, line: bytes, job: Job) -> Outcome[Reply]:
        log = self._tail()
        try:
            message = wire.loads(line)
            if message["number"] != self.jobs or self._buffer:
                raise ValueError("it does not answer this job")
            if "error" in message:
                return self._refusal(message, job, log)
            results = str(job.results)
            reply = Reply(
                value=wire.decode(message["value"], within=results),
                emitted=dict(wire.decode(message["emitted"], within=results)),
                seconds=float(message["seconds"]),
                versions=dict(message["versions"]),
                folder=job.folder,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.kill()
            return job.fail(Kind.INVALID_OUTPUT, f"the worker's reply cannot be read: {_first_line(str(error))}", log)
        return Ok(reply, reply.seconds)

    def _refusal(self, reply: Mapping[str, Any], job: Job, log: str) -> Failure:
        kind, name, text = reply["error"], str(reply.get("type", "")), str(reply["message"])
        if kind == "untrusted":
            raise UntrustedError(text)
        if kind == "bad-model":
            raise BadModelError(text)
        sentence = _first_line(text)
        if name not in ("Unsupported", "InvalidOutput"):  # our own words, which need no class name before them
            sentence = f"{name}: {sentence}" if sentence else name
        return job.fail(Kind(kind), sentence, f"{log}\n{reply.get('traceback', '')}".strip()[-LOG_TAIL:])

    def _dead(self, job: Job) -> Failure:
        log = self._tail()
        code = self.kill()
        how = _how_it_died(code)
        if any(word in log.lower() for word in MEMORY_WORDS):
            limit = "the machine's memory" if job.memory is None else f"the limit of {job.memory / 2**30:.3g} GiB"
            return job.fail(Kind.OUT_OF_MEMORY, f"{limit} was not enough: the process died with {how}", log)
        hint = ""
        if job.memory is not None:
            hint = f" under a memory limit of {job.memory / 2**30:.3g} GiB"
        elif code == -signal.SIGKILL:
            hint = ", which nobody here sent; the system does so when the machine runs out of memory"
        return job.fail(Kind.CRASHED, f"the process died with {how}{hint}", log)

    def startup_failure(self, stage: Stage) -> Failure:
        """Describe why a fresh worker died before it took up its first job; ends it."""
        log = self._tail()
        code = self.kill()
        last = log.splitlines()[-1].strip() if log else "it printed nothing"
        kind = Kind.CRASHED if code < 0 else Kind.UNAVAILABLE
        message = f"no worker can be started with {self.python} ({_how_it_died(code)}): {last[:400]}"
        return Failure(stage=stage, kind=kind, message=message, log=log)

    def _empty_log(self) -> None:
        with contextlib.suppress(OSError):  # the child appends, so it goes on writing at the new end
            os.truncate(self.log, 0)

    def trim_log(self) -> None:
        """Empty the log when it has grown beyond reason."""
        with contextlib.suppress(OSError):
            if self.log.stat().st_size > LOG_LIMIT:
                self._empty_log()

    def _tail(self) -> str:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
                return file.read(LOG_TAIL).decode("utf-8", "replace").replace("\0", "").strip()
        except OSError:
            return ""

    def memory(self) -> int:
        """Bytes of anonymous and shared memory that the worker and its descendants use, each page counted once."""
        total = 0
        with contextlib.suppress(psutil.Error):
            for one in (psutil.Process(self.process.pid), *self._children()):
                with contextlib.suppress(psutil.Error, OSError):
                    total += _anonymous(one)
        return total

    def _children(self) -> list[psutil.Process]:
        if self.process.returncode is None:  # not reaped, so the number is still its own
            with contextlib.suppress(psutil.Error):
                return list(psutil.Process(self.process.pid).children(recursive=True))
        return []

    def kill(self) -> int:
        """End the process group and every descendant that left it; returns the exit code when they are gone.

        Safe to call from several threads and more than once.
        """
        with self._ending:
            if not self.ended:
                children = self._children()  # before their parent goes, and with it the way to find them
                if self.process.returncode is None:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(self.process.pid, signal.SIGKILL)
                    self.process.wait()  # before anything else could reap it and lose its exit code
                _end(children)
                deadline = time.monotonic() + 5.0
                while (family := _marked(self._mark)) and time.monotonic() < deadline:
                    _end(family)
                    psutil.wait_procs(family, timeout=0.05)
                self.ended = True
            return int(self.process.returncode)

    def close(self) -> None:
        """End the worker and give back its descriptors. Only whoever runs its jobs may call this."""
        self.kill()
        self._socket.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


class _Watch:
    """The limits of one job. `pause` grows, so that a long job is looked at twice a second and a short one is not late."""

    def __init__(self, worker: Worker, job: Job) -> None:
        self._worker = worker
        self._job = job
        self._deadline = time.monotonic() + job.timeout
        self._pause = 0.05
        self._memory_pause = 0.1
        self._next_look = time.monotonic() + self._memory_pause
        self._base = 0 if job.memory is None else worker.memory()

    def pause(self) -> float:
        """Return how many seconds to wait before the next check."""
        self._pause = min(self._pause * 1.5, 0.5)
        return max(0.0, min(self._pause, self._deadline - time.monotonic()))

    def check(self) -> None:
        """Raise _LimitError when a limit is passed."""
        now = time.monotonic()
        if now > self._deadline:
            raise _LimitError(Kind.TIMED_OUT, f"no answer within {self._job.timeout:g} s; the process was ended")
        if now < self._next_look:
            return
        self._worker.trim_log()
        if self._job.memory is not None and self._worker.memory() - self._base > self._job.memory:
            size = f"{self._job.memory / 2**30:.3g} GiB"
            raise _LimitError(
                Kind.OUT_OF_MEMORY, f"more than the limit of {size} of memory in use; the process was ended"
            )
        self._memory_pause = min(self._memory_pause * 1.5, 2.0)
        self._next_look = time.monotonic() + self._memory_pause


def _anonymous(process: psutil.Process) -> int:
    """Bytes that this process uses and no file backs; a page shared by n processes counts 1/n. Resident size elsewhere."""
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    if not rollup.exists():
        return int(process.memory_info().rss)
    fields = dict(line.split(":", 1) for line in rollup.read_text(encoding="ascii").splitlines()[1:])
    if "Pss_Anon" not in fields:
        return int(process.memory_info().rss)
    return sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem")) * 1024


def _end(processes: Sequence[psutil.Process]) -> None:
    for one in processes:
        with contextlib.suppress(psutil.Error):  # psutil checks that the number still means the same process
            one.kill()


def _marked(mark: str) -> list[psutil.Process]:
    """Every live process whose environment carries this worker's mark."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _how_it_died(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _first_line(text: str) -> str:
    """The first line that says something; TensorFlow opens with "in user code:" and ends with what happened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[-1]}"[:400]
    return lines[0][:400] if lines else ""
