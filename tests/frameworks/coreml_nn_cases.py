"""One or more cases for each layer of Core ML's neural networks, with what NumPy makes of it, written down from the format's text.

A case is (layer, fields, inputs, expected): fields in the JSON form of the format, expected one array or a list of them.
Stored numbers are eighths, which float32 holds exactly, so that double precision on both sides agrees to its last digits.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

RNG = np.random.default_rng(5)


def eighths(*shape, low=-16, high=17):
    """Random eighths between -2 and 2, without zero when `low` is positive."""
    return RNG.integers(low, high, shape) / 8.0


def weight(values):
    """A WeightParams message in JSON form."""
    return {"floatValue": np.asarray(values, np.float32).ravel().tolist()}


def distinct(*shape):
    """Numbers of which no two are equal."""
    return RNG.permutation(int(np.prod(shape))).reshape(shape) / 4.0 - 3.0


def borders(top, bottom, left, right):
    """A BorderAmounts message in JSON form."""
    edges = [{"startEdgeSize": top, "endEdgeSize": bottom}, {"startEdgeSize": left, "endEdgeSize": right}]
    return {"borderAmounts": edges}


# -- windows


def windows(x, kernel, stride, pads, dilation=None, fill=0.0):
    """[N, C, *out, *kernel] of the padded [N, C, *spatial], by plain indexing."""
    dilation = dilation or [1] * len(kernel)
    x = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=fill)
    sizes = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(x.shape[2:], kernel, dilation, stride, strict=True)]
    out = np.empty((*x.shape[:2], *sizes, *kernel))
    for place in itertools.product(*map(range, sizes)):
        for tap in itertools.product(*map(range, kernel)):
            at = tuple(p * s + t * d for p, s, t, d in zip(place, stride, tap, dilation, strict=True))
            out[(slice(None), slice(None), *place, *tap)] = x[(slice(None), slice(None), *at)]
    return out


def convolve(x, w, bias, stride, pads, dilation, groups=1):
    """Grouped convolution, one output channel at a time."""
    taps = windows(x, w.shape[2:], stride, pads, dilation)
    spatial = len(stride)
    per_in, per_out = x.shape[1] // groups, w.shape[0] // groups
    maps = []
    for channel in range(w.shape[0]):
        first = channel // per_out * per_in
        product = taps[:, first : first + per_in] * w[channel].reshape(1, per_in, *[1] * spatial, *w.shape[2:])
        axes = (1, *range(2 + spatial, 2 + 2 * spatial))
        maps.append(product.sum(axis=axes) + (0 if bias is None else bias[channel]))
    return np.stack(maps, 1)


def deconvolve(x, w, bias, stride, crops, groups=1, out=None):
    """Each input element adds the kernel [in, out / groups, ...] to its place; then the crops go."""
    per_in, per_out = x.shape[1] // groups, w.shape[1]
    full = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], stride, w.shape[2:], strict=True)]
    found = np.zeros((x.shape[0], per_out * groups, *full))
    for channel in range(x.shape[1]):
        first = channel // per_in * per_out
        for place in itertools.product(*map(range, x.shape[2:])):
            for tap in itertools.product(*map(range, w.shape[2:])):
                at = tuple(p * s + t for p, s, t in zip(place, stride, tap, strict=True))
                value = x[(slice(None), channel, *place)][:, None] * w[(channel, slice(None), *tap)][None]
                found[(slice(None), slice(first, first + per_out), *at)] += value
    cut = found[(slice(None), slice(None), *[slice(a, n - b) for (a, b), n in zip(crops, full, strict=True)])]
    return cut if bias is None else cut + bias.reshape(1, -1, *[1] * len(stride))


def conv_case(
    groups, kernel, stride, dilation, padding, *, shape=(2, 4, 9, 8), out=6, bias=True, heavy="BOTTOM_RIGHT_HEAVY"
):
    """A convolution case; padding "same" or four amounts."""
    x, w = eighths(*shape), eighths(out, shape[-3] // groups, *kernel)
    b = eighths(out) if bias else None
    fields = {
        "outputChannels": out,
        "kernelChannels": shape[-3] // groups,
        "nGroups": groups,
        "kernelSize": list(kernel),
        "stride": list(stride),
        "dilationFactor": list(dilation),
        "hasBias": bias,
        "weights": weight(w),
    }
    if bias:
        fields["bias"] = weight(b)
    if padding == "same":
        fields["same"] = {"asymmetryMode": heavy}
        pads = []
        for n, k, s, d in zip(shape[-2:], kernel, stride, dilation, strict=True):
            total = max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n)
            half = (total // 2, total - total // 2)
            pads.append(half if heavy == "BOTTOM_RIGHT_HEAVY" else half[::-1])
    else:
        fields["valid"] = {"paddingAmounts": borders(*padding)} if any(padding) else {}
        pads = [tuple(padding[:2]), tuple(padding[2:])]
    batch = x.reshape(-1, *shape[-3:])
    found = convolve(batch, w, b, stride, pads, list(dilation), groups)
    return "convolution", fields, [x], found.reshape(*shape[:-3], *found.shape[1:])


def deconv_case(groups, kernel, stride, padding, *, out=4, inner=6, output_shape=None, heavy="BOTTOM_RIGHT_HEAVY"):
    """A deconvolution case; padding "same" or four amounts."""
    x, w, b = eighths(2, inner, 4, 5), eighths(inner, out // groups, *kernel), eighths(out)
    fields = {
        "outputChannels": out,
        "kernelChannels": inner,
        "nGroups": groups,
        "kernelSize": list(kernel),
        "stride": list(stride),
        "isDeconvolution": True,
        "hasBias": True,
        "weights": weight(w),
        "bias": weight(b),
    }
    if padding == "same":
        fields["same"] = {"asymmetryMode": heavy}
        crops = []
        for k, s in zip(kernel, stride, strict=True):
            half = ((k - s) // 2, k - s - (k - s) // 2)
            crops.append(half if heavy == "BOTTOM_RIGHT_HEAVY" else half[::-1])
    else:
        fields["valid"] = {"paddingAmounts": borders(*padding)}
        crops = [padding[:2], padding[2:]]
    expected = deconvolve(x, w, b, stride, crops, groups)
    if output_shape:
        fields["outputShape"] = list(expected.shape[2:])
    return "convolution", fields, [x], expected


def conv3d_case(kind, groups=1, deconvolution=False):
    """A three-dimensional convolution or deconvolution with padding of a kind."""
    kernel, stride, custom = (2, 3, 2), (1, 2, 1), (1, 0, 1, 1, 0, 1)
    x, b = eighths(1, 4, 4, 5, 3), eighths(6)
    shape = (6 // groups, 4, *kernel) if deconvolution else (6, 4 // groups, *kernel)
    w = eighths(*shape)
    names = ("Depth", "Height", "Width")
    fields = {"outputChannels": 6, "inputChannels": 4, "nGroups": groups, "hasBias": True, "paddingType": kind}
    fields.update(
        {f"kernel{n}": k for n, k in zip(names, kernel, strict=True)},
        **{f"stride{n}": s for n, s in zip(names, stride, strict=True)},
    )
    fields.update({f"dilation{n}": 1 for n in names}, weights=weight(w), bias=weight(b), isDeconvolution=deconvolution)
    edges = ("Front", "Back", "Top", "Bottom", "Left", "Right")
    if kind == "CUSTOM":
        fields.update({f"customPadding{edge}": n for edge, n in zip(edges, custom, strict=True)})
    pads = {
        "VALID": [(0, 0)] * 3,
        "CUSTOM": list(zip(custom[::2], custom[1::2], strict=True)),
        "SAME": [(0, 1), (0, 1) if deconvolution else (1, 1), (0, 1)],
    }[kind]
    if deconvolution:
        expected = deconvolve(x, w.transpose(1, 0, 2, 3, 4), b, stride, pads, groups)
    else:
        expected = convolve(x, w, b, stride, pads, [1, 1, 1], groups)
    return "convolution3d", fields, [x], expected


def pooled(x, mode, kernel, stride, pads, exclude=False):
    """Pooling by taking each window apart; padded places are nan."""
    taps = windows(x, kernel, stride, pads, fill=np.nan)
    flat = taps.reshape(*taps.shape[: 2 + len(kernel)], -1)
    if mode == "MAX":
        return np.nanmax(flat, -1)
    if mode == "L2":
        return np.sqrt(np.nansum(flat**2, -1))
    return np.nansum(flat, -1) / ((~np.isnan(flat)).sum(-1) if exclude else flat.shape[-1])


def pool_case(mode, kernel, stride, padding, exclude=False, heavy="BOTTOM_RIGHT_HEAVY"):
    """A pooling case; padding "same" or four amounts."""
    x = eighths(2, 3, 7, 8)
    fields = {"type": mode, "kernelSize": list(kernel), "stride": list(stride), "avgPoolExcludePadding": exclude}
    if padding == "same":
        fields["same"] = {"asymmetryMode": heavy}
        pads = []
        for n, k, s in zip((7, 8), kernel, stride, strict=True):
            total = max(0, (math.ceil(n / s) - 1) * s + k - n)
            half = (total // 2, total - total // 2)
            pads.append(half if heavy == "BOTTOM_RIGHT_HEAVY" else half[::-1])
    else:
        fields["valid"] = {"paddingAmounts": borders(*padding)}
        pads = [padding[:2], padding[2:]]
    return "pooling", fields, [x], pooled(x, mode, kernel, stride, pads, exclude)


def complete_case(mode, size, kernel, stride, pad, ends, exclude=False):
    """Pooling that includes the last pixel; `ends`: (windows, padding after) of each axis, worked out by hand."""
    x = eighths(1, 2, *size)
    fields = {
        "type": mode,
        "kernelSize": list(kernel),
        "stride": list(stride),
        "avgPoolExcludePadding": exclude,
        "includeLastPixel": {"paddingAmounts": list(pad)},
    }
    expected = pooled(x, mode, kernel, stride, [(p, after) for p, (_, after) in zip(pad, ends, strict=True)], exclude)
    return "pooling", fields, [x], expected[..., : ends[0][0], : ends[1][0]]


def pool3d_case(mode, kind, exclude=False):
    """A three-dimensional pooling case; maxima over numbers above 0 only, where padded zeros never win."""
    x = eighths(1, 2, 4, 5, 6, low=1)
    kernel, stride, custom = (2, 3, 2), (2, 1, 2), (1, 0, 1, 1, 0, 1)
    names, edges = ("Depth", "Height", "Width"), ("Front", "Back", "Top", "Bottom", "Left", "Right")
    fields = {"type": mode, "paddingType": kind, "countExcludePadding": exclude}
    fields.update(
        {f"kernel{n}": k for n, k in zip(names, kernel, strict=True)},
        **{f"stride{n}": s for n, s in zip(names, stride, strict=True)},
    )
    if kind == "CUSTOM":
        fields.update({f"customPadding{edge}": n for edge, n in zip(edges, custom, strict=True)})
    pads = {"VALID": [(0, 0)] * 3, "CUSTOM": [(1, 0), (1, 1), (0, 1)], "SAME": [(0, 0), (1, 1), (0, 0)]}[kind]
    return "pooling3d", fields, [x], pooled(x, mode, kernel, stride, pads, exclude)


def window_cases():
    yield conv_case(1, (3, 3), (1, 1), (1, 1), (0, 0, 0, 0))
    yield conv_case(2, (3, 2), (2, 1), (1, 1), (1, 2, 0, 1))
    yield conv_case(2, (3, 3), (1, 2), (2, 1), (1, 1, 2, 2), bias=False)
    yield conv_case(4, (3, 3), (2, 2), (1, 1), "same", out=4)
    yield conv_case(1, (4, 3), (2, 3), (1, 1), "same", heavy="TOP_LEFT_HEAVY")
    yield conv_case(1, (3, 2), (1, 1), (2, 3), "same")
    yield conv_case(2, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), shape=(2, 3, 4, 5, 6))
    x, w = eighths(1, 3, 5, 5), eighths(2, 3, 3, 3)
    dynamic = {"outputChannels": 2, "kernelChannels": 3, "kernelSize": [3, 3], "valid": {}}
    yield "convolution", dynamic, [x, w], convolve(x, w, None, [1, 1], [(0, 0)] * 2, [1, 1])
    yield deconv_case(1, (3, 3), (2, 2), (0, 0, 0, 0))
    yield deconv_case(2, (4, 3), (2, 1), (1, 2, 1, 0))
    yield deconv_case(2, (3, 3), (2, 2), (1, 0, 1, 0), output_shape=True)
    yield deconv_case(1, (3, 5), (2, 2), "same")
    yield deconv_case(1, (3, 5), (2, 2), "same", heavy="TOP_LEFT_HEAVY")
    for kind in ("VALID", "CUSTOM", "SAME"):
        yield conv3d_case(kind, groups=2)
        yield conv3d_case(kind, deconvolution=True)
    yield conv3d_case("VALID", groups=2, deconvolution=True)
    for mode in ("MAX", "AVERAGE", "L2"):
        yield pool_case(mode, (3, 2), (2, 3), (0, 0, 0, 0))
        yield pool_case(mode, (3, 3), (2, 2), "same")
        x = eighths(2, 3, 4, 5)
        everything = {"MAX": x.max((2, 3)), "AVERAGE": x.mean((2, 3)), "L2": np.sqrt((x**2).sum((2, 3)))}
        yield "pooling", {"type": mode, "globalPooling": True}, [x], everything[mode][..., None, None]
    yield pool_case("AVERAGE", (3, 3), (2, 1), (1, 0, 2, 1), exclude=True)
    yield pool_case("AVERAGE", (3, 3), (2, 1), (1, 0, 2, 1), exclude=False)
    yield pool_case("AVERAGE", (4, 3), (2, 3), "same", exclude=True, heavy="TOP_LEFT_HEAVY")
    yield pool_case("MAX", (3, 3), (2, 2), (1, 1, 1, 1))
    # 6 pixels, kernel 3, stride 2: ceil(3 / 2) + 1 = 3 windows, the last reaches one place past the end.
    yield complete_case("MAX", (6, 5), (3, 3), (2, 2), (0, 0), [(3, 1), (2, 0)])
    yield complete_case("AVERAGE", (6, 5), (3, 3), (2, 2), (0, 0), [(3, 1), (2, 0)], exclude=True)
    # 5 pixels and 1 padded on each side, kernel 2, stride 3: ceil(5 / 3) + 1 = 3, but the third begins at 6 >= 5 + 1.
    yield complete_case("MAX", (5, 5), (2, 2), (3, 3), (1, 1), [(2, 0), (2, 0)])
    for mode, kind in itertools.product(("MAX", "AVERAGE"), ("VALID", "CUSTOM", "SAME")):
        yield pool3d_case(mode, kind)
    yield pool3d_case("AVERAGE", "CUSTOM", exclude=True)
    x = eighths(1, 2, 3, 4, 2)
    yield "globalPooling3d", {"type": "MAX"}, [x], x.max((2, 3, 4), keepdims=True)
    yield "globalPooling3d", {"type": "AVERAGE"}, [x], x.mean((2, 3, 4), keepdims=True)


# -- the plane


def interpolated(x, rows, columns):
    """Bilinear interpolation of [.., H, W] at real rows and columns, one point at a time."""
    out = np.empty((*x.shape[:-2], len(rows), len(columns)))
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            top, left = math.floor(r), math.floor(c)
            bottom, right = min(top + 1, x.shape[-2] - 1), min(left + 1, x.shape[-1] - 1)
            a, b = r - top, c - left
            above = x[..., top, left] * (1 - b) + x[..., top, right] * b
            below = x[..., bottom, left] * (1 - b) + x[..., bottom, right] * b
            out[..., i, j] = above * (1 - a) + below * a
    return out


def upsample_points(size, count, mode):
    """The three ways of `linearUpsampleMode`, word for word."""
    if mode == "DEFAULT":
        spacing = (size - size / count) / (count - 1)
    elif mode == "ALIGN_CORNERS_TRUE":
        spacing = (size - 1) / (count - 1)
    else:
        spacing = size / count
    shift = 0.5 * spacing - 0.5 if mode == "ALIGN_CORNERS_FALSE" else 0.0
    return [min(size - 1, max(0, i * spacing + shift)) for i in range(count)]


def sampling_points(start, extent, count, mode, limit):
    """The four ways of `SamplingMode`, for an interval [start, start + extent]."""
    if mode == "ROI_ALIGN_MODE":
        spacing = max(1, extent) / count
        first = start + 0.5 * spacing
        points = np.linspace(first, first + (count - 1) * spacing, count)
    elif mode == "UPSAMPLE_MODE":
        points = np.linspace(start, start + (extent + 1) - (extent + 1) / count, count)
    elif mode == "ALIGN_ENDPOINTS_MODE" and count == 1:
        points = np.array([start + extent / 2])
    else:
        points = np.linspace(start, start + extent, count)
    return np.minimum(limit, points)


_MODES = ("STRICT_ALIGN_ENDPOINTS_MODE", "ALIGN_ENDPOINTS_MODE", "UPSAMPLE_MODE", "ROI_ALIGN_MODE")


def crop_resize_case(mode, boxes_mode, batch_id=False, normalized=True):
    """Three boxes of an image of 7 x 9, in one of the box modes."""
    x = eighths(1, 2, 2, 7, 9)
    corners = np.array([[0.125, 0.25, 0.5, 0.75], [0.0, 0.0, 0.875, 0.5], [0.25, 0.125, 0.5, 0.375]])  # h, w, h, w
    size = np.array([6.0, 8.0, 6.0, 8.0]) if normalized else np.ones(4)
    pixels = corners * np.array([6.0, 8.0, 6.0, 8.0])
    given = corners if normalized else pixels
    if boxes_mode.startswith("CENTER"):
        given = np.concatenate([(given[:, :2] + given[:, 2:]) / 2, given[:, 2:] - given[:, :2]], 1)
    if boxes_mode.endswith("WIDTH_FIRST"):
        given = given[:, [1, 0, 3, 2]]
    ids = np.array([[1.0], [0.0], [1.0]])
    boxes = np.concatenate([ids, given], 1) if batch_id else given
    fields = {
        "targetSize": [3, 4],
        "normalizedCoordinates": normalized,
        "mode": {"samplingMethod": mode},
        "boxIndicesMode": {"boxMode": boxes_mode},
        "spatialScale": 1.0,
    }
    assert (given * size >= 0).all()
    expected = []
    for index, (top, left, bottom, right) in enumerate(pixels):
        rows = sampling_points(top, bottom - top, 3, mode, 6)
        columns = sampling_points(left, right - left, 4, mode, 8)
        image = x[0, int(ids[index, 0])][None] if batch_id else x[0]
        expected.append(interpolated(image, rows, columns))
    return "cropResize", fields, [x, boxes[:, None, :, None, None]], np.stack(expected)


def plane_cases():
    x = eighths(2, 3, 6, 7)
    yield "crop", {"cropAmounts": borders(1, 2, 0, 3)}, [x], x[..., 1:4, 0:4]
    yield "crop", {"offset": [2, 1]}, [x, np.zeros((2, 3, 3, 5))], x[..., 2:5, 1:6]
    edge = [(0, 0), (0, 0), (2, 1), (0, 3)]
    pads = {"paddingAmounts": borders(2, 1, 0, 3)}
    yield "padding", {"constant": {"value": 1.5}, **pads}, [x], np.pad(x, edge, constant_values=1.5)
    yield "padding", {"reflection": {}, **pads}, [x], np.pad(x, edge, mode="reflect")
    yield "padding", {"replication": {}, **pads}, [x], np.pad(x, edge, mode="edge")
    yield "upsample", {"scalingFactor": [2, 3]}, [x], x.repeat(2, -2).repeat(3, -1)
    for mode in ("DEFAULT", "ALIGN_CORNERS_TRUE", "ALIGN_CORNERS_FALSE"):
        fields = {"scalingFactor": [2, 3], "mode": "BILINEAR", "linearUpsampleMode": mode}
        points = upsample_points(6, 12, mode), upsample_points(7, 21, mode)
        yield "upsample", fields, [x], interpolated(x, *points)
    fields = {"fractionalScalingFactor": [1.5, 2.0], "mode": "BILINEAR", "linearUpsampleMode": "ALIGN_CORNERS_FALSE"}
    points = upsample_points(6, 9, "ALIGN_CORNERS_FALSE"), upsample_points(7, 14, "ALIGN_CORNERS_FALSE")
    yield "upsample", fields, [x], interpolated(x, *points)
    for mode, target in itertools.product(_MODES, ((9, 4), (1, 3))):
        rows, columns = sampling_points(0, 5, target[0], mode, 5), sampling_points(0, 6, target[1], mode, 6)
        fields = {"targetSize": list(target), "mode": {"samplingMethod": mode}}
        yield "resizeBilinear", fields, [x], interpolated(x, rows, columns)
    for mode in _MODES:
        yield crop_resize_case(mode, "CORNERS_HEIGHT_FIRST")
    for boxes in ("CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST"):
        yield crop_resize_case("ALIGN_ENDPOINTS_MODE", boxes, batch_id=True, normalized=False)
    # The example of the format's own text, eight channels of 1 x 2.
    x = np.arange(1.0, 17.0).reshape(8, 1, 2)
    to_space = np.array([[[1, 5, 2, 6], [9, 13, 10, 14]], [[3, 7, 4, 8], [11, 15, 12, 16]]], float)
    shuffled = np.array([[[1, 3, 2, 4], [5, 7, 6, 8]], [[9, 11, 10, 12], [13, 15, 14, 16]]], float)
    yield "reorganizeData", {"mode": "DEPTH_TO_SPACE", "blockSize": 2}, [x], to_space
    yield "reorganizeData", {"mode": "SPACE_TO_DEPTH", "blockSize": 2}, [to_space], x
    yield "reorganizeData", {"mode": "PIXEL_SHUFFLE", "blockSize": 2}, [x], shuffled
