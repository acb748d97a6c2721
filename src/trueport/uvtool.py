"""How uv is called, and what its complaints mean: one sentence for each thing that goes wrong on a user's machine."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import uv

Progress = Callable[[str], None]
"""Receives one line at a time while an environment is built."""

LOG_LINES = 200
"""Lines of uv's output that a failure keeps; a resolver's explanation stands at the end."""

_UNWANTED = (
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "PYTHONHOME",
    "PYTHONPATH",
    "UV_BREAK_SYSTEM_PACKAGES",
    "UV_BUILD_CONSTRAINT",
    "UV_CONSTRAINT",
    "UV_EXCLUDE",
    "UV_EXCLUDE_NEWER",
    "UV_OVERRIDE",
    "UV_PRERELEASE",
    "UV_PROJECT",
    "UV_PROJECT_ENVIRONMENT",
    "UV_PYTHON",
    "UV_REQUIRE_HASHES",
    "UV_RESOLUTION",
    "UV_SYSTEM_PYTHON",
    "UV_WORKING_DIR",
)
"""Variables that would change what is installed, or where. Those that say how to reach an index are kept."""

_STAGES = ("Resolved", "Prepared", "Installed", "Downloading", "Downloaded", "Building", "Built")

DISK_FULL, NOT_WRITABLE, OFFLINE, NETWORK, INDEX = "disk-full", "not-writable", "offline", "network", "index"
NO_SUCH_VERSION, NO_SUCH_PACKAGE, NO_BUILD = "no-such-version", "no-such-package", "no-build"
NO_SOLUTION, BROKEN, MISSING, UNKNOWN = "no-solution", "broken-package", "missing", "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How one call of uv ended; `log` is what it printed on stderr."""

    code: int
    log: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """What uv's text means. `kind` is a word for the program, `sentence` for the person; `subject` is the package or version at fault."""

    kind: str
    sentence: str
    subject: str = ""


_COMPLAINTS: Sequence[tuple[str, str, str]] = (
    (
        r"uv cannot be run",
        MISSING,
        "the program uv, which comes with trueport, is missing or does not run; put it back with `pip install --force-reinstall uv`",
    ),
    (
        r"no space left on device|os error 28\b|disk quota exceeded",
        DISK_FULL,
        "the disk is full; free some space, or put the environments elsewhere with TRUEPORT_CACHE (and uv's downloads with UV_CACHE_DIR)",
    ),
    (
        r"read-only file system|permission denied|os error (?:13|30)\b",
        NOT_WRITABLE,
        "a folder cannot be written; make it writable, or choose another with TRUEPORT_CACHE (environments) or UV_CACHE_DIR (downloads)",
    ),
    (
        r"Because (?P<what>\S+) was not found in the cache|network was disabled|network connectivity is disabled",
        OFFLINE,
        "it cannot be completed offline, because {what} has not been downloaded before; run once without --offline",
    ),
    (
        r"dns error|client error \(Connect\)|error sending request|failed to lookup|operation timed out|connection (?:refused|reset)",
        NETWORK,
        "the package index cannot be reached; check the network and proxy, or name an index that can be reached in UV_DEFAULT_INDEX",
    ),
    (
        r"HTTP status (?:client|server) error \((?P<what>\d+ [^)]*)\)|status code (?P<code>\d+)",
        INDEX,
        "the package index refused the request ({what}); check the index and the credentials that uv is given",
    ),
    (
        r"`(?P<what>[^`]+)` was filtered by `exclude-newer`",
        NO_SOLUTION,
        "no fitting version of {what} had been published on that day; choose a later day",
    ),
    (
        r"there (?:is|are) no versions? of (?P<what>[^\s,]+(?: [^\s,]*[<>=][^\s,]*)?)",
        NO_SUCH_VERSION,
        "there is no version {what}; check the version number and the index",
    ),
    (
        r"(?P<what>\S+) was not found in the (?:package registry|provided package locations)",
        NO_SUCH_PACKAGE,
        "the package index has no package {what}; check the spelling and the index",
    ),
    (
        r"(?P<what>\S+) depends on Python\S*, we can conclude|(?P<code>\S+) has no (?:usable )?wheels",
        NO_BUILD,
        "{what} is not published for this Python version or machine; choose another version",
    ),
    (
        r"(?P<what>\S+) has an invalid package format|failed to read from zip|Failed to (?:extract|parse|read metadata)",
        BROKEN,
        "the file of {what} is damaged; clear it with `uv cache clean`, or choose another version",
    ),
    (
        r"No solution found",
        NO_SOLUTION,
        "no set of versions satisfies all requirements together; choose other versions (the log says which ones clash)",
    ),
    (
        r"Failed to (?:build|download and build) `?(?P<what>[^`\s]+)|build backend returned an error",
        BROKEN,
        "{what} could not be built from its source; choose a version that is published for this machine",
    ),
)


def explain(log: str) -> Complaint:
    """Say what uv's text means; the first row of the table that matches decides."""
    for pattern, kind, sentence in _COMPLAINTS:
        if match := re.search(pattern, log, re.IGNORECASE):
            found = {key: value.strip("`") for key, value in match.groupdict().items() if value}
            subject = found.get("what") or found.get("code") or ""
            return Complaint(kind=kind, sentence=sentence.format(what=subject or "a package"), subject=subject)
    return Complaint(kind=UNKNOWN, sentence="uv could not install the packages; the log holds its words")


def run(arguments: Sequence[str], *, environ: Mapping[str, str], folder: Path, progress: Progress) -> Done:
    """Call uv in `folder`, passing its stage lines on as they come. uv is ended when anything interrupts the wait."""
    try:
        command = [uv.find_uv_bin(), *arguments]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(environ),
            cwd=folder,
        )
    except OSError as error:
        return Done(code=127, log=f"uv cannot be run: {error}")
    lines: deque[str] = deque(maxlen=LOG_LINES)
    try:
        assert process.stderr is not None
        for raw in process.stderr:
            line = raw.decode("utf-8", "replace").rstrip()
            lines.append(line)
            if line.strip().startswith(_STAGES):
                progress(line.strip())
        return Done(code=process.wait(), log="\n".join(lines))
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stderr is not None:
        with contextlib.suppress(OSError):
            process.stderr.close()


def environment(*, find_links: bool = True) -> dict[str, str]:
    """Return the variables that uv is given: the user's, less those that would change what is installed.

    pip's settings for local files and for the index count where uv's own are absent. Relative folders are made absolute,
    because uv runs in another folder. With `find_links` false, local files are not offered.
    """
    environ = {key: value for key, value in os.environ.items() if key not in _UNWANTED}
    environ["NO_COLOR"] = "1"
    if "PIP_INDEX_URL" in environ and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & environ.keys():
        environ["UV_DEFAULT_INDEX"] = environ["PIP_INDEX_URL"]
    links = _find_links(environ) if find_links else []
    environ.pop("UV_FIND_LINKS", None)
    environ.pop("PIP_FIND_LINKS", None)
    if links:
        environ["UV_FIND_LINKS"] = ",".join(links)
    return environ


def _find_links(environ: Mapping[str, str]) -> list[str]:
    if "UV_FIND_LINKS" in environ:
        given = environ["UV_FIND_LINKS"].split(",")
    else:
        given = environ.get("PIP_FIND_LINKS", "").split()
    stripped = (link.strip() for link in given)
    return [link if "://" in link else str(Path(link).expanduser().absolute()) for link in stripped if link]


def offers(environ: Mapping[str, str], package: str, version: str | None, python: str) -> bool:
    """Whether a local folder among the find-links holds a wheel of this package for this Python (`3.11`), and of this version if one is named."""
    tags = ("cp" + python.replace(".", ""), "py3", "abi3")
    for link in _find_links(environ):
        folder = Path(unquote(urlsplit(link).path)) if link.startswith("file://") else Path(link)
        for wheel in folder.glob(f"{package}-*.whl") if "://" not in str(folder) and folder.is_dir() else ():
            _, found, *rest = wheel.stem.split("-")
            if version in (None, found.partition("+")[0]) and any(
                tag in part.split(".") for part in rest for tag in tags
            ):
                return True
    return False
