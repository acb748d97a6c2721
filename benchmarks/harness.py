"""How a ratio is measured: A and B in turn, in one run, several times; the median of the pairs' ratios and their spread."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from trueport.outcome import Failure
from trueport.session import Session
from trueport.worker.pool import environment

PLAIN = Path(__file__).with_name("plain.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. bound None: printed for information. `values`: one per repeat, in `unit`."""

    name: str
    values: tuple[float, ...]
    bound: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        """The figure that the bound holds for."""
        return statistics.median(self.values)

    @property
    def missed(self) -> bool:
        """Whether there is a bound and the median is above it."""
        return self.bound is not None and not self.median <= self.bound

    def text(self) -> str:
        """The line as it is printed."""
        spread = f"{min(self.values):.3g}..{max(self.values):.3g}" if len(self.values) > 1 else "one run"
        bound = "" if self.bound is None else f"<= {self.bound:g}{self.unit}"
        mark = "" if self.bound is None else "MISSED" if self.missed else "ok"
        return f"{self.name:<82} {self.median:>7.3g}{self.unit:<3} {f'({spread})':<16} {bound:<10} {mark:<6} {self.note}".rstrip()


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call took: seconds on the clock, and of processor time in this process and its children."""

    wall: float
    cpu: float


def cost(work: Callable[[], Any]) -> Cost:
    """Measure a call of ours. Its children are the workers; plain scripts do not run meanwhile."""
    before, started = _processor_seconds(), time.perf_counter()
    work()
    wall, after = time.perf_counter() - started, _processor_seconds()
    return Cost(wall, sum(after.values()) - sum(before.get(process, 0.0) for process in after))


def _processor_seconds() -> dict[int, float]:
    found = {}
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.Error):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


Pairs = Sequence[tuple[Cost, Cost]]


def pairs_of(ours: Callable[[], Cost], floor: Callable[[], Cost], repeats: int) -> list[tuple[Cost, Cost]]:
    """(ours, the floor) per repeat. They take turns in going first, so that a machine that warms up or is used by
    others favours neither."""
    found = []
    for number in range(repeats):
        if number % 2:
            below = floor()
            found.append((ours(), below))
        else:
            above = ours()
            found.append((above, floor()))
    return found


def row(name: str, pairs: Pairs, *, bound: float | None = None, note: str = "") -> Row:
    """The ratios of the pairs on the clock. The note has the median seconds of both sides and the ratio of processor
    time, which other programs on the machine disturb less."""
    ours = statistics.median(pair[0].wall for pair in pairs)
    floor = statistics.median(pair[1].wall for pair in pairs)
    processor = statistics.median(pair[0].cpu / pair[1].cpu for pair in pairs)
    said = f"{ours:.2f} s / {floor:.2f} s; in processor time {processor:.2f}{'; ' + note if note else ''}"
    return Row(name=name, values=tuple(pair[0].wall / pair[1].wall for pair in pairs), bound=bound, note=said)


def seconds(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def python_of(session: Session, toolchain: str) -> Path:
    """The interpreter of a toolchain. Ends the benchmark when it cannot be had."""
    found = session.environment(toolchain)
    if isinstance(found, Failure):
        raise SystemExit(f"the toolchain {toolchain} cannot be had: {found.message}")
    return found.value.python


class Plain:
    """A plain script in a toolchain's interpreter, with the variables that our workers have."""

    def __init__(self, python: Path) -> None:
        self.process = subprocess.Popen(
            [str(python), "-I", str(PLAIN)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            text=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.replies = self.process.stdin, self.process.stdout

    def __call__(self, do: str, **arguments: Any) -> Mapping[str, Any]:
        """Run one function of plain.py. Raises RuntimeError when the script dies."""
        self.requests.write(json.dumps({"do": do, **arguments}) + "\n")
        self.requests.flush()
        line = self.replies.readline()
        if not line:
            raise RuntimeError(f"plain.py died in {do}")
        reply: Mapping[str, Any] = json.loads(line)
        return reply

    def cost(self, do: str, **arguments: Any) -> Cost:
        """Run one function of plain.py and return what it took by the script's own clocks."""
        reply = self(do, **arguments)
        return Cost(float(reply["seconds"]), float(reply["cpu"]))

    def close(self) -> None:
        """End the script."""
        self.requests.close()
        self.process.wait()
        self.replies.close()


@contextmanager
def plain(python: Path) -> Iterator[Plain]:
    """A plain script that ends with the block."""
    script = Plain(python)
    try:
        yield script
    finally:
        script.close()


def images(count: int, size: int, *, seed: int = 0) -> np.ndarray:
    """[count, size, size, 3] float32 in -1..1: smooth random fields at three scales, as pictures have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((count, size, size, 3))
    for cells in (4, 16, 56):
        coarse = rng.normal(size=(count, cells, cells, 3)) / cells**0.5
        places = np.minimum(np.arange(size) * cells // size, cells - 1)
        total += coarse[:, places][:, :, places]
    return np.asarray(total / np.abs(total).max(), dtype=np.float32)


@dataclass(slots=True)
class Recorder:
    """Notes every `run` that a session asks of a worker, so that a plain script can make the same passes."""

    session: Session
    folder: Path
    requests: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record while the block lasts."""
        pool = self.session.pool
        original = pool.call

        def call(python: Path, module: str, function: str, arguments: Mapping[str, Any], **rest: Any) -> Any:
            if function == "run":
                self._note(module.rpartition(".")[2], arguments)
            return original(python, module, function, arguments, **rest)

        pool.call = call  # type: ignore[method-assign]
        try:
            yield
        finally:
            del pool.call  # type: ignore[method-assign]

    def _note(self, framework: str, arguments: Mapping[str, Any]) -> None:
        noted = self.requests.setdefault(framework, [])
        cases = {}
        for case, inputs in arguments["cases"].items():
            cases[case] = {}
            for name, array in inputs.items():
                path = self.folder / f"{framework}-{len(noted)}-{case}-{len(cases[case])}.npy"
                np.save(path, array)
                cases[case][name] = str(path)
        noted.append({"precision": arguments["precision"], "variant": arguments["variant"], "cases": cases})

    def count(self, framework: str) -> tuple[int, int]:
        """(calls, samples) that were asked for."""
        shapes = [
            np.load(next(iter(inputs.values())), mmap_mode="r").shape
            for request in self.requests.get(framework, [])
            for inputs in request["cases"].values()
        ]
        return sum(shape[0] for shape in shapes), sum(shape[0] * shape[1] for shape in shapes)
