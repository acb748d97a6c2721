"""A small model of every format for the conformance kit: two are made by their frameworks, the others by conversion."""

from __future__ import annotations

from pathlib import Path

import matrix

from trueport import api, feeds
from trueport.artifact import Artifact
from trueport.outcome import Failure, Stage
from trueport.session import Session, framework_of
from trueport.testing import Sample

MADE = {"pytorch": "residual", "keras": "residual"}
"""Format -> kind of the zoo of `scripts/matrix.py`."""

EXPORTED = "jax"
"""The format that `jax_models.py` writes."""

CONVERTED = {
    "torchscript": ("pytorch", "torch-jit"),
    "savedmodel": ("keras", "keras-savedmodel"),
    "tflite": ("keras", "tflite-keras"),
    "onnx": ("pytorch", "torch-dynamo"),
    "coreml": ("pytorch", "coreml-torch"),
    "openvino": ("pytorch", "torch-dynamo,openvino-onnx"),
    "tvm": ("pytorch", "tvm-torch"),
    "executorch": ("pytorch", "executorch"),
}
"""Format -> (format it is converted from, route)."""


def model(session: Session, format: str, folder: Path) -> Artifact:
    """The small model of a format."""
    if format == EXPORTED:
        environment = session.environment("jax")
        assert not isinstance(environment, Failure), environment
        given = {"kind": "cnn", "folder": str(folder)}
        python, paths = environment.value.python, [str(Path(__file__).parent)]
        made = session.pool.call(python, "jax_models", "save", given, stage=Stage.LOAD, paths=paths)
        assert not isinstance(made, Failure), made
        return Artifact.open(Path(made.value.value), format=format)
    if format in MADE:
        return Artifact.open(matrix.make(session, format, MADE[format], seed=0), format=format)
    before, route = CONVERTED[format]
    source = model(session, before, folder)
    suffix = framework_of(format).SUFFIXES[format] or f".{format}"
    done = api.convert(
        source, to=format, out=folder / f"small{suffix}", route=route, check=False, repair=False, session=session
    )
    assert done.chosen is not None, [attempt.failure for attempt in done.attempts]
    assert done.output is not None
    return Artifact.open(done.output, format=format)


def sample(session: Session, format: str, folder: Path) -> Sample:
    """The small model with generated inputs of three runs."""
    artifact = model(session, format, folder)
    known = session.signature(artifact)
    assert not isinstance(known, Failure), known
    given = feeds.generate(known.value, seed=1, runs=3).of_kind("data")[0]
    return Sample(path=artifact.path, inputs=dict(given.inputs), trust=False)
