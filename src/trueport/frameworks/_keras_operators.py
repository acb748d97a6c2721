"""Decides which stock layers compute an operator of ONNX's. Runs in a worker.

Axes, permutations, kernels and pads are those of the file (channels last as a rule). In Keras 3 an operator without a
layer of its own becomes an operation of `keras.ops`, in Keras 2 a layer that calls one TensorFlow function; both are
written without code of the user's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

import numpy as np

from trueport.frameworks._base import Unsupported
from trueport.frameworks._keras_wiring import Operand, Piece
from trueport.frameworks._keras_words import ACTIVATIONS, activation_name

UNARY = {
    "Abs": "Absolute", "Ceil": "Ceil", "Cos": "Cos", "Erf": "Erf", "Floor": "Floor", "Log": "Log", "Neg": "Negative",
    "Reciprocal": "Reciprocal", "Round": "Round", "Rsqrt": "Rsqrt", "Sign": "Sign", "Sin": "Sin", "Sqrt": "Sqrt",
    "Square": "Square", "Not": "LogicalNot",
}  # fmt: skip
"""ONNX operator without attributes -> class in keras.ops."""
_NN = ("Erf", "Rsqrt")
_TF_UNARY = {"Abs": "math.abs", "Neg": "math.negative", "Not": "math.logical_not"}
BINARY = {
    "Add": ("Add", "math.add"), "Sub": ("Subtract", "math.subtract"), "Mul": ("Multiply", "math.multiply"),
    "Div": ("Divide", "math.divide"), "Max": ("Maximum", "math.maximum"), "Min": ("Minimum", "math.minimum"),
    "Pow": ("Power", "math.pow"), "MatMul": ("Matmul", "linalg.matmul"), "Greater": ("Greater", "math.greater"),
    "Less": ("Less", "math.less"), "Equal": ("Equal", "math.equal"),
}  # fmt: skip
"""ONNX operator of two operands -> (class in keras.ops, TensorFlow function)."""
MERGES = {"Add": "Add", "Sub": "Subtract", "Mul": "Multiply", "Max": "Maximum", "Min": "Minimum", "Mean": "Average",
          "Sum": "Add", "Concat": "Concatenate"}  # fmt: skip
"""ONNX operator -> layer that joins several values."""
REDUCTIONS = {
    "ReduceMean": ("Mean", "math.reduce_mean"), "ReduceSum": ("Sum", "math.reduce_sum"),
    "ReduceMax": ("Max", "math.reduce_max"), "ReduceMin": ("Min", "math.reduce_min"),
    "ReduceProd": ("Prod", "math.reduce_prod"),
}  # fmt: skip
NUMPY, NN, CORE = "keras.src.ops.numpy", "keras.src.ops.nn", "keras.src.ops.core"
LOWEST = -3.4028234663852886e38
"""What pads a maximum: the smallest float32."""


class Asked:
    """An operator to be made: its attributes, its constants by operand, how many values it reads, the data's rank."""

    def __init__(
        self,
        operator: str,
        attributes: Mapping[str, Any],
        constants: Sequence[np.ndarray] = (),
        *,
        slot: int = 0,
        values: int = 1,
        shape: Sequence[Any] | None = None,
        legacy: bool = False,
        layers_only: bool = False,
    ) -> None:
        self.operator, self.attributes, self.constants = operator, dict(attributes), list(constants)
        self.slot, self.values, self.legacy, self.layers_only = slot, values, legacy, layers_only
        self.shape = None if shape is None else list(shape)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute."""
        value = self.attributes.get(name)
        return default if value is None else value

    def rank(self, why: str) -> int:
        """Rank of the data. Raises Unsupported when it is not known."""
        if self.shape is None:
            raise Unsupported(f"the rank of the data is not known here, which {why} needs")
        return len(self.shape)

    def native(self, kind: str, config: dict[str, Any], tf_name: str, words: dict[str, Any], **more: Any) -> Piece:
        """An operation: of keras.ops with its configuration, or TensorFlow's function with its keywords."""
        if self.legacy:
            return Piece("TFOpLambda", {"function": tf_name, "dtype": "float32", "trainable": True}, "keras.layers",
                         keywords={"name": None, **words})  # fmt: skip
        return Piece(kind, config, **{"module": NUMPY, **more})


def pieces(asked: Asked) -> list[Piece]:
    """The layers that compute an operator, one behind the other. Raises Unsupported when stock layers cannot."""
    operator = asked.operator
    if operator in BUILDERS:
        return BUILDERS[operator](asked)
    if asked.values > 1 and operator in MERGES:
        return _merge(asked)
    if operator in BINARY:
        return _binary(asked)
    if operator in REDUCTIONS:
        axes = [int(axis) for axis in np.ravel(asked.get("axes", asked.constants[0] if asked.constants else []))]
        keep = bool(asked.get("keepdims", 1))
        kind, name = REDUCTIONS[operator]
        given = axes or None
        return [asked.native(kind, {"axis": given, "keepdims": keep}, name, {"axis": given, "keepdims": keep})]
    if operator == "Neg" and not asked.legacy:
        return [Piece("Rescaling", {"scale": -1.0, "offset": 0.0})]
    if operator in UNARY:
        name = _TF_UNARY.get(operator, f"math.{operator.lower()}")
        module = {"Erf": "keras.src.ops.math", "Rsqrt": "keras.src.ops.math"}.get(operator, NUMPY)
        return [asked.native(UNARY[operator], {}, name, {}, module=module)]
    if operator in ACTIVATIONS:
        return [Piece("Activation", {"activation": ACTIVATIONS[operator]})]
    if operator in LAYERS:
        return [Piece(operator, dict(asked.attributes), arrays=tuple(asked.constants))]
    raise Unsupported(f"no stock layer of Keras computes {operator}")


def _merge(asked: Asked) -> list[Piece]:
    kind = MERGES[asked.operator]
    if kind == "Subtract" and asked.values != 2:
        raise Unsupported("Subtract takes two values")
    config = {"axis": int(asked.get("axis", -1))} if kind == "Concatenate" else {}
    return [Piece(kind, config, args=([Operand(i) for i in range(asked.values)],))]


def _binary(asked: Asked) -> list[Piece]:
    """Two operands: two values, or a value and a constant."""
    kind, name = BINARY[asked.operator]
    if asked.values == 2:
        module = NUMPY
        if asked.legacy:
            return [asked.native(kind, {}, name, {"y" if asked.operator != "MatMul" else "b": Operand(1)})]
        return [Piece(kind, {}, module, args=(Operand(0), Operand(1)))]
    if len(asked.constants) != 1:
        raise Unsupported(f"{asked.operator} takes a constant or another value beside the data")
    constant, first = asked.constants[0], asked.slot == 0
    scaled = _rescaling(asked.operator, constant, first)
    if scaled is not None:
        return [Piece("Rescaling", scaled)]
    if asked.legacy:
        if not first:
            raise Unsupported(f"Keras 2 has no layer that computes {asked.operator} with the constant in front")
        return [asked.native(kind, {}, name, {"y" if asked.operator != "MatMul" else "b": constant.tolist()})]
    held = stored(constant)
    return [Piece(kind, {}, NUMPY, args=(Operand(0), held) if first else (held, Operand(0)))]


def _rescaling(operator: str, constant: np.ndarray, first: bool) -> dict[str, Any] | None:
    """scale and offset of a Rescaling layer, where one number for all or one a channel does; None for other constants."""
    lead = constant.shape[:-1]
    if constant.dtype.kind != "f" or any(size != 1 for size in lead):
        return None
    values: Any = constant.reshape(-1).astype(float).tolist()
    values = values[0] if len(values) == 1 else values
    if operator == "Mul":
        return {"scale": values, "offset": 0.0}
    if operator == "Add":
        return {"scale": 1.0, "offset": values}
    if operator == "Div" and first:
        parts = (1.0 / constant.astype(np.float64).reshape(-1)).tolist()
        return {"scale": parts[0] if len(parts) == 1 else parts, "offset": 0.0}
    if operator == "Sub":
        negative = (-constant.reshape(-1)).astype(float).tolist()
        if not first:
            return {"scale": -1.0, "offset": values}
        return {"scale": 1.0, "offset": negative[0] if len(negative) == 1 else negative}
    return None


def stored(array: np.ndarray) -> dict[str, Any]:
    """An array as Keras 3 has it in a configuration."""
    return {"class_name": "__numpy__", "config": {"value": array.tolist(), "dtype": str(array.dtype)}}


# -- builders, one for an operator with attributes ---------------------------------------------------------------


def _leaky(asked: Asked) -> list[Piece]:
    return [Piece("LeakyReLU", {"alpha" if asked.legacy else "negative_slope": float(asked.get("alpha", 0.01))})]


def _clip(asked: Asked) -> list[Piece]:
    bounds = [*(float(np.ravel(item)[0]) for item in asked.constants), None, None]
    low, high = asked.get("min", bounds[0]), asked.get("max", bounds[1])
    if low == 0.0:
        return [Piece("ReLU", {"max_value": None if high is None else float(high)})]
    low, high = (LOWEST if low is None else float(low)), (-LOWEST if high is None else float(high))
    words = {"clip_value_min": low, "clip_value_max": high}
    return [asked.native("Clip", {"x_min": low, "x_max": high}, "clip_by_value", words)]


def _hard_sigmoid(asked: Asked) -> list[Piece]:
    alpha, beta = float(asked.get("alpha", 0.2)), float(asked.get("beta", 0.5))
    own = 0.2 if asked.legacy else 1 / 6
    if abs(alpha - own) < 1e-6 and beta == 0.5:
        return [Piece("Activation", {"activation": "hard_sigmoid"})]
    return [Piece("Rescaling", {"scale": alpha, "offset": beta}), Piece("ReLU", {"max_value": 1.0})]


def _gelu(asked: Asked) -> list[Piece]:
    if asked.get("approximate", "none") != "tanh":
        return [Piece("Activation", {"activation": "gelu"})]
    return [asked.native("Gelu", {"approximate": True}, "nn.gelu", {"approximate": True}, module=NN)]


def _softmax(asked: Asked) -> list[Piece]:
    axis = int(asked.get("axis", -1))
    if asked.operator == "Softmax":
        return [Piece("Softmax", {"axis": axis})]
    return [asked.native("LogSoftmax", {"axis": axis}, "nn.log_softmax", {"axis": axis}, module=NN)]


def _prelu(asked: Asked) -> list[Piece]:
    if not asked.constants:
        raise Unsupported("PRelu needs its slopes as a constant")
    slopes = asked.constants[0]
    shape = asked.shape[1:] if asked.shape is not None else None
    if shape is None or any(size is None for size in shape[-1:]):
        raise Unsupported("the shape of the data is not known here, which PRelu needs")
    shared = list(range(1, len(shape)))
    if slopes.size == 1:
        slopes = np.full([1] * (len(shape) - 1) + [int(shape[-1])], slopes.ravel()[0], slopes.dtype)
    if slopes.size != int(shape[-1]):
        raise Unsupported("PReLU takes one slope for all or one a channel here")
    return [Piece("PReLU", {"shared_axes": shared[: len(shape) - 1] or None},
                  arrays=(slopes.reshape([1] * (len(shape) - 1) + [-1]),))]  # fmt: skip


def _transpose(asked: Asked) -> list[Piece]:
    given = asked.get("perm")
    perm = [int(axis) for axis in (range(asked.rank("Transpose"))[::-1] if given is None else given)]
    if perm[0] == 0:
        return [Piece("Permute", {"dims": perm[1:]})]
    return [asked.native("Transpose", {"axes": perm}, "transpose", {"perm": perm})]


def _reshape(asked: Asked) -> list[Piece]:
    shape = asked.get("shape", asked.constants[0] if asked.constants else None)
    if shape is None:
        raise Unsupported("Reshape needs its shape as an attribute or a constant")
    sizes = [int(size) for size in np.ravel(shape)]
    for place, size in enumerate(sizes):
        if size == 0 and place:
            known = asked.shape[place] if asked.shape and place < len(asked.shape) else None
            if known is None:
                raise Unsupported("Reshape copies a size that is not known here")
            sizes[place] = int(known)
    if sizes[0] in (0, -1) and (sizes[0] == 0 or -1 not in sizes[1:]):
        return [Piece("Reshape", {"target_shape": sizes[1:]})]
    return [asked.native("Reshape", {"newshape": sizes}, "reshape", {"shape": sizes})]


def _flatten(asked: Asked) -> list[Piece]:
    if int(asked.get("axis", 1)) != 1:
        raise Unsupported("Flatten keeps the first axis alone")
    return [Piece("Flatten", {})]


def _squeezed(asked: Asked) -> list[Piece]:
    axes = [int(axis) for axis in np.ravel(asked.get("axes", asked.constants[0] if asked.constants else []))]
    if len(axes) != 1:
        raise Unsupported(f"{asked.operator} takes one axis here; make several")
    kind, name = ("Squeeze", "squeeze") if asked.operator == "Squeeze" else ("ExpandDims", "expand_dims")
    return [asked.native(kind, {"axis": axes[0]}, name, {"axis": axes[0]})]


def _pad(asked: Asked) -> list[Piece]:
    pads = [int(size) for size in np.ravel(asked.get("pads", asked.constants[0] if asked.constants else []))]
    mode, value = str(asked.get("mode", "constant")), float(asked.get("value", 0.0))
    half = len(pads) // 2
    pairs = [list(pair) for pair in zip(pads[:half], pads[half:])]
    if not pairs:
        raise Unsupported("Pad needs pads")
    spatial = asked.shape is not None and half == len(asked.shape) - 2
    if asked.shape is not None and half not in (len(asked.shape), len(asked.shape) - 2):
        raise Unsupported(f"{len(pads)} pads do not fit data of rank {len(asked.shape)}")
    if not spatial and half > 2 and not any(pairs[0]) and not any(pairs[-1]):
        pairs, spatial = pairs[1:-1], True
    if spatial and mode == "constant" and value == 0.0 and min(pads) < 0 and max(pads) <= 0:
        crops = [[-begin, -end] for begin, end in pairs]
        return [Piece(f"Cropping{len(pairs)}D", {"cropping": crops[0] if len(pairs) == 1 else crops})]
    if min(pads) < 0:
        raise Unsupported("Keras pads or crops, not both at once")
    if spatial and mode == "constant" and value == 0.0 and len(pairs) <= 3:
        return [Piece(f"ZeroPadding{len(pairs)}D", {"padding": pairs[0] if len(pairs) == 1 else pairs})]
    whole = [[0, 0], *pairs, [0, 0]] if spatial else pairs
    return [padding(asked, whole, value, mode)]


def padding(asked: Asked, pairs: list[list[int]], value: float, mode: str = "constant") -> Piece:
    """A layer that pads all axes."""
    if asked.legacy and mode == "edge":
        raise Unsupported("Keras 2 has no layer that pads with the edge")
    words: dict[str, Any] = {"constant_values": value} if mode == "constant" else {}
    piece = asked.native("Pad", {"pad_width": pairs, "mode": mode}, "pad",
                         {"paddings": pairs, "mode": mode.upper(), **words})  # fmt: skip
    return piece if asked.legacy else piece._replace(keywords=words)


def _slice(asked: Asked) -> list[Piece]:
    parts = [np.ravel(item).tolist() for item in asked.constants] + [None] * 4
    starts, ends = asked.get("starts", parts[0]), asked.get("ends", parts[1])
    if starts is None or ends is None:
        raise Unsupported("Slice needs starts and ends")
    axes = asked.get("axes", parts[2]) or list(range(len(starts)))
    steps = asked.get("steps", parts[3]) or [1] * len(starts)
    if any(axis < 0 for axis in axes):
        rank = asked.rank("a negative axis of Slice")
        axes = [axis % rank for axis in axes]
    cuts: list[Any] = [{"class_name": "__slice__", "config": {"start": None, "stop": None, "step": None}}
                       for _ in range(max(axes) + 1)]  # fmt: skip
    for start, end, axis, step in zip(starts, ends, axes, steps):
        ends_so = None if abs(end) >= 2**31 - 1 else int(end)
        begins = None if abs(start) >= 2**31 - 1 else int(start)
        cuts[axis] = {"class_name": "__slice__", "config": {"start": begins, "stop": ends_so, "step": int(step)}}
    if asked.legacy:
        config = {"function": "__operators__.getitem", "dtype": "float32", "trainable": True}
        return [Piece("SlicingOpLambda", config, keywords={"slice_spec": [cut["config"] for cut in cuts]})]
    return [Piece("GetItem", {}, NUMPY, args=(Operand(0), cuts))]


def _gather(asked: Asked) -> list[Piece]:
    if len(asked.constants) != 1:
        raise Unsupported("Gather needs its indices as a constant")
    indices, axis = asked.constants[0].astype(np.int64), int(asked.get("axis", 0))
    if asked.slot == 1:
        raise Unsupported("a Gather in a table is an Embedding; no stock layer is put there")
    if asked.layers_only:
        return [_selection(asked, indices, axis)]
    if asked.legacy:
        return [asked.native("", {}, "gather", {"indices": indices.tolist(), "axis": axis})]
    return [Piece("Take", {"axis": axis}, NUMPY, args=(Operand(0), stored(indices)))]


def _flip(asked: Asked) -> list[Piece]:
    axes = [
        int(axis)
        for axis in np.ravel(asked.get("axes", asked.get("axis", asked.constants[0] if asked.constants else -1)))
    ]
    if asked.layers_only:
        return [_selection(asked, None, axes[0] if len(axes) == 1 else 0)]
    if asked.legacy:
        rank = asked.rank("Flip")
        return [asked.native("", {}, "reverse", {"axis": [axis % rank for axis in axes]})]
    return [Piece("Flip", {"axis": axes[0] if len(axes) == 1 else axes}, NUMPY)]


def _selection(asked: Asked, indices: np.ndarray | None, axis: int) -> Piece:
    """Channels in another order (None: the opposite one), by a Dense layer that holds a permutation."""
    if asked.rank("a choice of channels") < 2 or axis not in (-1, len(asked.shape or ()) - 1):
        raise Unsupported("an .h5 file holds no layer that chooses along another axis than that of the channels")
    size = (asked.shape or [None])[-1]
    if size is None or (indices is not None and indices.ndim != 1):
        raise Unsupported("the number of channels is not known here, which their choice needs")
    chosen = np.arange(size)[::-1] if indices is None else indices % size
    kernel = np.eye(int(size), dtype=np.float32)[:, chosen]
    return Piece("Dense", {"units": len(chosen), "use_bias": False, "trainable": False}, arrays=(kernel,))


def _cast(asked: Asked) -> list[Piece]:
    dtype = str(asked.get("to", "float32"))
    return [asked.native("Cast", {"dtype": dtype}, "cast", {"dtype": dtype}, module=CORE)]


def _pool(asked: Asked) -> list[Piece]:
    """A pool with auto_pad or pads; pads are put in front."""
    kernel = [int(size) for size in asked.get("kernel_shape", [])]
    if not kernel:
        raise Unsupported(f"{asked.operator} needs kernel_shape")
    maximum = asked.operator == "MaxPool"
    config: dict[str, Any] = {"pool_size": kernel, "strides": [int(s) for s in asked.get("strides", [1] * len(kernel))]}
    config["padding"] = {"SAME_UPPER": "same"}.get(str(asked.get("auto_pad", "")), "valid")
    kind = f"{'Max' if maximum else 'Average'}Pooling{len(kernel)}D"
    pads = [int(size) for size in asked.get("pads", [])]
    if any(int(size) != 1 for size in asked.get("dilations", [])) or int(asked.get("ceil_mode", 0)):
        raise Unsupported("pools of Keras have no dilation and round sizes down")
    if not any(pads):
        return [Piece(kind, config)]
    return [front_pads(asked, pads, maximum=maximum), Piece(kind, config)]


def front_pads(asked: Asked, pads: Sequence[int], *, maximum: bool) -> Piece:
    """The padding of a window's data: zeros; below all numbers for a maximum. `pads` as ONNX has them, spatial."""
    half = len(pads) // 2
    pairs = [[int(begin), int(end)] for begin, end in zip(pads[:half], pads[half:])]
    if asked.operator == "AveragePool" and not int(asked.get("count_include_pad", 0)):
        raise Unsupported("Keras has no average over the window without its pads, other than padding 'same'")
    if maximum:
        return padding(asked, [[0, 0], *pairs, [0, 0]], LOWEST)
    return Piece(f"ZeroPadding{half}D", {"padding": pairs[0] if half == 1 else pairs})


def _global_pool(asked: Asked) -> list[Piece]:
    kind = "GlobalMaxPooling" if "Max" in asked.operator else "GlobalAveragePooling"
    return [Piece(f"{kind}{asked.rank(asked.operator) - 2}D", {"keepdims": bool(asked.get("keepdims", 1))})]


def _conv(asked: Asked) -> list[Piece]:
    """A convolution with its kernel [*spatial, in, out] (depthwise: [*spatial, in, multiplier]) and bias."""
    if not asked.constants:
        raise Unsupported("Conv needs its kernel as a constant")
    kernel, bias = asked.constants[0], asked.constants[1] if len(asked.constants) > 1 else None
    dims, group = kernel.ndim - 2, int(asked.get("group", 1))
    channels = None if asked.shape is None else asked.shape[-1]
    depthwise = group > 1 and group == channels and kernel.shape[-2] == channels
    config: dict[str, Any] = {
        "kernel_size": list(kernel.shape[:dims]),
        "strides": [int(size) for size in asked.get("strides", [1] * dims)],
        "dilation_rate": [int(size) for size in asked.get("dilations", [1] * dims)],
        "padding": {"SAME_UPPER": "same"}.get(str(asked.get("auto_pad", "")), "valid"),
        "use_bias": bias is not None,
    }
    config.update(
        {"depth_multiplier": kernel.shape[-1]} if depthwise else {"filters": kernel.shape[-1], "groups": group}
    )
    piece = Piece(f"{'Depthwise' if depthwise else ''}Conv{dims}D", config,
                  arrays=(kernel,) if bias is None else (kernel, bias.reshape(-1)))  # fmt: skip
    pads = [int(size) for size in asked.get("pads", [])]
    return [front_pads(asked, pads, maximum=False), piece] if any(pads) else [piece]


def _dense(asked: Asked) -> list[Piece]:
    """A product with a constant matrix: a Dense layer."""
    if asked.values > 1:
        return _binary(asked)
    if not asked.constants or asked.constants[0].ndim != 2 or asked.slot:
        raise Unsupported(f"{asked.operator} needs a constant matrix behind the data")
    matrix = asked.constants[0].T if int(asked.get("transB", 0)) else asked.constants[0]
    if float(asked.get("alpha", 1.0)) != 1.0 or float(asked.get("beta", 1.0)) != 1.0 or int(asked.get("transA", 0)):
        raise Unsupported("a Dense layer has no alpha, beta or transposed data")
    bias = asked.constants[1].reshape(-1) if len(asked.constants) > 1 else None
    config = {"units": int(matrix.shape[1]), "use_bias": bias is not None}
    return [Piece("Dense", config, arrays=(matrix,) if bias is None else (matrix, bias))]


def _batch_norm(asked: Asked) -> list[Piece]:
    """Constants: gamma, beta, mean, variance."""
    if len(asked.constants) != 4:
        raise Unsupported("BatchNormalization needs scale, offset, mean and variance as constants")
    config = {"epsilon": float(asked.get("epsilon", 1e-5)), "axis": int(asked.get("axis", -1))}
    return [Piece("BatchNormalization", config, arrays=tuple(asked.constants))]


def _layer_norm(asked: Asked) -> list[Piece]:
    """Constants: gamma, beta (or gamma alone)."""
    if asked.legacy and any(item.ndim != 1 for item in asked.constants):
        raise Unsupported("LayerNormalization takes vectors")
    config = {"epsilon": float(asked.get("epsilon", 1e-5)), "axis": asked.get("axis", -1),
              "scale": len(asked.constants) > 0, "center": len(asked.constants) > 1}  # fmt: skip
    return [Piece("LayerNormalization", config, arrays=tuple(asked.constants))]


def _normalization(asked: Asked) -> list[Piece]:
    """(x - mean) / sqrt(variance), one number for all or one a channel, as a Rescaling layer."""
    given = [asked.get("mean"), asked.get("variance")]
    mean, variance = (np.asarray(item if item is not None else asked.constants[i], np.float64).reshape(-1)
                      for i, item in enumerate(given))  # fmt: skip
    scale = 1 / np.sqrt(variance)
    offset = -mean * scale
    whole = scale.size == 1 and offset.size == 1
    return [Piece("Rescaling", {"scale": float(scale[0]) if whole else scale.tolist(),
                                "offset": float(offset[0]) if whole else offset.tolist()})]  # fmt: skip


def _rescaling_layer(asked: Asked) -> list[Piece]:
    return [Piece("Rescaling", {"scale": asked.get("scale", 1.0), "offset": asked.get("offset", 0.0)})]


def _resize(asked: Asked) -> list[Piece]:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(
        str(asked.get("mode", "nearest")), str(asked.get("mode", "nearest"))
    )
    where = asked.get("coordinate_transformation_mode")
    scales = [float(size) for size in np.ravel(asked.get("scales", []))]
    sizes = [int(size) for size in np.ravel(asked.get("sizes", []))]
    scales, sizes = (scales[1:-1] if len(scales) == 4 else scales), (sizes[1:-1] if len(sizes) == 4 else sizes)
    if sizes and where in (None, "half_pixel", "tf_half_pixel_for_nn"):
        return [Piece("Resizing", {"height": sizes[0], "width": sizes[1], "interpolation": mode})]
    right = where in (None, "asymmetric") if mode == "nearest" else where in (None, "half_pixel")
    if scales and right and all(size == int(size) for size in scales):
        return [Piece(f"UpSampling{len(scales)}D", {"size": [int(s) for s in scales], "interpolation": mode})]
    raise Unsupported(f"Keras has no layer that resizes {mode} with coordinates '{where}'")


def _activation(asked: Asked) -> list[Piece]:
    return [Piece("Activation", {"activation": activation_name(asked.get("activation"))})]


BUILDERS: dict[str, Callable[[Asked], list[Piece]]] = {
    "Activation": _activation, "AveragePool": _pool, "BatchNormalization": _batch_norm, "Cast": _cast, "Clip": _clip,
    "Conv": _conv, "Elu": lambda asked: [Piece("ELU", {"alpha": float(asked.get("alpha", 1.0))})],
    "Flatten": _flatten, "Flip": _flip, "Gather": _gather, "Gelu": _gelu, "Gemm": _dense,
    "GlobalAveragePool": _global_pool, "GlobalMaxPool": _global_pool, "HardSigmoid": _hard_sigmoid,
    "LayerNormalization": _layer_norm, "LeakyRelu": _leaky, "LogSoftmax": _softmax, "MatMul": _dense,
    "MaxPool": _pool, "Normalization": _normalization, "PRelu": _prelu, "Pad": _pad, "Rescaling": _rescaling_layer,
    "Reshape": _reshape, "Resize": _resize, "Reverse": _flip, "Slice": _slice,
    "Softmax": _softmax, "Squeeze": _squeezed, "ThresholdedRelu":
    lambda asked: [Piece("ReLU", {"threshold": float(asked.get("alpha", 1.0))})],
    "Transpose": _transpose, "Unsqueeze": _squeezed,
}  # fmt: skip
"""ONNX operator (or a word of Keras's where ONNX has none) -> what builds it."""
LAYERS = ("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Cropping1D", "Cropping2D", "Cropping3D", "Permute",
          "ReLU", "LeakyReLU", "ELU", "RepeatVector", "UpSampling1D", "UpSampling2D", "Resizing", "UnitNormalization")  # fmt: skip
"""Keras layers that may be asked for by their own name and hyperparameters."""
