"""Decides what a Keras layer is called in ONNX vocabulary, and how its hyperparameters read there."""

from __future__ import annotations

from typing import Any, Callable

OPS = {
    "ActivityRegularization": "Identity",
    "Add": "Add",
    "AlphaDropout": "Identity",
    "Attention": "Attention",
    "Average": "Mean",
    "AveragePooling1D": "AveragePool",
    "AveragePooling2D": "AveragePool",
    "AveragePooling3D": "AveragePool",
    "BatchNormalization": "BatchNormalization",
    "Concatenate": "Concat",
    "Conv1D": "Conv",
    "Conv1DTranspose": "ConvTranspose",
    "Conv2D": "Conv",
    "Conv2DTranspose": "ConvTranspose",
    "Conv3D": "Conv",
    "Conv3DTranspose": "ConvTranspose",
    "Cropping1D": "Slice",
    "Cropping2D": "Slice",
    "Cropping3D": "Slice",
    "Dense": "Gemm",
    "DepthwiseConv1D": "Conv",
    "DepthwiseConv2D": "Conv",
    "Dot": "MatMul",
    "Dropout": "Identity",
    "ELU": "Elu",
    "EinsumDense": "Einsum",
    "Embedding": "Gather",
    "Flatten": "Flatten",
    "GRU": "GRU",
    "GaussianDropout": "Identity",
    "GaussianNoise": "Identity",
    "GlobalAveragePooling1D": "GlobalAveragePool",
    "GlobalAveragePooling2D": "GlobalAveragePool",
    "GlobalAveragePooling3D": "GlobalAveragePool",
    "GlobalMaxPooling1D": "GlobalMaxPool",
    "GlobalMaxPooling2D": "GlobalMaxPool",
    "GlobalMaxPooling3D": "GlobalMaxPool",
    "GroupNormalization": "GroupNormalization",
    "LSTM": "LSTM",
    "LayerNormalization": "LayerNormalization",
    "LeakyReLU": "LeakyRelu",
    "MaxPooling1D": "MaxPool",
    "MaxPooling2D": "MaxPool",
    "MaxPooling3D": "MaxPool",
    "Maximum": "Max",
    "Minimum": "Min",
    "MultiHeadAttention": "Attention",
    "Multiply": "Mul",
    "PReLU": "PRelu",
    "Permute": "Transpose",
    "ReLU": "Relu",
    "RepeatVector": "Expand",
    "Reshape": "Reshape",
    "Resizing": "Resize",
    "SeparableConv1D": "Conv",
    "SeparableConv2D": "Conv",
    "SimpleRNN": "RNN",
    "Softmax": "Softmax",
    "SpatialDropout1D": "Identity",
    "SpatialDropout2D": "Identity",
    "SpatialDropout3D": "Identity",
    "Subtract": "Sub",
    "UnitNormalization": "LpNormalization",
    "UpSampling1D": "Resize",
    "UpSampling2D": "Resize",
    "UpSampling3D": "Resize",
    "ZeroPadding1D": "Pad",
    "ZeroPadding2D": "Pad",
    "ZeroPadding3D": "Pad",
}
"""Keras layer class -> ONNX operator; a class that is not here keeps its own name."""
ACTIVATIONS = {
    "elu": "Elu",
    "exponential": "Exp",
    "gelu": "Gelu",
    "hard_sigmoid": "HardSigmoid",
    "hard_silu": "HardSwish",
    "hard_swish": "HardSwish",
    "leaky_relu": "LeakyRelu",
    "linear": "Identity",
    "log_softmax": "LogSoftmax",
    "mish": "Mish",
    "relu": "Relu",
    "relu6": "Clip",
    "selu": "Selu",
    "sigmoid": "Sigmoid",
    "silu": "Swish",
    "softmax": "Softmax",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "swish": "Swish",
    "tanh": "Tanh",
}
"""Keras activation -> ONNX operator."""
_FUSED = {"relu6": "Relu6"}
"""Activation -> how a layer that has it built in names it, where that is not the operator's name."""


def _ints(value: Any) -> Any:
    return [int(item) for item in value] if isinstance(value, (list, tuple)) else [int(value)]


def _pads(kind: str, value: Any) -> list[int]:
    """Padding or cropping as ONNX has pads: all begins, then all ends. Keras gives a pair for each axis of a `kind` layer."""
    pairs = [value] if kind.endswith("1D") else list(value)
    pairs = [item if isinstance(item, (list, tuple)) else (item, item) for item in pairs]
    return [int(begin) for begin, _ in pairs] + [int(end) for _, end in pairs]


PADDINGS = {"same": "SAME_UPPER", "valid": "VALID", "causal": "CAUSAL"}
_MODES = {"bilinear": "linear", "bicubic": "cubic"}
NAMES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "alpha": ("alpha", float),
    "approximate": ("approximate", lambda value: "tanh" if value else "none"),
    "axes": ("axes", lambda value: value),
    "axis": ("axis", lambda value: value),
    "dilation_rate": ("dilations", _ints),
    "dims": ("perm", lambda value: [0, *_ints(value)]),
    "epsilon": ("epsilon", float),
    "equation": ("equation", str),
    "filters": ("filters", int),
    "go_backwards": ("direction", lambda value: "reverse" if value else "forward"),
    "groups": ("group", int),
    "interpolation": ("mode", lambda value: _MODES.get(value, value)),
    "kernel_size": ("kernel_shape", _ints),
    "key_dim": ("key_dim", int),
    "max_value": ("max", float),
    "negative_slope": ("alpha", float),
    "num_heads": ("num_heads", int),
    "offset": ("offset", lambda value: value),
    "output_padding": ("output_padding", _ints),
    "pool_size": ("kernel_shape", _ints),
    "reset_after": ("linear_before_reset", int),
    "return_sequences": ("return_sequences", bool),
    "return_state": ("return_state", bool),
    "scale": ("scale", lambda value: value),
    "size": ("scales", _ints),
    "strides": ("strides", _ints),
    "target_shape": ("shape", lambda value: [0, *_ints(value)]),
    "units": ("units", int),
    "use_bias": ("use_bias", bool),
    "value_dim": ("value_dim", int),
}
"""Keras hyperparameter -> (attribute, how its value reads there)."""
_CLASS_NAMES = {("GroupNormalization", "groups"): "num_groups"}
_RECURRENT = ("LSTM", "GRU", "SimpleRNN", "Bidirectional")


def describe(layer: Any, *, legacy: bool) -> tuple[str, dict[str, Any]]:
    """Return (operator, attributes) of a layer: plain values, in ONNX vocabulary where one exists."""
    kind = type(layer).__name__
    operator = OPS.get(kind, kind)
    try:
        config = layer.get_config()
    except (NotImplementedError, TypeError, ValueError):
        return operator, {}
    found = _plain(kind, config)
    found.update(_activations(config))
    if kind in _RECURRENT and "units" in found:
        found["hidden_size"] = found.pop("units")
    if kind.startswith("ZeroPadding"):
        found["pads"], found["mode"] = _pads(kind, config["padding"]), "constant"
    elif kind.startswith("Cropping"):
        found["crops"] = _pads(kind, config["cropping"])
    elif isinstance(config.get("padding"), str):
        found["auto_pad"] = PADDINGS.get(config["padding"], config["padding"])
    if kind == "ReLU":
        operator = _relu(found, config)
    if kind == "Activation":
        found.pop("activation", None)
        chosen = _activation_name(config.get("activation"))
        operator = ACTIVATIONS.get(chosen, "Activation")
        found.update(_implied(chosen, legacy=legacy))
    if operator == "Resize":
        nearest = found.setdefault("mode", "nearest") == "nearest"
        aligned = "tf_half_pixel_for_nn" if kind == "Resizing" else "asymmetric"
        found["coordinate_transformation_mode"] = aligned if nearest else "half_pixel"
    return operator, found


def _plain(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, (name, reading) in NAMES.items():
        value = config.get(key)
        if isinstance(value, dict) or value is None or (key == "scale" and isinstance(value, bool)):
            continue
        try:
            read = reading(value)
        except (TypeError, ValueError):
            continue  # another layer's hyperparameter of the same name
        if isinstance(read, (bool, int, float, str, list)):
            found[_CLASS_NAMES.get((kind, key), name)] = read
        elif isinstance(read, tuple):
            found[_CLASS_NAMES.get((kind, key), name)] = list(read)
    return found


def _activations(config: dict[str, Any]) -> dict[str, Any]:
    """The activations that a layer has built in."""
    names = {key: _activation_name(config.get(key)) for key in ("activation", "recurrent_activation")}
    shown = {key: _FUSED.get(name, ACTIVATIONS.get(name, name)) for key, name in names.items()}
    return {key: name for key, name in shown.items() if name not in ("", "Identity")}


def _activation_name(value: Any) -> str:
    """Keras's name of an activation, which a configuration holds as it is or inside an object's description."""
    if isinstance(value, dict):
        inner = value.get("config")
        value = inner.get("name") if isinstance(inner, dict) else inner
    return value if isinstance(value, str) else ""


def _relu(found: dict[str, Any], config: dict[str, Any]) -> str:
    """What a ReLU layer is: Relu, Clip with a ceiling, LeakyRelu with a slope, ThresholdedRelu with a threshold."""
    threshold = float(config.get("threshold") or 0.0)
    slope = found.pop("alpha", 0.0)
    if threshold:
        found.update(alpha=threshold, slope=slope)
        return "ThresholdedRelu"
    if slope:
        found["alpha"] = slope
        return "LeakyRelu"
    if "max" in found:
        found["min"] = 0.0
        return "Clip"
    return "Relu"


def _implied(activation: str, *, legacy: bool) -> dict[str, Any]:
    """What an activation by name fixes."""
    fixed: dict[str, dict[str, Any]] = {
        "elu": {"alpha": 1.0},
        "gelu": {"approximate": "none"},
        "hard_sigmoid": {"alpha": 0.2 if legacy else 1 / 6, "beta": 0.5},
        "leaky_relu": {"alpha": 0.2},
        "log_softmax": {"axis": -1},
        "relu6": {"min": 0.0, "max": 6.0},
        "softmax": {"axis": -1},
    }
    return fixed.get(activation, {})
