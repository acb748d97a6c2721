"""`trueport diagnose`: where and why is the twin wrong?"""

from __future__ import annotations

import shlex
import sys
from typing import Annotated

import typer

from trueport import api, results
from trueport.cli import _options as options
from trueport.cli import _output as output
from trueport.worker.pool import DEFAULT_TIMEOUT


def diagnose(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The model that is right.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The model that shall compute the same.")],
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
    tools: Annotated[
        bool,
        typer.Option(
            "--tools/--no-tools",
            help="Look for the conversion step that made the fault and for a way around it, which converts anew.",
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
    """Say where in TARGET its deviation from SOURCE begins, what is wrong there, and which tool did it.

    Exit code 0: faithful, so that there is nothing to diagnose. 1: done, and TARGET is not faithful.
    """
    settings = options.settings(seed=seed, timeout=timeout, memory=memory, python=python, offline=offline, trust=trust)
    output.check_places(json=json, report=report, others=(source, target, inputs, labels, preprocess, checkpoint))
    with output.progress(quiet=quiet, verbose=verbose) as progress:
        result = api.diagnose(
            source,
            target,
            inputs=inputs,
            labels=labels,
            preprocess=preprocess,
            limit=limit,
            checkpoint=checkpoint,
            source_format=source_format,
            target_format=target_format,
            precision=precision,
            task=task,
            tools=tools,
            settings=settings,
            progress=progress,
        )
    document = results.diagnose_document(result, rerun=[shlex.join(["trueport", *sys.argv[1:]])])
    output.deliver(document, json=json, report=report, quiet=quiet)
    raise typer.Exit(output.exit_code(document))
