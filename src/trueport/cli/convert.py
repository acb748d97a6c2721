"""`trueport convert`: plan a route, convert hop by hop, verify every hop, mend what is not faithful, report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from trueport import api, results
from trueport.cli import _options as options
from trueport.cli import _output as output
from trueport.worker.pool import DEFAULT_TIMEOUT

To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="onnx, tflite, savedmodel, keras, pytorch, torchscript, coreml, openvino, tvm or executorch.",
    ),
]
Diagnose = Annotated[
    bool,
    typer.Option(
        "--diagnose/--no-diagnose", help="Say where and why the result is not faithful; without it no repair either."
    ),
]
Repair = Annotated[
    bool,
    typer.Option(
        "--repair/--no-repair",
        help="Mend the best result when no route gives a faithful one, and put it in its place.",
    ),
]


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A model, package.module:factory, or a zoo: name.")],
    to: To,
    out: Annotated[Path | None, typer.Option("-o", "--output", metavar="OUT", help="Where the result goes.")] = None,
    inputs: options.Inputs = None,
    labels: options.Labels = None,
    preprocess: options.Preprocess = None,
    limit: options.Limit = None,
    task: options.Task = "auto",
    precision: Annotated[str, typer.Option(help="float32, float16, int8-dynamic or int8.")] = "float32",
    route: Annotated[
        str | None, typer.Option(metavar="STEP,STEP", help="Force a route; see `trueport routes`.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="STEP.key=value", help="Option of a step; repeatable.")
    ] = None,
    max_routes: Annotated[int, typer.Option(min=1, help="How many routes to try.")] = 6,
    check: Annotated[bool, typer.Option("--verify/--no-verify", help="Verify every hop.")] = True,
    diagnose: Diagnose = True,
    repair: Repair = True,
    checkpoint: options.Checkpoint = None,
    source_format: options.SourceFormat = None,
    seed: options.Seed = 0,
    json: options.Json = None,
    report: options.Report = None,
    timeout: options.Timeout = DEFAULT_TIMEOUT,
    memory: options.Memory = None,
    with_: options.With = None,
    as_of: options.AsOf = None,
    python: options.Python = None,
    offline: options.Offline = False,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Convert SOURCE to a format, verify every hop against the source, and leave the best result at OUT.

    When no route gives a faithful model the best one is diagnosed and repaired.

    Exit code 0: faithful, be it after a repair. 1: converted, but not faithful. 4: no route succeeded.
    """
    settings = options.settings(
        seed=seed,
        timeout=timeout,
        memory=memory,
        packages=with_,
        as_of=as_of,
        python=python,
        offline=offline,
        trust=trust,
    )
    output.check_places(json=json, report=report, others=(source, inputs, labels, preprocess, checkpoint, out))
    with output.progress(quiet=quiet, verbose=verbose) as progress:
        result = api.convert(
            source,
            to=to,
            out=out,
            inputs=inputs,
            labels=labels,
            preprocess=preprocess,
            limit=limit,
            checkpoint=checkpoint,
            source_format=source_format,
            route=route,
            options=option or (),
            precision=precision,
            task=task,
            check=check,
            diagnose=diagnose,
            repair=repair,
            max_routes=max_routes,
            settings=settings,
            progress=progress,
        )
    document = results.convert_document(result, rerun=shlex.join(["trueport", *sys.argv[1:]]))
    output.deliver(document, json=json, report=report, quiet=quiet)
    raise typer.Exit(output.exit_code(document))
