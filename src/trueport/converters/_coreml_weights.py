"""Weights of a converted Core ML model in fewer bits: int8 with one scale per channel, or a lookup table.

Both formats compute in floating point whatever their weights are stored in; a neural network has float16 this way too.
"""

from __future__ import annotations

from typing import Any

from trueport.frameworks._base import InvalidOutput

SMALLEST = 512
"""Weights of fewer elements stay as they are: a table or scales would not make them smaller."""


def compressed(model: Any, precision: str, palette: int, *, network: bool) -> Any:
    """The model with its weights in int8 (`precision` int8-dynamic), or in tables of `palette` bits where that is not 0."""
    if network:
        return _network(model, precision, palette)
    if not palette and precision != "int8-dynamic":
        return model
    import coremltools.optimize.coreml as optimize

    if palette:
        table = optimize.OpPalettizerConfig(mode="kmeans", nbits=palette, weight_threshold=SMALLEST)
        return optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=table))
    grid = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=SMALLEST)
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=grid))


def _network(model: Any, precision: str, palette: int) -> Any:
    """The same for the older format, whose weights are quantised in the specification itself."""
    if not palette and precision == "float32":
        return model
    from coremltools.models import MLModel
    from coremltools.models.neural_network import quantization_utils as grids

    bits = palette or (16 if precision == "float16" else 8)
    mode = "kmeans" if palette else "linear_symmetric" if bits == 8 else "linear"
    made = grids.quantize_weights(model, bits, quantization_mode=mode)
    spec = made if hasattr(made, "WhichOneof") else made.get_spec()
    if spec.WhichOneof("Type") is None:
        raise InvalidOutput("coremltools gave an empty model back")
    return MLModel(spec, skip_model_load=True)
