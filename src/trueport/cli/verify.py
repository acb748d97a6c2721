"""`trueport verify`: is the twin faithful?"""

from __future__ import annotations

from typing import Annotated

import typer

from trueport import api, results
from trueport.cli import _options as options
from trueport.cli import _output as output
from trueport.worker.pool import DEFAULT_TIMEOUT


def verify(
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
    """Run SOURCE and TARGET on the same inputs and compare every output with the measured noise floor.

    Exit code 0: faithful. 1: deviates, incomparable or flaky.
    """
    settings = options.settings(seed=seed, timeout=timeout, memory=memory, python=python, offline=offline, trust=trust)
    output.check_places(json=json, report=report, others=(source, target, inputs, labels, preprocess, checkpoint))
    with output.progress(quiet=quiet, verbose=verbose) as progress:
        result = api.verify(
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
            settings=settings,
            progress=progress,
        )
    document = results.verify_document(result)
    output.deliver(document, json=json, report=report, quiet=quiet)
    raise typer.Exit(output.exit_code(document))
