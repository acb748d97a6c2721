"""Options that several commands share, declared once."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated

import typer

from trueport.errors import UsageError
from trueport.session import Settings
from trueport.worker.pool import DEFAULT_TIMEOUT

Inputs = Annotated[
    str | None,
    typer.Option(
        "--inputs", metavar="DATA", help=".npz, .npy, folder of images, .csv or .jsonl; generated when absent."
    ),
]
Labels = Annotated[
    Path | None, typer.Option("--labels", metavar="FILE", help="True classes: .csv (file,label), .npy or .txt.")
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="How images become inputs: a .json/.toml file, or size=224x224,scale=1/255,mean=…,std=…,layout=NCHW.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Take so many samples of --inputs.")]
Task = Annotated[str, typer.Option(help="classification, regression, detection, segmentation, tokens or auto.")]
Seed = Annotated[int, typer.Option(help="Seed of generated inputs.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="Write the result as JSON; - prints it alone on stdout.")
]
Report = Annotated[
    Path | None, typer.Option("--report", metavar="DIR", help="Write the HTML, Markdown and JSON report there.")
]
Timeout = Annotated[float, typer.Option(metavar="S", help="Seconds that one job may take.")]
Memory = Annotated[float | None, typer.Option(metavar="GiB", help="Memory that one job may use.")]
With = Annotated[
    list[str] | None,
    typer.Option(
        "--with", metavar="PACKAGE==VERSION", help="Build the converter's toolchain with this version; repeatable."
    ),
]
AsOf = Annotated[
    str | None, typer.Option("--as-of", metavar="YYYY-MM-DD", help="Resolve the converter's toolchain as of that day.")
]
Python = Annotated[
    Path | None, typer.Option("--python", metavar="PATH", help="Your own interpreter, for the source model.")
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Build environments from what is cached; never use the network.")
]
Trust = Annotated[bool, typer.Option("--trust", help="Allow formats that run code when they are loaded.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print the result line only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print every stage, and logs of failures.")]
Checkpoint = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights for package.module:factory: .safetensors, .pth, .pt.")
]
SourceFormat = Annotated[
    str | None, typer.Option("--source-format", metavar="FORMAT", help="Override what the source's bytes say.")
]
TargetFormat = Annotated[
    str | None, typer.Option("--target-format", metavar="FORMAT", help="Override what the target's bytes say.")
]


def check_budget(seconds: float, attempts: int) -> None:
    """Make sure that a search may begin at all. Raises UsageError."""
    if not seconds > 0:
        raise UsageError("--seconds takes a number of seconds above 0")
    if attempts < 1:
        raise UsageError("--attempts takes a number of at least 1")


def settings(
    *,
    seed: int = 0,
    timeout: float = DEFAULT_TIMEOUT,
    memory: float | None = None,
    packages: list[str] | None = None,
    as_of: str | None = None,
    python: Path | None = None,
    offline: bool = False,
    trust: bool = False,
) -> Settings:
    """Check the shared options and make Settings of them. Raises UsageError."""
    if not timeout > 0:
        raise UsageError("--timeout takes a number of seconds above 0")
    if memory is not None and not memory > 0:
        raise UsageError("--memory takes a number of GiB above 0")
    for item in packages or []:
        if not re.fullmatch(r"[A-Za-z0-9][\w.\-]*==[\w.!+\-]+", item):
            raise UsageError(f"--with takes PACKAGE==VERSION, not '{item}'")
    if as_of is not None:
        try:
            datetime.date.fromisoformat(as_of)
        except ValueError:
            raise UsageError(f"--as-of takes a date as YYYY-MM-DD, not '{as_of}'") from None
    if python is not None and not python.exists():
        raise UsageError(f"--python {python}: no such interpreter")
    return Settings(
        seed=seed,
        timeout=timeout,
        memory=None if memory is None else memory * 2**30,
        packages=tuple(packages or ()),
        as_of=as_of,
        python=python,
        offline=offline,
        trust=trust,
    )
