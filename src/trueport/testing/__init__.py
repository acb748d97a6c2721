"""For tests: plant a known fault into a model, to see whether a check of yours finds it.

    from trueport.testing import fault_kinds, plant

    planted = plant("model.onnx", "broken.onnx", kind="kernel_flipped", seed=1)

And a conformance kit for framework files of your own: `check_framework` (see `conformance.py`).

Names are loaded on first use: the planters below this package also run inside workers, on an older Python.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueport.testing.conformance import Broken, Conformance, Sample, check_framework
    from trueport.testing.planter import Planted, fault_kinds, plant

__all__ = ["Broken", "Conformance", "Planted", "Sample", "check_framework", "fault_kinds", "plant"]

_KIT = ("Broken", "Conformance", "Sample", "check_framework")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"trueport.testing.{'conformance' if name in _KIT else 'planter'}"), name)
    globals()[name] = value
    return value
