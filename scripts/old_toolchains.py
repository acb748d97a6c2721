"""Try the converters of the studies, each in its own environment, and write what came of it as data.

    python scripts/old_toolchains.py [--only NAME,...] [--out FILE]

A row of src/trueport/old_toolchains.toml says which versions were tried on which Python, and the outcome on one small
convolutional model: a verdict, or the exact reason why there is none. MMdnn needs TensorFlow 1, whose newest Python is
older than what a worker runs on: it is tried in a process of its own and compared there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueport import feeds
from trueport.artifact import Artifact
from trueport.conversion import Workbench
from trueport.envs import EnvStore, Toolchain, toolchains
from trueport.errors import TrueportError
from trueport.outcome import Failure, Stage
from trueport.routes import parse_options, parse_route, steps
from trueport.session import Session, Settings
from trueport.verification import reference

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "src" / "trueport" / "old_toolchains.toml"
MAKER = "old_models"
"""Module under tests/frameworks that writes the small models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One step on one model: `maker` is the toolchain that writes it, `model` the function's argument."""

    tool: str
    step: str
    maker: str
    model: str
    options: str = ""
    """NAME=value of the step, where one is given."""


TRIALS = (
    Trial(tool="tf2onnx", step="old-tf2onnx-keras2", maker="old-tf2onnx", model="keras2"),
    Trial(tool="tf2onnx", step="old-tf2onnx-savedmodel", maker="old-tf2onnx", model="savedmodel"),
    Trial(tool="onnxmltools", step="old-onnxmltools-keras2", maker="old-tf2onnx", model="keras2"),
    Trial(tool="onnx2keras", step="old-onnx2keras", maker="onnx", model="dense"),
    Trial(tool="onnx2keras", step="old-onnx2keras", maker="onnx", model="pooled"),
    Trial(tool="onnx2keras", step="old-onnx2keras", maker="onnx", model="global"),
    Trial(tool="onnx2keras", step="old-onnx2keras", maker="onnx", model="pooled", options="change_ordering=yes"),
    Trial(tool="tflite2onnx", step="old-tflite2onnx", maker="old-tf2onnx", model="tflite"),
    Trial(tool="onnx-tf", step="old-onnx-tf", maker="onnx", model="global"),
)

MMDNN = Toolchain(
    name="old-mmdnn",
    python="3.7",
    requirements=("mmdnn==0.3.1", "tensorflow==1.15.5", "keras==2.2.4", "h5py==2.10.0", "protobuf<3.21"),
    health="import tensorflow, keras, mmdnn",
    purpose="convert as MMdnn did",
    lock=(),
)
MMDNN_TRIAL = """
import os, subprocess, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np
from keras.models import Sequential
from keras.layers import Conv2D, Dense, Flatten, MaxPooling2D
np.random.seed(0)
first = Conv2D(8, 3, padding="same", activation="relu", input_shape=(16, 16, 3))
model = Sequential([first, MaxPooling2D(), Flatten(), Dense(10)])
model.save("model.h5")
given = np.random.RandomState(0).normal(size=(2, 16, 16, 3)).astype("float32")
expected = model.predict(given)
programs = os.path.dirname(sys.executable)
def run(program, *arguments):
    subprocess.check_call([sys.executable, os.path.join(programs, program), *arguments], stdout=sys.stderr)
run("mmtoir", "-f", "keras", "-w", "model.h5", "-o", "ir")
run("mmtocode", "-f", "tensorflow", "-n", "ir.pb", "-w", "ir.npy", "-d", "made.py")
sys.path.insert(0, ".")
import made, tensorflow as tf
tf.compat.v1.reset_default_graph()
source, result = made.KitModel("ir.npy")
with tf.compat.v1.Session() as session:
    session.run(tf.compat.v1.global_variables_initializer())
    got = session.run(result, {source: given})
print("DIFFERENCE %.3g of %.3g" % (abs(got - expected).max(), abs(expected).max()))
"""


def attempt(session: Session, trial: Trial) -> tuple[str, str]:
    """Return the outcome and its reason."""
    environment = session.environment(trial.maker)
    if isinstance(environment, Failure):
        return "not-installed", environment.message
    folder = session.pool.fresh_folder("old")
    arguments = {"kind": trial.model, "folder": str(folder)}
    paths = [str(ROOT / "tests" / "frameworks")]
    made = session.pool.call(environment.value.python, MAKER, "save", arguments, stage=Stage.LOAD, paths=paths)
    assert not isinstance(made, Failure), made
    source = reference(session, Artifact.open(Path(made.value.value)))
    assert not isinstance(source, Failure), source
    given = feeds.generate(source.value.signature, seed=0)
    bench = Workbench(session=session, original=source.value, given=given, check=True, task="auto")
    try:
        options = parse_options([f"{trial.step}.{trial.options}"]) if trial.options else {}
        found = bench.attempt(parse_route(trial.step, options=options))
    except TrueportError as error:
        return "error", str(error)
    if found.failure is not None:
        return (
            "not-installed" if found.failure.kind == "unavailable" else str(found.failure.kind)
        ), found.failure.message
    assert found.verification is not None
    return str(found.verification.verdict), found.verification.reason


def attempt_mmdnn(store: EnvStore) -> tuple[str, str]:
    """The same for MMdnn: Keras to TensorFlow 1 code, compared in its own process."""
    made = store.get(MMDNN.name)
    if isinstance(made, Failure):
        return "not-installed", made.message
    with tempfile.TemporaryDirectory() as folder:
        command = [str(made.value.python), "-c", MMDNN_TRIAL]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=_environment())
    if done.returncode:
        return "raised", (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
    difference = next(line for line in done.stdout.splitlines() if line.startswith("DIFFERENCE"))
    worst, size = float(difference.split()[1]), float(difference.split()[3])
    # float32 rounding of a sum of some hundred products is about 1e-6 of the result
    verdict = "faithful" if worst <= 1e-5 * size else "deviates"
    return verdict, f"the generated TensorFlow code is at most {worst:.3g} off, of outputs up to {size:.3g}"


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}


def row(
    tool: str, step: str, options: str, model: str, toolchain: Toolchain, outcome: tuple[str, str]
) -> dict[str, Any]:
    """One row of the table."""
    return {
        "tool": tool,
        "step": step,
        "options": options,
        "model": model,
        "python": toolchain.python,
        "versions": list(toolchain.requirements),
        "outcome": outcome[0],
        "reason": " ".join(outcome[1].split()),
    }


def written(rows: list[dict[str, Any]]) -> str:
    """The table as TOML."""
    head = "# What came of trying the converters of the studies; scripts/old_toolchains.py writes this.\n"
    parts = ["[[trial]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in item.items()) for item in rows]
    return head + "\n" + "\n".join(parts)


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True)  # TOML's texts and lists of texts are JSON's


def trials(only: frozenset[str]) -> list[dict[str, Any]]:
    """Run the trials of these tools, all when empty."""
    rows = []
    table: Mapping[str, Toolchain] = toolchains()
    with Session(Settings(timeout=300, trust=True)) as session:
        for trial in TRIALS:
            if only and trial.tool not in only:
                continue
            found = attempt(session, trial)
            print(f"{trial.step} on {trial.model}: {found[0]}: {found[1]}", file=sys.stderr)
            rows.append(
                row(trial.tool, trial.step, trial.options, trial.model, table[steps()[trial.step].toolchain], found)
            )
    if not only or "MMdnn" in only:
        found = attempt_mmdnn(EnvStore(table={MMDNN.name: MMDNN}))
        print(f"MMdnn: {found[0]}: {found[1]}", file=sys.stderr)
        rows.append(row("MMdnn", "", "", "keras2", MMDNN, found))
    return rows


def main() -> None:
    """Read the arguments, try, and write the table by an atomic rename."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="tools, separated by commas")
    parser.add_argument("--out", type=Path, default=TABLE)
    given = parser.parse_args()
    text = written(trials(frozenset(name for name in given.only.split(",") if name)))
    partial = given.out.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(given.out)


if __name__ == "__main__":
    main()
