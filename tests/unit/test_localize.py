"""Localisation: every family of faults in a model of NumPy functions, whose place is known, is found and proven."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_models import B1, W1, W2, Net, dense, pair, relu, source, target

from trueport.diagnosis.localize import locate


def found(broken, original=None, **more):
    return locate(pair(original or source(), broken, **more))


@pytest.mark.parametrize(
    ("changed", "node"),
    [
        ({"h": dense(W1 * 1.02, B1)}, "n_a"),
        ({"h": dense(W1[::-1], B1)}, "n_a"),
        ({"h": dense(W1)}, "n_a"),
        ({"d": dense(np.where(np.arange(24).reshape(6, 4) == 5, 3.0, W2))}, "n_c"),
        ({"r": lambda x: np.where(x > 0, x, 0.2 * x)}, "n_b"),
        ({"t": lambda x: np.tanh(1.1 * x)}, "n_e"),
        ({"p": lambda x: x.reshape(x.shape[1], x.shape[0])}, "n_f"),
        ({"h": dense(W1 * (1 + 1e-4), B1)}, "n_a"),
    ],
)
def test_one_changed_operator_is_the_region(changed, node):
    located = found(target(**changed))
    assert located.healed
    assert len(located.findings) == 1
    finding = located.findings[0]
    assert node in finding.region
    assert finding.confirmed
    assert finding.causal > 0.98


def test_an_operator_that_is_missing_is_sought_between_its_neighbours():
    located = found(target(r=None))
    assert located.healed
    finding = located.findings[0]
    assert {"n_a", "n_c"} & set(finding.region)
    assert finding.source == "r"


def test_an_operator_too_many():
    broken = Net(
        [
            *target().nodes[:4],
            ("extra", "Relu", relu, ["e"]),
            ("f", "Transpose", lambda x: x.T, ["extra"]),
            target().nodes[-1],
        ]
    )
    located = found(broken)
    assert located.healed
    assert located.findings[0].region == ("n_extra",)


def test_a_changed_stride_is_healed_in_the_sources_sizes():
    def strided(step):
        return Net(
            [
                ("a", "Gemm", dense(W1), ["x"]),
                ("b", "Slice", lambda x: x[::step], ["a"]),
                ("z", "ReduceMean", lambda x: np.tanh(x).mean(0), ["b"]),
            ]
        )

    located = found(strided(2), strided(1))
    assert located.healed
    assert "n_b" in located.findings[0].region


def test_two_faults_are_both_found_and_nothing_else():
    located = found(target(h=dense(W1[::-1], B1), t=lambda x: np.tanh(1.3 * x)))
    assert located.healed
    assert [finding.region for finding in located.findings] == [("n_a",), ("n_e",)]
    assert sum(finding.causal for finding in located.findings) == pytest.approx(1.0, abs=1e-3)


def test_a_small_fault_behind_a_large_one_is_not_forgotten():
    located = found(target(h=dense(W1[::-1], B1), d=dense(W2 * 1.002)))
    assert [finding.region for finding in located.findings] == [("n_a",), ("n_c",)]


def test_a_branch_that_was_cut_off():
    def net(shortcut):
        return Net(
            [
                ("a", "Gemm", dense(W1), ["x"]),
                ("b", "Tanh", np.tanh, ["a"]),
                ("s", "Add", (lambda a, b: a + b) if shortcut else (lambda a, b: b), ["a", "b"]),
                ("z", "Gemm", dense(W2), ["s"]),
            ]
        )

    located = found(net(False), net(True))
    assert located.healed
    assert {"n_s", "n_z"} & set(located.findings[0].region)
    assert len(located.findings) == 1


def test_the_local_error_tells_who_makes_it_from_who_passes_it_on():
    located = found(target(h=dense(W1 * 1.02, B1)))
    finding = located.findings[0]
    assert finding.local == pytest.approx(finding.accumulated, rel=1e-6)


def test_nothing_is_found_where_nothing_is_wrong():
    one = pair(source(), target())
    located = locate(one)
    assert located.findings == []
    assert located.healed


def test_what_cannot_be_healed_is_reported_unconfirmed():
    """Noise that no value of the source explains, at the output itself, in a model that cannot be cut."""
    one = pair(source(), target(h=dense(W1[::-1], B1)))
    from trueport.outcome import Failure, Kind, Stage

    one.target.replay = lambda *args, **more: Failure(stage=Stage.TRACE, kind=Kind.UNSUPPORTED, message="no", log="")
    located = locate(one)
    assert not located.healed
    assert [(finding.kind, finding.confirmed) for finding in located.findings] == [("unproven", False)]
    assert located.findings[0].region == ("n_a",)


def test_the_deadline_is_kept():
    located = locate(pair(source(), target(h=dense(W1[::-1], B1))), deadline=0.0)
    assert not any(finding.confirmed for finding in located.findings)
