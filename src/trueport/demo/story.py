"""The demo's plot: two trained models, four conversions, and one real bug of a converter caught."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trueport import api, feeds
from trueport.conversion import Conversion
from trueport.demo import work
from trueport.errors import UsageError
from trueport.feeds import Feeds
from trueport.opening import open_model
from trueport.outcome import Failure, Stage
from trueport.session import Progress, Session, Settings

EPOCHS = 8
BUG = Settings(packages=("onnxscript==0.5.6",), as_of="2025-11-25")
"""onnxscript 0.5.6 with the dependencies of its day: its BatchNorm fusion names the fused bias after the convolution's
input, so two convolutions on one input share one bias (microsoft/onnxscript#2553, fixed in 0.5.7 by #2680)."""
CURE = Settings(packages=("onnxscript==0.5.7",), as_of="2025-12-20")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """One conversion of the story."""

    title: str
    conversion: Conversion
    expected: str
    """The verdict that the story promises; the command fails when it is another."""


def tell(folder: Path, session: Session) -> list[Chapter]:
    """Train, convert, verify on held-out digits, then show the bug and its cure. Models go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = _digits(session)
    session.progress("training a CNN in Keras")
    keras_model = _train(session, "tensorflow", "train_keras", data, folder / "digits.keras")
    session.progress("training a CNN in PyTorch")
    torch_model = _train(session, "torch", "train_torch", data, folder / "digits.pt2")
    chapters = []
    for source, image in ((keras_model, data["test_x"][..., None]), (torch_model, data["test_x"][:, None])):
        given = _held_out(session, source, image, data["test_y"])
        for target in ("onnx", "tflite"):
            session.progress(f"{source.name} → {target}")
            out = folder / f"{source.stem}-{source.suffix[1:]}.{target}"
            conversion = api.convert(source, to=target, out=out, inputs=given, session=session)
            chapters.append(Chapter(title=f"{source.name} → {target}", conversion=conversion, expected="faithful"))
    chapters += _bug(folder, session, torch_model, data)
    return chapters


def _bug(folder: Path, session: Session, model: Path, data: Mapping[str, np.ndarray]) -> list[Chapter]:
    plain = folder / "digits-unoptimised.onnx"
    given = _held_out(session, model, data["test_x"][:, None], data["test_y"])
    made = api.convert(
        model,
        to="onnx",
        out=plain,
        inputs=given,
        session=session,
        route="torch-dynamo",
        options=["torch-dynamo.optimize=false"],
    )
    if made.output is None:
        raise UsageError("the model for the bug could not be exported to ONNX")
    chapters = []
    given = _held_out(session, plain, data["test_x"][:, None], data["test_y"])
    for settings, expected in ((BUG, "deviates"), (CURE, "faithful")):
        package = settings.packages[0].replace("==", " ")
        session.progress(f"optimising the ONNX model with {package}")
        with Session(settings, session.progress) as old:
            out = folder / f"digits-{settings.packages[0].replace('==', '-')}.onnx"
            conversion = api.convert(
                plain, to="onnx", out=out, inputs=given, session=old, route="onnxscript-optimizer", repair=False
            )
        chapters.append(Chapter(title=f"optimised by {package}", conversion=conversion, expected=expected))
    return chapters


def _digits(session: Session) -> dict[str, np.ndarray]:
    environment = session.environment("sklearn")
    if isinstance(environment, Failure):
        raise UsageError(environment.message)
    done = session.call(environment.value, work, "digits", {}, stage=Stage.LOAD)
    if isinstance(done, Failure):
        raise UsageError(f"the digits cannot be read: {done.message}")
    return dict(done.value.value)


def _train(session: Session, toolchain: str, function: str, data: Mapping[str, np.ndarray], out: Path) -> Path:
    environment = session.environment(toolchain)
    if isinstance(environment, Failure):
        raise UsageError(environment.message)
    arguments = {"train_x": data["train_x"], "train_y": data["train_y"], "out": str(out.absolute()), "epochs": EPOCHS}
    done = session.call(environment.value, work, function, arguments, stage=Stage.LOAD)
    if isinstance(done, Failure):
        raise UsageError(f"training failed ({done.kind}): {done.message}")
    return out


def _held_out(session: Session, model: Path, images: np.ndarray, labels: np.ndarray) -> Feeds:
    """Make the held-out digits into feeds for a model with one input."""
    artifact = open_model(session, model, None, None, None)
    signature = session.signature(artifact)
    if isinstance(signature, Failure):
        raise UsageError(f"{model.name} cannot be loaded ({signature.kind}): {signature.message}")
    name = signature.value.inputs[0].name
    given = feeds.from_arrays({name: np.ascontiguousarray(images)}, signature.value, seed=0)
    return replace(given, labels=np.asarray(labels), origin="scikit-learn digits, 500 held out")


def silent(line: str) -> None:
    """Say nothing."""


def run(folder: Path, progress: Progress = silent) -> list[Chapter]:
    """Tell the story in a session of its own."""
    with Session(Settings(), progress) as session:
        return tell(folder, session)
