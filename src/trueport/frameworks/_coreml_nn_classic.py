"""Kernels of the layers that Core ML has had from the start: normalisation, products, embeddings, and the ones that arrange [C, H, W]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trueport.frameworks._coreml_nn_kernel import Layer, LayerKernel, folded, need_rank

if TYPE_CHECKING:
    import torch

_SPATIAL = (-3, -2, -1)


def _by_channel(values: torch.Tensor) -> torch.Tensor:
    """Shape a vector to stand along the third axis from the end."""
    return values.reshape(-1, 1, 1)


# -- normalisation


def batchnorm(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """x [.., C, H, W], with the stored mean and variance, or those of each image, or of the batch."""
    import torch.nn.functional as F

    need_rank(layer, x, 3)
    gamma, beta, epsilon = layer.weight("gamma"), layer.weight("beta"), layer["epsilon"]
    if not layer["computeMeanVar"]:
        mean, variance = layer.need("mean"), layer.need("variance")
        return folded(x, 3, lambda y: F.batch_norm(y, mean, variance, gamma, beta, False, 0.0, epsilon))
    axes = (-2, -1) if layer["instanceNormalization"] else (*range(x.dim() - 3), -2, -1)
    y = (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + epsilon).sqrt()
    y = y if gamma is None else y * _by_channel(gamma)
    return y if beta is None else y + _by_channel(beta)


def mvn(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Subtract the mean of a channel or of all channels, and divide by the deviation where asked."""
    need_rank(layer, x, 3)
    axes = _SPATIAL if layer["acrossChannels"] else (-2, -1)
    centred = x - x.mean(axes, keepdim=True)
    if not layer["normalizeVariance"]:
        return centred
    return centred / (centred.square().mean(axes, keepdim=True) + layer["epsilon"]).sqrt()


def l2_normalize(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Divide [.., C, H, W] by the length of the whole [C, H, W]."""
    need_rank(layer, x, 3)
    return x / (x.square().sum(_SPATIAL, keepdim=True) + layer["epsilon"]).sqrt()


def lrn(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Divide by the energy of the neighbouring channels."""
    import torch.nn.functional as F

    need_rank(layer, x, 3)
    size = layer["localSize"]
    if size % 2 == 0:
        raise layer.refuse(f"looks at {size} channels; where an even window stands is not documented")
    energy = F.pad(x.square(), [0, 0, 0, 0, size // 2, size // 2]).unfold(-3, size, 1).sum(-1)
    return x / (layer["k"] + layer["alpha"] / size * energy) ** layer["beta"]


def layer_normalization(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Normalise over the last dimensions, those of `normalizedShape`."""
    axes = tuple(range(-len(layer["normalizedShape"]), 0))
    centred = x - x.mean(axes, keepdim=True)
    y = centred / (centred.square().mean(axes, keepdim=True) + layer["eps"]).sqrt()
    gamma, beta = layer.weight("gamma"), layer.weight("beta")
    y = y if gamma is None else y * gamma
    return y if beta is None else y + beta


def softmax(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Softmax over the channels."""
    need_rank(layer, x, 3)
    return x.softmax(-3)


# -- products and tables


def _refuse_int8(layer: Layer) -> None:
    if layer["int8DynamicQuantize"]:
        raise layer.refuse("rounds its input to int8 as it runs; how it chooses the scale is not documented")


def inner_product(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Matrix product of the last dimension, or of [C, H, W] for ranks 4 and 5."""
    import torch.nn.functional as F

    _refuse_int8(layer)
    weight, bias = layer.need("weights"), layer.weight("bias")
    if x.dim() < 4:
        return F.linear(x, weight, bias)
    return F.linear(x.flatten(-3), weight, bias)[..., None, None]


def batched_matmul(layer: Layer, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
    """Matrix product of the last two dimensions, with another value or a stored matrix."""
    import torch.nn.functional as F

    _refuse_int8(layer)
    if other is None:
        return F.linear(x, layer.need("weights"), layer.weight("bias"))
    left = x[None, :] if x.dim() == 1 else x
    right = other[:, None] if other.dim() == 1 else other
    left = left.transpose(-1, -2) if layer["transposeA"] else left
    return left @ (right.transpose(-1, -2) if layer["transposeB"] else right)


def embedding(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Indices [.., 1, 1, 1] -> vectors [.., C, 1, 1]."""
    need_rank(layer, x, 4, 5)
    return _looked_up(layer, x.reshape(x.shape[:-3]))[..., None, None]


def embedding_nd(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Indices [.., 1] -> vectors [.., C]."""
    need_rank(layer, x, 2)
    return _looked_up(layer, x.reshape(x.shape[:-1]))


def _looked_up(layer: Layer, indices: torch.Tensor) -> torch.Tensor:
    rows = layer.need("weights").t()
    places = indices.long()
    if bool(((places < 0) | (places >= len(rows))).any()):
        raise ValueError(f"the layer '{layer.name}' has the indices 0 to {len(rows) - 1}, and was given one outside")
    bias = layer.weight("bias")
    return rows[places] if bias is None else rows[places] + bias


def dot(layer: Layer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Product of two vectors along the channels, [.., C, 1, 1] -> [.., 1, 1, 1]."""
    need_rank(layer, x, 3)
    found = (x * y).sum(-3, keepdim=True)
    if layer["cosineSimilarity"]:
        found = found / (x.square().sum(-3, keepdim=True).sqrt() * y.square().sum(-3, keepdim=True).sqrt())
    return found


def _spread(layer: Layer, values: torch.Tensor) -> torch.Tensor:
    """A scale or bias of shape [1], [C], [1, H, W] or [C, H, W], to stand against [.., C, H, W]."""
    return _by_channel(values) if values.dim() == 1 else values


def scale(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Multiply by a stored factor, and add a stored bias."""
    bias = layer.weight("bias")
    y = x * _spread(layer, layer.need("scale"))
    return y if bias is None else y + _spread(layer, bias)


def bias(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Add a stored bias."""
    return x + _spread(layer, layer.need("bias"))


# -- arrangement


def flatten(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """[.., C, H, W] -> [.., C * H * W, 1, 1], the channel first or last in the order of reading."""
    need_rank(layer, x, 3)
    ordered = x.movedim(-3, -1) if layer["mode"] == "CHANNEL_LAST" else x
    return ordered.flatten(-3)[..., None, None]


def reshape(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """[Seq, B, C, H, W] to another [C, H, W], or [Seq, C, H, W] where four sizes are given."""
    need_rank(layer, x, 5, 5)
    target = [int(size) for size in layer["targetShape"]]
    if len(target) == 4 and x.shape[1] != 1:
        raise layer.refuse("changes the length of the sequence of a batch; in which order is not documented")
    leading = list(x.shape[:2]) if len(target) == 3 else [target[0], 1]
    channels, height, width = target[-3:]
    if layer["mode"] == "CHANNEL_LAST":
        return x.movedim(-3, -1).reshape(*leading, height, width, channels).movedim(-1, -3)
    return x.reshape(*leading, channels, height, width)


def permute(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Reorder [Seq, C, H, W] of [Seq, B, C, H, W]; the batch stays."""
    need_rank(layer, x, 5, 5)
    places = (0, 2, 3, 4)
    order = [places[int(axis)] for axis in layer["axis"]]
    return x.permute(order[0], 1, *order[1:])


def concat(layer: Layer, *values: torch.Tensor) -> torch.Tensor:
    """Join along the channels, or along the sequence."""
    import torch

    axis = -5 if layer["sequenceConcat"] else -3
    need_rank(layer, values[0], -axis)
    return torch.cat(values, axis)


def split(layer: Layer, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cut the channels into equal parts."""
    need_rank(layer, x, 3)
    parts: tuple[torch.Tensor, ...] = x.tensor_split(layer["nOutputs"], -3)
    return parts


def sequence_repeat(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Repeat the whole sequence."""
    import torch

    need_rank(layer, x, 5)
    return torch.cat([x] * layer["nRepetitions"], -5)


_SLICE_AXES = {"CHANNEL_AXIS": -3, "HEIGHT_AXIS": -2, "WIDTH_AXIS": -1}


def slice_(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Take [start, end) with a step along the channels, the height or the width."""
    import torch

    axis = _SLICE_AXES[layer["axis"]]
    need_rank(layer, x, -axis)
    places = range(x.shape[axis])[layer["startIndex"] : layer["endIndex"] : layer["stride"] or 1]
    return x.index_select(axis, torch.tensor(list(places), dtype=torch.long))


_REDUCE_AXES = {"CHW": (-3, -2, -1), "HW": (-2, -1), "C": (-3,), "H": (-2,), "W": (-1,)}


def reduce(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Reduce some of [C, H, W] to 1."""
    axes, mode = _REDUCE_AXES[layer["axis"]], layer["mode"]
    need_rank(layer, x, -axes[0])
    if mode == "ARGMAX":
        if len(axes) > 1:
            raise layer.refuse("looks for the place of the maximum over several axes, which the format does not allow")
        return x.argmax(axes[0], keepdim=True)
    if mode == "PROD":
        for axis in axes:
            x = x.prod(axis, keepdim=True)
        return x
    if mode == "LOGSUM":
        return (x + layer["epsilon"]).log().sum(axes, keepdim=True)
    return {
        "SUM": lambda: x.sum(axes, keepdim=True),
        "AVG": lambda: x.mean(axes, keepdim=True),
        "SUMSQUARE": lambda: x.square().sum(axes, keepdim=True),
        "L1": lambda: x.abs().sum(axes, keepdim=True),
        "L2": lambda: x.square().sum(axes, keepdim=True).sqrt(),
        "MAX": lambda: x.amax(axes, keepdim=True),
        "MIN": lambda: x.amin(axes, keepdim=True),
    }[mode]()


KERNELS: dict[str, LayerKernel] = {
    "batchnorm": batchnorm,
    "mvn": mvn,
    "l2normalize": l2_normalize,
    "lrn": lrn,
    "layerNormalization": layer_normalization,
    "softmax": softmax,
    "innerProduct": inner_product,
    "batchedMatmul": batched_matmul,
    "embedding": embedding,
    "embeddingND": embedding_nd,
    "dot": dot,
    "scale": scale,
    "bias": bias,
    "flatten": flatten,
    "reshape": reshape,
    "permute": permute,
    "concat": concat,
    "split": split,
    "sequenceRepeat": sequence_repeat,
    "slice": slice_,
    "reduce": reduce,
}
