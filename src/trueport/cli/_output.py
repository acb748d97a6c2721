"""Where a command's words go: the summary to stdout, progress to stderr, JSON and reports to files."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from trueport import publish, results
from trueport.report import REPORTERS, terminal, wording
from trueport.results import Document
from trueport.session import Progress


def stdout() -> Console:
    """The console for results."""
    return Console(file=sys.stdout, highlight=False)


def stderr() -> Console:
    """The console for progress and errors."""
    return Console(file=sys.stderr, highlight=False)


@contextmanager
def progress(*, quiet: bool, verbose: bool) -> Iterator[Progress]:
    """Show what is going on, on stderr: a line that changes on a terminal, plain lines when asked for or in a log."""
    console = stderr()
    if quiet:
        yield lambda line: None
    elif verbose or not console.is_terminal:
        yield lambda line: console.print(line, style="dim", markup=False)
    else:
        with console.status("starting") as status:
            yield lambda line: status.update(line)


def check_places(
    *, json: str | None, report: Path | None, patch: Path | None = None, others: Iterable[str | Path | None] = ()
) -> None:
    """Make sure, before the work begins, that its results can be written. Raises UsageError.

    others: what else the command reads and writes, none of which they may replace.
    """
    if json is not None and json != "-":
        publish.check_file(Path(json))
    publish.check_distinct([None if json == "-" else json, report, patch], others)
    if report is not None:
        publish.check_folder(report)


def deliver(document: Document, *, json: str | None, report: Path | None, quiet: bool) -> None:
    """Write the JSON and the report that were asked for, and print the summary."""
    if report is not None:
        write_report(document, report, tuple(REPORTERS))
    if json == "-":
        sys.stdout.write(results.dumps(document))
        console = stderr()
    else:
        console = stdout()
        if json is not None:
            publish.text(Path(json), results.dumps(document))
    if not quiet:
        terminal.show(document, console)
    elif json != "-":
        terminal.show_line(document, console)
    if report is not None and not quiet:
        console.print(f"report: {report / REPORTERS['html'][0]}", soft_wrap=True)


def write_report(document: Document, folder: Path, forms: tuple[str, ...]) -> None:
    """Render a document in each form into `folder`."""
    for form in forms:
        name, render = REPORTERS[form]
        publish.text(folder / name, render(document))


def exit_code(document: Document) -> int:
    """0 faithful or done, 1 done and not faithful, 4 no route succeeded, 130 ended by ^C with the best so far."""
    repair = wording.repair(document)
    if repair is not None and repair["interrupted"]:
        return 130
    if repair is document:
        return 0 if repair["status"] in ("repaired", "not-needed") else 1
    if document.get("status") == "failed":
        return 4
    verify = document.get("verify", document)
    return 0 if verify is None or verify["verdict"] == "faithful" else 1
