"""The child's main loop: one job at a time, from a pipe, with standard library and NumPy only.

Started as `python -I child.py PACKAGE_FOLDER PIPE LIFELINE SCRATCH`. The package `trueport` is made importable as a bare
namespace over its own folder: neither the parent's site-packages nor `trueport/__init__.py` is ever on the path, so
the environment holds exactly what its lock says. Replies go over the pipe; whatever a framework prints goes to a log,
because the parent started this process with descriptors 1 and 2 on it.

Each request is answered by two lines: `{"accepted": number}` before the job and the reply after it. A worker that dies
before the first has not touched the job, so the parent may give it to another.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import sys
import time
import traceback
import types
from pathlib import Path
from typing import Any, BinaryIO


def main() -> None:
    """Serve jobs until the parent closes the pipe."""
    package, descriptor, lifeline, scratch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    os.set_inheritable(descriptor, False)
    _guard(descriptor, lifeline, scratch)
    faulthandler.enable()
    _install_namespace(package)

    from trueport.worker import wire

    own = os.getpid()
    with os.fdopen(os.dup(descriptor), "rb") as requests, os.fdopen(descriptor, "wb", buffering=0) as replies:
        for line in requests:
            request = wire.loads(line)
            _send(replies, wire.dumps({"accepted": request["number"]}))
            reply = dict(_serve(request), number=request["number"])
            if os.getpid() != own:  # a copy that the tool forked and that came back up the stack: it must not answer
                os._exit(1)
            with contextlib.suppress(Exception):  # the tool may have closed or replaced them
                sys.stdout.flush()
                sys.stderr.flush()
            _send(replies, wire.dumps(reply))


def _send(pipe: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[pipe.write(view) :]


def _install_namespace(package: str) -> None:
    module = types.ModuleType("trueport")
    module.__path__ = [package]
    sys.modules["trueport"] = module


def _guard(descriptor: int, lifeline: int, scratch: str) -> None:
    """Fork a guard that ends this process group, and descendants that left it, when the parent has gone.

    It then removes the folder `scratch` (unless that is ""), which nobody can use any more.

    A process and not a thread: a tool that holds the interpreter's lock for minutes would hold up a thread as well.
    The parent's end of the lifeline is closed by the system however the parent ends.
    """
    if not hasattr(os, "fork"):
        os.close(lifeline)
        return
    os.set_inheritable(lifeline, False)
    if os.fork():
        os.close(lifeline)
        return
    os.close(descriptor)
    os.read(lifeline, 1)  # nothing is ever written: this returns when the other end is closed
    _end_family(scratch)


def _end_family(scratch: str) -> None:
    import shutil
    import signal

    mark = b"TRUEPORT_WORKER=" + os.environb.get(b"TRUEPORT_WORKER", b"")
    for environ in Path("/proc").glob("[0-9]*/environ"):  # Linux; elsewhere the group is all that can be found
        process = int(environ.parent.name)
        with contextlib.suppress(OSError):
            if process != os.getpid() and mark in environ.read_bytes().split(b"\0"):
                os.kill(process, signal.SIGKILL)
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    """Run one job and return its reply; an exception of the tool is a reply, not the end of the worker."""
    started = time.perf_counter()
    emitted: dict[str, Any] = {}
    try:
        try:
            _limit_memory(request.get("memory"))
            value = _run(request, emitted)
        finally:
            _limit_memory(None)  # first of all: to describe an error takes memory too
    except BaseException as error:  # noqa: BLE001 -- the process boundary; SystemExit of a tool is its failure, not our end
        return _error_reply(error, limited=request.get("memory") is not None)
    return {"value": value, "emitted": emitted, "seconds": time.perf_counter() - started, "versions": _versions()}


def _run(request: dict[str, Any], emitted: dict[str, Any]) -> Any:
    from trueport.worker import wire

    store = wire.ArrayStore(request["folder"])
    for folder in request.get("paths", ()):
        if folder not in sys.path:
            sys.path.append(folder)
    function = getattr(importlib.import_module(request["module"]), request["function"])
    arguments = wire.decode(request["arguments"])
    if request.get("emit"):

        def emit(name: str, array: Any) -> None:
            emitted[name] = {"$npy": store.put(array)}

        arguments["emit"] = emit
    return wire.encode(function(**arguments), store)


_KINDS = {
    "Unsupported": "unsupported",
    "NotImplementedError": "unsupported",
    "InvalidOutput": "invalid-output",
    "Untrusted": "untrusted",
    "BadModel": "bad-model",
    "ModuleNotFoundError": "unavailable",
    "MemoryError": "out-of-memory",
}
_MEMORY_WORDS = (
    "bad_alloc",
    "out of memory",
    "cannot allocate memory",
    "can't allocate memory",
    "failed to allocate",
    "unable to allocate",
    "oom when allocating",
    "resourceexhausted",
    "can't start new thread",
    "failed to map segment",
    "cannot map zero-fill pages",
)


_LIMITED_WORDS = ("alloc failed", "error return without exception set")
"""What protobuf, and C code of an extension, make of a malloc that gave nothing: believed only under a limit."""


def _error_reply(error: BaseException, *, limited: bool) -> dict[str, Any]:
    names = [cls.__name__ for cls in type(error).__mro__]
    kind = next((_KINDS[name] for name in names if name in _KINDS), "raised")
    reply = {"error": kind, "type": type(error).__name__, "message": "(the exception cannot be printed)"}
    with contextlib.suppress(Exception):
        reply["message"] = str(error)
    text = f"{reply['type']} {reply['message']}".lower()
    words = _MEMORY_WORDS + _LIMITED_WORDS if limited else _MEMORY_WORDS
    if kind == "raised" and any(word in text for word in words):
        reply["error"] = "out-of-memory"
    reply["traceback"] = ""
    with contextlib.suppress(Exception):
        reply["traceback"] = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return reply


def _limit_memory(extra: float | None) -> None:
    """Allow `extra` bytes of private writable memory beyond what this process has now; None lifts the limit.

    RLIMIT_DATA where the system tells how much of it is in use (Linux): unlike RLIMIT_AS it leaves out memory-mapped
    model files, read-only code, and the 64 MiB that the C library reserves, unused, for every thread.
    """
    try:
        import resource
    except ImportError:  # Windows: the parent's watch on resident memory is the only limit
        return
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = hard
    if extra is not None:
        used = _private_memory()
        if used is None:
            return
        soft = used + int(extra)
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _private_memory() -> int | None:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData:")), None)


_PACKAGES = (
    "numpy",
    "torch",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "tf_keras",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnx-ir",
    "tf2onnx",
    "onnx2tf",
    "onnx2torch",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "onnxsim",
    "onnxslim",
    "onnxoptimizer",
    "openvino",
    "jax",
    "protobuf",
)
_found_versions: dict[str, str] = {}


def _versions() -> dict[str, str]:
    """Versions of the packages that matter in this environment, read once."""
    if not _found_versions:
        from importlib import metadata

        _found_versions["python"] = ".".join(map(str, sys.version_info[:3]))
        for name in _PACKAGES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                _found_versions[name] = metadata.version(name)
    return _found_versions


if __name__ == "__main__":
    main()
