"""Faults planted into quantised TFLite files are found at their node; the clean files have no outlier at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trueport import api, verification
from trueport.artifact import Artifact
from trueport.diagnosis.locally import NOISE, Locally
from trueport.diagnosis.pair import trace_pair
from trueport.diagnosis.run import Request, diagnose
from trueport.outcome import Failure, Stage
from trueport.session import Session, Settings

HERE = Path(__file__).resolve().parent
PLANTERS = HERE.parents[1] / "src" / "trueport" / "testing" / "planting"
PRECISIONS = ("int8", "float16")

SLICE = {
    "int8": ("channels_reversed", "kernel_transposed", "pool_kind"),
    "float16": ("weight_noise_10", "kernel_flipped"),
}
WHOLE = ("residual", "depthwise", "inception", "unet")
FLOORS = {"int8": 0.9, "float16": 0.85, "int8-dynamic": 0.85}
"""Share of the detected faults that must be blamed on the right node first: the prototype's 37 of 41 and 20 of 24."""


@pytest.fixture(scope="module")
def session():
    with Session(Settings(timeout=300)) as found:
        yield found


@pytest.fixture(scope="module")
def ground(session, tmp_path_factory):
    """ground(kind, precision) -> (reference, feeds, path of the target): a Keras model and its quantised conversion."""
    made = {}

    def get(kind, precision):
        if (kind, precision) in made:
            return made[kind, precision]
        folder = tmp_path_factory.mktemp(f"{kind}-{precision}")
        python = session.environment("tensorflow").value.python
        reply = session.pool.call(
            python,
            "architectures_keras",
            "save",
            {"kind": kind, "folder": str(folder), "seed": 7},
            stage=Stage.CONVERT,
            paths=[str(HERE)],
        )
        assert not isinstance(reply, Failure), reply
        (source,) = folder.glob("*.keras")
        target = folder / "target.tflite"
        converted = api.convert(
            str(source), to="tflite", out=target, session=session, precision=precision, check=False, max_routes=1
        )
        assert converted.output is not None, converted
        artifact = Artifact.open(source)
        reference = verification.reference(session, artifact).value
        made[kind, precision] = reference, api.open_feeds(session, artifact, None), target
        return made[kind, precision]

    return get


def opened(path):
    """As the conversion gives it: the generated inputs then stay within its calibration."""
    return Artifact.open(Path(path), made_by={"step": "tflite-keras"})


def planter(session, function, **arguments):
    python = session.environment("litert").value.python
    reply = session.pool.call(python, "tflite_faults", function, arguments, stage=Stage.CONVERT, paths=[str(PLANTERS)])
    assert not isinstance(reply, Failure), reply
    return reply.value.value


def bare(name):
    """A node's name without its number, which a planted operator shifts."""
    return name.split(":", 1)[-1]


def diagnosed(session, ground, kind, precision, fault, out):
    """(what was planted, the diagnosis); None where it cannot be planted or hides in the noise of the precision."""
    reference, feeds, target = ground(kind, precision)
    facts = planter(session, "plant", path=str(target), out=str(out), kind=fault, seed=0)
    if "skipped" in facts:
        return None
    found = diagnose(reference, opened(out), feeds, request=Request(tools=False))
    return None if found.verification.verdict == "faithful" else (facts, found)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_operator_of_a_clean_file_is_within_its_noise(session, ground, precision):
    reference, feeds, target = ground("residual", precision)
    calibrated = replace(feeds, cases=tuple(case for case in feeds.cases if case.kind == "data")[:1])
    verified = verification.verify(reference, opened(target), calibrated)
    assert verified.verdict == "faithful", verified.reason
    assert verified.declared_precision == precision
    pair = trace_pair(reference, opened(target), calibrated, verified).value
    try:
        search = Locally(pair)
        assert len(search.alone) >= 10
        assert max(one.error for one in search.alone.values()) < NOISE[precision].most
        assert not search.outliers, {name: search.alone[name].error for name in search.outliers}
    finally:
        pair.close()


@pytest.mark.parametrize(("precision", "fault"), [(one, fault) for one, faults in SLICE.items() for fault in faults])
def test_a_planted_fault_is_found_at_its_node(session, ground, tmp_path, precision, fault):
    made = diagnosed(session, ground, "residual", precision, fault, tmp_path / "wrong.tflite")
    assert made is not None, f"{fault} cannot be planted, or does not show"
    facts, found = made
    assert len(found.suspects) == 1, [suspect.what for suspect in found.suspects]
    assert bare(found.suspects[0].target_nodes[0]) in {bare(name) for name in facts["nodes"]}
    assert found.suspects[0].cause in (facts["cause"], *facts["cause_also"])
    assert found.suspects[0].finding.confirmed
    assert found.suspects[0].causal > 0.5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("precision", FLOORS)
def test_all_kinds_on_all_architectures(session, ground, tmp_path, precision):
    hits, missed = 0, []
    for kind in WHOLE:
        for fault in planter(session, "kinds", path=str(ground(kind, precision)[2])):
            made = diagnosed(session, ground, kind, precision, fault, tmp_path / "wrong.tflite")
            if made is None:
                continue
            facts, found = made
            first = found.suspects[0].target_nodes[:1] if found.suspects else ()
            right = {bare(name) for name in first} & {bare(name) for name in facts["nodes"]}
            hits += bool(right)
            missed += [] if right else [(kind, fault, first)]
    assert hits + len(missed) >= 60
    assert hits >= FLOORS[precision] * (hits + len(missed)), missed
