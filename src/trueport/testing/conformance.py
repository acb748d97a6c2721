"""Whether a framework file keeps the contract of `trueport.frameworks._base`, shown on a model of its own.

    from trueport.testing import Sample, check_framework

    found = check_framework(my_framework, [Sample(path="small.npznet", inputs={"x": x})])
    assert not found.broken, found

Every function is called as trueport calls it: in a worker, in the toolchain of the format. What a file declares not to do
(Unsupported, with its reason) is left out and told; what it does must be right. `checks.py` lists what is looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from trueport.artifact import HEAD, Artifact
from trueport.envs import Environment
from trueport.errors import UsageError
from trueport.outcome import Failure, Kind, Stage
from trueport.session import Session, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A small model for the checks, at least two runs of inputs (name -> [R, *shape], which differ), and perhaps what it gives.

    expected: output name -> [R, *shape], of an independent implementation. trust: loading it runs code.
    """

    path: Path | str
    inputs: Mapping[str, np.ndarray]
    expected: Mapping[str, np.ndarray] | None = None
    trust: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """One way in which a file does not keep the contract."""

    check: str
    model: str
    message: str

    def __str__(self) -> str:
        return f"{self.check} ({self.model}): {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conformance:
    """What the checks found. passed: names of checks that held on every sample. left_out: check -> why it does not apply."""

    broken: tuple[Broken, ...]
    passed: tuple[str, ...]
    left_out: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.passed)} checks passed, {len(self.broken)} broken, {len(self.left_out)} left out"]
        lines += [f"  BROKEN {item}" for item in self.broken]
        lines += [f"  left out {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


class LeftOut(Exception):
    """Raised by a check: the file says that it does not do this. The text is its reason."""


class NotKept(Exception):
    """Raised by a check: the contract is not kept."""


@dataclass(slots=True, kw_only=True)
class Subject:
    """A framework file and one model, as the checks see them."""

    session: Session
    environment: Environment
    module: ModuleType
    sample: Sample
    artifact: Artifact
    _known: dict[str, Any] = field(default_factory=dict)

    def ask(self, function: str, *, stage: Stage = Stage.RUN, emit: bool = False, path: Path | None = None, **given: Any) -> Any:  # fmt: skip
        """What a function gives: its value, or with `emit` (value, emitted arrays). Raises LeftOut, NotKept, UsageError."""
        if not hasattr(self.module, function):
            raise NotKept(f"the file has no function '{function}'; one that cannot be written raises Unsupported")
        arguments = {"path": str(path or self.artifact.path), "trust": self.sample.trust, **given}
        outcome = self.session.call(self.environment, self.module, function, arguments, stage=stage, emit=emit)
        if isinstance(outcome, Failure):
            if outcome.kind is Kind.UNSUPPORTED:
                raise LeftOut(outcome.message)
            raise NotKept(f"{function} failed ({outcome.kind}): {outcome.message}")
        return (outcome.value.value, outcome.value.emitted) if emit else outcome.value.value

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """A value that several checks need, made once."""
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    @property
    def signature(self) -> dict[str, Any]:
        """What `signature` gives."""
        return self.once("signature", lambda: self.ask("signature", stage=Stage.LOAD))  # type: ignore[no-any-return]

    @property
    def graph(self) -> dict[str, Any]:
        """What `graph` gives."""
        return self.once("graph", lambda: self.ask("graph", stage=Stage.TRACE))  # type: ignore[no-any-return]

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        """What the model gives for the sample's inputs, with the default variant."""
        return self.once("outputs", self.run)  # type: ignore[no-any-return]

    def run(
        self,
        inputs: Mapping[str, np.ndarray] | None = None,
        *,
        precision: str = "float32",
        variant: str | None = None,
        path: Path | None = None,
    ) -> dict[str, np.ndarray]:
        """Run one case."""
        given = dict(self.sample.inputs if inputs is None else inputs)
        chosen = self.module.VARIANTS[0] if variant is None else variant
        results = self.ask("run", cases={"case": given}, precision=precision, variant=chosen, path=path)
        if not isinstance(results, Mapping) or set(results) != {"case"}:
            raise NotKept("run does not give one result per case, under the case's name")
        return {name: np.asarray(value) for name, value in results["case"].items()}

    def traced(self, budget: int = 1 << 28) -> dict[str, np.ndarray]:
        """Every value that `trace` gives."""
        wanted = self.ask("names", stage=Stage.TRACE)
        inputs = dict(self.sample.inputs)
        return dict(self.ask("trace", inputs=inputs, wanted=wanted, budget=budget, stage=Stage.TRACE, emit=True)[1])


def check_framework(
    module: ModuleType, samples: Sequence[Sample], *, python: Path | str | None = None, offline: bool = False
) -> Conformance:
    """Look at a framework file with models of its own.

    python: an interpreter that has the framework; by default the toolchain that FORMATS names is built.
    Raises UsageError when there is no sample, a sample cannot be read at all, or the toolchain cannot be built.
    """
    from trueport.testing.checks import CHECKS, ONCE

    if not samples:
        raise UsageError("a framework file is checked with at least one model of its own")
    broken: list[Broken] = []
    left_out: dict[str, str] = {}
    for name, check in ONCE:
        broken += _looked(name, module.__name__, check, module, left_out)
    with Session(Settings(offline=offline)) as session:
        for sample in samples:
            path = Path(sample.path)
            if not path.exists():
                raise UsageError(f"{path}: no such file or folder")
            format = _format(module, path)
            artifact = Artifact.open(path, format=format or next(iter(module.FORMATS)))
            subject = Subject(
                session=session,
                environment=_environment(session, module, artifact, python),
                module=module,
                sample=sample,
                artifact=artifact,
            )
            for name, look in CHECKS:
                broken += _looked(name, path.name, look, subject, left_out)
    bad = {item.check for item in broken}
    named = [name for name, _ in (*ONCE, *CHECKS)]
    passed = tuple(name for name in named if name not in bad and name not in left_out)
    return Conformance(broken=tuple(broken), passed=passed, left_out=left_out)


def _looked(
    name: str, model: str, check: Callable[[Any], None], what: ModuleType | Subject, left_out: dict[str, str]
) -> list[Broken]:
    try:
        check(what)
    except LeftOut as reason:
        left_out[name] = str(reason)
    except NotKept as reason:
        return [Broken(check=name, model=model, message=str(reason))]
    except UsageError as error:
        return [Broken(check=name, model=model, message=f"the sample is refused: {error}")]
    except Exception as error:  # noqa: BLE001 -- a module of others may hold anything where the contract has a table
        return [Broken(check=name, model=model, message=f"{type(error).__name__}: {error}")]
    return []


def head_of(path: Path) -> bytes:
    """The first bytes of a file, as `sniff` gets them; nothing of a folder."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(HEAD)


def _format(module: ModuleType, path: Path) -> str | None:
    try:
        found = module.sniff(head_of(path), path)
    except Exception:  # noqa: BLE001 -- the check of `sniff` tells it
        return None
    return found if found in module.FORMATS else None


def _environment(session: Session, module: ModuleType, artifact: Artifact, python: Path | str | None) -> Environment:
    if python is not None:
        return Environment(toolchain=str(module.FORMATS[artifact.format]), python=Path(python))
    chooser = getattr(module, "toolchain_for", None)
    toolchain = str(module.FORMATS[artifact.format] if chooser is None else chooser(artifact.path))
    if toolchain == "fake":
        return Environment(toolchain="fake", python=Path(sys.executable))
    outcome = session.environment(toolchain)
    if isinstance(outcome, Failure):
        raise UsageError(f"the toolchain '{toolchain}' cannot be built: {outcome.message}")
    return outcome.value
