"""Decides which TensorFlow functions compute an operator of ONNX's, for nodes that are put into a graph. In a worker.

Axes, permutations and pads are those of the file (channels last as a rule); kernels are laid out as TensorFlow has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import Unsupported

SIMPLE = {
    "Abs": "math.abs", "Ceil": "math.ceil", "Cos": "math.cos", "Erf": "math.erf", "Exp": "math.exp",
    "Floor": "math.floor", "Identity": "identity", "IsNaN": "math.is_nan", "Log": "math.log", "Neg": "math.negative",
    "Not": "math.logical_not", "Reciprocal": "math.reciprocal", "Relu": "nn.relu", "Relu6": "nn.relu6",
    "Round": "math.round", "Rsqrt": "math.rsqrt", "Selu": "nn.selu", "Sigmoid": "math.sigmoid", "Sign": "math.sign",
    "Sin": "math.sin", "Softplus": "math.softplus", "Softsign": "nn.softsign", "Sqrt": "math.sqrt",
    "Square": "math.square", "Swish": "nn.silu", "Silu": "nn.silu", "Tanh": "math.tanh",
    "Add": "math.add", "Sub": "math.subtract", "Mul": "math.multiply", "Div": "math.divide", "Pow": "math.pow",
    "Max": "math.maximum", "Min": "math.minimum", "Equal": "math.equal", "Greater": "math.greater",
    "Less": "math.less", "And": "math.logical_and", "Or": "math.logical_or", "Where": "where",
}  # fmt: skip
"""ONNX operator without attributes -> TensorFlow function of the same operands."""
REDUCTIONS = {"ReduceMean": "reduce_mean", "ReduceSum": "reduce_sum", "ReduceMax": "reduce_max",
              "ReduceMin": "reduce_min", "ReduceProd": "reduce_prod"}  # fmt: skip
LOWEST = -3.4028234663852886e38


class Call:
    """One operator to be made: its operands as tensors, and its attributes."""

    def __init__(self, operator: str, tensors: Sequence[Any], attributes: Mapping[str, Any]) -> None:
        import tensorflow as tf

        self.tf, self.operator, self.tensors, self.attributes = tf, operator, list(tensors), attributes

    @property
    def data(self) -> Any:
        """The first operand."""
        return self.tensors[0]

    def get(self, name: str, default: Any = None, slot: int | None = None) -> Any:
        """An attribute, or the operand that says it."""
        value = self.attributes.get(name)
        if value is None and slot is not None and slot < len(self.tensors):
            return self.tensors[slot]
        return default if value is None else value

    def ints(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """An attribute that is a list of whole numbers."""
        return [int(item) for item in np.ravel(self.get(name, list(default)))]

    def rank(self) -> int:
        """Rank of the data. Raises Unsupported when it is not known."""
        rank = self.data.shape.rank
        if rank is None:
            raise Unsupported(f"the rank of the data is not known here, which {self.operator} needs")
        return int(rank)

    def window(self, *, maximum: bool = False) -> tuple[Any, str]:
        """The data, padded where the operator has explicit pads, and the padding that is left."""
        pads = self.ints("pads")
        auto = str(self.get("auto_pad", "NOTSET"))
        if any(pads):
            half = len(pads) // 2
            pairs = [[0, 0], *([pads[i], pads[half + i]] for i in range(half)), [0, 0]]
            return self.tf.pad(self.data, pairs, constant_values=LOWEST if maximum else 0), "VALID"
        if auto == "SAME_LOWER":
            raise Unsupported("TensorFlow has no SAME_LOWER; give the pads as numbers")
        return self.data, "SAME" if auto.startswith("SAME") else "VALID"


def made(operator: str, tensors: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """Build an operator from tensors in the default graph; returns its result. Raises Unsupported for unknown ones."""
    call = Call(operator, tensors, attributes)
    if operator in BUILDERS:
        return BUILDERS[operator](call)
    if operator in REDUCTIONS:
        axes = call.get("axes", None, 1)
        return getattr(call.tf.math, REDUCTIONS[operator])(call.data, axes, bool(call.get("keepdims", 1)))
    if operator in SIMPLE:
        function = call.tf
        for part in SIMPLE[operator].split("."):
            function = getattr(function, part)
        return function(*call.tensors)
    raise Unsupported(f"nothing is known here that computes {operator} in TensorFlow")


def _pool(call: Call) -> Any:
    maximum = call.operator == "MaxPool"
    kernel = call.ints("kernel_shape")
    if any(size != 1 for size in call.ints("dilations")) or int(call.get("ceil_mode", 0)):
        raise Unsupported("a pool with dilations, or whose size is rounded up, is not written")
    if any(call.ints("pads")) and not maximum and not int(call.get("count_include_pad", 0)):
        raise Unsupported("TensorFlow has no average over the window without its pads, other than padding SAME")
    data, padding = call.window(maximum=maximum)
    function = call.tf.nn.max_pool if maximum else call.tf.nn.avg_pool
    return function(data, kernel, call.ints("strides", [1] * len(kernel)), padding)


def _conv(call: Call) -> Any:
    data, padding = call.window()
    kernel, group = call.tensors[1], int(call.get("group", 1))
    dims = kernel.shape.rank - 2
    strides, spread = call.ints("strides", [1] * dims), call.ints("dilations", [1] * dims)
    if group > 1 and group == data.shape[-1] and kernel.shape[-2] == data.shape[-1]:
        found = call.tf.nn.depthwise_conv2d(data, kernel, [1, *strides, 1], padding, dilations=spread)
    else:
        found = call.tf.nn.convolution(data, kernel, strides, padding, dilations=spread)
    return call.tf.nn.bias_add(found, call.tensors[2]) if len(call.tensors) > 2 else found


def _matmul(call: Call) -> Any:
    found = call.tf.linalg.matmul(
        call.tensors[0], call.tensors[1], bool(call.get("transA", 0)), bool(call.get("transB", 0))
    )
    if float(call.get("alpha", 1.0)) != 1.0:
        found = found * float(call.get("alpha"))
    return found + call.tensors[2] * float(call.get("beta", 1.0)) if len(call.tensors) > 2 else found


def _norm(call: Call) -> Any:
    scale, offset, mean, variance = call.tensors[1:5]
    return call.tf.nn.batch_normalization(call.data, mean, variance, offset, scale, float(call.get("epsilon", 1e-5)))


def _layer_norm(call: Call) -> Any:
    tf, rank = call.tf, call.rank()
    axes = list(range(int(call.get("axis", -1)) % rank, rank))
    mean, variance = tf.nn.moments(call.data, axes, keepdims=True)
    found = (call.data - mean) * tf.math.rsqrt(variance + float(call.get("epsilon", 1e-5)))
    for index, tensor in enumerate(call.tensors[1:3]):
        found = found + tensor if index else found * tensor
    return found


def _normalization(call: Call) -> Any:
    mean = np.asarray(call.get("mean"), np.float32) if call.get("mean") is not None else call.tensors[1]
    variance = np.asarray(call.get("variance"), np.float32) if call.get("variance") is not None else call.tensors[2]
    return (call.data - mean) / call.tf.math.sqrt(variance)


def _pad(call: Call) -> Any:
    pads, mode = call.ints("pads"), str(call.get("mode", "constant"))
    half = len(pads) // 2
    pairs = [[pads[i], pads[half + i]] for i in range(half)]
    if half == call.rank() - 2:
        pairs = [[0, 0], *pairs, [0, 0]]
    if half not in (call.rank(), call.rank() - 2) or mode == "edge":
        raise Unsupported("these pads do not fit the data, or repeat its edge, which TensorFlow does not")
    data = call.data
    if min(pads) < 0:
        begin = [max(0, -a) for a, _ in pairs]
        data = data[tuple(slice(a, -max(0, -b) or None) for a, (_, b) in zip(begin, pairs))]
        pairs = [[max(0, a), max(0, b)] for a, b in pairs]
    value = {"constant_values": float(call.get("value", 0.0))} if mode == "constant" else {}
    return call.tf.pad(data, pairs, mode.upper(), **value) if np.any(pairs) else data


def _slice(call: Call) -> Any:
    starts, ends = call.ints("starts"), call.ints("ends")
    axes, steps = call.ints("axes", range(len(starts))), call.ints("steps", [1] * len(starts))
    if not starts:
        raise Unsupported("Slice needs its starts and ends as attributes")
    cuts = [slice(None)] * call.rank()
    for start, end, axis, step in zip(starts, ends, axes, steps):
        far = abs(end) >= 2**31 - 1
        cuts[axis % call.rank()] = slice(None if abs(start) >= 2**31 - 1 else start, None if far else end, step)
    return call.data[tuple(cuts)]


def _clip(call: Call) -> Any:
    low, high = call.get("min", None, 1), call.get("max", None, 2)
    found = call.data if low is None else call.tf.math.maximum(call.data, call.tf.cast(low, call.data.dtype))
    return found if high is None else call.tf.math.minimum(found, call.tf.cast(high, call.data.dtype))


def _resize(call: Call) -> Any:
    mode, where = str(call.get("mode", "nearest")), str(call.get("coordinate_transformation_mode", "half_pixel"))
    sizes, scales = call.ints("sizes"), [float(item) for item in np.ravel(call.get("scales", []))]
    sizes, scales = (sizes[1:3] if len(sizes) == 4 else sizes), (scales[1:3] if len(scales) == 4 else scales)
    if not sizes:
        sizes = [int(size * scale) for size, scale in zip(call.data.shape[1:3], scales)]
    raw = call.tf.raw_ops
    function = {"nearest": raw.ResizeNearestNeighbor, "linear": raw.ResizeBilinear, "cubic": raw.ResizeBicubic}[mode]
    if where not in ("align_corners", "asymmetric", "half_pixel", "tf_half_pixel_for_nn", "pytorch_half_pixel"):
        raise Unsupported(f"TensorFlow does not resize with coordinates '{where}'")
    return function(images=call.data, size=sizes, align_corners=where == "align_corners",
                    half_pixel_centers="half_pixel" in where)  # fmt: skip


def _reshape(call: Call) -> Any:
    shape = call.get("shape", None, 1)
    if isinstance(shape, (list, tuple, np.ndarray)):
        sizes = [int(size) for size in np.ravel(shape)]
        known = call.tf.shape(call.data)
        if sizes.count(0) == 1 and sizes[0] == 0 and -1 not in sizes:
            sizes[0] = -1
        shape = [known[i] if size == 0 else size for i, size in enumerate(sizes)] if 0 in sizes else sizes
    return call.tf.reshape(call.data, shape)


def _activation(call: Call) -> Any:
    tf, alpha = call.tf, call.get("alpha")
    if call.operator == "LeakyRelu":
        return tf.nn.leaky_relu(call.data, float(0.01 if alpha is None else alpha))
    if call.operator == "Elu":
        found = tf.nn.elu(call.data)
        if alpha is None or float(alpha) == 1.0:
            return found
        return tf.where(call.data > 0, call.data, float(alpha) * tf.math.expm1(call.data))
    if call.operator == "Gelu":
        return tf.nn.gelu(call.data, approximate=call.get("approximate", "none") == "tanh")
    if call.operator == "PRelu":
        return tf.math.maximum(call.data, 0) + call.tensors[1] * tf.math.minimum(call.data, 0)
    if call.operator == "HardSwish":
        return call.data * tf.clip_by_value(call.data / 6 + 0.5, 0.0, 1.0)
    scaled = call.data * float(0.2 if alpha is None else alpha) + float(call.get("beta", 0.5))
    return tf.clip_by_value(scaled, 0.0, 1.0)


def _softmax(call: Call) -> Any:
    function = call.tf.nn.softmax if call.operator == "Softmax" else call.tf.nn.log_softmax
    return function(call.data, axis=int(call.get("axis", -1)))


def _global(call: Call) -> Any:
    function = call.tf.reduce_max if "Max" in call.operator else call.tf.reduce_mean
    return function(call.data, list(range(1, call.rank() - 1)), keepdims=bool(call.get("keepdims", 1)))


def _flip(call: Call) -> Any:
    axes = [axis % call.rank() for axis in np.ravel(call.get("axes", call.get("axis", -1)))]
    return call.tf.reverse(call.data, axes)


BUILDERS: dict[str, Callable[[Call], Any]] = {
    "AveragePool": _pool, "BatchNormalization": _norm, "Clip": _clip, "Conv": _conv, "Elu": _activation,
    "Cast": lambda call: call.tf.cast(call.data, str(call.get("to", "float32"))),
    "Concat": lambda call: call.tf.concat(call.tensors, int(call.get("axis", -1))),
    "Expand": lambda call: call.tf.broadcast_to(call.data, call.get("shape", None, 1)),
    "Flatten": lambda call: call.tf.reshape(call.data, [-1, int(np.prod(call.data.shape[1:].as_list()))]),
    "Flip": _flip, "Gather": lambda call: call.tf.gather(call.tensors[0], call.tensors[1], axis=int(call.get("axis", 0))),
    "Gelu": _activation, "Gemm": _matmul, "GlobalAveragePool": _global, "GlobalMaxPool": _global,
    "HardSigmoid": _activation, "HardSwish": _activation, "LayerNormalization": _layer_norm, "LeakyRelu": _activation,
    "LogSoftmax": _softmax, "MatMul": _matmul, "MaxPool": _pool, "Mean": lambda call: call.tf.add_n(call.tensors) / len(call.tensors),
    "Normalization": _normalization, "PRelu": _activation, "Pad": _pad, "Reshape": _reshape, "Resize": _resize,
    "Reverse": _flip, "Slice": _slice, "Softmax": _softmax,
    "Squeeze": lambda call: call.tf.squeeze(call.data, call.ints("axes")),
    "Sum": lambda call: call.tf.add_n(call.tensors), "Tile": lambda call: call.tf.tile(call.data, call.get("repeats", None, 1)),
    "Transpose": lambda call: call.tf.transpose(call.data, call.get("perm")),
    "Unsqueeze": lambda call: call.tf.expand_dims(call.data, call.ints("axes")[0]),
}  # fmt: skip
"""ONNX operator with attributes -> what builds it."""
