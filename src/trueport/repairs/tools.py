"""CT: no edit makes the target faithful, but another tool, option, version or route does: the model is converted anew.

The ways are those that the diagnosis walks to find the step at fault (`diagnosis/tool.py`), with the toolchains that are
installed; a faithful result is verified on the held-out inputs like any other, and is delivered with its command.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from trueport.artifact import Artifact
from trueport.compare.types import Verdict
from trueport.conversion import Attempt
from trueport.diagnosis import tool
from trueport.diagnosis.types import Cause
from trueport.frameworks._base import EditDict
from trueport.repairs.gate import Gate
from trueport.repairs.types import Edit
from trueport.routes import Route, parse_route, plan
from trueport.session import runtime_toolchain

NAME = "CT tool"
CAUSES = frozenset({Cause.TOOL})

MORE = 3
"""Routes that are walked when the one that was found is not faithful on inputs that it was not chosen by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """A faithful way: its result, the edit that stands for it, and the command that goes it."""

    artifact: Artifact
    edit: Edit
    command: str


def switch(
    gate: Gate,
    *,
    attempt: Attempt | None = None,
    others: Sequence[Attempt] = (),
    seconds: float = tool.SECONDS,
    kindred: bool = True,
) -> Switch | str:
    """Find a way from the source to the target's format whose result is faithful on all inputs; else why there is none.

    kindred: the target was seen to be this source's. Where that could not be looked at, a tool must make it again.
    """
    session = gate.session
    session.progress("looking for another tool, option or version")
    inquiry = tool.locate(
        gate.reference,
        gate.target,
        gate.given,
        gate.on_search(gate.target),
        attempt=attempt,
        others=others,
        seconds=seconds,
        keep=session.pool.fresh_folder("ways"),
    )
    if not kindred and inquiry.stage is None:
        return (
            "whether the target was made from this source could not be seen, so the source is not converted anew for it"
        )
    trials = [*inquiry.trials]
    found = _faithful(gate, inquiry, trials)
    if found is None and (rest := _untried(gate, trials)):  # a way may be right on the inputs of the search alone
        more = tool.locate(
            gate.reference, gate.target, gate.given, gate.on_search(gate.target), routes=rest, seconds=seconds
        )
        trials += more.trials
        found = _faithful(gate, inquiry, more.trials)
    if found is not None:
        return found
    if not trials:
        return "no route that is installed here leads from the source to the target's format"
    lucky = sum(trial.verdict is Verdict.FAITHFUL for trial in trials)
    if not lucky:
        return f"{len(trials)} ways were tried, and none is faithful"
    cure = "; give more inputs to calibrate int8 on" if any(map(_calibrated, trials)) else ""
    return f"{len(trials)} ways were tried, and {lucky} of them are faithful on the inputs of the search alone{cure}"


def _faithful(gate: Gate, inquiry: tool.Inquiry, trials: Sequence[tool.Trial]) -> Switch | None:
    """The shortest way whose result is faithful on all inputs."""
    ways = [trial for trial in trials if trial.verdict is Verdict.FAITHFUL and trial.attempt.output is not None]
    for trial in sorted(ways, key=lambda trial: len(trial.route.hops)):
        made = trial.attempt.output
        if made is None or not made.path.exists() or not gate.faithful(made):
            continue
        command = command_of(gate.reference.artifact, gate.target.format, trial)
        before = inquiry.stage.step if inquiry.stage is not None else "the way that made it, which is not known"
        change: EditDict = {"kind": "convert-again", "value": command}
        edit = Edit(
            rule=NAME,
            kind="convert-again",
            where=gate.target.path.name,
            before=before,
            after=trial.words,
            reason="no edit of the file made it faithful, and this way does",
            change=change,
        )
        return Switch(artifact=made, edit=edit, command=command)
    return None


def _untried(gate: Gate, trials: Sequence[tool.Trial]) -> list[Route]:
    """The first of the other routes whose environments are there, where one was faithful and is not on other inputs."""
    if not any(trial.verdict is Verdict.FAITHFUL for trial in trials):
        return []
    source = gate.reference.artifact
    tried = {trial.route.name for trial in trials}
    found = plan(
        source.format,
        gate.target.format,
        legacy_keras=runtime_toolchain(source) == "tf-keras",
        precision=gate.on_search(gate.target).declared_precision,
    )
    ready = [route for route in found if all(tool.installed(gate.session, hop.step) for hop in route.hops)]
    return [route for route in ready if route.name not in tried][:MORE]


def command_of(source: Artifact, target_format: str, trial: tool.Trial) -> str:
    """The command that goes the same way."""
    words = [
        "trueport",
        "convert",
        str(source.made_by.get("factory", source.path)),
        "--to",
        target_format,
        "--route",
        trial.route.name,
    ]
    for place, hop in enumerate(trial.route.hops):
        for key, value in hop.options.items():
            plain = key == "precision" and _asked(trial.route, value) == place
            words += ["--precision", value] if plain else ["--option", f"{hop.step.name}.{key}={value}"]
    for package in trial.packages:
        words += ["--with", package]
    return shlex.join(words)


def _asked(route: Route, precision: str) -> int:
    """The place of the step that `--precision` asks for it."""
    hops = parse_route(route.name, precision=precision).hops
    return next(place for place, hop in enumerate(hops) if "precision" in hop.options)


def _calibrated(trial: tool.Trial) -> bool:
    """Whether a way fits ranges to the inputs that it is given."""
    return any(hop.options.get("precision") == "int8" for hop in trial.route.hops)
