"""For tests: plant a known fault into a model, to see whether a check of yours finds it.

    from trueport.testing import fault_kinds, plant

    planted = plant("model.onnx", "broken.onnx", kind="kernel_flipped", seed=1)

Names are loaded on first use: the planters below this package also run inside workers, on an older Python.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueport.testing.planter import Planted, fault_kinds, plant

__all__ = ["Planted", "fault_kinds", "plant"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("trueport.testing.planter"), name)
    globals()[name] = value
    return value
