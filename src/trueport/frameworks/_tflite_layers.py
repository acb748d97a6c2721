"""Windows, matrices and resizing of ONNX's vocabulary, as TFLite writes them. Runs in a worker; importing it fills `RULES`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trueport.frameworks import _tflite_emit as emit
from trueport.frameworks._base import Unsupported
from trueport.frameworks._tflite_emit import FAR, RULES, Attributes, Emitter, Operand, Rule, Window, add, ints, mul

Operands = list[Any]


def _pool(code: str) -> Any:
    def write(e: Emitter, operands: Operands, given: Attributes) -> Operand:
        window = Window.of(given.get("kernel_shape", ()), given)
        if window.dilations != [1, 1]:
            raise Unsupported("TFLite's pooling has no dilations")
        same, pads = window.placed(e, operands[0])
        if given.get("ceil_mode") and not same:
            pads = _rounded_up(e, operands[0], window, pads or [0, 0, 0, 0])
        average = code == "AVERAGE_POOL_2D"
        if same and average and given.get("count_include_pad") and window.pads is not None:
            same, pads = False, window.pads
        data = operands[0]
        if pads is not None:
            lowest = 0.0 if average else _lowest(e, data)
            data = emit.padded(e, data, [0, pads[0], pads[1], 0, 0, pads[2], pads[3], 0], lowest)
        result = _pooled(e, code, data, window, same)
        if pads is not None and average and not given.get("count_include_pad"):
            ones = np.ones([1, *e.fixed(operands[0], [1, 2], "an average without its padding"), 1], np.float32)
            wide = np.pad(ones, [(0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)])
            counted = _window_sums(wide[0, :, :, 0], window)
            share = np.prod(window.kernel) / counted
            result = mul(e, e.real(result), np.asarray(share, np.float32)[None, :, :, None])
        return result

    return write


def _pooled(e: Emitter, code: str, data: Operand, window: Window, same: bool) -> int:
    (height, width), (down, right) = window.kernel, window.strides
    size = {"filterHeight": height, "filterWidth": width, "strideH": down, "strideW": right}
    return e.op(code, [data], "Pool2DOptions", padding=0 if same else 1, **size)


def _rounded_up(e: Emitter, data: Operand, window: Window, pads: list[int]) -> list[int] | None:
    """Pads with which a window that begins on the picture, or on the padding before it, is not dropped at the end."""
    ends = []
    for axis, size in enumerate(e.fixed(data, [1, 2], "ceil_mode")):
        width, step = window.kernel[axis], window.strides[axis]
        count = -(-(size + pads[axis] + pads[2 + axis] - width) // step) + 1
        if (count - 1) * step >= size + pads[axis]:
            count -= 1
        ends.append(max(pads[2 + axis], (count - 1) * step + width - size - pads[axis]))
    found = [*pads[:2], *ends]
    return found if any(found) else None


def _lowest(e: Emitter, data: Operand) -> float:
    """The least number that the data can hold."""
    if e.quantised(data):
        tensor = e.tensor(int(e.place(data)))
        info = np.iinfo(e.dtype(data))
        return float((info.min - int(tensor.quantization.zeroPoint[0])) * float(tensor.quantization.scale[0]))
    return float(np.finfo(np.float32).min)


def _window_sums(field: np.ndarray, window: Window) -> np.ndarray:
    (height, width), (down, right) = window.kernel, window.strides
    rows, columns = (field.shape[0] - height) // down + 1, (field.shape[1] - width) // right + 1
    total = np.zeros((rows, columns))
    for row in range(height):
        for column in range(width):
            part = field[row : row + down * (rows - 1) + 1 : down, column : column + right * (columns - 1) + 1 : right]
            total += part
    return total


def _conv(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    """The kernel lies as TFLite's do: [O, H, W, I], or [1, H, W, O] where every channel is on its own."""
    kernel = e.array(operands[1])
    if kernel is None or kernel.ndim != 4:
        raise Unsupported("the kernel of Conv has to be a constant of four axes in a TFLite file")
    channels, group = e.shape(operands[0])[-1], int(given.get("group", 1))
    depthwise = group > 1 and group == channels and kernel.shape[0] == 1
    outputs = kernel.shape[3] if depthwise else kernel.shape[0]
    bias = operands[2] if len(operands) > 2 else np.zeros(outputs, np.float32)
    window = Window.of(kernel.shape[1:3], given)
    same, pads = window.placed(e, operands[0])
    data = operands[0]
    if pads is not None:
        data = emit.padded(e, data, [0, pads[0], pads[1], 0, 0, pads[2], pads[3], 0])
    (down, right), (rows, columns) = window.strides, window.dilations
    values: dict[str, Any] = {"padding": 0 if same else 1, "strideH": down, "strideW": right}
    values.update(dilationHFactor=rows, dilationWFactor=columns)
    if depthwise:
        values["depthMultiplier"] = outputs // channels
    code, options = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
    return e.op(code, [data, operands[1], bias], options, **values)


def _matmul(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    weights = e.array(operands[1])
    if weights is None or weights.ndim != 2 or e.array(operands[0]) is not None:
        return e.op("BATCH_MATMUL", operands[:2], "BatchMatMulOptions", adjX=False, adjY=False)
    return _dense(e, operands[0], weights.T, None)


def _dense(e: Emitter, data: Operand, weights: Operand, bias: Operand | None) -> int:
    """Weights [outputs, inputs]; all axes of the data but the last stay."""
    keep = len(e.shape(data)) > 2
    inputs = [data, weights, -1 if bias is None else bias]
    return e.op("FULLY_CONNECTED", inputs, "FullyConnectedOptions", keepNumDims=keep)


def _gemm(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    alpha, beta = float(given.get("alpha", 1.0)), float(given.get("beta", 1.0))
    data = emit.transposed(e, operands[0], [1, 0]) if given.get("transA") else operands[0]
    weights = e.array(operands[1])
    bias = operands[2] if len(operands) > 2 else None
    if weights is None:
        product = e.op("BATCH_MATMUL", [data, operands[1]], "BatchMatMulOptions", adjY=bool(given.get("transB")))
        product = product if alpha == 1 else mul(e, product, alpha)
        return product if bias is None else add(e, product, bias if beta == 1 else mul(e, bias, beta))
    if not given.get("transB") or alpha != 1:
        weights = np.ascontiguousarray(weights if given.get("transB") else weights.T) * weights.dtype.type(alpha)
        operands = [data, weights]
    values = None if bias is None else e.array(bias)
    if values is not None:
        size = weights.shape[0]
        bias = np.broadcast_to(values.ravel() * np.float32(beta), (size,)).astype(np.float32)
    elif bias is not None:
        raise Unsupported("the bias of Gemm has to be constant in a TFLite file")
    return _dense(e, data, operands[1], bias)


def _resize(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    data, shape = operands[0], e.shape(operands[0])
    sizes, scales = given.get("sizes"), given.get("scales")
    for operand in operands[1:]:
        found = e.array(operand)
        if found is not None and found.size:
            sizes, scales = (found, scales) if found.dtype.kind in "iu" else (sizes, found)
    if sizes is None and scales is not None:
        factors = [float(factor) for factor in np.ravel(scales)][-len(shape) :]
        factors = factors[1:3] if len(factors) == 4 else factors
        fixed = e.fixed(data, [1, 2], "Resize by a factor")
        sizes = [math.floor(size * factor) for size, factor in zip(fixed, factors)]
    if sizes is None or len(shape) != 4:
        raise Unsupported("Resize needs a picture of four axes, and 'sizes' or 'scales'")
    target = [int(size) for size in np.ravel(sizes)]
    target = target[1:3] if len(target) == 4 else target
    way = str(given.get("coordinate_transformation_mode", "half_pixel"))
    nearest = str(given.get("mode", "nearest")) == "nearest"
    if str(given.get("mode", "nearest")) not in ("nearest", "linear"):
        raise Unsupported(f"TFLite does not resize in mode '{given['mode']}'")
    if way not in ("asymmetric", "align_corners", "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn"):
        raise Unsupported(f"TFLite does not know the coordinates '{way}'")
    code, options = ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions") if nearest else (
        "RESIZE_BILINEAR", "ResizeBilinearOptions")  # fmt: skip
    flags = {"alignCorners": way == "align_corners", "halfPixelCenters": "half_pixel" in way}
    return e.op(code, [data, ints(target)], options, **flags)


def with_batch(e: Emitter, data: Operand, rest: list[int]) -> Operand:
    """The shape [batch of the data, *rest] as an operand: a constant, or computed where the batch is free."""
    if not e.edit.free(e.tensor(e.place(data)))[0]:
        return ints([e.shape(data)[0], *rest])
    shape = e.op("SHAPE", [data], "ShapeOptions", dtype="int32", outType=2)
    batch = emit.strided(e, shape, [0], [1], [1])
    return e.op("CONCATENATION", [batch, ints(rest)], "ConcatenationOptions", axis=0)


def _conv_transpose(e: Emitter, operands: Operands, given: Attributes) -> Operand:
    """The kernel lies as TFLite's do: [O, H, W, I]. All of the result, of which the pads are cut off."""
    kernel = e.array(operands[1])
    if kernel is None or kernel.ndim != 4 or int(given.get("group", 1)) != 1:
        raise Unsupported("ConvTranspose takes a constant kernel of four axes and one group in a TFLite file")
    window = Window.of(kernel.shape[1:3], given)
    if window.dilations != [1, 1] or window.pads is None:
        raise Unsupported("ConvTranspose is written with explicit pads and without dilations")
    data, sizes = operands[0], e.fixed(operands[0], [1, 2], "ConvTranspose")
    more = [int(size) for size in np.ravel(given.get("output_padding", [0, 0]))]
    full = [(size - 1) * step + width + extra
            for size, step, width, extra in zip(sizes, window.strides, window.kernel, more)]  # fmt: skip
    shape = with_batch(e, data, [*full, kernel.shape[0]])
    (down, right), options = window.strides, "TransposeConvOptions"
    values: dict[str, Any] = {"padding": 1, "strideH": down, "strideW": right, "dtype": e.dtype(data)}
    if not isinstance(shape, np.ndarray):
        values["known"] = ([e.shape(data)[0], *full, kernel.shape[0]], [-1, *full, kernel.shape[0]])
    result = e.op("TRANSPOSE_CONV", [shape, operands[1], data], options, **values)
    top, left, bottom, across = window.pads
    if any(window.pads):
        ends = [FAR, full[0] - bottom, full[1] - across, FAR]
        result = emit.strided(e, result, [0, top, left, 0], ends, [1, 1, 1, 1])
    return result if len(operands) < 3 else add(e, result, operands[2])


RULES.update({
    "AveragePool": Rule(_pool("AVERAGE_POOL_2D"), True), "Conv": Rule(_conv), "ConvTranspose": Rule(_conv_transpose),
    "Gemm": Rule(_gemm), "MatMul": Rule(_matmul), "MaxPool": Rule(_pool("MAX_POOL_2D"), True), "Resize": Rule(_resize),
})  # fmt: skip
