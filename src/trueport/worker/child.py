"""The child's main loop: one job at a time, from a pipe, with standard library and NumPy only.

Started as `python -I child.py PACKAGE_FOLDER FD LOGFILE`. The package `trueport` is made importable as a bare
namespace over its own folder: neither the parent's site-packages nor `trueport/__init__.py` is ever on the path, so
the environment holds exactly what its lock says. Replies go over the pipe; whatever a framework prints goes to
LOGFILE, because descriptors 1 and 2 point there before any framework is imported.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import sys
import threading
import time
import traceback
import types
from typing import Any


def main() -> None:
    """Serve jobs until the parent closes the pipe."""
    package, descriptor, logfile = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    os.set_inheritable(descriptor, False)
    _redirect_output(logfile)
    faulthandler.enable()
    _install_namespace(package)
    _watch_parent(os.getppid())

    from multiprocessing.connection import Connection

    from trueport.worker import wire

    with Connection(descriptor) as pipe:
        while True:
            try:
                request = wire.loads(pipe.recv_bytes())
            except EOFError:
                return
            reply = _serve(request)
            sys.stdout.flush()
            sys.stderr.flush()
            pipe.send_bytes(wire.dumps(reply))
            if request.get("after_reply") == "crash":  # the fault battery asks for it
                os.abort()


def _redirect_output(logfile: str) -> None:
    log = os.open(logfile, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(null)


def _install_namespace(package: str) -> None:
    module = types.ModuleType("trueport")
    module.__path__ = [package]
    sys.modules["trueport"] = module


def _watch_parent(parent: int) -> None:
    """End this process group when the parent has gone, even in the middle of a job."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        import signal

        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    """Run one job and return its reply; an exception of the tool is a reply, not the end of the worker."""
    from trueport.worker import wire

    store = wire.ArrayStore(request["folder"])
    started = time.perf_counter()
    emitted: dict[str, Any] = {}
    try:
        _limit_memory(request.get("memory"))
        for folder in request.get("paths", ()):
            if folder not in sys.path:
                sys.path.append(folder)
        function = getattr(importlib.import_module(request["module"]), request["function"])
        arguments = wire.decode(request["arguments"])
        if request.get("emit"):

            def emit(name: str, array: Any) -> None:
                emitted[name] = {"$npy": store.put(array)}

            arguments["emit"] = emit
        value = wire.encode(function(**arguments), store)
    except MemoryError:
        return {"error": "out-of-memory", "message": "the memory limit was hit", "traceback": traceback.format_exc()}
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return _error_reply(error)
    finally:
        _limit_memory(None)
    return {"value": value, "emitted": emitted, "seconds": time.perf_counter() - started, "versions": _versions()}


_KINDS = {
    "Unsupported": "unsupported",
    "NotImplementedError": "unsupported",
    "InvalidOutput": "invalid-output",
    "Untrusted": "untrusted",
    "BadModel": "bad-model",
    "ModuleNotFoundError": "unavailable",
}
_MEMORY_WORDS = (
    "bad_alloc",
    "out of memory",
    "cannot allocate memory",
    "failed to allocate",
    "oom when allocating",
    "resourceexhausted",
)


def _error_reply(error: BaseException) -> dict[str, Any]:
    names = [cls.__name__ for cls in type(error).__mro__]
    kind = next((_KINDS[name] for name in names if name in _KINDS), "raised")
    text = f"{type(error).__name__} {error}".lower()
    if kind == "raised" and any(word in text for word in _MEMORY_WORDS):
        kind = "out-of-memory"
    with contextlib.suppress(Exception):
        return {
            "error": kind,
            "type": type(error).__name__,
            "message": str(error),
            "traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        }
    return {
        "error": kind,
        "type": type(error).__name__,
        "message": "(the exception cannot be printed)",
        "traceback": "",
    }


def _limit_memory(extra: float | None) -> None:
    """Allow `extra` bytes of address space beyond what is mapped now; None lifts the limit."""
    try:
        import resource
    except ImportError:  # Windows: the parent's watch on resident memory is the only limit
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = hard
    if extra is not None:
        soft = _address_space() + int(extra)
        soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123 -- the address space, in pages
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


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
