"""Convert deep-learning models between frameworks, and prove that the port is true.

    import trueport

    result = trueport.convert("model.keras", to="tflite", inputs="val.npz")
    trueport.assert_faithful("model.keras", "model.tflite")

Names are loaded on first use, so that `import trueport` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueport.api import assert_faithful, convert, inspect, verify
    from trueport.artifact import Artifact, Signature, TensorSpec
    from trueport.compare.types import Verdict, Verification
    from trueport.conversion import Conversion
    from trueport.errors import InternalError, TrueportError, UntrustedError, UsageError
    from trueport.outcome import Failure, Ok
    from trueport.session import Session, Settings

__version__ = "0.1.0"

_HOME = {
    "Artifact": "artifact",
    "Conversion": "conversion",
    "Failure": "outcome",
    "InternalError": "errors",
    "Ok": "outcome",
    "Session": "session",
    "Settings": "session",
    "Signature": "artifact",
    "TensorSpec": "artifact",
    "TrueportError": "errors",
    "UntrustedError": "errors",
    "UsageError": "errors",
    "Verdict": "compare.types",
    "Verification": "compare.types",
    "assert_faithful": "api",
    "convert": "api",
    "inspect": "api",
    "verify": "api",
}

__all__ = [
    "Artifact",
    "Conversion",
    "Failure",
    "InternalError",
    "Ok",
    "Session",
    "Settings",
    "Signature",
    "TensorSpec",
    "TrueportError",
    "UntrustedError",
    "UsageError",
    "Verdict",
    "Verification",
    "__version__",
    "assert_faithful",
    "convert",
    "inspect",
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
