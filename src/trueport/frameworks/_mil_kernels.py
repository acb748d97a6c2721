"""The table of kernels for MIL operators: kind -> function of one `Call`. What is not in it is not covered.

Not covered, for a reason: random_* (no documentation says which generator a seed starts), conv_quantized (experimental,
its layout is not documented).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from trueport.frameworks import (
    _mil_elementwise,
    _mil_gather,
    _mil_image,
    _mil_linear,
    _mil_norm,
    _mil_sequence,
    _mil_shape,
)
from trueport.frameworks._coreml_program import Call

KERNELS: Mapping[str, Callable[[Call], Any]] = {
    **_mil_elementwise.KERNELS,
    **_mil_linear.KERNELS,
    **_mil_norm.KERNELS,
    **_mil_shape.KERNELS,
    **_mil_gather.KERNELS,
    **_mil_image.KERNELS,
    **_mil_sequence.KERNELS,
}
