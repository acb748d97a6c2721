"""Settings of Core ML operators in ONNX's words: names, flags as numbers, pads as all begins and then all ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trueport.diagnosis import coreml_layers

Given = dict[str, Any]
Words = Callable[[Given, int | None], None]
"""Adds ONNX's words to the settings of a node; takes the rank of its data, None where it is not known."""

_PADS = {"valid": "VALID", "same": "SAME_UPPER", "same_lower": "SAME_LOWER"}


def translated(native: str, attributes: Mapping[str, Any], rank: int | None) -> Given:
    """The settings of an operator under Core ML's names and, where ONNX has other ones, under those as well."""
    given = {name: int(value) if isinstance(value, bool) else value for name, value in attributes.items()}
    if native.startswith("nn."):
        return {**given, **coreml_layers.in_onnx_words(native[3:], attributes)}
    words = _WORDS.get(native)
    if words is not None:
        words(given, rank)
    if "keepDims" in given:
        given["keepdims"] = given["keepDims"]
    if "keep_dims" in given:
        given["keepdims"] = given["keep_dims"]
    return given


def _window(given: Given, rank: int | None) -> None:
    kind = str(given.pop("pad_type", "valid"))
    pad = given.pop("pad", None)
    if kind in _PADS:
        given["auto_pad"] = _PADS[kind]
    elif isinstance(pad, list):
        given["pads"] = _split(pad)
    if "kernel_sizes" in given:
        given["kernel_shape"] = given.pop("kernel_sizes")
    if "exclude_padding_from_average" in given:
        given["count_include_pad"] = int(not given.pop("exclude_padding_from_average"))


def _split(pads: Sequence[int]) -> list[int]:
    return [*pads[::2], *pads[1::2]]


def _pad(given: Given, rank: int | None) -> None:
    pads = given.pop("pad", None)
    if isinstance(pads, list) and rank is not None and len(pads) <= 2 * rank:
        given["pads"] = _split([0] * (2 * rank - len(pads)) + pads)  # the last axes alone may be listed
    given["mode"] = {"replicate": "edge"}.get(given.get("mode", "constant"), given.get("mode", "constant"))
    if "constant_val" in given:
        given["value"] = given.pop("constant_val")


def _clip(given: Given, rank: int | None) -> None:
    given["min"], given["max"] = given.pop("alpha", None), given.pop("beta", None)


def _relu6(given: Given, rank: int | None) -> None:
    given["min"], given["max"] = 0.0, 6.0


def _gelu(given: Given, rank: int | None) -> None:
    mode = str(given.pop("mode", "EXACT"))
    given["approximate"] = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}.get(mode, mode.lower())


def _cast(given: Given, rank: int | None) -> None:
    names = {"fp16": "float16", "fp32": "float32"}
    given["to"] = names.get(str(given.get("dtype")), given.pop("dtype", None))


def _layer_norm(given: Given, rank: int | None) -> None:
    axes = given.pop("axes", None)
    if isinstance(axes, list) and axes:
        behind = sorted(axis - (rank or 0) if axis >= 0 and rank is not None else axis for axis in axes)
        if behind == list(range(-len(behind), 0)):
            given["axis"] = behind[0]


def _slice(given: Given, rank: int | None) -> None:
    for own, word in (("begin", "starts"), ("end", "ends"), ("stride", "steps")):
        if own in given:
            given[word] = given.pop(own)
    for own, word in (("begin_mask", "begin_mask"), ("end_mask", "end_mask"), ("squeeze_mask", "shrink_axis_mask")):
        flags = given.pop(own, None)
        given[word] = sum(1 << place for place, flag in enumerate(flags) if flag) if isinstance(flags, list) else 0


def _slice_by_size(given: Given, rank: int | None) -> None:
    begin, size = given.pop("begin", None), given.pop("size", None)
    if isinstance(begin, list) and isinstance(size, list):
        given["starts"] = begin
        given["ends"] = [2**31 - 1 if length < 0 else first + length for first, length in zip(begin, size, strict=True)]


def _named(**names: str) -> Words:
    """Core ML's name -> ONNX's."""

    def rename(given: Given, rank: int | None) -> None:
        for own, word in names.items():
            if own in given:
                given[word] = given.pop(own)

    return rename


def _top(given: Given, rank: int | None) -> None:
    given["largest"] = int(not given.pop("ascending", 0))


def _shuffle(mode: str, name: str) -> Words:
    def make(given: Given, rank: int | None) -> None:
        given["blocksize"], given["mode"] = given.pop(name, None), mode

    return make


def _resize(mode: str) -> Words:
    def make(given: Given, rank: int | None) -> None:
        given["mode"] = mode
        sampling = given.pop("sampling_mode", None)
        aligned = given.pop("align_corners", None)
        if mode == "nearest":
            given["coordinate_transformation_mode"], given["nearest_mode"] = "asymmetric", "floor"
        elif sampling is not None:
            words = {"UNALIGN_CORNERS": "half_pixel", "DEFAULT": "asymmetric"}
            given["coordinate_transformation_mode"] = words.get(sampling, "align_corners")
        elif aligned:
            given["coordinate_transformation_mode"] = "align_corners"
        else:
            half = given.get("half_pixel_centers", 1)  # without the switch, sizes are scaled from pixel centres
            given["coordinate_transformation_mode"] = "half_pixel" if half else "asymmetric"

    return make


def _network_window(given: Given, rank: int | None) -> None:
    """A layer of the older format with a window: pads are pairs, one for each axis."""
    kind = given.pop("ConvolutionPaddingType", given.pop("PoolingPaddingType", ""))
    pairs = given.pop("paddingAmounts", None)
    if kind == "valid" and isinstance(pairs, list):
        given["pads"] = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    elif kind == "same":
        given["auto_pad"] = "SAME_LOWER" if given.get("asymmetryMode") == "TOP_LEFT_HEAVY" else "SAME_UPPER"
    for own, word in (("kernelSize", "kernel_shape"), ("stride", "strides"), ("dilationFactor", "dilations")):
        if own in given:
            given[word] = given.pop(own)
    if "avgPoolExcludePadding" in given:
        given["count_include_pad"] = int(not given.pop("avgPoolExcludePadding"))


_WORDS: Mapping[str, Words] = {
    **dict.fromkeys(("conv", "conv_transpose", "avg_pool", "max_pool", "l2_pool"), _window),
    "cast": _cast,
    "clip": _clip,
    "depth_to_space": _shuffle("DCR", "block_size"),
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "local_response_norm": _named(k="bias"),
    "nn.clip": _named(minVal="min", maxVal="max"),
    "nn.convolution": _network_window,
    "nn.gelu": _gelu,
    "nn.pooling": _network_window,
    "nn.transpose": _named(axes="perm"),
    "pad": _pad,
    "pixel_shuffle": _shuffle("CRD", "upscale_factor"),
    "relu6": _relu6,
    "resize_bilinear": _resize("linear"),
    "slice_by_index": _slice,
    "slice_by_size": _slice_by_size,
    "space_to_depth": _named(block_size="blocksize"),
    "split": _named(split_sizes="split"),
    "topk": _top,
    "upsample_bilinear": _resize("linear"),
    "upsample_nearest_neighbor": _resize("nearest"),
}
"""Operator of Core ML -> what gives its settings ONNX's names."""
