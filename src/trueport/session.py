"""One user's request: its limits, its workers and its environments, and the few things that can be asked of a model.

Everything that touches a framework passes through here, so that each call gets the right environment, the right
limits, and ends as an `Outcome`. A session holds no module-level state: two can live in one process.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np

from trueport.artifact import Artifact, Signature, offered
from trueport.compare.types import RunSet
from trueport.envs import Environment, EnvStore, Variant, toolchains
from trueport.errors import BadModelError, UsageError
from trueport.feeds import Case
from trueport.frameworks._base import BadModel, Step
from trueport.outcome import Failure, Ok, Outcome, Stage
from trueport.plugins import converters, frameworks, outside
from trueport.worker.pool import DEFAULT_TIMEOUT, Pool, Reply

Progress = Callable[[str], None]

NO_SPACE = "No space left on device"
"""What the system says when a disk is full, whichever tool repeats it: no verdict on the tool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a caller can set for all jobs of a session. `timeout` in seconds per job, `memory` in bytes per job."""

    seed: int = 0
    timeout: float = DEFAULT_TIMEOUT
    memory: float | None = None
    trust: bool = False
    offline: bool = False
    packages: tuple[str, ...] = ()
    """NAME==VERSION: builds variants of the converters' toolchains that contain NAME."""
    as_of: str | None = None
    """YYYY-MM-DD: the packages of those variants as the index stood on that day."""
    python: Path | None = None
    """The caller's own interpreter for the source model."""
    paths: tuple[str, ...] = ()
    """Folders that a worker may import the user's own code from (with trust)."""


@dataclass(frozen=True, slots=True)
class Session:
    """Workers, environments and settings, as one context manager."""

    settings: Settings = field(default_factory=Settings)
    progress: Progress = lambda line: None
    pool: Pool = field(init=False)
    envs: EnvStore = field(init=False)
    _signatures: dict[str, Outcome[Signature]] = field(init=False, default_factory=dict)
    _plugins: dict[Path, Path] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pool", Pool(timeout=self.settings.timeout, memory=self.settings.memory))
        object.__setattr__(self, "envs", EnvStore(offline=self.settings.offline, progress=self.progress))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.close()

    # -- environments -------------------------------------------------------------------------------------------

    def environment(self, toolchain: str, *, variant: Variant | None = None) -> Outcome[Environment]:
        """Find or build the environment of a toolchain; the `fake` one is this interpreter."""
        if toolchain == "fake":
            return Ok(Environment(toolchain="fake", python=Path(sys.executable)))
        return self.envs.get(toolchain, variant or Variant())

    def runner(self, artifact: Artifact) -> Outcome[Environment]:
        """Return the environment in which a model of this format runs."""
        made_in = artifact.made_by.get("python")
        if made_in is not None:
            return self.environment(runtime_toolchain(artifact), variant=Variant(python=Path(made_in)))
        return self.environment(runtime_toolchain(artifact))

    def step_variant(self, step: Step) -> Variant:
        """Return the variant of a step's toolchain that the settings ask for; plain when none of them concerns it."""
        if step.toolchain == "fake":
            return Variant()
        toolchain = toolchains()[step.toolchain]
        packages = tuple(item for item in self.settings.packages if toolchain.contains(item.split("==")[0]))
        concerned = bool(packages) or not self.settings.packages
        return Variant(packages=packages, as_of=self.settings.as_of if concerned else None)

    # -- jobs ---------------------------------------------------------------------------------------------------

    def call(
        self,
        environment: Environment,
        module: ModuleType,
        function: str,
        arguments: Mapping[str, Any],
        *,
        stage: Stage,
        emit: bool = False,
    ) -> Outcome[Reply]:
        """Run a function of a framework or converter file in a worker."""
        try:
            outcome = self.pool.call(
                environment.python,
                module.__name__,
                function,
                arguments,
                stage=stage,
                emit=emit,
                paths=(*self.settings.paths, *self._shown(module.__name__)),
            )
        except BadModelError as error:
            raise BadModelError(self._without_folder(str(error))) from error
        if isinstance(outcome, Failure):
            if NO_SPACE in outcome.message or NO_SPACE in outcome.log:
                raise UsageError(
                    f"the disk that holds {self.pool.folder.parent} is full; make room there or set TMPDIR"
                )
            message, log = self._without_folder(outcome.message), self._without_folder(outcome.log)
            return replace(outcome, message=message, log=log)
        return outcome

    def _shown(self, module: str) -> tuple[str, ...]:
        """The folder from which a worker imports a module of another distribution: its package alone lies there."""
        package = outside(module)
        if package is None:
            return ()
        if package not in self._plugins:
            folder = self.pool.fresh_folder("plugin")
            try:
                (folder / package.name).symlink_to(package, target_is_directory=package.is_dir())
            except OSError:  # a system where that needs a right of its own
                copy = shutil.copytree if package.is_dir() else shutil.copy2
                copy(package, folder / package.name)
            self._plugins[package] = folder
        return (str(self._plugins[package]),)

    def _without_folder(self, text: str) -> str:
        """Leave out of a message the temporary folder in which a file lay: it means nothing to anybody later."""
        return re.sub(rf"{re.escape(str(self.pool.folder))}/[^/\s'\"]+/", "", text)

    def release(self, results: RunResults) -> None:
        """Remove the arrays of runs from disk; they must no longer be used."""
        for folder in results.folders:
            self.pool.release(folder)

    def ask(
        self,
        artifact: Artifact,
        function: str,
        arguments: Mapping[str, Any],
        *,
        stage: Stage,
        emit: bool = False,
    ) -> Outcome[Reply]:
        """Call a function of the model's framework on the model."""
        environment = self.runner(artifact)
        if isinstance(environment, Failure):
            return environment
        given = {"path": str(artifact.path), "trust": self.settings.trust, **arguments}
        return self.call(environment.value, framework_of(artifact.format), function, given, stage=stage, emit=emit)

    def signature(self, artifact: Artifact) -> Outcome[Signature]:
        """Load a model and describe it; remembered per digest, a failure too."""
        key = f"{artifact.format}:{artifact.sha256}:{artifact.made_by.get('python', '')}"
        if key not in self._signatures:
            outcome = self.ask(artifact, "signature", {}, stage=Stage.LOAD)
            if isinstance(outcome, Failure):
                self._signatures[key] = outcome
            else:
                self._signatures[key] = Ok(Signature.from_wire(outcome.value.value), outcome.seconds)
        return self._signatures[key]

    def run(
        self, artifact: Artifact, cases: Sequence[Case], *, precision: str = "float32", variant: str | None = None
    ) -> Outcome[RunResults]:
        """Run a model on cases (in its own layout). A case that fails alone is a Failure under its name.

        All cases go to the worker in one job; only when that fails is each tried by itself, so that one
        bad probe does not hide the others.
        """
        framework = framework_of(artifact.format)
        chosen = variant or framework.VARIANTS[0]
        arguments = {"precision": precision, "variant": chosen}

        def attempt(some: Sequence[Case]) -> Outcome[Reply]:
            inputs = {case.name: dict(case.inputs) for case in some}
            return self.ask(artifact, "run", {"cases": inputs, **arguments}, stage=Stage.RUN)

        together = attempt(cases)
        if isinstance(together, Ok):
            reply = together.value
            return Ok(RunResults(runs=reply.value, versions=reply.versions, folders=_folders(reply)), together.seconds)
        if len(cases) == 1:
            return Ok(RunResults(runs={cases[0].name: together}, versions={}))
        runs: dict[str, Any] = {}
        versions: Mapping[str, str] = {}
        seconds = 0.0
        folders: list[Path] = []
        for case in cases:
            single = attempt([case])
            if isinstance(single, Ok):
                runs[case.name] = single.value.value[case.name]
                versions = single.value.versions
                seconds += single.seconds
                folders += _folders(single.value)
            else:
                runs[case.name] = single
        return Ok(RunResults(runs=runs, versions=versions, folders=tuple(folders)), seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResults:
    """What a model gave, and the versions that gave it."""

    runs: RunSet
    versions: Mapping[str, str]
    folders: tuple[Path, ...] = ()
    """Where the arrays lie; `Session.release` removes them."""

    @property
    def failures(self) -> Mapping[str, Failure]:
        """The cases that failed."""
        return {name: value for name, value in self.runs.items() if isinstance(value, Failure)}


def _folders(reply: Reply) -> tuple[Path, ...]:
    return () if reply.folder is None else (reply.folder,)


def framework_of(format: str) -> ModuleType:
    """Return the framework file that knows a format. Raises UsageError for a format that none knows."""
    for module in frameworks().values():
        if format in module.FORMATS:
            return module
    raise UsageError(f"the format '{format}' is not known; known are {offered()}")


def formats() -> tuple[str, ...]:
    """Every format that some framework file knows."""
    return tuple(name for module in frameworks().values() for name in module.FORMATS)


def runtime_toolchain(artifact: Artifact) -> str:
    """Return the toolchain that runs this very file (a Keras 2 file needs another than a Keras 3 file).

    Raises UsageError for a damaged file.
    """
    module = framework_of(artifact.format)
    chooser = getattr(module, "toolchain_for", None)
    if chooser is None:
        return str(module.FORMATS[artifact.format])
    try:
        return str(chooser(artifact.path))
    except BadModel as error:
        raise UsageError(str(error)) from error


def converter_of(step: Step) -> ModuleType:
    """Return the converter file that offers a step."""
    return next(module for module in converters().values() if step in module.STEPS)


def first_run(cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Return one run's inputs of the first data case: the example that exporters trace with."""
    return {name: np.array(array[0]) for name, array in cases[0].inputs.items()}
