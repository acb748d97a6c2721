"""Memory: the parent's peak while it verifies a ResNet-101 of 180 MB; models and activations belong to the workers.

The verification runs in a fresh process, whose own peak (not its children's) the system tells when it ends. Peak
resident memory counts mapped pages of result files too, which the system could take back at any time.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import Row, images, plain, python_of

from trueport import verify
from trueport.compare.types import Verdict
from trueport.session import Session

BOUND_MB = 300.0


def peak(folder: Path, *, name: str = "ResNet101", size: int = 224, samples: int = 8) -> Iterator[Row]:
    """Make the model (Keras, and TFLite by TensorFlow's own call), verify one against the other, report the peak."""
    source, target, pictures = folder / f"{name}.keras", folder / f"{name}.tflite", folder / "pictures.npy"
    np.save(pictures, images(samples, size, seed=3))
    if not target.exists():
        with Session() as session, plain(python_of(session, "tensorflow")) as script:
            script("make_keras", name=name, size=size, images=str(pictures), out=str(source))
            script("tflite_keras", source=str(source), out=str(target))
    command = [sys.executable, __file__, str(source), str(target), str(pictures)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    note = f"{name}, {source.stat().st_size / 1e6:.0f} MB, {samples} images: {found['verdict']}; {found['start']:.0f} MB after import"
    yield Row(
        name="parent's peak memory while it verifies", values=(found["peak"],), bound=BOUND_MB, unit=" MB", note=note
    )
    if found["verdict"] != Verdict.FAITHFUL:
        raise SystemExit(f"the verification whose memory was to be measured found: {found['reason']}")


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes).

    Linux's own mark where there is one: `ru_maxrss` of a new program begins with what the program that started it had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def child(source: str, target: str, pictures: str) -> None:
    """Verify, and print what it took as JSON."""
    start = peak_mb()
    result = verify(source, target, inputs=pictures)
    found = {"start": start, "peak": peak_mb(), "verdict": str(result.verdict), "reason": result.reason}
    print(json.dumps(found))


if __name__ == "__main__":
    child(*sys.argv[1:])
