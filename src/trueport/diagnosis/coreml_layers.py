"""Settings of the layers of Core ML's neural networks in ONNX's words; see `coreml_words` for ML programs.

Where both have a setting of one name with other values ("mode", "activations"), ONNX's value stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Fields = Mapping[str, Any]
_AXES = ("Depth", "Height", "Width")
_EDGES = (("Front", "Top", "Left"), ("Back", "Bottom", "Right"))
_REDUCED = {"CHW": [-3, -2, -1], "HW": [-2, -1], "C": [-3], "H": [-2], "W": [-1]}
_PLACES = {"CHANNEL_AXIS": -3, "HEIGHT_AXIS": -2, "WIDTH_AXIS": -1}
_GRIDS = {
    "DEFAULT": "asymmetric",
    "ALIGN_CORNERS_TRUE": "align_corners",
    "ALIGN_CORNERS_FALSE": "half_pixel",
    "STRICT_ALIGN_ENDPOINTS_MODE": "align_corners",
    "ALIGN_ENDPOINTS_MODE": "align_corners",
    "UPSAMPLE_MODE": "asymmetric",
}
_ORDERS = {"DEPTH_TO_SPACE": "DCR", "PIXEL_SHUFFLE": "CRD"}
_GELU = {"EXACT": "none", "TANH_APPROXIMATION": "tanh", "SIGMOID_APPROXIMATION": "sigmoid"}


def _padding(f: Fields, choice: str) -> dict[str, Any]:
    kind = f[choice]
    if kind == "same":
        return {"auto_pad": "SAME_LOWER" if f["asymmetryMode"] == "TOP_LEFT_HEAVY" else "SAME_UPPER"}
    amounts = f.get("paddingAmounts") or [[0, 0], [0, 0]]
    if kind == "includeLastPixel":
        return {"pads": [int(item[0]) if isinstance(item, list) else int(item) for item in amounts] * 2, "ceil_mode": 1}
    return {"pads": [int(pair[edge]) for edge in (0, 1) for pair in amounts]}


def _convolution(f: Fields) -> dict[str, Any]:
    found = {"strides": f["stride"], "kernel_shape": f["kernelSize"], "group": f["nGroups"]}
    dilations = [1, 1] if f["isDeconvolution"] else f["dilationFactor"]
    return {**found, "dilations": dilations, **_padding(f, "ConvolutionPaddingType")}


def _pooling(f: Fields) -> dict[str, Any]:
    if f["globalPooling"]:
        return {}
    found = {"strides": f["stride"], "kernel_shape": f["kernelSize"], "dilations": [1, 1], "ceil_mode": 0}
    if f["type"] == "AVERAGE":
        found["count_include_pad"] = int(not f["avgPoolExcludePadding"])
    return {**found, **_padding(f, "PoolingPaddingType")}


def _volume(f: Fields) -> dict[str, Any]:
    found = {"strides": [f[f"stride{axis}"] for axis in _AXES], "kernel_shape": [f[f"kernel{axis}"] for axis in _AXES]}
    found["dilations"] = [f.get(f"dilation{axis}", 1) for axis in _AXES]
    if f["paddingType"] == "SAME":
        return {**found, "auto_pad": "SAME_UPPER"}
    custom = f["paddingType"] == "CUSTOM"
    pads = [int(f[f"customPadding{edge}"]) if custom else 0 for side in _EDGES for edge in side]
    return {**found, "pads": pads}


def _pooling3d(f: Fields) -> dict[str, Any]:
    counted = {"count_include_pad": int(not f["countExcludePadding"])} if f["type"] == "AVERAGE" else {}
    return {**_volume(f), "ceil_mode": 0, **counted}


def _resize(f: Fields) -> dict[str, Any]:
    if f.get("mode") == "NN":
        return {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    grid = f.get("linearUpsampleMode") or f.get("samplingMethod")
    found = {"mode": "linear"}
    if grid in _GRIDS:
        found["coordinate_transformation_mode"] = _GRIDS[grid]
    return found


def _reduced(f: Fields) -> dict[str, Any]:
    return {"keepdims": int(f["keepDims"])}


def _constant_pad(f: Fields) -> dict[str, Any]:
    amounts = [int(amount) for amount in f["padAmounts"]]
    if not amounts or f["padToGivenOutputSizeMode"]:
        return {"mode": "constant"}
    return {"mode": "constant", "pads": amounts[::2] + amounts[1::2]}


def _padded(f: Fields) -> dict[str, Any]:
    return {"mode": {"reflection": "reflect", "replication": "edge"}.get(f["PaddingType"], "constant")}


def _recurrent(f: Fields) -> dict[str, Any]:
    stored = f.get("activations") or f.get("activationsForwardLSTM") or [f.get("activation") or {}]
    found: dict[str, Any] = {"activations": [item.get("NonlinearityType", "") for item in stored]}
    both = "activationsForwardLSTM" in f
    found["direction"] = "bidirectional" if both else "reverse" if f.get("reverseInput") else "forward"
    return found


def _gru(f: Fields) -> dict[str, Any]:
    return {**_recurrent(f), "linear_before_reset": 0}


def _permuted(f: Fields) -> dict[str, Any]:
    places = (0, 2, 3, 4)
    order = [places[int(axis)] for axis in f["axis"]]
    return {"perm": [order[0], 1, *order[1:]]}


WORDS: Mapping[str, Callable[[Fields], dict[str, Any]]] = {
    "convolution": _convolution,
    "convolution3d": lambda f: {**_volume(f), "group": f["nGroups"]},
    "pooling": _pooling,
    "pooling3d": _pooling3d,
    "upsample": _resize,
    "resizeBilinear": _resize,
    "padding": _padded,
    "constantPad": _constant_pad,
    "lrn": lambda f: {"size": f["localSize"], "bias": f["k"]},
    "layerNormalization": lambda f: {"axis": -len(f["normalizedShape"])},
    "softmax": lambda f: {"axis": -3},
    "concat": lambda f: {"axis": -5 if f["sequenceConcat"] else -3},
    "split": lambda f: {"axis": -3},
    "splitND": lambda f: {"split": f["splitSizes"]} if f["splitSizes"] else {},
    "slice": lambda f: {
        "axes": [_PLACES[f["axis"]]],
        "starts": [f["startIndex"]],
        "ends": [f["endIndex"]],
        "steps": [f["stride"] or 1],
    },
    "reorganizeData": lambda f: {"blocksize": f["blockSize"], "mode": _ORDERS.get(f["mode"], f["mode"])},
    "transpose": lambda f: {"perm": f["axes"]},
    "permute": _permuted,
    "gelu": lambda f: {"approximate": _GELU[f["mode"]]},
    "clip": lambda f: {"min": f["minVal"], "max": f["maxVal"]},
    "clampedReLU": lambda f: {"min": 0.0, "max": f["beta"]} if f["alpha"] == 0 else {},
    "reduce": lambda f: {"axes": _REDUCED[f["axis"]], "keepdims": 1},
    **{
        f"reduce{name}": _reduced
        for name in ("L1", "L2", "Max", "Min", "Sum", "Prod", "Mean", "LogSum", "SumSquare", "LogSumExp")
    },
    "argMax": lambda f: {"keepdims": int(not f["removeDim"])},
    "argMin": lambda f: {"keepdims": int(not f["removeDim"])},
    "topK": lambda f: {"k": f["K"], "largest": int(not f["useBottomK"])},
    "cumSum": lambda f: {"exclusive": int(f["excludeFinalSum"]), "reverse": int(f["reverse"])},
    "oneHot": lambda f: {"depth": f["oneHotVectorSize"]},
    "lowerTriangular": lambda f: {"upper": 0},
    "upperTriangular": lambda f: {"upper": 1},
    "simpleRecurrent": _recurrent,
    "gru": _gru,
    "uniDirectionalLSTM": _recurrent,
    "biDirectionalLSTM": _recurrent,
}
"""Layer -> its fields in ONNX's words; those that have ONNX's name and meaning already are not repeated."""


def in_onnx_words(layer: str, fields: Fields) -> dict[str, Any]:
    """Settings that a layer ("convolution") has in ONNX's vocabulary, under ONNX's names."""
    words = WORDS.get(layer)
    return words(fields) if words else {}
