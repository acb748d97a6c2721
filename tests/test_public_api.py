"""The public surface is a contract: a name can be added here on purpose, never by accident."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import trueport
from trueport.errors import TrueportError

PUBLIC = {
    "Artifact", "Cause", "Conversion", "Diagnosis", "Edit", "Failure", "InternalError", "Ok", "Repair", "Session", "Settings",
    "Signature", "Suspect", "TensorSpec", "TrueportError", "UntrustedError", "UsageError", "Verdict", "Verification",
    "__version__", "assert_faithful", "convert", "diagnose", "inspect", "repair", "verify",
}  # fmt: skip


def test_exactly_these_names_are_public():
    assert set(trueport.__all__) == PUBLIC
    assert trueport.__all__ == sorted(trueport.__all__)
    assert set(dir(trueport)) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_every_public_name_resolves_and_is_documented(name):
    value = getattr(trueport, name)
    assert inspect.getdoc(value), f"{name} has no docstring"


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="no attribute 'convrt'"):
        _ = trueport.convrt


def test_submodules_do_not_hide_the_functions():
    code = "import trueport.conversion, trueport.verification, trueport.cli, trueport; print(trueport.convert, trueport.verify)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("<function") == 2


@pytest.mark.parametrize("value", [trueport.Verdict.FAITHFUL, trueport.Ok(1)])
def test_verdicts_and_outcomes_have_no_truth_value(value):
    with pytest.raises(TypeError):
        bool(value)


def test_every_error_is_ours_and_has_an_exit_code():
    for name in ("UsageError", "UntrustedError", "InternalError"):
        error = getattr(trueport, name)
        assert issubclass(error, TrueportError)
        assert error.exit_code in (2, 3)


def test_version_matches_the_package():
    from importlib.metadata import version

    assert re.fullmatch(r"\d+\.\d+\.\d+", trueport.__version__)
    assert version("trueport") == trueport.__version__
