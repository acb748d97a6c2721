"""Compressed weights of ML programs, operator by operator, against coremltools' own `decompress` of each version."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trueport.outcome import Ok, Stage

HERE = str(Path(__file__).parent)
RNG = np.random.default_rng(0)


def codes(*shape, low=0, high=4, dtype=np.uint8):
    return RNG.integers(low, high, shape).astype(dtype)


def noise(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


MASK = (RNG.random((4, 6)) > 0.5).astype(np.uint8)
STORED = int(MASK.sum())

CASES = [
    (
        "constexpr_affine_dequantize",
        "iOS16",
        {"quantized_data": codes(3, 4, high=200), "zero_point": codes(4, high=9), "scale": noise(4), "axis": 1},
        ["float32"],
        "uint8",
    ),
    (
        "constexpr_affine_dequantize",
        "iOS16",
        {
            "quantized_data": codes(3, 4, low=-99, high=99, dtype=np.int8),
            "zero_point": np.int8(3),
            "scale": np.float32(0.1),
            "axis": 0,
        },
        ["float32"],
        "int8",
    ),
    (
        "constexpr_blockwise_shift_scale",
        "iOS18",
        {
            "data": codes(4, 6, low=-8, high=8, dtype=np.int8),
            "scale": noise(2, 3),
            "offset": codes(2, 3, dtype=np.int8),
        },
        ["float32"],
        "int8",
    ),
    (
        "constexpr_blockwise_shift_scale",
        "iOS18",
        {"data": codes(4, 6, low=-8, high=8, dtype=np.int8), "scale": noise(1, 6), "offset": None},
        ["float32"],
        "int8",
    ),
    (
        "constexpr_lut_to_dense",
        "iOS16",
        {"indices": codes(4, high=256), "lut": noise(4), "shape": np.array([3, 5], np.uint32)},
        ["float32"],
        "lut2",
    ),
    (
        "constexpr_lut_to_dense",
        "iOS18",
        {"indices": codes(4, 6), "lut": noise(2, 1, 4, 1), "vector_axis": None},
        ["float32"],
        "lut2",
    ),
    (
        "constexpr_lut_to_dense",
        "iOS18",
        {"indices": codes(4, 6), "lut": noise(2, 1, 4, 3), "vector_axis": 0},
        ["float32"],
        "lut2",
    ),
    (
        "constexpr_lut_to_dense",
        "iOS18",
        {"indices": codes(4, 6), "lut": noise(1, 3, 4, 2), "vector_axis": 1},
        ["float32"],
        "lut2",
    ),
    ("constexpr_sparse_to_dense", "iOS18", {"nonzero_data": noise(STORED), "mask": MASK}, ["float32"], "sparse"),
    (
        "constexpr_lut_to_sparse",
        "iOS18",
        {"indices_mask": MASK, "indices_nonzero_data": codes(STORED), "lut": noise(1, 1, 4, 1), "vector_axis": None},
        ["uint8", "float32"],
        "lut2",
    ),
    (
        "constexpr_lut_to_sparse",
        "iOS18",
        {"indices_mask": MASK, "indices_nonzero_data": codes(STORED), "lut": noise(1, 1, 4, 2), "vector_axis": 0},
        ["uint8", "float32"],
        "lut2",
    ),
    (
        "constexpr_sparse_blockwise_shift_scale",
        "iOS18",
        {
            "data_mask": MASK,
            "nonzero_data": codes(STORED, dtype=np.int8),
            "scale": noise(1, 6),
            "offset": codes(1, 6, dtype=np.int8),
        },
        ["uint8", "float32"],
        "sparse int8",
    ),
]


@pytest.mark.parametrize(
    ("kind", "target", "inputs", "types", "stored"),
    CASES,
    ids=[f"{number}-{case[0]}" for number, case in enumerate(CASES)],
)
def test_unpacked_as_by_coremltools(pool, env, kind, target, inputs, types, stored):
    def ask(function, **arguments):
        outcome = pool.call(env("coreml"), "mil_probe", function, arguments, stage=Stage.RUN, emit=True, paths=[HERE])
        assert isinstance(outcome, Ok), outcome
        return outcome.value.value, [np.array(outcome.value.emitted[str(place)]) for place in range(len(types))]

    _, wanted = ask("materialised", kind=kind, target=target, inputs=inputs)
    given = {name: value for name, value in inputs.items() if value is not None}
    described, found = ask("unpacked", kind=kind, inputs=given, types=types)
    assert described == stored
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
