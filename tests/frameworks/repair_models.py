"""Small ONNX models for repairs of real files: sizes, outputs, side files, preparation of inputs. `build` runs in a worker."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx_models import floats, model, node, value


def build(name: str, out: str) -> None:
    """Write the model `name` (a key of MODELS) to `out`; "external" has its weights in weights.bin beside it."""
    import onnx

    made = MODELS[name]()
    if name == "external":
        onnx.save(made, out, save_as_external_data=True, location="weights.bin", size_threshold=0)
    else:
        onnx.save(made, out)


def stored(path: str) -> dict[str, np.ndarray]:
    """The constants of a file, with what lies in side files."""
    import onnx

    return {item.name: np.array(onnx.numpy_helper.to_array(item)) for item in onnx.load(path).graph.initializer}


def net(
    sizes: tuple[Any, ...] = ("n", 3, 8, 10),
    *,
    seed: int = 1,
    extra: bool = False,
    before: tuple[Any, ...] = (),
    constants: Any = None,
    classes: int = 4,
    shifted: bool = False,
) -> Any:
    """x → [before] → Conv, Relu → mean over rows and columns → MatMul → y; `extra`: a second output.

    shifted: the classes stand one place further, behind one that is never meant.
    """
    weights = {"w": floats(4, 3, 3, 3, seed=seed), "b": floats(4, seed=3), "m": floats(4, classes, seed=2)}
    if shifted:
        weights["m"] = np.concatenate([np.full((4, 1), -3, np.float32), weights["m"]], axis=1)
        classes += 1
    read = "x" if not before else before[-1].output[0]
    nodes = [
        *before,
        node("Conv", [read, "w", "b"], ["h"], name="conv", pads=[1, 1, 1, 1]),
        node("Relu", ["h"], ["r"], name="relu"),
        node("ReduceMean", ["r"], ["g"], name="mean", axes=[2, 3], keepdims=0),
        node("MatMul", ["g", "m"], ["y"], name="classes"),
    ]
    outputs = [value("y", [sizes[0], classes])]
    if extra:
        nodes.append(node("Sigmoid", ["g"], ["s"], name="surplus"))
        outputs.insert(0, value("s", [sizes[0], 4]))
    return model(nodes, [value("x", list(sizes))], outputs, {**weights, **(constants or {})})


def scaled() -> Any:
    """A target that scales and shifts its input first."""
    steps = (node("Mul", ["x", "by"], ["x1"], name="scale"), node("Sub", ["x1", "less"], ["x2"], name="shift"))
    return net(before=steps, constants={"by": np.float32(0.5).reshape(()), "less": floats(1, 3, 1, 1, seed=8)})


def swapped() -> Any:
    """A target that turns the order of its input's channels round."""
    return net(
        before=(node("Gather", ["x", "order"], ["x1"], name="order", axis=1),),
        constants={"order": np.array([2, 1, 0], np.int64)},
    )


def pooled(*, barred: bool = False) -> Any:
    """x [1, 2, 4, 4] → zeros above and to the left → MaxPool → y; `barred`: by a Concat, so that no runtime merges the two."""
    if barred:
        weights = {"column": np.zeros((1, 2, 4, 1), np.float32), "row": np.zeros((1, 2, 1, 5), np.float32)}
        first = [
            node("Concat", ["column", "x"], ["wide"], name="left", axis=3),
            node("Concat", ["row", "wide"], ["padded"], name="top", axis=2),
        ]
    else:
        weights = {"pads": np.array([0, 0, 1, 1, 0, 0, 0, 0], np.int64)}
        first = [node("Pad", ["x", "pads"], ["padded"], name="pad")]
    last = node("MaxPool", ["padded"], ["y"], name="pool", kernel_shape=[2, 2], strides=[2, 2])
    return model([*first, last], [value("x", [1, 2, 4, 4])], [value("y", [1, 2, 2, 2])], weights)


MODELS = {
    "bare": pooled,
    "right": lambda: pooled(barred=True),
    "source": net,
    "wrong weights": lambda: net(seed=7),
    "external": lambda: net(seed=7),
    "rows for columns": lambda: net(("n", 3, 10, 8)),
    "another size": lambda: net(("n", 3, 16, 10)),
    "channels last": lambda: net(("n", 8, 10, 3)),
    "surplus output": lambda: net(extra=True),
    "surplus output, wrong weights": lambda: net(extra=True, seed=7),
    "batch of 4": lambda: net((4, 3, 8, 10)),
    "batch of 2": lambda: net((2, 3, 8, 10)),
    "batch of 4, wrong weights": lambda: net((4, 3, 8, 10), seed=7),
    "scaled": scaled,
    "swapped": swapped,
    "shifted classes": lambda: net(shifted=True),
}
