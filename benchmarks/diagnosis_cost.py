"""What a diagnosis of a full-size network costs: time against one forward pass of both models with all taps on, and memory.

A fault is planted into the converted ResNet-101 and InceptionV3 (random but well-scaled weights, native input size).
The floor, measured in the same run: both models traced once on the same inputs, with every value written out. Memory is
what this process and all its workers hold together, sampled while the diagnosis runs; the pages of mapped result files,
which the system can take back at any time, are told apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from harness import images, plain, python_of

from trueport import api, tracing, verification
from trueport.artifact import Artifact
from trueport.diagnosis.pair import trace_pair
from trueport.diagnosis.run import Request, diagnose
from trueport.errors import UsageError
from trueport.outcome import Failure
from trueport.session import Session, Settings
from trueport.testing import plant

BOUND_RATIO = 5.0
BOUND_BYTES = 4 * 2**30
MODELS = {"ResNet101": 224, "InceptionV3": 299}
SAMPLES = 4


def proportional() -> tuple[int, int]:
    """Bytes of this process and its descendants, shared pages divided among their users: (anonymous, all). Linux only."""
    anonymous = everything = 0
    own = psutil.Process()
    for process in (own, *own.children(recursive=True)):
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:
            continue
        lines = dict(line.split(":", 1) for line in text.splitlines()[1:])
        anonymous += int(lines["Pss_Anon"].split()[0]) * 1024
        everything += int(lines["Pss"].split()[0]) * 1024
    return anonymous, everything


class Watch:
    """Samples the memory of this process and its workers until it is left."""

    def __enter__(self) -> Watch:
        self.peak = self.mapped = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.2):
            anonymous, everything = proportional()
            self.peak, self.mapped = max(self.peak, anonymous), max(self.mapped, everything)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def prepared(folder: Path, name: str, size: int) -> tuple[Path, Path, Path]:
    """The Keras model, its TFLite twin, and pictures; made once per folder."""
    source, target, pictures = folder / f"{name}.keras", folder / f"{name}.tflite", folder / f"{name}.npy"
    if not pictures.exists():
        np.save(pictures, images(SAMPLES, size, seed=3))
    if not target.exists():
        with Session() as session, plain(python_of(session, "tensorflow")) as script:
            script("make_keras", name=name, size=size, images=str(pictures), out=str(source))
            script("tflite_keras", source=str(source), out=str(target))
    return source, target, pictures


def cost(folder: Path, name: str, kind: str) -> dict[str, object]:
    """Plant, warm both workers, trace once (the floor), diagnose; in a process of its own."""
    source, target, pictures = prepared(folder, name, MODELS[name])
    faulty = folder / f"{name}-{kind}.tflite"
    with Session(Settings()) as session:
        planted = plant(target, faulty, kind=kind, seed=1, session=session)
        reference = verification.reference(session, Artifact.open(source))
        if isinstance(reference, Failure):
            raise UsageError(reference.message)
        given = api.open_feeds(session, reference.value.artifact, str(pictures))
        twin = Artifact.open(faulty)
        first = verification.verify(reference.value, twin, given)
        with Watch() as watch:
            started = time.perf_counter()
            traced = trace_pair(reference.value, twin, given, first, budget=tracing.BUDGET, fine=False)
            floor = time.perf_counter() - started
            if isinstance(traced, Failure):
                raise UsageError(traced.message)
            traced.value.close()
            started = time.perf_counter()
            found = diagnose(reference.value, twin, given, verification=first, request=replace(Request(), tools=False))
            spent = time.perf_counter() - started
    blamed = found.suspects[0].target_nodes[0] if found.suspects else ""
    return {
        "model": name,
        "kind": kind,
        "floor": floor,
        "diagnosis": spent,
        "ratio": spent / floor,
        "peak": watch.peak,
        "mapped": watch.mapped,
        "right": blamed.partition(":")[2] in {node.partition(":")[2] for node in planted.nodes},
        "values": found.alignment.get("values", 0),
        "timings": dict(found.timings),
    }


def main() -> None:
    """Run each case in a fresh process, print a table; fails when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="Where models are made once and kept.")
    parser.add_argument("--kinds", default="weight_noise_10,pads_shifted,bias_dropped")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.case:
        name, kind = options.case.split(":")
        print(json.dumps(cost(options.folder, name, kind)))
        return
    missed = False
    print(f"{'model':12} {'fault':16} {'floor':>7} {'diagnosis':>10} {'ratio':>6} {'memory':>9}  place")
    for name in MODELS:
        for kind in options.kinds.split(","):
            command = [sys.executable, __file__, "--folder", str(options.folder), "--case", f"{name}:{kind}"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            place = "right" if row["right"] else "WRONG"
            print(
                f"{name:12} {kind:16} {row['floor']:6.1f}s {row['diagnosis']:9.1f}s {row['ratio']:5.2f}x "
                f"{row['peak'] / 2**30:6.2f}GiB  {place} ({row['values']} values, {row['mapped'] / 2**30:.2f} GiB with mapped files)"
            )
            missed = missed or row["ratio"] > BOUND_RATIO or row["peak"] > BOUND_BYTES or not row["right"]
    if missed:
        raise SystemExit(f"bounds: {BOUND_RATIO} times the floor, {BOUND_BYTES / 2**30:.0f} GiB, the right place")


if __name__ == "__main__":
    main()
