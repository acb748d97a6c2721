"""Weights that an ML program stores compressed: what each `constexpr_*` operation unpacks to, in NumPy.

iOS 16 states packed data with an explicit `shape`; iOS 18 has types of less than a byte, blocks with a scale each,
vectors in look-up tables, and sparse data that stay sparse between two operations. Both versions bear one name and
differ by their arguments. Products are formed in float32 and stored in the declared type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._coreml_program import Constant, Operation

Values = Mapping[str, Any]


def unpack(operation: Operation, constants: Mapping[str, Constant]) -> tuple[np.ndarray, ...]:
    """Return the values of the operation's outputs. Raises Unsupported for an operation that is not in KERNELS."""
    if operation.kind not in KERNELS:
        raise Unsupported(f"there is no kernel for the operator {operation.kind}")
    values = {argument: constants[bound[0]].load() for argument, bound in operation.inputs.items()}
    made = KERNELS[operation.kind](values)
    results = made if isinstance(made, tuple) else (made,)
    return tuple(_stored(value, declared.dtype) for value, declared in zip(results, operation.types))


def _stored(value: np.ndarray, dtype: str) -> np.ndarray:
    if dtype in ("float16", "float32", "int8", "uint8"):
        return np.ascontiguousarray(value, dtype=dtype)
    return np.ascontiguousarray(value)


def describe(operation: Operation, constants: Mapping[str, Constant]) -> str:
    """Say how the result is stored: "int8", "lut4" (bits of an index), "sparse", "float16"."""
    stored = {argument: constants[bound[0]] for argument, bound in operation.inputs.items()}
    if "lut" in stored:
        shape = stored["lut"].shape
        return f"lut{int(np.log2(shape[0] if len(shape) == 1 else shape[-2]))}"
    for argument in ("quantized_data", "data", "source_val"):
        if argument in stored:
            return stored[argument].dtype
    return "sparse" if operation.kind == "constexpr_sparse_to_dense" else f"sparse {stored['nonzero_data'].dtype}"


def _along(vector: Any, axis: int, rank: int) -> np.ndarray:
    """Shape a scalar or a vector so that it broadcasts along `axis`."""
    array = np.asarray(vector, dtype=np.float32)
    if array.ndim == 0:
        return array
    return array.reshape([-1 if place == axis % rank else 1 for place in range(rank)])


def affine_dequantize(values: Values) -> np.ndarray:
    """scale · (quantized_data − zero_point), one of each for the whole array or for each index of `axis`."""
    data = np.asarray(values["quantized_data"], dtype=np.float32)
    axis = int(values.get("axis", 0))
    shifted = data - _along(values.get("zero_point", 0), axis, data.ndim)
    return np.asarray(shifted * _along(values["scale"], axis, data.ndim))


def _spread(blocks: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat each value over the block of `shape` that it stands for."""
    for axis, size in enumerate(shape):
        blocks = np.repeat(blocks, size // blocks.shape[axis], axis=axis)
    return blocks


def blockwise_shift_scale(values: Values) -> np.ndarray:
    """scale · (data − offset), one of each for every block; the block's size follows from the shapes."""
    data = np.asarray(values["data"], dtype=np.float32)
    if "offset" in values:
        data = data - _spread(np.asarray(values["offset"], dtype=np.float32), data.shape)
    return np.asarray(data * _spread(np.asarray(values["scale"], dtype=np.float32), data.shape))


def _bits(packed: Any, bits: int, shape: Any) -> np.ndarray:
    """Unpack fields of `bits` bits, the first in the lowest bits of the first byte."""
    count = int(np.prod(shape, dtype=np.int64))
    flat = np.unpackbits(np.asarray(packed, dtype=np.uint8).reshape(-1), bitorder="little")[: count * bits]
    weights = 1 << np.arange(bits)
    return np.asarray((flat.reshape(count, bits) * weights).sum(axis=1).reshape([int(size) for size in shape]))


def lut_to_dense(values: Values) -> np.ndarray:
    """Look every index up in its table, and lay vectors out along `vector_axis`."""
    lut = np.asarray(values["lut"])
    if "shape" in values:
        return np.asarray(lut[_bits(values["indices"], int(np.log2(lut.size)), values["shape"])])
    return _look_up(np.asarray(values["indices"]), lut, int(values.get("vector_axis", 0)))


def _look_up(indices: np.ndarray, lut: np.ndarray, axis: int) -> np.ndarray:
    """indices [*D], lut [*G, entries, vector] with one table per block of D: gives [*D] with `axis` times the vector's length."""
    groups, vector = lut.shape[:-2], lut.shape[-1]
    tables = lut.reshape(-1, *lut.shape[-2:])
    table = _spread(np.arange(len(tables)).reshape(groups), indices.shape)
    found = tables[table, indices.astype(np.int64)]
    axis %= indices.ndim
    laid = np.moveaxis(found, -1, axis + 1)
    shape = [size * (vector if place == axis else 1) for place, size in enumerate(indices.shape)]
    return np.asarray(laid.reshape(shape))


def _dense(nonzero: Any, mask: np.ndarray) -> np.ndarray:
    data = np.asarray(nonzero)
    found = np.zeros(mask.shape, dtype=data.dtype)
    found[mask != 0] = data
    return found


def sparse_to_dense(values: Values) -> np.ndarray:
    """Zero where the mask has no bit, the next stored value where it has one, in row-major order."""
    mask = np.asarray(values["mask"])
    if "shape" in values:
        mask = _bits(mask, 1, values["shape"])
    return _dense(values["nonzero_data"], mask)


def lut_to_sparse(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Look the stored indices up; gives the mask, widened along `vector_axis` for vectors, and the values."""
    mask, lut = np.asarray(values["indices_mask"]), np.asarray(values["lut"])
    axis = int(values.get("vector_axis", 0))
    dense = _look_up(_dense(values["indices_nonzero_data"], mask), lut, axis)
    wide = np.repeat(mask, lut.shape[-1], axis=axis)
    return wide, dense[wide != 0]


def sparse_blockwise_shift_scale(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale the stored values by the blocks in which they stand; gives the mask and the values."""
    mask = np.asarray(values["data_mask"])
    dense = blockwise_shift_scale({**values, "data": _dense(values["nonzero_data"], mask)})
    return mask, dense[mask != 0]


def cast(values: Values) -> np.ndarray:
    """Float16 as float32."""
    return np.asarray(values["source_val"], dtype=np.float32)


KERNELS: Mapping[str, Callable[[Values], Any]] = {
    "constexpr_affine_dequantize": affine_dequantize,
    "constexpr_blockwise_shift_scale": blockwise_shift_scale,
    "constexpr_cast": cast,
    "constexpr_lut_to_dense": lut_to_dense,
    "constexpr_lut_to_sparse": lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": sparse_blockwise_shift_scale,
    "constexpr_sparse_to_dense": sparse_to_dense,
}
