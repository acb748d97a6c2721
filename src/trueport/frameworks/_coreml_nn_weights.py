"""How the weights of a Core ML neural network are stored (float32, float16, linear grid, look-up table), and what shape they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import BadModel
from trueport.frameworks._coreml_program import Constant

Attributes = Mapping[str, Any]
Shape = tuple[int, ...]


def _convolution(a: Attributes) -> Shape:
    if a["isDeconvolution"]:
        return (a["kernelChannels"], a["outputChannels"] // a["nGroups"], *a["kernelSize"])
    return (a["outputChannels"], a["kernelChannels"], *a["kernelSize"])


def _convolution3d(a: Attributes) -> Shape:
    kernel = (a["kernelDepth"], a["kernelHeight"], a["kernelWidth"])
    if a["isDeconvolution"]:
        return (a["outputChannels"] // a["nGroups"], a["inputChannels"], *kernel)
    return (a["outputChannels"], a["inputChannels"] // a["nGroups"], *kernel)


def _channels(a: Attributes) -> Shape:
    return (a["outputChannels"],)


SHAPES: dict[tuple[str, str], Callable[[Attributes], Shape]] = {
    ("convolution", "weights"): _convolution,
    ("convolution3d", "weights"): _convolution3d,
    ("innerProduct", "weights"): lambda a: (a["outputChannels"], a["inputChannels"]),
    ("embedding", "weights"): lambda a: (a["outputChannels"], a["inputDim"]),
    ("embeddingND", "weights"): lambda a: (a["embeddingSize"], a["vocabSize"]),
    # Stored in column-major order: the transpose of what the layer multiplies with.
    ("batchedMatmul", "weights"): lambda a: (a["weightMatrixSecondDimension"], a["weightMatrixFirstDimension"]),
    ("scale", "scale"): lambda a: tuple(a["shapeScale"]),
    ("scale", "bias"): lambda a: tuple(a["shapeBias"]),
    ("bias", "bias"): lambda a: tuple(a["shape"]),
    ("loadConstant", "data"): lambda a: (1, 1, *a["shape"]),
    ("loadConstantND", "data"): lambda a: tuple(a["shape"]) or (1,),
    **{(layer, "bias"): _channels for layer in ("convolution", "convolution3d", "innerProduct", "embedding")},
    ("embeddingND", "bias"): lambda a: (a["embeddingSize"],),
    ("batchedMatmul", "bias"): lambda a: (a["weightMatrixSecondDimension"],),
    **{("batchnorm", field): lambda a: (a["channels"],) for field in ("gamma", "beta", "mean", "variance")},
    ("layerNormalization", "gamma"): lambda a: tuple(a["normalizedShape"]),
    ("layerNormalization", "beta"): lambda a: tuple(a["normalizedShape"]),
}
"""(layer, field) -> shape of the stored values. Weights of an activation are not here: a vector as long as what is stored."""
_RECURRENT = {
    "WeightMatrix": ("outputVectorSize", "inputVectorSize"),
    "RecursionMatrix": ("outputVectorSize", "outputVectorSize"),
    "BiasVector": ("outputVectorSize",),
    "PeepholeVector": ("outputVectorSize",),
}
"""End of a recurrent layer's field -> the fields that give its sizes."""


def shape_of(layer: str, field: str, attributes: Attributes, count: int) -> Shape:
    """Return the shape of a weight with `count` stored values."""
    for ending, sizes in _RECURRENT.items():
        if field.lower().endswith(ending.lower()):
            return tuple(attributes[size] for size in sizes)
    known = SHAPES.get((layer, field))
    return known(attributes) if known else (count,)


def constant(name: str, layer: str, field: str, attributes: Attributes, weight: Any) -> Constant:
    """Describe one `WeightParams` message. Raises BadModel when what it holds does not fill the shape of the layer."""
    storage, count = _storage(weight)
    shape = shape_of(layer, field, attributes, count)
    size = int(np.prod(shape, dtype=np.int64))
    enough = count >= size if storage == "quantized" else count == size
    if not enough:
        raise BadModel(f"the weight '{name}' holds {count} values, and its layer needs {size} {list(shape)}")
    axis = 1 if layer == "convolution" and field == "weights" and attributes["isDeconvolution"] else 0
    dtype = "float16" if storage == "float16" else "float32"
    return Constant(dtype, shape, lambda: _load(name, storage, weight, shape, axis))


def _storage(weight: Any) -> tuple[str, int]:
    """How a weight is stored, and how many values it holds (rounded up to whole bytes where they are packed)."""
    if weight.floatValue:
        return "float32", len(weight.floatValue)
    if weight.float16Value:
        return "float16", len(weight.float16Value) // 2
    if weight.int8RawValue:
        return "int8", len(weight.int8RawValue)
    bits = int(weight.quantization.numberOfBits)
    return "quantized", len(weight.rawValue) * 8 // bits if bits else 0


def is_set(weight: Any) -> bool:
    """Whether a `WeightParams` message holds any value."""
    return bool(weight.floatValue or weight.float16Value or weight.rawValue or weight.int8RawValue)


def _load(name: str, storage: str, weight: Any, shape: Shape, axis: int) -> np.ndarray:
    if storage == "float32":
        found: np.ndarray = np.fromiter(weight.floatValue, np.float32, len(weight.floatValue))
        return found.reshape(shape)
    if storage == "float16":
        return np.frombuffer(weight.float16Value, "<f2").astype(np.float16).reshape(shape)
    codes: np.ndarray
    if storage == "int8":
        codes = np.frombuffer(weight.int8RawValue, np.int8)
    else:
        codes = unpack(weight.rawValue, int(weight.quantization.numberOfBits), int(np.prod(shape, dtype=np.int64)))
    return _dequantize(name, weight.quantization, codes.reshape(shape), axis)


def unpack(raw: bytes, bits: int, count: int) -> np.ndarray:
    """Read `count` unsigned numbers of `bits` bits, packed without gaps, the highest bit first. Gives uint8 [count]."""
    if bits == 8:
        return np.frombuffer(raw, np.uint8)[:count]
    stream = np.unpackbits(np.frombuffer(raw, np.uint8))[: count * bits].reshape(count, bits)
    weights = 1 << np.arange(bits - 1, -1, -1, dtype=np.uint8)
    codes: np.ndarray = (stream * weights).sum(axis=1).astype(np.uint8)
    return codes


def _dequantize(name: str, quantization: Any, codes: np.ndarray, axis: int) -> np.ndarray:
    """Give the float32 values that a grid or a table stands for. Raises BadModel when the table does not fit the weight."""
    if quantization.WhichOneof("QuantizationType") == "lookupTableQuantization":
        table = np.asarray(quantization.lookupTableQuantization.floatValue, np.float32)
        if len(table) <= int(codes.max(initial=0)):
            raise BadModel(f"the weight '{name}' names entries that its look-up table of {len(table)} does not have")
        looked_up: np.ndarray = table[codes]
        return looked_up
    linear = quantization.linearQuantization
    scale, bias = (_along(name, values, codes.shape, axis) for values in (linear.scale, linear.bias))
    # In double precision, then rounded once.
    values: np.ndarray = (codes.astype(np.float64) * scale + bias).astype(np.float32)
    return values


def _along(name: str, values: Any, shape: Shape, axis: int) -> np.ndarray:
    """Shape a scale or an offset to multiply a weight: one for all, or one for each channel. An absent offset is 0."""
    found = np.asarray(values, np.float64)
    if found.size == 0:
        return np.zeros(())
    if found.size == 1:
        return found.reshape(())
    if len(shape) <= axis or shape[axis] != found.size:
        raise BadModel(f"the weight '{name}' of shape {list(shape)} has {found.size} scales, which fit no axis of it")
    return found.reshape([-1 if index == axis else 1 for index in range(len(shape))])
