"""What a caller calls a model, or inputs, as artifacts and feeds of a session.

Models are given as paths, as `package.module:factory` (with `trust=True`), or as live objects of a framework that the
caller has loaded: those are saved once in the caller's process, and everything else happens in workers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from trueport import feeds, live, verification, zoo
from trueport.artifact import Artifact, Signature
from trueport.errors import UntrustedError, UsageError
from trueport.feeds import Feeds
from trueport.frameworks import jax as jax_framework
from trueport.frameworks import torch as torch_framework
from trueport.outcome import Failure, Kind, Ok, Stage
from trueport.repairs.gate import UNSEEN
from trueport.session import Progress, Session, Settings, framework_of

FACTORY = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")

Model = Any
"""A path, a `package.module:factory`, an `Artifact`, or a live object of a loaded framework."""


@contextmanager
def open_session(session: Session | None, settings: Settings, progress: Progress | None) -> Iterator[Session]:
    """Use the caller's session, or one that ends with the call."""
    if session is not None:
        yield session
        return
    with Session(settings, progress or (lambda line: None)) as own:
        yield own


def open_model(
    session: Session, model: Model, format: str | None, checkpoint: str | Path | None, example: Any
) -> Artifact:
    """Make an Artifact of whatever the caller calls a model."""
    if isinstance(model, Artifact):
        return model
    if format is not None:
        framework_of(format)
    if zoo.is_name(model):
        if checkpoint is not None:
            raise UsageError(
                "--checkpoint goes with package.module:factory; a zoo model has weights=random or weights=hub"
            )
        return zoo.open_name(session, str(model))
    if isinstance(model, str) and FACTORY.match(model) and not Path(model).exists():
        return _materialise(session, model, format, checkpoint, example)
    if isinstance(model, (str, Path)):
        path = Path(model)
        if checkpoint is not None:
            raise UsageError("--checkpoint goes with package.module:factory, not with a model file")
        _refuse_checkpoint(path)
        made_by = {} if session.settings.python is None else {"python": str(session.settings.python)}
        return Artifact.open(path, format=format, made_by=made_by)
    folder = session.pool.fresh_folder("live")
    notes: list[str] = []
    path, found, versions = live.save_live(model, example, folder, note=notes.append)
    return Artifact.open(Path(path), format=found, made_by={"versions": dict(versions), "notes": notes})


def _refuse_checkpoint(path: Path) -> None:
    if not path.is_file():
        return
    with path.open("rb") as file:
        kind = torch_framework.checkpoint_kind(file.read(1 << 16), path)
    if kind is not None:
        raise UsageError(
            f"{path} holds only weights ({kind}): name the architecture as package.module:factory "
            f"and give this file with --checkpoint"
        )


FACTORIES: Mapping[str, tuple[str, ModuleType, str]] = {
    "pytorch": ("torch", torch_framework, ".pt2"),
    "jax": ("jax", jax_framework, ".jax"),
}
"""Format that a factory gives -> (toolchain, framework with `materialise`, suffix of the file)."""


def _materialise(
    session: Session, factory: str, format: str | None, checkpoint: str | Path | None, example: Any
) -> Artifact:
    if (format or "pytorch") not in FACTORIES:
        raise UsageError(f"package.module:factory gives {' or '.join(FACTORIES)}, not {format}")
    toolchain, framework, suffix = FACTORIES[format or "pytorch"]
    if not session.settings.trust:
        raise UntrustedError(f"{factory} is code that would be run; allow that with --trust")
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise UsageError(f"{checkpoint}: no such file")
    variant_python = session.settings.python
    environment = session.environment(toolchain, variant=None if variant_python is None else _own(variant_python))
    if isinstance(environment, Failure):
        raise UsageError(environment.message)
    out = session.pool.fresh_folder("factory") / f"{factory.rpartition(':')[2]}{suffix}"
    arguments = {
        "factory": factory,
        "checkpoint": None if checkpoint is None else str(Path(checkpoint).absolute()),
        "example": example_arrays(example),
        "out": str(out),
        "paths": [str(Path.cwd()), *session.settings.paths],
        "trust": True,
    }
    done = session.call(environment.value, framework, "materialise", arguments, stage=Stage.LOAD)
    if isinstance(done, Failure):
        cure = " (see the log)" if done.kind == Kind.CRASHED else ""
        raise UsageError(f"{factory} does not give a usable model ({done.kind}): {done.message}{cure}")
    made = out if out.exists() else out.with_suffix(".pt")
    extra: dict[str, Any] = {} if variant_python is None else {"python": str(variant_python)}
    extra["notes"] = list(done.value.value["meta"].get("notes", ()))
    if checkpoint is not None:
        extra["checkpoint"] = str(Path(checkpoint).absolute())
    return Artifact.open(made, made_by={"factory": factory, "versions": dict(done.value.versions), **extra})


def _own(python: Path) -> Any:
    from trueport.envs import Variant

    return Variant(python=python)


def example_of(given: Any, preprocess: str | None) -> Any:
    """Return what to trace a model with: of a folder of pictures the first one, preprocessed, else what was given."""
    if not isinstance(given, (str, Path)) or not Path(given).is_dir():
        return given
    picture = feeds.first_picture(Path(given), preprocess)
    return None if picture is None else (picture,)


def example_arrays(example: Any) -> dict[str, np.ndarray] | list[np.ndarray] | None:
    """Return one sample of each array of an .npz, or of a mapping: enough to trace a model with."""
    if isinstance(example, (list, tuple)):
        return [np.asarray(value) for value in example]
    if isinstance(example, Feeds):
        return {name: np.array(array[0]) for name, array in example.cases[0].inputs.items()}
    if isinstance(example, Mapping):
        return {name: np.asarray(array)[:1] for name, array in example.items()}
    if isinstance(example, (str, Path)) and Path(example).suffix in (".npz", ".npy"):
        arrays = feeds.peek(Path(example))
        return list(arrays.values()) if Path(example).suffix == ".npy" else arrays  # a single array has no name
    return None


def open_feeds(
    session: Session,
    model: Artifact,
    inputs: str | Path | Mapping[str, np.ndarray] | Feeds | None,
    *,
    labels: str | Path | None = None,
    preprocess: str | None = None,
    limit: int | None = None,
) -> Feeds:
    """Read or generate the inputs, in the source's layout."""
    if isinstance(inputs, Feeds):
        return inputs
    signature = session.signature(model)
    if isinstance(signature, Failure):
        raise verification.cannot_load(model, signature)
    if inputs is None:
        if labels is not None:
            raise UsageError("--labels needs --inputs: generated inputs have no labels")
        return generated(session, model, signature.value, seed=session.settings.seed)
    if isinstance(inputs, Mapping):
        return feeds.from_arrays(inputs, signature.value, seed=session.settings.seed)
    return replace(
        feeds.load(
            Path(inputs),
            signature.value,
            preprocess=preprocess,
            limit=limit,
            labels=None if labels is None else Path(labels),
        ),
        seed=session.settings.seed,
    )


SPANS = (9, 3, 1, 0)
"""Spans of free integers that are tried, largest first: indices into something whose size the graph does not show."""


def generated(session: Session, model: Artifact, signature: Signature, *, seed: int) -> Feeds:
    """Generate inputs; integers whose legal range is unknown span as much as the source itself takes."""
    first = feeds.generate(signature, seed=seed)
    if not feeds.has_free_integers(signature):
        return first
    for span in SPANS:
        given = feeds.generate(signature, seed=seed, ids=span)
        ran = session.run(model, given.of_kind("data"))
        if isinstance(ran, Ok) and not ran.value.failures:
            session.release(ran.value)
            return given
    return first  # it fails for another reason, which the verdict will tell


def open_unseen(session: Session, model: Artifact, inputs: Any) -> Feeds | None:
    """Generate the inputs that a repair's search does not see; None when there are data, of which it splits off some."""
    signature = session.signature(model)
    if inputs is not None or isinstance(signature, Failure):
        return None
    return generated(session, model, signature.value, seed=session.settings.seed + UNSEEN)
