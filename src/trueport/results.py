"""Results as JSON documents: the contract that scripts and CI of users read, and what every report is rendered from."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from trueport.compare.types import Verification
from trueport.conversion import Attempt, Conversion, HopResult
from trueport.diagnosis import known
from trueport.diagnosis.types import Diagnosis
from trueport.errors import UsageError
from trueport.outcome import Failure
from trueport.repairs.explanation import reasons
from trueport.repairs.types import Repair

VERIFY = "trueport/verify/1"
CONVERT = "trueport/convert/1"
DIAGNOSE = "trueport/diagnose/1"
REPAIR = "trueport/repair/1"
KINDS = (VERIFY, CONVERT, DIAGNOSE, REPAIR)

Document = dict[str, Any]


def verify_document(result: Verification) -> Document:
    """Return the `trueport/verify/1` document."""
    comparison = result.comparison
    return {
        "format": VERIFY,
        **comparison.to_json(),
        "source": result.source.to_json(),
        "target": result.target.to_json(),
        "inputs": dict(result.inputs),
        "declared_precision": result.declared_precision,
        "versions": dict(result.versions),
        "timings": {name: round(seconds, 4) for name, seconds in result.timings.items()},
        "rerun": list(result.rerun),
        "notes": [*result.notes, *comparison.notes],
    }


def diagnose_document(result: Diagnosis, *, rerun: Sequence[str] | None = None) -> Document:
    """Return the `trueport/diagnose/1` document. rerun: the command that made it; else derived from the verification's."""
    stage, issue = result.stage, result.known_issue
    return {
        "format": DIAGNOSE,
        "verdict": str(result.verification.verdict),
        "stage": None if stage is None else stage.to_json(),
        "suspects": [suspect.to_json() for suspect in result.suspects],
        "known_issue": None if issue is None else issue.to_json(),
        "explanation": result.explanation,
        "notes": list(result.notes),
        "alignment": dict(result.alignment),
        "timings": {name: round(seconds, 4) for name, seconds in result.timings.items()},
        "rerun": [diagnosing(line) for line in result.verification.rerun] if rerun is None else list(rerun),
        "verify": verify_document(result.verification),
    }


def diagnosing(line: str) -> str:
    """Return the diagnose command of a verify command: they take the same options."""
    program, command, *rest = shlex.split(line)
    return shlex.join([program, "diagnose" if command == "verify" else command, *rest])


def repair_document(result: Repair, *, rerun: Sequence[str] = ()) -> Document:
    """Return the `trueport/repair/1` document. rerun: the command that made it."""
    return {
        "format": REPAIR,
        "status": str(result.status),
        "source": result.source.to_json(),
        "target": result.target.to_json(),
        "output": None if result.output is None else str(result.output),
        "edits": [{**edit.to_json(), "step": number} for number, group in enumerate(result.steps, 1) for edit in group],
        "attempts": len(result.attempts),
        "before": verify_document(result.before),
        "after": None if result.after is None else verify_document(result.after),
        "explanation": result.explanation,
        "suspects": [suspect.to_json() for suspect in result.suspects],
        "refused": reasons(result),
        "tried": [attempt.to_json() for attempt in result.attempts],
        "command": result.command,
        "patch": None if result.patch is None else str(result.patch),
        "interrupted": result.interrupted,
        "notes": list(result.notes),
        "timings": {name: round(seconds, 4) for name, seconds in result.timings.items()},
        "rerun": list(rerun),
    }


def convert_document(result: Conversion, *, rerun: str) -> Document:
    """Return the `trueport/convert/1` document. `diagnose` and `repair` are null for a result that was faithful at once.

    Both speak of the model as the converters made it; `verify` is of the model that lies at `output`.
    """
    verification, repaired = result.verification, result.repair
    replaced = repaired is not None and repaired.output is not None
    diagnosed = [shlex.join([*shlex.split(rerun), "--no-repair"])] if replaced else None
    return {
        "format": CONVERT,
        "status": "failed" if result.chosen is None else "ok",
        "source": result.source.to_json(),
        "target_format": result.target_format,
        "route": [] if result.chosen is None else _hops(result.chosen),
        "tried": [_attempt(attempt) for attempt in result.attempts],
        "output": None if result.output is None else str(result.output.absolute()),
        "verify": None if verification is None else verify_document(verification),
        "diagnose": None if result.diagnosis is None else diagnose_document(result.diagnosis, rerun=diagnosed),
        "repair": None if repaired is None else repair_document(repaired, rerun=[rerun]),
        "rerun": [rerun],
    }


def _attempt(attempt: Attempt) -> Document:
    blamed = attempt.blamed
    failure = attempt.failure
    verification = attempt.verification
    return {
        "route": attempt.route.name,
        "hops": _hops(attempt),
        "failure": None if failure is None else failure.to_json(),
        "verdict": None if verification is None else str(verification.verdict),
        "reason": None if verification is None else verification.reason,
        "blamed": None if blamed is None else blamed.hop.step.name,
    }


def _hops(attempt: Attempt) -> list[Document]:
    return [_hop(hop) for hop in attempt.hops]


def _hop(result: HopResult) -> Document:
    step, outcome = result.hop.step, result.outcome
    failed = isinstance(outcome, Failure)
    judged = {"original": result.verified, "previous": result.against_previous}
    return {
        "step": step.name,
        "source_format": step.source_format,
        "target_format": step.target_format,
        "toolchain": step.toolchain,
        "versions": dict(result.versions),
        "options": dict(result.hop.options),
        "outcome": str(outcome.kind) if isinstance(outcome, Failure) else "ok",
        "failure": outcome.to_json() if isinstance(outcome, Failure) else None,
        "known_issue": _known(result),
        "seconds": 0.0 if failed or isinstance(outcome, Failure) else round(outcome.seconds, 4),
        "verdicts": {
            name: None if one is None else {"verdict": str(one.verdict), "reason": one.reason}
            for name, one in judged.items()
        },
        "notes": list(result.notes),
    }


def _known(result: HopResult) -> Document | None:
    """Return the bug upstream that made a hop fail, where one is known that looks like it."""
    if not isinstance(result.outcome, Failure):
        return None
    issue = known.match_failure(result.outcome, result.hop.step.name, result.versions)
    return None if issue is None else issue.to_json()


def plain(value: Any) -> Any:
    """Make a value strict JSON: NaN and the infinities become the strings "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        return plain(value.item())
    return value


def dumps(document: Document) -> str:
    """Encode a document, UTF-8 text with a final newline."""
    return json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: Path) -> Document:
    """Read a stored result. Raises UsageError when it is none of ours."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a stored result: {error}") from error
    if not isinstance(document, dict) or document.get("format") not in KINDS:
        known_kinds = ", ".join(KINDS)
        raise UsageError(f"{path} is not a stored result of a kind that this version knows ({known_kinds})")
    name = document["format"].split("/")[1]
    missing = [key for key in schema(name)["required"] if key not in document]
    if missing:
        raise UsageError(f"{path} is not a whole stored result: it lacks {', '.join(missing)}")
    return document


def schema(name: str) -> Document:
    """Return the published JSON schema of a document kind: "verify", "convert", "diagnose" or "repair"."""
    text = (resources.files("trueport") / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    loaded: Document = json.loads(text)
    return loaded
