"""`trueport repair`: a corrected model in the target's own format."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from trueport import api, results
from trueport.cli import _options as options
from trueport.cli import _output as output
from trueport.repairs.run import ATTEMPTS, SECONDS
from trueport.worker.pool import DEFAULT_TIMEOUT

Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="The model that shall compute the same; it is never written to.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="FIXED", help="Where the mended model goes; NAME.fixed.SUFFIX here when absent."
    ),
]
Patch = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.py", help="Write a script that makes the same changes with the format's own library alone."
    ),
]


def repair(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The model that is right.")],
    target: Target,
    out: Out = None,
    patch: Patch = None,
    inputs: options.Inputs = None,
    labels: options.Labels = None,
    preprocess: options.Preprocess = None,
    limit: options.Limit = None,
    task: options.Task = "auto",
    precision: Annotated[
        str | None,
        typer.Option(
            help="What TARGET is declared to be: float32, float16, int8-dynamic, int8; from its file when absent."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(metavar="S", help="Time for the search; then the best so far.")] = SECONDS,
    attempts: Annotated[int, typer.Option(metavar="N", help="Changes to try; then the best so far.")] = ATTEMPTS,
    tools: Annotated[
        bool,
        typer.Option(
            "--tools/--no-tools",
            help="Where no change helps, look for another tool, option or version, which converts anew.",
        ),
    ] = True,
    checkpoint: options.Checkpoint = None,
    source_format: options.SourceFormat = None,
    target_format: options.TargetFormat = None,
    seed: options.Seed = 0,
    json: options.Json = None,
    report: options.Report = None,
    timeout: options.Timeout = DEFAULT_TIMEOUT,
    memory: options.Memory = None,
    python: options.Python = None,
    offline: options.Offline = False,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write a copy of TARGET, in its own format, that computes what SOURCE computes, with as few changes as will do.

    The result is verified on inputs that the search never saw: generated ones, or every second sample of --inputs.
    Nothing is written unless it is nearer to SOURCE. ^C ends the search and takes the best so far.

    Exit code 0: repaired, or faithful as it is. 1: improved at most. 130: interrupted.
    """
    settings = options.settings(seed=seed, timeout=timeout, memory=memory, python=python, offline=offline, trust=trust)
    options.check_budget(seconds, attempts)
    output.check_places(
        json=json, report=report, patch=patch, others=(source, target, inputs, labels, preprocess, checkpoint, out)
    )
    with output.progress(quiet=quiet, verbose=verbose) as progress:
        result = api.repair(
            source,
            target,
            out=out,
            patch=patch,
            inputs=inputs,
            labels=labels,
            preprocess=preprocess,
            limit=limit,
            checkpoint=checkpoint,
            source_format=source_format,
            target_format=target_format,
            precision=precision,
            task=task,
            seconds=seconds,
            attempts=attempts,
            tools=tools,
            settings=settings,
            progress=progress,
        )
    document = results.repair_document(result, rerun=[shlex.join(["trueport", *sys.argv[1:]])])
    output.deliver(document, json=json, report=report, quiet=quiet)
    raise typer.Exit(output.exit_code(document))
