"""What happened to a model is a value: `Ok` with its result, or `Failure` with its kind and log."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")


class Kind(StrEnum):
    """Why a job on a model failed. Four of them are verdicts on a tool, none is a verdict on the numbers."""

    UNAVAILABLE = "unavailable"
    """The toolchain cannot be had here (no interpreter, offline, no such version, missing package)."""
    UNSUPPORTED = "unsupported"
    """The tool says that it does not do this (operator, format, dtype, precision)."""
    RAISED = "raised"
    """The tool raised an exception."""
    CRASHED = "crashed"
    """The process died (signal or exit) before it replied."""
    TIMED_OUT = "timed-out"
    """The time limit passed; the process group was killed."""
    OUT_OF_MEMORY = "out-of-memory"
    """The memory limit was hit."""
    INVALID_OUTPUT = "invalid-output"
    """The tool reported success, but what it left is missing, corrupt or does not load."""


class Stage(StrEnum):
    """What was being done when a job failed."""

    ENVIRONMENT = "environment"
    LOAD = "load"
    CONVERT = "convert"
    RUN = "run"
    TRACE = "trace"
    COMPARE = "compare"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A job that did not give its result. `message` is one sentence; `log` is the tail of what the tool printed."""

    stage: Stage
    kind: Kind
    message: str
    log: str = ""

    def __bool__(self) -> bool:
        raise TypeError("a Failure has no truth value; use isinstance(outcome, Failure)")

    def at(self, stage: Stage) -> Failure:
        """Return the same failure, attributed to another stage."""
        return replace(self, stage=stage)

    def to_json(self) -> dict[str, str]:
        """Return the JSON form used in every result file."""
        return {"stage": str(self.stage), "kind": str(self.kind), "message": self.message, "log": self.log}


@dataclass(frozen=True, slots=True)
class Ok(Generic[T]):
    """A job that gave its result."""

    value: T
    seconds: float = 0.0

    def __bool__(self) -> bool:
        raise TypeError("an Ok has no truth value; use isinstance(outcome, Ok)")


Outcome = Ok[T] | Failure
