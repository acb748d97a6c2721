"""How the fake framework misbehaves on demand: what a tool can do to its process, to a result, to a converted model, to a file.

A behaviour is asked for by name, with a number or word after a colon where it takes one: "slow:0.5", "perturb:3".
Standard library and NumPy only. Everything here runs in a worker.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import BadModel, InvalidOutput, Unsupported

CHUNK = 2**24
"""Bytes that a memory hog takes at a time: small enough for the watch on resident memory to see it grow."""
_kept: list[Any] = []


def _sleep_for_ever(_: str) -> None:
    while True:
        time.sleep(3600)


def _hang_with_lock(_: str) -> None:
    """Hang in native code with the interpreter's lock held: no Python thread of this process runs any more."""
    ctypes.PyDLL(None).sleep(3600)


def _child(action: Callable[[], None], new_session: bool) -> None:
    if os.fork() == 0:
        if new_session:
            os.setsid()
        action()
        os._exit(0)


def _hang_with_family(_: str) -> None:
    """Hang together with one child in this process group, one in a session of its own, and an orphan of each kind."""

    def leave_an_orphan() -> None:
        _child(lambda: _sleep_for_ever(""), False)

    for new_session in (False, True):
        _child(lambda: _sleep_for_ever(""), new_session)
        _child(leave_an_orphan, new_session)
    _sleep_for_ever("")


def _leave_family(_: str) -> None:
    """Leave a sleeping child that holds every descriptor of this process open, in a session of its own."""
    _child(lambda: _sleep_for_ever(""), True)


def _crash(_: str) -> None:
    ctypes.string_at(0)


def _crash_with_family(_: str) -> None:
    _leave_family("")
    _crash("")


def _hog(size: str) -> None:
    """Take memory until `size` bytes are reached and written to, then give up and keep it."""
    _kept.extend(np.ones(CHUNK, np.uint8) for _ in range(int(float(size or 2**33) / CHUNK)))


def _hog_at_once(size: str) -> None:
    _kept.append(np.ones(int(float(size or 2**33)), np.uint8))


def _hog_in_family(size: str) -> None:
    """Let four children take a quarter of `size` each; each alone stays under its limit."""

    def take() -> None:
        _hog(str(float(size or 2**33) / 4))
        _sleep_for_ever("")

    for _ in range(4):
        _child(take, False)
    _sleep_for_ever("")


def _abort_for_memory(_: str) -> None:
    """Die as C++ does when nobody catches its exception."""
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n")
    os.abort()


def _crash_after(delay: str) -> None:
    timer = threading.Timer(float(delay or 0.2), os.abort)
    timer.daemon = True
    timer.start()


def _noise(_: str) -> None:
    print("noise on stdout", flush=True)
    print("noise on stderr", file=sys.stderr)
    os.write(1, b'{"value":"a lie","emitted":{},"seconds":0,"versions":{}}\n')
    os.write(2, bytes(range(256)) * 16)


def _corrupt_reply(text: str) -> None:
    """Write into the pipe that replies go through, as a tool that mistakes a descriptor does."""
    os.write(int(sys.argv[2]), (text or "not JSON").encode() + b"\n")


def _refuse(error: type[BaseException], message: str) -> Callable[[str], None]:
    def behaviour(text: str) -> None:
        raise error(text or message)

    return behaviour


def _missing_package(_: str) -> None:
    __import__("trueport_no_such_package")


def _exit_at_once(code: str) -> None:
    os._exit(int(code or 3))


def _return_twice(_: str) -> None:
    os.fork()


def _close_everything(_: str) -> None:
    os.closerange(3, 256)


PROCESS: dict[str, Callable[[str], None]] = {
    "crash": _crash,
    "crash-with-family": _crash_with_family,
    "abort": lambda _: os.abort(),
    "killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "exit": _exit_at_once,
    "sys-exit": _refuse(SystemExit, "1"),
    "raise": _refuse(ValueError, "the tool raised on demand"),
    "interrupt": _refuse(KeyboardInterrupt, "the tool was interrupted on demand"),
    "unsupported": _refuse(Unsupported, "the fake tool does not do this"),
    "invalid-output": _refuse(InvalidOutput, "the fake tool says that its output is unusable"),
    "bad-model": _refuse(BadModel, "the fake tool says that the file is damaged"),
    "memory-error": _refuse(MemoryError, "on demand"),
    "missing-package": _missing_package,
    "hang": _sleep_for_ever,
    "hang-with-lock": _hang_with_lock,
    "hang-with-family": _hang_with_family,
    "leave-family": _leave_family,
    "hog": _hog,
    "hog-at-once": _hog_at_once,
    "hog-in-family": _hog_in_family,
    "abort-for-memory": _abort_for_memory,
    "leak": lambda size: _kept.append(np.ones(int(float(size or 2**20)), np.uint8)),
    "noise": _noise,
    "slow": lambda seconds: time.sleep(float(seconds or 1.0)),
    "crash-after": _crash_after,
    "corrupt-reply": _corrupt_reply,
    "return-twice": _return_twice,
    "close-everything": _close_everything,
}
"""What a tool can do to its process, before it works. Of these, "slow", "noise" and "leak" let the job succeed."""


def _first(model: dict[str, Any]) -> np.ndarray:
    """The first weight matrix as a float32 copy that `_put` stores back."""
    return np.array(model["constants"][_first_name(model)]["data"], np.float32)


def _first_name(model: dict[str, Any]) -> str:
    constants: dict[str, dict[str, Any]] = model["constants"]
    return next(name for name, item in constants.items() if len(item["shape"]) == 2)


def _put(model: dict[str, Any], array: np.ndarray) -> None:
    model["constants"][_first_name(model)]["data"] = array.tolist()


def _perturb_weight(model: dict[str, Any], percent: str) -> None:
    array = _first(model)
    array.flat[np.abs(array).argmax()] *= 1.0 + float(percent or 10.0) / 100.0
    _put(model, array)


def _nan_weight(model: dict[str, Any], _: str) -> None:
    array = _first(model)
    array.flat[0] = np.nan
    _put(model, array)


def _drop_model_output(model: dict[str, Any], _: str) -> None:
    model["outputs"].pop()


def _add_model_output(model: dict[str, Any], _: str) -> None:
    last = model["outputs"][-1]
    _append(model, "Identity", last["name"], "extra")
    model["outputs"].append(dict(last, name="extra"))


def _rename_model_outputs(model: dict[str, Any], _: str) -> None:
    for index, output in enumerate(model["outputs"]):
        _append(model, "Identity", output["name"], f"renamed_{index}")
        output["name"] = f"renamed_{index}"


def _rename_model_inputs(model: dict[str, Any], _: str) -> None:
    for index, item in enumerate(model["inputs"]):
        old, item["name"] = item["name"], f"given_{index}"
        model["nodes"].insert(0, _node("Identity", [item["name"]], old))


def _swap_model_outputs(model: dict[str, Any], _: str) -> None:
    """Exchange the values behind the first two output names."""
    first, second = model["outputs"][0]["name"], model["outputs"][1]["name"]
    new = {first: second, second: first}
    for node in model["nodes"]:
        node["inputs"] = [new.get(name, name) for name in node["inputs"]]
        node["outputs"] = [new.get(name, name) for name in node["outputs"]]


def _double_model_outputs(model: dict[str, Any], _: str) -> None:
    for output in model["outputs"]:
        inner = output["name"] + "_single"
        for node in model["nodes"]:
            node["inputs"] = [inner if name == output["name"] else name for name in node["inputs"]]
            node["outputs"] = [inner if name == output["name"] else name for name in node["outputs"]]
        _append(model, "Cast", inner, output["name"], to="float64")
        output["dtype"] = "float64"


def _drop_activation(model: dict[str, Any], _: str) -> None:
    next(node for node in model["nodes"] if node["op"] == "Relu")["op"] = "Identity"


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> dict[str, Any]:
    return {"name": f"{op}_{output}", "op": op, "inputs": inputs, "outputs": [output], "attributes": attributes}


def _append(model: dict[str, Any], op: str, value: str, output: str, **attributes: Any) -> None:
    model["nodes"].append(_node(op, [value], output, **attributes))


def _then(model: dict[str, Any], where_what: str) -> None:
    """Make the converted model misbehave: "then:run=crash"."""
    function, _, behaviour = where_what.partition("=")
    model.setdefault("faults", {}).setdefault(function, []).append(behaviour)


MODEL: dict[str, Callable[[dict[str, Any], str], None]] = {
    "perturb": _perturb_weight,
    "nan": _nan_weight,
    "drop-output": _drop_model_output,
    "extra-output": _add_model_output,
    "rename-outputs": _rename_model_outputs,
    "rename-inputs": _rename_model_inputs,
    "swap-outputs": _swap_model_outputs,
    "reorder-outputs": lambda model, _: model["outputs"].reverse(),
    "dtype": _double_model_outputs,
    "drop-activation": _drop_activation,
    "then": _then,
}
"""What a converter can do to the model while it reports success. "perturb:P" makes the largest weight P % larger."""

Results = dict[str, Any]


def _swap_results(results: Results, _: str) -> Results:
    first, second, *rest = results
    return {first: results[second], second: results[first], **{name: results[name] for name in rest}}


def _each(change: Callable[[np.ndarray, str], np.ndarray]) -> Callable[[Results, str], Results]:
    def behaviour(results: Results, value: str) -> Results:
        return {
            name: [change(one, value) for one in item] if isinstance(item, list) else change(item, value)
            for name, item in results.items()
        }

    return behaviour


def _with_nan(array: np.ndarray, _: str) -> np.ndarray:
    array = np.array(array)
    array.flat[-1] = np.nan
    return array


def _with_noise(array: np.ndarray, percent: str) -> np.ndarray:
    noise = np.random.default_rng(int.from_bytes(os.urandom(8), "little")).standard_normal(array.shape)
    return (array * (1.0 + float(percent or 10.0) / 100.0 * noise)).astype(array.dtype)


RESULT: dict[str, Callable[[Results, str], Results]] = {
    "perturb": _each(lambda array, percent: array * array.dtype.type(1.0 + float(percent or 10.0) / 100.0)),
    "nan": _each(_with_nan),
    "random": _each(_with_noise),
    "dtype": _each(lambda array, _: array.astype(np.float64)),
    "shape": _each(lambda array, _: array[..., None]),
    "drop-output": lambda results, _: dict(list(results.items())[:-1]),
    "extra-output": lambda results, _: {**results, "extra": next(iter(results.values()))},
    "rename-outputs": lambda results, _: {f"renamed_{index}": item for index, item in enumerate(results.values())},
    "swap-outputs": _swap_results,
}
"""What a runtime can do to its results, whatever the signature promises."""


KERNEL = ("wrong-kernel", "wrong-fusion")
"""What the default kernels can get wrong: "wrong-kernel:NODE" adds one to all that a node computes, "wrong-fusion:NODE"
does so unless what the node reads is put in from outside or shown. Kernels of other variants, and those of a trace, are right."""


def wrong_kernels(asked: Sequence[str], variant: str) -> dict[str, str]:
    """Return node name -> behaviour of the kernels of this variant."""
    if variant != "default":
        return {}
    return {value: name for name, value in _split(asked) if name in KERNEL}


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


FILE: dict[str, Callable[[str, Path], None]] = {
    "half-written": lambda text, path: _write(text[: len(text) // 2], path),
    "empty": lambda text, path: _write("", path),
    "nothing": lambda text, path: None,
    "garbage": lambda text, path: _write("\x00\x01\x02 not a model" * 64, path),
    "folder": lambda text, path: path.mkdir(),
}
"""What a converter can leave on disk while it reports success."""


def act(asked: Sequence[str]) -> None:
    """Do to this process what is asked for."""
    for name, value in _split(asked):
        if name in PROCESS:
            PROCESS[name](value)


def change_results(results: Results, asked: Sequence[str]) -> Results:
    """Return the results as the behaviours leave them."""
    for name, value in _split(asked):
        if name in RESULT:
            results = RESULT[name](results, value)
    return results


def change_model(model: dict[str, Any], asked: Sequence[str]) -> dict[str, Any]:
    """Return a changed copy of the model."""
    changed: dict[str, Any] = json.loads(json.dumps(model))
    for name, value in _split(asked):
        if name in MODEL:
            MODEL[name](changed, value)
    return changed


def write(text: str, path: Path, asked: Sequence[str]) -> None:
    """Write a converted file, or what the behaviours leave of it."""
    for name, _ in _split(asked):
        if name in FILE:
            FILE[name](text, path)
            return
    _write(text, path)


def check(asked: Sequence[str]) -> None:
    """Raise BadModel for a behaviour that does not exist: a misspelt fault would be a test that cannot fail."""
    for name, _ in _split(asked):
        if name not in {**PROCESS, **MODEL, **RESULT, **FILE, **dict.fromkeys(KERNEL)}:
            raise BadModel(f"the fake framework has no behaviour '{name}'")


def _split(asked: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (item.partition(":") for item in asked)]
