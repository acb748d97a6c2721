"""Runs a model in Core ML itself, through coremltools, where there is one: on macOS."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import numpy as np

from trueport.frameworks._base import Arrays, RunResult, Unsupported

if TYPE_CHECKING:
    from trueport.frameworks._coreml_file import Opened


def run_case(one: Opened, arrays: Arrays, precision: str) -> RunResult:
    """Predict R times on the CPU and stack the results. Raises Unsupported outside of macOS and for what predict does not take."""
    if platform.system() != "Darwin":
        raise Unsupported("Core ML itself runs on macOS only; the evaluator runs this model here")
    if precision != "float32":
        raise Unsupported(f"Core ML computes a model as it is; it cannot run it in {precision}")
    if one.meta.get("images"):
        raise Unsupported("image inputs cross as arrays, which Core ML itself does not take")
    import coremltools

    model = coremltools.models.MLModel(one.path, compute_units=coremltools.ComputeUnit.CPU_ONLY)
    names = [item["name"] for item in one.outputs]
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for number in range(min(len(array) for array in arrays.values())):
        inputs = {name: array[number] for name, array in arrays.items()}
        state = model.make_state() if one.program.states else None
        result = model.predict(inputs, state=state) if state is not None else model.predict(inputs)
        for name in names:
            value = result[name]
            found[name].append(np.asarray(list(value.values()) if isinstance(value, dict) else value))
    return {
        name: np.stack(values) if len({value.shape for value in values}) == 1 else values
        for name, values in found.items()
    }
