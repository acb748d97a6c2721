"""`trueport inspect`: what a model is, takes and gives."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from trueport import api, results, zoo
from trueport.cli import _options as options
from trueport.cli import _output as output
from trueport.session import Session
from trueport.worker.pool import DEFAULT_TIMEOUT


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    source_format: options.SourceFormat = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    timeout: options.Timeout = DEFAULT_TIMEOUT,
    offline: options.Offline = False,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Show a model's format, inputs, outputs, operators, parameters and producer."""
    settings = options.settings(timeout=timeout, offline=offline, trust=trust)
    if zoo.is_list(model):
        with output.progress(quiet=quiet, verbose=verbose) as progress, Session(settings, progress) as session:
            typer.echo(zoo.listing(session, model))
        return
    with output.progress(quiet=quiet, verbose=verbose) as progress:
        artifact, signature = api.inspect(model, format=source_format, settings=settings, progress=progress)
    document = {
        **artifact.to_json(),
        "inputs": [spec.to_json() for spec in signature.inputs],
        "outputs": [spec.to_json() for spec in signature.outputs],
        "meta": dict(signature.meta),
    }
    if json:
        typer.echo(results.dumps(document), nl=False)
        return
    console = output.stdout()
    console.print(
        Text(f"{artifact.path}: {artifact.format}, {artifact.size:,} bytes, sha256 {artifact.sha256[:16]}"),
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "name", "dtype", "shape"):
        table.add_column(column, overflow="fold")
    for side, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            shape = (
                "?"
                if spec.shape is None
                else "×".join("?" if dim is None else str(dim) for dim in spec.shape) or "scalar"
            )
            table.add_row(side, Text(spec.name), spec.dtype, Text(shape))
    console.print(table)
    for key, value in signature.meta.items():
        if isinstance(value, dict):
            value = ", ".join(
                f"{name} {count}" for name, count in sorted(value.items(), key=lambda item: -_count(item[1]))
            )
        console.print(Text(f"{key}: {value}"), soft_wrap=True)


def _count(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
