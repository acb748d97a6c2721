"""The public functions: the same stages and result values as the command line.

Models are given as paths, as `package.module:factory` (with `trust=True`), or as live objects of a framework that the
caller has loaded: those are saved once in the caller's process, and everything else happens in workers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trueport import conversion, feeds, live, publish, tracing, verification
from trueport import routes as planning
from trueport.artifact import Artifact, Signature, offered
from trueport.compare.types import Verdict, Verification
from trueport.conversion import Conversion
from trueport.diagnosis import run
from trueport.diagnosis.run import Request
from trueport.diagnosis.types import Diagnosis
from trueport.errors import BadModelError, UntrustedError, UsageError
from trueport.feeds import Feeds
from trueport.frameworks import torch as torch_framework
from trueport.outcome import Failure, Kind, Ok, Stage
from trueport.session import Progress, Session, Settings, formats, framework_of, runtime_toolchain

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


def convert(
    source: Model,
    *,
    to: str,
    out: str | Path | None = None,
    inputs: str | Path | Mapping[str, np.ndarray] | Feeds | None = None,
    labels: str | Path | None = None,
    preprocess: str | None = None,
    limit: int | None = None,
    example_inputs: Any = None,
    checkpoint: str | Path | None = None,
    source_format: str | None = None,
    route: str | None = None,
    options: Sequence[str] = (),
    precision: str = "float32",
    task: str = "auto",
    check: bool = True,
    diagnose: bool = True,
    max_routes: int = 6,
    settings: Settings = Settings(),  # noqa: B008 -- frozen
    session: Session | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a model, verify every hop, and leave the best result at `out`.

    Args:
        source: path, `package.module:factory`, or live object (torch modules need `example_inputs`).
        to: target format, such as "onnx" or "tflite".
        out: where the result goes; by default the source's name with the target's suffix, in the current folder.
        inputs: .npz, .npy, image folder, .csv, .jsonl, arrays by input name, or None for generated inputs.
        limit: take so many samples of `inputs` (an image folder is sampled evenly, so that every class appears).
        precision: what the result shall be: "float32", "float16", "int8-dynamic" or "int8".
        check: False converts without verifying.
        diagnose: when the best result is not faithful, say where and why it is wrong.

    Returns:
        A `Conversion`; `.verification.verdict` is the answer, `.diagnosis` says why where it is not faithful, and
        `.chosen` is None when no route succeeded.

    Raises:
        UsageError: the request cannot be served; the message says how to mend it.
    """
    if to not in formats():
        raise UsageError(f"the format '{to}' is not known; known are {offered()}")
    verification.check_request(task, precision)
    with open_session(session, settings, progress) as active:
        given_inputs = inputs if isinstance(inputs, Mapping) else None
        example = _example(example_inputs or given_inputs or inputs, preprocess)
        model = open_model(active, source, source_format, checkpoint, example)
        chosen = parsed_routes(model, to, route=route, options=options, precision=precision)
        target = Path(out) if out is not None else default_output(source, model, to)
        publish.check_model(target, model.path, to, folder=not framework_of(to).SUFFIXES[to])
        given = open_feeds(active, model, inputs, labels=labels, preprocess=preprocess, limit=limit)
        result = conversion.convert(
            active, model, chosen, given, out=target, check=check, task=task, max_routes=max_routes
        )
        return _diagnosed(active, result, given, task) if diagnose else result


def _diagnosed(active: Session, result: Conversion, given: Feeds, task: str) -> Conversion:
    """Add the diagnosis of the kept model, where it is not faithful. The attempts tell which step made the fault."""
    kept, judged = result.chosen, result.verification
    if kept is None or kept.output is None or judged is None or judged.verdict == Verdict.FAITHFUL:
        return result
    loaded = verification.reference(active, result.source)
    if isinstance(loaded, Failure):
        raise verification.cannot_load(result.source, loaded)
    others = tuple(attempt for attempt in result.attempts if attempt is not kept)
    request = Request(budget=tracing_budget(active.settings.memory), attempt=kept, others=others)
    precision = judged.declared_precision
    try:
        found = run.diagnose(
            loaded.value, kept.output, given, precision=precision, task=task, verification=judged, request=request
        )
    except BadModelError as error:  # the file was made here, so what its framework says of it is a finding
        found = Diagnosis(verification=judged, explanation=judged.reason, notes=(f"it cannot be diagnosed: {error}",))
    return replace(result, diagnosis=found)


def verify(
    source: Model,
    target: Model,
    *,
    inputs: str | Path | Mapping[str, np.ndarray] | Feeds | None = None,
    labels: str | Path | None = None,
    preprocess: str | None = None,
    limit: int | None = None,
    example_inputs: Any = None,
    checkpoint: str | Path | None = None,
    source_format: str | None = None,
    target_format: str | None = None,
    precision: str | None = None,
    task: str = "auto",
    settings: Settings = Settings(),  # noqa: B008 -- frozen
    session: Session | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Tell whether `target` computes what `source` computes; the arguments are those of `convert`."""
    verification.check_request(task, precision)
    with open_session(session, settings, progress) as active:
        loaded, twin, given = _pair(
            active,
            source,
            target,
            inputs=inputs,
            labels=labels,
            preprocess=preprocess,
            limit=limit,
            example_inputs=example_inputs,
            checkpoint=checkpoint,
            formats=(source_format, target_format),
        )
        active.progress("running source and target")
        return verification.verify(loaded, twin, given, precision=precision, task=task)


def _pair(
    active: Session,
    source: Model,
    target: Model,
    *,
    inputs: str | Path | Mapping[str, np.ndarray] | Feeds | None,
    labels: str | Path | None,
    preprocess: str | None,
    limit: int | None,
    example_inputs: Any,
    checkpoint: str | Path | None,
    formats: tuple[str | None, str | None],
) -> tuple[verification.Reference, Artifact, Feeds]:
    """Open both models and the inputs. Raises UsageError when one cannot be loaded."""
    example = _example(example_inputs if example_inputs is not None else inputs, preprocess)
    model = open_model(active, source, formats[0], checkpoint, example)
    twin = open_model(active, target, formats[1], None, example)
    given = open_feeds(active, model, inputs, labels=labels, preprocess=preprocess, limit=limit)
    loaded = verification.reference(active, model)
    if isinstance(loaded, Failure):
        raise verification.cannot_load(model, loaded)
    twin_loaded = active.signature(twin)
    if isinstance(twin_loaded, Failure) and twin_loaded.kind == Kind.UNAVAILABLE:
        raise verification.cannot_load(twin, twin_loaded)
    return loaded.value, twin, given


def diagnose(
    source: Model,
    target: Model,
    *,
    inputs: str | Path | Mapping[str, np.ndarray] | Feeds | None = None,
    labels: str | Path | None = None,
    preprocess: str | None = None,
    limit: int | None = None,
    example_inputs: Any = None,
    checkpoint: str | Path | None = None,
    source_format: str | None = None,
    target_format: str | None = None,
    precision: str | None = None,
    task: str = "auto",
    tools: bool = True,
    settings: Settings = Settings(),  # noqa: B008 -- frozen
    session: Session | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Tell where and why `target` does not compute what `source` computes; the arguments are those of `verify`.

    tools: also look for the conversion step that made the fault and for a way around it, which converts anew.
    """
    verification.check_request(task, precision)
    with open_session(session, settings, progress) as active:
        loaded, twin, given = _pair(
            active,
            source,
            target,
            inputs=inputs,
            labels=labels,
            preprocess=preprocess,
            limit=limit,
            example_inputs=example_inputs,
            checkpoint=checkpoint,
            formats=(source_format, target_format),
        )
        request = Request(budget=tracing_budget(active.settings.memory), tools=tools)
        return run.diagnose(loaded, twin, given, precision=precision, task=task, request=request)


def tracing_budget(memory: float | None) -> int:
    """Bytes of values held at a time: a quarter of what a job may use, since a framework keeps copies of its own."""
    return tracing.BUDGET if memory is None else max(2**20, min(tracing.BUDGET, int(memory / 4)))


def assert_faithful(source: Model, target: Model, **arguments: Any) -> Verification:
    """Raise AssertionError unless `target` is faithful; the message names the worst output. Arguments as for `verify`."""
    result = verify(source, target, **arguments)
    if result.verdict != Verdict.FAITHFUL:
        raise AssertionError(f"the target is {result.verdict}, not faithful: {result.reason}")
    return result


def inspect(
    model: Model,
    *,
    format: str | None = None,
    settings: Settings = Settings(),  # noqa: B008 -- frozen
    session: Session | None = None,
    progress: Progress | None = None,
) -> tuple[Artifact, Signature]:
    """Load a model and return what it is and what it takes and gives."""
    with open_session(session, settings, progress) as active:
        artifact = open_model(active, model, format, None, None)
        signature = active.signature(artifact)
        if isinstance(signature, Failure):
            raise verification.cannot_load(artifact, signature)
        return artifact, signature.value


def open_model(
    session: Session, model: Model, format: str | None, checkpoint: str | Path | None, example: Any
) -> Artifact:
    """Make an Artifact of whatever the caller calls a model."""
    if isinstance(model, Artifact):
        return model
    if format is not None:
        framework_of(format)
    if isinstance(model, str) and FACTORY.match(model) and not Path(model).exists():
        return _materialise(session, model, checkpoint, example)
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


def _materialise(session: Session, factory: str, checkpoint: str | Path | None, example: Any) -> Artifact:
    if not session.settings.trust:
        raise UntrustedError(f"{factory} is code that would be run; allow that with --trust")
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise UsageError(f"{checkpoint}: no such file")
    variant_python = session.settings.python
    environment = session.environment("torch", variant=None if variant_python is None else _own(variant_python))
    if isinstance(environment, Failure):
        raise UsageError(environment.message)
    out = session.pool.fresh_folder("factory") / f"{factory.rpartition(':')[2]}.pt2"
    arguments = {
        "factory": factory,
        "checkpoint": None if checkpoint is None else str(Path(checkpoint).absolute()),
        "example": _example_arrays(example),
        "out": str(out),
        "paths": [str(Path.cwd()), *session.settings.paths],
        "trust": True,
    }
    done = session.call(environment.value, torch_framework, "materialise", arguments, stage=Stage.LOAD)
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


def _example(given: Any, preprocess: str | None) -> Any:
    """Return what to trace a model with: of a folder of pictures the first one, preprocessed, else what was given."""
    if not isinstance(given, (str, Path)) or not Path(given).is_dir():
        return given
    picture = feeds.first_picture(Path(given), preprocess)
    return None if picture is None else (picture,)


def _example_arrays(example: Any) -> dict[str, np.ndarray] | list[np.ndarray] | None:
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
        return _generated(session, model, signature.value)
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


def _generated(session: Session, model: Artifact, signature: Signature) -> Feeds:
    """Generate inputs; integers whose legal range is unknown span as much as the source itself takes."""
    first = feeds.generate(signature, seed=session.settings.seed)
    if not feeds.has_free_integers(signature):
        return first
    for span in SPANS:
        given = feeds.generate(signature, seed=session.settings.seed, ids=span)
        ran = session.run(model, given.of_kind("data"))
        if isinstance(ran, Ok) and not ran.value.failures:
            session.release(ran.value)
            return given
    return first  # it fails for another reason, which the verdict will tell


def parsed_routes(
    model: Artifact, to: str, *, route: str | None, options: Sequence[str], precision: str
) -> tuple[planning.Route, ...]:
    """Return the routes to try. Raises UsageError when the request names none that exists."""
    parsed = planning.parse_options(options)
    legacy = is_legacy(model)
    if route is not None:
        forced = planning.parse_route(route, precision=precision, options=parsed)
        if forced.source_format != model.format or forced.target_format != to:
            raise UsageError(
                f"the route {route} goes from {forced.source_format} to {forced.target_format}, not from {model.format} to {to}"
            )
        return (forced,)
    found = planning.plan(model.format, to, legacy_keras=legacy, precision=precision, options=parsed)
    if not found:
        raise UsageError(
            f"there is no route from {model.format} to {to} at {precision}; `trueport routes` lists every step"
        )
    return found


def is_legacy(model: Artifact) -> bool:
    """Tell whether this is a Keras 2 file, which only the tf_keras toolchain reads as it was meant."""
    return runtime_toolchain(model) == "tf-keras"


def default_output(source: Model, model: Artifact, to: str) -> Path:
    """Return `NAME.SUFFIX` in the current folder."""
    stem = (
        model.path.name.split(".")[0] if not isinstance(source, str) or ":" not in source else source.rpartition(":")[2]
    )
    suffix = framework_of(to).SUFFIXES[to]
    name = f"{stem}{suffix}" if suffix else f"{stem}_{to}"
    if Path(name).absolute() == model.path:
        name = f"{stem}.converted{suffix}"
    return Path(name)
