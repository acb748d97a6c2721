"""Every framework file of the project keeps the contract, on a small model of each of its formats."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from conformance_samples import CONVERTED, EXPORTED, MADE, sample

from trueport.frameworks import FRAMEWORKS
from trueport.session import Session, Settings, framework_of
from trueport.testing import check_framework

MAY_LEAVE_OUT = {
    "expected": {*MADE, *CONVERTED, EXPORTED},
    "float64": {"tflite", "openvino", "tvm", "executorch"},
    "replay": {"torchscript"},
    "edit": {"torchscript", "jax"},
}
"""Check -> formats that may say that they do not do this; every other check has to pass."""


def test_every_format_has_a_sample():
    formats = {name for module in FRAMEWORKS.values() for name in module.FORMATS if module.NAME != "fake"}
    assert formats == {*MADE, *CONVERTED, EXPORTED}


@pytest.mark.parametrize("format", [*MADE, *CONVERTED, EXPORTED])
def test_a_framework_file_keeps_the_contract(format, tmp_path):
    with Session(Settings(timeout=300)) as session:
        small = sample(session, format, tmp_path)
        found = check_framework(framework_of(format), [small])
    assert not found.broken, str(found)
    unasked = {check for check in found.left_out if format not in MAY_LEAVE_OUT.get(check, set())}
    assert not unasked, str(found)
