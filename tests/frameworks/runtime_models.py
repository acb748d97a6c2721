"""ONNX models on which ONNX Runtime's optimiser has been wrong, and such that look alike and are right.

Runs inside the onnx toolchain only (called by name through a worker, as onnx_models.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx_models import batch_norm, floats, model, node, value


def build(name: str, out: str) -> None:
    """Write the model `name` (a key of MODELS) to `out`."""
    import onnx

    onnx.save(MODELS[name](), out)


def pool(source: str, prefix: str, rim: float = 0.0) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Pad with a constant, then MaxPool 2x2; with a rim of 0 a runtime may not merge them: its own rim never wins."""
    pads, fill, padded = f"{prefix}.pads", f"{prefix}.fill", f"{prefix}.padded"
    nodes = [
        node("Pad", [source, pads, fill], [padded], name=f"{prefix}.pad"),
        node("MaxPool", [padded], [f"{prefix}.y"], kernel_shape=[2, 2], strides=[2, 2], name=f"{prefix}.pool"),
    ]
    return nodes, {pads: np.int64([0, 0, 1, 1, 0, 0, 1, 1]), fill: np.float32(rim).reshape(())}


def pools(*, rim: float = 0.0, twice: bool = False) -> Any:
    """x [2, 3, 8, 8] → Conv, Sigmoid, Neg (all negative) → Pad, MaxPool → Conv; with `twice`, Neg, Pad and MaxPool again → y.

    A branch beside it, x → Relu → GlobalAveragePool → z, is right whatever the optimiser does.
    """
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["h"], pads=[1, 1, 1, 1], name="conv1"),
        node("Relu", ["x"], ["side"], name="side_relu"),
        node("Sigmoid", ["h"], ["s"], name="squash"),
        node("Neg", ["s"], ["negative"], name="negate"),
    ]
    weights = {"w1": floats(4, 3, 3, 3, seed=1), "b1": floats(4, seed=2), "w2": floats(5, 4, 1, 1, seed=3)}
    more, pads = pool("negative", "one", rim)
    nodes += [*more, node("GlobalAveragePool", ["side"], ["z"], name="side_mean")]
    nodes += [node("Conv", ["one.y", "w2"], ["last"], name="conv2")]
    weights.update(pads)
    if twice:
        more, pads = pool("negative2", "two", rim)
        nodes += [
            node("Sigmoid", ["last"], ["s2"], name="squash2"),
            node("Neg", ["s2"], ["negative2"], name="negate2"),
            *more,
        ]
        weights.update(pads)
    nodes.append(node("Identity", ["two.y" if twice else "last"], ["y"], name="end"))
    return model(nodes, [value("x", [2, 3, 8, 8])], [value("y", None), value("z", None)], weights)


def bare() -> Any:
    """The smallest case: x [1, 2, 4, 4] → Pad(0) → MaxPool."""
    nodes = [
        node("Pad", ["x", "pads"], ["padded"], name="pad"),
        node("MaxPool", ["padded"], ["y"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
    ]
    pads = {"pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1])}
    return model(nodes, [value("x", [1, 2, 4, 4])], [value("y", [1, 2, 3, 3])], pads)


def chaos() -> Any:
    """x [2, 3, 8, 8] → Conv, BatchNormalization → times a million → Sin → y: any rounding shows, and nothing is wrong."""
    nodes = [
        node("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1], name="conv"),
        node(
            "BatchNormalization", ["h", *(f"bn.{part}" for part in ("scale", "bias", "mean", "var"))], ["n"], name="bn"
        ),
        node("Mul", ["n", "million"], ["large"], name="blow_up"),
        node("Sin", ["large"], ["y"], name="wave"),
    ]
    weights = {"w": floats(4, 3, 3, 3, seed=1), "million": np.float32(1e6).reshape(()), **batch_norm("bn", 4, 2)}
    return model(nodes, [value("x", [2, 3, 8, 8])], [value("y", [2, 4, 8, 8])], weights)


MODELS = {
    "chaos": chaos,
    "bare": bare,
    "pools": pools,
    "pools_low_rim": lambda: pools(rim=-9.0),
    "pools_twice": lambda: pools(twice=True),
}
