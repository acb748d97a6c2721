"""Small ONNX models built in the toolchain `onnx`, from the builders of the live bugs."""

from __future__ import annotations

from pathlib import Path

from trueport.outcome import Failure, Ok, Stage
from trueport.session import Session

BUILDERS = Path(__file__).resolve().parents[1] / "power"


def build(session: Session, name: str, out: Path) -> Path:
    """Write the model `name` of `live_models` at `out`."""
    environment = session.environment("onnx")
    assert isinstance(environment, Ok), environment
    arguments = {"maker": "onnx", "name": name, "out": str(out)}
    made = session.pool.call(
        environment.value.python, "live_models", "build", arguments, stage=Stage.LOAD, paths=[str(BUILDERS)]
    )
    assert not isinstance(made, Failure), made
    return out
