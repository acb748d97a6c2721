"""Where formats put the axes of a weight, so that kernels of different formats are compared in one order: [out, in, *spatial].

For operators whose layout no table knows (Einsum, attention) the weights of the rest of the model vote.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trueport.diagnosis.operators import native
from trueport.diagnosis.region import Parameter

_WEIGHTS: Mapping[str, str] = {
    "Conv": "OI*",
    "ConvTranspose": "IO*",
    "Gemm": "IO",
    "MatMul": "IO",
    "aten.conv1d": "OI*",
    "aten.conv2d": "OI*",
    "aten.conv3d": "OI*",
    "aten.convolution": "OI*",
    "aten._convolution": "OI*",
    "aten.conv_transpose1d": "IO*",
    "aten.conv_transpose2d": "IO*",
    "aten.conv_transpose3d": "IO*",
    "aten.linear": "OI",
    "aten.addmm": "IO",
    "aten.baddbmm": "IO",
    "aten.mm": "IO",
    "aten.bmm": "IO",
    "aten.matmul": "IO",
    "Conv1D": "*IO",
    "Conv2D": "*IO",
    "Conv3D": "*IO",
    "Conv1DTranspose": "*OI",
    "Conv2DTranspose": "*OI",
    "Conv3DTranspose": "*OI",
    "DepthwiseConv1D": "*IM",
    "DepthwiseConv2D": "*IM",
    "DepthwiseConv2dNative": "*IM",
    "Conv2DBackpropInput": "*OI",
    "Conv3DBackpropInputV2": "*OI",
    "Convolution": "OI*",
    "GroupConvolution": "OI*",
    "ConvolutionBackpropData": "IO*",
    "GroupConvolutionBackpropData": "IO*",
    "Dense": "IO",
    "BatchMatMul": "IO",
    "BatchMatMulV2": "IO",
    "BatchMatMulV3": "IO",
    "CONV_2D": "O*I",
    "CONV_3D": "*IO",
    "DEPTHWISE_CONV_2D": "1*O",
    "TRANSPOSE_CONV": "O*I",
    "FULLY_CONNECTED": "OI",
    "BATCH_MATMUL": "IO",
    "conv": "OI*",
    "conv_transpose": "IO*",
    "linear": "OI",
    "matmul": "IO",
    "nn.convolution": "OI*",
    "nn.innerProduct": "OI",
}
"""Native operator -> axes of its weights: O out, I in, M channel multiplier, 1 a single one, * the spatial axes."""

_TRANSPOSED = ("transB", "transpose_b", "adj_y", "transpose_y")
"""Attributes that exchange the two axes of a matrix, where an operator has the choice."""

_CHOOSE = ("Gemm", "MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "BATCH_MATMUL", "matmul")


def axes_of(parameter: Parameter) -> str | None:
    """The axes of a weight in the letters of the table; None for what is no weight, or has no known layout."""
    node, array = parameter.node, parameter.array
    axes = _WEIGHTS.get(native(node))
    if axes is None or array.ndim < 2 or parameter.slot == 0:
        return None
    if axes == "OI*" and node.op == "ConvTranspose":
        axes = "IO*"
    if "*" not in axes:
        if array.ndim != 2:
            return None
        swapped = native(node) in _CHOOSE and any(node.attributes.get(name) in (1, True) for name in _TRANSPOSED)
        return axes[::-1] if swapped else axes
    if array.ndim < 3:
        return None
    return axes.replace("*", "xyz"[: array.ndim - 2])


def canonical(array: np.ndarray, axes: str) -> np.ndarray:
    """Arrange a weight as [out, in, *spatial]; a channel multiplier joins the outputs, a depthwise kernel has one input."""
    spatial = [axes.index(letter) for letter in axes if letter in "xyz"]
    if "M" in axes:
        channels, multiplier = array.shape[axes.index("I")], array.shape[axes.index("M")]
        moved = np.transpose(array, [axes.index("I"), axes.index("M"), *spatial])
        return moved.reshape(channels * multiplier, 1, *moved.shape[2:])
    first = axes.index("I") if "I" in axes else axes.index("1")
    return np.transpose(array, [axes.index("O"), first, *spatial])


def native_of(array: np.ndarray, axes: str, shape: Sequence[int]) -> np.ndarray:
    """The inverse of `canonical`: a weight as [out, in, *spatial] in the layout that `axes` tells, of this shape."""
    spatial = [letter for letter in axes if letter in "xyz"]
    if "M" in axes:
        channels, multiplier = shape[axes.index("I")], shape[axes.index("M")]
        split = array.reshape(channels, multiplier, *array.shape[2:])
        order = ["I", "M", *spatial]
    else:
        split, order = array, ["O", "I" if "I" in axes else "1", *spatial]
    moved = np.transpose(split, [order.index(letter) for letter in axes if letter in order])
    return moved.reshape(tuple(shape))


class Moved(NamedTuple):
    """A way to read one array as another: transpose (of the source, or of the target, see `side`), then read flat."""

    side: str
    permutation: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.side} transposed by {list(self.permutation)}"


def tight(array: np.ndarray) -> np.ndarray:
    """Leave out axes of size 1."""
    return np.reshape(array, [size for size in array.shape if size != 1])


def readings(target: np.ndarray, source: np.ndarray) -> Iterator[tuple[Moved, np.ndarray, np.ndarray]]:
    """Every way to lay a source array over a target array of the same size, both flat; the plain one first."""
    t, s = tight(target), tight(source)
    if t.size != s.size or max(t.ndim, s.ndim) > 5:
        return
    yield Moved("source", tuple(range(s.ndim))), t.ravel(), s.ravel()
    for order in itertools.permutations(range(s.ndim)):
        if order != tuple(range(s.ndim)):
            turned = np.transpose(s, order)
            if turned.ndim != t.ndim or turned.shape == t.shape:
                yield Moved("source", order), t.ravel(), turned.ravel()
    if t.ndim != s.ndim:
        for order in itertools.permutations(range(t.ndim)):
            if order != tuple(range(t.ndim)):
                yield Moved("target", order), np.transpose(t, order).ravel(), s.ravel()


def print_of(array: np.ndarray) -> tuple[int, float, float]:
    """What no rearrangement changes: size, sum of magnitudes, root mean square."""
    flat = np.asarray(array, np.float64).ravel()
    return flat.size, float(np.sum(np.abs(flat))), float(np.sqrt(np.mean(np.square(flat)))) if flat.size else 0.0


def same_elements(first: tuple[int, float, float], second: tuple[int, float, float]) -> bool:
    """Whether two prints may belong to the same elements in another order."""
    return first[0] == second[0] and all(
        abs(a - b) <= 1e-4 * max(abs(a), abs(b)) for a, b in zip(first[1:], second[1:], strict=True)
    )


def votes(targets: Iterable[Parameter], sources: Iterable[Parameter]) -> Counter[Moved]:
    """How weights of one kind of operator lie over those of another, counted over pairs that hold the same elements."""
    ours = [(item, print_of(item.array)) for item in sources]
    found: Counter[Moved] = Counter()
    for item in targets:
        mark = print_of(item.array)
        for other, known in ours:
            if not same_elements(mark, known):
                continue
            fitting = [
                way for way, t, s in readings(item.array, other.array) if np.allclose(t, s, rtol=1e-4, atol=1e-6)
            ]
            found.update(fitting)
            if fitting:
                break
    return found


def key_of(parameter: Parameter) -> tuple[str, int]:
    """Parameters of one key are laid out alike: operator and rank."""
    return native(parameter.node), parameter.array.ndim
