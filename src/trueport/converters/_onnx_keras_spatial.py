"""Convolutions, pools, normalisations and resizes: ONNX settings as Keras layers with channels at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trueport.converters._onnx_keras_values import Graph, Node, channels_last, identity
from trueport.frameworks._base import Unsupported


def _pads(node: Node, sizes: Sequence[Any], kernel: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end of each axis, from `pads` or `auto_pad`. `kernel` counts dilation."""
    auto = node.get("auto_pad", "NOTSET")
    count = len(kernel)
    if auto in ("NOTSET", ""):
        pads = list(node.get("pads", [0] * (2 * count)))
        return [(int(pads[i]), int(pads[i + count])) for i in range(count)]
    if auto == "VALID":
        return [(0, 0)] * count
    found = []
    for size, extent, stride in zip(sizes, kernel, strides):
        if size is None and stride != 1:
            raise Unsupported(f"auto_pad {auto} on an open size")
        total = extent - 1 if stride == 1 else max((-(-size // stride) - 1) * stride + extent - size, 0)
        small = total // 2
        found.append((small, total - small) if auto == "SAME_UPPER" else (total - small, small))
    return found


def _pad(graph: Graph, tensor: Any, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Any:
    """Pad the axes between batch and channels."""
    if not any(any(pair) for pair in pads):
        return tensor
    if any(side < 0 for pair in pads for side in pair):
        raise Unsupported("negative padding")
    if value == 0.0:
        amount: Any = tuple(pads[0]) if len(pads) == 1 else tuple(tuple(pair) for pair in pads)
        return getattr(graph.keras.layers, f"ZeroPadding{len(pads)}D")(amount)(tensor)
    return graph.keras.ops.pad(tensor, ((0, 0), *pads, (0, 0)), mode="constant", constant_values=value)


def _conv(graph: Graph, node: Node) -> None:
    weight = graph.required(node, 1, "weight")
    bias, behind = graph.constant(node, 2), None
    if bias is None and len(node.inputs) > 2 and node.inputs[2]:
        raise Unsupported("its bias is no constant")
    if bias is None:
        bias, behind = _bias_behind(graph, node, weight.shape[0], weight.ndim)
    tensor, rank = graph.last(node), weight.ndim
    spatial = rank - 2
    strides = [int(s) for s in node.get("strides", [1] * spatial)]
    dilations = [int(d) for d in node.get("dilations", [1] * spatial)]
    group = int(node.get("group", 1))
    kernel = weight.shape[2:]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    pads = _pads(node, tensor.shape[1:-1], reach, strides)
    same = all(s == 1 for s in strides) and all(
        begin + end == extent - 1 and begin == (extent - 1) // 2 for (begin, end), extent in zip(pads, reach)
    )
    tensor = tensor if same else _pad(graph, tensor, pads)
    settings = {
        "strides": tuple(strides),
        "dilation_rate": tuple(dilations),
        "padding": "same" if same else "valid",
        "use_bias": bias is not None,
    }
    extra = [] if bias is None else [bias]
    last_first = (*range(2, rank), 1, 0)
    if group > 1 and weight.shape[1] == 1 and spatial <= 2 and len(set(strides)) == 1:
        channels = group
        multiplier = weight.shape[0] // group
        # ONNX: [group * multiplier, 1, *kernel]; Keras: [*kernel, group, multiplier], channels out in the same order
        depthwise = weight.reshape(channels, multiplier, *kernel).transpose(*range(2, rank), 0, 1)
        kind, weights = f"DepthwiseConv{spatial}D", [depthwise, *extra]
        made = graph.layer(node, kind, tensor, weights, kernel_size=kernel, depth_multiplier=multiplier, **settings)
    else:
        kind, weights = f"Conv{spatial}D", [weight.transpose(last_first), *extra]
        made = graph.layer(
            node, kind, tensor, weights, filters=weight.shape[0], kernel_size=kernel, groups=group, **settings
        )
    graph.give(node, made, channels_last(rank))
    if behind is not None:
        graph.values[behind] = graph.values[node.outputs[0]]


def _bias_behind(graph: Graph, node: Node, channels: int, rank: int) -> tuple[Any, str | None]:
    """The constant that an addition right behind adds to each channel, and the name of that sum."""
    name = node.outputs[0]
    reader = graph.readers.get(name)
    if graph.uses.get(name) != 1 or reader is None or reader.op_type != "Add":
        return None, None
    array = next((graph.constants.get(item) for item in reader.input if item != name), None)
    if array is None or array.dtype.kind != "f" or array.ndim > rank:
        return None, None
    spread = (1,) * (rank - array.ndim) + array.shape
    wanted = (1, channels, *[1] * (rank - 2))
    return (array.reshape(channels), reader.output[0]) if spread == wanted else (None, None)


def _conv_transpose(graph: Graph, node: Node) -> None:
    weight = graph.required(node, 1, "weight")  # [in, out / group, *kernel]
    bias = graph.constant(node, 2)
    rank = weight.ndim
    spatial = rank - 2
    strides = [int(s) for s in node.get("strides", [1] * spatial)]
    if int(node.get("group", 1)) != 1 or any(d != 1 for d in node.get("dilations", [1])):
        raise Unsupported("a transposed convolution in groups, or with dilation, has no Keras layer")
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID", "") or "output_shape" in node.attributes:
        raise Unsupported("a transposed convolution whose padding is not said in numbers")
    kernel = weight.shape[2:]
    pads = _pads(node, [None] * spatial, kernel, strides)
    more = [int(p) for p in node.get("output_padding", [0] * spatial)]
    made = graph.layer(
        node,
        f"Conv{spatial}DTranspose",
        graph.last(node),
        [weight.transpose(*range(2, rank), 1, 0), *([] if bias is None else [bias])],
        filters=weight.shape[1],
        kernel_size=kernel,
        strides=tuple(strides),
        padding="valid",
        use_bias=bias is not None,
    )
    # Keras gives size * stride + max(kernel - stride, 0); ONNX (size - 1) * stride + kernel, less pads, plus more
    spare = [max(s - k, 0) for s, k in zip(strides, kernel)]
    crops = [(begin, end + over - plus) for (begin, end), over, plus in zip(pads, spare, more)]
    if any(side < 0 for pair in crops for side in pair):
        if any(end < 0 and bias is not None and np.any(bias) for _, end in crops):
            raise Unsupported("an output padding that lies outside what the layer computes, with a bias")
        made = _pad(graph, made, [(max(-begin, 0), max(-end, 0)) for begin, end in crops])
        crops = [(max(begin, 0), max(end, 0)) for begin, end in crops]
    if any(any(pair) for pair in crops):
        amount: Any = crops[0] if spatial == 1 else tuple(crops)
        made = getattr(graph.keras.layers, f"Cropping{spatial}D")(amount)(made)
    graph.give(node, made, channels_last(rank))


def _pool(graph: Graph, node: Node) -> None:
    tensor = graph.last(node)
    kernel = [int(k) for k in node.attributes["kernel_shape"]]
    spatial = len(kernel)
    strides = [int(s) for s in node.get("strides", [1] * spatial)]
    if any(d != 1 for d in node.get("dilations", [1])) or len(node.outputs) > 1:
        raise Unsupported("a pool with dilation, or one that gives indices, has no Keras layer")
    sizes = tensor.shape[1:-1]
    pads = _pads(node, sizes, kernel, strides)
    real = list(pads)
    if node.get("ceil_mode", 0):
        pads = [_ceiled(size, pair, k, s) for size, pair, k, s in zip(sizes, pads, kernel, strides)]
    average = node.op == "AveragePool"
    lowest = float(np.finfo(np.float32).min)
    padded = _pad(graph, tensor, pads, 0.0 if average else lowest)
    kind = f"{'Average' if average else 'Max'}Pooling{spatial}D"
    made = graph.layer(node, kind, padded, pool_size=tuple(kernel), strides=tuple(strides), padding="valid")
    if average and any(any(pair) for pair in pads):
        counts = _counts(sizes, pads, real if node.get("count_include_pad", 0) else [(0, 0)] * spatial, kernel, strides)
        if counts is not None:
            made = graph.keras.ops.multiply(made, counts)
    graph.give(node, made, channels_last(len(tensor.shape)))


def _ceiled(size: Any, pads: tuple[int, int], kernel: int, stride: int) -> tuple[int, int]:
    """Padding with which rounding down gives what rounding up gives (a window must begin inside input or padding)."""
    if size is None:
        raise Unsupported("rounding up on an open size")
    begin, end = pads
    total = size + begin + end - kernel
    count = -(-total // stride) + 1
    if (count - 1) * stride >= size + begin:
        count -= 1
    return begin, end + max((count - 1) * stride - total, 0)


def _counts(
    sizes: Sequence[Any],
    pads: Sequence[tuple[int, int]],
    counted: Sequence[tuple[int, int]],
    kernel: Sequence[int],
    strides: Sequence[int],
) -> np.ndarray | None:
    """What to multiply an average over padded windows with, so that only real (and `counted`) elements count."""
    if list(pads) == list(counted):
        return None
    if any(size is None for size in sizes):
        raise Unsupported("an average that leaves padding out, on an open size")
    factor = np.ones(())
    for size, (begin, end), (low, high), extent, stride in zip(sizes, pads, counted, kernel, strides):
        inside = np.zeros(begin + size + end)
        inside[begin - low : begin + size + high] = 1
        starts = range(0, len(inside) - extent + 1, stride)
        along = np.array([extent / max(inside[start : start + extent].sum(), 1) for start in starts])
        factor = np.multiply.outer(factor, along)
    return None if np.all(factor == 1) else factor.astype(np.float32)[None, ..., None]


def _global_pool(graph: Graph, node: Node) -> None:
    tensor = graph.last(node)
    spatial = len(tensor.shape) - 2
    kind = f"{'Global' + ('Average' if node.op == 'GlobalAveragePool' else 'Max')}Pooling{spatial}D"
    graph.give(node, graph.layer(node, kind, tensor, keepdims=True), channels_last(spatial + 2))


def _batch_norm(graph: Graph, node: Node) -> None:
    if node.get("training_mode", 0):
        raise Unsupported("it is in training mode")
    weights = [graph.required(node, slot, "parameter") for slot in range(1, 5)]
    tensor = graph.last(node)
    epsilon, momentum = float(node.get("epsilon", 1e-5)), float(node.get("momentum", 0.9))
    made = graph.layer(node, "BatchNormalization", tensor, weights, axis=-1, epsilon=epsilon, momentum=momentum)
    graph.give(node, made, channels_last(len(tensor.shape)))


def _layer_norm(graph: Graph, node: Node) -> None:
    value = graph.value(node)
    rank = len(value.order)
    axis = node.axis(rank, -1)
    scale, bias = graph.required(node, 1, "scale"), graph.constant(node, 2)
    if len(node.outputs) > 1 and any(graph.uses.get(name) for name in node.outputs[1:]):
        raise Unsupported("its mean and deviation are used elsewhere")
    tensor = graph.plain_operand(node)
    wanted = tuple(tensor.shape[axis:])
    if scale.shape != wanted or (bias is not None and bias.shape != wanted):
        raise Unsupported(f"a scale of shape {scale.shape} over axes of sizes {wanted}")
    made = graph.layer(
        node,
        "LayerNormalization",
        tensor,
        [scale, *([] if bias is None else [bias])],
        axis=axis if axis == rank - 1 else list(range(axis, rank)),
        epsilon=float(node.get("epsilon", 1e-5)),
        center=bias is not None,
    )
    graph.give(node, made)


def _group_norm(graph: Graph, node: Node) -> None:
    scale, bias = graph.required(node, 1, "scale"), graph.required(node, 2, "bias")
    tensor = graph.last(node)
    channels = tensor.shape[-1]
    groups = channels if node.op == "InstanceNormalization" else int(node.attributes["num_groups"])
    if scale.shape != (channels,):  # opset 18 has one scale for each group
        scale, bias = np.repeat(scale, channels // groups), np.repeat(bias, channels // groups)
    epsilon = float(node.get("epsilon", 1e-5))
    made = graph.layer(node, "GroupNormalization", tensor, [scale, bias], groups=groups, axis=-1, epsilon=epsilon)
    graph.give(node, made, channels_last(len(tensor.shape)))


def _prelu(graph: Graph, node: Node) -> None:
    slope = graph.required(node, 1, "slope")
    value = graph.value(node)
    rank = len(value.order)
    slope = slope.reshape((1,) * (rank - slope.ndim) + slope.shape)
    if slope.shape[0] != 1:
        raise Unsupported("a slope for each entry of the batch")
    tensor = graph.last(node)
    order = channels_last(rank)
    stored = np.transpose(slope, np.argsort(order))[0]
    shared = [axis + 1 for axis, size in enumerate(stored.shape) if size == 1]
    full = [size if axis + 1 in shared else tensor.shape[axis + 1] for axis, size in enumerate(stored.shape)]
    made = graph.layer(node, "PReLU", tensor, [np.broadcast_to(stored, full)], shared_axes=shared or None)
    graph.give(node, made, order)


def _resize(graph: Graph, node: Node) -> None:
    tensor = graph.last(node)
    rank = len(tensor.shape)
    scales, sizes = graph.constant(node, 2 if node.op == "Resize" else 1), graph.constant(node, 3)
    if rank != 4 or any(size is None for size in tensor.shape[1:]):
        raise Unsupported("only pictures of known size are resized")
    height, width = tensor.shape[1:3]
    if sizes is not None and sizes.size:
        wanted = [int(size) for size in sizes]
        target, ratios = wanted[2:], [wanted[2] / height, wanted[3] / width]
    elif scales is not None and scales.size == 4 and np.all(scales[:2] == 1):
        ratios = [float(item) for item in scales[2:]]
        target = [int(np.floor(size * ratio)) for size, ratio in zip((height, width), ratios)]
    else:
        raise Unsupported("its scales are no constants, or it resizes more than height and width")
    mode = node.get("mode", "nearest")
    place = node.get("coordinate_transformation_mode", "asymmetric" if node.op == "Upsample" else "half_pixel")
    rounding = node.get("nearest_mode", "floor" if node.op == "Upsample" else "round_prefer_floor")
    whole = all(float(ratio).is_integer() and ratio >= 1 for ratio in ratios)
    rounded = place == "half_pixel" and rounding.startswith("round")
    if mode == "nearest" and whole and (rounded or (place == "asymmetric" and rounding == "floor")):
        # at whole factors the rounded half_pixel place and the floored asymmetric one are the same element
        made = graph.layer(node, "UpSampling2D", tensor, size=tuple(int(r) for r in ratios), interpolation="nearest")
    elif mode == "linear" and place in ("half_pixel", "pytorch_half_pixel") and min(ratios) >= 1 and min(target) > 1:
        made = graph.keras.ops.image.resize(
            tensor, tuple(target), interpolation="bilinear", data_format="channels_last"
        )
    elif mode == "linear" and place == "align_corners":
        rows, columns = (_aligned(size, count) for size, count in zip((height, width), target))
        made = graph.keras.ops.einsum("ph,nhwc,qw->npqc", rows, tensor, columns)
    else:
        raise Unsupported(f"Keras has no resize of mode {mode} with {place} places and {rounding} here")
    graph.give(node, made, channels_last(rank))


def _aligned(size: int, count: int) -> np.ndarray:
    """[count, size] weights of linear interpolation between the first and the last element."""
    places = np.linspace(0, size - 1, count) if count > 1 else np.zeros(1)
    return np.asarray(np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size))), dtype=np.float32)


def _depth_to_space(graph: Graph, node: Node) -> None:
    ops, tensor = graph.keras.ops, graph.plain_operand(node)
    batch, channels, height, width = tensor.shape
    block = int(node.attributes["blocksize"])
    if None in (channels, height, width):
        raise Unsupported("it rearranges open sizes")
    lead = -1 if batch is None else batch
    if node.op == "SpaceToDepth":
        split = ops.reshape(tensor, (lead, channels, height // block, block, width // block, block))
        moved = ops.transpose(split, (0, 3, 5, 1, 2, 4))
        made = ops.reshape(moved, (lead, channels * block * block, height // block, width // block))
    else:
        inner = channels // block**2
        column_first = node.get("mode", "DCR") == "CRD"
        shape = (lead, inner, block, block) if column_first else (lead, block, block, inner)
        split = ops.reshape(tensor, (*shape, height, width))
        moved = ops.transpose(split, (0, 1, 4, 2, 5, 3) if column_first else (0, 3, 4, 1, 5, 2))
        made = ops.reshape(moved, (lead, inner, height * block, width * block))
    graph.give(node, made, identity(4))


HANDLERS = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _group_norm,
    "GroupNormalization": _group_norm,
    "PRelu": _prelu,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _depth_to_space,
}
