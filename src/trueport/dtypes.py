"""In which NumPy dtype the values of a tensor are handed over between the parent and a worker."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.artifact import TensorSpec

_WIDENED = {"bfloat16": "float32", "int4": "int8", "uint4": "uint8", "str": "str", "string": "str", "object": "str"}


def value_dtype(spec: TensorSpec) -> np.dtype[Any] | None:
    """The dtype in which values of this tensor are handed over, or None where NumPy has none (a sequence, an optional).

    A quantised tensor crosses dequantised, so it is float32; bfloat16 and float8 travel as float32.
    """
    name = "float32" if spec.dtype.startswith("float8") else _WIDENED.get(spec.dtype, spec.dtype)
    try:
        dtype = np.dtype(name)
    except TypeError:
        return None
    if spec.quantization and spec.quantization.get("scale") is not None and dtype.kind in "iu":
        return np.dtype(np.float32)
    return None if dtype.kind not in "biufcU" else dtype
