"""The public functions: the same stages and result values as the command line.

Models are given as paths, as `package.module:factory` (with `trust=True`), or as live objects of a framework that the
caller has loaded: those are saved once in the caller's process, and everything else happens in workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trueport import conversion, publish, tracing, verification, zoo
from trueport import routes as planning
from trueport.artifact import Artifact, Signature, offered
from trueport.compare.types import Verdict, Verification
from trueport.conversion import Conversion
from trueport.diagnosis import run
from trueport.diagnosis.run import Request
from trueport.diagnosis.types import Diagnosis
from trueport.errors import UsageError
from trueport.feeds import Feeds
from trueport.opening import Model, example_of, open_feeds, open_model, open_session, open_unseen
from trueport.outcome import Failure, Kind
from trueport.repairs import converted, patching
from trueport.repairs import run as mending
from trueport.repairs.run import Budget
from trueport.repairs.types import Repair
from trueport.session import Progress, Session, Settings, formats, framework_of, runtime_toolchain


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
    repair: bool = True,
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
        repair: then also mend it; what is nearer to the source takes the place of the converted model at `out`.
            Needs `check` and `diagnose`.

    Returns:
        A `Conversion`; `.verification.verdict` is the answer for what lies at `out`, `.diagnosis` says why where the
        converters' result is not faithful, `.repair` what was changed, and `.chosen` is None when no route succeeded.

    Raises:
        UsageError: the request cannot be served; the message says how to mend it.
    """
    if to not in formats():
        raise UsageError(f"the format '{to}' is not known; known are {offered()}")
    verification.check_request(task, precision)
    with open_session(session, settings, progress) as active:
        given_inputs = inputs if isinstance(inputs, Mapping) else None
        example = example_of(example_inputs or given_inputs or inputs, preprocess)
        model = open_model(active, source, source_format, checkpoint, example)
        chosen = parsed_routes(model, to, route=route, options=options, precision=precision)
        target = Path(out) if out is not None else default_output(source, model, to)
        publish.check_model(target, model.path, to, folder=not framework_of(to).SUFFIXES[to])
        given = open_feeds(active, model, inputs, labels=labels, preprocess=preprocess, limit=limit)
        result = conversion.convert(
            active, model, chosen, given, out=target, check=check, task=task, max_routes=max_routes
        )
        if not diagnose or not converted.unfaithful(result):
            return result
        loaded = verification.reference(active, model)
        if isinstance(loaded, Failure):
            raise verification.cannot_load(model, loaded)
        budget = tracing_budget(active.settings.memory)
        result = converted.diagnosed(loaded.value, result, given, task=task, budget=budget)
        if not repair:
            return result
        return converted.repaired(loaded.value, result, given, unseen=open_unseen(active, model, inputs), task=task)


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
    example = example_of(example_inputs if example_inputs is not None else inputs, preprocess)
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


def repair(
    source: Model,
    target: Model,
    *,
    out: str | Path | None = None,
    patch: str | Path | None = None,
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
    seconds: float = mending.SECONDS,
    attempts: int = mending.ATTEMPTS,
    tools: bool = True,
    settings: Settings = Settings(),  # noqa: B008 -- frozen
    session: Session | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Mend `target` in its own format until it computes what `source` computes; the other arguments are those of `verify`.

    What comes out is proven on inputs that the search never saw: generated ones of another seed, or every second
    sample of `inputs`. `target` is never written to.

    Args:
        out: where the mended model goes; by default `NAME.fixed.SUFFIX` in the current folder. Nothing is written there
            unless it is nearer to the source.
        patch: where a Python script goes that makes the same changes to the same file with the format's library alone.
        seconds: time for the search, after which the best so far is taken.
        attempts: changes that are tried, after which the best so far is taken.
        tools: where no change makes it faithful, look for another tool, option or version that does, and take its result.

    Returns:
        A `Repair`; `.status` is the answer, `.edits` what was changed, `.output` where the mended model lies.

    Raises:
        UsageError: the request cannot be served; the message says how to mend it.
    """
    verification.check_request(task, precision)
    if not seconds > 0 or attempts < 1:
        raise UsageError("a repair takes a number of seconds above 0 and at least 1 attempt")
    if patch is not None:
        patching.check(Path(patch))
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
        place = fixed_output(twin) if out is None else Path(out)
        _check_suffix(place, twin)
        unseen = open_unseen(active, loaded.artifact, inputs)
        made = mending.repair(
            loaded,
            twin,
            given,
            out=place,
            unseen=unseen,
            precision=precision,
            task=task,
            budget=Budget(seconds=seconds, attempts=attempts),
            tools=tools,
        )
        if made.after is None or made.artifact is None:
            return made
        made = _verifiable(active, made, made.after, made.artifact, unseen or given)
        return made if patch is None else patching.written(made, Path(patch))


def _verifiable(active: Session, made: Repair, after: Verification, mended: Artifact, given: Feeds) -> Repair:
    """The same repair with the command that verifies its result, by the source or by what settles what that means."""
    again = verification.rerun_command(active, after.source, mended, given, after.declared_precision)
    return replace(made, after=replace(after, rerun=again))


def fixed_output(target: Artifact) -> Path:
    """Return `NAME.fixed.SUFFIX` in the current folder."""
    folder = not framework_of(target.format).SUFFIXES[target.format]
    return Path(f"{target.path.name}.fixed" if folder else f"{target.path.stem}.fixed{target.path.suffix}")


def _check_suffix(out: Path, target: Artifact) -> None:
    """Make sure that a mended model is not called what another kind of file is. Raises UsageError."""
    models = {suffix for format in formats() for suffix in framework_of(format).SUFFIXES.values() if suffix}
    if out.suffix != target.path.suffix and out.suffix in models | {".h5", ".hdf5"}:
        kind = f"a {target.path.suffix} file" if target.path.suffix else f"a {target.format}"
        raise UsageError(
            f"{out} would be {kind} like {target.path.name}, whatever it is called; give it such a name with -o"
        )


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
        model.path.name.split(".")[0]
        if not isinstance(source, str) or ":" not in source or zoo.is_name(source)
        else source.rpartition(":")[2]
    )
    suffix = framework_of(to).SUFFIXES[to]
    name = f"{stem}{suffix}" if suffix else f"{stem}_{to}"
    if Path(name).absolute() == model.path:
        name = f"{stem}.converted{suffix}"
    return Path(name)
