"""Convert deep-learning models between frameworks, and prove that the port is true.

    import trueport

    result = trueport.convert("model.keras", to="tflite", inputs="val.npz")
    print(trueport.diagnose("model.keras", "other.tflite", inputs="val.npz").explanation)
    print(trueport.repair("model.keras", "other.tflite", out="fixed.tflite", inputs="val.npz").status)
    trueport.assert_faithful("model.keras", "model.tflite")

Names are loaded on first use, so that `import trueport` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueport.api import assert_faithful, convert, diagnose, inspect, repair, verify
    from trueport.artifact import Artifact, Signature, TensorSpec
    from trueport.compare.types import Verdict, Verification
    from trueport.conversion import Conversion
    from trueport.diagnosis.types import Cause, Diagnosis, Suspect
    from trueport.errors import InternalError, TrueportError, UntrustedError, UsageError
    from trueport.outcome import Failure, Ok
    from trueport.repairs.types import Edit, Repair
    from trueport.session import Session, Settings

__version__ = "0.1.0"

_HOME = {
    "Artifact": "artifact",
    "Cause": "diagnosis.types",
    "Conversion": "conversion",
    "Diagnosis": "diagnosis.types",
    "Edit": "repairs.types",
    "Failure": "outcome",
    "InternalError": "errors",
    "Ok": "outcome",
    "Repair": "repairs.types",
    "Session": "session",
    "Settings": "session",
    "Signature": "artifact",
    "Suspect": "diagnosis.types",
    "TensorSpec": "artifact",
    "TrueportError": "errors",
    "UntrustedError": "errors",
    "UsageError": "errors",
    "Verdict": "compare.types",
    "Verification": "compare.types",
    "assert_faithful": "api",
    "convert": "api",
    "diagnose": "api",
    "inspect": "api",
    "repair": "api",
    "verify": "api",
}

__all__ = [
    "Artifact",
    "Cause",
    "Conversion",
    "Diagnosis",
    "Edit",
    "Failure",
    "InternalError",
    "Ok",
    "Repair",
    "Session",
    "Settings",
    "Signature",
    "Suspect",
    "TensorSpec",
    "TrueportError",
    "UntrustedError",
    "UsageError",
    "Verdict",
    "Verification",
    "__version__",
    "assert_faithful",
    "convert",
    "diagnose",
    "inspect",
    "repair",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trueport' has no attribute {name!r}")
    value = getattr(import_module(f"trueport.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
