"""Speed: conversion and verification against plain scripts in the same environments, second call against first, start.

Every ratio is measured in one run, A and B in turn (see harness). The plain scripts are in plain.py: they keep their
process and imports, so that nothing of a start is in the floor. A conversion goes from file to file, so its floor reads the
file, makes the converter's own call, and writes the result; the call alone, on a model that is loaded already, is shown
beside it.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from harness import Cost, Plain, Recorder, Row, cost, images, pairs_of, plain, python_of, row, seconds

from trueport import convert, verify
from trueport.compare.types import Verdict
from trueport.session import Session

CONVERT_BOUND = 1.15
VERIFY_BOUND = 1.3
SECOND_BOUND = 0.3
IMPORT_BOUND = 0.3
"""Seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """One conversion to time: `floor` names the function of plain.py that makes the converter's own call."""

    title: str
    model: str
    to: str
    suffix: str
    route: str
    toolchain: str
    floor: str


CONVERSIONS = (
    Conversion(
        title="MobileNetV2, Keras -> TFLite",
        model="mobilenet.keras",
        to="tflite",
        suffix=".tflite",
        route="tflite-keras",
        toolchain="tensorflow",
        floor="tflite_keras",
    ),
    Conversion(
        title="MobileNetV2, Keras -> ONNX (tf2onnx)",
        model="mobilenet.keras",
        to="onnx",
        suffix=".onnx",
        route="tf2onnx-keras",
        toolchain="tensorflow",
        floor="tf2onnx_keras",
    ),
    Conversion(
        title="ResNet-18, PyTorch -> ONNX (dynamo)",
        model="resnet18.pt2",
        to="onnx",
        suffix=".onnx",
        route="torch-dynamo",
        toolchain="torch",
        floor="torch_dynamo",
    ),
)


@dataclass(slots=True)
class Bench:
    """A folder with the models, and the plain scripts that are running."""

    folder: Path
    repeats: int
    scripts: dict[str, Plain] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def script(self, session: Session, toolchain: str) -> Plain:
        """The plain script of a toolchain, started at its first use."""
        if toolchain not in self.scripts:
            self.scripts[toolchain] = self.stack.enter_context(plain(python_of(session, toolchain)))
        return self.scripts[toolchain]

    def close(self) -> None:
        """End the scripts."""
        self.stack.close()
        self.scripts.clear()

    def model(self, session: Session, name: str, *, size: int = 224) -> Path:
        """Make one of the models, once."""
        path = self.folder / name
        if not path.exists():
            pictures = self.folder / f"statistics-{size}.npy"
            np.save(pictures, images(8, size, seed=9))
            if name.endswith(".pt2"):
                self.script(session, "torch")("make_torch", images=str(pictures), out=str(path))
            else:
                self.script(session, "tensorflow")(
                    "make_keras", name="MobileNetV2", size=size, images=str(pictures), out=str(path)
                )
        return path


@contextmanager
def bench(folder: Path, repeats: int) -> Iterator[Bench]:
    """A Bench whose scripts end with the block."""
    made = Bench(folder=folder, repeats=repeats)
    try:
        yield made
    finally:
        made.close()


def conversions(bench: Bench, cases: tuple[Conversion, ...] = CONVERSIONS, *, size: int = 224) -> Iterator[Row]:
    """Warm conversions (the second and later ones of a session) against the converter's call in a warm process."""
    for case in cases:
        with Session() as session:
            source = bench.model(session, case.model, size=size)
            script = bench.script(session, case.toolchain)
            ours, theirs = bench.folder / f"ours{case.suffix}", bench.folder / f"plain{case.suffix}"

            floor = functools.partial(script.cost, case.floor, source=str(source), out=str(theirs), load=True)
            call = functools.partial(script.cost, case.floor, source=str(source), out=str(theirs), load=False)
            bare = functools.partial(_convert, session, case, source, ours, check=False)
            whole = functools.partial(_convert, session, case, source, ours, check=True)
            bare()
            floor()
            call()
            pairs = pairs_of(functools.partial(cost, bare), floor, bench.repeats)
            yield row(f"convert --no-verify / load, convert, write: {case.title}", pairs, bound=CONVERT_BOUND)
            pairs = pairs_of(functools.partial(cost, bare), call, bench.repeats)
            yield row(f"convert --no-verify / the call on a loaded model: {case.title}", pairs)
            pairs = pairs_of(functools.partial(cost, whole), floor, 1)
            yield row(f"convert with verification / load, convert, write: {case.title}", pairs)
        bench.close()


def _convert(session: Session, case: Conversion, source: Path, out: Path, *, check: bool) -> None:
    done = convert(source, to=case.to, out=out, route=case.route, check=check, session=session)
    if done.output is None:
        failure = done.attempts[-1].failure
        raise SystemExit(f"{case.title}: {failure.message if failure else 'no result'}")
    if check and (done.verification is None or done.verification.verdict != Verdict.FAITHFUL):
        raise SystemExit(f"{case.title}: {done.verification.reason if done.verification else 'not verified'}")


def verification(bench: Bench, *, samples: int = 64, size: int = 224) -> Iterator[Row]:
    """`verify` in a session whose workers run, against loading both models and making the same forward passes.

    Both sides load from fresh copies of the files at every repeat: nothing that was loaded before is used again.
    """
    with Session() as session:
        source = bench.model(session, "mobilenet.keras", size=size)
        target = bench.folder / "plain.tflite"
        scripts = bench.script(session, "tensorflow"), bench.script(session, "litert")
        if not target.exists():
            scripts[0]("tflite_keras", source=str(source), out=str(target))
        pictures = images(samples, size, seed=1)
        recorder = Recorder(session, bench.folder)
        with recorder.recording():
            result = verify(source, target, inputs={"pictures": pictures}, session=session)
        if result.verdict != Verdict.FAITHFUL:
            raise SystemExit(f"the verification that was to be timed found: {result.reason}")
        fresh = _copies(bench.folder, source, target)

        def ours() -> Cost:
            one, other = next(fresh)
            return cost(lambda: verify(one, other, inputs={"pictures": pictures}, session=session))

        def floor() -> Cost:
            paths = next(fresh)
            sides = [
                script.cost(f"forward_{side}", source=str(path), requests=recorder.requests[side])
                for script, side, path in zip(scripts, ("keras", "tflite"), paths, strict=True)
            ]
            return Cost(sum(side.wall for side in sides), sum(side.cpu for side in sides))

        pairs = pairs_of(ours, floor, bench.repeats)
    left, right = recorder.count("keras"), recorder.count("tflite")
    note = (
        f"passes: source {len(recorder.requests['keras'])} kinds, {left[0]} calls, {left[1]} samples; "
        f"target {len(recorder.requests['tflite'])}, {right[0]}, {right[1]}"
    )
    yield row(f"verify MobileNetV2 on {samples} images / load + the same passes", pairs, bound=VERIFY_BOUND, note=note)
    bench.close()


def _copies(folder: Path, *paths: Path) -> Iterator[tuple[Path, ...]]:
    number = 0
    while True:
        number += 1
        made = tuple(folder / f"copy{number % 2}-{path.name}" for path in paths)
        for path, copy in zip(paths, made, strict=True):
            copy.unlink(missing_ok=True)
            shutil.copy(path, copy)
        yield made


def second_call(bench: Bench) -> Iterator[Row]:
    """The second `verify` of a session against its first, which starts the workers and loads the models."""
    with Session() as session:
        source = bench.model(session, "small.keras", size=32)
        target = bench.folder / "small.tflite"
        bench.script(session, "tensorflow")("tflite_keras", source=str(source), out=str(target))
    bench.close()
    pictures = images(8, 32, seed=2)
    pairs = []
    for _ in range(bench.repeats):
        with Session() as session:
            call = functools.partial(verify, source, target, inputs={"pictures": pictures}, session=session)
            first, again = cost(call), cost(call)
        pairs.append((again, first))
    yield row("second verify of a small model / the first, with cold workers", pairs, bound=SECOND_BOUND)


def start(repeats: int) -> Iterator[Row]:
    """What a process costs before it does anything."""
    for name, command, bound in (
        ("import trueport", [sys.executable, "-c", "import trueport"], IMPORT_BOUND),
        ("trueport --help", [sys.executable, "-c", "from trueport.cli import main; main()", "--help"], None),
        ("(python -c pass)", [sys.executable, "-c", "pass"], None),
    ):
        call = functools.partial(subprocess.run, command, check=True, capture_output=True)
        call()
        yield Row(name=name, values=tuple(seconds(call) for _ in range(max(5, repeats))), bound=bound, unit=" s")
